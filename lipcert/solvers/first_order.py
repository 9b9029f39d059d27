r"""Quasi-Newton descent on the multipliers' logarithms, linear in the depth of a chain. Floor 2.

:math:`\rho(\lambda)` from the elimination is convex in :math:`\lambda` and goes to infinity at the boundary of
feasibility by itself, so it needs no constraint in :math:`\theta = \log \lambda`. The largest eigenvalue is smoothed to
:math:`\tfrac1t \log \sum_i w_i^t`, with t raised step by step. By the envelope theorem the gradient of an eigenvalue
with eigenvector x is :math:`-2 (u - \alpha v)(u - \beta v)`, where u maximises the eliminated form at x. Every iterate
is a valid bound.

References:
    | Updating quasi-Newton matrices with limited storage (Nocedal, 1980)
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.lmi import Multipliers, NormalForm, reduced, tighten
from lipcert.lmi.elimination import factorise
from lipcert.solvers.recursion import Recursion
from lipcert.solvers.solution import Progress, Solution, silent

_SUFFICIENT = 1e-4
_HALVINGS = 40


@dataclass(frozen=True)
class FirstOrder:
    """L-BFGS for networks too large or too deep for dense matrices.

    Args:
        iterations: Most iterations of each stage.
        sharpness: The exponents t of the smoothed eigenvalue, stage by stage.
        tolerance: Relative decrease of rho, over ten iterations, below which a stage ends.
        memory: Pairs kept.
        seconds: Time after which the best multipliers so far are returned.

    Example:
        >>> from lipcert import trace
        >>> from lipcert.lmi import normal_form
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 9), torch.nn.ReLU(), torch.nn.Linear(9, 2))
        >>> form = normal_form(trace(model, (3,)))
        >>> FirstOrder()(form).rho <= Recursion()(form).rho
        True
    """

    iterations: int = 400
    sharpness: tuple[float, ...] = (10.0, 100.0, 1000.0)
    tolerance: float = 1e-6
    memory: int = 30
    seconds: float = float("inf")

    def __call__(self, form: NormalForm, start: Multipliers | None = None, progress: Progress = silent) -> Solution:
        """Multipliers for a form, from positive feasible ones (the closed form's unless given)."""
        begun = time.monotonic()
        small = reduced(form)
        given = Recursion()(small).multipliers if start is None else start
        rho = tighten(small, given)
        if form.neurons == 0 or not 0.0 < rho < float("inf"):
            return Solution(given, rho, 0.0, 0, f"{self!r}: nothing to improve")
        theta = torch.cat([given[layer.name].clamp_min(1e-300) for layer in small.layers]).log()
        count, best, least = 0, theta, rho
        for t in self.sharpness:
            descent = _Descent(small, t, theta, self.memory)
            past = deque([descent.value], maxlen=10)
            for _ in range(self.iterations):
                if time.monotonic() - begun > self.seconds or not descent.step():
                    break
                count += 1
                progress(count, descent.rho, 0.0)
                if len(past) == 10 and past[0] - descent.value < self.tolerance:
                    break
                past.append(descent.value)
                if descent.rho < least:
                    best, least = descent.theta, descent.rho
            theta = descent.theta
        multipliers = _named(small, best.exp())
        found = tighten(small, multipliers)
        if not found <= rho:
            multipliers, found = dict(given), rho
        return Solution(multipliers, found, 0.0, count, repr(self))


class _Descent:
    """The iterate of one stage and its last pairs of steps and gradient changes."""

    def __init__(self, form: NormalForm, t: float, theta: Tensor, memory: int) -> None:
        self.form, self.t, self.theta = form, t, theta
        found = _evaluate(form, theta, t)
        assert found is not None
        self.value, self.gradient, self.rho = found
        self.pairs: deque[tuple[Tensor, Tensor]] = deque(maxlen=memory)

    def step(self) -> bool:
        """One step along the quasi-Newton direction, shortened until the value falls; whether it did."""
        direction = -self._times_inverse(self.gradient)
        slope = float(direction @ self.gradient)
        if not slope < 0.0:
            self.pairs.clear()
            direction = -self.gradient
            slope = float(direction @ self.gradient)
        size = min(1.0, 1.0 / float(direction.abs().max().clamp_min(1e-300)))
        for _ in range(_HALVINGS):
            theta = self.theta + size * direction
            found = _evaluate(self.form, theta, self.t)
            if found is not None and found[0] <= self.value + _SUFFICIENT * size * slope:
                self._accept(theta, *found)
                return True
            size *= 0.5
        if self.pairs:
            self.pairs.clear()
            return self.step()
        return False

    def _accept(self, theta: Tensor, value: float, gradient: Tensor, rho: float) -> None:
        s, y = theta - self.theta, gradient - self.gradient
        if float(s @ y) > 1e-12 * float(s.norm() * y.norm()):
            self.pairs.append((s, y))
        self.theta, self.value, self.gradient, self.rho = theta, value, gradient, rho

    def _times_inverse(self, g: Tensor) -> Tensor:
        """The two-loop recursion."""
        q, weights = g, []
        for s, y in reversed(self.pairs):
            weights.append((s @ q) / (s @ y))
            q = q - weights[-1] * y
        if self.pairs:
            s, y = self.pairs[-1]
            q = q * ((s @ y) / (y @ y))
        else:
            q = q / g.norm().clamp_min(1e-300)
        for (s, y), a in zip(self.pairs, reversed(weights), strict=True):
            q = q + (a - (y @ q) / (s @ y)) * s
        return q


def _named(form: NormalForm, lam: Tensor) -> dict[str, Tensor]:
    pieces = lam.split([layer.count for layer in form.layers])
    return {layer.name: piece for layer, piece in zip(form.layers, pieces, strict=True)}


def _evaluate(form: NormalForm, theta: Tensor, t: float) -> tuple[float, Tensor, float] | None:
    """The smoothed logarithm of rho, its gradient, and rho; ``None`` where the multipliers are not feasible."""
    lam = theta.exp()
    found = factorise(form, _named(form, lam))
    if found is None:
        return None
    G, maximise = found
    values, vectors = torch.linalg.eigh(G)
    top = float(values[-1])
    if not 0.0 < top < float("inf"):
        return None
    kept = values > 1e-3 * top
    w, x = values[kept], vectors[:, kept]
    powers = t * (w / top).log()
    value = float(torch.log(values[-1]) + torch.logsumexp(powers, 0) / t)
    weight = torch.softmax(powers, 0) / w
    products = zip(form.layers, maximise(x), strict=True)
    slopes = torch.cat([-2.0 * layer.gather(product @ weight) for layer, product in products])
    return value, slopes * lam, top
