"""From a pair that breaks a claim to one that a person can read. Floor 5.

In this order, each as far as the claim stays broken: x moved to zero, the coarsest dyadic grid, entries of the
difference and of x set to zero (delta debugging), one magnitude for all entries, a largest difference of one.

References:
    | Simplifying and isolating failure-inducing input (Zeller and Hildebrandt, 2002)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.falsify.problem import Problem
from lipcert.quotient import quotients

Pair = tuple[Tensor, Tensor]
"""An input and the difference to the other one, both flat."""


@dataclass(frozen=True, eq=False)
class _Judge:
    """Whether pairs still break the claim, in float64; every pair kept is confirmed at the end of its step."""

    problem: Problem
    bound: float
    confirmed: Callable[[Tensor, Tensor], bool]
    deadline: float

    def breaks(self, pairs: list[Pair]) -> list[bool]:
        """Which of many pairs do, and lie in the domain as they are."""
        problem = self.problem
        found: list[bool] = []
        for start in range(0, len(pairs), problem.rows):
            if time.monotonic() > self.deadline:
                break
            chunk = pairs[start : start + problem.rows]
            x = torch.stack([pair[0] for pair in chunk])
            y = x + torch.stack([pair[1] for pair in chunk])
            with torch.no_grad():
                ratio = quotients(problem.function(x), problem.function(y), y - x, problem.norms)
            stays = ((problem.project(x) == x) & (problem.project(y) == y)).all(1)
            found += (stays & (ratio > self.bound)).tolist()
        return found + [False] * (len(pairs) - len(found))

    def first(self, pairs: list[Pair]) -> Pair | None:
        """The first of them that breaks the claim."""
        chunk = self.problem.rows
        for start in range(0, len(pairs), chunk):
            part = pairs[start : start + chunk]
            for pair, broken in zip(part, self.breaks(part), strict=True):
                if broken:
                    return pair
        return None


def shrink(
    problem: Problem, bound: float, x: Tensor, y: Tensor, confirmed: Callable[[Tensor, Tensor], bool], seconds: float
) -> tuple[Tensor, Tensor]:
    """A simpler pair that breaks the claim as well.

    Args:
        problem: What the claim is about.
        bound: The claimed constant.
        x: One input of a pair that is confirmed to break it, of the problem's shape.
        y: The other.
        confirmed: Whether exact arithmetic sees a pair break the claim.
        seconds: When to stop; the simplest confirmed pair so far is returned.

    Returns:
        A confirmed pair; the one given, if nothing simpler is.
    """
    judge = _Judge(problem, bound, confirmed, time.monotonic() + seconds)
    device = problem.seeds.device
    pair = (x.flatten().to(device), (y - x).flatten().to(device))
    kept = (x, y)
    for step in (_moved, _coarse, _without, _alike, _coarse, _without, _scaled, _moved, _coarse):
        simpler = step(judge, pair)
        if all(torch.equal(new, old) for new, old in zip(simpler, pair, strict=True)):
            continue
        first = simpler[0].reshape(problem.shape).cpu()
        second = (simpler[0] + simpler[1]).reshape(problem.shape).cpu()
        if not torch.equal(first, second) and confirmed(first, second):
            pair, kept = simpler, (first, second)
    return kept


def _moved(judge: _Judge, pair: Pair) -> Pair:
    """Begin at zero, and go in the positive direction if that is as good."""
    x, d = pair
    zero = torch.zeros_like(x)
    return judge.first([(zero, d.abs()), (zero, d), (zero, -d), (x, d.abs())]) or pair


def _coarse(judge: _Judge, pair: Pair) -> Pair:
    """Round both to the coarsest grid of a power of two."""
    x, d = pair
    top = int(torch.frexp(torch.maximum(x.abs().max(), d.abs().max())).exponent)
    low = int(torch.frexp(d.abs().max()).exponent)
    grids = [2.0**k for k in range(min(top, low + 1), low - 40, -1)]
    candidates = [(torch.round(x / grid) * grid, torch.round(d / grid) * grid) for grid in grids]
    return judge.first([c for c in candidates if bool(c[1].any())]) or pair


def _without(judge: _Judge, pair: Pair) -> Pair:
    """Zeros in the difference, then in x, as many as the claim stays broken with."""
    for side in (1, 0):
        size = max(1, int(torch.count_nonzero(pair[side])) // 2)
        while True:
            pair, fewer = _pass(judge, pair, side, size)
            if size == 1 and not fewer:
                break
            size = size if fewer else max(1, size // 2)
            if time.monotonic() > judge.deadline:
                return pair
    return pair


def _pass(judge: _Judge, pair: Pair, side: int, size: int) -> tuple[Pair, bool]:
    """Once through all chunks of entries that are not zero; the smallest entries first."""
    order = pair[side].abs().argsort()
    chunks = [chunk for chunk in order[pair[side][order] != 0].split(size) if len(chunk)]
    done, fewer = 0, False
    while done < len(chunks):
        ahead = chunks[done : done + judge.problem.rows]
        broken = judge.breaks([_zeroed(pair, side, chunk) for chunk in ahead])
        if True not in broken:
            done += len(ahead)
            continue
        k = broken.index(True)
        pair, done, fewer = _zeroed(pair, side, ahead[k]), done + k + 1, True
    return pair, fewer


def _zeroed(pair: Pair, side: int, chunk: Tensor) -> Pair:
    changed = pair[side].clone()
    changed[chunk] = 0.0
    return (changed, pair[1]) if side == 0 else (pair[0], changed)


def _alike(judge: _Judge, pair: Pair) -> Pair:
    """One magnitude for all entries of the difference that are not zero, and one for those of x."""
    x, d = pair
    found = judge.first([(x, flat) for flat in _flat(d)])
    x, d = pair if found is None else found
    return judge.first([(flat, d) for flat in _flat(x)]) or (x, d)


def _flat(values: Tensor) -> Iterator[Tensor]:
    there = values != 0
    if not bool(there.any()):
        return
    sizes = values[there].abs()
    for size in (sizes.max(), sizes.median(), sizes.mean()):
        yield there * size
        yield values.sign() * size


def _scaled(judge: _Judge, pair: Pair) -> Pair:
    """A largest difference of one, or else of a power of two."""
    x, d = pair
    largest = d.abs().max()
    power = torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent - 1)
    candidates = [(x / unit, d / unit) for unit in (largest, power)]
    candidates += [(x, d / largest * 2.0**k) for k in (0, 1, -1, 2, -2, -3, -4, 3, 4)]
    return judge.first(candidates) or pair
