"""Decisions on balls: linear classifiers in closed form, attacks inside, never less than what one constant proves."""

import itertools
import math

import pytest
import torch
from torch import nn

from lipcert import margins, trace
from lipcert.certifiers import Product
from lipcert.errors import InvalidInput, NotFinite
from lipcert.nearby import decided_within
from lipcert.nn import FullSort
from lipcert.robustness import certified_radii


def network(seed: int, *widths: int) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
    return nn.Sequential(*[part for layer in layers for part in (layer, nn.ReLU())][:-1]).double()


def test_of_a_linear_classifier_it_is_decided_up_to_the_distance_of_the_boundary():
    model = network(0, 4, 3)
    weight, bias = model[0].weight.detach(), model[0].bias.detach()
    x = torch.randn(6, 4, dtype=torch.float64)
    for sample in x:
        logits = weight @ sample + bias
        i = int(logits.argmax())
        others = [j for j in range(3) if j != i]
        edge = min(float((logits[i] - logits[j]) / (weight[i] - weight[j]).norm()) for j in others)
        assert bool(decided_within(model, sample[None], edge * 0.999999).proved)
        assert not bool(decided_within(model, sample[None], edge * 1.000001).proved)


@pytest.mark.parametrize("seed", range(3))
def test_no_attack_inside_changes_a_proved_decision(seed: int):
    model = network(seed, 3, 12, 12, 4)
    x = torch.randn(8, 3, dtype=torch.float64)
    for radius in (0.05, 0.4):
        found = decided_within(model, x, radius, by=Product())
        away = torch.randn(400, 8, 3, dtype=torch.float64)
        points = x + radius * away / away.norm(dim=2, keepdim=True)
        with torch.no_grad():
            held = (model(points.reshape(-1, 3)).argmax(1).reshape(400, 8) == found.classes).all(0)
        assert bool((held | ~found.proved).all())


def test_it_proves_whatever_a_constant_of_all_inputs_proves():
    model = network(1, 3, 12, 12, 4)
    x = torch.randn(8, 3, dtype=torch.float64)
    graph = trace(model, (3,))
    radii = certified_radii(graph, margins(graph, Product()), x).radii
    for sample, radius in zip(x, radii.tolist(), strict=True):
        if radius > 0.0:
            assert bool(decided_within(graph, sample[None], 0.999 * radius).proved)


def test_constants_decide_where_ranges_do_not():
    """Sorting ten at once loses all linear relations of ranges, and stretches nothing."""
    torch.manual_seed(0)
    layers = [nn.Linear(10, 10) for _ in range(4)]
    for layer in layers:
        nn.init.orthogonal_(layer.weight)
    model = nn.Sequential(*[part for layer in layers for part in (layer, FullSort())][:-1]).double()
    x = torch.randn(6, 10, dtype=torch.float64)
    with torch.no_grad():
        top = model(x).topk(2).values
    margin = top[:, 0] - top[:, 1]
    sample = int(margin.argmax())
    found = decided_within(model, x[sample : sample + 1], 0.7 * float(margin[sample]) * math.sqrt(0.5))
    assert (found.by_ranges.tolist(), found.by_constants.tolist()) == ([False], [True])


def test_ties_and_points_on_the_edge_are_not_decided():
    model = nn.Flatten()
    found = decided_within(model, torch.tensor([[1.0, 1.0], [2.0, 1.0]]), 0.0)
    assert found.proved.tolist() == [False, True]
    assert not bool(decided_within(model, torch.tensor([[2.0, 1.0]]), math.sqrt(0.5) * (1 + 1e-9)).proved)


def test_a_gate_is_decided_on_a_ball():
    assert bool(decided_within(nn.Sequential(nn.Linear(2, 4), nn.GLU()), torch.randn(1, 2), 1e-6).proved)


@pytest.mark.parametrize(
    ("x", "radius", "error"),
    [
        (torch.ones(2, 3), -1.0, InvalidInput),
        (torch.ones(2, 3, dtype=torch.int64), 1.0, InvalidInput),
        (torch.full((1, 2), math.nan), 1.0, NotFinite),
        (torch.ones(0, 2), 1.0, InvalidInput),
        (torch.ones(1, 3, 2), 1.0, InvalidInput),
    ],
    ids=["radius", "integers", "nan", "nothing", "shape"],
)
def test_what_is_no_sample_is_refused(x, radius: float, error):
    with pytest.raises(error):
        decided_within(trace(nn.Linear(2, 3), (2,)), x, radius)
