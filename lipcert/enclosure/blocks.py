"""Functions of balls that are not elementwise: maxima, sorting, softmax and their kin. Floor 2."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lipcert.enclosure.ball import Ball, Integers, add, exactly, joined, monotone, product
from lipcert.enclosure.functions import Arb, arithmetic, as_arb, as_ball, elementwise, rectified
from lipcert.errors import UnsupportedOperation
from lipcert.graph import Opaque


def mapped(node: Opaque, x: Ball) -> Ball:
    """The values of a function that is neither affine nor elementwise.

    Raises:
        UnsupportedOperation: If the function is a user's own, or needs Arb and python-flint is not installed.
    """
    if node.function not in _BLOCKS:
        raise UnsupportedOperation(
            f"`{node.name}` is {node.function}, whose values cannot be enclosed: a pair through it is never confirmed "
            f"exactly.",
            path=node.name,
        )
    return _BLOCKS[node.function](x, node.parameters, node.shape)


def _maxima(x: Ball, parameters: Mapping[str, Any], shape: tuple[int, ...]) -> Ball:
    def change(X: Integers) -> Integers:
        for axis, ranges in enumerate(parameters["windows"], start=1):
            if ranges is not None:
                X = np.moveaxis(X, axis, 0)
                X = np.moveaxis(np.stack([X[start:stop:step].max(0) for start, stop, step in ranges]), 0, axis)
        return X

    return monotone(x, change)


def _sorted(x: Ball, parameters: Mapping[str, Any], shape: tuple[int, ...]) -> Ball:
    """Order statistics do not decrease in any entry."""
    group, interleaved = parameters["group"], parameters["arrangement"] == "interleaved"

    def change(X: Integers) -> Integers:
        X = np.moveaxis(X, parameters["dim"] + 1, -1)
        if interleaved:  # halves against each other, maxima first
            first, second = np.split(X, 2, axis=-1)
            X = np.concatenate([np.maximum(first, second), np.minimum(first, second)], axis=-1)
        else:
            X = np.sort(X.reshape(*X.shape[:-1], -1, group), axis=-1).reshape(X.shape)
        return np.moveaxis(X, -1, parameters["dim"] + 1)

    return monotone(x, change)


def _reflected(x: Ball, parameters: Mapping[str, Any], shape: tuple[int, ...]) -> Ball:
    """Pairs of channels reflected at lines of angle theta / 2 (see `lipcert.nn.Householder`)."""
    axis = parameters["dim"] + 1
    half = exactly(parameters["theta"] / 2)
    side = [1] * (len(x.shape) - 1)
    side[axis - 1] = -1
    sine, cosine = (elementwise(f, half).moved(lambda X: X.reshape(1, *side)) for f in (_sine, _cosine))
    a, b = (x.moved(lambda X, part=part: np.split(X, 2, axis=axis)[part]) for part in (0, 1))
    distance = rectified(add([product(b, cosine), _negative(product(a, sine))]))
    twice = Ball(2 * distance.mid, None if distance.rad is None else 2 * distance.rad, distance.bits)
    return joined([add([a, product(twice, sine)]), add([b, _negative(product(twice, cosine))])], axis)


def _sine(x: Arb) -> Arb:
    return x.sin()


def _cosine(x: Arb) -> Arb:
    return x.cos()


def _negative(x: Ball) -> Ball:
    return Ball(-x.mid, x.rad, x.bits)


def _along(x: Ball, dims: list[int], shape: tuple[int, ...], value: Callable[[list[Arb]], list[Arb]]) -> Ball:
    """A function of all entries along some dimensions (batch excluded), for every choice of the others."""
    axes = [dim + 1 for dim in dims]
    moved = np.moveaxis(as_arb(x), axes, range(-len(axes), 0))
    kept = moved.shape[: moved.ndim - len(axes)]
    rows = moved.reshape(math.prod(kept), -1)
    flint = arithmetic()
    with flint.ctx.workprec(2048):
        found = [value(list(row)) for row in rows]
    count = len(found[0])
    ball = as_ball([entry for row in found for entry in row], (*kept, count))
    if count == 1:
        return ball.moved(lambda X: X.reshape(x.shape[0], *shape))
    return ball.moved(lambda X: np.moveaxis(X, -1, axes[0]))


def _total(entries: list[Arb]) -> Arb:
    return sum(entries[1:], entries[0])


def _softmax(x: Ball, parameters: Mapping[str, Any], shape: tuple[int, ...]) -> Ball:
    def value(row: list[Arb]) -> list[Arb]:
        powers = [(entry - row[0]).exp() for entry in row]
        total = _total(powers)
        return [power / total for power in powers]

    return x if x.shape[parameters["dim"] + 1] == 0 else _along(x, [parameters["dim"]], shape, value)


def _logsumexp(x: Ball, parameters: Mapping[str, Any], shape: tuple[int, ...]) -> Ball:
    def value(row: list[Arb]) -> list[Arb]:
        powers = [(entry - row[0]).exp() for entry in row]
        return [row[0] + _total(powers).log()]

    return _along(x, parameters["dim"], shape, value)


def _norm2(x: Ball, parameters: Mapping[str, Any], shape: tuple[int, ...]) -> Ball:
    def value(row: list[Arb]) -> list[Arb]:
        squares = [entry * entry for entry in row]
        return [_total(squares).sqrt()]

    return _along(x, parameters["dim"], shape, value)


def _product(x: Ball, parameters: Mapping[str, Any], shape: tuple[int, ...]) -> Ball:
    """One half of the entries times the other."""
    first, second = (x.moved(lambda X, part=part: np.split(X, 2, axis=1)[part]) for part in (0, 1))
    return product(first, second)


def _square(x: Ball, parameters: Mapping[str, Any], shape: tuple[int, ...]) -> Ball:
    return product(x, x)


def _scalar(value: Callable[[Arb], Arb]) -> Callable[[Ball, Mapping[str, Any], tuple[int, ...]], Ball]:
    return lambda x, parameters, shape: elementwise(value, x)


def _normalised(x: Ball, parameters: Mapping[str, Any], shape: tuple[int, ...]) -> Ball:
    """Layer normalisation without its scale and shift."""
    last = len(shape) - parameters["dims"]
    flint = arithmetic()

    def value(row: list[Arb]) -> list[Arb]:
        centre = _total(row) / len(row)
        away = [entry - centre for entry in row]
        deviation = (_total([entry * entry for entry in away]) / len(row) + flint.arb(parameters["eps"])).sqrt()
        return [entry / deviation for entry in away]

    flat = x.moved(lambda X: X.reshape(len(X), *shape[:last], -1))
    return _along(flat, [last], flat.shape[1:], value).moved(lambda X: X.reshape(len(X), *shape))


_BLOCKS: dict[str, Callable[[Ball, Mapping[str, Any], tuple[int, ...]], Ball]] = {
    "max_windows": _maxima,
    "sort": _sorted,
    "householder": _reflected,
    "softmax": _softmax,
    "logsumexp": _logsumexp,
    "norm2": _norm2,
    "product": _product,
    "square": _square,
    "layer_norm": _normalised,
    "exp": _scalar(lambda x: x.exp()),
    "sqrt": _scalar(lambda x: x.sqrt()),
    "log": _scalar(lambda x: x.log()),
    "reciprocal": _scalar(lambda x: 1 / x),
}
