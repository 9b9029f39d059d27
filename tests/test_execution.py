"""The executed function: float32 stays within its allowance, a false claim or another arithmetic does not."""

import importlib
import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from lipcert import certify, trace
from lipcert.enclosure import enclosed
from lipcert.errors import ExecutionViolation, InvalidInput, UnsupportedOperation
from lipcert.falsify.execution import ARITHMETIC, execution_error, require_execution
from lipcert.nn import GroupSort, MaxMin
from lipcert.parametrizations import orthogonal


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 40), nn.LeakyReLU(0.1), nn.Linear(40, 3))


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 4), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.first(x) + torch.relu(self.second(x)), x], 1)


NETS = {
    "mlp": (mlp, (20,)),
    "orthogonal": (
        lambda: nn.Sequential(orthogonal(nn.Linear(16, 16)), MaxMin(), orthogonal(nn.Linear(16, 16))),
        (16,),
    ),
    "convolutions": (
        lambda: nn.Sequential(
            *(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, stride=2, padding=1)),
            *(nn.ConvTranspose2d(4, 2, 4, 2, 1), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 4), GroupSort(2)),
        ),
        (2, 8, 8),
    ),
    "branches": (Branches, (5,)),
}


def built(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    build, shape = NETS[name]
    torch.manual_seed(3)
    return build().eval(), shape


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("name", NETS)
def test_what_runs_is_as_far_from_the_real_function_as_its_bound_says_at_most(name: str, scale: float):
    model, shape = built(name)
    graph = trace(model, shape)
    x = scale * torch.randn(3, *shape)
    ball = enclosed(graph, x.double())
    allowed = execution_error(graph, x.double(), ARITHMETIC[torch.float32])
    with torch.no_grad():
        ran = model(x).double()
    for k in range(3):
        seen = [Fraction(v) for v in ran[k].flatten().tolist()]
        real = [Fraction(int(v)) / Fraction(2) ** ball.bits for v in ball.mid[k].ravel()]
        away = math.sqrt(float(sum((a - b) ** 2 for a, b in zip(seen, real, strict=True))))
        assert away <= float(allowed[k])
        assert float(allowed[k]) <= 1e-2 * scale + 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("distance", [10.0, 1e-2, 1e-5, 1e-7])
@pytest.mark.parametrize("name", NETS)
def test_a_true_claim_is_kept_at_every_distance(name: str, distance: float, dtype: torch.dtype):
    model, shape = built(name)
    model = model.to(dtype)
    x = torch.randn(30, *shape, dtype=dtype)
    y = x + distance * torch.randn(30, *shape, dtype=dtype)
    assert require_execution(model, x, y, certify(model, shape).bound) <= 1.0


def test_quotients_of_float32_alone_would_raise_false_alarms():
    """What the allowance is for: pairs close together move by rounding more than the claim allows."""
    model, shape = built("orthogonal")
    x = torch.randn(200, *shape)
    y = x + 1e-6 * torch.randn(200, *shape)
    with torch.no_grad():
        moved = torch.linalg.vector_norm((model(x) - model(y)).double(), dim=1)
    apart = torch.linalg.vector_norm((x - y).double(), dim=1)
    assert bool((moved > apart * (1 + 1e-5)).any())
    require_execution(model, x, y, certify(model, shape).bound)


def test_a_false_claim_and_a_coarser_arithmetic_are_violations():
    model, shape = built("mlp")
    x, y = torch.randn(20, *shape), torch.randn(20, *shape)
    bound = certify(model, shape).bound
    with pytest.raises(ExecutionViolation, match="TF32"):
        require_execution(model, x, y, bound / 100)


def test_an_arithmetic_coarser_than_its_name_is_a_violation(monkeypatch: pytest.MonkeyPatch):
    """As if float32 layers ran in bfloat16: what the model returns is rounded to 8 bits."""
    model, shape = built("orthogonal")
    bound = certify(model, shape).bound
    x = torch.randn(20, *shape)
    y = x + 1e-4 * torch.randn(20, *shape)
    require_execution(model, x, y, bound)
    real = nn.Linear.forward

    def coarse(self: nn.Linear, input: Tensor) -> Tensor:
        return real(self, input).bfloat16().to(input.dtype) if input.dtype == torch.float32 else real(self, input)

    # Tracing compares the model with its copy, so only the run itself is made coarse.
    module = importlib.import_module("lipcert.falsify.execution")
    traced = trace(model, shape)
    monkeypatch.setattr(module, "trace", lambda model, shape: traced)
    monkeypatch.setattr(nn.Linear, "forward", coarse)
    with pytest.raises(ExecutionViolation, match="autocast"):
        require_execution(model, x, y, bound)


def test_functions_whose_rounding_is_not_bounded_are_refused():
    for model in (nn.Tanh(), nn.Softmax(1), nn.BatchNorm1d(4).eval()):
        with pytest.raises(UnsupportedOperation, match="is not bounded here"):
            require_execution(model, torch.zeros(1, 4), torch.ones(1, 4), 1.0)


def test_formats_that_are_not_covered_are_refused():
    half = torch.zeros(1, 4, dtype=torch.float16)
    with pytest.raises(InvalidInput, match="float32 or float64"):
        require_execution(nn.ReLU(), half, half, 1.0)


def test_errors_are_carried_on_by_what_comes_after():
    torch.manual_seed(0)
    first, second = nn.Linear(6, 6), nn.Linear(6, 6, bias=False)
    second.weight.data = 2.0**20 * torch.eye(6)
    x = torch.randn(4, 6, dtype=torch.float32).double()

    def error(*layers: nn.Module) -> Tensor:
        return execution_error(trace(nn.Sequential(*layers), (6,)), x, ARITHMETIC[torch.float32])

    alone = error(first)
    assert bool((error(first, nn.ReLU(), second) >= 2.0**20 * alone).all())
    assert bool((error(first, nn.LeakyReLU(3.0)) >= 3.0 * alone).all())
    assert bool((error(first, nn.ReLU()) >= alone).all())
    assert bool((error(first, MaxMin()) >= alone).all())
    assert bool((error(first, nn.Unflatten(1, (1, 2, 3)), nn.AvgPool2d(1)) >= alone).all())
