"""Mistakes that others made and published, and numbers they published: refused, or bounded on the right side.

More of them are elsewhere: models that estimators of linear layers get wrong and constants of ECLipsE
(`test_silent_mistakes`), optima that LipSDP reports for networks in files (`test_lipsdp`), multipliers that couple
neurons (`test_lipsdp`, the counterexample), spectral_norm on a kernel of ones (`test_parametrizations`), layer norm in
frontends and certifiers (`test_hostile`, `test_exported`, `test_certifiers`).
"""

import itertools
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations as P

from lipcert import L2, Budget, certify, check, margins, opnorm, trace, witness
from lipcert.certificate import Certificate
from lipcert.certifiers import Certifier, LipSDP, Product
from lipcert.errors import CheckFailed, LipcertError, NotLipschitz, UnsupportedOperation
from lipcert.graph import Affine
from lipcert.linear import Dense
from lipcert.opnorm.swift import swift_norm
from lipcert.parametrizations import spectral_norm
from tests.adversarial import squared_norm_below

METHODS = [Product(), LipSDP()]
QUICK = Budget(points=6, power_steps=10, ascent_steps=20)


def linear(rows: list[list[float]], dtype: torch.dtype = torch.float32, bias: list[float] | None = None) -> nn.Linear:
    layer = nn.Linear(len(rows[0]), len(rows), bias=bias is not None, dtype=dtype)
    layer.weight.data = torch.tensor(rows, dtype=dtype)
    if bias is not None:
        layer.bias.data = torch.tensor(bias, dtype=dtype)
    return layer


def stored(model: nn.Module) -> Fraction:
    """The exact constant of a chain of one neuron per layer with positive weights: their product."""
    product = Fraction(1)
    for weight in model.parameters():
        product *= Fraction(weight.item())
    return product


# ------------------------------------------------------------------- gloro, issue 8: small weights, bounds too small
# The length of a vector was inflated by 1e-9 before dividing, and the bound of [[1e-5]] came out as 9.434563e-06; with
# weights of 1e-38 a product in float32 is 0. https://github.com/klasleino/gloro/issues/8


@pytest.mark.parametrize("by", METHODS, ids=["product", "semidefinite"])
@pytest.mark.parametrize("weights", [[1e-5], [1e-38], [1e-45], [1e-38, 1e-38], [1e-30, 1e30], [1e-45, 3e38, 1e-10]])
def test_the_bound_of_small_weights_is_not_below_their_product(by: Certifier, weights: list[float]):
    layers = [[linear([[weight]]), nn.ReLU()] for weight in weights]
    model = nn.Sequential(*itertools.chain(*layers))
    graph, exact = trace(model, (1,)), stored(model)
    found = by(graph)
    assert 0 < exact <= Fraction(found.bound) <= exact * (1 + Fraction(1, 10**6))
    assert check(found, graph).bound == found.bound
    with pytest.raises(CheckFailed):
        check(by_hand(found, float(exact) * 0.9434563), graph)


def by_hand(found: Certificate, bound: float) -> Certificate:
    """The same certificate with another bound."""
    return replace(found, bound=bound)


@pytest.mark.parametrize("scale", [1e-5, 1e-20, 1e-30, 1e-38, 1e-44])
def test_no_norm_of_a_matrix_of_small_weights_is_lost(scale: float):
    weight = (torch.randn(80, 70, generator=torch.Generator().manual_seed(0)) * scale).float()
    below = squared_norm_below(weight.double().numpy())
    assert below > 0
    for bound in (opnorm(Dense(weight, (70,))).value, swift_norm(Dense(weight, (70,)))):
        assert below <= Fraction(bound) ** 2
    layer = nn.Linear(70, 80)
    layer.weight.data = weight
    normalised = spectral_norm(layer).eval().weight.detach().double().numpy()
    assert 0.98 < float(squared_norm_below(normalised)) <= 1.0


# ------------------------------------------------------------------------- gloro, issue 9: equal logits are certified
# Every logit that equals the largest one was left out of the others. https://github.com/klasleino/gloro/issues/9


def radius(logits: Tensor, constants: Tensor) -> float:
    """The recipe of the page on guarantees."""
    i = int(logits.argmax())
    pairs = [(float(logits[i] - logits[j]), float(constants[i, j])) for j in range(len(logits)) if j != i]
    return min(above / constant for above, constant in pairs)


@pytest.mark.parametrize("logits", [[0.0, 0.0], [1.0, 1.0, 1.0], [2.0, 2.0, -5.0], [-3.0, 2.0, 2.0]])
def test_a_tie_has_radius_zero(logits: list[float]):
    model = linear(torch.eye(len(logits)).tolist(), torch.float64, logits)
    constants = margins(trace(model, (len(logits),))).constants
    off = ~torch.eye(len(logits), dtype=torch.bool)
    assert torch.all(constants[off] >= 2**0.5)
    assert radius(model(torch.zeros(1, len(logits)).double())[0].detach(), constants) == 0.0


def test_an_output_that_is_there_twice_is_never_certified():
    model = linear([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], torch.float64)
    constants = margins(trace(model, (2,))).constants
    logits = model(torch.tensor([[5.0, 1.0]]).double())[0].detach()
    assert constants[0, 2] >= 0.0
    # No division by zero would be answered by a number that is large: 0 / 0 is an error in Python.
    if constants[0, 2] == 0.0:
        with pytest.raises(ZeroDivisionError):
            radius(logits, constants)
    else:
        assert radius(logits, constants) == 0.0


# --------------------------------------------- gloro: layers it does not know count 1, and so does overlapping pooling


def test_overlapping_max_pooling_has_constant_two():
    """An input in the middle of four windows of MaxPool2d(3, 2) is the maximum of all four: 1, four times."""
    pool = nn.MaxPool2d(3, 2)
    x = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    y = x.clone()
    y[0, 0, 2, 2] = 1.0
    assert float((pool(y) - pool(x)).norm() / (y - x).norm()) == 2.0
    for by in METHODS:
        assert 2.0 <= certify(pool, (1, 5, 5), by=by).bound <= 2.0 * (1 + 1e-12)
    assert witness(pool, (1, 5, 5), budget=QUICK).ratio <= 2.0


@pytest.mark.parametrize(
    ("layer", "error"),
    [(nn.LayerNorm(4), NotLipschitz), (nn.GroupNorm(2, 4), NotLipschitz), (nn.LocalResponseNorm(2), LipcertError)],
    ids=str,
)
def test_no_layer_counts_one_because_nobody_knows_it(layer: nn.Module, error: type[LipcertError]):
    model = nn.Sequential(nn.Linear(4, 4), nn.Unflatten(1, (4, 1)), layer)
    with pytest.raises(error) as refusal:
        certify(model, (4,))
    assert "`2`" in str(refusal.value)


# ------------------------------------------------------------------------------- Murray, 2026: biases of a few million
# A bound that holds for real numbers says nothing of the same network in float32 if its biases are huge: a verified
# certifier was broken so. https://arxiv.org/abs/2603.13334


def shifted(dtype: torch.dtype) -> nn.Module:
    """``relu(x + 5e6) - 5e6``: slope one, and steps of one half in float32."""
    return nn.Sequential(linear([[1.0]], dtype, [5e6]), nn.ReLU(), linear([[1.0]], dtype, [-5e6]))


@pytest.mark.parametrize("by", METHODS, ids=["product", "semidefinite"])
def test_huge_biases_change_no_bound_and_are_refused_where_rounding_hides_the_function(by: Certifier):
    x = torch.tensor([[0.0], [0.25]])
    steps = shifted(torch.float32)(x).detach()
    assert float(steps[1] - steps[0]) in (0.0, 0.5)
    with pytest.raises(UnsupportedOperation, match=r"float32"):
        trace(shifted(torch.float32), (1,))
    assert 1.0 <= by(trace(shifted(torch.float64), (1,))).bound <= 1.0 + 1e-8


@pytest.mark.parametrize("bias", [0.0, 1.0, 100.0, 1e3, 5e6, 1e9])
@pytest.mark.parametrize("scale", [1.0, 1e3, 1e-3])
def test_huge_biases_refute_no_claim_that_is_true(bias: float, scale: float):
    first, last = linear([[1.0]], torch.float64, [bias]), linear([[scale]], torch.float64, [-scale * bias])
    ratio = witness(nn.Sequential(first, nn.ReLU(), last), (1,)).ratio
    assert 0.99 * scale <= ratio <= scale


@pytest.mark.parametrize("seed", range(12))
def test_no_network_with_huge_biases_is_refuted_by_its_rounding(seed: int):
    """All neurons are active at every input that is looked at, so the network is a matrix there."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (3, 20, 20, 2)
    layers: list[nn.Module] = []
    whole, shift = torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for m, n in itertools.pairwise(sizes):
        W = torch.rand(n, m, generator=generator, dtype=torch.float64) - 0.3
        bias = 10.0 ** (4 + seed % 4) * (1.0 + len(layers)) * m - W @ shift
        layers += [linear(W.tolist(), torch.float64, bias.tolist()), nn.ReLU()]
        whole, shift = W @ whole, W @ shift + bias
    layers[-2].bias.data -= shift  # type: ignore[operator, union-attr]
    model = nn.Sequential(*layers[:-1])
    exact = float(torch.linalg.matrix_norm(whole, 2))
    found = witness(model, (3,), budget=QUICK).ratio
    assert 0.9 * exact <= found <= exact * (1 + 1e-14)


@pytest.mark.parametrize("weight", [5e-324, 3e-322, 1e-300])
def test_weights_that_underflow_refute_no_claim_that_is_true(weight: float):
    first, last = linear([[weight]], torch.float64), linear([[1e300]], torch.float64)
    assert Fraction(witness(nn.Sequential(first, nn.ReLU(), last), (1,)).ratio) <= Fraction(weight) * Fraction(1e300)


# ---------------------------------------------------- a certifier in Python that reads weights to 150 decimals: 5e-324


@pytest.mark.parametrize("by", METHODS, ids=["product", "semidefinite"])
def test_the_smallest_number_is_not_lost(by: Certifier):
    tiny = 5e-324
    for model, exact in (
        (linear([[tiny]], torch.float64), Fraction(tiny)),
        (linear([[tiny] * 4] * 4, torch.float64), 4 * Fraction(tiny)),
        (nn.Sequential(linear([[tiny]], torch.float64), nn.ReLU(), linear([[1e300]], torch.float64)), None),
        (nn.Sequential(linear([[1e-200]], torch.float64), nn.ReLU(), linear([[1e-200]], torch.float64)), None),
    ):
        graph = trace(model, tuple(model.weight.shape[1:]) if isinstance(model, nn.Linear) else (1,))
        found = by(graph)
        truth = stored(model) if exact is None else exact
        assert truth <= Fraction(found.bound) <= 4 * truth + Fraction(tiny)
        assert check(found, graph).bound == found.bound
        with pytest.raises(CheckFailed):
            check(by_hand(found, 0.0), graph)
    (affine,) = (node for node in trace(linear([[tiny]], torch.float64), (1,)) if isinstance(node, Affine))
    assert tiny <= opnorm(affine.map).value <= 2 * tiny


# ------------------------------------------------------------------------- torch's parametrizations of convolutions
# Neither sees the convolution: one takes the kernel for a matrix of (out) x (in, height, width), the other for a stack
# of matrices of (height) x (width). https://github.com/pytorch/pytorch/issues/99149


@pytest.mark.parametrize("parametrization", [P.spectral_norm, P.orthogonal], ids=lambda f: f.__name__)
@pytest.mark.parametrize("channels", [1, 4])
def test_torchs_norms_of_kernels_bound_no_convolution(parametrization, channels: int):
    torch.manual_seed(0)
    layer = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    nn.init.constant_(layer.weight, 1.0)
    layer.weight.data += 0.01 * torch.randn_like(layer.weight)
    wrapped = parametrization(layer).train()
    for _ in range(50):
        wrapped(torch.randn(1, channels, 8, 8))
    weight = wrapped.eval().weight.detach().double()
    claimed = weight.reshape(channels, -1) if parametrization is P.spectral_norm else weight
    assert float(torch.linalg.matrix_norm(claimed, 2).max()) == pytest.approx(1.0, abs=1e-3)
    found, pair = certify(wrapped, (channels, 8, 8)), witness(wrapped, (channels, 8, 8), budget=QUICK)
    assert 1.5 < pair.ratio <= found.bound
    # Nine taps at most multiply the norm of the reshaped kernel by three.
    reshaped = float(torch.linalg.matrix_norm(weight.reshape(channels, -1), 2))
    assert found.bound <= 3.0 * reshaped * (1 + 1e-6)


# ------------------------------------------------------------------------------- published figures and what they are of


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_the_naive_bound_is_the_product_of_the_norms_and_the_semidefinite_one_is_below(depth: int):
    """The two ends of every figure of the LipSDP paper, where arithmetic knows them (Fazlyab et al., 2019).

    With W = [[1, 1], [1, -1]] in every layer the product of norms is ``2 ** ((depth + 1) / 2)``. In one direction
    all neurons are active, where the network is the product of the matrices, so nothing is below its norm.
    """
    W = [[1.0, 1.0], [1.0, -1.0]]
    layers = list(itertools.chain(*[[linear(W, torch.float64, [9.0, 9.0]), nn.ReLU()] for _ in range(depth)]))
    model = nn.Sequential(*layers, linear(W, torch.float64))
    graph = trace(model, (2,))
    naive, found = Product(longest=1)(graph).bound, LipSDP()(graph).bound
    assert naive == pytest.approx(2 ** ((depth + 1) / 2), rel=1e-8)
    whole = torch.linalg.matrix_norm(torch.linalg.matrix_power(torch.tensor(W).double(), depth + 1), 2)
    assert found <= naive
    if depth == 1:
        assert found >= float(whole) * (1 - 1e-15)  # its biases keep both neurons active around zero


def test_coupled_multipliers_of_the_most_accurate_variant_are_refuted_by_a_pair():
    """LipSDP-Network would allow a bound below one for ``relu(x) - relu(x - 1)``; the slope is one (Pauli et al.)."""
    model = nn.Sequential(
        linear([[1.0], [1.0]], torch.float64, [0.0, -1.0]), nn.ReLU(), linear([[1.0, -1.0]], torch.float64)
    )
    assert witness(model, (1,), L2, budget=QUICK).ratio == pytest.approx(1.0, rel=1e-9)
    assert certify(model, (1,), by=LipSDP()).bound >= 1.0


def test_the_largest_slopes_that_papers_round_down_are_rounded_up():
    """GELU 1.1289, SiLU 1.0998, often printed (and used) to so many digits: the true numbers are above them."""
    for layer, printed, wider in ((nn.GELU(), 1.1289, 1.12891), (nn.SiLU(), 1.0998, 1.09984), (nn.Mish(), 1.0884, 1.1)):
        bound = certify(layer, (1,)).bound
        x = torch.linspace(-6.0, 6.0, 100_001, dtype=torch.float64)[:, None].requires_grad_(True)
        (slope,) = torch.autograd.grad(layer(x).sum(), x)
        assert printed < float(slope.abs().max()) <= bound <= wider
