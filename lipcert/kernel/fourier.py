r"""Rigorous bounds of convolutions in the Fourier domain. Floor 1.

A stride-1 convolution on a torus is block diagonal in the Fourier basis; its norm is the largest norm of its symbol
:math:`F(\theta) = \sum_a W_a e^{i \langle a, \theta \rangle}` on the grid of frequencies. Strides are reduced to that
case by sorting input positions into residue classes, which become channels.

References:
    | The Singular Values of Convolutional Layers (Sedghi et al., 2019), https://arxiv.org/abs/1805.10408
    | Bernstein-Szego inequality: Inequalities for trigonometric polynomials (Duffin & Schaeffer, 1938)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from lipcert.errors import InvalidInput
from lipcert.kernel.backend import BLAS, Backend, Parts
from lipcert.kernel.psd import gram, gram_terms, top_eigenvalue_upper
from lipcert.kernel.roots import TABLE_ERROR, secant_up, unit_roots
from lipcert.kernel.rounding import (
    Array,
    add_up,
    as_real,
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

_CHUNK_BYTES = 2**23  # what a core keeps in its cache: the elementwise passes are as long as the products
_DROPPED_BELOW = 2.0**-300
_MOST_ROOTS = 2**16


@dataclass(frozen=True, eq=False)
class Symbol:
    """The taps of a stride-1 convolution on the integer lattice.

    Attributes:
        positions: ``(taps, dimensions)``, integers.
        taps: ``(taps, groups, out channels, in channels)`` within each group, float64.
    """

    positions: Array
    taps: Array

    @property
    def extent(self) -> tuple[int, ...]:
        """Lattice points from the first to the last tap, per dimension."""
        return tuple(int(size) + 1 for size in np.ptp(self.positions, axis=0))


@dataclass(frozen=True)
class Grid:
    """Frequencies ``2 pi (j + offset / 2) / size`` per dimension; an offset is 0 or 1.

    Offset 1 is the torus on which a full turn changes the sign. A finite zero-padded convolution embeds in either.
    """

    sizes: tuple[int, ...]
    offsets: tuple[int, ...]

    @property
    def order(self) -> int:
        """All frequencies are multiples of ``2 pi / order``."""
        return math.lcm(*(2 * size for size in self.sizes))


def polyphase(positions: Array, taps: Array, stride: tuple[int, ...]) -> Symbol:
    """The symbol of a strided convolution: input position ``a * stride + r`` becomes position a of channel r.

    Args:
        positions: ``(taps, dimensions)``: output i reads input ``i * stride + position``.
        taps: ``(taps, groups, out channels, in channels)``.
        stride: Per dimension.
    """
    positions = np.asarray(positions, dtype=np.int64)
    positions = positions - positions.min(axis=0)
    taps = as_real(taps, ndim=4).astype(np.float64, copy=False)
    phases = math.prod(stride)
    if phases == 1:
        return Symbol(positions, taps)
    coarse, phase = np.divmod(positions, stride)
    channel = np.asarray(np.ravel_multi_index(tuple(phase.T), stride))
    places, which = np.unique(coarse, axis=0, return_inverse=True)
    _, groups, out, into = taps.shape
    merged = np.zeros((len(places), groups, out, phases, into))
    for tap, place, r in zip(taps, which.ravel(), channel, strict=True):
        merged[place, :, :, r] += tap  # positions are distinct, so every cell receives one tap
    used = np.unique(channel)
    return Symbol(places, merged[:, :, :, used].reshape(len(places), groups, out, -1))


def work(symbol: Symbol, grid: Grid) -> float:
    """Floating-point operations `torus_norm_upper` needs, roughly."""
    taps, groups, out, into = symbol.taps.shape
    n, m = sorted((out, into))
    half = (grid.sizes[0] // 2 + 1) * math.prod(grid.sizes[1:])
    return float(half * groups) * (4.0 * m * n * n + 6.0 * n**3 + 8.0 * taps * m * n + 200.0 * n * n + 2000.0)


def any_size_factor(symbol: Symbol, sizes: tuple[int | None, ...]) -> float:
    r"""What turns the maximum over a grid into a bound over all frequencies, rounded up.

    A dimension whose size is ``None`` contributes nothing: its frequencies are meant to stay on their grid.

    With :math:`d_i` half the number of lattice steps the taps span, :math:`\sup_\theta \lVert F(\theta) \rVert \le
    \max_{grid} \lVert F \rVert / \cos(\sum_i \pi d_i / M_i)`: along a line, :math:`\Re u^* F v` is of exponential type
    :math:`\sum_i d_i |\delta_i|`, and a maximum falls off no faster than a cosine. Infinity if the sum is pi/2 or more.
    """
    pairs = zip(symbol.extent, sizes, strict=True)
    return secant_up(sum((Fraction(extent - 1, 2 * size) for extent, size in pairs if size is not None), Fraction(0)))


def torus_norm_upper(symbol: Symbol, grid: Grid, *, ceiling: float = math.inf, backend: Backend = BLAS) -> float:
    r"""An upper bound of :math:`\max_{\theta \in grid} \max_{groups} \lVert F(\theta) \rVert_2`, rounding included.

    Args:
        symbol: The convolution.
        grid: Frequencies per dimension.
        ceiling: Stop, and return infinity, once the bound is known to exceed this.
        backend: Where products, factors and estimates come from.

    Raises:
        NotFinite: If a tap is NaN or infinite.
        FloatEnvironment: If the processor does not round as IEEE 754 says.
        InvalidInput: If the frequencies have too fine a common measure.

    Example:
        >>> second_difference = polyphase(np.array([[0], [1], [2]]), np.reshape([-1.0, 2.0, -1.0], (3, 1, 1, 1)), (1,))
        >>> 4.0 <= torus_norm_upper(second_difference, Grid((6,), (0,))) <= 4.00000000001
        True
    """
    require_ieee()
    peak = largest_magnitude(symbol.taps)
    require_finite(peak)
    if peak == 0.0:
        return 0.0
    if grid.order > _MOST_ROOTS:
        raise InvalidInput(f"the grid {grid.sizes} has frequencies in steps of 2 pi / {grid.order}; use equal sizes.")
    exponent = math.frexp(peak)[1]
    scaled = _scaled_taps(symbol.taps, exponent)
    with np.errstate(all="ignore"):
        limit = (ceiling * 2.0**-exponent) if -1000 < exponent < 1000 else math.inf
        squared = _largest_squared(symbol.positions, scaled, grid, limit, backend)
        bound = float(add_up(sqrt_up(squared), _entry_error(scaled)))
    return scale_up(bound, exponent) if bound == bound else math.inf


def _scaled_taps(taps: Array, exponent: int) -> Array:
    """Taps times ``2**-exponent``, at most 1 in magnitude; what is below ``2**-300`` is left to `_entry_error`."""
    half = -exponent // 2
    scaled = taps * 2.0**half
    scaled *= 2.0 ** (-exponent - half)
    scaled[np.abs(scaled) < _DROPPED_BELOW] = 0.0
    return scaled


def total_magnitude_upper(taps: Array) -> float:
    """An upper bound, over groups, of the Frobenius norm of the entrywise sums of ``|taps|``."""
    sums = sum_up(np.abs(taps), 0)
    return float(np.max(sqrt_up(sum_of_squares_up(sums, (-2, -1)))))


def _entry_error(taps: Array) -> float:
    """Bound of ``| F - fl(F) |_2``: rounded products and sums, rounded cosines and sines, and dropped entries."""
    relative = mul_up(1.4142135623730952, add_up(gamma(len(taps)), 2.0 * TABLE_ERROR))
    dropped = _DROPPED_BELOW * (math.isqrt(taps.size) + 1) * len(taps)
    return float(add_up(mul_up(relative, total_magnitude_upper(taps)), dropped))


def gram_error(taps: Array) -> float:
    r"""Bound of ``| F* F - fl(F* F) |_2`` at every frequency, from ``|Re F| + |Im F| <= sqrt(2) sum |W|`` entrywise."""
    m = max(taps.shape[-2:])
    total = mul_up(total_magnitude_upper(taps), 1.0 + 1e-9)
    return float(mul_up(gamma(gram_terms((np.empty((m, 0)),) * 2)), mul_up(2.0, mul_up(total, total))))


def _largest_squared(positions: Array, taps: Array, grid: Grid, limit: float, backend: Backend) -> float:
    best, shift = 0.0, 0.0
    for stack in _symbol_stacks(positions, taps, grid, backend):
        proof = top_eigenvalue_upper(gram(stack, backend.gemm), shift, backend=backend)
        best, shift = float(np.maximum(best, proof.bound)), proof.shift  # unlike `max` it hands a NaN on
        if not best <= limit * limit:
            return math.inf
    return float(add_up(best, gram_error(taps)))


def _symbol_stacks(positions: Array, taps: Array, grid: Grid, backend: Backend) -> Iterator[Parts]:
    """Symbols in floating point, a few frequencies at a time, the most energetic ones first, short side last."""
    count, groups, out, into = taps.shape
    rows = np.ascontiguousarray(taps.reshape(count, -1))
    angles = _angles(positions, grid)
    cosine, sine = unit_roots(grid.order)
    order = _by_energy(rows, angles, cosine, sine)
    n, m = sorted((out, into))
    chunk = max(1, _CHUNK_BYTES // (16 * groups * (9 * n * n + 3 * m * n)))
    for start in range(0, len(angles), chunk):
        now = angles[order[start : start + chunk]]
        parts = tuple(backend.gemm(table[now], rows).reshape(len(now) * groups, out, into) for table in (cosine, sine))
        yield parts if out >= into else tuple(np.ascontiguousarray(part.swapaxes(1, 2)) for part in parts)


def _by_energy(rows: Array, angles: Array, cosine: Array, sine: Array) -> Array:
    r"""Order of decreasing Frobenius norm (a guess where the largest norm is; affects speed only)."""
    overlaps = rows @ rows.T
    c, s = cosine[angles], sine[angles]
    energy = np.einsum("ft,ft->f", c @ overlaps, c) + np.einsum("ft,ft->f", s @ overlaps, s)
    return np.argsort(-energy, kind="stable")


def _angles(positions: Array, grid: Grid) -> Array:
    """Angle numerators over ``grid.order``, ``(frequencies, taps)``; of each conjugate pair, one frequency.

    The taps are real, so ``F(-theta)`` is the conjugate of ``F(theta)``, of the same norm.
    """
    size, offset = grid.sizes[0], grid.offsets[0]
    first = [j for j in range(size) if j <= (-j - offset) % size]
    axes = [first, *(range(size) for size in grid.sizes[1:])]
    index = np.array(list(itertools.product(*axes)), dtype=np.int64)
    steps = np.array([grid.order // (2 * size) for size in grid.sizes], dtype=np.int64)
    frequencies = (2 * index + np.array(grid.offsets, dtype=np.int64)) * steps
    return (frequencies @ positions.T) % grid.order
