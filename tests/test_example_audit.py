"""Audits of critics: no claim is proved and refuted, and the verdicts on others' critics are those of their methods."""

import pytest

from benchmarks.third_party import FOLDER
from examples import audit

BENCHMARK = FOLDER / "gan" / "w1bench" / "critics_dim2"


def require_consistent(found):
    for row in found.values():
        assert row["seen"] <= row["bound"]
        assert row["verdict"] != "PROVED" or row["bound"] <= row["claim"]
        assert row["verdict"] != "REFUTED" or row["seen"] > row["claim"]
        assert row["verdict"] != "NO CLAIM" or row["claim"] is None


def test_an_audit_is_consistent_after_any_training(tmp_path, monkeypatch):
    few = ("weight clipping", "lipcert orthogonal, GroupSort")
    monkeypatch.setattr(audit, "METHODS", {name: audit.METHODS[name] for name in few})
    found = audit.main(steps=3, seed=0, out=tmp_path, seconds=0.1)
    require_consistent(found)
    assert [row["verdict"] for row in found.values()] == ["PROVED", "PROVED"]
    assert (tmp_path / "audit.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_penalised_critics_break_the_claim_and_constrained_ones_keep_it():
    found = audit.main(seconds=5.0)
    require_consistent(found)
    for name in ("two-sided gradient penalty", "one-sided gradient penalty"):
        assert found[name]["verdict"] == "REFUTED"
        assert 0.9 < found[name]["mean"] < found[name]["seen"]
    for name in ("weight clipping", "lipcert spectral_norm", "lipcert orthogonal, GroupSort"):
        assert found[name]["verdict"] == "PROVED"


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(not BENCHMARK.exists(), reason="the critics of the Wasserstein-1 benchmark are not here")
def test_critics_of_the_wasserstein_1_benchmark_get_the_verdicts_of_their_methods():
    found = audit.main(critics=BENCHMARK, seconds=5.0)
    require_consistent(found)
    for name, row in found.items():
        method = name.rpartition("_")[2]
        if method in ("sn-gan", "sort-out", "wgan"):
            assert row["verdict"] == "PROVED", name
        elif method in ("wgan-gp", "wgan-lp", "wgan-qp"):
            assert row["verdict"] == "REFUTED", name
        else:
            assert row["verdict"] == "NO CLAIM", name


def test_a_folder_without_critics_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=tmp_path.name):
        audit.collected(tmp_path)
