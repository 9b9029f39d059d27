"""Pooling over disjoint windows: 1-Lipschitz in l2, where overlapping windows are not.

An entry that falls into several windows is counted several times, which is what makes the usual overlapping pooling
expand distances; these layers refuse it and say by how much it would.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lipcert.errors import InvalidInput

Pair = tuple[int, int]


class AveragePool2d(nn.Module):
    r"""Average over disjoint windows of w entries, times :math:`\sqrt w`: its l2 norm is exactly 1.

    A plain average over w entries has norm :math:`1 / \sqrt w`, so every such layer shrinks a network's gradient;
    the factor undoes that. With w a square (2x2, 3x3, 4x4) the factor is exact in floating point.

    Shapes: ``(N, C, H, W)`` to ``(N, C, H', W')`` with ``H' = (H - k) // stride + 1``.

    Args:
        kernel_size: Window, one number or ``(height, width)``.
        stride: At least the window. Default: the window.

    Raises:
        InvalidInput: If windows overlap; the message states the norm that would result.

    Example:
        >>> AveragePool2d(2)(torch.ones(1, 1, 2, 2)).item()
        2.0
    """

    def __init__(self, kernel_size: int | Pair, stride: int | Pair | None = None) -> None:
        """Keep the window."""
        super().__init__()
        self.kernel_size, self.stride = _windows(self, kernel_size, stride, average_gain)
        self.factor = math.sqrt(math.prod(self.kernel_size))

    def forward(self, x: Tensor) -> Tensor:
        """Return the scaled averages."""
        return F.avg_pool2d(x, self.kernel_size, self.stride) * self.factor

    def extra_repr(self) -> str:
        """Print the window."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}"


class MaxPool2d(nn.MaxPool2d):
    """Maximum over disjoint windows: 1-Lipschitz in l1, l2 and linf.

    Args:
        kernel_size: Window, one number or ``(height, width)``.
        stride: At least the window. Default: the window.

    Raises:
        InvalidInput: If windows overlap; the message states the l2 constant that would result.

    Example:
        >>> MaxPool2d(2)(torch.tensor([[[[1.0, 4.0], [3.0, 2.0]]]])).item()
        4.0
    """

    def __init__(self, kernel_size: int | Pair, stride: int | Pair | None = None) -> None:
        """Keep the window."""
        window, step = _windows(self, kernel_size, stride, max_gain)
        super().__init__(window, step)


class L2Pool2d(nn.Module):
    r"""Root of the sum of squares over disjoint windows, :math:`\sqrt{\sum x^2}`: 1-Lipschitz in l2.

    It keeps the norm of the window, :math:`\lvert y \rvert_2 = \lvert x \rvert_2` where windows cover the input. The
    gradient at a zero window is taken as 0. Rows and columns that fill no window are dropped.

    Args:
        kernel_size: Window and stride, one number or ``(height, width)``.

    Example:
        >>> L2Pool2d((1, 2))(torch.tensor([[[[3.0, 4.0]]]])).item()
        5.0
    """

    def __init__(self, kernel_size: int | Pair) -> None:
        """Keep the window."""
        super().__init__()
        self.kernel_size, _ = _windows(self, kernel_size, None, max_gain)

    def forward(self, x: Tensor) -> Tensor:
        """Return the norms of the windows."""
        height, width = self.kernel_size
        rows, columns = x.shape[-2] // height, x.shape[-1] // width
        windows = x[..., : rows * height, : columns * width]
        windows = windows.unflatten(-1, (columns, width)).unflatten(-3, (rows, height))
        return torch.linalg.vector_norm(windows, dim=(-3, -1))

    def extra_repr(self) -> str:
        """Print the window."""
        return f"kernel_size={self.kernel_size}"


def max_gain(window: int, stride: int) -> float:
    """The squared l2 constant of max pooling in one dimension: as many windows as one entry can decide.

    Example:
        >>> max_gain(3, 2)
        2
    """
    return -(-window // stride)


def average_gain(window: int, stride: int) -> float:
    r"""The squared l2 norm of averaging times :math:`\sqrt w` in one dimension, over all input sizes.

    Its polyphase components are non-negative, so the largest gain is at frequency zero: :math:`\sum_r n_r^2 / w`
    with :math:`n_r` the taps in residue class r modulo the stride.

    Example:
        >>> average_gain(2, 1), average_gain(2, 2)
        (2.0, 1.0)
    """
    whole, more = divmod(window, stride)
    return ((stride - more) * whole**2 + more * (whole + 1) ** 2) / window


def _windows(module: nn.Module, kernel_size: int | Pair, stride: int | Pair | None, gain) -> tuple[Pair, Pair]:
    window = _pair(kernel_size)
    step = window if stride is None else _pair(stride)
    if min(*window, *step) < 1:
        raise InvalidInput(f"a window {window} with stride {step} is empty; both must be at least 1.")
    if step[0] < window[0] or step[1] < window[1]:
        constant = math.sqrt(math.prod(gain(k, s) for k, s in zip(window, step, strict=True)))
        raise InvalidInput(
            f"{type(module).__name__} with window {window} and stride {step} overlaps: an entry would count in several "
            f"windows and the l2 Lipschitz constant be {constant:.6g}, not 1. Use a stride of at least the window, or "
            f"the layer of torch.nn and divide by that constant."
        )
    return window, step


def _pair(size: int | Pair) -> Pair:
    first, second = (size, size) if isinstance(size, int) else size
    return int(first), int(second)
