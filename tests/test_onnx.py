"""ONNX files: every default against the definition written in numpy, brackets, windows by brute force, refusals."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from typer.testing import CliRunner

from lipcert import check, trace
from lipcert.certifiers import Product
from lipcert.cli import app
from lipcert.errors import InvalidInput, LipcertError, NotFinite, NotLipschitz, UnsupportedOperation
from lipcert.frontends import onnx_replay, trace_onnx
from lipcert.norms import L1, L2, LINF
from tests.cases import settled

onnx = pytest.importorskip("onnx", reason="reads ONNX files; the dev group has it")
helper, numpy_helper, TensorProto = onnx.helper, onnx.numpy_helper, onnx.TensorProto

Array = np.ndarray


def W(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def ints(*entries: int) -> Array:
    return np.array(entries, dtype=np.int64)


def model(
    nodes: list[Any],
    weights: dict[str, Array],
    shape: tuple[Any, ...],
    *,
    opset: int = 22,
    batch: Any = "N",
    rank: int | None = None,
    kind: int = TensorProto.FLOAT,
) -> Any:
    """From x to y; intermediate results have the names that the nodes give them."""
    rank = len(shape) + 1 if rank is None else rank
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", kind, [batch, *shape])],
        [helper.make_tensor_value_info("y", kind, [None] * rank)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def single(op: str, shape: tuple[int, ...], opset: int = 22, rank: int | None = None, **options: Any) -> Any:
    """One node; arrays among the options are constant inputs, in order."""
    weights = {name: value for name, value in options.items() if isinstance(value, np.ndarray)}
    attributes = {name: value for name, value in options.items() if name not in weights}
    node = helper.make_node(op, ["x", *weights], ["y"], name="node", **attributes)
    return model([node], weights, shape, opset=opset, rank=rank)


@dataclass(frozen=True)
class Definition:
    """An operator with its attributes left out or given, and what the ONNX definition says it computes."""

    op: str
    formula: Callable[[Array], Array]
    shape: tuple[int, ...] = (4, 6)
    options: dict[str, Any] = field(default_factory=dict)
    opset: int = 22
    rank: int | None = None


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def softplus(x: Array) -> Array:
    return np.logaddexp(0, x)


erf = np.vectorize(math.erf, otypes=[float])
f32 = np.float32
SCALE, MEAN, SHIFT, VARIANCE = W(4), W(4, seed=1), W(4, seed=2), np.abs(W(4, seed=3))


def normalised(eps: float) -> Callable[[Array], Array]:
    s, b, m, v = (t.astype(float)[:, None] for t in (SCALE, SHIFT, MEAN, VARIANCE))
    return lambda x: s * (x - m) / np.sqrt(v + eps) + b


BATCH_NORM = {"scale": SCALE, "B": SHIFT, "mean": MEAN, "var": VARIANCE}
A, C = W(6, 3), W(3)
DEFINITIONS = [
    Definition("Relu", lambda x: np.maximum(x, 0)),
    Definition("LeakyRelu", lambda x: np.where(x < 0, 0.01 * x, x)),
    Definition("LeakyRelu", lambda x: np.where(x < 0, -1.5 * x, x), options={"alpha": -1.5}),
    Definition("PRelu", lambda x: np.where(x < 0, W(6) * x, x), options={"slope": W(6)}),
    Definition("PRelu", lambda x: np.where(x < 0, W(4, 1) * x, x), options={"slope": W(4, 1)}),
    Definition("Elu", lambda x: np.where(x < 0, np.expm1(np.minimum(x, 0)), x)),
    Definition("Elu", lambda x: np.where(x < 0, 2.5 * np.expm1(np.minimum(x, 0)), x), options={"alpha": 2.5}),
    Definition("Celu", lambda x: np.maximum(0, x) + np.minimum(0, np.expm1(np.minimum(x, 0)))),
    Definition(
        "Celu",
        lambda x: np.maximum(0, x) + np.minimum(0, 0.5 * np.expm1(np.minimum(x, 0) / 0.5)),
        options={"alpha": 0.5},
    ),
    Definition(
        "Selu",
        lambda x: (
            1.05070102214813232421875 * np.where(x > 0, x, 1.67326319217681884765625 * np.expm1(np.minimum(x, 0)))
        ),
    ),
    Definition(
        "Selu", lambda x: 3 * np.where(x > 0, x, 0.5 * np.expm1(np.minimum(x, 0))), options={"gamma": 3.0, "alpha": 0.5}
    ),
    Definition("Sigmoid", sigmoid),
    Definition("Tanh", np.tanh),
    Definition("Softplus", softplus),
    Definition("Softsign", lambda x: x / (1 + np.abs(x))),
    Definition("HardSigmoid", lambda x: np.clip(0.2 * x + 0.5, 0, 1)),
    Definition("HardSigmoid", lambda x: np.clip(2 * x - 1, 0, 1), options={"alpha": 2.0, "beta": -1.0}),
    Definition("HardSwish", lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),
    Definition("Gelu", lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2)))),
    Definition(
        "Gelu",
        lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        options={"approximate": "tanh"},
    ),
    Definition("Mish", lambda x: x * np.tanh(softplus(x))),
    Definition("Erf", erf),
    Definition("Abs", np.abs),
    Definition("Neg", np.negative),
    Definition("Sin", np.sin),
    Definition("Cos", np.cos),
    Definition("Atan", np.arctan),
    Definition("Asinh", np.arcsinh),
    Definition("ThresholdedRelu", lambda x: np.maximum(x, 0), options={"alpha": 0.0}),
    Definition("Shrink", lambda x: np.sign(x) * np.maximum(np.abs(x) - 0.5, 0), options={"bias": 0.5}),
    Definition("Clip", lambda x: x),
    Definition("Clip", lambda x: np.maximum(x, -0.5), options={"low": np.array(-0.5, f32)}),
    Definition("Clip", lambda x: np.clip(x, -1, 2), options={"min": -1.0, "max": 2.0}, opset=10),
    Definition("Add", lambda x: x + W(6), options={"b": W(6)}),
    Definition("Sub", lambda x: x - W(4, 6), options={"b": W(4, 6)}),
    Definition("Mul", lambda x: x * W(1, 4, 1)[0], options={"b": W(1, 4, 1)}),
    Definition("Div", lambda x: x / W(6).astype(float), options={"b": W(6)}),
    Definition("Sum", lambda x: x + W(6), options={"b": W(6)}),
    Definition("Max", lambda x: np.maximum(x, W(6)), options={"b": W(6)}),
    Definition("Min", lambda x: np.minimum(x, W(4, 6)), options={"b": W(4, 6)}),
    Definition("MatMul", lambda x: x @ A, options={"b": A}),
    Definition("MatMul", lambda x: x @ W(6), options={"b": W(6)}, rank=2),
    Definition("Gemm", lambda x: x @ A, (6,), {"b": A}),
    Definition("Gemm", lambda x: x @ A + C, (6,), {"b": A, "c": C}),
    Definition("Gemm", lambda x: x @ A + C, (6,), {"b": A.T.copy(), "c": C, "transB": 1}),
    Definition("Gemm", lambda x: 0.3 * f32(1) * (x @ A) - 2 * C, (6,), {"b": A, "c": C, "alpha": 0.3, "beta": -2.0}),
    Definition("Gemm", lambda x: x @ A + C[0], (6,), {"b": A, "c": C[:1]}),
    Definition("Gemm", lambda x: x @ A, (6,), {"b": A, "c": C, "beta": 0.0}),
    Definition("BatchNormalization", normalised(1e-5), options=dict(BATCH_NORM)),
    Definition("BatchNormalization", normalised(0.25), options={**BATCH_NORM, "epsilon": 0.25}),
    Definition("BatchNormalization", normalised(1e-5), options=dict(BATCH_NORM), opset=13),
    Definition("Softmax", lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True)),
    Definition("Softmax", lambda x: np.exp(x) / np.exp(x).sum(1, keepdims=True), options={"axis": 1}),
    Definition("Softmax", lambda x: np.exp(x) / np.exp(x).sum(1, keepdims=True), (6,), opset=11),
    Definition("Identity", lambda x: x),
    Definition("Dropout", lambda x: x),
    Definition("Dropout", lambda x: x, options={"ratio": 0.3}, opset=10),
    Definition("Flatten", lambda x: x.reshape(len(x), -1), rank=2),
    Definition("Flatten", lambda x: x.reshape(len(x), -1), options={"axis": -2}, rank=2),
    Definition("Reshape", lambda x: x.reshape(-1, 2, 12), options={"sizes": ints(-1, 2, 12)}),
    Definition("Reshape", lambda x: x.reshape(-1, 4, 3, 2), options={"sizes": ints(0, 0, 3, -1)}, rank=4),
    Definition("Transpose", lambda x: x.transpose(0, 2, 1), options={"perm": [0, 2, 1]}),
    Definition("Squeeze", lambda x: x[:, 0], (1, 6), {"axes": ints(1)}, rank=2),
    Definition("Squeeze", lambda x: x[:, 0], (1, 6), {"axes": [-2]}, opset=11, rank=2),
    Definition("Unsqueeze", lambda x: x[:, None, :, :, None], options={"axes": ints(1, -1)}, rank=5),
    Definition("Slice", lambda x: x[:, 1:3], options={"s": ints(1), "e": ints(3), "a": ints(1)}),
    Definition("Slice", lambda x: x[:, :, 4:0:-2], options={"s": ints(-2), "e": ints(0), "a": ints(-1), "t": ints(-2)}),
    Definition(
        "Slice",
        lambda x: x[:, ::-1, :5],
        options={"s": ints(0, 9, 0), "e": ints(2**62, -(2**62), -1), "a": ints(0, 1, 2), "t": ints(1, -1, 1)},
    ),
    Definition("Slice", lambda x: x[:, 1:, :-2], options={"starts": [1, 0], "ends": [99, -2], "axes": [1, 2]}, opset=9),
    Definition("Gather", lambda x: x[:, 2], options={"i": np.array(-2), "axis": 1}, rank=2),
    Definition(
        "Gather", lambda x: x[:, :, [[0, 5], [1, 1]]], options={"i": ints(0, 5, 1, 1).reshape(2, 2), "axis": 2}, rank=4
    ),
    Definition("Pad", lambda x: np.pad(x, [(0, 0), (1, 0), (2, 3)]), options={"p": ints(0, 1, 2, 0, 0, 3)}),
    Definition(
        "Pad",
        lambda x: np.pad(x, [(0, 0), (0, 2), (0, 1)], constant_values=2.5),
        options={"p": ints(0, 0, 0, 0, 2, 1), "v": np.array(2.5, f32)},
    ),
    Definition(
        "Pad",
        lambda x: np.pad(x, [(0, 0), (2, 1), (3, 5)], "reflect"),
        options={"p": ints(0, 2, 3, 0, 1, 5), "mode": "reflect"},
    ),
    Definition(
        "Pad",
        lambda x: np.pad(x, [(0, 0), (4, 1), (3, 5)], "edge"),
        options={"p": ints(0, 4, 3, 0, 1, 5), "mode": "edge"},
    ),
    Definition(
        "Pad",
        lambda x: np.pad(x, [(0, 0), (4, 1), (3, 6)], "wrap"),
        options={"p": ints(0, 4, 3, 0, 1, 6), "mode": "wrap"},
    ),
    Definition("ReduceMean", lambda x: x.mean((1, 2), keepdims=True), options={"axes": ints(1, 2)}),
    Definition("ReduceMean", lambda x: x.mean(2), options={"axes": [-1], "keepdims": 0}, opset=13, rank=2),
    Definition("ReduceSum", lambda x: x.sum(1, keepdims=True), options={"axes": ints(1)}),
    Definition("ReduceMax", lambda x: x.max(1, keepdims=True), options={"axes": ints(1)}),
    Definition("ReduceMin", lambda x: x.min(2, keepdims=True), options={"axes": ints(2)}),
    Definition("ReduceL2", lambda x: np.sqrt((x * x).sum(2, keepdims=True)), options={"axes": ints(2)}),
    Definition("ReduceLogSumExp", lambda x: np.log(np.exp(x).sum(1, keepdims=True)), options={"axes": ints(1)}),
    Definition("GlobalAveragePool", lambda x: x.mean(2, keepdims=True)),
    Definition("GlobalMaxPool", lambda x: x.max(2, keepdims=True)),
    Definition(
        "Resize",
        lambda x: x.repeat(2, 2),
        options={
            "roi": W(0),
            "scales": np.array([1, 1, 2], f32),
            "coordinate_transformation_mode": "asymmetric",
            "nearest_mode": "floor",
        },
    ),
    Definition("Resize", lambda x: x.repeat(3, 2), options={"roi": W(0), "scales": np.array([1, 1, 3], f32)}),
    Definition("Upsample", lambda x: x.repeat(2, 2), options={"scales": np.array([1, 1, 2], f32)}, opset=9),
    Definition(
        "DepthToSpace",
        lambda x: x.reshape(-1, 2, 2, 2, 3, 2).transpose(0, 3, 4, 1, 5, 2).reshape(-1, 2, 6, 4),
        (8, 3, 2),
        {"blocksize": 2},
    ),
    Definition(
        "DepthToSpace",
        lambda x: x.reshape(-1, 2, 2, 2, 3, 2).transpose(0, 1, 4, 2, 5, 3).reshape(-1, 2, 6, 4),
        (8, 3, 2),
        {"blocksize": 2, "mode": "CRD"},
    ),
    Definition(
        "SpaceToDepth",
        lambda x: x.reshape(-1, 2, 2, 2, 3, 2).transpose(0, 3, 5, 1, 2, 4).reshape(-1, 8, 2, 3),
        (2, 4, 6),
        {"blocksize": 2},
    ),
]


def points(*shape: int) -> Array:
    x = np.random.default_rng(5).normal(size=(12, *shape))
    return np.concatenate([x, 10 * x, 0 * x[:1], np.round(x), 0.01 * x])


def require_bracket(network: Any, formula: Callable[[Array], Array], shape: tuple[int, ...]) -> None:
    """The graph is the formula, no pair of inputs beats a bound, and the checker accepts."""
    graph = trace_onnx(network)
    x = points(*shape)
    expected = formula(x)
    got = graph.replay(torch.from_numpy(x)).numpy()
    assert got.shape == expected.shape
    assert np.allclose(got, expected, rtol=1e-7, atol=1e-7)
    close = x + 1e-3 * np.random.default_rng(6).normal(size=x.shape)
    for norms in (L2, L1, LINF):
        try:
            certificate = Product()(graph, norms)
        except LipcertError:
            assert norms is not L2
            continue
        assert check(certificate, graph).bound == certificate.bound
        for y in (close, x[::-1]):
            moved = np.linalg.norm((x - y).reshape(len(x), -1), norms.p, axis=1)
            change = np.linalg.norm((formula(x) - formula(y)).reshape(len(x), -1), norms.q, axis=1)
            assert (change <= certificate.bound * moved * (1 + 1e-9) + 1e-12).all()


@pytest.mark.parametrize("definition", DEFINITIONS, ids=[f"{d.op} {n}" for n, d in enumerate(DEFINITIONS)])
def test_an_operator_is_what_its_definition_says(definition: Definition):
    d = definition
    require_bracket(
        single(d.op, d.shape, d.opset, d.rank or np.ndim(d.formula(points(*d.shape))), **d.options), d.formula, d.shape
    )


@pytest.mark.parametrize(
    ("op", "options", "steepest"),
    [
        ("HardSigmoid", {}, float(f32(0.2))),
        ("LeakyRelu", {"alpha": 3.0}, 3.0),
        ("Elu", {"alpha": 2.5}, 2.5),
        ("Selu", {}, 1.05070102214813232421875 * 1.67326319217681884765625),
        ("Selu", {"alpha": 0.5, "gamma": 3.0}, 3.0),
        ("Gemm", {"b": np.eye(6, dtype=f32), "alpha": 4.0}, 4.0),
    ],
)
def test_slopes_follow_the_attributes(op: str, options: dict[str, Any], steepest: float):
    bound = Product()(trace_onnx(single(op, (6,), **options)), L2).bound
    assert steepest <= bound <= steepest * (1 + 1e-9)


# ------------------------------------------------------------------------------------- windows, by brute force


@st.composite
def windows(draw: st.DrawFn, pooling: bool) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Sample sizes and attributes of a window in one or two dimensions."""
    n = draw(st.integers(1, 2))
    sizes = tuple(draw(st.integers(4, 7)) for _ in range(n))
    options: dict[str, Any] = {"kernel_shape": [draw(st.integers(1, 3)) for _ in range(n)]}
    if draw(st.booleans()):
        options["strides"] = [draw(st.integers(1, 3)) for _ in range(n)]
    if draw(st.booleans()):
        options["dilations"] = [draw(st.integers(1, 2)) for _ in range(n)]
    how = draw(st.sampled_from(["none", "pads", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if how == "pads":
        most = [k - 1 for k in options["kernel_shape"]]
        options["pads"] = [draw(st.integers(0, most[d % n])) for d in range(2 * n)]
    elif how != "none":
        options["auto_pad"] = how
    if pooling and how in ("none", "pads") and draw(st.booleans()):
        options["ceil_mode"] = 1
    return sizes, options


def taps(
    sizes: tuple[int, ...], options: dict[str, Any]
) -> tuple[tuple[int, ...], Callable[..., list[Any]], list[Any]]:
    """Output sizes, where output i reads for tap j (the definition's formulas, term by term), and the padded ends."""
    n, kernel = len(sizes), options["kernel_shape"]
    strides, dilations = options.get("strides", [1] * n), options.get("dilations", [1] * n)
    pads = list(options.get("pads", [0] * 2 * n))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    out = []
    for d in range(n):
        if options.get("auto_pad", "VALID") != "VALID":
            out.append(math.ceil(sizes[d] / strides[d]))
            needed = max(0, (out[d] - 1) * strides[d] + reach[d] - sizes[d])
            low = needed // 2 if options["auto_pad"] == "SAME_UPPER" else math.ceil(needed / 2)
            pads[d], pads[n + d] = low, needed - low
        else:
            exact = (sizes[d] + pads[d] + pads[n + d] - reach[d]) / strides[d] + 1
            out.append(math.ceil(exact) if options.get("ceil_mode") else math.floor(exact))
            if (out[d] - 1) * strides[d] >= sizes[d] + pads[d]:
                out[d] -= 1

    def place(i: tuple[int, ...], j: tuple[int, ...]) -> list[int]:
        return [i[d] * strides[d] + j[d] * dilations[d] - pads[d] for d in range(n)]

    return tuple(out), place, [sizes[d] + pads[n + d] for d in range(n)]


def swept(x: Array, options: dict[str, Any], reduce: Callable[[list[Any]], Array]) -> Array:
    """``reduce`` over ``(tap, entry or None in the padding)`` at every output position; x is (N, C, *sizes)."""
    sizes = x.shape[2:]
    out, place, _ = taps(sizes, options)
    y = None
    for i in itertools.product(*map(range, out)):
        read = []
        for j in itertools.product(*map(range, options["kernel_shape"])):
            at = place(i, j)
            inside = all(0 <= p < size for p, size in zip(at, sizes, strict=True))
            read.append((j, x[(slice(None), slice(None), *at)] if inside else None))
        entry = reduce(read)
        y = np.zeros((*entry.shape, *out)) if y is None else y
        y[(..., *i)] = entry
    assert y is not None
    return y


WINDOWS = settings(max_examples=25, deadline=None)


@WINDOWS
@given(windows(False), st.integers(1, 2))
def test_convolutions_read_what_the_definition_says(window: Any, groups: int):
    sizes, options = window
    weight, bias = W(4, 4 // groups, *options["kernel_shape"]), W(4)

    def formula(x: Array) -> Array:
        def reduce(read: list[Any]) -> Array:
            total = np.zeros((len(x), 4)) + bias
            for j, entry in read:
                if entry is not None:
                    for out in range(4):
                        first = out // (4 // groups) * (4 // groups)
                        total[:, out] += entry[:, first : first + 4 // groups] @ weight[(out, slice(None), *j)]
            return total

        return swept(x, options, reduce)

    out, _, _ = taps(sizes, options)
    if min(out) >= 1:
        require_bracket(single("Conv", (4, *sizes), w=weight, b=bias, group=groups, **options), formula, (4, *sizes))


@WINDOWS
@given(windows(False))
def test_transposed_convolutions_are_transposes(window: Any):
    """``<conv_transpose(u), x> = <u, conv(x)>`` with the definition of Conv swept by hand."""
    sizes, options = window
    options = {key: value for key, value in options.items() if key != "auto_pad"}
    out, _, _ = taps(sizes, options)
    if min(out) < 1:
        return
    weight = W(3, 2, *options["kernel_shape"])
    n, strides = len(sizes), options.get("strides", [1] * len(sizes))
    pads, dilations = options.get("pads", [0] * 2 * n), options.get("dilations", [1] * n)
    reach = [(k - 1) * d + 1 for k, d in zip(options["kernel_shape"], dilations, strict=True)]
    least = [(out[d] - 1) * strides[d] + reach[d] - pads[d] - pads[n + d] for d in range(n)]
    extra = [size - shortest for size, shortest in zip(sizes, least, strict=True)]
    if min(least) < 1 or not all(e < max(s, d) for e, s, d in zip(extra, strides, dilations, strict=True)):
        return
    network = single("ConvTranspose", (3, *out), w=weight, output_padding=extra, **options)
    graph = trace_onnx(network)
    u, x = np.random.default_rng(1).normal(size=(5, 3, *out)), np.random.default_rng(2).normal(size=(5, 2, *sizes))

    def reduce(read: list[Any]) -> Array:
        return sum(
            entry @ weight[(slice(None), slice(None), *j)].T for j, entry in read if entry is not None
        ) + np.zeros((5, 3))

    pulled = graph.replay(torch.from_numpy(u)).numpy()
    assert pulled.shape == x.shape
    assert np.allclose((pulled * x).sum(), (u * swept(x, options, reduce)).sum(), rtol=1e-9)


CERTAIN = [
    {"kernel_shape": [3], "dilations": [2], "pads": [1, 1]},
    {"kernel_shape": [2, 3], "pads": [1, 1, 0, 2]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1},
]
"""Poolings that the reference is known to get right."""


@WINDOWS
@example(((5,), CERTAIN[0]))
@example(((5, 6), CERTAIN[2]))
@given(windows(True))
def test_max_pooling_ignores_padding(window: Any):
    sizes, options = window

    def formula(x: Array) -> Array:
        return swept(x, options, lambda read: np.max([entry for _, entry in read if entry is not None], axis=0))

    if min(taps(sizes, options)[0]) < 1:
        return
    try:
        formula(np.zeros((1, 1, *sizes)))
    except ValueError:  # a window in the padding alone
        with pytest.raises(UnsupportedOperation, match=r"padding"):
            trace_onnx(single("MaxPool", (2, *sizes), **options))
        return
    require_pooling(single("MaxPool", (2, *sizes), **options), formula, (2, *sizes), options)


@WINDOWS
@example(((4, 5), CERTAIN[1]), None)
@example(((4, 5), CERTAIN[1]), 1)
@example(((5, 6), CERTAIN[2]), None)
@given(windows(True), st.sampled_from([None, 0, 1]))
def test_average_pooling_divides_by_what_the_definition_counts(window: Any, counted: int | None):
    sizes, options = window
    out, place, ends = taps(sizes, options)
    if min(out) < 1:
        return
    last = place(tuple(size - 1 for size in out), tuple(k - 1 for k in options["kernel_shape"]))
    beyond = any(tap >= end for tap, end in zip(last, ends, strict=True))
    given_options = options if counted is None else {**options, "count_include_pad": counted}
    network = single("AveragePool", (2, *sizes), **given_options)

    def reduce(read: list[Any]) -> Array:
        inside = [entry for _, entry in read if entry is not None]
        return np.sum(inside, axis=0) / (len(read) if counted else len(inside))

    if counted and beyond:
        with pytest.raises(UnsupportedOperation, match="beyond the padding"):
            trace_onnx(network)
        return
    require_pooling(network, lambda x: swept(x, options, reduce), (2, *sizes), options)


def require_pooling(
    network: Any, formula: Callable[[Array], Array], shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    """As `require_bracket`; poolings that the reference gets wrong are refused."""
    try:
        trace_onnx(network)
    except UnsupportedOperation as reason:
        refusal = str(reason)
    else:
        require_bracket(network, formula, shape)
        return
    assert "reference evaluator" in refusal
    assert options not in CERTAIN


@pytest.mark.parametrize("side", ["SAME_UPPER", "SAME_LOWER"])
def test_automatic_pads_are_larger_on_the_named_side(side: str):
    options = {"kernel_shape": [2, 2], "auto_pad": side}
    image = np.arange(9.0).reshape(1, 1, 3, 3)
    best = trace_onnx(single("MaxPool", (1, 3, 3), **options)).replay(torch.from_numpy(image))
    assert best.flatten().tolist() == ([4, 5, 5, 7, 8, 8, 7, 8, 8] if side == "SAME_UPPER" else list(range(9)))
    mean = trace_onnx(single("AveragePool", (1, 3, 3), **options)).replay(torch.from_numpy(image))
    assert mean[0, 0, -1, -1] == (8 if side == "SAME_UPPER" else 6)


def test_strides_of_poolings_are_one_by_default():
    """torch's default is the kernel."""
    assert trace_onnx(single("MaxPool", (1, 5), kernel_shape=[2])).output.shape == (1, 4)
    assert trace_onnx(single("AveragePool", (1, 5), kernel_shape=[2])).output.shape == (1, 4)


# ------------------------------------------------------------------------------------------------- whole networks


def convolutional() -> tuple[nn.Module, Any]:
    """One network in torch and in ONNX, written as torch's exporter writes it, with a flatten by shapes."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = settled(
            nn.Sequential(
                *(nn.Conv2d(2, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.LeakyReLU(0.25), nn.MaxPool2d(2), nn.SiLU()),
                *(nn.Flatten(), nn.Linear(16, 5), nn.Mish(), nn.Linear(5, 3)),
            )
        ).eval()
    weights = {name.replace(".", "_"): tensor.numpy() for name, tensor in net.state_dict().items() if tensor.ndim}
    weights |= {"zero": ints(0), "rest": ints(-1)}
    N = helper.make_node
    statistics = ["1_weight", "1_bias", "1_running_mean", "1_running_var"]
    nodes = [
        N("Conv", ["x", "0_weight", "0_bias"], ["a"], name="/0/Conv", strides=[2, 2], pads=[1, 1, 1, 1]),
        N("BatchNormalization", ["a", *statistics], ["b"], name="/1/BatchNormalization"),
        N("LeakyRelu", ["b"], ["c"], alpha=0.25),
        N("MaxPool", ["c"], ["d"], kernel_shape=[2, 2], strides=[2, 2]),
        N("Sigmoid", ["d"], ["e1"]),
        N("Mul", ["d", "e1"], ["e"]),
        N("Shape", ["e"], ["s"]),
        N("Slice", ["s", "zero", "one"], ["n"]),
        N("Constant", [], ["one"], value_ints=[1]),
        N("Concat", ["n", "rest"], ["shape"], axis=0),
        N("Reshape", ["e", "shape"], ["f"]),
        N("Gemm", ["f", "6_weight", "6_bias"], ["g"], transB=1),
        N("Softplus", ["g"], ["h1"]),
        N("Tanh", ["h1"], ["h2"]),
        N("Mul", ["h2", "g"], ["h"]),
        N("Transpose", ["8_weight"], ["wt"]),
        N("MatMul", ["h", "wt"], ["i"]),
        N("Add", ["8_bias", "i"], ["y"]),
    ]
    nodes.insert(7, nodes.pop(8))
    return net, model(nodes, weights, (2, 7, 8), rank=2)


@pytest.mark.parametrize("norms", [L2, L1, LINF], ids=str)
def test_a_network_has_the_same_bound_as_its_module(norms: Any):
    net, exported = convolutional()
    graph = trace_onnx(exported)
    bound = Product()(trace(net, (2, 7, 8)), norms).bound
    certificate = Product()(graph, norms)
    assert certificate.bound == pytest.approx(bound, rel=1e-9)
    assert check(certificate, graph).bound == certificate.bound
    assert [node.name for node in graph][1] == "/0/Conv"


def test_a_residual_block_and_branches_add_up():
    N = helper.make_node
    nodes = [N("Gemm", ["x", "w"], ["a"]), N("Relu", ["a"], ["b"]), N("Add", ["x", "b"], ["c"])]
    nodes += [N("Split", ["c"], ["d", "e"], axis=1, num_outputs=2), N("Concat", ["e", "d", "d"], ["y"], axis=-1)]
    network = model(nodes, {"w": W(4, 4)}, (4,))

    def formula(x: Array) -> Array:
        c = x + np.maximum(x @ W(4, 4), 0)
        return np.concatenate([c[:, 2:], c[:, :2], c[:, :2]], 1)

    require_bracket(network, formula, (4,))


@pytest.mark.parametrize("batch", [1, 3])
def test_a_fixed_batch_stands_for_every_batch(batch: int):
    network = model(
        [helper.make_node("Reshape", ["x", "s"], ["y"])], {"s": ints(batch, 24)}, (4, 6), batch=batch, rank=2
    )
    assert trace_onnx(network).output.shape == (24,)


def test_files_weights_beside_them_and_every_storage_format(tmp_path: Path):
    weight = (np.arange(16).reshape(4, 4) / 8).astype(f32)
    bounds = []
    for kind in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE):
        stored = helper.make_tensor("w", kind, (4, 4), weight.reshape(-1).tolist())
        if kind == TensorProto.DOUBLE:
            stored = numpy_helper.from_array(weight.astype(np.float64), "w")
        network = model([helper.make_node("MatMul", ["x", "w"], ["y"])], {}, (4,), kind=kind)
        network.graph.initializer.append(stored)
        bounds.append(Product()(trace_onnx(network), LINF).bound)
    assert bounds == [weight.sum(0).max()] * 4
    path = tmp_path / "net.onnx"
    onnx.save(network, str(path), save_as_external_data=True, location="net.bin", size_threshold=0)
    assert (tmp_path / "net.bin").stat().st_size >= 128
    assert Product()(trace_onnx(path), LINF).bound == bounds[0]
    (tmp_path / "net.bin").unlink()
    with pytest.raises(InvalidInput, match=r"net\.onnx"):
        trace_onnx(path)


def test_free_sizes_are_fixed_by_the_caller():
    network = single("Relu", (2, "H"))  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match=r"\(2, None\)"):
        trace_onnx(network)
    assert trace_onnx(network, (2, 5)).output.shape == (2, 5)
    with pytest.raises(InvalidInput, match=r"\(3, 5\)"):
        trace_onnx(network, (3, 5))


# ------------------------------------------------------------------------------------------------------- refusals

N = helper.make_node


def by_the_batch(*nodes: Any) -> Any:
    """A network that reads how many samples there are, as n."""
    first = [N("Shape", ["x"], ["s"]), N("Gather", ["s", "zero"], ["n"])]
    return model([*first, *nodes], {"zero": ints(0), "two": ints(2), "six": ints(6)}, (4, 6))


BATCH_SIZES = {
    "a factor of the batch size": [N("Cast", ["n"], ["f"], to=1), N("Mul", ["x", "f"], ["y"])],
    "twice the batch size": [
        N("Mul", ["n", "two"], ["m"]),
        N("Concat", ["m", "two", "six"], ["t"], axis=0),
        N("Reshape", ["x", "t"], ["y"]),
    ],
    "as many entries as samples": [N("Slice", ["x", "zero", "n", "two"], ["y"])],
    "a constant of as many entries": [N("ConstantOfShape", ["n"], ["c"]), N("Add", ["x", "c"], ["y"])],
}


@pytest.mark.parametrize("name", BATCH_SIZES)
def test_what_depends_on_the_batch_size_is_refused_without_a_replay(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(onnx_replay, "LIMIT", -1)
    with pytest.raises(UnsupportedOperation, match="how many samples there are"):
        trace_onnx(by_the_batch(*BATCH_SIZES[name]))


REFUSED: dict[str, tuple[Any, type[LipcertError], str]] = {
    "unknown operator": (single("LpNormalization", (4,)), UnsupportedOperation, r"`LpNormalization`.*`node`"),
    "an older definition": (single("Relu", (4,), opset=5), UnsupportedOperation, r"`Relu` \(version 1\)"),
    "an exponential": (single("Exp", (4,)), UnsupportedOperation, "`Exp`"),
    "a gate": (
        model([N("Tanh", ["x"], ["a"]), N("Mul", ["x", "a"], ["y"], name="gate")], {}, (4,)),
        NotLipschitz,
        "`gate` multiplies two tensors",
    ),
    "division by the input": (
        model([N("Div", ["c", "x"], ["y"])], {"c": W(4)}, (4,)),
        NotLipschitz,
        "divides by a tensor",
    ),
    "flatten across samples": (single("Flatten", (4, 6), axis=2, rank=2), UnsupportedOperation, "samples mix"),
    "reshape across samples": (single("Reshape", (4, 6), s=ints(-1, 6), rank=2), UnsupportedOperation, "batch"),
    "reshape to one row": (single("Reshape", (4, 6), s=ints(1, -1), rank=2), UnsupportedOperation, "batch"),
    "transpose of the batch": (single("Transpose", (4,)), UnsupportedOperation, "moves the batch"),
    "softmax over the batch": (single("Softmax", (4,), axis=0), UnsupportedOperation, "axis 0, the batch"),
    "old softmax over several axes": (single("Softmax", (4, 6), 11), UnsupportedOperation, "before version 13"),
    "gather of samples": (single("Gather", (4,), i=ints(0)), UnsupportedOperation, "axis 0, the batch"),
    "slice of samples": (single("Slice", (4,), s=ints(0), e=ints(1)), UnsupportedOperation, "slices the batch"),
    "padded batch": (single("Pad", (4,), p=ints(1, 0, 0, 0)), UnsupportedOperation, "pads the batch"),
    "concat of samples": (single("Concat", (4,), axis=0), UnsupportedOperation, "batch"),
    "squeeze of everything": (single("Squeeze", (1, 4), rank=2), UnsupportedOperation, "without axes"),
    "reduction of everything": (single("ReduceSum", (4,)), UnsupportedOperation, "all axes"),
    "reduction of the batch": (single("ReduceMean", (4,), a=ints(0)), UnsupportedOperation, "axis 0"),
    "gemm of the transpose": (single("Gemm", (4,), b=W(4, 4), transA=1), UnsupportedOperation, "samples would mix"),
    "a matrix from the left": (
        model([N("MatMul", ["w", "x"], ["y"])], {"w": W(3, 3)}, (4,), batch=3),
        UnsupportedOperation,
        "batch",
    ),
    "a bias per sample": (
        model([N("Add", ["x", "b"], ["y"])], {"b": W(3, 4)}, (4,), batch=3),
        UnsupportedOperation,
        "batch",
    ),
    "training batch norm": (
        model(
            [N("BatchNormalization", ["x", *"sbmv"], ["y", "m1", "v1"], training_mode=1)],
            {k: W(4) for k in "sbmv"},
            (4,),
        ),
        UnsupportedOperation,
        "statistics of the batch",
    ),
    "training dropout": (
        model([N("Dropout", ["x", "r", "t"], ["y"])], {"r": np.array(0.5, f32), "t": np.array(True)}, (4,)),
        UnsupportedOperation,
        "at random",
    ),
    "a dropout mask": (
        model([N("Dropout", ["x"], ["a", "m"]), N("Where", ["m", "x", "a"], ["y"])], {}, (4,)),
        UnsupportedOperation,
        "second result",
    ),
    "a negative variance": (
        single("BatchNormalization", (4,), **{**BATCH_NORM, "var": -VARIANCE}),
        NotFinite,
        "variance below zero",
    ),
    "a cast": (single("Cast", (4,), to=TensorProto.FLOAT16), UnsupportedOperation, "casts"),
    "computed weights": (
        model([N("Mul", ["w", "w"], ["v"], name="square"), N("MatMul", ["x", "v"], ["y"])], {"w": W(4, 4)}, (4,)),
        UnsupportedOperation,
        r"`square` \(Mul\) computes with constants",
    ),
    "a rounding cast of weights": (
        model(
            [
                N("Cast", ["w"], ["v"], to=TensorProto.FLOAT16),
                N("Cast", ["v"], ["u"], to=1),
                N("MatMul", ["x", "u"], ["y"]),
            ],
            {"w": W(4, 4)},
            (4,),
        ),
        UnsupportedOperation,
        r"\(Cast\) computes with constants",
    ),
    "a jump": (single("ThresholdedRelu", (4,)), NotLipschitz, "jumps"),
    "a shrink that jumps": (single("Shrink", (4,)), NotLipschitz, "jumps"),
    "an exponential CELU": (single("Celu", (4,), alpha=-1.0), NotLipschitz, "CELU"),
    "an embedding": (
        model(
            [N("Cast", ["x"], ["i"], to=TensorProto.INT64), N("Gather", ["w", "i"], ["y"])],
            {"w": W(4, 4)},
            (2,),
            rank=3,
        ),
        UnsupportedOperation,
        "casts",
    ),
    "weights that are not finite": (single("MatMul", (4,), w=np.full((4, 4), np.nan, f32)), NotFinite, "16 of 16"),
    "weights that are infinite": (single("Add", (4,), w=np.array([1, np.inf, 1, 1], f32)), NotFinite, "1 of 4"),
    "odd factors": (
        single("Resize", (4, 6), roi=W(0), scales=np.array([1, 1, 1.5], f32)),
        UnsupportedOperation,
        "whole factors",
    ),
    "rounding another way": (
        single("Resize", (4, 6), roi=W(0), scales=np.array([1, 1, 2], f32), nearest_mode="ceil"),
        UnsupportedOperation,
        "interpolates by nearest, half_pixel, ceil",
    ),
    "derived pads": (
        single("ConvTranspose", (2, 4, 4), w=W(2, 2, 3, 3), auto_pad="SAME_UPPER"),
        UnsupportedOperation,
        "read differently",
    ),
    "two inputs": (
        helper.make_model(
            helper.make_graph(
                [N("Add", ["x", "z"], ["y"])],
                "g",
                [helper.make_tensor_value_info(name, 1, ["N", 4]) for name in "xz"],
                [helper.make_tensor_value_info("y", 1, ["N", 4])],
            ),
            opset_imports=[helper.make_opsetid("", 22)],
            ir_version=10,
        ),
        UnsupportedOperation,
        "`x`, `z`",
    ),
    "a constant output": (
        model([N("Constant", [], ["y"], value_floats=[1.0, 2.0])], {}, (4,), rank=1),
        UnsupportedOperation,
        "returns a constant",
    ),
    "integers": (single("Relu", (4,)), UnsupportedOperation, "real numbers"),
    "an invalid model": (model([N("Relu", ["nowhere"], ["y"])], {}, (4,)), InvalidInput, "not a valid ONNX model"),
    "an unknown attribute": (single("Relu", (4,), slope=2.0), InvalidInput, "not a valid ONNX model"),
}
REFUSED["integers"][0].graph.input[0].type.tensor_type.elem_type = TensorProto.INT32
REFUSED["a cast"][0].graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
REFUSED["integers"][0].graph.output[0].type.tensor_type.elem_type = TensorProto.INT32


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_refused_by_name(name: str):
    network, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        trace_onnx(network)


def test_a_foreign_operator_is_refused():
    network = model([N("Gelu", ["x"], ["y"], name="node", domain="com.microsoft")], {}, (4,))
    network.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(UnsupportedOperation, match=r"com\.microsoft\.Gelu"):
        trace_onnx(network)


def test_functions_of_the_model_are_refused():
    network = single("Relu", (4,))
    body = [N("Neg", ["a"], ["b"])]
    network.functions.append(helper.make_function("mine", "Relu2", ["a"], ["b"], body, [helper.make_opsetid("", 22)]))
    with pytest.raises(UnsupportedOperation, match="functions of its own"):
        trace_onnx(network)


def test_no_such_file(tmp_path: Path):
    with pytest.raises(InvalidInput, match="no file"):
        trace_onnx(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("nothing")
    with pytest.raises(InvalidInput, match="not a valid ONNX model"):
        trace_onnx(tmp_path / "text.onnx")


def test_the_reference_finds_a_rule_that_lies(monkeypatch: pytest.MonkeyPatch):
    from lipcert.frontends import onnx_operation

    handlers = dict(onnx_operation._HANDLERS)
    handlers["Tanh"] = (handlers["Tanh"][0], handlers["Erf"][1])
    monkeypatch.setattr(onnx_operation, "_HANDLERS", handlers)
    with pytest.raises(UnsupportedOperation, match="does not reproduce"):
        trace_onnx(single("Tanh", (4,)))
    monkeypatch.setattr(onnx_replay, "LIMIT", 0)  # a model that is too large is not replayed
    network = model([N("MatMul", ["x", "w"], ["a"]), N("Tanh", ["a"], ["y"])], {"w": W(4, 4)}, (4,))
    assert trace_onnx(network).output.shape == (4,)


def test_an_attribute_that_a_rule_does_not_read_is_refused(monkeypatch: pytest.MonkeyPatch):
    from lipcert.frontends import onnx_operation

    handlers = dict(onnx_operation._HANDLERS)
    handlers["LeakyRelu"] = (frozenset({16}), handlers["Relu"][1])
    monkeypatch.setattr(onnx_operation, "_HANDLERS", handlers)
    with pytest.raises(UnsupportedOperation, match="attribute `alpha`, which its rule does not know"):
        trace_onnx(single("LeakyRelu", (4,), alpha=0.5))


def test_the_command_line_takes_a_file(tmp_path: Path):
    path = str(tmp_path / "net.onnx")
    onnx.save(single("LeakyRelu", (4,), alpha=-3.0), path)
    result = CliRunner().invoke(app, ["certify", path, "--method", "product", "--json"])
    assert (result.exit_code, json.loads(result.stdout)["bound"]) == (0, 3.0)
    onnx.save(single("Exp", (4,)), path)
    assert CliRunner().invoke(app, ["certify", path]).exit_code == 3
    onnx.save(single("Relu", ("n",)), path)  # type: ignore[arg-type]
    assert CliRunner().invoke(app, ["certify", path]).exit_code == 2
    assert CliRunner().invoke(app, ["certify", path, "--input-shape", "4"]).exit_code == 0
