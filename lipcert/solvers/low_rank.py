r"""Ascent in the dual programme with vectors of low rank, and the multipliers that its solution implies. Floor 2.

The optimal partner X of the constraint has the rank of the largest eigenvalue's multiplicity: a handful. So X is
written as vectors (`lipcert.lmi.dual`), which stay feasible by construction, and :math:`|y|^2 / |x|^2` is raised by a
quasi-Newton method at the cost of one forward and one backward pass of the network with r columns: linear in the
number of weights. Stationary vectors determine the multipliers. Those are optimal up to the accuracy of the ascent,
and made feasible by raising every layer's a little over those of the layer after it.

References:
    | A nonlinear programming algorithm for solving semidefinite programs via low-rank factorization (Burer and
      Monteiro, 2003)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from lipcert.lmi import (
    Multipliers,
    NormalForm,
    factorise,
    feasible,
    multipliers_of,
    reduced,
    tighten,
    vectors_of,
)
from lipcert.lmi.dual import Vectors, directions_of, shares_of, value_of, value_to_l1, weights_of
from lipcert.lmi.elimination import graded
from lipcert.lmi.normal_form import INPUT
from lipcert.lmi.reduction import without_kept
from lipcert.lmi.rows import divided
from lipcert.solvers.descent import Descent, Point
from lipcert.solvers.recursion import Recursion, begun, begun_weighted
from lipcert.solvers.solution import Progress, Solution, silent

_PARTS = tuple(10.0 ** (power / 2.0) for power in range(-14, -3))
"""Parts of equal weights that are mixed into those of inputs, of which small ones are not known well."""

_LOOK = 100
"""Iterations between two looks at the multipliers."""


@dataclass(frozen=True)
class LowRank:
    """The dual programme first: cheap in every iteration, and the bound from below is nearly tight.

    Args:
        iterations: Most iterations of the ascent.
        tolerance: Relative increase of rho, over ten iterations, below which it ends.
        rank: Length of the vectors; eigenvectors of the start are the first ones.
        memory: Pairs kept by the quasi-Newton method.
        gap: Relative gap of the bound K at which to stop; looked at every hundred iterations.
        seconds: Time after which the best multipliers so far are returned.

    Example:
        >>> from lipcert import trace
        >>> from lipcert.lmi import normal_form
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 9), torch.nn.ReLU(), torch.nn.Linear(9, 2))
        >>> found = LowRank()(normal_form(trace(model, (3,))))
        >>> found.dual <= found.rho
        True
    """

    iterations: int = 1000
    tolerance: float = 1e-8
    rank: int = 24
    memory: int = 30
    gap: float = 0.0
    seconds: float = float("inf")

    def __call__(self, form: NormalForm, start: Multipliers | None = None, progress: Progress = silent) -> Solution:
        """Multipliers for a form; ``start`` gives the first vectors (the closed form's unless given)."""
        began = time.monotonic()
        small, given, rho = begun(form, start)
        factors = factorise(small, given)
        if form.neurons == 0 or not 0.0 < rho < float("inf") or factors is None:
            return Solution(given, rho, 0.0, 0, f"{self!r}: nothing to improve")
        first = directions_of(small, vectors_of(factors, 10.0, self.rank))

        def late() -> bool:
            return time.monotonic() - began > self.seconds

        ascent = Ascent(small, first, self.memory)
        count, more = 0, ascent.value > 0.0
        multipliers, found = dict(given), rho
        while more and count < self.iterations and not found <= ascent.value * (1.0 + 2.0 * self.gap):
            at_once = min(_LOOK if self.gap > 0.0 else self.iterations, self.iterations - count)
            done = ascent.run(at_once, self.tolerance, late, partial(_told, progress, count, found))
            more, count = done == at_once and not late(), count + done
            named, value = repaired(small, multipliers_of(small, feasible(small, ascent.directions())), found)
            if named is not None:
                multipliers, found = named, value
        return Solution(multipliers, found, min(ascent.value, found), count, repr(self))

    def to_l1(self, form: NormalForm) -> tuple[float, Tensor]:
        r"""What no bound to l1 can go below, squared, and parts of it for the output's entries, which add up to 1.

        With parts w the bound is that of :math:`\sum_i \delta y_i^2 / w_i`. Vectors are raised as in l2.
        """
        began = time.monotonic()
        small = without_kept(form)
        factors = factorise(small, Recursion()(small).multipliers)
        if factors is None:
            count = len(next(iter(small.output.blocks.values())))
            return 0.0, small.zeros(count) + 1.0 / count
        first = directions_of(small, _of_rank(vectors_of(factors, 10.0, self.rank), self.rank))
        ascent = Ascent(small, first, self.memory, worth=value_to_l1)
        ascent.run(
            self.iterations, self.tolerance, lambda: time.monotonic() - began > self.seconds, lambda k, dual: None
        )
        return ascent.value, shares_of(small, feasible(small, ascent.directions()))

    def weighted(self, form: NormalForm, progress: Progress = silent) -> tuple[Solution, Tensor]:
        """Multipliers and weights of the input's entries with the least sum; see `InteriorPoint.weighted`."""
        began = time.monotonic()
        small, given, tau = begun_weighted(form)
        rho = float(tau.sum())
        scaled = divided(small, tau) if 0.0 < rho < float("inf") else small
        factors = factorise(scaled, given)
        if form.neurons == 0 or not 0.0 < rho < float("inf") or factors is None:
            return Solution(given, rho, 0.0, 0, f"{self!r}: nothing to improve"), tau
        z = vectors_of(factors, 10.0, self.rank)
        first = directions_of(small, {**z, INPUT: z[INPUT] / tau.sqrt()[:, None]})

        def late() -> bool:
            return time.monotonic() - began > self.seconds

        ascent = Ascent(small, first, self.memory, _unit_rows)
        count, more, found = 0, ascent.value > 0.0, Solution(given, rho, 0.0, 0, "")
        while more and count < self.iterations and not found.rho <= found.dual * (1.0 + 2.0 * self.gap):
            at_once = min(_LOOK, self.iterations - count)
            tell = partial(_told, progress, count, found.rho)
            done = ascent.run(at_once, self.tolerance, late, lambda k, dual, tell=tell: tell(k, dual * form.inputs))
            more, count = done == at_once and not late(), count + done
            z = feasible(small, ascent.directions())
            named, weights = multipliers_of(small, z), weights_of(small, z)
            found = replace(found, dual=ascent.value * form.inputs)
            for part in _PARTS:
                share = (1.0 - part) * weights / weights.sum() + part / form.inputs
                better, value = repaired(reduced(divided(small, share)), named, found.rho)
                if better is not None:
                    found, tau = replace(found, multipliers=better, rho=value), value * share
        dual = min(found.rho, found.dual)
        return replace(found, dual=dual, iterations=count, method=repr(self)), tau


def _unit_rows(directions: Vectors) -> Vectors:
    x = directions[INPUT]
    return {**directions, INPUT: x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(1e-300)}


def _of_rank(vectors: Vectors, rank: int) -> Vectors:
    """Longer vectors: those of activations with something small, and different, in the new places."""
    found = {}
    for name, z in vectors.items():
        more = z.new_zeros(*z.shape[:-1], max(0, rank - z.shape[-1]))
        if name and more.shape[-1]:
            place = torch.arange(z.shape[-2])
            more[..., place, place % more.shape[-1]] = 1e-3 * (1e-300 + z.abs().amax())
        found[name] = torch.cat([z, more], dim=-1)
    return found


def _as_it_is(directions: Vectors) -> Vectors:
    return directions


def _told(progress: Progress, before: int, rho: float, k: int, dual: float) -> None:
    progress(before + k, rho, dual)


class Ascent:
    """The dual value of vectors, raised in all of them."""

    def __init__(
        self,
        form: NormalForm,
        directions: Vectors,
        memory: int,
        normal: Callable[[Vectors], Vectors] = _as_it_is,
        worth: Callable[[NormalForm, Vectors], Tensor] = value_of,
    ) -> None:
        """Begin at directions ``(..., size, r)`` whose worth is not zero; only those made ``normal`` count."""
        self.form, self._normal, self._worth = form, normal, worth
        x = directions[next(iter(directions))]
        self._complex = x.is_complex()
        scaled = {name: z if name else z / z.norm() for name, z in directions.items()}
        real = {name: torch.view_as_real(z.contiguous()) if self._complex else z for name, z in scaled.items()}
        self._shapes = {name: z.shape for name, z in real.items()}
        start = torch.cat([z.reshape(-1) for z in real.values()])
        point = self._function(start)
        self._descent = None if point is None else Descent(self._function, start, point, memory)

    @property
    def value(self) -> float:
        """The squared bound that no multipliers can go below."""
        return 0.0 if self._descent is None else math.exp(-self._descent.point.value)

    def directions(self) -> dict[str, Tensor]:
        """The present directions."""
        assert self._descent is not None
        return dict(self._normal(self._unpacked(self._descent.theta)))

    def run(
        self, iterations: int, tolerance: float, late: Callable[[], bool], told: Callable[[int, float], None]
    ) -> int:
        """Iterate until little is gained over ten iterations, or it is late; how many iterations it took."""
        count = 0
        for count in self._descent.steps(iterations, tolerance, late) if self._descent else ():
            told(count, self.value)
        return count

    def _unpacked(self, theta: Tensor) -> dict[str, Tensor]:
        pieces = theta.split([math.prod(shape) for shape in self._shapes.values()])
        found = {n: piece.reshape(shape) for (n, shape), piece in zip(self._shapes.items(), pieces, strict=True)}
        return {n: torch.view_as_complex(z) for n, z in found.items()} if self._complex else found

    def _function(self, theta: Tensor) -> Point | None:
        flat = theta.detach().requires_grad_()
        value = -self._worth(self.form, feasible(self.form, self._normal(self._unpacked(flat)))).log()
        if not bool(torch.isfinite(value)):
            return None
        (gradient,) = torch.autograd.grad(value, flat)
        return Point(float(value.detach()), gradient, 0.0) if bool(torch.isfinite(gradient).all()) else None


def repaired(form: NormalForm, multipliers: Multipliers, rho: float) -> tuple[dict[str, Tensor] | None, float]:
    """Multipliers raised, every layer's a little over those of the layer after it, until they are feasible.

    Args:
        form: The network in normal form.
        multipliers: Nearly feasible ones.
        rho: A squared bound already known.

    Returns:
        Multipliers and their rho; ``None`` and the rho known if nothing below it is found.
    """
    floored = {name: lam.clamp_min(1e-12 * float(lam.max())) for name, lam in multipliers.items()}
    best, least = None, rho
    for power in range(-18, 1):
        raised = graded(form, floored, 1.0 + 10.0 ** (power / 2.0) / len(form.layers))
        found = tighten(form, raised)
        if found < least:
            best, least = raised, found
        elif best is not None:
            break
    return best, least
