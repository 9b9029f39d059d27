"""Symmetric matrices at the edge of being positive semidefinite, and exact judges of which side they are on."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np

from tests.adversarial import exact_integers

Array = np.ndarray
_LARGEST = 8


def _size(rng: np.random.Generator) -> int:
    return int(rng.integers(2, _LARGEST + 1))


def _symmetric(H: Array) -> Array:
    return np.tril(H) + np.tril(H, -1).T


def _tiny(rng: np.random.Generator) -> float:
    """Plus or minus ``1e-17`` to ``1e-11``, or zero."""
    return float(rng.choice([-1.0, 0.0, 1.0]) * 10.0 ** rng.uniform(-17.0, -11.0))


def _integer_gram(rng: np.random.Generator) -> Array:
    """Singular exactly, then moved by a little on the diagonal."""
    n = _size(rng)
    V = rng.integers(-3, 4, (n, int(rng.integers(1, n)))).astype(float)
    return V @ V.T + _tiny(rng) * np.eye(n)


def _rounded_gram(rng: np.random.Generator) -> Array:
    """Singular but for the rounding of its entries, which decides."""
    n = _size(rng)
    V = rng.standard_normal((n, int(rng.integers(1, n))))
    return _symmetric(V @ V.T)


def _spectrum(rng: np.random.Generator) -> Array:
    """A turned diagonal matrix whose least entry is about nothing."""
    n = _size(rng)
    Q = np.linalg.qr(rng.standard_normal((n, n)))[0]
    values = np.append(10.0 ** rng.uniform(-3.0, 0.0, n - 1), _tiny(rng))
    return _symmetric((Q * values) @ Q.T)


def _scaled_badly(rng: np.random.Generator) -> Array:
    """``D H D`` with powers of two: the same sign of everything, exactly."""
    H = _rounded_gram(rng)
    d = np.ldexp(1.0, rng.integers(-40, 41, len(H)))
    return d[:, None] * H * d


def _hilbert(rng: np.random.Generator) -> Array:
    n = _size(rng)
    return _symmetric(1.0 / (1.0 + np.arange(n)[:, None] + np.arange(n))) + _tiny(rng) * np.eye(n)


def _laplacian(rng: np.random.Generator) -> Array:
    """A graph's: singular, with the vector of ones; one entry of the diagonal moved."""
    n = _size(rng)
    W = _symmetric(np.where(rng.random((n, n)) < 0.6, rng.integers(1, 9, (n, n)), 0).astype(float))
    np.fill_diagonal(W, 0.0)
    L = np.diag(W.sum(axis=1)) - W
    L[0, 0] += _tiny(rng)
    return L


def _ones(rng: np.random.Generator) -> Array:
    """Rank one, the entries off the diagonal an ulp too large or too small."""
    n = _size(rng)
    H = np.full((n, n), rng.uniform(0.5, 1.0))
    return _symmetric(H * (1.0 + 2.0**-52 * rng.integers(-2, 3, (n, n))))


def _chain(rng: np.random.Generator) -> Array:
    """The second difference, less about its least eigenvalue."""
    n = _size(rng)
    H = 2.0 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)
    return H - (2.0 - 2.0 * np.cos(np.pi / (n + 1)) + _tiny(rng)) * np.eye(n)


def _arrow(rng: np.random.Generator) -> Array:
    """A diagonal matrix and one row, whose Schur complement is about nothing."""
    n = _size(rng)
    H = np.diag(rng.uniform(0.1, 1.0, n))
    H[0, 1:] = H[1:, 0] = rng.standard_normal(n - 1)
    H[0, 0] = np.sum(H[0, 1:] ** 2 / np.diagonal(H)[1:]) + _tiny(rng)
    return H


def _layers(rng: np.random.Generator) -> Array:
    """As a semidefinite bound of a network has: blocks of a diagonal matrix and the neighbours' weights."""
    n, m = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    W = rng.standard_normal((m, n))
    t = rng.uniform(0.2, 2.0, m)
    H = np.zeros((n + m, n + m))
    H[:n, :n] = (np.linalg.norm((np.sqrt(t)[:, None] * W), 2) ** 2 / 2.0 + _tiny(rng)) * np.eye(n)
    H[n:, n:] = 2.0 * np.diag(t)
    H[n:, :n] = -t[:, None] * W
    H[:n, n:] = H[n:, :n].T
    return H


def _no_diagonal(rng: np.random.Generator) -> Array:
    """Zeros on the diagonal beside entries that are not."""
    H = _integer_gram(rng)
    k = int(rng.integers(len(H)))
    H[k, k] = 0.0
    return H


def _integers(rng: np.random.Generator) -> Array:
    n = _size(rng)
    return _symmetric(rng.integers(-2, 3, (n, n)).astype(float)) + float(rng.integers(0, 5)) * np.eye(n)


def _extreme(rng: np.random.Generator) -> Array:
    """Near overflow, or where squares underflow."""
    H = _rounded_gram(rng) + _tiny(rng) * np.eye(1)
    return np.ldexp(H, int(rng.choice([-1030, -800, -500, -300, 300, 480, 900])))


def _two(rng: np.random.Generator) -> Array:
    """``[[1, b], [b, b b]]`` to the last bit: the determinant is a rounding error."""
    b = rng.standard_normal()
    return np.array([[1.0, b], [b, b * b]]) * rng.uniform(0.5, 1.0)


FAMILIES: dict[str, Callable[[np.random.Generator], Array]] = {
    "Gram matrices of integers": _integer_gram,
    "Gram matrices, rounded": _rounded_gram,
    "a given spectrum": _spectrum,
    "scaled badly": _scaled_badly,
    "Hilbert": _hilbert,
    "Laplacian": _laplacian,
    "ones": _ones,
    "second difference": _chain,
    "arrow": _arrow,
    "layers of a network": _layers,
    "zeros on the diagonal": _no_diagonal,
    "small integers": _integers,
    "extreme scales": _extreme,
    "two rows": _two,
}


def at_the_edge(rng: np.random.Generator, family: str, dtype: type[np.floating] = np.float64) -> Array:
    """A matrix of a family, in half the cases moved so that its least eigenvalue is a few roundings from zero.

    Args:
        rng: Where it is drawn from.
        family: By its name in `FAMILIES`.
        dtype: The type whose roundings are meant, to which the matrix is rounded; what overflows gives the identity.
    """
    with np.errstate(over="ignore"):
        H = FAMILIES[family](rng).astype(dtype).astype(np.float64)
    if not np.all(np.isfinite(H)):
        return np.eye(2)
    unit = float(np.finfo(dtype).eps) / 2.0
    scale = np.max(np.abs(H))
    if rng.random() < 0.5 and 1e-200 < scale < 1e200:
        move = rng.choice([-1.0, 1.0]) * 2.0 ** rng.uniform(-7.0, 3.0) * unit * scale
        H = H - (float(np.linalg.eigvalsh(H)[0]) + move) * np.eye(len(H))
    return H.astype(dtype).astype(np.float64)


def turned(rng: np.random.Generator, H: Array) -> tuple[Array, Array]:
    """Real and imaginary parts of ``D H D*``, D diagonal of powers of i: complex, and as definite as H, exactly."""
    quarter = rng.integers(0, 4, len(H))
    quarter = (quarter[:, None] - quarter) % 4
    return H * np.array([1.0, 0.0, -1.0, 0.0])[quarter], H * np.array([0.0, 1.0, 0.0, -1.0])[quarter]


def split(rng: np.random.Generator, H: Array) -> tuple[dict[tuple[str, str], Array], list[str]]:
    """H in blocks by pairs of names, those left out that are zero; and the names."""
    count = int(rng.integers(1, len(H) + 1))
    cuts = np.sort(rng.choice(np.arange(1, len(H)), count - 1, replace=False))
    pieces = np.split(np.arange(len(H)), cuts)
    blocks = {
        (str(a), str(b)): H[np.ix_(pieces[a], pieces[b])]
        for a in range(count)
        for b in range(a, count)
        if a == b or np.any(H[np.ix_(pieces[a], pieces[b])])
    }
    return blocks, [str(a) for a in range(count)]


# ------------------------------------------------------------------------------------------------ judges


def lifted(H: Array, rho: float) -> Array:
    """A positive multiple of ``H + rho I``, in integers."""
    n = len(H)
    integers, _ = exact_integers(np.append(H.astype(np.float64), rho))
    whole = integers[:-1].reshape(n, n).copy()
    whole[range(n), range(n)] += integers[-1]
    return whole


def semidefinite(H: Array) -> bool:
    """Whether a symmetric matrix of integers or fractions is positive semidefinite, by elimination without rounding.

    The numbers stay minors of H (Bareiss), so that integers stay integers.
    """
    H, before = H.copy(), 1
    for k in range(len(H)):
        pivot = H[k, k]
        if pivot < 0 or (pivot == 0 and any(entry != 0 for entry in H[k, k:])):
            return False
        if pivot == 0:
            continue
        rest = H[k + 1 :, k + 1 :] * pivot - np.outer(H[k + 1 :, k], H[k, k + 1 :])
        H[k + 1 :, k + 1 :] = rest // before if isinstance(pivot, int) else rest / before
        before = pivot
    return True


def semidefinite_by_signs(H: Array) -> bool:
    """The same of integers, from the signs of the characteristic polynomial (Faddeev and LeVerrier).

    All eigenvalues are real, so none is negative if and only if no elementary symmetric polynomial of them is.
    """
    n = len(H)
    M = np.array([[int(i == j) for j in range(n)] for i in range(n)], dtype=object)
    for k in range(1, n + 1):
        P = H.dot(M)
        # The k-th elementary symmetric polynomial is (-1)**(k + 1) tr(P) / k.
        trace = sum(P[i, i] for i in range(n))
        if trace * (-1) ** (k + 1) < 0:
            return False
        M = P.copy()
        M[range(n), range(n)] -= Fraction(trace, k).numerator if trace % k == 0 else Fraction(trace, k)
    return True
