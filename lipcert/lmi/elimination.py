r"""The best bound for given multipliers, by eliminating the activations from the last to the first. Floor 2.

For multipliers :math:`\Lambda_k \ge 0` the incremental constraint asks for the least :math:`\rho` with

.. math:: \rho |\delta x|^2 \ge |\delta y|^2 - 2 \sum_k (\delta u_k - \alpha_k \delta v_k)^T \Lambda_k
          (\delta u_k - \beta_k \delta v_k) \quad \text{for all } \delta x, \delta u .

The right side is concave in the last :math:`\delta u_k` if :math:`S_k = 2 \Lambda_k - G_{kk} \succ 0`; its maximum is
a quadratic form in the variables before. For a chain this is a block Cholesky factorisation, linear in the depth. A
variable that is kept, :math:`m = q^T v`, is not maximised over but put in.
Everything is differentiable in the multipliers. Blocks may be complex and may carry batch dimensions in front: one
constraint for each entry of the batch, all with the same multipliers and the same :math:`\rho`.

References:
    | Efficient and accurate estimation of Lipschitz constants for deep neural networks (Fazlyab et al., 2019)
    | ECLipsE (Xu and Sivaranjani, 2024), theorem 1: the recursion for chains
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.lmi.normal_form import INPUT, Layer, Multipliers, NormalForm, total

Quadratic = dict[tuple[str, str], Tensor]
"""A symmetric matrix over the variables, by blocks; a missing block is zero."""

Choice = Callable[[Layer, Tensor, Mapping[str, Tensor]], Tensor]
"""Multipliers ``(count,)`` of a layer, given ``G_kk`` and the blocks ``G_ka`` of the variables before."""


Keep = Callable[[str, tuple[Tensor, dict[str, Tensor]]], None]
"""Called with a layer's name, its pivot's factor L, and ``L^-1 B`` by blocks; for kept variables with G's blocks."""


def _forget(name: str, factor: tuple[Tensor, dict[str, Tensor]]) -> None:
    """Keep nothing."""


Failed = Callable[[Tensor], bool]
"""Called with the matrices, over the batch, whose pivot is not positive; whether to stop."""


def _any(failed: Tensor) -> bool:
    return bool(failed.any())


def eliminate(form: NormalForm, choose: Choice, keep: Keep = _forget, stop: Failed = _any) -> Tensor | None:
    r"""The matrix G with :math:`\rho I \succeq G` the constraint left on the input; ``None`` if some S_k is not > 0.

    Args:
        form: The network in normal form.
        choose: Names each layer's multipliers when its turn comes, last layer first.
        keep: Told of every factor.
        stop: Told after every layer whose pivots are not positive. Default: to stop at the first.

    Returns:
        ``(..., inputs, inputs)``.
    """
    G: Quadratic = {}
    _add_gram(G, form.output.blocks)
    for layer in reversed(form.layers):
        if layer.kept is not None:
            G = _put_in(G, layer.passed, layer.kept.blocks, keep)
        like = next(iter(layer.v.blocks.values()), layer.alpha)
        G, own, across = _without(G, layer.name, len(layer.alpha), like)
        lam = layer.spread(choose(layer, own, across))
        L, failed = torch.linalg.cholesky_ex(torch.diag_embed(2.0 * lam) - own)
        if stop(failed):
            return None
        weight = -2.0 * layer.alpha * layer.beta * lam
        if bool((layer.alpha * layer.beta != 0.0).any()):
            _add_gram(G, layer.v.blocks, weight)
        slope = ((layer.alpha + layer.beta) * lam)[:, None]
        B = dict(across)
        for name, block in layer.v.blocks.items():
            B[name] = B[name] + slope * block if name in B else slope * block
        halves = {a: torch.linalg.solve_triangular(L, block, upper=False) for a, block in B.items()}
        keep(layer.name, (L, halves))
        _add_gram(G, halves)
    found = G.get((INPUT, INPUT))  # every other variable is gone
    return form.zeros(form.inputs, form.inputs) if found is None else found


@dataclass(frozen=True, eq=False)
class Factors:
    """An elimination that succeeded.

    Attributes:
        form: What was eliminated.
        G: What is left on the input, ``(..., inputs, inputs)``.
        rows: For every layer the factor L of its pivot and ``L^-1 B`` by blocks: the maximiser is
            ``u = L^-H sum of (L^-1 B) z``.
    """

    form: NormalForm
    G: Tensor
    rows: Mapping[str, tuple[Tensor, Mapping[str, Tensor]]]

    def maximise(self, x: Tensor) -> dict[str, Tensor]:
        """For inputs ``(..., inputs, r)`` the activations that maximise the form, with the input itself."""
        z = {INPUT: x}
        for layer in self.form.layers:
            L, blocks = self.rows[layer.name]
            if not blocks:
                z[layer.name] = x.new_zeros(*x.shape[:-2], len(layer.alpha), x.shape[-1])
            else:
                right = total(block @ z[name] for name, block in blocks.items())
                z[layer.name] = torch.linalg.solve_triangular(L.mH, right, upper=True)
            if layer.kept is not None:
                z[layer.passed] = layer.kept.value(z, 1)
        return z

    def products(self, x: Tensor) -> list[Tensor]:
        """``(u - alpha v)(u - beta v)`` at the maximisers, one tensor ``(..., size, r)`` per layer, in order."""
        z = self.maximise(x)
        found = []
        for layer in self.form.layers:
            u, v = z[layer.name], layer.v.value(z, len(layer.alpha))
            found.append(((u - layer.alpha[:, None] * v).conj() * (u - layer.beta[:, None] * v)).real)
        return found


def factorise(form: NormalForm, multipliers: Multipliers) -> Factors | None:
    """`eliminate`, with what the maximisers need; ``None`` if the multipliers are not feasible."""
    rows: dict[str, tuple[Tensor, dict[str, Tensor]]] = {}
    G = eliminate(form, lambda layer, own, across: multipliers[layer.name], keep=rows.__setitem__)
    return None if G is None else Factors(form, G, rows)


def tighten(form: NormalForm, multipliers: Multipliers) -> float:
    """The least ``rho = K**2`` that these multipliers give, evaluated in floating point; infinity if none.

    Any positive multipliers give a valid constraint, however they were found; how tight depends on them.

    Example:
        >>> from lipcert import trace
        >>> from lipcert.lmi import normal_form
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.ReLU())
        >>> _ = torch.nn.init.constant_(model[0].weight, 3.0)
        >>> tighten(normal_form(trace(model, (1,))), {"1": torch.tensor([1.0], dtype=torch.float64)})
        9.0
    """
    G = eliminate(form, lambda layer, own, across: multipliers[layer.name])
    return float("inf") if G is None else largest(G)


def largest(G: Tensor) -> float:
    """The largest eigenvalue over a batch, at least zero; infinity where an entry is not finite."""
    if not bool(torch.isfinite(G).all()):
        return float("inf")
    return max(0.0, float(torch.linalg.eigvalsh(G)[..., -1].max()))


def spectrum(form: NormalForm, multipliers: Multipliers) -> Tensor:
    """The least ``rho`` for every matrix of a batch, ``(...)``; infinity where the multipliers are not feasible."""
    broken: list[Tensor] = []

    def note(failed: Tensor) -> bool:
        broken.append(failed > 0)
        return False

    G = eliminate(form, lambda layer, own, across: multipliers[layer.name], stop=note)
    assert G is not None
    bad = ~torch.isfinite(G).all(-1).all(-1)
    for failed in broken:
        bad = bad | failed
    values = torch.linalg.eigvalsh(torch.where(bad[..., None, None], 0.0, G))[..., -1].clamp_min(0.0)
    return torch.where(bad, torch.inf, values)


def named(form: NormalForm, lam: Tensor) -> dict[str, Tensor]:
    """Multipliers of all layers in a row, by layer."""
    pieces = lam.split([layer.count for layer in form.layers])
    return {layer.name: piece for layer, piece in zip(form.layers, pieces, strict=True)}


def graded(form: NormalForm, multipliers: Multipliers, step: float) -> dict[str, Tensor]:
    """Multipliers raised by powers of ``step``, every layer's over those of the layer after it: all pivots get room."""
    depth = len(form.layers)
    return {layer.name: multipliers[layer.name] * step ** (depth - i) for i, layer in enumerate(form.layers)}


def over_batch(values: Tensor) -> Tensor:
    """The sum over the batch dimensions of one number per row: ``(rows,)``."""
    return values if values.ndim == 1 else values.flatten(0, -2).sum(0)


def _without(G: Quadratic, name: str, size: int, like: Tensor) -> tuple[Quadratic, Tensor, dict[str, Tensor]]:
    """A form without one of its variables, that variable's own block, and its blocks across with the others."""
    own = G.get((name, name))
    across = {b: block for (a, b), block in G.items() if a == name and b != name}
    rest = {pair: block for pair, block in G.items() if name not in pair}
    return rest, like.new_zeros(size, size) if own is None else own, across


def _put_in(G: Quadratic, name: str, V: Mapping[str, Tensor], keep: Keep) -> Quadratic:
    """The form with ``m = V z`` in place of the variable m."""
    some = next(iter(V.values()))
    G, own, across = _without(G, name, len(some), some)
    keep(name, (own, across))
    R = {b: own @ block + across[b] if b in across else own @ block for b, block in V.items()}
    R = {**across, **R}
    for a, left in V.items():
        for b, right in R.items():
            _add(G, a, b, left.mH @ right)
    for a, left in across.items():
        for b, right in V.items():
            _add(G, a, b, left.mH @ right)
    return G


def _add_gram(G: Quadratic, blocks: Mapping[str, Tensor], weight: Tensor | None = None) -> None:
    for a, left in blocks.items():
        scaled = left if weight is None else weight[:, None] * left
        for b, right in blocks.items():
            _add(G, a, b, scaled.mH @ right)


def _add(G: Quadratic, a: str, b: str, block: Tensor) -> None:
    G[a, b] = G[a, b] + block if (a, b) in G else block
