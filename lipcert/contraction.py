r"""What a contraction rate buys: errors, iterations, series remainders, all rounded up. Floor 1.

For :math:`\mathrm{Lip}(g) \le L < 1` the block ``y = x + g(x)`` is inverted by the iteration ``x <- y - g(x)``, and
:math:`\log|\det(I + J_g)| = \sum_k (-1)^{k+1} \mathrm{tr}(J_g^k) / k` converges. These functions say how fast.
"""

from __future__ import annotations

import math
from fractions import Fraction

from lipcert.errors import BudgetExceeded, InvalidInput
from lipcert.kernel.rounding import round_up

MOST = 2**32
"""Iterations or terms beyond which a number is refused: nobody runs so many."""

_TERMS = 20_000


def inverse_constant(lower: float) -> float:
    r"""A Lipschitz constant of the inverse of a map with :math:`|f(x) - f(y)| \ge lower \, |x - y|`.

    Args:
        lower: At least 0.

    Returns:
        ``1 / lower`` rounded up; infinity for 0, which promises nothing.

    Raises:
        InvalidInput: If ``lower`` is negative or no number.

    Example:
        >>> inverse_constant(0.5), inverse_constant(0.0)
        (2.0, inf)
    """
    if not 0.0 <= lower < math.inf:
        raise InvalidInput(f"lower={lower!r} is no lower side of a bi-Lipschitz claim; it must be finite and >= 0.")
    return math.inf if lower == 0.0 else round_up(1 / Fraction(lower))


def power_up(rate: float, exponent: int) -> float:
    """``rate**exponent`` for a rate >= 0, rounded up at every product.

    Example:
        >>> power_up(0.5, 10) == 2.0**-10, power_up(0.1, 0)
        (True, 1.0)
    """
    result, square = 1.0, rate
    while exponent:
        if exponent & 1:
            result = round_up(Fraction(result) * Fraction(square))
        exponent >>= 1
        if exponent:
            square = round_up(Fraction(square) ** 2)
    return result


def a_priori_error(rate: float, first: float, iterations: int) -> float:
    r"""Banach's bound of the error after n iterations of a contraction, :math:`L^n / (1 - L) \, |x_1 - x_0|`.

    Args:
        rate: L, in [0, 1).
        first: :math:`|x_1 - x_0|`, finite.
        iterations: n, at least 0.

    Returns:
        The bound in the units of ``first``, rounded up. It is for exact arithmetic.

    Raises:
        InvalidInput: If an argument is out of range.

    References:
        | Sur les opérations dans les ensembles abstraits (Banach, 1922), theorem 6

    Example:
        >>> a_priori_error(0.5, 1.0, 10) == 2.0**-9
        True
    """
    _require_rate(rate)
    if not (0.0 <= first < math.inf and iterations >= 0):
        raise InvalidInput(f"needs a finite first step and iterations >= 0, got {first!r} and {iterations!r}.")
    return round_up(Fraction(power_up(rate, iterations)) * Fraction(first) / (1 - Fraction(rate)))


def iterations_needed(rate: float, first: float, error: float) -> int:
    """The least n, at least 1, for which `a_priori_error` is at most ``error``.

    Args:
        rate: L, in [0, 1).
        first: The length of the first step, finite.
        error: Positive, in the units of ``first``.

    Raises:
        InvalidInput: If an argument is out of range.
        BudgetExceeded: If it is more than `MOST`.

    Example:
        >>> iterations_needed(0.5, 1.0, 2.0**-9), iterations_needed(0.9, 1.0, 1e-6)
        (10, 153)
    """
    _require_error(error)
    if a_priori_error(rate, first, 1) <= error:
        return 1
    guess = (math.log(error) + math.log1p(-rate) - math.log(first)) / math.log(rate)
    if guess > MOST:
        raise BudgetExceeded(
            f"about {guess:.1e} iterations at rate {rate!r} are needed for an error of {error!r}; refused above {MOST}."
        )
    count = max(2, math.ceil(guess) - 1)
    while a_priori_error(rate, first, count) > error:
        count += 1
    while a_priori_error(rate, first, count - 1) <= error:
        count -= 1
    return count


def logdet_remainder(rate: float, dimension: int, terms: int) -> float:
    r"""How much the power series of :math:`\log|\det(I + J)|` can miss after n terms, in nats.

    With :math:`|J|_2 \le L < 1` in d dimensions :math:`|\mathrm{tr} J^k| \le d L^k`, so what is left out is at most

    .. math:: d \sum_{k > n} L^k / k = -d \Big( \log(1 - L) + \sum_{k \le n} L^k / k \Big),

    which :math:`J = -L I` attains. It is at most the often quoted :math:`d L^{n+1} / ((n + 1) (1 - L))`.

    Args:
        rate: L, in [0, 1).
        dimension: d, at least 1.
        terms: n, at least 0; with 0 it bounds :math:`|\log|\det(I + J)||` itself.

    Returns:
        The sum, rounded up; above it by about 1e-11 relatively for rates up to 0.998, by more for rates closer to 1.

    Raises:
        InvalidInput: If an argument is out of range.

    References:
        | Invertible residual networks (Behrmann et al., 2019), theorem 3, https://arxiv.org/abs/1811.00995

    Example:
        >>> import math
        >>> abs(logdet_remainder(0.5, 3, 0) - 3 * math.log(2)) < 1e-12
        True
        >>> 2 * 0.5**11 / (11 * 0.5) > logdet_remainder(0.5, 2, 10) > 2 * 0.5**11 / 11
        True
    """
    _require_rate(rate)
    if dimension < 1 or terms < 0:
        raise InvalidInput(f"needs dimension >= 1 and terms >= 0, got {dimension} and {terms}.")
    power, total, k = power_up(rate, terms + 1), 0.0, terms + 1
    while power > 0.0 and k <= terms + _TERMS and power > total * 2.0**-60:
        total = _up(total + _up(power / k))
        power, k = _up(power * rate) if rate else 0.0, k + 1
    # From the k-th on the terms are at most a geometric series.
    return round_up(dimension * (Fraction(total) + Fraction(power) / (k * (1 - Fraction(rate)))))


def logdet_terms_needed(rate: float, dimension: int, error: float) -> int:
    """The least number of terms for which `logdet_remainder` is at most ``error`` nats.

    Args:
        rate: L, in [0, 1).
        dimension: d, at least 1.
        error: Positive, in nats.

    Raises:
        InvalidInput: If an argument is out of range.
        BudgetExceeded: If it is more than `MOST`.

    Example:
        >>> [logdet_terms_needed(rate, 2, 1e-3) for rate in (0.0, 0.5, 0.9)]
        [0, 8, 54]
    """
    _require_error(error)
    if logdet_remainder(rate, dimension, 0) <= error:
        return 0
    above = 1
    while logdet_remainder(rate, dimension, above) > error:
        above *= 2
        if above > MOST:
            raise BudgetExceeded(f"more than {MOST} terms at rate {rate!r} are needed for {error!r} nats.")
    below = above // 2
    while above - below > 1:
        middle = (below + above) // 2
        if logdet_remainder(rate, dimension, middle) <= error:
            above = middle
        else:
            below = middle
    return above


def _up(value: float) -> float:
    return math.nextafter(value, math.inf)


def _require_rate(rate: float) -> None:
    if not 0.0 <= rate < 1.0:
        raise InvalidInput(
            f"rate={rate!r} is no contraction: iterations and series converge for a constant in [0, 1) only. "
            f"Scale the branch, for example by spectral_norm(layer, bound=0.9)."
        )


def _require_error(error: float) -> None:
    if not 0.0 < error < math.inf:
        raise InvalidInput(f"error={error!r} must be positive and finite.")
