"""What a solver is, and what it hands back: multipliers, never a bound to be believed. Floor 2."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from lipcert.lmi import Multipliers, NormalForm

Progress = Callable[[int, float, float], None]
"""Called with the iteration, the best rho so far, and the dual bound of rho (0 while there is none)."""


def silent(iteration: int, rho: float, dual: float) -> None:
    """Report nothing."""


@dataclass(frozen=True, eq=False)
class Solution:
    """What a solver found; the certifier computes and proves the bound from the multipliers alone.

    Attributes:
        multipliers: For every activation, one number >= 0 per neuron.
        rho: The squared bound they give, in floating point.
        dual: What no multipliers can go below, squared, in floating point; 0 where the solver knows none.
        iterations: How many it took.
        method: The solver, as it prints, and why it stopped where that matters.
    """

    multipliers: Multipliers
    rho: float
    dual: float
    iterations: int
    method: str


class Solver(Protocol):
    """Proposes multipliers for a network in normal form."""

    def __call__(self, form: NormalForm, start: Multipliers | None = None, progress: Progress = silent) -> Solution:
        """Propose multipliers, beginning at ``start`` if the method can use one."""
        ...
