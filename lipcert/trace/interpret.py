"""Runs a recorded torch.fx graph on `Value`s: every operation goes through its rule, or is refused. Floor 4."""

from __future__ import annotations

import builtins
import inspect
import math
import operator
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from lipcert.domain import Domain
from lipcert.errors import InvalidInput, LipcertError, UnsupportedOperation
from lipcert.linear import Shape
from lipcert.lowering import BATCH, Recorder, Rule, Target, Value, no_rule, require_finite, rule_for, source

ROOT = "model"
"""The attribute under which the recorded root module holds the user's model."""

_ARITHMETIC = {getattr(operator, name) for name in "add sub mul truediv floordiv mod neg pos pow abs getitem".split()}
_NUMBER_FUNCTIONS = _ARITHMETIC | {math.prod, math.sqrt, math.floor, math.ceil, min, max, int, float, len, round}
# On constants only what rounds nothing is evaluated here: moving, negating, choosing.
_EXACT_METHODS = set(
    "view reshape flatten permute transpose t movedim swapaxes squeeze unsqueeze unflatten expand expand_as repeat "
    "contiguous clone detach neg abs relu clamp clamp_min clamp_max double select narrow chunk split unbind flip roll "
    "tril triu diag long view_as reshape_as cpu requires_grad_".split()
)
_EXACT_FUNCTIONS = {operator.getitem, operator.neg, torch.relu, torch.nn.functional.relu, torch.cat, torch.stack} | {
    getattr(torch, name) for name in _EXACT_METHODS if callable(getattr(torch, name, None))
}


class Interpreter:
    """Lowers nodes on demand, each once, and remembers which graph nodes every operation recorded.

    Attributes:
        recorder: Collects the lowered nodes.
        values: What every evaluated fx node stands for: a `Value`, a constant, or a tuple of them.
        recorded: How many nodes the recorder held before and after each fx node.
    """

    def __init__(
        self, root: nn.Module, input_shape: Shape, scopes: Mapping[str, tuple[str, type]], domain: Domain
    ) -> None:
        """Start with nothing evaluated."""
        self.recorder = Recorder(domain=domain)
        self.values: dict[fx.Node, Any] = {}
        self.recorded: dict[fx.Node, tuple[int, int]] = {}
        self.root = root
        self._input_shape = input_shape
        self._scopes = scopes

    def value(self, node: fx.Node) -> Any:
        """What a node stands for; evaluates the nodes it needs, in the order of the program."""
        needed: set[fx.Node] = set()
        waiting = [node]
        while waiting:
            last = waiting.pop()
            if last not in needed and last not in self.values:
                needed.add(last)
                waiting.extend(last.all_input_nodes)
        if needed:
            for member in node.graph.nodes:
                if member in needed:
                    before = len(self.recorder.nodes)
                    self.recorder.path = self.path(member)
                    self.values[member] = self._evaluate(member)
                    self.recorded[member] = (before, len(self.recorder.nodes))
        return self.values[node]

    def path(self, node: fx.Node) -> str:
        """Where a node is in the user's model: its module, or the module whose forward runs it and its own name."""
        if node.op == "call_module":
            module = self.root.get_submodule(str(node.target))
            return module_path(str(node.target)) or type(module).__name__.lower()
        scope = module_path(self._scopes.get(node.name, ("", None))[0])
        return f"{scope}.{node.name}" if scope else node.name

    def _evaluate(self, node: fx.Node) -> Any:
        args, kwargs = map_arg((node.args, node.kwargs), lambda needed: self.values[needed])
        match node.op:
            case "placeholder":
                return source(self.recorder, self._input_shape)
            case "get_attr":
                return constant(operator.attrgetter(str(node.target))(self.root), module_path(str(node.target)))
            case "call_module":
                module = self.root.get_submodule(str(node.target))
                return self._apply(type(module), (module, *args), kwargs)
            case "output":
                return args[0]
        if not any(True for _ in values_in((args, kwargs))):
            return self._on_constants(node, args, kwargs)
        return self._apply(node.target, args, kwargs)

    def _apply(self, target: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        path = self.recorder.path
        if isinstance(args[0], tuple | list) and target in (operator.getitem, builtins.getattr):
            return _part(target, args, path)
        if target is builtins.getattr:
            target, args = f".{args[1]}", args[:1]
        return apply_rule(target, args, kwargs, path)

    def _on_constants(self, node: fx.Node, args: Any, kwargs: Mapping[str, Any]) -> Any:
        tensors = [leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        target, path = node.target, self.recorder.path
        if target is builtins.getattr and args[1] in ("T", "mT", "data"):
            return getattr(args[0], args[1])
        if node.op == "call_function" and callable(target):
            if not tensors and target in _NUMBER_FUNCTIONS:
                return target(*args, **kwargs)
            integral = all(not tensor.is_floating_point() for tensor in tensors)
            if target in _EXACT_FUNCTIONS or (integral and target in _ARITHMETIC - {operator.truediv}):
                return target(*args, **kwargs)
        if node.op == "call_method" and target in _EXACT_METHODS | {"item"}:
            return getattr(args[0], str(target))(*args[1:], **kwargs)
        raise UnsupportedOperation(
            f"`{path}` computes with constants in forward (`{name_of(target)}`); the rounding of that is not the "
            f"model's own, so the weight would not be the one the model uses. Compute it before, as a buffer, or "
            f"register it with torch.nn.utils.parametrize.",
            path=path,
        )


def apply_rule(target: Target, args: Any, kwargs: Mapping[str, Any], path: str) -> Any:
    """Call the rule of an operation with the arguments of the operation.

    Raises:
        UnsupportedOperation: If there is no rule, or it was not written for these arguments.
    """
    rule = rule_for(target)
    if rule is None:
        raise no_rule(target, path)
    return call_rule(rule, target, args, kwargs, path)


def call_rule(rule: Rule, target: Target, args: Any, kwargs: Mapping[str, Any], path: str) -> Any:
    """Call a rule; ``target`` is what the messages call it.

    Raises:
        UnsupportedOperation: If it was not written for these arguments.
    """
    _require_fit(rule, target, args, kwargs, path)
    try:
        return rule(*args, **kwargs)
    except LipcertError:
        raise
    except Exception as error:
        raise UnsupportedOperation(
            f"`{path}` calls `{name_of(target)}` in a way its rule cannot read: {error}", path=path
        ) from error


def _part(target: Any, args: Any, path: str) -> Any:
    """An element of the several results of an operation."""
    try:
        return target(*args)
    except (AttributeError, IndexError, TypeError) as error:
        raise UnsupportedOperation(
            f"`{path}` uses a result ({args[1]!r}) that has no Lipschitz constant, such as indices, or does not exist.",
            path=path,
        ) from error


def constant(value: Any, path: str) -> Any:
    """A tensor as an exact float64 constant; integers and booleans stay, they index.

    Raises:
        NotFinite: If it holds NaN or infinity.
        UnsupportedOperation: If float64 cannot hold it.
    """
    if not isinstance(value, Tensor):
        return value
    if value.is_complex() or value.is_quantized or value.layout != torch.strided or value.is_meta:
        raise UnsupportedOperation(f"`{path}` is a constant of the format {value.dtype}, {value.layout}.", path=path)
    value = value.detach().cpu()
    if value.is_floating_point():
        value = value.double()
        require_finite(path, value)
    return value


def module_path(path: str) -> str:
    """A path below the recorded root as a path in the user's model."""
    return path.removeprefix(ROOT).removeprefix(".")


def leaves(tree: Any) -> Iterator[Any]:
    """The leaves of nested tuples, lists, dicts and slices."""
    match tree:
        case tuple() | list():
            for branch in tree:
                yield from leaves(branch)
        case dict():
            for branch in tree.values():
                yield from leaves(branch)
        case slice():
            yield from (tree.start, tree.stop, tree.step)
        case _:
            yield tree


def values_in(tree: Any) -> Iterator[Value]:
    """The `Value`s among the leaves."""
    return (leaf for leaf in leaves(tree) if isinstance(leaf, Value))


def name_of(target: Target | Any) -> str:
    """How an operation is called in a message."""
    return target if isinstance(target, str) else getattr(target, "__name__", repr(target))


def batched_shape(value: Any) -> torch.Size | None:
    """The shape of what stands for a tensor, the batch dimension in front of a `Value`."""
    match value:
        case Value(shape=shape):
            return torch.Size((BATCH, *shape))
        case Tensor():
            return value.shape
    return None


def _require_fit(rule: Rule, target: Target, args: Any, kwargs: Mapping[str, Any], path: str) -> None:
    """Refuse calls the rule was not written for: unknown arguments, or a network value where it expects a constant.

    Built-in rules say by annotation which arguments may be a `Value`; an argument without annotation may be either.
    """
    try:
        bound = inspect.signature(rule).bind(*args, **kwargs).arguments
    except TypeError as error:
        raise UnsupportedOperation(
            f"`{path}` calls `{name_of(target)}` with arguments its rule does not know: {error}.", path=path
        ) from error
    annotations = inspect.get_annotations(rule) if rule.__module__.startswith("lipcert.") else {}
    for name, argument in bound.items():
        expected = str(annotations.get(name, "Value | Any"))
        holds = any(True for _ in values_in(argument))
        if holds and "Value" not in expected:
            raise UnsupportedOperation(
                f"`{path}`: the argument `{name}` of `{name_of(target)}` depends on the input; it must be a constant.",
                path=path,
            )
        if not holds and expected == "Value":
            raise UnsupportedOperation(
                f"`{path}`: `{name_of(target)}` applies the network to a constant (argument `{name}`).", path=path
            )


def require_shape(input_shape: Any) -> Shape:
    """Read an input shape.

    Raises:
        InvalidInput: If it is no sequence of positive integers.
    """
    if isinstance(input_shape, int) or not all(type(size) is int and size > 0 for size in input_shape):
        raise InvalidInput(
            f"input_shape {input_shape!r} is not a tuple of positive integers; give the shape of one sample, "
            f"without the batch dimension, for example (3, 32, 32)."
        )
    return tuple(input_shape)
