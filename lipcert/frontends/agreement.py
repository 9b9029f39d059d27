"""Graphs against what they were read from. Floor 4."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from lipcert.graph import Graph
from lipcert.trace.replay import ACROSS_FORMATS, AGREEMENT, difference, inputs, unfaithful


def require_same_as_program(
    graph: Graph, program: ExportedProgram, values: Mapping[fx.Node, Any], batch: int | None
) -> None:
    """Refuse a graph that computes something else than the program.

    Compared are the program's operations in float64 over the same constants, and the program in its own format.

    Args:
        graph: The graph that was read.
        program: The program it was read from.
        values: What each node that the output needs stands for; tensors are constants.
        batch: The batch size the program was exported for, or none if it is dynamic.

    Raises:
        UnsupportedOperation: Saying what disagrees.
    """
    name = next(str(name) for name in program.graph_signature.user_inputs)
    tensor = next(n.meta["val"] for n in program.graph.find_nodes(op="placeholder") if n.name == name)
    interpreter = _InFloat64(program.graph_module, values)
    batches = [sized(x, batch or _allowed(program, tensor)) for x in inputs(graph)]
    for x in batches:
        try:
            expected = interpreter.on(x)
        except Exception as error:
            raise unfaithful(f"the program's operations cannot be run in float64: {error}") from error
        require_agreement(graph, x, expected, AGREEMENT, "the program's operations")
    x = batches[-1].to(tensor.dtype)
    try:
        expected = program.module()(x)
    except Exception as error:
        if tensor.dtype in (torch.float16, torch.bfloat16):
            return  # many operations do not exist in half precision on this device
        raise unfaithful(f"the program cannot be run on {tuple(x.shape)}: {error}") from error
    require_agreement(graph, x.double(), expected, ACROSS_FORMATS[tensor.dtype], f"the program in {tensor.dtype}")


def require_agreement(graph: Graph, x: Tensor, expected: Tensor, tolerance: float, other: str) -> None:
    """Compare on the rows where the other side stays finite.

    Raises:
        UnsupportedOperation: If the graph's values differ by more than the tolerance, relative to the output.
    """
    y = graph.replay(x)
    if y.shape != expected.shape:
        raise unfaithful(f"it gives {tuple(y.shape)}, {other} {tuple(expected.shape)}")
    finite = torch.isfinite(expected.reshape(len(expected), -1)).all(1)
    if bool(finite.any()):
        off = difference(y[finite], expected.double()[finite], x[finite])
        if not off <= tolerance:
            raise unfaithful(f"it differs from {other} by {off:.1e} relative to the output")


def sized(x: Tensor, size: int) -> Tensor:
    """A batch of that many rows, the given ones over and over, scaled so that no two are the same."""
    times = -(-size // len(x))
    return torch.cat([x * (1 + 0.25 * n) for n in range(times)])[:size]


def _allowed(program: ExportedProgram, tensor: Tensor) -> int:
    limits = program.range_constraints.get(tensor.shape[0].node.expr)  # type: ignore[attr-defined]
    return 3 if limits is None else int(max(limits.lower, min(limits.upper, 3)))


class _InFloat64(fx.Interpreter):
    """Runs the program's operations in float64, over given constants."""

    def __init__(self, module: fx.GraphModule, values: Mapping[fx.Node, Any]) -> None:
        super().__init__(module)
        self._known = {node.name: _wide(value) for node, value in values.items()}

    def on(self, x: Tensor) -> Tensor:
        """What the program returns for one input; every placeholder but the input's is a constant, or not needed."""
        graph = self.module.graph
        assert isinstance(graph, fx.Graph)
        return self.run(*[x] * len(graph.find_nodes(op="placeholder")))[0]

    def run_node(self, n: fx.Node) -> Any:
        if n.op in ("placeholder", "output"):
            value = super().run_node(n)
            return self._known[n.name] if isinstance(self._known.get(n.name), Tensor) else value
        if n.name not in self._known or isinstance(self._known[n.name], Tensor):
            return self._known.get(n.name)
        return super().run_node(n)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        return super().call_function(target, tuple(map(_wide, args)), {key: _wide(v) for key, v in kwargs.items()})


def _wide(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return torch.float64 if value.is_floating_point else value
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
