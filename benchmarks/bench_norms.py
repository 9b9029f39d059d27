"""Rigorous norms beside numpy's singular values: time and overhead, with one thread count for both.

Run ``python -m benchmarks.bench_norms`` (minutes), or name parts of it: ``dense``, ``adversarial``, ``convolutions``.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from typing import TypeVar

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from lipcert.kernel.dense import norm2_upper
from lipcert.linear import Conv
from lipcert.opnorm import opnorm
from tests.adversarial import FAMILIES, squared_norm_below

T = TypeVar("T")
MATRICES_PER_FAMILY = 100_000 // len(FAMILIES)
VGG16 = [(3, 64, 224), (64, 64, 224), (64, 128, 112), (128, 128, 112), (128, 256, 56), *[(256, 256, 56)] * 2]
VGG16 += [(256, 512, 28), *[(512, 512, 28)] * 2, *[(512, 512, 14)] * 3]


def timed(function: Callable[[], T]) -> tuple[T, float]:
    """A result and the seconds it took."""
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


def dense(console: Console) -> None:
    """The spectral norm of matrices, against ``numpy.linalg.norm(A, 2)``: median of three runs of each."""
    table = Table("matrix", "n", "numpy s", "rigorous s", "ratio", "overhead", title="l2 norms of square matrices")
    rng = np.random.default_rng(0)
    for n in (64, 256, 512, 1024, 2048):
        Q = np.linalg.qr(rng.standard_normal((n, n)))[0]
        kinds = {
            "Gaussian": rng.standard_normal((n, n)),
            "orthogonal, float32": Q.astype(np.float32).astype(np.float64),
            "rank one and noise": np.outer(Q[0], Q[1]) + 1e-3 * rng.standard_normal((n, n)),
        }
        for name, A in kinds.items():
            plain = [timed(lambda A=A: float(np.linalg.norm(A, 2))) for _ in range(3)]
            ours = [timed(lambda A=A: norm2_upper(A)) for _ in range(3)]
            before, after = (sorted(seconds for _, seconds in runs)[1] for runs in (plain, ours))
            overhead = ours[0][0] / plain[0][0] - 1.0
            table.add_row(name, str(n), f"{before:.4f}", f"{after:.4f}", f"{after / before:.2f}", f"{overhead:.1e}")
    console.print(table)


def adversarial(console: Console) -> None:
    """Bounds against exact lower bounds on 100,000 nasty matrices; numpy's own norm beside them."""
    table = Table("family", "matrices", "too low", "numpy too low", "largest overhead", title="nasty matrices")
    totals = [0, 0, 0]
    for index, (name, draw) in enumerate(FAMILIES.items()):
        rng = np.random.default_rng([2, index])
        low = low_numpy = 0
        worst = 0.0
        for _ in range(MATRICES_PER_FAMILY):
            A = draw(rng)
            below, bound = squared_norm_below(A), norm2_upper(A)
            with np.errstate(all="ignore"):
                plain = float(np.linalg.norm(A, 2))
            low += math.isfinite(bound) and Fraction(bound) ** 2 < below
            low_numpy += not math.isnan(plain) and math.isfinite(plain) and Fraction(plain) ** 2 < below
            if math.isfinite(bound) and bound > 1e-300 and below:
                worst = max(worst, float(Fraction(bound) ** 2 / below - 1) / 2)
        totals = [old + new for old, new in zip(totals, (MATRICES_PER_FAMILY, low, low_numpy), strict=True)]
        table.add_row(name, str(MATRICES_PER_FAMILY), str(low), str(low_numpy), f"{worst:.1e}")
    table.add_row("all", *map(str, totals), "", style="bold")
    console.print(table)


def convolutions(console: Console) -> None:
    """The thirteen convolutions of VGG-16 at 224 x 224, random weights, each by itself."""
    table = Table("in", "out", "size", "bound", "method", "s", title="l2 norms of VGG-16's convolutions")
    generator = torch.Generator().manual_seed(0)
    total = 0.0
    for into, out, size in VGG16:
        weight = torch.randn(out, into, 3, 3, generator=generator) * math.sqrt(2.0 / (9 * out))
        shape = (into, size, size)
        conv = Conv(weight.double(), shape, (size, size), (1, 1), ((1, 1), (1, 1)), (1, 1), 1, "zeros")
        bound, seconds = timed(lambda conv=conv: opnorm(conv))
        total += seconds
        table.add_row(str(into), str(out), str(size), f"{bound.value:.4f}", bound.method, f"{seconds:.1f}")
    table.add_row("", "", "", "", "all", f"{total:.1f}", style="bold")
    console.print(table)


PARTS: dict[str, Callable[[Console], None]] = {
    "dense": dense,
    "adversarial": adversarial,
    "convolutions": convolutions,
}


def main() -> None:
    """Run the parts named on the command line, or all."""
    console = Console()
    threads = os.environ.get("OMP_NUM_THREADS", "as many as BLAS likes")
    console.print(f"BLAS threads: {threads}; {os.cpu_count()} cores; numpy {np.__version__}")
    for name in sys.argv[1:] or PARTS:
        PARTS[name](console)


if __name__ == "__main__":
    main()
