"""Layers as operators of their weight: the map itself, a proof of its norm, power iteration on it. Floor 3."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lipcert.errors import InvalidInput, UnsupportedOperation
from lipcert.linear import Adjoint, Conv, Dense, Shape, apply
from lipcert.opnorm import opnorm, opnorm_any_size

# Power iteration stops when a step raises the estimate by less than this, and at the latest after _MOST steps.
_GROWTH = 1e-5
_MOST = 100


@dataclass(frozen=True)
class Operator:
    """What a layer does with its weight.

    Attributes:
        in_shape: Shape of the vectors the estimate iterates on.
        act: The linear map of a weight.
        prove: A proven upper bound of the operator norm of a float64 weight, over everything the claim covers.
    """

    in_shape: Shape
    act: Callable[[Tensor], Dense | Conv]
    prove: Callable[[Tensor], float]


def operator_of(module: nn.Module, input_size: tuple[int, int] | None) -> Operator:
    """The operator of a supported layer; a subclass counts if it applies its weight as the supported class does."""
    for base, make in _OPERATORS.items():
        same = isinstance(module, base) and all(
            getattr(type(module), method) is getattr(base, method) for method in _APPLIES & vars(base).keys()
        )
        if same:
            return make(module, input_size)
    covered = ", ".join(base.__name__ for base in _OPERATORS)
    raise UnsupportedOperation(
        f"spectral_norm does not know the operator of `{type(module).__name__}`.\n"
        f"  It would have to guess what the weight does, so it refuses. Covered: {covered}."
    )


def _linear(module: nn.Linear, input_size: tuple[int, int] | None) -> Operator:
    if input_size is not None:
        raise InvalidInput(f"{module} has no spatial input size, got input_size={input_size}; leave it out.")
    shape = (module.in_features,)
    return Operator(shape, lambda w: Dense(w, shape), lambda w: opnorm(Dense(w, shape)).value)


def _conv2d(module: nn.Conv2d, input_size: tuple[int, int] | None) -> Operator:
    left, right, top, bottom = module._reversed_padding_repeated_twice
    pads = ((top, bottom), (left, right))
    reach = tuple(d * (k - 1) + 1 for d, k in zip(module.dilation, module.kernel_size, strict=True))
    channels, stride, dilation, groups = module.in_channels, module.stride, module.dilation, module.groups
    mode = module.padding_mode

    def conv(weight: Tensor, sizes: Shape, pads: tuple[tuple[int, int], ...], mode: str) -> Conv:
        sized = zip(sizes, pads, reach, stride, strict=True)
        out = tuple((size + sum(pad) - r) // s + 1 for size, pad, r, s in sized)
        return Conv(weight, (channels, *sizes), out, stride, pads, dilation, groups, mode)

    if input_size is None:
        # On a torus at least twice the kernel's reach the norm is close to its supremum over all sizes.
        torus = tuple(math.ceil(max(16, 2 * r) / s) * s for r, s in zip(reach, stride, strict=True))
        wrap = tuple((0, r - 1) for r in reach)
        return Operator(
            (channels, *torus),
            lambda w: conv(w, torus, wrap, "circular"),
            lambda w: opnorm_any_size(conv(w, torus, pads, mode)).value,
        )
    sizes = _sizes(module, input_size, pads, reach)
    return Operator(
        (channels, *sizes),
        lambda w: conv(w, sizes, pads, mode),
        lambda w: opnorm(conv(w, sizes, pads, mode)).value,
    )


def _sizes(module: nn.Conv2d, input_size: tuple[int, int], pads: tuple[tuple[int, int], ...], reach: Shape) -> Shape:
    """Check that the layer accepts an input of that size."""
    sizes = tuple(int(size) for size in input_size)
    spare = {"reflect": 1, "circular": 0}.get(module.padding_mode, -math.inf)
    fits = len(sizes) == 2 and all(
        size >= 1 and size + sum(pad) >= r and size >= max(pad) + spare
        for size, pad, r in zip(sizes, pads, reach, strict=False)
    )
    if not fits:
        raise InvalidInput(
            f"{module} cannot be applied at input_size={input_size}: it takes (H, W) with padding {pads} and a kernel "
            f"that reaches over {reach}. Give the size the layer sees, or None for every size."
        )
    return sizes


_OPERATORS: dict[type[nn.Module], Callable[..., Operator]] = {nn.Linear: _linear, nn.Conv2d: _conv2d}
_APPLIES = {"forward", "_conv_forward"}


def power_iteration(linear: Dense | Conv, v: Tensor) -> Tensor:
    """Power iteration ``v <- A' A v``, normalised, until the estimate ``|A v|``, which only rises, stands still."""
    before = 0.0
    for _ in range(_MOST):
        v = direction(v)
        image = apply(linear, v)
        sigma = float(image.norm())
        if sigma <= before * (1.0 + _GROWTH):
            return v
        before, v = sigma, _transpose(linear, image / sigma)
    return direction(v)


def _transpose(linear: Dense | Conv, y: Tensor) -> Tensor:
    """Apply ``A'`` to a batch, without autograd, which saved-tensor hooks and transforms would observe."""
    if isinstance(linear, Dense):
        return y @ linear.weight
    if linear.padding_mode == "zeros":
        return apply(Adjoint(linear), y)
    # A = (convolution without padding) (gather of padded positions): the transpose of a gather is a scatter-add.
    sizes = linear.in_shape[1:]
    pads = [amount for pair in reversed(linear.padding) for amount in pair]
    positions = torch.arange(math.prod(sizes), dtype=torch.float64, device=y.device).reshape(1, 1, *sizes)
    gather = F.pad(positions, pads, mode=linear.padding_mode).long()
    padded = (linear.in_shape[0], *gather.shape[2:])
    bare = replace(linear, in_shape=padded, padding=((0, 0),) * len(sizes), padding_mode="zeros")
    spread = apply(Adjoint(bare), y).flatten(2)
    folded = y.new_zeros(len(y), linear.in_shape[0], math.prod(sizes))
    return folded.index_add(2, gather.flatten(), spread).reshape(len(y), *linear.in_shape)


def direction(v: Tensor) -> Tensor:
    """``v / |v|``, and zero for zero; there is no epsilon, which would bias small vectors."""
    norm = v.norm()
    return v / torch.where(norm > 0, norm, torch.ones_like(norm))
