r"""A rigorous upper bound of the largest eigenvalue, from an untrusted Cholesky factor. Floor 1.

For Hermitian H and any matrix R, :math:`R^* R \succeq 0` gives :math:`H \succeq -\lVert H - R^* R \rVert_2 I`. So a
factor that came from anywhere proves something once its residual is bounded, rounding included. Stacks of matrices
are given as real parts, or as real and imaginary parts, so that all products are real ones.

References:
    | Verification of positive definiteness (Rump, 2006), https://doi.org/10.1007/s10543-006-0056-1
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lipcert.kernel.backend import BLAS, Backend, Parts
from lipcert.kernel.rounding import UNIT, Array, add_up, div_up, gamma, mul_up, sqrt_up, sum_of_squares_up

_TRIES = 12
_POWER_STEPS = 3


def magnitude(stack: Parts) -> Array:
    """``|Re| + |Im|`` entrywise, which bounds the modulus (up to one rounding, for complex stacks)."""
    return np.abs(stack[0]) if len(stack) == 1 else np.abs(stack[0]) + np.abs(stack[1])


def gram(stack: Parts, gemm: Callable[[Array, Array], Array]) -> Parts:
    """``F* F`` in floating point; each entry is off by at most `gram_terms` roundings of ``magnitude* magnitude``."""
    if len(stack) == 1:
        return (gemm(stack[0].swapaxes(-1, -2), stack[0]),)
    joined = np.concatenate(stack, axis=-2)
    cross = gemm(stack[0].swapaxes(-1, -2), stack[1])
    return gemm(joined.swapaxes(-1, -2), joined), cross - cross.swapaxes(-1, -2)


def gram_terms(stack: Parts) -> int:
    """How many roundings an entry of `gram` may suffer, `magnitude` and its product included."""
    rows = stack[0].shape[-2]
    return rows if len(stack) == 1 else 2 * rows + 6


def collatz_wielandt(apply: Callable[[Array], Array], start: Array, rows: int) -> Array:
    r"""Bound :math:`\lVert A \rVert_2^2` for non-negative A: :math:`\max_i (A^T A x)_i / x_i` for any x > 0.

    Args:
        apply: ``x -> A.T @ (A @ x)`` in floating point, on vectors ``(batch, columns)``. Entries of A are zero or at
            least ``2**-400`` times its largest.
        start: ``(batch, columns)``, any positive vectors.
        rows: Number of rows of A.

    Returns:
        ``(batch,)``, rounded up.

    References:
        | Matrix Iterative Analysis (Varga, 2000), theorem 2.9
    """
    columns = start.shape[-1]
    inflation = 1.0 + 4.0 * (gamma(rows + 1) + gamma(columns + 1))
    best = np.full(start.shape[0], np.inf)
    x = start
    for _ in range(_POWER_STEPS):
        z = apply(x)
        quotient = np.max(div_up(add_up(mul_up(z, inflation), (rows + columns) * 2.0**-1000), x), axis=1)
        best = np.fmin(best, np.where(np.isnan(quotient), np.inf, quotient))
        peak = np.max(z, axis=1, keepdims=True)
        x = np.maximum(z / np.where(peak > 0.0, peak, 1.0), 1e-6)
    return best


def squared_norm_of_magnitude(stack: Parts) -> Array:
    """Upper bounds of ``| |F| |_2**2`` for a stack, ``(batch,)``."""
    A = magnitude(stack)
    batch, rows, columns = A.shape

    def apply(x: Array) -> Array:
        return np.matmul(A.swapaxes(-1, -2), np.matmul(A, x[:, :, None]))[:, :, 0]

    return collatz_wielandt(apply, np.ones((batch, columns)), rows)


def residual_norm(residual: Parts) -> Array:
    """Upper bounds of the Frobenius norms, ``(batch,)``; the subtraction's own rounding included."""
    squares = sum_of_squares_up(residual[0], (-2, -1))
    for part in residual[1:]:
        squares = add_up(squares, sum_of_squares_up(part, (-2, -1)))
    return mul_up(sqrt_up(squares), 1.0 + 4.0 * UNIT)


def product_error(factor: Parts) -> Array:
    """Upper bounds of ``| R* R - fl(R* R) |_2``, ``(batch,)``."""
    return mul_up(gamma(gram_terms(factor)), squared_norm_of_magnitude(factor))


def psd_defect(H: Parts, *, backend: Backend = BLAS) -> Array:
    r"""Numbers rho with :math:`H + \rho I \succeq 0`, one per matrix of the stack; infinity where there is no proof.

    Args:
        H: Stack of Hermitian matrices, float64.
        backend: Where the factor and the product come from.

    Returns:
        ``(batch,)``: about ``n**1.5 u`` times the largest eigenvalue, where H is positive definite beyond rounding.

    Example:
        >>> rho = psd_defect((np.array([[[2.0, 1.0], [1.0, 2.0]]]),))
        >>> bool(rho[0] < 1e-14)
        True
    """
    count, n, _ = H[0].shape
    factor = backend.cholesky(H)
    if factor is None:
        return np.full(count, np.inf)
    factor = _flushed(factor)
    product = gram(factor, backend.gemm)
    residual = tuple(part - image for part, image in zip(H, product, strict=True))
    rho = add_up(add_up(residual_norm(residual), product_error(factor)), n * 2.0**-899)
    return np.where(np.isnan(rho), np.inf, rho)


@dataclass(frozen=True)
class Proof:
    """``G <= bound I`` for every matrix of a stack, shown by a factor of ``shift I - G``."""

    shift: float
    bound: float


def top_eigenvalue_upper(G: Parts, shift: float = 0.0, *, backend: Backend = BLAS) -> Proof:
    r"""An upper bound of the largest eigenvalue over a stack of Hermitian matrices.

    Proves :math:`c I - G \succeq -\rho I` for one c: first ``shift`` (if positive), then an estimate and a little
    more each time. The bound is infinity if every try fails.

    Args:
        G: Stack of Hermitian matrices, float64.
        shift: A shift that served elsewhere, worth trying first.
        backend: Where products, factors and estimates come from.
    """
    if shift > 0.0:
        bound = _shifted_bound(G, shift, backend)
        if bound < np.inf:
            return Proof(shift, bound)
    estimate = backend.top_eigenvalue(G)
    if not estimate > 0.0:
        estimate = 2.0**-60
    slack = 4e-14 * G[0].shape[-1] ** 0.5
    for _ in range(_TRIES):
        c = max(shift, estimate * (1.0 + slack))
        bound = _shifted_bound(G, c, backend)
        if bound < np.inf:
            return Proof(c, bound)
        slack *= 8.0
    return Proof(float("inf"), float("inf"))


def _shifted_bound(G: Parts, c: float, backend: Backend) -> float:
    H = tuple(-part for part in G)
    diagonal = np.einsum("bii->bi", H[0])
    diagonal += c
    rounding = mul_up(np.max(np.abs(diagonal)), UNIT * (1.0 + 4.0 * UNIT))
    bound = float(add_up(c, add_up(np.max(psd_defect(H, backend=backend)), rounding)))
    return bound if bound == bound else float("inf")


def _flushed(factor: Parts) -> Parts:
    """Zero what is below ``2**-400`` of the largest entry: any R will do, and now no product can underflow."""
    peak = np.max(magnitude(factor), axis=(-2, -1), keepdims=True)
    return tuple(np.where(np.abs(part) < peak * 2.0**-400, 0.0, part) for part in factor)
