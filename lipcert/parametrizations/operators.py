"""Layers as operators of their weight: the map itself, and a proof of its norm. Floor 3.

A weight may hold several operators side by side (the gates of a recurrent cell, the projections of attention): it is
read as a stack of blocks, and a claim is about each block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from lipcert.errors import InvalidInput, UnsupportedOperation
from lipcert.linear import Conv, Dense, Shape
from lipcert.norms import L2_LINF
from lipcert.opnorm import opnorm, opnorm_any_size
from lipcert.opnorm.swift import swift_norm

Linear = Dense | Conv


class Operator(Protocol):
    """What a layer does with its weight.

    Attributes:
        blocks: Number of operators in one weight.
        in_shape: Shape of the vectors that power iteration on a block moves on.
    """

    @property
    def blocks(self) -> int:
        """Number of operators in one weight."""
        ...

    @property
    def in_shape(self) -> Shape:
        """Shape of the vectors a block acts on."""
        ...

    def split(self, weight: Tensor) -> Tensor:
        """The weight as ``(blocks, ...)``."""
        ...

    def linear(self, block: Tensor) -> Linear:
        """The linear map of a block."""
        ...

    def prove(self, block: Tensor) -> float:
        """A proven upper bound of the norm of a float64 block, over everything the claim covers."""
        ...

    def prove_swiftly(self, block: Tensor, guess: float) -> float:
        """As `prove`, of a block in any precision, faster and looser; ``guess`` is about the norm, and untrusted."""
        ...

    @property
    def spread(self) -> float | None:
        """A number c with norm at most c times the Frobenius norm of a block; ``None`` if none is known."""
        ...


@dataclass(frozen=True)
class Matrix:
    """A matrix, or several on top of each other; a weight of more dimensions is unfolded behind the first.

    Attributes:
        columns: Number of inputs.
        blocks: Number of matrices.
    """

    columns: int
    blocks: int = 1

    @property
    def in_shape(self) -> Shape:
        """``(columns,)``."""
        return (self.columns,)

    def split(self, weight: Tensor) -> Tensor:
        """``(blocks, rows, columns)``."""
        return weight.reshape(self.blocks, -1, self.columns)

    def linear(self, block: Tensor) -> Dense:
        """Multiplication by the block."""
        return Dense(block, self.in_shape)

    def prove(self, block: Tensor) -> float:
        """The l2 norm of the matrix."""
        return opnorm(self.linear(block)).value

    def prove_swiftly(self, block: Tensor, guess: float) -> float:
        """The l2 norm of the matrix."""
        return swift_norm(self.linear(block), guess)

    @property
    def spread(self) -> float:
        """1: the Frobenius norm bounds the spectral norm."""
        return 1.0


@dataclass(frozen=True)
class Rows:
    """A table whose rows are looked up: the norm is that from l1 to l2, the largest l2 norm of a row.

    Attributes:
        columns: Length of a row.
    """

    columns: int
    blocks: int = 1

    @property
    def in_shape(self) -> Shape:
        """``(columns,)``: what a row is multiplied with."""
        return (self.columns,)

    def split(self, weight: Tensor) -> Tensor:
        """``(1, rows, columns)``."""
        return weight[None]

    def linear(self, block: Tensor) -> Dense:
        """The transpose of the lookup, whose norm from l2 to linf is the same."""
        return Dense(block, self.in_shape)

    def prove(self, block: Tensor) -> float:
        """The largest l2 norm of a row."""
        return opnorm(self.linear(block), L2_LINF).value

    def prove_swiftly(self, block: Tensor, guess: float) -> float:
        """As `prove`, which is fast."""
        return self.prove(block.double().cpu())

    @property
    def spread(self) -> float:
        """1: no row is longer than the whole table."""
        return 1.0


@dataclass(frozen=True)
class Convolution:
    """A convolution at one input size, or at all. A transposed convolution stands here as the one it transposes.

    Attributes:
        in_shape: Shape on which power iteration works; for every size, a torus on which the norm is nearly the largest.
        out_sizes: Output sizes there.
        stride: Per dimension, as in `lipcert.linear.Conv`.
        padding: ``(before, after)`` per dimension.
        dilation: Per dimension.
        groups: Number of channel groups.
        padding_mode: How the layer pads.
        taps: Positions in the kernel.
        any_size: Whether the claim covers every input size.
    """

    in_shape: Shape
    out_sizes: Shape
    stride: Shape
    padding: tuple[tuple[int, int], ...]
    dilation: Shape
    groups: int
    padding_mode: str
    taps: int
    any_size: bool
    blocks: int = 1

    def split(self, weight: Tensor) -> Tensor:
        """``(1, *weight.shape)``."""
        return weight[None]

    def linear(self, block: Tensor) -> Conv:
        """The convolution, where the claim covers every size: on a torus."""
        kernel = block.shape[2:]
        if not self.any_size:
            pads, mode = self.padding, self.padding_mode
        else:
            pads = tuple((0, d * (k - 1)) for d, k in zip(self.dilation, kernel, strict=True))
            mode = "circular"
        return Conv(block, self.in_shape, self.out_sizes, self.stride, pads, self.dilation, self.groups, mode)

    def prove(self, block: Tensor) -> float:
        """The l2 norm at the stated size, or the largest over all sizes."""
        return opnorm_any_size(self._padded(block)).value if self.any_size else opnorm(self.linear(block)).value

    def prove_swiftly(self, block: Tensor, guess: float) -> float:
        """The l2 norm at the stated size, or the largest over all sizes."""
        if self.any_size:
            return self.prove(block.double().cpu())
        return swift_norm(self.linear(block), guess)

    @property
    def spread(self) -> float | None:
        """The root of the number of taps: ``|sum of shifted taps| <= sum of |tap|``. Padding may repeat inputs."""
        return math.sqrt(self.taps) * (1.0 + 2.0**-50) if self.padding_mode == "zeros" else None

    def _padded(self, block: Tensor) -> Conv:
        return Conv(
            block,
            self.in_shape,
            self.out_sizes,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.padding_mode,
        )


def operator_of(module: nn.Module, name: str = "weight", input_size: Sequence[int] | int | None = None) -> Operator:
    """The operator of a parameter of a supported layer.

    A subclass counts as its base class if it applies its weights as that does.

    Args:
        module: The layer.
        name: The parameter.
        input_size: Spatial input size at which a convolution is considered. Default: every size.

    Raises:
        UnsupportedOperation: If the layer is not covered.
        InvalidInput: If the parameter is not applied as an operator, or the size does not fit the layer.
    """
    for base, (names, make) in _OPERATORS.items():
        if isinstance(module, base) and _applies_as(module, base):
            if not any(name == known or (known.endswith("*") and name.startswith(known[:-1])) for known in names):
                raise InvalidInput(
                    f"`{name}` of {module} is not applied as an operator; what can be bounded: {', '.join(names)}."
                )
            if input_size is not None and not isinstance(module, nn.modules.conv._ConvNd):
                raise InvalidInput(f"{module} has no spatial input size, got input_size={input_size}; leave it out.")
            return make(module, name, input_size)
    covered = ", ".join(base.__name__ for base in _OPERATORS)
    raise UnsupportedOperation(
        f"the operator of `{type(module).__name__}` is not known, and guessing what its weight does would be no claim. "
        f"Covered: {covered}."
    )


def _applies_as(module: nn.Module, base: type[nn.Module]) -> bool:
    return all(getattr(type(module), method, None) is getattr(base, method) for method in _APPLIES & set(dir(base)))


def _linear(module: nn.Linear, name: str, size: None) -> Operator:
    return Matrix(module.in_features)


def _bilinear(module: nn.Bilinear, name: str, size: None) -> Operator:
    # |B(x, y)| <= |W| |x (x) y| = |W| |x| |y| for the unfolded W
    return Matrix(module.in1_features * module.in2_features)


def _embedding(module: nn.Embedding, name: str, size: None) -> Operator:
    if module.max_norm is not None:
        raise UnsupportedOperation(
            f"{module} rewrites its table in forward (max_norm); remove max_norm, the claim does the same in full."
        )
    return Rows(module.embedding_dim)


def _embedding_bag(module: nn.EmbeddingBag, name: str, size: None) -> Operator:
    if module.mode == "max" or module.max_norm is not None:
        raise UnsupportedOperation(
            f"{module} is not linear in its rows (mode='max') or rewrites its table (max_norm); use 'sum' or 'mean'."
        )
    return Rows(module.embedding_dim)


def _cell(gates: int) -> Callable[..., Operator]:
    def make(module: nn.Module, name: str, size: None) -> Operator:
        # the projection of an LSTM's state has no gates
        return Matrix(getattr(module, name).shape[1], 1 if name.startswith("weight_hr") else gates)

    return make


def _attention(module: nn.MultiheadAttention, name: str, size: None) -> Operator:
    if name == "in_proj_weight":
        return Matrix(module.embed_dim, 3)
    return Matrix({"q_proj_weight": module.embed_dim, "k_proj_weight": module.kdim, "v_proj_weight": module.vdim}[name])


def _conv(module: nn.modules.conv._ConvNd, name: str, size: Sequence[int] | int | None) -> Operator:
    reach = _reach(module)
    pads = _pads(module)
    channels, stride = module.in_channels, module.stride
    if size is None:
        return _everywhere(module, channels, reach, pads)
    sizes = _sizes(module, size)
    spare = {"reflect": 1, "circular": 0}.get(module.padding_mode, -math.inf)
    fits = all(n + sum(pad) >= r and n >= max(pad) + spare for n, pad, r in zip(sizes, pads, reach, strict=True))
    if not fits:
        raise InvalidInput(
            f"{module} cannot be applied at input_size={size}: it has padding {pads} and a kernel "
            f"that reaches over {reach}. Give the size the layer sees, or None for every size."
        )
    sized = zip(sizes, pads, reach, stride, strict=True)
    out = tuple((n + sum(pad) - r) // s + 1 for n, pad, r, s in sized)
    return _convolution(module, (channels, *sizes), out, pads, False)


def _conv_transpose(module: Any, name: str, size: Sequence[int] | int | None) -> Operator:
    reach = _reach(module)
    pads = tuple((p, p) for p in module.padding)
    if size is None:
        return _everywhere(module, module.out_channels, reach, pads)
    sizes = _sizes(module, size)
    laid = zip(sizes, module.stride, module.padding, reach, module.output_padding, strict=True)
    into = tuple((n - 1) * s - 2 * p + r + extra for n, s, p, r, extra in laid)
    if min(into) < 1:
        raise InvalidInput(f"{module} gives the output size {into} at input_size={size}; padding is too large.")
    return _convolution(module, (module.out_channels, *into), sizes, pads, False)


def _everywhere(module: Any, channels: int, reach: Shape, pads: tuple[tuple[int, int], ...]) -> Operator:
    # On a torus at least twice the kernel's reach the norm is close to its supremum over all sizes.
    least = {1: 64, 2: 16, 3: 8}[len(reach)]
    out = tuple(math.ceil(max(least, 2 * r) / s) for r, s in zip(reach, module.stride, strict=True))
    torus = tuple(n * s for n, s in zip(out, module.stride, strict=True))
    return _convolution(module, (channels, *torus), out, pads, True)


def _convolution(
    module: Any, in_shape: Shape, out: Shape, pads: tuple[tuple[int, int], ...], any_size: bool
) -> Operator:
    taps, mode = math.prod(module.kernel_size), module.padding_mode
    return Convolution(in_shape, out, module.stride, pads, module.dilation, module.groups, mode, taps, any_size)


def _reach(module: Any) -> Shape:
    return tuple(d * (k - 1) + 1 for d, k in zip(module.dilation, module.kernel_size, strict=True))


def _pads(module: Any) -> tuple[tuple[int, int], ...]:
    # torch lists (before, after) from the last dimension to the first
    flat = module._reversed_padding_repeated_twice
    return tuple((flat[i], flat[i + 1]) for i in range(len(flat) - 2, -1, -2))


def _sizes(module: Any, size: Sequence[int] | int) -> Shape:
    count = len(module.kernel_size)
    sizes = (size,) * count if isinstance(size, int) else tuple(int(n) for n in size)
    if len(sizes) != count or min(sizes) < 1:
        raise InvalidInput(f"{module} has {count} spatial dimension(s), each of at least 1; got input_size={size}.")
    return sizes


_CELL = ("weight_ih*", "weight_hh*")
_OPERATORS: dict[type[nn.Module], tuple[tuple[str, ...], Callable[..., Operator]]] = {
    nn.Linear: (("weight",), _linear),
    nn.Bilinear: (("weight",), _bilinear),
    nn.Embedding: (("weight",), _embedding),
    nn.EmbeddingBag: (("weight",), _embedding_bag),
    nn.Conv1d: (("weight",), _conv),
    nn.Conv2d: (("weight",), _conv),
    nn.Conv3d: (("weight",), _conv),
    nn.ConvTranspose1d: (("weight",), _conv_transpose),
    nn.ConvTranspose2d: (("weight",), _conv_transpose),
    nn.ConvTranspose3d: (("weight",), _conv_transpose),
    nn.RNNCell: (_CELL, _cell(1)),
    nn.LSTMCell: (_CELL, _cell(4)),
    nn.GRUCell: (_CELL, _cell(3)),
    nn.RNN: (_CELL, _cell(1)),
    nn.LSTM: ((*_CELL, "weight_hr*"), _cell(4)),
    nn.GRU: (_CELL, _cell(3)),
    nn.MultiheadAttention: (("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"), _attention),
}
_APPLIES = {"forward", "_conv_forward", "_output_padding"}
