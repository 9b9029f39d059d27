"""The layerwise bound: operator norms of the affine parts, composed over the DAG. Floor 3."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction

from lipcert.certificate import Certificate, Gain, Gains, Validity
from lipcert.certifiers.composition import finite, needed_norms, node_bounds
from lipcert.graph import Affine, Graph
from lipcert.kernel.rounding import round_up
from lipcert.linear import Adjoint, Conv, Diagonal, Reshape, Selection
from lipcert.norms import L2, Norms
from lipcert.opnorm import Effort, composed_norm, opnorm

# Norms of these maps are found by comparing or counting; everything else in l2 gets room for the exact checker.
_EXACT = Diagonal | Selection | Reshape

Path = tuple[str, ...]


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

    def __call__(self, graph: Graph, norms: Norms = L2) -> Certificate:
        """Certify a graph; shapes and norms are those of the graph's input and output without batch."""
        gains = tuple(self._gains(graph, norms))
        bound = node_bounds(graph, gains, norms)[graph.output.name]
        used = Gains(gains)
        return Certificate(bound, norms, Validity.RIGOROUS, repr(self), graph.digest(), used)

    def _gains(self, graph: Graph, norms: Norms) -> Iterator[Gain]:
        readers = graph.readers()
        for pair in needed_norms(norms):
            single: dict[str, float] = {}
            known: dict[Path, float] = {}
            for node in graph:
                if isinstance(node, Affine):
                    value = self._alone(graph, node, readers[node.name], pair, known)
                    single[node.name] = self._inflated(value, [node], pair)
                    yield Gain((node.name,), pair, single[node.name])
                    yield from self._fused(graph, node, pair, single, known)

    def _alone(self, graph: Graph, node: Affine, readers: Path, pair: Norms, known: dict[Path, float]) -> float:
        r"""The norm of one map; if only a scaling D reads it, from the norm of both, which is needed anyway.

        :math:`\lVert A \rVert \le \lVert D^{-1} \rVert \lVert D A \rVert` saves a second look at a large convolution.
        """
        after = graph[readers[0]] if len(readers) == 1 else None
        if pair == L2 and isinstance(node.map, Conv | Adjoint) and isinstance(after, Affine):
            least = float(after.map.scale.abs().min()) if isinstance(after.map, Diagonal) else 0.0
            both = composed_norm([node.map, after.map], pair, effort=self.effort) if least > 0.0 else None
            if both is not None:
                known[node.name, after.name] = both.value
                return round_up(Fraction(finite(both.value, f"the {pair} norm of `{node.name}`")) / Fraction(least))
        return opnorm(node.map, pair, effort=self.effort).value

    def _fused(
        self, graph: Graph, last: Affine, pair: Norms, single: dict[str, float], known: dict[Path, float]
    ) -> Iterator[Gain]:
        """Gains of affine paths that end at ``last``, where they beat the product of their parts."""
        path = [last]
        while len(path) < self.longest and isinstance(before := graph[path[0].source], Affine):
            path = [before, *path]
            if sum(not isinstance(node.map, Reshape) for node in path) < 2 or isinstance(path[0].map, Reshape):
                continue
            names = tuple(node.name for node in path)
            if names not in known:
                found = composed_norm([node.map for node in path], pair, effort=self.effort)
                if found is None:
                    continue
                known[names] = found.value
            value = self._inflated(known[names], path, pair)
            if value < math.prod(single[name] for name in names):
                yield Gain(names, pair, value)

    def _inflated(self, value: float, path: list[Affine], pair: Norms) -> float:
        finite(value, f"the {pair} norm of `{path[-1].name}`")
        if pair != L2 or all(isinstance(node.map, _EXACT) for node in path) or value == 0.0:
            return value
        return finite(round_up(Fraction(value) * (1 + Fraction(self.slack))), f"the {pair} norm of `{path[-1].name}`")
