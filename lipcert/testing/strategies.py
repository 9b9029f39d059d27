"""Hypothesis strategies for networks, layers with a claim, pairs of inputs and domains. Floor 6.

Hypothesis draws structure, small numbers and seeds: a few choices that shrink well. Inputs are searched by gradients
inside one example, not by hypothesis, which is hopeless in hundreds of dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor

from lipcert.domain import Box, Domain, L2Ball, WholeSpace
from lipcert.errors import InvalidInput
from lipcert.linear import Shape
from lipcert.norms import SUPPORTED, Norms
from lipcert.testing.claimed import CLAIMS, Claimed
from lipcert.testing.drawing import NEED_POSITIONS, RECIPES, Draw, Options, chain
from lipcert.testing.networks import Network

_LINEAR = ("linear", "conv", "avgpool", "flatten", "transposed_conv")
_SEEDS = st.integers(0, 2**32 - 1)
_SIZES = st.integers(1, 6)
_EXPONENTS = st.integers(-8, 3)


def networks(
    depth: tuple[int, int] = (1, 4),
    width: tuple[int, int] = (1, 6),
    layers: Sequence[str] | None = None,
    weights: Literal["integers", "floats"] = "integers",
    input_shape: Shape | None = None,
    scale: float = 1.0,
) -> st.SearchStrategy[Network]:
    """Networks with the weights written out, which shrink to few layers, few channels, zeros and ones.

    A drawn network costs a few milliseconds at most. Before a linear layer an image is flattened, which does not
    count as a layer of the depth.

    Args:
        depth: Fewest and most layers. There are fewer where no layer fits any more.
        width: Fewest and most output channels or features of a layer.
        layers: Names from `lipcert.testing.LAYERS`. Default: all of them.
        weights: Whole numbers from -2 to 2, or fractions between -3 and 3 beside them.
        input_shape: Shape of one sample. Default: drawn, flat, a signal or an image of at most six positions a side.
        scale: What every drawn weight is multiplied by.

    Raises:
        InvalidInput: If a name is unknown, or a range is empty.

    Example:
        >>> from hypothesis import find
        >>> find(networks(layers=["linear"]), lambda network: len(network.layers) == 2)
        Network((1,), linear([[0]]), linear([[0]]))
    """
    names = _known(layers, RECIPES, "layer")
    _require_range("depth", depth, 0)
    _require_range("width", width, 1)
    options = Options(width, weights == "floats", scale)
    return _networks(names, depth, options, st.just(input_shape) if input_shape else _input_shapes(names))


def linear_maps(
    width: tuple[int, int] = (1, 6), input_shape: Shape | None = None, depth: tuple[int, int] = (1, 2)
) -> st.SearchStrategy[Network]:
    """Networks of linear layers without biases: matrices, convolutions of all kinds, average pooling.

    Args:
        width: Fewest and most output channels or features of a layer.
        input_shape: Shape of one sample. Default: drawn.
        depth: Fewest and most layers.

    Example:
        >>> from hypothesis import find
        >>> find(linear_maps(), lambda network: network.to_module()(torch.ones(1, *network.input_shape)).any())
        Network((1,), linear([[1]]))
    """
    _require_range("depth", depth, 0)
    _require_range("width", width, 1)
    shapes = st.just(input_shape) if input_shape else _input_shapes(_LINEAR)
    return _networks(_LINEAR, depth, Options(width, False, 1.0, bias=False), shapes)


def conv_layers(
    width: tuple[int, int] = (1, 4), input_shape: Shape | None = None, transposed: Sequence[bool] = (False, True)
) -> st.SearchStrategy[Network]:
    """Networks of one convolution: padding and its modes, strides, dilations, groups, transposed, signals and images.

    Args:
        width: Fewest and most output channels.
        input_shape: Shape of one sample. Default: drawn.
        transposed: Which of the two kinds to draw from.

    Example:
        >>> from hypothesis import find
        >>> find(conv_layers(input_shape=(1, 3, 3)), lambda network: True)
        Network((1, 3, 3), conv([[0]]))
    """
    _require_range("width", width, 1)
    names = [("conv", "transposed_conv")[kind] for kind in transposed]
    shapes = st.just(input_shape) if input_shape else _input_shapes(names)
    return _networks(names, (1, 1), Options(width, False, 1.0, bias=False), shapes)


def lipschitz_modules(names: Sequence[str] | None = None) -> st.SearchStrategy[Claimed]:
    """Layers from `lipcert.parametrizations`, each with the constant that it claims.

    The weights are drawn as a seed and a power of two.

    Args:
        names: Names from `lipcert.testing.CLAIMS`. Default: all of them.

    Raises:
        InvalidInput: If a name is unknown.

    Example:
        >>> from hypothesis import find
        >>> find(lipschitz_modules(), lambda claimed: True)
        Claimed('spectral_norm(nn.Linear(1, 1), bound=1.0)', 1.0, (1,))
    """
    return _lipschitz_modules(_known(names, CLAIMS, "claim"))


@st.composite
def _lipschitz_modules(draw: Draw, names: Sequence[str]) -> Claimed:
    family = CLAIMS[draw(st.sampled_from(names))]
    sizes = {name: draw(st.integers(1, most)) for name, most in family.most.items()}
    # Always drawn, so that all families are equally simple to hypothesis and the first is what it shrinks to.
    drawn = draw(st.sampled_from((1.0, 2.0, 0.5, 0.25, 3.0)))
    bound = drawn if "{bound}" in family.source else 1.0
    source = family.source.format(bound=bound, **sizes)
    shape = tuple(eval(text.format(**sizes), {}) for text in family.input_shape)
    return Claimed(source, bound, shape, seed=draw(_SEEDS), scale=2.0 ** draw(st.integers(-6, 6)))


@st.composite
def input_pairs(draw: Draw, shape: Shape, domain: Domain = WholeSpace()) -> tuple[Tensor, Tensor]:  # noqa: B008
    """Two different float64 tensors in a domain, near and far apart, around zero and elsewhere.

    They are built from a few numbers and a seed, whatever their size.

    Args:
        draw: Given by hypothesis.
        shape: Shape of one sample.
        domain: Where both lie.

    Example:
        >>> from hypothesis import find
        >>> find(input_pairs((2,)), lambda pair: True)
        (tensor([0., 0.], dtype=torch.float64), tensor([1., 1.], dtype=torch.float64))
    """
    generator = torch.Generator().manual_seed(draw(_SEEDS))
    zero = torch.zeros(shape, dtype=torch.float64)
    at_random = [zero, *domain.sample(1, shape, generator)]
    x = _inside(domain, at_random[draw(st.integers(0, 1))] * 10.0 ** draw(st.integers(0, 3)))
    one_hot = zero.clone()
    one_hot.view(-1)[int(torch.randint(zero.numel(), (), generator=generator))] = 1.0
    normal = torch.randn(shape, generator=generator, dtype=torch.float64)
    directions = (torch.ones_like(zero), one_hot, normal, normal.sign(), domain.sample(1, shape, generator)[0] - x, -x)
    step = directions[draw(st.integers(0, len(directions) - 1))] * 10.0 ** draw(_EXPONENTS)
    y = next((y for y in (_inside(domain, x + step), _inside(domain, x - step)) if not torch.equal(x, y)), x)
    assume(not torch.equal(x, y) and domain.contains(x) and domain.contains(y))
    return x, y


@st.composite
def domains(draw: Draw, shape: Shape = ()) -> WholeSpace | Box | L2Ball:
    """The whole space, boxes and balls with small whole numbers.

    Args:
        draw: Given by hypothesis.
        shape: Shape of one sample, for limits that differ between entries. Default: one number serves for all.

    Example:
        >>> from hypothesis import find
        >>> find(domains(), lambda domain: isinstance(domain, Box))
        Box(low=0.0, high=1.0)
    """
    kind = draw(st.sampled_from((WholeSpace, Box, L2Ball)))
    if kind is WholeSpace:
        return WholeSpace()
    size = 2.0 ** draw(st.integers(-3, 3))
    low: float | Tensor = float(draw(st.integers(-3, 3)))
    if shape and draw(st.booleans()):
        generator = torch.Generator().manual_seed(draw(_SEEDS))
        low = low + torch.randint(0, 3, shape, generator=generator).double()
    return L2Ball(low, size) if kind is L2Ball else Box(low, low + size)


def _inside(domain: Domain, x: Tensor) -> Tensor:
    """The nearest sample of a domain."""
    return domain.project(x[None])[0]


@st.composite
def _networks(
    draw: Draw, names: Sequence[str], depth: tuple[int, int], options: Options, shapes: st.SearchStrategy[Shape]
) -> Network:
    shape = draw(shapes)
    return Network(shape, *chain(draw, shape, names, depth, options))


def _input_shapes(names: Sequence[str]) -> st.SearchStrategy[Shape]:
    """Flat where a layer takes it, images and signals where a layer needs them."""
    flat = [st.tuples(_SIZES)] if set(names) - NEED_POSITIONS else []
    positions = [st.tuples(st.integers(1, 3), _SIZES, _SIZES), st.tuples(st.integers(1, 3), _SIZES)]
    return st.one_of(*flat, *(positions if set(names) & NEED_POSITIONS else []))


def _known(names: Sequence[str] | None, table: dict[str, Any], what: str) -> list[str]:
    unknown = set(names or ()) - table.keys()
    if unknown or (names is not None and not names):
        raise InvalidInput(f"no {what} is called {sorted(unknown)}; name at least one of {', '.join(table)}.")
    # In the order of the table, which is the order of shrinking.
    return [name for name in table if names is None or name in names]


def _require_range(name: str, ends: tuple[int, int], least: int) -> None:
    if not least <= ends[0] <= ends[1] < math.inf:
        raise InvalidInput(f"{name}={ends} is no range of whole numbers from {least} on; give the fewest and the most.")


st.register_type_strategy(Network, networks())
st.register_type_strategy(Claimed, lipschitz_modules())
st.register_type_strategy(Norms, st.sampled_from(SUPPORTED))
st.register_type_strategy(WholeSpace, st.just(WholeSpace()))
st.register_type_strategy(Box, domains().filter(lambda domain: isinstance(domain, Box)))
st.register_type_strategy(L2Ball, domains().filter(lambda domain: isinstance(domain, L2Ball)))
