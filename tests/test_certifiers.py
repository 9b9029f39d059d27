"""Laws every certifier keeps: brackets, invariances, known constants."""

import itertools
import math
from fractions import Fraction
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lipcert
from lipcert import L1, L1_LINF, L2, L2_LINF, LINF, Norms, Validity, check, trace, witness
from lipcert.certificate import Gain
from lipcert.certifiers import Product
from lipcert.certifiers.composition import needed_norms, node_bounds, sqrt_up
from lipcert.errors import InvalidInput, LipcertError, NotFinite, UnsupportedOperation
from lipcert.graph import Affine, Graph, Input, Opaque
from lipcert.kernel.rounding import round_up
from lipcert.witness import Budget
from tests.cases import NETWORKS

certify = partial(lipcert.certify, by=Product())
CERTIFIERS = {"product": Product(), "product without fusing": Product(longest=1)}
ALL_NORMS = {str(norms): norms for norms in (L2, L1, LINF, L1_LINF, L2_LINF)}
QUICK = Budget(points=4, power_steps=8, ascent_steps=10)


def has_constants(graph: Graph, norms: Norms) -> bool:
    """Whether every opaque function of the network has a constant that leads to the output norm."""
    inner = {Norms(norms.p, norms.p), norms, Norms(norms.q, norms.q)}
    return all(inner & set(node.gains) for node in graph if isinstance(node, Opaque))


@pytest.mark.parametrize("certifier", CERTIFIERS.values(), ids=CERTIFIERS)
@pytest.mark.parametrize("norms", ALL_NORMS.values(), ids=ALL_NORMS)
@pytest.mark.parametrize("case", NETWORKS.values(), ids=NETWORKS)
def test_every_certifier_brackets_the_constant(case, norms: Norms, certifier: Product):
    model = case.model()
    graph = trace(model, case.input_shape)
    if not has_constants(graph, norms):
        with pytest.raises(UnsupportedOperation, match="Certify in one of those"):
            certifier(graph, norms)
        return
    certificate = certifier(graph, norms)
    assert certificate.validity is Validity.RIGOROUS
    assert witness(model, case.input_shape, norms, budget=QUICK).ratio <= certificate.bound
    exact = case.exact.get(norms)
    assert exact is None or exact <= certificate.bound


@pytest.mark.parametrize("norms", ALL_NORMS.values(), ids=ALL_NORMS)
@pytest.mark.parametrize("case", NETWORKS.values(), ids=NETWORKS)
def test_the_checker_accepts_every_certificate(case, norms: Norms):
    graph = trace(case.model(), case.input_shape)
    if not has_constants(graph, norms):
        return
    certificate = Product()(graph, norms)
    assert check(certificate, graph).validity is Validity.RIGOROUS


def dense_net(sizes: list[int], seed: int) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for into, out in itertools.pairwise(sizes):
        layer = nn.Linear(into, out)
        layer.weight.data = torch.randn(out, into, generator=generator) / into**0.5
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


sizes = st.lists(st.integers(1, 6), min_size=2, max_size=4)


@given(sizes, st.integers(0, 2**16), st.integers(-8, 8))
@settings(max_examples=30, deadline=None)
def test_scaling_the_output_by_a_power_of_two_scales_the_bound(sizes: list[int], seed: int, power: int):
    model = dense_net(sizes, seed)
    before = certify(model, (sizes[0],)).bound
    model[-1].weight.data *= 2.0**power
    assert certify(model, (sizes[0],)).bound == pytest.approx(before * 2.0**power, rel=1e-8)


@given(sizes, st.integers(0, 2**16))
@settings(max_examples=30, deadline=None)
def test_permuting_hidden_units_changes_nothing_but_rounding(sizes: list[int], seed: int):
    model = dense_net([*sizes, 2], seed)
    before = certify(model, (sizes[0],)).bound
    order = torch.randperm(sizes[1], generator=torch.Generator().manual_seed(seed))
    model[0].weight.data = model[0].weight.data[order]
    model[2].weight.data = model[2].weight.data[:, order]
    assert certify(model, (sizes[0],)).bound == pytest.approx(before, rel=1e-8)


@given(sizes, st.integers(0, 2**16), st.sampled_from(list(ALL_NORMS.values())))
@settings(max_examples=40, deadline=None)
def test_the_bound_of_a_composition_is_at_most_the_product_of_the_bounds(sizes: list[int], seed: int, norms: Norms):
    first, second = dense_net(sizes, seed), dense_net([sizes[-1], 3], seed + 1)
    inner, outer = Norms(norms.p, norms.p), norms
    whole = certify(nn.Sequential(first, nn.Tanh(), second), (sizes[0],), norms=norms).bound
    parts = certify(first, (sizes[0],), norms=inner).bound * certify(second, (sizes[-1],), norms=outer).bound
    assert whole <= parts * (1 + 1e-9)


def test_consecutive_linear_layers_are_bounded_together():
    first, second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    first.weight.data = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    second.weight.data = torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    model = nn.Sequential(first, second)
    assert certify(model, (2,), by=Product(longest=1)).bound >= 1.0
    assert certify(model, (2,)).bound < 1e-15  # the product is zero; what is left is the allowance for rounding


def test_a_residual_add_sums_and_a_concatenation_joins_in_the_output_norm():
    class Both(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([3 * x, 4 * torch.relu(x)], dim=1)

    class Skip(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.relu(2 * x)

    assert certify(Skip(), (3,)).bound == 3.0
    assert certify(Both(), (3,)).bound == pytest.approx(5.0, rel=1e-15)
    assert certify(Both(), (3,)).bound >= 5.0
    assert certify(Both(), (3,), norms=L1).bound == 7.0
    assert certify(Both(), (3,), norms=LINF).bound == 4.0


@pytest.mark.parametrize("slopes", [(-3.0,), (3.0,), (0.5, 3.0, 0.1), (0.5, -3.0, 1.0)])
def test_the_steepest_slope_counts_whether_it_rises_or_falls(slopes: tuple[float, ...]):
    layer = nn.PReLU(len(slopes))
    layer.weight.data = torch.tensor(slopes)
    for norms in ALL_NORMS.values():
        assert certify(layer, (3,), norms=norms).bound == 3.0


def test_a_gain_into_another_norm_does_not_pass_for_one_into_this():
    node = Opaque("f", "x", (2,), "declared:by hand", {}, {L2: 5.0, L2_LINF: 1.0}, torch.relu)
    graph = Graph((Input("x", (2,)), node))
    assert node_bounds(graph, (), L2)["f"] == 5.0
    assert node_bounds(graph, (), L2_LINF)["f"] == 1.0


def test_mixed_norms_use_the_mixed_norm_once():
    layer = nn.Linear(3, 3, bias=False)
    layer.weight.data = torch.tensor([[1.0, -2.0, 2.0], [0.0, 4.0, 3.0], [1.0, 1.0, 1.0]])
    assert certify(layer, (3,), norms=L1_LINF).bound == 4.0  # the largest entry
    assert 5.0 <= certify(layer, (3,), norms=L2_LINF).bound <= 5.0 * (1 + 1e-14)  # the largest row
    assert certify(layer, (3,), norms=L1).bound == 7.0  # the largest column sum
    assert certify(layer, (3,), norms=LINF).bound == 7.0  # the largest row sum
    assert certify(nn.Identity(), (3,), norms=L1_LINF).bound == 1.0


def test_unsupported_norm_pairs_are_refused_by_name():
    with pytest.raises(InvalidInput, match="linf->l2"):
        certify(nn.ReLU(), (3,), norms=Norms(math.inf, 2.0))
    assert [str(pair) for pair in needed_norms(L2)] == ["l2->l2"]


def test_a_missing_gain_is_refused_and_not_taken_as_one():
    graph = trace(nn.Linear(3, 3), (3,))
    with pytest.raises(InvalidInput, match="no gain covers"):
        node_bounds(graph, (), L2)


def test_a_product_too_large_for_a_float_is_refused():
    layers = [nn.Linear(1, 1, bias=False, dtype=torch.float64) for _ in range(3)]
    for layer in layers:
        layer.weight.data.fill_(1e200)
    model = nn.Sequential(*(m for layer in layers for m in (layer, nn.ReLU())))
    with pytest.raises(NotFinite, match="larger than any float64"):
        certify(model, (1,))


@given(st.fractions(min_value=0))
@settings(deadline=None)
def test_rational_roots_and_floats_are_rounded_up_and_barely(value: Fraction):
    root = sqrt_up(value)
    assert root * root >= value
    assert root * root <= value * (1 + Fraction(1, 2**60)) + Fraction(1, 2**126)
    up = round_up(value)
    assert Fraction(up) >= value
    assert up == 0.0 or Fraction(math.nextafter(up, 0.0)) < value


def test_gains_of_paths_are_used_only_from_their_first_node():
    graph = trace(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), (2,))
    first, second = (node.name for node in graph if isinstance(node, Affine))
    gains = [Gain((first,), L2, 3.0), Gain((second,), L2, 5.0)]
    assert node_bounds(graph, gains, L2)[second] == 15.0
    assert node_bounds(graph, [*gains, Gain((first, second), L2, 7.0)], L2)[second] == 7.0


def test_refusals_share_one_base_class():
    with pytest.raises(LipcertError):
        certify(nn.LayerNorm(3), (3,))
