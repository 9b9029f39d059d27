"""The examples run, and say what they claim to say."""

import json

import pytest
import torch
from safetensors.torch import load_file

from examples import quickstart
from lipcert.check import verify_files


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return quickstart.main(steps=40, seed=0, out=out), out


def test_the_quickstart_refutes_torchs_claim_and_proves_ours(told):
    found, _ = told
    torchs, ours = found["torch"], found["lipcert"]
    assert torchs["verdict"] == "REFUTED"
    assert 5.0 < torchs["distance"] <= torchs["bound"]
    assert 5.0 < torchs["witness"] <= torchs["bound"]
    assert ours["verdict"] == "PROVED"
    assert 0.5 < ours["distance"] <= ours["bound"] <= 1.0
    assert 0.5 < ours["witness"] <= ours["bound"]


def test_the_quickstart_leaves_certificates_weights_pairs_and_plots(told):
    found, out = told
    for name, row in found.items():
        accepted = verify_files(str(out / f"{name}.json"), str(out / f"{name}.safetensors"))
        assert accepted.bound == row["bound"] == float.fromhex(json.loads((out / f"{name}.json").read_text())["bound"])
        pair = load_file(out / f"{name}.pair.safetensors")
        assert pair["x"].shape == pair["y"].shape == quickstart.SHAPE
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_pair_of_the_quickstart_refutes_the_claim_about_the_stored_weights(told):
    """The pair, put through a plain convolutional network in float64 that has nothing to do with lipcert."""
    _, out = told
    weights = load_file(out / "torch.safetensors")
    pair = load_file(out / "torch.pair.safetensors")
    z = torch.stack([pair["x"], pair["y"]])
    for layer in range(0, 8, 2):
        kernel, bias = weights[f"{layer}.weight"].double(), weights[f"{layer}.bias"].double().flatten()
        z = torch.nn.functional.conv2d(z, kernel, bias, stride=2 if layer == 6 else 1, padding=1)
        a, b = z.chunk(2, dim=1)
        z = torch.cat([torch.maximum(a, b), torch.minimum(a, b)], dim=1)
    x, y = z.flatten(1) @ weights["9.weight"].double().T
    assert abs(x - y) > 5 * (pair["x"] - pair["y"]).norm()


def test_the_two_distributions_are_a_translation_of_length_one_apart():
    assert quickstart.M.norm().item() == 1.0


@pytest.mark.slow
def test_the_quickstart_is_deterministic(told, tmp_path):
    found, out = told
    again = quickstart.main(steps=40, seed=0, out=tmp_path)
    for name, row in found.items():
        assert {**again[name], "seconds": 0} == {**row, "seconds": 0}
        assert (out / f"{name}.json").read_bytes() == (tmp_path / f"{name}.json").read_bytes()
