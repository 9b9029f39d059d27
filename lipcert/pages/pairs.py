"""A pair of inputs beside a certificate: read from a file, and its difference quotient without rounding. Floor 5."""

from __future__ import annotations

import math
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lipcert.enclosure import Stretch, distance, stretch
from lipcert.errors import BudgetExceeded, InvalidInput, UnsupportedOperation
from lipcert.graph import Graph
from lipcert.norms import Norms


@dataclass(frozen=True, eq=False)
class Measured:
    """Two inputs and how much they are stretched.

    Attributes:
        x: First input, without batch dimension, float64.
        y: Second input.
        apart: ``|x - y|_p``, rounded.
        stretched: The quotient, as a theorem; ``None`` if exact arithmetic does not reach it.
        refused: Why not, otherwise empty.
    """

    x: Tensor
    y: Tensor
    apart: float
    stretched: Stretch | None
    refused: str = ""


def read_pair(path: Path) -> tuple[Tensor, Tensor]:
    """Two inputs, `x` and `y`, from a ``.safetensors`` or ``.npz`` file, as float64.

    Raises:
        InvalidInput: If the file is no such file, or holds no two tensors of real numbers of one shape.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(Path(folder) / "pair.npz", x=np.zeros(2), y=np.ones(2))
        ...     read_pair(Path(folder) / "pair.npz")[1].tolist()
        [1.0, 1.0]
    """
    try:
        arrays = _npz(path) if path.suffix == ".npz" else _safetensors(path)
    except KeyError as error:
        raise InvalidInput(f"`{path}` has no {error}; a pair is a file with the tensors x and y.") from error
    except (OSError, SafetensorError, ValueError, EOFError, zipfile.BadZipFile, TypeError) as error:
        raise InvalidInput(f"cannot read a pair from `{path}` (.safetensors or .npz): {error}.") from error
    x, y = arrays
    if x.dtype.kind not in "fiu" or y.dtype.kind not in "fiu" or x.shape != y.shape:
        raise InvalidInput(
            f"`{path}` holds x {x.dtype}{list(x.shape)} and y {y.dtype}{list(y.shape)}; a pair is two tensors of real "
            f"numbers of one shape, that of the network's input without batch."
        )
    return torch.from_numpy(x.astype(np.float64)), torch.from_numpy(y.astype(np.float64))


def measured(graph: Graph, x: Tensor, y: Tensor, norms: Norms) -> Measured:
    """The difference quotient of two inputs, exactly or as an enclosure, where exact arithmetic reaches it.

    Raises:
        InvalidInput: If the inputs are equal, not finite, or not of the network's shape.
    """
    if not bool(torch.isfinite(x).all() and torch.isfinite(y).all()):
        raise InvalidInput("a pair with NaN or infinite entries has no difference quotient; give finite inputs.")
    try:
        found, refused = stretch(graph, x, y, norms), ""
    except (UnsupportedOperation, BudgetExceeded) as reason:
        found, refused = None, str(reason)
    return Measured(x, y, math.sqrt(distance(x, y, norms.p)), found, refused)


def _npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return file["x"], file["y"]


def _safetensors(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with safe_open(str(path), framework="pt") as file:
        found = {key: file.get_tensor(key) for key in file.keys()}
    return _array(found["x"]), _array(found["y"])


def _array(tensor: Tensor) -> np.ndarray:
    # numpy has no bfloat16; float64 holds every float there is here.
    return tensor.double().numpy() if tensor.is_floating_point() else tensor.numpy()
