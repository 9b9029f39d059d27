"""One semidefinite programme by cvxpy and one solver, in a process of its own.

``python -m benchmarks.conic_peer SCS 1e-5 2x20 1 wall`` says when it is ready and then prints one line of JSON. The
programme is the one of `lipcert.solvers.Conic`, in the units of the closed form: peers get the sparse matrix of
coefficients and the scaling for nothing, only forming and solving are timed.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import torch

from benchmarks.recipes import chain, gaussian
from lipcert import trace
from lipcert.lmi import normal_form, reduced, tighten
from lipcert.solvers import Recursion
from lipcert.solvers.conic import ask, attained, programme, repaired

# A relative gap of 1e-4 in K is one of 2e-4 in rho.
OPTIONS: dict[str, Callable[[float], dict[str, Any]]] = {
    "CLARABEL": lambda gap: {"tol_gap_rel": 2.0 * gap, "tol_gap_abs": 1e-9, "tol_feas": 1e-2 * gap},
    "SCS": lambda tolerance: {"eps": tolerance},
}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def solve(solver: str, tolerance: float, hidden: int, width: int, clock: str) -> dict[str, Any]:
    """What a solver answers, how long it took, and what the answer is worth."""
    graph = trace(chain(gaussian(hidden, width)), (10,))
    form = reduced(normal_form(graph))
    begun = CLOCKS[clock]()
    given = Recursion()(form).multipliers
    scaled = programme(form, given, tighten(form, given))
    answer = ask(scaled, solver, OPTIONS[solver](tolerance))
    seconds = CLOCKS[clock]() - begun
    found = {"seconds": seconds, "status": answer.status, "iterations": answer.iterations}
    found["megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if answer.lam is None:
        return found
    found["bound"] = float(max(answer.rho * scaled.unit, 0.0) ** 0.5)
    found["least_eigenvalue"] = float(np.linalg.eigvalsh(scaled.matrix(answer.rho, answer.lam))[0])
    found["repaired"] = repaired(form, scaled.named(answer.lam), given)[1] ** 0.5
    found["dual"] = 0.0 if answer.X is None else attained(form, scaled.unscaled(answer.X)) ** 0.5
    return found


if __name__ == "__main__":
    solver, tolerance, size, threads, clock = sys.argv[1:]
    hidden, width = map(int, size.split("x"))
    torch.set_num_threads(int(threads))
    import_module("cvxpy")
    print("ready", flush=True)
    print(json.dumps(solve(solver, float(tolerance), hidden, width, clock)))
