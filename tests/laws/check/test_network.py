"""Reading a network, node by node, and what does not fit together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from tests.laws.check.built import Malformed, Place, Reject, checker, h, numbers, whole

X = {"kind": "input", "name": "x", "shape": [2, 3]}


def network(*nodes: Any, output: Any = None, form: Any = "lipcert-graph-1", **arrays: Any) -> Any:
    output = output or (nodes[-1]["name"] if nodes and type(nodes[-1]) is dict and "name" in nodes[-1] else "x")
    return checker.read_network({"format": form, "output": output, "nodes": [X, *nodes]}, arrays)


def node(kind: str, name: str, shape: Sequence[int], **fields: Any) -> dict[str, Any]:
    return {"kind": kind, "name": name, "shape": list(shape), **fields}


def dense(name: str, source: str, into: Place, out: Place, bias: Any = None) -> dict[str, Any]:
    linear = {"kind": "dense", "in_shape": list(into), "out_shape": list(out), "weight": f"{name}.w"}
    return node("affine", name, out, source=source, map=linear, bias=bias)


def relu(name: str = "r", source: str = "x", slope: Any = None, shape: Place = (2, 3)) -> dict[str, Any]:
    slope = [h(0), h(1)] if slope is None else slope
    return node("activation", name, shape, source=source, function="relu", parameters={}, slope=slope)


def opaque(function: str, gains: Any, shape: Place = (2, 3), **parameters: Any) -> dict[str, Any]:
    return node("opaque", "o", shape, source="x", function=function, parameters=parameters, gains=gains)


def test_a_network_is_read_node_by_node():
    found = network(
        dense("a", "x", (2, 3), (2, 4), "a.b"),
        relu("r", "a", shape=(2, 4)),
        node("add", "s", (2, 4), sources=["a", "r"]),
        node("add", "t", (2, 4), sources=["a", "r", "s"]),
        node("concat", "c", (2, 7), sources=["x", "t"], dim=1),
        node("concat", "d", (4, 7), sources=["c", "c"], dim=0),
        node("concat", "e", (12, 7), sources=["d", "d", "d"], dim=0),
        **{"a.w": whole(4, 3) * 0.5, "a.b": np.arange(4.0)},
    )
    assert [*found] == ["x", "a", "r", "s", "t", "c", "d", "e"]
    assert [each.kind for each in found.values()] == ["input", "affine", "activation", *["add"] * 2, *["concat"] * 3]
    assert [each.sources for each in found.values()][:4] == [(), ("x",), ("a",), ("a", "r")]
    assert [found[name].shape for name in "xatcde"] == [(2, 3), (2, 4), (2, 4), (2, 7), (4, 7), (12, 7)]
    assert [found[name].dim for name in "cde"] == [1, 0, 0]
    assert (numbers(found["a"].map) == np.kron(np.eye(2, dtype=int), whole(4, 3)) * Fraction(1, 2)).all()
    assert found["r"].slope == 1
    assert [*network()] == ["x"]


BROKEN: dict[str, tuple[Callable[[], Any], str]] = {
    "another format": (lambda: network(relu(), form="lipcert-graph-2"), "^format 'lipcert-graph-2'"),
    "another output": (lambda: network(relu(), output="x"), "^format .*, output 'x', 2 nodes"),
    "no output": (lambda: network(relu(), output="y"), "^format .*, output 'y', 2 nodes"),
    "no nodes": (
        lambda: checker.read_network({"format": "lipcert-graph-1", "output": "x", "nodes": []}, {}),
        "^format .*, 0 nodes",
    ),
    "a tensor too many": (lambda: network(relu(), b=np.ones(1)), r"^tensors that no node uses: \['b'\]"),
    "a name twice": (lambda: network(relu(), relu()), "^node `r` repeats a name"),
    "a name of the input": (lambda: network(relu("x")), "^node `x` repeats a name"),
    "two inputs": (lambda: network({**X, "name": "y"}), "^node `y` repeats a name, or the input is not first and only"),
    "no kind": (lambda: network({"name": "a"}), "^a node of kind None"),
    "another kind": (lambda: network({"kind": "mul"}), "^a node of kind 'mul'"),
    "a kind that is no text": (lambda: network({"kind": ["add"]}), r"^a node of kind \['add'\]"),
    "a node that is text": (lambda: network("add"), "^a node of kind None"),
    "a node that is a list": (lambda: network([1]), "^a node of kind None"),
    "another field": (lambda: network({**relu(), "more": 1}), "^a node of kind activation is"),
    "a source to come": (lambda: network(relu("r", "s"), relu("s", "x")), "^node `r` reads .*, not all defined before"),
    "itself": (lambda: network(relu("r", "r")), "^node `r` reads .*, not all defined before"),
    "a source that is no text": (
        lambda: network(node("add", "s", (2, 3), sources=["x", ["x"]])),
        "^node `s` reads .*, not all defined before",
    ),
    "one source unknown": (
        lambda: network(node("add", "s", (2, 3), sources=["x", "y"])),
        "^node `s` reads .*, not all defined before",
    ),
    "a map of another input": (
        lambda: network(dense("a", "x", (3, 3), (3, 4)), **{"a.w": whole(4, 3) * 1.0}),
        r"^node `a` of shape \(3, 4\) cannot read shapes \[\(2, 3\)\]",
    ),
    "a map of another output": (
        lambda: network({**dense("a", "x", (2, 3), (2, 4)), "shape": [8]}, **{"a.w": whole(4, 3) * 1.0}),
        r"^node `a` of shape \(8,\) cannot read shapes",
    ),
    "a bias of another shape": (
        lambda: network(dense("a", "x", (2, 3), (2, 4), "b"), **{"a.w": whole(4, 3) * 1.0, "b": np.ones(3)}),
        "shape mismatch|a tensor of shape",
    ),
    "a bias that is too large": (
        lambda: network(dense("a", "x", (2, 3), (2, 4), "b"), **{"a.w": whole(4, 3) * 1.0, "b": np.ones((5, 2, 4))}),
        r"^a tensor of shape \(5, 2, 4\) where \(2, 4\) is needed",
    ),
    "a bias that is missing": (
        lambda: network(dense("a", "x", (2, 3), (2, 4), "b"), **{"a.w": whole(4, 3) * 1.0}),
        "^tensor 'b' is missing",
    ),
    "an activation of another shape": (lambda: network(relu(shape=(3, 2))), r"^node `r` of shape \(3, 2\) cannot read"),
    "a sum of one": (lambda: network(node("add", "s", (2, 3), sources=["x"])), "^node `s` of shape .* cannot read"),
    "a sum of none": (lambda: network(node("add", "s", (2, 3), sources=[])), "^node `s` of shape .* cannot read"),
    "a sum of another shape": (
        lambda: network(node("add", "s", (3, 2), sources=["x", "x"])),
        "^node `s` of shape .* cannot read",
    ),
    "a sum of different shapes": (
        lambda: network(
            dense("a", "x", (2, 3), (2, 1)), node("add", "s", (2, 3), sources=["x", "a"]), **{"a.w": whole(1, 3) * 1.0}
        ),
        "^node `s` of shape .* cannot read",
    ),
    **{
        f"parts of {sources} along {dim} to {shape}": (
            lambda sources=sources, dim=dim, shape=shape: network(
                dense("a", "x", (2, 3), (2, 1)),
                node("concat", "c", shape, sources=list(sources), dim=dim),
                **{"a.w": whole(1, 3) * 1.0},
            ),
            "^node `c` of shape .* cannot read shapes",
        )
        for sources, dim, shape in [
            ("x", 0, (2, 3)),
            ("xx", 2, (2, 6)),
            ("xx", 5, (2, 6)),
            ("xx", -1, (2, 6)),
            ("xx", 0, (2, 6)),
            ("xx", 1, (2, 5)),
            ("xx", 1, (2, 7)),
            ("xx", 1, (3, 6)),
            ("xx", 1, (2, 6, 1)),
            ("xa", 0, (4, 3)),
            ("xa", 0, (4, 1)),
            ("xa", 1, (4, 4)),
            ("xx", 0, (4,)),
        ]
    },
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_graph_that_does_not_fit_together_is_malformed(name: str):
    build, why = BROKEN[name]
    with pytest.raises((Malformed, ValueError), match=why) as failure:
        build()
    assert type(failure.value) is Malformed or name == "a bias of another shape"


def slopes(slope: Any, function: str = "relu", **parameters: Any) -> Any:
    arrays = {"t": np.array([[1.0], [4.0]]), "u": np.array([[0.5], [-1.0]])}
    used = {key: arrays[key] for key in arrays if f"'{key}'" in str((slope, parameters))}
    entry = {**relu(slope=slope), "function": function, "parameters": parameters}
    return network(entry, **used)["r"]


def test_the_steepest_slope_of_an_interval_that_holds_the_function_s_is_used():
    found = slopes([h(-3), h(1)])
    assert found.slope == 3
    assert [end.tolist() for end in found.ends] == [-3, 1]
    assert slopes([h(0), h(1)]).slope == 1
    assert slopes([h(-0.5), h(2)]).slope == 2
    assert found.declared == ""
    tilted = slopes([{"tensor": "u"}, {"tensor": "t"}], "declared:me")
    assert tilted.slope == 4
    assert tilted.ends[0].tolist() == [[Fraction(1, 2)], [-1]]
    assert tilted.ends[1].tolist() == [[1], [4]]
    assert tilted.declared == "slope of r (declared:me) lies in [-1.0, 4.0]"
    constant = slopes([h(2), h(2)], "declared:me")
    assert constant.slope == 2
    for low, high in ((0.0, math.nextafter(1, 0)), (5e-324, 1.0), (1.0, 0.0), (0.5, 0.5)):
        with pytest.raises(Reject, match=r"^slope of r \(relu\): .* does not contain the function's slopes"):
            slopes([h(low), h(high)])
    with pytest.raises(Reject, match=r"\[0\.5, 1\.0\] does not contain the function's slopes \[0\.0, 1\.0\]"):
        slopes([{"tensor": "u"}, {"tensor": "t"}])
    with pytest.raises(Malformed, match="its lower end is above its upper end"):
        slopes([{"tensor": "t"}, h(3)], "declared:me")


@pytest.mark.parametrize("slope", [[], [h(0)], [h(0), h(1), h(2)]], ids=len)
def test_an_interval_has_two_ends(slope: list[str]):
    with pytest.raises(Malformed, match=r"^slope of r \(relu\): not an interval"):
        slopes(slope)


def test_declared_gains_are_kept_where_the_table_has_some():
    half = dict.fromkeys(("l2->l2", "l1->l1", "linf->linf"), h(0.5))
    found = network(opaque("softmax", {**half, "l1->linf": h(0)}, dim=1))["o"]
    assert found.gains == dict.fromkeys(half, Fraction(1, 2))
    assert found.declared == ""
    assert network(opaque("softmax", {"l2->l2": h(0.5)}, dim=1))["o"].gains == {"l2->l2": Fraction(1, 2)}
    for pair in half:
        with pytest.raises(Reject, match=rf"^gain of o \(softmax\): 0\.4999.* is below 0\.5 in {pair}"):
            network(opaque("softmax", {**half, pair: h(math.nextafter(0.5, 0))}, dim=1))
    sort = network(opaque("sort", {"l2->l2": h(1)}, dim=1, group=3, arrangement="consecutive"))["o"]
    assert (sort.gains, sort.dim, sort.members, sort.consecutive) == ({"l2->l2": 1}, 1, 3, True)
    theta = {"tensor": "t"}
    turned = network(opaque("householder", {"l2->l2": h(1), "l1->l1": h(1.5)}, dim=0, theta=theta), t=np.ones(1))["o"]
    assert (turned.gains, turned.members, turned.angles) == ({"l2->l2": 1, "l1->l1": Fraction(3, 2)}, 2, (1,))
    with pytest.raises(Reject, match=r"1\.25 is below 1\.41421356.* in l1->l1"):
        network(opaque("householder", {"l2->l2": h(1), "l1->l1": h(1.25)}, dim=0, theta=theta), t=np.ones(1))


def test_a_user_s_gains_are_taken_at_his_word():
    every = {pair: h(k) for k, pair in enumerate(checker.PAIRS)}
    table = {"tensor": "t"}
    found = network(opaque("declared:me", every, (7,), why=h(3), text="paper", table=table), t=np.ones(2))["o"]
    assert found.gains == {pair: k for k, pair in enumerate(checker.PAIRS)}
    listed = ", ".join(f"{pair}: {float(k)}" for k, pair in enumerate(checker.PAIRS))
    assert found.declared == f"gain of o (declared:me) is at most {listed}"
    for wrong in ({"l2->l1": h(1)}, {"l2->l2": h(-0.5)}, {"l2->l2": h(1), "l1->l1": h(-(2.0**-1074))}):
        with pytest.raises(Malformed, match=r"^gain of o \(declared:me\): "):
            network(opaque("declared:me", wrong, (7,)))
    with pytest.raises(
        Malformed, match=r"^gain of o \(declared:me\) is .*, not an object with the fields \['tensor'\]"
    ):
        network(opaque("declared:me", every, (7,), table={"array": "t"}), t=np.ones(2))
