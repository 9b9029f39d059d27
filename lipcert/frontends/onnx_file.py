"""From an ONNX file to the graph. Floor 4; onnx is imported where it is used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lipcert.errors import InvalidInput, LipcertError, UnsupportedOperation
from lipcert.frontends import onnx_elementwise as _e
from lipcert.frontends import onnx_structure as _s
from lipcert.frontends import onnx_windows as _w
from lipcert.frontends.onnx_constants import computed, moves, shape_of
from lipcert.frontends.onnx_operation import Constant, Operation, fitting
from lipcert.frontends.onnx_replay import require_same_as_reference
from lipcert.graph import Graph
from lipcert.linear import Shape
from lipcert.lowering import BATCH, Recorder, Value, source

_RULES = (_e, _s, _w)  # imported for their registrations
_REALS = ("FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16")


def trace_onnx(model: Any, input_shape: Shape | None = None) -> Graph:
    """Read an ONNX model as a graph over its exact weights. Needs the extra ``lipcert[onnx]``.

    A whitelist of operators is lowered, each in the versions of its definition that its rule was written for; the
    defaults of attributes are those of the definition. An attribute or input that a rule does not know is refused, as
    is every other operator, by name. The leading axis of the input is the batch; each sample is one input of the
    function; inputs with a default are constants of that value. Shapes are held against ONNX's own shape inference,
    and the graph is replayed in float64 against ONNX's reference evaluator. A model of more than 2**28 multiplications
    per sample is not replayed: the evaluator would take hours, and nothing in a file changes from run to run.

    Args:
        model: A path (external data beside it is read), or a loaded ``onnx.ModelProto``.
        input_shape: Shape of one sample, without the batch. Default: the file's, which must then be fixed.

    Raises:
        UnsupportedOperation: If an operator, an attribute or a format is not covered.
        NotLipschitz: If an operator has no finite Lipschitz constant.
        NotFinite: If a weight is NaN or infinite.
        InvalidInput: If the file cannot be read, is not valid, or ``input_shape`` does not fit.

    Example:
        >>> graph = trace_onnx("critic.onnx")  # doctest: +SKIP
    """
    model = _loaded(model)
    reading = _Reading(model, input_shape)
    with torch.no_grad():
        value = reading.result()
        graph = reading.recorder.graph(value)
        require_same_as_reference(graph, model, reading.needed, reading.batch)
    return graph


def _loaded(model: Any) -> Any:
    try:
        import onnx
    except ImportError as error:
        raise InvalidInput("reading ONNX files needs the package onnx; install `lipcert[onnx]`.") from error
    given = model
    if not isinstance(model, onnx.ModelProto) and not Path(model).is_file():
        raise InvalidInput(f"there is no file `{model}`.")
    try:
        if not isinstance(model, onnx.ModelProto):
            onnx.checker.check_model(str(model))
            model = onnx.load(str(model))
        else:
            onnx.checker.check_model(model)
    except Exception as error:
        name = "the model" if isinstance(given, onnx.ModelProto) else f"`{given}`"
        raise InvalidInput(f"{name} is not a valid ONNX model: {type(error).__name__}: {error}") from error
    if model.functions or model.graph.sparse_initializer:
        raise UnsupportedOperation("the model defines functions of its own or sparse weights, which are not covered.")
    return model


class _Reading:
    """Lowers the nodes that the output needs.

    Attributes:
        recorder: Collects the lowered nodes.
        batch: The batch size the file states, or none if it is dynamic.
        needed: The nodes that the output needs, in order.
    """

    def __init__(self, model: Any, input_shape: Shape | None) -> None:
        """Find input, output, constants and the nodes between them."""
        from onnx import numpy_helper

        self.recorder = Recorder()
        graph = model.graph
        versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
        if not versions:
            raise UnsupportedOperation("the model imports no operators of ONNX itself.")
        self._opset = versions[0]
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        self._read = numpy_helper.to_array
        given = [entry for entry in graph.input if entry.name not in self._weights]
        if len(given) != 1 or len(graph.output) != 1:
            names = [", ".join(f"`{entry.name}`" for entry in entries) for entries in (given, graph.output)]
            raise UnsupportedOperation(f"the model maps {names[0]} to {names[1]}; a graph has one input, one output.")
        self._output = graph.output[0].name
        self._declared = _inferred(model)
        shape, self.batch = _sample_shape(given[0], input_shape)
        self.needed = _needed(graph.node, self._output)
        self._sized: dict[str, bool] = {}  # constants that hold the batch size: whether they compute with it
        self._values: dict[str, Value | Constant] = {given[0].name: source(self.recorder, shape)}

    def result(self) -> Value:
        """The output.

        Raises:
            UnsupportedOperation: If a node is not covered, or the output is a constant.
        """
        for position, node in enumerate(self.needed):
            path = node.name or f"{node.op_type}_{position}"
            self.recorder.path = path
            results = self._lower(node, path)
            for name, result in zip(node.output, results, strict=False):
                self._values[name] = result
        value = self._value(self._output, "the output")
        if not isinstance(value, Value):
            raise UnsupportedOperation("the model returns a constant, not a tensor that depends on its input.")
        return value

    def _lower(self, node: Any, path: str) -> Sequence[Value | Constant]:
        from onnx import defs

        if node.domain not in ("", "ai.onnx"):
            raise UnsupportedOperation(f"`{path}` is a `{node.domain}.{node.op_type}`, not of ONNX itself.", path=path)
        inputs = [self._value(name, path) if name else None for name in node.input]
        if node.op_type == "Shape" and isinstance(inputs[0], Value):
            results = [shape_of(node, inputs[0])]
            self._sized |= {node.output[0]: False} if BATCH in results[0] else {}
            return results
        if not any(isinstance(entry, Value) for entry in inputs):
            results = computed(node, inputs, self._opset, path)
            self._follow_the_batch(node, results)
            return results
        if any(name in self._sized and (self._sized[name] or node.op_type != "Reshape") for name in node.input):
            raise UnsupportedOperation(
                f"`{path}` ({node.op_type}) depends on how many samples there are; a claim is about one.", path=path
            )
        schema = defs.get_schema(node.op_type, self._opset, "")
        operation = Operation(node, schema, inputs, path, self.batch)
        try:
            result = operation.lowered()
        except LipcertError:
            raise
        except Exception as error:
            raise operation.refused(f"is used in a way its rule cannot read: {error}") from error
        results = result if isinstance(result, tuple) else (result,)
        fitting(operation, results[0], self._declared)
        return results

    def _follow_the_batch(self, node: Any, results: Sequence[Constant]) -> None:
        """Mark what is made of the batch size; moving other entries of a shape makes nothing of it."""
        before = [self._sized[name] for name in node.input if name in self._sized]
        calculated = any(before) or (bool(before) and not moves(node.op_type))
        for name, result in zip(node.output, results, strict=False):
            if calculated or (before and BATCH in result):
                self._sized[name] = calculated

    def _value(self, name: str, path: str) -> Value | Constant:
        if name in self._weights and name not in self._values:
            self._values[name] = _stored(self._read, self._weights[name])
        if name not in self._values:
            raise UnsupportedOperation(
                f"`{path}` reads `{name}`, a second result (indices, masks, statistics), which has no Lipschitz "
                f"constant.",
                path=path,
            )
        return self._values[name]


def _stored(read: Callable[[Any], Any], tensor: Any) -> Constant:
    try:
        return np.asarray(read(tensor))
    except Exception as error:
        raise InvalidInput(f"the weight `{tensor.name}` cannot be read: {type(error).__name__}: {error}") from error


def _needed(nodes: Sequence[Any], output: str) -> list[Any]:
    wanted, kept = {output}, []
    for node in reversed(nodes):
        if wanted & set(node.output):
            kept.append(node)
            wanted.update(node.input)
    return kept[::-1]


def _sample_shape(entry: Any, input_shape: Shape | None) -> tuple[Shape, int | None]:
    from onnx import TensorProto

    kind = entry.type.tensor_type
    if TensorProto.DataType.Name(kind.elem_type) not in _REALS:
        raise UnsupportedOperation(f"the input `{entry.name}` is not a tensor of real numbers.")
    sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim]
    if not sizes:
        raise UnsupportedOperation(f"the input `{entry.name}` has no batch axis.")
    found = tuple(sizes[1:])
    wanted = found if input_shape is None else tuple(input_shape)
    fits = len(wanted) == len(found) and all(b in (None, a) for a, b in zip(wanted, found, strict=True))
    if not fits or not all(type(size) is int and size > 0 for size in wanted):
        raise InvalidInput(
            f"the file's samples `{entry.name}` have the shape {found}, where None may be any size; "
            f"input_shape {input_shape} does not fix it. Give the shape of one sample, without batch."
        )
    return wanted, sizes[0]  # type: ignore[return-value]


def _inferred(model: Any) -> dict[str, tuple[int | None, ...]]:
    """Shapes by ONNX's own inference, with None for unknown sizes; nothing for models too large for it."""
    from onnx import shape_inference

    if model.ByteSize() < 2**31 - 2**20:
        try:
            model = shape_inference.infer_shapes(model, strict_mode=True)
        except Exception as error:
            raise InvalidInput(f"the model's shapes or formats contradict each other: {error}") from error
    entries = [*model.graph.value_info, *model.graph.output]
    return {
        entry.name: tuple(d.dim_value if d.HasField("dim_value") else None for d in entry.type.tensor_type.shape.dim)
        for entry in entries
        if entry.type.tensor_type.HasField("shape")
    }
