"""Iterations towards the polar factor, from below: all singular values at most 1 whatever the steps. Floor 3."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lipcert.errors import InvalidInput
from lipcert.parametrizations.stiefel import peak

# At l = 0.3 the cubic takes 1 to 0.62 with slope -2.6: rounding errors there grow by 4 in one step, and shrink by as
# much in the next. At l = 0.001 they would grow by 2000.
_STABLE = 0.3


@dataclass(frozen=True)
class Bjorck:
    r"""Steps :math:`W \leftarrow W \sum_{i \le p} \binom{2i}{i} 4^{-i} (I - W'W)^i` towards the polar factor.

    The sum is cut from the series of :math:`(W'W)^{-1/2}`, whose terms are positive, so singular values in [0, 1]
    rise and never pass 1. They start there: the free matrix is divided first by :math:`|W'W|_F^{1/2} \ge |W|_2`.
    A singular value s below 1 grows by up to the sum of the coefficients (1.5 for p = 1) a step while it is small,
    and near 1 its error e becomes O(e^(p+1)). The gradient is that of the whole computation.

    Attributes:
        steps: How many.
        order: p, the degree of the sum.

    References:
        | An iterative algorithm for computing the best estimate of an orthogonal matrix (Bjorck and Bowie, 1971)
        | Sorting out Lipschitz function approximation (Anil, Lucas and Grosse, 2019)
    """

    steps: int = 12
    order: int = 1

    def __post_init__(self) -> None:
        """Refuse steps that do nothing."""
        if self.steps < 1 or self.order < 1:
            raise InvalidInput(f"steps={self.steps}, order={self.order}: both must be at least 1.")

    def __call__(self, free: Tensor, anchor: Tensor) -> Tensor:
        """Scale, then step."""
        W, gram = _scaled(free)
        eye = torch.eye(gram.shape[0], dtype=W.dtype, device=W.device)
        coefficients = [math.comb(2 * i, i) / 4.0**i for i in range(self.order + 1)]
        for _ in range(self.steps):
            E = eye - gram
            total = coefficients[-1] * E + coefficients[-2] * eye
            for coefficient in reversed(coefficients[:-2]):
                total = total @ E + coefficient * eye
            W = W @ total
            gram = W.mT @ W
        return W

    def invert(self, frame: Tensor) -> tuple[Tensor, Tensor]:
        """Orthonormal columns are their own polar factor."""
        return frame, frame.new_ones(frame.shape[1])


@dataclass(frozen=True)
class NewtonSchulz:
    r"""Cubic steps :math:`W \leftarrow W (a I - b W'W)` towards the polar factor, tuned to a range [l, 1].

    Of all cubics that map [0, 1] into itself, the one with equal least values at l and 1 lifts the range most:

    .. math:: b = \tfrac{3 \sqrt 3}{2} (1 + l + l^2)^{-3/2}, \quad a = b (1 + l + l^2), \quad l \leftarrow a l - b l^3.

    Steps are tuned to at least l = 0.3, as a step that throws 1 far down loses digits there. Small singular values
    grow by 2.2 a step instead of 1.5, and none passes 1. The free matrix is divided first by
    :math:`|W'W|_F^{1/2} \ge |W|_2`; singular values that are then at least ``smallest`` end in ``[reached, 1]``,
    smaller ones below. The gradient is that of the whole computation.

    Attributes:
        steps: How many.
        smallest: l at the start.

    References:
        | A stable scaling of Newton-Schulz for improving the sign function computation of a Hermitian matrix (Chen and
          Chow, 2014)
        | The Polar Express: Optimal Matrix Sign Methods (Amsel, Persson, Musco and Gower, 2025)

    Example:
        >>> NewtonSchulz(steps=12, smallest=1e-3).reached > 1 - 1e-6
        True
    """

    steps: int = 12
    smallest: float = 1e-3

    def __post_init__(self) -> None:
        """Refuse steps that do nothing."""
        if self.steps < 1 or not 0.0 < self.smallest < 1.0:
            raise InvalidInput(f"steps={self.steps} must be at least 1, smallest={self.smallest} between 0 and 1.")

    @cached_property
    def cubics(self) -> list[tuple[float, float]]:
        """``(a, b)`` of every step."""
        return [step[:2] for step in self._schedule()]

    @cached_property
    def reached(self) -> float:
        """Where singular values that start in ``[smallest, 1]`` are at least, rounding apart."""
        return self._schedule()[-1][2]

    def _schedule(self) -> list[tuple[float, float, float]]:
        low, steps = self.smallest, []
        for _ in range(self.steps):
            tuned = max(low, _STABLE)
            s = 1.0 + tuned + tuned * tuned
            b = 1.5 * math.sqrt(3.0) * s**-1.5
            low = min(1.0, low * (b * s - b * low * low))
            steps.append((b * s, b, low))
        return steps

    def __call__(self, free: Tensor, anchor: Tensor) -> Tensor:
        """Scale, then step."""
        W, gram = _scaled(free)
        for index, (a, b) in enumerate(self.cubics):
            gram = W.mT @ W if index else gram
            W = a * W - b * (W @ gram)
        return W

    def invert(self, frame: Tensor) -> tuple[Tensor, Tensor]:
        """Orthonormal columns are their own polar factor."""
        return frame, frame.new_ones(frame.shape[1])


def _scaled(free: Tensor) -> tuple[Tensor, Tensor]:
    """W divided by the Schatten-4 bound of its norm, and its Gram matrix; zero stays zero."""
    W = free.to(torch.promote_types(free.dtype, torch.float32))
    W = W / peak(W)
    gram = W.mT @ W
    fourth = gram.square().sum()
    square = torch.where(fourth > 0, fourth, torch.ones_like(fourth)).sqrt()
    return W * torch.rsqrt(square), gram / square
