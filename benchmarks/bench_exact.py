"""Exact constants: brackets, nodes and time beside the semidefinite bound and what others published.

    python -m benchmarks.bench_exact [--seconds S] [--tolerance T] [--folder NETS] [--only TEXT]

Third-party networks come from a folder beside the checkout, if it is there; random ones show where the search runs out.
Every row times both methods in this process: the last column but one is how many times the search took as long.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import lipcert
from benchmarks.third_party import FOLDER, Net, networks
from lipcert.branching.hinges import hinged
from lipcert.certifiers import LipSDP
from lipcert.domain import Box, Domain, WholeSpace
from lipcert.errors import LipcertError

SMALL = ("exlipbab_", "digits_fnn", "lipsdp_random", "eclipse_lyr2n80")
RANDOM = ((4, 8, 8, 1), (4, 16, 16, 1), (8, 16, 16, 1), (8, 24, 24, 1), (16, 32, 32, 1), (4, 8, 8, 8, 8, 1))


def gaussian(sizes: tuple[int, ...]) -> nn.Module:
    """A ReLU network with normal weights of He's variance and normal biases."""
    g = torch.Generator().manual_seed(0)
    layers: list[nn.Module] = []
    for into, out in itertools.pairwise(sizes):
        layer = nn.Linear(into, out)
        layer.weight.data = torch.randn(out, into, generator=g) * (2.0 / into) ** 0.5
        layer.bias.data = torch.randn(out, generator=g)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def cases(folder: Path) -> Iterator[tuple[Net, Domain]]:
    """What is measured."""
    for net in networks(folder):
        if any(text in net.name for text in SMALL) and "cnn" not in net.name:
            yield net, WholeSpace()
            if "__ReLU" in net.name:
                yield net, Box(-0.1, 0.1)
                yield net, Box(-1.0, 1.0)
    for sizes in RANDOM:
        yield (
            Net("x".join(map(str, sizes)) + " random ReLU", lambda sizes=sizes: gaussian(sizes), sizes[:1]),
            WholeSpace(),
        )


def measure(net: Net, domain: Domain, tolerance: float, seconds: float) -> tuple[str, ...]:
    """One row."""
    graph = lipcert.trace(net.build(), net.shape)
    start = time.perf_counter()
    bound = LipSDP()(graph).bound
    solved = time.perf_counter() - start
    start = time.perf_counter()
    bracket = lipcert.exact_constant(graph, domain=domain, tolerance=tolerance, seconds=seconds)
    took = time.perf_counter() - start
    published = net.published.get("final_upper") if isinstance(domain, WholeSpace) else None
    verdict = "closed" if bracket.closed else "open"
    if published is not None:
        inside = bracket.lower.ratio * (1 - 1e-9) <= float(published) <= bracket.upper * (1 + 1e-9)
        verdict += "" if inside else ", publication REFUTED"
    return (
        net.name,
        "" if isinstance(domain, WholeSpace) else str(domain),
        str(hinged(graph).count),
        f"{bracket.lower.ratio:.8g}",
        f"{bracket.upper:.8g}",
        "" if published is None else f"{float(published):.8g}",
        f"{bound:.6g}",
        str(bracket.nodes),
        f"{took:.1f}",
        f"{took / solved:.1f}",
        verdict,
    )


def main() -> int:
    """Print the table; exit status 1 if a bracket is above the semidefinite bound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--tolerance", type=float, default=0.01)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    torch.set_num_threads(1)
    lipcert.exact_constant(nn.ReLU(), (1,))  # imports
    columns = ("network", "domain", "kinks", "at least", "at most", "published", "LipSDP", "nodes", "s", "x LipSDP", "")
    table = Table(*columns, title=f"tolerance {given.tolerance:g}, at most {given.seconds:g} s each, one thread")
    wrong = 0
    for net, domain in cases(given.folder):
        if given.only not in net.name:
            continue
        try:
            row = measure(net, domain, given.tolerance, given.seconds)
        except LipcertError as refusal:
            table.add_row(net.name, "refused", str(refusal).splitlines()[0])
            continue
        wrong += float(row[3]) > float(row[6]) * (1 + 1e-6)
        table.add_row(*row)
    Console(width=200).print(table)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
