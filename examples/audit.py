"""Which of these Wasserstein critics keep their claim?
=====================================================

A Wasserstein critic is meant to have Lipschitz constant 1. Some are built so, others are trained with a penalty that
asks for gradients of norm 1 where it looks. On average they obey: the mean gradient norm of a WGAN-GP critic is close
to 1. That is no Lipschitz constant, which is about the steepest place there is.

This audit asks three questions of every critic. What is the mean gradient norm at the samples it was trained on? Which
pair of points is stretched most, in exact arithmetic? What can be proved of all pairs? Each claim is then PROVED,
REFUTED by a pair, or UNKNOWN, and never both proved and refuted.

Without an argument a few small critics of two densities in the plane are trained first: by weight clipping, by
two-sided and one-sided gradient penalties, and with layers normalised by torch and by lipcert. With a folder of the
checkpoints of the Wasserstein-1 benchmark (Korotin et al., 2022; ``width_*/method_*.pt``) those are audited instead.

Run it as ``python examples/audit.py``, or with a folder as ``python -m examples.audit FOLDER`` from the root of the
repository; it takes less than a minute. ``out/audit.png`` shows the table as bars.
"""

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm as torch_spectral_norm

from lipcert import certify, witness
from lipcert.certifiers import Product
from lipcert.falsify import Effort, Proved, Refuted, lipcheck
from lipcert.nn import GroupSort
from lipcert.parametrizations import orthogonal, spectral_norm
from lipcert.penalties import OneSided, clip_weights, gradient_penalty
from lipcert.penalties.gradient import sample_gradients
from lipcert.report import format_down, format_up

DEFAULT = 400
BATCH = 128
WIDTH = 32
CLIP = 0.1


@dataclass(frozen=True)
class Critic:
    """A critic of points in the plane, the constant it claims (none if it does not), and where it was trained."""

    name: str
    network: nn.Module
    claim: float | None
    points: Tensor


def ring(count: int, generator: torch.Generator) -> Tensor:
    """Eight blobs on a circle of radius 2."""
    angle = torch.randint(8, (count,), generator=generator) * (torch.pi / 4)
    centres = 2.0 * torch.stack([angle.cos(), angle.sin()], 1)
    return centres + 0.1 * torch.randn(count, 2, generator=generator)


def blob(count: int, generator: torch.Generator) -> Tensor:
    """One blob in the middle."""
    return 0.5 * torch.randn(count, 2, generator=generator)


def perceptron(constrain: Callable[[nn.Module], nn.Module], activation: Callable[[], nn.Module]) -> nn.Sequential:
    return nn.Sequential(
        *(constrain(nn.Linear(2, WIDTH)), activation()),
        *(constrain(nn.Linear(WIDTH, WIDTH)), activation()),
        constrain(nn.Linear(WIDTH, 1)),
    )


def two_sided(f: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    return 10.0 * gradient_penalty(f, x, y, generator=generator)


def one_sided(f: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    return 10.0 * gradient_penalty(f, x, y, generator=generator, side=OneSided())


def no_penalty(f: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    return torch.zeros(())


METHODS: dict[str, tuple[Callable[[], nn.Sequential], Callable[..., Tensor], float | None]] = {
    "weight clipping": (lambda: perceptron(lambda layer: layer, nn.ReLU), no_penalty, CLIP),
    "two-sided gradient penalty": (lambda: perceptron(lambda layer: layer, nn.ReLU), two_sided, None),
    "one-sided gradient penalty": (lambda: perceptron(lambda layer: layer, nn.ReLU), one_sided, None),
    "torch spectral_norm": (lambda: perceptron(torch_spectral_norm, nn.ReLU), no_penalty, None),
    "lipcert spectral_norm": (lambda: perceptron(spectral_norm, nn.ReLU), no_penalty, None),
    "lipcert orthogonal, GroupSort": (lambda: perceptron(orthogonal, lambda: GroupSort(2)), no_penalty, None),
}


def train(method: str, steps: int, seed: int) -> Critic:
    """Maximise the difference of the means over the ring and the blob."""
    make, penalty, clip = METHODS[method]
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    f = make()
    adam = torch.optim.Adam(f.parameters(), lr=5e-3, betas=(0.5, 0.9))
    for _ in range(steps):
        x, y = ring(BATCH, generator), blob(BATCH, generator)
        loss = f(y).mean() - f(x).mean() + penalty(f, x, y, generator)
        adam.zero_grad()
        loss.backward()
        adam.step()
        if clip is not None:
            clip_weights(f, clip)
    return Critic(method, f.eval(), 1.0, torch.cat([ring(256, generator), blob(256, generator)]))


def collected(folder: Path) -> list[Critic]:
    """The critics of a folder of the Wasserstein-1 benchmark, with what each method says of its constant."""
    from benchmarks.third_party import CRITIC_CLAIMS, critics  # the reader of its files

    points = 3.5 * (2.0 * torch.rand(512, 2, generator=torch.Generator().manual_seed(0)) - 1.0)
    nets = [(net, net.name.rpartition("_")[2]) for net in critics(folder)]
    if not nets:
        raise FileNotFoundError(f"no critics width_*/method_*.pt in {folder}: name the folder they are in.")
    return [Critic(net.name, net.build(), CRITIC_CLAIMS[method], points) for net, method in nets]


def judge(critic: Critic, seconds: float) -> dict[str, Any]:
    """The mean gradient norm, the steepest pair, the proved bound, and what becomes of the claim."""
    f = critic.network
    gradients = sample_gradients(f, critic.points).detach().norm(dim=1)
    row: dict[str, Any] = {"mean": float(gradients.mean()), "claim": critic.claim}
    row["bound"] = certify(f, (2,), by=Product()).bound  # layer by layer
    if critic.claim is None:
        return {**row, "seen": witness(f, (2,)).ratio, "verdict": "NO CLAIM"}
    # Where that does not decide and no pair is found, a tighter, semidefinite bound is tried.
    verdict = lipcheck(f, critic.points[::8], critic.claim, effort=Effort(seconds))
    row["verdict"] = type(verdict).__name__.upper()
    if isinstance(verdict, Proved):
        row["bound"] = verdict.certificate.bound
    row["seen"] = verdict.steepest if isinstance(verdict, Refuted) else witness(f, (2,)).ratio
    return row


def table(found: dict[str, dict[str, Any]]) -> Table:
    """One row per critic; what was seen is rounded down, what is proved is rounded up."""
    told = {word: sum(row["verdict"] == word for row in found.values()) for word in ("PROVED", "REFUTED", "UNKNOWN")}
    shown = Table(title="Critics and their claims", caption=", ".join(f"{n} {word}" for word, n in told.items()))
    for heading in ("critic", "claim", "mean gradient", "steepest pair", "proved bound", "verdict"):
        shown.add_column(heading)
    for name, row in found.items():
        claim = "none" if row["claim"] is None else f"<= {row['claim']!r}"
        numbers = (f"{row['mean']:.3f}", format_down(row["seen"], 4), format_up(row["bound"], 8))
        shown.add_row(name, claim, *numbers, row["verdict"])
    return shown


def plot(found: dict[str, dict[str, Any]]) -> Any:
    """Bars from the steepest pair to the proved bound, which hold the constant, and dots at the mean gradient."""
    import matplotlib.pyplot as plt

    colours = {"PROVED": "tab:green", "REFUTED": "tab:red", "UNKNOWN": "tab:gray", "NO CLAIM": "tab:blue"}
    figure, axes = plt.subplots(figsize=(8.0, 1.5 + 0.3 * len(found)), layout="constrained")
    for place, row in enumerate(found.values()):
        axes.barh(place, max(row["bound"] - row["seen"], 0.0), left=row["seen"], color=colours[row["verdict"]])
        axes.plot([row["seen"]] * 2, [place - 0.4, place + 0.4], color="black")
        axes.plot(row["mean"], place, "o", color="black")
    axes.axvline(1.0, color="black", linestyle="--")
    axes.set_xscale("log")
    axes.set_yticks(range(len(found)), list(found))
    axes.invert_yaxis()
    axes.set_xlabel("mean gradient norm (dot), steepest pair (line) up to the proved bound of the constant")
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour, label=word.lower()) for word, colour in colours.items()]
    axes.legend(handles=handles)
    return figure


def audit(critics: Iterable[Critic], seconds: float = 1.0) -> dict[str, dict[str, Any]]:
    """The rows of the table."""
    return {critic.name: judge(critic, seconds) for critic in critics}


def main(
    steps: int = DEFAULT, seed: int = 0, out: Path | None = None, critics: Path | None = None, seconds: float = 1.0
) -> dict[str, Any]:
    """Train or read critics, judge and print; returns the numbers of the table."""
    chosen = [train(method, steps, seed) for method in METHODS] if critics is None else collected(critics)
    found = audit(chosen, seconds)
    Console().print(table(found))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        plot(found).savefig(out / "audit.png", dpi=120)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("critics", type=Path, nargs="?", help="folder with width_*/method_*.pt")
    main(out=Path("out"), critics=parser.parse_args().critics)
