"""The bounds in single precision, each error term held to its own count, and on machines that flush."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction

import numpy as np
import pytest
import torch

from lipcert.errors import FloatEnvironment, NotFinite
from lipcert.kernel import single
from lipcert.kernel.single import Oracles
from tests.laws.kernel.exact import (
    LARGEST,
    RNG,
    U32,
    Array,
    above,
    exactly,
    frac,
    higham,
    integers,
    root_above,
    stacks,
    whole,
)


@contextmanager
def flushing() -> Iterator[None]:
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormal numbers")
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


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
    error = abs(exactly(A) / Fraction(2) ** e - exactly(B))
    inexact = Fraction(101, 100) * U32 if dtype is np.float64 else 0
    assert np.all(error <= inexact * abs(exactly(B)) + Fraction(2.0**-126))
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
        truth = (exactly(given) ** 2).sum(axis=(1, 2))
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
        truth = Fraction(c) * np.eye(3, dtype=int) - exactly(G)
        error = abs(exactly(stack[0]) - truth)
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
