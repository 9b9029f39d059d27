"""A reported distance above the true one: then the critic's constant is larger than claimed. Floor 5."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from lipcert.errors import InvalidInput
from lipcert.kernel.rounding import round_down
from lipcert.transport.coupling import Transport
from lipcert.transport.values import Between


@dataclass(frozen=True)
class Overshoot:
    """What a reported difference of means says of a critic's constant.

    Attributes:
        reported: At least this is the difference of the means, in magnitude.
        upper: At most this is the Wasserstein-1 distance.
        claim: The constant that is claimed of the critic.
        constant: The critic's constant is at least this: ``reported / upper``, rounded down.
        factor: ``constant / claim``, rounded down.
    """

    reported: float
    upper: float
    claim: float
    constant: float
    factor: float

    @property
    def refuted(self) -> bool:
        """Whether the claim is false."""
        return self.factor > 1.0

    def __str__(self) -> str:
        """One line."""
        told = f"the critic reports at least {self.reported!r}, the distance is at most {self.upper!r}"
        if not self.refuted:
            return f"{told}: no contradiction to the constant {self.claim!r}"
        return f"{told}: its constant is at least {self.constant!r}, {self.factor!r} times the claimed {self.claim!r}"


def overshoot(reported: Between | float, upper: Transport | float, claim: float = 1.0) -> Overshoot:
    r"""Compare what a critic reports with an upper bound of the true distance of the same two measures.

    A critic of constant K reports at most :math:`K W_1`. So one that reports more than ``claim * upper`` has a larger
    constant than claimed; that is a theorem if both numbers are: `dual_value` of the critic, and any upper bound of the
    distance (`empirical_w1`, the length of a translation, the mean length of any pairing).

    Args:
        reported: The difference of means: enclosed by `dual_value`, or a number that is taken as it is.
        upper: An upper bound of the distance.
        claim: The claimed constant, positive.

    Raises:
        InvalidInput: If the upper bound is negative, the claim is not positive, or a number is not finite.

    Example:
        >>> found = overshoot(26.0, 1.0)
        >>> found.refuted, found.factor
        (True, 26.0)
    """
    at_most = upper.upper if isinstance(upper, Transport) else float(upper)
    ends = (reported.low, reported.high) if isinstance(reported, Between) else (float(reported), float(reported))
    if not (0.0 <= at_most < math.inf and 0.0 < claim < math.inf and all(map(math.isfinite, ends))):
        told = f"got reported {reported!r}, upper {at_most!r}, claim {claim!r}"
        raise InvalidInput(f"a finite report, a finite bound >= 0 and a finite claim > 0 can be compared; {told}.")
    least = max(0.0, ends[0], -ends[1])
    if at_most == 0.0:
        constant = factor = math.inf if least > 0.0 else 0.0
    else:
        constant = round_down(Fraction(least) / Fraction(at_most))
        factor = round_down(Fraction(least) / Fraction(at_most) / Fraction(claim))
    return Overshoot(least, at_most, float(claim), constant, factor)
