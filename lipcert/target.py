"""What a command line names: ``package.module:factory`` with weights from a file, or an exported file. Floor 5."""

from __future__ import annotations

import importlib
import pickle
import sys
import traceback
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lipcert.domain import Box, Domain, L2Ball, WholeSpace
from lipcert.errors import InvalidInput
from lipcert.frontends import trace_exported, trace_onnx
from lipcert.graph import Affine, Graph
from lipcert.linear import Shape, dense
from lipcert.outputs import difference, select
from lipcert.trace import trace

_EXPORTED = {".pt2": trace_exported, ".onnx": trace_onnx}


def load_graph(
    target: str,
    input_shape: Shape | None = None,
    state_dict: str | Path | None = None,
    domain: Domain = WholeSpace(),  # noqa: B008
) -> tuple[Graph, nn.Module | None]:
    """Capture what a command line names; the model comes along where it is one in Python.

    Args:
        target: As `load_model` reads it, or a ``.pt2`` or ``.onnx`` file.
        input_shape: Shape of one sample. A file that fixes it needs none.
        state_dict: Weights, for a model in Python only.
        domain: What the claim will be about.

    Raises:
        LipcertError: As `load_model` and the readers.
    """
    reader = _EXPORTED.get(Path(target).suffix)
    if reader is None:
        if input_shape is None:
            raise InvalidInput(f"`{target}` needs --input-shape, the shape of one sample without batch.")
        model = load_model(target, state_dict)
        return trace(model, input_shape, domain), model
    if state_dict is not None:
        raise InvalidInput(f"`{target}` holds its own weights; leave --state-dict out.")
    return reader(target, input_shape), None


def load_model(target: str, state_dict: str | Path | None = None) -> nn.Module:
    """Import a model, fill in its weights, and put it in evaluation mode.

    Args:
        target: ``package.module:name``, where ``name`` is a module instance or is called without arguments to get
            one. The current directory is importable.
        state_dict: A ``.safetensors`` file, or a file of ``torch.save`` that holds tensors only.

    Raises:
        InvalidInput: If there is no such model, or the file does not fit it.
    """
    model = _import(target)
    if not isinstance(model, nn.Module):
        if not callable(model):
            raise InvalidInput(
                f"`{target}` is a {type(model).__name__}, neither a torch.nn.Module nor a function that returns one. "
                f"Name a model, its class, or a function without arguments."
            )
        model = _call(target, model)
    if state_dict is not None:
        _fill(model, Path(state_dict))
    return model.eval()


def parse_shape(text: str) -> Shape:
    """Read ``1,28,28``.

    Raises:
        InvalidInput: If it is something else.
    """
    sizes = [part.strip() for part in text.split(",")]
    if not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise InvalidInput(f"--input-shape {text!r} is not a shape; write sizes without batch, as 1,28,28 or 784.")
    return tuple(int(size) for size in sizes)


def parse_domain(box: str, ball: float | None, centre: str | Path | None) -> Domain:
    """The domain that a command line names: ``--box LOW,HIGH``, or ``--ball RADIUS`` with ``--centre FILE.npy``.

    Raises:
        InvalidInput: If it names two, a centre without a ball, or numbers that are none.

    Example:
        >>> parse_domain("-1,1", None, None), parse_domain("", None, None)
        (Box(low=-1.0, high=1.0), WholeSpace())
    """
    if (box and ball is not None) or (centre is not None and ball is None):
        raise InvalidInput("give --box LOW,HIGH, or --ball RADIUS and with it --centre FILE.npy; not both.")
    if box:
        try:
            low, high = map(float, box.split(","))
        except ValueError as error:
            raise InvalidInput(f"--box {box} is not of the form LOW,HIGH, such as -1,1.") from error
        return Box(low, high)
    if ball is None:
        return WholeSpace()
    try:
        at = 0.0 if centre is None else torch.from_numpy(np.load(centre, allow_pickle=False)).double()
    except (OSError, ValueError, TypeError) as error:
        raise InvalidInput(f"--centre {centre} holds no array of numbers, as numpy.save writes it: {error}") from error
    return L2Ball(at, ball)


def picked(graph: Graph, output: int | None, margin: str) -> Graph:
    """The network with the outputs that a command line asks for.

    Args:
        graph: The network.
        output: The number of one output, or none.
        margin: Two numbers, as ``3,5``, for the difference of two outputs, or nothing.

    Raises:
        InvalidInput: If both are asked for, or there are no such outputs.
    """
    if output is not None and margin:
        raise InvalidInput("--output and --margin are two questions; ask one at a time.")
    if output is not None:
        return select(graph, [output])
    if not margin:
        return graph
    rows = [part.strip() for part in margin.split(",")]
    if len(rows) != 2 or not all(row.isdecimal() for row in rows):
        raise InvalidInput(f"--margin {margin!r} does not name two outputs; write 3,5 for output 3 minus output 5.")
    return difference(graph, int(rows[0]), int(rows[1]))


def following(model: nn.Module, whole: Graph, picked: Graph) -> nn.Module:
    """The model with what `picked` put behind its graph put behind it too, as a linear layer."""
    if picked is whole or not isinstance(picked.output, Affine):
        return model
    weight = dense(picked.output.map)
    picks = nn.Linear(*reversed(weight.shape), bias=False, dtype=torch.float64)
    picks.weight.data = weight
    return nn.Sequential(model, picks).eval()


def _import(target: str) -> Any:
    name, colon, attribute = target.partition(":")
    if Path(name).suffix in _EXPORTED:
        raise InvalidInput(
            f"`{target}` is an exported file, which can be certified and shown, but not searched. "
            f"Give the Python code that builds the model, as package.module:factory, and its weights with --state-dict."
        )
    if not (name and colon and attribute):
        raise InvalidInput(f"`{target}` names no model; write package.module:factory, for example mynets.critic:build.")
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(name)
    except Exception as error:
        raise InvalidInput(
            f"importing `{name}` failed with {_where(error)}. "
            f"The current directory and the installed packages are searched; install what is missing."
        ) from error
    try:
        return reduce(getattr, attribute.split("."), module)
    except AttributeError as error:
        raise InvalidInput(f"`{target}` was not found: {error}. Check the name after the colon.") from error


def _call(target: str, factory: Any) -> nn.Module:
    try:
        model = factory()
    except Exception as error:
        raise InvalidInput(
            f"`{target}()` failed with {_where(error)}. "
            f"A factory is called without arguments; wrap it in one that needs none."
        ) from error
    if not isinstance(model, nn.Module):
        raise InvalidInput(f"`{target}()` returned a {type(model).__name__}; it must return a torch.nn.Module.")
    return model


def _fill(model: nn.Module, path: Path) -> None:
    state = _read_state(path)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        keys = sorted(map(str, state))[:8] if isinstance(state, dict) else type(state).__name__
        raise InvalidInput(f"`{path}` holds {keys}, not a state dict of tensors; save model.state_dict() itself.")
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise InvalidInput(f"`{path}` does not fit the model; build the model that was saved. {error}") from error


def _read_state(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError, SafetensorError) as error:
        raise InvalidInput(
            f"cannot read weights from `{path}`: {error}. "
            f"Only tensors are read (weights_only), from torch.save(model.state_dict(), ...) or a .safetensors file."
        ) from error


def _where(error: BaseException) -> str:
    """The exception, and the line of the user's code it came from, if it came from there."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<frozen")]
    own = [frame for frame in frames if frame.filename not in (__file__, importlib.__file__)]
    place = f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {error}{place}"
