"""The incremental quadratic constraint of a network: normal form, elimination, proof. Floor 2."""

from lipcert.lmi.elimination import eliminate, tighten
from lipcert.lmi.normal_form import Layer, Multipliers, NormalForm, Signal, normal_form
from lipcert.lmi.proof import holds, prove
from lipcert.lmi.reduction import reduced

__all__ = [
    "Layer",
    "Multipliers",
    "NormalForm",
    "Signal",
    "eliminate",
    "holds",
    "normal_form",
    "prove",
    "reduced",
    "tighten",
]
