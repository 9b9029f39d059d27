"""Records the operations of a forward with torch.fx, layers as single operations, shapes as known numbers. Floor 4."""

from __future__ import annotations

import builtins
import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn

from lipcert.domain import Domain
from lipcert.errors import LipcertError, UnsupportedOperation
from lipcert.linear import Shape
from lipcert.lowering import rule_for
from lipcert.trace.interpret import ROOT, Interpreter, batched_shape, module_path

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
_PROPERTIES = ("T", "mT", "data")


def record(model: nn.Module, input_shape: Shape, domain: Domain, dtype: torch.dtype = torch.float64) -> Recording:
    """Record what the model does with one tensor of a dtype, somewhere in a domain.

    Raises:
        UnsupportedOperation: If its forward needs values, not only tensors; names the module.
    """
    root = _Call(model)
    recording = Recording(root, input_shape, domain, dtype)
    try:
        recording.trace(root)
    except LipcertError:
        raise
    except Exception as error:
        where = recording.blamed or "(the model itself)"
        raise UnsupportedOperation(
            f"`{where}` cannot be recorded with one tensor as its input: {type(error).__name__}: {error}\n"
            f"  A graph holds tensor operations only: no control flow on values, no .item(), no numpy, one tensor in "
            f"and one out. Move such code out of forward, or register a rule for the module with `@lipcert.lowers`.",
            path=where,
        ) from error
    return recording


class _Call(nn.Module):
    """Calls the model with one tensor, as a user does: defaults stay defaults, and a lone layer is a model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.add_module(ROOT, model)

    def forward(self, x: Any) -> Any:
        return self.get_submodule(ROOT)(x)


class Recording(fx.Tracer):
    """Records operations; layers that have a rule, and all of torch's own layers, are single operations."""

    proxy_buffer_attributes = True

    def __init__(self, root: _Call, input_shape: Shape, domain: Domain, dtype: torch.dtype) -> None:
        """Start with nothing recorded; ``dtype`` is what a tensor says of itself."""
        super().__init__(autowrap_modules=())  # type: ignore[arg-type]
        self.dtype = dtype
        self.node_name_to_scope = {}
        self.interpreter = Interpreter(root, input_shape, self.node_name_to_scope, domain)
        self.blamed = ""
        self._paused = False

    def known(self, node: fx.Node) -> Any:
        """What a node stands for. Rules look into real modules meanwhile, so recording pauses."""
        paused, self._paused = self._paused, True
        try:
            return self.interpreter.value(node)
        finally:
            self._paused = paused

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        """Hand out weights as recorded constants, and as they are while a rule looks."""
        return attr_val if self._paused else super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is one operation."""
        if rule_for(type(m)) is not None:
            return True
        return type(m).__module__.startswith(("torch.nn", "torch.ao")) and not isinstance(m, _CONTAINERS)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """Record a module, or what its forward does; remember where it failed."""
        if self._paused:
            return forward(*args, **kwargs)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.blamed = self.blamed or module_path(self.path_of_module(m)) or "(the model itself)"
            raise

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """A tensor as the model sees it."""
        return _Proxy(node, self)


class _Proxy(fx.Proxy):
    """A recorded tensor. Shapes are known numbers; writing into it is recorded as writing."""

    tracer: Recording

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("node", "tracer"):
            raise TypeError(f"assigning to the attribute `{name}` of a tensor cannot be recorded")
        super().__setattr__(name, value)

    def _known(self) -> torch.Size:
        shape = batched_shape(self.tracer.known(self.node))
        if shape is None:
            raise TypeError(f"`{self.node.name}` is not a tensor")
        return shape

    @property
    def shape(self) -> torch.Size:
        return self._known()

    @property
    def ndim(self) -> int:
        return len(self._known())

    @property
    def dtype(self) -> torch.dtype:
        return self.tracer.dtype

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def size(self, dim: int | None = None) -> Any:
        return self._known() if dim is None else self._known()[dim]

    def dim(self) -> int:
        return len(self._known())

    ndimension = dim

    def numel(self) -> int:
        return self._known().numel()

    nelement = numel

    def __len__(self) -> int:
        value = self.tracer.known(self.node)
        return len(value) if isinstance(value, tuple | list) else self._known()[0]

    def __iter__(self) -> Iterator[fx.Proxy]:
        return iter([operator.getitem(self, position) for position in range(len(self))])  # type: ignore[arg-type]

    def __getattr__(self, k: str) -> Any:
        if k in _PROPERTIES:
            return self.tracer.create_proxy("call_function", builtins.getattr, (self, k), {})
        return super().__getattr__(k)

    def _write(self, target: Any, *args: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", target, (self, *args), {})

    def __setitem__(self, index: Any, value: Any) -> None:
        self._write(operator.setitem, index, value)

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self._write(operator.iadd, other)

    def __isub__(self, other: Any) -> fx.Proxy:
        return self._write(operator.isub, other)

    def __imul__(self, other: Any) -> fx.Proxy:
        return self._write(operator.imul, other)

    def __itruediv__(self, other: Any) -> fx.Proxy:
        return self._write(operator.itruediv, other)

    def __ipow__(self, other: Any) -> fx.Proxy:
        return self._write(operator.ipow, other)

    def __ifloordiv__(self, other: Any) -> fx.Proxy:
        return self._write(operator.ifloordiv, other)

    def __imatmul__(self, other: Any) -> fx.Proxy:
        return self._write(operator.imatmul, other)
