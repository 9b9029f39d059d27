"""Lower bounds: a pair of inputs whose outputs differ by at least ``ratio`` times as much. Floor 3.

The search runs on the frozen model itself, not on its graph, so that a wrong rule cannot hide from it: Jacobian
power iteration at points of several scales, then ascent on the difference quotient of pairs, then the best pair
is measured at several distances.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lipcert.certificate import Witness
from lipcert.errors import InvalidInput
from lipcert.freeze import freeze
from lipcert.linear import Shape
from lipcert.norms import L2, Norms, require_supported
from lipcert.quotient import ROUNDING, Pair, ascend, best_pairs, length, power_step, ratio_of

_SCALES = (1.0, 0.0, 0.1, 10.0, 0.01, 100.0)
_PROBES = 4
_TIMES = 16.0
_UNDERFLOWS = 2.0**-900


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
    very pair returned and lowered by an allowance for rounding, which is measured where the network cancels; it is at
    most the true constant unless rounding exceeds that allowance. `lipcert.enclosure.stretch` computes it exactly.

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
        return frozen(x.reshape(len(x), *shape)).reshape(len(x), -1)

    x, v = (start.to(device) for start in _starts(math.prod(shape), budget.points, drawn))
    pairs = best_pairs(function, x, v, norms)
    for _ in range(budget.power_steps):
        if time.monotonic() > deadline:
            break
        v = power_step(function, x, v, norms)
    pairs += best_pairs(function, x, v, norms)
    pairs += ascend(function, x, v, norms, budget.ascent_steps, deadline)
    ratio, first, second = max(_believed(frozen, shape, pairs, norms), key=ratio_of)
    return Witness(ratio, norms, first.reshape(shape).cpu(), second.reshape(shape).cpu())


def _starts(size: int, points: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.randn(points, size, generator=generator, dtype=torch.float64)
    v = torch.randn(points, size, generator=generator, dtype=torch.float64)
    half = len(_SCALES)
    x = torch.stack([x[k] * _SCALES[k] if k < half else -x[k % half] * _SCALES[k % half] for k in range(points)])
    return x, v


def _believed(frozen: nn.Module, shape: Shape, pairs: list[Pair], norms: Norms) -> list[Pair]:
    """Quotients lowered by what moving every weight by one unit in the last place does to the outputs, many times over.

    Rounding does about as much (it is the same as exact arithmetic with weights that are moved a little), so where a
    network cancels, as with large biases, it shows. Weights whose products underflow count as not there.
    """
    x, y = torch.stack([pair[1] for pair in pairs]), torch.stack([pair[2] for pair in pairs])
    both = torch.cat([x, y]).reshape(-1, *shape)
    everything = (*frozen.named_parameters(remove_duplicate=False), *frozen.named_buffers(remove_duplicate=False))
    state = {name: tensor for name, tensor in everything if tensor.is_floating_point()}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        at = frozen(both.clone()).reshape(len(both), -1)
        moved = torch.zeros(len(both), dtype=torch.float64, device=both.device)
        for probe in range(_PROBES):
            nearby = {name: _nearby(tensor, probe, generator) for name, tensor in state.items()}
            there = torch.func.functional_call(frozen, nearby, (both.clone(),), tie_weights=False)
            moved = torch.maximum(moved, length(there.reshape(len(both), -1) - at, norms.q))
        already = ROUNDING * length(at, norms.q)
        more = (_TIMES * moved - already).clamp_min(0.0).nan_to_num(math.inf, math.inf)
        lower = ((more[: len(x)] + more[len(x) :]) / length(y - x, norms.p)).nan_to_num(0.0, math.inf)
    return [(max(0.0, pair[0] - float(less)), *pair[1:]) for pair, less in zip(pairs, lower, strict=True)]


def _nearby(tensor: Tensor, probe: int, generator: torch.Generator) -> Tensor:
    """Every number but zero moved up or down by one unit in the last place; in the first probe, tiny ones to zero."""
    if probe == 0:
        return torch.where(tensor.abs() < _UNDERFLOWS, torch.zeros_like(tensor), tensor)
    up = torch.rand(tensor.shape, generator=generator).to(tensor.device) < 0.5
    far = torch.where(up, torch.full_like(tensor, math.inf), torch.full_like(tensor, -math.inf))
    return torch.where(tensor == 0.0, tensor, torch.nextafter(tensor, far))
