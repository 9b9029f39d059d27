"""Small models on which estimators that read only ``nn.Linear`` give numbers that are too low, without a word.

Every constant (l2 to l2) is exact and comes from a line of arithmetic. Each model is one that `eclipse-nn` 0.1.7
answers below the constant, or cannot read: it takes the linear layers in the order of ``modules()``, each once, and
slopes [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Model:
    """A model, the shape it takes, and its exact constant."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    exact: float


def linear(rows: list[list[float]], bias: bool = True) -> nn.Linear:
    layer = nn.Linear(len(rows[0]), len(rows), bias=bias, dtype=torch.float64)
    layer.weight.data = torch.tensor(rows, dtype=torch.float64)
    if bias:
        layer.bias.data.zero_()
    return layer


EYE = [[1.0, 0.0], [0.0, 1.0]]
MIXED = [[1.0, 2.0], [3.0, 4.0]]


def batch_norm() -> nn.Module:
    """``relu(diag(5, .5) x)``: 5."""
    norm = nn.BatchNorm1d(2, eps=0.0, dtype=torch.float64)
    norm.running_var, norm.weight.data = torch.tensor([0.25, 4.0]).double(), torch.tensor([2.5, 1.0]).double()
    return nn.Sequential(linear(EYE), norm, nn.ReLU(), linear(EYE)).eval()


class Skip(nn.Module):
    """``x + W relu(x)`` with W the identity: 2."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.second = linear(EYE), nn.ReLU(), linear(EYE)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.act(self.first(x)))


def convolution() -> nn.Module:
    """A kernel of ones over one window of four pixels, then 1 and 1: ``|(1, 1, 1, 1)| = 2``."""
    conv = nn.Conv2d(1, 1, 2, dtype=torch.float64)
    conv.weight.data.fill_(1.0)
    conv.bias.data.zero_()  # type: ignore[union-attr]
    return nn.Sequential(conv, nn.ReLU(), nn.Flatten(), linear([[1.0]]), nn.ReLU(), linear([[1.0]]))


class Modulus(nn.Module):
    """``|x| + |-x|``: 2."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = linear([[1.0], [-1.0]]), linear([[1.0, 1.0]])

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.abs(self.first(x)))


class Tied(nn.Module):
    """One layer used twice: ``relu(2 relu(2 x))``, 4."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.act, self.last = linear([[2.0]]), nn.ReLU(), linear([[1.0]])

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.act(self.layer(self.act(self.layer(x)))))


class Tripled(nn.Module):
    """``3 relu(x)``, the 3 standing in ``forward``: 3."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.second = linear([[1.0]]), nn.ReLU(), linear([[1.0]])

    def forward(self, x: Tensor) -> Tensor:
        return 3.0 * self.second(self.act(self.first(x)))


class Backward(nn.Module):
    """Registered in one order and used in the other: ``2 relu(3 x_2)``, 6."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.act = linear([[2.0, 0.0], [0.0, 0.0]]), nn.ReLU()
        self.first = linear([[0.0, 3.0], [0.0, 0.0]])

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.act(self.first(x)))


# The largest slope of x sigmoid(x) is where 2 = x tanh(x / 2).
SILU = 1.0998393201288669
# The matrix of ``MIXED @ MIXED`` with non-negative weights is the constant of the network: both neurons are active.
SQUARE = float(torch.linalg.matrix_norm(torch.tensor(MIXED).double() @ torch.tensor(MIXED).double(), 2))

MODELS = {
    "BatchNorm in evaluation": Model(batch_norm, (2,), 5.0),
    "residual skip": Model(Skip, (2,), 2.0),
    "Conv2d": Model(convolution, (1, 2, 2), 2.0),
    "SiLU": Model(lambda: nn.Sequential(linear([[1.0]]), nn.SiLU(), linear([[1.0]])), (1,), SILU),
    "torch.abs": Model(Modulus, (1,), 2.0),
    "bias=False": Model(lambda: nn.Sequential(linear(MIXED, False), nn.ReLU(), linear(MIXED, False)), (2,), SQUARE),
    "LeakyReLU(2)": Model(lambda: nn.Sequential(linear([[1.0]]), nn.LeakyReLU(2.0), linear([[1.0]])), (1,), 2.0),
    "one layer used twice": Model(Tied, (1,), 4.0),
    "a factor in forward": Model(Tripled, (1,), 3.0),
    "registered out of order": Model(Backward, (2,), 6.0),
}
