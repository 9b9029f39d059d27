"""Bounds on l2 balls around data, beside the global bound and ECLipsE-Gen-Local, on networks trained by others.

    python -m benchmarks.bench_regions [--folder ../shared/nets] [--data ../shared/data] [--only NAME] [--seconds 10]

Per network and radius: the largest Jacobian norm found in the ball (a lower bound), the bound on the ball, its
seconds, the bound everywhere, and what `eclipse-nn`, if it is installed, gives by its three algorithms.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.third_party import FOLDER, Net, networks
from lipcert import trace
from lipcert.certifiers import Auto, certify_on
from lipcert.domain import L2Ball
from lipcert.graph import Graph
from lipcert.report import format_down, format_up

RADII = (0.01, 0.1, 1.0)
DATA = FOLDER.parent / "data"


def centre(shape: tuple[int, ...], data: Path) -> tuple[Tensor, str]:
    """A data point of this size if there is one, else a fixed random point."""
    if shape == (784,) and (data / "mnist.npz").exists():
        stored = np.load(data / "mnist.npz")
        images = stored["x_test"] if "x_test" in stored.files else stored[stored.files[0]]
        return torch.from_numpy(images[0].reshape(-1) / 255.0), "MNIST"
    if shape == (64,):
        from sklearn.datasets import load_digits

        X = load_digits(return_X_y=True)[0]
        spread = X.std(0)
        return torch.from_numpy((X[0] - X.mean(0)) / np.where(spread > 0, spread, 1.0)), "digits"
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64), "random"


def steepest(graph: Graph, ball: L2Ball, count: int = 200) -> float:
    """The largest Jacobian norm at points sampled from the ball."""
    f = torch.func.jacrev(lambda z: graph.replay(z[None])[0])
    x = ball.sample(count, graph.input.shape, torch.Generator().manual_seed(0))
    return max(float(torch.linalg.matrix_norm(f(row), 2)) for row in x)


def peer(model: nn.Module, at: Tensor, radius: float, activation: str) -> dict[str, float]:
    """What eclipse-nn gives, by its closed form only where networks are large; nothing where it is missing or fails."""
    try:
        from eclipse_nn.LipConstEstimator import LipConstEstimator
    except ImportError:
        return {}
    found = {}
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    weights = [layer.weight.detach().double() for layer in layers]
    biases = [layer.bias.detach().double().reshape(-1, 1) for layer in layers]
    # The two that solve semidefinite programmes take minutes to hours for wide inputs or layers.
    small = max(max(weight.shape) for weight in weights) <= 64
    for algorithm in ("CF", "Fast", "Acc") if small and len(weights) <= 5 else ("CF",):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Exception):
            estimator = LipConstEstimator(weights=weights, biases=biases)
            value = estimator.estimate_gen_local(at.reshape(-1, 1), radius, actv=activation, algo=algorithm)[0]
            found[algorithm] = float(value)
    return found


def rows(net: Net, seconds: float, data: Path) -> list[tuple[str, ...]]:
    """The rows of one network."""
    model = net.build()
    kinds = {type(layer) for layer in model.modules()} - {nn.Sequential, nn.Linear}
    activation = {nn.ReLU: "relu", nn.LeakyReLU: "leakyrelu"}.get(next(iter(kinds)) if len(kinds) == 1 else object, "")
    graph = trace(model, net.shape)
    everywhere = Auto(seconds)(graph).bound
    at, what = centre(net.shape, data)
    found = []
    for radius in RADII:
        ball = L2Ball(at, radius)
        start = time.process_time()
        bound = certify_on(graph, ball, by=Auto(seconds)).bound
        taken = time.process_time() - start
        theirs = peer(model, at, radius, activation) if activation else {}
        best = min(theirs.values(), default=math.nan)
        found.append(
            (
                f"{net.name} ({what})",
                f"{radius:g}",
                format_down(steepest(graph, ball), 4),
                format_up(bound, 4),
                f"{taken:.1f}",
                format_up(everywhere, 4),
                "-" if math.isnan(best) else f"{best:.4f} ({min(theirs, key=theirs.__getitem__)})",
                "-" if math.isnan(best) else f"{best / bound:.2f}",
            )
        )
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--only", default="")
    parser.add_argument("--seconds", type=float, default=10.0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    table = Table(title="Lipschitz constants (l2) on balls around data")
    for heading in ("network", "eps", "Jacobian >=", "bound", "CPU s", "global", "eclipse-nn GenLocal", "ratio"):
        table.add_column(heading)
    console = Console(width=160)
    for net in networks(given.folder):
        if len(net.shape) == 1 and given.only in net.name:
            for row in rows(net, given.seconds, given.data):
                table.add_row(*row)
                console.print(*row, sep="  ")
    console.print(table)


if __name__ == "__main__":
    main()
