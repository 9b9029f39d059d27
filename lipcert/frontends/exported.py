"""From an exported program (torch.export, a .pt2 file) to the graph. Floor 4.

The program is functional, so aliasing and mutation are its signature's business; every tensor carries its shape, which
each lowered value is held against. What only constants enter is evaluated as the program does, in its own format.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind, TensorArgument
from torch.fx.node import map_arg

from lipcert.errors import InvalidInput, UnsupportedOperation
from lipcert.frontends.agreement import require_same_as_program
from lipcert.frontends.aten import CASTS, EXACT, MOVING, SIZED, moving, rule_of
from lipcert.frontends.layers import layer_at
from lipcert.graph import Graph
from lipcert.linear import Shape
from lipcert.lowering import BATCH, Recorder, Value, source
from lipcert.trace.interpret import call_rule, constant, leaves, values_in

_NUMBERS = {getattr(operator, name) for name in "add sub mul floordiv mod neg eq ne lt le gt ge".split()}
_CONSTANT_INPUTS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


def trace_exported(program: ExportedProgram | str | Path, input_shape: Shape | None = None) -> Graph:
    """Read an exported program as a graph over its exact weights: what `lipcert.trace` gives for the module.

    A whitelist of aten operations is lowered, in training form (as exported) or decomposed; everything else is
    refused, naming the operation, the module path and the line of source. The leading dimension is the batch, of a
    fixed or a dynamic size; each sample is one input of the function. Weights that the program computes from its
    parameters are computed as the program does, in its own format, if a parametrization does so. Afterwards the graph
    is replayed in float64 against the program's own operations, and against the program in its own format.

    Args:
        program: What `torch.export.export` returns, or the path of a ``.pt2`` file. Reading a file may run code that
            it contains (`torch.export.load`), so open only files you trust.
        input_shape: Shape of one sample, to be compared with the program's. Default: the program's.

    Raises:
        UnsupportedOperation: If an operation is not covered, or the program does more than map one tensor to one.
        NotLipschitz: If an operation has no finite Lipschitz constant.
        NotFinite: If a weight is NaN or infinite.
        InvalidInput: If the file cannot be read, or ``input_shape`` is not the program's.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU())
        >>> graph = trace_exported(torch.export.export(model, (torch.zeros(2, 3),)))
        >>> [(node.name, node.shape) for node in graph]
        [('input', (3,)), ('0', (2,)), ('1', (2,))]
    """
    program = _functional(program if isinstance(program, ExportedProgram) else _load(Path(program)))
    walk = _Walk(program)
    if input_shape is not None and tuple(input_shape) != walk.input_shape:
        raise InvalidInput(
            f"the program was exported for samples of shape {walk.input_shape}, not {tuple(input_shape)}; "
            f"leave input_shape out, or export again."
        )
    with torch.no_grad():
        value = walk.value(_output(program))
        if not isinstance(value, Value):
            raise UnsupportedOperation("the program returns a constant, not a tensor that depends on the input.")
        graph = walk.recorder.graph(value)
        require_same_as_program(graph, program, walk.values, walk.batch)
    return graph


def _load(path: Path) -> ExportedProgram:
    if not path.is_file():
        raise InvalidInput(f"there is no file `{path}`.")
    try:
        return torch.export.load(path)
    except Exception as error:
        raise InvalidInput(
            f"`{path}` cannot be read as an exported program: {type(error).__name__}: {error}\n"
            f"  It must come from torch.export.save with this version of torch ({torch.__version__})."
        ) from error


def _functional(program: ExportedProgram) -> ExportedProgram:
    """Without in-place operations: torch resolves which reader sees what, and signs what outlives the call."""
    if any(isinstance(n.target, OpOverload) and n.target._schema.is_mutable for n in program.graph.nodes):
        return program.run_decompositions({})
    return program


def _output(program: ExportedProgram) -> fx.Node:
    """The node that the program returns, if it does nothing else."""
    specs = program.graph_signature.output_specs
    changed = [f"`{spec.target}`" for spec in specs if spec.kind is not OutputKind.USER_OUTPUT]
    if changed:
        raise UnsupportedOperation(
            f"running the program changes {', '.join(changed)}; a certificate is about one fixed function. "
            f"Call model.eval() before the export, and write into no buffer or input."
        )
    if len(specs) != 1 or not isinstance(specs[0].arg, TensorArgument):
        raise UnsupportedOperation(f"the program returns {len(specs)} results; a graph has one tensor as its output.")
    node = program.graph.find_nodes(op="output")[0]
    return node.args[0][0]  # type: ignore[index, return-value]


class _Walk:
    """Evaluates nodes that the output needs, each once, on `Value`s and constants.

    Attributes:
        input_shape: Shape of one sample.
        batch: The number that the batch dimension was exported for, or none if it is dynamic.
        recorder: Collects the lowered nodes.
        values: What every evaluated node stands for; constants are tensors in the program's own format.
    """

    def __init__(self, program: ExportedProgram) -> None:
        """Read the signature."""
        self.recorder = Recorder()
        self.values: dict[fx.Node, Any] = {}
        self._symbol: Any = None
        nodes = {node.name: node for node in program.graph.find_nodes(op="placeholder")}
        inputs: list[fx.Node] = []
        for spec in program.graph_signature.input_specs:
            node = nodes.get(spec.arg.name)
            if spec.kind is InputKind.USER_INPUT and isinstance(spec.arg, TensorArgument) and node is not None:
                inputs.append(node)
            elif spec.kind in _CONSTANT_INPUTS and node is not None:
                self.values[node] = _stored(program, str(spec.target))
            else:
                raise UnsupportedOperation(f"the program takes `{spec.arg.name}` ({spec.kind.name}), not one tensor.")
        if len(inputs) != 1:
            names = ", ".join(f"`{node.name}`" for node in inputs)
            raise UnsupportedOperation(f"the program takes {len(inputs)} inputs ({names}); a graph has one tensor.")
        self.input_shape, self.batch = self._read_input(inputs[0])
        self.values[inputs[0]] = source(self.recorder, self.input_shape)

    def _read_input(self, node: fx.Node) -> tuple[Shape, int | None]:
        tensor = node.meta["val"]
        batch, *shape = tensor.shape or (None,)
        if not tensor.is_floating_point() or batch is None or not all(type(size) is int for size in shape):
            raise UnsupportedOperation(
                f"the program's input `{node.name}` is {tensor.dtype} of shape {tuple(tensor.shape)}; it must be a "
                f"batch of real samples of a fixed shape: only the leading dimension may be dynamic."
            )
        self._symbol = batch
        return tuple(shape), batch if type(batch) is int else None

    def value(self, node: fx.Node) -> Any:
        """What a node stands for; evaluates the nodes it needs, in the order of the program."""
        needed: set[fx.Node] = set()
        waiting = [node]
        while waiting:
            last = waiting.pop()
            if last not in needed:
                needed.add(last)
                waiting.extend(last.all_input_nodes)
        for member in node.graph.nodes:
            if member in needed and member not in self.values:
                self.recorder.path = path_of(member)
                self.values[member] = self._evaluate(member)
                self._require_shape(member)
        return self.values[node]

    def _evaluate(self, node: fx.Node) -> Any:
        if node.op != "call_function":
            raise UnsupportedOperation(f"`{self.recorder.path}` ({node.op} of {node.target}) is no tensor operation.")
        args: Any = map_arg(node.args, lambda needed: self.values[needed])
        kwargs: Any = map_arg(node.kwargs, lambda needed: self.values[needed])
        if node.target is operator.getitem:
            return self._part(node, args)
        if not any(True for _ in values_in((args, kwargs))):
            return self._on_constants(node, args, kwargs)
        name = _name(node)
        layer = layer_at(node, _name, self.values)
        if layer is not None:
            return layer
        if name == "sym_size":
            return (BATCH, *args[0].shape)[args[1]]
        if name in CASTS:
            return self._cast(node, args[0])
        if name in SIZED and list(args[1][:1]) == [self.batch]:
            # The samples stay apart for every batch size if they do for this one.
            args = (args[0], [BATCH, *args[1][1:]], *args[2:])
        args, kwargs = (_exact(tree, self.recorder.path) for tree in (args, kwargs))
        if name in MOVING:
            rule, called = moving(node.target), name  # type: ignore[arg-type]
        else:
            rule, called = rule_of(name)
        if rule is None:
            raise _not_covered(node, self.recorder.path)
        return call_rule(rule, called, args, kwargs, self.recorder.path)

    def _part(self, node: fx.Node, args: tuple[Any, ...]) -> Any:
        try:
            return args[0][args[1]]
        except (IndexError, TypeError) as error:
            raise UnsupportedOperation(
                f"`{self.recorder.path}` uses result {args[1]} of `{node.args[0]}`, which has no Lipschitz constant, "
                f"such as indices.",
                path=self.recorder.path,
            ) from error

    def _cast(self, node: fx.Node, value: Value) -> Value:
        old, new = (n.meta["val"].dtype for n in (node.args[0], node))  # type: ignore[union-attr]
        if torch.promote_types(old, new) != new:
            raise UnsupportedOperation(
                f"`{self.recorder.path}` casts from {old} to {new}, which rounds; leave the cast out of forward"
                f"{_line(node)}.",
                path=self.recorder.path,
            )
        return value

    def _on_constants(self, node: fx.Node, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        target, path = node.target, self.recorder.path
        tensors = [leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if target in _NUMBERS and not tensors:
            return target(*args, **kwargs)  # type: ignore[operator]
        if not isinstance(target, OpOverload) or torch.Tag.nondeterministic_seeded in target.tags:
            raise _not_covered(node, path)
        result = target(*args, **kwargs) if _may_compute(node) else None
        if _name(node) in CASTS and isinstance(result, Tensor) and tensors:
            result = result if torch.promote_types(tensors[0].dtype, result.dtype) == result.dtype else None
        if result is None:
            raise UnsupportedOperation(
                f"`{path}` computes with constants in forward (`{target}`){_line(node)}; compute the weight before, as "
                f"a buffer, or register it with torch.nn.utils.parametrize.",
                path=path,
            )
        return result

    def _require_shape(self, node: fx.Node) -> None:
        """The value's shape is the program's: rules and program mean the same dimensions by the same numbers."""
        value, expected = self.values[node], node.meta.get("val")
        if isinstance(value, Value):
            shape = tuple(expected.shape) if isinstance(expected, Tensor) else ()
            known = all(type(size) is int for size in shape[1:])
            if not known or shape[1:] != value.shape or not self._leads(shape):
                raise UnsupportedOperation(
                    f"`{self.recorder.path}` has shape {shape} in the program, and {('batch', *value.shape)} by its "
                    f"rule: it changes the batch dimension, or its shape depends on data{_line(node)}.",
                    path=self.recorder.path,
                )

    def _leads(self, shape: tuple[Any, ...]) -> bool:
        return str(shape[0]) == str(self._symbol)


def path_of(node: fx.Node) -> str:
    """Where a node is in the exported module: its layer, or the module whose forward runs it and its own name."""
    stack = node.meta.get("nn_module_stack") or {}
    path, kind = list(stack.values())[-1] if stack else ("", "")
    kind = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    path = "" if kind.startswith("_empty") else str(path)
    if kind.startswith("torch.nn.modules.") and ".container." not in kind:
        return path or kind.rpartition(".")[2].lower()
    return f"{path}.{node.name}" if path else node.name


def _stored(program: ExportedProgram, name: str) -> Tensor:
    tensor = program.state_dict[name] if name in program.state_dict else program.constants[name]
    if not isinstance(tensor, Tensor) or tensor.device.type != "cpu":
        raise UnsupportedOperation(
            f"`{name}` is not a tensor on the CPU; move the program there (torch.export.passes.move_to_device_pass).",
            path=name,
        )
    return tensor.detach()


def _exact(tree: Any, path: str) -> Any:
    """Arguments with their tensors as float64 constants."""
    match tree:
        case Tensor():
            return constant(tree, path)
        case list() | tuple():
            return [_exact(branch, path) for branch in tree]
        case dict():
            return {key: _exact(branch, path) for key, branch in tree.items()}
    return tree


def _may_compute(node: fx.Node) -> bool:
    """Whether constants may enter: nothing is rounded, or a parametrization says what its weight is."""
    stack = node.meta.get("nn_module_stack") or {}
    path = str(list(stack.values())[-1][0]) if stack else ""
    result = node.meta.get("val")
    integral = isinstance(result, Tensor) and not result.is_floating_point()
    return _name(node) in EXACT | CASTS or integral or "parametrizations" in path.split(".")


def _name(node: fx.Node) -> str:
    """The name of an aten operation without its overload; other namespaces keep theirs."""
    if not isinstance(node.target, OpOverload):
        return str(node.target)
    namespace, _, name = node.target._schema.name.partition("::")
    return name if namespace == "aten" else f"{namespace}::{name}"


def _line(node: fx.Node) -> str:
    """The line of the user's source, where the program knows it."""
    lines = [line.strip() for line in str(node.meta.get("stack_trace") or "").splitlines() if "File " in line]
    return f" ({lines[-1].removeprefix('File ')})" if lines else ""


def _not_covered(node: fx.Node, path: str) -> UnsupportedOperation:
    return UnsupportedOperation(
        f"no lowering for `{node.target}` at `{path}`{_line(node)}.\n"
        f"  A certificate must cover every operation, so lipcert does not guess. Trace the Python module instead "
        f"(`lipcert.trace`), with a rule of your own for the layer (`@lipcert.lowers`).",
        path=path,
    )
