"""Difference quotients of a function of batches, and steps that climb them. Floor 1: torch only.

Functions take and give flat batches ``(N, size)``. Nothing here proves anything: what is found is measured elsewhere.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from lipcert.norms import Norms

Function = Callable[[Tensor], Tensor]
Pair = tuple[float, Tensor, Tensor]
"""A quotient, and the two inputs it is of."""

DISTANCES = (1.0, 0.1, 1e-2, 1e-3, 1e-4)
ROUNDING = 2.0**-44
"""One float64 rounding is 2**-53: this allows for 512 of them in either output before the quotient is believed."""


def quotients(at_x: Tensor, at_y: Tensor, apart: Tensor, norms: Norms) -> Tensor:
    """``|f(x) - f(y)|_q / |x - y|_p`` row by row, lowered by an allowance for rounding; 0 where it is not finite."""
    noise = ROUNDING * (length(at_x, norms.q) + length(at_y, norms.q))
    found = (length(at_y - at_x, norms.q) * (1 - ROUNDING) - noise) / length(apart, norms.p)
    return found.nan_to_num(0.0, 0.0, 0.0)


def power_step(function: Function, x: Tensor, v: Tensor, norms: Norms) -> Tensor:
    """One step of the (p, q) power method, ``v <- dual_p(J' dual_q(J v))`` (Boyd, 1974), at every point at once.

    ``J v`` comes from differentiating the linear map ``u -> J' u``: forward mode would import seconds of code. Where
    torch has no second derivative, a difference takes its place.
    """
    with torch.enable_grad():
        leaf = x.detach().requires_grad_(True)
        y = function(leaf)
        u = torch.zeros_like(y, requires_grad=True)
        (pulled,) = torch.autograd.grad(y, leaf, u, create_graph=True, allow_unused=True, materialize_grads=True)
        pushed = _pushed(function, y, leaf, pulled, u, v)
        (back,) = torch.autograd.grad(y, leaf, dual(pushed, norms.q), allow_unused=True, materialize_grads=True)
    step = steepest(back, norms.p)
    stuck = step.abs().amax(1, keepdim=True) == 0
    return torch.where(stuck, v, step)


def _pushed(function: Function, y: Tensor, x: Tensor, pulled: Tensor, u: Tensor, v: Tensor) -> Tensor:
    if not pulled.requires_grad:
        return torch.zeros_like(y)
    try:
        (pushed,) = torch.autograd.grad(pulled, u, v, retain_graph=True, allow_unused=True, materialize_grads=True)
    except RuntimeError:  # torch has no second derivative of some functions
        with torch.no_grad():
            step = 1e-6 * (1 + x.abs().amax(1, keepdim=True)) / length(v, 2.0)[:, None].clamp_min(1e-300)
            return (function(x + step * v) - y) / step
    return pushed


def dual(y: Tensor, q: float) -> Tensor:
    """A gradient of ``|y|_q``."""
    if q == 2.0:
        return y / y.norm(dim=1, keepdim=True).clamp_min(1e-300)
    return y.sign() if q == 1.0 else _peak(y)


def steepest(w: Tensor, p: float) -> Tensor:
    """A vector of unit p-norm that maximises the inner product with ``w``."""
    if p == 2.0:
        return w / w.norm(dim=1, keepdim=True).clamp_min(1e-300)
    return _peak(w) if p == 1.0 else w.sign()


def _peak(y: Tensor) -> Tensor:
    best = y.abs().argmax(1, keepdim=True)
    return torch.zeros_like(y).scatter(1, best, y.gather(1, best).sign())


def ascend(function: Function, x: Tensor, v: Tensor, norms: Norms, steps: int, deadline: float) -> list[Pair]:
    """Gradient ascent on ``log |f(x + d) - f(x)|_q - log |d|_p`` over x and d together; as `best_pairs`."""
    size = x.norm(dim=1, keepdim=True) / math.sqrt(x.shape[1]) + 0.1
    x, d = x.clone(), v / length(v, norms.p)[:, None].clamp_min(1e-300) * size
    pairs = best_pairs(function, x, d, norms)
    for step in range(steps):
        if time.monotonic() > deadline:
            break
        up_x, up_d = uphill(function, x, d, norms)
        pace = 0.3 * size / (1 + 0.1 * step)
        x = x + pace * up_x / up_x.norm(dim=1, keepdim=True).clamp_min(1e-300)
        d = d + pace * 0.3 * up_d / up_d.norm(dim=1, keepdim=True).clamp_min(1e-300)
        if step % 5 == 4 or step == steps - 1:
            again = best_pairs(function, x, d, norms)
            pairs = [max(both, key=ratio_of) for both in zip(pairs, again, strict=True)]
    return pairs


def uphill(function: Function, x: Tensor, d: Tensor, norms: Norms) -> tuple[Tensor, Tensor]:
    """The gradients of ``log |f(x + d) - f(x)|_q - log |d|_p`` with respect to x and d, row by row."""
    with torch.enable_grad():
        x_, d_ = x.detach().requires_grad_(True), d.detach().requires_grad_(True)
        change = length(function(x_ + d_) - function(x_), norms.q)
        height = (change.clamp_min(1e-300).log() - length(d_, norms.p).clamp_min(1e-300).log()).sum()
        up_x, up_d = torch.autograd.grad(height, (x_, d_), allow_unused=True, materialize_grads=True)
    return up_x, up_d


def best_pairs(function: Function, x: Tensor, v: Tensor, norms: Norms) -> list[Pair]:
    """For every distance along ``v`` the best quotient over all points."""
    pairs: list[Pair] = []
    with torch.no_grad():
        at_x = function(x)
        unit = v / length(v, norms.p)[:, None].clamp_min(1e-300)
        size = x.norm(dim=1, keepdim=True) / math.sqrt(x.shape[1]) + 0.1
        for distance in DISTANCES:
            y = x + distance * size * unit
            quotient = quotients(at_x, function(y), y - x, norms)
            k = int(quotient.argmax())
            ratio = max(0.0, float(quotient[k]))
            pairs.append((ratio, x[k].clone(), y[k].clone() if ratio > 0.0 else x[k].clone()))
    return pairs


def length(x: Tensor, p: float) -> Tensor:
    """The p-norm of every row."""
    return torch.linalg.vector_norm(x, p, dim=1)


def ratio_of(found: Pair) -> float:
    """The quotient of a pair, to compare pairs by."""
    return found[0]
