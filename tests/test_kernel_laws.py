"""The inner functions of the kernel, each against exact arithmetic, where the slack of a whole bound hides nothing.

Error terms are held to their own counts: with exact inputs nothing else is left of a bound. Where roundings are too
small to be seen, they are made coarser, or a machine that flushes is asked.
"""

import ctypes
import itertools
import math
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction

import numpy as np
import pytest
import torch

from lipcert.errors import FloatEnvironment, InvalidInput, NotFinite
from lipcert.kernel import blockwise, psd, rounding, single
from lipcert.kernel.backend import Backend
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
from lipcert.kernel.single import Oracles

U, U32 = Fraction(1, 2**53), Fraction(1, 2**24)
LARGEST = 1.7976931348623157e308
RNG = np.random.default_rng

Array = np.ndarray


def frac(value: object) -> Fraction:
    return Fraction(float(np.asarray(value).reshape(())))


def exact(A: Array) -> Array:
    """The same numbers as fractions."""
    return np.vectorize(lambda x: Fraction(float(x)), otypes=[object])(A)


def higham(k: int, unit: Fraction) -> Fraction:
    return k * unit / (1 - k * unit)


def above(bound: object, truth: Fraction, slack: float = 1e-12) -> bool:
    return truth <= frac(bound) <= truth * (1 + Fraction(slack))


def root_above(bound: object, square: Fraction, slack: float = 1e-12) -> bool:
    """As `above` for the root of a fraction."""
    return square <= frac(bound) ** 2 <= square * (1 + Fraction(slack)) ** 2


@contextmanager
def flushing() -> Iterator[None]:
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormal numbers")
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


# ------------------------------------------------------------------------------------------------ rounding: the machine


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


# ------------------------------------------------------------------------------------------------ rounding: scalars


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
    assert single.gamma(2**24 - 3) == 2.0**24 - 1.0
    assert single.gamma(2**24 - 2) == single.gamma(2**24 - 1) == single.gamma(2**25) == math.inf


# ------------------------------------------------------------------------------------------------ rounding: sums


def test_sums_along_axes_round_up():
    A = RNG(1).uniform(0.0, 1.0, (3, 4, 50))
    E = exact(A)
    for axis in (0, 1, 2, -1, (0, 2), (-2, -1)):
        for found, truth in (
            (sum_up(A, axis), E.sum(axis=axis)),
            (sum_of_squares_up(A - 0.5, axis), (exact(A - 0.5) ** 2).sum(axis=axis)),
        ):
            assert found.shape == truth.shape
            assert all(above(x, y, 1e-13) for x, y in zip(found.flat, truth.flat, strict=True))


def test_sums_that_all_round_down_are_rounded_up():
    for count in (2, 3, 7):
        terms = np.array([1.0] + [2.0**-54] * count)
        assert frac(sum_up(terms, 0)) >= exact(terms).sum()
    for terms in (np.ones(3), -np.ones(4), np.array([1.0, 0.0]), np.array([-0.5])):
        assert above(sum_of_squares_up(terms, 0), (exact(terms) ** 2).sum(), 1e-14)


def test_squares_of_zeros_are_zero_and_those_that_underflow_are_not():
    terms = np.array([[0.0, 0.0, 0.0], [1e-170, 0.0, 2e-170], [-(2.0**-537), 2.0**-537, 0.0], [-1.0, -1.0, -1.0]])
    found = sum_of_squares_up(terms, 1)
    assert found[0] == 0.0
    for bound, square in zip(found[1:], (exact(terms) ** 2).sum(axis=1)[1:], strict=True):
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
        assert largest_sum_up(A) == round_up(max(exact(A).sum(axis=1)))
    assert largest_sum_up(np.array([[3.0, 4.0], [1.0, 2.0]])) == 7.0
    assert largest_sum_up(np.array([[0.25]])) == 0.25
    assert largest_sum_up(np.zeros((3, 2))) == 0.0
    assert largest_sum_up(np.zeros((0, 2))) == largest_sum_up(np.zeros((2, 0))) == 0.0
    assert largest_sum_up(np.array([[LARGEST, 0.5]])) == math.inf
    assert largest_sum_up(np.array([[1.7e308, 1.7e308, 1.0]])) == math.inf


# ------------------------------------------------------------------------------------------------ rounding: entries


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


# ------------------------------------------------------------------------------------------------ stacks of matrices


def integers(rng: np.random.Generator, *shape: int) -> Array:
    return rng.integers(-4, 5, shape).astype(float)


def stacks(seed: int, *shape: int) -> tuple[tuple[Array, ...], ...]:
    """A real stack and a complex one, of small integers."""
    rng = RNG(seed)
    return (integers(rng, *shape),), (integers(rng, *shape), integers(rng, *shape))


def whole(stack: tuple[Array, ...]) -> Array:
    return stack[0].astype(complex) + (1j * stack[1] if len(stack) == 2 else 0.0)


def test_the_magnitude_adds_what_the_parts_are_without_sign():
    assert psd.magnitude((np.array([-2.0, 3.0]),)).tolist() == [2.0, 3.0]
    assert psd.magnitude((np.array([-2.0, 3.0, 1.0]), np.array([5.0, -7.0, -1.0]))).tolist() == [7.0, 10.0, 2.0]


@pytest.mark.parametrize("parts", [1, 2])
def test_the_gram_matrix_is_the_adjoint_times_the_matrix(parts):
    stack = stacks(3, 2, 3, 4)[parts - 1]
    F = whole(stack)
    found = psd.gram(stack, np.matmul)
    assert len(found) == parts
    assert np.array_equal(whole(found), F.conj().swapaxes(1, 2) @ F)


def test_an_entry_of_it_suffers_a_rounding_for_every_product():
    for rows, columns in ((1, 9), (12, 1), (40, 3)):
        part = np.zeros((2, rows, columns))
        assert rows <= psd.gram_terms((part,)) <= rows + 9
        assert 2 * rows + 2 <= psd.gram_terms((part, part)) <= 2 * rows + 9  # the modulus has two roundings of its own


@pytest.mark.parametrize(("rows", "columns"), [(1, 3000), (3000, 1), (7, 5)])
def test_a_power_step_may_be_as_wrong_as_its_sums_allow(rows, columns):
    # A matrix of ones, every entry of whose product has suffered all that it may.
    kept = (1 - higham(rows, U)) * (1 - higham(columns, U))
    short = -round_up(-Fraction(rows) * kept)

    def apply(x: Array) -> Array:
        return np.nextafter(short * x.sum(axis=1, keepdims=True), 0.0) * np.ones_like(x)

    found = psd.collatz_wielandt(apply, np.ones((2, columns)), rows)
    assert found.shape == (2,)
    assert all(above(bound, Fraction(rows * columns), 1e-11) for bound in found)


SIZES = [(2, 3, 4), (4, 5, 2), (3, 1, 6), (1, 6, 1), (2, 3, 3)]


@pytest.mark.parametrize("shape", SIZES, ids=str)
@pytest.mark.parametrize("scale", [1.0, 2.0**-12, 2.0**-30, 2.0**60])
def test_the_norm_of_a_positive_matrix_of_rank_one_is_found(shape, scale):
    # After one step the vector is the right one: whatever is wrong with the next steps shows.
    rng = RNG(4)
    batch, rows, columns = shape
    v, w = rng.integers(1, 9, (batch, rows, 1)), rng.integers(1, 30, (batch, 1, columns))
    v[0] *= 4096  # matrices of one stack differ in size
    truths = [int(x) for x in (v * v).sum(axis=(1, 2)) * (w * w).sum(axis=(1, 2))]
    A = v * w * scale
    signed = A * rng.choice([-1.0, 1.0], A.shape)
    part = np.where(rng.random(A.shape) < 0.5, signed / 2.0, signed / 4.0)
    rest = (A - np.abs(part)) * rng.choice([-1.0, 1.0], A.shape)
    for stack in ((signed,), (part, rest)):
        found = psd.squared_norm_of_magnitude(stack)
        assert found.shape == (batch,)
        for bound, truth in zip(found, truths, strict=True):
            assert above(bound, truth * Fraction(scale) ** 2)
    if scale <= 1.0:
        cut = max(1, rows // 2)
        single_precision = A.astype(np.float32)
        found = single.squared_norm([single_precision[:, :cut], single_precision[:, cut:]][: 1 if rows == 1 else 2])
        for bound, truth in zip(found, truths, strict=True):
            square = truth * Fraction(scale) ** 2
            assert square <= frac(bound) <= square * (1 + Fraction(1, 1000)) + Fraction(2.0**-56)


def two_clusters() -> tuple[Array, int]:
    """``A`` whose largest row sum belongs to a part of smaller norm than another: norms 2.8 and 4, squared."""
    A = np.zeros((3, 23))
    A[0, 0], A[0, 1:21] = 1.0, 0.3
    A[1:, 21:] = 1.0
    return A[None], 4


def test_the_peak_of_the_vector_is_not_where_the_norm_is():
    A, truth = two_clusters()
    for found in (psd.squared_norm_of_magnitude((A,)), single.squared_norm([A.astype(np.float32)])):
        assert truth <= frac(found[0])


def test_norms_of_matrices_with_zeros_in_them():
    A = np.array([[[0.0, 3.0], [0.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]])
    for found in (psd.squared_norm_of_magnitude((A,)), single.squared_norm([A.astype(np.float32)])):
        assert above(found[0], Fraction(25), 1e-4)
        assert 0.0 <= found[1] < 1e-20


def test_squares_that_underflow_count_in_norms():
    for shape in ((1, 3, 3), (1, 2, 5), (1, 5, 2)):
        A = np.full(shape, 1e-200)
        assert frac(psd.squared_norm_of_magnitude((A,))[0]) >= A.size * Fraction(1e-200) ** 2
        tiny = np.full(shape, 2.0**-76, np.float32)
        assert A.size * Fraction(2.0**-152) <= frac(single.squared_norm([tiny])[0]) <= Fraction(2.0**-60)


def test_the_residuals_own_rounding_is_in_its_norm(monkeypatch):
    def exactly(terms: Array, axis: tuple[int, ...]) -> Array:
        return np.vectorize(round_up, otypes=[float])((exact(terms) ** 2).sum(axis=axis))

    real, complex_ = stacks(5, 2, 3, 4)
    for counted in (sum_of_squares_up, exactly):
        monkeypatch.setattr(psd, "sum_of_squares_up", counted)
        for stack in (real, complex_, (np.ones((2, 1, 1)),)):
            found = psd.residual_norm(stack)
            truth = (exact(stack[0]) ** 2).sum(axis=(1, 2)) + sum((exact(p) ** 2).sum(axis=(1, 2)) for p in stack[1:])
            assert found.shape == (2,)
            for bound, square in zip(found, truth, strict=True):
                assert root_above(bound, square * (1 + U) ** 2)


@pytest.mark.parametrize("parts", [1, 2])
def test_the_products_of_a_factor_have_the_error_that_is_counted(parts):
    for rows, columns in ((50, 2), (2, 50)):
        ones = np.ones((2, rows, columns))
        terms = rows if parts == 1 else 2 * rows + 2
        for bound in psd.product_error((ones, -ones)[:parts]):
            assert above(bound, higham(terms, U) * rows * columns * parts**2, 9.0 / terms)


def test_what_is_flushed_from_a_factor_is_below_its_own_largest_entry():
    edge = 2.0**-400
    factor = np.array([[[1.0, -0.5, edge], [-edge, edge * 0.75, -edge * 0.75]], [[edge, 0.0, -edge / 8], [edge] * 3]])
    kept = np.array([[[1.0, -0.5, edge], [-edge, 0.0, 0.0]], [[edge, 0.0, -edge / 8], [edge] * 3]])
    assert np.array_equal(psd._flushed((factor,))[0], kept)
    real, imaginary = psd._flushed((factor, 8.0 * factor[:, ::-1]))  # the largest is now 8 and more
    assert np.array_equal(real[0], [[1.0, -0.5, 0.0], [0.0, 0.0, 0.0]])
    assert np.array_equal(real[1], kept[1])
    assert np.array_equal(imaginary[0], [[-8.0 * edge, 0.0, 0.0], [8.0, -4.0, 8.0 * edge]])


def test_a_defect_is_the_residual_and_what_the_product_may_hide():
    for parts in (1, 2):
        factor = stacks(6, 2, 3, 5)[parts - 1]
        F = whole(factor)
        product = F.conj().swapaxes(1, 2) @ F
        error = RNG(7).integers(-3, 4, (2, 5, 5))
        H = product + error + error.swapaxes(1, 2)
        given = (H.real.copy(), H.imag.copy())[:parts]
        square = ((error + error.swapaxes(1, 2)) ** 2).sum(axis=(1, 2))
        found = psd.psd_defect(given, backend=Backend(cholesky=lambda _, R=factor: R))
        for bound, truth in zip(found, square.tolist(), strict=True):
            assert root_above(bound, Fraction(truth))
        given = (product.real.copy(), product.imag.copy())[:parts]
        hidden = psd.psd_defect(given, backend=Backend(cholesky=lambda _, R=factor: R))
        for bound, least in zip(hidden, psd.product_error(factor), strict=True):
            assert above(bound, frac(least), 1e-9)
    for useless in (None, (np.full((2, 3, 5), math.nan),)):
        with np.errstate(all="ignore"):
            found = psd.psd_defect((np.ones((2, 5, 5)),), backend=Backend(cholesky=lambda _, R=useless: R))
        assert found.tolist() == [math.inf, math.inf]


def test_squares_just_below_the_smallest_number_count_in_norms():
    A = np.full((1, 9, 1), 0.7 * 2.0**-537)  # every square is 0.49 times the smallest number
    assert frac(psd.squared_norm_of_magnitude((A,))[0]) >= 9 * Fraction(0.7 * 2.0**-537) ** 2


@pytest.mark.parametrize("defect", [0.0, 2.0**-60, 0.3])
def test_a_shifted_bound_has_the_shift_the_defect_and_the_rounding_of_the_diagonal(defect, monkeypatch):
    monkeypatch.setattr(psd, "psd_defect", lambda H, backend: np.array([0.0, defect]))
    for entries, c in (([-1.0, 0.5, 2.0], 1.0), ([2.0**20, 2.0**19, 2.0**20], 1.0), ([0.1, 0.2, 0.3], 0.7)):
        G = np.stack([np.diag(entries), np.diag(entries)])
        largest = max(abs(Fraction(c) - Fraction(x)) for x in entries)
        for parts in ((G,), (G, np.zeros_like(G))):
            assert above(psd._shifted_bound(parts, c, Backend()), Fraction(c) + Fraction(defect) + U * largest)
    monkeypatch.setattr(psd, "psd_defect", lambda H, backend: np.array([math.nan]))
    assert psd._shifted_bound((np.ones((1, 1, 1)),), 1.0, Backend()) == math.inf


def test_a_shifted_bound_is_above_the_largest_eigenvalue():
    G = np.array([[[1.0, 2.0], [2.0, -4.0]], [[5.0, 0.0], [0.0, -7.0]]])
    for c in (5.0 + 1e-6, 6.0):
        assert above(psd._shifted_bound((G,), c, Backend()), Fraction(c))
    assert psd._shifted_bound((G,), 4.9, Backend()) == math.inf
    assert psd._shifted_bound((G, np.zeros_like(G)), 4.9, Backend(cholesky=lambda H: (0.0 * H[0],) * 2)) >= 5.0


# ------------------------------------------------------------------------------------------------ block by block

ORDER = ["a", "b", "c"]
WIDTHS = {"a": 2, "b": 3, "c": 4}


def block_rows(rng: np.random.Generator, batch: tuple[int, ...] = ()) -> list[dict[str, Array]]:
    """Rows of 5, 1 and 3, of which not all have all the blocks."""
    having = ((5, "abc"), (1, "ac"), (3, "b"), (2, "cb"))
    return [{name: integers(rng, *batch, height, WIDTHS[name]) for name in names} for height, names in having]


def written_out(rows: list[dict[str, Array]]) -> Array:
    heights = [next(iter(row.values())).shape[-2] for row in rows]
    return np.block(
        [[row.get(name, np.zeros((h, WIDTHS[name]))) for name in ORDER] for h, row in zip(heights, rows, strict=True)]
    )


def blocks_of(H: Array) -> dict[tuple[str, str], Array]:
    ends = np.cumsum([0, *WIDTHS.values()])
    place = {name: slice(ends[i], ends[i + 1]) for i, name in enumerate(ORDER)}
    pairs = [(a, b) for i, a in enumerate(ORDER) for b in ORDER[i:]]
    return {(a, b): H[..., place[a], place[b]] for a, b in pairs}


def test_the_size_of_block_rows_is_their_largest_row_sum_times_their_largest_column_sum():
    for seed in range(20):
        rows = block_rows(RNG(seed))
        F = np.abs(written_out(rows))
        assert above(blockwise._size(rows, 9), Fraction(F.sum(axis=1).max() * F.sum(axis=0).max()))
    assert above(blockwise._size([{"a": np.full((1, 1), -1.0)}], 1), Fraction(1))
    for n in (1, 2, 5, 40):
        row = {"a": np.full((n, n), 0.1)}
        assert above(blockwise._size([row], n), (n * Fraction(0.1)) ** 2)


def test_block_rows_in_a_stack_have_one_size_for_all():
    rows = block_rows(RNG(3), (2,))
    each = [np.abs(written_out([{name: block[i] for name, block in row.items()} for row in rows])) for i in (0, 1)]
    truth = max(F.sum(axis=1).max() for F in each) * max(F.sum(axis=0).max() for F in each)
    assert above(blockwise._size(rows, 9), Fraction(truth))


def test_what_block_rows_leave_of_a_matrix_is_its_defect(monkeypatch):
    rng = RNG(8)
    monkeypatch.setattr(blockwise, "_size", lambda rows, n: 0.0)
    for fill_in in (False, True):
        rows = block_rows(rng)
        F = written_out(rows)
        monkeypatch.setattr(blockwise, "_factor", lambda H, order, rows=rows: rows)
        E = integers(rng, 9, 9)
        H = blocks_of(F.T @ F + E + E.T)
        if fill_in:
            del H["a", "b"], H["b", "c"]
        given = np.zeros((9, 9))
        for (a, b), block in H.items():
            at = [sum(list(WIDTHS.values())[: ORDER.index(name)]) for name in (a, b)]
            given[at[0] : at[0] + WIDTHS[a], at[1] : at[1] + WIDTHS[b]] = block
            given[at[1] : at[1] + WIDTHS[b], at[0] : at[0] + WIDTHS[a]] = block.T
        left = int(((given - F.T @ F) ** 2).sum())
        assert root_above(blockwise.blockwise_defect(H, ORDER), Fraction(left))


def test_every_product_of_block_rows_counts_as_often_as_it_rounds(monkeypatch):
    # Nothing is left over, so that all of the defect is for the products: so many roundings of the size.
    H = {("a", "a"): np.full((2, 2), 33.0)}
    rows = [{"a": np.ones((3, 2))} for _ in range(11)]
    monkeypatch.setattr(blockwise, "_factor", lambda H, order: rows)
    monkeypatch.setattr(blockwise, "_size", lambda rows, n: 1.0)
    assert above(blockwise.blockwise_defect(H, ["a"]), higham(11 * (3 + 1), U), 8.0 / 44)
    fill = {("a", "a"): 33.0 * np.ones((2, 2)), ("b", "b"): 33.0 * np.ones((1, 1))}
    rows[:] = [{"a": np.ones((3, 2)), "b": np.zeros((3, 1))} for _ in range(11)]
    fill["b", "b"][:] = 0.0
    assert above(blockwise.blockwise_defect(fill, ["a", "b"]), higham(11 * (3 + 1), U), 8.0 / 44)


def test_the_last_subtraction_of_a_block_is_paid_for(monkeypatch):
    def exactly(terms: Array, axis: tuple[int, ...]) -> Array:
        return np.vectorize(round_up, otypes=[float])((exact(terms) ** 2).sum(axis=axis))

    monkeypatch.setattr(blockwise, "_factor", lambda H, order: [{"a": np.zeros((1, 1))}])
    for counted in (sum_of_squares_up, exactly):
        monkeypatch.setattr(blockwise, "sum_of_squares_up", counted)
        assert root_above(blockwise.blockwise_defect({("a", "a"): np.ones((1, 1))}, ["a"]), (1 + U) ** 2, 1e-14)


def test_what_a_matrix_loses_to_many_block_rows_is_in_its_defect(monkeypatch):
    # The least eigenvalue of the matrix is -2. Every product is half an ulp, of which a subtraction makes a whole one
    # beside the diagonal and nothing on it: what is left of the matrix is smaller than the matrix by one ulp for each.
    f = (0.51 * 2.0**-53) ** 0.5
    rows = [{"a": np.full((1, 1), f), "b": np.full((1, 1), -f)} for _ in range(100)]
    monkeypatch.setattr(blockwise, "_factor", lambda H, order: rows)
    minus = np.full((1, 1), -1.0)
    assert blockwise.blockwise_defect({("a", "a"): minus, ("a", "b"): minus, ("b", "b"): minus}, ["a", "b"]) >= 2.0


def test_what_underflow_adds_to_a_product_in_blocks_is_in_its_defect(monkeypatch):
    # In units of the smallest number the products 0.4, 0.75 and 1.4 are 0, 1 and 1, of which no semidefinite matrix is.
    smallest, ones = 5e-324, np.ones(20)
    f = np.concatenate([0.632 * ones, 1.18 * ones])[None] * 2.0**-537
    H = smallest * np.block([[np.zeros((20, 20)), np.ones((20, 20))], [np.ones((20, 20)), np.ones((20, 20))]])
    assert np.array_equal(f.T @ f, H)
    monkeypatch.setattr(blockwise, "_factor", lambda H, order: [{"a": f}])
    assert blockwise.blockwise_defect({("a", "a"): H}, ["a"]) >= 13 * smallest  # 20 (1 - sqrt 5) / 2 = -12.4


def test_the_squares_of_many_blocks_are_rounded_up(monkeypatch):
    names = [f"{i}" for i in range(14)]
    H = {(a, b): np.full((1, 1), 0.99 * 2.0**-27) for i, a in enumerate(names) for b in names[i:]}
    H["0", "0"] = np.ones((1, 1))  # beside it twice the square of another is less than half an ulp
    monkeypatch.setattr(blockwise, "_factor", lambda H, order: [{"0": np.zeros((1, 1))}])
    square = 1 + (14**2 - 1) * Fraction(0.99 * 2.0**-27) ** 2
    assert root_above(blockwise.blockwise_defect(H, names), square)


def test_a_stack_of_one_matrix_in_blocks_is_that_matrix():
    rng = RNG(9)
    R = rng.standard_normal((9, 9))
    H = blocks_of(R.T @ R + 9.0 * np.eye(9))
    alone = blockwise.blockwise_defect(H, ORDER)
    assert 0.0 < alone < 1e-10
    assert blockwise.blockwise_defect({pair: block[None] for pair, block in H.items()}, ORDER) == alone
    worse = {pair: np.stack([block, 4.0 * block]) for pair, block in H.items()}
    assert 3.0 * alone < blockwise.blockwise_defect(worse, ORDER) < 5.0 * alone
    assert blockwise.blockwise_defect({pair: -block for pair, block in H.items()}, ORDER) == math.inf


def test_a_block_factor_that_is_no_number_proves_nothing(monkeypatch):
    monkeypatch.setattr(blockwise, "_factor", lambda H, order: [{"a": np.full((1, 1), math.nan)}])
    with np.errstate(all="ignore"):
        assert blockwise.blockwise_defect({("a", "a"): np.ones((1, 1))}, ["a"]) == math.inf


# ------------------------------------------------------------------------------------------------ single precision


def lower_factor(H: Array) -> Array:
    try:
        return np.linalg.cholesky(H)
    except np.linalg.LinAlgError:
        return np.full_like(H, np.nan)


HONEST = Oracles(lower_factor, np.linalg.solve)


def floats(stack: tuple[Array, ...]) -> tuple[Array, ...]:
    return tuple(part.astype(np.float32) for part in stack)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "exponent", [0, 3, 98, 99, 100, 101, 127, -98, -99, -100, -101, -126, -140, 1023, -1023, -1060]
)
def test_a_matrix_is_scaled_to_one_and_rounded_by_no_more_than_is_stated(dtype, exponent):
    if dtype is np.float32 and not -149 < exponent < 128:
        pytest.skip("float32 does not reach so far")
    A = (np.ldexp(RNG(10).uniform(-1.0, 1.0, (3, 5)), exponent)).astype(dtype)
    A[1, 2], A[0, 1], A[2, 2] = -np.ldexp(0.9, exponent), np.ldexp(0.4, exponent - 30), 0.0
    B, e = single.rounded(A, float(np.max(np.abs(A))))
    assert B.dtype == np.float32
    assert 0.49 < np.max(np.abs(B)) <= 1.0
    error = abs(exact(A) / Fraction(2) ** e - exact(B))
    inexact = Fraction(101, 100) * U32 if dtype is np.float64 else 0
    assert np.all(error <= inexact * abs(exact(B)) + Fraction(2.0**-126))
    if exponent == 0:
        assert np.any(error > 0) == (dtype is np.float64)


@pytest.mark.parametrize("m", [1, 3, 4, 5, 17, 30, 101])
@pytest.mark.parametrize("n", [1, 3, 4, 11])
def test_a_gram_matrix_in_pieces_is_the_gram_matrix_and_counts_its_roundings(m, n, monkeypatch):
    monkeypatch.setattr(single, "_BLOCK", 3)
    monkeypatch.setattr(single, "_ROWS", 4)
    B = integers(RNG(11), m, n)
    G, terms = single.gram(B.astype(np.float32))
    assert np.array_equal(G, B.T @ B)
    rows = max(4, math.isqrt(m))
    pieces = -(-m // rows)
    assert min(rows, m) + pieces - 1 <= terms <= rows + pieces


@pytest.mark.parametrize("blocks", [1, 3])
def test_a_power_step_counts_rows_and_columns_of_all_panels(blocks, monkeypatch):
    # With coarse roundings, of which only the count is known.
    monkeypatch.setattr(single, "gamma", lambda count: count * 2.0**-12)
    for rows, columns in ((2, 60), (60, 2), (9, 7)):
        panels = [np.ones((1, rows, columns), np.float32) for _ in range(blocks)]
        needed = 1 / ((1 - Fraction(blocks * rows, 2**12)) * (1 - Fraction(columns, 2**12)))
        assert above(single.squared_norm(panels)[0], blocks * rows * columns * needed, 0.3)


def test_norms_of_panels_with_zeros_in_front():
    rng = RNG(12)
    panels = [np.abs(integers(rng, 2, rows, columns)) for rows, columns in ((3, 7), (2, 4), (1, 1))]
    A = np.concatenate([np.pad(p, ((0, 0), (0, 0), (7 - p.shape[2], 0))) for p in panels], axis=1)
    truth = np.linalg.norm(A, 2, axis=(1, 2)) ** 2
    found = single.squared_norm(list(floats(tuple(panels))))
    assert np.all((truth * (1 - 1e-12) <= found) & (found <= 1.1 * truth))


@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (3, 3)], ids=str)
def test_what_flushing_takes_is_paid_for(shape):
    value = np.float32(0.99 * 2.0**-63)  # its square is just below the smallest normal number
    A = np.full((1, *shape), value)
    truth = A.size * frac(value) ** 2
    with flushing():
        found = single.squared_norm([A])[0], single.squares_up(A)[0]
    assert all(frac(bound) >= truth for bound in found)
    assert single._LOST >= np.finfo(np.float32).tiny
    for operations in (1, 10, 10**6):
        assert operations * 2.0**-126 <= single.lost(operations) <= operations * 2.0**-120


@pytest.mark.parametrize("shape", [(3, 2, 5), (1, 40, 1), (2, 1, 40), (4, 3, 3)], ids=str)
def test_sums_of_squares_in_single_precision(shape):
    for part in (integers(RNG(13), *shape), np.ones(shape), RNG(14).uniform(-1.0, 1.0, shape)):
        given = part.astype(np.float32)
        truth = (exact(given) ** 2).sum(axis=(1, 2))
        found = single.squares_up(given)
        assert found.shape == (shape[0],)
        assert all(above(bound, square, 1e-4) for bound, square in zip(found, truth, strict=True) if square)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_product_with_an_adjoint(parts):
    left, same, other = (floats(stacks(seed, 2, 3, n)[parts - 1]) for seed, n in ((15, 4), (16, 4), (17, 5)))
    wide = tuple(part[:, :, :4] for part in other)
    for a, b in ((left, left), (left, same), (left, other), (other, left), (other, wide), (wide, other)):
        found = single._adjoint_product(a, b)
        assert len(found) == parts
        assert np.array_equal(whole(found), whole(a).conj().swapaxes(1, 2) @ whole(b))
    assert np.array_equal(single.joined(left), whole(left))
    assert single.joined(left).dtype == (np.float32 if parts == 1 else np.complex64)


def test_the_size_of_a_factor_is_that_of_its_moduli():
    rng = RNG(18)
    for rows, columns in ((3, 5), (4, 1)):
        a, b = floats((integers(rng, 2, rows, columns), integers(rng, 2, rows, columns)))
        c, d = floats((integers(rng, 2, 1, 1), integers(rng, 2, 1, 1) - 6.0))
        for panels in ([(a,)], [(a, b)], [(a,), (c,)], [(a, b), (c, d)]):
            sizes = [np.sum([np.abs(part) for part in panel], axis=0).astype(float) for panel in panels]
            if len(panels) == 1:
                truth, most = (sizes[0] ** 2).sum(axis=(1, 2)), 2.0 if len(panels[0]) == 2 else 1.001
                truth = np.linalg.norm(sizes[0], 2, axis=(1, 2)) ** 2 if len(panels[0]) == 2 else truth
                most = most * (sizes[0] ** 2).sum(axis=(1, 2))
            else:
                below = np.pad(sizes[1], ((0, 0), (0, 0), (columns - 1, 0)))
                truth = np.linalg.norm(np.concatenate([sizes[0], below], axis=1), 2, axis=(1, 2)) ** 2
                most = 1.2 * truth
            found = single._factor_size(panels)
            assert np.all((truth * (1 - 1e-12) <= found) & (found <= most))
    for sign in (1.0, -1.0):  # of equal parts the modulus is largest
        part = np.full((1, 2, 3), 0.5, np.float32)
        assert above(single._factor_size([(part, sign * part)])[0], Fraction(6), 1e-4)


def taken(R: tuple[Array, ...], block: int) -> Oracles:
    """Whatever the matrix, the block rows of one and the same factor."""
    rows = iter(range(0, R[0].shape[1], block))
    now = [0]

    def corner(_: Array) -> Array:
        now[0] = next(rows)
        k = now[0]
        return single.joined(tuple(part[:, k : k + block, k : k + block] for part in R)).swapaxes(1, 2).conj()

    def rest(_: Array, __: Array) -> Array:
        k = now[0]
        return single.joined(tuple(part[:, k : k + block, k + block :] for part in R))

    return Oracles(corner, rest)


def block_triangular(R: Array, block: int) -> Array:
    place = np.arange(R.shape[-1]) // block
    return np.where(place[:, None] <= place, R, 0.0)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("n", [3, 8, 13])
def test_what_a_factor_in_single_precision_leaves_is_the_defect(parts, n, monkeypatch):
    monkeypatch.setattr(single, "_BLOCK", 4 * parts)
    rng = RNG(19)
    monkeypatch.setattr(single, "_factor_size", lambda panels: np.zeros(2))
    for zero in (False, True):
        R = tuple(block_triangular(part, 4) * (not zero) for part in stacks(20, 2, n, n)[parts - 1])
        F = whole(R)
        E = rng.integers(-3, 4, (2, n, n)) + 1j * rng.integers(-3, 4, (2, n, n)) * (parts - 1)
        E = E + E.conj().swapaxes(1, 2)
        H = F.conj().swapaxes(1, 2) @ F + E
        given = floats((np.ascontiguousarray(H.real), np.ascontiguousarray(H.imag))[:parts])
        found = single.psd_defect(given, taken(floats(R), 4))
        roundings = 1 + -(-n // 4) * U32
        for bound, square in zip(found, (np.abs(E) ** 2).sum(axis=(1, 2)).round().tolist(), strict=True):
            assert root_above(bound, Fraction(square) * roundings**2, 1e-4)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("n", [4, 21, 60])
def test_products_and_subtractions_of_all_blocks_have_the_error_that_is_counted(parts, n, monkeypatch):
    # The first block row is all ones, the others nothing: the size is 4 n, and for ones + i ones four times as much.
    monkeypatch.setattr(single, "_BLOCK", 4 * parts)
    R = (np.zeros((1, n, n)), np.zeros((1, n, n)))[:parts]
    for part in R:
        part[:, :4] = 1.0
    H = (np.full((1, n, n), 4.0 * parts), np.zeros((1, n, n)))[:parts]
    found = single.psd_defect(floats(H), taken(floats(R), 4))
    blocks, terms = -(-n // 4), 4 if parts == 1 else 8
    size = 4 * n * parts**2
    assert size * higham(terms + blocks, U32) <= frac(found[0])
    assert frac(found[0]) <= size * higham(terms + blocks + 6, U32) * Fraction(1001, 1000) + Fraction(2.0**-50)


def test_a_defect_in_single_precision_without_numbers_is_no_proof():
    liar = Oracles(lambda H: np.full_like(H, np.nan), HONEST.solve)
    assert single.psd_defect((np.eye(3, dtype=np.float32)[None],), liar).tolist() == [math.inf]


@pytest.mark.parametrize("c", [1.0, 0.30000001192092896, 5.0])
def test_a_shift_adds_to_the_real_diagonal_and_bounds_its_rounding(c):
    rng = RNG(21)
    G = rng.uniform(-3.0, 3.0, (2, 3, 3)).astype(np.float32)
    G[0] += np.float32(50.0) * np.eye(3, dtype=np.float32)  # now all of its diagonal is negative
    other = rng.uniform(-1.0, 1.0, (2, 3, 3)).astype(np.float32)
    for stack in ((-G,), (-G, other.copy())):
        rounding_of = single.shifted(stack, c)
        assert rounding_of.shape == (2,)
        truth = Fraction(c) * np.eye(3, dtype=int) - exact(G)
        error = abs(exact(stack[0]) - truth)
        assert not np.any(error * (1 - np.eye(3, dtype=int)))
        for k in (0, 1):
            largest = max(abs(truth[k].diagonal()))
            assert max(error[k].ravel()) <= frac(rounding_of[k])
            assert U32 * largest <= frac(rounding_of[k]) <= 3 * U32 * largest
        assert len(stack) == 1 or np.array_equal(stack[1], other)


@pytest.mark.parametrize(("start", "most"), [(1.0, 1.0035), (0.995, 1.0035), (0.985, 1.0055), (0.5, math.inf)])
def test_an_eigenvalue_is_bounded_from_a_start_that_may_be_too_low(start, most):
    G = np.diag([1.0, -3.0, 0.5]).astype(np.float32)
    found = single._eigenvalue_upper(G, start, HONEST)
    assert 1.0 <= found <= most
    assert (found == math.inf) == (start == 0.5)


def test_the_bound_of_a_map_holds_the_error_of_its_gram_matrix(monkeypatch):
    # With an eigenvalue of nothing only the error is left; signs that cancel are to count.
    monkeypatch.setattr(single, "_eigenvalue_upper", lambda G, start, oracles: 0.0)
    for m, n in ((40, 6), (6, 40), (300, 2)):
        A = np.where(np.arange(m * n).reshape(m, n) % 2, np.float32(-0.5), np.float32(0.5))
        terms = min(128, max(m, n)) + -(-max(m, n) // 128) - 1
        bound = single.norm2_upper(A, None, HONEST)
        assert frac(bound) ** 2 >= higham(terms, U32) * m * n / 4


def test_the_bound_of_a_map_in_double_precision_holds_what_was_cut_off(monkeypatch):
    monkeypatch.setattr(single, "_eigenvalue_upper", lambda G, start, oracles: float(np.linalg.eigvalsh(G)[-1]))
    monkeypatch.setattr(single, "gamma", lambda count: 0.0)
    for off in (2.0**-25, 0.99 * 2.0**-24, -(2.0**-26)):
        A = np.full((4, 4), 1.0 + off)
        assert above(single.norm2_upper(A, None, HONEST), 4 * Fraction(1.0 + off), 1e-6)
    assert above(single.norm2_upper(np.ones((4, 4), np.float32), None, HONEST), Fraction(4), 1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("guess", [None, 5.0, 4.0, 1e9])
def test_small_maps_have_bounds_within_two_percent(dtype, guess):
    for A in (np.array([[3.0, 4.0]]), np.array([[3.0], [-4.0]]), np.array([[3.0, 0.0], [0.0, 5.0]]), np.eye(3) * 5.0):
        assert above(single.norm2_upper(A.astype(dtype), guess, HONEST), Fraction(5), 0.021)
    assert single.norm2_upper(np.zeros((2, 3), dtype), guess, HONEST) == 0.0


@pytest.mark.parametrize("value", [5e-324, 1e-310, 2.0**-1022, 1e300, 2.0**1022, 1e-140])
def test_maps_at_the_ends_of_the_numbers_are_rounded_up(value):
    for shape in ((1, 2), (2, 1), (3, 3)):
        A = np.full(shape, value)
        square = A.size * Fraction(value) ** 2
        found = Fraction(single.norm2_upper(A, None, HONEST))
        assert square <= found**2 <= square * Fraction(104, 100) + Fraction(2e-323) ** 2
    assert single.norm2_upper(np.full((2, 2), LARGEST), None, HONEST) == math.inf
    assert single.norm2_upper(np.full((1, 2), 2.0**1023), None, HONEST) <= 2.0**1023 * 1.45


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_maps_that_are_not_finite_and_machines_that_flush_are_refused(bad):
    with pytest.raises(NotFinite, match="then it has no norm"):
        single.norm2_upper(np.array([[1.0, bad]]), 1.0, HONEST)
    with flushing(), pytest.raises(FloatEnvironment, match="flushes subnormal numbers"):
        single.norm2_upper(np.eye(2), 1.0, HONEST)
