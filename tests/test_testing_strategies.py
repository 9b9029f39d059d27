"""What `lipcert.testing` draws: values that read as python, fit together, keep their word and shrink to little."""

import math
import time
import typing
from itertools import chain

import pytest
import torch
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lipcert import Budget, certify, witness
from lipcert.domain import Box, L2Ball, WholeSpace
from lipcert.errors import InvalidInput
from lipcert.freeze import freeze
from lipcert.norms import L2, SUPPORTED, Norms
from lipcert.testing import (
    CLAIMS,
    LAYERS,
    Claimed,
    Layer,
    Network,
    abs_,
    conv,
    conv_layers,
    domains,
    flatten,
    groupsort,
    input_pairs,
    leaky_relu,
    linear,
    linear_maps,
    lipschitz_modules,
    maxmin,
    maxpool,
    networks,
    register_profiles,
    relu,
    residual,
    tanh,
    transposed_conv,
)
from lipcert.testing.drawing import RECIPES

few = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SEARCH = settings(
    max_examples=1000, deadline=None, database=None, derandomize=True, phases=[Phase.generate, Phase.shrink]
)
NAMES = {**LAYERS, "Network": Network, "Claimed": Claimed}
BY_CONSTRUCTION = ("SLLLinear", "CPLLinear", "SandwichLinear")


def linear_part(module: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """The matrix of an affine module, transposed."""
    size = math.prod(shape)
    frozen = freeze(module)
    with torch.no_grad():
        images = frozen(torch.eye(size, dtype=torch.float64).reshape(size, *shape))
        return (images - frozen(torch.zeros(1, *shape, dtype=torch.float64))).reshape(size, -1)


def gain(layer: Layer, before: tuple[int, ...]) -> float:
    return float(torch.linalg.matrix_norm(linear_part(layer.module(before).eval(), before), 2))


def numbers(network: Network) -> list[float]:
    """All weights and biases."""
    return list(chain.from_iterable(p.flatten().tolist() for p in network.to_module().parameters()))


@few
@given(networks() | networks(weights="floats", scale=0.25) | conv_layers() | linear_maps())
def test_a_network_prints_as_the_python_that_makes_it(network: Network):
    again = eval(repr(network), dict(NAMES))
    assert again == network
    assert hash(again) == hash(network)
    assert repr(again) == repr(network)


def test_hypothesis_prints_a_network_as_the_python_that_makes_it():
    @settings(SEARCH, print_blob=False)
    @given(networks(layers=["linear"]))
    def fails(network: Network) -> None:
        assert not any(numbers(network))

    with pytest.raises(AssertionError) as failure:
        fails()
    assert "network=Network((1,), linear([[1]]))" in "".join(failure.value.__notes__)


@few
@given(networks() | networks(weights="floats") | conv_layers() | linear_maps())
def test_a_network_has_the_shapes_that_it_says(network: Network):
    module = network.to_module()
    assert not module.training
    x = torch.zeros(2, *network.input_shape)
    for layer, shape in zip(module, network.shapes(), strict=True):
        x = layer(x)
        assert x.shape == (2, *shape)
        assert x.dtype == torch.float32
    assert network.output_shape == tuple(x.shape[1:])


@few
@given(networks(), networks(weights="floats"), networks(scale=0.125))
def test_weights_are_what_was_asked_for(whole: Network, fractions: Network, scaled: Network):
    assert set(numbers(whole)) <= {-2.0, -1.0, 0.0, 1.0, 2.0}
    assert "." not in "".join(repr(layer) for layer in whole.layers if not isinstance(layer, leaky_relu))
    assert all(abs(number) <= 3 for number in numbers(fractions))
    assert set(numbers(scaled)) <= {n / 8 for n in range(-2, 3)}


@few
@given(networks(weights="floats", layers=["linear"], depth=(1, 1)))
def test_float32_holds_the_weights_that_are_printed(network: Network):
    rows = network.layers[-1].weight_rows  # type: ignore[attr-defined]
    assert torch.equal(network.to_module()[-1].weight.double(), torch.tensor(rows, dtype=torch.float64))


@few
@given(st.data())
def test_depth_width_names_and_shape_are_kept(data: st.DataObject):
    names = data.draw(st.lists(st.sampled_from(list(LAYERS)), min_size=1, unique=True))
    network = data.draw(networks((2, 3), (3, 5), names, input_shape=(2, 4, 4)))
    counted = [layer for layer in network.layers if not isinstance(layer, flatten)]
    assert len(counted) <= 3
    assert {type(layer) for layer in counted} <= {LAYERS[name] for name in names}
    assert len(network.layers) <= 4 or "flatten" in names
    for layer in network.layers:
        if isinstance(layer, linear):
            assert 3 <= len(layer.weight_rows) <= 5
    if names == ["linear"]:
        assert len(counted) >= 2


def test_every_layer_has_a_recipe_and_is_drawn():
    assert RECIPES.keys() == LAYERS.keys()
    for name, layer in LAYERS.items():
        found = find(
            networks(layers=[name], input_shape=(2, 3, 3)), lambda network: len(network.layers) > 0, settings=SEARCH
        )
        assert isinstance(found.layers[-1], layer)


@few
@given(linear_maps(), st.integers(0, 99))
def test_linear_maps_are_linear(network: Network, seed: int):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randint(-3, 4, (2, 1, *network.input_shape), generator=generator).double()
    f = network.to_module().double()
    assert torch.equal(f(2 * x - y), 2 * f(x) - f(y)) or any(LAYERS["avgpool"] is type(la) for la in network.layers)
    torch.testing.assert_close(f(2 * x - y), 2 * f(x) - f(y))


@pytest.mark.parametrize(
    "special",
    [
        *({"padding_mode": mode, "padding": 1} for mode in ("zeros", "circular", "reflect", "replicate")),
        *({"stride": 2}, {"dilation": 2}, {"groups": 2}),
        *({"cls": transposed_conv, "stride": 2, "output_padding": 1}, {"cls": transposed_conv, "groups": 2}),
    ],
    ids=str,
)
def test_all_kinds_of_convolutions_are_drawn(special: dict):
    wanted = dict(special)
    cls = wanted.pop("cls", conv)

    def matches(network: Network) -> bool:
        (layer,) = network.layers
        return type(layer) is cls and all(getattr(layer, name) == value for name, value in wanted.items())

    found = find(conv_layers(), matches, settings=SEARCH)
    assert len(numbers(found)) <= 4
    assert not any(numbers(found))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Network((3,), linear([[1, 2]])), "last dimension of 2"),
        (lambda: Network((1, 2, 2), conv([[1] * 3] * 3)), "at least one position"),
        (lambda: Network((2, 4, 4), conv([[1]])), "1 channels"),
        (lambda: Network((1, 1, 4), conv([[1]], padding=1, padding_mode="reflect")), "more room"),
        (lambda: Network((3,), maxmin()), "even number"),
        (lambda: Network((3,), groupsort(2)), "multiple of 2"),
        (lambda: Network((1, 2, 2), maxpool(3, 1)), "at least 3 positions"),
        (lambda: Network((2,), residual(linear([[1, 1]]))), "make them one"),
        (lambda: linear([[1, 2], [3]]), "equal lengths"),
        (lambda: linear([[1]], bias=[1, 2]), "bias of 2"),
        (lambda: conv(3), "levels of lists"),
        (lambda: networks(layers=["convolution"]), "convolution"),
        (lambda: networks(layers=[]), "at least one"),
        (lambda: networks(depth=(3, 2)), "depth"),
        (lambda: networks(width=(0, 2)), "width"),
        (lambda: lipschitz_modules(["unheard of"]), "unheard of"),
    ],
)
def test_what_does_not_fit_is_refused(make: typing.Callable[[], object], said: str):
    with pytest.raises(InvalidInput, match=said):
        make()


def test_known_networks_compute_what_they_say():
    x = torch.tensor([[[[1.0, -2.0], [3.0, 4.0]]]])
    small = Network((1, 2, 2), conv([[1, 1]], bias=[1]), abs_(), flatten(), residual(linear([[1, 1], [0, 0]]), tanh()))
    assert small.shapes() == ((1, 2, 1), (1, 2, 1), (2,), (2,))
    assert small.to_module()(x).tolist() == [[float(torch.tensor(8.0).tanh()), 8.0]]
    doubled = Network((1, 2), transposed_conv([1, 2], stride=2), leaky_relu(-1.0), maxpool(2, 2))
    assert doubled.to_module()(torch.tensor([[[1.0, -3.0]]])).tolist() == [[[2.0, 6.0]]]
    assert Network((2,)).to_module()(torch.ones(1, 2)).tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("name", CLAIMS)
def test_layers_keep_the_constant_that_they_claim(name: str):
    @settings(few, max_examples=6)
    @given(lipschitz_modules([name]))
    def holds(claimed: Claimed) -> None:
        assert eval(repr(claimed), dict(NAMES)) == claimed
        module = claimed.to_module()
        if name in BY_CONSTRUCTION:
            assert witness(module, claimed.input_shape, budget=Budget(3, 5, 5)).ratio <= claimed.bound * (1 + 1e-6)
        else:
            assert certify(module, claimed.input_shape).bound <= claimed.bound

    holds()


def test_a_claimed_layer_leaves_the_global_random_state_alone_and_follows_its_seed():
    claimed = Claimed("aol(nn.Linear(3, 2))", 1.0, (3,), seed=5, scale=4.0)
    state = torch.get_rng_state()
    first, second = claimed.to_module(), claimed.to_module()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.weight, second.weight)
    other = Claimed("aol(nn.Linear(3, 2))", 1.0, (3,), seed=6, scale=4.0).to_module()
    assert not torch.equal(first.weight, other.weight)


@few
@given(st.data())
def test_pairs_are_two_points_of_the_domain(data: st.DataObject):
    shape = data.draw(st.sampled_from([(1,), (3,), (2, 3, 3)]))
    domain = data.draw(domains(shape))
    x, y = data.draw(input_pairs(shape, domain))
    assert x.shape == y.shape == shape
    assert x.dtype == y.dtype == torch.float64
    assert not torch.equal(x, y)
    assert domain.contains(x)
    assert domain.contains(y)


@pytest.mark.parametrize(("least", "most"), [(0.0, 1e-6), (10.0, math.inf)])
def test_pairs_are_near_and_far(least: float, most: float):
    def apart(pair: tuple[Tensor, Tensor]) -> bool:
        return least < float((pair[0] - pair[1]).norm()) < most

    x, _ = find(input_pairs((3,)), apart, settings=SEARCH)
    assert not x.any()
    away = find(input_pairs((3,)), lambda pair: apart(pair) and bool(pair[0].all()), settings=SEARCH)
    assert away[0].all()


def test_types_have_strategies():
    for kind in (Network, Claimed, WholeSpace, Box, L2Ball):
        assert isinstance(find(st.from_type(kind), lambda value: True, settings=SEARCH), kind)
    assert find(st.from_type(Norms), lambda norms: norms != L2, settings=SEARCH) in SUPPORTED


@pytest.mark.parametrize(
    ("strategy", "wanted", "smallest"),
    [
        (networks(layers=["linear"]), lambda network: any(numbers(network)), Network((1,), linear([[1]]))),
        (networks(layers=["conv"]), lambda network: True, Network((1, 1), conv([0]))),
        (networks(layers=["relu", "linear"]), lambda n: linear in map(type, n.layers), Network((1,), linear([[0]]))),
        (networks(), lambda n: {relu, maxpool} <= set(map(type, n.layers)), Network((1, 1), maxpool(1, 1), relu())),
        (networks(input_shape=(1, 3, 3)), lambda n: conv in map(type, n.layers), Network((1, 3, 3), conv([[0]]))),
        (networks(), lambda n: len(numbers(n)) > 3, None),
    ],
    ids=range(6),
)
def test_the_smallest_network_of_a_kind(strategy: st.SearchStrategy[Network], wanted, smallest: Network | None):
    found = find(strategy, wanted, settings=SEARCH)
    if smallest is not None:
        assert sorted(map(repr, found.layers)) == sorted(map(repr, smallest.layers))
        assert set(found.input_shape) == set(smallest.input_shape)
    assert len(found.layers) <= 2
    assert set(numbers(found)) <= {0.0, 1.0}


def reshaped_norm(layer: conv) -> float:
    """What naive code takes for the norm of a convolution."""
    return float(torch.linalg.matrix_norm(torch.tensor(layer.kernel, dtype=torch.float64).flatten(1), 2))


@pytest.mark.parametrize("shape", [None, (1, 3, 3)])
def test_the_norm_of_the_reshaped_kernel_is_refuted_by_a_convolution_of_ones(shape: tuple[int, ...] | None):
    def refutes(network: Network) -> bool:
        (layer,) = network.layers
        return isinstance(layer, conv) and gain(layer, network.input_shape) > reshaped_norm(layer) * (1 + 1e-9)

    found = find(networks(layers=["conv"], depth=(1, 1), input_shape=shape), refutes, settings=SEARCH)
    assert math.prod(found.input_shape) <= 9
    (layer,) = found.layers
    assert isinstance(layer, conv)
    assert len(layer.kernel) == len(layer.kernel[0]) == 1
    assert set(numbers(found)) == {1.0}
    assert layer.bias is None


@pytest.mark.parametrize("beside", [(), (conv,)], ids=["alone", "beside a convolution"])
def test_overlapping_max_pooling_is_refuted_by_little_more_than_itself(beside: tuple[type[Layer], ...]):
    budget = Budget(points=3, power_steps=6, ascent_steps=0)

    def refutes(network: Network) -> bool:
        kinds = [type(layer) for layer in network.layers]
        befores = (network.input_shape, *network.shapes())
        gains = [gain(la, b) for la, b in zip(network.layers, befores, strict=False) if isinstance(la, conv)]
        claimed = math.prod(gains)  # as if max pooling were 1-Lipschitz
        if not set(beside) <= set(kinds) or claimed == 0:
            return False
        return witness(network.to_module(), network.input_shape, budget=budget).ratio > claimed * (1 + 1e-6)

    drawn = networks(layers=["conv", "maxpool"], depth=(1, 2), width=(1, 2))
    found = find(drawn, refutes, settings=SEARCH)
    assert sorted(type(layer).__name__ for layer in found.layers) == sorted(["maxpool", *(c.__name__ for c in beside)])
    assert numbers(found) == [1.0] * len(beside)
    assert math.prod(found.input_shape) <= 9
    (pool,) = (layer for layer in found.layers if isinstance(layer, maxpool))
    assert pool.stride < pool.k


@pytest.mark.parametrize(
    ("strategy", "milliseconds"),
    [
        (networks(), 25),
        (networks(width=(1, 8), depth=(4, 4), input_shape=(3, 8, 8), weights="floats"), 50),
        (conv_layers(), 25),
        (linear_maps(), 25),
        (lipschitz_modules(), 15),
        (input_pairs((3, 32, 32)), 15),
    ],
    ids=["networks", "wide", "conv_layers", "linear_maps", "lipschitz_modules", "input_pairs"],
)
def test_drawing_is_quick(strategy: st.SearchStrategy, milliseconds: float):
    """About five times what it takes on an idle core, in processor time."""
    drawn = []

    @settings(SEARCH, max_examples=100, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(strategy)
    def collect(value: object) -> None:
        drawn.append(value)

    start = time.process_time()
    collect()
    assert (time.process_time() - start) / len(drawn) < milliseconds / 1000


def test_profiles():
    register_profiles()
    dev, ci, nightly = (settings.get_profile(f"lipcert-{name}") for name in ("dev", "ci", "nightly"))
    assert (dev.max_examples, ci.max_examples, nightly.max_examples) == (25, 200, 20000)
    assert ci.derandomize
    assert not nightly.derandomize
    assert all(profile.deadline is None and profile.print_blob for profile in (dev, ci, nightly))
