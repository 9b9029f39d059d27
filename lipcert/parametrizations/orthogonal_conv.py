r"""Convolutions that are orthogonal as operators, not as reshaped kernels. Floor 3."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from lipcert.errors import InvalidInput, UnsupportedOperation
from lipcert.kernel.dense import norm2_upper
from lipcert.kernel.rounding import Array, add_up, gamma, mul_up, sqrt_up, sum_of_squares_up
from lipcert.linear import Conv
from lipcert.lowering import require_finite
from lipcert.opnorm import opnorm_any_size
from lipcert.parametrizations.claim import Claim
from lipcert.parametrizations.conv_blocks import Plan, compose, decompose
from lipcert.parametrizations.conv_cayley import CayleyKernel, torus_norm
from lipcert.parametrizations.registration import register, require_bare

_COVERED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# From here on a grid of frequencies may be tighter than a sum over lags; only kernels in coarse dtypes get here.
_COARSE = 1.0 + 2.0**-10


@dataclass(frozen=True)
class BlockOrthogonal:
    """Compose blocks of two taps, each a symmetric projector and its complement (`conv_blocks`): any input size."""

    def claim(self, module: _ConvNd, label: str, input_size: tuple[int, ...] | None) -> Claim:
        """The parametrization for a layer."""
        _require_orthogonal_padding(module, input_size)
        weight = module.weight
        kernel = tuple(weight.shape[2:])
        common = [math.gcd(s, d) for s, d in zip(module.stride, module.dilation, strict=True)]
        steps = tuple(s // g for s, g in zip(module.stride, common, strict=True))
        patch = tuple(min(k, s) for k, s in zip(kernel, steps, strict=True))
        plan = Plan(module.groups, weight.shape[0] // module.groups, weight.shape[1], kernel, patch)
        skips = patch != steps or max(common) > 1
        if skips and plan.out > plan.into * math.prod(patch):
            raise InvalidInput(
                f"{module} skips inputs and has more outputs ({plan.out} a group) than it reads numbers at a position "
                f"({plan.into * math.prod(patch)}), so neither its rows nor its columns can be orthonormal. "
                "Use a kernel at least as large as the stride, without dilation, or spectral_norm."
            )
        return BlockKernel(plan, steps, label)


@dataclass(frozen=True)
class FourierCayley:
    """Cayley-transform the symbol at every frequency of one torus; the kernel must be as large as the torus.

    `CayleyConv2d` applies such a kernel by Fourier transforms, which is faster than a plain convolution can.
    """

    def claim(self, module: _ConvNd, label: str, input_size: tuple[int, ...] | None) -> Claim:
        """The parametrization for a layer."""
        kernel = tuple(module.weight.shape[2:])
        ones = (1,) * len(kernel)
        around = module.padding_mode == "circular" and [sum(pad) for pad in _pads(module)] == [k - 1 for k in kernel]
        plain = around and module.stride == ones and module.dilation == ones and module.groups == 1
        if not plain or input_size is None or tuple(input_size) != kernel:
            raise InvalidInput(
                f"FourierCayley needs input_size, a kernel of that size and padding='same', padding_mode='circular' "
                f"without stride, dilation or groups; got {module} and input_size={input_size}. "
                "BlockOrthogonal() has small kernels and no fixed size; CayleyConv2d applies large ones quickly."
            )
        return CayleyKernel(kernel, kernel, 1, torus_norm, label)


def orthogonal_convolution(
    module: nn.Module,
    name: str = "weight",
    *,
    map: BlockOrthogonal | FourierCayley = BlockOrthogonal(),
    input_size: tuple[int, ...] | None = None,
    generator: torch.Generator | None = None,
) -> nn.Module:
    r"""Make a convolution orthogonal as an operator A: :math:`|Ax - Ay|_2 = |x - y|_2`, or the same for the transpose.

    With padding that wraps around (``padding_mode="circular"``, ``padding="same"`` or the amount that keeps the size)
    all singular values of A are 1: :math:`A A^T = I` if it has at most as many outputs as inputs, else
    :math:`A^T A = I`. With zero padding A is a part of such an operator: none is above 1. The layer stays the plain
    convolution with an explicit kernel.

    *In training* that holds up to the rounding of the kernel, composed in float64, to its dtype: in float32 singular
    values are within 1e-6 of 1. *In evaluation*, and after `torch.nn.utils.parametrize.remove_parametrizations`, the
    norm of the stored kernel is proved to be at most 1, for every input size (or at ``input_size``); see
    `lattice_norm`.

    The present weight is taken to the orthogonal kernel that splitting off block after block finds: one that is
    orthogonal and composed of such blocks stays as it is.

    Args:
        module: An `nn.Conv1d`, `nn.Conv2d`, `nn.Conv3d` or the transposed ones, changed in place. Any kernel, stride,
            dilation, groups and channels, but a layer that skips inputs cannot have more outputs than it reads.
        name: The parameter; only ``"weight"`` acts as an operator.
        map: How the kernel is made.
        input_size: Spatial input size, for `FourierCayley` and for circular padding with a stride, which is
            orthogonal only at sizes that the stride divides.
        generator: If given, start from a kernel of normal random numbers instead of the present weight.

    Returns:
        The module, with ``name`` registered as a parametrization.

    Raises:
        UnsupportedOperation: If the class of the module is not covered.
        InvalidInput: If the layer cannot be orthogonal: reflect and replicate padding repeat inputs, which can raise
            the norm by :math:`\sqrt{3}` a dimension and more.
        NotFinite: If the weight is NaN or infinite.

    References:
        | Preventing gradient attenuation in Lipschitz constrained convolutional networks (Li et al., 2019)
        | An adaptive orthogonal convolution scheme for efficient and flexible CNN architectures (Boissin et al., 2025)
        | Orthogonalizing convolutional layers with the Cayley transform (Trockman and Kolter, 2021)

    Example:
        >>> layer = nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular", bias=False)
        >>> layer = orthogonal_convolution(layer)
        >>> x = torch.randn(1, 2, 6, 5)
        >>> bool((layer(x).norm() / x.norm() - 1).abs() < 1e-5)
        True
    """
    layer = _covered(module)
    if name != "weight":
        raise InvalidInput(f"`{name}` of {module} is not applied as an operator; make `weight` orthogonal.")
    weight = require_bare(module, name)
    claim = map.claim(layer, f"{name} of {module}", input_size)
    if generator is not None:
        drawn = torch.randn(weight.shape, generator=generator, dtype=torch.float64, device=generator.device)
        with torch.no_grad():
            weight.copy_(drawn / math.sqrt(math.prod(weight.shape[1:])))
    return register(module, name, claim)


class BlockKernel(Claim):
    """The parametrization that makes a kernel of orthogonal blocks from free numbers ``(groups, count)``."""

    signs: Tensor

    def __init__(self, plan: Plan, steps: tuple[int, ...], label: str) -> None:
        """Claim norm 1; ``steps`` is the stride counted in taps."""
        super().__init__(1.0, label)
        self.plan = plan
        self.steps = steps
        self.register_buffer("signs", torch.ones(plan.groups, 1, plan.matrix[1], dtype=torch.int8))

    def weight(self, original: Tensor) -> Tensor:
        """The kernel, composed in float64."""
        free = original.double()
        return compose(self.plan, free, self.signs.to(free)).to(original.dtype)

    def prove(self, weight: Tensor) -> float:
        """A bound for every input size with zero padding, and with circular padding where the stride divides it."""
        groups, steps = self.plan.groups, self.steps
        bound = lattice_norm(weight, groups, steps)
        if not _COARSE < bound < math.inf:
            return bound
        ones = (1,) * len(steps)
        conv = Conv(
            weight, (weight.shape[1] * groups, *ones), ones, steps, ((0, 0),) * len(steps), ones, groups, "zeros"
        )
        return min(bound, opnorm_any_size(conv).value)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The free numbers of a weight; see `decompose`."""
        if not weight.is_meta:
            require_finite(self.label, weight)
        self.forget()
        free, signs = decompose(self.plan, weight.detach().double())
        self.signs = signs.to(torch.int8)
        return free.to(weight.dtype)


def lattice_norm(weight: Tensor, groups: int, steps: tuple[int, ...]) -> float:
    r"""A proven bound of a convolution's l2 norm for all input sizes, tight where the kernel is nearly orthogonal.

    Write tap :math:`j = s q + a` with :math:`0 \le a < s` and collect the taps of one q in
    :math:`K_q = (W_{sq}, \dots, W_{sq + s - 1})`, of shape ``(out, in * s)``. Numbering input :math:`s i + d a` as
    channel group a at position i makes the convolution :math:`A = \sum_q K_q \otimes T^q` with one shift T, of the
    lattice or of a torus whose size the stride divides. T is orthogonal, so

    .. math:: \lVert A \rVert^2 = \lVert A A^T \rVert \le \sum_m \lVert C_m \rVert_2, \qquad
              C_m = \sum_q K_{q + m} K_q^T,

    and the same with :math:`C_m = \sum_q K_{q+m}^T K_q` for :math:`A^T A`. If A is orthogonal then :math:`C_0 = I`
    and the rest is zero. In several dimensions q, a and m are tuples. Zero padding, cropping and transposition only
    restrict A or transpose it. The lags m and -m share a norm.

    *Rounding.* A computed entry of :math:`C_m` is off by at most :math:`\gamma_N` times the same sum of magnitudes,
    N products long, so the matrix by :math:`\gamma_N |K_{\cdot + m}|_F |K_\cdot|_F` over the taps that take part,
    whatever the order of summation, and by half the smallest number for each product that underflows.

    Args:
        weight: ``(out, in / groups, *kernel)``, float64.
        groups: Number of channel groups; the largest norm counts.
        steps: The stride counted in taps: stride / gcd(stride, dilation), per dimension.

    Returns:
        The bound, infinity where the sums overflow.

    Example:
        >>> shift = torch.tensor([[[0.0, 0.0, 1.0]]], dtype=torch.float64)
        >>> 1.0 <= lattice_norm(shift, 1, (1,)) < 1 + 1e-13
        True
    """
    values = weight.detach().cpu().numpy()
    if not np.all(np.isfinite(values)):
        return math.inf
    with np.errstate(over="ignore", invalid="ignore"):
        return max(_group_norm(_by_position(group, steps)) for group in np.split(values, groups))


def _group_norm(taps: Array) -> float:
    """The bound for taps ``(rows, columns, *positions)`` with unit steps."""
    if taps.shape[0] > taps.shape[1]:
        taps = taps.swapaxes(0, 1)
    total = 0.0
    spans = taps.shape[2:]
    for lag in itertools.product(*(range(1 - span, span) for span in spans)):
        if lag < (0,) * len(lag):
            continue
        ahead = taps[(..., *(slice(max(m, 0), span + min(m, 0)) for m, span in zip(lag, spans, strict=True)))]
        behind = taps[(..., *(slice(max(-m, 0), span - max(m, 0)) for m, span in zip(lag, spans, strict=True)))]
        first, second = (part.reshape(len(taps), -1) for part in (ahead, behind))
        correlation = first @ second.T
        if not np.all(np.isfinite(correlation)):
            return math.inf
        terms = first.shape[1]
        sizes = mul_up(sqrt_up(sum_of_squares_up(first, (0, 1))), sqrt_up(sum_of_squares_up(second, (0, 1))))
        rounding = add_up(mul_up(gamma(terms), sizes), len(taps) * terms * 2.0**-1074)
        bound = add_up(norm2_upper(correlation), rounding)
        total = add_up(total, bound if not any(lag) else 2.0 * bound)
    return float(sqrt_up(total))


def _by_position(weight: Array, steps: tuple[int, ...]) -> Array:
    """Collect taps ``s q + a`` of one q into channels: ``(out, in, *kernel)`` gives ``(out, in * s, *positions)``."""
    counts = [-(-k // s) for k, s in zip(weight.shape[2:], steps, strict=True)]
    spare = [(0, c * s - k) for c, s, k in zip(counts, steps, weight.shape[2:], strict=True)]
    split = np.pad(weight, [(0, 0), (0, 0), *spare]).reshape(
        *weight.shape[:2], *itertools.chain(*zip(counts, steps, strict=True))
    )
    inner = range(3, split.ndim, 2)
    outer = range(2, split.ndim, 2)
    return split.transpose(0, 1, *inner, *outer).reshape(weight.shape[0], -1, *counts)


def _covered(module: nn.Module) -> _ConvNd:
    """Refuse what applies its weight in another way than the convolutions of torch."""
    for base in _COVERED:
        kept = {"forward", "_conv_forward"} & vars(base).keys()
        if isinstance(module, base) and all(getattr(type(module), m) is getattr(base, m) for m in kept):
            return module
    covered = ", ".join(base.__name__ for base in _COVERED)
    raise UnsupportedOperation(
        f"orthogonal_convolution does not know the operator of `{type(module).__name__}`.\n"
        f"  It would have to guess what the weight does, so it refuses. Covered: {covered}."
    )


def _pads(module: _ConvNd) -> tuple[tuple[int, int], ...]:
    """``(before, after)`` per dimension, of a convolution that is not transposed."""
    amounts = iter(module._reversed_padding_repeated_twice)
    return tuple(zip(amounts, amounts, strict=True))[::-1]


def _require_orthogonal_padding(module: _ConvNd, input_size: tuple[int, ...] | None) -> None:
    if isinstance(module, _ConvTransposeNd) or module.padding_mode == "zeros":
        return
    pads, dims = _pads(module), len(module.kernel_size)
    if not any(map(sum, pads)):
        return
    if module.padding_mode != "circular":
        sides = [1 + (a > 0) + (b > 0) if module.padding_mode == "reflect" else 1 + a + b for a, b in pads]
        raise InvalidInput(
            f"{module} cannot be orthogonal: {module.padding_mode} padding repeats an input up to "
            f"{math.prod(sides)} times, so the norm can be up to {math.sqrt(math.prod(sides)):.3f}. Use padding_mode "
            "'circular' (orthogonal) or 'zeros' (norm at most 1), or spectral_norm, which scales for the repetition."
        )
    reach = [d * (k - 1) for k, d in zip(module.kernel_size, module.dilation, strict=True)]
    if any(sum(pad) > r for pad, r in zip(pads, reach, strict=True)):
        raise InvalidInput(
            f"{module} wraps around by {pads}, more than the kernel spans ({reach}), so outputs occur twice and the "
            "norm exceeds 1. Pad by at most that much in all; padding='same' does for stride 1."
        )
    if all(stride == 1 for stride in module.stride):
        return
    fits = input_size is not None and len(input_size) == dims
    if not fits or any(n % s for n, s in zip(input_size or (), module.stride, strict=True)):
        raise InvalidInput(
            f"{module} with circular padding is orthogonal only where the stride divides the input; got "
            f"input_size={input_size}. Give the size the layer sees, a multiple of {tuple(module.stride)}."
        )
