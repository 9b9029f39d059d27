"""Cost of one critic step with each penalty, beside a plain step and steps with spectral normalisation.

Run ``python -m benchmarks.bench_penalties`` (a minute), with ``--rounds`` and ``--batch`` to change the defaults.

One process, one thread. A step is the Wasserstein loss of two batches, its penalty, backward and an SGD step. In every
round each method takes one step, one right after the other, so that all see the same machine; a ratio is taken within a
round, and the table shows the least, the median and the largest ratio to the plain step. Times are CPU times.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from benchmarks.versions import versions
from lipcert import penalties
from lipcert.parametrizations import PowerIteration, spectral_norm

Wrap = Callable[[nn.Module, int | None], nn.Module]
Term = Callable[[nn.Module, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Method:
    """What is put on each layer, what is added to the loss, and what is done after the step."""

    wrap: Wrap = lambda layer, size: layer
    term: Term | None = None
    after: Callable[[nn.Module], None] = lambda critic: None


def usual(critic: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The gradient penalty as most code has it: one backward pass of the summed scores."""
    epsilon = torch.rand(len(x), *[1] * (x.ndim - 1))
    between = (epsilon * x + (1.0 - epsilon) * y).requires_grad_(True)
    (g,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return (torch.linalg.vector_norm(g.flatten(1), dim=1) - 1.0).square().mean()


def methods(shape: tuple[int, ...]) -> dict[str, Method]:
    drawn = torch.Generator().manual_seed(0)
    vectors: dict[int, penalties.SpectralTerm] = {}

    def spectral(critic: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        known = vectors.get(id(critic))
        start = known.vectors if known else penalties.starting_vectors(critic, shape, generator=drawn)
        vectors[id(critic)] = term = penalties.spectral_regularisation(critic, start)
        return term.value

    def penalty(side: penalties.TwoSided | penalties.OneSided) -> Term:
        return lambda critic, x, y: 10.0 * penalties.gradient_penalty(critic, x, y, side=side, generator=drawn)

    def ours(layer: nn.Module, size: int | None, **options: PowerIteration) -> nn.Module:
        return spectral_norm(layer, input_size=size, **options)

    return {
        "plain": Method(),
        "gradient_penalty, two-sided": Method(term=penalty(penalties.TwoSided())),
        "gradient_penalty, one-sided": Method(term=penalty(penalties.OneSided())),
        "gradient penalty by autograd.grad": Method(term=lambda critic, x, y: 10.0 * usual(critic, x, y)),
        "r1": Method(term=lambda critic, x, y: 5.0 * penalties.r1(critic, x)),
        "r1 + r2": Method(term=lambda critic, x, y: 5.0 * (penalties.r1(critic, x) + penalties.r2(critic, y))),
        "clip_weights": Method(after=lambda critic: penalties.clip_weights(critic, 0.01)),
        "frobenius_orthogonality": Method(term=lambda critic, x, y: 1e-4 * penalties.frobenius_orthogonality(critic)),
        "off_diagonal_orthogonality": Method(
            term=lambda critic, x, y: 1e-4 * penalties.off_diagonal_orthogonality(critic)
        ),
        "spectral_regularisation": Method(term=lambda critic, x, y: 0.01 * spectral(critic, x, y)),
        "torch spectral_norm": Method(wrap=lambda layer, size: parametrizations.spectral_norm(layer)),
        "lipcert spectral_norm": Method(wrap=ours),
        "lipcert spectral_norm, PowerIteration(1)": Method(
            wrap=lambda layer, size: ours(layer, size, estimate=PowerIteration(1))
        ),
    }


def perceptron(wrap: Wrap) -> nn.Module:
    sizes = (128, 256, 256, 1)
    layers = [wrap(nn.Linear(n, m), None) for n, m in itertools.pairwise(sizes)]
    return nn.Sequential(layers[0], nn.LeakyReLU(0.2), layers[1], nn.LeakyReLU(0.2), layers[2])


def convolutions(wrap: Wrap) -> nn.Module:
    layers = [
        wrap(nn.Conv2d(3, 32, 3, padding=1), 32),
        wrap(nn.Conv2d(32, 64, 4, stride=2, padding=1), 32),
        wrap(nn.Conv2d(64, 128, 4, stride=2, padding=1), 16),
    ]
    between = [each for layer in layers for each in (layer, nn.LeakyReLU(0.2))]
    return nn.Sequential(*between, nn.Flatten(), wrap(nn.Linear(128 * 64, 1), None))


CRITICS = {"perceptron 128-256-256-1": (perceptron, (128,)), "convolutions, 3x32x32": (convolutions, (3, 32, 32))}


def stepper(make: Callable[[Wrap], nn.Module], method: Method, x: Tensor, y: Tensor) -> Callable[[], None]:
    torch.manual_seed(0)
    critic = make(method.wrap).train()
    optimiser = torch.optim.SGD(critic.parameters(), lr=1e-4)

    def step() -> None:
        optimiser.zero_grad()
        loss = critic(y).mean() - critic(x).mean()
        if method.term is not None:
            loss = loss + method.term(critic, x, y)
        loss.backward()
        optimiser.step()
        method.after(critic)

    return step


def table(name: str, batch: int, rounds: int) -> Table:
    make, shape = CRITICS[name]
    x, y = torch.randn(batch, *shape), torch.randn(batch, *shape)
    steps = {each: stepper(make, method, x, y) for each, method in methods(shape).items()}
    seconds: dict[str, list[float]] = {each: [] for each in steps}
    for number in range(rounds + 2):
        for each, step in steps.items():
            start = time.process_time()
            step()
            if number >= 2:  # the first steps allocate, and iterate from a cold start
                seconds[each].append(time.process_time() - start)
    shown = Table("method", "ms", "x least", "x median", "x largest", title=f"{name}, batch {batch}, {rounds} rounds")
    for each, taken in seconds.items():
        ratios = [mine / plain for mine, plain in zip(taken, seconds["plain"], strict=True)]
        cells = (min(ratios), statistics.median(ratios), max(ratios))
        shown.add_row(each, f"{1e3 * statistics.median(taken):.1f}", *(f"{ratio:.2f}" for ratio in cells))
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=32)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=110)
    console.print(f"{versions('torch', 'lipcert')}, one thread")
    for name in CRITICS:
        console.print(table(name, chosen.batch, chosen.rounds))


if __name__ == "__main__":
    main()
