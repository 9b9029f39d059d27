"""Laws of the rules: replay equals the module, slopes and gains hold, everything registered has a case."""

import functools
import inspect
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import mpmath
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from lipcert import lowering
from lipcert.certifiers import Product, certify_on
from lipcert.check import read_network
from lipcert.domain import Box
from lipcert.errors import LipcertError, NotLipschitz, UnsupportedOperation
from lipcert.freeze import freeze
from lipcert.graph import Activation, Affine, Graph, Opaque
from lipcert.linear import apply, dense
from lipcert.lowering import Recorder, Value, source
from lipcert.norms import L1, L2, LINF
from lipcert.rules.arithmetic import EPSILON, reciprocal_outward
from lipcert.rules.normalisation import scale_outward
from lipcert.trace import trace
from tests.cases import OPS, Operation

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")

REFUSALS = {target: rule for target, rule in lowering._RULES.items() if rule.__module__ == "lipcert.rules.refused"}


def drawn(*shape: int, seed: int = 11) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def special(shape: tuple[int, ...]) -> Tensor:
    x = drawn(6, *shape)
    ones = torch.ones(1, *shape, dtype=torch.float64)
    return torch.cat([0 * ones, ones, -ones, 1e-9 * x, x, x.round(), 1e3 * x])


class _Seen(dict[Any, Any]):
    """A registry that remembers which targets were looked up."""

    def __init__(self, rules: dict[Any, Any]) -> None:
        super().__init__(rules)
        self.seen: set[Any] = set()

    def __getitem__(self, key: Any) -> Any:
        self.seen.add(key)
        return super().__getitem__(key)

    def get(self, key: Any, default: Any = None) -> Any:
        self.seen.add(key)
        return super().get(key, default)


def test_every_registered_target_has_a_case(monkeypatch: pytest.MonkeyPatch):
    seen = _Seen({t: rule for t, rule in lowering._RULES.items() if rule.__module__.startswith("lipcert.rules.")})
    monkeypatch.setattr(lowering, "_RULES", seen)
    for case in OPS.values():
        trace(case.model(), case.input_shape)
    for call, *shape in BOUNDED:
        trace(Of(call), tuple(shape), Box(0.5, 1.0))
    for layer in (nn.GLU(), nn.LayerNorm(4)):
        trace(layer, (4,), Box(0.5, 1.0))
    assert not set(seen) - seen.seen - REFUSALS.keys()


BOUNDED = [
    *((getattr(torch, name), 4) for name in ("exp", "square", "sqrt", "log", "reciprocal", "rsqrt", "expm1")),
    *((lambda x, name=name: getattr(x, name)(), 4) for name in ("exp", "square", "sqrt", "log", "reciprocal")),
    *((lambda x, name=name: getattr(x, name)(), 4) for name in ("rsqrt", "expm1")),
    *((call, 4) for call in (lambda x: x**2, lambda x: torch.pow(x, 2), lambda x: x.pow(2), lambda x: 1 / (x * x))),
    *((call, 2, 2) for call in (lambda x: torch.bmm(x, x), lambda x: x.bmm(x), lambda x: x @ x.mT)),
    (lambda x: F.scaled_dot_product_attention(x, x, x), 3, 2),
    (F.glu, 4),
    (lambda x: F.layer_norm(x, (4,)), 4),
    (lambda x: torch.layer_norm(x, (4,)), 4),
]
"""Operations that have a constant on a bounded domain only, and a shape of samples."""


class Of(nn.Module):
    def __init__(self, call: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)


@pytest.mark.parametrize("case", range(len(BOUNDED)))
def test_what_is_bounded_on_a_domain_only_is_above_its_jacobians_there_and_refused_elsewhere(case: int):
    call, *shape = BOUNDED[case]
    with pytest.raises(NotLipschitz, match="domain"):
        trace(Of(call), tuple(shape))
    box = Box(0.5, 1.0)
    graph = trace(Of(call), tuple(shape), box)
    bound = certify_on(graph, box, by=Product()).bound
    for x in box.sample(10, tuple(shape), torch.Generator().manual_seed(0)):
        J = torch.func.jacrev(lambda z: graph.replay(z[None])[0].flatten())(x).reshape(-1, x.numel())
        assert float(torch.linalg.matrix_norm(J, 2)) <= bound


@pytest.mark.parametrize("case", OPS.values(), ids=OPS)
def test_an_operation_is_replayed_exactly_and_understood_by_the_checker(case: Operation):
    model = case.model()
    graph, frozen = trace(model, case.input_shape), freeze(model)
    x = special(case.input_shape)
    with torch.no_grad():
        expected = frozen(x.clone()).detach()
    scale = max(1.0, float(expected.abs().max()))
    assert torch.allclose(graph.replay(x), expected, rtol=1e-12, atol=1e-14 * scale)
    read_network(*graph.document())  # refuses slopes and gains below the checker's own


@functools.cache
def graphs() -> list[Graph]:
    return [trace(case.model(), case.input_shape) for case in OPS.values()]


@pytest.fixture(scope="module")
def traced() -> list[Graph]:
    return graphs()


def test_affine_nodes_are_linear_with_the_right_adjoint(traced: list[Graph]):
    maps = [node.map for graph in traced for node in graph if isinstance(node, Affine)]
    assert len(maps) > 200
    for linear in maps:
        matrix = dense(linear)
        x, y = drawn(2, *linear.in_shape), drawn(2, *linear.out_shape, seed=12)
        image = apply(linear, x).flatten(1)
        scale = float(matrix.abs().sum())
        assert torch.allclose(image, x.flatten(1) @ matrix.T, rtol=1e-12, atol=1e-13 * scale)
        assert (
            float(((image * y.flatten(1)).sum() - (x.flatten(1) * (y.flatten(1) @ matrix)).sum()).abs())
            <= 1e-12 * scale
        )


def test_gains_hold_between_random_pairs(traced: list[Graph]):
    nodes = [(graph, node) for graph in traced for node in graph if isinstance(node, Opaque)]
    assert {node.function for _, node in nodes} == set("max_windows softmax logsumexp norm2 sort householder".split())
    for graph, node in nodes:
        shape = graph[node.source].shape
        x = drawn(200, *shape) * torch.logspace(-3, 3, 200, dtype=torch.float64).reshape(-1, *[1] * len(shape))
        for step in (1e-3, 1.0, 30.0):
            d = step * drawn(200, *shape, seed=13)
            d = d * (torch.rand(d.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) < 0.3)
            change = (node.call(x + d) - node.call(x)).reshape(200, -1)
            for norms, gain in node.gains.items():
                moved = torch.linalg.vector_norm(d.flatten(1), norms.p, 1)
                rounding = 1e-13 * (1 + x.flatten(1).abs().amax(1))
                assert bool((torch.linalg.vector_norm(change, norms.q, 1) <= gain * moved + rounding).all())


POOLS = [case for case in OPS.values() if "ax_pool" in case.source or "MaxPool" in case.source or "amax" in case.source]


@pytest.mark.parametrize("case", POOLS, ids=lambda case: case.source)
def test_the_gains_of_maxima_are_attained_by_raising_one_entry(case: Operation):
    graph = trace(case.model(), case.input_shape)
    node = next(node for node in graph if isinstance(node, Opaque))
    size = math.prod(case.input_shape)
    units = torch.eye(size, dtype=torch.float64).reshape(size, *case.input_shape)
    windows = int(graph.replay(units).flatten(1).sum(1).max())  # from zero, a unit raises every maximum that sees it
    assert node.gains[L1] == windows
    assert windows <= node.gains[L2] ** 2 <= windows * (1 + 1e-15)
    assert node.gains[LINF] == 1.0


# ---------------------------------------------------------------------------- slopes, against 50-digit arithmetic

Real = mpmath.mpf


def relu(x: Real) -> Real:
    return max(x, Real(0))


def gelu_tanh(x: Real) -> Real:
    return x / 2 * (1 + mpmath.tanh(mpmath.sqrt(2 / mpmath.pi) * (x + Real("0.044715") * x**3)))


def clip(low: float, high: float) -> Callable[[Real], Real]:
    return lambda x: min(max(x, Real(low)), Real(high))


def elu(alpha: float) -> Callable[[Real], Real]:
    return lambda x: x if x > 0 else Real(alpha) * mpmath.expm1(x)


ALPHA, SCALE = Real("1.6732632423543772848170429916717"), Real("1.0507009873554804934193349852946")
FUNCTIONS: dict[str, tuple[str, Callable[[Real], Real]]] = {
    # What torch documents, evaluated by mpmath; the source must be a case of OPS.
    "relu": ("nn.ReLU()", relu),
    "relu6": ("nn.ReLU6()", clip(0, 6)),
    "leaky_relu": ("nn.LeakyReLU(-0.5)", lambda x: x if x > 0 else Real(-0.5) * x),
    "leaky_relu steep": ("nn.LeakyReLU(1.5)", lambda x: x if x > 0 else Real(1.5) * x),
    "rrelu": ("nn.RReLU(0.2, 0.4)", lambda x: x if x > 0 else Real((0.2 + 0.4) / 2) * x),
    "prelu": ("torch.prelu(x, W(1))", lambda x: x if x > 0 else Real(-11) / 16 * x),
    "elu": ("nn.ELU(alpha=2.0)", elu(2.0)),
    "elu negative": ("nn.ELU(alpha=-0.5)", elu(-0.5)),
    "selu": ("nn.SELU()", lambda x: SCALE * (x if x > 0 else ALPHA * mpmath.expm1(x))),
    "celu": ("nn.CELU(0.3)", lambda x: x if x > 0 else Real(0.3) * mpmath.expm1(x / Real(0.3))),
    "gelu": ("nn.GELU()", lambda x: x * mpmath.ncdf(x)),
    "gelu_tanh": ("nn.GELU(approximate='tanh')", gelu_tanh),
    "silu": ("nn.SiLU()", lambda x: x / (1 + mpmath.exp(-x))),
    "mish": ("nn.Mish()", lambda x: x * mpmath.tanh(mpmath.log1p(mpmath.exp(x)))),
    "softplus": ("nn.Softplus(2.0, 30)", lambda x: mpmath.log1p(mpmath.exp(2 * x)) / 2),
    "softsign": ("nn.Softsign()", lambda x: x / (1 + abs(x))),
    "tanh": ("nn.Tanh()", mpmath.tanh),
    "tanhshrink": ("nn.Tanhshrink()", lambda x: x - mpmath.tanh(x)),
    "hardtanh": ("nn.Hardtanh(-0.5, 3)", clip(-0.5, 3)),
    "hardsigmoid": ("nn.Hardsigmoid()", lambda x: clip(0, 6)(x + 3) / 6),
    "hardswish": ("nn.Hardswish()", lambda x: x * clip(0, 6)(x + 3) / 6),
    "sigmoid": ("nn.Sigmoid()", lambda x: 1 / (1 + mpmath.exp(-x))),
    "log_sigmoid": ("nn.LogSigmoid()", lambda x: -mpmath.log1p(mpmath.exp(-x))),
    "softshrink": ("nn.Softshrink()", lambda x: mpmath.sign(x) * relu(abs(x) - Real(0.5))),
    "threshold": ("nn.Threshold(0.5, 0.5)", lambda x: max(x, Real(0.5))),
    "clamp": ("torch.clamp(x, -1, 1)", clip(-1, 1)),
    "abs": ("torch.abs(x)", abs),
    "sin": ("torch.sin(x)", mpmath.sin),
    "cos": ("torch.cos(x)", mpmath.cos),
    "atan": ("torch.atan(x)", mpmath.atan),
    "asinh": ("torch.asinh(x)", mpmath.asinh),
    "erf": ("torch.erf(x)", mpmath.erf),
}


def node_of(spelled: str) -> Activation:
    case = next(case for case in OPS.values() if case.source == spelled)
    node = trace(case.model(), case.input_shape).output
    assert isinstance(node, Activation)
    return node


NODES = {name: node_of(spelled) for name, (spelled, _) in FUNCTIONS.items()}


def test_every_activation_is_held_against_its_formula():
    functions = {node.function for graph in graphs() for node in graph if isinstance(node, Activation)}
    assert functions == {node.function for node in NODES.values()} | {"contraction"}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_activations_are_what_their_formula_says(name: str):
    x = torch.cat([torch.linspace(-9, 9, 73, dtype=torch.float64), torch.tensor([-1e3, 1e3], dtype=torch.float64)])
    y = NODES[name].call(x.reshape(-1, 1)).flatten()
    with mpmath.workdps(50):
        expected = torch.tensor([float(FUNCTIONS[name][1](Real(float(value)))) for value in x], dtype=torch.float64)
    assert torch.allclose(y, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_slopes_contain_the_derivative_and_are_tight(name: str):
    function, (low, high) = FUNCTIONS[name][1], (float(end.max()) for end in NODES[name].slope)
    with mpmath.workdps(50):
        # Quotients to the left and to the right, finest around where they are extreme.
        far = [side * Real(2) ** k for k in range(4, 24) for side in (-1, 1)]
        points = [*far, *(Real(k) / 16 for k in range(-160, 161))]
        step = Real(1) / 2**40

        def quotient(x: Real, pick: Callable[..., Real]) -> Real:
            return pick((function(x + step) - function(x)) / step, (function(x) - function(x - step)) / step)

        found = []
        for pick in (min, max):
            best = pick(points, key=lambda x: quotient(x, pick))
            found.append(pick(quotient(best + Real(k) / 4096, pick) for k in range(-256, 257)))
        assert low <= found[0]
        assert found[1] <= high
        assert found[0] - low < 2e-4
        assert high - found[1] < 2e-4


@pytest.mark.parametrize("count", [1, 4])
def test_a_prelu_may_be_steeper_than_one_and_falling(count: int):
    for factor in (4.0, -4.0):
        node = trace(nn.PReLU(count, factor).eval(), (4, 6)).output
        assert isinstance(node, Activation)
        low, high = node.slope
        weight = node.parameters["weight"]
        assert bool((low <= weight).all() and (low <= 1.0).all() and (high >= weight).all() and (high >= 1.0).all())
        assert float(weight.abs().max()) == 4.0


@given(st.sampled_from(sorted(FUNCTIONS)), st.floats(-50, 50), st.floats(-50, 50))
@example("gelu", 1.4142135623730951, 1.4142135623730954)
@example("gelu", -1.4142135623730951, -1.4142135623730954)
@example("gelu_tanh", -1.4, -1.45)
@example("silu", 2.399357280520, 2.399357280521)
@example("mish", 1.4907, 1.4908)
@example("mish", -2.25639, -2.25638)
@example("hardswish", -3.0, -2.9999999)
@example("hardswish", 2.9999999, 3.0)
@example("selu", 0.0, -1e-12)
@example("elu", 0.0, -1e-12)
@example("sigmoid", -1e-9, 1e-9)
@example("erf", -1e-9, 1e-9)
@example("tanhshrink", 40.0, 50.0)
@example("hardsigmoid", 0.0, 1.0)
def test_difference_quotients_lie_in_the_declared_slope(name: str, x: float, y: float):
    if x == y:
        return
    low, high = (Real(float(end.max())) for end in NODES[name].slope)
    with mpmath.workdps(60):
        quotient = (FUNCTIONS[name][1](Real(x)) - FUNCTIONS[name][1](Real(y))) / (Real(x) - Real(y))
        assert low - Real(10) ** -40 <= quotient <= high + Real(10) ** -40


# ------------------------------------------------------------------------------------------- outward rounding

finite = st.floats(-1e6, 1e6, allow_nan=False)
positive = st.floats(1e-30, 1e30)


@given(finite, st.floats(0, 1e6), st.floats(1e-12, 10.0))
@example(1.0, 1.0, 1e-5)
@example(-3.7, 0.0, 1e-5)
@example(0.0, 1.0, 1e-5)
@example(2.0004949336517828, 3.9974518890350437, 1e-5)  # the quotient alone would round below
def test_batch_norm_scales_are_rounded_outward_and_barely(gamma: float, variance: float, eps: float):
    scale = Fraction(float(scale_outward(*(torch.tensor([v], dtype=torch.float64) for v in (gamma, variance)), eps)))
    total = Fraction(variance) + Fraction(eps)
    if abs(gamma) < 1e-290:
        return  # the relative statement is about normal numbers
    assert scale**2 * total >= Fraction(gamma) ** 2
    assert scale**2 * total * (1 - Fraction(EPSILON)) ** 2 <= Fraction(gamma) ** 2
    assert (scale >= 0) == (gamma >= 0)


def test_many_batch_norm_scales_are_never_below_the_true_ones():
    generator = torch.Generator().manual_seed(4)
    count, eps = 40_000, 1e-5
    gamma = torch.rand(count, generator=generator, dtype=torch.float64) + 0.5
    variance = 4 * torch.rand(count, generator=generator, dtype=torch.float64)
    scale = scale_outward(gamma, variance, eps)
    for g, v, s in zip(gamma.tolist(), variance.tolist(), scale.tolist(), strict=True):
        assert Fraction(s) ** 2 * (Fraction(v) + Fraction(eps)) >= Fraction(g) ** 2


@given(st.one_of(positive, positive.map(lambda c: -c)))
@example(3.0)
@example(0.5)
@example(10.0)
def test_reciprocals_are_rounded_outward_and_barely(divisor: float):
    found, exact = reciprocal_outward(torch.tensor([divisor], dtype=torch.float64), "x")
    factor = abs(Fraction(float(found)) * Fraction(divisor))
    assert factor == 1 if exact else 1 <= factor <= 1 + Fraction(EPSILON)
    assert factor * (1 - Fraction(EPSILON)) <= 1
    assert exact == (abs(math.frexp(divisor)[0]) == 0.5)


@pytest.mark.parametrize(
    ("spelled", "rounds"),
    [("x / 3", True), ("x / -0.1", True), ("x / 4", False), ("x / W(4, 1)", True), ("nn.BatchNorm1d(4)", True)],
)
def test_what_is_rounded_outward_is_contracted_by_what_was_added(spelled: str, rounds: bool):
    graph = trace(Operation(spelled, (4, 6)).model(), (4, 6))
    assert [node.function for node in graph if isinstance(node, Activation)] == ["contraction"] * rounds


def test_averages_and_interpolations_have_rows_that_sum_to_one(traced: list[Graph]):
    del traced
    for spelled in ("nn.AdaptiveAvgPool2d((3, None))", "nn.Upsample((9, 8), mode='bilinear', align_corners=True)"):
        case = next(case for case in OPS.values() if case.source == spelled)
        node = trace(case.model(), case.input_shape).output
        assert isinstance(node, Affine)
        for factor in node.map.factors:  # type: ignore[union-attr]
            if factor is not None:
                assert bool((factor.numerator.sum(1) == factor.denominator).all())


# ------------------------------------------------------------------------------------------------- refusals


def value(*shape: int) -> Value:
    return source(Recorder(path="some.where"), shape)


def test_refused_operations_say_where_and_why():
    assert len(REFUSALS) > 200
    for rule in REFUSALS.values():
        for arguments in ((value(2),), (value(2), value(2)), ([value(2)],)):
            with pytest.raises(UnsupportedOperation, match=r"at `some\.where` .{20,}") as refusal:
                rule(*arguments)
            assert refusal.value.path == "some.where"


REFUSED_ARGUMENTS = [
    "nn.Softplus(1, 19.9)",
    "nn.Softplus(-1)",
    "F.softplus(x, 0)",
    "F.softshrink(x, -0.1)",
    "nn.Threshold(0.5, 0.4)",
    "nn.CELU(-0.1)",
    "x.flatten()",
    "x.view(4, -1)",
    "x.view(-1, 5)",
    "x.mean()",
    "x.sum(())",
    "x.amax()",
    "x.mean(1, dtype=torch.float32)",
    "x.max()",
    "x.squeeze()",
    "x.norm(p=1, dim=1)",
    "torch.linalg.vector_norm(x)",
    "torch.stack([x, x])",
    "torch.cat([x, W(6)], 1)",
    "x * x.relu()",
    "x / 0",
    "x / x",
    "x // 2",
    "x + W(3, 4, 6)",
    "x + W(2, 1, 4, 6)",
    "x * float('inf')",
    "x + 2**60",
    "F.dropout(x)",
    "F.softmax(x)",
    "F.interpolate(x, scale_factor=0.3, mode='linear')",
    "F.interpolate(x[:, None], size=(3, 3), mode='bicubic')",
    "F.interpolate(x[:, None], size=(3, 3), mode='bilinear', antialias=True)",
    "x.to(torch.float16)",
    "x.add(x, alpha=float('nan'))",
    "torch.div(x, 2, rounding_mode='floor')",
    "F.batch_norm(x, W(4), W(4).abs(), training=True)",
    "F.max_pool1d(x, 2, return_indices=True)",
    "F.prelu(x, W(3))",
    "W(2, 4, 6) @ x",
    "x @ x.mT",
    "x.clamp(x.mean(1, keepdim=True), 1)",
]


@pytest.mark.parametrize(
    ("spelled", "reason"),
    [
        ("x.sum(())", "name the dimensions"),
        ("x.mean(dim=[])", "name the dimensions"),
        ("x + W(2, 1, 4, 6)", "batch dimension of its own"),
        ("x + x.mean(1)", "same number of dimensions"),
        ("x.view(-1, 5)", "does not keep the batch"),
        ("x.squeeze()", "batch of one"),
        ("x[0]", "indexes the batch"),
        ("F.batch_norm(x, W(4), W(4).abs(), training=True)", "statistics of the batch"),
        ("x + float('inf')", "NaN or infinite"),
        ("F.dropout(x)", "at random"),
        ("torch.div(x, 2, rounding_mode='floor')", "rounds a quotient"),
        ("x.norm(p=1, dim=1)", "only 2 is covered"),
        ("F.interpolate(x, scale_factor=0.3, mode='linear')", "short binary fractions"),
        ("x.to(torch.float16)", "casts to another"),
        ("x * x.relu()", "depend on the input"),
        ("x / 0", "divides by zero"),
        ("x / x", "divides by a tensor"),
        ("2 / x", "divides by a tensor"),
        ("torch.div(2, x)", "divides by a tensor"),
        ("torch.addmm(W(2), x[:, 0], W(6, 2), alpha=3)", "beta, alpha"),
        ("torch.addmm(W(2), x[:, 0], W(6, 2), beta=3)", "beta, alpha"),
        ("torch.addmm(W(2, 2), x[:, 0], W(6, 2))", "a bias per sample"),
        ("F.max_pool1d(x, 3, padding=2)", "windows of 3 with padding 2"),
        ("F.max_pool1d(x, 7)", "6 positions by windows of 7"),
        ("F.max_pool1d(x[:, :, :2], 2, 1, 3, 5)", "lies in the padding"),
        ("F.pad(x, (0, 0, 0, 0, 1, 1))", "pads samples"),
        ("F.pad(x, (1.0, 0))", "pads samples"),
        ("torch.stack([x, x])", "along the batch"),
        ("torch.stack([x, x], -4)", "along the batch"),
        ("torch.stack([x, x], 4)", "along the batch"),
        ("torch.stack([x, x], -5)", "along the batch"),
        ("x.flip(0)", "from one sample"),
        ("x.roll(1, 0)", "from one sample"),
        ("torch.cat([x, W(4, 6)], 1)", "with constants"),
        ("x @ x.mT", "depend on the input"),
        ("F.leaky_relu(x, float('nan'))", "NaN or infinite"),
        ("F.elu(x, float('inf'))", "NaN or infinite"),
        ("F.softshrink(x, -0.1)", "which jumps"),
        ("F.threshold(x, 0.5, 0.4)", "jumps from"),
        ("torch.rrelu(x, 0.1, 0.3, True)", "random slopes"),
    ],
)
def test_the_rule_itself_says_what_is_wrong_with_an_argument(spelled: str, reason: str):
    with pytest.raises(LipcertError, match=reason):
        trace(Operation(spelled, (4, 6)).model(), (4, 6))


@pytest.mark.parametrize("spelled", REFUSED_ARGUMENTS)
def test_arguments_that_change_the_meaning_are_refused(spelled: str):
    with pytest.raises(LipcertError):
        trace(Operation(spelled, (4, 6)).model(), (4, 6))


def test_rules_say_which_arguments_may_be_values():
    for target, rule in lowering._RULES.items():
        if rule.__module__.startswith("lipcert.rules"):
            parameters = inspect.signature(rule).parameters.values()
            assert all(p.annotation is not inspect.Parameter.empty or p.name == "_name" for p in parameters), target


@pytest.mark.parametrize("function", ["sort", "softmax", "max_windows", "logsumexp", "householder"])
def test_built_in_opaque_functions_have_gains_in_the_three_norms(function: str, traced: list[Graph]):
    nodes = [node for graph in traced for node in graph if isinstance(node, Opaque) and node.function == function]
    assert nodes
    assert all({L1, L2, LINF} <= node.gains.keys() for node in nodes)


def test_modules_of_torch_without_a_rule_are_leaves_and_refused():
    for module in (nn.LPPool2d(2, 2), nn.FractionalMaxPool2d(2, 2), nn.AdaptiveLogSoftmaxWithLoss(4, 4, [2])):
        with pytest.raises(LipcertError):
            trace(module, (1, 4, 4))
