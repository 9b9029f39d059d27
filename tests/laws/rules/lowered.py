"""Rules called by hand, without a trace: what they record for an operation, beside what torch computes for it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lipcert.check import read_network
from lipcert.domain import Domain, WholeSpace
from lipcert.errors import LipcertError
from lipcert.graph import Affine, Graph
from lipcert.lowering import Recorder, Value, lower, source

Program = Callable[[Callable[..., Any], Any], Any]
"""Operations on ``x``, all applied by the first argument: `ruled` to a value, `run` to a tensor."""

Refusal = tuple[Program, tuple[int, ...], type[LipcertError], str]
"""A program, the shape that it is given, and the error and the reason with which a rule refuses it."""

EVERYWHERE = WholeSpace()
BATCHED = 7  # samples; no other size in the tables, so that none passes for the batch


def value(*shape: int, domain: Domain = EVERYWHERE) -> Value:
    """An input of this shape, at a place with a name."""
    return source(Recorder(path="some.where", domain=domain), shape)


def ruled(target: Any, *arguments: Any, **options: Any) -> Any:
    """Apply the rule of a module, a function or a method."""
    if isinstance(target, nn.Module):
        return lower(type(target), target, *arguments, **options)
    return lower(target, *arguments, **options)


def run(target: Any, *arguments: Any, **options: Any) -> Any:
    """Apply the operation itself."""
    if not isinstance(target, str):
        return target(*arguments, **options)
    found = getattr(arguments[0], target.removeprefix("."))
    return found if target.startswith(".") else found(*arguments[1:], **options)


def once(target: Any, *arguments: Any, **options: Any) -> Program:
    """One operation, its first argument being ``x``."""
    return lambda do, x: do(target, x, *arguments, **options)


def refuse(error: type[LipcertError], reason: str, target: Any, shape: Any, *arguments: Any, **options: Any) -> Refusal:
    return once(target, *arguments, **options), shape, error, reason


def recorded(program: Program, *shape: int, domain: Domain = EVERYWHERE) -> Graph:
    """What the rules record."""
    x = value(*shape, domain=domain)
    return x.recorder.graph(program(ruled, x))


def integers(*shape: int) -> Tensor:
    """Different integers of both signs in no order: sums of them are exact, and no two places look alike."""
    count = math.prod(shape)
    step = next(step for step in range(5 + count // 3, 10**9) if math.gcd(step, max(count, 1)) == 1)
    return ((torch.arange(count) * step) % max(count, 1) - count // 3).double().reshape(shape)


def filled(module: nn.Module) -> nn.Module:
    """The module in evaluation mode and float64, its parameters integers."""
    for parameter in module.double().parameters():
        parameter.data = integers(*parameter.shape)
    return module.eval()


def changed(module: nn.Module, **attributes: Any) -> nn.Module:
    """The module with other attributes than its constructor allows."""
    for name, attribute in attributes.items():
        setattr(module, name, attribute)
    return module


def require_same(program: Program, *shape: int, domain: Domain = EVERYWHERE, x: Tensor | None = None) -> Graph:
    """The graph of a program, after seeing that it has torch's shapes and values, and that the checker reads it."""
    graph = recorded(program, *shape, domain=domain)
    x = integers(BATCHED, *shape) if x is None else x
    with torch.no_grad():
        expected = program(run, x.clone())
    assert graph.output.shape == tuple(expected.shape[1:])
    assert torch.allclose(graph.replay(x), expected, rtol=1e-12, atol=1e-12)
    for node in graph:
        if isinstance(node, Affine) and node.bias is not None:
            assert np.broadcast_shapes(tuple(node.bias.shape), node.shape) == node.shape
    if domain is EVERYWHERE:
        read_network(*graph.document())
    return graph
