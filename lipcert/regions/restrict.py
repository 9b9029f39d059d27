"""The network that is left of another on a domain: its slopes are those that occur there. Floor 2.

Differences of values at two points of the domain obey it; it is not the function, and cannot be evaluated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch

from lipcert.certificate import Certificate
from lipcert.errors import CheckFailed, InvalidInput, NotLipschitz
from lipcert.graph import ON_A_DOMAIN, Activation, Graph, Node, Opaque
from lipcert.regions.comparators import compared
from lipcert.regions.functions import LOCAL, TABLE, slopes
from lipcert.regions.joint import replaced
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


def remaining(graph: Graph, certificate: Certificate) -> Graph:
    """The network that a certificate's evidence is about: the network itself, or what is left of it on its ranges.

    Raises:
        CheckFailed: If the ranges are not of this network's nonlinear nodes.
    """
    return graph if certificate.everywhere else restricted(*stated_by(graph, certificate))


def stated_by(graph: Graph, certificate: Certificate) -> tuple[Graph, dict[str, Range]]:
    """The form of a network that a certificate's ranges are of, and these ranges in the shapes of its nodes.

    Raises:
        CheckFailed: If they are not of this network's nonlinear nodes.
    """
    graph = compared(graph, certificate.ranges)
    shapes = {node.name: graph[node.source].shape for node in graph if isinstance(node, Activation | Opaque)}
    try:
        return graph, {
            name: Range(*(torch.tensor(end, dtype=torch.float64).reshape(shapes[name]) for end in ends))
            for name, ends in certificate.ranges.items()
        }
    except (KeyError, RuntimeError) as error:
        raise CheckFailed(f"the ranges are not those of this network's nonlinear nodes: {error}") from error


def _restricted(node: Node, read: Range | None) -> Iterator[Node]:
    if isinstance(node, Activation) and read is not None:
        found = slopes(node, read)
        # A name outside the checker's table: its slopes are those of the range, which is proved apart.
        yield replace(node, function=ON_A_DOMAIN, parameters={}, slope=(found.low, found.high))
    elif isinstance(node, Opaque) and not node.gains:
        yield from _with_constants(node, read)
    else:
        yield node


def _with_constants(node: Opaque, read: Range | None) -> Iterator[Node]:
    if read is None:
        raise NotLipschitz(
            f"`{node.name}` ({node.function}) has no Lipschitz constant on the whole space, and nothing finite is "
            f"known of what it reads on this domain. Give a smaller domain, or bound its input by torch.tanh.",
            path=node.name,
        )
    if node.function in LOCAL:
        found = TABLE[node.function].slopes(read, {})
        if found.bounded:
            yield Activation(node.name, node.source, node.shape, ON_A_DOMAIN, {}, (found.low, found.high), node.call)
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
