r"""The l2 norm of a convolution: written out if small, else embedded in a torus. Floor 2.

A zero-padded convolution is a restriction of a circular one on a large enough torus, periodic or antiperiodic; a
circular one is its own torus; with reflect and replicate padding it is a convolution after a padding map of known
norm. Restricting inputs or outputs never increases a norm.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from lipcert.kernel.dense import norm2_upper
from lipcert.kernel.fourier import Grid, Symbol, any_size_factor, polyphase, torus_norm_upper, work
from lipcert.kernel.rounding import Array, add_up, as_real, gamma, mul_up, sqrt_up
from lipcert.linear import Conv
from lipcert.norms import L1, LINF
from lipcert.opnorm.counting import conv_norm
from lipcert.opnorm.geometry import Axis, Line, axes, cover, lines, most_copies, reads
from lipcert.opnorm.maps import Effort, NormBound, rigorous, sqrt_fraction_up, to_array

_COARSE = (128, 96, 64, 48, 40, 32, 28, 24, 20, 18, 16, 15, 14, 13, 12)
# With this many frequencies per lattice step that the taps span, periodic and antiperiodic torus differ by a few parts
# in a thousand (the norm falls off its peak as a cosine): one is enough.
_TWISTED = 16


@dataclass(frozen=True)
class Embedding:
    """A torus that contains a convolution up to a factor: ``|conv| <= factor * max over the grid of |F|``.

    Attributes:
        positions: Input positions of the taps per dimension.
        strides: Per dimension.
        sizes: Stride steps around the torus, per dimension.
        twists: The offsets (see `Grid`) each dimension may have.
        factor: Rounded up.
    """

    positions: tuple[Array, ...]
    strides: tuple[int, ...]
    sizes: tuple[int, ...]
    twists: tuple[tuple[int, ...], ...]
    factor: float


def spectral_norm(conv: Conv, effort: Effort) -> NormBound:
    """An upper bound of the l2 norm of a convolution (and of its transpose): the best that ``effort`` affords."""
    schur = float(sqrt_up(mul_up(conv_norm(conv, L1), conv_norm(conv, LINF))))
    if schur == 0.0:
        return rigorous(0.0, "zero")
    bounds = [rigorous(schur, "counting")]
    if (exact := _written_out(conv, effort)) is not None:
        bounds.append(exact)
    else:
        bounds.append(_embedded(conv, _embedding(conv), effort))
    return min((bound for bound in bounds if bound.value == bound.value), key=lambda bound: bound.value)


def opnorm_any_size(conv: Conv, *, effort: Effort = Effort()) -> NormBound:  # noqa: B008
    r"""Bound the l2 norm of a convolution for every input size at once, :math:`\sup_\theta \lVert F(\theta) \rVert`.

    Args:
        conv: Its ``in_shape`` and ``out_sizes`` are ignored; padding amounts and mode are not.
        effort: What it may cost.

    Returns:
        A ``RIGOROUS`` bound of ``|y|_2 / |x|_2`` for inputs of any size (that the padding mode accepts).

    Example:
        >>> import torch
        >>> weight = torch.tensor([[[-1.0, 2.0, -1.0]]], dtype=torch.float64)
        >>> 4.0 <= opnorm_any_size(Conv(weight, (1, 5), (5,), (1,), ((1, 1),), (1,), 1, "zeros")).value < 4.01
        True
    """
    factors = [_any_size_copies(axis, int(after)) for axis, (_, after) in zip(axes(conv), conv.padding, strict=True)]
    # A circular input whose size the stride does not divide has no residue classes: keep all outputs instead.
    wraps = conv.padding_mode == "circular"
    strides = tuple(1 if wraps else axis.stride // math.gcd(axis.stride, axis.dilation) for axis in axes(conv))
    positions = tuple(np.arange(axis.taps) for axis in axes(conv))
    everywhere = (2**40,) * len(strides)
    twists = ((0,),) * len(strides)
    embedding = Embedding(positions, strides, everywhere, twists, sqrt_fraction_up(Fraction(math.prod(factors))))
    coarse = _coarse(_symbol(conv, embedding), embedding, effort)
    unfolded = _unfolded(conv, [f * -(-a.taps // s) for f, a, s in zip(factors, axes(conv), strides, strict=True)])
    return min((bound for bound in (coarse, unfolded) if bound is not None), key=lambda bound: bound.value)


def _any_size_copies(axis: Axis, after: int) -> int:
    """How often padding can repeat one input within the outputs, whatever the size."""
    match axis.mode:
        case "replicate":
            return 1 + max(0, axis.before) + max(0, after)
        case "reflect":
            return 1 + (axis.before > 0) + (after > 0)
        case "circular":
            # At most n on each side; without more padding than the kernel spans, no output occurs twice.
            return 1 if axis.before + after <= axis.dilation * (axis.taps - 1) else 3
        case _:
            return 1


def _embedding(conv: Conv) -> Embedding:
    parts = [_circular(axis) if conv.padding_mode == "circular" else _padded(axis) for axis in axes(conv)]
    positions, strides, sizes, twists, copies = zip(*parts, strict=True)
    return Embedding(positions, strides, sizes, twists, sqrt_fraction_up(Fraction(math.prod(copies))))


def _circular(axis: Axis) -> tuple[Array, int, int, tuple[int, ...], int]:
    """A stride that divides the size keeps its residue classes; otherwise the outputs of stride 1 are kept."""
    stride = axis.stride if axis.inputs % axis.stride == 0 else 1
    copies = most_copies(np.arange(axis.outputs) * axis.stride % axis.inputs)
    return np.arange(axis.taps) * axis.dilation, stride, axis.inputs // stride, (0,), copies


def _padded(axis: Axis) -> tuple[Array, int, int, tuple[int, ...], int]:
    """Zero padding, or a convolution of the padded input with the norm of padding as a factor."""
    copies = 1
    if axis.mode != "zeros":
        read = (axis.outputs - 1) * axis.stride + (axis.taps - 1) * axis.dilation + 1
        every = Axis(1, 1, 1, axis.inputs, read, axis.before, axis.mode)
        copies = most_copies(reads(every))
        axis = Axis(axis.taps, axis.stride, axis.dilation, read, axis.outputs, 0, "zeros")
    line = cover(lines(axis))
    return np.arange(axis.taps), line.stride, line.torus, (0, 1), copies


def _symbol(conv: Conv, embedding: Embedding) -> Symbol:
    weight = _weight(conv)
    out, into = weight.shape[:2]
    grouped = weight.reshape(conv.groups, out // conv.groups, into, -1)
    positions = np.array(list(itertools.product(*embedding.positions)))
    return polyphase(positions, np.moveaxis(grouped, -1, 0), embedding.strides)


def _embedded(conv: Conv, embedding: Embedding, effort: Effort) -> NormBound:
    symbol = _symbol(conv, embedding)
    bounds = [_unfolded(conv, [most_copies(reads(axis)) for axis in axes(conv)])]
    fourier = _on_torus(symbol, embedding, effort) or _coarse(symbol, embedding, effort)
    if fourier is not None:
        bounds.append(fourier)
    return min(bounds, key=lambda bound: bound.value)


def _on_torus(symbol: Symbol, embedding: Embedding, effort: Effort) -> NormBound | None:
    """The best over periodic and antiperiodic tori, as far as the budget reaches; ``None`` if for none."""
    budget, best = effort.flops, math.inf
    for grid in _grids(symbol, embedding):
        budget -= work(symbol, grid)
        if budget < 0.0:
            break
        best = min(best, torus_norm_upper(symbol, grid, ceiling=best))
    if best == math.inf:
        return None
    size = "x".join(str(size) for size in embedding.sizes)
    return rigorous(float(mul_up(best, embedding.factor)), f"torus {size}")


def _grids(symbol: Symbol, embedding: Embedding) -> Iterator[Grid]:
    """Frequencies along a dimension with a single tap change nothing, so one is enough there."""
    flat = [extent == 1 for extent in symbol.extent]
    sizes = [1 if one else size for one, size in zip(flat, embedding.sizes, strict=True)]
    if math.lcm(*(2 * size for size in sizes)) > 2**16:
        common = max(sizes)
        free = [len(twists) == 2 for twists in embedding.twists]  # a larger torus embeds as well
        sizes = [common if may and size > 1 else size for may, size in zip(free, sizes, strict=True)]
    if math.lcm(*(2 * size for size in sizes)) > 2**16:
        return
    rows = zip(symbol.extent, sizes, embedding.twists, strict=True)
    twists = [offsets[:1] if size > _TWISTED * (extent - 1) else offsets for extent, size, offsets in rows]
    for offsets in itertools.product(*twists):
        yield Grid(tuple(sizes), offsets)


def _coarse(symbol: Symbol, embedding: Embedding, effort: Effort) -> NormBound | None:
    """A grid within the budget, coarser than the torus in some dimensions, and the factor that makes up for it."""
    for size in _COARSE:
        sizes = [1 if e == 1 else min(size, n) for e, n in zip(symbol.extent, embedding.sizes, strict=True)]
        grid = Grid(tuple(sizes), (0,) * len(sizes))
        thinned = tuple(m if m < n else None for m, n in zip(sizes, embedding.sizes, strict=True))
        factor = any_size_factor(symbol, thinned)
        if work(symbol, grid) <= effort.flops and factor < math.inf and grid.order <= 2**16:
            value = mul_up(mul_up(torus_norm_upper(symbol, grid), factor), embedding.factor)
            return rigorous(float(value), f"grid {'x'.join(map(str, sizes))} / cos")
    return None


def _unfolded(conv: Conv, copies: list[int]) -> NormBound:
    """Cut out patches (each input occurs at most ``prod(copies)`` times), then apply the kernel as a matrix."""
    weight = _weight(conv)
    groups = weight.reshape(conv.groups, len(weight) // conv.groups, -1)
    kernel = max(norm2_upper(group) for group in groups)
    return rigorous(float(mul_up(kernel, sqrt_fraction_up(Fraction(math.prod(copies))))), "unfolding")


def _written_out(conv: Conv, effort: Effort) -> NormBound | None:
    """The norm of the matrix itself, group by group, if it is small enough."""
    if conv.padding_mode == "zeros":
        choices: list[list[Line]] = [lines(axis) for axis in axes(conv)]
        cases = [[line.reads() for line in case] for case in itertools.product(*choices)]
        sizes = [[line.last - line.first for line in case] for case in itertools.product(*choices)]
    else:
        cases, sizes = [[reads(axis) for axis in axes(conv)]], [[axis.inputs for axis in axes(conv)]]
    out, into = conv.weight.shape[0] // conv.groups, conv.weight.shape[1]
    cost = 0.0
    for targets, inputs in zip(cases, sizes, strict=True):
        n, m = sorted((out * math.prod(len(t) for t in targets), into * math.prod(inputs)))
        if n > effort.dense_side or n * m > effort.dense_entries:
            return None
        cost += conv.groups * (2.0 * m * n * n + 6.0 * n**3)
    if cost > effort.flops:
        return None
    values = [_case_norm(conv, targets, inputs) for targets, inputs in zip(cases, sizes, strict=True)]
    return rigorous(max(values), "matrix")


def _case_norm(conv: Conv, targets: list[Array], inputs: list[int]) -> float:
    weight = _weight(conv)
    groups = weight.reshape(conv.groups, len(weight) // conv.groups, *weight.shape[1:])
    norm = max(norm2_upper(matrix(group, targets, inputs)) for group in groups)
    if conv.padding_mode == "zeros":
        return norm  # no two taps share an entry
    # Entries that several taps share are rounded sums: off by gamma times the sum of magnitudes.
    terms = math.prod(weight.shape[2:])
    size = replace(conv, weight=conv.weight.abs())
    error = mul_up(gamma(terms), sqrt_up(mul_up(conv_norm(size, L1), conv_norm(size, LINF))))
    return float(add_up(norm, error))


def matrix(weight: Array, targets: list[Array], inputs: list[int]) -> Array:
    """Write out one group: ``(out * outputs, in * inputs)`` from ``reads`` per dimension, by index.

    Args:
        weight: ``(out, in, *kernel)``.
        targets: Per dimension, ``(outputs, taps)``: the input each tap reads, or -1.
        inputs: Input positions per dimension.
    """
    outputs = [len(target) for target in targets]
    full = np.zeros((weight.shape[0], math.prod(outputs), weight.shape[1], math.prod(inputs)))
    for tap in itertools.product(*(range(k) for k in weight.shape[2:])):
        columns = [target[:, j] for target, j in zip(targets, tap, strict=True)]
        inside = [np.flatnonzero(column >= 0) for column in columns]
        i = np.ravel_multi_index(np.ix_(*inside), outputs).ravel()
        t = np.ravel_multi_index(np.ix_(*(c[rows] for c, rows in zip(columns, inside, strict=True))), inputs).ravel()
        full[:, i, :, t] += weight[(slice(None), slice(None), *tap)]
    return full.reshape(full.shape[0] * full.shape[1], -1)


def _weight(conv: Conv) -> Array:
    return as_real(to_array(conv.weight)).astype(np.float64, copy=False)
