r"""Sorts and maxima as comparators, that is as moduli of differences, whose signs a range may fix. Floor 2.

With :math:`s = a + b` and :math:`d = a - b`, :math:`\max(a, b) = (s + |d|) / 2` and :math:`\min(a, b) = (s - |d|) / 2`.
For a sort of pairs nothing is lost: between two runs the sums are kept and differences do not grow, which is what is
known of it everywhere (see `lipcert.lmi.groups`). More than two are sorted by comparing neighbours, the odd ones and
the even ones in turn, as many times as there are members; a maximum is a tournament. Where d has one sign, a comparator
is linear.

References:
    Sorting networks and their applications (Batcher, 1968); odd-even transposition is from Habermann (1972)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeGuard

import torch
from torch import Tensor

from lipcert.errors import InvalidInput
from lipcert.graph import Activation, Affine, Graph, Node, Opaque
from lipcert.linear import Factor, Separable, Shape
from lipcert.lmi.groups import positions
from lipcert.regions.functions import TABLE

LARGEST = 8
"""Most members of a group that are sorted by comparing them; more take too many steps."""

WIDEST = 64
"""Most entries of a window whose maximum is a tournament."""


@dataclass(frozen=True, eq=False)
class Step:
    """Comparisons along a dimension: ``y = back |there x| / 2``, with moduli of the rows with a -1, differences.

    Attributes:
        dim: The dimension.
        there: Sums and differences of pairs, and entries that are not compared; int64 ``(rows, size)``.
        back: Twice the entries after the step, int64 ``(new size, rows)``.
    """

    dim: int
    there: Tensor
    back: Tensor


def compared(graph: Graph, stated: Container[str] | None = None) -> Graph:
    """The same function, with sorts and maxima written as moduli of differences.

    Args:
        graph: The network.
        stated: Which moduli to write, by the names of the first of each node; all by default.

    Raises:
        InvalidInput: If a name that is needed is taken.

    Example:
        >>> from lipcert import trace
        >>> from lipcert.nn import MaxMin
        >>> [node.name for node in compared(trace(torch.nn.Sequential(MaxMin()), (2,)))]
        ['input', '0/0/differences', '0/0/moduli', '0']
    """
    shapes = {node.name: node.shape for node in graph}
    nodes: list[Node] = []
    for node in graph:
        if not (compares(node) and (stated is None or f"{node.name}/0/moduli" in stated)):
            nodes.append(node)
            continue
        written = list(_written(node, shapes[node.source]))
        for new in written[:-1]:
            if new.name in shapes:
                raise InvalidInput(f"a module is called `{new.name}`, as is a part of `{node.name}`. Rename it.")
        nodes += written
    return Graph(tuple(nodes))


def compares(node: Node) -> TypeGuard[Opaque]:
    """Whether a node sorts groups, or takes maxima of windows, that are small enough to be compared pair by pair."""
    if not isinstance(node, Opaque) or node.function not in ("sort", "max_windows"):
        return False
    if node.function == "sort":
        return int(node.parameters["group"]) <= LARGEST
    sizes = [[len(range(*window)) for window in ranges] for ranges in node.parameters["windows"] if ranges is not None]
    return bool(sizes) and math.prod(map(max, sizes)) <= WIDEST


def _written(node: Opaque, shape: Shape) -> Iterator[Node]:
    steps = list(_sorting(node) if node.function == "sort" else _maxima(node, shape))
    source = node.source
    for number, step in enumerate(steps):
        last = number == len(steps) - 1
        part, name = f"{node.name}/{number}", node.name if last else f"{node.name}/{number}"
        there = _along(step.there, 1, step.dim, shape)
        # Of slope 1 on the left of 0 numbers are kept, of slope -1 they become moduli.
        weight = torch.where((step.there < 0).any(1), -1.0, 1.0).double()
        weight = weight.reshape([-1 if axis == step.dim else 1 for axis in range(len(shape))])
        slope, call = (weight, torch.ones_like(weight)), partial(_prelu, weight)
        read, moduli = f"{part}/differences", f"{part}/moduli"
        yield Affine(read, source, there, None)
        yield Activation(moduli, read, there.out_shape, "prelu", {"weight": weight}, slope, call)
        back = _along(step.back, 2, step.dim, there.out_shape)
        yield Affine(name, moduli, back, None)
        source, shape = name, back.out_shape


def _prelu(weight: Tensor, x: Tensor) -> Tensor:
    return TABLE["prelu"].value(x, {"weight": weight})


def _along(matrix: Tensor, denominator: int, dim: int, shape: Shape) -> Separable:
    factor = Factor(matrix, denominator)
    return Separable(tuple(factor if axis == dim else None for axis in range(len(shape))), shape)


def _sorting(node: Opaque) -> Iterator[Step]:
    dim, n, arrangement = (node.parameters[key] for key in ("dim", "group", "arrangement"))
    size = node.shape[dim]
    members = positions((size,), 0, n, arrangement)
    for step in range(1 if n == 2 else n):
        a, b = (members[:, step % 2 + k : n - 1 + k : 2].flatten() for k in (0, 1))
        there, back = torch.eye(size, dtype=torch.int64), 2 * torch.eye(size, dtype=torch.int64)
        there[a, b] = there[b, a] = 1
        there[b, b] = -1
        larger, smaller = (b, a) if arrangement == "consecutive" else (a, b)
        back[larger, a] = back[larger, b] = back[smaller, a] = 1
        back[smaller, b] = -1
        yield Step(dim, there, back)


def _maxima(node: Opaque, shape: Shape) -> Iterator[Step]:
    for dim, ranges in enumerate(node.parameters["windows"]):
        size, left = shape[dim], [list(range(*window)) for window in ranges or ()]
        first = True
        while left and (first or max(map(len, left)) > 1):
            step, left = _round(dim, size, left)
            size, first = len(step.back), False
            yield step


def _round(dim: int, size: int, left: Sequence[Sequence[int]]) -> tuple[Step, list[list[int]]]:
    """A round of tournaments among entries of a dimension, and where those that are left stand afterwards."""
    pairs = [list(itertools.zip_longest(places[::2], places[1::2])) for places in left]
    one = torch.eye(size, dtype=torch.int64)
    there: list[Tensor] = []
    ahead: list[tuple[int, int]] = []
    for a, b in itertools.chain.from_iterable(pairs):
        ahead.append((len(there), 1 if b is None else 2))
        there += [one[a]] if b is None else [one[a] + one[b], one[a] - one[b]]
    back = torch.zeros(len(ahead), len(there), dtype=torch.int64)
    for number, (start, count) in enumerate(ahead):
        back[number, start : start + count] = 2 // count
    ends = itertools.accumulate(map(len, pairs), initial=0)
    after = [list(range(*end)) for end in itertools.pairwise(ends)]
    return Step(dim, torch.stack(there), back), after
