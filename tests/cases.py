"""Tables of cases that all laws run over: known constants, linear maps, operations, claims, hostile modules.

Everything is built under its own seed; a constant is given only where arithmetic or a paper gives it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations as P

from lipcert.nn import FullSort, GroupSort, Householder, MaxMin
from lipcert.norms import L1, L1_LINF, L2, L2_LINF, LINF, Norms
from tests.hostile import HOSTILE, Hostile
from tests.maps import MAPS
from tests.operations import OPS, Operation
from tests.parametrized import PARAMETRIZED, Parametrized

__all__ = ["HOSTILE", "MAPS", "NETWORKS", "OPS", "PARAMETRIZED", "Case", "Hostile", "Operation", "Parametrized"]


@dataclass(frozen=True)
class Case:
    """A network, the shape of one sample, and its constants where they are known exactly."""

    model: Callable[[], nn.Module]
    input_shape: tuple[int, ...]
    exact: Mapping[Norms, float] = field(default_factory=dict)


def network(build: Callable[[], nn.Module], *shape: int, exact: Mapping[Norms, float] | None = None) -> Case:
    """A case built under a seed, with random batch statistics, in evaluation mode."""

    def model() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(len(shape) + sum(shape))
            return settled(build()).eval()

    return Case(model, shape, exact or {})


def settled(model: nn.Module) -> nn.Module:
    """Give fresh batch norms statistics and scales as if they had been trained."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None and module.affine:
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.3, 2.0)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return model


def linear(rows: list[list[float]]) -> nn.Linear:
    """A linear layer with the given rows and no bias."""
    layer = nn.Linear(len(rows[0]), len(rows), bias=False)
    layer.weight.data = torch.tensor(rows)
    return layer


class Residual(nn.Module):
    """``x + body(x)``."""

    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Join(nn.Module):
    """Branches side by side along channels."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class BasicBlock(nn.Module):
    """The residual block of ResNet, with its in-place addition."""

    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(into, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.shortcut = nn.Sequential(nn.Conv2d(into, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += self.shortcut(x)
        return self.relu(out)


class UNet(nn.Module):
    """Down, up and across: pooling, nearest upsampling, a skip by concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ELU(), nn.AvgPool2d(2))
        self.across = nn.Conv2d(2, 2, 1)
        self.up = nn.Sequential(nn.Conv2d(4, 2, 3, padding=1), nn.Upsample(scale_factor=2, mode="bilinear"))
        self.head = nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.across(x), self.up(self.down(x))], dim=1))


class Patches(nn.Module):
    """Cuts an image into patches by reshape and permute, then a linear layer on each."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        x = x.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        return torch.tanh(self.embed(x)).mean(dim=1)


class Shared(nn.Module):
    """One layer used three times, with a loop in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = x + 0.5 * torch.relu(self.step(x))
        return x


def _unit_batch_norm() -> nn.Module:
    layer = nn.BatchNorm1d(3, eps=0.0, affine=False)
    layer.running_var = torch.tensor([0.25, 1.0, 4.0])
    return layer


def _everywhere(value: float) -> dict[Norms, float]:
    return dict.fromkeys((L2, L1, LINF, L1_LINF, L2_LINF), value)


NETWORKS: dict[str, Case] = {
    "identity": network(nn.Identity, 3, exact=_everywhere(1.0)),
    "one diagonal layer": network(lambda: linear([[3.0, 0.0, 0.0], [0.0, -4.0, 0.0]]), 3, exact=_everywhere(4.0)),
    "zero": network(lambda: linear([[0.0, 0.0]]), 2, exact=_everywhere(0.0)),
    "all ones": network(
        lambda: linear([[1.0] * 4] * 4), 4, exact={L2: 4.0, L1: 4.0, LINF: 4.0, L1_LINF: 1.0, L2_LINF: 2.0}
    ),
    "absolute value": network(
        lambda: nn.Sequential(linear([[1.0], [-1.0]]), nn.ReLU(), linear([[1.0, 1.0]])), 1, exact=_everywhere(1.0)
    ),
    "tanh": network(nn.Tanh, 2, 2, exact=_everywhere(1.0)),
    "sigmoid": network(nn.Sigmoid, 4, exact=_everywhere(0.25)),
    "softmax of two": network(lambda: nn.Softmax(1), 2, exact={L2: 0.5, L1: 0.5, LINF: 0.5}),
    "average pooling": network(
        lambda: nn.AvgPool2d(2), 1, 4, 4, exact={L2: 0.5, L1: 0.25, LINF: 1.0, L1_LINF: 0.25, L2_LINF: 0.5}
    ),
    "overlapping max pooling": network(lambda: nn.MaxPool2d(3, 2), 1, 7, 7, exact={L2: 2.0, L1: 4.0, LINF: 1.0}),
    "nearest upsampling": network(
        lambda: nn.Upsample(scale_factor=2), 2, 3, 3, exact={L2: 2.0, L1: 4.0, LINF: 1.0, L1_LINF: 1.0, L2_LINF: 1.0}
    ),
    "reflection padding": network(
        lambda: nn.ReflectionPad1d(1), 1, 3, exact={L2: 3**0.5 * (1 - 1e-15), L1: 3.0, LINF: 1.0}
    ),
    "batch norm": network(_unit_batch_norm, 3, exact=_everywhere(2.0)),
    "twice itself": network(lambda: Residual(nn.Identity()), 3, exact=_everywhere(2.0)),
    "joined copies": network(
        lambda: Join(nn.Identity(), nn.Identity(), nn.Identity(), nn.Identity()), 3, exact={L2: 2.0, L1: 4.0, LINF: 1.0}
    ),
    "full sort": network(FullSort, 5, exact={L2: 1.0, L1: 1.0, LINF: 1.0}),
    "relu mlp": network(
        lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)), 5
    ),
    "gelu mlp": network(lambda: nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 2)), 4),
    "silu on positions": network(lambda: nn.Sequential(nn.Linear(4, 6), nn.SiLU(), nn.Linear(6, 2)), 3, 4),
    "half precision": network(lambda: nn.Sequential(nn.Linear(4, 6), nn.LeakyReLU(), nn.Linear(6, 2)).bfloat16(), 4),
    "double precision": network(lambda: nn.Sequential(nn.Linear(4, 6), nn.Softplus(), nn.Linear(6, 2)).double(), 4),
    "spectral norms": network(
        lambda: nn.Sequential(P.spectral_norm(nn.Linear(6, 6)), MaxMin(), P.spectral_norm(nn.Linear(6, 3))), 6
    ),
    "orthogonal group sort": network(
        lambda: nn.Sequential(P.orthogonal(nn.Linear(6, 6)), GroupSort(3), P.orthogonal(nn.Linear(6, 6))), 6
    ),
    "householder": network(lambda: nn.Sequential(nn.Linear(4, 6), Householder(6), nn.Linear(6, 2)), 4),
    "conv critic": network(
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, 2, 1),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(4, 4, 3, 2, 1),
            nn.Flatten(),
            nn.Linear(16, 1),
        ),
        *(2, 7, 8),
    ),
    "conv, batch norm, max pool": network(
        lambda: nn.Sequential(
            *(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
            *(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU6(), nn.AdaptiveAvgPool2d(1)),
            *(nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 3)),
        ),
        *(1, 8, 8),
    ),
    "resnet": network(
        lambda: nn.Sequential(BasicBlock(2, 3, 1), BasicBlock(3, 4, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()), 2, 6, 6
    ),
    "dense block": network(
        lambda: nn.Sequential(
            Join(nn.Identity(), nn.Conv2d(1, 2, 3, padding=1)),
            nn.ReLU(),
            Join(nn.Identity(), nn.Conv2d(3, 2, 3, padding=1)),
        ),
        *(1, 5, 5),
    ),
    "u-net": network(UNet, 2, 6, 6),
    "generator": network(
        lambda: nn.Sequential(
            *(nn.Linear(3, 16), nn.Unflatten(1, (4, 2, 2)), nn.ConvTranspose2d(4, 2, 4, 2, 1), nn.BatchNorm2d(2)),
            *(nn.ReLU(), nn.ConvTranspose2d(2, 1, 3, 2, 1, output_padding=1), nn.Tanh()),
        ),
        3,
    ),
    "strided dilated groups": network(
        lambda: nn.Sequential(nn.Conv2d(4, 4, 3, 2, 2, dilation=2, groups=2), nn.Hardswish(), nn.Conv2d(4, 2, (3, 1))),
        4,
        9,
        7,
    ),
    "circular and reflected": network(
        lambda: nn.Sequential(
            nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"),
            nn.ELU(),
            nn.Conv2d(2, 2, 3, padding="same", padding_mode="reflect"),
            nn.CELU(),
            nn.Conv2d(2, 1, 3, padding=1, padding_mode="replicate"),
        ),
        *(2, 5, 5),
    ),
    "one dimension": network(
        lambda: nn.Sequential(
            nn.Conv1d(2, 4, 3, padding=1), nn.SELU(), nn.MaxPool1d(2), nn.Conv1d(4, 2, 2), nn.Flatten()
        ),
        2,
        8,
    ),
    "three dimensions": network(
        lambda: nn.Sequential(nn.Conv3d(1, 2, 2), nn.Mish(), nn.AvgPool3d(2), nn.ConvTranspose3d(2, 1, 2)), 1, 4, 5, 4
    ),
    "pixel shuffle": network(
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.PixelShuffle(2), nn.PReLU()), 1, 4, 4
    ),
    "patches": network(Patches, 2, 4, 6),
    "shared step": network(Shared, 4),
    "residual mlp": network(lambda: Residual(nn.Linear(4, 6), nn.Softsign(), nn.Linear(6, 4)), 4),
}
