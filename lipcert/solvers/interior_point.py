r"""A primal-dual interior-point method that uses the constraint's rank-2 structure. Floor 2.

Minimise :math:`\rho` over :math:`(\rho, \lambda)` with :math:`\lambda \ge 0` and
:math:`S = \rho E_x - Y^T Y + \sum_j \lambda_j (p_j q_j^T + q_j p_j^T) \succeq 0`; the partner maximises
:math:`\langle Y^T Y, X \rangle` over :math:`X \succeq 0` with :math:`\operatorname{tr} X_{xx} = 1` and
:math:`\langle p_j q_j^T + q_j p_j^T, X \rangle \le 0`. With P, Q the stacked rows, the Schur complement of the HKM
direction is four entrywise products of N x N matrices, so an iteration costs a handful of dense products, no modelling
layer. Every iterate is feasible: stopping early costs tightness, never validity.

References:
    | An interior-point method for semidefinite programming (Helmberg, Rendl, Vanderbei, Wolkowicz, 1996)
    | CSDP, a C library for semidefinite programming (Borchers, 1999): the predictor-corrector used here
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.lmi import Multipliers, NormalForm, reduced, tighten
from lipcert.solvers.pencil import Pencil, pencil
from lipcert.solvers.recursion import Recursion
from lipcert.solvers.solution import Progress, Solution, silent


@dataclass(frozen=True)
class InteriorPoint:
    """Solve to a relative gap, and know the gap.

    Args:
        gap: Relative gap of the bound K at which to stop.
        iterations: Most iterations.
        seconds: Time after which the best multipliers so far are returned.
        spread: Ratio of the scaled unknowns above which the problem is scaled anew.

    Example:
        >>> from lipcert import trace
        >>> from lipcert.lmi import normal_form
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 2, bias=False), torch.nn.ReLU(), torch.nn.Linear(2, 1))
        >>> for weight, rows in ((model[0].weight, [[1.0], [1.0]]), (model[2].weight, [[1.0, -1.0]])):
        ...     weight.data = torch.tensor(rows)
        >>> round(InteriorPoint()(normal_form(trace(model, (1,)))).rho ** 0.5, 3)
        1.0
    """

    gap: float = 1e-6
    iterations: int = 100
    seconds: float = float("inf")
    spread: float = 100.0

    def __call__(self, form: NormalForm, start: Multipliers | None = None, progress: Progress = silent) -> Solution:
        """Multipliers for a form, from strictly feasible ones (the closed form's unless given)."""
        begun = time.monotonic()
        small = reduced(form)
        given = Recursion()(small).multipliers if start is None else start
        rho = tighten(small, given)
        if form.neurons == 0 or not 0.0 < rho < float("inf"):
            return Solution(given, rho, 0.0, 0, f"{self!r}: nothing to improve")
        state = _State(pencil(small, given, 1.05 * rho))
        why, count = "iteration limit", 0
        for count in range(1, self.iterations + 1):
            if time.monotonic() - begun > self.seconds:
                why = "time limit"
                break
            if state.spread() > self.spread:
                state.rescale(small)
            moved = state.step()
            progress(count, state.rho(), state.dual)
            if state.rho() - state.dual <= 2.0 * self.gap * state.rho():
                why = "gap reached"
                break
            if not moved:
                why = "no further progress"
                break
        multipliers = state.multipliers()
        found = tighten(small, multipliers)
        if not found <= rho:
            multipliers, found = dict(given), rho
        return Solution(multipliers, found, min(state.dual, found), count, f"{self!r}: {why}")


class _State:
    """The iterate: rho and lambda with the factor of S, the partner X and the multipliers s of lambda >= 0."""

    def __init__(self, problem: Pencil) -> None:
        self.problem = problem
        self.y = torch.cat([problem.rho.reshape(1), problem.lam])
        self.L = torch.linalg.cholesky(problem.matrix(self.y))
        Z = torch.cholesky_inverse(self.L)
        self.X = Z / Z.diagonal()[: problem.inputs].sum()
        self.LX = torch.linalg.cholesky(self.X)
        mu = 1.0 / float(Z.diagonal()[: problem.inputs].sum())
        self.s = mu / self.y[1:]
        self.dual = 0.0

    def spread(self) -> float:
        """How far the scaled unknowns have moved from ones."""
        return float(self.y.max() / self.y.min())

    def rescale(self, form: NormalForm) -> None:
        """Scale the problem so that the present unknowns are ones."""
        old, new = self.problem, pencil(form, self.multipliers(), self.rho())
        ones = torch.ones_like(self.y)
        L, failed = torch.linalg.cholesky_ex(new.matrix(ones))
        if bool(failed):
            return
        ratio = new.root / old.root
        size = float(ratio[0])
        self.problem, self.L = new, L
        self.X = (ratio[:, None] / size) * self.X * (ratio / size)
        self.LX = ratio[:, None] / size * self.LX
        self.s = self.s * self.y[1:] / self.y[0]
        self.y = ones

    def rho(self) -> float:
        """The squared bound, in the network's own scale."""
        return float(self.y[0]) * self.problem.unit

    def multipliers(self) -> dict[str, Tensor]:
        """The iterate's multipliers, in the network's own scale."""
        return self.problem.named(self.y[1:])

    def step(self) -> bool:
        """One predictor-corrector step; whether it moved."""
        problem, y, X, s = self.problem, self.y, self.X, self.s
        lam = y[1:]
        Z = torch.cholesky_inverse(self.L)
        M, trace = problem.schur(X, Z)
        M.diagonal()[1:] += s / lam
        mu = float((X * problem.matrix(y)).sum() + s @ lam) / (len(X) + len(lam))
        factor, failed = torch.linalg.cholesky_ex(M)
        if bool(failed):
            M.diagonal().mul_(1.0 + 1e-12)
            factor, failed = torch.linalg.cholesky_ex(M)
        if bool(failed) or not mu > 0.0:
            return False

        def direction(target: float, inner: Tensor | None, own: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
            right = target * torch.cat([trace[:1], trace[1:] + 1.0 / lam])
            right[0] -= 1.0
            if inner is not None and own is not None:
                right -= problem.traces(inner)
                right[1:] -= own / lam
            dy = torch.cholesky_solve(right[:, None], factor)[:, 0]
            T = problem.times_direction(X, dy) @ Z
            if inner is not None:
                T = T + inner
            dX = target * Z - X - 0.5 * (T + T.mT)
            ds = target / lam - s - s * dy[1:] / lam - (0.0 if own is None else own / lam)
            return dy, dX, ds

        dy, dX, ds = direction(0.0, None, None)
        a, b = self._steps(dy, dX, ds, 1.0)
        S_new = problem.matrix(y + a * dy)
        mu_new = float(((X + b * dX) * S_new).sum() + (s + b * ds) @ (lam + a * dy[1:])) / (len(X) + len(lam))
        sigma = min(1.0, max(1e-6, (max(mu_new, 0.0) / mu) ** 2 if min(a, b) > 0.1 else 0.5))
        dy, dX, ds = direction(sigma * mu, problem.times_direction(dX, dy) @ Z, ds * dy[1:])
        a, b = self._steps(dy, dX, ds, 0.95 if min(a, b) < 0.9 else 0.98)
        return self._move(dy, dX, ds, a, b)

    def _steps(self, dy: Tensor, dX: Tensor, ds: Tensor, short: float) -> tuple[float, float]:
        """How far the two sides may go."""
        dS = self.problem.matrix(dy, constant=0.0)
        a = min(_longest(self.L, dS), _ratio(self.y[1:], dy[1:]))
        b = min(_longest(self.LX, dX), _ratio(self.s, ds))
        return min(1.0, short * a), min(1.0, short * b)

    def _move(self, dy: Tensor, dX: Tensor, ds: Tensor, a: float, b: float) -> bool:
        for _ in range(12):
            L, failed = torch.linalg.cholesky_ex(self.problem.matrix(self.y + a * dy))
            if not bool(failed):
                break
            a *= 0.7
        else:
            return False
        for _ in range(12):
            LX, bad = torch.linalg.cholesky_ex(self.X + b * dX)
            if not bool(bad):
                break
            b *= 0.7
        else:
            return False
        self.y, self.L = self.y + a * dy, L
        self.X, self.LX, self.s = self.X + b * dX, LX, self.s + b * ds
        self.dual = max(self.dual, self.problem.dual(self.X, self.y) * self.problem.unit)
        return max(a, b) > 1e-6


def _ratio(value: Tensor, change: Tensor) -> float:
    falling = change < 0.0
    return float((value[falling] / -change[falling]).min()) if bool(falling.any()) else float("inf")


def _longest(L: Tensor, D: Tensor, steps: int = 30) -> float:
    """About the largest a with ``L L' + a D >= 0``: Lanczos on ``L^-1 D L^-T`` with full reorthogonalisation."""
    n = len(L)
    if n <= 200:
        inner = torch.linalg.solve_triangular(L, D, upper=False)
        least = float(torch.linalg.eigvalsh(torch.linalg.solve_triangular(L, inner.mT, upper=False))[0])
        return -1.0 / least if least < 0.0 else float("inf")
    angle = torch.arange(1, n + 1, dtype=L.dtype, device=L.device)
    v = 1.0 + 0.5 * torch.cos(0.7 * angle * angle)
    basis, alphas, betas = [v / v.norm()], [], []
    for _ in range(min(steps, n)):
        w = torch.linalg.solve_triangular(L.mT, basis[-1][:, None], upper=True)
        w = torch.linalg.solve_triangular(L, D @ w, upper=False)[:, 0]
        alphas.append(w @ basis[-1])
        Q = torch.stack(basis)
        w = w - Q.mT @ (Q @ w)
        w = w - Q.mT @ (Q @ w)
        betas.append(w.norm())
        if float(betas[-1]) < 1e-12 * float(alphas[0].abs() + 1e-300):
            break
        basis.append(w / betas[-1])
    T = torch.diag(torch.stack(alphas))
    off = torch.stack(betas)[:-1]
    T += torch.diag(off, 1) + torch.diag(off, -1)
    values, vectors = torch.linalg.eigh(T)
    least = float(values[0]) - float(betas[-1] * vectors[-1, 0].abs())
    return -1.0 / least if least < 0.0 else float("inf")
