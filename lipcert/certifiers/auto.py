"""The certifier that chooses one, by the network's size. Floor 3."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from lipcert import solvers
from lipcert.certificate import Certificate
from lipcert.certifiers.fourier import FourierLipSDP, TorusOutline, with_head
from lipcert.certifiers.lipsdp import LipSDP, Solved
from lipcert.certifiers.product import Product
from lipcert.certifiers.rows import PAIRS, RowLipSDP
from lipcert.certifiers.split import Outline, Split, unknowns
from lipcert.graph import Graph
from lipcert.lmi import Multipliers, NormalForm
from lipcert.norms import L2, Norms
from lipcert.ranks import Map, in_process
from lipcert.solvers import Progress, Solution
from lipcert.solvers.solution import silent

ROWS = {math.inf: 32, 2.0: 32, 1.0: 256}
"""Most programmes of a part, by the norm of the input."""


@dataclass(frozen=True)
class Auto:
    """The tightest bound that a stated time buys; never looser than `Product`.

    In l2, `LipSDP` of the whole if its largest part has at most ``largest`` unknowns; otherwise `FourierLipSDP` if a
    part is convolutional, or `Split` into parts that are small enough. To linf, `RowLipSDP` if a part has at most
    1,000 inputs and neurons and 32 outputs (from l1, 256 pairs of an input and an output); to l1, 256 inputs. `Product`
    where every part is over the cap or nothing bends between two linear maps. The choice depends on sizes and on
    the kinds of nodes, and the method says what was chosen and why. The time stops the solver, not the norms and not
    the proof; whether it does depends on the machine, and the bound is then a valid one that is less tight.

    Args:
        seconds: Time for the solvers; parts get shares by their unknowns.
        largest: Most unknowns of a part, counted as `Split` does.
        product: Bounds what has no quadratic constraint.
        progress: As for `LipSDP`.
        over: As for `LipSDP`.

    Raises:
        UnsupportedOperation: If a node has no Lipschitz constant in the norms asked for.

    Example:
        >>> import torch
        >>> from lipcert import trace
        >>> layers = torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1)
        >>> Auto()(trace(torch.nn.Sequential(*layers), (2,))).method.startswith("Auto: 5 unknowns in 1 part, LipSDP")
        True
    """

    seconds: float = 20.0
    largest: int = 2000
    product: Product = field(default_factory=Product)
    progress: Progress = field(default=silent, repr=False, compare=False)
    over: Map = field(default=in_process, repr=False, compare=False)

    def __call__(self, graph: Graph, norms: Norms = L2) -> Certificate:
        """Certify a graph; shapes and norms are those of the graph's input and output without batch."""
        return self.solve(graph, norms).certificate

    def solve(self, graph: Graph, norms: Norms = L2) -> Solved:
        """Certify a graph, and hand out what the solver found besides."""
        if norms != L2:
            rows = RowLipSDP(rows=ROWS[norms.p], seconds=self.seconds, product=self.product, over=self.over)
            if norms not in PAIRS or not rows.ends(graph, norms)[1]:
                return self._layerwise(graph, norms, f"{norms}, which is bounded layer by layer")
            return _because(f"{norms}", Solved(rows(graph, norms)))
        outline = Outline(graph)
        whole = outline.unknowns(0, len(outline.names) - 1)
        if not whole:
            return self._layerwise(graph, norms, "nothing bends between two linear maps")
        if max(whole) <= self.largest:
            why = f"{sum(whole)} unknowns in {len(whole)} part{'s' if whole[1:] else ''}"
            return _because(why, self._inner(whole).solve(graph))
        sizes = [size for ends in outline.cheapest(self.largest, None) for size in outline.unknowns(*ends)]
        fitting = [size for size in sizes if size <= self.largest]
        why = f"{max(whole)} unknowns, over {self.largest}"
        product = self.product.shared(self.over)
        waves = FourierLipSDP(self.seconds, dense=self.largest, product=product, progress=self.progress, over=self.over)
        stretches = TorusOutline(graph, with_head).stretches(waves.largest, waves.dense)
        if any(stretch.kind != "dense" for stretch in stretches):
            return _because(why, waves.solve(graph))
        if not fitting:
            return self._layerwise(graph, norms, why)
        return _because(why, Split(self._inner(fitting), largest=self.largest, product=product).solve(graph))

    def _layerwise(self, graph: Graph, norms: Norms, why: str) -> Solved:
        return _because(why, Solved(self.product.shared(self.over)(graph, norms)))

    def _inner(self, sizes: list[int]) -> LipSDP:
        solver = _Shares(self.seconds, sum(map(_work, sizes)))
        return LipSDP(solver, self.product, self.progress, self.over)


@dataclass(frozen=True)
class _Shares:
    """A solver that takes its share of the time, by its work."""

    seconds: float
    total: int

    def __call__(self, form: NormalForm, start: Multipliers | None = None, progress: Progress = silent) -> Solution:
        share = _work(unknowns(form.inputs, form.neurons)) / self.total
        return solvers.Auto(seconds=self.seconds * share)(form, start, progress)


def _work(size: int) -> int:
    """What solving for so many unknowns costs, up to a factor: their cube, and what even the smallest part takes."""
    return (size + 300) ** 3


def _because(why: str, solved: Solved) -> Solved:
    certificate = solved.certificate
    return replace(solved, certificate=replace(certificate, method=f"Auto: {why}, {certificate.method}"))
