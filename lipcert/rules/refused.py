"""Operations that are understood and refused, with the reason and what to do instead. Floor 3."""

from __future__ import annotations

import operator
from typing import Any, NoReturn

import torch
from torch import nn
from torch.nn import functional as F

from lipcert.errors import NotLipschitz, UnsupportedOperation
from lipcert.lowering import Target, Value, lowers

BOUNDED_ONLY = "is Lipschitz only on a bounded domain, and no rule bounds it there"
_DISCONTINUOUS = "is not continuous, so it has no Lipschitz constant"


def _refuse(error: type[UnsupportedOperation], reason: str, *targets: Target) -> None:
    """Register rules that say why, for modules and for functions."""
    for target in targets:
        name = target if isinstance(target, str) else target.__name__

        def rule(*args: Value | Any, _name: str = name, **options: Value | Any) -> NoReturn:
            path = next((arg.path for arg in _flat(args, options) if isinstance(arg, Value)), "")
            raise error(f"`{_name}` at `{path}` {reason}.", path=path)

        lowers(target)(rule)


def _flat(args: tuple[Any, ...], options: dict[str, Any]) -> list[Any]:
    entries = [*args, *options.values()]
    return [leaf for entry in entries for leaf in (entry if isinstance(entry, list | tuple) else [entry])]


def _both(names: str) -> list[Target]:
    """The functions of torch and the tensor methods of these names."""
    found: list[Target] = []
    for name in names.split():
        found += [name, f"{name}_"] if callable(getattr(torch.Tensor, f"{name}_", None)) else [name]
        functions = (getattr(torch, spelling, None) for spelling in (name, f"{name}_"))
        found += [function for function in functions if callable(function)]
    return found


def _in_place(names: str) -> list[Target]:
    """The spellings of these names that write into their input."""
    return [target for target in _both(names) if (target if isinstance(target, str) else target.__name__)[-1] == "_"]


_refuse(
    NotLipschitz,
    "grows faster than linearly, so it has no Lipschitz constant on the whole space; bound its input first, for "
    "example by torch.tanh, and register a rule for the pair",
    *_both("exp2 sinh cosh float_power"),
    *_in_place("exp expm1 square pow"),
    operator.ipow,
)
_refuse(
    NotLipschitz,
    "has an unbounded slope near the edge of its domain, so it has no Lipschitz constant; keep its input away from "
    "there and register a rule for the pair",
    *_both("log2 log10 log1p acos asin atanh acosh tan logit"),
    *_in_place("sqrt rsqrt log reciprocal"),
)
_refuse(
    NotLipschitz,
    "multiplies parts of its input with each other; on an unbounded domain a product has no Lipschitz constant. "
    "Replace the gate by an activation such as MaxMin",
    *(nn.Bilinear, F.bilinear, torch.baddbmm, torch.outer, torch.dot, torch.prod),
    *("prod", torch.cumprod, "cumprod", torch.cross, torch.inner),
)
_refuse(
    NotLipschitz,
    BOUNDED_ONLY + ". Use batch normalisation, or a fixed scale",
    *(nn.GroupNorm, F.group_norm, torch.group_norm),
    *(nn.RMSNorm, F.rms_norm, torch.rms_norm, nn.LocalResponseNorm, F.local_response_norm, nn.CrossMapLRN2d),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, F.instance_norm, torch.instance_norm),
    *(F.normalize, nn.CosineSimilarity, torch.cosine_similarity, *_both("var std"), torch.var_mean, torch.std_mean),
)
_refuse(
    NotLipschitz,
    BOUNDED_ONLY + ": attention multiplies queries and keys that both depend on the input",
    *(nn.MultiheadAttention, F.multi_head_attention_forward, nn.Transformer),
    *(nn.TransformerEncoder, nn.TransformerDecoder, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer),
)
_refuse(
    NotLipschitz,
    BOUNDED_ONLY + ": recurrent cells multiply their gates",
    *(nn.RNN, nn.LSTM, nn.GRU, nn.RNNCell, nn.LSTMCell, nn.GRUCell),
)
_refuse(
    NotLipschitz,
    _DISCONTINUOUS,
    *(nn.Hardshrink, F.hardshrink, operator.floordiv, operator.mod, operator.ifloordiv, operator.imod),
    *_both("hardshrink sign sgn round floor ceil trunc fix frac heaviside floor_divide remainder fmod"),
)
_refuse(
    UnsupportedOperation,
    "selects by the values of its input, so what comes out may jump; no rule covers it",
    *_both(
        "where masked_fill masked_select argmax argmin argsort sort topk kthvalue median mode nonzero unique gather"
    ),
    *_both("gt lt ge le eq ne greater less logical_and logical_or logical_not isnan isfinite any all scatter take"),
    *(operator.gt, operator.lt, operator.ge, operator.le, operator.eq, operator.ne, operator.and_, operator.or_),
)
_refuse(
    UnsupportedOperation,
    "draws random numbers; the certificate is about one fixed function",
    *(torch.rand_like, torch.randn_like, torch.randint_like, *_both("bernoulli multinomial"), torch.normal),
    *("normal_", "uniform_", "exponential_", "random_", F.gumbel_softmax),
)
_refuse(
    UnsupportedOperation,
    "casts to another number format, which rounds; leave the cast out of forward and convert the model instead",
    *("float", "half", "bfloat16", "type", "int", "long", "short", "bool"),
)
_refuse(
    UnsupportedOperation,
    "leaves the graph of tensor operations, so what follows cannot depend on it faithfully",
    *("item", "tolist", "numpy"),
)
_refuse(
    UnsupportedOperation,
    "writes into a tensor; build the result with torch.cat or torch.nn.functional.pad instead",
    *(operator.setitem, "copy_", "fill_", "zero_", "index_add_", "index_copy_", "set_", "resize_"),
)
_refuse(
    NotLipschitz,
    "is Lipschitz, but certify the logits instead: a log-softmax adds nothing to a comparison of classes",
    *(nn.LogSoftmax, F.log_softmax, torch.log_softmax, "log_softmax"),
)
_refuse(
    UnsupportedOperation,
    "takes integers, to which a Lipschitz constant does not apply; certify the model from the embedding on",
    *(nn.Embedding, F.embedding, nn.EmbeddingBag, F.embedding_bag, F.one_hot),
)
_refuse(
    UnsupportedOperation,
    "has no rule; write it with matmul, linear or a convolution",
    *(torch.einsum, torch.tensordot, "unfold", F.unfold, nn.Unfold, F.fold, nn.Fold, *_both("cumsum kron")),
)
_refuse(
    UnsupportedOperation,
    "transposes all dimensions, the batch included; a claim is about one sample at a time. Use .mT or permute",
    *(".T", ".H", "t", torch.t, "adjoint"),
)
