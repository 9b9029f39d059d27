"""Activations that torch lacks and that keep the gradient norm: 1-Lipschitz, and not elementwise. Torch only.

All of them act along one dimension (channels, 1, unless said otherwise) and are isometries almost everywhere in l2,
which is what lets a network with norm-constrained layers approximate every 1-Lipschitz function.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class MaxMin(nn.Module):
    """Sort the two halves of the channels against each other: ``(a, b) -> (max(a, b), min(a, b))``.

    1-Lipschitz in l1, l2 and linf. The dimension must have an even size.

    Args:
        dim: Dimension to split, batch included in the count. Default: ``1``.

    References:
        | Sorting out Lipschitz function approximation (Anil, Lucas and Grosse, 2019)
        | https://arxiv.org/abs/1811.05381

    Example:
        >>> MaxMin()(torch.tensor([[1.0, 5.0, 3.0, 4.0]])).tolist()
        [[3.0, 5.0, 1.0, 4.0]]
    """

    def __init__(self, dim: int = 1) -> None:
        """Keep the dimension."""
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """Return the maxima followed by the minima.

        Raises:
            ValueError: If the dimension has an odd size.
        """
        _require_divisible(x, self.dim, 2)
        a, b = x.chunk(2, dim=self.dim)
        return torch.cat([torch.maximum(a, b), torch.minimum(a, b)], dim=self.dim)

    def extra_repr(self) -> str:
        """Print the dimension."""
        return f"dim={self.dim}"


class GroupSort(nn.Module):
    """Sort consecutive groups of channels in ascending order.

    1-Lipschitz in l1, l2 and linf (rearrangement inequality). The dimension must be a multiple of ``group_size``.

    Args:
        group_size: Channels per group; 2 is the MaxMin of neighbours.
        dim: Dimension to sort along, batch included in the count. Default: ``1``.

    References:
        | Sorting out Lipschitz function approximation (Anil, Lucas and Grosse, 2019)
        | https://arxiv.org/abs/1811.05381

    Example:
        >>> GroupSort(2)(torch.tensor([[2.0, 1.0, 3.0, 4.0]])).tolist()
        [[1.0, 2.0, 3.0, 4.0]]
    """

    def __init__(self, group_size: int, dim: int = 1) -> None:
        """Keep the sizes.

        Raises:
            ValueError: If the group is empty.
        """
        super().__init__()
        if group_size < 1:
            raise ValueError(f"group_size={group_size} leaves nothing to sort; it must be at least 1.")
        self.group_size = group_size
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """Return the groups sorted.

        Raises:
            ValueError: If the dimension is not a multiple of the group size.
        """
        _require_divisible(x, self.dim, self.group_size)
        dim = self.dim % x.ndim
        groups = x.unflatten(dim, (x.shape[dim] // self.group_size, self.group_size))
        return groups.sort(dim=dim + 1).values.flatten(dim, dim + 1)

    def extra_repr(self) -> str:
        """Print the sizes."""
        return f"group_size={self.group_size}, dim={self.dim}"


class FullSort(nn.Module):
    """Sort all channels in ascending order: 1-Lipschitz in l1, l2 and linf.

    Args:
        dim: Dimension to sort along, batch included in the count. Default: ``1``.

    References:
        | Sorting out Lipschitz function approximation (Anil, Lucas and Grosse, 2019)
        | https://arxiv.org/abs/1811.05381

    Example:
        >>> FullSort()(torch.tensor([[2.0, 1.0, 3.0]])).tolist()
        [[1.0, 2.0, 3.0]]
    """

    def __init__(self, dim: int = 1) -> None:
        """Keep the dimension."""
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """Return the channels sorted."""
        return x.sort(dim=self.dim).values

    def extra_repr(self) -> str:
        """Print the dimension."""
        return f"dim={self.dim}"


class Householder(nn.Module):
    r"""Reflect each pair of channels that lies on one side of a learned line onto the other side.

    For a pair :math:`z = (z_1, z_2)` and the unit vector :math:`v = (\sin(\theta/2), -\cos(\theta/2))`, the output is
    z where :math:`v \cdot z > 0` and the reflection :math:`(I - 2 v v^T) z` elsewhere. It is 1-Lipschitz in l2 for
    every angle and at most :math:`\sqrt 2` in l1 and linf; the angle :math:`\pi/2` (the start) is MaxMin.

    Args:
        channels: Size of the dimension; even. One angle is learned per pair ``(i, i + channels / 2)``.
        dim: Dimension of the channels, batch included in the count. Default: ``1``.

    References:
        | Improved deterministic l2 robustness on CIFAR-10 and CIFAR-100 (Singla, Singla and Feizi, 2021)
        | https://arxiv.org/abs/2108.04062

    Example:
        >>> Householder(2)(torch.tensor([[1.0, 5.0]])).detach().round(decimals=6).tolist()
        [[5.0, 1.0]]
    """

    def __init__(self, channels: int, dim: int = 1) -> None:
        """Start at MaxMin.

        Raises:
            ValueError: If the number of channels is odd.
        """
        super().__init__()
        if channels < 2 or channels % 2:
            raise ValueError(f"channels={channels} cannot be paired; it must be even and at least 2.")
        self.channels = channels
        self.dim = dim
        self.theta = nn.Parameter(torch.full((channels // 2,), math.pi / 2))

    def forward(self, x: Tensor) -> Tensor:
        """Return the pairs, reflected where they lie on the negative side.

        Raises:
            ValueError: If the dimension has another size than ``channels``.
        """
        if x.shape[self.dim] != self.channels:
            raise ValueError(f"dimension {self.dim} has size {x.shape[self.dim]}, made for {self.channels} channels.")
        return reflect(x, self.theta, self.dim)

    def extra_repr(self) -> str:
        """Print the sizes."""
        return f"channels={self.channels}, dim={self.dim}"


def reflect(x: Tensor, theta: Tensor, dim: int) -> Tensor:
    """Reflect pairs of channels along ``dim`` at lines of angle ``theta / 2`` (see `Householder`)."""
    dim = dim % x.ndim
    half = (theta / 2).reshape(-1, *[1] * (x.ndim - dim - 1))
    a, b = x.chunk(2, dim=dim)
    distance = torch.relu(half.cos() * b - half.sin() * a)
    return torch.cat([a + 2 * half.sin() * distance, b - 2 * half.cos() * distance], dim=dim)


def _require_divisible(x: Tensor, dim: int, group: int) -> None:
    if x.shape[dim] % group:
        raise ValueError(f"dimension {dim} has size {x.shape[dim]}, which is not a multiple of {group}.")
