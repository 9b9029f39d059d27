r"""Shift-invariant maps between grids, and their symbols. Floor 2.

A kernel reads, at output position i, the input positions :math:`i s + t` for offsets t, with a matrix over channels
for each. Grids whose spacings differ are brought to one coarse grid by sorting positions into phases, which become
channels: position p of a grid with P phases is position :math:`\lfloor p / P \rfloor` of phase :math:`p \bmod P`. On
the coarse grid every kernel has stride 1, and the Fourier transform makes it a matrix for every frequency.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipcert.errors import UnsupportedOperation
from lipcert.kernel.roots import unit_roots
from lipcert.linear import Adjoint, Conv, Diagonal, Factor, LinearMap, Reshape, Selection, Separable, Shape


@dataclass(frozen=True, eq=False)
class Kernel:
    """Output i reads, with ``values[t]``, the input at ``i * stride + offsets[t]``; or the transpose of that.

    Attributes:
        offsets: ``(T, dimensions)``, int64.
        values: ``(T, out channels, in channels)``, float64.
        stride: Per dimension.
        roundings: How many roundings a value may be off; 0 where values are weights.
        circular: Whether positions outside the input read its other end; else they read zero.
        transposed: Whether the map is the transpose: ``values`` are then those of the map transposed.
    """

    offsets: Tensor
    values: Tensor
    stride: Shape
    roundings: int = 0
    circular: bool = False
    transposed: bool = False


@dataclass(frozen=True, eq=False)
class Taps:
    """At coarse position q, ``sum of values[t]`` times what stands at ``q + positions[t]``.

    Attributes:
        positions: ``(T, dimensions)``, int64, all different.
        values: ``(T, rows, columns)``; rows and columns are channels times phases.
        sizes: The same shape: bounds of the terms that values are sums of.
    """

    positions: Tensor
    values: Tensor
    sizes: Tensor

    @property
    def magnitude(self) -> Tensor:
        """The sum of all sizes, ``(rows, columns)``: no symbol is larger anywhere."""
        return self.sizes.sum(0)


@dataclass(frozen=True, eq=False)
class Field:
    """A difference on the torus: a sum of shift-invariant maps of variables.

    Attributes:
        blocks: For every variable it reads, the map.
        rows: Channels times phases.
        roundings: How many roundings of the sizes a value may be off.
    """

    blocks: Mapping[str, Taps]
    rows: int
    roundings: int = 0


def kernel(linear: LinearMap, path: str) -> Kernel:
    """The kernel of a map of images ``(channels, *sizes)``.

    Raises:
        UnsupportedOperation: If the map is not shift-invariant.
    """
    match linear:
        case Conv(padding=padding, padding_mode=mode) if mode in ("zeros", "circular") or not any(map(any, padding)):
            return _of_convolution(linear)
        case Adjoint(conv):
            return replace(_of_convolution(conv), transposed=True)
        case Diagonal(scale, in_shape) if len(in_shape) > 1:
            full = scale.expand(in_shape).reshape(in_shape[0], -1)
            if bool((full == full[:, :1]).all()):
                dimensions = len(in_shape) - 1
                return Kernel(_origin(dimensions), torch.diag(full[:, 0])[None], (1,) * dimensions)
        case Separable(factors, in_shape) if len(in_shape) > 1 and factors[0] is None:
            one = torch.eye(in_shape[0], dtype=torch.float64)
            return _of_windows(factors[1:], one, path)
        case Selection(index, in_shape) if len(in_shape) > 1 and index.ndim == len(in_shape):
            return _of_windows(*_axes(index, in_shape, path), path)
        case Reshape(in_shape, out_shape) if in_shape == out_shape and len(in_shape) > 1:
            dimensions = len(in_shape) - 1
            return Kernel(_origin(dimensions), torch.eye(in_shape[0], dtype=torch.float64)[None], (1,) * dimensions)
    kind = type(linear).__name__
    raise UnsupportedOperation(f"`{path}` is a {kind} that is not the same at every position.", path=path)


def reads(found: Kernel, out_sizes: Shape) -> list[tuple[int, int]]:
    """The first and the last position that any output reads, per dimension (of a transpose: that any input feeds)."""
    first, last = found.offsets.amin(0).tolist(), found.offsets.amax(0).tolist()
    return [
        (low, (size - 1) * s + high) for low, high, size, s in zip(first, last, out_sizes, found.stride, strict=True)
    ]


def taps(found: Kernel, phases: Shape) -> Taps:
    """A kernel on the coarse grid.

    Args:
        found: The kernel.
        phases: Of its input, per dimension; divisible by its stride. Of a transpose: of its output.
    """
    outs = [count // s for count, s in zip(phases, found.stride, strict=True)]
    rows, columns = found.values.shape[1:]
    entries: dict[tuple[int, ...], list[tuple[int, int, int]]] = {}
    for number, phase in enumerate(itertools.product(*(range(count) for count in outs))):
        reach = torch.tensor([r * s for r, s in zip(phase, found.stride, strict=True)]) + found.offsets
        for t, place in enumerate(reach.tolist()):
            coarse = tuple(p // count for p, count in zip(place, phases, strict=True))
            fine = 0
            for p, count in zip(place, phases, strict=True):
                fine = fine * count + p % count
            entries.setdefault(coarse, []).append((number, fine, t))
    positions = sorted(entries)
    values = torch.zeros(len(positions), rows, math.prod(outs), columns, math.prod(phases), dtype=torch.float64)
    for k, position in enumerate(positions):
        for number, fine, t in entries[position]:
            values[k, :, number, :, fine] += found.values[t]  # offsets differ: every cell receives one
    values = values.reshape(len(positions), rows * math.prod(outs), -1)
    where = torch.tensor(positions, dtype=torch.int64).reshape(len(positions), -1)
    if found.transposed:
        where, values = -where, values.mT.contiguous()
    return Taps(where, values, values.abs())


def identity(size: int, dimensions: int) -> Taps:
    """What leaves every position as it is."""
    one = torch.eye(size, dtype=torch.float64)[None]
    return Taps(_origin(dimensions), one, one)


def after(outer: Taps, inner: Taps) -> tuple[Taps, int]:
    """One map after another, and how many roundings an entry may be off, those of its factors not counted."""
    where = (outer.positions[:, None] + inner.positions[None]).flatten(0, 1)
    values = (outer.values[:, None] @ inner.values[None]).flatten(0, 1)
    sizes = (outer.sizes[:, None] @ inner.sizes[None]).flatten(0, 1)
    most = outer.values.shape[-1] + min(len(outer.positions), len(inner.positions)) + 2
    return collected(where, values, sizes), most


def collected(where: Tensor, values: Tensor, sizes: Tensor) -> Taps:
    """Taps with those of one position added up."""
    places, which = torch.unique(where, dim=0, return_inverse=True)
    if len(places) == len(where):
        order = which.argsort()
        return Taps(where[order], values[order], sizes[order])
    shape = (len(places), *values.shape[1:])
    return Taps(
        places, values.new_zeros(shape).index_add(0, which, values), sizes.new_zeros(shape).index_add(0, which, sizes)
    )


def symbol(found: Taps, frequencies: Tensor, torus: Shape) -> tuple[Tensor, Tensor]:
    r"""Real and imaginary part of :math:`\sum_t values_t e^{i \langle t, \theta \rangle}`, ``(F, rows, columns)``.

    Off by at most ``len(positions) + 4`` roundings of `Taps.magnitude`, those of the values not counted.

    Args:
        found: The map.
        frequencies: ``(F, dimensions)``: theta is ``2 pi frequency / size`` in every dimension.
        torus: The sizes.
    """
    order = math.lcm(*torus)
    steps = torch.tensor([order // size for size in torus])
    angles = ((frequencies * steps) @ found.positions.T) % order
    rows = found.values.flatten(1)
    tables = (torch.from_numpy(table).to(rows) for table in unit_roots(order))
    real, imaginary = (table[angles] @ rows for table in tables)
    shape = (len(frequencies), *found.values.shape[1:])
    return real.reshape(shape), imaginary.reshape(shape)


def half_spectrum(torus: Shape) -> Tensor:
    """Of every pair of opposite frequencies one, ``(F, dimensions)``; real maps have conjugate symbols there.

    Example:
        >>> half_spectrum((4,)).flatten().tolist(), len(half_spectrum((5, 5)))
        ([0, 1, 2], 13)
    """
    every = torch.tensor(list(itertools.product(*(range(size) for size in torus))), dtype=torch.int64)
    opposite = (-every) % torch.tensor(torus)
    scale = torch.tensor([math.prod(torus[k + 1 :]) for k in range(len(torus))])
    return every[(every * scale).sum(1) <= (opposite * scale).sum(1)]


def _origin(dimensions: int) -> Tensor:
    return torch.zeros(1, dimensions, dtype=torch.int64)


def _of_convolution(conv: Conv) -> Kernel:
    kernel_sizes = conv.weight.shape[2:]
    index = torch.tensor(list(itertools.product(*(range(k) for k in kernel_sizes))), dtype=torch.int64)
    offsets = index * torch.tensor(conv.dilation) - torch.tensor([before for before, _ in conv.padding])
    out, into = conv.weight.shape[0], conv.in_shape[0]
    values = conv.weight.new_zeros(len(index), out, into)
    per_out, per_in = out // conv.groups, into // conv.groups
    listed = conv.weight.flatten(2).permute(2, 0, 1)
    for g in range(conv.groups):
        rows = slice(g * per_out, (g + 1) * per_out)
        values[:, rows, g * per_in : (g + 1) * per_in] = listed[:, rows]
    circular = conv.padding_mode == "circular" and any(map(any, conv.padding))
    return Kernel(offsets, values, conv.stride, circular=circular)


def _axes(index: Tensor, in_shape: Shape, path: str) -> tuple[list[Factor | None], Tensor]:
    """What a selection does along every dimension, and between channels, if it does the same everywhere."""
    found = []
    places = torch.stack(torch.unravel_index(index.clamp_min(0), in_shape))
    for dim, size in enumerate(in_shape):
        # The largest over the other dimensions: where the selection is a product, all that are not -1 agree.
        of = torch.where(index < 0, -1, places[dim]).movedim(dim, 0).flatten(1).amax(1)
        found.append(torch.cat([torch.eye(size, dtype=torch.int64), torch.zeros(1, size, dtype=torch.int64)])[of])
    product = torch.ones((), dtype=torch.int64)
    numbers = torch.zeros((), dtype=torch.int64)
    for matrix, size in zip(found, in_shape, strict=True):
        product = product[..., None] * matrix.sum(1)
        numbers = numbers[..., None] * size + matrix.argmax(1)
    if not torch.equal(torch.where(product > 0, numbers, -1), index):
        raise UnsupportedOperation(f"`{path}` does not select the same at every position.", path=path)
    return [Factor(matrix, 1) for matrix in found[1:]], found[0].double()


def _of_windows(factors: Sequence[Factor | None], channels: Tensor, path: str) -> Kernel:
    """Averages over windows and their transposes, from one exact matrix per dimension, with a matrix over channels."""
    found = [_windows(factor) for factor in factors]
    ways = {transposed for *_, transposed in found if transposed is not None}
    if None in (offsets for offsets, *_ in found) or len(ways) > 1:
        raise UnsupportedOperation(f"`{path}` does not weigh the same window at every position.", path=path)
    offsets, weights = [], []
    for choice in itertools.product(*(each.items() for each, *_ in found if each is not None)):
        offsets.append([offset for offset, _ in choice])
        weights.append(math.prod(weight for _, weight in choice))
    channels = channels.T if ways == {True} else channels
    values = torch.tensor(weights, dtype=torch.float64)[:, None, None] * channels
    stride = tuple(s for _, s, _ in found)
    rounds = 2 * len(factors) + 2
    return Kernel(torch.tensor(offsets, dtype=torch.int64), values, stride, rounds, transposed=ways == {True})


def _windows(factor: Factor | None) -> tuple[dict[int, float] | None, int, bool | None]:
    """Weights by offset, stride, and whether the factor is the transpose of that; ``None`` weights if it is neither."""
    if factor is None:
        return {0: 1.0}, 1, None
    for matrix, transposed in ((factor.numerator, False), (factor.numerator.T, True)):
        rows = [row.nonzero().flatten().tolist() for row in matrix]
        strides = range(1, (matrix.shape[1] - 1) // max(1, len(rows) - 1) + 2)
        # A window for a single position is a head, not a grid; the checker has the same two limits.
        if min(matrix.shape) < 2 or matrix.numel() * len(strides) > 2**24:
            continue
        for s in strides:
            weights = {j - i * s: int(matrix[i, j]) for i, row in enumerate(rows) for j in row}
            wanted = [[weights.get(j - i * s, 0) for j in range(matrix.shape[1])] for i in range(len(rows))]
            if torch.equal(torch.tensor(wanted), matrix):
                return {offset: weight / factor.denominator for offset, weight in weights.items()}, s, transposed
    return None, 1, None
