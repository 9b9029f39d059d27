"""Convolutions, poolings and batch normalisation of ONNX: windows as its definitions place them. Floor 4."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import torch
from torch.nn import functional as F

from lipcert.frontends.onnx_operation import Operation, understands
from lipcert.linear import Shape
from lipcert.lowering import Value, lower
from lipcert.rules.convolution import convolve, transpose_convolve
from lipcert.rules.pooling import Window, factor, max_windows, separable


class Axis(NamedTuple):
    """A window's way along one axis: output ``i`` reads ``i * stride - before + j * dilation`` for taps ``j``."""

    kernel: int
    stride: int
    dilation: int
    before: int
    after: int

    @property
    def reach(self) -> int:
        """Positions from the first tap to the last, both included."""
        return (self.kernel - 1) * self.dilation + 1


def _axes(op: Operation, sizes: Shape, kernel: list[int]) -> list[Axis]:
    """The window along every spatial axis, padding resolved."""
    n, auto = len(sizes), op.option("auto_pad")
    strides, dilations = op.integers("strides") or [1] * n, op.integers("dilations") or [1] * n
    pads = op.integers("pads")
    if pads is not None and auto != "NOTSET" and any(pads):
        raise op.refused(f"has both pads {pads} and auto_pad={auto}")
    pads = pads or [0] * 2 * n
    if {len(kernel), len(strides), len(dilations)} != {n} or len(pads) != 2 * n or min(pads) < 0:
        raise op.refused(f"has kernel {kernel}, strides {strides}, dilations {dilations}, pads {pads} for {sizes}")
    found = []
    for d, size in enumerate(sizes):
        axis = Axis(kernel[d], strides[d], dilations[d], pads[d], pads[n + d])
        found.append(_padded(op, axis, size, auto))
    return found


def _padded(op: Operation, axis: Axis, size: int, auto: str) -> Axis:
    """SAME pads so that there are ``ceil(size / stride)`` outputs; an odd amount is larger on the named side."""
    if auto in ("NOTSET", "VALID"):
        return axis
    if auto not in ("SAME_UPPER", "SAME_LOWER"):
        raise op.refused(f"pads by {auto!r}")
    total = max(0, (-(-size // axis.stride) - 1) * axis.stride + axis.reach - size)
    small, large = total // 2, total - total // 2
    before, after = (small, large) if auto == "SAME_UPPER" else (large, small)
    return axis._replace(before=before, after=after)


def _kernel(op: Operation, shape: Shape) -> list[int]:
    """The kernel's sizes, which an attribute may repeat."""
    given = op.integers("kernel_shape")
    if given is not None and given != list(shape):
        raise op.refused(f"has kernel_shape {given} and a weight with the kernel {list(shape)}")
    return list(shape)


@understands("Conv", 1, 11, 22)
def _conv(op: Operation) -> Value:
    x, weight = op.value(), op.weight(1)
    if weight is None or weight.ndim != len(x.shape) + 1 or not 3 <= weight.ndim <= 5:
        raise op.refused(f"convolves samples {x.shape} by something else than a kernel in one to three dimensions")
    axes = _axes(op, x.shape[1:], _kernel(op, tuple(weight.shape[2:])))
    pads = tuple((axis.before, axis.after) for axis in axes)
    strides, dilations = tuple(axis.stride for axis in axes), tuple(axis.dilation for axis in axes)
    return convolve(x, weight, op.weight(2), strides, pads, dilations, op.option("group"), "zeros")


@understands("ConvTranspose", 1, 11, 22)
def _conv_transpose(op: Operation) -> Value:
    x, weight = op.value(), op.weight(1)
    if weight is None or weight.ndim != len(x.shape) + 1 or not 3 <= weight.ndim <= 5:
        raise op.refused(f"convolves samples {x.shape} by something else than a kernel in one to three dimensions")
    if op.integers("output_shape") is not None or op.option("auto_pad") not in ("NOTSET", "VALID"):
        raise op.refused("derives its pads from output_shape or auto_pad, which evaluators read differently")
    axes = _axes(op, x.shape[1:], _kernel(op, tuple(weight.shape[2:])))
    pads = tuple((axis.before, axis.after) for axis in axes)
    strides, dilations = tuple(axis.stride for axis in axes), tuple(axis.dilation for axis in axes)
    extra = tuple(op.integers("output_padding") or [0] * len(axes))
    return transpose_convolve(x, weight, op.weight(2), strides, pads, extra, op.option("group"), dilations)


def _placed(op: Operation, axis: Axis, size: int) -> list[int]:
    """The first position of every window, which may lie in the padding."""
    span = size + axis.before + axis.after - axis.reach
    if span < 0:
        raise op.refused(f"pools {size} positions by windows of {axis.reach}")
    count = span // axis.stride + 1
    if op.option("ceil_mode") and span % axis.stride:
        if count * axis.stride < size + axis.before:
            count += 1
        elif op.version < 22:
            raise op.refused("has a last window that starts in the padding, which its version does not define")
    return [i * axis.stride - axis.before for i in range(count)]


def _pooling(op: Operation, x: Value) -> list[Axis]:
    kernel = op.integers("kernel_shape") or []
    if len(x.shape) < 2:
        raise op.refused(f"pools samples of shape {x.shape}")
    return _axes(op, x.shape[1:], kernel)


@understands("MaxPool", 1, 8, 10, 11, 12, 22)
def _max_pool(op: Operation) -> Value:
    x = op.value()
    op.ignore("storage_order")  # the order of the indices, which are not read
    windows: list[list[Window] | None] = [None]
    for axis, size in zip(_pooling(op, x), x.shape[1:], strict=True):
        found = []
        for start in _placed(op, axis, size):
            # A window that starts in the padding begins at its first tap inside the input.
            first = start if start >= 0 else start % axis.dilation
            found.append((first, min(start + axis.reach, size), axis.dilation))
        if any(first >= stop for first, stop, _ in found):
            raise op.refused("has a window that lies in the padding")
        windows.append(found)
    return max_windows(x, windows)


@understands("AveragePool", 7, 10, 11, 19, 22)
def _average_pool(op: Operation) -> Value:
    """Divided by the taps inside the input, unless padding counts (it does not by default)."""
    x, with_padding = op.value(), bool(op.option("count_include_pad"))
    factors = {}
    for d, (axis, size) in enumerate(zip(_pooling(op, x), x.shape[1:], strict=True), start=1):
        rows = []
        for start in _placed(op, axis, size):
            taps = range(start, start + axis.reach, axis.dilation)
            inside = [tap for tap in taps if 0 <= tap < size]
            if not inside or (with_padding and taps[-1] >= size + axis.after):
                raise op.refused("has a window beyond the padding, whose divisor evaluators count differently")
            rows.append(dict.fromkeys(inside, Fraction(1, axis.kernel if with_padding else len(inside))))
        factors[d] = factor(rows, size)
    return separable(x, factors)


def _spatial(op: Operation) -> list[int]:
    if len(op.value().shape) < 2:
        raise op.refused(f"pools samples of shape {op.value().shape}")
    return list(range(2, len(op.value().shape) + 1))


@understands("GlobalAveragePool", 1, 22)
def _global_average_pool(op: Operation) -> Value:
    return lower(torch.mean, op.value(), _spatial(op), True)


@understands("GlobalMaxPool", 1, 22)
def _global_max_pool(op: Operation) -> Value:
    return lower(torch.amax, op.value(), _spatial(op), True)


@understands("BatchNormalization", 9, 14, 15)
def _batch_normalization(op: Operation) -> Value:
    if len(op.outputs) > 1 or op.option("training_mode"):
        raise op.refused("normalises by the statistics of the batch; export in evaluation mode")
    op.ignore("momentum")
    scale, bias, mean, variance = (op.weight(position) for position in range(1, 5))
    return lower(F.batch_norm, op.value(), mean, variance, scale, bias, False, eps=op.option("epsilon"))
