r"""Does this flow invert, and how fast?
====================================

An invertible residual network maps data to noise through blocks ``y = x + g(x)``. Each can be inverted by iterating
``x <- y - g(x)``, if the Lipschitz constant L of g is below 1; then the iteration needs
:math:`\log(\epsilon (1 - L) / |x_1 - x_0|) / \log L` rounds for an error of :math:`\epsilon`, and the inverse stretches
by at most :math:`1 / (1 - L)`. All of this rests on L, and L is usually taken on trust: layers are divided by an
estimate of their norm, made by one step of power iteration per training step.

Here two flows learn the two moons of scikit-learn, the same in everything but that division. One uses
``lipcert.parametrizations.spectral_norm``, the other the rule of the popular packages: vectors u and v are kept and
improved by one iteration per step, and a layer is divided by ``u' W v`` if that is above the coefficient. At every
logged step the blocks of both are certified, and the norms of all layers compared with what they claim to be.

After 400 steps most layers of the other flow are longer than they claim at the moment they are looked at, the worst by
more than a tenth, and the product of its layers no longer proves half of its blocks to keep 0.9. That refutes the
claims of the layers. It does not refute those of the blocks, which a sharper bound may still save: LipSDP proves all
but one of them at the end, and ``lipcert.witness`` finds no pair beyond 0.9. But nothing in training made it so.

Then the flows are inverted: the error is promised before the iteration starts, and the round trip is held against it.
At last a check that belongs into every test suite, which passes the certified flow and fails a flow whose weights were
loaded without their u and v.

Run it as ``python examples/residual_flow.py``, or with ``--steps`` and ``--out``.
"""

import argparse
import copy
import itertools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from sklearn.datasets import make_moons
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from lipcert.bilipschitz import BiLipschitz, bilipschitz, derived_table, invert
from lipcert.certifiers import LipSDP, Product
from lipcert.errors import LipschitzViolation, UnsupportedOperation
from lipcert.parametrizations import Everywhere, Exact, Soft, spectral_norm
from lipcert.report import format_down, format_up

DEFAULT = 400
QUICK = 10  # steps of the run that the documentation shows
BLOCKS = 6
WIDTH = 32
BATCH = 256
RATE = 5e-3
LOGGED = 8

CLAIM = 0.9
"""No branch may have a larger Lipschitz constant."""

LAYER = 0.899 ** (1 / 3)
"""What each of a branch's three layers is bounded by; ELU has slopes up to 1. The claim leaves a little room."""

ERROR = 1e-6


class Residual(nn.Module):
    """``x + g(x)``."""

    def __init__(self, normalise: Callable[[nn.Linear], nn.Module]) -> None:
        super().__init__()
        widths = (2, WIDTH, WIDTH, 2)
        layers = [normalise(nn.Linear(*pair)) for pair in itertools.pairwise(widths)]
        self.branch = nn.Sequential(layers[0], nn.ELU(), layers[1], nn.ELU(), layers[2])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class OneIteration(nn.Module):
    """Spectral normalisation as flow packages have it: u and v move by one iteration, and only when told to."""

    def __init__(self, weight: Tensor, iterations: int = 5) -> None:
        super().__init__()
        self.register_buffer("u", F.normalize(torch.randn(weight.shape[0]), dim=0))
        self.register_buffer("v", F.normalize(torch.randn(weight.shape[1]), dim=0))
        for _ in range(iterations):
            self.update(weight)

    @torch.no_grad()
    def update(self, weight: Tensor) -> None:
        self.v = F.normalize(weight.T @ self.u, dim=0)
        self.u = F.normalize(weight @ self.v, dim=0)

    def forward(self, weight: Tensor) -> Tensor:
        sigma = self.u @ weight @ self.v
        return weight / torch.clamp(sigma / LAYER, min=1.0)


def package_norm(layer: nn.Linear) -> nn.Module:
    return parametrize.register_parametrization(layer, "weight", OneIteration(layer.weight.detach()))


def certified_norm(layer: nn.Linear) -> nn.Module:
    return spectral_norm(layer, bound=LAYER, cap=Soft(), level=Everywhere(), estimate=Exact())


FLOWS: dict[str, Callable[[nn.Linear], nn.Module]] = {"one iteration": package_norm, "lipcert": certified_norm}


def layers(flow: nn.Module) -> Iterator[Any]:
    return (module for module in flow.modules() if isinstance(module, nn.Linear))


def moons(count: int, seed: int) -> Tensor:
    """Two moons with mean 0 and variance about 1."""
    points = torch.tensor(make_moons(count, noise=0.05, random_state=seed)[0], dtype=torch.float32)
    return (points - torch.tensor([0.5, 0.25])) / torch.tensor([0.87, 0.5])


def density(flow: nn.Sequential, x: Tensor) -> Tensor:
    """Nats per sample: ``log N(f(x); 0, I) + log|det J|``, with the exact 2 x 2 Jacobians of the blocks."""
    total = torch.zeros(len(x))
    with parametrize.cached():
        for layer in layers(flow):
            _ = layer.weight  # normalised once, outside of the transforms below
        for block in flow:
            J, x = torch.func.vmap(torch.func.jacrev(_value_twice(block), has_aux=True))(x)
            total = total + (J[:, 0, 0] * J[:, 1, 1] - J[:, 0, 1] * J[:, 1, 0]).abs().log()
    return total - 0.5 * x.square().sum(1) - math.log(2 * math.pi)


def _value_twice(block: nn.Module) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def function(point: Tensor) -> tuple[Tensor, Tensor]:
        value = block(point[None])[0]
        return value, value

    return function


def train(flow: nn.Sequential, steps: int, seed: int) -> list[dict[str, Any]]:
    """Maximise the likelihood; every now and then look at the flow as it would be deployed."""
    generator = torch.Generator().manual_seed(seed)
    x = moons(2000, seed)
    adam = torch.optim.Adam(flow.parameters(), lr=RATE)
    logged = []
    for step in range(1, steps + 1):
        loss = -density(flow, x[torch.randint(len(x), (BATCH,), generator=generator)]).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        if step % max(1, steps // LOGGED) == 0:
            logged.append({"step": step, "loss": loss.item(), **looked_at(flow)})
        for layer in layers(flow):
            parametrization = layer.parametrizations.weight[0]
            if isinstance(parametrization, OneIteration):
                parametrization.update(layer.parametrizations.weight.original)
    return logged


def looked_at(flow: nn.Sequential) -> dict[str, Any]:
    """Certified constants of the branches, and norms of the layers by singular values in float64."""
    deployed = copy.deepcopy(flow).eval()
    found = bilipschitz(deployed, (2,), by=Product())
    with torch.no_grad():
        norms = [float(torch.linalg.matrix_norm(layer.weight.double(), 2)) for layer in layers(deployed)]
    return {"constants": [step.constant for step in found.steps], "norms": norms, "lower": found.lower}


def counted(logged: list[dict[str, Any]]) -> dict[str, Any]:
    """How often a claim was not kept at the logged steps."""
    norms = [norm for row in logged for norm in row["norms"]]
    constants = [constant for row in logged for constant in row["constants"]]
    return {
        # Far above the rounding of singular values, far below what a training step does.
        "layer violations": sum(norm > LAYER * (1 + 1e-6) for norm in norms),
        "layers": len(norms),
        "worst layer": max(norms) / LAYER,
        "uncertified blocks": sum(not constant < CLAIM for constant in constants),
        "blocks": len(constants),
        "worst block": max(constants),
    }


def require_contraction(flow: nn.Module) -> BiLipschitz:
    """The check for a test suite, or after loading a checkpoint: every block is proved to contract as claimed."""
    found = bilipschitz(copy.deepcopy(flow).eval(), (2,), by=Product())
    for step in found.steps:
        if step.constant is None or not step.constant < CLAIM:
            raise LipschitzViolation(
                f"block `{step.name}` is not proved to keep Lip(g) < {CLAIM}: {step.reason}. "
                f"Normalise the weights that are deployed, not those of an earlier step."
            )
    return found


def reloaded(flow: nn.Sequential, normalise: Callable[[nn.Linear], nn.Module]) -> nn.Sequential:
    """A new flow with the trained weights, and with none of what normalisation remembered: a stale checkpoint."""
    fresh = nn.Sequential(*(Residual(normalise) for _ in flow))
    remembered = ("vector", "digest", ".u", ".v")
    state = {name: tensor for name, tensor in flow.state_dict().items() if not name.endswith(remembered)}
    fresh.load_state_dict(state, strict=False)
    return fresh


def verdict(flow: nn.Module) -> str:
    try:
        require_contraction(flow)
    except LipschitzViolation as violation:
        return f"fails: {violation}"
    return "passes"


def round_trip(found: BiLipschitz, x: Tensor) -> dict[str, Any]:
    """From data to noise and back, against the error that was promised; and the error after every iteration."""
    z = found.graph.replay(x)
    inverse = invert(found, z, ERROR)
    return {
        "promised": float(inverse.a_priori.max()),
        "measured": float((inverse.x - x).norm(dim=1).max()),
        "iterations": [step.iterations for step in reversed(inverse.steps)],
        "samples": invert(found, torch.randn(1000, 2, generator=torch.Generator().manual_seed(0)), ERROR).x,
    }


def judged(flow: nn.Sequential, logged: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    """Everything that is said of one flow, once it is trained."""
    flow.eval()
    x = moons(500, seed + 1)
    with torch.no_grad():
        nats = float(density(flow, x).mean())
    found = bilipschitz(flow, (2,), by=LipSDP())
    try:
        back = round_trip(found, x.double())
    except UnsupportedOperation as refusal:
        back = {"refused": str(refusal)}
    tight = max(step.constant or 0.0 for step in found.steps)
    return {"nats": nats, "logged": logged, **counted(logged), "claim": found, "tight": tight, **back}


def table(found: dict[str, dict[str, Any]]) -> Table:
    shown = Table(
        title=f"Two residual flows on two moons: is Lip(g) < {CLAIM} in every block?",
        caption="layers: norm / claim, by singular values; blocks: product of layers; both at the logged steps.\n"
        "LipSDP: worst block at the end. inverse: error of the round trip <= error promised before",
    )
    for heading in ("flow", "nats", "layers over", "worst", "blocks unproved", "worst", "LipSDP", "inverse", "time"):
        shown.add_column(heading)
    for name, row in found.items():
        if "promised" in row:
            inverse = f"{row['measured']:.1e} <= {format_up(row['promised'], 2)}"
        else:
            inverse = "refused"
        over = f"{row['layer violations']} of {row['layers']}", f"{row['uncertified blocks']} of {row['blocks']}"
        worst = format_down(row["worst layer"], 4), format_up(row["worst block"], 4)
        numbers = (over[0], worst[0], over[1], worst[1], format_up(row["tight"], 4))
        shown.add_row(name, f"{row['nats']:.3f}", *numbers, inverse, f"{row['seconds']:.0f} s")
    return shown


def plot(found: dict[str, Any]) -> Any:
    """Data and samples of the certified flow, norms of layers and constants of blocks during training."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    data, samples = moons(1000, 0), found["lipcert"]["samples"]
    left.scatter(*data.T, s=2, color="#bbbbbb", label="data")
    left.scatter(*samples.T, s=2, color="#4c72b0", label="inverted noise")
    left.set_title("samples, each within 1e-6 of the flow's own")
    left.legend(markerscale=4, loc="upper right")
    for name, colour in (("one iteration", "#c44e52"), ("lipcert", "#4c72b0")):
        logged = found[name]["logged"]
        steps = [row["step"] for row in logged]
        middle.plot(steps, [max(row["norms"]) / LAYER for row in logged], "o-", color=colour, label=name)
        right.plot(steps, [max(row["constants"]) for row in logged], "o-", color=colour, label=name)
    for axes, line, title in ((middle, 1.0, "largest layer norm / claim"), (right, CLAIM, "largest bound of Lip(g)")):
        axes.axhline(line, color="black", linewidth=0.8)
        axes.set(title=title, xlabel="step")
        axes.legend()
    return figure


def main(steps: int = DEFAULT, seed: int = 0, out: Path | None = None) -> dict[str, Any]:
    """Train, certify, invert and print; returns the numbers."""
    found: dict[str, Any] = {}
    flows: dict[str, nn.Sequential] = {}
    for name, normalise in FLOWS.items():
        start = time.perf_counter()
        torch.manual_seed(seed)
        flows[name] = nn.Sequential(*(Residual(normalise) for _ in range(BLOCKS)))
        found[name] = judged(flows[name], train(flows[name], steps, seed), seed)
        found[name]["seconds"] = time.perf_counter() - start
    console = Console()
    console.print(table(found))
    console.print(derived_table(found["lipcert"]["claim"], error=ERROR))
    for name, normalise in FLOWS.items():
        found[name]["stale"] = verdict(reloaded(flows[name], normalise))
        console.print(f"{name}, weights loaded without what normalisation remembered: {found[name]['stale']}")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        plot(found).savefig(out / "residual_flow.png", dpi=150)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=DEFAULT)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out"))
    main(**vars(parser.parse_args()))
