"""The claim with two sides, for a whole network. Floor 5."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from torch import nn

from lipcert.bilipschitz.steps import Step, bounded, step_graph
from lipcert.certificate import Certificate, Validity
from lipcert.certifiers import Auto, Certifier
from lipcert.certifiers.combine import TRUST, about_all
from lipcert.certifiers.lipsdp import bottlenecks, steps
from lipcert.contraction import inverse_constant
from lipcert.errors import InvalidInput
from lipcert.graph import Graph
from lipcert.kernel.rounding import round_down, round_up
from lipcert.linear import Shape
from lipcert.norms import L2
from lipcert.report import assumptions, format_down, format_up
from lipcert.trace import trace


@dataclass(frozen=True, eq=False)
class BiLipschitz:
    """For all x, y: ``lower |x - y|_2 <= |f(x) - f(y)|_2 <= upper |x - y|_2``.

    f is the real-valued function of the captured graph with the stored weights read as exact real numbers.

    Attributes:
        lower: Rounded down; 0 if some step has no lower side, and then it claims nothing.
        upper: Rounded up.
        validity: How far both may be trusted: no further than the certificates they rest on.
        steps: The parts between bottlenecks, from the input to the output.
        certificate: The upper side of the whole, from the certifier.
        graph: The network.
    """

    lower: float
    upper: float
    validity: Validity
    steps: tuple[Step, ...]
    certificate: Certificate
    graph: Graph

    @property
    def inverse_constant(self) -> float:
        """A Lipschitz constant of the inverse on the network's image, rounded up; infinity if ``lower`` is 0."""
        return inverse_constant(self.lower)

    def __str__(self) -> str:
        """Both sides, and every step with its reason; lower sides are rounded down, upper ones up."""
        low, high = format_down(self.lower), format_up(self.upper)
        lines = [f"{low} <= |f(x) - f(y)|_2 / |x - y|_2 <= {high}   {self.validity.name}"]
        lines.append(f"  the inverse stretches by at most {format_up(self.inverse_constant)}")
        for step in self.steps:
            sides = f"[{format_down(step.lower)}, {format_up(step.upper)}]"
            lines.append(f"  {step.name}  {step.kind.value}  {sides}  {step.reason}")
        lines += [f"  rests on {assumed}" for assumed in assumptions(self.graph)]
        return "\n".join(lines)


def bilipschitz(
    model: nn.Module,
    input_shape: Shape,
    *,
    by: Certifier = Auto(),  # noqa: B008
    centres: Sequence[float] = (1.0,),
) -> BiLipschitz:
    r"""Bound how much a model stretches and how little, rigorously, in l2.

    The model is cut where everything passes through one node, and each step is bounded from below by its shape: affine
    maps, elementwise functions with slopes away from zero, residual blocks ``x + g(x)`` with a branch that contracts,
    additive couplings. A step of another shape makes the lower side 0, and says so in its ``reason``.

    Args:
        model: Any module of supported operations; it is copied, never changed.
        input_shape: Shape of one sample, without the batch dimension.
        by: Bounds branches, blocks and the whole.
        centres: Numbers c > 0 to try for residual blocks f: :math:`|f(x) - f(y)| \ge (c - \mathrm{Lip}(c I - f))
            |x - y|`. 1 is the textbook's :math:`1 - \mathrm{Lip}(g)`; larger ones give more for branches that are
            close to monotone, and cost a certificate each.

    Raises:
        UnsupportedOperation: If an operation is not covered; the message names its module path.
        NotLipschitz: If an operation has no finite constant on the whole space, as affine couplings have none.
        NotFinite: If a weight is NaN or infinite.
        InvalidInput: If there is no centre, or one is not positive and finite.

    References:
        | Invertible residual networks (Behrmann et al., 2019), https://arxiv.org/abs/1811.00995
        | Understanding and mitigating exploding inverses in invertible neural networks (Behrmann et al., 2021)

    Example:
        >>> import torch
        >>> class Block(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.inner = nn.Linear(2, 2, bias=False)
        ...         self.inner.weight.data = torch.diag(torch.tensor([0.5, 0.25]))
        ...     def forward(self, x):
        ...         return x + torch.tanh(self.inner(x))
        >>> found = bilipschitz(Block(), (2,))
        >>> 0.499999 < found.lower <= 0.5, 1.5 <= found.upper < 1.500001
        (True, True)
        >>> print(found.steps[0].reason)
        1 - L, L <= 0.5
    """
    return both_sides(trace(model, tuple(input_shape)), by=by, centres=centres)


def both_sides(graph: Graph, *, by: Certifier = Auto(), centres: Sequence[float] = (1.0,)) -> BiLipschitz:  # noqa: B008
    """`bilipschitz` of a captured network.

    Example:
        >>> import torch
        >>> graph = trace(nn.Sequential(nn.Flatten(), nn.LeakyReLU(0.25)), (2, 2))
        >>> found = both_sides(graph)
        >>> found.lower, found.upper
        (0.25, 1.0)
    """
    if not centres or not all(0.0 < centre < math.inf for centre in centres):
        raise InvalidInput(f"centres={tuple(centres)} must be positive and finite numbers, at least one; 1.0 is usual.")
    names = bottlenecks(graph)
    blocks = [
        (target, step_graph(graph, source, inner))
        for (source, target), inner in zip(itertools.pairwise(names), steps(graph, names), strict=True)
    ]
    found = tuple(bounded(target, block, by, centres) for target, block in blocks)
    whole = by(graph, L2)
    lower, upper = Fraction(1), Fraction(1)
    for step in found:
        lower, upper = lower * Fraction(step.lower), upper * Fraction(step.upper)
    used = [whole, *(certificate for step in found for certificate in step.certificates)]
    for certificate in used:
        about_all(certificate, by)
    validity = max((certificate.validity for certificate in used), key=TRUST.index)
    return BiLipschitz(
        lower=round_down(lower),
        upper=min(whole.bound, round_up(upper)),
        validity=validity,
        steps=found,
        certificate=whole,
        graph=graph,
    )
