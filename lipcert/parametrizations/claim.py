"""What all parametrizations with a claim share: in evaluation, the weight is proved before anybody sees it. Floor 3.

A claim remembers for which value of its parameter something was proved, and compares values, not version counters:
``p.data.copy_(...)`` changes a parameter without counting, and a copy, a moving average or a loaded checkpoint must
never be used with the proof of another weight. So a forward pass is a pure function of the parameter and of buffers.
"""

from __future__ import annotations

import base64
import copy
import math
import pickle
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from lipcert.errors import CheckFailed, InvalidInput
from lipcert.lowering import require_finite

MARGIN = 2.0**-26
"""The certifier inflates its composed bound by a few 2**-30; this keeps a certified layer at or below its claim."""

_ATTEMPTS = 10


class Claim(nn.Module):
    """A parametrization whose weight has an operator norm of at most ``bound``, proved in evaluation.

    Subclasses give `weight`, the pure and differentiable map used in training, and `prove`. In evaluation the weight
    is multiplied by a scale of at most 1 for which the product, rounded to its dtype, has a proven norm.

    Attributes:
        bound: The claimed norm.
        label: What the claim is about, for error messages.
        seen: The value of the parameter that something was proved for; NaN if there is none.
        value: The proved weight. It is kept, not made again: a compiler may round a product in another way.
        scale: What the weight was multiplied by, float64.
        text: This claim without its tensors, pickled: compiled code hands it to the proof (see `remember`).
        shape: The shape of the weight, which the parameter need not have.
    """

    def __init__(self, bound: float, label: str) -> None:
        """Make a claim that has seen nothing."""
        super().__init__()
        if not 0.0 < bound < math.inf:
            raise InvalidInput(f"a claim needs a positive finite bound, got {bound!r}.")
        self.bound = float(bound)
        self.label = label
        # named devices: under `torch.device("meta")` these would have no values
        self.seen = torch.full((), math.nan, device="cpu")
        self.value = torch.full((), math.nan, device="cpu")
        self.scale = torch.full((), math.nan, dtype=torch.float64, device="cpu")
        self.text = ""
        self.shape = torch.Size()
        self._given: weakref.ref[Tensor] | None = None

    def weight(self, original: Tensor) -> Tensor:
        """The weight in training."""
        raise NotImplementedError

    def prove(self, weight: Tensor) -> float:
        """A proven upper bound of the operator norm of a float64 weight."""
        raise NotImplementedError

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The parameter for a given weight; here itself."""
        if not weight.is_meta:
            require_finite(self.label, weight)
        self.forget()
        return weight

    def forward(self, original: Tensor) -> Tensor:
        """The weight: as `weight` says in training, scaled to the proven claim in evaluation."""
        if original.is_meta:
            return original.new_empty(self.shape)
        if torch.compiler.is_exporting() and not self.training:
            return self.value.clone()
        original = gathered(original)
        if not (self.training or torch.is_grad_enabled() or torch.compiler.is_compiling()) and self._knows(original):
            return self.value.clone()
        # norms and inverses in bfloat16 would keep no claim
        with torch.autocast(original.device.type, enabled=False):
            weight = self.weight(original)
        if self.training:
            if not torch.compiler.is_compiling():
                self._given = weakref.ref(weight)
            return weight
        scale, value = self._proven(original, weight)
        return valued(weight * scale.to(weight), value)

    def watch(self, original: Tensor, weight: Tensor) -> None:
        """Prepare to remember parameters like this one, and weights like that one."""
        if self.seen.shape != original.shape:
            self.seen = torch.full_like(original.detach(), math.nan)
        if self.value.shape != weight.shape:
            self.value = torch.full_like(weight.detach(), math.nan)
        self.text = base64.b64encode(pickle.dumps(_bare(self))).decode()

    def forget(self) -> None:
        """Have everything proved again."""
        self.seen = torch.full_like(self.seen, math.nan)
        self.value = torch.full_like(self.value, math.nan)
        self.scale = torch.full_like(self.scale, math.nan)

    def leave(self, original: nn.Parameter) -> None:
        """Called when the claim is removed, with what is left in its place: the weight, or the bare parameter.

        A weight that was read in training is replaced by one that is proved; one that was proved stays as it is.
        """
        given = None if self._given is None else self._given()
        # torch lays the parameter over the memory of the weight that it has just read
        if self.training and given is not None and given.data_ptr() == original.data_ptr():
            with torch.no_grad():
                scale = scale_down(self._prove_stored, original, self.bound, self.label)
                original.copy_(original * scale.to(original))

    def _prove_stored(self, weight: Tensor) -> float:
        return self.prove(weight.double().cpu())

    def _knows(self, original: Tensor) -> bool:
        return type(original) is nn.Parameter and same(self.seen, original)

    def __getstate__(self) -> dict[str, Any]:
        """All but what lives as long as one pass."""
        return {**vars(self), "_given": None}

    def _proven(self, original: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The proven scale and the proven weight, for a weight made from ``original``."""
        if not isinstance(original, nn.Parameter):
            # A stand-in given by torch.func: proved for itself, and nothing is remembered.
            return torch.ops.lipcert.prove(weight.detach(), self.text)
        if torch.compiler.is_compiling():
            tensors = (original.detach(), weight.detach(), self.seen, self.value, self.scale)
            torch.ops.lipcert.remember(*tensors, self.text)
            return self.scale.clone(), self.value.clone()
        if not same(self.seen, original):
            with plainly():
                made = self.weight(original.detach())
                self.scale = scale_down(self._prove_stored, made, self.bound, self.label)
                self.value = made * self.scale.to(made)
                self.seen = original.detach().clone()
        return self.scale, self.value

    def _load_from_state_dict(self, *arguments: object) -> None:
        self.forget()
        super()._load_from_state_dict(*arguments)  # type: ignore[arg-type]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        moved = super()._apply(fn, recurse)
        self.seen, self.value = (torch.full_like(fn(tensor), math.nan) for tensor in (self.seen, self.value))
        return moved


class _Valued(torch.autograd.Function):
    """The value of one tensor with the derivatives of another."""

    generate_vmap_rule = True

    @staticmethod
    def forward(expression: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        return None

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _ValuedForward(_Valued):
    """With derivatives in forward mode too, which torch.compile does not trace."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        return tangents[0].clone()


def valued(expression: Tensor, value: Tensor) -> Tensor:
    """A tensor with the bits of ``value`` and the derivatives of ``expression``, which is equal up to rounding."""
    made = (_Valued if torch.compiler.is_compiling() else _ValuedForward).apply(expression, value)
    assert isinstance(made, Tensor)
    return made


@contextmanager
def plainly() -> Iterator[None]:
    """Compute tensors that outlive the forward pass.

    Inside a transform of `torch.func` they would belong to it, and made under inference mode they could not be used
    for training afterwards.
    """
    with temporarily_clear_interpreter_stack(), torch.inference_mode(False), torch.no_grad():
        yield


def scale_down(prove: Callable[[Tensor], float], weight: Tensor, bound: float, label: str) -> Tensor:
    """A scale of at most 1, float64, for which ``weight * scale`` in its dtype has a proven norm of at most bound."""
    target = bound * (1.0 - MARGIN)
    require_finite(label, weight)
    norm = prove(weight.detach())
    if norm <= target:
        return torch.ones((), dtype=torch.float64)
    return scale_to(prove, weight, bound, label, target / norm, weight.dtype)


def scale_to(
    prove: Callable[[Tensor], float], unit: Tensor, bound: float, label: str, scale: float, dtype: torch.dtype
) -> Tensor:
    """As `scale_down` for ``(unit * scale).to(dtype)``, starting from a given scale, which may be above 1.

    Raises:
        CheckFailed: If the dtype is too coarse for the claim.
        NotFinite: If the product is not finite.
    """
    target = bound * (1.0 - MARGIN)
    # Rounding the product can raise the norm by one eps; after a failure aim lower by that much.
    shrink = 1.0 - max(torch.finfo(dtype).eps, 2.0**-40)
    norm = math.nan
    for _ in range(_ATTEMPTS):
        rounded = torch.as_tensor(scale, dtype=unit.dtype, device=unit.device)
        weight = (unit.detach() * rounded).to(dtype)
        require_finite(label, weight)
        norm = prove(weight)
        if norm <= target and float(rounded) > 0.0:
            return rounded.double().cpu()
        scale *= min(1.0, target / norm if norm > 0.0 else 1.0) * shrink
    raise CheckFailed(
        f"`{label}` could not be scaled to a proven norm of {bound}: {norm} is left after {_ATTEMPTS} attempts.\n"
        f"  {dtype} may be too coarse for this weight; use a wider dtype or a larger bound."
    )


def same(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are equal in dtype, device, shape and every value; NaN equals nothing."""
    return first.dtype == second.dtype and first.device == second.device and torch.equal(first, second)


def gathered(tensor: Tensor) -> Tensor:
    """The whole of a parameter that is spread over processes (all of them must ask), without gradient; or itself."""
    if type(tensor) in (Tensor, nn.Parameter) or not torch.distributed.is_available():
        return tensor
    from torch.distributed.tensor import DTensor

    if not isinstance(tensor, DTensor):
        return tensor
    whole = tensor.full_tensor()
    return nn.Parameter(whole.detach(), False)


def _bare(claim: Claim) -> Claim:
    """A copy that holds no tensor."""
    bare = copy.copy(claim)
    kept = {name: value for name, value in claim.__getstate__().items() if not isinstance(value, Tensor)}
    bare.__dict__ = {**kept, "_parameters": {}, "_buffers": {}, "_modules": {}, "text": ""}
    return bare


@lru_cache(maxsize=256)
def claim_of(text: str) -> Claim:
    """The claim whose `Claim.text` this is, without tensors."""
    return pickle.loads(base64.b64decode(text))


# Operators, because that is what torch.compile and the transforms of torch.func do not look into. They take a claim
# as text, as operators can take tensors, numbers and strings only.


@torch.library.custom_op("lipcert::prove", mutates_args=())
def prove(weight: Tensor, text: str) -> tuple[Tensor, Tensor]:
    """`scale_down` for the claim that a text stands for, and the proven weight."""
    claim = claim_of(text)
    scale = scale_down(claim._prove_stored, weight, claim.bound, claim.label)
    return scale, weight * scale.to(weight)


@prove.register_fake
def _(weight: Tensor, text: str) -> tuple[Tensor, Tensor]:
    return torch.empty((), dtype=torch.float64), torch.empty_like(weight)


@prove.register_vmap
def _(info: Any, in_dims: tuple[int | None, None], weight: Tensor, text: str) -> Any:
    if in_dims[0] is None:
        return torch.ops.lipcert.prove(weight, text), (None, None)
    proved = [torch.ops.lipcert.prove(one, text) for one in weight.unbind(in_dims[0])]
    return tuple(torch.stack(column) for column in zip(*proved, strict=True)), (0, 0)


@torch.library.custom_op("lipcert::remember", mutates_args={"seen", "value", "scale"})
def remember(original: Tensor, weight: Tensor, seen: Tensor, value: Tensor, scale: Tensor, text: str) -> None:
    """Where ``seen`` is not ``original``, prove ``weight`` and fill in what was proved."""
    if not same(seen, original):
        for old, new in zip((scale, value), torch.ops.lipcert.prove(weight, text), strict=True):
            old.copy_(new)
        seen.copy_(original)


@remember.register_fake
def _(*_: Any) -> None:
    return None
