"""What rules record, one rule at a time: torch's shapes and values, and refusals on both sides of every boundary."""

from __future__ import annotations

import itertools
import math
import operator
from fractions import Fraction
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lipcert.domain import Box
from lipcert.errors import InvalidInput, NotFinite, NotLipschitz, UnsupportedOperation
from lipcert.graph import Activation, Affine, Opaque
from lipcert.linear import Reshape
from lipcert.lowering import BATCH
from lipcert.nn import FullSort, GroupSort, MaxMin
from lipcert.rules.convolution import convolve, transpose_convolve
from lipcert.rules.pooling import adaptive_average_pool, adaptive_max_pool, factor
from lipcert.rules.resampling import _row
from tests.laws.rules.lowered import (
    BATCHED,
    Program,
    changed,
    filled,
    integers,
    once,
    recorded,
    refuse,
    require_same,
    ruled,
    run,
    value,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning"),
]

W = integers
Case = tuple[Program, tuple[int, ...]]


def case(target: Any, shape: tuple[int, ...], *arguments: Any, **options: Any) -> Case:
    return once(target, *arguments, **options), shape


ARITHMETIC = [
    *(case(torch.add, (4, 6), constant) for constant in (3, -2.5, True, W(6), W(4, 1), W(4, 6), W(1, 4, 6), W(1, 6))),
    *(case(torch.mul, (4, 6), constant) for constant in (0, -2.5, W(6).long(), W(4, 1), W(1, 4, 6), W(6) > 0)),
    *(case(torch.add, (4, 6), W(4, 6), alpha=alpha) for alpha in (0, 1, 2, -3)),
    *(case(torch.sub, (4, 6), W(6), alpha=alpha) for alpha in (0, 1, 2)),
    *(case(torch.rsub, (4, 6), W(6), alpha=alpha) for alpha in (1, 3)),
    *((lambda do, x, a=alpha: do(torch.add, x, do("relu", x), alpha=a), (4, 6)) for alpha in (0, 1, 2, -3)),
    *((lambda do, x, a=alpha: do(torch.rsub, x, do("relu", x), alpha=a), (4, 6)) for alpha in (1, 2)),
    (lambda do, x: do(torch.add, W(4, 6), x, alpha=2), (4, 6)),
    (lambda do, x: do(torch.sub, W(6), x), (4, 6)),
    (lambda do, x: do(torch.mul, W(6), x), (4, 6)),
    (lambda do, x: do(torch.add, do("sum", x, 2, True), do("sum", x, 1, True)), (4, 6)),
    (lambda do, x: do(torch.add, do("sum", x, 2, True), W(4, 5)), (4, 6)),
    case("neg", (4,)),
    case("positive", (4,)),
    *(case(torch.div, (4, 6), divisor) for divisor in (1, 4, -8.0, 3, 2.0**-999, W(6) + 0.5)),
    case(torch.add, (2,), torch.tensor([2**53, -(2**53)])),
]
MATRICES = [
    case(F.linear, (4, 6), W(5, 6), W(5)),
    case(F.linear, (6,), W(5, 6)),
    case(filled(nn.Linear(6, 5)), (2, 4, 6)),
    case("matmul", (4, 6), W(6, 5)),
    case("matmul", (4, 6), W(6)),
    (lambda do, x: do(torch.matmul, W(5, 4), x), (4, 6)),
    (lambda do, x: do(torch.matmul, W(5, 4), x), (2, 4, 6)),
    *((lambda do, x, b=bias: do(torch.addmm, b, x, W(6, 5)), (6,)) for bias in (W(5), W(1, 5))),
]
PAIRS = (W(2, 4, 3, 2), None, 1, ((0, 2), (3, 1)), 1, 1, "zeros")
CROP = (W(4, 2, 3, 2), None, 1, ((1, 0), (2, 1)), 0, 1, 1)
"""Other paddings before than after, as exported networks have them."""
TRANSPOSED = partial(F.conv_transpose2d, weight=W(4, 2, 3, 2))
CONVOLUTIONS = [
    *(
        case(filled(nn.Conv2d(4, 6, (3, 2), (2, 3), (2, 1), (1, 2), 2, padding_mode=mode)), (4, 6, 5))
        for mode in ("zeros", "circular", "reflect", "replicate")
    ),
    case(filled(nn.Conv1d(4, 2, 4, padding="same", dilation=3, bias=False)), (4, 9)),
    case(filled(nn.Conv1d(4, 2, 3, padding="same", dilation=2)), (4, 9)),
    *(case(filled(nn.Conv1d(4, 2, 3, padding="valid", stride=stride)), (4, 9)) for stride in (1, 2)),
    (lambda do, x: convolve(x, *PAIRS) if do is ruled else F.conv2d(F.pad(x, (3, 1, 0, 2)), W(2, 4, 3, 2)), (4, 6, 5)),
    (lambda do, x: transpose_convolve(x, *CROP) if do is ruled else TRANSPOSED(x)[:, :, 1:, 2:-1], (4, 5, 6)),
    case(filled(nn.Conv3d(2, 4, (1, 2, 3), (1, 2, 1), (0, 1, 2))), (2, 2, 3, 4)),
    case(F.conv2d, (4, 6, 5), W(6, 2, 3, 2), W(6), (2, 1), (0, 3), (2, 1), 2),
    case(F.conv1d, (4, 3), W(2, 4, 3)),
    *(case(filled(nn.Conv1d(4, 2, 3, padding=3, padding_mode=mode)), (4, 3)) for mode in ("circular", "zeros")),
    case(filled(nn.Conv1d(4, 2, 3, padding=2, padding_mode="reflect")), (4, 3)),
    case(filled(nn.ConvTranspose2d(4, 6, (3, 2), (2, 3), (2, 1), (1, 2), 2, dilation=(2, 1))), (4, 6, 5)),
    case(filled(nn.ConvTranspose1d(4, 6, 3, 2, bias=False)), (4, 5)),
    case(filled(nn.ConvTranspose3d(2, 4, (1, 2, 3), (1, 2, 1), (0, 1, 1))), (2, 2, 3, 4)),
    case(F.conv_transpose1d, (4, 5), W(4, 3, 3), W(6), 3, 1, 2, 2, 2),
    case(F.conv_transpose1d, (4, 3), W(4, 2, 1), None, 1, 1),
]
ADAPTIVE = (adaptive_average_pool, adaptive_max_pool)
POOLING = [
    *(case(nn.AvgPool1d(3, s, 1, c, n), (2, 8)) for s in (2, 3) for c in (False, True) for n in (False, True)),
    *(case(nn.AvgPool2d((3, 2), s, (1, 0), True, c), (2, 8, 5)) for s in (None, (2, 3), 4) for c in (False, True)),
    case(nn.AvgPool2d((3, 2), 2, 1, divisor_override=5), (2, 8, 5)),
    case(nn.AvgPool3d((2, 1, 3), (1, 2, 2), (1, 0, 1), divisor_override=3), (2, 4, 3, 5)),
    case(nn.AvgPool3d((2, 1, 3)), (4, 3, 5)),
    *(case(F.avg_pool1d, shape, 3, 2) for shape in ((8,), (2, 8))),
    *(case(F.avg_pool2d, (2, 8, 5), (3, 2), stride) for stride in ((2, 1), [], None)),
    case(F.avg_pool3d, (2, 4, 3, 5), 2),
    case(nn.AdaptiveAvgPool1d(3), (2, 8)),
    case(nn.AdaptiveAvgPool2d((3, None)), (2, 8, 5)),
    case(nn.AdaptiveAvgPool3d((3, 2, 4)), (2, 4, 3, 5)),
    *(case(f, (2, 8), n) for f in (F.adaptive_avg_pool1d, F.adaptive_max_pool1d) for n in (1, 3, 5)),
    *(case(f, (2, 8, 5), (3, None)) for f in (F.adaptive_avg_pool2d, F.adaptive_max_pool2d)),
    *(case(f, (2, 4, 3, 5), (3, 2, 4)) for f in (F.adaptive_avg_pool3d, F.adaptive_max_pool3d)),
    *((lambda do, x, f=f: f(x, 2, None) if do is ruled else x, (8, 5)) for f in ADAPTIVE),
    case(nn.AdaptiveMaxPool1d(3), (2, 8)),
    case(nn.AdaptiveMaxPool2d((3, 4)), (2, 8, 5)),
    case(nn.AdaptiveMaxPool3d(2), (2, 4, 3, 5)),
    case(nn.MaxPool1d(3, 2), (2, 8)),
    case(nn.MaxPool2d((3, 4), (2, 1), (1, 2), (1, 2), ceil_mode=True), (2, 8, 9)),
    case(nn.MaxPool3d((2, 1, 3)), (2, 4, 3, 5)),
    *(case(F.max_pool2d, (2, 8, 5), (3, 2), stride) for stride in ((2, 1), [], None)),
    case(F.max_pool3d, (4, 3, 5), 2),
    *(case(name, (4, 6), 1, keep) for name in ("mean", "sum", "amax", "amin") for keep in (False, True)),
    *(case(name, (2, 4, 6), dims) for name in ("mean", "sum", "amax", "amin") for dims in (-1, (1, -1))),
    *(case(name, (4, 6), (2,), dtype=torch.float64) for name in ("mean", "sum")),
    (lambda do, x: do(torch.max, x, 2).values, (4, 6)),
    (lambda do, x: do(torch.min, x, 1, True).values, (4, 6)),
    *((lambda do, x, f=f: do(f, x, do("flip", x, 2)), (4, 6)) for f in (torch.maximum, torch.minimum, torch.max)),
    (lambda do, x: do(torch.min, do("sum", x, 1, True), do("amax", x, 2, True)), (4, 6)),
]
RESAMPLING = [
    *(case(F.pad, (4, 6), (2, 1), mode, None) for mode in ("reflect", "replicate", "circular", "constant")),
    *(case(F.pad, (4, 6), (2, 1, 0, 3), "constant", fill) for fill in (None, 0.0, -2.5)),
    case(nn.ConstantPad2d((1, 2, 3, 0), 2.5), (4, 5, 6)),
    case(nn.ZeroPad1d((1, 2)), (4, 6)),
    case(nn.ReflectionPad2d((1, 2, 3, 0)), (4, 5, 6)),
    *(case(F.interpolate, (4, 5), n, mode=mode) for n in (1, 3, 5, 8) for mode in ("nearest", "linear", "area")),
    *(case(F.interpolate, (4, 5), n, mode="linear", align_corners=True) for n in (1, 2, 8)),
    *(case(F.interpolate, (4, 5), None, s, mode="linear") for s in (2, 1.5, 0.5, (3,), 1.03125, 1 + 2**-10)),
    case(F.interpolate, (4, 5), None, 1.5, mode="linear", recompute_scale_factor=True),
    case(F.interpolate, (4, 5, 6), None, (1.5, 2), mode="bilinear"),
    case(F.interpolate, (4, 5, 6), (7, 4), mode="bilinear", align_corners=True),
    case(F.interpolate, (2, 3, 2, 4), (4, 2, 5), mode="trilinear"),
    case(F.interpolate, (4, 5, 6), (7, 4), mode="nearest-exact"),
    case(nn.Upsample(scale_factor=2), (4, 5)),
]
MASK = W(4, 6) > 0
WHOLE = [
    *((slice(start, stop, step), 0) for start in (None, 0) for stop in (None, BATCH) for step in (None, 1)),
    *(slice(None), (slice(None), None, 2, slice(1, 3)), (..., 0, 0), (..., None, 0), (..., MASK), (..., 1)),
    *((..., torch.tensor([[0, 2], [3, 1]]), 0), (slice(None), torch.tensor([2, 0])), (slice(None), MASK)),
]
"""Indices that keep the batch."""
CUT = [
    *(0, (0, ...), slice(1, None), slice(0, 4), slice(None, None, 2), (None, 0), torch.tensor([0, 1])),
    *((..., 0, 0, 0), (..., MASK, 0), (slice(1), 0), (slice(1, BATCH), 0)),
]
"""Indices that do not, or that may not for another batch."""
MOVES = [
    *(case("view", (4, 6), *sizes) for sizes in ((-1, 24), ((-1, 2, 12),), (-1, 4, 6))),
    *((lambda do, x, s=s: do("view", x, *s) if do is ruled else x.flatten(1), (4, 6)) for s in ((BATCH, -1),)),
    (lambda do, x: do(torch.reshape, x, shape=(BATCH if do is ruled else len(x), -1, 3)), (4, 6)),
    (lambda do, x: do(torch.reshape, x, shape=(BATCH if do is ruled else len(x), 2, -1, 3)), (4, 6)),
    case("view", (), -1),
    case("view", (1,), -1),
    *(case(name, (4, 6), 1) for name in ("flatten", "unsqueeze", "flip")),
    *(case("flip", shape, 1) for shape in ((4,), (2, 4, 6))),
    case("permute", (4, 6), 0, 2, 1),
    case("narrow", (4, 6), 1, 0, 2),
    case("tril", (4, 6)),
    case(".mT", (4, 6)),
    (lambda do, x: do("chunk", x, 2, 2)[1], (4, 6)),
    case("expand", (1, 6), -1, 5, 6),
    case("expand", (1, 6), (-1, 5, -1)),
    (lambda do, x: do("expand", x, BATCH if do is ruled else len(x), 5, 6), (1, 6)),
    case("squeeze", (1, 6), 1),
    case("squeeze", (1, 6), dim=1),
    case(nn.PixelShuffle(2), (4, 2, 3)),
    *(case(operator.getitem, (4, 6), index) for index in WHOLE),
    (lambda do, x: do(torch.cat, [x, do("narrow", x, 2, 1, 2), x], 2), (4, 6)),
    (lambda do, x: do(torch.cat, [x, do("narrow", x, 1, 1, 2)], -2), (4, 6)),
    (lambda do, x: do(torch.cat, [x, do("narrow", x, 2, 1, 2)], -2), (2, 4, 6)),
    *((lambda do, x, d=d: do(torch.stack, [x, do("neg", x)], d), (4, 6)) for d in (1, 2, 3, -1, -3)),
    *(case("to", (4,), *a, **o) for a, o in (((torch.float64,), {}), ((), {"dtype": torch.float64}), (("cpu",), {}))),
    *(case(F.dropout, (4,), p, training) for p, training in ((0.5, False), (0.0, True))),
]


ALL = {"arithmetic": ARITHMETIC, "matrices": MATRICES, "convolutions": CONVOLUTIONS, "pooling": POOLING}
ALL |= {"resampling": RESAMPLING, "moves": MOVES}


@pytest.mark.parametrize(("kind", "index"), [(kind, i) for kind, cases in ALL.items() for i in range(len(cases))])
def test_a_rule_has_the_shape_and_the_values_of_torch(kind: str, index: int):
    program, shape = ALL[kind][index]
    require_same(program, *shape)


# ---------------------------------------------------------------------------------------------- both sides of a refusal


def first_row(target: Any) -> Program:
    """Of ``x`` and its first row, which has a dimension less."""
    return lambda do, x: do(target, x, do("select", x, 1, 0))


def from_the_left(matrix: Any) -> Program:
    return lambda do, x: do(torch.matmul, matrix, x)


def biased(bias: Any, **options: Any) -> Program:
    return lambda do, x: do(torch.addmm, bias, x, W(6, 5), **options)


def stacked(dim: int) -> Program:
    return lambda do, x: do(torch.stack, [x, x], dim)


UNSUPPORTED, INVALID = UnsupportedOperation, InvalidInput
LONG = torch.tensor(2**64 - 1, dtype=torch.uint64)  # -1 in int64
OWN, WIDE, KERNEL = "batch dimension of its own", "too large for", "applies a kernel of shape"
SAMPLE, BATCHES = "from one sample of the batch", "does not keep the batch"
REFUSALS = [
    # Constants.
    *(refuse(UNSUPPORTED, OWN, torch.mul, (4, 6), W(*shape)) for shape in ((2, 4, 6), (4, 1, 6), (1, 1, 4, 6))),
    *(refuse(UNSUPPORTED, r"beyond 2\*\*53", torch.add, (4,), n) for n in (2**53 + 1, -(2**53) - 1, LONG)),
    *(refuse(UNSUPPORTED, "only real numbers", torch.mul, (4,), bad) for bad in (1j, "2", None, torch.tensor(1j))),
    *(refuse(NotFinite, "NaN or infinite", torch.add, (4,), bad) for bad in (float("nan"), -float("inf"))),
    *((first_row(target), (4, 6), UNSUPPORTED, "same number of dimensions") for target in (torch.add, torch.sub)),
    *(refuse(NotLipschitz, "divides by zero", torch.div, (3,), bad) for bad in (0, torch.tensor([1, 0, 2]))),
    refuse(NotLipschitz, "rounds a quotient", torch.div, (4,), 2, rounding_mode="floor"),
    *(refuse(UNSUPPORTED, "leave float64", torch.div, (4,), 2.0**power) for power in (1000, 1001, -1000, -1001)),
    (lambda do, x: do(torch.div, x, x), (4,), NotLipschitz, "divides by a tensor"),
    (lambda do, x: do(torch.div, 2, x), (4,), NotLipschitz, "divides by a tensor"),
    # Matrices.
    refuse(INVALID, "applies a weight of shape", F.linear, (4, 6), W(5, 4)),
    refuse(INVALID, "applies a weight of shape", F.linear, (), W(6)),
    refuse(UNSUPPORTED, "only one matrix", torch.matmul, (4, 6), W(2, 6, 6)),
    *((from_the_left(W(*a)), b, UNSUPPORTED, "only one matrix") for a, b in (((2, 5, 4), (4, 6)), ((6,), (6, 6)))),
    (from_the_left(W(5, 4)), (4,), UNSUPPORTED, "only one matrix"),
    *((biased(W(5), **o), (6,), UNSUPPORTED, "uses addmm with") for o in ({"beta": 2}, {"alpha": 2}, {"beta": 0})),
    *((biased(W(*shape)), (6,), UNSUPPORTED, "uses addmm with") for shape in ((2, 5), (1, 1, 5))),
    # Convolutions.
    refuse(INVALID, KERNEL, F.conv1d, (6, 5), W(2, 4, 3)),
    refuse(INVALID, KERNEL, F.conv1d, (4, 5, 6), W(2, 4, 3)),
    refuse(INVALID, KERNEL, F.conv1d, (4, 5), W(2, 4, 3), None, 1, 0, 1, 2),
    refuse(INVALID, KERNEL, F.conv_transpose1d, (4, 5), W(2, 4, 3)),
    refuse(INVALID, KERNEL, F.conv_transpose1d, (4, 5, 6), W(4, 2, 3)),
    refuse(INVALID, WIDE, F.conv1d, (4, 2), W(2, 4, 3)),
    refuse(INVALID, WIDE, F.conv2d, (4, 6, 2), W(2, 4, 3, 3)),
    refuse(INVALID, WIDE, filled(nn.Conv1d(4, 2, 3, padding=4, padding_mode="circular")), (4, 3)),
    *(refuse(INVALID, WIDE, filled(nn.Conv1d(4, 2, 3, padding=p, padding_mode="reflect")), (4, 3)) for p in (3, 4)),
    refuse(INVALID, "padding 1 is too large", F.conv_transpose1d, (4, 2), W(4, 2, 1), None, 1, 1),
    refuse(UNSUPPORTED, "pads by 'odd'", changed(nn.Conv1d(4, 2, 3), padding_mode="odd"), (4, 5)),
    refuse(UNSUPPORTED, "output_size", nn.ConvTranspose1d(4, 2, 3), (4, 5), output_size=[7]),
    refuse(UNSUPPORTED, "output_size", changed(nn.ConvTranspose1d(4, 2, 3), padding_mode="reflect"), (4, 5)),
    # Pooling.
    *(refuse(INVALID, "by windows of", F.max_pool1d, (6,), *a) for a in ((7,), (3, 1, 2), (7, 1, 0, 1, True))),
    refuse(INVALID, "by windows of", F.avg_pool1d, (2,), 3, 2, 0, True),
    refuse(INVALID, "lies in the padding", F.max_pool1d, (4, 2), 2, 1, 3, 5),
    refuse(INVALID, "lies in the padding", F.max_pool1d, (1,), 2, 1, 1, 2),  # taps before it and behind it
    *(refuse(INVALID, "pools 1 dimension", f, (2, 4, 6), 2) for f in (F.max_pool1d, F.avg_pool1d)),
    refuse(INVALID, r"pools 2 dimension", nn.AdaptiveAvgPool2d(1), (6,)),
    *(refuse(UNSUPPORTED, "indices", m(2, return_indices=True), (4, 6)) for m in (nn.MaxPool1d, nn.AdaptiveMaxPool1d)),
    *(refuse(UNSUPPORTED, "indices", f, (6,), 2, return_indices=True) for f in (F.max_pool1d, F.adaptive_max_pool1d)),
    *(refuse(UNSUPPORTED, "name the dimensions", f, (4, 6), *d) for f in ("mean", "amax") for d in ((), ([],), ((),))),
    *(refuse(UNSUPPORTED, "which rounds", f, (4, 6), 1, dtype=torch.float32) for f in ("mean", "sum")),
    (first_row(torch.maximum), (4, 6), UNSUPPORTED, "compares"),
    # Resampling.
    refuse(UNSUPPORTED, "pads samples", F.pad, (4, 6), (0, 0, 0, 0, 1, 1)),
    refuse(UNSUPPORTED, "pads samples", F.pad, (4, 6), (1.0, 0)),
    *(
        refuse(UNSUPPORTED, "does not fit or is not covered", F.interpolate, shape, 3, **options)
        for shape, options in (
            ((4, 6, 6), {"mode": "bilinear", "antialias": True}),
            *(((4,), {"mode": mode}) for mode in ("nearest", "area")),
            *(((4, 6), {"mode": mode}) for mode in ("bilinear", "trilinear")),
            *(((4, 6, 6), {"mode": mode}) for mode in ("linear", "trilinear")),
            ((2, 2, 2, 2), {"mode": "bilinear"}),
        )
    ),
    refuse(UNSUPPORTED, "nearest, linear and area", F.interpolate, (4, 6, 6), 3, mode="bicubic"),
    *(refuse(INVALID, "either size or scale", F.interpolate, (4, 6), *a, mode="linear") for a in ((), (3, 2))),
    *(
        refuse(UNSUPPORTED, "short binary fractions", F.interpolate, (4, 6), None, scale, mode="linear")
        for scale in (0.3, 0.0, -0.5, -2, 1 + 2**-11)
    ),
    # What is moved.
    *(refuse(UNSUPPORTED, SAMPLE, name, (4, 6), 0) for name in ("flip", "unbind")),
    refuse(UNSUPPORTED, SAMPLE, "narrow", (4, 6), 0, 0, 3),
    refuse(UNSUPPORTED, SAMPLE, "roll", (4, 6), 1, 0),
    *(
        refuse(UNSUPPORTED, BATCHES, "view", (4, 6), *sizes)
        for sizes in (
            *((-1,), (24, -1), (BATCH, 5), (-1, 5), (BATCH, 5, -1), (BATCH, 0, -1), (BATCH, -2, -12)),
            *((BATCH, -1, -1), (BATCH, -1, -1, -1), (-1, -1, 4), (BATCH, 2, 6), (2, BATCH, 12), (4, BATCH, 6)),
        )
    ),
    refuse(UNSUPPORTED, "not all integers", "view", (4, 6), -1, 24.0),
    *(
        refuse(UNSUPPORTED, "over new or batch dimensions", "expand", (1, 6), *sizes)
        for sizes in ((-1, 2, 1, 6), (5, 1, 6), (-1, 6))
    ),
    refuse(UNSUPPORTED, "batch of one", "squeeze", (1, 6)),
    *(refuse(UNSUPPORTED, "indexes the batch dimension", operator.getitem, (4, 6), index) for index in CUT),
    (lambda do, x: do(torch.cat, [x, W(4, 6)], 1), (4, 6), UNSUPPORTED, "with constants"),
    (lambda do, x: do(torch.cat, [x, do("mean", x, 2)], 1), (4, 6), INVALID, "joins shapes"),
    (lambda do, x: do(torch.cat, [do("mean", x, 2), x], -1), (4, 6), INVALID, "joins shapes"),
    (lambda do, x: do(torch.cat, [x, do("narrow", x, 2, 0, 2)], 1), (4, 6), INVALID, "joins shapes"),
    *((stacked(dim), (4, 6), UNSUPPORTED, "along the batch") for dim in (0, -4, 4, 5, -5, -6)),
    (lambda do, x: do(torch.stack, [do("mean", x, 2), x], -1), (4, 6), INVALID, "cannot read"),
    *(refuse(UNSUPPORTED, "casts to another", "to", (4,), kind) for kind in (torch.float32, torch.float16)),
    refuse(UNSUPPORTED, "casts to another", "to", (4,), dtype=torch.bfloat16),
    *(refuse(UNSUPPORTED, "at random", f, (4,), 0.5, True) for f in (F.dropout, F.alpha_dropout, torch.dropout)),
    refuse(UNSUPPORTED, "at random", nn.Dropout(0.5), (4,)),
    # What is understood and refused.
    *(refuse(NotLipschitz, "grows faster", name, (4,)) for name in ("exp_", "expm1_", "square_", "sinh", torch.cosh)),
    *(refuse(NotLipschitz, "unbounded slope", name, (4,)) for name in ("sqrt_", "log_", torch.rsqrt_, "tan")),
    (lambda do, x: do(torch.outer, W(4), [x]), (4,), NotLipschitz, "at `some.where` multiplies"),
]


@pytest.mark.parametrize("index", range(len(REFUSALS)))
def test_a_rule_says_itself_what_it_refuses(index: int):
    program, shape, error, reason = REFUSALS[index]
    with pytest.raises(error, match=reason):
        recorded(program, *shape)


# ------------------------------------------------------------------------------------------------------- poolings


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("ceil", [False, True])
def test_a_window_is_where_torch_puts_it_or_refused(ceil: bool, dilation: int):
    accepted = 0
    for size, kernel, stride, pad in itertools.product((1, 2, 3, 5, 6, 7), (1, 2, 3, 4), (1, 2, 3, 5), (0, 1, 2, 3)):
        program = once(F.max_pool1d, kernel, stride, pad, dilation, ceil)
        x = integers(BATCHED, 1, size) - 100  # padding by zeros would be a maximum
        try:
            expected = program(run, x)
        except RuntimeError:
            expected = None
        reach = dilation * (kernel - 1) + 1
        if size + 2 * pad < reach or 2 * pad > reach:
            with pytest.raises(InvalidInput, match="by windows of"):
                recorded(program, 1, size)
        elif expected is not None and bool((expected > -math.inf).all()):
            graph = recorded(program, 1, size)
            assert graph.output.shape == tuple(expected.shape[1:])
            assert torch.equal(graph.replay(x), expected)
            accepted += 1
        else:  # a window that sees nothing, or a padding that torch holds against the kernel without its dilation
            assert dilation > 1
    assert accepted > 80


def test_factors_are_exact_up_to_the_largest_denominator():
    rows = [{0: Fraction(1, 3), 2: Fraction(-2, 5)}, {1: Fraction(7, 2)}]
    found = factor(rows, 3)
    exact = [[Fraction(row.get(column, 0)) for column in range(3)] for row in rows]
    assert [[Fraction(int(n), found.denominator) for n in row] for row in found.numerator] == exact
    assert factor([{0: Fraction(3, 2**53)}], 1).denominator == 2**53
    with pytest.raises(UnsupportedOperation, match="needs the denominator"):
        factor([{0: Fraction(1, 2**53 + 1)}], 1)


@pytest.mark.parametrize("align", [False, True])
def test_a_position_reads_its_two_neighbours_with_positive_weights_that_sum_to_one(align: bool):
    for size, target in itertools.product(range(1, 6), range(1, 8)):
        step = Fraction(size, target)
        for i in range(target):
            row = _row(i, size, target, step, align)
            place = (i + Fraction(1, 2)) * step - Fraction(1, 2)
            if align:
                place = i * Fraction(size - 1, max(target - 1, 1))
            assert sum(row.values()) == 1
            assert min(row.values()) > 0
            assert sum(column * weight for column, weight in row.items()) == min(max(place, 0), size - 1)
            assert max(row) - min(row) <= 1


def test_what_keeps_the_order_is_a_reshape_and_what_keeps_the_shape_is_nothing():
    assert len(recorded(once("view", -1, 4, 6), 4, 6).nodes) == 1
    assert len(recorded(once("expand_as", value(4, 6)), 4, 6).nodes) == 1
    (_, node) = recorded(once("unsqueeze", 1), 4, 6)
    assert isinstance(node, Affine)
    assert isinstance(node.map, Reshape)
    (_, node) = recorded(once("narrow", 1, 0, 2), 4, 6)  # the first numbers in their order, but not all
    assert isinstance(node, Affine)
    assert not isinstance(node.map, Reshape)


PARAMETERS: list[tuple[Program, tuple[int, ...], dict[str, Any]]] = [
    (once(MaxMin()), (6, 4), {"dim": 0, "group": 2, "arrangement": "interleaved"}),
    (once(GroupSort(3)), (6, 4), {"dim": 0, "group": 3, "arrangement": "consecutive"}),
    (once(FullSort(-1)), (6, 4), {"dim": 1, "group": 4, "arrangement": "consecutive"}),
    (once(F.softmax, -1), (4, 6), {"dim": 1}),
    (once("logsumexp", (1, -1)), (4, 5, 6), {"dim": [0, 2]}),
    (once(torch.linalg.vector_norm, dim=2), (4, 5, 6), {"dim": [1]}),
    (once(F.layer_norm, (5, 6), None, None, 0.25), (4, 5, 6), {"dims": 2, "eps": 0.25}),
    (lambda do, x: do("matmul", x, do("narrow", do(".mT", x), 2, 0, 3)), (4, 5), {"left": [4, 5], "right": [5, 3]}),
    (once(F.leaky_relu, 0.25), (4,), {"negative_slope": 0.25}),
    *((once(function, 0.5), (4,), {"alpha": 0.5}) for function in (F.elu, F.celu)),
    (once(F.softplus, 2.0), (4,), {"beta": 2.0}),
]


@pytest.mark.parametrize("index", range(len(PARAMETERS)))
def test_a_node_says_what_its_function_is(index: int):
    program, shape, parameters = PARAMETERS[index]
    node = recorded(program, *shape, domain=Box(0.5, 1.0)).output
    assert isinstance(node, Activation | Opaque)
    assert node.parameters == parameters
