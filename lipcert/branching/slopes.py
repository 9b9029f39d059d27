r"""Derivatives of hinges where some signs are decided, as matrices with error bounds. Floor 5.

A hinge whose sign is decided is linear. Of the others the derivative is :math:`m_k dz_k + h_k t_k` with an unknown
:math:`|t_k| \le |dz_k|`, where :math:`m_k, h_k` are mean and half difference of the two slopes. Eliminating the decided
ones leaves :math:`dz = Z (dx, t)` and :math:`dy = C (dx, t)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from lipcert.branching.hinges import Array, Hinges
from lipcert.enclosure.ball import Ball, Integers, nearest
from lipcert.kernel.rounding import gamma, round_up

TINY = 2.0**-1000
_MORE = 1.0 + 2.0**-40
_SURE = 1e-11


@dataclass(frozen=True, eq=False)
class Enclosed:
    """Matrices in ``[mid - rad, mid + rad]``, entry by entry; a radius is 0 only where the entry is exact."""

    mid: Array
    rad: Array

    def taken(self, rows: Array, columns: Array) -> Enclosed:
        """Some rows and columns."""
        return Enclosed(self.mid[np.ix_(rows, columns)], self.rad[np.ix_(rows, columns)])

    def rows(self, which: Sequence[int]) -> Enclosed:
        """Some rows."""
        return Enclosed(self.mid[list(which)], self.rad[list(which)])

    @property
    def nonzero(self) -> Array:
        """Where an entry may differ from 0."""
        return (self.mid != 0.0) | (self.rad != 0.0)

    @property
    def magnitude(self) -> Array:
        """What entries are at most in modulus."""
        return (np.abs(self.mid) + self.rad) * _MORE


@dataclass(frozen=True, eq=False)
class Derivative:
    """What is left where some signs are decided: ``dz = Z (dx, t)`` for the hinges ``open``, ``dy = C (dx, t)``.

    Attributes:
        open: Undecided hinges that can change the output's derivative, in order, as numbers.
        z: ``(open, inputs + open)``; strictly lower triangular in t.
        c: ``(outputs, inputs + open)``.
        affine: ``(hinges, 1 + inputs)``: approximately the affine function a hinge reads, where it is one.
        known: Which hinges read an affine function of the input, given the signs.
    """

    open: Array
    z: Enclosed
    c: Enclosed
    affine: Array
    known: Array

    @property
    def inputs(self) -> int:
        """Entries of dx."""
        return self.z.mid.shape[1] - len(self.open)

    def largest(self) -> tuple[Array, Array]:
        """Upper bounds of ``|t|`` by input, ``(open, inputs)``, and of the Jacobian's moduli, ``(outputs, inputs)``."""
        n, (z, c) = self.inputs, (self.z.magnitude, self.c.magnitude)
        more = 1.0 + 4.0 * gamma(len(self.open) + 1)
        T = z[:, :n].copy()
        for k in range(len(self.open)):
            T[k] = (T[k] + z[k, n : n + k] @ T[:k]) * more + (TINY if k else 0.0)
        return T, (c[:, :n] + c[:, n:] @ T) * more + (TINY if len(self.open) else 0.0)


class Slopes:
    """The float64 side of hinges: everything but exact integers."""

    def __init__(self, hinges: Hinges) -> None:
        """Round the coefficients, with error bounds."""
        self.hinges = hinges
        self.rows = rounded(hinges.rows, hinges.bits)
        output, everything = rounded(hinges.output, hinges.bits), slice(0, len(hinges.output))
        levels = [self._block(self.rows, level, level.start) for level in hinges.levels]
        self._blocks = (*levels, self._block(output, everything, hinges.count))
        self.mean = hinges.low / 2 + hinges.high / 2
        # Of the rounded mean the half difference is the distance to the slope that is farther away.
        half = [
            max(abs(Fraction(end) - Fraction(mean)) for end in ends)
            for mean, *ends in zip(self.mean.tolist(), hinges.low.tolist(), hinges.high.tolist(), strict=True)
        ]
        self.half = np.array([round_up(value) for value in half], dtype=np.float64)

    def derivative(self, signs: Array) -> Derivative:
        """Eliminate the hinges whose sign (int8, 1 or -1; 0 if undecided) is decided."""
        net = self.hinges
        first, m = 1 + net.inputs, net.count
        slope = np.where(signs < 0, net.low, np.where(signs > 0, net.high, self.mean))
        half = np.where(signs == 0, self.half, 0.0)
        u, r = np.zeros((m, first + m)), np.zeros((m, first + m))
        z, s = np.zeros((m, first + m)), np.zeros((m, first + m))
        known, flat = np.zeros(m, dtype=bool), np.zeros(m, dtype=bool)
        for level, block in zip(net.levels, self._blocks[:-1], strict=True):
            end = first + level.start
            Z, S = block.applied(u[: level.start, :end], r[: level.start, :end])
            z[level, :end], s[level, :end] = Z, S
            known[level] = ~np.any(block.reads & ~flat[None, : level.start], axis=1)
            flat[level] = (half[level] == 0.0) & (known[level] | (slope[level] == 0.0))
            factor = slope[level][:, None]
            u[level, :end] = factor * Z
            lost = TINY * ((factor != 0.0) & ((Z != 0.0) | (S != 0.0)))
            r[level, :end] = (np.abs(factor) * S + 2.0**-52 * np.abs(u[level, :end])) * _MORE + lost
            k = np.arange(level.start, level.stop)
            u[k, first + k] = half[level]
        c, d = self._blocks[-1].applied(u, r)
        return _reduced(np.flatnonzero(half != 0.0), Enclosed(z, s), Enclosed(c, d), net.inputs, known)

    def _block(self, rows: Enclosed, which: slice, before: int) -> _Block:
        first = 1 + self.hinges.inputs
        base = Enclosed(rows.mid[which, :first], rows.rad[which, :first])
        weight = Enclosed(*(part[which, first : first + before].copy() for part in (rows.mid, rows.rad)))
        return _Block(base, weight, np.abs(weight.mid), weight.nonzero)

    def pattern(self, x: Array) -> Array:
        """The signs at a point, in plain floating point; 0 where rounding may have decided."""
        net = self.hinges
        first = 1 + net.inputs
        state = np.concatenate([[1.0], x, np.zeros(net.count)])
        signs = np.zeros(net.count, dtype=np.int8)
        for level in net.levels:
            W = self.rows.mid[level]
            z = W @ state
            signs[level] = np.where(np.abs(z) > _SURE * (np.abs(W) @ np.abs(state)), np.sign(z), 0)
            state[first:][level] = np.where(z < 0.0, net.low[level], net.high[level]) * z
        return signs

    def reach(self, x: Array, signs: Array, direction: Array) -> float:
        """About how far along a direction and its opposite no sign changes."""
        affine = self.derivative(signs).affine
        rates = np.abs(affine[:, 1:] @ direction)
        rates = np.where(rates > 1e-12 * np.abs(affine[:, 1:]).sum(1), rates, 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            room = np.where(rates > 0.0, np.abs(affine @ np.concatenate([[1.0], x])) / rates, np.inf)
        return float(min(room.min(initial=np.inf), 1.0 + np.abs(x).max(initial=0.0)))


@dataclass(frozen=True, eq=False)
class _Block:
    """Rows that read the input and the hinges of earlier levels.

    Attributes:
        base: Coefficients of ``(1, x)``.
        weight: Coefficients of hinges.
        size: Their moduli.
        reads: Which may differ from 0.
    """

    base: Enclosed
    weight: Enclosed
    size: Array
    reads: Array

    def applied(self, u: Array, r: Array) -> tuple[Array, Array]:
        """The rows as functions of ``(1, x, t)``, given hinges ``u`` with radii ``r``: midpoints and radii."""
        first = self.base.mid.shape[1]
        size = np.abs(u)
        mid, terms = self.weight.mid @ u, self.size @ size
        mid[:, :first] += self.base.mid
        terms[:, :first] += np.abs(self.base.mid)
        rad = self.size @ r + self.weight.rad @ (size + r)
        rad[:, :first] += self.base.rad
        # A coefficient of the input that no hinge adds to is not rounded.
        touched = (self.reads.astype(np.float64) @ ((u != 0.0) | (r != 0.0)).astype(np.float64)) > 0.0
        return mid, np.where(touched, (rad + gamma(u.shape[0] + 3) * terms) * _MORE + TINY, rad)


def _reduced(open_: Array, z: Enclosed, c: Enclosed, n: int, known: Array) -> Derivative:
    """Leave out hinges that are constant, or do not reach the output."""
    first = 1 + n
    signal, ends = z.nonzero, c.nonzero
    moving = np.array([k for k in open_ if signal[k, 1:].any()], dtype=np.int64)
    needed: list[int] = []
    for k in moving[::-1].tolist():
        if ends[:, first + k].any() or signal[needed, first + k].any():
            needed.append(k)
    kept = np.array(needed[::-1], dtype=np.int64)
    columns = np.concatenate([1 + np.arange(n), first + kept])
    every = np.arange(len(c.mid))
    return Derivative(kept, z.taken(kept, columns), c.taken(every, columns), z.mid[:, :first], known)


def rounded(values: Integers, bits: int) -> Enclosed:
    """Integers in units of ``2**-bits`` as float64, with how far they are off."""
    return Enclosed(*nearest(Ball(values, None, bits)))
