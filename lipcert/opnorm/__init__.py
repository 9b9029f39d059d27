"""Rigorous operator norms of structured linear maps. Floor 2."""

from lipcert.opnorm import convolution as convolution
from lipcert.opnorm.composed import composed_norm
from lipcert.opnorm.maps import Effort, NormBound, opnorm
from lipcert.opnorm.spectral import opnorm_any_size

__all__ = ["Effort", "NormBound", "composed_norm", "opnorm", "opnorm_any_size"]
