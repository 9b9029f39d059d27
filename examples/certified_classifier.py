"""Which classifier keeps its decision, and which one only says so?
================================================================

How far may an image be changed before a classifier changes its mind? If every difference of two outputs has Lipschitz
constant at most L_ij, no image closer than the margin over L_ij is decided otherwise. So a network built to have small
constants, and trained to have large margins, comes with a radius for each image, and no attack will ever find anything
inside it.

Three such networks are trained on handwritten digits, out of layers that do not expand distances: orthogonal ones,
spectrally normalised ones, and almost orthogonal ones (AOL), each with MaxMin between them. Their loss is cross-entropy
at a low temperature, on outputs from which the wanted margin has been taken away from the right one. What they certify
is computed from their trained weights, not from what the layers promise.

A fourth network is made of convolutions under torch's ``spectral_norm``, each said to have norm 1. It claims radii
by the same formula. Projected gradient descent finds images *inside* those radii that are decided otherwise, and exact
arithmetic confirms one of them: the claim is false. The same attack on the certified networks finds nothing inside a
certified radius, on any batch.

Run it as ``python examples/certified_classifier.py``; with ``--mnist mnist.npz`` (arrays ``x_train``, ``y_train``,
``x_test``, ``y_test``) it uses MNIST, and takes a few minutes.
"""

import argparse
import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm as torch_spectral_norm

import lipcert
from lipcert.certifiers import Product
from lipcert.enclosure import distance, enclosed
from lipcert.graph import Graph
from lipcert.nn import MaxMin
from lipcert.parametrizations import Cayley, aol, orthogonal, spectral_norm
from lipcert.report import format_up
from lipcert.robustness import CertifiedAccuracy, certified_accuracy

STEPS, MNIST_STEPS = 400, 1872
BATCH = 256
ATTACK_STEPS, ATTACKED = 20, 1000
"""Steps of projected gradient descent, and images attacked, in batches of `BATCH`."""


@dataclass(frozen=True, eq=False)
class Task:
    """Images in [0, 1] and labels; the distance to be robust at, others to report, and how to train for it.

    Attributes:
        train: Images ``(N, 1, size, size)``, float32, and labels.
        test: The same, held out.
        eps: The l2 distance that the networks are trained for.
        reported: All distances that are reported.
        width: Of the three hidden layers.
        temperature: Of the cross-entropy.
        rate: Adam's largest step size.
    """

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    eps: float
    reported: tuple[float, ...]
    width: int
    temperature: float = 0.25
    rate: float = 1e-2


def digits() -> Task:
    """The 1797 digits of 8 x 8 pixels that scikit-learn ships; every fourth is held out."""
    pixels, labels = load_digits(return_X_y=True)
    x = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    y = torch.tensor(labels, dtype=torch.int64)
    held = torch.arange(len(x)) % 4 == 3
    return Task((x[~held], y[~held]), (x[held], y[held]), 0.5, (0.25, 0.5, 1.0), 64)


def mnist(path: Path) -> Task:
    """The usual 60000 and 10000 images of 28 x 28 pixels."""
    with np.load(path) as stored:
        parts = [(torch.from_numpy(stored[f"x_{part}"]), stored[f"y_{part}"]) for part in ("train", "test")]
    train, test = ((x[:, None].float() / 255, torch.from_numpy(y).long()) for x, y in parts)
    return Task(train, test, 1.58, (0.3, 1.0, 1.58), 256)


def dense(layer: Callable[[nn.Linear], nn.Module], size: int, width: int) -> nn.Sequential:
    """Four linear layers; none of them expands distances, and neither does MaxMin."""
    widths = [size * size, width, width, width]
    hidden = [part for a, b in itertools.pairwise(widths) for part in (layer(nn.Linear(a, b)), MaxMin())]
    return nn.Sequential(nn.Flatten(), *hidden, layer(nn.Linear(width, 10)))


def convolutions(size: int) -> nn.Sequential:
    """What torch's spectral_norm says has norm 1, layer by layer."""
    norm, small = torch_spectral_norm, -(-size // 4)
    return nn.Sequential(
        *(norm(nn.Conv2d(1, 8, 3, padding=1)), MaxMin(), norm(nn.Conv2d(8, 8, 3, padding=1)), MaxMin()),
        *(norm(nn.Conv2d(8, 16, 3, padding=1, stride=2)), MaxMin(), norm(nn.Conv2d(16, 16, 3, padding=1, stride=2))),
        *(MaxMin(), nn.Flatten(), norm(nn.Linear(16 * small * small, 10))),
    )


FAST = Cayley(working=torch.float32)
KINDS: dict[str, Callable[[int, int], nn.Sequential]] = {
    "orthogonal": lambda size, width: dense(lambda layer: orthogonal(layer, map=FAST), size, width),
    "spectral": lambda size, width: dense(spectral_norm, size, width),
    "aol": lambda size, width: dense(aol, size, width),
    "torch's": lambda size, width: convolutions(size),
}
CLAIMED = "torch's"


def train(model: nn.Module, task: Task, steps: int, seed: int) -> nn.Module:
    """Cross-entropy of outputs whose right one has sqrt(2) eps less, which is the margin that eps takes."""
    x, y = task.train
    generator = torch.Generator().manual_seed(seed)
    adam = torch.optim.Adam(model.parameters(), lr=task.rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, task.rate, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        rows = torch.randint(len(x), (BATCH,), generator=generator)
        short = model(x[rows]) - math.sqrt(2) * task.eps * nn.functional.one_hot(y[rows], 10)
        loss = nn.functional.cross_entropy(short / task.temperature, y[rows])
        adam.zero_grad()
        loss.backward()
        adam.step()
        schedule.step()
    return model.eval().requires_grad_(False)


def attack(graph: Graph, x: Tensor, y: Tensor, radii: Tensor) -> Tensor:
    """Projected gradient descent on the margin, in float64: the best image found within each radius."""
    reach = radii.reshape(-1, 1, 1, 1) * (1 - 1e-9)
    moved = torch.zeros_like(x)
    best, lowest = x.clone(), torch.full((len(x),), math.inf, dtype=x.dtype)
    for step in range(ATTACK_STEPS + 1):
        at = (x + moved).requires_grad_(True)
        gap = margin(graph.replay(at), y)
        (uphill,) = torch.autograd.grad(-gap.sum(), at)
        lower = gap.detach() < lowest
        best[lower], lowest[lower] = at.detach()[lower], gap.detach()[lower]
        moved = moved + reach * 2.5 / (1 + step) ** 0.5 * uphill / length(uphill).clamp_min(1e-300)
        moved = moved * (reach / length(moved).clamp_min(1e-300)).clamp_max(1.0)
    return best


def margin(f: Tensor, y: Tensor) -> Tensor:
    """The output of the right class less the largest other one."""
    right = nn.functional.one_hot(y, f.shape[1]).bool()
    return f[right] - f.masked_fill(right, -math.inf).amax(1)


def length(x: Tensor) -> Tensor:
    """The l2 length of every image, to divide images by."""
    return torch.linalg.vector_norm(x.flatten(1), dim=1).reshape(-1, 1, 1, 1)


def survivors(graph: Graph, task: Task, counted: CertifiedAccuracy) -> list[tuple[int, int, int]]:
    """For each batch: how many images are certified at eps, survive the attack at eps, and are right to begin with.

    Raises:
        AssertionError: If an attack succeeds inside a certified radius: then the certificate would be wrong.
    """
    found = []
    for rows in torch.arange(min(ATTACKED, len(task.test[1]))).split(BATCH):
        x, y = task.test[0][rows].double(), task.test[1][rows]
        right = counted.decisions.classes[rows] == y
        certified = right & (counted.decisions.radii[rows] > task.eps)
        attacked = attack(graph, x, y, torch.full((len(x),), task.eps, dtype=torch.float64))
        survived = margin(graph.replay(attacked), y) > 0
        assert not bool((certified & ~survived).any()), "an attack inside a certified radius"
        found.append((int(certified.sum()), int(survived.sum()), int(right.sum())))
    return found


def claimed_radii(graph: Graph, task: Task) -> Tensor:
    """The radii of test images if the network were 1-Lipschitz, in float64; negative where it is wrong."""
    found = [
        margin(graph.replay(x.double()), y) for x, y in zip(*(part.split(BATCH) for part in task.test), strict=True)
    ]
    return torch.cat(found) / math.sqrt(2)


def broken_claims(graph: Graph, task: Task, radii: Tensor) -> tuple[int, int, dict[str, Any] | None]:
    """Images attacked inside the radii claimed for them: how many, how many fell, and the deepest fall, exactly."""
    rows = torch.nonzero(radii[:ATTACKED] > 0)[:, 0]
    x, y, radii = task.test[0][rows].double(), task.test[1][rows], radii[rows]
    parts = zip(x.split(BATCH), y.split(BATCH), radii.split(BATCH), strict=True)
    fallen, moved = (torch.cat(part) for part in zip(*(falls(graph, *part) for part in parts), strict=True))
    if not bool(fallen.any()):
        return len(rows), 0, None
    share = torch.where(fallen, length(moved - x).flatten() / radii, math.inf)
    deepest = int(share.argmin())
    return len(rows), int(fallen.sum()), confirmed(graph, x[deepest], moved[deepest], int(y[deepest]))


def falls(graph: Graph, x: Tensor, y: Tensor, radii: Tensor) -> tuple[Tensor, Tensor]:
    """Which images an attack within the radii changes the decision of, and by bisection the first such image."""
    attacked = attack(graph, x, y, radii)
    fallen = margin(graph.replay(attacked), y) < 0
    low, high = torch.zeros_like(radii), torch.ones_like(radii)
    for _ in range(20):
        share = (low + high) / 2
        at = margin(graph.replay(x + share.reshape(-1, 1, 1, 1) * (attacked - x)), y) < 0
        low, high = torch.where(at, low, share), torch.where(at, share, high)
    return fallen, x + high.reshape(-1, 1, 1, 1) * (attacked - x)


def confirmed(graph: Graph, x: Tensor, attacked: Tensor, right: int) -> dict[str, Any]:
    """A decision that changes inside its claimed radius, without rounding: all numbers are fractions."""
    ball = enclosed(graph, torch.stack([x, attacked]))
    assert ball.rad is None, "the network is piecewise linear, so its values are rational"
    at_x, at_attacked = ([Fraction(int(value)) / Fraction(2) ** ball.bits for value in row] for row in ball.mid)
    others = [j for j in range(10) if j != right]
    gap = min(at_x[right] - at_x[j] for j in others)
    apart = distance(x, attacked, 2.0)
    changed = max(at_attacked[j] for j in others) > at_attacked[right]
    return {
        "exact": bool(gap > 0 and changed and 2 * apart < gap**2),
        "distance": math.sqrt(apart),
        "claimed": float(gap) / math.sqrt(2),
        "label": right,
        "becomes": max(range(10), key=lambda j: at_attacked[j]),
        "images": (x[0], attacked[0]),
    }


def judged(kind: str, task: Task, steps: int, seed: int) -> dict[str, Any]:
    """Train a network, certify it from its weights, and attack it."""
    start, shape = time.process_time(), tuple(task.test[0].shape[1:])
    torch.manual_seed(seed)
    graph = lipcert.trace(train(KINDS[kind](shape[-1], task.width), task, steps, seed), shape)
    pairs = lipcert.margins(graph, Product())
    counted = certified_accuracy(graph, pairs, *task.test, task.reported)
    batches = survivors(graph, task, counted)
    proved, survived, _ = (sum(counts) / min(ATTACKED, counted.total) for counts in zip(*batches, strict=True))
    row = {
        "clean": counted.clean,
        "certified": dict(zip(counted.eps, counted.rates, strict=True)),
        "batches": batches,
        "attacked": survived,
        "proved of attacked": proved,
        "constant": float(pairs.constants.max()),
        "radii": torch.where(counted.decisions.classes == task.test[1], counted.decisions.radii, 0.0),
    }
    if kind == CLAIMED:
        radii = claimed_radii(graph, task)
        row["claimed"] = {each: float((radii > each).double().mean()) for each in task.reported}
        row["claimed radii"] = radii
        row["tried"], row["fallen"], row["counterexample"] = broken_claims(graph, task, radii)
    return row | {"seconds": time.process_time() - start}


def table(found: dict[str, Any]) -> Table:
    """One row per network; proved rates are of all test images, but those beside an attack of the images attacked."""
    eps, reported = found["eps"], found["reported"]
    tried = min(ATTACKED, found["total"])
    shown = Table(
        title=f"Right decisions that stay within an l2 distance ({found['total']} images held out)",
        caption="pairs: constant of differences of outputs; broken: attacks inside claimed radii; "
        f"attack: what is left of the first {tried} images, in brackets what is proved of these",
    )
    headings = [f"proved {each:g}" for each in reported] + [f"attack {eps:g}", f"claimed {eps:g}"]
    for heading in ("layers", "pairs <=", "right", *headings, "broken", "CPU"):
        shown.add_column(heading, overflow="fold")
    for kind, row in found["networks"].items():
        proved = [f"{row['certified'][each]:.1%}" for each in reported]
        claimed = f"{row['claimed'][eps]:.1%}" if "claimed" in row else ""
        fallen = f"{row['fallen']}/{row['tried']}" if "claimed" in row else ""
        attacked = f"{row['attacked']:.1%} ({row['proved of attacked']:.1%})"
        constant = format_up(row["constant"], 4)
        seconds = f"{row['seconds']:.0f} s"
        shown.add_row(kind, constant, f"{row['clean']:.1%}", *proved, attacked, claimed, fallen, seconds)
    return shown


def plot(found: dict[str, Any]) -> Any:
    """Proved accuracy over the distance, what is claimed, and the image that breaks the claim."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    axes, before, after = figure.subplots(1, 3, width_ratios=(2.2, 1, 1))
    ends = np.linspace(0.0, 2.0 * found["eps"], 200)
    for kind, row in found["networks"].items():
        line = axes.plot(ends, [float((row["radii"] > end).double().mean()) for end in ends], label=kind)[0]
        axes.plot(found["eps"], row["attacked"], marker="x", color=line.get_color())
        if "claimed radii" in row:
            claimed = [float((row["claimed radii"] > end).double().mean()) for end in ends]
            axes.plot(ends, claimed, linestyle=":", color=line.get_color(), label=f"{kind}, as claimed")
    axes.set_xlabel("l2 distance")
    axes.set_ylabel("proved accuracy (x: under attack)")
    axes.legend(fontsize=7)
    pair = found["networks"].get(CLAIMED, {}).get("counterexample")
    for side, k, name in ((before, 0, "label"), (after, 1, "becomes")):
        side.set_axis_off()
        if pair is not None:
            side.imshow(pair["images"][k].numpy(), cmap="gray_r")
            side.set_title(f"{name.replace('label', 'decided')} {pair[name]}", fontsize=9)
    if pair is not None:
        figure.supxlabel(f"moved by {pair['distance']:.3f}, claimed radius {pair['claimed']:.3f}", fontsize=8, x=0.8)
    return figure


def main(
    steps: int = STEPS,
    seed: int = 0,
    out: Path | None = None,
    task: Task | None = None,
    kinds: tuple[str, ...] = tuple(KINDS),
) -> dict[str, Any]:
    """Train, certify, attack and print; returns the numbers of the table."""
    task = digits() if task is None else task
    networks = {kind: judged(kind, task, steps, seed) for kind in kinds}
    found = {"eps": task.eps, "reported": task.reported, "total": len(task.test[1]), "networks": networks}
    console = Console()
    console.print(table(found))
    pair = networks.get(CLAIMED, {}).get("counterexample")
    if pair is not None:
        exact = "in exact arithmetic" if pair["exact"] else "in float64 only"
        console.print(
            f"torch's spectral_norm claims that a {pair['label']} keeps its class up to {pair['claimed']:.3f}; "
            f"moved by {pair['distance']:.3f} it becomes a {pair['becomes']}, {exact}."
        )
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        plot(found).savefig(out / "certified_classifier.png", dpi=150)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--mnist", type=Path)
    given = parser.parse_args()
    if given.mnist is None:
        main(out=Path("out"))
    else:
        main(MNIST_STEPS, out=Path("out"), task=mnist(given.mnist), kinds=("orthogonal", CLAIMED))
