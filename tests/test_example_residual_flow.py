"""The residual flow: what is certified contracts, what is promised of its inverse is kept, a stale model is caught."""

from typing import Any

import pytest
import torch
from torch import nn

from examples import residual_flow
from lipcert.errors import LipschitzViolation


@pytest.fixture(scope="module")
def told() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(residual_flow, "BLOCKS", 2)
        patch.setattr(residual_flow, "WIDTH", 8)
        patch.setattr(residual_flow, "LOGGED", 2)
        return residual_flow.main(steps=4, seed=0)


def require_kept(found: dict[str, Any]) -> None:
    """What is a theorem, however long the training."""
    ours = found["lipcert"]
    assert ours["layer violations"] == ours["uncertified blocks"] == 0
    assert ours["worst block"] < residual_flow.CLAIM
    assert ours["worst layer"] <= 1 + 1e-12
    assert ours["measured"] <= ours["promised"] <= residual_flow.ERROR
    assert ours["claim"].lower >= (1 - residual_flow.CLAIM) ** len(ours["claim"].steps)
    assert ours["stale"] == "passes"


def test_the_certified_flow_contracts_at_every_logged_step_and_inverts_as_promised(told):
    require_kept(told)
    assert len(residual_flow.plot(told).axes) == 3


def test_one_iteration_per_step_leaves_layers_above_what_they_claim(told):
    assert told["one iteration"]["layer violations"] > 0
    assert told["one iteration"]["worst layer"] > 1 + 1e-3


def test_the_check_fails_a_model_whose_weights_were_loaded_without_u_and_v():
    torch.manual_seed(0)
    trained = nn.Sequential(residual_flow.Residual(residual_flow.package_norm))
    with torch.no_grad():
        for layer in residual_flow.layers(trained):
            original = layer.parametrizations.weight.original
            original.mul_(5)  # as training does: only the quotient matters
            for _ in range(100):
                layer.parametrizations.weight[0].update(original)
    residual_flow.require_contraction(trained)
    stale = residual_flow.reloaded(trained, residual_flow.package_norm)
    with pytest.raises(LipschitzViolation, match="not proved to keep"):
        residual_flow.require_contraction(stale)


def test_the_density_integrates_to_one():
    torch.manual_seed(0)
    flow = nn.Sequential(*(residual_flow.Residual(residual_flow.certified_norm) for _ in range(2))).eval()
    axis = torch.linspace(-7, 7, 141)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        total = residual_flow.density(flow, grid).exp().sum() * (axis[1] - axis[0]) ** 2
    assert abs(float(total) - 1) < 1e-3


@pytest.mark.slow
def test_trained_at_length_claims_are_kept_by_one_flow_only(tmp_path):
    found = residual_flow.main(out=tmp_path)
    assert (tmp_path / "residual_flow.png").read_bytes().startswith(b"\x89PNG")
    require_kept(found)
    theirs, ours = found["one iteration"], found["lipcert"]
    assert theirs["layer violations"] > theirs["layers"] // 2
    assert theirs["worst layer"] > 1.05
    assert theirs["worst block"] > residual_flow.CLAIM  # by the product, which is no refutation
    assert theirs["tight"] < theirs["worst block"]
    assert ours["nats"] > -2.3
