"""The aten operations an exported program may use, each as the rule of the torch function it comes from. Floor 4.

A name stands for all overloads. Arguments arrive as in the program: the sample's tensors as `Value`s, weights as exact
float64 tensors, sizes as numbers with `BATCH` for the batch dimension.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lipcert.errors import UnsupportedOperation
from lipcert.frontends.gates import product
from lipcert.lowering import Rule, Target, Value, lower, rule_for
from lipcert.nn import FullSort
from lipcert.rules.arithmetic import scaled
from lipcert.rules.structure import rearrange

_OF_TORCH = (
    "relu selu tanh sigmoid abs absolute sin cos atan arctan asinh arcsinh erf celu prelu rrelu threshold clamp clip "
    "clamp_min clamp_max add subtract sub rsub neg negative positive div divide true_divide matmul mm addmm logsumexp "
    "cat concat concatenate stack maximum minimum fmax fmin max min amax amin mean sum reshape broadcast_to detach "
    "clone norm dropout feature_dropout alpha_dropout feature_alpha_dropout conv1d conv2d conv3d"
).split()
_OF_FUNCTIONAL = (
    "relu6 silu mish hardsigmoid hardswish gelu softplus softsign softshrink hardtanh leaky_relu linear pad "
    "avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d "
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d"
).split()
_OF_TENSORS = ("view", "expand", "expand_as", "view_as", "reshape_as", "contiguous")

MOVING = frozenset(
    "flatten unflatten permute transpose swapaxes swapdims movedim moveaxis unsqueeze flip roll narrow select chunk "
    "split split_with_sizes tensor_split unbind index_select repeat repeat_interleave tril triu diagonal mT squeeze "
    "pixel_shuffle pixel_unshuffle channel_shuffle reflection_pad1d reflection_pad2d reflection_pad3d "
    "replication_pad1d replication_pad2d replication_pad3d upsample_nearest1d upsample_nearest2d upsample_nearest3d "
    "_upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d".split()
)
"""They move numbers, so they do so with positions, too."""

CASTS = frozenset("to _to_copy type_as".split())
"""Allowed where the new format contains the old one."""

EXACT = MOVING | frozenset(
    "view _unsafe_view reshape view_as reshape_as expand expand_as broadcast_to slice index cat concat stack neg abs "
    "relu maximum minimum clamp clamp_min clamp_max detach clone contiguous alias lift_fresh_copy t numpy_T zeros ones "
    "full arange scalar_tensor eye".split()
)
"""What rounds nothing, so that it may be evaluated on constants."""

SIZED = frozenset("view _unsafe_view reshape expand broadcast_to".split())
"""Their sizes name the batch dimension: a number in a program that was exported for one batch size."""

_SPELLED: dict[str, Target] = {
    **{name: getattr(torch, name) for name in _OF_TORCH},
    **{name: getattr(F, name) for name in _OF_FUNCTIONAL},
    **{name: name for name in _OF_TENSORS},
    **{f"conv_transpose{n}d": getattr(torch, f"conv_transpose{n}d") for n in (1, 2, 3)},
    "_unsafe_view": "view",
    **dict.fromkeys(("alias", "lift_fresh_copy"), torch.clone),
    **{f"_adaptive_avg_pool{n}d": getattr(F, f"adaptive_avg_pool{n}d") for n in (2, 3)},
    "log_sigmoid": F.logsigmoid,
    "linalg_vector_norm": torch.linalg.vector_norm,
    "special_expit": torch.sigmoid,
    "special_erf": torch.erf,
    "special_logsumexp": torch.logsumexp,
}
_OWN: dict[str, Rule] = {}


class Only(NamedTuple):
    """The first of several results; the others (indices, statistics) are no continuous function of the input."""

    first: Value


_REFUSING = ("lipcert.rules.refused", "lipcert.rules.bounded")
"""Their rules say why there is no constant on the whole space, which claims about files are about."""


def rule_of(name: str) -> tuple[Rule | None, Target]:
    """The rule of an aten operation, or of a refusal that says why; and what messages call it."""
    if name in _OWN:
        return _OWN[name], f"aten.{name}"
    if name in _SPELLED:
        return rule_for(_SPELLED[name]), f"aten.{name}"
    for target in (getattr(torch, name, None), getattr(F, name, None), name):
        rule = None if target is None else rule_for(target)
        if rule is not None and rule.__module__ in _REFUSING:
            return rule, name
    return None, name


def moving(overload: Callable[..., Any]) -> Rule:
    """The rule of an operation that only moves numbers."""

    def rule(self: Value, *args: Any, **options: Any) -> Any:
        return rearrange(self, lambda positions: overload(positions, *args, **options))

    return rule


def _aten(*names: str) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        _OWN.update(dict.fromkeys(names, rule))
        return rule

    return register


@_aten("mul", "multiply")
def _mul(self: Value | Tensor | float, other: Value | Tensor | float) -> Value:
    if isinstance(self, Value) and isinstance(other, Value):
        return product(self, other)
    return lower(torch.mul, self, other)


@_aten("elu")
def _elu(self: Value, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Value:
    if input_scale != 1:
        raise UnsupportedOperation(
            f"`{self.path}` is an elu with input_scale={input_scale}, a CELU in pieces; export without decomposing it.",
            path=self.path,
        )
    y = lower(F.elu, self, alpha)
    return y if scale == 1 else scaled(y, scale)


@_aten("softmax")
def _softmax(self: Value, dim: int, dtype: Any = None) -> Value:
    return lower(torch.softmax, self, dim, dtype=dtype)


@_aten("_softmax")
def _softmax_in_pieces(self: Value, dim: int, half_to_float: bool) -> Value:
    return lower(torch.softmax, self, dim)


@_aten("sort")
def _sort(self: Value, dim: int = -1, descending: bool = False) -> Only:
    if descending:
        raise UnsupportedOperation(f"`{self.path}` sorts in descending order; sort ascending.", path=self.path)
    return Only(lower(FullSort, FullSort(dim), self))


@_aten("slice")
def _slice(self: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Value:
    dim = dim % (len(self.shape) + 1)
    end = None if type(end) is int and end >= 2**62 else end
    return lower(operator.getitem, self, (*(slice(None),) * dim, slice(start, end, step), ...))


@_aten("index")
def _index(self: Value, indices: Sequence[Tensor | None]) -> Value:
    places = tuple(slice(None) if index is None else index for index in indices)
    return lower(operator.getitem, self, places)


@_aten("batch_norm")
def _batch_norm(
    input: Value,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Value:
    return lower(F.batch_norm, input, running_mean, running_var, weight, bias, training, eps=eps)


@_aten("_native_batch_norm_legit_no_training")
def _batch_norm_in_pieces(
    input: Value,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
) -> Only:
    return Only(lower(F.batch_norm, input, running_mean, running_var, weight, bias, False, eps=eps))


@_aten("convolution")
def _convolution(
    input: Value,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> Value:
    n = weight.ndim - 2
    if transposed:
        function = getattr(torch, f"conv_transpose{n}d")
        return lower(function, input, weight, bias, stride, padding, output_padding, groups, dilation)
    return lower(getattr(torch, f"conv{n}d"), input, weight, bias, stride, padding, dilation, groups)


@_aten("constant_pad_nd")
def _constant_pad(self: Value, pad: Any, value: float = 0) -> Value:
    return lower(F.pad, self, pad, "constant", value)


def _max_pools(n: int) -> None:
    @_aten(f"max_pool{n}d_with_indices")
    def with_indices(self: Value, *arguments: Any) -> Only:
        return Only(lower(getattr(F, f"max_pool{n}d"), self, *arguments))

    @_aten(f"adaptive_max_pool{n}d")
    def adaptive(self: Value, output_size: Any) -> Only:
        return Only(lower(getattr(F, f"adaptive_max_pool{n}d"), self, output_size))


def _linear_upsampling(name: str, mode: str) -> None:
    @_aten(name)
    def upsample(input: Value, output_size: Any, align_corners: bool, *scales: Any) -> Value:
        given = [scale for scale in scales if scale is not None]
        if output_size is None and len(given) == 1:
            return lower(F.interpolate, input, None, given[0], mode, align_corners)
        if given:
            raise UnsupportedOperation(
                f"`{input.path}` interpolates by both a size and scales; export with one of them.", path=input.path
            )
        return lower(F.interpolate, input, output_size, None, mode, align_corners)


for _n, _name in ((1, "linear"), (2, "bilinear"), (3, "trilinear")):
    _max_pools(_n)
    _linear_upsampling(f"upsample_{_name}{_n}d", _name)
