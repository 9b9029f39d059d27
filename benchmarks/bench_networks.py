"""Layerwise certificates of networks people train: time, peak memory, bound and witness.

Run ``python -m benchmarks.bench_networks resnet18 vgg16`` for the large ones (random weights, 3x224x224), or
``python -m benchmarks.bench_networks third-party`` for every network in the folder beside the checkout.
One process per large network gives a true peak memory.
"""

from __future__ import annotations

import resource
import sys
import time

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import lipcert
from benchmarks.third_party import Net, networks
from lipcert.certifiers import Product

THREADS = 2


class Block(nn.Module):
    """The basic residual block of ResNet-18."""

    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(into, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.downsample = (
            nn.Identity()
            if stride == 1 and into == out
            else nn.Sequential(nn.Conv2d(into, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += self.downsample(x)
        return self.relu(y)


def resnet18() -> nn.Module:
    """ResNet-18 as in He et al., 2016, with torch's default random weights."""
    stages: list[nn.Module] = []
    into = 64
    for out, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        stages += [Block(into, out, stride), Block(out, out, 1)]
        into = out
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000)).eval()


def vgg16() -> nn.Module:
    """VGG-16 with batch normalisation as in Simonyan and Zisserman, 2015, with torch's default random weights."""
    layers: list[nn.Module] = []
    into = 3
    for width in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
        if width == 0:
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(into, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        into = width
    head = [nn.Linear(25088, 4096), nn.ReLU(True), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(True), nn.Dropout()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(7), nn.Flatten(), *head, nn.Linear(4096, 1000)).eval()


def peak_memory() -> float:
    """Peak resident memory of this process in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(net: Net, budget: lipcert.Budget) -> tuple[str, ...]:
    """One row: bound, witness, ratio, seconds, peak memory, verdict of the bracket."""
    start = time.perf_counter()
    try:
        model = net.build()
        certificate = Product()(lipcert.trace(model, net.shape))
    except lipcert.errors.LipcertError as refusal:
        return (net.name, "refused", str(refusal).splitlines()[0], "", "", "", "")
    seconds = time.perf_counter() - start
    found = lipcert.witness(model, net.shape, budget=budget)
    held = found.ratio <= certificate.bound and (net.exact is None or net.exact <= certificate.bound)
    exact = "" if net.exact is None else f"{net.exact:.6g}"
    return (
        net.name,
        f"{certificate.bound:.6g}",
        exact,
        f"{found.ratio:.6g}",
        f"{seconds:.2f}",
        f"{peak_memory():.2f}",
        f"{certificate.validity.name} {'holds' if held else 'VIOLATED'}",
    )


def main(names: list[str]) -> int:
    """Print the table; exit status 1 if any bracket is violated."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    large = {"resnet18": resnet18, "vgg16": vgg16}
    nets = [Net(name, large[name], (3, 224, 224)) for name in names if name in large]
    budget = lipcert.Budget(points=1, power_steps=5, ascent_steps=0, seconds=60.0)
    if "third-party" in names:
        nets += list(networks())
        budget = lipcert.Budget()
    columns = ("network", "bound", "exact", "witness", "certify s", "peak GiB", "bracket")
    table = Table(*columns, title=f"{THREADS} threads")
    rows = [measure(net, budget) for net in nets]
    for row in rows:
        table.add_row(*row)
    console = Console(width=140)
    console.print(table)
    refused = sum(row[1] == "refused" for row in rows)
    console.print(f"{len(rows)} networks, {refused} refused, {sum('VIOLATED' in row[-1] for row in rows)} violated")
    return int(any("VIOLATED" in row[-1] for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
