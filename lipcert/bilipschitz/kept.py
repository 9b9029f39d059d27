"""A block as what it passes on and what it adds: ``f(x) = K x + g(x)``, read off the graph. Floor 5.

K picks entries of the input; g is a network of its own, and for each of its outputs it is known which entries of the
input it may read. A residual block passes everything on; in an additive coupling g reads only entries it leaves alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.graph import Activation, Add, Affine, Concat, Graph, Input, Node, Opaque, sources
from lipcert.linear import Diagonal, LinearMap, Reshape, Selection, Shape


@dataclass(frozen=True, eq=False)
class Kept:
    """``f(x) = K x + g(x)`` on flattened tensors.

    Attributes:
        index: ``(outputs,)``, int64: the entry of the input that an output passes on, or -1.
        reads: ``(outputs, inputs)``, bool: whether g's output may depend on the input's entry.
        branch: g; ``None`` if it is zero.
    """

    index: Tensor
    reads: Tensor
    branch: Graph | None

    @property
    def is_bijective(self) -> bool:
        """Whether K is a permutation."""
        count = self.reads.shape[1]
        return len(self.index) == count and torch.equal(self.index.sort().values, torch.arange(count))

    @property
    def is_coupling(self) -> bool:
        """Whether K is a permutation, and g reads only entries that are passed on unchanged."""
        changed = self.index[self.reads.any(1)]
        return self.is_bijective and not bool(self.reads.any(0)[changed].any())


@dataclass(frozen=True, eq=False)
class _Part:
    """What is known of one node: as in `Kept`, with the name of the node that computes g, if it is not zero."""

    index: Tensor
    reads: Tensor
    rest: str | None


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
        >>> found.index.tolist(), found.reads.tolist(), found.is_coupling
        ([1, 0], [[True, False], [False, False]], True)
    """
    walk = _Walk(block)
    parts = {node.name: walk.part(node) for node in block}
    last = parts[block.output.name]
    return Kept(last.index, last.reads, None if last.rest is None else _ending(walk.nodes, last.rest))


class _Walk:
    """The parts of the nodes so far, and the nodes with those that compute rests added."""

    def __init__(self, block: Graph) -> None:
        self.input = block.input
        self.nodes: list[Node] = []
        self.parts: dict[str, _Part] = {}
        self.taken = {node.name for node in block}

    def part(self, node: Node) -> _Part:
        self.nodes.append(node)
        self.parts[node.name] = found = self._found(node)
        return found

    def _found(self, node: Node) -> _Part:
        read = [self.parts[name] for name in sources(node)]
        match node:
            case Input(shape=shape):
                count = math.prod(shape)
                return _Part(torch.arange(count), torch.zeros(1, count, dtype=torch.bool).expand(count, -1), None)
            case Affine(map=linear) if _moves(linear):
                return self._moved(node, linear, read[0])
            case Add() if int(torch.stack([part.index >= 0 for part in read]).sum(0).max()) <= 1:
                rests = tuple(part.rest for part in read if part.rest is not None)
                rest = self._put(Add(self._fresh(node), rests, node.shape)) if len(rests) > 1 else (*rests, None)[0]
                return _Part(torch.stack([part.index for part in read]).amax(0), _union(read), rest)
            case Concat(dim=dim):
                return self._joined(node, dim, read)
            case Add():
                return self._mixed(node, _union([_all_of(part) for part in read]))
            case Activation() | Affine(map=Diagonal()):
                return self._mixed(node, _all_of(read[0]))
            case Affine() | Opaque():
                return self._mixed(node, _all_of(read[0]).any(0, keepdim=True).expand(math.prod(node.shape), -1))

    def _mixed(self, node: Node, reads: Tensor) -> _Part:
        """A node of which nothing is known but what it reads: all of it is rest."""
        return _Part(torch.full((math.prod(node.shape),), -1), reads, node.name)

    def _moved(self, node: Affine, linear: LinearMap, part: _Part) -> _Part:
        index, reads = part.index, part.reads
        if isinstance(linear, Selection):
            places = linear.index.flatten()
            index, reads = _picked(index, places, -1), _picked(reads, places, False)
        elif isinstance(linear, Diagonal):
            on = linear.scale.expand(linear.in_shape).flatten() == 1.0
            index, reads = torch.where(on, index, -1), reads & on[:, None]
        if part.rest is not None:
            return _Part(index, reads, self._put(Affine(self._fresh(node), part.rest, linear, node.bias)))
        return _Part(index, reads, None if node.bias is None else self._constant(node, node.shape, node.bias))

    def _joined(self, node: Concat, dim: int, read: list[_Part]) -> _Part:
        shapes = [self._shape(name) for name in node.sources]

        def side_by_side(tensors: list[Tensor]) -> Tensor:
            shaped = [tensor.reshape(*shape, *tensor.shape[1:]) for tensor, shape in zip(tensors, shapes, strict=True)]
            return torch.cat(shaped, dim).reshape(-1, *tensors[0].shape[1:])

        index, reads = side_by_side([part.index for part in read]), side_by_side([part.reads for part in read])
        if all(part.rest is None for part in read):
            return _Part(index, reads, None)
        rests = [
            self._constant(node, shape, None) if part.rest is None else part.rest
            for part, shape in zip(read, shapes, strict=True)
        ]
        return _Part(index, reads, self._put(Concat(self._fresh(node), tuple(rests), dim, node.shape)))

    def _constant(self, node: Node, shape: Shape, bias: Tensor | None) -> str:
        """Zero, or a bias alone."""
        nothing = Selection(torch.full(shape, -1), self.input.shape)
        return self._put(Affine(self._fresh(node), self.input.name, nothing, bias))

    def _put(self, node: Node) -> str:
        self.nodes.append(node)
        return node.name

    def _fresh(self, node: Node) -> str:
        name = f"{node.name} (added)"
        while name in self.taken:
            name += "'"
        self.taken.add(name)
        return name

    def _shape(self, name: str) -> Shape:
        return next(node.shape for node in self.nodes if node.name == name)


def _moves(linear: LinearMap) -> bool:
    """Whether a map only moves entries or sets them to zero."""
    if isinstance(linear, Diagonal):
        return bool(((linear.scale == 0.0) | (linear.scale == 1.0)).all())
    return isinstance(linear, Reshape | Selection)


def _picked(rows: Tensor, places: Tensor, nothing: int | bool) -> Tensor:
    picked = rows[places.clamp_min(0)].clone()
    picked[places < 0] = nothing
    return picked


def _all_of(part: _Part) -> Tensor:
    """What a node's outputs depend on, the entries passed on included."""
    passing = part.index >= 0
    if not bool(passing.any()):
        return part.reads
    reads = part.reads.clone()
    reads[passing.nonzero().flatten(), part.index[passing]] = True
    return reads


def _union(parts: list[_Part] | list[Tensor]) -> Tensor:
    tables = [part.reads if isinstance(part, _Part) else part for part in parts]
    total = tables[0]
    for table in tables[1:]:
        total = total | table
    return total


def _ending(nodes: list[Node], name: str) -> Graph:
    """The network that ends at a node."""
    needed, found = {name}, []
    for position, node in reversed(list(enumerate(nodes))):
        if node.name in needed or position == 0:
            needed.update(sources(node))
            found.append(node)
    return Graph(tuple(reversed(found)))
