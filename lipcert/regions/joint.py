r"""Functions of several entries on ranges: what they give, and what replaces them in the network that is left. Floor 2.

A product is replaced by a sum of two factors: :math:`a_1 b_1 - a_2 b_2 = b_1 (a_1 - a_2) + a_2 (b_1 - b_2)`, where
:math:`b_1` and :math:`a_2` are somewhere in their ranges.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction

import torch
from torch import Tensor

from lipcert.graph import ON_A_DOMAIN, Activation, Add, Affine, Node, Opaque
from lipcert.kernel.rounding import round_up
from lipcert.linear import Selection, Shape
from lipcert.norms import L2
from lipcert.regions.functions import LIBRARY, LOCAL, TABLE, values_on
from lipcert.regions.range import SMALLEST, Range, around, hull, unbounded

PRODUCT, MATMUL, LAYER_NORM = "product", "matmul", "layer_norm"


def joint_values(node: Opaque, x: Range) -> Range:
    """Bounds of what a function gives, from bounds of what it reads."""
    known = _VALUES.get(node.function, _unknown)
    return known(node, x) if x.bounded else _everywhere(node)


def replaced(node: Opaque, x: Range) -> Sequence[Node] | None:
    """Nodes with finite constants on the range that stand for a function without any, the last under its name.

    ``None`` if the function has constants of its own, or keeps none on this range.
    """
    rule = _RULES.get(node.function)
    return None if rule is None else rule(node, x)


def _everywhere(node: Opaque) -> Range:
    if node.function == "softmax":
        return Range(torch.zeros(node.shape, dtype=torch.float64), torch.ones(node.shape, dtype=torch.float64))
    return unbounded(node.shape)


def _unknown(node: Opaque, x: Range) -> Range:
    return _everywhere(node)


def _monotone(node: Opaque, x: Range) -> Range:
    """Of a function that does not fall in any entry and only compares."""
    return Range(*(node.call(end[None])[0] for end in (x.low, x.high)))


def _smooth(node: Opaque, x: Range) -> Range:
    """The same where torch computes."""
    return hull(*(around(node.call(end[None])[0], LIBRARY, LIBRARY) for end in (x.low, x.high)))


def _length(node: Opaque, x: Range) -> Range:
    most = around(node.call(x.magnitude[None])[0], LIBRARY, LIBRARY)
    return Range(torch.zeros_like(most.high), most.high)


def _elementwise(node: Opaque, x: Range) -> Range:
    return values_on(node.function, {}, x, TABLE[node.function].slopes(x, {}))


# -------------------------------------------------------------------------------------------------------- products


def _factors(node: Opaque, x: Range) -> tuple[Range, Range]:
    """What the two halves of a concatenation along the first dimension can be."""
    (a_low, b_low), (a_high, b_high) = x.low.chunk(2), x.high.chunk(2)
    return Range(a_low, a_high), Range(b_low, b_high)


def _product_values(node: Opaque, x: Range) -> Range:
    a, b = _factors(node, x)
    ends = torch.stack([p * q for p in (a.low, a.high) for q in (b.low, b.high)])
    found = around(ends, 2.0**-52)
    return Range(found.low.amin(0), found.high.amax(0))


def _product(node: Opaque, x: Range) -> list[Node]:
    a, b = _factors(node, x)
    picked = _picked(node, x, "half", node.shape, node.shape)
    return _summed(
        node,
        *(
            (part, Activation(name, part.name, node.shape, ON_A_DOMAIN, {}, (other.low, other.high), _unreachable))
            for (name, part), other in zip(picked, (b, a), strict=True)
        ),
    )


def _picked(node: Opaque, x: Range, what: str, left: Shape, right: Shape) -> list[tuple[str, Affine]]:
    """What a function reads first and second, under their names, and those of what is made of them."""
    cut, total = math.prod(left), x.low.numel()
    found = []
    for side, ends, shape in (("left", (0, cut), left), ("right", (cut, total), right)):
        name, index = f"{node.name}/{side}", torch.arange(*ends).reshape(shape)
        found.append((name, Affine(f"{name}/{what}", node.source, Selection(index, tuple(x.low.shape)), None)))
    return found


def _summed(node: Opaque, *pairs: tuple[Affine, Node]) -> list[Node]:
    parts = tuple(made.name for _, made in pairs)
    return [*itertools.chain.from_iterable(pairs), Add(node.name, parts, node.shape)]


def _shapes(node: Opaque) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(node.parameters["left"]), tuple(node.parameters["right"])


def _matrices(node: Opaque, x: Range) -> tuple[Range, Range]:
    left, right = _shapes(node)
    cut = math.prod(left)
    return (
        Range(x.low[:cut].reshape(left), x.high[:cut].reshape(left)),
        Range(x.low[cut:].reshape(right), x.high[cut:].reshape(right)),
    )


def _matmul_values(node: Opaque, x: Range) -> Range:
    a, b = _matrices(node, x)
    count = a.low.shape[-1]
    centre, radius = 0.5 * (a.low + a.high), 0.5 * (a.high - a.low) * (1 + 2.0**-50) + SMALLEST
    mid, room = 0.5 * (b.low + b.high), 0.5 * (b.high - b.low) * (1 + 2.0**-50) + SMALLEST
    # The centres are rounded, too: by at most an ulp of the magnitude.
    radius, room = radius + 2.0**-52 * a.magnitude, room + 2.0**-52 * b.magnitude
    spread = a.magnitude @ room + radius @ (mid.abs() + room)
    error = spread + 2.0**-50 * (count + 8) * (a.magnitude @ b.magnitude)
    return around(centre @ mid, 2.0**-52, error)


def _matmul(node: Opaque, x: Range) -> list[Node]:
    """``A1 B1 - A2 B2 = (A1 - A2) B1 + A2 (B1 - B2)``; in l2 the factors are spectral norms, the largest of a batch."""
    a, b = _matrices(node, x)
    picked = _picked(node, x, "part", *_shapes(node))
    return _summed(
        node,
        *(
            (part, Opaque(name, part.name, node.shape, ON_A_DOMAIN, {}, {L2: _spectral(other.magnitude)}, _unreachable))
            for (name, part), other in zip(picked, (b, a), strict=True)
        ),
    )


def _spectral(magnitude: Tensor) -> float:
    """At least the spectral norm of every matrix of a batch with entries of at most these moduli."""
    rows, columns = magnitude.sum(-1).amax(), magnitude.sum(-2).amax()
    room = 1.0 + 2.0**-50 * (magnitude.shape[-1] + magnitude.shape[-2] + 8)
    return float((rows * columns).sqrt() * room) + SMALLEST


# --------------------------------------------------------------------------------------------------- normalisation


def _normalised_values(node: Opaque, x: Range) -> Range:
    n = math.prod(x.low.shape[len(x.low.shape) - int(node.parameters["dims"]) :])
    end = torch.full(node.shape, round_up(Fraction(math.isqrt(n) + 1)), dtype=torch.float64)
    return Range(-end, end)


def _normalised(node: Opaque, x: Range) -> list[Node] | None:
    r"""Layer normalisation: its Jacobian :math:`(I - 11^T/n - \hat y \hat y^T/n) / \sigma` has norm at most 1/sigma.

    The variance is :math:`\frac{1}{n^2} \sum_{i<j} (x_i - x_j)^2`, at least what the gaps between the ranges leave.
    """
    n = math.prod(x.low.shape[len(x.low.shape) - int(node.parameters["dims"]) :])
    low, high = (end.reshape(-1, n) for end in (x.low, x.high))
    gaps = torch.relu(torch.maximum(low[:, :, None] - high[:, None, :], low[:, None, :] - high[:, :, None]))
    gaps = gaps * (1 - 2.0**-50)
    variance = (gaps.square().sum((1, 2)) / (2.0 * n * n) * (1 - 2.0**-52 * (n * n + 8))).clamp_min(0.0)
    least = float(variance.min()) + float(node.parameters["eps"])
    if not least > 0.0:
        return None
    gain = round_up(Fraction(1.0 / math.sqrt(least)) * (1 + Fraction(1, 2**48)))
    return [replace(node, function=ON_A_DOMAIN, parameters={}, gains={L2: gain})]


def _unreachable(x: Tensor) -> Tensor:
    raise AssertionError("a network restricted to a domain is for bounds, not for values")


_VALUES: dict[str, Callable[[Opaque, Range], Range]] = {
    "max_windows": _monotone,
    "sort": _monotone,
    "logsumexp": _smooth,
    "norm2": _length,
    PRODUCT: _product_values,
    MATMUL: _matmul_values,
    LAYER_NORM: _normalised_values,
    **dict.fromkeys(LOCAL, _elementwise),
}

_RULES: dict[str, Callable[[Opaque, Range], Sequence[Node] | None]] = {
    PRODUCT: _product,
    MATMUL: _matmul,
    LAYER_NORM: _normalised,
}
