r"""A primal-dual interior-point method that uses the constraint's rank-2 structure. Floor 2.

Minimise :math:`\rho` over :math:`(\rho, \lambda)` with :math:`\lambda \ge 0` and
:math:`S = \rho E_x - Y^H Y + \sum_j \lambda_j (p_j q_j^H + q_j p_j^H) \succeq 0`; the partner maximises
:math:`\langle Y^H Y, X \rangle` over :math:`X \succeq 0` with :math:`\operatorname{tr} X_{xx} = 1` and
:math:`\langle p_j q_j^H + q_j p_j^H, X \rangle \le 0`. With P, Q the stacked rows, the Schur complement of the HKM
direction is four entrywise products of N x N matrices; S is factorised and inverted layer by layer; what is left are
two products of dense matrices. Every iterate is feasible: stopping early costs tightness, never validity. The partner
gives a bound from below in every iteration (`lipcert.lmi.dual`), so the gap is known.

References:
    | An interior-point method for semidefinite programming (Helmberg, Rendl, Vanderbei, Wolkowicz, 1996)
    | CSDP, a C library for semidefinite programming (Borchers, 1999): the predictor-corrector used here
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipcert.lmi import Factors, Multipliers, NormalForm, tighten
from lipcert.solvers.pencil import Pencil, Rows, pencil
from lipcert.solvers.recursion import begun, begun_weighted
from lipcert.solvers.solution import Progress, Solution, silent

_SPREAD = 1e3
"""Ratio of the scaled unknowns above which the problem is scaled anew."""


@dataclass(frozen=True)
class InteriorPoint:
    """Solve to a relative gap, and know the gap.

    Args:
        gap: Relative gap of the bound K at which to stop.
        iterations: Most iterations.
        seconds: Time after which the best multipliers so far are returned.

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

    def __call__(self, form: NormalForm, start: Multipliers | None = None, progress: Progress = silent) -> Solution:
        """Multipliers for a form, from strictly feasible ones (the closed form's unless given)."""
        began = time.monotonic()
        small, given, rho = begun(form, start)
        if form.neurons == 0 or not 0.0 < rho < float("inf"):
            return Solution(given, rho, 0.0, 0, f"{self!r}: nothing to improve")
        state = _begin(pencil(small, given, 1.05 * rho))
        if state is None:
            return Solution(given, rho, 0.0, 0, f"{self!r}: no interior")
        state, count, why = self._run(state, small, began, progress)
        multipliers = state.multipliers
        found = tighten(small, multipliers)
        if not found <= rho:
            multipliers, found = dict(given), rho
        return Solution(multipliers, found, min(state.dual, found), count, f"{self!r}: {why}")

    def weighted(self, form: NormalForm, progress: Progress = silent) -> tuple[Solution, Tensor]:
        r"""Multipliers and weights :math:`\tau` of the input's entries with the least sum, for inputs in linf.

        :math:`|\delta y|_2^2 \le \sum_i \tau_i \delta x_i^2 \le \sum_i \tau_i |\delta x|_\infty^2`. The solution's
        ``rho`` and ``dual`` are about the sum.

        References:
            | A quantitative geometric approach to neural-network smoothness (Wang, Prakriya, Jha, 2022)
        """
        began = time.monotonic()
        small, given, tau = begun_weighted(form)
        rho = float(tau.sum())
        nothing = Solution(given, rho, 0.0, 0, f"{self!r}: nothing to improve")
        if form.neurons == 0 or not 0.0 < rho < float("inf"):
            return nothing, tau
        state = _begin(pencil(small, given, 1.05 * tau))
        if state is None:
            return nothing, tau
        state, count, why = self._run(state, small, began, progress)
        return Solution(state.multipliers, state.rho, state.dual, count, f"{self!r}: {why}"), state.prices

    def _run(self, state: _State, form: NormalForm, began: float, progress: Progress) -> tuple[_State, int, str]:
        """Where the iteration ends, after how many steps, and why."""
        for count in range(self.iterations):
            if time.monotonic() - began > self.seconds:
                return state, count, "time limit"
            moved = _step(_rescaled(state, form))
            state = state if moved is None else moved
            progress(count + 1, state.rho, state.dual)
            if state.rho - state.dual <= 2.0 * self.gap * state.rho:
                return state, count + 1, "gap reached"
            if moved is None:
                return state, count + 1, "no further progress"
        return state, self.iterations, "iteration limit"


@dataclass(frozen=True, eq=False)
class _State:
    """An iterate.

    Attributes:
        problem: The scaled problem.
        y: ``(prices, lambda)``.
        factors: The elimination at y.
        X: The partner.
        L: Its factor.
        s: The multipliers of ``lambda >= 0``.
        dual: The best bound from below so far, in the network's own scale.
    """

    problem: Pencil
    y: Tensor
    factors: tuple[Factors, Tensor]
    X: Tensor
    L: Tensor
    s: Tensor
    dual: float

    @property
    def rho(self) -> float:
        """The squared bound, in the network's own scale."""
        return self.problem.total(self.y)

    @property
    def prices(self) -> Tensor:
        """The prices, in the network's own scale."""
        return self.y[: self.problem.prices] * self.problem.unit

    @property
    def lam(self) -> Tensor:
        """The multipliers, scaled."""
        return self.y[self.problem.prices :]

    @property
    def multipliers(self) -> dict[str, Tensor]:
        """The multipliers, in the network's own scale."""
        return self.problem.multipliers(self.lam)


def _begin(problem: Pencil) -> _State | None:
    y = problem.alpha.new_ones(problem.prices + sum(problem.counts))
    factors = problem.factors(y)
    if factors is None:
        return None
    Z = problem.inverse(factors)
    mu = 1.0 / Z[..., : problem.inputs, : problem.inputs].diagonal(dim1=-2, dim2=-1).real.sum()
    L, failed = torch.linalg.cholesky_ex(mu * Z)
    return None if bool(failed.any()) else _State(problem, y, factors, mu * Z, L, mu / y[problem.prices :], 0.0)


def _rescaled(state: _State, form: NormalForm) -> _State:
    """The state in the scale in which its unknowns are ones, if they have moved far from them."""
    old, y = state.problem, state.y
    if float(y.max() / y.min()) <= _SPREAD:
        return state
    new = pencil(form, state.multipliers, state.prices)
    ones = torch.ones_like(y)
    factors = new.factors(ones)
    if factors is None:
        return state
    level = state.rho / float(old.unit.sum())
    root = (torch.cat([y[: old.prices].expand(old.inputs), old.spread(state.lam)]) / level).sqrt()
    L = root[:, None] * state.L
    X = root[:, None] * state.X * root
    return replace(state, problem=new, y=ones, factors=factors, X=X, L=L, s=state.s * state.lam / level)


@dataclass(frozen=True, eq=False)
class _Direction:
    dy: Tensor
    dX: Tensor
    ds: Tensor
    rows: Rows


class _Newton:
    """The linear system of one iteration."""

    def __init__(self, state: _State) -> None:
        problem = state.problem
        self.state = state
        self.Z = problem.inverse(state.factors)
        self.rows_X, self.rows_Z = problem.rows(state.X), problem.rows(self.Z)
        M, self.trace = problem.schur(state.X, self.rows_X, self.Z, self.rows_Z)
        if problem.bounded:
            M.diagonal()[problem.prices :] += state.s / state.lam
        self.root = M.diagonal().clamp_min(1e-300).sqrt()
        scaled = M / self.root[:, None] / self.root
        self.factor, failed = torch.linalg.cholesky_ex(scaled)
        for shift in (1e-14, 1e-12, 1e-10):
            if not bool(failed):
                break
            shifted = scaled + shift * torch.eye(len(scaled), dtype=scaled.dtype, device=scaled.device)
            self.factor, failed = torch.linalg.cholesky_ex(shifted)
        self.solvable = not bool(failed) and bool(torch.isfinite(M).all())

    def complementarity(self, along: tuple[float, float], direction: _Direction | None) -> float:
        """The inner product of both sides, after steps along a direction."""
        problem, state = self.state.problem, self.state
        y, X, rows, s, first = state.y, state.X, self.rows_X, state.s, problem.prices
        product = _pairing(problem, y, X, rows, 1.0)
        if direction is not None:
            a, b = along
            product = (
                product
                + a * _pairing(problem, direction.dy, X, rows, 0.0)
                + b * _pairing(problem, y, direction.dX, direction.rows, 1.0)
                + a * b * _pairing(problem, direction.dy, direction.dX, direction.rows, 0.0)
            )
            y, s = y + a * direction.dy, s + b * direction.ds
        return product + (float(s @ y[first:]) if problem.bounded else 0.0)

    def direction(self, target: float, predicted: _Direction | None) -> _Direction:
        """The HKM direction towards ``X S = target I``, with the second-order term of a predicted one."""
        problem, state, lam, first = self.state.problem, self.state, self.state.lam, self.state.problem.prices
        right = target * self.trace
        right[:first] -= problem.unit / problem.unit.sum()
        own = torch.zeros_like(lam)
        inner = None
        if predicted is not None:
            inner = problem.direction_times(predicted.dy, predicted.dX, predicted.rows)
            right -= problem.cross_traces(inner.mH, self.Z, self.rows_Z)
            own = predicted.ds * predicted.dy[first:]
        if problem.bounded:
            right[first:] += (target - own) / lam
        dy = torch.cholesky_solve((right / self.root)[:, None], self.factor)[:, 0] / self.root
        T = problem.direction_times(dy, state.X, self.rows_X)
        T = (T if inner is None else T + inner).mH @ self.Z
        dX = target * self.Z - state.X - 0.5 * (T + T.mH)
        ds = (target - own - state.s * dy[first:]) / lam - state.s
        return _Direction(dy, dX, ds, problem.rows(dX))


def _pairing(problem: Pencil, y: Tensor, M: Tensor, rows: Rows, constant: float) -> float:
    """``<S(y), M>``, or of the linear part for ``constant=0``."""
    found = float(y @ problem.traces(M, rows))
    return found - constant * float((problem.gram.conj() * M).real.sum()) if constant else found


def _step(state: _State) -> _State | None:
    """One predictor-corrector step; ``None`` if nothing moves."""
    newton = _Newton(state)
    if not newton.solvable:
        return None
    problem = state.problem
    size = len(state.X.flatten(0, -2)) + (len(state.s) if problem.bounded else 0)
    mu = newton.complementarity((0.0, 0.0), None) / size
    predicted = newton.direction(0.0, None)
    a, b = _lengths(state, predicted, 1.0)
    after = newton.complementarity((a, b), predicted) / size
    sigma = min(1.0, max(1e-6, (max(after, 0.0) / mu) ** 2 if min(a, b) > 0.1 else 0.5))
    found = newton.direction(sigma * mu, predicted)
    a, b = _lengths(state, found, 0.9 if min(a, b) < 0.9 else 0.95)
    return _moved(state, found, a, b)


def _lengths(state: _State, found: _Direction, short: float) -> tuple[float, float]:
    """How far the two sides may go, at most 1."""
    a = short * _feasible(state, found.dy, 1.0 / short)
    b = short * _longest(state.L, found.dX)
    if state.problem.bounded:
        falls = short * _ratio(state.lam, found.dy[state.problem.prices :])
        a, b = min(a, falls), min(b, short * _ratio(state.s, found.ds))
    return min(1.0, a), min(1.0, b)


def _feasible(state: _State, dy: Tensor, most: float) -> float:
    """About the largest step up to ``most`` that keeps ``S > 0``: an elimination tells, and costs little."""
    y, factors = state.y, state.problem.factors
    step = most
    for _ in range(30):
        if factors(y + step * dy) is not None:
            break
        step *= 0.5
    else:
        return 0.0
    above = min(most, 2.0 * step)
    for _ in range(4 if above > step else 0):
        middle = 0.5 * (step + above)
        step, above = (middle, above) if factors(y + middle * dy) is not None else (step, middle)
    return step


def _moved(state: _State, found: _Direction, a: float, b: float) -> _State | None:
    problem = state.problem
    for _ in range(12):
        y = state.y + a * found.dy
        factors = problem.factors(y)
        if factors is not None:
            break
        a *= 0.7
    else:
        return None
    for _ in range(12):
        X = state.X + b * found.dX
        L, failed = torch.linalg.cholesky_ex(X)
        if not bool(failed.any()):
            break
        b *= 0.7
    else:
        return None
    if max(a, b) <= 1e-6:
        return None
    dual = max(state.dual, problem.dual(L))
    return replace(state, y=y, factors=factors, X=X, L=L, s=state.s + b * found.ds, dual=dual)


def _ratio(value: Tensor, change: Tensor) -> float:
    falling = change < 0.0
    return float((value[falling] / -change[falling]).min()) if bool(falling.any()) else float("inf")


def _longest(L: Tensor, D: Tensor, steps: int = 25) -> float:
    """About the largest b with ``L L^H + b D >= 0``: Lanczos on ``L^-1 D L^-H`` with full reorthogonalisation."""
    n = L.shape[-1]
    if n <= 100:
        inner = torch.linalg.solve_triangular(L, D, upper=False)
        least = float(torch.linalg.eigvalsh(torch.linalg.solve_triangular(L, inner.mH, upper=False))[..., 0].min())
        return -1.0 / least if least < 0.0 else float("inf")
    angle = torch.arange(1, n + 1, dtype=L.real.dtype, device=L.device)
    v = (1.0 + 0.5 * torch.cos(0.7 * angle * angle)).to(L.dtype).expand(*L.shape[:-2], n)[..., None]
    Q = v / _norm(v)
    alphas, betas = [], []
    for _ in range(min(steps, n)):
        w = torch.linalg.solve_triangular(L.mH, Q[..., -1:], upper=True)
        w = torch.linalg.solve_triangular(L, D @ w, upper=False)
        alphas.append((Q[..., -1:].mH @ w).real[..., 0, 0])
        w = w - Q @ (Q.mH @ w)
        w = w - Q @ (Q.mH @ w)
        betas.append(_norm(w)[..., 0, 0])
        if float(betas[-1].max()) < 1e-12 * float(alphas[0].abs().max() + 1e-300):
            break
        Q = torch.cat([Q, w / _norm(w).clamp_min(1e-300)], dim=-1)
    T = torch.diag_embed(torch.stack(alphas, -1))
    off = torch.stack(betas, -1)[..., :-1]
    T = T + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
    values, vectors = torch.linalg.eigh(T)
    least = float((values[..., 0] - betas[-1] * vectors[..., -1, 0].abs()).min())
    return -1.0 / least if least < 0.0 else float("inf")


def _norm(v: Tensor) -> Tensor:
    return torch.linalg.vector_norm(v, dim=(-2, -1), keepdim=True)
