"""Classical power iteration: an estimate from below, by laws, by arithmetic, and beside torch's implementations."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import spectral_norm as hooked
from torch.nn.utils.parametrizations import spectral_norm as parametrized

from lipcert.errors import InvalidInput, NotFinite
from lipcert.kernel.dense import norm2_upper
from lipcert.reference import power_iteration, spectral_norm_forward
from tests.adversarial import FAMILIES

DOCS = Path(__file__).parent.parent / "docs"


@st.composite
def problems(draw, dtypes=(np.float32, np.float64)):
    """A matrix, Gaussian or nasty, at any usual magnitude, and a start."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = draw(st.tuples(st.integers(1, 7), st.integers(1, 7)))
    W = rng.standard_normal(shape)
    if draw(st.booleans()):
        W = W @ np.diag(2.0 ** -np.arange(shape[1])) * rng.integers(0, 2, shape)
    W *= 10.0 ** draw(st.sampled_from([-30, -3, 0, 3, 30]))
    dtype = draw(st.sampled_from(dtypes))
    return W.astype(dtype), rng.standard_normal(shape[0]).astype(dtype)


def norm(W) -> float:
    return float(np.linalg.norm(W.astype(np.float64), 2))


def rounding(W) -> float:
    """Relative: two inner products, and cancellation, which costs at most the norm of |W| over that of W."""
    return 8 * (sum(W.shape) ** 1.5) * float(np.finfo(W.dtype).eps)


@given(problems(), st.integers(1, 30))
def test_the_estimate_is_never_above_the_norm(problem, steps):
    W, u = problem
    sigma, u, v = power_iteration(W, u, steps)
    assert 0.0 <= sigma <= norm(W) * (1 + rounding(W))
    if sigma > 0.0:
        assert math.isclose(float(u.astype(np.float64) @ W.astype(np.float64) @ v), sigma, rel_tol=rounding(W))
        assert math.isclose(np.linalg.norm(u), 1.0, rel_tol=1e-6)
        assert math.isclose(np.linalg.norm(v), 1.0, rel_tol=1e-6)


@given(problems(), st.integers(1, 10))
def test_the_estimate_never_falls_as_it_goes_on(problem, steps):
    W, u = problem
    before, now = (power_iteration(W, u, n)[0] for n in (steps, steps + 1))
    assert before <= now + norm(W) * rounding(W)


@given(problems(), st.integers(1, 6), st.integers(1, 6))
def test_two_calls_that_hand_on_u_are_one_longer_call(problem, first, second):
    W, u = problem
    _, between, _ = power_iteration(W, u, first)
    handed_on, at_once = power_iteration(W, between, second), power_iteration(W, u, first + second)
    assert math.isclose(handed_on[0], at_once[0], rel_tol=1e-3 if W.dtype == np.float32 else 1e-9)


@given(st.integers(0, 2**32), st.sampled_from([1e-30, 1.0, 1e30]))
def test_it_converges_to_the_norm_where_the_singular_values_are_apart(seed, scale):
    rng = np.random.default_rng(seed)
    Q, P = (np.linalg.qr(rng.standard_normal((5, 5)))[0] for _ in range(2))
    W = scale * Q @ np.diag([3.0, 1.0, 0.5, 0.1, 0.0]) @ P
    u = Q @ np.array([0.1, 1.0, 1.0, 1.0, 1.0])
    sigma, u, v = power_iteration(W, u, 40)
    assert math.isclose(sigma, 3.0 * scale, rel_tol=1e-12)
    assert np.allclose(W @ v, sigma * u, rtol=0, atol=1e-12 * sigma)
    divided, _ = spectral_norm_forward(W, u)
    assert math.isclose(norm(divided), 1.0, rel_tol=1e-12)


@given(problems(), st.integers(1, 3))
def test_the_normalised_matrix_has_norm_at_least_one(problem, steps):
    W, u = problem
    divided, after = spectral_norm_forward(W, u, steps)
    sigma, expected, _ = power_iteration(W, u, steps)
    assert divided.dtype == W.dtype
    assert np.array_equal(after, expected)
    if sigma > 0.0:
        assert norm(divided) >= 1 - rounding(W)
        assert math.isclose(norm(divided), norm(W) / sigma, rel_tol=rounding(W))


@pytest.mark.parametrize("family", FAMILIES)
def test_nasty_matrices_have_estimates_that_are_not_above_a_proven_bound(family):
    rng = np.random.default_rng(5)
    for _ in range(20):
        W = FAMILIES[family](rng)
        with np.errstate(over="ignore"):
            sigma = power_iteration(W, rng.standard_normal(len(W)), 3)[0]
        assert 0.0 <= sigma <= norm2_upper(W) * (1 + rounding(W)) + 5e-324


@given(st.integers(0, 2**32), st.sampled_from([np.float32, np.float64]))
def test_a_matrix_of_rank_one_is_exact_after_one_step(seed, dtype):
    rng = np.random.default_rng(seed)
    a, b, u = (rng.standard_normal(n).astype(dtype) for n in (4, 6, 4))
    if abs(a @ u) < 0.1 * np.linalg.norm(u):
        u = a  # a start this close to orthogonal loses the digits it keeps
    sigma = power_iteration(np.outer(a, b), u, 1)[0]
    assert math.isclose(sigma, float(np.linalg.norm(a) * np.linalg.norm(b)), rel_tol=200 * np.finfo(dtype).eps)


def test_a_start_orthogonal_to_the_top_direction_misses_it_for_ever():
    W = np.diag([5.0, 2.0, 1.0])
    sigma, u, _ = power_iteration(W, np.array([0.0, 1.0, 1.0]), 1000)
    assert math.isclose(sigma, 2.0, rel_tol=1e-12)
    assert u[0] == 0.0
    divided, _ = spectral_norm_forward(W, np.array([0.0, 1.0, 1.0]), 1000)
    assert math.isclose(norm(divided), 2.5, rel_tol=1e-12)


@pytest.mark.parametrize("u", [(1.0, 1.0), (1e-200, 1e-200), (1e200, 1e200)])
def test_two_by_two_by_hand(u):
    # v = (3, 4) / 5, W v = (9, 16) / 5, u = (9, 16) / sqrt(337), sigma = sqrt(337) / 5.
    sigma, u, v = power_iteration(np.diag([3.0, 4.0]), np.array(u), 1)
    assert math.isclose(sigma, math.sqrt(337) / 5, rel_tol=1e-15)
    assert np.allclose(v, [0.6, 0.8], rtol=1e-15)
    assert np.allclose(u, np.array([9.0, 16.0]) / math.sqrt(337), rtol=1e-15)


def test_zero_has_norm_zero_and_stays_zero():
    u = np.array([3.0, 4.0])
    sigma, after, v = power_iteration(np.zeros((2, 3)), u, 5)
    assert (sigma, after.tolist(), v.tolist()) == (0.0, [0.6, 0.8], [0.0, 0.0, 0.0])
    divided, _ = spectral_norm_forward(np.zeros((2, 3)), u)
    assert divided.tolist() == [[0.0] * 3] * 2
    W = np.array([[0.0, 0.0], [1.0, 2.0]])
    divided, _ = spectral_norm_forward(W, np.array([1.0, 0.0]))  # u is orthogonal to the range
    assert divided.tolist() == W.tolist()
    assert divided is not W


def test_entries_far_below_the_largest_one_do_not_vanish_in_a_square():
    W = np.diag([1.0, 1e-200])
    assert math.isclose(power_iteration(W, np.array([0.0, 1.0]), 1)[0], 1e-200, rel_tol=1e-15)


@given(problems())
def test_arguments_are_only_read(problem):
    W, u = problem
    W.flags.writeable = u.flags.writeable = False
    copies = W.copy(), u.copy()
    first, again = power_iteration(W, u, 3), power_iteration(W, u, 3)
    divided, after = spectral_norm_forward(W, u)
    assert first[0] == again[0]
    assert np.array_equal(first[1], again[1])
    assert np.array_equal(W, copies[0])
    assert np.array_equal(u, copies[1])
    assert not np.shares_memory(divided, W)
    assert not np.shares_memory(after, u)


def _layers(seed: int, convolution: bool) -> nn.Module:
    torch.manual_seed(seed)
    layer = nn.Conv2d(3, 5, 3) if convolution else nn.Linear(6, 4)
    return layer.double()


@pytest.mark.parametrize("convolution", [False, True], ids=["linear", "conv"])
@pytest.mark.parametrize("seed", range(3))
def test_one_training_step_agrees_with_the_hook_of_torch(seed, convolution):
    layer = hooked(_layers(seed, convolution)).train()
    W, u = layer.weight_orig.detach().flatten(1).numpy(), layer.weight_u.clone().numpy()
    for _ in range(3):
        layer(torch.zeros(1, 3, 3, 3, dtype=torch.float64) if convolution else torch.zeros(6, dtype=torch.float64))
        divided, u = spectral_norm_forward(W, u)
        assert np.allclose(layer.weight.detach().flatten(1).numpy(), divided, rtol=1e-13, atol=0)
        assert np.allclose(layer.weight_u.numpy(), u, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("convolution", [False, True], ids=["linear", "conv"])
@pytest.mark.parametrize("seed", range(3))
def test_one_training_step_agrees_with_the_parametrization_of_torch(seed, convolution):
    # It starts from v and ends on v, so it is the same iteration on the transpose.
    layer = parametrized(_layers(seed, convolution)).train()
    spectral = layer.parametrizations.weight[0]
    W = layer.parametrizations.weight.original.detach().flatten(1).numpy()
    rng = np.random.default_rng(seed)
    start = rng.standard_normal(len(W))
    _, u, v = power_iteration(W, start, 1)
    with torch.no_grad():
        spectral._u.copy_(torch.from_numpy(u))
        spectral._v.copy_(torch.from_numpy(v))
    read = layer.weight.detach().flatten(1).numpy()
    transposed, v = spectral_norm_forward(W.T, v)
    assert np.allclose(read, transposed.T, rtol=1e-13, atol=0)
    assert np.allclose(spectral._v.numpy(), v, rtol=1e-12, atol=1e-14)
    # From the same u it is half a step further: between one step of the method and two.
    sigma = float(np.linalg.norm(W) / np.linalg.norm(read))
    one, two = (power_iteration(W, start, n)[0] for n in (1, 2))
    assert one * (1 - 1e-13) <= sigma <= two * (1 + 1e-13)


@pytest.mark.parametrize(
    ("W", "u", "steps", "error", "message"),
    [
        (np.ones((2, 3)), np.ones(3), 1, InvalidInput, "shape"),
        (np.ones((2, 3, 3)), np.ones(2), 1, InvalidInput, "kernel"),
        (np.ones((2, 3)), np.ones(2), 0, InvalidInput, "n_iters=0"),
        (np.ones((2, 3)), np.zeros(2), 1, InvalidInput, "u is zero"),
        (np.ones((2, 3)) * 1j, np.ones(2), 1, InvalidInput, "complex"),
        (np.full((2, 3), np.nan), np.ones(2), 1, NotFinite, "NaN"),
        (np.ones((2, 3)), np.array([np.inf, 0.0]), 1, NotFinite, "infinity"),
    ],
)
def test_what_cannot_be_iterated_is_refused(W, u, steps, error, message):
    with pytest.raises(error, match=message):
        power_iteration(W, u, steps)


def test_the_page_about_power_iteration_prints_what_it_shows(capsys):
    page = (DOCS / "power-iteration.md").read_text()
    code, shown = ("".join(re.findall(rf"^```{kind}\n(.*?)^```", page, re.M | re.S)) for kind in ("python", "text"))
    exec(compile(code, "power-iteration.md", "exec"), {})
    assert capsys.readouterr().out == shown
    assert len(shown.splitlines()) == 6
