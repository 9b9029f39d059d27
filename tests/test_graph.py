"""Graphs refuse what cannot be one, replay what they say, and have a digest that sees everything."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lipcert.errors import InvalidInput
from lipcert.graph import Activation, Add, Affine, Concat, Graph, Input, Node, Opaque, digest, rename, sources
from lipcert.linear import Dense, Diagonal, Reshape
from lipcert.norms import L1, L2
from lipcert.trace import trace
from tests.cases import MAPS, NETWORKS, Case

INPUT = Input("input", (2,))
EYE = Dense(torch.eye(2, dtype=torch.float64), (2,))


def slope(low: float, high: float) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(low, dtype=torch.float64), torch.tensor(high, dtype=torch.float64)


def small() -> list[Node]:
    return [
        INPUT,
        Affine("a", "input", EYE, torch.zeros(2, dtype=torch.float64)),
        Activation("r", "a", (2,), "leaky_relu", {"negative_slope": 0.5}, slope(0.5, 1.0), torch.relu),
        Opaque("o", "r", (2,), "softmax", {"dim": 0}, {L2: 0.5, L1: 0.5}, lambda x: x.softmax(1)),
        Add("s", ("o", "a"), (2,)),
        Concat("c", ("s", "input"), 0, (4,)),
    ]


def test_nodes_know_what_they_read():
    assert [sources(node) for node in small()] == [(), ("input",), ("a",), ("r",), ("o", "a"), ("s", "input")]
    graph = Graph(tuple(small()))
    assert graph.readers() == {"input": ("a", "c"), "a": ("r", "s"), "r": ("o",), "o": ("s",), "s": ("c",), "c": ()}
    assert graph["s"] is graph.nodes[4]
    assert (graph.input.name, graph.output.name) == ("input", "c")
    with pytest.raises(KeyError):
        graph["nowhere"]


@pytest.mark.parametrize(
    "nodes",
    [
        [Affine("a", "input", EYE, None)],
        [INPUT, Input("other", (2,))],
        [INPUT, rename(INPUT, "input")],
        [INPUT, Affine("input", "input", EYE, None)],
        [INPUT, Affine("a", "later", EYE, None)],
        [Input("input", (3,)), Affine("a", "input", EYE, None)],
        [INPUT, Activation("r", "input", (3,), "relu", {}, slope(0, 1), torch.relu)],
        [INPUT, Add("s", ("input",), (2,))],
        [INPUT, Add("s", ("input", "input"), (3,))],
        [INPUT, Concat("c", ("input", "input"), 0, (3,))],
        [Input("input", (0,))],
    ],
)
def test_inconsistent_nodes_are_refused(nodes: list[Node]):
    with pytest.raises(InvalidInput):
        Graph(tuple(nodes))


def test_replay_does_what_the_nodes_say():
    x = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    expected = torch.cat([torch.relu(x).softmax(1) + x, x], 1)
    assert torch.equal(Graph(tuple(small())).replay(x), expected)
    with pytest.raises(InvalidInput, match="expects"):
        Graph(tuple(small())).replay(torch.zeros(1, 3))


CHANGES: dict[str, Callable[[list[Node]], Node]] = {
    "weight": lambda nodes: dataclasses.replace(nodes[1], map=Dense(EYE.weight * (1 + 2**-52), (2,))),
    "kind of map": lambda nodes: dataclasses.replace(nodes[1], map=Diagonal(torch.ones(2, dtype=torch.float64), (2,))),
    "bias": lambda nodes: dataclasses.replace(nodes[1], bias=torch.ones(2, dtype=torch.float64)),
    "no bias": lambda nodes: dataclasses.replace(nodes[1], bias=None),
    "activation": lambda nodes: dataclasses.replace(nodes[2], function="elu"),
    "parameter": lambda nodes: dataclasses.replace(nodes[2], parameters={"negative_slope": 0.25}),
    "slope": lambda nodes: dataclasses.replace(nodes[2], slope=slope(0.25, 1.0)),
    "source": lambda nodes: dataclasses.replace(nodes[2], source="input"),
    "gain": lambda nodes: dataclasses.replace(nodes[3], gains={L2: 0.6, L1: 0.5}),
    "order": lambda nodes: dataclasses.replace(nodes[5], sources=("input", "s")),
    "sources": lambda nodes: dataclasses.replace(nodes[4], sources=("a", "a")),
    "name": lambda nodes: rename(nodes[5], "d"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_digest_sees_every_change(name: str):
    nodes = small()
    changed = CHANGES[name](nodes)
    position = next(i for i, node in enumerate(nodes) if node.name == changed.name or (name == "name" and i == 5))
    other = [*nodes[:position], changed, *nodes[position + 1 :]]
    assert Graph(tuple(other)).digest() != Graph(tuple(nodes)).digest()


def test_the_digest_is_that_of_document_and_arrays_and_repeats():
    graph = Graph(tuple(small()))
    assert digest(*graph.document()) == graph.digest() == Graph(tuple(small())).digest()


@pytest.mark.parametrize("build", MAPS.values(), ids=MAPS)
def test_every_map_is_described_by_its_arrays_exactly(build: Callable[[], Any]):
    linear = build()
    graph = Graph((Input("input", linear.in_shape), Affine("a", "input", linear, None)))
    document, arrays = graph.document()
    assert document["nodes"][1]["map"]["out_shape"] == list(linear.out_shape)
    for array in arrays.values():
        assert array.dtype in (np.float32, np.float64, np.int64)
    weight = getattr(linear, "weight", None)
    if weight is not None:
        assert np.array_equal(arrays["a.weight"].astype(np.float64), weight.numpy())


def test_weights_are_stored_short_only_where_that_is_exact():
    short, long = torch.tensor([[0.5]], dtype=torch.float64), torch.tensor([[0.1]], dtype=torch.float64)
    for weight, dtype in ((short, np.float32), (long, np.float64)):
        graph = Graph((Input("input", (1,)), Affine("a", "input", Dense(weight, (1,)), None)))
        assert graph.document()[1]["a.weight"].dtype == dtype


def test_two_tensors_under_one_key_are_refused():
    declared = Activation(
        "a", "input", (2,), "declared:me", {"bias": torch.ones(2, dtype=torch.float64)}, slope(0, 1), torch.relu
    )
    inner = Affine("a.bias", "a", Reshape((2,), (2,)), torch.ones(2, dtype=torch.float64))
    Graph((INPUT, declared, inner)).document()
    clash = dataclasses.replace(declared, parameters={"bias.bias": torch.ones(2, dtype=torch.float64)})
    with pytest.raises(InvalidInput, match="rename"):
        Graph((INPUT, clash, inner)).document()


@pytest.mark.parametrize("case", NETWORKS.values(), ids=NETWORKS)
def test_the_digest_of_a_network_repeats_and_sees_a_weight_change(case: Case):
    model = case.model()
    first = trace(model, case.input_shape).digest()
    assert first == trace(case.model(), case.input_shape).digest()
    weights = [m.weight for m in model.modules() if type(m) in (nn.Linear, nn.Conv2d) and not isinstance(m.weight, str)]
    if weights and weights[0].is_leaf:
        weights[0].data.view(-1)[0] += 0.5
        assert trace(model, case.input_shape).digest() != first


def test_promoting_a_model_to_double_keeps_its_digest():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.PReLU()).eval()
    assert trace(model, (3,)).digest() == trace(model.double(), (3,)).digest()
