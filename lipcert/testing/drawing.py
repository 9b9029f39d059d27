"""How hypothesis draws one layer that fits a shape: a table of recipes, and the numbers they are made of. Floor 6.

All weights of a layer come from one short string of bytes, repeated as often as needed: one draw, whatever the size of
the layer, that stays valid when the layers before it are shrunk away, and that shrinks to zeros, ones and equal taps.
"""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from hypothesis import strategies as st

from lipcert.linear import Shape
from lipcert.testing.layers import (
    Grid,
    Layer,
    abs_,
    avgpool,
    conv,
    flatten,
    gelu,
    groupsort,
    leaky_relu,
    linear,
    maxmin,
    maxpool,
    relu,
    sigmoid,
    softplus,
    tanh,
    transposed_conv,
)
from lipcert.testing.networks import residual

Draw = Callable[[st.SearchStrategy[Any]], Any]

# A prime, so that no row of a layer repeats the one before it.
_PERIOD = 31
# Indexed by the low three bits, because a byte shrinks by losing its high bits first.
_WHOLE = (0, 1, -1, 2, -2, 1, -1, 0)
_BYTES = st.binary(min_size=_PERIOD, max_size=_PERIOD)
_FLAG, _UP_TO_2, _UP_TO_3 = st.booleans(), st.integers(1, 2), st.integers(1, 3)
_PADDING_MODES = st.sampled_from(("zeros", "circular", "reflect", "replicate"))
_MOST_POSITIONS = 8
_MOST_FEATURES = 200


@dataclass(frozen=True)
class Options:
    """What the numbers of a layer are like.

    Attributes:
        width: Fewest and most channels or features.
        floats: Fractions beside the whole numbers.
        scale: Every weight and bias is multiplied by this.
        bias: Whether layers may have one.
    """

    width: tuple[int, int]
    floats: bool
    scale: float
    bias: bool = True


@dataclass(frozen=True)
class Recipe:
    """A kind of layer: which shapes it fits, and how to draw one for such a shape."""

    fits: Callable[[Shape], bool]
    make: Callable[[Draw, Shape, Options], Layer]


def _numbers(draw: Draw, options: Options) -> Iterator[float]:
    """Endless weights from one draw.

    The last byte comes first: shrinking leaves what is not zero at the end, and the first channels are kept.
    """
    drawn: bytes = draw(_BYTES)[::-1]
    values: list[float] = [_WHOLE[byte & 7] for byte in drawn]
    if options.floats:
        noise = random.Random(draw(st.integers(0, 2**16)))
        pairs = zip(values, drawn, strict=True)
        values = [value if byte < 8 else _float32(value + noise.uniform(-1, 1)) for value, byte in pairs]
    if options.scale != 1.0:
        values = [value * options.scale for value in values]
    return cycle(values)


def _float32(value: float) -> float:
    return struct.unpack("f", struct.pack("f", value))[0]


def _array(numbers: Iterator[float], *sizes: int) -> Grid:
    if not sizes:
        return next(numbers)  # type: ignore[return-value]
    return tuple(_array(numbers, *sizes[1:]) for _ in range(sizes[0]))


def _bias(draw: Draw, numbers: Iterator[float], length: int, options: Options) -> Grid | None:
    return _array(numbers, length) if options.bias and draw(_FLAG) else None


def _channels(draw: Draw, options: Options, multiple: int = 1) -> int:
    least, most = options.width
    return multiple * draw(st.integers(-(-least // multiple), max(most // multiple, -(-least // multiple))))


def _groups(draw: Draw, channels: int) -> int:
    divisors = [d for d in range(1, channels + 1) if channels % d == 0]
    return draw(st.sampled_from(divisors))


def _linear(draw: Draw, before: Shape, options: Options) -> Layer:
    """A matrix for a flat sample; `chain` flattens what is not."""
    out, numbers = _channels(draw, options), _numbers(draw, options)
    return linear(_array(numbers, out, before[-1]), _bias(draw, numbers, out, options))


def _taps(draw: Draw, before: Shape, padding: int, dilation: int) -> list[int]:
    """A kernel of at most three taps a dimension that fits."""
    most = [min(3, (size + 2 * padding - 1) // dilation + 1) for size in before[1:]]
    return [min(size, draw(_UP_TO_3)) for size in most]


def _conv(draw: Draw, before: Shape, options: Options) -> Layer:
    special = draw(_FLAG)
    padding, stride = draw(st.integers(0, 2)), draw(_UP_TO_2)
    dilation, mode, groups = 1, "zeros", 1
    if special:
        dilation, mode, groups = draw(_UP_TO_2), draw(_PADDING_MODES), _groups(draw, before[0])
    padding = min(padding, *(size - (mode == "reflect") for size in before[1:]))
    taps = _taps(draw, before, padding, dilation)
    out, numbers = _channels(draw, options, groups), _numbers(draw, options)
    kernel = _array(numbers, out, before[0] // groups, *taps)
    return conv(kernel, _bias(draw, numbers, out, options), stride, padding, dilation, groups, mode)


def _transposed_conv(draw: Draw, before: Shape, options: Options) -> Layer:
    stride, dilation = draw(_UP_TO_2), draw(_UP_TO_2)
    groups = _groups(draw, before[0])
    taps = [draw(_UP_TO_3) for _ in before[1:]]
    # The output keeps at least one position.
    room = [((n - 1) * stride + dilation * (k - 1)) // 2 for n, k in zip(before[1:], taps, strict=True)]
    padding = min(draw(st.integers(0, 1)), *room)
    extra = draw(st.integers(0, max(stride, dilation) - 1))
    per_group = max(1, _channels(draw, options) // groups)
    numbers = _numbers(draw, options)
    kernel = _array(numbers, before[0], per_group, *taps)
    bias = _bias(draw, numbers, per_group * groups, options)
    return transposed_conv(kernel, bias, stride, padding, extra, dilation, groups)


def _groupsort(draw: Draw, before: Shape, options: Options) -> Layer:
    return groupsort(_groups(draw, before[0]))


def _leaky_relu(draw: Draw, before: Shape, options: Options) -> Layer:
    return leaky_relu(draw(st.sampled_from((0.5, 0.25, 0.0, 1.0, -1.0, 2.0))))


def _pool(cls: type[maxpool] | type[avgpool]) -> Callable[[Draw, Shape, Options], Layer]:
    def make(draw: Draw, before: Shape, options: Options) -> Layer:
        k = min(draw(_UP_TO_3), *before[1:])
        return cls(k, draw(_UP_TO_3))

    return make


def _residual(draw: Draw, before: Shape, options: Options) -> Layer:
    """A branch of one or two layers: an activation if drawn, and a linear map that keeps the shape."""
    activation = [relu()] if draw(_FLAG) else []
    numbers = _numbers(draw, options)
    if len(before) == 1:
        return residual(*activation, linear(_array(numbers, before[0], before[0])))
    k = draw(st.sampled_from((1, 3)))
    kernel = _array(numbers, before[0], before[0], *[k] * (len(before) - 1))
    return residual(*activation, conv(kernel, padding=k // 2))


def _always(cls: Callable[[], Layer], fits: Callable[[Shape], bool] = lambda before: True) -> Recipe:
    return Recipe(fits, lambda draw, before, options: cls())


def _has_positions(before: Shape) -> bool:
    return len(before) in (2, 3)


def _may_grow(before: Shape) -> bool:
    """Transposed convolutions double sizes: a chain of them must not explode."""
    return _has_positions(before) and max(before[1:]) <= _MOST_POSITIONS


RECIPES: dict[str, Recipe] = {
    "relu": _always(relu),
    "abs_": _always(abs_),
    "linear": Recipe(lambda before: math.prod(before) <= _MOST_FEATURES, _linear),
    "conv": Recipe(_has_positions, _conv),
    "maxpool": Recipe(_has_positions, _pool(maxpool)),
    "avgpool": Recipe(_has_positions, _pool(avgpool)),
    "flatten": _always(flatten, _has_positions),
    "maxmin": _always(maxmin, lambda before: before[0] % 2 == 0),
    "groupsort": Recipe(lambda before: True, _groupsort),
    "residual": Recipe(lambda before: math.prod(before) <= 64, _residual),
    "leaky_relu": Recipe(lambda before: True, _leaky_relu),
    "transposed_conv": Recipe(_may_grow, _transposed_conv),
    "tanh": _always(tanh),
    "sigmoid": _always(sigmoid),
    "softplus": _always(softplus),
    "gelu": _always(gelu),
}
"""Every layer of `lipcert.testing.networks.LAYERS`, the simplest first: that is what a choice shrinks to."""

NEED_POSITIONS = frozenset(("conv", "transposed_conv", "maxpool", "avgpool", "flatten"))
"""Layers that no flat sample fits."""

# Whether there is another layer, drawn even where it is settled: a layer that is shrunk away must leave a network whose
# choices are those of a shorter one.
_MORE = {(False, False): st.integers(0, 5), (True, False): st.integers(1, 5), (False, True): st.integers(0, 0)}


@st.composite
def _step(
    draw: Draw, before: Shape, names: Sequence[str], more: st.SearchStrategy[int], options: Options
) -> list[Layer]:
    """One layer, flattened before if it must be; or none. All in one strategy, to be shrunk away in one go."""
    fitting = [name for name in names if RECIPES[name].fits(before)]
    if not fitting or not draw(more):
        return []
    # One choice means one layer whatever comes before it, which may then be shrunk away; where it does not fit, the
    # simplest takes its place.
    drawn = draw(st.sampled_from(names))
    name = drawn if drawn in fitting else fitting[0]
    if name == "linear" and len(before) > 1:
        return [flatten(), RECIPES[name].make(draw, (math.prod(before),), options)]
    return [RECIPES[name].make(draw, before, options)]


def chain(draw: Draw, before: Shape, names: Sequence[str], depth: tuple[int, int], options: Options) -> list[Layer]:
    """Layers that fit one after the other; fewer than the least depth if none of the names fits any more."""
    layers: list[Layer] = []
    for index in range(depth[1] + 1):
        more = _MORE[index < depth[0], index == depth[1]]
        drawn = draw(_step(before, names, more, options))
        if not drawn:
            break
        layers += drawn
        for layer in drawn:
            before = layer.shape(before)
    return layers
