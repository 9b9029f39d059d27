"""Claims with two sides: how much a network stretches distances, and how little. Floor 5."""

from lipcert.bilipschitz.claim import BiLipschitz, bilipschitz, both_sides
from lipcert.bilipschitz.derived import DerivedRow, derived_rows, derived_table
from lipcert.bilipschitz.inverse import Inversion, StepInverse, invert, proved_error
from lipcert.bilipschitz.steps import Kind, Step, coupling_constant

__all__ = [
    "BiLipschitz",
    "DerivedRow",
    "Inversion",
    "Kind",
    "Step",
    "StepInverse",
    "bilipschitz",
    "both_sides",
    "coupling_constant",
    "derived_rows",
    "derived_table",
    "invert",
    "proved_error",
]
