"""Freezing copies the evaluation function exactly and leaves the user's model as it was."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrizations as P
from torch.nn.utils import parametrize, spectral_norm, weight_norm

from lipcert.errors import InvalidInput, NotFinite, UnsupportedOperation
from lipcert.freeze import freeze, materialise
from tests.cases import NETWORKS, Case

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")


def settled_norms() -> nn.Module:
    model = nn.Sequential(
        P.spectral_norm(nn.Linear(5, 5)), P.weight_norm(nn.Linear(5, 5)), P.orthogonal(nn.Linear(5, 5))
    )
    return model.eval()


def old_norms() -> nn.Module:
    model = nn.Sequential(spectral_norm(nn.Linear(5, 5)), weight_norm(nn.Linear(5, 5)))
    model(torch.ones(2, 5))
    return model.eval()


def snapshot(model: nn.Module) -> Any:
    """Everything a user could see of a model, bit for bit, and every global random state."""
    tensors = [
        (name, id(t), t.clone(), t.requires_grad, t.dtype) for name, t in model.state_dict(keep_vars=True).items()
    ]
    modules = [
        (path, type(m), m.training, sorted(vars(m)), len(m._forward_pre_hooks)) for path, m in model.named_modules()
    ]
    return tensors, modules, torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()


def same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


MODELS = {name: case.model for name, case in NETWORKS.items()} | {"norms": settled_norms, "old norms": old_norms}


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_freezing_changes_nothing_in_the_model(build: Any):
    model = build()
    before = snapshot(model)
    freeze(model)
    assert same(before, snapshot(model))


@pytest.mark.parametrize("case", NETWORKS.values(), ids=NETWORKS)
def test_a_frozen_model_computes_the_same_function(case: Case):
    model, frozen = case.model(), freeze(case.model())
    x = torch.randn(3, *case.input_shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.allclose(frozen(x), model.double()(x), rtol=1e-5, atol=1e-6)  # spectral norms: other weights in double


def test_weights_are_those_the_model_uses_materialised_in_its_own_dtype():
    for build in (settled_norms, old_norms):
        model = build()
        model(torch.ones(1, 5))
        for layer, kept in zip(model, freeze(model), strict=True):
            assert torch.equal(layer.weight.double(), kept.weight)
            assert type(kept) is nn.Linear
            assert not kept._forward_pre_hooks


def test_materialising_after_promotion_would_give_other_weights():
    layer = P.spectral_norm(nn.Linear(64, 64)).eval()
    kept = freeze(layer).weight
    assert not torch.equal(layer.double().weight, kept)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_floating_format_is_embedded_exactly(dtype: torch.dtype):
    layer = nn.Linear(7, 7, dtype=dtype)
    frozen = freeze(layer)
    assert frozen.weight.dtype == torch.float64
    assert torch.equal(frozen.weight.to(dtype), layer.weight)


def test_a_frozen_model_has_no_gradients_and_shares_no_memory():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval()
    frozen = freeze(model)
    assert not any(p.requires_grad for p in frozen.parameters())
    model[0].weight.data.zero_()
    assert bool(frozen[0].weight.any())


def test_shared_weights_stay_shared_and_constants_in_containers_are_promoted():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    model.constants = [torch.ones(2), {"a": torch.ones(2)}]  # type: ignore[assignment]
    frozen = freeze(model)
    assert frozen[1].weight is frozen[0].weight
    assert frozen.constants[0].dtype == frozen.constants[1]["a"].dtype == torch.float64  # type: ignore[index]
    assert model.constants[0].dtype == torch.float32  # type: ignore[index]


def test_plain_modules_in_training_mode_are_accepted():
    freeze(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Dropout(0.0), P.orthogonal(nn.Linear(3, 3))).train())


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm1d(3),
        nn.Dropout(0.5),
        nn.AlphaDropout(0.1),
        nn.RReLU(),
        nn.InstanceNorm1d(3, track_running_stats=True),
        P.spectral_norm(nn.Linear(64, 64)),
        spectral_norm(nn.Linear(3, 3)),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_modules_that_change_with_the_mode_are_refused_by_path(layer: nn.Module):
    with pytest.raises(UnsupportedOperation, match=r"`inner\.1[.`].*model\.eval\(\)"):
        freeze(nn.ModuleDict({"inner": nn.Sequential(nn.ReLU(), layer.train())}))
    freeze(layer.eval())


@pytest.mark.parametrize(
    "register",
    [
        torch_module.register_module_forward_hook,
        torch_module.register_module_forward_pre_hook,
        torch_module.register_module_full_backward_hook,
    ],
)
def test_hooks_on_all_modules_are_refused(register: Any):
    handle = register(lambda *args: None)
    try:
        with pytest.raises(UnsupportedOperation, match="hook is registered on all modules"):
            freeze(nn.ReLU())
    finally:
        handle.remove()
    freeze(nn.ReLU())


def test_weights_that_are_not_finite_are_named():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval()
    model[1].running_var[0] = torch.inf
    with pytest.raises(NotFinite, match=r"`1\.running_var` has 1 of 2"):
        freeze(model)


def test_a_parametrization_that_makes_strange_weights_is_refused():
    class Complex(nn.Module):
        def forward(self, w: Tensor) -> Tensor:
            return w.to(torch.complex64)

    layer = nn.Linear(2, 2)
    parametrize.register_parametrization(layer, "weight", Complex(), unsafe=True)
    with pytest.raises(UnsupportedOperation, match=r"`0\.weight`, as parametrized, is complex"):
        freeze(nn.Sequential(layer).eval())


def test_only_modules_are_frozen():
    with pytest.raises(InvalidInput, match="wrap functions in a module"):
        freeze(torch.relu)  # type: ignore[arg-type]


def test_materialising_keeps_the_dtypes():
    assert materialise(nn.Linear(2, 2).bfloat16()).weight.dtype == torch.bfloat16
