r"""Derivatives of hinges where some signs are decided, as matrices with error bounds. Floor 5.

A hinge whose sign is decided is linear. Of the others the derivative is :math:`m_k dz_k + h_k t_k` with an unknown
:math:`|t_k| \le |dz_k|`, where :math:`m_k, h_k` are mean and half difference of the two slopes. Eliminating the decided
ones leaves :math:`dz = Z (dx, t)` and :math:`dy = C (dx, t)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from lipcert.branching.hinges import Array, Hinges
from lipcert.enclosure.ball import Integers
from lipcert.kernel.rounding import gamma, round_up

TINY = 2.0**-1000
_MORE = 1.0 + 2.0**-40


@dataclass(frozen=True, eq=False)
class Enclosed:
    """Matrices in ``[mid - rad, mid + rad]``, entry by entry; a radius is 0 only where the entry is exact."""

    mid: Array
    rad: Array

    def taken(self, rows: Array, columns: Array) -> Enclosed:
        """Some rows and columns."""
        return Enclosed(self.mid[np.ix_(rows, columns)], self.rad[np.ix_(rows, columns)])

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
        """Upper bounds of ``|t|`` per input, ``(open, inputs)``, and of the Jacobian's moduli, ``(outputs, inputs)``."""
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
        self.rows = _rounded(hinges.rows, hinges.bits)
        self.output = _rounded(hinges.output, hinges.bits)
        self.reads = (hinges.rows != 0)[:, 1 + hinges.inputs :].astype(bool)
        self.mean = hinges.low / 2 + hinges.high / 2
        half = [
            max(Fraction(m) - Fraction(low), Fraction(low) - Fraction(m), Fraction(high) - Fraction(m), Fraction(m) - Fraction(high))
            for m, low, high in zip(self.mean.tolist(), hinges.low.tolist(), hinges.high.tolist(), strict=True)
        ]
        self.half = np.array([round_up(value) for value in half], dtype=np.float64)

    def derivative(self, signs: Array) -> Derivative:
        """Eliminate the hinges whose sign (int8, 1 or -1; 0 if undecided) is decided."""
        net = self.hinges
        n, m = net.inputs, net.count
        slope = np.where(signs < 0, net.low, np.where(signs > 0, net.high, self.mean))
        half = np.where(signs == 0, self.half, 0.0)
        u, r = np.zeros((m, 1 + n + m)), np.zeros((m, 1 + n + m))
        z, s = np.zeros((m, 1 + n + m)), np.zeros((m, 1 + n + m))
        known, flat = np.zeros(m, dtype=bool), np.zeros(m, dtype=bool)
        for level in net.levels:
            z[level], s[level] = self._combined(self.rows, level, u, r)
            known[level] = ~np.any(self.reads[level] & ~flat[None], axis=1)
            flat[level] = (half[level] == 0.0) & (known[level] | (slope[level] == 0.0))
            factor = slope[level][:, None]
            u[level] = factor * z[level]
            r[level] = (np.abs(factor) * s[level] + 2.0**-52 * np.abs(u[level])) * _MORE
            r[level] = np.where((factor != 0.0) & (z[level] != 0.0), r[level] + TINY, r[level])
            k = np.arange(level.start, level.stop)
            u[k, 1 + n + k] = half[level]
        c, d = self._combined(self.output, slice(0, len(net.output)), u, r, m)
        return _reduced(np.flatnonzero(half != 0.0), Enclosed(z, s), Enclosed(c, d), n, known)

    def pattern(self, x: Array) -> Array:
        """The signs at a point, in plain floating point."""
        return np.where(self._values(x) < 0.0, -1, 1).astype(np.int8)

    def reach(self, x: Array, signs: Array, direction: Array) -> float:
        """About how far along a direction and its opposite no sign changes."""
        affine = self.derivative(signs).affine
        rates = np.abs(affine[:, 1:] @ direction)
        rates = np.where(rates > 1e-12 * np.abs(affine[:, 1:]).sum(1), rates, 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            room = np.where(rates > 0.0, np.abs(affine @ np.concatenate([[1.0], x])) / rates, np.inf)
        return float(min(room.min(initial=np.inf), 1.0 + np.abs(x).max(initial=0.0)))

    def _values(self, x: Array) -> Array:
        net = self.hinges
        first = 1 + net.inputs
        state = np.concatenate([[1.0], x, np.zeros(net.count)])
        z = np.zeros(net.count)
        for level in net.levels:
            z[level] = self.rows.mid[level] @ state
            state[first:][level] = np.where(z[level] < 0.0, net.low[level], net.high[level]) * z[level]
        return z

    def _combined(self, rows: Enclosed, which: slice, u: Array, r: Array, before: int | None = None) -> tuple[Array, Array]:
        """Rows applied to ``(1, x, u)``, where ``u`` is the hinges' outputs with radii r."""
        a = which.start if before is None else before
        first = 1 + self.hinges.inputs
        W, V = rows.mid[which, first : first + a], rows.rad[which, first : first + a]
        U, R = u[:a], r[:a]
        mid, size = W @ U, np.abs(W) @ np.abs(U)
        base, far = rows.mid[which, :first], rows.rad[which, :first]
        mid[:, :first] += base
        size[:, :first] += np.abs(base)
        rad = np.abs(W) @ R + V @ (np.abs(U) + R)
        rad[:, :first] += far
        # One exact term alone is not rounded; a product is.
        touched = (((W != 0.0) | (V != 0.0)).astype(float) @ ((U != 0.0) | (R != 0.0)).astype(float)) > 0.0
        return mid, np.where(touched, (rad + gamma(a + 3) * size) * _MORE + TINY, rad)


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


def _rounded(values: Integers, bits: int) -> Enclosed:
    """Integers in units of ``2**-bits`` as float64, with how far they are off."""
    unit = Fraction(2) ** -bits
    exact = [int(value) * unit for value in values.ravel()]
    near = [float(value) for value in exact]
    off = [round_up(abs(value - Fraction(other))) for value, other in zip(exact, near, strict=True)]
    return Enclosed(np.array(near).reshape(values.shape), np.array(off).reshape(values.shape))
