"""Lower bounds: pairs of inputs inside one linear region, measured exactly on the captured network. Floor 5."""

from __future__ import annotations

import numpy as np
import torch

from lipcert.branching.hinges import Array
from lipcert.branching.slopes import Slopes
from lipcert.certificate import Witness
from lipcert.domain import Domain
from lipcert.enclosure.pair import stretch
from lipcert.graph import Graph
from lipcert.norms import Norms

_HOPE = 1.0 + 1e-9


class Pairs:
    """The best pair so far."""

    def __init__(self, graph: Graph, slopes: Slopes, domain: Domain, first: Witness) -> None:
        """Begin with any pair of the domain."""
        self.graph, self.slopes, self.norms, self.domain = graph, slopes, first.norms, domain
        self.best = first

    def visit(self, x: Array, pattern: Array) -> None:
        """Measure a pair around a point in the steepest direction of its region, if that may be better."""
        pattern = np.where(pattern == 0, 1, pattern).astype(np.int8)
        J = self.slopes.derivative(pattern).c.mid[:, : len(x)]
        size, direction = steepest(J, self.norms)
        if not size > self.best.ratio * _HOPE:
            return
        reach = self.slopes.reach(x, pattern, direction)
        for step in (reach / 2, reach / 64, reach / 2**20):
            ends = [torch.from_numpy(x + side * step * direction).reshape(self.graph.input.shape) for side in (1, -1)]
            if not all(bool(torch.isfinite(end).all()) and self.domain.contains(end) for end in ends):
                continue
            if torch.equal(ends[0], ends[1]):
                return
            ratio = stretch(self.graph, ends[0], ends[1], self.norms).ratio
            if ratio > self.best.ratio:
                self.best = Witness(ratio, self.norms, ends[0], ends[1])
            if ratio >= size / _HOPE:
                return


def steepest(J: Array, norms: Norms) -> tuple[float, Array]:
    """About the norm of a matrix, and a direction that attains it."""
    if norms.p == 1.0:
        sizes = np.linalg.norm(J, norms.q, axis=0)
        return float(sizes.max()), np.eye(J.shape[1])[int(sizes.argmax())]
    if norms.q == 2.0:
        _, values, V = np.linalg.svd(J)
        return float(values[0]), V[0]
    if norms.p == 2.0:
        sizes = np.linalg.norm(J, axis=1)
        row = J[int(sizes.argmax())]
        return float(sizes.max()), row / max(float(sizes.max()), 1e-300)
    sizes = np.abs(J).sum(1)
    return float(sizes.max()), np.where(J[int(sizes.argmax())] < 0.0, -1.0, 1.0)
