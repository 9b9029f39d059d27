"""Claims with two sides: how much a network stretches distances, and how little. Floor 5."""

from lipcert.bilipschitz.claim import BiLipschitz, bilipschitz, both_sides
from lipcert.bilipschitz.steps import Kind, Step, coupling_constant

__all__ = ["BiLipschitz", "Kind", "Step", "bilipschitz", "both_sides", "coupling_constant"]
