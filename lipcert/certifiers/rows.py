"""The semidefinite bound in other norms than l2: entries of the output, or of the input, one at a time. Floor 3."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial

import torch
from torch import Tensor

from lipcert import solvers
from lipcert.certificate import Block, Certificate, Row
from lipcert.certifiers.composition import sqrt_up
from lipcert.certifiers.lipsdp import LipSDP, assembled, parts
from lipcert.certifiers.product import Product
from lipcert.errors import UnsupportedOperation
from lipcert.graph import Graph
from lipcert.kernel.rounding import round_up
from lipcert.lmi import Multipliers, NormalForm, holds, normal_form, prove
from lipcert.lmi.elimination import graded
from lipcert.lmi.normal_form import between, neurons
from lipcert.lmi.rows import column, live, picked, prove_weighted, row, stretched, stretches
from lipcert.norms import L1, L1_LINF, L2_LINF, LINF, Norms
from lipcert.ranks import Map, in_process
from lipcert.solvers import Recursion

Ends = tuple[str, str]
Found = tuple[float, Mapping[str, Tensor], tuple[float, ...]]
"""A bound of one row, the multipliers that prove it, and the weights of the input, or of the output."""

PAIRS = (LINF, L2_LINF, L1_LINF, L1)

_EVEN = (1e-4, 1e-2)
"""Parts of equal shares that are mixed into those of outputs, of which small ones are not known well."""


@dataclass(frozen=True)
class RowLipSDP:
    r"""Bound the Lipschitz constant by a semidefinite programme for every entry of the output, or to l1 of the input.

    The constraint of `LipSDP` is asked for one entry :math:`y_k` at a time. From linf, :math:`\rho |\delta x|_2^2` in
    it becomes :math:`\sum_i \tau_i \delta x_i^2`, and :math:`|\delta y_k| \le (\sum_i \tau_i)^{1/2} |\delta
    x|_\infty`; the solver looks for multipliers and weights :math:`\tau \ge 0` with the least sum. From l2 the weights
    are all the same. From l1 a bound of every entry of the input alone is one for all, so that there is a small
    programme for every pair of an entry of the output and one of the input. To l1 there is one for every entry of the
    input, in which the entries of the output are multiplied by the numbers r with :math:`\sum_i r_i^{-2} = 1` that
    make the bound the least. The bound is at most `Product`'s.

    The network is cut where `LipSDP` cuts it. From linf to linf and from l1 to l1 every part gets its programmes, if it
    is small enough; from l1 and l2 to linf the last one does, and from l2 those before it are bounded in l2.

    Args:
        largest: Most inputs and neurons together of a part; a larger one is left to norms.
        rows: Most programmes for a part, likewise.
        gap: Relative gap of the bounds at which to stop.
        seconds: Time for the solvers, of which every programme gets the same share; it stops the solver, not the proof.
        product: Bounds what is left to norms.
        over: Where the programmes are solved and proved, and the norms of ``product`` unless it says so itself.

    Raises:
        UnsupportedOperation: If the norms are none of linf, l2 and l1 to linf and l1 to l1, or a node has no Lipschitz
            constant.

    References:
        | A quantitative geometric approach to neural-network smoothness (Wang, Prakriya and Jha, 2022): linf to one
          output
        | Efficient and accurate estimation of Lipschitz constants for deep neural networks (Fazlyab et al., 2019)

    Example:
        >>> import torch
        >>> from lipcert import LINF, trace
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1))
        >>> for weight, rows in ((model[0].weight, [[1.0], [1.0]]), (model[2].weight, [[1.0, -1.0]])):
        ...     weight.data = torch.tensor(rows)
        >>> graph = trace(model, (1,))
        >>> f"{Product()(graph, LINF).bound:.4f} {RowLipSDP()(graph, LINF).bound:.4f}"
        '2.0000 1.0000'
    """

    largest: int = 1000
    rows: int = 256
    gap: float = 1e-4
    seconds: float = math.inf
    product: Product = field(default_factory=Product)
    over: Map = field(default=in_process, repr=False, compare=False)

    def __call__(self, graph: Graph, norms: Norms = LINF) -> Certificate:
        """Certify a graph; shapes and norms are those of the graph's input and output without batch."""
        if norms not in PAIRS:
            raise UnsupportedOperation(
                f"`RowLipSDP` bounds {', '.join(map(str, PAIRS))}, not {norms}. Certify with `Product()`, and l2->l2 "
                f"with `LipSDP()`.",
                path="",
            )
        layerwise = self.product.shared(self.over)(graph, norms)
        inner, last = self.ends(graph, norms)
        share = self.seconds / max(1, len(inner) + len(last))
        blocks = [block for ends in last if (block := self._block(graph, ends, norms, share)) is not None]
        if blocks and inner:
            in_l2 = LipSDP(solvers.Auto(gap=self.gap, seconds=share / len(inner)), over=self.over)
            blocks += [part.block for part in in_l2.solved(graph, inner)]
        return self._best(graph, layerwise, blocks)

    def _best(self, graph: Graph, layerwise: Certificate, blocks: Iterable[Block]) -> Certificate:
        """The lowest bound that parts make; to linf a part may be bounded lower by norms."""
        best, kept = layerwise, []
        for block in blocks:
            many = f" in {len(kept) + 1} parts" if kept else ""
            method = f"RowLipSDP: one programme for every row{many}, gap {self.gap}"
            try:
                found = assembled(graph, layerwise, [*kept, block], method)
            except UnsupportedOperation:  # what follows a part in a mixed pair has no constant in linf
                continue
            if found.bound < best.bound:
                best, kept = found, [*kept, block]
        return best

    def ends(self, graph: Graph, norms: Norms) -> tuple[list[Ends], list[Ends]]:
        """The parts that are bounded in l2, and those that are bounded row by row."""
        every = parts(graph)
        fitting = [ends for ends in every if self._fits(graph, ends, norms)]
        if norms.p == norms.q or fitting[-1:] != every[-1:]:
            return [], fitting if norms.p == norms.q else []
        before = [ends for ends in every[:-1] if norms == L2_LINF and _size(graph, ends) <= self.largest]
        return before, fitting[-1:]

    def _fits(self, graph: Graph, ends: Ends, norms: Norms) -> bool:
        return _size(graph, ends) <= self.largest and programmes(graph, ends, norms) <= self.rows

    def _block(self, graph: Graph, ends: Ends, norms: Norms, seconds: float) -> Block | None:
        """The bound of a part, row by row; ``None`` if some row has none."""
        form = normal_form(graph, *ends)
        count = programmes(graph, ends, norms)
        shared = partial(self._shared, even=torch.ones(math.prod(graph[ends[1]].shape), dtype=torch.float64))
        solve = {LINF: self._weighted, L2_LINF: self._alike, L1_LINF: self._alone, L1: shared}[norms]
        found = self.over(
            lambda k: solve(form, k, seconds / count),
            range(count),
            about=f"rows of the part {ends} in {norms} of the network {graph.digest()}",
        )
        value = max(bound for bound, _, _ in found)
        if not 0.0 < value < math.inf:
            return None
        rows = tuple(
            Row({name: tuple(lam.tolist()) for name, lam in multipliers.items()}, weights)
            for _, multipliers, weights in found
        )
        return Block(*ends, value, {}, norms=norms, rows=rows)

    def _alone(self, form: NormalForm, number: int, seconds: float) -> Found:
        k, j = divmod(number, form.inputs)
        return self._alike(column(form, j), k, seconds)

    def _alike(self, form: NormalForm, number: int, seconds: float) -> Found:
        """A row of the form in l2."""
        return self._bounded(row(form, number), seconds)

    def _bounded(self, form: NormalForm, seconds: float) -> Found:
        """A form in l2."""
        if (nothing := _nothing(form)) is not None:
            return *nothing, ()
        multipliers = solvers.Auto(gap=self.gap, seconds=seconds)(form).multipliers
        bound, proving = prove(form, multipliers, Recursion()(form).multipliers)
        return bound, _ordered(form, proving), ()

    def _shared(self, form: NormalForm, number: int, seconds: float, *, even: Tensor) -> Found:
        """A column of the form to l1; the shares of its outputs begin as ``even`` ones."""
        form = column(form, number)
        if (nothing := _nothing(stretched(form, stretches(even)))) is not None:
            return *nothing, tuple(stretches(even).tolist())
        if len(even) == 1:
            bound, multipliers, _ = self._bounded(form, seconds)
            return bound, multipliers, (1.0,)
        least, shares = solvers.LowRank(gap=self.gap, seconds=0.4 * seconds).to_l1(form)
        best: Found = math.inf, {}, ()
        for part in _EVEN:
            r = stretches((1.0 - part) * shares + part * even / len(even))
            bound, multipliers, _ = self._bounded(stretched(form, r), 0.6 * seconds / len(_EVEN))
            if bound < best[0]:
                best = bound, multipliers, tuple(r.tolist())
            if best[0] ** 2 <= least * (1.0 + 100.0 * self.gap):
                break
        return best

    def _weighted(self, form: NormalForm, number: int, seconds: float) -> Found:
        """A row of the form in linf."""
        form = row(form, number)
        tau = torch.zeros(form.inputs, dtype=torch.float64)
        if (nothing := _nothing(form)) is not None:
            return *nothing, tuple(tau.tolist())
        moving = live(form)
        small = picked(form, moving)
        solution, weights = solvers.Auto(gap=self.gap, seconds=seconds).weighted(small)
        found, proving = prove_weighted(small, solution.multipliers, weights, Recursion()(small).multipliers)
        if found is None:
            return math.inf, {}, ()
        tau[moving] = torch.from_numpy(found)
        bound = round_up(sqrt_up(sum(map(Fraction, tau.tolist()), Fraction(0))))
        return bound, _ordered(form, proving), tuple(tau.tolist())


def programmes(graph: Graph, ends: Ends, norms: Norms) -> int:
    """How many rows a part has: entries of its target, from l1 as many for every entry of its source, to l1 these."""
    inputs, outputs = (math.prod(graph[end].shape) for end in ends)
    return {L1_LINF: outputs * inputs, L1: inputs}.get(norms, outputs)


def _size(graph: Graph, ends: Ends) -> int:
    return math.prod(graph[ends[0]].shape) + sum(map(neurons, between(graph, *ends)))


def _nothing(form: NormalForm) -> tuple[float, Mapping[str, Tensor]] | None:
    """Multipliers of a form whose output reads nothing, or reads nothing of the input; ``None`` of another."""
    if not any(bool((size != 0.0).any()) for size in form.output.magnitudes().values()):
        return 0.0, {layer.name: torch.zeros(layer.count, dtype=torch.float64) for layer in form.layers}
    if len(live(form)):
        return None
    # Activations are still variables, and what they do to each other has to be semidefinite.
    multipliers = graded(form, Recursion()(form).multipliers, 1.0 + 2.0**-4)
    return (0.0 if holds(form, multipliers, 1.0) else math.inf), _ordered(form, multipliers)


def _ordered(form: NormalForm, multipliers: Multipliers) -> Mapping[str, Tensor]:
    return {layer.name: multipliers[layer.name] for layer in form.layers}
