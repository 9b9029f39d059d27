"""Functions that are neither linear nor elementwise, with a known Lipschitz constant. Floor 3.

Dimensions in the parameters exclude the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lipcert.errors import InvalidInput, UnsupportedOperation
from lipcert.lowering import Value, dimension, lowers, opaque, require_finite
from lipcert.nn import FullSort, GroupSort, Householder, MaxMin, reflect
from lipcert.norms import L1, L2, LINF
from lipcert.rules.arithmetic import neg
from lipcert.rules.pooling import reduced_dimensions

ROOT_TWO = 1.4142135623730952
"""The square root of two, rounded up."""


@lowers(F.softmax, torch.softmax, "softmax")
def softmax(input: Value, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> Value:
    """The Jacobian ``diag(p) - p p'`` has norm at most 1/2 in l1, l2 and linf: its column sums are ``2 p (1 - p)``."""
    if dim is None or dtype not in (None, torch.float64):
        raise UnsupportedOperation(f"`{input.path}` is a softmax without dim, or in {dtype}.", path=input.path)
    axis = dimension(input, dim)

    def call(x: Tensor) -> Tensor:
        return torch.softmax(x, axis + 1)

    return opaque(input, "softmax", input.shape, {L2: 0.5, L1: 0.5, LINF: 0.5}, call, dim=axis)


@lowers(nn.Softmax)
def softmax_module(module: nn.Softmax, input: Value) -> Value:
    """`softmax` along the module's dimension."""
    return softmax(input, module.dim)


@lowers(nn.Softmin)
def softmin_module(module: nn.Softmin, input: Value) -> Value:
    """`softmax` of the negative."""
    return softmax(neg(input), module.dim)


@lowers(nn.Softmax2d)
def softmax2d_module(module: nn.Softmax2d, input: Value) -> Value:
    """`softmax` over channels."""
    if len(input.shape) != 3:
        raise InvalidInput(f"`{input.path}` needs samples (channels, height, width), got {input.shape}.")
    return softmax(input, 1)


def _over(
    input: Value, name: str, dim: Any, keepdim: bool, gains: Any, function: Callable[[Tensor, list[int], bool], Tensor]
) -> Value:
    dims = reduced_dimensions(input, dim)
    kept = tuple(1 if d in dims else size for d, size in enumerate(input.shape))
    shape = kept if keepdim else tuple(size for d, size in enumerate(input.shape) if d not in dims)

    def call(x: Tensor) -> Tensor:
        return function(x, [d + 1 for d in dims], keepdim)

    return opaque(input, name, shape, gains, call, dim=dims)


@lowers(torch.logsumexp, "logsumexp", torch.special.logsumexp)
def logsumexp(input: Value, dim: Any, keepdim: bool = False) -> Value:
    """The gradient is a probability vector."""
    return _over(input, "logsumexp", dim, keepdim, {L2: 1.0, L1: 1.0, LINF: 1.0}, torch.logsumexp)


@lowers(torch.linalg.vector_norm)
def vector_norm(x: Value, ord: float = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Value:
    """The 2-norm over dimensions is 1-Lipschitz in l2."""
    if ord not in (2, 2.0) or dtype not in (None, torch.float64):
        raise UnsupportedOperation(f"`{x.path}` takes the norm of order {ord!r}; only 2 is covered.", path=x.path)

    def call(x: Tensor, dims: list[int], keepdim: bool) -> Tensor:
        return torch.linalg.vector_norm(x, 2, dims, keepdim)

    return _over(x, "norm2", dim, keepdim, {L2: 1.0}, call)


@lowers(torch.norm, "norm", torch.functional.norm)
def norm(
    input: Value, p: Any = "fro", dim: Any = None, keepdim: bool = False, out: None = None, dtype: Any = None
) -> Value:
    """`vector_norm` as torch.norm spells it."""
    return vector_norm(input, 2 if p in ("fro", None) else p, dim, keepdim, dtype=dtype)


def _sorting(input: Value, module: nn.Module, dim: int, group: int | None, arrangement: str) -> Value:
    """Sorting is 1-Lipschitz in every p-norm, by the rearrangement inequality; no group is the whole dimension."""
    axis = dimension(input, dim)
    size = input.shape[axis]
    group = size if group is None else group
    if size % group:
        raise InvalidInput(f"`{input.path}` sorts {size} channels in groups of {group}; {size} is not a multiple.")
    if group == 1:
        return input
    gains = {L2: 1.0, L1: 1.0, LINF: 1.0}
    return opaque(input, "sort", input.shape, gains, module, dim=axis, group=group, arrangement=arrangement)


@lowers(MaxMin)
def maxmin(module: MaxMin, x: Value) -> Value:
    """Sort two halves against each other."""
    return _sorting(x, module, module.dim, 2, "interleaved")


@lowers(GroupSort)
def groupsort(module: GroupSort, x: Value) -> Value:
    """Sort groups."""
    return _sorting(x, module, module.dim, module.group_size, "consecutive")


@lowers(FullSort)
def fullsort(module: FullSort, x: Value) -> Value:
    """Sort everything."""
    return _sorting(x, module, module.dim, None, "consecutive")


@lowers(Householder)
def householder(module: Householder, x: Value) -> Value:
    """A continuous choice between the identity and a reflection of pairs: sqrt 2 in l1 and linf."""
    axis = dimension(x, module.dim)
    if x.shape[axis] != module.channels or module.theta.numel() * 2 != module.channels:
        raise InvalidInput(f"`{x.path}` reflects {module.channels} channels, its input has shape {x.shape}.")
    theta = module.theta.detach().double().reshape(-1)
    require_finite(x.path, theta)
    gains = {L2: 1.0, L1: ROOT_TWO, LINF: ROOT_TWO}
    return opaque(x, "householder", x.shape, gains, _on(module), dim=axis, theta=theta)


def _on(module: Householder) -> Callable[[Tensor], Tensor]:
    theta = module.theta.detach()

    def call(x: Tensor) -> Tensor:
        return reflect(x, theta.to(x), module.dim)

    return call
