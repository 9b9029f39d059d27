"""What a pair of inputs says of a network, as a theorem: its difference quotient against a claim. Floor 2."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lipcert.check import TooLarge
from lipcert.enclosure.ball import Ball, add, aligned, exactly, joined
from lipcert.enclosure.blocks import mapped
from lipcert.enclosure.functions import activated
from lipcert.enclosure.maps import applied
from lipcert.errors import BudgetExceeded, InvalidInput, NotFinite
from lipcert.graph import Activation, Add, Affine, Concat, Graph, Input, Node, Opaque, sources
from lipcert.norms import Norms


@dataclass(frozen=True)
class Stretch:
    """What is known of ``|f(x) - f(y)|_q / |x - y|_p``, without rounding.

    Attributes:
        square: A rational number that the square of the quotient is at least.
        exact: Whether the square is that number: every value of the network is rational and was computed as one.
    """

    square: Fraction
    exact: bool

    def exceeds(self, bound: float) -> bool:
        """Whether the quotient is above a float, read as an exact number.

        Example:
            >>> Stretch(Fraction(4), True).exceeds(2.0), Stretch(Fraction(4), True).exceeds(1.9999999999999998)
            (False, True)
        """
        return self.square > Fraction(bound) ** 2

    @property
    def ratio(self) -> float:
        """The largest float that the quotient is seen to be at least, or the one below it."""
        if self.square == 0:
            return 0.0
        shift = 128 - (self.square.numerator.bit_length() - self.square.denominator.bit_length()) // 2
        root = math.isqrt(int(self.square * Fraction(4) ** shift)) * Fraction(1, 2) ** shift
        near = float(min(root, Fraction(2) ** 1023))
        return near if Fraction(near) <= root else math.nextafter(near, 0.0)


def enclosed(graph: Graph, x: Tensor) -> Ball:
    """What a network maps a batch to: exact numbers, or balls that hold them.

    Args:
        graph: The network; its weights and biases are read as exact numbers, and a factor that is only known in an
            interval (batch norm, division) as all of it.
        x: Shape ``(N, *input shape)``, float64, finite.

    Returns:
        Balls of shape ``(N, *output shape)``.

    Raises:
        UnsupportedOperation: If a function of the network is a user's own, or not rational without python-flint.
        BudgetExceeded: If the network is too large for exact arithmetic.
        NotFinite: If x is not.

    Example:
        >>> from lipcert.trace import trace
        >>> graph = trace(torch.nn.ReLU(), (2,))
        >>> enclosed(graph, torch.tensor([[0.5, -1.0]], dtype=torch.float64)).mid.tolist()
        [[1, 0]]
    """
    if not bool(torch.isfinite(x).all()):
        raise NotFinite("a pair with NaN or infinite entries says nothing of a difference quotient.")
    last = {name: node.name for node in graph for name in sources(node)}
    values: dict[str, Ball] = {}
    try:
        for node in graph:
            read = [values[name] for name in sources(node)]
            values[node.name] = _value(node, read, x)
            for name in set(sources(node)):
                if last[name] == node.name:
                    del values[name]
    except TooLarge as reason:
        raise BudgetExceeded(f"the values of this network take too long in exact arithmetic: {reason}") from reason
    return values[graph.output.name]


def stretch(graph: Graph, x: Tensor, y: Tensor, norms: Norms) -> Stretch:
    """How much a pair of inputs is stretched, as a rational lower bound.

    Args:
        graph: The network.
        x: One input, without batch dimension, float64.
        y: Another one.
        norms: Norms on input and output.

    Raises:
        InvalidInput: If the inputs are equal, or not of the network's shape.
        UnsupportedOperation: As `enclosed`.
        BudgetExceeded: As `enclosed`.
        NotFinite: As `enclosed`.

    Example:
        >>> from lipcert.norms import L2
        >>> from lipcert.trace import trace
        >>> graph = trace(torch.nn.Flatten(), (2, 1))
        >>> zero, one = torch.zeros(2, 1, dtype=torch.float64), torch.ones(2, 1, dtype=torch.float64)
        >>> stretch(graph, zero, one, L2)
        Stretch(square=Fraction(1, 1), exact=True)
    """
    if tuple(x.shape) != graph.input.shape or x.shape != y.shape:
        raise InvalidInput(f"a pair of shapes {tuple(x.shape)}, {tuple(y.shape)} for inputs {graph.input.shape}.")
    apart = distance(x, y, norms.p)
    if apart == 0:
        raise InvalidInput("the two inputs are equal; a difference quotient needs two.")
    both = enclosed(graph, torch.stack([x, y]).double())
    change = both.mid[:1] - both.mid[1:]
    least = np.maximum(abs(change) - both.radii[:1] - both.radii[1:], 0)
    return Stretch(_square(least.ravel().tolist(), norms.q, both.bits) / apart, both.rad is None)


def distance(x: Tensor, y: Tensor, p: float) -> Fraction:
    """The square of ``|x - y|_p``, exactly.

    Example:
        >>> distance(torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0]), 2.0)
        Fraction(25, 1)
    """
    first, second = aligned([exactly(x.double()), exactly(y.double())])
    return _square(abs(first.mid - second.mid).ravel().tolist(), p, first.bits)


def _square(lengths: list[Any], p: float, bits: int) -> Fraction:
    if p == 2.0:
        return Fraction(sum(length * length for length in lengths)) / Fraction(4) ** bits
    return Fraction(sum(lengths) if p == 1.0 else max(lengths)) ** 2 / Fraction(4) ** bits


def _value(node: Node, read: list[Ball], x: Tensor) -> Ball:
    match node:
        case Input():
            return exactly(x.double())
        case Affine(map=linear, bias=bias):
            y = applied(linear, read[0])
            return y if bias is None else add([y, exactly(bias[None])])
        case Activation():
            return activated(node, read[0])
        case Opaque():
            return mapped(node, read[0])
        case Add():
            return add(read)
        case Concat(dim=dim):
            return joined(read, dim + 1)
