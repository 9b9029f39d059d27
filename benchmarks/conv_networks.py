"""Convolutional networks at the size people train: trained here where images are at hand, random elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGES = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10_jpeg_10k2k.npz"


def trunk(strides: Sequence[int], channels: int, size: int = 32, classes: int = 10) -> nn.Sequential:
    """3x3 convolutions of one width with these strides, each before a ReLU, and a dense head."""
    layers: list[nn.Module] = []
    into = 3
    for stride in strides:
        layers += [nn.Conv2d(into, channels, 3, stride, 1), nn.ReLU()]
        into, size = channels, -(-size // stride)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * size * size, classes))


class BasicBlock(nn.Module):
    """The residual block of ResNet-18."""

    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(into, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.shortcut = nn.Sequential()
        if stride != 1 or into != out:
            self.shortcut = nn.Sequential(nn.Conv2d(into, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


def resnet18(width: int = 64, classes: int = 10) -> nn.Sequential:
    """ResNet-18 as it is used on 32x32 images: a 3x3 stem without stride, and no pooling after it."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    into = width
    for k, stride in enumerate((1, 2, 2, 2)):
        for s in (stride, 1):
            layers.append(BasicBlock(into, width << k, s))
            into = width << k
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(into, classes))


def images(part: str) -> tuple[Tensor, Tensor] | None:
    """CIFAR-10 images in [-1, 1] and labels, ``train`` or ``test``, from beside the checkout; ``None`` without it."""
    if not IMAGES.exists():
        return None
    stored = np.load(IMAGES)
    x = torch.from_numpy(stored[f"x_{part}"]).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    return x, torch.from_numpy(stored[f"y_{part}"]).long()


def trained(model: nn.Module, epochs: int, seed: int = 0) -> tuple[nn.Module, float | None]:
    """The model after some epochs of Adam, and its test accuracy; untrained and ``None`` without images."""
    data, test = images("train"), images("test")
    if data is None or test is None:
        return model.eval(), None
    x, y = data
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(x), generator=generator).split(128):
            optimiser.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimiser.step()
    model.eval()
    with torch.no_grad():
        return model, float((model(test[0]).argmax(1) == test[1]).float().mean())
