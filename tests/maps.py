"""Linear maps of every kind, in many shapes; small enough to be spelled out as matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lipcert.linear import Adjoint, Conv, Dense, Diagonal, Factor, LinearMap, Reshape, Selection, Separable


def _drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64)


def conv(
    out: int,
    in_shape: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: int = 1,
    padding: Any = 0,
    dilation: int = 1,
    groups: int = 1,
    mode: str = "zeros",
) -> Conv:
    """A convolution with random weights; ``padding`` is a number or one (before, after) pair for all dimensions."""
    dims = len(kernel)
    pair = (padding, padding) if isinstance(padding, int) else padding
    sizes = tuple(
        (size + sum(pair) - dilation * (k - 1) - 1) // stride + 1 for size, k in zip(in_shape[1:], kernel, strict=True)
    )
    weight = _drawn(out, in_shape[0] // groups, *kernel)
    return Conv(weight, in_shape, sizes, (stride,) * dims, (pair,) * dims, (dilation,) * dims, groups, mode)


def _factor(rows: list[list[int]], denominator: int) -> Factor:
    return Factor(torch.tensor(rows), denominator)


MAPS: dict[str, Callable[[], LinearMap]] = {
    "dense": lambda: Dense(_drawn(3, 4), (4,)),
    "dense wide": lambda: Dense(_drawn(2, 9), (9,)),
    "dense tall": lambda: Dense(_drawn(9, 2), (2,)),
    "dense one by one": lambda: Dense(_drawn(1, 1), (1,)),
    "dense zero": lambda: Dense(torch.zeros(3, 2, dtype=torch.float64), (2,)),
    "dense on positions": lambda: Dense(_drawn(3, 4), (2, 5, 4)),
    "dense tiny": lambda: Dense(_drawn(3, 4) * 1e-200, (4,)),
    "dense huge": lambda: Dense(_drawn(3, 4) * 1e150, (4,)),
    "dense rank one": lambda: Dense(torch.outer(_drawn(4), _drawn(5)), (5,)),
    "conv 1d": lambda: conv(3, (2, 8), (3,)),
    "conv 1d strided": lambda: conv(3, (2, 9), (3,), 2, 1),
    "conv 2d": lambda: conv(2, (2, 5, 6), (3, 3), padding=1),
    "conv 2d pointwise": lambda: conv(3, (2, 4, 4), (1, 1)),
    "conv 2d strided": lambda: conv(3, (1, 7, 6), (3, 2), 2, 1),
    "conv 2d stride over kernel": lambda: conv(3, (1, 7, 7), (2, 2), 3),
    "conv 2d dilated": lambda: conv(2, (1, 7, 7), (3, 3), 1, 2, 2),
    "conv 2d grouped": lambda: conv(4, (4, 4, 4), (3, 3), padding=1, groups=2),
    "conv 2d depthwise": lambda: conv(3, (3, 4, 4), (3, 3), padding=1, groups=3),
    "conv 2d circular": lambda: conv(2, (2, 5, 5), (3, 3), padding=1, mode="circular"),
    "conv 2d circular strided": lambda: conv(2, (1, 6, 6), (3, 3), 2, 1, mode="circular"),
    "conv 2d reflect": lambda: conv(2, (1, 5, 4), (3, 3), padding=2, mode="reflect"),
    "conv 2d replicate": lambda: conv(2, (1, 4, 4), (3, 3), padding=2, mode="replicate"),
    "conv 2d padded on one side": lambda: conv(2, (1, 5, 5), (2, 2), padding=(0, 1)),
    "conv 2d kernel over input": lambda: conv(2, (1, 2, 2), (5, 5), padding=2),
    "conv 3d": lambda: conv(2, (1, 3, 4, 3), (2, 2, 2)),
    "adjoint 1d": lambda: Adjoint(conv(2, (3, 9), (3,), 2, 1)),
    "adjoint 2d": lambda: Adjoint(conv(2, (2, 6, 6), (4, 4), 2, 1)),
    "adjoint 2d with rest": lambda: Adjoint(conv(2, (2, 6, 6), (3, 3), 2, 1)),
    "adjoint 2d grouped dilated": lambda: Adjoint(conv(4, (4, 7, 7), (3, 3), 1, 1, 2, 2)),
    "adjoint 3d": lambda: Adjoint(conv(1, (2, 3, 3, 3), (2, 2, 2))),
    "diagonal": lambda: Diagonal(_drawn(4), (4,)),
    "diagonal per channel": lambda: Diagonal(_drawn(3, 1, 1), (3, 2, 2)),
    "diagonal number": lambda: Diagonal(torch.tensor(-0.3, dtype=torch.float64), (2, 3)),
    "selection permutation": lambda: Selection(torch.tensor([2, 0, 1]), (3,)),
    "selection repeated": lambda: Selection(torch.tensor([[0, 0, 1], [1, 1, -1]]), (2,)),
    "selection cropped": lambda: Selection(torch.tensor([3, 5]), (2, 4)),
    "selection of nothing": lambda: Selection(torch.tensor([-1, -1]), (3,)),
    "reshape": lambda: Reshape((2, 3, 2), (4, 3)),
    "separable average": lambda: Separable((None, _factor([[1, 1, 0, 0], [0, 0, 1, 1]], 2)), (2, 4)),
    "separable interpolation": lambda: Separable(
        (None, _factor([[4, 0], [3, 1], [1, 3], [0, 4]], 4), _factor([[3, 0], [1, 2]], 3)), (2, 2, 2)
    ),
    "separable zero": lambda: Separable((None, _factor([[0, 0], [0, 0]], 3), _factor([[1, 2]], 3)), (2, 2, 2)),
    "separable differences": lambda: Separable((_factor([[1, 1, 0], [1, -1, 0], [0, 0, 2]], 2), None), (3, 2)),
    "separable sum": lambda: Separable((_factor([[1] * 3], 1), _factor([[1] * 4], 4)), (3, 4)),
}
