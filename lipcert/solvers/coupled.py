r"""Frequencies that a dense head couples: quasi-Newton descent on the multipliers' logarithms. Floor 2.

For multipliers relative to :math:`\rho` the least :math:`\rho` is the largest eigenvalue of
:math:`\sum_\theta w_\theta \Re B_\theta H_\theta^{-1} B_\theta^*` (`lipcert.lmi.head`), which is convex in them: H is
linear, and the inverse is operator convex. With an eigenvector v and :math:`z_\theta = H_\theta^{-1} B_\theta^* v` the
gradient is :math:`-2 \sum_\theta w_\theta (u - \alpha v)^* (u - \beta v)`. Every iterate is a valid bound.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipcert.lmi import Factors, Multipliers, NormalForm, Signal, factorise
from lipcert.lmi.dual import softmax
from lipcert.lmi.elimination import named, over_batch
from lipcert.lmi.head import Sum, summed
from lipcert.solvers.descent import Descent, Function, Point
from lipcert.solvers.solution import Progress, Solution, silent

_SCALES = (0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0)


@dataclass(frozen=True)
class Coupled:
    """L-BFGS for a convolutional part with a dense head.

    Args:
        iterations: Most iterations of each stage.
        sharpness: The exponents of the smoothed eigenvalue, stage by stage.
        tolerance: Relative decrease of rho, over ten iterations, below which a stage ends.
        memory: Pairs kept.
        seconds: Time after which the best multipliers so far are returned.
    """

    iterations: int = 200
    sharpness: tuple[float, ...] = (30.0, 1000.0)
    tolerance: float = 1e-4
    memory: int = 20
    seconds: float = float("inf")

    def __call__(
        self, form: NormalForm, weights: Tensor, start: Multipliers, progress: Progress = silent
    ) -> Solution | None:
        """Multipliers for a batch with the head's outputs.

        Args:
            form: The form, ``(F, ...)``.
            weights: Of every frequency, ``(F,)``; they sum up to one with the opposite ones.
            start: Multipliers relative to rho, feasible without the head; the best multiple is taken.
            progress: As for every solver.

        Returns:
            ``None`` if no multiple of the start is feasible.
        """
        began = time.monotonic()
        least, first = min((largest_sum(form, weights, _times(start, scale)), scale) for scale in _SCALES)
        best = torch.cat([start[layer.name] * first for layer in form.layers])
        if not 0.0 < least < float("inf"):
            return None
        theta, count = best.clamp_min(1e-300).log(), 0
        for t in self.sharpness:
            function = smoothed(form, weights, t)
            point = function(theta)
            assert point is not None
            descent = Descent(function, theta, point, self.memory)
            late = lambda: time.monotonic() - began > self.seconds  # noqa: E731
            for _ in descent.steps(self.iterations, self.tolerance, late):
                count += 1
                if descent.point.note < least:
                    best, least = descent.theta.exp(), descent.point.note
                progress(count, least, 0.0)
            theta = descent.theta
        found = {name: lam * least for name, lam in named(form, best).items()}
        return Solution(found, least, 0.0, count, repr(self))


def largest_sum(form: NormalForm, weights: Tensor, relative: Multipliers) -> float:
    """The least rho for multipliers relative to it, in floating point; infinity if there is none."""
    found = _sum(form, relative)
    if found is None:
        return float("inf")
    total = _total(found[1], weights)
    return float(torch.linalg.eigvalsh(total)[-1]) if bool(torch.isfinite(total).all()) else float("inf")


def _sum(form: NormalForm, relative: Multipliers) -> tuple[Factors, Sum] | None:
    factors = factorise(replace(form, output=Signal({})), relative)
    found = None if factors is None else summed(form, factors, 1.0)
    return None if factors is None or found is None else (factors, found)


def _total(found: Sum, weights: Tensor) -> Tensor:
    return (weights[:, None, None] * found.N.real).sum(0)


def _times(multipliers: Multipliers, scale: float) -> dict[str, Tensor]:
    return {name: lam * scale for name, lam in multipliers.items()}


def smoothed(form: NormalForm, weights: Tensor, t: float) -> Function:
    """The smoothed logarithm of rho as a function of the multipliers' logarithms; its note is rho."""

    def function(theta: Tensor) -> Point | None:
        lam = theta.exp()
        found = _sum(form, named(form, lam))
        if found is None:
            return None
        total = _total(found[1], weights)
        if not bool(torch.isfinite(total).all()):
            return None
        values, vectors = torch.linalg.eigh(total)
        w = values.clamp_min(1e-300)
        top = float(w[-1])
        value = math.log(top) + float(torch.logsumexp(t * (w / top).log(), 0)) / t
        x = vectors * (softmax(w, t) / w).sqrt()
        # Every frequency counts by its weight.
        each = {name: z @ x.to(z.dtype) * weights.sqrt()[:, None, None] for name, z in found[1].vectors.items()}
        slopes = []
        for layer in form.layers:
            u, v = each[layer.name], layer.v.value(each, len(layer.alpha))
            product = ((u - layer.alpha[:, None] * v).conj() * (u - layer.beta[:, None] * v)).real.sum(-1)
            slopes.append(-2.0 * layer.gather(over_batch(product)))
        return Point(value, torch.cat(slopes) * lam, top)

    return function
