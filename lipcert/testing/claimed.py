"""Layers with the constant that they claim, as values that print as the python that makes them. Floor 6."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lipcert import parametrizations
from lipcert.linear import Shape


@dataclass(frozen=True, repr=False)
class Claimed:
    """A layer, and the constant in l2 that it claims in evaluation.

    Attributes:
        source: Python that makes the layer, from `torch.nn` as ``nn`` and the names of `lipcert.parametrizations`.
            It is evaluated: write only what you would run.
        bound: The claim.
        input_shape: Shape of one sample.
        seed: Of the random numbers that the layer is initialised with.
        scale: What every parameter is multiplied by afterwards, which must not matter to the claim.

    Example:
        >>> claimed = Claimed("aol(nn.Linear(3, 2))", 1.0, (3,))
        >>> type(claimed.to_module()).__name__, eval(repr(claimed)) == claimed
        ('ParametrizedLinear', True)
    """

    source: str
    bound: float
    input_shape: Shape
    seed: int = 0
    scale: float = 1.0

    def to_module(self) -> nn.Module:
        """The layer in evaluation mode; the global random state is left alone."""
        names = {name: getattr(parametrizations, name) for name in parametrizations.__all__}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            module = eval(self.source, {"nn": nn, **names})
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(self.scale)
        return module.eval()

    def __repr__(self) -> str:
        """Print the call."""
        rest = [f"{name}={value!r}" for name, value, usual in self._rest() if value != usual]
        return f"Claimed({', '.join([*map(repr, (self.source, self.bound, self.input_shape)), *rest])})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What hypothesis and IPython print."""
        printer.text(repr(self))

    def _rest(self) -> tuple[tuple[str, float, float], ...]:
        return (("seed", self.seed, 0), ("scale", self.scale, 1.0))


@dataclass(frozen=True)
class Family:
    """Layers of one kind: their source, the shape of a sample and the largest number for each gap in the two."""

    source: str
    input_shape: tuple[str, ...]
    most: Mapping[str, int]


_FLAT = {"into": 6, "out": 6}
_CONV = {"into": 3, "out": 4, "h": 5, "w": 5}
_IMAGE = ("{into}", "{h} + 2", "{w} + 2")


def _linear(source: str) -> Family:
    """A layer of features; ``{bound}`` is a gap too."""
    return Family(source, ("{into}",), _FLAT)


def _conv(source: str) -> Family:
    return Family(source, _IMAGE, _CONV)


CLAIMS: dict[str, Family] = {
    "spectral_norm linear": _linear("spectral_norm(nn.Linear({into}, {out}), bound={bound})"),
    "spectral_norm linear, everywhere": _linear(
        "spectral_norm(nn.Linear({into}, {out}), bound={bound}, level=Everywhere())"
    ),
    "spectral_norm linear, soft": _linear("spectral_norm(nn.Linear({into}, {out}), bound={bound}, cap=Soft())"),
    "spectral_norm linear, gain": _linear("spectral_norm(nn.Linear({into}, {out}), bound={bound}, gain=Gain(0.5))"),
    "spectral_norm conv": _conv(
        "spectral_norm(nn.Conv2d({into}, {out}, 3, padding=1), bound={bound}, input_size=({h} + 2, {w} + 2))"
    ),
    "spectral_norm conv, strided": _conv("spectral_norm(nn.Conv2d({into}, {out}, 3, stride=2), bound={bound})"),
    "spectral_norm conv, circular": _conv(
        "spectral_norm(nn.Conv2d({into}, {out}, 3, padding=1, padding_mode='circular'), bound={bound})"
    ),
    "spectral_norm transposed conv": _conv(
        "spectral_norm(nn.ConvTranspose2d({into}, {out}, 2, stride=2), bound={bound}, input_size=({h} + 2, {w} + 2))"
    ),
    "orthogonal, Cayley": _linear("orthogonal(nn.Linear({into}, {out}), map=Cayley())"),
    "orthogonal, Householder": _linear("orthogonal(nn.Linear({into}, {out}), map=Householder())"),
    "orthogonal, QR": _linear("orthogonal(nn.Linear({into}, {out}), map=QR())"),
    "orthogonal, Exponential": _linear("orthogonal(nn.Linear({into}, {out}), map=Exponential())"),
    "orthogonal, Bjorck": _linear("orthogonal(nn.Linear({into}, {out}), map=Bjorck())"),
    "orthogonal_convolution": _conv("orthogonal_convolution(nn.Conv2d({into}, {out}, 3, padding=1))"),
    "aol linear": _linear("aol(nn.Linear({into}, {out}), bound={bound})"),
    "aol conv": _conv("aol(nn.Conv2d({into}, {out}, 3, padding=1), bound={bound})"),
    "SLLLinear": Family("SLLLinear({into}, {hidden})", ("{into}",), {"into": 6, "hidden": 6}),
    "CPLLinear": Family("CPLLinear({into}, {hidden})", ("{into}",), {"into": 6, "hidden": 6}),
    "SandwichLinear": _linear("SandwichLinear({into}, {out})"),
}
"""The claims that `lipschitz_modules` draws from. A new layer is one entry.

Of `SLLLinear`, `CPLLinear` and `SandwichLinear` the claim rests on the construction, and `lipcert.certify` proves a
looser constant; all others are proved at their claim.
"""
