"""The options of `spectral_norm`, as values. Floor 3."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lipcert.errors import InvalidInput


@dataclass(frozen=True)
class Deployed:
    """The claim holds in evaluation, on export and on removal; training divides by an estimate.

    Attributes:
        every: Prove the norm in training too after so many changes of the weight, and start the estimate afresh if
            it was more than a percent too low. Default: never.
    """

    every: int | None = None

    def __post_init__(self) -> None:
        """Refuse to prove at every half step."""
        if self.every is not None and self.every < 1:
            raise InvalidInput(f"a proof can be had after every change of the weight at most, got every={self.every}.")


@dataclass(frozen=True)
class Everywhere:
    """The claim holds in every forward pass, in training too: each divides by a proven bound.

    Attributes:
        slack: By how much (relatively) the bound may exceed the norm before it is proved anew. A step from W to W'
            is bridged by ``|W'| <= |W| + |W' - W|_F``, which costs little while steps are small.
    """

    slack: float = 0.01

    def __post_init__(self) -> None:
        """Refuse a slack that means nothing."""
        if not 0.0 <= self.slack < math.inf:
            raise InvalidInput(f"a relative slack is a number of at least 0, got {self.slack}.")


@dataclass(frozen=True)
class Hard:
    """The weight is scaled to the bound, up or down."""


@dataclass(frozen=True)
class Soft:
    """The weight is scaled down if its norm is above the bound, else left alone.

    References:
        | Regularisation of Neural Networks by Enforcing Lipschitz Continuity (Gouk et al., 2021)
        | https://arxiv.org/abs/1804.04368
    """


@dataclass(frozen=True)
class Gain:
    """The bound is multiplied by the sigmoid of a learnable number, so the claim stays.

    Attributes:
        initial: The factor at the start, between 0 and 1.
    """

    initial: float = 0.9

    def __post_init__(self) -> None:
        """Refuse a factor that no finite number has."""
        if not 0.0 < self.initial < 1.0:
            raise InvalidInput(f"a gain under the bound is a factor between 0 and 1, got {self.initial}.")


Level = Deployed | Everywhere
Cap = Hard | Soft
