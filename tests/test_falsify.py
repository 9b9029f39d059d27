"""Claims and verdicts: refutations are theorems, true claims are never refuted, pairs are small and replay anywhere."""

import math
import subprocess
import sys
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations as P

from lipcert import L1, L2, LINF, Norms, certify, check, lowers, trace
from lipcert.domain import Box, L2Ball
from lipcert.enclosure import stretch
from lipcert.errors import InvalidInput, LipschitzViolation, NotFinite, Unproved, UnsupportedOperation
from lipcert.falsify import Effort, Proved, Refuted, Unknown, assert_lipschitz, lipcheck, refute, violating_pair
from lipcert.falsify.engines import ENGINES
from lipcert.falsify.problem import Problem
from lipcert.falsify.replay import replay_source, scalar
from lipcert.falsify.verdict import literal
from lipcert.graph import Activation
from lipcert.lowering import Value, activation
from lipcert.nn import GroupSort, MaxMin
from lipcert.parametrizations import spectral_norm
from tests.zoo import SLOPES, Animal, Function, linear, spike, zoo

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

ZOO = zoo()
# One in six in every run, chosen by position so that every kind is there; all of them in the slow test.
SOME = dict(list(ZOO.items())[::6]) | {name: ZOO[name] for name in ("far branch", "spike", "gelu", "softmax", "selu")}
QUICK = Effort(seconds=20.0, rounds=40)


def refuted(model: nn.Module, shape: tuple[int, ...], bound: float, norms: Norms = L2, **options) -> Refuted:
    verdict = lipcheck(model.eval(), shape, bound, norms=norms, effort=QUICK, **options)
    assert isinstance(verdict, Refuted), str(verdict)
    return verdict


def judged(animal: Animal, share: float, effort: Effort):
    return lipcheck(animal.model().eval(), animal.shape, animal.constant * share, norms=animal.norms, effort=effort)


@pytest.mark.parametrize("name", SOME)
def test_a_claim_one_percent_too_low_is_refuted_by_a_pair_that_is_a_theorem(name: str):
    verdict = judged(SOME[name], 0.99, QUICK)
    assert isinstance(verdict, Refuted), str(verdict)
    pair, claim = verdict.witness, verdict.claim
    assert stretch(verdict.graph, pair.x, pair.y, claim.norms).exceeds(claim.bound)
    assert claim.bound <= pair.ratio <= SOME[name].constant
    assert str(verdict).startswith("REFUTED")


@pytest.mark.parametrize("name", SOME)
def test_a_tight_true_claim_is_never_refuted(name: str):
    verdict = judged(SOME[name], 1.0, Effort(seconds=20.0, rounds=2))
    assert not isinstance(verdict, Refuted), str(verdict)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_all_false_claims_of_the_zoo_fall(share: float):
    left = [name for name, animal in ZOO.items() if not isinstance(judged(animal, share, QUICK), Refuted)]
    assert len(ZOO) >= 80
    assert len(left) <= (0.05 * len(ZOO) if share == 0.99 else 0), left


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_no_true_claim_of_the_zoo_falls(name: str):
    assert not isinstance(judged(ZOO[name], 1.0, Effort(seconds=2.0)), Refuted)


def test_a_proof_comes_with_a_certificate_that_the_checker_accepts():
    verdict = lipcheck(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), (3,), 5.0)
    assert isinstance(verdict, Proved)
    assert verdict.certificate.bound <= 5.0
    assert check(verdict.certificate, verdict.graph).bound == verdict.certificate.bound
    assert str(verdict).startswith("PROVED")


def test_a_claim_between_the_best_pair_and_the_best_proof_is_unknown():
    # The best semidefinite bound of a random network is above its constant.
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 6))
    bound = certify(model, (6,)).bound * (1 - 1e-4)
    verdict = lipcheck(model, (6,), bound, effort=Effort(seconds=1.0))
    assert isinstance(verdict, Unknown), str(verdict)
    assert verdict.witness.ratio <= bound < verdict.upper
    assert str(verdict).startswith("UNKNOWN")
    with pytest.raises(Unproved, match="no-counterexample"):
        assert_lipschitz(model, bound, (6,), effort=Effort(seconds=0.1))
    assert_lipschitz(model, bound, (6,), require="no-counterexample", effort=Effort(seconds=0.1))


def test_the_zero_claim_is_true_of_a_constant_and_false_of_anything_else():
    assert isinstance(lipcheck(linear([0.0, 0.0]), (2,), 0.0), Proved)
    assert refuted(linear([0.0, 1e-30]), (2,), 0.0).witness.ratio == pytest.approx(1e-30)


@pytest.mark.parametrize("scale", [2.0**-140, 2.0**-60, 2.0**60, 2.0**100])
def test_scaling_a_layer_by_a_power_of_two_scales_what_is_seen_exactly(scale: float):
    model = linear([3.0 * scale, 4.0 * scale])
    assert isinstance(lipcheck(model, (2,), 5.0 * scale * (1 + 1e-9)), Proved)
    assert refuted(model, (2,), 4.999 * scale).witness.ratio > 4.999 * scale


def test_a_claim_too_low_by_less_than_float64_can_be_trusted_with_is_refuted():
    assert refuted(linear([3.0, 4.0]), (2,), 5.0 * (1 - 1e-14)).exact


# ------------------------------------------------------------------------------------------- pairs that read well


def test_one_hot_breaks_max_pooling_with_overlapping_windows():
    pair = refuted(nn.MaxPool2d((1, 5), stride=(2, 2)), (1, 3, 11), 1.0).witness
    assert pair.ratio**2 == pytest.approx(3.0)
    assert pair.x.count_nonzero() == 0
    assert pair.y.flatten().tolist().count(1.0) == 1
    assert pair.y.count_nonzero() == 1


def test_a_kernel_of_ones_is_broken_by_a_few_equal_taps():
    layer = P.spectral_norm(nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular", bias=False))
    layer.parametrizations.weight.original.data.fill_(1.0)
    verdict = refuted(layer, (1, 5, 5), 1.5)
    assert verdict.witness.x.count_nonzero() == 0
    assert set(verdict.witness.y.flatten().tolist()) == {0.0, 1.0}
    assert "claims norm 1.0" in verdict.blamed


def test_a_constant_breaks_what_a_constant_breaks():
    pair = refuted(nn.AvgPool1d(3, 1), (1, 5), 0.75).witness
    assert pair.x.count_nonzero() == 0
    assert len(set(pair.y[pair.y != 0].tolist())) == 1


def test_an_identity_is_broken_by_zero_and_one():
    pair = refuted(nn.Identity(), (1, 2, 2), 0.9999).witness
    assert sorted(pair.y.flatten().tolist()) == [0.0, 0.0, 0.0, 1.0]


@settings(max_examples=10)
@given(st.integers(0, 10), st.floats(0.2, 0.95))
def test_shrinking_keeps_a_pair_that_breaks_the_claim(seed: int, share: float):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 6), nn.LeakyReLU(0.1), nn.Linear(6, 3))
    bound = share * violating_pair(model, (4,), 0.0, effort=QUICK).ratio
    verdict = refuted(model, (4,), bound)
    assert verdict.witness.ratio > bound
    assert verdict.exact


# ------------------------------------------------------------------------------------------- text and replay

REPLAYED: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "conv, leaky, max pooling, maxmin": (
        nn.Sequential(
            *(nn.Conv2d(2, 3, 3, padding=1), nn.LeakyReLU(0.2), nn.MaxPool2d(2), nn.Flatten()),
            *(nn.Linear(12, 4), MaxMin(), nn.Hardswish()),
        ),
        (2, 4, 4),
    ),
    "gelu, group sort, clamp": (
        nn.Sequential(nn.Linear(3, 4), nn.GELU(), GroupSort(2), nn.Hardtanh(-0.5, 0.7), nn.Linear(4, 2)),
        (3,),
    ),
    "average pooling, softshrink, transposed": (
        nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.Softshrink(0.1), nn.ConvTranspose2d(1, 2, 2, 2)),
        (1, 3, 3),
    ),
    "sum and concatenation": (Function(lambda x: torch.cat([x + torch.relu(x), -x.abs()], 1)), (3,)),
}


@pytest.mark.parametrize("norms", [L2, L1, LINF], ids=str)
@pytest.mark.parametrize("name", REPLAYED)
def test_a_counterexample_replays_without_torch(name: str, norms: Norms):
    model, shape = REPLAYED[name]
    verdict = refuted(model, shape, 0.01, norms)
    source = replay_source(verdict)
    code = f"import sys; sys.modules['torch'] = None; sys.modules['lipcert'] = None\n{source}"
    run = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("|f(x) - f(y)| / |x - y| = ")
    assert float(run.stdout.split()[8]) == pytest.approx(verdict.witness.ratio, rel=1e-12)
    false = source.replace(f"F({verdict.claim.bound!r})", "F(1e9)")
    assert subprocess.run([sys.executable, "-c", false], capture_output=True, check=False).returncode == 1


def test_the_pair_printed_is_the_pair_kept():
    verdict = refuted(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)), (3,), 0.01)
    lines = {line.strip()[:1]: line.split(" = ")[1] for line in str(verdict).splitlines() if " = [" in line}
    assert eval(lines["x"]) == verdict.witness.x.tolist()
    assert eval(lines["y"]) == verdict.witness.y.tolist()


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=70, max_size=70))
def test_a_literal_reads_back_exactly(numbers: list[float]):
    x = torch.tensor(numbers, dtype=torch.float64).reshape(7, 10)
    entries = eval(literal(x).split("  #")[0])
    again = torch.zeros(7, 10, dtype=torch.float64)
    for place, value in entries.items():
        again[place] = value
    assert torch.equal(again, x)


def test_the_same_seed_gives_the_same_verdict_and_leaves_the_global_generator_alone():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2))
    state = torch.get_rng_state()
    pairs = []
    for _ in range(2):
        pair = violating_pair(model, (4,), 0.05, effort=QUICK, generator=torch.Generator().manual_seed(5))
        assert pair is not None
        pairs.append((pair.ratio, pair.x.tolist(), pair.y.tolist()))
    assert pairs[0] == pairs[1]
    assert torch.equal(torch.get_rng_state(), state)


def test_the_first_layer_whose_claim_is_false_is_named():
    model = nn.Sequential(
        spectral_norm(nn.Linear(4, 4)),
        P.spectral_norm(nn.Linear(4, 4)),
        P.spectral_norm(nn.Linear(4, 4)),
    ).double()
    torch.manual_seed(0)
    with torch.no_grad():
        model[1].parametrizations.weight.original.copy_(torch.diag(torch.tensor([3.0, 2.9, 2.8, 2.7])))
        model[1].parametrizations.weight[0]._u.copy_(torch.tensor([0.0, 0.0, 0.0, 1.0]))
        model[1].parametrizations.weight[0]._v.copy_(torch.tensor([0.0, 0.0, 0.0, 1.0]))
    verdict = refuted(model, (4,), 0.01)
    assert "`1` claims norm 1.0, it is at least 1.11" in verdict.blamed


# ------------------------------------------------------------------------------------------- domains, refusals


def test_a_claim_false_everywhere_may_be_true_in_a_domain():
    model = spike()
    assert refuted(model, (1,), 2.0).witness.ratio == 3.0
    verdict = lipcheck(model, (1,), 2.0, domain=Box(-1.0, 4.0), effort=Effort(rounds=20))
    assert isinstance(verdict, Proved)
    assert verdict.certificate.domain == Box(-1.0, 4.0)
    tight = lipcheck(model, (1,), 1.0, domain=Box(-1.0, 4.0), effort=Effort(rounds=20))
    assert isinstance(tight, Unknown)
    assert tight.witness.ratio == pytest.approx(1.0)


class Gate(nn.Module):
    def forward(self, x):
        return x * x


def test_a_product_is_decided_on_a_domain():
    assert isinstance(lipcheck(Gate(), (2,), 4.001, domain=Box(-1.0, 2.0)), Proved)
    found = refuted(Gate(), (2,), 3.9, domain=Box(-1.0, 2.0))
    assert 3.9 < found.witness.ratio <= 4.0
    assert isinstance(lipcheck(Gate(), (2,), 4.0, effort=Effort(rounds=3)), Unknown)


@pytest.mark.parametrize("domain", [Box(4.99, 5.01), L2Ball(5.0, 0.015)], ids=str)
def test_a_pair_lies_in_the_domain_of_its_claim(domain):
    pair = refuted(spike(), (1,), 2.0, domain=domain).witness
    assert domain.contains(pair.x)
    assert domain.contains(pair.y)


def test_the_search_starts_from_the_example():
    # Slope 1 but on a piece of length 2^-12 around the example.
    first, second = linear([1.0], [1.0], [1.0]), linear([1.0, 2.0, -2.0])
    first.bias = nn.Parameter(torch.tensor([1e6, -777.0, -777.0 - 2.0**-12]))
    model = nn.Sequential(first, nn.ReLU(), second)
    verdict = lipcheck(model, torch.tensor([[777.0 + 2.0**-13]]), 1.5, effort=Effort(rounds=3))
    assert isinstance(verdict, Refuted)


def test_an_operation_without_a_constant_is_unknown_with_what_was_seen():
    verdict = lipcheck(nn.LayerNorm(4), (4,), 1.0, effort=Effort(rounds=2))
    assert isinstance(verdict, Unknown)
    assert verdict.upper == math.inf
    assert verdict.witness.ratio > 1.0
    assert verdict.graph is None


def test_a_violation_that_only_float64_sees_does_not_count():
    class Own(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * torch.tanh(x)

    @lowers(Own)
    def own(module: Own, x: Value) -> Value:
        return activation(x, "declared:me", (0.0, 3.0), lambda x: 2 * torch.tanh(x))

    verdict = lipcheck(Own(), (2,), 1.0, effort=Effort(rounds=2))
    assert isinstance(verdict, Unknown)
    assert "does not count" in verdict.reason
    assert "declared:me" in verdict.reason


@pytest.mark.parametrize("bound", [-1.0, math.nan, math.inf, "1", None])
def test_a_bound_that_is_none_is_refused(bound):
    with pytest.raises(InvalidInput, match="finite number"):
        lipcheck(nn.ReLU(), (2,), bound)


def test_other_bad_input_is_refused():
    with pytest.raises(InvalidInput, match="empty dimension"):
        lipcheck(nn.ReLU(), (2, 0), 1.0)
    with pytest.raises(InvalidInput, match="batch dimension"):
        lipcheck(nn.ReLU(), torch.tensor([[math.nan]]), 1.0)
    with pytest.raises(InvalidInput, match="neither"):
        assert_lipschitz(nn.ReLU(), 1.0, (2,), require="luck")  # pyright: ignore
    with pytest.raises(UnsupportedOperation, match="training mode"):
        lipcheck(nn.BatchNorm1d(2), (2,), 1.0)
    with pytest.raises(NotFinite):
        lipcheck(linear([math.nan]), (1,), 1.0)
    with pytest.raises(InvalidInput, match="looks at nothing"):
        Effort(seconds=0.0)


def test_an_assertion_fails_with_the_pair_in_its_text():
    with pytest.raises(LipschitzViolation, match="exactly verified: yes") as failure:
        assert_lipschitz(nn.MaxPool2d(3, 2), 1.0, (1, 5, 5))
    assert isinstance(failure.value, AssertionError)
    assert "maxpool2d" in str(failure.value)
    assert "y = [[[0.0" in str(failure.value)


def test_the_model_is_left_as_it_is():
    model = P.spectral_norm(nn.Conv2d(1, 2, 3, padding=1)).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    lipcheck(model, (1, 4, 4), 0.5, effort=QUICK)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.weight.requires_grad


# ------------------------------------------------------------------------------------------- engines


@pytest.mark.parametrize("domain", [Box(-0.5, 1.0), L2Ball(0.25, 2.0)], ids=str)
@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_yields_true_quotients_of_pairs_in_the_domain(name: str, domain):
    def function(x: Tensor) -> Tensor:
        return torch.stack([x.sum(1), 3 * x[:, 0]], 1)

    problem = Problem(function, (2, 3), L2, domain, torch.zeros(1, 6, dtype=torch.float64))
    running = ENGINES[name](problem, torch.Generator().manual_seed(0))
    for _ in range(12):
        ratio, x, y = next(running)
        problem.board.offer((ratio, x, y), name)
        assert domain.contains(x.reshape(2, 3))
        assert domain.contains(y.reshape(2, 3))
        if ratio > 0.0:
            change = [sum(map(Fraction, side)) for side in (x.tolist(), y.tolist())]
            moved = (change[0] - change[1]) ** 2 + 9 * (Fraction(float(x[0])) - Fraction(float(y[0]))) ** 2
            apart = sum((Fraction(a) - Fraction(b)) ** 2 for a, b in zip(x.tolist(), y.tolist(), strict=True))
            assert Fraction(ratio) ** 2 <= moved / apart
    assert problem.board.ratio > 0.5


def test_every_engine_is_needed_for_something_or_finds_the_norm():
    """What random pairs miss: a far branch, and the top singular vector of a wide layer."""
    torch.manual_seed(0)
    wide = nn.Linear(200, 200)
    norm = float(torch.linalg.matrix_norm(wide.weight.detach().double(), 2))
    assert refuted(wide, (200,), 0.999 * norm).engine in ("jacobian", "ascent", "refined")


# ------------------------------------------------------------------------------------------- what float64 gets wrong


def test_cancellation_that_float64_takes_for_a_violation_does_not_count():
    """relu(x + 2^40) - 2^40 has the constant 1; float64 sees quotients of pairs close together far above it."""

    class Cancelling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("large", torch.tensor(2.0**40, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x + self.large) - self.large

    verdict = refute(Cancelling(), (3,), 1.0, effort=Effort(rounds=6))
    assert isinstance(verdict, Unknown)
    assert verdict.witness.ratio > 1.0
    assert "does not count" in verdict.reason


@pytest.mark.parametrize("name", [name for name in ZOO if name in SLOPES])
def test_functions_in_a_replay_are_those_of_torch(name: str):
    graph = trace(ZOO[name].model().eval(), (9,))
    x = torch.tensor([[-30.0, -2.5, -1.0, -0.3, 0.0, 0.4, 1.0, 3.5, 30.0]], dtype=torch.float64)
    (node,) = [node for node in graph if isinstance(node, Activation)]
    try:
        text = f"[{scalar(node)} for a, k in zip(x, range(9))]"
    except UnsupportedOperation:
        pytest.skip(f"{node.function} has no form in a file without torch")
    seen = eval(text, {"math": math, "F": Fraction, "x": x[0].tolist()})
    assert [float(value) for value in seen] == pytest.approx(node.call(x)[0].tolist(), rel=1e-8, abs=1e-12)
