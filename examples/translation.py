"""How well do eight critics measure a distance that is exactly 1?
==================================================================

P is the set of handwritten digits that scikit-learn ships (8 x 8 pixels); P + m is the same set with every pixel 1/8
brighter. Pairing every image with its brighter copy moves the mass of P onto P + m over a distance of exactly
:math:`|m|_2 = 1`, and the linear function along m shows that nothing shorter does: the Wasserstein-1 distance is 1.

By Kantorovich duality it is the largest :math:`E_{P+m} f - E_P f` over all f with Lipschitz constant at most 1. WGANs
maximise that over networks and keep the constant in check in one of many ways. Eight of them are trained here on the
same two sets. Some report far more than 1, which no f of constant 1 can: their claim is false, and lipcert finds two
images that prove it, in exact arithmetic.

What a critic reports can still be used, whatever it was trained with: divided by a *certified* constant it is a lower
bound of the distance. The last column is that bound. It is never above 1. How close it comes to 1 is what the
constraint, and the proof, are worth.

Run it as ``python examples/translation.py``; it takes a minute or two, and ``out/translation.png`` shows the table as
bars.
"""

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
from lipcert.falsify import Effort, Refuted, lipcheck
from lipcert.nn import GroupSort, MaxMin
from lipcert.parametrizations import Bjorck, orthogonal, spectral_norm
from lipcert.penalties import clip_weights, clipping_bound, gradient_penalty, r1
from lipcert.report import format_down, format_up
from lipcert.transport import dual_bound, overshoot

SIZE = (8, 8)
SHAPE = (1, *SIZE)
P = torch.tensor(load_digits(return_X_y=True)[0], dtype=torch.float32).reshape(-1, *SHAPE) / 16
M = torch.full(SHAPE, 1 / 8)
TRUTH = 1.0
DEFAULT = 250
BATCH = 64
CLIP = 0.05

Layer = Callable[[nn.Module], nn.Module]


def plain(layer: nn.Module) -> nn.Module:
    return layer


def convolutional(constrain: Layer, activation: Callable[[], nn.Module], last: Layer | None = None) -> nn.Sequential:
    """Four convolutions and a linear layer."""
    widths = ((1, 8, 1), (8, 8, 1), (8, 8, 1), (8, 16, 2))
    layers: list[nn.Module] = []
    for into, out, stride in widths:
        layers += [constrain(nn.Conv2d(into, out, 3, stride, 1)), activation()]
    return nn.Sequential(*layers, nn.Flatten(), (last or constrain)(nn.Linear(16 * 4 * 4, 1)))


def perceptron(constrain: Layer, activation: Callable[[], nn.Module]) -> nn.Sequential:
    """Three linear layers."""
    return nn.Sequential(
        nn.Flatten(),
        *(constrain(nn.Linear(64, 64)), activation()),
        *(constrain(nn.Linear(64, 64)), activation()),
        constrain(nn.Linear(64, 1)),
    )


def true_norm(layer: nn.Module) -> nn.Module:
    """Divide by the norm of what the layer does to an image; the stride halves nothing before the last convolution."""
    return spectral_norm(layer, input_size=SIZE) if isinstance(layer, nn.Conv2d) else spectral_norm(layer)


def nothing(f: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    return torch.zeros(())


def wgan_gp(f: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    return 10.0 * gradient_penalty(f, x, y, generator=generator)


def half_r1(f: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    return 5.0 * r1(f, x)


@dataclass(frozen=True)
class Recipe:
    """How a critic is built and trained, and the constant that its users take for granted."""

    make: Callable[[], nn.Sequential]
    claim: Callable[[nn.Module], float] | None = lambda _: 1.0
    penalty: Callable[[nn.Module, Tensor, Tensor, torch.Generator], Tensor] = nothing
    clip: float | None = None
    rate: float = 5e-3


RECIPES = {
    "torch spectral_norm, conv, ReLU": Recipe(lambda: convolutional(torch_spectral_norm, nn.ReLU)),
    "torch spectral_norm, conv, LeakyReLU": Recipe(
        lambda: convolutional(torch_spectral_norm, lambda: nn.LeakyReLU(0.2))
    ),
    "gradient penalty, conv, LeakyReLU": Recipe(
        lambda: convolutional(plain, lambda: nn.LeakyReLU(0.2)), penalty=wgan_gp
    ),
    "R1, conv, LeakyReLU": Recipe(lambda: convolutional(plain, lambda: nn.LeakyReLU(0.2)), None, half_r1),
    "weight clipping, conv, ReLU": Recipe(
        lambda: convolutional(plain, nn.ReLU), lambda f: clipping_bound(f, SHAPE, CLIP), clip=CLIP
    ),
    "torch spectral_norm, MLP, ReLU": Recipe(lambda: perceptron(torch_spectral_norm, nn.ReLU)),
    "lipcert spectral_norm, conv, MaxMin": Recipe(lambda: convolutional(true_norm, MaxMin), rate=1e-2),
    "lipcert orthogonal, MLP, GroupSort": Recipe(
        lambda: perceptron(lambda layer: orthogonal(layer, map=Bjorck()), lambda: GroupSort(2))
    ),
}


def train(recipe: Recipe, steps: int, seed: int) -> nn.Module:
    """Maximise E_{P+m}[f] - E_P[f] under the recipe's constraint."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    f = recipe.make()
    adam = torch.optim.Adam(f.parameters(), lr=recipe.rate, betas=(0.5, 0.9))
    for _ in range(steps):
        x, y = P[torch.randint(len(P), (2, BATCH), generator=generator)]
        y = y + M
        loss = f(x).mean() - f(y).mean() + recipe.penalty(f, x, y, generator)
        adam.zero_grad()
        loss.backward()
        adam.step()
        if recipe.clip is not None:
            clip_weights(f, recipe.clip)
    return f.eval()


def judge(f: nn.Module, claim: float | None, seconds: float) -> dict[str, Any]:
    """What the critic reports, what is proved, and what becomes of the claim."""
    certificate = lipcert.certify(f, SHAPE, by=Product())
    proved = dual_bound(f, certificate, P + M, P)
    row = {"reported": proved.dual.low, "bound": certificate.bound, "certified": proved.value, "claim": claim}
    if claim is None:
        return {**row, "verdict": "no claim", "seen": 0.0, "factor": 0.0}
    # Half a dozen images and their brighter copies: where the average is above the claim, some pair is.
    verdict = lipcheck(f, torch.cat([P[:6], P[:6] + M]), claim, effort=Effort(seconds), by=Product())
    seen = verdict.steepest if isinstance(verdict, Refuted) else 0.0
    factor = overshoot(proved.dual, TRUTH, claim).factor
    return {**row, "verdict": type(verdict).__name__.upper(), "seen": seen, "factor": factor}


def table(found: dict[str, dict[str, Any]]) -> Table:
    """One row per critic; lower bounds are rounded down, upper bounds up."""
    shown = Table(
        title="Wasserstein-1 distance of the digits and the digits made brighter: exactly 1",
        caption="REFUTED: two images are stretched by `seen`, without rounding. Certified distance: reported / bound.",
    )
    for heading in ("critic", "claim", "reported", "verdict", "seen", "proved bound", "certified distance", "time"):
        shown.add_column(heading)
    for name, row in found.items():
        claim = "none" if row["claim"] is None else f"<= {format_up(row['claim'], 4)}"
        seen = format_down(row["seen"], 4) if row["seen"] else ""
        numbers = (format_up(row["bound"], 5), format_down(row["certified"], 4), f"{row['seconds']:.0f} s")
        shown.add_row(name, claim, format_down(row["reported"], 4), row["verdict"], seen, *numbers)
    return shown


def plot(found: dict[str, dict[str, Any]]) -> Any:
    """Bars: what every critic reports, and what is left of it when it is divided by a proved constant."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8.0, 4.5), layout="constrained")
    places = range(len(found))
    axes.barh([i - 0.2 for i in places], [row["reported"] for row in found.values()], 0.4, label="reported")
    axes.barh([i + 0.2 for i in places], [row["certified"] for row in found.values()], 0.4, label="certified")
    axes.axvline(TRUTH, color="black", linestyle="--", label="the distance")
    axes.set_xscale("log")
    axes.set_yticks(list(places), list(found))
    axes.invert_yaxis()
    axes.set_xlabel("Wasserstein-1 distance of P and P + m")
    axes.legend()
    return figure


def main(steps: int = DEFAULT, seed: int = 0, out: Path | None = None, seconds: float = 2.0) -> dict[str, Any]:
    """Train, judge and print; returns the numbers of the table."""
    found = {}
    for name, recipe in RECIPES.items():
        start = time.perf_counter()
        f = train(recipe, steps, seed)
        found[name] = judge(f, None if recipe.claim is None else recipe.claim(f), seconds)
        found[name]["seconds"] = time.perf_counter() - start
    Console().print(table(found))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        plot(found).savefig(out / "translation.png", dpi=120)
    return found


if __name__ == "__main__":
    main(out=Path("out"))
