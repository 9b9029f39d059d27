"""Matrix products with constant matrices. Floor 3."""

from __future__ import annotations

import operator

import torch
from torch import Tensor, nn

from lipcert.errors import InvalidInput, UnsupportedOperation
from lipcert.linear import Dense
from lipcert.lowering import Value, affine, lowers
from lipcert.rules.bounded import matrix_product
from lipcert.rules.structure import rearrange, reshaped


@lowers(nn.functional.linear)
def linear(input: Value, weight: Tensor, bias: Tensor | None = None) -> Value:
    """``x @ weight.T + bias`` on the last dimension."""
    if weight.ndim != 2 or input.shape[-1:] != weight.shape[1:]:
        raise InvalidInput(
            f"`{input.path}` applies a weight of shape {tuple(weight.shape)} to samples of shape {input.shape}; "
            f"their last dimension must be {weight.shape[-1]}."
        )
    return affine(input, Dense(weight, input.shape), bias)


@lowers(nn.Linear)
def linear_module(module: nn.Linear, input: Value) -> Value:
    """`linear` with the module's weight."""
    return linear(input, module.weight, module.bias)


@lowers(torch.matmul, operator.matmul, operator.imatmul, "matmul", torch.mm, "mm")
def matmul(input: Value | Tensor, other: Value | Tensor) -> Value:
    """A product with a constant matrix, on either side."""
    if isinstance(input, Value) and isinstance(other, Value):
        return matrix_product(input, other)
    if isinstance(input, Value):
        assert isinstance(other, Tensor)
        return _from_the_right(input, other)
    assert isinstance(other, Value)
    return _from_the_left(input, other)


def _from_the_right(x: Value, matrix: Tensor) -> Value:
    if matrix.ndim == 1:
        y = linear(x, matrix[None])
        return reshaped(y, y.shape[:-1])
    if matrix.ndim != 2:
        raise _batched(x, matrix)
    return linear(x, matrix.T)


def _from_the_left(matrix: Tensor, x: Value) -> Value:
    if matrix.ndim != 2 or len(x.shape) < 2:
        raise _batched(x, matrix)
    columns = rearrange(x, lambda positions: positions.mT)
    return rearrange(linear(columns, matrix), lambda positions: positions.mT)


def _batched(x: Value, matrix: Tensor) -> UnsupportedOperation:
    return UnsupportedOperation(
        f"`{x.path}` multiplies samples of shape {x.shape} by a constant of shape {tuple(matrix.shape)}; only one "
        f"matrix, which does not touch the batch dimension, is covered.",
        path=x.path,
    )


@lowers(torch.addmm, "addmm")
def addmm(input: Tensor, mat1: Value, mat2: Tensor, *, beta: float = 1, alpha: float = 1) -> Value:
    """``input + mat1 @ mat2`` with constant ``input`` and ``mat2``."""
    if beta != 1 or alpha != 1 or input.ndim > 2 or (input.ndim == 2 and input.shape[0] != 1):
        raise UnsupportedOperation(f"`{mat1.path}` uses addmm with beta, alpha or a bias per sample.", path=mat1.path)
    return linear(mat1, mat2.T, input.reshape(input.shape[-1:]))
