"""Witnesses are lower bounds, reach known constants, and repeat under a given generator."""

import pytest
import torch
from torch import nn

from lipcert import L1, L1_LINF, L2, L2_LINF, LINF, Budget, Norms, Witness, witness
from lipcert.errors import InvalidInput
from tests.cases import NETWORKS

NORMS = {str(norms): norms for norms in (L2, L1, LINF, L1_LINF, L2_LINF)}


def quotient(model: nn.Module, found: Witness) -> float:
    with torch.no_grad():
        x, y = found.x[None], found.y[None]
        change = (model.double()(x) - model.double()(y)).flatten()
    p, q = found.norms.p, found.norms.q
    return float(torch.linalg.vector_norm(change, q) / torch.linalg.vector_norm((x - y).flatten(), p))


def linear(rows: list[list[float]]) -> nn.Linear:
    layer = nn.Linear(len(rows[0]), len(rows), bias=False)
    layer.weight.data = torch.tensor(rows)
    return layer


@pytest.mark.parametrize(
    ("norms", "exact"), [(L2, 5.0), (L1, 7.0), (LINF, 9.0), (L1_LINF, 5.0), (L2_LINF, 41**0.5)], ids=str
)
def test_the_norm_of_a_linear_map_is_reached_from_below(norms: Norms, exact: float):
    rows = [[3.0, 0.0], [0.0, 5.0]] if norms == L2 else [[4.0, -5.0], [1.0, 0.0], [2.0, 0.0]]
    found = witness(linear(rows), (2,), norms)
    assert found.ratio <= exact
    assert found.ratio == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("case", NETWORKS.values(), ids=NETWORKS)
def test_the_ratio_is_that_of_the_pair_and_not_above_a_known_constant(case):
    model = case.model().eval()
    found = witness(model, case.input_shape, budget=Budget(points=3, power_steps=5, ascent_steps=5))
    if found.ratio > 0:
        assert found.ratio <= quotient(model, found)
        assert found.ratio == pytest.approx(quotient(model, found), rel=1e-6)
    exact = case.exact.get(L2)
    assert exact is None or found.ratio <= exact * (1 + 1e-12)


def test_the_same_generator_state_gives_the_same_witness_and_the_global_one_is_left_alone():
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2))
    state = torch.get_rng_state()
    first = witness(model, (4,), generator=torch.Generator().manual_seed(3))
    second = witness(model, (4,), generator=torch.Generator().manual_seed(3))
    assert first.ratio == second.ratio
    assert torch.equal(first.x, second.x)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_constant_function_has_the_witness_zero():
    assert witness(linear([[0.0, 0.0]]), (2,)).ratio == 0.0


def test_ascent_finds_what_a_local_slope_at_the_origin_hides():
    class Far(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x - 30.0)

    assert witness(Far(), (1,)).ratio == pytest.approx(1.0, rel=1e-6)


def test_an_empty_dimension_is_refused():
    with pytest.raises(InvalidInput, match="empty dimension"):
        witness(nn.ReLU(), (0,))
