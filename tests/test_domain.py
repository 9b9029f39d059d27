"""Domains: samples and projections lie in them, membership is exact, nothing empty is accepted."""

import math

import pytest
import torch

from lipcert.domain import Box, Domain, L2Ball, WholeSpace
from lipcert.errors import InvalidInput

DOMAINS: dict[str, Domain] = {
    "everything": WholeSpace(),
    "unit box": Box(0.0, 1.0),
    "box per entry": Box(torch.tensor([-1.0, 0.1, 5.0]), torch.tensor([1.0, 0.1, 6.0])),
    "ball": L2Ball(0.0, 0.3),
    "ball around a point": L2Ball(torch.tensor([1.0, 2.0, 1e6]), 0.1),
    "a point": L2Ball(torch.tensor([0.1, 0.2, 0.3]), 0.0),
}


@pytest.mark.parametrize("domain", DOMAINS.values(), ids=DOMAINS)
def test_samples_and_projections_lie_in_the_domain(domain: Domain):
    generator = torch.Generator().manual_seed(0)
    inside = domain.sample(50, (3,), generator)
    outside = domain.project(100 * torch.randn(50, 3, generator=generator, dtype=torch.float64))
    assert all(domain.contains(x) for x in (*inside, *outside))
    assert isinstance(domain, Domain)


@pytest.mark.parametrize("domain", DOMAINS.values(), ids=DOMAINS)
def test_what_is_inside_stays_where_it_is(domain: Domain):
    inside = domain.sample(50, (3,), torch.Generator().manual_seed(1))
    assert torch.allclose(domain.project(inside), inside, rtol=1e-11, atol=0)


def test_the_edge_of_a_ball_is_decided_without_rounding():
    # 3 and 4 are 5 apart; the next float after 4 is outside by less than float64 can see in a square.
    ball = L2Ball(0.0, 5.0)
    assert ball.contains(torch.tensor([3.0, 4.0], dtype=torch.float64))
    assert not ball.contains(torch.tensor([3.0, math.nextafter(4.0, 5.0)], dtype=torch.float64))


@pytest.mark.parametrize("domain", DOMAINS.values(), ids=DOMAINS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_and_infinity_are_nowhere(domain: Domain, value: float):
    assert not domain.contains(torch.tensor([0.5, 0.1, value], dtype=torch.float64))


@pytest.mark.parametrize(
    ("kind", "first", "second"),
    [
        (Box, 1.0, 0.0),
        (Box, 0.0, math.inf),
        (Box, math.nan, 1.0),
        (L2Ball, 0.0, -1.0),
        (L2Ball, 0.0, math.nan),
        (L2Ball, math.inf, 1.0),
    ],
)
def test_what_is_no_domain_is_refused(kind: type, first: float, second: float):
    with pytest.raises(InvalidInput):
        kind(first, second)
