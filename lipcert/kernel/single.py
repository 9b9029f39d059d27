r"""Rigorous upper bounds of matrix norms from single-precision products: for bounds renewed at every step. Floor 1.

As in the float64 kernel, :math:`\lVert A \rVert_2^2 \le c + \rho + E` where :math:`c I - G \succeq -\rho I` is shown
by an untrusted factor and E bounds the rounding of the Gram matrix G. What differs:

- u = 2**-24, so every inner product is cut into short pieces, which keeps gamma small;
- the factor is checked while it is made. In a block Cholesky factorisation the updates of the trailing matrix *are*
  the products of :math:`R^* R`, so :math:`H - R^* R` is what the panels leave, up to the rounding of those products.

Trusted: IEEE 754 binary32 and binary64 scalar operations (flushing subnormal results of binary32 to zero does no
harm), and that a float32 product of real matrices computes each entry as a sum of its k products in some order, with
or without fused multiply-add: not by Strassen's method, nor from operands rounded to fewer bits. numpy's products
are; torch's may be told not to be (`torch.set_float32_matmul_precision`). LAPACK is not trusted.

References:
    | Verification of positive definiteness (Rump, 2006), https://doi.org/10.1007/s10543-006-0056-1
    | Accuracy and Stability of Numerical Algorithms (Higham, 2002), sections 3.1 and 10.1
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from lipcert.kernel.backend import Parts
from lipcert.kernel.rounding import (
    Array,
    add_up,
    largest_magnitude,
    mul_up,
    require_finite,
    require_ieee,
    round_up,
    scale_up,
    sqrt_up,
)

UNIT = 2.0**-24
_LOST = 2.0**-126  # what underflow can take from one operation, flushed to zero or not
_BLOCK = 128
_ROWS = 128
_POWER_STEPS = 3
_LANCZOS_STEPS = 24
SLACKS = (3e-3, 8e-3, 2e-2)
NEAR = 1.03
LOOSEST = 1.04  # squared: beyond 2 percent the float64 kernel is worth its time


@dataclass(frozen=True)
class Oracles:
    """Factors from anywhere: a wrong one costs tightness, never truth.

    Attributes:
        cholesky: Lower factors ``L`` with about ``L L* = H`` for a stack of float32 or complex64 matrices, of which
            only the lower triangles are read; NaN for a matrix that has none.
        solve: ``(L, B) -> X`` with about ``L X = B``, for stacks of lower triangular matrices L.
    """

    cholesky: Callable[[Array], Array]
    solve: Callable[[Array, Array], Array]


def gamma(count: int) -> float:
    """An upper bound of ``gamma_{count + 2}`` in single precision; infinity where there is none.

    Example:
        >>> 3 * 2.0**-24 <= gamma(1) <= 4 * 2.0**-24, gamma(2**24)
        (True, inf)
    """
    steps = count + 2
    return round_up(Fraction(steps, 2**24 - steps)) if steps < 2**24 else math.inf


def norm2_upper(A: Array, guess: float | None, oracles: Oracles) -> float:
    r"""An upper bound of the spectral norm :math:`\lVert A \rVert_2`, or infinity if 2 percent do not suffice.

    Args:
        A: ``(m, n)``, float32 or float64; read as exact numbers.
        guess: About the norm, or ``None``; untrusted.
        oracles: Where factors come from.

    Raises:
        NotFinite: If an entry is NaN or infinite.
        FloatEnvironment: If the processor does not round as IEEE 754 says.
    """
    require_ieee()
    peak = largest_magnitude(A)
    require_finite(peak)
    if peak == 0.0:
        return 0.0
    with np.errstate(all="ignore"):
        B, exponent = rounded(A if A.shape[0] >= A.shape[1] else A.T, peak)
        G, terms = gram(B)
        size = float(squared_norm([np.abs(B)[None]])[0])
        error = add_up(mul_up(gamma(terms), size), lost(B.shape[1] * B.shape[0]))
        hoped = squared_guess(guess, exponent)
        estimate = top_eigenvalue(G[None], hoped / NEAR)
        start = hoped if estimate <= hoped <= NEAR * estimate else estimate
        squared = add_up(_eigenvalue_upper(G, start, oracles), error)
        if not squared <= estimate * LOOSEST:
            estimate = top_eigenvalue(G[None])  # the search for it may have ended early
        if not squared <= estimate * LOOSEST:
            return math.inf
        unrounded = mul_up(1.01 * UNIT, sqrt_up(size)) if A.dtype != np.float32 else 0.0
        bound = add_up(add_up(sqrt_up(squared), unrounded), lost(A.size))
    return scale_up(float(bound), exponent)


def rounded(A: Array, peak: float) -> tuple[Array, int]:
    """``A = 2**exponent (B + D)`` with B float32, its largest entry about 1; ``|D| <= 1.01 u |B| + 2**-126``.

    D has only the second term if A is float32.
    """
    exponent = math.frexp(peak)[1]
    if A.dtype == np.float32 and abs(exponent) < 100:
        return A * np.float32(2.0**-exponent), exponent
    half = exponent // 2  # neither factor leaves the range of float64, though 2**-exponent may
    B = np.multiply(A, 2.0**-half, dtype=np.float64)
    B *= 2.0 ** (half - exponent)
    return B.astype(np.float32), exponent


def squared_guess(guess: float | None, exponent: int) -> float:
    """The square of a scaled guess; infinity for none."""
    if guess is None or not 0.0 < guess < math.inf:
        return math.inf
    return math.ldexp(math.frexp(guess)[0] ** 2, 2 * max(-500, min(500, math.frexp(guess)[1] - exponent)))


def gram(B: Array) -> tuple[Array, int]:
    """``B.T B`` in single precision, from pieces of the rows; and how many roundings an entry suffers."""
    m, n = B.shape
    rows = max(_ROWS, math.isqrt(m))
    G = np.empty((n, n), np.float32)
    for start in range(0, n, _BLOCK):
        end = min(start + _BLOCK, n)
        total = np.zeros((end, end - start), np.float32)
        part = np.empty_like(total)
        for row in range(0, m, rows):
            piece = B[row : row + rows]
            total += np.matmul(piece[:, :end].T, piece[:, start:end], out=part)
        G[:end, start:end] = total
        G[start:end, :start] = total[:start].T
    return G, rows + -(-m // rows)


def squared_norm(panels: list[Array]) -> Array:
    r"""Upper bounds of :math:`\lVert A \rVert_2^2` for a stack of non-negative float32 matrices, ``(batch,)``.

    :math:`\max_i (A^T A x)_i / x_i` for any x > 0.

    Args:
        panels: The rows of A, a few at a time, ``(batch, rows, columns)``: the last columns, where zeros come first.

    References:
        | Matrix Iterative Analysis (Varga, 2000), theorem 2.9
    """
    count, _, columns = panels[0].shape
    rows = sum(panel.shape[1] for panel in panels)
    inflation = 1.0 + 4.0 * (gamma(rows + 1) + gamma(columns + 1))
    peak = 1.0 + np.max([np.max(panel, axis=(1, 2)) for panel in panels], axis=0).astype(np.float64)
    best = np.full(count, np.inf)
    x = np.ones((count, columns, 1), np.float32)
    for _ in range(_POWER_STEPS):
        z = np.zeros_like(x)
        for panel in panels:
            first = columns - panel.shape[2]
            z[:, first:] += np.matmul(panel.swapaxes(1, 2), np.matmul(panel, x[:, first:]))
        quotient = np.max(z.astype(np.float64) / x, axis=(1, 2))
        quotient = add_up(mul_up(quotient, inflation), mul_up(peak, rows * columns * 2.0**-80))
        best = np.fmin(best, np.where(np.isnan(quotient), np.inf, quotient))
        top = np.max(z, axis=(1, 2), keepdims=True)
        x = np.maximum(z / np.where(top > 0.0, top, 1.0), np.float32(1e-6))
    return best


def psd_defect(H: Parts, oracles: Oracles) -> Array:
    r"""Numbers rho with :math:`H + \rho I \succeq 0`, one per matrix of the stack; infinity where there is no proof.

    With M = ``|R|* |R|`` and what is left E, the rounding F of all products and subtractions obeys
    :math:`F \le \gamma_k M + N u (M + |E| + F)` for N blocks and products of k terms: a subtraction's error is u times
    its result, and every intermediate result is what later products take away, E and F.

    Args:
        H: Stacks ``(batch, n, n)`` of Hermitian float32 matrices, in parts; overwritten.
        oracles: Where factors come from.
    """
    count, n, _ = H[0].shape
    block = _BLOCK // len(H)
    panels: list[Parts] = []
    left = np.zeros(count)
    for start in range(0, n, block):
        end = min(start + block, n)
        panel = _panel(H, start, end, oracles)
        panels.append(panel)
        made = _adjoint_product(tuple(part[:, :, : end - start] for part in panel), panel)
        for have, product in zip(H, made, strict=True):
            residual = np.subtract(have[:, start:end, start:], product, out=product)
            corner, rest = residual[:, :, : end - start], residual[:, :, end - start :]
            left = add_up(left, add_up(squares_up(corner), mul_up(2.0, squares_up(rest))))
        for column in range(end, n, block):
            stop = min(column + block, n)
            rows = tuple(part[:, :, end - start : stop - start] for part in panel)
            update = _adjoint_product(rows, tuple(part[:, :, column - start : stop - start] for part in panel))
            for have, product in zip(H, update, strict=True):
                have[:, end:stop, column:stop] -= product
    terms = block if len(H) == 1 else 2 * block + 1
    rounding = gamma(terms + -(-n // block) + 1)
    rho = mul_up(sqrt_up(left), 1.0 + 2.0 * rounding)
    rho = add_up(rho, add_up(mul_up(rounding, _factor_size(panels)), lost(4 * n * (n + block))))
    return np.where(np.isnan(rho), np.inf, rho)


def _panel(H: Parts, start: int, end: int, oracles: Oracles) -> Parts:
    """Rows ``start`` to ``end`` of a factor, from column ``start`` on; untrusted."""
    corner = oracles.cholesky(joined(tuple(part[:, start:end, start:end] for part in H)))
    rows = corner.swapaxes(1, 2).conj()
    if end < H[0].shape[-1]:
        rest = oracles.solve(corner, joined(tuple(part[:, start:end, end:] for part in H)))
        rows = np.concatenate([rows, rest], axis=2)
    return (rows,) if len(H) == 1 else (np.real(rows).copy(), np.imag(rows).copy())


def joined(parts: Parts) -> Array:
    """A real stack, or a complex one from its parts."""
    if len(parts) == 1:
        return parts[0]
    both = np.empty(parts[0].shape, np.complex64)
    both.real, both.imag = parts
    return both


def _adjoint_product(left: Parts, right: Parts) -> Parts:
    """``left* right`` by real products of at most twice as many terms."""
    if len(left) == 1:
        return (np.matmul(left[0].swapaxes(1, 2), right[0]),)
    both = np.concatenate(left, axis=1).swapaxes(1, 2)
    if left[0].shape == right[0].shape and all(np.shares_memory(x, y) for x, y in zip(left, right, strict=True)):
        cross = np.matmul(left[0].swapaxes(1, 2), right[1])
        return np.matmul(both, both.swapaxes(1, 2)), cross - cross.swapaxes(1, 2)
    turned = np.concatenate((right[1], -right[0]), axis=1)
    return np.matmul(both, np.concatenate(right, axis=1)), np.matmul(both, turned)


def _factor_size(panels: list[Parts]) -> Array:
    """Upper bounds of ``| |R| |_2**2``, with ``|Re| + |Im|`` for the modulus: the Frobenius norm of small factors."""
    if len(panels) > 1:
        return squared_norm([np.abs(p[0]) if len(p) == 1 else np.abs(p[0]) + np.abs(p[1]) for p in panels])
    squares = [squares_up(part) for part in panels[0]]
    return squares[0] if len(squares) == 1 else mul_up(2.0, add_up(*squares))


def squares_up(part: Array) -> Array:
    """Sums of squares of each matrix, rounded up, ``(batch,)`` in double precision."""
    rows, columns = part.shape[1:]
    sums = np.einsum("bij,bij->bi", part, part).astype(np.float64)
    total = np.sum(sums, axis=1)
    return add_up(mul_up(total, (1.0 + 2.0 * gamma(columns + 1)) * (1.0 + rows * 2.0**-50)), lost(2 * rows * columns))


def lost(operations: int) -> float:
    """What underflow can take from a result of this many operations, with room to spare."""
    return operations * 4.0 * _LOST


def shifted(minus: Parts, c: float) -> Array:
    """Turn stacks of ``-G`` into ``c I - G``, in place; give bounds of the rounding, ``(batch,)``. c is a float32."""
    diagonal = np.einsum("bii->bi", minus[0])
    diagonal += np.float32(c)
    return mul_up(2.0 * UNIT, np.max(np.abs(diagonal), axis=1).astype(np.float64))


def _eigenvalue_upper(G: Array, start: float, oracles: Oracles) -> float:
    for slack in SLACKS:
        c = float(np.float32(start * (1.0 + slack)))
        H = (-G[None],)
        rounding = shifted(H, c)
        bound = float(add_up(add_up(c, psd_defect(H, oracles)), rounding)[0])
        if bound < np.inf:
            return bound
    return math.inf


def top_eigenvalue(G: Array, enough: float = math.inf, steps: int = _LANCZOS_STEPS) -> float:
    """About the largest eigenvalue over a stack of Hermitian matrices, a little below it; untrusted.

    Args:
        G: ``(batch, n, n)``, float32 or complex64.
        enough: Stop at the first estimate from here on.
        steps: Of Lanczos' method.
    """
    count, n, _ = G.shape
    phase = np.arange(1, n + 1, dtype=np.float64)
    v = np.tile(1.0 + 0.5 * np.cos(0.7 * phase * phase + phase), (count, 1)).astype(G.dtype)
    steps = min(n, steps)
    basis = np.zeros((count, steps, n), G.dtype)
    T = np.zeros((count, steps, steps))
    for step in range(steps):
        length = np.linalg.norm(v, axis=1)
        # An invariant subspace is exhausted: what is left is rounding noise.
        length = np.where(length > 1e-4 * np.max(T, axis=(1, 2)), length, np.inf)
        basis[:, step] = v / length[:, None]
        if step:
            T[:, step, step - 1] = T[:, step - 1, step] = np.where(length < np.inf, length, 0.0)
        w = np.matmul(G, basis[:, step, :, None])
        T[:, step, step] = np.matmul(basis[:, step, None, :].conj(), w)[:, 0, 0].real
        if step % 4 == 3 and _top(T) >= enough:
            break
        used = basis[:, : step + 1]
        for _ in range(2):
            w = w - np.matmul(used.swapaxes(1, 2), np.matmul(used.conj(), w))
        v = w[:, :, 0]
    return _top(T)


def _top(T: Array) -> float:
    return float(np.max(np.linalg.eigvalsh(T))) if np.all(np.isfinite(T)) else math.nan
