"""Claims on a box or a ball: ranges hold what occurs, lines enclose functions, bounds are above what is found there."""

import itertools
import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lipcert
from lipcert.bilipschitz import bilipschitz
from lipcert.certificate import Certificate
from lipcert.certifiers import Auto, Best, LipSDP, Product, Split, certify_on
from lipcert.check_domain import verify_domain
from lipcert.domain import Box, L2Ball, WholeSpace, limits
from lipcert.errors import CheckFailed, InvalidInput, NotLipschitz, UnsupportedOperation
from lipcert.falsify import lipcheck
from lipcert.graph import Activation, Add, Affine, Graph, Input, Opaque
from lipcert.linear import Dense, dense, terms
from lipcert.nn import FullSort, GroupSort, MaxMin
from lipcert.norms import L1, L2, LINF, Norms
from lipcert.recheck import check_float64
from lipcert.regions import Range, backward, compared, compares, propagated, require_ranges, restricted
from lipcert.regions.functions import LOCAL, TABLE, lines_on, slopes_on, values_on
from lipcert.regions.range import unbounded
from lipcert.sandwich import sandwich
from tests.maps import MAPS


class Residual(nn.Module):
    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x):
        return x + self.branch(x)


class Coupling(nn.Module):
    """``(a, b exp(s(a)) + t(a))``."""

    def __init__(self) -> None:
        super().__init__()
        self.s = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 2))
        self.t = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 2))

    def forward(self, x):
        a, b = x.chunk(2, 1)
        return torch.cat([a, b * torch.exp(self.s(a)) + self.t(a)], 1)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.norm = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.LayerNorm(4)

    def forward(self, x):
        x = self.norm(x)
        return x + F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x))


class Abs(nn.Module):
    def forward(self, x):
        return x.abs()


class Sines(nn.Module):
    def forward(self, x):
        return torch.sqrt(torch.sin(x) + 3) / (2 + torch.cos(x)) - torch.log(x * x + 1)


def mlp(activation: nn.Module, *widths: int) -> nn.Sequential:
    layers = [part for a, b in itertools.pairwise(widths) for part in (nn.Linear(a, b), activation)]
    return nn.Sequential(*layers[:-1])


MODELS = {
    "relu": (lambda: mlp(nn.ReLU(), 3, 8, 8, 2), (3,)),
    "leaky": (lambda: mlp(nn.LeakyReLU(0.2), 3, 8, 8, 2), (3,)),
    "steep leaky": (lambda: mlp(nn.LeakyReLU(3.0), 3, 6, 2), (3,)),
    "tanh": (lambda: mlp(nn.Tanh(), 3, 8, 8, 2), (3,)),
    "sigmoid": (lambda: mlp(nn.Sigmoid(), 3, 8, 2), (3,)),
    "softplus": (lambda: mlp(nn.Softplus(), 3, 8, 2), (3,)),
    "elu": (lambda: mlp(nn.ELU(1.5), 3, 8, 2), (3,)),
    "silu": (lambda: mlp(nn.SiLU(), 3, 8, 8, 2), (3,)),
    "gelu": (lambda: mlp(nn.GELU(), 3, 8, 2), (3,)),
    "hardtanh": (lambda: mlp(nn.Hardtanh(), 3, 8, 2), (3,)),
    "abs": (lambda: mlp(Abs(), 3, 8, 8, 2), (3,)),
    "maxmin": (lambda: mlp(MaxMin(), 3, 8, 8, 2), (3,)),
    "pairs of channels": (
        lambda: nn.Sequential(
            *(nn.Conv2d(1, 4, 3), GroupSort(2), nn.Conv2d(4, 2, 2), MaxMin(dim=2), nn.Flatten()),
            *(nn.Linear(8, 3), GroupSort(3)),
        ),
        (1, 5, 5),
    ),
    "residual": (lambda: nn.Sequential(Residual(mlp(nn.ReLU(), 3, 6, 3)), Residual(mlp(nn.Tanh(), 3, 6, 3))), (3,)),
    "convolutions": (
        lambda: nn.Sequential(
            *(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3).eval(), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(3, 2, 3, padding=1, padding_mode="reflect"), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten()),
            *(nn.Linear(2, 3), nn.Softmax(1)),
        ),
        (1, 4, 4),
    ),
    "pooled": (
        lambda: nn.Sequential(
            *(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2, 1), nn.Conv2d(2, 2, 2), nn.ReLU(), nn.AdaptiveMaxPool2d(1)),
            *(nn.Flatten(), nn.Linear(2, 2)),
        ),
        (1, 6, 6),
    ),
    "transposed": (lambda: nn.Sequential(nn.ConvTranspose1d(2, 3, 3, 2), nn.ReLU(), nn.Conv1d(3, 1, 2)), (2, 3)),
    "coupling": (Coupling, (4,)),
    "gate": (lambda: nn.Sequential(nn.Linear(3, 8), nn.GLU(), nn.Linear(4, 2)), (3,)),
    "attention": (Attention, (3, 4)),
    "quotients": (Sines, (3,)),
}


def built(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    make, shape = MODELS[name]
    torch.manual_seed(len(name))
    return make().double().eval(), shape


def domains(shape: tuple[int, ...]) -> list[Box | L2Ball]:
    centre = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [Box(-1.0, 1.5), Box(centre - 0.1, centre + 0.2), L2Ball(centre, 0.3), L2Ball(0.25, 1e-3)]


def points(domain, shape: tuple[int, ...], count: int = 60) -> torch.Tensor:
    x = domain.sample(count, shape, torch.Generator().manual_seed(2))
    low, high = limits(domain, shape)
    corners = torch.where(torch.rand(count, *shape, generator=torch.Generator().manual_seed(3)) < 0.5, low, high)
    return torch.cat([x, domain.project(corners)])


def steepest(graph: Graph, x: torch.Tensor) -> float:
    def f(z):
        return graph.replay(z[None])[0].flatten()

    return max(float(torch.linalg.matrix_norm(torch.func.jacrev(f)(row).flatten(1), 2)) for row in x)


@pytest.mark.parametrize("name", MODELS)
def test_ranges_hold_every_value_of_every_node(name: str):
    model, shape = built(name)
    for domain in domains(shape):
        graph = lipcert.trace(model, shape, domain)
        stated, found = propagated(graph, domain)
        values = graph.values(points(domain, shape))
        for node in graph:
            assert bool((values[node.name] >= found[node.name].low).all()), node.name
            assert bool((values[node.name] <= found[node.name].high).all()), node.name
        assert stated.keys() == {node.name for node in graph if type(node).__name__ in ("Activation", "Opaque")} or (
            name in ("hardtanh", "quotients")
        )


@pytest.mark.parametrize("name", MODELS)
def test_bounds_on_a_domain_are_above_every_jacobian_there(name: str):
    model, shape = built(name)
    for domain in domains(shape)[1:]:
        graph = lipcert.trace(model, shape, domain)
        found = certify_on(graph, domain, by=Product())
        assert steepest(graph, points(domain, shape, 20)) <= found.bound
        assert (found.domain, found.network, found.validity.name) == (domain, graph.digest(), "RIGOROUS")


@pytest.mark.parametrize(
    "name", ["relu", "tanh", "abs", "maxmin", "pairs of channels", "pooled", "residual", "coupling", "gate"]
)
def test_so_are_semidefinite_ones_and_on_a_tiny_ball_they_are_that_jacobian(name: str):
    model, shape = built(name)
    for domain in domains(shape)[2:]:
        graph = lipcert.trace(model, shape, domain)
        least, bound = steepest(graph, points(domain, shape, 20)), certify_on(graph, domain, by=LipSDP()).bound
        assert least <= bound
        if domain.radius < 0.01:
            assert bound <= 1.01 * least


@pytest.mark.parametrize("name", ["relu", "silu", "residual", "convolutions"])
def test_a_smaller_domain_has_no_larger_layerwise_bound(name: str):
    model, shape = built(name)
    bounds = [lipcert.certify(model, shape, by=Product()).bound]
    for radius in (2.0, 0.5, 0.1):
        bounds.append(lipcert.certify(model, shape, by=Product(), domain=L2Ball(0.1, radius)).bound)
        bounds.append(lipcert.certify(model, shape, by=Product(), domain=Box(0.1 - radius / 8, 0.1 + radius / 8)).bound)
    assert bounds[0] >= max(bounds[1:])
    assert sorted(bounds[1::2], reverse=True) == bounds[1::2]
    assert sorted(bounds[2::2], reverse=True) == bounds[2::2]


def test_a_map_that_is_far_smaller_than_its_terms_is_proved_in_halves():
    """Twenty linear layers that contract: rounding of the terms leaves no proof of the whole."""
    torch.manual_seed(0)
    model = mlp(nn.ReLU(), *[10] * 21, 2).double()
    graph, ball = lipcert.trace(model, (10,)), L2Ball(0.3, 1e-3)
    found, everywhere = certify_on(graph, ball, by=LipSDP()), LipSDP()(graph)
    assert len(found.evidence.blocks) > 1
    assert found.bound < 1e-4 * everywhere.bound
    assert steepest(graph, points(ball, (10,), 5)) <= check_float64(found, graph).bound
    assert verify_domain(found.to_json(), *graph.document()).bound == found.bound


class Square(nn.Module):
    def forward(self, x):
        return x * x


class Area(nn.Module):
    def forward(self, x):
        return x[:, :1] * x[:, 1:]


class Matrices(nn.Module):
    def forward(self, x):
        return x @ x


@pytest.mark.parametrize(
    ("model", "shape", "domain", "constant"),
    [
        (nn.Tanh(), (2,), Box(1.0, 2.0), 1 - math.tanh(1) ** 2),
        (nn.Sigmoid(), (2,), Box(-3.0, -2.0), 1 / (2 + math.exp(2) + math.exp(-2))),
        (nn.ReLU(), (2,), Box(-3.0, -2.0), 0.0),
        (Square(), (3,), Box(-1.0, 2.0), 4.0),
        (Area(), (2,), Box(0.0, 3.0), 3 * math.sqrt(2)),
        # Both factors read one input side by side, which the layerwise bound counts as two: 6 is the constant.
        (Matrices(), (1, 1), Box(0.0, 3.0), 6.0 * math.sqrt(2)),
        # Of numbers 10 apart the variance is 25, so what is normalised is divided by 5.
        (nn.LayerNorm(2, eps=0.0, elementwise_affine=False), (2,), L2Ball(torch.tensor([0.0, 10.0]), 1e-4), 0.2),
    ],
    ids=["tanh", "sigmoid", "relu", "square", "area", "matrix square", "layer norm"],
)
def test_bounds_known_by_arithmetic(model: nn.Module, shape, domain, constant: float):
    found = lipcert.certify(model, shape, domain=domain)
    assert constant <= found.bound <= constant * 1.001 + 1e-9


@pytest.mark.parametrize("name", ["relu", "abs", "maxmin", "pooled"])
def test_where_every_neuron_stays_on_its_side_the_bound_is_the_norm_of_the_linear_map(name: str):
    """With moduli all neurons may be equally steep, and yet differ in sign."""
    model, shape = built(name)
    graph = lipcert.trace(model, shape)
    centre = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    ball = L2Ball(centre if name == "pooled" else torch.tensor([0.3, -0.2, 0.5]), 1e-4)
    found = lipcert.certify(model, shape, domain=ball)
    J = torch.func.jacrev(lambda z: graph.replay(z[None])[0])(ball.centre.double()).flatten(1)
    # Where windows overlap, entries meet themselves, and a difference that is zero has no sign.
    assert "a linear map" in found.method or name == "pooled"
    assert float(torch.linalg.matrix_norm(J, 2)) <= found.bound <= 1.000001 * float(torch.linalg.matrix_norm(J, 2))


# ----------------------------------------------------------------------------------------------- functions and lines

_PARAMETERS = {
    "leaky_relu": {"negative_slope": 0.3},
    "prelu": {"weight": torch.tensor(-0.5, dtype=torch.float64)},
    "elu": {"alpha": 1.5},
    "softplus": {"beta": 2.0},
    "contraction": {"epsilon": 2.0**-50},
}
_GLOBAL = {"silu": (-0.09984, 1.09984), "gelu": (-0.12891, 1.12891), "mish": (-0.11253, 1.0885)}


@pytest.mark.parametrize("function", TABLE)
@settings(max_examples=60)
@given(low=st.floats(-6, 6), width=st.one_of(st.floats(0, 0.1), st.floats(0, 8)))
def test_lines_values_and_slopes_enclose_the_function(function: str, low: float, width: float):
    if function in ("sqrt", "log", "reciprocal"):
        low = abs(low) + 0.01
    x = Range(torch.tensor([low], dtype=torch.float64), torch.tensor([low + width], dtype=torch.float64))
    parameters = _PARAMETERS.get(function, {})
    ends = [torch.tensor([end], dtype=torch.float64) for end in _GLOBAL.get(function, (-1e9, 1e9))]
    slopes = slopes_on(function, parameters, x, Range(*ends))
    values, lines = values_on(function, parameters, x, slopes), lines_on(function, parameters, x, slopes)
    v = torch.linspace(low, low + width, 301, dtype=torch.float64).clamp(low, low + width)
    y = TABLE[function].value(v, parameters)
    tiny = 1e-14 * (1 + y.abs().max())
    assert bool((values.low <= y + tiny).all() and (y <= values.high + tiny).all())
    below, above = lines.a_low * v + lines.b_low, lines.a_high * v + lines.b_high
    assert bool((below <= y + tiny).all() and (y <= above + tiny).all())
    if width > 1e-3:
        quotient = (y[1:] - y[:-1]) / (v[1:] - v[:-1])
        off = 4 * tiny / (v[1:] - v[:-1]).min()
        assert bool((slopes.low - off <= quotient).all() and (quotient <= slopes.high + off).all())


def test_the_lines_of_a_kink_are_a_chord_and_the_nearer_side():
    x = Range(torch.tensor([-1.0, -3.0], dtype=torch.float64), torch.tensor([3.0, 1.0], dtype=torch.float64))
    lines = lines_on("relu", {}, x, slopes_on("relu", {}, x, unbounded((2,))))
    assert lines.a_high.tolist() == [0.75, 0.25]
    assert lines.a_low.tolist() == [1.0, 0.0]
    torch.testing.assert_close(lines.b_high, torch.tensor([0.75, 0.75], dtype=torch.float64))


def _relu(name: str, source: str, shape: tuple[int, ...]) -> Activation:
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    return Activation(name, source, shape, "relu", {}, (ends[0], ends[1]), torch.relu)


def _leaky(name: str, source: str, shape: tuple[int, ...]) -> Activation:
    ends = torch.tensor([0.5, 1.0], dtype=torch.float64)
    return Activation(name, source, shape, "leaky_relu", {"negative_slope": 0.5}, (ends[0], ends[1]), torch.relu)


bends = (_relu, _leaky, _leaky)


@given(data=st.data())
@settings(max_examples=60)
def test_ranges_hold_exact_values_where_numbers_cancel(data: st.DataObject):
    """Weights and inputs of very different sizes, evaluated in fractions."""
    size = st.sampled_from([1.0, 3.0, -1.0, 1e8, -1e8, 1e-9, 2.0**40 + 1, -(2.0**40)])
    draw = lambda rows, columns: [data.draw(st.lists(size, min_size=columns, max_size=columns)) for _ in range(rows)]  # noqa: E731
    layers = [draw(2, 3), draw(2, 2), draw(1, 2)]
    biases = [draw(1, 2)[0], draw(1, 2)[0], draw(1, 1)[0]]
    nodes, source = [Input("input", (3,))], "input"
    for k, (weight, bias) in enumerate(zip(layers, biases, strict=True)):
        W, b = (torch.tensor(numbers, dtype=torch.float64) for numbers in (weight, bias))
        nodes.append(Affine(f"{k}", source, Dense(W, (W.shape[1],)), b))
        nodes.append(bends[k](f"phi{k}", f"{k}", (W.shape[0],)))
        source = f"phi{k}"
    low = data.draw(st.lists(size, min_size=3, max_size=3))
    high = [x + data.draw(st.sampled_from([0.0, 1.0, 1e6])) for x in low]
    box = Box(torch.tensor(low, dtype=torch.float64), torch.tensor(high, dtype=torch.float64))
    _, found = propagated(Graph(tuple(nodes)), box)
    for corner in ([low[0], low[1], low[2]], [high[0], low[1], high[2]], [high[0], high[1], high[2]]):
        v = [Fraction(x) for x in corner]
        for k, (weight, bias) in enumerate(zip(layers, biases, strict=True)):
            rows = zip(weight, bias, strict=True)
            v = [sum(Fraction(w) * a for w, a in zip(row, v, strict=True)) + Fraction(b) for row, b in rows]
            ends = zip(found[f"{k}"].low.tolist(), v, found[f"{k}"].high.tolist(), strict=True)
            assert all(Fraction(a) <= x <= Fraction(b) for a, x, b in ends)
            v = [max(x, x / 2 if k else Fraction(0)) for x in v]


@pytest.mark.parametrize("name", MAPS)
def test_coefficients_go_back_through_a_map_as_through_its_matrix(name: str):
    linear = MAPS[name]()
    A = torch.randn(3, *linear.out_shape, generator=torch.Generator().manual_seed(0)).double()
    M = dense(linear)
    back = backward._pulled(linear, A).flatten(1)
    # Once per term, as `terms` says of the way forward, and in the matrix itself.
    room = 2.0**-52 * (math.prod(linear.out_shape) + 2 * terms(linear) + 2) * (A.flatten(1).abs() @ M.abs())
    assert back.shape == (3, math.prod(linear.in_shape))
    assert bool(((back - A.flatten(1) @ M).abs() <= room).all())


def test_a_coefficient_that_rounds_to_nothing_is_not_taken_for_nothing():
    """``(2^27 + 1)^2 x - (2^54 + 2^28) x`` is x; in float64 the first factor is rounded to the second."""
    n = 2.0**27 + 1

    def times(name: str, source: str, factor: float) -> Affine:
        return Affine(name, source, Dense(torch.tensor([[factor]], dtype=torch.float64), (1,)), None)

    steps = (times("a", "x", n), times("b", "a", n), times("c", "x", -(2.0**54 + 2.0**28)))
    graph = Graph((Input("x", (1,)), *steps, Add("s", ("b", "c"), (1,)), _relu("r", "s", (1,))))
    for domain in (Box(0.0, 1.0), L2Ball(0.5, 0.5)):
        stated, _ = propagated(graph, domain)
        assert float(stated["r"].high) >= 1.0
        assert float(stated["r"].high) <= 1000.0  # intervals of the two parts say 2^54


# ------------------------------------------------------------------------------------------------------- certificates


@pytest.mark.parametrize("name", ["relu", "convolutions", "coupling", "attention"])
def test_a_certificate_on_a_domain_survives_its_file_and_is_proven_again(name: str):
    model, shape = built(name)
    for domain in domains(shape)[1:3]:
        graph = lipcert.trace(model, shape, domain)
        found = certify_on(graph, domain, by=Auto(seconds=1.0))
        again = Certificate.from_json(found.to_json())
        assert again.to_json() == found.to_json()
        assert check_float64(again, graph).bound == found.bound


def near_zero(graph: Graph, norms: Norms) -> Certificate:
    """A certifier that answers about a ball, whatever it is asked."""
    return certify_on(graph, L2Ball(0.0, 0.1), norms)


ASKED = {
    "certify": lambda model: lipcert.certify(model, (2,), by=near_zero),
    "certify on a box": lambda model: lipcert.certify(model, (2,), by=near_zero, domain=Box(-1.0, 1.0)),
    "lipcheck": lambda model: lipcheck(model, (2,), 1.0, by=near_zero),
    "best": lambda model: Best(near_zero, Product())(lipcert.trace(model, (2,))),
    "split": lambda model: Split(near_zero, parts=1)(lipcert.trace(model, (2,))),
    "bilipschitz": lambda model: bilipschitz(model, (2,), by=near_zero),
    "sandwich": lambda model: sandwich(model, (2,), by=near_zero),
}


@pytest.mark.parametrize("name", ASKED)
def test_an_answer_about_a_domain_is_none_about_all_inputs(name: str):
    with pytest.raises(InvalidInput, match="all inputs"):
        ASKED[name](mlp(nn.Tanh(), 2, 3, 2))


def _tampered(found: Certificate) -> dict[str, Certificate]:
    name, (low, high) = next(iter(found.ranges.items()))
    centre = tuple((a + b) / 2 for a, b in zip(low, high, strict=True))
    return {
        "a lower bound": replace(found, bound=found.bound * 0.999),
        "a larger ball": replace(found, domain=L2Ball(found.domain.centre, 2 * found.domain.radius)),
        "another ball": replace(found, domain=L2Ball(found.domain.centre + 1.0, found.domain.radius)),
        "a narrower range": replace(found, ranges={**found.ranges, name: (low, centre)}),
        "a range too short": replace(found, ranges={**found.ranges, name: (low[:-1], high[:-1])}),
        "a range of nothing": replace(found, ranges={**found.ranges, "nobody": (low, high)}),
        "no range": replace(found, ranges={other: ends for other, ends in found.ranges.items() if other != name}),
        "the whole space": replace(found, domain=WholeSpace(), ranges={}),
    }


@pytest.mark.parametrize("what", _tampered(certify_on(lipcert.trace(nn.Tanh(), (2,)), L2Ball(1.0, 0.1))))
def test_what_was_tampered_with_is_refused(what: str):
    model, shape = built("tanh")
    graph = lipcert.trace(model, shape)
    domain = L2Ball(torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64), 0.05)
    found = certify_on(graph, domain, by=LipSDP())
    check_float64(found, graph)
    with pytest.raises(CheckFailed):
        check_float64(_tampered(found)[what], graph)


def test_a_network_restricted_to_a_domain_cannot_pass_for_the_network():
    graph = lipcert.trace(nn.Tanh(), (2,))
    left = restricted(graph, propagated(graph, Box(1.0, 2.0))[0])
    assert left.digest() != graph.digest()
    assert all(node.function.startswith("declared:") for node in left if isinstance(node, Activation))


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("model", "shape", "domain", "error"),
    [
        (Sines(), (2,), WholeSpace(), NotLipschitz),
        (nn.GLU(), (4,), WholeSpace(), NotLipschitz),
        (nn.LayerNorm(4), (4,), WholeSpace(), NotLipschitz),
        (Attention(), (3, 4), WholeSpace(), NotLipschitz),
        (nn.LayerNorm(2, eps=0.0), (2,), Box(-1.0, 1.0), NotLipschitz),
        (nn.GroupNorm(1, 4), (4,), Box(-1.0, 1.0), NotLipschitz),
        (nn.Sequential(nn.Softsign(), nn.Hardtanh(), nn.GLU()), (4,), Box(-1.0, 1.0), NotLipschitz),
    ],
    ids=["quotient", "gate", "layer norm", "attention", "no variance", "group norm", "nothing known"],
)
def test_what_has_no_constant_is_refused_with_the_place(model: nn.Module, shape, domain, error):
    with pytest.raises(error, match=r"omain"):
        lipcert.certify(model, shape, domain=domain)


class Function(nn.Module):
    def __init__(self, call) -> None:
        super().__init__()
        self.call = call

    def forward(self, x):
        return self.call(x)


@pytest.mark.parametrize("name", LOCAL)
def test_a_function_with_an_edge_needs_a_domain_away_from_it(name: str):
    model = Function(getattr(torch, name))
    with pytest.raises(NotLipschitz, match=name):
        lipcert.certify(model, (2,))
    if name in ("sqrt", "log", "reciprocal"):
        with pytest.raises((NotLipschitz, UnsupportedOperation)):
            lipcert.certify(model, (2,), domain=Box(0.0, 1.0))
    assert lipcert.certify(model, (2,), domain=Box(0.5, 1.0)).bound < 4.1


def test_domains_that_do_not_fit_are_refused():
    model = nn.Linear(3, 2)
    with pytest.raises(InvalidInput, match="does not fit"):
        lipcert.certify(model, (3,), domain=Box(torch.zeros(2), torch.ones(2)))
    with pytest.raises(InvalidInput, match="a `Box`"):
        certify_on(lipcert.trace(model, (3,)), object())


def test_other_norms_have_bounds_on_a_domain_too():
    model, shape = built("coupling")
    domain = Box(-0.5, 0.5)
    graph = lipcert.trace(model, shape, domain)
    found = certify_on(graph, domain, LINF)
    x = points(domain, shape)
    J = torch.stack([torch.func.jacrev(lambda z: graph.replay(z[None])[0])(row) for row in x])
    assert float(J.abs().sum(2).max()) <= found.bound
    check_float64(found, graph)


@given(st.data())
@settings(max_examples=40)
def test_a_sort_is_moduli_of_differences(data: st.DataObject):
    n = data.draw(st.integers(2, 6))
    dims = data.draw(st.integers(1, 3))
    dim = data.draw(st.integers(1, dims))
    shape = tuple(n * data.draw(st.integers(1, 2)) if axis == dim else 2 for axis in range(1, dims + 1))
    sort = MaxMin(dim) if n == 2 and data.draw(st.booleans()) else GroupSort(n, dim)
    graph = lipcert.trace(nn.Sequential(sort, nn.ReLU()), shape)
    entries = data.draw(st.lists(st.integers(-99, 99), min_size=math.prod(shape), max_size=math.prod(shape)))
    x = torch.tensor(entries, dtype=torch.float64).reshape(1, *shape)
    form = compared(graph)
    assert torch.equal(form.replay(x), graph.replay(x))
    assert form.digest() == compared(graph, ["0/0/moduli"]).digest() != compared(graph, ["1"]).digest()
    assert not any(compares(node) for node in form)


@given(st.data())
@settings(max_examples=40)
def test_a_maximum_is_a_tournament(data: st.DataObject):
    """Windows of any size that overlap, are cut off at an edge, or have gaps."""
    size, kernel, stride = data.draw(st.integers(3, 7)), data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    dilation = data.draw(st.integers(1, 2)) if (kernel - 1) * 2 < size else 1
    padding = data.draw(st.integers(0, kernel // 2))
    pool = data.draw(st.sampled_from([nn.MaxPool1d, nn.MaxPool2d]))
    model = pool(kernel, stride, padding, dilation, ceil_mode=data.draw(st.booleans()))
    shape = (2, size) if pool is nn.MaxPool1d else (1, size, 4 + (kernel - 1) * (dilation - 1))
    graph = lipcert.trace(nn.Sequential(model, nn.ReLU()), shape)
    x = torch.randint(
        -9, 9, (4, *shape), generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    ).double()
    form = compared(graph)
    assert torch.equal(form.replay(x), graph.replay(x))
    assert form.digest() == compared(graph, ["0/0/moduli"]).digest() != graph.digest()
    assert not any(compares(node) for node in form)


@pytest.mark.parametrize(("model", "shape"), [(FullSort(), (9,)), (nn.AdaptiveMaxPool1d(1), (1, 65))], ids=str)
def test_large_groups_and_windows_are_not_compared(model: nn.Module, shape: tuple[int, ...]):
    graph = lipcert.trace(model, shape)
    assert compared(graph).digest() == graph.digest()


@pytest.mark.parametrize("name", ["maxmin", "pooled"])
@pytest.mark.parametrize("norms", [L2, LINF, L1])
def test_networks_that_sort_have_no_larger_bound_on_a_domain(norms: Norms, name: str):
    """A sort has norm 1 in all of them; written as moduli of differences it has in l2 only. So has a maximum."""
    model, shape = built(name)
    everywhere = lipcert.certify(model, shape, norms=norms, by=Product())
    for radius in (3.0, 1e-4):
        found = lipcert.certify(model, shape, norms=norms, by=Product(), domain=L2Ball(0.2, radius))
        assert found.bound <= everywhere.bound
        check_float64(found, lipcert.trace(model, shape))


@pytest.mark.parametrize("name", ["0/0/moduli", "0/0/differences"])
def test_a_module_may_not_be_called_as_a_part_of_a_sort(name: str):
    about = {"dim": 0, "group": 2, "arrangement": "consecutive"}
    graph = Graph((Input(name, (2,)), Opaque("0", name, (2,), "sort", about, {L2: 1.0}, torch.relu)))
    with pytest.raises(InvalidInput, match="Rename"):
        certify_on(graph, Box(0.0, 1.0))


def test_sorting_keeps_the_order_of_ranges():
    graph = lipcert.trace(nn.Sequential(nn.Linear(2, 3), FullSort()), (2,))
    _, found = propagated(graph, Box(-1.0, 1.0))
    assert bool((found["1"].low.diff() >= 0).all() and (found["1"].high.diff() >= 0).all())


def test_a_range_beyond_the_largest_float_is_not_believed():
    """Products of 1e200 overflow on both sides; what is proven of them is no number."""
    slope = (torch.tensor(0.0).double(), torch.tensor(1.0).double())
    product = Opaque("f", "x", (1,), "product", {}, {}, lambda x: x[:, :1] * x[:, 1:])
    graph = Graph((Input("x", (2,)), product, Activation("r", "f", (1,), "relu", {}, slope, torch.relu)))
    wide = torch.full((2,), 1e201, dtype=torch.float64)
    claimed = {"f": Range(-wide, wide), "r": Range(torch.zeros(1).double(), torch.ones(1).double())}
    with pytest.raises(CheckFailed, match="`r` is said to read"):
        require_ranges(graph, Box(-wide / 10, wide / 10), claimed)
