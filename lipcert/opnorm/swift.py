r"""Upper bounds of l2 norms fast enough for every training step: single precision, all rounding included. Floor 2.

The bounds are as rigorous as those of `opnorm` but trust float32 products too (`lipcert.kernel.single` says how far);
no certificate and no bound used in evaluation rests on them.

The Gram matrices of a convolution's symbol are the values of a trigonometric polynomial, its autocorrelation
:math:`F^* F(\theta) = \sum_d C_d e^{i \langle d, \theta \rangle}, C_d = \sum_{b - a = d} W_a^T W_b`: a short sum per
frequency in place of a product of matrices, with as little rounding.

References:
    | The Singular Values of Convolutional Layers (Sedghi et al., 2019), https://arxiv.org/abs/1805.10408
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch

from lipcert.kernel import single
from lipcert.kernel.backend import Parts
from lipcert.kernel.dense import norm2_upper
from lipcert.kernel.fourier import Grid, Symbol, total_magnitude_upper, work
from lipcert.kernel.fourier import _angles as angles_of
from lipcert.kernel.roots import unit_roots
from lipcert.kernel.rounding import (
    Array,
    add_up,
    gamma,
    largest_magnitude,
    mul_up,
    require_finite,
    require_ieee,
    scale_up,
    sqrt_up,
    sum_of_squares_up,
    sum_up,
)
from lipcert.kernel.single import (
    LOOSEST,
    SLACKS,
    Oracles,
    joined,
    lost,
    psd_defect,
    shifted,
    squared_guess,
    squares_up,
    top_eigenvalue,
)
from lipcert.linear import Conv, Dense
from lipcert.opnorm.geometry import axes, lines
from lipcert.opnorm.maps import Effort, opnorm
from lipcert.opnorm.spectral import _embedding, _grids, _symbol, matrix

_SMALL = 64  # below, the float64 kernel is as fast
_WRITTEN_OUT = 1024
_CLOSE = 1.02
_MOST_TAPS = 128
_CHUNK = 2**17
_PROBED = 16
_STEPS = 16


def swift_norm(linear: Dense | Conv, guess: float | None = None) -> float:
    r"""An upper bound of the l2 operator norm, typically 0.2 percent above it, in a fraction of the time of `opnorm`.

    Falls back to `opnorm` where single precision cannot prove a bound within 2 percent, for small maps, and for
    padding modes other than ``zeros`` and ``circular``.

    Args:
        linear: The map; its weights are read as exact real numbers. Fastest in float32.
        guess: About the norm, as power iteration gives; saves time if good, and is never trusted.

    Returns:
        A bound at least the norm, l2 to l2. For convolutions too large to be written out (smaller side above 1024)
        it is the bound on a torus: with zero padding up to a few percent above the norm, as that of `opnorm`.

    Raises:
        NotFinite: If a weight is NaN or infinite.
        FloatEnvironment: If the processor does not round as IEEE 754 says.

    References:
        | Verification of positive definiteness (Rump, 2006), https://doi.org/10.1007/s10543-006-0056-1

    Example:
        >>> bound = swift_norm(Dense(torch.eye(100), (100,)))
        >>> 1.0 <= bound < 1.02
        True
    """
    bound = _matrix(_weight(linear.weight), guess) if isinstance(linear, Dense) else _convolution(linear, guess)
    if bound < math.inf and 0 not in linear.in_shape:
        return bound
    return opnorm(linear).value


def _weight(weight: torch.Tensor) -> Array:
    weight = weight.detach().cpu()
    return weight.numpy() if weight.dtype == torch.float32 else weight.double().numpy()


def _matrix(A: Array, guess: float | None) -> float:
    return single.norm2_upper(A, guess, _TORCH) if min(A.shape) >= _SMALL else math.inf


def _convolution(conv: Conv, guess: float | None) -> float:
    if conv.padding_mode not in ("zeros", "circular") or 0 in (*conv.in_shape, *conv.out_shape):
        return math.inf
    if conv.padding_mode == "zeros" and not all(lines(axis) for axis in axes(conv)):
        return math.inf  # no tap meets an input
    hoped = guess if guess is not None and guess > 0.0 else 0.0
    out, into = conv.weight.shape[0] // conv.groups, conv.weight.shape[1]
    side, other = sorted((out * math.prod(conv.out_sizes), into * math.prod(conv.in_shape[1:])))
    if side > _WRITTEN_OUT or conv.groups * side * side * other > 2**31:
        return _embedded(conv, hoped)
    bound = _embedded(conv, hoped) if hoped else math.inf
    if bound <= _CLOSE * hoped:
        return bound
    return _written_out(conv, out) if conv.padding_mode == "zeros" and side >= _SMALL else math.inf


def _written_out(conv: Conv, out: int) -> float:
    groups = _weight(conv.weight).reshape(conv.groups, out, *conv.weight.shape[1:])
    largest = 0.0
    for case in itertools.product(*(lines(axis) for axis in axes(conv))):
        targets, inputs = [line.reads() for line in case], [line.last - line.first for line in case]
        for group in groups:
            A = matrix(group, targets, inputs)
            largest = max(largest, _matrix(A, None) if min(A.shape) >= _SMALL else norm2_upper(A))
    return largest


def _embedded(conv: Conv, hoped: float) -> float:
    """The best over the tori that contain the convolution; infinity if there is none within reach."""
    embedding = _embedding(conv)
    symbol = _symbol(conv, embedding)
    if len(symbol.taps) > _MOST_TAPS:
        return math.inf
    best, budget = math.inf, Effort().flops
    for grid in _grids(symbol, embedding):
        budget -= work(symbol, grid)
        if budget < 0.0 or best * embedding.factor <= (1.0 + _CLOSE) / 2.0 * hoped:
            break
        best = min(best, torus_norm(symbol, grid, hoped / embedding.factor))
    return float(mul_up(best, embedding.factor))


@dataclass(frozen=True, eq=False)
class Autocorrelation:
    r"""``-F* F`` as :math:`\sum_d E_d \cos \langle d, \theta \rangle + i O_d \sin \langle d, \theta \rangle`.

    Attributes:
        differences: ``(terms, dimensions)``, integers: half of the lattice, 0 first.
        even: ``(terms, groups, n, n)``, float32.
        odd: Likewise.
        error: Bounds ``| F* F - fl(F* F) |_2`` at every frequency, the rounding in `at` included.
    """

    differences: Array
    even: Array
    odd: Array
    error: float

    def at(self, angles: Array, cosine: Array, sine: Array) -> Parts:
        """Values at the rows of ``angles``, indices of the tables: stacks ``(frequencies * groups, n, n)``."""
        n, terms = self.even.shape[-1], len(self.even)
        real = np.matmul(cosine[angles], self.even.reshape(terms, -1))
        imaginary = np.matmul(sine[angles], self.odd.reshape(terms, -1))
        return real.reshape(-1, n, n), imaginary.reshape(-1, n, n)


def autocorrelation(positions: Array, taps: Array) -> Autocorrelation:
    """From taps ``(taps, groups, out, in)`` in float64, the largest about 1; the short side is kept."""
    V = taps if taps.shape[2] >= taps.shape[3] else taps.swapaxes(2, 3)
    count, groups, _, n = V.shape
    order = np.lexsort(positions.T[::-1])  # then every difference of a later and an earlier tap is in the same half
    places, V = positions[order], V[order]
    sums: dict[tuple[int, ...], Array] = {(0,) * positions.shape[1]: np.zeros((groups, n, n))}
    for a in range(count):
        left = V[a].swapaxes(1, 2)
        for b in range(a, count):
            difference = tuple((places[b] - places[a]).tolist())
            product = np.matmul(left, V[b])
            sums[difference] = sums[difference] + product if difference in sums else product
    C = np.stack(list(sums.values()))
    even, odd = -(C + C.swapaxes(2, 3)), -(C - C.swapaxes(2, 3))
    even[0], odd[0] = -C[0], 0.0
    even, odd = even.astype(np.float32), odd.astype(np.float32)
    return Autocorrelation(np.array(list(sums)), even, odd, _error(even, odd, V))


def _error(even: Array, odd: Array, V: Array) -> float:
    """The rounding in `Autocorrelation.at`: ``terms + 4`` at most, with those of the tables and coefficients."""
    terms, (count, _, m, n) = len(even), V.shape
    size = sum_up(np.abs(even).astype(np.float64), 0) + sum_up(np.abs(odd).astype(np.float64), 0)
    magnitude = mul_up(np.max(sqrt_up(sum_of_squares_up(size, (-2, -1)))), 1.0 + 1e-9)
    total = total_magnitude_upper(V)
    exact = mul_up(gamma(m + count + 2), mul_up(total, total))
    underflow = lost(8 * (terms + m * count) * n)
    return float(add_up(add_up(mul_up(single.gamma(terms + 4), magnitude), exact), underflow))


def torus_norm(symbol: Symbol, grid: Grid, guess: float | None = None) -> float:
    r"""An upper bound of :math:`\max_{\theta \in grid} \max_{groups} \lVert F(\theta) \rVert_2`, or infinity.

    Args:
        symbol: The convolution.
        grid: Frequencies per dimension.
        guess: About the norm; untrusted.

    Returns:
        The bound; infinity if 2 percent above an estimate do not suffice for a proof.

    Raises:
        NotFinite: If a tap is NaN or infinite.
        FloatEnvironment: If the processor does not round as IEEE 754 says.
    """
    require_ieee()
    peak = largest_magnitude(symbol.taps)
    require_finite(peak)
    if peak == 0.0:
        return 0.0
    exponent = math.frexp(peak)[1]
    with np.errstate(all="ignore"):
        polynomial = autocorrelation(symbol.positions, np.ldexp(symbol.taps, -exponent))
        squared = _largest_squared(polynomial, grid, squared_guess(guess, exponent), _TORCH)
        bound = float(sqrt_up(add_up(squared, polynomial.error)))
    return scale_up(bound, exponent) if bound == bound else math.inf


def _largest_squared(polynomial: Autocorrelation, grid: Grid, hoped: float, oracles: Oracles) -> float:
    cosine, sine = (table.astype(np.float32) for table in unit_roots(grid.order))
    angles = angles_of(polynomial.differences, grid)

    def peak(some: Array, most: int) -> float:
        """About the largest eigenvalue at ``most`` of the frequencies, evenly spread."""
        return top_eigenvalue(-joined(polynomial.at(some[:: -(-len(some) // most)], cosine, sine)), steps=_STEPS)

    estimate = peak(angles, _PROBED if hoped < math.inf else max(_PROBED, len(angles) // 4))
    c = hoped if estimate <= hoped <= 1.2 * estimate else estimate
    chunk = max(1, _CHUNK // polynomial.even[0].size)
    left, best = angles, 0.0
    for slack in SLACKS:
        c = float(np.float32(c * (1.0 + slack)))
        failed = []
        for start in range(0, len(left), chunk):
            now = left[start : start + chunk]
            bounds = np.max(_bounds(polynomial.at(now, cosine, sine), c, oracles).reshape(len(now), -1), axis=1)
            failed.append(now[bounds == np.inf])
            best = max(best, float(np.max(bounds[bounds < np.inf], initial=0.0)))
        left = np.concatenate(failed)
        if not len(left):
            break
        estimate = max(estimate, peak(left, len(angles) // 4 + 1))
        c = max(c / (1.0 + slack), estimate)
    if not best <= LOOSEST * estimate:
        estimate = peak(angles, len(angles))
    return best if not len(left) and best <= LOOSEST * estimate else math.inf


def _bounds(minus: Parts, c: float, oracles: Oracles) -> Array:
    """Upper bounds of the largest eigenvalues, ``(batch,)``, given minus the matrices; infinity where c is too low."""
    frobenius = sqrt_up(add_up(squares_up(minus[0]), squares_up(minus[1])))
    bounds = np.where(frobenius <= c, c, np.inf)
    (hard,) = np.nonzero(bounds == np.inf)
    if len(hard):
        H = minus if len(hard) == len(bounds) else (minus[0][hard], minus[1][hard])
        rounding = shifted(H, c)
        bounds[hard] = add_up(add_up(c, psd_defect(H, oracles)), rounding)
    return bounds


def _cholesky(stack: Array) -> Array:
    factor, info = torch.linalg.cholesky_ex(torch.from_numpy(stack))
    factor[info != 0] = math.nan
    return factor.numpy()


def _solve(factor: Array, right: Array) -> Array:
    # A small inverse and a product are faster than a substitution; the residual tells whether they were good enough.
    L = torch.from_numpy(factor)
    unit = torch.eye(L.shape[-1], dtype=L.dtype).expand(L.shape)
    return np.matmul(torch.linalg.solve_triangular(L, unit, upper=False).numpy(), right)


_TORCH = Oracles(_cholesky, _solve)
