"""The replaceable parts of the kernel, and the untrusted guesses among them. Floor 1.

Only `gemm` carries an assumption (see the package's docstring). A wrong `cholesky` or `top_eigenvalue` can make a
bound loose; it cannot make it false, and the tests replace both by liars.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lipcert.kernel.rounding import Array

Parts = tuple[Array, ...]
"""A stack of matrices ``(batch, m, n)``: ``(real,)`` or ``(real, imaginary)``."""

_STEPS_BETWEEN_CHECKS = 12
_MOST_STEPS = 120
_CONVERGED = 1e-11


def _cholesky(stack: Parts) -> Parts | None:
    try:
        factor = np.linalg.cholesky(stack[0] if len(stack) == 1 else stack[0] + 1j * stack[1])
    except np.linalg.LinAlgError:
        return None
    if len(stack) == 1:
        return (factor.swapaxes(-1, -2),)
    return factor.real.swapaxes(-1, -2).copy(), -factor.imag.swapaxes(-1, -2)


def _top_eigenvalue(stack: Parts) -> float:
    """About the largest eigenvalue of a stack of Hermitian matrices; untrusted."""
    count, n, _ = stack[0].shape
    matrices = stack[0] if len(stack) == 1 else stack[0] + 1j * stack[1]
    if not np.all(np.isfinite(matrices)):
        return float("nan")
    if n > (400 if count == 1 else 64):
        guess, error = _lanczos(matrices)
        if error <= _CONVERGED * guess:
            return max(guess + error, float(np.max(np.diagonal(stack[0], axis1=1, axis2=2))))
    try:
        return float(np.linalg.eigvalsh(matrices).max())
    except np.linalg.LinAlgError:
        return float("nan")


def _lanczos(matrices: Array) -> tuple[float, float]:
    """Largest Ritz value over a stack, and its likely error; full reorthogonalisation."""
    count, n, _ = matrices.shape
    phase = np.arange(1, n + 1, dtype=np.float64)
    v = np.tile(1.0 + 0.5 * np.cos(0.7 * phase * phase + phase), (count, 1)).astype(matrices.dtype)
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    basis, alphas, betas = [v], [], []
    best, error = 0.0, np.inf
    for step in range(1, min(n, _MOST_STEPS) + 1):
        w = np.matmul(matrices, basis[-1][:, :, None])[:, :, 0]
        alphas.append(np.einsum("bi,bi->b", basis[-1].conj(), w).real)
        Q = np.stack(basis, axis=1)
        for _ in range(2):
            w = w - np.matmul(np.matmul(Q.conj(), w[:, :, None]).swapaxes(1, 2), Q)[:, 0, :]
        length = np.linalg.norm(w, axis=1)
        # An invariant subspace: what is left is rounding noise, and normalised noise would poison the estimate.
        alive = length > 1e-13 * np.max(np.abs(alphas), axis=0)
        betas.append(np.where(alive, length, 0.0))
        if step % _STEPS_BETWEEN_CHECKS == 0 or step == min(n, _MOST_STEPS) or not np.any(alive):
            best, error = _ritz(np.stack(alphas, 1), np.stack(betas, 1))
            if error <= _CONVERGED / 10.0 * best or not np.any(alive):
                break
        basis.append(np.where(alive[:, None], w / np.where(alive, length, 1.0)[:, None], 0.0))
    return best, error


def _ritz(alphas: Array, betas: Array) -> tuple[float, float]:
    count, steps = alphas.shape
    T = np.zeros((count, steps, steps))
    index = np.arange(steps)
    T[:, index, index] = alphas
    T[:, index[1:], index[:-1]] = T[:, index[:-1], index[1:]] = betas[:, :-1]
    values, vectors = np.linalg.eigh(T)
    residual = betas[:, -1] * np.abs(vectors[:, -1, -1])
    gap = values[:, -1] - values[:, -2] if steps > 1 else residual
    error = np.minimum(residual, residual**2 / np.maximum(gap, 1e-300))
    leader = int(np.argmax(values[:, -1] + error))
    return float(values[leader, -1]), float(error[leader])


@dataclass(frozen=True)
class Backend:
    """What the kernel calls and tests can replace.

    Attributes:
        gemm: Product of stacks of float64 matrices, each entry within ``gamma_k |A| |B|`` of the true one.
        cholesky: Any factor ``R`` with about ``R* R = H`` for a stack of Hermitian matrices, or ``None``. Untrusted.
        top_eigenvalue: About the largest eigenvalue over a stack of Hermitian matrices. Untrusted.
    """

    gemm: Callable[[Array, Array], Array] = np.matmul
    cholesky: Callable[[Parts], Parts | None] = _cholesky
    top_eigenvalue: Callable[[Parts], float] = _top_eigenvalue


BLAS = Backend()
"""numpy's own routines."""
