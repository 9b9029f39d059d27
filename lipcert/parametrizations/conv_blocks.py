r"""Kernels of orthogonal convolutions, composed of blocks with two taps. Floor 3.

For a symmetric projector P the two taps :math:`P` and :math:`I - P` make an orthogonal convolution: its symbol
:math:`P + e^{i\theta} (I - P)` is unitary. So is a composition of such blocks along any dimensions, and a matrix with
orthonormal rows or columns that acts on patches of the stride's size composed with them.

References:
    | Preventing gradient attenuation in Lipschitz constrained convolutional networks (Li et al., 2019)
    | https://arxiv.org/abs/1911.00937
    | An adaptive orthogonal convolution scheme for efficient and flexible CNN architectures (Boissin et al., 2025)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lipcert.parametrizations.conv_cayley import frame, span, unframe, unspan


@dataclass(frozen=True)
class Plan:
    """How a kernel is composed.

    Attributes:
        groups: Number of channel groups.
        out: Output channels of a group.
        into: Input channels of a group.
        kernel: Taps per dimension.
        patch: Taps per dimension of the matrix that acts on patches: the stride, counted in taps.
    """

    groups: int
    out: int
    into: int
    kernel: tuple[int, ...]
    patch: tuple[int, ...]

    @property
    def turned(self) -> bool:
        """Whether blocks act on the outputs, the larger side; the transposed kernel is composed then."""
        return math.prod(self.patch) == 1 and self.out > self.into

    @property
    def rows(self) -> int:
        """The side on which no block acts."""
        return self.into if self.turned else self.out

    @property
    def channels(self) -> int:
        """The side on which blocks act."""
        return self.out if self.turned else self.into

    @property
    def rank(self) -> int:
        """The rank of a block's projector: half of the channels."""
        return self.channels // 2

    @property
    def steps(self) -> tuple[tuple[int, bool], ...]:
        """The blocks: the dimension, and whether the projector moves its tap instead of its complement.

        Dimensions take turns, and so do the roles: half of an odd number of channels moves a little less often.
        """
        counts = [k - t for k, t in zip(self.kernel, self.patch, strict=True)]
        return tuple(
            (d, turn % 2 == 1) for turn in range(max(counts)) for d, count in enumerate(counts) if turn < count
        )

    @property
    def matrix(self) -> tuple[int, int]:
        """The shape, tall side first, of the matrix with orthonormal columns."""
        low, high = sorted((self.rows, self.channels * math.prod(self.patch)))
        return high, low

    @property
    def numbers(self) -> tuple[int, int]:
        """How many free numbers the matrix and the projectors of one group take."""
        return math.prod(self.matrix), len(self.steps) * (self.channels - self.rank) * self.rank


def compose(plan: Plan, free: Tensor, signs: Tensor) -> Tensor:
    r"""The kernel of an orthogonal convolution from free numbers; differentiable and pure.

    Args:
        plan: The shapes.
        free: ``(groups, sum(plan.numbers))``.
        signs: ``(groups, 1, plan.matrix[1])``, plus or minus one.

    Returns:
        ``(groups * out, into, *kernel)``.
    """
    first, blocks = torch.split(free, list(plan.numbers), dim=1)
    matrix = frame(first.unflatten(1, plan.matrix)) * signs
    if plan.rows < plan.channels * math.prod(plan.patch):
        matrix = matrix.mT
    state = matrix.reshape(plan.groups, plan.rows, *plan.patch, plan.channels).movedim(1, -2)
    shape = (len(plan.steps), plan.channels - plan.rank, plan.rank)
    bases = span(blocks.reshape(plan.groups, *shape))
    projectors = bases @ bases.mT
    for i, (dim, moves) in enumerate(plan.steps):
        image = _times(state, projectors[:, i])
        stay, move = (state - image, image) if moves else (image, state - image)
        state = F.pad(stay, _pads(state, dim, 0, 1)) + F.pad(move, _pads(state, dim, 1, 0))
    kernel = state.movedim((-2, -1), (2, 1) if plan.turned else (1, 2))
    return kernel.reshape(plan.groups * plan.out, plan.into, *plan.kernel)


def decompose(plan: Plan, weight: Tensor) -> tuple[Tensor, Tensor]:
    r"""Free numbers and signs whose `compose` is the weight, if it can be written so, and else one near it.

    Block after block is split off on the right: multiplication by the adjoint :math:`P + e^{-i\theta} (I - P)` leaves
    one tap less if P keeps the first taps' rows, :math:`K_0 = K_0 P`, and kills the last ones',
    :math:`K_l P = 0`. The P of given rank that loses least has the top eigenvectors of
    :math:`K_0^T K_0 - K_l^T K_l`. What is left is a matrix; its polar factor is the nearest orthonormal one.

    Args:
        plan: The shapes.
        weight: ``(groups * out, into, *kernel)``, finite.
    """
    peak = weight.abs().amax() if weight.numel() else weight.new_ones(())
    unit = weight / torch.where(peak > 0, peak, torch.ones_like(peak))
    grouped = unit.reshape(plan.groups, plan.out, plan.into, *plan.kernel)
    state = grouped.movedim((2, 1) if plan.turned else (1, 2), (-2, -1))
    found = []
    for dim, moves in reversed(plan.steps):
        length = state.shape[1 + dim]
        low, high = (state.select(1 + dim, j).reshape(plan.groups, -1, plan.channels) for j in (0, length - 1))
        gain = low.mT @ low - high.mT @ high
        basis = torch.linalg.eigh(-gain if moves else gain).eigenvectors[..., plan.channels - plan.rank :]
        image = _times(state, basis @ basis.mT)
        stay, move = (state - image, image) if moves else (image, state - image)
        state = stay.narrow(1 + dim, 0, length - 1) + move.narrow(1 + dim, 1, length - 1)
        found.append(unspan(basis).reshape(plan.groups, -1))
    matrix = state.movedim(-2, 1).reshape(plan.groups, plan.rows, -1)
    if plan.rows < matrix.shape[-1]:
        matrix = matrix.mT
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    free, signs = unframe(left @ right)
    return torch.cat([free.reshape(plan.groups, -1), *reversed(found)], dim=1), signs


def _times(state: Tensor, matrix: Tensor) -> Tensor:
    """Multiply every tap of every group on the right."""
    return (state.reshape(len(state), -1, state.shape[-1]) @ matrix).reshape(state.shape)


def _pads(state: Tensor, dim: int, before: int, after: int) -> list[int]:
    return [0, 0] * (state.ndim - 2 - dim) + [before, after]
