"""The steps of the dense and Fourier bounds, one by one, in exact arithmetic.

The bounds as wholes have room to spare, which hides a lost error term; here each term meets the error that it is for.
"""

import itertools
import math
from fractions import Fraction
from typing import Any

import mpmath
import numpy as np
import pytest

from lipcert.errors import FloatEnvironment, InvalidInput, NotFinite
from lipcert.kernel import dense, fourier
from lipcert.kernel.angles import cosine_and_sine
from lipcert.kernel.backend import BLAS
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
from lipcert.kernel.fourier import Grid, Symbol, any_size_factor, polyphase, torus_norm_upper
from lipcert.kernel.psd import Proof
from lipcert.kernel.roots import TABLE_ERROR, secant_up, unit_roots
from lipcert.kernel.rounding import Array

NORMS = (norm1_upper, norm2_upper, norminf_upper, row_norms_upper, column_norms_upper, max_entry)
U = Fraction(1, 2**53)
HARDLY = 1 + Fraction(1, 10**12)
LEAST, HUGE = 5e-324, 2.0**1023


def exactly(values: Array) -> Any:
    """The same numbers as fractions."""
    return np.vectorize(Fraction, otypes=[object])(np.asarray(values, dtype=np.float64))


def gamma_of(count: int) -> Fraction:
    """Higham's constant."""
    return count * U / (1 - count * U)


def uneven(*shape: int, seed: int = 0) -> Array:
    """Numbers of both signs whose sums and products are rounded."""
    rng = np.random.default_rng(seed)
    return rng.uniform(0.25, 1.0, shape) * rng.choice([-1.0, 1.0], shape)


def assert_root(found: float, square: Fraction, above: Fraction = HARDLY) -> None:
    """Not below the root of ``square``, and hardly above it."""
    assert square <= Fraction(found) ** 2 <= square * above**2


# ------------------------------------------------------------------------------------------------ dense: scaling


def shifted(A: Array, exponent: int) -> Any:
    """The same numbers times a power of two, as fractions."""
    return exactly(A) * Fraction(2) ** -exponent


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


# ------------------------------------------------------------------------------------------------ dense: terms


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
    assert gamma_of(rows) * squared <= found <= gamma_of(rows + 2) * squared * (1 + Fraction(1, 10**9))


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
    assert gamma_of(3) <= found <= 2 * gamma_of(5)


@pytest.mark.parametrize("block", [None, 1, 5])
@pytest.mark.parametrize("shape", [(6, 2), (2, 6), (4, 4), (1, 1)], ids=str)
def test_the_frobenius_norm_is_that_of_all_entries(shape: tuple[int, int], block: int | None, monkeypatch):
    if block:
        monkeypatch.setattr(dense, "_BLOCK", block)
    for seed in range(5):
        A = uneven(*shape, seed=seed)
        A[0] *= seed / 8.0
        B = scaled(A, np.abs(A).max())
        assert_root(frobenius_upper(B), (shifted(A, B.exponent) ** 2).sum())


def test_a_frobenius_norm_loses_nothing_between_many_blocks(monkeypatch):
    monkeypatch.setattr(dense, "_BLOCK", 1)
    A = np.full((400, 1), 0.9 * 2.0**-27)  # squares that vanish beside the first one
    A[0] = 0.9
    B = scaled(A, 0.9)
    assert_root(frobenius_upper(B), (shifted(A, B.exponent) ** 2).sum())


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
        assert_root(dense._schur_upper(A, exponent), schur(A, exponent))


def test_schurs_bound_pays_for_the_sums_of_long_columns():
    for A in (np.ones((1000, 1)), np.full((1000, 2), 0.1), np.append(1.0, np.full(1000, 0.9 * U))[:, None]):
        assert_root(dense._schur_upper(A, 0), schur(A, 0))


def test_schurs_bound_allows_many_blocks(monkeypatch):
    monkeypatch.setattr(dense, "_BLOCK", 1)
    A = np.append(1.0, np.full(300, 0.9 * float(U)))[:, None]
    assert_root(dense._schur_upper(A, 0), schur(A, 0))


# ------------------------------------------------------------------------------------------------ dense: norms

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
        assert_root(norm2_upper(A), _plus_root(Fraction(eigenvalue) + Fraction(error), Fraction(dropped)))
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
        assert_root(row_norms_upper(A), (exactly(A) ** 2).sum(axis=1).max())
        assert_root(column_norms_upper(A), (exactly(A) ** 2).sum(axis=0).max())


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


# ------------------------------------------------------------------------------------------------ Fourier: symbols


@pytest.mark.parametrize("stride", [(1, 1), (2, 1), (1, 2), (2, 3), (3, 2), (5, 7)], ids=str)
def test_each_tap_of_a_strided_convolution_goes_to_its_place_and_phase(stride: tuple[int, int]):
    positions = np.array(list(itertools.product(range(-2, 2), range(1, 7))))[[0, 23, 5, 7, 18, 1, 11]]
    taps = (np.arange(1.0, 85.0) * np.resize([1.0, -1.0, -1.0], 84)).reshape(7, 2, 3, 2)
    symbol = polyphase(positions, taps, stride)
    assert symbol.taps.dtype == np.float64
    # Output i reads input i * stride + position, that is, residue `phase` at place i + coarse.
    coarse, phase = np.divmod(positions - positions.min(axis=0), stride)
    blocks = symbol.taps.reshape(len(symbol.positions), 2, 3, -1, 2)
    assert np.count_nonzero(blocks) == taps.size
    assert len(np.unique(symbol.positions, axis=0)) == len(symbol.positions)
    channels: dict[tuple[int, ...], int] = {}
    for place, residue, tap in zip(coarse, phase, taps, strict=True):
        ((at, r),) = np.argwhere((blocks == tap[None, :, :, None]).all(axis=(1, 2, 4)))
        assert symbol.positions[at].tolist() == place.tolist()
        assert channels.setdefault(tuple(residue), int(r)) == r
    assert sorted(channels.values()) == list(range(blocks.shape[3]))


def test_a_symbol_of_exact_real_numbers_is_read_and_nothing_else():
    places = np.zeros((1, 1))
    assert polyphase(places, np.ones((1, 1, 1, 1), np.int8), (1,)).taps.dtype == np.float64
    for dimensions in (3, 5):
        with pytest.raises(InvalidInput, match="expected an array of 4 dimensions"):
            polyphase(places, np.ones((1,) * dimensions), (1,))


def test_the_extent_counts_lattice_points_in_each_dimension():
    positions = np.array([[1, 7, 0], [3, 2, 0], [2, 3, 0], [1, 2, 0]])
    assert Symbol(positions, np.ones((4, 1, 1, 1))).extent == (3, 6, 1)


@pytest.mark.parametrize("sizes", [(1,), (5,), (6,), (3, 4), (4, 6), (5, 1, 2)], ids=str)
def test_the_order_of_a_grid_is_the_least_common_one(sizes: tuple[int, ...]):
    least = next(n for n in itertools.count(1) if all(n % (2 * size) == 0 for size in sizes))
    assert Grid(sizes, (0,) * len(sizes)).order == least


def frequencies(grid: Grid) -> set[tuple[Fraction, ...]]:
    """All frequencies of a grid, in turns."""
    axes = [
        [(j + Fraction(offset, 2)) / size % 1 for j in range(size)]
        for size, offset in zip(grid.sizes, grid.offsets, strict=True)
    ]
    return set(itertools.product(*axes))


GRIDS = [
    *(Grid((size,), (offset,)) for size in (1, 2, 3, 6) for offset in (0, 1)),
    *(Grid(sizes, one) for sizes in ((3, 4), (4, 3), (2, 5), (1, 6)) for one in itertools.product((0, 1), repeat=2)),
    Grid((3, 2, 4), (1, 0, 1)),
]


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid.sizes} {grid.offsets}")
def test_of_each_conjugate_pair_of_frequencies_one_is_taken(grid: Grid):
    rows = fourier._angles(np.eye(len(grid.sizes), dtype=np.int64), grid)
    taken = [tuple(Fraction(int(a), grid.order) for a in row) for row in rows]
    conjugates = {tuple(-turn % 1 for turn in one) for one in taken}
    assert {*taken} | conjugates == frequencies(grid)
    assert len({*taken}) == len(taken) <= (grid.sizes[0] // 2 + 1) * math.prod(grid.sizes[1:])
    positions = np.array([[3, -2, 5], [0, 1, 1], [40, 7, 2]])[:, : len(grid.sizes)]
    angles = fourier._angles(positions, grid)
    assert angles.min() >= 0
    assert angles.max() < grid.order
    assert ((angles - rows @ positions.T) % grid.order == 0).all()


@pytest.mark.parametrize(
    ("sizes", "share"),
    [
        ((None, None), Fraction(0)),
        ((9, None), Fraction(2, 18)),
        ((None, 11), Fraction(5, 22)),
        ((7, 40), Fraction(2, 14) + Fraction(5, 80)),
        ((4, 20), Fraction(2, 8) + Fraction(5, 40)),
        ((2, None), None),
        ((4, 10), None),
        ((4, 9), None),
    ],
    ids=str,
)
def test_the_factor_of_a_grid_is_the_secant_of_the_shares_of_its_dimensions(sizes, share: Fraction | None):
    symbol = Symbol(np.array([[0, 5], [2, 0], [1, 1]]), np.ones((3, 1, 1, 1)))  # 2 steps, and 5
    found = any_size_factor(symbol, sizes)
    if share is None:
        assert found == math.inf
        return
    with mpmath.workdps(60):
        exact = mpmath.sec(mpmath.pi * share.numerator / share.denominator)
        assert exact <= mpmath.mpf(found) <= exact * (1 + mpmath.mpf(2) ** -51)


@pytest.mark.parametrize("peak", [LEAST, 2.0**-1000, 0.5, 1.0, 6.0, HUGE], ids=str)
def test_taps_are_scaled_exactly_but_for_the_small_ones(peak: float):
    kinds = np.array([1.0, -1.0, 0.7, -0.3, 2.0**-200, -(2.0**-299), 1.1 * 2.0**-300, 0.9 * 2.0**-300, 2.0**-600])
    with np.errstate(under="ignore"):
        taps = (peak * kinds).reshape(9, 1, 1, 1)
    exponent = math.frexp(peak)[1]
    exact = shifted(taps, exponent)
    found = fourier._scaled_taps(taps, exponent)
    assert (exactly(found) == np.where(abs(exact) < Fraction(1, 2**300), 0, exact)).all()
    assert np.abs(found).max() <= 1.0


def test_the_smallest_taps_that_are_kept_are_not_below_their_threshold():
    threshold = 2.0**-300
    kinds = [0.5, threshold, -threshold, np.nextafter(threshold, 0.0), -np.nextafter(threshold, 0.0), threshold / 2.0]
    found = fourier._scaled_taps(np.reshape(kinds, (6, 1, 1, 1)), 0)
    assert found.ravel().tolist() == [0.5, threshold, -threshold, 0.0, 0.0, 0.0]


# ------------------------------------------------------------------------------------------------ Fourier: errors


def exact_total(taps: Array) -> Fraction:
    """Over groups, the largest squared Frobenius norm of sums of magnitudes."""
    sums = abs(exactly(taps)).sum(axis=0)
    return (sums * sums).sum(axis=(1, 2)).max()


SHAPES = [(1, 1, 1, 1), (3, 2, 4, 5), (9, 3, 5, 2), (2, 1, 1, 7), (40, 2, 1, 1), (1, 6, 2, 2)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_magnitudes_are_summed_over_taps_and_squared_over_channels(shape: tuple[int, ...]):
    for group in range(shape[1]):
        taps = uneven(*shape, seed=group)
        taps[:, group] *= 3.0
        assert_root(fourier.total_magnitude_upper(taps), exact_total(taps))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_error_of_a_symbol_counts_its_taps_and_its_table(shape: tuple[int, ...]):
    taps = uneven(*shape)
    least = (gamma_of(shape[0]) + Fraction(TABLE_ERROR)) ** 2 * 2 * exact_total(taps)
    assert least <= Fraction(fourier._entry_error(taps)) ** 2 <= 16 * least


@pytest.mark.parametrize("shape", [*SHAPES, (9, 1, 2, 2), (1, 1, 1, 3), (25, 1, 3, 1)], ids=str)
def test_taps_that_were_dropped_are_paid_for(shape: tuple[int, ...]):
    taps, _, out, into = shape
    found = Fraction(fourier._entry_error(np.zeros(shape))) * 2**300
    assert taps**2 * out * into <= found**2 <= (4 * taps) ** 2 * math.prod(shape)


@pytest.mark.parametrize(("out", "into"), [(1, 1), (2, 6), (6, 2), (20, 20), (1, 50)])
def test_the_error_of_a_symbols_gram_matrix_counts_its_longer_side_twice(out: int, into: int):
    taps = uneven(3, 2, out, into)
    terms = 2 * max(out, into)  # real and imaginary parts
    least = gamma_of(terms) * 2 * exact_total(taps)
    assert least <= Fraction(fourier.gram_error(taps)) <= least * Fraction(terms + 8, terms) * (1 + Fraction(1, 10**8))


def test_more_groups_of_the_same_taps_have_no_other_errors():
    taps = uneven(3, 1, 2, 3)
    many = np.tile(taps, (1, 70, 1, 1))
    assert fourier.gram_error(many) == fourier.gram_error(taps)
    assert fourier.total_magnitude_upper(many) == fourier.total_magnitude_upper(taps)


@pytest.mark.parametrize("chunk", [1, 3000, None])
@pytest.mark.parametrize(("out", "into"), [(2, 3), (3, 2), (1, 3), (2, 2)])
def test_the_stacks_are_the_symbol_at_each_frequency_once_within_its_error(
    out: int, into: int, chunk: int | None, monkeypatch
):
    if chunk:
        monkeypatch.setattr(fourier, "_CHUNK_BYTES", chunk)
    monkeypatch.setattr(fourier, "_by_energy", lambda _, angles, *__: np.arange(len(angles))[::-1])
    positions, taps = np.array([[0, 0], [1, 4], [2, 1], [0, 3]]), uneven(4, 2, out, into, seed=3)
    grid = Grid((3, 4), (1, 0))
    stacks = list(fourier._symbol_stacks(positions, taps, grid, BLAS))
    assert all(part.shape[1:] == (max(out, into), min(out, into)) for stack in stacks for part in stack)
    real, imaginary = (np.concatenate(parts) for parts in zip(*stacks, strict=True))
    angles = fourier._angles(positions, grid)[::-1]
    assert len(real) == len(imaginary) == 2 * len(angles)
    room = mpmath.mpf(fourier._entry_error(taps)) ** 2
    with mpmath.workdps(40):
        for f, g in itertools.product(range(len(angles)), range(2)):
            turns = [mpmath.expjpi(mpmath.mpf(2 * int(a)) / grid.order) for a in angles[f]]
            exact = np.sum([turn * tap.astype(object) for turn, tap in zip(turns, taps[:, g], strict=True)], axis=0)
            at = 2 * f + g
            off = (exact if out >= into else exact.T) - (real[at].astype(object) + mpmath.mpc(0, 1) * imaginary[at])
            assert sum(abs(x) ** 2 for x in off.flat) <= room


# ------------------------------------------------------------------------------------------------ Fourier: norms


def largest(symbol: Symbol, grid: Grid) -> float:
    """The largest norm over all frequencies, by numpy."""
    theta = 2.0 * math.pi * np.array([[float(turn) for turn in one] for one in sorted(frequencies(grid))])
    values = np.einsum("ft,tgoi->fgoi", np.exp(1j * theta @ symbol.positions.T), symbol.taps)
    return float(np.linalg.norm(values, 2, axis=(-2, -1)).max())


@pytest.mark.parametrize("grid", [g for g in GRIDS if len(g.sizes) == 2], ids=lambda g: f"{g.sizes} {g.offsets}")
def test_a_bound_over_a_grid_takes_each_frequency_and_group(grid: Grid):
    positions = np.array([[0, 0], [1, 2], [2, 1], [0, 3], [5, 1]])
    for out, into, group in ((2, 3, 0), (3, 2, 1), (1, 3, 1)):
        taps = uneven(5, 2, out, into, seed=group)
        taps[:, group] *= 2.0
        symbol = Symbol(positions, taps)
        truth = largest(symbol, grid)
        assert truth * (1 - 1e-14) <= torus_norm_upper(symbol, grid) <= truth * (1 + 1e-11)


def test_frequencies_are_found_wherever_the_norm_is_largest():
    # 1 + cos(theta - peak) in two taps: each frequency of the grid is the largest once.
    grid = Grid((8,), (0,))
    for j in range(8):
        taps = np.zeros((3, 1, 1, 2))
        turn = 2.0 * math.pi * j / 8.0
        taps[0, 0, 0], taps[1, 0, 0] = [1.0, 0.0], [math.cos(turn), math.sin(turn)]
        symbol = Symbol(np.array([[0], [1], [2]]), taps)
        truth = largest(symbol, grid)
        assert truth * (1 - 1e-14) <= torus_norm_upper(symbol, grid) <= truth * (1 + 1e-11)


@pytest.mark.parametrize("tap", [LEAST, 2.0**-1000, 0.5, -0.5, 0.7, 1.0, -1.0, HUGE], ids=str)
def test_a_single_tap_has_its_own_norm(tap: float):
    found = torus_norm_upper(Symbol(np.zeros((1, 1), np.int64), np.full((1, 1, 1, 1), tap)), Grid((3,), (0,)))
    assert abs(tap) <= found
    assert found * (1.0 - 1e-12) - LEAST <= abs(tap)


def test_a_symbol_of_zeros_is_zero():
    assert torus_norm_upper(Symbol(np.zeros((2, 1), np.int64), np.zeros((2, 1, 1, 1))), Grid((3,), (0,))) == 0.0


@pytest.mark.parametrize("power", [-1010, -999, -20, -1, 0, 1, 20, 999, 1010])
def test_a_ceiling_is_in_the_units_of_the_taps(power: int):
    scale = 2.0**power
    symbol = Symbol(np.array([[0], [1]]), np.full((2, 1, 1, 1), 0.75 * scale))  # norm 1.5
    grid = Grid((4,), (0,))
    assert 1.5 * scale <= torus_norm_upper(symbol, grid, ceiling=1.6 * scale) <= 1.5 * scale * (1 + 1e-12)
    if abs(power) < 1000:
        assert torus_norm_upper(symbol, grid, ceiling=1.4 * scale) == math.inf


def test_only_a_bound_above_the_ceiling_is_given_up(monkeypatch):
    symbol = Symbol(np.array([[0]]), np.full((1, 1, 1, 1), 0.5))
    for bound, ceiling, given_up in ((4.0, 2.0, False), (4.0, 1.99, True), (math.inf, 2.0, True)):
        monkeypatch.setattr(fourier, "top_eigenvalue_upper", lambda *_, value=bound, **__: Proof(value, value))
        found = torus_norm_upper(symbol, Grid((1,), (0,)), ceiling=ceiling)
        assert (found == math.inf) == given_up
        assert found >= 2.0


def test_a_shift_that_served_is_handed_on_and_the_largest_bound_counts(monkeypatch):
    seen, proofs = [], iter([Proof(2.0, 2.5), Proof(7.0, 7.5), Proof(3.0, 3.5)])

    def prove(_, shift: float, **__) -> Proof:
        seen.append(shift)
        return next(proofs)

    monkeypatch.setattr(fourier, "_CHUNK_BYTES", 1)
    monkeypatch.setattr(fourier, "top_eigenvalue_upper", prove)
    found = torus_norm_upper(Symbol(np.array([[0]]), np.full((1, 1, 1, 1), 0.5)), Grid((4,), (0,)))
    assert seen[0] <= 0.0
    assert seen[1:] == [2.0, 7.0]
    assert_root(found, Fraction(7.5))


def test_symbols_that_are_none_and_grids_that_are_too_fine_are_refused(monkeypatch):
    place = np.array([[0]])
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(NotFinite, match=r"a matrix has an entry (nan|inf)"):
            torus_norm_upper(Symbol(place, np.full((1, 1, 1, 1), bad)), Grid((2,), (0,)))
    symbol = Symbol(place, np.ones((1, 1, 1, 1)))
    monkeypatch.setattr(fourier, "_largest_squared", lambda *_: 1.0)
    assert torus_norm_upper(symbol, Grid((2**15,), (1,))) >= 1.0  # steps of 2 pi / 2**16
    with pytest.raises(InvalidInput, match=r"has frequencies in steps of 2 pi / 65538"):
        torus_norm_upper(symbol, Grid((2**15 + 1,), (1,)))

    def refuse() -> None:
        raise FloatEnvironment("another rounding")

    monkeypatch.setattr(fourier, "require_ieee", refuse)
    with pytest.raises(FloatEnvironment, match="another rounding"):
        torus_norm_upper(symbol, Grid((2,), (0,)))


# ------------------------------------------------------------------------------------------------ roots and angles


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
