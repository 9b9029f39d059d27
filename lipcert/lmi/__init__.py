"""The incremental quadratic constraint of a network: normal form, elimination, proof. Floor 2."""

from lipcert.lmi.elimination import eliminate, tighten
from lipcert.lmi.normal_form import Layer, Multipliers, NormalForm, Signal, followed, normal_form, reduced
from lipcert.lmi.patterns import Pattern, largest_pattern
from lipcert.lmi.proof import holds, prove

__all__ = [
    "Layer",
    "Multipliers",
    "NormalForm",
    "Pattern",
    "Signal",
    "eliminate",
    "followed",
    "holds",
    "largest_pattern",
    "normal_form",
    "prove",
    "reduced",
    "tighten",
]
