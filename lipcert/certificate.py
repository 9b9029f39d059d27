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
from lipcert.norms import L1, L2, LINF, SUPPORTED, Norms

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
class Row:
    """What proves a bound of one entry of a part's output, or from one entry of its input.

    Attributes:
        multipliers: As for a `Block`.
        weights: In linf to linf, for every entry of the part's input a number ``tau >= 0``: the constraint holds with
            ``sum tau_j dx_j^2`` in place of ``rho |dx|^2``, and their sum is at most ``value**2``. In l1 to l1, for
            every entry of its output a number ``r > 0``: the constraint holds with ``sum (r_i dy_i)^2`` in place of
            ``|dy|^2``, and the sum of all ``r**-2`` is at most 1.
    """

    multipliers: Mapping[str, tuple[float, ...]]
    weights: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class Block:
    """A bound ``|target(x) - target(y)|_q <= value |source(x) - source(y)|_p`` of a part of the graph, mostly in l2.

    Attributes:
        source: The node where the part begins; everything ``target`` depends on passes through it.
        target: The node where it ends.
        value: The bound.
        multipliers: For every activation in the part, one number >= 0 per neuron: the incremental quadratic
            constraint holds with them at ``rho = value**2``.
        torus: Of a convolutional part that is embedded in a torus, its coarse positions per dimension. The multipliers
            are then one per channel and phase, and the constraint holds at every frequency.
        norms: Norms at both ends: l2 to l2, or to linf.
        rows: To linf, one for every entry of the target, and from l1 for every pair of an entry of the target and one
            of the source, which moves alone; in row-major order. The block itself has no multipliers then.
    """

    source: str
    target: str
    value: float
    multipliers: Mapping[str, tuple[float, ...]]
    torus: tuple[int, ...] = ()
    norms: Norms = L2
    rows: tuple[Row, ...] = ()


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

    @property
    def everywhere(self) -> bool:
        """Whether it is about all inputs."""
        return isinstance(self.domain, WholeSpace)

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
        if not self.everywhere:
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


def require_everywhere(certificate: Certificate, purpose: str) -> None:
    """Refuse a certificate on a domain where a bound for all inputs is needed.

    Raises:
        InvalidInput: If it has a domain.
    """
    if not certificate.everywhere:
        raise InvalidInput(
            f"{purpose} needs a bound for all inputs, this certificate holds {certificate.domain} only. Certify "
            f"without a domain."
        )


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
    return Multipliers(tuple(map(_block, document["blocks"])), gains)


def _block(document: Any) -> Block:
    ends = {"source", "target", "value"}
    if set(document) == {*ends, "norms", "rows"}:
        norms, rows = Norms.parse(document["norms"]), tuple(map(_row, document["rows"]))
        numbers, torus = {}, ()
        if norms not in SUPPORTED or norms == L2 or any(bool(row.weights) != (norms in (LINF, L1)) for row in rows):
            raise ValueError(f"rows in {norms}; they lead to linf, or from l1 to l1, and have weights in one norm only")
    elif set(document) - {"torus"} == {*ends, "multipliers"}:
        norms, rows, numbers = L2, (), _named(document["multipliers"])
        torus = _torus(document["torus"]) if "torus" in document else ()
    else:
        raise ValueError(
            "a block has exactly the fields source, target, value and multipliers, or norms and rows in their place, "
            "and torus if it has one"
        )
    ends = str(document["source"]), str(document["target"])
    return Block(*ends, _finite(document["value"]), numbers, torus, norms, rows)


def _row(document: Any) -> Row:
    if set(document) != {"multipliers", "weights"}:
        raise ValueError("a row has exactly the fields multipliers and weights")
    return Row(_named(document["multipliers"]), tuple(map(_finite, document["weights"])))


def _named(document: Any) -> dict[str, tuple[float, ...]]:
    return {str(name): tuple(map(_finite, numbers)) for name, numbers in document.items()}


def _block_document(block: Block) -> dict[str, Any]:
    found: dict[str, Any] = {"source": block.source, "target": block.target, "value": block.value.hex()}
    if block.rows:
        return {**found, "norms": str(block.norms), "rows": [_row_document(row) for row in block.rows]}
    found["multipliers"] = _listed(block.multipliers)
    return {**found, "torus": list(block.torus)} if block.torus else found


def _row_document(row: Row) -> dict[str, Any]:
    return {"multipliers": _listed(row.multipliers), "weights": [value.hex() for value in row.weights]}


def _listed(multipliers: Mapping[str, tuple[float, ...]]) -> dict[str, list[str]]:
    return {name: [value.hex() for value in values] for name, values in multipliers.items()}


def _torus(sizes: Any) -> tuple[int, ...]:
    if not sizes or any(type(size) is not int or size < 1 for size in sizes):
        raise ValueError(f"a torus of {sizes} positions")
    return tuple(sizes)


def _finite(text: str) -> float:
    value = float.fromhex(text)
    if not (0.0 <= value < math.inf):
        raise ValueError(f"gain {text!r} is not a finite number >= 0")
    return value
