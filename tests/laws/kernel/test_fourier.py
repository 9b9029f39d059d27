"""The steps of the bounds over frequencies: the symbol, its errors, and the norms over a grid."""

import itertools
import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest

from lipcert.errors import FloatEnvironment, InvalidInput, NotFinite
from lipcert.kernel import fourier
from lipcert.kernel.backend import BLAS
from lipcert.kernel.fourier import Grid, Symbol, any_size_factor, polyphase, torus_norm_upper
from lipcert.kernel.psd import Proof
from lipcert.kernel.roots import TABLE_ERROR
from lipcert.kernel.rounding import Array
from tests.laws.kernel.exact import HUGE, LEAST, exactly, higham, root_above, shifted, uneven

# -------------------------------------------------------------------------------------------------------------- symbols


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


# --------------------------------------------------------------------------------------------------------------- errors


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
        assert root_above(fourier.total_magnitude_upper(taps), exact_total(taps))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_error_of_a_symbol_counts_its_taps_and_its_table(shape: tuple[int, ...]):
    taps = uneven(*shape)
    least = (higham(shape[0]) + Fraction(TABLE_ERROR)) ** 2 * 2 * exact_total(taps)
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
    least = higham(terms) * 2 * exact_total(taps)
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


# ---------------------------------------------------------------------------------------------------------------- norms


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
    assert root_above(found, Fraction(7.5))


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
