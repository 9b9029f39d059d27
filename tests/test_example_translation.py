"""Eight critics of a translation of length 1: no certified distance is above it, whatever was trained."""

import pytest
import torch

from examples import translation
from lipcert.transport import empirical_w1


def require_consistent(found):
    """What holds after any number of steps."""
    for row in found.values():
        assert 0.0 <= row["certified"] <= translation.TRUTH
        assert row["reported"] <= row["bound"] * translation.TRUTH
        if row["verdict"] == "PROVED":
            assert row["factor"] <= 1.0
            assert row["bound"] <= row["claim"]
        if row["verdict"] == "REFUTED":
            assert row["claim"] < row["seen"] <= row["bound"]


QUICK = [name for name in translation.RECIPES if "MLP" in name or "R1" in name or "clipping" in name]


def test_certified_distances_are_never_above_the_truth(tmp_path, monkeypatch):
    monkeypatch.setattr(translation, "P", translation.P[:64])
    monkeypatch.setattr(translation, "RECIPES", {name: translation.RECIPES[name] for name in QUICK})
    found = translation.main(steps=2, seed=0, out=tmp_path, seconds=0.1)
    require_consistent(found)
    assert (tmp_path / "translation.png").read_bytes().startswith(b"\x89PNG")


def test_the_distance_is_the_length_of_the_translation():
    assert translation.M.norm().item() == translation.TRUTH
    few = translation.P[:40]
    found = empirical_w1(few + translation.M, few)
    assert found.lower == pytest.approx(1.0, abs=1e-9)
    assert found.upper == pytest.approx(1.0, abs=1e-9)
    assert torch.equal((translation.P + translation.M) - translation.P, translation.M.expand_as(translation.P))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_story_holds_after_training():
    found = translation.main()
    require_consistent(found)
    assert len(found) == 8
    for name in ("torch spectral_norm, conv, ReLU", "torch spectral_norm, conv, LeakyReLU"):
        assert found[name]["reported"] > 15.0
        assert found[name]["factor"] > 15.0
        assert found[name]["verdict"] == "REFUTED"
    for name in ("lipcert spectral_norm, conv, MaxMin", "lipcert orthogonal, MLP, GroupSort"):
        assert found[name]["verdict"] == "PROVED"
        assert 0.85 <= found[name]["certified"]
    assert max(row["certified"] for row in found.values()) >= 0.95
