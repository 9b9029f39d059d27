"""Batch normalisation in evaluation mode: a scale per channel, rounded outward. Floor 3."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lipcert.errors import InvalidInput, NotFinite, UnsupportedOperation
from lipcert.linear import Diagonal
from lipcert.lowering import Value, affine, lowers, require_finite
from lipcert.rules.arithmetic import contracted


@lowers(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
def batch_norm_module(module: nn.BatchNorm2d, input: Value) -> Value:
    """`batch_norm` with the module's statistics."""
    return batch_norm(
        input, module.running_mean, module.running_var, module.weight, module.bias, module.training, eps=module.eps
    )


@lowers(F.batch_norm)
def batch_norm(
    input: Value,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Value:
    """``weight * (x - mean) / sqrt(var + eps) + bias`` per channel."""
    if training or running_mean is None or running_var is None:
        raise UnsupportedOperation(
            f"`{input.path}` normalises by the statistics of the batch, so samples mix; use running statistics "
            f"(track_running_stats=True) and call model.eval().",
            path=input.path,
        )
    if not input.shape or input.shape[0] != running_var.numel():
        raise InvalidInput(f"`{input.path}` has {running_var.numel()} channels, its input has shape {input.shape}.")
    require_finite(input.path, running_mean, running_var, weight, bias)
    if bool((running_var < 0).any()) or bool((running_var + eps <= 0).any()):
        raise NotFinite(f"`{input.path}` has a variance below zero, or zero without eps; its scale is not a number.")
    gamma = torch.ones_like(running_var) if weight is None else weight
    scale = scale_outward(gamma, running_var, eps)
    require_finite(input.path, scale)
    shift = -running_mean * scale if bias is None else bias - running_mean * scale
    shape = (-1, *[1] * (len(input.shape) - 1))
    return contracted(affine(input, Diagonal(scale.reshape(shape), input.shape), shift.reshape(shape)))


def scale_outward(gamma: Tensor, variance: Tensor, eps: float) -> Tensor:
    """``s`` with ``|gamma| / sqrt(variance + eps) <= |s|``, at most ``EPSILON`` above it, relative.

    Each operation rounds by at most u = 2^-53 and is followed by a step of at most 2u in the safe direction: 3u for
    the sum, which the root halves, 3u for the root and 3u for the quotient make 7.5u < 2^-50.
    """
    zero = torch.zeros_like(variance)
    total = torch.nextafter(variance + eps, zero)
    root = torch.nextafter(total.sqrt(), zero)
    quotient = gamma / root
    outward = torch.nextafter(quotient, torch.copysign(torch.full_like(quotient, torch.inf), quotient))
    return torch.where(gamma == 0, gamma, outward)
