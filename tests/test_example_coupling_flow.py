"""The coupling flow: refused everywhere, bounded on the box from both sides."""

import pytest
import torch

from examples import coupling_flow


@pytest.fixture(scope="module")
def told():
    return coupling_flow.main(steps=20)


def test_the_whole_space_is_refused_with_the_reason(told):
    assert "exp" in told["reason"]
    assert "domain" in told["reason"]


def test_what_is_sampled_lies_within_what_is_proved(told):
    for _, low, least, most, high in told["rows"]:
        assert 0.0 < low <= least <= most <= high
    assert told["round trip"] < 1e-9


def test_difference_quotients_do_too(told):
    flow = torch.nn.Sequential(*coupling_flow.trained(coupling_flow.BLOCKS, 20, 0))
    x, y = coupling_flow.BOX.sample(2000, (2,), torch.Generator().manual_seed(7)).chunk(2)
    with torch.no_grad():
        quotients = (flow(x) - flow(y)).norm(dim=1) / (x - y).norm(dim=1)
    assert told["low"] <= quotients.min()
    assert quotients.max() <= told["high"]


def test_jacobians_grow_without_end(told):
    near, far, further = told["growth"]
    assert near < far < further
    assert further > 3 * near


@pytest.mark.slow
def test_at_full_length(tmp_path):
    told = coupling_flow.main(out=tmp_path)
    assert told["low"] <= told["sampled"][0] <= told["sampled"][1] <= told["high"]
    assert (tmp_path / "coupling_flow.png").exists()
