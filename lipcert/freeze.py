"""A float64 copy of a model's evaluation function: weights exact, nothing left that could change them. Floor 2.

Order matters: copy, materialise parametrizations in the model's own dtype and in eval mode, detach, then promote.
Evaluating a parametrization after promotion would give other weights than the ones the model uses.
"""

from __future__ import annotations

import copy
import inspect
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from lipcert.errors import InvalidInput, NotFinite, UnsupportedOperation

EXACT = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""The floating formats that binary64 contains."""

_TENSORS = (Tensor, nn.Parameter)
_GLOBAL_HOOKS = (
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_MODE_DEPENDENT = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.dropout._DropoutNd,
    nn.RReLU,
    nn.MultiheadAttention,
    nn.RNNBase,
)


def freeze(model: nn.Module) -> nn.Module:
    """Copy a model as its evaluation function in float64, with every weight as an exact constant.

    The copy has no hooks, no parametrizations and no gradients; its weights are the ones the model uses in
    evaluation, materialised in the model's own dtype and then promoted, which changes no value. The model itself
    is left as it was: weights, mode and random state.

    Args:
        model: Any module whose weights are ordinary tensors.

    Raises:
        UnsupportedOperation: If the model is a wrapper, has hooks or replaced methods, has weights that float64
            cannot hold, or is in training mode with a submodule for which that makes a difference.
        NotFinite: If a weight is NaN or infinite.
        InvalidInput: If it is no module, or a weight is empty.

    Example:
        >>> layer = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
        >>> frozen = freeze(layer)
        >>> frozen.weight.dtype, torch.equal(frozen.weight, layer.weight.double())
        (torch.float64, True)
    """
    return promote(materialise(model))


def materialise(model: nn.Module) -> nn.Module:
    """The copy that `freeze` makes, before promotion: in the model's own dtypes.

    Raises:
        UnsupportedOperation: As `freeze`.
        NotFinite: As `freeze`.
        InvalidInput: As `freeze`.
    """
    if not isinstance(model, nn.Module):
        raise InvalidInput(f"expected a torch.nn.Module, got {type(model).__name__}; wrap functions in a module.")
    _require_no_global_hooks()
    for path, module in model.named_modules():
        _require_ordinary_tensors(module, path)
        _require_plain(module, path)
    with unchanged_randomness(), torch.no_grad():
        _require_evaluation_mode(model)
        copied = evaluation_copy(model)
        for path, module in list(copied.named_modules()):
            _remove_norm_hooks(module)
            _remove_parametrizations(module, path)
        for path, module in copied.named_modules():
            _require_finite(module, path)
    return copied.requires_grad_(False)


def promote(model: nn.Module, device: torch.device | None = None) -> nn.Module:
    """Turn all floating tensors of a materialised model into float64, in place; shared tensors stay shared.

    Args:
        model: The materialised model.
        device: Where all tensors go. Default: where they are.
    """
    promoted: dict[int, Any] = {}

    def exact(value: Any) -> Any:
        if isinstance(value, Tensor):
            if id(value) not in promoted:
                dtype = torch.float64 if value.is_floating_point() else value.dtype
                wide = value.detach().to(device or value.device, dtype)
                # The old tensor is kept beside the new one, so that its id is not given to another.
                promoted[id(value)] = (value, nn.Parameter(wide, False) if isinstance(value, nn.Parameter) else wide)
            return promoted[id(value)][1]
        return _rebuilt(value, exact)

    for module in model.modules():
        module.__dict__.update({key: exact(value) for key, value in _own(module)})
        for tensors in (module._parameters, module._buffers):
            tensors.update({name: exact(tensor) for name, tensor in tensors.items()})
    return model


def evaluation_copy(model: nn.Module) -> nn.Module:
    """A deep copy in evaluation mode, hooks and parametrizations included.

    Tensors with a history (the ``weight`` of an old-style norm after a forward pass) are copied detached.
    """
    copied = copy.deepcopy(model, _history_free(model))
    for module in copied.modules():
        module.training = False
    return copied


@contextmanager
def unchanged_randomness() -> Iterator[None]:
    """Give every global random generator its state back at the end."""
    python, numbers = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)


def shapes_read(modules: Iterable[nn.Module], run: Callable[[], object]) -> dict[nn.Module, set[tuple[int, ...]]]:
    """The shapes, batch included, of the first argument that each of these modules reads while something runs.

    Without gradients, with randomness as it was, and without a trace in the modules.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 1))
        >>> shapes_read([model[1]], lambda: model(torch.zeros(3, 2, 2)))
        {Linear(in_features=4, out_features=1, bias=True): {(3, 4)}}
    """
    seen: dict[nn.Module, set[tuple[int, ...]]] = {module: set() for module in modules}

    def note(module: nn.Module, given: tuple[Any, ...]) -> None:
        if given and isinstance(given[0], Tensor):
            seen[module].add(tuple(given[0].shape))

    hooks = [module.register_forward_pre_hook(note) for module in seen]
    try:
        with torch.no_grad(), unchanged_randomness():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def sizes_read(convolutions: Iterable[_ConvNd], run: Callable[[], object]) -> dict[nn.Module, tuple[int, ...]]:
    """The spatial size of what each of these reads that reads one size only; see `shapes_read`."""
    kept = list(convolutions)
    seen = shapes_read(kept, run)
    sizes = {module: {shape[-len(module.kernel_size) :] for shape in seen[module]} for module in kept}
    return {module: found.pop() for module, found in sizes.items() if len(found) == 1}


def _own(module: nn.Module) -> list[tuple[str, Any]]:
    """Attributes that are neither parameters, buffers nor submodules."""
    return [item for item in vars(module).items() if item[0] not in ("_parameters", "_buffers", "_modules")]


def _rebuilt(value: Any, change: Callable[[Any], Any]) -> Any:
    """A list, tuple or dict of changed elements; anything else as it is."""
    match value:
        case list() if type(value) is list:
            value[:] = [change(element) for element in value]
        case tuple() if type(value) is tuple:
            return tuple(change(element) for element in value)
        case dict() if type(value) is dict:
            value.update({key: change(element) for key, element in value.items()})
    return value


def _refuse(path: str, message: str) -> UnsupportedOperation:
    return UnsupportedOperation(message.format(at=f"`{path or '(the model itself)'}`"), path=path)


def _require_no_global_hooks() -> None:
    for name in _GLOBAL_HOOKS:
        if getattr(torch_module, name):
            raise UnsupportedOperation(
                f"a hook is registered on all modules (torch.nn.modules.module.{name}); it could change any output, "
                f"and no rule sees it. Remove it first."
            )


def _require_plain(module: nn.Module, path: str) -> None:
    """Refuse wrappers, hooks and replaced methods: what `forward` says must be what a call does."""
    if isinstance(module, torch.jit.ScriptModule):
        raise _refuse(path, "{at} is a ScriptModule, whose code cannot be traced; pass the python module it came from.")
    if "_orig_mod" in module._modules:
        raise _refuse(path, "{at} is a compiled wrapper; pass the module inside it, `model._orig_mod`.")
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise _refuse(path, "{at} is a parallel wrapper; pass the module inside it, `model.module`.")
    for name in _HOOKS:
        hooks = vars(module).get(name) or {}
        foreign = [hook for hook in hooks.values() if type(hook) not in (SpectralNorm, WeightNorm)]
        if foreign:
            raise _refuse(
                path,
                f"{{at}} has a hook in {name} ({foreign[0]!r}), which may change what it computes. Remove the hook "
                "(for pruning: torch.nn.utils.prune.remove), or write what it does into forward.",
            )
    if type(module).__call__ is not nn.Module.__call__:
        raise _refuse(path, "{at} overrides __call__, so calling it is not running its forward; move that code there.")
    made_by_torch = inspect.getmodule(getattr(type(module), "__deepcopy__", None)) is parametrize
    if not made_by_torch and type(module).__dict__.keys() & {"__deepcopy__", "__reduce_ex__", "__reduce__"}:
        raise _refuse(path, "{at} defines how it is copied, and a copy is all that lipcert may look at. Remove that.")
    replaced = [name for name, value in vars(module).items() if callable(value) and _is_method(type(module), name)]
    if replaced:
        raise _refuse(
            path,
            f"{{at}} has its method `{replaced[0]}` replaced on the instance, so it does not do what its class says. "
            "Write a subclass instead.",
        )


def _is_method(cls: type, name: str) -> bool:
    return callable(getattr(cls, name, None))


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All tensors a module holds itself: parameters, buffers, and plain attributes, also inside containers."""

    def inside(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
        if isinstance(value, Tensor):
            yield name, value
        elif type(value) in (list, tuple):
            for position, element in enumerate(value):
                yield from inside(f"{name}[{position}]", element)
        elif type(value) is dict:
            for key, element in value.items():
                yield from inside(f"{name}[{key!r}]", element)

    for name, value in [*module._parameters.items(), *module._buffers.items(), *_own(module)]:
        yield from inside(name, value)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _require_ordinary_tensors(module: nn.Module, path: str) -> None:
    for name, tensor in _tensors(module):
        where = _join(path, name)
        strange = _strangeness(tensor)
        if strange:
            raise _refuse(
                where,
                f"{{at}} is {strange}; weights must be dense float16, bfloat16, float32 or float64 tensors, "
                "which float64 holds exactly (integer and bool tensors may serve as indices).",
            )
        if tensor.numel() == 0 and isinstance(tensor, nn.Parameter):
            raise InvalidInput(f"`{where}` has the empty shape {tuple(tensor.shape)}; no bound is defined for it.")


def _strangeness(tensor: Tensor) -> str:
    if torch.nn.parameter.is_lazy(tensor):
        return "lazy and not initialised yet (run the model once)"
    if type(tensor) not in _TENSORS:
        return f"of the tensor subclass {type(tensor).__name__}"
    if tensor.is_quantized or tensor.is_complex() or tensor.is_meta or tensor.layout != torch.strided:
        kind = "quantised" if tensor.is_quantized else "complex" if tensor.is_complex() else "without plain storage"
        return f"{kind} ({tensor.dtype}, {tensor.layout}, device {tensor.device})"
    return f"of the format {tensor.dtype}" if tensor.is_floating_point() and tensor.dtype not in EXACT else ""


def _require_finite(module: nn.Module, path: str) -> None:
    for name, tensor in _tensors(module):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            raise NotFinite(
                f"`{_join(path, name)}` has {bad} of {tensor.numel()} entries that are NaN or infinite; no bound "
                f"exists. Restore the weights from before training diverged."
            )


def _require_evaluation_mode(model: nn.Module) -> None:
    """Refuse training mode where it makes a difference: the certificate is about the evaluation function."""
    for path, module in model.named_modules():
        old_norms = any(type(hook) is SpectralNorm for hook in module._forward_pre_hooks.values())
        if module.training and (_changes_with_mode(module) or old_norms):
            raise _refuse(
                path,
                f"{{at}} ({type(module).__name__}) is in training mode, in which it computes something else; "
                "the certificate is about the evaluation function. Call model.eval() first.",
            )
    if not any(map(parametrize.is_parametrized, model.modules())):
        return
    copied = copy.deepcopy(model, _history_free(model))
    read = {mode: _parametrized(copied, training=mode) for mode in (True, False)}
    for where, (values, was_training) in read[True].items():
        evaluated, _ = read[False][where]
        if was_training and not _same(*values, *evaluated):
            raise _refuse(
                where,
                "{at} is parametrized, and in training mode its value differs from read to read or from evaluation; "
                "the certificate is about the evaluation function. Call model.eval() first.",
            )
        if not _same(*evaluated):
            raise _refuse(where, "{at} is parametrized, and two reads in evaluation mode differ: it is not one weight.")


def _changes_with_mode(module: nn.Module) -> bool:
    match module:
        case nn.modules.dropout._DropoutNd():
            return module.p > 0
        case nn.MultiheadAttention() | nn.RNNBase():
            return module.dropout > 0
        case nn.modules.instancenorm._InstanceNorm():
            return bool(module.track_running_stats)
    return isinstance(module, _MODE_DEPENDENT)


def _history_free(model: nn.Module) -> dict[int, Any]:
    memo: dict[int, Any] = {}
    for module in model.modules():
        for _, tensor in _tensors(module):
            if not tensor.is_leaf:
                memo[id(tensor)] = tensor.detach().clone()
    return memo


def _parametrized(model: nn.Module, *, training: bool) -> dict[str, tuple[list[Tensor], bool]]:
    """Two reads of every parametrized tensor, each in the mode the model has, or all in evaluation mode."""
    modes = {module: module.training for module in model.modules()}
    for module in modes:
        module.training = training and modes[module]
    found: dict[str, tuple[list[Tensor], bool]] = {}
    for path, module in model.named_modules():
        if parametrize.is_parametrized(module):
            lists = dict(_parametrizations(module).items())
            for name, entries in lists.items():
                was_training = module.training or any(part.training for part in entries.modules())
                reads = [getattr(module, name).detach().clone() for _ in range(2)]
                found[_join(path, name)] = (reads, was_training)
    for module, mode in modes.items():
        module.training = mode
    return found


def _same(first: Tensor, *others: Tensor) -> bool:
    return all(torch.equal(first, other) for other in others)


def _parametrizations(module: nn.Module) -> nn.ModuleDict:
    found = module.parametrizations
    assert isinstance(found, nn.ModuleDict)
    return found


def _remove_norm_hooks(module: nn.Module) -> None:
    """Old-style spectral and weight norm: keep the weight that the hook would compute in evaluation."""
    for key, hook in list(module._forward_pre_hooks.items()):
        hook.remove(module)
        del module._forward_pre_hooks[key]


def _remove_parametrizations(module: nn.Module, path: str) -> None:
    """Replace parametrized tensors by their values.

    torch's own `remove_parametrizations` deletes the property from the class, which the model shares with its copy.
    """
    if not parametrize.is_parametrized(module):
        return
    names = list(_parametrizations(module))
    made = type(module)
    if not made.__name__.startswith("Parametrized") or not all(isinstance(vars(made).get(n), property) for n in names):
        raise _refuse(path, "{at} is parametrized in a way torch.nn.utils.parametrize does not produce.")
    values = {name: getattr(module, name).detach().clone() for name in names}
    del module.parametrizations
    module.__class__ = made.__bases__[0]
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value, requires_grad=False))
        strange = _strangeness(value)
        if strange:
            raise _refuse(_join(path, name), f"{{at}}, as parametrized, is {strange}.")
