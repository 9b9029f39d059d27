r"""Certified constants of the differences of outputs, from which certified radii come. Floor 3.

A classifier's decision for class i at x cannot change to j within the distance :math:`(f_i(x) - f_j(x)) / L_{ij}`,
where :math:`L_{ij}` bounds the Lipschitz constant of :math:`f_i - f_j`. It is at most, and mostly far below, the
:math:`\sqrt 2 L` that a constant of the whole output gives.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipcert.certificate import Certificate, Gains
from lipcert.certifiers import Certifier, LipSDP
from lipcert.certifiers.composition import node_bounds
from lipcert.certifiers.lipsdp import Part, assembled, methods, parts
from lipcert.certifiers.product import Product
from lipcert.graph import Affine, Graph, Input
from lipcert.lmi import followed, normal_form
from lipcert.norms import L2, Norms
from lipcert.outputs import difference, vector_size

Pair = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Margins:
    """Bounds of the Lipschitz constants of all differences of outputs.

    Attributes:
        constants: ``(n, n)``, float64, symmetric: row i, column j bounds ``f_i - f_j``; zero on the diagonal, infinite
            for pairs that were left out.
        certificates: For every pair i < j the certificate, about the network ``difference(graph, i, j)``.
    """

    constants: Tensor
    certificates: Mapping[Pair, Certificate]


def margins(
    graph: Graph,
    by: Certifier = LipSDP(),  # noqa: B008
    *,
    norms: Norms = L2,
    pairs: Iterable[Pair] | None = None,
) -> Margins:
    r"""Bound the Lipschitz constant of :math:`f_i - f_j` for all pairs of outputs.

    With `LipSDP` and `Product` what the pairs have in common is done once: norms, the normal form, and the parts before
    the last.

    At an input x of class i no input closer than ``(f_i(x) - f_j(x)) / constants[i, j]`` is of class j.

    Args:
        graph: A network whose output has one dimension.
        by: The certifier.
        norms: Norms; with one output, that on the output does not matter.
        pairs: Pairs i < j. Default: all.

    Raises:
        InvalidInput: If the output has another number of dimensions, or there is no such pair.
        UnsupportedOperation: If the certifier does not support the graph.

    Example:
        >>> from lipcert import trace
        >>> found = margins(trace(torch.nn.Identity(), (3,)))
        >>> round(float(found.constants[0, 1]) ** 2, 6)
        2.0
    """
    n = vector_size(graph)
    wanted = itertools.combinations(range(n), 2) if pairs is None else pairs
    names = [(min(pair), max(pair)) for pair in wanted]
    graphs = {pair: difference(graph, *pair) for pair in names}
    if isinstance(by, LipSDP) and norms == L2:
        found = dict(_sharing(graph, graphs, by))
    elif isinstance(by, Product) and norms == L2 and graphs:
        layerwise = by(graph)
        found = {pair: _layerwise(graph, whole, layerwise, by) for pair, whole in graphs.items()}
    else:
        found = {pair: by(whole, norms) for pair, whole in graphs.items()}
    constants = torch.full((n, n), float("inf"), dtype=torch.float64).fill_diagonal_(0.0)
    for (i, j), certificate in found.items():
        constants[i, j] = constants[j, i] = certificate.bound
    return Margins(constants, found)


def _sharing(trunk: Graph, graphs: Mapping[Pair, Graph], by: LipSDP) -> Iterator[tuple[Pair, Certificate]]:
    if not graphs:
        return
    layerwise = by.product(trunk)
    ends = parts(next(iter(graphs.values())))
    last = [source for source, target in ends if target not in {node.name for node in trunk}]
    before = by.solved(trunk, [pair for pair in ends if pair[0] not in last])
    form = normal_form(trunk, last[0], trunk.output.name) if last else None
    for pair, whole in graphs.items():
        found: list[Part] = list(before)
        if form is not None:
            # Every pair begins anew: multipliers of a neighbour, or of the whole output, saved no iterations.
            part = by.part(followed(form, _added(whole).map), last[0], whole.output.name)
            found += [] if part is None else [part]
        product = _layerwise(trunk, whole, layerwise, by.product)
        yield pair, assembled(whole, product, [part.block for part in found], f"LipSDP: {methods(found)}")


def _layerwise(trunk: Graph, whole: Graph, known: Certificate, product: Product) -> Certificate:
    """What ``product(whole)`` gives, with the gains already known of the trunk."""
    tail, node = [whole.output], trunk.output
    while len(tail) < product.longest and isinstance(node, Affine):
        tail, node = [node, *tail], trunk[node.source]
    end = product(Graph((Input(node.name, node.shape), *tail)))
    gains = (*known.evidence.items, *(gain for gain in end.evidence.items if gain.path[-1] == whole.output.name))
    bound = node_bounds(whole, gains, L2)[whole.output.name]
    return replace(known, bound=bound, network=whole.digest(), evidence=Gains(gains))


def _added(whole: Graph) -> Affine:
    assert isinstance(whole.output, Affine)
    return whole.output
