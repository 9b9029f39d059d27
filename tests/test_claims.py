"""Laws that every parametrization keeps: the claim, through training, copies, checkpoints, transforms and compilers."""

import copy
import io
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from lipcert.parametrizations.claim import Claim
from tests.cases import PARAMETRIZED, Parametrized
from tests.parametrized import operator_norm

by_case = pytest.mark.parametrize("case", PARAMETRIZED.values(), ids=PARAMETRIZED)
by_mode = pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
# torch's own forward-mode formulas are compiled with its deprecated script compiler.
by_torchs_script = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
by_optimiser = pytest.mark.parametrize("optimiser", ["SGD", "Adam", "RMSprop"])

RATES = {"SGD": 0.3, "Adam": 0.05, "RMSprop": 0.05}


def name_of(layer: nn.Module) -> str:
    (name,) = layer.parametrizations
    return name


def original(layer: nn.Module) -> nn.Parameter:
    return layer.parametrizations[name_of(layer)].original


def claim_of(layer: nn.Module) -> Claim:
    return layer.parametrizations[name_of(layer)][0]


def step(layer: nn.Module, case: Parametrized, rule: torch.optim.Optimizer, seed: int) -> None:
    """One step along a fresh random output direction, as the layers of a critic feel it."""
    y = layer(case.batch(seed=seed, dtype=original(layer).dtype))
    direction = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed)).to(y.dtype)
    rule.zero_grad()
    (y * direction).mean().backward()
    rule.step()


def train(layer: nn.Module, case: Parametrized, steps: int, optimiser: str = "SGD") -> nn.Module:
    rule = getattr(torch.optim, optimiser)(layer.parameters(), lr=RATES[optimiser])
    for seed in range(steps):
        step(layer.train(), case, rule, seed)
    return layer


def holds(layer: nn.Module, case: Parametrized, least: float | None = None) -> None:
    """The claim, judged by the singular values of the map that the evaluated layer is."""
    norm = operator_norm(layer.eval(), case.input_shape)
    assert case.bound * (case.least if least is None else least) <= norm <= case.bound


@pytest.mark.one_in(2)
@by_case
@by_optimiser
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_claim_holds_in_evaluation_after_every_step(case: Parametrized, optimiser: str, dtype: torch.dtype):
    layer = case.make(dtype=dtype)
    holds(layer, case)
    rule = getattr(torch.optim, optimiser)(layer.parameters(), lr=RATES[optimiser])
    for seed in range(4):
        step(layer.train(), case, rule, seed)
        holds(layer, case)


@pytest.mark.one_in(2)
@by_case
@by_optimiser
def test_the_claim_holds_in_training_where_it_is_made_everywhere(case: Parametrized, optimiser: str):
    layer = case.make()
    rule = getattr(torch.optim, optimiser)(layer.parameters(), lr=RATES[optimiser])
    slack = 0.3 if case.everywhere is None else case.everywhere
    for seed in range(4):
        assert operator_norm(layer.train(), case.input_shape) <= case.bound * (1.0 + slack)
        step(layer.train(), case, rule, seed)


@by_case
def test_an_adversary_that_maximises_the_norm_along_the_weight_does_not_break_the_claim(case: Parametrized):
    layer = case.make().train()
    rule = torch.optim.Adam(layer.parameters(), lr=0.1)
    x = case.batch(1).requires_grad_()
    for _ in range(15):
        rule.zero_grad()
        gain = (layer(x) - layer(torch.zeros_like(x))).norm() / x.norm()
        (-gain).backward()
        rule.step()
        with torch.no_grad():
            x += 0.5 * x.grad * x.norm() / (x.grad.norm() + 1e-12) if x.grad is not None else 0.0
        x.grad = None
    holds(layer, case, 0.0)


@by_case
@by_mode
def test_two_reads_are_equal_to_the_bit_and_move_nothing(case: Parametrized, mode: bool):
    layer = train(case.make(), case, 1).train(mode)
    first = getattr(layer, name_of(layer)).detach().clone()
    state = {key: value.clone() for key, value in layer.state_dict().items()}
    x = case.batch()
    outputs = [layer(x) for _ in range(2)]
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(getattr(layer, name_of(layer)), first)
    assert all(torch.equal(value, state[key]) for key, value in layer.state_dict().items())


@pytest.mark.one_in(2)
@by_case
@by_mode
def test_the_claim_is_at_once_about_a_changed_weight(case: Parametrized, mode: bool):
    layer = case.make().train(mode)
    layer(case.batch())
    drawn = torch.Generator().manual_seed(1)
    with torch.no_grad():
        original(layer).add_(3.0 * torch.randn(original(layer).shape, generator=drawn))
    holds(layer, case)
    setattr(layer.train(mode), name_of(layer), 20.0 * torch.randn(layer.weight.shape, generator=drawn))
    holds(layer, case)
    original(layer).data.mul_(-5.0).add_(1.0)
    holds(layer, case)


@by_case
@by_mode
def test_removal_keeps_the_claim_in_both_modes(case: Parametrized, mode: bool):
    layer = train(case.make(), case, 2).train(mode)
    with torch.no_grad():
        original(layer).mul_(7.0)
    before = getattr(layer, name_of(layer)).detach().clone()
    parametrize.remove_parametrizations(layer, name_of(layer))
    assert type(layer) is type(case.plain())
    torch.testing.assert_close(layer.weight.detach(), before, rtol=0.2, atol=1e-6)
    if not mode:
        assert torch.equal(layer.weight, before)
    assert operator_norm(layer, case.input_shape) <= case.bound


@by_case
@by_mode
def test_removal_without_the_claim_gives_the_parameter_back(case: Parametrized, mode: bool):
    layer = train(case.make(), case, 1).train(mode)
    bare = original(layer).detach().clone()
    if bare.shape != layer.weight.shape:
        pytest.skip("the parameter is no weight of this layer")
    parametrize.remove_parametrizations(layer, name_of(layer), leave_parametrized=False)
    assert torch.equal(layer.weight, bare)


@by_case
def test_a_state_dict_goes_round_strictly(case: Parametrized):
    trained, fresh = train(case.make(0), case, 2), case.make(1)
    fresh.eval()(case.batch())
    fresh.load_state_dict(trained.state_dict())
    for mode in (True, False):
        assert torch.equal(fresh.train(mode).weight, trained.train(mode).weight)
    holds(fresh, case)
    trained, fresh = train(trained, case, 2), train(fresh, case, 2)
    assert torch.equal(fresh.weight, trained.weight)


@by_case
def test_a_checkpoint_of_the_plain_layer_is_read(case: Parametrized):
    layer = case.make(0)
    torch.manual_seed(5)
    plain = case.plain()
    layer.load_state_dict(plain.state_dict())
    other = case.make(0)
    other.weight = plain.weight.detach()
    torch.testing.assert_close(layer.weight, other.weight)
    holds(layer, case)


@by_case
def test_copies_keep_the_claim_and_live_their_own_lives(case: Parametrized):
    layer = train(case.make(), case, 2)
    weight = layer.weight.detach().clone()
    average = torch.optim.swa_utils.AveragedModel(layer)
    twin = train(copy.deepcopy(layer), case, 2)
    holds(twin, case)
    assert torch.equal(layer.train().weight, weight)
    average.update_parameters(twin)
    average.update_parameters(layer)
    holds(average.module, case)


@by_case
@by_mode
def test_whole_layers_can_be_saved(case: Parametrized, mode: bool):
    layer = train(case.make(), case, 1).train(mode)
    x = case.batch()
    expected = layer(x)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for read in (torch.load(file, weights_only=False), pickle.loads(pickle.dumps(layer))):
        assert type(read) is type(layer)
        assert torch.equal(read(x), expected)
        holds(read, case)


@by_case
def test_the_claim_follows_the_dtype(case: Parametrized):
    layer = train(case.make(), case, 1)
    layer.eval()(case.batch())
    # bfloat16 has 8 bits: an orthogonal matrix cannot be rounded to it without losing a percent
    for dtype, least in ((torch.float64, None), (torch.bfloat16, 0.9 * case.least), (torch.float32, 0.9 * case.least)):
        layer.to(dtype)
        assert layer.weight.dtype == dtype
        assert layer(case.batch(dtype=dtype)).dtype == dtype
        holds(layer, case, least)


@by_case
@by_mode
def test_autocast_leaves_the_weight_as_it_is(case: Parametrized, mode: bool):
    layer = case.make().train(mode)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = layer.weight
        y = layer(case.batch())
    assert y.dtype == torch.bfloat16
    assert torch.equal(inside, layer.weight)


@by_case
def test_layers_can_be_made_without_memory(case: Parametrized):
    with torch.device("meta"):
        layer = case.put(case.plain())
    assert layer.weight.is_meta
    layer.to_empty(device="cpu")
    source = case.make(3)
    layer.load_state_dict(source.state_dict())
    holds(layer, case)
    torch.testing.assert_close(layer.weight, source.eval().weight, rtol=1e-3, atol=1e-5)


@by_case
@by_mode
def test_a_zero_weight_stays_finite(case: Parametrized, mode: bool):
    layer = case.make().train(mode)
    with torch.no_grad():
        original(layer).zero_()
    weight = layer.weight
    weight.sum().backward()
    assert bool(torch.isfinite(weight).all())
    assert bool(torch.isfinite(original(layer).grad).all()) or not case.smooth
    holds(layer, case, 0.0)


@pytest.mark.one_in(2)
@by_case
@by_mode
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_scale_of_the_parameter_does_not_matter(case: Parametrized, mode: bool, scale: float):
    layer = case.make().train(mode)
    with torch.no_grad():
        original(layer).mul_(scale)
    assert bool(torch.isfinite(layer(case.batch())).all())
    holds(layer, case, 0.0)


@by_case
@by_mode
def test_several_passes_before_one_backward_pass(case: Parametrized, mode: bool):
    layer = train(case.make(), case, 1).train(mode)
    x, z = case.batch(seed=1), case.batch(seed=2)
    layer.zero_grad()
    (layer(x).square().mean() - layer(z).square().mean()).backward()
    together = original(layer).grad.clone()
    layer.zero_grad()
    layer(x).square().mean().backward()
    (-layer(z).square().mean()).backward()
    torch.testing.assert_close(original(layer).grad, together, rtol=1e-4, atol=1e-6)


@pytest.mark.one_in(3)
@by_case
@by_mode
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
def test_gradients_under_activation_checkpointing_are_exact(case: Parametrized, mode: bool, reentrant: bool):
    layer = train(case.make(), case, 1).train(mode)
    with torch.no_grad():
        original(layer).mul_(1.5)
    x = case.batch().requires_grad_()
    grads = []
    for run in (lambda: checkpoint(layer, x, use_reentrant=reentrant), lambda: layer(x)):
        layer.zero_grad()
        run().square().sum().backward()
        grads.append(original(layer).grad.clone())
    assert torch.equal(grads[0], grads[1])


@pytest.mark.one_in(3)
@by_torchs_script
@by_case
@by_mode
def test_first_and_second_derivatives_agree_with_differences(case: Parametrized, mode: bool):
    layer = case.make(dtype=torch.float64).train(mode)
    given = {key: value.detach() for key, value in layer.named_parameters()}
    key = next(key for key in given if key.endswith("original"))
    projection = torch.randn(2, original(layer).numel(), generator=torch.Generator().manual_seed(3)).double()

    def output(weight: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {**given, key: weight}, (case.batch(1, dtype=torch.float64),)).sum()

    weight = given[key].clone()
    grad = torch.func.grad(output)(weight)
    for direction in projection:
        d = direction.reshape(weight.shape)
        h = 1e-6
        difference = (output(weight + h * d) - output(weight - h * d)).detach() / (2 * h)
        # A proven value jumps by the slack of its proof; its derivative is that of the estimate.
        if mode and case.everywhere is None:
            torch.testing.assert_close((grad * d).sum(), difference, rtol=1e-4, atol=1e-5)
        forward = torch.func.jvp(output, (weight,), (d,))[1]
        torch.testing.assert_close(forward, (grad * d).sum(), rtol=1e-8, atol=1e-9)
    second = torch.func.grad(lambda w: torch.func.grad(output)(w).square().sum())(weight)
    assert bool(torch.isfinite(second).all())


@pytest.mark.one_in(2)
@by_torchs_script
@by_case
@by_mode
def test_jacobians_of_inputs_in_both_modes_and_directions(case: Parametrized, mode: bool):
    layer = train(case.make(), case, 1).train(mode)
    with torch.no_grad():
        original(layer).mul_(1.5)  # so that something is worked out inside the transform
    x = case.batch(2)
    back = torch.func.vmap(torch.func.jacrev(lambda one: layer(one[None])[0]))(x)
    forth = torch.func.vmap(torch.func.jacfwd(lambda one: layer(one[None])[0]))(x)
    torch.testing.assert_close(back, forth)
    assert not torch.func.hessian(lambda one: layer(one[None]).sum())(x[0]).any()
    torch.testing.assert_close(layer(x), copy.deepcopy(layer)(x))
    pickle.dumps(layer)  # nothing of a transform is left behind
    holds(layer, case)


@pytest.mark.one_in(3)
@by_case
@by_mode
def test_ensembles_are_stacked(case: Parametrized, mode: bool):
    layers = [train(case.make(seed), case, seed).train(mode) for seed in range(3)]
    x = case.batch()
    expected = torch.stack([layer(x) for layer in layers])
    parameters, buffers = torch.func.stack_module_state(layers)
    base = copy.deepcopy(layers[0])

    def run(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(base, (parameters, buffers), (x,))

    torch.testing.assert_close(torch.func.vmap(run)(parameters, buffers), expected, rtol=1e-4, atol=1e-5)
    grads = torch.func.vmap(torch.func.grad(lambda p, b: run(p, b).square().sum()))(parameters, buffers)
    layers[1].zero_grad()
    layers[1](x).square().sum().backward()
    key = next(key for key in grads if key.endswith("original"))
    torch.testing.assert_close(grads[key][1], original(layers[1]).grad, rtol=1e-3, atol=1e-4)


@by_case
def test_reads_can_be_cached(case: Parametrized):
    layer = case.make()
    with parametrize.cached():
        assert layer.weight is layer.weight


@pytest.mark.one_in(2)
@by_case
@pytest.mark.parametrize("mode", [True, False])
def test_every_layer_caches_its_own_weight(case: Parametrized, mode: bool):
    """Layers of one kind share a class, and torch keeps cached tensors by the module a property was made for."""
    layers = [case.make(seed).train(mode) for seed in range(3)]
    alone = [layer.weight.detach().clone() for layer in layers]
    with parametrize.cached():
        cached = [layer.weight for layer in layers]
        for weight, expected, layer in zip(cached, alone, layers, strict=True):
            assert torch.equal(weight, expected)
            assert layer.weight is weight
        sum(weight.square().sum() for weight in cached).backward()
    assert all(parameter.grad is not None for layer in layers for parameter in layer.parameters() if parameter.ndim > 1)


@pytest.mark.one_in(8)
@by_case
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_layers_follow_training_and_evaluation_without_breaks_and_recompilations(case: Parametrized):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    layer = case.make().train()
    eager = copy.deepcopy(layer)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    rules = [torch.optim.SGD(module.parameters(), lr=0.1) for module in (layer, eager)]
    for seed in range(3):
        for module, rule in ((compiled, rules[0]), (eager, rules[1])):
            rule.zero_grad()
            module(case.batch(seed=seed)).square().sum().backward()
            rule.step()
    torch.testing.assert_close(original(layer), original(eager), rtol=1e-4, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    layer.eval()
    eager.eval()
    torch.testing.assert_close(compiled(case.batch()), eager(case.batch()), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        original(layer).mul_(9.0)  # in place, while compiled code stays in evaluation
        original(eager).mul_(9.0)
        torch.testing.assert_close(compiled(case.batch()), eager(case.batch()), rtol=1e-4, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 3


@pytest.mark.one_in(4)
@by_case
@pytest.mark.parametrize("strict", [True, False], ids=["strict", "not strict"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_exported_layers_carry_the_proven_weight(case: Parametrized, strict: bool):
    layer = train(case.make(), case, 1).eval()
    x = case.batch()
    program = torch.export.export(layer, (x,), strict=strict)
    assert torch.equal(program.module()(x), layer(x))
    assert not any("lipcert" in str(node.target) for node in program.graph.nodes)


@settings(max_examples=50)
@given(
    name=st.sampled_from(sorted(PARAMETRIZED)),
    actions=st.lists(
        st.sampled_from(["step", "eval", "train", "half", "float", "save", "load", "deepcopy", "pickle", "scale"]),
        max_size=8,
    ),
)
def test_the_claim_survives_any_life(name: str, actions: list[str]):
    case = PARAMETRIZED[name]
    layer = case.make()
    saved = copy.deepcopy(layer.state_dict())
    for count, action in enumerate(actions):
        match action:
            case "step":
                # 16 bits are for deployment: a step there may round the parameter to zero or to infinity
                if original(layer).dtype == torch.float32:
                    train(layer, case, 1)
            case "eval" | "train":
                layer.train(action == "train")
            case "half" | "float":
                layer.to(torch.bfloat16 if action == "half" else torch.float32)
            case "save":
                saved = copy.deepcopy(layer.state_dict())
            case "load":
                layer.load_state_dict(saved)
            case "deepcopy":
                layer = copy.deepcopy(layer)
            case "pickle":
                layer = pickle.loads(pickle.dumps(layer))
            case "scale":
                with torch.no_grad():
                    original(layer).mul_(1.0 + count)
        training = layer.training
        assert operator_norm(layer.eval(), case.input_shape) <= case.bound
        layer.train(training)
    parametrize.remove_parametrizations(layer, name_of(layer))
    assert operator_norm(layer, case.input_shape) <= case.bound


@by_case
def test_parameters_and_buffers_can_be_sharded_and_broadcast(case: Parametrized):
    layer = case.make()
    setattr(layer, name_of(layer), 2.0 * layer.weight.detach())
    for tensor in (*layer.parameters(), *layer.buffers()):
        assert tensor.stride() == torch.empty(tensor.shape).stride()
