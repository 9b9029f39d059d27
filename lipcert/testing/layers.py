"""Layers as values that print as the python that makes them. Floor 6.

The classes are named in lower case because a printed network is read, and pasted, as a list of calls:
``Network((1, 3, 3), conv([[1, 1, 1], [1, 1, 1], [1, 1, 1]]), maxpool(3, 2))``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from lipcert.errors import InvalidInput
from lipcert.linear import Shape
from lipcert.nn import GroupSort, MaxMin

Grid = Sequence[Any]
"""Nested lists or tuples of numbers; kept as tuples."""

_CONVS = {1: nn.Conv1d, 2: nn.Conv2d}
_TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d}
_MAX_POOLS = {1: nn.MaxPool1d, 2: nn.MaxPool2d}
_AVERAGE_POOLS = {1: nn.AvgPool1d, 2: nn.AvgPool2d}


class Layer:
    """A layer as a value: what it makes of a shape, and the module."""

    def shape(self, before: Shape) -> Shape:
        """The shape that one sample of the given shape leaves with; refused if the layer does not fit it."""
        return before

    def module(self, before: Shape) -> nn.Module:
        """The torch module, for samples of the given shape, in float32."""
        raise NotImplementedError

    def __repr__(self) -> str:
        """Print the call: required fields by position, others by name where they are not the default."""
        given = [(field, getattr(self, field.name)) for field in fields(self)]  # type: ignore[arg-type]
        required = [_text(value) for field, value in given if field.default is MISSING]
        optional = [
            f"{field.name}={_text(value)}"
            for field, value in given
            if field.default is not MISSING and value != field.default
        ]
        return f"{type(self).__name__}({', '.join(required + optional)})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What hypothesis and IPython print."""
        printer.text(repr(self))


@dataclass(frozen=True, repr=False)
class linear(Layer):
    """A matrix given by its rows, acting on the last dimension.

    Example:
        >>> linear([[1, 2]], bias=[3]).module((2,))(torch.ones(1, 2)).tolist()
        [[6.0]]
    """

    weight_rows: Grid
    bias: Grid | None = None

    def __post_init__(self) -> None:
        """Keep tuples; refuse what is no matrix."""
        out, _ = _keep(self, "weight_rows", (2,))
        _keep_bias(self, out)

    def shape(self, before: Shape) -> Shape:
        """The last dimension replaced."""
        out, into = _sizes(self.weight_rows)
        _require(bool(before) and before[-1] == into, self, before, f"a last dimension of {into}")
        return (*before[:-1], out)

    def module(self, before: Shape) -> nn.Module:
        """`torch.nn.Linear`."""
        out, into = _sizes(self.weight_rows)
        return _filled(skip_init(nn.Linear, into, out, bias=self.bias is not None), self.weight_rows, self.bias)


@dataclass(frozen=True, repr=False)
class conv(Layer):
    """A convolution of signals or images.

    A kernel of four (three) levels is that of `Conv2d` (`Conv1d`); with one channel in and out, two (one) will do.

    Example:
        >>> conv([[0, 1], [1, 0]], stride=2).shape((1, 5, 4))
        (1, 2, 2)
    """

    kernel: Grid
    bias: Grid | None = None
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1
    padding_mode: str = "zeros"

    def __post_init__(self) -> None:
        """Keep tuples of the full rank."""
        out, *_ = _keep_kernel(self)
        _keep_bias(self, out)

    def shape(self, before: Shape) -> Shape:
        """Channels and positions of the output."""
        out, into, *taps = _sizes(self.kernel)
        needed = f"{into * self.groups} channels and {len(taps)} more dimensions"
        _require(len(before) == 1 + len(taps) and before[0] == into * self.groups, self, before, needed)
        most = {"reflect": -1, "circular": 0}.get(self.padding_mode, math.inf)
        _require(all(self.padding <= n + most for n in before[1:]), self, before, f"more room for {self.padding_mode}")
        slack = 2 * self.padding - 1
        reach = [n + slack - self.dilation * (k - 1) for n, k in zip(before[1:], taps, strict=True)]
        _require(min(reach) >= 0, self, before, "at least one position")
        return (out, *(r // self.stride + 1 for r in reach))

    def module(self, before: Shape) -> nn.Module:
        """`torch.nn.Conv1d` or `Conv2d`."""
        out, into, *taps = _sizes(self.kernel)
        sizes = (into * self.groups, out, tuple(taps), self.stride, self.padding, self.dilation, self.groups)
        cls = _CONVS[len(taps)]
        bare = skip_init(cls, *sizes, self.bias is not None, self.padding_mode)
        return _filled(bare, self.kernel, self.bias)


@dataclass(frozen=True, repr=False)
class transposed_conv(Layer):
    """A transposed convolution; the kernel has the input channels first.

    Example:
        >>> transposed_conv([[1, 1], [1, 1]], stride=2).shape((1, 3, 2))
        (1, 6, 4)
    """

    kernel: Grid
    bias: Grid | None = None
    stride: int = 1
    padding: int = 0
    output_padding: int = 0
    dilation: int = 1
    groups: int = 1

    def __post_init__(self) -> None:
        """Keep tuples of the full rank."""
        _, out, *_ = _keep_kernel(self)
        _keep_bias(self, out * self.groups)

    def shape(self, before: Shape) -> Shape:
        """Channels and positions of the output."""
        into, out, *taps = _sizes(self.kernel)
        needed = f"{into} channels and {len(taps)} more dimensions"
        _require(len(before) == 1 + len(taps) and before[0] == into, self, before, needed)
        fixed = 1 + self.output_padding - 2 * self.padding
        after = [(n - 1) * self.stride + self.dilation * (k - 1) + fixed for n, k in zip(before[1:], taps, strict=True)]
        _require(min(after) >= 1, self, before, "at least one position")
        return (out * self.groups, *after)

    def module(self, before: Shape) -> nn.Module:
        """`torch.nn.ConvTranspose1d` or `ConvTranspose2d`."""
        into, out, *taps = _sizes(self.kernel)
        sizes = (into, out * self.groups, tuple(taps), self.stride, self.padding, self.output_padding, self.groups)
        bare = skip_init(_TRANSPOSED[len(taps)], *sizes, self.bias is not None, self.dilation)
        return _filled(bare, self.kernel, self.bias)


@dataclass(frozen=True, repr=False)
class relu(Layer):
    """`torch.nn.ReLU`."""

    def module(self, before: Shape) -> nn.Module:
        """The module."""
        return nn.ReLU()


@dataclass(frozen=True, repr=False)
class leaky_relu(Layer):
    """`torch.nn.LeakyReLU`."""

    slope: float

    def module(self, before: Shape) -> nn.Module:
        """The module."""
        return nn.LeakyReLU(self.slope)


class Abs(nn.Module):
    """The absolute value, which torch has no module for."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply it."""
        return x.abs()


@dataclass(frozen=True, repr=False)
class abs_(Layer):
    """The absolute value."""

    def module(self, before: Shape) -> nn.Module:
        """The module."""
        return Abs()


@dataclass(frozen=True, repr=False)
class tanh(Layer):
    """`torch.nn.Tanh`."""

    def module(self, before: Shape) -> nn.Module:
        """The module."""
        return nn.Tanh()


@dataclass(frozen=True, repr=False)
class sigmoid(Layer):
    """`torch.nn.Sigmoid`."""

    def module(self, before: Shape) -> nn.Module:
        """The module."""
        return nn.Sigmoid()


@dataclass(frozen=True, repr=False)
class softplus(Layer):
    """`torch.nn.Softplus`."""

    def module(self, before: Shape) -> nn.Module:
        """The module."""
        return nn.Softplus()


@dataclass(frozen=True, repr=False)
class gelu(Layer):
    """`torch.nn.GELU`."""

    def module(self, before: Shape) -> nn.Module:
        """The module."""
        return nn.GELU()


@dataclass(frozen=True, repr=False)
class maxmin(Layer):
    """`lipcert.nn.MaxMin` along channels."""

    def shape(self, before: Shape) -> Shape:
        """Unchanged."""
        _require(bool(before) and before[0] % 2 == 0, self, before, "an even number of channels")
        return before

    def module(self, before: Shape) -> nn.Module:
        """The module."""
        return MaxMin()


@dataclass(frozen=True, repr=False)
class groupsort(Layer):
    """`lipcert.nn.GroupSort` along channels."""

    n: int

    def shape(self, before: Shape) -> Shape:
        """Unchanged."""
        _require(bool(before) and before[0] % self.n == 0, self, before, f"a multiple of {self.n} channels")
        return before

    def module(self, before: Shape) -> nn.Module:
        """The module."""
        return GroupSort(self.n)


@dataclass(frozen=True, repr=False)
class _pool(Layer):
    k: int
    stride: int

    def shape(self, before: Shape) -> Shape:
        """Positions of the output."""
        _require(len(before) in (2, 3) and min(before[1:]) >= self.k, self, before, f"at least {self.k} positions")
        return (before[0], *((size - self.k) // self.stride + 1 for size in before[1:]))


@dataclass(frozen=True, repr=False)
class maxpool(_pool):
    """`torch.nn.MaxPool1d` or `MaxPool2d`."""

    def module(self, before: Shape) -> nn.Module:
        """The module."""
        return _MAX_POOLS[len(before) - 1](self.k, self.stride)


@dataclass(frozen=True, repr=False)
class avgpool(_pool):
    """`torch.nn.AvgPool1d` or `AvgPool2d`."""

    def module(self, before: Shape) -> nn.Module:
        """The module."""
        return _AVERAGE_POOLS[len(before) - 1](self.k, self.stride)


@dataclass(frozen=True, repr=False)
class flatten(Layer):
    """`torch.nn.Flatten`."""

    def shape(self, before: Shape) -> Shape:
        """One dimension."""
        return (math.prod(before),)

    def module(self, before: Shape) -> nn.Module:
        """The module."""
        return nn.Flatten()


def _keep(layer: Layer, name: str, ranks: Iterable[int]) -> Shape:
    """Store a field as nested tuples, and say its sizes."""
    kept = _frozen(getattr(layer, name))
    object.__setattr__(layer, name, kept)
    sizes = _sizes(kept)
    if len(sizes) not in tuple(ranks) or 0 in sizes or not _regular(kept, sizes):
        raise InvalidInput(
            f"{type(layer).__name__} needs {' or '.join(map(str, ranks))} levels of lists of equal lengths for "
            f"`{name}`, got {getattr(layer, name)!r}."
        )
    return sizes


def _keep_kernel(layer: conv | transposed_conv) -> Shape:
    sizes = _keep(layer, "kernel", (1, 2, 3, 4))
    if len(sizes) <= 2:
        object.__setattr__(layer, "kernel", ((layer.kernel,),))
    return _sizes(layer.kernel)


def _keep_bias(layer: linear | conv | transposed_conv, length: int) -> None:
    if layer.bias is not None and _keep(layer, "bias", (1,)) != (length,):
        raise InvalidInput(f"{type(layer).__name__} has {length} outputs and a bias of {len(layer.bias)} numbers.")


def _frozen(values: Any) -> Any:
    return tuple(_frozen(value) for value in values) if isinstance(values, (list, tuple)) else values


def _sizes(values: Any) -> Shape:
    sizes: list[int] = []
    while isinstance(values, tuple):
        sizes.append(len(values))
        values = values[0] if values else None
    return tuple(sizes)


def _regular(values: Any, sizes: Shape) -> bool:
    if not sizes:
        return isinstance(values, (int, float))
    return isinstance(values, tuple) and len(values) == sizes[0] and all(_regular(v, sizes[1:]) for v in values)


def _require(fits: bool, layer: Layer, before: Shape, needed: str) -> None:
    if not fits:
        raise InvalidInput(f"{layer!r} needs {needed}, and gets a sample of shape {before}; change one of the two.")


def _text(value: Any) -> str:
    """Lists for tuples; a kernel from one channel to one channel without its two outer levels."""
    if isinstance(value, tuple):
        while len(_sizes(value)) >= 3 and len(value) == len(value[0]) == 1:
            value = value[0][0]
        return f"[{', '.join(map(_inner_text, value))}]"
    return repr(value)


def _inner_text(value: Any) -> str:
    return f"[{', '.join(map(_inner_text, value))}]" if isinstance(value, tuple) else repr(value)


def _filled(module: Any, weight: Grid, bias: Grid | None) -> nn.Module:
    with torch.no_grad():
        module.weight.copy_(torch.tensor(weight, dtype=torch.float32))
        if bias is not None:
            module.bias.copy_(torch.tensor(bias, dtype=torch.float32))
    return module
