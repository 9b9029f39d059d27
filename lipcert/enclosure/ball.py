"""Arrays of balls with dyadic midpoints: exact where nothing rounds. Floor 2.

References:
    | Arb: efficient arbitrary-precision midpoint-radius interval arithmetic (Johansson, 2017)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from torch import Tensor

from lipcert.check import exact
from lipcert.kernel.rounding import round_up

GUARD = 320
"""Fractional bits kept where an operation has to round; and of all operations, beyond `LONG`."""

LONG = 4096
"""Fractional bits up to which sums and products stay exact."""

_LARGEST = Fraction(2) ** 1023

Integers = np.ndarray
"""Of dtype object, so that entries are integers of any size."""


@dataclass(frozen=True, eq=False)
class Ball:
    """Numbers in ``[mid - rad, mid + rad] * 2**-bits``, entry by entry.

    Attributes:
        mid: Integers, shape ``(N, ...)``.
        rad: Integers >= 0 of that shape; ``None`` if all are 0, that is if the numbers are known exactly.
        bits: May be negative.
    """

    mid: Integers
    rad: Integers | None
    bits: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array."""
        return self.mid.shape

    @property
    def lower(self) -> Integers:
        """Lower ends, in units of ``2**-bits``."""
        return self.mid if self.rad is None else self.mid - self.rad

    @property
    def upper(self) -> Integers:
        """Upper ends, in units of ``2**-bits``."""
        return self.mid if self.rad is None else self.mid + self.rad

    @property
    def radii(self) -> Integers:
        """The radii, zeros where the numbers are known exactly."""
        return 0 * self.mid if self.rad is None else self.rad

    def at(self, bits: int) -> Ball:
        """The same balls in finer units.

        Example:
            >>> exactly(np.array([0.5])).at(3).mid.tolist()
            [4]
        """
        shift = bits - self.bits
        assert shift >= 0
        return Ball(self.mid << shift, None if self.rad is None else self.rad << shift, bits)

    def rounded(self, bits: int) -> Ball:
        """Balls in units of at least ``2**-bits`` that contain these.

        Example:
            >>> rounded = exactly(np.array([0.375])).rounded(2)
            >>> rounded.lower.tolist(), rounded.upper.tolist(), rounded.bits
            ([1], [3], 2)
        """
        shift = self.bits - bits
        if shift <= 0:
            return self
        mid = (self.mid + (1 << (shift - 1))) >> shift
        exact_still = self.rad is None and not np.any((mid << shift) != self.mid)
        if exact_still:
            return Ball(mid, None, bits)
        return Ball(mid, 1 - ((-self.radii) >> shift), bits)

    def moved(self, change: Callable[[Integers], Integers]) -> Ball:
        """The entries rearranged, by a function of an array that treats all entries alike."""
        return Ball(change(self.mid), None if self.rad is None else change(self.rad), self.bits)


def exactly(values: np.ndarray | Tensor | float) -> Ball:
    """Float64 numbers as exact balls.

    Example:
        >>> ball = exactly(np.array([0.75, -3.0]))
        >>> ball.mid.tolist(), ball.bits
        ([3, -12], 2)
    """
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    whole, unit = exact(np.asarray(array, dtype=np.float64))
    bits = unit.denominator.bit_length() - unit.numerator.bit_length()
    return Ball(whole.astype(object), None, bits)


def nearest(ball: Ball) -> tuple[np.ndarray, np.ndarray]:
    """Float64 numbers near the midpoints, and how far they can be from what the balls hold, rounded up.

    Example:
        >>> nearest(Ball(np.array([3, 5], dtype=object), None, 1))
        (array([1.5, 2.5]), array([0., 0.]))
    """
    unit = Fraction(2) ** -ball.bits
    mids = [int(mid) * unit for mid in ball.mid.ravel()]
    near = [float(min(max(mid, -_LARGEST), _LARGEST)) for mid in mids]
    far = zip(near, mids, ball.radii.ravel(), strict=True)
    off = [round_up(abs(Fraction(at) - mid) + int(rad) * unit) for at, mid, rad in far]
    return np.array(near).reshape(ball.shape), np.array(off).reshape(ball.shape)


def between(lower: Integers, upper: Integers, bits: int) -> Ball:
    """The balls that hold ``[lower, upper] * 2**-bits``."""
    mid = (lower + upper) >> 1
    rad = np.maximum(upper - mid, mid - lower)
    return Ball(mid, rad if np.any(rad) else None, bits)


def monotone(x: Ball, change: Callable[[Integers], Integers]) -> Ball:
    """A function that does not decrease in any entry, and does not depend on the unit, at both ends."""
    if x.rad is None:
        return Ball(change(x.mid), None, x.bits)
    return between(change(x.lower), change(x.upper), x.bits)


def aligned(balls: Sequence[Ball]) -> list[Ball]:
    """The same balls in common units."""
    bits = max(ball.bits for ball in balls)
    return [ball.at(bits) for ball in balls]


def add(balls: Sequence[Ball]) -> Ball:
    """The sum of balls whose shapes broadcast.

    Example:
        >>> add([exactly(np.array([0.5, 1.0])), exactly(np.array([0.25]))]).mid.tolist()
        [3, 5]
    """
    first, *others = aligned(balls)
    mid, rad = first.mid, first.rad
    for ball in others:
        mid = mid + ball.mid
        if ball.rad is not None:
            rad = ball.rad if rad is None else rad + ball.rad
    return Ball(mid, None if rad is None else np.broadcast_to(rad, mid.shape), first.bits)


def product(x: Ball, y: Ball) -> Ball:
    """The product of balls whose shapes broadcast.

    Example:
        >>> product(exactly(np.array([0.5])), exactly(np.array([3.0]))).mid.tolist()
        [3]
    """
    mid, bits = x.mid * y.mid, x.bits + y.bits
    if x.rad is None and y.rad is None:
        return Ball(mid, None, bits)
    return Ball(mid, abs(x.mid) * y.radii + abs(y.mid) * x.radii + x.radii * y.radii, bits)


def joined(balls: Sequence[Ball], axis: int) -> Ball:
    """Balls side by side along an axis."""
    parts = aligned(balls)
    mid = np.concatenate([part.mid for part in parts], axis=axis)
    if all(part.rad is None for part in parts):
        return Ball(mid, None, parts[0].bits)
    return Ball(mid, np.concatenate([part.radii for part in parts], axis=axis), parts[0].bits)


def times(ball: Ball, factor: Ball) -> Ball:
    """The product with exact numbers that broadcast to the ball's shape."""
    assert factor.rad is None
    rad = None if ball.rad is None else ball.rad * abs(factor.mid)
    return short(Ball(ball.mid * factor.mid, rad, ball.bits + factor.bits))


def over(ball: Ball, divisor: int) -> Ball:
    """The quotient by a positive integer: exact where it is a power of two, else with `GUARD` bits.

    Example:
        >>> third = over(exactly(np.array([1.0])), 3)
        >>> 3 * third.lower[0] <= 2**third.bits <= 3 * third.upper[0]
        True
    """
    if divisor & (divisor - 1) == 0:
        return short(Ball(ball.mid, ball.rad, ball.bits + divisor.bit_length() - 1))
    fine = ball.at(max(ball.bits, 0) + GUARD)
    return short(Ball(fine.mid // divisor, 1 - ((-fine.radii) // divisor), fine.bits))


def short(ball: Ball) -> Ball:
    """The ball itself, or with `GUARD` bits once it has got too long."""
    return ball if ball.bits <= LONG else ball.rounded(max(GUARD, ball.bits // 2))
