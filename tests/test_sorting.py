"""Sorting and reflecting in the semidefinite bound: the constraint itself, both proofs of it, known truths."""

import copy
import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from benchmarks.third_party import FOLDER, networks
from lipcert import L2, check, check_float64, trace, witness
from lipcert.certificate import Block, Certificate, Multipliers, Validity
from lipcert.certifiers import LipSDP, Product
from lipcert.certifiers.lipsdp import parts
from lipcert.check import Malformed, Node, _directions, _grouped, _variable, read_network, verify
from lipcert.check import cosine_and_sine as cosine_and_sine_in_integers
from lipcert.errors import CheckFailed, InvalidInput, NotFinite
from lipcert.graph import Graph, Opaque, digest
from lipcert.kernel.angles import cosine_and_sine
from lipcert.lmi import holds, normal_form, prove, reduced, tighten
from lipcert.lmi.groups import groups
from lipcert.nn import FullSort, GroupSort, Householder, MaxMin
from lipcert.solvers import FirstOrder, InteriorPoint, Recursion
from lipcert.witness import Budget
from tests.semidefinite import semidefinite
from tests.test_lipsdp import positive, require_both_proofs

QUICK = Budget(points=4, power_steps=8, ascent_steps=10)
THIRD_PARTY = {net.name: net for net in networks()}
SORTED = [name for name in THIRD_PARTY if "GroupSort" in name or "sort" in name.split("_")[-1]]


def reflecting(channels: int, dim: int = 1, seed: int = 0) -> Householder:
    module = Householder(channels, dim).double()
    module.theta.data = 3.0 * torch.randn(channels // 2, generator=torch.Generator().manual_seed(seed)).double()
    return module.requires_grad_(False)


Make = Callable[[int, int], nn.Module]
"""A module for so many channels along a dimension."""

MODULES: dict[str, Make] = {
    "maxmin": lambda size, dim: MaxMin(dim),
    "groupsort 2": lambda size, dim: GroupSort(2, dim),
    "groupsort 3": lambda size, dim: GroupSort(3, dim),
    "groupsort 6": lambda size, dim: GroupSort(6, dim),
    "full sort": lambda size, dim: FullSort(dim),
    "householder": lambda size, dim: reflecting(size, dim),
}
PLACES = [((6,), 1), ((12,), -1), ((6, 4), 1), ((3, 6), 2), ((2, 6, 3), 2), ((12, 1, 2), 1)]


def chain(sizes: list[int], seed: int, make: Make, scale: float = 1.0) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for k, (into, out) in enumerate(itertools.pairwise(sizes)):
        layer = nn.Linear(into, out, dtype=torch.float64)
        layer.weight.data = scale * torch.randn(out, into, generator=generator, dtype=torch.float64) / into**0.5
        layer.bias.data.zero_()
        layers += [layer] if k == len(sizes) - 2 else [layer, make(out, 1)]
    return nn.Sequential(*layers).requires_grad_(False)


@functools.cache
def alone(name: str, place: tuple[tuple[int, ...], int]) -> tuple[nn.Module, Opaque, Node]:
    """A module by itself, its node, and the node as the checker reads it."""
    shape, dim = place
    module = MODULES[name](shape[dim - 1 if dim > 0 else dim], dim)
    graph = trace(module, shape)
    assert isinstance(graph.output, Opaque)
    return module, graph.output, list(read_network(*graph.document()).values())[-1]


def pair(shape: tuple[int, ...], seed: int, integers: bool) -> tuple[Tensor, Tensor]:
    """Two inputs; small integers have many ties, and pairs that differ in one entry only cross few boundaries."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randint(-3, 4, (3, *shape), generator=generator).double()
    if not integers:
        draw = draw + torch.randn(3, *shape, generator=generator).double()
    step = draw[1] * (draw[2] > 1.0) if seed % 2 else draw[1]
    return draw[0], draw[0] + step


# ------------------------------------------------------------------------------------ the constraint holds for pairs


@pytest.mark.parametrize("name", MODULES)
@given(place=st.sampled_from(PLACES), seed=st.integers(0, 2**16), integers=st.booleans())
@settings(max_examples=40, deadline=None)
def test_a_direction_is_kept_and_the_rest_does_not_grow(name: str, place: Any, seed: int, integers: bool):
    shape, (module, node, _) = place[0], alone(name, place)
    found = groups(node)
    assert sorted(found.index.ravel().tolist()) == list(range(math.prod(shape)))
    x, y = pair(shape, seed, integers)
    dv, du = ((b - a).ravel()[found.index][:, :, None] for a, b in ((x, y), (module(x[None]), module(y[None]))))
    s, w = (found.C @ dv)[:, :, 0], (found.C @ du)[:, :, 0]
    near = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(found.q @ du, found.q @ dv, **near)
    torch.testing.assert_close(du, found.p @ (found.q @ dv) + found.D @ w[:, :, None], **near)
    torch.testing.assert_close(dv, found.p @ (found.q @ dv) + found.D @ s[:, :, None], **near)
    assert bool(((w * w).sum(1) <= (s * s).sum(1) * (1 + 1e-12) + 1e-12).all())
    if node.function == "sort":
        pairs = ((du - du.mT) ** 2).sum((1, 2)) / 2
        torch.testing.assert_close((w * w).sum(1), pairs, **near)


@pytest.mark.parametrize("name", MODULES)
@given(place=st.sampled_from(PLACES), seed=st.integers(0, 2**16))
@settings(max_examples=20, deadline=None)
def test_the_checker_knows_the_same_directions_exactly(name: str, place: Any, seed: int):
    shape, (module, _, node) = place[0], alone(name, place)
    (Q, B), bounds, squares, unit = _directions(node)
    x, y = pair(shape, seed, integers=True)
    dv = [Fraction(value) for value in (y - x).ravel().tolist()]
    du = [Fraction(value) for value in (module(y[None]) - module(x[None])).ravel().tolist()]
    w = [Fraction(value) * unit / square for value, square in zip(B.T.dot(du), squares, strict=True)]
    s = [Fraction(value) * unit / square for value, square in zip(B.T.dot(dv), squares, strict=True)]
    length = 1 if node.angles else node.members
    again = Q.dot(Q.T.dot(dv)) * unit**2 / length + B.dot(w) * unit
    near = Fraction(0) if not node.angles else Fraction(1, 2**40)
    assert all(abs(a - b) <= near for a, b in zip(again, du, strict=True))
    per_group = len(squares) // (math.prod(shape) // node.members)
    sizes = [square * (a * a - b * b) for square, a, b in zip(squares, w, s, strict=True)]
    assert all(sum(sizes[j : j + per_group]) <= near for j in range(0, len(sizes), per_group))
    off = 1 if node.angles else 0
    assert np.all(abs(Q.T.dot(B)) * unit**2 <= near)
    assert all(np.all(abs(bound) >= abs(X) - off) for X, bound in zip((Q, B), bounds, strict=True))


def test_cosines_are_known_as_loosely_as_they_are_rounded():
    mpmath = pytest.importorskip("mpmath")
    _, _, node = alone("householder", ((6,), 1))
    signal, terms = _grouped(node, _variable("v", 6), [Fraction(1)] * 3, "")
    with mpmath.workdps(60):
        for j, angle in enumerate(node.angles):
            half = mpmath.mpf(angle.numerator) / angle.denominator / 2
            q = np.array([[mpmath.cos(half)], [mpmath.sin(half)]])
            b = np.array([[mpmath.sin(half)], [-mpmath.cos(half)]])
            for name, exact, columns in (("v", q @ q.T, [j, j + 3]), (node.name, b, [j])):
                block, size = (table[name][np.ix_([j, j + 3], columns)] for table in (signal.blocks, signal.sizes))
                off = abs(block * mpmath.mpf(signal.unit.numerator) / signal.unit.denominator - exact)
                room = signal.loose * signal.unit * size
                assert (off > 0).all()
                assert all(
                    x <= mpmath.mpf(y.numerator) / y.denominator for x, y in zip(off.flat, room.flat, strict=True)
                )
    assert all(loose >= Fraction(1, 1 << 64) for _, a, b, _, _, loose in terms if "v" in (a, b))


@given(st.floats(-1e6, 1e6) | st.floats(allow_nan=False, allow_infinity=False))
@settings(max_examples=60, deadline=None)
def test_cosine_and_sine_are_what_they_claim_to_be(angle: float):
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workprec(2400):
        exact = [mpmath.cos(mpmath.mpf(angle)), mpmath.sin(mpmath.mpf(angle))]
        for value, known in zip(cosine_and_sine(Fraction(angle)), exact, strict=True):
            assert abs(value - known) <= 2.0**-53
        for value, known in zip(cosine_and_sine_in_integers(Fraction(angle)), exact, strict=True):
            assert abs(value - known * 2**64) <= 1


# --------------------------------------------------------------------------------------------------- the normal form


class Mixed(nn.Module):
    """Residual branches, concatenation, a convolution and elementwise functions around sorting."""

    def __init__(self, make: Make) -> None:
        super().__init__()
        self.conv, self.sorts = nn.Conv1d(2, 6, 2).double(), make(6, 1)
        self.body, self.again = nn.Conv1d(6, 6, 1).double(), make(6, 1)
        self.head = nn.Linear(36, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        h = self.sorts(self.conv(x))
        g = h + self.again(torch.nn.functional.leaky_relu(self.body(h), 0.3))
        return self.head(torch.cat([g, torch.relu(h)], dim=1).flatten(1)[:, :36])


def mixed(make: Make) -> nn.Module:
    torch.manual_seed(0)
    return Mixed(make).requires_grad_(False)


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_the_normal_form_is_what_differences_do(make: Make):
    graph = trace(mixed(make), (2, 4))
    form = normal_form(graph)
    x, y = (torch.randn(1, 2, 4, generator=torch.Generator().manual_seed(seed)).double() for seed in (0, 1))

    def moved(name: str) -> Tensor:
        upto = Graph((*itertools.takewhile(lambda node: node.name != name, graph), graph[name]))
        return (upto.replay(y) - upto.replay(x)).ravel()

    z = {"": (y - x).ravel()}
    for layer in form.layers:
        node = graph[layer.name]
        z[layer.name] = moved(layer.name)
        if isinstance(node, Opaque):
            found = groups(node)
            w, m = (C @ z[layer.name][found.index][:, :, None] for C in (found.C, found.q))
            z |= {layer.name: w.ravel(), layer.passed: m.ravel()}
            assert layer.kept is not None
            torch.testing.assert_close(m.ravel(), sum(block @ z[a] for a, block in layer.kept.blocks.items()))
        v = sum(block @ z[a] for a, block in layer.v.blocks.items())
        u = z[layer.name]
        terms = layer.gather((u - layer.alpha * v) * (u - layer.beta * v))
        assert bool((terms <= 1e-12).all())
        assert len(terms) == layer.count
    torch.testing.assert_close(moved(graph.output.name), sum(b @ z[a] for a, b in form.output.blocks.items()))


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_reducing_puts_in_what_is_kept_and_changes_no_value(make: Make):
    for form in (
        normal_form(trace(mixed(make), (2, 4))),
        normal_form(trace(chain([30, 12, 6, 9], 0, make_only(make)), (30,))),
    ):
        small = reduced(form)
        assert all(layer.kept is None for layer in small.layers)
        given_ = positive(form, 0, 0.02)
        assert tighten(form, given_) < math.inf
        assert tighten(small, given_) == pytest.approx(tighten(form, given_), rel=1e-10)
    assert small.inputs == 12


def make_only(make: Make) -> Make:
    """The module where it fits, and a rectifier elsewhere."""
    return lambda size, dim: make(size, dim) if size % 6 == 0 else nn.ReLU()


# ------------------------------------------------------------------------------------------------- what bounds hold


def certified(graph: Graph) -> Certificate:
    """With the descent, which knows groups that share a multiplier."""
    found = LipSDP(FirstOrder(iterations=30))(graph)
    assert check(found, graph).bound == check_float64(found, graph).bound == found.bound
    return found


@pytest.mark.one_in(2)
@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_bounds_lie_between_a_witness_and_the_product(make: Make):
    for model, shape in ((chain([3, 6, 12, 2], 0, make), (3,)), (mixed(make), (2, 4))):
        graph = trace(model, shape)
        found = certified(graph)
        assert witness(model, shape, L2, budget=QUICK).ratio <= found.bound < Product()(graph).bound
        assert isinstance(found.evidence, Multipliers)
        assert [(block.source, block.target) for block in found.evidence.blocks] == [("input", graph.output.name)]


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
@pytest.mark.parametrize("shape", [(6,), (12, 3)])
def test_alone_they_are_proven_to_be_1_lipschitz(make: Make, shape: tuple[int, ...]):
    graph = trace(make(shape[0], 1), shape)
    form = normal_form(graph)
    (layer,) = form.layers
    # |du|^2 = (q'du)^2 + |rest|^2, so the multiplier of the rest is 1, or 1 / n where it counts all pairs.
    node = graph.output
    assert isinstance(node, Opaque)
    weight = 0.5 / (node.parameters["group"] if node.function == "sort" else 1)
    value, _ = prove(form, {layer.name: torch.full((layer.count,), weight * (1 + 1e-6), dtype=torch.float64)})
    assert 1.0 <= value <= 1.0 + 1e-6
    assert certified(graph).bound == 1.0


@pytest.mark.one_in(2)
@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_orthogonal_networks_are_proven_to_be_1_lipschitz(make: Make):
    model = chain([12, 12, 12, 12], 0, make)
    for layer in model[::2]:
        layer.weight.data = torch.linalg.qr(layer.weight.data).Q
    graph = trace(model, (12,))
    assert 1.0 - 1e-12 <= certified(graph).bound <= 1.0 + 1e-6
    solution = FirstOrder()(normal_form(graph))
    assert 1.0 - 1e-9 <= prove(normal_form(graph), solution.multipliers)[0] <= 1.01


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_factors_known_up_to_rounding_may_stand_before_them(make: Make):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(3, 6), nn.BatchNorm1d(6), make(6, 1), nn.BatchNorm1d(6), make(6, 1), nn.Linear(6, 2)
    )
    for norm in (model[1], model[3]):
        norm.running_var.uniform_(0.5, 2.0)
    graph = trace(model.eval().requires_grad_(False).double(), (3,))
    assert any(node.kind == "activation" for node in read_network(*graph.document()).values())
    assert certified(graph).bound < Product()(graph).bound


def test_the_name_of_what_is_kept_must_be_free():
    model = nn.Sequential()
    model.add_module("sort", MaxMin())
    model.add_module("sort (kept)", nn.ReLU())
    with pytest.raises(InvalidInput, match="Rename"):
        normal_form(trace(model, (4,)))


class Halves(nn.Module):
    """MaxMin as its definition by a modulus: ``(a + b +- |a - b|) / 2``."""

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        mean, difference = 0.5 * (a + b), 0.5 * (a - b).abs()
        return torch.cat([mean + difference, mean - difference], dim=1)


@pytest.mark.parametrize("seed", range(2))
def test_pairs_are_a_modulus_of_their_difference(seed: int):
    sizes = [4, 6, 8, 3]
    spelled = normal_form(trace(chain(sizes, seed, lambda size, dim: Halves()), (4,)))
    here = InteriorPoint()(normal_form(trace(chain(sizes, seed, MODULES["maxmin"]), (4,)))).rho
    order = [chain(sizes, seed, MODULES["groupsort 2"]), chain(sizes, seed, lambda size, dim: Interleaved())]
    assert here == pytest.approx(InteriorPoint()(spelled).rho, rel=1e-5)
    assert here == pytest.approx(InteriorPoint()(normal_form(trace(order[1], (4,)))).rho, rel=1e-5)
    assert here != pytest.approx(InteriorPoint()(normal_form(trace(order[0], (4,)))).rho, rel=1e-3)


class Interleaved(nn.Module):
    """MaxMin as a sort of neighbours between two permutations."""

    def __init__(self) -> None:
        super().__init__()
        self.sort = GroupSort(2)

    def forward(self, x: Tensor) -> Tensor:
        half = x.shape[1] // 2
        pairs = x.unflatten(1, (2, half)).transpose(1, 2).flatten(1)
        return self.sort(pairs).unflatten(1, (half, 2)).transpose(1, 2).flatten(1)


def test_a_right_angle_reflects_as_maxmin_and_an_angle_of_zero_takes_a_modulus():
    sizes = [4, 6, 8, 3]
    start = chain(sizes, 1, lambda size, dim: Householder(size).double())
    here = InteriorPoint()(normal_form(trace(start, (4,)))).rho
    there = InteriorPoint()(normal_form(trace(chain(sizes, 1, MODULES["maxmin"]), (4,)))).rho
    assert here == pytest.approx(there, rel=1e-5)

    class Second(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            a, b = x.chunk(2, dim=1)
            return torch.cat([a, b.abs()], dim=1)

    flat = chain(sizes, 1, lambda size, dim: Householder(size).double())
    for module in flat[1::2]:
        module.theta.data.zero_()
    here = InteriorPoint()(normal_form(trace(flat, (4,)))).rho
    there = InteriorPoint()(normal_form(trace(chain(sizes, 1, lambda size, dim: Second()), (4,)))).rho
    assert here == pytest.approx(there, rel=1e-5)


def published_class(model: nn.Sequential, n: int, free: bool) -> float:
    """The bound of Pauli et al. (2024), theorem 3, for consecutive groups of n, by a conic solver.

    Either ``T = lambda I + gamma 11'`` alone, or ``T = lambda I`` with ``S = nu 11'`` and ``P = mu 11'``, which contain
    the former: only ``nu - gamma / 2`` and ``mu + gamma / 2`` matter.
    """
    cp = pytest.importorskip("cvxpy")
    weights = [layer.weight.numpy() for layer in model if isinstance(layer, nn.Linear)]
    widths = [weights[0].shape[1], *(len(weight) for weight in weights[:-1])]
    ends = np.cumsum([0, *widths])
    place = [np.eye(ends[-1])[ends[k] : ends[k + 1]] for k in range(len(widths))]
    rho = cp.Variable()
    H = rho * (place[0].T @ place[0]) - (weights[-1] @ place[-1]).T @ (weights[-1] @ place[-1])
    for weight, before, U, width in zip(weights, place, place[1:], widths[1:], strict=False):
        V = weight @ before
        ones = np.kron(np.eye(width // n), np.ones((n, n)))
        lam, gamma, nu, mu = (cp.Variable(width // n, nonneg=first) for first in (True, False, False, False))
        each = np.kron(np.eye(width // n), np.ones((n, 1)))
        scaled = lambda x, each=each, ones=ones: cp.multiply(ones, (each @ x)[:, None] @ np.ones((1, len(ones))))  # noqa: E731
        T, S, P = cp.diag(each @ lam) + (not free) * scaled(gamma), free * scaled(nu), free * scaled(mu)
        H = H - (V.T @ (T - 2 * S) @ V + V.T @ (P + S) @ U + U.T @ (P + S) @ V - U.T @ (T + 2 * P) @ U)
    problem = cp.Problem(cp.Minimize(rho), [0.5 * (H + H.T) >> 0])
    problem.solve(solver=cp.CLARABEL)
    return float(rho.value) ** 0.5


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
@pytest.mark.parametrize(("n", "name"), [(2, "groupsort 2"), (3, "groupsort 3"), (6, "groupsort 6")])
def test_the_best_bound_is_that_of_the_published_class_of_multipliers(n: int, name: str):
    model = chain([4, 6, 12, 3], 0, MODULES[name])
    form = normal_form(trace(model, (4,)))
    ours = FirstOrder(iterations=1000, tolerance=1e-9)(form).rho ** 0.5
    plain, free = published_class(model, n, False), published_class(model, n, True)
    assert ours == pytest.approx(free, rel=1e-4)
    assert free <= plain * (1 + 1e-6)


@pytest.mark.parametrize("name", ["maxmin", "groupsort 3", "householder"])
def test_deep_networks_are_proven_as_tightly_as_shallow_ones(name: str):
    form = normal_form(trace(chain([6, *[24] * 12, 3], 0, MODULES[name], 1.5), (6,)))
    solution = Recursion()(form)
    value, _ = prove(form, solution.multipliers)
    assert value <= solution.rho**0.5 * (1 + 1e-6)
    for layer in form.layers[2:]:
        assert set(layer.v.blocks) <= {other for before in form.layers for other in (before.name, before.passed)}
        assert len(layer.v.blocks) == 2


@pytest.mark.skipif(not THIRD_PARTY, reason=f"no third-party networks in {FOLDER.name}")
@pytest.mark.parametrize("name", SORTED)
def test_third_party_networks_are_one_part_and_above_their_exact_constants(name: str):
    net = THIRD_PARTY[name]
    model = net.build()
    graph = trace(model, net.shape)
    assert list(parts(graph)) == [("input", graph.output.name)]
    found = LipSDP(FirstOrder(iterations=60))(graph)
    assert found.bound <= Product()(graph).bound
    assert net.exact is None or net.exact <= found.bound
    assert witness(model, net.shape, L2, budget=QUICK).ratio <= found.bound


# -------------------------------------------------------------------------------------------- proofs that must fail


def quadratic_form(
    first: Tensor,
    last: Tensor,
    members: list[list[int]],
    lines: list[tuple[Fraction, Fraction]],
    lam: list[float],
    K: float,
) -> np.ndarray:
    """The constraint's matrix of ``W2 sort(W1 x)`` or ``W2 reflect(W1 x)`` in fractions, in coordinates of its own.

    The variables are dx and, of every group, the differences from its last entry (for a line, the other coordinate).
    """
    F = np.vectorize(Fraction, otypes=[object])
    V, W = F(first.numpy()), F(last.numpy())
    n = V.shape[1]
    size = n + sum(len(group) - 1 for group in members)
    du, H = np.full((len(V), size), Fraction(0), dtype=object), np.full((size, size), Fraction(0), dtype=object)
    start = n
    for g, (group, weight) in enumerate(zip(members, map(Fraction, lam), strict=True)):
        dv = np.full((len(group), size), Fraction(0), dtype=object)
        dv[:, :n] = V[group]
        if lines:
            c, s = lines[g]
            turn = np.full(size, Fraction(0), dtype=object)
            turn[start] = Fraction(1)
            kept, before = c * dv[0] + s * dv[1], s * dv[0] - c * dv[1]
            du[group[0]], du[group[1]] = c * kept + s * turn, s * kept - c * turn
            terms = [(turn, before)]
        else:
            E = np.full((len(group), size), Fraction(0), dtype=object)
            E[range(len(group) - 1), range(start, start + len(group) - 1)] = Fraction(1)
            own = E + (dv.sum(0) - E.sum(0)) / len(group)
            for i, position in enumerate(group):
                du[position] = own[i]
            terms = [(own[i] - own[j], dv[i] - dv[j]) for i, j in itertools.combinations(range(len(group)), 2)]
        for after, before in terms:
            H = H + 2 * weight * (np.outer(after, after) - np.outer(before, before))
        start += len(group) - 1
    dy = W.dot(du)
    H = H - dy.T.dot(dy)
    H[range(n), range(n)] += Fraction(K) ** 2
    return H


def lines_of(model: nn.Module) -> list[tuple[Fraction, Fraction]]:
    """Cosines and sines of half the angles, to 300 bits; exact enough to decide every case drawn here."""
    if not isinstance(model, Householder):
        return []
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workprec(320):
        halves = [mpmath.mpf(angle) / 2 for angle in model.theta.tolist()]
        return [
            tuple(Fraction(int(mpmath.floor(f(h) * 2**300)), 2**300) for f in (mpmath.cos, mpmath.sin)) for h in halves
        ]  # type: ignore[misc]


@pytest.mark.parametrize("name", MODULES)
@given(
    n=st.integers(1, 3),
    count=st.integers(1, 2),
    seed=st.integers(0, 2**16),
    power=st.integers(-14, -1),
    sign=st.sampled_from([-1.0, 1.0]),
)
@settings(max_examples=15, deadline=None)
def test_neither_proof_accepts_what_exact_elimination_refuses(
    name: str, n: int, count: int, seed: int, power: int, sign: float
):
    size = {"maxmin": 2, "groupsort 2": 2, "groupsort 3": 3, "groupsort 6": 6, "full sort": 4, "householder": 2}[
        name
    ] * count
    model = chain([n, size, 2], seed, MODULES[name])
    graph = trace(model, (n,))
    form = normal_form(graph)
    multipliers = positive(form, seed, 0.02)
    assume(tighten(form, multipliers) < math.inf)
    bound = tighten(form, multipliers) ** 0.5 * (1.0 + sign * 10.0**power)
    (layer,) = form.layers
    lam = multipliers[layer.name].tolist()
    node = graph[layer.name]
    assert isinstance(node, Opaque)
    members = groups(node).index.tolist()
    truth = semidefinite(quadratic_form(model[0].weight, model[2].weight, members, lines_of(model[1]), lam, bound))
    claim = claimed(graph, bound, {layer.name: tuple(lam)})
    require_both_proofs(truth, claim, graph, holds(form, multipliers, bound), sign > 0 and power >= -6)


def claimed(graph: Graph, bound: float, numbers: dict[str, tuple[float, ...]]) -> Certificate:
    block = Block("input", graph.output.name, bound, numbers)
    return Certificate(bound, L2, Validity.RIGOROUS, "", graph.digest(), Multipliers((block,)))


def block_of(certificate: Certificate) -> Block:
    assert isinstance(certificate.evidence, Multipliers)
    (block,) = certificate.evidence.blocks
    return block


@functools.cache
def claim(name: str) -> tuple[Certificate, Graph]:
    """A network of tensors (4, 6) whose groups may be told otherwise, and its certificate."""
    generator = torch.Generator().manual_seed(3)
    layers: list[nn.Module] = [nn.Linear(6, 6).double(), nn.Unflatten(1, (6, 1)), nn.Linear(1, 6).double()]
    model = nn.Sequential(*layers, MODULES[name](6, 1), nn.Flatten(), nn.Linear(36, 2).double()).requires_grad_(False)
    for layer in (model[0], model[2], model[5]):
        layer.weight.data = torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64)
    graph = trace(model, (6,))
    return certified(graph), graph


@pytest.mark.parametrize("name", ["maxmin", "groupsort 3", "householder"])
def test_changed_multipliers_are_refused(name: str):
    found, graph = claim(name)
    block = block_of(found)
    ((layer, values),) = block.multipliers.items()
    bad: dict[str, dict[str, Any]] = {
        "a lower bound": {"value": found.bound * (1 - 1e-5)},
        "larger": {"multipliers": {layer: tuple(1.5 * value for value in values)}},
        "smaller": {"multipliers": {layer: tuple(0.5 * value for value in values)}},
        "other groups'": {"multipliers": {layer: values[1:] + values[:1]}},
        "a negative one": {"multipliers": {layer: (-values[0], *values[1:])}},
        "one missing": {"multipliers": {layer: values[1:]}},
        "one per entry": {"multipliers": {layer: values * 2}},
        "none": {"multipliers": {layer: ()}},
        "no layer": {"multipliers": {}},
        "of the kept variable": {"multipliers": {f"{layer} (kept)": values}},
    }
    for changes in bad.values():
        changed = replace(block, **changes)
        evidence = Multipliers((changed,), found.evidence.items)
        for proof in (check, check_float64):
            with pytest.raises(CheckFailed):
                proof(replace(found, bound=changed.value, evidence=evidence), graph)


@functools.cache
def gains(name: str) -> Certificate:
    """The layerwise certificate of the same network, which needs no groups."""
    return Product()(claim(name)[1])


def told(graph: Graph, **changes: Any) -> Graph:
    """The graph with other groups."""
    nodes = [
        replace(node, parameters={**node.parameters, **changes}) if isinstance(node, Opaque) else node for node in graph
    ]
    return Graph(tuple(nodes))


THETA = torch.tensor([0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("maxmin", {"arrangement": "consecutive"}),
        ("maxmin", {"dim": 1}),
        ("maxmin", {"group": 3}),
        ("maxmin", {"group": 6}),
        ("groupsort 2", {"arrangement": "interleaved"}),
        ("groupsort 3", {"group": 2}),
        ("groupsort 3", {"dim": 1}),
        ("groupsort 3", {"arrangement": "interleaved"}),
        ("householder", {"dim": 1}),
        ("householder", {"theta": THETA}),
    ],
)
def test_a_certificate_is_about_the_groups_of_its_network(name: str, changes: dict[str, Any]):
    found, graph = claim(name)
    other = told(graph, **changes)
    with pytest.raises(CheckFailed, match="about the network"):
        check(found, other)
    lam = {layer: torch.tensor(values).double() for layer, values in block_of(found).multipliers.items()}
    form = normal_form(other)
    # The multipliers of other groups are no proof, unless they happen to give a bound there that is lower still.
    as_well = all(layer.count == len(lam[layer.name]) for layer in form.layers) and tighten(form, lam) < found.bound**2
    assert as_well is (name == "groupsort 3" and "arrangement" in changes)
    for proof in (check, check_float64):
        proof(found, graph)
        if as_well:
            proof(replace(found, network=other.digest()), other)
        else:
            with pytest.raises(CheckFailed, match="multipliers"):
                proof(replace(found, network=other.digest()), other)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("maxmin", {"group": 1}),
        ("maxmin", {"group": 0}),
        ("maxmin", {"group": -2}),
        ("maxmin", {"group": 4}),
        ("maxmin", {"group": True}),
        ("maxmin", {"group": "2"}),
        ("maxmin", {"dim": -1}),
        ("maxmin", {"dim": 2}),
        ("maxmin", {"arrangement": "random"}),
        ("maxmin", {"arrangement": 3}),
        ("maxmin", {"theta": "0x1.0p+0"}),
        ("maxmin", {"order": "ascending"}),
        ("householder", {"dim": 2}),
        ("householder", {"dim": 1.0}),
        ("householder", {"theta": "0x1.0000000000000p+0"}),
        ("householder", {"theta": {"tensor": "5.weight"}}),
        ("householder", {"group": 2}),
    ],
)
@pytest.mark.parametrize("method", ["multipliers", "gains"])
def test_groups_that_are_none_are_malformed(name: str, changes: dict[str, Any], method: str):
    found, graph = claim(name)
    found = found if method == "multipliers" else gains(name)
    document, arrays = copy.deepcopy(graph.document())
    entry = next(node for node in document["nodes"] if node["kind"] == "opaque")
    assert found.network == digest(document, arrays)
    given = entry["parameters"]
    for parameters in (given | changes, *({k: v for k, v in given.items() if k != key} for key in given)):
        entry["parameters"] = parameters
        with pytest.raises(Malformed):
            verify(replace(found, network=digest(document, arrays)).to_json(), document, arrays)


@pytest.mark.parametrize(
    "theta", [torch.tensor([0.1, 0.2]), torch.tensor([[0.1, 0.2, 0.3]]), torch.full((3,), math.nan)]
)
def test_angles_that_are_none_are_malformed(theta: Tensor):
    found, graph = claim("householder")
    other = told(graph, theta=theta)
    with pytest.raises(CheckFailed, match=r"angles|finite"):
        check(replace(found, network=other.digest()), other)


def test_modules_with_nothing_to_sort_or_no_angle_are_not_recorded():
    assert not [node for node in trace(nn.Sequential(GroupSort(1), nn.ReLU()), (4,)) if isinstance(node, Opaque)]
    module = reflecting(4)
    module.theta.data[1] = math.nan
    with pytest.raises(NotFinite):
        trace(module, (4,))
    with pytest.raises(InvalidInput, match="groups of 3"):
        trace(GroupSort(3), (4,))
