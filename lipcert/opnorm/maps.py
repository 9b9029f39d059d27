"""`opnorm` and the maps whose norms need no Fourier transform. Floor 2.

All bounds are for the real map with the stored float64 weights, rounding of the computation included.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import singledispatch

import numpy as np
from torch import Tensor

from lipcert.certificate import Validity
from lipcert.errors import InvalidInput
from lipcert.kernel.dense import max_entry, norm1_upper, norm2_upper, norminf_upper, row_norms_upper
from lipcert.kernel.rounding import Array, require_ieee, round_up
from lipcert.linear import Dense, Diagonal, Factor, LinearMap, Reshape, Selection, Separable
from lipcert.norms import L1, L1_LINF, L2, L2_LINF, LINF, Norms, require_supported


@dataclass(frozen=True)
class Effort:
    """What an operator norm may cost; affects how tight a bound is, never whether it is one.

    Attributes:
        dense_side: Maps are written out as a matrix if its smaller side is at most this.
        dense_entries: ... and it has at most this many entries.
        flops: Floating-point operations for one convolution in the Fourier domain. The default is a few seconds.
    """

    dense_side: int = 2048
    dense_entries: int = 2**24
    flops: float = 2e11


@dataclass(frozen=True)
class NormBound:
    """An upper bound of an operator norm, and how it was found."""

    value: float
    validity: Validity
    method: str


def rigorous(value: float, method: str) -> NormBound:
    """A bound that holds with all rounding included."""
    return NormBound(value, Validity.RIGOROUS, method)


@singledispatch
def opnorm(linear: LinearMap, norms: Norms = L2, *, effort: Effort = Effort()) -> NormBound:
    r"""Bound the operator norm of a linear map, :math:`\max_x |A x|_q / |x|_p`, rigorously.

    Args:
        linear: The map; its weights are read as exact real numbers.
        norms: p on the input, q on the output; one of `lipcert.norms.SUPPORTED`. Default: ``L2``.
        effort: What it may cost.

    Returns:
        A ``RIGOROUS`` bound, rounded up: exact to rounding for everything but l2 norms of convolutions too large to
        be written out, where zero padding costs at most a few percent (less, the larger the input).

    Raises:
        NotFinite: If a weight is NaN or infinite.
        InvalidInput: If the norms are not supported, or the object is not a linear map.
        FloatEnvironment: If the processor does not round as IEEE 754 says.

    Example:
        >>> import torch
        >>> from lipcert.norms import LINF
        >>> opnorm(Dense(torch.tensor([[3.0, -4.0]], dtype=torch.float64), (2,)), LINF).value
        7.0
    """
    raise InvalidInput(f"{type(linear).__name__} is not a linear map of lipcert.linear; lower it to one first.")


def matrix_norm(A: Array, norms: Norms) -> float:
    """The norm of a matrix in a supported pair, rounded up."""
    require_supported(norms)
    table = {L1: norm1_upper, L2: norm2_upper, LINF: norminf_upper, L1_LINF: max_entry, L2_LINF: row_norms_upper}
    return table[norms](A)


def to_array(tensor: Tensor) -> Array:
    """A tensor's numbers for the kernel, which checks their type; half precisions are widened exactly."""
    tensor = tensor.detach().cpu()
    return (tensor.double() if tensor.dtype.is_floating_point else tensor).numpy()


@opnorm.register
def _dense(linear: Dense, norms: Norms = L2, *, effort: Effort = Effort()) -> NormBound:
    # The map is I (x) W over positions, and every supported norm of I (x) W is that of W.
    require_supported(norms)
    if 0 in linear.in_shape[:-1]:
        return rigorous(0.0, "empty")
    return rigorous(matrix_norm(to_array(linear.weight), norms), "matrix")


@opnorm.register
def _diagonal(linear: Diagonal, norms: Norms = L2, *, effort: Effort = Effort()) -> NormBound:
    require_supported(norms)
    if 0 in linear.in_shape:
        return rigorous(0.0, "empty")
    return rigorous(max_entry(to_array(linear.scale).reshape(1, -1)), "largest entry")


@opnorm.register
def _selection(linear: Selection, norms: Norms = L2, *, effort: Effort = Effort()) -> NormBound:
    require_supported(norms)
    index = linear.index.detach().cpu().numpy().ravel()
    used = index[index >= 0]
    if used.size == 0:
        return rigorous(0.0, "counting")
    copies = int(np.max(np.unique(used, return_counts=True)[1]))
    value = {L1: float(copies), L2: sqrt_fraction_up(Fraction(copies))}.get(norms, 1.0)
    return rigorous(value, "counting")


@opnorm.register
def _reshape(linear: Reshape, norms: Norms = L2, *, effort: Effort = Effort()) -> NormBound:
    require_supported(norms)
    return rigorous(0.0 if 0 in linear.in_shape else 1.0, "isometry")


@opnorm.register
def _separable(linear: Separable, norms: Norms = L2, *, effort: Effort = Effort()) -> NormBound:
    # Norms of a Kronecker product are products of norms, in every supported pair.
    require_supported(norms)
    require_ieee()
    if 0 in linear.in_shape:
        return rigorous(0.0, "empty")
    factors = [factor for factor in linear.factors if factor is not None]
    if norms == L2_LINF:
        squares = math.prod((_factor_norm(factor, norms, effort) for factor in factors), start=Fraction(1))
        return rigorous(sqrt_fraction_up(squares), "product of factors")
    if norms != L2:
        exact = math.prod((_factor_norm(factor, norms, effort) for factor in factors), start=Fraction(1))
        return rigorous(round_up(exact), "product of factors")
    # sqrt(|A|_1 |A|_inf) is exact for pooling without overlap; kept rational until the last step.
    schur = math.prod((_factor_norm(f, L1, effort) * _factor_norm(f, LINF, effort) for f in factors), start=Fraction(1))
    spectral = round_up(math.prod((_factor_norm(factor, L2, effort) for factor in factors), start=Fraction(1)))
    return rigorous(min(sqrt_fraction_up(schur), spectral), "product of factors")


def _factor_norm(factor: Factor, norms: Norms, effort: Effort) -> Fraction:
    """A factor's norm, exact but for l2 (an upper bound); for ``L2_LINF`` its square."""
    A = np.abs(factor.numerator.detach().cpu().numpy().astype(object))
    if A.size == 0:
        return Fraction(0)
    if norms == L2:
        return _factor_norm2(factor, A.shape, effort)
    total = {
        L1: lambda: A.sum(axis=0).max(),
        LINF: lambda: A.sum(axis=1).max(),
        L1_LINF: lambda: A.max(),
        L2_LINF: lambda: (A * A).sum(axis=1).max(),
    }[norms]()
    return Fraction(int(total), factor.denominator ** (2 if norms == L2_LINF else 1))


def _factor_norm2(factor: Factor, shape: tuple[int, ...], effort: Effort) -> Fraction:
    if min(shape) <= effort.dense_side and math.prod(shape) <= effort.dense_entries:
        value = norm2_upper(factor.numerator.detach().cpu().numpy())
        if value < math.inf:
            return Fraction(value) / factor.denominator
    square = _factor_norm(factor, L1, effort) * _factor_norm(factor, LINF, effort)
    return Fraction(sqrt_fraction_up(square))


def sqrt_fraction_up(value: Fraction) -> float:
    """The square root of a rational number, rounded up.

    Example:
        >>> sqrt_fraction_up(Fraction(9, 4)), sqrt_fraction_up(Fraction(2)) ** 2 > 2
        (1.5, True)
    """
    # A Fraction made from numpy integers keeps them, and those overflow.
    numerator, denominator = int(value.numerator), int(value.denominator)
    product = numerator * denominator
    root = math.isqrt(product)
    if root * root == product:
        return round_up(Fraction(root, denominator))
    shift = 128 + denominator.bit_length()
    return round_up(Fraction(math.isqrt(product << (2 * shift)) + 1, denominator << shift))
