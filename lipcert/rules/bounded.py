"""Operations that are Lipschitz on a bounded domain only: recorded when one is given, refused otherwise. Floor 3."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lipcert.errors import InvalidInput, NotLipschitz, UnsupportedOperation
from lipcert.linear import Diagonal, Reshape
from lipcert.lowering import Target, Value, affine, concat, dimension, lower, lowers, opaque
from lipcert.rules.structure import common_shape, expanded, rearrange, reshaped

ON_ONE = "Certify on a domain instead: certify(model, shape, domain=Box(-1.0, 1.0))"
GROWS = (
    "grows faster than linearly, so it has no Lipschitz constant on the whole space; bound its input first, for "
    "example by torch.tanh. " + ON_ONE
)
STEEP = (
    "has an unbounded slope near the edge of its domain, so it has no Lipschitz constant; keep its input away from "
    "there. " + ON_ONE
)
MULTIPLIES = (
    "multiplies parts of its input with each other; on an unbounded domain a product has no Lipschitz constant. "
    "Replace the gate by an activation such as MaxMin. " + ON_ONE
)
PRODUCT = (
    "multiplies two tensors that both depend on the input; on an unbounded domain a product has no Lipschitz constant. "
    "Replace the gate or attention by a sum or a fixed weight. " + ON_ONE
)
MATRICES = (
    "multiplies two tensors that both depend on the input; on an unbounded domain that has no Lipschitz constant. "
    "Attention of this kind can be replaced by a fixed or L2-distance form. " + ON_ONE
)
ATTENDS = (
    "is Lipschitz only on a bounded domain: attention multiplies queries and keys that both depend on the input. "
    + ON_ONE
)
NORMALISES = "is Lipschitz only on a bounded domain. Use batch normalisation, or a fixed scale. " + ON_ONE


def require_domain(x: Value, name: str, reason: str) -> None:
    """Refuse an operation on the whole space.

    Raises:
        NotLipschitz: If no domain was given to `trace`.
    """
    if x.everywhere:
        raise NotLipschitz(f"`{name}` at `{x.path}` {reason}.", path=x.path)


def _value(first: Any, second: Any, name: str, reason: str) -> Value:
    """The one of two arguments that depends on the input, if there is a domain."""
    found = first if isinstance(first, Value) else second
    assert isinstance(found, Value)
    require_domain(found, name, reason)
    return found


def _elementwise(name: str, reason: str, call: Callable[[Tensor], Tensor], *targets: Target) -> None:
    def rule(input: Value) -> Value:
        require_domain(input, name, reason)
        return opaque(input, name, input.shape, {}, call)

    lowers(*targets)(rule)


_elementwise("exp", GROWS, torch.exp, torch.exp, "exp")
_elementwise("square", GROWS, torch.square, torch.square, "square")
_elementwise("sqrt", STEEP, torch.sqrt, torch.sqrt, "sqrt")
_elementwise("log", STEEP, torch.log, torch.log, "log")
_elementwise("reciprocal", STEEP, torch.reciprocal, torch.reciprocal, "reciprocal")


@lowers(torch.rsqrt, "rsqrt")
def rsqrt(input: Value) -> Value:
    """``1 / sqrt(x)``."""
    require_domain(input, "rsqrt", STEEP)
    return lower(torch.reciprocal, lower(torch.sqrt, input))


@lowers(torch.expm1, "expm1")
def expm1(input: Value) -> Value:
    """``exp(x) - 1``."""
    require_domain(input, "expm1", GROWS)
    return lower(torch.sub, lower(torch.exp, input), 1)


@lowers(operator.pow, torch.pow, "pow")
def power(input: Value, exponent: Any) -> Value:
    """A square; other powers are written as products."""
    path = _value(input, exponent, "pow", GROWS).path
    if not isinstance(input, Value) or exponent not in (2, 2.0):
        raise UnsupportedOperation(f"`{path}` takes a power other than 2; write it with products or exp.", path=path)
    return lower(torch.square, input)


def product(a: Value, b: Value) -> Value:
    """The product of two values, entry by entry, as one function of both side by side."""
    require_domain(a, "mul", PRODUCT)
    shape = common_shape(a, b, "multiplies")
    size = math.prod(shape)
    both = concat([reshaped(expanded(each, shape), (size,)) for each in (a, b)], 0)

    def call(x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        return left * right

    return reshaped(opaque(both, "product", (size,), {}, call), shape)


def matrix_product(a: Value, b: Value) -> Value:
    """A product of matrices that both depend on the input, batches of them in front."""
    require_domain(a, "matmul", MATRICES)
    left, right = a.shape, b.shape
    if len(left) < 2 or left[:-2] != right[:-2] or left[-1:] != right[-2:-1]:
        raise UnsupportedOperation(f"`{a.path}` multiplies samples of shapes {left} and {right}.", path=a.path)
    cut = math.prod(left)
    both = concat([reshaped(each, (math.prod(each.shape),)) for each in (a, b)], 0)

    def call(x: Tensor) -> Tensor:
        return x[:, :cut].reshape(-1, *left) @ x[:, cut:].reshape(-1, *right)

    shape = (*left[:-1], right[-1])
    return opaque(both, "matmul", shape, {}, call, left=list(left), right=list(right))


@lowers(torch.bmm, "bmm")
def bmm(input: Value, mat2: Value) -> Value:
    """`matrix_product` of one matrix per sample."""
    path = _value(input, mat2, "bmm", MULTIPLIES).path
    if not (isinstance(input, Value) and isinstance(mat2, Value)):
        raise UnsupportedOperation(f"`bmm` at `{path}` with a constant batch; write it with matmul.", path=path)
    return matrix_product(input, mat2)


@lowers(F.scaled_dot_product_attention)
def attention(
    query: Value,
    key: Value,
    value: Value,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Value:
    """``softmax(q k' / sqrt(d)) v``."""
    require_domain(query, "scaled_dot_product_attention", ATTENDS)
    if attn_mask is not None or dropout_p or is_causal or enable_gqa:
        raise UnsupportedOperation(f"`{query.path}` masks or drops parts of its attention.", path=query.path)
    factor = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = matrix_product(query, rearrange(key, lambda positions: positions.mT))
    weights = lower(torch.softmax, lower(torch.mul, scores, factor), -1)
    return matrix_product(weights, value)


@lowers(F.glu)
def glu(input: Value, dim: int = -1) -> Value:
    """One half times the sigmoid of the other."""
    require_domain(input, "glu", MULTIPLIES)
    axis = dimension(input, dim)
    if input.shape[axis] % 2:
        raise InvalidInput(f"`{input.path}` halves {input.shape[axis]} channels.")
    a, b = rearrange(input, lambda positions: positions.chunk(2, axis + 1))
    return product(a, lower(torch.sigmoid, b))


@lowers(nn.GLU)
def glu_module(module: nn.GLU, input: Value) -> Value:
    """`glu` along the module's dimension."""
    return glu(input, module.dim)


@lowers(F.layer_norm, torch.layer_norm)
def layer_norm(
    input: Value,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Value:
    """``(x - mean) / sqrt(var + eps)`` over the last dimensions, then a scale and a shift."""
    require_domain(input, "layer_norm", NORMALISES)
    last = tuple(normalized_shape)
    if not last or input.shape[len(input.shape) - len(last) :] != last:
        raise InvalidInput(f"`{input.path}` normalises over {last}, its input has shape {input.shape}.")

    def call(x: Tensor) -> Tensor:
        return F.layer_norm(x, last, None, None, eps)

    y = opaque(input, "layer_norm", input.shape, {}, call, dims=len(last), eps=float(eps))
    if weight is not None:
        y = affine(y, Diagonal(weight, y.shape))
    return y if bias is None else affine(y, Reshape(y.shape, y.shape), bias)


@lowers(nn.LayerNorm)
def layer_norm_module(module: nn.LayerNorm, input: Value) -> Value:
    """`layer_norm` with the module's parameters."""
    return layer_norm(input, module.normalized_shape, module.weight, module.bias, module.eps)
