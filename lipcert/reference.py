r"""Classical spectral normalisation, as published, in numpy: what power iteration returns and what it misses. Floor 1.

One step of the method, for a matrix W of shape ``(out, in)`` and the unit vector u it keeps between steps:

.. math:: v = W^T u / |W^T u|, \quad u = W v / |W v|, \quad \sigma = u^T W v, \quad \bar W = W / \sigma.

For all unit vectors u and v, :math:`u^T W v \le \lVert W \rVert_2`. So :math:`\sigma` is a *lower* bound, and
:math:`\lVert \bar W \rVert_2 \ge 1`: the method divides by too little, never by too much. This module states the
method so that its estimates can be compared with bounds; nothing here proves anything.

References:
    | Spectral Normalization for Generative Adversarial Networks (Miyato, Kataoka, Koyama and Yoshida, 2018)
    | https://arxiv.org/abs/1802.05957
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from lipcert.errors import InvalidInput, NotFinite

Array = npt.NDArray[Any]


def power_iteration(W: Array, u: Array, n_iters: int) -> tuple[float, Array, Array]:
    r"""Estimate :math:`\lVert W \rVert_2` from below by power iteration, starting from u.

    A pure function: the arguments are read, never written, and the new vectors are returned. There is no epsilon in
    any norm. :math:`\sigma = u^T W v` is at most :math:`\lVert W \rVert_2`, never decreases as ``n_iters`` grows
    (both up to rounding), and converges to the largest singular value whose left singular vector u is not orthogonal
    to: a u orthogonal to the top one misses it for ever. Where a step meets ``W'u = 0`` it stops with
    :math:`\sigma = 0`, v zero and u as it is; a zero W always does.

    Args:
        W: Shape ``(out, in)``, real. Integers and half precision are computed in float64.
        u: Shape ``(out,)``, not zero; normalised before use.
        n_iters: Steps, at least 1.

    Returns:
        ``(sigma, u, v)``: the estimate, a unit vector of shape ``(out,)`` to start the next call from, and a unit
        vector of shape ``(in,)``.

    Raises:
        InvalidInput: If the shapes do not fit, u is zero, or there is no step to take.
        NotFinite: If W or u has a NaN or an infinity.

    References:
        | Algorithm 1 of Spectral Normalization for Generative Adversarial Networks (Miyato et al., 2018)

    Example:
        >>> W = np.array([[3.0, 0.0], [0.0, 4.0]])
        >>> sigma, u, v = power_iteration(W, np.array([1.0, 1.0]), 1)  # v = (3, 4) / 5, W v = (9, 16) / 5
        >>> round(sigma, 4), round(power_iteration(W, u, 50)[0], 4)
        (3.6715, 4.0)
    """
    W, u = _checked(W, u, n_iters)
    exponent = _exponent(W)
    W = np.ldexp(W, -exponent)
    sigma, v = 0.0, np.zeros_like(W, shape=W.shape[1])
    for _ in range(n_iters):
        v = _direction(W.T @ u)
        image = W @ v
        sigma = float(_direction(image) @ image)
        if sigma == 0.0:
            return 0.0, u, np.zeros_like(v)
        u = _direction(image)
    return float(np.ldexp(sigma, exponent)), u, v


def spectral_norm_forward(W: Array, u: Array, n_iters: int = 1) -> tuple[Array, Array]:
    r"""Divide W by its power-iteration estimate, as a layer with classical spectral normalisation does in training.

    Since :math:`\sigma \le \lVert W \rVert_2`, the result has norm **at least** 1 (up to rounding), not at most 1;
    it is 1 where the iteration has converged to the top singular vectors.

    Args:
        W: Shape ``(out, in)``; for a convolution, Miyato et al. use the kernel reshaped to
            ``(out, in * k1 * k2)``, whose norm is not that of the convolution.
        u: Shape ``(out,)``, the vector kept from the last step; not zero.
        n_iters: Power iterations in this step.

    Returns:
        ``(W / sigma, u)``: the normalised matrix, and the vector to keep for the next step. If sigma is 0 (W is
        zero, or u is orthogonal to its range) the matrix returned is W itself, copied: a zero W gives zeros, not NaN.

    Raises:
        InvalidInput: As `power_iteration`.
        NotFinite: As `power_iteration`.

    Example:
        >>> W = np.diag([3.0, 4.0])
        >>> divided, u = spectral_norm_forward(W, np.array([1.0, 1.0]))
        >>> round(float(np.linalg.norm(divided, 2)), 4)  # claims 1
        1.0895
    """
    sigma, u, _ = power_iteration(W, u, n_iters)
    W = _floating(W)
    return ((W / np.float64(sigma)).astype(W.dtype) if sigma > 0.0 else W.copy()), u


def _checked(W: Array, u: Array, n_iters: int) -> tuple[Array, Array]:
    W, u = _floating(W), _floating(u)
    if W.ndim != 2 or u.shape != W.shape[:1]:
        raise InvalidInput(
            f"power iteration takes W of shape (out, in) and u of shape (out,), got {W.shape} and {u.shape}.\n"
            "  Reshape a kernel to (out, in * k1 * k2) yourself: its norm is another number than the convolution's."
        )
    if n_iters < 1:
        raise InvalidInput(f"without a step there is no estimate: n_iters={n_iters}; take at least 1.")
    if not (np.isfinite(W).all() and np.isfinite(u).all()):
        raise NotFinite("W or u has a NaN or an infinity, so u'Wv would estimate nothing; look for where it diverged.")
    if not u.any():
        raise InvalidInput("u is zero, which has no direction to start from; draw it at random.")
    return W, _direction(u)


def _direction(x: Array) -> Array:
    """``x / |x|``, and zero for zero; without an epsilon, which would shorten small vectors."""
    x = np.ldexp(x, -_exponent(x))
    length = np.linalg.norm(x)
    return x / length if length > 0.0 else x


def _exponent(A: Array) -> int:
    """A power of two beside the largest entry; divided by it, a square neither overflows nor vanishes."""
    return int(np.frexp(np.max(np.abs(A), initial=0.0))[1])


def _floating(A: Array) -> Array:
    A = np.asarray(A)
    if np.iscomplexobj(A):
        raise InvalidInput("the reference is for real matrices, got complex entries; split them into real blocks.")
    return A if A.dtype in (np.float32, np.float64) else A.astype(np.float64)
