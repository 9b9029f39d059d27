r"""Norms of convolutions other than l2: exact entries of the columns and rows that can be the largest. Floor 2.

A row (an output) or a column (an input) of a convolution's matrix depends on the position only through which taps
meet which inputs. Per dimension there are few such patterns; a pattern that is part of another is never the larger.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator

import numpy as np

from lipcert.kernel.dense import max_entry, norm1_upper, norminf_upper, row_norms_upper
from lipcert.kernel.rounding import Array, add_up, as_real, gamma, largest_magnitude, mul_up, require_finite
from lipcert.linear import Conv
from lipcert.norms import L1, L1_LINF, LINF, Norms
from lipcert.opnorm.geometry import axes, reads
from lipcert.opnorm.maps import to_array

Mask = tuple[int, ...]
Pattern = tuple[Mask, ...]
"""The entries a row (or column) has along one dimension: each is the sum of the taps its mask names."""


def conv_norm(conv: Conv, norms: Norms) -> float:
    """The norm of a convolution in a supported pair other than l2, rounded up."""
    if norms == L1:
        return max((norm1_upper(block.T) for block in _columns(conv)), default=0.0)
    if norms == LINF:
        return max((norminf_upper(block) for block in _rows(conv)), default=0.0)
    if norms == L1_LINF:
        return max((max_entry(block) for block in _rows(conv)), default=0.0)
    return max((row_norms_upper(block) for block in _rows(conv)), default=0.0)


def adjoint_norm(conv: Conv, norms: Norms) -> float:
    """The norm of the transpose: rows and columns change places."""
    if norms in (L1, LINF):
        return conv_norm(conv, LINF if norms == L1 else L1)
    if norms == L1_LINF:
        return conv_norm(conv, norms)
    return max((row_norms_upper(block) for block in _columns(conv)), default=0.0)


def row_patterns(targets: Array) -> list[Pattern]:
    """Patterns of the outputs, from ``reads``: which taps fall on the same input."""
    found = set()
    for row in targets.tolist():
        inputs = sorted({target for target in row if target >= 0})
        found.add(tuple(sorted(tuple(int(target == t) for target in row) for t in inputs)))
    return _maximal(found)


def column_patterns(targets: Array) -> list[Pattern]:
    """Patterns of the inputs, from ``reads``: which outputs read one, each through which taps."""
    masks: dict[int, dict[int, list[int]]] = {}
    for i, row in enumerate(targets.tolist()):
        for j, target in enumerate(row):
            if target >= 0:
                masks.setdefault(target, {}).setdefault(i, [0] * len(row))[j] = 1
    return _maximal({tuple(sorted(map(tuple, outputs.values()))) for outputs in masks.values()})


def _maximal(patterns: set[Pattern]) -> list[Pattern]:
    counted = {pattern: Counter(pattern) for pattern in patterns if pattern}
    return [p for p in counted if not any(p != other and counted[p] <= counted[other] for other in counted)]


def _rows(conv: Conv) -> Iterator[Array]:
    """``|entries|`` of the rows that matter, ``(out channels, entries)``, rounded up."""
    weight = _weight(conv)
    for patterns in itertools.product(*(row_patterns(reads(axis)) for axis in axes(conv))):
        yield _merged(weight, patterns).reshape(len(weight), -1)


def _columns(conv: Conv) -> Iterator[Array]:
    """``|entries|`` of the columns that matter, ``(in channels, entries)``, rounded up."""
    weight = _weight(conv)
    for patterns in itertools.product(*(column_patterns(reads(axis)) for axis in axes(conv))):
        entries = _merged(weight, patterns)
        grouped = entries.reshape(conv.groups, -1, *entries.shape[1:])
        yield np.moveaxis(grouped, 2, 1).reshape(conv.in_shape[0], -1)


def _weight(conv: Conv) -> Array:
    weight = as_real(to_array(conv.weight)).astype(np.float64, copy=False)
    require_finite(largest_magnitude(weight))
    return weight


def _merged(weight: Array, patterns: tuple[Pattern, ...]) -> Array:
    """``|sum of taps|`` per mask and dimension, rounded up; exact where each mask names one tap."""
    merged, size = weight, np.abs(weight)
    shared = any(sum(mask) > 1 for pattern in patterns for mask in pattern)
    for dim, pattern in enumerate(patterns, start=2):
        matrix = np.array(pattern, dtype=np.float64)
        merged = np.moveaxis(np.tensordot(merged, matrix, axes=(dim, 1)), -1, dim)
        if shared:
            size = np.moveaxis(np.tensordot(size, matrix, axes=(dim, 1)), -1, dim)
    if not shared:
        return np.abs(merged)
    terms = int(np.prod(weight.shape[2:])) + weight.ndim
    return add_up(np.abs(merged), mul_up(2.0 * gamma(terms), size))
