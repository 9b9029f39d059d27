"""Best-first branch and bound over the signs of hinges. Floor 5."""

from __future__ import annotations

import heapq
import math
import time
from dataclasses import dataclass, field, replace

import numpy as np

from lipcert.branching.hinges import Array
from lipcert.branching.pairs import Pairs
from lipcert.branching.regions import Place, Region, jacobian
from lipcert.branching.relaxation import Relaxed, relaxed
from lipcert.branching.slopes import Derivative, Slopes
from lipcert.kernel.rounding import add_up
from lipcert.norms import L2, Norms
from lipcert.opnorm.maps import matrix_norm

_COARSE = 1e-2
_NOT_YET = 0.3


@dataclass(frozen=True, eq=False)
class Node:
    """Inputs with some signs.

    Attributes:
        bound: No derivative there is larger in norm.
        signs: int8, ``(hinges,)``, 0 where undecided.
        branch: The hinge to decide next; -1 if there is none.
        multipliers: By hinge; NaN where there is none.
        pattern: All signs at some point with the decided ones, if one is known.
    """

    bound: float
    signs: Array
    branch: int
    multipliers: Array
    pattern: Array | None


@dataclass
class Search:
    """The state of a search: ``pairs.best.ratio <= constant <= upper`` at any time.

    Attributes:
        slopes: The network.
        place: The domain.
        norms: Norms on input and output.
        pairs: The lower bound so far.
        tolerance: How near the ends shall come, relatively.
        nodes: How many nodes were looked at.
        settled: No derivative is larger in regions that are done with.
        heap: The others, by their bounds.
    """

    slopes: Slopes
    place: Place
    norms: Norms
    pairs: Pairs
    tolerance: float
    nodes: int = 0
    settled: float = 0.0
    heap: list[tuple[float, int, Node]] = field(default_factory=list)

    @property
    def upper(self) -> float:
        """No derivative is larger in norm."""
        return max(self.settled, -self.heap[0][0] if self.heap else 0.0)

    @property
    def closed(self) -> bool:
        """Whether both ends agree up to the tolerance."""
        return self.upper <= self.pairs.best.ratio * (1.0 + self.tolerance)

    def run(self, seconds: float, most: int) -> None:
        """Search until closed, or out of time or nodes."""
        deadline = time.monotonic() + seconds
        m = self.slopes.hinges.count
        root = np.zeros(m, dtype=np.int8)
        self._add(root, np.full(m, np.nan), None, math.inf)
        while self.heap and not self.closed and self.nodes < most and time.monotonic() < deadline:
            node = heapq.heappop(self.heap)[2]
            for sign in self._order(node):
                signs = node.signs.copy()
                signs[node.branch] = sign
                pattern = node.pattern if node.pattern is not None and node.pattern[node.branch] == sign else None
                self._add(signs, node.multipliers, pattern, node.bound)

    def _order(self, node: Node) -> tuple[int, int]:
        return (-1, 1) if node.pattern is not None and node.pattern[node.branch] < 0 else (1, -1)

    def _add(self, signs: Array, multipliers: Array, pattern: Array | None, parent: float) -> None:
        self.nodes += 1
        signs, derivative = self._without_constants(signs)
        if pattern is None:
            empty, pattern = self._visited(signs, derivative)
            if empty:
                return
        if pattern is not None:
            signs, derivative = self._settled(signs, derivative, pattern)
        if not len(derivative.open):
            self.settled = max(self.settled, min(parent, self._exact_bound(signs)))
            return
        found = self._bounded(derivative, multipliers, parent)
        self._try(signs, derivative, found.likely)
        # A hinge that is affine already can be refuted on one side; of another only the derivative learns.
        scores = np.where(derivative.known[derivative.open], found.scores, _NOT_YET * found.scores)
        kept = np.full(len(signs), np.nan)
        kept[derivative.open] = found.multipliers
        node = Node(min(parent, found.bound), signs, int(derivative.open[np.argmax(scores)]), kept, pattern)
        heapq.heappush(self.heap, (-node.bound, self.nodes, node))

    # ------------------------------------------------------------------------------------------------ regions

    def _visited(self, signs: Array, derivative: Derivative) -> tuple[bool, Array | None]:
        """Whether there is no such input, and all signs at one."""
        found = Region(self.slopes.hinges, signs, derivative).searched(self.place)
        if found.point is None:
            return found.empty, None
        pattern = self.slopes.pattern(found.point)
        self.pairs.visit(found.point, pattern)
        # Where a hinge reads 0 on the whole region, either sign is right.
        agree = (pattern == signs) | (signs == 0) | ((pattern == 0) & np.all(derivative.affine[:, 1:] == 0.0, axis=1))
        return False, pattern if np.all(agree) else None

    def _without_constants(self, signs: Array) -> tuple[Array, Derivative]:
        """Decide the hinges that read a constant, so that what reads them is known to be affine."""
        while True:
            derivative = self.slopes.derivative(signs)
            found = Region(self.slopes.hinges, signs, derivative).constants()
            if not found:
                return signs, derivative
            signs = signs.copy()
            signs[list(found)] = list(found.values())

    def _settled(self, signs: Array, derivative: Derivative, pattern: Array) -> tuple[Array, Derivative]:
        """Decide the hinges that have one sign on the whole region, given all signs at a point of it."""
        while True:
            region = Region(self.slopes.hinges, signs, derivative)
            asked = [k for k in derivative.open.tolist() if derivative.known[k]]
            forced = [k for k in asked if pattern[k] and region.excludes(self.place, k, -int(pattern[k]))]
            if not forced:
                return signs, derivative
            signs = signs.copy()
            signs[forced] = pattern[forced]
            derivative = self.slopes.derivative(signs)

    # ------------------------------------------------------------------------------------------------ bounds

    def _exact_bound(self, signs: Array) -> float:
        J = jacobian(self.slopes.hinges, signs)
        return float(add_up(matrix_norm(J.mid, self.norms), matrix_norm(J.rad, self.norms)))

    def _gap(self, parent: float) -> float:
        """How precisely to solve: no more than what a bound is still away from the lower end asks for."""
        lower = self.pairs.best.ratio
        far = parent / lower - 1.0 if 0.0 < lower and parent < math.inf else 1.0
        return min(_COARSE, max(0.1 * far, self.tolerance))

    def _bounded(self, derivative: Derivative, multipliers: Array, parent: float) -> Relaxed:
        T, J = derivative.largest()
        if self.norms.p == 2.0:
            return self._semidefinite(derivative, J, multipliers[derivative.open], parent)
        n = derivative.inputs
        reach = derivative.c.magnitude[:, n:].sum(0)
        for k in range(len(reach) - 1, -1, -1):
            reach[:k] += reach[k] * derivative.z.magnitude[k, n : n + k]
        unknown, leaning = np.full(len(reach), np.nan), np.ones(len(reach), dtype=np.int8)
        return Relaxed(matrix_norm(J, self.norms), unknown, reach * T.sum(1), leaning)

    def _semidefinite(self, derivative: Derivative, J: Array, start: Array, parent: float) -> Relaxed:
        """All outputs at once in l2; one by one in linf, where those that cannot matter are left out."""
        gap, begin = self._gap(parent), None if np.any(np.isnan(start)) else start
        if self.norms == L2:
            found = relaxed(derivative, begin, gap)
            return replace(found, bound=min(matrix_norm(J, L2), found.bound))
        sizes = np.array([matrix_norm(row[None], L2) for row in J])
        worst: Relaxed | None = None
        rest = 0.0
        for i in np.argsort(-sizes, kind="stable").tolist():
            if worst is not None and sizes[i] <= max(self.pairs.best.ratio, worst.bound):
                rest = max(rest, float(sizes[i]))
                continue
            found = relaxed(replace(derivative, c=derivative.c.rows([i])), None, gap)
            found = replace(found, bound=min(found.bound, float(sizes[i])))
            if worst is None or found.bound > worst.bound:
                worst = found
        assert worst is not None
        return replace(worst, bound=max(worst.bound, rest))

    def _try(self, signs: Array, derivative: Derivative, likely: Array) -> None:
        """Look where the worst derivative points: at all of its signs, or else at those of affine hinges."""
        whole, some = signs.copy(), signs.copy()
        whole[derivative.open] = likely
        affine = derivative.known[derivative.open]
        some[derivative.open[affine]] = likely[affine]
        for tried in (whole, some):
            point = Region(self.slopes.hinges, tried, self.slopes.derivative(tried)).point(self.place)
            if point is not None:
                self.pairs.visit(point, self.slopes.pattern(point))
                return
