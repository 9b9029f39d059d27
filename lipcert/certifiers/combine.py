"""What a certifier is, and the best of several. Floor 3."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lipcert.certificate import Certificate, Validity, require_everywhere
from lipcert.errors import InvalidInput, UnsupportedOperation
from lipcert.graph import Graph
from lipcert.norms import L2, Norms

Certifier = Callable[[Graph, Norms], Certificate]
"""Turns a graph into a certificate in the norms asked for."""

TRUST = (Validity.RIGOROUS, Validity.NUMERICAL, Validity.ESTIMATE)
"""Most trusted first."""


@dataclass(frozen=True, init=False, repr=False)
class Best:
    """The lowest of several bounds of the same graph; never looser than any of them.

    A certificate that may be trusted further is preferred, however high. A certifier that does not support the graph
    is passed over if another one does.

    Args:
        certifiers: Asked in order.

    Raises:
        InvalidInput: If there is no certifier, or one answers about another network or other norms.
        UnsupportedOperation: If no certifier supports the graph; the message has the reason of each.

    Example:
        >>> import torch
        >>> from lipcert import trace
        >>> from lipcert.certifiers import LipSDP, Product
        >>> graph = trace(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1)), (2,))
        >>> Best(Product(), LipSDP())(graph).bound == LipSDP()(graph).bound
        True
    """

    certifiers: tuple[Certifier, ...]

    def __init__(self, *certifiers: Certifier) -> None:
        """Keep the certifiers."""
        if not certifiers:
            raise InvalidInput("`Best()` has no certifier to ask; write `Best(Product(), LipSDP())`.")
        object.__setattr__(self, "certifiers", certifiers)

    def __repr__(self) -> str:
        """Print as it is written."""
        return f"Best({', '.join(map(repr, self.certifiers))})"

    def __call__(self, graph: Graph, norms: Norms = L2) -> Certificate:
        """Certify a graph; shapes and norms are those of the graph's input and output without batch."""
        found, refusals = [], []
        for certifier in self.certifiers:
            try:
                found.append(self._answer(certifier, graph, norms))
            except UnsupportedOperation as refusal:
                refusals.append(f"\n  {certifier!r}: {refusal}")
                path = refusal.path
        if not found:
            raise UnsupportedOperation(f"no certifier supports this graph in {norms}.{''.join(refusals)}", path=path)
        return min(found, key=trusted_then_tight)

    def _answer(self, certifier: Certifier, graph: Graph, norms: Norms) -> Certificate:
        answer = certifier(graph, norms)
        network = graph.digest()
        if (answer.network, answer.norms) != (network, norms):
            raise InvalidInput(
                f"`{certifier!r}` answered about the network {answer.network} in {answer.norms}; "
                f"asked was {network} in {norms}."
            )
        return about_all(answer, certifier)


def about_all(answer: Certificate, certifier: Certifier) -> Certificate:
    """The answer of a certifier that was asked about all inputs.

    Raises:
        InvalidInput: If it is about a domain.
    """
    require_everywhere(answer, f"what asked `{certifier!r}`")
    return answer


def trusted_then_tight(certificate: Certificate) -> tuple[int, float]:
    """A key that puts the most trusted first, and the tightest of those."""
    return TRUST.index(certificate.validity), certificate.bound
