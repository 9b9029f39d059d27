r"""How far is what an autoencoder generates from the data?
========================================================

A Wasserstein autoencoder draws z from a prior and decodes it. How far is the result from the data, in the Wasserstein-1
distance? For an autoencoder with a *certified* decoder the answer stands between two proven numbers (Patrini et al.,
2019):

* from above, by the mean reconstruction error plus :math:`\gamma` times the distance of codes and prior, if the
  decoder stretches by at most :math:`\gamma`; in the space of codes an optimal coupling is quickly found;
* from below, by what a critic of certified constant reports.

Two autoencoders are trained in the same way on the digits that scikit-learn ships: one whose layers are normalised by
lipcert, and one whose layers are free. Both are then given the best bound of :math:`\gamma` that lipcert proves. A
free decoder is free to be steep, and the bracket pays for it.

The measures are those of 400 digits and 400 generated images, and the bracket is a theorem about them. Their distance
itself can still be computed at this size, by an optimal assignment in the space of images: it is printed between the
two ends as a check. What it costs grows as the cube of the number of points; the bracket needs it for codes only.

Run it as ``python examples/wae.py``; it takes two or three minutes, and ``out/wae.png`` shows the brackets.
"""

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn

from lipcert import certify
from lipcert.certifiers import Auto, Product
from lipcert.nn import GroupSort, MaxMin
from lipcert.parametrizations import orthogonal, spectral_norm
from lipcert.report import format_down, format_up
from lipcert.transport import dual_bound, empirical_w1, wae_bracket

P = torch.tensor(load_digits(return_X_y=True)[0], dtype=torch.float32) / 16
PIXELS = P.shape[1]
CODE = 3
LINES = 32
WIDTH = 64
POINTS = 400
BATCH = 128
DEFAULT = 2000
CRITIC_STEPS = 400
ENCODER, DECODER = 2.0, 1.0
"""The constants that the layers of the certified autoencoder multiply to."""

Layer = Callable[[nn.Linear], nn.Module]


def dense(constrain: Layer, activation: Callable[[], nn.Module], *widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for into, out in itertools.pairwise(widths):
        layers += [constrain(nn.Linear(into, out)), activation()]
    return nn.Sequential(*layers[:-1])


def critic(inputs: int) -> nn.Sequential:
    """Orthogonal layers and sorting: constant 1, and gradients do not vanish."""
    return dense(orthogonal, lambda: GroupSort(2), inputs, WIDTH, WIDTH, 1)


def normalised(constant: float) -> Layer:
    """One of three layers whose constants multiply to this one."""
    return lambda layer: spectral_norm(layer, bound=constant ** (1 / 3))


def free(constant: float) -> Layer:
    return lambda layer: layer


AUTOENCODERS: dict[str, Callable[[float], Layer]] = {"certified": normalised, "free": free}


def sliced(codes: Tensor, prior: Tensor, generator: torch.Generator) -> Tensor:
    """The mean distance of two samples on random lines, where sorting finds it (Kolouri et al., 2018)."""
    lines = torch.randn(CODE, LINES, generator=generator)
    lines /= lines.norm(dim=0)
    return ((codes @ lines).sort(0).values - (prior @ lines).sort(0).values).abs().mean()


def train(constrain: Callable[[float], Layer], steps: int, seed: int) -> tuple[nn.Module, nn.Module]:
    """Reconstruct, and keep the codes near the prior: encoder and decoder."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    encoder = dense(constrain(ENCODER), MaxMin, PIXELS, WIDTH, WIDTH, CODE)
    decoder = dense(constrain(DECODER), MaxMin, CODE, WIDTH, WIDTH, PIXELS)
    adam = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=3e-3)
    for _ in range(steps):
        x = P[torch.randint(len(P), (BATCH,), generator=generator)]
        codes, prior = encoder(x), torch.randn(BATCH, CODE, generator=generator)
        loss = (decoder(codes) - x).norm(dim=1).mean() + sliced(codes, prior, generator)
        adam.zero_grad()
        loss.backward()
        adam.step()
    return encoder.eval(), decoder.eval()


def train_critic(x: Tensor, y: Tensor, steps: int, seed: int) -> nn.Module:
    """Maximise the difference of the means over the very points that are compared: the bound is about them."""
    torch.manual_seed(seed)
    f = critic(x.shape[1])
    adam = torch.optim.Adam(f.parameters(), lr=5e-3, betas=(0.5, 0.9))
    for _ in range(steps):
        loss = f(y).mean() - f(x).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    return f.eval()


def bracket(encoder: nn.Module, decoder: nn.Module, steps: int, seed: int, seconds: float) -> dict[str, Any]:
    """Both ends of the bracket, what they are made of, and the distance between them."""
    generator = torch.Generator().manual_seed(seed + 1)
    xs, prior = P[:POINTS], torch.randn(POINTS, CODE, generator=generator)
    with torch.no_grad():
        codes, generated = encoder(xs), decoder(prior)
    most = min(steps, CRITIC_STEPS)
    f, g = train_critic(xs, generated, most, seed), train_critic(prior, codes, most, seed)
    certificate = certify(decoder, (CODE,), by=Auto(seconds))
    told = wae_bracket(decoder, certificate, xs, codes, prior, critic=(f, certify(f, (PIXELS,), by=Product())))
    latent = dual_bound(g, certify(g, (CODE,), by=Product()), prior, codes)
    exact = empirical_w1(xs, generated)
    return {
        "lower": told.lower,
        "distance": exact.upper,
        "upper": told.upper,
        "reconstruction": told.reconstruction,
        "gamma": told.gamma,
        "latent lower": latent.value,
        "latent upper": told.latent.upper,
        "width": told.upper - told.lower,
    }


def table(found: dict[str, dict[str, Any]]) -> Table:
    """One row per autoencoder; lower bounds are rounded down, upper bounds up."""
    times = found["free"]["width"] / found["certified"]["width"]
    shown = Table(
        title=f"Wasserstein-1 distance of {POINTS} digits and {POINTS} generated images",
        caption=f"lower <= distance <= upper = reconstruction + gamma * codes; {times:.1f} times as wide if free",
    )
    for heading in ("autoencoder", "lower", "distance", "upper", "reconstruction", "gamma", "codes to prior", "time"):
        shown.add_column(heading)
    for name, row in found.items():
        codes = f"{format_down(row['latent lower'], 3)} to {format_up(row['latent upper'], 3)}"
        ends = (format_down(row["lower"], 4), format_up(row["distance"], 4), format_up(row["upper"], 4))
        parts = (format_up(row["reconstruction"], 4), format_up(row["gamma"], 4), codes)
        shown.add_row(name, *ends, *parts, f"{row['seconds']:.0f} s")
    return shown


def plot(found: dict[str, dict[str, Any]]) -> Any:
    """The brackets, and the distances in them."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.0, 2.5), layout="constrained")
    for place, row in enumerate(found.values()):
        axes.plot([row["lower"], row["upper"]], [place] * 2, "|-", markersize=16, linewidth=3)
        axes.plot(row["distance"], place, "o", color="black")
    axes.set_yticks(range(len(found)), list(found))
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.set_xlim(left=0.0)
    axes.set_xlabel("Wasserstein-1 distance of data and generated images (dot), and its proven bracket")
    return figure


def main(steps: int = DEFAULT, seed: int = 0, out: Path | None = None, seconds: float = 5.0) -> dict[str, Any]:
    """Train, bracket and print; returns the numbers of the table."""
    found = {}
    for name, constrain in AUTOENCODERS.items():
        start = time.perf_counter()
        found[name] = bracket(*train(constrain, steps, seed), steps, seed, seconds)
        found[name]["seconds"] = time.perf_counter() - start
    Console().print(table(found))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        plot(found).savefig(out / "wae.png", dpi=120)
    return found


if __name__ == "__main__":
    main(out=Path("out"))
