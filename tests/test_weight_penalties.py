"""Clipping bounds every clipped network; terms on weights are the papers' formulas, written with loops; refusals."""

import copy
import itertools
import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lipcert.certifiers import Product
from lipcert.certify import certify
from lipcert.errors import InvalidInput, NotLipschitz, UnsupportedOperation
from lipcert.linear import Adjoint, Conv, Dense, Diagonal, dense
from lipcert.lowering import Value, affine, lowers
from lipcert.norms import L1, L1_LINF, L2, L2_LINF, LINF
from lipcert.penalties import (
    clip_weights,
    clipping_bound,
    frobenius_orthogonality,
    layer_norm_gain,
    off_diagonal_orthogonality,
    spectral_regularisation,
    starting_vectors,
)
from lipcert.trace import trace
from lipcert.witness import Budget, witness


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def conv_critic() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(48, 1)).double()


NETWORKS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)), (3,)),
    "conv": (lambda: nn.Sequential(nn.Conv2d(2, 3, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(12, 1)), (2, 4, 4)),
    "transposed": (lambda: nn.Sequential(nn.ConvTranspose1d(2, 2, 3, 2), nn.ReLU(), nn.Conv1d(2, 2, 2)), (2, 4)),
    "norm": (lambda: nn.Sequential(nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3), nn.PReLU(), nn.Flatten()).eval(), (2, 5)),
    "pooled": (lambda: nn.Sequential(nn.Conv1d(1, 2, 3), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(4, 2)), (1, 6)),
    "difference": (lambda: Difference(), (3,)),
    "signs": (lambda: nn.Sequential(nn.Linear(3, 2), Signs()), (3,)),
}


class Difference(nn.Module):
    """Where every weight is the same, this is zero: the largest weights are not the worst."""

    def __init__(self):
        super().__init__()
        self.f, self.g = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x) - self.g(x)


class Signs(nn.Module):
    """A fixed map that is zero where its inputs are the same."""

    def __init__(self):
        super().__init__()
        self.register_buffer("fixed", torch.tensor([[1.0, -1.0]]))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.fixed)


class Loose(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.layer.weight.cos())


@pytest.mark.one_in(2)
@pytest.mark.parametrize("norms", [L2, L1, LINF, L2_LINF, L1_LINF], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
@given(st.integers(0, 2**30), st.sampled_from([0.01, 0.3, 2.0]), st.booleans())
@settings(max_examples=5, deadline=None)
def test_the_clipping_bound_is_above_every_clipped_network(name, norms, seed, c, corners):
    make, shape = NETWORKS[name]
    torch.manual_seed(seed)
    model = make()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.where(torch.rand(p.shape) < 0.5, -1.0, 1.0) if corners else 3.0 * c * torch.randn(p.shape))
    clip_weights(model, c)
    assert all(bool((p.double().abs() <= c).all()) for p in model.parameters())
    bound = clipping_bound(make(), shape, c, norms)
    assert Product()(trace(model, shape), norms).bound <= bound * (1.0 + 1e-9)
    found = witness(model, shape, norms, budget=Budget(points=6, power_steps=5, ascent_steps=5))
    assert found.ratio <= bound


@given(st.lists(st.integers(1, 6), min_size=2, max_size=4), st.floats(0.01, 2.0))
@settings(max_examples=20, deadline=None)
def test_the_clipping_bound_of_linear_layers_is_the_formula_and_is_attained(sizes, c):
    layers = [layer for pair in itertools.pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())][:-1]
    model = nn.Sequential(*layers).double()
    bound = clipping_bound(model, (sizes[0],), c)
    formula = math.prod(c * math.sqrt(n * m) for n, m in itertools.pairwise(sizes))
    assert formula <= bound <= formula * (1.0 + 1e-6)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(c)
        x = torch.ones(1, sizes[0], dtype=torch.float64)
        gain = torch.linalg.vector_norm(model(2.0 * x) - model(x)) / torch.linalg.vector_norm(x)
    assert gain.item() == pytest.approx(formula)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("c", [0.1, 0.01, 1.0, 1e-9])
def test_no_clipped_weight_is_above_the_limit_as_an_exact_number(dtype, c):
    layer = nn.Linear(50, 50).to(dtype)
    before = layer.weight.detach().clone()
    assert clip_weights(layer, c) is None
    after = layer.weight.detach()
    assert bool((after.double().abs() <= c).all())
    kept = before.double().abs() <= c
    assert torch.equal(after[kept], before[kept])


@pytest.mark.parametrize(
    ("model", "path"),
    [
        (nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 2))), "0"),
        (nn.Sequential(nn.utils.spectral_norm(nn.Linear(3, 2))), "0"),
    ],
)
def test_weights_that_are_computed_are_not_clipped(model, path):
    for call in (lambda: clip_weights(model, 0.1), lambda: clipping_bound(model, (3,), 0.1)):
        with pytest.raises(UnsupportedOperation, match="clip") as caught:
            call()
        assert caught.value.path == path


def test_parameters_that_may_do_anything_have_no_clipping_bound():
    with pytest.raises(UnsupportedOperation, match=r"layer\.weight"):
        clipping_bound(Loose(), (3,), 0.1)
    with pytest.raises(UnsupportedOperation, match="Embedding"):
        clipping_bound(nn.Embedding(3, 2), (3,), 0.1)
    with pytest.raises(NotLipschitz):
        clipping_bound(nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2, elementwise_affine=False)), (3,), 0.1)


def orthogonality_by_loop(layers: list[nn.Module]) -> tuple[float, float]:
    frobenius = off_diagonal = 0.0
    for layer in layers:
        rows = [row.flatten() for row in layer.weight.detach()]
        for i, first in enumerate(rows):
            for j, second in enumerate(rows):
                product = sum(a * b for a, b in zip(first.tolist(), second.tolist(), strict=True))
                frobenius += (product - (i == j)) ** 2
                off_diagonal += product**2 if i != j else 0.0
    return frobenius, off_diagonal


def test_orthogonality_is_that_of_the_reshaped_kernel_and_not_of_the_operator():
    model = conv_critic()
    frobenius, off_diagonal = orthogonality_by_loop([model[0], model[3]])
    assert frobenius_orthogonality(model).item() == pytest.approx(frobenius)
    assert off_diagonal_orthogonality(model).item() == pytest.approx(off_diagonal)
    W = model[0].weight.flatten(1)
    (derivative,) = torch.autograd.grad(off_diagonal_orthogonality(model), model[0].weight)
    published = 2.0 * ((W @ W.T) * (1.0 - torch.eye(len(W)))) @ W  # what BigGAN's code adds to the gradient
    torch.testing.assert_close(derivative.flatten(1), 2.0 * published)
    mean = nn.Conv1d(1, 1, 4, bias=False)
    mean.weight.data.fill_(0.5)
    assert frobenius_orthogonality(mean).item() == off_diagonal_orthogonality(mean).item() == 0.0
    assert witness(mean, (1, 64)).ratio > 1.99


def test_a_kernel_with_more_rows_than_columns_cannot_reach_zero():
    layer = nn.Linear(3, 5)
    nn.init.orthogonal_(layer.weight)
    assert frobenius_orthogonality(layer).item() == pytest.approx(2.0, abs=1e-5)
    with pytest.raises(UnsupportedOperation, match="transposed"):
        frobenius_orthogonality(nn.ConvTranspose1d(1, 1, 2))


CONVS = {
    "linear": (lambda: nn.Linear(4, 3), (4,), lambda w: Dense(w, (4,))),
    "zeros": (
        lambda: nn.Conv2d(2, 3, 3, 2, 1),
        (2, 5, 4),
        partial(Conv, in_shape=(2, 5, 4), out_sizes=(3, 2), stride=(2, 2)),
    ),
    "circular": (
        lambda: nn.Conv2d(2, 4, 3, 1, 1, groups=2, padding_mode="circular"),
        (2, 4, 4),
        partial(Conv, in_shape=(2, 4, 4), out_sizes=(4, 4), stride=(1, 1)),
    ),
    "transposed": (lambda: nn.ConvTranspose1d(3, 2, 3, 2), (3, 2), None),
}


@pytest.mark.parametrize(("make", "shape", "linear"), CONVS.values(), ids=CONVS)
def test_spectral_regularisation_is_half_the_squared_norm_of_the_operator(make, shape, linear):
    torch.manual_seed(0)
    layer = make().double()
    w = layer.weight.detach()
    if isinstance(linear, partial):
        pads, mode = ((1, 1), (1, 1)), layer.padding_mode
        map_ = linear(w, padding=pads, dilation=(1, 1), groups=layer.groups, padding_mode=mode)
    else:
        map_ = linear(w) if linear else Adjoint(Conv(w, (2, 5), (2,), (2,), ((0, 0),), (1,), 1, "zeros"))
    half = 0.5 * torch.linalg.matrix_norm(dense(map_), 2).item() ** 2
    vectors = starting_vectors(layer, shape, generator=seeded(0))
    start = spectral_regularisation(layer, vectors, steps=0).value.item()
    once = spectral_regularisation(layer, vectors)
    assert 0.0 < start <= once.value.item() <= half * (1.0 + 1e-12)
    term = spectral_regularisation(layer, once.vectors, steps=400)
    assert term.value.item() == pytest.approx(half, rel=1e-6)
    (derivative,) = torch.autograd.grad(term.value, layer.weight)
    direction = torch.randn(w.shape, generator=seeded(1), dtype=torch.float64)
    moved = copy.deepcopy(layer)
    moved.weight.data += 1e-6 * direction
    more = spectral_regularisation(moved, term.vectors, steps=400).value.item() - term.value.item()
    assert (derivative * direction).sum().item() == pytest.approx(1e6 * more, rel=1e-2, abs=1e-4)


def test_spectral_regularisation_sums_over_layers_and_leaves_the_model_alone():
    model = conv_critic()
    before = copy.deepcopy(model.state_dict())
    vectors = starting_vectors(model, (2, 4, 3), generator=seeded(0))
    parts = [spectral_regularisation(model[int(path)], {"": v}).value for path, v in vectors.items()]
    torch.testing.assert_close(spectral_regularisation(model, vectors).value, sum(parts))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())
    twice = nn.Sequential(shared := nn.Conv1d(1, 1, 2), shared)
    with pytest.raises(UnsupportedOperation, match="several input sizes"):
        starting_vectors(twice, (1, 5), generator=seeded(0))


@pytest.mark.parametrize("eps", [1e-5, 1e-3, 1.0])
def test_layer_normalisation_gains_one_over_the_root_of_eps_at_a_constant_sample(eps):
    layer, n = nn.LayerNorm(6, eps=eps).double(), 6
    x = torch.randn(n, generator=seeded(0), dtype=torch.float64)
    for scale in (1e-9, 1e-3, 1e-2, 1.0):
        jacobian = torch.autograd.functional.jacobian(layer, 2.0 + scale * x)
        expected = 1.0 / math.sqrt(scale**2 * x.var(correction=0).item() + eps)
        assert torch.linalg.matrix_norm(jacobian, 2).item() == pytest.approx(expected, rel=1e-6)
    assert layer_norm_gain(layer) == pytest.approx(1.0 / math.sqrt(eps))
    layer.weight.data = torch.randn(n, generator=seeded(1), dtype=torch.float64)
    flat = torch.autograd.functional.jacobian(layer, torch.full((n,), 3.0, dtype=torch.float64))
    assert layer_norm_gain(layer) == pytest.approx(torch.linalg.matrix_norm(flat, 2).item())
    assert layer_norm_gain(nn.LayerNorm(4, eps=0.0)) == math.inf
    assert layer_norm_gain(nn.LayerNorm(1)) == 0.0
    with pytest.raises(NotLipschitz):
        certify(nn.LayerNorm(6), (6,))


REFUSED = {
    "limit 0": (lambda: clip_weights(nn.Linear(2, 2), 0.0), "positive"),
    "no limit": (lambda: clip_weights(nn.Linear(2, 2), math.inf), "positive"),
    "limit NaN": (lambda: clipping_bound(nn.Linear(2, 2), (2,), math.nan), "positive"),
    "no layer": (lambda: frobenius_orthogonality(nn.ReLU()), "no linear layer"),
    "no vector": (lambda: spectral_regularisation(nn.Linear(2, 2), {}), "one vector"),
    "negative steps": (lambda: spectral_regularisation(nn.Linear(2, 2), {"": torch.ones(1, 2)}, steps=-1), "not neg"),
    "negative eps": (lambda: layer_norm_gain(nn.LayerNorm(3, eps=-1.0)), "eps"),
}


@pytest.mark.parametrize(("call", "match"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_meaning_is_refused(call, match):
    with pytest.raises(InvalidInput, match=match):
        call()


class Opposite(nn.Module):
    """Has a rule below, and a layer inside that nobody else sees."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.layer.bias.cos()


@lowers(Opposite)
def lower_opposite(module: Opposite, input: Value) -> Value:
    return affine(input, Diagonal(module.layer.bias.double().cos(), input.shape), None)


def test_layers_inside_a_layer_with_a_rule_have_no_clipping_bound():
    with pytest.raises(UnsupportedOperation, match="`1` has a rule"):
        clipping_bound(nn.Sequential(nn.Linear(3, 3), Opposite()), (3,), 0.1)
