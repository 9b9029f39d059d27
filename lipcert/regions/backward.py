r"""Linear bounds of a node's entries, found from the node back to the input. Floor 2.

A bound :math:`v_i \ge \sum_n A_n x_n + c` holds with the entry itself to begin with. Going back, an affine node is put
in, an activation is replaced by the line below or above, by the sign of its coefficient, and a node of another kind by
its range. What rounding changes of a coefficient is bounded by what the coefficient is multiplied with, whose range is
known; so errors are sums along the way, and nothing grows as it does when intervals are multiplied.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeGuard

import torch
from torch import Tensor

from lipcert.domain import Box, Domain, L2Ball, limits
from lipcert.graph import Activation, Add, Affine, Concat, Graph, Input, Node, sources
from lipcert.kernel.rounding import gamma
from lipcert.linear import (
    Adjoint,
    Conv,
    Dense,
    Diagonal,
    Factor,
    LinearMap,
    Reshape,
    Selection,
    Separable,
    apply,
    dense,
    modulus,
    terms,
)
from lipcert.regions.functions import TABLE, Lines, lines_on, slopes
from lipcert.regions.range import SMALLEST, Range

WORK = 1 << 32
"""Most multiply-adds of one relaxation."""

_ROWS = 1 << 22
"""Entries of a block of coefficients; more rows are done one block after the other."""


@dataclass
class Form:
    """A linear function of nodes that bounds the rows from one side.

    Attributes:
        A: Coefficients by node, ``(rows, *shape)``; nodes not yet put in.
        constant: ``(rows,)``.
        error: How far rounding may have moved the bound so far, ``(rows,)``.
        side: -1.0 of a lower bound, 1.0 of an upper one.
    """

    A: dict[str, Tensor]
    constant: Tensor
    error: Tensor
    side: float
    sizes: Mapping[str, Tensor] = field(repr=False, default_factory=dict)

    def give(self, name: str, coefficients: Tensor) -> None:
        """Add coefficients of a node; adding rounds once."""
        if name in self.A:
            coefficients = self.A[name] + coefficients
            self.error = self.error + 2.0**-52 * _against(coefficients.abs(), self.sizes[name])
        self.error = self.error + SMALLEST * self.sizes[name].sum()  # products that underflow
        self.A[name] = coefficients

    def shift(self, values: Tensor, error: Tensor) -> None:
        """Add numbers that are off by at most ``error``."""
        self.constant = self.constant + values
        self.error = self.error + error + 2.0**-52 * self.constant.abs()


def work(graph: Graph, target: str) -> int:
    """About how many multiply-adds `backward` takes; zero where intervals say all there is."""
    before = _before(graph, target)
    if not any(isinstance(node, Activation | Affine) for node in before):
        return 0
    rows = math.prod(graph[target].shape)
    return rows * sum(_cost(node) for node in before)


def _cost(node: Node) -> int:
    size = math.prod(node.shape)
    return size * max(1, terms(node.map)) if isinstance(node, Affine) else size


def backward(
    graph: Graph, domain: Domain, target: str, found: Mapping[str, Range], stated: Mapping[str, Range]
) -> Range:
    """Bound the entries of a node by linear functions of the input.

    Args:
        graph: The network.
        domain: Where the input is.
        target: The node.
        found: The ranges of all nodes before it.
        stated: What each activation reads.
    """
    shape = graph[target].shape
    rows = math.prod(shape)
    nodes = _before(graph, target)
    lines = {node.name: _lines(node, stated[node.name]) for node in nodes if _enclosed(node, stated)}
    step = max(1, _ROWS // max(math.prod(node.shape) for node in nodes))
    ends = []
    for side in (-1.0, 1.0):
        parts = []
        for first in range(0, rows, step):
            count = min(step, rows - first)
            unit = torch.zeros(count, rows, dtype=torch.float64)
            unit[torch.arange(count), torch.arange(first, first + count)] = 1.0
            parts.append(_one_side(nodes, domain, target, unit.reshape(count, *shape), side, found, stated, lines))
        ends.append(torch.cat(parts).reshape(shape))
    return Range(*ends).cleared()


def _enclosed(node: Node, stated: Mapping[str, Range]) -> TypeGuard[Activation]:
    """Whether lines are known between which an activation stays."""
    return isinstance(node, Activation) and node.name in stated and node.function in TABLE


def _lines(node: Activation, read: Range) -> Lines:
    return lines_on(node.function, node.parameters, read, slopes(node, read))


def _before(graph: Graph, target: str) -> list[Node]:
    needed, kept = {target}, []
    for node in reversed(graph.nodes):
        if node.name in needed:
            needed.update(sources(node))
            kept.append(node)
    return kept


def _one_side(
    nodes: list[Node],
    domain: Domain,
    target: str,
    unit: Tensor,
    side: float,
    found: Mapping[str, Range],
    stated: Mapping[str, Range],
    lines: Mapping[str, Lines],
) -> Tensor:
    zero = torch.zeros(len(unit), dtype=torch.float64)
    sizes = {node.name: found[node.name].magnitude for node in nodes}
    form = Form({target: unit}, zero, zero, side, sizes)
    for node in nodes:
        A = form.A.pop(node.name, None)
        if A is None:
            continue
        match node:
            case Input():
                _at_input(form, A, domain, node)
            case Affine():
                _through(form, A, node)
            case Activation() if node.name in lines:
                _relaxed(form, A, node, stated[node.name], lines[node.name])
            case Add(sources=names):
                for name in names:
                    form.give(name, A)
            case Concat(sources=names, dim=dim):
                widths = [sizes[name].shape[dim] for name in names]
                for name, part in zip(names, A.split(widths, dim + 1), strict=True):
                    form.give(name, part)
            case _:
                _by_range(form, A, found[node.name])
    room = 2.0 * form.error + 2.0**-50 * form.constant.abs() + SMALLEST
    return form.constant + side * room


def _through(form: Form, A: Tensor, node: Affine) -> None:
    """``A (M x + b)``: coefficients ``A M``, off by at most gamma times ``|A| |M|``, which meets the size of x."""
    before = form.sizes[node.source]
    reached = apply(modulus(node.map), before[None])[0]
    back = _pulled(node.map, A)
    rounded = gamma(math.prod(node.shape) + 4 * terms(node.map) + 8)
    if not isinstance(node.map, Reshape):
        form.error = form.error + 2.0 * rounded * _against(A.abs(), reached)
    if node.bias is not None:
        bias = node.bias.expand(node.shape)
        values = _against(A, bias)
        form.shift(values, 2.0 * gamma(bias.numel()) * _against(A.abs(), bias.abs()))
    form.give(node.source, back)


def _pulled(linear: LinearMap, A: Tensor) -> Tensor:
    """``A M`` for coefficients ``(rows, *out_shape)``."""
    match linear:
        case Dense(weight):
            return A @ weight
        case Diagonal(scale):
            return A * scale
        case Reshape():
            return A.reshape(len(A), *linear.in_shape)
        case Selection(index):
            found = A.new_zeros(len(A), math.prod(linear.in_shape) + 1)
            found.index_add_(1, index.reshape(-1).clamp_min(-1) % found.shape[1], A.flatten(1))
            return found[:, :-1].reshape(len(A), *linear.in_shape)
        case Adjoint(conv):
            return apply(conv, A)
        case Conv(padding_mode="zeros"):
            return apply(Adjoint(linear), A)
        case Separable(factors):
            turned = (f if f is None else Factor(f.numerator.mT.contiguous(), f.denominator) for f in factors)
            return apply(Separable(tuple(turned), linear.out_shape), A)
        case _:
            return (A.flatten(1) @ dense(linear)).reshape(len(A), *linear.in_shape)


def _relaxed(form: Form, A: Tensor, node: Activation, read: Range, lines: Lines) -> None:
    above = (A > 0.0) if form.side > 0 else (A < 0.0)
    a, b = torch.where(above, lines.a_high, lines.a_low), torch.where(above, lines.b_high, lines.b_low)
    back = A * a
    values, sized = (A * b).flatten(1).sum(1), (A * b).abs().flatten(1).sum(1)
    form.error = form.error + 2.0**-52 * _against(back.abs(), read.magnitude)
    form.shift(values, 2.0 * gamma(b[0].numel() + 1) * sized)
    form.give(node.source, back)


def _by_range(form: Form, A: Tensor, x: Range) -> None:
    high = (A > 0.0) if form.side > 0 else (A < 0.0)
    terms = torch.where(A == 0.0, 0.0, A * torch.where(high, x.high, x.low)).flatten(1)
    form.shift(terms.sum(1), 2.0 * gamma(terms.shape[1] + 1) * terms.abs().sum(1))


def _at_input(form: Form, A: Tensor, domain: Domain, node: Input) -> None:
    if isinstance(domain, L2Ball):
        centre = torch.as_tensor(domain.centre, dtype=torch.float64).expand(node.shape)
        values, count = _against(A, centre), centre.numel()
        form.shift(values, 2.0 * gamma(count) * _against(A.abs(), centre.abs()))
        reach = domain.radius * torch.linalg.vector_norm(A.flatten(1), dim=1)
        form.shift(form.side * reach, 2.0 * gamma(count + 4) * reach + domain.radius * count * 2.0**-500)
        return
    assert isinstance(domain, Box)
    _by_range(form, A, Range(*limits(domain, node.shape)))


def _against(A: Tensor, x: Tensor) -> Tensor:
    """``(rows,)``: the sum over entries of ``A x``."""
    return A.flatten(1) @ x.reshape(-1)
