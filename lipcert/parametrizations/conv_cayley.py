"""Cayley transforms: orthonormal frames from free numbers, and convolutions orthogonal on a torus. Floor 3."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lipcert.errors import InvalidInput
from lipcert.linear import Conv
from lipcert.opnorm import opnorm
from lipcert.parametrizations.claim import Claim
from lipcert.parametrizations.registration import register

# Free numbers beyond this Frobenius norm per row are pulled back: (I + S) must stay invertible in floating point.
_REACH = 16.0


def frame(free: Tensor) -> Tensor:
    r"""Orthonormal columns from any matrix: the rectangular Cayley transform.

    With :math:`\Omega` the skew part of the top square of ``free``, :math:`B` the rest and :math:`S = B^* B`,

    .. math:: X = (I + S - \Omega)^{-1}, \qquad V = \begin{pmatrix} 2 X - I \\ 2 B X \end{pmatrix}, \qquad V^* V = I,

    the first columns of :math:`(I - A)^{-1} (I + A)` for the skew :math:`A = (\Omega, -B^*; B, 0)`. The inverse
    always exists, since the Hermitian part of :math:`I + S - \Omega` is at least I. It costs :math:`O(n m^2)`, and
    is the identity for zero. With :math:`\Omega = 0` the columns span every subspace for some
    :math:`\lVert B \rVert \le 1`; in general every frame is reached up to signs of its columns (`unframe`).

    Args:
        free: ``(..., n, m)``, real or complex, n >= m. Beyond Frobenius norm ``16 n`` only its direction counts.

    Returns:
        V: ``(..., n, m)``.

    References:
        | Orthogonalizing convolutional layers with the Cayley transform (Trockman and Kolter, 2021)
        | https://arxiv.org/abs/2104.07167

    Example:
        >>> V = frame(torch.arange(6.0).reshape(3, 2))
        >>> torch.allclose(V.T @ V, torch.eye(2), atol=1e-6)
        True
    """
    n, m = free.shape[-2:]
    free = _within_reach(free, _REACH * n)
    top, B = free[..., :m, :], free[..., m:, :]
    eye = torch.eye(m, dtype=free.dtype, device=free.device)
    # No check of the inverse, which would wait for the device: the matrix is never singular.
    X = torch.linalg.inv_ex(eye + B.mH @ B - (top - top.mH) / 2).inverse
    V = torch.cat([2 * X - eye, 2 * (B @ X)], dim=-2)
    # One Newton-Schulz step squares what rounding left of |V* V - I|.
    return V @ (3 * eye - V.mH @ V) / 2


def unframe(V: Tensor) -> tuple[Tensor, Tensor]:
    r"""Free numbers and signs with ``V = frame(free) * signs``, for orthonormal columns.

    Signs are chosen while :math:`V_1 - D` is eliminated, so that every pivot is at least 1 in magnitude and
    :math:`I - V_1 D` is invertible.

    Args:
        V: ``(..., n, m)``, real, orthonormal columns.

    Returns:
        ``(..., n, m)`` and ``(..., 1, m)``.

    References:
        | Reconstructing Householder vectors from tall-skinny QR (Ballard et al., 2015)
        | Is there a small skew Cayley transform with zero diagonal? (Kahan, 2006)
    """
    m = V.shape[-1]
    rest = V[..., :m, :].clone()
    signs = V.new_ones((*V.shape[:-2], 1, V.shape[-1]))
    for j in range(m):
        sign = torch.where(rest[..., j, j] < 0, -1.0, 1.0).to(V)
        signs[..., 0, j] = sign
        column = rest[..., j + 1 :, j] / (rest[..., j, j] + sign)[..., None]
        rest[..., j + 1 :, j + 1 :] -= column[..., None] * rest[..., j, None, j + 1 :]
    W = V * signs
    eye = torch.eye(m, dtype=V.dtype, device=V.device)
    X = (W[..., :m, :] + eye) / 2
    inverse = torch.linalg.inv(X)
    return torch.cat([(inverse.mT - inverse) / 2, W[..., m:, :] @ inverse / 2], dim=-2), signs


def span(B: Tensor) -> Tensor:
    """An orthonormal basis ``(..., n, r)`` of a subspace from free numbers ``(..., n - r, r)``; see `frame`."""
    return frame(torch.cat([B.new_zeros(*B.shape[:-2], B.shape[-1], B.shape[-1]), B], dim=-2))


def unspan(U: Tensor) -> Tensor:
    r"""Free numbers, at most 1 in norm, of the subspace that the orthonormal columns of U ``(..., n, r)`` span.

    In the basis :math:`U R` whose top square :math:`H = U_1 R` is positive, :math:`H = (I - S)(I + S)^{-1}`.
    """
    r = U.shape[-1]
    left, values, right = torch.linalg.svd(U[..., :r, :])
    # U_1 = (left right) (right* values right), so U_1 (left right)* = left values left* >= 0.
    below = U[..., r:, :] @ (right.mT @ left.mT)
    halves = left * ((1 + values) ** -1)[..., None, :] @ left.mT
    return below @ halves


def _within_reach(free: Tensor, reach: float) -> Tensor:
    peak = free.detach().abs().amax(dim=(-2, -1), keepdim=True) if free.shape[-1] and free.shape[-2] else None
    if peak is None:
        return free
    unit = free / torch.where(peak > 0, peak, torch.ones_like(peak))
    square = (unit * unit.conj()).real.sum(dim=(-2, -1), keepdim=True)
    far = peak * square.detach().sqrt() > reach
    # The square is replaced where it is not used, so that no infinite derivative is multiplied by zero.
    pulled = unit * (reach * torch.where(far, square, torch.ones_like(square)).rsqrt())
    return torch.where(far, pulled, free)


class CayleyKernel(Claim):
    """The parametrization that makes a circular convolution orthogonal at one size; see `fourier_cayley`.

    An assigned weight is taken as the free kernel, not as the orthogonal one.
    """

    def __init__(
        self,
        sizes: tuple[int, ...],
        support: tuple[int, ...],
        groups: int,
        prove: Callable[[Tensor], float],
        label: str,
    ) -> None:
        """Claim norm 1 for a kernel of shape ``sizes``, made from a free one of shape ``support``."""
        super().__init__(1.0, label)
        self.sizes = sizes
        self.support = support
        self.groups = groups
        self.proof = prove

    def weight(self, original: Tensor) -> Tensor:
        """The orthogonal kernel."""
        return fourier_cayley(original, self.sizes, self.groups)

    def prove(self, weight: Tensor) -> float:
        """The norm on the torus of the kernel's own size."""
        return self.proof(weight)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Take the corner of a weight as the free kernel."""
        corner = super().right_inverse(weight)[(..., *(slice(size) for size in self.support))]
        return corner.clone()


def fourier_cayley(free: Tensor, sizes: tuple[int, ...], groups: int = 1) -> Tensor:
    r"""A kernel of the torus's own size, orthogonal on it, from any smaller real kernel: `frame` at every frequency.

    The Cayley transform of a real kernel's symbol is the symbol of a real kernel. It is not sparse.

    Args:
        free: ``(out, in / groups, *support)``.
        sizes: The torus, at least as large as the support.
        groups: Number of channel groups.

    Returns:
        ``(out, in / groups, *sizes)``, in the dtype of ``free``; computed in float32 at least.

    References:
        | Orthogonalizing convolutional layers with the Cayley transform (Trockman and Kolter, 2021)
        | https://arxiv.org/abs/2104.07167
    """
    dims = tuple(range(-len(sizes), 0))
    wide = free.to(torch.promote_types(free.dtype, torch.float32))
    spectrum = torch.fft.rfftn(wide, s=sizes, dim=dims)
    symbol = spectrum.unflatten(0, (groups, -1)).flatten(3).movedim(3, 0)
    unitary = frame(symbol) if symbol.shape[-2] >= symbol.shape[-1] else frame(symbol.mH).mH
    spectrum = unitary.movedim(0, 3).reshape(spectrum.shape)
    return torch.fft.irfftn(spectrum, s=sizes, dim=dims).to(free.dtype)


class CayleyConv2d(nn.Module):
    r"""A circular convolution that is orthogonal at one input size, applied by Fourier transforms.

    With at most as many outputs as inputs :math:`A A^T = I`, else :math:`A^T A = I`: norm 1 in l2. *In training* that
    holds up to the rounding of the kernel's construction, in float32 at least; *in evaluation* the kernel's norm is
    proved to be at most 1. The Fourier transforms of the input round as any layer's arithmetic does.

    Args:
        in_channels: Input channels.
        out_channels: Output channels.
        kernel_size: Taps of the free kernel per dimension, at most the input size.
        input_size: ``(H, W)``, the only size it accepts.
        bias: Whether to add one.
        generator: Source of the initial numbers. Default: a generator seeded with 0.

    Shape:
        - Input: ``(N, in_channels, H, W)``
        - Output: ``(N, out_channels, H, W)``

    Raises:
        InvalidInput: If the free kernel is larger than the input.

    References:
        | Orthogonalizing convolutional layers with the Cayley transform (Trockman and Kolter, 2021)
        | https://arxiv.org/abs/2104.07167

    Example:
        >>> layer = CayleyConv2d(2, 2, 3, (5, 4), bias=False)
        >>> x = torch.randn(1, 2, 5, 4)
        >>> bool((layer(x).norm() / x.norm() - 1).abs() < 1e-5)
        True
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        input_size: tuple[int, int],
        *,
        bias: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        """Draw the free kernel, of variance ``1 / (taps * in_channels)``."""
        super().__init__()
        support = (kernel_size, kernel_size) if isinstance(kernel_size, int) else tuple(kernel_size)
        sizes = tuple(int(size) for size in input_size)
        if len(sizes) != 2 or len(support) != 2 or not all(1 <= k <= n for k, n in zip(support, sizes, strict=True)):
            raise InvalidInput(
                f"kernel_size={kernel_size} does not fit on a torus of input_size={input_size}; "
                "give (H, W) and a kernel of at most that size."
            )
        drawn = torch.Generator().manual_seed(0) if generator is None else generator
        free = torch.zeros(out_channels, in_channels, *sizes)
        normal = torch.randn(out_channels, in_channels, *support, generator=drawn, device=drawn.device)
        free[..., : support[0], : support[1]] = normal / math.sqrt(math.prod(support) * in_channels)
        self.sizes = sizes
        self.weight = nn.Parameter(free)
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        label = f"weight of CayleyConv2d({in_channels}, {out_channels}, {kernel_size}, {input_size})"
        register(self, "weight", CayleyKernel(sizes, support, 1, torus_norm, label))

    def forward(self, x: Tensor) -> Tensor:
        """Correlate with the kernel around the torus.

        Raises:
            InvalidInput: If the input has another size.
        """
        if x.shape[-2:] != self.sizes:
            raise InvalidInput(f"the layer is orthogonal at input_size={self.sizes}; got an input {tuple(x.shape)}.")
        wide = torch.promote_types(x.dtype, torch.float32)
        symbol = torch.fft.rfft2(self.weight.to(wide)).conj()
        spectrum = torch.fft.rfft2(x.to(wide))
        # One matrix product for each frequency.
        image = symbol.flatten(2).permute(2, 0, 1) @ spectrum.flatten(2).permute(2, 1, 0)
        image = image.permute(2, 1, 0).unflatten(2, spectrum.shape[2:])
        y = torch.fft.irfft2(image, s=self.sizes).to(x.dtype)
        return y if self.bias is None else y + self.bias[:, None, None]

    def plain(self) -> nn.Conv2d:
        """A plain convolution with the present weight, proved in evaluation, that computes the same at this size.

        Its kernel is as large as the input, so it is slower; it can be certified and exported.
        """
        weight, (height, width) = self.weight.detach(), self.sizes
        outs, ins = weight.shape[:2]
        layer = nn.Conv2d(
            ins, outs, (height, width), padding="same", padding_mode="circular", bias=self.bias is not None
        )
        layer = layer.to(weight)
        with torch.no_grad():
            # "same" starts (size - 1) // 2 positions before the output.
            layer.weight.copy_(weight.roll(((height - 1) // 2, (width - 1) // 2), dims=(2, 3)))
            if layer.bias is not None and self.bias is not None:
                layer.bias.copy_(self.bias)
        return layer

    def extra_repr(self) -> str:
        """Print the size."""
        return f"input_size={self.sizes}"


def torus_norm(weight: Tensor) -> float:
    """A proven bound of the norm of the circular correlation with a float64 kernel, on the torus of its own size."""
    sizes = tuple(weight.shape[2:])
    pads = tuple((0, size - 1) for size in sizes)
    ones = (1,) * len(sizes)
    return opnorm(Conv(weight, (weight.shape[1], *sizes), sizes, ones, pads, ones, 1, "circular")).value
