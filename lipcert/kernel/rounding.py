"""Outward rounding: scalars and arrays that may only err upward. Floor 1.

u = 2**-53 throughout; ``gamma_k = k u / (1 - k u)`` is Higham's constant (Accuracy and Stability of Numerical
Algorithms, section 3.1).
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from lipcert.errors import FloatEnvironment, InvalidInput, NotFinite

Array = np.ndarray
UNIT = 2.0**-53
_TINY = np.array([5e-324, 2.0**-1022, 1.0, 1.0, -1.0])


def require_ieee() -> None:
    """Refuse a processor state in which float64 does not round to nearest with gradual underflow.

    Raises:
        FloatEnvironment: If subnormal numbers are flushed to zero, or another rounding mode is set.
    """
    # Operands come from arrays, so that neither Python nor numpy can fold the arithmetic beforehand.
    kept, halved, tie, above, below = _TINY * [1.0, 0.5, 1.0, 1.0, 1.0] + [0.0, 0.0, UNIT, 1.5 * UNIT, -UNIT]
    scalar = float(_TINY[0]) * float(_TINY[2])
    if not (kept > 0.0 and scalar > 0.0 and halved == 2.0**-1023 and tie == 1.0 and above > 1.0 and below == -1.0):
        raise FloatEnvironment(
            "this thread flushes subnormal numbers to zero or rounds in an unusual direction, so no bound can be "
            "trusted. Undo torch.set_flush_denormal(True), or the library built with -ffast-math that set it."
        )


def round_up(value: Fraction) -> float:
    """The smallest float64 that is not below ``value``; infinity above the largest one.

    Example:
        >>> round_up(Fraction(1, 3)) > 1 / 3, round_up(Fraction(1, 2))
        (True, 0.5)
    """
    try:
        nearest = float(value)
    except OverflowError:
        return math.inf if value > 0 else -1.7976931348623157e308
    return nearest if Fraction(nearest) >= value else math.nextafter(nearest, math.inf)


def round_down(value: Fraction) -> float:
    """The largest float64 that is not above ``value``; minus infinity below the lowest one.

    Example:
        >>> round_down(Fraction(1, 3)) <= Fraction(1, 3), round_down(Fraction(1, 2))
        (True, 0.5)
    """
    return -round_up(-value)


def gamma(count: int) -> float:
    """An upper bound of ``gamma_{count + 2}``: an error of ``count`` roundings, and room for two more.

    Example:
        >>> gamma(1) >= 3 * 2.0**-53
        True
    """
    steps = count + 2
    return round_up(Fraction(steps, 2**53 - steps)) if steps < 2**53 else np.inf


def add_up(x: Array | float, y: Array | float) -> Array:
    """``x + y`` rounded up; exact where a term is zero."""
    total = np.add(x, y)
    return np.where((np.equal(x, 0.0)) | (np.equal(y, 0.0)), total, np.nextafter(total, np.inf))


def mul_up(x: Array | float, y: Array | float) -> Array:
    """``x * y`` rounded up, for non-negative factors; exact where a factor is 0 or 1."""
    product = np.multiply(x, y)
    exact = np.equal(x, 0.0) | np.equal(y, 0.0) | np.equal(x, 1.0) | np.equal(y, 1.0)
    return np.where(exact, product, np.nextafter(product, np.inf))


def div_up(x: Array | float, y: Array | float) -> Array:
    """``x / y`` rounded up, for non-negative x and positive y."""
    return np.nextafter(np.divide(x, y), np.inf)


def sqrt_up(x: Array | float) -> Array:
    """The square root rounded up; 0 stays 0."""
    root = np.sqrt(x)
    return np.where(np.equal(x, 0.0), root, np.nextafter(root, np.inf))


def scale_up(value: float, exponent: int) -> float:
    """``value * 2**exponent`` rounded up; infinity when it is too large for a float64.

    Example:
        >>> scale_up(0.75, -1074), scale_up(1.0, 1024)
        (5e-324, inf)
    """
    if value == 0.0 or math.isinf(value):
        return value
    return round_up(Fraction(value) * (Fraction(2) ** exponent))


def sum_up(terms: Array, axis: int | tuple[int, ...]) -> Array:
    """Sums of non-negative float64 numbers along ``axis``, rounded up (at most about ``2 n u`` above the sum)."""
    axes = (axis,) if isinstance(axis, int) else axis
    count = math.prod(terms.shape[one] for one in axes)
    total = np.sum(terms, axis=axis)
    return total if count == 1 else mul_up(total, 1.0 + 2.0 * gamma(count))


def sum_of_squares_up(terms: Array, axis: int | tuple[int, ...]) -> Array:
    """Sums of squares along ``axis``, rounded up; squares that underflow are paid for by an absolute term."""
    axes = (axis,) if isinstance(axis, int) else axis
    count = math.prod(terms.shape[one] for one in axes)
    total = np.sum(terms * terms, axis=axis)
    bound = add_up(mul_up(total, 1.0 + 2.0 * gamma(count + 1)), count * 2.0**-1021)
    return np.where(np.any(terms != 0.0, axis=axis), bound, 0.0)


def largest_sum_up(rows: Array) -> float:
    """The largest row sum of a non-negative matrix, correctly rounded up where that is affordable.

    Rows whose rounded sum cannot be the largest are ruled out first; the rest are summed exactly (Shewchuk, as in
    `math.fsum`).

    Example:
        >>> largest_sum_up(np.array([[3.0, 4.0], [0.1, 0.2]]))
        7.0
    """
    if rows.size == 0:
        return 0.0
    with np.errstate(over="ignore"):
        ceilings = sum_up(rows, axis=1)
        candidates = rows[ceilings >= np.max(np.sum(rows, axis=1)) * (1.0 - 2.0 * gamma(rows.shape[1]))]
    if candidates.size > 2**22:
        return float(np.max(ceilings))
    return max(_exact_sum_up(row) for row in candidates.tolist())


def _exact_sum_up(terms: list[float]) -> float:
    try:
        nearest = math.fsum(terms)
    except OverflowError:
        return round_up(sum(map(Fraction, terms), Fraction(0)))
    return nearest if math.fsum([*terms, -nearest]) <= 0.0 else math.nextafter(nearest, math.inf)


def largest_magnitude(values: Array) -> float:
    """``max |value|``, exact; 0.0 for no values, NaN if there is one."""
    return float(max(np.max(values), -np.min(values))) if values.size else 0.0


def require_finite(magnitude: float) -> None:
    """Refuse NaN and infinity.

    Raises:
        NotFinite: If ``magnitude`` is not a finite number.
    """
    if not math.isfinite(magnitude):
        raise NotFinite(f"a matrix has an entry {magnitude}, and then it has no norm; look where it comes from.")


def as_real(values: Array, ndim: int | None = None) -> Array:
    """Check an array's type, and give numbers that float64 represents exactly (floats keep their type).

    Raises:
        InvalidInput: If the entries are not real numbers that convert to float64 exactly, or ``ndim`` differs.
    """
    values = np.asarray(values)
    if ndim is not None and values.ndim != ndim:
        raise InvalidInput(f"expected an array of {ndim} dimensions, got one of shape {values.shape}.")
    if values.dtype.kind in "iu":
        limit = 2**53
        if values.size and (int(values.max()) >= limit or int(values.min()) <= -limit):
            raise InvalidInput("an integer entry is 2**53 or more in magnitude and does not fit a float64 exactly.")
        return values.astype(np.float64)
    if values.dtype.kind != "f" or values.dtype.itemsize > 8:
        raise InvalidInput(f"a norm needs real numbers of at most 64 bits, got dtype {values.dtype}; convert first.")
    return values
