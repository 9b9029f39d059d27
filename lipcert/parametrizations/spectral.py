"""Spectral normalisation by the operator a layer really applies. Floor 3."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lipcert.errors import InvalidInput
from lipcert.parametrizations.claim import Claim, gathered, plainly, same, valued
from lipcert.parametrizations.estimates import Estimate, Lanczos, RowNorm
from lipcert.parametrizations.operators import Rows, operator_of
from lipcert.parametrizations.options import Cap, Deployed, Everywhere, Gain, Hard, Level, Soft
from lipcert.parametrizations.registration import register, require_bare
from lipcert.parametrizations.spectral_state import (
    DEPLOYED,
    TRAINED,
    Recipe,
    State,
    advanced,
    digest,
    product,
    proven_factors,
    scaled,
    units_of,
)


def spectral_norm(
    module: nn.Module,
    name: str = "weight",
    *,
    bound: float = 1.0,
    input_size: Sequence[int] | int | None = None,
    estimate: Estimate | None = None,
    level: Level = Deployed(),  # noqa: B008
    cap: Cap = Hard(),  # noqa: B008
    gain: Gain | None = None,
    generator: torch.Generator | None = None,
) -> nn.Module:
    r"""Scale a layer so that :math:`|Ax - Ay|_2 \le bound \, |x - y|_2` for the operator A it really applies.

    For a convolution A is the convolution with its stride, padding, padding mode, dilation and groups, not the
    reshaped kernel: the norm of the reshaped kernel can be too low by :math:`\sqrt{k_1 k_2}`.

    *In evaluation*, in exported code, and after `torch.nn.utils.parametrize.remove_parametrizations` in either mode,
    the claim is a theorem about the weight in its own dtype, rounding included: the scaled and rounded weight has
    been proved. *In training* it depends on the level. With `Deployed` (the default) the weight is divided by an
    estimate, which is usually a little low; nothing is claimed until ``eval()``. With `Everywhere` every forward
    pass uses a proven bound, up to 2 percent above the norm (`lipcert.opnorm.swift`), or bridged from the last one.

    A forward pass, or reading the weight, is a pure function of the parameter and one buffer, which moves on only
    after the parameter has changed: two passes in one step agree to the bit and recomputation under activation
    checkpointing is exact. A zero weight stays zero. Weights passed by `torch.func.functional_call` are normalised
    along the stored vector, which they do not move.

    ============================ ========================= =====================================================
    layer                        ``name``                  what is bounded
    ============================ ========================= =====================================================
    ``Linear``                   ``weight``                the matrix
    ``Bilinear``                 ``weight``                :math:`|B(x, y)|_2 \le bound |x|_2 |y|_2`
    ``Embedding(Bag)``           ``weight``                rows: from l1 (counts of words) to l2
    ``Conv1d/2d/3d``             ``weight``                the convolution, at ``input_size`` or at every size
    ``ConvTranspose1d/2d/3d``    ``weight``                the transposed convolution, likewise
    ``RNN/LSTM/GRU(Cell)``       ``weight_ih``, ``_hh``,   every gate's matrix
                                 ``weight_ih_l0``, ...
    ``MultiheadAttention``       ``in_proj_weight``, ...   the matrices of queries, keys and values, each alone;
                                                           for the last one pass ``attention.out_proj``
    ============================ ========================= =====================================================

    Args:
        module: One of these layers, changed in place.
        name: The parameter.
        bound: The claimed norm, positive.
        input_size: Spatial input size at which a convolution's claim is stated. Default: every size, which costs
            tightness with reflect and replicate padding (they repeat small inputs most).
        estimate: What training divides by and differentiates: `Lanczos`, `PowerIteration`, `Gram`, `Fourier` or
            `Exact`. Default: Lanczos (the largest row for embeddings).
        level: `Deployed` or `Everywhere`.
        cap: `Hard` scales to the bound, `Soft` only down to it.
        gain: Multiply the bound by a learnable factor below 1. Default: none.
        generator: Source of the initial vector. Default: a generator seeded with 0.

    Returns:
        The module, with ``name`` registered as a parametrization.

    Raises:
        UnsupportedOperation: If the class of the module is not covered.
        InvalidInput: If an argument cannot mean a claim, or the weight is already parametrized.
        NotFinite: If the weight is NaN or infinite; later also when a diverged weight is read.

    References:
        | Spectral Normalization for Generative Adversarial Networks (Miyato et al., 2018)
        | Regularisation of Neural Networks by Enforcing Lipschitz Continuity (Gouk et al., 2021)

    Example:
        >>> layer = nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular", bias=False)
        >>> _ = nn.init.ones_(layer.weight)  # adds up 9 neighbours: norm 9, reached by a constant image
        >>> _ = spectral_norm(layer, input_size=(8, 8)).eval()
        >>> 0.99999 < layer(torch.ones(1, 1, 8, 8)).max().item() <= 1.0
        True
    """
    operator = operator_of(module, name, input_size)
    weight = require_bare(module, name)
    if estimate is None:
        estimate = RowNorm() if isinstance(operator, Rows) else Lanczos()
    estimate.admit(operator)
    if gain is not None and not isinstance(cap, Hard):
        raise InvalidInput("a gain needs cap=Hard(): under a soft cap the weight may already be as small as it likes.")
    drawn = torch.Generator().manual_seed(0) if generator is None else generator
    seed = int(torch.randint(2**62, (), generator=drawn, device=drawn.device))
    recipe = Recipe(operator, estimate, level, cap, float(bound), f"{name} of {module}")
    parametrization = SpectralNorm(recipe, gain, seed).to(weight)
    return register(module, name, parametrization)


class SpectralNorm(Claim):
    """The parametrization that `spectral_norm` registers.

    Its state belongs to the parameter's value in `Claim.seen`. A checkpoint holds the vector and a digest of that
    value, so a run that is resumed continues to the bit, and a vector that belongs to another weight is not used.
    """

    vector: Tensor
    start: Tensor
    digest: Tensor
    gain: nn.Parameter | None

    def __init__(self, recipe: Recipe, gain: Gain | None, seed: int) -> None:
        """Start from the vectors that the seed gives."""
        super().__init__(recipe.bound, recipe.label)
        self.recipe = recipe
        self.seed = seed
        self.register_buffer("start", self._draw(), persistent=False)
        self.register_buffer("vector", self.start.clone())
        self.register_buffer("digest", torch.zeros((), dtype=torch.int64))
        self.numbers = torch.full((recipe.operator.blocks, 5), math.nan, dtype=torch.float64, device="cpu")
        initial = None if gain is None else nn.Parameter(torch.tensor(gain.initial, dtype=torch.float64).logit())
        self.register_parameter("gain", initial)

    @property
    def everywhere(self) -> bool:
        """Whether the claim holds in training too."""
        return isinstance(self.recipe.level, Everywhere)

    def forward(self, original: Tensor) -> Tensor:
        """The scaled weight; see `spectral_norm`."""
        if original.is_meta:
            return torch.empty_like(original)
        original = gathered(original)
        operator, estimate = self.recipe.operator, self.recipe.estimate
        with torch.autocast(original.device.type, enabled=False):
            factor = torch.ones((), dtype=torch.float64) if self.gain is None else self.gain.sigmoid()
            proved = self.everywhere or not self.training
            vector, known, value = self._recall(original, factor, proved)
            plain = isinstance(original, nn.Parameter) and not torch.is_grad_enabled()
            if proved and (plain or torch.compiler.is_exporting()):
                return value.clone()
            # Scaling by the largest entry first keeps weights of any magnitude away from overflow and underflow.
            units, peaks = units_of(operator, original)
            pairs = zip(units, vector[:, None].to(units), strict=True)
            sigma = torch.stack([estimate.sigma(operator.linear(unit), v) for unit, v in pairs])
            sigma = torch.where(sigma > 0, sigma, torch.ones_like(sigma))
            if not proved:
                return scaled(self.recipe, original, units, peaks, (self.bound * factor / sigma).to(units))
            # x.detach() / x is exactly 1 and carries the derivative of 1 / sigma.
            if isinstance(self.recipe.cap, Soft):
                known = torch.minimum(known, peaks.to(known))  # infinity stands for a weight that is left alone
            scales = known * ((factor / factor.detach()) * (sigma.detach() / sigma))
            return valued(scaled(self.recipe, original, units, peaks, scales.to(units)), value)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Take a weight as it is, and start the estimate again from the initial vector."""
        self.vector = self.start.clone()
        self.digest = torch.zeros_like(self.digest)
        return super().right_inverse(weight)

    def weight(self, original: Tensor) -> Tensor:
        """The weight in training."""
        assert self.training
        return self.forward(original)

    def forget(self) -> None:
        """Have everything proved again."""
        super().forget()
        self.numbers = torch.full_like(self.numbers, math.nan)

    def extra_repr(self) -> str:
        """Show the claim."""
        gain = "" if self.gain is None else f", gain={float(self.gain.sigmoid()):.3g}"
        level = "" if self.recipe.level == Deployed() else f", level={self.recipe.level}"
        return f"bound={self.bound}{gain}{level}"

    def leave(self, original: nn.Parameter) -> None:
        """Prove what is left in place of the claim; see `Claim.leave`."""
        if self.training and self._is_weight(original):
            down = replace(self.recipe, cap=Soft())
            with torch.no_grad():
                original.copy_(product(down, original, proven_factors(down, original, 1.0)))

    def _is_weight(self, value: Tensor) -> bool:
        # `seen` stands in for the parameter, so that nothing moves
        with torch.no_grad():
            made = self.value if self.everywhere else self.forward(self.seen)
            return not same(value, self.seen) and same(value, made)

    def _recall(self, original: Tensor, factor: Tensor, proved: bool) -> tuple[Tensor, Tensor, Tensor]:
        """The vector for a parameter, the proven factors and the proven weight; moves on if the parameter changed."""
        column = TRAINED if self.training else DEPLOYED
        if torch.compiler.is_exporting():
            return self.vector, self.numbers[:, column], self.value
        if not isinstance(original, nn.Parameter) or not isinstance(self.gain, nn.Parameter | None):
            # A stand-in given by torch.func: nothing moves.
            if not proved:
                return self.vector, self.numbers[:, column], self.value
            given = (original.detach(), self.vector, factor.detach())
            return self.vector, *torch.ops.lipcert.prove_spectral(*given, self.text, self.training)
        if torch.compiler.is_compiling():
            given = (original.detach(), factor.detach(), self.start, self.digest)
            state = (self.seen, self.vector, self.numbers, self.value)
            torch.ops.lipcert.advance(*given, *state, self.text, proved, self.training)
            return self.vector.clone(), self.numbers[:, column].clone(), self.value.clone()
        state = State(self.seen, self.vector, self.numbers, self.value)
        with plainly():
            gain = factor if self.gain is None else self.gain.sigmoid()
            after = advanced(self.recipe, original, gain, self.start, self.digest, state, proved, self.training)
        if after is not state:
            self.seen, self.vector, self.numbers, self.value = after.seen, after.vector, after.numbers, after.value
        return self.vector, self.numbers[:, column], self.value

    def _draw(self) -> Tensor:
        drawn = torch.Generator().manual_seed(self.seed)
        shape = (self.recipe.operator.blocks, *self.recipe.operator.in_shape)
        return torch.randn(shape, generator=drawn, dtype=torch.float64, device="cpu")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        was_meta = self.start.is_meta
        moved = super()._apply(fn, recurse)
        if was_meta and not self.start.is_meta:
            self.start = self._draw().to(self.start)
            self.vector = self.start.clone()
            self.digest = torch.zeros_like(self.digest)
        return moved

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        if not bool(torch.isnan(self.seen.flatten()[0])):
            self.digest = digest(self.seen).to(self.digest.device)
        super()._save_to_state_dict(destination, prefix, keep_vars)
