"""From norms of the parts to a bound of the whole, in exact rational arithmetic. Floor 3.

Bounds travel from the input to the output: multiplied along a path, summed where branches add, joined in the
q-norm where branches are concatenated. Rationals are exact, so the only rounding is the last one, upward.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import assert_never

from lipcert.certificate import Block, Gain
from lipcert.errors import InvalidInput, NotFinite, NotLipschitz, UnsupportedOperation
from lipcert.graph import Activation, Add, Affine, Concat, Graph, Input, Node, Opaque, sources
from lipcert.kernel.rounding import round_up
from lipcert.norms import SUPPORTED, Norms, require_supported

Bounds = dict[Norms, Fraction]


def needed_norms(norms: Norms) -> tuple[Norms, ...]:
    """The pairs whose gains a bound for ``norms`` can use: ``p->p``, and for mixed pairs also ``q->q`` and ``p->q``.

    Example:
        >>> from lipcert.norms import L1_LINF
        >>> [str(pair) for pair in needed_norms(L1_LINF)]
        ['l1->l1', 'linf->linf', 'l1->linf']
    """
    require_supported(norms)
    pairs = dict.fromkeys((Norms(norms.p, norms.p), Norms(norms.q, norms.q), norms))
    return tuple(pair for pair in pairs if pair in SUPPORTED)


def node_bounds(graph: Graph, gains: Iterable[Gain], norms: Norms, blocks: Iterable[Block] = ()) -> dict[str, float]:
    """Upper bounds, rounded up, of the Lipschitz constant of the map from the input to every node.

    Args:
        graph: The network.
        gains: Operator-norm bounds of consecutive affine nodes; every affine node must end at least one path.
        norms: Norm on the input, and on each node's output.
        blocks: Bounds of parts of the graph, in l2 or to linf; nodes inside a part have no bound of their own. After a
            part in a mixed pair there are bounds in that pair only.

    Raises:
        UnsupportedOperation: If an opaque node has no constant in these norms.
        InvalidInput: If an affine node ends no path.
        NotFinite: If a bound is too large for a float64.
    """
    by_end: dict[str, list[Gain]] = {}
    for gain in gains:
        by_end.setdefault(gain.path[-1], []).append(gain)
    pairs = tuple(dict.fromkeys((Norms(norms.p, norms.p), norms)))
    bounds: dict[str, Bounds] = {}
    ends = {block.target: block for block in blocks}
    needed = _needed(graph, ends)
    for node in graph:
        if node.name not in needed:
            continue
        if node.name in ends:
            block = ends[node.name]
            before = bounds[block.source][Norms(norms.p, block.norms.p)]
            if block.norms.q != norms.p:
                pairs = (norms,)
            # |v|_q <= |v|_p for every supported pair, where q >= p
            bounds[node.name] = dict.fromkeys(pairs, Fraction(block.value) * before)
            continue
        bounds[node.name] = {pair: _node_bound(node, graph, bounds, by_end.get(node.name, ()), pair) for pair in pairs}
    return {name: finite(round_up(found[norms]), f"the bound at `{name}`") for name, found in bounds.items()}


def _needed(graph: Graph, ends: Mapping[str, Block]) -> set[str]:
    """The nodes whose bounds the output's bound is made of."""
    needed = {graph.output.name} if ends else {node.name for node in graph}
    for node in reversed(graph.nodes):
        if node.name in needed:
            needed.update((ends[node.name].source,) if node.name in ends else sources(node))
    return needed


def finite(value: float, what: str) -> float:
    """Pass a number on, or refuse one that overflowed.

    Raises:
        NotFinite: If ``value`` is infinite; ``what`` names it.
    """
    if value == math.inf:
        raise NotFinite(f"{what} is larger than any float64. Rescale the weights, or certify the parts separately.")
    return value


def sqrt_up(value: Fraction) -> Fraction:
    """A rational upper bound of the square root, at most one part in 2**64 above it.

    Example:
        >>> sqrt_up(Fraction(9, 4))
        Fraction(3, 2)
    """
    root_up = math.isqrt(value.numerator * value.denominator - 1) + 1 if value else 0
    if root_up * root_up == value.numerator * value.denominator:
        return Fraction(root_up, value.denominator)
    scale = 1 << (2 * max(0, 64 + value.denominator.bit_length()))
    return Fraction(math.isqrt(value.numerator * scale // value.denominator) + 1, math.isqrt(scale))


def _node_bound(node: Node, graph: Graph, bounds: Mapping[str, Bounds], gains: Iterable[Gain], pair: Norms) -> Fraction:
    match node:
        case Input():
            return Fraction(1)  # |x|_q <= |x|_p for every supported pair, where q >= p
        case Affine():
            return _affine_bound(node, graph, bounds, gains, pair)
        case Activation(slope=(lower, upper)):
            steepest = max(abs(float(lower.min())), abs(float(upper.max())))
            return Fraction(steepest) * bounds[node.source][pair]
        case Opaque(gains=own):
            return _opaque_bound(node, own, bounds[node.source], pair)
        case Add(sources=names):
            return sum((bounds[name][pair] for name in names), Fraction(0))
        case Concat(sources=names):
            return _joined([bounds[name][pair] for name in names], pair.q)
        case _:
            assert_never(node)


def _affine_bound(
    node: Affine, graph: Graph, bounds: Mapping[str, Bounds], gains: Iterable[Gain], pair: Norms
) -> Fraction:
    routes = []
    for gain in gains:
        (before,) = sources(graph[gain.path[0]])
        reach = Norms(pair.p, gain.norms.p)
        if gain.norms.q == pair.q and reach in bounds[before]:
            routes.append(Fraction(gain.value) * bounds[before][reach])
    if not routes:
        raise InvalidInput(f"no gain covers the affine node `{node.name}` in {pair}.")
    return min(routes)


def _opaque_bound(node: Opaque, own: Mapping[Norms, float], before: Bounds, pair: Norms) -> Fraction:
    routes = [
        Fraction(constant) * before[Norms(pair.p, norms.p)]
        for norms, constant in own.items()
        if norms.q == pair.q and Norms(pair.p, norms.p) in before
    ]
    if not routes:
        known = ", ".join(str(norms) for norms in own)
        if not own:
            raise NotLipschitz(
                f"`{node.name}` ({node.function}) has no Lipschitz constant on the whole space. Bound the network on a "
                f"domain: certify(model, shape, domain=...).",
                path=node.name,
            )
        raise UnsupportedOperation(
            f"`{node.name}` ({node.function}) has no Lipschitz constant in {pair}; it has one in {known}. "
            f"Certify in one of those.",
            path=node.name,
        )
    return min(routes)


def _joined(parts: list[Fraction], q: float) -> Fraction:
    """The q-norm of the parts: ``|(f, g)(x) - (f, g)(y)|_q <= |(L_f, L_g)|_q |x - y|``."""
    if q == math.inf:
        return max(parts)
    return sum(parts, Fraction(0)) if q == 1.0 else sqrt_up(sum((part * part for part in parts), Fraction(0)))
