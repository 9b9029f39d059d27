"""Alternatives to spectral normalisation: penalties and clipping, and what each of them guarantees. Floor 5.

Only `clip_weights` leads to a Lipschitz constant that is known before the network is: `clipping_bound`.
"""

from lipcert.penalties.clipping import clip_weights, clipping_bound
from lipcert.penalties.gradient import OneSided, TwoSided, gradient_penalty, r1, r2
from lipcert.penalties.normalisation import layer_norm_gain
from lipcert.penalties.orthogonality import (
    SpectralTerm,
    frobenius_orthogonality,
    off_diagonal_orthogonality,
    spectral_regularisation,
    starting_vectors,
)
from lipcert.penalties.required import require_gradient_penalty

__all__ = [
    "OneSided",
    "SpectralTerm",
    "TwoSided",
    "clip_weights",
    "clipping_bound",
    "frobenius_orthogonality",
    "gradient_penalty",
    "layer_norm_gain",
    "off_diagonal_orthogonality",
    "r1",
    "r2",
    "require_gradient_penalty",
    "spectral_regularisation",
    "starting_vectors",
]
