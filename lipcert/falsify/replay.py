"""A counterexample as a Python file that needs neither torch nor lipcert: the layers, the pair, the claim. Floor 5."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from lipcert.enclosure import exactly
from lipcert.enclosure.ball import Ball
from lipcert.enclosure.functions import limits, zero_below
from lipcert.enclosure.maps import applied
from lipcert.errors import BudgetExceeded, UnsupportedOperation
from lipcert.falsify.verdict import Refuted
from lipcert.graph import Activation, Add, Affine, Concat, Graph, Input, Node, Opaque
from lipcert.linear import Factor, LinearMap, Separable

ENTRIES = 2**18
"""Most numbers that a layer may have, as a matrix."""

_HEADER = '''"""{claim}: false.

The two inputs below are stretched {ratio!r} times. Run this file to see it, with any Python 3; numbers are
exact fractions{but}.
"""

import math
from fractions import Fraction as F

P, Q, BOUND = {p}, {q}, F({bound!r})
X = {x}
Y = {y}


def affine(rows, bias, v):
    return [sum((c * v[k] for k, c in row), b) for row, b in zip(rows, bias)]


def norm2(v, p):
    """The square of a norm."""
    if p == 2:
        return sum(a * a for a in v)
    return (sum(map(abs, v)) if p == 1 else max(map(abs, v))) ** 2


def f(x):
    v = {{{first!r}: x}}
{body}
    return v[{last!r}]


changed = [a - b for a, b in zip(f(X), f(Y))]
apart = [a - b for a, b in zip(X, Y)]
broken = norm2(changed, Q) > BOUND**2 * norm2(apart, P)
quotient = math.sqrt(norm2(changed, Q) / norm2(apart, P))
print("|f(x) - f(y)| / |x - y| =", quotient, "> claimed", float(BOUND), "is", broken)
raise SystemExit(0 if broken else 1)
'''

_SMOOTH = {
    "tanh": "math.tanh(a)",
    "sigmoid": "1 / (1 + math.exp(-a))",
    "softplus": "math.log1p(math.exp(-abs({beta} * a))) / {beta} + max(a, 0)",
    "silu": "a / (1 + math.exp(-a))",
    "gelu": "a * (1 + math.erf(a / math.sqrt(2))) / 2",
    "elu": "a if a > 0 else {alpha} * math.expm1(a)",
    "celu": "a if a > 0 else {alpha} * math.expm1(a / {alpha})",
    "softsign": "a / (1 + abs(a))",
    "tanhshrink": "a - math.tanh(a)",
    "sin": "math.sin(a)",
    "cos": "math.cos(a)",
    "atan": "math.atan(a)",
    "asinh": "math.asinh(a)",
    "erf": "math.erf(a)",
}
"""In float64: good for looking at; the proof is the ball arithmetic of the verdict."""


def replay_source(refuted: Refuted) -> str:
    """The text of the file.

    Raises:
        UnsupportedOperation: If a function of the network has no form here.
        BudgetExceeded: If a layer has too many numbers for a text file.

    Example:
        >>> from lipcert.falsify import lipcheck
        >>> verdict = lipcheck(torch.nn.AvgPool2d(1), (1, 1, 1), 0.5)
        >>> exec(replay_source(verdict).replace("raise SystemExit", "status ="))
        |f(x) - f(y)| / |x - y| = 1.0 > claimed 0.5 is True
    """
    graph, claim, pair = refuted.graph, refuted.claim, refuted.witness
    body = "\n".join(f"    {line}" for node in graph for line in _lines(graph, node))
    p, q = (repr(float(end)) if math.isfinite(end) else "math.inf" for end in (claim.norms.p, claim.norms.q))
    smooth = any(isinstance(node, Activation) and node.function in _SMOOTH for node in graph)
    return _HEADER.format(
        claim=claim,
        ratio=pair.ratio,
        but=" where the functions are rational, float64 elsewhere" if smooth else "",
        p=p,
        q=q,
        bound=claim.bound,
        x=_numbers(pair.x.double().numpy()),
        y=_numbers(pair.y.double().numpy()),
        first=graph.input.name,
        last=graph.output.name,
        body=body,
    )


def _lines(graph: Graph, node: Node) -> Iterator[str]:
    target = f"v[{node.name!r}]"
    match node:
        case Input():
            return
        case Affine(source=source, map=linear, bias=bias):
            shift = torch.zeros(1) if bias is None else bias
            constants = np.broadcast_to(shift.double().numpy(), linear.out_shape)
            yield f"{target} = affine({_rows(node.name, linear)}, {_numbers(constants)}, v[{source!r}])"
        case Activation(source=source):
            yield f"{target} = [{scalar(node)} for a, k in zip(v[{source!r}], range({math.prod(node.shape)}))]"
        case Opaque(source=source):
            yield f"{target} = {_block(node, graph[source].shape)}"
        case Add(sources=names):
            yield f"{target} = [sum(a) for a in zip({', '.join(f'v[{name!r}]' for name in names)})]"
        case Concat(sources=names, dim=dim, shape=shape):
            yield f"both = {' + '.join(f'v[{name!r}]' for name in names)}"
            places = np.concatenate(_positions([graph[name].shape for name in names]), axis=dim).reshape(shape)
            yield f"{target} = [both[k] for k in {places.ravel().tolist()}]"


def _positions(shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
    starts = np.cumsum([0, *(math.prod(shape) for shape in shapes)])
    return [
        np.arange(start, start + math.prod(shape)).reshape(shape)
        for start, shape in zip(starts[:-1], shapes, strict=True)
    ]


def _rows(name: str, linear: LinearMap) -> str:
    """The matrix, row by row as pairs of a column and an exact number."""
    size, out = math.prod(linear.in_shape), math.prod(linear.out_shape)
    if size * out > ENTRIES:
        raise BudgetExceeded(f"`{name}` is a matrix of {out} x {size} numbers, more than {ENTRIES} for a text file.")
    divisor = 1
    if isinstance(linear, Separable):
        factors = [None if f is None else Factor(f.numerator, 1) for f in linear.factors]
        divisor = math.prod(f.denominator for f in linear.factors if f is not None)
        linear = Separable(tuple(factors), linear.in_shape)
    units = exactly(np.eye(size).reshape(size, *linear.in_shape))
    columns = applied(linear, units)
    matrix = columns.mid.reshape(size, out).T
    rows = [[(k, _fraction(c, columns.bits, divisor)) for k, c in enumerate(row) if c] for row in matrix.tolist()]
    return "[" + ", ".join("[" + ", ".join(f"({k}, {c})" for k, c in row) + "]" for row in rows) + "]"


def _fraction(value: int, bits: int, divisor: int = 1) -> str:
    exact = Fraction(value) / (Fraction(2) ** bits * divisor)
    return str(exact.numerator) if exact.denominator == 1 else f"F({exact.numerator}, {exact.denominator})"


def _numbers(values: np.ndarray) -> str:
    ball: Ball = exactly(np.ascontiguousarray(values))
    return "[" + ", ".join(_fraction(value, ball.bits) for value in ball.mid.ravel().tolist()) + "]"


def scalar(node: Activation) -> str:
    """A Python expression for the value of an elementwise function at ``a``, the entry number ``k``.

    Raises:
        UnsupportedOperation: If it has no form here.
    """

    def each(value: Any) -> str:
        tensor = torch.as_tensor(value, dtype=torch.float64)
        if tensor.numel() == 1:
            return _numbers(tensor.reshape(1).numpy())[1:-1]
        return f"{_numbers(np.broadcast_to(tensor.numpy(), node.shape))}[k]"

    match node.function:
        case "relu":
            return "max(a, 0)"
        case "abs":
            return "abs(a)"
        case "leaky_relu" | "prelu":
            slope = each(node.parameters.get("negative_slope", node.parameters.get("weight")))
            return f"(a if a > 0 else {slope} * a)"
        case "relu6" | "hardtanh" | "clamp" | "threshold":
            low, high = (end[0] for end in limits(node))
            inside = "a" if np.isinf(low).all() else f"max(a, {each(np.nan_to_num(low, neginf=-1e300))})"
            return inside if np.isinf(high).all() else f"min({inside}, {each(np.nan_to_num(high, posinf=1e300))})"
        case "softshrink":
            edge = each(zero_below(node))
            return f"(max(a - {edge}, 0) + min(a + {edge}, 0))"
        case "hardsigmoid":
            return "(min(max(a + 3, 0), 6) / F(6))"
        case "hardswish":
            return "(a * min(max(a + 3, 0), 6) / F(6))"
        case "contraction":
            return "a"
        case name if name in _SMOOTH:
            values = {key: f"float({each(value)})" for key, value in node.parameters.items()}
            return f"({_SMOOTH[name].replace('(a', '(float(a)').format(**values)})"
    raise UnsupportedOperation(f"`{node.name}` ({node.function}) has no form in a file without torch.", path=node.name)


def _block(node: Opaque, shape: tuple[int, ...]) -> str:
    source, places = f"v[{node.source!r}]", np.arange(math.prod(shape)).reshape(shape)
    if node.function == "max_windows":
        for axis, ranges in enumerate(node.parameters["windows"]):
            if ranges is None:
                continue
            lines = np.moveaxis(places, axis, 0)
            # Every entry becomes the tuple of positions whose maximum it is.
            joined = np.empty((len(ranges), *lines.shape[1:]), dtype=object)
            for row, (start, stop, step) in enumerate(ranges):
                for rest in np.ndindex(*lines.shape[1:]):
                    taken = [lines[(k, *rest)] for k in range(start, stop, step)]
                    joined[(row, *rest)] = tuple(np.ravel(taken).tolist()) if not _tuples(taken) else sum(taken, ())
            places = np.moveaxis(joined, 0, axis)
        windows = [entry if isinstance(entry, tuple) else (int(entry),) for entry in places.ravel().tolist()]
        return f"[max({source}[k] for k in window) for window in {windows}]"
    if node.function == "sort" and node.parameters["arrangement"] == "consecutive":
        axis, group = node.parameters["dim"], node.parameters["group"]
        moved = np.moveaxis(places, axis, -1).reshape(-1, group).tolist()
        order = np.argsort(np.concatenate(moved)).tolist()
        return (
            f"(lambda s: [s[k] for k in {order}])([a for group in {moved} for a in sorted({source}[k] for k in group)])"
        )
    if node.function == "sort":
        first, second = np.split(places, 2, axis=node.parameters["dim"])
        pairs = np.stack([first, second], axis=-1).reshape(-1, 2).tolist()
        high = [list(pair) for pair in pairs]
        order = np.concatenate(
            [np.arange(len(high)).reshape(first.shape), len(high) + np.arange(len(high)).reshape(first.shape)],
            axis=node.parameters["dim"],
        )
        return (
            f"(lambda s: [s[k] for k in {order.ravel().tolist()}])"
            f"([max({source}[i], {source}[j]) for i, j in {high}] + [min({source}[i], {source}[j]) for i, j in {high}])"
        )
    raise UnsupportedOperation(f"`{node.name}` ({node.function}) has no form in a file without torch.", path=node.name)


def _tuples(entries: list[Any]) -> bool:
    return bool(entries) and isinstance(entries[0], tuple)
