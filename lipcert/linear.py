"""Structured linear maps, as values. Floor 1: torch only.

A map keeps its structure (kernel, stride, windows), so that operator norms can use it; `apply` and `dense`
are there for replay and for tests. Shapes exclude the batch dimension; weights are float64 tensors that hold the
user's weights exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import assert_never

import torch
import torch.nn.functional as F
from torch import Tensor

Shape = tuple[int, ...]

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@dataclass(frozen=True, eq=False)
class Dense:
    """``x -> x @ weight.T`` on the last dimension, the same at every leading position.

    Attributes:
        weight: Shape ``(out, in)``.
        in_shape: ``(*positions, in)``.
    """

    weight: Tensor
    in_shape: Shape

    @property
    def out_shape(self) -> Shape:
        """``(*positions, out)``."""
        return (*self.in_shape[:-1], self.weight.shape[0])


@dataclass(frozen=True, eq=False)
class Conv:
    """A cross-correlation as torch defines it, in one, two or three spatial dimensions.

    Output position ``i`` reads, per dimension, inputs ``i * stride + j * dilation - padding[0]`` for taps ``j``;
    ``padding_mode`` says what a position outside the input reads: ``zeros``, ``circular``, ``reflect``, ``replicate``.

    Attributes:
        weight: Shape ``(out channels, in channels / groups, *kernel)``.
        in_shape: ``(in channels, *sizes)``.
        out_sizes: Output positions kept per dimension (the first ones; normally all).
        stride: Per dimension.
        padding: ``(before, after)`` per dimension.
        dilation: Per dimension.
        groups: Number of channel groups.
        padding_mode: One of the four modes above.
    """

    weight: Tensor
    in_shape: Shape
    out_sizes: Shape
    stride: Shape
    padding: tuple[tuple[int, int], ...]
    dilation: Shape
    groups: int
    padding_mode: str

    @property
    def out_shape(self) -> Shape:
        """``(out channels, *out_sizes)``."""
        return (self.weight.shape[0], *self.out_sizes)


@dataclass(frozen=True, eq=False)
class Adjoint:
    """The transpose of a convolution with zero padding: torch's transposed convolution."""

    conv: Conv

    @property
    def in_shape(self) -> Shape:
        """The convolution's output shape."""
        return self.conv.out_shape

    @property
    def out_shape(self) -> Shape:
        """The convolution's input shape."""
        return self.conv.in_shape


@dataclass(frozen=True, eq=False)
class Diagonal:
    """Elementwise multiplication by ``scale``, which broadcasts to ``in_shape`` (per channel: ``(C, 1, 1)``)."""

    scale: Tensor
    in_shape: Shape

    @property
    def out_shape(self) -> Shape:
        """The input shape."""
        return self.in_shape


@dataclass(frozen=True, eq=False)
class Selection:
    """``y[i] = x[index[i]]`` on flattened tensors, and 0 where ``index[i] = -1``.

    Permutation, slicing, indexing, padding and pixel shuffling are all of this form.

    Attributes:
        index: Shape ``out_shape``, int64, entries in ``[-1, numel(in_shape))``.
        in_shape: Input shape.
    """

    index: Tensor
    in_shape: Shape

    @property
    def out_shape(self) -> Shape:
        """The shape of ``index``."""
        return tuple(self.index.shape)


@dataclass(frozen=True, eq=False)
class Reshape:
    """The same numbers in the same order under another shape."""

    in_shape: Shape
    out_shape: Shape


@dataclass(frozen=True, eq=False)
class Factor:
    """An exact rational matrix ``numerator / denominator`` of shape ``(out, in)`` acting on one dimension.

    Attributes:
        numerator: int64.
        denominator: Positive integer.
    """

    numerator: Tensor
    denominator: int


@dataclass(frozen=True, eq=False)
class Separable:
    """A Kronecker product: one exact rational matrix per dimension (``None`` leaves the dimension alone).

    Average pooling, mean and sum, nearest and linear upsampling, and padding act this way.

    Attributes:
        factors: One per dimension of ``in_shape``.
        in_shape: Input shape.
    """

    factors: tuple[Factor | None, ...]
    in_shape: Shape

    @property
    def out_shape(self) -> Shape:
        """The input shape with each dimension as its factor leaves it."""
        return tuple(
            size if factor is None else factor.numerator.shape[0]
            for size, factor in zip(self.in_shape, self.factors, strict=True)
        )


LinearMap = Dense | Conv | Adjoint | Diagonal | Selection | Reshape | Separable
"""Closed: a new kind of map needs an operator norm, a place in the document and a case in the checker."""


def apply(linear: LinearMap, x: Tensor) -> Tensor:
    """Apply a map to a batch ``(N, *in_shape)``, giving ``(N, *out_shape)``.

    Example:
        >>> apply(Reshape((2, 2), (4,)), torch.ones(3, 2, 2)).shape
        torch.Size([3, 4])
    """
    match linear:
        case Dense(weight):
            return x @ weight.to(x).T
        case Conv():
            return _convolve(linear, x)
        case Adjoint(conv):
            return _convolve_transposed(conv, x)
        case Diagonal(scale):
            return x * scale.to(x)
        case Selection(index):
            flat = torch.cat([x.flatten(1), x.new_zeros(len(x), 1)], dim=1)
            return flat[:, index.to(x.device).flatten()].reshape(len(x), *linear.out_shape)
        case Reshape():
            return x.reshape(len(x), *linear.out_shape)
        case Separable(factors):
            for dim, factor in enumerate(factors, start=1):
                if factor is not None:
                    matrix = factor.numerator.to(x) / factor.denominator
                    x = torch.movedim(torch.movedim(x, dim, -1) @ matrix.T, -1, dim)
            return x
        case _:
            assert_never(linear)


def modulus(linear: LinearMap) -> LinearMap:
    """The map with every weight replaced by its modulus.

    Example:
        >>> modulus(Diagonal(torch.tensor([-2.0, 3.0]), (2,))).scale.tolist()
        [2.0, 3.0]
    """
    match linear:
        case Dense(weight) | Conv(weight=weight):
            return replace(linear, weight=weight.abs())
        case Adjoint(conv):
            return Adjoint(replace(conv, weight=conv.weight.abs()))
        case Diagonal(scale):
            return replace(linear, scale=scale.abs())
        case Reshape() | Selection():
            return linear
        case Separable(factors):
            positive = (f if f is None else replace(f, numerator=f.numerator.abs()) for f in factors)
            return replace(linear, factors=tuple(positive))
        case _:
            assert_never(linear)


def terms(linear: LinearMap) -> int:
    """How many roundings `apply` may make on the way to one number, at most: products and what is done to them.

    Example:
        >>> terms(Dense(torch.ones(2, 5), (5,))), terms(Reshape((4,), (2, 2)))
        (5, 0)
    """
    match linear:
        case Reshape() | Selection():
            return 0
        case Diagonal():
            return 1
        case Dense(weight):
            return weight.shape[1]
        case Conv(weight=weight):
            return weight[0].numel()
        case Adjoint(conv):
            return conv.weight.numel() // conv.weight.shape[1]
        case Separable(factors):
            # Every dimension is a pass of its own at worst: its sum, and a division.
            return sum(factor.numerator.shape[1] + 1 for factor in factors if factor is not None)
        case _:
            assert_never(linear)


def dense(linear: LinearMap) -> Tensor:
    """Materialise a map as a matrix ``(numel(out_shape), numel(in_shape))`` by applying it to unit vectors.

    Entries are exact except where one entry is a sum of several weights (wrapping or reflecting padding) or a
    quotient (`Separable`); those are rounded once per operation.

    Example:
        >>> dense(Diagonal(torch.tensor([2.0, 3.0], dtype=torch.float64), (2,))).tolist()
        [[2.0, 0.0], [0.0, 3.0]]
    """
    size = math.prod(linear.in_shape)
    unit = torch.eye(size, dtype=torch.float64).reshape(size, *linear.in_shape)
    return apply(linear, unit).reshape(size, -1).T.contiguous()


def _convolve(conv: Conv, x: Tensor) -> Tensor:
    weight = conv.weight.to(x)
    dimensions = weight.ndim - 2
    pads = [amount for pair in reversed(conv.padding) for amount in pair]
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    if any(pads):
        x = F.pad(x, pads, mode=mode)
    y = _CONV[dimensions](x, weight, None, conv.stride, 0, conv.dilation, conv.groups)
    return y[(..., *(slice(size) for size in conv.out_sizes))]


def _convolve_transposed(conv: Conv, x: Tensor) -> Tensor:
    weight = conv.weight.to(x)
    dimensions = weight.ndim - 2
    full = _CONV_TRANSPOSE[dimensions](x, weight, None, conv.stride, 0, 0, conv.groups, conv.dilation)
    # Full transposed output position t is input position t - padding[0] of the convolution: extend with zeros, crop.
    extend: list[int] = []
    window = [slice(None), slice(None)]
    for size, (before, _), have in zip(conv.in_shape[1:], conv.padding, full.shape[2:], strict=True):
        extend = [0, max(0, size + before - have), *extend]
        window.append(slice(before, before + size))
    return F.pad(full, extend)[tuple(window)]
