r"""Residual layers that do not expand distances, whatever the length of the step that training finds. Floor 3.

They all have the form ``y = x - 2 V' relu(V x + b)``. Its derivative is :math:`I - 2 V^T D V` with D in [0, 1], a
symmetric matrix between :math:`I - 2 V^T V` and I: the layer is 1-Lipschitz in l2 if and, for some b, only if
:math:`|V|_2 \le 1`. They differ in how V is made from the parameter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lipcert.errors import CheckFailed, InvalidInput
from lipcert.kernel.rounding import sqrt_up
from lipcert.linear import Conv, Dense
from lipcert.opnorm import opnorm, opnorm_any_size
from lipcert.parametrizations.aol import RowsAlmostOrthogonal, squared_norm
from lipcert.parametrizations.claim import Claim
from lipcert.parametrizations.operators import operator_of
from lipcert.parametrizations.registration import register
from lipcert.parametrizations.spectral import spectral_norm


class _DenseStep(nn.Module):
    """``x - 2 V' relu(V x + b)`` for the weight V and bias b of ``inner``."""

    _claim: Callable[[nn.Module], nn.Module]

    def __init__(self, features: int, hidden: int | None = None, *, bias: bool = True) -> None:
        """Draw the weight as `nn.Linear` does."""
        super().__init__()
        hidden = features if hidden is None else hidden
        _require_positive(features=features, hidden=hidden)
        self.inner = cast(nn.Linear, type(self)._claim(nn.Linear(features, hidden, bias=bias)))

    def forward(self, x: Tensor) -> Tensor:
        """Take the step."""
        V = self.inner.weight
        return x - 2 * F.linear(torch.relu(F.linear(x, V, self.inner.bias)), V.mT)

    def certify(self) -> float:
        """Prove the claim for the weight in use, and return the proven l2 Lipschitz constant, 1.0.

        Raises:
            CheckFailed: If V is not proved to be at most 1 long; in training rounding or an estimate may exceed it.
            NotFinite: If V is NaN or infinite.
        """
        V = _exact(self.inner)
        return _constant(self, opnorm(Dense(V, (V.shape[1],))).value, V)


class SLLLinear(_DenseStep):
    r"""SDP-based Lipschitz layer: :math:`y = x - 2 W T^{-1} \mathrm{relu}(W^T x + c)`, 1-Lipschitz in l2.

    :math:`T_{ii} = \sum_j |W^T W|_{ij} q_j / q_i` with q > 0. It is written as :math:`x - 2 V^T \mathrm{relu}(V x + b)`
    with :math:`V = T^{-1/2} W^T` and :math:`b = T^{-1/2} c`, as relu is positively homogeneous. V then depends on
    the lengths of W's columns times q only, so these lengths play the part of q, which is no parameter of its own.
    The parameter is :math:`W^T`, one row per hidden unit; a unit whose row is zero does nothing.

    *In training* the constant is 1 in exact arithmetic; rounding V can exceed it by units in the last place times the
    width. *In evaluation* the claim is a theorem about the stored V, which is proved and where need be lowered.
    Rounding in applying the layer is not part of it.

    Shapes: ``(..., features)`` to the same.

    Args:
        features: Size of the last dimension.
        hidden: Number of hidden units. Default: ``features``.
        bias: Whether hidden units have a bias.

    Raises:
        InvalidInput: If a size is not positive.

    References:
        | A unified algebraic perspective on Lipschitz neural networks (Araujo et al., 2023), theorem 3
        | https://arxiv.org/abs/2303.03169

    Example:
        >>> layer = SLLLinear(3, 8).eval()
        >>> layer(torch.ones(2, 3)).shape, layer.certify()
        (torch.Size([2, 3]), 1.0)
    """

    @staticmethod
    def _claim(inner: nn.Module) -> nn.Module:
        return _rows_almost_orthogonal(inner)


class CPLLinear(_DenseStep):
    r"""Convex potential layer: :math:`y = x - (2 / |W|_2^2) W^T \mathrm{relu}(W x + c)`, 1-Lipschitz in l2.

    It is written as :math:`x - 2 V^T \mathrm{relu}(V x + b)` with :math:`V = W / |W|_2` and :math:`b = c / |W|_2`; V
    is the weight of ``inner`` under `spectral_norm`.

    *In training* the norm of W is the estimate of `spectral_norm`, and its promise for training holds here, no more.
    *In evaluation* the stored V is proved to be at most 1 long, rounding included, and the claim is a theorem.
    Rounding in applying the layer is not part of it. A zero weight gives y = x.

    Shapes: ``(..., features)`` to the same.

    Args:
        features: Size of the last dimension.
        hidden: Number of hidden units. Default: ``features``.
        bias: Whether hidden units have a bias.

    Raises:
        InvalidInput: If a size is not positive.

    References:
        | A dynamical system perspective for Lipschitz neural networks (Meunier et al., 2022), section 3
        | https://arxiv.org/abs/2110.12690

    Example:
        >>> CPLLinear(3).eval().certify()
        1.0
    """

    @staticmethod
    def _claim(inner: nn.Module) -> nn.Module:
        return spectral_norm(inner)


class _ConvStep(nn.Module):
    """``x - 2 V' relu(V x + b)`` for the convolution V of ``inner``, with stride 1 and outputs of the input's size."""

    _claim: Callable[[nn.Module], nn.Module]

    def __init__(
        self,
        channels: int,
        kernel_size: int | tuple[int, int],
        hidden: int | None = None,
        *,
        bias: bool = True,
        padding_mode: str = "zeros",
    ) -> None:
        """Draw the weight as `nn.Conv2d` does."""
        super().__init__()
        height, width = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        hidden = channels if hidden is None else hidden
        _require_positive(channels=channels, hidden=hidden, height=height, width=width)
        if padding_mode not in ("zeros", "circular"):
            raise InvalidInput(
                f"{type(self).__name__} needs zero or circular padding, got {padding_mode!r}: only with these is the "
                f"transposed convolution a convolution with the same padding. Choose one of the two."
            )
        padding = ((height - 1) // 2, (width - 1) // 2)
        inner = nn.Conv2d(channels, hidden, (height, width), padding=padding, bias=bias, padding_mode=padding_mode)
        self.inner = cast(nn.Conv2d, type(self)._claim(inner))

    def forward(self, x: Tensor) -> Tensor:
        """Take the step."""
        V, mode = self.inner.weight, self.inner.padding_mode
        hidden = torch.relu(_same_size(x, V, self.inner.bias, mode, self.inner.padding))
        # The transpose has the flipped kernel, and its paddings before and after exchanged.
        top, left = V.shape[2] // 2, V.shape[3] // 2
        return x - 2 * _same_size(hidden, V.transpose(0, 1).flip(2, 3), None, mode, (top, left))

    def certify(self) -> float:
        """Prove the claim for the weight in use at every image size, and return the proven constant, 1.0.

        Raises:
            CheckFailed: If V is not proved to be at most 1 long; in training rounding or an estimate may exceed it.
            NotFinite: If V is NaN or infinite.
        """
        V = _exact(self.inner)
        pads = tuple(((k - 1) // 2, k // 2) for k in V.shape[2:])
        conv = Conv(V, (V.shape[1], 1, 1), (1, 1), (1, 1), pads, (1, 1), 1, self.inner.padding_mode)
        return _constant(self, opnorm_any_size(conv).value, V)


class SLLConv2d(_ConvStep):
    """`SLLLinear` as a convolution of stride 1: 1-Lipschitz in l2 at every image size.

    T sums the kernel's autocorrelation over channels and shifts. Height and width are kept; an even kernel pads one
    less before than after.

    Shapes: ``(N, channels, H, W)`` to the same.

    Args:
        channels: Number of channels.
        kernel_size: One number or ``(height, width)``.
        hidden: Number of hidden channels. Default: ``channels``.
        bias: Whether hidden channels have a bias.
        padding_mode: ``"zeros"`` or ``"circular"``.

    Raises:
        InvalidInput: If a size is not positive, or the padding is another.

    References:
        | A unified algebraic perspective on Lipschitz neural networks (Araujo et al., 2023), theorem 3
        | https://arxiv.org/abs/2303.03169

    Example:
        >>> layer = SLLConv2d(2, 3, padding_mode="circular").eval()
        >>> layer(torch.ones(1, 2, 5, 5)).shape, layer.certify()
        (torch.Size([1, 2, 5, 5]), 1.0)
    """

    @staticmethod
    def _claim(inner: nn.Module) -> nn.Module:
        return _rows_almost_orthogonal(inner)


class CPLConv2d(_ConvStep):
    """`CPLLinear` as a convolution of stride 1: 1-Lipschitz in l2 at every image size.

    The norm is that of the convolution over all sizes. Height and width are kept; an even kernel pads one less
    before than after.

    Shapes: ``(N, channels, H, W)`` to the same.

    Args:
        channels: Number of channels.
        kernel_size: One number or ``(height, width)``.
        hidden: Number of hidden channels. Default: ``channels``.
        bias: Whether hidden channels have a bias.
        padding_mode: ``"zeros"`` or ``"circular"``.

    Raises:
        InvalidInput: If a size is not positive, or the padding is another.

    References:
        | A dynamical system perspective for Lipschitz neural networks (Meunier et al., 2022), section 3
        | https://arxiv.org/abs/2110.12690

    Example:
        >>> CPLConv2d(1, 3).eval()(torch.zeros(1, 1, 4, 4)).shape
        torch.Size([1, 1, 4, 4])
    """

    @staticmethod
    def _claim(inner: nn.Module) -> nn.Module:
        return spectral_norm(inner)


class ConvexMix(nn.Module):
    r"""``a x + (1 - a) f(x)`` with one learned weight a in [0, 1]: 1-Lipschitz in every norm in which f is.

    a is the sigmoid of a parameter; ``weight`` holds a and 1 - a. One weight per channel would not do:
    :math:`\mathrm{diag}(a) + \mathrm{diag}(1 - a) J` can be longer than both I and J.

    *In training* the two add up to 1 exactly, in *evaluation* to no more than 1, and less by about 2**-26: room for
    the certifier's rounding.

    Args:
        branch: f, which keeps the shape. Its constant L, which is not looked at, makes the block
            :math:`a + (1 - a) L` Lipschitz.
        mix: Initial a, strictly between 0 and 1.

    Raises:
        InvalidInput: If ``mix`` is not in (0, 1), or later if the branch changes the shape.

    Example:
        >>> ConvexMix(nn.ReLU())(torch.tensor([[-2.0, 4.0]])).tolist()
        [[-1.0, 4.0]]
    """

    def __init__(self, branch: nn.Module, mix: float = 0.5) -> None:
        """Start at the given weight."""
        super().__init__()
        if not 0.0 < mix < 1.0:
            raise InvalidInput(f"mix={mix} is not strictly between 0 and 1, where a sigmoid can start.")
        self.branch = branch
        self.weight = nn.Parameter(torch.tensor([mix, 1.0 - mix]))
        register(self, "weight", _Convex(1.0, "weight of ConvexMix"))

    def forward(self, x: Tensor) -> Tensor:
        """Return the mixture."""
        image = self.branch(x)
        if image.shape != x.shape:
            raise InvalidInput(
                f"the branch of ConvexMix maps {tuple(x.shape)} to {tuple(image.shape)}; adding them would broadcast "
                f"and void the claim. The branch must keep the shape."
            )
        weight = self.weight
        return weight[0] * x + weight[1] * image


class _Convex(Claim):
    """Two weights ``(a, 1 - a)`` from a logit."""

    def weight(self, original: Tensor) -> Tensor:
        """The sigmoid and the rest."""
        # 1 - s is rounded once; 1 minus that is exact (Sterbenz), so the two add up to 1 exactly.
        rest = 1 - torch.sigmoid(original)
        return torch.stack([1 - rest, rest])

    def prove(self, weight: Tensor) -> float:
        """The sum of the weights, rounded up: the norm of any mixture of two maps of norm 1."""
        a, b = weight.abs().tolist()
        return math.nextafter(a + b, math.inf) if math.fsum([a, b, -(a + b)]) > 0.0 else a + b

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The logit."""
        self.forget()
        return torch.log(weight[0]) - torch.log(weight[1])


def _rows_almost_orthogonal(inner: nn.Module) -> nn.Module:
    return register(inner, "weight", RowsAlmostOrthogonal(operator_of(inner), 1.0, f"weight of {inner}"))


def _same_size(x: Tensor, kernel: Tensor, bias: Tensor | None, mode: str, before: Sequence[int | str]) -> Tensor:
    """The convolution of stride 1 whose outputs have the size of the inputs."""
    top, left = (int(amount) for amount in before)
    bottom, right = kernel.shape[2] - 1 - top, kernel.shape[3] - 1 - left
    if mode == "zeros" and (top, left) == (bottom, right):
        return F.conv2d(x, kernel, bias, padding=(top, left))
    padded = F.pad(x, [left, right, top, bottom], mode="constant" if mode == "zeros" else mode)
    return F.conv2d(padded, kernel, bias)


def _exact(inner: nn.Linear | nn.Conv2d) -> Tensor:
    return inner.weight.detach().double().cpu()


def _constant(module: nn.Module, norm: float, V: Tensor) -> float:
    if norm > 1.0:
        # Where a norm over all sizes is loose, the inequality that V may have been made by is not.
        norm = min(norm, float(sqrt_up(squared_norm(V[None]))))
    if not norm <= 1.0:
        raise CheckFailed(
            f"the weight of {module} is only proved to be at most {norm} long, where 1 is allowed, so the layer may "
            f"expand distances. Call eval() first: claims are proved in evaluation."
        )
    return 1.0


def _require_positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise InvalidInput(f"{name}={size} leaves no layer; it must be at least 1.")
