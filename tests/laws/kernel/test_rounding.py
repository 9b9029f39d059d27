"""The directed operations against fractions, and machines that round otherwise."""

import ctypes
import itertools
import math
import platform
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

from lipcert.errors import FloatEnvironment, InvalidInput, NotFinite
from lipcert.kernel import rounding, single
from lipcert.kernel.rounding import (
    add_up,
    as_real,
    div_up,
    gamma,
    largest_magnitude,
    largest_sum_up,
    mul_up,
    require_finite,
    require_ieee,
    round_down,
    round_up,
    scale_up,
    sqrt_up,
    sum_of_squares_up,
    sum_up,
)
from tests.laws.kernel.exact import LARGEST, RNG, U32, Array, U, above, exactly, frac, higham

# ---------------------------------------------------------------------------------------------------------- the machine


@pytest.mark.parametrize(("module", "number"), [(rounding, np.float64), (single, np.float32)], ids=["double", "single"])
def test_the_unit_is_half_the_distance_to_the_next_number(module, number):
    one, unit = number(1.0), number(module.UNIT)
    assert module.UNIT > 0.0
    assert one + unit == one < one + number(1.5) * unit == np.nextafter(one, number(2.0))


class Machine(np.ndarray):
    """Numbers of a processor whose products and sums go through a function first."""

    spoil: Callable[[Array], Array]
    first: float | None = None

    def __mul__(self, other):
        product = self.spoil(np.asarray(self) * other).view(Machine)
        product.spoil = self.spoil
        return product

    def __add__(self, other):
        return self.spoil(np.asarray(self) + other)

    def __getitem__(self, index):
        return np.asarray(self)[index] if index != 0 or self.first is None else self.first


def machine(spoil: Callable[[Array], Array], first: float | None = None) -> Machine:
    numbers = rounding._TINY.view(Machine)
    numbers.spoil, numbers.first = spoil, first
    return numbers


def instead(was: float, now: float) -> Callable[[Array], Array]:
    return lambda values: np.where(values == was, now, values)


MACHINES = {
    "loses the smallest number": machine(instead(5e-324, 0.0)),
    "loses a subnormal result": machine(instead(2.0**-1023, 0.0)),
    "loses scalars": machine(lambda values: values, 0.0),
    "rounds ties up": machine(lambda v: np.where((v == 1.0) & (np.arange(5) == 2), 1.0 + 2.0**-52, v)),
    "rounds down above one": machine(instead(1.0 + 2.0**-52, 1.0)),
    "rounds down below minus one": machine(instead(-1.0, -1.0 - 2.0**-52)),
}


@pytest.mark.parametrize("name", MACHINES)
def test_every_way_to_round_otherwise_is_seen(name, monkeypatch):
    require_ieee()
    monkeypatch.setattr(rounding, "_TINY", machine(lambda values: values))
    require_ieee()
    monkeypatch.setattr(rounding, "_TINY", MACHINES[name])
    with pytest.raises(FloatEnvironment, match="rounds in an unusual direction"):
        require_ieee()


@pytest.mark.skipif(platform.machine() != "x86_64" or platform.system() != "Linux", reason="modes are named for x86")
@pytest.mark.parametrize("mode", [0x400, 0x800, 0xC00], ids=["down", "up", "to zero"])
def test_other_rounding_modes_of_the_processor_are_refused(mode):
    library = ctypes.CDLL("libm.so.6")
    assert library.fesetround(mode) == 0
    try:
        refused = _refusal()
    finally:
        library.fesetround(0)
    assert "unusual direction" in refused
    assert _refusal() == ""


def _refusal() -> str:
    try:
        require_ieee()
    except FloatEnvironment as error:
        return str(error)
    return ""


# -------------------------------------------------------------------------------------------------------------- scalars


def some_numbers(count: int, seed: int = 0) -> list[float]:
    rng = RNG(seed)
    return [0.0, 1.0, 0.1, 1.0 + 2.0**-52, 2.0**-60, 3.0] + [
        float(x) for x in rng.uniform(0.5, 1.0, count) * 2.0 ** rng.integers(-60, 60, count)
    ]


def test_pairs_round_up_and_by_no_more_than_two_steps():
    for x, y in itertools.product(some_numbers(25), some_numbers(25, 1)):
        for found, truth in (
            (add_up(x, y), Fraction(x) + Fraction(y)),
            (mul_up(x, y), Fraction(x) * Fraction(y)),
            (div_up(x, y or 1.0), Fraction(x) / Fraction(y or 1.0)),
        ):
            assert truth <= frac(found) <= truth * (1 + 4 * U) + Fraction(5e-324)
        assert Fraction(x) <= frac(sqrt_up(x)) ** 2 <= Fraction(x) * (1 + 4 * U) ** 2


def test_signed_sums_round_up():
    values = (-1.0, 1.0, 2.0**-60, -(2.0**-60), 0.1, -0.1, 3.0)
    for x, y in itertools.product(values, values):
        assert frac(add_up(x, y)) >= Fraction(x) + Fraction(y)


def test_what_is_exact_stays_exact():
    for x in (0.1, 1.0, 3.0, 5e-324, 1e308):
        assert add_up(x, 0.0) == add_up(0.0, x) == x
        assert mul_up(x, 1.0) == mul_up(1.0, x) == x
        assert mul_up(x, 0.0) == mul_up(0.0, x) == 0.0
        assert round_up(Fraction(x)) == round_down(Fraction(x)) == x
        assert scale_up(x, 0) == x
    assert sqrt_up(0.0) == 0.0
    assert scale_up(1.0, 3) == 8.0
    assert scale_up(0.0, 5) == 0.0
    assert scale_up(math.inf, -5) == math.inf
    assert sum_up(np.array([[0.1], [0.7]]), 1).tolist() == [0.1, 0.7]


def test_fractions_round_to_their_neighbours_on_either_side():
    for value in (Fraction(1, 3), Fraction(-1, 3), Fraction(2, 3), Fraction(1, 10), Fraction(-1, 10)):
        below, up = round_down(value), round_up(value)
        assert below < value < up == math.nextafter(below, math.inf)
    for huge in (Fraction(10) ** 400, Fraction(LARGEST) + 2**970):
        assert (round_up(huge), round_down(huge)) == (math.inf, LARGEST)
        assert (round_up(-huge), round_down(-huge)) == (-LARGEST, -math.inf)


@pytest.mark.parametrize("value", [0.5, 0.75, 0.1, 1.0 - 2.0**-53])
def test_scaling_rounds_up_among_the_smallest_numbers(value):
    for exponent in (-1080, -1074, -1050, -3, 7, 1000):
        truth = Fraction(value) * Fraction(2) ** exponent
        assert scale_up(value, exponent) == round_up(truth)
    assert scale_up(0.5, 1025) == math.inf


def test_the_gammas_count_two_roundings_more_and_round_up():
    for count in (0, 1, 2, 7, 1000, 10**6 + 1):
        for bound, unit, digits in ((gamma(count), U, 50), (single.gamma(count), U32, 20)):
            assert higham(count + 2, unit) <= Fraction(bound) <= higham(count + 2, unit) * (1 + Fraction(1, 2**digits))
    assert gamma(2**53 - 3) == 2.0**53 - 1.0
    assert gamma(2**53 - 2) == gamma(2**60) == math.inf
    assert single.gamma(2**24 - 3) == 2.0**24 - 1.0
    assert single.gamma(2**24 - 2) == single.gamma(2**24 - 1) == single.gamma(2**25) == math.inf


# ----------------------------------------------------------------------------------------------------------------- sums


def test_sums_along_axes_round_up():
    A = RNG(1).uniform(0.0, 1.0, (3, 4, 50))
    E = exactly(A)
    for axis in (0, 1, 2, -1, (0, 2), (-2, -1)):
        for found, truth in (
            (sum_up(A, axis), E.sum(axis=axis)),
            (sum_of_squares_up(A - 0.5, axis), (exactly(A - 0.5) ** 2).sum(axis=axis)),
        ):
            assert found.shape == truth.shape
            assert all(above(x, y, 1e-13) for x, y in zip(found.flat, truth.flat, strict=True))


def test_sums_that_all_round_down_are_rounded_up():
    for count in (2, 3, 7):
        terms = np.array([1.0] + [2.0**-54] * count)
        assert frac(sum_up(terms, 0)) >= exactly(terms).sum()
    for terms in (np.ones(3), -np.ones(4), np.array([1.0, 0.0]), np.array([-0.5])):
        assert above(sum_of_squares_up(terms, 0), (exactly(terms) ** 2).sum(), 1e-14)


def test_squares_of_zeros_are_zero_and_those_that_underflow_are_not():
    terms = np.array([[0.0, 0.0, 0.0], [1e-170, 0.0, 2e-170], [-(2.0**-537), 2.0**-537, 0.0], [-1.0, -1.0, -1.0]])
    found = sum_of_squares_up(terms, 1)
    assert found[0] == 0.0
    for bound, square in zip(found[1:], (exactly(terms) ** 2).sum(axis=1)[1:], strict=True):
        assert square <= frac(bound) <= square * (1 + Fraction(1e-14)) + 3 * Fraction(2.0**-1020)


def test_the_largest_sum_is_that_of_the_row_whose_rounded_sum_is_smaller():
    # Numpy's sums are 1 and 1 + 6u; the true ones 1 + 7u and 1 + 6u.
    rows = np.array([[1.0] + [2.0**-53] * 7, [1.0 + 6 * 2.0**-53] + [0.0] * 7])
    for some in (rows, rows[::-1], np.vstack([rows, np.zeros((40, 8))])):
        assert largest_sum_up(some) == 1.0 + 8 * 2.0**-53
    assert largest_sum_up(np.tile(rows, (50, 1))) == 1.0 + 8 * 2.0**-53  # more columns of ones than rows


def test_largest_sums_are_correctly_rounded():
    rng = RNG(2)
    for shape in ((1, 1), (5, 60), (30, 20), (80, 2)):
        A = rng.uniform(0.0, 1.0, shape)
        assert largest_sum_up(A) == round_up(max(exactly(A).sum(axis=1)))
    assert largest_sum_up(np.array([[3.0, 4.0], [1.0, 2.0]])) == 7.0
    assert largest_sum_up(np.array([[0.25]])) == 0.25
    assert largest_sum_up(np.zeros((3, 2))) == 0.0
    assert largest_sum_up(np.zeros((0, 2))) == largest_sum_up(np.zeros((2, 0))) == 0.0
    assert largest_sum_up(np.array([[LARGEST, 0.5]])) == math.inf
    assert largest_sum_up(np.array([[1.7e308, 1.7e308, 1.0]])) == math.inf


# -------------------------------------------------------------------------------------------------------------- entries


def test_the_largest_magnitude_has_either_sign():
    assert largest_magnitude(np.array([[-3.0, 2.0]])) == 3.0
    assert largest_magnitude(np.array([[-3.0, 4.0]])) == 4.0
    assert largest_magnitude(np.array([-2.0, -5.0])) == 5.0
    assert largest_magnitude(np.zeros((0, 3))) == 0.0
    assert math.isnan(largest_magnitude(np.array([1.0, math.nan])))


def test_only_numbers_are_finite():
    for fine in (0.0, 1.0, LARGEST):
        require_finite(fine)
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(NotFinite, match="then it has no norm"):
            require_finite(bad)


def test_entries_that_float64_represents_are_taken_as_they_are():
    for dtype in (np.float16, np.float32, np.float64):
        values = np.array([[1.5, -2.0]], dtype)
        assert as_real(values).dtype == dtype
        assert as_real(values, 2).tolist() == [[1.5, -2.0]]
    for integers in ([107], [-107], [2**53 - 1], [-(2**53) + 1], [-5, 2**53 - 1], [3, 4], []):
        found = as_real(np.array(integers, np.int64))
        assert found.dtype == np.float64
        assert found.tolist() == integers
    assert as_real(np.array([2, 200], np.uint8)).tolist() == [2.0, 200.0]
    assert as_real(np.ones((2, 1, 3)), 3).shape == (2, 1, 3)


def test_entries_that_it_does_not_represent_are_refused():
    for integers in ([2**53], [-(2**53)], [0, 2**53 + 1], [-(2**53) - 1, 0], [2**60], [-(2**60)]):
        with pytest.raises(InvalidInput, match="an integer entry is"):
            as_real(np.array(integers, np.int64))
    wide = [np.ones(2, np.longdouble)] if np.dtype(np.longdouble).itemsize > 8 else []
    for values in (np.ones(2, bool), np.ones(2, np.complex64), np.ones(2, complex), np.array(["a"]), *wide):
        with pytest.raises(InvalidInput, match="real numbers of at most 64 bits"):
            as_real(values)
    for ndim in (1, 3):
        with pytest.raises(InvalidInput, match=f"expected an array of {ndim} dimensions"):
            as_real(np.ones((2, 2)), ndim)
