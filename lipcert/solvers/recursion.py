r"""Closed-form multipliers, one pass from the output to the input: a bound at once, and everybody's start. Floor 2.

With :math:`\Lambda_k = c_k I` and :math:`g = \lambda_{\max}(G_{kk})`, slopes [0, 1] and the choice :math:`c_k = g`
give at most the product of the norms; it is ECLipsE-Fast's, and Syed and Hu's family varies c_k. For slopes
:math:`[\alpha, \beta]` the same argument gives :math:`c = \tfrac g2 (1 + |\alpha + \beta| / (\beta - \alpha))`. The
best of a few multiples is taken, judged by the form that is left.

References:
    | ECLipsE: efficient compositional Lipschitz constant estimation (Xu and Sivaranjani, 2024), proposition 3
    | Improved scalable Lipschitz bounds for deep neural networks (Syed and Hu, 2025)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.lmi import Layer, Multipliers, NormalForm, eliminate, reduced, tighten
from lipcert.lmi.elimination import largest
from lipcert.lmi.reduction import settled
from lipcert.solvers.solution import Progress, Solution, silent

_SYMMETRIC = (0.505, 0.51, 0.52, 0.55, 0.6, 0.7, 1.0)
"""The same multiples for slopes [-b, b], where the least feasible one, 1/2, is the product's."""

_NEGLIGIBLE = 1e-30
"""The multiplier, against the largest, of a layer that nothing reads."""


@dataclass(frozen=True)
class Recursion:
    """The closed form.

    Args:
        factors: Multiples of ``lambda_max(G_kk)`` tried for each layer.

    Example:
        >>> from lipcert import trace
        >>> from lipcert.lmi import normal_form
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
        >>> Recursion()(normal_form(trace(model, (4,)))).rho > 0
        True
    """

    factors: tuple[float, ...] = (0.6, 0.7, 0.8, 0.9, 1.0, 1.15, 1.4)

    def __call__(self, form: NormalForm, start: Multipliers | None = None, progress: Progress = silent) -> Solution:
        """Multipliers for a form; ``start`` is not used."""
        small = reduced(form)
        found: dict[str, Tensor] = {}

        def choose(layer: Layer, own: Tensor, across: Mapping[str, Tensor]) -> Tensor:
            found[layer.name] = self._choose(layer, own, across)
            return found[layer.name]

        G = eliminate(small, choose)
        rho = float("inf") if G is None else largest(G)
        progress(0, rho, 0.0)
        return Solution(found, rho, 0.0, 0, repr(self))

    def _choose(self, layer: Layer, own: Tensor, across: Mapping[str, Tensor]) -> Tensor:
        one = layer.alpha.new_ones(layer.count)
        values, vectors = torch.linalg.eigh(own)
        top = float(values[..., -1].max())
        scale = max([top, *(float(block.abs().max()) for block in across.values())])
        if top <= 1e-14 * scale or scale == 0.0:
            return one * (_NEGLIGIBLE if scale == 0.0 else scale)
        names = list(dict.fromkeys([*across, *layer.v.blocks]))
        inner = [layer.v.blocks.get(name) for name in names]
        fixed = [across.get(name) for name in names]
        slope = (layer.alpha + layer.beta)[:, None]
        read = torch.cat([_or_zero(a, b) for a, b in zip(inner, fixed, strict=True)], dim=-1)
        V = slope * read
        F = torch.cat([_or_zero(b, a) for a, b in zip(inner, fixed, strict=True)], dim=-1)
        V, F = vectors.mH @ V, vectors.mH @ F
        ratio = (layer.alpha + layer.beta).abs() / (layer.beta - layer.alpha).clamp_min(1e-9)
        base = 0.5 * (1.0 + ratio)
        symmetric = bool((layer.alpha + layer.beta == 0.0).all())
        if not (symmetric or bool((base == 1.0).all())):
            return torch.maximum(top * _largest(layer, base), 0.55 * top * one)
        c = top * torch.tensor(_SYMMETRIC if symmetric else self.factors, dtype=values.dtype, device=values.device)
        c = c.reshape(-1, *[1] * values.ndim)
        T = (F + c[..., None] * V) / (2.0 * c - values).clamp_min(1e-12 * top).sqrt()[..., None]
        if symmetric:
            steep = (2.0 * c[..., None]).sqrt() * layer.beta[:, None] * read
            T = torch.cat([T, steep], dim=-2)
        return one * c.flatten()[_top_eigenvalues(T).argmin()]


def begun(form: NormalForm, start: Multipliers | None) -> tuple[NormalForm, Multipliers, float]:
    """Where a solver begins: the reduced form, the start's or the closed form's multipliers, and their rho."""
    small = reduced(form)
    if start is None:
        found = Recursion()(small)
        return small, found.multipliers, found.rho
    return small, start, tighten(small, start)


def begun_weighted(form: NormalForm) -> tuple[NormalForm, Multipliers, Tensor]:
    """The same where every entry of the input has a weight: the form, with its input as it is, and weights."""
    small = settled(form)
    given = Recursion()(small).multipliers
    G = eliminate(small, lambda layer, own, across: given[layer.name])
    # A matrix is at most the diagonal one of its absolute row sums.
    tau = form.zeros(form.inputs) + torch.inf if G is None else G.abs().sum(-1)
    return small, given, tau.clamp_min(1e-12 * float(tau.max()))


def _largest(layer: Layer, values: Tensor) -> Tensor:
    """The largest of the values of the neurons that share a multiplier."""
    if layer.index is None:
        return values
    return values.new_zeros(layer.count).scatter_reduce(0, layer.index, values, "amax")


def _or_zero(block: Tensor | None, other: Tensor | None) -> Tensor:
    if block is not None:
        return block
    assert other is not None
    return torch.zeros_like(other)


def _top_eigenvalues(T: Tensor, steps: int = 12) -> Tensor:
    """About the largest eigenvalues of ``T^H T`` for each first index, over the batch; nothing rests on them."""
    x = T.mH @ T.sum(-1, keepdim=True) + T.mH @ torch.ones_like(T[..., :1])
    for _ in range(steps):
        x = T.mH @ (T @ (x / _length(x)))
    return _length(x).flatten(1).amax(1)


def _length(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp_min(1e-300)
