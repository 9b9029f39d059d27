"""Bounds on a domain: any certifier, about the network that is left there. Floor 3."""

from __future__ import annotations

from dataclasses import replace

from lipcert.certificate import Certificate
from lipcert.certifiers.auto import Auto
from lipcert.certifiers.combine import Certifier, about_all, trusted_then_tight
from lipcert.domain import Domain, WholeSpace
from lipcert.graph import Graph
from lipcert.norms import L2, Norms
from lipcert.regions import compared, compares, propagated, restricted


def certify_on(
    graph: Graph,
    domain: Domain,
    norms: Norms = L2,
    by: Certifier = Auto(),  # noqa: B008
) -> Certificate:
    r"""Bound a network's Lipschitz constant on a box or an l2 ball.

    What every node can be there is bounded first; activations keep the slopes that occur on what they read, and
    products, layer normalisation and other functions that have no constant on the whole space get one. The bound of
    the network that is left is then anyone's: neurons that stay on one side of their kink are linear, so that on a
    small domain little is left to bound. A network that sorts small groups or takes maxima of small windows is
    bounded twice, the second time with these as comparisons, of which those with a fixed result are linear; the lower
    bound is kept.

    Args:
        graph: The network, traced with this domain.
        domain: Where x and y are: `lipcert.domain.Box` or `L2Ball`. On `WholeSpace` this is ``by`` itself.
        norms: Norms on input and output.
        by: The certifier.

    Raises:
        NotLipschitz: If a function has no finite constant on what it reads there.
        InvalidInput: If the domain is another one, or does not fit the input's shape.

    Example:
        >>> import torch
        >>> from lipcert import trace
        >>> from lipcert.domain import Box
        >>> graph = trace(torch.nn.Sequential(torch.nn.Tanh(), torch.nn.Flatten()), (2,))
        >>> round(certify_on(graph, Box(1.0, 2.0)).bound, 4)
        0.42
    """
    if isinstance(domain, WholeSpace):
        return about_all(by(graph, norms), by)
    forms = [graph, compared(graph)] if any(map(compares, graph)) else [graph]
    return min((_certified(graph, form, domain, norms, by) for form in forms), key=trusted_then_tight)


def _certified(graph: Graph, form: Graph, domain: Domain, norms: Norms, by: Certifier) -> Certificate:
    """A certificate for a graph from the ranges that one of its forms has."""
    stated, _ = propagated(form, domain)
    found = about_all(by(restricted(compared(graph, stated), stated), norms), by)
    ranges = {
        name: (tuple(read.low.flatten().tolist()), tuple(read.high.flatten().tolist())) for name, read in stated.items()
    }
    method = f"on a {type(domain).__name__}: {found.method}"
    return replace(found, method=method, network=graph.digest(), domain=domain, ranges=ranges)
