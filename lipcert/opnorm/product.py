r"""Products of small maps, written out as matrices. Floor 2.

The product is rounded, and so are some entries; one number bounds the Frobenius norm of all that. It bounds the
error's norm in every supported pair, up to :math:`\sqrt n`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lipcert.kernel.rounding import (
    UNIT,
    Array,
    add_up,
    as_real,
    gamma,
    largest_magnitude,
    mul_up,
    require_finite,
    sqrt_up,
    sum_of_squares_up,
    sum_up,
)
from lipcert.linear import Adjoint, Conv, Dense, Diagonal, LinearMap, Selection, Separable
from lipcert.norms import L1, LINF, Norms
from lipcert.opnorm.geometry import axes, most_copies, reads
from lipcert.opnorm.maps import Effort, NormBound, matrix_norm, rigorous, to_array
from lipcert.opnorm.spectral import matrix


@dataclass(frozen=True, eq=False)
class Near:
    """A matrix within Frobenius distance ``error`` of the one meant."""

    matrix: Array
    error: float


def product_norm(maps: Sequence[LinearMap], norms: Norms, effort: Effort) -> NormBound | None:
    """The norm of ``maps[-1] o ... o maps[0]``, shapes flattened; ``None`` if that is too large to write out.

    Raises:
        NotFinite: If a weight is NaN or infinite.
    """
    if not _affordable(maps, effort):
        return None
    with np.errstate(all="ignore"):
        product = _written_out(maps[0])
        for linear in maps[1:]:
            product = _after(linear, product)
        if not (np.all(np.isfinite(product.matrix)) and math.isfinite(product.error)):
            return None
        rows, columns = product.matrix.shape
        spread = {L1: math.sqrt(rows), LINF: math.sqrt(columns)}.get(norms, 1.0) * (1.0 + 4.0 * UNIT)
        return rigorous(
            float(add_up(matrix_norm(product.matrix, norms), mul_up(spread, product.error))), "matrix product"
        )


def _affordable(maps: Sequence[LinearMap], effort: Effort) -> bool:
    first, last = math.prod(maps[0].in_shape), math.prod(maps[-1].out_shape)
    sides = [(math.prod(one.out_shape), math.prod(one.in_shape)) for one in maps]
    largest = max(max(out * into, out * first) for out, into in sides)
    n, m = sorted((first, last))
    flops = sum(2.0 * out * into * first for out, into in sides[1:]) + 2.0 * m * n * n + 6.0 * n**3
    return 0 < n <= effort.dense_side and largest <= effort.dense_entries and flops <= effort.flops


def _after(linear: LinearMap, near: Near) -> Near:
    """Apply a map to the columns of a matrix."""
    match linear:
        case Diagonal():
            scale = _diagonal(linear)
            scaled = scale[:, None] * near.matrix
            return Near(scaled, _sum(mul_up(largest_magnitude(scale), near.error), _rounding(scaled, UNIT)))
        case Selection(index):
            rows = to_array(index).ravel()
            padded = np.vstack([near.matrix, np.zeros((1, near.matrix.shape[1]))])
            return Near(padded[rows], float(mul_up(sqrt_up(float(most_copies(rows))), near.error)))
        case _:
            left = _written_out(linear)
            product = left.matrix @ near.matrix
            # (A + a)(B + b) - fl(A B), in Frobenius norms.
            A, B = _frobenius(left.matrix), _frobenius(near.matrix)
            rounding = mul_up(mul_up(gamma(left.matrix.shape[1]), A), B)
            underflow = left.matrix.shape[1] * product.size * 2.0**-1022
            spread = add_up(mul_up(left.error, add_up(B, near.error)), mul_up(A, near.error))
            return Near(product, _sum(rounding, underflow, spread))


def _written_out(linear: LinearMap) -> Near:
    match linear:
        case Dense(weight, in_shape):
            return Near(np.kron(np.eye(math.prod(in_shape[:-1])), _finite(to_array(weight))), 0.0)
        case Conv():
            return _convolution(linear)
        case Adjoint(conv):
            straight = _convolution(conv)
            return Near(np.ascontiguousarray(straight.matrix.T), straight.error)
        case Separable():
            return _kronecker(linear)
        case _:
            size = math.prod(linear.in_shape)
            return _after(linear, Near(np.eye(size), 0.0))


def _convolution(conv: Conv) -> Near:
    weight = _finite(to_array(conv.weight))
    targets = [reads(axis) for axis in axes(conv)]
    inputs = list(conv.in_shape[1:])
    groups = weight.reshape(conv.groups, -1, *weight.shape[1:])
    blocks = [matrix(group, targets, inputs) for group in groups]
    height, width = blocks[0].shape
    full = np.zeros((height * conv.groups, width * conv.groups))
    for g, block in enumerate(blocks):
        full[g * height : (g + 1) * height, g * width : (g + 1) * width] = block
    if conv.padding_mode == "zeros":
        return Near(full, 0.0)  # no two taps share an entry
    taps = math.prod(weight.shape[2:])
    sizes = [_frobenius(matrix(np.abs(group), targets, inputs)) for group in groups]
    return Near(full, float(mul_up(2.0 * gamma(taps), sum_up(np.array(sizes), 0))))


def _kronecker(linear: Separable) -> Near:
    full = np.ones((1, 1))
    for size, factor in zip(linear.in_shape, linear.factors, strict=True):
        one = np.eye(size)
        if factor is not None:
            one = as_real(to_array(factor.numerator)).astype(np.float64) / factor.denominator
        full = np.kron(full, one)
    # A quotient and a product per factor, each rounded once; denominators may need rounding first.
    return Near(full, _rounding(full, gamma(3 * len(linear.factors))))


def _diagonal(linear: Diagonal) -> Array:
    return np.broadcast_to(_finite(to_array(linear.scale)), linear.in_shape).ravel()


def _finite(values: Array) -> Array:
    values = as_real(values).astype(np.float64, copy=False)
    require_finite(largest_magnitude(values))
    return values


def _rounding(values: Array, relative: float) -> float:
    """Frobenius bound of an entrywise relative error, and of what underflow may have cost."""
    return _sum(mul_up(2.0 * relative, _frobenius(values)), values.size * 2.0**-1022)


def _frobenius(values: Array) -> float:
    return float(sqrt_up(sum_of_squares_up(values, (0, 1))))


def _sum(*terms: Array | float) -> float:
    total: Array | float = 0.0
    for term in terms:
        total = add_up(total, term)
    return float(total)
