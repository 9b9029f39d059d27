"""Norms, residuals and shifted bounds of stacks of matrices, each error term held to its own count."""

import math
from fractions import Fraction

import numpy as np
import pytest

from lipcert.kernel import psd, single
from lipcert.kernel.backend import Backend
from lipcert.kernel.rounding import round_up, sum_of_squares_up
from tests.laws.kernel.exact import RNG, Array, U, above, exactly, frac, higham, root_above, stacks, whole


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
    def rounded_once(terms: Array, axis: tuple[int, ...]) -> Array:
        return np.vectorize(round_up, otypes=[float])((exactly(terms) ** 2).sum(axis=axis))

    real, complex_ = stacks(5, 2, 3, 4)
    for counted in (sum_of_squares_up, rounded_once):
        monkeypatch.setattr(psd, "sum_of_squares_up", counted)
        for stack in (real, complex_, (np.ones((2, 1, 1)),)):
            found = psd.residual_norm(stack)
            truth = (exactly(stack[0]) ** 2).sum(axis=(1, 2)) + sum(
                (exactly(p) ** 2).sum(axis=(1, 2)) for p in stack[1:]
            )
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
