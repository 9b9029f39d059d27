"""`lipcert.nn`: pooling against its true constants, and the inverse of a residual block against its error bounds."""

import copy
import itertools
import math
import pickle

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import lipcert
from lipcert.errors import InvalidInput, LipschitzViolation, NotFinite
from lipcert.nn import AveragePool2d, InvertibleResidual, L2Pool2d, MaxPool2d, steps_needed
from lipcert.nn.pooling import average_gain, max_gain

POOLS = {
    "average": lambda: AveragePool2d(2),
    "average, rectangular": lambda: AveragePool2d((3, 2), (3, 4)),
    "max": lambda: MaxPool2d(2),
    "max, apart": lambda: MaxPool2d((1, 2), 3),
    "l2": lambda: L2Pool2d(2),
    "l2, rectangular": lambda: L2Pool2d((3, 2)),
}
every_pool = pytest.mark.parametrize("name", POOLS)


def jacobian_norm(layer: nn.Module, x: Tensor) -> float:
    J = torch.func.jacrev(lambda z: layer(z[None]).flatten())(x)
    return float(torch.linalg.matrix_norm(J.reshape(len(J), -1), 2))


# Pooling


@every_pool
@given(seed=st.integers(0, 10**6), height=st.integers(3, 7), width=st.integers(3, 7))
def test_no_derivative_of_pooling_is_longer_than_one(name: str, seed: int, height: int, width: int):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, height, width, generator=generator, dtype=torch.float64)
    assert jacobian_norm(POOLS[name](), x) == pytest.approx(1.0, abs=1e-12)  # at most, and reached


@every_pool
@given(data=st.data())
def test_no_difference_quotient_of_pooling_exceeds_one(name: str, data: st.DataObject):
    numbers = st.floats(-1e6, 1e6, allow_subnormal=False)
    points = data.draw(st.lists(numbers, min_size=48, max_size=48))
    x, y = torch.tensor(points, dtype=torch.float64).reshape(2, 1, 1, 4, 6)
    pool = POOLS[name]()
    slack = 1e-12 * (x.abs().max() + y.abs().max())
    assert (pool(x) - pool(y)).norm() <= (x - y).norm() + slack


@every_pool
def test_lipcert_certifies_pooling_at_one(name: str):
    assert lipcert.certify(POOLS[name](), (2, 5, 6)).bound == pytest.approx(1.0, abs=1e-8)


def test_pools_are_what_their_names_say():
    x = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(AveragePool2d(2)(x), 2 * F.avg_pool2d(x, 2))
    assert torch.equal(MaxPool2d(2)(x), F.max_pool2d(x, 2))
    torch.testing.assert_close(L2Pool2d(2)(x), F.lp_pool2d(x, 2.0, 2))
    torch.testing.assert_close(L2Pool2d((4, 4))(x[..., :4, :4]).flatten(1), x[..., :4, :4].flatten(2).norm(dim=2))


def test_l2_pooling_has_a_zero_gradient_at_a_zero_window():
    x = torch.zeros(1, 1, 2, 4)
    x[..., 2:] = 3.0
    x.requires_grad_()
    L2Pool2d(2)(x).sum().backward()
    assert x.grad.flatten().tolist() == [0.0, 0.0, 0.5, 0.5, 0.0, 0.0, 0.5, 0.5]


@pytest.mark.parametrize(("window", "stride"), [(2, 1), (3, 2), (3, 1), (5, 2), (4, 3)])
def test_overlapping_windows_are_refused_with_their_true_constant(window: int, stride: int):
    n = 12 * stride + window
    for make, gain, pool in ((MaxPool2d, max_gain, F.max_pool2d), (AveragePool2d, average_gain, F.avg_pool2d)):
        constant = gain(window, stride)
        with pytest.raises(InvalidInput, match=f"be {constant:.6g}, not 1"):
            make(window, stride)  # two dimensions: the root of the square
        if pool is F.max_pool2d:
            # A comb of spikes, each the maximum of as many windows as can hold one entry.
            x = torch.zeros(1, 1, 1, n, dtype=torch.float64)
            x[..., window - 1 :: math.ceil(window / stride) * stride] = 1.0
            grown = pool(x, (1, window), (1, stride)).norm() / x.norm()
            assert grown == pytest.approx(math.sqrt(constant), rel=0.1)
        units = torch.eye(n, dtype=torch.float64).reshape(n, 1, 1, n)
        if pool is F.avg_pool2d:
            true = torch.linalg.matrix_norm(pool(units, (1, window), (1, stride)).flatten(1), 2) * math.sqrt(window)
            assert 0.9 * constant**0.5 <= true <= constant**0.5 * (1 + 1e-12)


def test_one_overlapping_dimension_is_enough_to_refuse():
    for make, stride in itertools.product((AveragePool2d, MaxPool2d), ((1, 2), (2, 1))):
        with pytest.raises(InvalidInput, match=r"be 1\.41421, not 1"):
            make(2, stride)


def test_empty_windows_are_refused():
    for make, size in itertools.product((AveragePool2d, MaxPool2d, L2Pool2d), (0, (2, 0))):
        with pytest.raises(InvalidInput, match="empty"):
            make(size)


# The inverse


class Rotated(nn.Module):
    """``bound * Q sin(x)`` for an orthogonal Q: exactly ``bound``-Lipschitz."""

    def __init__(self, bound: float, size: int = 3, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        Q = nn.init.orthogonal_(torch.empty(size, size, dtype=torch.float64))
        self.register_buffer("W", bound * Q)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x) @ self.W.T


@given(
    bound=st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.99]),
    seed=st.integers(0, 1000),
    power=st.integers(-10, 2),
    size=st.sampled_from([1e-3, 1.0, 1e3]),
)
def test_the_inverse_is_within_both_bounds_and_within_tolerance(bound: float, seed: int, power: int, size: float):
    block = InvertibleResidual(Rotated(bound, seed=seed), bound)
    x = size * torch.randn(4, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    inverse = block.inverse(block(x), tolerance=10.0**power)
    error = (inverse.x - x).norm(dim=1)
    rounding = 1e-15 * (size + 1.0) * 20 / (1.0 - bound)
    assert (error <= inverse.a_priori + rounding).all()
    assert (error <= inverse.a_posteriori + rounding).all()
    assert (inverse.a_priori <= 10.0**power * (1 + 1e-9)).all()


@given(bound=st.floats(0.01, 0.95), steps=st.integers(1, 30))
def test_the_a_priori_bound_is_reached_by_a_linear_branch(bound: float, steps: int):
    """g(x) = -L x: every step contracts by exactly L, and all the steps add up."""
    block = InvertibleResidual(Negated(bound), bound)
    x = torch.tensor([[2.0]], dtype=torch.float64)
    inverse = block.inverse(block(x), steps=steps)
    error = float((inverse.x - x).abs())
    assert float(inverse.a_priori) == pytest.approx(error, rel=1e-6, abs=1e-14)
    assert float(inverse.a_posteriori) == pytest.approx(error, rel=1e-6, abs=1e-13)
    assert inverse.steps == steps


class Negated(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return -self.factor * x


@given(bound=st.floats(0.0, 0.999), first=st.floats(0.0, 1e6), tolerance=st.floats(1e-12, 1e6))
def test_the_number_of_steps_is_the_least_that_is_enough(bound: float, first: float, tolerance: float):
    assume(bound == 0.0 or bound > 1e-6)
    steps = steps_needed(bound, first, tolerance)
    assert steps >= 1
    assert bound**steps / (1 - bound) * first <= tolerance * (1 + 1e-9)
    if steps > 1:
        assert bound ** (steps - 1) / (1 - bound) * first > tolerance * (1 - 1e-9)


def test_known_numbers_of_steps():
    assert steps_needed(0.5, 1.0, 2.0**-9) == 10  # 2**-k / (1 / 2) <= 2**-9
    assert all(steps_needed(0.5, 1.0, 2.0 ** (1 - k)) == k for k in range(1, 60))
    assert all(steps_needed(0.1, 9.0, 10.0 ** (1 - k)) == k for k in range(1, 20))  # 9 / (9 / 10) = 10
    assert steps_needed(0.0, 1e9, 1e-9) == 1
    assert steps_needed(0.9, 0.0, 1e-9) == 1


@pytest.mark.parametrize("bound", [1.0, 1.5, -0.1, math.nan, math.inf])
def test_what_is_no_contraction_is_refused(bound: float):
    with pytest.raises(InvalidInput, match="no contraction"):
        InvertibleResidual(nn.Identity(), bound)
    with pytest.raises(InvalidInput, match="no contraction"):
        steps_needed(bound, 1.0, 1.0)


def test_arguments_of_the_inverse_are_checked():
    block, y = InvertibleResidual(Rotated(0.5), 0.5), torch.ones(1, 3, dtype=torch.float64)
    for options in ({}, {"steps": 1, "tolerance": 1.0}, {"steps": 0}, {"tolerance": 0.0}, {"tolerance": math.nan}):
        with pytest.raises(InvalidInput):
            block.inverse(y, **options)
    with pytest.raises(InvalidInput):
        steps_needed(0.5, math.inf, 1.0)


@pytest.mark.parametrize("options", [{"steps": 5}, {"tolerance": 1e-6}])
def test_nan_and_infinity_end_in_an_error(options):
    block = InvertibleResidual(Rotated(0.5), 0.5)
    for bad in (math.nan, math.inf):
        with pytest.raises(NotFinite):
            block.inverse(torch.tensor([[0.0, bad, 1.0]], dtype=torch.float64), **options)
    block.branch.W[0, 0] = math.nan
    with pytest.raises(NotFinite):
        block.inverse(torch.ones(1, 3, dtype=torch.float64), **options)


def test_a_branch_that_breaks_its_bound_is_found_out():
    block = InvertibleResidual(Negated(0.9), 0.5)
    with pytest.raises(LipschitzViolation, match="not 0"):
        block.inverse(torch.ones(1, 3), tolerance=1e-3)
    expanding = InvertibleResidual(Negated(-3.0), 0.5)
    with pytest.raises((LipschitzViolation, NotFinite)):
        expanding.inverse(torch.ones(1, 3), steps=500)


def test_a_branch_must_keep_the_shape():
    with pytest.raises(InvalidInput, match="keep the shape"):
        InvertibleResidual(nn.Linear(3, 1), 0.5)(torch.ones(2, 3))
    with pytest.raises(InvalidInput, match="keep the shape"):
        InvertibleResidual(nn.Linear(3, 1), 0.5).inverse(torch.ones(2, 3), steps=3)


def test_the_inverse_has_a_gradient_and_keeps_the_dtype():
    block = InvertibleResidual(Rotated(0.5), 0.5)
    y = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda y: block.inverse(y, steps=60).x, y)
    assert block.float().inverse(y.detach().float(), tolerance=1e-4).x.dtype == torch.float32


def test_a_block_is_bi_lipschitz():
    block = InvertibleResidual(Rotated(0.8), 0.8)
    for x in 3 * torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64):
        J = torch.func.jacrev(lambda z: block(z[None])[0])(x)
        values = torch.linalg.svdvals(J)
        assert 0.2 - 1e-12 <= values[-1]
        assert values[0] <= 1.8 + 1e-12


def test_lipcert_certifies_a_residual_block_at_one_plus_its_branch():
    assert lipcert.certify(
        InvertibleResidual(Negated(0.5), 0.5), (3,), by=lipcert.certifiers.Product()
    ).bound == pytest.approx(1.5, abs=1e-8)


@every_pool
def test_pools_copy_and_pickle(name: str):
    layer, x = POOLS[name](), torch.randn(1, 2, 5, 6, generator=torch.Generator().manual_seed(0))
    for same in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(same(x), layer(x))
        assert repr(same) == repr(layer)
