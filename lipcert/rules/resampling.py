"""Padding and upsampling: selections, or exact rational interpolation. Floor 3."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from lipcert.errors import InvalidInput, UnsupportedOperation
from lipcert.lowering import Value, lowers
from lipcert.rules.arithmetic import shifted
from lipcert.rules.convolution import per_dimension
from lipcert.rules.pooling import adaptive_average_pool, factor, separable
from lipcert.rules.structure import rearrange

_LINEAR = {"linear": 1, "bilinear": 2, "trilinear": 3}
_NEAREST = ("nearest", "nearest-exact")


@lowers(F.pad)
def pad(input: Value, pad: Any, mode: str = "constant", value: float | None = None) -> Value:
    """Zeros, a constant, or entries of the input around each sample."""
    amounts = list(pad)
    if len(amounts) > 2 * len(input.shape) or not all(type(amount) is int for amount in amounts):
        raise UnsupportedOperation(f"`{input.path}` pads samples {input.shape} by {amounts}.", path=input.path)
    padded = rearrange(input, lambda positions: F.pad(positions, amounts, mode))
    if mode != "constant" or not value:
        return padded
    border = F.pad(torch.zeros(input.shape, dtype=torch.float64), amounts, value=float(value))
    return shifted(padded, border)


def _pad_modules(mode: str, *modules: type[nn.Module]) -> None:
    @lowers(*modules)
    def rule(module: Any, input: Value) -> Value:
        return _pad(input, module.padding, mode, vars(module).get("value"))


_pad = pad
_pad_modules("constant", nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)
_pad_modules("reflect", nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d)
_pad_modules("replicate", nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d)
_pad_modules("circular", nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d)


@lowers(F.interpolate)
def interpolate(
    input: Value,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Value:
    """Nearest or linear upsampling, or averaging (``area``)."""
    dimensions = len(input.shape) - 1
    if antialias or dimensions < 1 or (mode in _LINEAR and _LINEAR[mode] != dimensions):
        raise UnsupportedOperation(
            f"`{input.path}` interpolates samples {input.shape} by {mode!r}"
            f"{', antialiased' if antialias else ''}; that does not fit or is not covered.",
            path=input.path,
        )
    if mode in _NEAREST:
        # torch computes the positions in float32; watching it move them is the only faithful reading.
        arguments = {"size": size, "scale_factor": scale_factor, "recompute_scale_factor": recompute_scale_factor}
        return rearrange(input, lambda positions: F.interpolate(positions, mode=mode, **arguments))
    sizes, steps = _target(input, dimensions, size, scale_factor, bool(recompute_scale_factor))
    if mode == "area":
        return adaptive_average_pool(input, dimensions, sizes)
    if mode not in _LINEAR:
        raise UnsupportedOperation(
            f"`{input.path}` interpolates by {mode!r}; nearest, linear and area are covered.", path=input.path
        )
    factors = {}
    for dim, (target, step) in enumerate(zip(sizes, steps, strict=True), start=1):
        rows = [_row(i, input.shape[dim], target, step, bool(align_corners)) for i in range(target)]
        factors[dim] = factor(rows, input.shape[dim])
    return separable(input, factors)


def _row(i: int, size: int, target: int, step: Fraction, align_corners: bool) -> dict[int, Fraction]:
    """The two neighbours that output position i reads, with their weights."""
    if align_corners:
        place = Fraction(i * (size - 1), target - 1) if target > 1 else Fraction(0)
    else:
        place = max(Fraction(0), (i + Fraction(1, 2)) * step - Fraction(1, 2))
    left = min(math.floor(place), size - 1)
    right = min(left + 1, size - 1)
    weight = place - left
    return {left: Fraction(1)} if left == right or weight == 0 else {left: 1 - weight, right: weight}


def _target(
    x: Value, dimensions: int, size: Any, scale_factor: Any, recompute: bool
) -> tuple[list[int], list[Fraction]]:
    """Output sizes, and how far apart in the input two neighbouring outputs are."""
    sources = x.shape[1:]
    if (size is None) == (scale_factor is None):
        raise InvalidInput(f"`{x.path}` needs either size or scale_factor.")
    if size is not None:
        sizes = list(per_dimension(size, dimensions))
        return sizes, [Fraction(n, m) for n, m in zip(sources, sizes, strict=True)]
    given = [scale_factor] * dimensions if isinstance(scale_factor, int | float) else list(scale_factor)
    scales = [Fraction(scale) for scale in given]
    if any(scale <= 0 or scale.denominator > 2**10 for scale in scales):
        raise UnsupportedOperation(
            f"`{x.path}` interpolates by the factors {given}, which are not short binary fractions, so positions are "
            f"rounded; give size instead.",
            path=x.path,
        )
    sizes = [math.floor(n * scale) for n, scale in zip(sources, scales, strict=True)]
    # What keeps its size is copied, whatever the factor.
    steps = [
        Fraction(n, m) if recompute or n == m else 1 / scale for n, m, scale in zip(sources, sizes, scales, strict=True)
    ]
    return sizes, steps


@lowers(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d)
def upsample_module(module: nn.Upsample, input: Value) -> Value:
    """`interpolate` with the module's arguments."""
    return interpolate(
        input, module.size, module.scale_factor, module.mode, module.align_corners, module.recompute_scale_factor
    )
