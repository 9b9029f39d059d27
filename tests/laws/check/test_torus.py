"""Proving a part on a torus, frequency by frequency: filters, neurons, branches, dense heads."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from tests.laws.check.built import (
    HALF,
    NEAR,
    THIRD,
    Malformed,
    Map,
    Node,
    Reject,
    TooLarge,
    activation,
    affine,
    checker,
    conv,
    dense,
    drawn,
    ints,
    network,
    term,
)


@pytest.mark.parametrize(("loose", "true"), [(Fraction(49, 100), True), (Fraction(51, 100), False)])
def test_what_differs_between_positions_mixes_frequencies(loose: Fraction, true: bool):
    """On a torus of two positions: ``a0^2 + 100 b0^2 + 100 a1^2 + b1^2``, off by loose in a product that changes sign.

    It adds ``2 loose (a0 b1 + a1 b0)``, and the squares lose as much: false from 1/2 on, whatever stands before b0.
    """
    diagonals = {(0,): [1, 100], (1,): [100, 1]}

    def terms(frequency: tuple[int, ...]) -> list[Any]:
        return [term(np.diag(diagonals[frequency]) * 1000, loose, Fraction(1, 1000), sizes=[[1000] * 2] * 2)]

    assert checker._at_all(terms, list(diagonals), {"x": 2}) == true


def test_every_frequency_has_to_be_semidefinite():
    good, bad = [term(np.diag([2, 3]))], [term([[2, 3], [3, 2]])]
    assert checker._at_all(lambda w: good, [(0,), (1,)], {"x": 2})
    for wrong in ((0,), (1,)):
        assert not checker._at_all(lambda w, wrong=wrong: bad if w == wrong else good, [(0,), (1,)], {"x": 2})


def response(linear: Any, torus: tuple[int, ...]) -> dict[tuple[int, ...], float]:
    """The largest singular value of a convolution of stride 1 and one group at every frequency."""
    found = {}
    for w in np.ndindex(*torus):
        total = np.zeros(linear.tensor.shape[:2], dtype=complex)
        for tap in np.ndindex(*linear.tensor.shape[2:]):
            turn = sum(a * b / n for a, b, n in zip(tap, w, torus, strict=True))
            total += linear.tensor[(slice(None), slice(None), *tap)] * np.exp(2j * math.pi * turn)
        found[w] = float(np.linalg.norm(total, 2)) * float(linear.unit)
    return found


def line(weight: Any, size: int = 4, unit: Fraction = Fraction(1)) -> Any:
    weight = ints(weight)
    return conv(weight, (size,), [(1, (weight.shape[2] - 1) // 2, 1)], unit=unit)


FILTERS = {
    "largest at zero": (line([[[1, 1]]]), (8,)),
    "largest at the half": (line([[[1, -1]]]), (8,)),
    "largest at a quarter": (line([[[1, 0, -1]]]), (8,)),
    "largest at an eighth": (line([[[1, 2, 1]], [[-1, 0, 1]]], unit=HALF), (8,)),
    "an odd torus": (line([[[3, 0, -2]]]), (7,)),
    "channels": (line(drawn(8, 2, 3, 3), unit=THIRD), (7,)),
    "two dimensions": (conv(drawn(9, 1, 1, 3, 3), (3, 2), [(1, 1, 1)] * 2), (5, 4)),
    "two dimensions, largest at the end of a row": (
        conv(ints([[[[1, 1], [-1, -1]]]]), (2, 2), [(1, 0, 1)] * 2, out=(1, 1)),
        (4, 4),
    ),
}


@pytest.mark.parametrize("name", FILTERS)
def test_a_convolution_is_bounded_by_its_largest_response(name: str):
    linear, torus = FILTERS[name]
    net = network(affine("a", "x", linear), shape=linear.in_shape)
    largest = Fraction(max(response(linear, torus).values()))
    for value, true in ((largest * (1 + NEAR), True), (largest * (1 - NEAR), False)):
        if true:
            assert checker.prove_part(net, "x", "a", value, {}, torus) == value
        else:
            with pytest.raises(
                Reject, match=r"the part from x to a: the multipliers do not prove the bound .* frequency"
            ):
                checker.prove_part(net, "x", "a", value, {}, torus)


def two_filters(*between: Any, channels: int = 1) -> dict[str, Any]:
    first, last = line([[[1, 1]]] * channels), line([[[1, 1]] * channels])
    return network(affine("a", "x", first), *between, affine("b", between[-1].name, last), shape=(1, 4))


@pytest.mark.parametrize("channels", [1, 2])
def test_neurons_between_filters_are_paid_for_by_their_multipliers(channels: int):
    net = two_filters(activation("r", "a", (channels, 4), 0, 1), channels=channels)
    # At the frequency zero: value^2 x^2 + (2 m - 4 c) |u|^2 - 4 m x sum(u), with |u|^2 = c u^2 and m = 4 c.
    lambdas = {"r": [Fraction(4 * channels)] * channels}
    exact = Fraction(4 * channels)
    assert checker.prove_part(net, "x", "b", exact * (1 + NEAR), lambdas, (8,)) == exact * (1 + NEAR)
    with pytest.raises(Reject, match="do not prove the bound"):
        checker.prove_part(net, "x", "b", exact * (1 - NEAR), lambdas, (8,))
    for wrong in ({}, {"a": lambdas["r"]}, {**lambdas, "a": lambdas["r"]}):
        with pytest.raises(Malformed, match="not of its activations"):
            checker.prove_part(net, "x", "b", exact * 2, wrong, (8,))
    with pytest.raises(Reject, match=r"a reaches from 0 to 4 around 4 positions"):
        checker.prove_part(net, "x", "b", exact * 2, lambdas, (4,))


def test_slopes_that_are_nearly_one_number_have_no_multipliers_on_a_torus():
    net = two_filters(activation("r", "a", (1, 4), HALF * (1 - Fraction(1, 2**45)), HALF))
    net["b"] = affine("b", "r", conv(ints([[[1, 1]]]), (4,), [(1, 0, 1)], out=(3,)))  # reads nothing beyond the image
    assert checker.prove_part(net, "x", "b", 2 * (1 + NEAR), {}, (8,)) == 2 * (1 + NEAR)
    with pytest.raises(Reject, match="do not prove the bound"):
        checker.prove_part(net, "x", "b", 2 * (1 - NEAR), {}, (8,))


@pytest.mark.parametrize(("kind", "dim"), [("add", 0), ("concat", 0), ("concat", 1), ("concat", 2), ("opaque", 0)])
def test_branches_on_a_torus_add_up_or_are_channels(kind: str, dim: int):
    shapes = {"add": (1, 4), "opaque": (1, 4)}
    shape = shapes.get(kind, (2, 4) if dim == 0 else (1, 4))
    net = network(
        affine("a", "x", line([[[1, 1]]])),
        Node(kind, "s", shape, ("a",) if kind == "opaque" else ("a", "x"), dim=dim),
        shape=(1, 4),
    )
    if kind == "opaque" or dim:
        with pytest.raises(Reject, match=rf"s \({kind}\) is not shift-invariant"):
            checker.prove_part(net, "x", "s", Fraction(9), {}, (8,))
        return
    exact = Fraction(3) if kind == "add" else checker.sqrt_up(Fraction(5))
    assert checker.prove_part(net, "x", "s", exact * (1 + NEAR), {}, (8,)) == exact * (1 + NEAR)
    with pytest.raises(Reject, match="do not prove the bound"):
        checker.prove_part(net, "x", "s", exact * (1 - NEAR), {}, (8,))


def headed(*more: Any) -> dict[str, Any]:
    flat = affine("f", "a", Map("reshape", (1, 4), (4,)))
    return network(affine("a", "x", line([[[1, 1]]])), flat, *more, shape=(1, 4))


def test_a_dense_head_is_bounded_and_no_lower_than_it_is():
    net = headed(affine("b", "f", dense([[1, 1, 1, 1], [1, -1, 1, -1]], HALF)))
    M = np.array([[1, 1, 1, 1], [1, -1, 1, -1]]) / 2 @ checker.matrix(net["a"].map)
    norm = Fraction(float(np.linalg.norm(M, 2)))
    assert checker.prove_part(net, "x", "b", Fraction(21, 10), {}, (8,)) == Fraction(21, 10)
    for value in (norm * (1 - NEAR), norm / 2):
        with pytest.raises(Reject, match="do not prove the bound"):
            checker.prove_part(net, "x", "b", value, {}, (8,))


@pytest.mark.parametrize("name", ["filters", "a wide layer", "a head"])
def test_the_work_on_a_torus_has_a_limit(name: str, monkeypatch: pytest.MonkeyPatch):
    if name == "filters":  # 2 x (x and r) rows at 5 frequencies
        net, target, lambdas, side = two_filters(activation("r", "a", (1, 4), 0, 1)), "b", {"r": [Fraction(4)]}, 4
    elif name == "a wide layer":  # 2 x 3 rows of the output
        net, target, lambdas, side = network(affine("a", "x", line([[[1, 1]]] * 3)), shape=(1, 4)), "a", {}, 6
    else:  # 2 x (1 row and 3 outputs)
        net, target, lambdas, side = headed(affine("b", "f", dense([[1, 1, 1, 1]] * 3, HALF))), "b", {}, 8
    work = 5 * side**3
    monkeypatch.setattr(checker, "WAVE_LIMIT", work)
    assert checker.prove_part(net, "x", target, Fraction(9), lambdas, (8,)) == 9
    monkeypatch.setattr(checker, "WAVE_LIMIT", work - 1)
    with pytest.raises(TooLarge, match=rf"5 frequencies x {side}\^3 = .*--float64"):
        checker.prove_part(net, "x", target, Fraction(9), lambdas, (8,))


def test_the_head_begins_at_the_first_node_that_is_not_the_same_everywhere():
    net = headed(affine("b", "f", dense(drawn(1, 3, 4))), affine("c", "b", dense(drawn(2, 2, 3))))
    a, f, b, c = (net[name] for name in "afbc")

    def headed_by(*nodes: Any) -> tuple[list[str], list[str], list[str]]:
        inner, head, kernels = checker._headed(list(nodes))
        return [node.name for node in inner], [node.name for node in head], list(kernels)

    assert headed_by(a, f, b, c) == (["a"], ["f", "b", "c"], ["a"])
    assert headed_by(a) == (["a"], [], ["a"])
    relu = activation("r", "a", (1, 4), 0, 1)
    assert headed_by(a, relu) == (["a", "r"], [], ["a"])
    for nodes in ((f, b), (a, f, c), (a, f, b, activation("t", "b", (3,), 0, 1)), (a, f, relu)):
        with pytest.raises(Reject, match="is not the same at every position"):
            headed_by(*nodes)
