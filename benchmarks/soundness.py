"""Try to make a bound too low: many cases per kind of trial, each judged without rounding, and one counter.

    python -m benchmarks.soundness                              # all of them: a quarter of an hour
    python -m benchmarks.soundness t1 t3 --cases 5000 --seed 7

| row | what | judge |
|---|---|---|
| t1 | spectral norms of matrices that break floating-point norms | Rayleigh quotients in integers |
| t2 | defects of matrices at the edge of being semidefinite | elimination in integers |
| t3 | kernels and certifiers whose oracles lie | both |
| t5 | mutated certificates, networks and files given to the checker | Jacobians and digests |

Case i of row r is drawn from the seed ``(seed, r, i)``, except in t5, and can be drawn again alone: `violated`.
A violation is a bound below the truth, an accepted false claim, or an exception that a refusal is not.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import torch

from benchmarks.fuzz_checker import fuzz
from lipcert.kernel import blockwise, dense, psd, single
from tests import semidefinite as edge
from tests.adversarial import FAMILIES, larger, squared_norm_below
from tests.oracles import TRIALS, TRUSTED, drawn_liar

Generator = np.random.Generator
LARGEST = 1.7976931348623157e308
EVERY_LARGE = 100  # one case in so many of t1 is a matrix of up to 200 rows
SHOWN = 10


@dataclass
class Row:
    """What came of one kind of trial.

    Attributes:
        name: ``t1`` to ``t5``.
        cases: How many were judged.
        seconds: They took.
        violations: One line each.
        overhead: Under a word for a kind of case: how far above the truth a bound was at most, relatively.
        outcomes: Under a word for what came back: how often.
    """

    name: str
    cases: int = 0
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)
    overhead: dict[str, float] = field(default_factory=dict)
    outcomes: dict[str, int] = field(default_factory=dict)

    def note(self, kind: str, overhead: float) -> None:
        """Keep the largest overhead of a kind."""
        self.overhead[kind] = max(self.overhead.get(kind, 0.0), overhead)

    def count(self, outcome: str) -> None:
        """Add one to an outcome."""
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1

    def __str__(self) -> str:
        """Cases, rate, violations, worst overhead, outcomes."""
        rate = self.cases / max(self.seconds, 1e-9)
        parts = [f"{self.name}: {self.cases:,} cases in {self.seconds:.0f} s ({rate:,.0f}/s)"]
        parts.append(f"{len(self.violations)} violations")
        if self.overhead:
            worst = ", ".join(f"{value:.1e} ({kind})" for kind, value in self.overhead.items())
            parts.append(f"worst overhead {worst}")
        parts += [f"{number:,} {outcome}" for outcome, number in sorted(self.outcomes.items())]
        return "; ".join(parts)


def generator(row: str, seed: int, case: int) -> Generator:
    """What a case is drawn from."""
    return np.random.default_rng([seed, int(row[1:]), case])


# ------------------------------------------------------------------------------------------------ t1: norms


def norm_violated(case: int, rng: Generator, row: Row) -> str:
    """Bound the norm of one matrix, in double and every fourth time in single precision."""
    large = case % EVERY_LARGE == EVERY_LARGE - 1
    family = "larger" if large else list(FAMILIES)[case % len(FAMILIES)]
    A = larger(rng) if large else FAMILIES[family](rng)
    below = squared_norm_below(A)
    kind = f"n <= {200 if large else 60}"
    found = {kind: dense.norm2_upper(A)}
    if rng.random() < 0.25:
        guess = None if rng.random() < 0.5 else found[kind] * rng.choice([1.0, 0.999, 0.9, 1.1])
        found["single precision"] = single.norm2_upper(A, guess, TRUSTED)
    for which, bound in found.items():
        if bound == math.inf and which == "single precision":
            row.count("given up in single precision")
            continue
        row.note(which, overhead(bound, below))
        if not (bound == math.inf or Fraction(bound) ** 2 >= below):
            return f"{family}, {which}: {bound!r} squared is below {float(below)!r}, matrix {A.tolist()}"
    return ""


def overhead(bound: float, below: Fraction) -> float:
    """``bound / norm - 1`` given the squared norm, less one subnormal digit; 0 for infinity where that is right."""
    if bound == math.inf:
        return 0.0 if below * (1 + Fraction(1, 10**12)) > Fraction(LARGEST) ** 2 else math.inf
    if bound <= 5e-324:
        return 0.0
    trimmed = Fraction(bound) - Fraction(5e-324)
    return max(0.0, float(trimmed**2 / below - 1) / 2) if below else math.inf


# ------------------------------------------------------------------------------------------------ t2: semidefinite


def _real(H: np.ndarray, _: Generator) -> float:
    return float(psd.psd_defect((H[None],))[0])


def _complex(H: np.ndarray, rng: Generator) -> float:
    return float(psd.psd_defect(tuple(part[None] for part in edge.turned(rng, H)))[0])


def _blockwise(H: np.ndarray, rng: Generator) -> float:
    return blockwise.blockwise_defect(*edge.split(rng, H))


def _eigenvalue(H: np.ndarray, _: Generator) -> float:
    return psd.top_eigenvalue_upper((-H[None],)).bound


def _single(H: np.ndarray, _: Generator) -> float:
    return float(single.psd_defect((H[None].astype(np.float32),), TRUSTED)[0])


DEFECTS: dict[str, Callable[[np.ndarray, Generator], float]] = {
    "real": _real,
    "complex": _complex,
    "blockwise": _blockwise,
    "eigenvalue": _eigenvalue,
    "single precision": _single,
}
"""Numbers rho with ``H + rho I >= 0``, by every kernel that gives one."""


def defect_violated(case: int, rng: Generator, row: Row) -> str:
    """Ask for the defect of one matrix, and whether adding it is enough."""
    kind = list(DEFECTS)[case % len(DEFECTS)]
    family = list(edge.FAMILIES)[case // len(DEFECTS) % len(edge.FAMILIES)]
    H = edge.at_the_edge(rng, family, np.float32 if kind == "single precision" else np.float64)
    rho = DEFECTS[kind](H, rng)
    if rho == math.inf:
        row.count("without a proof")
        return ""
    size = float(np.max(np.abs(H)))
    # Where numbers are tiny, what squares lose to underflow is most of the defect.
    if kind != "eigenvalue" and size > (1e-12 if kind == "single precision" else 1e-100):
        row.note(kind, rho / size)
    if edge.semidefinite(edge.lifted(H, rho)):
        return ""
    return f"{family}, {kind}: {rho!r} does not lift {H.tolist()}"


# ------------------------------------------------------------------------------------------------ t3: oracles


def oracle_violated(case: int, rng: Generator, row: Row) -> str:
    """Ask one kernel with one liar."""
    kernel = list(TRIALS)[case % len(TRIALS)]
    liar = drawn_liar(rng)
    return "" if TRIALS[kernel](rng, liar) else f"{kernel} with {liar}"


# ------------------------------------------------------------------------------------------------ rows

VIOLATED: dict[str, Callable[[int, Generator, Row], str]] = {
    "t1": norm_violated,
    "t2": defect_violated,
    "t3": oracle_violated,
}


def violated(name: str, case: int, seed: int, row: Row | None = None) -> str:
    """What is wrong with one case; empty if nothing is. An exception is wrong too."""
    row = Row(name) if row is None else row
    try:
        with np.errstate(all="ignore"):
            return VIOLATED[name](case, generator(name, seed, case), row)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def run(name: str, cases: int, seed: int) -> Row:
    """Run one row."""
    row, start = Row(name, cases), time.perf_counter()
    if name == "t5":
        counts = fuzz(cases, seed)
        row.violations, row.outcomes = counts.false_accepts + counts.escapes, dict(counts.verdicts)
    else:
        found = ((case, violated(name, case, seed, row)) for case in range(cases))
        row.violations = [f"case {case}, seed {seed}: {line}" for case, line in found if line]
    row.seconds = time.perf_counter() - start
    return row


PER_CHANGE = {"t1": 100_000, "t2": 100_000, "t3": 2_000, "t5": 100_000}
"""How many cases a change must pass."""


def counter(counts: Iterable[tuple[str, int, int]]) -> str:
    """The line for rows, cases and violations.

    Example:
        >>> counter([("t1", 1000, 0), ("t3", 200, 1), ("t1", 500, 0)])
        'soundness counter: 1,700 cases, 1 violations (t1 1,500, t3 200)'
    """
    totals: dict[str, int] = {}
    violations = 0
    for name, cases, bad in counts:
        totals[name] = totals.get(name, 0) + cases
        violations += bad
    each = ", ".join(f"{name} {cases:,}" for name, cases in sorted(totals.items()))
    return f"soundness counter: {sum(totals.values()):,} cases, {violations} violations ({each})"


def main(arguments: list[str]) -> int:
    """Print every row and the counter; exit status 1 if there was a violation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="row", help="t1, t2, t3, t5; all if none is named")
    parser.add_argument("--cases", type=int, help="of each row; what a change must pass if not given")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if unknown := set(options.rows) - set(PER_CHANGE):
        parser.error(f"no such row: {', '.join(sorted(unknown))}; there are {', '.join(PER_CHANGE)}")
    torch.set_num_threads(1)
    found = []
    for name in options.rows or PER_CHANGE:
        row = run(name, PER_CHANGE[name] if options.cases is None else options.cases, options.seed)
        print(row, flush=True)
        for line in row.violations[:SHOWN]:
            print(" ", line[:2000])
        found.append(row)
    print(counter((row.name, row.cases, len(row.violations)) for row in found))
    return 1 if any(row.violations for row in found) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
