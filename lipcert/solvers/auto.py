"""The solver that chooses one. Floor 2."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from lipcert.lmi import Multipliers, NormalForm, linear_path, multipliers_of, reduced, tighten
from lipcert.lmi.dual import value_of
from lipcert.solvers.first_order import FirstOrder
from lipcert.solvers.interior_point import InteriorPoint
from lipcert.solvers.low_rank import LowRank
from lipcert.solvers.recursion import Recursion
from lipcert.solvers.solution import Progress, Solution, silent


@dataclass(frozen=True)
class Auto:
    """What the size and the shape of a network call for, in this order, until the gap is reached.

    The linear network with the upper slopes, which decides for positive weights at any size. The ascent of low rank,
    if the network is wide: many neurons in few layers. The interior point, for up to ``dense`` unknowns. Above that,
    a descent from where the ascent ended.

    Args:
        dense: Most inputs (after reduction) and neurons of a dense interior-point method.
        wide: Neurons per layer from which the ascent is tried first, if there are ten times as many in all.
        gap: Relative gap of the bound K asked for.
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
    wide: int = 50
    gap: float = 1e-6
    seconds: float = 600.0

    def __call__(self, form: NormalForm, start: Multipliers | None = None, progress: Progress = silent) -> Solution:
        """Multipliers for a form; the method says which solver was chosen and why."""
        small = reduced(form)
        size = small.inputs + small.neurons
        why = f"Auto: {size} unknowns, "
        if form.neurons and self._reached(found := _linear(small)):
            return replace(found, method=why + found.method)
        wide = size >= max(10 * self.wide, self.wide * len(small.layers))
        low = None
        if wide or size > self.dense:
            ascent = LowRank(1000 if size > self.dense else 300, gap=self.gap, seconds=0.4 * self.seconds)
            low = ascent(small, start, progress)
            if self._reached(low):
                return replace(low, method=why + low.method)
        left = self.seconds if low is None else 0.6 * self.seconds
        if size <= self.dense:
            found = InteriorPoint(self.gap, seconds=left)(small, start, progress)
        else:
            given = Recursion()(small).multipliers if low is None else low.multipliers
            found = FirstOrder(sharpness=(100.0, 1000.0), ascents=0, seconds=left)(small, given, progress)
        return _better(found, low, why)

    def weighted(self, form: NormalForm, progress: Progress = silent) -> tuple[Solution, Tensor]:
        """Multipliers and weights of the input's entries with the least sum; see `InteriorPoint.weighted`.

        The ascent goes first; the interior point goes on where that has not reached the gap.
        """
        low, tau = LowRank(1000, gap=self.gap, seconds=0.4 * self.seconds).weighted(form, progress)
        if self._reached(low):
            return low, tau
        found, other = InteriorPoint(self.gap, seconds=0.6 * self.seconds).weighted(form, progress)
        best = _better(found, low, f"Auto: {form.inputs + form.neurons} unknowns, ")
        return best, other if found.rho <= low.rho else tau

    def _reached(self, found: Solution) -> bool:
        return found.rho <= found.dual * (1.0 + 2.0 * self.gap)


def _better(found: Solution, before: Solution | None, why: str) -> Solution:
    """What was found last, with what was known before where that was better."""
    if before is None:
        return replace(found, method=why + found.method)
    best = found if found.rho <= before.rho else before
    dual = min(best.rho, max(found.dual, before.dual))
    count = before.iterations + found.iterations
    return replace(best, dual=dual, iterations=count, method=f"{why}{before.method} and {found.method}")


def _linear(form: NormalForm) -> Solution:
    """The multipliers that the linear network with the upper slopes implies."""
    z = linear_path(form)
    multipliers = multipliers_of(form, z)
    rho, dual = tighten(form, multipliers), float(value_of(form, z))
    return Solution(multipliers, rho, min(rho, dual), 0, "the linear network with the upper slopes")
