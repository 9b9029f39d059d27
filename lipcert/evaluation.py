"""What a network maps samples to, in float64 and with a bound of all that rounding may have done. Floor 5."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from lipcert.enclosure import enclosed, nearest
from lipcert.errors import UnsupportedOperation
from lipcert.falsify.execution import ARITHMETIC, execution_error
from lipcert.graph import Graph
from lipcert.kernel.rounding import require_ieee, round_up

ENTRIES = 2**25
"""Most numbers that a part of a batch may take, over all nodes of a network: 256 MB in float64."""


@dataclass(frozen=True, eq=False)
class Values:
    """Outputs of a network.

    Attributes:
        at: Shape ``(N, *output shape)``, float64.
        error: Shape ``(N,)``: how far, in l2, each row can be from what the real-valued network gives.
        each: Shape ``(N,)``: how far any one entry of a row can be from it.
    """

    at: Tensor
    error: Tensor
    each: Tensor


def evaluated(graph: Graph, x: Tensor) -> Values:
    """Evaluate a network in float64; its functions whose rounding has no bound, by ball arithmetic, which is slow.

    Args:
        graph: The network.
        x: Shape ``(N, *input shape)``, finite, N > 0; read as exact numbers.

    Raises:
        UnsupportedOperation: If the values of a function can neither be bounded nor enclosed.
        BudgetExceeded: If they can be enclosed, and that would take too long.

    Example:
        >>> from lipcert.trace import trace
        >>> found = evaluated(trace(torch.nn.ReLU(), (2,)), torch.tensor([[1.0, -1.0]]))
        >>> found.at.tolist(), found.error.tolist()
        ([[1.0, 0.0]], [0.0])
    """
    require_ieee()
    rows = max(1, ENTRIES // sum(math.prod(node.shape) for node in graph))
    found = [_executed(graph, part) for part in x.detach().double().cpu().split(rows)]
    return Values(*(torch.cat([getattr(part, name) for part in found]) for name in ("at", "error", "each")))


def _executed(graph: Graph, x: Tensor) -> Values:
    try:
        error = execution_error(graph, x, ARITHMETIC[torch.float64])
    except UnsupportedOperation:
        return by_enclosure(graph, x)
    with torch.no_grad():
        return Values(graph.replay(x), error, error)


def by_enclosure(graph: Graph, x: Tensor) -> Values:
    """By ball arithmetic, sample by sample: the nearest float64 to every midpoint, and a bound of what is left.

    Raises:
        UnsupportedOperation: If the values of a function cannot be enclosed.
        BudgetExceeded: If that would take too long.
    """
    at, error, each = [], [], []
    for sample in x:
        ball = enclosed(graph, sample[None])
        near, off = nearest(ball)
        at.append(torch.from_numpy(near))
        each.append(float(off.max()))
        # The sum of magnitudes is at least the l2 norm.
        error.append(math.inf if each[-1] == math.inf else round_up(sum(map(Fraction, off.ravel()), Fraction(0))))
    return Values(torch.cat(at), *(torch.tensor(errors, dtype=torch.float64) for errors in (error, each)))
