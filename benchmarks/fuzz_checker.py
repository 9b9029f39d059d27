"""Fuzz the stand-alone checker with mutated certificates, networks and files; count what it accepts.

    python -m benchmarks.fuzz_checker --cases 100000 --seed 0

A false accept is an accepted claim that is about another network than its digest says, or whose bound is below the
norm of a Jacobian of that very network. An escape is any exception other than Reject and Malformed.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lipcert.certificate import Certificate, Gain, Gains, Validity
from lipcert.certifiers.composition import needed_norms, node_bounds
from lipcert.check import Malformed, Reject, verify, verify_files
from lipcert.errors import InvalidInput, LipcertError
from lipcert.graph import Activation, Add, Affine, Concat, Graph, Input, Opaque, digest
from lipcert.linear import Adjoint, Conv, Dense, Diagonal, Factor, Reshape, Selection, Separable, dense
from lipcert.norms import L1, L1_LINF, L2, L2_LINF, LINF, Norms
from lipcert.storage import graph_from_document, load_certificate, read_network, save_certificate

CALLS: dict[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu, "abs": torch.abs, "tanh": torch.tanh}
NASTY = [None, True, False, -1, 0, 1, 2, 7, 1 << 70, 0.5, "", "nan", "inf", "-0x1.0p+0", "relu", [], {}, [0], "l2->l2"]


@dataclass(frozen=True)
class Claim:
    """What the checker is given."""

    text: str
    document: Any
    arrays: dict[str, np.ndarray]


@dataclass
class Counts:
    """What came back."""

    verdicts: Counter[str] = field(default_factory=Counter)
    false_accepts: list[str] = field(default_factory=list)
    escapes: list[str] = field(default_factory=list)


def norm(matrix: np.ndarray, norms: Norms) -> float:
    """An induced norm in floating point."""
    if norms == L2:
        return float(np.linalg.norm(matrix, 2))
    if norms in (L1, LINF):
        return float(np.linalg.norm(matrix, norms.p))
    return float(abs(matrix).max() if norms == L1_LINF else np.linalg.norm(matrix, axis=1).max())


def certified(graph: Graph, norms: Norms) -> Certificate:
    """A certificate made of nothing but numpy norms and a little room."""
    gains = tuple(
        Gain((node.name,), pair, norm(dense(node.map).numpy(), pair) * (1.0 + 1e-9))
        for pair in needed_norms(norms)
        for node in graph
        if isinstance(node, Affine)
    )
    bound = node_bounds(graph, gains, norms)[graph.output.name]
    return Certificate(bound, norms, Validity.RIGOROUS, "by hand", graph.digest(), Gains(gains))


def networks() -> dict[str, Graph]:
    """Small networks that use every kind of node and map."""
    torch.manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float32).double()

    def slope(low: float, high: float) -> tuple[Tensor, Tensor]:
        return torch.tensor(low, dtype=torch.float64), torch.tensor(high, dtype=torch.float64)

    conv = Conv(drawn(2, 1, 3, 3), (1, 4, 4), (4, 4), (1, 1), ((1, 1), (1, 1)), (1, 1), 1, "zeros")
    grouped = Conv(drawn(4, 1, 2), (2, 6), (3,), (2,), ((1, 1),), (2,), 2, "circular")
    adjoint = Adjoint(Conv(drawn(2, 2, 3), (2, 5), (3,), (2,), ((1, 1),), (1,), 1, "zeros"))
    halve, mean = Factor(torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1]]), 2), Factor(torch.ones(1, 4).long(), 4)
    pool = Separable((None, halve, mean), (2, 4, 4))
    windows = [None, [[0, 2, 1], [1, 4, 1]]]
    gains = {L2: 1.4142135623730952, L1: 2.0, LINF: 1.0}
    return {
        "mlp": Graph(
            (
                Input("x", (3,)),
                Affine("a", "x", Dense(drawn(4, 3), (3,)), drawn(4)),
                Activation("r", "a", (4,), "relu", {}, slope(0.0, 1.0), torch.relu),
                Affine("b", "r", Dense(drawn(2, 4), (4,)), None),
            )
        ),
        "branches": Graph(
            (
                Input("x", (1, 4, 4)),
                Affine("c", "x", conv, drawn(2, 1, 1)),
                Activation("t", "c", (2, 4, 4), "tanh", {}, slope(0.0, 1.0), torch.tanh),
                Affine("d", "t", Diagonal(drawn(2, 1, 1), (2, 4, 4)), None),
                Add("s", ("c", "d"), (2, 4, 4)),
                Concat("j", ("s", "t"), 0, (4, 4, 4)),
                Affine("i", "j", Selection(torch.tensor([[0, 5, -1], [5, 9, 63]]), (4, 4, 4)), None),
            )
        ),
        "signals": Graph(
            (
                Input("x", (2, 3)),
                Affine("u", "x", adjoint, None),
                Affine("e", "u", Selection(torch.tensor([[0, 1, 2, 3, 4, -1], [5, 6, 7, 8, 9, -1]]), (2, 5)), None),
                Affine("g", "e", grouped, None),
                Activation("v", "g", (4, 3), "abs", {}, slope(-1.0, 1.0), torch.abs),
            )
        ),
        "pools": Graph(
            (
                Input("x", (2, 4, 4)),
                Affine("p", "x", pool, None),
                Affine("f", "p", Reshape((2, 2, 1), (1, 4)), None),
                Opaque("m", "f", (1, 2), "max_windows", {"windows": windows}, gains, _windows),
            )
        ),
    }


def _windows(x: Tensor) -> Tensor:
    return torch.stack([x[..., 0:2].amax(-1), x[..., 1:4].amax(-1)], dim=-1)


def claims() -> list[Claim]:
    """A true claim for every network in every norm pair it has gains for."""
    found = []
    for graph in networks().values():
        for norms in (L2, L1, LINF, L1_LINF, L2_LINF):
            document, arrays = graph.document()
            found.append(Claim(certified(graph, norms).to_json(), json.loads(json.dumps(document)), arrays))
    return found


def slope_somewhere(graph: Graph, norms: Norms) -> float:
    """The largest norm of a Jacobian at a few points: a lower bound of the constant, up to rounding."""
    x = torch.randn((8, *graph.input.shape), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    jacobians = torch.func.vmap(torch.func.jacrev(lambda one: graph.replay(one[None])[0]))(x)
    size = math.prod(graph.input.shape)
    return max(norm(jacobian.reshape(-1, size).numpy(), norms) for jacobian in jacobians)


def with_code(graph: Graph) -> Graph:
    """A graph read from a file, with the code of the few functions used here put back."""
    nodes = []
    for node in graph:
        if isinstance(node, Activation) and node.function in CALLS:
            node = replace(node, call=CALLS[node.function])
        if isinstance(node, Opaque) and node.parameters == {"windows": [None, [[0, 2, 1], [1, 4, 1]]]}:
            node = replace(node, call=_windows)
        nodes.append(node)
    return Graph(tuple(nodes))


def falsehood(text: str, document: Any, arrays: dict[str, np.ndarray], cache: dict[Any, float]) -> str:
    """Why an accepted claim is false; empty if it is not seen to be."""
    certificate = Certificate.from_json(text)
    found = digest(document, arrays)
    if found != certificate.network:
        return f"digest {found} accepted as {certificate.network}"
    key = (found, certificate.norms)
    if key not in cache:
        try:
            cache[key] = slope_somewhere(with_code(graph_from_document(document, arrays)), certificate.norms)
        except InvalidInput as error:
            return f"accepted, but not a graph: {error}"
        except LipcertError:
            cache[key] = 0.0  # no code for a function that a mutation named
    below = cache[key] * (1.0 - 1e-9) > certificate.bound
    return f"bound {certificate.bound} below the Jacobian's {cache[key]}" if below else ""


def mutate_json(value: Any, draw: random.Random) -> Any:
    """One random change somewhere in a tree of JSON values."""
    value = copy.deepcopy(value)
    spots = list(_spots(value))
    owner, key = draw.choice(spots)
    others = [o[k] for o, k in spots]
    action = draw.randrange(7)
    if action == 0:
        del owner[key]
    elif action == 1:
        owner[key] = copy.deepcopy(draw.choice(others))
    elif action == 2 and isinstance(owner, list):
        owner.insert(draw.randrange(len(owner) + 1), copy.deepcopy(owner[key]))
    elif action == 2:
        owner["extra"] = draw.choice(NASTY)
    elif action <= 4:
        owner[key] = _nearby(owner[key], draw)
    else:
        owner[key] = draw.choice(NASTY)
    return value


def _spots(value: Any) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _spots(inner)


def _nearby(value: Any, draw: random.Random) -> Any:
    if type(value) is int:
        return value + draw.choice((-1, 1, -2, 2, 100))
    if type(value) is str:
        try:
            number = float.fromhex(value)
        except (ValueError, OverflowError):
            return value[:-1] or "x"
        below = math.nextafter(number, -math.inf)
        return draw.choice((below, number * 0.999, number * 0.5, -number, number * 2.0)).hex()
    return draw.choice(NASTY)


def mutate_array(arrays: dict[str, np.ndarray], draw: random.Random) -> dict[str, np.ndarray]:
    """One random change of a tensor."""
    arrays = {key: array.copy() for key, array in arrays.items()}
    if not arrays:
        return {"extra": np.zeros(1)}
    key = draw.choice(sorted(arrays))
    array, action = arrays[key], draw.randrange(8)
    spot = draw.randrange(array.size) if array.size else 0
    if action <= 2 and array.size and array.dtype in (np.float32, np.float64):
        entry = array.flat[spot]
        above = np.nextafter(entry, array.dtype.type(np.inf))
        array.flat[spot] = draw.choice((above, -entry, 10 * entry, np.nan, np.inf))
    elif action <= 2 and array.size and array.dtype == np.int64:
        array.flat[spot] += draw.choice((-1, 1, 1 << 40))
    elif action == 3:
        arrays[key] = array.astype(draw.choice((np.float16, np.float64, np.int64, np.int32, np.bool_)))
    elif action == 4:
        arrays[key] = array.ravel()
    elif action == 5:
        other = draw.choice(sorted(arrays))
        arrays[key], arrays[other] = arrays[other], arrays[key]
    elif action == 6:
        del arrays[key]
    else:
        arrays[key] = array[:0]
    return arrays


def mutate(claim: Claim, draw: random.Random) -> Claim:
    """A claim with a few random changes, half the time with the digest made to fit again."""
    certificate, document, arrays = json.loads(claim.text), claim.document, claim.arrays
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        where = draw.randrange(3)
        if where == 0:
            certificate = mutate_json(certificate, draw)
        elif where == 1:
            document = mutate_json(document, draw)
        else:
            with np.errstate(all="ignore"):
                arrays = mutate_array(arrays, draw)
    if isinstance(certificate, dict) and draw.random() < 0.6:
        certificate["network"] = digest(document, arrays)
    return Claim(json.dumps(certificate), document, arrays)


def mutate_bytes(content: bytes, draw: random.Random) -> bytes:
    """A file with a few random bytes changed, cut out, doubled, or cut off."""
    for _ in range(draw.choice((1, 1, 2, 8))):
        spot = draw.randrange(len(content) + 1)
        piece = content[spot : spot + draw.randrange(1, 9)]
        action = draw.randrange(5)
        if action == 0:
            content = content[:spot] + bytes([draw.randrange(256)]) + content[spot + 1 :]
        elif action == 1:
            content = content[:spot] + content[spot + len(piece) :]
        elif action == 2:
            content = content[:spot] + piece + content[spot:]
        elif action == 3:
            content = content[:spot] + bytes([draw.randrange(256)]) + content[spot:]
        elif draw.random() < 0.2:
            content = content[:spot]
    return content


def fuzz(cases: int, seed: int) -> Counts:
    """Run mutated claims: four in five as values, one in five as files."""
    draw, counts, cache = random.Random(seed), Counts(), {}
    originals = claims()
    for claim in originals:
        verify(claim.text, claim.document, claim.arrays)
    with tempfile.TemporaryDirectory() as folder:
        certificate, weights = Path(folder) / "c.json", Path(folder) / "c.safetensors"
        files = []
        for graph in networks().values():
            save_certificate(certified(graph, L2), graph, certificate)
            files.append((certificate.read_bytes(), weights.read_bytes()))
        for case in range(cases):
            if case % 5:
                mutated = mutate(draw.choice(originals), draw)
                run = partial(verify, mutated.text, mutated.document, mutated.arrays)
                judge = partial(falsehood, mutated.text, mutated.document, mutated.arrays, cache)
            else:
                contents, which = list(draw.choice(files)), draw.randrange(2)
                contents[which] = mutate_bytes(contents[which], draw)
                certificate.write_bytes(contents[0])
                weights.write_bytes(contents[1])
                run = partial(verify_files, str(certificate), str(weights))
                judge = partial(_file_falsehood, certificate, weights, cache)
            _one(run, judge, counts, case)
    return counts


def _one(run: Callable[[], Any], judge: Callable[[], str], counts: Counts, case: int) -> None:
    try:
        run()
    except Reject:
        counts.verdicts["rejected"] += 1
    except Malformed:
        counts.verdicts["malformed"] += 1
    except Exception as error:
        counts.escapes.append(f"case {case}: {type(error).__name__}: {error}")
    else:
        counts.verdicts["accepted"] += 1
        try:
            false = judge()
        except Exception as error:
            false = f"accepted, but cannot be read: {type(error).__name__}: {error}"
        if false:
            counts.false_accepts.append(f"case {case}: {false}")


def _file_falsehood(certificate: Path, weights: Path, cache: dict[Any, float]) -> str:
    return falsehood(load_certificate(certificate).to_json(), *read_network(weights), cache)


def main(arguments: list[str]) -> int:
    """Print the counts; exit status 1 if anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    start = time.perf_counter()
    counts = fuzz(options.cases, options.seed)
    verdicts = ", ".join(f"{number} {verdict}" for verdict, number in sorted(counts.verdicts.items()))
    print(f"{options.cases} cases, seed {options.seed}, {time.perf_counter() - start:.0f} s: {verdicts}")
    print(f"{len(counts.false_accepts)} false accepts, {len(counts.escapes)} escaped exceptions")
    for line in counts.false_accepts[:20] + counts.escapes[:20]:
        print(" ", line)
    return 1 if counts.false_accepts or counts.escapes else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
