"""The signals of a part and the nodes that they go through, moved as far as they may be off."""

import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from tests.laws.check.built import (
    HALF,
    MAPS,
    THIRD,
    Malformed,
    Node,
    Reject,
    Signal,
    activation,
    affine,
    checker,
    drawn,
    network,
    scaled,
)
from tests.laws.check.signals import LOOSE, WIDTHS, added, assert_sizes_cover, matrix_of, room, signal

# -------------------------------------------------------------------------------------------------------------- signals


@LOOSE
def test_factors_in_an_interval_move_a_signal_by_no_more_than_is_told(loose: Fraction):
    lower = np.array([HALF, 0, -2, Fraction(9, 10)], dtype=object)
    upper = np.array([Fraction(3, 4), 0, -2, 1], dtype=object)
    before = signal(4, 1, loose)
    after = checker._scaled(Node("activation", "r", (4,), ends=(lower, upper)), before)
    assert after.loose == (1 + loose) * (1 + THIRD) - 1
    assert (matrix_of(after, WIDTHS) == upper[:, None] * matrix_of(before, WIDTHS)).all()
    assert all(
        (after.sizes[n] * after.unit >= abs(upper)[:, None] * before.sizes[n] * before.unit).all() for n in WIDTHS
    )
    exact = matrix_of(after, WIDTHS)
    signs = np.random.default_rng(0)
    for ends in itertools.product((0, 1), repeat=4):
        factors = np.where(ends, upper, lower)[:, None]
        assert (abs(factors * matrix_of(before, WIDTHS, signs) - exact) <= room(after, WIDTHS)).all()


def test_factors_that_are_zero_or_fixed_leave_what_was_loose():
    for end in (Fraction(0), Fraction(1, 2), Fraction(-1, 3)):
        ends = (np.array(end, dtype=object),) * 2
        after = checker._scaled(Node("activation", "r", (3, 1), ends=ends), signal(3, 1, Fraction(1, 7)))
        assert after.loose == Fraction(1, 7)
        assert (matrix_of(after, WIDTHS) == end * matrix_of(signal(3, 1), WIDTHS)).all()


def test_slopes_are_nearly_one_number_within_2_to_the_minus_40():
    def near(lower: Any, upper: Any) -> bool:
        return checker._nearly_linear(activation("r", "x", (2,), lower, upper))

    width, hair = Fraction(1, 2**40), Fraction(1, 2**80)
    assert near(3 * (1 - width), Fraction(3))
    assert not near(3 * (1 - width) - hair, Fraction(3))
    assert near(-HALF, -HALF)
    assert near(Fraction(0), Fraction(0))
    assert not near(-HALF - hair, -HALF)
    assert not near(-hair, Fraction(0))
    assert not near(Fraction(0), hair)
    assert not near(Fraction(-3), Fraction(3))
    assert not near([Fraction(1), Fraction(0)], [Fraction(1), Fraction(1)])
    assert not near([Fraction(0), Fraction(1)], [Fraction(1), Fraction(1)])


def test_a_variable_is_itself():
    found = checker._variable("u", 3)
    assert (matrix_of(found, {"u": 3}) == np.eye(3)).all()
    assert (found.sizes["u"] == np.eye(3)).all()
    assert found.loose == 0


@LOOSE
def test_a_matrix_known_loosely_times_a_signal_known_loosely(loose: Fraction):
    X, own = drawn(5, 2, 4), Fraction(1, 5)
    size, before = abs(X) + 1, signal(4, 1, loose)
    after = checker._times(before, X, size, Fraction(5, 3), own)
    assert after.loose == (1 + loose) * (1 + own) - 1
    assert (matrix_of(after, WIDTHS) == Fraction(5, 3) * X.astype(object) @ matrix_of(before, WIDTHS)).all()
    assert_sizes_cover(after)
    signs = np.random.default_rng(0)
    for _ in range(20):
        moved = (X + own * size * signs.choice([-1, 1], X.shape)).astype(object) * Fraction(5, 3)
        apart = abs(moved @ matrix_of(before, WIDTHS, signs) - matrix_of(after, WIDTHS))
        assert (apart <= room(after, WIDTHS)).all()


def test_fractions_become_integers_in_a_common_unit():
    values = [Fraction(3, 4), Fraction(-5, 6), Fraction(0), Fraction(7)]
    X, unit = checker._integers(values)
    assert all(type(x) is int for x in X)
    assert [x * unit for x in X] == values


@pytest.mark.parametrize("weights", [[2, -1, HALF], [0, 0, THIRD], [-1, -1, -1]], ids=str)
@LOOSE
def test_a_weighted_square_is_one_and_moves_no_more_than_is_told(weights: list[Any], loose: Fraction):
    weights = [Fraction(weight) for weight in weights]
    v = signal(3, 2, loose)
    terms = list(checker._gram(v, weights))
    H, off = added(terms, WIDTHS)

    def square(V: np.ndarray) -> np.ndarray:
        return V.T @ np.diag(np.array(weights, dtype=object)) @ V

    assert (H == square(matrix_of(v, WIDTHS))).all()
    assert {term[-1] for term in terms} == {(1 + loose) ** 2 - 1}
    signs = np.random.default_rng(0)
    for _ in range(20):
        assert (abs(square(matrix_of(v, WIDTHS, signs)) - H) <= off).all()
    assert list(checker._gram(v, [Fraction(0)] * 3)) == []


@pytest.mark.parametrize(
    ("lower", "upper"),
    [
        ([[0, -HALF, THIRD]], [[1, 1, 2]]),
        ([[-1, -2, 0]], [[1, 2, 0]]),
        ([[0, 0, 0]], [[1, Fraction(3, 2), 1]]),
        ([[THIRD]], [[Fraction(3, 4)]]),
    ],
    ids=["any", "odd", "rising", "one for all"],
)
@LOOSE
def test_the_constraint_of_neurons_is_the_product_of_both_distances(lower: Any, upper: Any, loose: Fraction):
    v, multipliers = signal(3, 3, loose), [Fraction(3, 4), Fraction(0), Fraction(5)]
    v = Signal(v.unit, {"x": v.blocks["x"]}, {"x": v.sizes["x"]}, loose)
    node, widths = activation("r", "v", (1, 3), lower, upper), {"x": 3, "r": 3}
    terms = list(checker._constraint(node, v, multipliers, "here"))
    H, off = added(terms, widths)
    low, high = (np.broadcast_to(end, (1, 3)).ravel() for end in node.ends)

    def constraint(V: np.ndarray) -> np.ndarray:
        U = np.concatenate([np.zeros((3, 3), dtype=object), np.eye(3, dtype=object)], 1)
        a, b = U - low[:, None] * V, U - high[:, None] * V
        L = np.diag(np.array(multipliers, dtype=object))
        return a.T @ L @ b + b.T @ L @ a

    assert (H == constraint(matrix_of(v, widths))).all()
    if not loose:
        assert not off.any()
    signs = np.random.default_rng(0)
    for _ in range(20):
        assert (abs(constraint(matrix_of(v, widths, signs)) - H) <= off).all()


def test_multipliers_are_one_for_each_neuron_and_not_negative():
    node, v = activation("r", "v", (3,), 0, 1), signal(3, 3)
    for count in (2, 4):
        with pytest.raises(Malformed, match=f"here: {count} multipliers for the 3 neurons of r"):
            list(checker._constraint(node, v, [Fraction(1)] * count, "here"))
    with pytest.raises(Reject, match="here: a multiplier of r is negative"):
        list(checker._constraint(node, v, [Fraction(1), Fraction(1), -HALF], "here"))


# ------------------------------------------------------------------------------------------------------ nodes of a part


@LOOSE
@pytest.mark.parametrize("name", ["dense", "groups", "adjoint", "scale", "selection", "reshape", "separable"])
def test_a_map_of_a_signal_is_its_matrix_times_it(name: str, loose: Fraction):
    linear = MAPS[name]
    before = signal(math.prod(linear.in_shape), 4, loose)
    after = checker._through(affine("a", "x", linear), [before], [linear.in_shape])
    A = linear.unit * checker.matrix(linear).astype(object)
    assert (matrix_of(after, WIDTHS) == A @ matrix_of(before, WIDTHS)).all()
    assert after.loose == loose
    assert_sizes_cover(after)
    signs = np.random.default_rng(0)
    for _ in range(3):
        assert (abs(A @ matrix_of(before, WIDTHS, signs) - matrix_of(after, WIDTHS)) <= room(after, WIDTHS)).all()
    moduli = checker.matrix(checker._modulus(linear))
    assert (moduli == abs(checker.matrix(linear))).all()


@pytest.mark.parametrize(
    ("kind", "dim", "shapes", "shape"),
    [
        ("add", 0, [(2, 3), (2, 3)], (2, 3)),
        ("concat", 0, [(1, 3), (2, 3)], (3, 3)),
        ("concat", 1, [(2, 1), (2, 3), (2, 2)], (2, 6)),
        ("concat", 1, [(2, 2, 2), (2, 1, 2)], (2, 3, 2)),
    ],
    ids=range(4),
)
def test_sums_and_parts_side_by_side_are_those_of_arrays(kind: str, dim: int, shapes: Any, shape: tuple[int, ...]):
    units = [Fraction(2, 3), Fraction(1, 2), Fraction(5)]
    looses = [Fraction(1, 9), Fraction(1, 7), Fraction(1, 8)]
    reads = [signal(math.prod(s), 10 * k, looses[k], units[k]) for k, s in enumerate(shapes)]
    first = reads[0]
    reads[0] = Signal(first.unit, {"u": first.blocks["u"]}, {"u": first.sizes["u"]}, first.loose)
    after = checker._through(Node(kind, "s", shape, dim=dim), reads, shapes)
    assert after.loose == max(looses[: len(shapes)])
    assert_sizes_cover(after)

    def joined(parts: list[np.ndarray]) -> np.ndarray:
        arrays = [part.reshape(*s, 5) for part, s in zip(parts, shapes, strict=True)]
        total = sum(arrays) if kind == "add" else np.concatenate(arrays, dim)
        return np.asarray(total).reshape(-1, 5)

    assert (matrix_of(after, WIDTHS) == joined([matrix_of(read, WIDTHS) for read in reads])).all()
    signs = np.random.default_rng(0)
    for _ in range(10):
        moved = joined([matrix_of(read, WIDTHS, signs) for read in reads])
        assert (abs(moved - matrix_of(after, WIDTHS)) <= room(after, WIDTHS)).all()


@pytest.mark.parametrize("kind", ["opaque", "input"])
def test_other_nodes_have_no_constraint(kind: str):
    with pytest.raises(Reject, match=rf"o \({kind}\) has no quadratic constraint"):
        checker._through(Node(kind, "o", (3,), ("x",)), [signal(3, 0)], [(3,)])


def test_the_nodes_between_are_those_that_the_target_needs():
    net = network(
        scaled("a", "x"),
        scaled("b", "a"),
        scaled("c", "a"),
        Node("add", "s", (2,), ("b", "a")),
        scaled("d", "s"),
        Node("add", "t", (2,), ("s", "x")),
    )

    def between(source: str, target: str) -> list[str]:
        return [node.name for node in checker._between(net, source, target)]

    assert between("a", "d") == ["b", "s", "d"]
    assert between("x", "s") == ["a", "b", "s"]
    assert between("x", "t") == ["a", "b", "s", "t"]
    for source, target in (("a", "t"), ("b", "s"), ("c", "d"), ("d", "a")):
        with pytest.raises(Malformed, match=f"{target} depends on x other than through {source}"):
            between(source, target)
