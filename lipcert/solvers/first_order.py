r"""Quasi-Newton descent on the multipliers' logarithms, linear in the depth of a chain. Floor 2.

:math:`\rho(\lambda)` from the elimination is convex in :math:`\lambda` and goes to infinity at the boundary of
feasibility by itself, so it needs no constraint in :math:`\theta = \log \lambda`. The largest eigenvalue is smoothed to
:math:`\tfrac1t \log \sum_i w_i^t`, with t raised step by step. By the envelope theorem the gradient of an eigenvalue
with eigenvector x is :math:`-2 (u - \alpha v)(u - \beta v)`, where u maximises the eliminated form at x. Every iterate
is a valid bound. Where the gradient vanishes, the eigenvectors and their maximisers are feasible for the dual programme
(`lipcert.lmi.dual`); from them a second descent raises a bound from below, at the cost of products with vectors.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.lmi import Multipliers, NormalForm, factorise, tighten, vectors_of
from lipcert.lmi.dual import directions_of, softmax
from lipcert.lmi.elimination import named, over_batch
from lipcert.solvers.descent import Descent, Function, Point
from lipcert.solvers.low_rank import Ascent
from lipcert.solvers.recursion import begun
from lipcert.solvers.solution import Progress, Solution, silent


@dataclass(frozen=True)
class FirstOrder:
    """L-BFGS for networks too large or too deep for dense matrices.

    Args:
        iterations: Most iterations of each stage.
        sharpness: The exponents t of the smoothed eigenvalue, stage by stage.
        tolerance: Relative decrease of rho, over ten iterations, below which a stage ends.
        memory: Pairs kept.
        rank: Length of the vectors that give the bound from below.
        ascents: Most iterations that raise the bound from below.
        seconds: Time after which the best multipliers so far are returned; the bound from below has a fifth of it.

    Example:
        >>> from lipcert import trace
        >>> from lipcert.lmi import normal_form
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 9), torch.nn.ReLU(), torch.nn.Linear(9, 2))
        >>> form = normal_form(trace(model, (3,)))
        >>> FirstOrder()(form).rho <= FirstOrder(0)(form).rho
        True
    """

    iterations: int = 400
    sharpness: tuple[float, ...] = (10.0, 100.0, 1000.0)
    tolerance: float = 1e-6
    memory: int = 30
    rank: int = 24
    ascents: int = 200
    seconds: float = float("inf")

    def __call__(self, form: NormalForm, start: Multipliers | None = None, progress: Progress = silent) -> Solution:
        """Multipliers for a form, from positive feasible ones (the closed form's unless given)."""
        began = time.monotonic()
        small, given, rho = begun(form, start)
        if form.neurons == 0 or not 0.0 < rho < float("inf"):
            return Solution(given, rho, 0.0, 0, f"{self!r}: nothing to improve")

        def late(share: float) -> bool:
            return time.monotonic() - began > share * self.seconds

        theta = torch.cat([given[layer.name].clamp_min(1e-300) for layer in small.layers]).log()
        count, best, least = 0, theta, rho
        for t in self.sharpness:
            smoothed = _smoothed(small, t)
            point = smoothed(theta)
            assert point is not None
            descent = Descent(smoothed, theta, point, self.memory)
            for _ in descent.steps(self.iterations, self.tolerance, lambda: late(0.8)):
                count += 1
                progress(count, descent.point.note, 0.0)
                if descent.point.note < least:
                    best, least = descent.theta, descent.point.note
            theta = descent.theta
        multipliers = named(small, best.exp())
        found = tighten(small, multipliers)
        if not found <= rho:
            multipliers, found = dict(given), rho
        dual = self._dual(small, multipliers, lambda: late(1.0), lambda k, value: progress(count + k, found, value))
        return Solution(multipliers, found, min(dual, found), count, repr(self))

    def _dual(
        self, form: NormalForm, multipliers: Multipliers, late: Callable[[], bool], told: Callable[[int, float], None]
    ) -> float:
        factors = factorise(form, multipliers)
        if factors is None:
            return 0.0
        ascent = Ascent(form, directions_of(form, vectors_of(factors, self.sharpness[-1], self.rank)), self.memory)
        ascent.run(self.ascents, 1e-7, late, told)
        return ascent.value


def _smoothed(form: NormalForm, t: float) -> Function:
    """The smoothed logarithm of rho as a function of the multipliers' logarithms; its note is rho."""

    def function(theta: Tensor) -> Point | None:
        lam = theta.exp()
        found = factorise(form, named(form, lam))
        if found is None:
            return None
        values, vectors = torch.linalg.eigh(found.G)
        top = float(values.max())
        if not 1e-300 < top < float("inf"):
            return None
        kept = int((values > 1e-3 * top).reshape(-1, values.shape[-1]).any(0).sum())
        w, x = values[..., -kept:].clamp_min(1e-300), vectors[..., -kept:]
        share = softmax(w, t)
        value = math.log(top) + float(torch.logsumexp(t * (w / top).log().flatten(), 0)) / t
        weight = (share / w)[..., None, :]
        slopes = [
            -2.0 * layer.gather(over_batch((product * weight).sum(-1)))
            for layer, product in zip(form.layers, found.products(x), strict=True)
        ]
        return Point(value, torch.cat(slopes) * lam, top)

    return function
