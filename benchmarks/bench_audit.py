"""Claims of published denoisers, layer by layer, and of Wasserstein critics: proved, refuted, or both numbers.

    python -m benchmarks.bench_audit [--only TEXT] [--seconds S] [--steps K] [--size N] [--folder PATH]

Denoisers: RealSN (Ryu et al., 2019) and an averaged CNN (Goujon et al., 2023) are nonexpansive if every convolution has
norm at most 1, which their training enforces approximately. Each layer is judged at images of N x N pixels; the norm of
a convolution with zeros around it grows with the image, so a refutation stands for every larger one, a proof does not.
Critics: see ``examples/audit.py``. Nothing is printed of what is not in the folder of third-party networks.
"""

from __future__ import annotations

import argparse
import copy
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.third_party import CRITIC_CLAIMS, FOLDER, Net, critics, networks
from benchmarks.versions import versions
from lipcert.certifiers import Product
from lipcert.enclosure import stretch
from lipcert.falsify import Effort, Proved, Refuted, Unknown, lipcheck
from lipcert.norms import L2
from lipcert.report import format_down, format_up
from lipcert.trace import trace

Cells = tuple[str, str, str]
"""The word, the lower number and the upper number."""

DENOISERS = ("realsn", "averaged_cnn")


def layers(folder: Path, size: int) -> Iterator[tuple[str, nn.Module, tuple[int, ...]]]:
    """The linear parts of the denoisers' convolutions."""
    for net in networks(folder):
        if net.name.startswith(DENOISERS):
            convolutions = [layer for layer in net.build().modules() if isinstance(layer, nn.Conv2d)]
            for number, layer in enumerate(convolutions):
                layer.bias = None
                yield f"{net.name}, convolution {number}", layer, (layer.in_channels, size, size)


def steepest(layer: nn.Module, shape: tuple[int, ...], steps: int) -> Tensor:
    """Nearly the image that a linear layer stretches most, on a grid that exact arithmetic is quick on."""
    single = copy.deepcopy(layer).float()
    v = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    for _ in range(steps):
        v.requires_grad_(True)
        (v,) = torch.autograd.grad(single(v).square().sum(), v)
        v = (v / v.norm()).detach()
    return (v[0] / v.abs().max() * 2**14).round().double()


def row(name: str, judge: Callable[[], Cells], claim: float) -> str:
    """One line of a table."""
    start = time.perf_counter()
    cells = (name, repr(claim), *judge(), f"{time.perf_counter() - start:.1f} s")
    return "| " + " | ".join(cells) + " |"


def judge_layer(layer: nn.Module, shape: tuple[int, ...], steps: int) -> Cells:
    """Zero and the image that power iteration finds are a pair, judged without rounding; a proof only without one."""
    graph, v = trace(layer, shape), steepest(layer, shape, steps)
    seen = stretch(graph, v, torch.zeros_like(v), L2)
    below = format_down(seen.ratio, 7)
    if seen.exceeds(1.0):
        return "REFUTED", below, ""
    bound = Product()(graph, L2).bound
    return "PROVED" if bound <= 1.0 else "UNKNOWN", below, format_up(bound, 7)


def judge_critic(net: Net, claim: float, seconds: float) -> Cells:
    """Layer by layer, then by a search, then by a semidefinite bound."""
    match lipcheck(net.build(), net.shape, claim, effort=Effort(seconds)):
        case Proved(certificate=certificate):
            return "PROVED", "", format_up(certificate.bound, 7)
        case Refuted(steepest=ratio):
            return "REFUTED", format_down(ratio, 7), ""
        case Unknown(witness=pair, upper=upper):
            return "UNKNOWN", f"{format_down(pair.ratio, 7)} (float64)", format_up(upper, 7)


def main() -> None:
    """Print both tables as markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows whose name has this text")
    parser.add_argument("--seconds", type=float, default=5.0, help="of search for a pair of a critic")
    parser.add_argument("--steps", type=int, default=200, help="of power iteration for a layer")
    parser.add_argument("--size", type=int, default=48, help="of the images that convolutions are judged at")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of third-party networks")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(versions("torch", "numpy"))
    heading = "| {} | claim | verdict | at least | at most | time |\n|---|---|---|---|---|---|"
    print("\n" + heading.format(f"layer at {asked.size} x {asked.size}"), flush=True)
    for name, layer, shape in layers(asked.folder, asked.size):
        if asked.only in name:
            print(row(name, partial(judge_layer, layer, shape, asked.steps), 1.0), flush=True)
    print("\n" + heading.format("critic"), flush=True)
    for net in critics(asked.folder / "gan" / "w1bench" / "critics_dim2"):
        claim = CRITIC_CLAIMS[net.name.rpartition("_")[2]]
        if asked.only in net.name and claim is not None:
            judge = partial(judge_critic, net, claim, asked.seconds)
            print(row(net.name, judge, claim), flush=True)


if __name__ == "__main__":
    main()
