"""Claims of other libraries, judged: proved, refuted by an exactly verified pair, or unknown with both numbers.

    python -m benchmarks.bench_claims [--seconds S] [--only TEXT]

Layers are judged as they come, in evaluation mode, after a few training-mode passes where the library asks for them.
Every claim is that the layer is 1-Lipschitz in l2. Peers are judged where they can be imported: ``pip install
deel-torchlip geotorch orthogonium``.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrizations as P

from benchmarks.versions import versions
from lipcert import parametrizations as ours
from lipcert.errors import LipcertError
from lipcert.falsify import Effort, Proved, Refuted, Unknown, lipcheck
from lipcert.report import format_down, format_up

Made = Callable[[], nn.Module]
PEERS = ("torch", "deel-torchlip", "geotorch", "orthogonium", "numpy", "python-flint")


def peer(module: str, name: str, *arguments: Any, **options: Any) -> Made:
    """A layer of another library, imported when it is made."""
    return lambda: getattr(import_module(module), name)(*arguments, **options)


def passed(layer: nn.Module, shape: tuple[int, ...], times: int = 50) -> nn.Module:
    """A layer after some passes in training mode, which let its power iteration converge."""
    layer.train()
    with torch.no_grad():
        for _ in range(times):
            layer(torch.randn(2, *shape))
    return layer.eval()


def ones() -> nn.Module:
    """A convolution whose kernel is all ones."""
    layer = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    nn.init.ones_(layer.weight)
    return layer


def geotorch_orthogonal(layer: nn.Module) -> nn.Module:
    """Changes a layer in place."""
    import_module("geotorch").orthogonal(layer, "weight")
    return layer


def claims() -> Iterator[tuple[str, Made, tuple[int, ...]]]:
    """Name, layer, shape of one input."""
    image, wide = (8, 12, 12), (64,)
    sn = P.spectral_norm
    yield "torch spectral_norm Linear(64, 64), 15 passes", lambda: passed(sn(nn.Linear(64, 64)), wide, 1), wide
    yield "torch spectral_norm Linear(64, 64), 65 passes", lambda: passed(sn(nn.Linear(64, 64)), wide), wide
    yield "torch spectral_norm Conv2d(8, 8, 3, padding=1)", lambda: passed(sn(nn.Conv2d(8, 8, 3, 1, 1)), image), image
    yield "torch spectral_norm Conv2d(8, 8, 3, stride=2)", lambda: passed(sn(nn.Conv2d(8, 8, 3, 2, 1)), image), image
    yield (
        "torch spectral_norm Conv2d(8, 8, 3, groups=4)",
        lambda: passed(sn(nn.Conv2d(8, 8, 3, 1, 1, groups=4)), image),
        image,
    )
    yield "torch spectral_norm Conv2d, kernel of ones", lambda: sn(ones()).eval(), (1, 8, 8)
    yield (
        "torch spectral_norm ConvTranspose2d(8, 4, 4, 2, 1)",
        lambda: passed(sn(nn.ConvTranspose2d(8, 4, 4, 2, 1)), (8, 6, 6)),
        (8, 6, 6),
    )
    yield "torch orthogonal Linear(64, 64)", lambda: P.orthogonal(nn.Linear(64, 64)), wide
    yield (
        "torch orthogonal Linear(64, 64), Cayley",
        lambda: P.orthogonal(nn.Linear(64, 64), orthogonal_map="cayley"),
        wide,
    )
    yield "torch orthogonal Conv2d(8, 8, 3, padding=1)", lambda: P.orthogonal(nn.Conv2d(8, 8, 3, 1, 1)), image
    yield "torch MaxPool2d(3, 2)", lambda: nn.MaxPool2d(3, 2), (1, 9, 9)
    yield "torch GELU", nn.GELU, (4,)
    yield "geotorch orthogonal Linear(64, 64)", lambda: geotorch_orthogonal(nn.Linear(64, 64)), wide
    yield "geotorch orthogonal Conv2d(8, 8, 3, padding=1)", lambda: geotorch_orthogonal(nn.Conv2d(8, 8, 3, 1, 1)), image
    yield from _deel()
    yield from _orthogonium()
    yield "lipcert spectral_norm Linear(64, 64)", lambda: ours.spectral_norm(nn.Linear(64, 64)), wide
    yield (
        "lipcert spectral_norm Conv2d(8, 8, 3, padding=1)",
        lambda: ours.spectral_norm(nn.Conv2d(8, 8, 3, 1, 1), input_size=(12, 12)),
        image,
    )
    yield (
        "lipcert spectral_norm Conv2d, kernel of ones",
        lambda: ours.spectral_norm(ones(), input_size=(8, 8)),
        (1, 8, 8),
    )
    yield "lipcert orthogonal Linear(64, 64)", lambda: ours.orthogonal(nn.Linear(64, 64)), wide
    yield (
        "lipcert orthogonal_convolution Conv2d(8, 8, 3, padding=1)",
        lambda: ours.orthogonal_convolution(nn.Conv2d(8, 8, 3, padding=1)),
        image,
    )
    yield "lipcert aol Conv2d(8, 8, 3, padding=1)", lambda: ours.aol(nn.Conv2d(8, 8, 3, 1, 1)), image


def _deel() -> Iterator[tuple[str, Made, tuple[int, ...]]]:
    deel, image = "deel.torchlip", (8, 12, 12)
    yield "deel SpectralLinear(64, 64)", lambda: passed(peer(deel, "SpectralLinear", 64, 64)(), (64,)), (64,)
    yield "deel FrobeniusLinear(64, 1)", lambda: passed(peer(deel, "FrobeniusLinear", 64, 1)(), (64,)), (64,)
    for options in (
        {"padding": 1},
        {"padding": 1, "padding_mode": "circular"},
        {"padding": 1, "padding_mode": "reflect"},
        {"stride": 2, "dilation": 2},
        {"stride": 3, "dilation": 3},
    ):
        told = ", ".join(f"{key}={value}" for key, value in options.items())
        spectral = peer(deel, "SpectralConv2d", 1, 9, 3, **options)
        yield f"deel SpectralConv2d(1, 9, 3, {told})", lambda f=spectral: passed(f(), (1, 24, 24)), (1, 24, 24)
    yield "deel ScaledAvgPool2d(2)", peer(deel, "ScaledAvgPool2d", 2), image
    yield "deel ScaledL2NormPool2d(2)", peer(deel, "ScaledL2NormPool2d", 2), image
    yield "deel GroupSort(2)", peer(deel, "GroupSort", 2), (8,)


def _orthogonium() -> Iterator[tuple[str, Made, tuple[int, ...]]]:
    layers, image = "orthogonium.layers", (8, 12, 12)
    yield "orthogonium OrthoLinear(64, 64)", peer(f"{layers}.linear", "OrthoLinear", 64, 64), (64,)
    for mode in ("zeros", "circular", "reflect"):
        options = {"padding": 1, "padding_mode": mode}
        adaptive = peer(f"{layers}.conv.AOC", "AdaptiveOrthoConv2d", 8, 8, 3, **options)
        yield f"orthogonium AdaptiveOrthoConv2d(8, 8, 3, {mode})", adaptive, image
        aol = peer(f"{layers}.conv.AOL", "AOLConv2D", 8, 8, 3, **options)
        yield f"orthogonium AOLConv2D(8, 8, 3, {mode})", aol, image


def row(name: str, make: Made, shape: tuple[int, ...], seconds: float) -> tuple[str, str, str, str]:
    """One line of the table."""
    torch.manual_seed(0)
    try:
        verdict = lipcheck(make().eval(), shape, 1.0, effort=Effort(seconds))
    except (LipcertError, ImportError, TypeError) as reason:
        return name, f"refused ({type(reason).__name__})", "", str(reason).splitlines()[0][:60]
    match verdict:
        case Proved(certificate=certificate):
            return name, "PROVED", "", f"at most {format_up(certificate.bound, 9)}"
        case Refuted(witness=pair, steepest=steepest):
            entries = int(pair.y.count_nonzero() + pair.x.count_nonzero())
            return name, "REFUTED", f"at least {format_down(steepest, 9)}", f"pair of {entries} entries, exact"
        case Unknown(witness=pair, upper=upper):
            return name, "UNKNOWN", f"seen {format_down(pair.ratio, 9)}", f"at most {format_up(upper, 9)}"


def main() -> None:
    """Print the table as markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="of search for every claim")
    parser.add_argument("--only", default="")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(versions(*PEERS))
    print("\n| claim: 1-Lipschitz in l2 | verdict | below | evidence |\n|---|---|---|---|", flush=True)
    for name, make, shape in claims():
        if asked.only in name:
            print("| " + " | ".join(row(name, make, shape, asked.seconds)) + " |", flush=True)


if __name__ == "__main__":
    main()
