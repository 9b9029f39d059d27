"""The semidefinite bound: the tightest one that diagonal multipliers give. Floor 3."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from lipcert.certificate import Block, Certificate, Multipliers, Validity
from lipcert.certifiers.composition import node_bounds
from lipcert.certifiers.product import Product
from lipcert.errors import UnsupportedOperation
from lipcert.graph import Activation, Affine, Graph, Opaque
from lipcert.lmi import normal_form, prove
from lipcert.lmi.normal_form import between, nearly_linear
from lipcert.norms import L2, Norms
from lipcert.solvers import Auto, Recursion, Solver


@dataclass(frozen=True)
class LipSDP:
    r"""Bound the Lipschitz constant by a semidefinite programme with one multiplier per neuron (l2 to l2).

    For slope-restricted activations the incremental quadratic constraint with multipliers :math:`\lambda \ge 0`
    implies :math:`|f(x) - f(y)|_2 \le \sqrt{\rho} |x - y|_2`; the solver looks for the multipliers with the least
    :math:`\rho`, the bound is computed from them again and proven with outward rounding. Residual branches, dense
    skips and concatenations are one constraint, not a sum of bounds. The network is cut where a function is not
    elementwise (maximum pooling, softmax): those parts are bounded by norms, and the bounds are multiplied. The bound
    is at most `Product`'s.

    Only diagonal multipliers are used: those that couple neurons (LipSDP-Network) are not valid, as
    relu(x) - relu(x - 1) shows.

    Args:
        solver: Proposes multipliers. Default: chosen by size.
        product: Bounds what has no quadratic constraint.

    Raises:
        UnsupportedOperation: If the norms are not l2 to l2, or a node has no Lipschitz constant.

    References:
        | Efficient and accurate estimation of Lipschitz constants for deep neural networks (Fazlyab et al., 2019)
        | Training robust neural networks using Lipschitz bounds (Pauli et al., 2021): why only diagonal multipliers

    Example:
        >>> import torch
        >>> from lipcert import trace
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1))
        >>> for weight, rows in ((model[0].weight, [[1.0], [1.0]]), (model[2].weight, [[1.0, -1.0]])):
        ...     weight.data = torch.tensor(rows)
        >>> graph = trace(model, (1,))
        >>> f"{Product()(graph).bound:.4f} {LipSDP()(graph).bound:.4f}"
        '2.0000 1.0000'
    """

    solver: Solver = field(default_factory=Auto)
    product: Product = field(default_factory=Product)

    def __call__(self, graph: Graph, norms: Norms = L2) -> Certificate:
        """Certify a graph; shapes are those of the graph's input and output without batch."""
        if norms != L2:
            raise UnsupportedOperation(f"`LipSDP` bounds l2->l2, not {norms}. Certify with `Product()`.", path="")
        layerwise = self.product(graph, norms)
        blocks, methods = [], []
        for source, target in parts(graph):
            form = normal_form(graph, source, target)
            solution = self.solver(form)
            value, multipliers = prove(form, solution.multipliers, Recursion()(form).multipliers)
            if math.isfinite(value):
                numbers = {name: tuple(lam.tolist()) for name, lam in multipliers.items()}
                blocks.append(Block(source, target, value, numbers))
                methods.append(solution.method)
        if not blocks:
            return layerwise
        gains = tuple(gain for gain in layerwise.evidence.items if not _inside(graph, gain.path, blocks))
        bound = node_bounds(graph, gains, norms, blocks)[graph.output.name]
        if not bound < layerwise.bound:
            return layerwise
        method = f"LipSDP: {'; '.join(dict.fromkeys(methods))}"
        return Certificate(bound, norms, Validity.RIGOROUS, method, graph.digest(), Multipliers(tuple(blocks), gains))


def parts(graph: Graph) -> Iterator[tuple[str, str]]:
    """The largest parts of a graph, as ``(source, target)``, that quadratic constraints cover and are worth one.

    A part begins and ends at a bottleneck: a node through which everything after it passes. It holds an activation
    and no function without a quadratic constraint.
    """
    names = bottlenecks(graph)
    begin, worth = names[0], False
    for before, name in itertools.pairwise(names):
        inner = between(graph, before, name)
        if any(isinstance(node, Opaque) for node in inner):
            if worth:
                yield begin, before
            begin, worth = name, False
        else:
            worth = worth or any(isinstance(node, Activation) and not nearly_linear(node) for node in inner)
    if worth:
        yield begin, names[-1]


def bottlenecks(graph: Graph) -> list[str]:
    """The nodes through which every path from the input to the output passes, in order.

    Example:
        >>> import torch
        >>> from lipcert import trace
        >>> len(bottlenecks(trace(torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Flatten()), (2, 3))))
        3
    """
    reached = {node.name for node in between(graph, graph.input.name, graph.output.name)} | {graph.input.name}
    position = {name: index for index, name in enumerate(node.name for node in graph if node.name in reached)}
    last = {
        name: max([position[reader] for reader in readers if reader in reached], default=len(position))
        for name, readers in graph.readers().items()
        if name in reached
    }
    found, furthest = [], 0
    for name, index in position.items():
        if furthest <= index:
            found.append(name)
        furthest = max(furthest, last[name])
    return found


def _inside(graph: Graph, path: tuple[str, ...], blocks: list[Block]) -> bool:
    covered = {node.name for block in blocks for node in between(graph, block.source, block.target)}
    return any(name in covered for name in path if isinstance(graph[name], Affine))
