"""What is logged in training brackets the norm from both sides, and observing changes nothing, to the bit."""

import copy
import math
import random
from dataclasses import astuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils import spectral_norm as hooked

from lipcert.errors import InvalidInput, UnsupportedOperation
from lipcert.monitor import Monitor, gradient_percentiles, observe
from lipcert.parametrizations import spectral_norm

LAYERS = {
    "linear": (lambda: nn.Linear(7, 5), (7,)),
    "conv1d": (lambda: nn.Conv1d(2, 3, 4, stride=2, padding=1), (2, 12)),
    "conv2d": (lambda: nn.Conv2d(2, 3, 3, padding=1), (2, 7, 6)),
    "circular": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 6, 6)),
    "reflect": (lambda: nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect", groups=2), (2, 6, 5)),
    "replicate, dilated": (lambda: nn.Conv2d(1, 4, 3, padding=2, dilation=2, padding_mode="replicate"), (1, 6, 5)),
    "conv3d": (lambda: nn.Conv3d(1, 2, 2, padding=1), (1, 4, 3, 3)),
    "transposed": (lambda: nn.ConvTranspose2d(3, 2, 3, stride=2, padding=1, output_padding=1), (3, 4, 4)),
}
PARAMETRIZED = {
    "bare": lambda layer: layer,
    "torch spectral norm": parametrizations.spectral_norm,
    "torch weight norm": parametrizations.weight_norm,
    "torch orthogonal": parametrizations.orthogonal,
    "old spectral norm": hooked,
    "ours": spectral_norm,
}
by_parametrization = pytest.mark.parametrize("wrap", PARAMETRIZED.values(), ids=PARAMETRIZED)


def operator_norm(layer: nn.Module, shape: tuple[int, ...]) -> float:
    """By applying the layer to every unit vector, in float64, minus its bias."""
    plain = copy.deepcopy(layer).double()
    units = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
    with torch.no_grad():
        columns = plain(units) - plain(torch.zeros(1, *shape, dtype=torch.float64))
    return float(torch.linalg.matrix_norm(columns.flatten(1), 2))


def network(wrap=lambda layer: layer) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        wrap(nn.Conv2d(1, 4, 3, padding=1)),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
        wrap(nn.Linear(4 * 36, 5)),
        nn.Linear(5, 1),
    )


def train_once(model: nn.Module, optimiser: torch.optim.Optimizer, x: Tensor) -> None:
    optimiser.zero_grad()
    model(x).square().mean().backward()
    optimiser.step()


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize(("make", "shape"), LAYERS.values(), ids=LAYERS)
def test_the_bracket_holds_the_norm_of_what_the_layer_does_at_its_input_size(make, shape, scale):
    torch.manual_seed(3)
    layer = make()
    sizes = {"model": shape[1:]} if len(shape) > 1 else None
    with torch.no_grad():
        layer.bias.zero_()
        norm = operator_norm(layer, shape) * scale
        layer.weight *= scale
    [reading] = observe(layer, input_sizes=sizes)
    assert reading.path == "model"
    assert (reading.claimed, reading.drift) == (None, None)
    assert reading.lower <= norm * (1 + 1e-6) <= reading.upper * (1 + 2e-6)
    assert reading.lower >= 0.98 * norm
    assert reading.upper <= 1.02 * norm
    assert reading.lower <= reading.upper * (1 + 1e-14)


@pytest.mark.parametrize(("make", "shape"), LAYERS.values(), ids=LAYERS)
def test_without_an_input_size_the_bound_holds_at_every_size(make, shape):
    torch.manual_seed(4)
    layer = make()
    [reading] = observe(layer)
    assert operator_norm(layer, shape) <= reading.upper * (1 + 1e-6)
    assert reading.lower <= reading.upper * (1 + 1e-14)


def test_the_reshaped_kernel_is_read_as_torch_reads_it():
    kernel = nn.Conv2d(1, 1, 7, padding=3, padding_mode="circular", bias=False)
    nn.init.ones_(kernel.weight)
    [reading] = observe(kernel, input_sizes={"model": (8, 8)})
    # 49 ones: a constant image becomes 49 times itself; a row of 49 ones has norm 7.
    assert math.isclose(reading.lower, 49.0, rel_tol=1e-6)
    assert math.isclose(reading.reshaped, 7.0, rel_tol=1e-6)
    torch.manual_seed(0)
    for layer in (nn.Conv2d(3, 5, 3), nn.ConvTranspose2d(3, 5, 3)):
        normalised = parametrizations.spectral_norm(copy.deepcopy(layer), n_power_iterations=200).train()
        divided_by = layer.weight.norm() / normalised.weight.norm()
        assert math.isclose(observe(layer)[0].reshaped, float(divided_by.detach()), rel_tol=1e-3)


def test_a_claim_that_is_not_kept_is_seen():
    torch.manual_seed(0)
    layer = parametrizations.spectral_norm(nn.Linear(30, 30))
    layer.weight = torch.randn(30, 30)
    [reading] = observe(layer.eval())
    norm = float(torch.linalg.matrix_norm(layer.weight.detach().double(), 2))
    assert reading.claimed == 1.0
    assert norm > 2.0
    assert 0.99 * norm <= reading.lower <= norm * (1 + 1e-12)
    assert norm <= reading.upper <= 1.001 * norm


@pytest.mark.parametrize("bound", [1.0, 0.3])
def test_our_claim_is_read_and_kept_in_evaluation(bound):
    model = network(lambda layer: spectral_norm(layer, bound=bound)).eval()
    readings = {reading.path: reading for reading in observe(model)}
    assert [readings[path].claimed for path in ("0", "5", "6")] == [bound, bound, None]
    assert all(readings[path].upper <= bound for path in ("0", "5"))
    assert all(readings[path].lower > 0.9 * bound for path in ("0", "5"))


@by_parametrization
def test_the_weight_read_is_the_one_the_next_pass_uses(wrap):
    torch.manual_seed(1)
    layer = wrap(nn.Linear(6, 4)).train()
    if wrap is hooked:
        layer(torch.zeros(1, 6))  # the hook leaves the weight of the last pass
    [reading] = observe(layer)
    norm = float(torch.linalg.matrix_norm(layer.weight.detach().double(), 2))
    assert reading.lower <= norm * (1 + 1e-12) <= reading.upper * (1 + 2e-12)
    assert reading.upper <= norm * (1 + 1e-6)


def _state(model: nn.Module) -> dict:
    tensors = {name: value.clone() for name, value in [*model.named_parameters(), *model.named_buffers()]}
    tensors |= {f"grad of {n}": p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    versions = {name: p._version for name, p in [*model.named_parameters(), *model.named_buffers()]}
    modes = [module.training for module in model.modules()]
    return dict(tensors=tensors, modes=modes, versions=versions, types=[type(module) for module in model.modules()])


@by_parametrization
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_observing_leaves_the_model_as_it_was_to_the_bit(wrap, training):
    model = network(wrap)
    x = torch.randn(4, 1, 6, 6)
    train_once(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), x)
    model.train(training)
    before = _state(model)
    identities = [id(tensor) for tensor in (*model.parameters(), *model.buffers())]
    generators = torch.get_rng_state(), random.getstate(), np.random.get_state()
    monitor = Monitor(model, every=1, gradients_at=None if training else x)
    for _ in range(2):
        monitor.step()
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert random.getstate() == generators[1]
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), generators[2], strict=True))
    assert identities == [id(tensor) for tensor in (*model.parameters(), *model.buffers())]
    after = _state(model)
    assert after["tensors"].keys() == before["tensors"].keys()
    assert all(torch.equal(after["tensors"][name], value) for name, value in before["tensors"].items())
    assert all(after[what] == before[what] for what in ("modes", "versions", "types"))


@by_parametrization
def test_training_goes_on_as_if_nobody_had_looked(wrap):
    def trained(looking: bool) -> list[Tensor]:
        model = network(wrap)
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        monitor = Monitor(model, every=1, prove_every=2)
        torch.manual_seed(5)
        for _ in range(3):
            loss = model(torch.randn(4, 1, 6, 6)).square().mean()
            if looking:
                monitor.step()  # between forward and backward: no saved tensor may be touched
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return [value.detach().clone() for value in model.state_dict().values()]

    assert all(torch.equal(a, b) for a, b in zip(trained(True), trained(False), strict=True))


def test_drift_is_relative_to_the_last_observation():
    layer = nn.Linear(2, 1, bias=False)
    monitor = Monitor(layer, every=1)
    with torch.no_grad():
        for weight, drift in (([3.0, 4.0], None), ([3.0, 4.0], 0.0), ([3.0, 3.0], 0.2), ([0.0, 0.0], 1.0)):
            layer.weight.copy_(torch.tensor([weight]))
            seen = monitor.step().get("lipcert/model/drift")
            assert seen == drift or math.isclose(seen, drift, rel_tol=1e-15)
        assert monitor.step()["lipcert/model/drift"] == 0.0
        layer.weight.fill_(1.0)
        assert monitor.step()["lipcert/model/drift"] == math.inf


def test_observations_come_every_few_steps_and_proofs_every_few_observations():
    monitor = Monitor(nn.Sequential(nn.Linear(3, 3)), every=3, prove_every=2)
    steps = [monitor.step() for _ in range(10)]
    assert [bool(values) for values in steps] == [True, False, False] * 3 + [True]
    assert ["lipcert/0/upper" in steps[i] for i in (0, 3, 6, 9)] == [True, False, True, False]
    assert all("lipcert/0/lower" in steps[i] for i in (0, 3, 6, 9))
    assert [step for step, _ in monitor.history] == [0, 3, 6, 9]
    assert all(isinstance(value, float) for values in steps for value in values.values())


def test_the_iteration_goes_on_from_where_it_ended():
    torch.manual_seed(0)
    Q, _ = torch.linalg.qr(torch.randn(40, 40, dtype=torch.float64))
    layer = nn.Linear(40, 40, bias=False).double()
    with torch.no_grad():  # singular values so close that one observation does not tell them apart
        layer.weight.copy_(Q @ torch.diag(torch.linspace(1.0, 0.9, 40, dtype=torch.float64)))
    monitor = Monitor(layer, every=1, prove_every=100)
    seen = [monitor.step()["lipcert/model/lower"] for _ in range(30)]
    assert all(seen[0] < later <= 1.0 + 1e-12 for later in seen[1:])
    assert 1.0 - seen[-1] < (1.0 - seen[0]) / 2


def test_a_new_top_direction_orthogonal_to_the_old_one_is_found():
    layer = nn.Linear(3, 3, bias=False)
    monitor = Monitor(layer, every=1)
    for diagonal in ([1.0, 0.0, 0.0], [1.0, 0.0, 5.0]):
        layer.weight.data.copy_(torch.diag(torch.tensor(diagonal)))
        assert math.isclose(monitor.step()["lipcert/model/lower"], max(diagonal), rel_tol=1e-4)


class FakeWriter:
    def __init__(self):
        self.calls = []

    def add_scalar(self, tag, scalar_value, global_step):
        self.calls.append((tag, scalar_value, global_step))


def test_numbers_reach_a_writer_a_function_and_a_dict():
    writer, handed, kept = FakeWriter(), [], {}
    monitor = Monitor(nn.Linear(3, 3), every=2).log_to(writer).log_to(handed.append).log_to(kept)
    first = monitor.step()
    monitor.step()
    last = monitor.step()
    assert handed == [first, last]
    assert writer.calls == [*((n, v, 0) for n, v in first.items()), *((n, v, 2) for n, v in last.items())]
    assert kept == {**first, **last}
    with pytest.raises(InvalidInput, match="add_scalar"):
        monitor.log_to(3)


def test_what_is_no_known_operator_has_no_bracket():
    class Odd(nn.Linear):
        def forward(self, x):
            return super().forward(x).sin()

    odd, recurrent = parametrizations.spectral_norm(Odd(3, 3)), nn.LSTM(3, 4)
    parametrizations.spectral_norm(recurrent, "weight_ih_l0")
    table = parametrizations.weight_norm(nn.Embedding(5, 3))
    readings = {r.path: r for r in observe(nn.Sequential(odd, recurrent, table))}
    assert (readings["0"].lower, readings["0"].upper) == (None, None)
    assert 0.9 < readings["0"].reshaped < 1.1
    gates = recurrent.weight_ih_l0.detach().double().reshape(4, 4, 3)
    norm = float(torch.linalg.matrix_norm(gates, 2).max())
    seen = readings["1.weight_ih_l0"]
    assert 0.98 * norm <= seen.lower <= norm * 1.001
    assert norm * 0.999 <= seen.upper <= 1.02 * norm
    rows = float(table.weight.detach().double().norm(dim=1).max())
    assert math.isclose(readings["2"].lower, rows, rel_tol=1e-12)
    assert math.isclose(readings["2"].upper, rows, rel_tol=1e-6)


def test_a_diverged_weight_reads_as_nan_and_a_zero_one_as_zero():
    layer = nn.Linear(3, 3)
    monitor = Monitor(layer, every=1, prove_every=1)
    with torch.no_grad():
        nn.init.zeros_(layer.weight)
        [zero] = observe(layer)
        assert astuple(zero) == ("model", None, 0.0, 0.0, 0.0, None)
        monitor.step()
        layer.weight[0, 0] = math.nan
        values = monitor.step()
        assert all(math.isnan(values[f"lipcert/model/{what}"]) for what in ("lower", "upper", "reshaped"))
        nn.init.ones_(layer.weight)
        assert math.isclose(monitor.step()["lipcert/model/lower"], 3.0, rel_tol=1e-6)


def test_uninitialised_layers_wait_and_shared_ones_are_read_once():
    shared = nn.Linear(3, 3)
    assert [r.path for r in observe(nn.Sequential(nn.LazyLinear(4), shared, nn.ReLU(), shared))] == ["1"]


@pytest.mark.parametrize("mode", [True, False])
def test_gradient_percentiles_are_those_of_the_gradients_taken_one_by_one(mode):
    torch.manual_seed(0)
    critic = nn.Sequential(spectral_norm(nn.Linear(3, 8)), nn.Tanh(), nn.Linear(8, 1)).train(mode)
    x = torch.randn(20, 3)
    norms = []
    for sample in x:
        sample = sample[None].requires_grad_()
        norms.append(float(torch.autograd.grad(critic(sample).sum(), sample)[0].double().norm()))
    found = gradient_percentiles(critic, x, (0, 5, 50, 95, 100))
    for q, value in found.items():
        assert math.isclose(value, np.percentile(norms, q), rel_tol=1e-5)
    assert not x.requires_grad
    flat = gradient_percentiles(lambda z: critic(z)[:, 0], x, (50,))
    assert math.isclose(flat[50.0], found[50.0], rel_tol=1e-6)


def test_gradient_percentiles_refuse_what_has_no_gradient_per_sample():
    x = torch.randn(4, 1, 6, 6)
    with pytest.raises(UnsupportedOperation, match="batch"):
        gradient_percentiles(network().train(), x)
    with pytest.raises(InvalidInput, match="one number per sample"):
        gradient_percentiles(nn.Linear(3, 2), torch.randn(4, 3))
    for bad, q in ((torch.randn(0, 3), (5,)), (torch.ones(4, 3, dtype=torch.int64), (5,)), (torch.randn(4, 3), (101,))):
        with pytest.raises(InvalidInput, match="percentiles"):
            gradient_percentiles(nn.Linear(3, 1), bad, q)


def test_what_makes_no_sense_is_refused():
    with pytest.raises(InvalidInput, match="periods"):
        Monitor(nn.Linear(2, 2), every=0)
    with pytest.raises(InvalidInput, match="nowhere"):
        observe(nn.Linear(2, 2), input_sizes={"nowhere": (3, 3)})
    with pytest.raises(InvalidInput, match="nothing was observed"):
        Monitor(nn.Linear(2, 2)).plot("never.png")


def test_the_plot_is_an_image(tmp_path):
    model = nn.Sequential(spectral_norm(nn.Linear(3, 3)), nn.Linear(3, 1))
    monitor = Monitor(model, every=1, prove_every=2, gradients_at=torch.randn(4, 3))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        train_once(model, optimiser, torch.randn(4, 3))
        assert "lipcert/gradient/p50" in monitor.step()
    monitor.plot(tmp_path / "norms.png")
    assert (tmp_path / "norms.png").read_bytes().startswith(b"\x89PNG")


def test_a_parametrization_of_the_users_own_is_bracketed_without_a_claim():
    class Halved(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight / 2

    layer = nn.Linear(3, 3, bias=False)
    nn.init.eye_(layer.weight)
    parametrize.register_parametrization(layer, "weight", Halved())
    [reading] = observe(layer)
    assert reading.claimed is None
    assert math.isclose(reading.lower, 0.5, rel_tol=1e-7)
    assert 0.5 <= reading.upper < 0.500001
