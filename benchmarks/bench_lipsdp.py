"""Semidefinite bounds beside their peers, beside known constants, in depth and in size.

Run ``python -m benchmarks.bench_lipsdp`` (hours, most of them peers running into their limit), or name parts of it:

- ``peers``: random nets "hidden x width" against cvxpy with Clarabel and SCS, each in a process of its own that is
  ended after ``--limit`` seconds, and against the closed form of `eclipse-nn`; what `eclipse-nn` says of models that it
  does not understand.
- ``truths``: networks whose constant or optimum is known or published.
- ``deep``: chains of 50 and more layers.
- ``scale``: up to 10,000 neurons; growth with the depth, fitted and plotted to ``--plot``.

``--only REGEX`` keeps the rows whose name matches; ``--count`` and ``--repeats`` make less of it. Times are medians of
``--repeats`` runs of everything behind the public call, proof included, trace excluded; of more runs where they take
less than a fifth of a second together, of fewer where they take more than half a minute. All contenders run with the
same number of threads. On a machine that does other things, ``--clock cpu`` counts the time of the processor instead of
the wall's; limits and goals stay as they are.

`eclipse-nn` is measured where it can be imported (``pip install eclipse-nn``). Third-party networks are skipped where
their folder is missing. Goals are this project's own.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks.conic_peer import CLOCKS
from benchmarks.recipes import chain, contractive, gaussian, gaussian_dims, norm_of_product, positive
from benchmarks.silent_mistakes import MODELS
from benchmarks.third_party import FOLDER, Net, networks
from benchmarks.versions import versions
from lipcert import trace, witness
from lipcert.certifiers import LipSDP
from lipcert.graph import Graph
from lipcert.lmi import Multipliers, NormalForm, normal_form, prove
from lipcert.solvers import Auto, FirstOrder, Progress, Recursion, Solution, Solver
from lipcert.solvers.solution import silent

T = TypeVar("T")
SHORT, LONG = 0.2, 30.0
GAP = 1e-4
# The tolerances tried one after the other until the answer, once it is feasible, is within the gap.
PEERS = {"CLARABEL": (1e-4,), "SCS": (1e-5, 1e-6, 1e-7)}


@dataclass(frozen=True)
class Plan:
    """What was asked for on the command line."""

    only: str
    limit: float
    repeats: int
    count: int
    threads: int
    clock: str
    plot: Path
    console: Console

    def wants(self, name: str) -> bool:
        return re.search(self.only, name) is not None

    def timed(self, function: Callable[[], T]) -> tuple[T, float]:
        """A result, and the median of the seconds it took."""
        taken: list[float] = []
        while True:
            begun = CLOCKS[self.clock]()
            result = function()
            taken.append(CLOCKS[self.clock]() - begun)
            if (len(taken) >= self.repeats and sum(taken) > SHORT) or sum(taken) > LONG:
                return result, statistics.median(taken)


class Heard:
    """A solver that keeps its last solution, whose dual bound no certificate holds."""

    def __init__(self, solver: Solver) -> None:
        self.solver = solver
        self.last: Solution | None = None

    def __call__(self, form: NormalForm, start: Multipliers | None = None, progress: Progress = silent) -> Solution:
        self.last = self.solver(form, start, progress)
        return self.last


@dataclass(frozen=True)
class Found:
    """A proven bound, the dual bound of K (0 if none, or for a network in several parts), seconds, the method."""

    bound: float
    dual: float
    seconds: float
    method: str

    @property
    def gap(self) -> str:
        return f"{self.bound / self.dual - 1:.1e}" if self.dual > 0.0 else "-"


def certified(plan: Plan, graph: Graph, solver: Solver) -> Found:
    heard = Heard(solver)
    certificate, seconds = plan.timed(lambda: LipSDP(heard)(graph))
    whole = str(certificate.method).startswith("LipSDP") and len(certificate.evidence.blocks) == 1  # type: ignore[union-attr]
    dual = math.sqrt(heard.last.dual) if whole and heard.last is not None else 0.0
    return Found(certificate.bound, dual, seconds, certificate.method)


def judged(goal: str, met: bool) -> str:
    return f"{goal}: {'[green]met[/]' if met else '[red]missed[/]'}"


def show(table: Table, plan: Plan) -> None:
    if table.row_count:
        plan.console.print(table)


def graph_of(weights: list[np.ndarray], activation: Callable[[], nn.Module] = nn.ReLU) -> Graph:
    return trace(chain(weights, activation), (weights[0].shape[1],))


# ------------------------------------------------------------------------------------------------------------- peers

RANDOM = ("2x20", "2x40", "2x80", "5x50", "20x40", "10x100")
TIMES_FASTER = {"2x80": 40.0, "5x50": 300.0}


def peers(plan: Plan) -> None:
    table = Table(
        *("net", "by", "s", "ours is faster", "says", "bound", "least eigenvalue", "feasible", "after repair"),
        *("over our dual", "goal"),
        title=f"relative gap {GAP:g}, peers ended after {plan.limit:g} s",
    )
    for name in filter(plan.wants, RANDOM):
        hidden, width = map(int, name.split("x"))
        ours = certified(plan, graph_of(gaussian(hidden, width)), Auto(gap=GAP, seconds=plan.limit))
        attempts = [attempt for solver in PEERS for attempt in attempted(solver, name, ours.dual, plan)]
        best = min((a["seconds"] for _, a in attempts if within(a, ours.dual)), default=math.inf)
        least = plan.limit / ours.seconds if best == math.inf else best / ours.seconds
        wanted = TIMES_FASTER.get(name, 0.0)
        more = "> " if best == math.inf else ""
        reached = ours.dual > 0.0 and ours.bound <= (1.0 + GAP) * ours.dual
        goal = judged(f">= {wanted:g}x", reached and least >= wanted) if wanted else ""
        goal = goal if reached else f"gap not reached {goal}"
        mine = ("lipcert", f"{ours.seconds:.3g}", f"{more}{least:.3g}", "proven", f"{ours.bound:.6g}")
        table.add_row(name, *mine, "", "yes", "", ours.gap, goal)
        for solver, answer in attempts:
            more = "> " if answer["status"].startswith("nothing") else ""
            ratio = f"{more}{answer['seconds'] / ours.seconds:.3g}"
            numbers = (f"{more}{answer['seconds']:.3g}", ratio, answer["status"], *worth(answer, ours.dual))
            table.add_row("", solver, *numbers, "" if within(answer, ours.dual) else "gap not reached")
    show(table, plan)
    closed_forms(plan)
    mistakes(plan)


def attempted(solver: str, name: str, dual: float, plan: Plan) -> Iterator[tuple[str, dict[str, Any]]]:
    """A peer's answers at ever smaller tolerances, until one is within the gap or none comes in time."""
    for tolerance in PEERS[solver]:
        answer = asked(solver, tolerance, name, plan)
        yield f"{solver} {tolerance:g}", answer
        if within(answer, dual) or answer["status"].startswith("nothing"):
            return


def within(answer: dict[str, Any], dual: float) -> bool:
    """Whether an answer, once it is feasible, is within the gap; the dual that says so may be as far below itself."""
    return "repaired" in answer and answer["repaired"] <= (1.0 + 2.0 * GAP) * max(dual, answer["dual"])


def asked(solver: str, tolerance: float, name: str, plan: Plan) -> dict[str, Any]:
    """What a peer says, in a process that ends with its time."""
    arguments = [solver, str(tolerance), name, str(plan.threads), plan.clock]
    command = [sys.executable, "-m", "benchmarks.conic_peer", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": str(plan.threads), "RAYON_NUM_THREADS": str(plan.threads)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as run:
        assert run.stdout is not None
        run.stdout.readline()  # imports are over: its time begins
        try:
            said, _ = run.communicate(timeout=plan.limit)
        except subprocess.TimeoutExpired:
            run.kill()
            return {"seconds": plan.limit, "status": "nothing in time"}
    if run.returncode != 0:
        return {"seconds": plan.limit, "status": f"nothing, exit {run.returncode}"}
    return json.loads(said)


def worth(answer: dict[str, Any], dual: float) -> tuple[str, str, str, str, str]:
    """Its claim, the least eigenvalue of its scaled matrix, whether that is >= 0, the bound after repair, how high."""
    if "bound" not in answer:
        return ("",) * 5
    least, repaired = answer["least_eigenvalue"], answer["repaired"]
    over = f"{repaired / dual - 1:.1e}" if dual > 0.0 else "-"
    # 1e-13 is what rounding does to the eigenvalues of a matrix of size one.
    feasible = "yes" if least >= -1e-13 else "[red]no[/]"
    return f"{answer['bound']:.6g}", f"{least:.1e}", feasible, f"{repaired:.6g}", over


def eclipse() -> Callable[[list[torch.Tensor]], float] | None:
    """The closed form of `eclipse-nn`, if it is there."""
    try:
        function = import_module("eclipse_nn").ECLipsE_Fast
    except ImportError:
        return None
    return lambda weights: float(function(weights, [0.0] * (len(weights) - 1), [1.0] * (len(weights) - 1)))


def plain_chains(plan: Plan) -> Iterator[tuple[str, list[np.ndarray]]]:
    """The random nets, and those of others that are chains of ReLU."""
    for name in RANDOM:
        yield name, gaussian(*map(int, name.split("x")))
    for net in networks():
        if plan.wants(net.name) and len(net.shape) == 1 and not net.name.startswith("w1bench"):
            model = net.build()
            kinds = [type(layer) for layer in model] if isinstance(model, nn.Sequential) else []
            if len(kinds) > 1 and kinds[::2] == [nn.Linear] * len(kinds[::2]) and set(kinds[1::2]) == {nn.ReLU}:
                yield net.name, [layer.weight.detach().double().numpy() for layer in model[::2]]  # type: ignore[union-attr]


def closed_forms(plan: Plan) -> None:
    function = eclipse()
    table = Table(
        *("net", "eclipse-nn s", "Recursion s", "of eclipse-nn's", "goal", "eclipse-nn", "Recursion", "LipSDP"),
        *("tighter by", "LipSDP s"),
        title="closed forms, and the semidefinite bound over eclipse-nn's",
    )
    for name, weights in plain_chains(plan):
        if not plan.wants(name):
            continue
        graph = graph_of(weights)
        form = normal_form(graph)
        mine, seconds = plan.timed(lambda form=form: Recursion()(form))
        best = certified(plan, graph, Auto(gap=1e-4, seconds=plan.limit))
        theirs = taken = None
        if function is not None:
            tensors = [torch.from_numpy(W) for W in weights]
            theirs, taken = plan.timed(lambda tensors=tensors: function(tensors))
        table.add_row(
            *(name, "not installed" if taken is None else f"{taken:.2g}", f"{seconds:.2g}"),
            *(("", "") if taken is None else (f"{seconds / taken:.2f}", judged("<= 3", seconds <= 3.0 * taken))),
            *("" if theirs is None else f"{theirs:.6g}", f"{mine.rho**0.5:.6g}", f"{best.bound:.6g}"),
            *("" if theirs is None else f"{theirs / best.bound:.4g}x", f"{best.seconds:.2g}"),
        )
    show(table, plan)


def mistakes(plan: Plan) -> None:
    function = None if eclipse() is None else import_module("eclipse_nn").LipConstEstimator
    table = Table("model", "exact", "reached", "eclipse-nn", "lipcert", title="what an estimator of linear layers says")
    for name, case in MODELS.items():
        if not plan.wants(name):
            continue
        said = "not installed"
        if function is not None:
            try:
                value = float(function(model=case.build()).estimate("ECLipsE_Fast"))
                said = f"[red]{value:.6g}[/]" if value < case.exact * (1 - 1e-9) else f"{value:.6g}"
            except (AttributeError, RuntimeError) as error:
                said = f"{type(error).__name__}"
        reached = witness(case.build(), case.shape).ratio
        found = LipSDP()(trace(case.build(), case.shape))
        table.add_row(name, f"{case.exact:.6g}", f"{reached:.6g}", said, f"{found.bound:.6g}")
    show(table, plan)


# ------------------------------------------------------------------------------------------------------------ truths


def truths(plan: Plan) -> None:
    positives(plan)
    anchors(plan)
    never_undercut(plan)


def positives(plan: Plan) -> None:
    """Exact constants at any depth and width."""
    rng = np.random.default_rng(0)
    sizes = [(int(rng.integers(2, 101)), int(rng.integers(2, 81))) for _ in range(plan.count)]
    table = Table("layers x width", "exact", "excess", "s", "goal", title="positive weights, solved to 1e-9")
    worst, total, below, count = 0.0, 0.0, 0, 0
    for layers, width in [(20, 80), (100, 80), *sizes]:
        name = f"positive {layers}x{width}"
        if not plan.wants(name):
            continue
        weights = positive(layers, width)
        exact = norm_of_product(weights)
        found = certified(plan, graph_of(weights), Auto(gap=1e-9, seconds=plan.limit))
        excess = found.bound / exact - 1
        worst, total, count = max(worst, excess), total + found.seconds, count + 1
        below += found.bound < exact * (1 - 1e-15)
        goal = {(20, 80): 2.0, (100, 80): 15.0}.get((layers, width))
        met = "" if goal is None else judged(f"1e-8 in {goal:g} s", excess <= 1e-8 and found.seconds <= goal)
        table.add_row(name, f"{exact:.12g}", f"{excess:.1e}", f"{found.seconds:.3g}", met)
    if count:
        table.add_row(f"all {count}", f"{below} below", f"{worst:.1e}", f"{total:.3g}", judged("1e-8", worst <= 1e-8))
    show(table, plan)


@dataclass(frozen=True)
class Anchor:
    """A published value, by how much ours may be above it relatively, how long it may take, and in how far it binds."""

    name: str
    published: float
    within: float
    seconds: float = math.inf


ANCHORS = (
    Anchor("lipsdp_random_weights", 36.482, 2e-5),
    Anchor("glipsdp_mnist_FC-R18_instance1", 20.957, 0.0, 20.0),
    Anchor("qcmaxmin_weights_l2_2fc_16", 22.594, 5e-5),
    Anchor("qcmaxmin_weights_l2_5fc_32", 224.53, 5e-5),
    Anchor("abcrown_mnist_6_100_nat", 190.07, 5e-5, 4.0),
)


def anchors(plan: Plan) -> None:
    nets = {net.name: net for net in networks()}
    digits = [
        Anchor(name, float(net.published["LipSDP"]), 1e-6, 0.5)
        for name, net in nets.items()
        if "digits_fnn" in name and "LipSDP" in net.published
    ]
    table = Table("net", "published", "bound", "distance", "gap", "s", "goal", title="published optima")
    for anchor in (*ANCHORS, *digits):
        if not plan.wants(anchor.name):
            continue
        if anchor.name not in nets:
            table.add_row(anchor.name, f"{anchor.published:.9g}", f"not in {FOLDER.name}")
            continue
        net = nets[anchor.name]
        found = certified(plan, trace(net.build(), net.shape), Auto(gap=1e-7, seconds=plan.limit))
        distance = found.bound / anchor.published - 1
        goal = f"{anchor.within:.0e}" + (f" in {anchor.seconds:g} s" if anchor.seconds < math.inf else "")
        met = judged(goal, distance <= anchor.within and found.seconds <= anchor.seconds)
        published, bound = f"{anchor.published:.9g}", f"{found.bound:.9g}"
        table.add_row(anchor.name, published, bound, f"{distance:+.1e}", found.gap, f"{found.seconds:.3g}", met)
    if plan.wants("contractive 20x20"):
        found = certified(plan, graph_of(contractive(20, 20)), Auto(gap=1e-6, seconds=plan.limit))
        met = judged("in [2.055e-4, 4.73e-4]", 2.055e-4 <= found.bound <= 4.73e-4)
        table.add_row("contractive 20x20", "", f"{found.bound:.6g}", "", found.gap, f"{found.seconds:.3g}", met)
    show(table, plan)


def never_undercut(plan: Plan) -> None:
    table = Table("net", "exact", "bound", "excess", "s", "goal", title="published exact constants")
    for net in networks():
        if net.exact is not None and plan.wants(net.name):
            found = certified(plan, trace(net.build(), net.shape), Auto(seconds=plan.limit))
            # Published to the digits of a double; the oracle's own rounding is not known better than 1e-12.
            met = judged("not below", found.bound >= net.exact * (1 - 1e-12))
            excess = f"{found.bound / net.exact - 1:.1e}"
            table.add_row(net.name, f"{net.exact:.9g}", f"{found.bound:.9g}", excess, f"{found.seconds:.2g}", met)
    show(table, plan)


# -------------------------------------------------------------------------------------------------------------- deep


def deep(plan: Plan) -> None:
    table = Table("net", "closed form", "bound", "dual", "gap", "s", "goal", title="deep chains")
    if plan.wants("transposed L65_W32"):
        nets = [net for net in networks() if net.name == "glipsdp_mnist_mlp_L65_W32"]
        if nets:
            name = "transposed L65_W32 (published: 2.44e-4, a solver's tolerance)"
            row(plan, table, name, graph_of(transposed(nets[0]), lambda: nn.LeakyReLU(0.01)), 1e-4, None)
        else:
            table.add_row("transposed L65_W32", f"not in {FOLDER.name}")
    if plan.wants("50x40"):
        row(plan, table, "50x40 (optimum 801,241 to 801,252)", graph_of(gaussian(50, 40)), 1e-4, (1e-4, 60.0))
    show(table, plan)


def transposed(net: Net) -> list[np.ndarray]:
    """The chain that the study certified: its square matrices, each transposed, first to last."""
    model = net.build()
    assert isinstance(model, nn.Sequential)
    weights = [layer.weight.detach().double().numpy() for layer in model if isinstance(layer, nn.Linear)]
    return [W.T.copy() for W in weights[1:-1]]


def row(plan: Plan, table: Table, name: str, graph: Graph, gap: float, goal: tuple[float, float] | None) -> Found:
    """Certify, and judge by a largest gap and a longest time."""
    closed = Recursion()(normal_form(graph)).rho ** 0.5
    found = certified(plan, graph, Auto(gap=gap, seconds=plan.limit))
    met = ""
    if goal is not None:
        within, seconds = goal
        closed_gap = found.dual > 0.0 and found.bound / found.dual - 1 <= within
        stated = f"gap {within:g} in {seconds:g} s" if within < math.inf else f"{seconds:g} s"
        met = judged(stated, (closed_gap or within == math.inf) and found.seconds <= seconds)
    dual = f"{found.dual:.9g}" if found.dual > 0.0 else "-"
    table.add_row(name, f"{closed:.6g}", f"{found.bound:.9g}", dual, found.gap, f"{found.seconds:.3g}", met)
    return found


# ------------------------------------------------------------------------------------------------------------- scale


def scale(plan: Plan) -> None:
    table = Table("net", "closed form", "bound", "dual", "gap", "s", "goal", title="size")
    mnist = [784, 1000, 1000, 1000, 10]
    for name, dims, goal in (
        ("10x100", [10, *[100] * 10, 5], (math.inf, 6.0)),
        ("20x100", [10, *[100] * 20, 5], (math.inf, 60.0)),
        ("784-1000-1000-1000-10", mnist, (1e-2, 300.0)),
    ):
        if plan.wants(name):
            row(plan, table, name, graph_of(gaussian_dims(dims)), 1e-4, goal)
    if plan.wants("784-500x20-10"):
        graph = graph_of(gaussian_dims([784, *[500] * 20, 10]))
        closed = Recursion()(normal_form(graph)).rho ** 0.5
        found = certified(plan, graph, Auto(gap=1e-2, seconds=2.0 * plan.limit))
        met = closed >= 1.7 * found.bound and found.seconds <= 600.0 and found.dual > 0.0
        goal = judged("1.7x under the closed form in 600 s, a dual", met)
        dual = f"{found.dual:.6g}" if found.dual > 0.0 else "-"
        numbers = (f"{closed:.6g}", f"{found.bound:.6g}", dual, found.gap, f"{found.seconds:.3g}", goal)
        table.add_row("784-500x20-10", *numbers)
    show(table, plan)
    if plan.wants("growth"):
        growth(plan)


DEPTHS = (10, 20, 40, 80, 160)


def growth(plan: Plan) -> None:
    """Seconds against the depth at width 50, in double logarithmic scale."""
    solver = FirstOrder(iterations=30, sharpness=(10.0,), tolerance=0.0)
    measured: dict[str, list[float]] = {"closed form": [], "FirstOrder, 30 steps": [], "proof": []}
    for depth in DEPTHS:
        form = normal_form(graph_of(gaussian(depth, 50)))
        _, closed = plan.timed(lambda form=form: Recursion()(form))
        solution, steps = plan.timed(lambda form=form: solver(form))
        _, proof = plan.timed(lambda form=form, solution=solution: prove(form, solution.multipliers))
        for times, seconds in zip(
            measured.values(), (closed, steps / max(1, solution.iterations) * 30, proof), strict=True
        ):
            times.append(seconds)
    table = Table("what", *(f"{depth}x50" for depth in DEPTHS), "exponent", "goal", title="seconds against the depth")
    fits = {}
    for name, times in measured.items():
        fits[name] = np.polyfit(np.log(DEPTHS), np.log(times), 1)
        exponent = float(fits[name][0])
        goal = judged("<= 1.2", exponent <= 1.2) if name.startswith("FirstOrder") else ""
        table.add_row(name, *(f"{seconds:.3g}" for seconds in times), f"{exponent:.2f}", goal)
    show(table, plan)
    drawn(measured, fits, plan)


def drawn(measured: dict[str, list[float]], fits: dict[str, np.ndarray], plan: Plan) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for name, times in measured.items():
        (line,) = axes.loglog(DEPTHS, times, "o", label=f"{name}: depth^{fits[name][0]:.2f}")
        axes.loglog(DEPTHS, np.exp(np.polyval(fits[name], np.log(DEPTHS))), "-", color=line.get_color(), linewidth=1)
    axes.set(xlabel="hidden layers of width 50", ylabel="seconds", xticks=DEPTHS, xticklabels=DEPTHS)
    axes.legend(frameon=False)
    plan.plot.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(plan.plot, dpi=150)
    plan.console.print(f"plotted to {plan.plot}")


# -------------------------------------------------------------------------------------------------------------------

PARTS: dict[str, Callable[[Plan], None]] = {"peers": peers, "truths": truths, "deep": deep, "scale": scale}


PACKAGES = ("torch", "numpy", "cvxpy", "clarabel", "scs", "eclipse-nn")


def main(arguments: list[str]) -> int:
    """Run the parts that are named, or all."""
    parser = argparse.ArgumentParser(prog="bench_lipsdp", description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[])
    parser.add_argument("--only", default="", help="regular expression that a row's name must match")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds that a solver may take, ours or a peer")
    parser.add_argument("--repeats", type=int, default=3, help="runs of which the median is taken")
    parser.add_argument("--count", type=int, default=50, help="random sizes of nets with positive weights")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--plot", type=Path, default=Path("out/lipsdp-depth.png"))
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    console = Console(width=180, log_path=False)
    load = os.getloadavg()[0]
    threads = f"{given.threads} thread{'s' if given.threads > 1 else ''}, {os.cpu_count()} cores, load {load:.1f}"
    console.print(f"{versions(*PACKAGES)}; {threads}; seconds of {given.clock}")
    plan = Plan(given.only, given.limit, given.repeats, given.count, given.threads, given.clock, given.plot, console)
    for part in given.parts or PARTS:
        PARTS[part](plan)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
