"""Functions whose Lipschitz constant is known and tight: claims of it are true, claims below it are false.

A constant comes from arithmetic (a derivative, an overlap count), from the singular values of a linear map written out
as a matrix, or from a case of another table that knows it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lipcert.nn as L
from lipcert.norms import L1, L1_LINF, L2, LINF, Norms
from tests.cases import NETWORKS, OPS, PARAMETRIZED
from tests.operations import ARITHMETIC, CONVOLUTIONS, LINEAR
from tests.parametrized import Parametrized, operator_norm

SVD = 1e-10
"""What a norm from singular values may be off, relatively."""


@dataclass(frozen=True)
class Animal:
    """A function and its constant.

    Attributes:
        model: Builds it.
        shape: Of one input.
        known: At least the smallest constant, and at most a thousandth above; or what computes it.
        norms: In which it is that.
    """

    model: Callable[[], nn.Module]
    shape: tuple[int, ...]
    known: float | Callable[[], float]
    norms: Norms = L2

    @cached_property
    def constant(self) -> float:
        """The constant."""
        return self.known if isinstance(self.known, float) else self.known()


class Function(nn.Module):
    """A function of a batch."""

    def __init__(self, call: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)


class Weighted(nn.Sequential):
    """Layers whose weights are all at least zero."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers)
        for k, parameter in enumerate(self.parameters()):
            drawn = torch.Generator().manual_seed(k)
            parameter.data = torch.rand(parameter.shape, generator=drawn)


def linear(*rows: list[float]) -> nn.Linear:
    """A linear layer with the given rows."""
    layer = nn.Linear(len(rows[0]), len(rows), bias=False)
    layer.weight.data = torch.tensor(rows)
    return layer


def filled(layer: nn.Module, value: float) -> nn.Module:
    """A layer without bias whose weights are all the same."""
    return layer.apply(lambda m: nn.init.constant_(m.weight, value) if isinstance(m, nn.Conv2d) else None)


def written_out(model: nn.Module, shape: tuple[int, ...]) -> float:
    """The l2 norm of an affine function, from the singular values of its matrix; rounded up by `SVD`."""
    units = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
    model = model.double()
    with torch.no_grad():
        images = (model(units) - model(torch.zeros(1, *shape, dtype=torch.float64))).flatten(1)
    return float(torch.linalg.matrix_norm(images, 2)) * (1 + SVD)


def thrice() -> nn.Module:
    """One layer, three times."""
    layer = linear([2.0, 0.0], [0.0, 1.0])
    return nn.Sequential(layer, nn.ReLU(), layer, nn.ReLU(), layer)


def far_branch() -> nn.Module:
    """Slope 1, and slope 4 where the first input is below -6."""
    first, second = linear([1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]), linear([1.0, 0.0, -3.0], [0.0, 1.0, 0.0])
    first.bias = nn.Parameter(torch.tensor([1000.0, 1000.0, -6.0]))
    return nn.Sequential(first, nn.ReLU(), second)


def spike() -> nn.Module:
    """Slope 1, and slope 3 on a piece of length 1/64 around 5."""
    first, second = linear([1.0], [1.0], [1.0]), linear([1.0, 2.0, -2.0])
    first.bias = nn.Parameter(torch.tensor([1000.0, -5.0, -5.015625]))
    return nn.Sequential(first, nn.ReLU(), second)


def batch_norm() -> nn.Module:
    """A scale of 16."""
    layer = nn.BatchNorm1d(2, eps=0.0, affine=False)
    layer.running_var = torch.tensor([2.0**-8, 1.0])
    return layer


SLOPES: dict[str, tuple[Callable[[], nn.Module], float]] = {
    "relu": (nn.ReLU, 1.0),
    "relu6": (nn.ReLU6, 1.0),
    "leaky relu": (lambda: nn.LeakyReLU(0.2), 1.0),
    "leaky relu, slope 3": (lambda: nn.LeakyReLU(3.0), 3.0),
    "prelu, slope -3": (lambda: nn.PReLU(init=-3.0), 3.0),
    "rrelu": (nn.RReLU, 1.0),
    "elu": (nn.ELU, 1.0),
    "elu, alpha 2": (lambda: nn.ELU(2.0), 2.0),
    "celu": (nn.CELU, 1.0),
    "selu": (nn.SELU, 1.7580994),
    "gelu": (nn.GELU, 1.1289042),
    "gelu by tanh": (lambda: nn.GELU("tanh"), 1.1289931),
    "silu": (nn.SiLU, 1.0998394),
    "mish": (nn.Mish, 1.0884982),
    "softplus": (nn.Softplus, 1.0),
    "softsign": (nn.Softsign, 1.0),
    "tanh": (nn.Tanh, 1.0),
    "tanhshrink": (nn.Tanhshrink, 1.0),
    "hardtanh": (nn.Hardtanh, 1.0),
    "hardsigmoid": (nn.Hardsigmoid, 1 / 6 + 1e-16),
    "hardswish": (nn.Hardswish, 1.5),
    "sigmoid": (nn.Sigmoid, 0.25),
    "log sigmoid": (nn.LogSigmoid, 1.0),
    "softshrink": (nn.Softshrink, 1.0),
    "threshold": (lambda: nn.Threshold(0.5, 0.5), 1.0),
    "abs": (lambda: Function(torch.abs), 1.0),
    "sin": (lambda: Function(torch.sin), 1.0),
    "cos": (lambda: Function(torch.cos), 1.0),
    "atan": (lambda: Function(torch.atan), 1.0),
    "asinh": (lambda: Function(torch.asinh), 1.0),
    "erf": (lambda: Function(torch.erf), 1.1283792),
    "clamp": (lambda: Function(lambda x: x.clamp(-0.25, 2.0)), 1.0),
}

_BLOCKS: dict[str, Animal] = {
    "max pooling": Animal(lambda: nn.MaxPool2d(2), (1, 4, 4), 1.0),
    "max pooling 3 by 2": Animal(lambda: nn.MaxPool2d(3, 2), (1, 7, 7), 2.0),
    "max pooling 3 by 2, l1": Animal(lambda: nn.MaxPool2d(3, 2), (1, 7, 7), 4.0, L1),
    "max pooling 3 by 2, linf": Animal(lambda: nn.MaxPool2d(3, 2), (1, 7, 7), 1.0, LINF),
    "max pooling (1, 5) by 2": Animal(lambda: nn.MaxPool2d((1, 5), (2, 2)), (1, 4, 11), math.sqrt(3) * (1 + 1e-15)),
    "max pooling 3 by 1": Animal(lambda: nn.MaxPool1d(3, 1), (1, 9), math.sqrt(3) * (1 + 1e-15)),
    "adaptive max pooling": Animal(lambda: nn.AdaptiveMaxPool2d(3), (1, 5, 5), 2.0),
    "amax": Animal(lambda: Function(lambda x: x.amax(1)), (4,), 1.0),
    "maximum of x and 2x": Animal(lambda: Function(lambda x: torch.maximum(x, 2 * x)), (3,), 2.0),
    "softmax": Animal(lambda: nn.Softmax(1), (3,), 0.5),
    "softmax of two, l1": Animal(lambda: nn.Softmax(1), (2,), 0.5, L1),
    "softmax, linf": Animal(lambda: nn.Softmax(1), (4,), 0.5, LINF),
    "softmin": Animal(lambda: nn.Softmin(1), (3,), 0.5),
    "logsumexp": Animal(lambda: Function(lambda x: torch.logsumexp(x, 1)), (4,), 1.0),
    "norm": Animal(lambda: Function(lambda x: torch.linalg.vector_norm(x, dim=1)), (5,), 1.0),
    "l2 pooling": Animal(lambda: Function(lambda x: x.norm(dim=2)), (3, 4), 1.0),
    "maxmin": Animal(L.MaxMin, (6,), 1.0),
    "group sort": Animal(lambda: L.GroupSort(3), (6,), 1.0),
    "full sort": Animal(L.FullSort, (5,), 1.0),
    "householder": Animal(lambda: L.Householder(4), (4,), 1.0),
    "isometric average pooling": Animal(lambda: L.AveragePool2d(2), (1, 4, 4), 1.0),
}

_SPECIAL: dict[str, Animal] = {
    "x + relu(x)": Animal(lambda: Function(lambda x: x + torch.relu(x)), (3,), 2.0),
    "x - relu(x)": Animal(lambda: Function(lambda x: x - torch.relu(x)), (3,), 1.0),
    "x + sin(x)": Animal(lambda: Function(lambda x: x + torch.sin(x)), (2,), 2.0),
    "x beside x": Animal(lambda: Function(lambda x: torch.cat([x, x], 1)), (3,), math.sqrt(2) * (1 + 1e-15)),
    "x beside relu(x)": Animal(
        lambda: Function(lambda x: torch.cat([x, F.relu(x)], 1)), (3,), math.sqrt(2) * (1 + 1e-15)
    ),
    "far branch": Animal(far_branch, (2,), 4.0),
    "spike": Animal(spike, (1,), 3.0),
    "batch norm of variance 1/256": Animal(batch_norm, (2,), 16.0 * (1 + 1e-12)),
    "absolute value of a sum": Animal(
        lambda: nn.Sequential(linear([1.0, 1.0], [-1.0, -1.0]), nn.ReLU(), linear([1.0, 1.0])),
        (2,),
        math.sqrt(2) * (1 + 1e-15),
    ),
    "layer used three times": Animal(thrice, (2,), 8.0),
    "kernel of ones, circular": Animal(
        lambda: filled(nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular", bias=False), 1.0), (1, 5, 5), 9.0
    ),
    "kernel of ones, l1": Animal(lambda: filled(nn.Conv2d(1, 1, 3, padding=1, bias=False), 1.0), (1, 5, 5), 9.0, L1),
    "kernel of ones, linf": Animal(
        lambda: filled(nn.Conv2d(1, 1, 3, padding=1, bias=False), 1.0), (1, 5, 5), 9.0, LINF
    ),
    "kernel of ones, l1 to linf": Animal(
        lambda: filled(nn.Conv2d(1, 1, 3, padding=1, bias=False), 1.0), (1, 5, 5), 1.0, L1_LINF
    ),
}


def _positive(*layers: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: Weighted(*(layer() for layer in layers)).eval()


def _without_relu(model: nn.Module) -> nn.Module:
    return nn.Sequential(*(m for m in model.children() if not isinstance(m, nn.ReLU | nn.MaxPool2d)))


# With weights >= 0 every Jacobian is, entry by entry, at most that of the network without its ReLUs, which is reached.
_POSITIVE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    f"weights >= 0, {name}": (_positive(*layers), shape)
    for name, layers, shape in (
        ("one hidden layer", (lambda: nn.Linear(4, 6), nn.ReLU, lambda: nn.Linear(6, 3)), (4,)),
        (
            "three hidden layers",
            (lambda: nn.Linear(3, 5), nn.ReLU, lambda: nn.Linear(5, 5), nn.ReLU, lambda: nn.Linear(5, 2)),
            (3,),
        ),
        (
            "two convolutions",
            (lambda: nn.Conv2d(1, 2, 3, padding=1), nn.ReLU, lambda: nn.Conv2d(2, 1, 3, stride=2)),
            (1, 6, 6),
        ),
        (
            "critic",
            (lambda: nn.Conv2d(1, 2, 3, 2, 1), nn.ReLU, nn.Flatten, lambda: nn.Linear(18, 1)),
            (1, 6, 6),
        ),
    )
}


def _of_matrix(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> Animal:
    return Animal(build, shape, lambda: written_out(build(), shape))


def _norm(case: Parametrized) -> float:
    return operator_norm(case.make().eval(), case.input_shape) * (1 + SVD)


def zoo() -> dict[str, Animal]:
    """All of them."""
    affine = {**LINEAR, **CONVOLUTIONS, **{k: v for k, v in ARITHMETIC.items() if "relu" not in k and "tanh" not in k}}
    del affine["(x * 1).sub_(x) on (4, 6)"]  # zero
    pools = {k: v for k, v in OPS.items() if "Avg" in k or "avg" in k or "Upsample" in k or "ReflectionPad" in k}
    found = {name: Animal(build, (3,), constant) for name, (build, constant) in SLOPES.items()}
    found |= _BLOCKS | _SPECIAL
    found |= {
        name: Animal(build, shape, lambda build=build, shape=shape: written_out(_without_relu(build()), shape))
        for name, (build, shape) in _POSITIVE.items()
    }
    found |= {name: _of_matrix(op.model, op.input_shape) for name, op in {**affine, **pools}.items()}
    for name, case in PARAMETRIZED.items():
        found[name] = Animal(case.make, case.input_shape, lambda case=case: _norm(case))
    for name, case in NETWORKS.items():
        for norms, constant in case.exact.items():
            if constant > 0.0:
                found[f"{name}, {norms}"] = Animal(case.model, case.input_shape, constant * (1 + 1e-12), norms)
    return found
