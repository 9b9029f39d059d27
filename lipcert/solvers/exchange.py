r"""A batch of constraints that share multipliers, solved for the few that matter. Floor 2.

The bound is the largest over all matrices of the batch (frequencies, say), and at the optimum few attain it. So the
problem is solved for a few; those that its solution violates are taken in, until none does. What no multipliers can
go below for some matrices, they cannot go below for all.

References:
    | Semi-infinite programming: theory, methods, and applications (Hettich and Kortanek, 1993), section 7: exchange
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipcert.lmi import Multipliers, NormalForm, Signal, reduced, spectrum, tighten
from lipcert.lmi.elimination import graded
from lipcert.solvers.interior_point import InteriorPoint
from lipcert.solvers.low_rank import LowRank
from lipcert.solvers.recursion import Recursion
from lipcert.solvers.solution import Progress, Solution, silent

_SAMPLE = 24
"""Matrices that the closed form looks at."""

_MIXTURES = (0.99, 0.9, 0.5)


@dataclass(frozen=True)
class Exchange:
    """Solve for some matrices of a batch, and take in what the solution violates.

    Args:
        gap: Relative gap of the bound K asked for.
        first: Matrices to begin with.
        more: Most matrices taken in at a time.
        dense: Most unknowns, summed over the matrices at hand, of an interior point, which is asked where the ascent
            of low rank does not reach the gap.
        rank: Length of the vectors of the ascent.
        memory: Pairs it keeps.
        seconds: Time after which the best multipliers so far are returned.

    Example:
        >>> import torch
        >>> from lipcert import trace
        >>> from lipcert.lmi.torus import torus_form
        >>> net = torch.nn.Sequential(torch.nn.Conv1d(1, 2, 3, 1, 1), torch.nn.ReLU(), torch.nn.Conv1d(2, 1, 3, 1, 1))
        >>> graph = trace(net, (1, 40))
        >>> part = torus_form(graph, graph.input.name, graph.output.name)
        >>> found = Exchange()(part.at(part.frequencies()))
        >>> found.dual <= found.rho <= found.dual * 1.001
        True
    """

    gap: float = 1e-4
    first: int = 12
    more: int = 8
    dense: int = 4000
    rank: int = 8
    memory: int = 10
    seconds: float = 600.0

    def __call__(self, form: NormalForm, start: Multipliers | None = None, progress: Progress = silent) -> Solution:
        """Multipliers for a batch of forms."""
        began = time.monotonic()
        small = reduced(form)
        count = _batch(small)
        best, values = _start(small, count, start)
        rho = float(values.max())
        if form.neurons == 0 or count == 0 or not 0.0 < rho < float("inf"):
            return Solution(best, rho, 0.0, 0, f"{self!r}: nothing to improve")
        chosen = _spread(values, torch.zeros(count, dtype=torch.bool), self.first)
        dual, rounds, steps, begin = 0.0, 0, 0, best
        while (left := self.seconds - (time.monotonic() - began)) > 0.0:
            rounds += 1
            some = _some(small, chosen)
            found = self._inner(some, begin if tighten(some, begin) < float("inf") else best, progress, left)
            dual, steps = max(dual, found.dual), steps + found.iterations
            values = spectrum(small, found.multipliers)
            begin = found.multipliers
            if float(values.max()) < rho:
                best, rho = begin, float(values.max())
            progress(steps, rho, dual)
            if rho <= dual * (1.0 + 2.0 * self.gap) or bool(chosen.all()):
                break
            violated = torch.where(values > found.rho * (1.0 + 0.5 * self.gap), values, 0.0)
            extra = _spread(violated, chosen, self.more)
            if not bool((extra & ~chosen).any()):
                break
            chosen = extra
        if not rho <= dual * (1.0 + 2.0 * self.gap):
            best, rho = _mixed(small, best, rho, begin)
        told = f"{self!r}: {int(chosen.sum())} of {count} matrices, {rounds} rounds"
        return Solution(best, rho, min(dual, rho), steps, told)

    def _inner(self, some: NormalForm, start: Multipliers, progress: Progress, seconds: float) -> Solution:
        gap = 0.5 * self.gap
        ascent = LowRank(600, rank=self.rank, memory=self.memory, gap=gap, seconds=0.5 * seconds)
        found = ascent(some, start, progress)
        if found.rho <= found.dual * (1.0 + 2.0 * gap) or (some.inputs + some.neurons) * _batch(some) > self.dense:
            return found
        exact = InteriorPoint(gap, seconds=0.5 * seconds)(some, start, progress)
        if exact.rho > found.rho:
            return replace(found, dual=max(found.dual, exact.dual))
        return replace(exact, dual=max(found.dual, exact.dual), iterations=found.iterations + exact.iterations)


def _start(form: NormalForm, count: int, given: Multipliers | None) -> tuple[Multipliers, Tensor]:
    """Multipliers to begin with and what they give everywhere: the closed form of a sample, raised until feasible."""
    few = max(1, min(count, _SAMPLE))
    sample = torch.linspace(0, count - 1, few).long()
    found = Recursion()(_some(form, sample)).multipliers if given is None else given
    for raised in [1.0, *(1.01 * 2.0**k for k in range(8))]:
        best = found if raised == 1.0 else graded(form, found, raised ** (1.0 / max(1, len(form.layers))))
        values = spectrum(form, best)
        if bool(torch.isfinite(values).all()):
            break
    return best, values


def _batch(form: NormalForm) -> int:
    """How many matrices there are; 0 if the form is no batch."""
    signals = [*(layer.v for layer in form.layers), form.output]
    shapes = [block.shape[:-2] for signal in signals for block in signal.blocks.values()]
    return max((shape[0] for shape in shapes if len(shape) == 1), default=0)


def _some(form: NormalForm, chosen: Tensor) -> NormalForm:
    """The matrices chosen."""

    def picked(signal: Signal) -> Signal:
        return Signal({name: block[chosen] if block.ndim > 2 else block for name, block in signal.blocks.items()})

    layers = tuple(replace(layer, v=picked(layer.v)) for layer in form.layers)
    return NormalForm(form.inputs, layers, picked(form.output))


def _spread(values: Tensor, chosen: Tensor, count: int) -> Tensor:
    """Those chosen and up to ``count`` others whose values are positive: the largest, and others in even steps."""
    open_ = ((values > 0.0) & ~chosen).nonzero().flatten()
    order = open_[values[open_].argsort(descending=True, stable=True)]
    half = (count + 1) // 2
    rest = order[half:]
    step = max(1, len(rest) // max(1, count - half))
    taken = chosen.clone()
    taken[order[:half]] = True
    taken[rest[::step][: count - half]] = True
    return taken


def _mixed(form: NormalForm, best: Multipliers, rho: float, found: Multipliers) -> tuple[Multipliers, float]:
    """The best multipliers, or a mixture with those found last: what two satisfy, a mixture does."""
    for share in _MIXTURES:
        mixed = {name: share * lam + (1.0 - share) * best[name] for name, lam in found.items()}
        value = float(spectrum(form, mixed).max())
        if value < rho:
            return mixed, value
    return best, rho
