r"""The same programme given to a general conic solver through cvxpy: slow, and independent of ours. Floor 2.

Minimise :math:`\rho` over :math:`\rho` and :math:`\lambda \ge 0` subject to

.. math:: S(\rho, \lambda) = \rho E_x - Y^T Y + \sum_j \lambda_j (p_j q_j^T + q_j p_j^T) \succeq 0

with :math:`p_j = e_j - \alpha_j v_j` and :math:`q_j = e_j - \beta_j v_j`, the rows of the network's normal form. The
matrices are written down here from that formula and share nothing with the other solvers but the form; only the unit
of each unknown comes from a start, because general solvers stop at absolute tolerances. What comes back is repaired if
it is not feasible and judged by `tighten`, whatever the solver says of it.

References:
    | Efficient and accurate estimation of Lipschitz constants for deep neural networks (Fazlyab et al., 2019)
    | CVXPY: a Python-embedded modeling language for convex optimization (Diamond and Boyd, 2016)
    | Clarabel: an interior-point solver for conic programs with quadratic objectives (Goulart and Chen, 2024)
    | Conic optimization via operator splitting and homogeneous self-dual embedding (O'Donoghue et al., 2016): SCS
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lipcert.errors import InvalidInput
from lipcert.lmi import Multipliers, NormalForm, dual_value, reduced, tighten
from lipcert.lmi.dual import directions_of
from lipcert.lmi.normal_form import INPUT
from lipcert.solvers.recursion import Recursion
from lipcert.solvers.solution import Progress, Solution, silent

Array = np.ndarray

_TIME_LIMITS = {
    "CLARABEL": lambda seconds: {"time_limit": seconds},
    "SCS": lambda seconds: {"time_limit_secs": seconds},
    "MOSEK": lambda seconds: {"mosek_params": {"MSK_DPAR_OPTIMIZER_MAX_TIME": seconds}},
}
"""How the solvers of semidefinite programmes that are known to work here are told their time."""

_REPAIRS = (0.0, *(10.0**power for power in range(-12, 0)), 0.3)
"""Shares of feasible multipliers that are mixed into a solver's."""


@dataclass(frozen=True)
class Conic:
    """A general conic solver as an independent reference: for small networks, to confirm or to compare.

    An answer that is slightly infeasible is repaired: the multipliers are moved towards the start's, which are
    feasible, by a share that grows tenfold while that helps. A solver that fails leaves the start's multipliers.
    ``Solution.method`` has the solver's status, its own claim and the repair.

    Args:
        solver: ``"CLARABEL"``, ``"SCS"`` or ``"MOSEK"``, the latter if installed.
        options: Passed to the solver, by the names that cvxpy documents for it.
        seconds: The solver's time limit; forming the problem is not counted.

    Raises:
        InvalidInput: If the solver is none of these or not installed.

    Example:
        >>> from lipcert import trace
        >>> from lipcert.lmi import normal_form
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 2, bias=False), torch.nn.ReLU(), torch.nn.Linear(2, 1))
        >>> for weight, rows in ((model[0].weight, [[1.0], [1.0]]), (model[2].weight, [[1.0, -1.0]])):
        ...     weight.data = torch.tensor(rows)
        >>> round(Conic()(normal_form(trace(model, (1,)))).rho ** 0.5, 3)
        1.0
    """

    solver: str = "CLARABEL"
    options: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = math.inf

    def __call__(self, form: NormalForm, start: Multipliers | None = None, progress: Progress = silent) -> Solution:
        """Multipliers for a form; ``start`` gives the scale and is what a failure falls back to."""
        options = self._options()
        small = reduced(form)
        given = Recursion()(small).multipliers if start is None else start
        rho = tighten(small, given)
        if form.neurons == 0 or not 0.0 < rho < math.inf:
            return Solution(given, rho, 0.0, 0, f"{self!r}: nothing to improve")
        scaled = programme(small, given, rho)
        answer = ask(scaled, self.solver, options)
        if answer.lam is None:
            return Solution(given, rho, 0.0, answer.iterations, f"{self!r}: {answer.status}, the start is returned")
        multipliers, found, share = repaired(small, scaled.named(answer.lam), given)
        said = f"{answer.status}, claims rho = {answer.rho * scaled.unit:.9g}"
        if share == 1.0:
            said += ", which leaves no feasible multipliers: the start is returned"
        elif share > 0.0:
            said += f", moved by {share:.0e} towards the start"
        dual = 0.0 if answer.X is None else min(found, attained(small, scaled.unscaled(answer.X)))
        progress(answer.iterations, found, dual)
        return Solution(multipliers, found, dual, answer.iterations, f"{self!r}: {said}")

    def _options(self) -> dict[str, Any]:
        import cvxpy

        available = [name for name in _TIME_LIMITS if name in cvxpy.installed_solvers()]
        if self.solver not in available:
            raise InvalidInput(
                f"`Conic` cannot use the solver {self.solver!r}: of those for semidefinite programmes, "
                f"{', '.join(available) or 'none'} is installed here. Name one of them, or install it."
            )
        limit = _TIME_LIMITS[self.solver](self.seconds) if self.seconds < math.inf else {}
        return {**limit, **self.options}


@dataclass(frozen=True, eq=False)
class Answer:
    """What a solver said of the scaled problem: nothing in it is believed.

    Attributes:
        status: In cvxpy's words.
        rho: The scaled objective.
        lam: The scaled multipliers, ``(count,)``; ``None`` if there are none.
        X: The partner of S, ``(n, n)``, if the solver has one.
        iterations: How many it counted.
    """

    status: str
    rho: float = math.nan
    lam: Array | None = None
    X: Array | None = None
    iterations: int = 0


@dataclass(frozen=True, eq=False)
class Programme:
    """The matrices of a form in units in which the start is ones.

    Attributes:
        inputs: Size of the x part.
        gram: ``Y' Y``, ``(n, n)``.
        P: Rows ``p_j``, ``(neurons, n)``.
        Q: Rows ``q_j``, ``(neurons, n)``.
        index: For every neuron the number of its multiplier among all layers', ``(neurons,)``.
        counts: For every layer how many multipliers it has.
        unit: What one of the scaled rho stands for.
        scale: What one of the scaled multipliers stands for, ``(count,)``.
        root: What the entries of z were multiplied by, ``(n,)``.
    """

    inputs: int
    gram: Array
    P: Array
    Q: Array
    index: Array
    counts: Mapping[str, int]
    unit: float
    scale: Array
    root: Array

    def named(self, lam: Array) -> dict[str, Tensor]:
        """Scaled multipliers as the network's."""
        pieces = torch.from_numpy(lam * self.scale).split(list(self.counts.values()))
        return dict(zip(self.counts, pieces, strict=True))

    def unscaled(self, X: Array) -> Tensor:
        """A partner of the scaled S as the network's; its size does not matter."""
        return torch.from_numpy(X / max(np.abs(X).max(), 1e-300) / np.outer(self.root, self.root))

    def matrix(self, rho: float, lam: Array) -> Array:
        """``S`` at scaled unknowns."""
        half = self.P.T @ (lam[self.index][:, None] * self.Q)
        S = half + half.T - self.gram
        S[: self.inputs, : self.inputs] += rho * np.eye(self.inputs)
        return S

    def columns(self) -> Any:
        """The matrix that takes ``(rho, lambda)`` to the entries of ``S + Y' Y``, sparse, ``(n * n, 1 + count)``."""
        from scipy import sparse

        n = self.P.shape[1]
        x = np.zeros(n)
        x[: self.inputs] = 1.0
        P, Q = sparse.csr_array(self.P), sparse.csr_array(self.Q)
        outer = [sparse.kron(P[[j]], Q[[j]]) + sparse.kron(Q[[j]], P[[j]]) for j in range(len(self.index))]
        shared = sparse.csr_array((np.ones(len(self.index)), (np.arange(len(self.index)), self.index)))
        first = sparse.csr_array(np.diag(x).reshape(-1, 1))
        return sparse.hstack([first, sparse.csc_array(sparse.vstack(outer)).T @ shared], format="csc")


def programme(form: NormalForm, given: Multipliers, rho: float) -> Programme:
    """The matrices of a form, scaled so that ``(rho, given)`` becomes ones."""
    columns, n0, n = form.columns(), form.inputs, form.inputs + form.neurons
    Y = np.zeros((len(next(iter(form.output.blocks.values()))), n))
    for name, block in form.output.blocks.items():
        Y[:, columns[name]] += block.numpy()
    V = np.zeros((n, n))
    for layer in form.layers:
        for name, block in layer.v.blocks.items():
            V[columns[layer.name], columns[name]] += block.numpy()
    counts = {layer.name: layer.count for layer in form.layers}
    before = np.cumsum([0, *counts.values()])[:-1]
    own = [np.arange(layer.count) if layer.index is None else layer.index.numpy() for layer in form.layers]
    index = np.concatenate([first + number for first, number in zip(before, own, strict=True)])
    lam = np.concatenate([given[name].numpy() for name in counts])
    scale = np.maximum(lam, 1e-30 * lam.max())
    root = np.concatenate([np.full(n0, math.sqrt(rho)), np.sqrt(scale[index])])
    alpha = np.concatenate([np.zeros(n0), *(layer.alpha.numpy() for layer in form.layers)])
    beta = np.concatenate([np.zeros(n0), *(layer.beta.numpy() for layer in form.layers)])
    P, Q = (root[n0:, None] * (np.eye(n) - slope[:, None] * V)[n0:] / root for slope in (alpha, beta))
    return Programme(n0, (Y / root).T @ (Y / root), P, Q, index, counts, rho, scale, root)


def ask(scaled: Programme, solver: str, options: Mapping[str, Any]) -> Answer:
    """Have a programme solved, in cvxpy's form and by one of its solvers."""
    import cvxpy
    from cvxpy import settings
    from cvxpy.error import SolverError

    n = scaled.P.shape[1]
    y = cvxpy.Variable(1 + len(scaled.scale))
    S = cvxpy.reshape(scaled.columns() @ y, (n, n), order="F") - scaled.gram
    semidefinite = S >> 0
    problem = cvxpy.Problem(cvxpy.Minimize(y[0]), [semidefinite, y[1:] >= 0])
    # The steps of `Problem.solve` one by one: it warns or raises where a status is all that is needed here.
    data, chain, inverse = problem.get_problem_data(solver, solver_opts=dict(options))
    assert chain is not None
    try:
        raw = chain.solve_via_data(problem, data, solver_opts=dict(options))
    except SolverError as failure:
        return Answer(f"failed ({failure})")
    solution = chain.invert(raw, inverse)
    count = int(solution.attr.get(settings.NUM_ITERS) or 0)
    found = solution.primal_vars.get(y.id) if solution.status in settings.SOLUTION_PRESENT else None
    if found is None:
        return Answer(solution.status, iterations=count)
    return Answer(solution.status, float(found[0]), found[1:], solution.dual_vars.get(semidefinite.id), count)


def repaired(form: NormalForm, found: Multipliers, given: Multipliers) -> tuple[Multipliers, float, float]:
    """The best mixture of what was found with feasible multipliers, as little of these as leaves a finite rho.

    Rho is convex along the way: infinite at first if what was found is infeasible, large just inside, and once it rises
    it goes on rising.

    Returns:
        Multipliers, the rho they give, and the share of ``given`` in them.
    """
    best: tuple[Multipliers, float, float] = given, tighten(form, given), 1.0
    if not all(bool(lam.isfinite().all()) for lam in found.values()):
        return best
    before = math.inf
    for share in _REPAIRS:
        mixed = {name: (1.0 - share) * lam.clamp_min(0.0) + share * given[name].to(lam) for name, lam in found.items()}
        rho = tighten(form, mixed)
        if rho > before:
            break
        before = rho
        if 0.0 < rho < best[1]:
            best = mixed, rho, share
    return best


def attained(form: NormalForm, X: Tensor) -> float:
    """What no multipliers can go below, from a matrix of second moments that need not be feasible.

    Args:
        form: The network.
        X: ``(n, n)``.
    """
    if not bool(X.isfinite().all()):
        return 0.0
    values, vectors = torch.linalg.eigh(0.5 * (X + X.mT))
    z = vectors * values.clamp_min(0.0).sqrt()
    given = {name: z[place] for name, place in form.columns().items()}
    if not bool(given[INPUT].any()):
        return 0.0
    return float(dual_value(form, directions_of(form, given)))
