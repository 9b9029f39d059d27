"""Singular values of the linear layers of a network that are small enough to be written out. Floor 5.

They are computed in floating point, for a person to look at. No bound rests on them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.graph import Affine, Graph
from lipcert.linear import Dense, Diagonal, LinearMap, Reshape, Shape, dense

ENTRIES = 2**22
"""Entries of a matrix, and of the unit vectors it is read from, that are written out: 32 MiB in float64."""

WORK = 2**31
"""Products of both sides and the shorter side up to which singular values are computed: about a second."""


@dataclass(frozen=True, eq=False)
class Spectrum:
    """All singular values of one linear layer, or why there are none.

    Attributes:
        node: The layer's name.
        matrix: Its outputs and inputs. A matrix that acts alike at many positions counts once.
        values: Descending, float64; empty if they were left out.
        left_out: Why they were, otherwise empty.
    """

    node: str
    matrix: Shape
    values: Tensor
    left_out: str = ""


def spectra(graph: Graph, *, entries: int = ENTRIES, work: int = WORK) -> tuple[Spectrum, ...]:
    """The singular values of every linear layer that is not a mere change of shape.

    They are those of the dense matrix of the layer as it acts, with stride and padding, by LAPACK in float64: accurate
    to rounding, not proved.

    Args:
        graph: The network.
        entries: Largest number of entries of a matrix that is written out.
        work: Largest ``m n min(m, n)`` for a matrix of m rows and n columns.

    Example:
        >>> from lipcert.graph import Input
        >>> layer = Affine("fc", "x", Dense(torch.tensor([[3.0, 0.0], [0.0, 4.0]], dtype=torch.float64), (2,)), None)
        >>> spectra(Graph((Input("x", (2,)), layer)))[0].values.tolist()
        [4.0, 3.0]
    """
    layers = [node for node in graph if isinstance(node, Affine) and not isinstance(node.map, Reshape)]
    return tuple(_spectrum(node.name, node.map, entries, work) for node in layers)


def _spectrum(name: str, linear: LinearMap, entries: int, work: int) -> Spectrum:
    rows, columns = _sides(linear)
    nothing = torch.zeros(0, dtype=torch.float64)
    written = 0 if isinstance(linear, Dense | Diagonal) else max(rows, columns) * columns
    needed = 0 if isinstance(linear, Diagonal) else rows * columns * min(rows, columns)
    if written > entries or needed > work:
        return Spectrum(name, (rows, columns), nothing, f"too large: {rows} x {columns}")
    try:
        values = _singular_values(linear)
    except RuntimeError as error:  # LAPACK on NaN, or a file whose weights do not fit its shapes
        return Spectrum(name, (rows, columns), nothing, f"not computable: {str(error).splitlines()[0]}")
    return Spectrum(name, (rows, columns), values)


def _sides(linear: LinearMap) -> tuple[int, int]:
    if isinstance(linear, Dense):
        rows, columns = linear.weight.shape
        return rows, columns
    return math.prod(linear.out_shape), math.prod(linear.in_shape)


def _singular_values(linear: LinearMap) -> Tensor:
    match linear:
        case Dense(weight):
            return torch.linalg.svdvals(weight.double())
        case Diagonal(scale, in_shape):
            return scale.abs().expand(in_shape).flatten().sort(descending=True).values
        case _:
            return torch.linalg.svdvals(dense(linear))
