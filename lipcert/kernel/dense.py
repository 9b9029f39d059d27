r"""Rigorous operator norms of matrices. Floor 1.

The spectral norm is bounded by :math:`\lVert A \rVert_2^2 \le c + \rho + E`, where :math:`c I - G \succeq -\rho I` is
proved a posteriori (`lipcert.kernel.psd`) for the floating-point Gram matrix G, and E bounds its rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lipcert.kernel.backend import BLAS, Backend
from lipcert.kernel.psd import collatz_wielandt, gram, gram_terms, magnitude, top_eigenvalue_upper
from lipcert.kernel.rounding import (
    Array,
    add_up,
    as_real,
    gamma,
    largest_magnitude,
    largest_sum_up,
    mul_up,
    require_finite,
    require_ieee,
    scale_up,
    sqrt_up,
    sum_of_squares_up,
    sum_up,
)

_BLOCK = 2**22
_DROPPED_BELOW = 2.0**-300


@dataclass(frozen=True)
class Scaled:
    """``A = 2**exponent (B + D)`` with the entries of B at most 1, and zero or at least ``2**-300``.

    Every product of two entries of B is then a multiple of ``2**-704``: no sum of such products can underflow. D
    holds the dropped entries; its norm is at most `dropped`. B is made block by block, or kept if it is small.
    """

    matrix: Array
    exponent: int
    kept: tuple[Array, ...]

    @property
    def dropped(self) -> float:
        """An upper bound of the norm of D."""
        return _DROPPED_BELOW * (math.isqrt(self.matrix.size) + 1)

    def blocks(self) -> Iterator[Array]:
        """The rows of B, a few at a time, each ``(1, rows, columns)``."""
        return iter(self.kept) if self.kept else _row_blocks(self.matrix, self.exponent)


def scaled(matrix: Array, peak: float) -> Scaled:
    """Scale a matrix whose largest entry in magnitude is ``peak > 0``, tall side down."""
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    exponent = math.frexp(peak)[1]
    kept = tuple(_row_blocks(tall, exponent)) if tall.size <= _BLOCK else ()
    return Scaled(tall, exponent, kept)


def norm2_upper(A: Array, *, backend: Backend = BLAS) -> float:
    r"""An upper bound of the spectral norm :math:`\lVert A \rVert_2` (l2 to l2), rounding included.

    Args:
        A: ``(m, n)``, real; read as exact numbers.
        backend: Where products, factors and estimates come from.

    Returns:
        A bound at most about 1e-9 (typically ``n**1.5 u``) above the norm, relatively; infinity if the norm is above
        the largest float64; 0.0 for an empty matrix.

    Raises:
        NotFinite: If an entry is NaN or infinite.
        InvalidInput: If the entries are not real numbers, or there are not two dimensions.
        FloatEnvironment: If the processor does not round as IEEE 754 says.

    Example:
        >>> 5.0 <= norm2_upper(np.array([[3.0, 4.0]])) <= 5.0 * (1 + 1e-14)
        True
    """
    A, peak = _checked(A)
    if peak == 0.0:
        return 0.0
    with np.errstate(all="ignore"):
        B = scaled(A, peak)
        simple = min(frobenius_upper(B), _schur_upper(A, B.exponent))
        squared = add_up(_gram_eigenvalue_upper(B, backend), gram_error(B))
        bound = add_up(sqrt_up(squared), B.dropped)
        return scale_up(float(np.fmin(bound, add_up(simple, B.dropped))), B.exponent)


def gram_error(B: Scaled) -> float:
    """An upper bound of ``| B.T B - fl(B.T B) |_2``: gamma times ``| |B| |_2**2``."""
    rows, columns = B.matrix.shape

    def apply(x: Array) -> Array:
        total = np.zeros_like(x)
        for block in B.blocks():
            size = magnitude((block,))
            total += np.matmul(size.swapaxes(-1, -2), np.matmul(size, x[:, :, None]))[:, :, 0]
        return total

    squared = collatz_wielandt(apply, np.ones((1, columns)), rows)[0]
    return float(mul_up(gamma(gram_terms((B.matrix,))), squared))


def frobenius_upper(B: Scaled) -> float:
    """An upper bound of the Frobenius norm of B: always valid, whatever the oracles do."""
    total = 0.0
    for block in B.blocks():
        total = add_up(total, sum_up(sum_of_squares_up(block[0], 1)[None], 1)[0])
    return float(sqrt_up(total))


def norm1_upper(A: Array) -> float:
    """The l1 to l1 norm: the largest column sum of ``|A|``, rounded up.

    Example:
        >>> norm1_upper(np.array([[1.0, -2.0], [3.0, 4.0]]))
        6.0
    """
    A, peak = _checked(A)
    return 0.0 if peak == 0.0 else largest_sum_up(np.abs(A.T).astype(np.float64, copy=False))


def norminf_upper(A: Array) -> float:
    """The linf to linf norm: the largest row sum of ``|A|``, rounded up.

    Example:
        >>> norminf_upper(np.array([[1.0, -2.0], [3.0, 4.0]]))
        7.0
    """
    A, peak = _checked(A)
    return 0.0 if peak == 0.0 else largest_sum_up(np.abs(A).astype(np.float64, copy=False))


def max_entry(A: Array) -> float:
    """The l1 to linf norm: the largest ``|entry|``, exact."""
    return _checked(A)[1]


def row_norms_upper(A: Array) -> float:
    """The l2 to linf norm: the largest l2 norm of a row, rounded up.

    Example:
        >>> 5.0 <= row_norms_upper(np.array([[3.0, 4.0], [0.0, 1.0]])) <= 5.00000000000001
        True
    """
    A, peak = _checked(A)
    if peak == 0.0:
        return 0.0
    with np.errstate(all="ignore"):
        exponent = math.frexp(peak)[1]
        rows = max(1, _BLOCK // A.shape[1])
        squares = [
            float(np.max(sum_of_squares_up(_times_power(A[i : i + rows], -exponent), 1)))
            for i in range(0, len(A), rows)
        ]
        return scale_up(float(add_up(sqrt_up(max(squares)), _DROPPED_BELOW)), exponent)


def column_norms_upper(A: Array) -> float:
    """The l1 to l2 norm: the largest l2 norm of a column, rounded up."""
    return row_norms_upper(np.asarray(A).T)


def _checked(A: Array) -> tuple[Array, float]:
    require_ieee()
    A = as_real(A, ndim=2)
    peak = largest_magnitude(A)
    require_finite(peak)
    return A, peak


def _gram_eigenvalue_upper(B: Scaled, backend: Backend) -> float:
    G = None
    for block in B.blocks():
        (part,) = gram((block,), backend.gemm)
        G = part if G is None else np.add(G, part, out=G)
    assert G is not None
    return top_eigenvalue_upper((G,), backend=backend).bound


def _schur_upper(A: Array, exponent: int) -> float:
    r""":math:`\sqrt{\lVert A \rVert_1 \lVert A \rVert_\infty}` scaled like B: tight for few entries per row."""
    sums = [0.0, 0.0]
    rows = max(1, _BLOCK // A.shape[1])
    columns = np.zeros(A.shape[1])
    for start in range(0, len(A), rows):
        block = np.abs(_times_power(A[start : start + rows], -exponent))
        sums[0] = max(sums[0], float(np.max(sum_up(block, 1))))
        columns = columns + np.sum(block, axis=0)
    sums[1] = float(np.max(mul_up(columns, 1.0 + 2.0 * gamma(len(A)))))
    return float(sqrt_up(mul_up(sums[0], sums[1])))


def _row_blocks(matrix: Array, exponent: int) -> Iterator[Array]:
    rows = max(1, _BLOCK // matrix.shape[1])
    for start in range(0, len(matrix), rows):
        block = _times_power(matrix[start : start + rows], -exponent)
        block[np.abs(block) < _DROPPED_BELOW] = 0.0
        yield block[None]


def _times_power(values: Array, exponent: int) -> Array:
    """``values * 2**exponent``, exact for results of at least ``2**-1022``; two steps, each within range."""
    half = exponent // 2
    result = np.multiply(values, 2.0**half, dtype=np.float64)
    result *= 2.0 ** (exponent - half)
    return result
