"""Operations that move numbers and compute nothing: views, slices, joins. Floor 3.

What an operation moves is read off by letting torch move positions instead of numbers, for several samples at once,
so that an operation along the batch dimension cannot pass for one inside a sample.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lipcert.errors import InvalidInput, UnsupportedOperation
from lipcert.linear import Reshape, Selection, Shape
from lipcert.lowering import BATCH, Value, affine, concat, dimension, lower, lowers

_SAMPLES = 5


def rearrange(x: Value, move: Callable[[Tensor], Any]) -> Any:
    """Record an operation that only moves, repeats, drops or zeroes numbers.

    Args:
        x: What it acts on.
        move: The operation, on a batch; returns a tensor or a tuple of tensors.

    Raises:
        UnsupportedOperation: If it mixes samples.
    """
    size = math.prod(x.shape)
    positions = 1.0 + torch.arange(_SAMPLES * size, dtype=torch.float64).reshape(_SAMPLES, *x.shape)
    moved = move(positions)
    if isinstance(moved, tuple | list):
        return tuple(_select(x, part) for part in moved)
    return _select(x, moved)


def _select(x: Value, moved: Tensor) -> Value:
    index = moved.long() - 1  # zeros that the operation put in become -1
    first = index[:1] if index.ndim else index
    steps = math.prod(x.shape) * torch.arange(_SAMPLES).reshape(-1, *[1] * (index.ndim - 1))
    if index.shape[:1] != (_SAMPLES,) or not torch.equal(index, torch.where(first < 0, first, first + steps)):
        raise UnsupportedOperation(
            f"`{x.path}` moves numbers from one sample of the batch to another, or drops samples; a claim is about "
            f"one sample at a time. Leave the batch dimension alone.",
            path=x.path,
        )
    index = index[0]
    if index.numel() == math.prod(x.shape) and torch.equal(index.flatten(), torch.arange(index.numel())):
        return reshaped(x, tuple(index.shape))
    return affine(x, Selection(index, x.shape))


def reshaped(x: Value, shape: Shape) -> Value:
    """The same numbers under another shape; the same value if the shape is the same."""
    return x if shape == x.shape else affine(x, Reshape(x.shape, shape))


def expanded(x: Value, shape: Shape) -> Value:
    """Repeat along dimensions of size 1 until the shape is reached."""
    return x if shape == x.shape else rearrange(x, lambda positions: positions.expand(_SAMPLES, *shape))


def common_shape(a: Value, b: Value, does: str) -> Shape:
    """What two values broadcast to, if that leaves the batch alone.

    Raises:
        UnsupportedOperation: If they have different numbers of dimensions, or do not broadcast.
    """
    if len(a.shape) != len(b.shape):
        raise UnsupportedOperation(
            f"`{a.path}` {does} batches of samples {a.shape} and {b.shape}: broadcasting would align a sample's "
            f"dimension with the batch. Give both the same number of dimensions.",
            path=a.path,
        )
    return broadcast(a.shape, b.shape)


def broadcast(*shapes: Sequence[int]) -> Shape:
    """The shape that tensors of these shapes broadcast to (torch's own function imports seconds of code)."""
    return np.broadcast_shapes(*(tuple(shape) for shape in shapes))


def _sizes(sizes: tuple[Any, ...], x: Value) -> list[int]:
    flat = list(sizes[0]) if len(sizes) == 1 and not isinstance(sizes[0], int) else list(sizes)
    if not all(type(size) is int for size in flat):
        raise UnsupportedOperation(f"`{x.path}` asks for the shape {flat}, which are not all integers.", path=x.path)
    return flat


@lowers("view", "reshape", torch.reshape)
def reshape(x: Value, *sizes: Any, shape: Any = None) -> Value:
    """Another shape for each sample; the batch dimension must stay first, as -1 or as ``x.shape[0]``."""
    wanted = _sizes(sizes if shape is None else (shape,), x)
    size = math.prod(x.shape)
    known = math.prod(entry for entry in wanted[1:] if entry != -1)
    kept = wanted[:1] in ([-1], [BATCH]) and wanted.count(-1) <= 1 and min(wanted[1:], default=1) >= -1
    if kept and -1 in wanted[1:] and known > 0 and size % known == 0:
        wanted[wanted.index(-1)] = size // known
    if not kept or math.prod(wanted[1:]) != size:
        raise UnsupportedOperation(
            f"`{x.path}` reshapes a batch of {x.shape} to {[_named(entry) for entry in wanted]}, which does not keep "
            f"the batch dimension for every batch size; write `x.reshape(len(x), ...)`.",
            path=x.path,
        )
    return reshaped(x, tuple(wanted[1:]))


def _named(size: int) -> int | str:
    return "batch" if size == BATCH else size


@lowers("view_as", "reshape_as")
def view_as(x: Value, other: Value) -> Value:
    """The shape of another tensor."""
    return reshape(x, BATCH, *other.shape)


@lowers("expand", "broadcast_to", torch.broadcast_to)
def expand(x: Value, *sizes: Any) -> Value:
    """Repeat dimensions of size 1."""
    wanted = _sizes(sizes, x)
    if len(wanted) != len(x.shape) + 1 or wanted[0] not in (-1, BATCH):
        raise UnsupportedOperation(f"`{x.path}` expands to {wanted}, over new or batch dimensions.", path=x.path)
    return rearrange(x, lambda positions: positions.expand(-1, *wanted[1:]))


@lowers("expand_as")
def expand_as(x: Value, other: Value) -> Value:
    """Repeat dimensions of size 1 up to the shape of another tensor."""
    return expand(x, BATCH, *other.shape)


@lowers("squeeze", torch.squeeze)
def squeeze(x: Value, *dim: Any, **options: Any) -> Value:
    """Drop dimensions of size 1, named explicitly."""
    if not dim and not options:
        raise UnsupportedOperation(
            f"`{x.path}` squeezes without a dimension, which also removes a batch of one; name the dimension.",
            path=x.path,
        )
    return rearrange(x, lambda positions: positions.squeeze(*dim, **options))


def _moving(name: str) -> None:
    """Register a method of tensors that only moves numbers, and the function of the same name."""

    def rule(x: Value, *args: Any, **options: Any) -> Any:
        return rearrange(x, lambda positions: getattr(positions, name)(*args, **options))

    functions = [getattr(torch, name)] if callable(getattr(torch, name, None)) else []
    lowers(name, *functions)(rule)


for _name in (
    "flatten unflatten permute transpose swapaxes swapdims movedim moveaxis unsqueeze flip roll narrow select chunk "
    "split tensor_split unbind index_select repeat repeat_interleave tril triu diagonal"
).split():
    _moving(_name)


@lowers(".mT")
def matrix_transposed(x: Value) -> Value:
    """Swap the last two dimensions."""
    return rearrange(x, lambda positions: positions.mT)


@lowers(nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle)
def moving_module(module: nn.Module, x: Value) -> Value:
    """Modules that only move numbers do so with positions, too."""
    return rearrange(x, module)


def _shuffling(function: Callable[..., Tensor]) -> None:
    def rule(input: Value, *args: int, **options: int) -> Value:
        return rearrange(input, lambda positions: function(positions, *args, **options))

    lowers(function)(rule)


for _function in (nn.functional.pixel_shuffle, nn.functional.pixel_unshuffle, nn.functional.channel_shuffle):
    _shuffling(_function)


@lowers(operator.getitem)
def getitem(x: Value, index: Any) -> Value:
    """Index a sample; the batch dimension must be kept whole by ``:`` or ``...``."""
    items = list(index) if isinstance(index, tuple) else [index]
    used = sum(item.ndim if _is_mask(item) else item is not None and item is not ... for item in items)
    first = items[0]
    if _is_whole(first):
        items[0] = slice(None)
    elif not (first is ... and used <= len(x.shape)):
        raise UnsupportedOperation(
            f"`{x.path}` indexes the batch dimension with {first!r}; begin the index with `:`.", path=x.path
        )
    return rearrange(x, lambda positions: positions[tuple(items)])


def _is_whole(item: Any) -> bool:
    whole = isinstance(item, slice) and item.start in (None, 0) and item.stop in (None, BATCH)
    return whole and item.step in (None, 1)


def _is_mask(item: Any) -> bool:
    return isinstance(item, Tensor) and item.dtype == torch.bool


@lowers(torch.cat, torch.concat, torch.concatenate)
def cat(tensors: Sequence[Value], dim: int = 0) -> Value:
    """Values side by side."""
    values = _all_values(tensors)
    axis = dimension(values[0], dim)
    rests = {(len(value.shape), *value.shape[:axis], *value.shape[axis + 1 :]) for value in values}
    if len(rests) > 1:
        raise InvalidInput(f"`{values[0].path}` joins shapes {[value.shape for value in values]} along {dim}.")
    return concat(values, axis)


@lowers(torch.stack)
def stack(tensors: Sequence[Value], dim: int = 0) -> Value:
    """Values side by side along a new dimension."""
    values = _all_values(tensors)
    batched = len(values[0].shape) + 2
    if not -batched <= dim < batched or dim % batched == 0:
        raise UnsupportedOperation(f"`{values[0].path}` stacks along the batch dimension ({dim}).", path=values[0].path)
    return concat([lower("unsqueeze", value, dim % batched) for value in values], dim % batched - 1)


def _all_values(tensors: Sequence[Any]) -> list[Value]:
    path = next(tensor.path for tensor in tensors if isinstance(tensor, Value))
    if not all(isinstance(tensor, Value) for tensor in tensors):
        raise UnsupportedOperation(
            f"`{path}` joins the input with constants, which have no batch dimension of their own; "
            f"pad with torch.nn.functional.pad instead.",
            path=path,
        )
    return list(tensors)


class OnlyValues(NamedTuple):
    """What ``x.max(dim)`` returns, without the indices: those are not a continuous function."""

    values: Value


@lowers(nn.Identity)
def identity_module(module: nn.Identity, input: Value) -> Value:
    """Nothing."""
    return input


@lowers("contiguous", "clone", torch.clone, "detach", torch.detach, "requires_grad_", "cpu", "double", ".data")
def same(x: Value, *args: Any, memory_format: Any = None) -> Value:
    """The same numbers, in memory or bookkeeping of another kind."""
    return x


@lowers("to", "type_as")
def to(x: Value, *args: Value | Any, **options: Any) -> Value:
    """Another device, or float64, which holds every weight; other formats round."""
    formats = [arg for arg in (*args, *options.values()) if isinstance(arg, torch.dtype)]
    if any(dtype != torch.float64 for dtype in formats):
        raise _cast(x)
    return x


def _cast(x: Value) -> UnsupportedOperation:
    return UnsupportedOperation(
        f"`{x.path}` casts to another number format, which rounds; leave the cast out of forward, and convert "
        f"the model or its inputs instead.",
        path=x.path,
    )


def _dropout(input: Value, training: bool, p: float) -> Value:
    if training and p > 0:
        raise UnsupportedOperation(
            f"`{input.path}` drops values at random (training=True); pass `training=self.training`, "
            f"and certify in evaluation mode.",
            path=input.path,
        )
    return input


@lowers(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
def dropout_module(module: nn.modules.dropout._DropoutNd, input: Value) -> Value:
    """The identity in evaluation mode."""
    return _dropout(input, module.training, module.p)


_F = nn.functional


@lowers(_F.dropout, _F.dropout1d, _F.dropout2d, _F.dropout3d)
def dropout(input: Value, p: float = 0.5, training: bool = True, inplace: bool = False) -> Value:
    """The identity outside training."""
    return _dropout(input, training, p)


@lowers(_F.alpha_dropout, _F.feature_alpha_dropout)
def alpha_dropout(input: Value, p: float = 0.5, training: bool = False, inplace: bool = False) -> Value:
    """The identity outside training."""
    return _dropout(input, training, p)


@lowers(torch.dropout, torch.feature_dropout, torch.alpha_dropout, torch.feature_alpha_dropout)
def torch_dropout(input: Value, p: float, train: bool) -> Value:
    """The identity outside training."""
    return _dropout(input, train, p)
