"""The bracket of an autoencoder holds the distance that it is about."""

import pytest

from examples import wae
from lipcert.certifiers import Product


def require_consistent(found):
    for row in found.values():
        assert 0.0 <= row["lower"] <= row["distance"] <= row["upper"]
        assert row["latent lower"] <= row["latent upper"]
        assert row["upper"] == pytest.approx(row["reconstruction"] + row["gamma"] * row["latent upper"])


def test_the_bracket_holds_the_distance_after_any_training(tmp_path, monkeypatch):
    monkeypatch.setattr(wae, "POINTS", 60)
    monkeypatch.setattr(wae, "WIDTH", 16)
    monkeypatch.setattr(wae, "Auto", lambda seconds: Product())  # whose time does not stop a proof
    found = wae.main(steps=3, seed=0, out=tmp_path, seconds=0.2)
    require_consistent(found)
    assert found["certified"]["gamma"] <= wae.DECODER
    assert (tmp_path / "wae.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_certified_decoder_has_the_narrower_bracket():
    found = wae.main()
    require_consistent(found)
    assert found["free"]["width"] >= 5.0 * found["certified"]["width"]
    assert found["certified"]["upper"] <= 1.5 * found["certified"]["distance"]
    assert found["certified"]["lower"] >= 0.5 * found["certified"]["distance"]
