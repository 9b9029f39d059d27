"""The pytest plugin: what the marker checks, what the summary says, what is written, and what is not imported."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import lipcert.falsify
import lipcert.storage
import lipcert.testing
from lipcert.storage import load_certificate

pytest_plugins = ["pytester"]
ROOT = Path(__file__).parent.parent
HEAD = """
import pytest
import torch
from torch import nn


def scaled(factor, width=2):
    layer = nn.Linear(width, width, bias=False)
    layer.weight.data = factor * torch.eye(width)
    return layer.eval()


@pytest.fixture
def half():
    return scaled(0.5)


@pytest.fixture
def double():
    return scaled(2.0)
"""


@pytest.fixture(scope="module")
def warm() -> None:
    """Nothing is imported for the first time inside a run: pytester would forget it, and it cannot come twice."""
    lipcert.falsify.lipcheck(lipcert.nn.MaxMin(), (2,), 0.5, effort=lipcert.falsify.Effort(seconds=0.1))


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, warm: None):
    """Run a file of tests in this process with the plugin alone, installed or not."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    pytester.makeini("[pytest]\nstrict = true\nfilterwarnings = error\n")

    def run(body: str, *options: str, subprocess: bool = False) -> pytest.RunResult:
        pytester.makepyfile(HEAD + body)
        runner = pytester.runpytest_subprocess if subprocess else pytester.runpytest_inprocess
        return runner("-p", "_lipcert_pytestplugin", "-p", "no:cacheprovider", *options)

    return run


def test_a_claim_about_a_fixture_is_checked_before_the_body(run):
    result = run("""
@pytest.mark.lipschitz(bound=0.6, input_shape=(2,))
def test_kept(half):
    assert half.weight[0, 0] == 0.5


@pytest.mark.lipschitz(1.0, (2,))
def test_broken(double):
    raise RuntimeError("the body ran")
""")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*LipschitzViolation: REFUTED*", "*lipcert: 1 proved, 1 refuted, 0 unknown*"])
    result.stdout.no_fnmatch_line("*the body ran*")


def test_a_model_that_a_test_returns_is_checked_and_not_warned_about(run):
    result = run("""
@pytest.mark.lipschitz(bound=0.6, input_shape=(2,))
def test_kept():
    return scaled(0.5)


class TestMethod:
    @pytest.mark.lipschitz(bound=0.6, input_shape=(2,))
    def test_broken(self):
        return scaled(1.0)


@pytest.mark.lipschitz(bound=0.6, input_shape=(2,))
def test_the_same_model_is_checked_once(half):
    return half
""")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*lipcert: 2 proved, 1 refuted, 0 unknown*"])


def test_a_test_without_the_marker_is_left_alone(run):
    result = run("""
def test_returns_a_model(half):
    return half


def test_passes(half, double):
    assert half is not double
""")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*PytestReturnNotNoneWarning*"])
    result.stdout.no_fnmatch_line("*lipcert:*")


@pytest.mark.parametrize(("require", "failed"), [("proof", 1), ("no-counterexample", 0)])
def test_a_claim_that_nobody_can_prove_is_unknown(run, require: str, failed: int):
    result = run(f"""
class Zigzag(nn.Module):
    # slopes -1, 1 and -1, which a certificate that looks at each kink alone adds up to 3
    def forward(self, x):
        return x.abs() - 2 * (x - 1).relu()


@pytest.mark.lipschitz(bound=1.0, input_shape=(1,), require={require!r}, seconds=0.2)
def test_zigzag():
    return Zigzag().eval()
""")
    result.assert_outcomes(failed=failed, passed=1 - failed)
    result.stdout.fnmatch_lines(["*lipcert: 0 proved, 0 refuted, 1 unknown*"])
    if failed:
        result.stdout.fnmatch_lines(["*marker of*requires a proof*"])


def test_norms_and_several_claims_about_one_model(run):
    result = run("""
from lipcert import LINF


@pytest.fixture
def sums():
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.data = torch.ones(1, 4)
    return layer.eval()


@pytest.mark.lipschitz(bound=1.1, input_shape=(4,), norms="l1->linf")
@pytest.mark.lipschitz(bound=4.1, input_shape=(4,), norms=LINF)
@pytest.mark.lipschitz(bound=2.1, input_shape=(4,))
def test_three(sums):
    pass


@pytest.mark.xfail(raises=AssertionError, strict=True)
@pytest.mark.lipschitz(bound=1.0, input_shape=(4,))
def test_expected(sums):
    pass
""")
    result.assert_outcomes(passed=1, xfailed=1)
    result.stdout.fnmatch_lines(["*lipcert: 3 proved, 1 refuted, 0 unknown*"])


def test_the_model_is_named_where_there_are_several(run):
    result = run("""
@pytest.mark.lipschitz(bound=0.6, input_shape=(2,), model="half")
def test_named(double, half):
    pass


@pytest.mark.lipschitz(bound=0.6, input_shape=(2,))
def test_unclear(double, half):
    pass


@pytest.mark.lipschitz(bound=0.6, input_shape=(2,), model="other")
def test_missing(double, half):
    pass


@pytest.mark.lipschitz(bound=0.6, input_shape=(2,))
def test_nothing():
    pass


@pytest.mark.lipschitz(bound=0.5, shape=(2,))
def test_misspelt(half):
    pass


@pytest.mark.lipschitz(bound=9.0, input_shape=(2,), require="nothing")
def test_no_such_requirement(half):
    pass
""")
    result.assert_outcomes(passed=1, failed=5)
    result.stdout.fnmatch_lines(
        [
            "*takes several modules, ?'double', 'half'?*",
            "*model='other'*",
            "*nothing was checked*",
            "*cannot read the marker*shape*",
            "*cannot read the marker*require='nothing'*",
            "*lipcert: 1 proved, 0 refuted, 0 unknown*",
        ]
    )


def test_hypothesis_and_parametrised_tests_may_be_marked(run):
    result = run("""
from hypothesis import given, settings, strategies as st


@pytest.fixture(scope="module")
def model():
    return scaled(0.5)


@pytest.mark.lipschitz(bound=0.6, input_shape=(2,))
@settings(max_examples=3, database=None)
@given(st.integers(0, 3))
def test_drawn(model, number):
    assert model(torch.full((1, 2), float(number))).max() == number / 2


@pytest.mark.lipschitz(bound=1.0, input_shape=(2,))
@pytest.mark.parametrize("factor", [0.5, 0.9, 2.0])
def test_each(factor):
    return scaled(factor)
""")
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(["*lipcert: 3 proved, 1 refuted, 0 unknown*"])


def test_evidence_is_saved(run, pytester: pytest.Pytester):
    result = run(
        """
@pytest.mark.lipschitz(bound=0.6, input_shape=(2,))
def test_kept(half):
    pass


@pytest.mark.lipschitz(bound=1.0, input_shape=(2,))
@pytest.mark.parametrize("factor", [2.0])
def test_broken(factor):
    return scaled(factor)
""",
        "--lipcert-save-dir=evidence",
        "--lipcert-seed=3",
    )
    result.assert_outcomes(passed=1, failed=1)
    folder = pytester.path / "evidence"
    (kept,) = folder.glob("*test_kept*.json")
    assert load_certificate(kept).bound == pytest.approx(0.5)
    assert kept.with_suffix(".safetensors").exists()
    (broken,) = folder.glob("*test_broken*.json")
    assert "2.0" in broken.name
    assert json.loads(broken.read_text())["ratio"] > 1.0
    replay = [sys.executable, str(broken.with_suffix(".py"))]
    assert "is True" in subprocess.run(replay, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("profile", ["dev", "ci", "nightly"])
def test_a_profile_is_loaded(run, profile: str):
    from hypothesis import settings

    before = settings.get_current_profile_name()
    try:
        result = run(
            f"""
from hypothesis import settings


def test_profile():
    assert settings.get_current_profile_name() == "lipcert-{profile}"
""",
            f"--lipcert-profile={profile}",
        )
    finally:
        settings.load_profile(before)
    result.assert_outcomes(passed=1)


@pytest.mark.slow
def test_verdicts_are_counted_over_processes(run):
    pytest.importorskip("xdist")
    result = run(
        """
@pytest.mark.lipschitz(bound=1.0, input_shape=(2,))
@pytest.mark.parametrize("factor", [0.5, 0.9, 2.0])
def test_each(factor):
    return scaled(factor)
""",
        *("-p", "xdist.plugin", "-n", "1", "-o", f"pythonpath={ROOT}"),
        subprocess=True,
    )
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*lipcert: 2 proved, 1 refuted, 0 unknown*"])


def test_pytest_starts_without_importing_anything_heavy(tmp_path: Path):
    (tmp_path / "test_light.py").write_text(
        "import sys\n\ndef test_light():\n"
        "    assert '_lipcert_pytestplugin' in sys.modules\n"
        "    assert not {'torch', 'lipcert', 'hypothesis', 'numpy'} & sys.modules.keys()\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "_lipcert_pytestplugin", "-q", "--rootdir=.", str(tmp_path)]
    environment = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
