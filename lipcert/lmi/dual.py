r"""What no multipliers can go below: feasible points of the semidefinite programme's dual. Floor 2.

Replace every number :math:`x_i, u_j` by a vector. If for all neurons that share a multiplier together

.. math:: |u - \tfrac{\alpha + \beta}{2} v| \le \tfrac{\beta - \alpha}{2} |v|, \qquad v = V z, \quad y = Y z,

that is :math:`\sum (u - \alpha v) \cdot (u - \beta v) \le 0`, then every :math:`(\rho, \lambda)` that satisfies the
incremental constraint has :math:`\rho \ge |y|^2 / |x|^2`: sum the constraint over the coordinates of the vectors. With
vectors of length one these are the network's linearisations; with long ones, all of the dual programme.

References:
    | A nonlinear programming algorithm for solving semidefinite programs via low-rank factorization (Burer and
      Monteiro, 2003)
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lipcert.lmi.elimination import Factors, over_batch
from lipcert.lmi.normal_form import INPUT, Layer, NormalForm

_SHARE = 1e-2

Vectors = Mapping[str, Tensor]
"""For the input and every activation one vector per entry: ``(..., size, r)``."""


def feasible(form: NormalForm, directions: Vectors) -> dict[str, Tensor]:
    """Vectors z that satisfy the constraint with equality: ``u = m v + t e`` with the directions e given.

    Args:
        form: The network in normal form.
        directions: The input's vectors, and for every activation a direction; its length does not matter.
    """
    z = {INPUT: directions[INPUT]}
    for layer in form.layers:
        v = layer.v.value(z, len(layer.alpha))
        z[layer.name] = _placed(layer, v, directions[layer.name])
    return z


def directions_of(form: NormalForm, guess: Vectors) -> dict[str, Tensor]:
    """The directions whose feasible vectors are, layer by layer, the nearest to a guess; lengths one per multiplier."""
    z, found = {INPUT: guess[INPUT]}, {INPUT: guess[INPUT]}
    for layer in form.layers:
        v = layer.v.value(z, len(layer.alpha))
        e = guess[layer.name] - 0.5 * (layer.alpha + layer.beta)[:, None] * v
        # Where the guess has no direction to speak of, take the one with the steepest slope.
        steep = 0.5 * (layer.beta - layer.alpha)[:, None] * v
        weak = layer.gather(_squares(e)) <= 1e-6 * layer.gather(_squares(steep))
        e = torch.where(layer.spread(weak)[:, None], steep, e)
        found[layer.name] = layer.spread(layer.gather(_squares(e)).clamp_min(1e-300).rsqrt())[:, None] * e
        z[layer.name] = _placed(layer, v, e)
    return found


def dual_value(form: NormalForm, directions: Vectors) -> Tensor:
    """A squared bound that no multipliers can go below, in floating point, differentiable in the directions."""
    return value_of(form, feasible(form, directions))


def value_of(form: NormalForm, z: Vectors) -> Tensor:
    """``|y|^2 / |x|^2`` of vectors that are feasible."""
    return _squares(form.output.value(z, 1)).sum() / _squares(z[INPUT]).sum()


def value_to_l1(form: NormalForm, z: Vectors) -> Tensor:
    r"""``(sum of |y_i|)^2 / |x|^2`` of vectors that are feasible, the least squared bound there can be to l1.

    By Cauchy and Schwarz it is the least :math:`\sum_i |y_i|^2 / w_i` for :math:`w \ge 0` that add up to 1, over |x|^2.
    """
    lengths = _squares(form.output.value(z, 1)).clamp_min(1e-300).sqrt()
    return lengths.sum() ** 2 / _squares(z[INPUT]).sum()


def shares_of(form: NormalForm, z: Vectors) -> Tensor:
    """The w of `value_to_l1`, ``(outputs,)``."""
    lengths = _squares(form.output.value(z, 1)).sqrt()
    return lengths / lengths.sum().clamp_min(1e-300)


def multipliers_of(form: NormalForm, z: Vectors) -> dict[str, Tensor]:
    r"""The multipliers that make feasible vectors stationary, as nearly as possible and at least zero.

    From the output back, :math:`\lambda (2 u - (\alpha + \beta) v)` has to be the sensitivity b of the Lagrangian at u;
    where the vectors solve the dual programme, these are the optimal multipliers. For a linear network with slopes
    one, :math:`\lambda = b / a` with the forward and backward singular vectors.
    """
    return _stationary(form, z)[0]


def weights_of(form: NormalForm, z: Vectors) -> Tensor:
    r"""The weights :math:`\tau \ge 0` of the input's entries that go with `multipliers_of`, ``(inputs,)``.

    Of all vectors with :math:`|x_i| = 1` let z have the largest :math:`|y|^2`. Then :math:`\tau_i x_i` is the
    sensitivity at :math:`x_i`.
    """
    x = z[INPUT]
    pull = _stationary(form, z)[1].get(INPUT, torch.zeros_like(x))
    return (_products(x, pull) / _squares(x).clamp_min(1e-300)).clamp_min(0.0)


def _stationary(form: NormalForm, z: Vectors) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """`multipliers_of`, and the sensitivities of the Lagrangian at all variables."""
    y = form.output.value(z, 1)
    b = {name: block.mH @ y for name, block in form.output.blocks.items()}
    found = {}
    for layer in reversed(form.layers):
        u, v = z[layer.name], layer.v.value(z, len(layer.alpha))
        total = (layer.alpha + layer.beta)[:, None]
        e = 2.0 * u - total * v
        own = b.get(layer.name, torch.zeros_like(u))
        upper, lower = layer.gather(_products(own, e)), layer.gather(_squares(e))
        found[layer.name] = (upper / lower.clamp_min(1e-300)).clamp_min(0.0) * (lower > 0.0)
        pull = layer.spread(found[layer.name])[:, None]
        pull = pull * (total * u - 2.0 * (layer.alpha * layer.beta)[:, None] * v)
        for name, block in layer.v.blocks.items():
            b[name] = b[name] + block.mH @ pull if name in b else block.mH @ pull
    return found, b


def vectors_of(factors: Factors, sharpness: float, rank: int) -> dict[str, Tensor]:
    r"""Vectors that are dual feasible where multipliers minimise :math:`\tfrac1t \log \sum_i w_i^t`.

    The gradient in the multipliers is ``-2 sum of (u - alpha v) . (u - beta v)`` over eigenvectors of the eliminated
    form, each with its softmax weight, and their maximisers; it vanishes at the minimum.

    Args:
        factors: The elimination with these multipliers.
        sharpness: The exponent t.
        rank: Most eigenvectors kept.
    """
    values, vectors = torch.linalg.eigh(factors.G)
    w, x = values[..., -rank:].clamp_min(1e-300), vectors[..., -rank:]
    weight = softmax(w, sharpness)
    # A vector that is zero stays zero: every one begins with a share.
    weight = weight.clamp_min(_SHARE * float(weight.max()))
    return factors.maximise(x * weight.sqrt()[..., None, :])


def linear_path(form: NormalForm) -> dict[str, Tensor]:
    """The feasible vectors of the network whose slopes are all the upper ones, at its largest singular vector.

    If all weights are positive and some network with these slopes is linear, they solve the dual programme.
    """
    z = {INPUT: torch.eye(form.inputs, dtype=form.zeros().dtype, device=form.zeros().device)}
    for layer in form.layers:
        z[layer.name] = layer.beta[:, None] * layer.v.value(z, len(layer.alpha))
    values, vectors = torch.linalg.eigh((y := form.output.value(z, 1)).mH @ y)
    batch = int(values[..., -1].argmax()) if values.ndim > 1 else None
    top = vectors[..., -1:]
    if batch is not None:
        kept = torch.zeros_like(top)
        kept.flatten(0, -3)[batch] = top.flatten(0, -3)[batch]
        top = kept
    return {name: block @ top for name, block in z.items()}


def softmax(w: Tensor, sharpness: float) -> Tensor:
    """Weights of positive numbers in proportion to their powers, over all entries."""
    powers = sharpness * (w / w.max()).log()
    return torch.softmax(powers.flatten(), 0).reshape(powers.shape)


def _placed(layer: Layer, v: Tensor, e: Tensor) -> Tensor:
    """``m v + t e`` with the largest t for which the neurons that share a multiplier satisfy the constraint."""
    reach = layer.gather((0.5 * (layer.beta - layer.alpha)) ** 2 * _squares(v))
    have = layer.gather(_squares(e))
    # Where there is nothing to reach for, or no direction, the middle itself satisfies the constraint.
    scale = (reach.clamp_min(1e-300) / have.clamp_min(1e-300)).sqrt() * ((reach > 0.0) & (have > 1e-290))
    return 0.5 * (layer.alpha + layer.beta)[:, None] * v + layer.spread(scale)[:, None] * e


def _products(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of each row's vectors, summed over the batch: ``(size,)``."""
    return over_batch((a.conj() * b).real.sum(-1))


def _squares(a: Tensor) -> Tensor:
    return _products(a, a)
