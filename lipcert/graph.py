"""The captured network: a DAG of six node kinds over exact float64 weights. Floor 1: torch only.

Certifiers, the checker and replay all read this value and nothing else. Node kinds are closed (`match` and
`assert_never`); torch operations are open and are lowered into these kinds by rules.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, assert_never

import numpy as np
import torch
from torch import Tensor

from lipcert.errors import InvalidInput
from lipcert.linear import (
    Adjoint,
    Conv,
    Dense,
    Diagonal,
    LinearMap,
    Reshape,
    Selection,
    Separable,
    Shape,
    apply,
)
from lipcert.norms import Norms

FORMAT = "lipcert-graph-1"

ON_A_DOMAIN = "declared:on a domain"
"""The function of an activation whose slopes are those of the range that it reads (see `lipcert.regions`)."""

Document = dict[str, Any]
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Input:
    """The network's only input."""

    name: str
    shape: Shape


@dataclass(frozen=True, eq=False)
class Affine:
    """``y = A x + b``; the bias (broadcastable to ``shape``) matters for replay and local bounds only."""

    name: str
    source: str
    map: LinearMap
    bias: Tensor | None

    @property
    def shape(self) -> Shape:
        """The map's output shape."""
        return self.map.out_shape


@dataclass(frozen=True, eq=False)
class Activation:
    """An elementwise function whose difference quotients lie in ``[slope[0], slope[1]]``.

    Attributes:
        name: Unique name.
        source: Node it reads.
        shape: Its shape, which is also its source's.
        function: What it is, from the checker's table, or ``declared:<who>`` for a user's own slope.
        parameters: Numbers or float64 tensors that, with ``function``, define it.
        slope: Float64 tensors broadcastable to ``shape``, rounded outward.
        call: Evaluates it on a batch, for replay; not part of the digest.
    """

    name: str
    source: str
    shape: Shape
    function: str
    parameters: Mapping[str, float | Tensor]
    slope: tuple[Tensor, Tensor]
    call: Callable[[Tensor], Tensor] = field(repr=False)


@dataclass(frozen=True, eq=False)
class Opaque:
    """A nonlinear, not elementwise function with a known Lipschitz constant per norm pair.

    Attributes:
        name: Unique name.
        source: Node it reads.
        shape: Output shape.
        function: What it is, from the checker's table, or ``declared:<who>``.
        parameters: JSON values or float64 tensors that, with ``function``, define it.
        gains: Upper bounds of its Lipschitz constant; always at least l2, l1 and linf for built-in functions.
        call: Evaluates it on a batch, for replay; not part of the digest.
    """

    name: str
    source: str
    shape: Shape
    function: str
    parameters: Mapping[str, Any]
    gains: Mapping[Norms, float]
    call: Callable[[Tensor], Tensor] = field(repr=False)


@dataclass(frozen=True, eq=False)
class Add:
    """The sum of two or more nodes of one shape."""

    name: str
    sources: tuple[str, ...]
    shape: Shape


@dataclass(frozen=True, eq=False)
class Concat:
    """Nodes side by side along dimension ``dim`` (batch excluded)."""

    name: str
    sources: tuple[str, ...]
    dim: int
    shape: Shape


Node = Input | Affine | Activation | Opaque | Add | Concat


def sources(node: Node) -> tuple[str, ...]:
    """The names a node reads.

    Example:
        >>> sources(Add("s", ("a", "b"), (3,)))
        ('a', 'b')
    """
    match node:
        case Input():
            return ()
        case Affine() | Activation() | Opaque():
            return (node.source,)
        case Add() | Concat():
            return node.sources
        case _:
            assert_never(node)


@dataclass(frozen=True, eq=False)
class Graph:
    """A network as a value: nodes in topological order, the last one being the output.

    Raises:
        InvalidInput: If a name repeats, a source comes later than its reader, or shapes disagree.
    """

    nodes: tuple[Node, ...]

    def __post_init__(self) -> None:
        """Check the order, the names and the shapes."""
        seen: dict[str, Shape] = {}
        for position, node in enumerate(self.nodes):
            if node.name in seen or (position == 0) != isinstance(node, Input):
                raise InvalidInput(f"node `{node.name}` repeats a name, or the input is not first and only.")
            missing = [name for name in sources(node) if name not in seen]
            if missing:
                raise InvalidInput(f"node `{node.name}` reads {missing}, not defined before it.")
            _check_shapes(node, seen)
            seen[node.name] = node.shape

    def __iter__(self) -> Iterator[Node]:
        """Iterate over nodes, sources first."""
        return iter(self.nodes)

    def __getitem__(self, name: str) -> Node:
        """The node of that name."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    @property
    def input(self) -> Node:
        """The input node."""
        return self.nodes[0]

    @property
    def output(self) -> Node:
        """The output node."""
        return self.nodes[-1]

    def readers(self) -> dict[str, tuple[str, ...]]:
        """For every node, the names of the nodes that read it."""
        found: dict[str, list[str]] = {node.name: [] for node in self.nodes}
        for node in self.nodes:
            for name in sources(node):
                found[name].append(node.name)
        return {name: tuple(readers) for name, readers in found.items()}

    def replay(self, x: Tensor) -> Tensor:
        """Evaluate the graph on a batch ``(N, *input shape)``, in the dtype and on the device of ``x``."""
        return self.values(x)[self.output.name]

    def values(self, x: Tensor) -> dict[str, Tensor]:
        """The value of every node on a batch, as by `replay`."""
        values: dict[str, Tensor] = {}
        for node in self.nodes:
            values[node.name] = _evaluate(node, [values[name] for name in sources(node)], x)
        return values

    def document(self) -> tuple[Document, Arrays]:
        """The graph as JSON values, and its tensors as numpy arrays under the keys the JSON names.

        Numbers that matter are hexadecimal floats. Weights are stored as float32 where that is exact.
        """
        arrays: Arrays = {}
        nodes = [_describe(node, arrays) for node in self.nodes]
        return {"format": FORMAT, "output": self.output.name, "nodes": nodes}, arrays

    def digest(self) -> str:
        """SHA-256 over the document and the bytes of every tensor: the identity of the network a claim is about."""
        document, arrays = self.document()
        return digest(document, arrays)


def digest(document: Document, arrays: Arrays) -> str:
    """SHA-256 of the canonical JSON of the document together with dtype, shape and SHA-256 of each array."""
    tensors = {
        key: {
            "dtype": str(array.dtype),
            "shape": list(array.shape),
            "sha256": hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest(),
        }
        for key, array in arrays.items()
    }
    text = json.dumps({"graph": document, "tensors": tensors}, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def rename(node: Node, name: str) -> Node:
    """The same node under another name."""
    return replace(node, name=name)


def _evaluate(node: Node, values: list[Tensor], x: Tensor) -> Tensor:
    match node:
        case Input(shape=shape):
            if tuple(x.shape[1:]) != shape:
                raise InvalidInput(f"input has shape {tuple(x.shape[1:])} without batch, the graph expects {shape}.")
            return x
        case Affine(map=linear, bias=bias):
            y = apply(linear, values[0])
            return y if bias is None else y + bias.to(y)
        case Activation(call=call) | Opaque(call=call):
            return call(values[0])
        case Add():
            return torch.stack(values).sum(0) if len(values) > 2 else values[0] + values[1]
        case Concat(dim=dim):
            return torch.cat(values, dim=dim + 1)
        case _:
            assert_never(node)


def _check_shapes(node: Node, seen: Mapping[str, Shape]) -> None:
    shapes = [seen[name] for name in sources(node)]
    match node:
        case Input(shape=shape):
            fits = all(size > 0 for size in shape)
        case Affine(map=linear):
            fits = shapes == [linear.in_shape]
        case Activation(shape=shape):
            fits = shapes == [shape]
        case Opaque():
            fits = True
        case Add(shape=shape):
            fits = len(shapes) >= 2 and all(other == shape for other in shapes)
        case Concat(dim=dim, shape=shape):
            rest = [(*other[:dim], *other[dim + 1 :]) for other in shapes]
            same = set(rest) == {(*shape[:dim], *shape[dim + 1 :])}
            fits = same and sum(other[dim] for other in shapes) == shape[dim]
        case _:
            assert_never(node)
    if not fits:
        raise InvalidInput(f"node `{node.name}` of shape {node.shape} cannot read sources of shapes {shapes}.")


def _store(arrays: Arrays, key: str, tensor: Tensor) -> str:
    if key in arrays:
        raise InvalidInput(f"two tensors would be stored as `{key}`; rename one of the nodes.")
    array = tensor.detach().cpu().numpy()
    with np.errstate(over="ignore"):
        short = array.astype(np.float32)
    if array.dtype == np.float64 and np.array_equal(short.astype(np.float64), array):
        array = short
    whole = np.ascontiguousarray(array)  # a number becomes a list of one; an index has the shape of what it gives
    arrays[key] = whole.reshape(array.shape) if whole.dtype == np.int64 else whole
    return key


def _number(arrays: Arrays, key: str, value: Any) -> Any:
    """A JSON value: tensors of one element and floats as hexadecimal text, other tensors by key."""
    if isinstance(value, Tensor):
        return float(value).hex() if value.ndim == 0 else {"tensor": _store(arrays, key, value)}
    return value.hex() if isinstance(value, float) else value


def _describe(node: Node, arrays: Arrays) -> Document:
    entry: Document = {"kind": type(node).__name__.lower(), "name": node.name, "shape": list(node.shape)}
    match node:
        case Input():
            pass
        case Affine(name, source, linear, bias):
            described = _describe_map(linear, name, arrays)
            stored = None if bias is None else _store(arrays, f"{name}.bias", bias)
            entry |= {"source": source, "map": described, "bias": stored}
        case Activation(name, source, _, function, parameters, slope):
            entry |= {"source": source, "function": function, "parameters": _parameters(name, parameters, arrays)}
            entry["slope"] = [
                _number(arrays, f"{name}.slope.lower", slope[0]),
                _number(arrays, f"{name}.slope.upper", slope[1]),
            ]
        case Opaque(name, source, _, function, parameters, gains):
            entry |= {"source": source, "function": function, "parameters": _parameters(name, parameters, arrays)}
            entry["gains"] = {str(norms): float(gain).hex() for norms, gain in gains.items()}
        case Add(sources=names):
            entry["sources"] = list(names)
        case Concat(sources=names, dim=dim):
            entry |= {"sources": list(names), "dim": dim}
        case _:
            assert_never(node)
    return entry


def _parameters(name: str, parameters: Mapping[str, Any], arrays: Arrays) -> Document:
    return {key: _number(arrays, f"{name}.{key}", value) for key, value in parameters.items()}


def _describe_map(linear: LinearMap, name: str, arrays: Arrays) -> Document:
    shapes: Document = {"in_shape": list(linear.in_shape), "out_shape": list(linear.out_shape)}
    match linear:
        case Dense(weight):
            return {"kind": "dense", "weight": _store(arrays, f"{name}.weight", weight), **shapes}
        case Conv():
            return {
                "kind": "conv",
                "weight": _store(arrays, f"{name}.weight", linear.weight),
                "stride": list(linear.stride),
                "padding": [list(pair) for pair in linear.padding],
                "dilation": list(linear.dilation),
                "groups": linear.groups,
                "padding_mode": linear.padding_mode,
                **shapes,
            }
        case Adjoint(conv):
            return {"kind": "adjoint", "conv": _describe_map(conv, name, arrays), **shapes}
        case Diagonal(scale):
            return {"kind": "diagonal", "scale": _store(arrays, f"{name}.scale", scale), **shapes}
        case Selection(index):
            return {"kind": "selection", "index": _store(arrays, f"{name}.index", index), **shapes}
        case Reshape():
            return {"kind": "reshape", **shapes}
        case Separable(factors):
            described = [
                None
                if factor is None
                else {
                    "numerator": _store(arrays, f"{name}.factor.{dim}", factor.numerator),
                    "denominator": factor.denominator,
                }
                for dim, factor in enumerate(factors)
            ]
            return {"kind": "separable", "factors": described, **shapes}
        case _:
            assert_never(linear)
