"""The values that come out: an upper bound with its evidence, and a lower bound with its pair. Floor 0.

A `Certificate` and a `Witness` are different types on purpose: a function that needs an upper bound cannot be
handed a lower one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from lipcert.domain import Domain, WholeSpace, from_document, to_document
from lipcert.errors import InvalidInput
from lipcert.norms import Norms

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "lipcert-certificate-1"


class Validity(Enum):
    """How far an upper bound may be trusted."""

    RIGOROUS = "a theorem about the stored weights, rounding included"
    NUMERICAL = "a theorem evaluated in floating point; may be low by rounding or solver tolerance"
    ESTIMATE = "may be below the true constant; never use as a guarantee"


@dataclass(frozen=True)
class Gain:
    """A bound ``value`` on the operator norm of consecutive affine nodes ``path`` (first applied first)."""

    path: tuple[str, ...]
    norms: Norms
    value: float


@dataclass(frozen=True)
class Gains:
    """Evidence of a layerwise bound: operator-norm bounds of affine nodes, composed along the graph.

    The checker proves every gain from the weights, derives the factors of all other nodes itself, and
    composes: sums at adds, q-norms at concatenations, the smallest of the routes it is given elsewhere.
    """

    items: tuple[Gain, ...]


@dataclass(frozen=True, eq=False)
class Block:
    """A bound ``|target(x) - target(y)|_2 <= value |source(x) - source(y)|_2`` of a part of the graph.

    Attributes:
        source: The node where the part begins; everything ``target`` depends on passes through it.
        target: The node where it ends.
        value: The bound.
        multipliers: For every activation in the part, one number >= 0 per neuron: the incremental quadratic
            constraint holds with them at ``rho = value**2``.
        torus: Of a convolutional part that is embedded in a torus, its coarse positions per dimension. The multipliers
            are then one per channel and phase, and the constraint holds at every frequency.
    """

    source: str
    target: str
    value: float
    multipliers: Mapping[str, tuple[float, ...]]
    torus: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Multipliers:
    """Evidence of a semidefinite bound: parts with their multipliers, and gains of what lies between the parts."""

    blocks: tuple[Block, ...]
    items: tuple[Gain, ...] = ()


Evidence = Gains | Multipliers

Ends = tuple[tuple[float, ...], tuple[float, ...]]
"""The lower and the upper ends of ranges, one per entry."""


@dataclass(frozen=True)
class Certificate:
    """An upper bound: for all x, y of the domain, ``|f(x) - f(y)|_q <= bound * |x - y|_p``.

    f is the real-valued function of the captured graph with the stored weights read as exact real numbers.

    Attributes:
        bound: The bound, rounded up.
        norms: The norms ``p`` (input) and ``q`` (output).
        validity: How far the bound may be trusted.
        method: The certifier that found it, as it prints.
        network: Digest of graph and weights (see `lipcert.graph.Graph.digest`).
        evidence: What the checker needs to prove the bound again.
        domain: Where the inputs are; convex.
        ranges: On a domain, what nonlinear nodes read there, by their names. The evidence is then about the network
            that is left on these ranges (see `lipcert.regions`).
    """

    bound: float
    norms: Norms
    validity: Validity
    method: str
    network: str
    evidence: Evidence
    domain: Domain = WholeSpace()  # noqa: RUF009  (a frozen value)
    ranges: Mapping[str, Ends] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a bound that is not a non-negative number."""
        if not (self.bound >= 0.0):
            raise InvalidInput(f"a bound must be a number >= 0, got {self.bound!r}.")

    def to_json(self) -> str:
        """Write the certificate as JSON; floats are hexadecimal, so nothing is rounded on the way."""
        items = [
            {"path": list(gain.path), "norms": str(gain.norms), "value": gain.value.hex()}
            for gain in self.evidence.items
        ]
        document: dict[str, Any] = {
            "format": FORMAT,
            "network": self.network,
            "norms": str(self.norms),
            "bound": self.bound.hex(),
            "validity": self.validity.name,
            "method": self.method,
            "evidence": {"kind": "gains", "items": items},
        }
        if isinstance(self.evidence, Multipliers):
            blocks = [_block_document(block) for block in self.evidence.blocks]
            document["evidence"] = {"kind": "multipliers", "items": items, "blocks": blocks}
        if not isinstance(self.domain, WholeSpace):
            ranges = {name: [[x.hex() for x in end] for end in ends] for name, ends in self.ranges.items()}
            document |= {"domain": to_document(self.domain), "ranges": ranges}
        return json.dumps(document, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Certificate:
        """Read what `to_json` wrote.

        The validity read back is what the file says of itself; only `lipcert.check` makes it more than that.

        Raises:
            InvalidInput: If the text is not a certificate of this format, field for field.
        """
        try:
            return _from_document(json.loads(text))
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError) as error:
            raise InvalidInput(f"not a {FORMAT} document: {error}") from error


@dataclass(frozen=True)
class Witness:
    """A lower bound: two inputs with ``|f(x) - f(y)|_q / |x - y|_p >= ratio``.

    Attributes:
        ratio: The difference quotient, lowered by an allowance for rounding.
        norms: The norms ``p`` (input) and ``q`` (output).
        x: First input, without batch dimension, float64.
        y: Second input.
    """

    ratio: float
    norms: Norms
    x: Tensor
    y: Tensor


def _from_document(document: Any) -> Certificate:
    fields = {"format", "network", "norms", "bound", "validity", "method", "evidence"}
    local = {"domain", "ranges"} & set(document)
    fields |= {"domain", "ranges"} if local else set()
    if set(document) != fields or document["format"] != FORMAT:
        raise ValueError(f"fields {sorted(document)} with format {document.get('format')!r}; expected {sorted(fields)}")
    evidence = _evidence(document["evidence"])
    return Certificate(
        bound=float.fromhex(document["bound"]),
        norms=Norms.parse(document["norms"]),
        validity=Validity[document["validity"]],
        method=str(document["method"]),
        network=str(document["network"]),
        evidence=evidence,
        domain=from_document(document["domain"]) if local else WholeSpace(),
        ranges={str(name): _ends(ends) for name, ends in document["ranges"].items()} if local else {},
    )


def _ends(ends: Any) -> Ends:
    low, high = (tuple(map(float.fromhex, end)) for end in ends)
    if len(low) != len(high) or not all(-math.inf < a <= b < math.inf for a, b in zip(low, high, strict=True)):
        raise ValueError("a range has finite ends, the lower ones not above the upper ones")
    return low, high


def _evidence(document: Any) -> Evidence:
    fields = {"gains": {"kind", "items"}, "multipliers": {"kind", "items", "blocks"}}.get(document.get("kind"))
    if fields is None or set(document) != fields:
        raise ValueError(f"unknown evidence {document.get('kind')!r}, or its fields are {sorted(document)}")
    if any(set(item) != {"path", "norms", "value"} for item in document["items"]):
        raise ValueError("a gain has exactly the fields path, norms, value")
    gains = tuple(
        Gain(tuple(str(name) for name in item["path"]), Norms.parse(item["norms"]), _finite(item["value"]))
        for item in document["items"]
    )
    if document["kind"] == "gains":
        return Gains(gains)
    if any(set(block) - {"torus"} != {"source", "target", "value", "multipliers"} for block in document["blocks"]):
        raise ValueError("a block has exactly the fields source, target, value, multipliers, and torus if it has one")
    blocks = tuple(
        Block(
            str(block["source"]),
            str(block["target"]),
            _finite(block["value"]),
            {str(name): tuple(map(_finite, numbers)) for name, numbers in block["multipliers"].items()},
            _torus(block["torus"]) if "torus" in block else (),
        )
        for block in document["blocks"]
    )
    return Multipliers(blocks, gains)


def _block_document(block: Block) -> dict[str, Any]:
    numbers = {name: [value.hex() for value in values] for name, values in block.multipliers.items()}
    found = {"source": block.source, "target": block.target, "value": block.value.hex(), "multipliers": numbers}
    return {**found, "torus": list(block.torus)} if block.torus else found


def _torus(sizes: Any) -> tuple[int, ...]:
    if not sizes or any(type(size) is not int or size < 1 for size in sizes):
        raise ValueError(f"a torus of {sizes} positions")
    return tuple(sizes)


def _finite(text: str) -> float:
    value = float.fromhex(text)
    if not (0.0 <= value < math.inf):
        raise ValueError(f"gain {text!r} is not a finite number >= 0")
    return value
