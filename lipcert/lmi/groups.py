r"""Sorting and reflecting: functions that keep a direction of every group of entries. Floor 2.

Between two runs the outputs :math:`\delta u` of a group of n entries have the part of :math:`\delta v` along a unit
vector q, exactly, and no more of the rest:

.. math:: q^T \delta u = q^T \delta v, \qquad |\delta u - q q^T \delta u| \le |\delta v - q q^T \delta v| .

For sorting q is constant, since a sum does not change, and the inequality is that of rearrangements. For the reflection
of a pair at a line, q is the line. With coordinates of the rest, :math:`s = C v` and :math:`w = C u`, this is
:math:`u = q q^T v + D w` and the constraint of an activation with slopes in [-1, 1] whose neurons share a multiplier:
:math:`\lambda \sum_i (w_i - s_i)(w_i + s_i) \le 0`.

The multiplier of a sorted group stands before the sum over pairs, :math:`\sum_{i<j} (\delta u_i - \delta u_j)^2 \le
\sum_{i<j} (\delta v_i - \delta v_j)^2`, so that the coordinate of a pair is its difference, without a root.

References:
    Novel quadratic constraints for extending LipSDP beyond slope-restricted activations (Pauli, Havens, Araujo, Garg,
    Khorrami, Allgower and Hu, 2024): the class with free multipliers for q; here q's equation is solved instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from lipcert.errors import UnsupportedOperation
from lipcert.graph import Node, Opaque
from lipcert.kernel.angles import cosine_and_sine
from lipcert.linear import Shape

FUNCTIONS = ("sort", "householder")


@dataclass(frozen=True, eq=False)
class Groups:
    """The groups of a node and what it does to each, as matrices, one for each group or one for all.

    Attributes:
        index: Flat positions of the members, ``(groups, n)``.
        q: A multiple of the direction that is kept, ``(.., 1, n)``.
        p: The multiple of it that makes ``p q`` the projection, ``(.., n, 1)``.
        C: Coordinates of the rest, ``(.., coordinates, n)``.
        D: ``D C`` is the other projection, ``(.., n, coordinates)``.
        roundings: How many roundings of `sizes` an entry of these may be off.
        least: The least size.
    """

    index: Tensor
    q: Tensor
    p: Tensor
    C: Tensor
    D: Tensor
    roundings: int
    least: float

    @property
    def coordinates(self) -> int:
        """How many each group has, besides the part along q."""
        return self.C.shape[-2]

    def sizes(self, matrix: Tensor) -> Tensor:
        """What the errors of a matrix's entries are relative to: their moduli, or ``least`` where that is more."""
        return matrix.abs().clamp_min(self.least)


def constrained(node: Node) -> bool:
    """Whether the node is a function of this kind.

    Example:
        >>> constrained(Opaque("a", "x", (2,), "softmax", {"dim": 0}, {}, torch.relu))
        False
    """
    return isinstance(node, Opaque) and node.function in FUNCTIONS


def coordinates(node: Node) -> int:
    """How many variables a node of this kind adds to a form."""
    size = math.prod(node.shape)
    return size - size // _members(node)


def groups(node: Node) -> Groups:
    """The groups of a node.

    Raises:
        UnsupportedOperation: If it is of another kind, or was recorded without saying which entries form a group.
    """
    n = _members(node)
    assert isinstance(node, Opaque)
    arrangement = node.parameters.get("arrangement", "interleaved")
    index = positions(node.shape, node.parameters["dim"], n, arrangement)
    if node.function == "sort":
        C, q = _helmert(n)[None], torch.ones(1, 1, n, dtype=torch.float64)
        # An entry of C is k sqrt(n / (k (k + 1))): rounded three times, and D = C' / n once more. None for pairs.
        return Groups(index, q, q.mT / n, C, C.mT / n, 0 if n == 2 else 6, 0.0)
    c, s = _unit_vectors(node, len(index))
    q, C = torch.stack([c, s], dim=1)[:, None, :], torch.stack([s, -c], dim=1)[:, None, :]
    return Groups(index, q, q.mT, C, C.mT, 2, 1.0)


def positions(shape: Shape, dim: int, n: int, arrangement: str) -> Tensor:
    """The flat positions of the members of every group along a dimension, ``(groups, n)``.

    Consecutive groups are ``n i, ..., n i + n - 1``; interleaved ones ``i, i + m, i + 2 m, ...`` with ``m = size / n``.

    Example:
        >>> positions((4,), 0, 2, "consecutive").tolist(), positions((4,), 0, 2, "interleaved").tolist()
        ([[0, 1], [2, 3]], [[0, 2], [1, 3]])
    """
    along = torch.arange(math.prod(shape)).reshape(shape).movedim(dim, 0)
    if arrangement == "consecutive":
        members = along.reshape(shape[dim] // n, n, -1)
    elif arrangement == "interleaved":
        members = along.reshape(n, shape[dim] // n, -1).movedim(0, 1)
    else:
        raise UnsupportedOperation(f"groups are consecutive or interleaved, not {arrangement!r}.", path="")
    return members.movedim(1, 2).reshape(-1, n)


def _members(node: Node) -> int:
    """How many entries a group has."""
    if not isinstance(node, Opaque) or node.function not in FUNCTIONS:
        raise UnsupportedOperation(
            f"`{node.name}` is not elementwise, so it has no diagonal multipliers. Certify by `LipSDP()`, which "
            f"cuts the network there, or by `Product()`.",
            path=node.name,
        )
    return 2 if node.function == "householder" else int(node.parameters["group"])


def _helmert(n: int) -> Tensor:
    """Rows orthogonal to the constant and to each other, with squared norm n: ``(1, ..., 1, -k, 0, ...)`` scaled."""
    C = torch.zeros(n - 1, n, dtype=torch.float64)
    for k in range(1, n):
        scale = math.sqrt(n / (k * (k + 1)))
        C[k - 1, :k], C[k - 1, k] = scale, -k * scale
    return C


def _unit_vectors(node: Opaque, count: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine of half the angle of every pair, within ``2^-53``."""
    theta = node.parameters["theta"]
    found = torch.tensor([cosine_and_sine(Fraction(value) / 2) for value in theta.tolist()], dtype=torch.float64)
    each = found.repeat_interleave(count // len(found), dim=0)
    return each[:, 0], each[:, 1]
