r"""A part of a graph in normal form: every signal is linear in the input and in the activations' outputs. Floor 2.

With :math:`\delta` the difference of two runs and :math:`z = (\delta x, \delta u_1, \dots, \delta u_k)`,

.. math:: \delta v_k = V_k z, \qquad \delta y = Y z,

where :math:`u_k = \varphi_k(v_k)` elementwise with slopes in :math:`[\alpha, \beta]`, or so on the whole where neurons
share a multiplier (`groups`). Sequential networks, residual branches and dense concatenations are all of this form;
biases drop out of differences. The form is kept by blocks: a signal is a matrix for each variable it reads.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipcert.errors import InvalidInput, UnsupportedOperation
from lipcert.graph import ON_A_DOMAIN, Activation, Add, Affine, Concat, Graph, Node, Opaque, sources
from lipcert.linear import Adjoint, Conv, Dense, Diagonal, LinearMap, Reshape, Selection, dense, modulus
from lipcert.lmi.groups import Groups, constrained, coordinates, groups

INPUT = ""
"""The name of the input's variable; activations are named as in the graph."""

LARGEST = 12_000
"""Most input entries and neurons together; above, the matrices do not fit a workstation."""

Multipliers = Mapping[str, Tensor]
"""For every activation, numbers >= 0, ``(count,)``: one per neuron unless neurons share one."""


@dataclass(frozen=True, eq=False)
class Signal:
    """A difference ``sum of blocks[name] z[name]``.

    Attributes:
        blocks: For every variable it reads, a float64 matrix ``(size, variable's size)``.
        sizes: For every block a matrix that bounds the terms its entries are sums of; ``None`` if entries are exact.
        roundings: How many roundings of ``sizes`` an entry may be off.
        variable: The variable that the signal is, if it is one.
    """

    blocks: Mapping[str, Tensor]
    sizes: Mapping[str, Tensor] | None = None
    roundings: int = 0
    variable: str | None = None

    def magnitudes(self) -> Mapping[str, Tensor]:
        """``sizes``, which for exact entries are their moduli."""
        return {name: block.abs() for name, block in self.blocks.items()} if self.sizes is None else self.sizes

    def value(self, z: Mapping[str, Tensor], size: int) -> Tensor:
        """The signal ``(..., size, r)`` of variables ``(..., width, r)``."""
        if not self.blocks:
            some = next(iter(z.values()))
            return some.new_zeros(*some.shape[:-2], size, some.shape[-1])
        return total(block @ z[name] for name, block in self.blocks.items())


@dataclass(frozen=True, eq=False)
class Layer:
    """An activation: its name, what it reads, its slopes, ``(size,)`` each, and which multiplier each neuron uses.

    Attributes:
        name: As in the graph.
        v: What it reads.
        alpha: Slopes from below.
        beta: Slopes from above.
        index: For every neuron the number of its multiplier, ``(size,)``; ``None`` where each has its own.
        kept: Of a layer that sorts or reflects groups, what it passes on unchanged: a variable of its own, named
            `passed`, so that what reads it need not be written through the layer.
    """

    name: str
    v: Signal
    alpha: Tensor
    beta: Tensor
    index: Tensor | None = None
    kept: Signal | None = None

    @property
    def passed(self) -> str:
        """The name of the variable that is kept."""
        return f"{self.name} (kept)"

    @property
    def count(self) -> int:
        """How many multipliers it has."""
        return len(self.alpha) if self.index is None else int(self.index.max()) + 1

    def spread(self, lam: Tensor) -> Tensor:
        """Multipliers ``(count, ...)`` as one per neuron, ``(size, ...)``."""
        return lam if self.index is None else lam[self.index]

    def gather(self, values: Tensor) -> Tensor:
        """The adjoint of `spread`: sums over the neurons that share a multiplier."""
        if self.index is None:
            return values
        return values.new_zeros(self.count, *values.shape[1:]).index_add(0, self.index, values)


@dataclass(frozen=True, eq=False)
class NormalForm:
    """The input's size, the activations in topological order, and the output.

    Example:
        >>> from lipcert import trace
        >>> form = normal_form(trace(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU()), (3,)))
        >>> form.inputs, form.neurons, form.layers[0].v.blocks[INPUT].shape
        (3, 4, torch.Size([4, 3]))
    """

    inputs: int
    layers: tuple[Layer, ...]
    output: Signal

    @property
    def neurons(self) -> int:
        """The number of scalar activations."""
        return sum(len(layer.alpha) for layer in self.layers)

    def zeros(self, *shape: int) -> Tensor:
        """Zeros of the dtype and on the device of the form."""
        signals = [*(layer.v for layer in self.layers), self.output]
        blocks = [block for signal in signals for block in signal.blocks.values()]
        return blocks[0].new_zeros(shape) if blocks else torch.zeros(shape, dtype=torch.float64)

    def columns(self) -> dict[str, slice]:
        """Where each variable stands in z of a reduced form: the input first, then the activations in order."""
        places, end = {INPUT: slice(0, self.inputs)}, self.inputs
        for layer in self.layers:
            places[layer.name] = slice(end, end + len(layer.alpha))
            end += len(layer.alpha)
        return places

    def to(self, like: Tensor) -> NormalForm:
        """The same form for computing only (sizes dropped), on the device and in the dtype of a tensor."""
        layers = tuple(
            replace(
                layer,
                v=_moved(layer.v, like),
                alpha=layer.alpha.to(like),
                beta=layer.beta.to(like),
                kept=None if layer.kept is None else _moved(layer.kept, like),
            )
            for layer in self.layers
        )
        return NormalForm(self.inputs, layers, _moved(self.output, like))


def total(parts: Iterable[Tensor]) -> Tensor:
    """The sum of at least one tensor."""
    return functools.reduce(torch.add, parts)


def normal_form(graph: Graph, source: str | None = None, target: str | None = None) -> NormalForm:
    """The part of a graph from one node to another, in normal form.

    Args:
        graph: The network.
        source: Where the part begins. Default: the graph's input.
        target: Where it ends; everything it depends on must pass through ``source``. Default: the graph's output.

    Raises:
        UnsupportedOperation: If the part holds a function without a quadratic constraint, or is too large.
        InvalidInput: If ``target`` also depends on something besides ``source``, or a name is taken.
    """
    source = graph.input.name if source is None else source
    target = graph.output.name if target is None else target
    part = between(graph, source, target)
    count = sum(neurons(node) for node in part)
    inputs = math.prod(graph[source].shape)
    widest = max(math.prod(node.shape) for node in [graph[source], *part])
    if max(inputs + count, widest) > LARGEST:
        raise UnsupportedOperation(
            f"`{source}` to `{target}` has {inputs} inputs and {count} neurons, its widest node {widest} entries; "
            f"one quadratic constraint holds {LARGEST}. Certify by `Product()`, or the parts separately.",
            path=target,
        )
    signals = {source: _variable(INPUT, inputs)}
    layers, names = [], {node.name for node in graph}
    for node in part:
        reads = [signals[name] for name in sources(node)]
        if isinstance(node, Activation) and nearly_linear(node):
            signals[node.name] = _scaled(reads[0], node)
        elif isinstance(node, Activation):
            layer, signals[node.name] = _bent(reads[0], node)
            layers.append(layer)
        elif isinstance(node, Opaque):
            layer, signals[node.name] = _grouped(node, groups(node), reads[0])
            if layer.passed in names:
                raise InvalidInput(f"a module is called `{layer.passed}`, as is what `{node.name}` keeps. Rename it.")
            layers.append(layer)
        else:
            signals[node.name] = _signal(node, reads, graph)
    return NormalForm(inputs, tuple(layers), signals[target])


def followed(form: NormalForm, linear: LinearMap) -> NormalForm:
    """The form whose output goes through one more linear map."""
    return replace(form, output=_through(linear, form.output))


NEARLY = 2.0**-40


def bends(node: Activation) -> Tensor:
    """For every neuron, ``(size,)``, whether its slope is open by more than ``2**-40`` of its upper end.

    The others are a factor and an error like rounding: a batch norm's scale that was rounded outward or, on a domain,
    neurons on one side of their kink. Elsewhere all neurons of an activation bend if one does.
    """
    lower, upper = (_spread(end, node) for end in node.slope)
    bent = (upper - lower) > NEARLY * upper.clamp_min(0.0)
    return bent if node.function == ON_A_DOMAIN else bent.any().expand(len(bent))


def nearly_linear(node: Activation) -> bool:
    """Whether no neuron bends."""
    return not bool(bends(node).any())


def neurons(node: Node) -> int:
    """How many variables a node adds to a form; zero for what is no part of one."""
    if constrained(node):
        return coordinates(node)
    return int(bends(node).sum()) if isinstance(node, Activation) else 0


def between(graph: Graph, source: str, target: str) -> list[Node]:
    """The nodes after ``source`` that ``target`` depends on, sources first.

    Raises:
        InvalidInput: If one of them depends on the graph's input other than through ``source``.
    """
    needed, found = {target}, []
    for node in reversed(graph.nodes):
        if node.name in needed and node.name != source:
            if not sources(node):
                raise InvalidInput(f"`{target}` depends on `{node.name}` other than through `{source}`.")
            needed.update(sources(node))
            found.append(node)
    return found[::-1]


def _scaled(signal: Signal, node: Activation) -> Signal:
    """A signal times the upper slopes of neurons that do not bend, whose true factor is a few roundings lower."""
    straight = ~bends(node)
    lower, upper = (torch.where(straight, _spread(end, node), 0.0) for end in node.slope)
    if bool((lower == 1.0).all() and (upper == 1.0).all()):
        return signal
    width = float(((upper - lower) / upper.clamp_min(1e-300)).max())
    blocks = {name: upper[:, None] * block for name, block in signal.blocks.items()}
    sizes = {name: upper.abs()[:, None] * block for name, block in signal.magnitudes().items()}
    return Signal(blocks, sizes, signal.roundings + math.ceil(width * 2.0**53) + 4)


def _bent(signal: Signal, node: Activation) -> tuple[Layer, Signal]:
    """A layer of the neurons that bend, and all neurons as a signal."""
    bent = bends(node)
    alpha, beta = (_spread(end, node)[bent] for end in node.slope)
    if bool(bent.all()):
        return Layer(node.name, signal, alpha, beta), _variable(node.name, len(bent))
    place = torch.nonzero(bent).flatten()
    own = Signal({node.name: torch.eye(len(bent), dtype=torch.float64)[:, place]})
    return Layer(node.name, _rows(signal, place), alpha, beta), _sum([own, _scaled(signal, node)])


def _variable(name: str, size: int) -> Signal:
    return Signal({name: torch.eye(size, dtype=torch.float64)}, variable=name)


def _spread(end: Tensor, node: Activation) -> Tensor:
    return end.expand(node.shape).reshape(-1).clone()


def _moved(signal: Signal, like: Tensor) -> Signal:
    return Signal({name: block.to(like) for name, block in signal.blocks.items()})


def _signal(node: Node, reads: list[Signal], graph: Graph) -> Signal:
    match node:
        case Affine(map=linear):
            return _through(linear, reads[0])
        case Add():
            return _sum(reads)
        case Concat(sources=names, dim=dim):
            return _joined(reads, [graph[name].shape for name in names], dim)
        case _:
            raise TypeError(f"`{node.name}` is a {type(node).__name__}")


def _grouped(node: Opaque, found: Groups, signal: Signal) -> tuple[Layer, Signal]:
    """The layer of what a node sorts or reflects, and the node's own signal ``p m + D w``."""
    count, n = found.index.shape
    # As in `_through`: sizes are products of rounded non-negative numbers themselves.
    roundings = signal.roundings + 2 * (found.roundings + n + 2)

    def read(C: Tensor) -> Signal:
        size = found.sizes(C)
        blocks = {name: (C @ block[found.index]).flatten(0, 1) for name, block in signal.blocks.items()}
        sizes = {name: (size @ block[found.index]).flatten(0, 1) for name, block in signal.magnitudes().items()}
        return Signal(blocks, sizes, roundings)

    def written(D: Tensor) -> Tensor:
        m = D.shape[-1]
        block = torch.zeros(count * n, count * m, dtype=torch.float64)
        block[found.index[:, :, None], torch.arange(count * m).reshape(count, 1, m)] = D.expand(count, n, m)
        return block

    m = found.coordinates
    one = torch.ones(count * m, dtype=torch.float64)
    index = None if m == 1 else torch.arange(count).repeat_interleave(m)
    layer = Layer(node.name, read(found.C), -one, one, index, read(found.q))
    parts = {layer.passed: found.p, node.name: found.D}
    blocks = {name: written(part) for name, part in parts.items()}
    sizes = {name: written(found.sizes(part)) for name, part in parts.items()}
    return layer, Signal(blocks, sizes, found.roundings)


def _through(linear: LinearMap, signal: Signal) -> Signal:
    match linear:
        case Reshape():
            return signal
        case Selection(index):
            return _rows(signal, index.reshape(-1))
    M = dense(linear)
    taps = _additions(linear)
    if signal.variable is not None:
        sizes = {signal.variable: dense(modulus(linear))} if taps else None
        return Signal({signal.variable: M}, sizes, taps)
    size = dense(modulus(linear))
    blocks = {name: M @ block for name, block in signal.blocks.items()}
    sizes = {name: size @ block for name, block in signal.magnitudes().items()}
    # Sizes are products of rounded non-negative numbers themselves: twice the count covers both.
    return Signal(blocks, sizes, signal.roundings + 2 * (taps + M.shape[1] + 2))


def _additions(linear: LinearMap) -> int:
    """How many roundings an entry of `dense` may carry: none where every entry is one weight."""
    match linear:
        case Dense() | Diagonal():
            return 0
        case Conv(weight=weight, padding_mode=mode):
            return 0 if mode == "zeros" else 2 * math.prod(weight.shape[2:])
        case Adjoint():
            return 0
        case _:
            return 4 * sum(linear.in_shape) + 8


def _rows(signal: Signal, index: Tensor) -> Signal:
    def pick(blocks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: torch.cat([block, block.new_zeros(1, block.shape[1])])[index] for name, block in blocks.items()}

    sizes = None if signal.sizes is None else pick(signal.sizes)
    return Signal(pick(signal.blocks), sizes, signal.roundings)


def _sum(reads: list[Signal]) -> Signal:
    def added(parts: list[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        total: dict[str, Tensor] = {}
        for part in parts:
            for name, block in part.items():
                total[name] = total[name] + block if name in total else block
        return total

    names = [name for signal in reads for name in signal.blocks]
    blocks = added([signal.blocks for signal in reads])
    if len(set(names)) == len(names) and all(signal.sizes is None for signal in reads):
        return Signal(blocks)
    roundings = max(signal.roundings for signal in reads) + 2 * len(reads)
    return Signal(blocks, added([signal.magnitudes() for signal in reads]), roundings)


def _joined(reads: list[Signal], shapes: list[tuple[int, ...]], dim: int) -> Signal:
    """Side by side along a dimension: rows of the parts, in the order of the joined tensor."""
    widths = {name: block.shape[1] for signal in reads for name, block in signal.blocks.items()}

    def join(parts: list[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        found = {}
        for name, width in widths.items():
            rows = []
            for part, shape in zip(parts, shapes, strict=True):
                block = part.get(name)
                rows.append(torch.zeros(*shape, width, dtype=torch.float64) if block is None else block)
            tensors = [row.reshape(*shape, width) for row, shape in zip(rows, shapes, strict=True)]
            found[name] = torch.cat(tensors, dim=dim).reshape(-1, width)
        return found

    exact = all(signal.sizes is None for signal in reads)
    sizes = None if exact else join([signal.magnitudes() for signal in reads])
    return Signal(join([signal.blocks for signal in reads]), sizes, max(signal.roundings for signal in reads))
