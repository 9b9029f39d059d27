r"""A convolutional part of a graph, embedded in a torus, in normal form for every frequency. Floor 2.

Let a network of convolutions with zero padding and elementwise activations with slopes in :math:`[\alpha, \beta]`,
:math:`\alpha \beta \le 0`, have one multiplier per channel. Extend every variable by zero to a torus so large that no
window reaches around it into the image, and let :math:`\tilde v = V z` be what the circular convolutions make of the
variables everywhere. Inside the image it is v. Outside :math:`u = 0`, so there the circular network's constraint has
the terms :math:`2 \lambda \alpha \beta |\tilde v|^2 \le 0`, which the image's has not, and likewise
:math:`-|\tilde y|^2 \le 0`. So the image's form is at least the circular one's, and if that is positive semidefinite,
both are. (A mask after an activation has slopes in the hull of zero and its own: the same in other words.) The
circular form is block diagonal in the Fourier basis: one constraint for every frequency, all with the same
multipliers.

Factors that are known within a narrow interval, such as those of a batch norm, may differ from position to position.
They perturb the form by a matrix whose entries are bounded by those of shift-invariant non-negative maps, so by a norm
that the proof subtracts at every frequency alike.

Grids of different spacing are brought to the coarsest by phases (`lipcert.lmi.taps`), which become channels with
multipliers of their own. What is read through padding has to vanish outside the image: variables do, sums of
convolutions do not. So a part ends where such a sum is padded again without an activation between.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipcert.graph import Activation, Affine, Concat, Graph, Node, sources
from lipcert.linear import Shape
from lipcert.lmi.head import head_field
from lipcert.lmi.layout import by_channel, layout
from lipcert.lmi.normal_form import INPUT, Layer, NormalForm, Signal, nearly_linear
from lipcert.lmi.taps import Field, Taps, after, collected, half_spectrum, identity, symbol, taps


@dataclass(frozen=True, eq=False)
class Bend:
    """An activation on the torus: its name, what it reads, its slopes ``(rows,)``."""

    name: str
    v: Field
    alpha: Tensor
    beta: Tensor

    @property
    def count(self) -> int:
        """How many multipliers it has."""
        return len(self.alpha)


@dataclass(frozen=True, eq=False)
class TorusForm:
    """A convolutional part on a torus.

    Attributes:
        torus: Coarse positions per dimension.
        inputs: Channels times phases of the input.
        bends: The activations in topological order.
        output: What comes out.
        head: What a dense head makes of it, if there is one.
        circular: Whether a kernel pads in circles.
    """

    torus: Shape
    inputs: int
    bends: tuple[Bend, ...]
    output: Field
    head: Field | None = None
    circular: bool = False

    @property
    def unknowns(self) -> int:
        """Rows of the constraint at one frequency."""
        return self.inputs + sum(len(bend.alpha) for bend in self.bends)

    def frequencies(self) -> Tensor:
        """All frequencies that matter, ``(F, dimensions)``."""
        return half_spectrum(self.torus)

    def at(self, frequencies: Tensor) -> NormalForm:
        """The complex form at some frequencies, as a batch, without a head; for computing only."""
        return self._form(lambda field: self._complex(field, frequencies), 1)

    def headed_at(self, frequencies: Tensor) -> NormalForm:
        """The same with the head's outputs, of which the sum over all frequencies matters."""
        form = self.at(frequencies)
        if self.head is None:
            return form
        (W,) = self._complex(self.head, frequencies).blocks.values()
        return replace(form, output=Signal({name: W @ block for name, block in form.output.blocks.items()}))

    def weights(self, frequencies: Tensor) -> Tensor:
        """The share of every frequency with its opposite in the whole torus, ``(F,)``."""
        own = (frequencies == (-frequencies) % torch.tensor(self.torus)).all(1)
        return torch.where(own, 1.0, 2.0).double() / math.prod(self.torus)

    def head_at(self, frequencies: Tensor) -> Signal:
        """What the head makes of the variables, as `real_at` has them."""
        assert self.head is not None
        read, W = self._real(self.output, frequencies), self._real(self.head, frequencies)
        (block,), (size,) = W.blocks.values(), W.magnitudes().values()
        blocks = {name: block @ inner for name, inner in read.blocks.items()}
        sizes = {name: size @ inner for name, inner in read.magnitudes().items()}
        return Signal(blocks, sizes, W.roundings + read.roundings + 2 * (block.shape[-1] + 2))

    def real_at(self, frequencies: Tensor) -> NormalForm:
        """The same as a real form of twice the size, with bounds of its entries' errors; multipliers repeat."""
        return self._form(lambda field: self._real(field, frequencies), 2)

    def _form(self, signal: Callable[[Field], Signal], copies: int) -> NormalForm:
        layers = tuple(
            Layer(bend.name, signal(bend.v), bend.alpha.repeat(copies), bend.beta.repeat(copies)) for bend in self.bends
        )
        return NormalForm(self.inputs * copies, layers, signal(self.output))

    def _complex(self, field: Field, frequencies: Tensor) -> Signal:
        return Signal({n: torch.complex(*symbol(found, frequencies, self.torus)) for n, found in field.blocks.items()})

    def _real(self, field: Field, frequencies: Tensor) -> Signal:
        blocks, sizes = {}, {}
        for name, found in field.blocks.items():
            re, im = symbol(found, frequencies, self.torus)
            blocks[name] = torch.cat([torch.cat([re, -im], dim=-1), torch.cat([im, re], dim=-1)], dim=-2)
            sizes[name] = found.magnitude.repeat(2, 2)
        taps_most = max((len(found.positions) for found in field.blocks.values()), default=0)
        return Signal(blocks, sizes, field.roundings + 2 * (taps_most + 4))


def torus_form(graph: Graph, source: str, target: str, torus: Shape | None = None) -> TorusForm:
    """The part of a graph from one node to another on the smallest torus that holds it.

    Args:
        graph: The network.
        source: Where the part begins.
        target: Where it ends.
        torus: Coarse positions per dimension. Default: the fewest.

    Raises:
        UnsupportedOperation: If a node is not shift-invariant, or no torus holds it; the message says why.

    Example:
        >>> from lipcert import trace
        >>> from torch import nn
        >>> graph = trace(nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 2, 3, 1, 1)), (1, 8, 8))
        >>> form = torus_form(graph, graph.input.name, graph.output.name)
        >>> form.torus, form.inputs, form.unknowns
        ((5, 5), 4, 8)
    """
    found = layout(graph, source, target, torus)
    dimensions = len(found.torus)
    fields = {source: Field({INPUT: identity(found.rows(found.source), dimensions)}, found.rows(found.source))}
    bends = []
    for node in found.part:
        read = [fields[name] for name in sources(node)]
        rows, phases = found.rows(node), found.phases[node.name]
        match node:
            case Affine(source=before):
                of = found.kernels[node.name]
                operator = taps(of, phases if of.transposed else found.phases[before])
                fields[node.name] = _filtered(operator, of.roundings, read[0], rows)
            case Activation() if nearly_linear(node):
                fields[node.name] = _steepest(node, phases, read[0])
            case Activation(source=before):
                bends.append(_bend(node, phases, read[0], before in found.inside))
                fields[node.name] = Field({node.name: identity(rows, dimensions)}, rows)
            case _:
                fields[node.name] = _together(node, read, rows)
    circular = any(found.kernels[node.name].circular for node in found.part if isinstance(node, Affine))
    last, head = target, None
    if found.head:
        last = found.head[0].source
        head = head_field([node.map for node in found.head], graph[last].shape, found.phases[last], target)
    return TorusForm(found.torus, found.rows(found.source), tuple(bends), fields[last], head, circular)


def _filtered(operator: Taps, roundings: int, field: Field, rows: int) -> Field:
    """A field after a kernel."""
    blocks, rounds = {}, [0]
    for name, block in field.blocks.items():
        if _is_identity(block):
            blocks[name] = operator
            continue
        blocks[name], more = after(operator, block)
        rounds.append(more)
    return Field(blocks, rows, field.roundings + roundings + 2 * max(rounds))


def _is_identity(block: Taps) -> bool:
    if len(block.positions) > 1 or bool(block.positions.any()):
        return False
    return torch.equal(block.values[0], torch.eye(*block.values.shape[1:], dtype=torch.float64))


def _bend(node: Activation, phases: Shape, field: Field, inside: bool) -> Bend:
    lower, upper = (by_channel(end, node, phases) for end in node.slope)
    # Where the field does not vanish outside the image, the activation is masked there: zero is a slope, too.
    return Bend(node.name, field, *((lower, upper) if inside else (lower.clamp_max(0.0), upper.clamp_min(0.0))))


def _steepest(node: Activation, phases: Shape, field: Field) -> Field:
    """A field times the upper slopes; the true factors are lower by a few roundings, which are counted."""
    lower, upper = (by_channel(end, node, phases) for end in node.slope)
    width = float(((upper - lower) / upper.clamp_min(1e-300)).max())
    blocks = {
        name: replace(block, values=upper[:, None] * block.values, sizes=upper.abs()[:, None] * block.sizes)
        for name, block in field.blocks.items()
    }
    return replace(field, blocks=blocks, roundings=field.roundings + math.ceil(width * 2.0**53) + 4)


def _together(node: Node, read: Sequence[Field], rows: int) -> Field:
    """A sum, or channels side by side."""
    found: dict[str, list[Taps]] = {}
    start = 0
    for field in read:
        for name, block in field.blocks.items():
            found.setdefault(name, []).append(_placed(block, start, rows) if isinstance(node, Concat) else block)
        start += field.rows
    blocks = {
        name: collected(
            torch.cat([block.positions for block in parts]),
            torch.cat([block.values for block in parts]),
            torch.cat([block.sizes for block in parts]),
        )
        for name, parts in found.items()
    }
    return Field(blocks, rows, max(field.roundings for field in read) + 2 * len(read))


def _placed(block: Taps, start: int, rows: int) -> Taps:
    def put(values: Tensor) -> Tensor:
        whole = values.new_zeros(len(values), rows, values.shape[2])
        whole[:, start : start + values.shape[1]] = values
        return whole

    return Taps(block.positions, put(block.values), put(block.sizes))
