"""How a parametrization is put on a layer: one class per kind of layer, and checkpoints of other kinds. Floor 3.

torch makes a new class for every module it parametrizes. Such classes cannot be pickled, and functorch refuses to
stack modules of different classes; here every layer of a kind with the same parametrized tensors has the same class.
"""

from __future__ import annotations

import copyreg
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lipcert.errors import InvalidInput, LipcertError
from lipcert.parametrizations.claim import Claim


def register(module: nn.Module, name: str, parametrization: Claim) -> nn.Module:
    """Put a claim on a parameter, as `torch.nn.utils.parametrize.register_parametrization` does.

    The layer can afterwards be pickled, stacked by `torch.func.stack_module_state`, and loaded from a checkpoint of
    the plain layer or of torch's own spectral norms, old and new. Removing the parametrization, in whatever mode,
    leaves a weight that satisfies the claim.

    Args:
        module: The layer, changed in place.
        name: Its parameter.
        parametrization: What to put on it.

    Returns:
        The layer.

    Raises:
        InvalidInput: If there is no such parameter, or it is parametrized already, or has no real values yet.
    """
    weight = require_bare(module, name).detach()
    parametrization.shape = weight.shape
    names = [*(other for other, _ in _claimed(module)), name]
    if type(type(module)) is _Shared:
        _share_class(module, names)  # before torch adds a property to the class the layer has now
    parametrize.register_parametrization(module, name, parametrization)
    parametrization.watch(module.parametrizations[name].original, weight)  # type: ignore[index]
    module.parametrizations = _Claims(dict(module.parametrizations.items()))  # type: ignore[operator]
    _share_class(module, names)
    module.register_load_state_dict_pre_hook(_Translator(name))
    return module


def require_bare(module: nn.Module, name: str) -> Tensor:
    """The parameter of that name, not parametrized and initialised.

    Raises:
        InvalidInput: If that is not so.
    """
    if parametrize.is_parametrized(module, name):
        raise InvalidInput(
            f"`{name}` of {module} is already parametrized, so a claim about it would depend on what acts after. "
            f"Remove that first: torch.nn.utils.parametrize.remove_parametrizations(module, {name!r})."
        )
    weight = module._parameters.get(name)
    if weight is None:
        named = ", ".join(key for key, value in module._parameters.items() if value is not None) or "none"
        raise InvalidInput(f"{module} has no parameter `{name}`; its parameters: {named}.")
    if isinstance(weight, nn.parameter.UninitializedParameter) or not weight.is_floating_point():
        raise InvalidInput(f"`{name}` of {module} has no real floating-point values yet; initialise it first.")
    if weight.numel() == 0:
        raise InvalidInput(f"`{name}` of {module} has the empty shape {tuple(weight.shape)}, which has no norm.")
    return weight


def _claimed(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The tensors of a module that are parametrized now."""
    if parametrize.is_parametrized(module):
        assert isinstance(module.parametrizations, nn.ModuleDict)
        yield from module.parametrizations.items()


class _Claims(nn.ModuleDict):
    """The ``parametrizations`` of a layer: removing a claim leaves the tensor as the claim says, in either mode.

    It also proves every claim when evaluation mode is entered.

    `torch.nn.utils.parametrize.remove_parametrizations` first stores the present value, which in training is an
    estimate, and then deletes the entry; that is where the stored value is proved, and lowered if need be.
    """

    def train(self, mode: bool = True) -> _Claims:
        """Change the mode; on entering evaluation every claim is proved, so that exported code carries a proof.

        A weight that cannot be proved is left for the next read, which says so.
        """
        super().train(mode)
        for entries in () if mode else self.values():
            assert isinstance(entries, parametrize.ParametrizationList)
            whole = type(entries.original) is nn.Parameter and not entries.original.is_meta
            claim = entries[0]
            if whole and isinstance(claim, Claim):
                try:
                    with torch.no_grad():
                        entries.forward()
                except LipcertError:
                    claim.forget()
        return self

    def __delitem__(self, key: str) -> None:
        entries = self[key]
        assert isinstance(entries, parametrize.ParametrizationList)
        claim = entries[0]
        if isinstance(claim, Claim) and entries.is_tensor and len(entries) == 1:
            original = entries.original
            assert isinstance(original, nn.Parameter)
            claim.leave(original)
        super().__delitem__(key)


class _Shared(type):
    """The metaclass of parametrized classes that many layers have at once.

    torch adds and deletes properties on the class of one layer. Here a property that is added steps aside for layers
    where that tensor is not parametrized, and deleting one does nothing.
    """

    def __setattr__(cls, name: str, value: Any) -> None:
        if isinstance(value, property):
            value = vars(cls).get(name) or _stepping_aside(name, value)
        super().__setattr__(name, value)

    def __delattr__(cls, name: str) -> None:
        if not isinstance(vars(cls).get(name), property):
            super().__delattr__(name)


def _stepping_aside(name: str, torchs: property) -> property:
    parametrized, assign = torchs.fget, torchs.fset
    assert parametrized is not None
    assert assign is not None

    def read(self: Any) -> Any:
        if name not in self.parametrizations:
            return nn.Module.__getattr__(self, name)
        if not parametrize._cache_enabled or torch._C._get_tracing_state() is not None:
            return parametrized(self)
        # torch's property would keep it under the module that it was made for, which all layers here share.
        key = (id(self), name)
        if key not in parametrize._cache:
            parametrize._cache[key] = self.parametrizations[name]()
        return parametrize._cache[key]

    def write(self: Any, value: Any) -> None:
        if name in self.parametrizations:
            assign(self, value)
        else:
            self.__dict__[name] = value

    return property(read, write)


def _share_class(module: nn.Module, names: list[str]) -> None:
    base = type(module).__bases__[0]
    if type(base) is type:  # a metaclass of the user's own cannot be joined with ours; torch's class stays
        module.__class__ = _shared_class(base, tuple(sorted(names)))


@cache
def _shared_class(base: type[nn.Module], names: tuple[str, ...]) -> type[nn.Module]:
    """The class of all layers of class ``base`` on which the tensors ``names`` are parametrized."""
    made = _Shared(f"Parametrized{base.__name__}", (base,), {"__module__": __name__, "_shared": True})
    for name in names:
        stand_in = nn.Module()
        stand_in.register_parameter(name, nn.Parameter(torch.zeros(1)))
        parametrize.register_parametrization(stand_in, name, nn.Identity())
        torchs = vars(type(stand_in))
        setattr(made, name, torchs[name])
        if "__deepcopy__" not in dir(base):
            type.__setattr__(made, "__deepcopy__", torchs["__deepcopy__"])
    return made


def _pickled_class(cls: type[nn.Module]) -> Any:
    if "_shared" not in vars(cls):
        return cls.__qualname__  # a subclass, which whoever made it may pickle as any other
    names = tuple(sorted(name for name, value in vars(cls).items() if isinstance(value, property)))
    return _shared_class, (cls.__bases__[0], names)


copyreg.pickle(_Shared, _pickled_class)  # type: ignore[arg-type]


class _Translator:
    """Read checkpoints of the layer without a claim, or with torch's old or new spectral norm, in `load_state_dict`.

    Their weight before normalisation becomes ours; their singular vectors belong to another matrix for convolutions
    and are dropped.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
        entries = dict(_claimed(module)).get(self.name)
        claim = entries[0] if isinstance(entries, parametrize.ParametrizationList) else None
        if not isinstance(entries, parametrize.ParametrizationList) or not isinstance(claim, Claim):
            return
        own = f"{prefix}parametrizations.{self.name}."
        foreign = [f"{prefix}{self.name}_orig", f"{prefix}{self.name}", f"{own}original"]
        if f"{own}0._u" not in state:
            foreign.pop()
        found = [state.pop(key) for key in foreign if key in state]
        for key in (f"{prefix}{self.name}_u", f"{prefix}{self.name}_v", f"{own}0._u", f"{own}0._v"):
            state.pop(key, None)
        if found:
            fits = isinstance(found[0], Tensor) and found[0].shape == claim.shape
            state[f"{own}original"] = claim.right_inverse(found[0]) if fits else found[0]
            state.update({f"{own}0.{key}": value for key, value in claim.state_dict().items()})
