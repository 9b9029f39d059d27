r"""A piecewise linear network as hinges: scalar functions with one kink, and linear maps between them. Floor 5.

Every hinge is :math:`u_k = \alpha_k \min(z_k, 0) + \beta_k \max(z_k, 0)`, where :math:`z_k` is affine in the input and
in earlier hinges. Clamps are two hinges; maxima and sorting are chains of :math:`\max(a, b) = b + \max(a - b, 0)`. All
coefficients are kept as exact integers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, assert_never

import numpy as np
import torch

from lipcert.check import TooLarge
from lipcert.enclosure.ball import Ball, Integers, add, aligned, exactly, joined
from lipcert.enclosure.functions import limits, zero_below
from lipcert.enclosure.maps import applied
from lipcert.errors import BudgetExceeded, UnsupportedOperation
from lipcert.graph import Activation, Add, Affine, Concat, Graph, Input, Node, Opaque, sources

Array = np.ndarray

MOST = 1000
"""Hinges of the largest network that is taken apart; a search ends within reasonable time far below."""


@dataclass(frozen=True, eq=False)
class Hinges:
    """A network: hinges read ``z = rows (1, x, u) * 2**-bits``, and the output is ``output (1, x, u) * 2**-bits``.

    Attributes:
        inputs: Entries of x.
        rows: Integers, ``(hinges, 1 + inputs + hinges)``; a hinge reads those of earlier levels only.
        output: Integers, ``(outputs, 1 + inputs + hinges)``.
        bits: Units of both; may be negative.
        low: Slopes for ``z < 0``, float64, ``(hinges,)``.
        high: Slopes for ``z > 0``.
        ends: The levels: hinges ``ends[i]`` to before ``ends[i + 1]`` do not read one another.
    """

    inputs: int
    rows: Integers
    output: Integers
    bits: int
    low: Array
    high: Array
    ends: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many hinges there are."""
        return len(self.rows)

    @property
    def levels(self) -> Iterator[slice]:
        """The levels, first to last."""
        return (slice(a, b) for a, b in zip(self.ends[:-1], self.ends[1:], strict=True))


def hinged(graph: Graph) -> Hinges:
    """Take a network apart, without rounding.

    Raises:
        UnsupportedOperation: If a function is not piecewise linear with float64 slopes, or a factor is only known in
            an interval.
        BudgetExceeded: If there are more than `MOST` hinges, or numbers become too long.

    Example:
        >>> from lipcert import trace
        >>> net = hinged(trace(torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Hardtanh()), (2,)))
        >>> net.count, net.ends
        (6, (0, 2, 4, 6))
    """
    taking = _Taking(math.prod(graph.input.shape))
    try:
        return taking.assembled(taking.values(graph)[graph.output.name])
    except TooLarge as reason:
        raise BudgetExceeded(f"the numbers of this network are too long for exact branching: {reason}") from reason


class _Taking:
    """Values of nodes as exact affine functions: balls ``(1 + inputs + hinges so far, *shape)``."""

    def __init__(self, inputs: int) -> None:
        self.inputs, self.columns = inputs, 1 + inputs
        self.read: list[Ball] = []
        self.slopes: list[tuple[Array, Array]] = []

    def values(self, graph: Graph) -> dict[str, Ball]:
        values: dict[str, Ball] = {}
        for node in graph:
            values[node.name] = self.value(node, [self.widened(values[name]) for name in sources(node)])
            if values[node.name].rad is not None:
                raise UnsupportedOperation(
                    f"`{node.name}` multiplies by numbers that are only known in an interval (a division, batch "
                    f"normalisation, or too many digits), so it has no exact constant. Fold it into float64 weights.",
                    path=node.name,
                )
        return values

    def value(self, node: Node, read: list[Ball]) -> Ball:
        match node:
            case Input(shape=shape):
                unit = np.eye(self.columns, dtype=object)[:, 1:]
                return Ball(unit.reshape(self.columns, *shape), None, 0)
            case Affine(map=linear, bias=bias):
                y = applied(linear, read[0])
                return y if bias is None else add([y, self.constant(exactly(bias), node.shape)])
            case Activation():
                return self.activated(node, read[0])
            case Opaque():
                return self.mapped(node, read[0])
            case Add():
                return add(read)
            case Concat(dim=dim):
                return joined(read, dim + 1)
            case _:
                assert_never(node)

    # ------------------------------------------------------------------------------------------------ pieces

    def widened(self, value: Ball) -> Ball:
        """With columns for the hinges found since."""
        more = np.zeros((self.columns - len(value.mid), *value.shape[1:]), dtype=object)
        return Ball(np.concatenate([value.mid, more]), value.rad, value.bits)

    def constant(self, values: Ball, shape: tuple[int, ...]) -> Ball:
        mid = np.zeros((self.columns, *shape), dtype=object)
        mid[0] = np.broadcast_to(values.mid, shape)
        return Ball(mid, values.rad, values.bits)

    def hinge(self, z: Ball, low: Any, high: Any) -> Ball:
        """One hinge for every entry of z."""
        shape = z.shape[1:]
        count = math.prod(shape)
        if self.columns - 1 - self.inputs + count > MOST:
            raise BudgetExceeded(
                f"this network has more than {MOST} kinks, and their signs are decided one by one. "
                f"Use `lipcert.certify`, which bounds large networks."
            )
        self.read.append(z.moved(lambda X: X.reshape(len(X), count)))
        sides = (np.broadcast_to(np.asarray(side, dtype=np.float64), shape).ravel() for side in (low, high))
        self.slopes.append((next(sides), next(sides)))
        mid = np.zeros((self.columns + count, count), dtype=object)
        mid[self.columns :] = np.eye(count, dtype=object)
        self.columns += count
        return Ball(mid.reshape(-1, *shape), None, 0)

    def maximum(self, a: Ball, b: Ball) -> tuple[Ball, Ball]:
        """The larger and the smaller one of each pair of entries."""
        over = self.hinge(_minus(a, b), 0.0, 1.0)
        a, b = self.widened(a), self.widened(b)
        return add([b, over]), _minus(a, over)

    # ------------------------------------------------------------------------------------------------ functions

    def activated(self, node: Activation, z: Ball) -> Ball:
        match node.function:
            case "relu":
                return self.hinge(z, 0.0, 1.0)
            case "abs":
                return self.hinge(z, -1.0, 1.0)
            case "leaky_relu":
                return self.hinge(z, float(node.parameters["negative_slope"]), 1.0)
            case "prelu":
                return self.hinge(z, torch.as_tensor(node.parameters["weight"]).numpy(), 1.0)
            case "relu6":
                zero, six = np.zeros(node.shape), np.full(node.shape, 6.0)
                return self.clamped(z, zero, six)
            case "hardtanh" | "clamp" | "threshold":
                low, high = limits(node)
                return self.clamped(z, low[0], high[0])
            case "softshrink":
                edge = self.constant(exactly(zero_below(node)), node.shape)
                above = self.hinge(_minus(z, edge), 0.0, 1.0)
                below = self.hinge(self.widened(add([z, edge])), 1.0, 0.0)
                return add([self.widened(above), below])
        raise UnsupportedOperation(
            f"`{node.name}` is {node.function}, which is not piecewise linear with float64 slopes: its constant is no "
            f"maximum over finitely many regions. Use `lipcert.certify` for an upper bound.",
            path=node.name,
        )

    def clamped(self, z: Ball, low: Array, high: Array) -> Ball:
        """``min(max(z, low), high)``; an infinite limit limits nothing."""
        for limit, slopes in ((low, (0.0, 1.0)), (high, (1.0, 0.0))):
            known = np.isfinite(limit)
            if known.any():
                edge = self.constant(exactly(np.where(known, limit, 0.0)), z.shape[1:])
                bent = self.hinge(_minus(z, edge), *(np.where(known, slope, 1.0) for slope in slopes))
                z = add([bent, self.widened(edge)])
        return z

    def mapped(self, node: Opaque, z: Ball) -> Ball:
        if node.function == "sort":
            return self.sorted(node, z)
        if node.function == "max_windows":
            for axis, ranges in enumerate(node.parameters["windows"], start=1):
                if ranges is not None:
                    z = self.maxima(z, axis, [list(range(*window)) for window in ranges])
            return z
        raise UnsupportedOperation(
            f"`{node.name}` is {node.function}, which is not piecewise linear with float64 weights; exact constants "
            f"are for networks that are. Use `lipcert.certify` for an upper bound.",
            path=node.name,
        )

    def maxima(self, z: Ball, axis: int, windows: list[list[int]]) -> Ball:
        """Maxima over windows, which are filled up with their last entries."""
        size = max(map(len, windows))
        filled = np.array([window + window[-1:] * (size - len(window)) for window in windows])
        found = z.moved(lambda X: np.take(X, filled[:, 0], axis))
        for entry in range(1, size):
            other = self.widened(z).moved(lambda X, entry=entry: np.take(X, filled[:, entry], axis))
            found = self.maximum(self.widened(found), other)[0]
        return found

    def sorted(self, node: Opaque, z: Ball) -> Ball:
        axis, group = node.parameters["dim"] + 1, node.parameters["group"]
        if node.parameters["arrangement"] == "interleaved":
            a, b = (z.moved(lambda X, half=half: np.split(X, 2, axis)[half]) for half in (0, 1))
            return joined(self.maximum(a, b), axis)
        grouped = z.moved(lambda X: _split(X, axis, group))
        entries = [grouped.moved(lambda X, k=k: X[..., k]) for k in range(group)]
        for i, j in comparators(group):
            entries[j], entries[i] = self.maximum(self.widened(entries[i]), self.widened(entries[j]))
        columns = [self.widened(entry).moved(lambda X: X[..., None]) for entry in entries]
        stacked = joined(columns, len(grouped.shape) - 1)
        return stacked.moved(lambda X: _merge(X, axis))

    # ------------------------------------------------------------------------------------------------ assembly

    def assembled(self, output: Ball) -> Hinges:
        parts = [self.widened(part) for part in (*self.read, output.moved(lambda X: X.reshape(len(X), -1)))]
        whole = joined(parts, 1)
        count, first = self.columns - 1 - self.inputs, 1 + self.inputs
        rows, out = whole.mid.T[:count], whole.mid.T[count:]
        depth = np.zeros(count, dtype=np.int64)
        for k in range(count):
            reads = rows[k, first : first + k] != 0
            depth[k] = 1 + depth[:k][reads].max(initial=-1)
        order = np.argsort(depth, kind="stable")
        columns = np.concatenate([np.arange(first), first + order])
        low, high = (np.concatenate([np.zeros(0), *(pair[side] for pair in self.slopes)])[order] for side in (0, 1))
        ends = tuple(np.concatenate([[0], np.cumsum(np.bincount(depth))]).tolist()) if count else (0,)
        return Hinges(self.inputs, rows[order][:, columns], out[:, columns], whole.bits, low, high, ends)


def comparators(count: int) -> list[tuple[int, int]]:
    """A sorting network: pairs ``i < j`` whose smaller entry goes to i (merge exchange).

    References:
        | The Art of Computer Programming, volume 3 (Knuth, 1998), algorithm 5.2.2M

    Example:
        >>> comparators(3)
        [(0, 2), (0, 1), (1, 2)]
    """
    found: list[tuple[int, int]] = []
    top = 1 << max(0, (count - 1).bit_length() - 1)
    p = top if count > 1 else 0
    while p:
        q, r, d = top, 0, p
        while True:
            found += [(i, i + d) for i in range(count - d) if i & p == r]
            if q == p:
                break
            d, q, r = q - p, q // 2, p
        p //= 2
    return found


def _minus(a: Ball, b: Ball) -> Ball:
    first, second = aligned([a, b])
    return add([first, Ball(-second.mid, second.rad, second.bits)])


def _split(X: Integers, axis: int, group: int) -> Integers:
    moved = np.moveaxis(X, axis, -1)
    return moved.reshape(*moved.shape[:-1], -1, group)


def _merge(X: Integers, axis: int) -> Integers:
    return np.moveaxis(X.reshape(*X.shape[:-2], -1), -1, axis)
