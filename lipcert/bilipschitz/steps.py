r"""What one step of a network does to distances, from both sides. Floor 5.

A step is what lies between two bottlenecks, nodes through which everything passes. Its lower side comes from the shape
it has:

- an affine map from its smallest singular value,
- an elementwise function from the least steep of its slopes,
- a block :math:`f = P(I + g)` with a permutation P from :math:`\mathrm{Lip}(c I - P^{-1} f) \le K`: then
  :math:`|f(x) - f(y)| \ge (c - K) |x - y|`. For c = 1 this is :math:`1 - \mathrm{Lip}(g)`,
- an additive coupling, where g reads only entries that it leaves alone, from the matrix
  :math:`\begin{pmatrix} 1 & 0 \\ L & 1 \end{pmatrix}`: it and its inverse have norm :math:`(L + \sqrt{L^2 + 4}) / 2`.

Anything else has no lower side here but 0, with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction

import torch
from torch import Tensor

from lipcert.bilipschitz.affine import affine_sides
from lipcert.bilipschitz.kept import Kept, kept
from lipcert.certificate import Certificate
from lipcert.certifiers import Certifier
from lipcert.certifiers.composition import sqrt_up
from lipcert.errors import InvalidInput
from lipcert.graph import Activation, Add, Affine, Concat, Graph, Input, Node
from lipcert.kernel.rounding import round_down, round_up
from lipcert.linear import Diagonal, Selection
from lipcert.norms import L2


class Kind(Enum):
    """The shape of a step."""

    AFFINE = "affine"
    ACTIVATION = "activation"
    RESIDUAL = "residual"
    COUPLING = "coupling"
    OTHER = "other"


@dataclass(frozen=True, eq=False)
class Step:
    """Both sides of one step: ``lower |x - y|_2 <= |f(x) - f(y)|_2 <= upper |x - y|_2``.

    Attributes:
        name: The node it ends at.
        kind: Its shape.
        lower: Rounded down; 0 claims nothing.
        upper: Rounded up.
        reason: Where the lower side comes from, or why there is none.
        block: The step as a network of its own.
        constant: For residual blocks and couplings, a Lipschitz constant of ``branch``.
        centre: For residual blocks c: the branch is ``P^-1 f - x`` for c = 1, ``c x - P^-1 f`` otherwise.
        branch: The network that ``constant`` is about.
        certificates: The proofs of ``constant`` and of ``upper``, about ``branch`` and ``block``.
        kept: For residual blocks and couplings P: the entry of the input that each output passes on.
    """

    name: str
    kind: Kind
    lower: float
    upper: float
    reason: str
    block: Graph
    constant: float | None = None
    centre: float = 1.0
    branch: Graph | None = None
    certificates: tuple[Certificate, ...] = ()
    kept: Tensor | None = None

    @property
    def rate(self) -> float | None:
        """The rate at which a residual block's inverse iteration converges, rounded up; ``None`` for other kinds."""
        if self.kind is not Kind.RESIDUAL or self.constant is None:
            return None
        return round_up(Fraction(self.constant) / Fraction(self.centre))


def coupling_constant(constant: float) -> float:
    r"""The Lipschitz constant of an additive coupling and of its inverse, :math:`(L + \sqrt{L^2 + 4}) / 2`, rounded up.

    It is the norm of :math:`\begin{pmatrix} 1 & 0 \\ L & 1 \end{pmatrix}`: with :math:`a = |x_1 - x_1'|` and
    :math:`b = |x_2 - x_2'|` the outputs are :math:`a` and at most :math:`b + L a` apart. The inverse has -t for t.

    Args:
        constant: L, at least 0.

    Example:
        >>> coupling_constant(0.0), coupling_constant(1.5)
        (1.0, 2.0)
    """
    L = Fraction(constant)
    return round_up((L + sqrt_up(L * L + 4)) / 2)


def bounded(name: str, block: Graph, by: Certifier, centres: Sequence[float]) -> Step:
    """Bound one step from both sides."""
    inner = block.nodes[1:]
    if not inner:
        return Step(name, Kind.AFFINE, 1.0, 1.0, "the identity", block)
    if all(isinstance(node, Affine | Add | Concat) for node in inner):
        lower, upper, reason = affine_sides(block)
        certificates = () if upper < math.inf else (by(block, L2),)
        return Step(name, Kind.AFFINE, lower, _least(upper, certificates), reason, block, certificates=certificates)
    if len(inner) == 1 and isinstance(inner[0], Activation):
        return _activation(name, inner[0], block)
    found = kept(block)
    if not found.is_bijective or found.branch is None:
        own = by(block, L2)
        return Step(name, Kind.OTHER, 0.0, own.bound, _unknown(block, found), block, certificates=(own,))
    return (_coupling if found.is_coupling else _residual)(name, block, found, by, centres)


def _activation(name: str, node: Activation, block: Graph) -> Step:
    low, high = node.slope
    least = torch.where(low > 0, low, torch.where(high < 0, -high, torch.zeros_like(low)))
    lower, upper = float(least.min()), float(torch.maximum(low.abs(), high.abs()).max())
    said = f"{node.function} has slopes in [{float(low.min()):.6g}, {float(high.max()):.6g}]"
    reason = said if lower else f"{said}: two inputs may have the same image, or as good as"
    return Step(name, Kind.ACTIVATION, lower, upper, reason, block)


def _coupling(name: str, block: Graph, found: Kept, by: Certifier, centres: Sequence[float]) -> Step:
    assert found.branch is not None
    branch, own = by(found.branch, L2), by(block, L2)
    both = coupling_constant(branch.bound)
    return Step(
        name=name,
        kind=Kind.COUPLING,
        lower=round_down(1 / Fraction(both)),
        upper=_least(both, (own,)),
        reason=f"additive coupling with Lip(t) <= {branch.bound:.6g}",
        block=block,
        constant=branch.bound,
        branch=found.branch,
        certificates=(branch, own),
        kept=found.index,
    )


def _residual(name: str, block: Graph, found: Kept, by: Certifier, centres: Sequence[float]) -> Step:
    own = by(block, L2)
    tries = [_around(name, block, found, by, centre, own) for centre in centres]
    return max(tries, key=lambda step: step.lower)


def _around(name: str, block: Graph, found: Kept, by: Certifier, centre: float, own: Certificate) -> Step:
    assert found.branch is not None
    branch = found.branch if centre == 1.0 else _minus(found, centre)
    certificate = by(branch, L2)
    L, c = certificate.bound, f"{centre:.6g}"
    what = "L" if centre == 1.0 else f"Lip({c} x - f)"
    if L < centre:
        reason = f"{c} - {what}, {what} <= {L:.6g}"
    else:
        reason = f"lower side vacuous because {what} = {L:.6g} >= {c}"
    return Step(
        name=name,
        kind=Kind.RESIDUAL,
        lower=max(0.0, round_down(Fraction(centre) - Fraction(L))),
        upper=_least(round_up(Fraction(centre) + Fraction(L)), (own,)),
        reason=reason,
        block=block,
        constant=L,
        centre=centre,
        branch=branch,
        certificates=(certificate, own),
        kept=found.index,
    )


def _minus(found: Kept, centre: float) -> Graph:
    """``(c - 1) x - P^-1 g(x)``, which is ``c x - P^-1 f(x)``."""
    g = found.branch
    assert g is not None
    shift = Fraction(centre) - 1
    if Fraction(float(shift)) != shift:
        raise InvalidInput(f"the centre {centre!r} minus 1 is no float64; choose one of fewer digits, as 1.25.")
    names = {node.name for node in g}
    back, there, minus, total = (_fresh(text, names) for text in ("back", "centred", "minus", "total"))
    shape = g.input.shape
    inverse = torch.argsort(found.index).reshape(shape)
    here: list[Node] = [
        Affine(back, g.output.name, Selection(inverse, g.output.shape), None),
        Affine(minus, back, Diagonal(torch.tensor(-1.0, dtype=torch.float64), shape), None),
        Affine(there, g.input.name, Diagonal(torch.tensor(float(shift), dtype=torch.float64), shape), None),
        Add(total, (there, minus), shape),
    ]
    return Graph((*g.nodes, *here))


def _fresh(text: str, names: set[str]) -> str:
    while text in names:
        text = f"({text})"
    names.add(text)
    return text


def _unknown(block: Graph, found: Kept) -> str:
    last = block.output.name
    missing = math.prod(block.input.shape) - len(set(found.index[found.index >= 0].tolist()))
    shapes = f"{block.input.shape} -> {block.output.shape}"
    if found.branch is None or len(found.index) != math.prod(block.input.shape):
        return f"`{last}` ({shapes}) is no bijection that is known"
    return (
        f"`{last}` is neither x + g(x) nor an additive coupling: {missing} of {len(found.index)} entries of the "
        f"input are not passed on with factor 1"
    )


def _least(upper: float, certificates: Iterable[Certificate]) -> float:
    return min([upper, *(certificate.bound for certificate in certificates)])


def step_graph(graph: Graph, source: str, inner: Sequence[Node]) -> Graph:
    """The nodes of a step as a network whose input is what the step reads."""
    return Graph((Input(source, graph[source].shape), *inner))
