"""Claims on a part of the input space: what values can occur there, and the network that is left of it. Floor 2."""

from lipcert.regions.comparators import compared, compares
from lipcert.regions.propagate import output_range, propagated, require_ranges
from lipcert.regions.range import Range
from lipcert.regions.restrict import remaining, restricted, stated_by

__all__ = [
    "Range",
    "compared",
    "compares",
    "output_range",
    "propagated",
    "remaining",
    "require_ranges",
    "restricted",
    "stated_by",
]
