"""The checker of certificates about a domain: enclosures, ranges, what is left on them, and everything it must refuse."""

import functools
import importlib
import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lipcert import check_domain, trace
from lipcert.certificate import Certificate
from lipcert.certifiers import LipSDP, Product, certify_on
from lipcert.check import Malformed, Node, Reject, digest, verify
from lipcert.check_domain import TABLE, Proof, verify_domain, verify_files
from lipcert.domain import Box, Domain, L2Ball, to_document
from lipcert.errors import CheckFailed
from lipcert.graph import Activation, Add, Affine, Concat, Graph, Input, Opaque
from lipcert.linear import Dense, Selection
from lipcert.nn import GroupSort, MaxMin
from lipcert.norms import L1, L2, LINF
from lipcert.recheck import check
from lipcert.regions import Range, propagated, restricted
from lipcert.regions.functions import TABLE as FLOATS
from lipcert.storage import save_certificate

mpmath.mp.dps = 60
checker = importlib.import_module("lipcert.check")  # the package offers a function of the same name
SCRIPT = Path(check_domain.__file__)

# ------------------------------------------------------------------------------------------------------- networks


class Skip(nn.Module):
    """Two branches around an activation."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.last, self.act = nn.Linear(3, 4), nn.Linear(4, 3), nn.Linear(3, 2), act

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.act(x + self.second(self.act(self.first(x)))) + x)


class Gate(nn.Module):
    """A product of two branches, side by side with functions that have slopes on a domain only."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(x) * torch.sigmoid(x.flip(1))
        e = torch.exp(y)
        return torch.cat([y, torch.log(e + 1.0), torch.sqrt(e), torch.square(x), 1.0 / e], 1)


class Attention(nn.Module):
    """Attention of three positions, normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.norm = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2), nn.LayerNorm(2, eps=0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(nn.functional.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)))


class Reduced(nn.Module):
    """Reductions of nonlinear functions, and a softmax, each read by an activation."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.softmax(x, -1).flatten(1)
        z = torch.cat([torch.logsumexp(x, -1), torch.linalg.vector_norm(x, dim=-1), y], 1)
        return torch.tanh(z - 0.3)


def mlp(act: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), act(), nn.Linear(5, 4), act(), nn.Linear(4, 2))


def conv() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(2, 2, 3, padding=1)),
        *(nn.LeakyReLU(0.1), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(2, 2)),
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "relu": (lambda: mlp(nn.ReLU), (3,)),
    "leaky": (lambda: mlp(lambda: nn.LeakyReLU(0.2)), (3,)),
    "steep leaky": (lambda: mlp(lambda: nn.LeakyReLU(1.5)), (3,)),
    "prelu": (lambda: nn.Sequential(nn.Conv1d(1, 3, 2), nn.PReLU(3), nn.Flatten(), nn.Linear(6, 2), nn.ReLU()), (1, 3)),
    "relu6": (
        lambda: nn.Sequential(nn.Linear(3, 5), nn.ReLU6(), nn.Linear(5, 4), nn.Hardtanh(), nn.Linear(4, 2)),
        (3,),
    ),
    "tanh": (lambda: mlp(nn.Tanh), (3,)),
    "sigmoid": (lambda: mlp(nn.Sigmoid), (3,)),
    "elu": (lambda: mlp(lambda: nn.ELU(0.7)), (3,)),
    "softplus": (lambda: nn.Sequential(nn.Linear(3, 3), nn.Softplus(2.0), nn.LogSigmoid()), (3,)),
    "smooth": (
        lambda: nn.Sequential(nn.Linear(3, 3), nn.GELU(), nn.SiLU(), nn.Linear(3, 3), nn.Mish(), nn.ReLU()),
        (3,),
    ),
    "skip": (lambda: Skip(nn.Tanh()), (3,)),
    "skip relu": (lambda: Skip(nn.ReLU()), (3,)),
    "conv": (conv, (1, 4, 4)),
    "maxmin": (lambda: nn.Sequential(nn.Linear(3, 4), MaxMin(), nn.Linear(4, 6), GroupSort(3), nn.ReLU()), (3,)),
    "gate": (Gate, (3,)),
    "attention": (Attention, (3, 2)),
    "reductions": (Reduced, (2, 3)),
}
DOMAINS: dict[str, Callable[[tuple[int, ...]], Domain]] = {
    "box": lambda shape: Box(-0.3, torch.linspace(-0.2, 0.4, math.prod(shape)).reshape(shape)),
    "ball": lambda shape: L2Ball(torch.linspace(-0.5, 0.5, math.prod(shape)).reshape(shape), 0.25),
}
PARTS = ["relu", "leaky", "tanh", "elu", "skip relu", "maxmin"]


@functools.cache
def model(name: str) -> nn.Module:
    torch.manual_seed(len(name))
    found = MODELS[name][0]().eval()
    for module in found.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean, module.running_var = torch.tensor([0.1, -0.2]), torch.tensor([0.5, 2.0])
    return found.double()


@functools.cache
def case(name: str, where: str, by: str = "product") -> tuple[Graph, Domain, Certificate]:
    shape = MODELS[name][1]
    domain = DOMAINS[where](shape)
    graph = trace(model(name), shape, domain)
    return graph, domain, certify_on(graph, domain, by=Product() if by == "product" else LipSDP())


def given(
    name: str = "relu", where: str = "box", by: str = "product"
) -> tuple[dict[str, Any], Any, dict[str, np.ndarray]]:
    graph, _, certificate = case(name, where, by)
    document, arrays = graph.document()
    return json.loads(certificate.to_json()), json.loads(json.dumps(document)), arrays


def refused(certificate: Any, document: Any, arrays: Any, kind: Any = (Reject, Malformed)) -> str:
    with pytest.raises(kind) as reason:
        verify_domain(certificate if isinstance(certificate, str) else json.dumps(certificate), document, arrays)
    return str(reason.value)


def points(domain: Domain, shape: tuple[int, ...], count: int = 60) -> Tensor:
    """Samples, and points at the edge, which is where things become false."""
    drawn = domain.sample(count, shape, torch.Generator().manual_seed(0))
    away = torch.randn(count, *shape, generator=torch.Generator().manual_seed(1)).double()
    corners = 1e3 * away.sign()
    return torch.cat([drawn, domain.project(100.0 * away), domain.project(corners)])


def jacobians(call: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """``(points, outputs, *input shape)``."""
    x = at.clone().requires_grad_()
    y = call(x).flatten(1)
    return torch.stack([torch.autograd.grad(y[:, j].sum(), x, retain_graph=True)[0] for j in range(y.shape[1])], 1)


CASES = [(name, where, "product") for name in MODELS for where in DOMAINS]
CASES += [(name, where, "lipsdp") for name in PARTS for where in DOMAINS if name == "relu" or where == "ball"]


@pytest.mark.parametrize(("name", "where", "by"), CASES, ids=[" ".join(each) for each in CASES])
def test_honest_certificates_are_accepted_and_bound_every_jacobian(name: str, where: str, by: str):
    graph, domain, certificate = case(name, where, by)
    accepted = verify_domain(certificate.to_json(), *graph.document())
    assert (accepted.bound, accepted.norms) == (certificate.bound, "l2->l2")
    assert accepted.domain.startswith("a box" if where == "box" else "the l2 ball of radius 0.25")
    assert check(certificate, graph).validity.name == "RIGOROUS"
    at = points(domain, graph.input.shape)
    largest = torch.linalg.matrix_norm(jacobians(model(name), at).reshape(len(at), -1, at[0].numel()), 2).max()
    assert largest <= accepted.bound * (1 + 1e-9)


@pytest.mark.parametrize("norms", [L1, LINF], ids=str)
def test_other_norms_and_a_bound_that_is_lower_by_the_last_bit(norms: Any):
    graph, domain, _ = case("leaky", "box")
    certificate = certify_on(graph, domain, norms, Product())
    assert verify_domain(certificate.to_json(), *graph.document()).bound == certificate.bound
    below = replace(certificate, bound=math.nextafter(certificate.bound, 0.0))
    assert "which the gains prove" in refused(below.to_json(), *graph.document(), Reject)


def test_a_certificate_about_all_inputs_goes_to_the_checker_as_it_is():
    graph, _, _ = case("tanh", "box")
    certificate = Product()(graph)
    accepted = verify_domain(certificate.to_json(), *graph.document())
    assert accepted == verify(certificate.to_json(), *graph.document())
    assert accepted.domain == ""


# ------------------------------------------------------------------------------------------------- what is proven


def proven(graph: Graph, domain: Domain, claimed: dict[str, Range] | None = None) -> Proof:
    document, arrays = graph.document()
    document = json.loads(json.dumps(document))
    network = checker.read_network(document, arrays)
    known = check_domain.read_functions(document, network, dict(arrays))
    stated = propagated(graph, domain)[0] if claimed is None else claimed
    ranges = {
        name: [[x.hex() for x in end.flatten().tolist()] for end in (r.low, r.high)] for name, r in stated.items()
    }
    about = check_domain.read_domain(to_document(domain), graph.input.shape)
    return check_domain.prove_ranges(Proof(network, known, about), check_domain.read_ranges(ranges, network))


def numbers(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64)


def upper_bounds(proof: Proof, node: Node) -> tuple[np.ndarray, np.ndarray] | None:
    """What linear functions of the input prove of all entries of a node: from below and from above."""
    size = math.prod(node.shape)
    rows = [(entry, sign) for sign in (-1, 1) for entry in range(size)]
    found = check_domain._upper_bounds(proof, node.name, rows)
    if any(bound is None for bound in found):
        return None
    ends = numbers(np.array(found))
    return -ends[:size].reshape(node.shape), ends[size:].reshape(node.shape)


def assert_values_are_inside(graph: Graph, domain: Domain, proof: Proof, room: float = 1e-9) -> int:
    """All values at points of the domain; returns how many nodes have linear bounds."""
    seen = 0
    for name, value in graph.values(points(domain, graph.input.shape)).items():
        y, node = value.numpy(), proof.network[name]
        x = proof.found[name]
        found = [] if x is None else [(numbers(x.low), numbers(x.high))]
        linear = upper_bounds(proof, node)
        found += [] if linear is None else [linear]
        seen += linear is not None
        for low, high in found:
            assert (y >= low - room * (1 + abs(low))).all(), name
            assert (y <= high + room * (1 + abs(high))).all(), name
    return seen


@pytest.mark.parametrize("where", DOMAINS)
@pytest.mark.parametrize("name", MODELS)
def test_values_of_the_network_are_inside_what_is_proven_of_every_node(name: str, where: str):
    graph, domain, _ = case(name, where)
    assert assert_values_are_inside(graph, domain, proven(graph, domain)) >= 2


@pytest.mark.parametrize("where", DOMAINS)
@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("gate", "reductions")])
def test_rounding_goes_outward_however_few_bits_are_kept(name: str, where: str, monkeypatch: pytest.MonkeyPatch):
    """Ranges, coefficients, slopes and values of few bits: what is rounded the wrong way shows."""
    graph, domain, _ = case(name, where)
    stated, _ = propagated(graph, domain)
    wider = {key: Range(r.low - 0.4 - 0.5 * r.magnitude, r.high + 0.4 + 0.5 * r.magnitude) for key, r in stated.items()}
    before = proven(graph, domain, wider)
    for constant in ("BITS", "KEPT"):
        monkeypatch.setattr(check_domain, constant, 5)
    coarse = replace(before, found={}, proven={}, slopes={}, lines={})
    claimed = {key: check_domain.Range(r.low - 99, r.high + 99) for key, r in before.proven.items()}
    for found in (before, check_domain.prove_ranges(coarse, claimed)):
        assert_values_are_inside(graph, domain, found)


def test_intervals_and_linear_functions_are_exact_where_nothing_is_rounded():
    """f(x) = (x1 + x2, x1 - x2), added and subtracted again: intervals lose, linear functions do not."""
    first = Affine(
        "a", "x", Dense(torch.tensor([[1.0, 1.0], [1.0, -1.0]]).double(), (2,)), torch.tensor([3.0, 0.0]).double()
    )
    last = Affine("b", "a", Dense(torch.tensor([[1.0, 1.0], [-1.0, 1.0]]).double(), (2,)), None)
    graph = Graph((Input("x", (2,)), first, last))
    proof = proven(graph, Box(-1.0, 2.0), {})
    x = proof.found["b"]
    assert x is not None
    assert (x.low.tolist(), x.high.tolist()) == ([-2, -10], [10, 2])  # of 2 x1 + 3 and -2 x2 - 3
    bounds = upper_bounds(proof, proof.network["b"])
    assert bounds is not None
    assert [each.tolist() for each in bounds] == [[1.0, -7.0], [7.0, -1.0]]
    bounds = upper_bounds(proven(graph, L2Ball(torch.tensor([1.0, 0.0]), 2.0), {}), proof.network["a"])
    assert bounds is not None
    assert bounds[1] == pytest.approx(np.array([4.0, 1.0]) + 2.0 * math.sqrt(2.0), rel=1e-15)
    assert (bounds[1] >= np.array([4.0, 1.0]) + 2.0 * math.sqrt(2.0)).all()


# ------------------------------------------------------------------------------------------- elementwise functions

M = mpmath.mpf


def logistic(x):
    return 1 / (1 + mpmath.exp(-x))


def softplus(x):
    return mpmath.log1p(mpmath.exp(x))


KNOWN: dict[str, tuple[Any, float]] = {  # the function with its parameter, and the parameter
    "relu": (lambda x, p: max(x, M(0)), 0.0),
    "abs": (lambda x, p: abs(x), 0.0),
    "leaky_relu": (lambda x, p: x if x >= 0 else p * x, 0.3),
    "prelu": (lambda x, p: x if x >= 0 else p * x, 1.7),
    "relu6": (lambda x, p: min(max(x, M(0)), M(6)), 0.0),
    "tanh": (lambda x, p: mpmath.tanh(x), 0.0),
    "sigmoid": (lambda x, p: logistic(x), 0.0),
    "atan": (lambda x, p: mpmath.atan(x), 0.0),
    "softplus": (lambda x, p: softplus(p * x) / p, 1.5),
    "log_sigmoid": (lambda x, p: -softplus(-x), 0.0),
    "elu": (lambda x, p: x if x > 0 else p * mpmath.expm1(x), 0.6),
    "silu": (lambda x, p: x * logistic(x), 0.0),
    "gelu": (lambda x, p: x * mpmath.ncdf(x), 0.0),
    "mish": (lambda x, p: x * mpmath.tanh(softplus(x)), 0.0),
    "exp": (lambda x, p: mpmath.exp(x), 0.0),
    "square": (lambda x, p: x * x, 0.0),
    "sqrt": (lambda x, p: mpmath.sqrt(x), 0.0),
    "log": (lambda x, p: mpmath.log(x), 0.0),
    "reciprocal": (lambda x, p: 1 / x, 0.0),
}
PARAMETERS = {"leaky_relu": "negative_slope", "prelu": "weight", "elu": "alpha", "softplus": "beta"}
POSITIVE = ("sqrt", "log", "reciprocal")
ENDS = [
    -700.0,
    -31.0,
    -12.5,
    -6.25,
    -3.0,
    -1.0,
    -0.4,
    -1e-3,
    -(2.0**-60),
    0.0,
    2.0**-70,
    0.01,
    0.3,
    1.0,
    2.5,
    6.0,
    9.0,
    40.0,
    600.0,
]


def real(x: Fraction) -> Any:
    return M(x.numerator) / x.denominator


def ends_of(function: str) -> list[float]:
    return [x for x in ENDS if x > 0] if function in POSITIVE else ENDS


def intervals_of(function: str) -> list[tuple[Fraction, Fraction]]:
    ends = ends_of(function)
    close = [(x, x + (abs(x) + 1e-6) * 2.0**-31) for x in ends]
    return [(Fraction(a), Fraction(b)) for a, b in [*((a, b) for a in ends for b in ends if a <= b), *close]]


def test_every_function_of_the_table_is_known_here_and_to_the_library():
    assert TABLE.keys() == KNOWN.keys() == FLOATS.keys()


@pytest.mark.parametrize("grid", [160, 3])
@pytest.mark.parametrize("function", TABLE)
def test_values_are_enclosed_closely(function: str, grid: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(check_domain, "FINE", Fraction(1, 1 << grid))
    call, p = KNOWN[function]
    for x in ends_of(function):
        low, high = map(real, TABLE[function].value(Fraction(x), Fraction(p)))
        true = call(M(x), M(p))
        assert low - abs(low) * M(10) ** -55 <= true <= high + abs(high) * M(10) ** -55
        assert high - low <= (M(2) ** -50 + 3 * M(2) ** -grid) * (1 + abs(x) + abs(true))


@pytest.mark.parametrize("function", TABLE)
def test_values_on_intervals_and_lines_enclose_the_function(function: str):
    call, p = KNOWN[function]
    about, parameter = TABLE[function], Fraction(p)
    for low, high in intervals_of(function):
        least, most = slopes_of(function, low, high)
        bottom, top = check_domain._between(about, low, high, parameter, least, most)
        how = check_domain._bent if about.bent else check_domain._curved
        a, c, b, d = how(about, low, high, parameter, least, most)
        for k in range(7):
            v = low + (high - low) * k / 6
            y = call(real(v), M(p))
            room = M(10) ** -50 * (1 + abs(y) + abs(real(v)) * (1 + abs(real(c))))
            assert real(bottom) - room <= y <= real(top) + room
            assert real(a * v + b) - room <= y <= real(c * v + d) + room


def slopes_of(function: str, low: Fraction, high: Fraction) -> tuple[Fraction, Fraction]:
    about = TABLE[function]
    if about.slopes is None:
        return tuple(map(Fraction, checker.SLOPES[function]))  # type: ignore[return-value]
    return about.slopes(low, high, Fraction(KNOWN[function][1]))


@pytest.mark.parametrize("grid", [64, 3])
@pytest.mark.parametrize("function", [name for name in TABLE if TABLE[name].slopes])
def test_slopes_hold_all_difference_quotients_and_are_those_of_the_library(
    function: str, grid: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(check_domain, "GRID", Fraction(1, 1 << grid))
    call, p = KNOWN[function]
    parameters = {PARAMETERS[function]: torch.tensor(p, dtype=torch.float64)} if function in PARAMETERS else {}
    for low, high in intervals_of(function):
        least, most = slopes_of(function, low, high)
        at = [real(low + (high - low) * k / 6) for k in range(7)] if low < high else []
        quotients = [(call(b, M(p)) - call(a, M(p))) / (b - a) for a, b in zip(at, at[1:], strict=False)]
        for quotient in quotients:
            room = M(10) ** -25 * (1 + abs(quotient))
            assert real(least) - room <= quotient <= real(most) + room
        if grid == 3:
            continue
        x = Range(*(torch.tensor([float(end)], dtype=torch.float64) for end in (low, high)))
        found = FLOATS[function].slopes(x, parameters)
        for own, theirs in ((least, float(found.low)), (most, float(found.high))):
            assert abs(own - Fraction(theirs)) <= Fraction(1, 2**46) * (1 + abs(own))
        assert Fraction(float(found.low)) <= least <= most <= Fraction(float(found.high))
        # A neuron of a curved function is never one with a fixed slope, which would have no multiplier.
        fixed = (most - least) * 2**40 <= max(most, 0)
        assert not fixed or about_straight(function, low, high)


def about_straight(function: str, low: Fraction, high: Fraction) -> bool:
    return TABLE[function].bent or function == "relu6" or (function == "elu" and low >= 0)


@pytest.mark.parametrize(
    "x", [Fraction(0), Fraction(1, 3), Fraction(-7, 3), Fraction(700), Fraction(-1000), Fraction(1, 2**90)]
)
def test_the_exponential_is_enclosed_with_room_for_its_own_errors_only(x: Fraction):
    low, high = check_domain.exponential(x)
    with mpmath.workdps(500):
        true = mpmath.exp(mpmath.mpf(x.numerator) / x.denominator)
        assert mpmath.mpf(low.numerator) / low.denominator <= true <= mpmath.mpf(high.numerator) / high.denominator
    assert high - low <= Fraction(1, 2**170) * (1 + low)


def test_numbers_too_large_for_an_exponential_have_no_end():
    assert check_domain.exponential(Fraction(1025))[1] == math.inf
    assert check_domain.exponential(Fraction(-(10**9)))[0] == 0
    assert check_domain.exponential(Fraction(-(10**9)))[1] < Fraction(1, 2**1000)
    assert slopes_of("exp", Fraction(0), Fraction(2000)) == (-math.inf, math.inf)
    assert slopes_of("log", Fraction(0), Fraction(1)) == (-math.inf, math.inf)
