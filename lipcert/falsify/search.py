"""Engines in turns, until a pair is confirmed or the effort is spent. Floor 5."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.enclosure import Stretch
from lipcert.errors import InvalidInput
from lipcert.falsify.engines import ENGINES, near_best
from lipcert.falsify.problem import Problem

_DOUBT = 1 + 2.0**-42
"""The allowance for rounding that a quotient was lowered by: so close to the bound, exact arithmetic has to say."""

Confirm = Callable[[Tensor, Tensor], Stretch | None]
"""What exact arithmetic says of a pair; ``None`` where it cannot say."""


@dataclass(frozen=True)
class Effort:
    """How long to look, whichever ends first.

    Attributes:
        seconds: Of search. With a finite value the outcome depends on the speed of the machine.
        rounds: Turns of every engine.
    """

    seconds: float = 5.0
    rounds: int = 1000

    def __post_init__(self) -> None:
        """Refuse an effort that looks at nothing."""
        if not (self.seconds > 0.0 and self.rounds > 0):
            raise InvalidInput(f"an effort of {self.seconds} seconds and {self.rounds} rounds looks at nothing.")


@dataclass(frozen=True, eq=False)
class Found:
    """The outcome of a search.

    Attributes:
        x: One input, of the problem's shape.
        y: The other.
        ratio: Their quotient in float64, lowered by an allowance for rounding.
        stretch: Their quotient without rounding, if it exceeds the bound; else ``None``.
        engine: Which engine found the pair.
        seconds: How long it took.
        lost: Engines that could not run, and why.
    """

    x: Tensor
    y: Tensor
    ratio: float
    stretch: Stretch | None
    engine: str
    seconds: float
    lost: dict[str, str]


def search(problem: Problem, bound: float, effort: Effort, generator: torch.Generator, confirm: Confirm) -> Found:
    """Look for a pair whose quotient exceeds the bound, and have it confirmed.

    Only a confirmed pair ends the search early; where float64 sees a violation that exact arithmetic does not confirm,
    the search goes on for a better pair.
    """
    began = time.monotonic()
    seeds = torch.randint(2**62, (len(ENGINES),), generator=generator).tolist()
    running = {
        name: engine(problem, torch.Generator().manual_seed(seed))
        for (name, engine), seed in zip(ENGINES.items(), seeds, strict=True)
    }
    board, bar, best_time = problem.board, bound, 0.0
    lost: dict[str, str] = {}
    board.offer(near_best(problem), "first")
    for _ in range(effort.rounds):
        for name, engine in list(running.items()):
            before = board.ratio
            try:
                board.offer(next(engine), name)
            except RuntimeError as reason:  # torch cannot differentiate something; other engines go on
                lost[name] = str(reason)
                del running[name]
            if board.ratio > before:
                best_time = time.monotonic() - began
            if board.ratio * _DOUBT > bar:
                found = _found(problem, best_time, lost, confirm)
                if found.stretch is not None and found.stretch.exceeds(bound):
                    return found
                bar = board.ratio * (1 + 1e-9)
            if not running or time.monotonic() - began > effort.seconds:
                return _found(problem, best_time, lost, None)
    return _found(problem, best_time, lost, None)


def _found(problem: Problem, seconds: float, lost: dict[str, str], confirm: Confirm | None) -> Found:
    best = problem.board.best
    assert best is not None
    ratio, x, y = best[0], *(side.reshape(problem.shape).cpu() for side in best[1:])
    inside = problem.domain.contains(x) and problem.domain.contains(y)
    stretch = confirm(x, y) if confirm is not None and inside and math.isfinite(ratio) else None
    return Found(x, y, ratio, stretch, problem.board.engine, seconds, lost)
