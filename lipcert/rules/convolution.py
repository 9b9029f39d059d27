"""Convolutions and transposed convolutions in one to three dimensions. Floor 3."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lipcert.errors import InvalidInput, UnsupportedOperation
from lipcert.linear import Adjoint, Conv, Shape
from lipcert.lowering import Value, affine, lowers


def per_dimension(value: Any, dimensions: int) -> Shape:
    """A number for every dimension, or one number per dimension, as torch reads it."""
    entries = (value,) if isinstance(value, int) else tuple(value)
    return entries * dimensions if len(entries) == 1 else entries


def convolve(
    x: Value, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int, mode: str
) -> Value:
    """Record a convolution with torch's arguments; ``padding`` may be ``same``, ``valid``, or a pair per dimension."""
    dimensions = weight.ndim - 2
    if len(x.shape) != dimensions + 1 or x.shape[0] != weight.shape[1] * groups:
        raise _misfit(x, weight, groups)
    stride, dilation = per_dimension(stride, dimensions), per_dimension(dilation, dimensions)
    pads = _pads(padding, weight.shape[2:], dilation)
    out_sizes = tuple(
        (size + sum(pad) - d * (k - 1) - 1) // s + 1
        for size, pad, d, k, s in zip(x.shape[1:], pads, dilation, weight.shape[2:], stride, strict=True)
    )
    limit = {"circular": 0, "reflect": -1}.get(mode)
    too_wide = limit is not None and any(max(pad) > size + limit for pad, size in zip(pads, x.shape[1:], strict=True))
    if min(out_sizes) < 1 or too_wide:
        raise InvalidInput(
            f"`{x.path}` has a kernel {tuple(weight.shape[2:])} or {mode} padding {pads} too large for {x.shape}."
        )
    conv = Conv(weight, x.shape, out_sizes, stride, pads, dilation, groups, mode)
    return affine(x, conv, _per_channel(bias, dimensions))


def _pads(padding: Any, kernel: Shape, dilation: Shape) -> tuple[tuple[int, int], ...]:
    if padding == "valid":
        return ((0, 0),) * len(kernel)
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return tuple((amount // 2, amount - amount // 2) for amount in total)
    entries = per_dimension(padding, len(kernel))
    return tuple((entry, entry) if isinstance(entry, int) else (entry[0], entry[1]) for entry in entries)


def transpose_convolve(
    x: Value, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, extra: Any, groups: int, dilation: Any
) -> Value:
    """Record a transposed convolution: the transpose of the convolution from its output to its input.

    ``padding`` may be a pair per dimension.
    """
    dimensions = weight.ndim - 2
    if len(x.shape) != dimensions + 1 or x.shape[0] != weight.shape[0]:
        raise _misfit(x, weight, 1)
    stride, extra, dilation = (per_dimension(v, dimensions) for v in (stride, extra, dilation))
    pads = _pads(padding, weight.shape[2:], dilation)
    sizes = tuple(
        (size - 1) * s - sum(p) + d * (k - 1) + e + 1
        for size, s, p, d, k, e in zip(x.shape[1:], stride, pads, dilation, weight.shape[2:], extra, strict=True)
    )
    if min(sizes) < 1:
        raise InvalidInput(f"`{x.path}` produces the sizes {sizes}; padding {padding} is too large.")
    conv = Conv(weight, (weight.shape[1] * groups, *sizes), x.shape[1:], stride, pads, dilation, groups, "zeros")
    return affine(x, Adjoint(conv), _per_channel(bias, dimensions))


def _per_channel(bias: Tensor | None, dimensions: int) -> Tensor | None:
    return None if bias is None else bias.reshape(-1, *[1] * dimensions)


def _misfit(x: Value, weight: Tensor, groups: int) -> InvalidInput:
    return InvalidInput(
        f"`{x.path}` applies a kernel of shape {tuple(weight.shape)} in {groups} group(s) to samples of shape "
        f"{x.shape}; samples need the channels and then {weight.ndim - 2} spatial dimension(s)."
    )


@lowers(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def conv_module(module: nn.Conv2d, input: Value) -> Value:
    """`convolve` with the module's weight and padding mode."""
    if module.padding_mode not in ("zeros", "circular", "reflect", "replicate"):
        raise UnsupportedOperation(f"`{input.path}` pads by {module.padding_mode!r}.", path=input.path)
    return convolve(
        input,
        module.weight,
        module.bias,
        module.stride,
        module.padding,
        module.dilation,
        module.groups,
        module.padding_mode,
    )


@lowers(F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d)
def conv(
    input: Value,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Value:
    """`convolve` with zero padding."""
    return convolve(input, weight, bias, stride, padding, dilation, groups, "zeros")


@lowers(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
def conv_transpose_module(module: nn.ConvTranspose2d, input: Value, output_size: Any = None) -> Value:
    """`transpose_convolve` with the module's weight."""
    if output_size is not None or module.padding_mode != "zeros":
        raise UnsupportedOperation(
            f"`{input.path}` is called with output_size, or pads by {module.padding_mode!r}; give output_padding to "
            f"the constructor instead.",
            path=input.path,
        )
    return transpose_convolve(
        input,
        module.weight,
        module.bias,
        module.stride,
        module.padding,
        module.output_padding,
        module.groups,
        module.dilation,
    )


@lowers(
    F.conv_transpose1d,
    F.conv_transpose2d,
    F.conv_transpose3d,
    torch.conv_transpose1d,
    torch.conv_transpose2d,
    torch.conv_transpose3d,
)
def conv_transpose(
    input: Value,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Value:
    """`transpose_convolve` with torch's arguments."""
    return transpose_convolve(input, weight, bias, stride, padding, output_padding, groups, dilation)
