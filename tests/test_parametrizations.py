"""What `lipcert.parametrizations` promises, against dense singular values of what the layer really applies."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm as torch_spectral_norm
from torch.utils.checkpoint import checkpoint

from lipcert import certify
from lipcert.errors import CheckFailed, InvalidInput, NotFinite, UnsupportedOperation
from lipcert.parametrizations import spectral_norm

CONVOLUTIONS = {
    "zeros": dict(in_channels=2, out_channels=5, kernel_size=3, padding=1),
    "no padding": dict(in_channels=3, out_channels=2, kernel_size=3),
    "circular": dict(in_channels=2, out_channels=4, kernel_size=3, padding=1, padding_mode="circular"),
    "reflect": dict(in_channels=1, out_channels=9, kernel_size=3, padding=1, padding_mode="reflect"),
    "replicate": dict(in_channels=1, out_channels=25, kernel_size=5, padding=2, padding_mode="replicate"),
    "stride": dict(in_channels=2, out_channels=4, kernel_size=3, stride=2, padding=1),
    "stride and dilation": dict(in_channels=1, out_channels=9, kernel_size=3, stride=2, dilation=2, padding=2),
    "groups": dict(in_channels=4, out_channels=6, kernel_size=3, padding=1, groups=2),
    "depthwise": dict(in_channels=4, out_channels=4, kernel_size=3, padding=1, groups=4),
    "same": dict(in_channels=2, out_channels=3, kernel_size=(3, 5), padding="same"),
    "same, reflected": dict(in_channels=2, out_channels=3, kernel_size=(3, 2), padding="same", padding_mode="reflect"),
    "rectangular": dict(
        in_channels=2, out_channels=3, kernel_size=(3, 2), stride=(1, 2), padding=(0, 1), dilation=(2, 1)
    ),
}
SIZE = (7, 6)
by_convolution = pytest.mark.parametrize("options", CONVOLUTIONS.values(), ids=CONVOLUTIONS)


def conv(seed: int = 0, **options) -> nn.Conv2d:
    torch.manual_seed(seed)
    return nn.Conv2d(**options)


def linear(seed: int = 0, shape: tuple[int, int] = (9, 6)) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(*shape)


def norm(layer: nn.Module, size: tuple[int, int] = SIZE) -> float:
    """The norm of what the layer does with its present weight, by applying a plain layer to every unit vector."""
    plain = parametrize.type_before_parametrizations(layer)
    if plain is nn.Linear:
        return float(torch.linalg.matrix_norm(layer.weight.detach().double(), 2))
    names = "in_channels out_channels kernel_size stride padding dilation groups padding_mode"
    bare = plain(**{name: getattr(layer, name) for name in names.split()}, bias=False, dtype=torch.float64)
    with torch.no_grad():
        bare.weight.copy_(layer.weight)
        inputs = bare.in_channels * math.prod(size)
        units = torch.eye(inputs, dtype=torch.float64).reshape(inputs, bare.in_channels, *size)
        return float(torch.linalg.matrix_norm(bare(units).reshape(inputs, -1), 2))


def original(layer: nn.Module) -> nn.Parameter:
    return layer.parametrizations.weight.original


def train(layer: nn.Module, steps: int, optimiser: str = "SGD", size: tuple[int, int] = SIZE) -> None:
    """Steps that follow fresh random output directions, as the layers of a critic feel them."""
    lr = {"SGD": 0.3, "Adam": 0.02}[optimiser]
    rule = getattr(torch.optim, optimiser)(layer.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(1)
    plain = parametrize.type_before_parametrizations(layer)
    shape = (layer.in_features,) if plain is nn.Linear else (layer.in_channels, *size)
    layer.train()
    for _ in range(steps):
        x = torch.randn(4, *shape, generator=generator).to(layer.weight.dtype)
        y = layer(x)
        loss = (y * torch.randn(y.shape, generator=generator).to(y.dtype)).mean()
        rule.zero_grad()
        loss.backward()
        rule.step()
    layer.eval()


@pytest.mark.one_in(2)
@by_convolution
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_convolution_keeps_its_claim_at_its_input_size_after_every_step(options, dtype):
    layer = spectral_norm(conv(**options).to(dtype), input_size=SIZE).eval()
    assert 0.7 < norm(layer) <= 1.0
    for steps, optimiser in ((3, "SGD"), (30, "Adam")):
        train(layer, steps, optimiser)
        assert 0.7 < norm(layer) <= 1.0


@by_convolution
def test_a_convolution_keeps_its_claim_at_every_size_when_none_is_given(options):
    layer = spectral_norm(conv(**options), bound=0.5).eval()
    for steps in (0, 3):
        train(layer, steps)
        assert all(norm(layer, size) <= 0.5 for size in ((5, 5), SIZE, (5, 11), (12, 12)))
    # Over all sizes, padding by p may repeat every input: replicate 1 + 2p times, reflect 3 times a dimension.
    slack = {"reflect": 3.0, "replicate": 5.0}.get(layer.padding_mode, 1.0)
    assert norm(layer, (12, 12)) * slack > 0.4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(9, 6), (6, 9), (1, 8), (8, 1)], ids=str)
def test_a_linear_layer_keeps_its_claim_after_every_step(shape, dtype):
    layer = spectral_norm(linear(shape=shape).to(dtype), bound=2.0).eval()
    assert 1.9 < norm(layer) <= 2.0
    adam = "Adam" if dtype.itemsize > 2 else "SGD"  # Adam's epsilon underflows in float16
    for steps, optimiser in ((3, adam), (30, "SGD")):
        train(layer, steps, optimiser)
        assert 1.9 < norm(layer) <= 2.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_the_certificate_of_a_layer_is_at_most_its_bound(seed, dtype):
    layer = spectral_norm(linear(seed).to(dtype), bound=0.7).eval()
    assert 0.69 < certify(layer, (9,)).bound <= 0.7
    layer = spectral_norm(conv(seed, **CONVOLUTIONS["zeros"]).to(dtype), input_size=SIZE).eval()
    assert 0.9 < certify(layer, (2, *SIZE)).bound <= 1.0


def test_the_certificate_at_any_size_is_at_most_the_bound_when_no_size_is_given():
    layer = spectral_norm(conv(**CONVOLUTIONS["zeros"])).eval()
    assert all(certify(layer, (2, *size)).bound <= 1.0 for size in (SIZE, (12, 12)))


def test_torchs_spectral_norm_is_no_bound_for_a_convolution():
    # All taps equal: on an interior plateau the convolution multiplies by 9 |w|, the reshaped kernel says 3 |w|.
    layer = nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular")
    nn.init.constant_(layer.weight, 1.0)
    assert norm(torch_spectral_norm(copy.deepcopy(layer)).eval()) == pytest.approx(3.0, rel=1e-5)
    assert 0.99 < norm(spectral_norm(copy.deepcopy(layer), input_size=SIZE).eval()) <= 1.0


@pytest.mark.parametrize("seed", range(6))
def test_one_training_pass_follows_a_spike(seed):
    torch.manual_seed(seed)
    layer = spectral_norm(nn.Linear(64, 64))
    layer(torch.randn(1, 64))
    a, b = torch.nn.functional.normalize(torch.randn(2, 64), dim=1)
    with torch.no_grad():
        original(layer).copy_(torch.linalg.qr(torch.randn(64, 64)).Q + 6 * torch.outer(a, b))
    assert norm(layer) == pytest.approx(1.0, rel=1e-3)
    assert norm(layer.eval()) <= 1.0


def test_a_spike_orthogonal_to_everything_before_is_seen():
    layer = spectral_norm(nn.Linear(4, 4, bias=False))
    layer.weight = torch.diag(torch.tensor([1.0, 1e-3, 1e-3, 1e-3]))
    assert norm(layer) == pytest.approx(1.0, rel=1e-3)
    with torch.no_grad():
        original(layer).copy_(torch.diag(torch.tensor([1.0, 5.0, 0.0, 0.0])))
    assert norm(layer) == pytest.approx(1.0, rel=1e-3)


@by_convolution
def test_the_training_estimate_is_close_to_the_true_norm(options):
    layer = spectral_norm(conv(**options), input_size=SIZE)
    train(layer, 5)
    assert norm(layer.train()) == pytest.approx(1.0, rel=2e-2)


def test_the_training_estimate_of_a_half_precision_weight_is_not_made_in_half_precision():
    layer = spectral_norm(linear(shape=(64, 64)).bfloat16())
    assert norm(layer) == pytest.approx(1.0, rel=2e-3)


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_assigning_a_weight_takes_effect_at_once(mode):
    layer = spectral_norm(linear()).train(mode)
    layer(torch.zeros(1, 9))
    value = 40 * torch.randn(6, 9)
    layer.weight = value
    assert norm(layer.eval()) <= 1.0
    torch.testing.assert_close(layer.weight, value / torch.linalg.matrix_norm(value, 2), rtol=1e-6, atol=1e-7)


def test_an_assigned_layer_is_the_layer_made_with_that_weight():
    layer, other = spectral_norm(linear(0)), linear(1)
    train(layer, 3)
    layer.weight = other.weight.detach().clone()
    spectral_norm(other)
    assert torch.equal(layer.train().weight, other.weight)


def test_editing_data_behind_the_version_counter_takes_effect_at_once():
    layer = spectral_norm(linear()).eval()
    layer(torch.zeros(1, 9))
    value = 40 * torch.randn(6, 9)
    original(layer).data.copy_(value)
    torch.testing.assert_close(layer.weight, value / torch.linalg.matrix_norm(value, 2), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_a_state_dict_round_trip_is_exact(mode):
    options = CONVOLUTIONS["zeros"]
    trained = spectral_norm(conv(0, **options), input_size=SIZE)
    train(trained, 3)
    fresh = spectral_norm(conv(1, **options), input_size=SIZE, generator=torch.Generator().manual_seed(5))
    fresh.start = trained.parametrizations.weight[0].start
    fresh.train(mode)
    fresh(torch.zeros(1, 2, *SIZE))
    fresh.load_state_dict(trained.state_dict())
    reloaded = fresh.weight.detach()
    if not mode:
        assert torch.equal(reloaded, trained.weight)
        assert norm(fresh) <= 1.0
    torch.testing.assert_close(reloaded, trained.train(mode).weight, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("read", [True, False], ids=["saved after evaluation", "saved after a step"])
def test_a_resumed_run_continues_to_the_bit(read):
    options = CONVOLUTIONS["zeros"]
    first = spectral_norm(conv(0, **options), input_size=SIZE)
    train(first, 3)
    if read:
        first(torch.zeros(1, 2, *SIZE))
    second = spectral_norm(conv(1, **options), input_size=SIZE)
    second.load_state_dict(first.state_dict())
    for layer in (first, second):
        train(layer, 3)
    assert torch.equal(first.train().weight, second.train().weight)


def test_a_deep_copy_keeps_the_claim_and_lives_its_own_life():
    layer = spectral_norm(linear())
    train(layer, 2)
    twin = copy.deepcopy(layer)
    before = layer.weight.detach().clone()
    assert torch.equal(twin.weight, before)
    train(twin, 3)
    assert norm(twin) <= 1.0
    assert torch.equal(layer.weight, before)


def test_a_change_of_dtype_keeps_the_claim():
    layer = spectral_norm(linear()).eval()
    layer(torch.zeros(1, 9))
    for dtype in (torch.float64, torch.bfloat16, torch.float32):
        layer.to(dtype)
        assert layer.weight.dtype == dtype
        assert 0.99 < norm(layer) <= 1.0
        assert layer.train().weight.dtype == dtype
        floating = [value for value in layer.state_dict().values() if value.is_floating_point()]
        assert len(floating) == 3
        assert all(value.dtype == dtype for value in floating)
        layer.eval()


def test_switching_modes_back_and_forth_changes_nothing():
    layer = spectral_norm(conv(**CONVOLUTIONS["zeros"]), input_size=SIZE)
    train(layer, 2)
    deployed, training = layer.eval().weight.clone(), layer.train().weight.clone()
    for _ in range(3):
        assert torch.equal(layer.eval().weight, deployed)
        assert torch.equal(layer.train().weight, training)


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_reading_the_weight_changes_no_state(mode):
    layer = spectral_norm(linear())
    train(layer, 2)
    layer.train(mode)
    first = layer.weight.detach().clone()
    state = {key: value.clone() for key, value in layer.state_dict().items()}
    for _ in range(3):
        assert torch.equal(layer.weight, first)
    assert all(torch.equal(value, state[key]) for key, value in layer.state_dict().items())


def test_two_passes_in_one_step_agree_to_the_bit_and_can_be_differentiated_together():
    layer = spectral_norm(conv(**CONVOLUTIONS["zeros"]), input_size=SIZE)
    train(layer, 2)
    layer.train()
    x = torch.randn(2, 2, *SIZE)
    first, second = layer(x), layer(x)
    assert torch.equal(first, second)
    (first.square().sum() - second.sum()).backward()
    assert bool(original(layer).grad.isfinite().all())


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradients_under_activation_checkpointing_are_exact(reentrant):
    layers = nn.Sequential(spectral_norm(linear(shape=(6, 6))), nn.ReLU(), spectral_norm(linear(1, shape=(6, 6))))
    x = torch.randn(3, 6, requires_grad=True)
    layers(x)
    for layer in (layers[0], layers[2]):
        with torch.no_grad():
            original(layer).add_(0.1 * torch.randn(6, 6))
    recomputed = copy.deepcopy(layers)
    layers(x).square().sum().backward()
    checkpoint(recomputed, x, use_reentrant=reentrant).square().sum().backward()
    for layer, again in ((layers[0], recomputed[0]), (layers[2], recomputed[2])):
        assert torch.equal(original(layer).grad, original(again).grad)


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_the_gradient_is_that_of_the_normalised_weight(mode):
    """With u and v at the top singular pair, the gradient is that of ``W / |W|``."""
    layer = spectral_norm(linear(shape=(5, 3)).double())
    with torch.no_grad():
        u, s, v = torch.linalg.svd(original(layer), full_matrices=False)
        original(layer).copy_(u @ torch.diag(s * torch.tensor([3.0, 1.0, 1.0])) @ v)
    layer.train(mode)
    cotangent = torch.randn(3, 5, dtype=torch.float64)
    (layer.weight * cotangent).sum().backward()
    reference = original(layer).detach().clone().requires_grad_()
    (reference / torch.linalg.matrix_norm(reference, 2) * cotangent).sum().backward()
    torch.testing.assert_close(original(layer).grad, reference.grad, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: spectral_norm(linear(shape=(4, 3)).double()), (2, 4)),
        (lambda: spectral_norm(conv(**CONVOLUTIONS["stride"]).double(), input_size=(4, 4)), (1, 2, 4, 4)),
    ],
    ids=["linear", "conv"],
)
def test_gradients_agree_with_differences(make, shape):
    layer = make()
    layer(torch.zeros(shape, dtype=torch.float64))
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weight = original(layer).detach().clone().requires_grad_()

    def output(weight: Tensor, x: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"parametrizations.weight.original": weight}, (x,))

    assert torch.autograd.gradcheck(output, (weight, x))
    assert torch.autograd.gradgradcheck(output, (weight, x))


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_functional_call_normalises_the_given_weight_and_moves_nothing(mode):
    layer = spectral_norm(linear()).train(mode)
    x = torch.randn(2, 9)
    state = {key: value.clone() for key, value in layer.state_dict().items()}
    before = layer(x)
    given = {name: value.detach().clone() * 7 for name, value in layer.named_parameters()}
    given["bias"] = layer.bias.detach()
    torch.testing.assert_close(torch.func.functional_call(layer, given, (x,)), before, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(value, state[key]) for key, value in layer.state_dict().items())
    assert torch.equal(layer(x), before)


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_per_sample_gradients_work(mode):
    layer = spectral_norm(linear()).train(mode)
    x = torch.randn(5, 9)
    parameters = {name: value.detach() for name, value in layer.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(layer, parameters, (x,)).square().sum()

    grads = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    layer(x).square().sum().backward()
    total = grads["parametrizations.weight.original"].sum(0)
    torch.testing.assert_close(total, original(layer).grad, rtol=1e-4, atol=1e-5)


def test_a_batch_of_weights_is_proven_one_by_one():
    layer = spectral_norm(linear()).eval()
    weights = torch.randn(3, 6, 9)
    x = torch.eye(9)

    def act(weight: Tensor) -> Tensor:
        given = {"parametrizations.weight.original": weight, "bias": torch.zeros(6)}
        return torch.func.functional_call(layer, given, (x,))

    matrices = torch.func.vmap(act)(weights)
    assert bool((torch.linalg.matrix_norm(matrices.double(), 2) <= 1.0).all())
    assert bool((torch.linalg.matrix_norm(matrices, 2) > 0.999).all())


@pytest.mark.parametrize("make", [linear, lambda: conv(**CONVOLUTIONS["zeros"])], ids=["linear", "conv"])
def test_removing_the_parametrization_in_evaluation_mode_keeps_the_claim(make):
    layer = make()
    spectral_norm(layer)
    train(layer, 3)
    deployed = layer.weight.detach().clone()
    parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    assert type(layer) in (nn.Linear, nn.Conv2d)
    assert torch.equal(layer.weight, deployed)
    assert norm(layer) <= 1.0


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e30])
@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_the_magnitude_of_the_weight_does_not_matter(scale, mode):
    layer = spectral_norm(linear()).train(mode)
    with torch.no_grad():
        original(layer).mul_(scale)
    assert 0.99 < norm(layer) <= (1.001 if mode else 1.0)


@pytest.mark.parametrize("bound", [1e-30, 1e-3, 1e6, 1e30])
def test_the_magnitude_of_the_bound_does_not_matter(bound):
    assert 0.99 * bound < norm(spectral_norm(linear(), bound=bound).eval()) <= bound


@pytest.mark.parametrize("make", [linear, lambda: conv(**CONVOLUTIONS["reflect"])], ids=["linear", "conv"])
def test_a_zero_weight_stays_zero_and_can_be_trained_away_from_zero(make):
    layer = make()
    nn.init.zeros_(layer.weight)
    spectral_norm(layer)
    for mode in (True, False):
        assert torch.count_nonzero(layer.train(mode).weight) == 0
    train(layer, 1)
    assert bool(original(layer).isfinite().all())
    assert 0.3 < norm(layer) <= 1.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused_by_name(bad):
    layer = linear()
    layer.weight.data[1, 2] = bad
    with pytest.raises(NotFinite, match=r"weight of Linear\(in_features=9"):
        spectral_norm(layer)
    layer = spectral_norm(linear())
    for mode in (True, False):
        original(layer).data[1, 2] = bad
        layer.train(mode)
        with pytest.raises(NotFinite, match="weight of Linear"):
            layer(torch.zeros(1, 9))
    with pytest.raises(NotFinite, match="weight of Linear"):
        layer.weight = torch.full((6, 9), bad)


def test_the_global_random_state_is_left_alone_and_the_generator_decides():
    state = torch.get_rng_state()
    vectors = [
        spectral_norm(linear(), generator=generator).parametrizations.weight[0].start
        for generator in (None, None, torch.Generator().manual_seed(3), torch.Generator().manual_seed(3))
    ]
    torch.manual_seed(0)
    linear()
    assert torch.equal(vectors[0], vectors[1])
    assert torch.equal(vectors[2], vectors[3])
    assert not torch.equal(vectors[0], vectors[2])
    torch.set_rng_state(state)
    layer = linear()
    before = torch.get_rng_state()
    spectral_norm(layer).eval()(torch.zeros(1, 9))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_bound_that_the_dtype_cannot_hold_is_refused():
    with pytest.raises(CheckFailed, match=r"torch\.float32"):
        spectral_norm(linear(), bound=1e-60).eval()(torch.zeros(1, 9))


def test_a_layer_evaluated_under_inference_mode_can_be_trained_afterwards():
    layer = spectral_norm(linear())
    original(layer).data.mul_(2)
    state = copy.deepcopy(layer.state_dict())
    with torch.inference_mode():
        layer.eval()(torch.zeros(1, 9))
    layer(torch.zeros(1, 9)).sum().backward()
    train(layer, 1)
    layer(torch.zeros(1, 9)).sum().backward()
    layer.load_state_dict(state)


def test_autocast_leaves_the_estimate_in_full_precision():
    layer = spectral_norm(linear())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = layer.weight
    assert inside.dtype == torch.float32
    assert torch.equal(inside, layer.weight)


@pytest.mark.parametrize("module", [nn.GroupNorm(2, 2), nn.PReLU(), nn.Identity()], ids=str)
def test_other_classes_are_refused_by_name(module):
    with pytest.raises(UnsupportedOperation, match=type(module).__name__):
        spectral_norm(module)


def test_a_subclass_that_applies_its_weight_differently_is_refused():
    class Twice(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    class Named(nn.Linear):
        pass

    with pytest.raises(UnsupportedOperation, match="Twice"):
        spectral_norm(Twice(2, 2))
    assert norm(parametrize.remove_parametrizations(spectral_norm(nn.Linear(2, 2)).eval(), "weight")) <= 1.0
    spectral_norm(Named(2, 2))


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (lambda: nn.Linear(2, 2), {"bound": 0.0}),
        (lambda: nn.Linear(2, 2), {"bound": math.nan}),
        (lambda: nn.Linear(2, 2), {"bound": math.inf}),
        (lambda: nn.Linear(2, 2), {"name": "bias"}),
        (lambda: nn.Linear(2, 2), {"input_size": (4, 4)}),
        (lambda: nn.LazyLinear(2), {}),
        (lambda: nn.Linear(2, 2, dtype=torch.complex64), {}),
        (lambda: nn.Conv2d(1, 1, 3), {"input_size": (2, 2)}),
        (lambda: nn.Conv2d(1, 1, 3), {"input_size": (8,)}),
        (lambda: nn.Conv2d(1, 1, 3, padding=2, padding_mode="reflect"), {"input_size": (2, 4)}),
        (lambda: torch_spectral_norm(nn.Linear(2, 2)), {}),
        (lambda: spectral_norm(nn.Linear(2, 2)), {}),
    ],
)
def test_arguments_that_state_no_claim_are_refused(make, options):
    with pytest.raises((InvalidInput, NotFinite)):
        spectral_norm(make(), **options)
