"""Maps from a free matrix to a matrix with orthonormal columns, and back. Floor 3.

Every map takes ``(n, k)`` with n >= k, works in float64 and accepts any finite matrix of any size. An *anchor*, a
tensor fixed when a matrix is assigned, puts the part of the Stiefel manifold that one map misses within reach.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lipcert.errors import InvalidInput


class StiefelMap(Protocol):
    """From a free matrix ``(n, k)``, n >= k, to one of the same shape with orthonormal columns."""

    def __call__(self, free: Tensor, anchor: Tensor) -> Tensor:
        """The matrix, in float64 or as accurate as the map says; pure and differentiable."""
        ...

    def invert(self, frame: Tensor) -> tuple[Tensor, Tensor]:
        """A free matrix and an anchor that the map takes back to a float64 ``frame`` with orthonormal columns."""
        ...


def polar(matrix: Tensor) -> Tensor:
    """The nearest matrix with orthonormal columns to a finite float64 ``(n, k)``, n >= k; a nearest one if singular.

    A matrix that is orthonormal up to rounding comes back up to rounding, whatever its scale.

    Example:
        >>> polar(torch.tensor([[3.0], [4.0]], dtype=torch.float64)).flatten().tolist()
        [0.6..., 0.8...]
    """
    left, _, right = torch.linalg.svd(matrix / peak(matrix), full_matrices=False)
    return left @ right


def signature(square: Tensor, block: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    r"""Signs d with :math:`|pivot| \ge 1` in ``diag(d) + square = L R``, and the factors L (unit lower) and R.

    Each sign is that of the pivot it is added to. For a block of a matrix with orthonormal columns this elimination
    needs no pivoting: all multipliers are at most 1.

    Args:
        square: Float64 ``(k, k)``.
        block: Columns eliminated at a time; cost only.

    References:
        | Reconstructing Householder Vectors from Tall-Skinny QR (Ballard, Demmel, Grigori, Jacquelin, Nguyen and
          Solomonik, 2014), Lemma 6.2

    Example:
        >>> d, L, R = signature(-torch.eye(2, dtype=torch.float64))
        >>> d.tolist(), torch.diag(R).tolist()
        ([-1.0, -1.0], [-2.0, -2.0])
    """
    S = square.clone()
    k = len(S)
    d = torch.ones(k, dtype=S.dtype, device=S.device)
    for start in range(0, k, block):
        end = min(start + block, k)
        for j in range(start, end):
            d[j] = torch.where(S[j, j] < 0, -1.0, 1.0)
            S[j, j] += d[j]
            S[j + 1 :, j] /= S[j, j].clone()
            S[j + 1 :, j + 1 : end] -= torch.outer(S[j + 1 :, j], S[j, j + 1 : end])
        corner = S[start:end, start:end]
        S[start:end, end:] = torch.linalg.solve_triangular(corner, S[start:end, end:], upper=False, unitriangular=True)
        S[end:, end:] -= S[end:, start:end] @ S[start:end, end:]
    return d, S.tril(-1) + torch.eye(k, dtype=S.dtype, device=S.device), S.triu()


@dataclass(frozen=True)
class Householder:
    r"""A product of k reflections, :math:`Q = H_1 \cdots H_k E D` with :math:`H_j = I - 2 v_j v_j' / |v_j|^2`.

    E is the first k columns of the identity, :math:`v_j` is 0 above row j, 1 there and the free matrix below; what
    the free matrix holds on and above its diagonal has no effect. The anchor holds the signs D, so that every matrix
    with orthonormal columns is reached. Reflections are applied a block at a time,
    :math:`H_a \cdots H_b = I - U S^{-1} U'` with unit columns U and :math:`S = \frac12 I + striu(U'U)`: two products
    of ``n x block`` and ``n x k`` each, O(n k^2) in all.

    Attributes:
        block: Reflections applied together.

    References:
        | A Storage-Efficient WY Representation for Products of Householder Transformations (Schreiber and Van Loan,
          1989)
        | Modification of the Householder method based on the compact WY representation (Puglisi, 1992)
    """

    block: int = 128

    def __post_init__(self) -> None:
        """Refuse empty blocks."""
        if self.block < 1:
            raise InvalidInput(f"block={self.block} applies no reflection; it must be at least 1.")

    def __call__(self, free: Tensor, anchor: Tensor) -> Tensor:
        """Apply the reflections to ``E``, the last block first."""
        n, k = free.shape
        E = torch.eye(n, k, dtype=torch.float64, device=free.device)
        V = free.double().tril(-1) + E
        # U does not depend on the length of a column: dividing by its largest entry first keeps squares finite.
        V = V / V.detach().abs().amax(0)
        U = V * torch.rsqrt(V.square().sum(0))
        Q = E
        for start in reversed(range(0, k, self.block)):
            B = U[:, start : start + self.block]
            gram = B.mT @ B
            S = gram.triu(1) + 0.5 * torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)
            Q = Q - B @ torch.linalg.solve_triangular(S, B.mT @ Q, upper=True)
        return Q * anchor.to(Q)

    def invert(self, frame: Tensor) -> tuple[Tensor, Tensor]:
        """The vectors are the unit lower factor of ``Q D - E`` (Ballard et al., 2014)."""
        k = frame.shape[1]
        d, L, R = signature(frame[:k])
        below = torch.linalg.solve_triangular(R, frame[k:], upper=True, left=False)
        return torch.cat([L, below]).tril(-1), -d


@dataclass(frozen=True)
class QR:
    """The orthonormal factor of a QR decomposition whose R has a positive diagonal; Gram and Schmidt's map.

    Reaches every matrix with orthonormal columns. Where the free matrix has dependent columns the result is still
    orthonormal, but the map jumps there and its gradient is not finite.
    """

    def __call__(self, free: Tensor, anchor: Tensor) -> Tensor:
        """Decompose, then make the signs unique."""
        W = free.double()
        Q, R = torch.linalg.qr(W / peak(W))
        return Q * torch.where(torch.diagonal(R).detach() < 0, -1.0, 1.0).to(Q)

    def invert(self, frame: Tensor) -> tuple[Tensor, Tensor]:
        """Orthonormal columns are their own factor."""
        return frame, frame.new_ones(frame.shape[1])


@dataclass(frozen=True)
class Exponential:
    r"""The geodesic that leaves the anchor X in the direction the free matrix W points to, followed for unit time.

    With the skew :math:`A = (X'W - W'X)/2` and :math:`V = W - X X'W`, the geodesic of the embedded k-dimensional
    problem is

    .. math:: Q = X Y + V J, \quad \binom{Y}{J} = \exp \begin{pmatrix} A & -V'V \\ I & 0 \end{pmatrix} \binom{I}{0},

    one exponential of size 2k, or k for square matrices, where :math:`Q = X \exp(A)`. The anchor is the matrix last
    assigned, at W = 0, so that each is reached exactly. A free matrix longer than
    :math:`4 \pi \sqrt k` in the Frobenius norm counts as that long; half of it already takes the square map from any
    matrix to all of its component.

    The slowest of the maps: its gradient costs an exponential of twice the size.

    References:
        | The Geometry of Algorithms with Orthogonality Constraints (Edelman, Arias and Smith, 1998), 2.4.2
        | Trivializations for Gradient-Based Optimization on Manifolds (Lezcano-Casado, 2019)
    """

    def __call__(self, free: Tensor, anchor: Tensor) -> Tensor:
        """Follow the geodesic."""
        n, k = free.shape
        X, W = anchor.double(), bounded(free.double(), 4.0 * math.pi * math.sqrt(k))
        along = X.mT @ W
        A = 0.5 * (along - along.mT)
        if n == k:
            return X @ torch.linalg.matrix_exp(A)
        V = W - X @ along
        # J scaled by s: a similarity, which leaves the result alone and balances the two blocks of the exponent.
        s = torch.linalg.vector_norm(V.detach()).clamp(min=1.0)
        V = V / s
        eye = torch.eye(k, dtype=A.dtype, device=A.device)
        exponent = torch.cat([torch.cat([A, -s * (V.mT @ V)], 1), torch.cat([s * eye, torch.zeros_like(A)], 1)])
        Y = torch.linalg.matrix_exp(exponent)[:, :k]
        return X @ Y[:k] + V @ Y[k:]

    def invert(self, frame: Tensor) -> tuple[Tensor, Tensor]:
        """Start at the matrix itself."""
        return torch.zeros_like(frame), frame


def bounded(matrix: Tensor, most: float) -> Tensor:
    """Shorten a matrix to the Frobenius norm ``most`` if it is longer; no overflow for any finite entries."""
    matrix = matrix / (matrix.detach().abs().amax() / most).clamp(min=1.0)
    return matrix * torch.rsqrt((matrix / most).square().sum().clamp(min=1.0))


def peak(matrix: Tensor) -> Tensor:
    """The largest magnitude as a constant, 1 for a zero matrix."""
    largest = matrix.detach().abs().amax()
    return torch.where(largest > 0, largest, torch.ones_like(largest))
