"""The checker of certificates about a domain: enclosures, ranges, what is left on them, and what it must refuse."""

import functools
import importlib
import itertools
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
from lipcert.graph import Activation, Affine, Concat, Graph, Input, Opaque
from lipcert.linear import Conv, Dense, Diagonal, LinearMap, Selection, dense
from lipcert.nn import GroupSort, Householder, MaxMin
from lipcert.norms import L1, L2, LINF
from lipcert.recheck import check
from lipcert.regions import Range, compared, propagated, restricted
from lipcert.regions.functions import TABLE as FLOATS
from lipcert.storage import save_certificate
from tests.maps import MAPS

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
    "sorted pairs": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 4, 2), MaxMin(), GroupSort(2, dim=-1), nn.Flatten(), nn.Linear(8, 2), nn.ReLU()
        ),
        (2, 3),
    ),
    "pooled": (
        lambda: nn.Sequential(nn.Conv1d(1, 2, 2), nn.MaxPool1d(3, 2, 1), nn.Conv1d(2, 2, 2), nn.AdaptiveMaxPool1d(1)),
        (1, 8),
    ),
    "gate": (Gate, (3,)),
    "attention": (Attention, (3, 2)),
    "reductions": (Reduced, (2, 3)),
}
DOMAINS: dict[str, Callable[[tuple[int, ...]], Domain]] = {
    "box": lambda shape: Box(-0.3, torch.linspace(-0.2, 0.4, math.prod(shape)).reshape(shape)),
    "ball": lambda shape: L2Ball(torch.linspace(-0.5, 0.5, math.prod(shape)).reshape(shape), 0.25),
}
SOME = ["ball", pytest.param("box", marks=pytest.mark.slow)]
PARTS = ["relu", "leaky", "tanh", "elu", "skip relu", "maxmin", "sorted pairs", "pooled"]


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
    """Of a network that sorts pairs, about the form that has moduli."""
    document, arrays = graph.document()
    document = json.loads(json.dumps(document))
    network = checker.read_network(document, arrays)
    stated = propagated(compared(graph), domain)[0] if claimed is None else claimed
    network, known = check_domain.compared(
        network, check_domain.read_functions(document, network, dict(arrays)), stated
    )
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
    for name, value in compared(graph).values(points(domain, graph.input.shape)).items():
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


@pytest.mark.parametrize("where", SOME)
@pytest.mark.parametrize("name", MODELS)
def test_values_of_the_network_are_inside_what_is_proven_of_every_node(name: str, where: str):
    graph, domain, _ = case(name, where)
    assert assert_values_are_inside(graph, domain, proven(graph, domain)) >= 2


@pytest.mark.parametrize("name", MODELS)
def test_of_a_single_point_the_values_are_proven_closely(name: str):
    """Softmax, lengths and normalised values are known loosely only; all else is known as its input is."""
    graph = case(name, "box")[0]
    x = torch.randn(graph.input.shape, generator=torch.Generator().manual_seed(5)).double()
    proof = proven(graph, Box(x, x))
    for key, value in compared(graph).values(x[None]).items():
        found, y = proof.found[key], value[0].numpy()
        if found is None:
            assert name == "relu6"  # behind a function that is not in the table
            break
        low, high = numbers(found.low), numbers(found.high)
        assert (y >= low - 1e-12 * (1 + abs(y))).all(), key
        assert (y <= high + 1e-12 * (1 + abs(y))).all(), key
        assert name in ("attention", "reductions") or (high - low <= 1e-6 * (1 + abs(y))).all(), key


@pytest.mark.parametrize("where", SOME)
@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("gate", "reductions")])
def test_rounding_goes_outward_however_few_bits_are_kept(name: str, where: str, monkeypatch: pytest.MonkeyPatch):
    """Ranges, coefficients, slopes and values of few bits: what is rounded the wrong way shows."""
    graph, domain, _ = case(name, where)
    stated, _ = propagated(compared(graph), domain)
    # What is wider before makes it wider behind, so it is more from one node to the next.
    rooms = {key: 2.0**k * (0.4 + 0.5 * r.magnitude) for k, (key, r) in enumerate(stated.items())}
    wider = {key: Range(r.low - rooms[key], r.high + rooms[key]) for key, r in stated.items()}
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


def test_parts_side_by_side_along_any_dimension_keep_their_own_ranges():
    """The columns of a 2 x 3 input, taken apart and joined again along the second dimension, the last one first."""
    last, first = (Selection(torch.tensor(index), (2, 3)) for index in ([[2], [5]], [[0, 1], [3, 4]]))
    nodes = (Affine("a", "x", last, None), Affine("b", "x", first, None), Concat("c", ("a", "b"), 1, (2, 3)))
    graph = Graph((Input("x", (2, 3)), *nodes))
    proof = proven(graph, Box(torch.arange(6.0).reshape(2, 3), 10.0 * torch.arange(1.0, 7.0).reshape(2, 3)), {})
    x, linear = proof.found["c"], upper_bounds(proof, proof.network["c"])
    assert x is not None
    assert linear is not None
    for low, high in ((x.low, x.high), linear):
        assert low.tolist() == [[2, 0, 1], [5, 3, 4]]
        assert high.tolist() == [[30, 10, 20], [60, 40, 50]]


NEGATIVE = Diagonal(torch.tensor([[-1.5, 2.0]]).double(), (3, 2))
REPEATED = Selection(torch.tensor([[2, -1, 2], [0, 2, -1]]), (3,))


@pytest.mark.parametrize("linear", [*(build() for build in MAPS.values()), NEGATIVE, REPEATED])
def test_every_map_moves_intervals_forward_and_coefficients_backward(linear: LinearMap):
    """Against its dense matrix: exactly the interval ``A c +- |A| r``, and ``C A``, up to what float64 rounds."""
    graph = Graph((Input("x", tuple(linear.in_shape)), Affine("a", "x", linear, None)))
    document, arrays = graph.document()
    own = checker.read_network(json.loads(json.dumps(document)), arrays)["a"].map
    A = dense(linear).numpy()
    rng = np.random.default_rng(0)
    centre, radius = rng.integers(-8, 9, A.shape[1]), rng.integers(0, 5, A.shape[1])
    ends = [
        check_domain._array(map(Fraction, end.tolist()), linear.in_shape) for end in (centre - radius, centre + radius)
    ]
    found = check_domain._through(own, check_domain.Range(*ends))
    assert found.low.shape == tuple(linear.out_shape)
    room = 1e-13 * (abs(A) @ (abs(centre) + radius))
    assert (abs(numbers(found.low.ravel()) - (A @ centre - abs(A) @ radius)) <= room).all()
    assert (abs(numbers(found.high.ravel()) - (A @ centre + abs(A) @ radius)) <= room).all()
    C = rng.integers(-8, 9, (3, len(A)))
    back = check_domain._before(own, C).astype(object) * own.unit
    assert (abs(numbers(back) - C @ A) <= 1e-13 * (abs(C) @ abs(A))).all()


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
    "contraction": (lambda x, p: x * (1 - p / 3), 2.0**-50),
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
PARAMETERS = {
    "leaky_relu": "negative_slope",
    "prelu": "weight",
    "elu": "alpha",
    "softplus": "beta",
    "contraction": "epsilon",
}
POSITIVE = ("sqrt", "log", "reciprocal")
ENDS = [-700.0, -31.0, -12.5, -3.0, -0.4, -(2.0**-60), 0.0, 0.01, 1.0, 2.5, 6.0, 40.0]


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


@pytest.mark.parametrize("grid", [160, 3])
@pytest.mark.parametrize("function", TABLE)
def test_values_on_intervals_and_lines_enclose_the_function(function: str, grid: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(check_domain, "FINE", Fraction(1, 1 << grid))
    call, p = KNOWN[function]
    about, parameter = TABLE[function], Fraction(p)
    for low, high in intervals_of(function)[:: 1 if grid == 160 else 5]:
        least, most = slopes_of(function, low, high)
        bottom, top = check_domain._between(about, low, high, parameter, least, most)
        how = check_domain._bent if about.bent else check_domain._curved
        a, c, b, d = how(about, low, high, parameter, least, most)
        for k in range(6):
            v = low + (high - low) * k / 5
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
        quotients = [(call(b, M(p)) - call(a, M(p))) / (b - a) for a, b in itertools.pairwise(at)]
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
    return TABLE[function].bent or function in ("relu6", "contraction") or (function == "elu" and low >= 0)


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


# ---------------------------------------------------------------------------------- the network that is left

NAMED = ["relu", "steep leaky", "tanh", "elu", "relu6", "smooth", "conv", "maxmin", "sorted pairs", "pooled"]
NAMED += ["gate", "attention", "reductions"]


@pytest.mark.parametrize("where", SOME)
@pytest.mark.parametrize("name", NAMED)
def test_what_is_left_is_what_the_library_leaves(name: str, where: str):
    """Node for node: the same names, slopes inside the library's and hardly less, gains at most the library's."""
    graph, domain, _ = case(name, where)
    left = check_domain.restricted(proven(graph, domain))
    form = compared(graph)
    theirs = restricted(form, propagated(form, domain)[0])
    assert [*left] == [node.name for node in theirs]
    for other in theirs:
        node = left[other.name]
        assert (node.kind, node.shape) == (type(other).__name__.lower(), other.shape)
        if isinstance(other, Affine):
            assert node.sources == (other.source,)
            assert node.map is not None
            assert not isinstance(other.map, Selection) or (node.map.tensor == other.map.index.numpy()).all()
            X, unit = checker.product([node.map])
            assert (numbers(X) * float(unit) == dense(other.map).numpy()).all()
        if isinstance(other, Activation):
            low, high = (end.expand(other.shape).numpy() for end in other.slope)
            least, most = (numbers(np.broadcast_to(end, node.shape)) for end in node.ends)
            assert ((low <= least) & (most <= high)).all()
            assert (least - low <= 2.0**-46 * (1 + abs(low))).all()
            assert (high - most <= 2.0**-46 * (1 + abs(high))).all()
            assert node.slope == max(abs(end) for side in node.ends for end in np.asarray(side).flat)
        if isinstance(other, Opaque):
            known = {str(norms): gain for norms, gain in other.gains.items()}
            assert node.gains.keys() == known.keys()
            assert all(
                node.gains[pair] <= gain <= node.gains[pair] * (1 + Fraction(1, 2**40)) for pair, gain in known.items()
            )


def never(x: Tensor) -> Tensor:
    raise AssertionError


def by_hand(function: str, shape: tuple[int, ...], sizes: tuple[int, ...], **parameters: Any) -> Graph:
    return Graph((Input("x", sizes), Opaque("f", "x", shape, function, parameters, {}, never)))


WRONG_SHAPES: dict[str, Graph] = {
    "halves of an odd dimension": by_hand("product", (1,), (3,)),
    "halves of another size": by_hand("product", (4,), (4,)),
    "halves along the last dimension": by_hand("product", (2, 2), (2, 4)),
    "matrices that do not fit": by_hand("matmul", (2, 2), (10,), left=[2, 3], right=[2, 2]),
    "matrices that another batch repeats": by_hand("matmul", (2, 1, 1), (3,), left=[2, 1, 1], right=[1, 1, 1]),
    "matrices of which some is left over": by_hand("matmul", (1, 1), (3,), left=[1, 1], right=[1, 1]),
    "vectors for matrices": by_hand("matmul", (1,), (2,), left=[1], right=[1]),
    "matrices of another result": by_hand("matmul", (1, 2), (2,), left=[1, 1], right=[1, 1]),
    "no dimension to normalise": by_hand("layer_norm", (2,), (2,), dims=0, eps=1.0),
    "more dimensions than there are": by_hand("layer_norm", (2,), (2,), dims=2, eps=1.0),
    "a negative variance": by_hand("layer_norm", (2,), (2,), dims=1, eps=-1.0),
    "another shape normalised": by_hand("layer_norm", (3,), (2,), dims=1, eps=1.0),
    "an exponential of another shape": by_hand("exp", (3,), (2,)),
    "an exponential with a parameter": by_hand("exp", (2,), (2,), base=[2, 2]),
}


@pytest.mark.parametrize("name", WRONG_SHAPES)
def test_functions_with_constants_on_a_domain_have_shapes_and_parameters_that_fit(name: str):
    graph = WRONG_SHAPES[name]
    document, arrays = graph.document()
    size = math.prod(graph.input.shape)
    certificate = local_claim(graph, {"f": [[(1.0).hex()] * size, [(2.0).hex()] * size]})
    refused(certificate, document, arrays, Malformed)


def local_claim(graph: Graph, ranges: Any, bound: float = 1e9) -> dict[str, Any]:
    return {
        **{"format": "lipcert-certificate-1", "network": graph.digest(), "norms": "l2->l2", "bound": bound.hex()},
        **{"validity": "RIGOROUS", "method": "by hand", "evidence": {"kind": "gains", "items": []}},
        **{"domain": to_document(Box(1.0, 2.0)), "ranges": ranges},
    }


BOUNDS: dict[str, tuple[Graph, float]] = {  # on 1 <= x <= 2
    "product": (by_hand("product", (2,), (4,)), 4.0),
    "matmul": (by_hand("matmul", (1, 1), (4,), left=[1, 2], right=[2, 1]), 2 * math.sqrt(8.0)),
    "exp": (by_hand("exp", (3,), (3,)), math.exp(2.0)),
    "square": (by_hand("square", (3,), (3,)), 4.0),
    "sqrt": (by_hand("sqrt", (3,), (3,)), 0.5),
    "log": (by_hand("log", (3,), (3,)), 1.0),
    "reciprocal": (by_hand("reciprocal", (3,), (3,)), 1.0),
    "layer_norm": (by_hand("layer_norm", (2, 3), (2, 3), dims=2, eps=0.25), 2.0),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_constants_on_a_domain_are_those_of_arithmetic(name: str):
    """A product is b times a sum of a, in all twice the largest factor; others have their largest slope on [1, 2]."""
    graph, constant = BOUNDS[name]
    size = math.prod(graph.input.shape)
    gains = local_claim(graph, {"f": [[(1.0).hex()] * size, [(2.0).hex()] * size]})
    if name in ("product", "matmul"):
        gains["evidence"]["items"] = [
            {"path": [f"f/{side}/{'half' if name == 'product' else 'part'}"], "norms": "l2->l2", "value": (1.0).hex()}
            for side in ("left", "right")
        ]
    document, arrays = graph.document()
    above = {**gains, "bound": (constant * (1 + 2.0**-36) + 2.0**-36).hex()}
    assert verify_domain(json.dumps(above), document, arrays).bound >= constant
    assert "is below" in refused({**gains, "bound": (constant * (1 - 2.0**-40)).hex()}, document, arrays, Reject)
    without = {**gains, "ranges": {}, "evidence": {"kind": "gains", "items": []}}
    assert "no proven gain" in refused(without, document, arrays, Reject)
    everywhere = {key: value for key, value in gains.items() if key not in ("domain", "ranges")}
    everywhere["evidence"] = {"kind": "gains", "items": []}
    with pytest.raises(Reject, match="no proven gain"):
        verify(json.dumps(everywhere), document, arrays)


@pytest.mark.parametrize(("name", "low", "high"), [("sqrt", 0.0, 2.0), ("log", -1.0, 1.0), ("reciprocal", -2.0, -1.0)])
def test_functions_that_are_too_steep_have_no_constant(name: str, low: float, high: float):
    graph = by_hand(name, (2,), (2,))
    claim = local_claim(graph, {"f": [[low.hex()] * 2, [high.hex()] * 2]})
    claim["domain"] = to_document(Box(low, high))
    assert "no proven gain" in refused(claim, *graph.document(), Reject)


def test_a_normalisation_without_room_has_no_constant_and_one_with_gaps_has():
    """x1 in [0, 1], x2 in [3, 4]: the variance is at least ((3 - 1) / 2)^2 = 1."""
    graph = by_hand("layer_norm", (2,), (2,), dims=1, eps=0.0)
    claim = local_claim(graph, {"f": [[(0.0).hex(), (3.0).hex()], [(1.0).hex(), (4.0).hex()]]}, 1.0)
    claim["domain"] = to_document(Box(torch.tensor([0.0, 3.0]), torch.tensor([1.0, 4.0])))
    assert verify_domain(json.dumps(claim), *graph.document()).bound == 1.0
    assert "is below 1.0" in refused({**claim, "bound": math.nextafter(1.0, 0.0).hex()}, *graph.document(), Reject)
    claim = local_claim(graph, {"f": [[(1.0).hex()] * 2, [(2.0).hex()] * 2]})
    assert "no proven gain" in refused(claim, *graph.document(), Reject)


def test_the_row_with_the_least_variance_counts():
    """Two rows, of which one has a variance of at least 1, the other of 0; epsilon is 1/4."""
    graph = by_hand("layer_norm", (2, 2), (2, 2), dims=1, eps=0.25)
    low, high = [0.0, 3.0, 0.0, 0.0], [1.0, 4.0, 1.0, 1.0]
    claim = local_claim(graph, {"f": [[end.hex() for end in ends] for ends in (low, high)]}, 2.0)
    claim["domain"] = to_document(Box(*(torch.tensor(ends).reshape(2, 2) for ends in (low, high))))
    assert verify_domain(json.dumps(claim), *graph.document()).bound == 2.0
    assert "is below 2.0" in refused({**claim, "bound": math.nextafter(2.0, 0.0).hex()}, *graph.document(), Reject)


def test_nothing_is_believed_of_what_a_function_gives_that_is_not_bounded():
    graph = trace(nn.Sequential(Householder(2), nn.ReLU()).double(), (2,))
    certificate = certify_on(graph, Box(-1.0, 1.0), by=Product())
    assert [*certificate.ranges] == ["0"]
    claim = json.loads(certificate.to_json())
    assert verify_domain(json.dumps(claim), *graph.document()).bound == certificate.bound
    claim["ranges"]["1"] = [[(-1e300).hex()] * 2, [(1e300).hex()] * 2]
    assert "but nothing finite is proven" in refused(claim, *graph.document(), Reject)


@pytest.mark.parametrize("name", ["f/left", "f/left/half", "f/right/half"])
def test_a_node_may_not_be_called_as_what_stands_for_another(name: str):
    nodes = (Input(name, (4,)), Opaque("f", name, (2,), "product", {}, {}, never))
    graph = Graph(nodes)
    claim = local_claim(graph, {"f": [[(1.0).hex()] * 4, [(2.0).hex()] * 4]})
    assert f"a node is called {name}" in refused(claim, *graph.document(), Malformed)


@pytest.mark.parametrize("name", ["f/0/moduli", "f/0/differences", "f/1/moduli", "f/0", "f/1"])
def test_a_node_may_not_be_called_as_a_part_of_a_sort(name: str):
    about = {"dim": 0, "group": 3, "arrangement": "consecutive"}
    graph = Graph((Input(name, (3,)), Opaque("f", name, (3,), "sort", about, {L2: 1.0}, never)))
    claim = local_claim(graph, {"f/0/moduli": [[(-1.0).hex()] * 3, [(1.0).hex()] * 3]})
    assert "as is a part of f" in refused(claim, *graph.document(), Malformed)


# ------------------------------------------------------------------ layers of which some neurons have one slope only


def test_multipliers_stand_for_the_neurons_that_bend():
    """Of relu([5; -5; 0] + x) on |x| <= 1 one neuron is the identity, one is zero, one bends."""
    first = Affine("a", "x", Dense(torch.eye(3).double(), (3,)), torch.tensor([5.0, -5.0, 0.0]).double())
    slope = (torch.tensor(0.0).double(), torch.tensor(1.0).double())
    relu = Activation("r", "a", (3,), "relu", {}, slope, torch.relu)
    last = Affine("b", "r", Dense(torch.tensor([[2.0, 9.0, 2.0]]).double(), (3,)), None)
    graph = Graph((Input("x", (3,)), first, relu, last))
    certificate = certify_on(graph, Box(-1.0, 1.0), by=LipSDP())
    assert certificate.bound == pytest.approx(math.sqrt(8.0), rel=1e-6)
    document, arrays = graph.document()
    claim = json.loads(certificate.to_json())
    (block,) = claim["evidence"]["blocks"]
    assert {name: len(listed) for name, listed in block["multipliers"].items()} == {"r": 1}
    assert verify_domain(json.dumps(claim), document, arrays).bound == certificate.bound
    (number,) = block["multipliers"]["r"]
    for listed in ([], [number] * 2, [number] * 3):
        block["multipliers"] = {"r": listed}
        refused(claim, document, arrays, Malformed)
    for other in ((0.0).hex(), (1e-3 * float.fromhex(number)).hex(), (-float.fromhex(number)).hex()):
        block["multipliers"] = {"r": [other]}
        refused(claim, document, arrays, Reject)
    for multipliers in ({}, {"r (bending)": [number]}, {"r": [number], "r (bending)": [number]}, {"s": [number]}):
        block["multipliers"] = multipliers
        refused(claim, document, arrays, Malformed)


def test_a_neuron_with_a_fixed_negative_slope_has_no_multiplier():
    """3 |x + 5| + 3 |x - 5| + |x| is 30 + |x| on |x| <= 1: of three neurons one bends."""
    first = Affine("a", "x", Dense(torch.ones(3, 1).double(), (1,)), torch.tensor([5.0, -5.0, 0.0]).double())
    slope = (torch.tensor(-1.0).double(), torch.tensor(1.0).double())
    last = Affine("b", "r", Dense(torch.tensor([[3.0, 3.0, 1.0]]).double(), (3,)), None)
    graph = Graph((Input("x", (1,)), first, Activation("r", "a", (3,), "abs", {}, slope, torch.abs), last))
    certificate = certify_on(graph, Box(-1.0, 1.0), by=LipSDP())
    assert certificate.bound == pytest.approx(1.0, rel=1e-6)
    (block,) = json.loads(certificate.to_json())["evidence"]["blocks"]
    assert {name: len(listed) for name, listed in block["multipliers"].items()} == {"r": 1}
    assert verify_domain(certificate.to_json(), *graph.document()).bound == certificate.bound


def test_errors_of_two_neurons_with_opposite_slopes_add_up():
    """``|c z + 10| + |d z - 10| = 20 + (c - d) z`` for factors c and d that are known to be in [1 - 2^-44, 1] only."""
    epsilon = 2.0**-44
    one = torch.ones(2, dtype=torch.float64)
    moduli = Activation("m", "c", (2,), "abs", {}, (-one, one), torch.abs)
    graph = Graph(
        (
            Input("z", (1,)),
            Affine("a", "z", Dense(one[:, None], (1,)), None),
            Activation("b", "a", (2,), "contraction", {"epsilon": epsilon}, (one * (1 - epsilon), one), never),
            Affine("c", "b", Diagonal(one, (2,)), torch.tensor([10.0, -10.0]).double()),
            moduli,
            Affine("y", "m", Dense(one[None], (2,)), None),
        )
    )
    certificate = certify_on(graph, Box(-1.0, 1.0), by=LipSDP())
    assert epsilon < certificate.bound
    check(certificate, graph)
    claim = json.loads(certificate.to_json())
    for value, kinds in ((2.0**-20, ()), (2.0**-45, (Reject,))):
        block = {"source": "z", "target": "y", "value": value.hex(), "multipliers": {}}
        claim["evidence"] = {"kind": "multipliers", "items": [], "blocks": [block]}
        claim["bound"] = value.hex()
        if kinds:
            assert "do not prove the bound" in refused(claim, *graph.document(), kinds)
        else:
            assert verify_domain(json.dumps(claim), *graph.document()).bound == value


def test_where_no_range_is_known_all_neurons_of_a_layer_have_multipliers_if_any_has():
    """Behind a reflection nothing is known; one channel of the activation has the slope 1 on both sides."""
    first, last = (nn.Linear(2, 2).double() for _ in range(2))
    act = nn.PReLU(2)
    act.weight.data = torch.tensor([1.0, 0.25])
    torch.manual_seed(0)
    graph = trace(nn.Sequential(first, Householder(2), act, last).double(), (2,))
    certificate = certify_on(graph, Box(-1.0, 1.0), by=LipSDP())
    (block,) = json.loads(certificate.to_json())["evidence"]["blocks"]
    assert {name: len(listed) for name, listed in block["multipliers"].items()} == {"1": 1, "2": 2}
    assert verify_domain(certificate.to_json(), *graph.document()).bound == certificate.bound


@pytest.mark.parametrize("name", ["r (bending)", "r (fixed)", "r (bending) read", "r (bending) back"])
def test_a_node_may_not_be_called_as_a_part_of_a_layer(name: str):
    x = Input("x", (2,))
    slope = (torch.tensor(0.0).double(), torch.tensor(1.0).double())
    shift = Affine(name, "x", Dense(torch.eye(2).double(), (2,)), torch.tensor([0.0, 5.0]).double())
    graph = Graph((x, shift, Activation("r", name, (2,), "relu", {}, slope, torch.relu)))
    certificate = certify_on(graph, Box(-1.0, 1.0), by=Product())
    block = {"source": "x", "target": "r", "value": (9.0).hex(), "multipliers": {"r": [(1.0).hex()]}}
    claim = json.loads(certificate.to_json())
    claim["evidence"] = {"kind": "multipliers", "items": [], "blocks": [block]}
    assert "called as parts of others" in refused({**claim, "bound": (9.0).hex()}, *graph.document(), Malformed)


@pytest.mark.parametrize("act", [nn.Tanh, nn.LogSigmoid, nn.ELU, nn.LeakyReLU], ids=lambda act: act.__name__)
def test_inputs_that_cannot_move_leave_neurons_whose_multipliers_both_sides_count_alike(act: Callable[[], nn.Module]):
    """Narrow ranges: neurons are nearly linear for a checker that computes slopes closely."""
    torch.manual_seed(3)
    layer = nn.Linear(4, 4)
    graph = trace(nn.Sequential(act(), layer, act(), nn.Linear(4, 4)).double(), (4,))
    low = torch.tensor([-1.0, 0.0, 2.0**-21, 0.01], dtype=torch.float64)
    domain = Box(low, torch.tensor([1.0, 0.0, 2.0**-21, 0.01], dtype=torch.float64))
    certificate = certify_on(graph, domain, by=LipSDP())
    assert type(certificate.evidence).__name__ == "Multipliers"
    assert verify_domain(certificate.to_json(), *graph.document()).bound == certificate.bound


# ------------------------------------------------------------------------------------------------------ tampering


def changed(ranges: dict[str, Any], name: str, side: int, entry: int, value: float) -> dict[str, Any]:
    ends = [list(end) for end in ranges[name]]
    ends[side][entry] = value.hex()
    return {**ranges, name: ends}


@pytest.mark.parametrize("where", SOME)
@pytest.mark.parametrize("name", MODELS)
def test_no_range_may_exclude_a_value_that_occurs(name: str, where: str):
    by = "lipsdp" if name in ("sorted pairs", "pooled") else "product"  # about its form that has moduli
    graph, domain, certificate = case(name, where, by)
    claim, document, arrays = given(name, where, by)
    form = compared(graph, certificate.ranges)
    at = form.values(points(domain, graph.input.shape))
    nonlinear = [node for node in form if isinstance(node, Activation | Opaque) and node.name in certificate.ranges]
    for node in nonlinear:
        for side, seen in ((0, at[node.source].amin(0)), (1, at[node.source].amax(0))):
            entry = len(seen.flatten()) // 2
            end, value = certificate.ranges[node.name][side][entry], seen.flatten()[entry].item()
            shrunk = value + (1e-9 if side == 0 else -1e-9) * (1 + abs(value))
            assert (end <= value) if side == 0 else (value <= end)
            opposite = certificate.ranges[node.name][1 - side][entry]
            if (shrunk > opposite) if side == 0 else (shrunk < opposite):
                continue
            ranges = changed(claim["ranges"], node.name, side, entry, shrunk)
            reason = refused({**claim, "ranges": ranges}, document, arrays, Reject)
            assert (
                f"`{node.name}` ({'activation' if isinstance(node, Activation) else 'opaque'}) is said to read"
                in reason
            )
            assert f"at {'least' if side == 0 else 'most'} {shrunk!r} in entry {entry}" in reason


@pytest.mark.parametrize("where", DOMAINS)
@pytest.mark.parametrize("name", ["relu", "tanh", "gate"])
def test_a_range_that_is_missing_leaves_a_node_as_steep_as_it_is_everywhere(name: str, where: str):
    claim, document, arrays = given(name, where)
    last = [*claim["ranges"]][-1]
    if name == "tanh":  # on a small domain it is less steep
        del claim["ranges"][last]
        assert "is below" in refused(claim, document, arrays, Reject)
    claim["ranges"] = {}
    if name == "gate":
        assert "no such nodes" in refused(claim, document, arrays, Malformed)
        claim["evidence"]["items"] = [item for item in claim["evidence"]["items"] if "/" not in item["path"][0]]
        assert "no proven gain" in refused(claim, document, arrays, Reject)
    elif name == "tanh":
        assert "is below" in refused(claim, document, arrays, Reject)
    else:  # some neuron of every layer bends, so that nothing is gained by ranges
        assert verify_domain(json.dumps(claim), document, arrays).bound == case(name, where)[2].bound


@pytest.mark.parametrize("name", ["relu", "tanh", "conv", "gate", "attention"])
def test_the_ranges_are_those_of_this_domain_and_no_larger_one(name: str):
    for where, key in (("box", "high"), ("ball", "centre"), ("ball", "radius")):
        claim, document, arrays = given(name, where)
        about = claim["domain"]
        # Of a ball, the library bounds what attention reads by intervals only: a somewhat larger one is proven, too.
        for factor in (1e-4, 1.0, 1e3) if (name, where) != ("attention", "ball") else (1e3,):
            if key == "radius":
                larger = {**about, "radius": (float.fromhex(about["radius"]) * (1 + factor)).hex()}
            else:
                moved = [(float.fromhex(x) + factor).hex() for x in about[key]["values"]]
                larger = {**about, key: {**about[key], "values": moved}}
            assert "is said to read" in refused({**claim, "domain": larger}, document, arrays, Reject)


def test_a_smaller_domain_is_proven_too():
    claim, document, arrays = given("tanh", "ball")
    claim["domain"] = {**claim["domain"], "radius": (0.125).hex()}
    assert "radius 0.125" in verify_domain(json.dumps(claim), document, arrays).domain


@pytest.mark.parametrize("by", ["product", "lipsdp"])
def test_bounds_and_multipliers_may_not_be_lowered(by: str):
    claim, document, arrays = given("relu", "box", by)
    lower = {**claim, "bound": (float.fromhex(claim["bound"]) * (1 - 1e-9)).hex()}
    assert "prove." in refused(lower, document, arrays, Reject)
    for block in claim["evidence"].get("blocks", []):
        for name, listed in block["multipliers"].items():
            kept = list(listed)
            block["multipliers"][name] = [(0.5 * float.fromhex(value)).hex() for value in kept]
            assert "the multipliers do not prove" in refused(claim, document, arrays, Reject)
            block["multipliers"][name] = kept


def test_the_parameters_that_slopes_depend_on_are_under_the_digest_and_are_used():
    claim, document, arrays = given("leaky", "ball", "lipsdp")
    for node in document["nodes"]:
        if node["kind"] == "activation":
            node["parameters"] = {"negative_slope": (0.25).hex()}
    assert "is about the network" in refused(claim, document, arrays, Reject)
    again = {**claim, "network": digest(document, arrays)}
    refused(again, document, arrays, (Reject, Malformed))


def test_a_bias_counts():
    claim, document, arrays = given("tanh", "box")
    key = next(node["bias"] for node in document["nodes"] if node["kind"] == "affine")
    moved = {**arrays, key: arrays[key] + arrays[key].dtype.type(0.125)}
    again = {**claim, "network": digest(document, moved)}
    assert "is said to read" in refused(again, document, moved, Reject)


# ---------------------------------------------------------------------------------------- everything field for field

WRONG = [None, True, 0, 1.5, [], {}, "", "nan", "inf", "-inf", "0x1p3", "1.0", [None], {"shape": [3]}]
FIELDS: dict[str, tuple[str, list[Any]]] = {
    "domain": ("box", [*WRONG, {"kind": "box"}, {"kind": "everything"}]),
    "domain.kind": ("box", [*WRONG, "l2 ball", "ball"]),
    "domain.low": (
        "box",
        [*WRONG, {"shape": [3], "values": ["nan"] * 3}, (1e9).hex(), {"shape": [2], "values": [(0.0).hex()] * 2}],
    ),
    "domain.high": (
        "box",
        [*WRONG, {"shape": [3], "values": [(1.0).hex()] * 2}, {"shape": [-3], "values": []}, (-1e9).hex()],
    ),
    "domain.high.shape": ("box", [*WRONG, [4], [2], [3, 1], [3, 1, 1]]),
    "domain.high.values": ("box", [*WRONG, [(1.0).hex()] * 4]),
    "domain.centre": ("ball", [*WRONG, {"shape": [5], "values": [(0.0).hex()] * 5}]),
    "domain.radius": ("ball", [*WRONG, (-0.25).hex(), (-1e-300).hex()]),
    "domain.more": ("ball", [1, None]),
    "ranges": ("box", WRONG[:5] + WRONG[6:]),
    "ranges.input": ("box", [[[(0.0).hex()] * 3, [(1.0).hex()] * 3]]),
    "ranges.nowhere": ("box", [[[(0.0).hex()] * 3, [(1.0).hex()] * 3]]),
    "ranges.0": ("box", [[[(0.0).hex()] * 3, [(1.0).hex()] * 3]]),  # an affine node
    "ranges.1": ("box", [*WRONG, [[], []], [[(-9.0).hex()] * 5], [[(-9.0).hex()] * 5, [(9.0).hex()] * 4]]),
    "ranges.1.more": ("box", [[[(-9.0).hex()] * 5, [(9.0).hex()] * 5, [(9.0).hex()] * 5]]),
    "ranges.1.0": (
        "box",
        [*WRONG, [(-9.0).hex()] * 4, [(-9.0).hex()] * 6, ["-inf"] * 5, ["nan"] * 5, [-9] * 5, [(9.0).hex()] * 5],
    ),
    "ranges.1.1": ("box", [*WRONG, [(9.0).hex()] * 4, ["inf"] * 5, ["nan"] * 5, [(-9.0).hex()] * 5]),
}


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_about_the_domain_is_checked(field: str):
    where, wrong = FIELDS[field]
    *before, last = field.split(".")
    for value in wrong:
        claim, document, arrays = given("relu", where)
        place: Any = claim
        for key in before:
            place = place[int(key) if isinstance(place, list) else key]
        if isinstance(place, dict):
            place[last] = value
        elif last == "more":
            place += value
        else:
            place[int(last)] = value
        assert refused(claim, document, arrays, Malformed), value


@pytest.mark.parametrize("key", ["domain", "ranges"])
def test_domain_and_ranges_come_together(key: str):
    claim, document, arrays = given("relu", "box")
    del claim[key]
    assert "not an object with the fields" in refused(claim, document, arrays, Malformed)
    refused({**claim, "more": 1}, document, arrays, Malformed)


def test_limits_may_be_numbers_and_broadcast():
    graph, _, _ = case("relu", "box")
    ends = torch.tensor([-0.5]), torch.tensor([0.5, 0.25, 0.125])
    for (low, high), text in (((-0.5, 0.5), "the box"), (ends, "a box inside the box")):
        certificate = certify_on(graph, Box(low, high), by=Product())
        said = verify_domain(certificate.to_json(), *graph.document()).domain
        assert said == f"{text} between -0.5 and 0.5"
    certificate = certify_on(graph, L2Ball(0.5, 0.25), by=Product())
    assert verify_domain(certificate.to_json(), *graph.document()).domain == "the l2 ball of radius 0.25 around 0.5"


# ------------------------------------------------------------------------------------------------- from the outside


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    graph, _, certificate = case("tanh", "ball")
    network = save_certificate(certificate, graph, tmp_path / "c.json")
    return str(tmp_path / "c.json"), str(network)


def run(*arguments: str) -> tuple[int, str]:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd="/")
    return done.returncode, done.stdout


def test_the_file_runs_by_itself_and_prints_the_domain(files: tuple[str, str], tmp_path: Path):
    bound = case("tanh", "ball")[2].bound
    where = "the l2 ball of radius 0.25 around a point"
    assert run(str(SCRIPT), *files) == (0, f"ACCEPT: Lip(f; l2->l2 on {where}) <= {bound!r}\n")
    claim = json.loads(Path(files[0]).read_text())
    path = tmp_path / "other.json"
    path.write_text(json.dumps({**claim, "bound": (0.5 * bound).hex()}))
    code, said = run(str(SCRIPT), str(path), files[1])
    assert (code, said.startswith("REJECT: bound")) == (1, True)
    path.write_text(json.dumps({**claim, "ranges": []}))
    code, said = run(str(SCRIPT), str(path), files[1])
    assert (code, said.startswith("MALFORMED")) == (2, True)


def test_the_checker_without_domains_refuses_and_says_which_file_to_take(files: tuple[str, str]):
    code, said = run(str(checker.__file__), *files)
    assert (code, "check_domain.py" in said) == (2, True)
    with pytest.raises(Malformed, match=r"check_domain\.py"):
        checker.verify_files(*files)


def test_files_are_checked_as_values_are(files: tuple[str, str], tmp_path: Path):
    assert verify_files(*files).bound == case("tanh", "ball")[2].bound
    with pytest.raises(Malformed):
        verify_files(str(tmp_path / "nowhere.json"), files[1])
    whole = tmp_path / "whole.json"
    graph = case("tanh", "ball")[0]
    certificate = Product()(graph)
    save_certificate(certificate, graph, whole)
    assert verify_files(str(whole), files[1]).domain == ""
    code, said = run(str(SCRIPT), str(whole), files[1])
    assert (code, said) == (0, f"ACCEPT: Lip(f; l2->l2) <= {certificate.bound!r}\n")


def test_the_library_and_the_command_line_check_domains(files: tuple[str, str]):
    from typer.testing import CliRunner

    from lipcert.cli import app

    said = CliRunner().invoke(app, ["check", *files])
    assert said.exit_code == 0
    assert "on the l2 ball of radius 0.25 around a point" in said.output
    graph, _, certificate = case("tanh", "ball")
    with pytest.raises(CheckFailed, match="is below"):
        check(replace(certificate, bound=0.5 * certificate.bound), graph)


def test_what_exact_arithmetic_takes_too_long_for_is_called_too_large():
    """6400 x 6400 entries of a convolution, over 2^24."""
    weight = torch.ones(4, 4, 3, 3, dtype=torch.float64)
    conv = Conv(weight, (4, 40, 40), (40, 40), (1, 1), ((1, 1), (1, 1)), (1, 1), 1, "zeros")
    graph = Graph((Input("x", (4, 40, 40)), Affine("a", "x", conv, None)))
    with pytest.raises(checker.TooLarge, match=r"the range of `a`: too large .*lipcert check --float64"):
        proven(graph, Box(0.0, 1.0), {})
