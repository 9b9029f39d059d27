"""Elementwise functions of balls, by the names the graph gives them. Floor 2.

Piecewise linear functions map both ends of a ball, exactly. The others are evaluated by Arb, which returns a ball that
holds every value.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lipcert.enclosure.ball import GUARD, Ball, add, aligned, between, exactly, monotone, over, product, times
from lipcert.errors import UnsupportedOperation
from lipcert.graph import Activation

Arb = Any
"""``flint.arb``; the module is imported only where it is used."""

Scalar = Callable[..., Arb]

SELU_SCALE, SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717
"""The two constants, as the float64 numbers that torch computes with."""


def activated(node: Activation, x: Ball) -> Ball:
    """The values of an elementwise function.

    Raises:
        UnsupportedOperation: If the function is a user's own, or needs Arb and python-flint is not installed.
    """
    if node.function in _BENDS:
        return _BENDS[node.function](node, x)
    if node.function in _SMOOTH:
        smooth = _SMOOTH[node.function]
        given = () if smooth.parameter is None else (_full(node.parameters[smooth.parameter], x),)
        return elementwise(smooth.value, x, *given)
    raise UnsupportedOperation(
        f"`{node.name}` is {node.function}, whose values cannot be enclosed: a pair through it is never confirmed "
        f"exactly. Build it from functions that lipcert knows.",
        path=node.name,
    )


# --------------------------------------------------------------------------------- piecewise linear, both ends


def rectified(x: Ball) -> Ball:
    """``max(x, 0)``."""
    return monotone(x, lambda X: np.maximum(X, 0))


def _magnitude(node: Activation, x: Ball) -> Ball:
    if x.rad is None:
        return Ball(abs(x.mid), None, x.bits)
    return between(np.maximum(abs(x.mid) - x.rad, 0), abs(x.mid) + x.rad, x.bits)


def _limited(x: Ball, low: Any, high: Any) -> Ball:
    """``min(max(x, low), high)`` for limits that broadcast; an infinite one limits nothing."""
    for limit, cut in ((low, np.maximum), (high, np.minimum)):
        values = np.broadcast_to(np.asarray(limit, dtype=np.float64), x.shape)
        known = np.isfinite(values)
        x, ends = aligned([x, exactly(np.where(known, values, 0.0))])
        x = monotone(x, lambda X, cut=cut, known=known, ends=ends: np.where(known, cut(X, ends.mid), X))
    return x


def _cut(node: Activation, x: Ball) -> Ball:
    """Clamps of every kind: their limits are their values at the two infinities."""
    return _limited(x, *limits(node))


def limits(node: Activation) -> tuple[np.ndarray, np.ndarray]:
    """Between what a clamp of any kind cuts off, per entry; the graph keeps only its slopes.

    Shape ``(1, *node.shape)``; infinite where there is no limit.
    """
    ends = (torch.full((1, *node.shape), end, dtype=torch.float64) for end in (-math.inf, math.inf))
    low, high = (node.call(end).cpu().numpy() for end in ends)
    return low, high


def _kinked(x: Ball, slope: Ball) -> Ball:
    """``max(x, 0) + slope * min(x, 0)``."""
    return add([rectified(x), times(monotone(x, lambda X: np.minimum(X, 0)), slope)])


def _leaky(node: Activation, x: Ball) -> Ball:
    return _kinked(x, exactly(float(node.parameters["negative_slope"])))


def _prelu(node: Activation, x: Ball) -> Ball:
    slope = node.parameters["weight"]
    return _kinked(x, exactly(slope))


def _shrunk(node: Activation, x: Ball) -> Ball:
    """``x`` towards zero by a constant: the largest number that the function maps to zero."""
    edge = exactly(zero_below(node))
    x, edge = aligned([x, edge])
    return monotone(x, lambda X: np.maximum(X - edge.mid, 0) + np.minimum(X + edge.mid, 0))


def zero_below(node: Activation) -> float:
    """The largest float64 number that a shrinkage maps to zero, by bisection: they are ordered as their bits are."""
    low, high = 0, int(np.float64(math.inf).view(np.int64))
    while high - low > 1:
        middle = (low + high) // 2
        x = torch.tensor([[float(np.int64(middle).view(np.float64))]], dtype=torch.float64)
        low, high = (middle, high) if float(node.call(x)) == 0.0 else (low, middle)
    return float(np.int64(low).view(np.float64))


def _hardsigmoid(node: Activation, x: Ball) -> Ball:
    return over(_limited(_plus(x, 3), 0.0, 6.0), 6)


def _hardswish(node: Activation, x: Ball) -> Ball:
    return product(x, _hardsigmoid(node, x))


def _plus(x: Ball, constant: int) -> Ball:
    x = x.at(max(x.bits, 0))
    return Ball(x.mid + (constant << x.bits), x.rad, x.bits)


def _contracted(node: Activation, x: Ball) -> Ball:
    """An unknown factor in ``[1 - epsilon, 1]``."""
    drop = exactly(float(node.parameters["epsilon"]))
    fine = x.at(x.bits + drop.bits)
    slack = abs(x.mid) * drop.mid
    rad = slack if fine.rad is None else fine.rad + slack
    return Ball(fine.mid, rad if np.any(rad) else None, fine.bits)


_BENDS: dict[str, Callable[[Activation, Ball], Ball]] = {
    "relu": lambda node, x: rectified(x),
    "relu6": lambda node, x: _limited(x, 0.0, 6.0),
    "abs": _magnitude,
    "hardtanh": _cut,
    "clamp": _cut,
    "threshold": _cut,
    "softshrink": _shrunk,
    "leaky_relu": _leaky,
    "prelu": _prelu,
    "hardsigmoid": _hardsigmoid,
    "hardswish": _hardswish,
    "contraction": _contracted,
}


# ------------------------------------------------------------------------------------------------ by Arb


@dataclass(frozen=True)
class _Function:
    """A scalar function, and the parameter of the node that it takes besides x."""

    value: Scalar
    parameter: str | None = None


def _one(x: Arb) -> Arb:
    return x * 0 + 1


def _sigmoid(x: Arb) -> Arb:
    return ((x / 2).tanh() + 1) / 2


def _softplus(x: Arb) -> Arb:
    # log(1 + e^x) = max(x, 0) + log1p(e^-|x|): accurate far out on both sides.
    return x.max(x * 0) + (-abs(x)).exp().log1p()


def _left(x: Arb, below: Scalar, scale: Arb) -> Arb:
    """X right of zero, ``scale * below`` left of it, for a function that joins continuously at zero."""
    return x.max(x * 0) + scale * below(x.min(x * 0))


def _elu(x: Arb, alpha: Arb) -> Arb:
    return _left(x, lambda z: z.expm1(), alpha)


def _celu(x: Arb, alpha: Arb) -> Arb:
    return _left(x, lambda z: (z / alpha).expm1(), alpha)


def _selu(x: Arb) -> Arb:
    return SELU_SCALE * _elu(x, x * 0 + SELU_ALPHA)


def _gelu(x: Arb) -> Arb:
    return x * ((x / (2 * _one(x)).sqrt()).erf() + 1) / 2


def _gelu_tanh(x: Arb) -> Arb:
    # tanh(sqrt(2 / pi) (x + c x^3)), with torch's double c.
    root = (2 / (_one(x).atan() * 4)).sqrt()
    return x * ((root * (x + 0.044715 * x * x * x)).tanh() + 1) / 2


_SMOOTH: dict[str, _Function] = {
    "tanh": _Function(lambda x: x.tanh()),
    "sigmoid": _Function(_sigmoid),
    "log_sigmoid": _Function(lambda x: -_softplus(-x)),
    "softplus": _Function(lambda x, beta: _softplus(beta * x) / beta, "beta"),
    "softsign": _Function(lambda x: x / (1 + abs(x))),
    "tanhshrink": _Function(lambda x: x - x.tanh()),
    "silu": _Function(lambda x: x * _sigmoid(x)),
    "mish": _Function(lambda x: x * _softplus(x).tanh()),
    "gelu": _Function(_gelu),
    "gelu_tanh": _Function(_gelu_tanh),
    "elu": _Function(_elu, "alpha"),
    "celu": _Function(_celu, "alpha"),
    "selu": _Function(_selu),
    "erf": _Function(lambda x: x.erf()),
    "sin": _Function(lambda x: x.sin()),
    "cos": _Function(lambda x: x.cos()),
    "atan": _Function(lambda x: x.atan()),
    "asinh": _Function(lambda x: x.asinh()),
}


def _full(parameter: Any, x: Ball) -> Ball:
    known = exactly(parameter)
    return Ball(np.broadcast_to(known.mid, x.shape), None, known.bits)


def elementwise(value: Scalar, *balls: Ball) -> Ball:
    """A scalar function of one or more arrays of balls, entry by entry, with `GUARD` bits or more."""
    flint = arithmetic()
    given = [as_arb(ball) for ball in balls]
    with flint.ctx.workprec(_precision(balls)):
        values = [value(*entries) for entries in zip(*(array.ravel() for array in given), strict=True)]
    return as_ball(values, balls[0].shape)


def arithmetic() -> Any:
    """The module flint.

    Raises:
        UnsupportedOperation: If it is not installed.
    """
    try:
        import flint
    except ImportError as missing:
        raise UnsupportedOperation(
            "values of this network are not rational, and python-flint, which would enclose them, is not installed; "
            "pip install 'lipcert[testing]'."
        ) from missing
    return flint


def _precision(balls: tuple[Ball, ...]) -> int:
    """Enough for `GUARD` bits below the leading one of the largest number, and below the unit."""
    largest = max(int(abs(ball.mid).max(initial=1)).bit_length() - ball.bits for ball in balls)
    return 2 * GUARD + max(0, largest)


def as_arb(ball: Ball) -> np.ndarray:
    """An array of Arb's numbers."""
    flint = arithmetic()
    unit = -ball.bits
    if ball.rad is None:
        found = [flint.arb((int(m), unit)) for m in ball.mid.ravel()]
    else:
        pairs = zip(ball.mid.ravel(), ball.rad.ravel(), strict=True)
        found = [flint.arb(mid=(int(m), unit), rad=(int(r), unit)) for m, r in pairs]
    array = np.empty(len(found), dtype=object)
    array[:] = found
    return array.reshape(ball.shape)


def as_ball(values: list[Arb], shape: tuple[int, ...]) -> Ball:
    """Balls with twice `GUARD` fractional bits that hold Arb's.

    Raises:
        UnsupportedOperation: If one of them is not finite.
    """
    if not all(value.is_finite() for value in values):
        raise UnsupportedOperation("a value of the network is not finite at one of the two inputs.")
    bits = 2 * GUARD
    mid, rad = np.empty(len(values), dtype=object), np.empty(len(values), dtype=object)
    for position, value in enumerate(values):
        middle, off = _floor(value.mid(), bits)
        radius, more = _floor(value.rad(), bits)
        mid[position], rad[position] = middle, radius + more + off
    return Ball(mid.reshape(shape), rad.reshape(shape) if np.any(rad) else None, bits)


def _floor(value: Arb, bits: int) -> tuple[int, int]:
    """``value * 2**bits`` rounded down, and 1 if that changed it; the exponent of a value may be astronomic."""
    mantissa, exponent = (int(part) for part in value.man_exp())
    shift = exponent + bits
    if shift >= 0:
        return mantissa << shift, 0
    if -shift > mantissa.bit_length():
        return -int(mantissa < 0), int(mantissa != 0)
    whole = mantissa >> -shift
    return whole, int(whole << -shift != mantissa)
