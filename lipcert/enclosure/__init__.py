"""What a captured network maps stored inputs to, as exact numbers or balls that hold them. Floor 2.

A pair of inputs breaks a claim as a theorem if this arithmetic says so: rational for piecewise linear networks, balls
of a few hundred bits for the others.
"""

from lipcert.enclosure.ball import Ball, exactly, nearest
from lipcert.enclosure.pair import Stretch, distance, enclosed, stretch

__all__ = ["Ball", "Stretch", "distance", "enclosed", "exactly", "nearest", "stretch"]
