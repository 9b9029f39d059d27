"""Modules that try to be captured as something they are not. Each is refused by name, or captured exactly."""

from __future__ import annotations

import functools
import inspect
import itertools
import math
import random
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations as P
from torch.nn.utils import parametrize, prune, spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class Hostile:
    """A module, the shape of one sample, and a part of the refusal, or None if it must be captured exactly."""

    build: Callable[[], nn.Module]
    input_shape: tuple[int, ...]
    refusal: str | None


HOSTILE: dict[str, Hostile] = {}
UNSEEN: dict[str, Hostile] = {}
"""What no capture can see: recorded as something else, and `refusal` the words that say so among the guarantees."""


def refused(because: str, *shape: int) -> Callable[[Any], Any]:
    """Enter a module class, or a function that builds a module, that must be refused with these words."""
    return _enter(because, shape or (4,))


def exact(*shape: int) -> Callable[[Any], Any]:
    """Enter a module class, or a function that builds a module, that must be captured exactly."""
    return _enter(None, shape or (4,))


def unseen(words: str, *shape: int) -> Callable[[Any], Any]:
    """Enter a module class that lipcert cannot know to be something else, with the words that warn of it."""
    return _enter(words, shape or (4,), UNSEEN)


def _enter(because: str | None, shape: tuple[int, ...], table: dict[str, Hostile] = HOSTILE) -> Callable[[Any], Any]:
    def enter(build: Any) -> Any:
        def seeded() -> nn.Module:
            with torch.random.fork_rng():
                torch.manual_seed(7)
                return build()

        table[build.__name__.strip("_")] = Hostile(seeded, shape, because)
        return build

    return enter


class Layer(nn.Module):
    """A module with one linear layer ``inner`` from 4 to 4."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)


def tripled(module: nn.Module, *args: Any) -> Any:
    """A hook that multiplies by three."""
    return 3 * args[-1] if isinstance(args[-1], Tensor) else (3 * args[0][0],)


# ------------------------------------------------------------------------------------ values that leave the graph


@refused("control flow")
class BranchOnValue(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if x.sum() > 0 else 3 * x


@refused("control flow")
class WhileOnValue(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        while x.abs().max() > 1:
            x = x / 2
        return x


@refused("item")
class Item(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.amax(1).item()


@refused("(the model itself)")
class NumpyRoundTrip(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.from_numpy(np.asarray(x))


@refused("(the model itself)")
class ToList(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.as_tensor(x.tolist())


@refused("(the model itself)")
class FloatOfTensor(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * float(x[:, 0].sum())


@refused("reads the value")
class RareBranchBehindIsinstance(Layer):
    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        if isinstance(x, Tensor) and bool(x.abs().max() > 1e9):
            return 100 * y
        return y


@refused("reads the value")
class BranchOnItemBehindIsinstance(Layer):
    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, Tensor) and x[0, 0].item() > 1e9:
            return 100 * x
        return self.inner(x)


# ------------------------------------------------------------------------------- python state, time and randomness


@refused("reproduce")
class PythonState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.n = 1.0

    def forward(self, x: Tensor) -> Tensor:
        self.n *= 2
        return x * self.n


@refused("changes `calls`")
class StateThatMattersLater(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x if self.calls < 1000 else 10 * x


@refused("changes `cache`")
class Cache(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[str, Any] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.cache[str(len(self.cache))] = 1
        return x if len(self.cache) < 1000 else 10 * x


@refused("count")
class CountingBuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(1)
        return x * 2


@refused("reproduce")
class TorchRandom(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rand(4)


@refused("rand_like")
class RandomLike(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


@refused("bernoulli")
class Bernoulli(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.bernoulli(x)


@refused("reproduce")
class PythonRandom(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * random.random()


@refused("reproduce")
class NumpyRandom(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * float(np.random.rand())


@refused("reproduce")
class RandomFromAGlobalGenerator(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn(4, generator=GENERATOR)


GENERATOR = torch.Generator().manual_seed(0)


@refused("reproduce")
class TimeOfDay(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * (1.0 + time.perf_counter())


@refused("reproduce")
class GlobalCounter(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * float(next(TURNS))


TURNS = itertools.count()


@refused("changes `seen`")
class ListThatGrows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(1)
        return x if len(self.seen) < 1000 else 10 * x


@refused("reproduce")
class ReplacesAChild(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act: nn.Module = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(x)
        self.act = nn.Tanh()
        return y


@refused("at random")
class DropoutAlways(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5)


@refused("model.eval()")
def dropout_in_training() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).train()


@exact()
def dropout_of_nothing_in_training() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.0)).train()


@refused("model.eval()")
def child_in_training() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.BatchNorm1d(4))).eval()
    model[1][0].train()
    return model


@refused("model.eval()")
class BranchOnTraining(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if not self.training else 5 * x


@refused("model.eval()")
class FunctionalDropoutInTraining(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.inner(x), 0.5, self.training)


@exact()
def functional_dropout_in_evaluation() -> nn.Module:
    return FunctionalDropoutInTraining().eval()


@refused("model.eval()")
def spectral_norm_in_training() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 64), P.spectral_norm(nn.Linear(64, 64))).train()


@refused("model.eval()")
def old_spectral_norm_in_training() -> nn.Module:
    return spectral_norm(nn.Linear(4, 4)).train()


@exact()
def old_spectral_norm_after_a_forward() -> nn.Module:
    layer = spectral_norm(nn.Linear(4, 4))
    layer(torch.ones(2, 4))
    return nn.Sequential(layer, nn.ReLU()).eval()


@exact()
def old_weight_norm_after_a_forward() -> nn.Module:
    layer = weight_norm(nn.Linear(4, 4))
    layer(torch.ones(2, 4))
    return layer


class _Noisy(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w + torch.randn_like(w)


@refused("two reads")
def random_parametrization() -> nn.Module:
    layer = nn.Linear(4, 4)
    parametrize.register_parametrization(layer, "weight", _Noisy())
    return layer.eval()


class _InTraining(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return 2 * w if self.training else w


@refused("inner.weight")
def parametrization_that_depends_on_the_mode() -> nn.Module:
    model = Layer()
    parametrize.register_parametrization(model.inner, "weight", _InTraining())
    return model.train()


# --------------------------------------------------------------------------------------------- hooks and patches


@refused("hook")
def hook_on_the_root() -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.register_forward_hook(tripled)
    return layer


@refused("`0`")
def pre_hook_on_a_child() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].register_forward_pre_hook(tripled)
    return model


@refused("`0`")
def pre_hook_with_kwargs_on_a_child() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].register_forward_pre_hook(lambda module, args, kwargs: (args, kwargs), with_kwargs=True)
    return model


@refused("hook")
def backward_hook() -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.register_full_backward_hook(lambda *args: None)
    return layer


@refused("prune.remove")
def pruned() -> nn.Module:
    return nn.Sequential(prune.l1_unstructured(nn.Linear(4, 4), "weight", 0.5))


@refused("`0`")
def hook_that_runs_always() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].register_forward_hook(tripled, always_call=True)
    return model


@refused("reproduce")
class RegistersAHook(Layer):
    def forward(self, x: Tensor) -> Tensor:
        self.inner.register_forward_hook(tripled)
        return self.inner(x)


@refused("control flow")
class HookOnATensor(Layer):
    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x)
        if h.requires_grad:
            h.register_hook(lambda gradient: 3 * gradient)
        return torch.relu(h)


@exact()
def hook_on_the_state_dict() -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.register_state_dict_post_hook(lambda module, state, *_: state.update({k: 3 * v for k, v in state.items()}))
    return layer


@exact()
def hook_on_loading() -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.register_load_state_dict_pre_hook(lambda module, state, *_: state.update({k: -v for k, v in state.items()}))
    return layer


@refused("`0`")
def forward_from_functools() -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.forward = functools.partial(F.linear, weight=3 * layer.weight.detach())  # type: ignore[method-assign]
    return nn.Sequential(layer)


@exact()
def layer_of_another_class() -> nn.Module:
    layer: nn.Module = nn.ReLU()
    layer.__class__ = nn.Tanh
    return layer


@refused("forward")
def patched_forward() -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.forward = lambda x: 3 * x  # type: ignore[method-assign]
    return layer


@refused("_conv_forward", 4, 5, 5)
def patched_inner_method() -> nn.Module:
    layer = nn.Conv2d(4, 4, 3)
    layer._conv_forward = lambda x, w, b: 3 * F.conv2d(x, w, b)  # type: ignore[method-assign]
    return layer


@refused("__call__")
class OverriddenCall(Layer):
    def __call__(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return 3 * self.inner(x)


@refused("how it is copied")
class LiesWhenCopied(Layer):
    def __deepcopy__(self, memo: Any) -> nn.Module:
        return nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return 3 * self.inner(x)


# --------------------------------------------------------------------------------------------- subclasses of layers


class _Tripling(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 3 * super().forward(x)


@exact()
def subclass_with_its_own_forward() -> nn.Module:
    return _Tripling(4, 4)


class _InnerOverride(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return 3 * F.conv2d(input, weight, bias)


@exact(4, 5, 5)
def subclass_with_its_own_conv_forward() -> nn.Module:
    return _InnerOverride(4, 4, 3)


class _DoubledWeight(nn.Linear):
    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)
        return value + value if name == "weight" else value


@refused("constants in forward")
def subclass_that_computes_its_weight() -> nn.Module:
    return _DoubledWeight(4, 4)


class _NoisyRead(nn.Linear):
    @property
    def scale(self) -> float:
        return random.random()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale


@refused("reproduce")
def subclass_with_a_random_property() -> nn.Module:
    return _NoisyRead(4, 4)


class _Renamed(nn.Linear):
    def __init__(self, size: int) -> None:
        super().__init__(size, size)

    def extra_repr(self) -> str:
        return "a linear layer"


@exact()
def harmless_subclass() -> nn.Module:
    return _Renamed(4)


class _Mixin:
    def forward(self, x: Tensor) -> Tensor:
        return 7 * x


class _Mixed(_Mixin, nn.ReLU):
    pass


@exact()
def forward_from_a_mixin() -> nn.Module:
    return _Mixed()


# ------------------------------------------------------------------------------------------- writing into tensors


@refused("use `inplace=False`")
class InplaceReluReadAgain(Layer):
    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x)
        y = F.relu(h, inplace=True)
        return y + h


@refused("use `inplace=False`")
class InplaceModuleReadAgain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.act = nn.Linear(4, 4), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x)
        return self.act(h) + h


@refused("use `inplace=False`")
class InplaceThroughAView(Layer):
    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x)
        part = h[:, :2].relu_()
        return h + part.sum(1, keepdim=True)


class _Aliased(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.skip = nn.Linear(4, 4), nn.Sequential(nn.Identity(), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x)
        kept = self.skip(h)
        h = h.mul_(3)
        return kept + h


@refused("use `inplace=False`")
def inplace_through_dropout_and_identity() -> nn.Module:
    return _Aliased().eval()


@refused("use `inplace=False`")
class InplaceOperator(Layer):
    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x)
        y = h
        y *= 3
        return y + h


@exact()
class InplaceOnAFreshTensor(Layer):
    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x)
        h += x
        h *= 2
        return h.relu_()


@refused("result is not used")
class InplaceWithUnusedResult(Layer):
    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x)
        h.relu_()
        return h


@refused("writes into a tensor")
class SetItem(Layer):
    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x)
        h[:, 0] = 0.0
        return torch.relu(h)


@refused("out")
class OutArgument(Layer):
    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x)
        torch.relu(x, out=h)
        return h


@exact()
class InplaceOnTheInput(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.relu_())


@refused("use `inplace=False`")
class InplaceOnTheInputReadAgain(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.relu_()) + x


@refused("inner")
class InplaceOnAWeight(Layer):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.inner.weight.mul_(2)
        return self.inner(x)


@refused("reproduce")
class InplaceOnAConstant(Layer):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.ones(4)

    def forward(self, x: Tensor) -> Tensor:
        self.scale.mul_(2.0)
        return self.inner(x) * self.scale


@refused("reproduce")
class InplaceOnAGlobal(Layer):
    def forward(self, x: Tensor) -> Tensor:
        SCALE.mul_(2.0)
        return self.inner(x) * SCALE


SCALE = torch.ones(4)


@refused("numpy")
class InplaceThroughNumpy(Layer):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        self.scale.numpy()[:] *= 2.0
        return self.inner(x) * self.scale


@refused("as_strided")
class StridedAlias(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return torch.as_strided(self.inner(x), (x.shape[0], 2), (4, 2))


# ----------------------------------------------------------------------------------------- lies about being recorded


@refused("reproduce")
class KnowsItIsRecorded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if torch.fx._symbolic_trace.is_fx_symbolic_tracing() else 10 * x


@refused("reproduce")
class KnowsItIsAProxy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 10 * x if type(x) is Tensor else x


@exact()
class KnowsItIsCompiled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if torch.compiler.is_compiling() else 10 * x


@exact()
class KnowsItIsExported(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * (1.0 if torch.compiler.is_exporting() or torch.jit.is_tracing() else 3.0)


@refused("reproduce")
class CatchesTheRefusal(Layer):
    def forward(self, x: Tensor) -> Tensor:
        try:
            return self.inner(x) if bool(x.sum() > 0) else -x
        except Exception:
            return self.inner(x)


@refused("control flow")
class KnowsWhetherItIsInference(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * (4.0 if x.is_inference() else 1.0)


@refused("computes something else in torch.float32")
class BranchesOnTheDtypeALittle(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * (1.0001 if x.dtype is torch.float32 else 1.0)


@refused("reproduce")
class KnowsWhetherGradientsAreOn(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * (2.0 if torch.is_grad_enabled() else 1.0)


@refused("assigning")
class AssignsToData(Layer):
    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x)
        h.data = 3 * h
        return h


@refused("reproduce")
class KnowsItsWeightsAreDouble(Layer):
    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return y if self.inner.bias is None or _is_double(self) else 10 * y


def _is_double(module: nn.Module) -> bool:
    return next(iter(module.state_dict().values())).dtype == torch.float64


# -------------------------------------------------------------------------------------- the batch is not a dimension


@refused("batch")
class HardCodedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(3, 4)


@refused("batch")
class BatchMixingView(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(-1, 2)


@refused("batch")
class BatchMean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


@refused("batch")
class BatchCat(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x], 0)


@refused("one sample")
class BatchFlip(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flip(0)


@refused("one sample")
class BatchRoll(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + x.roll(1)


@refused("batch")
class FirstSample(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[0]


@refused("batch")
class FirstSamples(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:3]


@refused("batch")
class BatchSoftmax(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.softmax(0)


@refused("transposes all dimensions", 5)
class BatchTranspose(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.T


@refused("reproduce")
class DividesByTheBatchSize(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / x.shape[0]


@refused("reproduce")
class BranchesOnTheBatchSize(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 10 * x if len(x) == 1 else x


@refused("squeeze", 1)
class SqueezesEverything(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.squeeze()


@refused("statistics of the batch")
def batch_norm_without_statistics() -> nn.Module:
    return nn.BatchNorm1d(4, track_running_stats=False).eval()


@refused("model.eval()")
def batch_norm_in_training() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))


# ----------------------------------------------------------------------------------- functions that are not Lipschitz


@refused("multiplies two tensors")
class Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x


@refused("grows faster")
class Power(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x**2


@refused("divides by a tensor")
class Normalised(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / x.norm(dim=1, keepdim=True)


@refused("divides by a tensor")
class ReflectedDivision(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 1 / x


@refused("`1`")
def layer_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))


@refused("bounded domain")
class FunctionalNormalize(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x)


@refused("attention", 3, 4)
class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0]


@refused("multiplies two tensors", 3, 4)
class ManualAttention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(x @ x.transpose(1, 2) / math.sqrt(x.shape[-1]), -1) @ x


@refused("bounded domain", 3, 4)
def transformer_layer() -> nn.Module:
    return nn.TransformerEncoderLayer(4, 2, batch_first=True).eval()


@refused("recurrent", 3, 4)
class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]


@refused("multiplies parts")
def gated() -> nn.Module:
    return nn.GLU(1)


@refused("not continuous")
def hardshrink() -> nn.Module:
    return nn.Sequential(nn.Hardshrink(0.5))


@refused("not continuous")
class Rounded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.round(x)


@refused("jumps")
def discontinuous_threshold() -> nn.Module:
    return nn.Threshold(0.0, 1.0)


@refused("threshold")
def softplus_that_jumps() -> nn.Module:
    return nn.Softplus(beta=1.0, threshold=2.0)


@refused("exponentially")
def celu_that_explodes() -> nn.Module:
    return nn.CELU(alpha=-1.0)


@refused("gt")
class Where(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, x + 1)


@refused("gt")
class MaskByComparison(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + (x > 0)


@refused("sort")
class SortWithIndices(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sort(1)[0]


@refused("indices")
class MaxIndices(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.max(1)[1]


@refused("indices", 1, 4, 4)
def max_pool_with_indices() -> nn.Module:
    return nn.MaxPool2d(2, return_indices=True)


@refused("logits")
def log_softmax() -> nn.Module:
    return nn.LogSoftmax(1)


# -------------------------------------------------------------------------------------------------- numbers and shapes


@refused("casts")
class CastsToHalf(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).half()


@refused("casts")
class CastsByTo(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).to(torch.float32)


def _with_weight(weight: Tensor) -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return nn.Sequential(layer)


@refused("0.weight")
def nan_weight() -> nn.Module:
    return _with_weight(torch.full((4, 4), math.nan))


@refused("0.weight")
def infinite_weight() -> nn.Module:
    return _with_weight(torch.full((4, 4), math.inf))


@refused("0.weight")
def complex_weight() -> nn.Module:
    return _with_weight(torch.ones(4, 4, dtype=torch.complex64))


@refused("0.weight")
def sparse_weight() -> nn.Module:
    return _with_weight(torch.eye(4).to_sparse())


@refused("0.weight")
def meta_weight() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4, device="meta"))


@refused("0.weight")
def float8_weight() -> nn.Module:
    return _with_weight(torch.ones(4, 4).to(torch.float8_e4m3fn))


@exact()
def subnormal_weights() -> nn.Module:
    return _with_weight(torch.full((4, 4), 1e-44))


@exact()
def weights_near_the_largest_number() -> nn.Module:
    return _with_weight(1e38 * torch.eye(4))


@exact()
def weight_that_is_a_view() -> nn.Module:
    return _with_weight(torch.randn(8, 8)[::2, ::2])


@exact()
def weight_whose_rows_are_one_row() -> nn.Module:
    return _with_weight(torch.randn(1, 4).expand(4, 4))


class _Subclassed(Tensor):
    pass


@refused("0.weight")
def tensor_subclass_weight() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4))
    del model[0].weight
    model[0].weight = torch.ones(4, 4).as_subclass(_Subclassed)  # type: ignore[assignment]
    return model


@refused("lazy")
def lazy_layer() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(4))


@refused("rule")
def quantised_layer() -> nn.Module:
    return nn.Sequential(torch.ao.nn.quantized.FloatFunctional())


@refused("Linear")
def dynamically_quantised() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


@refused("fake_quantize")
class FakeQuantised(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(self.inner(x), 0.1, 0, -128, 127)


@refused("complex")
class ComplexInside(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.complex(x, x).abs()


@refused("fft")
class FourierInside(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft(x).real


@refused("to_sparse")
class SparseInside(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sparse.mm(self.inner.weight.to_sparse(), x.T).T


@refused("nan_to_num")
class NanToNum(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return torch.nan_to_num(self.inner(x))


@refused("cannot be run")
def mixed_dtypes() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4).double(), nn.ReLU(), nn.Linear(4, 4))


@refused("empty")
def empty_layer() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 0))


@refused("empty")
class EmptySlice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, 4:]


@refused("NaN")
class NanConstant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * math.nan


@refused("real numbers")
class ComplexConstant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 1j


@refused("below zero")
def negative_variance() -> nn.Module:
    layer = nn.BatchNorm1d(4).eval()
    layer.running_var.fill_(-1.0)
    return layer


@refused("variance")
def no_variance_at_all() -> nn.Module:
    layer = nn.BatchNorm1d(4, eps=0.0).eval()
    layer.running_var.fill_(0.0)
    return layer


@exact()
def subnormal_variance() -> nn.Module:
    layer = nn.BatchNorm1d(4, eps=1e-30).eval()
    layer.running_var.fill_(1e-40)
    return layer


@refused("by zero")
class DividesByZero(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 0.0


@refused("must be")
def wrong_input_shape() -> nn.Module:
    return nn.Linear(5, 2)


@refused("integers")
def embedding() -> nn.Module:
    return nn.Embedding(4, 4)


# ---------------------------------------------------------------------------------------------- inputs and outputs


@refused("one tensor")
class TwoInputs(Layer):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.inner(x) + y


@exact()
class OptionalInput(Layer):
    def forward(self, x: Tensor, mask: Tensor | None = None, *, scale: float = 2.0) -> Tensor:
        y = self.inner(x) * scale
        return y if mask is None else y * mask


@refused("tuple")
class TupleOutput(Layer):
    def forward(self, x: Tensor) -> Any:
        return self.inner(x), x


@refused("dict")
class DictOutput(Layer):
    def forward(self, x: Tensor) -> Any:
        return {"logits": self.inner(x)}


@refused("returns")
class ListOutput(Layer):
    def forward(self, x: Tensor) -> Any:
        return [self.inner(x)]


@refused("returns")
class NestedOutput(Layer):
    def forward(self, x: Tensor) -> Any:
        return {"a": (self.inner(x), [x])}


@refused("returns")
class NoOutput(Layer):
    def forward(self, x: Tensor) -> None:
        self.inner(x)


@refused("argmax")
class ClassOutput(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).argmax(1)


@refused("constant")
class ConstantOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.value


# --------------------------------------------------------------------------------------------------------- wrappers


@refused("model._orig_mod")
def compiled() -> nn.Module:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self._orig_mod = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self._orig_mod(x)

    return Wrapper()


@refused("model.module")
def data_parallel() -> nn.Module:
    return nn.DataParallel(nn.Linear(4, 4))


@refused("ScriptModule")
def scripted() -> nn.Module:
    return torch.jit.script(nn.Sequential(nn.Linear(4, 4)))


@refused("ScriptModule")
def scripted_child() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return nn.Sequential(nn.Linear(4, 4), torch.jit.script(nn.ReLU()))


@refused("ScriptModule")
def traced_child() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return nn.Sequential(nn.Linear(4, 4), torch.jit.trace(nn.ReLU(), torch.zeros(1, 4)))


@exact()
def nested_wrappers() -> nn.Module:
    return nn.Sequential(nn.Sequential(nn.Sequential(), nn.Sequential(nn.Linear(4, 4))), nn.Sequential(nn.ReLU()))


# ------------------------------------------------------------------------------------------- strange, and exact


@exact()
class SharedModule(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(torch.relu(self.inner(torch.relu(self.inner(x)))))


@exact()
class TiedWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


@exact()
class TiedTransposed(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.relu(self.inner(x)), self.inner.weight.T)


@exact()
class BuffersAsWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(4, 4))
        self.register_buffer("shift", torch.randn(4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(F.linear(x, self.weight, self.shift))


@exact()
class CallsItself(Layer):
    def forward(self, x: Tensor, depth: int = 3) -> Tensor:
        return x if depth == 0 else torch.relu(self.inner(self.forward(x, depth - 1)))


@exact()
class DetachedBranch(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + 3 * x.detach()


@exact()
class WithoutGradients(Layer):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.inner(x)


@exact()
class Checkpointed(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=False)


@exact()
class UnusedParameters(Layer):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(100, 100)
        self.cells = nn.LSTM(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        torch.sort(x)
        return self.inner(x)


@exact()
class GlobalConstant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * CONSTANT + CONSTANT


CONSTANT = torch.tensor([1.5, -2.0, 0.1, 3.0])


@exact()
class FunctionInALambda(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = lambda x: 5 * x

    def forward(self, x: Tensor) -> Tensor:
        return self.scale(x)


@refused("not installed as a submodule")
class ListOfLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Tanh(), nn.Linear(4, 4)]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


@exact()
class ListOfConstants(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.constants = [torch.tensor(2.0), torch.tensor([0.1])]
        self.named = {"shift": torch.tensor([0.1, 0.2, 0.3, 0.4])}

    def forward(self, x: Tensor) -> Tensor:
        for constant in self.constants:
            x = torch.tanh(x) * constant
        return x + self.named["shift"]


@exact()
class ReadsItsWeight(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return x @ self.inner.weight.T + self.inner.bias


@exact()
class AssertsItsShape(Layer):
    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == self.inner.in_features
        assert x.dim() == 2
        return self.inner(x) / math.sqrt(x.size(-1))


@refused("(the model itself)")
class TorchFunc(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return torch.func.vmap(self.inner)(x)


class _TimesThree(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 3 * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad


@exact()
class CustomFunction(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _TimesThree.apply(x)


@refused("constants in forward")
class NormalisesItsWeight(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.inner.weight / self.inner.weight.norm())


@refused("must be a constant")
class WeightFromTheInput(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.relu(x), torch.stack([x[:, 0], x[:, 1]], 1))


@refused("reproduce")
class DoublesOnlyRealTensors(Layer):
    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, Tensor):
            return self.inner(x) * 2
        return self.inner(x)


# ------------------------------------------------------------------------------ what cannot be seen, and is said so


@unseen("notices that it is recorded")
class LooksWhoCalls(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * (1.0 if any("lipcert" in frame.filename for frame in inspect.stack(0)) else 3.0)


@unseen("notices that it is recorded")
class LiesBelowTheRoundingOfItsInput(nn.Module):
    """Larger outputs are compared, and refused."""

    def forward(self, x: Tensor) -> Tensor:
        return (1e-15 if type(x) is Tensor else 1e-16) * x


@unseen("or copied")
class KnowsItIsACopy(Layer):
    def __init__(self) -> None:
        super().__init__()
        self.me = id(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * (3.0 if id(self) == self.me else 1.0)


@unseen("threads")
class KnowsItsThread(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * (1.0 if threading.current_thread() is threading.main_thread() else 3.0)


@unseen("globals that change later")
class ReadsAGlobal(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * FACTOR[0]


FACTOR = [1.0]
