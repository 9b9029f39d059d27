"""The incremental quadratic constraint of a network: normal form, elimination, proof. Floor 2."""

from lipcert.lmi.dual import dual_value, feasible, linear_path, multipliers_of, vectors_of
from lipcert.lmi.elimination import Factors, eliminate, factorise, spectrum, tighten
from lipcert.lmi.normal_form import Layer, Multipliers, NormalForm, Signal, followed, normal_form
from lipcert.lmi.patterns import Pattern, largest_pattern
from lipcert.lmi.proof import holds, prove
from lipcert.lmi.reduction import reduced, rescaled

__all__ = [
    "Factors",
    "Layer",
    "Multipliers",
    "NormalForm",
    "Pattern",
    "Signal",
    "dual_value",
    "eliminate",
    "factorise",
    "feasible",
    "followed",
    "holds",
    "largest_pattern",
    "linear_path",
    "multipliers_of",
    "normal_form",
    "prove",
    "reduced",
    "rescaled",
    "spectrum",
    "tighten",
    "vectors_of",
]
