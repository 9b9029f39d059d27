"""The graph against the model: what recording cannot see shows as a disagreement, or as changed state. Floor 4."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lipcert.domain import Domain, WholeSpace
from lipcert.errors import InvalidInput, UnsupportedOperation
from lipcert.graph import Graph

AGREEMENT = 1e-9
"""Largest difference between graph and model in float64, relative to the largest output of the sample."""

_SAME_FORMAT = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.25}
ACROSS_FORMATS = {torch.float64: 1e-7, torch.float32: 1e-2, torch.float16: 0.25, torch.bfloat16: 0.5}

_LARGE = 2**22

_LEAVES_TENSORS = frozenset(
    "__bool__ __float__ __int__ __index__ __complex__ __contains__ __array__ item tolist numpy equal allclose "
    "is_nonzero".split()
)


def require_reproduction(graph: Graph, frozen: nn.Module, own: nn.Module, original: nn.Module, domain: Domain) -> None:
    """Refuse a graph that does not do what the model does.

    Args:
        graph: The captured graph.
        frozen: The model, frozen in float64 on the CPU.
        own: The model, frozen in its own dtypes.
        original: A copy of the model with its parametrizations, in evaluation mode.
        domain: Where they have to agree.

    Raises:
        UnsupportedOperation: Saying what disagrees.
        InvalidInput: If the model cannot be run on inputs of this shape.
    """
    before = fingerprint(frozen)
    batches = inputs(graph) if isinstance(domain, WholeSpace) else _inside(graph, domain)
    for x in batches:
        expected = _run(frozen, x)
        with torch.enable_grad():
            again = _run(frozen, x)
        if not _agree(again, expected, x, 0.0):
            raise unfaithful("two runs on one input differ (randomness, python state, or whether gradients are on)")
        if not _agree(graph.replay(x), expected, x, AGREEMENT):
            raise unfaithful(
                f"on a batch of {len(x)} they differ by {difference(graph.replay(x), expected, x):.1e} "
                f"relative to the output (python state, constants or branches that depend on the run, or memory shared "
                f"in a way not seen)"
            )
    if _run(frozen, batches[0].as_subclass(_Watched)).shape[:1] != batches[0].shape[:1]:
        raise unfaithful("the model does not keep the batch dimension")
    changed = _changed(before, fingerprint(frozen))
    if changed:
        raise unfaithful(f"running the model changes `{changed}`; a certificate is about one fixed function")
    _require_same_in_own_format(batches[1], frozen, own, original)


def own_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of the first floating weight; float32 for a model without any."""
    tensors = (*model.parameters(), *model.buffers())
    return next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.float32)


class _Watched(Tensor):
    """A tensor that refuses to become a python number, so that code outside the graph cannot depend on it."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in _LEAVES_TENSORS:
            raise unfaithful(f"the model reads the value of a tensor that depends on the input (`{name}`)")
        return super().__torch_function__(func, types, args, kwargs or {})


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """Everything a forward could leave behind in a module: attributes by path, tensors by their bytes."""
    return {
        f"{path}.{name}".lstrip("."): _print(value)
        for path, module in model.named_modules()
        for store in (vars(module), module._parameters, module._buffers)
        for name, value in store.items()
        if name not in ("_parameters", "_buffers", "_modules")
    }


def _print(value: Any) -> Any:
    match value:
        case Tensor():
            data = value.detach().cpu().contiguous().view(-1).view(torch.uint8) if value.numel() else value
            return str(value.dtype), tuple(value.shape), hashlib.sha256(data.numpy().tobytes()).hexdigest()
        case np.ndarray():
            return str(value.dtype), value.shape, value.tobytes()
        case Mapping():
            return [(str(key), _print(element)) for key, element in value.items()]
        case list() | tuple():
            return [_print(element) for element in value]
        case int() | float() | str() | bytes() | None:
            return repr(value)
        case set() | frozenset():
            return sorted(map(repr, value))
    return _print(vars(value)) if _is_plain_object(value) else repr(type(value))


def _is_plain_object(value: Any) -> bool:
    """An instance of a user's class that holds nothing but numbers, strings and containers of them."""
    held = getattr(value, "__dict__", None)
    if not isinstance(held, dict) or isinstance(value, type) or callable(value):
        return False
    return all(isinstance(element, int | float | str | Tensor | list | dict | None) for element in held.values())


def _changed(before: dict[str, Any], after: dict[str, Any]) -> str:
    return next((name for name in {**before, **after} if before.get(name, ...) != after.get(name, ...)), "")


def inputs(graph: Graph) -> list[Tensor]:
    """Batches of several lengths, with rows of several sizes and signs, from a generator of their own.

    A network with many millions of numbers in its layers gets three rows instead of eight: replay would take longer
    than certifying.
    """
    generator = torch.Generator().manual_seed(20)
    x = torch.randn(8, *graph.input.shape, generator=generator, dtype=torch.float64)
    if sum(math.prod(node.shape) for node in graph) > _LARGE:
        return [torch.stack([1e-3 * x[0], -30 * x[1].abs()]), x[2:3]]
    return [
        torch.stack([1e-3 * x[0], x[1], 1e3 * x[2]]),
        torch.stack([x[3].abs(), -x[4].abs(), 30 * x[5]]),
        x[6:7],
        -10 * x[7:8].abs(),
    ]


def _inside(graph: Graph, domain: Domain) -> list[Tensor]:
    """The same, inside a domain."""
    x = domain.sample(8, graph.input.shape, torch.Generator().manual_seed(20))
    return [x[:3], x[3:6], x[6:7], x[7:8]]


def _run(model: nn.Module, x: Tensor) -> Tensor:
    try:
        y = model(x.clone())
    except UnsupportedOperation:
        raise
    except Exception as error:
        raise InvalidInput(
            f"the model cannot be run on a batch {tuple(x.shape)} of {x.dtype}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(y, Tensor):
        raise unfaithful(f"the model returns a {type(y).__name__}, not one tensor")
    return y


def _agree(y: Tensor, expected: Tensor, x: Tensor, tolerance: float) -> bool:
    return y.shape == expected.shape and difference(y, expected, x) <= tolerance


def difference(y: Tensor, expected: Tensor, x: Tensor) -> float:
    """Largest difference relative to the largest entry of the sample; infinite where shapes or finiteness differ.

    Outputs below a millionth of the input count as that: they may be what a cancellation leaves.
    """
    if y.shape != expected.shape or y.ndim == 0:
        return float("inf")
    y, expected = (t.detach().double().reshape(len(t), -1) for t in (y, expected))
    if not bool(torch.isfinite(y).all() and torch.isfinite(expected).all()):
        return 0.0 if torch.equal(y, expected) else float("inf")
    least = 1e-6 * x.double().reshape(len(x), -1).abs().amax(1)
    return float(((y - expected).abs().amax(1) / torch.maximum(expected.abs().amax(1), least)).max())


def _require_same_in_own_format(batch: Tensor, frozen: nn.Module, own: nn.Module, original: nn.Module) -> None:
    """Weights materialised as the model would, and nothing that depends on the dtype."""
    dtype = own_dtype(own)
    device = next((tensor.device for tensor in (*own.parameters(), *own.buffers())), torch.device("cpu"))
    x = batch.to(device, dtype)
    try:
        expected = _run(original, x)
    except InvalidInput:
        if dtype in (torch.float16, torch.bfloat16):
            return  # many operations do not exist in half precision on this device
        raise
    finite = torch.isfinite(expected.reshape(len(expected), -1)).all(1)
    if not bool(finite.any()):
        return  # the format overflows on these inputs; float64 was compared above
    for name, y, tolerance in (
        ("its frozen copy", _run(own, x), _SAME_FORMAT[dtype]),
        ("its float64 copy", _run(frozen, x.double().cpu()).to(device), ACROSS_FORMATS[dtype]),
    ):
        if y.shape != expected.shape or not _agree(y[finite], expected[finite], x[finite], tolerance):
            raise unfaithful(f"the model in {dtype} and {name} differ (weights, or code that depends on the dtype)")


def unfaithful(reason: str) -> UnsupportedOperation:
    """The refusal of a graph that disagrees with what it was read from."""
    return UnsupportedOperation(
        f"the captured graph does not reproduce the model: {reason}.\n"
        f"  Only a function that is fixed by its weights can be certified; move what differs out of forward."
    )
