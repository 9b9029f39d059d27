"""Where does a coupling flow have a Lipschitz constant?
======================================================

Nowhere as a whole. An affine coupling block maps (a, b) to (a, b exp(s(a)) + t(a)). Its Jacobian contains b times the
slope of exp(s), which grows with b, so a number printed for all inputs is false far enough out. lipcert refuses it with
that reason, and bounds the flow on a box that you name, in both directions: forward on the box, and the inverse on a
box around everything that the flow makes of it. Together they say how much distances can grow and shrink:
1 / Lip(inverse) <= ``|f(x) - f(y)| / |x - y|`` <= Lip(f) for all x, y in the box.

A small flow is trained on two moons. Singular values of its Jacobian, sampled in the box, have to lie between the two
numbers. Run it as ``python examples/coupling_flow.py``.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table
from sklearn.datasets import make_moons
from torch import Tensor, nn

import lipcert
from lipcert.certifiers import Auto, certify_on
from lipcert.domain import Box
from lipcert.errors import NotLipschitz
from lipcert.regions import output_range
from lipcert.report import format_down, format_up

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHAPE = (2,)
BOX = Box(-3.0, 3.0)
RADII = (1.0, 10.0, 100.0)
SCALE = 0.5  # of the logarithms of the factors
BLOCKS = 3
SECONDS = 5.0  # for each solve
QUICK = 20


class Coupling(nn.Module):
    """``(a, b exp(s(a)) + t(a))``, the halves changing places from block to block."""

    def __init__(self, swapped: bool, width: int = 12) -> None:
        super().__init__()
        self.first, self.second = (1, 0) if swapped else (0, 1)
        self.s = nn.Sequential(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, 1), nn.Tanh())
        self.t = nn.Sequential(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, 1))

    def halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, self.first : self.first + 1], x[:, self.second : self.second + 1]

    def joined(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([a, b] if self.first == 0 else [b, a], 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.halves(x)
        return self.joined(a, b * torch.exp(SCALE * self.s(a)) + self.t(a))


class Inverse(nn.Module):
    """``(a, (b - t(a)) exp(-s(a)))`` of a block."""

    def __init__(self, block: Coupling) -> None:
        super().__init__()
        self.block = block

    def forward(self, y: Tensor) -> Tensor:
        a, b = self.block.halves(y)
        return self.block.joined(a, (b - self.block.t(a)) * torch.exp(-SCALE * self.block.s(a)))


def trained(blocks: int, steps: int, seed: int) -> list[Coupling]:
    """Fit the density of two moons: standard normal after the flow, plus the logarithms of the factors."""
    torch.manual_seed(seed)
    points = torch.tensor(make_moons(1000, noise=0.1, random_state=seed)[0], dtype=torch.float32)
    points = (points - points.mean(0)) / points.std(0)
    flow = [Coupling(bool(k % 2)) for k in range(blocks)]
    adam = torch.optim.Adam([p for block in flow for p in block.parameters()], lr=5e-3)
    for _ in range(steps):
        z, volume = points, torch.zeros(len(points))
        for block in flow:
            volume = volume + SCALE * block.s(block.halves(z)[0])[:, 0]
            z = block(z)
        loss = (z.square().sum(1) / 2 - volume).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    return [block.double().eval() for block in flow]


def singular_values(flow: nn.Module, x: Tensor) -> Tensor:
    jacobian = torch.func.vmap(torch.func.jacrev(lambda point: flow(point[None])[0]))
    return torch.linalg.svdvals(jacobian(x)).detach()


def refusal(flow: nn.Module) -> str:
    """Why there is no bound on the whole space; an error if there were one."""
    try:
        lipcert.certify(flow, SHAPE)
    except NotLipschitz as reason:
        return str(reason)
    raise AssertionError("a coupling flow was certified on the whole space")


def image(flow: nn.Module, box: Box) -> Box:
    """A box around everything that the flow makes of a box."""
    found = output_range(lipcert.trace(flow, SHAPE, box), box)
    return Box(found.low, found.high)


def growth(flow: nn.Module) -> list[float]:
    """The largest Jacobian norm found at each distance from the origin."""
    angle = torch.linspace(0.0, 2 * math.pi, 721, dtype=torch.float64)
    circle = torch.stack([torch.cos(angle), torch.sin(angle)], 1)
    return [float(singular_values(flow, radius * circle).max()) for radius in RADII]


def main(steps: int = 400, seed: int = 0, out: Path | None = None) -> dict[str, Any]:
    """Train, be refused, certify both directions on the box, and compare with what is sampled there."""
    blocks = trained(BLOCKS, steps, seed)
    flow, back = nn.Sequential(*blocks), nn.Sequential(*(Inverse(block) for block in reversed(blocks)))
    x = BOX.sample(4000, SHAPE, torch.Generator().manual_seed(seed))
    corners = torch.tensor(list(itertools.product((-3.0, 3.0), repeat=2)), dtype=torch.float64)
    rows = []
    for k in range(len(blocks)):
        part, undone = nn.Sequential(*blocks[: k + 1]), nn.Sequential(*(Inverse(b) for b in reversed(blocks[: k + 1])))
        box = image(part, BOX)
        forward = certify_on(lipcert.trace(part, SHAPE, BOX), BOX, by=Auto(SECONDS))
        inverse = certify_on(lipcert.trace(undone, SHAPE, box), box, by=Auto(SECONDS))
        sampled = singular_values(part, torch.cat([x, corners]))
        rows.append((k + 1, 1 / inverse.bound, float(sampled.min()), float(sampled.max()), forward.bound))
    found = {
        "reason": refusal(flow),
        "low": rows[-1][1],
        "high": rows[-1][4],
        "sampled": rows[-1][2:4],
        "round trip": float((back(flow(x)) - x).detach().abs().max()),
        "rows": rows,
        "growth": growth(flow),
    }
    Console().print(table(found))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        plot(found).savefig(out / "coupling_flow.png", dpi=110)
    return found


def table(found: dict[str, Any]) -> Table:
    """One row per number of blocks; lower bounds are rounded down and upper bounds up."""
    grown = ", ".join(f"{value:.3g} at {radius:g}" for radius, value in zip(RADII, found["growth"], strict=True))
    shown = Table(
        title="How much the first blocks of a coupling flow can shrink and stretch distances, on the box +-3",
        caption=f"everywhere: refused. Largest Jacobian norms found: {grown} from the origin",
    )
    for heading in ("blocks", "at least", "smallest sampled", "largest sampled", "at most"):
        shown.add_column(heading, justify="right")
    for count, low, least, most, high in found["rows"]:
        shown.add_row(f"{count}", format_down(low, 4), f"{least:.4f}", f"{most:.4f}", format_up(high, 4))
    return shown


def plot(found: dict[str, Any]) -> Figure:
    """The proved interval around the sampled singular values, by number of blocks; and what happens far out."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 3.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    counts, low, least, most, high = zip(*found["rows"], strict=True)
    left.fill_between(counts, low, high, alpha=0.2, label="proved")
    left.fill_between(counts, least, most, alpha=0.6, label="sampled")
    left.set_yscale("log")
    left.set_xticks(counts)
    left.set_xlabel("blocks")
    left.set_ylabel("stretch, on the box")
    left.legend()
    right.loglog(RADII, found["growth"], marker="o")
    right.set_xlabel("distance from the origin")
    right.set_ylabel("largest Jacobian norm found")
    return figure


if __name__ == "__main__":
    main(out=Path("out"))
