"""The graph against ONNX's reference evaluator, in float64. Floor 4."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lipcert.errors import UnsupportedOperation
from lipcert.frontends.agreement import require_agreement, sized
from lipcert.graph import Affine, Graph
from lipcert.linear import Adjoint, Conv, Dense
from lipcert.trace.replay import inputs

LIMIT = 2**28
"""Multiplications per sample beyond which nothing is replayed."""

AGREEMENT = 1e-5
"""Largest relative difference: the reference writes some operators, as Gelu, with constants rounded to float32."""


def require_same_as_reference(graph: Graph, model: Any, nodes: Sequence[Any], batch: int | None) -> None:
    """Refuse a graph that computes something else than the reference evaluator.

    Raises:
        UnsupportedOperation: Saying what disagrees.
    """
    if sum(_multiplications(node) for node in graph if isinstance(node, Affine)) > LIMIT:
        return
    from onnx.reference import ReferenceEvaluator

    try:
        evaluator = ReferenceEvaluator(_in_float64(model, nodes), new_ops=_corrected(model))
    except Exception as error:
        raise UnsupportedOperation(f"ONNX's reference evaluator cannot run the model: {error}") from error
    for x in (sized(x, batch or len(x)) for x in inputs(graph)):
        with np.errstate(all="ignore"):
            try:
                (expected,) = evaluator.run(None, {str(evaluator.input_names[0]): x.numpy()})
            except Exception as error:
                raise UnsupportedOperation(f"ONNX's reference evaluator cannot run the model: {error}") from error
        y = torch.from_numpy(np.array(expected, dtype=np.float64))
        require_agreement(graph, x, y, AGREEMENT, "ONNX's reference evaluator")


def _corrected(model: Any) -> list[Any]:
    """Operators that the reference evaluator computes otherwise than their definitions say.

    Before version 14 it normalises by the batch although there is one output, and its global maximum drops axes.
    """
    from onnx.reference.op_run import OpRun

    class BatchNormalization(OpRun):
        def _run(self, x: Any, *statistics: Any, epsilon: float = 0.0, **options: Any) -> Any:
            s, b, m, v = (t.reshape(-1, *[1] * (x.ndim - 2)) for t in statistics)
            return (s * (x - m) / np.sqrt(v + epsilon) + b,)

    class GlobalMaxPool(OpRun):
        def _run(self, x: Any) -> Any:
            return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)

    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    return [GlobalMaxPool, BatchNormalization] if opset < 14 else [GlobalMaxPool]


def _multiplications(node: Affine) -> int:
    match node.map:
        case Dense(weight, in_shape):
            return weight.numel() * math.prod(in_shape[:-1])
        case Conv(weight=weight, out_sizes=sizes) | Adjoint(Conv(weight=weight, out_sizes=sizes)):
            return weight.numel() * math.prod(sizes)
    return math.prod(node.shape)


def _in_float64(model: Any, nodes: Sequence[Any]) -> Any:
    """The needed part of the model with every real number as float64."""
    from onnx import ModelProto, TensorProto, numpy_helper

    reals = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
    names = {name for node in nodes for name in node.input}
    wide = ModelProto()
    wide.CopyFrom(model)
    graph = wide.graph
    for field in ("node", "initializer", "value_info"):
        graph.ClearField(field)
    graph.node.extend(nodes)

    def widened(tensor: Any) -> Any:
        if tensor.data_type not in reals:
            return tensor
        return numpy_helper.from_array(np.asarray(numpy_helper.to_array(tensor), dtype=np.float64), tensor.name)

    initializers = [widened(tensor) for tensor in model.graph.initializer if tensor.name in names]
    graph.initializer.extend(initializers)
    stored = {tensor.name for tensor in model.graph.initializer}
    entries = [entry for entry in graph.input if entry.name not in stored]
    graph.ClearField("input")
    graph.input.extend(entries)
    for entry in [*graph.input, *graph.output]:
        if entry.type.tensor_type.elem_type in reals:
            entry.type.tensor_type.elem_type = TensorProto.DOUBLE
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and node.op_type == "Cast" and attribute.i in reals:
                attribute.i = TensorProto.DOUBLE
            elif attribute.name == "value" and attribute.HasField("t"):
                attribute.t.CopyFrom(widened(attribute.t))
            elif node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
                numbers = attribute.f if attribute.name == "value_float" else list(attribute.floats)
                attribute.CopyFrom(_constant(np.asarray(numbers, dtype=np.float64)))
    return wide


def _constant(array: np.ndarray) -> Any:
    from onnx import helper, numpy_helper

    return helper.make_attribute("value", numpy_helper.from_array(array))
