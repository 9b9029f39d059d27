"""Drawn networks: every bound is above every pair, and does not depend on what does not matter."""

import copy
import io
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from lipcert import L1, L1_LINF, L2, LINF, Certificate, Norms, certify, check, check_float64, solvers, trace
from lipcert.certifiers import Best, Certifier, LipSDP, Product, RowLipSDP, certify_on
from lipcert.enclosure import stretch
from lipcert.errors import CheckFailed, LipschitzViolation, Unproved
from lipcert.falsify import Effort, Refuted, refute
from lipcert.testing import (
    Network,
    assert_lipschitz,
    conv,
    domains,
    flatten,
    input_pairs,
    leaky_relu,
    linear,
    linear_maps,
    lipcheck,
    networks,
    relu,
)

SOME = settings(max_examples=16)
FEW = settings(max_examples=8)
CLOSED = LipSDP(solvers.Recursion())
CERTIFIERS: dict[str, Certifier] = {"product": Product(), "closed form": CLOSED, "best": Best(Product(), CLOSED)}
NEARBY: dict[Norms, Certifier] = {
    L2: CLOSED,
    **dict.fromkeys((L1, LINF, L1_LINF), RowLipSDP(gap=1e-2, largest=40, rows=16)),
}
SIGNS = st.sampled_from((1.0, -1.0))


def bound(model: nn.Module, shape: tuple[int, ...], by: Certifier = Product(), norms=L2) -> float:  # noqa: B008
    return certify(model, shape, norms=norms, by=by).bound


# ------------------------------------------------------------------------------------------- brackets


@pytest.mark.parametrize("norms", [L2, L1, LINF], ids=str)
@SOME
@given(st.data(), networks())
def test_no_pair_is_above_a_bound(norms, data, network: Network):
    x, y = data.draw(input_pairs(network.input_shape))
    graph = trace(network.to_module(), network.input_shape)
    seen = stretch(graph, x, y, norms)
    assert not seen.exceeds(Product()(graph, norms).bound)


@SOME
@given(st.data(), networks(width=(1, 4), depth=(2, 4)))
def test_no_pair_is_above_a_semidefinite_bound_which_is_not_above_the_product(data, network: Network):
    x, y = data.draw(input_pairs(network.input_shape))
    graph = trace(network.to_module(), network.input_shape)
    found = CLOSED(graph)
    assert not stretch(graph, x, y, L2).exceeds(found.bound)
    assert found.bound <= Product()(graph).bound * (1 + 1e-9)


@pytest.mark.parametrize("norms", NEARBY, ids=str)
@FEW
@given(st.data(), networks(width=(1, 4), depth=(1, 4)))
def test_no_pair_of_a_domain_is_above_a_bound_there_which_the_checkers_accept(norms, data, network: Network):
    domain = data.draw(domains(network.input_shape))
    graph = trace(network.to_module(), network.input_shape, domain)
    found = certify_on(graph, domain, norms, NEARBY[norms])
    x, y = data.draw(input_pairs(network.input_shape, domain))
    assert not stretch(graph, x, y, norms).exceeds(found.bound)
    assert check(found, graph).bound == check_float64(found, graph).bound == found.bound


@FEW
@given(networks(width=(1, 3), depth=(1, 3)))
def test_a_search_finds_nothing_above_a_bound_and_the_checker_accepts_it(network: Network):
    model = network.to_module()
    certificate = certify(model, network.input_shape, by=Best(Product(), CLOSED))
    assert check(certificate, trace(model, network.input_shape)).bound == certificate.bound
    verdict = refute(model, network.input_shape, certificate.bound, effort=Effort(rounds=2))
    assert not isinstance(verdict, Refuted), f"{network!r}: {verdict}"


@SOME
@given(linear_maps())
def test_a_linear_map_is_bounded_by_its_norm_and_barely_more(network: Network):
    model = network.to_module().double()
    units = torch.eye(math.prod(network.input_shape), dtype=torch.float64).reshape(-1, *network.input_shape)
    with torch.no_grad():
        norm = float(torch.linalg.matrix_norm(model(units).flatten(1), 2))
    assert norm * (1 - 1e-12) <= bound(model, network.input_shape) <= norm * (1 + 1e-6) + 1e-300


# --------------------------------------------------------------------------- what must not change anything, to the bit


def scaled_outputs(model: nn.Sequential, power: int) -> nn.Module:
    return nn.Sequential(model, _diagonal(2.0**power))


def _diagonal(factor: float) -> nn.Module:
    class Times(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return factor * x

    return Times()


def saved_and_loaded(model: nn.Sequential) -> nn.Module:
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    again = copy.deepcopy(model)
    for parameter in again.parameters():
        nn.init.zeros_(parameter)
    again.load_state_dict(torch.load(file))
    return again


def with_other_biases(model: nn.Sequential) -> nn.Module:
    again = copy.deepcopy(model)
    for module in again.modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d) and module.bias is not None:
            nn.init.constant_(module.bias, 0.75)
    return again


SAME: dict[str, Callable[[nn.Sequential], nn.Module]] = {
    "float64": lambda model: copy.deepcopy(model).double(),
    "a copy": copy.deepcopy,
    "saved and loaded": saved_and_loaded,
    "other biases": with_other_biases,
    "an identity before and after": lambda model: nn.Sequential(nn.Identity(), model, nn.Identity()),
    "a dropout in evaluation": lambda model: nn.Sequential(model, nn.Dropout(0.5)).eval(),
}


@pytest.mark.parametrize("name", SAME)
@SOME
@given(network=networks())
def test_what_does_not_change_the_function_by_a_slope_does_not_change_the_bound(name: str, network: Network):
    model = network.to_module()
    assert bound(SAME[name](model), network.input_shape) == bound(model, network.input_shape)


@SOME
@given(networks(), st.integers(-20, 20))
def test_a_power_of_two_scales_the_bound_exactly(network: Network, power: int):
    model = network.to_module()
    expected = math.ldexp(bound(model, network.input_shape), power)
    assert bound(scaled_outputs(model, power), network.input_shape) == pytest.approx(expected, rel=1e-12)


# --------------------------------------------------------------------------- what changes it by rounding at most


@st.composite
def matrices(draw, depth: int = 3) -> list[Tensor]:
    sizes = draw(st.lists(st.integers(1, 4), min_size=depth + 1, max_size=depth + 1))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    shapes = zip(sizes[1:], sizes[:-1], strict=True)
    return [torch.randint(-2, 3, shape, generator=generator).double() for shape in shapes]


def mlp(weights: list[Tensor]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for weight in weights:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=torch.float64)
        layer.weight.data = weight.clone()
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def close(first: float, second: float, rel: float = 1e-6) -> bool:
    return first == pytest.approx(second, rel=rel, abs=1e-300)


@SOME
@given(matrices(), st.lists(SIGNS, min_size=4, max_size=4), st.lists(SIGNS, min_size=4, max_size=4))
def test_signs_of_outputs_and_inputs_do_not_matter(weights: list[Tensor], left: list[float], right: list[float]):
    turned = [weights[0] * torch.tensor(right)[: weights[0].shape[1]], *weights[1:]]
    turned[-1] = torch.tensor(left)[: turned[-1].shape[0], None] * turned[-1]
    assert close(bound(mlp(turned), turned[0].shape[1:]), bound(mlp(weights), weights[0].shape[1:]))


@SOME
@given(matrices())
def test_rows_and_columns_of_zeros_do_not_matter(weights: list[Tensor]):
    padded = [nn.functional.pad(weight, (0, 1, 0, 1)) for weight in weights]
    for by in (Product(), CLOSED):
        assert close(bound(mlp(padded), padded[0].shape[1:], by), bound(mlp(weights), weights[0].shape[1:], by))


@SOME
@given(matrices(), st.integers(0, 2**16))
def test_turning_inputs_and_outputs_does_not_matter(weights: list[Tensor], seed: int):
    generator = torch.Generator().manual_seed(seed)

    def turn(size: int) -> Tensor:
        return torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]

    turned = [weights[0] @ turn(weights[0].shape[1]), *weights[1:]]
    turned[-1] = turn(turned[-1].shape[0]) @ turned[-1]
    assert close(bound(mlp(turned), turned[0].shape[1:]), bound(mlp(weights), weights[0].shape[1:]))


@FEW
@given(matrices(), st.lists(st.integers(-3, 3), min_size=4, max_size=4))
def test_scaling_hidden_units_does_not_matter_to_multipliers(weights: list[Tensor], powers: list[int]):
    scale = 2.0 ** torch.tensor(powers, dtype=torch.float64)[: weights[0].shape[0]]
    moved = [scale[:, None] * weights[0], weights[1] / scale, *weights[2:]]
    both = LipSDP(solvers.InteriorPoint(gap=1e-7))
    first, second = (bound(mlp(w), w[0].shape[1:], both) for w in (weights, moved))
    assert close(first, second, 1e-4)


@FEW
@given(matrices(2))
def test_a_neuron_in_two_halves_is_one_neuron_to_multipliers(weights: list[Tensor]):
    first, second = weights
    doubled = [torch.cat([first[:1], first]), torch.cat([second[:, :1] / 2, second[:, :1] / 2, second[:, 1:]], 1)]
    both = LipSDP(solvers.InteriorPoint(gap=1e-7))
    assert bound(mlp(doubled), first.shape[1:], both) <= bound(mlp(weights), first.shape[1:], both) * (1 + 1e-4) + 1e-12


@SOME
@given(matrices(2), matrices(2))
def test_networks_side_by_side_have_the_larger_bound(first: list[Tensor], second: list[Tensor]):
    joined = [torch.block_diag(a, b) for a, b in zip(first, second, strict=True)]
    apart = max(bound(mlp(w), w[0].shape[1:], Product(longest=1)) for w in (first, second))
    whole = bound(mlp(joined), joined[0].shape[1:], Best(Product(), CLOSED))
    separate = max(math.prod(float(torch.linalg.matrix_norm(w, 2)) for w in ws) for ws in (first, second))
    assert apart <= separate * (1 + 1e-6) + 1e-300
    largest = math.prod(max(float(torch.linalg.matrix_norm(w, 2)) for w in pair) for pair in zip(first, second))  # noqa: B905
    assert whole <= largest * (1 + 1e-6) + 1e-300


@SOME
@given(matrices(2), matrices(2))
def test_a_composition_is_bounded_by_the_product(first: list[Tensor], second: list[Tensor]):
    second[0] = second[0].new_ones(second[0].shape[0], first[-1].shape[0])
    outer, inner = mlp(second), mlp(first)
    shape, middle = first[0].shape[1:], second[0].shape[1:]
    together = bound(nn.Sequential(inner, outer), shape)
    assert together <= bound(inner, shape) * bound(outer, middle) * (1 + 1e-6) + 1e-300


@FEW
@given(matrices(3))
def test_more_effort_never_loosens(weights: list[Tensor]):
    shape, model = weights[0].shape[1:], mlp(weights)
    found = [
        bound(model, shape, Best(Product(), LipSDP(solvers.InteriorPoint(iterations=count)))) for count in (1, 5, 50)
    ]
    assert found[0] * (1 + 1e-9) >= found[1]
    assert found[1] * (1 + 1e-9) >= found[2]


# --------------------------------------------------------------------------- what hypothesis is told


def test_a_claim_about_drawn_networks_that_is_false_shrinks_to_the_smallest():
    """That a ReLU network is bounded by its first layer alone."""

    @settings(max_examples=60, database=None, deadline=None, derandomize=True, phases=(Phase.generate, Phase.shrink))
    @given(networks(layers=["linear", "relu"], depth=(2, 3), width=(1, 2)))
    def claim(network: Network) -> None:
        first = next((layer for layer in network.layers if isinstance(layer, linear)), None)
        assume(first is not None)
        norm = bound(Network(network.input_shape, flatten(), first).to_module(), network.input_shape)
        assert_lipschitz(
            network.to_module(), norm, network.input_shape, require="no-counterexample", effort=Effort(rounds=1)
        )

    with pytest.raises(LipschitzViolation) as failure:
        claim()
    assert "Network((1,), linear([[1]]), linear([[2]]))" in "\n".join(failure.value.__notes__)


def test_outside_of_hypothesis_the_assertions_are_plain():
    network = Network((1, 2, 2), conv([[1, 1]]), leaky_relu(0.5), relu())
    assert str(lipcheck(network.to_module(), network.input_shape, 2.0)).startswith("PROVED")
    with pytest.raises(LipschitzViolation):
        assert_lipschitz(network.to_module(), example_input=network.input_shape, bound=1.0)
    with pytest.raises(Unproved):
        assert_lipschitz(nn.LayerNorm(2), 1.0, (2,), effort=Effort(rounds=1))


# --------------------------------------------------------------------------- the life of a model and its certificate


class CertificateMachine(RuleBasedStateMachine):
    """A certificate is accepted for a network if and only if the network is, number by number, the one it is about."""

    @initialize(seed=st.integers(0, 100))
    def build(self, seed: int) -> None:
        torch.manual_seed(seed)
        hidden = parametrizations.weight_norm(nn.Linear(3, 3))
        self.model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), hidden, nn.Tanh(), nn.Linear(3, 1)).eval()
        self.certificates: list[Certificate] = []
        self.certify_it()

    @rule()
    def certify_it(self) -> None:
        self.certificates.append(certify(self.model, (2,), by=Product()))

    @rule(seed=st.integers(0, 100), rate=st.sampled_from((0.0, 0.1)))
    def take_a_step(self, seed: int, rate: float) -> None:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(4, 2, generator=generator).to(self.model[0].weight)
        self.model.zero_grad()
        self.model(x).sum().backward()
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter -= rate * parameter.grad

    @rule(mode=st.booleans())
    def switch_mode(self, mode: bool) -> None:
        self.model.train(mode)

    @rule()
    def to_half_and_back(self) -> None:
        self.model.half().float()

    @rule()
    def to_double(self) -> None:
        self.model.double()

    @rule()
    def to_float(self) -> None:
        self.model.float()

    @rule()
    def copy_it(self) -> None:
        self.model = copy.deepcopy(self.model)

    @rule()
    def save_and_load(self) -> None:
        self.model.load_state_dict({name: tensor.clone() for name, tensor in self.model.state_dict().items()})

    @rule()
    def remove_parametrizations(self) -> None:
        if parametrize.is_parametrized(self.model[2]):
            parametrize.remove_parametrizations(self.model[2], "weight")

    @rule(amount=st.sampled_from((0.0, 0.3)))
    def prune_it(self, amount: float) -> None:
        prune.l1_unstructured(self.model[0], "weight", amount=amount)
        prune.remove(self.model[0], "weight")

    @rule()
    def flip_a_sign_of_zero(self) -> None:
        """The same function; another number in the file."""
        weight = self.model[4].weight.data
        weight[0, 0] = -0.0 if weight[0, 0] == 0 and not torch.signbit(weight[0, 0]) else 0.0

    @invariant()
    def accepted_if_and_only_if_it_is_the_network(self) -> None:
        graph = trace(self.model, (2,))
        for certificate in self.certificates[-4:]:
            if certificate.network == graph.digest():
                assert check(certificate, graph).bound == certificate.bound
            else:
                with pytest.raises(CheckFailed):
                    check(certificate, graph)


TestCertificates = CertificateMachine.TestCase
TestCertificates.settings = settings(max_examples=8, stateful_step_count=12)
