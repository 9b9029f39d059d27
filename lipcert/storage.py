"""Networks and certificates as files. Floor 2.

A network file is a safetensors file whose metadata carry the graph document; a certificate is a JSON file beside it.
Writing never leaves a partial file behind: a temporary file in the same folder is synced, then renamed.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from lipcert.certificate import Certificate
from lipcert.errors import InvalidInput, UnsupportedOperation
from lipcert.graph import Activation, Add, Affine, Arrays, Concat, Document, Graph, Input, Node, Opaque
from lipcert.linear import (
    Adjoint,
    Conv,
    Dense,
    Diagonal,
    Factor,
    LinearMap,
    Reshape,
    Selection,
    Separable,
)
from lipcert.norms import Norms

METADATA_KEY = "lipcert"


def save_network(graph: Graph, path: str | Path) -> Path:
    """Write a graph with its weights, exactly, to a safetensors file.

    Returns:
        The path written.

    Example:
        >>> import tempfile
        >>> from lipcert.graph import Affine, Graph, Input
        >>> from lipcert.linear import Dense
        >>> layer = Affine("fc", "x", Dense(torch.eye(2, dtype=torch.float64), (2,)), None)
        >>> graph = Graph((Input("x", (2,)), layer))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save_network(graph, Path(folder) / "net.safetensors")
        ...     graph_from_document(*read_network(path)).digest() == graph.digest()
        True
    """
    document, arrays = graph.document()
    content = save(arrays, metadata={METADATA_KEY: json.dumps(document, allow_nan=False)})
    _write(Path(path), content)
    return Path(path)


def save_certificate(certificate: Certificate, graph: Graph, path: str | Path) -> Path:
    """Write a certificate as JSON and its network beside it (``cert.json`` and ``cert.safetensors``).

    Returns:
        The path of the network file.

    Raises:
        InvalidInput: If the certificate is about another network, or ``path`` does not end in ``.json``.
    """
    path = Path(path)
    if path.suffix != ".json":
        raise InvalidInput(f"a certificate is a .json file (its weights go to .safetensors beside it), got `{path}`.")
    if graph.digest() != certificate.network:
        raise InvalidInput(
            f"the certificate is about the network {certificate.network}, the graph is {graph.digest()}. "
            f"Save it with the graph it was made from."
        )
    weights = save_network(graph, path.with_suffix(".safetensors"))
    _write(path, (certificate.to_json() + "\n").encode())
    return weights


def load_certificate(path: str | Path) -> Certificate:
    """Read a certificate. Its validity is what the file says of itself; only a check makes it more than that.

    Raises:
        InvalidInput: If the file is not a certificate.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"cannot read a certificate from `{path}`: {error}.") from error
    return Certificate.from_json(text)


def read_network(path: str | Path) -> tuple[Document, Arrays]:
    """Read the graph document and the tensors of a network file.

    Raises:
        InvalidInput: If it is not a network file of lipcert.
    """
    try:
        with safe_open(str(path), framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {key: file.get_tensor(key) for key in file.keys()}
        return json.loads(metadata[METADATA_KEY]), arrays
    except KeyError as error:
        raise InvalidInput(f"`{path}` holds tensors but no lipcert graph; write it with save_network.") from error
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise InvalidInput(f"cannot read a network from `{path}`: {error}.") from error


def graph_from_document(document: Document, arrays: Arrays) -> Graph:
    """Rebuild the graph that `Graph.document` described.

    Weights, slopes and gains are exactly those of the document, so operator norms, digests and certificates agree.
    Functions are not stored: replaying an activation or another nonlinear node of the graph raises
    `UnsupportedOperation`.

    Raises:
        InvalidInput: If the document does not describe a graph.
    """
    try:
        return Graph(tuple(_node(entry, arrays) for entry in document["nodes"]))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        raise InvalidInput(f"the document does not describe a graph: {type(error).__name__}: {error}") from error


def _write(path: Path, content: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    """The permissions a new file does not get; mkstemp makes files that only their owner can read."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _node(entry: Mapping[str, Any], arrays: Arrays) -> Node:
    kind, name, shape = entry["kind"], entry["name"], tuple(entry["shape"])
    match kind:
        case "input":
            return Input(name, shape)
        case "affine":
            bias = None if entry["bias"] is None else _tensor(arrays, entry["bias"])
            return Affine(name, entry["source"], _map(entry["map"], arrays), bias)
        case "activation":
            parameters = {key: _number(value, arrays) for key, value in entry["parameters"].items()}
            lower, upper = (torch.as_tensor(_number(end, arrays), dtype=torch.float64) for end in entry["slope"])
            call = _not_stored(name, entry["function"])
            return Activation(name, entry["source"], shape, entry["function"], parameters, (lower, upper), call)
        case "opaque":
            parameters = {key: _number(value, arrays) for key, value in entry["parameters"].items()}
            gains = {Norms.parse(norms): float.fromhex(value) for norms, value in entry["gains"].items()}
            call = _not_stored(name, entry["function"])
            return Opaque(name, entry["source"], shape, entry["function"], parameters, gains, call)
        case "add":
            return Add(name, tuple(entry["sources"]), shape)
        case "concat":
            return Concat(name, tuple(entry["sources"]), entry["dim"], shape)
        case _:
            raise ValueError(f"node `{name}` is of unknown kind {kind!r}")


def _map(entry: Mapping[str, Any], arrays: Arrays) -> LinearMap:
    kind, in_shape = entry["kind"], tuple(entry["in_shape"])
    match kind:
        case "dense":
            return Dense(_tensor(arrays, entry["weight"]), in_shape)
        case "conv":
            return Conv(
                _tensor(arrays, entry["weight"]),
                in_shape,
                tuple(entry["out_shape"][1:]),
                tuple(entry["stride"]),
                tuple((before, after) for before, after in entry["padding"]),
                tuple(entry["dilation"]),
                entry["groups"],
                entry["padding_mode"],
            )
        case "adjoint":
            conv = _map(entry["conv"], arrays)
            if not isinstance(conv, Conv):
                raise ValueError("an adjoint is the adjoint of a convolution")
            return Adjoint(conv)
        case "diagonal":
            return Diagonal(_tensor(arrays, entry["scale"]), in_shape)
        case "selection":
            return Selection(torch.from_numpy(np.array(arrays[entry["index"]])), in_shape)
        case "reshape":
            return Reshape(in_shape, tuple(entry["out_shape"]))
        case "separable":
            return Separable(tuple(_factor(factor, arrays) for factor in entry["factors"]), in_shape)
        case _:
            raise ValueError(f"a linear map of unknown kind {kind!r}")


def _factor(entry: Mapping[str, Any] | None, arrays: Arrays) -> Factor | None:
    if entry is None:
        return None
    return Factor(torch.from_numpy(np.array(arrays[entry["numerator"]])), entry["denominator"])


def _tensor(arrays: Arrays, key: str) -> Tensor:
    return torch.from_numpy(np.array(arrays[key], dtype=np.float64))


def _number(value: Any, arrays: Arrays) -> Any:
    """The inverse of how a graph writes numbers: hexadecimal text, a tensor by key, or a JSON value as it is."""
    if isinstance(value, str):
        try:
            number = float.fromhex(value)
        except ValueError:
            return value
        return number if number.hex() == value else value
    return _tensor(arrays, value["tensor"]) if isinstance(value, dict) else value


def _not_stored(name: str, function: str) -> Callable[[Tensor], Tensor]:
    def call(x: Tensor) -> Tensor:
        raise UnsupportedOperation(
            f"`{name}` ({function}) was read from a file, which holds slopes and gains but no code; "
            f"replay the graph traced from the model instead.",
            path=name,
        )

    return call
