"""The rectangular Cayley map, at the cost of one k x k inverse and no n x n matrix. Floor 3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lipcert.errors import CheckFailed
from lipcert.parametrizations.stiefel import bounded, signature

# Elimination by halves, without pivoting, loses |U|^2 and |V|^4 units of rounding; up to these lengths float64 leaves
# Q orthonormal to 1e-7. The free matrix of a matrix drawn uniformly stays far below, about 150 and 20 at k = 1024.
_LONGEST_U = 2.0**16
_LONGEST_V = 2.0**8
# Below this size a factorisation by LAPACK is faster than products of halves.
_LEAF = 64


@dataclass(frozen=True)
class Cayley:
    r"""The Cayley map of a skew matrix, and its extension to rectangles.

    The free matrix is split into U (k x k) over V. With :math:`M = I + U - U' + V'V`, :math:`Z = M^{-1}`,

    .. math:: Q = \binom{2 Z - I}{-2 V Z} D.

    As M + M' = 2 (I + V'V), M is never singular, :math:`|Z|_2 \le 1` and :math:`4 Z'(I + V'V) Z = 2 Z + 2 Z'`, which
    makes Q'Q = I; for V = 0 this is :math:`(I - A)(I + A)^{-1}` with A = U - U'. The anchor holds signs D for which
    elimination in I + QD needs no pivoting, so that every matrix with orthonormal columns is reached, far from the
    poles of the inverse map. Entries of U beyond :math:`\pm 2^{16} / k` count as that, and a V longer than 256 in
    the Frobenius norm counts as that long.

    A training step costs one inverse of size k, two products of that size for its gradient and, for rectangles, a few
    products of n x k and k x k.

    Attributes:
        working: The dtype of the inverse, at least that of the weight. In float64 the result is orthonormal to 1e-7
            in float32 for every free matrix; in float32, faster, to about 1e-6 times the norm of M.

    References:
        | Orthogonalizing Convolutional Layers with the Cayley Transform (Trockman and Kolter, 2021)
        | Direct Parameterization of Lipschitz-Bounded Deep Networks (Wang and Manchester, 2023)
        | Minimizing the Cayley transform of an orthogonal matrix by multiplying by signature matrices (O'Dorney, 2014)
    """

    working: torch.dtype = torch.float64

    def __call__(self, free: Tensor, anchor: Tensor) -> Tensor:
        """The matrix with orthonormal columns, in float32 at least."""
        n, k = free.shape
        W = free.to(torch.promote_types(free.dtype, torch.float32))
        U, V = W[:k].clamp(-_LONGEST_U / k, _LONGEST_U / k), W[k:]
        V = bounded(V, _LONGEST_V) if n > k else V
        working = torch.promote_types(self.working, W.dtype)
        if torch.compiler.is_compiling():
            # A compiler sees through torch's own inverse, and through no function with a forward-mode rule.
            Q = _by_torch(U, V, working)
        else:
            Q = _Cayley.apply(U, V, working)
        assert isinstance(Q, Tensor)
        return Q * anchor.to(Q)

    def invert(self, frame: Tensor) -> tuple[Tensor, Tensor]:
        """Solve ``Q D = [2 Z - I; -2 V Z]`` for ``U = (M - M') / 4`` and V."""
        k = frame.shape[1]
        d = signature(frame[:k])[0]
        Q = frame * d
        M = 2.0 * torch.linalg.inv(torch.eye(k, dtype=Q.dtype, device=Q.device) + Q[:k])
        U, V = 0.25 * (M - M.mT), -0.5 * Q[k:] @ M
        if U.abs().amax() > _LONGEST_U / k or V.norm() > _LONGEST_V:
            raise CheckFailed(
                f"the Cayley map reaches this matrix with {k} orthonormal columns only from parameters so large that "
                "rounding would take its columns apart. Use map=Householder(), which reaches all alike."
            )
        return torch.cat([U, V]), d


def _by_torch(U: Tensor, V: Tensor, working: torch.dtype) -> Tensor:
    """The map by operators of torch alone."""
    eye = torch.eye(U.shape[-1], dtype=working, device=U.device)
    u, v = U.to(working), V.to(working)
    Z = torch.linalg.inv_ex(eye + u - u.mT + v.mT @ v).inverse
    return torch.cat([2.0 * Z - eye, v @ (-2.0 * Z)]).to(U.dtype)


class _Cayley(torch.autograd.Function):
    """``(U, V) -> Q`` with derivatives in closed form: ``dZ = -Z dM Z``, and as ``2 Z = I + Q_1`` they need only Q."""

    @staticmethod
    def forward(U: Tensor, V: Tensor, working: torch.dtype) -> Tensor:
        n, k = U.shape[-2] + V.shape[-2], U.shape[-1]
        M = (U - U.mT).to(working)
        M.diagonal(dim1=-2, dim2=-1).add_(1.0)
        v = V.to(working)
        Z = torch.empty_like(M)
        _invert_into(Z, M + v.mT @ v if n > k else M)
        Q = torch.empty(*M.shape[:-2], n, k, dtype=U.dtype, device=U.device)
        if n > k:
            Q[..., k:, :] = v @ Z.mul(-2.0)
        Z.mul_(2.0).diagonal(dim1=-2, dim2=-1).sub_(1.0)
        Q[..., :k, :] = Z
        return Q

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1], output)
        ctx.save_for_forward(inputs[1], output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        V, Q = ctx.saved_tensors
        k = Q.shape[-1]
        twice, G = _twice_inverse(Q), grads[0]
        if Q.shape[-2] == k:
            E = twice.mT @ G @ twice.mT
            return 0.5 * (E.mT.contiguous() - E), torch.zeros_like(V), None
        below = G[..., k:, :]
        E = -0.5 * (twice.mT @ (G[..., :k, :] - V.mT @ below) @ twice.mT)
        return E - E.mT, V @ (E + E.mT) - below @ twice.mT, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        V, Q = ctx.saved_tensors
        given = zip(tangents[:2], (Q[..., : Q.shape[-1], :], V), strict=True)
        dU, dV = (torch.zeros_like(x) if t is None else t for t, x in given)
        twice, mixed = _twice_inverse(Q), V.mT @ dV
        dZ = -0.25 * (twice @ (dU - dU.mT + mixed + mixed.mT) @ twice)
        return torch.cat([2.0 * dZ, -2.0 * (V @ dZ) - dV @ twice], dim=-2)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], U: Tensor, V: Tensor, working: torch.dtype) -> tuple[Any, int]:
        batch = [
            x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
            for x, dim in zip((U, V), in_dims, strict=False)
        ]
        return _Cayley.apply(*batch, working), 0


def _twice_inverse(Q: Tensor) -> Tensor:
    k = Q.shape[-1]
    return Q[..., :k, :] + torch.eye(k, dtype=Q.dtype, device=Q.device)


def _invert_into(Z: Tensor, M: Tensor) -> None:
    """Invert by halves: 2 k^3 operations, nearly all in products of large matrices.

    No pivoting between the halves: all Schur complements inherit a symmetric part of at least that of M.
    """
    k = M.shape[-1]
    if k <= _LEAF or M.ndim > 2:
        Z.copy_(torch.linalg.inv_ex(M).inverse)
        return
    h = k // 2
    B, C, D = M[:h, h:], M[h:, :h], M[h:, h:]
    P, S, right, lower = Z[:h, :h], Z[h:, h:], Z[:h, h:], Z[h:, :h]
    _invert_into(P, M[:h, :h])
    L = (C @ P).neg_()
    _invert_into(S, torch.addmm(D, L, B))
    torch.mm(S, L, out=lower)
    R = (P @ B).neg_()
    torch.mm(R, S, out=right)
    P.addmm_(R, lower)
