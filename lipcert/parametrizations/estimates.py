r"""Estimates of an operator norm that training divides by and differentiates. Floor 3.

None is a proof: power iteration approaches the norm from below, and the others ignore rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from lipcert.errors import InvalidInput
from lipcert.linear import Adjoint, Conv, Dense, apply, dense
from lipcert.parametrizations.operators import Linear, Matrix, Operator, Rows

# A step that raises the estimate by less than the first number ends the iteration; one that raises it by more than
# the second shows that the weight has moved far, and the iteration goes on until it no longer does.
_STILL = 1e-5
_MOVED = 1e-3
_MOST = 100
_LARGEST_EXACT = 2**24


class Estimate(Protocol):
    """How training measures a norm."""

    def admit(self, operator: Operator) -> None:
        """Raise `InvalidInput` if the operator cannot be measured this way."""
        ...

    def settle(self, linear: Linear, vector: Tensor, cold: bool) -> Tensor:
        """Move the vector ``(1, *in_shape)`` after a weight has changed; cold, if it belongs to no weight yet."""
        ...

    def sigma(self, linear: Linear, vector: Tensor) -> Tensor:
        """The norm, a differentiable function of the weight; 0 for zero, and without overflow."""
        ...


@dataclass(frozen=True)
class PowerIteration:
    """``|A v|`` for a vector v that follows the top right singular vector by power iteration.

    Attributes:
        steps: Steps for every change of the weight; more are taken after large changes.
    """

    steps: int = 3

    def admit(self, operator: Operator) -> None:
        """Any operator will do."""
        if self.steps < 1:
            raise InvalidInput(f"power iteration needs at least one step, got {self.steps}.")

    def settle(self, linear: Linear, vector: Tensor, cold: bool) -> Tensor:
        """Take the steps, from a cold start as many as it needs."""
        return power_iteration(linear, vector, _MOST if cold else self.steps)

    def sigma(self, linear: Linear, vector: Tensor) -> Tensor:
        """``|A v|``, with v held fixed: the gradient is ``u v'`` where v is the singular vector."""
        return length(apply(linear, direction(vector)))


@dataclass(frozen=True)
class Lanczos:
    """``|A v|`` for a vector v that follows the top right singular vector in Krylov spaces of ``A' A``.

    A step costs what a step of power iteration does, and many such steps together gain as much as their square.

    Attributes:
        steps: Dimension of the space for every change of the weight; more spaces are built after large changes. At
            least 2, for a space of one dimension holds nothing new.
    """

    steps: int = 3

    def admit(self, operator: Operator) -> None:
        """Any operator will do."""
        if self.steps < 2:
            raise InvalidInput(f"a Krylov space needs at least two steps to leave its first vector, got {self.steps}.")

    def settle(self, linear: Linear, vector: Tensor, cold: bool) -> Tensor:
        """Build spaces until the estimate hardly rises."""
        for _ in range(_MOST):
            vector, before, sigma = krylov(linear, vector, self.steps)
            if sigma <= before * (1.0 + (_STILL if cold else _MOVED)) or not sigma < math.inf:
                break
        return vector

    def sigma(self, linear: Linear, vector: Tensor) -> Tensor:
        """``|A v|``, with v held fixed: the gradient is ``u v'`` where v is the singular vector."""
        return length(apply(linear, direction(vector)))


@dataclass(frozen=True)
class RowNorm:
    """The largest l2 norm of a row, for tables."""

    def admit(self, operator: Operator) -> None:
        """Only tables."""
        if not isinstance(operator, Rows):
            raise InvalidInput("RowNorm() measures embedding tables; use PowerIteration() here.")

    def settle(self, linear: Linear, vector: Tensor, cold: bool) -> Tensor:
        """There is nothing to move."""
        return vector

    def sigma(self, linear: Linear, vector: Tensor) -> Tensor:
        """The norm."""
        table = linear.weight
        peak = _peak(table)
        return torch.linalg.vector_norm(_unlike_zero(table / peak), dim=1).amax() * peak * _any(table)


@dataclass(frozen=True)
class Gram:
    r"""Gram iteration: ``|G|_F ** (1 / 2**steps)`` for repeated squares G of ``A' A``; from above, up to rounding.

    Attributes:
        steps: Number of squarings; the estimate is at most ``rank ** (1 / 2 ** (steps + 2))`` times the norm.

    References:
        | Efficient bound of Lipschitz constant for convolutional layers by Gram iteration (Delattre et al., 2023)
        | https://arxiv.org/abs/2305.16173
    """

    steps: int = 5

    def admit(self, operator: Operator) -> None:
        """Matrices, and convolutions with zero or circular padding."""
        _require_stack(operator, "Gram()")

    def settle(self, linear: Linear, vector: Tensor, cold: bool) -> Tensor:
        """There is nothing to move."""
        return vector

    def sigma(self, linear: Linear, vector: Tensor) -> Tensor:
        """The largest bound over the stack of matrices."""
        stack, peak = _stack(linear)
        tall = stack if stack.shape[-2] >= stack.shape[-1] else stack.mT
        G = tall.mH @ tall
        exponent = torch.zeros(G.shape[:-2], dtype=peak.dtype, device=peak.device)
        for _ in range(self.steps):
            size = _frobenius(G)
            G = G / size[..., None, None]
            G = G @ G
            exponent = 2.0 * (exponent + size.log())
        exponent = (exponent + _frobenius(G).log()) / 2.0 ** (self.steps + 1)
        return exponent.exp().amax() * peak * _any(linear.weight)


@dataclass(frozen=True)
class Fourier:
    """Singular values of a convolution's symbol on a torus that contains the convolution; exact for circular padding.

    References:
        | The Singular Values of Convolutional Layers (Sedghi et al., 2019), https://arxiv.org/abs/1805.10408
    """

    def admit(self, operator: Operator) -> None:
        """Convolutions with zero or circular padding."""
        if isinstance(operator, Matrix):
            raise InvalidInput("Fourier() measures convolutions; use Exact() or PowerIteration() for a matrix.")
        _require_stack(operator, "Fourier()")

    def settle(self, linear: Linear, vector: Tensor, cold: bool) -> Tensor:
        """There is nothing to move."""
        return vector

    def sigma(self, linear: Linear, vector: Tensor) -> Tensor:
        """The largest singular value over the frequencies."""
        stack, peak = _stack(linear)
        return torch.linalg.matrix_norm(stack, 2).amax() * peak * _any(linear.weight)


@dataclass(frozen=True)
class Exact:
    """The largest singular value of the map written out as a matrix; for small layers."""

    def admit(self, operator: Operator) -> None:
        """Maps of at most 2**24 entries."""
        if not isinstance(operator, Matrix):
            linear = operator.linear(torch.zeros(1, 1, *[1] * (len(operator.in_shape) - 1)))
            entries = math.prod(linear.in_shape) * math.prod(linear.out_shape)
            if entries > _LARGEST_EXACT:
                raise InvalidInput(
                    f"Exact() would write a convolution out as a matrix of at least {entries} entries, more than "
                    f"{_LARGEST_EXACT}; use Fourier() or PowerIteration()."
                )

    def settle(self, linear: Linear, vector: Tensor, cold: bool) -> Tensor:
        """There is nothing to move."""
        return vector

    def sigma(self, linear: Linear, vector: Tensor) -> Tensor:
        """The largest singular value."""
        peak = _peak(linear.weight)
        matrix = dense(replace(linear, weight=_unlike_zero(linear.weight / peak)))
        return torch.linalg.matrix_norm(matrix, 2) * peak * _any(linear.weight)


def power_iteration(linear: Linear, v: Tensor, steps: int = _MOST) -> Tensor:
    """Power iteration ``v <- A' A v``, normalised: ``steps`` times, fewer if it stands still, more if it moves far.

    The estimate ``|A v|`` only rises.

    Args:
        linear: The map.
        v: ``(1, *in_shape)``.
        steps: How often.
    """
    before = 0.0
    for step in range(_MOST):
        v = direction(v)
        image = apply(linear, v)
        sigma = float(length(image))
        if sigma <= before * (1.0 + (_STILL if step <= steps else _MOVED)) or not sigma < math.inf:
            return v
        if step == steps and sigma <= before * (1.0 + _MOVED):
            return v
        before, v = sigma, transpose(linear, direction(image))
    return direction(v)


def krylov(linear: Linear, v: Tensor, steps: int) -> tuple[Tensor, float, float]:
    """The unit vector that A stretches most in ``span(v, A'A v, ...)``; how much A stretches v, and how much it.

    Args:
        linear: The map A.
        v: ``(1, *in_shape)``.
        steps: Dimension of the space.
    """
    basis = direction(v).flatten()[None]
    images = apply(linear, basis[-1].reshape(v.shape)).flatten(1)
    for _ in range(steps - 1):
        w = transpose(linear, images[-1].reshape(1, *linear.out_shape)).flatten()
        for _ in range(2):
            w = w - (basis @ w) @ basis
        basis = torch.cat([basis, direction(w)[None]])
        images = torch.cat([images, apply(linear, basis[-1].reshape(v.shape)).flatten(1)])
    T = (images @ images.mT).double().cpu()
    values, vectors = torch.linalg.eigh(T) if bool(torch.isfinite(T).all()) else (T[0], T)
    ritz = vectors[:, -1].to(basis) @ basis
    before, after = (math.sqrt(max(0.0, float(square))) for square in (T[0, 0], values[-1]))
    return direction(ritz).reshape(v.shape), before, after


def transpose(linear: Linear, y: Tensor) -> Tensor:
    """Apply ``A'`` to a batch, without autograd, which saved-tensor hooks and transforms would observe."""
    if isinstance(linear, Dense):
        return y @ linear.weight
    if linear.padding_mode == "zeros":
        return apply(Adjoint(linear), y)
    # A = (convolution without padding) (gather of padded positions): the transpose of a gather is a scatter-add.
    sizes = linear.in_shape[1:]
    pads = [amount for pair in reversed(linear.padding) for amount in pair]
    positions = torch.arange(math.prod(sizes), dtype=torch.float64, device=y.device).reshape(1, 1, *sizes)
    gather = F.pad(positions, pads, mode=linear.padding_mode).long()
    padded = (linear.in_shape[0], *gather.shape[2:])
    bare = replace(linear, in_shape=padded, padding=((0, 0),) * len(sizes), padding_mode="zeros")
    spread = apply(Adjoint(bare), y).flatten(2)
    folded = y.new_zeros(len(y), linear.in_shape[0], math.prod(sizes))
    return folded.index_add(2, gather.flatten(), spread).reshape(len(y), *linear.in_shape)


def direction(v: Tensor) -> Tensor:
    """``v / |v|``, and zero for zero; there is no epsilon, which would bias small vectors."""
    v = v / _peak(v)
    norm = torch.linalg.vector_norm(v)
    return v / torch.where(norm > 0, norm, torch.ones_like(norm))


def length(v: Tensor) -> Tensor:
    """``|v|`` without overflow, differentiable; 0 with gradient 0 for zero."""
    peak = _peak(v)
    return torch.linalg.vector_norm(v / peak) * peak


def _peak(v: Tensor) -> Tensor:
    """The largest magnitude, 1 for zero; a constant."""
    peak = v.detach().abs().amax()
    return torch.where(peak > 0, peak, torch.ones_like(peak))


def _any(weight: Tensor) -> Tensor:
    """0 for a zero weight, else 1."""
    return (weight.detach() != 0).any().to(weight.dtype)


def _unlike_zero(unit: Tensor) -> Tensor:
    """Ones in place of zero, where roots and singular values have no derivative."""
    return torch.where((unit.detach() != 0).any(), unit, torch.ones_like(unit))


def _frobenius(G: Tensor) -> Tensor:
    """Frobenius norms of a stack; the least positive number in place of 0, whose logarithm has no gradient."""
    square = (G * G.conj()).real.sum((-2, -1))
    return square.clamp(min=torch.finfo(square.dtype).tiny).sqrt()


def _require_stack(operator: Operator, what: str) -> None:
    if isinstance(operator, Rows):
        raise InvalidInput(f"{what} measures spectral norms; a table needs none, leave `estimate` out.")
    if isinstance(operator, Matrix):
        return
    linear = operator.linear(torch.zeros(1, 1, *[1] * (len(operator.in_shape) - 1)))
    assert isinstance(linear, Conv)
    if linear.padding_mode not in ("zeros", "circular"):
        raise InvalidInput(f"{what} needs zero or circular padding, got {linear.padding_mode!r}; use PowerIteration().")
    if linear.padding_mode == "circular" and any(
        n % s for n, s in zip(linear.in_shape[1:], linear.stride, strict=True)
    ):
        raise InvalidInput(
            f"{what} needs circular sizes {linear.in_shape[1:]} that the stride {linear.stride} divides; "
            f"use PowerIteration()."
        )


def _stack(linear: Linear) -> tuple[Tensor, Tensor]:
    """Matrices whose largest norm is that of the map (or bounds it, for zero padding), over their peak; the peak."""
    peak = _peak(linear.weight)
    unit = _unlike_zero(linear.weight / peak)
    if isinstance(linear, Dense):
        return unit[None], peak
    return _symbols(unit, linear), peak


def _symbols(kernel: Tensor, conv: Conv) -> Tensor:
    """``(frequencies * groups, out, in * phases)``: the symbol on a torus on which no wrapped tap is seen."""
    taps, sizes, count = kernel.shape[2:], conv.in_shape[1:], kernel.ndim - 2
    reach = [d * (k - 1) + 1 for d, k in zip(conv.dilation, taps, strict=True)]
    wraps = conv.padding_mode == "circular"
    extra = [0 if wraps else r for r in reach]
    steps = [-(-(n + e) // s) for n, e, s in zip(sizes, extra, conv.stride, strict=True)]
    around = [n * s for n, s in zip(steps, conv.stride, strict=True)]
    places = torch.zeros((), dtype=torch.long, device=kernel.device)
    for k, d, size in zip(taps, conv.dilation, around, strict=True):
        places = places[..., None] * size + (torch.arange(k, device=kernel.device) * d) % size
    torus = kernel.new_zeros(*kernel.shape[:2], math.prod(around))
    torus = torus.index_add(2, places.flatten(), kernel.flatten(2))
    split = [part for pair in zip(steps, conv.stride, strict=True) for part in pair]
    torus = torus.reshape(*kernel.shape[:2], *split)
    spatial = [2 + 2 * i for i in range(count)]
    symbol = torch.fft.fftn(torus, dim=spatial)
    phases = [3 + 2 * i for i in range(count)]
    symbol = symbol.permute(*spatial, 0, 1, *phases).flatten(count + 1)
    return symbol.reshape(math.prod(steps) * conv.groups, -1, symbol.shape[-1])
