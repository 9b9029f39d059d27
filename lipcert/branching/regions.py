r"""Whether inputs with some signs exist: a point, or a proof in integers that there is none. Floor 5.

For rows :math:`g_k = (b_k, a_k)` the open polyhedron :math:`b_k + a_k x > 0` is empty if and only if some weights
:math:`y \ge 0`, not all zero, give :math:`\sum y_k a_k = 0` and :math:`\sum y_k b_k \le 0` (Motzkin, 1936). Both
answers come from one least-squares problem with :math:`y \ge 0`: the point of the convex hull of the rows, and of the
row of ``1 > 0``, that is next to 0. Its weights are a floating-point guess; on their support they are solved for in
integers, and the sum is checked.

References:
    | Safe bounds in linear and mixed-integer linear programming (Neumaier and Shcherbina, 2004)
    | Solving least squares problems (Lawson and Hanson, 1974)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import numpy as np
import torch

from lipcert.branching.hinges import Array, Hinges
from lipcert.branching.slopes import Derivative, Enclosed, rounded
from lipcert.certifiers.composition import sqrt_up
from lipcert.domain import Box, Domain, L2Ball, WholeSpace
from lipcert.enclosure.ball import Integers
from lipcert.errors import InvalidInput
from lipcert.linear import Shape

_MARGIN = 1e-11
_EMPTY = 1e-7
_CUTS = 12
_FLAT = 1e-13


@dataclass(frozen=True, eq=False)
class Searched:
    """Attributes: ``point`` inside, if one was found; ``empty`` where it is proved that the interior is."""

    point: Array | None
    empty: bool


def affine_rows(net: Hinges, signs: Array, last: int) -> Integers:
    """What hinges read as affine functions of the input, ``(hinges, 1 + inputs)``, each up to a positive factor.

    Args:
        net: The network.
        signs: Decided signs; rows of hinges that read an undecided one mean nothing.
        last: The last hinge that is asked for; later levels are left out.
    """
    return _affine(net, signs, last)[0]


def jacobian(net: Hinges, signs: Array) -> Enclosed:
    """The derivative where all signs that matter are decided, correctly rounded."""
    _, u, scale = _affine(net, signs, net.count)
    first = 1 + net.inputs
    rows = (net.output[:, 1:first] << scale) + net.output[:, first:].dot(u[:, 1:])
    return rounded(rows, net.bits + scale)


def _affine(net: Hinges, signs: Array, last: int) -> tuple[Integers, Integers, int]:
    """What hinges read and, in units of ``2**-scale``, what they give."""
    first = 1 + net.inputs
    undecided = np.where(net.low == net.high, net.low, 0.0)
    slopes, finer = _integers(np.where(signs < 0, net.low, np.where(signs > 0, net.high, undecided)))
    z = np.zeros((net.count, first), dtype=object)
    u, scale = z.copy(), 0
    for level in net.levels:
        if level.start > last:
            break
        base, W = net.rows[level, :first], net.rows[level, first : first + level.start]
        z[level] = (base << scale) + W.dot(u[: level.start])
        # The row is in units of 2**-(bits + scale), where bits may be negative; the outputs so far follow.
        u[: level.start] = u[: level.start] << (max(net.bits, 0) + finer)
        u[level] = (z[level] << max(-net.bits, 0)) * slopes[level, None]
        scale += max(net.bits, 0) + finer
    return z, u, scale


def _integers(values: Array) -> tuple[Integers, int]:
    exact = [Fraction(value) for value in values.tolist()]
    bits = max((value.denominator.bit_length() - 1 for value in exact), default=0)
    return np.array([int(value * 2**bits) for value in exact], dtype=object), bits


def searched(near: Array, exact: Callable[[], Integers] | None) -> Searched:
    """Look for a point with ``near[k, 0] + near[k, 1:] x > 0`` for all k.

    Args:
        near: ``(rows, 1 + inputs)``, float64; none of ``near[:, 1:]`` is zero.
        exact: Gives the same rows as integers, each up to a positive factor; ``None`` if no proof is wanted.
    """
    from scipy.optimize import nnls

    ahead = np.zeros((1, near.shape[1]))
    ahead[0, 0] = 1.0
    G = np.concatenate([ahead, near / np.linalg.norm(near, axis=1, keepdims=True)])
    target = np.zeros(G.shape[1] + 1)
    target[-1] = 1.0
    try:
        y, _ = nnls(np.concatenate([G.T, np.ones((1, len(G)))]), target)
    except RuntimeError:  # too many iterations
        return Searched(None, False)
    total = float(y.sum())
    if not (0.0 < total < math.inf):
        return Searched(None, False)
    p = G.T @ y / total
    if np.min(G @ p) > _MARGIN * float(p @ p) ** 0.5 and p[0] > 0.0:
        return Searched(p[1:] / p[0], False)
    if exact is None or float(p @ p) ** 0.5 > _EMPTY:
        return Searched(None, False)
    return Searched(None, proved_empty(exact(), y / total))


def proved_empty(rows: Integers, y: Array) -> bool:
    """Whether weights near y prove that no x has ``rows (1, x) > 0``; ``y[0]`` is the weight of ``1 > 0``."""
    ahead = np.array([[1] + [0] * (rows.shape[1] - 1)], dtype=object)
    whole = np.concatenate([ahead, rows])
    for least in (0.0, 1e-9, 1e-6):
        support = np.flatnonzero(y > least * float(y.max()))
        weights = vanishing(whole[support], y[support])
        if weights is not None and refutes(whole[support], weights):
            return True
    return False


def refutes(rows: Integers, weights: list[Fraction]) -> bool:
    """Whether ``sum weights[k] rows[k]`` is 0 with weights >= 0, one of them on a row that is not constant.

    All rows positive at a point would make the sum positive there.

    Example:
        >>> rows = np.array([[0, 1], [0, -2]], dtype=object)  # x > 0, -2 x > 0
        >>> refutes(rows, [Fraction(2), Fraction(1)]), refutes(rows, [Fraction(1), Fraction(1)])
        (True, False)
    """
    common = math.lcm(*(weight.denominator for weight in weights))
    whole = np.array([int(weight * common) for weight in weights], dtype=object)
    counts = any(weight and any(row[1:]) for weight, row in zip(whole.tolist(), rows.tolist(), strict=True))
    return counts and all(weight >= 0 for weight in whole) and not any(whole.dot(rows))


def vanishing(rows: Integers, guess: Array) -> list[Fraction] | None:
    """Weights near a guess with ``sum weights[k] rows[k] = 0``, exactly; ``None`` if only zero does.

    Example:
        >>> vanishing(np.array([[1, 2], [-3, -6]], dtype=object), np.array([0.75, 0.26]))
        [Fraction(3, 4), Fraction(1, 4)]
    """
    columns = [[int(entry) for entry in row] for row in rows.T.tolist()]
    # Likely pivots last in the guess, so that what stays free has large weights.
    order = np.argsort(guess, kind="stable").tolist()
    pivots: list[tuple[int, list[int]]] = []
    left = columns
    for j in order:
        chosen = next((row for row in left if row[j]), None)
        if chosen is None:
            continue
        left = [_eliminated(row, chosen, j) for row in left if row is not chosen]
        pivots = [(k, _eliminated(row, chosen, j)) for k, row in pivots] + [(j, chosen)]
    free = [j for j in order if j not in {k for k, _ in pivots}]
    if not free:
        return None
    weights = [Fraction(0)] * len(guess)
    for j in free:
        weights[j] = Fraction(round(float(guess[j]) * 2**40), 2**40)
    for k, row in pivots:
        weights[k] = -sum((row[j] * weights[j] for j in free), Fraction(0)) / row[k]
    return weights


def _eliminated(row: list[int], pivot: list[int], j: int) -> list[int]:
    if not row[j]:
        return row
    a, b = pivot[j], row[j]
    found = [a * x - b * y for x, y in zip(row, pivot, strict=True)]
    common = math.gcd(*found)
    return [entry // common for entry in found] if common > 1 else found


def rows_of(values: Sequence[Sequence[Fraction]], columns: int) -> Integers:
    """Rational rows as integers, each times a positive number."""
    found = []
    for row in values:
        common = math.lcm(*(entry.denominator for entry in row))
        found.append([int(entry * common) for entry in row])
    return np.array(found, dtype=object).reshape(len(found), columns)


class Place:
    """A domain as linear constraints: a box exactly, a ball by its box and tangents, which can be added."""

    def __init__(self, domain: Domain, shape: Shape) -> None:
        """Read the limits.

        Raises:
            InvalidInput: If the domain has no interior, or is of another kind.
        """
        size = math.prod(shape)
        self.domain, self.ball = domain, None
        ends: list[tuple[Fraction, Fraction]] = []
        match domain:
            case WholeSpace():
                pass
            case Box(low, high):
                sides = (torch.as_tensor(s, dtype=torch.float64).expand(shape).flatten().tolist() for s in (low, high))
                ends = [(Fraction(a), Fraction(b)) for a, b in zip(*sides, strict=True)]
            case L2Ball(centre, radius):
                middle = torch.as_tensor(centre, dtype=torch.float64).expand(shape).flatten().tolist()
                self.ball = ([Fraction(c) for c in middle], Fraction(radius))
                ends = [(c - self.ball[1], c + self.ball[1]) for c in self.ball[0]]
            case _:
                raise InvalidInput(f"exact constants are on the whole space, a Box or an L2Ball, not on {domain}.")
        if any(a >= b for a, b in ends):
            raise InvalidInput(f"{domain} has no interior, where a constant is no largest derivative; widen it.")
        rows = []
        for j, (a, b) in enumerate(ends):
            unit = [Fraction(int(i == j)) for i in range(size)]
            rows += [[-a, *unit], [b, *(-entry for entry in unit)]]
        self.exact = rows_of(rows, 1 + size)
        self.near = np.array([[float(entry) for entry in row] for row in rows]).reshape(-1, 1 + size)

    def searched(self, near: Array, exact: Callable[[], Integers] | None) -> Searched:
        """`searched` inside the domain."""
        cuts: list[Array] = []
        for _ in range(_CUTS if self.ball else 1):
            tangents = np.array([self._tangent(cut) for cut in cuts]).reshape(-1, near.shape[1])
            whole = np.concatenate([self.near, tangents, near])
            found = searched(whole, exact and partial(self._rows, cuts, exact))
            if found.point is None or self.ball is None or self._inside(found.point):
                return found
            away = found.point - self._middle
            cuts.append(away / np.max(np.abs(away)))
        return Searched(None, False)

    def _rows(self, cuts: list[Array], exact: Callable[[], Integers]) -> Integers:
        tangents = rows_of([self._exact_tangent(cut) for cut in cuts], self.exact.shape[1])
        return np.concatenate([self.exact, tangents, exact()])

    @property
    def _middle(self) -> Array:
        assert self.ball is not None
        return np.array([float(c) for c in self.ball[0]])

    def _inside(self, x: Array) -> bool:
        assert self.ball is not None
        return float(np.linalg.norm(x - self._middle)) < float(self.ball[1])

    def _tangent(self, d: Array) -> Array:
        assert self.ball is not None
        return np.concatenate([[float(self.ball[1]) * np.linalg.norm(d) + d @ self._middle], -d])

    def _exact_tangent(self, d: Array) -> list[Fraction]:
        """``R - d (x - centre) > 0`` inside the ball, for R not below ``radius |d|``."""
        assert self.ball is not None
        centre, radius = self.ball
        exact = [Fraction(entry) for entry in d.tolist()]
        reach = radius * sqrt_up(sum((entry * entry for entry in exact), Fraction(0)))
        return [reach + sum((a * c for a, c in zip(exact, centre, strict=True)), Fraction(0)), *(-a for a in exact)]


class Region:
    """Inputs with the decided signs of the hinges that are affine there; the others do not restrict it."""

    def __init__(self, net: Hinges, signs: Array, derivative: Derivative) -> None:
        """Collect the constraints."""
        self.net, self.signs, self.affine, self.known = net, signs, derivative.affine, derivative.known
        decided = np.flatnonzero(derivative.known & (signs != 0))
        level = self._level(decided)
        self.constant, self.decided = decided[level], decided[~level]
        self.near = signs[self.decided, None] * self.affine[self.decided]
        self._last = int(np.flatnonzero(derivative.known).max(initial=-1))
        self._rows: Integers | None = None

    def searched(self, place: Place) -> Searched:
        """Look for a point of the region in a domain."""
        if any(self._contradicted(k, int(self.signs[k])) for k in self.constant.tolist()):
            return Searched(None, True)
        return place.searched(self.near, lambda: self._exact(self.decided, self.signs[self.decided]))

    def point(self, place: Place) -> Array | None:
        """A point of the region, if one is found."""
        return place.searched(self.near, None).point

    def excludes(self, place: Place, k: int, sign: int) -> bool:
        """Whether it is proved that a hinge, affine there, has that sign at no inner point of the region."""
        if self._level(np.array([k]))[0]:
            return self._contradicted(k, sign)
        which, signs = np.append(self.decided, k), np.append(self.signs[self.decided], sign)
        near = np.concatenate([self.near, sign * self.affine[[k]]])
        return place.searched(near, lambda: self._exact(which, signs)).empty

    def constants(self) -> dict[int, int]:
        """The signs of undecided hinges that read a constant there; either sign fits a hinge that reads 0."""
        undecided = np.flatnonzero(self.known & (self.signs == 0))
        level = undecided[self._level(undecided)].tolist()
        rows = {k: self._exact(np.array([k]), np.array([1]))[0].tolist() for k in level}
        return {k: -1 if row[0] < 0 else 1 for k, row in rows.items() if not any(row[1:])}

    def _level(self, which: Array) -> Array:
        """Which hinges are about constant, so that their rows say nothing of a direction."""
        rows = np.abs(self.affine[which])
        return rows[:, 1:].max(1, initial=0.0) <= _FLAT * rows.max(1, initial=0.0)

    def _contradicted(self, k: int, sign: int) -> bool:
        constant, *rest = self._exact(np.array([k]), np.array([sign]))[0]
        return constant < 0 and not any(rest)

    def _exact(self, which: Array, signs: Array) -> Integers:
        if self._rows is None:
            self._rows = affine_rows(self.net, self.signs, self._last)
        return self._rows[which] * signs[:, None].astype(object)
