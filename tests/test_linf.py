"""The semidefinite bound to linf and to l1, row by row: laws, known truths, general solvers, proofs that must fail."""

import functools
import json
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from benchmarks.third_party import FOLDER, networks
from lipcert import (
    L1,
    L1_LINF,
    L2,
    L2_LINF,
    LINF,
    Norms,
    certify,
    check,
    check_float64,
    difference,
    margins,
    solvers,
    trace,
)
from lipcert.certificate import Certificate, Multipliers
from lipcert.certifiers import Auto, LipSDP, Product, RowLipSDP
from lipcert.check import Malformed, Reject, verify
from lipcert.errors import CheckFailed, InvalidInput, UnsupportedOperation
from lipcert.graph import Graph, Opaque
from lipcert.lmi import NormalForm, Signal, holds, normal_form
from lipcert.lmi.reduction import without_kept
from lipcert.lmi.rows import column, live, prove_weighted, row, stretches
from lipcert.nn import MaxMin
from lipcert.solvers import InteriorPoint, LowRank, Recursion
from lipcert.solvers.conic import programme
from lipcert.witness import Budget, witness
from tests.cases import NETWORKS, Residual
from tests.semidefinite import semidefinite
from tests.test_certifiers import has_constants
from tests.test_lipsdp import chain

QUICK = Budget(points=4, power_steps=8, ascent_steps=10)
PAIRS = {str(norms): norms for norms in (LINF, L2_LINF, L1_LINF, L1)}
SLOWLY = [
    pytest.param(norms, id=name, marks=[] if norms == LINF else [pytest.mark.slow]) for name, norms in PAIRS.items()
]
Change = Callable[[dict[str, Any]], None]
QUICKLY = {"absolute value", "relu mlp", "residual mlp", "joined copies", "overlapping max pooling", "full sort"}
THIRD_PARTY = {net.name: net for net in networks()}


def gain(J: Tensor, norms: Norms) -> float:
    """The largest norm from p to q of a stack of matrices."""
    rows = {LINF: J.abs().sum(-1), L2_LINF: J.norm(dim=-1), L1_LINF: J.abs().amax(-1), L1: J.abs().sum(-2)}
    return float(rows[norms].max())


def steepest(model: nn.Module, inputs: int, norms: Norms) -> float:
    """The largest of random Jacobians, which no bound may go below."""
    points = 2.0 * torch.randn(16, inputs, generator=torch.Generator().manual_seed(0)).double()
    one = torch.func.jacrev(lambda point: model(point[None])[0])
    return gain(torch.stack([one(point).detach() for point in points]), norms)


def positive(*sizes: int, seed: int = 0) -> nn.Sequential:
    model = chain(list(sizes), seed)
    for layer in model[::2]:
        layer.weight.data.abs_()
    return model


def product(model: nn.Sequential) -> Tensor:
    """The matrix of a chain whose activations are all on."""
    found = model[0].weight.detach()
    for layer in model[2::2]:
        found = layer.weight.detach() @ found
    return found


# ------------------------------------------------------------------------------------------------ laws


@pytest.mark.parametrize("norms", SLOWLY)
@pytest.mark.parametrize(
    "case",
    [pytest.param(c, id=name, marks=[] if name in QUICKLY else [pytest.mark.slow]) for name, c in NETWORKS.items()],
)
def test_it_brackets_the_constant_and_is_never_above_the_product(case, norms: Norms):
    model = case.model()
    graph = trace(model, case.input_shape)
    by = RowLipSDP(largest=60, rows=12, gap=1e-3)
    if not has_constants(graph, norms):
        with pytest.raises(UnsupportedOperation, match="Certify in one of those"):
            by(graph, norms)
        return
    found = by(graph, norms)
    assert found.bound <= Product()(graph, norms).bound
    assert witness(model, case.input_shape, norms, budget=QUICK).ratio <= found.bound
    assert case.exact.get(norms) is None or case.exact[norms] <= found.bound
    assert check(found, graph).bound == check_float64(found, graph).bound == found.bound
    assert Certificate.from_json(found.to_json()).to_json() == found.to_json()


ACTIVATIONS = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "silu": nn.SiLU,
    "leaky": lambda: nn.LeakyReLU(0.3),
    "maxmin": MaxMin,
    "sigmoid": nn.Sigmoid,
}


@pytest.mark.parametrize("norms", SLOWLY)
@pytest.mark.parametrize(
    "activation",
    [
        pytest.param(build, id=name, marks=[] if name in ("relu", "maxmin") else [pytest.mark.slow])
        for name, build in ACTIVATIONS.items()
    ],
)
def test_it_lies_between_jacobians_and_the_product_and_improves_on_it(activation: Callable[[], nn.Module], norms):
    model = chain([3, 8, 6, 2], 1, activation)
    graph = trace(model, (3,))
    found = RowLipSDP(gap=1e-4)(graph, norms)
    assert steepest(model, 3, norms) <= found.bound < 0.9 * Product()(graph, norms).bound
    assert check(found, graph).bound == check_float64(found, graph).bound == found.bound


hidden = st.lists(st.integers(1, 5), min_size=1, max_size=3)


@given(hidden, st.integers(0, 2**16), st.sampled_from(list(PAIRS.values())))
@settings(max_examples=5, deadline=None)
def test_random_networks_are_bracketed(sizes: list[int], seed: int, norms: Norms):
    model = chain([2, *sizes, 2], seed)
    graph = trace(model, (2,))
    found = RowLipSDP(gap=1e-3)(graph, norms)
    assert steepest(model, 2, norms) <= found.bound <= Product()(graph, norms).bound
    check(found, graph)


def test_the_bounds_of_the_pairs_are_ordered_as_the_norms_are():
    graph = trace(chain([3, 6, 4, 2], 3), (3,))
    one, two, most = (RowLipSDP()(graph, norms).bound for norms in (L1_LINF, L2_LINF, LINF))
    assert one <= two * (1 + 1e-4)
    assert two <= most * (1 + 1e-4)
    assert most <= 3**0.5 * two * (1 + 1e-4)
    # |y|_inf <= |y|_2, and a single output is as large in both.
    assert two <= LipSDP()(graph).bound * (1 + 1e-4)


def test_of_numbers_all_pairs_have_the_same_constant():
    graph = trace(chain([1, 9, 7, 1], 3), (1,))
    in_l2 = LipSDP()(graph).bound
    for norms in PAIRS.values():
        assert RowLipSDP()(graph, norms).bound == pytest.approx(in_l2, rel=1e-4)


@given(st.integers(0, 2**16))
@settings(max_examples=2, deadline=None)
def test_rescaled_layers_and_permuted_or_negated_inputs_leave_the_bound(seed: int):
    model = chain([3, 6, 5, 1], seed)
    by = RowLipSDP(gap=1e-6)
    before = certify(model, (3,), norms=LINF, by=by).bound
    generator = torch.Generator().manual_seed(seed)
    factors = torch.exp(3.0 * torch.randn(6, generator=generator)).double()
    signs = torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)
    order = torch.randperm(3, generator=generator)
    model[0].weight.data = (factors[:, None] * model[0].weight * signs)[:, order]
    model[2].weight.data = model[2].weight / factors
    assert certify(model, (3,), norms=LINF, by=by).bound == pytest.approx(before, rel=1e-5)


def test_a_solver_without_time_still_gives_a_bound():
    graph = trace(chain([2, 7, 5, 1], 3), (2,))
    for norms in PAIRS.values():
        hurried = RowLipSDP(seconds=0.0)(graph, norms)
        assert RowLipSDP()(graph, norms).bound <= hurried.bound <= Product()(graph, norms).bound
        check(hurried, graph)


# ------------------------------------------------------------------------------------------------ known truths


@pytest.mark.parametrize("norms", SLOWLY)
@pytest.mark.parametrize("sizes", [(4, 20, 1), (3, 8, 8, 2), (5, 6, 6, 6, 6, 3)], ids=str)
def test_positive_weights_give_the_norm_of_the_product_of_the_matrices(sizes: tuple[int, ...], norms: Norms):
    model = positive(*sizes)
    exact = gain(product(model), norms)
    found = certify(model, (sizes[0],), norms=norms, by=RowLipSDP(gap=1e-8)).bound
    assert exact * (1 - 1e-14) <= found <= exact * (1 + 1e-6)


def test_a_difference_of_two_ramps_is_seen_through():
    # f(x) = relu(s) - relu(s - 1) with s = x_1 - x_2 + 2 x_3 has slope 1 in s; the norms' product counts both ramps.
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1, bias=False)).double()
    model[0].weight.data = torch.tensor([[1.0, -1.0, 2.0]] * 2, dtype=torch.float64)
    model[0].bias.data = torch.tensor([0.0, -1.0], dtype=torch.float64)
    model[2].weight.data = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    for norms, exact in ((LINF, 4.0), (L2_LINF, 6.0**0.5), (L1_LINF, 2.0), (L1, 2.0)):
        found = certify(model, (3,), norms=norms, by=RowLipSDP()).bound
        assert exact * (1 - 1e-14) <= found <= exact * (1 + 1e-4)
        assert certify(model, (3,), norms=norms, by=Product()).bound == pytest.approx(2 * exact)


def test_a_linear_network_has_no_programmes_and_its_own_norm():
    layer = nn.Linear(3, 2)
    layer.weight.data = torch.tensor([[3.0, 0.0, -4.0], [0.0, -2.0, 0.0]])
    for norms, exact in ((LINF, 7.0), (L2_LINF, 5.0), (L1_LINF, 4.0), (L1, 4.0)):
        found = certify(layer, (3,), norms=norms, by=RowLipSDP())
        assert exact <= found.bound <= exact * (1 + 1e-14)
        assert not isinstance(found.evidence, Multipliers)


def test_inputs_and_outputs_that_nothing_reads_cost_nothing():
    model = chain([3, 5, 2], 1)
    model[0].weight.data[:, 1] = 0.0
    model[2].weight.data[1] = 0.0
    graph = trace(model, (3,))
    assert live(normal_form(graph)).tolist() == [0, 2]
    for norms in PAIRS.values():
        found = RowLipSDP()(graph, norms)
        assert steepest(model, 3, norms) <= found.bound < Product()(graph, norms).bound
        assert check(found, graph).bound == check_float64(found, graph).bound == found.bound


# ------------------------------------------------------------------------------------------------ the optimum


def optimum(form: NormalForm) -> float:
    """The least sum of weights by a general solver, which is told the matrices and nothing else."""
    import cvxpy

    found = programme(form, Recursion()(form).multipliers, 1.0)
    n, n0 = found.P.shape[1], form.inputs
    tau, lam = cvxpy.Variable(n0), cvxpy.Variable(len(found.P), nonneg=True)
    E = np.eye(n)[:, :n0]
    half = found.P.T @ cvxpy.diag(lam) @ found.Q
    S = E @ cvxpy.diag(tau) @ E.T + half + half.T - found.gram
    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum(tau)), [0.5 * (S + S.T) >> 0])
    return float(problem.solve(solver="CLARABEL"))


@functools.cache
def least_sum(sizes: tuple[int, ...], activation: Callable[[], nn.Module]) -> float:
    return optimum(row(normal_form(trace(chain(list(sizes), 5, activation), (sizes[0],))), 0))


SOLVERS = ("interior point", "low rank", "auto")
CHAINS = {
    "relu": ([4, 6, 5, 1], nn.ReLU),
    "one layer": ([6, 10, 1], nn.ReLU),
    "silu": ([5, 9, 8, 1], nn.SiLU),
    "slopes above zero": ([5, 7, 6, 1], lambda: nn.LeakyReLU(0.5)),
    "wide": ([12, 6, 5, 1], nn.GELU),
}


@pytest.mark.parametrize(
    ("sizes", "activation"),
    [
        pytest.param(*each, id=name, marks=[] if name in ("relu", "one layer") else [pytest.mark.slow])
        for name, each in CHAINS.items()
    ],
)
@pytest.mark.parametrize("solver", [InteriorPoint(1e-6), LowRank(gap=1e-6), solvers.Auto(gap=1e-6)], ids=SOLVERS)
def test_the_solver_finds_what_a_general_one_finds_and_knows_its_gap(sizes, activation, solver):
    form = row(normal_form(trace(chain(sizes, 5, activation), (sizes[0],))), 0)
    solution, weights = solver.weighted(form)
    least = least_sum(tuple(sizes), activation)
    assert solution.rho == pytest.approx(float(weights.sum()), rel=1e-14)
    assert solution.rho == pytest.approx(least, rel=2e-5)
    assert solution.dual <= least * (1 + 1e-6)
    assert solution.rho <= solution.dual * (1 + (4e-6 if solver != LowRank(gap=1e-6) else 4e-5))
    tau, _ = prove_weighted(form, solution.multipliers, weights, Recursion()(form).multipliers)
    assert tau is not None
    assert solution.dual * (1 - 1e-9) <= tau.sum() <= least * (1 + 3e-5)


def least_to_l1(form: NormalForm) -> float:
    """The least squared bound to l1 by a general solver: with weights W of the outputs, ``[W, Y; Y', S] >= 0``."""
    import cvxpy

    places = form.columns()
    size = max(place.stop for place in places.values())

    def matrix(signal: Signal, rows: int) -> np.ndarray:
        whole = np.zeros((rows, size))
        for name, block in signal.blocks.items():
            whole[:, places[name]] = block.numpy()
        return whole

    Y = matrix(form.output, len(next(iter(form.output.blocks.values()))))
    w, rho = cvxpy.Variable(len(Y), nonneg=True), cvxpy.Variable(nonneg=True)
    S = rho * np.diag(np.eye(size)[0])
    for layer in form.layers:
        u, v = np.eye(size)[places[layer.name]], matrix(layer.v, len(layer.alpha))
        P, Q = (u - end.numpy()[:, None] * v for end in (layer.alpha, layer.beta))
        half = P.T @ cvxpy.diag(cvxpy.Variable(len(u), nonneg=True)) @ Q
        S = S + half + half.T
    whole = cvxpy.bmat([[cvxpy.diag(w), Y], [Y.T, S]])
    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum(w) + rho), [0.5 * (whole + whole.T) >> 0])
    # Multiplied by s and 1/s, the sum of w and rho are the same at the least, and the bound is their product.
    return (float(problem.solve(solver="CLARABEL")) / 2.0) ** 2


@pytest.mark.parametrize(
    "activation",
    [
        pytest.param(build, id=name, marks=[] if name in ("relu", "maxmin") else [pytest.mark.slow])
        for name, build in ACTIVATIONS.items()
    ],
)
@pytest.mark.parametrize("sizes", [(3, 8, 6, 2), (2, 12, 9)], ids=str)
def test_bounds_to_l1_are_what_a_general_solver_finds(sizes: tuple[int, ...], activation):
    graph = trace(chain(list(sizes), 5, activation), (sizes[0],))
    form = without_kept(normal_form(graph))
    least = max(least_to_l1(column(form, j)) for j in range(sizes[0]))
    below = max(LowRank().to_l1(column(form, j))[0] for j in range(sizes[0]))
    assert below <= least * (1 + 1e-6)
    assert below == pytest.approx(least, rel=1e-4)
    bound = RowLipSDP(gap=1e-5)(graph, L1).bound
    assert below * (1 - 1e-9) <= bound**2 <= least * (1 + 1e-3)


@given(st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=40))
def test_stretches_are_shares_whose_inverse_squares_never_add_up_to_more_than_one(shares: list[float]):
    found = stretches(torch.tensor(shares, dtype=torch.float64)).tolist()
    total = sum((1 / Fraction(r) ** 2 for r in found), Fraction(0))
    assert 1 - Fraction(1, 2**40) <= total <= 1


def drawn(value: Tensor, width: float, generator: torch.Generator) -> Tensor:
    return value * torch.exp(width * torch.randn(value.shape, generator=generator))


def test_no_weights_and_multipliers_go_below_the_bound_from_below():
    form = row(normal_form(trace(chain([3, 6, 5, 1], 2), (3,))), 0)
    solution, weights = InteriorPoint(gap=1e-6).weighted(form)
    generator = torch.Generator().manual_seed(0)
    for width in (0.0, 0.01, 0.1, 0.5):
        nearby = {name: drawn(lam, width, generator) for name, lam in solution.multipliers.items()}
        tau, _ = prove_weighted(form, nearby, drawn(weights, width, generator))
        assert tau is None or tau.sum() >= solution.dual * (1 - 1e-9)


# ------------------------------------------------------------------------------------------------ proofs


def exact_matrix(model: nn.Sequential, tau: np.ndarray, lam: np.ndarray) -> np.ndarray:
    """``[[diag tau, -W'L], [-L W, 2 L - v'v]]`` of ``v relu(W x)`` in fractions."""
    W, v = (np.vectorize(Fraction)(model[k].weight.detach().numpy()) for k in (0, 2))
    L, T = np.diag(np.vectorize(Fraction)(lam)), np.diag(np.vectorize(Fraction)(tau))
    return np.block([[T, -W.T @ L], [-L @ W, 2 * L - v.T @ v]])


@given(st.integers(0, 2**16), st.integers(1, 4), st.floats(-20.0, -3.0))
@settings(max_examples=15, deadline=None)
def test_what_the_float64_proof_accepts_is_semidefinite_over_the_fractions(seed: int, inputs: int, power: float):
    model = chain([inputs, 3, 1], seed)
    form = row(normal_form(trace(model, (inputs,))), 0)
    solution, weights = InteriorPoint(gap=1e-9).weighted(form)
    (name,) = solution.multipliers
    lam = solution.multipliers[name].numpy()
    rng = np.random.default_rng(seed)
    tau = weights.numpy() * (1.0 + 10.0**power * rng.standard_normal(inputs))
    if holds(form, {name: torch.from_numpy(lam)}, tau):
        assert semidefinite(exact_matrix(model, tau, lam))
    assert not holds(form, {name: torch.from_numpy(lam)}, 0.999 * tau)


def test_weights_that_are_no_numbers_prove_nothing():
    form = row(normal_form(trace(chain([3, 4, 1], 0), (3,))), 0)
    solution, weights = InteriorPoint().weighted(form)
    good = 1.001 * weights.numpy()
    assert holds(form, solution.multipliers, good)
    for bad in (float("nan"), float("inf"), -1.0, 0.0):
        assert not holds(form, solution.multipliers, np.array([bad, *good[1:]]))


def test_an_entry_that_nothing_reads_takes_nothing_off_the_sum():
    model = chain([3, 4, 1], 0)
    model[0].weight.data[:, 1] = 0.0
    graph = trace(model, (3,))
    found = RowLipSDP()(graph, LINF)
    assert isinstance(found.evidence, Multipliers)
    (block,) = found.evidence.blocks
    (each,) = block.rows
    assert each.weights[1] == 0.0
    form = row(normal_form(graph), 0)
    multipliers = {name: torch.tensor(lam, dtype=torch.float64) for name, lam in each.multipliers.items()}
    for weight, fine in ((0.0, True), (0.1, True), (-0.1, False)):
        assert holds(form, multipliers, np.array([each.weights[0], weight, each.weights[2]])) == fine
    document = json.loads(found.to_json())
    entry = rows_of(document)[0]
    entry["weights"][1] = (-0.1).hex()
    document["bound"] = document["evidence"]["blocks"][0]["value"] = ((found.bound**2 - 0.1) ** 0.5 * (1 + 1e-9)).hex()
    with pytest.raises((Reject, Malformed)):
        verify(json.dumps(document), *graph.document())


def test_a_moved_input_and_a_picked_output_are_what_their_networks_are():
    model = chain([4, 6, 5, 3], 1)
    form = column(row(normal_form(trace(model, (4,))), 2), 1)
    alone = nn.Sequential(nn.Linear(1, 4, bias=False), model, nn.Linear(3, 1, bias=False)).double()
    alone[0].weight.data = torch.eye(4, dtype=torch.float64)[:, 1:2]
    alone[2].weight.data = torch.eye(3, dtype=torch.float64)[2:]
    other = normal_form(trace(alone, (1,)))
    assert form.inputs == other.inputs == 1
    torch.testing.assert_close(form.layers[0].v.blocks[""], other.layers[0].v.blocks[""])
    (last,) = form.output.blocks.values()
    torch.testing.assert_close(last, next(iter(other.output.blocks.values())))


# ------------------------------------------------------------------------------------------------ tampering


@functools.cache
def honest(norms: Norms) -> tuple[Graph, str]:
    graph = trace(chain([3, 4, 3, 2], 1), (3,))
    return graph, RowLipSDP(gap=1e-6)(graph, norms).to_json()


def one_of(norms: Norms) -> tuple[Graph, dict[str, Any]]:
    """A network and its certificate as a document, whose only part is given row by row."""
    graph, text = honest(norms)
    return graph, json.loads(text)


def rows_of(document: dict[str, Any]) -> list[dict[str, Any]]:
    return document["evidence"]["blocks"][0]["rows"]


def times(text: str, factor: float) -> str:
    return (float.fromhex(text) * factor).hex()


def lower_bound(document: dict[str, Any]) -> None:
    document["bound"] = times(document["bound"], 0.999)


def lower_value(document: dict[str, Any]) -> None:
    lower_bound(document)
    document["evidence"]["blocks"][0]["value"] = document["bound"]


def lower_weights(document: dict[str, Any]) -> None:
    lower_value(document)
    for entry in rows_of(document):
        entry["weights"] = [times(weight, 0.997) for weight in entry["weights"]]


def lower_one_weight(document: dict[str, Any]) -> None:
    for entry in rows_of(document):
        entry["weights"][0] = times(entry["weights"][0], 0.99)


def negative_weight(document: dict[str, Any]) -> None:
    for entry in rows_of(document):
        entry["weights"][0] = times(entry["weights"][0], -1.0)


def no_weight(document: dict[str, Any]) -> None:
    for entry in rows_of(document):
        entry["weights"][0] = (0.0).hex()


def swap_rows(document: dict[str, Any]) -> None:
    rows_of(document).reverse()


def drop_a_row(document: dict[str, Any]) -> None:
    del rows_of(document)[0]


def repeat_a_row(document: dict[str, Any]) -> None:
    rows_of(document).append(rows_of(document)[0])


def no_rows(document: dict[str, Any]) -> None:
    rows_of(document).clear()


def scale_multipliers(document: dict[str, Any]) -> None:
    for entry in rows_of(document):
        entry["multipliers"] = {name: [times(x, 1.05) for x in each] for name, each in entry["multipliers"].items()}


def zero_multipliers(document: dict[str, Any]) -> None:
    for entry in rows_of(document):
        entry["multipliers"] = {name: [(0.0).hex() for _ in each] for name, each in entry["multipliers"].items()}


def drop_a_layer(document: dict[str, Any]) -> None:
    for entry in rows_of(document):
        entry["multipliers"].popitem()


def drop_a_weight(document: dict[str, Any]) -> None:
    for entry in rows_of(document):
        entry["weights"] = entry["weights"][1:]


def weights_without_need(document: dict[str, Any]) -> None:
    for entry in rows_of(document):
        entry["weights"] = [(1e-9).hex()] * 3


def claim(norms: str) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        document["norms"] = document["evidence"]["blocks"][0]["norms"] = norms

    return change


def claim_outside(norms: str) -> Change:
    return lambda document: document.update(norms=norms)


def repeat_the_first_row(document: dict[str, Any]) -> None:
    rows_of(document)[:] = rows_of(document)[:1] * len(rows_of(document))


LIES: dict[str, tuple[Norms, Change]] = {
    **{
        f"{change.__name__} {norms}": (norms, change)
        for norms in PAIRS.values()
        for change in (lower_bound, lower_value, drop_a_row, repeat_a_row, no_rows, swap_rows, scale_multipliers)
    },
    **{
        f"{change.__name__} {norms}": (norms, change)
        for norms in PAIRS.values()
        for change in (zero_multipliers, drop_a_layer)
    },
    **{change.__name__: (LINF, change) for change in (lower_weights, lower_one_weight, negative_weight, drop_a_weight)},
    **{
        f"{change.__name__} {L1}": (L1, change)
        for change in (lower_weights, lower_one_weight, negative_weight, drop_a_weight, no_weight)
    },
    "weights from linf to l1": (LINF, claim("l1->l1")),
    "weights to l1 from linf": (L1, claim("linf->linf")),
    "weights from l2": (L2_LINF, weights_without_need),
    "weights from l1": (L1_LINF, weights_without_need),
    "rows from l2 for linf": (L2_LINF, claim("linf->linf")),
    "rows from linf for l2": (LINF, claim("l2->linf")),
    "rows from l1 for l2": (L1_LINF, claim("l2->linf")),
    "rows from l2 for l1": (L2_LINF, claim("l1->linf")),
    "rows to linf for l2": (L2_LINF, claim("l2->l2")),
    "rows to linf for l1": (L1_LINF, claim("l1->l1")),
    "a part from l2 under a claim from linf": (L2_LINF, claim_outside("linf->linf")),
    "a part to linf under a claim to l2": (L2_LINF, claim_outside("l2->l2")),
    "a part to linf under a claim to l1": (L1_LINF, claim_outside("l1->l1")),
    **{f"the first row for all {norms}": (norms, repeat_the_first_row) for norms in PAIRS.values()},
}


@pytest.mark.parametrize(("norms", "lie"), LIES.values(), ids=LIES)
def test_a_certificate_that_was_changed_is_refused_by_both_checkers(norms: Norms, lie: Change):
    graph, document = one_of(norms)
    before = json.dumps(document)
    lie(document)
    assert json.dumps(document) != before
    with pytest.raises((Reject, Malformed)):
        verify(json.dumps(document), *graph.document())
    for checker in (check, check_float64):
        with pytest.raises((CheckFailed, InvalidInput)):
            checker(Certificate.from_json(json.dumps(document)), graph)


STRANGE: dict[str, Callable[[dict[str, Any]], None]] = {
    "rows and multipliers": lambda block: block.update(multipliers={}),
    "rows on a torus": lambda block: block.update(torus=[3]),
    "no norms": lambda block: block.pop("norms"),
    "norms of no kind": lambda block: block.update(norms="l3->linf"),
    "a field more": lambda block: block["rows"][0].update(row=0),
    "no weights": lambda block: block["rows"][0].pop("weights"),
    "multipliers that are no lists": lambda block: block["rows"][0].update(multipliers={"1": {}, "3": {}}),
    "weights that are no list": lambda block: block["rows"][0].update(weights={"0x1.0p+0": 1}),
    "a row that is no object": lambda block: block["rows"].__setitem__(0, []),
    "a weight that is no number": lambda block: block["rows"][0]["weights"].__setitem__(0, "inf"),
    "a decimal weight": lambda block: block["rows"][0]["weights"].__setitem__(0, "1.0"),
}


@pytest.mark.parametrize("change", STRANGE.values(), ids=STRANGE)
def test_what_is_no_certificate_of_the_format_is_malformed(change: Callable[[dict[str, Any]], None]):
    graph, document = one_of(LINF)
    change(document["evidence"]["blocks"][0])
    with pytest.raises(Malformed):
        verify(json.dumps(document), *graph.document())


@functools.cache
def exactly() -> tuple[Graph, Certificate, float]:
    model = positive(3, 4, 1, seed=1)
    graph = trace(model, (3,))
    return graph, RowLipSDP(gap=1e-9)(graph, LINF), gain(product(model), LINF)


@given(st.integers(0, 2**16))
@settings(max_examples=25, deadline=None)
def test_whatever_the_checkers_accept_is_at_least_the_true_constant(seed: int):
    graph, found, exact = exactly()
    assert isinstance(found.evidence, Multipliers)
    (block,) = found.evidence.blocks
    rng = np.random.default_rng(seed)

    def near(values: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(np.array(values) * (1.0 + 10.0 ** rng.uniform(-16, -1) * rng.standard_normal(len(values))))

    rows = tuple(
        replace(each, multipliers={n: near(x) for n, x in each.multipliers.items()}, weights=near(each.weights))
        for each in block.rows
    )
    (value,) = near((block.value,))
    claimed = replace(found, bound=value, evidence=Multipliers((replace(block, value=value, rows=rows),)))
    for checker in (check, check_float64):
        try:
            accepted = checker(claimed, graph).bound
        except CheckFailed:
            continue
        assert accepted >= exact * (1 - 1e-15)


# ------------------------------------------------------------------------------------------------ composition


def pooled() -> nn.Module:
    pool = nn.Unflatten(1, (1, 6)), nn.MaxPool1d(2), nn.Flatten()
    return nn.Sequential(chain([4, 6, 6], 0), *pool, chain([3, 8, 6, 2], 1))


@pytest.mark.parametrize("norms", SLOWLY)
def test_a_network_that_is_cut_is_bounded_part_by_part(norms: Norms):
    model = pooled().double()
    graph = trace(model, (4,))
    found = RowLipSDP()(graph, norms)
    assert isinstance(found.evidence, Multipliers)
    expected = {LINF: [LINF, LINF], L2_LINF: [L2_LINF, L2], L1_LINF: [L1_LINF], L1: [L1, L1]}[norms]
    assert [block.norms for block in found.evidence.blocks] == expected
    assert steepest(model, 4, norms) <= found.bound < Product()(graph, norms).bound
    assert check(found, graph).bound == check_float64(found, graph).bound == found.bound


@pytest.mark.parametrize("norms", SLOWLY)
def test_what_follows_the_last_part_is_bounded_in_the_norm_of_the_output(norms: Norms):
    tail = nn.Unflatten(1, (1, 4)), nn.MaxPool1d(2), nn.Flatten(), chain([2, 2], 1)
    model = nn.Sequential(chain([3, 7, 4], 0), *tail).double()
    graph = trace(model, (3,))
    found = RowLipSDP()(graph, norms)
    assert isinstance(found.evidence, Multipliers)
    assert steepest(model, 3, norms) <= found.bound < Product()(graph, norms).bound
    assert check(found, graph).bound == check_float64(found, graph).bound == found.bound


def test_a_constant_that_what_follows_lacks_in_linf_leaves_the_layerwise_bound():
    inner = trace(chain([3, 7, 4], 0), (3,))
    last = Opaque("f", inner.output.name, (4,), "declared:by hand", {}, {L2: 1.0, L2_LINF: 1.0}, torch.relu)
    graph = Graph((*inner.nodes, last))
    assert RowLipSDP()(graph, L2_LINF) == Product()(graph, L2_LINF)


def test_branches_are_one_programme():
    model = nn.Sequential(Residual(chain([3, 6, 3], 0)), chain([3, 2], 1))
    graph = trace(model, (3,))
    found = RowLipSDP()(graph, LINF)
    assert steepest(model, 3, LINF) <= found.bound < Product()(graph, LINF).bound
    check(found, graph)


def test_margins_in_linf_are_those_of_the_differences():
    model = chain([2, 5, 3], 5)
    graph = trace(model, (2,))
    found = margins(graph, RowLipSDP(), norms=LINF)
    for (i, j), certificate in found.certificates.items():
        whole = difference(graph, i, j)
        rows = nn.Linear(3, 1, bias=False).double()
        rows.weight.data = torch.eye(3, dtype=torch.float64)[[i]] - torch.eye(3, dtype=torch.float64)[[j]]
        assert steepest(nn.Sequential(model, rows), 2, LINF) <= certificate.bound < Product()(whole, LINF).bound
        assert check(certificate, whole).bound == found.constants[i, j]


# ------------------------------------------------------------------------------------------------ refusals and Auto


def test_l2_is_refused():
    with pytest.raises(UnsupportedOperation, match=f"not {L2}"):
        RowLipSDP()(trace(nn.ReLU(), (2,)), L2)


@pytest.mark.parametrize("norms", SLOWLY)
def test_auto_and_certify_use_it_where_it_fits(norms: Norms):
    model = chain([3, 6, 2], 0)
    found = certify(model, (3,), norms=norms)
    assert found.method.startswith(f"Auto: {norms}, RowLipSDP: ")
    assert found.bound == RowLipSDP()(trace(model, (3,)), norms).bound
    wide = trace(chain([300, 6, 3] if norms == L1 else [3, 6, 100], 0), (300 if norms == L1 else 3,))
    assert Auto()(wide, norms).method.startswith(f"Auto: {norms}, which is bounded layer by layer, Product(")
    by = RowLipSDP(largest=8)
    assert by(trace(model, (3,)), norms) == Product()(trace(model, (3,)), norms)


# ------------------------------------------------------------------------------------------------ networks of others


@pytest.mark.slow
@pytest.mark.skipif(not THIRD_PARTY, reason=f"no third-party networks in {FOLDER.name}")
@pytest.mark.parametrize("name", [name for name in THIRD_PARTY if "exlipbab" in name or "_linf_" in name] or ["none"])
def test_of_trained_networks_the_bounds_keep_to_the_published_constants(name: str):
    net = THIRD_PARTY[name]
    model = net.build().double()
    if "_linf_" in name:  # ten outputs of 784 inputs, trained for linf: the first one, and not from l1
        model.append(nn.Linear(10, 1, bias=False).double())
        model[-1].weight.data = torch.eye(10, dtype=torch.float64)[:1]
    graph = trace(model, net.shape)
    pairs = [norms for norms in PAIRS.values() if "_linf_" not in name or norms != L1_LINF]
    found = {norms: RowLipSDP()(graph, norms) for norms in pairs}
    for norms, certificate in found.items():
        assert witness(model, net.shape, norms, budget=QUICK).ratio <= certificate.bound
        assert certificate.bound <= Product()(graph, norms).bound
        check_float64(certificate, graph)
    if graph.output.shape == (1,):
        # The published constants are in l2, in which one output has the constant of l2 to linf.
        assert found[L2_LINF].bound == pytest.approx(LipSDP()(graph).bound, rel=1e-4)
        assert net.exact is None or net.exact <= min(found[L2_LINF].bound, found[LINF].bound)
