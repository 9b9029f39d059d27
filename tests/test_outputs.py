"""Picked outputs and margins: exact, sharing work, and what a radius may be divided by."""

import itertools

import pytest
import torch
from torch import nn

from lipcert import L2, LINF, check, check_float64, difference, margins, select, trace, witness
from lipcert.certificate import Multipliers as Evidence
from lipcert.certifiers import Auto, LipSDP, Product
from lipcert.errors import InvalidInput
from lipcert.lmi import Multipliers, NormalForm, followed, normal_form
from lipcert.solvers import Progress, Recursion, Solution
from lipcert.solvers.solution import silent
from lipcert.witness import Budget
from tests.test_combine import pooled
from tests.test_lipsdp import chain, jacobian_norm

QUICK = Budget(points=4, power_steps=8, ascent_steps=10)


class Picked(nn.Module):
    """A linear combination of a model's outputs, in torch."""

    def __init__(self, model: nn.Module, rows: list[list[float]]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("rows", torch.tensor(rows, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(self.model(x), self.rows)


def test_picked_outputs_are_the_models():
    model = chain([3, 6, 5], 0)
    graph = trace(model, (3,))
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = model(x)
    assert torch.equal(select(graph, [4, 0, 4]).replay(x), y[:, [4, 0, 4]])
    assert torch.allclose(difference(graph, 1, 3).replay(x)[:, 0], y[:, 1] - y[:, 3], rtol=0, atol=1e-15)
    assert len({graph.digest(), select(graph, [1]).digest(), difference(graph, 1, 3).digest()}) == 3
    again = select(select(select(graph, [0]), [0]), [0])
    assert torch.equal(again.replay(x), y[:, [0]])


@pytest.mark.parametrize("norms", [L2, LINF], ids=str)
def test_bounds_of_picked_outputs_are_bracketed_and_check(norms):
    model = chain([3, 6, 5], 0)
    graph = trace(model, (3,))
    for picked, rows in (
        (select(graph, [2]), [[0.0, 0.0, 1.0, 0.0, 0.0]]),
        (difference(graph, 4, 1), [[0.0, -1.0, 0.0, 0.0, 1.0]]),
    ):
        for by in (Product(), Auto()):
            found = by(picked, norms)
            assert witness(Picked(model, rows), (3,), norms, budget=QUICK).ratio <= found.bound
            assert check(found, picked).bound == check_float64(found, picked).bound == found.bound


def test_outputs_that_are_not_there_are_refused():
    graph = trace(chain([3, 6, 5], 0), (3,))
    for wrong in ([], [5], [-1], [0, 9]):
        with pytest.raises(InvalidInput, match="outputs are 0 to 4"):
            select(graph, wrong)
    with pytest.raises(InvalidInput, match="itself is zero"):
        difference(graph, 2, 2)
    with pytest.raises(InvalidInput, match="flatten"):
        difference(trace(nn.Identity(), (2, 2)), 0, 1)
    for shape in ((2, 2), ()):
        with pytest.raises(InvalidInput, match="flatten"):
            margins(trace(nn.Identity(), shape))
    assert margins(trace(nn.Identity(), (3,)), pairs=[]).certificates == {}
    assert margins(trace(nn.Identity(), (1,))).constants.tolist() == [[0.0]]


def test_a_form_followed_by_a_map_is_the_form_of_the_longer_network():
    graph = trace(chain([3, 6, 5], 0, nn.GELU), (3,))
    whole = difference(graph, 0, 3)
    shared, direct = followed(normal_form(graph), whole.output.map), normal_form(whole)
    assert shared.output.roundings == direct.output.roundings
    for name, block in direct.output.blocks.items():
        assert torch.equal(shared.output.blocks[name], block)
        assert torch.equal(shared.output.magnitudes()[name], direct.output.magnitudes()[name])


NETS = {
    "chain": (lambda: chain([3, 7, 6, 4], 1), (3,)),
    "slopes": (lambda: chain([3, 7, 4], 1, nn.SiLU), (3,)),
    "bent at the end": (lambda: nn.Sequential(chain([3, 7, 4], 1), nn.Tanh()), (3,)),
    "pooled": (pooled, (1, 8, 8)),
    "softmax": (lambda: nn.Sequential(chain([3, 7, 4], 1), nn.Softmax(-1)), (3,)),
    "linear": (lambda: nn.Linear(3, 4).double(), (3,)),
}


@pytest.mark.parametrize(("build", "shape"), NETS.values(), ids=NETS)
def test_margins_are_what_every_pair_has_by_itself_and_check(build, shape):
    model = build()
    graph = trace(model, shape)
    found = margins(graph)
    n = graph.output.shape[0]
    assert sorted(found.certificates) == list(itertools.combinations(range(n), 2))
    for (i, j), certificate in found.certificates.items():
        whole = difference(graph, i, j)
        alone = LipSDP()(whole)
        assert certificate.bound == pytest.approx(alone.bound, rel=3e-6)
        assert type(certificate.evidence) is type(alone.evidence)
        assert certificate.bound <= Product()(whole).bound
        assert check(certificate, whole).bound == check_float64(certificate, whole).bound == certificate.bound
        assert found.constants[i, j] == found.constants[j, i] == certificate.bound
    assert torch.equal(found.constants.diagonal(), torch.zeros(n, dtype=torch.float64))
    # The constant of the whole output, which knows no pairs, gives sqrt 2 times itself for each.
    assert float(found.constants.max()) <= 2**0.5 * LipSDP()(graph).bound * (1 + 1e-5)


def test_a_layerwise_margin_is_the_products_own():
    graph = trace(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval(), (3,))
    found = margins(graph)
    for pair, certificate in found.certificates.items():
        assert certificate.bound == Product()(difference(graph, *pair)).bound


def test_margins_hold_at_jacobians():
    model = chain([3, 7, 6, 4], 5)
    found = margins(trace(model, (3,)))
    for i, j in found.certificates:
        row = [float(k == i) - float(k == j) for k in range(4)]
        assert jacobian_norm(Picked(model, [row]), 3, 0) <= found.constants[i, j]


def test_only_the_pairs_asked_for_and_by_any_certifier():
    graph = trace(chain([3, 7, 6, 4], 1), (3,))
    some = margins(graph, Product(), pairs=[(2, 0)], norms=LINF)
    assert list(some.certificates) == [(0, 2)]
    assert some.certificates[0, 2] == Product()(difference(graph, 0, 2), LINF)
    assert some.constants[0, 1] == float("inf")
    with pytest.raises(InvalidInput, match="itself is zero"):
        margins(graph, pairs=[(1, 1)])


def test_what_pairs_have_in_common_is_solved_once():
    convs = nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.MaxPool2d(2), nn.Flatten()
    model = nn.Sequential(*convs, chain([18, 9, 4], 0)).double().requires_grad_(False)
    solved: list[int] = []

    def solver(form: NormalForm, start: Multipliers | None = None, progress: Progress = silent) -> Solution:
        solved.append(form.inputs)
        return Recursion()(form)

    margins(trace(model, (1, 8, 8)), LipSDP(solver))
    assert solved == [64, *[18] * 6]


def test_evidence_of_a_margin_is_a_part_up_to_it():
    graph = trace(chain([3, 7, 6, 4], 1), (3,))
    certificate = margins(graph, pairs=[(0, 1)]).certificates[0, 1]
    assert isinstance(certificate.evidence, Evidence)
    assert certificate.evidence.blocks[0].target == difference(graph, 0, 1).output.name
