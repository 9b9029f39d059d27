"""Which input each tap of a convolution reads, one dimension at a time. Floor 2; no weights here.

A convolution's geometry is a product over dimensions, so everything here is about one dimension.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lipcert.errors import InvalidInput
from lipcert.kernel.rounding import Array
from lipcert.linear import Conv


@dataclass(frozen=True)
class Axis:
    """One dimension of a convolution: output i, tap j read input ``i * stride + j * dilation - before``."""

    taps: int
    stride: int
    dilation: int
    inputs: int
    outputs: int
    before: int
    mode: str


@dataclass(frozen=True)
class Line:
    """One dimension of a convolution without dilation: output i in ``[0, outputs)``, tap j read ``i * stride + j``.

    Inputs live at positions ``[first, last)``; everywhere else a zero is read.
    """

    taps: int
    stride: int
    first: int
    last: int
    outputs: int

    @property
    def torus(self) -> int:
        """The smallest number of stride steps around a torus on which no tap meets an input the line does not read."""
        end = (self.outputs - 1) * self.stride + self.taps
        return -(-max(self.last, end - self.first, (self.outputs - 1) * self.stride + 1) // self.stride)

    def reads(self) -> Array:
        """``(outputs, taps)``: the input read, counted from ``first``, or -1."""
        position = np.arange(self.outputs)[:, None] * self.stride + np.arange(self.taps)
        return np.where((position >= self.first) & (position < self.last), position - self.first, -1)


def axes(conv: Conv) -> list[Axis]:
    """The dimensions of a convolution."""
    kernel, sizes = conv.weight.shape[2:], conv.in_shape[1:]
    befores = [before for before, _ in conv.padding]
    rows = zip(kernel, conv.stride, conv.dilation, sizes, conv.out_sizes, befores, strict=True)
    # Python integers from here on: exact arithmetic must not meet a numpy integer, which overflows.
    return [
        Axis(int(k), int(s), int(d), int(n), int(out), int(before), conv.padding_mode)
        for k, s, d, n, out, before in rows
    ]


def reads(axis: Axis) -> Array:
    """``(outputs, taps)``: the input position each tap reads, or -1 for a zero.

    Raises:
        InvalidInput: If the padding mode is unknown.
    """
    n = axis.inputs
    taps = np.arange(axis.taps) * axis.dilation - axis.before
    position = np.arange(axis.outputs)[:, None] * axis.stride + taps
    match axis.mode:
        case "zeros":
            return np.where((position >= 0) & (position < n), position, -1)
        case "circular":
            return position % n
        case "reflect":
            reflected = np.abs(position)
            return np.where(reflected >= n, 2 * (n - 1) - reflected, reflected)
        case "replicate":
            return np.clip(position, 0, n - 1)
        case _:
            raise InvalidInput(f"padding mode {axis.mode!r} is not zeros, circular, reflect or replicate.")


def most_copies(targets: Array) -> int:
    """How often the most frequent non-negative number occurs."""
    used = targets[targets >= 0]
    return int(np.max(np.unique(used, return_counts=True)[1])) if used.size else 0


def lines(axis: Axis) -> list[Line]:
    """Split a zero-padded dimension into lines that share neither inputs nor outputs; none contains another.

    With g the common divisor of stride and dilation only every g-th input is read. Then outputs congruent modulo
    the dilation read inputs of one residue class each, and taps are neighbours within it. The norm is the largest
    over the lines, and a line that is part of another cannot have the larger norm.
    """
    g = math.gcd(axis.stride, axis.dilation)
    stride, dilation = axis.stride // g, axis.dilation // g
    first, last = -(-axis.before // g), (axis.inputs - 1 + axis.before) // g + 1
    found: set[Line] = set()
    for residue in range(min(dilation, axis.outputs)):
        start = residue * stride  # position = dilation * (i * stride + j) + start
        outputs = -(-(axis.outputs - residue) // dilation)
        end = (outputs - 1) * stride + axis.taps
        low = max(0, -(-(first - start) // dilation))
        high = min(end, -(-(last - start) // dilation))
        if low < high:
            found.add(Line(axis.taps, stride, low, high, outputs))
    return [line for line in found if not any(line != other and _contains(other, line) for other in found)]


def cover(parts: list[Line]) -> Line:
    """A line of which all ``parts`` are restrictions."""
    taps, stride = parts[0].taps, parts[0].stride
    first, last = min(line.first for line in parts), max(line.last for line in parts)
    return Line(taps, stride, first, last, max(line.outputs for line in parts))


def _contains(outer: Line, inner: Line) -> bool:
    return outer.first <= inner.first and inner.last <= outer.last and inner.outputs <= outer.outputs
