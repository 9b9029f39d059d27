"""Some outputs of a network, or the difference of two, as networks of their own. Floor 2.

The graph gets one more affine node with entries 0, 1 and -1, which is exact. So certificates, digests, files and both
checkers need nothing new.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lipcert.errors import InvalidInput
from lipcert.graph import Affine, Graph
from lipcert.linear import Dense, LinearMap, Selection


def select(graph: Graph, rows: Sequence[int]) -> Graph:
    """The network with the outputs ``rows`` only, in this order.

    Args:
        graph: A network whose output has one dimension.
        rows: Numbers of outputs, from 0.

    Raises:
        InvalidInput: If the output has another number of dimensions, or there is no such row.

    Example:
        >>> from lipcert import trace
        >>> graph = select(trace(torch.nn.Linear(3, 5), (3,)), [4, 0])
        >>> graph.output.name, graph.output.shape
        ('output[4,0]', (2,))
    """
    size = vector_size(graph, rows)
    index = torch.tensor(list(rows), dtype=torch.int64)
    return _appended(graph, f"output[{','.join(map(str, rows))}]", Selection(index, (size,)))


def difference(graph: Graph, i: int, j: int) -> Graph:
    r"""The network :math:`f_i - f_j`, with one output.

    Args:
        graph: A network whose output has one dimension.
        i: Number of an output, from 0.
        j: Number of another one.

    Raises:
        InvalidInput: If the output has another number of dimensions, or i and j are not two of its rows.

    Example:
        >>> from lipcert import trace
        >>> graph = difference(trace(torch.nn.Identity(), (3,)), 2, 0)
        >>> graph.replay(torch.tensor([[1.0, 5.0, 4.0]])).tolist()
        [[3.0]]
    """
    size = vector_size(graph, (i, j))
    if i == j:
        raise InvalidInput(f"output {i} minus itself is zero; name two different outputs.")
    weight = torch.zeros(1, size, dtype=torch.float64)
    weight[0, i], weight[0, j] = 1.0, -1.0
    return _appended(graph, f"output[{i}]-output[{j}]", Dense(weight, (size,)))


def differences(graph: Graph, i: int) -> Graph:
    r"""The network of all :math:`f_i - f_j`, j other than i, in the order of j.

    Raises:
        InvalidInput: If the output has another number of dimensions, or i is none of its rows or the only one.

    Example:
        >>> from lipcert import trace
        >>> differences(trace(torch.nn.Identity(), (3,)), 1).replay(torch.tensor([[1.0, 5.0, 3.0]])).tolist()
        [[4.0, 2.0]]
    """
    size = vector_size(graph, (i,))
    if size == 1:
        raise InvalidInput("a network with one output has no differences.")
    others = [j for j in range(size) if j != i]
    weight = -torch.eye(size, dtype=torch.float64)[others]
    weight[:, i] = 1.0
    return _appended(graph, f"output[{i}]-others", Dense(weight, (size,)))


def vector_size(graph: Graph, rows: Sequence[int] = (0,)) -> int:
    """How many outputs a network has.

    Raises:
        InvalidInput: If its output has another number of dimensions than one, or ``rows`` are not among them.
    """
    shape = graph.output.shape
    if len(shape) != 1:
        raise InvalidInput(f"outputs are picked from a vector, this network's output has shape {shape}; flatten it.")
    wrong = [row for row in rows if not 0 <= row < shape[0]]
    if wrong or not rows:
        raise InvalidInput(f"no outputs {wrong or 'named'}; this network's outputs are 0 to {shape[0] - 1}.")
    return shape[0]


def _appended(graph: Graph, name: str, linear: LinearMap) -> Graph:
    taken = {node.name for node in graph}
    while name in taken:
        name = f"({name})"
    return Graph((*graph.nodes, Affine(name, graph.output.name, linear, None)))
