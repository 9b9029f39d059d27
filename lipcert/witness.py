"""Lower bounds: a pair of inputs whose outputs differ by at least ``ratio`` times as much. Floor 3.

The search runs on the frozen model itself, not on its graph, so that a wrong rule cannot hide from it: Jacobian
power iteration at points of several scales, then ascent on the difference quotient of pairs, then the best pair
is measured at several distances.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lipcert.certificate import Witness
from lipcert.errors import InvalidInput
from lipcert.freeze import freeze
from lipcert.linear import Shape
from lipcert.norms import L2, Norms, require_supported

Function = Callable[[Tensor], Tensor]

_SCALES = (1.0, 0.0, 0.1, 10.0, 0.01, 100.0)
_DISTANCES = (1.0, 0.1, 1e-2, 1e-3, 1e-4)
# One float64 rounding is 2**-53; 2**-44 allows for 512 of them in either output before the quotient is believed.
_ROUNDING = 2.0**-44


@dataclass(frozen=True)
class Budget:
    """How hard to search.

    Attributes:
        points: Starting points searched side by side, at scales from 0.01 to 100; from the seventh on, the
            negatives of the earlier ones, so that a one-sided kink far out is not missed.
        power_steps: Jacobian power iterations at every point.
        ascent_steps: Gradient steps on the difference quotient of pairs.
        seconds: Stop starting new steps after this long. The default is infinity: with a finite value the result
            depends on the speed of the machine.
    """

    points: int = 12
    power_steps: int = 20
    ascent_steps: int = 30
    seconds: float = math.inf


def witness(
    model: nn.Module,
    input_shape: Shape,
    norms: Norms = L2,
    *,
    budget: Budget = Budget(),
    generator: torch.Generator | None = None,
) -> Witness:
    """Search for two inputs that stretch as much as possible.

    The evaluation function is searched in float64 on the exactly promoted weights. The ratio is measured on the
    very pair returned and lowered by an allowance for rounding, so it is at most the true constant unless
    cancellation inside the network exceeds that allowance.

    Args:
        model: Any module; it is copied, never changed.
        input_shape: Shape of one sample, without the batch dimension.
        norms: Norm ``p`` on the input, ``q`` on the output.
        budget: How hard to search.
        generator: Source of the starting points; the same generator state gives the same witness.
            Default: a generator seeded with 0.

    Raises:
        InvalidInput: If the norms are not supported or the shape has an empty dimension.

    Example:
        >>> layer = nn.Linear(2, 2, bias=False).requires_grad_(False)
        >>> _ = layer.weight.copy_(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
        >>> 2.9999999 < witness(layer, (2,)).ratio <= 3.0
        True
    """
    require_supported(norms)
    shape = tuple(input_shape)
    if any(size <= 0 for size in shape):
        raise InvalidInput(f"input_shape {shape} has an empty dimension; a pair of inputs needs at least one number.")
    frozen = freeze(model)
    device = next((tensor.device for tensor in frozen.state_dict().values()), torch.device("cpu"))
    drawn = torch.Generator().manual_seed(0) if generator is None else generator
    deadline = time.monotonic() + budget.seconds

    def function(x: Tensor) -> Tensor:
        return frozen(x.reshape(len(x), *shape)).flatten(1)

    x, v = (start.to(device) for start in _starts(math.prod(shape), budget.points, drawn))
    best = _best_pair(function, x, v, norms)
    for _ in range(budget.power_steps):
        if time.monotonic() > deadline:
            break
        v = _power_step(function, x, v, norms)
    best = max(best, _best_pair(function, x, v, norms), key=_ratio)
    best = max(best, _ascend(function, x, v, norms, budget.ascent_steps, deadline), key=_ratio)
    ratio, first, second = best
    return Witness(ratio, norms, first.reshape(shape).cpu(), second.reshape(shape).cpu())


def _ratio(found: tuple[float, Tensor, Tensor]) -> float:
    return found[0]


def _starts(size: int, points: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.randn(points, size, generator=generator, dtype=torch.float64)
    v = torch.randn(points, size, generator=generator, dtype=torch.float64)
    half = len(_SCALES)
    x = torch.stack([x[k] * _SCALES[k] if k < half else -x[k % half] * _SCALES[k % half] for k in range(points)])
    return x, v


def _power_step(function: Function, x: Tensor, v: Tensor, norms: Norms) -> Tensor:
    """One step of the (p, q) power method, ``v <- dual_p(J' dual_q(J v))`` (Boyd, 1974), at every point at once.

    ``J v`` comes from differentiating the linear map ``u -> J' u``: forward mode would import seconds of code.
    """
    with torch.enable_grad():
        leaf = x.detach().requires_grad_(True)
        y = function(leaf)
        u = torch.zeros_like(y, requires_grad=True)
        (pulled,) = torch.autograd.grad(y, leaf, u, create_graph=True, allow_unused=True, materialize_grads=True)
        if pulled.requires_grad:
            (pushed,) = torch.autograd.grad(pulled, u, v, retain_graph=True, allow_unused=True, materialize_grads=True)
        else:
            pushed = torch.zeros_like(y)
        (back,) = torch.autograd.grad(y, leaf, _dual(pushed, norms.q), allow_unused=True, materialize_grads=True)
    step = _steepest(back, norms.p)
    stuck = step.abs().amax(1, keepdim=True) == 0
    return torch.where(stuck, v, step)


def _dual(y: Tensor, q: float) -> Tensor:
    """A gradient of ``|y|_q``."""
    if q == 2.0:
        return y / y.norm(dim=1, keepdim=True).clamp_min(1e-300)
    return y.sign() if q == 1.0 else _peak(y)


def _steepest(w: Tensor, p: float) -> Tensor:
    """A vector of unit p-norm that maximises the inner product with ``w``."""
    if p == 2.0:
        return w / w.norm(dim=1, keepdim=True).clamp_min(1e-300)
    return _peak(w) if p == 1.0 else w.sign()


def _peak(y: Tensor) -> Tensor:
    best = y.abs().argmax(1, keepdim=True)
    return torch.zeros_like(y).scatter(1, best, y.gather(1, best).sign())


def _ascend(
    function: Function, x: Tensor, v: Tensor, norms: Norms, steps: int, deadline: float
) -> tuple[float, Tensor, Tensor]:
    """Gradient ascent on ``log |f(x + d) - f(x)|_q - log |d|_p`` over x and d together."""
    size = x.norm(dim=1, keepdim=True) / math.sqrt(x.shape[1]) + 0.1
    x, d = x.clone(), v / _norm(v, norms.p)[:, None].clamp_min(1e-300) * size
    best = _best_pair(function, x, d, norms)
    for step in range(steps):
        if time.monotonic() > deadline:
            break
        with torch.enable_grad():
            x_, d_ = x.detach().requires_grad_(True), d.detach().requires_grad_(True)
            change = _norm(function(x_ + d_) - function(x_), norms.q)
            height = (change.clamp_min(1e-300).log() - _norm(d_, norms.p).clamp_min(1e-300).log()).sum()
            up_x, up_d = torch.autograd.grad(height, (x_, d_), allow_unused=True, materialize_grads=True)
        pace = 0.3 * size / (1 + 0.1 * step)
        x = x + pace * up_x / up_x.norm(dim=1, keepdim=True).clamp_min(1e-300)
        d = d + pace * 0.3 * up_d / up_d.norm(dim=1, keepdim=True).clamp_min(1e-300)
        if step % 5 == 4 or step == steps - 1:
            best = max(best, _best_pair(function, x, d, norms), key=_ratio)
    return best


def _best_pair(function: Function, x: Tensor, v: Tensor, norms: Norms) -> tuple[float, Tensor, Tensor]:
    """The best quotient over all points and several distances along ``v``."""
    best: tuple[float, Tensor, Tensor] = (0.0, x[0], x[0])
    with torch.no_grad():
        at_x = function(x)
        unit = v / _norm(v, norms.p)[:, None].clamp_min(1e-300)
        size = x.norm(dim=1, keepdim=True) / math.sqrt(x.shape[1]) + 0.1
        for distance in _DISTANCES:
            y = x + distance * size * unit
            at_y = function(y)
            apart = _norm(y - x, norms.p)
            noise = _ROUNDING * (_norm(at_x, norms.q) + _norm(at_y, norms.q))
            quotient = ((_norm(at_y - at_x, norms.q) * (1 - _ROUNDING) - noise) / apart).nan_to_num(0.0, 0.0, 0.0)
            k = int(quotient.argmax())
            if float(quotient[k]) > best[0]:
                best = (float(quotient[k]), x[k].clone(), y[k].clone())
    return best


def _norm(x: Tensor, p: float) -> Tensor:
    return torch.linalg.vector_norm(x, p, dim=1)
