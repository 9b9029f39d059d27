"""The layerwise bound: operator norms of the affine parts, composed over the DAG. Floor 3."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction

from lipcert.certificate import Certificate, Gain, Gains, Validity
from lipcert.certifiers.composition import finite, needed_norms, node_bounds
from lipcert.graph import Affine, Graph
from lipcert.kernel.rounding import round_up
from lipcert.linear import Adjoint, Conv, Dense, Diagonal, LinearMap, Reshape, Selection
from lipcert.norms import L2, Norms
from lipcert.opnorm import Effort, composed_norm, opnorm
from lipcert.ranks import Map, in_process

# Norms of these maps are found by comparing or counting; everything else in l2 gets room for the exact checker.
_EXACT = Diagonal | Selection | Reshape

Path = tuple[Affine, ...]
Names = tuple[str, ...]


@dataclass(frozen=True)
class Product:
    r"""Bound the Lipschitz constant layer by layer.

    Along a chain the norms multiply, :math:`L \le \prod_k \lVert W_k \rVert`; at a sum the bounds of the branches
    add, at a concatenation they join in the q-norm. Consecutive affine maps (a convolution and its batch
    normalisation, two linear layers in a row) are bounded together where that norm is computable and smaller.
    Calling it on a graph returns a ``RIGOROUS`` certificate with `Gains`.

    Args:
        effort: What an operator norm may cost; affects tightness, never validity.
        slack: Relative amount added to every l2 gain that is not exact, so that a proof in exact arithmetic has
            room. Default: ``2**-30``, about 1e-9.
        longest: Most affine maps considered together.
        over: Where the norms are computed. Default: in this process.

    Raises:
        UnsupportedOperation: If a node has no Lipschitz constant in the norms asked for.

    References:
        | Intriguing properties of neural networks (Szegedy et al., 2013), section 4.3

    Example:
        >>> import torch
        >>> from lipcert import trace
        >>> layer = torch.nn.Linear(2, 2, bias=False).requires_grad_(False)
        >>> _ = layer.weight.copy_(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
        >>> Product()(trace(layer, (2,))).bound <= 3.00000001
        True
    """

    effort: Effort = field(default_factory=Effort)
    slack: float = 2.0**-30
    longest: int = 4
    over: Map = field(default=in_process, repr=False, compare=False)

    def __call__(self, graph: Graph, norms: Norms = L2) -> Certificate:
        """Certify a graph; shapes and norms are those of the graph's input and output without batch."""
        digest = graph.digest()
        gains = tuple(self._gains(graph, norms, digest))
        bound = node_bounds(graph, gains, norms)[graph.output.name]
        return Certificate(bound, norms, Validity.RIGOROUS, repr(self), digest, Gains(gains))

    def shared(self, over: Map) -> Product:
        """This one with its norms dealt out by a map, unless it has one of its own."""
        return replace(self, over=over) if self.over is in_process else self

    def _gains(self, graph: Graph, norms: Norms, digest: str) -> Iterator[Gain]:
        pairs, paths, scalings = needed_norms(norms), list(self._paths(graph)), _scalings(graph)
        # The norm of a convolution and its scaling is part of the item of the convolution alone.
        items = [
            (path, pair)
            for pair in pairs
            for path in paths
            if not (pair == L2 and len(path) == 2 and scalings.get(path[0].name) is path[1])
        ]
        found = self.over(
            lambda item: self._norms(*item, scalings.get(item[0][0].name)),
            items,
            about=f"the network {digest} in {norms}",
            cost=lambda item: max(_flops(node.map, item[1], self.effort) for node in item[0]),
        )
        known: dict[Norms, dict[Names, float]] = {pair: {} for pair in pairs}
        for (_, pair), values in zip(items, found, strict=True):
            known[pair] |= values
        for pair in pairs:
            yield from self._used(paths, pair, known[pair])

    def _paths(self, graph: Graph) -> Iterator[Path]:
        """Every affine node alone, and the affine paths that end at it, where a joint norm could be smaller."""
        for node in graph:
            if not isinstance(node, Affine):
                continue
            yield (node,)
            path = (node,)
            while len(path) < self.longest and isinstance(before := graph[path[0].source], Affine):
                path = (before, *path)
                if sum(not isinstance(each.map, Reshape) for each in path) > 1 and not isinstance(before.map, Reshape):
                    yield path

    def _norms(self, path: Path, pair: Norms, scaling: Affine | None) -> dict[Names, float]:
        """The norm of a path, unless it is not covered; of one node with its scaling also that of both."""
        node, names = path[0], tuple(each.name for each in path)
        if len(path) > 1:
            found = composed_norm([each.map for each in path], pair, effort=self.effort)
            return {} if found is None else {names: found.value}
        if pair == L2 and scaling is not None:
            both = composed_norm([node.map, scaling.map], pair, effort=self.effort)
            if both is not None:
                return {names: _unscaled(both.value, node, scaling), (node.name, scaling.name): both.value}
        return {names: opnorm(node.map, pair, effort=self.effort).value}

    def _used(self, paths: list[Path], pair: Norms, known: dict[Names, float]) -> Iterator[Gain]:
        """Gains of all nodes, and of paths where they beat the product of their parts."""
        single: dict[str, float] = {}
        for path in paths:
            names = tuple(node.name for node in path)
            if names not in known:
                continue
            value = self._inflated(known[names], path, pair)
            if len(path) == 1:
                single[path[0].name] = value
            if len(path) == 1 or value < math.prod(single[name] for name in names):
                yield Gain(names, pair, value)

    def _inflated(self, value: float, path: Path, pair: Norms) -> float:
        finite(value, f"the {pair} norm of `{path[-1].name}`")
        if pair != L2 or all(isinstance(node.map, _EXACT) for node in path) or value == 0.0:
            return value
        return finite(round_up(Fraction(value) * (1 + Fraction(self.slack))), f"the {pair} norm of `{path[-1].name}`")


def _scalings(graph: Graph) -> dict[str, Affine]:
    """For convolutions that only a scaling without zeros reads, that scaling."""
    found, readers = {}, graph.readers()
    for node in graph:
        if isinstance(node, Affine) and isinstance(node.map, Conv | Adjoint) and len(readers[node.name]) == 1:
            after = graph[readers[node.name][0]]
            if isinstance(after, Affine) and isinstance(after.map, Diagonal) and float(after.map.scale.abs().min()) > 0:
                found[node.name] = after
    return found


def _unscaled(both: float, node: Affine, scaling: Affine) -> float:
    r"""The norm of one map A from that of it and a scaling D, which is needed anyway.

    :math:`\lVert A \rVert \le \lVert D^{-1} \rVert \lVert D A \rVert` saves a second look at a large convolution.
    """
    assert isinstance(scaling.map, Diagonal)
    least = float(scaling.map.scale.abs().min())
    return round_up(Fraction(finite(both, f"the {L2} norm of `{node.name}`")) / Fraction(least))


def _flops(linear: LinearMap, pair: Norms, effort: Effort) -> float:
    """What a norm costs, roughly: one factor of a matrix in l2, or one per frequency; a pass over the entries else."""
    match linear:
        case Adjoint(conv):
            return _flops(conv, pair, effort)
        case Dense() if pair == L2:
            n, m = sorted(linear.weight.shape)
            return 2.0 * m * n * n + 6.0 * n**3
        case Conv() if pair == L2:
            frequencies, into = 0.5, linear.weight.shape[1]
            for size, taps, stride in zip(linear.in_shape[1:], linear.weight.shape[2:], linear.stride, strict=True):
                extent = -(-taps // stride)
                # Small tori are looked at twice, and a single tap is the same at every frequency.
                frequencies *= size / stride * (2.0 if size / stride <= 16 * (extent - 1) else 1.0) if extent > 1 else 1
                into *= min(taps, stride)
            n, m = sorted((linear.weight.shape[0] // linear.groups, into))
            return min(frequencies * linear.groups * (4.0 * m * n * n + 6.0 * n**3), effort.flops)
        case _:
            return float(math.prod(linear.in_shape) + math.prod(linear.out_shape))
