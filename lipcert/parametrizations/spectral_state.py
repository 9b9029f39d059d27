"""What spectral normalisation works out for one value of a parameter, and when it is worked out anew. Floor 3."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lipcert.kernel.rounding import add_up, mul_up
from lipcert.lowering import require_finite
from lipcert.parametrizations.claim import MARGIN, claim_of, same, scale_to
from lipcert.parametrizations.estimates import Estimate, direction, power_iteration
from lipcert.parametrizations.operators import Operator
from lipcert.parametrizations.options import Cap, Deployed, Everywhere, Level, Soft

DEPLOYED, TRAINED, NORM, AGE, GAIN = range(5)
"""Columns of `State.numbers`."""

# A converged vector can be orthogonal to the next weight's top direction; this much of a fixed random one never is.
_FRESH = 1e-2
# An estimate further than this below the norm is started afresh.
_TOO_LOW = 0.01
# How far power iteration is expected to be below the norm when its result is first tried in a proof.
_USUALLY_LOW = 2e-3


@dataclass(frozen=True)
class Recipe:
    """What is to be normalised, and how.

    Attributes:
        operator: What the layer does with its weight.
        estimate: What training differentiates.
        level: Where the claim holds.
        cap: Whether small weights are scaled up.
        bound: The claimed norm.
        label: For error messages.
    """

    operator: Operator
    estimate: Estimate
    level: Level
    cap: Cap
    bound: float
    label: str


@dataclass(frozen=True)
class State:
    """What was worked out for the parameter's present value.

    Attributes:
        seen: That value.
        vector: Where power iteration stands, ``(blocks, *in_shape)``.
        numbers: ``(blocks, 5)``, float64: the factor proved for evaluation and the one proved for training (NaN where
            there is none), an upper bound of the norm, changes since that was proved, and the gain. At most one of
            the two factors is there, the one of `value`.
        value: The weight that was proved.
    """

    seen: Tensor
    vector: Tensor
    numbers: Tensor
    value: Tensor


def units_of(operator: Operator, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The blocks over their largest magnitudes, in float32 at least, and these ``(blocks,)``; 1 for a zero block."""
    blocks = operator.split(weight)
    blocks = blocks.to(torch.promote_types(weight.dtype, torch.float32))
    peaks = blocks.detach().abs().flatten(1).amax(1)
    peaks = torch.where(peaks == 0, torch.ones_like(peaks), peaks)
    return blocks / _beside(peaks, blocks), peaks


def scaled(recipe: Recipe, weight: Tensor, units: Tensor, peaks: Tensor, factors: Tensor) -> Tensor:
    """Blocks times factors in the weight's shape and dtype; under a soft cap nothing is scaled up."""
    product = units * _beside(torch.minimum(factors, peaks) if isinstance(recipe.cap, Soft) else factors, units)
    if isinstance(recipe.cap, Soft):
        kept = recipe.operator.split(weight).to(units)
        return torch.where(_beside(factors >= peaks, units), kept, product).reshape(weight.shape).to(weight.dtype)
    return product.reshape(weight.shape).to(weight.dtype)


def _beside(numbers: Tensor, blocks: Tensor) -> Tensor:
    """One number per block, shaped to broadcast."""
    return numbers.reshape(-1, *[1] * (blocks.ndim - 1))


def advanced(
    recipe: Recipe,
    original: Tensor,
    gain: Tensor,
    start: Tensor,
    loaded: Tensor,
    state: State,
    proved: bool,
    training: bool,
) -> State:
    """The state for a parameter: the given one if it belongs to that value, and holds the proof that is asked for.

    Args:
        recipe: What to do.
        original: The parameter.
        gain: Factor of the bound.
        start: Initial vectors.
        loaded: `digest` of the value that the vector of a loaded checkpoint belongs to.
        state: What is known.
        proved: Whether a proven factor is needed.
        training: ... for training or for evaluation.
    """
    if not same(state.seen, original):
        state = _moved(recipe, original, start, loaded, state)
    factor = float(gain)
    if not bool((state.numbers[:, GAIN] == factor).all()):
        numbers = state.numbers.clone()
        numbers[:, [DEPLOYED, TRAINED]] = math.nan
        numbers[:, GAIN] = factor
        state = replace(state, numbers=numbers)
    column = TRAINED if training else DEPLOYED
    if not proved or not bool(torch.isnan(state.numbers[:, column]).any()):
        return state
    units, peaks = units_of(recipe.operator, state.seen)
    numbers = _trained(recipe, state, units, peaks, factor) if training else state.numbers.clone()
    if not training:
        numbers[:, DEPLOYED] = proven_factors(recipe, state.seen, factor)
    numbers[:, DEPLOYED if training else TRAINED] = math.nan
    value = scaled(recipe, state.seen, units, peaks, numbers[:, column].to(units))
    return replace(state, numbers=numbers, value=value)


def product(recipe: Recipe, weight: Tensor, factors: Tensor) -> Tensor:
    """A weight times factors."""
    units, peaks = units_of(recipe.operator, weight)
    return scaled(recipe, weight, units, peaks, factors.to(units))


def _moved(recipe: Recipe, original: Tensor, start: Tensor, loaded: Tensor, state: State) -> State:
    """The state after the parameter has changed, without proofs but the bridge from the last one."""
    before, numbers = state.seen, state.numbers.clone()
    seen = original.detach().clone()
    numbers[:, [DEPLOYED, TRAINED]] = math.nan
    units, peaks = units_of(recipe.operator, seen)
    if not bool(torch.isfinite(peaks).all()):
        require_finite(recipe.label, original)
    fresh = bool(torch.isnan(before.flatten()[0]))
    resumed = fresh and bool(digest(seen) == loaded.cpu())
    cold = fresh and not bool(loaded)
    vector = state.vector
    if not resumed:
        maps = [recipe.operator.linear(unit) for unit in units]
        moved = [
            recipe.estimate.settle(linear, direction(v[None].to(units)) + _FRESH * direction(s[None].to(units)), cold)
            for linear, v, s in zip(maps, state.vector, start, strict=True)
        ]
        vector = torch.cat(moved).to(state.vector)
    numbers[:, NORM] = _bridged(recipe, seen, before, numbers[:, NORM])
    numbers[:, AGE] = torch.nan_to_num(numbers[:, AGE], nan=0.0) + 1.0
    state = State(seen, vector, numbers, state.value)
    if isinstance(recipe.level, Deployed) and recipe.level.every and float(numbers[0, AGE]) >= recipe.level.every:
        return _rechecked(recipe, state, units, peaks, start)
    return state


def _estimates(recipe: Recipe, units: Tensor, vector: Tensor) -> list[float]:
    pairs = zip(units, vector, strict=True)
    return [float(recipe.estimate.sigma(recipe.operator.linear(unit), v[None].to(unit))) for unit, v in pairs]


def _rechecked(recipe: Recipe, state: State, units: Tensor, peaks: Tensor, start: Tensor) -> State:
    """Prove the norms, and start the vector afresh where the estimate is too low."""
    vector, numbers = state.vector.clone(), state.numbers.clone()
    for b, sigma in enumerate(_estimates(recipe, units, vector)):
        norm = recipe.operator.prove_swiftly(units[b], sigma)
        if sigma < norm * (1.0 - _TOO_LOW):
            linear = recipe.operator.linear(units[b])
            fresh = power_iteration(linear, direction(start[b][None].to(units)))
            if float(recipe.estimate.sigma(linear, fresh)) > sigma:
                vector[b] = fresh[0]
        numbers[b, NORM] = norm * float(peaks[b])
    numbers[:, AGE] = 0.0
    return replace(state, vector=vector, numbers=numbers)


def proven_factors(recipe: Recipe, original: Tensor, gain: float) -> Tensor:
    """Factors ``(blocks,)``, float64, for which the blocks, scaled and rounded, are proved to keep the claim."""
    require_finite(recipe.label, original)
    units, peaks = units_of(recipe.operator, original.detach())

    def prove(block: Tensor) -> float:
        return recipe.operator.prove(block.double().cpu())

    bound, factors = recipe.bound * gain, []
    for block, unit, peak in zip(recipe.operator.split(original.detach()), units, peaks, strict=True):
        if isinstance(recipe.cap, Soft) and prove(block) <= bound * (1.0 - MARGIN):
            factors.append(torch.tensor(math.inf, dtype=torch.float64))
            continue
        norm = prove(unit)
        first = bound * (1.0 - MARGIN) / norm if norm > 0.0 else 1.0
        factors.append(scale_to(prove, unit, bound, recipe.label, _below(first, peak, recipe.cap), original.dtype))
    return torch.stack(factors)


def _below(factor: float, peak: Tensor, cap: Cap) -> float:
    """Under a soft cap a factor of the peak or more would mean that nothing is scaled, which was not proved."""
    return min(factor, float(peak) * (1.0 - 4.0 * torch.finfo(peak.dtype).eps)) if isinstance(cap, Soft) else factor


def _trained(recipe: Recipe, state: State, units: Tensor, peaks: Tensor, gain: float) -> Tensor:
    """Numbers with proven factors for training: bridged from the last proof if that is close enough, or proved."""
    assert isinstance(recipe.level, Everywhere)
    numbers, target = state.numbers.clone(), recipe.bound * gain * (1.0 - MARGIN)
    operator, soft = recipe.operator, isinstance(recipe.cap, Soft)
    blocks = operator.split(state.seen)
    for b, sigma in enumerate(_estimates(recipe, units, state.vector)):
        peak = float(peaks[b])
        if operator.spread is None or state.seen.dtype.itemsize < 4:
            numbers[b, TRAINED] = _proven_product(recipe, blocks[b], units[b], peaks[b], sigma, gain)
            continue
        # Dividing by the peak, rounding the factor and multiplying by it change each entry by less than 4 u in all.
        error = 2.0 * torch.finfo(units.dtype).eps * operator.spread * frobenius_upper(units[b])
        norm = add_up(mul_up(float(numbers[b, NORM]) / peak, 1.0 + 2.0**-50), error)
        if not norm <= sigma * (1.0 + recipe.level.slack):
            proven = operator.prove_swiftly(units[b], sigma)
            norm = add_up(proven, error)
            numbers[b, NORM] = float(mul_up(norm, peak))
        kept = soft and bool(mul_up(norm, peak) <= target)
        factor = target / float(norm) if norm > 0.0 else 1.0
        numbers[b, TRAINED] = math.inf if kept else _below(factor, peaks[b], recipe.cap)
    return numbers


def _proven_product(recipe: Recipe, block: Tensor, unit: Tensor, peak: Tensor, sigma: float, gain: float) -> Tensor:
    """A factor for which the scaled and rounded block itself is proved, whatever rounding does to it."""

    def prove(weight: Tensor) -> float:
        return recipe.operator.prove_swiftly(weight, math.nan)

    bound = recipe.bound * gain
    first = bound * (1.0 - MARGIN) / (sigma * (1.0 + _USUALLY_LOW)) if sigma > 0.0 else 1.0
    if isinstance(recipe.cap, Soft):
        kept = block.to(unit)
        if first >= float(peak) and prove(kept) <= bound * (1.0 - MARGIN):
            return torch.tensor(math.inf, dtype=torch.float64)
    return scale_to(prove, unit, bound, recipe.label, _below(first, peak, recipe.cap), block.dtype)


def frobenius_upper(block: Tensor) -> float:
    """An upper bound of the Frobenius norm of a float32 or float64 tensor, summed in its own precision by rows."""
    peak = float(block.abs().amax())
    if peak == 0.0:
        return 0.0
    rows = (block / peak).reshape(block.shape[0], -1)
    squares = torch.linalg.vector_norm(rows, dim=1).double().square().sum()
    terms = rows.shape[1] + 4
    inflation = 4.0 * terms * torch.finfo(block.dtype).eps
    if inflation > 0.5:
        return frobenius_upper(block.double()) if block.dtype != torch.float64 else math.inf
    # Entries below 2**-50 of the peak may be lost when they are squared.
    lost = 2.0**-50 * math.sqrt(block.numel())
    return peak * (math.sqrt(float(squares)) * (1.0 + inflation) + lost) * (1.0 + block.shape[0] * 2.0**-48)


def _bridged(recipe: Recipe, seen: Tensor, before: Tensor, norms: Tensor) -> Tensor:
    r"""Upper bounds from those of another value: :math:`|W'| \le |W| + c |W' - W|_F`."""
    operator = recipe.operator
    known = isinstance(recipe.level, Everywhere) and before.shape == seen.shape and before.dtype == seen.dtype
    if not known or operator.spread is None or seen.dtype.itemsize < 4 or bool(torch.isnan(norms).any()):
        return torch.full_like(norms, math.inf)
    steps = operator.split(seen) - operator.split(before.to(seen.device))
    eps = torch.finfo(seen.dtype).eps
    moved = [mul_up(frobenius_upper(step), operator.spread * (1.0 + 2.0 * eps)) for step in steps]
    return torch.tensor([float(add_up(float(n), m)) for n, m in zip(norms, moved, strict=True)], dtype=torch.float64)


def digest(value: Tensor) -> Tensor:
    """A 64-bit number that tells values apart: their bits, weighted and summed modulo ``2**64``."""
    word = {2: torch.int16, 4: torch.int32, 8: torch.int64}[value.dtype.itemsize]
    bits = value.detach().cpu().contiguous().flatten().view(word).to(torch.int64)
    return (bits * (torch.arange(len(bits)) * 0x1E3779B97F4A7C15 + 0x3F58476D1CE4E5B9)).sum()


@torch.library.custom_op("lipcert::prove_spectral", mutates_args=())
def _prove_spectral(original: Tensor, vector: Tensor, gain: Tensor, text: str, training: bool) -> tuple[Tensor, Tensor]:
    """The proven factors, and the proven weight, for a weight that stands in for the parameter."""
    recipe = recipe_of(text)
    numbers = torch.full((recipe.operator.blocks, 5), math.nan, dtype=torch.float64, device="cpu")
    numbers[:, NORM] = math.inf
    if training:
        state = State(original, vector, numbers, original)
        factors = _trained(recipe, state, *units_of(recipe.operator, original), float(gain))[:, TRAINED].clone()
    else:
        factors = proven_factors(recipe, original, float(gain))
    return factors, product(recipe, original, factors)


@_prove_spectral.register_fake
def _(original: Tensor, vector: Tensor, gain: Tensor, text: str, training: bool) -> tuple[Tensor, Tensor]:
    blocks = recipe_of(text).operator.blocks
    return torch.empty(blocks, dtype=torch.float64, device="cpu"), torch.empty_like(original)


@_prove_spectral.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> Any:
    def one(index: int) -> Any:
        parts = [a if d is None else a.select(d, index) for a, d in zip(arguments, in_dims, strict=True)]
        return torch.ops.lipcert.prove_spectral(*parts)

    columns = zip(*[one(index) for index in range(info.batch_size)], strict=True)
    return tuple(torch.stack(column) for column in columns), (0, 0)


@torch.library.custom_op("lipcert::advance", mutates_args={"seen", "vector", "numbers", "value"})
def _advance(
    original: Tensor,
    gain: Tensor,
    start: Tensor,
    loaded: Tensor,
    seen: Tensor,
    vector: Tensor,
    numbers: Tensor,
    value: Tensor,
    text: str,
    proved: bool,
    training: bool,
) -> None:
    """`advanced` in place, for compiled code."""
    state = State(seen, vector, numbers, value)
    after = advanced(recipe_of(text), original, gain, start, loaded, state, proved, training)
    pairs = ((seen, after.seen), (vector, after.vector), (numbers, after.numbers), (value, after.value))
    for old, new in pairs:
        if new is not old:
            old.copy_(new)


@_advance.register_fake
def _(*_: Any) -> None:
    return None


def recipe_of(text: str) -> Recipe:
    """The recipe of a `SpectralNorm` that was turned into text."""
    recipe = claim_of(text).__dict__["recipe"]
    assert isinstance(recipe, Recipe)
    return recipe
