"""Operator norms: never below the matrix written out, exact where promised, and equal to known constants."""

import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import LinearOperator, eigsh

from lipcert.certificate import Validity
from lipcert.errors import InvalidInput, NotFinite
from lipcert.linear import (
    Adjoint,
    Conv,
    Dense,
    Diagonal,
    Factor,
    LinearMap,
    Reshape,
    Selection,
    Separable,
    apply,
    dense,
)
from lipcert.norms import L1, L1_LINF, L2, L2_LINF, LINF, SUPPORTED, Norms
from lipcert.opnorm import Effort, composed_norm, opnorm, opnorm_any_size
from lipcert.opnorm.geometry import Axis, cover, lines, reads
from tests.cases import MAPS

PAIRS = {str(norms): norms for norms in SUPPORTED}
FOURIER = Effort(dense_side=0)
COARSE = Effort(dense_side=0, flops=0.0)
MODES = ("zeros", "circular", "reflect", "replicate")
ABOVE = 1.0 - 1e-12
"""Room for the rounding of numpy's norms, which are what a bound is compared with here; not for the bound."""


def numpy_norm(A: np.ndarray, norms: Norms) -> float:
    peak = float(np.abs(A).max()) if A.size else 0.0
    if peak == 0.0:
        return 0.0
    A = A / peak  # numpy's own norms underflow
    return (
        peak
        * {
            L1: lambda: np.abs(A).sum(axis=0).max(),
            L2: lambda: np.linalg.norm(A, 2),
            LINF: lambda: np.abs(A).sum(axis=1).max(),
            L1_LINF: lambda: np.abs(A).max(),
            L2_LINF: lambda: np.linalg.norm(A, axis=1).max(),
        }[norms]()
    )


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def zero_padded(weight: torch.Tensor, size: int, stride: int = 1, dilation: int = 1, groups: int = 1) -> Conv:
    """A convolution of a square (or cubic) input with "same" padding."""
    dims = weight.ndim - 2
    padding = dilation * (weight.shape[2] - 1) // 2
    out = (size + 2 * padding - dilation * (weight.shape[2] - 1) - 1) // stride + 1
    return Conv(
        weight,
        (weight.shape[1] * groups, *(size,) * dims),
        (out,) * dims,
        (stride,) * dims,
        ((padding, padding),) * dims,
        (dilation,) * dims,
        groups,
        "zeros",
    )


@st.composite
def convolutions(draw: st.DrawFn, modes: tuple[str, ...] = MODES, dims: int = 2) -> Conv:
    """Convolutions of every shape that torch accepts, with weights that are small integers or Gaussian."""
    dims = draw(st.integers(1, dims))
    mode = draw(st.sampled_from(modes))
    rows = []
    for _ in range(dims):
        n = draw(st.integers(1, 7 if dims < 3 else 4))
        most = {"circular": n, "reflect": n - 1}.get(mode, 3)
        pair = tuple(draw(st.integers(0, min(most, 3))) for _ in range(2))
        k, s, d = (draw(st.integers(1, high)) for high in (4, 3, 3))
        full = (n + sum(pair) - d * (k - 1) - 1) // s + 1
        assume(full >= 1)
        rows.append((k, n, draw(st.sampled_from((full, max(1, full - 1)))), s, pair, d))
    kernel, sizes, outs, stride, padding, dilation = zip(*rows, strict=True)
    groups, out, into = (draw(st.integers(1, 2)) for _ in range(3))
    weight = drawn(out * groups, into, *kernel, seed=draw(st.integers(0, 10**6)))
    if draw(st.booleans()):
        weight = torch.round(2 * weight)
    return Conv(weight, (into * groups, *sizes), outs, stride, padding, dilation, groups, mode)


def assert_covers(bound: float, A: np.ndarray, norms: Norms) -> None:
    truth = numpy_norm(A, norms)
    assert bound >= truth * ABOVE
    assert (bound == 0.0) <= (truth == 0.0)


def assert_equals(bound: float, A: np.ndarray, norms: Norms) -> None:
    assert_covers(bound, A, norms)
    assert bound <= numpy_norm(A, norms) * (1.0 + 1e-9)


@pytest.mark.parametrize("norms", PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("build", MAPS.values(), ids=MAPS)
def test_the_norm_of_every_kind_of_map_is_that_of_its_matrix(build: Callable[[], LinearMap], norms: Norms):
    linear = build()
    bound = opnorm(linear, norms)
    assert bound.validity is Validity.RIGOROUS
    assert_equals(bound.value, dense(linear).numpy(), norms)


@given(convolutions(dims=3))
@settings(max_examples=120)
def test_the_norms_of_a_small_convolution_are_those_of_its_matrix(conv: Conv):
    A = dense(conv).numpy()
    for norms in SUPPORTED:
        assert_equals(opnorm(conv, norms).value, A, norms)


@given(convolutions(modes=("zeros",), dims=3))
@settings(max_examples=60)
def test_the_norms_of_a_transposed_convolution_are_those_of_the_transposed_matrix(conv: Conv):
    A = dense(conv).numpy().T
    for norms in SUPPORTED:
        assert_equals(opnorm(Adjoint(conv), norms).value, A, norms)


@given(convolutions())
@settings(max_examples=150)
def test_no_way_to_bound_a_convolution_is_ever_below_its_matrix(conv: Conv):
    A = dense(conv).numpy()
    assert_covers(opnorm(conv, effort=FOURIER).value, A, L2)
    assert_covers(opnorm(conv, effort=COARSE).value, A, L2)
    assert_covers(opnorm_any_size(conv).value, A, L2)
    assert_covers(opnorm_any_size(conv, effort=COARSE).value, A, L2)


@given(convolutions(dims=1), st.integers(1, 24))
@settings(max_examples=60)
def test_the_bound_for_any_size_covers_every_size(conv: Conv, size: int):
    (before, after), (k,), (d,), (s,) = conv.padding[0], conv.weight.shape[2:], conv.dilation, conv.stride
    least = {"circular": max(before, after), "reflect": max(before, after) + 1}.get(conv.padding_mode, 1)
    out = (size + before + after - d * (k - 1) - 1) // s + 1
    assume(size >= least and out >= 1)
    resized = Conv(
        conv.weight,
        (conv.in_shape[0], size),
        (out,),
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        conv.padding_mode,
    )
    assert_covers(opnorm_any_size(conv).value, dense(resized).numpy(), L2)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("taps", [1, 2, 3, 5])
def test_a_circular_convolution_whose_stride_divides_the_size_is_exact_in_the_fourier_domain(taps: int, stride: int):
    conv = Conv(drawn(3, 2, taps), (2, 12), (12 // stride,), (stride,), ((taps // 2, taps // 2),), (1,), 1, "circular")
    conv = Conv(conv.weight, *_geometry(conv, out_sizes=(min(12 // stride, _outputs(conv)),)))
    assert_covers(opnorm(conv, effort=FOURIER).value, dense(conv).numpy(), L2)
    if _outputs(conv) >= 12 // stride:
        assert_equals(opnorm(conv, effort=FOURIER).value, dense(conv).numpy(), L2)


def _outputs(conv: Conv) -> int:
    return (conv.in_shape[1] + sum(conv.padding[0]) - conv.weight.shape[2]) // conv.stride[0] + 1


def _geometry(conv: Conv, out_sizes: tuple[int, ...]) -> tuple:
    return conv.in_shape, out_sizes, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode


@pytest.mark.parametrize("effort", [Effort(), FOURIER], ids=["written out", "Fourier"])
def test_norms_known_in_closed_form(effort: Effort):
    second = torch.tensor([[[-1.0, 2.0, -1.0]]], dtype=torch.float64)
    ones = torch.ones(1, 1, 3, 3, dtype=torch.float64)
    circular = Conv(second, (1, 5), (5,), (1,), ((1, 1),), (1,), 1, "circular")
    known = {
        # Eigenvalues of the second difference: 2 + 2 cos(j pi / (n + 1)) with zeros, 2 - 2 cos(2 pi j / n) circular.
        2 + 2 * math.cos(math.pi / 6): zero_padded(second, 5),
        2 - 2 * math.cos(4 * math.pi / 5): circular,
        (1 + 2 * math.cos(math.pi / 4)) ** 2: zero_padded(ones, 3),
        (1 + 2 * math.cos(math.pi / 32)) ** 2: zero_padded(ones, 31),
        2.0: Conv(torch.ones(1, 1, 4, dtype=torch.float64), (1, 16), (4,), (4,), ((0, 0),), (1,), 1, "zeros"),
    }
    for truth, conv in known.items():
        bound = opnorm(conv, effort=effort).value
        assert truth * (1 - 1e-15) <= bound <= truth * (1 + 1e-11)


@given(
    st.integers(1, 5), st.integers(1, 3), st.integers(1, 4), st.integers(1, 12), st.integers(0, 6), st.integers(0, 6)
)
def test_a_dimension_splits_into_lines_that_embed_in_their_torus(k: int, s: int, d: int, n: int, p: int, extra: int):
    axis = Axis(k, s, d, n, max(1, (n + p + extra - d * (k - 1) - 1) // s + 1), p, "zeros")
    parts = lines(axis)
    if not parts:
        assert not (reads(axis) >= 0).any()
        return
    whole = cover(parts)
    for part in parts:
        assert whole.first <= part.first < part.last <= whole.last
        assert part.outputs <= whole.outputs
        around = part.torus * part.stride
        inside = {position % around for position in range(part.first, part.last)}
        assert len(inside) == part.last - part.first
        for position in {i * part.stride + j for i in range(part.outputs) for j in range(k)}:
            assert (position % around in inside) == (part.first <= position < part.last)
        assert len({i * part.stride % around for i in range(part.outputs)}) == part.outputs


def test_a_circular_input_that_the_stride_does_not_divide_is_covered_at_any_size():
    # Inputs 0 and 1 are read once, input 2 twice: the matrix [[1, 0, 1], [0, 1, 1]] has norm sqrt 3.
    conv = Conv(torch.ones(1, 1, 2, dtype=torch.float64), (1, 3), (2,), (2,), ((1, 0),), (1,), 1, "circular")
    assert math.sqrt(3) * ABOVE <= opnorm_any_size(conv).value <= 2.01
    assert_covers(opnorm(conv, effort=FOURIER).value, dense(conv).numpy(), L2)


@pytest.mark.parametrize("stride", [(2, 1), (1, 2), (3, 2), (2, 3)])
def test_every_dimension_has_its_own_stride(stride: tuple[int, int]):
    signs = torch.tensor([[1.0, -1.0, 1.0, -1.0]], dtype=torch.float64)  # neighbours that must not be added up
    for weight in (signs.T * signs, signs.expand(4, 4), signs.T.expand(4, 4)):
        outs = tuple((13 - 4) // s + 1 for s in stride)
        conv = Conv(weight[None, None], (1, 13, 13), outs, stride, ((0, 0), (0, 0)), (1, 1), 1, "zeros")
        assert_covers(opnorm(conv, effort=FOURIER).value, dense(conv).numpy(), L2)


def test_the_norm_of_groups_is_the_largest_not_the_product():
    weight = torch.tensor([2.0, 3.0, 0.5], dtype=torch.float64).reshape(3, 1, 1, 1)
    for effort in (Effort(), FOURIER):
        assert 3.0 <= opnorm(zero_padded(weight, 4, groups=3), effort=effort).value <= 3.0 + 1e-11


@pytest.mark.parametrize(("stride", "dilation", "groups"), [(1, 1, 1), (2, 1, 1), (1, 2, 1), (2, 2, 2), (1, 1, 4)])
@pytest.mark.parametrize("taps", [2, 3, 5])
def test_zero_padding_costs_little_beyond_sixteen_pixels(taps: int, stride: int, dilation: int, groups: int):
    conv = zero_padded(drawn(4, 4 // groups, taps, taps), 18, stride, dilation, groups)
    truth = numpy_norm(dense(conv).numpy(), L2)
    assert truth * ABOVE <= opnorm(conv).value <= truth * 1.02


@pytest.mark.slow
def test_zero_padding_costs_at_most_two_percent_on_fifty_random_shapes():
    rng = np.random.default_rng(0)
    for _ in range(50):
        taps, stride, dilation = int(rng.integers(1, 6)), int(rng.integers(1, 3)), int(rng.integers(1, 3))
        groups = int(rng.integers(1, 3))
        out, into = (int(rng.integers(1, 8 // groups + 1)) for _ in range(2))
        weight = torch.from_numpy(rng.standard_normal((groups * out, into, taps, taps)))
        conv = zero_padded(weight, int(rng.integers(16, 33)), stride, dilation, groups)
        truth = lanczos_norm(conv)
        assert truth * (1 - 1e-9) <= opnorm(conv).value <= truth * 1.02


def lanczos_norm(linear: LinearMap) -> float:
    """A lower bound of the norm, converged, for maps too large to be written out."""
    size = math.prod(linear.in_shape)

    def normal(v: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(np.array(v).reshape(1, *linear.in_shape)).requires_grad_()
        y = apply(linear, x)
        return torch.autograd.grad(y, x, y.detach())[0].numpy().ravel()

    operator: Any = LinearOperator((size, size), matvec=normal, dtype=np.float64)  # pyright: ignore[reportCallIssue]
    start = np.random.default_rng(0).standard_normal(size)
    options: Any = {"tol": 1e-11, "v0": start, "ncv": min(size, 40), "return_eigenvectors": False}
    return float(eigsh(operator, k=1, **options)[0]) ** 0.5


def test_more_effort_never_loosens_by_more_than_rounding():
    conv = zero_padded(drawn(6, 5, 3, 3), 20)
    bounds = [opnorm(conv, effort=effort).value for effort in (COARSE, Effort(0, flops=1e6), FOURIER, Effort())]
    assert all(more <= less * (1 + 1e-9) for less, more in itertools.pairwise(bounds))


def test_a_budget_that_affords_only_a_coarse_grid_still_bounds():
    conv = zero_padded(drawn(6, 5, 3, 3), 40)
    coarse, exact = opnorm(conv, effort=Effort(0, flops=3e6)), opnorm(conv, effort=FOURIER)
    assert "cos" in coarse.method
    assert "torus" in exact.method
    assert exact.value <= coarse.value <= 1.2 * exact.value


@pytest.mark.parametrize("scale", [2.0**-500, 2.0**500])
def test_scaling_weights_by_a_power_of_two_scales_the_bound_exactly(scale: float):
    conv = zero_padded(drawn(3, 2, 3, 3), 6)
    scaled = Conv(conv.weight * scale, *_geometry(conv, conv.out_sizes))
    for effort in (Effort(), FOURIER):
        assert opnorm(scaled, effort=effort).value == opnorm(conv, effort=effort).value * scale


@pytest.mark.parametrize("norms", PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(bad: float, norms: Norms):
    weight = torch.ones(2, 2, 3, dtype=torch.float64)
    weight[1, 0, 2] = bad
    for effort in (Effort(), FOURIER):
        with pytest.raises(NotFinite):
            opnorm(zero_padded(weight, 6), norms, effort=effort)
    with pytest.raises(NotFinite):
        opnorm(Dense(weight[..., 0] * weight[..., 2], (2,)), norms)
    with pytest.raises(NotFinite):
        opnorm(Diagonal(torch.tensor([1.0, bad], dtype=torch.float64), (2,)), norms)


@pytest.mark.parametrize("norms", PAIRS.values(), ids=PAIRS)
def test_zero_weights_have_norm_zero(norms: Norms):
    for effort in (Effort(), FOURIER):
        assert opnorm(zero_padded(torch.zeros(2, 2, 3, dtype=torch.float64), 6), norms, effort=effort).value == 0.0


def test_other_norms_and_other_objects_are_refused():
    with pytest.raises(InvalidInput):
        opnorm(Reshape((2,), (2,)), Norms(math.inf, 1.0))
    with pytest.raises(InvalidInput, match="Tensor is not a linear map"):
        opnorm(torch.ones(2, 2))  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidInput, match="mirror"):
        opnorm(Conv(drawn(1, 1, 3), (1, 5), (5,), (1,), ((1, 1),), (1,), 1, "mirror"))


def test_pooling_and_copying_have_their_exact_norms():
    average = Separable((None, Factor(torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1]]), 2)), (3, 4))
    value = opnorm(average).value
    assert Fraction(value) ** 2 >= Fraction(1, 2) > Fraction(math.nextafter(value, 0.0)) ** 2
    assert [opnorm(average, norms).value for norms in (L1, LINF, L1_LINF)] == [0.5, 1.0, 0.5]
    repeated = Selection(torch.tensor([0, 0, 0, 0, 1, -1]), (2,))
    assert [opnorm(repeated, norms).value for norms in (L2, L1, LINF, L1_LINF, L2_LINF)] == [2.0, 4.0, 1.0, 1.0, 1.0]


def test_a_dense_layer_on_many_positions_has_the_norm_of_its_weight():
    weight = drawn(4, 3)
    for norms in SUPPORTED:
        assert opnorm(Dense(weight, (7, 5, 3)), norms).value == opnorm(Dense(weight, (3,)), norms).value


# Compositions.


def composition(linears: list[LinearMap]) -> np.ndarray:
    product = dense(linears[0])
    for linear in linears[1:]:
        product = dense(linear) @ product
    return product.numpy()


def chain(name: str) -> list[LinearMap]:
    conv = zero_padded(drawn(4, 3, 3, 3), 5, stride=2)
    channels = drawn(4, 1, 1, seed=1)
    grouped = Conv(drawn(4, 2, 3, 3), (4, 5, 5), (5, 5), (1, 1), ((1, 1),) * 2, (1, 1), 2, "reflect")
    chains: dict[str, list[LinearMap]] = {
        "two matrices": [Dense(drawn(5, 4), (4,)), Dense(drawn(3, 5), (5,))],
        "matrices that cancel": [
            Dense(torch.ones(2, 1, dtype=torch.float64), (1,)),
            Dense(torch.tensor([[1.0, -1.0]], dtype=torch.float64), (2,)),
        ],
        "normalised convolution": [conv, Diagonal(channels, conv.out_shape)],
        "scaled input": [Diagonal(drawn(3, 1, 1, seed=2), conv.in_shape), conv, Diagonal(channels, conv.out_shape)],
        "grouped, reflected": [Diagonal(channels, grouped.in_shape), grouped, Diagonal(channels, grouped.out_shape)],
        "transposed": [Diagonal(channels, conv.out_shape), Adjoint(conv), Diagonal(drawn(3, 1, 1), conv.in_shape)],
        "numbers": [
            Diagonal(torch.tensor(0.1, dtype=torch.float64), (48,)),
            Reshape((48,), (3, 4, 4)),
            zero_padded(drawn(2, 3, 3, 3), 4),
        ],
        "matrix and multiplications": [
            Diagonal(drawn(4), (2, 4)),
            Dense(drawn(3, 4), (2, 4)),
            Diagonal(drawn(3, seed=9), (2, 3)),
        ],
        "multiplications": [
            Diagonal(drawn(2, 3), (2, 3)),
            Reshape((2, 3), (6,)),
            Diagonal(drawn(6, seed=3), (6,)),
        ],
        "convolution, flattened, matrix": [
            conv,
            Reshape(conv.out_shape, (36,)),
            Dense(drawn(5, 36), (36,)),
        ],
        "per position": [conv, Diagonal(drawn(4, 3, 3), conv.out_shape)],
        "pooled, selected, multiplied": [
            Separable((None, Factor(torch.tensor([[1, 2, 0, 0], [0, 0, 1, 2]]), 3)), (3, 4)),
            Selection(torch.tensor([[0, 1], [1, 5], [-1, 2]]), (3, 2)),
            Diagonal(drawn(3, 2), (3, 2)),
        ],
        "reflected, then a matrix": [grouped, Reshape(grouped.out_shape, (100,)), Dense(drawn(3, 100), (100,))],
        "transposed, then a matrix": [Adjoint(conv), Reshape(conv.in_shape, (75,)), Dense(drawn(3, 75), (75,))],
        "one": [Reshape((2,), (2, 1)), Dense(drawn(3, 1), (2, 1)), Reshape((2, 3), (6,))],
    }
    return chains[name]


CHAINS = (
    "two matrices",
    "matrices that cancel",
    "normalised convolution",
    "scaled input",
    "grouped, reflected",
    "transposed",
    "numbers",
    "matrix and multiplications",
    "multiplications",
    "convolution, flattened, matrix",
    "per position",
    "pooled, selected, multiplied",
    "reflected, then a matrix",
    "transposed, then a matrix",
    "one",
)


@pytest.mark.parametrize("norms", PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("name", CHAINS)
def test_the_norm_of_a_composition_is_that_of_the_product(name: str, norms: Norms):
    A = composition(chain(name))
    bound = composed_norm(chain(name), norms)
    assert bound is not None
    assert bound.validity is Validity.RIGOROUS
    truth = numpy_norm(A, norms)
    size = numpy_norm(np.abs(A), norms) + (1.0 if truth == 0.0 else 0.0)
    assert truth * ABOVE <= bound.value <= truth * (1 + 1e-9) + 1e-12 * size


@pytest.mark.parametrize("name", ["normalised convolution", "scaled input", "grouped, reflected", "transposed"])
def test_scaled_convolutions_are_bounded_in_the_fourier_domain_too(name: str):
    bound = composed_norm(chain(name), effort=FOURIER)
    assert bound is not None
    truth = numpy_norm(composition(chain(name)), L2)
    assert truth * ABOVE <= bound.value <= 1.6 * truth  # tiny grids: padding costs a lot, but it is a bound


@pytest.mark.parametrize("turned", [False, True])
def test_channels_of_every_group_have_their_own_scale(turned: bool):
    conv = Conv(torch.ones(2, 1, 1, dtype=torch.float64), (2, 4), (4,), (1,), ((0, 0),), (1,), 2, "zeros")
    scale = Diagonal(torch.tensor([[1.0], [8.0]], dtype=torch.float64), (2, 4))
    for linears in ([scale, conv], [conv, scale]):
        for norms in SUPPORTED:
            bound = composed_norm([Adjoint(conv) if turned and one is conv else one for one in linears], norms)
            assert bound is not None
            assert 8.0 <= bound.value <= 8.0 + 1e-12


def test_compositions_too_large_to_write_out_are_left_to_the_product_of_norms():
    small = Effort(dense_side=3)
    assert composed_norm([Dense(drawn(5, 4), (4,)), Dense(drawn(4, 5), (5,))], effort=small) is None
    conv = zero_padded(drawn(4, 3, 3, 3), 5, stride=2)
    assert composed_norm([conv, Diagonal(drawn(4, 3, 3), conv.out_shape)], effort=small) is None
    assert composed_norm([conv, Diagonal(drawn(4, 1, 1), conv.out_shape)], effort=small) is not None


def test_products_that_round_still_cover_the_real_product():
    # 1 + 2**-53 rounds to 1: the real product of the weights is above the product of the rounded ones.
    half = 1.0 + 2.0**-27
    number = torch.tensor(half, dtype=torch.float64)
    for linears in (
        [Diagonal(number, (1,)), Diagonal(number, (1,))],
        [Dense(number.reshape(1, 1), (1,)), Dense(number.reshape(1, 1), (1,))],
        [Dense(number.reshape(1, 1), (1,)), Diagonal(number, (1,))],
        [Dense(number.reshape(1, 1), (1,)), Dense(number.reshape(1, 1), (1,)), Selection(torch.tensor([0]), (1,))],
    ):
        for norms in SUPPORTED:
            bound = composed_norm(linears, norms)
            assert bound is not None
            assert bound.value > half * half  # floating point rounds 1 + 2**-26 + 2**-54 down


def test_the_rounding_of_many_scales_is_paid_for():
    one = Dense(torch.ones(1, 1, dtype=torch.float64), (1,))
    for seed in range(12):
        up = 1.0 + torch.rand(200, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        scales = torch.stack([up, 1.0 / up.flip(0)], 1).ravel()
        exact = math.prod(map(Fraction, scales.tolist()))
        bound = composed_norm([one, one, *(Diagonal(scale, (1,)) for scale in scales)], L1)
        assert bound is not None
        assert Fraction(bound.value) >= exact


def test_what_a_selection_leaves_out_is_zero_in_a_product():
    five, difference = (torch.tensor(rows, dtype=torch.float64) for rows in ([[5.0]], [[1.0, -1.0]]))
    for norms in SUPPORTED:
        bound = composed_norm(
            [Dense(five, (1,)), Selection(torch.tensor([-1, 0]), (1,)), Dense(difference, (2,))], norms
        )
        assert bound is not None
        assert 5.0 <= bound.value <= 5.0 + 1e-12


@pytest.mark.parametrize("taps", [2, 4097])
def test_taps_that_meet_are_rounded_up(taps: int):
    weight = torch.full((1, 1, taps), 2.0**-53, dtype=torch.float64)
    weight[0, 0, 0] = 1.0  # in floating point the sum is 1
    conv = Conv(weight, (1, 1), (1,), (1,), ((0, taps - 1),), (1,), 1, "replicate")
    for norms in SUPPORTED:
        assert Fraction(opnorm(conv, norms).value) >= 1 + (taps - 1) * Fraction(1, 2**53)


def test_the_rounding_of_long_products_is_paid_for():
    for seed in range(20):
        row, column = drawn(1, 96, seed=seed).abs(), drawn(96, 1, seed=seed + 100).abs()
        exact = sum(
            Fraction(a) * Fraction(b) for a, b in zip(row.ravel().tolist(), column.ravel().tolist(), strict=True)
        )
        for norms in (L1, LINF, L1_LINF):
            bound = composed_norm([Dense(column, (1,)), Dense(row, (96,))], norms)
            assert bound is not None
            assert Fraction(bound.value) >= exact


def test_compositions_that_do_not_fit_are_refused():
    with pytest.raises(InvalidInput, match="at least one map"):
        composed_norm([])
    with pytest.raises(InvalidInput, match="followed by one with input"):
        composed_norm([Dense(drawn(2, 2), (2,)), Dense(drawn(2, 3), (3,))])
