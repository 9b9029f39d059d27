"""Split, Best and Auto: products of parts, the lowest of several, and the choice by size."""

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lipcert import L1, L2, LINF, certify, check, check_float64, trace, witness
from lipcert.certificate import Certificate, Gains, Multipliers, Validity
from lipcert.certifiers import Auto, Best, LipSDP, Product, Split
from lipcert.certifiers.split import Outline, unknowns
from lipcert.errors import InvalidInput, UnsupportedOperation
from lipcert.graph import Graph
from lipcert.lmi import normal_form
from lipcert.nn import FullSort, GroupSort, MaxMin
from lipcert.norms import Norms
from lipcert.witness import Budget
from tests.cases import NETWORKS
from tests.test_lipsdp import chain

QUICK = Budget(points=4, power_steps=8, ascent_steps=10)
SLACK = 1 + 1e-5  # what the solver may leave of the optimum


class Block(nn.Module):
    """``x + W relu(V x)``."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        self.body = chain([width, width, width], seed)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def pooled() -> nn.Sequential:
    convs = nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.MaxPool2d(2), nn.Flatten()
    return nn.Sequential(*convs, chain([18, 9, 7, 2], 0)).double().requires_grad_(False)


SHAPED = {
    "chain": (lambda: chain([3, 5, 4, 6, 2], 1), (3,)),
    "residual": (lambda: nn.Sequential(Block(4, 0), nn.Tanh(), Block(4, 1), nn.ReLU(), Block(4, 2)), (4,)),
    "pooled": (pooled, (1, 8, 8)),
    "slopes": (lambda: chain([3, 5, 4, 6, 2], 2, nn.GELU), (3,)),
    "activations at the ends": (lambda: nn.Sequential(nn.ReLU(), chain([3, 5, 4, 2], 3), nn.SiLU()), (3,)),
    "steep in places": (lambda: nn.Sequential(chain([3, 4, 4], 3), nn.PReLU(4), chain([4, 4, 3], 1)).double(), (3,)),
}


# ------------------------------------------------------------------------------------------------ Split


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize(("build", "shape"), SHAPED.values(), ids=SHAPED)
def test_a_split_bound_lies_between_the_whole_and_the_product_and_checks(build, shape, count: int):
    model = build()
    graph = trace(model, shape)
    found = Split(parts=count)(graph)
    assert LipSDP()(graph).bound <= found.bound * SLACK
    assert found.bound <= Product()(graph).bound
    assert witness(model, shape, budget=QUICK).ratio <= found.bound
    assert check(found, graph).bound == check_float64(found, graph).bound == found.bound
    assert Certificate.from_json(found.to_json()).to_json() == found.to_json()


def test_one_part_is_the_whole():
    graph = trace(chain([3, 5, 4, 6, 2], 1), (3,))
    assert Split()(graph).bound == Split(parts=1)(graph).bound == LipSDP()(graph).bound
    assert Split(parts=1)(graph).evidence.items == LipSDP()(graph).evidence.items


@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU, MaxMin, FullSort, lambda: GroupSort(3)])
def test_a_part_is_counted_by_the_variables_of_its_form(activation: Callable[[], nn.Module]):
    graph = trace(chain([4, 6, 12, 3], 0, activation), (4,))
    form = normal_form(graph)
    assert Outline(graph).unknowns(0, len(Outline(graph).names) - 1) == [unknowns(form.inputs, form.neurons)]
    assert Auto(largest=5)(graph).bound <= Product()(graph).bound


@given(st.lists(st.integers(1, 5), min_size=2, max_size=5), st.integers(0, 2**16), st.integers(1, 9))
@settings(max_examples=25, deadline=None)
def test_the_programme_finds_the_cheapest_of_all_ways_to_cut(widths: list[int], seed: int, largest: int):
    outline = Outline(trace(chain([3, *widths, 2], seed), (3,)))
    last = len(outline.points) - 1

    def price(path: tuple[int, ...]) -> tuple[int, int, int] | None:
        total = [0, len(path) - 1, 0]
        for a, b in itertools.pairwise(path):
            sizes = outline.unknowns(outline.points[a], outline.points[b])
            if max(sizes, default=0) <= largest:
                total[2] += sum(size**3 for size in sizes)
            elif b == a + 1:
                total[0] += 1
            else:
                return None
        return total[0], total[1], total[2]

    ways = [(0, *inner, last) for k in range(last) for inner in itertools.combinations(range(1, last), k)]
    places = [outline.points.index(i) for i, _ in outline.cheapest(largest, None)] + [last]
    assert price(tuple(places)) == min(p for way in ways if (p := price(way)) is not None)
    for count in range(1, last + 1):
        priced = [(p[0], p[2]) for way in ways if len(way) == count + 1 and (p := price(way)) is not None]
        if priced:
            found = price(tuple([outline.points.index(i) for i, _ in outline.cheapest(largest, count)] + [last]))
            assert found is not None
            assert (found[0], found[2]) == min(priced)


def test_parts_may_be_named():
    graph = trace(chain([3, 5, 4, 6, 2], 1), (3,))
    names = Outline(graph).names
    found = Split(parts=(names[3],))(graph)
    assert isinstance(found.evidence, Multipliers)
    assert [block.source for block in found.evidence.blocks] == [names[0], names[4]]
    check(found, graph)
    for wrong in (("nowhere",), (names[0],), (names[3], names[1]), (names[3], names[3])):
        with pytest.raises(InvalidInput, match="cannot meet at"):
            Split(parts=wrong)(graph)
    residual = trace(Block(3, 0), (3,))
    with pytest.raises(InvalidInput, match="cannot meet at"):
        Split(parts=(next(node.name for node in residual if node.name.startswith("body")),))(residual)


def test_more_parts_than_there_can_be_are_refused():
    with pytest.raises(InvalidInput, match="between 1 and 2"):
        Split(parts=5)(trace(chain([3, 4, 2], 0), (3,)))


def test_what_is_over_the_cap_is_left_to_norms_and_said():
    model = nn.Sequential(chain([3, 2, 3], 0), nn.Tanh(), chain([3, 30, 3, 2, 3], 1))
    graph = trace(model, (3,))
    found = Split(largest=12)(graph)
    assert found.bound < Product()(graph).bound
    residual = trace(nn.Sequential(chain([9, 2, 9], 0), nn.Tanh(), Block(9, 0)), (9,))
    cut = Split(largest=12)(residual)
    assert "left to norms, over 12 unknowns" in cut.method
    assert cut.bound <= Product()(residual).bound
    check(cut, residual)


def test_any_certifier_may_bound_the_parts():
    graph = trace(chain([3, 5, 4, 6, 2], 1), (3,))
    mixed = Split(Best(Product(), LipSDP()), parts=2)(graph)
    assert mixed.bound == pytest.approx(Split(parts=2)(graph).bound, rel=1e-12)
    check(mixed, graph)
    layers = Split(Product(), parts=2)(graph)
    assert isinstance(layers.evidence, Gains)
    assert layers.bound == Product()(graph).bound


def test_a_weaker_bound_of_a_part_makes_a_weaker_bound():
    def weaker(graph: Graph, norms: Norms) -> Certificate:
        found = LipSDP()(graph, norms)
        return Certificate(found.bound, norms, Validity.NUMERICAL, "weaker", found.network, found.evidence)

    graph = trace(chain([3, 5, 4, 6, 2], 1), (3,))
    assert Split(weaker, parts=2)(graph).validity is Validity.NUMERICAL


def test_split_bounds_l2_only_and_says_so():
    with pytest.raises(UnsupportedOperation, match="not linf->linf"):
        Split()(trace(nn.ReLU(), (2,)), LINF)


# ------------------------------------------------------------------------------------------------ Best


@pytest.mark.parametrize(("build", "shape"), SHAPED.values(), ids=SHAPED)
def test_the_best_is_never_looser_than_each(build, shape):
    graph = trace(build(), shape)
    several = Product(), Product(longest=1), Split(parts=2)
    found = Best(*several)(graph)
    assert found.bound == min(certifier(graph).bound for certifier in several)
    check(found, graph)


def test_a_refusal_is_passed_over_only_if_another_certifier_answers():
    graph = trace(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), (2,))
    assert Best(LipSDP(), Product())(graph, LINF) == Product()(graph, LINF)
    with pytest.raises(UnsupportedOperation) as refusal:
        Best(LipSDP(), Split())(graph, LINF)
    assert "LipSDP(" in str(refusal.value)
    assert "`Split` bounds l2->l2, not linf->linf" in str(refusal.value)

    def broken(graph: Graph, norms: Norms) -> Certificate:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Best(Product(), broken)(graph)


def test_what_may_be_trusted_further_is_better_than_what_is_lower():
    graph = trace(nn.Linear(2, 2), (2,))

    def guess(graph: Graph, norms: Norms) -> Certificate:
        return Certificate(0.0, norms, Validity.ESTIMATE, "guess", graph.digest(), Gains(()))

    assert Best(guess, Product())(graph).validity is Validity.RIGOROUS
    assert Best(guess)(graph).bound == 0.0


def test_an_answer_about_something_else_is_refused():
    graph, other = trace(nn.ReLU(), (2,)), trace(nn.Tanh(), (2,))
    with pytest.raises(InvalidInput, match="answered about the network"):
        Best(lambda graph, norms: Product()(other, norms))(graph)
    with pytest.raises(InvalidInput, match=r"asked was .* in linf->linf"):
        Best(lambda graph, norms: Product()(graph, L2))(graph, LINF)
    with pytest.raises(InvalidInput, match="no certifier to ask"):
        Best()


# ------------------------------------------------------------------------------------------------ Auto


@pytest.mark.parametrize("norms", [L2, LINF], ids=str)
@pytest.mark.parametrize("case", list(NETWORKS.values())[::4], ids=list(NETWORKS)[::4])
def test_auto_is_never_looser_than_the_product(case, norms: Norms):
    graph = trace(case.model(), case.input_shape)
    found = Auto(largest=150)(graph, norms)
    assert found.bound <= Product()(graph, norms).bound
    assert found.validity is Validity.RIGOROUS
    assert found.method.startswith("Auto: ")
    check(found, graph)


def test_auto_chooses_by_size_and_says_why():
    graph = trace(chain([6, 7, 8, 7, 6, 2], 1), (6,))
    whole, cut, none = (Auto(largest=largest)(graph) for largest in (100, 22, 3))
    assert whole.method.startswith("Auto: 34 unknowns in 1 part, LipSDP: ")
    assert cut.method.startswith("Auto: 34 unknowns, over 22, Split: 2 parts meet at `4`; ")
    assert none.method.startswith("Auto: 34 unknowns, over 3, Product(")
    assert whole.bound < cut.bound < none.bound == Product()(graph).bound
    assert Auto()(trace(nn.Linear(2, 2), (2,))).method.startswith("Auto: nothing bends")
    many = trace(chain([300, 6, 2], 1), (300,))
    assert Auto()(many, L1).method.startswith("Auto: l1->l1, which is bounded layer by layer, Product(")
    assert Auto()(graph, LINF).method.startswith("Auto: linf->linf, RowLipSDP: one programme for every row, ")


def test_auto_answers_the_same_twice_and_without_time_too():
    graph = trace(pooled(), (1, 8, 8))
    assert Auto()(graph).to_json() == Auto()(graph).to_json()
    hurried = Auto(seconds=0.0)(graph)
    assert Auto()(graph).bound <= hurried.bound <= Product()(graph).bound
    check(hurried, graph)


def test_auto_is_what_certify_uses():
    model = chain([3, 8, 8, 2], 0)
    assert certify(model, (3,)).bound == Auto()(trace(model, (3,))).bound < certify(model, (3,), by=Product()).bound


def test_progress_is_told_of_every_iteration():
    told: list[tuple[int, float, float]] = []
    graph = trace(chain([3, 8, 8, 2], 0), (3,))
    found = Auto(progress=lambda *numbers: told.append(numbers))(graph)
    assert len(told) > 5
    assert all(0.0 <= dual <= rho for _, rho, dual in told)
    assert told[-1][1] == pytest.approx(found.bound**2, rel=1e-4)
    assert found == Auto()(graph) or found.to_json() == Auto()(graph).to_json()
    assert repr(Auto(progress=print)) == repr(Auto())
