r"""A dense head on a convolutional part: both as one constraint, frequency by frequency. Floor 2.

Let :math:`y = W C z` with a dense W on the flattened image, and let :math:`\hat W_\theta = \sum_q W_q e^{i \langle q,
\theta \rangle}` over the F frequencies of the torus. With :math:`H_\theta` the constraint's matrix without the output,
:math:`\rho |x|^2 - |y|^2 + \dots \ge 0` for all z holds exactly if

.. math:: \frac1F \sum_\theta \hat W_\theta C_\theta H_\theta^{-1} C_\theta^* \hat W_\theta^* \preceq I, \qquad
          H_\theta \succ 0,

by a Schur complement: y couples the frequencies, but through a matrix as small as y. To show it, take any matrices
:math:`P_\theta` with :math:`\tfrac1F \sum_\theta \Re P_\theta \preceq I` for which every

.. math:: \begin{pmatrix} H_\theta & -C_\theta^* \hat W_\theta^* \\ -\hat W_\theta C_\theta & P_\theta \end{pmatrix}
          \succeq 0,

and sum their forms at :math:`(z_\theta, y)`: :math:`2 |y|^2 - |y|^2` is at most the rest. In other words
:math:`\hat W_\theta^* P_\theta^{-1} \hat W_\theta` is a shift-invariant majorant of :math:`W^T W`, and the best one
loses nothing. Multiplying H by t divides the sum by t, so for multipliers relative to :math:`\rho` the least
:math:`\rho` is the largest eigenvalue of the sum.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.errors import UnsupportedOperation
from lipcert.linear import Dense, LinearMap, Reshape, Separable, Shape, modulus
from lipcert.lmi.elimination import Factors
from lipcert.lmi.normal_form import INPUT, NormalForm
from lipcert.lmi.taps import Field, Taps

OUTPUT = "(output)"
"""The name of the one variable that a head's field reads."""


def head_field(maps: Sequence[LinearMap], shape: Shape, phases: Shape, path: str) -> Field:
    """The head as taps that read the whole image from the first coarse position.

    Args:
        maps: Affine maps in a row, of images first, the last one dense.
        shape: Of the image.
        phases: Of its grid.
        path: Where they end.

    Raises:
        UnsupportedOperation: If a map is neither dense, an average, nor a reshaping.
    """
    M, sizes, rounds = None, None, 0
    for linear in reversed(maps):
        match linear:
            case Reshape():
                continue
            case Dense(weight, in_shape) if M is None and len(in_shape) == 1:
                M, sizes = weight, weight.abs()
            case Dense(weight, in_shape) if M is not None and sizes is not None and len(in_shape) == 1:
                M, sizes, rounds = M @ weight, sizes @ weight.abs(), rounds + 2 * (weight.shape[0] + 2)
            case Separable() if M is not None and sizes is not None:
                M, sizes = _before(linear, M), _before(modulus(linear), sizes)
                rounds += 4 * sum(linear.in_shape) + 8
            case _:
                raise UnsupportedOperation(f"`{path}` is no dense head of an image.", path=path)
    if M is None or sizes is None:
        raise UnsupportedOperation(f"`{path}` is no dense head of an image.", path=path)
    return Field({OUTPUT: _as_taps(M, sizes, shape, phases)}, len(M), rounds)


def _before(linear: LinearMap, M: Tensor) -> Tensor:
    """A matrix after a Kronecker product."""
    assert isinstance(linear, Separable)
    found = M.reshape(len(M), *linear.out_shape)
    for dim, factor in enumerate(linear.factors, start=1):
        if factor is not None:
            matrix = factor.numerator.double() / factor.denominator
            found = torch.movedim(torch.movedim(found, dim, -1) @ matrix, -1, dim)
    return found.reshape(len(M), -1)


def _as_taps(M: Tensor, sizes: Tensor, shape: Shape, phases: Shape) -> Taps:
    coarse = [-(-size // count) for size, count in zip(shape[1:], phases, strict=True)]

    def sorted_by_phase(matrix: Tensor) -> Tensor:
        whole = matrix.new_zeros(len(M), shape[0], *(n * p for n, p in zip(coarse, phases, strict=True)))
        whole[(..., *(slice(size) for size in shape[1:]))] = matrix.reshape(len(M), *shape)
        split = whole.reshape(len(M), shape[0], *itertools.chain(*zip(coarse, phases, strict=True)))
        d = len(coarse)
        order = [*(2 + 2 * k for k in range(d)), 0, 1, *(3 + 2 * k for k in range(d))]
        return split.permute(order).reshape(math.prod(coarse), len(M), -1)

    places = torch.tensor(list(itertools.product(*(range(n) for n in coarse))), dtype=torch.int64)
    return Taps(places, sorted_by_phase(M), sorted_by_phase(sizes))


@dataclass(frozen=True, eq=False)
class Sum:
    """What is left of the constraint on the output: ``sum of weights N`` over frequencies, with what maximises.

    Attributes:
        N: ``(F, p, p)``, for every frequency ``B H^-1 B*`` with B the output's matrix.
        vectors: ``H^-1 B*`` by variables, ``(F, width, p)``.
    """

    N: Tensor
    vectors: dict[str, Tensor]


def summed(form: NormalForm, factors: Factors, rho: float) -> Sum | None:
    """``N`` for a form, from an elimination of the same form without output; ``None`` if H is not positive there."""
    r = {name: block.mH for name, block in form.output.blocks.items()}
    halves: dict[str, Tensor] = {}
    for layer in reversed(form.layers):
        if layer.name not in r:
            continue
        L, blocks = factors.rows[layer.name]
        halves[layer.name] = h = torch.linalg.solve_triangular(L, r[layer.name], upper=False)
        for a, block in blocks.items():
            r[a] = r[a] + block.mH @ h if a in r else block.mH @ h
    one = torch.eye(form.inputs, dtype=factors.G.dtype, device=factors.G.device)
    L, failed = torch.linalg.cholesky_ex(rho * one - factors.G)
    if bool(failed.any()):
        return None
    z: dict[str, Tensor] = {}
    N = sum(h.mH @ h for h in halves.values())
    if INPUT in r:
        h = torch.linalg.solve_triangular(L, r[INPUT], upper=False)
        N = N + h.mH @ h
        z[INPUT] = torch.linalg.solve_triangular(L.mH, h, upper=True)
    for layer in form.layers:
        L, blocks = factors.rows[layer.name]
        right = [block @ z[a] for a, block in blocks.items() if a in z]
        right += [halves[layer.name]] if layer.name in halves else []
        if right:
            z[layer.name] = torch.linalg.solve_triangular(L.mH, torch.stack(right).sum(0), upper=True)
    assert isinstance(N, Tensor)
    return Sum(N, z)
