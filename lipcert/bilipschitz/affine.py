r"""How little an affine map can shorten: lower bounds of smallest singular values. Floor 5.

For any R, :math:`|x| \le |R A x| + |(I - R A) x|`, so :math:`|A x| \ge (1 - |I - R A|_2) / |R|_2 \; |x|`. R is an
approximate left inverse, of which nothing is assumed; both norms are bounded with all rounding included.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import torch

from lipcert.errors import UnsupportedOperation
from lipcert.graph import Affine, Graph
from lipcert.kernel.dense import norm2_upper
from lipcert.kernel.rounding import UNIT, Array, add_up, gamma, mul_up, round_down
from lipcert.linear import Conv, Dense, Diagonal, LinearMap, Reshape, Selection
from lipcert.lmi import normal_form
from lipcert.lmi.normal_form import INPUT
from lipcert.opnorm import opnorm
from lipcert.opnorm.maps import to_array

LARGEST = 2048
"""Most entries on a side of a map that is written out as a matrix."""

Sides = tuple[float, float, str]
"""Lower side, upper side, and why the lower one is what it is."""


def smallest_singular_value(A: Array, error: float = 0.0) -> float:
    """A lower bound of ``|(A + E) x|_2 / |x|_2`` over all x, for every E with ``|E|_2 <= error``.

    Args:
        A: ``(m, n)``, float64, finite.
        error: A bound of the norm of what is added to A.

    Returns:
        A number >= 0, below the smallest singular value by about its condition number times ``n u``, relatively; zero
        if nothing better is proved, as where m < n.

    References:
        | Verification methods: rigorous results using floating-point arithmetic (Rump, 2010), section 10

    Example:
        >>> 0.9999999999 < smallest_singular_value(np.array([[3.0, 0.0], [0.0, 1.0]])) <= 1.0
        True
        >>> smallest_singular_value(np.array([[1.0, 1.0], [1.0, 1.0]]))
        0.0
    """
    m, n = A.shape
    if m < n or n == 0:
        return 0.0
    with np.errstate(all="ignore"):
        try:
            R = np.linalg.inv(A) if m == n else np.linalg.pinv(A)
        except np.linalg.LinAlgError:
            return 0.0
        residual = R @ A - np.eye(n)
        if not (np.isfinite(R).all() and np.isfinite(residual).all()):
            return 0.0
        # The product is off by gamma_m |R| |A| entrywise, the difference by u of itself; and both may underflow.
        rounding = mul_up(mul_up(gamma(m), norm2_upper(np.abs(R))), norm2_upper(np.abs(A)))
        near = norm2_upper(residual)
        off = add_up(near, add_up(mul_up(mul_up(2.0 * UNIT, float(n)), near), add_up(rounding, m * n * n * 2.0**-1022)))
        size = norm2_upper(R)
    if not (off < 1.0 and 0.0 < size < math.inf):
        return 0.0
    return max(0.0, round_down((1 - Fraction(float(off))) / Fraction(size) - Fraction(error)))


def affine_sides(block: Graph) -> Sides:
    """Both sides of a network without nonlinear nodes."""
    if len(block.nodes) == 2 and isinstance(block.output, Affine):
        return map_sides(block.output.map, block)
    return _written_out(block)


def map_sides(linear: LinearMap, block: Graph) -> Sides:
    """Both sides of one map; ``block`` is the network that it alone makes."""
    match linear:
        case Reshape():
            return 1.0, 1.0, "moves entries"
        case Selection(index):
            return _selection(index, math.prod(linear.in_shape))
        case Diagonal(scale):
            least, most = float(scale.abs().min()), float(scale.abs().max())
            return least, most, "the smallest factor" if least else "a factor is zero"
        case Dense(weight):
            return _matrices(linear, [to_array(weight)])
        case Conv(weight=weight, groups=groups) if _is_pointwise(linear):
            return _matrices(linear, [to_array(group.flatten(1)) for group in weight.chunk(groups)])
        case _:
            least, most, reason = _written_out(block)
            return least, min(most, opnorm(linear).value), reason


def _selection(index: torch.Tensor, inputs: int) -> Sides:
    """An entry that occurs k times contributes k times its square."""
    counts = torch.bincount(index[index >= 0].flatten(), minlength=inputs)
    least, most = int(counts.min()), int(counts.max())
    dropped = int((counts == 0).sum())
    reason = f"{dropped} of {inputs} entries are dropped" if dropped else "moves entries"
    return _root(least, 0.0), _root(most, math.inf), reason


def _root(count: int, towards: float) -> float:
    """The square root, exact or one step off in a direction."""
    exact = math.isqrt(count)
    return float(exact) if exact * exact == count else math.nextafter(math.sqrt(count), towards)


def _matrices(linear: LinearMap, parts: list[Array]) -> Sides:
    least = min(smallest_singular_value(part) for part in parts)
    return least, opnorm(linear).value, _why(parts[0].shape, least)


def _why(shape: tuple[int, ...], least: float) -> str:
    rows, columns = shape
    if rows < columns:
        return f"{columns} numbers are mapped to {rows}"
    return "the smallest singular value" if least else "no smallest singular value above zero is proved"


def _is_pointwise(conv: Conv) -> bool:
    """Whether each output position reads its own input position only."""
    single = all(size == 1 for size in conv.weight.shape[2:]) and all(stride == 1 for stride in conv.stride)
    return single and not any(map(any, conv.padding)) and conv.out_sizes == conv.in_shape[1:]


def _written_out(block: Graph) -> Sides:
    rows, columns = math.prod(block.output.shape), math.prod(block.input.shape)
    if max(rows, columns) > LARGEST:
        return 0.0, math.inf, f"a map of {columns} to {rows} entries is not written out as a matrix (up to {LARGEST})"
    try:
        signal = normal_form(block).output
    except UnsupportedOperation as refusal:
        return 0.0, math.inf, str(refusal)
    A, error = np.zeros((rows, columns)), 0.0
    if INPUT in signal.blocks:
        A = to_array(signal.blocks[INPUT])
        if signal.sizes is not None:
            error = float(mul_up(2.0 * gamma(signal.roundings), norm2_upper(to_array(signal.sizes[INPUT]))))
            error = float(add_up(error, rows * columns * (signal.roundings + 1) * 2.0**-1022))
    least = smallest_singular_value(A, error)
    return least, float(add_up(norm2_upper(A), error)), _why((rows, columns), least)
