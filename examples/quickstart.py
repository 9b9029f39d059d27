"""How far apart are two distributions?
=======================================

One critic says 26, the answer is 1, and lipcert can tell.

P is the set of handwritten digits that scikit-learn ships (8 x 8 pixels). P + m is the same set with every pixel 1/8
brighter, a translation by a vector m of length 1, so the Wasserstein-1 distance of the two is exactly 1. By
Kantorovich duality it is also the largest difference of the means of f over P and over P + m, for f with Lipschitz
constant at most 1, so no critic with that property can report more than 1. Two critics that claim it are trained: the
same small convolutional network, once with torch's ``spectral_norm`` on every layer and once with lipcert's.

Run it with ``make demo``, or as ``python examples/quickstart.py``. Files go to ``out/``: for each critic its
certificate and weights, a pair of inputs and a picture of its layers. A page about one of them, to read and to pass on,
is made by ``lipcert show out/torch.json --pair out/torch.pair.safetensors --html out/torch.html``.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm as torch_spectral_norm

import lipcert
from lipcert.certifiers import Product
from lipcert.check import verify_files
from lipcert.enclosure import stretch
from lipcert.nn import MaxMin
from lipcert.parametrizations import spectral_norm
from lipcert.report import format_down, format_up, plot_layers
from lipcert.storage import save_certificate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZE = (8, 8)
SHAPE = (1, *SIZE)
P = torch.tensor(load_digits(return_X_y=True)[0], dtype=torch.float32).reshape(-1, *SHAPE) / 16
M = torch.full(SHAPE, 1 / 8)
CLAIM = 1
QUICK = 40  # steps of the run that the documentation shows


def critic(normalise: Callable[..., nn.Module], **at_size: tuple[int, int]) -> nn.Sequential:
    """Five layers of norm 1, if the normalisation is right; MaxMin has Lipschitz constant 1, so f has too."""
    return nn.Sequential(
        *(normalise(nn.Conv2d(1, 8, 3, padding=1), **at_size), MaxMin()),
        *(normalise(nn.Conv2d(8, 8, 3, padding=1), **at_size), MaxMin()),
        *(normalise(nn.Conv2d(8, 8, 3, padding=1), **at_size), MaxMin()),
        *(normalise(nn.Conv2d(8, 16, 3, padding=1, stride=2), **at_size), MaxMin()),
        *(nn.Flatten(), normalise(nn.Linear(16 * 4 * 4, 1))),
    )


CRITICS: dict[str, Callable[[], nn.Sequential]] = {
    # Divides by the norm of the reshaped kernel, which is not the norm of the convolution.
    "torch": lambda: critic(torch_spectral_norm),
    # Divides by the norm of what the layer does to an image of this size.
    "lipcert": lambda: critic(spectral_norm, input_size=SIZE),
}


def train(f: nn.Module, steps: int, seed: int) -> nn.Module:
    """Maximise E_P[f] - E_{P+m}[f], the dual of the Wasserstein-1 distance."""
    generator = torch.Generator().manual_seed(seed)
    adam = torch.optim.Adam(f.parameters(), lr=1e-2)
    for _ in range(steps):
        x, y = P[torch.randint(len(P), (2, 64), generator=generator)]
        loss = f(y + M).mean() - f(x).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    return f.eval()


def judge(name: str, f: nn.Module, out: Path) -> dict[str, Any]:
    """What the critic reports, what is proved about it, and what that makes of its claim."""
    with torch.no_grad():
        distance = (f(P) - f(P + M)).mean().item()
    graph = lipcert.trace(f, SHAPE)
    # Each layer claims norm 1, so the layerwise bound is the one to ask for.
    certificate = lipcert.certify(f, SHAPE, by=Product())
    weights = save_certificate(certificate, graph, out / f"{name}.json")
    # The independent checker reads the two files and proves the bound again, in exact arithmetic; it raises if not.
    verify_files(str(out / f"{name}.json"), str(weights))
    witness = lipcert.witness(f, SHAPE)
    save_file({"x": witness.x, "y": witness.y}, out / f"{name}.pair.safetensors")
    plot_layers(graph, certificate, out / f"{name}.png")
    if certificate.bound <= CLAIM:
        verdict = "PROVED"
    elif stretch(graph, witness.x, witness.y, lipcert.L2).exceeds(CLAIM):  # without rounding
        verdict = "REFUTED"
    else:
        verdict = "UNKNOWN"
    return {"distance": distance, "witness": witness.ratio, "bound": certificate.bound, "verdict": verdict}


def table(found: dict[str, dict[str, Any]]) -> Table:
    """One row per critic; lower bounds are printed rounded down, upper bounds rounded up."""
    shown = Table(
        title="Wasserstein-1 distance of the digits and the digits made brighter: exactly 1",
        caption="PROVED by a certificate, REFUTED by a pair, both checked in exact arithmetic",
    )
    for heading in ("critic", "claim", "reported", "best witness", "proved bound", "verdict", "time"):
        shown.add_column(heading)
    for name, row in found.items():
        ratio, bound = format_down(row["witness"], 4), format_up(row["bound"], 8)
        reported, seconds = f"{row['distance']:.3f}", f"{row['seconds']:.0f} s"
        shown.add_row(name, f"<= {CLAIM}", reported, ratio, bound, row["verdict"], seconds)
    return shown


def plot(found: dict[str, dict[str, Any]]) -> "Figure":
    """What each critic reports, beside the bracket of its Lipschitz constant and the truth."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 2.6), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(found.values()):
        low, high = row["witness"], row["bound"]
        axes.barh(place, high - low, left=low, height=0.3, color="#4c72b0", label="between pair and proof")
        axes.plot(row["distance"], place, "o", color="#c44e52", label="distance it reports")
        axes.annotate(row["verdict"], (high, place), (8, 0), textcoords="offset points", va="center")
    axes.axvline(CLAIM, color="black", linewidth=0.8, label="claim, and the true distance")
    axes.set_yticks(range(len(found)), list(found))
    axes.set_xscale("log")
    axes.set_xlim(0.5, 100.0)
    axes.set_ylim(-0.6, len(found) - 0.4)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("Lipschitz constant, and distance")
    labels = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    axes.legend(labels.values(), labels.keys(), loc="center right", fontsize=8)
    return figure


def main(steps: int = 200, seed: int = 0, out: Path | None = None) -> dict[str, dict[str, Any]]:
    """Train, judge and print; returns the numbers of the table. Files are kept if there is a folder for them."""
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = out or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for name, make in CRITICS.items():
            start = time.perf_counter()
            torch.manual_seed(seed)
            found[name] = judge(name, train(make(), steps, seed), folder)
            found[name]["seconds"] = time.perf_counter() - start
    Console().print(table(found))
    if out is not None:
        plot(found).savefig(out / "quickstart.png", dpi=110)
    return found


if __name__ == "__main__":
    main(out=Path("out"))
