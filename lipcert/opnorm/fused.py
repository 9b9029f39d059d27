"""Multiplications around one convolution or matrix, moved into its weights. Floor 2.

A per-channel multiplication commutes with every padding mode, so it scales the kernel. Each product of two weights
is rounded; a kernel of error bounds travels along and its norm is added at the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from lipcert.kernel.rounding import UNIT, Array, add_up, as_real, largest_magnitude, mul_up, require_finite, sqrt_up
from lipcert.linear import Adjoint, Conv, Dense, Diagonal, LinearMap, Reshape, Shape
from lipcert.norms import L1, L2, LINF, Norms
from lipcert.opnorm.maps import Effort, NormBound, opnorm, rigorous, to_array

Core = Conv | Adjoint | Dense


@dataclass(frozen=True, eq=False)
class Weights:
    """Rounded weights, and an upper bound of each one's error."""

    value: Array
    error: Array

    def times(self, factor: Array) -> Weights:
        """Multiply by exact numbers."""
        value = self.value * factor
        rounding = add_up(mul_up(UNIT * (1.0 + 4.0 * UNIT), np.abs(value)), 5e-324)
        rounding = np.where((self.value == 0.0) | (np.abs(factor) == 1.0) | (factor == 0.0), 0.0, rounding)
        return Weights(value, add_up(mul_up(np.abs(factor), self.error), rounding))


def fused_norm(maps: Sequence[LinearMap], norms: Norms, effort: Effort) -> NormBound | None:
    """The norm of multiplications around at most one convolution or matrix; ``None`` if that is not what ``maps`` are.

    Raises:
        NotFinite: If a weight is NaN or infinite.
    """
    cores = [one for one in maps if isinstance(one, Core)]
    if len(cores) > 1 or not all(isinstance(one, Core | Diagonal | Reshape) for one in maps):
        return None
    with np.errstate(all="ignore"):
        if not cores:
            return _diagonals([one for one in maps if isinstance(one, Diagonal)])
        place = next(i for i, one in enumerate(maps) if isinstance(one, Core))
        weights = _exact(_weight_of(cores[0]))
        for before, side in ((True, maps[:place]), (False, maps[place + 1 :])):
            for diagonal in side:
                if isinstance(diagonal, Diagonal):
                    factor = _channel_factor(diagonal, cores[0], before)
                    if factor is None:
                        return None
                    weights = weights.times(factor)
    if not (np.all(np.isfinite(weights.value)) and np.all(np.isfinite(weights.error))):
        return None
    return _bound(cores[0], weights, norms, effort)


def _bound(core: Core, weights: Weights, norms: Norms, effort: Effort) -> NormBound:
    main = opnorm(_with_weight(core, weights.value), norms, effort=effort)
    if not np.any(weights.error):
        return main
    slack = _with_weight(core, weights.error)
    if norms == L2:
        error = sqrt_up(mul_up(opnorm(slack, L1, effort=effort).value, opnorm(slack, LINF, effort=effort).value))
    else:
        error = opnorm(slack, norms, effort=effort).value
    return rigorous(float(add_up(main.value, error)), f"scaled weights, {main.method}")


def _diagonals(diagonals: list[Diagonal]) -> NormBound:
    """Elementwise products, position by position: reshapes keep the order of the numbers."""
    if 0 in diagonals[0].in_shape:
        return rigorous(0.0, "empty")
    weights = _exact(np.ones(math.prod(diagonals[0].in_shape)))
    for diagonal in diagonals:
        weights = weights.times(np.broadcast_to(_numbers(diagonal), diagonal.in_shape).ravel())
    largest = float(np.max(add_up(np.abs(weights.value), weights.error)))
    return rigorous(largest if largest == largest else math.inf, "largest product of entries")


def _channel_factor(diagonal: Diagonal, core: Core, before: bool) -> Array | None:
    """What multiplies the core's weight, shaped to broadcast with it; ``None`` if it is not one number per channel."""
    scale = _numbers(diagonal)
    if scale.size == 1:
        return scale.reshape(())
    shape: Shape = core.in_shape if before else core.out_shape
    if tuple(diagonal.in_shape) != tuple(shape):
        return None  # a reshape in between mixes channels with positions
    dim = len(shape) - 1 if isinstance(core, Dense) else 0
    full = scale.reshape((1,) * (len(shape) - scale.ndim) + scale.shape)
    if any(size != 1 for axis, size in enumerate(full.shape) if axis != dim):
        return None
    channels = np.broadcast_to(full.ravel(), (shape[dim],))
    weight = _weight_of(core)
    inward = before != isinstance(core, Adjoint)  # does it multiply the weight's second dimension?
    if not inward:
        return channels.reshape(-1, *(1,) * (weight.ndim - 1))
    if isinstance(core, Dense):
        return channels.reshape(1, -1)
    groups = (core.conv if isinstance(core, Adjoint) else core).groups
    per_output = np.repeat(channels.reshape(groups, -1), weight.shape[0] // groups, axis=0)
    return per_output.reshape(*per_output.shape, *(1,) * (weight.ndim - 2))


def _numbers(diagonal: Diagonal) -> Array:
    scale = as_real(to_array(diagonal.scale)).astype(np.float64, copy=False)
    require_finite(largest_magnitude(scale))
    return scale


def _exact(values: Array) -> Weights:
    values = as_real(values).astype(np.float64, copy=False)
    require_finite(largest_magnitude(values))
    return Weights(values, np.zeros_like(values))


def _weight_of(core: Core) -> Array:
    return to_array(core.conv.weight if isinstance(core, Adjoint) else core.weight)


def _with_weight(core: Core, weight: Array) -> Core:
    if isinstance(core, Adjoint):
        return Adjoint(replace(core.conv, weight=torch.from_numpy(weight)))
    return replace(core, weight=torch.from_numpy(weight))
