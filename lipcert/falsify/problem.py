"""What a search is about, and how a pair is measured in it. Floor 5."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lipcert.domain import Domain
from lipcert.linear import Shape
from lipcert.norms import Norms
from lipcert.quotient import Function, quotients

Candidate = tuple[float, Tensor, Tensor]
"""A quotient lowered by an allowance for rounding, and the flat pair that has it."""


@dataclass
class Board:
    """The best pair that any engine has found, which the others may start from."""

    best: Candidate | None = None
    engine: str = ""

    def offer(self, candidate: Candidate, engine: str) -> None:
        """Keep a candidate if it is better than the best."""
        if self.best is None or candidate[0] > self.best[0]:
            self.best, self.engine = candidate, engine

    @property
    def ratio(self) -> float:
        """The best quotient so far."""
        return 0.0 if self.best is None else self.best[0]


@dataclass(frozen=True, eq=False)
class Problem:
    """A function and the pairs it may be tried on.

    Attributes:
        function: Takes flat float64 batches ``(N, size)``, gives flat ones.
        shape: Of one input.
        norms: On input and output.
        domain: Where both inputs must lie.
        seeds: Inputs that the user gave, flat; shape ``(0, size)`` if none.
        board: The best pair so far.
    """

    function: Function
    shape: Shape
    norms: Norms
    domain: Domain
    seeds: Tensor
    board: Board = field(default_factory=Board)

    @property
    def size(self) -> int:
        """Numbers in one input."""
        return math.prod(self.shape)

    @property
    def rows(self) -> int:
        """How many inputs an engine looks at side by side: fewer where they are large."""
        return max(4, min(64, 2**16 // self.size))

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Random flat inputs."""
        return self.domain.sample(count, self.shape, generator).flatten(1).to(self.seeds.device)

    def project(self, x: Tensor) -> Tensor:
        """Flat inputs moved into the domain."""
        return self.domain.project(x.reshape(len(x), *self.shape)).flatten(1)

    def best_of(self, x: Tensor, y: Tensor) -> Candidate:
        """The best of many pairs, both of whose inputs are first moved into the domain."""
        with torch.no_grad():
            x, y = self.project(x), self.project(y)
            found = quotients(self.function(x), self.function(y), y - x, self.norms)
        k = int(found.argmax())
        return float(found[k]), x[k].clone(), y[k].clone()


Engine = Callable[[Problem, torch.Generator], Iterator[Candidate]]
"""Yields a candidate after every small piece of work, for ever."""
