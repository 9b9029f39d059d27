"""Spectral normalisation by the operator a layer really applies. Floor 3.

In training the weight is divided by a power-iteration estimate of that operator's norm, in evaluation by a proven
bound of it. Both are pure functions of the parameter and one buffer, so a forward pass never moves anything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lipcert.errors import CheckFailed, InvalidInput
from lipcert.linear import apply
from lipcert.lowering import require_finite
from lipcert.parametrizations.operators import Operator, direction, operator_of, power_iteration

# The certifier inflates its composed bound by a few 2**-30; this margin keeps a certified layer at or below its claim.
_MARGIN = 2.0**-26
# A converged vector can be orthogonal to the next weight's top direction; this much of a fixed random one never is.
_FRESH = 1e-2
_ATTEMPTS = 10


def spectral_norm(
    module: nn.Module,
    name: str = "weight",
    *,
    bound: float = 1.0,
    input_size: tuple[int, int] | None = None,
    generator: torch.Generator | None = None,
) -> nn.Module:
    r"""Scale a layer so that :math:`|Ax - Ay|_2 \le bound \, |x - y|_2` for the operator A it really applies.

    For a convolution A is the convolution with its stride, padding, padding mode, dilation and groups, not the
    reshaped kernel: the norm of the reshaped kernel can be too low by :math:`\sqrt{k_1 k_2}`.

    *In evaluation* (and after `torch.nn.utils.parametrize.remove_parametrizations` in evaluation mode) the claim is
    a theorem about the stored weight in its own dtype, rounding included: the weight is scaled by a proven bound of
    its norm and the rounded result is proved again. *In training* the weight is divided by a power-iteration
    estimate, which approaches the norm from below; nothing is claimed until ``eval()``. The deployed weight is
    smaller than the training weight by the ratio of bound to estimate.

    A forward pass, or reading the weight, is a pure function of the parameter and one buffer, which moves on only
    after the parameter has changed: two passes in one step agree to the bit and recomputation under activation
    checkpointing is exact. A zero weight stays zero. Weights passed by `torch.func.functional_call` are normalised
    along the stored vector, which they do not move.

    Args:
        module: An `nn.Linear` or `nn.Conv2d`, changed in place.
        name: The parameter; only ``"weight"`` acts as an operator.
        bound: The claimed norm, positive. The weight is scaled up to it as well as down.
        input_size: Spatial input size ``(H, W)`` at which a convolution's claim is stated. Default: every size, which
            costs tightness with reflect and replicate padding (they repeat small inputs most).
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
    operator = operator_of(module, input_size)
    if name != "weight":
        raise InvalidInput(f"`{name}` of {module} is not applied as an operator; spectral_norm scales `weight`.")
    if not 0.0 < bound < math.inf:
        raise InvalidInput(f"a claim needs a positive finite bound, got {bound!r}.")
    if parametrize.is_parametrized(module, name):
        raise InvalidInput(
            f"`{name}` of {module} is already parametrized, so a claim about it would depend on what acts after. "
            f"Remove that first: torch.nn.utils.parametrize.remove_parametrizations(module, {name!r})."
        )
    weight = getattr(module, name)
    if isinstance(weight, nn.parameter.UninitializedParameter) or not weight.is_floating_point():
        raise InvalidInput(f"`{name}` of {module} has no real floating-point values yet; initialise it first.")
    drawn = torch.Generator().manual_seed(0) if generator is None else generator
    start = torch.randn(1, *operator.in_shape, generator=drawn, dtype=torch.float64, device=drawn.device)
    parametrization = SpectralNorm(operator, start.to(weight), float(bound), f"{name} of {module}")
    return parametrize.register_parametrization(module, name, parametrization)


@dataclass(frozen=True)
class _Memory:
    """What was worked out for the parameter's present value.

    Attributes:
        parameter: The parameter.
        seen: That value.
        vector: Where power iteration ended.
        scale: The proven scale, once evaluation asked for it.
    """

    parameter: nn.Parameter
    seen: Tensor
    vector: Tensor
    scale: Tensor | None


class SpectralNorm(nn.Module):
    """The parametrization that `spectral_norm` registers.

    The buffer ``vector`` is where power iteration stands *before* the present parameter value; where it ends is
    recomputed from the two when needed, so a loaded state dict continues to the bit.
    """

    vector: Tensor
    start: Tensor

    def __init__(self, operator: Operator, start: Tensor, bound: float, label: str) -> None:
        """Start from the vector ``start`` of shape ``(1, *operator.in_shape)``."""
        super().__init__()
        self.operator = operator
        self.bound = bound
        self.label = label
        self.register_buffer("start", start, persistent=False)
        self.register_buffer("vector", start.clone())
        self._memory: _Memory | None = None

    def forward(self, weight: Tensor) -> Tensor:
        """The scaled weight; see `spectral_norm`."""
        with torch.autocast(weight.device.type, enabled=False):
            memory = self._remember(weight)
            # Scaling by the largest entry first keeps weights of any magnitude away from overflow and underflow.
            unit = weight / _peak(weight)
            if self.training:
                return unit * (self.bound / self._estimate(unit, memory)).to(unit.dtype)
            scale = self._proven_scale(weight, unit, memory)
            if torch.is_grad_enabled():
                # x.detach() / x is exactly 1 and carries the derivative of 1 / sigma: the value stays the proven one.
                sigma = self._estimate(unit, memory)
                scale = scale * (sigma.detach() / sigma).to(unit.dtype)
            return unit * scale

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Take a weight as it is, and start the estimate again from the initial vector."""
        require_finite(self.label, weight)
        self.vector = self.start.clone()
        self._memory = None
        return weight

    def extra_repr(self) -> str:
        """Show the claim."""
        return f"bound={self.bound}"

    def _save_to_state_dict(self, *arguments: object) -> None:
        memory = self._memory
        if memory is not None and not _same(memory.parameter, memory.seen):
            # The parameter is a step ahead: save the vector that step will start from.
            self.vector, self._memory = memory.vector.to(self.vector), None
        super()._save_to_state_dict(*arguments)  # type: ignore[arg-type]

    def _load_from_state_dict(self, *arguments: object) -> None:
        self._memory = None
        super()._load_from_state_dict(*arguments)  # type: ignore[arg-type]

    def _remember(self, weight: Tensor) -> _Memory | None:
        """Move on if the parameter changed since the last call.

        Values are compared, not version counters: ``p.data.copy_(...)`` changes a parameter without counting. A
        tensor that is no parameter stands in for it (`torch.func`) and moves nothing.
        """
        memory = self._memory
        if not isinstance(weight, nn.Parameter) or (memory is not None and _same(memory.seen, weight)):
            return memory
        require_finite(self.label, weight.detach())
        # Tensors made under inference mode could not be used for training afterwards.
        with torch.inference_mode(False), torch.no_grad():
            if memory is not None:
                self.vector = memory.vector.to(self.vector)
            unit = _working(weight / _peak(weight))
            start = direction(self.vector.to(unit)) + _FRESH * direction(self.start.to(unit))
            ended = power_iteration(self.operator.act(unit), start)
            self._memory = _Memory(weight, weight.detach().clone(), ended, None)
        return self._memory

    def _estimate(self, unit: Tensor, memory: _Memory | None) -> Tensor:
        """``|A v| = <u, A v>`` with v held fixed; 1 where that is 0, so that a zero weight stays zero."""
        unit = _working(unit)
        v = direction((self.vector if memory is None else memory.vector).to(unit))
        sigma = torch.linalg.vector_norm(apply(self.operator.act(unit), v))
        return torch.where(sigma > 0, sigma, torch.ones_like(sigma))

    def _proven_scale(self, weight: Tensor, unit: Tensor, memory: _Memory | None) -> Tensor:
        if memory is None or not isinstance(weight, nn.Parameter):
            scale = _Proof.apply(unit.detach(), self.operator, self.bound, self.label)
            assert isinstance(scale, Tensor)
            return scale
        if memory.scale is None:
            with torch.inference_mode(False), torch.no_grad():
                scale = _prove(self.operator, memory.seen / _peak(memory.seen), self.bound, self.label)
            memory = self._memory = replace(memory, scale=scale)
        assert memory.scale is not None
        return memory.scale


class _Proof(torch.autograd.Function):
    """`_prove` behind a function of torch's own, so that transforms (`torch.func.grad`) hand it plain numbers."""

    @staticmethod
    def forward(unit: Tensor, operator: Operator, bound: float, label: str) -> Tensor:
        return _prove(operator, unit, bound, label)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
        return (None,) * 4

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], unit: Tensor, *rest: Any) -> tuple[Tensor, int | None]:
        if in_dims[0] is None:
            return _Proof.apply(unit, *rest), None  # type: ignore[return-value]
        return torch.stack([_Proof.apply(one, *rest) for one in unit.unbind(in_dims[0])]), 0  # type: ignore[arg-type]


def _prove(operator: Operator, unit: Tensor, bound: float, label: str) -> Tensor:
    """A scale for which ``unit * scale``, rounded to its dtype, provably has norm at most ``bound``."""
    require_finite(label, unit)
    target = bound * (1.0 - _MARGIN)
    norm = operator.prove(unit.double().cpu())
    scale = target / norm if norm > 0.0 else 1.0
    # Rounding the product can raise the norm by one eps; after a failure aim lower by that much.
    shrink = 1.0 - max(torch.finfo(unit.dtype).eps, 2.0**-40)
    for _ in range(_ATTEMPTS):
        rounded = torch.as_tensor(scale, dtype=unit.dtype, device=unit.device)
        weight = unit * rounded
        require_finite(label, weight)
        norm = operator.prove(weight.double().cpu())
        if norm <= target and float(rounded) > 0.0:
            return rounded
        scale *= min(1.0, target / norm if norm > 0.0 else 1.0) * shrink
    raise CheckFailed(
        f"`{label}` could not be scaled to a proven norm of {bound}: {norm} is left after {_ATTEMPTS} attempts.\n"
        f"  {unit.dtype} may be too coarse for this weight; use a wider dtype or a larger bound."
    )


def _same(first: Tensor, second: Tensor) -> bool:
    return first.dtype == second.dtype and first.device == second.device and torch.equal(first, second)


def _peak(weight: Tensor) -> Tensor:
    """The largest magnitude, 1 for a zero weight."""
    peak = weight.detach().abs().amax()
    return torch.where(peak > 0, peak, torch.ones_like(peak))


def _working(weight: Tensor) -> Tensor:
    """In float32 at least: an estimate in half precision would be off by percents."""
    return weight.to(torch.promote_types(weight.dtype, torch.float32))
