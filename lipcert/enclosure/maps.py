"""Linear maps applied to balls: products of integer matrices, without rounding. Floor 2."""

from __future__ import annotations

import itertools
import math
from typing import assert_never

import numpy as np

from lipcert.check import exact_product, index_table
from lipcert.enclosure.ball import Ball, Integers, exactly, over, short, times
from lipcert.linear import Adjoint, Conv, Dense, Diagonal, LinearMap, Reshape, Selection, Separable


def applied(linear: LinearMap, x: Ball) -> Ball:
    """Apply a map to balls of shape ``(N, *in_shape)``.

    Example:
        >>> import torch
        >>> applied(Reshape((2, 2), (4,)), exactly(np.ones((1, 2, 2)))).shape
        (1, 4)
    """
    match linear:
        case Dense(weight):
            return _weighted(x, exactly(weight), _dense)
        case Conv(weight=weight):
            return _weighted(x, exactly(weight), lambda X, W: _convolve(linear, X, W))
        case Adjoint(conv):
            return _weighted(x, exactly(conv.weight), lambda X, W: _convolve_transposed(conv, X, W))
        case Diagonal(scale):
            return times(x, exactly(scale))
        case Selection(index):
            table = index.cpu().numpy()
            return x.moved(lambda X: _gather(X.reshape(len(X), -1), table))
        case Reshape():
            return x.moved(lambda X: X.reshape(len(X), *linear.out_shape))
        case Separable(factors):
            for axis, factor in enumerate(factors, start=1):
                if factor is not None:
                    matrix = Ball(factor.numerator.cpu().numpy().astype(object), None, 0)
                    x = over(_weighted(x, matrix, lambda X, W, axis=axis: _along(X, W, axis)), factor.denominator)
            return x
        case _:
            assert_never(linear)


def _weighted(x: Ball, weight: Ball, apply) -> Ball:
    """``W x``: midpoints by W, radii by |W|."""
    mid = apply(x.mid, weight.mid)
    rad = None if x.rad is None else apply(x.rad, abs(weight.mid))
    return short(Ball(mid, rad, x.bits + weight.bits))


def _dense(X: Integers, W: Integers) -> Integers:
    rows = exact_product(X.reshape(-1, X.shape[-1]), W.T).astype(object)
    return rows.reshape(*X.shape[:-1], len(W))


def _along(X: Integers, W: Integers, axis: int) -> Integers:
    return np.moveaxis(_dense(np.moveaxis(X, axis, -1), W), -1, axis)


def _gather(X: Integers, table: np.ndarray) -> Integers:
    """``X[..., table]`` along the last dimension, and 0 where the table has -1."""
    padded = np.concatenate([X, np.zeros((*X.shape[:-1], 1), dtype=object)], axis=-1)
    return padded[..., table]


def _taps(conv: Conv) -> np.ndarray:
    """For every tap and output position, the flat input position it reads, or -1."""
    tables = [
        index_table(size, out, kernel, stride, before, dilation, conv.padding_mode)
        for size, out, kernel, stride, (before, _), dilation in zip(
            *(conv.in_shape[1:], conv.out_sizes, conv.weight.shape[2:], conv.stride, conv.padding, conv.dilation),
            strict=True,
        )
    ]
    sizes = conv.in_shape[1:]
    rows = []
    for tap in itertools.product(*(range(kernel) for kernel in conv.weight.shape[2:])):
        flat = np.zeros((), dtype=np.int64)
        outside = np.zeros((), dtype=bool)
        for table, position, size in zip(tables, tap, sizes, strict=True):
            flat = flat[..., None] * size + table[:, position]
            outside = outside[..., None] | (table[:, position] < 0)
        rows.append(np.where(outside, -1, flat).ravel())
    return np.stack(rows)


def _convolve(conv: Conv, X: Integers, W: Integers) -> Integers:
    """By group: kernel as a matrix times the values that every tap reads at every position."""
    count, taps = len(X), _taps(conv)
    positions = taps.shape[1]
    read = _gather(X.reshape(count, X.shape[1], -1), taps)
    out, into = W.shape[0] // conv.groups, W.shape[1]
    found = []
    for group in range(conv.groups):
        columns = read[:, group * into : (group + 1) * into]
        columns = columns.transpose(1, 2, 0, 3).reshape(into * len(taps), count * positions)
        kernel = W[group * out : (group + 1) * out].reshape(out, -1)
        found.append(exact_product(kernel, columns).astype(object).reshape(out, count, positions))
    return np.concatenate(found).transpose(1, 0, 2).reshape(count, -1, *conv.out_sizes)


def _convolve_transposed(conv: Conv, X: Integers, W: Integers) -> Integers:
    """Every tap adds to the positions it would have read; with zero padding they differ from one another."""
    count, taps = len(X), _taps(conv)
    out, into = W.shape[0] // conv.groups, W.shape[1]
    flat = X.reshape(count, X.shape[1], -1)
    result = np.zeros((count, conv.in_shape[0], math.prod(conv.in_shape[1:])), dtype=object)
    for group in range(conv.groups):
        kernel = W[group * out : (group + 1) * out].reshape(out, -1)
        values = flat[:, group * out : (group + 1) * out].transpose(1, 0, 2).reshape(out, -1)
        spread = exact_product(kernel.T, values).astype(object).reshape(into, len(taps), count, -1)
        part = result[:, group * into : (group + 1) * into]
        for tap, positions in enumerate(taps):
            inside = positions >= 0
            part[:, :, positions[inside]] += spread[:, tap].transpose(1, 0, 2)[:, :, inside]
    return result.reshape(count, *conv.in_shape)
