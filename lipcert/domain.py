"""The set of inputs that a claim is about: all of them, a box, or an l2 ball. Floor 0: torch only.

All of them are convex. Membership is decided on the stored numbers, without rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from lipcert.errors import InvalidInput

Shape = tuple[int, ...]

_WIDTHS = (1.0, 0.1, 10.0, 0.01, 100.0)


@runtime_checkable
class Domain(Protocol):
    """A convex set of samples (tensors without batch dimension)."""

    def contains(self, x: Tensor) -> bool:
        """Whether a sample, read as exact numbers, is in the set."""
        ...

    def project(self, x: Tensor) -> Tensor:
        """Samples ``(N, *shape)`` moved into the set; those inside stay as they are, up to rounding at its edge."""
        ...

    def sample(self, count: int, shape: Shape, generator: torch.Generator) -> Tensor:
        """Random samples ``(count, *shape)``, float64, of several sizes where the set allows it."""
        ...


def limits(domain: Domain, shape: Shape) -> tuple[Tensor, Tensor]:
    """The smallest box around a box or a ball, its ends rounded outward, float64 tensors of a shape.

    Raises:
        InvalidInput: If the domain is neither, or its own tensors do not broadcast to the shape.

    Example:
        >>> limits(L2Ball(1.0, 2.0), (1,))
        (tensor([-1.], dtype=torch.float64), tensor([3.], dtype=torch.float64))
    """
    try:
        match domain:
            case Box(low, high):
                ends = (torch.as_tensor(end, dtype=torch.float64).expand(shape) for end in (low, high))
                return next(ends).clone(), next(ends).clone()
            case L2Ball(centre, radius):
                c = torch.as_tensor(centre, dtype=torch.float64).expand(shape)
                return _less(c, radius), -_less(-c, radius)
    except RuntimeError as error:
        raise InvalidInput(f"{domain} does not fit samples of shape {shape}: {error}") from error
    raise InvalidInput(f"a bound on a domain needs a `Box` or an `L2Ball`, not {domain!r}.")


def _less(c: Tensor, radius: float) -> Tensor:
    """``c - radius`` rounded down; what rounding to nearest took away is a float itself (Knuth's sum)."""
    rounded = c - radius
    back = rounded - c
    error = (c - (rounded - back)) - (radius + back)
    return torch.where(error < 0.0, torch.nextafter(rounded, torch.full_like(rounded, -torch.inf)), rounded)


@dataclass(frozen=True)
class WholeSpace:
    """Every input.

    Example:
        >>> WholeSpace().contains(torch.tensor([-1e30, 7.0]))
        True
    """

    def __str__(self) -> str:
        """In words."""
        return "everywhere"

    def contains(self, x: Tensor) -> bool:
        """Whether all entries are finite."""
        return bool(torch.isfinite(x).all())

    def project(self, x: Tensor) -> Tensor:
        """The samples themselves."""
        return x

    def sample(self, count: int, shape: Shape, generator: torch.Generator) -> Tensor:
        """Normal samples at scales from 0.01 to 100."""
        scales = torch.tensor([_WIDTHS[row % len(_WIDTHS)] for row in range(count)], dtype=torch.float64)
        drawn = torch.randn(count, *shape, generator=generator, dtype=torch.float64)
        return drawn * scales.reshape(-1, *[1] * len(shape))


@dataclass(frozen=True)
class Box:
    """Inputs with every entry between two limits.

    Args:
        low: A number, or one per entry.
        high: The same, nowhere below ``low``.

    Raises:
        InvalidInput: If it is empty or its limits are not finite.

    Example:
        >>> Box(0.0, 1.0).contains(torch.tensor([0.0, 1.0])), Box(0.0, 1.0).contains(torch.tensor([1.5]))
        (True, False)
    """

    low: float | Tensor
    high: float | Tensor

    def __post_init__(self) -> None:
        """Refuse an empty box."""
        low, high = (torch.as_tensor(end, dtype=torch.float64) for end in (self.low, self.high))
        if not bool(torch.isfinite(low).all() and torch.isfinite(high).all() and (low <= high).all()):
            raise InvalidInput(f"the box from {self.low} to {self.high} is empty or endless; give finite low <= high.")

    def __str__(self) -> str:
        """In words."""
        return f"on the box from {_shown(self.low)} to {_shown(self.high)}"

    def _limits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        low, high = (torch.as_tensor(end, dtype=torch.float64).to(x) for end in (self.low, self.high))
        return low, high

    def contains(self, x: Tensor) -> bool:
        """Whether all entries are within the limits."""
        low, high = self._limits(x.double())
        return bool(((x.double() >= low) & (x.double() <= high)).all())

    def project(self, x: Tensor) -> Tensor:
        """Entries beyond a limit are set to it."""
        low, high = self._limits(x)
        return torch.minimum(torch.maximum(x, low), high)

    def sample(self, count: int, shape: Shape, generator: torch.Generator) -> Tensor:
        """Uniform samples."""
        drawn = torch.rand(count, *shape, generator=generator, dtype=torch.float64)
        low, high = self._limits(drawn)
        return self.project(low + (high - low) * drawn)


@dataclass(frozen=True)
class L2Ball:
    """Inputs at most ``radius`` away from ``centre`` in l2.

    Args:
        centre: A number for every entry, or a sample.
        radius: Finite, not negative.

    Raises:
        InvalidInput: If the radius is negative or something is not finite.

    Example:
        >>> ball = L2Ball(0.0, 5.0)
        >>> ball.contains(torch.tensor([3.0, 4.0])), ball.contains(torch.tensor([3.0, 4.0000005]))
        (True, False)
    """

    centre: float | Tensor
    radius: float

    def __post_init__(self) -> None:
        """Refuse a ball that is none."""
        if not (0.0 <= self.radius < math.inf and bool(torch.isfinite(torch.as_tensor(self.centre)).all())):
            raise InvalidInput(f"no ball has radius {self.radius} around {self.centre}; both finite, the radius >= 0.")

    def __str__(self) -> str:
        """In words."""
        return f"on the l2 ball of radius {self.radius!r} around {_shown(self.centre)}"

    def contains(self, x: Tensor) -> bool:
        """Whether the distance to the centre, without rounding, is at most the radius."""
        centre = torch.as_tensor(self.centre, dtype=torch.float64).to(x.device).expand(x.shape)
        pairs = zip(x.double().flatten().tolist(), centre.flatten().tolist(), strict=True)
        if not bool(torch.isfinite(x).all()):
            return False
        return sum((Fraction(a) - Fraction(b)) ** 2 for a, b in pairs) <= Fraction(self.radius) ** 2

    def project(self, x: Tensor) -> Tensor:
        """Samples outside are pulled towards the centre, further than needed by what rounding may add."""
        centre = torch.as_tensor(self.centre, dtype=torch.float64).to(x)
        away = x - centre
        length = torch.linalg.vector_norm(away.flatten(1), dim=1)
        slack = 2.0**-48 * (torch.linalg.vector_norm(centre.expand(x.shape[1:])) + self.radius)
        reach = (self.radius * (1 - 2.0**-40) - slack).clamp_min(0.0)
        factor = torch.where(length <= reach, 1.0, reach / length.clamp_min(1e-300)).reshape(-1, *[1] * (x.ndim - 1))
        return torch.where(factor == 1.0, x, torch.where(factor == 0.0, centre, centre + away * factor))

    def sample(self, count: int, shape: Shape, generator: torch.Generator) -> Tensor:
        """Random directions from the centre, at uniform distances up to the radius."""
        away = torch.randn(count, *shape, generator=generator, dtype=torch.float64)
        away /= torch.linalg.vector_norm(away.flatten(1), dim=1).clamp_min(1e-300).reshape(-1, *[1] * len(shape))
        far = self.radius * torch.rand(count, generator=generator, dtype=torch.float64)
        centre = torch.as_tensor(self.centre, dtype=torch.float64)
        return self.project(centre + away * far.reshape(-1, *[1] * len(shape)))


def _shown(value: float | Tensor) -> str:
    return f"numbers of shape {tuple(value.shape)}" if isinstance(value, Tensor) and value.ndim else repr(float(value))


def to_document(domain: Domain) -> dict[str, Any]:
    """A box or a ball as JSON values; numbers are hexadecimal, so nothing is rounded.

    Raises:
        InvalidInput: If it is another domain.

    Example:
        >>> to_document(L2Ball(0.5, 1.0))
        {'kind': 'l2 ball', 'centre': '0x1.0000000000000p-1', 'radius': '0x1.0000000000000p+0'}
    """
    match domain:
        case Box(low, high):
            return {"kind": "box", "low": _written(low), "high": _written(high)}
        case L2Ball(centre, radius):
            return {"kind": "l2 ball", "centre": _written(centre), "radius": float(radius).hex()}
    raise InvalidInput(f"a certificate is about everything, a `Box` or an `L2Ball`, not {domain!r}.")


def from_document(document: Any) -> Domain:
    """Read what `to_document` wrote.

    Raises:
        ValueError: If it is something else.
        InvalidInput: If the domain is empty or endless.
    """
    fields = {"box": {"kind", "low", "high"}, "l2 ball": {"kind", "centre", "radius"}}.get(document.get("kind"))
    if fields is None or set(document) != fields:
        raise ValueError(f"a domain is a box or an l2 ball, not {document.get('kind')!r} with {sorted(document)}")
    if document["kind"] == "box":
        return Box(_read(document["low"]), _read(document["high"]))
    return L2Ball(_read(document["centre"]), float.fromhex(document["radius"]))


def _written(value: float | Tensor) -> Any:
    if not isinstance(value, Tensor):
        return float(value).hex()
    return {"shape": list(value.shape), "values": [number.hex() for number in value.double().flatten().tolist()]}


def _read(value: Any) -> float | Tensor:
    if isinstance(value, str):
        return float.fromhex(value)
    if set(value) != {"shape", "values"} or any(type(size) is not int or size < 0 for size in value["shape"]):
        raise ValueError("an array has a shape and values")
    return torch.tensor(list(map(float.fromhex, value["values"])), dtype=torch.float64).reshape(value["shape"])
