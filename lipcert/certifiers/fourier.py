"""Semidefinite bounds of convolutional parts, frequency by frequency. Floor 3."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from lipcert import solvers
from lipcert.certificate import Block, Certificate
from lipcert.certifiers.composition import node_bounds
from lipcert.certifiers.lipsdp import LipSDP, Part, Solved, assembled, is_factor, methods, require_l2
from lipcert.certifiers.product import Product
from lipcert.certifiers.split import Outline, subgraph
from lipcert.errors import UnsupportedOperation
from lipcert.graph import Graph
from lipcert.linear import Dense
from lipcert.lmi import normal_form, reduced
from lipcert.lmi.layout import Layout, layout
from lipcert.lmi.normal_form import neurons
from lipcert.lmi.taps import Kernel
from lipcert.lmi.torus import torus_form
from lipcert.lmi.waves import prove_on, prove_with_head
from lipcert.norms import L2, Norms
from lipcert.ranks import Map, in_process
from lipcert.solvers import Coupled, Exchange, Progress, Solution
from lipcert.solvers.solution import silent


@dataclass(frozen=True)
class FourierLipSDP:
    r"""Bound convolutional parts by a semidefinite programme with one multiplier per channel (l2 to l2).

    A part made of convolutions, transposed convolutions, average pooling, scalings per channel, sums, concatenations
    of channels and elementwise activations is embedded in a torus (`lipcert.lmi.torus` has the proof), on which the
    constraint of `LipSDP` falls apart into one small constraint per frequency; strides multiply channels by phases,
    each with a multiplier of its own. The cost does not depend on the number of neurons but on the number of
    frequencies, of which the solver looks at the few that matter; the proof, rounding included, looks at all. The
    network is cut where something else stands, where a sum of convolutions is padded without an activation in between
    (such as the state of a pre-activation residual network), and where a constraint would be too large. A dense head is
    bounded with its trunk (`lipcert.lmi.head`) and apart from it, and the lower bound counts. What is left
    is bounded by ``dense``, or by norms. The bound is at most `Product`'s.

    Multipliers per channel cost tightness against those per neuron (`LipSDP`), most on small images, and the larger
    the image, the less.

    Args:
        seconds: Time for the solvers; parts get shares by their work.
        largest: Most rows of a part's constraint at one frequency.
        gap: Relative gap of the bound K asked for.
        dense: Most unknowns, counted as `Split` does, of what is left to `LipSDP`.
        product: Bounds what has no quadratic constraint.
        progress: As for `LipSDP`.
        over: Where the parts are solved, and frequencies proved a few at a time. Default: in this process.

    Raises:
        UnsupportedOperation: If the norms are not l2 to l2, or a node has no Lipschitz constant.

    References:
        | The Singular Values of Convolutional Layers (Sedghi et al., 2019): the torus
        | Lipschitz constant estimation for 1D convolutional neural networks (Pauli et al., 2023): multipliers per
          channel, by a state space

    Example:
        >>> import torch
        >>> from lipcert import trace
        >>> _ = torch.manual_seed(0)
        >>> convolutions = [torch.nn.Conv2d(a, b, 3, padding=1) for a, b in ((1, 4), (4, 4), (4, 2))]
        >>> net = torch.nn.Sequential(*(m for conv in convolutions for m in (conv, torch.nn.ReLU())))
        >>> graph = trace(net, (1, 12, 12))
        >>> FourierLipSDP()(graph).bound < 0.8 * Product()(graph).bound
        True
    """

    seconds: float = 300.0
    largest: int = 1500
    gap: float = 1e-4
    dense: int = 2000
    product: Product = field(default_factory=Product)
    progress: Progress = field(default=silent, repr=False, compare=False)
    over: Map = field(default=in_process, repr=False, compare=False)

    def __call__(self, graph: Graph, norms: Norms = L2) -> Certificate:
        """Certify a graph; shapes are those of the graph's input and output without batch."""
        return self.solve(graph, norms).certificate

    def solve(self, graph: Graph, norms: Norms = L2) -> Solved:
        """Certify a graph, and hand out what the solvers found besides."""
        require_l2(norms, "FourierLipSDP")
        layerwise = self.product.shared(self.over)(graph, norms)
        outlines = [TorusOutline(graph, allowed) for allowed in (without_head, with_head)]
        plans = [outline.stretches(self.largest, self.dense) for outline in outlines]
        stretches = list(dict.fromkeys(stretch for plan in plans for stretch in plan))
        solved = self.over(
            lambda stretch: self._solved(graph, stretch, self._share(stretch, stretches)),
            stretches,
            about=f"stretches {[stretch.ends for stretch in stretches]} of the network {graph.digest()}",
            cost=lambda stretch: stretch.work,
        )
        pairs = zip(stretches, solved, strict=True)
        parts = {stretch: self._part(graph, stretch, *each) for stretch, each in pairs if each is not None}
        answers = [self._answer(graph, layerwise, [parts.get(stretch) for stretch in plan]) for plan in plans]
        return min(answers, key=lambda answer: answer.certificate.bound)

    def _answer(self, graph: Graph, layerwise: Certificate, parts: Sequence[Part | None]) -> Solved:
        found = tuple(p for p in parts if p is not None and p.block.value < _layerwise(graph, layerwise, p.block))
        certificate = assembled(graph, layerwise, [part.block for part in found], f"FourierLipSDP: {methods(found)}")
        return Solved(certificate, () if certificate is layerwise else found)

    def _share(self, stretch: Stretch, stretches: Sequence[Stretch]) -> float:
        work = stretch.work / sum(each.work for each in stretches)
        return self.seconds * (0.2 / len(stretches) + 0.8 * work)

    def _solved(self, graph: Graph, stretch: Stretch, seconds: float) -> tuple[Solution, Block | None] | None:
        """Multipliers of a stretch, and of a dense one also its proof."""
        if stretch.kind == "dense":
            inner = LipSDP(solvers.Auto(gap=self.gap, seconds=seconds), progress=self.progress)
            part = inner.part(normal_form(graph, *stretch.ends), *stretch.ends)
            return None if part is None else (part.solution, part.block)
        form = torus_form(graph, *stretch.ends)
        every = form.frequencies()
        share = seconds if form.head is None else 0.3 * seconds
        found = Exchange(self.gap, seconds=share)(form.at(every), None, self.progress)
        if form.head is None:
            return found, None
        if not 0.0 < found.rho < math.inf:
            return None
        start = {name: lam / found.rho for name, lam in found.multipliers.items()}
        coupled = Coupled(seconds=seconds - share)(form.headed_at(every), form.weights(every), start, self.progress)
        return None if coupled is None else (coupled, None)

    def _part(self, graph: Graph, stretch: Stretch, solution: Solution, block: Block | None) -> Part | None:
        if stretch.kind == "dense":
            return None if block is None else Part(normal_form(graph, *stretch.ends), solution, block)
        form = torus_form(graph, *stretch.ends)
        if form.head is None:
            small = reduced(form.at(form.frequencies()))
            value, multipliers = prove_on(form, small, solution.multipliers, over=self.over)
        else:
            value, multipliers = prove_with_head(form, solution.multipliers, solution.rho, self.over)
        if not math.isfinite(value):
            return None
        numbers = {name: tuple(lam.tolist()) for name, lam in multipliers.items()}
        return Part(None, solution, Block(*stretch.ends, value, numbers, form.torus))


def _layerwise(graph: Graph, layerwise: Certificate, block: Block) -> float:
    """What norms say of a part."""
    part = subgraph(graph, block.source, block.target)
    names = {node.name for node in part} - {block.source}
    gains = [gain for gain in layerwise.evidence.items if names.issuperset(gain.path)]
    return node_bounds(part, gains, L2)[block.target]


@dataclass(frozen=True)
class Stretch:
    """A part between two nodes: on a torus, on a torus with a dense head, or with a dense constraint.

    Attributes:
        ends: The nodes.
        span: Their places among the bottlenecks.
        kind: How it is bounded.
        work: About what that costs.
    """

    ends: tuple[str, str]
    span: tuple[int, int]
    kind: Literal["torus", "head", "dense"]
    work: float


def without_head(found: Layout) -> bool:
    """Whether a part has no dense head."""
    return not found.head


def with_head(found: Layout) -> bool:
    """Whether a part may stand on a torus: all may."""
    return True


class TorusOutline(Outline):
    """The bottlenecks of a graph, and which stretches between them fit a torus."""

    def __init__(self, graph: Graph, allowed: Callable[[Layout], bool] = without_head) -> None:
        """Find them.

        Args:
            graph: The network.
            allowed: Which parts to put on a torus.
        """
        super().__init__(graph)
        self.graph = graph
        self._allowed = allowed
        self._kernels: dict[str, Kernel] = {}
        self._known: dict[tuple[int, int], tuple[int, Stretch] | None] = {}

    def stretches(self, largest: int, dense: int) -> list[Stretch]:
        """What stands on a torus, and what is left to dense constraints."""
        found: list[Stretch] = []
        end = 0
        for a, b in self.cheapest(largest, None):
            stretch = self._fitting(*self._trimmed(a, b), largest)
            if stretch is not None:
                found += [*self._dense(end, stretch.span[0], dense), stretch]
                end = stretch.span[1]
        return [*found, *self._dense(end, len(self.names) - 1, dense)]

    def _dense(self, begin: int, end: int, dense: int) -> list[Stretch]:
        sizes = {(i, j): self._unknowns(i, j) for i, j in self.runs(begin, end)}
        return [self._stretch(*span, "dense", 3.0 * size**3) for span, size in sizes.items() if size <= dense]

    def _stretch(self, i: int, j: int, kind: Literal["torus", "head", "dense"], work: float) -> Stretch:
        return Stretch((self.names[i], self.names[j]), (i, j), kind, work)

    def _price(self, a: int, b: int, largest: int) -> tuple[int, int] | None:
        """Whether a stretch does not fit a torus, and its cost; ``None`` if it can be cut and has to be."""
        i, j = self._trimmed(self.points[a], self.points[b])
        if not self._bends(i, j):
            return 0, 0
        stretch = self._fitting(i, j, largest)
        if stretch is not None:
            return 0, int(stretch.work)
        return (1, 0) if b == a + 1 else None

    def _bends(self, i: int, j: int) -> bool:
        return any(neurons(node) for step in self.steps[i:j] for node in step)

    def _trimmed(self, i: int, j: int) -> tuple[int, int]:
        """Without activations at the ends, which are factors."""
        while i < j and is_factor(self.steps[i]):
            i += 1
        while i < j and is_factor(self.steps[j - 1]):
            j -= 1
        return i, j

    def _fitting(self, i: int, j: int, largest: int) -> Stretch | None:
        """A stretch that fits a torus and has at most so many rows."""
        if (i, j) not in self._known:
            self._known[i, j] = self._measured(i, j)
        known = self._known[i, j]
        return None if known is None or known[0] > largest else known[1]

    def _measured(self, i: int, j: int) -> tuple[int, Stretch] | None:
        """The rows at one frequency of a stretch that fits a torus."""
        if i >= j or not self._bends(i, j):
            return None
        try:
            found = layout(self.graph, self.names[i], self.names[j], known=self._kernels)
        except UnsupportedOperation:
            return None
        if not self._allowed(found):
            return None
        widths, count = found.widths, math.prod(found.torus) // 2 + 1
        if not found.head:
            return sum(widths), self._stretch(i, j, "torus", float(count * _work(widths)))
        if not any(isinstance(node.map, Dense) for node in found.head):
            return None
        outputs = math.prod(self.nodes[j].shape)
        return sum(widths), self._stretch(i, j, "head", 10.0 * count * _work([*widths, outputs]))


def _work(widths: Sequence[int]) -> int:
    """Multiplications at one frequency, up to a factor, of a chain with these widths."""
    return sum((a + b) ** 3 for a, b in itertools.pairwise(widths))
