"""What the tests of the checker share: numbers, maps and networks, built by hand or as a file spells them."""

from __future__ import annotations

import importlib
import itertools
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

checker: Any = importlib.import_module("lipcert.check")  # the package offers a function of the same name
Kernel, Malformed, Map, Node, Reject, Signal, TooLarge, Wave = (
    getattr(checker, name) for name in ("Kernel", "Malformed", "Map", "Node", "Reject", "Signal", "TooLarge", "Wave")
)
Place = tuple[int, ...]
ONE, HALF, THIRD = Fraction(1), Fraction(1, 2), Fraction(1, 3)
NEAR = Fraction(1, 10**6)


def ints(entries: Any) -> np.ndarray:
    return np.array(entries, dtype=np.int64)


def drawn(seed: int, *shape: int, most: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).integers(-most, most + 1, shape)


def affine(name: str, source: str, linear: Any) -> Any:
    return Node("affine", name, linear.out_shape, (source,), linear)


def dense(X: Any, unit: Fraction = Fraction(1)) -> Any:
    X = ints(X)
    return Map("dense", X.shape[1:], X.shape[:1], X, unit)


def diagonal(scale: Any, shape: tuple[int, ...], unit: Fraction = Fraction(1)) -> Any:
    return Map("diagonal", shape, shape, ints(scale), unit)


def conv(
    weight: np.ndarray,
    sizes: Sequence[int],
    steps: Sequence[tuple[int, int, int]],
    groups: int = 1,
    unit: Fraction = Fraction(1),
    out: Sequence[int] | None = None,
    mode: str = "zeros",
) -> Any:
    out = sizes if out is None else out
    kernel = weight.shape[2:]
    tables = tuple(
        checker.index_table(n, m, k, stride, before, dilation, mode)
        for n, m, k, (stride, before, dilation) in zip(sizes, out, kernel, steps, strict=True)
    )
    shapes = (weight.shape[1] * groups, *sizes), (weight.shape[0], *out)
    return Map("conv", *shapes, weight, unit, tables, groups, (), tuple(steps))


def network(*nodes: Any, shape: tuple[int, ...] = (2,)) -> dict[str, Any]:
    return {node.name: node for node in (Node("input", "x", shape), *nodes)}


def activation(name: str, source: str, shape: tuple[int, ...], lower: Any, upper: Any) -> Any:
    ends = tuple(np.array(end, dtype=object) for end in (lower, upper))
    slope = max(abs(Fraction(end)) for end in (*ends[0].flat, *ends[1].flat))
    return Node("activation", name, shape, (source,), slope=slope, ends=ends)


def scaled(name: str, source: str) -> Any:
    return affine(name, source, diagonal([1], (2,)))


SELECTION = Map("selection", (3, 2), (8,), ints([0, 0, 5, -1, 0, 3, 5, -1]))
MAPS: dict[str, Any] = {
    "dense": dense([[1, -2, 3], [-9, 1, 0], [4, 4, -4], [0, 0, 0]], THIRD),
    "dense, last row and column": dense([[1, -2, 3], [1, 1, 5], [-4, 4, -9]]),
    "dense, first row and column": dense([[-9, 2, -3], [7, 1, 0]]),
    "dense, for every row of the input": Map("dense", (2, 3), (2, 2), ints([[1, -5, 2], [0, 3, -3]]), HALF),
    "scale": diagonal([[2, -7, 3]], (2, 3), THIRD),
    "one scale": diagonal(-3, (2, 3)),
    "selection": SELECTION,
    "selection of nothing": Map("selection", (3,), (2, 2), ints([[-1, -1], [-1, -1]])),
    "selection of the last": Map("selection", (3,), (2, 2), ints([[2, -1], [1, 2]])),
    "reshape": Map("reshape", (2, 3), (6,)),
    "zero": dense([[0, 0]]),
    "zero times little": dense([[0, 0]], Fraction(1, 8)),
    "convolution": conv(drawn(3, 4, 3, 3, most=9), (5,), [(1, 1, 1)], unit=THIRD),
    "groups": conv(drawn(4, 6, 2, 3, most=9), (5,), [(2, 1, 1)], groups=3, out=(3,)),
    "two dimensions": conv(drawn(5, 2, 3, 2, 3, most=9), (4, 5), [(1, 1, 2), (2, 0, 1)], out=(3, 2)),
    "replicated": conv(drawn(6, 2, 1, 3, most=9), (4,), [(1, 2, 1)], out=(6,), mode="replicate"),
    "large numbers": conv(drawn(7, 2, 1, 3).astype(object) << 70, (4,), [(1, 1, 1)], unit=Fraction(1, 2**70)),
    "only the first input is read": conv(ints([[[5, -7]]]), (3,), [(4, 0, 1)], out=(1,)),
}
MAPS["adjoint"] = Map("adjoint", (6, 3), (6, 5), None, Fraction(1), parts=(MAPS["groups"],))
MAPS["separable"] = Map(
    "separable",
    *((2, 3, 2), (2, 2, 4), None, Fraction(1, 6)),
    parts=(
        Map("reshape", (2,), (2,)),
        dense([[1, -2, 0], [3, 1, 1]], THIRD),
        dense([[1, 2], [-5, 0], [0, 1], [1, 1]], HALF),
    ),
)


def term(X: Any, loose: Any = 0, unit: Any = 1, a: str = "x", b: str = "x", sizes: Any = None) -> Any:
    X = np.array(X, dtype=object)
    return Fraction(unit), a, b, X, np.array(abs(X) if sizes is None else sizes, dtype=object), Fraction(loose)


def whole(*shape: int, seed: int = 0, most: int = 9) -> Any:
    """Integers of both signs, none of them zero."""
    random = np.random.default_rng(seed)
    return random.integers(1, most + 1, shape) * random.choice([-1, 1], shape)


def read(kind: str, source: Place, shape: Place, fields: Mapping[str, Any], **arrays: np.ndarray) -> Any:
    """A map as a file spells it, with all its tensors used."""
    remaining = dict(arrays)
    entry = {"kind": kind, "in_shape": list(source), "out_shape": list(shape), **fields}
    found = checker.read_map(entry, remaining)
    assert not remaining
    return found


def convolution(
    weight: np.ndarray,
    source: Place,
    sizes: Place,
    stride: Place = (1,),
    padding: Sequence[Place] = ((0, 0),),
    dilation: Place = (1,),
    groups: int = 1,
    mode: str = "zeros",
) -> Any:
    fields = written(stride, padding, dilation, groups, mode)
    return read("conv", source, (weight.shape[0], *sizes), fields, w=weight.astype(np.float64))


def written(stride: Any, padding: Any, dilation: Any, groups: Any, mode: Any) -> dict[str, Any]:
    """The fields of a convolution in a file."""
    numbers = {"stride": list(stride), "padding": [list(pair) for pair in padding], "dilation": list(dilation)}
    return {"weight": "w", **numbers, "groups": groups, "padding_mode": mode}


def numbers(linear: Any) -> Any:
    """The matrix of a map, in fractions."""
    return checker.matrix(linear).astype(object) * linear.unit


CONVOLUTIONS: dict[str, tuple[Any, ...]] = {  # weight, input, output sizes, stride, padding, dilation, groups, mode
    "plain": (whole(3, 2, 2), (2, 5), (4,), (1,), ((0, 0),), (1,), 1, "zeros"),
    "groups": (whole(4, 3, 2), (6, 5), (4,), (1,), ((0, 0),), (1,), 2, "zeros"),
    "all of it": (whole(3, 2, 3), (2, 7), (3,), (2,), ((2, 1),), (2,), 1, "zeros"),
    "cropped": (whole(2, 1, 2), (1, 6), (2,), (2,), ((1, 3),), (1,), 1, "zeros"),
    "two": (whole(2, 3, 2, 3), (3, 5, 4), (3, 5), (2, 1), ((1, 0), (2, 1)), (1, 1), 1, "zeros"),
    "two in groups": (whole(6, 1, 3, 1), (3, 5, 2), (2, 1), (1, 2), ((0, 1), (0, 0)), (2, 1), 3, "zeros"),
    "three": (whole(2, 1, 1, 2, 3), (1, 2, 3, 4), (1, 2, 3), (2, 1, 1), ((0,) * 2, (0,) * 2, (1, 0)), (1,) * 3, 1),
    "circle": (whole(3, 2, 3), (2, 4), (4,), (1,), ((2, 0),), (1,), 1, "circular"),
    "circle with steps": (whole(2, 1, 2), (1, 6), (3,), (2,), ((1, 1),), (2,), 1, "circular"),
    "reflected": (whole(3, 2, 3), (2, 4), (8,), (1,), ((3, 3),), (1,), 1, "reflect"),
    "replicated": (whole(3, 2, 3), (2, 3), (5,), (2,), ((5, 4),), (1,), 1, "replicate"),
    "unpadded": (whole(3, 2, 3), (2, 5), (3,), (1,), ((0, 0),), (1,), 1, "reflect"),
}
CONVOLUTIONS["three"] = (*CONVOLUTIONS["three"], "zeros")


def composed(matrices: list[Any]) -> Any:
    total = matrices[0]
    for each in matrices[1:]:
        total = each.dot(total)
    return total


def told(wave: Any, z: Mapping[str, Any], torus: Place) -> Any:
    """What a wave reads of variables at every coarse position of a torus."""
    y = np.zeros((wave.rows, *torus), dtype=object)
    for name, taps in wave.taps.items():
        for a, X in taps.items():
            for q in np.ndindex(*torus):
                at = tuple((i + b) % n for i, b, n in zip(q, a, torus, strict=True))
                y[(slice(None), *q)] += X.astype(object).dot(z[name][(slice(None), *at)]) * wave.unit
    return y


def at_positions(y: Any, counts: Place) -> Any:
    """Channels and phases at coarse positions as channels at fine ones."""
    torus = y.shape[1:]
    channels = len(y) // math.prod(counts)
    found = np.zeros((channels, *(n * c for n, c in zip(torus, counts, strict=True))), dtype=object)
    for c, p in itertools.product(range(channels), np.ndindex(*counts)):
        row = y[c * math.prod(counts) + int(np.ravel_multi_index(p, counts))]
        for q in np.ndindex(*torus):
            at = tuple(i * count + phase for i, count, phase in zip(q, counts, p, strict=True))
            found[(c, *at)] = row[q]
    return found


def kernel_of(places: Sequence[Place], out: int, into: int, stride: Place, **options: Any) -> Any:
    weights = {place: whole(out, into, seed=k) for k, place in enumerate(places)}
    return Kernel(Fraction(1, 3), weights, stride, **options)


ONE_DIMENSION = [
    (size, low, high, stride, count)
    for size in (2, 4)
    for low in (-2, -1, 0, 1)
    for high in range(low, low + 3)
    for stride in (1, 2, 3)
    for count in (1, 2, 3)
]


def ends(*values: Any) -> Any:
    return np.vectorize(Fraction, otypes=[object])(np.array(values, dtype=object))


def h(value: float) -> str:
    return float(value).hex()
