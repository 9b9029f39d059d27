"""Ways to look for pairs that stretch; none of them finds everything. Floor 5.

An engine is a generator that yields its best pair after every few evaluations, so that a search can take turns. A new
one is a function here and a line in `ENGINES`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from lipcert.falsify.problem import Candidate, Engine, Problem
from lipcert.quotient import DISTANCES, length, power_step, uphill

_POINTS = 33


def structured(problem: Problem, generator: torch.Generator) -> Iterator[Candidate]:
    """Round inputs and directions: zero, constants, one-hot, checkerboards, and the inputs that the user gave."""
    size, rows = problem.size, problem.rows
    bases = torch.cat([_constants(problem), problem.seeds])
    for directions in itertools.chain(_patterns(problem), _one_hots(problem, generator)):
        for scale in (1.0, 1e-3, 30.0):
            for base in bases.split(max(1, rows // len(directions))):
                x = base.repeat_interleave(len(directions), 0)
                d = directions.repeat(len(base), 1) * scale
                yield problem.best_of(x, x + d)
    while True:
        k = torch.randint(size, (rows,), generator=generator).to(bases.device)
        x = torch.zeros(rows, size, dtype=torch.float64, device=bases.device)
        d = torch.nn.functional.one_hot(k, size).double()
        yield problem.best_of(x, x + d)


def near_pairs(problem: Problem, generator: torch.Generator) -> Iterator[Candidate]:
    """Random inputs and random or sparse directions, at distances from 1e-6 to 10."""
    rows = problem.rows
    while True:
        x = problem.sample(rows, generator)
        d = torch.randn(rows, problem.size, generator=generator, dtype=torch.float64)
        kept = torch.rand(rows, problem.size, generator=generator) < torch.rand(rows, 1, generator=generator)
        d[::2] *= kept[::2]
        far = 10.0 ** (torch.rand(rows, 1, generator=generator, dtype=torch.float64) * 7 - 6)
        d = (d / length(d, 2.0)[:, None].clamp_min(1e-300) * far).to(x.device)
        yield problem.best_of(x, x + d)


def segments(problem: Problem, generator: torch.Generator) -> Iterator[Candidate]:
    """Along a random segment, the steepest of many short pieces, again and again: kinks, spikes and jumps."""
    count = max(1, problem.rows // 8)
    share = torch.linspace(0, 1, _POINTS, dtype=torch.float64, device=problem.seeds.device)[:, None]
    while True:
        x, y = problem.sample(count, generator), problem.sample(count, generator)
        for _ in range(6):
            points = problem.project((x[:, None] + share * (y - x)[:, None]).flatten(0, 1)).unflatten(0, (count, -1))
            with torch.no_grad():
                values = problem.function(points.flatten(0, 1)).unflatten(0, (count, _POINTS))
            steep = torch.linalg.vector_norm(values[:, 1:] - values[:, :-1], problem.norms.q, dim=2)
            k = steep.nan_to_num(0.0, 0.0, 0.0).argmax(1)
            each = torch.arange(count, device=k.device)
            x, y = points[each, k], points[each, k + 1]
            yield problem.best_of(x, y)


def jacobian(problem: Problem, generator: torch.Generator) -> Iterator[Candidate]:
    """Power iteration on the Jacobian at inputs of several sizes: exact where the function is linear."""
    rows = max(4, problem.rows // 8)
    while True:
        x = torch.cat([problem.seeds[:rows], problem.sample(rows, generator)])[:rows]
        v = torch.randn(rows, problem.size, generator=generator, dtype=torch.float64).to(x.device)
        for _ in range(4):
            for _ in range(6):
                v = power_step(problem.function, x, v, problem.norms)
            yield _along(problem, x, v)


def ascent(problem: Problem, generator: torch.Generator) -> Iterator[Candidate]:
    """Gradient ascent on the difference quotient of pairs, x and y together."""
    rows = max(4, problem.rows // 8)
    while True:
        x = problem.sample(rows, generator)
        v = torch.randn(rows, problem.size, generator=generator, dtype=torch.float64).to(x.device)
        for _ in range(3):
            v = power_step(problem.function, x, v, problem.norms)
        yield from _climb(problem, x, v, 0.3)


def refined(problem: Problem, generator: torch.Generator) -> Iterator[Candidate]:
    """Ascent around the best pair of all engines, with steps of several sizes, and power iteration at its middle."""
    while True:
        if problem.board.best is None:
            yield near_best(problem)
            continue
        _, x, y = problem.board.best
        v = (y - x)[None].repeat(4, 1)
        base = torch.stack([x, (x + y) / 2, y, x + (y - x) * 0.1])
        for _ in range(8):
            v = power_step(problem.function, base, v, problem.norms)
        yield _along(problem, base, v)
        for pace in (0.1, 0.01, 0.001):
            noise = torch.randn(4, problem.size, generator=generator, dtype=torch.float64).to(x.device)
            spread = length((y - x)[None], 2.0)[:, None] + 1e-3 * length(x[None], 2.0)[:, None]
            start = x + noise * pace * spread / math.sqrt(problem.size)
            yield from _climb(problem, start, (y - x).expand_as(start), pace)


def rare_branches(problem: Problem, generator: torch.Generator) -> Iterator[Candidate]:
    """Far out along single coordinates and along the diagonal, where a branch may be that random inputs never reach."""
    rows, size = problem.rows, problem.size
    while True:
        k = torch.randint(size, (rows,), generator=generator)
        sign = torch.randint(2, (rows, 1), generator=generator) * 2.0 - 1.0
        far = 10.0 ** (torch.rand(rows, 1, generator=generator, dtype=torch.float64) * 4 - 1)
        axis = torch.nn.functional.one_hot(k, size).double()
        axis[::8] = 1.0
        x = (sign * far * axis).to(problem.seeds.device)
        d = torch.randn(rows, size, generator=generator, dtype=torch.float64)
        d[::2] = sign[::2] * axis[::2]
        yield problem.best_of(x, x + 1e-2 * d.to(x))


ENGINES: dict[str, Engine] = {
    engine.__name__: engine for engine in (structured, jacobian, near_pairs, ascent, refined, segments, rare_branches)
}


def near_best(problem: Problem) -> Candidate:
    """A pair to begin with."""
    x = torch.zeros(1, problem.size, dtype=torch.float64, device=problem.seeds.device)
    return problem.best_of(x, x + 1.0)


def _along(problem: Problem, x: Tensor, v: Tensor) -> Candidate:
    """The best of several distances along directions, forwards and backwards."""
    unit = v / length(v, problem.norms.p)[:, None].clamp_min(1e-300)
    size = length(x, 2.0)[:, None] / math.sqrt(x.shape[1]) + 0.1
    steps = [sign * far * size * unit for far in (*DISTANCES, 1e-5, 1e-7) for sign in (1.0, -1.0)]
    return problem.best_of(x.repeat(len(steps), 1), torch.cat([x + step for step in steps]))


def _climb(problem: Problem, x: Tensor, v: Tensor, pace: float) -> Iterator[Candidate]:
    """Normalised gradient steps on ``log |f(x + d) - f(x)|_q - log |d|_p``, shorter and shorter."""
    size = length(x, 2.0)[:, None] / math.sqrt(x.shape[1]) + 0.1
    d = v / length(v, problem.norms.p)[:, None].clamp_min(1e-300) * size
    for step in range(24):
        up_x, up_d = uphill(problem.function, x, d, problem.norms)
        stride = pace * size / (1 + 0.1 * step)
        x = problem.project(x + stride * _unit(up_x))
        d = problem.project(x + d + 0.3 * stride * _unit(up_d)) - x
        if step % 6 == 5:
            yield problem.best_of(x, x + d)


def _unit(x: Tensor) -> Tensor:
    x = x.nan_to_num(0.0, 0.0, 0.0)
    return x / length(x, 2.0)[:, None].clamp_min(1e-300)


def _constants(problem: Problem) -> Tensor:
    """Zero, one, minus one and a small ramp."""
    size, device = problem.size, problem.seeds.device
    ones = torch.ones(size, dtype=torch.float64, device=device)
    ramp = torch.linspace(-1, 1, size, dtype=torch.float64, device=device)
    return torch.stack([0 * ones, ones, -ones, ramp])


def _patterns(problem: Problem) -> Iterator[Tensor]:
    """A constant, checkerboards, stripes along every dimension, and the same in one channel."""
    index = torch.stack(torch.meshgrid(*(torch.arange(n) for n in problem.shape), indexing="ij"))
    stripes = [(1.0 - 2.0 * (i % 2)).double() for i in index]
    spatial = index[1:] if len(problem.shape) > 1 else index
    patterns = [torch.ones(problem.shape, dtype=torch.float64), (1.0 - 2.0 * (spatial.sum(0) % 2)).double(), *stripes]
    single = [pattern * (index[0] == 0) for pattern in patterns]
    yield torch.stack([*patterns, *single]).flatten(1).to(problem.seeds.device)


def _one_hots(problem: Problem, generator: torch.Generator) -> Iterator[Tensor]:
    """Single entries: all of them, in a random order, up to 512."""
    order = torch.randperm(problem.size, generator=generator)[:512]
    for chunk in order.split(problem.rows):
        yield torch.nn.functional.one_hot(chunk, problem.size).double().to(problem.seeds.device)
