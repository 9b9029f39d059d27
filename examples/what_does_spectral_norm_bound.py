r"""What does spectral_norm bound?
==============================

torch's ``spectral_norm`` divides the weight of a layer by the largest singular value of the weight reshaped to a matrix
with one row per output channel. For a linear layer that matrix is what the layer does. For a convolution it is what the
layer does to a *single patch*, while an image is made of patches that overlap. Every pixel is in up to
:math:`k_h k_w` of them (fewer with a stride), so the norm of the convolution may be up to :math:`\sqrt{k_h k_w}` times
that of the reshaped kernel: 3 for a 3 x 3 kernel, and more where padding reflects the image.

How much is it, for layers as they are used? Each layer here is normalised by torch until its power iteration has
converged. Then its true norm at a given image size is bracketed: from below by the gain of one image, from above by a
proof (`lipcert.monitor.observe`).

Some rows need no computer. A 1 x 1 kernel, and a 4 x 4 kernel that moves by 4, read patches that do not overlap: there
the claim is right. And where the reshaped kernel has orthonormal columns, which it has after an orthogonal
initialisation with more output channels than numbers in a patch, every pixel is read by nine patches and kept by each:
the first layer of a BigGAN discriminator has norm *exactly* 3 before its first training step.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from lipcert.monitor import observe
from lipcert.report import format_down, format_up

STEPS = 30
"""Passes in training mode, each of ten power iterations, before a layer is read."""


def default(weight: torch.Tensor) -> None:
    """As torch initialises it."""


def positive(weight: torch.Tensor) -> None:
    """The same numbers without their sign: what a layer that blurs has, and the worst case."""
    weight.abs_()


def xavier(weight: torch.Tensor) -> None:
    """As many GANs initialise."""
    nn.init.xavier_uniform_(weight)


def orthogonal(weight: torch.Tensor) -> None:
    """As BigGAN initialises: the reshaped kernel has orthonormal columns, or rows."""
    nn.init.orthogonal_(weight)


@dataclass(frozen=True)
class Case:
    """A layer, how its weight starts, and the size of the square images it is applied to."""

    group: str
    name: str
    layer: Callable[[], nn.Module]
    size: int
    start: Callable[[torch.Tensor], None] = default


def conv(into: int, out: int, k: int, stride: int = 1, padding: int | None = None, **options: Any) -> Any:
    """What makes a convolution that keeps the size of an image, if nothing else is said."""
    return lambda: nn.Conv2d(into, out, k, stride, k // 2 if padding is None else padding, **options)


CASES = (
    Case("initialisation", "64->64 k3, default", conv(64, 64, 3), 32),
    Case("initialisation", "64->64 k3, Xavier", conv(64, 64, 3), 32, xavier),
    Case("initialisation", "64->64 k3, orthogonal", conv(64, 64, 3), 32, orthogonal),
    Case("initialisation", "64->64 k3, positive", conv(64, 64, 3), 32, positive),
    Case("initialisation", "3->64 k3, default", conv(3, 64, 3), 32),
    Case("initialisation", "3->64 k3, positive", conv(3, 64, 3), 32, positive),
    Case("size", "64->64 k3 at 4 px", conv(64, 64, 3), 4),
    Case("size", "64->64 k3 at 8 px", conv(64, 64, 3), 8),
    Case("size", "64->64 k3 at 64 px", conv(64, 64, 3), 64),
    Case("padding", "64->64 k3, circular", conv(64, 64, 3, padding_mode="circular"), 16),
    Case("padding", "4->4 k3, reflect, positive", conv(4, 4, 3, padding_mode="reflect"), 8, positive),
    Case("padding", "4->4 k3, replicate, positive", conv(4, 4, 3, padding_mode="replicate"), 8, positive),
    Case("kernel", "64->64 k5", conv(64, 64, 5), 32),
    Case("kernel", "32->32 k7, positive", conv(32, 32, 7), 32, positive),
    Case("kernel", "64->64 k3, dilation 2", conv(64, 64, 3, padding=2, dilation=2), 32),
    Case("kernel", "64->64 k3, depthwise", conv(64, 64, 3, groups=64), 32),
    Case("stride", "64->64 k3 s2", conv(64, 64, 3, 2), 32),
    Case("stride", "64->128 k4 s2", conv(64, 128, 4, 2, 1), 32),
    Case("stride", "64->128 k4 s2, positive", conv(64, 128, 4, 2, 1), 32, positive),
    Case("stride", "transposed 128->64 k4 s2", lambda: nn.ConvTranspose2d(128, 64, 4, 2, 1), 16),
    Case("patches do not overlap", "64->64 k4 s4", conv(64, 64, 4, 4, 0), 32),
    Case("patches do not overlap", "64->64 k1", conv(64, 64, 1), 32),
    Case("BigGAN, at step 0", "3->96 k3", conv(3, 96, 3), 32, orthogonal),
    Case("BigGAN, at step 0", "96->96 k3", conv(96, 96, 3), 32, orthogonal),
    Case("BigGAN, at step 0", "96->192 k3", conv(96, 192, 3), 16, orthogonal),
)


def normalised(case: Case, steps: int, seed: int) -> nn.Module:
    """The layer under torch's spectral_norm, once its power iteration has converged."""
    torch.manual_seed(seed)
    layer = case.layer()
    with torch.no_grad():
        case.start(layer.weight)
        layer = spectral_norm(layer.train(), n_power_iterations=10)
        for _ in range(steps):
            assert layer.weight is not None  # reading it is what iterates
    return layer.eval()


def measured(case: Case, steps: int, seed: int) -> dict[str, Any]:
    """The bracket of the true norm, and the norm of the reshaped kernel."""
    layer = normalised(case, steps, seed)
    (reading,) = observe(layer, input_sizes={"model": (case.size, case.size)})
    kernel = layer.weight.detach().double()
    if isinstance(layer, nn.ConvTranspose2d):
        kernel = kernel.transpose(0, 1)
    reshaped = float(torch.linalg.matrix_norm(kernel.flatten(1), 2))
    return {"group": case.group, "reshaped": reshaped, "lower": reading.lower, "upper": reading.upper}


def table(found: dict[str, dict[str, Any]], seconds: float) -> Table:
    """One row per layer."""
    shown = Table(
        title="Convolutions that torch's spectral_norm says have norm 1",
        caption=f"lower: the gain of one image; upper: proved; {seconds:.0f} s",
    )
    for heading in ("layer", "reshaped kernel", "norm >=", "norm <=", "claim"):
        shown.add_column(heading)
    group = ""
    for name, row in found.items():
        if row["group"] != group:
            group = row["group"]
            shown.add_section()
            shown.add_row(f"[bold]{group}[/bold]")
        verdict = "false" if row["lower"] > 1 + 1e-4 else "holds up to 1e-4" if row["upper"] <= 1 + 1e-4 else "unknown"
        ends = format_down(row["lower"], 5), format_up(row["upper"], 5)
        shown.add_row(f"  {name}", f"{row['reshaped']:.4f}", *ends, verdict)
    return shown


def plot(found: dict[str, dict[str, Any]]) -> Any:
    """A bar from 0 to the lower end, and its bracket to the upper one."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 0.24 * len(found) + 0.8), layout="constrained")
    axes = figure.subplots()
    names = list(found)
    lower, upper = ([found[name][end] for name in names] for end in ("lower", "upper"))
    groups = list(dict.fromkeys(row["group"] for row in found.values()))
    colours = [f"C{groups.index(found[name]['group'])}" for name in names]
    gaps = [high - low for low, high in zip(lower, upper, strict=True)]
    axes.barh(names, lower, color=colours, xerr=[[0.0] * len(gaps), gaps], error_kw={"elinewidth": 1.0})
    axes.axvline(1.0, color="black", linestyle="--", linewidth=0.8)
    axes.set_xlabel("norm of the convolution (dashed: what spectral_norm claims)")
    axes.tick_params(labelsize=7)
    axes.invert_yaxis()
    return figure


def main(
    steps: int = STEPS, seed: int = 0, out: Path | None = None, cases: tuple[Case, ...] = CASES
) -> dict[str, dict[str, Any]]:
    """Normalise, measure and print; returns the numbers of the table by layer."""
    start = time.perf_counter()
    found = {case.name: measured(case, steps, seed) for case in cases}
    Console().print(table(found, time.perf_counter() - start))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        plot(found).savefig(out / "what_does_spectral_norm_bound.png", dpi=150)
    return found


if __name__ == "__main__":
    main(out=Path("out"))
