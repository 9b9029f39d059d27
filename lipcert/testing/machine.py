"""A state machine that trains, copies, saves and converts a model, and checks its claim after every step. Floor 6."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterable, Iterator

import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lipcert.errors import LipcertError
from lipcert.linear import Shape
from lipcert.norms import L2, Norms
from lipcert.testing.assertions import assert_lipschitz

_SEEDS = st.integers(0, 2**16)
_RATES = st.sampled_from((0.1, 0.01, 1.0))


class TrainingMachine(RuleBasedStateMachine):
    """Whatever happens to a model in training, its claim holds in evaluation mode.

    Subclass it, give `build`, `input_shape` and `bound`, and let pytest find its ``TestCase``. The rules take training
    steps, switch modes, save and load, copy, go to half and double precision, scale the free parameters, and remove
    the parametrizations of a copy. Random numbers are seeded by drawn integers; the global state is left alone.

    Attributes:
        input_shape: Shape of one sample, without the batch dimension.
        bound: The claim.
        norms: The norms it is about.
        model: The model as it is now.

    Example:
        >>> from hypothesis import settings
        >>> from hypothesis.stateful import run_state_machine_as_test
        >>> from lipcert.parametrizations import spectral_norm
        >>> class Critic(TrainingMachine):
        ...     input_shape, bound = (2,), 1.0
        ...
        ...     def build(self) -> nn.Module:
        ...         return spectral_norm(nn.Linear(2, 1))
        >>> short = settings(max_examples=1, stateful_step_count=4, deadline=None)
        >>> run_state_machine_as_test(Critic, settings=short)
        >>> TestCritic = Critic.TestCase  # what pytest finds
    """

    input_shape: Shape
    bound: float
    norms: Norms = L2
    model: nn.Module

    def build(self) -> nn.Module:
        """A fresh model; called under a drawn seed."""
        raise NotImplementedError(f"{type(self).__name__} needs a `build` method that returns a fresh model.")

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """What training steps with; the learning rate is drawn. Default: SGD with momentum."""
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)

    def loss(self, outputs: Tensor, generator: torch.Generator) -> Tensor:
        """What training lowers. Default: the mean of the outputs along a random direction, as a critic feels it."""
        return (outputs * torch.randn(outputs.shape, generator=generator).to(outputs)).mean()

    def free_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that the claim must not depend on. Default: the originals of all parametrizations."""
        for name, parameter in self.model.named_parameters():
            if "parametrizations" in name.split("."):
                yield parameter

    def check_claim(self, model: nn.Module) -> None:
        """Fail unless the claim holds for a model in evaluation mode. Default: it must be proved.

        Override it where the claim rests on a construction that no certificate sees, or to require no counterexample.
        """
        assert_lipschitz(model, self.bound, self.input_shape, require="proof", norms=self.norms)

    @initialize(seed=_SEEDS)
    def start(self, seed: int) -> None:
        """Build the model."""
        self._adopt(self._fresh(seed))

    @rule(seed=_SEEDS, rate=_RATES, steps=st.integers(1, 4))
    def take_training_steps(self, seed: int, rate: float, steps: int) -> None:
        """Steps along the gradient of the loss at random inputs, in the mode the model is in."""
        generator = torch.Generator().manual_seed(seed)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        for _ in range(steps):
            x = torch.randn(4, *self.input_shape, generator=generator).to(self._example())
            self._optimizer.zero_grad()
            loss = self.loss(self.model(x), generator)
            if loss.requires_grad:
                loss.backward()
                self._optimizer.step()

    @rule(mode=st.booleans())
    def switch_mode(self, mode: bool) -> None:
        """Training or evaluation mode."""
        self.model.train(mode)

    @rule(seed=_SEEDS, fresh=st.booleans())
    def save_and_load(self, seed: int, fresh: bool) -> None:
        """Through a file, into the model itself or into a fresh one."""
        if fresh:
            self._adopt(self._loaded(seed))
        else:
            self.model.load_state_dict(_through_a_file(self.model))

    @rule()
    def go_on_with_a_copy(self) -> None:
        """A deep copy takes the place of the model."""
        self._adopt(copy.deepcopy(self.model))

    @rule()
    def go_to_half_precision_and_back(self) -> None:
        """The claim holds on both ways; or it is refused, and the model stays what it was."""
        wide = self._example().dtype
        halved = copy.deepcopy(self.model).half()
        try:
            self._check_copy(halved)
            back = halved.to(wide)
            self._check_copy(back)
        except AssertionError:
            raise
        except LipcertError:
            return
        self._adopt(back)

    @rule()
    def go_to_double_precision(self) -> None:
        """For good."""
        self._adopt(self.model.double())

    @rule(seed=_SEEDS)
    def remove_parametrizations_of_a_copy(self, seed: int) -> None:
        """The plain weights keep the claim, removed in the mode the model is in."""
        # Not of a deep copy: it shares a class with the model, and torch takes the parametrized weight from the class.
        plain = self._loaded(seed)
        for module in list(plain.modules()):
            if parametrize.is_parametrized(module):
                for name in list(module.parametrizations):  # type: ignore[arg-type]
                    parametrize.remove_parametrizations(module, name, leave_parametrized=True)
        self._check_copy(plain)

    @rule(exponent=st.integers(-6, 6))
    def scale_the_free_parameters(self, exponent: int) -> None:
        """By a power of two, behind the back of whatever watches them."""
        for parameter in self.free_parameters():
            parameter.data.mul_(2.0**exponent)

    @invariant()
    def the_claim_holds_in_evaluation(self) -> None:
        """Of a copy, so that checking changes nothing."""
        self._check_copy(self.model)

    def _check_copy(self, model: nn.Module) -> None:
        self.check_claim(copy.deepcopy(model).eval())

    def _loaded(self, seed: int) -> nn.Module:
        """A fresh model with the state of this one, in the same dtype and mode."""
        model = self._fresh(seed).to(self._example().dtype).train(self.model.training)
        model.load_state_dict(_through_a_file(self.model))
        return model

    def _fresh(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.build()

    def _adopt(self, model: nn.Module) -> None:
        self.model = model
        self._optimizer = self.optimizer(model.parameters())

    def _example(self) -> Tensor:
        """A tensor of the dtype the model is in."""
        floating = (p for p in self.model.parameters() if p.is_floating_point())
        return next(floating, torch.zeros(()))


def _through_a_file(model: nn.Module) -> dict[str, Tensor]:
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    return torch.load(file)
