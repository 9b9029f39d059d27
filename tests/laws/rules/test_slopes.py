"""Slopes and gains that rules declare, beside the extremes that calculus gives and the norms of Jacobians."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import mpmath
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lipcert.domain import Box
from lipcert.errors import InvalidInput, NotFinite, NotLipschitz, UnsupportedOperation
from lipcert.graph import Activation, Opaque
from lipcert.nn import FullSort, GroupSort, Householder, MaxMin
from lipcert.norms import L1, L2, LINF
from lipcert.rules.activations import SIXTH
from lipcert.rules.arithmetic import EPSILON, reciprocal_outward
from lipcert.rules.nonlinear import ROOT_TWO
from lipcert.rules.normalisation import scale_outward
from lipcert.rules.pooling import max_windows
from tests.laws.rules.lowered import (
    BATCHED,
    Program,
    Refusal,
    changed,
    filled,
    integers,
    once,
    recorded,
    refuse,
    require_same,
    value,
)

W = integers
ONE = Fraction(1)
NAN, INFINITY = float("nan"), float("inf")
UNSUPPORTED, INVALID = UnsupportedOperation, InvalidInput


# ------------------------------------------------------------------------------------------------- activations


def turning(function: Callable[[Any], Any], near: float) -> Fraction:
    """The derivative where the second one is zero."""
    with mpmath.workdps(30):
        place = mpmath.findroot(lambda x: mpmath.diff(function, x, 2), near)
        return Fraction(str(mpmath.diff(function, place)))


def gelu_tanh(x: Any) -> Any:
    return x / 2 * (1 + mpmath.tanh(mpmath.sqrt(2 / mpmath.pi) * (x + mpmath.mpf("0.044715") * x**3)))


def mish(x: Any) -> Any:
    return x * mpmath.tanh(mpmath.log1p(mpmath.exp(x)))


SIXTH_EXACTLY = Fraction(1, 6)
SELU = Fraction("1.0507009873554804934") * Fraction("1.6732632423543772848")
GELU = turning(lambda x: x * mpmath.ncdf(x), 1.4)  # at the square root of two
SILU = turning(lambda x: x / (1 + mpmath.exp(-x)), 2.4)  # where x tanh(x / 2) = 2
GELU_TANH = turning(gelu_tanh, 1.4)
EXTREMES: list[tuple[Any, Any, Any]] = [
    # If f(x) - f(-x) = x, the smallest slope is one minus the largest.
    *((target, 0, 1) for target in (torch.relu, F.relu6, F.softsign, torch.tanh, F.tanhshrink, F.logsigmoid)),
    *((target, 0, 1) for target in ("relu_", nn.ReLU(), nn.Tanh(), torch.atan, torch.asinh, F.softplus, F.celu)),
    *((target, -1, 1) for target in (torch.abs, "abs", torch.sin, torch.cos)),
    (F.selu, 0, SELU),
    (F.silu, 1 - SILU, SILU),
    (F.gelu, 1 - GELU, GELU),
    (nn.GELU("tanh"), 1 - GELU_TANH, GELU_TANH),
    (F.mish, turning(mish, -2.3), turning(mish, 1.5)),
    (F.hardsigmoid, 0, SIXTH_EXACTLY),
    (F.hardswish, Fraction(-1, 2), Fraction(3, 2)),
    (torch.sigmoid, 0, Fraction(1, 4)),
    (torch.erf, 0, Fraction(str(mpmath.mpf(2) / mpmath.sqrt(mpmath.pi)))),
    *((nn.LeakyReLU(s), min(ONE, Fraction(s)), max(ONE, Fraction(s))) for s in (0.25, -0.5, 1.5)),
    *((nn.ELU(a), min(0, Fraction(a)), max(ONE, Fraction(a))) for a in (0.5, 2.0, -0.5)),
    (nn.RReLU(0.25, 0.5).eval(), Fraction(3, 8), 1),
    (nn.RReLU(-1.0, -0.5).eval(), Fraction(-3, 4), 1),
    *((nn.CELU(alpha), 0, 1) for alpha in (0.25, 2.0)),
    *((nn.Softplus(beta, 20), 0, 1) for beta in (0.5, 2.0)),
    (F.softshrink, 0, 1),
    *((nn.Threshold(t, t), 0, 1) for t in (-0.5, 2.0)),
    (nn.Hardtanh(-0.5, 2.0), 0, 1),
    (once("clamp", -0.5, 2.0), 0, 1),
    (once("clamp", max=2.0), 0, 1),
    (once("clamp_min", -0.5), 0, 1),
    (once("clamp", max=torch.tensor([[2.0]])), 0, 1),
]
FAR = 2.0 ** torch.arange(5, 21, dtype=torch.float64)
POINTS = torch.cat([-FAR.flip(0), torch.linspace(-16, 16, 2049, dtype=torch.float64), FAR])


@pytest.mark.parametrize("index", range(len(EXTREMES)))
def test_slopes_are_the_extremes_of_the_derivative_rounded_outward(index: int):
    target, low, high = EXTREMES[index]
    program = target if getattr(target, "__name__", "") == "<lambda>" else once(target)
    node = require_same(program, 1, len(POINTS), x=POINTS[None, None]).output
    assert isinstance(node, Activation)
    slope = [Fraction(float(end)) for end in node.slope]
    assert low - Fraction(1, 10**5) < slope[0] <= low
    assert high <= slope[1] < high + Fraction(1, 10**5)
    values = node.call(POINTS[None, None])[0, 0]
    quotients = values.diff() / POINTS.diff()
    assert float(slope[0]) - 1e-12 <= float(quotients.min()) <= float(slope[0]) + 1 / 32
    assert float(slope[1]) - 1 / 32 <= float(quotients.max()) <= float(slope[1]) + 1e-12


def test_constants_that_are_not_floats_are_the_next_ones_above():
    assert math.nextafter(SIXTH, 0.0) < SIXTH_EXACTLY < Fraction(SIXTH)
    assert Fraction(math.nextafter(ROOT_TWO, 0.0)) ** 2 < 2 < Fraction(ROOT_TWO) ** 2


@pytest.mark.parametrize("shape", [(4,), (4, 5), (4, 2, 3), (2, 5), (1, 5)])
@pytest.mark.parametrize("single", [False, True])
def test_a_prelu_has_the_slopes_of_its_channels(shape: tuple[int, ...], single: bool):
    weight = tensor(3.0) if single else tensor(0.25, -2.0, 3.0, 0.5)[: shape[0]]
    node = require_same(once(F.prelu, weight), *shape).output
    assert isinstance(node, Activation)
    rows = torch.broadcast_to(weight.reshape(-1, *[1] * (len(shape) - 1)), shape)
    assert torch.equal(torch.broadcast_to(node.slope[0], shape), rows.clamp(max=1.0))
    assert torch.equal(torch.broadcast_to(node.slope[1], shape), rows.clamp(min=1.0))


# ------------------------------------------------------------------------------------------ gains of opaque functions


def norms(call: Callable[[Tensor], Tensor], x: Tensor) -> dict[Any, float]:
    """Of the Jacobian at a point."""
    J = torch.autograd.functional.jacobian(lambda z: call(z[None])[0].flatten(), x).reshape(-1, x.numel())
    spectral = float(torch.linalg.matrix_norm(J, 2))
    return {L1: float(J.abs().sum(0).max()), L2: spectral, LINF: float(J.abs().sum(1).max())}


def turned(angle: float) -> nn.Module:
    layer = Householder(4).double()
    layer.theta.data = torch.full_like(layer.theta.data, angle)
    return layer


def tensor(*entries: Any) -> Tensor:
    return torch.tensor(entries, dtype=torch.float64)


HALVES, FIRST = tensor(0, -60, 0)[:, None], tensor(0, -60, -60)[:, None]
ALL_ONE, HALF = {L1: 1.0, L2: 1.0, LINF: 1.0}, {L1: 0.5, L2: 0.5, LINF: 0.5}
GAINS: list[tuple[Program, list[Tensor], dict[Any, float]]] = [
    # The largest norms of the Jacobian, by arithmetic, and points where it has them.
    (once(F.softmax, 1), [HALVES], HALF),
    (once(F.softmax, 2), [HALVES.mT], HALF),
    (once(nn.Softmin(1)), [HALVES], HALF),
    (once("logsumexp", 1), [FIRST], ALL_ONE),
    (once(torch.linalg.vector_norm, dim=1), [FIRST], {L2: 1.0}),
    *((once(layer), [W(6, 2)], ALL_ONE) for layer in (MaxMin(), GroupSort(3), FullSort())),
    (once(turned(math.pi / 4)), [tensor(a, b, 0, 1) for a in (-2, 1) for b in (-1, 2)], {**ALL_ONE, L1: ROOT_TWO}),
]
GAINS[-1][2][LINF] = ROOT_TWO


@pytest.mark.parametrize("index", range(len(GAINS)))
def test_gains_are_the_largest_norms_of_jacobians(index: int):
    program, points, exact = GAINS[index]
    node = recorded(program, *points[0].shape).output
    assert isinstance(node, Opaque)
    assert dict(node.gains) == exact
    found = [norms(node.call, x) for x in points]
    for pair, gain in exact.items():
        assert math.isclose(max(at[pair] for at in found), gain, rel_tol=1e-12)


@pytest.mark.parametrize("count", range(1, 21))
def test_an_entry_of_several_windows_counts_by_the_root_of_their_number(count: int):
    x = value(4, 2)
    node = x.recorder.graph(max_windows(x, [[(0, 2, 1), *[(1, 3, 1)] * count], None])).output
    assert isinstance(node, Opaque)
    seen = count + 1
    assert node.gains[L1] == seen
    assert node.gains[LINF] == 1.0
    squared = Fraction(node.gains[L2]) ** 2
    assert squared == seen if round(seen**0.5) ** 2 == seen else seen < squared <= seen * (1 + Fraction(1, 2**50))
    assert node.parameters["windows"] == [[[0, 2, 1], *[[1, 3, 1]] * count], None]


def test_overlaps_multiply_over_dimensions():
    x = value(4, 4)
    node = x.recorder.graph(max_windows(x, [[(0, 2, 1), (1, 4, 1)], [(0, 3, 2), (0, 3, 1), (2, 4, 1)]])).output
    assert isinstance(node, Opaque)
    assert node.gains[L1] == 2 * 3


NONLINEAR = [
    *((once(F.softmax, dim, dtype=kind), (4, 6)) for dim in (1, -1) for kind in (None, torch.float64)),
    (once(nn.Softmin(2)), (4, 6)),
    (once(nn.Softmax2d()), (4, 2, 3)),
    *((once("logsumexp", dim, keep), (4, 6)) for dim in (1, -1, (1, 2)) for keep in (False, True)),
    *((once(torch.linalg.vector_norm, order, dim, True), (4, 6)) for order in (2, 2.0) for dim in (1, (2,))),
    (once(torch.linalg.vector_norm, dim=2, dtype=torch.float64), (2, 4, 6)),
    *((once(torch.norm, p, 1), (4, 6)) for p in ("fro", None, 2)),
    *((once(layer), (6, 4)) for layer in (MaxMin(), GroupSort(3), GroupSort(2, -1), FullSort(), GroupSort(1))),
    (once(Householder(6).double()), (6, 4)),
    (once(nn.Softshrink(0.0)), (4,)),
    (once(Householder(4, -1).double()), (6, 4)),
]


@pytest.mark.parametrize("index", range(len(NONLINEAR)))
def test_a_function_that_is_neither_linear_nor_elementwise_is_torchs(index: int):
    program, shape = NONLINEAR[index]
    require_same(program, *shape, x=W(BATCHED, *shape) / 8)


# ------------------------------------------------------------------------------------------ batch norm and quotients


MEAN, VARIANCE = tensor(1.0, -2.0, 0.5, 3.0), tensor(0.0, 0.5, 4.0, 1.0)
WEIGHT, BIAS = tensor(2.0, -3.0, 0.0, 1.0), tensor(0.25, -1.0, 2.0, 5.0)


@pytest.mark.parametrize("shape", [(4,), (4, 5), (4, 2, 3)])
@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["none", "weight"])
@pytest.mark.parametrize("bias", [None, BIAS], ids=["none", "bias"])
def test_a_batch_norm_is_torchs_up_to_what_is_rounded_outward(shape: Any, weight: Any, bias: Any):
    graph = require_same(once(F.batch_norm, MEAN, VARIANCE, weight, bias, eps=0.25), *shape)
    (_, _, node) = graph
    assert isinstance(node, Activation)
    assert node.function == "contraction"


def test_scales_are_rounded_outward_and_barely():
    nasty = [(2.0004949336517828, 3.9974518890350437, 1e-5), (1.0, 0.25, 0.0), (0.0, 0.3, 0.1), (1.0, 4.0, 1e-300)]
    drawn = torch.rand(300, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64).tolist()
    for gamma, variance, eps in [*nasty, *((g + 0.5, v, 1e-5) for g, v in drawn), *((-g, v, v) for g, v in drawn)]:
        scale = Fraction(float(scale_outward(tensor(gamma), tensor(variance), eps)))
        total = Fraction(variance) + Fraction(eps)
        assert scale**2 * total >= Fraction(gamma) ** 2 >= scale**2 * total * (1 - Fraction(EPSILON)) ** 2
        assert scale * Fraction(gamma) >= 0


def test_reciprocals_are_rounded_outward_and_barely():
    near = [1.0 + 2.0**-k for k in (4, 10, 52)]  # barely more than a power of two
    for divisor in [*near, *(s * k / 2 for k in range(2, 160) for s in (1.0, -1.0, 1e-300, 2.0**40))]:
        found, exact = reciprocal_outward(tensor(divisor), "x")
        factor = Fraction(float(found)) * Fraction(divisor)
        assert factor == 1 if exact else 1 <= factor <= 1 + Fraction(EPSILON)
        assert factor * (1 - Fraction(EPSILON)) <= 1
        assert exact == (abs(math.frexp(divisor)[0]) == 0.5)
    assert reciprocal_outward(tensor(2.0, 3.0), "x")[1] is False
    assert [float(r) for r in reciprocal_outward(tensor(2.0**999, -(2.0**-999)), "x")[0]] == [2.0**-999, -(2.0**999)]


def test_what_is_contracted_reaches_back_to_the_true_factor():
    node = recorded(once(torch.div, 3), 4).output
    assert isinstance(node, Activation)
    assert [float(end) for end in node.slope] == [1.0 - EPSILON, 1.0]
    assert node.parameters == {"epsilon": EPSILON}
    assert Fraction(15, 2) / 2**53 <= EPSILON <= Fraction(1, 2**50)


# ------------------------------------------------------------------------------------------ on a domain only

BOX = Box(0.5, 1.0)


def attended(**options: Any) -> Program:
    """Three queries, five keys and values of another width."""

    def program(do: Callable[..., Any], x: Any) -> Any:
        keys = do("narrow", x, 1, 1, 5)
        values = do("matmul", keys, W(2, 4))
        return do(F.scaled_dot_product_attention, do("narrow", x, 1, 0, 3), keys, values, **options)

    return program


def parts_of(name: Any, first: Sequence[int], second: Sequence[int]) -> Program:
    """The product of two parts of ``x``, reshaped."""

    def program(do: Callable[..., Any], x: Any) -> Any:
        parts = (do("narrow", x, 1, 0, math.prod(first)), do("narrow", x, 1, 1, math.prod(second)))
        a, b = (do("view", part, -1, *shape) for part, shape in zip(parts, (first, second), strict=True))
        return do(name, a, b)

    return program


ON_A_BOX: list[tuple[Program, tuple[int, ...]]] = [
    *((once(name), (4,)) for name in ("exp", "square", "sqrt", "log", "reciprocal", "rsqrt", "expm1")),
    *((once("pow", exponent), (4,)) for exponent in (2, 2.0)),
    (lambda do, x: do(torch.mul, x, do("relu", x)), (4, 6)),
    (lambda do, x: do(torch.mul, do("sum", x, 2, True), do("sum", x, 1, True)), (4, 6)),
    (lambda do, x: do(torch.div, do("relu", x), x), (4,)),
    (lambda do, x: do(torch.div, 3, x), (4,)),
    (parts_of("matmul", (3, 4), (4, 5)), (24,)),
    (parts_of("bmm", (3, 4), (4, 5)), (24,)),
    (parts_of("matmul", (2, 3, 4), (2, 4, 1)), (25,)),
    *((attended(**options), (6, 2)) for options in ({}, {"scale": 0.375}, {"dropout_p": 0.0, "is_causal": False})),
    *((once(F.glu, dim), (4, 6)) for dim in (1, 2, -1)),
    (once(nn.GLU(1)), (4, 6)),
    *((once(F.layer_norm, last), (4, 6)) for last in ((6,), (4, 6))),
    (once(F.layer_norm, (6,), W(6), None, 0.25), (4, 6)),
    (once(torch.layer_norm, (6,), None, W(6), 0.5), (4, 6)),
    (once(filled(nn.LayerNorm(6))), (4, 6)),
]


@pytest.mark.parametrize("index", range(len(ON_A_BOX)))
def test_what_has_a_constant_on_a_domain_only_is_torchs_there(index: int):
    program, shape = ON_A_BOX[index]
    x = 0.75 + (torch.arange(BATCHED * math.prod(shape)).double().sin() / 4).reshape(BATCHED, *shape)
    require_same(program, *shape, domain=BOX, x=x)


@pytest.mark.parametrize("index", range(len(ON_A_BOX)))
def test_what_has_a_constant_on_a_domain_only_is_refused_elsewhere(index: int):
    program, shape = ON_A_BOX[index]
    with pytest.raises(NotLipschitz, match=r"`some\.where` .*[dD]omain|divides by a tensor"):
        recorded(program, *shape)


MISFIT = "multiplies samples of shapes"
REFUSED_ON_A_BOX: list[Refusal] = [
    *(refuse(UNSUPPORTED, "a power other than 2", "pow", (4,), exponent) for exponent in (1, 3, 0.5, -2)),
    (lambda do, x: do(torch.pow, 2, x), (4,), UNSUPPORTED, "a power other than 2"),
    *(
        (parts_of("matmul", *shapes), (26,), UNSUPPORTED, MISFIT)
        for shapes in (((2, 3, 4), (3, 4, 2)), ((3, 4), (5, 4)), ((4,), (4, 5)), ((3, 4), (4,)), ((2, 3, 4), (4, 5)))
    ),
    refuse(UNSUPPORTED, "with a constant batch", torch.bmm, (3, 4), W(BATCHED, 4, 5)),
    *(
        (attended(**{name: odd}), (6, 2), UNSUPPORTED, "masks or drops")
        for name, odd in (("attn_mask", W(3, 5)), ("dropout_p", 0.5), ("is_causal", True), ("enable_gqa", True))
    ),
    refuse(INVALID, "halves 5 channels", F.glu, (4, 5)),
    *(
        refuse(INVALID, "normalises over", F.layer_norm, (4, 6), last)
        for last in ((), (4,), (5,), (5, 6), (2, 4, 6), (4, 6, 1))
    ),
    (lambda do, x: do(torch.div, x, x, rounding_mode="floor"), (4,), NotLipschitz, "divides by a tensor"),
    (lambda do, x: do(torch.mul, x, do("select", x, 1, 0)), (4, 6), UNSUPPORTED, "multiplies batches"),
]


@pytest.mark.parametrize("index", range(len(REFUSED_ON_A_BOX)))
def test_what_has_no_constant_on_a_domain_either_is_refused_there(index: int):
    program, shape, error, reason = REFUSED_ON_A_BOX[index]
    with pytest.raises(error, match=reason):
        recorded(program, *shape, domain=BOX)


# --------------------------------------------------------------------------------------------------------- refusals

STATISTICS, NEGATIVE = "statistics of the batch", "variance below zero, or zero without eps"
REFUSALS: list[Refusal] = [
    *(refuse(NotFinite, "NaN or infinite", F.leaky_relu, (4,), bad) for bad in (NAN, INFINITY)),
    *(
        refuse(NotFinite, "NaN or infinite", f, (4,), NAN)
        for f in (F.elu, F.celu, F.softplus, F.softshrink, F.hardtanh)
    ),
    refuse(NotFinite, "NaN or infinite", F.hardtanh, (4,), -1.0, NAN),
    refuse(NotFinite, "NaN or infinite", F.threshold, (4,), INFINITY, INFINITY),
    *(refuse(NotFinite, "NaN or infinite", F.prelu, (4,), tensor(bad)) for bad in (NAN, INFINITY, -INFINITY)),
    refuse(UNSUPPORTED, "random slopes", F.rrelu, (4,), 0.1, 0.3, True),
    *(refuse(UNSUPPORTED, "has 3 slopes", F.prelu, shape, W(3)) for shape in ((4, 3), (2, 3), (1, 3), ())),
    *(refuse(NotLipschitz, "grows exponentially", F.celu, (4,), alpha) for alpha in (0.0, -0.5)),
    *(refuse(NotLipschitz, "the jump is visible", F.softplus, (4,), beta) for beta in (0, -1)),
    refuse(NotLipschitz, "the jump is visible", F.softplus, (4,), 2, 19.5),
    refuse(NotLipschitz, "which jumps", F.softshrink, (4,), -0.25),
    *(refuse(NotLipschitz, "jumps from", F.threshold, (4,), 0.5, other) for other in (0.25, 0.75)),
    *(refuse(UNSUPPORTED, "clamps samples", "clamp", (4, 6), None, W(*shape)) for shape in ((1, 4, 6), (1, 1, 1))),
    *(refuse(UNSUPPORTED, "clamps samples", "clamp", (1, 6), W(*shape)) for shape in ((4, 1), (4, 6))),
    *(refuse(UNSUPPORTED, "clamps samples", "clamp", (4, 6), **{end: NAN}) for end in ("min", "max")),
    refuse(UNSUPPORTED, "a softmax without dim", F.softmax, (4,)),
    refuse(UNSUPPORTED, "a softmax without dim, or in torch.float32", F.softmax, (4,), 1, dtype=torch.float32),
    *(refuse(INVALID, r"needs samples \(channels", nn.Softmax2d(), shape) for shape in ((4, 6), (2, 4, 6, 3))),
    *(refuse(UNSUPPORTED, "only 2 is covered", torch.linalg.vector_norm, (4,), p, 1) for p in (1, 3, 0, INFINITY)),
    refuse(UNSUPPORTED, "only 2 is covered", torch.linalg.vector_norm, (4,), 2, 1, dtype=torch.float32),
    *(refuse(UNSUPPORTED, "only 2 is covered", torch.norm, (4,), p, 1) for p in (1, "nuc")),
    *(refuse(INVALID, "is not a multiple", layer, (5, 4)) for layer in (MaxMin(), GroupSort(3))),
    refuse(INVALID, "reflects 4 channels", Householder(4), (6, 5)),
    refuse(INVALID, "reflects 6 channels", changed(Householder(4), channels=6), (6, 5)),
    refuse(INVALID, "reflects 4 channels", changed(Householder(4), theta=nn.Parameter(W(3))), (4, 5)),
    *(refuse(NotFinite, "NaN or infinite", turned(bad), (4, 5)) for bad in (NAN, INFINITY)),
    refuse(UNSUPPORTED, STATISTICS, F.batch_norm, (4, 5), MEAN, VARIANCE, training=True),
    refuse(UNSUPPORTED, STATISTICS, F.batch_norm, (4, 5), None, VARIANCE),
    refuse(UNSUPPORTED, STATISTICS, F.batch_norm, (4, 5), MEAN, None),
    *(refuse(INVALID, "has 4 channels", F.batch_norm, shape, MEAN, VARIANCE) for shape in ((5, 4), (), (3,))),
    refuse(NotFinite, "NaN or infinite", F.batch_norm, (4,), MEAN, VARIANCE + tensor(0, INFINITY, 0, 0)),
    refuse(NotFinite, "NaN or infinite", F.batch_norm, (4,), MEAN + NAN, VARIANCE),
    refuse(NotFinite, "NaN or infinite", F.batch_norm, (4,), MEAN, VARIANCE, 1e308 * WEIGHT, eps=1e-300),
    refuse(NotFinite, NEGATIVE, F.batch_norm, (4,), MEAN, VARIANCE - 0.25, eps=1.0),
    refuse(NotFinite, NEGATIVE, F.batch_norm, (4,), MEAN, VARIANCE, eps=0.0),
    refuse(NotFinite, NEGATIVE, F.batch_norm, (4,), MEAN, VARIANCE, eps=-0.25),
]


@pytest.mark.parametrize("index", range(len(REFUSALS)))
def test_a_rule_with_a_constant_says_itself_what_it_refuses(index: int):
    program, shape, error, reason = REFUSALS[index]
    with pytest.raises(error, match=reason):
        recorded(program, *shape)
