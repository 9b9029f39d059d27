"""The kernel of a map that is the same at every position, and what has none."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from tests.laws.check.built import (
    CONVOLUTIONS,
    ONE,
    Map,
    Node,
    Place,
    Reject,
    affine,
    checker,
    convolution,
    numbers,
    whole,
)


def part(X: Any, denominator: int = 1) -> Any:
    X = np.array(X)
    return Map("dense", (X.shape[1],), (len(X),), X, Fraction(1, denominator))


def separable(channels: int, *parts: Any) -> Any:
    every = [Map("reshape", (channels,), (channels,)), *parts]
    source, shape = (sum((getattr(each, side) for each in every), ()) for side in ("in_shape", "out_shape"))
    unit = math.prod((each.unit for each in every), start=ONE)
    return Map("separable", source, shape, None, unit, parts=tuple(every))


def same(size: int) -> Any:
    return Map("reshape", (size,), (size,))


def grid(source: Place, *chosen: Sequence[int]) -> Any:
    """A selection of the same entries along every dimension; -1 for zeros."""
    index = np.full(tuple(map(len, chosen)), -1)
    for place in np.ndindex(*index.shape):
        at = [each[i] for each, i in zip(chosen, place, strict=True)]
        if min(at) >= 0:
            index[place] = np.ravel_multi_index(at, source)
    return Map("selection", source, index.shape, index)


def adjoint(conv: Any) -> Any:
    return Map("adjoint", conv.out_shape, conv.in_shape, None, conv.unit, parts=(conv,))


POOL = [[1, 1, 0, 0, 0], [0, 1, 1, 1, 0], [0, 0, 0, 1, 1]]  # three in a row, every second, one before
SHIFT_INVARIANT: dict[str, Callable[[], Any]] = {
    **{
        name: lambda name=name: convolution(*CONVOLUTIONS[name])
        for name in CONVOLUTIONS
        if name not in ("reflected", "replicated")
    },
    **{
        f"{name}, turned": lambda name=name: adjoint(convolution(*CONVOLUTIONS[name]))
        for name in ("all of it", "groups", "two", "two in groups")
    },
    "a scale per channel": lambda: Map("diagonal", (3, 4, 2), (3, 4, 2), whole(3, 1, 1), Fraction(1, 3)),
    "one scale": lambda: Map("diagonal", (2, 5), (2, 5), np.array(7), Fraction(1, 3)),
    "a pool": lambda: separable(2, part(POOL, 3), part([[1, 1, 0], [0, 1, 1]], 2)),
    "along one dimension": lambda: separable(3, same(4), part(POOL, 3)),
    "every third": lambda: separable(1, part([[2, 3, 0, 0, 0], [0, 0, 0, 2, 3]])),
    "twice as far as they are wide": lambda: separable(1, part([[1, 2], [1, 2]])),
    "repeated": lambda: separable(2, part([[1, 0], [1, 0], [0, 1], [0, 1]]), same(3)),
    "windows turned": lambda: separable(2, part(np.array(POOL).T, 3)),
    "every second": lambda: grid((2, 6, 4), [0, 1], [1, 3, 5], [0, 2]),
    "other channels": lambda: grid((3, 4), [2, 0], [0, 1, 2, 3]),
    "channels padded by zeros": lambda: grid((2, 3), [-1, 0, 1, -1], [0, 1, 2]),
    "positions padded by zeros": lambda: grid((2, 3, 2), [0, 1], [-1, 0, 1, 2, -1, -1], [0, 1]),
    "repeated by index": lambda: grid((2, 3), [0, 1], [0, 0, 1, 1, 2, 2]),
    "other channels, repeated": lambda: grid((3, 2), [2, 0], [0, 0, 1, 1]),
}


def spelled_out(kernel: Any, linear: Any) -> np.ndarray:
    """The matrix of a kernel: at i it reads what its weights t say at ``stride i + t``; or the transpose."""
    ends = (linear.in_shape, linear.out_shape)
    fine, coarse = reversed(ends) if kernel.turned else ends
    F = np.zeros((math.prod(coarse), math.prod(fine)), dtype=object)
    for t, W in kernel.weights.items():
        assert W.shape == (coarse[0], fine[0])
        for i in np.ndindex(*coarse[1:]):
            at = [s * a + b for s, a, b in zip(kernel.stride, i, t, strict=True)]
            if kernel.circular:
                at = [p % n for p, n in zip(at, fine[1:], strict=True)]
            if all(0 <= p < n for p, n in zip(at, fine[1:], strict=True)):
                for o, c in np.ndindex(*W.shape):
                    F[np.ravel_multi_index((o, *i), coarse), np.ravel_multi_index((c, *at), fine)] += int(W[o, c])
    F = F * kernel.unit
    return F.T if kernel.turned else F


@pytest.mark.parametrize("name", SHIFT_INVARIANT)
def test_a_kernel_is_all_of_its_map(name: str):
    linear = SHIFT_INVARIANT[name]()
    kernel = checker._kernel(affine("a", "x", linear))
    assert (spelled_out(kernel, linear) == numbers(linear)).all()
    assert kernel.circular == linear.circular
    assert min(kernel.stride) >= 1
    assert len(kernel.stride) == len(linear.in_shape) - 1


NOT_SHIFT_INVARIANT: dict[str, tuple[Callable[[], Any], str]] = {
    "a dense map": (lambda: Map("dense", (2, 3), (2, 3), whole(3, 3)), "is not the same at every position"),
    "padded by reflection": (lambda: convolution(*CONVOLUTIONS["reflected"]), "is not the same at every position"),
    "scales that differ": (
        lambda: Map("diagonal", (2, 3), (2, 3), np.array([[1, 1, 1], [2, 2, 3]])),
        "is not the same at every position",
    ),
    "scales that differ at two": (
        lambda: Map("diagonal", (2, 2), (2, 2), np.array([[1, 1], [2, 3]])),
        "is not the same at every position",
    ),
    "channels that mix": (
        lambda: Map("separable", (2, 3), (1, 3), parts=(part([[1, 1]]), same(3))),
        "is not the same at every position",
    ),
    "a selection of another shape": (
        lambda: Map("selection", (2, 3), (6,), np.arange(6)),
        "is not the same at every position",
    ),
    "a selection without a grid": (
        lambda: Map("selection", (2, 3), (2, 3), np.array([[0, 1, 2], [3, 5, 4]])),
        "does not select the same at every position",
    ),
    "a selection with one zero": (
        lambda: Map("selection", (2, 3), (2, 3), np.array([[-1, 1, 2], [3, 4, 5]])),
        "does not select the same at every position",
    ),
    "a selection of the first instead of a zero": (
        lambda: Map("selection", (1, 3), (2, 3), np.array([[0, 1, 2], [-1, -1, 0]])),
        "does not select the same at every position",
    ),
    "windows that differ": (
        lambda: separable(2, part([[1, 1, 0], [0, 1, 2], [0, 0, 1]])),
        "does not weigh the same window at every position",
    ),
    "windows that end": (
        lambda: separable(2, part([[1, 1, 0, 0, 0], [0, 0, 1, 1, 0], [0] * 5]), part(POOL)),
        "does not weigh the same window at every position",
    ),
    "down and up": (
        lambda: separable(1, part([[1, 1, 0, 0], [0, 0, 1, 1]]), part([[1, 0], [1, 0], [0, 1], [0, 1]])),
        "does not weigh the same window at every position",
    ),
}


@pytest.mark.parametrize("name", NOT_SHIFT_INVARIANT)
def test_what_differs_between_positions_has_no_kernel(name: str):
    build, why = NOT_SHIFT_INVARIANT[name]
    with pytest.raises(Reject, match=f"^a {why}"):
        checker._kernel(affine("a", "x", build()))


def test_a_node_without_a_map_has_no_kernel():
    with pytest.raises(Reject, match="is not the same at every position"):
        checker._kernel(Node("activation", "f", (2, 3), ("x",)))


def test_a_selection_is_the_product_of_its_dimensions():
    chosen = ([2, 0], [-1, 1, 0], [0, 1, 1, -1])
    linear = grid((3, 2, 2), *chosen)
    factors = checker._factors("a", linear)
    for each, size, X in zip(chosen, (3, 2, 2), factors, strict=True):
        assert X.tolist() == [[int(at == j) for j in range(size)] for at in each]
    (alone,) = checker._factors("a", Map("selection", (3,), (4,), np.array([2, 0, -1, 0])))
    assert alone.tolist() == [[0, 0, 1], [1, 0, 0], [0, 0, 0], [1, 0, 0]]


def test_a_window_is_one_for_all_rows_or_for_all_columns():
    assert checker._window(None) == ({0: 1}, 1, None)
    assert checker._window(np.array(POOL)) == ({-1: 1, 0: 1, 1: 1}, 2, False)
    assert checker._window(np.array(POOL).T) == ({-1: 1, 0: 1, 1: 1}, 2, True)
    assert checker._window(np.array([[1, 2], [1, 2]])) == ({0: 1, 1: 2, -2: 1, -1: 2}, 2, False)
    for none in ([[1, 2, 3]], [[1], [2]], [[5]], [[1, 1, 0], [0, 1, 2], [0, 0, 1]]):
        assert checker._window(np.array(none)) == ({}, 1, None)
