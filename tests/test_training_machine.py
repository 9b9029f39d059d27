"""`TrainingMachine`: layers of lipcert survive it, layers that only look right do not."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm as torch_spectral_norm

from lipcert.errors import LipcertError, LipschitzViolation, Unproved
from lipcert.norms import LINF
from lipcert.parametrizations import aol, orthogonal, spectral_norm
from lipcert.testing import TrainingMachine

SHORT = settings(
    max_examples=3,
    stateful_step_count=5,
    deadline=None,
    database=None,
    report_multiple_bugs=False,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],
)
SEARCH = settings(SHORT, max_examples=40, stateful_step_count=8)


class Kept(TrainingMachine):
    """Three parametrizations."""

    input_shape = (1, 3, 3)
    bound = 1.0

    def build(self) -> nn.Module:
        conv = spectral_norm(nn.Conv2d(1, 2, 2), input_size=(3, 3))
        return nn.Sequential(conv, nn.Flatten(), orthogonal(nn.Linear(8, 3)), aol(nn.Linear(3, 1)))

    def check_claim(self, model: nn.Module) -> None:
        # A product of three claims rounds up.
        self.bound = 1.0 + 2.0**-20
        super().check_claim(model)


class Torchs(TrainingMachine):
    """The spectral norm of torch: after a step, its vector belongs to the weight before."""

    input_shape = (3,)
    bound = 1.01

    def build(self) -> nn.Module:
        return torch_spectral_norm(nn.Linear(3, 3))


class Reshaped(nn.Module):
    """Divides a kernel by the norm of the kernel written as a matrix, which is not the norm of the convolution."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight / torch.linalg.matrix_norm(weight.flatten(1), 2)


class ReshapedNorm(TrainingMachine):
    """What many critics do."""

    input_shape = (1, 3, 3)
    bound = 1.0001

    def build(self) -> nn.Module:
        layer = nn.Conv2d(1, 2, 2, padding=1)
        nn.init.constant_(layer.weight, 0.5)
        return parametrize.register_parametrization(layer, "weight", Reshaped())


class Once(nn.Module):
    """Proves the weight it meets first, and believes so forever."""

    def __init__(self) -> None:
        super().__init__()
        self.norm: Tensor | None = None

    def forward(self, weight: Tensor) -> Tensor:
        if self.norm is None:
            self.norm = torch.linalg.matrix_norm(weight.detach(), 2) * 1.0001
        return weight / self.norm


class Remembered(TrainingMachine):
    """Right at the start, wrong after any change of the parameter."""

    input_shape = (2,)
    bound = 1.0

    def build(self) -> nn.Module:
        return parametrize.register_parametrization(nn.Linear(2, 2), "weight", Once())

    def check_claim(self, model: nn.Module) -> None:
        norm = float(torch.linalg.matrix_norm(model.weight.detach().double(), 2))
        if norm > self.bound:
            raise LipschitzViolation(f"REFUTED: {norm}")


def test_layers_of_lipcert_keep_their_claims():
    run_state_machine_as_test(Kept, settings=SHORT)


@pytest.mark.parametrize("machine", [Torchs, ReshapedNorm])
def test_layers_that_only_look_right_are_found(machine: type[TrainingMachine]):
    with pytest.raises(LipschitzViolation):
        run_state_machine_as_test(machine, settings=SEARCH)


def test_a_failure_is_told_as_the_few_steps_that_lead_to_it():
    with pytest.raises(LipschitzViolation) as failure:
        run_state_machine_as_test(Remembered, settings=settings(SEARCH, phases=[Phase.generate, Phase.shrink]))
    steps = [line for note in failure.value.__notes__ for line in note.splitlines() if "state." in line]
    assert [step.split("state.")[1].split("(")[0] for step in steps][:1] == ["start"]
    assert len(steps) <= 4


def walk(machine: TrainingMachine, *rules: Callable[[], object]) -> None:
    for rule in rules:
        rule()
        machine.the_claim_holds_in_evaluation()


def started(kind: type[TrainingMachine]) -> TrainingMachine:
    machine = kind()
    machine.start(seed=1)
    return machine


def test_every_rule_runs_by_hand():
    machine = started(Kept)
    before = {name: value.clone() for name, value in machine.model.state_dict().items()}
    random = torch.get_rng_state()
    walk(
        machine,
        lambda: machine.take_training_steps(seed=0, rate=0.1, steps=2),
        lambda: machine.switch_mode(mode=False),
        lambda: machine.take_training_steps(seed=0, rate=0.1, steps=1),
        lambda: machine.save_and_load(seed=5, fresh=True),
        lambda: machine.save_and_load(seed=5, fresh=False),
        machine.go_on_with_a_copy,
        lambda: machine.remove_parametrizations_of_a_copy(seed=2),
        lambda: machine.scale_the_free_parameters(exponent=3),
        machine.go_to_half_precision_and_back,
        machine.go_to_double_precision,
        lambda: machine.switch_mode(mode=True),
        lambda: machine.take_training_steps(seed=0, rate=0.1, steps=1),
        lambda: machine.remove_parametrizations_of_a_copy(seed=2),
    )
    assert torch.equal(torch.get_rng_state(), random)
    after = machine.model.state_dict()
    assert before.keys() == after.keys()
    assert any(not torch.equal(value, after[name].to(value)) for name, value in before.items())
    assert all(parameter.dtype == torch.float64 for parameter in machine.model.parameters())


def test_saving_into_a_fresh_model_keeps_the_function():
    machine = started(Kept)
    machine.take_training_steps(seed=0, rate=0.1, steps=3)
    x = torch.randn(4, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    old, expected = machine.model, machine.model.eval()(x)
    machine.save_and_load(seed=9, fresh=True)
    assert machine.model is not old
    torch.testing.assert_close(machine.model.eval()(x), expected)


def test_a_refusal_in_half_precision_leaves_the_model_alone():
    class Refusing(Kept):
        def check_claim(self, model: nn.Module) -> None:
            if next(model.parameters()).dtype == torch.float16:
                raise LipcertError("refused")

    machine = started(Refusing)
    model = machine.model
    machine.go_to_half_precision_and_back()
    assert machine.model is model
    assert next(model.parameters()).dtype == torch.float32


@pytest.mark.parametrize("failure", [LipschitzViolation, Unproved])
def test_a_broken_claim_in_half_precision_is_no_refusal(failure: type[LipcertError]):
    class Broken(Kept):
        def check_claim(self, model: nn.Module) -> None:
            if next(model.parameters()).dtype == torch.float16:
                raise failure("broken")

    machine = started(Broken)
    with pytest.raises(failure):
        machine.go_to_half_precision_and_back()


def test_norms_loss_and_optimizer_are_the_users():
    class Own(TrainingMachine):
        input_shape, bound, norms = (2,), 1.0, LINF
        asked: list[object] = []  # noqa: RUF012

        def build(self) -> nn.Module:
            layer = nn.Linear(2, 2, bias=False)
            nn.init.constant_(layer.weight, 0.4)
            return layer

        def optimizer(self, parameters):
            return torch.optim.Adam(parameters)

        def loss(self, outputs: Tensor, generator: torch.Generator) -> Tensor:
            self.asked.append(outputs.shape)
            return outputs.square().sum()

    machine = started(Own)
    machine.the_claim_holds_in_evaluation()
    machine.take_training_steps(seed=0, rate=0.01, steps=2)
    assert Own.asked == [(4, 2)] * 2
    assert list(machine.free_parameters()) == []
    machine.bound = 0.5
    with pytest.raises(LipschitzViolation):
        machine.the_claim_holds_in_evaluation()


def test_a_machine_without_a_model_says_what_is_missing():
    with pytest.raises(NotImplementedError, match="`build`"):
        TrainingMachine().start(seed=0)
