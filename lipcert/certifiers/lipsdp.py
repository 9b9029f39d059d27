"""The semidefinite bound: the tightest one that diagonal multipliers give. Floor 3."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from lipcert.certificate import Block, Certificate, Gain, Gains, Multipliers, Validity
from lipcert.certifiers.composition import node_bounds
from lipcert.certifiers.product import Product
from lipcert.errors import UnsupportedOperation
from lipcert.graph import ON_A_DOMAIN, Activation, Graph, Node, Opaque
from lipcert.lmi import Multipliers as Numbers
from lipcert.lmi import NormalForm, normal_form, prove, tighten
from lipcert.lmi.groups import constrained
from lipcert.lmi.normal_form import between, neurons
from lipcert.lmi.sharing import PerChannel, shared
from lipcert.norms import L2, Norms
from lipcert.ranks import Map, in_process
from lipcert.solvers import Auto, Progress, Recursion, Solution, Solver
from lipcert.solvers.solution import silent


@dataclass(frozen=True, eq=False)
class Part:
    """A part of a graph with what a solver found for it, which no certificate holds.

    Attributes:
        form: The part in normal form; ``None`` on a torus.
        solution: What the solver found.
        block: The bound proven from it.
    """

    form: NormalForm | None
    solution: Solution
    block: Block


@dataclass(frozen=True, eq=False)
class Solved:
    """A certificate and the parts it was made of; none where the layerwise bound was the lower one."""

    certificate: Certificate
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True)
class LipSDP:
    r"""Bound the Lipschitz constant by a semidefinite programme with one multiplier per neuron (l2 to l2).

    For slope-restricted activations the incremental quadratic constraint with multipliers :math:`\lambda \ge 0`
    implies :math:`|f(x) - f(y)|_2 \le \sqrt{\rho} |x - y|_2`; the solver looks for the multipliers with the least
    :math:`\rho`, the bound is computed from them again and proven with outward rounding. Residual branches, dense
    skips and concatenations are one constraint, not a sum of bounds. MaxMin, GroupSort, FullSort and Householder are
    part of it: they keep one direction of every group of channels and do not stretch the rest, with one multiplier per
    group. The network is cut at other functions that are not elementwise (maximum pooling, softmax): those parts are
    bounded by norms, and the bounds are multiplied. The bound is at most `Product`'s.

    Only diagonal multipliers are used: those that couple neurons (LipSDP-Network) are not valid, as
    relu(x) - relu(x - 1) shows.

    Args:
        solver: Proposes multipliers. Default: chosen by size.
        product: Bounds what has no quadratic constraint.
        progress: Told of every iteration: its number, the squared bound so far of the part at hand, and what no
            multipliers can go below, squared.
        sharing: Which neurons of an image share a multiplier; fewer multipliers are found faster and bound less
            tightly. Default: none.
        over: Where the parts are solved and proved, and the norms of ``product`` unless it says so itself. Default: in
            this process.

    Raises:
        UnsupportedOperation: If the norms are not l2 to l2, or a node has no Lipschitz constant.

    References:
        | Efficient and accurate estimation of Lipschitz constants for deep neural networks (Fazlyab et al., 2019)
        | Training robust neural networks using Lipschitz bounds (Pauli et al., 2021): why only diagonal multipliers
        | Novel quadratic constraints for extending LipSDP beyond slope-restricted activations (Pauli et al., 2024)

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
    progress: Progress = field(default=silent, repr=False, compare=False)
    over: Map = field(default=in_process, repr=False, compare=False)
    sharing: PerChannel | None = None

    def __call__(self, graph: Graph, norms: Norms = L2) -> Certificate:
        """Certify a graph; shapes are those of the graph's input and output without batch."""
        return self.solve(graph, norms).certificate

    def solve(self, graph: Graph, norms: Norms = L2) -> Solved:
        """Certify a graph, and hand out what the solver found besides: dual bounds, multipliers, iterations."""
        require_l2(norms, "LipSDP")
        layerwise = self.product.shared(self.over)(graph, norms)
        found = self.solved(graph, parts(graph))
        certificate = assembled(graph, layerwise, [part.block for part in found], f"LipSDP: {methods(found)}")
        return Solved(certificate, () if certificate is layerwise else found)

    def solved(self, graph: Graph, ends: Iterable[tuple[str, str]]) -> tuple[Part, ...]:
        """Bound parts of a graph; those for which nothing is proven are left out.

        One may contract to less than what rounding of its terms leaves; it is bounded in two halves.
        """
        wanted = list(ends)
        found = self._whole(graph, wanted)
        missing = set(wanted) - {(part.block.source, part.block.target) for part in found}
        names = bottlenecks(graph) if missing else []
        for i, j in ((names.index(a), names.index(b)) for a, b in wanted if (a, b) in missing):
            if j - i >= 4:
                middle = names[(i + j) // 2]
                found += self.solved(graph, [(names[i], middle), (middle, names[j])])
        return found

    def _whole(self, graph: Graph, ends: Sequence[tuple[str, str]]) -> tuple[Part, ...]:
        """Bound parts, none of them divided."""
        items = [(self._form(graph, *pair), *pair) for pair in ends]

        def found(item: tuple[NormalForm, str, str]) -> tuple[Solution, Block] | None:
            part = self.part(*item)
            return None if part is None else (part.solution, part.block)

        # Forms hold matrices and are made everywhere; what was found is shared, as a solver may have been stopped.
        answers = self.over(
            found,
            items,
            about=f"parts {[item[1:] for item in items]} of the network {graph.digest()}",
            cost=lambda item: float(item[0].inputs + item[0].neurons) ** 3,
        )
        pairs = zip(items, answers, strict=True)
        return tuple(Part(form, *answer) for (form, *_), answer in pairs if answer is not None)

    def _form(self, graph: Graph, source: str, target: str) -> NormalForm:
        form = normal_form(graph, source, target)
        if self.sharing is None:
            return form
        return shared(form, {node.name: node.shape for node in graph}, self.sharing)

    def part(self, form: NormalForm, source: str, target: str, start: Numbers | None = None) -> Part | None:
        """Bound the part of a graph between two nodes, given in normal form; ``None`` if nothing is proven.

        Args:
            form: The part in normal form.
            source: Where it begins.
            target: Where it ends.
            start: Multipliers to begin at, strictly feasible.
        """
        solution = self.solver(form, start, self.progress) if form.layers else _linear(form)
        closed = Recursion()(form).multipliers
        value, multipliers = prove(form, solution.multipliers, closed)
        if not math.isfinite(value):  # nearly linear neurons have huge multipliers, for which rounding leaves no proof
            value, multipliers = prove(form, closed)
        if not math.isfinite(value):
            return None
        each = {layer.name: multipliers[layer.name] for layer in form.layers}
        if self.sharing is not None:  # what layers that sort share, they share in the certificate, too
            each |= {x.name: x.spread(each[x.name]) for x in form.layers if x.kept is None}
        numbers = {name: tuple(lam.tolist()) for name, lam in each.items()}
        return Part(form, solution, Block(source, target, value, numbers))


def _linear(form: NormalForm) -> Solution:
    """What there is to find where nothing bends."""
    rho = tighten(form, {})
    return Solution({}, rho, rho, 0, "a linear map")


def methods(found: Iterable[Part]) -> str:
    """What the solvers say of parts, each remark once."""
    return "; ".join(dict.fromkeys(part.solution.method for part in found))


def require_l2(norms: Norms, who: str) -> None:
    """Refuse other norms than l2 to l2.

    Raises:
        UnsupportedOperation: If they are others.
    """
    if norms != L2:
        raise UnsupportedOperation(
            f"`{who}` bounds l2->l2, not {norms}. Certify to linf with `RowLipSDP()`, or with `Product()`.", path=""
        )


def assembled(
    graph: Graph,
    layerwise: Certificate,
    blocks: Sequence[Block],
    method: str,
    gains: Iterable[Gain] = (),
    validity: Validity = Validity.RIGOROUS,
) -> Certificate:
    """The certificate that bounds of parts make, with layerwise gains elsewhere; the layerwise one if it is lower.

    Args:
        graph: The network.
        layerwise: A certificate with gains of all its affine nodes.
        blocks: Bounds of parts that do not overlap.
        method: What found them.
        gains: Further gains.
        validity: How far blocks and further gains may be trusted.
    """
    covered = {node.name for block in blocks for node in between(graph, block.source, block.target)}
    known = dict.fromkeys((*layerwise.evidence.items, *gains))
    outside = tuple(gain for gain in known if not covered.intersection(gain.path))
    bound = node_bounds(graph, outside, layerwise.norms, blocks)[graph.output.name]
    if not bound < layerwise.bound:
        return layerwise
    evidence = Multipliers(tuple(blocks), outside) if blocks else Gains(outside)
    return Certificate(bound, layerwise.norms, validity, method, layerwise.network, evidence)


def parts(graph: Graph) -> list[tuple[str, str]]:
    """The largest parts of a graph, as ``(source, target)``, that quadratic constraints cover and are worth one.

    A part begins and ends at a bottleneck: a node through which everything after it passes. It holds an activation
    and no function without a quadratic constraint. Activations at its ends are left out where all neurons are equally
    steep: what they do is a factor.
    """
    names = bottlenecks(graph)
    return [(names[i], names[j]) for i, j in runs(steps(graph, names), 0, len(names) - 1)]


def steps(graph: Graph, names: Sequence[str]) -> list[list[Node]]:
    """The nodes from each of the bottlenecks to the next."""
    return [between(graph, *ends) for ends in itertools.pairwise(names)]


def runs(steps: Sequence[Sequence[Node]], begin: int, end: int) -> Iterator[tuple[int, int]]:
    """`parts` of the steps from ``begin`` to before ``end``, by position."""
    cuts = [k for k in range(begin, end) if any(_cuts(node) for node in steps[k])]
    for i, j in zip([begin, *(cut + 1 for cut in cuts)], [*cuts, end], strict=True):
        while i < j and is_factor(steps[i]):
            i += 1
        while i < j and is_factor(steps[j - 1]):
            j -= 1
        if any(_worth(node) for step in steps[i:j] for node in step):
            yield i, j


def _worth(node: Node) -> bool:
    """Whether a node has multipliers, or multiplies its entries by different numbers, be it by 1 and -1."""
    if isinstance(node, Activation) and node.function == ON_A_DOMAIN and neurons(node) == 0:
        return any(bool((end != end.flatten()[0]).any()) for end in node.slope)
    return neurons(node) > 0


def is_factor(step: Sequence[Node]) -> bool:
    """Whether the nodes between two bottlenecks are one activation whose neurons are all equally steep."""
    if len(step) != 1 or not isinstance(step[0], Activation):
        return False
    lower, upper = step[0].slope
    steepest = lower.abs().maximum(upper.abs())
    return bool((steepest == steepest.max()).all())


def _cuts(node: Node) -> bool:
    return isinstance(node, Opaque) and not constrained(node)


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
