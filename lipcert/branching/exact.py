"""The door: exact constants by branch and bound."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from lipcert.branching.hinges import hinged
from lipcert.branching.pairs import Pairs
from lipcert.branching.regions import Place
from lipcert.branching.search import Search
from lipcert.branching.slopes import Slopes
from lipcert.certificate import Witness
from lipcert.domain import Domain, WholeSpace
from lipcert.graph import Graph
from lipcert.linear import Shape
from lipcert.norms import L2, Norms, require_supported
from lipcert.trace import trace


@dataclass(frozen=True, eq=False)
class Bracket:
    lower: Witness
    upper: float
    nodes: int
    closed: bool


def exact_constant(model, input_shape=None, *, norms=L2, domain=WholeSpace(), tolerance=0.01, seconds=60.0, nodes=10**6):
    require_supported(norms)
    graph = model if isinstance(model, Graph) else trace(model, tuple(input_shape))
    slopes = Slopes(hinged(graph))
    pairs = Pairs(graph, slopes, norms, domain)
    search = Search(slopes, Place(domain, graph.input.shape), norms, pairs, min(1e-3, tolerance))
    g = torch.Generator().manual_seed(0)
    for x in domain.sample(200, graph.input.shape, g).flatten(1).numpy():
        pairs.visit(x, slopes.pattern(x))
    search.run(tolerance, seconds, nodes)
    return Bracket(pairs.best, search.upper, search.nodes, search.closed(tolerance))
