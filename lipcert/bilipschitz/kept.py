"""A block as what it passes on and what it adds: ``f(x) = K x + g(x)``, read off the graph. Floor 5.

K picks entries of the input; g is a network of its own, and for each of its outputs it is known which entries of the
input it may read. A residual block passes everything on; in an additive coupling g reads only entries it leaves alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.graph import Activation, Add, Affine, Concat, Graph, Input, Node, sources
from lipcert.linear import Diagonal, LinearMap, Reshape, Selection, Shape


@dataclass(frozen=True, eq=False)
class Part:
    """What is known of one node: ``K x + rest(x)`` on flattened tensors.

    Attributes:
        index: ``(size,)``, int64: the entry of the input that an entry passes on, or -1.
        changed: ``(size,)``, bool: where the rest may depend on the input.
        rest: The node that computes the rest, if it is not zero.
    """

    index: Tensor
    changed: Tensor
    rest: str | None


@dataclass(frozen=True, eq=False)
class Kept:
    """``f(x) = K x + g(x)`` on flattened tensors.

    Attributes:
        block: f.
        parts: The same of every node of f.
        branch: g; ``None`` if it is zero.
    """

    block: Graph
    parts: Mapping[str, Part]
    branch: Graph | None

    @property
    def index(self) -> Tensor:
        """``(outputs,)``, int64: the entry of the input that an output passes on, or -1."""
        return self.parts[self.block.output.name].index

    @property
    def is_bijective(self) -> bool:
        """Whether K is a permutation."""
        count = math.prod(self.block.input.shape)
        return len(self.index) == count and torch.equal(self.index.sort().values, torch.arange(count))

    @property
    def is_coupling(self) -> bool:
        """Whether K is a permutation, and g reads only entries that are passed on unchanged, up to constants."""
        if not self.is_bijective:
            return False
        changed = torch.zeros(len(self.index), dtype=torch.bool)
        changed[self.index] = self.parts[self.block.output.name].changed
        return not bool(self.reads(changed).any())

    def reads(self, entries: Tensor) -> Tensor:
        """Which outputs of g may depend on one of the marked entries of the input.

        Args:
            entries: ``(inputs,)``, bool.

        Returns:
            ``(outputs,)``, bool.
        """
        seen: dict[str, Tensor] = {}
        for node in self.block:
            names = sources(node)
            if self.parts[node.name].rest == node.name:
                whole = [seen[name] | _marked(self.parts[name].index, entries) for name in names]
                seen[node.name] = _spread(node, whole)
            else:
                shapes = [self.block[name].shape for name in names]
                seen[node.name] = _carried(node, [seen[name] for name in names], shapes)
        return seen[self.block.output.name]


def kept(block: Graph) -> Kept:
    """Split a network into what it passes on and the rest.

    Example:
        >>> from lipcert import trace
        >>> class Coupling(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.t = torch.nn.Linear(1, 1)
        ...     def forward(self, x):
        ...         a, b = x.chunk(2, dim=1)
        ...         return torch.cat([b + self.t(a), a], dim=1)
        >>> found = kept(trace(Coupling(), (2,)))
        >>> found.index.tolist(), found.reads(torch.tensor([True, False])).tolist(), found.is_coupling
        ([1, 0], [True, False], True)
    """
    walk = _Walk(block)
    for node in block:
        walk.nodes.append(node)
        walk.parts[node.name] = walk.part(node)
    last = walk.parts[block.output.name].rest
    return Kept(block, walk.parts, None if last is None else _ending(walk.nodes, last))


class _Walk:
    """The parts of the nodes so far, and the nodes with those that compute rests added."""

    def __init__(self, block: Graph) -> None:
        self.block = block
        self.nodes: list[Node] = []
        self.parts: dict[str, Part] = {}
        self.taken = {node.name for node in block}

    def part(self, node: Node) -> Part:
        read = [self.parts[name] for name in sources(node)]
        shapes = [self.block[name].shape for name in sources(node)]
        size = math.prod(node.shape)
        match node:
            case Input():
                return Part(torch.arange(size), torch.zeros(size, dtype=torch.bool), None)
            case Affine(map=linear) if _moves(linear):
                index = _moved(linear, read[0].index, -1)
                rest = self._moved_rest(node, linear, read[0].rest)
            case Add() if int(torch.stack([part.index >= 0 for part in read]).sum(0).max()) <= 1:
                index = torch.stack([part.index for part in read]).amax(0)
                rest = self._sum(node, [part.rest for part in read if part.rest is not None])
            case Concat(dim=dim):
                index = _side_by_side([part.index for part in read], shapes, dim)
                rest = self._joined(node, read, shapes)
            case _:  # nothing is known of it but what it reads: all of it is rest
                return Part(torch.full((size,), -1), torch.ones(size, dtype=torch.bool), node.name)
        return Part(index, _carried(node, [part.changed for part in read], shapes), rest)

    def _moved_rest(self, node: Affine, linear: LinearMap, rest: str | None) -> str | None:
        if rest is not None:
            return self._put(Affine(self._fresh(node), rest, linear, node.bias))
        return None if node.bias is None else self._constant(node, node.shape, node.bias)

    def _sum(self, node: Node, rests: list[str]) -> str | None:
        if len(rests) > 1:
            return self._put(Add(self._fresh(node), tuple(rests), node.shape))
        return rests[0] if rests else None

    def _joined(self, node: Concat, read: list[Part], shapes: list[Shape]) -> str | None:
        if all(part.rest is None for part in read):
            return None
        rests = [
            self._constant(node, shape, None) if part.rest is None else part.rest
            for part, shape in zip(read, shapes, strict=True)
        ]
        return self._put(Concat(self._fresh(node), tuple(rests), node.dim, node.shape))

    def _constant(self, node: Node, shape: Shape, bias: Tensor | None) -> str:
        """Zero, or a bias alone."""
        nothing = Selection(torch.full(shape, -1), self.block.input.shape)
        return self._put(Affine(self._fresh(node), self.block.input.name, nothing, bias))

    def _put(self, node: Node) -> str:
        self.nodes.append(node)
        return node.name

    def _fresh(self, node: Node) -> str:
        name = f"{node.name} (added)"
        while name in self.taken:
            name += "'"
        self.taken.add(name)
        return name


def _moves(linear: LinearMap) -> bool:
    """Whether a map only moves entries or sets them to zero."""
    if isinstance(linear, Diagonal):
        return bool(((linear.scale == 0.0) | (linear.scale == 1.0)).all())
    return isinstance(linear, Reshape | Selection)


def _moved(linear: LinearMap, values: Tensor, nothing: int | bool) -> Tensor:
    """Values of entries under a map that moves them."""
    match linear:
        case Selection(index):
            places = index.flatten()
            return torch.where(places >= 0, values[places.clamp_min(0)], nothing)
        case Diagonal(scale):
            return torch.where(scale.expand(linear.in_shape).flatten() == 1.0, values, nothing)
        case _:
            return values


def _carried(node: Node, flags: Sequence[Tensor], shapes: Sequence[Shape]) -> Tensor:
    """Flags of the rest of a node that moves, adds or joins what it reads."""
    match node:
        case Input(shape=shape):
            return torch.zeros(math.prod(shape), dtype=torch.bool)
        case Affine(map=linear):
            return _moved(linear, flags[0], False)
        case Concat(dim=dim):
            return _side_by_side(flags, shapes, dim)
        case _:
            return torch.stack(tuple(flags)).any(0)


def _spread(node: Node, flags: Sequence[Tensor]) -> Tensor:
    """Flags of what a node computes: entry by entry where it works so, else all of them."""
    if isinstance(node, Add | Activation) or (isinstance(node, Affine) and isinstance(node.map, Diagonal)):
        return torch.stack(tuple(flags)).any(0)
    return torch.stack([flag.any() for flag in flags]).any().expand(math.prod(node.shape))


def _marked(index: Tensor, entries: Tensor) -> Tensor:
    return (index >= 0) & entries[index.clamp_min(0)]


def _side_by_side(values: Sequence[Tensor], shapes: Sequence[Shape], dim: int) -> Tensor:
    return torch.cat([value.reshape(shape) for value, shape in zip(values, shapes, strict=True)], dim).flatten()


def _ending(nodes: list[Node], name: str) -> Graph:
    """The network that ends at a node."""
    needed, found = {name}, []
    for position, node in reversed(list(enumerate(nodes))):
        if node.name in needed or position == 0:
            needed.update(sources(node))
            found.append(node)
    return Graph(tuple(reversed(found)))
