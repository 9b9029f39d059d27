"""The open registry of rules, and the few verbs a rule is written with. Floor 2.

A rule turns one torch operation (module, function or method) into graph nodes. It receives a `Value` where the
operation received a tensor, and returns a `Value`. There is no default rule: what no rule covers is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from lipcert.domain import Domain, WholeSpace
from lipcert.errors import InvalidInput, NotFinite, UnsupportedOperation
from lipcert.graph import Activation, Add, Affine, Concat, Graph, Input, Node, Opaque, sources
from lipcert.linear import Adjoint, Conv, Dense, Diagonal, LinearMap, Shape
from lipcert.norms import Norms

Target = type[nn.Module] | Callable[..., Any] | str
Rule = Callable[..., Any]

BATCH = 8191
"""What ``x.shape[0]`` reads while a model is lowered: a prime, so that a shape that mixes the batch cannot hide."""

_RULES: dict[Target, Rule] = {}

_HARMLESS = frozenset(
    "__init__ extra_repr reset_parameters __repr__ __doc__ __module__ __qualname__ __annotations__ __annotate__ "
    "__annotate_func__ __annotations_cache__ __firstlineno__ __static_attributes__ __constants__ __parameters__ "
    "__orig_bases__ __type_params__".split()
)
"""What a subclass may define without becoming another function."""


@dataclass
class Recorder:
    """Collects the nodes of one lowering: ``path`` is where in the user's model we are, ``domain`` what it is for."""

    nodes: list[Node] = field(default_factory=list)
    path: str = ""
    domain: Domain = WholeSpace()  # noqa: RUF009  (a frozen value)

    def fresh(self) -> str:
        """A name not used yet, made from the current path."""
        stem = self.path or "node"
        taken = {node.name for node in self.nodes}
        name, count = stem, 1
        while name in taken:
            count += 1
            name = f"{stem}#{count}"
        return name

    def record(self, node: Node) -> Value:
        """Append a node and hand out its value.

        Raises:
            InvalidInput: If the node has an empty dimension.
        """
        if 0 in node.shape:
            raise InvalidInput(f"`{self.path}` produces the empty shape {node.shape}; no bound is defined for it.")
        self.nodes.append(node)
        return Value(self, node.name, node.shape)

    def graph(self, output: Value) -> Graph:
        """The recorded nodes that a value needs, and the input."""
        needed = {output.name}
        kept: list[Node] = []
        for position, node in reversed(list(enumerate(self.nodes))):
            if node.name in needed or position == 0:
                kept.append(node)
                needed.update(sources(node))
        return Graph(tuple(reversed(kept)))


@dataclass(frozen=True)
class Value:
    """What a tensor is while a model is lowered: a node's name and shape (without the batch dimension)."""

    recorder: Recorder = field(repr=False, compare=False)
    name: str
    shape: Shape

    @property
    def path(self) -> str:
        """Where in the user's model lowering is now, for error messages."""
        return self.recorder.path

    @property
    def everywhere(self) -> bool:
        """Whether the claim is about all inputs, so that what is Lipschitz on a bounded domain only is refused."""
        return isinstance(self.recorder.domain, WholeSpace)


def lowers(*targets: Target) -> Callable[[Rule], Rule]:
    """Register a rule for module classes, functions or tensor-method names.

    A rule for a module class is called as ``rule(module, x, ...)``, any other as ``rule(x, ...)`` with the
    arguments of the call. Subclasses are covered only if they override no behaviour (see `rule_for`).

    Example:
        >>> class Halve(nn.Module):
        ...     def forward(self, x):
        ...         return 0.5 * x
        >>> @lowers(Halve)
        ... def halve(module, x):
        ...     return lower(torch.mul, x, 0.5)
    """

    def register(rule: Rule) -> Rule:
        for target in targets:
            _RULES[target] = rule
        return rule

    return register


def rule_for(target: Target) -> Rule | None:
    """The rule of a target: by identity, or for a module class by the class whose behaviour it keeps.

    A subclass keeps the behaviour of its parent if, besides its parent's classes, nothing in its ancestry defines
    more than a constructor, an initialisation, documentation or how it prints.
    """
    if isinstance(target, type) and issubclass(target, nn.Module):
        base = next((base for base in target.__mro__ if base in _RULES), None)
        if base is None:
            return None
        added = [cls for cls in target.__mro__ if cls not in base.__mro__]
        return None if any(vars(cls).keys() - _HARMLESS for cls in added) else _RULES[base]
    try:
        return _RULES.get(target)
    except TypeError:
        return None


def lower(target: Target, *arguments: Any, **options: Any) -> Any:
    """Apply the rule of another operation, so that spellings of one operation share it.

    Raises:
        UnsupportedOperation: If no rule covers the target.
    """
    rule = rule_for(target)
    if rule is None:
        path = next((a.path for a in arguments if isinstance(a, Value)), "")
        raise no_rule(target, path)
    return rule(*arguments, **options)


def no_rule(target: Target, path: str) -> UnsupportedOperation:
    """The refusal of an operation that no rule covers."""
    name = target if isinstance(target, str) else getattr(target, "__name__", repr(target))
    return UnsupportedOperation(
        f"no lowering rule for `{name}` at `{path}`.\n"
        f"  A certificate must cover every operation, so lipcert does not guess. Register one with "
        f"`@lipcert.lowers({name})`, or certify the parts around it separately.",
        path=path,
    )


def affine(x: Value, linear: LinearMap, bias: Tensor | None = None) -> Value:
    """Record ``A x + b``.

    Raises:
        NotFinite: If a weight or the bias is NaN or infinite.
        InvalidInput: If the map does not accept the shape of ``x``.
    """
    linear = _exact(linear, x.path)
    bias = None if bias is None else bias.detach().double()
    require_finite(x.path, bias)
    if linear.in_shape != x.shape:
        raise InvalidInput(f"`{x.path}` receives shape {x.shape}, its map accepts {linear.in_shape}.")
    recorder = x.recorder
    return recorder.record(Affine(recorder.fresh(), x.name, linear, bias))


def _exact(linear: LinearMap, path: str) -> LinearMap:
    """The map with its weights detached and in float64, which holds them exactly."""
    match linear:
        case Dense(weight) | Conv(weight=weight):
            require_finite(path, weight)
            return replace(linear, weight=weight.detach().double().contiguous())
        case Diagonal(scale):
            require_finite(path, scale)
            return replace(linear, scale=scale.detach().double())
        case Adjoint(conv):
            require_finite(path, conv.weight)
            return Adjoint(replace(conv, weight=conv.weight.detach().double().contiguous()))
    return linear


def activation(
    x: Value,
    function: str,
    slope: tuple[float | Tensor, float | Tensor],
    call: Callable[[Tensor], Tensor],
    **parameters: float | Tensor,
) -> Value:
    """Record an elementwise function whose difference quotients lie in ``slope`` (rounded outward by the caller).

    ``function`` is a name from the checker's table, or ``declared:<who>`` when the slope is the caller's word;
    certificates that rest on a declared slope say so.
    """
    lower_end, upper_end = (torch.as_tensor(end, dtype=torch.float64).detach() for end in slope)
    require_finite(x.path, lower_end, upper_end)
    if bool((lower_end > upper_end).any()):
        raise InvalidInput(f"`{x.path}` declares the empty slope interval [{lower_end}, {upper_end}].")
    recorder = x.recorder
    node = Activation(recorder.fresh(), x.name, x.shape, function, parameters, (lower_end, upper_end), call)
    return recorder.record(node)


def opaque(
    x: Value,
    function: str,
    shape: Shape,
    gains: Mapping[Norms, float],
    call: Callable[[Tensor], Tensor],
    **parameters: Any,
) -> Value:
    """Record a nonlinear function with known Lipschitz constants (rounded up by the caller) per norm pair."""
    for norms, gain in gains.items():
        if not 0.0 <= gain < math.inf:
            raise InvalidInput(f"`{x.path}` declares the gain {gain!r} in {norms}; it must be a finite number >= 0.")
    recorder = x.recorder
    return recorder.record(Opaque(recorder.fresh(), x.name, shape, function, parameters, dict(gains), call))


def add(*values: Value) -> Value:
    """Record a sum of values of one shape."""
    recorder = values[0].recorder
    return recorder.record(Add(recorder.fresh(), tuple(value.name for value in values), values[0].shape))


def concat(values: Sequence[Value], dim: int) -> Value:
    """Record values side by side along ``dim`` (batch excluded, already non-negative)."""
    first = values[0]
    if len(values) == 1:
        return first
    shape = (*first.shape[:dim], sum(value.shape[dim] for value in values), *first.shape[dim + 1 :])
    recorder = first.recorder
    return recorder.record(Concat(recorder.fresh(), tuple(value.name for value in values), dim, shape))


def source(recorder: Recorder, shape: Shape) -> Value:
    """Record the input node."""
    return recorder.record(Input("input", shape))


def dimension(x: Value, dim: int) -> int:
    """A dimension of the batched tensor as a dimension of ``x.shape``.

    Raises:
        UnsupportedOperation: If it is the batch dimension: a claim is about one sample at a time.
    """
    batched = len(x.shape) + 1
    if not -batched <= dim < batched:
        raise InvalidInput(f"`{x.path}` names dimension {dim} of a tensor with {batched} dimensions.")
    if dim % batched == 0:
        raise UnsupportedOperation(
            f"`{x.path}` works along the batch dimension, so samples would mix; a claim is about one sample "
            f"at a time. Index the sample's own dimensions (1 to {batched - 1}).",
            path=x.path,
        )
    return dim % batched - 1


def require_finite(path: str, *tensors: Tensor | None) -> None:
    """Refuse NaN and infinity.

    Raises:
        NotFinite: Naming the path and how many entries are not finite.
    """
    for tensor in tensors:
        if tensor is not None and not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            raise NotFinite(
                f"`{path}` has {bad} of {tensor.numel()} weights or constants that are NaN or infinite; "
                f"no bound exists. Restore the weights from before training diverged."
            )
