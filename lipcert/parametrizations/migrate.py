"""From torch's spectral norms and orthogonal layers to ones that keep their word. Floor 3."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.spectral_norm import SpectralNorm as Hooked
from torch.nn.utils.spectral_norm import remove_spectral_norm

from lipcert.errors import InvalidInput, LipcertError
from lipcert.freeze import sizes_read
from lipcert.parametrizations.operators import operator_of
from lipcert.parametrizations.options import Deployed, Everywhere
from lipcert.parametrizations.orthogonal import orthogonal
from lipcert.parametrizations.spectral import spectral_norm


@dataclass(frozen=True)
class _Found:
    """One tensor under a claim of torch's, and how to bare it."""

    path: str
    module: nn.Module
    name: str
    kind: type
    bare: Callable[[nn.Module, str], None]

    @property
    def label(self) -> str:
        return f"{self.path}.{self.name}" if self.path else self.name


_DEPLOYED = Deployed()


def migrate(
    model: nn.Module,
    inputs: Tensor | tuple[Any, ...] | None = None,
    *,
    bound: float = 1.0,
    level: Deployed | Everywhere = _DEPLOYED,
) -> nn.Module:
    r"""Put `spectral_norm` in the place of both of torch's, and `orthogonal` in the place of torch's, in a whole model.

    Found are `torch.nn.utils.spectral_norm` (old, with hooks), `torch.nn.utils.parametrizations.spectral_norm` and, on
    linear layers, `torch.nn.utils.parametrizations.orthogonal`. Parameters stay the same objects with the same values,
    so optimisers and moving averages go on. Outputs change where torch's estimate was wrong: a linear layer by what
    power iteration had missed, a convolution by the ratio of the norm of its reshaped kernel to its own.

    What is guaranteed afterwards is what `spectral_norm` and `orthogonal` say, each about its layer.

    Args:
        model: Changed in place.
        inputs: Inputs of one forward pass (in evaluation mode, without gradients) that shows at which size each
            convolution is applied; its claim is then about that size. Without it, or where a convolution is applied
            at several sizes, claims hold at every size, which takes longer to prove and may be a little looser.
        bound: The claim of each spectral norm, in l2.
        level: `Deployed` or `Everywhere`, for each spectral norm.

    Returns:
        The model.

    Raises:
        InvalidInput: If nothing is found, or something cannot be migrated; the model is then unchanged.

    Example:
        >>> critic = nn.Sequential(nn.utils.spectral_norm(nn.Conv2d(1, 2, 3, padding=1)), nn.ReLU())
        >>> migrate(critic, torch.zeros(1, 1, 8, 8))[0].parametrizations.weight[0]
        SpectralNorm(bound=1.0)
    """
    found = list(_search(model))
    if not found:
        raise InvalidInput(
            f"{type(model).__name__} has no spectral norm or orthogonal parametrization of torch, so there is nothing "
            "to migrate. Put a claim on a layer with lipcert.parametrizations.spectral_norm(layer)."
        )
    sizes = {} if inputs is None else _sizes_seen(model, inputs)
    _require_possible(found, sizes)
    for each in found:
        each.bare(each.module, each.name)
        if each.kind is parametrizations._Orthogonal:
            orthogonal(each.module, each.name)
        else:
            spectral_norm(each.module, each.name, bound=bound, input_size=sizes.get(each.module), level=level)
    return model


def _search(model: nn.Module) -> Iterator[_Found]:
    """All tensors that torch normalises, and others that stand in the way."""
    for path, module in model.named_modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, Hooked):
                yield _Found(path, module, hook.name, Hooked, _bare_hooked)
        if parametrize.is_parametrized(module):
            assert isinstance(module.parametrizations, nn.ModuleDict)
            for name, entries in module.parametrizations.items():
                assert isinstance(entries, parametrize.ParametrizationList)
                kinds = [type(entry) for entry in entries]
                for kind in kinds:
                    if kind in (parametrizations._SpectralNorm, parametrizations._Orthogonal):
                        stacked = len(kinds) > 1
                        bare = _bare_orthogonal if kind is parametrizations._Orthogonal else _bare_parametrized
                        yield _Found(path, module, name, list if stacked else kind, bare)


def _bare_hooked(module: nn.Module, name: str) -> None:
    original = module._parameters[f"{name}_orig"]
    remove_spectral_norm(module, name)
    module._parameters[name] = original


def _bare_parametrized(module: nn.Module, name: str) -> None:
    parametrize.remove_parametrizations(module, name, leave_parametrized=False)


def _bare_orthogonal(module: nn.Module, name: str) -> None:
    # the parameter is the orthogonal matrix in other coordinates: the matrix is what is kept
    parametrize.remove_parametrizations(module, name, leave_parametrized=True)


def _require_possible(found: list[_Found], sizes: dict[nn.Module, tuple[int, ...]]) -> None:
    reasons = []
    for each in found:
        if each.kind is list:
            reasons.append(f"`{each.label}` has other parametrizations besides; remove them first.")
        elif each.kind is parametrizations._Orthogonal and not isinstance(each.module, nn.Linear):
            reasons.append(
                f"`{each.label}`: torch makes the reshaped kernel orthogonal, which is another layer than an "
                "orthogonal convolution; remove it and choose orthogonal_convolution or spectral_norm."
            )
        else:
            try:
                operator_of(_as_plain(each.module, each.name), each.name, sizes.get(each.module))
            except LipcertError as error:
                reasons.append(f"`{each.label}`: {error}")
    if reasons:
        raise InvalidInput("cannot migrate, nothing was changed:\n  " + "\n  ".join(reasons))


def _as_plain(module: nn.Module, name: str) -> nn.Module:
    """The module as it was before torch parametrized it, without values; reading a tensor would move torch's state."""
    if not parametrize.is_parametrized(module, name):
        return module
    assert isinstance(module.parametrizations, nn.ModuleDict)
    original = module.parametrizations[name].original
    assert isinstance(original, Tensor)
    plain = object.__new__(type(module).__bases__[0])
    plain.__dict__ = {**vars(module), name: torch.empty_like(original, device="meta")}
    return plain


def _sizes_seen(model: nn.Module, inputs: Tensor | tuple[Any, ...]) -> dict[nn.Module, tuple[int, ...]]:
    """The input size of each convolution that is applied at one size only."""
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    modes = {module: module.training for module in model.modules()}
    convolutions = [module for module in model.modules() if isinstance(module, _ConvNd)]
    try:
        return sizes_read(convolutions, lambda: model.eval()(*given))
    finally:
        for module, mode in modes.items():
            module.training = mode
