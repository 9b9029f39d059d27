"""What a network maps samples to, in float64 and with a bound of the rounding; and means of it. Floor 5."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn

from lipcert.errors import InvalidInput, NotFinite
from lipcert.evaluation import Values, evaluated
from lipcert.graph import Graph
from lipcert.kernel.rounding import round_down, round_up
from lipcert.trace import trace


@dataclass(frozen=True)
class Between:
    """A real number that is at least ``low`` and at most ``high``: the ends are rounded outward."""

    low: float
    high: float


def dual_value(critic: nn.Module, xs: Tensor, ys: Tensor) -> Between:
    """The mean of a critic over one sample minus its mean over another, of the real-valued function.

    Float64 with a proven bound of every rounding, under the arithmetic that `lipcert.falsify.execution` names. What has
    functions whose rounding is not bounded there (tanh, softplus, ...) is enclosed by ball arithmetic, which is slow.

    Args:
        critic: One number per sample; copied, never changed.
        xs: Shape ``(N, ...)``, finite.
        ys: Shape ``(M, ...)``, the same sample shape.

    Raises:
        InvalidInput: If a sample is empty or of another shape, or the critic gives several numbers.
        NotFinite: If a sample or an output is.
        UnsupportedOperation: If the critic cannot be captured or its values cannot be enclosed.

    Example:
        >>> critic = nn.Linear(1, 1, bias=False)
        >>> _ = critic.weight.data.fill_(2.0)
        >>> found = dual_value(critic, torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0]]))
        >>> found.low <= 3.0 <= found.high, found.high - found.low < 1e-14
        (True, True)
    """
    require_samples(xs, ys)
    graph = trace(critic, tuple(xs.shape[1:]))
    require_scalar(graph)
    return difference_of_means(values(graph, xs), values(graph, ys))


def difference_of_means(at_x: Values, at_y: Values) -> Between:
    """The mean of scalar values minus the mean of others, whatever their errors are."""
    middle = mean(at_x.at.flatten().tolist()) - mean(at_y.at.flatten().tolist())
    around = mean(at_x.error.tolist()) + mean(at_y.error.tolist())
    return Between(round_down(middle - around), round_up(middle + around))


def values(graph: Graph, x: Tensor) -> Values:
    """Evaluate a network in float64, at samples where it has finite values.

    Raises:
        NotFinite: If a value overflows.
        UnsupportedOperation: If the values of a function can neither be bounded nor enclosed.
    """
    found = evaluated(graph, x)
    if not bool(torch.isfinite(found.at).all() and torch.isfinite(found.error).all()):
        raise NotFinite("an output of the network is not a finite number at these samples, so it has no mean.")
    return found


def mean(numbers: Iterable[float]) -> Fraction:
    """The mean of float64 numbers, without rounding.

    Example:
        >>> mean([1.0, 0.5])
        Fraction(3, 4)
    """
    exact = [Fraction(number) for number in numbers]
    return sum(exact, Fraction(0)) / len(exact)


def require_samples(xs: Tensor, ys: Tensor) -> None:
    """Refuse what is no pair of samples.

    Raises:
        InvalidInput: If a sample is empty, has no batch dimension or no floats, or the two are of different shape.
        NotFinite: If a number is NaN or infinite.
    """
    for name, sample in (("xs", xs), ("ys", ys)):
        if sample.ndim < 2 or sample.numel() == 0 or not sample.is_floating_point():
            is_ = f"{sample.dtype} of shape {tuple(sample.shape)}"
            raise InvalidInput(f"{name} is {is_}; a sample is a batch of real vectors in floating point.")
        if not bool(torch.isfinite(sample).all()):
            bad = int((~torch.isfinite(sample)).sum())
            raise NotFinite(f"{bad} of the {sample.numel()} numbers of {name} are NaN or infinite; drop those samples.")
    if xs.shape[1:] != ys.shape[1:]:
        raise InvalidInput(
            f"xs has samples of shape {tuple(xs.shape[1:])} and ys of {tuple(ys.shape[1:])}; distances need one shape."
        )


def require_scalar(graph: Graph) -> None:
    """Refuse a critic with several outputs.

    Raises:
        InvalidInput: If there is not exactly one.
    """
    if math.prod(graph.output.shape) != 1:
        raise InvalidInput(
            f"a critic gives one number per sample, this network's output has shape {graph.output.shape}; "
            "choose one output (lipcert.select), and certify that."
        )
