"""Gradient penalties equal the formulas of the papers, written with loops, and do not make a critic Lipschitz."""

import copy
import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lipcert.errors import InvalidInput, UnsupportedOperation
from lipcert.parametrizations import spectral_norm
from lipcert.penalties import OneSided, TwoSided, gradient_penalty, r1, r2
from lipcert.witness import Budget, witness

SIDES = {TwoSided(): lambda norm, t: (norm - t) ** 2, OneSided(): lambda norm, t: max(norm - t, 0.0 * norm) ** 2}
by_side = pytest.mark.parametrize("side", SIDES, ids=lambda side: type(side).__name__)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(seed: int, count: int = 5) -> Tensor:
    return torch.randn(count, 2, 4, 3, generator=seeded(seed), dtype=torch.float64)


def conv_critic(out: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(48, 1), out or nn.Identity()
    ).double()


def linear_critic(*w: float) -> nn.Module:
    critic = nn.Linear(len(w), 1).double()
    critic.weight.data = torch.tensor([w], dtype=torch.float64)
    return critic


def between(x: Tensor, y: Tensor, seed: int) -> Tensor:
    epsilon = torch.rand(len(x), generator=seeded(seed), dtype=x.dtype)
    return torch.stack([e * a + (1 - e) * b for e, a, b in zip(epsilon, x, y, strict=True)])


def norms_by_loop(critic, x: Tensor) -> list[Tensor]:
    """As in the papers: one sample, one gradient, the root of the sum of the squares of all its numbers."""
    found = []
    for sample in x:
        leaf = sample[None].clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(critic(leaf).sum(), leaf, create_graph=True)
        found.append(sum(number**2 for number in gradient.flatten()) ** 0.5)
    return found


def derivatives(value: Tensor, critic: nn.Module) -> Tensor:
    found = torch.autograd.grad(value, list(critic.parameters()), allow_unused=True, materialize_grads=True)
    return torch.cat([each.flatten() for each in found])


@by_side
@pytest.mark.parametrize("target", [1.0, 0.1, 0.0])
@pytest.mark.parametrize("out", [nn.Identity(), nn.Flatten(0), nn.Unflatten(1, (1, 1))], ids=["N,1", "N", "N,1,1"])
def test_the_gradient_penalty_is_the_loop_of_the_paper_with_its_derivatives(side, target, out):
    critic, x, y = conv_critic(out), images(1), images(2)
    value = gradient_penalty(critic, x, y, target=target, side=side, generator=seeded(3))
    terms = [SIDES[side](norm, target) for norm in norms_by_loop(critic, between(x, y, 3))]
    expected = sum(terms) / len(terms)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(derivatives(value, critic), derivatives(expected, critic))


@pytest.mark.parametrize("penalty", [r1, r2])
def test_r1_and_r2_are_the_mean_squared_gradient_norm_with_its_derivatives(penalty):
    critic, x = conv_critic(), images(1)
    norms = norms_by_loop(critic, x)
    expected = sum(norm**2 for norm in norms) / len(norms)
    torch.testing.assert_close(penalty(critic, x), expected)
    torch.testing.assert_close(derivatives(penalty(critic, x), critic), derivatives(expected, critic))


@given(st.lists(st.floats(-4.0, 4.0).filter(lambda w: abs(w) > 1e-3), min_size=1, max_size=6), st.floats(0.0, 3.0))
@settings(max_examples=30, deadline=None)
def test_on_a_linear_critic_arithmetic_gives_the_penalty(w, target):
    critic, x = linear_critic(*w), torch.randn(3, len(w), dtype=torch.float64)
    norm = math.hypot(*w)
    values = {side: gradient_penalty(critic, x, -x, target=target, side=side, generator=seeded(0)) for side in SIDES}
    assert values[TwoSided()].item() == pytest.approx((norm - target) ** 2, abs=1e-12)
    assert values[OneSided()].item() == pytest.approx(max(norm - target, 0.0) ** 2, abs=1e-12)
    assert r1(critic, x).item() == pytest.approx(norm**2)
    (derivative,) = torch.autograd.grad(values[TwoSided()], critic.weight)
    torch.testing.assert_close(derivative, 2 * (norm - target) * critic.weight / norm)


@pytest.mark.parametrize(
    "penalty",
    [*[partial(gradient_penalty, y=images(2), side=side, target=0.65) for side in SIDES], r1, r2],
    ids=["two-sided", "one-sided", "r1", "r2"],
)
def test_derivatives_by_parameters_are_finite_differences(penalty):
    critic, h = conv_critic(), 1e-6
    critic[0].weight.data *= 6.0  # norms on both sides of the target

    def value() -> Tensor:
        more = {"generator": seeded(3)} if isinstance(penalty, partial) else {}
        return penalty(critic, images(1), **more)

    directions = [torch.randn(p.shape, generator=seeded(4), dtype=p.dtype) for p in critic.parameters()]
    along = torch.cat([d.flatten() for d in directions]) @ derivatives(value(), critic)

    def moved(step: float) -> float:
        with torch.no_grad():
            for p, d in zip(critic.parameters(), directions, strict=True):
                p += step * d
        return value().item()

    up, down = moved(h), moved(-2 * h)
    assert along.item() == pytest.approx((up - down) / (2 * h), rel=1e-5)
    assert abs(along.item()) > 1e-3


def test_penalties_are_means_over_samples_in_any_order():
    critic, x, order = conv_critic(), images(1), torch.tensor([3, 1, 4, 0, 2])
    for penalty in (r1, lambda critic, x: gradient_penalty(critic, x, x, generator=seeded(0))):
        whole = penalty(critic, x)
        torch.testing.assert_close(whole, penalty(critic, x[order]))
        torch.testing.assert_close(whole, torch.stack([penalty(critic, each[None]) for each in x]).mean())
        torch.testing.assert_close(whole, penalty(critic, torch.cat([x, x])))


def test_interpolates_are_between_x_and_y_one_number_for_each_sample_and_come_from_the_generator():
    x, y = torch.zeros(400, 3, dtype=torch.float64), torch.full((400, 3), 2.0 / math.sqrt(3.0), dtype=torch.float64)

    def critic(z: Tensor) -> Tensor:  # gradient z, so the norm is 2 (1 - epsilon)
        return 0.5 * z.square().sum(1)

    value = gradient_penalty(critic, x, y, target=0.0, generator=seeded(5))
    assert value == gradient_penalty(critic, x, y, target=0.0, generator=seeded(5))
    assert value != gradient_penalty(critic, x, y, target=0.0, generator=seeded(6))
    epsilon = torch.rand(400, generator=seeded(5), dtype=torch.float64)
    torch.testing.assert_close(value, (2.0 * (1.0 - epsilon)).square().mean())


def test_nothing_flows_back_to_samples_and_a_critic_without_slope_has_derivatives_that_are_numbers():
    x = images(1).requires_grad_(True)
    critic = conv_critic()
    (gradient_penalty(critic, x, x, generator=seeded(0)) + r1(critic, x) + r2(critic, x)).backward()
    assert x.grad is None
    flat = linear_critic(0.0, 0.0)
    value = gradient_penalty(flat, torch.ones(2, 2).double(), torch.zeros(2, 2).double(), generator=seeded(0))
    assert value.item() == 1.0
    assert derivatives(value, flat).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "wrap",
    [spectral_norm, parametrizations.spectral_norm, parametrizations.weight_norm, nn.utils.spectral_norm],
    ids=["ours", "spectral norm", "weight norm", "old spectral norm"],
)
def test_penalties_reach_through_parametrizations(wrap):
    torch.manual_seed(0)
    critic = nn.Sequential(wrap(nn.Linear(3, 4)), nn.Tanh(), wrap(nn.Linear(4, 1))).double().eval()
    x = torch.randn(4, 3, dtype=torch.float64)
    expected = sum(norm**2 for norm in norms_by_loop(critic, x)) / 4
    torch.testing.assert_close(r1(critic, x), expected)
    torch.testing.assert_close(derivatives(r1(critic, x), critic), derivatives(expected, critic))


REFUSED = {
    "two outputs": (lambda: r1(nn.Linear(3, 2), torch.zeros(4, 3)), "one number per sample"),
    "no sample": (lambda: r1(nn.Linear(3, 1), torch.zeros(0, 3)), "batch of real samples"),
    "integers": (lambda: r2(nn.Linear(3, 1), torch.zeros(4, 3, dtype=torch.long)), "batch of real samples"),
    "no batch": (lambda: r2(nn.Linear(3, 1), torch.zeros(())), "batch of real samples"),
    "other sizes": (lambda: penalty_of(torch.zeros(4, 3), torch.zeros(3, 3)), "one shape"),
    "other types": (lambda: penalty_of(torch.zeros(4, 3), torch.zeros(4, 3).double()), "one shape"),
    "negative target": (lambda: penalty_of(torch.zeros(4, 3), torch.zeros(4, 3), target=-1.0), "at least 0"),
    "no target": (lambda: penalty_of(torch.zeros(4, 3), torch.zeros(4, 3), target=math.nan), "at least 0"),
}


@pytest.mark.parametrize(("call", "match"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_meaning_is_refused(call, match):
    with pytest.raises(InvalidInput, match=match):
        call()


def penalty_of(x: Tensor, y: Tensor, **options) -> Tensor:
    return gradient_penalty(nn.Linear(3, 1), x, y, generator=seeded(0), **options)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(4), nn.BatchNorm1d(4, track_running_stats=False).eval()])
def test_layers_that_mix_samples_are_refused_by_name(norm):
    critic = nn.Sequential(nn.Sequential(nn.Linear(3, 4), norm), nn.Linear(4, 1))
    x = torch.randn(5, 3)
    for call in (lambda: r1(critic, x), lambda: gradient_penalty(critic, x, x, generator=seeded(0))):
        with pytest.raises(UnsupportedOperation, match=r"`0\.1`") as caught:
            call()
        assert caught.value.path == "0.1"


def test_a_critic_with_a_gradient_norm_of_one_on_average_is_not_lipschitz_with_constant_one():
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))
    optimiser = torch.optim.Adam(critic.parameters(), lr=5e-3)
    drawn = seeded(1)

    def samples() -> tuple[Tensor, Tensor]:
        angle = 2.0 * math.pi * torch.rand(64, generator=drawn)
        ring = torch.stack([angle.cos(), angle.sin()], 1)
        return 2.0 * ring, 0.3 * torch.randn(64, 2, generator=drawn)

    for _ in range(300):
        x, y = samples()
        loss = critic(y).mean() - critic(x).mean() + 10.0 * gradient_penalty(critic, x, y, generator=drawn)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    x, y = samples()
    mean = torch.stack(norms_by_loop(critic, between(x, y, 0))).mean().item()
    assert mean == pytest.approx(1.0, abs=0.1)
    found = witness(critic, (2,), budget=Budget(points=24))
    apart = torch.linalg.vector_norm(found.x - found.y)
    wide = copy.deepcopy(critic).double()
    assert (wide(found.x[None]) - wide(found.y[None])).abs().item() > 1.05 * apart.item()
