"""Sorted and reflected groups in a part."""

import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import mpmath
import numpy as np
import pytest

from tests.laws.check.built import HALF, Malformed, Node, Signal, TooLarge, checker, drawn
from tests.laws.check.signals import added, assert_sizes_cover, matrix_of, room


def grouped(node: Any, V: np.ndarray) -> np.ndarray:
    """``(groups, members)``: the groups by their number along the dimension, then by what is beside it."""
    V = np.moveaxis(V.reshape(node.shape), node.dim, 0)
    V = V.reshape(len(V), -1)
    if node.consecutive:
        return np.stack(
            [
                V[i * node.members : (i + 1) * node.members, r]
                for i in range(len(V) // node.members)
                for r in range(V.shape[1])
            ]
        )
    count = len(V) // node.members
    return np.stack([V[i::count, r] for i in range(count) for r in range(V.shape[1])])


def replaced(node: Any, V: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The node's output: every group changed by a function of all groups."""
    places = grouped(node, np.arange(V.size))
    out = V.ravel().copy()
    out[places.ravel()] = change(grouped(node, V)).ravel()
    return out


SORTS = {
    f"{n} of {shape} along {dim}{' in a row' * consecutive}": Node(
        "opaque", "s", shape, ("v",), dim=dim, members=n, consecutive=consecutive
    )
    for n, shape, dim in [(2, (4,), 0), (3, (6,), 0), (3, (6, 2), 0), (2, (3, 4), 1), (4, (4, 1), 0)]
    for consecutive in (False, True)
}


@pytest.mark.parametrize("name", SORTS)
def test_sorting_keeps_sums_and_shrinks_differences_of_a_group(name: str):
    node = SORTS[name]
    size, n = math.prod(node.shape), node.members
    groups = size // n
    (Q, B), bounds, squares, unit = checker._directions(node)
    assert unit == 1
    assert all((bound == abs(X)).all() for bound, X in zip(bounds, (Q, B), strict=True))
    joined = np.concatenate([Q, B], 1)
    assert (joined.T @ joined == np.diag([n] * groups + squares)).all()
    multipliers = [Fraction(k + 1, 3) for k in range(groups)]
    for seed in range(3):
        one, two = (np.random.default_rng(seed + k).integers(-9, 10, size) for k in (0, 50))
        dv, du = one - two, replaced(node, one, lambda V: np.sort(V, 1)) - replaced(node, two, lambda V: np.sort(V, 1))
        v = Signal(HALF, {"x": 2 * np.eye(size, dtype=np.int64)}, {"x": 2 * np.eye(size, dtype=np.int64)})
        u, own = checker._grouped(node, v, multipliers, "here")
        w = np.array([Fraction(int(b @ du), square) for b, square in zip(B.T, squares, strict=True)])
        z = np.concatenate([dv.astype(object), w])
        widths = {"x": size, "s": len(squares)}
        assert (matrix_of(u, widths) @ z == du).all()
        assert u.loose == 0
        H, off = added(own, widths)
        assert not off.any()

        def differences(V: np.ndarray) -> list[int]:
            return [sum(int(a - b) ** 2 for a, b in itertools.combinations(row, 2)) for row in grouped(node, V)]

        pairs = zip(multipliers, differences(du), differences(dv), strict=True)
        assert z @ H @ z == 2 * sum(multiplier * (after - before) for multiplier, after, before in pairs)


def test_what_is_loose_stays_loose_where_groups_are_sorted():
    node, widths = SORTS["3 of (6,) along 0"], {"x": 6, "s": 4}
    X = drawn(1, 6, 6)
    v = Signal(HALF, {"x": X}, {"x": abs(X) + 1}, Fraction(1, 7))
    u, own = checker._grouped(node, v, [Fraction(1), Fraction(2)], "here")
    H, off = added(own, widths)
    assert_sizes_cover(u)
    signs = np.random.default_rng(0)
    for _ in range(20):
        moved = Signal(Fraction(1), {"x": matrix_of(v, {"x": 6}, signs)}, {"x": abs(X)})
        denominator = math.lcm(*(entry.denominator for entry in moved.blocks["x"].flat))
        X_moved = np.array([int(e * denominator) for e in moved.blocks["x"].flat], dtype=object).reshape(6, 6)
        other, form = checker._grouped(
            node, Signal(Fraction(1, denominator), {"x": X_moved}, {"x": abs(X_moved)}), [Fraction(1), Fraction(2)], ""
        )
        assert (abs(matrix_of(other, widths) - matrix_of(u, widths)) <= room(u, widths)).all()
        assert (abs(added(form, widths)[0] - H) <= off).all()


@pytest.mark.parametrize("shape", [(4,), (4, 2)], ids=str)
@pytest.mark.parametrize("consecutive", [False, True])
def test_reflecting_keeps_what_is_along_the_line(shape: tuple[int, ...], consecutive: bool):
    angles = (Fraction(7, 5), Fraction(-1, 2))
    node = Node("opaque", "s", shape, ("v",), members=2, consecutive=consecutive, angles=angles)
    size, groups = math.prod(shape), math.prod(shape) // 2
    (Q, B), bounds, squares, unit = checker._directions(node)
    assert squares == [1] * groups
    assert unit == Fraction(1, 2**64)
    turns = np.repeat([float(angle) / 2 for angle in angles], groups // 2)
    along, across = np.stack([np.cos(turns), np.sin(turns)], 1), np.stack([np.sin(turns), -np.cos(turns)], 1)
    for X, directions, bound in zip((Q, B), (along, across), bounds, strict=True):
        expected = np.zeros((size, groups))
        for k, place in enumerate(grouped(node, np.arange(size))):
            expected[place, k] = directions[k]
        assert np.allclose((X * float(unit)).astype(float), expected, rtol=0, atol=1e-15)
        assert (bound * unit == (expected != 0)).all()  # off by at most 1 = 2^-64 of the bound
    V = drawn(3, size, 3)
    v = Signal(HALF, {"x": V}, {"x": abs(V)})
    multipliers = [Fraction(k + 1) for k in range(groups)]
    u, own = checker._grouped(node, v, multipliers, "here")
    assert u.loose == (1 + unit) ** 2 - 1
    assert_sizes_cover(u)
    widths = {"x": 3, "s": groups}
    z, w = np.array([1.0, -2.0, 0.5]), np.arange(groups) - 1.25
    dv = 0.5 * V @ z
    expected = np.zeros(size)
    for k, place in enumerate(grouped(node, np.arange(size))):
        expected[place] = along[k] * (along[k] @ dv[place]) + across[k] * w[k]
    found = matrix_of(u, widths).astype(float) @ np.concatenate([z, w])
    assert np.allclose(found, expected, rtol=1e-12, atol=1e-12)
    H, off = added(own, widths)
    s = np.array([across[k] @ dv[place] for k, place in enumerate(grouped(node, np.arange(size)))])
    value = np.concatenate([z, w]) @ H.astype(float) @ np.concatenate([z, w])
    assert np.isclose(value, 2 * sum(float(m) * (b * b - a * a) for m, a, b in zip(multipliers, s, w, strict=True)))
    assert off[:3].any()
    assert (off < Fraction(1, 2**50)).all()
    assert {term[-1] for term in own} == {0, (1 + unit) ** 2 - 1}


def test_groups_have_one_multiplier_each_and_a_limit(monkeypatch: pytest.MonkeyPatch):
    node = SORTS["3 of (6,) along 0"]
    for count in (1, 3, 6):
        with pytest.raises(Malformed, match=f"here: {count} multipliers for the 2 groups of s"):
            checker._grouped(node, checker._variable("x", 6), [Fraction(1)] * count, "here")
    monkeypatch.setattr(checker, "ENTRY_LIMIT", 36)
    checker._directions(node)
    monkeypatch.setattr(checker, "ENTRY_LIMIT", 35)
    with pytest.raises(TooLarge, match="6 x 6 entries"):
        checker._directions(node)


ANGLES = [Fraction(0), *(Fraction(k, 7) for k in range(-12, 60, 3)), Fraction(1, 2**70), Fraction(-22, 7)]
ANGLES += [
    Fraction(10**6 + 1, 3),
    Fraction(-(10**20), 7),
    Fraction(2) ** 400 / 3,
    Fraction(1, 4),
    Fraction(1, 2),
    Fraction(2),
]


@pytest.mark.parametrize("angle", ANGLES, ids=range(len(ANGLES)))
def test_cosine_and_sine_are_rounded_to_the_nearest(angle: Fraction):
    with mpmath.workdps(200):
        x = mpmath.mpf(angle.numerator) / angle.denominator
        exact = mpmath.cos(x) * 2**64, mpmath.sin(x) * 2**64
        assert all(
            abs(found - real) <= 0.5 + 2.0**-20
            for found, real in zip(checker.cosine_and_sine(angle), exact, strict=True)
        )
