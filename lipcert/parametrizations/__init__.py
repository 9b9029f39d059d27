"""Layers that keep a Lipschitz claim by construction, as `torch.nn.utils.parametrize` parametrizations. Floor 3.

Certifiers never trust them: a claim is certified from the weights a model deploys.
"""

from lipcert.parametrizations.estimates import Exact, Fourier, Gram, Lanczos, PowerIteration
from lipcert.parametrizations.options import Deployed, Everywhere, Gain, Hard, Soft
from lipcert.parametrizations.spectral import spectral_norm

__all__ = [
    "Deployed",
    "Everywhere",
    "Exact",
    "Fourier",
    "Gain",
    "Gram",
    "Hard",
    "Lanczos",
    "PowerIteration",
    "Soft",
    "spectral_norm",
]
