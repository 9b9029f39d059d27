r"""Sorts as comparators, that is as moduli of differences, whose signs a range may fix. Floor 2.

With :math:`s = a + b` and :math:`d = a - b`, :math:`\max(a, b) = (s + |d|) / 2` and :math:`\min(a, b) = (s - |d|) / 2`.
For pairs nothing is lost: between two runs the sums are kept and differences do not grow, which is what is known of
their sort everywhere (see `lipcert.lmi.groups`). More than two are sorted by comparing neighbours, the odd ones and the
even ones in turn, as many times as there are members. Where d has one sign, a comparator is a linear map.

References:
    Sorting networks and their applications (Batcher, 1968); odd-even transposition is from Habermann (1972)
"""

from __future__ import annotations

from collections.abc import Container, Iterator

import torch
from torch import Tensor

from lipcert.errors import InvalidInput
from lipcert.graph import Activation, Affine, Graph, Node, Opaque
from lipcert.linear import Factor, Separable
from lipcert.lmi.groups import positions

LARGEST = 8
"""Most members of a group that are compared with each other; more take too many steps."""


def compared(graph: Graph, stated: Container[str] | None = None) -> Graph:
    """The same function, with sorts written as moduli of differences.

    Args:
        graph: The network.
        stated: Which moduli to write, by the names of the first of each sort; all by default.

    Raises:
        InvalidInput: If a name that is needed is taken.

    Example:
        >>> from lipcert import trace
        >>> from lipcert.nn import MaxMin
        >>> [node.name for node in compared(trace(torch.nn.Sequential(MaxMin()), (2,)))]
        ['input', '0/0/differences', '0/0/moduli', '0']
    """
    taken = {node.name for node in graph}
    nodes: list[Node] = []
    for node in graph:
        if not (isinstance(node, Opaque) and compares(node) and (stated is None or f"{node.name}/0/moduli" in stated)):
            nodes.append(node)
            continue
        steps = list(_steps(node))
        for new in steps[:-1]:
            if new.name in taken:
                raise InvalidInput(f"a module is called `{new.name}`, as is a part of `{node.name}`. Rename it.")
        nodes += steps
    return Graph(tuple(nodes))


def compares(node: Node) -> bool:
    """Whether a node sorts groups that are small enough to be compared pair by pair."""
    return isinstance(node, Opaque) and node.function == "sort" and int(node.parameters["group"]) <= LARGEST


def _steps(node: Opaque) -> Iterator[Node]:
    dim, n, arrangement = node.parameters["dim"], int(node.parameters["group"]), node.parameters["arrangement"]
    members = positions((node.shape[dim],), 0, n, arrangement)
    count = 1 if n == 2 else n
    source = node.source
    for step in range(count):
        first, second = (members[:, step % 2 + k : n - 1 + k : 2].flatten() for k in (0, 1))
        name = node.name if step == count - 1 else f"{node.name}/{step}"
        larger, smaller = (second, first) if arrangement == "consecutive" else (first, second)
        yield from _comparators(node, f"{node.name}/{step}", source, name, (first, second), (larger, smaller))
        source = name


def _comparators(
    node: Opaque, part: str, source: str, name: str, read: tuple[Tensor, Tensor], written: tuple[Tensor, Tensor]
) -> Iterator[Node]:
    """Sums where the first of two members is and differences where the second one is; moduli of these; and back."""
    dim, size = node.parameters["dim"], node.shape[node.parameters["dim"]]
    there, back = torch.eye(size, dtype=torch.int64), 2 * torch.eye(size, dtype=torch.int64)
    (a, b), (larger, smaller) = read, written
    there[a, b] = there[b, a] = 1
    there[b, b] = -1
    back[larger, a] = back[larger, b] = back[smaller, a] = 1
    back[smaller, b] = -1
    # Of slope 1 on the left of 0 numbers are kept, of slope -1 they become moduli.
    weight = torch.ones(size, dtype=torch.float64)
    weight[b] = -1.0
    weight = weight.reshape([-1 if axis == dim else 1 for axis in range(len(node.shape))])

    def call(x: Tensor) -> Tensor:
        return torch.where(x >= 0.0, x, weight.to(x) * x)

    def along(matrix: Tensor, denominator: int) -> Separable:
        factor = Factor(matrix, denominator)
        return Separable(tuple(factor if axis == dim else None for axis in range(len(node.shape))), node.shape)

    slope = weight, torch.ones_like(weight)
    yield Affine(f"{part}/differences", source, along(there, 1), None)
    yield Activation(f"{part}/moduli", f"{part}/differences", node.shape, "prelu", {"weight": weight}, slope, call)
    yield Affine(name, f"{part}/moduli", along(back, 2), None)
