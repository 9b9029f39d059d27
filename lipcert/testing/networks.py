"""Networks as values that print as the python that makes them. Floor 6."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lipcert.errors import InvalidInput
from lipcert.linear import Shape
from lipcert.testing.layers import (
    Layer,
    abs_,
    avgpool,
    conv,
    flatten,
    gelu,
    groupsort,
    leaky_relu,
    linear,
    maxmin,
    maxpool,
    relu,
    sigmoid,
    softplus,
    tanh,
    transposed_conv,
)


class Residual(nn.Module):
    """``x + body(x)``."""

    def __init__(self, body: nn.Module) -> None:
        """Keep the branch."""
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch to its input."""
        return x + self.body(x)


@dataclass(frozen=True, init=False, repr=False)
class residual(Layer):
    """``x + body(x)`` for a chain of layers that keeps the shape.

    Example:
        >>> residual(linear([[2]]), relu())
        residual(linear([[2]]), relu())
    """

    layers: tuple[Layer, ...]

    def __init__(self, *layers: Layer) -> None:
        """Keep the layers of the branch."""
        object.__setattr__(self, "layers", layers)

    def shape(self, before: Shape) -> Shape:
        """Unchanged."""
        after = (before, *_shapes(before, self.layers))[-1]
        if after != before:
            raise InvalidInput(f"{self!r} adds a branch of shape {after} to a sample of shape {before}; make them one.")
        return before

    def module(self, before: Shape) -> nn.Module:
        """The module."""
        return Residual(_sequential(before, self.layers))

    def __repr__(self) -> str:
        """Print the call."""
        return f"residual({', '.join(map(repr, self.layers))})"


LAYERS: dict[str, type[Layer]] = {
    cls.__name__: cls
    for cls in (
        *(linear, conv, transposed_conv, relu, abs_, leaky_relu, maxmin, groupsort, maxpool, avgpool, flatten),
        *(residual, tanh, sigmoid, softplus, gelu),
    )
}
"""Every layer by its name."""


@dataclass(frozen=True, init=False, repr=False)
class Network:
    """A chain of layers with the weights written out; it prints as the python that makes it.

    Attributes:
        input_shape: Shape of one sample, without the batch dimension.
        layers: The layers, first applied first.

    Example:
        >>> Network((2,), linear([[1, -1]]), relu())
        Network((2,), linear([[1, -1]]), relu())
        >>> Network((1, 3, 3), conv([[1, 1], [1, 1]]), flatten()).shapes()
        ((1, 2, 2), (4,))
    """

    input_shape: Shape
    layers: tuple[Layer, ...]

    def __init__(self, input_shape: Iterable[int], *layers: Layer) -> None:
        """Keep the parts.

        Raises:
            InvalidInput: If a layer does not fit what comes before it.
        """
        object.__setattr__(self, "input_shape", tuple(input_shape))
        object.__setattr__(self, "layers", layers)
        self.shapes()

    def shapes(self) -> tuple[Shape, ...]:
        """Shape of one sample after each layer."""
        return _shapes(self.input_shape, self.layers)

    @property
    def output_shape(self) -> Shape:
        """Shape of one sample after the last layer."""
        return (self.input_shape, *self.shapes())[-1]

    def to_module(self) -> nn.Sequential:
        """The network with exactly these weights, as far as float32 holds them, in evaluation mode.

        Example:
            >>> Network((2,), linear([[1, -1]])).to_module()
            Sequential(
              (0): Linear(in_features=2, out_features=1, bias=False)
            )
        """
        return _sequential(self.input_shape, self.layers).eval()

    def __repr__(self) -> str:
        """Print the call."""
        return f"Network({', '.join(map(repr, (self.input_shape, *self.layers)))})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What hypothesis and IPython print."""
        printer.text(repr(self))


def _shapes(before: Shape, layers: Iterable[Layer]) -> tuple[Shape, ...]:
    shapes: list[Shape] = []
    for layer in layers:
        before = layer.shape(before)
        shapes.append(before)
    return tuple(shapes)


def _sequential(before: Shape, layers: tuple[Layer, ...]) -> nn.Sequential:
    befores = (before, *_shapes(before, layers))
    return nn.Sequential(*(layer.module(shape) for layer, shape in zip(layers, befores, strict=False)))
