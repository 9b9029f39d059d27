"""The network that is left of another on a domain: its slopes are those that occur there. Floor 2.

Differences of values at two points of the domain obey it; it is not the function, and cannot be evaluated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch

from lipcert.errors import InvalidInput, NotLipschitz
from lipcert.graph import Activation, Graph, Node, Opaque
from lipcert.regions.functions import LOCAL, TABLE
from lipcert.regions.joint import DECLARED, replaced
from lipcert.regions.propagate import slopes
from lipcert.regions.range import Range


def restricted(graph: Graph, stated: Mapping[str, Range]) -> Graph:
    """Replace every nonlinear node by what is left of it on the range of what it reads.

    Args:
        graph: The network.
        stated: What nonlinear nodes read, by their names; a node that is missing keeps its constants.

    Raises:
        NotLipschitz: If a function has no finite constant on its range.
        InvalidInput: If a name that is needed is taken.
    """
    taken = {node.name for node in graph}
    nodes: list[Node] = []
    for node in graph:
        found = list(_restricted(node, stated.get(node.name)))
        for new in found[:-1]:
            if new.name in taken:
                raise InvalidInput(f"a module is called `{new.name}`, as is a part of `{node.name}`. Rename it.")
        nodes += found
    return Graph(tuple(nodes))


def _restricted(node: Node, read: Range | None) -> Iterator[Node]:
    if isinstance(node, Activation) and read is not None:
        found = slopes(node, read)
        # A name outside the checker's table: its slopes are those of the range, which is proved apart.
        yield replace(node, function=DECLARED, parameters={}, slope=(found.low, found.high))
    elif isinstance(node, Opaque) and not node.gains:
        yield from _with_constants(node, read)
    else:
        yield node


def _with_constants(node: Opaque, read: Range | None) -> Iterator[Node]:
    if read is None:
        raise NotLipschitz(
            f"`{node.name}` ({node.function}) has no Lipschitz constant on the whole space, and nothing finite is known "
            f"of what it reads on this domain. Give a smaller domain, or bound its input by torch.tanh.",
            path=node.name,
        )
    if node.function in LOCAL:
        found = TABLE[node.function].slopes(read, {})
        if found.bounded:
            yield Activation(node.name, node.source, node.shape, DECLARED, {}, (found.low, found.high), node.call)
            return
    nodes = None if node.function in LOCAL else replaced(node, read)
    if nodes is None:
        low, high = float(torch.min(read.low)), float(torch.max(read.high))
        raise NotLipschitz(
            f"`{node.name}` ({node.function}) has no finite constant where it reads numbers from {low:.6g} to "
            f"{high:.6g}. Give a smaller domain, or keep its input away from where it is steep.",
            path=node.name,
        )
    yield from nodes
