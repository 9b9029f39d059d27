"""What is said of a certificate on a page: the claim, what it rests on, layers, spectra, a pair, the way to check it.

Numbers are shortened as in `lipcert.report`: upper bounds up, lower bounds down. Floor 5.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from lipcert.certificate import Block as Part
from lipcert.certificate import Certificate, Multipliers, Validity
from lipcert.graph import Graph
from lipcert.linear import Shape
from lipcert.norms import L2, Norms
from lipcert.pages.document import Block, Command, Facts, Formula, Grid, Page, Picture, Section, Warn, Words
from lipcert.pages.pairs import Measured, measured
from lipcert.pages.pictures import histograms, side_by_side
from lipcert.pages.spectra import Spectrum, spectra
from lipcert.report import LayerRow, assumptions, format_down, format_up, layer_rows

SUBSCRIPT = {1.0: "₁", 2.0: "₂", math.inf: "∞"}
NAME = {1.0: "l1 (sum of moduli)", 2.0: "l2 (Euclidean)", math.inf: "linf (largest modulus)"}
MOST = 24
"""Layers whose singular values are drawn; the table has all of them."""

MEANING = {
    Validity.RIGOROUS: (
        "A theorem about the stored weights, rounding included: no pair of inputs is stretched by more than the bound."
    ),
    Validity.NUMERICAL: (
        "A theorem evaluated in floating point. The bound may be too low by rounding or by the tolerance of a solver; "
        "do not use it as a guarantee."
    ),
    Validity.ESTIMATE: "The true constant may be larger than this number. Never use it as a guarantee.",
}


@dataclass(frozen=True)
class Origin:
    """Where a certificate was read from.

    Attributes:
        certificate: Its file; ``None`` if the page is made from a model and no certificate was written.
        weights: The file of its network.
    """

    certificate: Path | None = None
    weights: Path | None = None


def certificate_page(
    graph: Graph,
    certificate: Certificate,
    pair: tuple[Tensor, Tensor] | None = None,
    origin: Origin = Origin(),
) -> Page:
    """Everything that is to be said of a certificate, for a person who did not make it.

    Nothing is proved here: the page says what the certificate says of itself, and how to check it. The difference
    quotient of a pair is computed without rounding.

    Args:
        graph: The network.
        certificate: A certificate about it.
        pair: Two inputs without batch dimension, float64.
        origin: Where the certificate lies, for the command that checks it.

    Raises:
        InvalidInput: If the certificate is about another network, or the pair is equal, not finite or of another shape.

    Example:
        >>> from torch import nn
        >>> from lipcert.certifiers import Product
        >>> from lipcert.norms import L2
        >>> from lipcert.trace import trace
        >>> graph = trace(nn.ReLU(), (2,))
        >>> page = certificate_page(graph, Product()(graph, L2))
        >>> page.title, [section.title for section in page.sections][:2]
        ('Lip(f; l2→l2) ≤ 1', ['The claim', 'How to check it'])
    """
    rows = layer_rows(graph, certificate)  # refuses another network before anything is shown
    found = spectra(graph)
    parts = certificate.evidence.blocks if isinstance(certificate.evidence, Multipliers) else ()
    sections = [
        Section("The claim", _claim(graph, certificate)),
        Section("How to check it", _check(origin)),
        Section("What it rests on", _rests_on(graph)),
        Section("Layers", _layers(rows, certificate, found, parts)),
    ]
    if pair is not None:
        sections.append(Section("A pair of inputs", _pair(measured(graph, *pair, certificate.norms), certificate)))
    if found:
        sections.append(Section("Singular values of the linear layers", _spectra(found)))
    return Page(f"Lip(f; {_arrow(certificate.norms)}) ≤ {format_up(certificate.bound)}", tuple(sections))


def _claim(graph: Graph, certificate: Certificate) -> tuple[Block, ...]:
    norms, bound = certificate.norms, format_up(certificate.bound)
    change, distance = f"‖f(x) - f(y)‖{SUBSCRIPT[norms.q]}", f"‖x - y‖{SUBSCRIPT[norms.p]}"
    where = _domain(graph, certificate)
    facts = (
        ("bound", f"{bound} (rounded up)"),
        ("bound, every digit", f"{certificate.bound!r} = {certificate.bound.hex()}"),
        ("norm of inputs", NAME[norms.p]),
        ("norm of outputs", NAME[norms.q]),
        ("holds for", where),
        ("outputs", f"of shape {_shape(graph.output.shape)}"),
        ("validity", f"{certificate.validity.name}. {MEANING[certificate.validity]}"),
        ("method", certificate.method),
        ("network", certificate.network),
    )
    doubted = certificate.validity is not Validity.RIGOROUS
    return (
        Formula(f"{change} ≤ {bound} · {distance}  for {where}"),
        Words(
            f"If two inputs are a distance d apart, their outputs are at most {bound} times d apart. f is the "
            f"real-valued function of the network in evaluation mode, its stored weights read as exact numbers."
        ),
        *((Warn(f"This is not a proof. {MEANING[certificate.validity]}"),) if doubted else ()),
        Facts(facts),
    )


def _domain(graph: Graph, certificate: Certificate) -> str:
    """For which inputs the claim is made."""
    inputs = f"all inputs x, y of shape {_shape(graph.input.shape)}"
    return inputs if certificate.everywhere else f"{inputs} {certificate.domain}, and no others"


def _check(origin: Origin) -> tuple[Block, ...]:
    unchecked = "This page says what the certificate says of itself. Nothing on it was checked when it was written."
    if origin.certificate is None:
        return (Words(f"{unchecked} It was made from a model; lipcert certify --out writes a certificate."),)
    files = [str(origin.certificate), str(origin.weights or origin.certificate.with_suffix(".safetensors"))]
    # A name that begins with a dash would be read as an option.
    named = " ".join(shlex.quote(f"./{file}" if file.startswith("-") else file) for file in files)
    return (
        Words(f"{unchecked} With its two files it is proved again, in exact arithmetic, by code that did not make it:"),
        Command(f"lipcert check {named}"),
        Words("or without lipcert and torch, by one file that needs Python and numpy only (lipcert/check.py):"),
        Command(f"python check.py {named}"),
        Words(
            "Exit status 0 is accepted, 1 is rejected. A network too large for exact arithmetic is answered with "
            "status 4 or, by check.py, as too large; then lipcert check --float64 proves it with outward rounding."
        ),
    )


def _rests_on(graph: Graph) -> tuple[Block, ...]:
    declared = assumptions(graph)
    stated = (
        Grid(("node (declared by)",), tuple((name,) for name in declared))
        if declared
        else Words("No slope or constant was declared by a user.")
    )
    intro = (Words("These slopes or constants are a user's word; the claim is true if they are:"),) if declared else ()
    return (
        *intro,
        stated,
        Words(
            "That the network in the file is the model: the certificate is about the graph and the weights with the "
            "digest above. Not covered are the rounding of the network as it is executed, training mode, and whatever "
            "is outside the graph, such as preprocessing."
        ),
    )


def _layers(
    rows: Sequence[LayerRow], certificate: Certificate, found: Sequence[Spectrum], parts: Sequence[Part]
) -> tuple[Block, ...]:
    norms = certificate.norms
    largest = {s.node: format_down(float(s.values[0])) for s in found if len(s.values)} if norms == L2 else {}
    used = {name: numbers for part in parts for name, numbers in part.multipliers.items()}
    columns = [
        ("node", [row.node for row in rows]),
        ("operation", [row.op for row in rows]),
        ("shape", [_shape(row.shape) for row in rows]),
        ("norm, at most", ["" if row.gain is None else format_up(row.gain) for row in rows]),
        ("largest singular value", [largest.get(row.node, "") for row in rows]),
        ("multipliers", [_multipliers(used[row.node]) if row.node in used else "" for row in rows]),
        ("from the input, at most", ["" if row.cumulative is None else format_up(row.cumulative) for row in rows]),
        ("share", [f"{row.share:+.0%}" if abs(row.share) >= 0.005 else "" for row in rows]),
    ]
    shown = [(header, cells) for header, cells in columns if any(cells)]
    headers = tuple(header for header, _ in shown)
    numeric = frozenset(k for k, header in enumerate(headers) if header not in ("node", "operation", "multipliers"))
    own = Norms(norms.q, norms.q)
    says = f"Norm: of the node alone, {_arrow(own)}. From the input: of the map from the input to the node, "
    says += f"{_arrow(norms)}. Share: of the sum of the moduli of the logarithms of all factors."
    if largest:
        says += " Singular values are in floating point, for comparison; nothing rests on them."
    blocks: list[Block] = [Grid(headers, tuple(zip(*(cells for _, cells in shown), strict=True)), numeric), Words(says)]
    joint = [gain for gain in certificate.evidence.items if len(gain.path) > 1]
    if joint:
        blocks.append(Words("Neighbouring linear layers bounded as one map:"))
        pathed = tuple((", ".join(gain.path), _arrow(gain.norms), format_up(gain.value)) for gain in joint)
        blocks.append(Grid(("layers", "norms", "at most"), pathed, frozenset({2})))
    return (*blocks, *_parts(parts))


def _parts(parts: Sequence[Part]) -> tuple[Block, ...]:
    if not parts:
        return ()
    rows = tuple(
        (
            part.source,
            part.target,
            format_up(part.value),
            str(sum(map(len, part.multipliers.values()))),
            _shape(part.torus) if part.torus else "",
        )
        for part in parts
    )
    headers = ("from", "to", "at most", "multipliers", "torus")
    used = headers if any(row[4] for row in rows) else headers[:4]
    return (
        Words("Parts that one quadratic constraint bounds as a whole, with numbers >= 0 as its multipliers:"),
        Grid(used, tuple(row[: len(used)] for row in rows), frozenset({2, 3})),
    )


def _pair(pair: Measured, certificate: Certificate) -> tuple[Block, ...]:
    norms, change = certificate.norms, pair.x - pair.y
    facts = [
        ("distance of the inputs", f"{pair.apart:.6g} in {NAME[norms.p]}"),
        ("entries that differ", f"{int(change.count_nonzero())} of {change.numel()}"),
        ("largest difference of an entry", f"{float(change.abs().max()):.6g}"),
        ("x, y between", _range(pair)),
    ]
    picture = Picture(partial(side_by_side, pair.x, pair.y), "The two inputs and their difference.")
    if pair.stretched is None:
        return (Warn(f"The quotient of this pair is not known exactly: {pair.refused}"), Facts(tuple(facts)), picture)
    stretched, bound = pair.stretched, certificate.bound
    how = "exactly, in rational arithmetic" if stretched.exact else "at least, by an enclosure"
    quotient = f"‖f(x) - f(y)‖{SUBSCRIPT[norms.q]} / ‖x - y‖{SUBSCRIPT[norms.p]} ≥ {format_down(stretched.ratio)}"
    facts.insert(0, ("quotient", f"{stretched.ratio!r} ({how}; rounded down to a float)"))
    if not all(certificate.domain.contains(x) for x in (pair.x, pair.y)):
        said: Block = Warn(
            f"The claim is not about this pair: it holds {certificate.domain}, and one is outside."
        )
    elif stretched.exceeds(bound):
        said = Warn(
            f"CONTRADICTION: this pair is stretched by more than {format_up(bound)}, so the certificate is false for "
            f"this network. Check it; if the check accepts it, please report both."
        )
    else:
        share = format_down(100.0 * stretched.ratio / bound if bound else 100.0, 4)
        said = Words(
            f"So the constant of the network is between {format_down(stretched.ratio)} and {format_up(bound)}, if the "
            f"certificate is accepted: the pair reaches {share}% of the bound."
        )
    return (Formula(quotient), said, Facts(tuple(facts)), picture)


def _range(pair: Measured) -> str:
    ends = torch.stack([pair.x, pair.y])
    return f"{float(ends.min()):.6g} and {float(ends.max()):.6g}"


def _spectra(found: Sequence[Spectrum]) -> tuple[Block, ...]:
    rows = tuple(
        (
            spectrum.node,
            _shape(spectrum.matrix),
            *(
                (str(len(v)), f"{float(v[-1]):.5g}", f"{float(v[len(v) // 2]):.5g}", f"{float(v[0]):.5g}", "")
                if len(v := spectrum.values)
                else ("", "", "", "", spectrum.left_out)
            ),
        )
        for spectrum in found
    )
    headers = ("layer", "outputs x inputs", "values", "smallest", "median", "largest", "left out")
    used = headers if any(row[6] for row in rows) else headers[:6]
    drawn = [spectrum for spectrum in found if len(spectrum.values) > 1][:MOST]
    caption = f"Singular values, {len(drawn)} of {len(found)} layers; the red line is the largest one."
    picture = (Picture(partial(histograms, drawn), caption),) if drawn else ()
    says = (
        "Of the matrix of every linear layer as it acts, with stride and padding, in floating point: for a look, not "
        "for a proof. Layers whose matrix is too large to be written out are left out."
    )
    return (Words(says), *picture, Grid(used, tuple(row[: len(used)] for row in rows), frozenset({1, 2, 3, 4, 5})))


def _multipliers(numbers: Sequence[float]) -> str:
    if not numbers:
        return ""
    return f"{len(numbers)}, from {min(numbers):.3g} to {max(numbers):.3g}"


def _arrow(norms: Norms) -> str:
    return str(norms).replace("->", "→")


def _shape(shape: Shape) -> str:
    return " x ".join(map(str, shape)) or "scalar"
