"""Claims with two sides: nothing measured leaves them, known constants are met, and what is not known is refused."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import lipcert
from lipcert import L2, Norms, Validity, trace
from lipcert.bilipschitz import (
    BiLipschitz,
    Kind,
    bilipschitz,
    both_sides,
    coupling_constant,
    derived_rows,
    derived_table,
    invert,
    proved_error,
)
from lipcert.bilipschitz.affine import smallest_singular_value
from lipcert.bilipschitz.kept import kept
from lipcert.certifiers import LipSDP, Product
from lipcert.contraction import (
    a_priori_error,
    inverse_constant,
    iterations_needed,
    logdet_remainder,
    logdet_terms_needed,
    power_up,
)
from lipcert.errors import BudgetExceeded, InvalidInput, NotFinite, UnsupportedOperation
from lipcert.graph import Activation, Graph, Input

ROUNDING = 1e-9  # quotients and singular values are measured in float64
WIDTH = 4


class Forward(nn.Module):
    """A module whose forward is a function of it and the input."""

    def __init__(self, forward: Callable[..., Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.function = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def dense(*rows: Sequence[float]) -> nn.Linear:
    layer = nn.Linear(len(rows[0]), len(rows), bias=False, dtype=torch.float64).requires_grad_(False)
    layer.weight.copy_(torch.tensor(rows, dtype=torch.float64))
    return layer


def scaled(d: int, factor: float) -> nn.Linear:
    return dense(*(factor * torch.eye(d, dtype=torch.float64)).tolist())


def perceptron(into: int, out: int, norm: float, generator: torch.Generator, activation: nn.Module) -> nn.Sequential:
    """Two layers; the product of their norms is ``norm``."""
    layers = nn.Sequential(nn.Linear(into, 5), activation, nn.Linear(5, out)).double().requires_grad_(False)
    for layer in (layers[0], layers[2]):
        W = torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64)
        layer.weight.copy_(W * math.sqrt(norm) / torch.linalg.matrix_norm(W, 2))
        layer.bias.copy_(torch.randn(layer.bias.shape, generator=generator, dtype=torch.float64))
    return layers


def residual(branch: nn.Module) -> nn.Module:
    return Forward(lambda self, x: x + self.g(x), g=branch)


def halves(t: nn.Module) -> nn.Module:
    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        return torch.cat([a, b + self.t(a)], dim=1)

    return Forward(forward, t=t)


def swapped(t: nn.Module) -> nn.Module:
    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        return torch.cat([a + self.t(b), b], dim=1)[:, torch.arange(x.shape[1] - 1, -1, -1)]

    return Forward(forward, t=t)


def exchanged(t: nn.Module) -> nn.Module:
    def forward(self, x: Tensor) -> Tensor:
        a, b = x[:, ::2], x[:, 1::2]
        return torch.cat([b - self.t(a), a], dim=1)

    return Forward(forward, t=t)


def stacked(t: nn.Module) -> nn.Module:
    def forward(self, x: Tensor) -> Tensor:
        a, b = x.unflatten(1, (2, -1)).unbind(1)
        return torch.stack([a, self.t(a) + b], dim=2).flatten(1)

    return Forward(forward, t=t)


COUPLINGS = {"halves": halves, "swapped": swapped, "exchanged": exchanged, "stacked": stacked}


def masked(t: nn.Module, width: int) -> nn.Module:
    """RealNVP's form: t reads and changes all entries, and masks keep the two apart."""
    model = Forward(lambda self, x: x + self.other * self.t(self.mask * x), t=t)
    model.register_buffer("mask", (torch.arange(width) % 2).double())
    model.register_buffer("other", 1 - (torch.arange(width) % 2).double())
    return model


ACTIVATIONS = (nn.Tanh, nn.ReLU, nn.ELU, nn.SiLU, nn.LeakyReLU)


def drawn_step(kind: str, generator: torch.Generator, activation: nn.Module) -> nn.Module:
    norm = float(1.4 * torch.rand((), generator=generator))
    match kind:
        case "residual":
            return residual(perceptron(WIDTH, WIDTH, norm, generator, activation))
        case "masked":
            return masked(perceptron(WIDTH, WIDTH, norm, generator, activation), WIDTH)
        case "affine":
            layer = nn.Linear(WIDTH, WIDTH, dtype=torch.float64).requires_grad_(False)
            layer.weight.copy_(torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64))
            return layer
        case "leaky":
            return nn.LeakyReLU(0.3)
        case "prelu":
            return nn.PReLU(WIDTH).double().requires_grad_(False)
        case _:
            return COUPLINGS[kind](perceptron(WIDTH // 2, WIDTH // 2, 2 * norm, generator, activation))


KINDS = ("residual", "masked", "affine", "leaky", "prelu", *COUPLINGS)


def quotients(f: Callable[[Tensor], Tensor], shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Difference quotients of pairs far apart and close together."""
    x = 3 * torch.randn(200, *shape, generator=generator, dtype=torch.float64)
    step = torch.randn(200, *shape, generator=generator, dtype=torch.float64)
    y = x + step * torch.tensor([1.0, 1e-3]).repeat(100).reshape(-1, *[1] * len(shape))
    change = (f(x) - f(y)).flatten(1).norm(dim=1)
    return change / (x - y).flatten(1).norm(dim=1)


def singular_values(f: Callable[[Tensor], Tensor], shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    x = 3 * torch.randn(10, *shape, generator=generator, dtype=torch.float64)
    jacobians = torch.stack([torch.autograd.functional.jacobian(f, point[None]) for point in x])
    return torch.linalg.svdvals(jacobians.reshape(len(x), -1, math.prod(shape)))


@given(st.lists(st.sampled_from(KINDS), min_size=1, max_size=4), st.sampled_from(ACTIVATIONS), st.integers(0, 2**16))
@settings(max_examples=15, deadline=None)
def test_quotients_and_singular_values_lie_between_the_sides(kinds: list[str], activation, seed: int):
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(*(drawn_step(kind, generator, activation()) for kind in kinds))
    found = bilipschitz(model, (WIDTH,), by=Product(), centres=(1.0, 2.5))
    for measured in (quotients(model, (WIDTH,), generator), singular_values(model, (WIDTH,), generator)):
        # Differences of close outputs cancel: their quotients are less exact than singular values.
        assert found.lower * (1 - ROUNDING) - 1e-10 <= float(measured.min())
        assert float(measured.max()) <= found.upper * (1 + ROUNDING) + 1e-10
    assert 0.0 <= found.lower <= found.upper <= lipcert.certify(model, (WIDTH,), by=Product()).bound


@given(st.integers(0, 2**16), st.sampled_from(ACTIVATIONS))
@settings(max_examples=3, deadline=None)
def test_a_semidefinite_certificate_keeps_both_sides_too(seed: int, activation):
    generator = torch.Generator().manual_seed(seed)
    model = residual(perceptron(3, 3, 1.2, generator, activation()))
    loose = bilipschitz(model, (3,), by=Product(), centres=(1.0, 4.0))
    tight = bilipschitz(model, (3,), by=LipSDP(), centres=(1.0, 4.0))
    measured = singular_values(model, (3,), generator)
    assert loose.lower <= tight.lower <= float(measured.min()) * (1 + ROUNDING)
    assert float(measured.max()) * (1 - ROUNDING) <= tight.upper <= loose.upper


@pytest.mark.parametrize("c", [0.25, 0.5, -0.75, 0.9])
def test_a_block_that_adds_c_times_the_modulus_has_the_sides_one_minus_and_one_plus_c(c: float):
    """``x + c |x|`` has the slopes 1 - c and 1 + c."""
    found = bilipschitz(residual(nn.Sequential(scaled(3, c), Forward(lambda self, x: x.abs()))), (3,))
    assert found.steps[0].kind is Kind.RESIDUAL
    assert 1 - abs(c) - 1e-8 <= found.lower <= 1 - abs(c)
    assert 1 + abs(c) <= found.upper <= 1 + abs(c) + 1e-8


@pytest.mark.parametrize("c", [0.5, -0.5, -2.0])
def test_a_linear_block_is_known_from_both_sides_at_once(c: float):
    found = bilipschitz(residual(scaled(3, c)), (3,))
    assert found.steps[0].kind is Kind.AFFINE
    assert abs(1 + c) * (1 - 1e-12) <= found.lower <= abs(1 + c) <= found.upper <= abs(1 + c) * (1 + 1e-8)


@pytest.mark.parametrize(
    ("layer", "shape", "lower", "upper"),
    [
        pytest.param(dense([3.0, 0.0], [0.0, -0.5]), (2,), 0.5, 3.0, id="diagonal"),
        pytest.param(dense([0.6, -0.8], [0.8, 0.6]), (2,), 1.0, 1.0, id="rotation"),
        pytest.param(dense([1.0, 0.0], [0.0, 2.0], [0.0, 0.0]), (2,), 1.0, 2.0, id="tall"),
        pytest.param(dense([3.0, 0.0], [0.0, 2.0]), (5, 2), 2.0, 3.0, id="at every position"),
        pytest.param(dense([1.0, 1.0], [1.0, 1.0]), (2,), 0.0, 2.0, id="singular"),
        pytest.param(dense([3.0, 4.0]), (2,), 0.0, 5.0, id="wide"),
        pytest.param(nn.Flatten(), (2, 3), 1.0, 1.0, id="reshape"),
        pytest.param(nn.PixelUnshuffle(2), (1, 4, 4), 1.0, 1.0, id="squeeze"),
        pytest.param(Forward(lambda self, x: x[:, [2, 0, 1]]), (3,), 1.0, 1.0, id="permutation"),
        pytest.param(Forward(lambda self, x: torch.cat([x, x], 1)), (3,), 2**0.5, 2**0.5, id="twice"),
        pytest.param(Forward(lambda self, x: x.repeat(1, 4)), (3,), 2.0, 2.0, id="four times"),
        pytest.param(Forward(lambda self, x: x[:, :2]), (3,), 0.0, 1.0, id="dropped"),
        pytest.param(Forward(lambda self, x: 3 * x - 1), (3,), 3.0, 3.0, id="factor"),
        pytest.param(nn.LeakyReLU(0.25), (3,), 0.25, 1.0, id="leaky"),
        pytest.param(nn.LeakyReLU(2.0), (3,), 1.0, 2.0, id="steep"),
        pytest.param(Forward(lambda self, x: -2 * nn.functional.leaky_relu(x, 0.5)), (3,), 1.0, 2.0, id="falling"),
        pytest.param(nn.ReLU(), (3,), 0.0, 1.0, id="relu"),
        pytest.param(nn.Tanh(), (3,), 0.0, 1.0, id="tanh"),
        pytest.param(nn.Identity(), (3,), 1.0, 1.0, id="identity"),
    ],
)
def test_sides_of_single_layers_are_those_known(layer: nn.Module, shape: tuple[int, ...], lower: float, upper: float):
    found = bilipschitz(layer, shape)
    # 0.6 and 0.8 are rounded.
    assert lower * (1 - 1e-12) <= found.lower <= lower * (1 + 1e-16)
    assert upper * (1 - 1e-16) <= found.upper <= upper * (1 + 1e-8)


def test_an_invertible_convolution_is_as_its_matrix():
    layer = nn.Conv2d(4, 4, 1, groups=2, bias=False, dtype=torch.float64).requires_grad_(False)
    layer.weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 3.0], [0.5, 0.0], [0.0, 1.0]]).reshape(4, 2, 1, 1))
    found = bilipschitz(layer, (4, 3, 3))
    assert 0.5 * (1 - 1e-12) <= found.lower <= 0.5
    assert 3.0 <= found.upper <= 3.0 * (1 + 1e-8)


@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect"])
def test_a_convolution_is_bounded_from_below_by_its_smallest_singular_value(mode: str):
    torch.manual_seed(1)
    layer = nn.Conv1d(2, 2, 3, padding=1, padding_mode=mode, dtype=torch.float64)
    found = bilipschitz(layer, (2, 6))
    least = float(singular_values(layer, (2, 6), torch.Generator().manual_seed(0)).min())
    assert least * (1 - 1e-6) <= found.lower <= least * (1 + ROUNDING)
    assert least > 1e-3


@given(st.integers(1, 4), st.integers(0, 2), st.data())
@settings(max_examples=20, deadline=None)
def test_no_smallest_singular_value_is_below_its_bound_in_exact_arithmetic(n: int, more: int, data):
    rows = data.draw(
        st.lists(st.lists(st.integers(-9, 9), min_size=n, max_size=n), min_size=n + more, max_size=n + more)
    )
    bound = smallest_singular_value(np.array(rows, dtype=np.float64))
    gram = [[Fraction(sum(row[i] * row[j] for row in rows)) for j in range(n)] for i in range(n)]
    shifted = [[gram[i][j] - (Fraction(bound) ** 2 if i == j else 0) for j in range(n)] for i in range(n)]
    assert is_semidefinite(shifted)
    exact = np.linalg.svd(np.array(rows, dtype=np.float64), compute_uv=False).min()
    assert bound >= exact * (1 - 1e-9) - 1e-9


def is_semidefinite(A: list[list[Fraction]]) -> bool:
    """Symmetric elimination over the rationals."""
    while A:
        pivot = A[0][0]
        if pivot < 0 or (pivot == 0 and any(A[0])):
            return False
        rest = A[1:]
        A = [
            [entry - (row[0] * A[0][j + 1] / pivot if pivot else 0) for j, entry in enumerate(row[1:])] for row in rest
        ]
    return True


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.1, 2.0])
def test_nothing_is_assumed_of_the_approximate_inverse(factor: float, monkeypatch: pytest.MonkeyPatch):
    A, invert_matrix = np.array([[2.0, 1.0], [0.0, 3.0]]), np.linalg.inv
    monkeypatch.setattr(np.linalg, "inv", lambda matrix: factor * invert_matrix(matrix))
    assert smallest_singular_value(A) <= np.linalg.svd(A, compute_uv=False).min()


def test_what_is_added_to_a_matrix_lowers_its_smallest_singular_value():
    assert 0.75 * (1 - 1e-12) <= smallest_singular_value(np.eye(3), 0.25) <= 0.75
    assert smallest_singular_value(np.eye(3), 1.5) == 0.0


@pytest.mark.parametrize("A", [np.full((2, 2), 1e-200), np.zeros((2, 2)), np.diag([1.0, 1e-300]), np.zeros((3, 0))])
def test_degenerate_matrices_have_no_lower_side_or_a_true_one(A: np.ndarray):
    assert 0.0 <= smallest_singular_value(A) <= 1e-300


def test_slopes_count_neuron_by_neuron_whatever_their_sign():
    def sides(*slopes: tuple[float, float]) -> tuple[float, float]:
        low, high = torch.tensor(slopes, dtype=torch.float64).T
        node = Activation("a", "input", (len(slopes),), "declared:test", {}, (low, high), lambda x: x)
        found = both_sides(Graph((Input("input", (len(slopes),)), node)), by=Product())
        assert "rests on a (declared:test)" in str(found)
        return found.lower, found.upper

    assert sides((-3.0, -1.0), (2.0, 2.5)) == (1.0, 3.0)
    assert sides((-3.0, -2.0), (0.5, 0.75)) == (0.5, 3.0)
    assert sides((-1.0, 1.0), (2.0, 2.0)) == (0.0, 2.0)
    assert sides((0.0, 1.0)) == (0.0, 1.0)


# Couplings


@pytest.mark.parametrize("form", [*COUPLINGS, "masked"])
@pytest.mark.parametrize("L", [0.0, 0.5, 1.5, 7.0])
def test_a_coupling_has_the_singular_values_of_its_closed_form(form: str, L: float):
    """With t(a) = L a the singular values are (sqrt(L^2 + 4) +- L) / 2, whatever order the entries come in."""
    if form == "masked":
        # From entry 1 to entry 0 and from 3 to 2; the mask after t hides the rest.
        t = dense([0.0, L, 0.0, 0.0], [3.0, 3.0, 3.0, 3.0], [0.0, 0.0, 0.0, L], [3.0, 3.0, 3.0, 3.0])
        model = masked(nn.Sequential(curved(), t), 4)
    else:
        model = COUPLINGS[form](nn.Sequential(scaled(2, L), curved()))
    found = bilipschitz(model, (4,), by=Product())
    (step,) = (step for step in found.steps if step.kind is Kind.COUPLING)
    assert all((other.lower, other.upper) == (1.0, 1.0) for other in found.steps if other is not step)
    exact = (math.sqrt(L * L + 4) - L) / 2
    assert exact * (1 - 1e-8) <= step.lower <= exact * (1 + 1e-15)
    assert (1 / exact) * (1 - 1e-15) <= step.upper <= 1 / exact * (1 + 1e-8)


def curved() -> nn.Module:
    """The identity, as far as slopes tell: steps with it are not affine."""
    return nn.Threshold(-1e9, -1e9)


def test_the_constant_of_a_coupling_is_the_norm_of_its_matrix():
    for L in (0.0, 1e-9, 0.3, 1.0, 1e6):
        norm = float(np.linalg.norm(np.array([[1.0, 0.0], [L, 1.0]]), 2))
        assert norm * (1 - 1e-14) <= coupling_constant(L) <= norm * (1 + 1e-14)
    assert Fraction(coupling_constant(1.0)) ** 2 - Fraction(coupling_constant(1.0)) >= 1  # the golden ratio


def test_blocks_that_are_nearly_couplings_are_not_taken_for_one():
    negative, wide = scaled(2, -1.0), dense([0.0, 1.0, -1.0, 0.0], [1.0, 0.0, 0.0, -1.0])

    def reads_itself(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        return torch.cat([a, b + torch.relu(self.t(b))], dim=1)

    def reads_everything(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        return torch.cat([a, b + torch.relu(self.u(x))], dim=1)

    def both_change(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        return torch.cat([a + torch.relu(self.t(b)), b + torch.relu(self.t(a))], dim=1)

    def one_after_the_other(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        b = b + torch.relu(self.t(a))
        return torch.cat([a + torch.relu(self.t(b)), b], dim=1)

    def passed_on_twice(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        return torch.cat([a, a + torch.relu(self.t(b))], dim=1)

    def scaled_half(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        return torch.cat([a, 0.5 * b + torch.relu(self.t(a))], dim=1)

    def half_bent(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        return torch.cat([torch.relu(a), b], dim=1)

    kinds = {
        reads_itself: Kind.RESIDUAL,
        reads_everything: Kind.RESIDUAL,
        both_change: Kind.RESIDUAL,
        one_after_the_other: Kind.RESIDUAL,
        passed_on_twice: Kind.OTHER,
        scaled_half: Kind.OTHER,
        half_bent: Kind.OTHER,
    }
    for forward, kind in kinds.items():
        step = bilipschitz(Forward(forward, t=negative, u=wide), (4,), by=Product()).steps[0]
        assert step.kind is kind, forward.__name__
        # reads_itself is singular where b > 0; the others are not contractions of a branch either.
        assert step.lower == 0.0, forward.__name__


def test_a_block_is_split_into_what_is_passed_on_and_the_rest():
    torch.manual_seed(0)
    blocks = [residual(perceptron(4, 4, 0.5, torch.Generator().manual_seed(0), nn.Tanh()))]
    blocks += [form(perceptron(2, 2, 0.5, torch.Generator().manual_seed(0), nn.Tanh())) for form in COUPLINGS.values()]
    pad = nn.functional.pad
    blocks.append(Forward(lambda self, x: x.flip(1) + 1.0 + torch.tanh(x + 2.0)))
    blocks.append(Forward(lambda self, x: x + x + torch.tanh(x)))
    blocks.append(Forward(lambda self, x: x + (x.roll(1, 1) + torch.tanh(x))))
    blocks.append(Forward(lambda self, x: pad(x[:, 1:3], (0, 2)) + pad(torch.tanh(x[:, 2:]), (2, 0))))
    for block in blocks:
        graph = trace(block, (4,))
        found = kept(graph)
        x = torch.randn(7, 4, dtype=torch.float64)
        assert found.branch is not None
        passed_on = torch.where(found.index >= 0, x[:, found.index], 0.0)
        torch.testing.assert_close(graph.replay(x), passed_on + found.branch.replay(x).flatten(1))
        # What g is said not to read does not move it.
        for j in range(4):
            moved = x.clone()
            moved[:, j] += 1.0
            changed = (found.branch.replay(moved) - found.branch.replay(x)).flatten(1).abs().amax(0) > 0
            assert not bool((changed & ~found.reads(torch.arange(4) == j)).any())


# Vacuous and refused


def test_a_branch_that_does_not_contract_makes_the_lower_side_vacuous_and_says_so():
    found = bilipschitz(residual(nn.Sequential(scaled(2, 1.5), nn.Tanh())), (2,), by=Product())
    (step,) = found.steps
    assert (found.lower, found.inverse_constant) == (0.0, math.inf)
    assert step.reason == "lower side vacuous because L = 1.5 >= 1"
    assert step.constant is not None
    assert 1.5 <= step.constant <= 1.5 + 1e-8
    assert 2.5 <= found.upper <= 2.5 + 1e-7
    assert "lower side vacuous because L = 1.5 >= 1" in str(found)


def test_evidence_is_kept_and_can_be_proved_again():
    generator = torch.Generator().manual_seed(0)
    steps = [residual(perceptron(4, 4, 0.7, generator, nn.ReLU())), halves(perceptron(2, 2, 2.0, generator, nn.ReLU()))]
    found = bilipschitz(nn.Sequential(*steps), (4,), by=LipSDP())
    for step in found.steps:
        assert step.branch is not None
        for graph, certificate in zip((step.branch, step.block), step.certificates, strict=True):
            assert lipcert.check(certificate, graph).bound == certificate.bound
        assert step.constant == step.certificates[0].bound
    assert lipcert.check(found.certificate, found.graph).bound >= found.upper


def test_every_unknown_step_is_refused_by_name_and_leaves_the_upper_side():
    model = nn.Sequential(scaled(4, 2.0), lipcert.nn.MaxMin(), nn.Softmax(dim=1), nn.ReLU())
    found = bilipschitz(model, (4,))
    assert [step.kind for step in found.steps] == [Kind.AFFINE, Kind.OTHER, Kind.OTHER, Kind.ACTIVATION]
    assert all("4 of 4 entries of the input are not passed on" in step.reason for step in found.steps[1:3])
    assert "relu has slopes in [0, 1]" in found.steps[3].reason
    assert found.lower == 0.0
    assert 0.0 < found.upper <= lipcert.certify(model, (4,)).bound


def test_a_map_too_large_to_be_written_out_has_no_lower_side():
    layer = nn.Conv2d(2, 2, 3, padding=1)
    found = bilipschitz(layer, (2, 40, 40))
    assert found.lower == 0.0
    assert "is not written out" in found.steps[0].reason
    assert found.upper < math.inf


def test_an_image_is_split_in_memory_that_grows_with_its_size_only():
    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        return torch.cat([a, b + torch.relu(self.t(a))], dim=1)

    graph = trace(Forward(forward, t=nn.Conv2d(2, 2, 3, padding=1)), (4, 128, 128))
    assert kept(graph).is_coupling  # a table of 65536 by 65536 entries would be 4 GiB


def test_constants_do_not_make_a_coupling_another_block_and_are_inverted():
    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        return torch.cat([a + 3.0, b + torch.relu(self.t(a)) - 2.0], dim=1)

    found = bilipschitz(Forward(forward, t=scaled(2, 1.5)), (4,), by=Product())
    assert found.steps[0].kind is Kind.COUPLING
    inverse = invert(found, torch.tensor([[4.0, 2.0, 1.0, 1.0]]), 1e-9)
    assert float((inverse.x - torch.tensor([[1.0, -1.0, 1.5, 3.0]])).norm()) <= 1e-9


def test_the_residual_layer_of_lipcert_is_a_residual_block():
    block = lipcert.nn.InvertibleResidual(nn.Sequential(scaled(3, 0.5), nn.Tanh()), 0.5)
    found = bilipschitz(block, (3,))
    assert 0.5 - 1e-8 <= found.lower <= 0.5


@pytest.mark.parametrize("centres", [(), (0.0,), (math.inf,), (-1.0,)])
def test_centres_that_mean_nothing_are_refused(centres: tuple[float, ...]):
    with pytest.raises(InvalidInput, match="positive and finite"):
        bilipschitz(residual(nn.Tanh()), (2,), centres=centres)


def test_a_larger_centre_proves_what_the_textbook_rule_cannot():
    """``x + 2 relu(x)`` has slopes 1 and 3; its branch has constant 2."""
    model = residual(nn.Sequential(scaled(3, 2.0), nn.ReLU()))
    assert bilipschitz(model, (3,)).lower == 0.0
    found = bilipschitz(model, (3,), centres=(1.0, 2.0))
    assert 1 - 1e-6 <= found.lower <= 1.0
    assert 3.0 <= found.upper <= 3 + 1e-6
    assert found.steps[0].reason.startswith("2 - Lip(2 x - f)")
    y = torch.tensor([[3.0, -1.0, 0.0]])
    inverse = invert(found, y, 1e-9)
    assert float((inverse.x - torch.tensor([[1.0, -1.0, 0.0]])).norm()) <= 1e-9


def test_permuted_blocks_are_centred_around_their_permutation():
    model = Forward(lambda self, x: (x + 2 * torch.relu(x)).roll(1, 1))
    permuted = Forward(lambda self, x: x.roll(1, 1) + 2 * torch.relu(x.roll(1, 1)))
    for each in (model, permuted):
        found = bilipschitz(each, (3,), centres=(2.0,))
        assert 1 - 1e-6 <= found.lower <= 1.0


def test_a_claim_is_trusted_no_further_than_its_certificates():
    def guessed(graph: Graph, norms: Norms = L2) -> lipcert.Certificate:
        return replace(Product()(graph, norms), validity=Validity.ESTIMATE)

    model = residual(nn.Sequential(scaled(2, 0.5), nn.Tanh()))
    assert bilipschitz(model, (2,), by=guessed).validity is Validity.ESTIMATE
    assert bilipschitz(model, (2,), by=Product()).validity is Validity.RIGOROUS


# Inverses


def flow(seed: int = 0, norm: float = 0.6, activation: type[nn.Module] = nn.ELU) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    kinds = ("affine", "residual", "halves", "leaky", "masked", "exchanged", "residual", "prelu")
    steps = [drawn_step(kind, generator, activation()) for kind in kinds if kind != "residual"]
    steps += [residual(perceptron(WIDTH, WIDTH, norm, generator, activation())) for _ in range(2)]
    return nn.Sequential(*steps)


def claim(model: nn.Module) -> BiLipschitz:
    return bilipschitz(model, (WIDTH,), by=Product())


@pytest.mark.parametrize("error", [1e-2, 1e-5, 1e-9])
@pytest.mark.parametrize("seed", range(3))
def test_a_flow_is_inverted_within_the_error_that_was_promised(seed: int, error: float):
    model = flow(seed)
    found = claim(model)
    x = torch.randn(20, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    inverse = invert(found, model(x), error)
    measured = (inverse.x - x).norm(dim=1)
    assert bool((measured <= inverse.a_posteriori).all())
    assert bool((measured <= inverse.a_priori + 1e-12 * found.inverse_constant).all())
    assert bool((inverse.a_priori <= error).all())
    assert bool((inverse.a_posteriori <= error).all())


def test_the_error_of_a_block_with_the_slope_c_is_the_one_that_was_known_before():
    """``x - c |x|`` above zero: the error after n iterations is ``c^n / (1 - c)`` of the first step, no less."""
    c = 0.5
    model = Forward(lambda self, x: x - torch.abs(c * x))
    found = bilipschitz(model, (1,))
    for error in (1e-2, 1e-4, 1e-8):
        inverse = invert(found, torch.tensor([[1.0]]), error)
        measured = float((inverse.x - 2.0).norm())
        assert float(inverse.a_priori) * (1 - 1e-5) <= measured <= float(inverse.a_priori) * (1 + 1e-5)
        (step,) = inverse.steps
        assert step.iterations == iterations_needed(c, 0.5, error / 2)


def test_the_error_is_proved_in_exact_arithmetic():
    model = flow(3, activation=nn.ReLU)
    found = claim(model)
    x = torch.randn(4, WIDTH, dtype=torch.float64)
    y = model(x).float().double()  # numbers that are exact, of which x is not the inverse
    fine = invert(found, y, 1e-10)
    rough = invert(found, y, 1e-2)
    apart = (fine.x - rough.x).norm(dim=1).tolist()
    for small, large, distance in zip(
        proved_error(found, fine.x, y), proved_error(found, rough.x, y), apart, strict=True
    ):
        assert small <= 1e-10 * found.upper / found.lower
        assert distance <= large + small
    assert proved_error(bilipschitz(nn.ReLU(), (2,)), torch.ones(1, 2), torch.ones(1, 2)) == [math.inf]


def test_an_error_that_rounding_puts_out_of_reach_is_said_to_be():
    found = claim(flow())
    with pytest.raises(InvalidInput, match="out of reach in float64"):
        invert(found, torch.ones(2, WIDTH), 1e-17)
    with pytest.raises(InvalidInput, match="out of reach in float64"):
        invert(bilipschitz(residual(nn.Sequential(scaled(2, 0.5), nn.Tanh())), (2,)), 1e9 * torch.ones(1, 2), 1e-8)


def test_inverses_are_refused_where_nothing_can_be_promised():
    with pytest.raises(UnsupportedOperation, match="no lower side"):
        invert(bilipschitz(nn.ReLU(), (2,)), torch.ones(1, 2), 1e-3)
    with pytest.raises(UnsupportedOperation, match="on its image only"):
        invert(bilipschitz(dense([1.0], [1.0]), (1,)), torch.ones(1, 2), 1e-3)
    found = claim(flow())
    with pytest.raises(InvalidInput, match="shape"):
        invert(found, torch.ones(1, WIDTH + 1), 1e-3)
    with pytest.raises(NotFinite):
        invert(found, torch.full((1, WIDTH), math.nan), 1e-3)
    slow = bilipschitz(Forward(lambda self, x: x - 0.99999 * x.abs()), (2,))
    with pytest.raises(BudgetExceeded, match="most=1000"):
        invert(slow, torch.ones(1, 2), 1e-6, most=1000)
    for error in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(InvalidInput):
            invert(found, torch.ones(1, WIDTH), error)


def test_an_empty_batch_has_an_empty_inverse():
    inverse = invert(claim(flow()), torch.ones(0, WIDTH), 1e-6)
    assert inverse.x.shape == (0, WIDTH)
    assert "iterating" in str(inverse)


# Derived numbers


@given(st.floats(0, 0.999), st.floats(1e-9, 1e9), st.integers(0, 500))
@settings(max_examples=20, deadline=None)
def test_errors_known_before_are_rounded_up_and_hardly(rate: float, first: float, n: int):
    with mpmath.workprec(400):
        exact = mpmath.mpf(rate) ** n / (1 - mpmath.mpf(rate)) * mpmath.mpf(first)
        found = a_priori_error(rate, first, n)
        assert exact <= found <= exact * (1 + mpmath.mpf(2) ** -38) + mpmath.mpf(2) ** -1000
        assert mpmath.mpf(rate) ** n <= power_up(rate, n)


@given(st.floats(0.001, 0.999), st.floats(1e-6, 1e6), st.floats(1e-12, 1e3))
@settings(max_examples=20, deadline=None)
def test_iterations_are_the_fewest_that_are_enough(rate: float, first: float, error: float):
    n = iterations_needed(rate, first, error)
    assert a_priori_error(rate, first, n) <= error
    assert n == 1 or a_priori_error(rate, first, n - 1) > error


@given(st.floats(0.001, 0.995), st.integers(1, 9), st.integers(0, 60))
@settings(max_examples=20, deadline=None)
def test_what_the_series_leaves_out_is_the_closed_form(rate: float, d: int, n: int):
    with mpmath.workprec(1000):  # the sum cancels down to rate**n
        L = mpmath.mpf(rate)
        exact = -d * (mpmath.log(1 - L) + mpmath.fsum(L**k / k for k in range(1, n + 1)))
        quoted = d * L ** (n + 1) / ((n + 1) * (1 - L))
        found = logdet_remainder(rate, d, n)
        assert exact <= found <= exact * (1 + mpmath.mpf(10) ** -10) + mpmath.mpf(2) ** -1000
        assert found <= quoted * (1 + mpmath.mpf(10) ** -10) + mpmath.mpf(2) ** -1000


@pytest.mark.parametrize("rate", [0.9999, 0.999999])
def test_a_rate_close_to_one_has_a_series_that_is_cut_and_still_bounded(rate: float):
    exact = -math.log1p(-rate)
    assert exact <= logdet_remainder(rate, 1, 0) <= exact * 60


@pytest.mark.parametrize("d", [1, 2, 5])
@pytest.mark.parametrize("rate", [0.3, 0.9])
def test_no_matrix_leaves_more_out_and_minus_a_multiple_of_one_as_much(d: int, rate: float):
    generator = torch.Generator().manual_seed(d)

    def missed(J: Tensor, terms: int) -> float:
        powers = [torch.linalg.matrix_power(J, k).trace() * (-1.0) ** (k + 1) / k for k in range(1, terms + 1)]
        whole = torch.linalg.slogdet(torch.eye(d, dtype=torch.float64) + J).logabsdet
        return abs(float(whole - sum(powers, torch.zeros(()))))

    for terms in (0, 1, 2, 5, 11):
        bound = logdet_remainder(rate, d, terms)
        for _ in range(10):
            J = torch.randn(d, d, generator=generator, dtype=torch.float64)
            assert missed(J * rate / torch.linalg.matrix_norm(J, 2), terms) <= bound + 1e-12
        assert missed(-rate * torch.eye(d, dtype=torch.float64), terms) == pytest.approx(bound, abs=1e-12)


@pytest.mark.parametrize(("rate", "d", "nats"), [(0.5, 2, 1e-3), (0.9, 2, 1e-3), (0.98, 3072, 1.0), (0.0, 5, 1e-9)])
def test_terms_are_the_fewest_that_are_enough(rate: float, d: int, nats: float):
    n = logdet_terms_needed(rate, d, nats)
    assert logdet_remainder(rate, d, n) <= nats
    assert n == 0 or logdet_remainder(rate, d, n - 1) > nats


def test_numbers_that_follow_from_nothing_are_refused():
    for rate in (-0.1, 1.0, math.nan, 2.0):
        with pytest.raises(InvalidInput, match="no contraction"):
            a_priori_error(rate, 1.0, 3)
        with pytest.raises(InvalidInput, match="no contraction"):
            logdet_remainder(rate, 2, 3)
    for lower in (-1.0, math.nan, math.inf):
        with pytest.raises(InvalidInput):
            inverse_constant(lower)
    with pytest.raises(InvalidInput):
        a_priori_error(0.5, math.inf, 3)
    with pytest.raises(InvalidInput):
        logdet_remainder(0.5, 0, 3)
    for count in (iterations_needed, logdet_terms_needed):
        with pytest.raises(InvalidInput):
            count(0.5, 1, 0.0)
    with pytest.raises(BudgetExceeded):
        iterations_needed(1 - 2.0**-50, 1.0, 1e-6)
    assert Fraction(inverse_constant(0.3)) * Fraction(0.3) >= 1


def test_the_table_has_what_follows_of_every_step():
    found = claim(flow(activation=nn.Tanh))
    rows = derived_rows(found, error=1e-6, nats=1e-3)
    assert [row.name for row in rows] == [step.name for step in found.steps]
    for row in rows:
        assert Fraction(row.inverse) * Fraction(row.lower) >= 1
        match row.kind:
            case Kind.RESIDUAL:
                assert row.constant is not None
                assert row.iterations == iterations_needed(row.constant, 1.0, 1e-6)
                assert row.terms == logdet_terms_needed(row.constant, WIDTH, 1e-3)
            case Kind.COUPLING:
                assert (row.iterations, row.terms) == (2, None)
            case _:
                assert (row.iterations, row.terms) == (None, None)
    assert derived_table(found).row_count == len(found.steps)
    assert str(found).count("\n") == len(found.steps) + 1


def test_a_graph_that_was_captured_already_gives_the_same_claim():
    model = flow()
    first, second = claim(model), both_sides(trace(model, (WIDTH,)), by=Product())
    assert (first.lower, first.upper) == (second.lower, second.upper)
