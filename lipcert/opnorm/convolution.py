"""Convolutions and their transposes, registered with `opnorm`. Floor 2."""

from __future__ import annotations

from lipcert.linear import Adjoint, Conv
from lipcert.norms import L2, Norms, require_supported
from lipcert.opnorm.counting import adjoint_norm, conv_norm
from lipcert.opnorm.maps import Effort, NormBound, opnorm, rigorous
from lipcert.opnorm.spectral import spectral_norm


@opnorm.register
def _conv(linear: Conv, norms: Norms = L2, *, effort: Effort = Effort()) -> NormBound:  # noqa: B008
    require_supported(norms)
    if norms == L2:
        return spectral_norm(linear, effort)
    return rigorous(conv_norm(linear, norms), "counting")


@opnorm.register
def _adjoint(linear: Adjoint, norms: Norms = L2, *, effort: Effort = Effort()) -> NormBound:  # noqa: B008
    require_supported(norms)
    if norms == L2:
        return spectral_norm(linear.conv, effort)
    return rigorous(adjoint_norm(linear.conv, norms), "counting")
