"""The solver that chooses one. Floor 2."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from lipcert.lmi import Multipliers, NormalForm, dual_value, feasible, linear_path, multipliers_of, reduced, tighten
from lipcert.lmi.dual import directions_of
from lipcert.solvers.first_order import FirstOrder
from lipcert.solvers.interior_point import InteriorPoint
from lipcert.solvers.low_rank import LowRank
from lipcert.solvers.recursion import Recursion
from lipcert.solvers.solution import Progress, Solution, silent


@dataclass(frozen=True)
class Auto:
    """The interior point for up to ``dense`` unknowns; above, an ascent of low rank and a descent from where it ends.

    Before that it looks whether the linear network with the upper slopes decides: for positive weights it does, at
    any size.

    Args:
        dense: Most inputs (after reduction) and neurons of a dense interior-point method.
        gap: Relative gap asked of it.
        seconds: Time it may take.

    Example:
        >>> from lipcert import trace
        >>> import torch
        >>> from lipcert.lmi import normal_form
        >>> form = normal_form(trace(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU()), (2,)))
        >>> Auto()(form).method.startswith("Auto: 4 unknowns, ")
        True
    """

    dense: int = 4000
    gap: float = 1e-6
    seconds: float = 600.0

    def __call__(self, form: NormalForm, start: Multipliers | None = None, progress: Progress = silent) -> Solution:
        """Multipliers for a form; the method says which solver was chosen and why."""
        begun = time.monotonic()
        small = reduced(form)
        size = small.inputs + small.neurons
        if form.neurons and (found := _linear(small)).rho <= found.dual * (1.0 + 2.0 * self.gap):
            return replace(found, method=f"Auto: {size} unknowns, {found.method}")
        if size <= self.dense:
            found = InteriorPoint(self.gap, seconds=self.seconds)(small, start, progress)
            return replace(found, method=f"Auto: {size} unknowns, {found.method}")
        start = Recursion()(small).multipliers if start is None else start
        low = LowRank(seconds=0.4 * self.seconds)(small, start, progress)
        left = self.seconds - (time.monotonic() - begun)
        found = FirstOrder(sharpness=(100.0, 1000.0), ascents=0, seconds=left)(small, low.multipliers, progress)
        method = f"Auto: {size} unknowns, over {self.dense}, {low.method} and {found.method}"
        return Solution(found.multipliers, found.rho, low.dual, low.iterations + found.iterations, method)


def _linear(form: NormalForm) -> Solution:
    """The multipliers that the linear network with the upper slopes implies."""
    directions = directions_of(form, linear_path(form))
    multipliers = multipliers_of(form, feasible(form, directions))
    rho, dual = tighten(form, multipliers), float(dual_value(form, directions))
    return Solution(multipliers, rho, min(rho, dual), 0, "the linear network with the upper slopes")
