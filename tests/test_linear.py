"""Linear maps: linear, adjoint to their transposes, and equal to what torch computes."""

import itertools
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lipcert.linear import Adjoint, Conv, LinearMap, Separable, apply, dense
from tests.cases import MAPS


def drawn(*shape: int, seed: int = 5) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(params=MAPS.values(), ids=MAPS.keys())
def linear(request: pytest.FixtureRequest) -> LinearMap:
    return request.param()


def test_every_kind_of_map_has_a_case():
    kinds = {type(build()) for build in MAPS.values()}
    assert kinds == set(LinearMap.__args__)


def test_applying_a_map_is_multiplying_by_its_matrix(linear: LinearMap):
    x = drawn(4, *linear.in_shape)
    expected = x.flatten(1) @ dense(linear).T
    y = apply(linear, x)
    assert y.shape[1:] == linear.out_shape
    assert torch.allclose(y.flatten(1), expected, rtol=1e-12, atol=1e-12 * float(dense(linear).abs().max()))


def test_maps_are_linear_and_act_on_each_sample_alone(linear: LinearMap):
    x, y = drawn(3, *linear.in_shape), drawn(3, *linear.in_shape, seed=6)
    scale = float(dense(linear).abs().max())
    assert torch.allclose(
        apply(linear, 2 * x - 3 * y), 2 * apply(linear, x) - 3 * apply(linear, y), rtol=1e-11, atol=1e-12 * scale
    )
    assert torch.allclose(apply(linear, x)[1:2], apply(linear, x[1:2]), rtol=1e-12, atol=1e-13 * scale)
    assert not apply(linear, torch.zeros_like(x)).any()


def test_the_transpose_is_the_adjoint(linear: LinearMap):
    x, y = drawn(1, *linear.in_shape).requires_grad_(), drawn(1, *linear.out_shape, seed=7)
    (pulled,) = torch.autograd.grad((apply(linear, x) * y).sum(), x)
    assert torch.allclose(
        pulled.flatten(), dense(linear).T @ y.flatten(), rtol=1e-12, atol=1e-12 * float(dense(linear).abs().max())
    )


def by_index(conv: Conv) -> Tensor:
    """The matrix of a convolution, spelled out index by index from its definition."""
    out, into = conv.out_shape, conv.in_shape
    matrix = torch.zeros(*out, *into, dtype=torch.float64)
    per_group = conv.weight.shape[1]
    for channel, position in itertools.product(range(out[0]), itertools.product(*map(range, conv.out_sizes))):
        group = channel // (out[0] // conv.groups)
        for tap in itertools.product(*map(range, conv.weight.shape[2:])):
            places = [
                i * s + j * d - pad[0]
                for i, s, j, d, pad in zip(position, conv.stride, tap, conv.dilation, conv.padding, strict=True)
            ]
            read = [wrapped(place, size, conv.padding_mode) for place, size in zip(places, into[1:], strict=True)]
            if None not in read:
                for c in range(per_group):
                    entry = (channel, *position, group * per_group + c, *read)
                    matrix[entry] += conv.weight[(channel, c, *tap)]
    return matrix.reshape(dense(conv).shape)


def wrapped(place: int, size: int, mode: str) -> int | None:
    if 0 <= place < size:
        return place
    if mode == "zeros":
        return None
    if mode == "replicate":
        return min(max(place, 0), size - 1)
    return place % size if mode == "circular" else -place if place < 0 else 2 * (size - 1) - place


CONVS = {name: build for name, build in MAPS.items() if isinstance(build(), Conv | Adjoint)}


@pytest.mark.parametrize("build", CONVS.values(), ids=CONVS)
def test_convolutions_are_what_their_definition_says(build: Callable[[], Conv | Adjoint]):
    linear = build()
    expected = by_index(linear.conv).T if isinstance(linear, Adjoint) else by_index(linear)
    assert torch.allclose(dense(linear), expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("kept", [1, 2, 4])
def test_a_convolution_keeps_its_first_outputs(kept: int):
    conv = Conv(drawn(2, 1, 3), (1, 6), (kept,), (1,), ((0, 0),), (1,), 1, "zeros")
    assert torch.equal(apply(conv, drawn(2, 1, 6)), F.conv1d(drawn(2, 1, 6), conv.weight)[..., :kept])


def test_factors_are_exact_fractions():
    linear = MAPS["separable interpolation"]()
    assert isinstance(linear, Separable)
    factor = linear.factors[1]
    assert factor is not None
    rows = [[Fraction(int(n), factor.denominator) for n in row] for row in factor.numerator]
    assert all(sum(row) == 1 for row in rows)
