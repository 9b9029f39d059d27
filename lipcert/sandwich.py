"""Everything known about one constant, in order: pair, pattern, dual bound, proof. Floor 5."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from lipcert.certificate import Block, Certificate, Multipliers, Witness
from lipcert.certifiers import Auto, Certifier, FourierLipSDP, LipSDP, Part, Solved, Split
from lipcert.certifiers.combine import about_all
from lipcert.errors import UnsupportedOperation
from lipcert.graph import Activation, Graph
from lipcert.linear import Shape
from lipcert.lmi import NormalForm, largest_pattern, normal_form
from lipcert.lmi.patterns import Slopes
from lipcert.norms import L2
from lipcert.trace import trace
from lipcert.witness import Budget, witness


@dataclass(frozen=True, eq=False)
class Sandwich:
    """``witness.ratio <= pattern <= dual <= certificate.bound``, in l2.

    The ends are about the network: a pair of inputs stretches by the ratio, and no pair by more than the bound. The
    middle is about the method, and is ``NUMERICAL``: evaluated in floating point, relied on by nothing. Where the
    network is cut into several parts both are products over the parts, times the factors between them: what the method
    cannot go below with these cuts.

    Attributes:
        witness: A pair of inputs.
        pattern: The norm of the network's linear map for some slopes in their intervals: no bound that knows
            activations by their slopes is lower. ``None`` where the bound is layerwise, or neurons are too many.
        dual: No diagonal multipliers give less. A pattern is a dual feasible point, so it is at least ``pattern``.
        certificate: The proved bound.
        parts: How many parts the certificate bounds by multipliers.
    """

    witness: Witness
    pattern: float | None
    dual: float | None
    certificate: Certificate
    parts: int


def sandwich(
    model: nn.Module,
    input_shape: Shape,
    *,
    by: Certifier = Auto(),  # noqa: B008
    budget: Budget = Budget(),  # noqa: B008
    generator: torch.Generator | None = None,
) -> Sandwich:
    """Bound a model's Lipschitz constant (l2 to l2) from both sides, and say how much the method leaves.

    Args:
        model: Any module of supported operations; it is copied, never changed.
        input_shape: Shape of one sample, without the batch dimension.
        by: The certifier.
        budget: How hard to search for a pair.
        generator: Source of the pair's starting points and of patterns. Default: a generator seeded with 0.

    Raises:
        UnsupportedOperation: If an operation is not covered; the message names its module path.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> found = sandwich(model, (2,))
        >>> found.witness.ratio <= found.pattern <= found.dual <= found.certificate.bound
        True
    """
    drawn = torch.Generator().manual_seed(0) if generator is None else generator
    pair = witness(model, input_shape, L2, budget=budget, generator=drawn)
    return enclose(trace(model, tuple(input_shape)), pair, by=by, generator=drawn)


def enclose(
    graph: Graph,
    pair: Witness,
    *,
    by: Certifier = Auto(),  # noqa: B008
    generator: torch.Generator | None = None,
) -> Sandwich:
    """The sandwich of a graph and a pair of its inputs."""
    solved = by.solve(graph) if isinstance(by, LipSDP | FourierLipSDP | Split | Auto) else Solved(by(graph, L2))
    certificate = about_all(solved.certificate, by)
    blocks = certificate.evidence.blocks if isinstance(certificate.evidence, Multipliers) else ()
    if not blocks:
        return Sandwich(pair, None, None, certificate, 0)
    known = {part.block.target: part for part in solved.parts}
    try:
        factors = [_factors(graph, block, known.get(block.target), pair, generator) for block in blocks]
    except UnsupportedOperation:  # on a torus there may be more neurons than one normal form holds
        return Sandwich(pair, None, None, certificate, len(blocks))
    pattern, dual = (certificate.bound * math.prod(column) for column in zip(*factors, strict=True))
    return Sandwich(pair, pattern, dual, certificate, len(blocks))


def _factors(
    graph: Graph, block: Block, part: Part | None, pair: Witness, generator: torch.Generator | None
) -> tuple[float, float]:
    """What the pattern and the dual bound are of a part's bound."""
    form = normal_form(graph, block.source, block.target) if part is None or part.form is None else part.form
    pattern = largest_pattern(form, begin=[_slopes(graph, form, pair)], generator=generator).norm
    dual = 0.0 if part is None else math.sqrt(part.solution.dual)
    return pattern / block.value, max(pattern, dual) / block.value


def _slopes(graph: Graph, form: NormalForm, pair: Witness) -> Slopes:
    """The difference quotients of the activations along a pair of inputs; with them the linear map maps x - y right."""
    values = graph.values(torch.stack([pair.x, pair.y]))
    slopes = {}
    for layer in form.layers:
        node = graph[layer.name]
        if not isinstance(node, Activation):  # it sorts or reflects, and its neurons are coordinates of groups
            slopes[layer.name] = layer.beta
            continue
        v, u = (values[name][0] - values[name][1] for name in (node.source, node.name))
        quotient = torch.where(v == 0.0, 1.0, u / torch.where(v == 0.0, 1.0, v)).flatten()
        slopes[layer.name] = quotient.maximum(layer.alpha).minimum(layer.beta)
    return slopes
