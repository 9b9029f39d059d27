"""Sums, and products with constants. Floor 3."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

from lipcert.errors import NotLipschitz, UnsupportedOperation
from lipcert.linear import Diagonal, Reshape
from lipcert.lowering import Value, activation, affine, lower, lowers, require_finite
from lipcert.lowering import add as record_sum
from lipcert.rules.bounded import product
from lipcert.rules.structure import broadcast, common_shape, expanded

EPSILON = 2.0**-50
"""How far a factor that is rounded outward may be above the true one, relative; the rest is a contraction."""

Constant = Tensor | float | int


def scaled(x: Value, factor: Any) -> Value:
    """Record ``factor * x`` for a number or a tensor that broadcasts, exactly."""
    x, factor = aligned(x, factor)
    return affine(x, Diagonal(factor, x.shape))


def shifted(x: Value, constant: Any) -> Value:
    """Record ``x + constant``."""
    x, constant = aligned(x, constant)
    return affine(x, Reshape(x.shape, x.shape), constant)


def contracted(x: Value) -> Value:
    """Record an unknown factor in ``[1 - EPSILON, 1]`` per entry: what outward rounding added."""
    return activation(x, "contraction", (1.0 - EPSILON, 1.0), _unchanged, epsilon=EPSILON)


def _unchanged(x: Tensor) -> Tensor:
    return x


def aligned(x: Value, constant: Any) -> tuple[Value, Tensor]:
    """A constant without batch dimension, and the value expanded to what they broadcast to.

    Raises:
        UnsupportedOperation: If the constant has a batch dimension, or broadcasting would mix with the batch.
        NotFinite: If the constant is not finite.
    """
    exact = as_exact(constant, x)
    if exact.ndim == len(x.shape) + 1 and exact.shape[0] == 1:
        exact = exact[0]
    if exact.ndim > len(x.shape):
        raise UnsupportedOperation(
            f"`{x.path}` combines a batch of samples {x.shape} with a constant of shape {tuple(exact.shape)}, which "
            f"has a batch dimension of its own; make it {x.shape} or smaller.",
            path=x.path,
        )
    return expanded(x, broadcast(x.shape, exact.shape)), exact


def as_exact(constant: Any, x: Value) -> Tensor:
    """A number or tensor in float64, if that holds it exactly."""
    real = isinstance(constant, Tensor) and not constant.is_complex()
    tensor = constant if real else _as_tensor(constant, x)
    if not tensor.is_floating_point():
        # In int64 large unsigned integers are small negative ones; in float64 they are not.
        if bool(((tensor.long().abs() > 2**53) | (tensor.double().abs() > 2**53)).any()):
            raise UnsupportedOperation(f"`{x.path}` uses integers beyond 2**53.", path=x.path)
        tensor = tensor.double()
    require_finite(x.path, tensor)
    return tensor.double()


def _as_tensor(constant: Any, x: Value) -> Tensor:
    if not isinstance(constant, bool | int | float):
        raise UnsupportedOperation(
            f"`{x.path}` combines a tensor with {constant!r} ({type(constant).__name__}); "
            f"only real numbers and tensors are covered.",
            path=x.path,
        )
    return torch.tensor(constant, dtype=torch.float64 if isinstance(constant, float) else torch.int64)


@lowers(operator.add, operator.iadd, torch.add, "add", "add_")
def add(input: Value | Constant, other: Value | Constant, *, alpha: float = 1) -> Value:
    """``input + alpha * other``; at least one of them is a value."""
    if not isinstance(other, Value):
        assert isinstance(input, Value)
        return shifted(input, other if alpha == 1 else torch.as_tensor(other, dtype=torch.float64) * alpha)
    other = other if alpha == 1 else scaled(other, alpha)
    if not isinstance(input, Value):
        return shifted(other, input)
    shape = common_shape(input, other, "adds")
    return record_sum(expanded(input, shape), expanded(other, shape))


@lowers(operator.sub, operator.isub, torch.sub, torch.subtract, "sub", "sub_", "subtract")
def sub(input: Value | Constant, other: Value | Constant, *, alpha: float = 1) -> Value:
    """``input - alpha * other``."""
    return add(input, other, alpha=-alpha)


@lowers(torch.rsub)
def rsub(input: Value | Constant, other: Value | Constant, *, alpha: float = 1) -> Value:
    """``other - alpha * input``."""
    return add(other, input, alpha=-alpha)


@lowers(operator.neg, torch.neg, torch.negative, "neg", "neg_", "negative")
def neg(input: Value) -> Value:
    """``-input``."""
    return scaled(input, -1)


@lowers(operator.pos, torch.positive, "positive")
def pos(input: Value) -> Value:
    """``+input``."""
    return input


@lowers(operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_", "multiply")
def mul(input: Value | Constant, other: Value | Constant) -> Value:
    """A product with a constant; one of two values is Lipschitz on a bounded domain only."""
    if isinstance(input, Value) and isinstance(other, Value):
        return product(input, other)
    value, factor = (input, other) if isinstance(input, Value) else (other, input)
    assert isinstance(value, Value)
    return scaled(value, factor)


@lowers(operator.truediv, operator.itruediv, torch.div, torch.divide, torch.true_divide, "div", "div_", "divide")
def div(input: Value | Constant, other: Value | Constant, *, rounding_mode: None = None) -> Value:
    """A quotient by a constant: multiplication where the reciprocal is exact, else rounded outward and contracted."""
    path = input.path if isinstance(input, Value) else other.path if isinstance(other, Value) else ""
    if isinstance(other, Value) and not other.everywhere and rounding_mode is None:
        return mul(input, lower(torch.reciprocal, other))
    if isinstance(other, Value) or not isinstance(input, Value):
        raise NotLipschitz(
            f"`{path}` divides by a tensor that depends on the input; near zero a quotient has no Lipschitz constant. "
            f"Normalise by a constant instead.",
            path=path,
        )
    if rounding_mode is not None:
        raise NotLipschitz(f"`{path}` rounds a quotient, which is not continuous.", path=path)
    x, divisor = aligned(input, other)
    if bool((divisor == 0).any()):
        raise NotLipschitz(f"`{path}` divides by zero.", path=path)
    reciprocal, exact = reciprocal_outward(divisor, path)
    y = affine(x, Diagonal(reciprocal, x.shape))
    return y if exact else contracted(y)


def reciprocal_outward(divisor: Tensor, path: str) -> tuple[Tensor, bool]:
    """``r`` with ``1/|c| <= |r| <= (1 + EPSILON)/|c|`` per entry, and whether all of them are exact.

    Division rounds by at most half a unit in the last place and the step outward adds one: at most 1.5 * 2^-52.
    """
    reciprocal = 1.0 / divisor
    mantissa, _ = torch.frexp(divisor)
    powers = mantissa.abs() == 0.5
    if not bool(((reciprocal.abs() > 2.0**-1000) & (reciprocal.abs() < 2.0**1000)).all()):
        raise UnsupportedOperation(f"`{path}` divides by numbers whose reciprocals leave float64.", path=path)
    outward = torch.nextafter(reciprocal, torch.copysign(torch.full_like(reciprocal, torch.inf), reciprocal))
    return torch.where(powers, reciprocal, outward), bool(powers.all())
