"""Cosines and sines of rational multiples of pi, from integer arithmetic. Floor 1.

Fixed point with 256 bits after the point; every operation is an exact integer operation followed by a floor, so
errors are counted, not trusted to a mathematical library.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from lipcert.kernel.rounding import Array, round_up

_BITS = 256
_ONE = 1 << _BITS
_SLOP = 1 << 64  # 2**-192: far above the accumulated floors of every loop below, far below 2**-53

TABLE_ERROR = 2.0**-53
"""Bound of the error of each entry of `unit_roots`: half an ulp of numbers up to 1 is 2**-54."""


def unit_roots(order: int) -> tuple[Array, Array]:
    """``cos(2 pi j / order)`` and ``sin(2 pi j / order)`` for j = 0 .. order - 1, each off by at most `TABLE_ERROR`.

    Example:
        >>> cosine, sine = unit_roots(4)
        >>> cosine.tolist(), sine.tolist()
        ([1.0, 0.0, -1.0, 0.0], [0.0, 1.0, 0.0, -1.0])
    """
    c, s = _circle_point(Fraction(2, order))
    cosine, sine = np.empty(order), np.empty(order)
    x, y = _ONE, 0
    for j in range(order):
        cosine[j], sine[j] = _nearest(x), _nearest(y)
        # Each step floors four products: after j steps the error is below 8 (j + 1) units of 2**-256.
        x, y = (x * c - y * s) >> _BITS, (x * s + y * c) >> _BITS
    return cosine, sine


def secant_up(multiple: Fraction) -> float:
    """``1 / cos(pi * multiple)`` rounded up, for ``0 <= multiple < 1/2``; infinity from 1/2 on.

    Example:
        >>> secant_up(Fraction(0)), 2.0 <= secant_up(Fraction(1, 3)) < 2.0000000001
        (1.0, True)
    """
    if multiple == 0:
        return 1.0
    lower = _circle_point(multiple)[0] - _SLOP if multiple < Fraction(1, 2) else 0
    return round_up(Fraction(_ONE, lower)) if lower > 0 else math.inf


def _nearest(value: int) -> float:
    # Exact zeros and ones leave the loop a few floors away from themselves; the snap is below TABLE_ERROR / 2**100.
    if abs(value) < _SLOP:
        return 0.0
    return value / _ONE  # int / int is correctly rounded


def _circle_point(multiple: Fraction) -> tuple[int, int]:
    """Fixed-point cosine and sine of ``pi * multiple``, ``0 <= multiple <= 2``, by Taylor's series."""
    angle = _pi() * multiple.numerator // multiple.denominator
    parts = [0, 0]
    term, k = _ONE, 0
    while term:
        parts[k % 2] += term if k % 4 < 2 else -term
        k += 1
        term = (term * angle >> _BITS) // k
    return parts[0], parts[1]


def _pi() -> int:
    """Machin's formula: ``pi = 16 arctan(1/5) - 4 arctan(1/239)``."""
    return 16 * _arctan_inverse(5) - 4 * _arctan_inverse(239)


def _arctan_inverse(x: int) -> int:
    power, total, k = _ONE // x, 0, 0
    while power:
        total += (-1) ** k * (power // (2 * k + 1))
        power //= x * x
        k += 1
    return total
