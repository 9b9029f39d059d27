"""What `orthogonal` and its maps promise, against singular values and against matrices known by arithmetic."""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, hessian, stack_module_state, vmap
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from lipcert.errors import CheckFailed, InvalidInput, NotFinite, UnsupportedOperation
from lipcert.linear import Dense
from lipcert.opnorm import opnorm
from lipcert.parametrizations import stiefel_cayley
from lipcert.parametrizations.orthogonal import orthogonal
from lipcert.parametrizations.stiefel import QR, Exponential, Householder, polar, signature
from lipcert.parametrizations.stiefel_cayley import Cayley
from lipcert.parametrizations.stiefel_polar import Bjorck, NewtonSchulz

EXACT = {"Cayley": Cayley(), "Householder": Householder(), "QR": QR(), "Exponential": Exponential()}
POLAR = {"Bjorck": Bjorck(), "Bjorck 3": Bjorck(6, 3), "NewtonSchulz": NewtonSchulz()}
MAPS = {**EXACT, **POLAR}
SHAPES = [(6, 6), (9, 4), (4, 9), (1, 7), (7, 1), (1, 1)]
by_map = pytest.mark.parametrize("map", MAPS.values(), ids=MAPS)
by_exact_map = pytest.mark.parametrize("map", EXACT.values(), ids=EXACT)
by_polar_map = pytest.mark.parametrize("map", POLAR.values(), ids=POLAR)
by_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
by_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)

# torch's own forward-mode formulas are compiled with its deprecated script compiler.
by_torchs_script = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

shapes = st.tuples(st.integers(1, 9), st.integers(1, 9))
dtypes = st.sampled_from([torch.float32, torch.float64])
seeds = st.integers(0, 2**31)


def normal(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@st.composite
def free_matrices(draw) -> Tensor:
    """What optimisers and adversaries leave behind: of any size, singular, with equal columns, unbalanced."""
    shape = draw(shapes)
    matrix = normal(shape, draw(seeds))
    kind = draw(st.sampled_from(["full", "zero", "rank one", "repeated column", "one large entry", "unbalanced"]))
    if kind == "zero":
        matrix.zero_()
    elif kind == "rank one":
        matrix = torch.outer(matrix[:, 0], matrix[0])
    elif kind == "repeated column":
        matrix = matrix[:, :1].expand(shape)
    elif kind == "one large entry":
        matrix = matrix.flatten().index_fill(0, torch.tensor([draw(st.integers(0, matrix.numel() - 1))]), 1e6)
        matrix = matrix.reshape(shape)
    elif kind == "unbalanced":
        matrix = matrix * torch.logspace(-20, 0, shape[1], dtype=torch.float64)
    scale = draw(st.sampled_from([1e-30, 1e-8, 1e-2, 1.0, 1e2, 1e3, 1e6, 1e30]))
    return (matrix * scale).to(draw(dtypes))


def linear(shape: tuple[int, int], seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Linear:
    """A plain layer with a weight of that shape, (out, in)."""
    layer = nn.Linear(shape[1], shape[0], dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(normal(shape, seed) / math.sqrt(shape[1]))
        layer.bias.zero_()
    return layer


def original(layer: nn.Module) -> nn.Parameter:
    return layer.parametrizations.weight.original


def with_parameter(free: Tensor, map) -> nn.Linear:
    layer = orthogonal(linear(tuple(free.shape), dtype=free.dtype), map=map)
    with torch.no_grad():
        original(layer).copy_(free)
    return layer


def singular_values(weight: Tensor) -> Tensor:
    return torch.linalg.svdvals(weight.detach().double())


def proven(weight: Tensor) -> float:
    return opnorm(Dense(weight.detach().double(), (weight.shape[1],))).value


def assert_orthogonal(layer: nn.Linear, within: float = 1e-6) -> None:
    """In both modes, and with a proof of the upper side in evaluation."""
    assert (singular_values(layer.train().weight) - 1.0).abs().max() <= within
    assert proven(layer.eval().weight) <= 1.0
    assert singular_values(layer.weight).min() >= 1.0 - within


def uniform(shape: tuple[int, int], seed: int, flip: bool = False) -> Tensor:
    """A matrix with orthonormal rows or columns, with a determinant of either sign if it is square."""
    rows, columns = shape
    Q = torch.linalg.qr(normal((max(shape), min(shape)), seed)).Q
    Q = Q * torch.where(torch.arange(min(shape)) == 0, -1.0 if flip else 1.0, 1.0)
    return Q if rows >= columns else Q.T


# The maps, by arithmetic


def test_cayley_of_a_plane_and_of_a_column():
    t = 0.75
    free = torch.tensor([[0.0, t], [0.0, 0.0]], dtype=torch.float64)
    rotation = torch.tensor([[1 - t * t, -2 * t], [2 * t, 1 - t * t]], dtype=torch.float64) / (1 + t * t)
    torch.testing.assert_close(Cayley()(free, torch.ones(2)), rotation)
    # (I + A)^-1 for a column v is 1 / (1 + v'v).
    column = torch.tensor([[5.0], [1.0], [2.0]], dtype=torch.float64)
    expected = torch.tensor([[1 - 5.0], [-2.0], [-4.0]], dtype=torch.float64) / (1 + 5.0)
    torch.testing.assert_close(Cayley()(column, torch.ones(1)), expected)


def test_the_exponential_of_a_plane_and_of_a_column():
    t = 0.75
    free = torch.tensor([[0.0, t], [-t, 0.0]], dtype=torch.float64)
    rotation = torch.tensor([[math.cos(t), math.sin(t)], [-math.sin(t), math.cos(t)]], dtype=torch.float64)
    torch.testing.assert_close(Exponential()(free, torch.eye(2, dtype=torch.float64)), rotation)
    # A great circle; the part of the direction along the start has no effect.
    column = torch.tensor([[9.0], [3.0], [4.0]], dtype=torch.float64)
    expected = torch.tensor([[math.cos(5.0)], [0.6 * math.sin(5.0)], [0.8 * math.sin(5.0)]], dtype=torch.float64)
    torch.testing.assert_close(Exponential()(column, torch.eye(3, 1, dtype=torch.float64)), expected)


def test_a_reflection_of_the_first_unit_vector():
    v = torch.tensor([[7.0], [2.0], [2.0]], dtype=torch.float64)  # the 7 stands for 1
    expected = torch.tensor([[1 - 2 / 9], [-4 / 9], [-4 / 9]], dtype=torch.float64)
    torch.testing.assert_close(Householder()(v, torch.ones(1)), expected)


def test_reflections_are_applied_in_order_whatever_the_block():
    free, n, k = normal((7, 5)), 7, 5
    product = torch.eye(n, dtype=torch.float64)
    for j in range(k):
        v = free[:, j].clone()
        v[:j], v[j] = 0.0, 1.0
        product = product @ (torch.eye(n) - 2 * torch.outer(v, v) / v.dot(v))
    for block in (1, 2, 3, 5, 64):
        torch.testing.assert_close(Householder(block)(free, torch.ones(k)), product[:, :k])


def test_the_triangle_of_qr_has_a_positive_diagonal():
    free = normal((6, 4))
    R = QR()(free, torch.ones(4)).T @ free
    assert (torch.diagonal(R) > 0).all()
    torch.testing.assert_close(R.tril(-1), torch.zeros_like(R), atol=1e-13, rtol=0.0)


@pytest.mark.parametrize(("order", "series"), [(1, [1, 1 / 2]), (2, [1, 1 / 2, 3 / 8]), (3, [1, 1 / 2, 3 / 8, 5 / 16])])
def test_one_step_of_bjorck(order, series):
    start = torch.tensor([3.0, 4.0], dtype=torch.float64) / 337**0.25  # |W'W|_F^2 = 3^4 + 4^4
    e = 1 - start**2
    expected = start * sum(coefficient * e**i for i, coefficient in enumerate(series))
    got = Bjorck(1, order)(torch.diag(torch.tensor([3.0, 4.0], dtype=torch.float64)), torch.ones(2))
    torch.testing.assert_close(got, torch.diag(expected))


def test_a_cubic_is_at_most_1_and_equal_at_the_ends_of_its_range():
    (a, b), *_ = NewtonSchulz(1, 0.4).cubics
    grid = torch.linspace(0, 1, 10001, dtype=torch.float64)
    values = a * grid - b * grid**3
    assert values.max() <= 1.0 + 1e-12
    assert values.max() >= 1.0 - 1e-6
    assert (values >= 0.0).all()
    assert a * 0.4 - b * 0.4**3 == pytest.approx(a - b) == pytest.approx(NewtonSchulz(1, 0.4).reached)


@given(st.integers(1, 20), st.floats(1e-4, 0.9), seeds)
def test_singular_values_end_where_newton_schulz_says(steps, smallest, seed):
    map = NewtonSchulz(steps, smallest)
    # The norm is 1 in Schatten 4 if one singular value is 1 and the others add nothing that matters.
    spread = smallest + (1.0 - smallest) * torch.rand(4, generator=torch.Generator().manual_seed(seed)).double()
    scale = (1.0 + (spread**4).sum()) ** 0.25
    values = torch.cat([torch.ones(1), spread]).double()
    ends = map(torch.diag(values), values).diagonal()
    kept = ends[values / scale >= smallest]
    assert (ends <= 1.0 + 1e-14).all()
    assert (kept >= map.reached - 1e-12).all()


@given(st.integers(1, 40), seeds, st.booleans(), st.integers(1, 40))
def test_elimination_with_signs_needs_no_pivoting(k, seed, flip, block):
    X = uniform((2 * k, k) if seed % 2 else (k, k), seed, flip)[:k]
    d, L, R = signature(X, block)
    assert (R.diagonal().abs() >= 1.0 - 1e-12).all()
    assert (L.abs() <= 1.0 + 1e-12).all()
    assert (d.abs() == 1.0).all()
    torch.testing.assert_close(L @ R, torch.diag(d) + X, atol=1e-10, rtol=0.0)


# Singular values


@by_exact_map
@given(free=free_matrices())
def test_exact_maps_are_orthogonal_for_every_parameter(map, free):
    layer = with_parameter(free, map)
    assert_orthogonal(layer)
    if map != QR():
        layer.train().weight.sum().backward()
        assert original(layer).grad.isfinite().all()


@by_polar_map
@given(free=free_matrices())
def test_iterations_never_pass_1(map, free):
    layer = with_parameter(free, map)
    assert singular_values(layer.weight).max() <= 1.0 + 1e-6
    layer.weight.sum().backward()
    assert original(layer).grad.isfinite().all()
    assert proven(layer.eval().weight) <= 1.0


@by_polar_map
def test_iterations_do_not_depend_on_the_scale(map):
    free = normal((5, 3))
    unscaled = map(free, torch.ones(3))
    for scale in (2.0**-100, 2.0**100):
        torch.testing.assert_close(map(free * scale, torch.ones(3)), unscaled, atol=1e-12, rtol=0.0)
    assert map(torch.zeros(5, 3), torch.ones(3)).count_nonzero() == 0


@by_exact_map
@pytest.mark.parametrize("shape", [(150, 150), (150, 70), (131, 130)], ids=str)
def test_exact_maps_are_orthogonal_at_sizes_that_are_split(map, shape):
    columns = torch.outer(normal((shape[0],), 1), normal((shape[1],), 2))
    for free in (normal(shape), 1e3 * normal(shape), 1e30 * columns, 3.0 * columns):
        values = singular_values(with_parameter(free.float(), map).weight)
        assert (values - 1.0).abs().max() <= 1e-6


@by_map
@by_shape
@by_dtype
def test_a_layer_starts_orthogonal_and_stays_so(map, shape, dtype):
    layer = orthogonal(linear(shape, dtype=dtype), map=map)
    assert_orthogonal(layer)
    generator = torch.Generator().manual_seed(1)
    within = 1e-6 if map in EXACT.values() else 2e-3  # a few steps do not make a weight singular
    for rule in (torch.optim.SGD(layer.parameters(), lr=0.3), torch.optim.Adam(layer.parameters(), lr=0.05)):
        for _ in range(8):
            layer.train()
            x = torch.randn(4, shape[1], generator=generator).to(dtype)
            loss = (layer(x) * torch.randn(4, shape[0], generator=generator).to(dtype)).mean()
            rule.zero_grad()
            loss.backward()
            rule.step()
        assert_orthogonal(layer, within)


@by_map
def test_half_precision_keeps_the_claim_in_evaluation(map):
    for dtype in (torch.bfloat16, torch.float16):
        layer = orthogonal(linear((6, 4), dtype=dtype), map=map).eval()
        assert layer.weight.dtype == dtype
        assert 0.98 < proven(layer.weight) <= 1.0


@by_map
def test_autocast_leaves_the_weight_alone(map):
    layer = orthogonal(linear((6, 4)), map=map)
    plain = layer.weight
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer.weight, plain)


# Assignment


@by_map
@given(shape=shapes, seed=seeds, flip=st.booleans(), dtype=dtypes)
def test_assigning_an_orthogonal_matrix_gives_it_back(map, shape, seed, flip, dtype):
    layer = orthogonal(linear(shape, dtype=dtype), map=map)
    X = uniform(shape, seed, flip).to(dtype)
    layer.weight = X
    torch.testing.assert_close(layer.weight.detach(), X, atol=1e-6 if dtype == torch.float32 else 1e-9, rtol=0.0)


@by_map
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_identity_its_negative_and_permutations_are_reached(map, sign):
    layer = orthogonal(linear((4, 4), dtype=torch.float64), map=map)
    for order in ([0, 1, 2, 3], [1, 0, 2, 3], [3, 2, 1, 0], [1, 2, 3, 0]):
        X = sign * torch.eye(4, dtype=torch.float64)[order]
        layer.weight = X
        torch.testing.assert_close(layer.weight.detach(), X, atol=1e-9, rtol=0.0)


@by_map
@by_shape
def test_assigning_any_matrix_gives_the_nearest(map, shape):
    layer = orthogonal(linear(shape, dtype=torch.float64), map=map)
    for scale in (1e-30, 1.0, 1e30):
        W = normal(shape, 5)
        layer.weight = W * scale
        Q = layer.weight.detach()
        # Higham: Q is the polar factor of W exactly if Q'W (or W Q' for wide matrices) is symmetric and positive.
        factor = Q.T @ W if shape[0] >= shape[1] else W @ Q.T
        torch.testing.assert_close(factor, factor.T, atol=1e-8, rtol=0.0)
        assert torch.linalg.eigvalsh(factor).min() > 0


@by_map
def test_a_singular_weight_is_completed(map):
    plain = linear((4, 4))
    with torch.no_grad():
        plain.weight.zero_()
    assert_orthogonal(orthogonal(plain, map=map))


def test_cayley_refuses_what_rounding_would_spoil(monkeypatch):
    monkeypatch.setattr(stiefel_cayley, "_LONGEST_V", 1e-3)
    with pytest.raises(CheckFailed, match="Householder"):
        Cayley().invert(uniform((4, 2), 0))


@by_shape
def test_a_generator_draws_the_start(shape):
    def drawn(seed: int) -> Tensor:
        return orthogonal(linear(shape), generator=torch.Generator().manual_seed(seed)).weight.detach()

    assert torch.equal(drawn(1), drawn(1))
    assert (singular_values(drawn(1)) - 1.0).abs().max() <= 1e-6
    if shape != (1, 1):
        assert (drawn(1) - drawn(2)).abs().max() > 1e-2


def test_the_drawn_start_is_uniform():
    # For a uniform orthogonal 2 x 2 matrix: E q = 0, E q^2 = 1/2, and both determinants are as likely.
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([orthogonal(linear((2, 2)), generator=generator).weight.detach() for _ in range(400)])
    assert draws.mean(0).abs().max() < 4 * math.sqrt(0.5 / 400)
    assert (draws.square().mean(0) - 0.5).abs().max() < 4 * math.sqrt(0.125 / 400)
    assert torch.linalg.det(draws).mean().abs() < 4 / math.sqrt(400)


# Derivatives


@by_torchs_script
@by_map
@pytest.mark.parametrize("shape", [(3, 3), (4, 2), (3, 1)], ids=str)
def test_derivatives_of_every_kind(map, shape):
    free = normal(shape, 3).requires_grad_()
    anchor = map.invert(uniform(shape, 4))[1]
    quick = map in EXACT.values()

    def act(x: Tensor) -> Tensor:
        return map(x, anchor)

    assert torch.autograd.gradcheck(act, free, check_forward_ad=True, check_batched_grad=True)
    if quick:
        assert torch.autograd.gradgradcheck(act, free, check_batched_grad=True)
    else:
        assert torch.autograd.gradgradcheck(lambda x: act(x)[:1, :1], free)


@by_torchs_script
@pytest.mark.parametrize("map", [Cayley(), Exponential()], ids=["Cayley", "Exponential"])
@pytest.mark.parametrize("shape", [(3, 3), (4, 2)], ids=str)
def test_derivatives_where_the_parameter_counts_as_shorter(map, shape):
    free = torch.full(shape, 0.3, dtype=torch.float64) + 0.1 * normal(shape, 3)
    free[0, -1] = 2.0
    anchor = map.invert(uniform(shape, 4))[1]
    assert torch.autograd.gradcheck(lambda x: map(1e3 * x, anchor), free.requires_grad_(), check_forward_ad=True)


@by_map
def test_derivatives_at_zero_are_finite(map):
    if map == QR():
        return  # said not to be
    free = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
    anchor = map.invert(uniform((4, 3), 4))[1]
    (first,) = torch.autograd.grad(map(free, anchor)[0, 1] + map(free, anchor)[3, 2], free, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), free)
    assert first.isfinite().all()
    assert second.isfinite().all()


@by_torchs_script
@by_map
def test_a_hessian_through_functional_call_and_layers_in_both_modes(map):
    layer = orthogonal(linear((3, 2), dtype=torch.float64), map=map)
    x = normal((2,), 8)

    def loss(free: Tensor) -> Tensor:
        return functional_call(layer, {"parametrizations.weight.original": free}, x).square().sum() + free.sum() ** 2

    free = original(layer).detach()
    by_reverse = torch.autograd.functional.hessian(loss, free)
    torch.testing.assert_close(hessian(loss)(free), by_reverse)
    layer.eval()
    torch.testing.assert_close(torch.func.grad(loss)(free), torch.autograd.functional.jacobian(loss, free))


@by_map
def test_recomputation_under_checkpointing_is_exact(map):
    layer = orthogonal(linear((5, 3)), map=map)
    x = normal((4, 3), 2, torch.float32)
    grads = []
    for forward in (layer, lambda x: checkpoint(layer, x, use_reentrant=False)):
        layer.zero_grad()
        forward(x).square().sum().backward()
        grads.append(original(layer).grad.clone())
    assert torch.equal(*grads)


# A layer among torch's tools


@by_map
@pytest.mark.parametrize("training", [True, False])
def test_reading_moves_nothing(map, training):
    layer = orthogonal(linear((5, 3)), map=map).train(training)
    before = copy.deepcopy(layer.state_dict())
    assert torch.equal(layer.weight, layer.weight)
    after = layer.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@by_map
@pytest.mark.parametrize("shape", [(3, 3), (5, 2), (2, 5)], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_an_ensemble_under_vmap_is_its_members(map, shape, training):
    layers = [orthogonal(linear(shape, seed), map=map).train(training) for seed in range(3)]
    x = normal((4, shape[1]), 9, torch.float32)
    parameters, buffers = stack_module_state(layers)
    outputs = vmap(lambda p, b: functional_call(layers[0], (p, b), x))(parameters, buffers)
    torch.testing.assert_close(outputs, torch.stack([layer(x) for layer in layers]), atol=2e-6, rtol=0.0)


@by_map
@pytest.mark.parametrize("training", [True, False])
def test_state_dicts_copies_and_pickles_carry_the_layer(map, training):
    layer = orthogonal(linear((4, 4), 1), map=map).train(training)
    layer.weight = uniform((4, 4), 6, flip=True).float()
    with torch.no_grad():
        original(layer).add_(0.1 * normal((4, 4), 7).float())
    loaded = orthogonal(linear((4, 4), 2), map=map).train(training)
    loaded.load_state_dict(layer.state_dict())
    for other in (loaded, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other.weight, layer.weight)


@by_map
def test_a_checkpoint_of_the_plain_layer_is_read_as_assigned(map):
    plain = linear((5, 3), 3)
    layer = orthogonal(linear((5, 3), 4), map=map)
    layer.load_state_dict(plain.state_dict())
    torch.testing.assert_close(layer.weight.detach().double(), polar(plain.weight.detach().double()), atol=1e-6, rtol=0)


@by_map
@pytest.mark.parametrize("training", [True, False])
def test_what_is_left_after_removal_keeps_the_claim(map, training):
    layer = orthogonal(linear((6, 6), 3), map=map).train(training)
    x = normal((2, 6), 1, torch.float32)
    y = layer(x)
    parametrize.remove_parametrizations(layer, "weight")
    assert proven(layer.weight) <= 1.0
    assert singular_values(layer.weight).min() >= 1.0 - 1e-6
    torch.testing.assert_close(layer(x), y, atol=2e-6, rtol=0.0)


@pytest.mark.one_in(4)
@by_map
@pytest.mark.parametrize("shape", [(4, 4), (3, 5)], ids=str)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_layers_are_the_same(map, shape):
    torch.compiler.reset()
    layer = orthogonal(linear(shape), map=map)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x = normal((2, shape[1]), 1, torch.float32)
    grads = []
    for forward in (layer, compiled):
        layer.zero_grad()
        y = forward(x)
        y.square().sum().backward()
        grads.append(original(layer).grad.clone())
        torch.testing.assert_close(y, layer(x), atol=2e-6, rtol=0.0)
    torch.testing.assert_close(*grads, atol=1e-5, rtol=0.0)
    layer.eval()
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), layer(x), atol=2e-6, rtol=0.0)


# Refusals


def test_what_is_no_linear_operator_is_refused():
    class Scaled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 3.0 * super().forward(x)

    for module in (nn.Conv2d(2, 2, 3), nn.Embedding(3, 2), nn.Bilinear(2, 2, 2), Scaled(2, 2)):
        with pytest.raises(UnsupportedOperation, match="refuses"):
            orthogonal(module)
    with pytest.raises(InvalidInput, match="not applied as an operator"):
        orthogonal(nn.Linear(2, 2), "bias")
    with pytest.raises(InvalidInput, match="already parametrized"):
        orthogonal(orthogonal(nn.Linear(2, 2)))
    with pytest.raises(InvalidInput, match="initialise"):
        orthogonal(nn.LazyLinear(2))


def test_weights_that_are_not_finite_are_refused():
    plain = linear((2, 2))
    with torch.no_grad():
        plain.weight[0, 0] = math.nan
    with pytest.raises(NotFinite):
        orthogonal(plain)
    layer = orthogonal(linear((2, 2)))
    with pytest.raises(NotFinite):
        layer.weight = torch.full((2, 2), math.inf)


@pytest.mark.parametrize(
    ("map", "arguments"),
    [(Householder, (0,)), (Bjorck, (0,)), (Bjorck, (1, 0)), (NewtonSchulz, (0,)), (NewtonSchulz, (1, 0.0)),
     (NewtonSchulz, (1, 1.0))],
)  # fmt: skip
def test_maps_that_do_nothing_are_refused(map, arguments):
    with pytest.raises(InvalidInput):
        map(*arguments)


@settings(max_examples=10)
@given(shapes, seeds)
def test_maps_print_and_compare_as_values(shape, seed):
    assert Cayley() == Cayley()
    assert "Cayley" in repr(orthogonal(linear(shape, seed)))
