"""Convolutional parts on a torus: the embedding's law, bounds between witnesses and norms, both proofs, refusals."""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lipcert import sandwich, trace, witness
from lipcert.certificate import Block, Certificate, Multipliers, Validity
from lipcert.certifiers import Auto, FourierLipSDP, LipSDP, Product
from lipcert.errors import CheckFailed, InvalidInput, UnsupportedOperation
from lipcert.graph import Activation, Affine, Graph, Input
from lipcert.linear import Conv, Dense, Factor, Reshape, Separable, dense
from lipcert.lmi import head, holds, normal_form, tighten, waves
from lipcert.lmi.any_size import prove_any_size
from lipcert.lmi.layout import layout
from lipcert.lmi.normal_form import Signal, between
from lipcert.lmi.proof import Proof
from lipcert.lmi.taps import half_spectrum, kernel
from lipcert.lmi.torus import TorusForm, torus_form
from lipcert.lmi.waves import prove_on
from lipcert.nn import MaxMin
from lipcert.norms import L2
from lipcert.recheck import check, check_float64
from lipcert.solvers import Coupled, Exchange, InteriorPoint, Recursion
from lipcert.solvers.coupled import largest_sum, smoothed
from lipcert.witness import Budget
from tests.cases import Join, Residual, settled

exact = importlib.import_module("lipcert.check")


class Shortcut(nn.Module):
    """``body(x) + side(x)``."""

    def __init__(self, body: nn.Module, side: nn.Module) -> None:
        super().__init__()
        self.body, self.side = body, side

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.side(x)


def conv(a: int, b: int, k: int = 3, stride: int = 1, **options: object) -> nn.Conv2d:
    return nn.Conv2d(a, b, k, stride, options.pop("padding", k // 2), **options)  # type: ignore[arg-type]


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "plain": (lambda: nn.Sequential(conv(1, 3), nn.ReLU(), conv(3, 2), nn.ReLU(), conv(2, 2)), (1, 5, 4)),
    "strides": (lambda: nn.Sequential(conv(2, 3, 3, 2), nn.ReLU(), conv(3, 3), nn.ReLU(), conv(3, 2, 3, 2)), (2, 8, 7)),
    "even": (lambda: nn.Sequential(conv(1, 3, 4, 2, padding=1), nn.LeakyReLU(0.3), conv(3, 2, 2)), (1, 6, 6)),
    "pooled": (lambda: nn.Sequential(conv(1, 3), nn.SiLU(), nn.AvgPool2d(2), conv(3, 2), nn.GELU()), (1, 6, 6)),
    "padded pool": (lambda: nn.Sequential(conv(1, 2), nn.ReLU(), nn.AvgPool2d(3, 2, 1), nn.ReLU()), (1, 5, 5)),
    "grouped": (
        lambda: nn.Sequential(conv(2, 4, groups=2), nn.Tanh(), conv(4, 4, dilation=2, padding=2, groups=4)),
        (2, 5, 5),
    ),
    "upward": (
        lambda: nn.Sequential(nn.ConvTranspose2d(2, 3, 4, 2, 1), nn.ReLU(), nn.Upsample(scale_factor=2), conv(3, 1)),
        (2, 3, 3),
    ),
    "down and up": (
        lambda: nn.Sequential(conv(1, 2, 3, 2), nn.ReLU(), nn.ConvTranspose2d(2, 2, 3, 2, 1, 1), nn.ReLU(), conv(2, 1)),
        (1, 4, 6),
    ),
    "around": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 3, 3, 1, 1, padding_mode="circular"),
            nn.LeakyReLU(0.2),
            nn.Conv1d(3, 2, 3, 2, 1, padding_mode="circular"),
        ),
        (2, 8),
    ),
    "residual": (
        lambda: nn.Sequential(
            conv(1, 3),
            nn.ReLU(),
            Residual(conv(3, 3), nn.BatchNorm2d(3), nn.ReLU(), conv(3, 3), nn.BatchNorm2d(3)),
            nn.ReLU(),
            Shortcut(nn.Sequential(conv(3, 4, 3, 2), nn.ReLU(), conv(4, 4)), conv(3, 4, 1, 2)),
            nn.ReLU(),
            conv(4, 2, 1),
        ),
        (1, 6, 6),
    ),
    "joined": (lambda: nn.Sequential(Join(conv(1, 2), conv(1, 2, 1)), nn.PReLU(4), conv(4, 2)), (1, 4, 5)),
    "three": (lambda: nn.Sequential(nn.Conv3d(1, 2, 2), nn.ReLU(), nn.Conv3d(2, 1, 3, 1, 1)), (1, 3, 3, 3)),
}


def made(build: Callable[[], nn.Module], shape: tuple[int, ...], seed: int) -> tuple[nn.Module, Graph]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = settled(build()).eval()
    return model, trace(model, shape)


def built(name: str, seed: int = 0) -> tuple[nn.Module, Graph]:
    return made(*NETS[name], seed)


def on_torus(graph: Graph) -> TorusForm:
    return torus_form(graph, graph.input.name, graph.output.name)


def claim(graph: Graph, torus: tuple[int, ...] | None = None) -> Certificate:
    """What a torus proves, whether or not norms prove more."""
    form = torus_form(graph, graph.input.name, graph.output.name, torus)
    batch = form.at(form.frequencies())
    value, lam = prove_on(form, batch, InteriorPoint(1e-5)(batch).multipliers, Recursion()(batch).multipliers)
    numbers = {name: tuple(values.tolist()) for name, values in lam.items()}
    block = Block(graph.input.name, graph.output.name, value, numbers, form.torus)
    return Certificate(value, L2, Validity.RIGOROUS, "test", graph.digest(), Multipliers((block,)))


def spread(graph: Graph, lam: dict[str, Tensor]) -> dict[str, Tensor]:
    """Multipliers per channel and phase as one for each neuron."""
    phases = layout(graph, graph.input.name, graph.output.name).phases
    found = {}
    for name, values in lam.items():
        channels, *sizes = graph[name].shape
        table = values.reshape(channels, *phases[name])
        index = torch.meshgrid(*(torch.arange(n) % p for n, p in zip(sizes, phases[name], strict=True)), indexing="ij")
        found[name] = table[(slice(None), *index)].reshape(-1)
    return found


@pytest.mark.parametrize("name", NETS)
@given(seed=st.integers(0, 2**16), wide=st.floats(0.0, 2.0))
@settings(max_examples=6, deadline=None)
def test_what_holds_at_every_frequency_holds_for_every_neuron(name: str, seed: int, wide: float):
    _, graph = built(name, seed)
    form = on_torus(graph)
    batch = form.at(form.frequencies())
    generator = torch.Generator().manual_seed(seed)
    lam = {
        n: values * (1.2 + wide * torch.rand(values.shape, generator=generator))
        for n, values in Recursion()(batch).multipliers.items()
    }
    rho = tighten(batch, lam)
    here = tighten(normal_form(graph), spread(graph, lam))
    assert here <= rho * (1 + 1e-9)
    if name == "around" and rho < math.inf:
        assert here == pytest.approx(rho, rel=1e-9)


@pytest.mark.parametrize("name", NETS)
def test_bounds_lie_between_witnesses_and_norms_and_both_checkers_accept(name: str):
    model, graph = built(name)
    certificate = claim(graph)
    best = InteriorPoint()(normal_form(graph))
    assert best.dual**0.5 * (1 - 1e-9) <= certificate.bound
    assert FourierLipSDP()(graph).bound <= min(Product()(graph).bound, certificate.bound * (1 + 1e-4))
    assert witness(model, graph.input.shape, budget=Budget(seconds=0.5)).ratio <= certificate.bound
    read = Certificate.from_json(certificate.to_json())
    assert read == replace(certificate, evidence=read.evidence)
    check_float64(read, graph)
    check(read, graph)


def test_on_a_circle_the_bound_is_that_of_all_neurons():
    _, graph = built("around")
    form = on_torus(graph)
    here = InteriorPoint(1e-7)(form.at(form.frequencies()))
    assert here.dual**0.5 * (1 - 1e-9) >= InteriorPoint(1e-7)(normal_form(graph)).dual ** 0.5 * (1 - 1e-6)
    assert FourierLipSDP()(graph).bound == pytest.approx(LipSDP()(graph).bound, rel=2e-4)


def test_the_larger_the_image_the_less_the_channels_cost():
    torch.manual_seed(0)
    model = nn.Sequential(conv(1, 2), nn.ReLU(), conv(2, 2), nn.ReLU(), conv(2, 1)).eval()
    ratios = []
    for size in (3, 6, 12):
        graph = trace(model, (1, size, size))
        ratios.append(FourierLipSDP()(graph).bound / LipSDP()(graph).bound)
    assert ratios[0] > ratios[1] > ratios[2] >= 1 - 1e-4
    assert ratios[2] <= 1.25


@pytest.mark.parametrize("name", ["plain", "strides", "residual", "around"])
def test_tampered_certificates_are_rejected_by_both_checkers(name: str):
    _, graph = built(name)
    certificate = claim(graph)
    assert isinstance(certificate.evidence, Multipliers)
    (block,) = certificate.evidence.blocks
    first = next(iter(block.multipliers))
    lowered = block.value * (1 - 1e-3)
    shrunk = {**block.multipliers, first: tuple(1e-3 * value for value in block.multipliers[first])}
    short = {**block.multipliers, first: block.multipliers[first][:-1]}
    missing = {name: values for name, values in block.multipliers.items() if name != first}
    small = tuple(size - 1 for size in block.torus)
    forged = {
        "value": (replace(block, value=lowered), lowered),
        "multiplier": (replace(block, multipliers=shrunk), math.inf),
        "count": (replace(block, multipliers=short), math.inf),
        "missing": (replace(block, multipliers=missing), math.inf),
        "small torus": (replace(block, torus=small), math.inf),
        "tiny torus": (replace(block, torus=(1,) * len(block.torus)), math.inf),
        "fewer dimensions": (replace(block, torus=block.torus[:-1]), math.inf),
        "more dimensions": (replace(block, torus=(*block.torus, 8)), math.inf),
    }
    for what, (forgery, bound) in forged.items():
        wrong = replace(certificate, evidence=Multipliers((forgery,)), bound=min(bound, certificate.bound))
        for proved in (check, check_float64):
            with pytest.raises(CheckFailed):
                raise AssertionError(f"{what}: {proved(wrong, graph)}")


def test_a_larger_torus_proves_the_same_part():
    _, graph = built("plain")
    certificate = claim(graph, (9, 8))
    for proved in (check, check_float64):
        proved(certificate, graph)


@pytest.mark.parametrize("torus", [[], [0], [-3, 5], ["5"], [True, 5], 5, None, [5.0, 5]])
def test_a_torus_is_a_list_of_sizes(torus: object):
    _, graph = built("plain")
    document = json.loads(claim(graph).to_json())
    document["evidence"]["blocks"][0]["torus"] = torus
    with pytest.raises(InvalidInput, match="not a lipcert-certificate"):
        Certificate.from_json(json.dumps(document))


@given(st.lists(st.integers(1, 6), min_size=1, max_size=3))
@settings(max_examples=25, deadline=None)
def test_half_the_spectrum_and_its_opposite_are_all_of_it(torus: list[int]):
    half = [tuple(row) for row in half_spectrum(tuple(torus)).tolist()]
    opposite = {tuple(-a % n for a, n in zip(row, torus, strict=True)) for row in half}
    assert len(half) == len(set(half))
    assert len({*half, *opposite}) == math.prod(torus)
    real = sum(row == tuple(-a % n for a, n in zip(row, torus, strict=True)) for row in half)
    assert 2 * len(half) - real == math.prod(torus)


REFUSED = {
    "reflected": lambda: nn.Sequential(conv(1, 2, padding_mode="reflect"), nn.ReLU()),
    "padded twice": lambda: nn.Sequential(nn.ReLU(), Residual(conv(1, 1), nn.ReLU(), conv(1, 1)), conv(1, 1)),
    "flattened": lambda: nn.Sequential(conv(1, 2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 2), nn.ReLU()),
    "sorting": lambda: nn.Sequential(conv(1, 2), MaxMin(dim=1), conv(2, 1)),
    "maximum": lambda: nn.Sequential(conv(1, 2), nn.ReLU(), nn.MaxPool2d(2)),
    "bilinear": lambda: nn.Sequential(conv(1, 2), nn.ReLU(), nn.Upsample(scale_factor=2, mode="bilinear")),
    "own average": lambda: nn.Sequential(nn.ReLU(), nn.AvgPool2d(3, 1, 1, count_include_pad=False)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_shift_invariant_stands_on_no_torus_and_is_bounded_otherwise(name: str):
    torch.manual_seed(0)
    model = REFUSED[name]().eval()
    graph = trace(model, (1, 6, 6))
    with pytest.raises(UnsupportedOperation):
        on_torus(graph)
    certificate = FourierLipSDP()(graph)
    assert certificate.bound <= Product()(graph).bound
    assert witness(model, (1, 6, 6), budget=Budget(seconds=0.3)).ratio <= certificate.bound
    check_float64(certificate, graph)


@pytest.mark.parametrize("torus", [(5, 6), (6, 5), (6, 6)])
def test_a_torus_too_small_is_refused_with_what_it_needs(torus: tuple[int, int]):
    graph = trace(nn.Sequential(conv(1, 1), nn.ReLU(), conv(1, 1)), (1, 6, 6))
    with pytest.raises(UnsupportedOperation, match="at least 7"):
        torus_form(graph, graph.input.name, graph.output.name, torus)


def test_a_window_is_found_only_where_there_is_one():
    graph = trace(nn.AvgPool2d(3, 2, 1), (1, 7, 7))
    linear = graph.output.map  # type: ignore[union-attr]
    assert isinstance(linear, Separable)
    found = kernel(linear, "pool")
    assert found.stride == (2, 2)
    assert sorted(found.offsets[:, 0].unique().tolist()) == [-1, 0, 1]
    assert float(dense(linear).sum(1).max()) == pytest.approx(1.0)
    with pytest.raises(UnsupportedOperation, match="same window"):
        kernel(trace(nn.AvgPool2d(3, 2, 1, count_include_pad=False), (1, 7, 7)).output.map, "p")  # type: ignore[union-attr]


def test_sizes_are_above_entries_whatever_the_signs_of_slopes_and_maps():
    """Fixed slopes of -1, as moduli have on a domain, and a head that takes differences of channels."""
    weight = torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(0)).double()
    slope = torch.tensor([-1.0, 0.5, 1.0]).double().reshape(3, 1, 1)
    straight = Activation("b", "a", (3, 5, 5), "declared:a test", {}, (slope, slope), torch.relu)
    same = {"out_sizes": (5, 5), "stride": (1, 1), "padding": ((1, 1),) * 2, "dilation": (1, 1), "groups": 1}
    same["padding_mode"] = "zeros"
    alone = {**same, "padding": ((0, 0),) * 2}
    nodes = (
        Input("x", (2, 5, 5)),
        Affine("a", "x", Conv(weight, (2, 5, 5), **same), None),
        straight,
        Affine("c", "b", Conv(weight[:2, :, :1, :1].reshape(1, 4, 1, 1)[:, :3], (3, 5, 5), **alone), None),
    )
    (block,) = torus_form(Graph(nodes), "x", "c").output.blocks.values()
    assert bool((block.sizes >= block.values.abs() * (1 - 1e-12)).all())

    differences = Separable((Factor(torch.tensor([[1, 1], [1, -1]]), 1), None, None), (2, 2, 2))
    maps = [differences, Reshape((2, 2, 2), (8,)), Dense(torch.ones(1, 8).double(), (8,))]
    (block,) = head.head_field(maps, (2, 2, 2), (1, 1), "head").blocks.values()
    assert float(block.values.abs().max()) == 2.0  # 1 + 1 of the first channel, 1 - 1 of the second
    assert bool((block.sizes == 2.0).all())


def test_a_batch_is_solved_by_the_matrices_that_matter():
    torch.manual_seed(3)
    model = nn.Sequential(conv(1, 4), nn.ReLU(), conv(4, 4), nn.ReLU(), conv(4, 4), nn.ReLU(), conv(4, 2)).eval()
    graph = trace(model, (1, 11, 11))
    form = on_torus(graph)
    batch = form.at(form.frequencies())
    found, whole = Exchange()(batch), InteriorPoint(1e-6)(batch)
    assert found.rho == pytest.approx(tighten(batch, found.multipliers), rel=1e-12)
    assert found.dual <= whole.rho * (1 + 1e-9)
    assert whole.dual * (1 - 1e-9) <= found.rho <= found.dual * (1 + 2.1e-4)


def test_an_inverse_network_is_cut_where_its_state_is_padded_again():
    torch.manual_seed(0)
    blocks = [Residual(conv(2, 4), nn.ELU(), conv(4, 2)) for _ in range(2)]
    graph = trace(nn.Sequential(*blocks).eval(), (2, 5, 5))
    certificate = FourierLipSDP()(graph)
    assert isinstance(certificate.evidence, Multipliers)
    assert len(certificate.evidence.blocks) == 2
    product = math.prod(block.value for block in certificate.evidence.blocks)
    assert certificate.bound == pytest.approx(product, rel=1e-12)
    assert certificate.bound < Product()(graph).bound
    check(certificate, graph)


HEADED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "flat": (
        lambda: nn.Sequential(conv(1, 3), nn.ReLU(), conv(3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(40, 3)),
        (1, 5, 4),
    ),
    "strides": (
        lambda: nn.Sequential(conv(2, 3, 3, 2), nn.LeakyReLU(0.1), conv(3, 4, 3, 2), nn.Flatten(), nn.Linear(16, 1)),
        (2, 7, 8),
    ),
    "mean": (
        lambda: nn.Sequential(
            conv(1, 3), nn.ReLU(), conv(3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)
        ),
        (1, 5, 5),
    ),
    "around": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 3, 3, 1, 1, padding_mode="circular"),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(18, 2),
            nn.Linear(2, 2),
        ),
        (2, 6),
    ),
}


def headed(name: str, seed: int = 0) -> tuple[nn.Module, Graph]:
    return made(*HEADED[name], seed)


@pytest.mark.parametrize("name", HEADED)
@given(seed=st.integers(0, 2**16), wide=st.floats(0.0, 1.0))
@settings(max_examples=5, deadline=None)
def test_a_head_couples_frequencies_as_it_couples_neurons(name: str, seed: int, wide: float):
    _, graph = headed(name, seed)
    form = on_torus(graph)
    every = form.frequencies()
    generator = torch.Generator().manual_seed(seed)
    trunk = form.at(every)
    start = Recursion()(trunk)
    relative = {
        n: lam / start.rho * (1.0 + wide * torch.rand(lam.shape, generator=generator))
        for n, lam in start.multipliers.items()
    }
    rho = largest_sum(form.headed_at(every), form.weights(every), relative)
    lam = {name: rho * values for name, values in spread(graph, relative).items()}
    here = tighten(normal_form(graph), lam)
    assert here <= rho * (1 + 1e-9) or rho == math.inf
    if name == "around" and rho < math.inf:
        # With these multipliers the whole constraint is tight at rho, on a circle exactly.
        assert tighten(normal_form(graph), {n: v * (1 - 1e-3) for n, v in lam.items()}) != pytest.approx(0.0)
        assert here == pytest.approx(rho, rel=1e-7)


@pytest.mark.parametrize("name", HEADED)
def test_a_trunk_and_its_head_are_one_constraint_that_both_checkers_prove(name: str):
    model, graph = headed(name)
    certificate = FourierLipSDP(dense=0)(graph)
    assert isinstance(certificate.evidence, Multipliers)
    (block,) = certificate.evidence.blocks
    assert (block.source, block.target, bool(block.torus)) == (graph.input.name, graph.output.name, True)
    assert FourierLipSDP()(graph).bound <= certificate.bound * (1 + 1e-4)  # apart, it is one dense constraint
    best = InteriorPoint()(normal_form(graph))
    assert best.dual**0.5 * (1 - 1e-9) <= certificate.bound < Product()(graph).bound
    assert witness(model, graph.input.shape, budget=Budget(seconds=0.3)).ratio <= certificate.bound
    for proved in (check, check_float64):
        proved(Certificate.from_json(certificate.to_json()), graph)
    first = next(iter(block.multipliers))
    lowered = block.value * (1 - 1e-3)
    for forgery in (
        replace(block, value=lowered),
        replace(block, multipliers={**block.multipliers, first: tuple(1e-3 * v for v in block.multipliers[first])}),
        replace(block, torus=tuple(size - 1 for size in block.torus)),
    ):
        wrong = replace(certificate, evidence=Multipliers((forgery,)), bound=min(forgery.value, certificate.bound))
        for proved in (check, check_float64):
            with pytest.raises(CheckFailed):
                proved(wrong, graph)


def test_the_gradient_of_the_coupled_eigenvalue_is_its_derivative():
    _, graph = headed("flat")
    form = on_torus(graph)
    every = form.frequencies()
    full, weights = form.headed_at(every), form.weights(every)
    start = Recursion()(form.at(every))
    theta = torch.cat([0.5 * lam / start.rho for lam in start.multipliers.values()]).log()
    function = smoothed(full, weights, 5.0)
    point = function(theta)
    assert point is not None
    for k in range(len(theta)):
        step = torch.zeros_like(theta)
        step[k] = 1e-5
        ahead, behind = function(theta + step), function(theta - step)
        assert ahead is not None
        assert behind is not None
        assert (ahead.value - behind.value) / 2e-5 == pytest.approx(float(point.gradient[k]), abs=1e-7)


def test_more_descent_never_loosens():
    _, graph = headed("strides")
    form = on_torus(graph)
    every = form.frequencies()
    trunk = Recursion()(form.at(every))
    start = {name: lam / trunk.rho for name, lam in trunk.multipliers.items()}
    found = [Coupled(n)(form.headed_at(every), form.weights(every), start) for n in (0, 3, 100)]
    bounds = [solution.rho for solution in found if solution is not None]
    assert len(bounds) == 3
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[2] < bounds[0]


def test_a_torus_of_absurd_size_is_too_large_and_costs_nothing():
    _, graph = built("plain")
    certificate = claim(graph)
    assert isinstance(certificate.evidence, Multipliers)
    (block,) = certificate.evidence.blocks
    wrong = replace(certificate, evidence=Multipliers((replace(block, torus=(10**6, 10**6)),)))
    with pytest.raises(CheckFailed, match="multiply-adds"):
        check(wrong, graph)


def small(model: nn.Module) -> nn.Module:
    """Weights so small that multipliers of one prove any bound of a few units, where the embedding holds."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.05)
    return model.eval()


def careless(graph: Graph, torus: tuple[int, ...], target: str = "") -> Certificate:
    """A claim far above the constant, on a torus of this size, without a look at whether it holds the network."""
    target = target or graph.output.name
    inner = [node for node in between(graph, graph.input.name, target) if isinstance(node, Activation)]
    numbers = {node.name: (1.0,) * node.shape[0] for node in inner}
    block = Block(graph.input.name, target, 100.0, numbers, torus)
    return Certificate(1e6, L2, Validity.RIGOROUS, "careless", graph.digest(), Multipliers((block,)))


def one_sided(before: int) -> Graph:
    """A convolution with two taps that pads on one side only, twice."""
    graph = trace(small(nn.Sequential(nn.Conv1d(1, 2, 2), nn.ReLU(), nn.Conv1d(2, 1, 2))), (1, 5))
    nodes = []
    for node in graph:
        if isinstance(node, Affine):
            pad = (1, 0) if before else (0, 1)
            into = (node.map.in_shape[0], 5)
            nodes.append(replace(node, map=replace(node.map, in_shape=into, out_sizes=(5,), padding=(pad,))))
        else:
            nodes.append(replace(node, shape=(node.shape[0], 5)))
    return Graph(tuple(nodes))


CARELESS: dict[str, tuple[Callable[[], Graph], tuple[int, ...], str]] = {
    "fits": (lambda: one_sided(0), (6,), ""),
    "fits before": (lambda: one_sided(1), (6,), ""),
    "reaches around at the end": (lambda: one_sided(0), (5,), "around"),
    "reaches around at the start": (lambda: one_sided(1), (5,), "around"),
    "overlaps": (lambda: trace(small(nn.Sequential(nn.Conv1d(1, 1, 1), nn.ReLU())), (1, 5)), (4,), "does not fit"),
    "fits exactly": (lambda: trace(small(nn.Sequential(nn.Conv1d(1, 1, 1), nn.ReLU())), (1, 5)), (5,), ""),
    "circle too large": (
        lambda: trace(small(nn.Sequential(nn.Conv1d(1, 1, 3, 1, 1, padding_mode="circular"), nn.ReLU())), (1, 5)),
        (6,),
        "circles",
    ),
    "padded twice": (
        lambda: trace(small(nn.Sequential(nn.Conv1d(1, 2, 1), nn.ReLU(), *[nn.Conv1d(2, 2, 3, 1, 1)] * 2)), (1, 5)),
        (9,),
        "beyond the image",
    ),
    "padded twice, the second time on one side": (  # positions -1 to 5 of 6 are read
        lambda: trace(
            small(nn.Sequential(nn.Conv1d(1, 2, 1), nn.ReLU(), nn.Conv1d(2, 2, 3, 1, 1), nn.Conv1d(2, 2, 3, 2, 1))),
            (1, 6),
        ),
        (5,),
        "beyond the image",
    ),
    "padded, mixed, padded": (
        lambda: trace(
            small(
                nn.Sequential(
                    nn.Conv1d(1, 2, 1),
                    nn.ReLU(),
                    nn.Conv1d(2, 2, 3, 1, 1),
                    nn.Conv1d(2, 2, 1),
                    nn.Conv1d(2, 2, 3, 1, 1),
                )
            ),
            (1, 5),
        ),
        (9,),
        "beyond the image",
    ),
    "transposed after a sum": (
        lambda: trace(
            small(nn.Sequential(nn.ReLU(), nn.Conv1d(1, 2, 3, 1, 1), nn.ConvTranspose1d(2, 1, 3, 1, 1))), (1, 5)
        ),
        (9,),
        "beyond the image",
    ),
    "reflected": (
        lambda: trace(
            small(nn.Sequential(nn.ReLU(), nn.Conv1d(1, 2, 3, 1, 1, padding_mode="reflect"), nn.ReLU())), (1, 5)
        ),
        (9,),
        "same at every position",
    ),
    "sorted": (
        lambda: trace(small(nn.Sequential(nn.Conv1d(1, 2, 1), MaxMin(dim=1), nn.ReLU())), (1, 5)),
        (9,),
        "not shift-invariant",
    ),
}


@pytest.mark.parametrize("name", CARELESS)
def test_a_claim_of_any_height_is_refused_where_the_torus_does_not_hold_the_network(name: str):
    build, torus, why = CARELESS[name]
    graph = build()
    claimed = careless(graph, torus)
    if not why:
        assert check(claimed, graph).bound == claimed.bound
        assert check_float64(claimed, graph).bound == claimed.bound
        return
    with pytest.raises(CheckFailed, match=why):
        check(claimed, graph)
    with pytest.raises(CheckFailed):
        check_float64(claimed, graph)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU])
def test_a_bound_for_every_size_is_above_that_of_each(stride: int, activation: Callable[[], nn.Module]):
    torch.manual_seed(0)
    layers = (
        nn.Conv1d(1, 3, 3, stride, 1),
        activation(),
        nn.Conv1d(3, 2, 3, 1, 1),
        activation(),
        nn.Conv1d(2, 1, 3, 1, 1),
    )
    model = nn.Sequential(*layers).eval()
    graph = trace(model, (1, 12))
    bounds = []
    for grid in (4, 60, 400):
        form = torus_form(graph, graph.input.name, graph.output.name, (max(grid, 7 if stride == 2 else 13),))
        batch = form.at(form.frequencies())
        found = Exchange()(batch)
        bounds.append(prove_any_size(form, batch, found.multipliers))
        assert found.dual**0.5 <= bounds[-1]
    assert bounds[0] > bounds[1] > bounds[2]
    assert bounds[2] <= 1.05 * claim(graph, (400,)).bound
    for size in (3, 20, 57):
        other = trace(model, (1, size))
        here = on_torus(other)
        assert Exchange()(here.at(here.frequencies())).dual ** 0.5 <= bounds[2]
        assert witness(model, (1, size), budget=Budget(seconds=0.2)).ratio <= bounds[2]


def test_a_size_that_is_fixed_has_no_bound_for_every_size():
    for graph in (built("around")[1], headed("flat")[1]):
        form = on_torus(graph)
        with pytest.raises(UnsupportedOperation, match="fix the size"):
            prove_any_size(form, form.at(form.frequencies()), {})


def too_low(graph: Graph) -> Certificate:
    """A claim a tenth below what the multipliers of a trunk with its head prove."""
    certificate = FourierLipSDP(dense=0)(graph)
    assert isinstance(certificate.evidence, Multipliers)
    (block,) = certificate.evidence.blocks
    scaled = {name: tuple(0.81 * value for value in values) for name, values in block.multipliers.items()}
    lower = replace(block, value=0.9 * block.value, multipliers=scaled)
    return replace(certificate, bound=lower.value, evidence=Multipliers((lower,)))


def test_hints_that_flatter_a_claim_prove_nothing(monkeypatch: pytest.MonkeyPatch):
    _, graph = headed("flat")
    claimed = too_low(graph)
    solve, eigvalsh = np.linalg.solve, np.linalg.eigvalsh
    with monkeypatch.context() as patch:  # what is left on the output looks small: then it is not above what it must be
        patch.setattr(np.linalg, "solve", lambda a, b: 0.6 * solve(a, b))
        patch.setattr(waves, "summed", lambda *a: flattered(head.summed(*a)))
        for proved in (check, check_float64):
            with pytest.raises(CheckFailed, match="do not prove"):
                proved(claimed, graph)
    with monkeypatch.context() as patch:  # its sum looks small: then what is required of it is too much
        patch.setattr(np.linalg, "eigvalsh", lambda a: np.minimum(eigvalsh(a), 0.5))
        for proved in (check, check_float64):
            with pytest.raises(CheckFailed, match="do not prove"):
                proved(claimed, graph)


def test_prices_that_add_up_to_too_much_are_refused(monkeypatch: pytest.MonkeyPatch):
    honest = np.linalg.eigvalsh

    def lying(a: np.ndarray) -> np.ndarray:
        return np.minimum(honest(a), 0.5) if sys._getframe(1).f_code.co_name == "_prices" else honest(a)

    monkeypatch.setattr(np.linalg, "eigvalsh", lying)
    weights = np.full(3, 1.0 / 3.0)
    assert waves._prices(np.full((3, 1, 1), 0.4 + 0.0j), weights) is not None
    assert waves._prices(np.full((3, 1, 1), 1.2 + 0.0j), weights) is None


@pytest.mark.parametrize("fails", [0, 1, -1])
def test_every_frequency_has_to_hold_with_a_head(fails: int, monkeypatch: pytest.MonkeyPatch):
    _, graph = headed("flat")
    certificate = FourierLipSDP(dense=0)(graph)
    assert isinstance(certificate.evidence, Multipliers)
    (block,) = certificate.evidence.blocks
    form = on_torus(graph)
    lam = {name: torch.tensor(values, dtype=torch.float64) for name, values in block.multipliers.items()}
    monkeypatch.setattr(waves, "_CHUNK_BYTES", 1)
    assert waves.holds_on(form, lam, block.value)
    answers = [True] * len(waves.chunks(form))
    answers[fails] = False
    told = iter(answers)
    monkeypatch.setattr(waves, "_holds_at", lambda *_: next(told))
    assert not waves.holds_on(form, lam, block.value)


def flattered(found: head.Sum | None) -> head.Sum | None:
    return None if found is None else replace(found, N=0.6 * found.N)


@pytest.mark.parametrize("name", [*NETS, *(f"{name} with head" for name in HEADED)])
def test_both_proofs_look_at_the_same_matrices(name: str, monkeypatch: pytest.MonkeyPatch):
    _, graph = headed(name.removesuffix(" with head")) if name.endswith("head") else built(name)
    form = on_torus(graph)
    batch = form.at(form.frequencies())
    certificate = claim(graph) if form.head is None else FourierLipSDP(dense=0)(graph)
    assert isinstance(certificate.evidence, Multipliers)
    (block,) = certificate.evidence.blocks
    seen: list[np.ndarray] = []

    def look(terms: list, widths: dict[str, int], alike: bool = False) -> bool:
        n = sum(width for variable, width in widths.items() if variable)
        seen.append(exact._floating(iter(terms), widths)[:, :n])
        return alike

    with monkeypatch.context() as patch:
        patch.setattr(exact, "_semidefinite_sum", look)
        check(certificate, graph)
    lam = {name: torch.tensor(values, dtype=torch.float64) for name, values in block.multipliers.items()}
    real = form.real_at(form.frequencies())
    output = real.output if form.head is None else Signal({})
    proof = Proof(replace(real, output=output), waves.twice(lam))
    if form.head is not None:
        size = 2 * form.head.rows
        proof.border("y", np.zeros((len(seen), size, size)), np.zeros((size, size)), form.head_at(form.frequencies()))
    n = batch.inputs + batch.neurons
    proof.H["", ""] = proof.H["", ""] + block.value**2 * np.eye(proof.width[""])
    ends = dict(zip(proof.order, np.cumsum([proof.width[each] for each in proof.order]), strict=True))
    H = np.zeros((len(seen), *[max(ends.values())] * 2))
    for (a, b), part in proof.H.items():
        rows, columns = (slice(ends[each] - proof.width[each], ends[each]) for each in (a, b))
        H[:, rows, columns] = part
        H[:, columns, rows] = np.swapaxes(part, -1, -2)
    assert np.abs(np.stack(seen) - H[:, :, : 2 * n]).max() <= 1e-12 * np.abs(H).max()


@pytest.mark.parametrize("name", ["strides", "residual"])
def test_a_sandwich_holds_on_a_torus(name: str):
    model, graph = built(name)
    found = sandwich(model, graph.input.shape, by=FourierLipSDP(), budget=Budget(seconds=0.3))
    assert found.pattern is not None
    assert found.dual is not None
    assert found.parts == 1
    assert found.witness.ratio <= found.pattern <= found.dual <= found.certificate.bound


def test_a_sandwich_of_more_neurons_than_fit_has_two_slices():
    torch.manual_seed(0)
    model = nn.Sequential(conv(1, 3), nn.ReLU(), conv(3, 2)).eval()
    found = sandwich(model, (1, 64, 64), by=Auto(), budget=Budget(seconds=0.3))
    assert (found.pattern, found.dual, found.parts) == (None, None, 1)
    assert "FourierLipSDP" in found.certificate.method
    assert found.witness.ratio <= found.certificate.bound < Product()(trace(model, (1, 64, 64))).bound


def test_every_frequency_has_to_hold(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(waves, "_CHUNK_BYTES", 1)
    told = []
    for name in NETS:
        _, graph = built(name)
        certificate = claim(graph)
        assert isinstance(certificate.evidence, Multipliers)
        (block,) = certificate.evidence.blocks
        form = on_torus(graph)
        lam = {name: torch.tensor(values, dtype=torch.float64) for name, values in block.multipliers.items()}
        each = [holds(form.real_at(some), waves.twice(lam), 0.999 * block.value) for some in waves.chunks(form)]
        assert len(each) == len(form.frequencies())
        assert waves.holds_on(form, lam, block.value)
        assert not waves.holds_on(form, lam, 0.999 * block.value)
        told.append(each[0])
    assert any(told)
