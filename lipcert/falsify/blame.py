"""Which layer is at fault: the first whose own claim is false, or else what stretches the pair. Floor 5."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lipcert.freeze import evaluation_copy, sizes_read
from lipcert.graph import Affine, Graph, Opaque
from lipcert.linear import Shape
from lipcert.monitor import observe
from lipcert.norms import Norms
from lipcert.report import format_down

_SHOWN = 4


def blamed(model: nn.Module, graph: Graph, x: Tensor, y: Tensor, norms: Norms) -> str:
    """One line about where a claim fails; empty if nothing stretches.

    Layers are read in evaluation mode, convolutions at the size of input that they get.
    """
    copied = evaluation_copy(model)
    for reading in observe(copied, input_sizes=_sizes(copied, graph.input.shape)):
        if reading.claimed is not None and reading.lower is not None and reading.lower > reading.claimed * (1 + 1e-9):
            return (
                f"first false layer: `{reading.path}` claims norm {reading.claimed!r}, "
                f"it is at least {format_down(reading.lower)}"
            )
    found = [f"`{name}` {format_down(gain, 4)}" for name, gain in stretches(graph, x, y, norms) if gain > 1.0]
    return f"this pair is stretched by {', '.join(found[:_SHOWN])}" if found else ""


def stretches(graph: Graph, x: Tensor, y: Tensor, norms: Norms) -> list[tuple[str, float]]:
    """How much every affine layer and every function that is not elementwise stretches a pair, in the output norm."""
    with torch.no_grad():
        values = graph.values(torch.stack([x, y]).double())
    apart = {name: float(torch.linalg.vector_norm((v[0] - v[1]).flatten(), norms.q)) for name, v in values.items()}
    layers = [node for node in graph if isinstance(node, Affine | Opaque)]
    return [(node.name, apart[node.name] / apart[node.source]) for node in layers if apart[node.source] > 0.0]


def _sizes(model: nn.Module, shape: Shape) -> dict[str, Shape]:
    """The spatial size of what every convolution reads that reads one size, when the model runs on one input."""
    paths = {path or "model": module for path, module in model.named_modules() if isinstance(module, _ConvNd)}
    parameter = next(iter(model.parameters()), torch.zeros(()))
    x = torch.zeros(1, *shape, dtype=parameter.dtype, device=parameter.device)
    sizes = sizes_read(paths.values(), lambda: model(x))
    return {path: sizes[module] for path, module in paths.items() if module in sizes}
