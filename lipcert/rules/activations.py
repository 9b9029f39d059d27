"""Elementwise activations, with bounds of their difference quotients rounded outward. Floor 3.

For a continuous, piecewise differentiable function these are the bounds of the derivative. Decimal constants are the
extrema of the derivative rounded outward to five digits; the tests hold them against 50-digit arithmetic.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lipcert.errors import NotLipschitz, UnsupportedOperation
from lipcert.lowering import Value, activation, lowers, require_finite
from lipcert.rules.structure import broadcast

Interval = tuple[float, float]

SIXTH = math.nextafter(1 / 6, 1.0)
"""The slope of hardsigmoid, rounded up."""

GELU: dict[str, tuple[str, Interval]] = {
    # The tanh form is another function, with other slopes.
    "none": ("gelu", (-0.12891, 1.12891)),
    "tanh": ("gelu_tanh", (-0.12900, 1.12900)),
}


def _plain(name: str, slope: Interval, call: Callable[[Tensor], Tensor], *targets: Any) -> None:
    """Register all spellings of an activation without parameters."""
    modules = [target for target in targets if isinstance(target, type)]
    spellings = [target for target in targets if not isinstance(target, type)]

    def rule(input: Value, inplace: bool = False) -> Value:
        return activation(input, name, slope, call)

    def module_rule(module: nn.Module, input: Value) -> Value:
        return activation(input, name, slope, call)

    lowers(*spellings)(rule)
    lowers(*modules)(module_rule)


_plain("relu", (0.0, 1.0), torch.relu, nn.ReLU, F.relu, torch.relu, torch.relu_, "relu", "relu_")
_plain("relu6", (0.0, 1.0), F.relu6, nn.ReLU6, F.relu6)
_plain("selu", (0.0, 1.7581), torch.selu, nn.SELU, F.selu, torch.selu, torch.selu_)
_plain("silu", (-0.09984, 1.09984), F.silu, nn.SiLU, F.silu)
_plain("mish", (-0.11253, 1.08850), F.mish, nn.Mish, F.mish)
_plain("softsign", (0.0, 1.0), F.softsign, nn.Softsign, F.softsign)
_plain("tanh", (0.0, 1.0), torch.tanh, nn.Tanh, torch.tanh, torch.tanh_, "tanh", "tanh_")
_plain("tanhshrink", (0.0, 1.0), F.tanhshrink, nn.Tanhshrink, F.tanhshrink)
_plain("hardsigmoid", (0.0, SIXTH), F.hardsigmoid, nn.Hardsigmoid, F.hardsigmoid)
_plain("hardswish", (-0.5, 1.5), F.hardswish, nn.Hardswish, F.hardswish)
_plain(
    "sigmoid",
    (0.0, 0.25),
    torch.sigmoid,
    *(nn.Sigmoid, torch.sigmoid, torch.sigmoid_, torch.special.expit, "sigmoid", "sigmoid_"),
)
_plain("log_sigmoid", (0.0, 1.0), F.logsigmoid, nn.LogSigmoid, F.logsigmoid)
_plain(
    "abs",
    (-1.0, 1.0),
    torch.abs,
    *(operator.abs, torch.abs, torch.absolute, torch.abs_, "abs", "abs_", "absolute"),
)
_plain("sin", (-1.0, 1.0), torch.sin, torch.sin, torch.sin_, "sin", "sin_")
_plain("cos", (-1.0, 1.0), torch.cos, torch.cos, torch.cos_, "cos", "cos_")
_plain("atan", (0.0, 1.0), torch.atan, torch.atan, torch.arctan, torch.atan_, "atan", "atan_", "arctan")
_plain("asinh", (0.0, 1.0), torch.asinh, torch.asinh, torch.arcsinh, "asinh", "arcsinh")
_plain("erf", (0.0, 1.12838), torch.erf, torch.erf, torch.special.erf, "erf", "erf_")


@lowers(F.leaky_relu)
def leaky_relu(input: Value, negative_slope: float = 0.01, inplace: bool = False) -> Value:
    """The slopes are 1 and the negative slope."""
    s = number(input, negative_slope)

    def call(x: Tensor) -> Tensor:
        return F.leaky_relu(x, s)

    return activation(input, "leaky_relu", (min(1.0, s), max(1.0, s)), call, negative_slope=s)


@lowers(nn.LeakyReLU)
def leaky_relu_module(module: nn.LeakyReLU, input: Value) -> Value:
    """`leaky_relu` with the module's slope."""
    return leaky_relu(input, module.negative_slope)


@lowers(F.rrelu, torch.rrelu)
def rrelu(
    input: Value, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, inplace: bool = False
) -> Value:
    """Outside training a leaky ReLU with the mean of the two slopes."""
    if training:
        raise UnsupportedOperation(f"`{input.path}` draws random slopes (training=True).", path=input.path)
    return leaky_relu(input, (lower + upper) / 2)


@lowers(nn.RReLU)
def rrelu_module(module: nn.RReLU, input: Value) -> Value:
    """`rrelu` in evaluation mode."""
    return rrelu(input, module.lower, module.upper, module.training)


@lowers(F.prelu, torch.prelu, "prelu")
def prelu(input: Value, weight: Tensor) -> Value:
    """A leaky ReLU with one slope, or one per channel."""
    require_finite(input.path, weight)
    per_channel = weight.numel() > 1
    if per_channel and input.shape[:1] != (weight.numel(),):
        raise UnsupportedOperation(f"`{input.path}` has {weight.numel()} slopes for {input.shape}.", path=input.path)
    s = weight.reshape(-1, *[1] * (len(input.shape) - 1)) if per_channel else weight.reshape(())
    one = torch.ones_like(s)

    def call(x: Tensor) -> Tensor:
        return F.prelu(x, weight.to(x))

    return activation(input, "prelu", (torch.minimum(one, s), torch.maximum(one, s)), call, weight=s)


@lowers(nn.PReLU)
def prelu_module(module: nn.PReLU, input: Value) -> Value:
    """`prelu` with the module's weight."""
    return prelu(input, module.weight)


@lowers(F.elu)
def elu(input: Value, alpha: float = 1.0, inplace: bool = False) -> Value:
    """The slope left of zero is ``alpha * exp(x)``."""
    a = number(input, alpha)

    def call(x: Tensor) -> Tensor:
        return F.elu(x, a)

    return activation(input, "elu", (min(0.0, a), max(1.0, a)), call, alpha=a)


@lowers(nn.ELU)
def elu_module(module: nn.ELU, input: Value) -> Value:
    """`elu` with the module's alpha."""
    return elu(input, module.alpha)


@lowers(F.celu, torch.celu)
def celu(input: Value, alpha: float = 1.0, inplace: bool = False) -> Value:
    """The slope left of zero is ``exp(x / alpha)``."""
    a = number(input, alpha)
    if a <= 0:
        raise NotLipschitz(f"`{input.path}` is a CELU with alpha={a}: it grows exponentially.", path=input.path)

    def call(x: Tensor) -> Tensor:
        return F.celu(x, a)

    return activation(input, "celu", (0.0, 1.0), call, alpha=a)


@lowers(nn.CELU)
def celu_module(module: nn.CELU, input: Value) -> Value:
    """`celu` with the module's alpha."""
    return celu(input, module.alpha)


@lowers(F.gelu)
def gelu(input: Value, *, approximate: str = "none") -> Value:
    """Exact or in its tanh form."""
    name, slope = GELU[approximate]

    def call(x: Tensor) -> Tensor:
        return F.gelu(x, approximate=approximate)

    return activation(input, name, slope, call)


@lowers(nn.GELU)
def gelu_module(module: nn.GELU, input: Value) -> Value:
    """`gelu` in the module's form."""
    return gelu(input, approximate=module.approximate)


@lowers(F.softplus)
def softplus(input: Value, beta: float = 1, threshold: float = 20) -> Value:
    """``log(1 + exp(beta x)) / beta``; torch's switch to x is invisible only if it comes late enough."""
    b = number(input, beta)
    if b <= 0 or threshold < 20:
        raise NotLipschitz(
            f"`{input.path}` is a softplus with beta={beta}, threshold={threshold}: torch jumps to x where "
            f"beta * x passes the threshold, and the jump is visible below 20. Use beta > 0 and threshold >= 20.",
            path=input.path,
        )

    def call(x: Tensor) -> Tensor:
        return F.softplus(x, b, threshold)

    return activation(input, "softplus", (0.0, 1.0), call, beta=b)


@lowers(nn.Softplus)
def softplus_module(module: nn.Softplus, input: Value) -> Value:
    """`softplus` with the module's parameters."""
    return softplus(input, module.beta, module.threshold)


@lowers(F.softshrink)
def softshrink(input: Value, lambd: float = 0.5) -> Value:
    """Shift towards zero by ``lambd``."""
    if number(input, lambd) < 0:
        raise NotLipschitz(f"`{input.path}` is a softshrink with lambd={lambd} < 0, which jumps.", path=input.path)

    def call(x: Tensor) -> Tensor:
        return F.softshrink(x, lambd)

    return activation(input, "softshrink", (0.0, 1.0), call)


@lowers(nn.Softshrink)
def softshrink_module(module: nn.Softshrink, input: Value) -> Value:
    """`softshrink` with the module's parameter."""
    return softshrink(input, module.lambd)


@lowers(F.threshold, torch.threshold, torch.threshold_)
def threshold(input: Value, threshold: float, value: float, inplace: bool = False) -> Value:
    """``x`` above the threshold, a value elsewhere: continuous only if that value is the threshold."""
    t = number(input, threshold)
    if t != number(input, value):
        raise NotLipschitz(
            f"`{input.path}` jumps from {value} to {threshold} at its threshold; make them equal.", path=input.path
        )

    def call(x: Tensor) -> Tensor:
        return F.threshold(x, t, t)

    return activation(input, "threshold", (0.0, 1.0), call)


@lowers(nn.Threshold)
def threshold_module(module: nn.Threshold, input: Value) -> Value:
    """`threshold` with the module's parameters."""
    return _threshold(input, module.threshold, module.value)


_threshold = threshold


@lowers(F.hardtanh)
def hardtanh(input: Value, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Value:
    """Cut off below and above."""
    low, high = number(input, min_val), number(input, max_val)

    def call(x: Tensor) -> Tensor:
        return F.hardtanh(x, low, high)

    return activation(input, "hardtanh", (0.0, 1.0), call)


@lowers(nn.Hardtanh)
def hardtanh_module(module: nn.Hardtanh, input: Value) -> Value:
    """`hardtanh` with the module's limits."""
    return hardtanh(input, module.min_val, module.max_val)


@lowers(torch.clamp, torch.clip, torch.clamp_, "clamp", "clamp_", "clip", "clip_")
def clamp(input: Value, min: float | Tensor | None = None, max: float | Tensor | None = None) -> Value:
    """Cut off below and above by constants, which may differ from entry to entry."""
    low, high = _limit(input, min, -math.inf), _limit(input, max, math.inf)

    def call(x: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(x, low.to(x)), high.to(x))

    return activation(input, "clamp", (0.0, 1.0), call)


def _limit(x: Value, limit: float | Tensor | None, default: float) -> Tensor:
    found = torch.as_tensor(default if limit is None else limit, dtype=torch.float64)
    if found.ndim > len(x.shape) or broadcast(found.shape, x.shape) != x.shape or bool(found.isnan().any()):
        raise UnsupportedOperation(
            f"`{x.path}` clamps samples {x.shape} by limits of shape {tuple(found.shape)}.", path=x.path
        )
    return found


@lowers(torch.clamp_min, torch.clamp_min_, "clamp_min", "clamp_min_")
def clamp_min(input: Value, min: float | Tensor) -> Value:
    """Cut off below."""
    return clamp(input, min=min)


@lowers(torch.clamp_max, torch.clamp_max_, "clamp_max", "clamp_max_")
def clamp_max(input: Value, max: float | Tensor) -> Value:
    """Cut off above."""
    return clamp(input, max=max)


def number(x: Value, value: Any) -> float:
    """A finite parameter as a float."""
    found = float(value)
    require_finite(x.path, torch.tensor(found))
    return found
