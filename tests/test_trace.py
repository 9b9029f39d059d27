"""Tracing: names, messages, pruning, user rules, and nothing left behind."""

import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lipcert
from lipcert import lowering
from lipcert.errors import InvalidInput, NotFinite, NotLipschitz, UnsupportedOperation
from lipcert.freeze import freeze
from lipcert.graph import Activation, Affine, Input, Opaque
from lipcert.linear import Dense
from lipcert.lowering import Value, activation, affine, lower, lowers, opaque
from lipcert.norms import L2
from lipcert.trace import trace
from tests.cases import NETWORKS, Case


@pytest.fixture
def rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules registered in a test are gone after it."""
    monkeypatch.setattr(lowering, "_RULES", dict(lowering._RULES))


class Of(nn.Module):
    """A module that applies a function."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)  # type: ignore[operator]


@pytest.mark.parametrize("case", NETWORKS.values(), ids=NETWORKS)
def test_a_graph_computes_what_the_model_computes_in_any_batch(case: Case):
    model = case.model()
    graph, frozen = trace(model, case.input_shape), freeze(model)
    x = torch.randn(5, *case.input_shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert torch.allclose(graph.replay(x), frozen(x), rtol=1e-11, atol=1e-11)
    rows = torch.cat([graph.replay(row[None]) for row in x])
    assert torch.allclose(graph.replay(x), rows, rtol=1e-11, atol=1e-11)
    assert graph.output.shape == tuple(frozen(x).shape[1:])
    assert graph.input.shape == case.input_shape


@pytest.mark.parametrize("case", NETWORKS.values(), ids=NETWORKS)
def test_tracing_leaves_the_model_and_all_random_states_alone(case: Case):
    model = case.model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    trace(model, case.input_shape)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), np.random.get_state()[1].tolist())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_nodes_are_named_by_the_module_paths_of_the_user():
    class Critic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
            self.head = nn.Linear(2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.head(self.body(self.body(x))))

    names = [node.name for node in trace(Critic(), (2,))]
    assert names == ["input", "body.0", "body.1", "body.0#2", "body.1#2", "head", "tanh"]
    assert [node.name for node in trace(nn.Linear(2, 2), (2,))] == ["input", "linear"]


def test_functions_inside_a_module_are_named_by_its_path():
    model = nn.Sequential(nn.Sequential(Of(F.relu)))
    assert [node.name for node in trace(model, (2,))] == ["input", "0.0.relu"]


def test_an_operation_without_a_rule_is_refused_by_name_and_path():
    model = nn.ModuleDict({"norm": nn.LPPool2d(2, 2)})
    with pytest.raises(
        UnsupportedOperation, match=r"no lowering rule for `LPPool2d` at `0\.1`[\s\S]*lowers\(LPPool2d\)"
    ):
        trace(nn.Sequential(nn.Sequential(nn.ReLU(), model["norm"])), (1, 4, 4))
    with pytest.raises(UnsupportedOperation, match="`erfinv`"):
        trace(Of(torch.erfinv), (2,))


def test_a_refusal_carries_its_path():
    with pytest.raises(NotLipschitz) as refusal:
        trace(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), (2,))
    assert refusal.value.path == "1"


def test_in_place_operations_that_are_read_again_are_named_on_both_sides():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(inplace=True))

        def forward(self, x: Tensor) -> Tensor:
            h = self.net[0](x)
            return self.net[1](h) + h

    message = r"in-place ReLU at `net\.1` overwrites `net\.0`, which is also read at `add`; use `inplace=False`"
    with pytest.raises(UnsupportedOperation, match=message):
        trace(Net(), (2,))


@pytest.mark.parametrize("shape", [(0,), (2, 0), (-1,), 3, (2.0,), ("a",), (True,)])
def test_shapes_that_are_none_are_refused(shape: object):
    with pytest.raises(InvalidInput, match="positive integers"):
        trace(nn.ReLU(), shape)  # type: ignore[arg-type]


def test_a_shape_that_does_not_fit_is_refused_by_the_layer():
    with pytest.raises(InvalidInput, match=r"`1`.*\(2, 5\).*\(4,\)"):
        trace(nn.Sequential(nn.ReLU(), nn.Linear(5, 2)), (4,))


def test_what_the_output_does_not_need_is_pruned():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            self.unused(x).exp()
            return self.used(x)

    assert [node.name for node in trace(Net(), (2,))] == ["input", "used"]


def test_shapes_are_known_numbers_in_python():
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[1] != 2 or x.ndim != 3:
                raise ValueError("shape")
            parts = [x[:, i] * (i + 1) for i in range(x.size(1))]
            return torch.stack(parts, 1) / x.shape[-1] ** 0.5

    assert trace(Net(), (2, 4)).output.shape == (2, 4)


def test_a_users_rule_covers_his_module(rules: None):
    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return x * self.inner.weight.abs().max() if x.requires_grad else F.linear(2 * x, self.inner.weight)

    with pytest.raises(UnsupportedOperation):
        trace(Doubled(), (3,))

    @lowers(Doubled)
    def doubled(module: Doubled, x: Value) -> Value:
        return affine(lower(torch.mul, x, 2), Dense(module.inner.weight, x.shape))

    assert [type(node) for node in trace(Doubled(), (3,))] == [Input, Affine, Affine]


def test_a_users_rule_that_lies_is_found_by_replay(rules: None):
    class Doubled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * torch.relu(x)

    @lowers(Doubled)
    def doubled(module: Doubled, x: Value) -> Value:
        return lower(torch.relu, x)

    with pytest.raises(UnsupportedOperation, match="does not reproduce"):
        trace(Doubled(), (3,))


def test_declared_slopes_and_gains_are_kept_as_the_users_word(rules: None):
    class Soft(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sinh(x.tanh())

    @lowers(Soft)
    def soft(module: Soft, x: Value) -> Value:
        return activation(x, "declared:me", (0.0, 1.55), lambda t: torch.sinh(t.tanh()))

    node = trace(nn.Sequential(Soft()), (3,)).output
    assert isinstance(node, Activation)
    assert node.function == "declared:me"

    @lowers(Soft)
    def softer(module: Soft, x: Value) -> Value:
        return opaque(x, "declared:me", x.shape, {L2: 1.55}, lambda t: torch.sinh(t.tanh()))

    assert isinstance(trace(nn.Sequential(Soft()), (3,)).output, Opaque)


@pytest.mark.parametrize("slope", [(1.0, 0.0), (float("nan"), 1.0), (0.0, float("inf"))])
def test_empty_and_infinite_slopes_are_refused(rules: None, slope: tuple[float, float]):
    class Mine(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    lowers(Mine)(lambda module, x: activation(x, "declared:me", slope, lambda t: t))
    with pytest.raises(lipcert.errors.LipcertError):
        trace(Mine(), (2,))


@pytest.mark.parametrize("gain", [-1.0, float("nan"), float("inf")])
def test_gains_that_are_no_bounds_are_refused(rules: None, gain: float):
    class Mine(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    lowers(Mine)(lambda module, x: opaque(x, "declared:me", x.shape, {L2: gain}, lambda t: t))
    with pytest.raises(InvalidInput, match="finite number"):
        trace(Mine(), (2,))


def test_a_subclass_keeps_its_parents_rule_only_if_it_keeps_the_behaviour():
    class Named(nn.Linear):
        """Only says more about itself."""

        def __init__(self) -> None:
            super().__init__(2, 2)

        def reset_parameters(self) -> None:
            nn.init.ones_(self.weight)
            nn.init.zeros_(self.bias)

    class Other(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    class Property(nn.Linear):
        @property
        def weight(self) -> Tensor:  # type: ignore[override]
            return torch.zeros(2, 2)

    class Attribute(nn.Conv1d):
        padding_mode = "circular"

    assert lowering.rule_for(Named) is lowering.rule_for(nn.Linear) is not None
    assert [lowering.rule_for(cls) for cls in (Other, Property, Attribute)] == [None] * 3
    assert lowering.rule_for(nn.Module) is None
    assert lowering.rule_for([]) is None  # type: ignore[arg-type]


def test_weights_on_the_way_into_the_graph_are_float64_and_detached(rules: None):
    class Mine(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 0.5

    @lowers(Mine)
    def mine(module: Mine, x: Value) -> Value:
        return affine(x, Dense(nn.Parameter(0.5 * torch.eye(2)), x.shape))

    node = trace(Mine(), (2,)).output
    assert isinstance(node, Affine)
    assert isinstance(node.map, Dense)
    assert not node.map.weight.requires_grad
    assert node.map.weight.dtype == torch.float64


def test_weights_from_a_rule_that_are_not_finite_are_refused(rules: None):
    class Mine(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    lowers(Mine)(lambda module, x: affine(x, Dense(torch.full((2, 2), torch.nan), x.shape)))
    with pytest.raises(NotFinite, match="4 of 4"):
        trace(nn.Sequential(Mine()), (2,))


def test_a_model_that_gives_one_number_is_certified_and_checked():
    conv = nn.Conv1d(2, 3, 3, padding=1)
    model = nn.Sequential(conv, Of(lambda x: x[:, 1, 2]))
    graph = trace(model, (2, 5))
    assert graph.output.shape == ()
    certificate = lipcert.certify(model, (2, 5))
    norm = float(conv.weight[1].detach().double().norm())
    assert norm <= certificate.bound <= norm * (1 + 1e-8)
    assert lipcert.check(certificate, graph).bound == certificate.bound


def test_values_of_unlike_numbers_of_dimensions_do_not_join():
    with pytest.raises(InvalidInput, match=r"joins shapes \[\(2, 5\), \(2,\)\] along -1"):
        trace(Of(lambda x: torch.cat([x, x.mean(2)], -1)), (2, 5))
