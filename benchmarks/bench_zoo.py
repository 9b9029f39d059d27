"""The bug zoo: how fast false claims fall, and whether a true one ever does.

    python -m benchmarks.bench_zoo [--seconds S] [--seed N] [--only TEXT]

Every function has a known constant. Claims of 50, 90 and 99 percent of it are false, the constant itself is true. A
refutation counts when exact arithmetic confirms the pair; times are of the search, without making the pair readable.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter

import torch

from benchmarks.versions import versions
from lipcert.domain import WholeSpace
from lipcert.falsify.check import claim_of, confirmation, problem_of
from lipcert.falsify.search import Effort, Found, search
from lipcert.freeze import freeze
from lipcert.trace import trace
from tests.zoo import Animal, zoo

SHARES = (0.5, 0.9, 0.99)


def searched(animal: Animal, bound: float, seconds: float, seed: int) -> tuple[Found, float]:
    """The outcome of a search, and the seconds it took."""
    model = animal.model().eval()
    claim, seeds = claim_of(animal.shape, bound, animal.norms, WholeSpace())
    graph = trace(model, animal.shape)
    confirm = confirmation(graph, animal.norms, [])
    problem = problem_of(freeze(model), claim, seeds)
    began = time.perf_counter()
    found = search(problem, bound, Effort(seconds), torch.Generator().manual_seed(seed), confirm)
    return found, time.perf_counter() - began


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="for every claim")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(versions("torch", "numpy"))
    animals = {name: animal for name, animal in zoo().items() if asked.only in name}
    searched(zoo()["gelu"], 0.1, 2.0, 0)  # loads code
    for share in SHARES:
        times, engines, missed = [], Counter[str](), []
        for name, animal in animals.items():
            found, took = searched(animal, animal.constant * share, asked.seconds, asked.seed)
            if found.stretch is None:
                missed.append(f"{name} ({found.ratio / animal.constant:.4f} of its constant)")
            else:
                times.append(took)
                engines[found.engine] += 1
        times.sort()
        middle, late = times[len(times) // 2], times[int(0.95 * len(times))]
        print(
            f"claims of {share:.0%}: {len(times)} of {len(animals)} refuted; median {middle:.3f} s, 95% {late:.3f} s, "
            f"worst {times[-1]:.3f} s; by {dict(engines.most_common())}",
            flush=True,
        )
        for name in missed:
            print(f"  not refuted: {name}", flush=True)
    false = [name for name, animal in animals.items() if searched(animal, animal.constant, asked.seconds, 0)[0].stretch]
    print(f"true claims: {len(animals)}, refuted: {len(false)} {false}")
    raise SystemExit(1 if false else 0)


if __name__ == "__main__":
    main()
