"""The sandwich: pair <= pattern <= dual bound <= proved bound, and patterns against brute force."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lipcert import L2, Budget, sandwich, trace, witness
from lipcert.certifiers import Auto, LipSDP, Product, Split
from lipcert.lmi import NormalForm, largest_pattern, normal_form, tighten
from lipcert.report import report_sandwich
from lipcert.sandwich import enclose
from lipcert.solvers import FirstOrder, InteriorPoint
from tests.test_combine import SHAPED
from tests.test_lipsdp import chain, form_of, positive

QUICK = Budget(points=4, power_steps=8, ascent_steps=10)
# Patterns and dual bounds are evaluated in floating point; a proof has 1e-10 of room at least, so they seldom need it.
FLOAT = 1 + 1e-9
ACTIVATIONS = [nn.ReLU, nn.Tanh, nn.Sigmoid, nn.SiLU, nn.GELU, nn.LeakyReLU, nn.ELU, nn.Mish, nn.Hardswish, nn.Softplus]


def linear_map(form: NormalForm, slopes: dict[str, Tensor]) -> Tensor:
    """The network with these slopes, column by column, straight from the normal form."""
    z = {"": torch.eye(form.inputs, dtype=torch.float64)}
    for layer in form.layers:
        z[layer.name] = slopes[layer.name][:, None] * sum(block @ z[name] for name, block in layer.v.blocks.items())
    return torch.as_tensor(sum(block @ z[name] for name, block in form.output.blocks.items()))


def brute_force(form: NormalForm) -> float:
    """The largest norm over all patterns of slopes at the ends of their intervals."""
    sizes = [len(layer.alpha) for layer in form.layers]
    best = 0.0
    for bits in itertools.product((False, True), repeat=sum(sizes)):
        chosen = torch.tensor(bits).split(sizes)
        slopes = {n.name: torch.where(c, n.beta, n.alpha) for n, c in zip(form.layers, chosen, strict=True)}
        best = max(best, float(torch.linalg.matrix_norm(linear_map(form, slopes), ord=2)))
    return best


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=2),
    st.sampled_from([nn.ReLU, nn.SiLU, nn.LeakyReLU, nn.Hardswish]),
    st.integers(0, 2**16),
)
@settings(max_examples=25, deadline=None)
def test_a_pattern_is_never_above_brute_force(sizes: list[int], activation, seed: int):
    form = form_of(chain([2, *sizes, 2], seed, activation), 2)
    found = largest_pattern(form)
    slopes = {name: d for name, d in found.slopes.items()}
    assert float(torch.linalg.matrix_norm(linear_map(form, slopes), ord=2)) == pytest.approx(found.norm, rel=1e-12)
    assert all(bool((layer.alpha <= slopes[layer.name]).all()) for layer in form.layers)
    assert all(bool((layer.beta >= slopes[layer.name]).all()) for layer in form.layers)
    assert found.norm <= brute_force(form) * (1 + 1e-12)


def test_a_pattern_mostly_reaches_brute_force():
    forms = [form_of(chain([3, 5, 4, 2], seed, nn.ReLU if seed % 2 else nn.SiLU), 3) for seed in range(12)]
    reached = [largest_pattern(form).norm >= brute_force(form) * (1 - 1e-9) for form in forms]
    assert sum(reached) >= 11


@pytest.mark.parametrize(("build", "shape"), list(SHAPED.values())[:2], ids=list(SHAPED)[:2])
def test_no_multipliers_go_below_a_pattern(build, shape):
    form = normal_form(trace(build(), shape))
    pattern = largest_pattern(form).norm ** 2
    assert pattern <= InteriorPoint(gap=1e-8)(form).rho * FLOAT
    for seed in range(10):
        assert tighten(form, positive(form, seed, 0.3)) >= pattern / FLOAT


def test_a_search_begins_where_it_is_told_and_never_descends():
    form = form_of(chain([4, 9, 9, 3], 2, nn.GELU), 4)
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        given_ = {
            n.name: n.alpha + (n.beta - n.alpha) * torch.rand(len(n.alpha), generator=generator) for n in form.layers
        }
        there = float(torch.linalg.matrix_norm(linear_map(form, given_), ord=2))
        assert largest_pattern(form, begin=[given_], tries=0).norm >= there * (1 - 1e-12)


def ordered(found) -> None:
    assert found.witness.ratio <= found.certificate.bound
    if found.pattern is not None:
        assert found.witness.ratio <= found.pattern * FLOAT
        assert found.pattern <= found.dual
        assert found.dual <= found.certificate.bound * FLOAT


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_sandwich_is_in_order_at_every_slope(activation):
    for seed in range(2):
        found = sandwich(chain([4, 8, 7, 3], seed, activation), (4,), budget=QUICK)
        assert found.parts == 1
        ordered(found)
        assert found.dual >= found.certificate.bound * (1 - 1e-5)


@pytest.mark.parametrize("by", [LipSDP(FirstOrder()), Split(parts=2), Product(), Auto(largest=20)], ids=str)
@pytest.mark.parametrize(("build", "shape"), SHAPED.values(), ids=SHAPED)
def test_the_sandwich_is_in_order_for_every_certifier(build, shape, by):
    model = build()
    ordered(enclose(trace(model, shape), witness(model, shape, L2, budget=QUICK), by=by))


def test_positive_weights_leave_nothing_between_the_sides():
    model = chain([4, 10, 10, 1], 3)
    for layer in model[::2]:
        layer.weight.data.abs_()
    found = sandwich(model, (4,), by=LipSDP(InteriorPoint(gap=1e-8)))
    exact = torch.linalg.multi_dot([layer.weight.data for layer in reversed(model[::2])]).norm().item()
    assert found.pattern == pytest.approx(exact, rel=1e-12)
    assert found.certificate.bound == pytest.approx(exact, rel=1e-7)


def test_several_parts_are_said_to_be_several():
    build, shape = SHAPED["chain"]
    found = sandwich(build(), shape, by=Split(parts=2), budget=QUICK)
    text = report_sandwich(found)
    assert found.parts == 2
    assert text.count("NUMERICAL") == text.count("product over 2 parts") == 2
    assert text.splitlines()[-1].startswith("  bound")
    assert sandwich(build(), shape, by=Product(), budget=QUICK).dual is None


def test_the_same_generator_gives_the_same_sandwich():
    build, shape = SHAPED["chain"]
    one, two = (sandwich(build(), shape, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert (one.witness.ratio, one.pattern, one.dual) == (two.witness.ratio, two.pattern, two.dual)
