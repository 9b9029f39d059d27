"""What certificates and witnesses look like to a person: brackets, layer tables, a plot. Floor 5.

Numbers are shortened away from the claim's danger: upper bounds are printed rounded up, ratios rounded down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from lipcert.certificate import Certificate, Multipliers, Validity, Witness
from lipcert.certifiers.combine import trusted_then_tight
from lipcert.certifiers.composition import node_bounds
from lipcert.domain import WholeSpace, to_document
from lipcert.errors import InvalidInput
from lipcert.graph import Activation, Add, Affine, Concat, Graph, Input, Node, Opaque, sources
from lipcert.linear import Adjoint, Conv, LinearMap, Shape
from lipcert.norms import Norms
from lipcert.regions import remaining
from lipcert.sandwich import Sandwich


@dataclass(frozen=True)
class LayerRow:
    """What one node does to distances.

    Attributes:
        node: The node's name: the module path in the model.
        op: What it is.
        shape: Its output shape, without the batch dimension.
        gain: An upper bound of the node's own Lipschitz constant, in the certificate's output norm on both sides.
            ``None`` where the node has none of its own (input, sum, concatenation) or the evidence names none.
        cumulative: An upper bound of the Lipschitz constant of the map from the input to this node. ``None`` inside a
            part that one quadratic constraint bounds as a whole.
        share: The node's part of the total in logarithms, between -1 and 1: ``log factor / sum of |log factor|``,
            where the factor is ``cumulative`` over the largest ``cumulative`` among the nodes it reads.
    """

    node: str
    op: str
    shape: Shape
    gain: float | None
    cumulative: float | None
    share: float


def format_up(value: float, digits: int = 6) -> str:
    """Print a number >= 0 with few digits, never below its true value.

    Example:
        >>> format_up(1.0), format_up(1.0000001), format_up(2 / 3, 3), format_up(2.0**-30)
        ('1', '1.00001', '0.667', '9.31323e-10')
    """
    return _format(value, Context(prec=digits, rounding=ROUND_CEILING))


def format_down(value: float, digits: int = 6) -> str:
    """Print a number >= 0 with few digits, never above its true value.

    Example:
        >>> format_down(0.9999999), format_down(2 / 3, 3), format_down(0.0)
        ('0.999999', '0.666', '0')
    """
    return _format(value, Context(prec=digits, rounding=ROUND_FLOOR))


def report(items: Sequence[Certificate | Witness]) -> str:
    """Print what is known as brackets ``ratio <= Lip(f) <= bound``, one per norm pair, and every item below.

    All items must be about one network. A bracket joins the best witness with the tightest bound of the most
    trusted validity; its ends are rounded outward.

    Certificates on a domain are about that domain: pairs count for them if both inputs lie in it.

    Raises:
        InvalidInput: If certificates are about different networks, or different domains.

    Example:
        >>> from lipcert.certificate import Gains
        >>> from lipcert.norms import L2
        >>> print(report([Certificate(2.0, L2, Validity.RIGOROUS, "Product()", "sha256:0", Gains(()))]))
        Lip(f; l2->l2) <= 2   RIGOROUS
          upper  2             RIGOROUS   Product()
    """
    certificates = [item for item in items if isinstance(item, Certificate)]
    witnesses = [item for item in items if isinstance(item, Witness)]
    networks = {certificate.network for certificate in certificates}
    if len(networks) > 1:
        listed = ", ".join(sorted(networks))
        raise InvalidInput(f"certificates about different networks make no bracket: {listed}. Report each by itself.")
    domain = certificates[0].domain if certificates else WholeSpace()
    if len({str(_document(certificate)) for certificate in certificates}) > 1:
        raise InvalidInput("certificates on different domains make no bracket. Report each by itself.")
    witnesses = [witness for witness in witnesses if domain.contains(witness.x) and domain.contains(witness.y)]
    pairs = dict.fromkeys(item.norms for item in items)
    return "\n".join(
        line
        for norms in pairs
        for line in _bracket(
            norms,
            sorted((c for c in certificates if c.norms == norms), key=trusted_then_tight),
            sorted((w for w in witnesses if w.norms == norms), key=lambda witness: -witness.ratio),
        )
    )


def report_sandwich(found: Sandwich) -> str:
    """Print what is known from both sides, lowest first; the bound is rounded up, everything else down.

    Example:
        >>> from torch import nn
        >>> from lipcert.sandwich import sandwich
        >>> print(report_sandwich(sandwich(nn.Sequential(nn.Flatten(), nn.Tanh()), (2, 2))))
        0.999... <= Lip(f; l2->l2) <= 1   RIGOROUS
          pair        0.999...      two inputs
          bound       1             RIGOROUS   Auto: nothing bends between two linear maps, Product(...)
    """
    certificate = found.certificate
    parts = f", product over {found.parts} parts" if found.parts > 1 else ""
    lines = [
        _bracket(certificate.norms, [certificate], [found.witness])[0],
        _row("pair", found.witness.ratio, "two inputs"),
    ]
    if found.pattern is not None and found.dual is not None:
        lines.append(_row("pattern", found.pattern, f"NUMERICAL  no bound by slopes is lower{parts}"))
        lines.append(_row("dual bound", found.dual, f"NUMERICAL  no multipliers give less{parts}"))
    says = f"{certificate.validity.name:<9}  {certificate.method}"
    return "\n".join([*lines, f"  {'bound':<10}  {format_up(certificate.bound):<12}  {says}"])


def iteration(number: int, rho: float, dual: float) -> str:
    """A solver's iteration in words; the numbers are about the part that it works on."""
    bound = f"iteration {number}, bound {format_up(math.sqrt(rho))}"
    if not dual > 0.0:
        return bound
    gap = max(0.0, math.sqrt(rho / dual) - 1.0)
    return f"{bound}, dual bound {format_down(math.sqrt(dual))}, gap {gap:.1e}"


def layer_rows(graph: Graph, certificate: Certificate) -> tuple[LayerRow, ...]:
    """What every node does to distances, with the bounds that the certificate's evidence gives.

    Raises:
        InvalidInput: If the certificate is about another network.
    """
    if certificate.network != graph.digest():
        raise InvalidInput(
            f"the certificate is about network {certificate.network}, this graph is {graph.digest()}. "
            f"Certify the model again, or use the weights written with the certificate."
        )
    graph = remaining(graph, certificate)
    norms, gains = certificate.norms, certificate.evidence.items
    blocks = certificate.evidence.blocks if isinstance(certificate.evidence, Multipliers) else ()
    bounds = node_bounds(graph, gains, norms, blocks)
    begins = {block.target: (block.source,) for block in blocks}
    own = {gain.path[0]: gain.value for gain in gains if len(gain.path) == 1 and gain.norms == Norms(norms.q, norms.q)}
    logs = {node.name: _log_factor(node, begins.get(node.name, sources(node)), bounds) for node in graph}
    total = sum(abs(log) for log in logs.values()) or 1.0
    return tuple(
        LayerRow(
            node=node.name,
            op=operation(node),
            shape=node.shape,
            gain=_own_gain(node, own, norms),
            cumulative=bounds.get(node.name),
            share=logs[node.name] / total,
        )
        for node in graph
    )


def _document(certificate: Certificate) -> Any:
    return {} if certificate.everywhere else to_document(certificate.domain)


def where(certificate: Certificate) -> str:
    """The norms of a claim, and its domain if it has one.

    Example:
        >>> from lipcert.certificate import Gains
        >>> from lipcert.norms import L2
        >>> from lipcert.domain import Box
        >>> where(Certificate(2.0, L2, Validity.RIGOROUS, "", "", Gains(()), Box(0.0, 1.0)))
        'l2->l2 on the box from 0.0 to 1.0'
    """
    return f"{certificate.norms}" if certificate.everywhere else f"{certificate.norms} {certificate.domain}"


def layer_table(graph: Graph, certificate: Certificate) -> Table:
    """`layer_rows` as a table for a terminal; norms and bounds are rounded up."""
    norms = certificate.norms
    own = Norms(norms.q, norms.q)
    table = Table(
        title=f"Lip(f; {where(certificate)}) <= {format_up(certificate.bound)}   {certificate.validity.name}",
        caption=f"norm: the node alone, {own}; from input: input to node, {norms}; share: of the sum of |log|",
    )
    table.add_column("node", overflow="fold")
    for header in ("operation", "shape", "norm", "from input", "share"):
        table.add_column(header, justify="left" if header == "operation" else "right", no_wrap=True)
    for row in layer_rows(graph, certificate):
        gain = "" if row.gain is None else format_up(row.gain)
        shape = "x".join(map(str, row.shape)) or "scalar"
        share = f"{row.share:+.0%}" if abs(row.share) >= 0.005 else ""
        reached = "" if row.cumulative is None else format_up(row.cumulative)
        table.add_row(escape(row.node), escape(row.op), shape, gain, reached, share)
    return table


def plot_layers(graph: Graph, certificate: Certificate, path: str | Path) -> None:
    """Draw each node's own norm beside the bound from the input to it, into a picture file.

    Nodes that change no distance by construction (the input, reshapes) are left out. Both axes are logarithmic.

    Args:
        graph: The network.
        certificate: A certificate about it.
        path: Where to write; the suffix chooses the format (``.png``, ``.pdf``, ``.svg``).

    Raises:
        InvalidInput: If the certificate is about another network, or matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import NullFormatter
    except ModuleNotFoundError as error:
        raise InvalidInput("drawing needs matplotlib, which is not installed; install lipcert[plot].") from error
    rows = [row for row in layer_rows(graph, certificate) if row.op not in ("input", "reshape")]
    norms = certificate.norms
    figure = Figure(figsize=(9.0, 1.6 + 0.26 * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    places = list(range(len(rows)))
    gains = [row.gain or math.nan for row in rows]
    left.barh(places, [gain - 1 for gain in gains], left=1.0, color=["#c44e52" if g > 1 else "#4c72b0" for g in gains])
    left.set_xlabel(f"norm of the node alone ({Norms(norms.q, norms.q)})")
    reached = [row.cumulative or math.nan for row in rows]
    right.plot(reached, places, marker="o", markersize=3, linewidth=1.0, color="black")
    right.set_xlabel(f"bound from the input to the node ({norms})")
    for axes, values in ((left, gains), (right, reached)):
        axes.axvline(1.0, color="black", linewidth=0.8)
        axes.set_xscale("log")
        axes.set_axisbelow(True)
        axes.margins(y=0.01)
        axes.grid(axis="x", which="both", linewidth=0.4, alpha=0.6)
        axes.xaxis.set_major_formatter("{x:g}")
        known = [value for value in values if value == value]
        wide = bool(known) and max(known) > 5 * min(known)
        axes.xaxis.set_minor_formatter(NullFormatter() if wide else "{x:g}")
        axes.tick_params(axis="x", which="both", labelsize=8)
    left.set_yticks(places, [f"{row.node}  ({row.op})" for row in rows], fontsize=8)
    left.invert_yaxis()
    title = f"Lip(f; {where(certificate)}) $\\leq$ {format_up(certificate.bound)}   ({certificate.validity.name})"
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=150)


def assumptions(graph: Graph) -> tuple[str, ...]:
    """The nodes whose slope or constant is a user's word, as ``name (declared:who)``; a certificate rests on them."""
    functions = [node for node in graph if isinstance(node, Activation | Opaque)]
    return tuple(f"{node.name} ({node.function})" for node in functions if node.function.startswith("declared:"))


def operation(node: Node) -> str:
    """What a node is, in a word or two.

    Example:
        >>> operation(Add("s", ("a", "b"), (3,)))
        'add'
    """
    match node:
        case Affine(map=linear):
            return _map_name(linear)
        case Activation(function=function) | Opaque(function=function):
            return function
        case Input() | Add() | Concat():
            return type(node).__name__.lower()


def _map_name(linear: LinearMap) -> str:
    match linear:
        case Conv():
            return f"conv {'x'.join(map(str, linear.weight.shape[2:]))}"
        case Adjoint(conv):
            return f"transposed {_map_name(conv)}"
        case _:
            return type(linear).__name__.lower()


def _own_gain(node: Node, own: dict[str, float], norms: Norms) -> float | None:
    match node:
        case Affine():
            return own.get(node.name)
        case Activation(slope=(lower, upper)):
            return max(abs(float(lower.min())), abs(float(upper.max())))
        case Opaque(gains=gains):
            return gains.get(Norms(norms.q, norms.q))
        case Input() | Add() | Concat():
            return None


def _log_factor(node: Node, reads: tuple[str, ...], bounds: dict[str, float]) -> float:
    if node.name not in bounds:
        return 0.0
    before = max((bounds[name] for name in reads), default=1.0)
    after = bounds[node.name]
    return math.log(after) - math.log(before) if before > 0.0 and after > 0.0 else 0.0


def _row(name: str, value: float, says: str) -> str:
    return f"  {name:<10}  {format_down(value):<12}  {says}"


def _bracket(norms: Norms, certificates: list[Certificate], witnesses: list[Witness]) -> list[str]:
    low = f"{format_down(witnesses[0].ratio)} <= " if witnesses else ""
    high = f" <= {format_up(certificates[0].bound)}   {certificates[0].validity.name}" if certificates else ""
    lines = [f"{low}Lip(f; {where(certificates[0]) if certificates else norms}){high}"]
    for certificate in certificates:
        validity = certificate.validity
        lines.append(f"  upper  {format_up(certificate.bound):<12}  {validity.name:<9}  {certificate.method}")
        if witnesses and witnesses[0].ratio > certificate.bound and validity is not Validity.ESTIMATE:
            lines.append(
                "  CONTRADICTION: a pair of inputs stretches more than this bound allows. If both are about the same "
                "model, the bound is wrong: please report it."
            )
    lines += [f"  lower  {format_down(witness.ratio):<12}  a pair of inputs" for witness in witnesses]
    return lines


def _format(value: float, context: Context) -> str:
    if not math.isfinite(value):
        return str(value)
    shortened = context.plus(Decimal(value))
    if shortened == 0:
        return "0"
    if -5 <= shortened.adjusted() < max(context.prec, 6):
        text = f"{shortened:f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    mantissa, _, exponent = f"{shortened:e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"
