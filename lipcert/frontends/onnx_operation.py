"""One node of an ONNX graph, read strictly: every attribute and input is read by its rule, or refused. Floor 4."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lipcert.errors import InvalidInput, UnsupportedOperation
from lipcert.lowering import Value, require_finite

Constant = np.ndarray
Handler = Callable[["Operation"], Any]

_HANDLERS: dict[str, tuple[frozenset[int], Handler]] = {}


def understands(kind: str, *versions: int) -> Callable[[Handler], Handler]:
    """Register what lowers an operator, for the versions of its definition that it was written for.

    A version is the opset in which a definition appeared; definitions between two of them are the same.
    """

    def register(handler: Handler) -> Handler:
        _HANDLERS[kind] = (frozenset(versions), handler)
        return handler

    return register


class Operation:
    """A node with its attributes (defaults as the definition of its version states them) and inputs.

    Attributes:
        kind: The operator.
        version: The opset in which its definition appeared.
        path: What messages call it.
        batch: The batch size the file states, or none if it is dynamic.
    """

    def __init__(
        self, node: Any, schema: Any, inputs: Sequence[Value | Constant | None], path: str, batch: int | None
    ) -> None:
        """Read the attributes that are given; others have the default of the definition."""
        from onnx.helper import get_attribute_value

        self.kind, self.version, self.path, self.batch = node.op_type, schema.since_version, path, batch
        self.outputs = [name for name in node.output if name]
        defaults = {name: a.default_value for name, a in schema.attributes.items() if a.default_value.name}
        self._given = {attribute.name: get_attribute_value(attribute) for attribute in node.attribute}
        self._options = {name: get_attribute_value(value) for name, value in defaults.items()} | self._given
        self._inputs = list(inputs)
        self._read: set[str | int] = set()

    def option(self, name: str) -> Any:
        """An attribute, its default, or None."""
        self._read.add(name)
        value = self._options.get(name)
        return value.decode() if isinstance(value, bytes) else value

    def ignore(self, *known: str | int) -> None:
        """Attributes and inputs that make no difference to the result that is read."""
        self._read.update(known)

    def input(self, position: int) -> Value | Constant | None:
        """An input, or None where it is left out."""
        self._read.add(position)
        return self._inputs[position] if position < len(self._inputs) else None

    def value(self, position: int = 0) -> Value:
        """An input that depends on the network's input."""
        found = self.input(position)
        if not isinstance(found, Value):
            raise self.refused(f"applies the network to a constant (input {position})")
        return found

    def constant(self, position: int) -> Constant | None:
        """An input that does not depend on the network's input, or None where it is left out."""
        found = self.input(position)
        if isinstance(found, Value):
            raise self.refused(f"has an input {position} that depends on the network's input; it must be a constant")
        return found

    def weight(self, position: int) -> Tensor | None:
        """A constant of real numbers, exact in float64."""
        found = self.constant(position)
        return None if found is None else exact(found, self.path)

    def operand(self, position: int) -> Value | Tensor:
        """An input of either kind, constants exact in float64."""
        found = self.input(position)
        if found is None:
            raise self.refused(f"lacks its input {position}")
        return found if isinstance(found, Value) else exact(found, self.path)

    def integers(self, source: str | int) -> list[int] | None:
        """A list of integers, from an attribute or a constant input; None where it is left out."""
        found = self.option(source) if isinstance(source, str) else self.constant(source)
        if found is None:
            return None
        return [int(entry) for entry in np.asarray(found).reshape(-1)]

    def axis(self, axis: int, rank: int | None = None) -> int:
        """An axis counted from the front, the batch being 0."""
        rank = len(self.value().shape) + 1 if rank is None else rank
        if not -rank <= axis < rank:
            raise InvalidInput(f"`{self.path}` ({self.kind}) names axis {axis} of a tensor with {rank} axes.")
        return axis % rank

    def sample_axis(self, axis: int, rank: int | None = None) -> int:
        """An axis counted from the front that is not the batch.

        Raises:
            UnsupportedOperation: If it is the batch: a claim is about one sample at a time.
        """
        found = self.axis(axis, rank)
        if found == 0:
            raise self.refused("works along axis 0, the batch, so samples would mix")
        return found

    def refused(self, reason: str) -> UnsupportedOperation:
        """A refusal that names the node and the operator."""
        return UnsupportedOperation(f"`{self.path}` ({self.kind}) {reason}.", path=self.path)

    def lowered(self) -> Any:
        """What its rule makes of it.

        Raises:
            UnsupportedOperation: If there is no rule for this version, or the rule has not read everything.
        """
        versions, handler = _HANDLERS.get(self.kind, (frozenset(), None))
        if handler is None or self.version not in versions:
            known = f"only in the versions {sorted(versions)}" if versions else "not"
            raise UnsupportedOperation(
                f"no lowering for `{self.kind}` (version {self.version}) at `{self.path}`: it is {known} covered.\n"
                f"  A certificate must cover every operation, so lipcert does not guess.",
                path=self.path,
            )
        result = handler(self)
        unread = [f"attribute `{name}`" for name in self._given if name not in self._read]
        unread += [f"input {n}" for n, given in enumerate(self._inputs) if given is not None and n not in self._read]
        if unread:
            raise self.refused(f"has the {unread[0]}, which its rule does not know")
        return result


def exact(array: Constant, path: str) -> Tensor:
    """A constant as a float64 tensor; integers stay integers.

    Raises:
        NotFinite: If it holds NaN or infinity.
        UnsupportedOperation: If float64 cannot hold its format.
    """
    if array.dtype.kind in "iub":
        return torch.from_numpy(array.astype(np.int64))
    if array.dtype.name not in ("float16", "bfloat16", "float32", "float64"):
        raise UnsupportedOperation(f"`{path}` reads a constant of the format {array.dtype}.", path=path)
    tensor = torch.from_numpy(np.array(array, dtype=np.float64))
    require_finite(path, tensor)
    return tensor


def fitting(operation: Operation, value: Value, declared: Mapping[str, tuple[int | None, ...]]) -> Value:
    """The value, if its shape is the one that ONNX infers where it infers one."""
    shape = declared.get(operation.outputs[0])
    if shape is not None:
        fits = len(shape) == len(value.shape) + 1 and all(
            known in (None, size) for known, size in zip(shape[1:], value.shape, strict=True)
        )
        if not fits or (shape[0] is not None and shape[0] != operation.batch):
            raise operation.refused(
                f"has the shape {shape} by ONNX's own inference and {('batch', *value.shape)} by its rule"
            )
    return value
