"""Single-precision bounds: never below the truth, whatever the weights, guesses and factors; tight with a guess."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lipcert.errors import NotFinite
from lipcert.kernel import fourier, single
from lipcert.kernel.fourier import Grid, polyphase
from lipcert.kernel.roots import unit_roots
from lipcert.kernel.single import Oracles, gamma, joined, psd_defect, shifted, squared_norm, squares_up
from lipcert.linear import Conv, Dense
from lipcert.linear import dense as written_out
from lipcert.opnorm import opnorm, swift
from lipcert.opnorm.swift import autocorrelation, swift_norm, torus_norm
from tests.oracles import LIARS, TRUSTED

GUESSES = (None, 1.0, 0.999, 0.99, 0.5, 1.01, 2.0, 1e30, 0.0, -1.0, math.nan, math.inf)
SHAPES = ((64, 64), (65, 130), (300, 70), (150, 150))


def gaussian(rng: np.random.Generator, m: int, n: int) -> np.ndarray:
    return rng.standard_normal((m, n))


def rank_one(rng: np.random.Generator, m: int, n: int) -> np.ndarray:
    return np.outer(rng.standard_normal(m), rng.standard_normal(n))


def hilbert(rng: np.random.Generator, m: int, n: int) -> np.ndarray:
    return 1.0 / (1.0 + np.arange(m)[:, None] + np.arange(n))


def graded(rng: np.random.Generator, m: int, n: int) -> np.ndarray:
    return rng.standard_normal((m, n)) * 2.0 ** -np.arange(m)[:, None]


def equal(rng: np.random.Generator, m: int, n: int) -> np.ndarray:
    return np.full((m, n), rng.uniform(0.1, 1.0))


def orthogonal(rng: np.random.Generator, m: int, n: int) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((max(m, n), min(m, n))))[0].reshape(m, n)


def spikes(rng: np.random.Generator, m: int, n: int) -> np.ndarray:
    return np.where(rng.random((m, n)) < 0.003, 10.0 ** rng.uniform(-20, 3, (m, n)), 0.0)


def outlier(rng: np.random.Generator, m: int, n: int) -> np.ndarray:
    A = 1e-25 * rng.standard_normal((m, n))
    A[m // 2, n // 3] = 1.0
    return A


FAMILIES = (gaussian, rank_one, hilbert, graded, equal, orthogonal, spikes, outlier)


def linear(A: np.ndarray, dtype: torch.dtype) -> tuple[Dense, float]:
    """The map, and the norm of its weights as stored."""
    weight = torch.from_numpy(np.ascontiguousarray(A)).to(dtype)
    stored = weight.double().numpy()
    peak = np.max(np.abs(stored), initial=0.0) or 1.0
    return Dense(weight, (weight.shape[1],)), float(np.linalg.norm(stored / peak, 2) * peak)


def above(bound: float, norm: float, slack: float) -> bool:
    return norm * (1.0 - 1e-12) <= bound <= norm * (1.0 + slack)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_bound_is_above_the_norm_and_within_two_percent(family, dtype):
    rng = np.random.default_rng(0)
    for m, n in SHAPES:
        dense, norm = linear(family(rng, m, n), dtype)
        assert above(swift_norm(dense), norm, 0.021)


@pytest.mark.parametrize("factor", GUESSES)
@pytest.mark.parametrize("family", [gaussian, equal, orthogonal, graded])
def test_a_guess_of_any_quality_changes_neither_truth_nor_tightness(family, factor):
    dense, norm = linear(family(np.random.default_rng(1), 140, 90), torch.float32)
    assert above(swift_norm(dense, None if factor is None else factor * norm), norm, 0.021)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e30, 1e-30, 1e38, 1e-38, 3e-44, 1e300, 1e-300, 1e-310])
def test_every_scale_of_the_weights_is_fine(scale, dtype):
    if dtype == torch.float32 and not 1e-45 < scale < 1e39:
        pytest.skip("float32 does not reach so far")
    A = np.random.default_rng(2).uniform(-1.0, 1.0, (80, 70))
    dense, norm = linear(A * scale, dtype)
    assert above(swift_norm(dense), norm, 0.021)
    assert above(swift_norm(dense, norm), norm, 0.021)


@given(
    st.sampled_from(FAMILIES),
    st.tuples(st.integers(64, 170), st.integers(64, 170)),
    st.integers(-100, 100),
    st.floats(0.0, 4.0),
    st.integers(0, 2**32),
)
def test_the_bound_is_above_the_norm_for_generated_matrices(family, shape, exponent, guess, seed):
    dense, norm = linear(family(np.random.default_rng(seed), *shape) * 2.0**exponent, torch.float32)
    assert above(swift_norm(dense, guess * norm), norm, 0.021) or norm == 0.0


def test_the_bound_is_above_exactly_known_norms():
    rng = np.random.default_rng(3)
    u, v = rng.integers(-9, 10, 90), rng.integers(-9, 10, 300)
    squared = int(u @ u) * int(v @ v)
    H = np.ones((1, 1))
    for _ in range(7):
        H = np.kron(H, [[1.0, 1.0], [1.0, -1.0]])
    for A, exact in ((np.outer(u, v), squared), (H, 128), (np.ones((500, 100)), 50000)):
        for guess in (None, exact**0.5):
            assert exact <= Fraction(swift_norm(linear(A, torch.float32)[0], guess)) ** 2 <= exact * Fraction(102, 100)


@pytest.mark.parametrize("n", [256, 512, 1024])
def test_a_good_guess_leaves_a_third_of_a_percent(n):
    dense, norm = linear(np.random.default_rng(n).standard_normal((n, n)), torch.float32)
    assert above(swift_norm(dense, norm), norm, 0.0035)
    assert above(swift_norm(dense, 0.999 * norm), norm, 0.0035)


def test_small_maps_zeros_and_no_inputs_have_the_bound_of_opnorm():
    small = Dense(torch.tensor([[3.0, 4.0]]), (2,))
    assert swift_norm(small) == opnorm(small).value
    assert swift_norm(Dense(torch.zeros(100, 100), (100,))) == 0.0
    assert swift_norm(Dense(torch.ones(100, 100), (0, 100))) == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused(bad):
    weight = torch.ones(70, 70)
    weight[3, 0] = bad
    with pytest.raises(NotFinite):
        swift_norm(Dense(weight, (70,)), 1.0)
    with pytest.raises(NotFinite):
        single.norm2_upper(weight.numpy(), 1.0, TRUSTED)
    with pytest.raises(NotFinite):
        swift_norm(convolution(weight[:, :1, None].expand(70, 1, 3), 16, 1, 1, 1, "zeros"), 1.0)


# The steps of the proof, each against exact or float64 arithmetic.


def semidefinite(H: np.ndarray, rho: float) -> bool:
    return rho == math.inf or float(np.linalg.eigvalsh(H)[0]) >= -rho - 1e-12 * float(np.max(np.abs(H)))


def hermitian(rng: np.random.Generator, n: int, parts: int, lowest: float) -> tuple[np.ndarray, ...]:
    A = rng.standard_normal((n, n)) + (1j * rng.standard_normal((n, n)) if parts == 2 else 0.0)
    Q = np.linalg.qr(A)[0]
    H = ((Q * np.linspace(lowest, 2.0, n)) @ Q.conj().T).astype(np.complex64)
    H = np.tril(H) + np.tril(H, -1).conj().T
    return tuple(np.ascontiguousarray(part.astype(np.float32)[None]) for part in (H.real, H.imag)[:parts])


@pytest.mark.parametrize("liar", LIARS)
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("n", [3, 64, 150])
def test_no_factor_makes_an_indefinite_matrix_semidefinite(n, parts, liar):
    rng = np.random.default_rng(4)
    for lowest in (0.1, -1e-4, -0.1, -2.0):
        H = hermitian(rng, n, parts, lowest)
        exact = joined(H)[0].astype(np.complex128)
        with np.errstate(all="ignore"):
            rho = psd_defect(tuple(part.copy() for part in H), LIARS[liar])
        assert semidefinite(exact, float(rho[0]))
        if liar == "honest":
            assert (rho[0] < 1e-2) == (lowest > 0.0)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("blocks", [1, 2])
def test_the_rounding_of_the_products_of_a_factor_is_paid_for(parts, blocks):
    # R has equal rows, H is R* R as computed: nothing is left over, but H has no business being semidefinite.
    n = blocks * 128 // parts
    for value in (0.1, 0.3, 0.7, 1.1):
        R = tuple(np.triu(np.full((n, n), value * (1 + k), np.float32))[None] for k in range(parts))
        R[-1][:, range(n), range(n)] *= np.float32(1e-3) if parts == 2 else 1
        first = tuple(part[:, : n // blocks] for part in R)
        H = tuple(part.copy() for part in single._adjoint_product(first, first))
        if blocks == 2:
            H = tuple(part.copy() for part in single._adjoint_product(R, R))
        calls = iter(range(blocks))
        step = n // blocks

        def factor(_, R=R, calls=calls, step=step):
            k = next(calls) * step
            return joined(tuple(part[:, k : k + step, k : k + step] for part in R)).swapaxes(1, 2).conj()

        def rest(_, B, R=R, step=step):
            return joined(tuple(part[:, :step, step:] for part in R))

        exact = joined(H)[0].astype(np.complex128)
        rho = psd_defect(tuple(part.copy() for part in H), Oracles(factor, rest))
        factor64 = joined(R)[0].astype(np.complex128)
        assert np.linalg.norm(exact - factor64.conj().T @ factor64, 2) <= rho[0] < np.inf


def perfect(H, oracles):
    """The defect from float64 eigenvalues, so that only the other roundings are left to pay for."""
    return np.maximum(0.0, -np.linalg.eigvalsh(H[0].astype(np.float64))[:, 0])


@pytest.mark.parametrize("m", [64, 1000, 5000])
def test_the_rounding_of_the_gram_matrix_is_paid_for(m, monkeypatch):
    monkeypatch.setattr(single, "psd_defect", perfect)
    monkeypatch.setattr(single, "SLACKS", (0.0,))
    signs = np.where(np.arange(64) % 2, np.float32(-1.0), np.float32(1.0))  # with them rows sum up to nothing
    for value, columns in itertools.product(np.linspace(0.5, 1.0, 20, dtype=np.float32), (abs(signs), signs)):
        A = np.full((m, 64), value) * columns
        bound = single.norm2_upper(A, None, TRUSTED)
        assert Fraction(bound) ** 2 >= 64 * m * Fraction(float(value)) ** 2


@pytest.mark.parametrize("A", [np.float64(1.0 + 2.0**-25) * np.ones((64, 64)), np.full((64, 64), 1.0 + 2.0**-24)])
def test_the_rounding_of_double_precision_weights_is_paid_for(A, monkeypatch):
    monkeypatch.setattr(single, "psd_defect", perfect)
    monkeypatch.setattr(single, "SLACKS", (0.0,))
    monkeypatch.setattr(single, "gamma", lambda count: 0.0)  # sums of ones are exact: nothing else may hide it
    monkeypatch.setattr(single, "shifted", exactly_shifted)
    assert Fraction(single.norm2_upper(A, None, TRUSTED)) >= 64 * Fraction(float(A[0, 0]))


def exactly_shifted(minus, c):
    diagonal = np.einsum("bii->bi", minus[0])
    diagonal += np.float32(c)
    return np.zeros(1)


@given(st.floats(0.0, 1e3, width=32), st.floats(-1e3, 1e3, width=32))
def test_the_rounding_of_the_shift_is_paid_for(c, entry):
    minus = (np.full((1, 1, 1), -entry, np.float32),)
    rounding = shifted(minus, c)[0]
    assert abs(Fraction(float(minus[0][0, 0, 0])) - (Fraction(c) - Fraction(entry))) <= Fraction(float(rounding))


def test_norms_of_non_negative_matrices_and_sums_of_squares_are_rounded_up():
    for value in np.linspace(0.5, 1.0, 40, dtype=np.float32):
        for m, n in ((64, 64), (1000, 70), (70, 1000)):
            A = np.full((1, m, n), value)
            exact = m * n * Fraction(float(value)) ** 2
            assert exact <= Fraction(float(squares_up(A)[0])) <= exact * Fraction(101, 100)
            assert exact <= Fraction(float(squared_norm([A[:, :30], A[:, 30:]])[0])) <= exact * Fraction(101, 100)
    A = np.abs(np.random.default_rng(5).standard_normal((3, 90, 110))).astype(np.float32)
    exact = np.linalg.norm(A.astype(np.float64), 2, axis=(1, 2)) ** 2
    bound = squared_norm([A[:, :50], A[:, 50:]])
    assert np.all((exact <= bound) & (bound <= 1.1 * exact))


def test_many_rows_lose_more_than_the_columns_pay_for():
    # Equal terms round in one direction: at this length by more than the roundings of two columns have room for.
    for value in np.linspace(0.5, 1.0, 12, dtype=np.float32):
        A = np.full((1, 2**17, 2), value)
        assert Fraction(float(squared_norm([A])[0])) >= A.size * Fraction(float(value)) ** 2


@pytest.mark.parametrize("m", [1, 128, 129, 1000, 128**2, 128**2 + 1, 10**5])
def test_an_entry_of_the_gram_matrix_suffers_as_many_roundings_as_the_root_of_its_rows(m):
    G, terms = single.gram(np.ones((m, 1), np.float32))
    assert G[0, 0] == m
    assert min(m, 2 * math.isqrt(m)) <= terms <= 2 * max(128, math.isqrt(m)) + 3


def test_gamma_counts_two_more_roundings_and_gives_up_before_it_is_meaningless():
    assert Fraction(12, 2**24 - 12) <= Fraction(gamma(10)) <= Fraction(13, 2**24 - 13)
    assert gamma(2**24) == math.inf


def test_what_is_left_off_the_diagonal_counts_twice():
    # Three blocks; the factor ignores all that couples them, and the lowest eigenvalue is -2 * 128 + 1e-3.
    n = 384
    block = np.arange(n) // 128
    H = np.where(block[:, None] == block, 1e-3 * np.eye(n), -1.0).astype(np.float32)
    rho = psd_defect((H[None].copy(),), LIARS["no off-diagonal"])
    assert semidefinite(H.astype(np.float64), float(rho[0]))


def test_the_size_of_a_complex_factor_counts_both_parts():
    for value in np.linspace(0.5, 1.0, 20, dtype=np.float32):
        part = np.full((1, 20, 20), value)
        assert Fraction(float(single._factor_size([(part, part)])[0])) >= (40 * Fraction(float(value))) ** 2


@pytest.mark.parametrize("module", [single, swift])
def test_the_rounding_of_the_shift_reaches_the_bound(module, monkeypatch):
    rng = np.random.default_rng(8)
    G = np.eye(70, dtype=np.float32)
    symbol = symbol_of(rng, 1, 3, 3, 3, 1)
    monkeypatch.setattr(module, "shifted", lambda minus, c: shifted(minus, c) + 1e4)
    if module is single:
        assert single._eigenvalue_upper(G, 1.0, TRUSTED) >= 1e4
    else:
        polynomial = autocorrelation(symbol.positions, symbol.taps)
        values = polynomial.at(np.zeros((1, len(polynomial.differences)), int), *np.float32([[1.0], [0.0]]))
        top = float(-np.min(np.linalg.eigvalsh(values[0][0])))
        frobenius = float(np.linalg.norm(values[0]))
        assert top < frobenius * 0.999
        assert swift._bounds(values, (top + frobenius) / 2.0, TRUSTED)[0] >= 1e4


def test_a_loose_bound_and_a_missing_proof_are_infinite(monkeypatch):
    A = np.random.default_rng(9).standard_normal((80, 80))
    symbol, grid = symbol_of(np.random.default_rng(9), 1, 6, 6, 3, 1), Grid((8, 8), (0, 0))
    assert single.norm2_upper(A, None, TRUSTED) < math.inf
    assert torus_norm(symbol, grid) < math.inf
    with monkeypatch.context() as patch:
        patch.setattr(single, "SLACKS", (0.1,))
        patch.setattr(swift, "SLACKS", (0.1,))
        assert single.norm2_upper(A, None, TRUSTED) == math.inf
        assert torus_norm(symbol, grid) == math.inf
    unproved = np.array([math.inf])
    monkeypatch.setattr(single, "psd_defect", lambda H, oracles: unproved)
    monkeypatch.setattr(swift, "psd_defect", lambda H, oracles: np.where(np.arange(len(H[0])) == 0, np.inf, 0.0))
    assert single.norm2_upper(A, None, TRUSTED) == math.inf
    assert torus_norm(symbol, grid) == math.inf


# Convolutions.


def symbol_of(rng: np.random.Generator, groups: int, out: int, into: int, kernel: int, stride: int, low: float = -1.0):
    taps = rng.uniform(low, 1.0, (kernel * kernel, groups, out, into)).astype(np.float32)
    return polyphase(np.array(list(itertools.product(range(kernel), repeat=2))), taps, (stride, stride))


@pytest.mark.parametrize("low", [-1.0, 0.3, 1.0])
@pytest.mark.parametrize("shape", [(1, 5, 3), (2, 3, 8), (1, 40, 40)])
def test_the_autocorrelation_evaluates_to_the_gram_matrices_within_its_error(shape, low):
    symbol = symbol_of(np.random.default_rng(6), *shape, 3, 1, low)
    symbol = fourier.Symbol(symbol.positions, symbol.taps * 0.7)
    polynomial = autocorrelation(symbol.positions, symbol.taps)
    cosine, sine = unit_roots(48)
    frequencies = np.array(list(itertools.product(range(0, 48, 5), repeat=2)))
    have = -joined(
        polynomial.at((frequencies @ polynomial.differences.T) % 48, *(t.astype("f") for t in (cosine, sine)))
    )
    index = (frequencies @ symbol.positions.T) % 48
    F = np.einsum("ft,tgoi->fgoi", cosine[index] + 1j * sine[index], symbol.taps)
    F = (F if shape[1] >= shape[2] else F.swapaxes(2, 3)).reshape(-1, max(shape[1:]), min(shape[1:]))
    gram = F.conj().swapaxes(1, 2) @ F
    worst = float(np.max(np.linalg.norm(have - gram, 2, axis=(1, 2))))
    assert 0.0 < worst <= polynomial.error <= 1e-3 * float(np.max(np.abs(gram))) * min(shape[1:])


@given(
    st.integers(1, 2),
    st.integers(1, 20),
    st.integers(1, 20),
    st.integers(1, 3),
    st.integers(1, 2),
    st.tuples(st.integers(4, 8), st.integers(4, 8)),
    st.tuples(st.integers(0, 1), st.integers(0, 1)),
    st.one_of(st.none(), st.floats(0.0, 3.0)),
    st.integers(0, 2**32),
)
def test_the_torus_norm_is_above_the_float64_one(groups, out, into, kernel, stride, sizes, offsets, guess, seed):
    symbol = symbol_of(np.random.default_rng(seed), groups, out, into, kernel, stride)
    exact = fourier.torus_norm_upper(symbol, Grid(sizes, offsets))
    bound = torus_norm(symbol, Grid(sizes, offsets), None if guess is None else guess * exact)
    assert exact * (1.0 - 1e-8) <= bound  # 1e-9 is what the float64 bound may be above the truth
    assert bound <= 1.021 * exact or bound == math.inf


def test_the_torus_norm_is_above_norms_known_exactly():
    # Equal taps w: at frequency 0 the symbol is taps * w times a matrix of ones.
    for channels, value in itertools.product((1, 16, 70), (0.1, 0.3, 0.7)):
        taps = np.full((9, 1, channels, channels), value, np.float32)
        symbol = polyphase(np.array(list(itertools.product(range(3), repeat=2))), taps, (1, 1))
        exact = 9 * channels * Fraction(float(np.float32(value)))
        assert exact <= Fraction(torus_norm(symbol, Grid((6, 6), (0, 0)))) <= exact * Fraction(102, 100)


def test_the_torus_norm_is_above_the_symbol_where_no_slack_hides_it(monkeypatch):
    monkeypatch.setattr(swift, "SLACKS", (0.0,))
    monkeypatch.setattr(swift, "psd_defect", lambda H, oracles: np.maximum(0.0, -np.linalg.eigvalsh(joined(H))[:, 0]))
    for value in np.linspace(0.5, 1.0, 40, dtype=np.float32):
        symbol = polyphase(np.arange(5)[:, None], np.full((5, 1, 1, 1), value), (1,))
        assert Fraction(torus_norm(symbol, Grid((5,), (0,)))) >= 5 * Fraction(float(value))


def convolution(weight: torch.Tensor, size: int, stride: int, dilation: int, groups: int, mode: str) -> Conv:
    dims, kernel = weight.ndim - 2, weight.shape[-1]
    pad = dilation * (kernel // 2)
    out = (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
    shape = (weight.shape[1] * groups, *(size,) * dims)
    each = ((stride,) * dims, ((pad, pad),) * dims, (dilation,) * dims)
    return Conv(weight, shape, (out,) * dims, *each, groups, mode)


@given(
    st.sampled_from(["zeros", "circular", "reflect", "replicate"]),
    st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 2)),
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(1, 2),
    st.integers(5, 9),
    st.one_of(st.none(), st.sampled_from([1.0, 0.999, 0.99, 0.5, 2.0, math.nan, -1.0])),
    st.sampled_from([torch.float32, torch.float64]),
    st.integers(0, 2**32),
)
def test_convolutions_are_bounded_from_above(mode, channels, dims, kernel, stride, dilation, size, factor, dtype, seed):
    out, into, groups = channels
    weight = torch.randn(
        out * groups, into, *(kernel,) * dims, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)
    conv = convolution(weight, size, stride, dilation, groups, mode)
    norm = float(np.linalg.norm(written_out(conv).numpy(), 2))
    bound = swift_norm(conv, None if factor is None else factor * norm)
    # A guess twice as large makes a bound up to 2 percent above that guess look close.
    assert above(bound, norm, 0.021 if factor != 2.0 else 1.041)


@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_a_convolution_too_large_to_be_written_out_is_bounded_as_in_double_precision(mode):
    weight = torch.randn(24, 20, 3, 3, generator=torch.Generator().manual_seed(7))
    conv = convolution(weight, 18, 1, 1, 1, mode)
    exact = opnorm(conv).value
    for guess in (None, exact, 0.99 * exact, 0.5 * exact, 2.0 * exact):
        assert above(swift_norm(conv, guess), exact, 0.012)


def test_a_convolution_all_of_whose_taps_miss_the_input_and_one_without_inputs_are_zero():
    empty = Conv(torch.ones(2, 2, 1), (2, 1), (1,), (1,), ((1, -1),), (1,), 1, "zeros")
    assert swift_norm(empty) == 0.0
    assert swift_norm(convolution(torch.zeros(8, 8, 3, 3), 30, 1, 1, 1, "zeros"), 1.0) == 0.0


def test_outputs_that_occur_twice_around_a_circle_count_twice():
    weight = torch.randn(70, 70, 1, generator=torch.Generator().manual_seed(10))
    conv = Conv(weight, (70, 16), (32,), (1,), ((8, 8),), (1,), 1, "circular")
    assert above(swift_norm(conv), 2.0**0.5 * float(np.linalg.norm(weight[:, :, 0].double().numpy(), 2)), 0.021)
