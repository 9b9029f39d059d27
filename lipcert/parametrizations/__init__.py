"""Layers that keep a Lipschitz claim by construction, as `torch.nn.utils.parametrize` parametrizations. Floor 3.

Certifiers never trust them: a claim is certified from the weights a model deploys.
"""

from lipcert.parametrizations.spectral import spectral_norm

__all__ = ["spectral_norm"]
