"""Arithmetic, activations and matrix products of ONNX. Floor 4."""

from __future__ import annotations

import operator
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lipcert.errors import NotLipschitz
from lipcert.frontends.gates import product
from lipcert.frontends.onnx_operation import Operation, understands
from lipcert.lowering import Value, activation, lower
from lipcert.rules.arithmetic import aligned, scaled, shifted

_PLAIN = {
    # Functions without attributes whose definition is torch's, with the versions of it.
    "Relu": (F.relu, 6, 13, 14),
    "Sigmoid": (torch.sigmoid, 6, 13),
    "Tanh": (torch.tanh, 6, 13),
    "Softplus": (F.softplus, 1, 22),
    "Softsign": (F.softsign, 1, 22),
    "HardSwish": (F.hardswish, 14, 22),
    "Mish": (F.mish, 18, 22),
    "Erf": (torch.erf, 9, 13),
    "Abs": (torch.abs, 6, 13),
    "Neg": (operator.neg, 6, 13),
    "Sin": (torch.sin, 7, 22),
    "Cos": (torch.cos, 7, 22),
    "Atan": (torch.atan, 7, 22),
    "Asinh": (torch.asinh, 9, 22),
}


def _plain(kind: str, target: Any, *versions: int) -> None:
    @understands(kind, *versions)
    def handler(op: Operation) -> Value:
        return lower(target, op.value())


for _kind, (_target, *_versions) in _PLAIN.items():
    _plain(_kind, _target, *_versions)


def _arithmetic(kind: str, target: Any, *versions: int) -> None:
    @understands(kind, *versions)
    def handler(op: Operation) -> Value:
        return lower(target, op.operand(0), op.operand(1))


_arithmetic("Add", operator.add, 7, 13, 14)
_arithmetic("Sub", operator.sub, 7, 13, 14)
_arithmetic("Div", operator.truediv, 7, 13, 14)
_arithmetic("MatMul", torch.matmul, 1, 9, 13)


@understands("Mul", 7, 13, 14)
def _mul(op: Operation) -> Value:
    a, b = op.operand(0), op.operand(1)
    return product(a, b) if isinstance(a, Value) and isinstance(b, Value) else lower(operator.mul, a, b)


@understands("Sum", 8, 13)
def _sum(op: Operation) -> Value:
    return reduce(lambda a, b: lower(operator.add, a, b), _operands(op))


@understands("Max", 8, 12, 13)
def _max(op: Operation) -> Value:
    return reduce(_larger, _operands(op))


@understands("Min", 8, 12, 13)
def _min(op: Operation) -> Value:
    negatives: list[Any] = [_negative(entry) for entry in _operands(op)]
    return lower(operator.neg, reduce(_larger, negatives))


def _operands(op: Operation) -> list[Any]:
    """Values first, then constants."""
    found: list[Any] = []
    while (entry := op.input(len(found))) is not None:
        found.append(op.operand(len(found)) if not isinstance(entry, Value) else entry)
    return sorted(found, key=lambda entry: not isinstance(entry, Value))


def _larger(a: Value, b: Value | Tensor) -> Value:
    if isinstance(b, Value):
        return lower(torch.maximum, a, b)
    a, limit = aligned(a, b)
    return lower(torch.clamp, a, limit)


def _negative(entry: Value | Tensor) -> Value | Tensor:
    return lower(operator.neg, entry) if isinstance(entry, Value) else -entry


@understands("LeakyRelu", 6, 16)
def _leaky_relu(op: Operation) -> Value:
    return lower(F.leaky_relu, op.value(), op.option("alpha"))


@understands("PRelu", 7, 9, 16)
def _prelu(op: Operation) -> Value:
    """The slope broadcasts to the input from the right; torch's is per channel, so this is a rule of its own."""
    x, given = op.value(), op.weight(1)
    assert given is not None
    y, s = aligned(x, given)
    if y.shape != x.shape:
        raise op.refused(f"has slopes of shape {tuple(given.shape)} for samples {x.shape}")
    s = s.double()
    one = torch.ones_like(s)

    def call(x: Tensor) -> Tensor:
        return torch.where(x >= 0, x, s.to(x) * x)

    return activation(x, "prelu", (torch.minimum(one, s), torch.maximum(one, s)), call, weight=s)


@understands("Elu", 6, 22)
def _elu(op: Operation) -> Value:
    return lower(F.elu, op.value(), op.option("alpha"))


@understands("Celu", 12)
def _celu(op: Operation) -> Value:
    return lower(F.celu, op.value(), op.option("alpha"))


@understands("Selu", 6, 22)
def _selu(op: Operation) -> Value:
    """``gamma * elu(x)``; the default numbers are not torch's, so its table of slopes is not used."""
    return scaled(lower(F.elu, op.value(), op.option("alpha")), op.option("gamma"))


@understands("HardSigmoid", 6, 22)
def _hard_sigmoid(op: Operation) -> Value:
    """``max(0, min(1, alpha x + beta))``: with the default alpha of 0.2, not torch's function."""
    return lower(F.hardtanh, shifted(scaled(op.value(), op.option("alpha")), op.option("beta")), 0.0, 1.0)


@understands("Gelu", 20)
def _gelu(op: Operation) -> Value:
    approximate = op.option("approximate")
    if approximate not in ("none", "tanh"):
        raise op.refused(f"is approximated by {approximate!r}")
    return lower(F.gelu, op.value(), approximate=approximate)


@understands("Swish", 24)
def _swish(op: Operation) -> Value:
    if op.option("alpha") != 1.0:
        raise op.refused(f"has alpha={op.option('alpha')}; only 1, which is SiLU, is covered")
    return lower(F.silu, op.value())


@understands("ThresholdedRelu", 10, 22)
def _thresholded_relu(op: Operation) -> Value:
    """``x`` above alpha, zero elsewhere: continuous for alpha = 0 only."""
    return lower(F.threshold, op.value(), op.option("alpha"), 0.0)


@understands("Shrink", 9)
def _shrink(op: Operation) -> Value:
    """``x - bias`` beyond lambd, ``x + bias`` below minus lambd, zero between: continuous for equal numbers only."""
    lambd, bias = op.option("lambd"), op.option("bias")
    if lambd != bias:
        raise NotLipschitz(
            f"`{op.path}` (Shrink) jumps at lambd={lambd}, because its bias is {bias}; they must be equal.",
            path=op.path,
        )
    return lower(F.softshrink, op.value(), lambd)


@understands("Clip", 6, 11, 12, 13)
def _clip(op: Operation) -> Value:
    low, high = (op.option("min"), op.option("max")) if op.version == 6 else (op.weight(1), op.weight(2))
    for limit in (low, high):
        if isinstance(limit, Tensor) and limit.numel() != 1:
            raise op.refused(f"has a limit of shape {tuple(limit.shape)}, not a number")
    low, high = (None if limit is None else float(limit) for limit in (low, high))
    return lower(torch.clamp, op.value(), low, high)


@understands("Gemm", 7, 9, 11, 13)
def _gemm(op: Operation) -> Value:
    """``alpha A' B' + beta C`` with a batch of vectors A and a constant matrix B."""
    x, weight = op.value(), op.weight(1)
    alpha, beta = op.option("alpha"), op.option("beta")
    if op.option("transA") or len(x.shape) != 1 or weight is None or weight.ndim != 2:
        raise op.refused(f"multiplies {x.shape} transposed, or by something else than a matrix, so samples would mix")
    weight = weight if op.option("transB") else weight.T
    given = op.input(2)
    bias = None if given is None or isinstance(given, Value) else op.weight(2)
    if alpha == 1 and beta == 1 and bias is not None and bias.shape == weight.shape[:1]:
        return lower(F.linear, x, weight, bias)
    y = lower(F.linear, x, weight)
    y = y if alpha == 1 else scaled(y, alpha)
    if isinstance(given, Value):
        return lower(torch.add, y, given, alpha=beta)
    if bias is None or beta == 0:
        return y
    if bias.ndim > 2 or (bias.ndim == 2 and bias.shape[0] != 1) or bias.shape[-1:] not in ((), (1,), y.shape):
        raise op.refused(f"adds a bias of shape {tuple(bias.shape)} to samples {y.shape}")
    return shifted(y, bias.double() * beta)
