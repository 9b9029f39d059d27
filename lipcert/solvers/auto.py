"""The solver that chooses one. Floor 2."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lipcert.lmi import Multipliers, NormalForm
from lipcert.solvers.first_order import FirstOrder
from lipcert.solvers.interior_point import InteriorPoint
from lipcert.solvers.solution import Progress, Solution, silent


@dataclass(frozen=True)
class Auto:
    """A quasi-Newton descent, and from where it ends an interior point if there are at most ``dense`` unknowns.

    The descent is cheap and goes most of the way, which halves the interior point's iterations on deep networks.

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

    dense: int = 3000
    gap: float = 1e-6
    seconds: float = 600.0

    def __call__(self, form: NormalForm, start: Multipliers | None = None, progress: Progress = silent) -> Solution:
        """Multipliers for a form; the method says which solver was chosen and why."""
        size = min(form.inputs, sum(len(layer.alpha) for layer in form.layers)) + form.neurons
        if size > self.dense:
            found = FirstOrder(seconds=self.seconds)(form, start, progress)
            return replace(found, method=f"Auto: {size} unknowns, over {self.dense}, {found.method}")
        if any(layer.index is not None for layer in form.layers):  # which the interior point does not know yet
            found = FirstOrder(seconds=self.seconds)(form, start, progress)
            return replace(found, method=f"Auto: {size} unknowns, shared multipliers, {found.method}")
        begun = FirstOrder(150, (10.0,), tolerance=1e-3, seconds=self.seconds)(form, start, progress)
        found = InteriorPoint(self.gap, seconds=self.seconds)(form, begun.multipliers, progress)
        return replace(found, method=f"Auto: {size} unknowns, {begun.iterations} descents, {found.method}")
