"""Parametrized layers that all laws of claims run over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lipcert.freeze import freeze
from lipcert.parametrizations import (
    QR,
    Bjorck,
    Cayley,
    Deployed,
    Everywhere,
    Exact,
    Exponential,
    Fourier,
    FourierCayley,
    Gain,
    Gram,
    Householder,
    NewtonSchulz,
    PowerIteration,
    Soft,
    aol,
    orthogonal,
    orthogonal_convolution,
    spectral_norm,
)

Put = Callable[[nn.Module], nn.Module]


@dataclass(frozen=True)
class Parametrized:
    """A linear layer with a claim.

    Attributes:
        plain: The layer without it.
        put: What puts the claim on.
        input_shape: Shape of one sample.
        bound: The claim.
        least: The norm is at least this multiple of the claim in evaluation.
        everywhere: How far above the claim training may be, relatively; ``None`` if nothing is said.
        smooth: Whether the weight has a derivative where the parameter is zero.
    """

    plain: Callable[[], nn.Module]
    put: Put
    input_shape: tuple[int, ...]
    bound: float = 1.0
    least: float = 0.9
    everywhere: float | None = None
    smooth: bool = True

    def make(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The layer, drawn from a seed."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            plain = self.plain().to(dtype)
        return self.put(plain)

    def batch(self, count: int = 3, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
        """Random samples."""
        drawn = torch.Generator().manual_seed(seed)
        return torch.randn(count, *self.input_shape, generator=drawn, dtype=torch.float64).to(dtype)


def operator_norm(layer: nn.Module, shape: tuple[int, ...]) -> float:
    """The l2 norm of what a linear layer does with its present weight: singular values of the map written out."""
    training = layer.training
    frozen = freeze(layer.eval()) if not training else freeze_as_trained(layer)
    layer.train(training)
    size = int(torch.tensor(shape).prod())
    units = torch.eye(size, dtype=torch.float64).reshape(size, *shape)
    with torch.no_grad():
        images = frozen(units) - frozen(torch.zeros(1, *shape, dtype=torch.float64))
    return float(torch.linalg.matrix_norm(images.reshape(size, -1), 2))


def freeze_as_trained(layer: nn.Module) -> nn.Module:
    """A plain copy of a layer, in float64, with the weight that training uses."""
    weight = layer.weight.detach().clone()
    frozen = freeze(layer.eval())
    assert isinstance(frozen.weight, nn.Parameter)
    frozen.weight.copy_(weight)
    return frozen


def spectral(**options: object) -> Put:
    """`spectral_norm` with options."""
    return lambda layer: spectral_norm(layer, **options)  # type: ignore[arg-type]


def linear(into: int, out: int) -> Callable[[], nn.Module]:
    """A linear layer."""
    return lambda: nn.Linear(into, out)


def conv(*arguments: int, **options: object) -> Callable[[], nn.Module]:
    """A two-dimensional convolution."""
    return lambda: nn.Conv2d(*arguments, **options)  # type: ignore[arg-type]


PARAMETRIZED: dict[str, Parametrized] = {
    "spectral linear": Parametrized(linear(7, 5), spectral(), (7,), least=0.9999),
    "spectral linear, bound 3": Parametrized(linear(4, 6), spectral(bound=3.0), (4,), 3.0, 0.9999),
    "spectral linear, power iteration": Parametrized(linear(7, 5), spectral(estimate=PowerIteration(2)), (7,)),
    "spectral linear, Gram": Parametrized(linear(7, 5), spectral(estimate=Gram(4)), (7,)),
    "spectral linear, exact": Parametrized(linear(7, 5), spectral(estimate=Exact()), (7,)),
    "spectral linear, rechecked": Parametrized(linear(7, 5), spectral(level=Deployed(2)), (7,)),
    "spectral linear, everywhere": Parametrized(linear(7, 5), spectral(level=Everywhere()), (7,), everywhere=0.0),
    "spectral linear, gain": Parametrized(linear(7, 5), spectral(gain=Gain(0.8)), (7,), least=0.1),
    "spectral linear, soft": Parametrized(linear(7, 5), spectral(cap=Soft()), (7,), least=0.0),
    "spectral linear, soft, everywhere": Parametrized(
        linear(7, 5), spectral(cap=Soft(), level=Everywhere(), bound=0.5), (7,), 0.5, 0.0, 0.0
    ),
    "spectral conv": Parametrized(conv(2, 4, 3, padding=1), spectral(input_size=(5, 4)), (2, 5, 4), least=0.9999),
    "spectral conv, everywhere": Parametrized(
        conv(2, 4, 3, padding=1), spectral(input_size=(5, 4), level=Everywhere()), (2, 5, 4), everywhere=0.0
    ),
    "spectral conv, any size": Parametrized(conv(2, 4, 3, padding=1), spectral(), (2, 9, 9), least=0.8),
    "spectral conv, reflect, everywhere": Parametrized(
        conv(2, 3, 3, padding=1, padding_mode="reflect"),
        spectral(input_size=(5, 4), level=Everywhere()),
        (2, 5, 4),
        everywhere=0.0,
    ),
    "spectral conv, Fourier": Parametrized(
        conv(2, 4, 3, padding=1, stride=2), spectral(input_size=6, estimate=Fourier()), (2, 6, 6)
    ),
    "spectral conv, Gram": Parametrized(
        conv(2, 4, 3, padding=1, padding_mode="circular"), spectral(input_size=6, estimate=Gram()), (2, 6, 6)
    ),
    "spectral conv, groups and dilation": Parametrized(
        conv(4, 4, (2, 3), padding=2, dilation=2, groups=2), spectral(input_size=5), (4, 5, 5)
    ),
    "spectral conv 1d": Parametrized(lambda: nn.Conv1d(3, 4, 4, stride=2, padding=1), spectral(input_size=9), (3, 9)),
    "spectral conv 3d": Parametrized(lambda: nn.Conv3d(2, 2, 2), spectral(input_size=3), (2, 3, 3, 3)),
    "spectral transposed conv 1d": Parametrized(
        lambda: nn.ConvTranspose1d(3, 4, 3, stride=2, output_padding=1), spectral(input_size=5), (3, 5)
    ),
    "spectral transposed conv": Parametrized(
        lambda: nn.ConvTranspose2d(4, 2, 4, stride=2, padding=1, groups=2), spectral(input_size=(3, 4)), (4, 3, 4)
    ),
    "spectral transposed conv, any size": Parametrized(
        lambda: nn.ConvTranspose2d(2, 3, 4, stride=2, padding=1), spectral(), (2, 7, 7), least=0.8
    ),
    "spectral transposed conv 3d": Parametrized(
        lambda: nn.ConvTranspose3d(2, 2, 2, dilation=2), spectral(input_size=2), (2, 2, 2, 2)
    ),
    **{
        f"orthogonal linear, {shape}, {map}": Parametrized(
            linear(*shape),
            lambda layer, map=map: orthogonal(layer, map=map),
            shape[:1],
            least=0.9999,
            smooth=not isinstance(map, QR),
        )
        for shape in ((4, 4), (3, 5), (5, 3))
        for map in (Cayley(), Householder(), QR(), Exponential(), Bjorck(), NewtonSchulz())
    },
    "orthogonal conv": Parametrized(conv(4, 6, 3, padding=1), orthogonal_convolution, (4, 6, 6)),
    "orthogonal conv, circular": Parametrized(
        conv(4, 4, 3, padding=1, padding_mode="circular"), orthogonal_convolution, (4, 5, 4), least=0.9999
    ),
    "orthogonal conv, strided": Parametrized(conv(4, 8, 3, stride=2, padding=1), orthogonal_convolution, (4, 6, 6)),
    "orthogonal conv, strided, circular": Parametrized(
        conv(4, 8, 3, stride=2, padding=1, padding_mode="circular"),
        lambda layer: orthogonal_convolution(layer, input_size=(6, 6)),
        (4, 6, 6),
        least=0.9999,
    ),
    "orthogonal conv, groups and dilation": Parametrized(
        conv(4, 4, 3, padding=2, dilation=2, groups=2), orthogonal_convolution, (4, 6, 6)
    ),
    "orthogonal conv 1d": Parametrized(lambda: nn.Conv1d(3, 5, 4), orthogonal_convolution, (3, 7)),
    "orthogonal transposed conv": Parametrized(
        lambda: nn.ConvTranspose2d(4, 2, 2, stride=2), orthogonal_convolution, (4, 4, 4), least=0.9999
    ),
    "orthogonal conv, Fourier": Parametrized(
        conv(3, 3, 5, padding="same", padding_mode="circular"),
        lambda layer: orthogonal_convolution(layer, map=FourierCayley(), input_size=(5, 5)),
        (3, 5, 5),
        least=0.9999,
    ),
    "aol linear": Parametrized(linear(5, 4), aol, (5,), least=0.0),
    "aol linear, bound 1/4": Parametrized(linear(3, 6), lambda layer: aol(layer, bound=0.25), (3,), 0.25, 0.0),
    "aol conv 1d": Parametrized(lambda: nn.Conv1d(2, 3, 3, padding=1), aol, (2, 7), least=0.0),
    "aol conv, strided": Parametrized(conv(2, 5, 3, stride=2, padding=1), aol, (2, 5, 6), least=0.0),
    "aol conv, groups and dilation": Parametrized(
        conv(4, 4, (3, 2), groups=2, dilation=(1, 2)), aol, (4, 5, 4), least=0.0
    ),
    "aol conv 3d": Parametrized(lambda: nn.Conv3d(1, 2, (2, 1, 2)), aol, (1, 2, 2, 3), least=0.0),
}
