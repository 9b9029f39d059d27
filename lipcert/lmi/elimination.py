r"""The best bound for given multipliers, by eliminating the activations from the last to the first. Floor 2.

For multipliers :math:`\Lambda_k \ge 0` the incremental constraint asks for the least :math:`\rho` with

.. math:: \rho |\delta x|^2 \ge |\delta y|^2 - 2 \sum_k (\delta u_k - \alpha_k \delta v_k)^T \Lambda_k
          (\delta u_k - \beta_k \delta v_k) \quad \text{for all } \delta x, \delta u .

The right side is concave in the last :math:`\delta u_k` if :math:`S_k = 2 \Lambda_k - G_{kk} \succ 0`; its maximum is
a quadratic form in the variables before. For a chain this is a block Cholesky factorisation, linear in the depth.
Everything is differentiable in the multipliers.

References:
    | Efficient and accurate estimation of Lipschitz constants for deep neural networks (Fazlyab et al., 2019)
    | ECLipsE (Xu and Sivaranjani, 2024), theorem 1: the recursion for chains
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lipcert.lmi.normal_form import INPUT, Layer, Multipliers, NormalForm

Quadratic = dict[tuple[str, str], Tensor]
"""A symmetric matrix over the variables, by blocks; a missing block is zero."""

Choice = Callable[[Layer, Tensor, Mapping[str, Tensor]], Tensor]
"""Multipliers ``(count,)`` of a layer, given ``G_kk`` and the blocks ``G_ka`` of the variables before."""


Keep = Callable[[str, tuple[Tensor, dict[str, Tensor]]], None]
"""Called with a layer's name, its pivot's factor L, and ``L^-1 B`` by blocks."""


def _forget(name: str, factor: tuple[Tensor, dict[str, Tensor]]) -> None:
    """Keep nothing."""


def eliminate(form: NormalForm, choose: Choice, keep: Keep = _forget) -> Tensor | None:
    r"""The matrix G with :math:`\rho I \succeq G` the constraint left on the input; ``None`` if some S_k is not > 0.

    Args:
        form: The network in normal form.
        choose: Names each layer's multipliers when its turn comes, last layer first.
        keep: Told of every factor.

    Returns:
        ``(inputs, inputs)``.
    """
    names = [INPUT, *(layer.name for layer in form.layers)]
    G: Quadratic = {}
    _add_gram(G, form.output.blocks)
    for position in range(len(form.layers), 0, -1):
        layer = form.layers[position - 1]
        size = len(layer.alpha)
        own = G.get((layer.name, layer.name))
        own = layer.alpha.new_zeros(size, size) if own is None else own
        across = {a: G[layer.name, a] for a in names[:position] if (layer.name, a) in G}
        lam = layer.spread(choose(layer, own, across))
        L, failed = torch.linalg.cholesky_ex(torch.diag(2.0 * lam) - own)
        if bool(failed):
            return None
        G = {pair: block for pair, block in G.items() if layer.name not in pair}
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
    found = G.get((INPUT, INPUT))
    return torch.zeros(form.inputs, form.inputs, dtype=torch.float64) if found is None else found


def factorise(form: NormalForm, multipliers: Multipliers) -> tuple[Tensor, Callable[[Tensor], list[Tensor]]] | None:
    """`eliminate`, and what its maximisers do: for inputs ``(inputs, r)`` the products ``(u - alpha v)(u - beta v)``.

    Returns:
        The matrix on the input, and a function from inputs to one tensor ``(size, r)`` per layer, in order; ``None``
        if the multipliers are not feasible.
    """
    factors: dict[str, tuple[Tensor, dict[str, Tensor]]] = {}
    G = eliminate(form, lambda layer, own, across: multipliers[layer.name], keep=factors.__setitem__)
    if G is None:
        return None

    def maximise(x: Tensor) -> list[Tensor]:
        z, products = {INPUT: x}, []
        for layer in form.layers:
            L, blocks = factors[layer.name]
            right = sum((block @ z[name] for name, block in blocks.items()), torch.zeros(len(L), x.shape[1]).to(x))
            u = torch.linalg.solve_triangular(L.mT, right, upper=True)
            v = sum((block @ z[name] for name, block in layer.v.blocks.items()), torch.zeros_like(u))
            products.append((u - layer.alpha[:, None] * v) * (u - layer.beta[:, None] * v))
            z[layer.name] = u
        return products

    return G, maximise


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
    if G is None or not bool(torch.isfinite(G).all()):
        return float("inf")
    return max(0.0, float(torch.linalg.eigvalsh(G)[-1]))


def _add_gram(G: Quadratic, blocks: Mapping[str, Tensor], weight: Tensor | None = None) -> None:
    for a, left in blocks.items():
        scaled = left if weight is None else weight[:, None] * left
        for b, right in blocks.items():
            product = scaled.mT @ right
            G[a, b] = G[a, b] + product if (a, b) in G else product
