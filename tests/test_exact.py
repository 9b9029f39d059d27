"""Exact constants: against arithmetic, kinks in fractions, all patterns by brute force, and liars in every oracle."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.third_party import FOLDER, networks
from lipcert import L1, L1_LINF, L2, L2_LINF, LINF, Norms, exact_constant, trace
from lipcert.branching import Bracket, relaxation
from lipcert.branching.hinges import MOST, comparators, hinged
from lipcert.branching.regions import Place, proved_empty, refutes, searched
from lipcert.branching.relaxation import feasible, proved, relaxed
from lipcert.branching.slopes import Slopes
from lipcert.certifiers import LipSDP
from lipcert.domain import Box, Domain, L2Ball, WholeSpace
from lipcert.enclosure import stretch
from lipcert.errors import BudgetExceeded, InvalidInput, LipcertError, UnsupportedOperation
from lipcert.nn import FullSort, GroupSort, Householder, MaxMin

CLOSE = 1e-6
NORMS = (L2, L1, LINF, L1_LINF, L2_LINF)


def dense(weight: object, bias: object = None) -> nn.Linear:
    W = torch.as_tensor(weight, dtype=torch.float64)
    layer = nn.Linear(W.shape[1], W.shape[0], bias=bias is not None, dtype=torch.float64)
    layer.weight.data = W
    if bias is not None:
        layer.bias.data = torch.as_tensor(bias, dtype=torch.float64)
    return layer


def drawn(seed: int, sizes: tuple[int, ...], *activations: nn.Module) -> nn.Sequential:
    """A network with weights that are multiples of 1/8, so that ties and dead neurons happen."""
    g = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for (into, out), activation in zip(itertools.pairwise(sizes), [*activations, None], strict=True):
        weight = torch.randint(-8, 9, (out, into), generator=g) / 8
        layers.append(dense(weight, torch.randint(-8, 9, (out,), generator=g) / 8))
        layers += [] if activation is None else [activation]
    return nn.Sequential(*layers)


def require_closed(bracket: Bracket, constant: float) -> None:
    assert bracket.closed
    assert bracket.lower.ratio <= constant * (1 + 1e-12)
    assert constant <= bracket.upper * (1 + 1e-12)
    assert bracket.upper <= constant * (1 + 2 * CLOSE) + 1e-300


# ------------------------------------------------------------------------------------------------ by arithmetic

BY_ARITHMETIC = {
    "relu(x) - relu(x - 1)": (nn.Sequential(dense([[1], [1]], [0, -1]), nn.ReLU(), dense([[1, -1]])), 1.0),
    "relu(x) - relu(-x) = x": (nn.Sequential(dense([[1], [-1]]), nn.ReLU(), dense([[1, -1]])), 1.0),
    "relu(x) + relu(-x) = |x|": (nn.Sequential(dense([[1], [-1]]), nn.ReLU(), dense([[1, 1]])), 1.0),
    "relu(x) + relu(x)": (nn.Sequential(dense([[1], [1]]), nn.ReLU(), dense([[1, 1]])), 2.0),
    "relu(-relu(x) - 1) = 0": (nn.Sequential(dense([[1]]), nn.ReLU(), dense([[-1]], [-1]), nn.ReLU()), 0.0),
    "| |x| - 1 |": (nn.Sequential(dense([[1]]), nn.ReLU(), dense([[1]], [-1]), nn.ReLU()), 1.0),
    "leaky with slope 3": (nn.LeakyReLU(3.0), 3.0),
    "leaky with slope 1": (nn.Sequential(nn.LeakyReLU(1.0), dense([[2]])), 2.0),
    "hardtanh(x) - hardtanh(x - 5)": (
        nn.Sequential(dense([[1], [1]], [0, -5]), nn.Hardtanh(), dense([[1, -1]])),
        1.0,
    ),
    "hardtanh(x) - hardtanh(x - 1)": (
        nn.Sequential(dense([[1], [1]], [0, -1]), nn.Hardtanh(), dense([[1, -2]])),
        2.0,
    ),
    "softshrink": (nn.Sequential(nn.Softshrink(0.25), dense([[2]])), 2.0),
    "a constant": (dense([[0]], [3]), 0.0),
}


@pytest.mark.parametrize("name", BY_ARITHMETIC)
def test_constants_known_by_arithmetic(name: str):
    model, constant = BY_ARITHMETIC[name]
    require_closed(exact_constant(model, (1,), tolerance=CLOSE), constant)


def test_a_kink_without_a_bend_passes_its_input_on():
    # relu(x - relu(x)) = 0, where x comes through a leaky ReLU of slope 1 on both sides.
    bent = nn.PReLU(2, dtype=torch.float64)
    bent.weight.data = torch.tensor([1.0, 0.0], dtype=torch.float64)
    model = nn.Sequential(dense([[1], [1]]), bent, dense([[1, -1]]), nn.ReLU())
    require_closed(exact_constant(model, (1,), tolerance=CLOSE), 0.0)
    model = nn.Sequential(dense([[1], [1]]), bent, dense([[1, -0.5]]), nn.ReLU())
    require_closed(exact_constant(model, (1,), tolerance=CLOSE), 0.5)


def test_a_bias_that_no_input_overcomes():
    # relu(x) + relu(-1 - x): never both, so 1 on the line and 2 for two free signs.
    model = nn.Sequential(dense([[1], [-1]], [0, -1]), nn.ReLU(), dense([[1, -1]]))
    require_closed(exact_constant(model, (1,), tolerance=CLOSE), 1.0)


@pytest.mark.parametrize(("threshold", "constant"), [(1.4, math.sqrt(2)), (1.41, math.sqrt(2)), (1.42, 0.0)])
def test_a_ball_ends_at_its_edge(threshold: float, constant: float):
    # x + y is at most sqrt(2) = 1.414 on the unit disk, and 2 on its box.
    model = nn.Sequential(dense([[1, 1]], [-threshold]), nn.ReLU())
    bracket = exact_constant(model, (2,), domain=L2Ball(0.0, 1.0), tolerance=CLOSE)
    assert constant <= bracket.upper * (1 + 1e-12)
    require_closed(bracket, constant)


# ------------------------------------------------------------------------------------------------ one input

Piece = tuple[Fraction, Fraction]


def slopes_on_the_line(model: nn.Sequential) -> list[list[Fraction]]:
    """The derivatives of a network of one input on all of its pieces, in fractions."""
    pieces: list[tuple[Fraction | None, Fraction | None, list[Piece]]] = [(None, None, [(Fraction(1), Fraction(0))])]
    for layer in model:
        found = []
        for left, right, values in pieces:
            if isinstance(layer, nn.Linear):
                rows = [[Fraction(w) for w in row] for row in layer.weight.tolist()]
                biases = [Fraction(b) for b in layer.bias.tolist()]
                new = [
                    (
                        sum(w * v[0] for w, v in zip(row, values, strict=True)),
                        sum(w * v[1] for w, v in zip(row, values, strict=True)) + b,
                    )
                    for row, b in zip(rows, biases, strict=True)
                ]
                found.append((left, right, new))
                continue
            half = len(values) // 2
            zero = (Fraction(0), Fraction(0))
            pairs = (
                [(v, zero) for v in values]
                if isinstance(layer, nn.ReLU)
                else list(zip(values[:half], values[half:], strict=True))
            )
            kinks = {-(a[1] - b[1]) / (a[0] - b[0]) for a, b in pairs if a[0] != b[0]}
            inside = sorted(k for k in kinks if (left is None or k > left) and (right is None or k < right))
            ends = [left, *inside, right]
            for a, b in itertools.pairwise(ends):
                at = middle(a, b)
                larger = [max(pair, key=lambda v: v[0] * at + v[1]) for pair in pairs]
                smaller = [min(pair, key=lambda v: v[0] * at + v[1]) for pair in pairs]
                found.append((a, b, larger if isinstance(layer, nn.ReLU) else larger + smaller))
        pieces = found
    return [[v[0] for v in values] for _, _, values in pieces]


def middle(left: Fraction | None, right: Fraction | None) -> Fraction:
    if left is None:
        return Fraction(0) if right is None else right - 1
    return left + 1 if right is None else (left + right) / 2


@pytest.mark.parametrize("activation", [nn.ReLU, MaxMin], ids=["relu", "maxmin"])
@pytest.mark.parametrize("seed", range(4))
def test_on_the_line_it_is_the_steepest_piece(activation: type[nn.Module], seed: int):
    model = drawn(seed, (1, 4, 4, 2), activation(), activation())
    pieces = slopes_on_the_line(model)
    for norms, size in ((L2, 2), (L1, 1), (LINF, math.inf)):
        constant = max(float(np.linalg.norm([float(v) for v in piece], size)) for piece in pieces)
        require_closed(exact_constant(model, (1,), norms=norms, tolerance=CLOSE), constant)


# ------------------------------------------------------------------------------------------------ all patterns


def jacobians(model: nn.Sequential, low: float, high: float) -> list[np.ndarray]:
    """The Jacobians of all linear regions of a ReLU network in a box that have inner points, by linear programs."""
    from scipy.optimize import linprog

    n = model[0].weight.shape[1]
    widths = [layer.weight.shape[0] for layer in model if isinstance(layer, nn.Linear)][:-1]
    found = []
    for bits in itertools.product((0.0, 1.0), repeat=sum(widths)):
        A, b, rows, sides, left = np.eye(n), np.zeros(n), [], [], list(bits)
        for layer in model:
            if isinstance(layer, nn.Linear):
                W = layer.weight.detach().numpy()
                A, b = W @ A, W @ b + layer.bias.detach().numpy()
                continue
            on, left = np.array(left[: len(A)]), left[len(A) :]
            moving = np.abs(A).max(1) > 0
            sign = 2 * on - 1
            if np.any(sign[~moving] * b[~moving] < 0):
                break
            rows += list(-(sign[:, None] * A)[moving])
            sides += list((sign * b)[moving])
            A, b = on[:, None] * A, on * b
        else:
            room = np.concatenate([np.array(rows).reshape(-1, n), np.ones((len(rows), 1))], axis=1)
            limits = [(low, high)] * n + [(0, 1)]
            answer = linprog([0] * n + [-1], room, sides, bounds=limits)
            if answer.status == 0 and answer.x[-1] > 1e-9:
                found.append(A)
    return found


def norm_of(J: np.ndarray, norms: Norms) -> float:
    if norms == L2:
        return float(np.linalg.norm(J, 2))
    if norms == L2_LINF:
        return float(np.linalg.norm(J, axis=1).max())
    return float({L1: np.abs(J).sum(0), LINF: np.abs(J).sum(1), L1_LINF: np.abs(J)}[norms].max())


@pytest.mark.parametrize("seed", range(2))
def test_it_is_the_largest_norm_over_all_regions(seed: int):
    model = drawn(seed, (2, 3, 3, 2), nn.ReLU(), nn.ReLU())
    wide, narrow = jacobians(model, -1e3, 1e3), jacobians(model, -0.5, 0.25)
    for norms in NORMS:
        require_closed(exact_constant(model, (2,), norms=norms, tolerance=CLOSE), max(norm_of(J, norms) for J in wide))
        bracket = exact_constant(model, (2,), norms=norms, domain=Box(-0.5, 0.25), tolerance=CLOSE)
        require_closed(bracket, max(norm_of(J, norms) for J in narrow))


# ------------------------------------------------------------------------------------------------ laws


class Sum(nn.Module):
    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x + self.branch(x), x], dim=1)


KINDS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "relu": (drawn(0, (3, 5, 5, 2), nn.ReLU(), nn.ReLU()), (3,)),
    "leaky": (drawn(1, (3, 4, 4, 1), nn.LeakyReLU(0.1), nn.LeakyReLU(-0.3)), (3,)),
    "prelu": (drawn(2, (2, 4, 4, 1), nn.PReLU(4, init=0.3, dtype=torch.float64), nn.PReLU(dtype=torch.float64)), (2,)),
    "clamps": (drawn(3, (2, 3, 3, 1), nn.Hardtanh(-0.5, 2.0), nn.ReLU6()), (2,)),
    "maxmin": (drawn(4, (3, 6, 6, 2), MaxMin(), MaxMin()), (3,)),
    "groupsort": (drawn(5, (2, 3, 4, 1), GroupSort(3), GroupSort(2)), (2,)),
    "fullsort": (drawn(6, (2, 3, 3, 1), FullSort(), FullSort()), (2,)),
    "residual": (Sum(drawn(7, (3, 4, 3), nn.ReLU())), (3,)),
    "pooled": (nn.Sequential(nn.Conv1d(1, 2, 2, dtype=torch.float64), nn.MaxPool1d(2, 1), nn.Flatten()), (1, 4)),
}
DOMAINS: dict[str, Domain] = {"everything": WholeSpace(), "box": Box(-0.5, 1.0), "ball": L2Ball(0.25, 0.75)}


def sampled(model: nn.Module, shape: tuple[int, ...], domain: Domain) -> list[np.ndarray]:
    with torch.enable_grad():
        x = domain.sample(300, shape, torch.Generator().manual_seed(1)).requires_grad_()
        outputs = model(x).flatten(1).sum(0)
        rows = [torch.autograd.grad(y, x, retain_graph=True)[0].flatten(1) for y in outputs]
    return list(torch.stack(rows, 1).numpy())


@pytest.mark.parametrize("domain", DOMAINS.values(), ids=DOMAINS)
@pytest.mark.parametrize("kind", KINDS)
def test_pair_below_samples_below_bound(kind: str, domain: Domain):
    model, shape = KINDS[kind]
    bracket = exact_constant(model, shape, domain=domain, tolerance=1e-3, seconds=20.0)
    steepest = max(norm_of(J, L2) for J in sampled(model, shape, domain))
    assert steepest <= bracket.upper * (1 + 1e-12)
    assert domain.contains(bracket.lower.x)
    assert domain.contains(bracket.lower.y)
    quotient = stretch(trace(model, shape), bracket.lower.x, bracket.lower.y, L2)
    assert quotient.ratio == bracket.lower.ratio <= bracket.upper
    assert bracket.closed
    assert bracket.upper <= bracket.lower.ratio * (1 + 1e-3)


@pytest.mark.parametrize("kind", ["relu", "maxmin", "residual"])
def test_it_is_below_the_semidefinite_bound_and_a_smaller_domain_has_a_smaller_constant(kind: str):
    model, shape = KINDS[kind]
    assert exact_constant(model, shape, tolerance=1e-3).upper <= LipSDP()(trace(model, shape)).bound * (1 + 1e-3)
    constants = [exact_constant(model, shape, domain=Box(-r, r), tolerance=1e-3) for r in (0.1, 1.0, 10.0)]
    for smaller, larger in itertools.pairwise([*constants, exact_constant(model, shape, tolerance=1e-3)]):
        assert smaller.lower.ratio <= larger.upper


def test_scaling_the_output_scales_the_constant():
    model, shape = KINDS["relu"]
    half = nn.Sequential(model, dense([[0.5, 0], [0, 0.5]]))
    whole, halved = (exact_constant(m, shape, tolerance=1e-4) for m in (model, half))
    assert halved.upper == pytest.approx(whole.upper / 2, rel=2e-4)


def test_out_of_time_or_nodes_the_bracket_still_holds():
    model = drawn(8, (4, 6, 6, 1), nn.ReLU(), nn.ReLU())
    whole = exact_constant(model, (4,), tolerance=1e-4)
    assert whole.closed
    for stopped in (
        exact_constant(model, (4,), tolerance=1e-9, nodes=1),
        exact_constant(model, (4,), tolerance=1e-9, nodes=5),
        exact_constant(model, (4,), tolerance=1e-9, seconds=0.0),
    ):
        assert not stopped.closed
        assert stopped.lower.ratio <= whole.upper
        assert whole.lower.ratio <= stopped.upper
    assert exact_constant(model, (4,), tolerance=1e-9, nodes=1).upper >= whole.upper * (1 - 1e-4)


def test_the_same_search_twice_is_the_same():
    model, shape = KINDS["maxmin"]
    first, second = (exact_constant(model, shape, tolerance=1e-3, seconds=math.inf) for _ in range(2))
    assert (first.lower.ratio, first.upper, first.nodes) == (second.lower.ratio, second.upper, second.nodes)
    assert torch.equal(first.lower.x, second.lower.x)


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("model", "error", "said"),
    [
        pytest.param(nn.Tanh(), UnsupportedOperation, "not piecewise linear", id="tanh"),
        pytest.param(nn.Hardswish(), UnsupportedOperation, "not piecewise linear", id="hardswish"),
        pytest.param(Householder(2), UnsupportedOperation, "not piecewise linear", id="householder"),
        pytest.param(nn.BatchNorm1d(2).eval(), UnsupportedOperation, "contraction", id="batch norm"),
        pytest.param(nn.Sequential(nn.Linear(2, MOST + 1), nn.ReLU()), BudgetExceeded, "kinks", id="too many"),
    ],
)
def test_what_has_no_exact_constant_here_is_refused(model: nn.Module, error: type[LipcertError], said: str):
    with pytest.raises(error, match=said):
        exact_constant(model, (2,))


def test_arguments_that_make_no_sense_are_refused():
    with pytest.raises(InvalidInput, match="interior"):
        exact_constant(nn.ReLU(), (2,), domain=Box(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0])))
    with pytest.raises(InvalidInput, match="interior"):
        exact_constant(nn.ReLU(), (2,), domain=L2Ball(0.0, 0.0))
    with pytest.raises(InvalidInput, match="tolerance"):
        exact_constant(nn.ReLU(), (2,), tolerance=0.0)
    with pytest.raises(InvalidInput, match="input_shape"):
        exact_constant(nn.ReLU())
    with pytest.raises(InvalidInput, match="leave input_shape out"):
        exact_constant(trace(nn.ReLU(), (2,)), (3,))


# ------------------------------------------------------------------------------------------------ parts, with liars


@pytest.mark.parametrize("count", range(1, 9))
def test_comparators_sort(count: int):
    # What sorts all zeros and ones sorts everything (Knuth, volume 3, theorem Z).
    for bits in itertools.product((0, 1), repeat=count):
        values = list(bits)
        for i, j in comparators(count):
            values[i], values[j] = min(values[i], values[j]), max(values[i], values[j])
        assert values == sorted(bits)


@pytest.mark.parametrize("kind", KINDS)
def test_hinges_are_the_network(kind: str):
    model, shape = KINDS[kind]
    net = hinged(trace(model, shape))
    unit = float(Fraction(2) ** -net.bits)
    for x in torch.randn(20, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64):
        state = np.concatenate([[1.0], x.flatten().numpy(), np.zeros(net.count)])
        for k in range(net.count):
            z = float(net.rows[k].astype(float) @ state) * unit
            state[1 + net.inputs + k] = (net.high if z > 0 else net.low)[k] * z
        expected = model(x[None])[0].flatten().detach().numpy()
        np.testing.assert_allclose(net.output.astype(float) @ state * unit, expected, atol=1e-12)


def test_weights_of_a_liar_prove_nothing_empty():
    rng = np.random.default_rng(0)
    for _ in range(300):
        rows = rng.integers(-3, 4, (5, 3)).astype(object)
        point = rng.integers(-3, 4, 2)
        rows[:, 0] = 1 - rows[:, 1:].dot(point.astype(object))  # every row is 1 at the point
        assert not proved_empty(rows, rng.random(6) * (rng.random(6) < 0.7) + 1e-3)


def test_only_weights_that_cancel_exactly_refute():
    rows = np.array([[1, 0], [0, 3], [-1, -1]], dtype=object)  # 1 > 0, 3 x > 0, -1 - x > 0
    third, one, zero = Fraction(1, 3), Fraction(1), Fraction(0)
    assert refutes(rows, [one, third, one])
    assert not refutes(rows, [one, Fraction(0.333333333333), one])
    assert not refutes(rows, [-one, -third, -one])
    assert not refutes(rows, [zero, zero, zero])
    assert not refutes(np.array([[0, 0], [0, 3]], dtype=object), [one, zero])  # a hinge that reads 0 refutes nothing


def test_a_region_without_inner_points_is_proved_empty_and_one_with_some_is_found():
    def search(rows: list[list[int]]):
        exact = np.array(rows, dtype=object)
        return searched(exact.astype(float), lambda: exact)

    assert search([[0, 1, 0], [0, -1, 0]]).empty  # x > 0 > x
    assert search([[-1, 1, 0], [0, -1, 1], [0, 0, -1]]).empty  # x > 1, y > x, 0 > y
    assert search([[0, 3, 1], [0, -1, -3], [0, -2, 2]]).empty  # a cone that is a point
    inside = search([[-1, 1, 0], [3, -1, 0], [0, -1, 1]])
    assert not inside.empty
    assert 1 < inside.point[0] < min(3, inside.point[1])


@pytest.mark.parametrize("seed", range(4))
def test_no_multipliers_prove_less_than_some_slopes_attain(seed: int):
    rng = np.random.default_rng(seed)
    slopes = Slopes(hinged(trace(drawn(seed, (3, 5, 5, 2), nn.ReLU(), nn.ReLU()), (3,))))
    derivative = slopes.derivative(np.zeros(10, dtype=np.int8))
    patterns = [rng.choice([-1, 1], 10).astype(np.int8) for _ in range(500)]
    attained = max(float(np.linalg.norm(slopes.derivative(p).c.mid[:, :3], 2)) for p in patterns)
    found = relaxed(derivative, None)
    assert attained <= found.bound < math.inf
    assert np.all(feasible(derivative) > 0)
    for _ in range(200):
        w = np.sqrt(found.multipliers) * np.exp(rng.normal(0.0, 10.0 ** rng.uniform(-6, 0), len(found.multipliers)))
        assert not proved(derivative, w, attained * (1 - 1e-9), 1e-11)
    assert proved(derivative, np.sqrt(found.multipliers), found.bound * 1.01, 1e-11)
    assert not proved(derivative, -np.sqrt(found.multipliers), found.bound * 1.01, 1e-11)
    assert not proved(derivative, np.full(len(found.multipliers), np.nan), found.bound * 1.01, 1e-11)


def test_where_the_bound_is_attained_nothing_below_is_proved():
    # Weights that are not negative: all hinges open is the worst, and diagonal multipliers prove it exactly.
    model = drawn(3, (3, 4, 4, 2), nn.ReLU(), nn.ReLU())
    for layer in (model[0], model[2], model[4]):
        layer.weight.data = layer.weight.data.abs() + 0.125
    slopes = Slopes(hinged(trace(model, (3,))))
    attained = float(np.linalg.norm((model[4].weight @ model[2].weight @ model[0].weight).detach().numpy(), 2))
    derivative = slopes.derivative(np.zeros(8, dtype=np.int8))
    found = relaxed(derivative, None, 1e-8)
    w = np.sqrt(found.multipliers)
    assert attained <= found.bound <= attained * (1 + 1e-6)
    assert proved(derivative, w, found.bound, 1e-11)
    assert not any(proved(derivative, w, attained * (1 - less), 1e-11) for less in (1e-9, 1e-6, 1e-4))


def test_error_bounds_of_one_product_hold_in_fractions():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6)).double()
    block = Slopes(hinged(trace(model, (4,))))._blocks[-1]
    u = np.random.default_rng(0).standard_normal((6, 11))
    mid, rad = block.applied(u, np.zeros_like(u))
    for i, j in itertools.product(range(6), range(11)):
        base = Fraction(block.base.mid[i, j]) if j < 5 else Fraction(0)
        exact = base + sum(Fraction(a) * Fraction(b) for a, b in zip(block.weight.mid[i], u[:, j], strict=True))
        assert abs(exact - Fraction(mid[i, j])) <= Fraction(rad[i, j])
    assert np.all(rad < 1e-13)


def test_a_proof_pays_for_a_bad_factor_and_for_errors_of_the_entries(monkeypatch: pytest.MonkeyPatch):
    slopes = Slopes(hinged(trace(drawn(0, (3, 5, 5, 2), nn.ReLU(), nn.ReLU()), (3,))))
    derivative = slopes.derivative(np.zeros(10, dtype=np.int8))
    found = relaxed(derivative, None)
    w, r = np.sqrt(found.multipliers), found.bound * 1.01
    blurred = replace(derivative, c=replace(derivative.c, rad=derivative.c.rad + 1e-6))
    assert proved(derivative, w, r, 1e-11)
    assert not proved(blurred, w, r, 1e-11)
    monkeypatch.setattr(relaxation, "psd_defect", lambda parts: np.array([1e-9]))
    assert not proved(derivative, w, r, 1e-11)


def test_tangents_leave_out_no_point_of_the_ball():
    ball = L2Ball(torch.tensor([0.1, -3.0, 1e3]), 0.7)
    place = Place(ball, (3,))
    rng = np.random.default_rng(0)
    for _ in range(50):
        d = rng.standard_normal(3)
        constant, *row = place._exact_tangent(d)
        edge = torch.tensor([0.1, -3.0, 1e3]) + 10 * torch.from_numpy(d)
        for x in (*ball.sample(5, (3,), torch.Generator().manual_seed(0)), ball.project(edge[None].double())[0]):
            assert constant + sum(a * Fraction(b) for a, b in zip(row, x.tolist(), strict=True)) >= 0


def test_error_bounds_of_the_derivative_hold_in_fractions():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 6), nn.LeakyReLU(0.1), nn.Linear(6, 6), nn.LeakyReLU(0.7), nn.Linear(6, 2)
    ).double()
    slopes = Slopes(hinged(trace(model, (4,))))
    rng = np.random.default_rng(0)
    for _ in range(20):
        signs = rng.choice([-1, 1], 12).astype(np.int8)
        J = [[Fraction(int(i == j)) for j in range(4)] for i in range(4)]
        left = signs.tolist()
        for layer in model:
            if isinstance(layer, nn.Linear):
                rows = [[Fraction(w) for w in row] for row in layer.weight.tolist()]
                J = [[sum(w * v[j] for w, v in zip(row, J, strict=True)) for j in range(4)] for row in rows]
                continue
            now, left = left[: len(J)], left[len(J) :]
            J = [
                [v if s > 0 else Fraction(layer.negative_slope) * v for v in row] for s, row in zip(now, J, strict=True)
            ]
        found = slopes.derivative(signs).c
        assert np.all(found.rad[:, :4] < 1e-13)
        for row, mid, rad in zip(J, found.mid.tolist(), found.rad.tolist(), strict=True):
            assert all(abs(v - Fraction(m)) <= Fraction(r) for v, m, r in zip(row, mid[:4], rad[:4], strict=True))


# ------------------------------------------------------------------------------------------------ published

NETS = {net.name: net for net in networks() if net.name.startswith("exlipbab_")}
EXACT = [name for name, net in NETS.items() if net.exact is not None]


@pytest.mark.skipif(not NETS, reason=f"no third-party networks in {FOLDER.name}")
@pytest.mark.parametrize("name", EXACT or ["none"])
def test_published_exact_constants_are_reproduced(name: str):
    net = NETS[name]
    assert net.exact is not None
    bracket = exact_constant(net.build(), net.shape, tolerance=CLOSE)
    # The record was computed in floating point, to some 1e-12.
    assert bracket.closed
    assert bracket.lower.ratio * (1 - 1e-9) <= net.exact <= bracket.upper * (1 + 1e-9)


@pytest.mark.skipif(not NETS, reason=f"no third-party networks in {FOLDER.name}")
def test_a_published_constant_is_refuted_by_a_pair():
    net = NETS["exlipbab_abalone_net__9x16x16x1__GroupSort_numGroups8"]
    bracket = exact_constant(net.build(), net.shape)
    assert bracket.closed
    assert net.published["final_upper"] < bracket.lower.ratio
