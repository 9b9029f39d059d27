"""Cosine and sine of a stored angle with a bound of their error, in integers. Floor 1.

The mathematical library's own are accurate, but by no standard; nothing rigorous may rest on them.
"""

from __future__ import annotations

from fractions import Fraction

_BITS = 80


def cosine_and_sine(angle: Fraction) -> tuple[float, float]:
    r"""Both within :math:`2^{-53}`, for any rational angle.

    Taylor's series at :math:`y = t / 2^k`, t the angle, at most 1/2, and k times :math:`e^{2iy} = (e^{iy})^2`. In units
    of :math:`2^{-p}` the series is off by less than 4 p, a doubling doubles the error and adds two, and
    ``p = 80 + 2 k`` leaves less than :math:`2^{-60}`.

    Example:
        >>> cosine_and_sine(Fraction(0))
        (1.0, 0.0)
    """
    doublings = max(0, (abs(angle.numerator) // angle.denominator).bit_length() + 1)
    p = _BITS + 2 * doublings
    y = (abs(angle.numerator) << p - doublings) // angle.denominator
    parts = [1 << p, 0, 0, 0]
    term, j = 1 << p, 0
    while term:
        j += 1
        term = (term * y >> p) // j
        parts[j % 4] += term
    c, s = parts[0] - parts[2], parts[1] - parts[3]
    for _ in range(doublings):
        c, s = (c * c - s * s) >> p, (2 * c * s) >> p
    cosine, sine = (float(Fraction(max(-1 << p, min(1 << p, value)), 1 << p)) for value in (c, s))
    return cosine, -sine if angle < 0 else sine
