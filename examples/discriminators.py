r"""How Lipschitz are the discriminators people train?
==================================================

Spectral normalisation came to GANs to bound the Lipschitz constant of the discriminator. Four kinds of them are trained
here on small images of digits, with the hinge loss, and watched by `lipcert.monitor`:

- *SNGAN*: residual blocks with 3 x 3 convolutions, a sum over all positions, torch's ``spectral_norm`` everywhere;
- *BigGAN*: the same with orthogonal initialisation, and a generator that is normalised, too;
- *StyleGAN*: residual blocks whose sum is divided by the square root of 2, and a gradient penalty (R1), no norms;
- *diffusion GAN*: a head of circular 1-d convolutions of width 9 on frozen features, as distilled diffusion models are
  judged. Only the head's constant in the features can be claimed; the features here are a fixed random convolution.

Four curves for each: the largest norm of a *reshaped* kernel, which torch's normalisation keeps at 1; the largest norm
of a layer as it is applied; the bound of the whole discriminator that the layers compose to; and the gradients at data.
Then each is trained again for as many steps, from the same start and with the same random numbers, with
`lipcert.parametrizations.spectral_norm`, which divides by the norm of the operator. Then every layer has norm at most
1, provably. The whole discriminator need not: a residual block adds, and a sum over 4 x 4 positions stretches by 4.
The price is speed: it may not be as steep, so after as many steps its hinge loss is larger.

Run it as ``python examples/discriminators.py``; ``--device cuda --size paper`` uses 32 x 32 pixels and 128 channels.
"""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm as torch_spectral_norm

import lipcert
from lipcert.certifiers import Product
from lipcert.freeze import sizes_read
from lipcert.monitor import Monitor
from lipcert.parametrizations import spectral_norm
from lipcert.report import format_down, format_up

STEPS, OBSERVATIONS, BATCH = 150, 5, 32
QUICK = 2  # steps of the run that the documentation shows
LATENT = 16
Norm = Callable[[nn.Module, int], nn.Module]
"""Takes a layer and the size of what it reads; gives the layer, normalised or not."""


@dataclass(frozen=True)
class Size:
    """How large everything is: pixels per side (a multiple of 8), channels."""

    pixels: int
    channels: int


SMALL, PAPER = Size(8, 16), Size(32, 128)


def torchs(layer: nn.Module, size: int) -> nn.Module:
    """Divided by the norm of the reshaped kernel."""
    return torch_spectral_norm(layer)


def bare(layer: nn.Module, size: int) -> nn.Module:
    """Left alone."""
    return layer


def operators(layer: nn.Module, size: int) -> nn.Module:
    """Divided by the norm of what the layer does to an input of this size."""
    if isinstance(layer, nn.Linear):
        return spectral_norm(layer)
    return spectral_norm(layer, input_size=(size,) if isinstance(layer, nn.Conv1d) else (size, size))


class Residual(nn.Module):
    """``scale * (body(x) + shortcut(x))``."""

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None, scale: float = 1.0) -> None:
        super().__init__()
        self.body, self.scale = body, scale
        self.shortcut = nn.Identity() if shortcut is None else shortcut

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * (self.body(x) + self.shortcut(x))


class SumPool(nn.Module):
    """The sum over all positions."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).sum(2)


def conv(into: int, out: int, k: int = 3) -> nn.Conv2d:
    return nn.Conv2d(into, out, k, padding=k // 2)


def sngan(norm: Norm, size: Size) -> nn.Module:
    """A first block that halves, one that halves, one that does not; the sum; one output."""
    n, c = size.pixels, size.channels
    first = nn.Sequential(norm(conv(1, c), n), nn.ReLU(), norm(conv(c, c), n), nn.AvgPool2d(2))
    return nn.Sequential(
        Residual(first, nn.Sequential(nn.AvgPool2d(2), norm(conv(1, c, 1), n // 2))),
        *(halving(norm, c, side) for side in sides(n)),
        Residual(nn.Sequential(nn.ReLU(), norm(conv(c, c), 4), nn.ReLU(), norm(conv(c, c), 4))),
        *(nn.ReLU(), SumPool(), norm(nn.Linear(c, 1), 1)),
    )


def sides(pixels: int) -> list[int]:
    """Sizes that blocks halve, from half the image down to 4 pixels."""
    return [pixels >> k for k in range(1, 10) if pixels >> k > 4]


def halving(norm: Norm, c: int, n: int) -> nn.Module:
    body = nn.Sequential(nn.ReLU(), norm(conv(c, c), n), nn.ReLU(), norm(conv(c, c), n), nn.AvgPool2d(2))
    return Residual(body, nn.Sequential(norm(conv(c, c, 1), n), nn.AvgPool2d(2)))


def biggan(norm: Norm, size: Size) -> nn.Module:
    """Orthogonal weights to begin with."""

    def started(layer: nn.Module, n: int) -> nn.Module:
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        nn.init.orthogonal_(layer.weight)
        return norm(layer, n)

    return sngan(started, size)


def stylegan(norm: Norm, size: Size) -> nn.Module:
    """Leaky ReLU; residual blocks that are averaged, not summed."""
    n, c = size.pixels, size.channels
    blocks: list[nn.Module] = []
    for side in [n, *sides(n)]:
        body = nn.Sequential(norm(conv(c, c), side), nn.LeakyReLU(0.2), nn.AvgPool2d(2), norm(conv(c, c), side // 2))
        shortcut = nn.Sequential(nn.AvgPool2d(2), norm(conv(c, c, 1), side // 2))
        blocks.append(Residual(nn.Sequential(body, nn.LeakyReLU(0.2)), shortcut, math.sqrt(0.5)))
    return nn.Sequential(
        *(norm(conv(1, c, 1), n), nn.LeakyReLU(0.2), *blocks, norm(conv(c, c), 4), nn.LeakyReLU(0.2), nn.Flatten()),
        *(norm(nn.Linear(16 * c, c), 1), nn.LeakyReLU(0.2), norm(nn.Linear(c, 1), 1)),
    )


def head(norm: Norm, size: Size) -> nn.Module:
    """On features ``(channels, positions)``: a wide circular convolution in a residual block, a mean over positions."""
    c, n = size.channels, (size.pixels // 2) ** 2
    wide = norm(nn.Conv1d(c, c, 9, padding=4, padding_mode="circular"), n)
    return nn.Sequential(
        *(norm(nn.Conv1d(c, c, 1), n), nn.LeakyReLU(0.2)),
        Residual(nn.Sequential(wide, nn.LeakyReLU(0.2)), scale=math.sqrt(0.5)),
        *(norm(nn.Conv1d(c, 1, 1), n), nn.AdaptiveAvgPool1d(1), nn.Flatten()),
    )


def generator(norm: Norm, size: Size) -> nn.Module:
    """From noise to images in [0, 1]: a linear layer, blocks that double, a convolution."""
    c, side = size.channels, 4
    layers: list[nn.Module] = [norm(nn.Linear(LATENT, 16 * c), 1), nn.Unflatten(1, (c, 4, 4))]
    while side < size.pixels:
        side *= 2
        body = nn.Sequential(nn.ReLU(), nn.Upsample(scale_factor=2), norm(conv(c, c), side), nn.ReLU())
        body.append(norm(conv(c, c), side))
        layers.append(Residual(body, nn.Sequential(nn.Upsample(scale_factor=2), norm(conv(c, c, 1), side))))
    return nn.Sequential(*layers, nn.ReLU(), norm(conv(c, 1), side), nn.Sigmoid())


def features(size: Size) -> nn.Module:
    """Frozen: a random convolution that halves the image, and its positions in a row."""
    return nn.Sequential(nn.Conv2d(1, size.channels, 4, 2, 1), nn.Tanh(), nn.Flatten(2)).requires_grad_(False)


@dataclass(frozen=True)
class Kind:
    """A discriminator, how people normalise it and its generator, and the weight of its R1 penalty."""

    build: Callable[[Norm, Size], nn.Module]
    usual: Norm
    of_generator: Norm = bare
    penalty: float = 0.0


KINDS = {
    "SNGAN": Kind(sngan, torchs),
    "BigGAN": Kind(biggan, torchs, of_generator=torchs),
    "StyleGAN": Kind(stylegan, bare, penalty=1.0),
    "diffusion GAN": Kind(head, torchs),
}
VARIANTS = ("usual", "operator")


def real(size: Size) -> Tensor:
    """All digits, in [0, 1]."""
    images = torch.tensor(load_digits(return_X_y=True)[0], dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    return nn.functional.interpolate(images, size=(size.pixels, size.pixels), mode="nearest")


def input_sizes(model: nn.Module, x: Tensor) -> dict[str, tuple[int, ...]]:
    """What every convolution reads, by path."""
    paths = {path: module for path, module in model.named_modules() if isinstance(module, nn.Conv1d | nn.Conv2d)}
    sizes = sizes_read(paths.values(), lambda: model(x))
    return {path: sizes[module] for path, module in paths.items()}


def wide(model: nn.Module) -> set[str]:
    """The paths of convolutions whose patches overlap."""
    convs = (nn.Conv1d, nn.Conv2d)
    return {path for path, m in model.named_modules() if isinstance(m, convs) and m.kernel_size[0] > 1}


@dataclass(eq=False)
class Game:
    """A discriminator against a generator, with the hinge loss."""

    D: nn.Module
    G: nn.Module
    see: nn.Module
    data: Tensor
    penalty: float
    drawn: torch.Generator

    def __post_init__(self) -> None:
        """An optimiser for each."""
        self.of_D, self.of_G = (torch.optim.Adam(m.parameters(), lr=1e-3, betas=(0.0, 0.9)) for m in (self.D, self.G))

    def noise(self) -> Tensor:
        return torch.randn(BATCH, LATENT, generator=self.drawn).to(self.data.device)

    def step(self) -> float:
        """One step of each; returns the hinge loss of the discriminator before it."""
        rows = torch.randint(len(self.data), (BATCH,), generator=self.drawn)
        x = self.see(self.data[rows.to(self.data.device)]).requires_grad_(self.penalty > 0)
        at_real, at_fake = self.D(x), self.D(self.see(self.G(self.noise())).detach())
        hinge = nn.functional.relu(1 - at_real).mean() + nn.functional.relu(1 + at_fake).mean()
        loss = hinge
        if self.penalty > 0:
            (slope,) = torch.autograd.grad(at_real.sum(), x, create_graph=True)
            loss = hinge + 0.5 * self.penalty * slope.square().flatten(1).sum(1).mean()
        self.of_D.zero_grad()
        loss.backward()
        self.of_D.step()
        self.of_G.zero_grad()
        (-self.D(self.see(self.G(self.noise()))).mean()).backward()
        self.of_G.step()
        return float(hinge.detach())


def watched(kind: Kind, variant: str, size: Size, steps: int, seed: int, device: str) -> dict[str, Any]:
    """Train, and look at the discriminator (in evaluation, as it would be deployed) a few times."""
    start = time.process_time()
    torch.manual_seed(seed)
    norm, of_generator = (operators, operators) if variant == "operator" else (kind.usual, kind.of_generator)
    of_generator = bare if kind.of_generator is bare else of_generator
    see = features(size) if kind.build is head else nn.Identity()
    D, G = kind.build(norm, size), generator(of_generator, size)
    D, G, see, data = D.to(device), G.to(device), see.to(device), real(size).to(device)
    game = Game(D, G, see, data, kind.penalty if variant == "usual" else 0.0, torch.Generator().manual_seed(seed))
    seen = see(data[:BATCH])
    monitor = Monitor(D, every=1, prove_every=1, input_sizes=input_sizes(D, seen), gradients_at=seen)
    row: dict[str, Any] = {name: [] for name in ("steps", "reshaped", "true", "bound", "gradient", "hinge")}
    every = max(1, steps // OBSERVATIONS)
    for step in range(steps):
        row["hinge"].append(game.step())
        if step % every == 0 or step == steps - 1:
            look(D.eval(), monitor, tuple(seen.shape[1:]), row, step)
            D.train()
    last = monitor.history[-1][1]
    overlapping = wide(D)
    row["layers"] = {reading.path: reading for reading in last}
    row["ratios"] = [reading.lower / reading.reshaped for reading in last if reading.path in overlapping]
    row["late hinge"] = sum(row["hinge"][-max(1, steps // 4) :]) / max(1, steps // 4)
    if kind.of_generator is not bare:
        row["generator"] = generators_bound(G)
    return row | {"seconds": time.process_time() - start}


def look(D: nn.Module, monitor: Monitor, shape: tuple[int, ...], row: dict[str, Any], step: int) -> None:
    """One observation, and the proved bound of the whole discriminator."""
    values = monitor.step()
    readings = monitor.history[-1][1]
    row["steps"].append(step)
    row["reshaped"].append(max(reading.reshaped for reading in readings))
    row["true"].append(max(reading.lower for reading in readings))
    row["bound"].append(lipcert.certify(D.cpu(), shape, by=Product()).bound)
    D.to(monitor.gradients_at.device)
    row["gradient"].append(values["lipcert/gradient/p95"])


def generators_bound(G: nn.Module) -> float:
    """From noise to image."""
    return lipcert.certify(G.cpu().eval(), (LATENT,), by=Product()).bound


def table(found: dict[str, dict[str, Any]]) -> Table:
    """One row per training run."""
    shown = Table(
        title="Discriminators at the end of training",
        caption="ratio: true norm over reshaped norm of convolutions wider than 1; gradient: 95th percentile at data",
    )
    for heading in ("discriminator", "reshaped", "true >=", "ratio", "proved", "gradient", "hinge", "G proved", "CPU"):
        shown.add_column(heading, overflow="fold")
    for name, variants in found.items():
        for variant, row in variants.items():
            least, most = min(row["ratios"]), max(row["ratios"])
            norms = f"{row['reshaped'][-1]:.2f}", format_down(row["true"][-1], 4), f"{least:.2f}-{most:.2f}"
            proved = format_up(row["bound"][-1], 4), f"{row['gradient'][-1]:.3f}", f"{row['late hinge']:.3f}"
            of_generator = format_up(row["generator"], 3) if "generator" in row else ""
            shown.add_row(f"{name}, {variant}", *norms, *proved, of_generator, f"{row['seconds']:.0f} s")
    return shown


def plot(found: dict[str, dict[str, Any]]) -> Any:
    """Four curves per run, over the steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.0 * len(found), 5.0), layout="constrained")
    grid = figure.subplots(len(VARIANTS), len(found), sharex=True, squeeze=False)
    curves = {
        "bound": "proved bound",
        "true": "largest true norm",
        "reshaped": "largest reshaped",
        "gradient": "gradient",
    }
    for column, (name, variants) in zip(grid.T, found.items(), strict=True):
        for axes, (variant, row) in zip(column, variants.items(), strict=False):
            for what, label in curves.items():
                axes.plot(row["steps"], row[what], label=label, marker=".")
            axes.axhline(1.0, color="black", linestyle="--", linewidth=0.6)
            axes.set_yscale("log")
            axes.set_title(f"{name}, {variant}", fontsize=9)
    grid[0, 0].legend(fontsize=7)
    grid[-1, 0].set_xlabel("step", fontsize=8)
    return figure


def main(
    steps: int = STEPS,
    seed: int = 0,
    out: Path | None = None,
    size: Size = SMALL,
    device: str = "cpu",
    kinds: tuple[str, ...] = tuple(KINDS),
) -> dict[str, dict[str, Any]]:
    """Train every kind as usual and with operator norms, and print; returns what was seen, by kind and variant."""
    found = {
        name: {variant: watched(KINDS[name], variant, size, steps, seed, device) for variant in VARIANTS}
        for name in kinds
    }
    Console().print(table(found))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        plot(found).savefig(out / "discriminators.png", dpi=150)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", choices=("small", "paper"), default="small")
    parser.add_argument("--steps", type=int, default=STEPS)
    given = parser.parse_args()
    main(given.steps, out=Path("out"), size=PAPER if given.size == "paper" else SMALL, device=given.device)
