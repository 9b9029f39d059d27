"""Models that estimators of linear layers alone get wrong without a word: bounded here, or refused with the path."""

import pytest
import torch
from torch import Tensor, nn

from benchmarks.recipes import contractive, norm_of_product, positive
from benchmarks.silent_mistakes import MODELS, linear
from benchmarks.third_party import FOLDER, networks
from lipcert import Budget, certify, check, trace, witness
from lipcert.certifiers import LipSDP, Product
from lipcert.errors import NotLipschitz, UnsupportedOperation

QUICK = Budget(points=6, power_steps=10, ascent_steps=20)


@pytest.mark.parametrize("name", MODELS)
def test_every_bound_is_above_the_exact_constant_and_the_semidefinite_one_is_close(name: str):
    case = MODELS[name]
    graph = trace(case.build(), case.shape)
    product, found = Product()(graph), LipSDP()(graph)
    assert case.exact <= found.bound <= product.bound
    assert found.bound <= case.exact * (1 + 1e-5)
    assert check(found, graph).bound == found.bound


@pytest.mark.parametrize("name", MODELS)
def test_the_constants_are_what_inputs_reach(name: str):
    """So that a constant that is written down too low is seen as well."""
    case = MODELS[name]
    ratio = witness(case.build(), case.shape, budget=QUICK).ratio
    assert case.exact * (1 - 5e-3) <= ratio <= case.exact * (1 + 1e-9)


class Deep(nn.Module):
    """Holds an operation two modules down."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.stages = nn.ModuleList([nn.Sequential(linear([[1.0]]), inner)])

    def forward(self, x: Tensor) -> Tensor:
        return self.stages[0](x)


class Square(nn.Module):
    """No finite constant."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x


class Foreign(nn.Module):
    """An operation without a rule."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)


@pytest.mark.parametrize(
    ("inner", "error"),
    [
        (Square(), NotLipschitz),
        (Foreign(), UnsupportedOperation),
        (nn.BatchNorm1d(1).double(), UnsupportedOperation),
        (nn.Dropout(0.5), UnsupportedOperation),
    ],
    ids=["square", "foreign", "batch norm in training", "dropout in training"],
)
def test_what_is_not_covered_is_refused_with_the_path(inner: nn.Module, error: type[UnsupportedOperation]):
    model = Deep(inner).train()
    with pytest.raises(error) as caught:
        certify(model, (1,), by=LipSDP())
    assert caught.value.path.startswith("stages.0.1")
    assert caught.value.path in str(caught.value)


# ------------------------------------------------------------------------------------------------ recipes


@pytest.mark.skipif(not FOLDER.exists(), reason=f"no third-party networks in {FOLDER.name}")
def test_the_recipe_of_positive_nets_reproduces_the_published_file():
    published = next(net for net in networks() if net.name == "eclipse_lyr2n80test1").build()
    for layer, W in zip(published[::2], positive(2, 80), strict=True):
        assert torch.equal(layer.weight, torch.from_numpy(W))


def test_the_recipes_reproduce_published_constants():
    # certified exact values of depth 2, 20 and 100, to the digits that are stated
    for layers, exact in ((2, 0.7372569812576832), (20, 3.0769530005770767), (100, 0.0300171552617492)):
        assert norm_of_product(positive(layers, 80)) == pytest.approx(exact, rel=1e-14)
    product = torch.stack([torch.linalg.matrix_norm(torch.from_numpy(W), 2) for W in contractive(20, 20)]).prod()
    assert float(product) == pytest.approx(0.63541, abs=5e-6)
