"""How many MNIST test images three constants certify: product of norms, one semidefinite bound, one for each pair.

    python -m benchmarks.bench_robustness [--only TEXT] [--count N] [--eps E] [--epochs K]

Needs MNIST and other people's networks in a folder beside the checkout (see `benchmarks.third_party`); without it, it
says so and ends. Networks with one hidden layer are trained here besides, by Adam on cross-entropy, with and without
weight decay. Images have pixels in [0, 1]: the first layer takes over what was done to them before. Distances are in
pixels, and counts are of images that are decided as labelled with a radius above eps.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.third_party import FOLDER, networks
from benchmarks.versions import versions
from lipcert import Certificate, Margins, margins, trace
from lipcert.certifiers import LipSDP, Product
from lipcert.robustness import certified_accuracy

THIRD_PARTY = {
    # By what its authors scale images before the network; guessed from the accuracy, which no other scaling reaches.
    "lipsdp_mnist_weights": (0.0, 1.0),
    "abcrown_mnist_2_20": (0.0, 1.0),
    "lirpa_mnist_fc_3layer": (0.0, 1.0),
    "eclipse_mnist_lyr3n100": (0.5, 0.5),
    "eclipse_mnist_lyr3n200": (0.5, 0.5),
    "lirpa_spectral_NOR_MLP_B": (0.1307, 0.3081),
    "glipsdp_mnist_mlp_L3_W32": (0.1307, 0.3081),
    "abcrown_mnist_6_100_nat": (0.0, 1.0),
    "glipsdp_mnist_FC-R18_instance1": (0.0, 1.0),
}
"""Names, and the mean and deviation that images are normalised by."""

WIDTHS = (16, 50)
DECAYS = (0.0, 1e-3)


def images(part: str, path: Path) -> tuple[Tensor, Tensor]:
    """Flat images in [0, 1], float32 as the networks get them, and labels."""
    with np.load(path) as stored:
        pixels, labels = stored[f"x_{part}"], stored[f"y_{part}"]
    return torch.from_numpy(pixels).flatten(1).float() / 255, torch.from_numpy(labels).long()


def normalised(model: nn.Module, mean: float, deviation: float) -> nn.Module:
    """The network in float64, of images in [0, 1]: its first layer takes over what was done to them before."""
    model = model.double().requires_grad_(False)
    if (mean, deviation) != (0.0, 1.0):
        first = next(layer for layer in model.modules() if isinstance(layer, nn.Linear))
        first.weight /= deviation
        first.bias -= mean * first.weight.sum(1)
    return model.eval()


def trained(width: int, decay: float, epochs: int, path: Path) -> nn.Module:
    """A network with one hidden layer, trained by Adam on cross-entropy."""
    x, y = images("train", path)
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 10))
    adam = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=decay)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(100):
            loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
            adam.zero_grad()
            loss.backward()
            adam.step()
    return model.requires_grad_(False).eval()


def contenders(folder: Path, epochs: int) -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """Name, and what makes the network."""
    path = folder / "data" / "mnist.npz"
    for width in WIDTHS:
        for decay in DECAYS:
            name = f"784-{width}-10, Adam, weight decay {decay:g}"
            yield name, partial(trained, width, decay, epochs, path)
    found = {net.name: net for net in networks(folder / "nets")}
    for name, scaling in THIRD_PARTY.items():
        if name in found:
            yield name, lambda name=name, scaling=scaling: normalised(found[name].build(), *scaling)


def measured(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> list[str]:
    """Accuracy; how many each constant certifies, of the first hundred and of all; the ratio; seconds for the pairs."""
    graph = trace(model, (784,))
    product, whole = Product()(graph), LipSDP()(graph)
    start = time.perf_counter()
    pairs = margins(graph)
    seconds = time.perf_counter() - start
    counts: list[tuple[int, int]] = []
    correct = 0
    choices: tuple[Certificate | Margins, ...] = (product, whole, margins(graph, Product()), pairs)
    for constants in choices:
        found = [certified_accuracy(graph, constants, x[:n], y[:n], [eps]) for n in (100, len(x))]
        counts.append((found[0].certified[0], found[1].certified[0]))
        correct = found[1].correct
    ratio = counts[-1][1] / counts[0][1] if counts[0][1] else float("inf")
    shown = [f"{few} / {many}" for few, many in counts]
    return [f"{correct / len(x):.1%}", *shown, f"{ratio:.1f}", f"{seconds:.0f} s"]


def main() -> None:
    """Print the table, a row as soon as it is known."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, default=FOLDER.parent)
    parser.add_argument("--only", default="")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--eps", type=float, default=0.3)
    parser.add_argument("--epochs", type=int, default=5)
    given = parser.parse_args()
    console = Console(width=160)
    path = given.folder / "data" / "mnist.npz"
    if not path.exists():
        console.print(f"{path} is not there, so there is nothing to measure")
        return
    x, y = (values[: given.count] for values in images("test", path))
    table = Table(title=f"certified at l2 distance {given.eps}, of the first 100 / {len(x)} test images")
    headings = ("network", "accuracy", "product", "LipSDP", "products of pairs", "LipSDP of pairs", "ratio", "time")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for name, make in contenders(given.folder, given.epochs):
        if given.only not in name:
            continue
        row = measured(make(), x, y, given.eps)
        console.print(f"{name}: {', '.join(row)}")
        table.add_row(name, *row)
    console.print(table)
    console.print(versions("lipcert", "torch", "numpy"))


if __name__ == "__main__":
    main()
