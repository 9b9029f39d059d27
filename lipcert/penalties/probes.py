r"""Critics whose gradients arithmetic gives, and what well-known mistakes make of a penalty on them. Floor 5."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lipcert.linear import Shape
from lipcert.penalties.gradient import OneSided, Side, TwoSided


@dataclass(frozen=True)
class Definition:
    """What a penalty is to be: ``weight`` times the mean of ``side.square(norms, target)``."""

    target: float
    side: Side
    weight: float

    def mean(self, norms: Tensor) -> Tensor:
        """The penalty of a batch of gradient norms."""
        return self.weight * self.side.square(norms, self.target).mean()

    def of(self, gradients: Tensor) -> Tensor:
        """The penalty of a batch of gradients ``(N, ...)``."""
        return self.mean(lengths(gradients))


class Quadratic(nn.Module):
    r"""The critic :math:`f(x) = w \cdot x + \frac a 2 |x|^2`, with gradient :math:`w + a x`.

    Attributes:
        w: Parameter of the shape of a sample.
        a: Parameter, a number.
    """

    def __init__(self, w: Tensor, a: float, out: Shape) -> None:
        """Hold the coefficients; ``out`` is the shape of one sample's output, of one element."""
        super().__init__()
        self.w = nn.Parameter(w.clone())
        self.a = nn.Parameter(torch.full((), a, dtype=w.dtype, device=w.device))
        self._out = out

    def forward(self, x: Tensor) -> Tensor:
        """Shape ``(N, *out)``."""
        flat = x.reshape(len(x), -1)
        f = flat @ self.w.flatten() + 0.5 * self.a * flat.square().sum(1)
        return f.reshape(len(x), *self._out)

    def gradients(self, x: Tensor) -> Tensor:
        """At every sample, shape of x."""
        return self.w + self.a * x


class Along(nn.Module):
    r"""A critic that shows where on a segment its gradient is taken, or whether it is taken off the segment.

    With t the position along the segment from ``start`` to ``end`` (0 and 1 at the ends) and n the part of x off the
    line, the gradient is :math:`(\alpha + \beta t) u + \kappa n`, u being the unit vector along the segment.
    """

    def __init__(self, start: Tensor, end: Tensor, slopes: tuple[float, float, float], out: Shape) -> None:
        """Hold the segment and alpha, beta, kappa."""
        super().__init__()
        self.start, self.apart = start.flatten(), (end - start).flatten()
        self.slopes = nn.Parameter(torch.tensor(slopes, dtype=start.dtype, device=start.device))
        self._out = out

    def forward(self, x: Tensor) -> Tensor:
        """Shape ``(N, *out)``."""
        alpha, beta, kappa = self.slopes
        distance = torch.linalg.vector_norm(self.apart)
        u = self.apart / distance
        from_start = x.reshape(len(x), -1) - self.start
        s = from_start @ u
        off = from_start - s[:, None] * u
        f = alpha * s + beta * s.square() / (2.0 * distance) + 0.5 * kappa * off.square().sum(1)
        return f.reshape(len(x), *self._out)


def lengths(gradients: Tensor) -> Tensor:
    """The l2 norm of each sample's gradient, over all its dimensions."""
    return torch.linalg.vector_norm(gradients.reshape(len(gradients), -1), dim=1)


def points(like: Tensor) -> Tensor:
    """As many samples as there are in ``like``, of norms from 0.2 to 1.2, no two alike."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(like.shape, generator=generator, dtype=torch.float64)
    radii = torch.linspace(0.2, 1.2, len(like), dtype=torch.float64)
    scale = radii / lengths(z)
    return (z * scale.reshape(-1, *[1] * (z.ndim - 1))).to(like)


def recognised(seen: list[tuple[Quadratic, Tensor, float]], definition: Definition, tolerance: float) -> str:
    """The first known mistake that explains the values of a penalty on all probes, or nothing.

    Args:
        seen: Probes, where their gradients were taken, and what the penalty gave.
        definition: What it is to give.
        tolerance: Relative, and absolute in units of the weight.
    """
    for what, mistaken in _MISTAKES.items():
        wrong = [mistaken(probe.gradients(z).detach(), probe(z).detach(), definition).item() for probe, z, _ in seen]
        if all(close(value, each, definition, tolerance) for (_, _, value), each in zip(seen, wrong, strict=True)):
            return what
    return _factor(seen, definition, tolerance)


def close(value: float, expected: float, definition: Definition, tolerance: float) -> bool:
    """Whether two penalties agree; a number that is none agrees with nothing."""
    return abs(value - expected) <= tolerance * (abs(expected) + abs(definition.weight))


def _factor(seen: list[tuple[Quadratic, Tensor, float]], definition: Definition, tolerance: float) -> str:
    expected = [float(definition.of(probe.gradients(z).detach())) for probe, z, _ in seen]
    ratios = [value / wanted for (_, _, value), wanted in zip(seen, expected, strict=True) if wanted != 0.0]
    if not ratios or not math.isfinite(ratios[0]) or ratios[0] == 0.0:
        return ""
    if any(abs(ratio - ratios[0]) > 10.0 * tolerance * abs(ratios[0]) for ratio in ratios):
        return ""
    weight = ratios[0] * definition.weight
    return f"it is {ratios[0]:.6g} times the definition; if that is meant, pass weight={weight:.6g}"


def _by_sample(tensor: Tensor, like: Tensor) -> Tensor:
    return tensor.reshape(-1, *[1] * (like.ndim - 1))


def _over_dim_one(gradients: Tensor, scores: Tensor, definition: Definition) -> Tensor:
    if gradients.ndim < 3:
        return torch.tensor(math.nan)
    return definition.mean(torch.linalg.vector_norm(gradients, dim=1))


def _mean_inside(gradients: Tensor, scores: Tensor, definition: Definition) -> Tensor:
    return definition.mean(lengths(gradients).mean()[None])


def _whole_batch(gradients: Tensor, scores: Tensor, definition: Definition) -> Tensor:
    return definition.mean(torch.linalg.vector_norm(gradients)[None])


def _mean_score(gradients: Tensor, scores: Tensor, definition: Definition) -> Tensor:
    return definition.of(gradients / len(gradients))


def _sum_of_samples(gradients: Tensor, scores: Tensor, definition: Definition) -> Tensor:
    return definition.of(gradients) * len(gradients)


def _sigmoid(gradients: Tensor, scores: Tensor, definition: Definition) -> Tensor:
    p = torch.sigmoid(scores.flatten())
    return definition.of(gradients * _by_sample(p * (1.0 - p), gradients))


def _log_sigmoid(gradients: Tensor, scores: Tensor, definition: Definition) -> Tensor:
    return definition.of(gradients * _by_sample(torch.sigmoid(-scores.flatten()), gradients))


def _no_root(gradients: Tensor, scores: Tensor, definition: Definition) -> Tensor:
    return definition.mean(lengths(gradients).square())


def _no_target(gradients: Tensor, scores: Tensor, definition: Definition) -> Tensor:
    return definition.weight * lengths(gradients).square().mean()


def _no_square(gradients: Tensor, scores: Tensor, definition: Definition) -> Tensor:
    return definition.weight * definition.side.square(lengths(gradients), definition.target).sqrt().mean()


def _root_mean_square(gradients: Tensor, scores: Tensor, definition: Definition) -> Tensor:
    return definition.mean(lengths(gradients) / math.sqrt(gradients[0].numel()))


def _taxicab(gradients: Tensor, scores: Tensor, definition: Definition) -> Tensor:
    return definition.mean(gradients.reshape(len(gradients), -1).abs().sum(1))


def _other_side(gradients: Tensor, scores: Tensor, definition: Definition) -> Tensor:
    other = TwoSided() if isinstance(definition.side, OneSided) else OneSided()
    return Definition(definition.target, other, definition.weight).of(gradients)


_MISTAKES: dict[str, Callable[[Tensor, Tensor, Definition], Tensor]] = {
    "the norm is over dim=1 only, so each pixel counts as a sample; flatten gradients to (N, -1) first": _over_dim_one,
    "the mean over the batch is inside the square; square each sample's difference, then average": _mean_inside,
    "the norm is over the whole batch; take one per sample": _whole_batch,
    "the gradient is that of the mean score, 1/N of each sample's own; differentiate the sum": _mean_score,
    "samples are summed; average them": _sum_of_samples,
    "a sigmoid is applied before the gradient is taken; penalise the raw score": _sigmoid,
    "a log-sigmoid is applied before the gradient is taken; penalise the raw score": _log_sigmoid,
    "the square root of the norm is missing": _no_root,
    "the target is missing: this is the mean squared gradient norm, R1": _no_target,
    "the square of the difference is missing": _no_square,
    "squares are averaged over the dimensions of a sample; sum them": _root_mean_square,
    "the norm is the l1 norm; take the l2 norm": _taxicab,
    "it is the other side, which differs below the target; pass the side that is meant": _other_side,
}
