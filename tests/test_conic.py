"""The independent reference solver: it agrees with ours, is told its limits, and is never believed."""

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lipcert import check, trace
from lipcert.certifiers import LipSDP, Product
from lipcert.errors import InvalidInput
from lipcert.lmi import NormalForm, normal_form, reduced, tighten
from lipcert.solvers import Conic, InteriorPoint, Recursion, conic
from lipcert.solvers.conic import Answer, Programme, attained, programme

ACTIVATIONS = [nn.ReLU, nn.Sigmoid, nn.SiLU, nn.GELU, nn.LeakyReLU, nn.Mish, lambda: nn.LeakyReLU(0.5)]


def chain(*sizes: int, seed: int = 0, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for into, out in itertools.pairwise(sizes):
        layer = nn.Linear(into, out, dtype=torch.float64)
        layer.weight.data = torch.randn(out, into, generator=generator, dtype=torch.float64) / into**0.5
        layer.bias.data.zero_()
        layers += [layer, activation()]
    return nn.Sequential(*layers[:-1])


class Branches(nn.Module):
    """``W x + V relu(U x)``, an activation, then a concatenation with what the branch was."""

    def __init__(self) -> None:
        super().__init__()
        self.skip, self.branch, self.head = chain(4, 5, seed=1), chain(4, 6, 5, seed=2), chain(10, 3, seed=3)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.branch(x)
        return self.head(torch.cat([torch.tanh(self.skip(x) + branch), branch], dim=-1))


def form_of(model: nn.Module, inputs: int) -> NormalForm:
    return normal_form(trace(model, (inputs,)))


def shared(form: NormalForm, groups: int) -> NormalForm:
    """The form with neurons that use each other's multipliers in turn."""
    layers = (replace(layer, index=torch.arange(len(layer.alpha)) % groups) for layer in form.layers)
    return replace(form, layers=tuple(layers))


# ------------------------------------------------------------------------------------------------ agreement


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_it_finds_what_the_interior_point_finds_at_every_slope(activation: Callable[[], nn.Module]):
    form = form_of(chain(7, 9, 8, 3, seed=4, activation=activation), 7)
    ours, reference = InteriorPoint(gap=1e-6)(form), Conic()(form)
    assert reference.rho**0.5 == pytest.approx(ours.rho**0.5, rel=1e-4)
    assert reference.dual <= ours.rho * (1 + 1e-6)
    assert reference.dual**0.5 == pytest.approx(ours.rho**0.5, rel=1e-4)
    assert ": optimal, claims rho" in reference.method
    assert reference.iterations > 0


def test_it_finds_what_the_interior_point_finds_on_branches():
    form = form_of(Branches(), 4)
    assert Conic()(form).rho ** 0.5 == pytest.approx(InteriorPoint(gap=1e-6)(form).rho ** 0.5, rel=1e-4)


def test_a_splitting_method_finds_it_too():
    form = form_of(chain(4, 8, 6, 3, seed=5), 4)
    found = Conic("SCS", {"eps": 1e-7})(form)
    assert found.rho**0.5 == pytest.approx(InteriorPoint(gap=1e-6)(form).rho ** 0.5, rel=1e-4)


def test_layers_of_very_different_sizes_are_brought_to_one_scale():
    model = chain(4, 8, 6, 3, seed=5)
    before = Conic()(form_of(model, 4)).rho
    for layer, factor in zip(model[::2], (1e-5, 1e-4, 1e7), strict=True):
        layer.weight.data *= factor
    assert Conic()(form_of(model, 4)).rho ** 0.5 == pytest.approx(before**0.5 * 1e-2, rel=1e-5)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU])
@pytest.mark.parametrize("groups", [1, 3])
def test_neurons_that_share_a_multiplier(groups: int, activation: Callable[[], nn.Module]):
    free = form_of(chain(6, 8, 7, 3, seed=6, activation=activation), 6)
    tied = shared(free, groups)
    found = Conic()(tied)
    assert all(len(found.multipliers[layer.name]) == groups for layer in tied.layers)
    assert found.rho == tighten(reduced(tied), found.multipliers)
    spread = {layer.name: layer.spread(found.multipliers[layer.name]) for layer in tied.layers}
    assert found.rho == pytest.approx(tighten(free, spread), rel=1e-9)
    assert Conic()(free).rho * (1 + 1e-3) < found.rho <= Recursion()(tied).rho
    # No multipliers that are shared go below its dual.
    generator = torch.Generator().manual_seed(0)
    for width in (0.01, 0.1, 0.5):
        nearby = {
            name: lam * torch.exp(width * torch.randn(lam.shape, generator=generator))
            for name, lam in found.multipliers.items()
        }
        assert tighten(tied, nearby) >= found.dual * (1 - 1e-6)


def test_one_multiplier_for_one_layer_is_a_scalar_problem():
    """``W2 relu(W1 x)`` with one multiplier c: the least over c is found on a grid."""
    free = form_of(chain(3, 5, 2, seed=7), 3)
    tied = shared(free, 1)
    (layer,) = tied.layers
    grid = torch.logspace(-2, 3, 4000, dtype=torch.float64)
    least = min(tighten(tied, {layer.name: c.reshape(1)}) for c in grid)
    assert Conic()(tied).rho == pytest.approx(least, rel=1e-5)


# ------------------------------------------------------------------------------------------------ what may go wrong


def lies(count: int, n: int) -> dict[str, Answer]:
    rows = np.random.default_rng(0)
    return {
        "a bound of nothing": Answer("optimal", 0.0, np.zeros(count), np.eye(n)),
        "far too small": Answer("optimal", 1e-9, np.full(count, 1e-3), np.eye(n)),
        "far too large": Answer("optimal", 1e-9, np.full(count, 1e6), np.eye(n)),
        "out of range": Answer("optimal", 1e-9, np.full(count, 1e200), np.full((n, n), 1e300)),
        "random": Answer("optimal", 1e-9, rows.lognormal(0.0, 2.0, count), rows.standard_normal((n, n))),
        "negative": Answer("optimal", -1.0, -np.ones(count), -np.eye(n)),
        "not numbers": Answer("optimal", np.nan, np.full(count, np.nan), np.full((n, n), np.nan)),
        "one infinite": Answer("optimal", 1.0, np.r_[np.inf, np.ones(count - 1)], None),
        "solved by nothing": Answer("infeasible"),
        "failed": Answer("failed (out of memory)"),
    }


@pytest.mark.parametrize("lie", lies(1, 1))
def test_a_solver_that_lies_leaves_a_valid_bound(lie: str, monkeypatch: pytest.MonkeyPatch):
    model = chain(4, 6, 5, 2, seed=8)
    graph = trace(model, (4,))
    best = LipSDP(InteriorPoint())(graph).bound
    start = LipSDP(Recursion())(graph).bound

    def answer(scaled: Programme, solver: str, options: object) -> Answer:
        return lies(len(scaled.scale), len(scaled.gram))[lie]

    monkeypatch.setattr(conic, "ask", answer)
    solution = Conic()(normal_form(graph))
    assert solution.dual <= best**2 <= solution.rho * (1 + 1e-6)
    assert lies(1, 1)[lie].status in solution.method
    found = LipSDP(Conic())(graph)
    assert best * (1 - 1e-6) <= found.bound <= start * (1 + 1e-9) < Product()(graph).bound
    assert check(found, graph).bound == found.bound


@pytest.mark.parametrize("shrink", [1e-3, 1e-6, 1e-9])
def test_a_slightly_infeasible_answer_is_repaired_and_little_is_lost(shrink: float, monkeypatch: pytest.MonkeyPatch):
    form = form_of(chain(4, 8, 7, 3, seed=9), 4)
    small = reduced(form)
    best = InteriorPoint(gap=1e-8)(small)

    def answer(scaled: Programme, solver: str, options: object) -> Answer:
        lam = torch.cat([best.multipliers[layer.name] for layer in small.layers]).numpy() / scaled.scale
        # The largest multiple of the optimum that is not feasible any more, and a little below.
        low, high = 0.0, 1.0
        while high - low > 1e-13:
            middle = 0.5 * (low + high)
            feasible = tighten(small, scaled.named(middle * lam)) < float("inf")
            low, high = (low, middle) if feasible else (middle, high)
        return Answer("optimal", best.rho / scaled.unit, low * (1.0 - shrink) * lam, None)

    monkeypatch.setattr(conic, "ask", answer)
    found = Conic()(form)
    assert "towards the start" in found.method
    assert best.rho * (1 - 1e-9) <= found.rho < Recursion()(form).rho


def test_an_unknown_solver_is_refused_with_those_that_are_there(monkeypatch: pytest.MonkeyPatch):
    form = form_of(chain(2, 3, 1), 2)
    with pytest.raises(InvalidInput, match=r"'QUICK'.*CLARABEL, SCS"):
        Conic("QUICK")(form)
    with pytest.raises(InvalidInput, match=r"'HIGHS'.*CLARABEL, SCS"):
        Conic("HIGHS")(form)
    monkeypatch.setattr("cvxpy.installed_solvers", lambda: ["HIGHS", "SCS"])
    with pytest.raises(InvalidInput, match=r"'CLARABEL'.* programmes, SCS is installed"):
        Conic()(form)


def test_an_option_that_the_solver_does_not_have_is_an_error():
    with pytest.raises(TypeError, match="no_such_option"):
        Conic(options={"no_such_option": 1})(form_of(chain(2, 3, 1), 2))


@pytest.mark.parametrize("solver", ["CLARABEL", "SCS"])
def test_no_time_leaves_the_start_or_better(solver: str):
    form = form_of(chain(5, 12, 11, 4, seed=10), 5)
    found = Conic(solver, seconds=1e-9)(form)
    assert found.rho <= Recursion()(form).rho
    assert "user_limit" in found.method or "inaccurate" in found.method


def test_a_start_is_what_it_falls_back_to(monkeypatch: pytest.MonkeyPatch):
    form = form_of(chain(4, 6, 5, 2, seed=8), 4)
    start = InteriorPoint(iterations=4)(form)
    monkeypatch.setattr(conic, "ask", lambda scaled, solver, options: Answer("failed (by hand)"))
    found = Conic()(form, start.multipliers)
    assert found.rho == start.rho
    assert "failed (by hand), the start is returned" in found.method


def test_it_reports_once_and_a_linear_network_needs_nothing():
    said: list[tuple[int, float, float]] = []
    found = Conic()(form_of(chain(3, 4, 2), 3), progress=lambda *numbers: said.append(numbers))
    assert said == [(found.iterations, found.rho, found.dual)]
    assert "nothing to improve" in Conic()(form_of(nn.Linear(3, 2).double(), 3)).method


@pytest.mark.parametrize("groups", [2, 9])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU, nn.LeakyReLU])
def test_no_partner_gives_a_dual_above_what_multipliers_reach(activation: Callable[[], nn.Module], groups: int):
    form = shared(form_of(chain(4, 9, 9, 2, seed=11, activation=activation), 4), groups)
    found = Conic()(form)
    n = form.inputs + form.neurons
    generator = torch.Generator().manual_seed(0)
    for rank, size in itertools.product((1, 2, n), (1e-3, 1.0, 1e3)):
        F = torch.randn(n, rank, generator=generator, dtype=torch.float64)
        F[: form.inputs] *= size
        assert 0.0 < attained(form, F @ F.mT) <= found.rho
    assert attained(form, torch.zeros(n, n, dtype=torch.float64)) == 0.0
    assert attained(form, torch.full((n, n), float("nan"), dtype=torch.float64)) == 0.0


# ------------------------------------------------------------------------------------------------ the matrices


@pytest.mark.parametrize("make", [lambda: chain(4, 6, 5, 2, activation=nn.SiLU), Branches])
def test_its_matrix_is_the_quadratic_form_of_the_network(make: Callable[[], nn.Module]):
    """``rho |x|^2 - |y|^2 + 2 sum lambda (u - alpha v)(u - beta v)`` at random z, in the scaled unknowns."""
    form = shared(form_of(make(), 4), 4)
    given = Recursion()(form).multipliers
    scaled = programme(form, given, 3.0)
    generator = torch.Generator().manual_seed(0)
    lam = torch.rand(len(scaled.scale), generator=generator, dtype=torch.float64)
    S = scaled.matrix(0.7, lam.numpy())
    np.testing.assert_allclose(
        (scaled.columns() @ np.r_[0.7, lam.numpy()]).reshape(S.shape) - scaled.gram, S, atol=1e-12
    )
    multipliers, columns = scaled.named(lam.numpy()), form.columns()
    z = torch.randn(form.inputs + form.neurons, generator=generator, dtype=torch.float64)
    read = {name: z[place] for name, place in columns.items()}
    y = sum(block @ read[name] for name, block in form.output.blocks.items())
    value = 0.7 * 3.0 * z[: form.inputs].square().sum() - y.square().sum()
    for layer in form.layers:
        u, v = read[layer.name], sum(block @ read[name] for name, block in layer.v.blocks.items())
        weight = layer.spread(multipliers[layer.name])
        value += 2.0 * (weight * (u - layer.alpha * v) * (u - layer.beta * v)).sum()
    w = scaled.root * z.numpy()
    assert w @ S @ w == pytest.approx(float(value), rel=1e-10)
