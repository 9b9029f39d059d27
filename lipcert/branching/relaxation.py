r"""The semidefinite bound of a derivative with undecided slopes (l2 to l2), and its proof. Floor 5.

With :math:`dz = Z (dx, t)`, :math:`dy = C (dx, t)`, :math:`|t_k| \le |dz_k|` and any :math:`w > 0`,

.. math:: \left\lVert \begin{pmatrix} C \\ W Z \end{pmatrix}
    \begin{pmatrix} r^{-1} I & \\ & W^{-1} \end{pmatrix} \right\rVert_2 \le 1
    \quad\text{implies}\quad |dy|_2 \le r\,|dx|_2,

as :math:`|dy|^2 + \sum w_k^2 dz_k^2 \le r^2 |dx|^2 + \sum w_k^2 t_k^2`. The least r over :math:`\lambda = w^2` is a
small semidefinite programme. It is solved by Newton's method on its barrier, in plain floating point; only the norm is
proved. Deciding a sign keeps the other multipliers strictly feasible, so a search starts each solve from its parent's.

References:
    | Efficient and accurate estimation of Lipschitz constants for deep neural networks (Fazlyab et al., 2019)
    | Interior-point polynomial algorithms in convex programming (Nesterov and Nemirovskii, 1994)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lipcert.branching.slopes import Derivative, Enclosed
from lipcert.kernel.psd import psd_defect
from lipcert.kernel.rounding import UNIT, Array, gamma, mul_up, sqrt_up, sum_of_squares_up

_GAP = 1e-3
_STEPS = 60
_LENGTHEN = 8.0
_TRIES = (1e-9, 1e-6, 1e-3)


@dataclass(frozen=True, eq=False)
class Relaxed:
    """A proved bound, and what it says of the undecided hinges.

    Attributes:
        bound: At least the largest derivative over all slopes; infinity where nothing was proved.
        multipliers: One per open hinge, strictly feasible.
        scores: About how much the squared bound owes to each open hinge being undecided.
        likely: The signs that the worst derivative leans to, int8.
    """

    bound: float
    multipliers: Array
    scores: Array
    likely: Array


def relaxed(derivative: Derivative, start: Array | None, gap: float = _GAP) -> Relaxed:
    """Solve for multipliers, prove a bound from them.

    Args:
        derivative: With at least one open hinge.
        start: Strictly feasible multipliers, if there are some.
        gap: How far above the optimum the squared bound may stay, relatively.
    """
    with np.errstate(all="ignore"):
        barrier = _Barrier(derivative, gap)
        lam, P = barrier.centre(feasible(derivative) if start is None else start, start is None)
        r = barrier.least(lam)
        scores, likely = barrier.leaning(lam, P)
        tries = ((r * (1.0 + more), 1e-2 * more) for more in _TRIES)
        bound = next((tried for tried, slack in tries if proved(derivative, np.sqrt(lam), tried, slack)), math.inf)
    return Relaxed(bound, lam, scores, likely)


def feasible(derivative: Derivative) -> Array:
    r"""Multipliers with :math:`\sum_k \lambda_k (t_k^2 - z_k(t)^2) > |C t|^2` for ``t != 0``, from the last hinge back.

    They come from :math:`(\sum_j a_j t_j)^2 \le \sum_i |a_i| \sum_j |a_j| t_j^2`.
    """
    n = derivative.inputs
    Z, C = np.abs(derivative.z.mid[:, n:]), np.abs(derivative.c.mid[:, n:])
    need = C.T @ C.sum(1)
    lam = np.zeros(len(Z))
    for k in range(len(Z) - 1, -1, -1):
        lam[k] = 1.5 * need[k] + 1e-3 * float(need.max(initial=0.0)) + 1e-300
        need += lam[k] * Z[k].sum() * Z[k]
    return lam


class _Barrier:
    """``t rho - log det M(rho, lambda)``, where ``M = diag(rho, lambda) - C' C - Z' diag(lambda) Z``."""

    def __init__(self, derivative: Derivative, gap: float) -> None:
        self.Z, self.C, self.n = _turned(derivative)
        self.size = self.Z.shape[1]
        self.CC, self.gap = self.C.T @ self.C, gap

    def matrix(self, rho: float, lam: Array) -> Array:
        return np.diag(np.concatenate([np.full(self.n, rho), lam])) - self.CC - (self.Z.T * lam) @ self.Z

    def least_squared(self, lam: Array) -> float:
        """The least rho that these multipliers allow."""
        M, n = self.matrix(0.0, lam), self.n
        reduced = M[:n, n:] @ np.linalg.solve(M[n:, n:], M[n:, :n]) - M[:n, :n]
        return float(np.linalg.eigvalsh((reduced + reduced.T) / 2)[-1])

    def least(self, lam: Array) -> float:
        try:
            return math.sqrt(max(self.least_squared(lam), 1e-300))
        except np.linalg.LinAlgError:
            return math.inf

    def centre(self, lam: Array, far: bool) -> tuple[Array, Array]:
        """Follow the central path to the wanted gap; the inverse of M comes along."""
        try:
            rho = self.least_squared(lam) * 1.05
        except np.linalg.LinAlgError:
            return lam, np.eye(self.size)
        if not (0.0 < rho < math.inf):
            return lam, np.eye(self.size)
        t = self.size / (0.5 * rho) if far else self.size / (self.gap * rho)
        P = np.eye(self.size)
        for _ in range(_STEPS):
            found = self._newton(rho, lam, t)
            if found is None:
                break
            rho, lam, P, decrement = found
            if decrement < 0.3:
                if self.size / t <= self.gap * rho * 1.01:
                    break
                t = min(t * _LENGTHEN, self.size / (self.gap * rho))
        return lam, P

    def _newton(self, rho: float, lam: Array, t: float) -> tuple[float, Array, Array, float] | None:
        n = self.n
        try:
            P = np.linalg.inv(self.matrix(rho, lam))
            ZP = self.Z @ P
            inner = ZP @ self.Z.T
            gradient = np.concatenate([[t - np.trace(P[:n, :n])], np.diag(inner) - np.diag(P)[n:]])
            H = np.empty((len(gradient), len(gradient)))
            H[0, 0] = np.sum(P[:n, :n] ** 2)
            H[0, 1:] = H[1:, 0] = np.sum(P[:n, n:] ** 2, axis=0) - np.sum(ZP[:, :n] ** 2, axis=1)
            cross = ZP[:, n:] ** 2
            H[1:, 1:] = P[n:, n:] ** 2 - cross - cross.T + inner**2
            step = np.linalg.solve(H + 1e-13 * np.diag(np.diag(H)), -gradient)
            decrement = math.sqrt(max(-float(gradient @ step), 0.0))
        except np.linalg.LinAlgError:
            return None
        if not math.isfinite(decrement):
            return None
        length = 1.0 if decrement < 0.25 else 1.0 / (1.0 + decrement)
        # A longer step is worth a try: the damped one is only what is safe whatever the function.
        for tried in (1.0, 0.5, length):
            new_rho, new_lam = rho + tried * step[0], lam + tried * step[1:]
            if tried <= length or self._inside(new_rho, new_lam):
                return new_rho, new_lam, P, decrement
        return None

    def _inside(self, rho: float, lam: Array) -> bool:
        try:
            np.linalg.cholesky(self.matrix(rho, lam))
        except np.linalg.LinAlgError:
            return False
        return bool(np.all(lam > 0.0))

    def leaning(self, lam: Array, P: Array) -> tuple[Array, Array]:
        """How far t is from ``+dz`` and ``-dz``, and which is nearer; P is about the worst case's second moment."""
        ZP = self.Z @ P
        dz, t = np.maximum(np.sum(ZP * self.Z, axis=1), 0.0), np.maximum(np.diag(P)[self.n :], 1e-300)
        cross = np.diag(ZP[:, self.n :])
        scores = np.nan_to_num(lam * np.maximum(dz - cross**2 / t, 0.0) + 1e-12 * lam * dz)
        return scores, np.where(cross < 0.0, -1, 1).astype(np.int8)


def _turned(derivative: Derivative) -> tuple[Array, Array, int]:
    """Both matrices with no more input directions than rows: an orthonormal change of dx keeps its norm."""
    Z, C, n = derivative.z.mid, derivative.c.mid, derivative.inputs
    if n <= len(Z) + len(C):
        return Z, C, n
    Q = np.linalg.qr(np.concatenate([Z[:, :n], C[:, :n]]).T)[0]
    Z, C = (np.concatenate([A[:, :n] @ Q, A[:, n:]], axis=1) for A in (Z, C))
    return Z, C, Q.shape[1]


def proved(derivative: Derivative, w: Array, r: float, slack: float) -> bool:
    """Whether the scaled norm is at most 1, all rounding included; the proof aims at ``1 - slack / 2``."""
    if not (0.0 < r < math.inf and np.all(np.isfinite(w)) and np.all(w > 0.0)):
        return False
    S = _scaled(derivative, w, r)
    total = float(sqrt_up(sum_of_squares_up(np.abs(S.mid), (0, 1))))
    off = float(sqrt_up(sum_of_squares_up(S.rad, (0, 1))))
    A = S.mid if S.mid.shape[0] >= S.mid.shape[1] else S.mid.T
    rows, columns = A.shape
    c = 1.0 - slack
    H = -(A.T @ A)
    # |H + S' S| <= gamma |S|_F^2; adding c to the diagonal rounds once more, and c - H is at most 2 + |S|_F^2.
    error = float(mul_up(gamma(rows) + 2.0 * UNIT, mul_up(total, total) + 2.0)) + (rows + columns) * 2.0**-1000
    H[np.arange(columns), np.arange(columns)] += c
    rho = float(psd_defect((H[None],))[0])
    # |S_true| <= |S| + off <= sqrt(c + rho + error) + off, and sqrt(1 - s) <= 1 - s / 2.
    return rho + error + 2.0 * off <= 0.99 * slack


def _scaled(derivative: Derivative, w: Array, r: float) -> Enclosed:
    """The scaled matrix with error bounds: four roundings an entry, on top of those of its factors."""
    left = np.concatenate([np.ones(len(derivative.c.mid)), w])[:, None]
    right = np.concatenate([np.full(derivative.inputs, r), w])[None]
    mid = np.concatenate([derivative.c.mid, derivative.z.mid]) * left / right
    rad = np.concatenate([derivative.c.rad, derivative.z.rad]) * left / right
    return Enclosed(mid, rad * (1.0 + 2.0**-40) + 8.0 * UNIT * np.abs(mid) + 2.0**-1000 * (1.0 + left / right))
