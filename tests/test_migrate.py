"""Models with torch's spectral norms, old and new, and their checkpoints, under claims that hold."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils import spectral_norm as hooked

from lipcert.errors import InvalidInput
from lipcert.parametrizations import Everywhere, migrate, spectral_norm
from lipcert.parametrizations.orthogonal import Orthogonal
from lipcert.parametrizations.spectral import SpectralNorm
from tests.parametrized import operator_norm

by_torch = pytest.mark.parametrize("torchs", [hooked, parametrizations.spectral_norm], ids=["old", "new"])


def critic(wrap) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        convs = nn.Conv2d(1, 3, 3, stride=2, padding=1), nn.ConvTranspose2d(3, 2, 2)
        layers = nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.Flatten(), nn.Dropout(0.5), nn.Linear(50, 3))
        for index in (0, 2, 5):  # all values are drawn before vectors of power iteration are
            layers[index] = wrap(layers[index])
        return layers


def images(seed: int = 0) -> Tensor:
    return torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def claims(model: nn.Module) -> list[SpectralNorm]:
    return [module for module in model.modules() if isinstance(module, SpectralNorm)]


@by_torch
def test_every_layer_is_migrated_and_its_claim_is_true(torchs):
    model = critic(torchs)
    model(images())
    assert migrate(model, images()) is model
    assert len(claims(model)) == 3
    assert not any(module._forward_pre_hooks for module in model.modules())
    for layer, shape in ((model[0], (1, 8, 8)), (model[2], (3, 4, 4)), (model[5], (50,))):
        assert 0.9999 <= operator_norm(layer.eval(), shape) <= 1.0


@by_torch
def test_parameters_stay_the_same_objects_and_values(torchs):
    model = critic(torchs)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    before = {id(parameter): parameter.clone() for parameter in model.parameters()}
    migrate(model)
    after = {id(parameter): parameter for parameter in model.parameters()}
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    original = model[5].parametrizations.weight.original
    model(images()).sum().backward()
    optimiser.step()
    assert not torch.equal(original, before[id(original)])


@by_torch
def test_a_migrated_model_is_the_model_made_with_ours(torchs):
    migrated = migrate(critic(torchs), images()).eval()
    sizes = iter([(8, 8), (4, 4), None])
    ours = critic(lambda layer: spectral_norm(layer, input_size=next(sizes))).eval()
    torch.testing.assert_close(migrated(images()), ours(images()), rtol=1e-5, atol=1e-6)


def test_nothing_random_moves_and_modes_stay():
    model = critic(hooked).train()
    model[4].eval()
    state = torch.get_rng_state()
    migrate(model, images(), bound=2.0, level=Everywhere())
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model] == [True, True, True, True, False, True]
    assert all(claim.bound == 2.0 and claim.everywhere for claim in claims(model))


def test_a_layer_applied_at_two_sizes_is_claimed_at_every_size():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = hooked(nn.Conv1d(1, 1, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.conv(x))

    model = migrate(Twice(), torch.zeros(1, 1, 9))
    assert claims(model)[0].recipe.operator.any_size


def test_cells_are_migrated_tensor_by_tensor():
    cell = parametrizations.spectral_norm(parametrizations.spectral_norm(nn.LSTMCell(3, 2), "weight_ih"), "weight_hh")
    migrate(cell)
    assert len(claims(cell)) == 2
    for gate in cell.eval().weight_hh.split(2):
        assert torch.linalg.matrix_norm(gate.double(), 2) <= 1.0


def test_orthogonal_linear_layers_keep_their_weight():
    layer = parametrizations.orthogonal(nn.Linear(4, 4))
    weight = layer.weight.detach().clone()
    migrate(layer)
    assert isinstance(layer.parametrizations.weight[0], Orthogonal)
    torch.testing.assert_close(layer.weight, weight, rtol=0.0, atol=2e-6)


def test_what_cannot_be_migrated_is_named_and_nothing_changes():
    stacked = parametrizations.spectral_norm(nn.Linear(2, 2))
    parametrize.register_parametrization(stacked, "weight", nn.Identity())
    model = nn.ModuleDict(
        {
            "norm": parametrizations.spectral_norm(nn.Linear(2, 2)),
            "conv": parametrizations.orthogonal(nn.Conv2d(2, 2, 3)),
            "stacked": stacked,
            "odd": hooked(nn.PReLU(4), dim=0),
        }
    )
    before = [type(module) for module in model.modules()]
    with pytest.raises(InvalidInput, match=r"(?s)conv\.weight.*stacked\.weight.*odd\.weight"):
        migrate(model)
    assert [type(module) for module in model.modules()] == before
    assert any(module._forward_pre_hooks for module in model.modules())


def test_a_model_without_any_is_refused():
    with pytest.raises(InvalidInput, match="nothing to migrate"):
        migrate(nn.Linear(2, 2))


@by_torch
@pytest.mark.parametrize("strict", [True, False])
def test_checkpoints_of_torchs_are_read_into_ours(torchs, strict: bool):
    source = critic(torchs)
    source(images())
    ours = critic(lambda layer: spectral_norm(layer))
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.zero_()
    ours.load_state_dict(source.state_dict(), strict=strict)
    migrated = migrate(source)
    for mine, theirs in zip(ours.parameters(), migrated.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    torch.testing.assert_close(ours.eval()(images()), migrated.eval()(images()), rtol=1e-5, atol=1e-6)
