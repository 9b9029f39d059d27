"""Which neurons of an image share a multiplier: from one per channel to one per neuron. Floor 2."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipcert.linear import Shape
from lipcert.lmi.normal_form import NormalForm


@dataclass(frozen=True)
class PerChannel:
    """One multiplier for every channel in every cell of a coarse grid of positions, the border apart.

    Args:
        cells: Cells per dimension; 1 is one multiplier per channel, as many as positions is one per neuron.
        border: How many positions from the edge count as border; they have cells of their own.

    Example:
        >>> PerChannel(cells=2)((1, 4)).tolist(), PerChannel(border=1)((1, 4)).tolist()
        ([0, 0, 1, 1], [0, 1, 1, 2])
    """

    cells: int = 1
    border: int = 0

    def __call__(self, shape: Shape) -> Tensor | None:
        """For every neuron of ``(channels, *sizes)`` the number of its multiplier; ``None`` for one each."""
        if len(shape) < 2:
            return None
        index = torch.arange(shape[0])
        for size in shape[1:]:
            cell = self._along(size)
            index = index[..., None] * (int(cell.max()) + 1) + cell
        return torch.unique(index.reshape(-1), return_inverse=True)[1]

    def _along(self, size: int) -> Tensor:
        """The cell of every position along a dimension: before, inside, after."""
        border = min(self.border, size // 2)
        inner = size - 2 * border
        cells = max(1, min(self.cells, inner))
        inside = border + torch.arange(inner) * cells // max(1, inner)
        return torch.cat([torch.arange(border), inside, border + cells + torch.arange(border)])


def shared(form: NormalForm, shapes: Mapping[str, Shape], sharing: PerChannel) -> NormalForm:
    """The form with multipliers shared within layers of images; those that sort or reflect are left as they are."""

    def index(name: str, size: int) -> Tensor | None:
        found = sharing(shapes[name])
        return found if found is not None and len(found) == size == math.prod(shapes[name]) else None

    plain = [layer.index is None and layer.kept is None for layer in form.layers]
    layers = tuple(
        replace(layer, index=index(layer.name, len(layer.alpha))) if own else layer
        for layer, own in zip(form.layers, plain, strict=True)
    )
    return replace(form, layers=layers)
