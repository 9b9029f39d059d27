"""Exact values of networks: they hold the float64 values of every operation, and agree with arithmetic by hand."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lipcert import L1, L2, LINF, Norms, lower, trace
from lipcert.enclosure import Ball, Stretch, distance, enclosed, exactly, stretch
from lipcert.enclosure import ball as B
from lipcert.enclosure.maps import applied
from lipcert.errors import BudgetExceeded, InvalidInput, NotFinite, UnsupportedOperation
from lipcert.linear import Dense
from lipcert.lowering import Value, activation, lowers
from tests.cases import MAPS, NETWORKS, OPS

FINITE = st.floats(-(2.0**60), 2.0**60, allow_nan=False)
# torch switches softplus to the identity where beta x = 20: the real function is 1e-9 above.
COARSE = {"F.softplus(x, beta=3) on (4, 6)": 1e-9}


def values(ball: Ball) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper ends as floats."""
    unit = Fraction(2) ** -ball.bits
    ends = (np.array([float(n * unit) for n in side.ravel()]).reshape(ball.shape) for side in (ball.lower, ball.upper))
    lower_end, upper_end = ends
    return lower_end, upper_end


CASES = {
    **{name: (c.model, c.input_shape) for name, c in NETWORKS.items()},
    **{n: (o.model, o.input_shape) for n, o in OPS.items()},
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", CASES)
def test_enclosures_hold_what_float64_computes(name: str):
    build, shape = CASES[name]
    graph = trace(build().eval(), shape)
    x = 3 * torch.randn(2, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    low, high = values(enclosed(graph, x))
    seen = graph.replay(x).numpy()
    slack = COARSE.get(name, 1e-12) * max(1.0, float(abs(seen).max()))
    assert low.shape == seen.shape
    assert (low <= seen + slack).all()
    assert (seen - slack <= high).all()
    assert (high - low).max() <= 1e-13 * max(1.0, float(abs(seen).max()))


def test_a_rational_network_is_computed_without_any_rounding():
    layer = nn.Linear(2, 1).requires_grad_(False)
    layer.weight.copy_(torch.tensor([[0.1, -1e-20]]))
    layer.bias.copy_(torch.tensor([3e-30]))
    x = torch.tensor([[1e10, 1e-10]], dtype=torch.float64)
    ball = enclosed(trace(nn.Sequential(layer, nn.ReLU()), (2,)), x)
    w, b = layer.weight.double()[0].tolist(), float(layer.bias)
    exact = sum(Fraction(a) * Fraction(c) for a, c in zip(w, x[0].tolist(), strict=True)) + Fraction(b)
    assert ball.rad is None
    assert Fraction(ball.mid[0, 0]) / 2**ball.bits == exact


@given(st.lists(FINITE, min_size=1, max_size=6), st.integers(-40, 80))
def test_rounding_a_ball_keeps_what_it_holds(numbers: list[float], bits: int):
    ball = exactly(np.array(numbers))
    rounded = ball.rounded(bits)
    for k, number in enumerate(numbers):
        unit = Fraction(2) ** -rounded.bits
        assert rounded.lower[k] * unit <= Fraction(number) <= rounded.upper[k] * unit
        assert (rounded.upper[k] - rounded.lower[k]) * unit <= 4 * Fraction(2) ** -min(bits, ball.bits)


@given(st.lists(FINITE, min_size=1, max_size=6), st.integers(1, 1000))
def test_a_quotient_by_an_integer_is_enclosed(numbers: list[float], divisor: int):
    quotient = B.over(exactly(np.array(numbers)), divisor)
    unit = Fraction(2) ** -quotient.bits
    for k, number in enumerate(numbers):
        assert quotient.lower[k] * unit <= Fraction(number) / divisor <= quotient.upper[k] * unit
    assert quotient.rad is None or divisor & (divisor - 1)


@pytest.mark.parametrize("bits", [60, 12])
def test_balls_that_had_to_be_rounded_hold_the_exact_values(monkeypatch: pytest.MonkeyPatch, bits: int):
    case = NETWORKS["conv critic"]
    graph = trace(case.model(), case.input_shape)
    x = torch.randn(2, *case.input_shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    exact = enclosed(graph, x)
    monkeypatch.setattr(B, "LONG", bits)
    monkeypatch.setattr(B, "GUARD", bits)
    rounded = enclosed(graph, x)
    assert exact.rad is None
    assert rounded.rad is not None
    fine = max(exact.bits, rounded.bits)
    assert (rounded.at(fine).lower <= exact.at(fine).mid).all()
    assert (exact.at(fine).mid <= rounded.at(fine).upper).all()


def test_an_unknown_factor_is_taken_as_all_of_its_interval():
    layer = nn.BatchNorm1d(1, eps=0.0, affine=False)
    layer.running_var = torch.tensor([3.0])
    ball = enclosed(trace(layer.eval(), (1,)), torch.tensor([[1.0]], dtype=torch.float64))
    unit = Fraction(2) ** -ball.bits
    low, high = ball.lower[0, 0] * unit, ball.upper[0, 0] * unit
    assert low**2 * 3 <= 1 <= high**2 * 3
    assert 0 < high - low < 1e-14


@pytest.mark.parametrize(
    ("norms", "square"),
    [(L2, Fraction(25, 2)), (L1, Fraction(49, 4)), (LINF, Fraction(16)), (Norms(2.0, math.inf), Fraction(16, 2))],
    ids=str,
)
def test_a_quotient_is_that_of_arithmetic_by_hand(norms: Norms, square: Fraction):
    layer = nn.Linear(2, 2, bias=False).requires_grad_(False)
    layer.weight.copy_(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
    x, y = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    assert stretch(trace(layer, (2,)), x, y, norms) == Stretch(square, True)


@given(st.integers(0, 2**200), st.integers(1, 2**200))
def test_the_ratio_is_rounded_down(numerator: int, denominator: int):
    seen = Stretch(Fraction(numerator, denominator), True)
    assert Fraction(seen.ratio) ** 2 <= seen.square
    above = math.nextafter(math.nextafter(seen.ratio, math.inf), math.inf)
    assert Fraction(above) ** 2 > seen.square


def test_a_claim_is_compared_without_rounding():
    third = Stretch(Fraction(1, 9), True)
    assert not third.exceeds(math.nextafter(1 / 3, 1.0))
    assert third.exceeds(1 / 3)  # the float below one third


def test_a_quotient_of_balls_is_a_lower_bound():
    graph = trace(nn.Tanh(), (1,))
    x, y = torch.tensor([0.0], dtype=torch.float64), torch.tensor([1.0], dtype=torch.float64)
    seen = stretch(graph, x, y, L2)
    assert not seen.exact
    assert seen.ratio == pytest.approx(math.tanh(1.0), rel=1e-15)


def test_a_distance_is_exact_where_float64_overflows_or_vanishes():
    x, y = torch.tensor([1e300, 5e-324], dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    assert distance(x, y, 2.0) == Fraction(1e300) ** 2 + Fraction(5e-324) ** 2


def test_equal_inputs_wrong_shapes_and_nan_are_refused():
    graph, x = trace(nn.ReLU(), (2,)), torch.ones(2, dtype=torch.float64)
    with pytest.raises(InvalidInput, match="equal"):
        stretch(graph, x, x, L2)
    with pytest.raises(InvalidInput, match="shapes"):
        stretch(graph, x, torch.ones(3), L2)
    with pytest.raises(NotFinite, match="NaN"):
        enclosed(graph, torch.tensor([[math.nan, 0.0]], dtype=torch.float64))


def test_a_users_own_function_is_refused_by_name():
    class Own(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(x)

    @lowers(Own)
    def own(module: Own, x: Value) -> Value:
        return activation(x, "declared:me", (0.0, 1.0), torch.tanh)

    assert lower is not None
    with pytest.raises(UnsupportedOperation, match="declared:me"):
        enclosed(trace(nn.Sequential(Own()), (2,)), torch.zeros(1, 2, dtype=torch.float64))


def test_a_network_too_large_for_exact_arithmetic_is_refused(monkeypatch: pytest.MonkeyPatch):
    checker = __import__("importlib").import_module("lipcert.check")
    monkeypatch.setattr(checker, "WORK_LIMIT", 10)
    with pytest.raises(BudgetExceeded, match="too long"):
        enclosed(trace(nn.Linear(5, 5), (5,)), torch.ones(1, 5, dtype=torch.float64))


@pytest.mark.parametrize("model", [nn.Sigmoid(), nn.ELU(), nn.Softplus(), nn.SiLU(), nn.Mish(), nn.Softmax(1)], ids=str)
def test_values_that_vanish_take_no_more_memory_than_others(model: nn.Module):
    x = torch.tensor([[-1e12, 1.0], [1e12, -1e300]], dtype=torch.float64)
    ball = enclosed(trace(model, (2,)), x)
    low, high = values(ball)
    seen = model(x).numpy()
    assert ball.bits <= 4096
    assert (low <= seen + 1e-12 * abs(seen)).all()
    assert (seen - 1e-12 * abs(seen) <= high).all()


@pytest.mark.parametrize("name", MAPS)
def test_maps_of_balls_hold_the_maps_of_what_they_hold(name: str):
    linear = MAPS[name]()
    x = exactly(np.random.default_rng(0).standard_normal((2, *linear.in_shape)))
    fine, rounded = applied(linear, x), applied(linear, x.rounded(4))
    bits = max(fine.bits, rounded.bits)
    assert (rounded.at(bits).lower <= fine.at(bits).lower).all()
    assert (fine.at(bits).upper <= rounded.at(bits).upper).all()


def test_a_radius_goes_through_a_difference_as_a_sum():
    linear = Dense(torch.tensor([[1.0, -1.0]], dtype=torch.float64), (2,))
    one = np.array([[1, 1]], dtype=object)
    assert applied(linear, Ball(one, one, 0)).rad.tolist() == [[2]]


def test_a_quotient_through_an_unknown_factor_is_at_most_what_every_factor_allows():
    layer = nn.BatchNorm1d(1, eps=0.0, affine=False)
    layer.running_var = torch.tensor([3.0])
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    seen = stretch(trace(layer.eval(), (1,)), zero, one, L2)
    assert Fraction(1, 3) * (1 - Fraction(1, 2**40)) <= seen.square <= Fraction(1, 3)


def test_a_claim_that_is_met_is_not_exceeded():
    assert not Stretch(Fraction(4), True).exceeds(2.0)
