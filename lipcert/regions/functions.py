"""Elementwise functions on intervals: their values, their slopes, and lines that enclose them. Floor 2.

Values that torch computes in float64 are taken to be right within ``LIBRARY``, relative and absolute: two thousand
times what its mathematical functions promise. Functions that are not in the table keep their slopes, and what they
give is not bounded.

References:
    | Efficient neural network robustness certification with general activation functions (Zhang et al., 2018): lines
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lipcert.graph import Activation
from lipcert.regions.range import Range, around, hull, outward, unbounded

LIBRARY = 2.0**-42

CURVED = 2.0**-38
"""Slopes of curved functions are widened by this, relative and absolute. Open by more than 2^-40, they all have a
multiplier, however narrow the range: a checker, which computes slopes more closely, need not guess which have none.
"""

Parameters = Mapping[str, Any]


@dataclass(frozen=True)
class Elementwise:
    """What is known of a function.

    Attributes:
        value: The function, on tensors.
        slopes: Bounds of its difference quotients on a range; may be infinite.
        relative: How far ``value`` may be off, relative; it may be off by the same absolute amount if not exact.
        bent: Whether it is linear on both sides of 0, where it is 0.
    """

    value: Callable[[Tensor, Parameters], Tensor]
    slopes: Callable[[Range, Parameters], Range]
    relative: float = LIBRARY
    bent: bool = False

    def at(self, x: Tensor, parameters: Parameters) -> Range:
        """The function's value at numbers given exactly."""
        value = self.value(x, parameters)
        return Range(value, value) if self.relative == 0.0 else around(value, self.relative, self.relative)


@dataclass(frozen=True, eq=False)
class Lines:
    """``a_low v + b_low <= phi(v) <= a_high v + b_high`` on a range, entry by entry."""

    a_low: Tensor
    b_low: Tensor
    a_high: Tensor
    b_high: Tensor


def slopes_on(function: str, parameters: Parameters, x: Range, known: Range) -> Range:
    """Bounds of the difference quotients on a range, at most those known everywhere."""
    about = TABLE.get(function)
    return known if about is None else about.slopes(x, parameters).within(known)


def slopes(node: Activation, x: Range) -> Range:
    """Bounds of an activation's difference quotients on what it reads, of its shape."""
    lower, upper = (end.expand(node.shape) for end in node.slope)
    return slopes_on(node.function, node.parameters, x, Range(lower, upper))


def values_on(function: str, parameters: Parameters, x: Range, slopes: Range) -> Range:
    """Bounds of the values on a range, given bounds of the difference quotients there."""
    about = TABLE.get(function)
    if function in BETWEEN:
        everywhere = BETWEEN[function]
        known = Range(*(torch.full_like(x.low, end) for end in everywhere))
    else:
        known = unbounded(tuple(x.low.shape))
    if about is None or not x.bounded:
        return known
    ends = hull(about.at(x.low, parameters), about.at(x.high, parameters))
    if about.bent:
        zero = torch.where((x.low < 0.0) & (x.high > 0.0), 0.0, ends.low)
        return Range(torch.minimum(ends.low, zero), torch.maximum(ends.high, zero)).within(known)
    # Between its ends a function falls by at most its steepest descent, and rises above them by no more; a falling one
    # stays between them.
    fall = (x.high - x.low) * slopes.low.clamp(max=0.0) * (1 + 2.0**-50)
    fall = torch.where(slopes.high <= 0.0, 0.0, fall)
    return outward(ends.low + fall, ends.high - fall).cleared().within(known)


def lines_on(function: str, parameters: Parameters, x: Range, slopes: Range) -> Lines:
    """Two lines for every entry, between which the function stays on a bounded range."""
    about = TABLE[function]
    if about.bent:
        return _bent(about, parameters, x, slopes)
    low, high = about.at(x.low, parameters), about.at(x.high, parameters)
    rise, width = high.low - low.low, x.high - x.low
    # phi(v) - alpha v does not fall, phi(v) - beta v does not rise: the ends of the range bound both.
    flat = rise - slopes.low * width <= slopes.high * width - rise
    a = torch.where(flat, slopes.low, slopes.high)
    first, last = _offset(low, a, x.low), _offset(high, a, x.high)
    least, most = torch.where(flat, first.low, last.low), torch.where(flat, last.high, first.high)
    return Lines(a, least, a, most)


def _bent(about: Elementwise, parameters: Parameters, x: Range, slopes: Range) -> Lines:
    """A chord on one side, and a line through 0 on the other; one line where the function is one."""
    crossing = (x.low < 0.0) & (x.high > 0.0)
    low, high = about.at(x.low, parameters), about.at(x.high, parameters)
    width = torch.where(crossing, x.high - x.low, 1.0)
    chord = torch.where(crossing, (high.low - low.low) / width, 0.0)
    first, last = _offset(low, chord, x.low), _offset(high, chord, x.high)
    left, right = (about.slopes(Range(end, end), parameters).low for end in (-_one(x), _one(x)))
    through = torch.where(x.high > -x.low, right, left)
    zero = torch.zeros_like(chord)
    convex = left <= right
    straight = torch.where(x.low >= 0.0, right, left)
    a_low = torch.where(crossing, torch.where(convex, through, chord), straight)
    a_high = torch.where(crossing, torch.where(convex, chord, through), straight)
    b_low = torch.where(crossing & ~convex, torch.minimum(first.low, last.low), zero)
    b_high = torch.where(crossing & convex, torch.maximum(first.high, last.high), zero)
    return Lines(a_low, b_low, a_high, b_high)


def _one(x: Range) -> Tensor:
    return torch.ones_like(x.low)


def _offset(value: Range, a: Tensor, v: Tensor) -> Range:
    """``value - a v``."""
    product = around(a * v, 2.0**-52)
    return outward(value.low - product.high, value.high - product.low)


# ------------------------------------------------------------------------------------------------- kinds of slopes


def _pieces(knots: tuple[float, ...], *slopes: float | str) -> Callable[[Range, Parameters], Range]:
    """Of a function that is linear between knots; a slope may be the name of a parameter."""

    def of(x: Range, parameters: Parameters) -> Range:
        ends = (-torch.inf, *knots, torch.inf)
        least, most = torch.full_like(x.low, torch.inf), torch.full_like(x.low, -torch.inf)
        for index, slope in enumerate(slopes):
            there = (x.low < ends[index + 1]) & (x.high > ends[index])
            # A range of one point, at a knot, is a part of every piece beside it.
            there |= (x.low == x.high) & (x.low >= ends[index]) & (x.high <= ends[index + 1])
            value = torch.as_tensor(parameters[slope] if isinstance(slope, str) else slope, dtype=torch.float64)
            least = torch.where(there, torch.minimum(least, value), least)
            most = torch.where(there, torch.maximum(most, value), most)
        return Range(least, most)

    return of


def _bell(derivative: Callable[[Tensor], Tensor]) -> Callable[[Range, Parameters], Range]:
    """Of a function whose derivative is even and falls away from 0, to 0."""

    def of(x: Range, parameters: Parameters) -> Range:
        near = torch.where((x.low <= 0.0) & (x.high >= 0.0), 0.0, torch.minimum(x.low.abs(), x.high.abs()))
        least, most = (around(derivative(v), CURVED, CURVED) for v in (x.magnitude, near))
        return Range(least.low.clamp_min(0.0), most.high)

    return of


def _monotone(
    derivative: Callable[[Tensor, Parameters], Tensor], least: float = -torch.inf, most: float = torch.inf
) -> Callable[[Range, Parameters], Range]:
    """Of a function whose derivative rises, or falls, all along the range, and is between two numbers everywhere."""

    def of(x: Range, parameters: Parameters) -> Range:
        found = hull(*(around(derivative(v, parameters), CURVED, CURVED) for v in (x.low, x.high)))
        return Range(found.low.clamp_min(least), found.high.clamp_max(most))

    return of


def _where_positive(slopes: Callable[[Range, Parameters], Range]) -> Callable[[Range, Parameters], Range]:
    """Nothing is known unless the range is above zero."""

    def of(x: Range, parameters: Parameters) -> Range:
        inside = x.low > 0.0
        safe = Range(torch.where(inside, x.low, 1.0), torch.where(inside, x.high, 1.0))
        found, nothing = slopes(safe, parameters), unbounded(tuple(x.low.shape))
        return Range(torch.where(inside, found.low, nothing.low), torch.where(inside, found.high, nothing.high))

    return of


def _anything(x: Range, parameters: Parameters) -> Range:
    return unbounded(tuple(x.low.shape))


def _elu(x: Tensor, p: Parameters) -> Tensor:
    return torch.where(x > 0.0, x, torch.as_tensor(p["alpha"], dtype=torch.float64) * torch.expm1(x))


def _elu_slopes(x: Range, parameters: Parameters) -> Range:
    alpha = torch.as_tensor(parameters["alpha"], dtype=torch.float64)
    left = _monotone(lambda v, p: alpha * torch.exp(v))(Range(x.low.clamp(max=0.0), x.high.clamp(max=0.0)), {})
    least = torch.where(x.high > 0.0, torch.minimum(left.low, _one(x)), left.low)
    most = torch.where(x.high > 0.0, torch.maximum(left.high, _one(x)), left.high)
    right = x.low >= 0.0
    return Range(torch.where(right, 1.0, least), torch.where(right, 1.0, most))


def _factor(x: Range, parameters: Parameters) -> Range:
    """A factor that is known up to ``epsilon``; the error of its value counts that."""
    epsilon = float(parameters["epsilon"])
    if not 0.0 <= epsilon <= LIBRARY:
        return unbounded(tuple(x.low.shape))
    return Range(_one(x) * (1.0 - epsilon), _one(x))


def _leaky(slope: str) -> Elementwise:
    def value(x: Tensor, p: Parameters) -> Tensor:
        return torch.where(x >= 0.0, x, torch.as_tensor(p[slope], dtype=torch.float64) * x)

    return Elementwise(value, _pieces((0.0,), slope, 1.0), 2.0**-52, bent=True)


def _plain(call: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Parameters], Tensor]:
    return lambda x, parameters: call(x)


def _sigmoid_slope(v: Tensor) -> Tensor:
    s = torch.sigmoid(v)
    return s * torch.sigmoid(-v)


BETWEEN: dict[str, tuple[float, float]] = {
    "tanh": (-1.0, 1.0),
    "sigmoid": (0.0, 1.0),
    "hardsigmoid": (0.0, 1.0),
    "relu6": (0.0, 6.0),
    "sin": (-1.0, 1.0),
    "cos": (-1.0, 1.0),
    "softsign": (-1.0, 1.0),
    "erf": (-1.0, 1.0),
    "atan": (-1.5707963267948968, 1.5707963267948968),
}
"""Values everywhere."""

TABLE: dict[str, Elementwise] = {
    "relu": Elementwise(_plain(torch.relu), _pieces((0.0,), 0.0, 1.0), 0.0, bent=True),
    "abs": Elementwise(_plain(torch.abs), _pieces((0.0,), -1.0, 1.0), 0.0, bent=True),
    "leaky_relu": _leaky("negative_slope"),
    "prelu": _leaky("weight"),
    "contraction": Elementwise(lambda x, p: x if float(p["epsilon"]) <= LIBRARY else torch.nan * x, _factor),
    "relu6": Elementwise(_plain(torch.nn.functional.relu6), _pieces((0.0, 6.0), 0.0, 1.0, 0.0), 0.0),
    "tanh": Elementwise(_plain(torch.tanh), _bell(lambda v: 1.0 - torch.tanh(v) ** 2)),
    "sigmoid": Elementwise(_plain(torch.sigmoid), _bell(_sigmoid_slope)),
    "atan": Elementwise(_plain(torch.atan), _bell(lambda v: 1.0 / (1.0 + v * v))),
    "softplus": Elementwise(
        lambda x, p: torch.logaddexp(float(p["beta"]) * x, torch.zeros_like(x)) / float(p["beta"]),
        _monotone(lambda v, p: torch.sigmoid(float(p["beta"]) * v)),
    ),
    "log_sigmoid": Elementwise(_plain(torch.nn.functional.logsigmoid), _monotone(lambda v, p: torch.sigmoid(-v))),
    "elu": Elementwise(_elu, _elu_slopes),
    "silu": Elementwise(_plain(torch.nn.functional.silu), _anything),
    "gelu": Elementwise(_plain(torch.nn.functional.gelu), _anything),
    "mish": Elementwise(_plain(torch.nn.functional.mish), _anything),
    # Of these no slope is known everywhere.
    "exp": Elementwise(_plain(torch.exp), _monotone(lambda v, p: torch.exp(v), least=0.0)),
    "square": Elementwise(_plain(torch.square), _monotone(lambda v, p: 2.0 * v)),
    "sqrt": Elementwise(_plain(torch.sqrt), _where_positive(_monotone(lambda v, p: 0.5 / torch.sqrt(v), least=0.0))),
    "log": Elementwise(_plain(torch.log), _where_positive(_monotone(lambda v, p: 1.0 / v, least=0.0))),
    "reciprocal": Elementwise(
        _plain(torch.reciprocal), _where_positive(_monotone(lambda v, p: -1.0 / (v * v), most=0.0))
    ),
}
LOCAL = ("exp", "square", "sqrt", "log", "reciprocal")
"""Elementwise functions that have no slope on the whole space."""
