"""Prove a certificate about a domain again, in exact arithmetic. Standard library, numpy and check.py, nothing else.

    python check_domain.py certificate.json weights.safetensors      exit status: 0 ACCEPT, 1 REJECT, 2 malformed

A certificate may be about the inputs of a box or an l2 ball only: for all x and y there, ``|f(x) - f(y)|_q <= bound
|x - y|_p``. It then says between which numbers every nonlinear node reads there. This file proves these ranges in the
order of the graph, each from the domain and the ranges before it, in two ways: by intervals, forward, and by linear
functions of the input, found backward (Zhang et al. 2018). What a node does to a difference of two of its values in
such a range is then known more closely than everywhere: an elementwise function has the slopes that occur there, a
product of two values is a sum of two factors, and two numbers whose order is the same in the whole range are sorted by
a permutation. With every nonlinear node replaced by that, ``check`` proves the evidence about the network that is left.
A certificate about all inputs goes to ``check`` as it is.

Every decision compares integers or fractions; floating point appears as a hint that may be wrong. Where numbers are
rounded to keep them short, they are rounded outward. What is believed: check.py, what it believes, and this file.
"""

import functools
import itertools
import json
import math
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING or __package__:
    from lipcert.check import (
        LOCAL,
        PI,
        TEXT_LIMIT,
        Accept,
        Listed,
        Malformed,
        Map,
        Network,
        Node,
        Place,
        Reject,
        Row,
        TooLarge,
        broadcasts,
        cosine_and_sine,
        exact_product,
        floats,
        guarded,
        identified,
        main,
        matrix,
        narrow,
        naturals,
        number,
        parse,
        prove_gain,
        prove_part,
        read_claim,
        read_safetensors,
        record,
        settle,
        sizes,
        sqrt_up,
        values,
        verify,
    )
else:  # run as a file: `lipcert` would bring all of the library along
    from check import *  # noqa: F403

BITS = 128  # ranges are rounded outward to so many bits of their largest entry
KEPT = 96  # the same of the coefficients of linear functions
GRID = Fraction(1, 1 << 64)  # slopes and lines of curved functions are multiples of this
FINE = Fraction(1, 1 << 160)  # values of curved functions
CURVED = Fraction(1, 1 << 38) - Fraction(1, 1 << 48)  # their slopes are widened by this, relative and absolute
ENTRIES = 1 << 20  # of a block of linear functions; more are found one block after the other
PRODUCTS = 1 << 20  # multiplications of intervals in a product of matrices

Ends = tuple[Fraction, Fraction]
Array = np.ndarray  # of Python's fractions or, where a unit goes with it, integers


@dataclass(frozen=True, eq=False)
class Range:
    """Fractions between which a node's entries are, in arrays of its shape."""

    low: Array
    high: Array

    def within(self, other: "Range") -> "Range":
        """What is in both."""
        return Range(np.maximum(self.low, other.low), np.minimum(self.high, other.high))

    def reshape(self, *shape: int) -> "Range":
        """The same numbers in the same order."""
        return Range(self.low.reshape(shape), self.high.reshape(shape))


@dataclass(frozen=True, eq=False)
class Lines:
    """``low_slope v + low <= phi(v) <= high_slope v + high`` on a range, entry by entry; one entry after the other."""

    low_slope: Array
    high_slope: Array
    at_zero: Range


@dataclass(frozen=True, eq=False)
class Known:
    """What a node of the graph is, beyond what `check` keeps of it: a bias, a function and its parameters."""

    bias: Array | None = None
    function: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Domain:
    """A box, or the ball around ``box.low`` in which case ``radius`` is given and ``box`` is the centre alone."""

    box: Range
    radius: Fraction | None
    text: str

    @property
    def limits(self) -> Range:
        """The smallest box around it."""
        r = self.radius or Fraction(0)
        return Range(self.box.low - r, self.box.high + r)


@dataclass
class Proof:
    """What is known so far: of the claimed ranges those proven, and of every node its entries or, if nothing, None."""

    network: Network
    known: Mapping[str, Known]
    domain: Domain
    found: dict[str, Range | None] = field(default_factory=dict)
    proven: dict[str, Range] = field(default_factory=dict)
    slopes: dict[str, Range] = field(default_factory=dict)
    lines: dict[str, Lines] = field(default_factory=dict)


# ---------------------------------------------------------------------------------------------- the verdict


def verify_domain(certificate_text: str, document: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> Accept:
    """Prove a certificate about a domain, or about all inputs, or say why not.

    Args:
        certificate_text: The certificate as JSON.
        document: The graph document; its tensors are in ``arrays``.
        arrays: Tensors by the keys that the document names.

    Raises:
        Reject: If the claim is not proven.
        Malformed: If certificate or network is not what the format says; anything unforeseen is reported as this.
    """

    def run() -> Accept:
        found = parse(certificate_text)
        if type(found) is not dict or not found.keys() & {"domain", "ranges"}:
            return verify(certificate_text, document, arrays)
        claim = read_claim(certificate_text, domain=dict, ranges=dict)
        graph = parse(json.dumps(document, allow_nan=False))
        network = identified(claim, graph, dict(arrays))
        domain = read_domain(claim["domain"], next(iter(network.values())).shape)
        known = read_functions(graph, network, dict(arrays))
        network, known = compared(network, known, claim["ranges"])
        proof = prove_ranges(Proof(network, known, domain), read_ranges(claim["ranges"], network))
        left = restricted(proof)
        local = {name for name in left if name in proof.proven or name not in network}
        return settle(claim, left, prove_gain, functools.partial(prove_mixed, local), domain.text)

    return guarded(run)


def verify_files(certificate: str, weights: str) -> Accept:
    """`verify_domain` on files.

    Raises:
        Reject: If the claim is not proven.
        Malformed: If a file cannot be read or is not what the format says.
    """

    def run() -> Accept:
        if Path(certificate).stat().st_size > TEXT_LIMIT:
            raise Malformed(f"the certificate is over {TEXT_LIMIT} bytes")
        return verify_domain(Path(certificate).read_bytes().decode("utf-8"), *read_safetensors(weights))

    return guarded(run)


# ------------------------------------------------------------------------- reading the claim and the functions


def read_domain(document: Any, shape: tuple[int, ...]) -> Domain:
    """A box that is not empty, or a ball."""
    if document.get("kind") == "box":
        about = record(document, "the domain", kind=str, low=object, high=object)
        box = Range(_numbers(about["low"], shape), _numbers(about["high"], shape))
        if not (box.low <= box.high).all():
            raise Malformed("the domain is empty: a lower limit is above the upper one")
        text = f"the box between {float(box.low.min())!r} and {float(box.high.max())!r}"
        return Domain(box, None, text if _alike(box) else f"a box inside {text}")
    about = record(document, "the domain", kind=str, centre=object, radius=str)
    centre, radius = _numbers(about["centre"], shape), number(about["radius"], "the radius")
    if about["kind"] != "l2 ball" or radius < 0:
        raise Malformed(f"a domain of kind {about['kind'][:40]!r}, or a radius below 0")
    at = f"{float(centre.flat[0])!r}" if _alike(Range(centre, centre)) else "a point"
    return Domain(Range(centre, centre), radius, f"the l2 ball of radius {float(radius)!r} around {at}")


def _alike(box: Range) -> bool:
    return bool((box.low == box.low.flat[0]).all() and (box.high == box.high.flat[0]).all())


def _numbers(value: Any, shape: tuple[int, ...]) -> Array:
    """Fractions of a shape, from one number or from an array that broadcasts."""
    if type(value) is not dict:
        return _filled(shape, number(value, "a limit of the domain"))
    about = record(value, "an array", shape=list, values=list)
    return np.array(np.broadcast_to(broadcasts(_listed(about["values"], sizes(about["shape"], "shape")), shape), shape))


def _listed(texts: Any, shape: tuple[int, ...]) -> Array:
    if type(texts) is not list or len(texts) != math.prod(shape):
        raise Malformed(f"{len(texts)} numbers for {math.prod(shape)} entries of the shape {shape}")
    return _array([number(text, "an end of a range") for text in texts], shape)


def _array(entries: Iterable[Any], shape: tuple[int, ...]) -> Array:
    found = np.empty(math.prod(shape), dtype=object)
    found[:] = list(entries)
    return found.reshape(shape)


def _filled(shape: tuple[int, ...], value: Fraction) -> Array:
    return _array([value] * math.prod(shape), shape)


def read_ranges(document: dict[str, Any], network: Network) -> dict[str, Range]:
    """What nonlinear nodes are said to read."""
    found = {}
    for name, ends in document.items():
        if name not in network or network[name].kind not in ("activation", "opaque"):
            raise Malformed(f"a range of {name[:100]!r}, which is no nonlinear node")
        if type(ends) is not list or len(ends) != 2:
            raise Malformed(f"the range of {name} is not a list of lower and a list of upper ends")
        shape = network[network[name].sources[0]].shape
        found[name] = Range(_listed(ends[0], shape), _listed(ends[1], shape))
        if not (found[name].low <= found[name].high).all():
            raise Malformed(f"the range of {name} has a lower end above the upper one")
    return found


def read_functions(document: Any, network: Network, arrays: dict[str, np.ndarray]) -> dict[str, Known]:
    """Biases, functions and parameters, from a document that `check` has read already."""
    found = {}
    for entry in document["nodes"]:
        shape = network[entry["name"]].shape
        if entry["kind"] == "affine" and entry["bias"] is not None:
            bias = floats(arrays, entry["bias"])
            exact = _array(map(Fraction, bias.ravel().tolist()), bias.shape)
            found[entry["name"]] = Known(np.array(np.broadcast_to(exact, shape)))
        elif entry["kind"] == "activation":
            parameters = {key: values(arrays, value) for key, value in entry["parameters"].items()}
            found[entry["name"]] = Known(None, entry["function"], parameters)
        elif entry["kind"] == "opaque":
            found[entry["name"]] = Known(None, entry["function"], entry["parameters"])
        else:
            found[entry["name"]] = Known()
    return found


@dataclass(frozen=True, eq=False)
class Step:
    """Comparisons along a dimension: ``y = back |there x| / 2``, with moduli of the rows with a -1, differences."""

    dim: int
    there: np.ndarray
    back: np.ndarray


def compared(network: Network, known: dict[str, Known], named: Collection[str]) -> tuple[Network, dict[str, Known]]:
    """The same function, in which sorts and maxima are written as steps of comparisons where a range names the first.

    ``max(a, b) = (s + |d|) / 2`` and ``min(a, b) = (s - |d|) / 2`` for ``s = a + b`` and ``d = a - b``. Groups of n are
    sorted when the even pairs and the odd pairs of neighbours were compared n times in turn (Habermann 1972); the
    largest of a window is left of a tournament.
    """
    found: Network = {}
    about = {}
    for node in network.values():
        steps = []
        if f"{node.name}/0/moduli" in named and known[node.name].function in ("sort", "max_windows"):
            shape = network[node.sources[0]].shape
            steps = list(_sorting(node) if node.members else _maxima_of(known[node.name].parameters["windows"], shape))
        written = _written(node, steps, network) if steps else [(node, known[node.name])]
        for new, what in written:
            if new.name in network and new.name != node.name:
                raise Malformed(f"a node is called {new.name}, as is a part of {node.name}")
            found[new.name], about[new.name] = new, what
    return found, about


def _written(node: Node, steps: list[Step], network: Network) -> Iterator[tuple[Node, Known]]:
    (source,), shape = node.sources, network[node.sources[0]].shape
    for number, step in enumerate(steps):
        part = f"{node.name}/{number}"
        name = part if number < len(steps) - 1 else node.name
        there = _along(step.there, step.dim, shape, Fraction(1))
        weight = _array([Fraction(-1 if (row < 0).any() else 1) for row in step.there], (len(step.there),))
        weight = weight.reshape([-1 if dim == step.dim else 1 for dim in range(len(shape))])
        ends = (weight, np.full_like(weight, Fraction(1)))  # the slope left of 0, and right of it
        back = _along(step.back, step.dim, there.out_shape, Fraction(1, 2))
        yield Node("affine", f"{part}/differences", there.out_shape, (source,), there), Known()
        bent = Node("activation", f"{part}/moduli", there.out_shape, (f"{part}/differences",), None, Fraction(1), ends)
        yield bent, Known(None, "prelu", {"weight": weight})
        yield Node("affine", name, back.out_shape, (f"{part}/moduli",), back), Known()
        source, shape = name, back.out_shape


def _along(X: np.ndarray, along: int, shape: tuple[int, ...], unit: Fraction) -> Map:
    """The map ``unit X`` of one dimension."""
    parts = [Map("reshape", (size,), (size,)) for size in shape]
    parts[along] = Map("dense", X.shape[1:], X.shape[:1], X, unit)
    return Map("separable", shape, sum((part.out_shape for part in parts), ()), None, unit, parts=tuple(parts))


def _sorting(node: Node) -> Iterator[Step]:
    size = node.shape[node.dim]
    order = np.arange(size).reshape((-1, node.members) if node.consecutive else (node.members, -1))
    groups = order if node.consecutive else order.T
    for step in range(1 if node.members == 2 else node.members):
        first, second = groups[:, step % 2 : -1 : 2].ravel(), groups[:, step % 2 + 1 :: 2].ravel()
        there, back = np.eye(size, dtype=np.int64), 2 * np.eye(size, dtype=np.int64)
        there[first, second] = there[second, first] = 1
        there[second, second] = -1
        back[first, first] = back[first, second] = back[second, first] = back[second, second] = 1
        # In ascending order the second one is the larger one.
        back[first if node.consecutive else second, second] = -1
        yield Step(node.dim, there, back)


def _maxima_of(windows: list[Any], shape: tuple[int, ...]) -> Iterator[Step]:
    """Rounds of tournaments, one dimension after the other."""
    for dim, ranges in enumerate(windows):
        size, left = shape[dim], [list(range(*window)) for window in ranges or []]
        played = False
        while left and not (played and all(len(places) == 1 for places in left)):
            rows, back, after = [], [], []
            for places in left:
                after.append(list(range(len(back), len(back) + (len(places) + 1) // 2)))
                for pair in (places[k : k + 2] for k in range(0, len(places), 2)):
                    back.append({len(rows) + k: 2 // len(pair) for k in range(len(pair))})
                    signs = ((1, 1), (1, -1)) if pair[1:] else ((1,),)
                    rows += [dict(zip(pair, row, strict=True)) for row in signs]
            yield Step(dim, _matrix(rows, size), _matrix(back, len(rows)))
            size, left, played = len(back), after, True


def _matrix(rows: list[dict[int, int]], size: int) -> np.ndarray:
    X = np.zeros((len(rows), size), dtype=np.int64)
    for number, row in enumerate(rows):
        X[number, list(row)] = list(row.values())
    return X


# ------------------------------------------------------------------------------------------ proving the ranges


def prove_ranges(proof: Proof, claimed: Mapping[str, Range]) -> Proof:
    """Bound every node, in order; what a nonlinear node is said to read is proven before anything follows from it.

    Raises:
        Reject: If a range is not proven; the reason names the node, the entry and both sides.
        TooLarge: If matrices are too large.
    """
    for node in proof.network.values():
        try:
            _prove_node(proof, node, claimed.get(node.name))
        except TooLarge as reason:
            raise TooLarge(
                f"the range of `{node.name}`: too large for exact arithmetic ({reason}); use the outward-rounded "
                f"float64 check (`lipcert check --float64`), which trusts the kernel."
            ) from reason
    return proof


def _prove_node(proof: Proof, node: Node, said: Range | None) -> None:
    if said is not None:
        _prove_range(proof, node, said)
        source = node.sources[0]
        before = proof.found[source]
        proof.found[source] = said if before is None else before.within(said)
        proof.proven[node.name] = said
        if node.kind == "activation":
            _prepare(proof, node)
    proof.found[node.name] = _forward(proof, node)


def _prove_range(proof: Proof, node: Node, said: Range) -> None:
    source = node.sources[0]
    found = proof.found[source]
    low, high = (end.ravel() for end in (said.low, said.high))
    every = np.arange(low.size)
    # Entry and sign of the linear functions that intervals do not bound closely enough.
    above = every if found is None else np.flatnonzero(found.high.ravel() > high)
    below = every if found is None else np.flatnonzero(found.low.ravel() < low)
    rows = [*((entry, 1) for entry in above), *((entry, -1) for entry in below)]
    bounds = _upper_bounds(proof, source, rows)
    for (entry, sign), bound in zip(rows, bounds, strict=True):
        claim = high[entry] if sign > 0 else -low[entry]
        if bound is None or bound > claim:
            proven = "nothing finite" if bound is None else repr(float(sign * bound))
            raise Reject(
                f"`{node.name}` ({node.kind}) is said to read at {'most' if sign > 0 else 'least'} "
                f"{float(sign * claim)!r} in entry {entry}, but {proven} is proven."
            )


def _prepare(proof: Proof, node: Node) -> None:
    """The slopes of an activation on its range, and lines that enclose it there."""
    known, read = proof.known[node.name], proof.proven[node.name]
    everywhere = Range(*(np.array(np.broadcast_to(end, node.shape)) for end in node.ends))
    function = TABLE.get(known.function)
    if function is None or function.slopes is None:
        proof.slopes[node.name] = everywhere
    else:
        slopes = _each(function.slopes, read.low, read.high, _parameter(known, node.shape))
        proof.slopes[node.name] = Range(*slopes).within(everywhere)
    if function is not None:
        inside = proof.slopes[node.name]
        how = _bent if function.bent else _curved
        arguments = (read.low, read.high, _parameter(known, node.shape), inside.low, inside.high)
        found = [end.ravel() for end in _each(lambda *numbers: how(function, *numbers), *arguments)]
        proof.lines[node.name] = Lines(found[0], found[1], Range(found[2], found[3]))


def _parameter(known: Known, shape: tuple[int, ...]) -> Array:
    """The one parameter that a function of the table may have; zero if it has none."""
    if not known.parameters:
        return _filled(shape, Fraction(0))
    (value,) = known.parameters.values()
    return np.array(np.broadcast_to(value, shape))


def _each(function: Callable[..., tuple[Any, ...]], *arrays: Array) -> list[Array]:
    """A function of several results, entry by entry."""
    shape = arrays[0].shape
    results = [function(*entries) for entries in zip(*(array.ravel().tolist() for array in arrays), strict=True)]
    return [_array(each, shape) for each in zip(*results, strict=True)]


def _forward(proof: Proof, node: Node) -> Range | None:
    """What a node can be, from what those it reads can be."""
    if node.kind == "input":
        return proof.domain.limits
    read = [proof.found[name] for name in node.sources]
    known = proof.known[node.name]
    if node.kind == "activation" or (node.kind == "opaque" and known.function in TABLE):
        return _values(known, read[0], proof.slopes.get(node.name), node)
    if node.kind == "opaque":
        return _joint(known, read[0], node)
    ends = [each for each in read if each is not None]
    if len(ends) < len(read):
        return None
    if node.kind == "affine":
        assert node.map is not None
        moved = _through(node.map, ends[0])
        return moved if known.bias is None else Range(moved.low + known.bias, moved.high + known.bias)
    if node.kind == "add":
        return Range(sum(each.low for each in ends), sum(each.high for each in ends))  # type: ignore[arg-type]
    low, high = ([getattr(each, end) for each in ends] for end in ("low", "high"))
    return Range(np.concatenate(low, node.dim), np.concatenate(high, node.dim))


def _values(known: Known, read: Range | None, slopes: Range | None, node: Node) -> Range | None:
    """What an elementwise function makes of a range."""
    function = TABLE.get(known.function)
    found = None
    if node.kind == "opaque" and (known.parameters or (read is not None and read.low.shape != node.shape)):
        raise Malformed(f"{node.name} ({known.function}) has parameters, or does not keep the shape of what it reads")
    if function is not None and read is not None:
        parameter = _parameter(known, node.shape)
        if slopes is None and function.slopes is not None:
            slopes = Range(*_each(function.slopes, read.low, read.high, parameter))
        if slopes is None:
            slopes = Range(*(np.array(np.broadcast_to(end, node.shape)) for end in node.ends))
        arguments = (read.low, read.high, parameter, slopes.low, slopes.high)
        low, high = _each(lambda *numbers: _between(function, *numbers), *arguments)
        found = None if (low == -math.inf).any() or (high == math.inf).any() else Range(low, high)
    if known.function not in BETWEEN:
        return found
    everywhere = Range(*(_filled(node.shape, end) for end in BETWEEN[known.function]))
    return everywhere if found is None else found.within(everywhere)


def _between(f: "Function", low: Fraction, high: Fraction, p: Fraction, least: Any, most: Any) -> Ends:
    """The least and the largest value on an interval, given bounds of the slopes there."""
    first, last = f.value(low, p), f.value(high, p)
    found = [*first, *last]
    if math.inf in found or least == -math.inf or most == math.inf:
        return -math.inf, math.inf  # type: ignore[return-value]
    if f.bent:  # linear on both sides of 0, where it is 0
        found += [Fraction(0)] if low < 0 < high else []
        return min(found), max(found)
    # Between the ends it falls by at most its steepest descent, and rises above them by no more; monotone, by nothing.
    fall = (high - low) * least if least < 0 < most else Fraction(0)
    return min(found) + fall, max(found) - fall


def _through(linear: Map, x: Range) -> Range:
    """What a linear map makes of a range."""
    low, high = x.low.ravel(), x.high.ravel()
    if linear.kind == "reshape":
        return Range(low, high).reshape(*linear.out_shape)
    if linear.kind == "selection":
        index = linear.tensor.ravel()  # -1 reads the zero behind the last
        ends = (np.append(end, np.array([Fraction(0)], dtype=object))[index] for end in (low, high))
        return Range(*ends).reshape(*linear.out_shape)
    if linear.kind == "diagonal":
        scale = np.broadcast_to(linear.tensor, linear.in_shape).ravel().astype(object) * linear.unit
        ends = np.stack([scale * low, scale * high])
        return Range(ends.min(0), ends.max(0)).reshape(*linear.out_shape)
    M, copies = _rows_and_copies(linear)
    up, down = np.maximum(M, 0), np.minimum(M, 0)
    unit = _unit(low, high)
    L, H = (_whole(end, unit, side).reshape(copies, -1).T for end, side in ((low, math.floor), (high, math.ceil)))
    ends = [_sum(exact_product(up, a), exact_product(down, b)).T.ravel() for a, b in ((L, H), (H, L))]
    return Range(*(end * (unit * linear.unit) for end in ends)).reshape(*linear.out_shape)


def _rows_and_copies(linear: Map) -> tuple[np.ndarray, int]:
    """A matrix, and to how many pieces of the input, one after the other, it is applied."""
    if linear.kind == "dense":
        return linear.tensor, math.prod(linear.in_shape[:-1])
    return matrix(linear), 1


def _sum(X: np.ndarray, Y: np.ndarray) -> np.ndarray:
    return X.astype(object) + Y.astype(object)


def _unit(*arrays: Array) -> Fraction:
    """A power of two of which the largest of these fractions is about ``2^BITS``."""
    most = max((abs(array).max() for array in arrays if array.size), default=Fraction(0))
    if most == 0:
        return Fraction(1)
    return Fraction(2) ** (most.numerator.bit_length() - most.denominator.bit_length() - BITS)


def _whole(array: Array, unit: Fraction, side: Callable[[Fraction], int]) -> Array:
    """Fractions as multiples of a unit, rounded to one side."""
    return _array([side(entry / unit) for entry in array.ravel().tolist()], array.shape)


# ------------------------------------------------------------------------- linear functions, from a node backward


@dataclass
class Sums:
    """Linear functions ``sum of unit A x`` of nodes' entries, and a number each: together upper bounds of something.

    ``terms`` has A, integers ``(rows, size)``, and its unit by node. Rounding a coefficient down by at most its unit
    loses at most ``unit max(x, 0)``, which the number takes up; so errors are sums, and do not grow on their way back.
    """

    found: Mapping[str, Range | None]
    numbers: Array
    terms: dict[str, tuple[np.ndarray, Fraction]] = field(default_factory=dict)

    def give(self, name: str, A: np.ndarray, unit: Fraction) -> bool:
        """Add a term; whether something finite is known of the node."""
        x = self.found[name]
        if x is None:
            return False
        if name in self.terms:
            other, own = self.terms[name]
            common = Fraction(math.gcd(unit.numerator * own.denominator, own.numerator * unit.denominator))
            common /= unit.denominator * own.denominator
            A = A.astype(object) * int(unit / common) + other.astype(object) * int(own / common)
            unit = common
        bits = max(int(A.max()), -int(A.min())).bit_length()
        if bits > KEPT:
            A = A.astype(object) >> (bits - KEPT)
            unit = unit * (1 << (bits - KEPT))
            self.numbers = self.numbers + unit * sum(np.maximum(x.high.ravel(), 0), Fraction(0))
        self.terms[name] = narrow(A), unit
        return True

    def most(self, A: np.ndarray, unit: Fraction, x: Range) -> None:
        """Add the largest that ``unit A`` times numbers of a range can be."""
        low, high = x.low.ravel(), x.high.ravel()
        own = _unit(low, high)
        A = A.astype(object)
        total = np.maximum(A, 0) @ _whole(high, own, math.ceil) + np.minimum(A, 0) @ _whole(low, own, math.floor)
        self.numbers = self.numbers + total * (unit * own)


def _upper_bounds(proof: Proof, target: str, rows: list[tuple[Any, int]]) -> list[Fraction | None]:
    """Upper bounds, on the domain, of a node's entries with a sign."""
    size = math.prod(proof.network[target].shape)
    names = list(proof.network)
    before = names[: names.index(target) + 1][::-1]
    step = max(1, ENTRIES // max(math.prod(proof.network[name].shape) for name in before))
    found: list[Fraction | None] = []
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        A = np.zeros((len(block), size), dtype=np.int64)
        A[np.arange(len(block)), [entry for entry, _ in block]] = [sign for _, sign in block]
        sums = Sums(proof.found, _filled((len(block),), Fraction(0)))
        reached = sums.give(target, A, Fraction(1)) and all(_put_in(proof, sums, name) for name in before)
        found += sums.numbers.tolist() if reached else [None] * len(block)
    return found


def _put_in(proof: Proof, sums: Sums, name: str) -> bool:
    """Put in for a node's entries what bounds them from above, or below where they are subtracted."""
    if name not in sums.terms:
        return True
    node, known = proof.network[name], proof.known[name]
    A, unit = sums.terms.pop(name)
    if node.kind == "input":
        sums.most(A, unit, proof.domain.box)
        if proof.domain.radius is not None:
            squares = (A.astype(object) ** 2).sum(1)
            sums.numbers = sums.numbers + _array(map(sqrt_up, map(Fraction, squares)), squares.shape) * (
                unit * proof.domain.radius
            )
        return True
    if node.kind == "affine":
        assert node.map is not None
        if known.bias is not None:
            sums.most(A, unit, Range(known.bias, known.bias))
        return sums.give(node.sources[0], _before(node.map, A), unit * node.map.unit)
    if name in proof.lines:
        lines = proof.lines[name]
        sums.most(A, unit, lines.at_zero)
        slopes = [*lines.low_slope, *lines.high_slope]
        one = Fraction(1, math.lcm(*(slope.denominator for slope in slopes)))
        low, high = (_whole(each, one, int) for each in (lines.low_slope, lines.high_slope))
        A = A.astype(object)
        return sums.give(node.sources[0], np.maximum(A, 0) * high + np.minimum(A, 0) * low, unit * one)
    if node.kind == "add":
        return all(sums.give(source, A, unit) for source in node.sources)
    if node.kind == "concat":
        places = np.arange(A.shape[1]).reshape(node.shape)
        widths = [proof.network[source].shape[node.dim] for source in node.sources]
        cuts = list(itertools.accumulate(widths))[:-1]
        pieces = np.split(places, cuts, node.dim)
        return all(
            sums.give(source, A[:, piece.ravel()], unit) for source, piece in zip(node.sources, pieces, strict=True)
        )
    x = proof.found[name]
    if x is not None:
        sums.most(A, unit, x)
    return x is not None


def _before(linear: Map, A: np.ndarray) -> np.ndarray:
    """The coefficients ``A M`` of what a map M reads, without its unit."""
    if linear.kind == "reshape":
        return A
    if linear.kind == "diagonal":
        return A.astype(object) * np.broadcast_to(linear.tensor, linear.in_shape).ravel().astype(object)
    if linear.kind == "selection":
        found = np.zeros((math.prod(linear.in_shape) + 1, len(A)), dtype=object)
        np.add.at(found, linear.tensor.ravel(), A.T.astype(object))  # -1 is the last row, which is dropped
        return found[:-1].T
    M, copies = _rows_and_copies(linear)
    return exact_product(A.reshape(len(A) * copies, -1), M).reshape(len(A), -1)


# -------------------------------------------------------------------------------- elementwise functions: the table


@dataclass(frozen=True)
class Function:
    """An elementwise function of a number and a parameter.

    Attributes:
        value: Bounds of the value at a number; infinite if they are too large.
        slopes: Bounds of the difference quotients between two numbers; those known everywhere if there are none.
        bent: Whether it is linear on both sides of 0, where it is 0.
    """

    value: Callable[[Fraction, Fraction], Ends]
    slopes: Callable[[Fraction, Fraction, Fraction], Ends] | None
    bent: bool = False


def _bent(f: Function, low: Fraction, high: Fraction, p: Fraction, least: Fraction, most: Fraction) -> tuple[Any, ...]:
    """Slopes and heights at 0 of a line below and a line above: a chord on one side, a line through 0 on the other."""
    left, right = -f.value(Fraction(-1), p)[0], f.value(Fraction(1), p)[0]
    zero = Fraction(0)
    if low >= 0 or high <= 0:
        slope = right if low >= 0 else left
        return slope, slope, zero, zero
    ends = [(low, left * low), (high, right * high)]
    chord = math.floor((ends[1][1] - ends[0][1]) / (high - low) / GRID) * GRID
    heights = [value - chord * v for v, value in ends]
    through = right if high > -low else left
    if left <= right:
        return through, chord, zero, max(heights)
    return chord, through, min(heights), zero


def _curved(
    f: Function, low: Fraction, high: Fraction, p: Fraction, least: Fraction, most: Fraction
) -> tuple[Any, ...]:
    """The same for any function: ``phi(v) - a v`` is monotone if a is one of the ends of the slopes."""
    first, last = f.value(low, p), f.value(high, p)
    rise, width = last[0] - first[0], high - low
    if rise - least * width <= most * width - rise:
        return least, least, first[0] - least * low, last[1] - least * high
    return most, most, last[0] - most * high, first[1] - most * low


def _pieces(*pieces: tuple[float, int | None, float]) -> Callable[[Fraction, Fraction, Fraction], Ends]:
    """Slopes of a function that is linear between knots: from, the slope (None is the parameter), to."""

    def slopes(low: Fraction, high: Fraction, p: Fraction) -> Ends:
        found = [
            p if slope is None else Fraction(slope)
            for start, slope, stop in pieces
            if (low < stop and high > start) or (low == high and start <= low <= stop)
        ]
        return min(found), max(found)

    return slopes


def _derivative(
    ends: Callable[[Fraction, Fraction, Fraction], list[Ends]], least: float = -math.inf, most: float = math.inf
) -> Callable[[Fraction, Fraction, Fraction], Ends]:
    """Slopes of a curved function from enclosures of its least and largest derivative, widened; always open.

    The library states bounds for slopes that float64 found, which it widens by 2^-38. These are widened by nearly as
    much: they are inside those, and no neuron of a curved function passes for a fixed factor here and not there.
    """

    def slopes(low: Fraction, high: Fraction, p: Fraction) -> Ends:
        found = ends(low, high, p)
        bottom, top = min(low for low, _ in found), max(high for _, high in found)
        if top == math.inf:
            return -math.inf, math.inf  # type: ignore[return-value]
        bottom = math.floor((bottom - CURVED * (1 + abs(bottom))) / GRID) * GRID
        top = math.ceil((top + CURVED * (1 + abs(top))) / GRID) * GRID
        return (bottom if bottom > least else Fraction(least)), (top if top < most else Fraction(most))

    return slopes


def _bell(derivative: Callable[[Fraction], Ends]) -> Callable[[Fraction, Fraction, Fraction], Ends]:
    """Slopes of a function whose derivative is even and falls away from 0, to 0."""

    def ends(low: Fraction, high: Fraction, p: Fraction) -> list[Ends]:
        near = Fraction(0) if low <= 0 <= high else min(abs(low), abs(high))
        return [derivative(max(abs(low), abs(high))), derivative(near)]

    return _derivative(ends, least=0)


def _monotone(
    derivative: Callable[[Fraction, Fraction], Ends], least: float = -math.inf, most: float = math.inf
) -> Callable[[Fraction, Fraction, Fraction], Ends]:
    """Slopes of a function whose derivative rises or falls all along."""
    return _derivative(lambda low, high, p: [derivative(low, p), derivative(high, p)], least, most)


def _where_positive(
    slopes: Callable[[Fraction, Fraction, Fraction], Ends],
) -> Callable[[Fraction, Fraction, Fraction], Ends]:
    """Nothing is known of intervals that are not above 0."""
    nothing = -math.inf, math.inf
    return lambda low, high, p: slopes(low, high, p) if low > 0 else nothing  # type: ignore[return-value]


def _elu_slopes(low: Fraction, high: Fraction, p: Fraction) -> Ends:
    one = Fraction(1)
    if low >= 0:
        return one, one
    left = _monotone(lambda v, _: _scaled(p, exponential(v)))(low, min(high, Fraction(0)), p)
    return (min(left[0], one), max(left[1], one)) if high > 0 else left


# The values. Enclosures of exp, log and so on are rational; what is monotone in them is put in for both ends.


def _outward(*numbers: Fraction) -> Ends:
    """Their least and largest, as multiples of FINE."""
    low, high = min(numbers), max(numbers)
    return math.floor(low / FINE) * FINE, math.ceil(high / FINE) * FINE


def _scaled(factor: Fraction, ends: Ends) -> Ends:
    return min(factor * end for end in ends), max(factor * end for end in ends)


def exponential(x: Fraction) -> Ends:
    """Bounds of e^x; infinite beyond e^1024.

    Taylor's series at ``y = x / 2^k``, at most 1/2, in units of 2^-p: y is cut by less than a unit, which changes e^y
    by less than 2; every term is cut by less than 2 units, and those left out, the first of them below 3, sum up to
    less than 4: the sum of j terms is off by less than ``2 j + 6`` units. It is then squared k times, rounded outward.
    """
    if x > 1024:
        return Fraction(2) ** 1024, math.inf  # type: ignore[return-value]
    if x < -1024:
        return Fraction(0), Fraction(1, 1 << 1024)
    k = math.ceil(abs(x) * 2).bit_length()
    p = 192 + k
    y = math.floor(x * 2 ** (p - k))
    total, term, j = 0, 1 << p, 0
    while term not in (0, -1):
        total += term
        j += 1
        term = term * y // (j << p)
    low, high = total - 2 * j - 6, total + 2 * j + 6
    for _ in range(k):
        low, high = (low * low) >> p, ((high * high) >> p) + 1
    return Fraction(low, 1 << p), Fraction(high, 1 << p)


def logarithm(x: Fraction) -> Ends:
    """Bounds of the logarithm of a number above 0: a hint t, and ``u - u^2 <= log(x e^-t) <= u = x e^-t - 1``."""
    t = Fraction(math.log(x.numerator) - math.log(x.denominator))
    low, high = (x * end - 1 for end in exponential(-t))
    if not abs(low) < Fraction(1, 1 << 20) or not abs(high) < Fraction(1, 1 << 20):
        raise Reject(f"no close logarithm of {float(x)!r} is found")
    return t + low - low * low, t + high


def arctangent(x: Fraction) -> Ends:
    """Bounds of atan: a hint t, and ``s - s^3 <= asin(s) <= s + s^3`` for the sine s of what it lacks.

    ``sin(atan x - t) = (x cos t - sin t) / sqrt(1 + x^2)``; t has the sign of x and is at most pi/2.
    """
    if x < 0:
        low, high = arctangent(-x)
        return -high, -low
    t = Fraction(math.atan(float(min(x, Fraction(1 << 60))))) * (1 - Fraction(1, 1 << 50))
    c, s = cosine_and_sine(t)  # 2^64 times, off by 1
    root = sqrt_up(1 + x * x)
    lacks = (x * c - s) / (root * (1 << 64))
    # The root is high by 2^-120 of it; c and s are off by 1, and x / root is at most 1.
    room = Fraction(3, 1 << 64) + abs(lacks) / 2**100
    if abs(lacks) + room > Fraction(1, 1 << 10):
        raise Reject(f"no close arc tangent of {float(x)!r} is found")
    room += (abs(lacks) + room) ** 3
    return _outward(t + lacks - room, t + lacks + room)


def normal(x: Fraction) -> Ends:
    """Bounds of the normal distribution function; its series, whose terms alternate and fall once they are small.

    In units of 2^-p, ``x^(2j+1) / (2^j j!)`` is cut by less than ``e^(x^2/2)`` units in sum over j.
    """
    if x > 12 or x < -12:  # the tail is below 2^-107
        tail = Fraction(1, 1 << 107)
        return (1 - tail, Fraction(1)) if x > 0 else (Fraction(0), tail)
    p = 384
    square, term, total, j = math.floor(x * x * 2**p), math.floor(abs(x) * 2**p), 0, 0
    while term:
        total += (-term if j & 1 else term) // (2 * j + 1)
        j += 1
        term = term * square // (j << (p + 1))
    # e^72 < 2^104; at most 1000 terms, each cut a few times
    low, high = Fraction(total - (1 << 120), 1 << p), Fraction(total + (1 << 120), 1 << p)
    root = sqrt_up(2 * PI)
    above = max(low, Fraction(0)) / root * (1 - Fraction(1, 1 << 100)), high / root * (1 + Fraction(1, 1 << 100))
    half = Fraction(1, 2)
    return _outward(*(half + part if x >= 0 else half - part for part in above))


def _decay(x: Fraction) -> Ends:
    """Bounds of e^-|x|, in [0, 1]."""
    low, high = exponential(-abs(x))
    return low, min(high, Fraction(1))


def _tanh(x: Fraction) -> Ends:
    found = _outward(*((1 - s) / (1 + s) for s in _decay(2 * x)))
    return found if x >= 0 else (-found[1], -found[0])


def _sigmoid(x: Fraction) -> Ends:
    return _outward(*(1 / (1 + s) if x >= 0 else s / (1 + s) for s in _decay(x)))


def _softplus(x: Fraction) -> Ends:
    """``log(1 + e^x)``."""
    low, high = ((logarithm(1 + s)) for s in _decay(x))
    return _outward(max(x, Fraction(0)) + low[0], max(x, Fraction(0)) + high[1])


def _mish(x: Fraction) -> Ends:
    def gate(s: Fraction) -> Fraction:
        """``tanh(log(1 + e^x))`` is ``((1 + e^x)^2 - 1) / ((1 + e^x)^2 + 1)``; s is e^-|x|."""
        return (1 + 2 * s) / (1 + 2 * s + 2 * s * s) if x >= 0 else (s * s + 2 * s) / (s * s + 2 * s + 2)

    return _outward(*(x * gate(s) for s in _decay(x)))


def _elu(x: Fraction, alpha: Fraction) -> Ends:
    return (x, x) if x > 0 else _outward(*(alpha * (s - 1) for s in _decay(x)))


def _root(x: Fraction) -> Ends:
    if x < 0:
        return -math.inf, math.inf  # type: ignore[return-value]
    return _outward(x / sqrt_up(x) if x else x, sqrt_up(x))


def _only_positive(value: Callable[[Fraction], Ends]) -> Callable[[Fraction, Fraction], Ends]:
    return lambda x, p: value(x) if x > 0 else (-math.inf, math.inf)  # type: ignore[return-value]


def _at(value: Callable[[Fraction], Fraction | int]) -> Callable[[Fraction, Fraction], Ends]:
    """Of a function with rational values."""
    return lambda x, p: (Fraction(value(x)), Fraction(value(x)))


def _leaky(x: Fraction, p: Fraction) -> Ends:
    return (x, x) if x >= 0 else (p * x, p * x)


_HALF = (PI + Fraction(1, 10**50)) / 2
BETWEEN: dict[str, Ends] = {  # values everywhere
    **{name: (Fraction(-1), Fraction(1)) for name in ("tanh", "sin", "cos", "softsign", "erf")},
    **{name: (Fraction(0), Fraction(1)) for name in ("sigmoid", "hardsigmoid")},
    "relu6": (Fraction(0), Fraction(6)),
    "atan": (-_HALF, _HALF),
}
_INF = math.inf
TABLE: dict[str, Function] = {
    "relu": Function(_at(lambda x: max(x, 0)), _pieces((-_INF, 0, 0), (0, 1, _INF)), bent=True),
    "abs": Function(_at(abs), _pieces((-_INF, -1, 0), (0, 1, _INF)), bent=True),
    "leaky_relu": Function(_leaky, _pieces((-_INF, None, 0), (0, 1, _INF)), bent=True),
    "prelu": Function(_leaky, _pieces((-_INF, None, 0), (0, 1, _INF)), bent=True),
    "contraction": Function(lambda x, p: _scaled(x, (1 - p, Fraction(1))), lambda low, high, p: (1 - p, Fraction(1))),
    "relu6": Function(_at(lambda x: min(max(x, 0), 6)), _pieces((-_INF, 0, 0), (0, 1, 6), (6, 0, _INF))),
    "tanh": Function(lambda x, p: _tanh(x), _bell(lambda v: _outward(*(4 * s / (1 + s) ** 2 for s in _decay(2 * v))))),
    "sigmoid": Function(lambda x, p: _sigmoid(x), _bell(lambda v: _outward(*(s / (1 + s) ** 2 for s in _decay(v))))),
    "atan": Function(lambda x, p: arctangent(x), _bell(lambda v: (1 / (1 + v * v), 1 / (1 + v * v)))),
    "softplus": Function(
        lambda x, beta: _outward(*_scaled(1 / beta, _softplus(beta * x))), _monotone(lambda v, beta: _sigmoid(beta * v))
    ),
    "log_sigmoid": Function(lambda x, p: _scaled(Fraction(-1), _softplus(-x)), _monotone(lambda v, p: _sigmoid(-v))),
    "elu": Function(_elu, _elu_slopes),
    "silu": Function(lambda x, p: _scaled(x, _sigmoid(x)), None),
    "gelu": Function(lambda x, p: _scaled(x, normal(x)), None),
    "mish": Function(lambda x, p: _mish(x), None),
    # Of these no slope is known everywhere.
    "exp": Function(lambda x, p: exponential(x), _monotone(lambda v, p: exponential(v), least=0)),
    "square": Function(_at(lambda x: x * x), _monotone(lambda v, p: (2 * v, 2 * v))),
    "sqrt": Function(
        lambda x, p: _root(x),
        _where_positive(_monotone(lambda v, p: (1 / (2 * sqrt_up(v)), sqrt_up(1 / (4 * v))), least=0)),
    ),
    "log": Function(_only_positive(logarithm), _where_positive(_monotone(lambda v, p: (1 / v, 1 / v), least=0))),
    "reciprocal": Function(
        _only_positive(lambda x: _outward(1 / x)),
        _where_positive(_monotone(lambda v, p: (-1 / (v * v), -1 / (v * v)), most=0)),
    ),
}


# ------------------------------------------------------------------------------- functions of several entries


def _joint(known: Known, x: Range | None, node: Node) -> Range | None:
    """What a function of several entries can be, from what it reads."""
    function, about = known.function, known.parameters
    if function == "softmax":
        return Range(_filled(node.shape, Fraction(0)), _filled(node.shape, Fraction(1)))
    if x is None:
        return None
    if function == "max_windows":
        return Range(*(_maxima(end, about["windows"]) for end in (x.low, x.high)))
    if function == "sort":
        return Range(*(_sorted(end, node) for end in (x.low, x.high)))
    if function == "logsumexp":
        low = _over(lambda v: _logsumexp(v)[0], x.low, about, node.shape)
        return Range(low, _over(lambda v: _logsumexp(v)[1], x.high, about, node.shape))
    if function == "norm2":
        most = _over(
            lambda v: sqrt_up(sum((e * e for e in v), Fraction(0))),
            np.maximum(abs(x.low), abs(x.high)),
            about,
            node.shape,
        )
        return Range(_filled(node.shape, Fraction(0)), most)
    if function == "product":
        a, b = _halves(x, node)
        ends = np.stack([p * q for p in (a.low, a.high) for q in (b.low, b.high)])
        return Range(ends.min(0), ends.max(0))
    if function == "matmul":
        return _matmul(*_matrices(x, known, node))
    if function == "layer_norm":
        most = sqrt_up(Fraction(_normalised(x, known, node).low.shape[1]))
        return Range(_filled(node.shape, -most), _filled(node.shape, most))
    return None


def _maxima(end: Array, windows: list[Any]) -> Array:
    for dim, ranges in enumerate(windows):
        if ranges is not None:
            taken = [np.take(end, range(*window), axis=dim).max(dim) for window in ranges]
            end = np.stack(taken, dim)
    return end


def _sorted(end: Array, node: Node) -> Array:
    """Every group in order: side by side ascending, else descending."""
    moved = np.moveaxis(end, node.dim, 0)
    shape = (-1, node.members) if node.consecutive else (node.members, -1)
    groups = moved.reshape(*shape, *moved.shape[1:])
    groups = np.sort(groups, 1) if node.consecutive else np.sort(groups, 0)[::-1]
    return np.moveaxis(groups.reshape(moved.shape), 0, node.dim)


def _over(function: Callable[[list[Fraction]], Any], end: Array, about: Any, shape: tuple[int, ...]) -> Array:
    """A function of all entries along some dimensions."""
    dims = about["dim"] if type(about["dim"]) is list else [about["dim"]]
    axes = sorted({dim % end.ndim for dim in dims})
    rest = [dim for dim in range(end.ndim) if dim not in axes]
    count = math.prod(end.shape[dim] for dim in axes)
    return _array(map(function, end.transpose(*rest, *axes).reshape(-1, count).tolist()), shape)


def _logsumexp(numbers: list[Fraction]) -> Ends:
    most = max(numbers)
    ends = [exponential(number - most) for number in numbers]
    low, high = (logarithm(sum((end[side] for end in ends), Fraction(0))) for side in (0, 1))
    return _outward(most + low[0], most + high[1])


def _halves(x: Range, node: Node) -> tuple[Range, Range]:
    """The two factors of a product, which are side by side."""
    shape = x.low.shape
    if not shape or shape[0] % 2 or node.shape != (shape[0] // 2, *shape[1:]):
        raise Malformed(f"{node.name} makes {node.shape} of the two halves of the shape {shape}")
    cut = shape[0] // 2
    return Range(x.low[:cut], x.high[:cut]), Range(x.low[cut:], x.high[cut:])


def _matrices(x: Range, known: Known, node: Node) -> tuple[Range, Range]:
    """The two batches of matrices of a product."""
    about = record(known.parameters, "parameters of `matmul`", left=list, right=list)
    left, right = naturals(about["left"], "left", 1), naturals(about["right"], "right", 1)
    fits = len(left) == len(right) >= 2 and left[:-2] == right[:-2] and left[-1] == right[-2]
    cut = math.prod(left)
    if not fits or x.low.size != cut + math.prod(right) or node.shape != (*left[:-1], right[-1]):
        raise Malformed(f"{node.name} makes {node.shape} of matrices {left} times {right}")
    flat = x.reshape(-1)
    return (
        Range(flat.low[:cut], flat.high[:cut]).reshape(*left),
        Range(flat.low[cut:], flat.high[cut:]).reshape(*right),
    )


def _matmul(a: Range, b: Range) -> Range:
    if a.low.size * b.low.shape[-1] > PRODUCTS:
        raise TooLarge(f"matrices {a.low.shape} times {b.low.shape}, over 2^20 products of intervals")
    pairs = [(p[..., :, :, None], q[..., None, :, :]) for p in (a.low, a.high) for q in (b.low, b.high)]
    ends = np.stack([p * q for p, q in pairs])
    return Range(ends.min(0).sum(-2), ends.max(0).sum(-2))


def _normalised(x: Range, known: Known, node: Node) -> Range:
    """What each mean and variance of a layer normalisation is taken over, in rows."""
    about = record(known.parameters, "parameters of `layer_norm`", dims=int, eps=str)
    if not 1 <= about["dims"] <= x.low.ndim or number(about["eps"], "eps") < 0 or node.shape != x.low.shape:
        raise Malformed(f"{node.name} normalises {about} in the shape {x.low.shape}")
    return x.reshape(-1, math.prod(x.low.shape[x.low.ndim - about["dims"] :]))


# ------------------------------------------------------------------------------- the network that is left


def restricted(proof: Proof) -> Network:
    """The network with every nonlinear node replaced by what it does to differences on its proven range.

    Where no range is proven, a node keeps the slopes or constants that it has everywhere, or none.
    """
    left: Network = {}
    for node in proof.network.values():
        for new in _left_of(proof, node):
            if new.name in left or (new.name != node.name and new.name in proof.network):
                raise Malformed(f"a node is called {new.name}, as is a part of {node.name}")
            left[new.name] = new
    return left


def _left_of(proof: Proof, node: Node) -> Iterator[Node]:
    known, read = proof.known[node.name], proof.proven.get(node.name)
    if node.kind == "activation" and read is not None:
        yield _factor(node, proof.slopes[node.name])
    elif node.kind == "opaque" and known.function in LOCAL and read is not None:
        yield from _local(known, read, node)
    else:
        yield node


def _factor(node: Node, slopes: Range) -> Node:
    steepest = max(abs(end) for end in (*slopes.low.flat, *slopes.high.flat))
    return replace(node, kind="activation", slope=steepest, ends=(slopes.low, slopes.high), gains={})


def _local(known: Known, x: Range, node: Node) -> Iterator[Node]:
    """What is left of a function that has no constant everywhere."""
    function = TABLE.get(known.function)
    if function is not None:
        assert function.slopes is not None
        low, high = _each(function.slopes, x.low, x.high, _filled(node.shape, Fraction(0)))
        bounded = (low > -math.inf).all() and (high < math.inf).all()
        yield _factor(node, Range(low, high)) if bounded else node
    elif known.function == "product":
        # a b - a' b' = b (a - a') + a' (b - b')
        a, b = _halves(x, node)
        for (name, place), other in zip(_parts(node, "half", [node.shape] * 2), (b, a), strict=True):
            yield _picked(name, "half", node, place, x)
            yield _factor(Node("activation", name, node.shape, (f"{name}/half",)), other)
        yield replace(node, kind="add", sources=(f"{node.name}/left", f"{node.name}/right"))
    elif known.function == "matmul":
        # A B - A' B' = (A - A') B + A' (B - B'), each with at most the norm that its entries' moduli have
        a, b = _matrices(x, known, node)
        shapes = [a.low.shape, b.low.shape]
        for (name, place), other in zip(_parts(node, "part", shapes), (b, a), strict=True):
            yield _picked(name, "part", node, place, x)
            yield Node("opaque", name, node.shape, (f"{name}/part",), gains={"l2->l2": _spectral(other)})
        yield replace(node, kind="add", sources=(f"{node.name}/left", f"{node.name}/right"))
    else:
        # The Jacobian (I - 11'/n - yy'/n) / sqrt(variance + eps) is a part of the identity divided by the root.
        rows, least = _normalised(x, known, node), number(known.parameters["eps"], "eps")
        least += min(_variance(low, high) for low, high in zip(rows.low.tolist(), rows.high.tolist(), strict=True))
        yield replace(node, gains={"l2->l2": sqrt_up(1 / least)}) if least > 0 else node


def _parts(node: Node, what: str, shapes: list[tuple[int, ...]]) -> Iterator[tuple[str, np.ndarray]]:
    """The names of what reads the left and the right part of a node's source, and where these stand."""
    start = 0
    for side, shape in zip(("left", "right"), shapes, strict=True):
        size = math.prod(shape)
        yield f"{node.name}/{side}", np.arange(start, start + size).reshape(shape)
        start += size


def _picked(name: str, what: str, node: Node, place: np.ndarray, x: Range) -> Node:
    return Node(
        "affine", f"{name}/{what}", place.shape, node.sources, Map("selection", x.low.shape, place.shape, place)
    )


def _spectral(x: Range) -> Fraction:
    """At least the spectral norm of every matrix of a batch: ``|A|_2^2 <= |A|_1 |A|_inf``."""
    moduli = np.maximum(abs(x.low), abs(x.high))
    return sqrt_up(moduli.sum(-1).max() * moduli.sum(-2).max())


def _variance(low: list[Fraction], high: list[Fraction]) -> Fraction:
    """The least that a variance can be: it is the sum over pairs of ``(x_i - x_j)^2 / n^2``."""
    gaps = (max(low[i] - high[j], low[j] - high[i], 0) for i, j in itertools.combinations(range(len(low)), 2))
    return Fraction(sum(gap * gap for gap in gaps)) / len(low) ** 2


# ------------------------------------------------------------- parts in which some neurons of a layer have one slope


def prove_mixed(
    local: set[str],
    network: Network,
    source: str,
    target: str,
    value: Fraction,
    multipliers: Listed,
    torus: Place = (),
    row: Row = None,
) -> Fraction:
    """`prove_part`, where some activations have multipliers for those neurons only whose slope is not known.

    These are the ``local`` ones, whose slopes are those on a range; of others, all neurons have one if any has.

    Raises:
        Reject: If the part is not proven.
    """
    if not multipliers.keys() <= network.keys():
        raise Malformed(
            f"the part from {source} to {target} has multipliers of {sorted(multipliers)[:5]}: no such nodes"
        )
    if torus:
        return prove_part(network, source, target, value, multipliers, torus, row)
    names = {}
    apart: Network = {}
    for node in network.values():
        bends = _bends(node) if node.kind == "activation" and node.name in local else np.zeros(0, dtype=bool)
        if bends.any() and not bends.all():
            names[node.name] = f"{node.name} (bending)"
            apart |= {new.name: new for new in _separated(node, bends, names[node.name])}
        else:
            apart[node.name] = node
    if len(apart) != len(network) + 4 * len(names):
        raise Malformed(f"nodes are called as parts of others: {sorted(names)[:5]}")
    renamed = {names.get(name, name): listed for name, listed in multipliers.items()}
    return prove_part(apart, source, target, value, renamed, torus, row)


def _bends(node: Node) -> np.ndarray:
    """Which neurons have slopes that are open by more than 2^-40, relatively; as `check` says of whole layers."""
    lower, upper = (np.broadcast_to(end, node.shape).ravel() for end in node.ends)
    return ((upper - lower) * 2**40 > np.maximum(upper, 0)).astype(bool)


def _separated(node: Node, bends: np.ndarray, name: str) -> list[Node]:
    """A layer as the sum of its neurons that bend, picked and put back, and of all others, times their slopes."""
    lower, upper = (np.array(np.broadcast_to(end, node.shape)).ravel() for end in node.ends)
    place, shape = np.flatnonzero(bends), node.shape
    back = np.full(bends.size, -1)
    back[place] = np.arange(len(place))
    ends = (lower[place], upper[place])
    lower[place] = upper[place] = Fraction(0)
    others = (lower.reshape(shape), upper.reshape(shape))
    out, read, fixed = f"{name} back", f"{name} read", f"{node.name} (fixed)"
    return [
        Node("affine", read, place.shape, node.sources, Map("selection", shape, place.shape, place)),
        Node("activation", name, place.shape, (read,), ends=ends),
        Node("affine", out, shape, (name,), Map("selection", place.shape, shape, back.reshape(shape))),
        Node("activation", fixed, shape, node.sources, ends=others),
        Node("add", node.name, shape, (out, fixed)),
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], verify_files))
