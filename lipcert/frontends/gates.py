"""Activations that exporters write as products of the input with a gate of it. Floor 4."""

from __future__ import annotations

import operator

from torch.nn import functional as F

from lipcert.graph import Activation
from lipcert.lowering import Value, lower


def product(x: Value, y: Value) -> Value:
    """``x * sigmoid(x)`` and ``x * tanh(softplus(x))`` as SiLU and Mish, which they are; other products are refused.

    Raises:
        NotLipschitz: If it is another product of two tensors that depend on the input.
    """
    for value, gate in ((x, y), (y, x)):
        gates = _functions_from(value, gate)
        if gates == ["sigmoid"]:
            return lower(F.silu, value)
        if gates == ["softplus", "tanh"]:
            return lower(F.mish, value)
    return lower(operator.mul, x, y)


def _functions_from(value: Value, gate: Value) -> list[str]:
    """The parameter-free activations that lead from one value to another, or nothing if something else does."""
    nodes = {node.name: node for node in gate.recorder.nodes}
    found: list[str] = []
    name = gate.name
    while name != value.name:
        node = nodes[name]
        if not isinstance(node, Activation) or node.parameters.get("beta", 1.0) != 1.0 or len(found) == 2:
            return []
        found.insert(0, node.function)
        name = node.source
    return found
