"""Parametrizations beside the plain layer and their peers: cost of a training step, and the norm that is really there.

Run ``python -m benchmarks.bench_parametrizations`` (about twenty minutes), or name parts of it: ``linear``, ``conv``,
``orthogonal``, ``tall``, ``orthogonal-conv``, ``certificates``, ``violations``; or
``python -m benchmarks.bench_parametrizations random --count 500``.

One process, one thread. Times are CPU times of forward, backward with input gradient and an SGD step, each taken right
after a step of the plain layer and divided by it: the least over the least, the median, and the mean over at least 20
consecutive steps where they fit (work done every 20 steps shows in the mean alone). Norms are those of the operator in
float64, by singular values or Lanczos iteration on it, at 32x32 for convolutions: they are found by applying the layer,
not by our bounds.

Peers are measured where they can be imported. ``pip install deel-torchlip geotorch orthogonium`` installs them; add
``--no-deps`` (they need torch and numpy only) to leave torch as it is.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils import spectral_norm as hooked

from benchmarks.versions import versions
from lipcert import parametrizations as lipcerts
from lipcert.linear import Conv
from lipcert.opnorm import opnorm, opnorm_any_size

Make = Callable[[], nn.Module]
SECONDS_PER_ROW = 20.0
ROUNDS = 41
SIZE = 32


def spectral(**options: Any) -> Callable[[nn.Module], nn.Module]:
    """Our spectral norm with options, names of option classes standing for calls."""
    made = {key: value() if callable(value) else value for key, value in options.items()}
    return lambda layer: lipcerts.spectral_norm(layer, **made)


def every(steps: int) -> Callable[[], Any]:
    return lambda: lipcerts.Deployed(every=steps)


@dataclass(frozen=True)
class Case:
    """A layer, the inputs it is trained on, and what is put on it or in its place, by name."""

    plain: Make
    shape: tuple[int, ...]
    rows: dict[str, Make]


def wrapped(plain: Make, wraps: dict[str, Callable[[nn.Module], nn.Module | None]]) -> dict[str, Make]:
    def build(wrap: Callable[[nn.Module], nn.Module | None]) -> nn.Module:
        layer = plain()
        return wrap(layer) or layer  # geotorch changes in place

    return {name: lambda wrap=wrap: build(wrap) for name, wrap in wraps.items()}


def peer(module: str, name: str, *arguments: Any, **options: Any) -> Make:
    return lambda: getattr(import_module(module), name)(*arguments, **options)


def torch_orthogonal(map: str) -> Callable[[nn.Module], nn.Module]:
    return lambda layer: parametrizations.orthogonal(layer, orthogonal_map=map)


def our_orthogonal(map: str) -> Callable[[nn.Module], nn.Module]:
    return lambda layer: lipcerts.orthogonal(layer, map=getattr(lipcerts, map)())


def geotorch_orthogonal(layer: nn.Module) -> None:
    import_module("geotorch").orthogonal(layer, "weight")


def spectral_rows(plain: Make, size: Any) -> dict[str, Make]:
    levels = {
        "torch spectral_norm": parametrizations.spectral_norm,
        "torch spectral_norm, 5 steps": lambda layer: parametrizations.spectral_norm(layer, n_power_iterations=5),
        "torch old spectral_norm": hooked,
        "lipcert deployed": lambda layer: spectral(input_size=size)(layer),
        "lipcert deployed, PowerIteration(1)": lambda layer: spectral(
            input_size=size, estimate=lambda: lipcerts.PowerIteration(1)
        )(layer),
        "lipcert proved every 20": lambda layer: spectral(input_size=size, level=every(20))(layer),
        "lipcert everywhere": lambda layer: spectral(input_size=size, level=lipcerts.Everywhere)(layer),
        "lipcert aol": lambda layer: lipcerts.aol(layer, input_size=size),
    }
    return wrapped(plain, levels)


def orthogonal_rows(plain: Make, into: int, out: int) -> dict[str, Make]:
    maps = {f"torch orthogonal {name}": torch_orthogonal(name) for name in ("cayley", "householder", "matrix_exp")}
    names = ("Cayley", "Householder", "QR", "Exponential", "Bjorck", "NewtonSchulz")
    maps |= {f"lipcert orthogonal {name}": our_orthogonal(name) for name in names}
    maps |= {"geotorch orthogonal": geotorch_orthogonal}
    peers = {
        "deel SpectralLinear": peer("deel.torchlip", "SpectralLinear", into, out),
        "orthogonium OrthoLinear": peer("orthogonium.layers.linear", "OrthoLinear", into, out),
    }
    return wrapped(plain, maps) | peers


def cases() -> dict[str, Case]:
    linear = lambda: nn.Linear(1024, 1024)  # noqa: E731
    tall = lambda: nn.Linear(2048, 64)  # noqa: E731
    conv = lambda: nn.Conv2d(64, 64, 3, padding=1)  # noqa: E731
    wraps = lambda: nn.Conv2d(64, 64, 3, padding=1, padding_mode="circular")  # noqa: E731
    deel, aoc = "deel.torchlip", "orthogonium.layers.conv.AOC"
    spectral_linear = {"deel SpectralLinear": peer(deel, "SpectralLinear", 1024, 1024)}
    spectral_conv = {
        "deel SpectralConv2d": peer(deel, "SpectralConv2d", 64, 64, 3, padding=1),
        "deel FrobeniusConv2d": peer(deel, "FrobeniusConv2d", 64, 64, 3, padding=1),
        "orthogonium AOLConv2D": peer("orthogonium.layers.conv.AOL", "AOLConv2D", 64, 64, 3, padding=1),
    }
    torus = {
        "torch orthogonal cayley": torch_orthogonal("cayley"),
        "lipcert orthogonal_convolution": lambda layer: lipcerts.orthogonal_convolution(layer),
        "geotorch orthogonal": geotorch_orthogonal,
    }
    adaptive = peer(aoc, "AdaptiveOrthoConv2d", 64, 64, 3, padding=1, padding_mode="circular")
    return {
        "linear": Case(linear, (256, 1024), spectral_rows(linear, None) | spectral_linear),
        "conv": Case(conv, (32, 64, SIZE, SIZE), spectral_rows(conv, (SIZE, SIZE)) | spectral_conv),
        "orthogonal": Case(linear, (256, 1024), orthogonal_rows(linear, 1024, 1024)),
        "tall": Case(tall, (64, 2048), orthogonal_rows(tall, 2048, 64)),
        "orthogonal-conv": Case(
            wraps, (32, 64, SIZE, SIZE), wrapped(wraps, torus) | {"orthogonium AdaptiveOrthoConv2d": adaptive}
        ),
    }


class Trainer:
    """Steps of SGD along fresh random output gradients, as a layer of a critic feels them; timed one by one."""

    def __init__(self, layer: nn.Module, shape: tuple[int, ...]) -> None:
        self.layer = layer.train()
        self.shape = shape
        self.optimiser = torch.optim.SGD(layer.parameters(), lr=0.02)
        self.generator = torch.Generator().manual_seed(0)

    def step(self) -> float:
        """CPU seconds of one step; drawing its numbers is not counted."""
        x = torch.randn(self.shape, generator=self.generator).requires_grad_()
        with torch.no_grad():
            like = (self.shape[0], *image_shape(self.layer, self.shape[1:]))
        direction = torch.randn(like, generator=self.generator) / self.shape[0]
        start = time.process_time()
        self.optimiser.zero_grad()
        self.layer(x).backward(direction)
        self.optimiser.step()
        return time.process_time() - start


def image_shape(layer: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of an output; all layers here keep the spatial size."""
    sizes = vars(layer)
    return (sizes["out_features"],) if "out_features" in sizes else (sizes["out_channels"], *shape[1:])


def timed(make: Make, case: Case) -> tuple[str, str, str, str]:
    """Milliseconds of the fastest step; and least, median and mean as multiples of the plain layer."""
    ends = time.process_time() + SECONDS_PER_ROW
    plain, layer = Trainer(case.plain(), case.shape), Trainer(make(), case.shape)
    pairs = []
    for count in range(ROUNDS + 1):
        pair = (plain.step(), layer.step())
        pairs += [pair] if count else []  # the first one warms up
        if pairs and time.process_time() > ends:
            break
    bare, dressed = zip(*pairs, strict=True)
    ratios = [
        min(dressed) / min(bare),
        statistics.median(d / b for b, d in pairs),
        statistics.mean(dressed) / statistics.mean(bare),
    ]
    shown = [f"{ratio:.2f}" for ratio in ratios]
    return (f"{1e3 * min(dressed):.1f}", shown[0], shown[1], shown[2] if len(pairs) >= 20 else "-")


def true_norm(layer: nn.Module, shape: tuple[int, ...]) -> float:
    """The l2 norm of what the layer does in its present mode, in float64; from its weight, read once, on a copy."""
    weight = copy.deepcopy(layer, memo_of(layer)).weight
    assert isinstance(weight, Tensor)
    weight = weight.detach().double()
    if not bool(torch.isfinite(weight).all()):
        return math.nan
    if weight.ndim == 2:
        return float(torch.linalg.matrix_norm(weight, 2))
    bare = bare_like(layer, weight)
    inputs = torch.zeros(1, *shape[1:], dtype=torch.float64)
    _, transpose = torch.func.vjp(bare, inputs)

    def gram(v: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return transpose(bare(torch.from_numpy(v).reshape(inputs.shape)))[0].flatten().numpy()

    size = inputs.numel()
    start = np.random.default_rng(0).standard_normal(size)
    square = LinearOperator((size, size), matvec=gram, dtype=np.float64)  # type: ignore[call-arg]
    return math.sqrt(max(0.0, float(eigsh(square, k=1, v0=start, tol=1e-7, return_eigenvectors=False)[0])))


def memo_of(layer: nn.Module) -> dict[int, Any]:
    """Tensors with a history (the weight of old-style norms) cannot be copied as they are."""
    tensors = [value for part in layer.modules() for value in vars(part).values() if isinstance(value, Tensor)]
    return {id(tensor): tensor.detach().clone() for tensor in tensors if not tensor.is_leaf}


def bare_like(layer: nn.Module, weight: Tensor) -> nn.Module:
    """The plain layer of torch with the options of a layer and no bias, float64."""
    if weight.ndim == 2:
        bare = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=torch.float64)
    else:
        transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
        named = f"Conv{'Transpose' if transposed else ''}{weight.ndim - 2}d"
        names = "in_channels out_channels kernel_size stride padding dilation groups padding_mode".split()
        options = {name: getattr(layer, name) for name in [*names, *["output_padding"] * transposed]}
        bare = getattr(nn, named)(**options, bias=False, dtype=torch.float64)
    bare.weight = nn.Parameter(weight, requires_grad=False)
    return bare


def norms(make: Make, case: Case) -> list[str]:
    """True norms at the stages where claims break."""
    layer = make()
    shown = [attempt(lambda: true_norm(layer.eval(), case.shape))]
    trainer = Trainer(layer, case.shape)
    ends = time.process_time() + SECONDS_PER_ROW
    steps = sum(1 for _ in itertools.takewhile(lambda _: time.process_time() < ends, range(20)) if trainer.step())
    late = f" ({steps} steps)" if steps < 20 else ""
    shown.append(attempt(lambda: true_norm(layer.train(), case.shape)) + late)
    shown.append(attempt(lambda: true_norm(layer.eval(), case.shape)))
    spiked = copy.deepcopy(layer, memo_of(layer)).train()
    x = torch.randn(2, *case.shape[1:], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        spike(max(spiked.parameters(), key=Tensor.numel))
        shown.append(attempt(lambda: spiked(x) is not None and true_norm(spiked, case.shape)))
    shown.append(attempt(lambda: assigned(layer, case.shape)))
    return shown


def spike(parameter: Tensor) -> None:
    """Add a matrix of rank one and norm 6."""
    generator = torch.Generator().manual_seed(2)
    matrix = parameter.reshape(len(parameter), -1)
    a, b = (torch.randn(n, generator=generator) for n in matrix.shape)
    parameter += (6.0 * torch.outer(a / a.norm(), b / b.norm())).reshape(parameter.shape)


def assigned(layer: nn.Module, shape: tuple[int, ...]) -> float:
    """Assign a Gaussian weight in training mode, then evaluate."""
    layer = copy.deepcopy(layer, memo_of(layer)).train()
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if not parametrize.is_parametrized(layer, "weight"):
        raise TypeError("the weight cannot be assigned")
    layer.weight = torch.randn(weight.shape, generator=torch.Generator().manual_seed(3))
    return true_norm(layer.eval(), shape)


def attempt(measure: Callable[[], float]) -> str:
    try:
        return f"{measure():.5f}"
    except ModuleNotFoundError as error:
        return "not there yet" if (error.name or "").startswith("lipcert") else "not installed"
    except Exception as error:  # peers raise what they like
        return type(error).__name__


def run(name: str, case: Case, console: Console) -> None:
    """Print the table of a case."""
    columns = ("layer", "ms", "x least", "x median", "x mean", "init eval", "20 steps train", "eval", "spike", "assign")
    table = Table(*columns, title=f"{name}: {case.plain()!r}, inputs {case.shape}; norms are to be 1")
    for row, make in {"plain": case.plain, **case.rows}.items():
        console.log(row)
        torch.manual_seed(0)
        built = attempt(lambda make=make: float(isinstance(make(), nn.Module)))
        cells = [*timed(make, case), *norms(make, case)] if built == "1.00000" else [built]
        table.add_row(row, *cells)
    console.print(table)


def certificates(console: Console) -> None:
    """One proof of the norm of a convolution, at one size and at all."""
    torch.manual_seed(0)
    layer = nn.Conv2d(64, 64, 3, padding=1).double()
    pads = ((1, 1), (1, 1))
    conv = Conv(layer.weight.detach(), (64, SIZE, SIZE), (SIZE, SIZE), (1, 1), pads, (1, 1), 1, "zeros")
    on_torus = nn.Conv2d(64, 64, 3, padding=1, padding_mode="circular").double()
    on_torus.weight = layer.weight
    table = Table("certificate", "bound", "norm", "gap", "ms least", title="64 -> 64, 3x3, zero padding")
    proofs = {
        f"at {SIZE}x{SIZE}": (lambda: opnorm(conv).value, true_norm(layer, (1, 64, SIZE, SIZE))),
        "any size": (lambda: opnorm_any_size(conv).value, true_norm(on_torus, (1, 64, 72, 72))),
    }
    for name, (prove, norm) in proofs.items():
        seconds = []
        for _ in range(5):
            start = time.process_time()
            bound = prove()
            seconds.append(time.process_time() - start)
        gap = f"{bound / norm - 1.0:.2e}"
        table.add_row(name, f"{bound:.6f}", f"{norm:.6f}", gap, f"{1e3 * min(seconds):.1f}")
    console.print(table)


def ones() -> nn.Module:
    layer = nn.Conv2d(1, 1, 7, padding=3, padding_mode="circular", bias=False)
    nn.init.ones_(layer.weight)
    return layer


def converged(layer: nn.Module) -> nn.Module:
    """Torch's spectral norm after 30 steps of its iteration."""
    layer = parametrizations.spectral_norm(layer, n_power_iterations=30).train()
    assert isinstance(layer.weight, Tensor)  # reading it moves the iteration
    return layer


def stale() -> nn.Module:
    layer = parametrizations.spectral_norm(nn.Linear(64, 64))
    layer.weight = torch.randn(64, 64)
    return layer


def promises() -> dict[str, tuple[Make, tuple[int, ...]]]:
    """Layers that state norm 1, and the shape of an input at which to look."""
    reflect, replicate = (dict(padding=p, padding_mode=mode) for p, mode in ((1, "reflect"), (2, "replicate")))
    deel = lambda *sizes, **options: peer("deel.torchlip", "SpectralConv2d", *sizes, **options)  # noqa: E731
    conv = nn.Conv2d
    at = spectral(input_size=(12, 12))
    aoc = peer("orthogonium.layers.conv.AOC", "AdaptiveOrthoConv2d", 8, 8, 3, **reflect)
    aol = peer("orthogonium.layers.conv.AOL", "AOLConv2D", 8, 8, 3, **reflect)
    kernel = conv(8, 8, 3, padding=1, groups=4), conv(8, 8, 3, padding=1, stride=2)
    return {
        "deel SpectralConv2d(1, 9, 3, padding=1, reflect)": (deel(1, 9, 3, **reflect), (1, 12, 12)),
        "deel SpectralConv2d(1, 25, 5, padding=2, replicate)": (deel(1, 25, 5, **replicate), (1, 12, 12)),
        "deel SpectralConv2d(1, 9, 3, stride=2, dilation=2)": (deel(1, 9, 3, stride=2, dilation=2), (1, 24, 24)),
        "deel SpectralConv2d(1, 9, 3, stride=3, dilation=3)": (deel(1, 9, 3, stride=3, dilation=3), (1, 24, 24)),
        "orthogonium AdaptiveOrthoConv2d(8, 8, 3, reflect)": (aoc, (8, 4, 4)),
        "orthogonium AOLConv2D(8, 8, 3, reflect)": (aol, (8, 4, 4)),
        "torch spectral_norm, 7x7 kernel of ones": (lambda: parametrizations.spectral_norm(ones()), (1, 8, 8)),
        "torch spectral_norm, groups=4": (lambda: converged(kernel[0]), (8, 12, 12)),
        "torch spectral_norm, stride=2": (lambda: converged(kernel[1]), (8, 12, 12)),
        "torch spectral_norm, weight assigned": (stale, (64,)),
        "lipcert spectral_norm(1, 9, 3, padding=1, reflect)": (lambda: at(conv(1, 9, 3, **reflect)), (1, 12, 12)),
        "lipcert spectral_norm(1, 25, 5, replicate)": (lambda: at(conv(1, 25, 5, **replicate)), (1, 12, 12)),
        "lipcert spectral_norm(1, 9, 3, stride=3, dilation=3)": (
            lambda: spectral()(conv(1, 9, 3, stride=3, dilation=3)),
            (1, 24, 24),
        ),
        "lipcert spectral_norm, 7x7 kernel of ones": (lambda: spectral()(ones()), (1, 8, 8)),
        "lipcert spectral_norm, groups=4": (lambda: at(conv(8, 8, 3, padding=1, groups=4)), (8, 12, 12)),
        "lipcert spectral_norm, stride=2": (lambda: at(conv(8, 8, 3, padding=1, stride=2)), (8, 12, 12)),
    }


def violations(console: Console) -> None:
    """Claims that are wrong by construction: no training, no luck."""
    table = Table("layer", "stated", "true norm", title="claims beside the operator, after init, in evaluation")
    torch.manual_seed(0)
    for name, (make, shape) in promises().items():
        torch.manual_seed(0)
        table.add_row(name, "1", attempt(lambda make=make, shape=shape: dense_norm(make().eval(), shape)))
    layer = nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False)
    layer.weight.data[:4] *= 0.05
    certifier = lambda: import_module("orthogonium.layers.conv.singular_values").get_conv_sv  # noqa: E731
    stated = attempt(lambda: float(certifier()(layer, n_iter=6, return_stab_rank=False)))
    table.add_row("orthogonium get_conv_sv, groups=2", stated, attempt(lambda: dense_norm(layer, (8, 12, 12))))
    console.print(table)


def dense_norm(layer: nn.Module, shape: tuple[int, ...]) -> float:
    """By applying a plain layer with its weight to every unit vector."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    bare = bare_like(layer, weight.detach().double())
    units = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
    with torch.no_grad():
        return float(torch.linalg.matrix_norm(bare(units).flatten(1), 2))


def draw(rng: np.random.Generator) -> tuple[nn.Module, tuple[int, ...]]:
    """A random layer of at most a few hundred inputs and outputs, and the shape of its inputs."""

    def pick(*choices: Any) -> Any:
        return choices[rng.integers(len(choices))]

    dimensions = pick(0, 1, 1, 2, 2, 3)
    if dimensions == 0:
        shape = (int(rng.integers(1, 40)),)
        return nn.Linear(shape[0], int(rng.integers(1, 40))), shape
    transposed = bool(rng.integers(2))
    groups = pick(1, 1, 2, 3)
    most = {1: 20, 2: 8, 3: 4}[dimensions]
    while True:
        kernel, stride, dilation, padding = (
            tuple(int(rng.integers(low, high + 1)) for _ in range(dimensions))
            for low, high in ((1, 4), (1, 3), (1, 2), (0, 2))
        )
        mode = "zeros" if transposed else pick("zeros", "zeros", "circular", "reflect", "replicate")
        sizes = tuple(int(n) for n in rng.integers(2, most + 1, dimensions))
        channels = (groups * int(rng.integers(1, 4)), groups * int(rng.integers(1, 4)))
        layer_class = getattr(nn, f"Conv{'Transpose' if transposed else ''}{dimensions}d")
        options = {"output_padding": tuple(int(rng.integers(max(s, d))) for s, d in zip(stride, dilation, strict=True))}
        layer = layer_class(
            *channels,
            kernel,
            stride,
            padding,
            groups=groups,
            dilation=dilation,
            padding_mode=mode,
            **(options if transposed else {}),
        )
        shape = (channels[0], *sizes)
        try:
            with torch.no_grad():
                if layer(torch.zeros(2, *shape)).numel():
                    return layer, shape
        except RuntimeError:  # the kernel or the padding does not fit the size: draw again
            continue


OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=1.0, momentum=0.9),
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=0.1),
    "RMSprop": lambda parameters: torch.optim.RMSprop(parameters, lr=0.3),
}


def random_layers(count: int, console: Console) -> int:
    """Train random layers roughly, and count claims that the operator breaks; exit status 1 if there is one."""
    from lipcert.parametrizations.operators import operator_of

    judged: dict[tuple[str, str], list[float]] = {}
    unproved = 0
    for index in range(count):
        rng = np.random.default_rng([7, index])
        torch.manual_seed(index)
        drawn, shape = draw(rng)
        # At every size in three dimensions a proof takes seconds; of the others, half are claimed at every size.
        sized = len(shape) == 4 or (len(shape) > 1 and bool(rng.integers(2)))
        bound = float(rng.choice([0.3, 1.0, 2.5]))
        for optimiser, level in itertools.product(OPTIMISERS, ("Deployed", "Everywhere")):
            layer = copy.deepcopy(drawn)
            spectral(bound=bound, input_size=shape[1:] if sized else None, level=getattr(lipcerts, level))(layer)
            rule = OPTIMISERS[optimiser](layer.parameters())
            for _ in range(4):
                y = layer.train()(torch.randn(3, *shape))
                rule.zero_grad()
                y.backward(torch.randn_like(y))
                rule.step()
            for mode in ("eval", "train") if level == "Everywhere" else ("eval",):
                layer.train(mode == "train")
                norm = dense_norm(layer, shape)
                judged.setdefault((optimiser, f"{level} {mode}"), []).append(norm / bound)
                if mode == "eval":
                    operator = operator_of(drawn, "weight", shape[1:] if sized else None)
                    blocks = operator.split(layer.weight.detach().double())
                    unproved += not max(operator.prove(block) for block in blocks) <= bound
    table = Table("optimiser", "claim", "layers", "above", "largest / bound", "median", title=f"{count} random layers")
    above = 0
    for (optimiser, claim), ratios in judged.items():
        high = sum(not ratio <= 1.0 for ratio in ratios)
        above += high
        middle = f"{statistics.median(ratios):.6f}"
        table.add_row(optimiser, claim, str(len(ratios)), str(high), f"{max(ratios):.9f}", middle)
    console.print(table)
    console.print(f"{above} dense norms above the bound, {unproved} evaluation weights not proved")
    return int(above + unproved > 0)


PACKAGES = ("torch", "deel-torchlip", "geotorch", "orthogonium")


def main(arguments: list[str]) -> int:
    """Run the parts that are named, or all."""
    everything = cases()
    parts = [*everything, "certificates", "violations"]
    parser = argparse.ArgumentParser(prog="bench_parametrizations", description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("parts", nargs="*", choices=[*parts, "random", []], default=[])
    parser.add_argument("--count", type=int, default=500, help="number of random layers")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")  # of peers
    console = Console(width=160, log_path=False)
    console.print(versions(*PACKAGES), "one thread", sep="; ")
    if "random" in chosen.parts:
        return random_layers(chosen.count, console)
    for part in chosen.parts or parts:
        if part in everything:
            run(part, everything[part], console)
        else:
            {"certificates": certificates, "violations": violations}[part](console)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
