"""Residual blocks that can be inverted, with a bound on how far the inverse is off.

The branch's own constant is taken as given. It is the caller's to prove, by `lipcert.certify` or a layer of
`lipcert.parametrizations`; nothing here estimates it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lipcert.errors import InvalidInput, LipschitzViolation, NotFinite


@dataclass(frozen=True)
class Inverse:
    """An approximate inverse and how far it can be off, per sample.

    Attributes:
        x: The last iterate, ``(N, ...)``.
        steps: Evaluations of the branch that led to it.
        a_priori: ``(N,)``, ``bound**steps / (1 - bound) * |x_1 - x_0|``, for exact arithmetic.
        a_posteriori: ``(N,)``, ``|x + g(x) - y| / (1 - bound)``; holds for this x however it was computed, up to the
            rounding of the one residual in it.
    """

    x: Tensor
    steps: int
    a_priori: Tensor
    a_posteriori: Tensor


class InvertibleResidual(nn.Module):
    r"""``y = x + g(x)`` with :math:`\mathrm{Lip}(g) \le L < 1` in l2: invertible, and bi-Lipschitz.

    :math:`(1 - L) |x - x'| \le |y - y'| \le (1 + L) |x - x'|`, so the inverse is :math:`1 / (1 - L)` Lipschitz.

    Args:
        branch: g, which keeps the shape.
        bound: L, a proven l2 Lipschitz constant of g, in [0, 1).

    Raises:
        InvalidInput: If ``bound`` is not in [0, 1): then neither existence nor convergence is guaranteed.

    References:
        | Invertible residual networks (Behrmann et al., 2019), https://arxiv.org/abs/1811.00995

    Example:
        >>> branch = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(branch.weight, 0.5)
        >>> block = InvertibleResidual(branch, 0.5)
        >>> inverse = block.inverse(block(torch.tensor([[2.0]])), tolerance=1e-3)
        >>> inverse.steps, abs(inverse.x.item() - 2.0) <= 1e-3
        (12, True)
    """

    def __init__(self, branch: nn.Module, bound: float) -> None:
        """Keep the branch and its constant."""
        super().__init__()
        self.bound = _contraction(bound)
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x + g(x)``."""
        image = self.branch(x)
        _require_same_shape(self, x, image)
        return x + image

    def inverse(self, y: Tensor, *, tolerance: float | None = None, steps: int | None = None) -> Inverse:
        r"""Solve ``x + g(x) = y`` by the fixed-point iteration ``x <- y - g(x)`` from ``x = y``.

        The number of steps is known before the loop starts (`steps_needed`, from the first step), so it always ends.
        Rounding puts a floor under the error: if evaluating ``y - g(x)`` is off by at most d, no iterate is
        guaranteed to come closer than :math:`d / (1 - L)`, whatever the tolerance; ``a_posteriori`` shows it.

        Args:
            y: Batch ``(N, ...)``.
            tolerance: Wanted a-priori l2 error of every sample, positive.
            steps: Number of steps instead, at least 1. Exactly one of the two must be given.

        Raises:
            InvalidInput: If not exactly one of the two is given, or it is out of range.
            NotFinite: If y, the branch or an iterate is NaN or infinite.
            LipschitzViolation: If the iterates contract more slowly than ``bound`` allows, beyond rounding.

        References:
            | Sur les opérations dans les ensembles abstraits (Banach, 1922), theorem 6
        """
        if (tolerance is None) == (steps is None):
            raise InvalidInput("give exactly one of tolerance and steps.")
        image = self.branch(y)
        _require_same_shape(self, y, image)
        x = y - image
        first = _lengths(x - y)
        _require_finite(first)
        if steps is None:
            assert tolerance is not None
            steps = steps_needed(self.bound, float(first.max()) if first.numel() else 0.0, tolerance)
        elif steps < 1:
            raise InvalidInput(f"steps={steps} starts nothing; it must be at least 1.")
        for _ in range(steps - 1):
            x = y - self.branch(x)
        residual = _lengths(x + self.branch(x) - y)
        _require_finite(residual)
        contracted = first * self.bound**steps
        # Far above rounding, far below the residual of a branch that does not contract.
        floor = torch.finfo(y.dtype).eps ** 0.5 * (_lengths(y) + _lengths(x))
        if bool((residual > contracted * 1.01 + floor).any()):
            raise LipschitzViolation(
                f"after {steps} steps a residual of {float(residual.max()):.3g} is left where a branch with constant "
                f"{self.bound} leaves at most {float(contracted.max()):.3g}.\n"
                f"  The branch is not {self.bound}-Lipschitz, so the inverse may not exist; prove its constant first."
            )
        return Inverse(x, steps, contracted / (1.0 - self.bound), residual / (1.0 - self.bound))

    def extra_repr(self) -> str:
        """Print the constant."""
        return f"bound={self.bound}"


def steps_needed(bound: float, first: float, tolerance: float) -> int:
    r"""The least k with :math:`L^k / (1 - L) \, d \le` tolerance: how often a contraction must be applied.

    Args:
        bound: L in [0, 1).
        first: d, the length of the first step :math:`|x_1 - x_0|`, finite.
        tolerance: Positive.

    Returns:
        At least 1.

    Raises:
        InvalidInput: If an argument is out of range.

    Example:
        >>> steps_needed(0.5, 1.0, 2.0**-9), steps_needed(0.0, 5.0, 1e-9)
        (10, 1)
    """
    bound = _contraction(bound)
    if not (0.0 <= first < math.inf and 0.0 < tolerance < math.inf):
        raise InvalidInput(f"needs a finite first step and a positive tolerance, got {first!r} and {tolerance!r}.")
    if bound == 0.0 or first * bound <= tolerance * (1.0 - bound):
        return 1
    ratio = (math.log(tolerance) + math.log1p(-bound) - math.log(first)) / math.log(bound)
    # The quotient of logarithms may fall on either side of an integer: settle it by the inequality itself.
    steps = max(1, math.ceil(ratio) - 1)
    while steps * math.log(bound) + math.log(first) > math.log(tolerance) + math.log1p(-bound) + 1e-12:
        steps += 1
    return steps


def _contraction(bound: float) -> float:
    if not 0.0 <= bound < 1.0:
        raise InvalidInput(
            f"bound={bound!r} is no contraction: x + g(x) is invertible by iteration only for Lip(g) in [0, 1). "
            f"Scale the branch, for example by spectral_norm(layer, bound=0.9)."
        )
    return float(bound)


def _require_same_shape(module: nn.Module, x: Tensor, image: Tensor) -> None:
    if image.shape != x.shape:
        raise InvalidInput(
            f"the branch of {type(module).__name__} maps {tuple(x.shape)} to {tuple(image.shape)}; adding them would "
            f"broadcast and void the claim. The branch must keep the shape."
        )


def _require_finite(lengths: Tensor) -> None:
    if not bool(torch.isfinite(lengths).all()):
        raise NotFinite("the inverse met NaN or infinity, so no iterate means anything; check y and the branch.")


def _lengths(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x.detach().flatten(1), dim=1)
