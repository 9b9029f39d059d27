r"""What every node of a network can be on a domain: intervals, tightened by linear relaxation. Floor 2.

Forward, intervals go through the network node by node. Where an activation or another nonlinear node reads, each entry
is also bounded by a linear function of the input, found backwards: activations are replaced by lines that enclose them
on the ranges found so far (CROWN). Both hold, so the intersection does.

References:
    | Efficient neural network robustness certification with general activation functions (Zhang et al., 2018)
    | An abstract domain for certifying neural networks (Singh et al., 2019)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import assert_never

import torch

from lipcert.domain import Domain, limits
from lipcert.errors import CheckFailed
from lipcert.graph import Activation, Add, Affine, Concat, Graph, Input, Node, Opaque
from lipcert.regions.backward import WORK, backward, work
from lipcert.regions.comparators import compared
from lipcert.regions.functions import slopes, values_on
from lipcert.regions.joint import joint_values
from lipcert.regions.range import Range, added, mapped

Ranges = dict[str, Range]


def propagated(graph: Graph, domain: Domain, largest: int = WORK) -> tuple[Ranges, Ranges]:
    """Bound all nodes of a network on a domain.

    Args:
        graph: The network.
        domain: Where the input is; a box or an l2 ball.
        largest: Most multiply-adds of a linear relaxation; nodes that would take more keep their intervals.

    Returns:
        What each nonlinear node reads, as a certificate states it; and what each node can be. Nodes of which nothing
        finite is known are left out of the first.

    Example:
        >>> from lipcert import trace
        >>> from lipcert.domain import Box
        >>> graph = trace(torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Flatten()), (2,))
        >>> stated, found = propagated(graph, Box(-1.0, 2.0))
        >>> [round(end, 6) for end in stated["0"].low.tolist() + stated["0"].high.tolist()]
        [-1.0, -1.0, 2.0, 2.0]
    """
    return _walked(graph, domain, largest, lambda name, read: read.stated() if read.bounded else None)


def output_range(graph: Graph, domain: Domain, largest: int = WORK) -> Range:
    """Bound what a network can give on a domain: by intervals, and by linear functions of the input.

    Args:
        graph: The network.
        domain: Where the input is.
        largest: As for `propagated`.

    Example:
        >>> from lipcert import trace
        >>> from lipcert.domain import Box
        >>> layers = torch.nn.Linear(1, 2), torch.nn.Linear(2, 1)
        >>> for layer, rows in zip(layers, ([[1.0], [1.0]], [[1.0, -1.0]])):
        ...     layer.weight.data, layer.bias.data = torch.tensor(rows), torch.zeros(len(rows))
        >>> found = output_range(trace(torch.nn.Sequential(*layers), (1,)), Box(-1.0, 1.0))  # x - x
        >>> bool(found.high.abs().max() < 1e-12)
        True
    """
    form = compared(graph)
    stated, found = propagated(form, domain, largest)
    return _tightened(form, domain, largest, form.output.name, found, stated)


def _tightened(
    graph: Graph, domain: Domain, largest: int, name: str, found: Mapping[str, Range], stated: Mapping[str, Range]
) -> Range:
    known = found[name]
    if known.bounded and 0 < work(graph, name) <= largest:
        return known.within(backward(graph, domain, name, found, stated))
    return known


def require_ranges(graph: Graph, domain: Domain, claimed: Mapping[str, Range]) -> None:
    """Prove ranges again, each from the domain and those before it, by what `propagated` does.

    Args:
        graph: The network.
        domain: Where the input is.
        claimed: Of nonlinear nodes, what they are said to read.

    Raises:
        CheckFailed: If a range is not proven, naming the node and both ranges.
    """
    strange = claimed.keys() - {node.name for node in graph if isinstance(node, Activation | Opaque)}
    if strange:
        raise CheckFailed(f"ranges of {sorted(strange)[:5]}, which are no nonlinear nodes of this network.")

    def state(name: str, read: Range) -> Range | None:
        said = claimed.get(name)
        if said is None:
            return None
        outside = ~((read.low >= said.low) & (read.high <= said.high))  # so are ends that are no numbers
        if said.low.shape != read.low.shape or bool(outside.any()):
            raise CheckFailed(
                f"`{name}` is said to read numbers between {float(said.low.min())!r} and {float(said.high.max())!r}; "
                f"{int(outside.sum())} of its {outside.numel()} entries are proven in wider ranges only, altogether "
                f"between {float(read.low.min())!r} and {float(read.high.max())!r}."
            )
        return said

    _walked(graph, domain, WORK, state)


def _walked(
    graph: Graph, domain: Domain, largest: int, state: Callable[[str, Range], Range | None]
) -> tuple[Ranges, Ranges]:
    """Bound the nodes in order; ``state`` is shown what a nonlinear node reads and says what goes on from there."""
    low, high = limits(domain, graph.input.shape)
    found: Ranges = {graph.input.name: Range(low, high)}
    stated: Ranges = {}
    for node in graph.nodes[1:]:
        if isinstance(node, Activation | Opaque):
            read = _tightened(graph, domain, largest, node.source, found, stated)
            said = state(node.name, read)
            if said is not None:
                stated[node.name] = found[node.source] = said
        found[node.name] = _forward(node, found, stated)
    return stated, found


def _forward(node: Node, found: Mapping[str, Range], stated: Mapping[str, Range]) -> Range:
    match node:
        case Input():
            return found[node.name]
        case Affine(source=source, map=linear, bias=bias):
            wide = None if bias is None else bias.expand(node.shape)
            return mapped(linear, wide, found[source])
        case Activation(source=source, function=function, parameters=parameters):
            read = found[source]
            return values_on(function, parameters, read, slopes(node, read))
        case Opaque():
            return joint_values(node, found[node.source])
        case Add(sources=names):
            return added(*(found[name] for name in names)).cleared()
        case Concat(sources=names, dim=dim):
            parts = [found[name] for name in names]
            return Range(*(torch.cat([getattr(part, end) for part in parts], dim) for end in ("low", "high")))
        case _:
            assert_never(node)
