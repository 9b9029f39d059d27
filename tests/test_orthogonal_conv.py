"""Orthogonal convolutions, against dense singular values of the operators they are."""

import copy
import math
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, jacrev, jvp, stack_module_state, vmap
from torch.nn.utils.parametrize import remove_parametrizations
from torch.utils.checkpoint import checkpoint

from lipcert import certify
from lipcert.certifiers import Product
from lipcert.errors import InvalidInput, NotFinite, UnsupportedOperation
from lipcert.linear import Conv, dense
from lipcert.parametrizations.conv_blocks import Plan, compose, decompose
from lipcert.parametrizations.conv_cayley import CayleyConv2d, fourier_cayley, frame, span, unframe, unspan
from lipcert.parametrizations.conv_exponential import (
    SkewExponentialConv2d,
    SkewKernel,
    taylor_remainder,
    unfolded_norm,
)
from lipcert.parametrizations.orthogonal_conv import FourierCayley, lattice_norm, orthogonal_convolution

LAYERS = {(1, False): nn.Conv1d, (2, False): nn.Conv2d, (3, False): nn.Conv3d}
LAYERS |= {(1, True): nn.ConvTranspose1d, (2, True): nn.ConvTranspose2d, (3, True): nn.ConvTranspose3d}
SEEDS = st.integers(0, 2**31)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


def deviation(matrix: Tensor) -> float:
    """How far singular values, as many as the smaller side has, are from 1."""
    return float((torch.linalg.svdvals(matrix.double()) - 1).abs().max())


def norm(matrix: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix.double(), 2))


def matrix_of(layer: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """What a layer does to every unit vector, minus what it does to zero, in float64 with its weight as it is."""
    wide = copy.deepcopy(layer).requires_grad_(False)
    weight = wide.weight.detach().clone()
    remove_parametrizations(wide, "weight")
    wide = wide.double()
    wide.weight.copy_(weight)
    units = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
    return (wide(units) - wide(torch.zeros_like(units))).flatten(1).T


def on_torus(layer: nn.Module, weight: Tensor | None = None) -> Tensor:
    """The circular operator with a layer's weight, stride, dilation and groups, on a torus the stride divides."""
    weight = (layer.weight if weight is None else weight).detach().double()
    stride, dilation, groups = layer.stride, layer.dilation, layer.groups
    reach = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    outs = tuple(-(-max(r, 2) // s) for r, s in zip(reach, stride, strict=True))
    sizes = tuple(out * s for out, s in zip(outs, stride, strict=True))
    pads = tuple((0, r) for r in reach)
    shape = (weight.shape[1] * groups, *sizes)
    return dense(Conv(weight, shape, outs, tuple(stride), pads, tuple(dilation), groups, "circular"))


@st.composite
def convolutions(draw, dtype: torch.dtype = torch.float64):
    """An orthogonal convolution of any kind, plain or transposed, with the default padding."""
    dims, transposed = draw(st.sampled_from([1, 1, 2, 2, 2, 3])), draw(st.booleans())
    groups, most = draw(st.integers(1, 2)), 5 if dims < 3 else 2
    first, second = groups * draw(st.integers(1, most)), groups * draw(st.integers(1, most))
    each = {n: draw(st.tuples(*[st.integers(1, n)] * dims)) for n in (2, 3, 4 if dims < 3 else 2)}
    kernel, stride, dilation = each[4 if dims < 3 else 2], each[2] if dims > 1 else each[3], each[2][::-1]
    torch.manual_seed(draw(SEEDS))
    options = dict(stride=stride, dilation=dilation, groups=groups, bias=draw(st.booleans()), dtype=dtype)
    layer = LAYERS[dims, transposed](first, second, kernel, **options)
    skips = any(k < s or math.gcd(s, d) > 1 for k, s, d in zip(kernel, stride, dilation, strict=True))
    reads = math.prod(min(k, s // math.gcd(s, d)) for k, s, d in zip(kernel, stride, dilation, strict=True))
    outs, ins = layer.weight.shape[0] // groups, layer.weight.shape[1]
    assume(not skips or outs <= ins * reads)
    return orthogonal_convolution(layer)


@given(convolutions())
@settings(max_examples=60)
def test_all_singular_values_are_one_on_a_torus(layer):
    assert deviation(on_torus(layer)) < 1e-12


@given(convolutions(torch.float32))
def test_in_float32_they_are_within_a_millionth_in_training_and_evaluation_and_proved_in_evaluation(layer):
    assert deviation(on_torus(layer)) < 1e-6
    layer.eval()
    matrix = on_torus(layer)
    assert deviation(matrix) < 1e-6
    assert norm(matrix) < 1.0


@given(convolutions(), st.integers(0, 3), st.integers(0, 2))
def test_with_zero_padding_none_is_above_one(layer, padding, more):
    layer.padding = (padding,) * len(layer.kernel_size)
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        sizes = [
            max(1, d * (k - 1) + 1 + more - 2 * padding) for k, d in zip(layer.kernel_size, layer.dilation, strict=True)
        ]
    else:
        sizes = [1 + more + -(-2 * padding // s) for s in layer.stride]
    matrix = matrix_of(layer.eval(), (layer.in_channels, *sizes))
    assert norm(matrix) < 1.0


def test_a_transposed_convolution_without_cropping_keeps_every_norm():
    layer = orthogonal_convolution(nn.ConvTranspose2d(3, 2, 4, stride=2, dtype=torch.float64))
    matrix = matrix_of(layer, (3, 3, 2))
    assert torch.allclose(matrix.T @ matrix, torch.eye(18, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize(("outs", "kernel", "options"), [
    (3, 3, dict(padding="same")),
    (5, (2, 3), dict(padding="same", dilation=(1, 2))),
    (2, 4, dict(padding=1, stride=2, input_size=(6, 8))),
    (14, 3, dict(padding=1, stride=2, input_size=(6, 8))),
    (6, 3, dict(padding=1, groups=3)),
])  # fmt: skip
def test_the_layer_itself_is_orthogonal_with_circular_padding(outs, kernel, options):
    size = options.pop("input_size", None)
    layer = nn.Conv2d(3, outs, kernel, padding_mode="circular", dtype=torch.float64, **options)
    matrix = matrix_of(orthogonal_convolution(layer, input_size=size), (3, 6, 8))
    gram = matrix @ matrix.T if len(matrix) <= len(matrix.T) else matrix.T @ matrix
    assert torch.allclose(gram, torch.eye(len(gram), dtype=torch.float64), atol=1e-12)


def test_one_channel_leaves_a_signed_shift_in_the_middle():
    layer = orthogonal_convolution(nn.Conv2d(4, 4, 3, padding=1, groups=4))
    middle = torch.zeros(4, 1, 3, 3)
    middle[:, :, 1, 1] = 1.0
    assert torch.equal(layer.weight.abs(), middle)


def test_singular_values_stay_at_one_while_training():
    torch.manual_seed(0)
    layer = orthogonal_convolution(nn.Conv2d(4, 6, 3, padding=1, bias=False))
    before = layer.weight.detach().clone()
    x, target = torch.randn(8, 4, 5, 5), torch.randn(8, 6, 5, 5)
    for _ in range(30):
        (gradient,) = torch.autograd.grad(F.mse_loss(layer(x), target), layer.parametrizations.weight.original)
        with torch.no_grad():
            layer.parametrizations.weight.original -= gradient / gradient.norm()
    assert (layer.weight - before).abs().max() > 0.1
    assert deviation(on_torus(layer)) < 1e-6
    assert norm(on_torus(layer.eval())) < 1.0


ADVERSARIAL = {
    "zero": lambda p: torch.zeros_like(p),
    "huge": lambda p: 1e30 * p,
    "tiny": lambda p: 1e-30 * p,
    "all equal": lambda p: torch.full_like(p, 1e4),
    "one huge": lambda p: torch.zeros_like(p).index_fill_(1, torch.tensor([1]), 1e18),
    "ones": lambda p: torch.ones_like(p),
}


@pytest.mark.parametrize("spoil", ADVERSARIAL.values(), ids=ADVERSARIAL)
@pytest.mark.parametrize("channels", [(4, 4), (2, 7), (7, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_free_numbers_leave_the_manifold(spoil, channels, dtype):
    layer = orthogonal_convolution(nn.Conv2d(*channels, 3, dtype=dtype))
    original = layer.parametrizations.weight.original
    with torch.no_grad():
        original.copy_(spoil(randn(*original.shape).to(dtype)))
    assert deviation(on_torus(layer)) < (1e-6 if dtype is torch.float32 else 1e-12)
    layer.weight.square().mul(torch.rand_like(layer.weight)).sum().backward()
    assert torch.isfinite(original.grad).all()
    assert norm(on_torus(layer.eval())) < 1.0


@pytest.mark.parametrize("plan", [
    Plan(1, 3, 3, (3,), (1,)),
    Plan(2, 2, 3, (2, 2), (1, 1)),
    Plan(1, 4, 2, (2, 1), (1, 1)),
    Plan(1, 3, 2, (3, 2), (2, 1)),
])  # fmt: skip
def test_derivatives_of_the_kernel(plan):
    free, signs = decompose(plan, randn(plan.groups * plan.out, plan.into, *plan.kernel))
    free.requires_grad_()
    assert gradcheck(lambda p: compose(plan, p, signs), free)
    assert gradgradcheck(lambda p: compose(plan, p, signs), free)


def test_the_derivative_at_zero_and_beyond_the_reach():
    at_zero = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
    beyond = randn(3, 2).mul(1e3).requires_grad_()
    for free in (at_zero, beyond):
        assert gradcheck(frame, free)
        assert gradgradcheck(frame, free)


@given(SEEDS, st.integers(1, 6), st.integers(0, 4))
def test_frames_reach_every_orthonormal_frame_up_to_signs_and_spans_every_subspace(seed, m, more):
    V = torch.linalg.qr(randn(m + more, m, seed=seed)).Q
    V[:, 0] *= -1.0
    free, signs = unframe(V)
    assert torch.allclose(frame(free) * signs, V, atol=1e-9)
    below = unspan(V)
    U = span(below)
    assert torch.allclose(U @ U.T, V @ V.T, atol=1e-12)
    assert below.numel() == 0 or norm(below) <= 1 + 1e-12


def test_minus_the_identity_is_reached_although_no_cayley_transform_is_it():
    free, signs = unframe(-torch.eye(4, dtype=torch.float64))
    assert torch.equal(frame(free) * signs, -torch.eye(4, dtype=torch.float64))


@given(convolutions(), SEEDS)
def test_an_orthogonal_kernel_is_kept_when_it_is_assigned(layer, seed):
    other = copy.deepcopy(layer)
    with torch.no_grad():
        other.parametrizations.weight.original.copy_(randn(*layer.parametrizations.weight.original.shape, seed=seed))
    layer.weight = other.weight
    assert torch.allclose(layer.weight, other.weight, atol=1e-8)


def test_blocks_act_on_the_larger_side():
    assert [Plan(1, *ends, (3, 3), (1, 1)).channels for ends in [(3, 8), (8, 3), (4, 4)]] == [8, 8, 4]


def test_the_identity_is_kept():
    layer = nn.Conv2d(4, 4, 5, padding=2, dtype=torch.float64)
    nn.init.dirac_(layer.weight)
    image = randn(1, 4, 6, 6)
    layer.bias.data.zero_()
    assert torch.allclose(orthogonal_convolution(layer)(image), image, atol=1e-12)


@given(SEEDS, st.floats(0.0, 1.0), st.sampled_from([1e-200, 1e-30, 1.0, 1e30]))
@settings(max_examples=60)
def test_the_proof_is_never_below_the_norm_of_a_spoilt_kernel(seed, mix, size):
    steps, kernel = [((1, 1), (3, 2)), ((2, 1), (3, 2)), ((2, 2), (4, 3)), ((1, 2), (1, 3))][seed % 4]
    outs, ins = (seed // 4) % 4 + 1, (seed // 16) % 4 + 1
    layer = nn.Conv2d(ins, outs, kernel, stride=steps, dtype=torch.float64)
    plan = Plan(1, outs, ins, kernel, tuple(map(min, kernel, steps)))
    orthogonal = compose(plan, *decompose(plan, layer.weight.detach()))
    weight = size * ((1 - mix) * orthogonal + mix * randn(outs, ins, *kernel, seed=seed))
    # Only scaled by powers of two here, so that nothing is lost in the comparison of the smallest.
    bound = lattice_norm(weight, 1, steps)
    peak = float(weight.abs().max())
    assert bound / peak >= norm(on_torus(layer, weight / peak)) * (1 - 1e-14)


@given(st.lists(st.floats(-1.0, 1.0), min_size=1, max_size=30), SEEDS)
def test_the_proof_rounds_up(first, seed):
    row = torch.cat([torch.tensor(first, dtype=torch.float64), randn(seed % 300, seed=seed)])
    assume(float(row.abs().max()) > 1e-100)
    exact = sum(Fraction(value) ** 2 for value in row.tolist())
    assert Fraction(lattice_norm(row.reshape(1, -1, 1), 1, (1,))) ** 2 >= exact
    assert Fraction(lattice_norm(row.reshape(-1, 1, 1), 1, (1,))) ** 2 >= exact


def test_the_proof_is_tight_for_an_orthogonal_kernel_and_counts_the_largest_group():
    plan = Plan(2, 4, 4, (5, 5), (1, 1))
    weight = compose(plan, *decompose(plan, randn(8, 4, 5, 5)))
    assert 1.0 <= lattice_norm(weight, 2, (1, 1)) < 1 + 1e-10
    weight[4:] *= 3.0
    assert 3.0 <= lattice_norm(weight, 2, (1, 1)) < 3 * (1 + 1e-10)
    assert lattice_norm(weight * 1e200, 2, (1, 1)) == math.inf
    assert lattice_norm(weight * math.nan, 2, (1, 1)) == math.inf


def test_the_proof_of_a_known_kernel():
    # [1, 2] has symbol 1 + 2 exp(i t): norm 3, autocorrelations 2, 5, 2; with stride 2 one row (1, 2): sqrt(5).
    weight = torch.tensor([[[1.0, 2.0]]], dtype=torch.float64)
    assert 3.0 <= lattice_norm(weight, 1, (1,)) < 3 + 1e-13
    assert math.sqrt(5) <= lattice_norm(weight, 1, (2,)) < math.sqrt(5) + 1e-13


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_coarse_dtypes_are_composed_in_float64_and_proved_after_rounding(dtype):
    torch.manual_seed(0)
    layer = orthogonal_convolution(nn.Conv2d(16, 16, 3, dtype=dtype))
    assert layer.weight.dtype is dtype
    assert deviation(on_torus(layer)) < 8 * torch.finfo(dtype).eps
    # The sum over lags alone would be 1.6 % too high in bfloat16.
    assert 0.99 < norm(on_torus(layer.eval())) < 1.0


LAYER_MAKERS = {
    "blocks": lambda: orthogonal_convolution(nn.Conv2d(4, 4, 3, padding=1)),
    "strided": lambda: orthogonal_convolution(nn.Conv2d(4, 8, 3, stride=2, padding=1)),
    "transposed": lambda: orthogonal_convolution(nn.ConvTranspose2d(4, 2, 2, stride=2)),
    "cayley": lambda: CayleyConv2d(4, 3, 3, (6, 6)),
    "exponential": lambda: SkewExponentialConv2d(4),
    "exponential, circular": lambda: SkewExponentialConv2d(4, padding_mode="circular", groups=2),
}
by_layer = pytest.mark.parametrize("make", LAYER_MAKERS.values(), ids=LAYER_MAKERS)


def parameters(layer: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in layer.named_parameters()}


@by_layer
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch's own, inside jvp
def test_a_forward_is_pure_and_the_transforms_of_torch_agree_with_it(make, training):
    layer = make().train(training)
    x = randn(2, 4, 6, 6, dtype=torch.float32)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    y = layer(x)
    assert torch.equal(y, layer(x))
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())

    values, weights = parameters(layer), torch.linspace(-1.0, 1.0, y.numel()).view_as(y)
    assert torch.equal(functional_call(layer, values, (x,)), y)

    def loss(p):
        return (functional_call(layer, p, (x,)).square() * weights).sum()

    layer.zero_grad()
    loss(dict(layer.named_parameters())).backward()
    found = grad(loss)(values)
    for name, parameter in layer.named_parameters():
        assert torch.allclose(found[name], parameter.grad, rtol=1e-4, atol=1e-5)
    _, along = jvp(loss, (values,), (found,))
    assert torch.allclose(along, sum(g.square().sum() for g in found.values()), rtol=1e-3)
    layer.zero_grad()
    (checkpoint(layer, x, use_reentrant=False).square() * weights).sum().backward()
    for name, parameter in layer.named_parameters():
        assert torch.allclose(found[name], parameter.grad, rtol=1e-4, atol=1e-5)
    assert torch.allclose(jacrev(layer)(x[:1]).isfinite().float().mean(), torch.ones(()))


@by_layer
def test_layers_are_stacked(make):
    layers = [make().train() for _ in range(2)]
    with torch.no_grad():
        layers[1].parametrizations.weight.original.mul_(-0.5)
    stacked, buffers = stack_module_state(layers)
    x = randn(2, 4, 6, 6, dtype=torch.float32)
    ys = vmap(lambda p, b: functional_call(layers[0], (p, b), (x,)))(stacked, buffers)
    assert torch.allclose(ys, torch.stack([layer(x) for layer in layers]), atol=1e-5)
    assert not torch.allclose(ys[0], ys[1], atol=1e-2)


@pytest.mark.slow
@by_layer
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.filterwarnings("ignore")  # torch's own, about complex numbers and about its deprecated pieces
def test_compiled_layers_compute_the_same(make, training):
    layer = make().train(training)
    x = randn(2, 4, 6, 6, dtype=torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x), layer(x), atol=1e-6)


@by_layer
def test_autocasting_does_not_reach_the_weight(make):
    layer = make().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        weight = layer.weight
    assert torch.equal(weight, layer.weight)


@pytest.mark.parametrize("module", [nn.Conv2d(4, 6, 3), nn.ConvTranspose1d(4, 3, 4, stride=2)])
def test_a_layer_without_numbers_takes_those_of_another(module):
    filled = orthogonal_convolution(copy.deepcopy(module))
    empty = orthogonal_convolution(copy.deepcopy(module).to("meta")).to_empty(device="cpu")
    empty.load_state_dict(filled.state_dict())
    assert torch.equal(empty.weight, filled.weight)


def test_removal_in_training_leaves_a_kernel_that_is_proved():
    torch.manual_seed(0)
    layer = orthogonal_convolution(nn.Conv2d(8, 8, 3))
    assert norm(on_torus(layer)) > 1.0  # by its rounding to float32
    weight = layer.weight.detach().clone()
    remove_parametrizations(layer, "weight")
    assert lattice_norm(layer.weight.double(), 1, (1, 1)) <= 1.0
    assert torch.allclose(layer.weight, weight, atol=1e-6)


def test_a_network_of_orthogonal_layers_is_certified_at_one():
    net = nn.Sequential(
        orthogonal_convolution(nn.Conv2d(2, 4, 3, padding=1)),
        nn.ReLU(),
        orthogonal_convolution(nn.Conv2d(4, 8, 2, stride=2)),
        nn.ReLU(),
        CayleyConv2d(8, 3, 3, (3, 4)).eval().plain(),
    ).eval()
    assert 1 - 1e-5 < certify(net, (2, 6, 8), by=Product()).bound <= 1.0


@by_layer
def test_state_and_copies_carry_the_layer(make):
    layer = make().eval()
    x = randn(2, 4, 6, 6, dtype=torch.float32)
    with torch.no_grad():
        layer.parametrizations.weight.original.mul_(-0.7)
    loaded = make().eval()
    loaded.load_state_dict(layer.state_dict())
    assert torch.equal(loaded(x), layer(x))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    y = layer(x)
    assert torch.equal(remove_parametrizations(layer, "weight")(x), y)


def test_a_generator_draws_another_kernel_and_the_weight_counts_without_one():
    plain = nn.Conv2d(3, 3, 3)
    first, again, other = (
        orthogonal_convolution(copy.deepcopy(plain), generator=seeded(seed)).weight for seed in (1, 1, 2)
    )
    kept, scaled = copy.deepcopy(plain).double(), copy.deepcopy(plain).double()
    scaled.weight.data.mul_(1e-200)
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-2)
    kept, scaled = orthogonal_convolution(kept).weight, orthogonal_convolution(scaled).weight
    assert torch.allclose(kept, scaled, atol=1e-5)


class Other(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(2.0 * x)


@pytest.mark.parametrize(("layer", "options", "says"), [
    (nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), {}, "9 times"),
    (nn.Conv2d(2, 2, 3, padding=1, padding_mode="replicate"), {}, "circular"),
    (nn.Conv1d(2, 2, 3, padding=2, padding_mode="circular"), {}, "outputs occur twice"),
    (nn.Conv1d(2, 2, 3, stride=2, padding=1, padding_mode="circular"), {}, "stride divides"),
    (nn.Conv1d(2, 2, 3, stride=2, padding=1, padding_mode="circular"), dict(input_size=(7,)), "stride divides"),
    (nn.Conv2d(2, 4, 1, stride=2), {}, "skips inputs"),
    (nn.Conv2d(2, 8, 3, stride=2, dilation=2), {}, "skips inputs"),
    (nn.Conv2d(2, 2, 3), dict(name="bias"), "bias"),
    (nn.Conv2d(2, 2, 3, padding=1), dict(map=FourierCayley(), input_size=(3, 3)), "padding_mode='circular'"),
    (nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), dict(map=FourierCayley()), "input_size"),
])  # fmt: skip
def test_what_cannot_be_orthogonal_is_refused(layer, options, says):
    weight = layer.weight.detach().clone()
    with pytest.raises(InvalidInput, match=says):
        orthogonal_convolution(layer, **options)
    assert torch.equal(layer.weight, weight)


def test_what_may_apply_its_weight_otherwise_is_refused_and_so_are_weights_that_are_not_numbers():
    for layer in (Other(2, 2, 3), nn.Linear(2, 2)):
        with pytest.raises(UnsupportedOperation, match=type(layer).__name__):
            orthogonal_convolution(layer)
    layer = nn.Conv2d(2, 2, 3)
    layer.weight.data[0, 0, 0, 0] = math.nan
    with pytest.raises(NotFinite):
        orthogonal_convolution(layer)


def test_the_refused_layers_would_exceed_one():
    """Replicate padding, an odd torus under stride 2, and wrapping twice: with an orthogonal kernel, each above 1."""
    for mode, stride, padding, size in [("replicate", 1, 1, 4), ("circular", 2, 1, 5), ("circular", 1, 2, 4)]:
        layer = nn.Conv1d(4, 4, 3, stride=stride, padding=padding, dtype=torch.float64)
        layer = orthogonal_convolution(layer)
        bare = remove_parametrizations(layer, "weight")
        units = torch.eye(4 * size, dtype=torch.float64).reshape(-1, 4, size)
        padded = F.pad(units, (padding, padding), mode=mode)
        assert norm(F.conv1d(padded, bare.weight.detach(), stride=stride).flatten(1)) > 1.05


# The exponential of a skew convolution.


def skew_matrix(layer: SkewExponentialConv2d, size: tuple[int, int]) -> Tensor:
    """The matrix of L."""
    weight, pairs = layer.weight.detach().double(), tuple((pad, pad) for pad in layer.pads)
    shape = (len(weight), *size)
    return dense(Conv(weight, shape, size, (1, 1), pairs, (1, 1), layer.groups, layer.padding_mode))


def applied(layer: nn.Module, shape: tuple[int, ...]) -> Tensor:
    units = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
    with torch.no_grad():
        return (layer(units) - layer(torch.zeros_like(units))).flatten(1).T


@given(
    SEEDS, st.sampled_from([(2, 1), (3, 1), (4, 2)]), st.sampled_from([1, 3, (1, 3), (5, 3)]),
    st.sampled_from(["zeros", "circular"]), st.sampled_from([(1, 0.5), (2, 1.0), (5, 1.0), (9, 3.0)]), st.booleans(),
    st.sampled_from([0.0, 1e-30, 0.01, 1.0, 1e30]),
)  # fmt: skip
@settings(max_examples=50)
def test_the_exponential_has_singular_values_in_its_two_sided_interval(
    seed, channels, kernel, mode, series, training, scale
):
    terms, reach = series
    layer = SkewExponentialConv2d(
        channels[0], kernel, groups=channels[1], terms=terms, reach=reach, padding_mode=mode, generator=seeded(seed)
    )
    with torch.no_grad():
        layer.parametrizations.weight.original.mul_(scale)
    layer = layer.double().train(training)
    L = skew_matrix(layer, (4, 3))
    assert torch.equal(L, -L.T)
    assert norm(L) <= reach * (1 + 1e-12)
    r = reach ** (terms + 1) / math.factorial(terms + 1)
    values = torch.linalg.svdvals(applied(layer, (channels[0], 4, 3)))
    assert float(values.max()) <= 1 + 1e-13
    assert float(values.min()) >= (1 - r) / (1 + r) - 1e-6


def test_it_is_the_exponential():
    layer = SkewExponentialConv2d(3, terms=20).double()
    L = skew_matrix(layer, (4, 3))
    assert norm(L) > 0.2
    assert torch.allclose(applied(layer, (3, 4, 3)), torch.linalg.matrix_exp(L), atol=1e-7)


def test_the_remainder_is_what_the_division_must_make_up_for():
    """With one term the norm is sqrt(1 + rho^2) at the reach, which 1 + rho^2 / 2 bounds, and nothing less in order."""
    for reach in (0.1, 0.5, 1.0):
        assert math.sqrt(1 + reach**2) - 1 <= taylor_remainder(reach, 1) == reach**2 / 2
    layer = SkewExponentialConv2d(1, (1, 3), terms=1, padding_mode="circular").double()
    with torch.no_grad():  # L = d/dx in one direction, symbol i sin(t), norm 1
        layer.parametrizations.weight.original.copy_(torch.tensor([[[[-1.0, 0.0, 1.0]]]]) / 2)
    found = norm(applied(layer.train(), (1, 1, 8)))
    assert 0.9 * math.sqrt(2) / 1.5 < found <= math.sqrt(2) / 1.5


@given(SEEDS, st.sampled_from([(2, 2, (3, 3)), (4, 1, (1, 3)), (1, 4, (3, 5)), (3, 3, (2, 2))]))
def test_the_unfolded_norm_bounds_the_operator(seed, shape):
    outs, ins, kernel = shape
    weight = randn(outs, ins, *kernel, seed=seed)
    layer = nn.Conv2d(ins, outs, kernel)
    bound = float(unfolded_norm(weight[None]))
    assert norm(on_torus(layer, weight)) <= bound <= math.sqrt(math.prod(kernel)) * norm(weight.flatten(1)) * 1.2


def test_the_skew_kernel_has_true_derivatives_within_and_beyond_its_claim():
    claim = SkewKernel(1.0, 1, "a kernel")
    for scale in (1e-3, 10.0):
        assert gradcheck(claim.weight, (randn(2, 2, 3, 1) * scale).requires_grad_())
    zero = torch.zeros(2, 2, 3, 3, requires_grad=True)
    claim.weight(zero).sum().backward()
    assert torch.isfinite(zero.grad).all()


@pytest.mark.parametrize(
    "options", [dict(kernel_size=2), dict(padding_mode="reflect"), dict(terms=0), dict(reach=0.0), dict(groups=2)]
)
def test_an_exponential_without_a_claim_is_refused(options):
    with pytest.raises(InvalidInput):
        SkewExponentialConv2d(3, **options)


# The Cayley transform at every frequency.


@given(SEEDS, st.integers(1, 4), st.integers(1, 4), st.sampled_from([(3, 4), (4, 4), (5, 1)]), st.booleans())
def test_a_cayley_convolution_is_orthogonal_and_is_the_plain_one_with_its_weight(seed, ins, outs, size, training):
    layer = CayleyConv2d(ins, outs, (min(3, size[0]), 1), size, generator=seeded(seed)).double().train(training)
    matrix = applied(layer, (ins, *size))
    assert deviation(matrix) < (1e-12 if training else 1e-7)
    weight, pads = layer.weight.detach(), tuple((0, n - 1) for n in size)
    plain = dense(Conv(weight, (ins, *size), size, (1, 1), pads, (1, 1), 1, "circular"))
    assert torch.allclose(matrix, plain, atol=1e-12)
    assert torch.allclose(applied(layer.plain(), (ins, *size)), matrix, atol=1e-12)
    if not training:
        assert norm(plain) < 1.0


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_no_free_kernel_leaves_the_manifold(scale):
    layer = CayleyConv2d(3, 3, 3, (4, 5))
    original = layer.parametrizations.weight.original
    assert original.shape == (3, 3, 3, 3)
    with torch.no_grad():
        original.mul_(scale)
    layer(randn(1, 3, 4, 5, dtype=torch.float32)).square().sum().backward()
    assert torch.isfinite(original.grad).all()
    weight = layer.weight.detach().double()
    assert deviation(applied(copy.deepcopy(layer).double(), (3, 4, 5))) < 1e-6
    matrix = dense(Conv(weight, (3, 4, 5), (4, 5), (1, 1), ((0, 3), (0, 4)), (1, 1), 1, "circular"))
    assert deviation(matrix) < 1e-6


def test_the_derivative_of_the_cayley_kernel():
    free = randn(3, 2, 2, 2).requires_grad_()
    assert gradcheck(lambda p: fourier_cayley(p, (3, 2)), free)
    assert gradcheck(lambda p: fourier_cayley(p.transpose(0, 1), (3, 2)), free)


def test_a_plain_convolution_takes_a_cayley_kernel_of_its_input_size():
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 3, (4, 5), padding="same", padding_mode="circular", dtype=torch.float64)
    layer = orthogonal_convolution(layer, map=FourierCayley(), input_size=(4, 5))
    assert deviation(matrix_of(layer, (2, 4, 5))) < 1e-12
    assert norm(matrix_of(layer.eval(), (2, 4, 5))) < 1.0


def test_another_input_size_is_refused():
    with pytest.raises(InvalidInput, match="orthogonal at input_size"):
        CayleyConv2d(2, 2, 3, (4, 4))(torch.zeros(1, 2, 5, 4))
    with pytest.raises(InvalidInput, match="fit"):
        CayleyConv2d(2, 2, 5, (4, 4))
