r"""A product of bounds of consecutive parts, for networks too large or too deep for one constraint. Floor 3.

Cutting a network at a bottleneck c gives :math:`L \le L_{in \to c} L_{c \to out}`: every part is cheaper than the
whole, and what the layers on both sides of c do to each other is lost. A part with n unknowns costs about n^3.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from lipcert.certificate import Certificate, Multipliers, Validity
from lipcert.certifiers.combine import TRUST, Certifier, about_all
from lipcert.certifiers.lipsdp import (
    LipSDP,
    Solved,
    assembled,
    bottlenecks,
    methods,
    parts,
    require_l2,
    runs,
    steps,
)
from lipcert.certifiers.product import Product
from lipcert.errors import InvalidInput
from lipcert.graph import Activation, Affine, Graph, Input, Node
from lipcert.lmi.normal_form import LARGEST, between, neurons
from lipcert.norms import L2, Norms


@dataclass(frozen=True)
class Split:
    r"""Multiply the bounds of consecutive parts of a network, each by another certifier (l2 to l2).

    Parts meet at bottlenecks: nodes through which everything after them passes, but not between two affine maps in a
    row. Where they meet is found by a dynamic programme. By default there are as few parts as the cap allows, and among
    those the cheapest by :math:`\sum n^3`, where n counts a part's `unknowns`. A part over the cap is made as small as
    the bottlenecks allow and bounded by norms; the method says so.

    The bound is at most `Product`'s, and at least that of ``inner`` on the whole, up to the solver's accuracy.

    Args:
        inner: Bounds the parts.
        parts: How many parts, or the names of the nodes where they meet. Default: as few as the cap allows.
        largest: The cap: most unknowns of a part. It does not hold for parts that are named.
        product: Bounds what ``inner`` is not asked about.

    Raises:
        UnsupportedOperation: If the norms are not l2 to l2, or a node has no Lipschitz constant.
        InvalidInput: If ``parts`` names a node that is no bottleneck, or asks for more parts than there can be.

    References:
        | Efficient and accurate estimation of Lipschitz constants for deep neural networks (Fazlyab et al., 2019),
          section 3: splitting into subnetworks

    Example:
        >>> import torch
        >>> from lipcert import trace
        >>> _ = torch.manual_seed(0)
        >>> layers = [torch.nn.Linear(4, 4) for _ in range(4)]
        >>> graph = trace(torch.nn.Sequential(*(m for layer in layers for m in (layer, torch.nn.ReLU()))), (4,))
        >>> LipSDP()(graph).bound < Split(parts=2)(graph).bound < Product()(graph).bound
        True
    """

    inner: Certifier = field(default_factory=LipSDP)
    parts: int | tuple[str, ...] | None = None
    largest: int = 2000
    product: Product = field(default_factory=Product)

    def __call__(self, graph: Graph, norms: Norms = L2) -> Certificate:
        """Certify a graph; shapes are those of the graph's input and output without batch."""
        return self.solve(graph, norms).certificate

    def solve(self, graph: Graph, norms: Norms = L2) -> Solved:
        """Certify a graph, and hand out what the solver found besides where ``inner`` is `LipSDP`."""
        require_l2(norms, "Split")
        layerwise = self.product(graph, norms)
        outline = Outline(graph)
        ends = self._ends(outline)
        fits = [isinstance(self.parts, tuple) or outline.most(*piece) <= self.largest for piece in ends]
        pieces = [(outline.names[i], outline.names[j]) for i, j in ends]
        says = [f"{len(pieces)} parts meet at {', '.join(f'`{a}`' for a, _ in pieces[1:])}"] if pieces[1:] else []
        says += [
            f"`{a}` to `{b}` left to norms, over {self.largest} unknowns"
            for (a, b), fit in zip(pieces, fits, strict=True)
            if not fit
        ]
        pieces = [piece for piece, fit in zip(pieces, fits, strict=True) if fit]
        if isinstance(self.inner, LipSDP):
            inner = [ends for piece in pieces for ends in parts(subgraph(graph, *piece))]
            found = self.inner.solved(graph, inner)
            method = "; ".join([*says, methods(found)])
            certificate = assembled(graph, layerwise, [part.block for part in found], f"Split: {method}")
            return Solved(certificate, () if certificate is layerwise else found)
        answers = [about_all(self.inner(subgraph(graph, *piece), norms), self.inner) for piece in pieces]
        evidence = [answer.evidence for answer in answers]
        blocks = [block for each in evidence if isinstance(each, Multipliers) for block in each.blocks]
        gains = [gain for each in evidence for gain in each.items]
        validity = max([Validity.RIGOROUS, *(answer.validity for answer in answers)], key=TRUST.index)
        method = "; ".join([*says, *dict.fromkeys(answer.method for answer in answers)])
        return Solved(assembled(graph, layerwise, blocks, f"Split: {method}", gains, validity))

    def _ends(self, outline: Outline) -> list[tuple[int, int]]:
        if isinstance(self.parts, tuple):
            return outline.named(self.parts)
        return outline.cheapest(self.largest, self.parts)


def unknowns(inputs: int, neurons: int) -> int:
    """What a part is counted as: neurons, inputs up to as many, and half of those beyond, which only the proof sees.

    Example:
        >>> unknowns(10, 30), unknowns(784, 84)
        (40, 518)
    """
    return neurons + min(inputs, neurons) + max(0, inputs - neurons) // 2


class Outline:
    """The bottlenecks of a graph, what lies between them, and what it costs to bound stretches of it."""

    def __init__(self, graph: Graph) -> None:
        """Find them."""
        self.names = bottlenecks(graph)
        self.nodes = [graph[name] for name in self.names]
        self.steps = steps(graph, self.names)
        # Not between two affine maps, whose norm together is smaller; nor after an activation: before it is as good.
        inner = range(1, len(self.names) - 1)
        self.points = [0, *(k for k in inner if not _is_inside(self.nodes[k], self.steps[k])), len(self.names) - 1]

    def unknowns(self, begin: int, end: int) -> list[int]:
        """The unknowns of each of the parts that `LipSDP` makes of the stretch between two bottlenecks."""
        return [self._unknowns(i, j) for i, j in self.runs(begin, end)]

    def runs(self, begin: int, end: int) -> list[tuple[int, int]]:
        """The parts that `LipSDP` makes of the stretch between two bottlenecks."""
        return list(runs(self.steps, begin, end))

    def _unknowns(self, i: int, j: int) -> int:
        inner = [node for step in self.steps[i:j] for node in step]
        count = sum(neurons(node) for node in inner)
        inputs = _size(self.nodes[i])
        widest = max(inputs + count, *(_size(node) for node in inner))
        # No normal form holds more than that many, whatever the cap.
        return max(widest, unknowns(inputs, count)) if widest > LARGEST else unknowns(inputs, count)

    def most(self, begin: int, end: int) -> int:
        """The unknowns of the largest of these parts."""
        return max(self.unknowns(begin, end), default=0)

    def named(self, cuts: Sequence[str]) -> list[tuple[int, int]]:
        """The stretches between the nodes named.

        Raises:
            InvalidInput: If one is no inner bottleneck, or their order is another.
        """
        wrong = [name for name in cuts if name not in self.names[1:-1]]
        places = [0, *(self.names.index(name) for name in cuts if name not in wrong), len(self.names) - 1]
        if wrong or places != sorted(set(places)):
            raise InvalidInput(
                f"parts cannot meet at {list(cuts)}; a network is cut in order at nodes through which everything "
                f"after them passes, here {self.names[1:-1]}."
            )
        return list(itertools.pairwise(places))

    def cheapest(self, largest: int, count: int | None) -> list[tuple[int, int]]:
        """The stretches that leave least to norms, are fewest (or ``count``), and cost least, in this order.

        Raises:
            InvalidInput: If there cannot be ``count`` of them.
        """
        last = len(self.points) - 1
        if count is not None and not 1 <= count <= last:
            raise InvalidInput(f"{count} parts asked for; this network has between 1 and {last}.")
        # The best way to every point, and by every number of parts if that is given: price and points passed.
        best: dict[tuple[int, int], tuple[tuple[int, int, int], list[int]]] = {(0, 0): ((0, 0, 0), [0])}
        for a, b in itertools.combinations(range(last + 1), 2):
            price = self._price(a, b, largest)
            for k in range(1 if count is None else min(count, a + 1)):
                if price is None or (a, k) not in best:
                    continue
                (left, number, cost), path = best[a, k]
                total = left + price[0], number + (count is None), cost + price[1]
                key = (b, 0) if count is None else (b, k + 1)
                if key not in best or total < best[key][0]:
                    best[key] = total, [*path, b]
        path = best[last, count or 0][1]
        return list(itertools.pairwise(self.points[k] for k in path))

    def _price(self, a: int, b: int, largest: int) -> tuple[int, int] | None:
        """Whether a stretch is left to norms, and its cost; ``None`` if it is too large and can be cut."""
        sizes = self.unknowns(self.points[a], self.points[b])
        if max(sizes, default=0) > largest:
            return (1, 0) if b == a + 1 else None
        return 0, sum(size**3 for size in sizes)


def subgraph(graph: Graph, source: str, target: str) -> Graph:
    """The part of a graph from one node to another, as a graph whose input has the source's name."""
    return Graph((Input(source, graph[source].shape), *between(graph, source, target)))


def _is_inside(node: Node, after: Sequence[Node]) -> bool:
    """Whether a bottleneck is an activation, or followed by an affine map only."""
    return isinstance(node, Activation) or (len(after) == 1 and isinstance(after[0], Affine))


def _size(node: Node) -> int:
    return math.prod(node.shape)
