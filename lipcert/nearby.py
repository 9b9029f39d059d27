r"""Whether a classifier's decision holds on a whole ball around a sample. Floor 5.

A radius from a constant that holds everywhere is short; on the ball itself more is known. The decision at x is the
largest output, i. On the ball with radius r around x it is proved to be the same in one of two ways, for every other
output j: the least value that :math:`f_i - f_j` can take there is above zero, by linear relaxation; or
:math:`f_i(x) - f_j(x) > L r`, where L bounds the Lipschitz constant of :math:`f_i - f_j` on the ball.

References:
    | Efficient neural network robustness certification with general activation functions (Zhang et al., 2018)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lipcert.certificate import Validity
from lipcert.certifiers import Certifier, LipSDP, certify_on
from lipcert.domain import L2Ball
from lipcert.errors import InvalidInput, NotFinite
from lipcert.graph import Graph
from lipcert.kernel.rounding import mul_up
from lipcert.outputs import differences, select
from lipcert.regions import output_range
from lipcert.trace import trace


@dataclass(frozen=True, eq=False)
class Nearby:
    """What is proved of the decisions near samples.

    Attributes:
        classes: The decisions, shape ``(N,)``, int64; the largest output in float64.
        radius: Of the balls, in l2.
        by_ranges: Where ranges prove that the decision is the same on the ball, ``(N,)``, bool.
        by_constants: Where constants on the ball do and ranges do not.
    """

    classes: Tensor
    radius: float
    by_ranges: Tensor
    by_constants: Tensor

    @property
    def proved(self) -> Tensor:
        """Where the decision is the same on the whole ball, ``(N,)``, bool."""
        return self.by_ranges | self.by_constants


def decided_within(
    network: Graph | nn.Module,
    x: Tensor,
    radius: float,
    *,
    by: Certifier = LipSDP(),  # noqa: B008
) -> Nearby:
    """Prove for each sample that no input within an l2 distance has another largest output, or a tie.

    Args:
        network: A graph, or a module, which is captured at the shape of the samples.
        x: Shape ``(N, *input shape)``, floating point, read as exact numbers.
        radius: Of the balls.
        by: Bounds the constants on balls where ranges decide nothing.

    Raises:
        InvalidInput: If the samples do not fit, the radius is no number >= 0, or there is one output only.
        NotFinite: If a sample has NaN or infinite entries.
        UnsupportedOperation: If the module cannot be captured.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.ReLU())
        >>> found = decided_within(model, torch.tensor([[3.0, 1.0], [2.0, 1.9]]), 1.0)
        >>> found.classes.tolist(), found.proved.tolist()
        ([0, 0], [True, False])
    """
    samples = x.detach().double().cpu()
    if not x.is_floating_point() or len(x) == 0 or not 0.0 <= radius < math.inf:
        raise InvalidInput(f"samples of {x.dtype} {tuple(x.shape)} and radius {radius}: real numbers, radius >= 0.")
    if not bool(torch.isfinite(samples).all()):
        raise NotFinite("a sample has NaN or infinite entries, and then no input is near it.")
    around = L2Ball(samples[0], radius)
    graph = network if isinstance(network, Graph) else trace(network, tuple(x.shape[1:]), around)
    if tuple(x.shape[1:]) != graph.input.shape:
        raise InvalidInput(f"samples of shape {tuple(x.shape[1:])}, the network takes {graph.input.shape}.")
    with torch.no_grad():
        classes = torch.cat([graph.replay(sample[None]).argmax(1) for sample in samples])
        found = [_proof(graph, int(i), sample, radius, by) for i, sample in zip(classes, samples, strict=True)]
    ranges, constants = (torch.tensor([proof == kind for proof in found]) for kind in ("ranges", "constants"))
    return Nearby(classes, radius, ranges, constants)


def _proof(graph: Graph, i: int, sample: Tensor, radius: float, by: Certifier) -> str:
    """What proves the decision i on the ball: ranges, constants, or nothing."""
    gaps, ball = differences(graph, i), L2Ball(sample, radius)
    least = output_range(gaps, ball).low
    if bool((least > 0.0).all()):
        return "ranges"
    here = output_range(gaps, L2Ball(sample, 0.0)).low
    for row in torch.nonzero(~(least > 0.0)).flatten().tolist():
        if not bool(here[row] > 0.0):
            return ""
        found = certify_on(select(gaps, [row]), ball, by=by)
        if found.validity is not Validity.RIGOROUS or not float(here[row]) > float(mul_up(found.bound, radius)):
            return ""
    return "constants"
