"""Solvers that propose multipliers for a normal form. Floor 2."""

from lipcert.solvers.auto import Auto
from lipcert.solvers.conic import Conic
from lipcert.solvers.coupled import Coupled
from lipcert.solvers.exchange import Exchange
from lipcert.solvers.first_order import FirstOrder
from lipcert.solvers.interior_point import InteriorPoint
from lipcert.solvers.low_rank import LowRank
from lipcert.solvers.recursion import Recursion
from lipcert.solvers.solution import Progress, Solution, Solver

__all__ = [
    "Auto",
    "Conic",
    "Coupled",
    "Exchange",
    "FirstOrder",
    "InteriorPoint",
    "LowRank",
    "Progress",
    "Recursion",
    "Solution",
    "Solver",
]
