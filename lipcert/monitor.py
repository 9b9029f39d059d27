r"""What to log while a network trains: brackets of each layer's norm, and how far weights and gradients move. Floor 5.

Per layer, ``lower <= norm <= upper``: below a power iteration on the operator the layer applies, above a proven bound.
Observing works on copies; the model, its mode, buffers, gradients and all random generators stay as they are, to the
bit.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrizations, parametrize

from lipcert.errors import InvalidInput, UnsupportedOperation
from lipcert.freeze import unchanged_randomness
from lipcert.linear import Shape, apply
from lipcert.parametrizations.claim import Claim
from lipcert.parametrizations.estimates import direction, length, power_iteration
from lipcert.parametrizations.operators import Matrix, Operator, Rows, operator_of
from lipcert.penalties.gradient import require_own_gradients, sample_gradients

_CLAIM_ONE = (parametrizations._SpectralNorm, parametrizations._Orthogonal)
Sizes = Mapping[str, Shape]
Source = torch.Generator

_STYLES = {
    "upper": dict(color="#c44e52", marker="v", markersize=4, linewidth=1.0, label="proven bound"),
    "lower": dict(color="#4c72b0", marker="^", markersize=3, linewidth=1.0, label="power iteration"),
    "reshaped": dict(color="#8c8c8c", linestyle=":", linewidth=1.0, label="reshaped kernel"),
    "claimed": dict(color="black", linestyle="--", linewidth=0.8, label="claimed"),
}


@dataclass(frozen=True)
class LayerReading:
    """What was seen of one layer. Norms are l2 operator norms; NaN where the weight is not finite.

    Attributes:
        path: Where the layer is in the model, ``"model"`` for the model itself.
        claimed: The norm its parametrization claims, ``None`` without one.
        lower: The gain of one vector, found by power iteration on the operator the layer applies; the norm is at least
            this, up to float64 rounding. ``None`` where the operator is not known.
        upper: A proven bound of that norm, rounding included. ``None`` if not known, or not asked for.
        reshaped: The norm, by power iteration, of the kernel reshaped to ``(out, everything else)``, which classical
            spectral normalisation divides by. It bounds nothing for a convolution.
        drift: :math:`|W - W_{last}|_F / |W_{last}|_F` since the last observation; ``None`` in the first.
    """

    path: str
    claimed: float | None
    lower: float | None
    upper: float | None
    reshaped: float
    drift: float | None


@dataclass(frozen=True)
class _Memory:
    """Where the next observation of a layer starts: the weight, and the vectors of its power iterations."""

    weight: Tensor
    vectors: dict[str, Tensor]


@runtime_checkable
class Writer(Protocol):
    """What TensorBoard's ``SummaryWriter`` has."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> object:
        """Take one number."""
        ...


Sink = Writer | MutableMapping[str, float] | Callable[[dict[str, float]], object]


def observe(
    model: nn.Module, *, input_sizes: Sizes | None = None, generator: Source | None = None
) -> tuple[LayerReading, ...]:
    """Read the norm of every layer of a model once, from below and from above.

    Layers are all linear layers and convolutions, and whatever is parametrized (a tensor other than ``weight`` has its
    name in the path). The value read is the one the next forward pass would use in the present mode, whatever made it.

    Args:
        model: Read, never changed.
        input_sizes: Spatial input size by path, for convolutions. Default: every size; both ends of the bracket are
            then about the supremum over all input sizes.
        generator: Source of the vectors power iteration starts from. Default: a generator seeded with 0.

    Returns:
        One reading per layer, in the order of the modules.

    Raises:
        InvalidInput: If an input size is given for no layer, or for one that cannot be applied at it.

    Example:
        >>> layer = nn.Linear(2, 2, bias=False)
        >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
        >>> [reading] = observe(nn.Sequential(layer))
        >>> reading.path, 3.999 < reading.lower <= 4.0 <= reading.upper < 4.001
        ('0', True)
    """
    drawn = torch.Generator().manual_seed(0) if generator is None else generator
    return tuple(reading for reading, _ in _observe(model, input_sizes or {}, {}, drawn, True))


def gradient_percentiles(
    critic: Callable[[Tensor], Tensor], x: Tensor, q: tuple[float, ...] = (5.0, 50.0, 95.0)
) -> dict[float, float]:
    """Percentiles over a batch of the l2 norm of each sample's input gradient.

    A 1-Lipschitz critic has no gradient norm above 1; a good one is near 1 almost everywhere.

    Args:
        critic: Takes a batch, gives one number per sample (shape ``(N,)`` or ``(N, 1)``). A module is used as it is in
            its present mode, through a copy.
        x: Shape ``(N, ...)``, real.
        q: Percentiles, in ``[0, 100]``; between samples they are interpolated linearly.

    Returns:
        The percentiles, by ``q``.

    Raises:
        InvalidInput: If a percentile is none, the batch is empty or not real, or the critic gives several numbers.
        UnsupportedOperation: If batch normalisation is in training mode: a sample has no gradient of its own.

    Example:
        >>> critic = nn.Linear(2, 1)
        >>> _ = critic.weight.data.copy_(torch.tensor([[3.0, 4.0]]))
        >>> gradient_percentiles(critic, torch.randn(10, 2))
        {5.0: 5.0, 50.0: 5.0, 95.0: 5.0}
    """
    if not all(0.0 <= each <= 100.0 for each in q) or x.ndim < 1 or len(x) == 0 or not x.is_floating_point():
        x_is = f"{x.dtype} of shape {tuple(x.shape)}"
        raise InvalidInput(f"percentiles in [0, 100] are taken over a batch of real inputs, got q={q} and {x_is}.")
    require_own_gradients(critic)
    copied = _copy(critic) if isinstance(critic, nn.Module) else critic
    with unchanged_randomness(), torch.enable_grad():
        gradients = sample_gradients(copied, x).detach()
    norms = torch.linalg.vector_norm(gradients.flatten(1).double(), dim=1)
    levels = torch.quantile(norms, torch.tensor(q, dtype=norms.dtype, device=norms.device) / 100.0)
    return {float(each): float(level) for each, level in zip(q, levels, strict=True)}


class Monitor:
    """Observes a model every few training steps, and hands flat names and numbers to whoever logs them.

    Call `step` once per optimiser step. Names are ``lipcert/<path>/<what>``, what being an attribute of
    `LayerReading`; what is not known in an observation has no name in it. Power iteration starts where it ended in the
    observation before, so later observations are cheap; the proven bound is the expensive part.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        every: int = 100,
        prove_every: int = 10,
        input_sizes: Sizes | None = None,
        gradients_at: Tensor | None = None,
        generator: Source | None = None,
    ) -> None:
        """Prepare; nothing is observed before the first `step`.

        Args:
            model: Read, never changed. With ``gradients_at`` it has to give one number per sample.
            every: Steps from one observation to the next. The first step is observed.
            prove_every: Observations from one proven bound to the next. The first has one.
            input_sizes: As for `observe`.
            gradients_at: A batch at which to take `gradient_percentiles`. Default: none.
            generator: As for `observe`.

        Raises:
            InvalidInput: If a period is not positive.

        Example:
            >>> monitor = Monitor(nn.Linear(3, 3), every=2)
            >>> sorted(monitor.step()), monitor.step(), len(monitor.history)
            (['lipcert/model/lower', 'lipcert/model/reshaped', 'lipcert/model/upper'], {}, 1)
        """
        if every < 1 or prove_every < 1:
            raise InvalidInput(f"periods are at least 1, got every={every} and prove_every={prove_every}.")
        self.model = model
        self.every = every
        self.prove_every = prove_every
        self.input_sizes = dict(input_sizes or {})
        self.gradients_at = gradients_at
        self._generator = torch.Generator().manual_seed(0) if generator is None else generator
        self._memory: dict[str, _Memory] = {}
        self._sinks: list[Sink] = []
        self._history: list[tuple[int, tuple[LayerReading, ...]]] = []
        self._steps = 0

    @property
    def history(self) -> tuple[tuple[int, tuple[LayerReading, ...]], ...]:
        """All observations, as ``(step, readings)``; the first step is 0."""
        return tuple(self._history)

    def log_to(self, sink: Sink) -> Monitor:
        """Hand every further observation to a TensorBoard writer, a function of a dict, or a dict.

        Returns:
            The monitor itself.

        Raises:
            InvalidInput: If it is none of those.
        """
        if not (isinstance(sink, Writer | MutableMapping) or callable(sink)):
            raise InvalidInput(f"{sink!r} has no add_scalar, is no dict and cannot be called with one.")
        self._sinks.append(sink)
        return self

    def step(self) -> dict[str, float]:
        """Count one training step, and observe if it is time.

        Returns:
            The numbers by name, ready for Lightning's ``self.log_dict``; empty between observations.
        """
        now, self._steps = self._steps, self._steps + 1
        if now % self.every:
            return {}
        prove = len(self._history) % self.prove_every == 0
        seen = _observe(self.model, self.input_sizes, self._memory, self._generator, prove)
        self._memory = {reading.path: memory for reading, memory in seen}
        readings = tuple(reading for reading, _ in seen)
        self._history.append((now, readings))
        values = {f"lipcert/{r.path}/{name}": value for r in readings for name, value in _numbers(r).items()}
        if self.gradients_at is not None:
            levels = gradient_percentiles(self.model, self.gradients_at)
            values |= {f"lipcert/gradient/p{each:g}": level for each, level in levels.items()}
        for sink in self._sinks:
            _write(sink, values, now)
        return values

    def plot(self, path: str | Path) -> None:
        """Draw, per layer, the bracket over the steps, the claim, and the norm of the reshaped kernel.

        Args:
            path: An image file; its suffix chooses the format.

        Raises:
            InvalidInput: If nothing was observed, or matplotlib is missing.
        """
        try:
            from matplotlib.figure import Figure
        except ModuleNotFoundError as error:
            raise InvalidInput("drawing needs matplotlib, which is not installed; install lipcert[plot].") from error
        paths = list(dict.fromkeys(reading.path for _, readings in self._history for reading in readings))
        if not paths:
            raise InvalidInput("nothing was observed yet, so there is nothing to draw; call step() first.")
        figure = Figure(figsize=(7.0, 0.6 + 1.8 * len(paths)), layout="constrained")
        grid = figure.subplots(len(paths), 1, sharex=True, squeeze=False)
        for place, axes in zip(paths, grid[:, 0], strict=True):
            seen = [(step, _numbers(r)) for step, readings in self._history for r in readings if r.path == place]
            for what, style in _STYLES.items():
                points = [(step, values[what]) for step, values in seen if what in values]
                if points:
                    axes.plot(*zip(*points, strict=True), **style)
            axes.set_title(place, fontsize=9, loc="left")
            axes.set_ylabel("norm", fontsize=8)
            axes.grid(linewidth=0.4, alpha=0.6)
        grid[0, 0].legend(fontsize=7, ncols=4)
        grid[-1, 0].set_xlabel("step", fontsize=8)
        figure.savefig(path, dpi=150)


def _observe(
    model: nn.Module, input_sizes: Sizes, before: Mapping[str, _Memory], drawn: Source, prove: bool
) -> list[tuple[LayerReading, _Memory]]:
    layers = list(_layers(model))
    if strangers := sorted(input_sizes.keys() - {path for path, _, _ in layers}):
        raise InvalidInput(f"no layer is at {strangers}, so input sizes there mean nothing.")
    with torch.no_grad(), unchanged_randomness():
        sized = [(*layer, input_sizes.get(layer[0]), before.get(layer[0])) for layer in layers]
        return [_read(*layer, drawn, prove) for layer in sized]


def _read(
    path: str, module: nn.Module, name: str, size: Shape | None, before: _Memory | None, drawn: Source, prove: bool
) -> tuple[LayerReading, _Memory]:
    weight, claimed = _weight_and_claim(module, name)
    starts = before.vectors if before else {}
    matrix = weight.transpose(0, 1) if isinstance(module, _ConvTransposeNd) else weight
    matrix = matrix.reshape(len(matrix), -1)
    reshaped, at = _below(Matrix(matrix.shape[1]), matrix[None], starts.get("reshaped"), drawn)
    lower, upper, vectors = None, None, {"reshaped": at}
    try:
        operator = operator_of(module, name, size)
    except UnsupportedOperation:
        pass
    else:
        lower, vectors["lower"] = _below(operator, operator.split(weight), starts.get("lower"), drawn)
        upper = _proven(operator, weight) if prove else None
    drift = _drift(weight, before.weight) if before else None
    return LayerReading(path, claimed, lower, upper, reshaped, drift), _Memory(weight, vectors)


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Path, module and name of the tensor: everything parametrized, and the bare weights of linear maps."""
    for path, module in model.named_modules():
        names = list(_lists(module))
        if isinstance(module, nn.Linear | _ConvNd) and "weight" not in names:
            names += [] if isinstance(module.weight, nn.parameter.UninitializedParameter) else ["weight"]
        for name in names:
            place = path or "model"
            yield (place if name == "weight" else f"{place}.{name}"), module, name


def _lists(module: nn.Module) -> Mapping[str, nn.Module]:
    return dict(module.parametrizations.items()) if parametrize.is_parametrized(module) else {}  # type: ignore[operator]


def _weight_and_claim(module: nn.Module, name: str) -> tuple[Tensor, float | None]:
    """The value the next forward pass would use, and what is claimed of it; reading ``module.weight`` may change it."""
    lists = _lists(module)
    if name not in lists:
        return getattr(module, name).detach().clone(), None
    entries = _copy(lists[name])
    assert isinstance(entries, parametrize.ParametrizationList)
    last = entries[-1]
    claimed = last.bound if isinstance(last, Claim) else 1.0 if isinstance(last, _CLAIM_ONE) else None
    with torch.autocast(next(entries.parameters()).device.type, enabled=False):
        return entries().detach().clone(), claimed


def _below(operator: Operator, blocks: Tensor, before: Tensor | None, drawn: Source) -> tuple[float, Tensor]:
    """The largest ``|A v|`` over the blocks A, in float64 after iterating in float32; and the unit vectors v."""
    fresh = torch.randn((len(blocks), 1, *operator.in_shape), generator=drawn, dtype=torch.float64, device=drawn.device)
    fresh = fresh.to(blocks.device) / math.prod(operator.in_shape) ** 0.5
    # Where the last iteration ended may be orthogonal to the new top direction; a random vector never is.
    starts = fresh if before is None else before + 0.01 * fresh
    if not bool(torch.isfinite(blocks).all()):
        return math.nan, starts
    peak = blocks.abs().amax().double()
    unit = blocks.double() / torch.where(peak > 0, peak, 1.0)
    if isinstance(operator, Rows):
        return float(torch.linalg.vector_norm(unit, dim=-1).amax() * peak), starts
    maps = zip(unit, starts, strict=True)
    ends = [direction(power_iteration(operator.linear(block.float()), v.float()).double()) for block, v in maps]
    gains = [length(apply(operator.linear(block), v)) for block, v in zip(unit, ends, strict=True)]
    return float(torch.stack(gains).amax() * peak), torch.stack(ends)


def _proven(operator: Operator, weight: Tensor) -> float:
    if not bool(torch.isfinite(weight).all()):
        return math.nan
    return max(operator.prove(block) for block in operator.split(weight.double().cpu()))


def _drift(weight: Tensor, before: Tensor) -> float:
    moved = float(length(weight.double() - before.to(weight.device).double()))
    size = float(length(before.double()))
    return moved / size if size > 0.0 else math.inf if moved > 0.0 else 0.0


def _copy(module: nn.Module) -> nn.Module:
    """A deep copy in the same mode; tensors with a history, which cannot be copied, are copied without."""
    memo: dict[int, Any] = {}
    for part in module.modules():
        values = [*vars(part).values(), *part._buffers.values()]
        memo |= {id(v): v.detach().clone() for v in values if isinstance(v, Tensor) and not v.is_leaf}
    return copy.deepcopy(module, memo)


def _numbers(reading: LayerReading) -> dict[str, float]:
    return {name: value for name, value in asdict(reading).items() if name != "path" and value is not None}


def _write(sink: Sink, values: dict[str, float], step: int) -> None:
    match sink:
        case Writer():
            for name, value in values.items():
                sink.add_scalar(name, value, step)
        case MutableMapping():
            sink.update(values)
        case _:
            sink(dict(values))
