"""Where the nodes of a convolutional part stand on a torus, and how large it has to be. Floor 2."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from torch import Tensor

from lipcert.errors import UnsupportedOperation
from lipcert.graph import Activation, Add, Affine, Concat, Graph, Node, sources
from lipcert.linear import Dense, Reshape, Separable, Shape
from lipcert.lmi.normal_form import between, nearly_linear
from lipcert.lmi.taps import Kernel, kernel, reads

LARGEST_HEAD = 256
"""Most outputs of a dense head."""


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the nodes of a part stand on a torus.

    Attributes:
        part: The nodes, sources first, after the one where the part begins.
        source: That node.
        kernels: Of the affine nodes.
        phases: Of every node's grid, per dimension.
        inside: The nodes that vanish outside the image.
        torus: Coarse positions per dimension.
        head: Affine nodes in a row that read the last of the part, if the first is not shift-invariant.
    """

    part: tuple[Node, ...]
    source: Node
    kernels: Mapping[str, Kernel]
    phases: Mapping[str, Shape]
    inside: frozenset[str]
    torus: Shape
    head: tuple[Affine, ...] = ()

    def rows(self, node: Node) -> int:
        """Channels times phases of a node."""
        return node.shape[0] * math.prod(self.phases[node.name])

    @property
    def widths(self) -> list[int]:
        """The rows of the input and of every activation."""
        bends = [node for node in self.part if isinstance(node, Activation) and not nearly_linear(node)]
        return [self.rows(node) for node in (self.source, *bends)]


def layout(
    graph: Graph, source: str, target: str, torus: Shape | None = None, known: dict[str, Kernel] | None = None
) -> Layout:
    """The smallest torus that holds a part of a graph, and where its nodes stand on it.

    Args:
        graph: The network.
        source: Where the part begins.
        target: Where it ends.
        torus: Coarse positions per dimension. Default: the fewest.
        known: Kernels found before; those found now are added.

    Raises:
        UnsupportedOperation: If a node is not shift-invariant, or no torus holds it; the message says why.
    """
    known = {} if known is None else known
    part, head = _headed(tuple(between(graph, source, target)), known)
    begin = graph[source]
    if len(begin.shape) < 2:
        raise UnsupportedOperation(f"`{source}` of shape {begin.shape} is no image with channels.", path=source)
    phases = _phases(part, source, len(begin.shape) - 1, known)
    grid = Grid([1] * (len(begin.shape) - 1))
    inside = {source}
    grid.hold(begin.shape, phases[source])
    for node in part:
        read = sources(node)
        match node:
            case Affine(source=before):
                if _stays(node, known[node.name], graph[before], phases, before in inside, grid):
                    inside.add(node.name)
            case Activation():
                for end in node.slope:
                    by_channel(end, node, phases[node.name])
                if not nearly_linear(node) or inside.issuperset(read):
                    inside.add(node.name)
            case Add() | Concat(dim=0):
                if inside.issuperset(read):
                    inside.add(node.name)
            case _:
                raise UnsupportedOperation(f"`{node.name}` is not elementwise and no convolution.", path=node.name)
        grid.hold(node.shape, phases[node.name])
    return Layout(part, begin, known, phases, frozenset(inside), grid.size(torus, target), head)


def _headed(part: tuple[Node, ...], known: dict[str, Kernel]) -> tuple[tuple[Node, ...], tuple[Affine, ...]]:
    """The nodes before the first affine one that is not shift-invariant, and those after it, affine ones in a row."""
    for position, node in enumerate(part):
        if isinstance(node, Affine) and node.name not in known:
            try:
                known[node.name] = kernel(node.map, node.name)
            except UnsupportedOperation:
                head = tuple(node for node in part[position:] if isinstance(node, Affine))
                apart = head != part[position:] or not all(_dense(node) for node in head)
                apart = apart or any(b.source != a.name for a, b in itertools.pairwise(head))
                # With no activation before it, or too many outputs, the head is not worth a constraint.
                if apart or position == 0 or math.prod(part[-1].shape) > LARGEST_HEAD:
                    raise
                return part[:position], head
    return part, ()


def _dense(node: Affine) -> bool:
    """Whether a node may be part of a dense head."""
    match node.map:
        case Dense(in_shape=shape):
            return len(shape) == 1
        case Reshape() | Separable():
            return True
    return False


def by_channel(end: Tensor, node: Activation, phases: Shape) -> Tensor:
    """One end of an activation's slopes for every channel, repeated for its phases.

    Raises:
        UnsupportedOperation: If it differs within a channel.
    """
    full = end.expand(node.shape).reshape(node.shape[0], -1)
    if not bool((full == full[:, :1]).all()):
        raise UnsupportedOperation(f"the slopes of `{node.name}` differ within a channel.", path=node.name)
    return full[:, 0].repeat_interleave(math.prod(phases))


class Grid:
    """What the sizes of the torus have to satisfy, per dimension: at least, and exactly where padding is circular."""

    def __init__(self, least: list[int]) -> None:
        """Begin with lower bounds."""
        self.least = least
        self.exactly: list[set[int]] = [set() for _ in least]

    def hold(self, shape: Shape, phases: Shape) -> None:
        """Positions of the image must differ on the torus."""
        for k, (size, count) in enumerate(zip(shape[1:], phases, strict=True)):
            self.least[k] = max(self.least[k], -(-size // count))

    def pad(self, span: Sequence[tuple[int, int]], image: Shape, phases: Shape) -> None:
        """Positions ``span`` outside the image must not be positions of it on the torus."""
        for k, ((first, last), size, count) in enumerate(zip(span, image, phases, strict=True)):
            self.least[k] = max(self.least[k], -(-max(size - min(first, 0), last + 1) // count))

    def wrap(self, image: Shape, phases: Shape, path: str) -> None:
        """The torus must be as large as the image."""
        for k, (size, count) in enumerate(zip(image, phases, strict=True)):
            if size % count:
                why = f"`{path}` pads {size} positions in circles, not a multiple of the {count} strided over."
                raise UnsupportedOperation(why, path=path)
            self.exactly[k].add(size // count)

    def size(self, wanted: Shape | None, path: str) -> Shape:
        """The smallest sizes, or those wanted.

        Raises:
            UnsupportedOperation: If there are none, or those wanted do not do.
        """
        if wanted is not None and len(wanted) != len(self.least):
            raise UnsupportedOperation(f"`{path}` has {len(self.least)} dimensions, its torus {wanted}.", path=path)
        found = []
        for k, (least, exactly) in enumerate(zip(self.least, self.exactly, strict=True)):
            size = max([least, *exactly]) if wanted is None else wanted[k]
            if size < least or exactly - {size}:
                needs = f"at least {least}" + (f" and exactly {sorted(exactly)}" if exactly else "")
                raise UnsupportedOperation(f"no torus of {size} positions holds `{path}`; it needs {needs}.", path=path)
            found.append(size)
        return tuple(found)


def _phases(part: Sequence[Node], source: str, dimensions: int, kernels: Mapping[str, Kernel]) -> dict[str, Shape]:
    """Positions per coarse position of every node's grid, per dimension."""
    spacing = {source: (Fraction(1),) * dimensions}
    for node in part:
        if len(node.shape) != dimensions + 1:
            why = f"`{node.name}` of shape {node.shape} is no image like the others."
            raise UnsupportedOperation(why, path=node.name)
        before = {spacing[name] for name in sources(node)}
        if len(before) > 1:
            raise UnsupportedOperation(f"`{node.name}` joins images of different spacing.", path=node.name)
        here = before.pop()
        if node.name in kernels:
            found = kernels[node.name]
            steps = [Fraction(1, s) if found.transposed else Fraction(s) for s in found.stride]
            here = tuple(a * b for a, b in zip(here, steps, strict=True))
        spacing[node.name] = here
    every = list(spacing.values())
    unit = [math.lcm(*(each[k].denominator for each in every)) for k in range(dimensions)]
    coarse = [math.lcm(*(int(each[k] * unit[k]) for each in every)) for k in range(dimensions)]

    def phases(here: tuple[Fraction, ...]) -> Shape:
        return tuple(int(coarse[k] / (here[k] * unit[k])) for k in range(dimensions))

    return {name: phases(here) for name, here in spacing.items()}


def _stays(node: Affine, found: Kernel, before: Node, phases: Mapping[str, Shape], inside: bool, grid: Grid) -> bool:
    """Whether a field vanishes outside the image after a kernel, which the grid is told of."""
    span = reads(found, before.shape[1:] if found.transposed else node.shape[1:])
    image = node if found.transposed else before
    if found.circular:
        grid.wrap(image.shape[1:], phases[image.name], node.name)
        # Where the output fills its grid, too, nothing is outside.
        return all(out * s == size for out, s, size in zip(node.shape[1:], found.stride, before.shape[1:], strict=True))
    grid.pad(span, image.shape[1:], phases[image.name])
    outside = any(first < 0 or last >= size for (first, last), size in zip(span, image.shape[1:], strict=True))
    if not inside and (outside or found.transposed):
        why = f"`{node.name}` pads a sum of convolutions; no activation is between."
        raise UnsupportedOperation(why, path=node.name)
    return inside and (not outside if found.transposed else _reads_nothing(found, before.shape, node.shape))


def _reads_nothing(found: Kernel, into: Shape, out: Shape) -> bool:
    """Whether outputs outside the image read no inputs inside it."""
    first, last = found.offsets.amin(0).tolist(), found.offsets.amax(0).tolist()
    return all(
        high < s and count * s + low >= size
        for low, high, s, count, size in zip(first, last, found.stride, out[1:], into[1:], strict=True)
    )
