"""Matrices that break floating-point norms, oracles that lie, and exact lower bounds that catch a bound too low."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from lipcert.kernel.backend import Backend, Parts

Array = np.ndarray
UNIT = 2.0**-53
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
}


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
    v = np.linalg.svd(scaled, full_matrices=False)[2][0]
    integers, e = exact_integers(A)
    direction = np.array([int(x) for x in np.rint(np.ldexp(v, 60))], dtype=object)
    image = integers.dot(direction)
    return Fraction(int(image.dot(image)), int(direction.dot(direction))) * Fraction(4) ** e


@dataclass
class Liar:
    """A backend that stays within the gemm error model and otherwise does what flatters a certificate most.

    Gram matrices come out as small, in the direction of the top eigenvector, as the error ball allows; the factor is
    of the positive part of H and never fails; its product comes out as near to H as the ball allows; and the
    eigenvalue estimate is ``estimate`` times what would make the certifier start without any slack.

    Attributes:
        estimate: What the eigenvalue estimate is multiplied by.
        copies: How often the factor is repeated (and scaled down): the same product, from longer and looser sums.
    """

    estimate: float = 1.0
    copies: int = 1
    target: Array | None = field(default=None, init=False)

    def backend(self) -> Backend:
        """Fresh hooks."""
        self.target = None
        return Backend(self._gemm, self._cholesky, self._top_eigenvalue)

    def _gemm(self, a: Array, b: Array) -> Array:
        product = np.matmul(a.astype(np.longdouble), b.astype(np.longdouble))
        # One rounding of the ball is kept for the conversion of the result to float64.
        k = a.shape[-1]
        radius = np.longdouble((k - 1) * UNIT) * np.matmul(np.abs(a).astype(np.longdouble), np.abs(b))
        if self.target is not None and product.shape == self.target.shape:
            return np.clip(self.target.astype(np.longdouble), product - radius, product + radius).astype(np.float64)
        flat = product.astype(np.float64)
        if product.ndim == 2:
            return (product - radius * np.sign(flat)).astype(np.float64)
        vectors = np.linalg.eigh((flat + flat.swapaxes(1, 2)) / 2)[1][:, :, -1]
        direction = np.sign(vectors[:, :, None] * vectors[:, None, :])
        return (product - radius * direction).astype(np.float64)

    def _cholesky(self, H: Parts) -> Parts:
        self.target = H[0]
        values, vectors = np.linalg.eigh(H[0])
        root = np.sqrt(np.maximum(values, 0.0))[:, :, None] * vectors.swapaxes(1, 2)
        factor = np.tile(root / self.copies**0.5, (1, self.copies, 1))
        return (factor,) if len(H) == 1 else (factor, np.zeros_like(factor))

    def _top_eigenvalue(self, G: Parts) -> float:
        top = float(np.max(np.linalg.eigvalsh(G[0])))
        return top / (1.0 + 4e-14 * G[0].shape[-1] ** 0.5) * self.estimate
