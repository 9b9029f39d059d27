"""ONNX operators that move numbers, reduce over axes, or leave them alone. Floor 4."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lipcert.frontends.onnx_operation import Operation, understands
from lipcert.linear import Shape
from lipcert.lowering import BATCH, Value, lower
from lipcert.rules.structure import rearrange, reshaped

_END = 2**31 - 1
"""An end of a slice from which exporters mean all of an axis of unknown size."""


@understands("Identity", 1, 13, 14, 16, 19, 21, 23, 24, 25)
def _identity(op: Operation) -> Value:
    return op.value()


@understands("Dropout", 7, 10, 12, 13, 22)
def _dropout(op: Operation) -> Value:
    """The identity, unless it is told to train."""
    op.ignore("ratio", "seed", 1)
    training = op.constant(2)
    if training is not None and bool(training):
        raise op.refused("drops values at random (training_mode); export in evaluation mode")
    return op.value()


@understands("Cast", 6, 9, 13, 19, 21, 23, 24, 25)
def _cast(op: Operation) -> Value:
    raise op.refused("casts what depends on the input to another number format; leave the cast out of the model")


@understands("Flatten", 1, 9, 11, 13, 21, 23, 24, 25)
def _flatten(op: Operation) -> Value:
    x, axis = op.value(), op.option("axis")
    if (axis + len(x.shape) + 1 if axis < 0 else axis) != 1:
        raise op.refused(f"flattens at axis {axis}, so samples mix or are cut")
    return reshaped(x, (math.prod(x.shape),))


@understands("Reshape", 5, 13, 14, 19, 21, 23, 24, 25)
def _reshape(op: Operation) -> Value:
    x, wanted = op.value(), op.integers(1) or []
    if 0 in wanted and op.option("allowzero"):
        raise op.refused("reshapes to an empty shape (allowzero)")
    op.ignore("allowzero")
    have = (BATCH, *x.shape)
    if any(size == 0 and axis >= len(have) for axis, size in enumerate(wanted)):
        raise op.refused(f"keeps an axis that {x.shape} does not have, in {wanted}")
    sizes = [have[axis] if size == 0 else size for axis, size in enumerate(wanted)]
    if sizes[:1] == [op.batch]:
        sizes[0] = BATCH  # the samples stay apart for every batch size if they do for this one
    return lower("reshape", x, sizes)


@understands("Transpose", 1, 13, 21, 23, 24, 25)
def _transpose(op: Operation) -> Value:
    x, given = op.value(), op.integers("perm")
    perm = list(range(len(x.shape) + 1))[::-1] if given is None else given
    if perm[:1] != [0]:
        raise op.refused(f"moves the batch from its place, by {perm}")
    return lower("permute", x, perm)


def _axes(op: Operation, since: int) -> list[int] | None:
    """Axes from the attribute, or since a version from the second input."""
    return op.integers("axes") if op.version < since else op.integers(1)


@understands("Squeeze", 1, 11, 13, 21, 23, 24, 25)
def _squeeze(op: Operation) -> Value:
    x, axes = op.value(), _axes(op, 13)
    if axes is None:
        raise op.refused("squeezes without axes, which also removes a batch of one")
    dropped = {op.sample_axis(axis) - 1 for axis in axes}
    if any(x.shape[axis] != 1 for axis in dropped):
        raise op.refused(f"squeezes axes {axes} of samples {x.shape}, which are not all of size 1")
    return reshaped(x, tuple(size for axis, size in enumerate(x.shape) if axis not in dropped))


@understands("Unsqueeze", 1, 11, 13, 21, 23, 24, 25)
def _unsqueeze(op: Operation) -> Value:
    x, axes = op.value(), _axes(op, 13) or []
    rank = len(x.shape) + 1 + len(axes)
    new = {op.sample_axis(axis, rank) for axis in axes}
    sizes = iter(x.shape)
    return reshaped(x, tuple(1 if axis in new else next(sizes) for axis in range(1, rank)))


@understands("Concat", 4, 11, 13)
def _concat(op: Operation) -> Value:
    parts: list[Any] = []
    while (entry := op.input(len(parts))) is not None:
        parts.append(entry)
    return lower(torch.cat, parts, op.option("axis"))


@understands("Split", 2, 11, 13, 18)
def _split(op: Operation) -> tuple[Value, ...]:
    x, axis = op.value(), op.sample_axis(op.option("axis"))
    sizes = op.integers("split") if op.version < 13 else op.integers(1)
    if sizes is None:
        count = op.option("num_outputs") if op.version >= 18 else len(op.outputs)
        each = -(-x.shape[axis - 1] // count)
        sizes = [each] * (count - 1) + [x.shape[axis - 1] - each * (count - 1)]
    if sum(sizes) != x.shape[axis - 1] or min(sizes) < 1:
        raise op.refused(f"splits axis {axis} of samples {x.shape} into {sizes}")
    return lower("split", x, sizes, axis)


@understands("Slice", 1, 10, 11, 13)
def _slice(op: Operation) -> Value:
    x = op.value()
    sources = ("starts", "ends", "axes") if op.version == 1 else (1, 2, 3)
    starts, ends, axes = (op.integers(source) for source in sources)
    steps = None if op.version == 1 else op.integers(4)
    starts, ends = starts or [], ends or []
    axes = list(range(len(starts))) if axes is None else axes
    for start, end, axis, step in zip(starts, ends, axes, steps or [1] * len(starts), strict=True):
        place = op.axis(axis)
        if place == 0:
            if start != 0 or step != 1 or not (end >= _END or end in (op.batch, BATCH)):
                raise op.refused(f"slices the batch, from {start} to {end} by {step}")
            continue
        kept = list(range(*slice(start, end, step).indices(x.shape[place - 1])))
        x = _picked(x, place, kept)
    return x


def _picked(x: Value, axis: int, kept: list[int]) -> Value:
    index = torch.tensor(kept, dtype=torch.int64)
    return rearrange(x, lambda positions: positions.index_select(axis, index))


@understands("Gather", 1, 11, 13)
def _gather(op: Operation) -> Value:
    x, given = op.value(), op.constant(1)
    axis = op.sample_axis(op.option("axis"))
    size = x.shape[axis - 1]
    index = torch.from_numpy(np.array(given, dtype=np.int64)) if given is not None else torch.zeros(0)
    if bool(((index < -size) | (index >= size)).any()):
        raise op.refused(f"gathers {index.tolist()} of {size} positions")
    return rearrange(x, lambda positions: positions[(*(slice(None),) * axis, index)])


@understands("Pad", 11, 13, 18, 19, 21, 23, 24, 25)
def _pad(op: Operation) -> Value:
    x, mode, pads, fill = op.value(), op.option("mode"), op.integers(1) or [], op.weight(2)
    given = op.integers(3) if op.version >= 18 else None
    axes = [op.axis(axis) for axis in (range(len(x.shape) + 1) if given is None else given)]
    before, after = dict(zip(axes, pads, strict=False)), dict(zip(axes, pads[len(axes) :], strict=True))
    if before.get(0) or after.get(0):
        raise op.refused("pads the batch")
    amounts = [(before.get(axis, 0), after.get(axis, 0)) for axis in range(1, len(x.shape) + 1)]
    if mode == "constant":
        value = 0.0 if fill is None else float(fill)
        return lower(F.pad, x, [amount for pair in reversed(amounts) for amount in pair], "constant", value)
    for axis, (low, high) in enumerate(amounts, start=1):
        if low or high:
            x = _picked(x, axis, _beyond(op, mode, x.shape[axis - 1], low, high))
    return x


def _beyond(op: Operation, mode: str, size: int, low: int, high: int) -> list[int]:
    """The positions that a padded axis reads."""
    if min(low, high) < 0 or max(low, high) > (size - 1 if mode == "reflect" else size):
        raise op.refused(f"pads {size} positions by {low} and {high} in the mode {mode}")
    places = range(-low, size + high)
    match mode:
        case "reflect":
            return [size - 1 - abs(size - 1 - abs(place)) for place in places]
        case "edge":
            return [min(max(place, 0), size - 1) for place in places]
        case "wrap":
            return [place % size for place in places]
    raise op.refused(f"pads in the mode {mode!r}")


@understands("Softmax", 1, 11, 13)
def _softmax(op: Operation) -> Value:
    """Before version 13 over all axes from the given one on: the same for the last axis only."""
    x = op.value()
    axis = op.sample_axis(op.option("axis"))
    if op.version < 13 and axis != len(x.shape):
        raise op.refused(f"is a softmax over the axes from {axis} on of samples {x.shape} (before version 13)")
    return lower(torch.softmax, x, axis)


def _reduction(kind: str, target: Any, since: int, *versions: int) -> None:
    @understands(kind, *versions)
    def handler(op: Operation) -> Value:
        axes, keep = _axes(op, since), bool(op.option("keepdims"))
        if not axes and op.option("noop_with_empty_axes"):
            return op.value()
        op.ignore("noop_with_empty_axes")
        if not axes:
            raise op.refused("reduces over all axes, the batch included")
        return lower(target, op.value(), [op.sample_axis(axis) for axis in axes], keep)


def _norm(x: Value, axes: list[int], keep: bool) -> Value:
    return lower(torch.linalg.vector_norm, x, 2, axes, keep)


_reduction("ReduceSum", torch.sum, 13, 1, 11, 13)
_reduction("ReduceMean", torch.mean, 18, 1, 11, 13, 18)
_reduction("ReduceMax", torch.amax, 18, 1, 11, 12, 13, 18, 20)
_reduction("ReduceMin", torch.amin, 18, 1, 11, 12, 13, 18, 20)
_reduction("ReduceLogSumExp", torch.logsumexp, 18, 1, 11, 13, 18)


@understands("ReduceL2", 1, 11, 13, 18)
def _reduce_l2(op: Operation) -> Value:
    axes, keep = _axes(op, 18), bool(op.option("keepdims"))
    op.ignore("noop_with_empty_axes")
    if not axes:
        raise op.refused("reduces over all axes, the batch included")
    return _norm(op.value(), [op.sample_axis(axis) for axis in axes], keep)


@understands("DepthToSpace", 1, 11, 13)
def _depth_to_space(op: Operation) -> Value:
    x, block, mode = op.value(), op.option("blocksize"), op.option("mode") or "DCR"
    c, h, w = _image(op, x)

    def move(t: Tensor) -> Tensor:
        if mode == "CRD":
            t = t.reshape(-1, c // block**2, block, block, h, w).permute(0, 1, 4, 2, 5, 3)
        else:
            t = t.reshape(-1, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
        return t.reshape(-1, c // block**2, h * block, w * block)

    return rearrange(x, move)


@understands("SpaceToDepth", 1, 13)
def _space_to_depth(op: Operation) -> Value:
    x, block = op.value(), op.option("blocksize")
    c, h, w = _image(op, x)

    def move(t: Tensor) -> Tensor:
        t = t.reshape(-1, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
        return t.reshape(-1, c * block**2, h // block, w // block)

    return rearrange(x, move)


def _image(op: Operation, x: Value) -> Shape:
    if len(x.shape) != 3:
        raise op.refused(f"needs samples (channels, height, width), got {x.shape}")
    return x.shape


@understands("Resize", 11, 13, 18, 19)
def _resize(op: Operation) -> Value:
    """Whole factors only: there, positions are not rounded, and what is read does not depend on the evaluator."""
    x, mode = op.value(), op.option("mode")
    place, nearest = op.option("coordinate_transformation_mode"), op.option("nearest_mode")
    plain = {"antialias": 0, "exclude_outside": 0, "keep_aspect_ratio_policy": "stretch", "axes": None}
    odd = [name for name, usual in plain.items() if (op.option(name) or usual) != usual]
    op.ignore("cubic_coeff_a", "extrapolation_value", 1)
    if odd:
        raise op.refused(f"has the option {odd[0]}={op.option(odd[0])}")
    factors = _factors(op, x, op.weight(2), op.integers(3))
    repeated = [("asymmetric", "floor"), ("half_pixel", "round_prefer_floor"), ("half_pixel", "round_prefer_ceil")]
    if mode == "nearest" and (place, nearest) in repeated:
        return _repeated(x, factors)
    spatial = len(x.shape) - 1
    if mode == "linear" and place == "half_pixel" and factors[0] == 1 and spatial in (1, 2, 3):
        scales = [float(factor) for factor in factors[1:]]
        return lower(F.interpolate, x, None, scales, ("linear", "bilinear", "trilinear")[spatial - 1])
    raise op.refused(f"interpolates by {mode}, {place}, {nearest}")


@understands("Upsample", 9)
def _upsample(op: Operation) -> Value:
    x = op.value()
    if op.option("mode") != "nearest":
        raise op.refused(f"interpolates by {op.option('mode')}")
    return _repeated(x, _factors(op, x, op.weight(1), None))


def _factors(op: Operation, x: Value, scales: Tensor | None, sizes: list[int] | None) -> list[int]:
    """Whole factors of the sample's axes."""
    rank = len(x.shape) + 1
    if scales is not None and scales.numel() == rank:
        found = [float(scale) for scale in scales]
    elif sizes is not None and len(sizes) == rank:
        have = (op.batch or BATCH, *x.shape)
        found = [size / old for size, old in zip(sizes, have, strict=True)]
        found[0] = 1.0 if sizes[0] in (op.batch, BATCH) else 0.0
    else:
        raise op.refused("needs scales or sizes of every axis")
    if found[0] != 1 or any(factor < 1 or factor % 1 for factor in found):
        raise op.refused(f"scales by {found}; whole factors, and 1 for the batch, are covered")
    return [int(factor) for factor in found[1:]]


def _repeated(x: Value, factors: list[int]) -> Value:
    for axis, factor in enumerate(factors, start=1):
        if factor != 1:
            x = lower("repeat_interleave", x, factor, axis)
    return x
