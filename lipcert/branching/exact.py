"""The door: model in, a proved bracket around its constant out. Floor 5."""

from __future__ import annotations

import math
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
from lipcert.errors import CheckFailed, InvalidInput
from lipcert.graph import Graph
from lipcert.kernel.rounding import require_ieee
from lipcert.linear import Shape
from lipcert.norms import L2, Norms, require_supported
from lipcert.trace import trace

_POINTS = 64
_FINEST = 1e-9


@dataclass(frozen=True, eq=False)
class Bracket:
    """``lower.ratio <= constant <= upper``, both ends proved.

    Attributes:
        lower: Two inputs in the domain; the ratio is their exact difference quotient, rounded down.
        upper: No two inputs in the domain are stretched by more. The proof is the search itself, all rounding included;
            there is no certificate, as the evidence would be the whole tree.
        nodes: How many sets of signs were looked at.
        closed: Whether the ends agree up to the tolerance that was asked for. If not, time or nodes ran out.
    """

    lower: Witness
    upper: float
    nodes: int
    closed: bool


def exact_constant(
    model: nn.Module | Graph,
    input_shape: Shape | None = None,
    *,
    norms: Norms = L2,
    domain: Domain = WholeSpace(),  # noqa: B008
    tolerance: float = 0.01,
    seconds: float = 60.0,
    nodes: int = 10**6,
    generator: torch.Generator | None = None,
) -> Bracket:
    r"""Bracket the Lipschitz constant of a small piecewise linear network as tightly as asked for.

    Of all networks of ReLU, leaky ReLU, absolute values, clamps, maxima and sorting (MaxMin, GroupSort), and of their
    sums and concatenations. The work grows exponentially in the number of kinks in the worst case; trained networks
    with some dozen kinks take seconds. It can be stopped at any time: the bracket holds whenever it ends.

    Args:
        model: A module, which is copied and never changed, or a captured graph.
        input_shape: Shape of one sample, without the batch dimension; needed for a module.
        norms: Norms on input and output. Semidefinite bounds are used for l2 inputs; others converge more slowly.
        domain: Where both inputs lie: ``WholeSpace()``, a `Box` or an `L2Ball` with interior points. A ball is
            closed less tightly than a box, as it is made of tangents.
        tolerance: Stop where ``upper <= (1 + tolerance) * lower.ratio``; at least 1e-9.
        seconds: Stop starting new nodes after this long; the first is always looked at. With a finite value the result
            depends on the speed of the machine.
        nodes: Stop after about this many nodes.
        generator: Source of the points at which the search for a pair begins. Default: a generator seeded with 0.

    Raises:
        UnsupportedOperation: If a function is not piecewise linear with float64 slopes, is a user's own, or a weight is
            only known in an interval.
        InvalidInput: If the domain has no interior, or an argument makes no sense.
        BudgetExceeded: If the network has too many kinks.
        FloatEnvironment: If the processor does not round as IEEE 754 says.

    References:
        | LipBaB: computing exact Lipschitz constant of ReLU networks (Bhowmick, D'Souza and Raghavan, 2021)
        | ExLipBaB: exact Lipschitz constant computation for piecewise linear neural networks (arXiv:2602.15499, 2026)

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1, bias=False))
        >>> for tensor, rows in zip(model.parameters(), ([[1.0], [1.0]], [0.0, -1.0], [[1.0, -1.0]])):
        ...     tensor.data = torch.tensor(rows)
        >>> bracket = exact_constant(model, (1,), tolerance=1e-6)
        >>> bracket.lower.ratio, bracket.closed, 1.0 <= bracket.upper <= 1.000001
        (1.0, True, True)
    """
    require_supported(norms)
    require_ieee()
    if not _FINEST <= tolerance < math.inf:
        raise InvalidInput(f"tolerance {tolerance} is below {_FINEST} or infinite; proofs in float64 cannot close it.")
    graph = _graph(model, input_shape)
    place, slopes = Place(domain, graph.input.shape), Slopes(hinged(graph))
    drawn = torch.Generator().manual_seed(0) if generator is None else generator
    points = domain.sample(_POINTS, graph.input.shape, drawn)
    pairs = Pairs(graph, slopes, domain, Witness(0.0, norms, points[0], points[1]))
    for x in points.flatten(1).numpy():
        pairs.visit(x, slopes.pattern(x))
    search = Search(slopes, place, norms, pairs, tolerance)
    search.run(seconds, nodes)
    if not pairs.best.ratio <= search.upper:
        raise CheckFailed(
            f"a pair is stretched by {pairs.best.ratio}, and {search.upper} was proved to be the most: one of the two "
            f"is wrong. Please report this network."
        )
    return Bracket(pairs.best, search.upper, search.nodes, search.closed)


def _graph(model: nn.Module | Graph, input_shape: Shape | None) -> Graph:
    if isinstance(model, Graph):
        if input_shape is not None and tuple(input_shape) != model.input.shape:
            raise InvalidInput(f"the graph takes {model.input.shape}, not {tuple(input_shape)}; leave input_shape out.")
        return model
    if input_shape is None:
        raise InvalidInput("a module needs input_shape, the shape of one sample without the batch dimension.")
    return trace(model, tuple(input_shape))
