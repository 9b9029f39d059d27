"""Intervals of tensors, entry by entry, that may only be too wide. Floor 2."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.kernel.rounding import gamma
from lipcert.linear import LinearMap, apply, modulus, terms

SMALLEST = 2.0**-1000
"""Pays for underflow, wherever it is added."""

WIDER = 2.0**-32
"""Ranges that a certificate states are widened by this, relative to their size, so that others can prove them."""


@dataclass(frozen=True, eq=False)
class Range:
    """Numbers between ``low`` and ``high``, float64 tensors of one shape; an end may be infinite.

    Example:
        >>> Range(torch.tensor([-2.0]), torch.tensor([1.0])).magnitude.tolist()
        [2.0]
    """

    low: Tensor
    high: Tensor

    @property
    def bounded(self) -> bool:
        """Whether all ends are finite."""
        return bool(torch.isfinite(self.low).all() and torch.isfinite(self.high).all())

    @property
    def magnitude(self) -> Tensor:
        """The largest modulus."""
        return torch.maximum(self.low.abs(), self.high.abs())

    def within(self, other: Range) -> Range:
        """The numbers in both, which a value proved to be in each is."""
        return Range(torch.maximum(self.low, other.low), torch.minimum(self.high, other.high))

    def cleared(self) -> Range:
        """With an infinite end in the place of one that is not a number."""
        endless = {"posinf": torch.inf, "neginf": -torch.inf}
        return Range(self.low.nan_to_num(-torch.inf, **endless), self.high.nan_to_num(torch.inf, **endless))

    def moved(self, linear: LinearMap) -> Range:
        """The entries rearranged by a map that only selects and reshapes."""
        low, high = (apply(linear, end[None])[0] for end in (self.low, self.high))
        return Range(low, high)

    def stated(self) -> Range:
        """A little wider, as certificates state it."""
        room = WIDER * (self.high - self.low + self.magnitude) + SMALLEST
        return Range(self.low - room, self.high + room)


def unbounded(shape: tuple[int, ...]) -> Range:
    """All numbers."""
    end = torch.full(shape, torch.inf, dtype=torch.float64)
    return Range(-end, end)


def around(value: Tensor, relative: float, absolute: Tensor | float = 0.0) -> Range:
    """Computed values and how far they may be off, rounded outward."""
    error = (value.abs() * relative + absolute) * (1 + 2.0**-50) + SMALLEST
    return outward(value - error, value + error)


def outward(low: Tensor, high: Tensor) -> Range:
    """Ends that were each rounded once to nearest."""
    return Range(torch.nextafter(low, low.new_tensor(-torch.inf)), torch.nextafter(high, high.new_tensor(torch.inf)))


def hull(*ranges: Range) -> Range:
    """The smallest range that holds all of these."""
    low, high = ranges[0].low, ranges[0].high
    for other in ranges[1:]:
        low, high = torch.minimum(low, other.low), torch.maximum(high, other.high)
    return Range(low, high)


def added(*ranges: Range) -> Range:
    """The sums of numbers of each."""
    low, high = ranges[0].low, ranges[0].high
    for other in ranges[1:]:
        step = outward(low + other.low, high + other.high)
        low, high = step.low, step.high
    return Range(low, high)


def mapped(linear: LinearMap, bias: Tensor | None, x: Range) -> Range:
    r"""What ``A x + b`` can be: :math:`A c + b \pm |A| r` for numbers in :math:`c \pm r`.

    A computed sum of k products is off by at most :math:`\gamma_k` times the sum of their moduli (Higham 2002,
    section 3.1), in any order of summation. Of what is not bounded nothing is known afterwards.
    """
    count = terms(linear)
    if count == 0 and bias is None:
        return x.moved(linear)
    if not x.bounded:
        return unbounded(linear.out_shape)
    centre = 0.5 * (x.low + x.high)
    radius = torch.maximum(x.high - centre, centre - x.low) * (1 + 2.0**-50) + SMALLEST
    size = modulus(linear)
    y, sized, spread = (apply(part, t[None])[0] for part, t in ((linear, centre), (size, centre.abs()), (size, radius)))
    if bias is not None:
        y, sized = y + bias, sized + bias.abs()
    # Twice gamma: the sums of moduli are rounded themselves.
    error = spread + 2 * gamma(count + 2) * (sized + spread)
    return around(y, 2.0**-52, error).cleared()
