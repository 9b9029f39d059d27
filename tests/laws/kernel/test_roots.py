"""Tables of roots of unity, secants, cosines and sines against many more digits."""

import math
from fractions import Fraction

import mpmath
import pytest

from lipcert.kernel.angles import cosine_and_sine
from lipcert.kernel.roots import TABLE_ERROR, secant_up, unit_roots


def test_the_error_of_a_table_is_half_a_unit_and_a_little():
    assert 2.0**-54 < TABLE_ERROR <= 2.0**-53


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5, 7, 12, 24, 50])
def test_a_table_of_roots_is_off_by_half_a_unit_in_the_last_place_and_less_than_a_trifle(order: int):
    tables = unit_roots(order)
    with mpmath.workdps(80):
        for j in range(order):
            exact = mpmath.expjpi(mpmath.mpf(2 * j) / order)
            for table, part in zip(tables, (exact.real, exact.imag), strict=True):
                found = float(table[j])
                assert abs(found - part) <= mpmath.mpf(2) ** -54
                assert abs(found - part) <= mpmath.mpf(math.ulp(found)) / 2 + mpmath.mpf(2) ** -190
                assert (found == 0.0) == (abs(part) < 1e-60)


@pytest.mark.parametrize("multiple", [Fraction(1, 10**k) for k in (2, 9, 20, 30, 39, 60, 200)], ids=str)
def test_the_secant_of_a_tiny_angle_is_above_one(multiple: Fraction):
    with mpmath.workdps(450):
        assert mpmath.sec(mpmath.pi / multiple.denominator) <= mpmath.mpf(secant_up(multiple))
    assert 1.0 < secant_up(multiple) <= 1.0 + 5.0 * float(multiple) ** 2 + 2.0**-52


@pytest.mark.parametrize("multiple", [Fraction(1, 3), Fraction(1, 4), Fraction(2, 5), Fraction(499, 1000)], ids=str)
def test_the_secant_is_the_number_above_it(multiple: Fraction):
    found = secant_up(multiple)
    with mpmath.workdps(60):
        exact = mpmath.sec(mpmath.pi * multiple.numerator / multiple.denominator)
        assert exact <= mpmath.mpf(found) <= exact + mpmath.mpf(math.ulp(found)) + mpmath.mpf(10) ** -50


def test_a_secant_exists_below_a_quarter_turn_and_is_exact_at_zero():
    assert secant_up(Fraction(0)) == 1.0
    assert 1e9 < secant_up(Fraction(1, 2) - Fraction(1, 10**10)) < 1e10
    for multiple in (Fraction(1, 2), Fraction(3, 4), Fraction(1), Fraction(3, 2), Fraction(2), Fraction(9)):
        assert secant_up(multiple) == math.inf


def near_multiples_of_a_quarter_turn() -> list[Fraction]:
    """Angles whose cosine or sine is so small that a float64 shows far more than 2**-53 of it."""
    with mpmath.workprec(2400):
        quarters = (1, 2, 3, 4, 5, 1000, 10**9 + 1, 2**200 + 3)
        return [Fraction(int(mpmath.floor(k * mpmath.pi / 2 * 2**40)), 2**40) for k in quarters]


ANGLES = [
    *map(Fraction, (0, 1, 2, 3, 4, 5, 6, 7, 8, 2**20, 10**9 + 7, 2**300 + 1)),
    *(Fraction(n, d) for n, d in ((1, 2), (1, 3), (3, 2), (7, 2), (999, 1000), (10**12 + 1, 10**12), (22, 7))),
    *(Fraction(10**k + 1, 3**j) for k in (3, 17, 40) for j in (1, 20)),
    *map(Fraction, (5e-324, 1e-30, 1e300, 1.7976931348623157e308, 0.1, 2.5, 31.4)),
    *near_multiples_of_a_quarter_turn(),
]


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("angle", ANGLES, ids=lambda angle: f"{float(angle):.17g} {angle.denominator % 997}")
def test_cosine_and_sine_are_off_by_half_a_unit_in_the_last_place_and_two_to_the_minus_60(angle: Fraction, sign: int):
    found = cosine_and_sine(sign * angle)
    assert max(map(abs, found)) <= 1.0
    with mpmath.workprec(2400):
        t = mpmath.mpf(sign * angle.numerator) / angle.denominator
        for value, exact in zip(found, (mpmath.cos(t), mpmath.sin(t)), strict=True):
            assert abs(value - exact) <= mpmath.mpf(2) ** -53
            assert abs(value - exact) <= mpmath.mpf(math.ulp(value)) / 2 + mpmath.mpf(2) ** -60
