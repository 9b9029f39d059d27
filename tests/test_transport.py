"""Distances between two proven numbers: critics below, couplings above, and intervals that cover."""

import itertools
import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch import nn

from lipcert import L1, L1_LINF, L2, L2_LINF, LINF, Norms, Validity, certify
from lipcert.certifiers import Product
from lipcert.domain import Box
from lipcert.errors import InvalidInput, NotFinite
from lipcert.transport import Between, dual_bound, dual_value, empirical_w1, overshoot, wae_bracket
from lipcert.transport.intervals import bounded_range, sub_gaussian
from lipcert.transport.values import Values, difference_of_means

NORMS = [L2, L1, LINF, L1_LINF, L2_LINF]


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def perceptron(seed: int, *widths: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    layers: list[nn.Module] = []
    for into, out in itertools.pairwise(widths):
        layer = nn.Linear(into, out)
        layer.weight.data = torch.randn(out, into, generator=drawn(seed + len(layers)))
        layer.bias.data = torch.randn(out, generator=drawn(seed + 100 + len(layers)))
        layers += [layer, activation()]
    return nn.Sequential(*layers[:-1]).eval()


def linear(*weights: float, bias: float = 0.0) -> nn.Linear:
    layer = nn.Linear(len(weights), 1, dtype=torch.float64)
    layer.weight.data = torch.tensor([weights], dtype=torch.float64)
    layer.bias.data.fill_(bias)
    return layer.eval()


def exact_values(at: torch.Tensor) -> Values:
    return Values(at.double(), *2 * [torch.zeros(len(at), dtype=torch.float64)])


def sorted_distance(xs: torch.Tensor, ys: torch.Tensor) -> Fraction:
    """The distance on the line, exactly: the mean distance of order statistics."""
    pairs = zip(sorted(xs.flatten().tolist()), sorted(ys.flatten().tolist()), strict=True)
    return sum((abs(Fraction(x) - Fraction(y)) for x, y in pairs), Fraction(0)) / len(xs)


# ------------------------------------------------------------------------------------------------ couplings


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
@pytest.mark.parametrize("n", [1, 2, 7, 60])
def test_on_the_line_the_distance_is_that_of_the_order_statistics(n: int, p: float):
    xs, ys = torch.randn(n, 1, generator=drawn(n)), 3.0 * torch.randn(n, 1, generator=drawn(n + 1)) + 1.0
    found, exact = empirical_w1(xs, ys, p), sorted_distance(xs, ys)
    assert Fraction(found.lower) <= exact <= Fraction(found.upper)
    assert found.upper - found.lower <= 1e-12 * (1 + found.upper)


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
def test_the_distance_is_the_best_of_all_permutations(p: float):
    xs, ys = (torch.randn(5, 3, generator=drawn(seed), dtype=torch.float64) for seed in (1, 2))
    costs = torch.linalg.vector_norm(xs[:, None] - ys[None], p, dim=2)
    best = min(float(costs[range(5), order].mean()) for order in itertools.permutations(range(5)))
    found = empirical_w1(xs, ys, p)
    assert found.lower <= best * (1 + 1e-12)
    assert found.upper >= best * (1 - 1e-12)
    assert found.upper - found.lower <= 1e-12


def test_a_translation_is_as_far_as_it_is_long_and_orders_do_not_matter():
    xs, m = torch.randn(30, 4, generator=drawn(0), dtype=torch.float64), torch.tensor([3.0, 0.0, 4.0, 0.0]).double()
    shuffled = (xs + m)[torch.randperm(30, generator=drawn(1))]
    found = empirical_w1(xs, shuffled)
    assert found.lower <= 5.0 + 1e-12
    assert found.upper == pytest.approx(5.0, abs=1e-12)
    assert sorted(found.partner.tolist()) == list(range(30))


def test_equal_samples_have_distance_zero_up_to_rounding():
    xs = torch.randn(20, 2, generator=drawn(3))
    found = empirical_w1(xs, xs.flip(0))
    assert found.lower == 0.0
    assert 0.0 <= found.upper < 1e-100


@pytest.mark.parametrize("size", [1e-200, 1e-320, 1e150])
def test_sizes_whose_squares_leave_the_range_stay_enclosed(size: float):
    xs, ys = torch.zeros(1, 2).double(), torch.full((1, 2), size, dtype=torch.float64)
    found = empirical_w1(xs, ys)
    assert Fraction(found.lower) ** 2 <= 2 * Fraction(size) ** 2 <= Fraction(found.upper) ** 2


def test_distances_that_overflow_are_refused():
    with pytest.raises(InvalidInput, match="overflow"):
        empirical_w1(torch.zeros(1, 2).double(), torch.full((1, 2), 1e200, dtype=torch.float64))


# ---------------------------------------------------------------------------------------------------- critics


@pytest.mark.one_in(2)
@pytest.mark.parametrize("norms", NORMS, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_no_certified_critic_reports_more_than_the_distance_of_two_samples(norms: Norms, seed: int):
    xs, ys = torch.randn(40, 3, generator=drawn(seed)), 2.0 * torch.rand(40, 3, generator=drawn(seed + 9))
    truth = empirical_w1(xs, ys, norms.p)
    for activation in (nn.ReLU, nn.LeakyReLU, nn.ELU):
        critic = perceptron(seed, 3, 6, 1, activation=activation)
        certificate = certify(critic, (3,), norms=norms, by=Product())
        bound = dual_bound(critic, certificate, xs, ys)
        assert 0.0 <= bound.value <= truth.lower
        assert not overshoot(bound.dual, truth, certificate.bound).refuted
        swapped = dual_bound(critic, certificate, ys, xs)
        assert swapped.value == pytest.approx(bound.value)  # f and -f have one constant


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
def test_a_linear_critic_along_a_translation_attains_its_length(p: float):
    xs, m = torch.randn(50, 2, generator=drawn(0), dtype=torch.float64), torch.tensor([0.75, -1.0]).double()
    dual = {1.0: (0.0, -2.0), 2.0: (1.5, -2.0), math.inf: (0.0, -2.0)}[p]
    critic = linear(*dual, bias=5.0)
    length = {1.0: 1.0, 2.0: 1.25, math.inf: 1.0}[p]  # the linf length is 1; in l1 the critic sees 1 of 1.75
    bound = dual_bound(critic, certify(critic, (2,), norms=Norms(p, p)), xs, xs + m)
    assert bound.value == pytest.approx(length, rel=1e-6)
    assert bound.value <= length
    assert bound.norms.p == p


@pytest.mark.parametrize("seed", range(4))
def test_on_the_line_a_monotone_critic_finds_the_whole_distance_and_no_more(seed: int):
    xs = torch.randn(25, 1, generator=drawn(seed))
    ys = xs[torch.randperm(25, generator=drawn(seed))] + torch.rand(25, 1, generator=drawn(seed + 1))
    above = xs.sort(0).values + torch.rand(25, 1, generator=drawn(seed + 2))  # stochastically larger
    for other, attained in ((ys, False), (above, True)):
        critic = linear(-3.0)
        bound, exact = dual_bound(critic, certify(critic, (1,)), xs, other), sorted_distance(xs, other)
        assert Fraction(bound.value) <= exact
        assert not attained or bound.value >= float(exact) * (1 - 1e-6)


@pytest.mark.parametrize("length", [1e-3, 1.0, 50.0])
def test_a_translation_is_never_reported_longer_than_it_is(length: float):
    m = torch.randn(6, generator=drawn(5), dtype=torch.float64)
    m *= length / m.norm()
    xs = torch.randn(64, 6, generator=drawn(6), dtype=torch.float64)
    for seed in range(5):
        critic = perceptron(seed, 6, 8, 8, 1)
        bound = dual_bound(critic, certify(critic, (6,), by=Product()), xs, xs + m)
        assert bound.value <= length


def test_the_reported_difference_encloses_exact_arithmetic_where_float64_cancels():
    critic = linear(0.1, 0.7, bias=1e12)
    xs, ys = (torch.randn(9, 2, generator=drawn(seed), dtype=torch.float64) for seed in (1, 2))
    weight = [Fraction(w) for w in critic.weight.flatten().tolist()]

    def mean(rows: torch.Tensor) -> Fraction:
        return sum(w * Fraction(x) for row in rows.tolist() for w, x in zip(weight, row, strict=True)) / len(rows)

    found, exact = dual_value(critic, xs, ys), mean(xs) - mean(ys)
    assert Fraction(found.low) <= exact <= Fraction(found.high)
    assert found.high - found.low > 1e-6  # what was lost is admitted
    naive = float((critic(xs).mean() - critic(ys).mean()).detach())
    assert naive != float(exact)


def test_smooth_critics_are_enclosed():
    critic = nn.Sequential(linear(1.0), nn.Tanh())
    found = dual_value(critic, torch.tensor([[0.5]]), torch.tensor([[0.0]]))
    assert found.low <= math.tanh(0.5) <= found.high
    assert found.high - found.low < 1e-15


# -------------------------------------------------------------------------------------------------- intervals


def test_the_bounded_interval_covers_at_least_as_often_as_it_says():
    """Coins: the largest variance that a range allows, where Hoeffding's inequality is nearly tight."""
    generator, covered = drawn(0), 0
    for _ in range(1000):
        xs, ys = (exact_values(torch.rand(n, 1, generator=generator) < share) for n, share in ((6, 0.5), (400, 0.02)))
        found = bounded_range(difference_of_means(xs, ys), xs, ys, 2.0, 0.5, 0.5)  # K = 2, D = 1/2: values in {0, 1}
        covered += found.low <= 0.48 / 2 <= found.high
    assert covered >= 500


def test_the_concentrated_interval_covers_about_as_often_as_it_says():
    """A linear function of normal numbers has exactly the deviations that are assumed."""
    generator, covered = drawn(1), 0
    for _ in range(1000):
        xs, ys = (exact_values(3.0 * torch.randn(5, 1, generator=generator)) for _ in range(2))
        found = sub_gaussian(difference_of_means(xs, ys), 5, 5, 3.0, 1.0, 0.5)
        covered += found.low <= 0.0 <= found.high
    assert 500 <= covered


def test_the_widths_are_those_of_the_theorems():
    critic, K, D, delta = linear(2.0), 2.0, 3.0, 0.1
    certificate = certify(critic, (1,))
    xs = torch.tensor([[0.0], [3.0]] * 50).double()  # no variance below the largest: Hoeffding is narrower
    found = dual_bound(critic, certificate, xs, xs, diameter=D, confidence=1 - delta).bounded
    hoeffding = 2 * D * math.sqrt(math.log(8 / delta) / (2 * 100))
    assert found.high == pytest.approx(hoeffding, rel=1e-6)
    assert found.low == pytest.approx(-hoeffding, rel=1e-6)
    still = torch.zeros(1000, 1).double()  # no variance: only the second term of the empirical Bernstein bound
    found = dual_bound(critic, certificate, still, still, diameter=D, confidence=1 - delta).bounded
    bernstein = 2 * 7 * D * math.log(16 / delta) / (3 * 999)
    assert found.high == pytest.approx(bernstein, rel=1e-6)
    found = dual_bound(critic, certificate, xs, xs, concentration=0.5, confidence=1 - delta).concentrated
    assert found.high == pytest.approx(2 * 0.5 * math.sqrt(2 * math.log(4 / delta) / 100), rel=1e-6)
    assert K == pytest.approx(certificate.bound)
    assert "diameters of at most 3.0" in dual_bound(critic, certificate, xs, xs, diameter=D).bounded.assumption


def test_an_interval_bounds_the_distance_with_either_sign():
    xs, ys = torch.zeros(4000, 1).double(), torch.ones(4000, 1).double()
    critic = linear(1.0)
    bound = dual_bound(critic, certify(critic, (1,)), xs, ys, diameter=0.5)
    assert bound.bounded.low < -0.9 and bound.bounded.high < -0.9  # noqa: PT018
    assert 0.9 < bound.bounded.least < 1.0 == pytest.approx(bound.value)


def test_values_that_may_be_off_may_vary_more():
    n, delta, error = 400, 0.1, 1e-3
    still = Values(torch.zeros(n, 1).double(), *2 * [torch.full((n,), error, dtype=torch.float64)])
    exact = exact_values(torch.zeros(n, 1))
    known, unsure = (bounded_range(Between(0.0, 0.0), at, at, 1.0, 1.0, delta).high for at in (exact, still))
    assert unsure - known == pytest.approx(2 * 2 * error * math.sqrt(2 * math.log(16 / delta) / n), rel=1e-3)


def test_a_constant_critic_says_nothing():
    critic = linear(0.0, bias=3.0)
    bound = dual_bound(critic, certify(critic, (1,)), torch.zeros(2, 1), torch.ones(2, 1), diameter=1.0)
    assert (bound.value, bound.bounded.least, bound.constant) == (0.0, 0.0, 0.0)


# -------------------------------------------------------------------------------------------------- overshoot


def test_a_critic_that_reports_too_much_has_a_larger_constant_than_claimed():
    xs = torch.randn(20, 2, generator=drawn(0), dtype=torch.float64)
    ys = xs + torch.tensor([0.6, 0.8]).double()
    critic = linear(6.0, 8.0)  # constant 10
    found = overshoot(dual_value(critic, xs, ys), empirical_w1(xs, ys), claim=1.0)
    assert found.refuted
    assert 9.999 < found.constant <= 10.0
    assert 9.999 < found.factor <= 10.0
    assert "10" in str(found) or "9.99" in str(found)
    honest = overshoot(dual_value(critic, xs, ys), empirical_w1(xs, ys), claim=10.0)
    assert not honest.refuted
    assert "no contradiction" in str(honest)


def test_overshoot_takes_numbers_of_either_sign():
    assert overshoot(-3.0, 2.0).constant == 1.5
    assert overshoot(Between(-4.0, -3.0), 2.0).reported == 3.0
    assert not overshoot(Between(-1.0, 9.0), 1.0).refuted  # zero is possible
    assert overshoot(1e-30, 0.0).refuted
    assert not overshoot(0.0, 0.0).refuted
    assert not overshoot(1.0, 1.0).refuted
    assert overshoot(1.0 / 3.0, 1.0, claim=1.0 / 9.0).factor <= Fraction(1.0 / 3.0) / Fraction(1.0 / 9.0)


# ---------------------------------------------------------------------------------------------------- bracket


@pytest.mark.parametrize("norms", NORMS, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_the_bracket_holds_the_distance_of_data_and_generated_points(norms: Norms, seed: int):
    decoder, encoder = perceptron(seed, 2, 5, 4), perceptron(seed + 50, 4, 5, 2)
    critic = perceptron(seed + 70, 4, 6, 1)
    xs, prior = torch.randn(30, 4, generator=drawn(seed)), torch.randn(30, 2, generator=drawn(seed + 1))
    codes = encoder(xs)
    generated = decoder.double()(prior.double()).detach()
    decoder.float()
    outputs = Norms(norms.q, norms.q)
    found = wae_bracket(
        *(decoder, certify(decoder, (2,), norms=norms, by=Product()), xs, codes, prior),
        critic=(critic, certify(critic, (4,), norms=outputs, by=Product())),
    )
    truth = empirical_w1(xs, generated, norms.q)
    assert 0.0 <= found.lower <= truth.lower + 1e-9
    assert truth.upper <= found.upper + 1e-9
    assert found.validity is Validity.RIGOROUS


def test_a_bracket_of_isometries_on_the_line_closes():
    """Decoder and critic are the identity, the codes are the data: both ends are the distance of data and prior."""
    xs, prior = torch.rand(20, 1, generator=drawn(0)), torch.rand(20, 1, generator=drawn(1)) + 2.0
    decoder = nn.Identity()
    found = wae_bracket(
        decoder, certify(decoder, (1,)), xs, xs, prior, critic=(linear(1.0), certify(linear(1.0), (1,)))
    )
    exact = float(sorted_distance(xs, prior))
    assert exact * (1 - 1e-6) < found.lower <= exact <= found.upper < exact * (1 + 1e-6)
    assert found.reconstruction < 1e-100
    assert found.gamma == 1.0


@pytest.mark.parametrize("scale", [0.5, 4.0])
def test_the_upper_end_is_reconstruction_plus_gamma_times_the_latent_distance(scale: float):
    decoder = linear(scale)
    xs, codes, prior = (torch.tensor([[value]]).double() for value in (1.0, 3.0, 5.0))
    found = wae_bracket(decoder, certify(decoder, (1,)), xs, codes, prior)
    assert found.upper == pytest.approx(abs(3.0 * scale - 1.0) + scale * 2.0, rel=1e-6)
    assert found.upper >= abs(3.0 * scale - 1.0) + scale * 2.0
    assert found.lower == 0.0


def test_codes_are_measured_in_the_input_norm_and_data_in_the_output_norm():
    decoder = linear(1.0, 1.0)
    decoder.weight.data = torch.ones(2, 2, dtype=torch.float64)  # the largest entry is the norm from l1 to linf
    decoder.bias.data = torch.zeros(2, dtype=torch.float64)
    xs, codes, prior = (torch.full((1, 2), value, dtype=torch.float64) for value in (3.0, 0.0, 1.0))
    found = wae_bracket(decoder, certify(decoder, (2,), norms=L1_LINF), xs, codes, prior)
    assert found.reconstruction == pytest.approx(3.0)  # in linf
    assert found.latent.upper == pytest.approx(2.0)  # in l1
    assert found.upper == pytest.approx(5.0)


@pytest.mark.parametrize("norms", [L2, L1], ids=str)
def test_a_decoder_that_cancels_is_off_by_no_more_than_is_admitted(norms: Norms):
    """The real decoder is the identity; in float64 it rounds 0.3 up to a multiple of 2^-12, and so nearer to 1.3."""
    decoder = nn.Sequential(linear(1.0, bias=2.0**40), nn.LeakyReLU(), linear(1.0, bias=-(2.0**40)))
    code = torch.tensor([[0.3]], dtype=torch.float64)
    assert float(decoder(code).detach()) > 0.30004
    found = wae_bracket(decoder, certify(decoder, (1,), norms=norms, by=Product()), code + 1.0, code, code)
    assert found.reconstruction >= 1.0 - 1e-12


def test_the_bracket_needs_one_norm_for_data_and_a_code_per_point():
    decoder, xs, prior = nn.Identity(), torch.zeros(3, 2), torch.ones(3, 2)
    certificate, critic = certify(decoder, (2,)), linear(1.0, 1.0)
    with pytest.raises(InvalidInput, match="must agree"):
        wae_bracket(decoder, certificate, xs, xs, prior, critic=(critic, certify(critic, (2,), norms=L1)))
    with pytest.raises(InvalidInput, match="one code"):
        wae_bracket(decoder, certificate, xs, xs[:2], prior[:2])
    with pytest.raises(InvalidInput, match="cut the longer"):
        wae_bracket(decoder, certificate, xs, xs, prior[:2])
    with pytest.raises(InvalidInput, match="data points have shape"):
        wae_bracket(decoder, certificate, torch.zeros(3, 5), xs, prior)
    with pytest.raises(InvalidInput, match="another digest"):
        wae_bracket(nn.ReLU(), certificate, xs, xs, prior)
    with pytest.raises(InvalidInput, match="estimate"):
        wae_bracket(decoder, replace(certificate, validity=Validity.ESTIMATE), xs, xs, prior)


def test_a_bracket_is_as_valid_as_its_weaker_certificate():
    decoder, xs, critic = nn.Identity(), torch.zeros(3, 2), linear(1.0, 1.0)
    numerical = replace(certify(critic, (2,)), validity=Validity.NUMERICAL)
    found = wae_bracket(decoder, certify(decoder, (2,)), xs, xs, xs, critic=(critic, numerical))
    assert found.validity is Validity.NUMERICAL
    assert dual_bound(critic, numerical, xs, xs).validity is Validity.NUMERICAL


# --------------------------------------------------------------------------------------------------- refusals


def test_certificates_that_prove_nothing_here_are_refused():
    critic, xs = perceptron(0, 3, 4, 1), torch.zeros(2, 3)
    certificate = certify(critic, (3,))
    with pytest.raises(InvalidInput, match="estimate"):
        dual_bound(critic, replace(certificate, validity=Validity.ESTIMATE), xs, xs)
    with pytest.raises(InvalidInput, match="infinite"):
        dual_bound(critic, replace(certificate, bound=math.inf), xs, xs)
    with pytest.raises(InvalidInput, match="all inputs"):
        dual_bound(critic, certify(critic, (3,), domain=Box(-1.0, 1.0)), xs, xs)
    with pytest.raises(InvalidInput, match="another digest"):
        dual_bound(perceptron(1, 3, 4, 1), certificate, xs, xs)
    with torch.no_grad():
        critic[0].weight[0, 0] += 1.0
    with pytest.raises(InvalidInput, match="another digest"):
        dual_bound(critic, certificate, xs, xs)


def test_a_critic_with_several_outputs_is_refused():
    critic, xs = perceptron(0, 3, 2), torch.zeros(2, 3)
    with pytest.raises(InvalidInput, match="one number per sample"):
        dual_bound(critic, certify(critic, (3,)), xs, xs)
    with pytest.raises(InvalidInput, match="one number per sample"):
        dual_value(critic, xs, xs)


GOOD = torch.zeros(2, 1)
BAD_SAMPLES = {
    "empty": (torch.zeros(0, 1), GOOD, InvalidInput, "batch of real vectors"),
    "no batch": (torch.zeros(3), GOOD, InvalidInput, "batch of real vectors"),
    "integers": (torch.zeros(2, 1, dtype=torch.int64), GOOD, InvalidInput, "batch of real vectors"),
    "other shape": (GOOD, torch.zeros(2, 3), InvalidInput, "need one shape"),
    "nan": (GOOD, torch.tensor([[math.nan]]), NotFinite, "NaN or infinite"),
    "infinite": (torch.tensor([[math.inf]]), GOOD, NotFinite, "NaN or infinite"),
}


@pytest.mark.parametrize("case", BAD_SAMPLES)
def test_what_is_no_pair_of_samples_is_refused(case: str):
    xs, ys, error, match = BAD_SAMPLES[case]
    critic = linear(1.0)
    for refuse in (
        lambda: dual_bound(critic, certify(critic, (1,)), xs, ys),
        lambda: dual_value(critic, xs, ys),
        lambda: empirical_w1(xs, ys),
        lambda: wae_bracket(nn.Identity(), certify(nn.Identity(), (1,)), GOOD, xs, ys),
    ):
        with pytest.raises(error, match=match):
            refuse()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        pytest.param({"confidence": 0.0}, "between 0 and 1", id="confidence 0"),
        pytest.param({"confidence": 1.0}, "between 0 and 1", id="confidence 1"),
        pytest.param({"diameter": 0.0}, "positive finite", id="diameter 0"),
        pytest.param({"diameter": math.nan}, "positive finite", id="diameter nan"),
        pytest.param({"concentration": -1.0}, "positive finite", id="concentration"),
        pytest.param({"diameter": 0.9}, "more than the diameter", id="contradicted"),
    ],
)
def test_arguments_that_make_no_interval_are_refused(options: dict[str, float], match: str):
    critic = linear(1.0)
    with pytest.raises(InvalidInput, match=match):
        dual_bound(critic, certify(critic, (1,)), torch.tensor([[0.0], [1.0]]), GOOD, **options)


@pytest.mark.parametrize(
    "arguments",
    [(math.nan, 1.0), (1.0, math.inf), (1.0, -1.0), (1.0, 1.0, 0.0), (1.0, math.nan)],
    ids=["nan report", "infinite bound", "negative bound", "claim 0", "nan bound"],
)
def test_numbers_that_cannot_be_compared_are_refused(arguments: tuple[float, ...]):
    with pytest.raises(InvalidInput, match="can be compared"):
        overshoot(*arguments)


def test_couplings_need_two_samples_of_one_size_and_a_norm():
    with pytest.raises(InvalidInput, match="cut the longer"):
        empirical_w1(torch.zeros(2, 1), torch.zeros(3, 1))
    with pytest.raises(InvalidInput, match="norm exponent"):
        empirical_w1(GOOD, GOOD, 3.0)
    with pytest.raises(InvalidInput, match="use fewer points"):
        empirical_w1(torch.zeros(9000, 1), torch.zeros(9000, 1))


def test_values_that_overflow_have_no_mean():
    critic = linear(1e300)
    with pytest.raises(NotFinite, match="no mean"):
        dual_value(critic, torch.full((1, 1), 1e300, dtype=torch.float64), GOOD)
