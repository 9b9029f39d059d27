"""Matrices that break floating-point norms, and exact lower bounds that catch a bound too low."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np

Array = np.ndarray
_SHORT = 6


def _shape(rng: np.random.Generator) -> tuple[int, int]:
    return int(rng.integers(1, _SHORT + 1)), int(rng.integers(1, _SHORT + 1))


def _powers(rng: np.random.Generator, low: int, high: int) -> Array:
    shape = _shape(rng)
    return np.ldexp(rng.choice([-1.0, 1.0], shape) * (0.5 + rng.random(shape) / 2), rng.integers(low, high, shape))


def _subnormal(rng: np.random.Generator) -> Array:
    return np.ldexp(rng.integers(-9, 10, _shape(rng)).astype(float), -1074)


def _huge(rng: np.random.Generator) -> Array:
    return 1.7e308 * rng.uniform(-1.0, 1.0, _shape(rng))


def _rank_one(rng: np.random.Generator) -> Array:
    m, n = _shape(rng)
    return np.outer(rng.standard_normal(m), rng.standard_normal(n))


def _hadamard(rng: np.random.Generator) -> Array:
    H = np.array([[1.0]])
    for _ in range(int(rng.integers(0, 4))):
        H = np.kron(H, [[1.0, 1.0], [1.0, -1.0]])
    return H * rng.choice([1.0, 3.0, 0.1])


def _graded(rng: np.random.Generator) -> Array:
    m, n = _shape(rng)
    scales = 10.0 ** -np.arange(0, 40.0 * n, 40.0)[:n].clip(0, 290)
    return rng.standard_normal((m, n)) * scales


def _vandermonde(rng: np.random.Generator) -> Array:
    m, n = _shape(rng)
    return np.vander(10.0 * rng.standard_normal(m), n)


def _hilbert(rng: np.random.Generator) -> Array:
    m, n = _shape(rng)
    return 1.0 / (1.0 + np.arange(m)[:, None] + np.arange(n))


def _one_hot(rng: np.random.Generator) -> Array:
    A = np.zeros(_shape(rng))
    A[rng.integers(len(A)), rng.integers(A.shape[1])] = rng.standard_normal() * 10.0 ** rng.integers(-300, 300)
    return A


def _float32(rng: np.random.Generator) -> Array:
    return rng.standard_normal(_shape(rng)).astype(np.float32).astype(np.float64)


def _orthogonal(rng: np.random.Generator) -> Array:
    n = int(rng.integers(1, _SHORT + 1))
    return np.linalg.qr(rng.standard_normal((n, n)))[0]


def _near_equal(rng: np.random.Generator) -> Array:
    Q = _orthogonal(rng)
    return Q * (1.0 + 1e-15 * rng.standard_normal(len(Q)))


def _mixed(rng: np.random.Generator) -> Array:
    shape = _shape(rng)
    return np.where(rng.random(shape) < 0.5, 1e300, 1e-300) * rng.standard_normal(shape)


def _integers(rng: np.random.Generator) -> Array:
    return rng.integers(-3, 4, _shape(rng)).astype(float)


def _vector(rng: np.random.Generator) -> Array:
    A = rng.standard_normal((1, int(rng.integers(1, 60))))
    return A if rng.random() < 0.5 else A.T


def _tall(rng: np.random.Generator) -> Array:
    A = rng.standard_normal((int(rng.integers(8, 16)), int(rng.integers(1, 3))))
    return A if rng.random() < 0.5 else A.T


def _kahan(rng: np.random.Generator) -> Array:
    n = int(rng.integers(1, _SHORT + 1))
    c = rng.uniform(0.1, 0.99)
    return np.sqrt(1.0 - c * c) ** np.arange(n)[:, None] * (np.eye(n) - c * np.triu(np.ones((n, n)), 1))


def _threshold(rng: np.random.Generator) -> Array:
    """Entries about where the kernel drops them, beside one it does not."""
    A = np.ldexp(rng.standard_normal(_shape(rng)), rng.integers(-304, -296))
    A[0, 0] = 1.0
    return np.ldexp(A, int(rng.integers(-700, 900)))


def _cancelling(rng: np.random.Generator) -> Array:
    """Columns that are equal but for the last bits, with signs."""
    m, n = _shape(rng)
    column = rng.standard_normal((m, 1)) * rng.choice([-1.0, 1.0], (1, n))
    return column * (1.0 + 2.0**-52 * rng.integers(-4, 5, (m, n)))


def _last_normal(rng: np.random.Generator) -> Array:
    """Entries on both sides of the smallest normal number."""
    return rng.uniform(0.25, 4.0, _shape(rng)) * 2.0**-1022 * rng.choice([-1.0, 1.0])


def _odd_bits(rng: np.random.Generator) -> Array:
    """All equal, with as many digits as there are: every sum rounds the same way."""
    return np.full(_shape(rng), np.nextafter(rng.uniform(0.5, 1.0), 1.0))


def _largest(rng: np.random.Generator) -> Array:
    """The largest float64, its neighbours, and zeros."""
    return rng.choice([0.0, 1.7976931348623157e308, -1.7976931348623155e308, 8.98846567431158e307], _shape(rng))


FAMILIES: dict[str, Callable[[np.random.Generator], Array]] = {
    "exponents from -1074 to 1000": lambda rng: _powers(rng, -1074, 1000),
    "subnormal numbers": _subnormal,
    "near overflow": _huge,
    "rank one": _rank_one,
    "signs of Hadamard": _hadamard,
    "graded columns": _graded,
    "Vandermonde": _vandermonde,
    "Hilbert": _hilbert,
    "one entry": _one_hot,
    "rounded to float32": _float32,
    "orthogonal": _orthogonal,
    "singular values an ulp apart": _near_equal,
    "huge beside tiny": _mixed,
    "small integers": _integers,
    "vectors": _vector,
    "tall or wide": _tall,
    "Kahan": _kahan,
    "about the threshold of what is dropped": _threshold,
    "columns equal but for the last bits": _cancelling,
    "about the smallest normal number": _last_normal,
    "all equal": _odd_bits,
    "the largest numbers": _largest,
}


def larger(rng: np.random.Generator) -> Array:
    """A matrix of 40 to 200 rows or columns: Gaussian, rounded, orthogonal, of rank one and noise, or graded."""
    m, n = (int(size) for size in rng.integers(40, 201, 2))
    A = rng.standard_normal((m, n))
    kind = int(rng.integers(5))
    if kind == 1:
        return A.astype(np.float32).astype(np.float64)
    if kind == 2:
        return np.linalg.qr(A)[0]
    if kind == 3:
        return np.outer(A[:, 0], A[0]) + 1e-9 * A
    return np.ldexp(A, -rng.integers(0, 400, (m, 1))) if kind == 4 else A


def exact_integers(A: Array) -> tuple[Array, int]:
    """Python integers N and an exponent e with ``A = N 2**e``, exactly."""
    mantissa, exponent = np.frexp(A)
    used = exponent[mantissa != 0.0]
    lowest = int(used.min()) - 53 if used.size else 0
    shifts = np.where(mantissa == 0.0, 0, exponent - 53 - lowest)
    digits = np.ldexp(mantissa, 53).astype(np.int64).astype(object)
    flat = [int(d) << int(s) for d, s in zip(digits.ravel(), shifts.ravel(), strict=True)]
    return np.array(flat, dtype=object).reshape(A.shape), lowest


def squared_norm_below(A: Array) -> Fraction:
    """A rational number that ``|A|_2**2`` is not below: the exact Rayleigh quotient of numpy's singular vector."""
    peak = np.max(np.abs(A)) if A.size else 0.0
    if peak == 0.0:
        return Fraction(0)
    exponent = math.frexp(peak)[1]
    scaled = np.ldexp(np.ldexp(A, -(exponent // 2)), exponent // 2 - exponent)
    integers, e = exact_integers(A)
    return rayleigh(integers, np.linalg.svd(scaled, full_matrices=False)[2][0]) * Fraction(4) ** e


def rayleigh(integers: Array, v: Array) -> Fraction:
    """``|N v|**2 / |v|**2`` for an integer matrix N, exactly, with v rounded to 60 bits."""
    direction = np.array([int(x) for x in np.rint(np.ldexp(v, 60))], dtype=object)
    image = integers.dot(direction)
    return Fraction(int(image.dot(image)), int(direction.dot(direction)))
