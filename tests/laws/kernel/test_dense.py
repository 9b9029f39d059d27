"""The steps of the bounds of dense matrices, each term beside the error that it is for, in exact arithmetic."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from lipcert.errors import FloatEnvironment, InvalidInput, NotFinite
from lipcert.kernel import dense
from lipcert.kernel.dense import (
    Scaled,
    column_norms_upper,
    frobenius_upper,
    max_entry,
    norm1_upper,
    norm2_upper,
    norminf_upper,
    row_norms_upper,
    scaled,
)
from lipcert.kernel.fourier import Grid, Symbol, torus_norm_upper
from lipcert.kernel.rounding import Array
from tests.laws.kernel.exact import HUGE, LEAST, U, exactly, higham, root_above, shifted, uneven

NORMS = (norm1_upper, norm2_upper, norminf_upper, row_norms_upper, column_norms_upper, max_entry)
HARDLY = 1 + Fraction(1, 10**12)


# -------------------------------------------------------------------------------------------------------------- scaling


@pytest.mark.parametrize("block", [None, 8])
@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4)], ids=str)
@pytest.mark.parametrize("peak", [LEAST, 2.0**-1000, 0.7, 1.0, 6.0, HUGE], ids=str)
def test_a_matrix_is_scaled_exactly_but_for_what_is_dropped(peak: float, shape: tuple[int, int], block, monkeypatch):
    if block:
        monkeypatch.setattr(dense, "_BLOCK", block)
    A = uneven(*shape)
    A *= np.reshape([1.0, 2.0**-40, 2.0**-299, 2.0**-301, 2.0**-600] * 4, -1)[: A.size].reshape(shape)
    with np.errstate(under="ignore"):
        A = A * peak
    A[-1, -1] = -peak
    B = scaled(A, peak)
    tall, short = B.matrix.shape
    exact = shifted(A if shape[0] == tall else A.T, B.exponent)
    assert tall == max(shape)
    assert abs(exact).max() <= 1 <= 2 * abs(exact).max()
    blocks = list(B.blocks())
    assert all(len(one) == 1 and one.size <= max(short, dense._BLOCK) for one in blocks)
    assert (exactly(np.concatenate(blocks, 1)[0]) == np.where(abs(exact) < Fraction(1, 2**300), 0, exact)).all()
    assert bool(B.kept) == (A.size <= dense._BLOCK)


@pytest.mark.parametrize("size", [4, 15, 16, 8])
def test_a_matrix_of_just_as_many_entries_as_a_block_is_kept(size: int, monkeypatch):
    monkeypatch.setattr(dense, "_BLOCK", size)
    assert scaled(np.ones((size, 1)), 1.0).kept
    assert not scaled(np.ones((size + 1, 1)), 1.0).kept


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_smallest_entries_that_are_kept_are_not_below_their_threshold(sign: float):
    threshold = sign * 2.0**-300
    A = np.array([[1.0], [threshold], [np.nextafter(threshold, 0.0)], [1.5 * threshold], [threshold / 3.0]]) / 2.0
    A[1:] *= 2.0  # the largest entry is 1/2, whose exponent is 0
    kept = np.concatenate(list(scaled(A, 0.5).blocks()), 1)[0]
    assert kept.tolist() == [[0.5], [threshold], [0.0], [1.5 * threshold], [0.0]]


@pytest.mark.parametrize("shape", [(1, 2), (2, 1), (8, 1), (3, 5), (35, 1), (1, 48)], ids=str)
def test_what_is_dropped_is_paid_for(shape: tuple[int, int]):
    A = np.full(shape, np.nextafter(2.0**-300, 0.0))
    A[0, 0] = 0.5
    B = scaled(A, 0.5)
    lost = (A.size - 1) * Fraction(A[-1, -1]) ** 2
    assert sum(np.count_nonzero(block) for block in B.blocks()) == 1
    assert Fraction(B.dropped) ** 2 >= lost
    assert 0.0 < B.dropped <= 2.0**-298 * math.sqrt(A.size)


@pytest.mark.parametrize("exponent", [-2000, -1073, -1023, -1022, -7, -1, 0, 1, 2, 9, 1023, 1073, 1500])
def test_powers_of_two_are_multiplied_exactly_wherever_the_result_is_a_normal_number(exponent: int):
    values = np.array([LEAST, -LEAST, 3.0 * LEAST, -0.75, 1.0, 1.0 / 3.0, HUGE, -1.5 * HUGE])
    exact = exactly(values) * Fraction(2) ** exponent
    fits = np.array([Fraction(2) ** -1022 <= abs(x) < Fraction(2) ** 1024 for x in exact])
    with np.errstate(all="ignore"):
        found = dense._times_power(values[fits], exponent)
    assert (exactly(found) == exact[fits]).all()


# ---------------------------------------------------------------------------------------------------------------- terms


def of_one_size(rows: int, columns: int) -> tuple[Array, Fraction]:
    """Entries of both signs and one size, and the squared norm of their magnitudes."""
    entry = 0.7
    A = np.full((rows, columns), entry)
    A[::2, ::2] *= -1.0
    return A, rows * columns * Fraction(entry) ** 2


@pytest.mark.parametrize("block", [None, 6, 1])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (7, 3), (60, 1), (9, 9), (400, 2)])
def test_the_error_of_a_gram_matrix_is_gamma_of_its_rows_times_the_norm_of_magnitudes(
    rows: int, columns: int, block: int | None, monkeypatch
):
    if block:
        monkeypatch.setattr(dense, "_BLOCK", block)
    A, squared = of_one_size(rows, columns)
    found = Fraction(dense.gram_error(scaled(A, 0.7)))
    assert higham(rows) * squared <= found <= higham(rows + 2) * squared * (1 + Fraction(1, 10**9))


def test_the_error_of_a_gram_matrix_covers_the_error_of_its_product():
    for seed, shape in enumerate([(200, 2), (20, 15), (9, 9), (3, 1)]):
        A = uneven(*shape, seed=seed)
        B = scaled(A, np.abs(A).max())
        exact = exactly(np.concatenate(list(B.blocks()), 1)[0])
        inexact = exactly(np.sum([np.matmul(block[0].T, block[0]) for block in B.blocks()], axis=0))
        error = inexact - exact.T @ exact
        assert Fraction(dense.gram_error(B)) ** 2 >= (error * error).sum() > 0


def test_an_error_term_of_zeros_is_small_but_of_a_mixture_takes_both_of_its_sides():
    # | |A| |^2 = 1 + 4 for orthogonal columns of lengths 1 and 2: neither side alone gives it.
    A = np.array([[0.0, 1.0], [0.5, 0.0], [0.0, 0.0]])
    found = Fraction(dense.gram_error(scaled(A, 1.0))) * 4  # scaled by 1/2, squared
    assert higham(3) <= found <= 2 * higham(5)


@pytest.mark.parametrize("block", [None, 1, 5])
@pytest.mark.parametrize("shape", [(6, 2), (2, 6), (4, 4), (1, 1)], ids=str)
def test_the_frobenius_norm_is_that_of_all_entries(shape: tuple[int, int], block: int | None, monkeypatch):
    if block:
        monkeypatch.setattr(dense, "_BLOCK", block)
    for seed in range(5):
        A = uneven(*shape, seed=seed)
        A[0] *= seed / 8.0
        B = scaled(A, np.abs(A).max())
        assert root_above(frobenius_upper(B), (shifted(A, B.exponent) ** 2).sum())


def test_a_frobenius_norm_loses_nothing_between_many_blocks(monkeypatch):
    monkeypatch.setattr(dense, "_BLOCK", 1)
    A = np.full((400, 1), 0.9 * 2.0**-27)  # squares that vanish beside the first one
    A[0] = 0.9
    B = scaled(A, 0.9)
    assert root_above(frobenius_upper(B), (shifted(A, B.exponent) ** 2).sum())


def schur(A: Array, exponent: int) -> Fraction:
    """The exact square of what `_schur_upper` bounds."""
    sizes = abs(shifted(A, exponent))
    return sizes.sum(axis=0).max() * sizes.sum(axis=1).max()


@pytest.mark.parametrize("block", [None, 1, 8])
@pytest.mark.parametrize("exponent", [-3, 0, 2])
@pytest.mark.parametrize("shape", [(6, 2), (2, 6), (4, 4), (1, 7), (7, 1), (1, 1)], ids=str)
def test_schurs_bound_takes_the_largest_row_and_column(
    shape: tuple[int, int], exponent: int, block: int | None, monkeypatch
):
    if block:
        monkeypatch.setattr(dense, "_BLOCK", block)
    for row, column in ((0, shape[1] - 1), (shape[0] // 2, 0), (shape[0] - 1, 0)):
        A = uneven(*shape, seed=row)
        A[row] *= 3.0
        A[:, column] *= 5.0
        assert root_above(dense._schur_upper(A, exponent), schur(A, exponent))


def test_schurs_bound_pays_for_the_sums_of_long_columns():
    for A in (np.ones((1000, 1)), np.full((1000, 2), 0.1), np.append(1.0, np.full(1000, 0.9 * U))[:, None]):
        assert root_above(dense._schur_upper(A, 0), schur(A, 0))


def test_schurs_bound_allows_many_blocks(monkeypatch):
    monkeypatch.setattr(dense, "_BLOCK", 1)
    A = np.append(1.0, np.full(300, 0.9 * float(U)))[:, None]
    assert root_above(dense._schur_upper(A, 0), schur(A, 0))


# ---------------------------------------------------------------------------------------------------------------- norms


HADAMARD = np.array([[1.0, 1.0, 1.0, 1.0], [1.0, -1.0, 1.0, -1.0], [1.0, 1.0, -1.0, -1.0], [1.0, -1.0, -1.0, 1.0]])
KNOWN = {
    # Squared norms; the bounds of Frobenius and Schur are far above them where orthogonal rows are dense.
    "orthogonal": (HADAMARD, 4),
    "orthogonal, tall": (np.vstack([HADAMARD, 2.0 * HADAMARD]), 20),
    "orthogonal, two sizes": (HADAMARD * [[1.0], [2.0], [5.0], [3.0]], 100),
    "a row": (np.array([[3.0, -4.0, 12.0]]), 169),
    "a column": (np.array([[3.0], [-4.0], [12.0]]), 169),
    "rank one": (np.outer([1.0, -2.0, 2.0], [3.0, -4.0]), 225),
    "diagonal": (np.diag([1.0, -7.0, 2.0]), 49),
    "one": (np.array([[1.0]]), 1),
    "minus one": (np.array([[-1.0]]), 1),
}


@pytest.mark.parametrize("block", [None, 3])
@pytest.mark.parametrize("name", KNOWN)
def test_the_spectral_norm_of_known_matrices(name: str, block: int | None, monkeypatch):
    if block:
        monkeypatch.setattr(dense, "_BLOCK", block)
    A, square = KNOWN[name]
    for matrix, power in itertools.product((-A, A.T), (-1070, 0, 1, 1016)):
        if power < -1000 and math.isqrt(square) ** 2 != square:
            continue
        with np.errstate(all="ignore"):
            found = norm2_upper(matrix * 2.0 ** (power // 2) * 2.0 ** (power - power // 2))
        unit, last = Fraction(2) ** power, Fraction(LEAST)
        assert Fraction(found) ** 2 >= square * unit**2
        assert max(Fraction(0), Fraction(found) - last) ** 2 <= square * unit**2 * HARDLY**2


def test_each_part_of_the_spectral_bound_counts(monkeypatch):
    # What the parts give, and the exact bound that follows from it: c + E <= root**2, then what was dropped.
    A = np.full((2, 1), 0.7)
    monkeypatch.setattr(dense, "_schur_upper", lambda *_: 100.0)
    monkeypatch.setattr(dense, "frobenius_upper", lambda _: 100.0)
    cases = ((2.0, 0.25, 0.0), (2.0, 0.25, 0.125), (0.1, 0.7, 0.3), (1.0, 2.0**-54, 2.0**-70))
    for eigenvalue, error, dropped in cases:
        monkeypatch.setattr(dense, "_gram_eigenvalue_upper", lambda *_, value=eigenvalue: value)
        monkeypatch.setattr(dense, "gram_error", lambda _, value=error: value)
        monkeypatch.setattr(Scaled, "dropped", property(lambda _, value=dropped: value))
        assert root_above(norm2_upper(A), _plus_root(Fraction(eigenvalue) + Fraction(error), Fraction(dropped)))
    monkeypatch.setattr(Scaled, "dropped", property(lambda _: 0.125))
    for first, second in ((0.5, 100.0), (100.0, 0.5)):
        monkeypatch.setattr(dense, "_schur_upper", lambda *_, value=first: value)
        monkeypatch.setattr(dense, "frobenius_upper", lambda _, value=second: value)
        assert 0.625 <= norm2_upper(A) <= 0.625 * (1 + 1e-12)


def _plus_root(square: Fraction, more: Fraction) -> Fraction:
    """A square of ``sqrt(square) + more``, from below to 2**-200."""
    root = Fraction(math.isqrt(square.numerator * 2**400 // square.denominator), 2**200)
    return (root + more) ** 2


def assert_norm(norm, A: Array, exact: Fraction) -> None:
    """A norm that is an exact number, rounded up."""
    found = norm(A)
    assert exact <= Fraction(found)
    assert Fraction(math.nextafter(found, 0.0)) < exact


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.int8])
@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (1, 4), (4, 1), (2, 2)], ids=str)
def test_sums_of_rows_and_columns_and_the_largest_entry(shape: tuple[int, int], dtype: type):
    for seed in range(4):
        A = (uneven(*shape, seed=seed) * 9.0).astype(dtype)
        A[seed % shape[0]] *= -3
        sizes = abs(exactly(A))
        assert_norm(norm1_upper, A, sizes.sum(axis=0).max())
        assert_norm(norminf_upper, A, sizes.sum(axis=1).max())
        assert Fraction(max_entry(A)) == sizes.max()


@pytest.mark.parametrize("block", [None, 1, 7])
@pytest.mark.parametrize("scale", [LEAST, 2.0**-1000, 0.01, 1.0, 100.0, 2.0**1018], ids=str)
@pytest.mark.parametrize("longest", [0, 3, 4])
def test_the_longest_row_and_column(longest: int, scale: float, block: int | None, monkeypatch):
    if block:
        monkeypatch.setattr(dense, "_BLOCK", block)
    A = np.array([[3.0, -4.0, 12.0]] * 5)
    A[longest] *= -2.0
    for matrix in (A, A[[longest]]):
        square = (exactly(matrix * scale) ** 2).sum(axis=1).max()
        for found in (row_norms_upper(matrix * scale), column_norms_upper(matrix.T * scale)):
            assert square <= Fraction(found) ** 2
            assert max(Fraction(0), Fraction(found) - Fraction(LEAST)) ** 2 <= square * HARDLY**2


def test_norms_that_no_float_can_hold_are_rounded_up():
    A = np.array([[LEAST, -LEAST]])  # of length 1.41 times the smallest number
    for norm, matrix in ((norm2_upper, A), (norm2_upper, A.T), (row_norms_upper, A), (column_norms_upper, A.T)):
        assert norm(matrix) == 2.0 * LEAST
        assert HUGE <= norm(np.sign(matrix) * HUGE) < math.inf
        assert norm(np.sign(matrix) * 1.99 * HUGE) == math.inf
    symbol = Symbol(np.array([[0]]), A[None, None])
    assert torus_norm_upper(symbol, Grid((1,), (0,))) == 2.0 * LEAST
    assert torus_norm_upper(Symbol(symbol.positions, symbol.taps / LEAST * 1.99 * HUGE), Grid((1,), (0,))) == math.inf


def test_rows_whose_squares_are_rounded_have_no_shorter_lengths():
    for seed in range(50):
        A = uneven(3, 4, seed=seed)
        assert root_above(row_norms_upper(A), (exactly(A) ** 2).sum(axis=1).max())
        assert root_above(column_norms_upper(A), (exactly(A) ** 2).sum(axis=0).max())


@pytest.mark.parametrize("norm", NORMS)
def test_only_zeros_have_norm_zero(norm):
    for shape in ((2, 3), (0, 3), (3, 0)):
        assert norm(np.zeros(shape)) == 0.0
    for entry in (1.0, -1.0, LEAST, -LEAST):
        assert norm(np.diag([0.0, entry])) >= abs(entry)


@pytest.mark.parametrize("norm", NORMS)
def test_matrices_that_are_none_are_refused(norm, monkeypatch):
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(NotFinite, match=r"a matrix has an entry (nan|inf)"):
            norm(np.array([[1.0, 2.0], [bad, 3.0]]))
    for dimensions in (1, 3):
        with pytest.raises(InvalidInput, match="expected an array of 2 dimensions"):
            norm(np.ones((2,) * dimensions))

    def refuse() -> None:
        raise FloatEnvironment("another rounding")

    monkeypatch.setattr(dense, "require_ieee", refuse)
    with pytest.raises(FloatEnvironment, match="another rounding"):
        norm(np.zeros((2, 2)))
