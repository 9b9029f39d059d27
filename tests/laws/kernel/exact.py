"""What the tests of the kernel share: numbers as fractions, comparisons with them, and stacks of small integers."""

from fractions import Fraction
from typing import Any

import numpy as np

U, U32 = Fraction(1, 2**53), Fraction(1, 2**24)
LEAST, HUGE = 5e-324, 2.0**1023
LARGEST = 1.7976931348623157e308
RNG = np.random.default_rng

Array = np.ndarray


def frac(value: object) -> Fraction:
    return Fraction(float(np.asarray(value).reshape(())))


def higham(k: int, unit: Fraction = U) -> Fraction:
    return k * unit / (1 - k * unit)


def above(bound: object, truth: Fraction, slack: float = 1e-12) -> bool:
    return truth <= frac(bound) <= truth * (1 + Fraction(slack))


def root_above(bound: object, square: Fraction, slack: float = 1e-12) -> bool:
    """As `above` for the root of a fraction."""
    return square <= frac(bound) ** 2 <= square * (1 + Fraction(slack)) ** 2


def integers(rng: np.random.Generator, *shape: int) -> Array:
    return rng.integers(-4, 5, shape).astype(float)


def stacks(seed: int, *shape: int) -> tuple[tuple[Array, ...], ...]:
    """A real stack and a complex one, of small integers."""
    rng = RNG(seed)
    return (integers(rng, *shape),), (integers(rng, *shape), integers(rng, *shape))


def whole(stack: tuple[Array, ...]) -> Array:
    return stack[0].astype(complex) + (1j * stack[1] if len(stack) == 2 else 0.0)


def exactly(values: Array) -> Any:
    """The same numbers as fractions."""
    return np.vectorize(Fraction, otypes=[object])(np.asarray(values, dtype=np.float64))


def uneven(*shape: int, seed: int = 0) -> Array:
    """Numbers of both signs whose sums and products are rounded."""
    rng = np.random.default_rng(seed)
    return rng.uniform(0.25, 1.0, shape) * rng.choice([-1.0, 1.0], shape)


def shifted(A: Array, exponent: int) -> Any:
    """The same numbers times a power of two, as fractions."""
    return exactly(A) * Fraction(2) ** -exponent
