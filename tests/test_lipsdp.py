"""The semidefinite bound: laws, known truths, proofs that must fail, and the normal form itself."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from benchmarks.third_party import FOLDER, networks
from lipcert import L2, LINF, certify, check, check_float64, trace, witness
from lipcert.certificate import Block, Certificate, Multipliers
from lipcert.certifiers import LipSDP, Product
from lipcert.certifiers.lipsdp import bottlenecks, parts
from lipcert.check import _scaled, _semidefinite_sum, _through, _variable, read_network
from lipcert.errors import CheckFailed, InvalidInput, UnsupportedOperation
from lipcert.graph import Activation, Add, Affine, Graph, Input
from lipcert.kernel import blockwise
from lipcert.kernel.blockwise import blockwise_defect
from lipcert.linear import Diagonal
from lipcert.lmi import NormalForm, eliminate, holds, normal_form, prove, reduced, tighten
from lipcert.solvers import Auto, FirstOrder, InteriorPoint, Recursion
from lipcert.witness import Budget
from tests.cases import NETWORKS
from tests.semidefinite import lifted, semidefinite

QUICK = Budget(points=4, power_steps=8, ascent_steps=10)
SOLVERS = {
    "recursion": Recursion(),
    "interior point": InteriorPoint(),
    "interior point, stopped": InteriorPoint(iterations=3),
    "first order": FirstOrder(),
    "first order, stopped": FirstOrder(iterations=2),
    "auto": Auto(),
    "auto, large": Auto(dense=3),
}
THIRD_PARTY = {net.name: net for net in networks()}


def chain(
    sizes: list[int], seed: int, activation: Callable[[], nn.Module] = nn.ReLU, scale: float = 1.0
) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for into, out in itertools.pairwise(sizes):
        layer = nn.Linear(into, out, dtype=torch.float64)
        layer.weight.data = scale * torch.randn(out, into, generator=generator, dtype=torch.float64) / into**0.5
        layer.bias.data.zero_()
        layers += [layer, activation()]
    return nn.Sequential(*layers[:-1])


def form_of(model: nn.Module, *shape: int) -> NormalForm:
    return normal_form(trace(model, shape))


def positive(form: NormalForm, seed: int, spread: float = 1.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    start = Recursion()(form).multipliers
    return {n: v * torch.exp(spread * torch.randn(v.shape, generator=generator).double()) for n, v in start.items()}


def jacobian_norm(model: nn.Module, inputs: int, seed: int) -> float:
    """The largest norm of the Jacobian over random points: what no bound may go below."""
    points = torch.randn(64, inputs, generator=torch.Generator().manual_seed(seed)).double()
    jacobians = torch.stack([torch.autograd.functional.jacobian(model, point) for point in points])
    return float(torch.linalg.matrix_norm(jacobians, ord=2).max())


# ------------------------------------------------------------------------------------------------ laws


@pytest.mark.parametrize("case", NETWORKS.values(), ids=NETWORKS)
def test_it_brackets_the_constant_and_is_never_above_the_product(case):
    model = case.model()
    graph = trace(model, case.input_shape)
    found = LipSDP(Auto(gap=1e-4))(graph)
    assert found.bound <= Product()(graph).bound
    assert witness(model, case.input_shape, L2, budget=QUICK).ratio <= found.bound
    assert case.exact.get(L2) is None or case.exact[L2] <= found.bound
    assert check(found, graph).bound == check_float64(found, graph).bound == found.bound
    assert Certificate.from_json(found.to_json()).to_json() == found.to_json()


@given(st.lists(st.integers(1, 6), min_size=2, max_size=5), st.integers(0, 2**16), st.floats(0.0, 3.0))
@settings(max_examples=25, deadline=None)
def test_any_positive_multipliers_give_a_valid_bound(sizes: list[int], seed: int, spread: float):
    model = chain([3, *sizes, 2], seed)
    form = form_of(model, 3)
    value, proving = prove(form, positive(form, seed, spread))
    assert value >= jacobian_norm(model, 3, seed)
    if value < float("inf"):
        graph = trace(model, (3,))
        block = Block("input", graph.output.name, value, {name: tuple(lam.tolist()) for name, lam in proving.items()})
        check(Certificate(value, L2, LipSDP()(graph).validity, "", graph.digest(), Multipliers((block,))), graph)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.Sigmoid, nn.SiLU, nn.GELU, nn.LeakyReLU, nn.ELU, nn.Mish])
@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_every_solver_at_every_slope_gives_a_bound_between_jacobians_and_the_product(activation, solver):
    model = chain([4, 8, 7, 3], 1, activation)
    graph = trace(model, (4,))
    found = LipSDP(solver)(graph)
    assert jacobian_norm(model, 4, 0) <= found.bound <= Product()(graph).bound
    check(found, graph)


@pytest.mark.parametrize("iterations", [1, 2, 4, 7, 10])
def test_a_solver_stopped_at_any_iteration_leaves_a_valid_bound_that_the_others_improve(iterations: int):
    model = chain([5, 9, 8, 4], 3)
    graph = trace(model, (5,))
    found = LipSDP(InteriorPoint(iterations=iterations))(graph)
    best = LipSDP()(graph).bound
    assert best * (1 - 1e-6) <= found.bound <= LipSDP(Recursion())(graph).bound
    check(found, graph)


def test_no_time_at_all_still_gives_a_bound():
    model = chain([5, 9, 4], 3)
    layerwise = certify(model, (5,), by=Product()).bound
    assert certify(model, (5,), by=LipSDP(InteriorPoint(seconds=0.0))).bound <= layerwise


@given(st.integers(0, 2**16))
@settings(max_examples=15, deadline=None)
def test_permuting_rescaling_turning_and_padding_layers_leave_the_bound(seed: int):
    model = chain([4, 6, 5, 3], seed)
    before = certify(model, (4,), by=LipSDP()).bound
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(6, generator=generator)
    factors = torch.exp(torch.randn(6, generator=generator)).double()
    turn = torch.linalg.qr(torch.randn(4, 4, generator=generator).double()).Q
    first, second = model[0], model[2]
    first.weight.data = (factors[:, None] * first.weight @ turn)[order]
    second.weight.data = (second.weight / factors)[:, order]
    padded = nn.Sequential(nn.Identity(), *model, nn.Identity())
    assert certify(padded, (4,), by=LipSDP()).bound == pytest.approx(before, rel=1e-5)


def test_transposing_the_layers_changes_it_and_reversing_their_order_too_does_not():
    model = chain([6, 6, 6, 6], 2)
    turned = nn.Sequential(
        *[nn.Linear(6, 6, dtype=torch.float64) if isinstance(layer, nn.Linear) else nn.ReLU() for layer in model]
    )
    for here, there in zip(model[::2], turned[::2], strict=True):
        there.weight.data = here.weight.data.T.clone()
    adjoint = nn.Sequential(*reversed(turned))
    here, there, back = (certify(net, (6,), by=LipSDP()).bound for net in (model, turned, adjoint))
    assert abs(here / there - 1) > 1e-3
    assert back == pytest.approx(here, rel=1e-5)


# ------------------------------------------------------------------------------------------------ known truths


@pytest.mark.parametrize(("depth", "width"), [(1, 3), (2, 20), (5, 8), (12, 10), (20, 12)])
def test_positive_weights_give_the_norm_of_the_product_of_the_matrices(depth: int, width: int):
    model = chain([4, *[width] * depth, 1], depth)
    for layer in model[::2]:
        layer.weight.data.abs_()
        layer.weight.data /= torch.linalg.matrix_norm(layer.weight.data, ord=2)
    exact = torch.linalg.multi_dot([layer.weight.data for layer in reversed(model[::2])]).norm().item()
    found = certify(model, (4,), by=LipSDP(InteriorPoint(gap=1e-9))).bound
    assert exact <= found <= exact * (1 + 1e-8)


@pytest.mark.parametrize(("depth", "width"), [(2, 20), (12, 10), (40, 12)])
def test_the_descent_finds_the_product_of_positive_matrices_too(depth: int, width: int):
    model = chain([4, *[width] * depth, 1], depth)
    for layer in model[::2]:
        layer.weight.data.abs_()
        layer.weight.data /= torch.linalg.matrix_norm(layer.weight.data, ord=2)
    exact = torch.linalg.multi_dot([layer.weight.data for layer in reversed(model[::2])]).norm().item()
    found = certify(model, (4,), by=LipSDP(FirstOrder(tolerance=1e-9))).bound
    assert exact <= found <= exact * (1 + 3e-8)


def difference() -> nn.Sequential:
    """relu(x) - relu(x - 1): slope 1, where coupled multipliers "prove" 0."""
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
    model[0].weight.data, model[0].bias.data = torch.tensor([[1.0], [1.0]]), torch.tensor([0.0, -1.0])
    model[2].weight.data = torch.tensor([[1.0, -1.0]])
    return model


def test_the_counterexample_to_coupled_multipliers_has_slope_one():
    found = certify(difference(), (1,), by=LipSDP())
    assert 1.0 <= found.bound <= 1.0 + 1e-5
    model = difference()
    model[2].bias.data.zero_()
    low, high = model(torch.tensor([[0.0], [1.0]])).detach()
    assert float(high - low) == 1.0


def test_an_absolute_value_is_seen_through():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    model[0].weight.data = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    model[2].weight.data = torch.tensor([[1.0, 1.0]])
    assert 1.0 <= certify(model, (2,), by=LipSDP()).bound <= 1.0 + 1e-5


class Skip(nn.Module):
    """``x + relu(W x)`` with a dense skip of the input at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 3), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([x + torch.relu(self.body(x)), x], dim=-1))


class Scaled(nn.Module):
    """``x - relu(x)``: slopes 0 and 1, where summing branches gives 2."""

    def forward(self, x: Tensor) -> Tensor:
        return x - torch.relu(x)


def test_a_residual_branch_is_one_constraint_and_not_a_sum():
    graph = trace(Scaled(), (3,))
    assert Product()(graph).bound == 2.0
    assert 1.0 <= LipSDP()(graph).bound <= 1.0 + 1e-5


def test_a_network_is_cut_where_a_function_has_no_quadratic_constraint():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(2, 2, 3),
        nn.MaxPool2d(2),
        nn.Flatten(),
        chain([18, 9, 2], 0),
    ).double()
    graph = trace(model, (1, 8, 8))
    assert len(list(parts(graph))) == 2
    found = LipSDP()(graph)
    assert isinstance(found.evidence, Multipliers)
    assert len(found.evidence.blocks) == 2
    assert found.bound < Product()(graph).bound
    check(found, graph)


def test_bottlenecks_are_the_nodes_that_everything_after_passes_through():
    graph = trace(Skip(), (3,))
    names = bottlenecks(graph)
    assert names[0] == graph.input.name
    assert names[-1] == graph.output.name
    assert "body" not in names


# ------------------------------------------------------------------------------------------ third-party networks


@pytest.mark.skipif(not THIRD_PARTY, reason=f"no third-party networks in {FOLDER.name}")
@pytest.mark.parametrize(
    ("name", "lower", "upper"),
    # Below: a Jacobian (first row), the best of the patterns of active neurons; above: what was published.
    [
        ("lipsdp_random_weights", 36.4815, 36.4825),
        ("abcrown_mnist_2_20", 1.8130, 1.8175),
        ("lipsdp_mnist_weights", 24.2992, 24.3699),
    ],
)
def test_published_optima_are_reproduced(name: str, lower: float, upper: float):
    net = THIRD_PARTY[name]
    assert lower <= certify(net.build(), net.shape, by=LipSDP()).bound <= upper


# ------------------------------------------------------------------------------------------ proofs that must fail


@pytest.fixture(scope="module")
def claim() -> tuple[Certificate, Graph]:
    graph = trace(Skip().double().requires_grad_(False), (3,))
    return LipSDP()(graph), graph


def tampered(certificate: Certificate, **changes: object) -> Certificate:
    assert isinstance(certificate.evidence, Multipliers)
    (block,) = certificate.evidence.blocks
    block = replace(block, **changes)
    return replace(certificate, bound=block.value, evidence=replace(certificate.evidence, blocks=(block,)))


def multipliers(certificate: Certificate) -> dict[str, tuple[float, ...]]:
    assert isinstance(certificate.evidence, Multipliers)
    return dict(certificate.evidence.blocks[0].multipliers)


def test_a_tampered_part_is_refused(claim: tuple[Certificate, Graph]):
    found, graph = claim
    numbers = multipliers(found)
    ((name, values),) = numbers.items()
    bad = {
        "a lower bound": {"value": found.bound * (1 - 1e-5)},
        "larger multipliers": {"multipliers": {name: tuple(2.0 * value for value in values)}},
        "smaller multipliers": {"multipliers": {name: tuple(0.5 * value for value in values)}},
        "a negative multiplier": {"multipliers": {name: (-values[0], *values[1:])}},
        "a missing multiplier": {"multipliers": {name: values[1:]}},
        "no multipliers": {"multipliers": {}},
        "others' multipliers": {"multipliers": {**numbers, "body": values}},
        "another source": {"source": name},
        "no such node": {"target": "nowhere"},
    }
    for changes in bad.values():
        for proof in (check, check_float64):
            with pytest.raises((CheckFailed, InvalidInput)):
                proof(tampered(found, **changes), graph)


def test_a_part_must_not_be_passed_by(claim: tuple[Certificate, Graph]):
    found, graph = claim
    inside = next(node.name for node in graph if node.name.startswith("body"))
    with pytest.raises(CheckFailed, match="other than through"):
        check(tampered(found, source=inside, multipliers={}), graph)
    with pytest.raises(InvalidInput, match="other than through"):
        normal_form(graph, inside, graph.output.name)


def require_both_proofs(truth: bool, claim: Certificate, graph: Graph, rounded: bool, roomy: bool) -> None:
    """Neither proof accepts what exact elimination refuses, and both accept what has room."""
    try:
        exact = bool(check(claim, graph))
    except CheckFailed:
        exact = False
    assert truth or not exact
    assert truth or not rounded
    if roomy:
        assert exact
        assert rounded


def quadratic_form(
    W1: np.ndarray, W2: np.ndarray, slope: tuple[float, float], lam: list[float], bound: float
) -> np.ndarray:
    """The constraint's matrix of x -> W2 phi(W1 x), straight from the paper, in fractions."""
    n, m = W1.shape[1], W1.shape[0]
    F = np.vectorize(Fraction, otypes=[object])
    A, B, L = F(W1), F(W2), [Fraction(value) for value in lam]
    low, high = map(Fraction, slope)
    H = np.full((n + m, n + m), Fraction(0), dtype=object)
    for i in range(n):
        H[i, i] = Fraction(bound) ** 2
    for j in range(m):
        H[n + j, n + j] = 2 * L[j]
        H[n + j, :n] = H[:n, n + j] = -L[j] * (low + high) * A[j]
        H[:n, :n] = H[:n, :n] + 2 * L[j] * low * high * np.outer(A[j], A[j])
    H[n:, n:] = H[n:, n:] - B.T.dot(B)
    return H


@given(
    st.integers(1, 3),
    st.integers(1, 4),
    st.sampled_from([nn.ReLU(), nn.LeakyReLU(0.5), nn.SiLU(), nn.Sigmoid(), nn.Hardswish()]),
    st.integers(0, 2**16),
    st.integers(-14, -1),
    st.sampled_from([-1.0, 1.0]),
)
@settings(max_examples=100, deadline=None)
def test_neither_proof_accepts_what_exact_elimination_refuses(
    n: int, m: int, activation: nn.Module, seed: int, power: int, sign: float
):
    model = chain([n, m, 2], seed, lambda: activation)
    graph = trace(model, (n,))
    form = normal_form(graph)
    multipliers_ = positive(form, seed, 0.1)
    assume(tighten(form, multipliers_) < float("inf"))
    bound = tighten(form, multipliers_) ** 0.5 * (1.0 + sign * 10.0**power)
    (layer,) = form.layers
    lam = multipliers_[layer.name].tolist()
    weights = [linear.weight.detach().numpy() for linear in (model[0], model[2])]
    truth = semidefinite(quadratic_form(*weights, (float(layer.alpha[0]), float(layer.beta[0])), lam, bound))
    block = Block("input", graph.output.name, bound, {layer.name: tuple(lam)})
    claim = Certificate(bound, L2, Product()(graph).validity, "", graph.digest(), Multipliers((block,)))
    require_both_proofs(truth, claim, graph, holds(form, multipliers_, bound), sign > 0 and power >= -6)


@pytest.mark.parametrize("loose", [Fraction(0), Fraction(1, 20), Fraction(1, 5)])
def test_what_is_known_loosely_must_hold_for_all_it_may_be(loose: Fraction):
    one = np.array([[1]], dtype=object)
    terms = [(Fraction(1), name, name, one, one, Fraction(0)) for name in "ab"]
    terms += [(Fraction(9, 10), *pair, -one, one, loose) for pair in ("ab", "ba")]
    assert _semidefinite_sum(terms, {"a": 1, "b": 1}) is (loose < Fraction(1, 9))


@pytest.mark.parametrize("entries", [(-1, 0, 1), (0, 1, 1), (0, 0, -1), (1, 2, 1)])
def test_a_form_with_a_negative_or_empty_pivot_is_not_semidefinite(entries: tuple[int, int, int]):
    one = np.array([[1]], dtype=object)
    pairs = zip(entries, ("aa", "ab", "bb"), strict=True)
    terms = [(Fraction(entry), *places, one, one, Fraction(0)) for entry, places in pairs if entry]
    terms += [(Fraction(entries[1]), "b", "a", one, one, Fraction(0))] if entries[1] else []
    assert not _semidefinite_sum(terms, {"a": 1, "b": 1})


def test_a_sum_is_off_by_what_its_looser_part_is_off_by():
    epsilon, minus = 2.0**-50, torch.tensor(-1.0).double()
    slope = tuple(torch.tensor(end, dtype=torch.float64) for end in (1.0 - epsilon, 1.0))
    graph = Graph(
        (
            Input("x", (1,)),
            Activation("f", "x", (1,), "contraction", {"epsilon": epsilon}, slope, torch.relu),
            Affine("a", "x", Diagonal(minus, (1,)), None),
            Add("s", ("f", "a"), (1,)),
        )
    )
    nodes = read_network(*graph.document())
    x = _variable("x", 1)
    parts = [_scaled(nodes["f"], x), _through(nodes["a"], [x], [(1,)])]
    found = _through(nodes["s"], parts, [(1,), (1,)])
    value, room = (found.unit * int(table["x"][0, 0]) for table in (found.blocks, found.sizes))
    assert abs(value + Fraction(epsilon)) <= found.loose * room  # the sum may be as little as -epsilon x


def test_a_wrong_factor_makes_the_defect_large_and_never_false(monkeypatch: pytest.MonkeyPatch):
    blocks = {("a", "a"): np.eye(2), ("a", "b"): 2.0 * np.eye(2), ("b", "b"): np.eye(2)}
    assert blockwise_defect(blocks, ["a", "b"]) == float("inf")
    monkeypatch.setattr(blockwise, "_factor", lambda H, order: [{"a": np.eye(2)}, {"b": np.eye(2)}])
    assert 1.0 <= blockwise_defect(blocks, ["a", "b"]) < float("inf")
    monkeypatch.setattr(blockwise, "_factor", lambda H, order: [{name: 0.0 * H[name, name]} for name in order])
    whole = {("a", "a"): -np.eye(1), ("a", "b"): -2.0 * np.eye(1), ("b", "b"): -np.eye(1)}
    assert 3.0 <= blockwise_defect(whole, ["a", "b"]) < float("inf")  # eigenvalues -3 and 1
    monkeypatch.setattr(blockwise, "_factor", lambda H, order: [{name: np.nan * H[name, name]} for name in order])
    assert blockwise_defect(whole, ["a", "b"]) == float("inf")
    one = np.eye(1)
    chained = {pair: one for pair in [("a", "a"), ("a", "b"), ("b", "b"), ("b", "c"), ("c", "c")]}  # least 1 - sqrt 2
    monkeypatch.setattr(blockwise, "_factor", lambda H, order: [dict.fromkeys(order, one)])  # fills in ("a", "c")
    assert 2**0.5 - 1.0 <= blockwise_defect(chained, ["a", "b", "c"]) < float("inf")


def test_the_rounding_of_a_factor_s_product_is_paid_for(monkeypatch: pytest.MonkeyPatch):
    for entry in (0.1, 0.3, 0.7, 1.1):
        R = np.full((50, 3), entry)
        H = R.T @ R  # nothing is left over in floating point, but it is not R'R
        monkeypatch.setattr(blockwise, "_factor", lambda H, order, R=R: [{"a": R}])
        off = abs(Fraction(float(H[0, 0])) - 50 * Fraction(entry) ** 2)
        assert 0 < 3 * off <= Fraction(blockwise_defect({("a", "a"): np.full((3, 3), H[0, 0])}, ["a"]))


def test_a_wrong_factor_proves_no_claim(monkeypatch: pytest.MonkeyPatch):
    form = form_of(chain([3, 5, 2], 0), 3)
    multipliers_ = Recursion()(form).multipliers
    least = tighten(form, multipliers_) ** 0.5
    assert holds(form, multipliers_, 1.01 * least)
    for size in (1.0, 0.0, 1e-3):
        monkeypatch.setattr(
            blockwise, "_factor", lambda H, order, s=size: [{name: s * np.eye(len(H[name, name]))} for name in order]
        )
        assert not holds(form, multipliers_, 0.9 * least)


@given(st.lists(st.integers(1, 3), min_size=1, max_size=4), st.booleans(), st.integers(0, 2**16), st.integers(-16, 0))
@settings(max_examples=150, deadline=None)
def test_the_blockwise_defect_lifts_every_matrix_above_zero(sizes: list[int], chained: bool, seed: int, power: int):
    generator = np.random.default_rng(seed)
    order = [str(i) for i in range(len(sizes))]
    n = sum(sizes)
    ends = np.cumsum(sizes)
    factor = np.tril(generator.standard_normal((n, n)) * 10.0 ** generator.integers(-3, 1, (n, 1)))
    whole = factor.T @ factor + 10.0**power * generator.standard_normal() * np.eye(n)
    blocks = {}
    for i, j in itertools.combinations_with_replacement(range(len(sizes)), 2):
        if not chained or j - i <= 1:
            rows, columns = (slice(ends[k] - sizes[k], ends[k]) for k in (i, j))
            blocks[order[i], order[j]] = whole[rows, columns]
    for i, j in itertools.combinations(range(len(sizes)), 2):
        if chained and j - i > 1:
            rows, columns = (slice(ends[k] - sizes[k], ends[k]) for k in (i, j))
            whole[rows, columns] = whole[columns, rows] = 0.0
    whole = np.triu(whole) + np.triu(whole, 1).T
    blocks |= {(a, a): whole[ends[i] - sizes[i] : ends[i], ends[i] - sizes[i] : ends[i]] for i, a in enumerate(order)}
    rho = blockwise_defect(blocks, order)
    if rho < float("inf"):
        assert semidefinite(lifted(whole, rho))
    else:
        assert np.linalg.eigvalsh(whole)[0] < 1e-12 * np.abs(whole).max()


REPAIRED = {
    "relu": ([3, 10, 10, 2], nn.ReLU),
    "silu": ([3, 10, 10, 2], nn.SiLU),
    "tanh": ([4, 20, 20, 20, 20, 1], nn.Tanh),
    "deep": ([4, *[8] * 12, 1], lambda: nn.LeakyReLU(0.3)),
    "wide input": ([60, 12, 9, 3], nn.ReLU),
}


@pytest.mark.parametrize(("sizes", "activation"), REPAIRED.values(), ids=REPAIRED)
def test_multipliers_that_are_infeasible_by_a_little_still_prove_what_they_are_worth(sizes, activation):
    form = form_of(chain(sizes, 0, activation), sizes[0])
    found, inner = InteriorPoint(gap=1e-9)(form), Recursion()(form).multipliers
    infeasible = 0
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        off = {
            name: lam * (1.0 + 1e-7 * torch.randn(lam.shape, generator=generator).double() - 1e-7 * (seed % 2))
            for name, lam in found.multipliers.items()
        }
        infeasible += not tighten(form, off) < found.rho * (1 + 2e-6)
        bound, multipliers = prove(form, off, inner)
        assert found.dual**0.5 * (1 - 1e-9) <= bound <= found.dual**0.5 * (1 + 1e-6)
        assert holds(form, multipliers, bound)
    assert infeasible or sizes[0] != 4


def test_multipliers_that_prove_nothing_are_answered_by_infinity():
    form = form_of(chain([3, 5, 2], 0), 3)
    (layer,) = form.layers
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        assert prove(form, {layer.name: torch.full((5,), bad, dtype=torch.float64)})[0] == float("inf")


def test_it_bounds_l2_only_and_says_so():
    with pytest.raises(UnsupportedOperation, match="not linf->linf"):
        LipSDP()(trace(nn.ReLU(), (2,)), LINF)


def test_a_form_cannot_hold_what_is_not_elementwise():
    graph = trace(nn.Sequential(nn.Linear(4, 4), nn.Softmax(-1)), (4,))
    with pytest.raises(UnsupportedOperation, match="not elementwise"):
        normal_form(graph)


# ------------------------------------------------------------------------------------------------ the normal form


def test_the_normal_form_of_a_network_is_what_its_differences_do():
    model = Skip().double()
    form = form_of(model, 3)
    (layer,) = form.layers
    assert torch.equal(layer.v.blocks[""], model.body.weight)
    left, right = model.head.weight[:, :3], model.head.weight[:, 3:]
    torch.testing.assert_close(form.output.blocks[""], (left + right).detach())
    torch.testing.assert_close(form.output.blocks[layer.name], left.detach())


def test_reducing_input_and_output_changes_no_value():
    model = chain([20, 6, 5, 11], 0)
    form = form_of(model, 20)
    small = reduced(form)
    assert small.inputs == 6
    assert len(small.output.blocks["2" if "2" in small.output.blocks else form.layers[-1].name]) == 5
    given_ = positive(form, 0, 0.2)
    assert tighten(small, given_) == pytest.approx(tighten(form, given_), rel=1e-10)


def test_elimination_gives_the_gradient_in_the_multipliers():
    form = form_of(chain([3, 4, 4, 2], 5, nn.SiLU), 3)
    found = Recursion()(form).multipliers
    start = [found[layer.name].clone().requires_grad_() for layer in form.layers]

    def value(*given_: Tensor) -> Tensor:
        named = dict(zip((layer.name for layer in form.layers), given_, strict=True))
        G = eliminate(form, lambda layer, own, across: named[layer.name])
        assert G is not None
        return torch.linalg.eigvalsh(G)[-1]

    assert torch.autograd.gradcheck(value, start)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU, nn.LeakyReLU, lambda: nn.LeakyReLU(0.5), nn.Sigmoid])
def test_the_solver_knows_its_gap(activation: Callable[[], nn.Module]):
    form = form_of(chain([5, 12, 10, 3], 7, activation), 5)
    found = InteriorPoint(gap=1e-6)(form)
    assert found.dual <= found.rho <= found.dual * (1 + 4e-6)
    assert "gap reached" in found.method
    for seed in range(20):
        assert tighten(form, positive(form, seed, 0.3)) >= found.dual * (1 - 1e-9)
