r"""The function that runs, against the function that was proved: rounding has a bound, too. Floor 5.

Named arithmetic model: every product and sum is rounded once to the format (unit roundoff u), sums in any order, with
or without fused multiply-add. Convolutions by Winograd or FFT, TF32, autocast and bfloat16 accumulation are outside it.
For a linear layer with k products and a bias, :math:`|\hat y - y| \le \gamma_{k+1} (|W| |\hat x| + |b|)` with
:math:`\gamma_k = k u / (1 - k u)`; errors E before it are carried on by the operator norm. Then
:math:`|\hat f(x) - \hat f(y)| \le K |x - y| + E(x) + E(y)`, which is what a test of the executed function may assert.

References:
    | Accuracy and stability of numerical algorithms (Higham, 2002), section 3.1
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lipcert.errors import ExecutionViolation, InvalidInput, UnsupportedOperation
from lipcert.graph import Activation, Add, Affine, Concat, Graph, Input, Node, Opaque, sources
from lipcert.linear import Diagonal, LinearMap, apply, modulus, terms
from lipcert.norms import L2
from lipcert.opnorm import opnorm
from lipcert.trace import trace

_EXACT = {"relu", "abs", "relu6", "hardtanh", "clamp", "threshold"}
_ONE_ROUNDING = {"leaky_relu", "prelu"}


@dataclass(frozen=True)
class Arithmetic:
    """A floating format: results are rounded once, by a relative ``unit`` or an absolute ``smallest``."""

    name: str
    unit: float
    smallest: float


ARITHMETIC = {
    torch.float32: Arithmetic("float32, any order, no Winograd, no TF32", 2.0**-24, 2.0**-149),
    torch.float64: Arithmetic("float64, any order, no Winograd", 2.0**-53, 2.0**-1074),
}


def execution_error(graph: Graph, x: Tensor, arithmetic: Arithmetic) -> Tensor:
    """How far, in l2, the executed network can be from the real one at given inputs.

    Args:
        graph: The network: linear layers, convolutions, average pooling, max pooling, sorting, reshaping, sums, and
            activations that round at most once.
        x: Shape ``(N, *input shape)``, numbers of the format, as float64.
        arithmetic: The format.

    Returns:
        Shape ``(N,)``, float64, computed with a margin for its own rounding.

    Raises:
        UnsupportedOperation: If a function's rounding is not bounded here (tanh, softmax, batch norm, ...).

    Example:
        >>> graph = trace(nn.ReLU(), (3,))
        >>> execution_error(graph, torch.ones(2, 3, dtype=torch.float64), ARITHMETIC[torch.float32]).tolist()
        [0.0, 0.0]
    """
    with torch.no_grad():
        values = graph.values(x)
        errors: dict[str, Tensor] = {}
        for node in graph:
            read = [(values[name], errors[name]) for name in sources(node)]
            errors[node.name] = _error(node, read, values[node.name], arithmetic) * (1 + 2.0**-30)
    return errors[graph.output.name]


def require_execution(model: nn.Module, x: Tensor, y: Tensor, bound: float) -> float:
    """Check that the model as it runs keeps an l2 claim at pairs of inputs, up to what rounding can explain.

    Args:
        model: In evaluation mode, with weights in float32 or float64; it is run in its own format.
        x: Shape ``(N, *input shape)``, in the model's format.
        y: The same.
        bound: The l2 constant of the real function, proved.

    Returns:
        The largest share of its allowance ``bound |x - y| + E(x) + E(y)`` that a pair used, at most 1.

    Raises:
        ExecutionViolation: If a pair is above its allowance: the claim is false, or the arithmetic is not the named one
            (TF32, Winograd, autocast).
        InvalidInput: If the inputs are not in a format that is covered.
        UnsupportedOperation: As `execution_error`.

    Example:
        >>> require_execution(nn.Linear(1, 1).eval(), torch.zeros(1, 1), torch.ones(1, 1), 2.0) <= 1.0
        True
    """
    if x.dtype not in ARITHMETIC or x.shape != y.shape or x.dtype != y.dtype:
        given = f"{x.dtype} {tuple(x.shape)} and {y.dtype} {tuple(y.shape)}"
        raise InvalidInput(f"pairs of {given}; give two batches of one shape in float32 or float64.")
    arithmetic = ARITHMETIC[x.dtype]
    graph = trace(model, tuple(x.shape[1:]))
    with torch.no_grad():
        change = (model(x).double() - model(y).double()).flatten(1)
    apart = torch.linalg.vector_norm((x.double() - y.double()).flatten(1), dim=1)
    errors = execution_error(graph, torch.cat([x, y]).double().cpu(), arithmetic)
    allowed = (bound * apart.cpu() + errors[: len(x)] + errors[len(x) :]) * (1 + 2.0**-40)
    moved = torch.linalg.vector_norm(change, dim=1).cpu()
    worst = int((moved - allowed).argmax())
    if not bool((moved <= allowed).all()):
        raise ExecutionViolation(
            f"pair {worst} moves the output by {float(moved[worst])!r}; {bound!r} times its distance and the rounding "
            f"of [{arithmetic.name}] allow {float(allowed[worst])!r}.\n"
            "  Either the claim is false (see lipcheck), or the model does not run in that arithmetic: TF32, Winograd "
            "or FFT convolutions, autocast."
        )
    return float((moved / allowed.clamp_min(1e-300)).max())


def _error(node: Node, read: list[tuple[Tensor, Tensor]], value: Tensor, arithmetic: Arithmetic) -> Tensor:
    match node:
        case Input():
            return torch.zeros(len(value), dtype=torch.float64)
        case Affine(map=linear, bias=bias):
            return _affine(node.name, linear, bias, *read[0], arithmetic)
        case Activation(function=function, slope=slope):
            before, error = read[0]
            steep = max(float(end.abs().max()) for end in slope)
            if function in _EXACT:
                return error * steep
            if function in _ONE_ROUNDING:
                return error * steep * (1 + arithmetic.unit) + _rounding(value.abs(), 1, arithmetic)
            raise _unbounded(node.name, function)
        case Opaque(function=function, gains=gains):
            if function in ("max_windows", "sort"):
                return read[0][1] * gains[L2]
            raise _unbounded(node.name, function)
        case Add():
            total = sum((abs(part) for part, _ in read), torch.zeros(()))
            before = sum((error for _, error in read), torch.zeros(()))
            count = len(read) - 1
            return before * (1 + _gamma(count, arithmetic)) + _rounding(total, count, arithmetic)
        case Concat():
            return torch.stack([error for _, error in read]).square().sum(0).sqrt()


def _affine(
    name: str, linear: LinearMap, bias: Tensor | None, x: Tensor, error: Tensor, arithmetic: Arithmetic
) -> Tensor:
    if isinstance(linear, Diagonal):
        raise _unbounded(name, "a factor per entry, as of batch norm")
    norm, count = opnorm(linear, L2).value, terms(linear)
    steps = count + (bias is not None)
    if steps == 0:
        return error * norm
    size = modulus(linear)
    spread, reached = opnorm(size, L2).value, apply(size, x.abs())
    if bias is not None:
        reached = reached + bias.abs().to(reached)
    gamma = _gamma(steps, arithmetic)
    return error * (norm + 3 * gamma * spread) + _rounding(reached, steps, arithmetic)


def _rounding(size: Tensor, steps: int, arithmetic: Arithmetic) -> Tensor:
    each = _gamma(steps, arithmetic) * size.flatten(1) + 2 * steps * arithmetic.smallest
    return torch.linalg.vector_norm(each, dim=1)


def _gamma(steps: int, arithmetic: Arithmetic) -> float:
    product = steps * arithmetic.unit
    return product / (1 - product) if product < 0.5 else math.inf


def _unbounded(name: str, function: str) -> UnsupportedOperation:
    return UnsupportedOperation(
        f"`{name}` is {function}, whose rounding in torch is not bounded here; the executed function gets no claim.\n"
        f"  The claim about the real function is not touched.",
        path=name,
    )
