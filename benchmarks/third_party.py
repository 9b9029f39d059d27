"""Networks that others trained, rebuilt as torch modules from a folder beside the checkout, if it is there.

Nothing in the package needs them; tests and benchmarks that use them skip without them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lipcert.nn import GroupSort, MaxMin

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "nets"


@dataclass(frozen=True)
class Net:
    """A named network, the shape it takes, and the exact l2 constant where one is published and believed."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    exact: float | None = None
    published: dict[str, Any] = field(default_factory=dict)


class Residual(nn.Module):
    """``x + branch(x)``."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = nn.Identity() if shortcut is None else shortcut

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.branch(x)


class Scaled(nn.Module):
    """``scale * layer(x)``, as the trained networks of the GLipSDP study have it."""

    def __init__(self, layer: nn.Module, scale: float) -> None:
        super().__init__()
        self.layer = layer
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.layer(x)


class Denoiser(nn.Module):
    """``x - noise(x)``."""

    def __init__(self, noise: nn.Module) -> None:
        super().__init__()
        self.noise = noise

    def forward(self, x: Tensor) -> Tensor:
        return x - self.noise(x)


def networks(folder: Path = FOLDER) -> Iterator[Net]:
    """All networks found, smallest formats first; nothing if the folder is missing."""
    index = folder / "index.json"
    if not index.exists():
        return
    for record in json.loads(index.read_text()):
        path = folder / record["file"]
        published = record.get("published", {})
        exact = None
        if "final_upper" in published and published["final_upper"] == published.get("final_lower"):
            # The one published history that a reachable Jacobian contradicts is flagged in its record.
            exact = None if "contradicted" in record.get("warning", "") else float(published["final_upper"])
        exact = float(published["exact"]) if "exact" in published else exact
        if path.suffix == ".npz":
            shape = (int(record["arch"][0]),)
            # The digits study publishes constants of one output, class 7.
            outputs = slice(7, 8) if "digits" in record["name"] else slice(None)
            yield Net(record["name"], _later(_mlp, path, record["activation"], outputs), shape, exact, published)
        else:
            build, shape = _CNNS[next(key for key in _CNNS if key in record["name"])]
            yield Net(record["name"], _later(build, path), shape, exact, published)
    yield from _gan(folder / "gan")


def _later(build: Callable[..., nn.Module], *arguments: Any) -> Callable[[], nn.Module]:
    return lambda: build(*arguments).eval()


def _activation(name: str, width: int) -> nn.Module:
    if name.startswith("GroupSort_numGroups"):
        return GroupSort(width // int(name.removeprefix("GroupSort_numGroups")))
    if name.startswith("maxmin"):
        return MaxMin()
    return nn.LeakyReLU(0.01) if name.startswith("leaky_relu") else nn.ReLU()


def _mlp(path: Path, activation: str, outputs: slice) -> nn.Module:
    stored = np.load(path)
    depth = sum(key.startswith("W") for key in stored.files)
    layers: list[nn.Module] = []
    for k in range(depth):
        rows = outputs if k == depth - 1 else slice(None)
        weight, bias = stored[f"W{k}"][rows], stored[f"b{k}"][rows]
        layers.append(_linear(torch.from_numpy(weight), torch.from_numpy(bias)))
        if k < depth - 1:
            layers.append(_activation(activation, weight.shape[0]))
    return nn.Sequential(*layers)


def _linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
    layer.weight.data = weight.clone()
    if bias is not None:
        layer.bias.data = bias.to(weight.dtype).clone()
    return layer


def _conv(weight: Tensor, bias: Tensor | None = None, stride: int = 1, padding: int = 1) -> nn.Conv2d:
    out, into, *size = weight.shape
    layer = nn.Conv2d(into, out, tuple(size), stride, padding, bias=bias is not None, dtype=weight.dtype)  # type: ignore[arg-type]
    layer.weight.data = weight.clone()
    if bias is not None:
        layer.bias.data = bias.clone()
    return layer


def _state(path: Path) -> dict[str, Tensor]:
    return torch.load(path, map_location="cpu", weights_only=True)


def _digits(path: Path) -> nn.Module:
    s = _state(path)
    convs = sorted(key[:-7] for key in s if key.startswith("conv") and key.endswith("weight"))
    layers = [m for name in convs for m in (_conv(s[f"{name}.weight"], s[f"{name}.bias"]), nn.ReLU())]
    # The published constants are for the scalar output of class 7.
    return nn.Sequential(*layers, nn.Flatten(), _linear(s["fc1.weight"][7:8], s["fc1.bias"][7:8]))


def _glipsdp_cnn(path: Path) -> nn.Module:
    s = _state(path)
    depth = sum(key.endswith("conv.bias") for key in s)
    layers: list[nn.Module] = []
    for k in range(depth):
        stem = f"features.{2 * k}.conv"
        original = s[f"{stem}.parametrizations.weight.original"]
        conv = parametrizations.spectral_norm(_conv(original, s[f"{stem}.bias"]))
        conv.load_state_dict({key.removeprefix(f"{stem}."): v for key, v in s.items() if key.startswith(f"{stem}.")})
        layers += [Scaled(conv, 2.0), nn.LeakyReLU(0.01)]
    head = parametrizations.spectral_norm(_linear(s["fc.linear.parametrizations.weight.original"], s["fc.linear.bias"]))
    head.load_state_dict({key.removeprefix("fc.linear."): v for key, v in s.items() if key.startswith("fc.linear.")})
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(), head)


def _lenet(path: Path) -> nn.Module:
    s = _state(path)
    return nn.Sequential(
        _conv(s["net.0.weight"], s["net.0.bias"], padding=2), nn.ReLU(), nn.AvgPool2d(2),
        _conv(s["net.3.weight"], s["net.3.bias"], padding=0), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(),
        _linear(s["net.7.weight"], s["net.7.bias"]), nn.ReLU(),
        _linear(s["net.9.weight"], s["net.9.bias"]), nn.ReLU(),
        _linear(s["net.11.weight"], s["net.11.bias"]),
    )  # fmt: skip


def _fc_resnet(path: Path) -> nn.Module:
    s = _state(path)
    blocks: list[nn.Module] = []
    for k in range(sum(key.endswith("fc1_weight") for key in s)):
        first, second = (_linear(s[f"blocks_{k}_{n}_weight"], s[f"blocks_{k}_{n}_bias"]) for n in ("fc1", "fc2"))
        # The record writes a ReLU around each block; the published bound, 20.956, is that of blocks without.
        blocks += [Residual(nn.Sequential(first, nn.ReLU(), second))]
    into = _linear(s["input_layer_weight"], s["input_layer_bias"])
    return nn.Sequential(into, nn.ReLU(), *blocks, _linear(s["output_layer_weight"], s["output_layer_bias"]))


def _maxmin_resnet(path: Path) -> nn.Module:
    """Read as ``W4 (I + MaxMin W3)(I + MaxMin W2)(I + MaxMin W1) W0``; the record leaves the order open."""
    s = _state(path)
    middle = [Residual(nn.Sequential(_linear(s[f"W{k}"]), MaxMin())) for k in (1, 2, 3)]
    return nn.Sequential(_linear(s["W0"]), *middle, _linear(s["W4"]))


def _two_convs(stride: int, padding: int, activation: Callable[[], nn.Module]) -> Callable[[Path], nn.Module]:
    def build(path: Path) -> nn.Module:
        s = _state(path)
        stems = sorted({key.rsplit(".", 1)[0] for key in s})
        convs = [stem for stem in stems if s[f"{stem}.weight"].ndim == 4]
        layers = [
            m for stem in convs for m in (_conv(s[f"{stem}.weight"], s[f"{stem}.bias"], stride, padding), activation())
        ]
        first, second = (_linear(s[f"{stem}.weight"], s[f"{stem}.bias"]) for stem in stems if stem not in convs)
        return nn.Sequential(*layers, nn.Flatten(), first, activation(), second)

    return build


def _resnet2b(path: Path) -> nn.Module:
    s = _state(path)

    def conv(stem: str, stride: int = 1, padding: int = 1) -> nn.Conv2d:
        return _conv(s[f"{stem}.weight"], s[f"{stem}.bias"], stride, padding)

    def block(stem: str, stride: int, shortcut: nn.Module | None) -> nn.Module:
        branch = nn.Sequential(conv(f"{stem}.conv1", stride), nn.ReLU(), conv(f"{stem}.conv2"))
        return nn.Sequential(Residual(branch, shortcut), nn.ReLU())

    return nn.Sequential(
        conv("conv1", 2), nn.ReLU(),
        block("layer1.0", 2, conv("layer1.0.shortcut.0", 2, 0)), block("layer1.1", 1, None), nn.Flatten(),
        _linear(s["linear1.weight"], s["linear1.bias"]), nn.ReLU(), _linear(s["linear2.weight"], s["linear2.bias"]),
    )  # fmt: skip


_CNNS: dict[str, tuple[Callable[[Path], nn.Module], tuple[int, ...]]] = {
    "digits": (_digits, (1, 8, 8)),
    "mnist_cnn_C": (_glipsdp_cnn, (1, 28, 28)),
    "LeNet5": (_lenet, (1, 28, 28)),
    "FC-R18": (_fc_resnet, (784,)),
    "resweights": (_maxmin_resnet, (784,)),
    "mnist_cnn_small": (_two_convs(2, 1, nn.ReLU), (1, 28, 28)),
    "resnet2b": (_resnet2b, (3, 32, 32)),
    "cifar_base": (_two_convs(2, 1, nn.ReLU), (3, 32, 32)),
    "mnist_cnn_a_adv": (_two_convs(2, 1, nn.ReLU), (1, 28, 28)),
    "conv_small_sigmoid": (_two_convs(2, 0, nn.Sigmoid), (3, 32, 32)),
}


def _gan(folder: Path) -> Iterator[Net]:
    if not folder.exists():
        return
    yield Net("averaged_cnn_sigma5", _later(_averaged, folder / "averaged_cnn_sigma5.pt"), (1, 40, 40))
    yield Net("realsn_noise5", _later(_realsn, folder / "realsn_simplecnn_noise5.pt"), (1, 40, 40))
    yield Net("mnist_vae_encoder", _later(_vae, folder / "botorch_mnist_vae.pt", "fc1", "fc21"), (784,))
    yield Net("mnist_vae_decoder", _later(_vae, folder / "botorch_mnist_vae.pt", "fc3", "fc4"), (20,))
    for net in critics(folder / "w1bench" / "critics_dim2"):
        yield replace(net, name=f"w1bench_{net.name}")


CRITIC_CLAIMS: dict[str, float | None] = {
    # Exact by construction in real numbers; the weights are stored in float32.
    **{"sn-gan": 1.0, "sort-out": 1.0 + 1e-5},
    # Clipped at 0.04, or trained with a penalty for the constant 1.
    **{"wgan": 1.0, "wgan-gp": 1.0, "wgan-lp": 1.0, "wgan-qp": 1.0},
    **{"cowgan": None, "lsot-f": None, "3p-wgan": None, "rev": None},
}
"""What each method of the Wasserstein-1 benchmark says of the l2 constant of its critic, by the end of a net's name."""


def critics(folder: Path) -> Iterator[Net]:
    """The critics in the plane of the Wasserstein-1 benchmark: state dicts at ``width_*/method_*.pt``."""
    for path in sorted(folder.glob("*/method_*.pt"), key=lambda path: (path.stem, len(path.parent.name), path.parent)):
        yield Net(f"{path.parent.name}_{path.stem.removeprefix('method_')}", _later(_critic, path), (2,))


def _averaged(path: Path) -> nn.Module:
    s = _state(path)
    layers: list[nn.Module] = []
    for k in range(0, 17, 2):
        layers.append(_conv(s[f"layers.{k}.lipschitz_weight"], s[f"layers.{k}.bias"]))
        if k < 16:
            act = nn.PReLU(64)
            act.weight.data = s[f"layers.{k + 1}.weight"].clamp(-1, 1)
            layers.append(act)
    return nn.Sequential(*layers)


def _realsn(path: Path) -> nn.Module:
    s = _state(path)
    layers = [m for k in (0, 2, 4) for m in (_conv(s[f"dncnn.{k}.weight"]), nn.ReLU())]
    return Denoiser(nn.Sequential(*layers, _conv(s["dncnn.6.weight"])))


def _vae(path: Path, first: str, second: str) -> nn.Module:
    s = _state(path)
    one, two = (_linear(s[f"{name}.weight"], s[f"{name}.bias"]) for name in (first, second))
    return nn.Sequential(one, nn.ReLU(), two, *([nn.Sigmoid()] if second == "fc4" else []))


def _critic(path: Path) -> nn.Module:
    """A 2-128-128-1 critic; constrained weights are materialised as their training code does."""
    s = _state(path)
    full_sort = "sort-out" in path.stem
    layers: list[nn.Module] = []
    for k in (0, 2, 4):
        stem = next(key for key in s if key.startswith(f"net.{k}.") and key.endswith("bias")).removesuffix("bias")
        if f"{stem}weight_bar" in s:
            bar, u, v = (s[f"{stem}weight_{part}"] for part in ("bar", "u", "v"))
            weight = bar / torch.dot(u, bar @ v)
        elif full_sort:
            weight = _stiefel(s[f"{stem}parametrizations.weight.original"], s[f"{stem}parametrizations.weight.0.base"])
        else:
            weight = s[f"{stem}weight"]
        layers.append(_linear(weight, s[f"{stem}bias"]))
        if k < 4:
            layers.append(GroupSort(weight.shape[0]) if full_sort else nn.ReLU())
    return nn.Sequential(*layers)


def _stiefel(original: Tensor, base: Tensor) -> Tensor:
    """A semi-orthogonal weight: base times the exponential of a skew matrix, as geotorch stores it."""
    rows, columns = original.shape
    tall = original if rows >= columns else original.T
    lower = torch.zeros(tall.shape[0], tall.shape[0], dtype=original.dtype)
    lower[:, : tall.shape[1]] = tall.tril(-1)
    weight = (base @ torch.linalg.matrix_exp(lower - lower.T))[:, : tall.shape[1]]
    return weight if rows >= columns else weight.T.contiguous()
