r"""How low a slope-based bound can go: the largest norm over patterns of slopes, from below. Floor 2.

For slopes :math:`d_j \in [\alpha_j, \beta_j]`, fixed, the network is a linear map J(d), and every d is possible as far
as the constraint knows. So no multipliers give less than :math:`\max_d \lVert J(d) \rVert_2`, which for ReLU is the
largest norm over all activation patterns, whether an input reaches them or not. The function :math:`y^T J(d) x` is
affine in every d_j, with the forward value of v_j times the backward sensitivity at u_j as its slope; so one pass
forward and one backward, which choose the better end of every interval on their way, are steps of a power iteration
that never descends. It ends at a local maximum: a lower bound on the lower bound.

References:
    | Exactly computing the local Lipschitz constant of ReLU networks (Jordan and Dimakis, 2020): patterns
    | A quantitative geometric approach to neural-network smoothness (Wang, Prakriya, Jha, 2022): the formal global
      Lipschitz constant (FGL) is this maximum
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.lmi.normal_form import INPUT, Layer, NormalForm
from lipcert.lmi.reduction import reduced

Slopes = Mapping[str, Tensor]
"""For every activation, one slope per neuron, ``(size,)``."""


@dataclass(frozen=True, eq=False)
class Pattern:
    """Slopes, and the norm of the linear map that the network is with them, in floating point."""

    norm: float
    slopes: Slopes


def largest_pattern(
    form: NormalForm,
    *,
    begin: Sequence[Slopes] = (),
    tries: int = 8,
    steps: int = 200,
    generator: torch.Generator | None = None,
) -> Pattern:
    """Search for slopes within their intervals that make the network's linear map large (l2 to l2).

    Neurons that share a multiplier are taken by themselves: their slopes are allowed one by one.

    Args:
        form: The network in normal form.
        begin: Slopes to begin at, besides all upper ends; the result is at least as large as at any of them.
        tries: How many random patterns to begin at.
        steps: Most passes forward and backward.
        generator: Source of the random ones. Default: a generator seeded with 0.

    Example:
        >>> from lipcert import trace
        >>> from lipcert.lmi import normal_form
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1))
        >>> for weight, rows in ((model[0].weight, [[1.0], [1.0]]), (model[2].weight, [[3.0, -1.0]])):
        ...     weight.data = torch.tensor(rows)
        >>> largest_pattern(normal_form(trace(model, (1,)))).norm  # the second neuron off
        3.0
    """
    drawn = torch.Generator().manual_seed(0) if generator is None else generator
    search = _Search(reduced(form))
    upper = {layer.name: layer.beta for layer in form.layers}
    random = [
        {n.name: torch.where(torch.rand(len(n.beta), generator=drawn) < 0.5, n.alpha, n.beta) for n in form.layers}
        for _ in range(tries)
    ]
    starts = [upper, *begin, *random]
    x = torch.stack([search.top(slopes)[1] for slopes in starts], dim=1)
    d = {layer.name: torch.stack([slopes[layer.name] for slopes in starts], dim=1) for layer in form.layers}
    value = x.new_zeros(len(starts))
    for _ in range(steps):
        before = value
        value, x, d = search.step(x, d)
        if bool((value <= before * (1.0 + 1e-9)).all()):
            break
    found = [{name: slopes[:, k] for name, slopes in d.items()} for k in range(len(starts))]
    # What was begun at counts too: where the norm is zero or attained more than once, a step may not keep it.
    patterns = [Pattern(search.top(slopes)[0], slopes) for slopes in (*found, upper, *begin)]
    return max(patterns, key=lambda pattern: pattern.norm)


class _Search:
    """Passes through the network as a linear map, with slopes ``(size, r)`` for r inputs side by side."""

    def __init__(self, form: NormalForm) -> None:
        self.form = form

    def top(self, slopes: Slopes) -> tuple[float, Tensor]:
        """The norm of the linear map, and an input that attains it."""
        unit = torch.eye(self.form.inputs, dtype=torch.float64)
        wide = {name: d[:, None].expand(-1, self.form.inputs) for name, d in slopes.items()}
        y, _, _ = self.forward(unit, wide, None)
        _, values, right = torch.linalg.svd(y, full_matrices=False)
        return float(values[0]), right[0]

    def step(self, x: Tensor, d: dict[str, Tensor]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """One pass forward and two back: the value reached, the next inputs ``(inputs, r)`` and slopes."""
        y, a, d = self.forward(x, d, None)
        _, b, _ = self.backward(y, d, None)
        y, a, d = self.forward(x, d, b)
        x, _, d = self.backward(y / y.norm(dim=0).clamp_min(1e-300), d, a)
        value = x.norm(dim=0)
        return value, x / value.clamp_min(1e-300), d

    def forward(
        self, x: Tensor, d: dict[str, Tensor], b: dict[str, Tensor] | None
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """The output, what every activation reads, and the slopes, chosen anew given sensitivities ``b``."""
        z, read, chosen = {INPUT: x}, {}, {}
        for layer in self.form.layers:
            a = layer.v.value(z, len(layer.alpha))
            own = d[layer.name] if b is None else self._better(layer, a * b[layer.name], d[layer.name])
            z[layer.name], read[layer.name], chosen[layer.name] = own * a, a, own
        return self.form.output.value(z, 1), read, chosen

    def backward(
        self, y: Tensor, d: dict[str, Tensor], a: dict[str, Tensor] | None
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """The adjoint at y, the sensitivity at every activation's output, and the slopes, chosen anew given ``a``."""
        sizes = {INPUT: self.form.inputs} | {layer.name: len(layer.alpha) for layer in self.form.layers}
        w = {name: y.new_zeros(size, y.shape[1]) for name, size in sizes.items()}
        for name, block in self.form.output.blocks.items():
            w[name] = w[name] + block.mT @ y
        chosen = {}
        for layer in reversed(self.form.layers):
            b = w[layer.name]
            own = d[layer.name] if a is None else self._better(layer, a[layer.name] * b, d[layer.name])
            chosen[layer.name] = own
            for name, block in layer.v.blocks.items():
                w[name] = w[name] + block.mT @ (own * b)
        return w[INPUT], w, chosen

    @staticmethod
    def _better(layer: Layer, product: Tensor, old: Tensor) -> Tensor:
        """The end of each slope's interval that makes ``slope * product`` larger; as it was where neither does."""
        ends = torch.where(product > 0.0, layer.beta[:, None], layer.alpha[:, None])
        return torch.where(product == 0.0, old, ends)
