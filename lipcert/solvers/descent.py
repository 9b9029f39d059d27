"""Quasi-Newton descent of a function that may be undefined in places. Floor 2."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

_SUFFICIENT = 1e-4
_HALVINGS = 40


@dataclass(frozen=True, eq=False)
class Point:
    """A value, its gradient, and what else the function tells there."""

    value: float
    gradient: Tensor
    note: float


Function = Callable[[Tensor], Point | None]


class Descent:
    """The iterate of L-BFGS and its last pairs of steps and gradient changes.

    References:
        | Updating quasi-Newton matrices with limited storage (Nocedal, 1980)
    """

    def __init__(self, function: Function, theta: Tensor, point: Point, memory: int) -> None:
        """Begin at theta, where the function has ``point``."""
        self.function, self.theta, self.point = function, theta, point
        self.pairs: deque[tuple[Tensor, Tensor]] = deque(maxlen=memory)

    def steps(self, iterations: int, tolerance: float, late: Callable[[], bool]) -> Iterator[int]:
        """Step until the value falls by less than ``tolerance`` in ten steps, or it is late; counts from 1."""
        past = deque([self.point.value], maxlen=10)
        for k in range(iterations):
            if late() or not self.step():
                return
            yield k + 1
            if len(past) == 10 and past[0] - self.point.value < tolerance:
                return
            past.append(self.point.value)

    def step(self) -> bool:
        """One step along the quasi-Newton direction, shortened until the value falls; whether it did."""
        gradient = self.point.gradient
        direction = -self._times_inverse(gradient)
        slope = float(direction @ gradient)
        if not slope < 0.0:
            self.pairs.clear()
            direction = -gradient
            slope = float(direction @ gradient)
        size = min(1.0, 1.0 / float(direction.abs().max().clamp_min(1e-300)))
        for _ in range(_HALVINGS):
            theta = self.theta + size * direction
            found = self.function(theta)
            if found is not None and found.value <= self.point.value + _SUFFICIENT * size * slope:
                self._accept(theta, found)
                return True
            size *= 0.5
        if self.pairs:
            self.pairs.clear()
            return self.step()
        return False

    def _accept(self, theta: Tensor, found: Point) -> None:
        s, y = theta - self.theta, found.gradient - self.point.gradient
        if float(s @ y) > 1e-12 * float(s.norm() * y.norm()):
            self.pairs.append((s, y))
        self.theta, self.point = theta, found

    def _times_inverse(self, g: Tensor) -> Tensor:
        """The two-loop recursion."""
        q, weights = g, []
        for s, y in reversed(self.pairs):
            weights.append((s @ q) / (s @ y))
            q = q - weights[-1] * y
        if self.pairs:
            s, y = self.pairs[-1]
            q = q * ((s @ y) / (y @ y))
        else:
            q = q / g.norm().clamp_min(1e-300)
        for (s, y), a in zip(self.pairs, reversed(weights), strict=True):
            q = q + (a - (y @ q) / (s @ y)) * s
        return q
