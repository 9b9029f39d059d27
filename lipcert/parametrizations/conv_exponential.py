r"""The exponential of a skew convolution, as a layer: orthogonal up to a stated remainder. Floor 3."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lipcert.errors import InvalidInput
from lipcert.kernel.rounding import round_up
from lipcert.linear import Conv
from lipcert.opnorm import opnorm_any_size
from lipcert.parametrizations.claim import Claim
from lipcert.parametrizations.registration import register

_SQUARINGS = 3


class SkewKernel(Claim):
    """The parametrization that makes a convolution skew, ``L^T = -L``, with norm at most ``bound``.

    For every input size, with zero and circular padding. An assigned weight is taken to its skew part.
    """

    def __init__(self, bound: float, groups: int, label: str) -> None:
        """Claim a norm for square groups and odd kernels."""
        super().__init__(bound, label)
        self.groups = groups

    def weight(self, original: Tensor) -> Tensor:
        r"""Half of :math:`W_j - W_{-j}^T`, scaled down where its bound (`unfolded_norm`) exceeds the claim."""
        wide = original.to(torch.promote_types(original.dtype, torch.float32))
        # Autocasting would round the bound by percents.
        with torch.autocast(original.device.type, enabled=False):
            square = wide.unflatten(0, (self.groups, -1))
            dims = tuple(range(3, square.ndim))
            skew = (square - square.transpose(1, 2).flip(dims)) / 2
            peak = skew.detach().abs().amax()
            unit = skew / torch.where(peak > 0, peak, torch.ones_like(peak))
            beta = unfolded_norm(unit)
            far = beta.detach() * peak > self.bound
            kept = torch.where(far, unit * (self.bound / torch.where(far, beta, torch.ones_like(beta))), skew)
        return kept.flatten(0, 1).to(original.dtype)

    def prove(self, weight: Tensor) -> float:
        """The supremum over all frequencies."""
        dims = weight.ndim - 2
        ones, shape = (1,) * dims, (weight.shape[1] * self.groups, *(1,) * dims)
        return opnorm_any_size(Conv(weight, shape, ones, ones, ((0, 0),) * dims, ones, self.groups, "zeros")).value


def unfolded_norm(weight: Tensor) -> Tensor:
    r"""A differentiable upper bound of a convolution's norm, for all sizes, in exact arithmetic.

    The symbol is :math:`\sum_j W_j e^{i j \theta}`: the kernel unfolded to a matrix, times a vector of k exponentials
    on the right, or of :math:`k_1` on the left and :math:`k_2` on the right, so :math:`\sqrt{k}` times the norm of
    either unfolding bounds it. And :math:`\lVert M \rVert_2 \le \lVert (M M^T)^{2^p} \rVert_F^{2^{-p - 1}}`.

    Args:
        weight: ``(groups, out, in, *kernel)`` of moderate size.

    References:
        | Fantastic Four: differentiable bounds on singular values of convolution layers (Singla and Feizi, 2021)
        | Efficient bound of Lipschitz constant for convolutional layers by Gram iteration (Delattre et al., 2023)
    """
    groups, rows, columns, first = weight.shape[:4]
    rest = math.prod(weight.shape[4:])
    flat = weight.reshape(groups, rows, columns, first, rest)
    row, block = flat.reshape(groups, rows, -1), flat.movedim(3, 2).reshape(groups, rows * first, columns * rest)
    smallest = torch.minimum(_schatten(row), _schatten(block))
    return math.sqrt(first * rest) * smallest.amax()


def _schatten(matrix: Tensor) -> Tensor:
    gram = matrix @ matrix.mT
    for _ in range(_SQUARINGS):
        gram = gram @ gram
    square = gram.square().sum(dim=(-2, -1))
    # The root has no derivative at 0; a zero kernel stays zero.
    root = torch.where(square > 0, square, torch.ones_like(square)) ** (0.25 / 2**_SQUARINGS)
    return torch.where(square > 0, root, torch.zeros_like(root))


class SkewExponentialConv2d(nn.Module):
    r"""Apply :math:`T(L) = \sum_{j \le t} L^j / j!`, divided by :math:`1 + r`, for a skew convolution L.

    L is skew and of norm at most :math:`\rho` with circular padding, and with zero padding too (cutting out a box
    keeps both). Its eigenvalues are imaginary, so by Taylor's theorem those of T(L) are within

    .. math:: r = \rho^{t + 1} / (t + 1)!

    of modulus 1, and T(L) is normal: all singular values of the layer lie in :math:`[(1 - r) / (1 + r), 1]`, in l2,
    for every input size and either padding. *In training* :math:`\rho` is kept by a bound that holds in exact
    arithmetic, up to its rounding in float32; *in evaluation* it is proved of the kernel as stored. A certifier that
    reads the layer operation by operation adds up its terms, and finds at most :math:`e^\rho`.

    Args:
        channels: Input and output channels.
        kernel_size: Odd.
        terms: t, convolutions per pass. The default makes r 2.8e-6.
        reach: :math:`\rho`. A larger one reaches more operators, and needs more terms.
        padding_mode: ``"zeros"`` or ``"circular"``; the size is kept.
        groups: Number of channel groups.
        bias: Whether to add one.
        generator: Source of the initial numbers. Default: a generator seeded with 0.

    Shape:
        - Input: ``(N, channels, H, W)``; with circular padding H and W at least half of the kernel
        - Output: the same

    Raises:
        InvalidInput: If the kernel is even, the padding another one, or nothing could be claimed.

    References:
        | Skew orthogonal convolutions (Singla and Feizi, 2021), https://arxiv.org/abs/2105.11417

    Example:
        >>> layer = SkewExponentialConv2d(2, bias=False)
        >>> x = torch.randn(1, 2, 5, 4)
        >>> bool((layer(x).norm() / x.norm() - 1).abs() < 1e-5)
        True
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int | tuple[int, int] = 3,
        *,
        terms: int = 8,
        reach: float = 1.0,
        padding_mode: str = "zeros",
        groups: int = 1,
        bias: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        """Draw normal numbers."""
        super().__init__()
        kernel = (kernel_size, kernel_size) if isinstance(kernel_size, int) else tuple(kernel_size)
        if len(kernel) != 2 or not all(k >= 1 and k % 2 for k in kernel):
            raise InvalidInput(f"a skew kernel has a middle tap, so kernel_size must be odd, got {kernel_size}.")
        if padding_mode not in ("zeros", "circular"):
            raise InvalidInput(f"L is skew with zeros or circular padding only, got padding_mode={padding_mode!r}.")
        if channels < 1 or groups < 1 or channels % groups:
            raise InvalidInput(f"channels={channels} must be a positive multiple of groups={groups}.")
        if terms < 1 or not 0.0 < reach < math.inf:
            raise InvalidInput(f"a claim needs terms >= 1 and a positive finite reach, got {terms} and {reach}.")
        drawn = torch.Generator().manual_seed(0) if generator is None else generator
        shape = (channels, channels // groups, *kernel)
        self.weight = nn.Parameter(torch.randn(shape, generator=drawn, device=drawn.device))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None
        self.terms = terms
        self.padding_mode = padding_mode
        self.groups = groups
        self.pads = (kernel[0] // 2, kernel[1] // 2)
        self.remainder = taylor_remainder(reach, terms)
        self.factor = _down(1 / (1 + Fraction(self.remainder)))
        label = f"weight of SkewExponentialConv2d({channels}, {kernel_size})"
        register(self, "weight", SkewKernel(float(reach), groups, label))

    def forward(self, x: Tensor) -> Tensor:
        """Sum the series by Horner's rule: ``x + L (x + L (x + ...) / 2) / 1``."""
        weight, y = self.weight, x
        for j in range(self.terms, 0, -1):
            if self.padding_mode == "circular":
                padded = F.pad(y, (self.pads[1], self.pads[1], self.pads[0], self.pads[0]), mode="circular")
                image = F.conv2d(padded, weight, groups=self.groups)
            else:
                image = F.conv2d(y, weight, padding=self.pads, groups=self.groups)
            y = x + image / j
        y = y * self.factor
        return y if self.bias is None else y + self.bias[:, None, None]

    def extra_repr(self) -> str:
        """Print what the claim depends on."""
        return f"terms={self.terms}, padding_mode={self.padding_mode!r}, groups={self.groups}"


def taylor_remainder(reach: float, terms: int) -> float:
    r"""An upper bound of :math:`|e^{i x} - \sum_{j \le t} (i x)^j / j!|` for real :math:`|x| \le \rho`.

    Example:
        >>> taylor_remainder(1.0, 2) == round_up(Fraction(1, 6))
        True
    """
    return round_up(Fraction(reach) ** (terms + 1) / math.factorial(terms + 1))


def _down(value: Fraction) -> float:
    """The largest float32 that is not above ``value``: the factor that is multiplied in every dtype from float32 on."""
    nearest = np.float32(float(value))
    return float(nearest if Fraction(float(nearest)) <= value else np.nextafter(nearest, np.float32(0.0)))
