"""The soundness counter: no bound too low and no false claim accepted, in as many cases as a change must pass."""

import json
import math
from collections.abc import Callable

import numpy as np
import pytest

from benchmarks import fuzz_checker, soundness
from benchmarks.soundness import DEFECTS, PER_CHANGE, Row, counter, main, run, violated
from lipcert.kernel import blockwise, dense, psd, single
from tests import conftest
from tests.adversarial import exact_integers
from tests.oracles import TRIALS
from tests.semidefinite import FAMILIES, at_the_edge, semidefinite, semidefinite_by_signs

Count = Callable[[str, int, int], None]
FEW = {"t1": 500, "t2": 1200, "t3": 140, "t5": 2000}
SEED = 5


def sound(name: str, cases: int, count: Count) -> Row:
    row = run(name, cases, SEED)
    count(name, row.cases, len(row.violations))
    assert row.violations == []
    return row


def test_no_norm_of_a_nasty_matrix_is_too_low(count_soundness: Count):
    assert_tight(sound("t1", FEW["t1"], count_soundness))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_norm_of_a_hundred_thousand_nasty_matrices_is_too_low(count_soundness: Count):
    assert_tight(sound("t1", PER_CHANGE["t1"], count_soundness))


def assert_tight(row: Row) -> None:
    assert row.overhead["n <= 60"] <= 1e-13
    assert row.overhead["n <= 200"] <= 2e-12
    assert row.overhead["single precision"] <= 0.021


def test_no_defect_at_the_edge_is_too_small(count_soundness: Count):
    assert_proofs(sound("t2", FEW["t2"], count_soundness))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_defect_of_a_hundred_thousand_matrices_at_the_edge_is_too_small(count_soundness: Count):
    assert_proofs(sound("t2", PER_CHANGE["t2"], count_soundness))


def assert_proofs(row: Row) -> None:
    assert row.outcomes["without a proof"] < 0.7 * row.cases
    assert all(overhead <= 1e-13 for kind, overhead in row.overhead.items() if kind != "single precision")


def test_no_lying_oracle_makes_an_answer_false(count_soundness: Count):
    sound("t3", FEW["t3"], count_soundness)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_lying_oracle_of_two_thousand_makes_an_answer_false(count_soundness: Count):
    sound("t3", PER_CHANGE["t3"], count_soundness)


def test_no_mutated_claim_is_accepted_falsely_and_nothing_escapes(count_soundness: Count):
    verdicts = sound("t5", FEW["t5"], count_soundness).outcomes
    assert min(verdicts[verdict] for verdict in ("accepted", "rejected", "malformed")) > 50


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_none_of_a_hundred_thousand_mutated_claims_is_accepted_falsely(count_soundness: Count):
    sound("t5", PER_CHANGE["t5"], count_soundness)


# ------------------------------------------------------------------------------------------------ the rows see


def numpys_norm(A: np.ndarray, *_: object) -> float:
    return float(np.linalg.norm(A, 2)) if np.all(np.isfinite(A * 1.0)) else math.inf


def trusting(H: tuple[np.ndarray, ...], *_: object) -> np.ndarray:
    """No defect wherever an elimination in floating point meets no pivot that is not positive."""
    rest = H[0][0] if len(H) == 1 else H[0][0] + 1j * H[1][0]
    while len(rest):
        pivot, column = rest[0, 0].real, rest[1:, 0]
        if not pivot > 0:
            return np.array([math.inf])
        rest = rest[1:, 1:] - np.outer(column, column.conj() / pivot)
    return np.zeros(1)


def trusting_blocks(H: dict[tuple[str, str], np.ndarray], order: list[str]) -> float:
    rows = [[H.get((a, b), H[b, a].T if (b, a) in H else None) for b in order] for a in order]
    sizes = [H[a, a].shape[0] for a in order]
    filled = [
        [np.zeros((m, n)) if block is None else block for n, block in zip(sizes, row, strict=True)]
        for m, row in zip(sizes, rows, strict=True)
    ]
    return float(trusting((np.block(filled)[None],))[0])


def accepts(*_: object) -> None:
    """A checker that takes anything."""


MUTANTS = {
    "numpy's norm": ("t1", dense, "norm2_upper", numpys_norm),
    "numpy's norm in single precision": ("t1", single, "norm2_upper", numpys_norm),
    "numpy's norm and a little": ("t1", dense, "norm2_upper", lambda A: numpys_norm(A) * (1.0 + 2e-16)),
    "any factor is a proof": ("t2", psd, "psd_defect", trusting),
    "any factor of blocks is a proof": ("t2", blockwise, "blockwise_defect", trusting_blocks),
    "any factor is a proof in single precision": ("t2", single, "psd_defect", trusting),
    "the product of a factor is exact": ("t3", psd, "product_error", lambda _: 0.0),
    "no claim is refused": ("t5", fuzz_checker, "verify", accepts),
    "no file is refused": ("t5", fuzz_checker, "verify_files", accepts),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_every_row_sees_a_mistake(mutant: str, monkeypatch: pytest.MonkeyPatch):
    name, module, attribute, replacement = MUTANTS[mutant]
    monkeypatch.setattr(module, attribute, replacement)
    assert run(name, min(FEW[name], 1200 if name == "t2" else 300), SEED).violations


def test_a_case_can_be_drawn_again_alone_and_an_exception_is_a_violation(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dense, "norm2_upper", lambda A: 0.0)
    first = run("t1", 40, 3).violations[-1]
    case = int(first.split()[1].rstrip(","))
    assert first == f"case {case}, seed 3: {violated('t1', case, 3)}"

    def broken(A: np.ndarray) -> float:
        raise ZeroDivisionError("no")

    monkeypatch.setattr(dense, "norm2_upper", broken)
    assert violated("t1", 0, 0) == "ZeroDivisionError: no"


def test_both_judges_of_semidefinite_matrices_agree():
    verdicts = []
    for case in range(600):
        rng = np.random.default_rng([7, case])
        integers, _ = exact_integers(at_the_edge(rng, list(FAMILIES)[case % len(FAMILIES)]))
        verdicts.append(semidefinite(integers))
        assert verdicts[-1] == semidefinite_by_signs(integers)
    assert 150 < sum(verdicts) < 450


def test_the_rows_reach_every_kernel():
    assert len(DEFECTS) * len(FAMILIES) <= FEW["t2"] / 10
    assert len(TRIALS) * 10 <= FEW["t3"]


# ------------------------------------------------------------------------------------------------ the counter


def test_the_command_prints_the_counter_and_says_whether_it_is_zero(capsys, monkeypatch: pytest.MonkeyPatch):
    assert main(["t1", "t3", "--cases", "14"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "soundness counter: 28 cases, 0 violations (t1 14, t3 14)"
    monkeypatch.setattr(dense, "norm2_upper", lambda A: 0.0)
    assert main(["t1", "--cases", "3"]) == 1
    assert ", 3 violations (t1 3)" in capsys.readouterr().out.splitlines()[-1]
    with pytest.raises(SystemExit):
        main(["t9"])


def test_the_line_at_the_end_adds_up_what_tests_of_any_process_counted(request: pytest.FixtureRequest):
    hook, arrived = request.config.hook, []
    for when, count in (("setup", ["t1", 5, 0]), ("call", ["t1", 7, 0]), ("call", ["t2", 1000, 2])):
        report = pytest.TestReport("a", ("a", 0, "a"), {}, "passed", None, when, user_properties=[("soundness", count)])  # type: ignore[arg-type]
        data = json.loads(json.dumps(hook.pytest_report_to_serializable(config=request.config, report=report)))
        arrived.append(hook.pytest_report_from_serializable(config=request.config, data=data))
    assert conftest.soundness_line([*arrived, object()]) == counter([("t1", 7, 0), ("t2", 1000, 2)])
    assert conftest.soundness_line([object()]) == ""
    assert soundness.counter([]).startswith("soundness counter: 0 cases, 0 violations")
