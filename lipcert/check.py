"""Prove a certificate again, in exact arithmetic, from the network's file. Standard library and numpy, nothing else.

    python check.py certificate.json weights.safetensors      exit status: 0 ACCEPT, 1 REJECT, 2 malformed

A certificate claims ``|f(x) - f(y)|_q <= bound |x - y|_p`` for the real-valued function f of the stored weights. This
file reads the network and the claim, proves every gain (an operator norm of consecutive affine nodes) from the
weights, holds the factors of all other nodes against the tables below, and composes them along the graph. Every
decision compares integers or fractions. Floating point appears as a hint that may be wrong, and in products of integer
matrices whose partial sums stay below 2^53 and are therefore exact in any order. Nothing is shared with the code that
found the bound: maps are spelled out by index, no convolution is ever called.

What is believed: Python's integers, float64 sums of integers below 2^53, SHA-256, and this file.
"""

import functools
import hashlib
import itertools
import json
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

PAIRS = ("l2->l2", "l1->l1", "linf->linf", "l1->linf", "l2->linf")
HEADER_LIMIT, TEXT_LIMIT, FILE_LIMIT = 1 << 26, 1 << 26, 1 << 33  # bytes
ELEMENT_LIMIT = 1 << 28  # entries of one tensor or shape
INDEX_LIMIT, PATTERN_LIMIT = 1 << 22, 1 << 26  # positions x taps of one dimension; numbers added up in a convolution
SIDE_LIMIT, ENTRY_LIMIT, WORK_LIMIT = 2048, 1 << 24, 1 << 39  # smaller side; entries; multiply-adds of one proof
BITS = 46  # significant bits kept of a matrix whose 2-norm is proven; what is cut off is bounded exactly


class Reject(Exception):
    """The claim is not proven; the reason names the node and both sides of the comparison."""


class TooLarge(Reject):
    """The claim may well be true, but proving it in exact arithmetic would take too long."""


class Malformed(Exception):
    """Not a certificate, or not a network file, field for field."""


@dataclass(frozen=True)
class Accept:
    """The claim is proven, given the ``assumptions``: the nodes whose slope or gain is a user's word."""

    bound: float
    norms: str
    assumptions: tuple[str, ...]
    domain: str = ""


@dataclass(frozen=True, eq=False)
class Map:
    """A linear map with exact numbers ``unit * tensor``.

    Attributes:
        kind: dense, conv, adjoint, diagonal, selection, reshape or separable.
        in_shape: Input shape.
        out_shape: Output shape.
        tensor: Integers: weight, scale, or index of a selection.
        unit: What one of these integers stands for.
        tables: Of a convolution, per dimension: ``[i, j]`` is the input that output i reads through tap j, or -1.
        groups: Of a convolution.
        parts: The convolution of an adjoint; the factors of a separable map, one per dimension.
        steps: Of a convolution that pads by zeros or in circles, per dimension: stride, padding before, dilation.
        circular: Whether it pads in circles.
    """

    kind: str
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    tensor: Any = None
    unit: Fraction = Fraction(1)
    tables: tuple[np.ndarray, ...] = ()
    groups: int = 1
    parts: tuple["Map", ...] = ()
    steps: tuple[tuple[int, int, int], ...] = ()
    circular: bool = False


@dataclass(frozen=True, eq=False)
class Node:
    """A node and what it does to distances: a map (affine), slopes (activation), gains by pair (opaque).

    A node that sorts or reflects groups of entries has ``members`` in each, along ``dim``, side by side if
    ``consecutive``; the ``angles`` are those of reflections.
    """

    kind: str
    name: str
    shape: tuple[int, ...]
    sources: tuple[str, ...] = ()
    map: Map | None = None
    slope: Fraction | None = None
    ends: tuple[np.ndarray, ...] = ()
    gains: Mapping[str, Fraction] = field(default_factory=dict)
    declared: str = ""
    dim: int = 0
    members: int = 0
    consecutive: bool = False
    angles: tuple[Fraction, ...] = ()


Network = dict[str, Node]
Proven = list[tuple[tuple[str, ...], str, Fraction]]
Parts = Sequence[tuple[str, str, str, Fraction]]
Prover = Callable[[Network, tuple[str, ...], str, Fraction], Fraction]
Place = tuple[int, ...]
Listed = dict[str, list[Fraction]]
Row = tuple[str, int, list[Fraction]] | None  # of a part that is not in l2: the pair, which one, weights of the input
PartProver = Callable[[Network, str, str, Fraction, Listed, Place, Row], Fraction]


# ---------------------------------------------------------------------------------------------- the verdict


def verify(
    text: str, document: Any, arrays: Mapping[str, np.ndarray], prove: Any = None, prove_multipliers: Any = None
) -> Accept:
    """Prove a certificate (JSON) for a network, whose document names its tensors in ``arrays``, or say why not.

    ``prove`` proves one gain and returns the value proven, ``prove_multipliers`` one part; exactly unless given.

    Raises:
        Reject: If the claim is not proven.
        Malformed: If certificate or network is not what the format says; anything unforeseen is reported as this.
    """

    def run() -> Accept:
        claim = read_claim(text)
        network = identified(claim, document, dict(arrays))
        return settle(claim, network, prove or prove_gain, prove_multipliers or prove_part)

    return guarded(run)


def verify_files(certificate: str, weights: str) -> Accept:
    """`verify` on files; one that cannot be read or is not what the format says is `Malformed`."""

    def run() -> Accept:
        if Path(certificate).stat().st_size > TEXT_LIMIT:
            raise Malformed(f"the certificate is over {TEXT_LIMIT} bytes")
        return verify(Path(certificate).read_bytes().decode("utf-8"), *read_safetensors(weights))

    return guarded(run)


def main(arguments: Sequence[str], proven: "Callable[[str, str], Accept] | None" = None) -> int:
    """Check the two files named, by `verify_files` unless given; write the verdict and return the exit status."""
    if len(arguments) != 2:
        sys.stdout.write(f"usage: {Path(sys.argv[0]).name} certificate.json weights.safetensors\n")
        return 2
    try:
        verdict = (proven or verify_files)(*arguments)
    except Reject as reason:
        sys.stdout.write(f"REJECT: {reason}\n")
        return 1
    except Malformed as reason:
        sys.stdout.write(f"MALFORMED: {reason}\n")
        return 2
    given = "".join(f"\n  assuming {assumption}" for assumption in verdict.assumptions)
    where = verdict.norms + (verdict.domain and f" on {verdict.domain}")
    sys.stdout.write(f"ACCEPT: Lip(f; {where}) <= {verdict.bound!r}{given}\n")
    return 0


def guarded(run: Callable[[], Accept]) -> Accept:
    """What it returns; whatever goes wrong is a refusal."""
    try:
        return run()
    except (Reject, Malformed):
        raise
    except Exception as error:  # nothing else may escape: a number we cannot vouch for is worse than a refusal
        raise Malformed(f"{type(error).__name__}: {str(error)[:200]}") from error


def read_claim(text: str, **local: type) -> dict[str, Any]:
    """A certificate, field for field; ``local`` are the fields that one about a domain has besides."""
    if not math.ulp(0.0) * 1.0 > 0.0:
        raise Reject("this processor flushes subnormal numbers to zero; run the check in a process that does not.")
    fields = {"format": str, "network": str, "norms": str, "bound": str, "validity": str, "method": str}
    found = parse(text)
    if type(found) is dict and "domain" in found and not local:
        raise Malformed("this certificate is about a domain: check it with check_domain.py, beside this file")
    claim = record(found, "the certificate", **fields, evidence=dict, **local)
    with_parts = {"blocks": list} if "blocks" in claim["evidence"] else {}
    evidence = record(claim["evidence"], "the evidence", kind=str, items=list, **with_parts)
    kind = "multipliers" if with_parts else "gains"
    if claim["format"] != "lipcert-certificate-1" or evidence["kind"] != kind or claim["norms"] not in PAIRS:
        raise Malformed(f"format {claim['format']!r}, evidence {evidence['kind']!r}, norms {claim['norms']!r}")
    if claim["validity"] not in ("RIGOROUS", "NUMERICAL", "ESTIMATE"):
        raise Malformed(f"validity {claim['validity']!r}")
    return {**claim, "bound": number(claim["bound"], "the bound")}


def identified(claim: dict[str, Any], document: Any, arrays: dict[str, np.ndarray]) -> Network:
    """The network, which is the one that the claim is about."""
    document = parse(json.dumps(document, allow_nan=False))
    found = digest(document, arrays)
    if found != claim["network"]:
        raise Reject(f"the certificate is about the network {claim['network'][:100]}, this one is {found}.")
    return read_network(document, arrays)


def settle(claim: Any, network: Network, prove: Prover, prove_multipliers: PartProver, domain: str = "") -> Accept:
    """Prove the evidence of a claim about a network, and compare what follows with the bound."""
    evidence, bound = claim["evidence"], claim["bound"]
    proven = [prove_item(item, network, prove) for item in evidence["items"]]
    parts = [prove_block(block, network, prove_multipliers) for block in evidence.get("blocks", [])]
    total = compose(network, claim["norms"], proven, parts)
    if not total <= bound:
        shown = f"bound {float(bound)!r} ({claim['norms']}) is below {_show(total)}"
        raise Reject(f"{shown}, which the {evidence['kind']} prove.")
    declared = tuple(node.declared for node in network.values() if node.declared)
    return Accept(float(bound), claim["norms"], declared, domain)


def prove_item(item: Any, network: Network, prove: Prover) -> tuple[tuple[str, ...], str, Fraction]:
    """Prove one gain of the evidence: a chain of affine nodes, a pair of norms, a value."""
    gain = record(item, "a gain", path=list, norms=str, value=str)
    path = gain["path"]
    if not path or any(type(name) is not str or name not in network for name in path) or gain["norms"] not in PAIRS:
        raise Malformed(f"a gain of {path!r} in {gain['norms']!r}: no such nodes or norms")
    follows = all(network[after].sources == (before,) for before, after in itertools.pairwise(path))
    if not follows or any(network[name].kind != "affine" for name in path):
        raise Malformed(f"the gain's path {path} is not a chain of affine nodes")
    value = number(gain["value"], f"the gain of {path}")
    if value < 0:
        raise Malformed(f"the gain of {path} is negative")
    return tuple(path), gain["norms"], prove(network, tuple(path), gain["norms"], value)


def prove_block(item: Any, network: Network, prove: PartProver) -> tuple[str, str, str, Fraction]:
    """Prove one part of the evidence: from a node to another, a pair, a value, and the multipliers of what is between.

    In l2 the output is bounded at once. To linf every entry is, and from l1 for every entry of the input, moved alone.
    """
    on_torus = {"torus": list} if type(item) is dict and "torus" in item else {}
    in_rows = {"norms": str, "rows": list} if type(item) is dict and "rows" in item else {"multipliers": dict}
    block = record(item, "a part", source=str, target=str, value=str, **in_rows, **on_torus)
    source, target = block["source"], block["target"]
    if source not in network or target not in network or source == target:
        raise Malformed(f"a part from {source[:100]!r} to {target[:100]!r}: no such nodes")
    value = number(block["value"], f"the bound of the part up to {target}")
    norms, rows = block.get("norms", "l2->l2"), block.get("rows", [{**block, "weights": []}])
    inputs, outputs = (math.prod(network[name].shape) for name in (source, target))
    count = {"l1->linf": outputs * inputs, "l1->l1": inputs}.get(norms, outputs)
    if "rows" in block and (norms not in PAIRS[1:] or len(rows) != count or on_torus):
        raise Malformed(f"the part from {source} to {target}: {len(rows)} rows in {norms[:20]}, not {count}")
    torus = naturals(block["torus"], "torus", 1) if on_torus else ()
    if value < 0 or (on_torus and not torus):
        raise Malformed(f"the part from {source} to {target}: a bound below 0, or a torus without dimensions")
    for k, entry in enumerate(rows):
        own = record(entry, f"row {k} of a part", multipliers=dict, weights=list) if "rows" in block else entry
        listed = {**own["multipliers"], "": own["weights"]}
        if "" in own["multipliers"] or any(type(each) is not list for each in listed.values()):
            raise Malformed(f"the part from {source} to {target}: multipliers or weights that are no lists")
        numbers = {name: [number(text, f"number of {name[:100]}") for text in each] for name, each in listed.items()}
        row = norms, k, numbers.pop("")
        prove(network, source, target, value, numbers, torus, row if "rows" in block else None)
    return source, target, norms, value


def compose(network: Network, norms: str, proven: Proven, parts: Parts = ()) -> Fraction:
    """Bound the map from the input to the output by the gains and the parts proven.

    For every node r-norm bounds ``|node(x) - node(y)|_r <= L_r |x - y|_p`` are kept for r = p and r = q.
    Since ``|v|_q <= |v|_p`` in every supported pair, L_q is never taken above L_p.

    Raises:
        Reject: If no chain of proven gains reaches the output.
    """
    p, q = norms.split("->")
    reach: dict[str, dict[str, Fraction]] = {}
    here: dict[str, Fraction] = {}
    for node in network.values():
        before = [reach[source] for source in node.sources]
        here = {}
        for r in (p, q):
            routes = list(_routes(node, r, before, reach, network, proven))
            for source, target, pair, value in parts:
                s, end = pair.split("->")
                if (target, end) == (node.name, r) and s in reach[source]:
                    routes.append(value * reach[source][s])
            if routes:
                here[r] = min(routes)
        if p in here:
            here[q] = min(here[p], here.get(q, here[p]))
        reach[node.name] = here
    if q not in here:
        name = next(name for name, found in reach.items() if not found.keys() & {p, q})
        raise Reject(f"`{name}` ({network[name].kind}) has no proven gain that leads from {p} towards {q}.")
    return here[q]


def _routes(
    node: Node, r: str, before: list[dict[str, Fraction]], reach: Any, network: Network, proven: Proven
) -> Iterator[Fraction]:
    """Every bound of ``L_r`` that the node's sources (or the sources of a path ending here) allow."""
    if node.kind == "input":
        yield Fraction(1)
    elif node.kind == "affine":
        for path, norms, value in proven:
            s, end = norms.split("->")
            if path[-1] == node.name and end == r:
                start = reach[network[path[0]].sources[0]]
                if s in start:
                    yield value * start[s]
    elif node.kind == "activation":
        if r in before[0] and node.slope is not None:
            yield node.slope * before[0][r]
    elif node.kind == "opaque":
        for norms, value in node.gains.items():
            s, end = norms.split("->")
            if end == r and s in before[0]:
                yield value * before[0][s]
    elif all(r in bounds for bounds in before):
        parts = [bounds[r] for bounds in before]
        if node.kind == "add" or r == "l1":
            yield sum(parts, Fraction(0))
        else:  # concatenation: the r-norm of the parts
            yield max(parts) if r == "linf" else sqrt_up(sum((part * part for part in parts), Fraction(0)))


def sqrt_up(value: Fraction) -> Fraction:
    """A rational upper bound of the square root: exact for squares, else at most one part in 2^127 above."""
    up, down = value.numerator, value.denominator
    if math.isqrt(up) ** 2 == up and math.isqrt(down) ** 2 == down:
        return Fraction(math.isqrt(up), math.isqrt(down))
    shift = max(0, 256 + down.bit_length() - up.bit_length()) // 2
    return Fraction(math.isqrt((up << 2 * shift) // down) + 1, 1 << shift)


# ------------------------------------------------------------------------------- proving a gain from the weights

HOW = {  # a norm pair as a search over rows or columns of the matrix for the largest of a squared measure
    "l1->l1": ("columns", lambda v: v.sum(1) ** 2),
    "linf->linf": ("rows", lambda v: v.sum(1) ** 2),
    "l1->linf": ("rows", lambda v: v.max(1) ** 2),
    "l2->linf": ("rows", lambda v: (v * v).sum(1)),
    "l2->l2": ("columns", lambda v: (v * v).sum(1)),  # only for maps with at most one entry in each row
}


def prove_gain(network: Network, path: tuple[str, ...], norms: str, value: Fraction) -> Fraction:
    """Prove ``|A_k ... A_1| <= value`` for the affine nodes of a path, exactly.

    Raises:
        Reject: If ``value`` is below the norm, or so little above it that no proof is found.
        TooLarge: If the matrices are too large.
    """
    where = f"gain of {' > '.join(path)} ({norms})"
    try:
        maps = simplified([node.map for node in map(network.__getitem__, path) if node.map is not None])
        single = maps[0] if len(maps) == 1 else Map("dense", maps[0].in_shape, maps[-1].out_shape, *product(maps))
        if norms == "l2->l2" and single.kind not in ("diagonal", "selection", "reshape"):
            holds, about = prove_norm2(single, value)
        else:
            squared = measure(single, norms)
            holds, about = squared <= value * value, sqrt_up(squared)
    except TooLarge as reason:
        raise TooLarge(
            f"{where}: too large for exact arithmetic ({reason}); use the outward-rounded float64 check "
            f"(`lipcert check --float64`), which trusts the kernel."
        ) from reason
    if not holds:
        raise Reject(f"{where}: {_show(value)} is not an upper bound: the norm is about {_show(about)}.")
    return value


def simplified(maps: list[Map]) -> list[Map]:
    """The same composition in fewer maps: no reshapes, dense maps multiplied, channel scales put into weights."""
    found: list[Map] = []
    for after in [linear for linear in maps if linear.kind != "reshape"] or maps[:1]:
        before = found[-1] if found else after
        both = (before.kind, after.kind)
        if found and both == ("dense", "dense") and before.out_shape == after.in_shape:
            X = exact_product(after.tensor, before.tensor)
            found[-1] = Map("dense", before.in_shape, after.out_shape, X, before.unit * after.unit)
        elif found and both == ("conv", "diagonal") and _per_channel(after, before.out_shape):
            X = after.tensor.astype(object).reshape(-1, *[1] * (before.tensor.ndim - 1)) * before.tensor.astype(object)
            unit, tables = before.unit * after.unit, before.tables
            found[-1] = Map("conv", before.in_shape, before.out_shape, X, unit, tables, before.groups)
        else:
            found.append(after)
    return found


def _per_channel(scale: Map, shape: tuple[int, ...]) -> bool:
    per_channel = scale.in_shape == shape and scale.tensor.shape == (shape[0], *[1] * (len(shape) - 1))
    return per_channel or scale.tensor.size == 1


def measure(linear: Map, norms: str) -> Fraction:
    """The square of an operator norm that is a maximum over rows or columns (see ``HOW``)."""
    if linear.kind == "separable":  # these norms of a Kronecker product are the products over its factors
        return math.prod((measure(part, norms) for part in linear.parts), start=Fraction(1))
    side, how = HOW[norms]
    if linear.kind == "adjoint":
        linear, side = linear.parts[0], "rows" if side == "columns" else "columns"
    largest = 0
    for v in vectors(linear, side):
        step = max(1, (1 << 20) // max(1, v.shape[1]))  # rows at a time: Python integers take much memory
        for start in range(0, len(v) if v.size else 0, step):
            largest = max(largest, how(abs(v[start : start + step]).astype(object)).max())
    return Fraction(int(largest)) * linear.unit**2


def vectors(linear: Map, side: str) -> Iterator[np.ndarray]:
    """Integer matrices whose rows are the rows (or columns) of the map without zeros: enough for every maximum."""
    if linear.kind == "dense":
        yield linear.tensor if side == "rows" else linear.tensor.T
    elif linear.kind == "diagonal":
        yield linear.tensor.reshape(-1, 1)
    elif linear.kind == "reshape":
        yield np.ones((1, 1), dtype=np.int64)
    elif linear.kind == "selection":
        times = int(np.bincount(linear.tensor[linear.tensor >= 0], minlength=1).max())
        yield np.ones((1, times if side == "columns" else min(times, 1)), dtype=np.int64)
    else:
        weight = linear.tensor
        if side == "columns":  # (in channels, out channels of the group, taps)
            weight = weight.reshape(linear.groups, -1, *weight.shape[1:])
            weight = np.swapaxes(weight, 1, 2).reshape(-1, weight.shape[1], *weight.shape[3:])
        choices = [patterns(table, side) for table in linear.tables]
        if math.prod(map(len, choices)) * weight.size > PATTERN_LIMIT:
            raise TooLarge(f"{[len(choice) for choice in choices]} kinds of {side} of {weight.size} weights")
        for choice in itertools.product(*choices):
            entries = weight
            for axis, groups in enumerate(choice, start=2):
                entries = np.stack([entries.take(taps, axis=axis).sum(axis=axis) for taps in groups], axis=axis)
            yield entries.reshape(len(entries), -1)


def patterns(table: np.ndarray, side: str) -> list[tuple[tuple[int, ...], ...]]:
    """Which taps add up to the entries of a row (or column) of the index table: one tuple of taps per entry.

    Of rows that hold all entries of another row and more, only the larger is kept: no measure here can be larger
    for the smaller one.
    """
    entries: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for (i, j), read in np.ndenumerate(table):
        if read >= 0:
            row, column = (i, int(read)) if side == "rows" else (int(read), i)
            entries[row][column].append(j)
    found = {tuple(sorted(map(tuple, row.values()))) for row in entries.values()}
    if len(found) > 512:
        raise TooLarge(f"{len(found)} kinds of {side}")
    return [row for row in found if not any(row != other and Counter(row) <= Counter(other) for other in found)]


def prove_norm2(linear: Map, value: Fraction) -> tuple[bool, Fraction]:
    """Whether ``|A|_2 <= value`` is proven; if not, also about what the norm is.

    A block-diagonal map has the largest norm of its blocks. A Kronecker product has the product of its factors'
    norms; each factor is held against its own share of ``value``, found from hints.
    """
    if linear.kind != "separable":
        refuted = next((X for X in blocks(linear) if not norm2_at_most(X, linear.unit, value)), None)
        return (True, value) if refuted is None else (False, norm2_hint(refuted, linear.unit))
    parts = [part for part in linear.parts if part.kind != "reshape"]
    if any(not part.tensor.any() for part in parts):
        return True, Fraction(0)
    hints = [norm2_hint(part.tensor, part.unit) for part in parts]
    about = math.prod(hints, start=Fraction(1))
    if not parts or value < about / 2:
        return about <= value, about
    share = Fraction(float(value / about) ** (1 / len(parts)))
    shares = [hint * share for hint in hints[:-1]]
    shares.append(value / math.prod(shares, start=Fraction(1)))
    return all(norm2_at_most(part.tensor, part.unit, c) for part, c in zip(parts, shares, strict=True)), about


def norm2_at_most(X: np.ndarray, unit: Fraction, value: Fraction) -> bool:
    """Whether ``|unit X|_2 <= value`` is proven, for a matrix of integers.

    X is cut to 46 bits, ``|X - 2^t A|_F <= d``, so ``|A|_2 <= room = value / unit / 2^t - d`` suffices, and for it
    that ``H = floor(room^2) I - A'A`` is positive semidefinite. It is if ``E = H - Z'Z`` is diagonally dominant
    (Gershgorin), for any Z whatever: Z is a rounded Cholesky factor of ``H - s I``, with s half the least eigenvalue.
    """
    X = X if X.shape[0] >= X.shape[1] else X.T
    require_size(X.shape)
    bits = _bits(X)
    if bits == 0:
        return value >= 0
    A, cut = rounded(X, BITS - bits)
    room = value / unit * Fraction(2) ** (BITS - bits) - sqrt_up(Fraction(cut, 4))
    if room < 0:
        return False
    level = math.floor(room * room)
    H = -exact_product(A.T, A).astype(object)
    H[np.diag_indices_from(H)] += level
    return semidefinite(H, level)


def semidefinite(H: np.ndarray, level: int, spare: Any = 0) -> bool:
    """Whether every symmetric matrix within ``spare`` (a number or a matrix) of H is shown to be semidefinite, >= 0.

    H is a matrix of integers whose diagonal is not much above ``level``.
    """
    if dominant(H, spare):
        return True
    if level == 0:
        return False
    try:
        hint = (H / level).astype(np.float64)  # entries at most about 1: dominance failed, so the level is not large
        least = float(np.linalg.eigvalsh(hint)[0])
        if not least > 0.0:
            return False
        R = np.linalg.cholesky(hint - 0.5 * least * np.eye(len(hint))).T
    except np.linalg.LinAlgError:
        return False
    shift = max(0, math.isqrt(level).bit_length() - BITS)
    Z = np.rint(R * (math.sqrt(level) / 2.0**shift)).astype(np.int64)
    return dominant(H - (exact_product(Z.T, Z).astype(object) << 2 * shift), spare)


def dominant(E: np.ndarray, spare: Any = 0) -> bool:
    """Whether ``E_ii >= sum of |E_ij| over j != i`` in every row, even if every entry is off by ``spare``."""
    return bool((2 * E.diagonal() >= (abs(E) + spare).sum(1)).all())


def norm2_hint(X: np.ndarray, unit: Fraction) -> Fraction:
    """About the 2-norm; nothing rests on it."""
    shift = max(0, _bits(X) - 60)
    A = (X if X.shape[0] >= X.shape[1] else X.T) >> shift
    A = A.astype(np.float64)
    return Fraction(math.sqrt(max(0.0, float(np.linalg.eigvalsh(A.T @ A)[-1])))) * unit * (1 << shift)


# ------------------------------------------------------------------------- proving a part from its multipliers


@dataclass(frozen=True, eq=False)
class Signal:
    """A difference of two runs, ``unit * sum of blocks[variable] z[variable]``, with matrices of integers.

    Where factors are known within a relative ``loose`` only, an entry is off by at most ``loose`` times that of
    ``unit * sizes``.
    """

    unit: Fraction
    blocks: Mapping[str, np.ndarray]
    sizes: Mapping[str, np.ndarray]
    loose: Fraction = Fraction(0)


def prove_part(
    network: Network, source: str, target: str, value: Fraction, multipliers: Listed, torus: Place = (), row: Row = None
) -> Fraction:
    """Prove ``|target(x) - target(y)|_2 <= value |source(x) - source(y)|_2`` from multipliers, exactly.

    With ``du`` the differences of the activations' outputs, ``dv`` of what they read and ``lambda >= 0``,
    ``(du - alpha dv)(du - beta dv) <= 0`` holds for every neuron. So it suffices that

        value^2 |dx|^2 - |dy|^2 + 2 sum lambda (du - alpha dv)(du - beta dv)  >=  0

    as a quadratic form in ``(dx, du)``, which all of ``dv`` and ``dy`` are linear in: a matrix of integers, in a common
    unit, has to be positive semidefinite (Fazlyab et al. 2019, theorem 2, for increments). On a torus, `prove_waves`.
    For one row dy is one entry of the output, and what stands before it is as `_measured` says.

    Raises:
        Reject: If the form is not shown to be positive semidefinite.
        TooLarge: If its matrix is too large.
    """
    where = f"the part from {source} to {target}"
    if torus:
        return prove_waves(network, source, target, value, multipliers, torus)
    inner = _between(network, source, target)
    bent = [node for node in inner if node.members or (node.kind == "activation" and not _nearly_linear(node))]
    if multipliers.keys() != {node.name for node in bent}:
        raise Malformed(f"{where} has multipliers of {sorted(multipliers)[:5]}, not of its activations")
    entries, where = math.prod(network[source].shape), where if row is None else f"{where}, row {row[1]} in {row[0]}"
    one, tau, read = _measured(row, value, entries, math.prod(network[target].shape), where)
    widths = {source: one.shape[1]}
    for node in bent:
        widths[node.name] = math.prod(node.shape) - (node.members and math.prod(node.shape) // node.members)
    try:
        require_size((sum(widths.values()),) * 2)
        signals = {source: Signal(Fraction(1), {source: one}, {source: one})}
        X, unit = _integers(tau or [value**2] * one.shape[1])
        terms: list[Term] = [(unit, source, source, np.diag(X), np.diag(X), Fraction(0))]
        for node in inner:
            reads = [signals[name] for name in node.sources]
            if node.kind == "activation" and node.name not in multipliers:
                signals[node.name] = _scaled(node, reads[0])
            elif node.members:
                signals[node.name], own = _grouped(node, reads[0], multipliers[node.name], where)
                terms += own
            elif node.kind == "activation":
                signals[node.name] = _variable(node.name, widths[node.name])
                terms += _constraint(node, reads[0], multipliers[node.name], where)
            else:
                signals[node.name] = _through(node, reads, [network[name].shape for name in node.sources])
        terms += _gram(signals[target], read)
        holds = _semidefinite_sum(terms, widths)
    except TooLarge as reason:
        raise TooLarge(
            f"{where}: too large for exact arithmetic ({reason}); use the outward-rounded float64 check "
            f"(`lipcert check --float64`), which trusts the kernel."
        ) from reason
    if not holds:
        raise Reject(f"{where}: the multipliers do not prove the bound {_show(value)}.")
    return value


def _measured(row: Row, value: Fraction, entries: int, outputs: int, where: str) -> tuple[Any, Any, Any]:
    """The entries of the input that move, weights of their squares, and what stands before those of the output.

    In linf, ``sum tau_j dx_j^2 <= value^2 max dx_j^2`` if the weights add up to ``value^2``. From l1, ``dy = A dx``
    with bounded columns, as every A that the constraints allow has. To l1, ``|dy|_1^2 <= sum r_i^-2 sum (r_i dy_i)^2``.
    """
    norms, k, tau = row or ("l2->l2", 0, [])
    weighted = {"linf->linf": entries, "l1->l1": outputs}.get(norms, 0)
    if len(tau) != weighted or any(weight < 0 for weight in tau):
        raise Malformed(f"{where}: {len(tau)} weights for {weighted} entries, or one is negative")
    if norms == "l1->l1":
        if 0 in tau or sum(r**-2 for r in tau) > 1:
            raise Reject(f"{where}: the squares of the weights' inverses add up to more than 1.")
        return np.eye(entries, dtype=np.int64)[:, [k]], [], [-(r**2) for r in tau]
    if sum(tau) > value**2:
        raise Reject(f"{where}: the sum of weights {_show(sum(tau))} is above the square of {_show(value)}.")
    number, moved = divmod(k, entries) if norms == "l1->linf" else (k, slice(None))
    read = [Fraction(-int(row is None or i == number)) for i in range(outputs)]
    return np.eye(entries, dtype=np.int64)[:, moved].reshape(entries, -1), tau, read


def _variable(name: str, size: int) -> Signal:
    one = np.eye(size, dtype=np.int64)
    return Signal(Fraction(1), {name: one}, {name: one})


def _nearly_linear(node: Node) -> bool:
    """Whether the slopes are known within 2^-40: a factor, which needs no multipliers."""
    lower, upper = node.ends
    return bool(np.all((upper - lower) * 2**40 <= np.maximum(upper, 0)))


def _scaled(node: Node, signal: Signal) -> Signal:
    """A signal times factors in ``[lower, upper]``: the upper ones, off by a relative ``upper / lower - 1``."""
    lower, upper = (np.broadcast_to(end, node.shape).ravel() for end in node.ends)
    X, unit = _integers(upper.tolist())
    width = max((1 - low / high for low, high in zip(lower, upper, strict=True) if high), default=Fraction(0))
    blocks = {name: narrow(X[:, None] * block.astype(object)) for name, block in signal.blocks.items()}
    sizes = {name: narrow(abs(X)[:, None] * size.astype(object)) for name, size in signal.sizes.items()}
    return Signal(signal.unit * unit, blocks, sizes, (1 + signal.loose) * (1 + width) - 1)


def _between(network: Network, source: str, target: str) -> list[Node]:
    """The nodes that the target depends on, down to the source, which all of it must pass through."""
    needed, found = {target}, []
    for node in reversed(network.values()):
        if node.name in needed and node.name != source:
            if node.kind == "input":
                raise Malformed(f"{target} depends on {node.name} other than through {source}")
            needed.update(node.sources)
            found.append(node)
    return found[::-1]


def _constraint(node: Node, v: Signal, multipliers: list[Fraction], where: str) -> Iterator[Any]:
    """``2 lambda du^2 - 2 (alpha + beta) lambda du dv + 2 alpha beta lambda dv^2`` as terms of the quadratic form."""
    size = math.prod(node.shape)
    if len(multipliers) != size:
        raise Malformed(f"{where}: {len(multipliers)} multipliers for the {size} neurons of {node.name}")
    if any(value < 0 for value in multipliers):
        raise Reject(f"{where}: a multiplier of {node.name} is negative.")
    alpha, beta = (np.broadcast_to(end, node.shape).ravel().tolist() for end in node.ends)
    X, unit = _integers([2 * value for value in multipliers])
    yield unit, node.name, node.name, np.diag(X), np.diag(X), Fraction(0)
    X, unit = _integers([-(a + b) * value for a, b, value in zip(alpha, beta, multipliers, strict=True)])
    for name, block in v.blocks.items() if X.any() else ():
        product = X[:, None] * block.astype(object)
        size = abs(X)[:, None] * v.sizes[name].astype(object)
        yield unit * v.unit, node.name, name, product, size, v.loose
        yield unit * v.unit, name, node.name, product.T, size.T, v.loose
    yield from _gram(v, [2 * a * b * value for a, b, value in zip(alpha, beta, multipliers, strict=True)])


def _grouped(node: Node, v: Signal, multipliers: list[Fraction], where: str) -> tuple[Signal, list[Any]]:
    """What a node makes of groups of entries by sorting or reflecting them, ``u = Q Q'v + B w``, and its constraint.

    Of every group the part of ``dv`` along a unit vector q is kept exactly: along the constant when sorting, which
    leaves the sum, along the line when reflecting. The columns ``b_k`` are orthogonal to q and to each other, and the
    rest does not grow, so ``sum |b_k|^2 w_k^2 <= sum |b_k|^2 s_k^2`` for the coordinates w of du and s of dv along
    them: neurons with slopes in [-1, 1] and multipliers ``lambda |b_k|^2``. For sorting lambda is n times the one
    given, which stands before ``sum over i < j of (du_i - du_j)^2``, n times the square of the rest.
    """
    groups = math.prod(node.shape) // node.members
    if len(multipliers) != groups:
        raise Malformed(f"{where}: {len(multipliers)} multipliers for the {groups} groups of {node.name}")
    (Q, B), bounds, squares, unit = _directions(node)
    loose = unit if node.angles else Fraction(0)
    length = 1 if node.angles else node.members
    each = [multipliers[j * groups // len(squares)] * length * square for j, square in enumerate(squares)]
    common = math.lcm(*squares)
    scale = np.array([common // square for square in squares], dtype=object)[:, None]
    s = _times(v, B.T * scale, bounds[1].T * scale, unit / common, loose)
    ends = (np.array(Fraction(-1), dtype=object), np.array(Fraction(1), dtype=object))
    own = list(_constraint(Node("activation", node.name, (len(squares),), ends=ends), s, each, where))
    kept = _times(_times(v, Q.T, bounds[0].T, unit, loose), Q, bounds[0], unit / length, loose)
    turned = _times(_variable(node.name, len(squares)), B, bounds[1], unit, loose)
    return _through(Node("add", node.name, node.shape), [kept, turned], [node.shape] * 2), own


def _directions(node: Node) -> tuple[Any, Any, list[int], Fraction]:
    """``unit (Q, B)`` of the groups of a node, bounds of what errors are relative to, and the squares of B's columns.

    For sorting Q has ones, and B the columns ``(1, ..., 1, -k, 0, ..., 0)`` for k = 1, ..., n - 1.
    """
    size, n, along = math.prod(node.shape), node.members, node.shape[node.dim]
    require_size((size, size))
    places = np.moveaxis(np.arange(size).reshape(node.shape), node.dim, 0).reshape(along, -1)
    if node.consecutive:  # members n i, ..., n i + n - 1
        places = places.reshape(along // n, n, -1).swapaxes(0, 1)
    index = places.reshape(n, -1).T  # else i, i + m, ..., i + (n - 1) m
    groups = len(index)

    def spread(columns: np.ndarray) -> np.ndarray:
        X = np.zeros((size, groups * columns.shape[2]), dtype=object)
        X[index[:, :, None], np.arange(X.shape[1]).reshape(groups, 1, -1)] = columns
        return X

    if node.angles:
        found = np.array([cosine_and_sine(angle / 2) for angle in node.angles], dtype=object)
        c, s = np.repeat(found, groups // len(found), axis=0).T[:, :, None, None]
        pair = [spread(np.concatenate(columns, axis=1)) for columns in ((c, s), (s, -c))]
        bound = spread(np.full((1, 2, 1), 1 << 64, dtype=object))  # entries are off by at most 1, whatever they are
        return pair, [bound, bound], [1] * groups, Fraction(1, 1 << 64)
    b = np.triu(np.ones((n, n - 1), dtype=np.int64)) - np.eye(n, n - 1, -1, dtype=np.int64) * np.arange(1, n)
    pair = [narrow(spread(columns[None])) for columns in (np.ones((n, 1), dtype=np.int64), b)]
    return pair, [abs(X) for X in pair], [k * (k + 1) for k in range(1, n)] * groups, Fraction(1)


def _times(signal: Signal, X: np.ndarray, size: np.ndarray, unit: Fraction, loose: Fraction) -> Signal:
    """``unit X`` times a signal, where the entries of X are off by a relative ``loose`` of ``size``."""
    blocks = {name: exact_product(X, block) for name, block in signal.blocks.items()}
    sizes = {name: exact_product(size, block) for name, block in signal.sizes.items()}
    return Signal(signal.unit * unit, blocks, sizes, (1 + loose) * (1 + signal.loose) - 1)


def cosine_and_sine(angle: Fraction) -> tuple[int, int]:
    """``2^64 cos`` and ``2^64 sin`` of an angle, off by at most 1 each.

    Taylor's series at ``angle / 2^k``, at most 1/2, in units of 2^-p, each of its at most p + 1 terms cut by less than
    2 units; then k squarings of ``cos + i sin``, each of which doubles the error and adds less than 3 units.
    """
    k = math.ceil(abs(angle) * 2).bit_length()
    p = 128 + 2 * k
    x = math.floor(abs(angle) * 2 ** (p - k))
    real, imaginary, term, j = 0, 0, 1 << p, 0
    while term:
        sign = -1 if j & 2 else 1
        real, imaginary = (real, imaginary + sign * term) if j & 1 else (real + sign * term, imaginary)
        j += 1
        term = term * x // (j << p)
    for _ in range(k):
        real, imaginary = (real * real - imaginary * imaginary) >> p, (real * imaginary) >> (p - 1)
    cosine, sine = ((value + (1 << p - 65)) >> (p - 64) for value in (real, imaginary))
    return cosine, -sine if angle < 0 else sine


def _gram(signal: Signal, weights: list[Fraction]) -> Iterator[Any]:
    """``signal' diag(weights) signal`` as terms."""
    if not any(weights):
        return
    X, unit = _integers(weights)
    loose = (1 + signal.loose) ** 2 - 1
    for a, b in itertools.product(signal.blocks, repeat=2):
        product = exact_product(narrow(X[:, None] * signal.blocks[a].astype(object)).T, signal.blocks[b])
        size = product
        if loose:
            size = exact_product(narrow(abs(X)[:, None] * signal.sizes[a].astype(object)).T, signal.sizes[b])
        yield unit * signal.unit**2, a, b, product, size, loose


def _integers(values: list[Fraction]) -> tuple[np.ndarray, Fraction]:
    """Integers X and a unit with ``values = unit X``."""
    unit = Fraction(1, math.lcm(*(value.denominator for value in values)))
    return np.array([int(value / unit) for value in values], dtype=object), unit


def _through(node: Node, reads: list[Signal], shapes: list[tuple[int, ...]]) -> Signal:
    """What an affine node, a sum or a concatenation makes of signals."""
    if node.kind == "affine" and node.map is not None:
        found = {name: _applied(node.map, block) for name, block in reads[0].blocks.items()}
        sizes = {name: abs(block) for name, block in found.items()}
        if reads[0].loose:
            sizes = {name: _applied(_modulus(node.map), block) for name, block in reads[0].sizes.items()}
        return Signal(reads[0].unit * node.map.unit, found, sizes, reads[0].loose)
    if node.kind not in ("add", "concat"):
        raise Reject(f"{node.name} ({node.kind}) has no quadratic constraint; a part may not contain it.")
    denominator = math.lcm(*(signal.unit.denominator for signal in reads))
    unit = Fraction(math.gcd(*(int(signal.unit * denominator) for signal in reads)), denominator)
    found: dict[str, np.ndarray] = {}
    sizes: dict[str, np.ndarray] = {}
    places = np.arange(math.prod(node.shape)).reshape(node.shape)
    start = 0
    for signal, shape in zip(reads, shapes, strict=True):
        rows = places.ravel()
        if node.kind == "concat":  # the dimension that differs, given by sizes: those before it agree
            rows = np.take(places, range(start, start + shape[node.dim]), axis=node.dim).ravel()
            start += shape[node.dim]
        for name, block in signal.blocks.items():
            for total, part in ((found, block), (sizes, signal.sizes[name])):
                whole = total.setdefault(name, np.zeros((places.size, block.shape[1]), dtype=object))
                whole[rows] += part.astype(object) * int(signal.unit / unit)
    blocks, bounds = ({name: narrow(block) for name, block in total.items()} for total in (found, sizes))
    return Signal(unit, blocks, bounds, max(signal.loose for signal in reads))


def _applied(linear: Map, X: np.ndarray) -> np.ndarray:
    """The integer matrix of a map after X."""
    if linear.kind == "reshape":
        return X
    if linear.kind == "selection":
        return np.concatenate([X, np.zeros_like(X[:1])])[linear.tensor.ravel()]
    return exact_product(matrix(linear), X)


def _modulus(linear: Map) -> Map:
    """The map with the moduli of its entries, or more."""
    tensor = None if linear.tensor is None or linear.kind == "selection" else abs(linear.tensor)
    parts = tuple(_modulus(part) for part in linear.parts)
    return replace(linear, tensor=linear.tensor if tensor is None else tensor, parts=parts)


Term = tuple[Fraction, str, str, np.ndarray, np.ndarray, Fraction]


def _semidefinite_sum(terms: list[Term], widths: dict[str, int], alike: bool = False) -> bool:
    """Whether a sum of terms is positive semidefinite.

    A term is ``unit * X`` at a block (row, column variable); an entry is off by ``loose * unit * size`` at most. It is
    scaled by its diagonal, or by that of the sizes, which is ``alike`` for all frequencies.
    """
    denominator = math.lcm(*(term[0].denominator for term in terms))
    loosest = max(term[-1] for term in terms)
    ends = dict(zip(widths, itertools.accumulate(widths.values()), strict=True))
    size = sum(widths.values())
    H = np.zeros((size, size), dtype=object)
    off = np.zeros((size, size), dtype=object)
    for unit, a, b, X, sizes, loose in terms:
        rows, columns = (slice(ends[name] - widths[name], ends[name]) for name in (a, b))
        H[rows, columns] += X.astype(object) * int(unit * denominator)
        if loose:
            off[rows, columns] += abs(sizes.astype(object)) * abs(int(unit * denominator))
    alive = ((H != 0) | (off != 0)).any(1)
    H, off = H[np.ix_(alive, alive)], off[np.ix_(alive, alive)]
    if not (H.diagonal() > 0).all():
        return not len(H)
    # A congruence by powers of two brings the diagonal to 2^99 .. 2^101; what is cut off is below 1 in each entry.
    half = np.array([value.bit_length() // 2 for value in (off if alike else H).diagonal()], dtype=object)
    shift = 100 - half[:, None] - half
    H = (H << np.maximum(shift, 0)) >> np.maximum(-shift, 0)
    off = (off << np.maximum(shift, 0)) >> np.maximum(-shift, 0)
    spare = off * math.ceil(loosest * 2**60) // 2**60 + 3
    return semidefinite(H, 1 << 100, spare)


# ------------------------------------------------------------------- the same on a torus, frequency by frequency

WAVE_LIMIT = 1 << 37  # frequencies x (rows of the real form)^3
FINE = 50  # bits after the point of a cosine; off by less than 2^-FINE
PI = Fraction(3141592653589793238462643383279502884197169399375105820974944, 10**60)  # off by less than 10^-60


@dataclass(frozen=True, eq=False)
class Wave:
    """A difference on a torus: at q it reads, of every variable, ``unit * taps[variable][a]`` at ``q + a``.

    With factors known within a relative ``loose`` only, what it reads is off by at most that times the matrices
    ``unit * sizes`` in sum. ``inside`` says whether it vanishes outside the image.
    """

    rows: int
    inside: bool
    unit: Fraction
    taps: Mapping[str, Mapping[Place, np.ndarray]]
    sizes: Mapping[str, np.ndarray]
    loose: Fraction = Fraction(0)


@dataclass(frozen=True, eq=False)
class Kernel:
    """Output i reads ``unit * weights[t]`` of the input at ``stride i + t``; or the transpose of that."""

    unit: Fraction
    weights: Mapping[Place, np.ndarray]
    stride: Place
    turned: bool = False
    circular: bool = False


def prove_waves(
    network: Network, source: str, target: str, value: Fraction, multipliers: Listed, torus: Place
) -> Fraction:
    """`prove_part` for convolutions, with one multiplier per channel and phase, by the form on a torus.

    Extend all variables by zero to a torus on which no kernel reaches around it into the image. What circular
    convolutions make of them is what the network makes of them, inside. Outside u is zero, so there the circular form
    has terms ``2 lambda alpha beta v^2``, at most zero if ``alpha beta <= 0``, and ``-y^2``, which the network's has
    not. So the latter is semidefinite if the former is: if a matrix is at each frequency. Positions of a grid P times
    finer than the coarsest are P phases of coarse positions, and count as channels. Factors known within an interval
    may differ between positions: they add to the whole form a matrix whose entries are at most those of a
    shift-invariant one, whose rows sum up to what every frequency is required to spare, in one scaling for all.

    Raises:
        Reject: If the form is not shown to be positive semidefinite, or the torus is too small.
        TooLarge: If there are too many or too large matrices; the message has the number.
    """
    where = f"the part from {source} to {target}"
    inner, head, kernels = _headed(_between(network, source, target))
    phases = _phases(network, source, inner, kernels, len(torus))
    _require_room(network, source, inner, kernels, phases, torus)
    bent = [node for node in inner if node.kind == "activation" and not _nearly_linear(node)]
    if multipliers.keys() != {node.name for node in bent}:
        raise Malformed(f"{where} has multipliers of {sorted(multipliers)[:5]}, not of its activations")
    rows = {name: network[name].shape[0] * math.prod(of) for name, of in phases.items()}
    widths = {name: 2 * rows[name] for name in (source, *(node.name for node in bent))}
    outputs = 2 * math.prod(network[target].shape) if head else 0
    side = max(sum(widths.values()) + outputs, 2 * max(rows.values()))
    work = (math.prod(torus) // 2 + 1) * side**3
    if work > WAVE_LIMIT:
        raise TooLarge(
            f"{where}: {math.prod(torus) // 2 + 1} frequencies x {side}^3 = {work:.1e} multiply-adds in exact "
            f"arithmetic, limit {WAVE_LIMIT:.1e}; use the outward-rounded float64 check (`lipcert check --float64`)."
        )
    frequencies = [w for w in np.ndindex(*torus) if w <= tuple(-a % n for a, n in zip(w, torus, strict=True))]
    waves = {source: _free(source, rows[source], len(torus))}
    for node in inner:
        read = [waves[name] for name in node.sources]
        if node.name in multipliers:
            waves[node.name] = _free(node.name, rows[node.name], len(torus))
        elif node.kind == "affine":
            waves[node.name] = _filtered(node, kernels[node.name], phases, read[0])
        elif node.kind == "activation":
            waves[node.name] = _dimmed(node, read[0])
        elif node.kind == "add" or (node.kind == "concat" and node.dim == 0):
            waves[node.name] = _superposed(node, read)
        else:
            raise Reject(f"{node.name} ({node.kind}) is not shift-invariant; a part on a torus may not contain it.")
    ends = {node.name: _masked(node, waves[node.sources[0]].inside, rows[node.name]) for node in bent}
    doubled = {name: listed * 2 for name, listed in multipliers.items()}

    def inside(frequency: Place) -> Iterator[Term]:
        """The form at a frequency, without the output."""
        one = np.eye(widths[source], dtype=np.int64)
        yield value**2, source, source, one, one, Fraction(0)
        for node in bent:
            v = _at(waves[node.sources[0]], frequency, torus)
            here = Node("activation", node.name, (widths[node.name],), ends=ends[node.name])
            yield from _constraint(here, v, doubled[node.name], where)

    if head:
        read = head[0].sources[0]
        last = _dense_head(head, network[read].shape, phases[read])

        def made(frequency: Place) -> Signal:
            return _composed(_at(last, frequency, torus), _at(waves[read], frequency, torus))

        shown = _with_head(inside, made, frequencies, widths, torus)
    else:
        minus = [Fraction(-1)] * (2 * rows[target])
        shown = _at_all(lambda w: [*inside(w), *_gram(_at(waves[target], w, torus), minus)], frequencies, widths)
    if not shown:
        raise Reject(f"{where}: the multipliers do not prove the bound {_show(value)} at every frequency.")
    return value


def _headed(inner: list[Node]) -> tuple[list[Node], list[Node], dict[str, Kernel]]:
    """The nodes before the first affine one that is not shift-invariant, and those from there on: affine, in a row."""
    kernels = {}
    for position, node in enumerate(inner):
        if node.kind == "affine":
            try:
                kernels[node.name] = _kernel(node)
            except Reject:
                head = inner[position:]
                follows = all(after.sources == (before.name,) for before, after in itertools.pairwise(head))
                if position == 0 or not follows or any(each.kind != "affine" for each in head):
                    raise
                return inner[:position], head, kernels
    return inner, [], kernels


def _at_all(terms: Callable[[Place], Sequence[Term]], frequencies: list[Place], widths: dict[str, int]) -> bool:
    """Whether the terms of every frequency sum up to a semidefinite matrix."""
    least = Fraction(1, 1 << FINE)
    loose = ([(*term[:5], max(term[5], least)) for term in terms(frequency)] for frequency in frequencies)
    return all(_semidefinite_sum(found, widths, alike=True) for found in loose)


def _dense_head(head: list[Node], shape: tuple[int, ...], phases: Place) -> Wave:
    """Affine nodes in a row as a wave that reads the whole image from the first coarse position."""
    maps = [node.map for node in head if node.map is not None and node.map.kind != "reshape"]
    X, unit = product(maps) if maps else (np.eye(math.prod(shape), dtype=np.int64), Fraction(1))
    W = X.reshape(len(X), *shape)
    taps: dict[Place, np.ndarray] = {}
    for at in np.ndindex(*shape[1:]):
        place = tuple(a // count for a, count in zip(at, phases, strict=True))
        phase = int(np.ravel_multi_index([a % count for a, count in zip(at, phases, strict=True)], phases))
        found = taps.setdefault(place, np.zeros((len(X), shape[0], math.prod(phases)), dtype=W.dtype))
        found[:, :, phase] = W[(slice(None), slice(None), *at)]
    flat = {place: found.reshape(len(X), -1) for place, found in taps.items()}
    total = functools.reduce(np.add, [abs(found.astype(object)) for found in flat.values()])
    return Wave(len(X), False, unit, {"": flat}, {"": narrow(total)})


def _composed(outer: Signal, inner: Signal) -> Signal:
    """What a signal of one variable makes of another signal."""
    ((block, size),) = zip(outer.blocks.values(), outer.sizes.values(), strict=True)
    blocks = {name: exact_product(block, found) for name, found in inner.blocks.items()}
    sizes = {name: exact_product(narrow(size), narrow(found)) for name, found in inner.sizes.items()}
    return Signal(outer.unit * inner.unit, blocks, sizes, (1 + outer.loose) * (1 + inner.loose) - 1)


def _with_head(
    inside: Callable[[Place], Iterator[Term]],
    made: Callable[[Place], Signal],
    frequencies: list[Place],
    widths: dict[str, int],
    torus: tuple[int, ...],
) -> bool:
    """Whether ``H(z) >= y^2`` summed over all F frequencies, where ``y = sum of Re B z / F``.

    It is if for matrices P, whatever they are, every form ``H(z) - 2 y'B z + y'P y`` is semidefinite, and F minus the
    sum of the P: add up the forms at one real y. P is a little above ``B H^-1 B'``, which floating point names.
    """
    count = math.prod(torus)
    shares = [1 if w == tuple(-a % n for a, n in zip(w, torus, strict=True)) else 2 for w in frequencies]
    N = []
    for frequency in frequencies:
        B = made(frequency)
        H = _floating(inside(frequency), widths)
        right = np.concatenate([_floats(B, name, widths) for name in widths], 1)
        try:
            N.append(right @ np.linalg.solve(H, right.T))
        except np.linalg.LinAlgError:
            return False
    outputs = len(N[0]) // 2
    corners = [share * found[:outputs, :outputs] for share, found in zip(shares, N, strict=True)]
    total = functools.reduce(np.add, corners) / count
    room = (1.0 - float(np.linalg.eigvalsh(0.5 * (total + total.T))[-1])) / 4
    if not 0.0 < room < 1.0:
        return False
    P = [np.rint((0.5 * (1 + room) * (found + found.T) + 2 * room * np.eye(2 * outputs)) * 2.0**40) for found in N]
    if not all(np.all(abs(found) < 2.0**62) for found in P):
        return False
    prices = [found.astype(np.int64).astype(object) for found in P]
    sums = functools.reduce(np.add, [s * found[:outputs, :outputs] for s, found in zip(shares, prices, strict=True)])
    level = count << 40
    if not semidefinite(np.diag([level] * outputs).astype(object) - sums, level):
        return False
    largest = functools.reduce(np.maximum, [abs(found) for found in prices])
    at = dict(zip(frequencies, prices, strict=True))

    def terms(frequency: Place) -> Iterator[Term]:
        yield from inside(frequency)
        B = made(frequency)
        for name, block in B.blocks.items():
            yield B.unit, "", name, -block, B.sizes[name], B.loose
            yield B.unit, name, "", -block.T, B.sizes[name].T, B.loose
        yield Fraction(1, 1 << 40), "", "", at[frequency], largest, Fraction(0)

    return _at_all(lambda w: list(terms(w)), frequencies, {**widths, "": 2 * outputs})


def _floats(signal: Signal, name: str, widths: dict[str, int]) -> np.ndarray:
    rows = len(next(iter(signal.blocks.values())))
    block = signal.blocks.get(name)
    if block is None:
        return np.zeros((rows, widths[name]))
    return (block * float(signal.unit)).astype(np.float64)


def _floating(terms: Iterator[Term], widths: dict[str, int]) -> np.ndarray:
    """A sum of terms in floating point, as a hint."""
    ends = dict(zip(widths, itertools.accumulate(widths.values()), strict=True))
    H = np.zeros((sum(widths.values()),) * 2)
    for unit, a, b, X, _, _ in terms:
        rows, columns = (slice(ends[name] - widths[name], ends[name]) for name in (a, b))
        H[rows, columns] += (X * float(unit)).astype(np.float64)
    return H


def _free(name: str, rows: int, dimensions: int) -> Wave:
    one = np.eye(rows, dtype=np.int64)
    return Wave(rows, True, Fraction(1), {name: {(0,) * dimensions: one}}, {name: one})


def _kernel(node: Node) -> Kernel:
    """The kernel of an affine node, which must do the same at every position."""
    linear = node.map
    if linear is not None and linear.kind in ("conv", "adjoint"):
        conv = linear if linear.kind == "conv" else linear.parts[0]
        if conv.steps:
            return replace(_of_convolution(conv), turned=linear.kind == "adjoint")
    if linear is not None and linear.kind == "diagonal":
        scale = np.broadcast_to(linear.tensor, linear.in_shape).reshape(linear.in_shape[0], -1)
        if (scale == scale[:, :1]).all():
            at = (0,) * (len(linear.in_shape) - 1)
            return Kernel(linear.unit, {at: np.diag(scale[:, 0])}, (1,) * len(at))
    if linear is not None and linear.kind == "separable" and linear.parts[0].kind == "reshape":
        parts = [None if part.kind == "reshape" else part.tensor for part in linear.parts[1:]]
        return _of_windows(node.name, parts, np.eye(linear.in_shape[0], dtype=np.int64), linear.unit)
    if linear is not None and linear.kind == "selection" and len(linear.in_shape) == linear.tensor.ndim:
        channels, *parts = _factors(node.name, linear)
        return _of_windows(node.name, parts, channels, Fraction(1))
    raise Reject(f"{node.name} is not the same at every position; a part on a torus may not contain it.")


def _of_convolution(conv: Map) -> Kernel:
    out, into = conv.tensor.shape[0] // conv.groups, conv.tensor.shape[1]
    weights = {}
    for tap in np.ndindex(*conv.tensor.shape[2:]):
        X = np.zeros((out * conv.groups, into * conv.groups), dtype=conv.tensor.dtype)
        for g in range(conv.groups):
            X[g * out : (g + 1) * out, g * into : (g + 1) * into] = conv.tensor[
                (slice(g * out, (g + 1) * out), ..., *tap)
            ]
        at = tuple(j * dilation - before for j, (_, before, dilation) in zip(tap, conv.steps, strict=True))
        weights[at] = X
    return Kernel(conv.unit, weights, tuple(stride for stride, _, _ in conv.steps), circular=conv.circular)


def _factors(name: str, linear: Map) -> list[np.ndarray]:
    """A selection as a Kronecker product of matrices of zeros and ones, one per dimension, channels first."""
    index, found = linear.tensor, []
    places = np.unravel_index(np.maximum(index, 0), linear.in_shape)
    for dim, (size, place) in enumerate(zip(linear.in_shape, places, strict=True)):
        others = tuple(d for d in range(index.ndim) if d != dim)
        chosen = np.where(index < 0, -1, place).max(axis=others)
        found.append((chosen[:, None] == np.arange(size)).astype(np.int64))
    grids = np.ix_(*(np.where(X.any(1), X.argmax(1), -1) for X in found))
    again = np.ravel_multi_index([np.maximum(grid, 0) for grid in grids], linear.in_shape)
    if not (np.where(functools.reduce(np.minimum, grids) < 0, -1, again) == index).all():
        raise Reject(f"{name} does not select the same at every position; a part on a torus may not contain it.")
    return found


def _of_windows(name: str, parts: list[Any], channels: np.ndarray, unit: Fraction) -> Kernel:
    """A Kronecker product of matrices by dimension, each with one window for all rows, or for all columns."""
    found = [_window(part) for part in parts]
    turned = {way for _, _, way in found if way is not None}
    if len(turned) > 1 or any(not weights for weights, _, _ in found):
        raise Reject(f"{name} does not weigh the same window at every position; a part on a torus may not contain it.")
    channels = channels.T if turned == {True} else channels
    weights = {
        tuple(at for at, _ in choice): channels * math.prod(weight for _, weight in choice)
        for choice in itertools.product(*(each.items() for each, _, _ in found))
    }
    return Kernel(unit, weights, tuple(stride for _, stride, _ in found), turned=turned == {True})


def _window(part: Any) -> tuple[dict[int, int], int, bool | None]:
    """The weights by offset, the stride, and whether rows and columns change places; no weights if there is none."""
    if part is None:
        return {0: 1}, 1, None
    for X, way in ((part, False), (part.T, True)):
        i, j = np.nonzero(X)
        strides = range(1, (X.shape[1] - 1) // (len(X) - 1) + 2) if min(X.shape) > 1 else range(0)
        for stride in strides if X.size * len(strides) <= ENTRY_LIMIT else ():
            weights = {int(b - a * stride): int(X[a, b]) for a, b in zip(i, j, strict=True)}
            rows, columns = np.indices(X.shape)
            if (np.vectorize(lambda at, w=weights: w.get(at, 0))(columns - rows * stride) == X).all():
                return weights, stride, way
    return {}, 1, None


def _phases(
    network: Network, source: str, inner: list[Node], kernels: Mapping[str, Kernel], dimensions: int
) -> dict[str, Place]:
    """How many positions of every node's grid there are per coarse position, per dimension."""
    spacing = {source: (Fraction(1),) * dimensions}
    for node in inner:
        before = {spacing[name] for name in node.sources}
        if len(before) != 1 or len(node.shape) != dimensions + 1:
            raise Reject(f"{node.name} of shape {node.shape} joins grids of different spacing on a torus.")
        here = before.pop()
        if node.name in kernels:
            kernel = kernels[node.name]
            stride = [Fraction(1, s) if kernel.turned else Fraction(s) for s in kernel.stride]
            here = tuple(a * b for a, b in zip(here, stride, strict=True))
        spacing[node.name] = here
    if len(network[source].shape) != dimensions + 1:
        raise Malformed(f"{source} of shape {network[source].shape} on a torus of {dimensions} dimensions")
    coarse = []
    for here in zip(*spacing.values(), strict=True):
        unit = math.lcm(*(one.denominator for one in here))
        coarse.append(Fraction(math.lcm(*(int(one * unit) for one in here)), unit))
    return {name: tuple(int(c / one) for c, one in zip(coarse, here, strict=True)) for name, here in spacing.items()}


def _require_room(
    network: Network,
    source: str,
    inner: list[Node],
    kernels: Mapping[str, Kernel],
    phases: Mapping[str, Place],
    torus: tuple[int, ...],
) -> None:
    """Refuse a torus on which an image overlaps itself, or a kernel reaches around it into the image."""
    for node in [network[source], *inner]:
        have = [n * count for n, count in zip(torus, phases[node.name], strict=True)]
        if any(size > n for size, n in zip(node.shape[1:], have, strict=True)):
            raise Reject(f"{node.name} of shape {node.shape} does not fit {have} positions of the torus.")
        if node.name not in kernels:
            continue
        kernel, before = kernels[node.name], network[node.sources[0]]
        fine, coarse = (node, before) if kernel.turned else (before, node)
        have = [n * count for n, count in zip(torus, phases[fine.name], strict=True)]
        if kernel.circular:
            if list(fine.shape[1:]) != have:
                raise Reject(f"{node.name} pads {fine.shape} in circles on {have} positions of the torus.")
            continue
        for first, last, size, n in zip(*_span(kernel, coarse), fine.shape[1:], have, strict=True):
            if not (first + n >= size and last < n):
                raise Reject(f"{node.name} reaches from {first} to {last} around {n} positions of the torus.")


def _span(kernel: Kernel, coarse: Node) -> tuple[list[int], list[int]]:
    """The first and the last position that outputs inside the image read, per dimension."""
    first = [min(at) for at in zip(*kernel.weights, strict=True)]
    reach = zip(zip(*kernel.weights, strict=True), kernel.stride, coarse.shape[1:], strict=True)
    return first, [(size - 1) * stride + max(at) for at, stride, size in reach]


def _filtered(node: Node, kernel: Kernel, phases: Mapping[str, Place], wave: Wave) -> Wave:
    """A wave after a kernel."""
    before = node.sources[0]
    fine, coarse = (node.name, before) if kernel.turned else (before, node.name)
    image = node.map.out_shape if kernel.turned else node.map.in_shape  # type: ignore[union-attr]
    grid = Node("", coarse, node.map.in_shape if kernel.turned else node.map.out_shape)  # type: ignore[union-attr]
    first, last = _span(kernel, grid)
    padded = any(low < 0 or high >= size for low, high, size in zip(first, last, image[1:], strict=True))
    if not wave.inside and not kernel.circular and (padded or kernel.turned):
        raise Reject(f"{node.name} reads beyond the image what does not vanish there; it cannot stand on a torus.")
    own = _polyphase(kernel, phases[fine], phases[coarse])
    taps = {name: _convolved(own, found) for name, found in wave.taps.items()}
    total = functools.reduce(np.add, [abs(X.astype(object)) for X in own.values()])
    sizes = {name: exact_product(narrow(total), size) for name, size in wave.sizes.items()}
    ends = [(min(at), max(at)) for at in zip(*kernel.weights, strict=True)]
    steps = list(zip(ends, kernel.stride, node.shape[1:], image[1:], strict=True))
    if kernel.circular:  # nothing is outside if both images fill their grids
        inside = all(count * s == size for _, s, count, size in steps)
    elif kernel.turned:  # inputs inside the image reach no output outside
        inside = wave.inside and not padded
    else:  # outputs outside the image read no input inside
        inside = wave.inside and all(high < s and count * s + low >= size for (low, high), s, count, size in steps)
    return Wave(len(next(iter(own.values()))), inside, wave.unit * kernel.unit, taps, sizes, wave.loose)


def _polyphase(kernel: Kernel, fine: Place, coarse: Place) -> dict[Place, np.ndarray]:
    """The kernel between coarse positions, a channel for every channel and phase."""
    out, into = next(iter(kernel.weights.values())).shape
    found: dict[Place, np.ndarray] = {}
    for number, phase in enumerate(np.ndindex(*coarse)):
        for at, weight in kernel.weights.items():
            reach = [r * s + t for r, s, t in zip(phase, kernel.stride, at, strict=True)]
            place = tuple(x // count for x, count in zip(reach, fine, strict=True))
            which = int(np.ravel_multi_index([x % count for x, count in zip(reach, fine, strict=True)], fine))
            X = found.setdefault(place, np.zeros((out, math.prod(coarse), into, math.prod(fine)), dtype=weight.dtype))
            X[:, number, :, which] += weight
    flat = {at: X.reshape(out * math.prod(coarse), into * math.prod(fine)) for at, X in found.items()}
    return {tuple(-a for a in at): X.T for at, X in flat.items()} if kernel.turned else flat


def _convolved(outer: Mapping[Place, np.ndarray], inner: Mapping[Place, np.ndarray]) -> dict[Place, np.ndarray]:
    found: dict[Place, np.ndarray] = {}
    for (a, X), (b, Y) in itertools.product(outer.items(), inner.items()):
        at = tuple(map(sum, zip(a, b, strict=True)))
        product = exact_product(X, Y)
        found[at] = narrow(found[at].astype(object) + product) if at in found else product
    return found


def _by_channel(node: Node, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """The slopes of every channel, for its phases."""
    lower, upper = (np.broadcast_to(end, node.shape).reshape(node.shape[0], -1) for end in node.ends)
    if not (lower == lower[:, :1]).all() or not (upper == upper[:, :1]).all():
        raise Reject(f"{node.name}: slopes differ within a channel; it cannot stand on a torus.")
    return tuple(np.repeat(end[:, 0], rows // node.shape[0]) for end in (lower, upper))  # type: ignore[return-value]


def _dimmed(node: Node, wave: Wave) -> Wave:
    """A wave times factors in ``[lower, upper]``, as in `_scaled`."""
    lower, upper = _by_channel(node, wave.rows)
    X, unit = _integers(upper.tolist())
    width = max((1 - low / high for low, high in zip(lower, upper, strict=True) if high), default=Fraction(0))
    column = X[:, None]
    taps = {name: {at: narrow(column * Y) for at, Y in found.items()} for name, found in wave.taps.items()}
    sizes = {name: narrow(abs(column) * size) for name, size in wave.sizes.items()}
    loose = (1 + wave.loose) * (1 + width) - 1
    return Wave(wave.rows, wave.inside, wave.unit * unit, taps, sizes, loose)


def _superposed(node: Node, read: list[Wave]) -> Wave:
    """A sum, or channels side by side."""
    denominator = math.lcm(*(wave.unit.denominator for wave in read))
    unit = Fraction(math.gcd(*(int(wave.unit * denominator) for wave in read)), denominator)
    rows = sum(wave.rows for wave in read) if node.kind == "concat" else read[0].rows
    taps: dict[str, dict[Place, np.ndarray]] = {}
    sizes: dict[str, np.ndarray] = {}
    start = 0
    for wave in read:
        here = slice(start, start + wave.rows)
        start += wave.rows if node.kind == "concat" else 0
        times = int(wave.unit / unit)
        for name, found in wave.taps.items():
            width = wave.sizes[name].shape[1]
            whole = sizes.setdefault(name, np.zeros((rows, width), dtype=object))
            whole[here] += wave.sizes[name].astype(object) * times
            for at, X in found.items():
                whole = taps.setdefault(name, {}).setdefault(at, np.zeros((rows, width), dtype=object))
                whole[here] += X.astype(object) * times
    taps = {name: {at: narrow(X) for at, X in found.items()} for name, found in taps.items()}
    inside = all(wave.inside for wave in read)
    return Wave(rows, inside, unit, taps, {n: narrow(X) for n, X in sizes.items()}, max(wave.loose for wave in read))


def _masked(node: Node, inside: bool, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Slopes by row, twice; with zero among them where what is read does not vanish outside the image."""
    lower, upper = _by_channel(node, rows)
    if not inside:
        lower, upper = np.minimum(lower, 0), np.maximum(upper, 0)
    return np.tile(lower, 2), np.tile(upper, 2)


def _at(wave: Wave, frequency: Place, torus: tuple[int, ...]) -> Signal:
    """The matrices ``sum of taps e^(i theta a)``, theta = 2 pi frequency / torus, as real ones of twice the size."""
    blocks, sizes = {}, {}
    for name, found in wave.taps.items():
        size = wave.sizes[name].astype(object)
        real, imaginary = np.zeros(size.shape, dtype=object), np.zeros(size.shape, dtype=object)
        for at, X in found.items():
            turn = sum((Fraction(a * w, n) for a, w, n in zip(at, frequency, torus, strict=True)), Fraction(0)) % 1
            c, s = _root(turn)
            real += X.astype(object) * c
            imaginary += X.astype(object) * s
        blocks[name] = narrow(np.block([[real, -imaginary], [imaginary, real]]))
        sizes[name] = np.tile(size << FINE, (2, 2))
    loose = (1 + wave.loose) * (1 + Fraction(1, 1 << FINE)) - 1
    return Signal(wave.unit / (1 << FINE), blocks, sizes, loose)


@functools.lru_cache(maxsize=4096)
def _root(turn: Fraction) -> tuple[int, int]:
    """``2^FINE cos`` and ``2^FINE sin`` of ``2 pi turn``, off by less than 1: by 1/2, and 2^-13 of the long ones."""
    long = cosine_and_sine(2 * PI * turn)
    cosine, sine = ((value + (1 << 63 - FINE)) >> (64 - FINE) for value in long)
    return cosine, sine


def exact_product(X: np.ndarray, Y: np.ndarray) -> np.ndarray:
    """The product of integer matrices, exactly.

    Entries are split into signed digits of b bits, so small that K products of two digits sum up to at most
    ``K 2^(2b-2) <= 2^53``: the float64 products of digit matrices are exact in any order of summation.
    """
    b = (53 - X.shape[1].bit_length()) // 2 + 1
    left, right = digits(X, b), digits(Y, b)
    if min(len(left), len(right)) > 512:  # the sums of a level stay below 2^62
        raise TooLarge(f"{_bits(X)} and {_bits(Y)} significant bits")
    require_size((len(X), Y.shape[1]), X.shape[1] * len(left) * len(right))
    levels = [np.zeros((len(X), Y.shape[1]), dtype=np.int64) for _ in range(len(left) + len(right) - 1)]
    for (i, x), (j, y) in itertools.product(enumerate(left), enumerate(right)):
        levels[i + j] += (x @ y).astype(np.int64)
    total = levels.pop().astype(object)
    while levels:
        total = (total << b) + levels.pop()
    return narrow(total)


def digits(X: np.ndarray, b: int) -> list[np.ndarray]:
    """Balanced digits in ``[-2^(b-1), 2^(b-1))``, lowest first, as float64: ``X = sum of digit_i 2^(b i)``."""
    found = []
    while X.any():
        low = ((X + (1 << (b - 1))) & ((1 << b) - 1)) - (1 << (b - 1))
        found.append(low.astype(np.float64))
        X = (X - low) >> b
    return found or [np.zeros(X.shape)]


def rounded(X: np.ndarray, shift: int) -> tuple[np.ndarray, int]:
    """``X * 2^shift`` to the nearest int64, and how many entries changed (each by at most 1/2)."""
    if shift >= 0:
        return (X << shift).astype(np.int64), 0
    A = (X + (1 << (-shift - 1))) >> -shift
    return A.astype(np.int64), int(np.count_nonzero((A << -shift) != X))


def exact(values: np.ndarray, terms: int = 1) -> tuple[np.ndarray, Fraction]:
    """Integers X and a power of two u with ``values = u X``; int64 where sums of ``terms`` entries fit."""
    if not values.any():
        return np.zeros(values.shape, dtype=np.int64), Fraction(1)
    mantissa, exponent = np.frexp(values)
    whole = (mantissa * 2.0**53).astype(np.int64)
    last = exponent + np.frexp((whole & -whole).astype(np.float64))[1] - 54  # exponent of the last bit that is set
    low, top = int(last[whole != 0].min()), int(exponent[whole != 0].max())
    if top - low + terms.bit_length() <= 61:
        return np.ldexp(values, -low).astype(np.int64), Fraction(2) ** low
    pairs = zip(whole.ravel().tolist(), (exponent - 53 - low).ravel().tolist(), strict=True)
    shifted = [w << s if s >= 0 else w >> -s for w, s in pairs]
    return np.array(shifted, dtype=object).reshape(values.shape), Fraction(2) ** low


def narrow(X: np.ndarray) -> np.ndarray:
    """The same integers as int64 where they fit with room to spare."""
    return X.astype(np.int64) if _bits(X) <= 60 else X


def _bits(X: np.ndarray) -> int:
    return max(int(X.max()), -int(X.min())).bit_length()


# ------------------------------------------------------------------------------------ maps as matrices, by index


def require_size(shape: tuple[int, ...], depth: int = 1) -> None:
    """Refuse a matrix (or a product with ``depth`` multiply-adds per entry) that would take too long."""
    small, entries = min(shape), math.prod(shape)
    if small > SIDE_LIMIT or entries > ENTRY_LIMIT or entries * depth > WORK_LIMIT:
        limits = f"{SIDE_LIMIT} on the smaller side, 2^24 entries and 2^39 multiply-adds"
        raise TooLarge(f"{' x '.join(map(str, shape))} entries, {entries * depth:.1e} multiply-adds; limits {limits}")


def product(maps: Sequence[Map]) -> tuple[np.ndarray, Fraction]:
    """The matrix of a composition, first map applied first."""
    X, unit = matrix(maps[0]), maps[0].unit
    for linear in maps[1:]:
        if linear.kind == "selection":
            X = np.concatenate([X, np.zeros_like(X[:1])])[linear.tensor.ravel()]  # index -1 reads the row of zeros
        elif linear.kind == "diagonal":
            scale = np.broadcast_to(linear.tensor, linear.in_shape).reshape(-1, 1)
            X = narrow(scale.astype(object) * X.astype(object))
        else:
            X = exact_product(matrix(linear), X)
        unit *= linear.unit
    return X, unit


def matrix(linear: Map) -> np.ndarray:
    """The integer matrix of a map, ``(outputs, inputs)``, without its unit."""
    rows, columns = math.prod(linear.out_shape), math.prod(linear.in_shape)
    if rows * columns > ENTRY_LIMIT:
        raise TooLarge(f"{rows} x {columns} entries; limit 2^24")
    if linear.kind == "adjoint":
        return matrix(linear.parts[0]).T
    if linear.kind == "separable":
        return functools.reduce(np.kron, [matrix(part).astype(object) for part in linear.parts])
    if linear.kind == "selection":
        X = np.zeros((rows, columns + 1), dtype=np.int64)
        X[np.arange(rows), linear.tensor.ravel()] = 1
        return X[:, :columns]
    if linear.kind == "diagonal":
        return np.diag(np.broadcast_to(linear.tensor, linear.in_shape).ravel())
    if linear.kind == "reshape":
        return np.eye(rows, dtype=np.int64)
    return block_diagonal(list(blocks(linear)) * (columns // linear.in_shape[-1] if linear.kind == "dense" else 1))


def block_diagonal(parts: list[np.ndarray]) -> np.ndarray:
    """Matrices of one shape along the diagonal."""
    rows, columns = parts[0].shape
    X = np.zeros((len(parts), rows, len(parts), columns), dtype=parts[0].dtype)
    for index, part in enumerate(parts):
        X[index, :, index, :] = part
    return X.reshape(len(parts) * rows, len(parts) * columns)


def blocks(linear: Map) -> Iterator[np.ndarray]:
    """The different diagonal blocks of a dense map, a convolution (one per group) or its adjoint, without the unit.

    The blocks of an adjoint are those of its convolution: transposing changes no 2-norm.
    """
    if linear.kind == "dense":
        yield linear.tensor
        return
    conv = linear.parts[0] if linear.kind == "adjoint" else linear
    rows, columns = math.prod(conv.out_shape) // conv.groups, math.prod(conv.in_shape) // conv.groups
    require_size((rows, columns), 16 * min(rows, columns) * conv.groups)
    for weight in np.split(conv.tensor, conv.groups):
        yield conv_matrix(weight, conv.tables, conv.out_shape[1:], conv.in_shape[1:])


def conv_matrix(
    weight: np.ndarray, tables: Sequence[np.ndarray], out_sizes: tuple[int, ...], in_sizes: tuple[int, ...]
) -> np.ndarray:
    """The matrix of a convolution: output position i reads, through tap j, the input position ``tables[d][i, j]``."""
    outputs, inputs = weight.shape[:2]
    X = np.zeros((outputs, math.prod(out_sizes), inputs, math.prod(in_sizes)), dtype=weight.dtype)
    for tap in np.ndindex(*weight.shape[2:]):
        reads = [table[:, j] for table, j in zip(tables, tap, strict=True)]
        rows = np.meshgrid(*[np.flatnonzero(read >= 0) for read in reads], indexing="ij")
        columns = np.meshgrid(*[read[read >= 0] for read in reads], indexing="ij")
        row = np.ravel_multi_index(rows, out_sizes).ravel()
        column = np.ravel_multi_index(columns, in_sizes).ravel()
        X[:, row, :, column] += weight[(slice(None), slice(None), *tap)]  # each row once per tap, so += adds them all
    return X.reshape(X.shape[0] * X.shape[1], -1)


def index_table(size: int, out: int, kernel: int, stride: int, before: int, dilation: int, mode: str) -> np.ndarray:
    """``[i, j]``: the input position that output i reads through tap j, or -1 where it reads a zero."""
    t = np.arange(out)[:, None] * stride + np.arange(kernel) * dilation - before
    if mode == "zeros":
        return np.where((t >= 0) & (t < size), t, -1)
    if mode == "circular":
        return t % size
    return np.clip(t, 0, size - 1) if mode == "replicate" else size - 1 - abs(size - 1 - abs(t))


# ----------------------------------------------------------- what the other nodes do to distances: two tables

Interval = tuple[Any, Any]
SLOPES: dict[str, tuple[str, str]] = {  # elementwise functions without parameters: bounds of the derivative
    **dict.fromkeys(("relu", "relu6", "tanh", "tanhshrink", "hardtanh", "softsign", "log_sigmoid"), ("0", "1")),
    **dict.fromkeys(("softshrink", "threshold", "atan", "asinh", "clamp"), ("0", "1")),
    **dict.fromkeys(("abs", "sin", "cos"), ("-1", "1")),
    "sigmoid": ("0", "1/4"),
    "hardsigmoid": ("0", "1/6"),
    "hardswish": ("-1/2", "3/2"),
    "selu": ("0", "1.7580994"),
    "gelu": ("-0.1289042", "1.1289042"),
    "gelu_tanh": ("-0.1289931", "1.1289931"),
    "silu": ("-0.0998394", "1.0998394"),
    "mish": ("-0.1125262", "1.0884982"),
    "erf": ("0", "1.1283792"),
}
PARAMETRIC: dict[str, tuple[str, Callable[[Any], Interval]]] = {  # the same with one parameter: its name, the bounds
    "leaky_relu": ("negative_slope", lambda s: (np.minimum(s, 1), np.maximum(s, 1))),
    "prelu": ("weight", lambda s: (np.minimum(s, 1), np.maximum(s, 1))),
    "elu": ("alpha", lambda a: (np.minimum(a, 0), np.maximum(a, 1))),
    "celu": ("alpha", lambda a: _provided(a > 0, (Fraction(0), Fraction(1)))),
    "softplus": ("beta", lambda b: _provided(b > 0, (Fraction(0), Fraction(1)))),
    "contraction": ("epsilon", lambda e: _provided((e >= 0) & (e <= 1), (1 - e, Fraction(1)))),
}


def _provided(condition: Any, interval: Interval) -> Interval:
    if not np.all(condition):
        raise Malformed("a parameter of an elementwise function is outside the range that the table covers")
    return interval


def own_slope(function: str, parameters: dict[str, np.ndarray]) -> Interval:
    """The interval that holds all difference quotients of an elementwise function of the table."""
    name, bounds = PARAMETRIC.get(function, ("", None))
    if parameters.keys() != ({name} if bounds else set()) or not (bounds or function in SLOPES):
        raise Malformed(f"no elementwise function `{function}` with parameters {sorted(parameters)}")
    return bounds(parameters[name]) if bounds else tuple(map(Fraction, SLOPES[function]))


# They have constants only where what they read is bounded: see check_domain.py, which checks their shapes, too.
LOCAL = ("product", "matmul", "layer_norm", "exp", "square", "sqrt", "log", "reciprocal")


def own_gains(function: str, parameters: dict[str, Any], source: tuple[int, ...], shape: tuple[int, ...]) -> Any:
    """Squares of Lipschitz constants by norm pair of a function of the table, whose output shape is checked."""
    one = Fraction(1)
    if function == "max_windows":
        windows = record(parameters, function, windows=list)["windows"]
        times = [_multiplicity(window, size) for window, size in zip(windows, source, strict=True)]
        expected = tuple(s if w is None else len(w) for w, s in zip(windows, source, strict=True))
        most = Fraction(math.prod(times))
        gains = {"l2->l2": most, "l1->l1": most**2, "linf->linf": one, "l1->linf": one, "l2->linf": one}
    elif function in ("softmax", "sort", "householder"):
        expected = source
        if function == "softmax":
            _axes(parameters, source)
        factors = {"softmax": (one / 4, one / 4), "sort": (one, one), "householder": (one, Fraction(2))}[function]
        gains = {"l2->l2": factors[0], "l1->l1": factors[1], "linf->linf": factors[1]}
    elif function in ("logsumexp", "norm2"):
        axes = _axes(parameters, source)
        kept = tuple(1 if axis in axes else size for axis, size in enumerate(source))
        dropped = tuple(size for axis, size in enumerate(source) if axis not in axes)
        expected = kept if shape == kept else dropped
        gains = dict.fromkeys(("l2->l2",) if function == "norm2" else ("l2->l2", "l1->l1", "linf->linf"), one)
    elif function in LOCAL:
        expected, gains = shape, {}
    else:
        raise Malformed(f"no function `{function}`")
    if shape != expected:
        raise Malformed(f"`{function}` turns {source} into {expected}, not {shape}")
    return gains


def _axes(parameters: dict[str, Any], shape: tuple[int, ...]) -> set[int]:
    """The dimensions (batch excluded) along which a function of the table works."""
    dims = record(parameters, "parameters", dim=object)["dim"]
    dims = dims if type(dims) is list else [dims]
    if any(type(dim) is not int or not -len(shape) <= dim < len(shape) for dim in dims):
        raise Malformed(f"dimensions {dims} of the shape {shape}")
    return {dim % len(shape) for dim in dims}


def read_groups(found: Any, shape: tuple[int, ...], remaining: Any) -> dict[str, Any]:
    """Which entries a node sorts, or reflects at lines of which angles: groups along a dimension."""
    if found["function"] == "sort":
        about = record(found["parameters"], "parameters of `sort`", dim=int, group=int, arrangement=str)
        n, arrangement, angles = about["group"], about["arrangement"], None
    else:
        about = record(found["parameters"], "parameters of `householder`", dim=int, theta=dict)
        n, arrangement = 2, "interleaved"
        angles = floats(remaining, record(about["theta"], "the angles", tensor=str)["tensor"])
    dim = about["dim"]
    fits = 0 <= dim < len(shape) and n >= 2 and shape[dim] % n == 0 and arrangement in ("consecutive", "interleaved")
    if not fits or (angles is not None and angles.shape != (shape[dim] // 2,)):
        raise Malformed(f"{arrangement[:20]} groups of {n} along dimension {dim} of the shape {shape}, or their angles")
    each = () if angles is None else tuple(map(Fraction, angles.tolist()))
    return {"dim": dim, "members": n, "consecutive": arrangement == "consecutive", "angles": each}


def _multiplicity(window: Any, size: int) -> int:
    """How many of the windows ``[start, stop, step]`` along a dimension share one input position, at most."""
    if window is None:
        return 1
    times = np.zeros(size, dtype=np.int64)
    if type(window) is not list or not window or len(window) * size > ENTRY_LIMIT * 16:
        raise Malformed("windows are a list of ranges, or null")
    for entry in window:
        start, stop, step = naturals(entry, "a window")
        if not (start < stop <= size and step > 0):
            raise Malformed(f"window {entry} of a dimension of size {size}")
        times[start:stop:step] += 1
    return int(times.max())


# ------------------------------------------------------------------------------------------- reading the network


def read_network(document: Any, arrays: Mapping[str, np.ndarray]) -> Network:
    """Rebuild the graph: every shape is derived again, every tensor used exactly once, every number finite."""
    head = record(document, "the graph", format=str, output=str, nodes=list)
    remaining, network = dict(arrays), {}
    for entry in head["nodes"]:
        node = _read_node(entry, network, remaining)
        if node.name in network or (node.kind == "input") != (not network):
            raise Malformed(f"node `{node.name}` repeats a name, or the input is not first and only")
        network[node.name] = node
    if head["format"] != "lipcert-graph-1" or not network or [*network][-1] != head["output"]:
        raise Malformed(f"format {head['format']!r}, output {head['output']!r}, {len(network)} nodes")
    if remaining:
        raise Malformed(f"tensors that no node uses: {sorted(remaining)[:5]}")
    return network


def _read_node(entry: Any, network: Network, remaining: dict[str, np.ndarray]) -> Node:
    kind = entry.get("kind") if type(entry) is dict else None
    if type(kind) is not str or kind not in NODE_FIELDS:
        raise Malformed(f"a node of kind {kind!r}")
    found = record(entry, f"a node of kind {kind}", kind=str, name=str, shape=list, **NODE_FIELDS[kind])
    name, shape = found["name"], sizes(found["shape"], f"the shape of {found['name']}")
    sources = tuple(found["sources"]) if "sources" in found else (found["source"],) if "source" in found else ()
    if any(type(source) is not str or source not in network for source in sources):
        raise Malformed(f"node `{name}` reads {sources}, not all defined before it")
    shapes = [network[source].shape for source in sources]
    node = Node(kind, name, shape, sources)
    if kind == "affine":
        linear = read_map(found["map"], remaining)
        if found["bias"] is not None:
            broadcasts(floats(remaining, found["bias"]), shape)
        node, fits = replace(node, map=linear), shapes == [linear.in_shape] and shape == linear.out_shape
    elif kind == "activation":
        node, fits = replace(node, **_read_activation(found, shape, remaining)), shapes == [shape]
    elif kind == "opaque":
        node, fits = replace(node, **_read_opaque(found, shapes[0], shape, remaining)), True
    elif kind == "add":
        fits = len(shapes) >= 2 and set(shapes) == {shape}
    elif kind == "concat":
        dim = found["dim"]
        rest = {(*other[:dim], *other[dim + 1 :]) for other in shapes}
        fits = len(shapes) >= 2 and all(0 <= dim < len(other) for other in [shape, *shapes])
        node = replace(node, dim=dim)
        fits = fits and rest == {(*shape[:dim], *shape[dim + 1 :])} and sum(o[dim] for o in shapes) == shape[dim]
    else:
        fits = True
    if not fits:
        raise Malformed(f"node `{name}` of shape {shape} cannot read shapes {shapes}")
    return node


NODE_FIELDS: dict[str, dict[str, type]] = {
    "input": {},
    "affine": {"source": str, "map": dict, "bias": object},
    "activation": {"source": str, "function": str, "parameters": dict, "slope": list},
    "opaque": {"source": str, "function": str, "parameters": dict, "gains": dict},
    "add": {"sources": list},
    "concat": {"sources": list, "dim": int},
}


def _read_activation(found: dict[str, Any], shape: tuple[int, ...], remaining: Any) -> dict[str, Any]:
    """The steepest declared slope, once the declared interval is seen to contain the table's own."""
    where = f"slope of {found['name']} ({found['function'][:100]})"
    parameters = {key: broadcasts(values(remaining, value), shape) for key, value in found["parameters"].items()}
    if len(found["slope"]) != 2:
        raise Malformed(f"{where}: not an interval")
    lower, upper = (broadcasts(values(remaining, end), shape) for end in found["slope"])
    slope = max(abs(end) for end in (*lower.flat, *upper.flat))
    if found["function"].startswith("declared:"):
        if not np.all(lower <= upper):
            raise Malformed(f"{where}: its lower end is above its upper end")
        return {
            "slope": slope,
            "ends": (lower, upper),
            "declared": f"{where} lies in [{_show(min(lower.flat))}, {_show(max(upper.flat))}]",
        }
    least, most = own_slope(found["function"], parameters)
    if not (np.all(lower <= least) and np.all(most <= upper)):
        own = f"[{_show(np.min(least))}, {_show(np.max(most))}]"
        declared = f"[{_show(max(lower.flat))}, {_show(min(upper.flat))}]"
        raise Reject(f"{where}: {declared} does not contain the function's slopes {own}.")
    return {"slope": slope, "ends": (lower, upper)}


def _read_opaque(found: Any, source: tuple[int, ...], shape: tuple[int, ...], remaining: Any) -> dict[str, Any]:
    """The declared gains, in the norm pairs in which they are seen to be at least the table's own."""
    where = f"gain of {found['name']} ({found['function'][:100]})"
    gains = {pair: number(value, where) for pair, value in found["gains"].items()}
    if not gains.keys() <= set(PAIRS) or any(value < 0 for value in gains.values()):
        raise Malformed(f"{where}: {found['gains']}")
    if found["function"].startswith("declared:"):
        for value in found["parameters"].values():
            if type(value) is dict:
                floats(remaining, record(value, where, tensor=str)["tensor"])
        listed = ", ".join(f"{pair}: {_show(value)}" for pair, value in gains.items())
        return {"gains": gains, "declared": f"{where} is at most {listed}"}
    about = read_groups(found, source, remaining) if found["function"] in ("sort", "householder") else {}
    own = own_gains(found["function"], found["parameters"], source, shape)
    for pair in gains.keys() & own.keys():
        if not own[pair] <= gains[pair] ** 2:
            raise Reject(f"{where}: {_show(gains[pair])} is below {_show(sqrt_up(own[pair]))} in {pair}.")
    return {"gains": {pair: value for pair, value in gains.items() if pair in own}, **about}


def read_map(entry: Any, remaining: dict[str, np.ndarray]) -> Map:
    """A linear map, with the output shape that its own numbers imply."""
    kind = entry.get("kind") if type(entry) is dict else None
    if type(kind) is not str or kind not in MAP_FIELDS:
        raise Malformed(f"a map of kind {kind!r}")
    found = record(entry, f"a map of kind {kind}", kind=str, in_shape=list, out_shape=list, **MAP_FIELDS[kind])
    source = sizes(found["in_shape"], "in_shape")
    shape = sizes(found["out_shape"], "out_shape")
    linear, fits = READERS[kind](found, source, shape, remaining)
    if not fits or linear.in_shape != source or linear.out_shape != shape:
        raise Malformed(f"a map of kind {kind} does not turn {source} into {shape}")
    return linear


def _read_dense(found: Any, source: tuple[int, ...], shape: tuple[int, ...], remaining: Any) -> tuple[Map, bool]:
    weight = floats(remaining, found["weight"])
    fits = weight.ndim == 2 and source[-1:] == weight.shape[1:]
    return Map("dense", source, (*source[:-1], weight.shape[0]), *exact(weight)), fits


def _read_conv(found: Any, source: tuple[int, ...], shape: tuple[int, ...], remaining: Any) -> tuple[Map, bool]:
    weight, groups, mode = floats(remaining, found["weight"]), found["groups"], found["padding_mode"]
    kernel = weight.shape[2:]
    stride, dilation = naturals(found["stride"], "stride", 1), naturals(found["dilation"], "dilation", 1)
    padding = [naturals(pair, "padding") for pair in found["padding"]]
    lengths = {len(kernel), len(stride), len(dilation), len(padding), len(source) - 1, len(shape) - 1}
    if lengths not in ({1}, {2}, {3}) or mode not in ("zeros", "circular", "reflect", "replicate") or groups < 1:
        raise Malformed(f"a convolution of {lengths} dimensions in {groups} groups, padding mode {mode!r}")
    if weight.shape[0] % groups or weight.shape[1] * groups != source[0]:
        raise Malformed(f"a convolution of {source[0]} channels by weights {weight.shape} in {groups} groups")
    tables = []
    for d, (n, out, k) in enumerate(zip(source[1:], shape[1:], kernel, strict=True)):
        before, after = padding[d]
        natural = (n + before + after - dilation[d] * (k - 1) - 1) // stride[d] + 1
        widest = {"zeros": ELEMENT_LIMIT, "replicate": ELEMENT_LIMIT, "circular": n, "reflect": n - 1}[mode]
        if not (out <= natural and max(before, after) <= widest and out * k <= INDEX_LIMIT):
            raise Malformed(f"a convolution from {n} to {out} of {natural} positions, padding {padding[d]} {mode}")
        tables.append(index_table(n, out, k, stride[d], before, dilation[d], mode))
    X, unit = exact(weight, terms=math.prod(kernel))
    steps = tuple(zip(stride, (before for before, _ in padding), dilation, strict=True))
    padded = any(map(any, padding))
    steps = steps if mode in ("zeros", "circular") or not padded else ()
    out = (weight.shape[0], *shape[1:])
    return Map("conv", source, out, X, unit, tuple(tables), groups, (), steps, padded and mode == "circular"), True


def _read_adjoint(found: Any, source: tuple[int, ...], shape: tuple[int, ...], remaining: Any) -> tuple[Map, bool]:
    conv = read_map(found["conv"], remaining)
    fits = conv.kind == "conv" and found["conv"]["padding_mode"] == "zeros"
    return Map("adjoint", conv.out_shape, conv.in_shape, None, conv.unit, parts=(conv,)), fits


def _read_diagonal(found: Any, source: tuple[int, ...], shape: tuple[int, ...], remaining: Any) -> tuple[Map, bool]:
    return Map("diagonal", source, source, *exact(broadcasts(floats(remaining, found["scale"]), source))), True


def _read_selection(found: Any, source: tuple[int, ...], shape: tuple[int, ...], remaining: Any) -> tuple[Map, bool]:
    index = integers(remaining, found["index"])
    fits = bool(((index >= -1) & (index < math.prod(source))).all())
    return Map("selection", source, index.shape, index), fits


def _read_reshape(found: Any, source: tuple[int, ...], shape: tuple[int, ...], remaining: Any) -> tuple[Map, bool]:
    return Map("reshape", source, shape), math.prod(source) == math.prod(shape)


def _read_separable(found: Any, source: tuple[int, ...], shape: tuple[int, ...], remaining: Any) -> tuple[Map, bool]:
    parts = []
    for size, factor in zip(source, found["factors"], strict=True):
        if factor is None:
            parts.append(Map("reshape", (size,), (size,)))
            continue
        entry = record(factor, "a factor", numerator=str, denominator=int)
        X = integers(remaining, entry["numerator"])
        if X.ndim != 2 or X.shape[1] != size or entry["denominator"] < 1 or _bits(X) > 48:
            raise Malformed(f"a factor {X.shape} / {entry['denominator']} on a dimension of size {size}")
        parts.append(Map("dense", (size,), (len(X),), X, Fraction(1, entry["denominator"])))
    unit = math.prod((part.unit for part in parts), start=Fraction(1))
    return Map("separable", source, sum((part.out_shape for part in parts), ()), None, unit, parts=tuple(parts)), True


MAP_FIELDS: dict[str, dict[str, type]] = {
    "dense": {"weight": str},
    "conv": {
        **{"weight": str, "stride": list, "padding": list},
        **{"dilation": list, "groups": int, "padding_mode": str},
    },
    "adjoint": {"conv": dict},
    "diagonal": {"scale": str},
    "selection": {"index": str},
    "reshape": {},
    "separable": {"factors": list},
}
READERS: dict[str, Callable[..., tuple[Map, bool]]] = {
    "dense": _read_dense,
    "conv": _read_conv,
    "adjoint": _read_adjoint,
    "diagonal": _read_diagonal,
    "selection": _read_selection,
    "reshape": _read_reshape,
    "separable": _read_separable,
}


# ----------------------------------------------------------------------------------- reading files, field for field


def parse(text: str) -> Any:
    """Strict JSON: no duplicate keys, no NaN, no floats (they are written in hexadecimal), no integers over 2^53."""
    if len(text) > TEXT_LIMIT:
        raise Malformed(f"the text is over {TEXT_LIMIT} characters")
    return json.loads(
        text, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_refuse, parse_int=_small_integer
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Malformed(f"a key stands twice among {[key[:40] for key, _ in pairs][:10]}")
    return found


def _refuse(text: str) -> Any:
    raise Malformed(f"the number {text[:40]}, where numbers are integers or hexadecimal text")


def _small_integer(text: str) -> int:
    if len(text) > 16 or abs(int(text)) > 1 << 53:
        raise Malformed(f"the integer {text[:40]}, over 2^53")
    return int(text)


def record(value: Any, what: str, /, **types: type) -> dict[str, Any]:
    """A JSON object with exactly these fields, of exactly these types (``object`` for any)."""
    if type(value) is not dict or value.keys() != types.keys():
        raise Malformed(f"{what} is {value!r:.120}, not an object with the fields {sorted(types)}")
    for key, kind in types.items():
        if kind is not object and type(value[key]) is not kind:
            raise Malformed(f"{what}: {key} is {value[key]!r:.80}, not a {kind.__name__}")
    return value


def naturals(value: Any, what: str, least: int = 0) -> tuple[int, ...]:
    """A short list of integers, each at least ``least``."""
    if type(value) is not list or len(value) > 16 or any(type(size) is not int or size < least for size in value):
        raise Malformed(f"{what} is {value!r:.80}, not a list of at most 16 integers >= {least}")
    return tuple(value)


def sizes(value: Any, what: str) -> tuple[int, ...]:
    """A shape, not absurdly large."""
    shape = naturals(value, what, least=1)
    if math.prod(shape) > ELEMENT_LIMIT:
        raise Malformed(f"{what} is {value!r:.80}: over {ELEMENT_LIMIT} entries")
    return shape


def number(text: Any, what: str) -> Fraction:
    """A finite float64, exactly as Python writes it in hexadecimal."""
    value = float.fromhex(text) if type(text) is str and len(text) < 40 else math.nan
    if not math.isfinite(value) or value.hex() != text:
        raise Malformed(f"{what} is {text!r:.80}, not a finite number in hexadecimal")
    return Fraction(value)


def floats(remaining: dict[str, np.ndarray], key: Any) -> np.ndarray:
    """Take the tensor of that key, as float64; every entry is finite."""
    found = _take(remaining, key)
    if found.dtype not in (np.float32, np.float64) or not np.isfinite(found).all():
        raise Malformed(f"tensor {key!r} of type {found.dtype} is not a tensor of finite floats")
    return found.astype(np.float64)


def integers(remaining: dict[str, np.ndarray], key: Any) -> np.ndarray:
    """Take the tensor of that key, as int64."""
    found = _take(remaining, key)
    if found.dtype != np.int64:
        raise Malformed(f"tensor {key!r} is of type {found.dtype}, not int64")
    return found


def _take(remaining: dict[str, np.ndarray], key: Any) -> np.ndarray:
    found = remaining.pop(key, None) if type(key) is str else None
    if not isinstance(found, np.ndarray) or not 0 < found.size <= ELEMENT_LIMIT:
        raise Malformed(f"tensor {key!r:.80} is missing, empty, too large, or used twice")
    return found


def values(remaining: dict[str, np.ndarray], value: Any) -> np.ndarray:
    """A parameter or a slope as exact fractions: a number, or a tensor by key."""
    if type(value) is not dict:
        return np.array(number(value, "a parameter"), dtype=object)
    array = floats(remaining, record(value, "a parameter", tensor=str)["tensor"])
    return np.array([Fraction(entry) for entry in array.ravel().tolist()], dtype=object).reshape(array.shape)


def broadcasts(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The array, if it broadcasts to the shape."""
    if np.broadcast_shapes(array.shape, shape) != shape:
        raise Malformed(f"a tensor of shape {array.shape} where {shape} is needed")
    return array


def digest(document: Any, arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of the canonical JSON of the document with dtype, shape and SHA-256 of every tensor."""
    tensors = {
        key: {
            "dtype": str(array.dtype),
            "shape": list(array.shape),
            "sha256": hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest(),
        }
        for key, array in arrays.items()
    }
    text = json.dumps({"graph": document, "tensors": tensors}, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def read_safetensors(path: str) -> tuple[Any, dict[str, np.ndarray]]:
    """The graph document and the tensors of a network file: little-endian, contiguous, without gaps or overlaps."""
    if Path(path).stat().st_size > FILE_LIMIT:
        raise Malformed(f"the file is over {FILE_LIMIT} bytes")
    content = Path(path).read_bytes()
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > min(HEADER_LIMIT, len(content) - 8):
        raise Malformed(f"a header of {length} bytes in a file of {len(content)}")
    header = parse(content[8 : 8 + length].decode("utf-8"))
    if type(header) is not dict or "__metadata__" not in header:
        raise Malformed("the file carries no graph; write it with lipcert")
    document = parse(record(header.pop("__metadata__"), "the metadata", lipcert=str)["lipcert"])
    entries = {key: record(entry, key, dtype=str, shape=list, data_offsets=list) for key, entry in header.items()}
    spans = {key: naturals(entry["data_offsets"], key) for key, entry in entries.items()}
    arrays, end = {}, 0
    for key in sorted(entries, key=lambda key: spans[key]):
        dtype = {"F32": "<f4", "F64": "<f8", "I64": "<i8"}.get(entries[key]["dtype"])
        shape = sizes(entries[key]["shape"], key)
        if dtype is None or spans[key] != (end, end + np.dtype(dtype).itemsize * math.prod(shape)):
            raise Malformed(f"tensor {key!r:.80}: {entries[key]} does not begin at {end} and fill its span")
        buffer = content[8 + length + spans[key][0] : 8 + length + spans[key][1]]
        arrays[key] = np.frombuffer(buffer, dtype).reshape(shape)
        end = spans[key][1]
    if end != len(content) - 8 - length:
        raise Malformed(f"tensors of {end} bytes, data of {len(content) - 8 - length}")
    return document, arrays


def _show(value: Any) -> str:
    """A fraction for a message: 17 digits, or its size where no float64 can hold it."""
    try:
        return repr(float(value))
    except OverflowError:
        return f"a number of {len(str(int(value)))} digits"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
