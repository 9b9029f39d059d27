"""From a model to its graph: freeze, record with torch.fx, lower by rules, replay against the model. Floor 4.

Recording sees what `forward` does with its tensors and nothing else, so what it cannot see is refused before
(hooks, replaced methods, training mode: `freeze`) or found after (python state, randomness, branches on being
traced: `replay`).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lipcert import rules as _rules  # noqa: F401  (registers the built-in rules)
from lipcert.domain import Domain, WholeSpace, limits
from lipcert.errors import UnsupportedOperation
from lipcert.freeze import evaluation_copy, materialise, promote, unchanged_randomness
from lipcert.graph import Graph
from lipcert.linear import Shape
from lipcert.lowering import Value
from lipcert.trace.inplace import require_no_overwritten_reads
from lipcert.trace.interpret import require_shape
from lipcert.trace.record import Recording, record
from lipcert.trace.replay import own_dtype, require_reproduction

__all__ = ["trace"]

_FORMAT = re.compile(r"torch\.b?float\d+")


def trace(model: nn.Module, input_shape: Shape, domain: Domain = WholeSpace()) -> Graph:  # noqa: B008
    """Capture the evaluation function of a model as a graph over its exact weights.

    Every operation is covered by a rule or refused by name; afterwards the graph is replayed against the model on
    inputs of several sizes, signs and batch sizes, and refused where they disagree beyond rounding.

    Args:
        model: A module whose forward takes one tensor ``(N, *input_shape)`` and returns one ``(N, ...)``. A single
            layer is a model too. The model is not changed.
        input_shape: Shape of one sample, without the batch dimension.
        domain: What the claim will be about. On a box or a ball operations are covered that are Lipschitz on a bounded
            domain only: products, exp, layer normalisation, attention. Bound such a graph by `certify_on`.

    Raises:
        UnsupportedOperation: If an operation has no rule, or recording cannot be faithful (hooks, training mode,
            data-dependent control flow, python state, overwritten tensors); the message names the module path.
        NotLipschitz: If an operation has no finite Lipschitz constant.
        NotFinite: If a weight is NaN or infinite.
        InvalidInput: If ``input_shape`` is no shape, or does not fit the model.

    Example:
        >>> graph = trace(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), (3,))
        >>> [(node.name, node.shape) for node in graph]
        [('input', (3,)), ('0', (2,)), ('1', (2,))]
    """
    shape = require_shape(input_shape)
    if not isinstance(domain, WholeSpace):
        limits(domain, shape)
    own = materialise(model)
    frozen = promote(copy.deepcopy(own), torch.device("cpu"))
    with unchanged_randomness(), torch.no_grad():
        recording = record(copy.deepcopy(frozen), shape, domain)
        graph = _lower(recording)
        require_reproduction(graph, frozen, own, evaluation_copy(model), domain)
        _require_same_in_own_dtype(recording, copy.deepcopy(own), shape, domain)
        if any(module.training for module in model.modules()):
            _require_same_in_training(recording, model, copy.deepcopy(frozen), shape, domain)
    return graph


def _lower(recording: Recording) -> Graph:
    graph, interpreter = recording.graph, recording.interpreter
    output = next(node for node in graph.nodes if node.op == "output")
    value = interpreter.value(output)
    if not isinstance(value, Value):
        kind = "a constant" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise UnsupportedOperation(
            f"the model returns {kind}, not one tensor that depends on the input; wrap it in a module that returns one."
        )
    require_no_overwritten_reads(graph, interpreter)
    return interpreter.recorder.graph(value)


def _require_same_in_training(
    recording: Recording, model: nn.Module, frozen: nn.Module, shape: Shape, domain: Domain
) -> None:
    """A module's own ``forward`` may branch on ``self.training``: record it in the mode it is in, and compare."""
    for module, given in zip(frozen.modules(), _without_parametrizations(model), strict=True):
        module.training = given.training
    other = record(frozen, shape, domain)
    where = _first_difference(recording, other)
    if where:
        raise UnsupportedOperation(
            f"the model is in training mode, in which `{where}` computes something else; the certificate is about "
            f"the evaluation function. Call model.eval() first.",
            path=where,
        )


def _require_same_in_own_dtype(recording: Recording, own: nn.Module, shape: Shape, domain: Domain) -> None:
    """The float64 copy stands for the model only if no code depends on the dtype."""
    dtype = own_dtype(own)
    where = _first_difference(recording, record(own, shape, domain, dtype))
    if where:
        raise UnsupportedOperation(
            f"the model computes something else in {dtype} than in float64, first at `{where}`; a graph is about one "
            f"real-valued function. Remove the branch on the dtype.",
            path=where,
        )


def _first_difference(recording: Recording, other: Recording) -> str:
    """Where two recordings of one model part, or nothing; floating formats as arguments follow the model's own."""
    texts = [[_FORMAT.sub("dtype", node.format_node() or "") for node in r.graph.nodes] for r in (recording, other)]
    for node, first, second in zip(other.graph.nodes, *texts, strict=False):
        if first != second:
            return other.interpreter.path(node)
    return "the end of forward" if len(texts[0]) != len(texts[1]) else ""


def _without_parametrizations(model: nn.Module) -> Iterator[nn.Module]:
    for path, module in model.named_modules():
        if "parametrizations" not in path.split("."):
            yield module
