"""Certified radii: linear classifiers in closed form, attacks inside, rounding against rationals, refusals."""

import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from lipcert import L1, L1_LINF, L2, L2_LINF, LINF, Margins, Norms, Validity, certify, difference, margins, trace
from lipcert.certificate import Certificate, Gains
from lipcert.certifiers import Product
from lipcert.domain import Box
from lipcert.enclosure import enclosed
from lipcert.errors import InvalidInput, NotFinite
from lipcert.evaluation import by_enclosure
from lipcert.graph import Graph
from lipcert.nn import MaxMin
from lipcert.robustness import (
    Decisions,
    certified_accuracy,
    certified_radii,
    certified_radius,
    pair_constants,
)
from tests.test_lipsdp import chain


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    layer = nn.Linear(*reversed(weight.shape), bias=bias is not None, dtype=weight.dtype).requires_grad_(False)
    layer.weight.copy_(weight)
    if bias is not None:
        layer.bias.copy_(bias)
    return layer


def enclosed_values(graph: Graph, x: Tensor) -> tuple[Tensor, Tensor]:
    found = by_enclosure(graph, x)
    return found.at, found.each


def given(bound: float, norms: Norms = L2, validity: Validity = Validity.RIGOROUS) -> Certificate:
    return Certificate(bound, norms, validity, "given", "a network", Gains(()))


def rational(values: Tensor) -> list[Fraction]:
    return [Fraction(value) for value in values.flatten().tolist()]


def dual_power(w: list[Fraction], p: float) -> Fraction:
    """The square of the dual p-norm."""
    if p == 2.0:
        return sum((a * a for a in w), Fraction(0))
    return (sum(map(abs, w), Fraction(0)) if p == math.inf else max(map(abs, w))) ** 2


# --------------------------------------------------------------------------------- linear classifiers, in closed form


@pytest.mark.parametrize("norms", [L2, LINF, L1], ids=str)
def test_the_radius_of_a_linear_classifier_is_the_distance_to_the_nearest_boundary_rounded_down(norms: Norms):
    weight = torch.randn(5, 7, generator=generator(1), dtype=torch.float64)
    bias = torch.randn(5, generator=generator(2), dtype=torch.float64)
    x = torch.randn(20, 7, generator=generator(3), dtype=torch.float64)
    graph = trace(linear(weight, bias), (7,))
    found = certified_radii(graph, margins(graph, Product(), norms=norms), x)
    assert found.p == norms.p
    W, b = [rational(row) for row in weight], rational(bias)
    for sample, i, radius in zip(x, found.classes.tolist(), rational(found.radii), strict=True):
        f = [sum((a * c for a, c in zip(row, rational(sample), strict=True)), Fraction(0)) for row in W]
        f = [value + at for value, at in zip(f, b, strict=True)]
        assert i == f.index(max(f))
        squares = [
            (f[i] - f[j]) ** 2 / dual_power([u - v for u, v in zip(W[i], W[j], strict=True)], norms.p)
            for j in range(5)
            if j != i
        ]
        assert radius**2 <= min(squares) <= radius**2 * (1 + Fraction(1, 10**7))


def test_a_step_just_beyond_the_radius_of_a_linear_classifier_changes_its_decision():
    weight = torch.randn(4, 6, generator=generator(1), dtype=torch.float64)
    x = torch.randn(10, 6, generator=generator(3), dtype=torch.float64)
    model = linear(weight)
    graph = trace(model, (6,))
    found = certified_radii(graph, margins(graph), x)
    for sample, i, radius in zip(x, found.classes.tolist(), found.radii.tolist(), strict=True):
        away = weight - weight[i]
        gap = -(away @ sample)
        j = (gap / away.norm(dim=1).clamp_min(1e-300)).masked_fill(torch.arange(4) == i, math.inf).argmin()
        direction = away[j] / away[j].norm()
        assert model(sample + direction * radius * (1 - 1e-9)).argmax() == i
        assert model(sample + direction * radius * (1 + 1e-6)).argmax() == j


# --------------------------------------------------------------------------------- attacks

NETS = {
    "relu": lambda: chain([6, 12, 10, 4], 1),
    "tanh": lambda: chain([6, 8, 4], 2, nn.Tanh),
    "maxmin": lambda: nn.Sequential(nn.Linear(6, 12), MaxMin(), nn.Linear(12, 4)).double(),
    "convolution": lambda: nn.Sequential(
        *(nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 3, 2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(36, 4)),
    ).double(),
}


def attack(model: nn.Module, x: Tensor, classes: Tensor, radii: Tensor, steps: int) -> Tensor:
    """Projected gradient descent on the margin, in float64, at nine tenths to all of the radius from each sample."""
    d = torch.zeros_like(x)
    reach = radii[:, None] * (1 - 1e-12)
    for _ in range(steps):
        leaf = (x + d).requires_grad_(True)
        f = model(leaf)
        others = f.masked_fill(nn.functional.one_hot(classes, f.shape[1]).bool(), -math.inf)
        (up,) = torch.autograd.grad((others.max(1).values - f.gather(1, classes[:, None])[:, 0]).sum(), leaf)
        d = d + 0.4 * reach * up / up.norm(dim=1, keepdim=True).clamp_min(1e-300)
        d = d * (reach / d.norm(dim=1, keepdim=True).clamp_min(1e-300)).clamp_max(1.0)
    return x + d


@pytest.mark.parametrize("build", NETS.values(), ids=NETS)
def test_no_attack_inside_the_radius_changes_the_decision_and_some_twenty_times_farther_does(build):
    torch.manual_seed(4)
    model = build().eval().requires_grad_(False)
    graph = trace(model, (6,))
    x = torch.randn(40, 6, generator=generator(5), dtype=torch.float64)
    for constants in (margins(graph), certify(model, (6,))):
        found = certified_radii(graph, constants, x)
        assert bool((found.radii > 0).all())
        inside = attack(model, x, found.classes, found.radii, 20)
        assert bool(((inside - x).norm(dim=1) < found.radii).all())
        assert torch.equal(model(inside).argmax(1), found.classes)
        outside = attack(model, x, found.classes, 20 * found.radii, 20)
        assert not torch.equal(model(outside).argmax(1), found.classes)


@pytest.mark.parametrize("build", NETS.values(), ids=NETS)
def test_constants_of_pairs_never_give_a_smaller_radius_than_one_of_the_whole_output(build):
    torch.manual_seed(4)
    graph = trace(build().eval(), (6,))
    x = torch.randn(40, 6, generator=generator(5), dtype=torch.float64)
    pairs = certified_radii(graph, margins(graph, Product()), x)
    whole = certified_radii(graph, Product()(graph), x)
    assert torch.equal(pairs.classes, whole.classes)
    assert bool((pairs.radii >= whole.radii * (1 - 1e-7)).all())


def test_a_module_is_captured_at_the_shape_of_its_samples():
    model = chain([6, 12, 10, 4], 1)
    x = torch.randn(3, 6, generator=generator(5))
    direct = certified_radii(model, certify(model, (6,)), x)
    assert torch.equal(direct.radii, certified_radii(trace(model, (6,)), certify(model, (6,)), x).radii)


def test_layerwise_margins_are_those_of_every_pair_by_itself():
    graph = trace(chain([6, 12, 10, 4], 1), (6,))
    for pair, certificate in margins(graph, Product()).certificates.items():
        alone = Product()(difference(graph, *pair))
        assert (certificate.bound, certificate.network) == (alone.bound, alone.network)


# --------------------------------------------------------------------------------- rounding


def awkward(count: int) -> Tensor:
    """Outputs of many sizes and signs, some close together, some equal."""
    wide = torch.randn(count, 4, generator=generator(7), dtype=torch.float64)
    wide *= 10.0 ** torch.randint(-12, 12, (count, 4), generator=generator(8))
    close = 1.0 + 2.0**-52 * torch.randint(0, 9, (count, 4), generator=generator(9))
    tiny = 5e-324 * torch.randint(0, 5, (count, 4), generator=generator(10))
    return torch.cat([wide, close, tiny])


@pytest.mark.parametrize("error", [0.0, 1e-9, 3e-16], ids=str)
@pytest.mark.parametrize("bound", [1.0, 3.1, 1e-5, 7e300, 5e-324], ids=str)
def test_a_radius_is_below_the_quotient_of_exact_numbers_by_a_few_roundings(bound: float, error: float):
    logits = awkward(60)
    radii = certified_radius(logits, given(bound, L2_LINF), error=error).tolist()
    for row, radius in zip(logits, radii, strict=True):
        i, f = int(row.argmax()), rational(row)
        gap = min(f[i] - f[j] for j in range(4) if j != i)
        exact = max(Fraction(0), (gap - 2 * Fraction(error)) / (2 * Fraction(bound)))
        assert Fraction(radius) <= exact
        if error == 0.0 and 1e-290 < exact < 1e300:
            assert Fraction(radius) >= exact * (1 - Fraction(1, 2**50))
        if exact == 0:
            assert radius == 0.0


@pytest.mark.parametrize("bound", [1.1, 1.7, 1.9], ids=str)
def test_a_difference_that_has_to_be_rounded_is_rounded_down(bound: float):
    """One rounding of the quotient does not pay for two: the difference needs its own."""
    first, second = torch.rand(2, 1000, generator=generator(11), dtype=torch.float64)
    logits = torch.stack([1 + first, -second / 3], 1)
    radii = certified_radius(logits, given(bound)).tolist()
    divisor = Fraction(float(pair_constants(given(bound), 2)[0, 1]))
    for row, radius in zip(logits, rational(torch.tensor(radii, dtype=torch.float64)), strict=True):
        f = rational(row)
        assert radius * divisor <= f[0] - f[1]


def test_the_square_root_of_two_is_rounded_up():
    for bound in (1.0, 0.1, 3e-320, 1e308):
        factor = Fraction(float(pair_constants(given(bound), 2)[0, 1])) if bound < 1e308 else None
        assert factor is None or factor**2 >= 2 * Fraction(bound) ** 2
    assert pair_constants(given(1e308), 2)[0, 1] <= math.inf


@pytest.mark.parametrize("norms", [L2, L1, LINF, L1_LINF, L2_LINF], ids=str)
def test_one_constant_of_the_whole_output_is_exactly_enough_for_opposite_outputs(norms: Norms):
    """f(x) = (x, -x): its difference has constant 2, and its norms are 2, sqrt 2 and 1."""
    graph = trace(linear(torch.tensor([[1.0], [-1.0]])), (1,))
    for constants in (Product()(graph, norms), margins(graph, Product(), norms=norms)):
        found = pair_constants(constants, 2, p=norms.p)
        assert 2.0 <= float(found[0, 1]) <= 2.0 + 1e-8
        assert found[0, 0] == 0.0


def test_ties_have_radius_zero_and_are_certified_at_no_distance():
    logits = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [2.0, 1.0, 1.0]])
    assert certified_radius(logits, given(1.0)).tolist()[:2] == [0.0, 0.0]
    graph = trace(nn.Flatten(), (3,))
    found = certified_accuracy(graph, certify(nn.Flatten(), (3,)), logits, torch.tensor([0, 0, 0]), [0.0])
    assert (found.correct, found.certified) == (3, (1,))


def test_a_constant_of_zero_certifies_everything_but_ties():
    assert certified_radius(torch.tensor([[2.0, 1.0], [1.0, 1.0]]), given(0.0)).tolist() == [math.inf, 0.0]
    assert certified_radius(torch.tensor([[2.0, 1.0]]), given(math.inf)).tolist() == [0.0]


def test_what_float64_cannot_see_is_allowed_for():
    """x + 2**60 - 2**60 is computed as a multiple of 256: the computed margin is not the real one."""
    lifted = linear(torch.tensor([[1.0], [-1.0]]), torch.tensor([2.0**60, 2.0**60]))
    dropped = linear(torch.eye(2), torch.tensor([-(2.0**60), -(2.0**60)]))
    model = nn.Sequential(lifted, nn.ReLU(), dropped)
    graph = trace(model, (1,))
    x = torch.tensor([[0.25], [130.0], [1e4]])
    ran = graph.replay(x.double())
    assert bool(((ran[:, 0] - ran[:, 1]) / 2 != x[:, 0]).any())
    radii = certified_radii(graph, margins(graph, Product()), x).radii
    assert bool((radii <= x[:, 0]).all())
    assert radii[2] > 1e3
    assert radii[0] == 0.0


def test_enclosed_outputs_and_executed_ones_agree_up_to_the_error_of_both():
    model = chain([6, 12, 10, 4], 1)
    graph = trace(model, (6,))
    x = torch.randn(5, 6, generator=generator(5), dtype=torch.float64)
    values, errors = enclosed_values(graph, x)
    assert torch.allclose(graph.replay(x), values, rtol=0, atol=1e-13)
    assert bool((errors <= 2.0**-50 * values.abs().amax(1)).all())
    large = linear(1e300 * torch.ones(2, 3, dtype=torch.float64), None)
    values, errors = enclosed_values(trace(large, (3,)), 1e10 * torch.ones(1, 3, dtype=torch.float64))
    assert errors.item() > 1e300


def test_the_error_of_an_enclosed_output_covers_all_of_its_ball():
    """Batch normalisation divides by a square root, which is known in an interval only."""
    layer = nn.BatchNorm1d(2).double().eval()
    layer.running_var.copy_(torch.tensor([0.3, 7.0]))
    graph = trace(layer, (2,))
    x = torch.tensor([[0.7, -1e6]], dtype=torch.float64)
    ball = enclosed(graph, x)
    values, errors = enclosed_values(graph, x)
    unit, error = Fraction(1, 2) ** ball.bits, Fraction(errors.item())
    assert ball.rad is not None
    for value, lower, upper in zip(rational(values), ball.lower[0], ball.upper[0], strict=True):
        assert value - error <= unit * int(lower) < unit * int(upper) <= value + error


def test_smooth_networks_are_enclosed_and_their_radii_hold():
    pytest.importorskip("flint")
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 3)).double().eval()
    graph = trace(model, (3,))
    x = torch.randn(4, 3, generator=generator(5), dtype=torch.float64)
    found = certified_radii(graph, margins(graph), x)
    assert torch.equal(found.classes, model(x).argmax(1))
    closest = model(x).sort(1, descending=True).values
    smallest = float(pair_constants(margins(graph), 3).masked_fill(torch.eye(3).bool(), math.inf).min())
    assert bool((found.radii > 0).all())
    assert bool((found.radii <= (closest[:, 0] - closest[:, 1]) / smallest * (1 + 1e-9)).all())


# --------------------------------------------------------------------------------- counting


def test_accuracy_counts_what_is_right_and_far_enough_from_every_boundary():
    model = linear(torch.eye(2))
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 3.0]])
    labels = torch.tensor([0, 1, 0, 0])
    found = certified_accuracy(model, margins(trace(model, (2,))), x, labels, [0.0, 0.5, 0.8, 2.0, 2.5])
    # Distances to the diagonal are 1/sqrt 2 and 3/sqrt 2; the last is on the wrong side.
    assert (found.total, found.correct, found.certified) == (4, 3, (3, 3, 1, 1, 0))
    assert found.clean == 0.75
    assert found.rates == (0.75, 0.75, 0.25, 0.25, 0.0)
    assert isinstance(found.decisions, Decisions)


def test_a_radius_equal_to_the_distance_does_not_count():
    """At that distance there may be a tie."""
    radius = certified_radii(nn.Flatten(), certify(nn.Flatten(), (2,)), torch.tensor([[1.0, 0.0]])).radii.item()
    counted = certified_accuracy(
        nn.Flatten(),
        certify(nn.Flatten(), (2,)),
        torch.tensor([[1.0, 0.0]]),
        torch.tensor([0]),
        [math.nextafter(radius, 0.0), radius],
    )
    assert counted.certified == (1, 0)


# --------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("validity", [Validity.ESTIMATE, Validity.NUMERICAL], ids=str)
def test_only_proved_constants_certify(validity: Validity):
    logits = torch.tensor([[1.0, 0.0]])
    with pytest.raises(InvalidInput, match=validity.name):
        certified_radius(logits, given(1.0, validity=validity))
    with pytest.raises(InvalidInput, match=validity.name):
        certified_radius(logits, Margins(torch.ones(2, 2), {(0, 1): given(1.0, validity=validity)}))


def test_a_bound_on_a_domain_certifies_no_radius():
    local = replace(given(1.0), domain=Box(-1.0, 1.0))
    with pytest.raises(InvalidInput, match="all inputs"):
        certified_radius(torch.tensor([[1.0, 0.0]]), local)


def test_constants_of_another_network_are_refused():
    one, other = (trace(linear(c * torch.eye(2)), (2,)) for c in (1.0, 2.0))
    x = torch.tensor([[1.0, 0.0]])
    for constants in (Product()(one), margins(one)):
        certified_radii(one, constants, x)
        with pytest.raises(InvalidInput, match="certify again"):
            certified_radii(other, constants, x)
    swapped = margins(trace(linear(torch.eye(3)), (3,)))
    mixed = {**swapped.certificates, (0, 1): swapped.certificates[0, 2]}
    with pytest.raises(InvalidInput, match="outputs 0 and 1"):
        certified_radii(linear(torch.eye(3)), replace(swapped, certificates=mixed), torch.zeros(1, 3))


def test_pairs_that_were_left_out_certify_nothing():
    graph = trace(linear(torch.eye(3)), (3,))
    x = torch.tensor([[1.0, 0.0, -9.0]])
    assert certified_radii(graph, margins(graph, pairs=[(0, 1)]), x).radii.tolist() == [0.0]
    with pytest.raises(InvalidInput, match="without any pair"):
        certified_radii(graph, margins(graph, pairs=[]), x)


def test_another_norm_than_the_one_asked_for_is_refused():
    graph = trace(linear(torch.eye(2)), (2,))
    x, labels = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    with pytest.raises(InvalidInput, match=r"p = 2.0, the bound is linf->linf"):
        certified_radius(x, Product()(graph, LINF))
    with pytest.raises(InvalidInput, match=r"p = 2.0, these constants are in p = inf"):
        certified_accuracy(graph, margins(graph, Product(), norms=LINF), x, labels, [0.1])
    assert certified_accuracy(graph, margins(graph, Product(), norms=LINF), x, labels, [0.1], p=math.inf).certified == (
        1,
    )


def test_what_is_no_batch_of_outputs_is_refused():
    for wrong in (torch.zeros(3), torch.zeros(1, 2, 3), torch.zeros(1, 2, dtype=torch.int64)):
        with pytest.raises(InvalidInput, match=r"shape \(N, classes\)"):
            certified_radius(wrong, given(1.0))
    with pytest.raises(InvalidInput, match="two classes at least"):
        certified_radius(torch.zeros(2, 1), given(1.0))
    with pytest.raises(InvalidInput, match="for 3 outputs"):
        certified_radius(torch.zeros(2, 3), margins(trace(nn.Flatten(), (2,))))
    for value in (math.nan, math.inf):
        with pytest.raises(NotFinite, match="NaN or infinite"):
            certified_radius(torch.tensor([[value, 0.0]]), given(1.0))
        with pytest.raises(NotFinite, match="NaN or infinite"):
            certified_radii(nn.Flatten(), certify(nn.Flatten(), (2,)), torch.tensor([[value, 0.0]]))
    for error in (-1.0, math.nan, torch.zeros(3)):
        with pytest.raises(InvalidInput, match="an error is a number"):
            certified_radius(torch.zeros(2, 2), given(1.0), error=error)


def test_samples_labels_and_distances_that_fit_nothing_are_refused():
    flat, constants = nn.Flatten(), certify(nn.Flatten(), (2,))
    graph = trace(flat, (2,))
    x = torch.zeros(2, 2)
    for wrong in (torch.zeros(2, 3), torch.zeros(2, 2, dtype=torch.int64)):
        with pytest.raises(InvalidInput, match="samples of"):
            certified_radii(graph, constants, wrong)
    for labels in (torch.zeros(2), torch.zeros(3, dtype=torch.int64)):
        with pytest.raises(InvalidInput, match="labels of"):
            certified_accuracy(flat, constants, x, labels, [0.1])
    with pytest.raises(InvalidInput, match="labels of"):
        certified_accuracy(graph, constants, x[:0], torch.zeros(0, dtype=torch.int64), [0.1])
    for eps in (-0.1, math.nan, math.inf):
        with pytest.raises(InvalidInput, match="distances are finite"):
            certified_accuracy(flat, constants, x, torch.zeros(2, dtype=torch.int64), [eps])
