"""The kernel never answers below the truth: nasty matrices, lying oracles, and mutants that must be caught."""

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lipcert.errors import FloatEnvironment, InvalidInput, NotFinite
from lipcert.kernel import dense, fourier, psd, single
from lipcert.kernel.backend import Backend
from lipcert.kernel.dense import (
    column_norms_upper,
    max_entry,
    norm1_upper,
    norm2_upper,
    norminf_upper,
    row_norms_upper,
)
from lipcert.kernel.fourier import Grid, any_size_factor, polyphase, torus_norm_upper
from lipcert.kernel.psd import Proof, psd_defect, squared_norm_of_magnitude, top_eigenvalue_upper
from lipcert.kernel.roots import TABLE_ERROR, secant_up, unit_roots
from lipcert.kernel.rounding import (
    add_up,
    div_up,
    gamma,
    largest_sum_up,
    mul_up,
    round_up,
    scale_up,
    sqrt_up,
    sum_of_squares_up,
    sum_up,
)
from tests.adversarial import FAMILIES, exact_integers, squared_norm_below
from tests.oracles import ESTIMATES, TRIALS, Liar

FINITE = st.floats(allow_nan=False, allow_infinity=False)
NORMS = (norm1_upper, norm2_upper, norminf_upper, row_norms_upper, column_norms_upper, max_entry)


def assert_brackets(A: np.ndarray, bound: float, slack: Fraction) -> None:
    """The bound is not below the exact Rayleigh quotient, nor above it by more than ``slack`` or the last subnormal."""
    below = squared_norm_below(A)
    if math.isinf(bound):
        assert below * (1 + slack) ** 2 > Fraction(1.7976931348623157e308) ** 2
        return
    assert Fraction(bound) ** 2 >= below
    assert Fraction(max(0.0, bound - 5e-324)) ** 2 <= below * (1 + slack) ** 2


def nasty(family: str, count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng([seed, list(FAMILIES).index(family)])
    return [FAMILIES[family](rng) for _ in range(count)]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_spectral_norm_bound_brackets_the_truth_on_nasty_matrices(family: str):
    for A in nasty(family, 150):
        assert_brackets(A, norm2_upper(A), Fraction(1, 10**12))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_simple_norms_are_not_below_exact_sums_and_hardly_above(family: str):
    for A in nasty(family, 40, seed=2):
        integers, e = exact_integers(A)
        sizes, unit = np.abs(integers), Fraction(2) ** e
        truths = {
            norm1_upper: sizes.sum(axis=0).max() * unit,
            norminf_upper: sizes.sum(axis=1).max() * unit,
            max_entry: sizes.max() * unit,
        }
        for norm, truth in truths.items():
            assert norm(A) == round_up(Fraction(truth))
        for norm, axis in ((row_norms_upper, 1), (column_norms_upper, 0)):
            square, bound = (integers * integers).sum(axis=axis).max() * unit**2, norm(A)
            if bound < math.inf:
                assert Fraction(bound) ** 2 >= square
                assert Fraction(max(0.0, bound - 5e-324)) ** 2 <= square * (1 + Fraction(1, 10**13))


@pytest.mark.parametrize("family", ["Gaussian", "orthogonal", "float32 orthogonal", "Toeplitz", "rank one", "scaled"])
def test_large_matrices_cost_no_more_than_a_billionth(family: str):
    rng = np.random.default_rng(3)
    n = 450  # above the size up to which all eigenvalues are computed
    Q = np.linalg.qr(rng.standard_normal((n, n)))[0]
    A = {
        "Gaussian": rng.standard_normal((n, n)),
        "orthogonal": Q,
        "float32 orthogonal": Q.astype(np.float32),
        "Toeplitz": np.eye(n) + np.eye(n, k=1),
        "rank one": np.outer(Q[0], Q[1]),
        "scaled": np.kron(np.eye(n), [[0.3], [0.7]]),
    }[family]
    truth = np.linalg.norm(A.astype(np.float64), 2)
    assert truth * (1 - 1e-13) <= norm2_upper(A) <= truth * (1 + 1e-9)


def test_a_matrix_taken_in_many_blocks_has_the_same_bound(monkeypatch):
    A = np.random.default_rng(4).standard_normal((50, 20)) * 1e200
    whole = norm2_upper(A)
    monkeypatch.setattr(dense, "_BLOCK", 64)
    assert norm2_upper(A) == pytest.approx(whole, rel=1e-12)
    assert norm2_upper(A.T) == pytest.approx(whole, rel=1e-12)
    assert Fraction(norm2_upper(A)) ** 2 >= squared_norm_below(A)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0), (2, 3)])
def test_empty_and_zero_matrices_have_norm_zero(norm, shape):
    assert norm(np.zeros(shape)) == 0.0


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(norm, bad):
    A = np.ones((3, 2))
    A[1, 1] = bad
    with pytest.raises(NotFinite):
        norm(A)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    "A",
    [np.ones((2, 2), bool), np.ones((2, 2), complex), np.full((1, 1), 2**53), np.ones(3), np.array([["a"]])],
    ids=["bool", "complex", "too large an integer", "vector", "text"],
)
def test_what_is_not_a_matrix_of_exact_real_numbers_is_refused(norm, A):
    with pytest.raises(InvalidInput):
        norm(A)


def test_integers_and_half_precision_are_read_exactly():
    for dtype in (np.int8, np.uint8, np.int64, np.float16, np.float32):
        assert norm1_upper(np.array([[3, 4]], dtype)) == 4.0
        assert 5.0 <= norm2_upper(np.array([[3, 4]], dtype)) < 5.0 + 1e-13


@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this processor cannot flush subnormal numbers")
def test_a_processor_that_flushes_subnormals_is_refused():
    torch.set_flush_denormal(True)
    try:
        with pytest.raises(FloatEnvironment):
            norm2_upper(np.eye(2))
    finally:
        torch.set_flush_denormal(False)


@given(FINITE.map(abs), FINITE.map(abs))
def test_scalar_operations_round_up(x: float, y: float):
    with np.errstate(all="ignore"):
        for value, exact in ((add_up(x, y), Fraction(x) + Fraction(y)), (mul_up(x, y), Fraction(x) * Fraction(y))):
            assert math.isinf(value) or Fraction(float(value)) >= exact
        assert Fraction(float(sqrt_up(x))) ** 2 >= Fraction(x)
        quotient = div_up(x, y) if y > 0.0 else np.inf
        assert math.isinf(quotient) or Fraction(float(quotient)) * Fraction(y) >= Fraction(x)


@given(st.fractions())
def test_round_up_gives_the_nearest_number_above(value: Fraction):
    rounded = round_up(value)
    assert Fraction(rounded) >= value > Fraction(math.nextafter(rounded, -math.inf))


@given(st.floats(0.5, 1.0), st.integers(-1200, 1100))
def test_scaling_by_a_power_of_two_rounds_up(value: float, exponent: int):
    scaled = scale_up(value, exponent)
    assert math.isinf(scaled) or Fraction(scaled) >= Fraction(value) * Fraction(2) ** exponent


@given(st.lists(FINITE.map(abs).filter(lambda x: x < 1e300), min_size=1, max_size=30))
def test_sums_round_up_and_the_largest_is_correctly_rounded(terms: list[float]):
    exact = sum(map(Fraction, terms), Fraction(0))
    assert Fraction(float(sum_up(np.array(terms), 0))) >= exact
    assert largest_sum_up(np.array([terms])) == round_up(exact)


def test_sums_of_squares_round_up_however_many_and_however_small():
    for terms in (*np.random.default_rng(9).standard_normal((100, 400)), np.full(7, 1e-170), np.full(3, 2.0**-537)):
        assert Fraction(float(sum_of_squares_up(terms, 0))) >= sum(Fraction(term) ** 2 for term in terms.tolist())


@given(st.integers(1, 10**9))
def test_gamma_is_not_below_higham(count: int):
    assert Fraction(gamma(count)) >= Fraction(count + 2, 2**53 - count - 2)


@pytest.mark.parametrize("order", [1, 2, 3, 7, 30, 64, 450])
def test_roots_of_unity_are_within_their_stated_error(order: int):
    cosine, sine = unit_roots(order)
    with mpmath.workdps(60):
        for j in range(order):
            angle = 2 * mpmath.pi * j / order
            assert abs(mpmath.mpf(float(cosine[j])) - mpmath.cos(angle)) <= TABLE_ERROR / 2
            assert abs(mpmath.mpf(float(sine[j])) - mpmath.sin(angle)) <= TABLE_ERROR / 2


def test_the_smallest_angles_have_a_sine():
    sine = unit_roots(2**16)[1]
    with mpmath.workdps(60):
        for j in (1, 2, 3, 2**15 - 1, 2**15 + 1, 2**16 - 1):
            assert abs(mpmath.mpf(float(sine[j])) - mpmath.sin(2 * mpmath.pi * j / 2**16)) <= TABLE_ERROR / 2


@given(st.fractions(0, Fraction(499, 1000), max_denominator=1000))
def test_the_secant_is_rounded_up(multiple: Fraction):
    with mpmath.workdps(60):
        exact = mpmath.sec(mpmath.pi * multiple.numerator / multiple.denominator)
        assert exact <= mpmath.mpf(secant_up(multiple)) <= exact * (1 + mpmath.mpf(2) ** -51)


def test_a_secant_of_a_quarter_turn_or_more_is_no_bound():
    assert secant_up(Fraction(1, 2)) == math.inf
    assert secant_up(Fraction(5, 3)) == math.inf


# Positive definite beyond doubt, beyond hope, and in between.


@pytest.mark.parametrize("n", [1, 3, 8])
def test_a_defect_proves_no_more_than_the_smallest_eigenvalue(n: int):
    rng = np.random.default_rng(5)
    for shift in (1.0, 1e-8, 1e-14, 0.0, -1e-16, -1e-12):
        V = rng.integers(-3, 4, (n, n - 1 or 1)).astype(float)
        H = (V @ V.T + shift * np.eye(n))[None]
        rho = float(psd_defect((H,))[0])
        if rho < math.inf:
            with mpmath.workdps(50):
                smallest = min(mpmath.eigsy(mpmath.matrix(H[0].tolist()), eigvals_only=True))
            assert smallest >= -rho


def test_an_indefinite_matrix_gets_a_defect_that_covers_it_from_any_factor():
    H = np.array([[[1.0, 2.0], [2.0, 1.0]]])  # eigenvalues 3 and -1
    for factor in (np.zeros((1, 2, 2)), np.eye(2)[None], 1e-200 * np.ones((1, 2, 2)), 1e200 * np.ones((1, 1, 2))):
        with np.errstate(all="ignore"):
            assert psd_defect((H,), backend=Backend(cholesky=lambda _, R=factor: (R,)))[0] >= 1.0
    assert psd_defect((H,), backend=Backend(cholesky=lambda _: (np.full((1, 2, 2), math.nan),)))[0] == math.inf
    assert psd_defect((H,))[0] == math.inf


def test_a_hermitian_stack_is_bounded_by_its_largest_eigenvalue():
    rng = np.random.default_rng(6)
    F = rng.standard_normal((5, 4, 3)) + 1j * rng.standard_normal((5, 4, 3))
    G = np.matmul(F.conj().swapaxes(1, 2), F)
    truth = np.linalg.eigvalsh(G).max()
    proof = top_eigenvalue_upper((G.real.copy(), G.imag.copy()))
    assert truth * (1 - 1e-14) <= proof.bound <= truth * (1 + 1e-12)


def test_the_worst_matrix_of_a_stack_counts():
    G = np.array([[[1.0]], [[5.0]]])
    liar = Backend(cholesky=lambda H: (np.zeros_like(H[0]),), top_eigenvalue=lambda _: 1.0)
    assert top_eigenvalue_upper((G,), backend=liar).bound >= 5.0


def test_imaginary_parts_count_as_much_as_real_ones():
    real, imaginary = np.zeros((1, 2, 2)), np.array([[[0.0, -2.0], [2.0, 0.0]]])  # eigenvalues 2 and -2
    assert psd_defect((real, imaginary), backend=Backend(cholesky=lambda H: H))[0] >= 2.0
    assert psd_defect((real, imaginary), backend=Backend(cholesky=lambda H: (0.0 * H[0],) * 2))[0] >= 2.0
    for stack in ((real, imaginary), (imaginary, imaginary)):
        assert squared_norm_of_magnitude(stack)[0] >= np.linalg.norm(np.abs(stack[0] + 1j * stack[1])[0], 2) ** 2


def test_norms_of_non_negative_matrices_are_rounded_up():
    for m, n in ((1, 1), (3, 200), (300, 300), (1, 1000)):
        for entry in (0.1, 0.7, 1 / 3, 1e-3):
            found = squared_norm_of_magnitude((np.full((1, m, n), entry),))[0]
            assert (
                m * n * Fraction(entry) ** 2
                <= Fraction(float(found))
                <= m * n * Fraction(entry) ** 2 * (1 + Fraction(1, 10**11))
            )


# Oracles that lie.



@pytest.mark.parametrize("kernel", [name for name in TRIALS if name != "solver"])
@pytest.mark.parametrize("estimate", ESTIMATES)
def test_lying_oracles_cannot_lower_a_bound_below_the_truth(estimate: float, kernel: str):
    assert stays_safe(kernel, estimate, range(30))


def stays_safe(kernel: str, estimate: float, seeds: range) -> bool:
    """Whether a kernel stays on the safe side when everything untrusted conspires against it."""
    with np.errstate(all="ignore"):
        liars = ((seed, Liar(estimate, copies=(1, 16)[seed % 2])) for seed in seeds)
        return all(TRIALS[kernel](np.random.default_rng(seed), liar) for seed, liar in liars)


def _no_rho(H, **_):
    return np.zeros(len(H[0]))


MUTANTS = {
    "the Gram matrix is exact": (dense, "gram_error", lambda _: 0.0, "dense"),
    "the factor is trusted": (psd, "psd_defect", _no_rho, "dense"),
    "the factor's product is exact": (psd, "product_error", lambda _: 0.0, "dense"),
    "the residual is small": (psd, "residual_norm", lambda residual: np.zeros(len(residual[0])), "dense"),
    "gamma does not grow": (dense, "gamma", lambda _: gamma(1), "dense"),
    "signs cancel in error terms": (dense, "magnitude", lambda stack: stack[0], "dense"),
    "the symbol is exact": (fourier, "_entry_error", lambda _: 0.0, "fourier"),
    "the symbol's Gram matrix is exact": (fourier, "gram_error", lambda _: 0.0, "fourier"),
    "the sum over taps rounds once": (fourier, "gamma", lambda _: gamma(1), "fourier"),
    "the factor's product is exact, real or complex": (psd, "product_error", lambda _: 0.0, "semidefinite"),
    "the residual is small, real or complex": (psd, "residual_norm", lambda r: np.zeros(len(r[0])), "semidefinite"),
    "a shift is exact and its factor trusted": (psd, "psd_defect", _no_rho, "eigenvalue"),
    "the residual is small in single precision": (single, "squares_up", lambda p: np.zeros(len(p)), "single, norm"),
    "the factor is trusted in single precision": (
        single, "psd_defect", lambda H, _: np.zeros(len(H[0])), "single, norm"
    ),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_every_term_of_the_proof_is_needed(mutant: str, monkeypatch):
    module, name, replacement, kernel = MUTANTS[mutant]
    monkeypatch.setattr(module, name, replacement)
    assert not all(stays_safe(kernel, estimate, range(30)) for estimate in ESTIMATES)


def test_rounding_the_last_scaling_to_nearest_is_caught(monkeypatch):
    monkeypatch.setattr(dense, "scale_up", math.ldexp)
    A = np.full((1, 2), 5e-324)  # norm 1.41 times the smallest number
    assert Fraction(norm2_upper(A)) ** 2 < squared_norm_below(A)


def test_without_its_check_nan_gets_through(monkeypatch):
    monkeypatch.setattr(dense, "require_finite", lambda _: None)
    assert math.isnan(max_entry(np.array([[math.nan, 1.0]])))


# Symbols.


def test_the_second_difference_has_its_known_norms():
    symbol = polyphase(np.array([[0], [1], [2]]), np.reshape([-1.0, 2.0, -1.0], (3, 1, 1, 1)), (1,))
    for size, offset, truth in ((5, 0, 2 + 2 * math.cos(math.pi / 5)), (6, 0, 4.0), (6, 1, 2 + math.sqrt(3))):
        assert truth <= torus_norm_upper(symbol, Grid((size,), (offset,))) <= truth * (1 + 1e-12)


@pytest.mark.parametrize(("out", "into"), [(3, 5), (5, 3), (1, 1), (70, 66)])
def test_the_largest_singular_value_over_a_torus_agrees_with_numpy(out: int, into: int):
    rng = np.random.default_rng(8)
    taps = rng.standard_normal((9, 2, out, into))
    positions = np.stack(np.divmod(np.arange(9), 3), axis=1)
    kernel = taps.reshape(3, 3, 2, out, into)
    spectrum = np.fft.fft2(kernel, (5, 4), axes=(0, 1))
    truth = np.linalg.norm(spectrum, 2, axis=(-2, -1)).max()
    bound = torus_norm_upper(polyphase(positions, taps, (1, 1)), Grid((5, 4), (0, 0)))
    assert truth * (1 - 1e-14) <= bound <= truth * (1 + 1e-11)


@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(2, 4), st.integers(0, 1))
def test_a_coarse_grid_times_its_factor_covers_every_frequency(seed: int, dims: int, taps: int, offset: int):
    rng = np.random.default_rng(seed)
    positions = rng.integers(0, taps, (4, dims))
    weights = rng.standard_normal((4, 1, 2, 2))
    symbol = polyphase(*_distinct(positions, weights), (1,) * dims)
    sizes = (4 * taps * dims,) * dims
    factor = any_size_factor(symbol, sizes)
    coarse = torus_norm_upper(symbol, Grid(sizes, (offset,) * dims)) * factor
    theta = rng.uniform(0.0, 2.0 * math.pi, (200, dims))
    values = np.einsum("ft,tgoi->fgoi", np.exp(1j * theta @ symbol.positions.T), symbol.taps)
    assert coarse >= np.linalg.norm(values, 2, axis=(-2, -1)).max() * (1 - 1e-13)


def _distinct(positions: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    places, first = np.unique(positions, axis=0, return_index=True)
    return places, weights[first]


def test_the_factor_is_tight_for_the_steepest_polynomial():
    # 2 cos(theta) has degree 1; on the two antiperiodic frequencies +-pi/2 of M = 2 it vanishes, so no factor exists.
    symbol = polyphase(np.array([[0], [2]]), np.ones((2, 1, 1, 1)), (1,))
    assert any_size_factor(symbol, (2,)) == math.inf
    grid = torus_norm_upper(symbol, Grid((3,), (1,)))  # frequencies pi/3, pi, 5 pi/3
    assert 2.0 <= grid <= 2.0 * any_size_factor(symbol, (3,))


def test_a_bound_above_the_ceiling_is_given_up():
    symbol = polyphase(np.array([[0]]), np.full((1, 1, 1, 1), 3.0), (1,))
    assert torus_norm_upper(symbol, Grid((1,), (0,)), ceiling=2.0) == math.inf
    assert torus_norm_upper(symbol, Grid((1,), (0,)), ceiling=4.0) < 3.0 + 1e-12


def test_the_largest_proof_among_the_chunks_counts(monkeypatch):
    proofs = iter([Proof(2.0, 9.0), Proof(3.0, 4.0)])
    monkeypatch.setattr(fourier, "_CHUNK_BYTES", 1)  # one frequency at a time
    monkeypatch.setattr(fourier, "top_eigenvalue_upper", lambda *_, **__: next(proofs))
    symbol = polyphase(np.array([[0], [1]]), np.full((2, 1, 1, 1), 0.5), (1,))
    assert torus_norm_upper(symbol, Grid((2,), (0,))) >= 3.0


@pytest.mark.parametrize("scale", [1e-320, 1e-200, 1.0, 1e200, 1e307])
def test_symbols_of_any_magnitude_are_bounded(scale: float):
    taps = scale * np.reshape([-1.0, 2.0, -1.0], (3, 1, 1, 1))
    bound = torus_norm_upper(polyphase(np.array([[0], [1], [2]]), taps, (1,)), Grid((2,), (0,)))
    truth = sum(abs(Fraction(float(tap))) for tap in taps.ravel())
    assert truth <= Fraction(bound) <= truth * (1 + Fraction(1, 10**12)) + Fraction(1, 10**300)


def test_a_symbol_of_the_smallest_numbers_is_rounded_up():
    symbol = polyphase(np.zeros((1, 1)), np.full((1, 1, 1, 2), 5e-324), (1,))  # norm 1.41 times the smallest number
    assert Fraction(torus_norm_upper(symbol, Grid((1,), (0,)))) ** 2 >= 2 * Fraction(5e-324) ** 2


def test_a_symbol_with_nan_is_refused_and_zero_is_zero():
    with pytest.raises(NotFinite):
        torus_norm_upper(polyphase(np.zeros((1, 1)), np.full((1, 1, 1, 1), math.nan), (1,)), Grid((1,), (0,)))
    assert torus_norm_upper(polyphase(np.zeros((1, 1)), np.zeros((1, 1, 1, 1)), (1,)), Grid((1,), (0,))) == 0.0
