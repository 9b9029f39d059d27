"""Operations that write into their operand: allowed only where nobody reads what they overwrite. Floor 4.

The recorded graph has values, not memory. It is right about an in-place operation exactly if no reader later in the
program sees the operand's memory under its old name, directly or through a view.
"""

from __future__ import annotations

import inspect
import operator

import torch
from torch import fx, nn

from lipcert.errors import UnsupportedOperation
from lipcert.graph import Affine
from lipcert.linear import Reshape, Selection
from lipcert.lowering import Value
from lipcert.trace.interpret import Interpreter, name_of, values_in

_WRITERS = {
    getattr(operator, name)
    for name in "iadd isub imul itruediv ipow ifloordiv imod imatmul iand ior ixor ilshift irshift setitem".split()
}


def require_no_overwritten_reads(graph: fx.Graph, interpreter: Interpreter) -> None:
    """Refuse graphs that an in-place operation makes untrue.

    Raises:
        UnsupportedOperation: Naming the operation, what it overwrites and who reads it.
    """
    order = {node: position for position, node in enumerate(graph.nodes)}
    memory = _Memory()
    for node in graph.nodes:
        operands = [operand for operand in node.all_input_nodes if node.op != "output"]
        if _writes(node, interpreter):
            _require_last_reader(node, order, memory, interpreter)
        if node in interpreter.values and _may_alias(node, interpreter):
            for operand in operands:
                memory.join(node, operand)


class _Memory:
    """Which recorded tensors may share memory: disjoint sets."""

    def __init__(self) -> None:
        self._sets: dict[fx.Node, set[fx.Node]] = {}

    def of(self, node: fx.Node) -> set[fx.Node]:
        return self._sets.setdefault(node, {node})

    def join(self, node: fx.Node, other: fx.Node) -> None:
        merged = self.of(node) | self.of(other)
        for member in merged:
            self._sets[member] = merged


def _require_last_reader(node: fx.Node, order: dict[fx.Node, int], memory: _Memory, interpreter: Interpreter) -> None:
    operand = node.all_input_nodes[0] if node.all_input_nodes else None
    path, what, used = interpreter.path(node), _describe(node, interpreter), node in interpreter.values
    on_the_input = operand is not None and any(True for _ in values_in(interpreter.value(operand)))
    if on_the_input:
        interpreter.value(node)  # what has no rule is refused in its own words
    if operand is None or not on_the_input or not used:
        overwritten = "a constant" if operand is None else f"`{interpreter.path(operand)}`"
        raise UnsupportedOperation(
            f"in-place {what} at `{path}` overwrites {overwritten}, and its result is not used by the network; "
            f"write into no tensor that outlives the call.",
            path=path,
        )
    result, before = interpreter.values[node], interpreter.values[operand]
    if isinstance(result, Value) and isinstance(before, Value) and result.name == before.name:
        return  # nothing is changed, so nothing is overwritten
    for member in sorted(memory.of(operand), key=order.__getitem__):
        for reader in member.users:
            if order[reader] > order[node] > order[member]:
                raise UnsupportedOperation(
                    f"in-place {what} at `{path}` overwrites `{interpreter.path(operand)}`, which is also read at "
                    f"`{interpreter.path(reader)}`; use `inplace=False`.",
                    path=path,
                )


def _describe(node: fx.Node, interpreter: Interpreter) -> str:
    module = _module(node, interpreter)
    return name_of(node.target) if module is None else type(module).__name__


def _module(node: fx.Node, interpreter: Interpreter) -> nn.Module | None:
    return interpreter.root.get_submodule(str(node.target)) if node.op == "call_module" else None


def _writes(node: fx.Node, interpreter: Interpreter) -> bool:
    module = _module(node, interpreter)
    if module is not None:
        return bool(vars(module).get("inplace", False))
    if node.op == "call_method" or (node.op == "call_function" and callable(node.target)):
        name = name_of(node.target)
        if node.target in _WRITERS or (name.endswith("_") and not name.endswith("__")) or "out" in node.kwargs:
            return True
        return node.op == "call_function" and _asks_for_inplace(node)
    return False


def _asks_for_inplace(node: fx.Node) -> bool:
    if "inplace" in node.kwargs:
        return bool(node.kwargs["inplace"])
    try:
        bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # a builtin without a signature has no such argument
        return False
    return bool(bound.arguments.get("inplace", False))


def _may_alias(node: fx.Node, interpreter: Interpreter) -> bool:
    """Whether a result may be a view of an operand: what only moves numbers may be, what computes is fresh."""
    if not any(True for _ in values_in(interpreter.values[node])):
        return False
    if _writes(node, interpreter):
        return True
    if node.target in ("clone", torch.clone):
        return False
    start, end = interpreter.recorded[node]
    return all(
        isinstance(recorded, Affine) and isinstance(recorded.map, Selection | Reshape) and recorded.bias is None
        for recorded in interpreter.recorder.nodes[start:end]
    )
