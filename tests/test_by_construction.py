"""Layers that are 1-Lipschitz by construction: Jacobians, dense matrices, exact sums and adversarial weights."""

import copy
import itertools
import math
import pickle
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from lipcert import certify, opnorm
from lipcert.certifiers import Product
from lipcert.errors import CheckFailed, InvalidInput, NotFinite, UnsupportedOperation
from lipcert.linear import Conv, Dense, dense
from lipcert.parametrizations.aol import aol, from_polyphase, overlaps, overlaps_up, polyphase, squared_norm
from lipcert.parametrizations.residual import ConvexMix, CPLConv2d, CPLLinear, SLLConv2d, SLLLinear
from lipcert.parametrizations.sandwich import SandwichLinear

# name: constructor, shape of a sample, claimed l2 constant
LAYERS = {
    "aol linear": (lambda: aol(nn.Linear(5, 4)), (5,), 1.0),
    "aol linear, bound": (lambda: aol(nn.Linear(3, 6), bound=0.25), (3,), 0.25),
    "aol conv1d": (lambda: aol(nn.Conv1d(2, 3, 3, padding=1)), (2, 7), 1.0),
    "aol conv2d": (lambda: aol(nn.Conv2d(2, 3, 3, padding=1)), (2, 4, 5), 1.0),
    "aol conv2d, stride": (lambda: aol(nn.Conv2d(2, 5, 3, stride=2, padding=1)), (2, 5, 6), 1.0),
    "aol conv2d, groups": (lambda: aol(nn.Conv2d(4, 4, (3, 2), groups=2, dilation=(1, 2))), (4, 5, 4), 1.0),
    "aol conv3d": (lambda: aol(nn.Conv3d(1, 2, (2, 1, 2))), (1, 2, 2, 3), 1.0),
    "sll linear": (lambda: SLLLinear(4, 7), (4,), 1.0),
    "sll conv2d": (lambda: SLLConv2d(2, 3), (2, 4, 5), 1.0),
    "sll conv2d, circular, even": (lambda: SLLConv2d(2, (2, 3), 3, padding_mode="circular"), (2, 4, 5), 1.0),
    "cpl linear": (lambda: CPLLinear(4, 7), (4,), 1.0),
    "cpl conv2d": (lambda: CPLConv2d(2, 3), (2, 4, 5), 1.0),
    "cpl conv2d, circular, even": (lambda: CPLConv2d(2, 2, 3, padding_mode="circular"), (2, 4, 5), 1.0),
    "sandwich": (lambda: SandwichLinear(4, 3), (4,), 1.0),
    "sandwich, wide": (lambda: SandwichLinear(2, 5), (2,), 1.0),
    "convex mix": (lambda: ConvexMix(aol(nn.Linear(4, 4))), (4,), 1.0),
}
ESTIMATED_IN_TRAINING = {name for name in LAYERS if name.startswith("cpl")}
every_layer = pytest.mark.parametrize("name", LAYERS)
by_construction = pytest.mark.parametrize("name", [name for name in LAYERS if name not in ESTIMATED_IN_TRAINING])
residual = pytest.mark.parametrize("name", [n for n in LAYERS if n.startswith(("sll", "cpl", "sandwich"))])


def make(name: str, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(seed)
    layer = LAYERS[name][0]().to(dtype)
    for key, parameter in layer.named_parameters():
        if key.endswith("bias"):
            nn.init.normal_(parameter)
    return layer


def batch(name: str, count: int = 3, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, *LAYERS[name][1], generator=torch.Generator().manual_seed(seed), dtype=dtype)


def jacobian_norm(layer: nn.Module, x: Tensor) -> Tensor:
    """The norm of the derivative at one sample, differentiable in the weights."""
    J = torch.func.jacrev(lambda z: layer(z[None]).flatten())(x)
    return torch.linalg.matrix_norm(J.reshape(len(J), -1), 2)


def parameters_under_claim(layer: nn.Module) -> list[nn.Parameter]:
    return [parameter for key, parameter in layer.named_parameters() if key.endswith("original")]


# The claim


@every_layer
def test_no_derivative_in_evaluation_is_longer_than_the_claim(name: str):
    bound = LAYERS[name][2]
    for seed, size in enumerate((1e-3, 1.0, 1e3)):
        layer = make(name, seed).eval()
        for x in batch(name, 2, seed) * size:
            assert jacobian_norm(layer, x) <= bound * (1 + 1e-12)


@by_construction
def test_no_derivative_in_training_is_longer_than_the_claim(name: str):
    bound = LAYERS[name][2]
    for seed in range(4):
        layer = make(name, seed)
        for x in batch(name, 2, seed):
            assert jacobian_norm(layer, x) <= bound * (1 + 1e-12)


@every_layer
def test_no_weight_found_by_ascent_makes_the_derivative_longer_than_the_claim(name: str):
    layer, x, bound = make(name), batch(name, 1)[0], LAYERS[name][2]
    point = x.clone().requires_grad_()
    rule = torch.optim.Adam([point, *layer.parameters()], lr=0.1, maximize=True)
    reached = []
    for _ in range(12):
        rule.zero_grad()
        norm = jacobian_norm(layer, point)
        norm.backward()
        if name not in ESTIMATED_IN_TRAINING:
            reached.append(norm.item())
        rule.step()
    reached.append(jacobian_norm(layer.eval(), point.detach()).item())
    assert max(reached) <= bound * (1 + 1e-12)
    assert max(reached) >= bound * 0.75, "the ascent should come near the claim, or it tests nothing"


numbers = st.floats(-1e6, 1e6, allow_subnormal=False)


@residual
@given(data=st.data())
def test_no_difference_quotient_exceeds_one(name: str, data: st.DataObject):
    layer = made(name)
    count = math.prod(LAYERS[name][1])
    points = data.draw(st.lists(numbers, min_size=2 * count, max_size=2 * count))
    x, y = torch.tensor(points, dtype=torch.float64).reshape(2, 1, *LAYERS[name][1])
    with torch.no_grad():
        grown, apart = (layer(x) - layer(y)).norm(), (x - y).norm()
    # What is not the claim: the rounding in applying the layer to numbers of this size.
    assert grown <= apart + 1e-12 * (x.abs().max() + y.abs().max() + 1.0)


_MADE: dict[str, nn.Module] = {}


def made(name: str) -> nn.Module:
    if name not in _MADE:
        _MADE[name] = make(name).eval()
    return _MADE[name]


@residual
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_stored_weight_is_proved_in_every_format(name: str, dtype: torch.dtype):
    for seed in range(3):
        layer = make(name, seed).to(dtype).eval()
        assert layer.certify() == 1.0
        assert layer(batch(name).to(dtype)).dtype == dtype


@residual
def test_one_per_cent_is_enough_to_break_the_proof(name: str):
    layer = make(name).eval()
    owner = layer if name.startswith("sandwich") else layer.inner
    for parameter in parameters_under_claim(layer):
        if name.startswith("sll"):
            # Rows that are orthogonal or zero, with which the claim is reached.
            parameter.data.zero_()
            parameter.data.flatten(1)[:2].fill_diagonal_(3.0)
    assert layer.certify() == 1.0
    parametrize.remove_parametrizations(owner, "weight")
    assert layer.certify() == 1.0
    with torch.no_grad():
        # T of SLL, |W|**2 of CPL and the stacked Gram matrix of the sandwich are 1 per cent too small.
        owner.weight.mul_(0.99**-0.5)
        owner.bias.fill_(1e3)
    with pytest.raises(CheckFailed, match="proved to be at most"):
        layer.certify()
    if not name.startswith("sandwich") and name != "cpl conv2d":
        # Every unit is on: the derivative is I - 2 V' V, and |V|**2 = 1 / 0.99 (zero padding: on large images only).
        assert jacobian_norm(layer, batch(name)[0]) > 1.005


@residual
def test_a_proof_follows_the_weight(name: str):
    layer = make(name).eval()
    layer(batch(name))
    for parameter in parameters_under_claim(layer):
        parameter.data.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)))
    assert layer.certify() == 1.0
    parameters_under_claim(layer)[0].data.fill_(math.nan)
    with pytest.raises(NotFinite):
        layer(batch(name))


# AOL


def test_aol_is_the_formula_of_the_paper():
    layer = aol(nn.Linear(3, 4, dtype=torch.float64), bound=3.0)
    W = layer.parametrizations.weight.original.detach().clone()
    for j in range(3):
        total = sum(abs(float(W[:, i] @ W[:, j])) for i in range(3))
        torch.testing.assert_close(layer.weight[:, j], 3.0 * W[:, j] / math.sqrt(total))


@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    seed=st.integers(0, 10**6),
    spread=st.integers(0, 20),
    single=st.booleans(),
)
def test_no_singular_value_of_an_aol_matrix_is_above_one(shape, seed: int, spread: int, single: bool):
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(shape, generator=generator, dtype=torch.float64)
    W = W * 10.0 ** (spread * (torch.rand(shape[1], generator=generator, dtype=torch.float64) - 0.5))
    layer = aol(nn.Linear(*shape[::-1], bias=False, dtype=torch.float32 if single else torch.float64))
    layer.weight = W.float() if single else W
    norm = torch.linalg.matrix_norm(layer.weight.double(), 2)
    assert 0.0 < norm <= 1 + (1e-5 if single else 1e-13)
    assert torch.linalg.matrix_norm(layer.eval().weight.double(), 2) <= 1.0


@pytest.mark.parametrize("shape", [(4, 4), (6, 3)])
def test_orthogonal_columns_keep_their_direction_and_get_length_one(shape):
    torch.manual_seed(0)
    Q = nn.init.orthogonal_(torch.empty(shape, dtype=torch.float64))
    layer = aol(nn.Linear(shape[1], shape[0], bias=False, dtype=torch.float64))
    layer.weight = Q * 7.0
    torch.testing.assert_close(layer.weight.detach(), Q, rtol=0, atol=1e-14)


CONVOLUTIONS = [
    (kernel, stride, dilation, groups, mode)
    for kernel, stride, dilation, groups, mode in itertools.product(
        [(1, 1), (2, 3), (3, 3)], [(1, 1), (2, 2), (1, 3), (3, 2)], [(1, 1), (2, 1)], [1, 2], ["zeros", "circular"]
    )
]


@pytest.mark.parametrize(("kernel", "stride", "dilation", "groups", "mode"), CONVOLUTIONS)
def test_an_aol_convolution_is_at_most_one_at_every_size(kernel, stride, dilation, groups, mode):
    torch.manual_seed(0)
    padding = tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True))
    options = dict(stride=stride, dilation=dilation, groups=groups, padding=padding, padding_mode=mode)
    layer = aol(nn.Conv2d(2, 4, kernel, bias=False, dtype=torch.float64, **options))
    for positive in (False, True):
        W = torch.randn(layer.weight.shape, dtype=torch.float64)
        layer.weight = W.abs() if positive else W
        for size in ((5, 5), (6, 4)):
            units = torch.eye(2 * math.prod(size), dtype=torch.float64).reshape(-1, 2, *size)
            assert torch.linalg.matrix_norm(layer(units).flatten(1), 2) <= 1 + 1e-13


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "groups"),
    [
        ((3,), (1,), (1,), 1),
        ((3,), (2,), (1,), 2),
        ((4,), (3,), (2,), 1),
        ((3, 2), (2, 1), (1, 2), 2),
        ((5,), (4,), (1,), 1),
    ],
)
def test_an_aol_convolution_rescales_the_columns_of_its_matrix(kernel, stride, dilation, groups):
    """On a torus that the stride divides and that no pair of taps spans, it is the formula for the matrix itself."""
    torch.manual_seed(0)
    size = tuple(
        2 * d * (k - 1) + 1 + (-(2 * d * (k - 1) + 1)) % s for k, d, s in zip(kernel, dilation, stride, strict=True)
    )
    padding = tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True))
    make_conv = {1: nn.Conv1d, 2: nn.Conv2d}[len(kernel)]
    options = dict(stride=stride, dilation=dilation, groups=groups, padding=padding, padding_mode="circular")
    layer = make_conv(2, 4, kernel, bias=False, dtype=torch.float64, **options)
    # torch pads less than the reach where that is odd; then the last outputs are missing and columns are shorter.
    if any(d * (k - 1) % 2 for d, k in zip(dilation, kernel, strict=True)):
        layer = make_conv(2, 4, kernel, bias=False, dtype=torch.float64, **{**options, "padding": 0})
        reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        wrap = nn.functional.pad
        before = [amount for r in reversed(reach) for amount in (0, r)]

        def run(x: Tensor) -> Tensor:
            return layer(wrap(x, before, mode="circular"))
    else:

        def run(x: Tensor) -> Tensor:
            return layer(x)

    units = torch.eye(2 * math.prod(size), dtype=torch.float64).reshape(-1, 2, *size)
    A = run(units).flatten(1).mT.detach()
    aol(layer, input_size=size)
    expected = A / (A.mT @ A).abs().sum(0).sqrt()
    torch.testing.assert_close(run(units).flatten(1).mT.detach(), expected)


@given(
    taps=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    phases=st.lists(st.integers(1, 4), min_size=3, max_size=3),
    groups=st.integers(1, 2),
)
def test_polyphase_only_moves_numbers(taps, phases, groups: int):
    phases = [min(m, k) for m, k in zip(phases, taps, strict=False)]
    kernel = torch.arange(1.0, 1.0 + groups * 6 * math.prod(taps)).reshape(groups, 2, 3, *taps)
    columns = polyphase(kernel, phases)
    assert columns.shape[:3] == (groups, 3 * math.prod(phases), 2)
    assert sorted(columns[columns != 0].tolist()) == kernel.flatten().tolist()
    assert torch.equal(from_polyphase(columns, phases, taps), kernel)


def test_the_inequality_is_rounded_up():
    """Against exact rational sums."""
    generator = torch.Generator().manual_seed(0)
    for taps in ((), (3,), (2, 2)):
        vectors = torch.randn(1, 3, 4, *taps, generator=generator, dtype=torch.float64)
        exact = [[Fraction(0)] * 3 for _ in range(3)]
        for shift in itertools.product(*(range(1 - k, k) for k in taps)):
            for i, j in itertools.product(range(3), repeat=2):
                total = Fraction(0)
                for at in itertools.product(*(range(k) for k in taps)):
                    there = tuple(a + s for a, s in zip(at, shift, strict=True))
                    if all(0 <= t < k for t, k in zip(there, taps, strict=True)):
                        pairs = zip(
                            vectors[(0, i, slice(None), *there)], vectors[(0, j, slice(None), *at)], strict=True
                        )
                        total += sum(Fraction(float(a)) * Fraction(float(b)) for a, b in pairs)
                exact[i][j] += abs(total)
        upper, near = overlaps_up(vectors)[0], overlaps(vectors)[0]
        for i, j in itertools.product(range(3), repeat=2):
            assert Fraction(float(upper[i, j])) >= exact[i][j]
            assert float(near[i, j]) == pytest.approx(float(exact[i][j]), rel=1e-12)
        torch.testing.assert_close(upper, near, rtol=1e-11, atol=0)


@given(seed=st.integers(0, 10**6), exponent=st.integers(-400, 400))
def test_the_proved_norm_is_an_upper_bound_at_every_scale(seed: int, exponent: int):
    V = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    true = float(torch.linalg.matrix_norm(V[0], 2))
    proved = squared_norm(V * 2.0**exponent)
    if -500 < exponent < 500:
        assert math.sqrt(proved) >= true * 2.0**exponent * (1 - 1e-14)
        assert math.sqrt(proved) <= 3.0**0.5 * true * 2.0**exponent


def test_the_proved_norm_is_tight_for_what_aol_makes():
    """1 / d is the Perron vector of the overlaps, with eigenvalue 1: the proof finds it."""
    torch.manual_seed(0)
    layer = aol(nn.Linear(20, 30, bias=False, dtype=torch.float64))
    assert squared_norm(layer.weight.detach().mT[None]) == pytest.approx(1.0, abs=1e-9)


def test_the_proofs_of_zero_and_of_nothing_finite():
    assert squared_norm(torch.zeros(1, 2, 3, dtype=torch.float64)) == 0.0
    assert math.isnan(squared_norm(torch.full((1, 2, 3), math.inf, dtype=torch.float64)))


# Numbers of all sizes


@every_layer
def test_zero_weights_stay_finite(name: str):
    layer = make(name, dtype=torch.float32)
    with torch.no_grad():
        for parameter in parameters_under_claim(layer):
            parameter.zero_()
    x = batch(name, dtype=torch.float32).requires_grad_()
    for mode in (True, False):
        y = layer.train(mode)(x)
        y.square().sum().backward()
        assert torch.isfinite(y).all()
        assert all(torch.isfinite(p.grad).all() for p in layer.parameters() if p.grad is not None)
        if name.startswith(("sll", "cpl")):
            assert torch.equal(y, x)


def test_a_zero_column_or_row_stays_zero_and_leaves_the_others_alone():
    layer = aol(nn.Linear(3, 4, bias=False))
    W = torch.randn(4, 3)
    W[:, 1] = 0
    layer.weight = W
    others = aol(nn.Linear(2, 4, bias=False))
    others.weight = W[:, [0, 2]]
    assert torch.equal(layer.weight[:, 1], torch.zeros(4))
    torch.testing.assert_close(layer.weight[:, [0, 2]], others.weight)
    layer.weight.sum().backward()
    assert torch.isfinite(layer.parametrizations.weight.original.grad).all()


@every_layer
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_extreme_weights_stay_finite_and_keep_the_claim(name: str, scale: float):
    layer = make(name, dtype=torch.float32)
    with torch.no_grad():
        for parameter in parameters_under_claim(layer):
            if parameter.ndim > 1:  # the logit of a mixture has no scale
                parameter.mul_(scale)
    x = batch(name, dtype=torch.float32)
    layer(x).square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters() if p.grad is not None)
    for sample in x:
        assert jacobian_norm(layer.eval(), sample).item() <= LAYERS[name][2] * (1 + 1e-5)


def test_the_scale_of_the_weight_does_not_matter():
    for name in ("aol linear", "aol conv2d, stride", "sll linear", "sll conv2d", "cpl linear"):
        layer, x = make(name, dtype=torch.float32), batch(name, dtype=torch.float32)
        before = layer(x)
        with torch.no_grad():
            for parameter in parameters_under_claim(layer):
                parameter.mul_(2.0**90)
        torch.testing.assert_close(layer(x), before)


# Autograd and transforms


@by_construction
def test_derivatives_are_exact(name: str):
    layer, x = make(name), batch(name, 2).requires_grad_()
    names, values = zip(*layer.named_parameters(), strict=True)

    def run(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    copies = [value.detach().clone().requires_grad_() for value in values]
    torch.autograd.gradcheck(run, (x, *copies), fast_mode=True)
    torch.autograd.gradgradcheck(run, (x, *copies), fast_mode=True)


@every_layer
def test_forwards_are_pure(name: str):
    for mode in (True, False):
        layer, x = make(name).train(mode), batch(name)
        first = layer(x)
        state = {key: value.clone() for key, value in layer.state_dict().items()}
        assert torch.equal(layer(x), first)
        assert all(torch.equal(value, state[key]) for key, value in layer.state_dict().items())


@every_layer
def test_recomputation_under_checkpointing_is_exact(name: str):
    layer, x = make(name), batch(name)
    layer(x).square().sum().backward()
    plain = [parameter.grad.clone() for parameter in layer.parameters()]
    layer.zero_grad()
    checkpoint(layer, x, use_reentrant=False).square().sum().backward()
    assert all(torch.equal(parameter.grad, grad) for parameter, grad in zip(layer.parameters(), plain, strict=True))


@every_layer
@pytest.mark.parametrize("mode", [True, False])
def test_layers_stack_into_an_ensemble(name: str, mode: bool):
    layers = [make(name, seed).train(mode) for seed in range(3)]
    x = batch(name)
    expected = torch.stack([layer(x) for layer in layers])
    parameters, buffers = torch.func.stack_module_state(layers)
    base = copy.deepcopy(layers[0])

    def run(parameters, buffers) -> Tensor:
        return torch.func.functional_call(base, (parameters, buffers), (x,))

    torch.testing.assert_close(torch.vmap(run)(parameters, buffers), expected, rtol=1e-6, atol=1e-7)


@every_layer
def test_state_copies_and_pickles_continue_the_same(name: str):
    layer, x = make(name), batch(name)
    other = make(name, seed=9)
    other.load_state_dict(layer.state_dict())
    for mode in (True, False):
        expected = layer.train(mode)(x)
        for same in (other, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert torch.equal(same.train(mode)(x), expected)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", ["aol conv2d, stride", "sll linear", "cpl conv2d", "sandwich", "convex mix"])
@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.filterwarnings("ignore:<class 'torch.autograd.function.Function'>:DeprecationWarning")  # torch's own
def test_layers_compile_in_one_graph(name: str, mode: bool):
    layer, x = make(name).train(mode), batch(name)
    expected = layer(x)
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(layer), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected)


# The rest of lipcert


@every_layer
def test_lipcert_reads_the_layers(name: str):
    """The product of norms gives a residual layer 1 + 2 |V|**2 at most 3, and a sandwich at most 2."""
    layer = make(name).eval()
    limit = {"sll": 3.0, "cpl": 3.0, "sandwich": 2.0}.get(name.split()[0].rstrip(","), LAYERS[name][2])
    proved = certify(layer, LAYERS[name][1], by=Product()).bound
    assert jacobian_norm(layer, batch(name, 1)[0]) <= proved <= limit


@pytest.mark.parametrize("name", [name for name in LAYERS if name.startswith("aol")])
def test_removing_the_parametrization_leaves_a_weight_that_keeps_the_claim(name: str):
    layer = make(name, dtype=torch.float32)
    parametrize.remove_parametrizations(layer, "weight")
    bare = layer.weight.detach().double()
    units = torch.eye(math.prod(LAYERS[name][1])).reshape(-1, *LAYERS[name][1])
    with torch.no_grad():
        layer.bias.zero_()
    assert torch.linalg.matrix_norm(layer.double()(units.double()).flatten(1), 2) <= LAYERS[name][2]
    if bare.ndim == 2:
        assert opnorm(Dense(bare, LAYERS[name][1])).value <= LAYERS[name][2]


@pytest.mark.parametrize("mode", ["zeros", "circular"])
@pytest.mark.parametrize("kernel", [1, 2, 3, (2, 3), (4, 1)])
def test_the_second_convolution_is_the_transpose_of_the_first(kernel, mode: str):
    """With V taken from the layer and a huge bias every unit is on: y = x - 2 V' (V x + b)."""
    torch.manual_seed(0)
    layer = SLLConv2d(2, kernel, 3, padding_mode=mode).double().eval()
    with torch.no_grad():
        layer.inner.bias.fill_(1e3)
    V = layer.inner.weight.detach()
    pads = tuple(((k - 1) // 2, k // 2) for k in V.shape[2:])
    A = dense(Conv(V, (2, 4, 5), (4, 5), (1, 1), pads, (1, 1), 1, mode))
    x = torch.randn(2, 2, 4, 5, dtype=torch.float64)
    hidden = x.flatten(1) @ A.mT + 1e3
    torch.testing.assert_close(layer(x).flatten(1), x.flatten(1) - 2 * hidden @ A)


def test_an_sll_layer_is_the_formula_of_the_paper():
    """y = x - 2 W T^-1 relu(W' x + c) with q in the lengths of the columns of W."""
    torch.manual_seed(0)
    layer = SLLLinear(3, 4).double()
    P = layer.inner.parametrizations.weight.original.detach()
    for q in (torch.ones(4, dtype=torch.float64), torch.rand(4, dtype=torch.float64) + 0.1):
        W = (P / q[:, None]).mT
        T = (W.mT @ W).abs() @ q / q
        c = torch.randn(4, dtype=torch.float64)
        with torch.no_grad():
            layer.inner.bias.copy_(c / T.sqrt())
        x = torch.randn(5, 3, dtype=torch.float64)
        expected = x - 2 * torch.relu(x @ W + c) / T @ W.mT
        torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(("inputs", "outputs"), [(4, 3), (2, 5), (1, 1)])
def test_a_sandwich_holds_an_orthogonal_matrix(inputs: int, outputs: int):
    torch.manual_seed(0)
    layer = SandwichLinear(inputs, outputs).double()
    stacked = layer.weight.detach()
    torch.testing.assert_close(stacked.mT @ stacked, torch.eye(outputs, dtype=torch.float64))
    x = torch.randn(3, inputs, dtype=torch.float64)
    A, B = stacked[:outputs].mT, stacked[outputs:].mT
    psi = torch.rand(outputs, dtype=torch.float64) + 0.5
    c = torch.randn(outputs, dtype=torch.float64)
    with torch.no_grad():
        layer.bias.copy_(psi * c / 2**0.5)
    expected = (2**0.5 * torch.relu(2**0.5 * (x @ B.mT) / psi + c) * psi) @ A
    torch.testing.assert_close(layer(x), expected)


def test_a_mixture_has_weights_that_add_up_to_one():
    mix = ConvexMix(nn.ReLU(), 0.3)
    assert mix.weight.tolist() == pytest.approx([0.3, 0.7], abs=1e-6)
    for logit in torch.linspace(-40, 40, 201):
        mix.parametrizations.weight.original.data.copy_(logit)
        a, b = mix.train().weight.tolist()
        assert Fraction(a) + Fraction(b) == 1
        assert a >= 0
        assert b >= 0
        a, b = mix.eval().weight.tolist()
        assert 1 - Fraction(1, 2**22) <= Fraction(a) + Fraction(b) <= 1


# Refusals


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"),
        nn.Conv1d(1, 1, 3, padding=1, padding_mode="replicate"),
        nn.ConvTranspose2d(1, 1, 3),
        nn.Conv2d(1, 1, 3, padding=2, padding_mode="circular"),
        nn.Embedding(3, 2),
        nn.ReLU(),
    ],
    ids=["reflect", "replicate", "transposed", "wide circular", "embedding", "relu"],
)
def test_aol_refuses_what_its_inequality_does_not_cover(layer: nn.Module):
    with pytest.raises(UnsupportedOperation):
        aol(layer)


def test_arguments_that_cannot_mean_a_claim_are_refused():
    for bound in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InvalidInput, match="positive finite"):
            aol(nn.Linear(2, 2), bound=bound)
    with pytest.raises(InvalidInput, match="already parametrized"):
        aol(aol(nn.Linear(2, 2)))
    with pytest.raises(InvalidInput):
        aol(nn.Linear(2, 2), input_size=3)
    with pytest.raises(InvalidInput, match="transposed"):
        SLLConv2d(1, 3, padding_mode="reflect")
    with pytest.raises(InvalidInput, match="hidden=0"):
        CPLLinear(3, 0)
    with pytest.raises(InvalidInput, match="leave no layer"):
        SandwichLinear(0, 2)
    with pytest.raises(InvalidInput, match="strictly between"):
        ConvexMix(nn.ReLU(), 1.0)
    with pytest.raises(InvalidInput, match="broadcast"):
        ConvexMix(nn.Linear(3, 1))(torch.ones(2, 3))
