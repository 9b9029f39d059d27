"""A penalty that is right is accepted; well-known mistakes are named, in values, derivatives and interpolation."""

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from lipcert.errors import InvalidInput, PenaltyMismatch, UnsupportedOperation
from lipcert.penalties import OneSided, gradient_penalty, require_gradient_penalty


def images(seed: int, count: int = 5) -> Tensor:
    return torch.randn(count, 2, 4, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def conv_critic() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(48, 1)).double()


def rolled(
    critic,
    x: Tensor,
    y: Tensor,
    score=lambda f: f.sum(),
    norm=lambda g: torch.linalg.vector_norm(g.flatten(1), dim=1),
    reduce=lambda n: (n - 1.0).square().mean(),
    points=lambda x, y: x + torch.rand(len(x), *[1] * (x.ndim - 1), dtype=x.dtype) * (y - x),
    create_graph=True,
) -> Tensor:
    """The usual implementation, with every part open to a mistake."""
    z = points(x.detach(), y.detach()).requires_grad_(True)
    (g,) = torch.autograd.grad(score(critic(z)), z, create_graph=create_graph)
    return reduce(norm(g))


def half_detached(value: Tensor) -> Tensor:
    return 0.5 * value + 0.5 * value.detach()


def ours(critic, x: Tensor, y: Tensor, **options) -> Tensor:
    return gradient_penalty(critic, x, y, generator=torch.Generator().manual_seed(0), **options)


RIGHT = {
    "usual": (rolled, {}),
    "1e-12 under the root": (partial(rolled, norm=lambda g: (g.flatten(1).square().sum(1) + 1e-12).sqrt()), {}),
    "weight inside": (partial(rolled, reduce=lambda n: 10.0 * (n - 1.0).square().mean()), {"weight": 10.0}),
    "other target": (partial(rolled, reduce=lambda n: (n - 0.7).square().mean()), {"target": 0.7}),
    "one-sided": (partial(rolled, reduce=lambda n: (n - 1.0).relu().square().mean()), {"side": OneSided()}),
    "ours": (ours, {}),
    "ours, one-sided": (partial(ours, side=OneSided()), {"side": OneSided()}),
    "target zero": (partial(ours, target=0.0), {"target": 0.0}),
}
MISTAKES = {
    "dim=1 only": partial(rolled, norm=lambda g: torch.linalg.vector_norm(g, dim=1)),
    "inside the square": partial(rolled, reduce=lambda n: (n.mean() - 1.0).square()),
    "whole batch": partial(rolled, norm=lambda g: torch.linalg.vector_norm(g)),
    "mean score": partial(rolled, score=lambda f: f.mean()),
    "summed": partial(rolled, reduce=lambda n: (n - 1.0).square().sum()),
    "a sigmoid": partial(rolled, score=lambda f: torch.sigmoid(f).sum()),
    "a log-sigmoid": partial(rolled, score=lambda f: nn.functional.logsigmoid(f).sum()),
    "root of the norm is missing": partial(rolled, norm=lambda g: g.flatten(1).square().sum(1)),
    "the target is missing": partial(rolled, reduce=lambda n: n.square().mean()),
    "square of the difference": partial(rolled, reduce=lambda n: (n - 1.0).abs().mean()),
    "averaged over the dimensions": partial(rolled, norm=lambda g: g.flatten(1).square().mean(1).sqrt()),
    "l1 norm": partial(rolled, norm=lambda g: g.flatten(1).abs().sum(1)),
    "other side": partial(rolled, reduce=lambda n: (n - 1.0).relu().square().mean()),
    "weight=10": partial(rolled, reduce=lambda n: 10.0 * (n - 1.0).square().mean()),
    "under the square root": partial(rolled, norm=lambda g: (g.flatten(1).square().sum(1) + 1e-6).sqrt()),
    "bare square root": partial(rolled, norm=lambda g: g.flatten(1).square().sum(1).sqrt()),
    "create_graph=True": partial(rolled, create_graph=False),
    "off the segments": partial(rolled, points=lambda x, y: x + torch.rand_like(x) * (y - x)),
    "at x alone": partial(rolled, points=lambda x, y: x.clone()),
    "at y alone": partial(rolled, points=lambda x, y: y.clone()),
    "outside": partial(rolled, points=lambda x, y: x + 2.0 * (x - y)),
    "derivatives by parameters are not": partial(rolled, reduce=lambda n: half_detached((n - 1.0).square().mean())),
    "no known mistake": partial(rolled, reduce=lambda n: (n - 1.0).square().mean() + 0.5),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("penalty", "options"), RIGHT.values(), ids=RIGHT)
def test_what_equals_the_definition_is_accepted_and_nothing_is_changed(penalty, options, dtype):
    critic = conv_critic().to(dtype)
    before, state = copy.deepcopy(critic.state_dict()), torch.get_rng_state()
    require_gradient_penalty(penalty, critic, images(1).to(dtype), images(2).to(dtype), **options)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[key], value) for key, value in critic.state_dict().items())
    assert all(p.grad is None for p in critic.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("named", MISTAKES)
def test_known_mistakes_are_named(named, dtype):
    with pytest.raises(PenaltyMismatch, match=named):
        require_gradient_penalty(MISTAKES[named], conv_critic().to(dtype), images(1).to(dtype), images(2).to(dtype))


def test_a_penalty_that_errs_on_the_users_critic_only_is_caught_there():
    def penalty(critic, x: Tensor, y: Tensor) -> Tensor:
        own = isinstance(critic, nn.Sequential)
        return rolled(critic, x, y) + (0.1 if own else 0.0)

    with pytest.raises(PenaltyMismatch, match="your critic at x = y = x it gives"):
        require_gradient_penalty(penalty, conv_critic(), images(1), images(2))


def test_derivatives_are_compared_for_a_critic_without_parameters_too():
    def critic(x: Tensor) -> Tensor:
        return x.flatten(1).sin().sum(1)

    require_gradient_penalty(rolled, critic, images(1), images(2))
    for named in ("create_graph=True", "derivatives by parameters are not"):
        with pytest.raises(PenaltyMismatch, match=named):
            require_gradient_penalty(MISTAKES[named], critic, images(1), images(2))


def test_a_critic_with_dropout_is_compared_in_evaluation_mode_and_stays_in_training_mode():
    critic = nn.Sequential(nn.Dropout(0.5), conv_critic())
    require_gradient_penalty(rolled, critic, images(1), images(2))
    assert critic.training
    assert critic[0].training


@pytest.mark.parametrize(
    ("penalty", "critic", "x", "options", "match"),
    [
        (ours, nn.Linear(3, 1), torch.ones(1, 3), {}, "two samples"),
        (ours, nn.Linear(3, 2), torch.ones(2, 3), {}, "one number per sample"),
        (ours, nn.Linear(3, 1), torch.ones(2, 3, dtype=torch.long), {}, "batch of real samples"),
        (ours, nn.Linear(3, 1), torch.ones(2, 3), {"weight": 0.0}, "weight=0.0"),
        (lambda *_: 1.0, nn.Linear(3, 1), torch.ones(2, 3), {}, "float"),
        (lambda f, x, y: x, nn.Linear(3, 1), torch.ones(2, 3), {}, r"shape \(2, 3\)"),
    ],
)
def test_what_cannot_be_compared_is_refused(penalty, critic, x, options, match):
    with pytest.raises(InvalidInput, match=match):
        require_gradient_penalty(penalty, critic, x, x, **options)


def test_a_critic_that_mixes_samples_is_refused_by_name():
    critic = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    with pytest.raises(UnsupportedOperation, match="`1`"):
        require_gradient_penalty(ours, critic, torch.randn(5, 3), torch.randn(5, 3))
