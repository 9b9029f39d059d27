r"""From the mean over a sample to that of the distribution, for functions of a known constant. Floor 5.

A function of constant K has a range of at most K D on a set of diameter D, so Hoeffding's inequality and the empirical
Bernstein bound hold for it. Both need samples that the function does not depend on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from lipcert.errors import InvalidInput
from lipcert.evaluation import Values
from lipcert.transport.values import Between

# Above every rounding of logarithms, roots and their few products and sums.
_MARGIN = 1.0 + 2.0**-40


@dataclass(frozen=True)
class Interval:
    r"""Where :math:`(E_P f - E_Q f) / K` is, with the stated confidence, if the assumption holds.

    Attributes:
        low: Lower end.
        high: Upper end. It bounds what this critic reports, not the distance: another critic may report more.
        assumption: What must be true of samples and distributions.
    """

    low: float
    high: float
    assumption: str

    @property
    def least(self) -> float:
        """The Wasserstein-1 distance of the two distributions is at least this, with the same confidence."""
        return max(0.0, self.low, -self.high)


def bounded_range(
    dual: Between, at_x: Values, at_y: Values, constant: float, diameter: float, delta: float
) -> Interval:
    r"""By Hoeffding and by empirical Bernstein (Maurer and Pontil, theorem 4), whichever is narrower, for both means.

    Each of the eight one-sided statements gets an eighth of delta, so that all of them hold together with probability
    at least 1 - delta, whether or not the two samples depend on each other.
    """
    span = constant * diameter

    def width(at: Values) -> float:
        n, log = len(at.at), math.log(8.0 / delta)
        hoeffding = span * math.sqrt(log / (2.0 * n))
        if n < 2:
            return hoeffding
        # Moving every value by its rounding error moves the standard deviation by at most twice the largest; its own
        # rounding is relative to the values.
        deviation = float(at.at.std()) * _MARGIN + 2.0 * float(at.error.max()) + 2.0**-40 * float(at.at.abs().max())
        log2 = math.log(16.0 / delta)  # theorem 4 at delta / 8 has ln(2 / (delta / 8))
        bernstein = deviation * math.sqrt(2.0 * log2 / n) + span * 7.0 * log2 / (3.0 * (n - 1))
        return min(hoeffding, bernstein)

    samples = "xs are independent draws of P and ys of Q, drawn after the critic was trained; "
    supports = f"the supports of P and Q have diameters of at most {diameter!r} in the input norm"
    return _around(dual, width(at_x) + width(at_y), constant, samples + supports)


def sub_gaussian(dual: Between, n: int, m: int, constant: float, sigma: float, delta: float) -> Interval:
    r"""If 1-Lipschitz functions have sub-Gaussian deviations: each of four one-sided statements gets delta / 4."""
    width = constant * sigma * (math.sqrt(2.0 * math.log(4.0 / delta) / n) + math.sqrt(2.0 * math.log(4.0 / delta) / m))
    samples = "xs are independent draws of P and ys of Q, drawn after the critic was trained; "
    tails = f"E exp(t (g - E g)) <= exp(t^2 {sigma!r}^2 / 2) under P and Q for every 1-Lipschitz g and real t"
    return _around(dual, width, constant, samples + tails)


def _around(dual: Between, width: float, constant: float, assumption: str) -> Interval:
    wide = width * _MARGIN
    low, high = (dual.low - wide) / constant, (dual.high + wide) / constant
    slack = (abs(low) + abs(high)) * 2.0**-40
    return Interval(low - slack, high + slack, assumption)


def require_confidence(confidence: float, **scales: float | None) -> None:
    """Refuse a confidence outside (0, 1), and scales that are not positive and finite.

    Raises:
        InvalidInput: If one of them is.
    """
    if not 0.0 < confidence < 1.0:
        raise InvalidInput(f"a confidence is between 0 and 1, got {confidence!r}; 0.95 is customary.")
    for name, scale in scales.items():
        if scale is not None and not 0.0 < scale < math.inf:
            raise InvalidInput(f"{name} is a positive finite number or None, got {scale!r}.")


def require_within(xs: Tensor, ys: Tensor, diameter: float, lengths: Callable[[Tensor], Tensor]) -> None:
    """Refuse a diameter that the samples themselves contradict.

    Raises:
        InvalidInput: If a sample has a point further from its first than the diameter.
    """
    for name, sample in (("xs", xs), ("ys", ys)):
        seen = float(lengths((sample.double() - sample[:1].double()).flatten(1)).max())
        if seen > diameter * _MARGIN:
            raise InvalidInput(
                f"two points of {name} are {seen!r} apart, more than the diameter {diameter!r} that is assumed of its "
                "distribution; state one that holds for all that can be drawn (pixels in [0, 1]: the root of their "
                "number)."
            )
