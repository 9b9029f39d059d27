"""The three answers to a claim: a proof, a counterexample, or both numbers and the reason. Floor 5."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.certificate import Certificate, Witness
from lipcert.domain import Domain, WholeSpace
from lipcert.graph import Graph
from lipcert.linear import Shape
from lipcert.norms import Norms

_SHORT = 64


@dataclass(frozen=True)
class Claim:
    """``|f(x) - f(y)|_q <= bound * |x - y|_p`` for all x and y of the domain.

    Attributes:
        bound: The claimed constant, read as an exact number.
        norms: Norms on input and output.
        domain: Where x and y may lie.
        shape: Of one input, without batch dimension.
    """

    bound: float
    norms: Norms
    domain: Domain
    shape: Shape

    def __str__(self) -> str:
        """Print as an inequality."""
        where = "" if isinstance(self.domain, WholeSpace) else f" on {self.domain}"
        return f"Lip(f; {self.norms}) <= {self.bound!r}{where}"


@dataclass(frozen=True, eq=False)
class Proved:
    """The claim is a theorem.

    Attributes:
        claim: What was asked.
        certificate: The proof; its bound is at most the claimed one.
        graph: The network it is about, as `lipcert.check` and `lipcert.storage.save_certificate` take it.
    """

    claim: Claim
    certificate: Certificate
    graph: Graph

    def __str__(self) -> str:
        """One line."""
        return f"PROVED  {self.claim}: {self.certificate.bound!r} by {self.certificate.method}"


@dataclass(frozen=True, eq=False)
class Refuted:
    """The claim is false, and that is a theorem.

    Attributes:
        claim: What was asked.
        witness: The pair, simplified, with its quotient rounded down.
        steepest: The largest quotient among all pairs that were confirmed, rounded down.
        exact: Whether the quotient was computed in rational arithmetic; else in balls of some hundred bits that hold
            it, which proves as much.
        graph: The network it is about.
        engine: What found the pair.
        seconds: How long that took.
        blamed: The first layer whose own claim is false, or what stretches the pair; may be empty.
        seed: Of the search.
    """

    claim: Claim
    witness: Witness
    steepest: float
    exact: bool
    graph: Graph
    engine: str
    seconds: float
    blamed: str
    seed: int

    def __str__(self) -> str:
        """The claim, what was seen, the layer, the pair as Python literals, and how to see it again."""
        how = "rational arithmetic" if self.exact else "ball arithmetic, every value enclosed"
        lines = [
            f"REFUTED  {self.claim}: two inputs are stretched {self.witness.ratio!r} times, others {self.steepest!r}",
            f"  exactly verified: yes ({how})",
            *([f"  {self.blamed}"] if self.blamed else []),
            f"  x = {literal(self.witness.x)}",
            f"  y = {literal(self.witness.y)}",
            f"  found by {self.engine} after {self.seconds:.2f} s; again: lipcheck(model, {self.claim.shape}, "
            f"{self.claim.bound!r}, norms=Norms.parse({str(self.claim.norms)!r}), "
            f"generator=torch.Generator().manual_seed({self.seed}))",
        ]
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class Unknown:
    """Neither proved nor refuted.

    Attributes:
        claim: What was asked.
        witness: The best pair found. Its ratio is float64 with an allowance for rounding, not a theorem.
        upper: The best proven bound; infinite if there is none.
        reason: What stood in the way.
        graph: The network, if it could be captured.
    """

    claim: Claim
    witness: Witness
    upper: float
    reason: str
    graph: Graph | None

    def __str__(self) -> str:
        """Both numbers and the reason."""
        upper = "no bound" if math.isinf(self.upper) else f"at most {self.upper!r}"
        return f"UNKNOWN  {self.claim}: at least {self.witness.ratio!r}, {upper}\n  {self.reason}"


Verdict = Proved | Refuted | Unknown


def literal(x: Tensor) -> str:
    """A tensor as text that Python reads back exactly: nested lists, or the entries that are not zero by index.

    Example:
        >>> literal(torch.tensor([[0.5, 0.0]]))
        '[[0.5, 0.0]]'
        >>> literal(torch.eye(9).double())[:40]
        '{(0, 0): 1.0, (1, 1): 1.0, (2, 2): 1.0, '
    """
    if x.numel() <= _SHORT:
        return repr(x.tolist())
    places = torch.nonzero(x).tolist()
    entries = ", ".join(f"{tuple(place)}: {x[tuple(place)].item()!r}" for place in places[: 4 * _SHORT])
    if len(places) > 4 * _SHORT:
        return f"{{{entries}, ...}}  # {len(places)} entries of shape {tuple(x.shape)}; all of them in the verdict"
    return f"{{{entries}}}  # shape {tuple(x.shape)}, all others 0.0"
