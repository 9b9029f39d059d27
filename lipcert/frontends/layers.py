"""Layers that an export takes apart and that are one operation to a rule. Floor 4."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import fx
from torch.nn import functional as F

from lipcert.lowering import Value, lower
from lipcert.nn import MaxMin


def layer_at(node: fx.Node, name: Callable[[fx.Node], str], values: dict[fx.Node, Any]) -> Value | None:
    """The layer whose last operation a node is, lowered as one: softsign, tanhshrink, `MaxMin`; or nothing.

    Args:
        node: A node of an exported program.
        name: The name of a node's aten operation.
        values: What the nodes before it stand for.
    """
    match name(node), node.args:
        case "div", (fx.Node() as x, fx.Node() as divisor) if not node.kwargs and _is_one_plus_abs(divisor, x, name):
            return lower(F.softsign, values[x]) if isinstance(values[x], Value) else None
        case "sub", (fx.Node() as x, fx.Node() as y) if not node.kwargs and name(y) == "tanh" and y.args == (x,):
            return lower(F.tanhshrink, values[x]) if isinstance(values[x], Value) else None
        case "cat", ([fx.Node() as high, fx.Node() as low], int(dim)):
            chunks = _halves(high, low, name)
            whole = None if chunks is None else values[chunks.args[0]]  # type: ignore[index]
            if chunks is not None and isinstance(whole, Value):
                size = (1, *whole.shape)[dim]
                kinds = {"chunk": 2, "split": size // 2, "split_with_sizes": [size // 2, size // 2]}
                if list(chunks.args[1:]) == [kinds[name(chunks)], dim] and size % 2 == 0:
                    return lower(MaxMin, MaxMin(dim), whole)
    return None


def _is_one_plus_abs(node: fx.Node, x: fx.Node, name: Callable[[fx.Node], str]) -> bool:
    if name(node) != "add" or node.kwargs or len(node.args) != 2:
        return False
    absolute, one = node.args
    is_abs = isinstance(absolute, fx.Node) and name(absolute) == "abs" and absolute.args == (x,)
    return is_abs and isinstance(one, int | float) and one == 1


def _halves(high: fx.Node, low: fx.Node, name: Callable[[fx.Node], str]) -> fx.Node | None:
    """The chunks of which one node is the maximum and the other the minimum."""
    if name(high) != "maximum" or name(low) != "minimum" or high.args != low.args:
        return None
    parts = [part for part in high.args if isinstance(part, fx.Node) and part.target is operator.getitem]
    if len(parts) != 2 or [part.args[1] for part in parts] != [0, 1] or parts[0].args[0] is not parts[1].args[0]:
        return None
    chunks = parts[0].args[0]
    known = isinstance(chunks, fx.Node) and not chunks.kwargs and name(chunks) in ("chunk", "split", "split_with_sizes")
    return chunks if known and isinstance(chunks, fx.Node) else None
