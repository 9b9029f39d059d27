"""Constants of an ONNX graph: what rounds nothing is computed here, by ONNX's reference. Floor 4."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lipcert.errors import InvalidInput, UnsupportedOperation
from lipcert.frontends.onnx_operation import Constant
from lipcert.lowering import BATCH, Value

_MOVING = frozenset("Identity Transpose Reshape Squeeze Unsqueeze Flatten Slice Concat Gather Split Cast".split())
_EXACT = _MOVING | frozenset("Constant Shape Size Expand Tile Neg Abs ConstantOfShape Range".split())
_ON_INTEGERS = frozenset("Add Sub Mul Div Mod Equal Greater Less Not And Or Where Max Min ReduceProd".split())


def shape_of(node: Any, value: Value) -> Constant:
    """What ``Shape`` reads, with `BATCH` for the batch."""
    bounds = {attribute.name: attribute.i for attribute in node.attribute}
    shape = np.array([BATCH, *value.shape], dtype=np.int64)
    return shape[bounds.get("start", 0) : bounds.get("end")]


def moves(kind: str) -> bool:
    """Whether every entry of the result is an entry of an input."""
    return kind in _MOVING


def computed(node: Any, inputs: Sequence[Any], opset: int, path: str) -> Sequence[Constant]:
    """The results of a node whose inputs are constants.

    Raises:
        UnsupportedOperation: If it rounds: the weight would then depend on who runs the model.
    """
    integral = all(entry is None or entry.dtype.kind in "iub" for entry in inputs)
    known = node.op_type in _EXACT or (integral and node.op_type in _ON_INTEGERS)
    results = _run(node, inputs, opset, path) if known and node.domain in ("", "ai.onnx") else None
    if node.op_type == "Cast" and results is not None and not _same(inputs[0], results[0]):
        results = None
    if results is None:
        raise UnsupportedOperation(
            f"`{path}` ({node.op_type}) computes with constants, and the rounding of that is not written in the file; "
            f"fold constants when exporting.",
            path=path,
        )
    return results


def _same(old: Constant, new: Constant) -> bool:
    if old.dtype.kind == "f" and new.dtype.kind != "f":
        return False
    return bool(np.array_equal(old.astype(np.float64), new.astype(np.float64), equal_nan=True))


def _run(node: Any, inputs: Sequence[Any], opset: int, path: str) -> Sequence[Constant]:
    from onnx import TensorProto, helper
    from onnx.reference import ReferenceEvaluator

    named = {name: entry for name, entry in zip(node.input, inputs, strict=True) if name}
    entries = [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in named]
    results = [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in node.output]
    graph = helper.make_graph([node], "constant", entries, results)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    try:
        return [np.asarray(result) for result in ReferenceEvaluator(model).run(None, named)]
    except Exception as error:
        raise InvalidInput(f"`{path}` ({node.op_type}) cannot be computed: {error}") from error
