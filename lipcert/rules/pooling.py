"""Average and max pooling, means, sums and maxima over dimensions. Floor 3.

Averages are exact rational matrices, one per dimension. A maximum over windows is 1-Lipschitz in linf; in l1 an input
counts once per window that contains it, and in l2 by the square root of that, which is attained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lipcert.errors import InvalidInput, UnsupportedOperation
from lipcert.linear import Factor, Separable
from lipcert.lowering import Value, affine, concat, dimension, lowers, opaque
from lipcert.norms import L1, L2, LINF
from lipcert.rules.arithmetic import neg
from lipcert.rules.convolution import per_dimension
from lipcert.rules.structure import OnlyValues, broadcast, expanded, reshaped

Window = tuple[int, int, int]
"""Start, stop and step of the positions a window covers."""


def factor(rows: Sequence[dict[int, Fraction]], size: int) -> Factor:
    """An exact matrix from its rows, each a map from column to entry, over a common denominator.

    Raises:
        UnsupportedOperation: If the common denominator passes 2**53.
    """
    denominator = math.lcm(*(entry.denominator for row in rows for entry in row.values()))
    numerator = torch.zeros(len(rows), size, dtype=torch.int64)
    if denominator > 2**53:
        raise UnsupportedOperation(f"an interpolation over {size} positions needs the denominator {denominator}.")
    for position, row in enumerate(rows):
        for column, entry in row.items():
            numerator[position, column] = int(entry * denominator)
    return Factor(numerator, denominator)


def separable(x: Value, factors: dict[int, Factor]) -> Value:
    """Record a Kronecker product of factors by dimension of ``x.shape``."""
    return affine(x, Separable(tuple(factors.get(dim) for dim in range(len(x.shape))), x.shape))


def max_windows(x: Value, windows: list[list[Window] | None]) -> Value:
    """Record maxima over products of one window per dimension; ``None`` leaves a dimension alone."""
    overlaps = 1
    for ranges, size in zip(windows, x.shape, strict=True):
        if ranges is not None:
            counts = torch.zeros(size, dtype=torch.int64)
            for start, stop, step in ranges:
                counts[start:stop:step] += 1
            overlaps *= int(counts.max())
    root = math.isqrt(overlaps)
    l2 = float(root) if root * root == overlaps else math.nextafter(math.sqrt(overlaps), math.inf)
    shape = tuple(size if ranges is None else len(ranges) for size, ranges in zip(x.shape, windows, strict=True))
    listed = [None if ranges is None else [list(window) for window in ranges] for ranges in windows]
    gains = {L2: l2, L1: float(overlaps), LINF: 1.0}
    return opaque(x, "max_windows", shape, gains, _maxima(windows), windows=listed)


def _maxima(windows: list[list[Window] | None]) -> Callable[[Tensor], Tensor]:
    def call(x: Tensor) -> Tensor:
        for dim, ranges in enumerate(windows, start=1):
            if ranges is not None:
                x = torch.stack([x.movedim(dim, 0)[start:stop:step].amax(0) for start, stop, step in ranges], dim)
        return x

    return call


def _pooled(
    size: int, kernel: int, stride: int, pad: int, dilation: int, ceil_mode: bool, path: str
) -> list[tuple[int, int]]:
    """First position and end of every window along a dimension, padding included, as torch places them."""
    reach = dilation * (kernel - 1) + 1
    span = size + 2 * pad - reach
    if span < 0 or 2 * pad > reach:
        raise InvalidInput(f"`{path}` pools {size} positions by windows of {reach} with padding {pad}.")
    count = (-(-span // stride) if ceil_mode else span // stride) + 1
    if ceil_mode and (count - 1) * stride >= size + pad:
        count -= 1  # the last window would start in the padding
    return [(first * stride - pad, first * stride - pad + reach) for first in range(count)]


def _spatial(x: Value, dimensions: int) -> list[int]:
    if len(x.shape) not in (dimensions, dimensions + 1):
        raise InvalidInput(f"`{x.path}` pools {dimensions} dimension(s) of samples of shape {x.shape}.")
    return list(range(len(x.shape) - dimensions, len(x.shape)))


def average_pool(
    x: Value,
    dimensions: int,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Value:
    """Record an average pooling with torch's arguments."""
    kernel, pads = per_dimension(kernel_size, dimensions), per_dimension(padding, dimensions)
    strides = kernel if stride is None or stride == [] else per_dimension(stride, dimensions)
    factors: dict[int, Factor] = {}
    for position, dim in enumerate(_spatial(x, dimensions)):
        size, pad = x.shape[dim], pads[position]
        rows = []
        for start, end in _pooled(size, kernel[position], strides[position], pad, 1, ceil_mode, x.path):
            inside = range(max(start, 0), min(end, size))
            # The divisor counts padding up to its end, but nothing beyond it.
            share = Fraction(1, min(end, size + pad) - start if count_include_pad else max(len(inside), 1))
            if divisor_override is not None:
                share = Fraction(1, divisor_override if position == 0 else 1)
            rows.append(dict.fromkeys(inside, share))
        factors[dim] = factor(rows, size)
    return separable(x, factors)


@lowers(nn.AvgPool1d)
def avg_pool1d_module(module: nn.AvgPool1d, input: Value) -> Value:
    """`average_pool` with the module's arguments."""
    return average_pool(
        input, 1, module.kernel_size, module.stride, module.padding, module.ceil_mode, module.count_include_pad, None
    )


@lowers(nn.AvgPool2d, nn.AvgPool3d)
def avg_pool_module(module: nn.AvgPool2d, input: Value) -> Value:
    """`average_pool` with the module's arguments."""
    return average_pool(
        input,
        3 if isinstance(module, nn.AvgPool3d) else 2,
        module.kernel_size,
        module.stride,
        module.padding,
        module.ceil_mode,
        module.count_include_pad,
        module.divisor_override,
    )


def _average_functions(dimensions: int, *functions: Callable[..., Any]) -> None:
    def rule(
        input: Value,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Value:
        return average_pool(
            input, dimensions, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
        )

    lowers(*functions)(rule)


_average_functions(1, F.avg_pool1d)
_average_functions(2, F.avg_pool2d)
_average_functions(3, F.avg_pool3d)


def _adaptive(size: int, count: int | None) -> list[tuple[int, int]]:
    count = size if count is None else count
    return [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]


def adaptive_average_pool(x: Value, dimensions: int, output_size: Any) -> Value:
    """Record an average over windows that divide each dimension as evenly as possible."""
    counts = per_dimension(output_size, dimensions) if output_size is not None else (None,) * dimensions
    factors = {}
    for dim, count in zip(_spatial(x, dimensions), counts, strict=True):
        rows = [dict.fromkeys(range(i, j), Fraction(1, j - i)) for i, j in _adaptive(x.shape[dim], count)]
        factors[dim] = factor(rows, x.shape[dim])
    return separable(x, factors)


def adaptive_max_pool(x: Value, dimensions: int, output_size: Any) -> Value:
    """Record a maximum over windows that divide each dimension as evenly as possible."""
    counts = per_dimension(output_size, dimensions) if output_size is not None else (None,) * dimensions
    windows: list[list[Window] | None] = [None] * len(x.shape)
    for dim, count in zip(_spatial(x, dimensions), counts, strict=True):
        windows[dim] = [(i, j, 1) for i, j in _adaptive(x.shape[dim], count)]
    return max_windows(x, windows)


def _refuse_indices(x: Value, return_indices: bool) -> None:
    if return_indices:
        raise UnsupportedOperation(
            f"`{x.path}` returns the indices of its maxima, which jump; use return_indices=False.", path=x.path
        )


def _adaptive_rules(dimensions: int, average: type[nn.Module], maximum: type[nn.Module], *functions: Any) -> None:
    """Register the adaptive poolings of one dimensionality: modules, then the functions for average and maximum."""
    average_functions, max_functions = functions

    @lowers(average)
    def average_module(module: Any, input: Value) -> Value:
        return adaptive_average_pool(input, dimensions, module.output_size)

    @lowers(maximum)
    def maximum_module(module: Any, input: Value) -> Value:
        _refuse_indices(input, module.return_indices)
        return adaptive_max_pool(input, dimensions, module.output_size)

    @lowers(*average_functions)
    def average_function(input: Value, output_size: Any) -> Value:
        return adaptive_average_pool(input, dimensions, output_size)

    @lowers(*max_functions)
    def maximum_function(input: Value, output_size: Any, return_indices: bool = False) -> Value:
        _refuse_indices(input, return_indices)
        return adaptive_max_pool(input, dimensions, output_size)


_adaptive_rules(1, nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d, [F.adaptive_avg_pool1d], [F.adaptive_max_pool1d])
_adaptive_rules(2, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, [F.adaptive_avg_pool2d], [F.adaptive_max_pool2d])
_adaptive_rules(3, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool3d, [F.adaptive_avg_pool3d], [F.adaptive_max_pool3d])


def max_pool(
    x: Value, dimensions: int, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
) -> Value:
    """Record a max pooling with torch's arguments."""
    kernel, pads = per_dimension(kernel_size, dimensions), per_dimension(padding, dimensions)
    strides = kernel if stride is None or stride == [] else per_dimension(stride, dimensions)
    dilations = per_dimension(dilation, dimensions)
    windows: list[list[Window] | None] = [None] * len(x.shape)
    for position, dim in enumerate(_spatial(x, dimensions)):
        d, size = dilations[position], x.shape[dim]
        placed = _pooled(size, kernel[position], strides[position], pads[position], d, ceil_mode, x.path)
        # A window that starts in the padding begins at its first tap inside the input.
        windows[dim] = [(start if start >= 0 else start % d, min(end, size), d) for start, end in placed]
        if any(start >= stop for start, stop, _ in windows[dim] or []):
            raise InvalidInput(f"`{x.path}` has a pooling window that lies in the padding.")
    return max_windows(x, windows)


def _max_rules(dimensions: int, module_class: type[nn.Module], *functions: Callable[..., Any]) -> None:
    @lowers(module_class)
    def module_rule(module: Any, input: Value) -> Value:
        _refuse_indices(input, module.return_indices)
        return max_pool(
            input, dimensions, module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode
        )

    @lowers(*functions)
    def function_rule(
        input: Value,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Value:
        _refuse_indices(input, return_indices)
        return max_pool(input, dimensions, kernel_size, stride, padding, dilation, ceil_mode)


_max_rules(1, nn.MaxPool1d, F.max_pool1d, torch.max_pool1d)
_max_rules(2, nn.MaxPool2d, F.max_pool2d, torch.max_pool2d)
_max_rules(3, nn.MaxPool3d, F.max_pool3d, torch.max_pool3d)


def reduced_dimensions(x: Value, dim: Any) -> list[int]:
    """The dimensions of ``x.shape`` that a reduction names; all of them would include the batch."""
    if dim is None or (not isinstance(dim, int) and len(dim) == 0):
        raise UnsupportedOperation(
            f"`{x.path}` reduces over all dimensions, the batch included; name the dimensions of the sample.",
            path=x.path,
        )
    return sorted({dimension(x, entry) for entry in ([dim] if isinstance(dim, int) else dim)})


def without(x: Value, dims: list[int], keepdim: bool) -> Value:
    """Drop dimensions that a reduction left at size 1."""
    return x if keepdim else reshaped(x, tuple(size for dim, size in enumerate(x.shape) if dim not in dims))


def _total(x: Value, dim: Any, keepdim: bool, dtype: Any, share: Callable[[int], Fraction]) -> Value:
    if dtype not in (None, torch.float64):
        raise UnsupportedOperation(f"`{x.path}` reduces in {dtype}, which rounds.", path=x.path)
    dims = reduced_dimensions(x, dim)
    factors = {d: factor([dict.fromkeys(range(x.shape[d]), share(x.shape[d]))], x.shape[d]) for d in dims}
    return without(separable(x, factors), dims, keepdim)


@lowers(torch.mean, "mean")
def mean(input: Value, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Value:
    """The mean over dimensions of the sample."""
    return _total(input, dim, keepdim, dtype, lambda size: Fraction(1, size))


@lowers(torch.sum, "sum")
def total(input: Value, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Value:
    """The sum over dimensions of the sample."""
    return _total(input, dim, keepdim, dtype, lambda size: Fraction(1))


@lowers(torch.amax, "amax")
def amax(input: Value, dim: Any = (), keepdim: bool = False) -> Value:
    """The maximum over dimensions of the sample."""
    dims = reduced_dimensions(input, dim)
    windows = [[(0, size, 1)] if d in dims else None for d, size in enumerate(input.shape)]
    return without(max_windows(input, windows), dims, keepdim)


@lowers(torch.amin, "amin")
def amin(input: Value, dim: Any = (), keepdim: bool = False) -> Value:
    """The minimum over dimensions of the sample."""
    return neg(amax(neg(input), dim, keepdim))


@lowers(torch.maximum, torch.fmax, "maximum")
def maximum(input: Value, other: Value) -> Value:
    """The larger of two values, entry by entry."""
    if len(input.shape) != len(other.shape):
        raise UnsupportedOperation(f"`{input.path}` compares {input.shape} with {other.shape}.", path=input.path)
    shape = broadcast(input.shape, other.shape)
    flat = [reshaped(expanded(value, shape), (math.prod(shape),)) for value in (input, other)]
    size = math.prod(shape)
    best = max_windows(concat(flat, 0), [[(i, 2 * size, size) for i in range(size)]])
    return reshaped(best, shape)


@lowers(torch.minimum, torch.fmin, "minimum")
def minimum(input: Value, other: Value) -> Value:
    """The smaller of two values, entry by entry."""
    return neg(maximum(neg(input), neg(other)))


@lowers(torch.max, "max")
def largest(input: Value, dim: Value | int | None = None, keepdim: bool = False) -> Value | OnlyValues:
    """``max(x, y)``, or the values of ``max(x, dim)``."""
    if isinstance(dim, Value):
        return maximum(input, dim)
    return OnlyValues(amax(input, dim, keepdim))


@lowers(torch.min, "min")
def smallest(input: Value, dim: Value | int | None = None, keepdim: bool = False) -> Value | OnlyValues:
    """``min(x, y)``, or the values of ``min(x, dim)``."""
    if isinstance(dim, Value):
        return minimum(input, dim)
    return OnlyValues(amin(input, dim, keepdim))
