"""What a critic with a certified constant proves about a Wasserstein-1 distance. Floor 5."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn

from lipcert.certificate import Certificate, Validity, require_everywhere
from lipcert.errors import InvalidInput
from lipcert.graph import Graph
from lipcert.kernel.rounding import round_down
from lipcert.linear import Shape
from lipcert.norms import Norms
from lipcert.trace import trace
from lipcert.transport.intervals import Interval, bounded_range, require_confidence, require_within, sub_gaussian
from lipcert.transport.values import (
    Between,
    difference_of_means,
    require_samples,
    require_scalar,
    values,
)


@dataclass(frozen=True)
class DualBound:
    r"""A lower bound of a Wasserstein-1 distance, in the input norm of the certificate.

    Attributes:
        value: The distance of the two *empirical* measures is at least this: no probability, rounding included.
        dual: The mean of the critic over xs minus that over ys, enclosed.
        constant: The certified constant that it was divided by.
        norms: Norms of the certificate; distances are measured in ``norms.p``.
        validity: Of the certificate, and so of the bound.
        confidence: Of each of the intervals.
        bounded: For the two *distributions*, if a diameter was given.
        concentrated: For the two *distributions*, if a sub-Gaussian constant was given.
    """

    value: float
    dual: Between
    constant: float
    norms: Norms
    validity: Validity
    confidence: float
    bounded: Interval | None
    concentrated: Interval | None


def dual_bound(
    critic: nn.Module,
    certificate: Certificate,
    xs: Tensor,
    ys: Tensor,
    *,
    diameter: float | None = None,
    concentration: float | None = None,
    confidence: float = 0.95,
) -> DualBound:
    r"""Bound a Wasserstein-1 distance from below by what a critic reports, divided by its certified constant.

    For any f with constant K, :math:`|E_P f - E_Q f| \le K W_1(P, Q)`: integrate :math:`|f(x) - f(y)| \le K |x - y|`
    over the best coupling.

    *The two samples as measures.* The bound is a theorem, whatever the critic was trained on.

    *The distributions they were drawn from.* An `Interval` says where :math:`(E_P f - E_Q f) / K` is with the stated
    confidence, and its `least` bounds the distance from below. Each states its assumption; both need independent draws
    on which the critic was **not** trained, or selected among others: on its training data a critic reports too much.

    Args:
        critic: One number per sample, in evaluation mode; copied, never changed.
        certificate: Of this very network. One that was read from a file says of itself what it likes: pass it through
            `lipcert.check` first.
        xs: Shape ``(N, ...)``: a sample of P.
        ys: Shape ``(M, ...)``: a sample of Q.
        diameter: Of the supports of P and of Q, in the input norm (not of the samples): then f varies by at most
            K times it. Without it there is no such interval.
        concentration: A constant :math:`\sigma` such that 1-Lipschitz functions are :math:`\sigma`-sub-Gaussian under P
            and Q; for normal distributions in l2 the root of the largest eigenvalue of the covariance.
        confidence: Of each interval by itself.

    Raises:
        InvalidInput: If the certificate is an estimate, infinite or about another network, the critic gives several
            numbers, a sample is empty, or the samples contradict the diameter.
        NotFinite: If a sample is not.
        UnsupportedOperation: If the critic cannot be captured or its values cannot be enclosed.

    References:
        | Optimal transport: old and new (Villani, 2009), theorem 5.10
        | Empirical Bernstein bounds and sample variance penalization (Maurer and Pontil, 2009), theorem 4
        | Exponential integrability and transportation cost (Bobkov and Goetze, 1999)

    Example:
        >>> from lipcert.certify import certify
        >>> critic = nn.Linear(1, 1).requires_grad_(False)
        >>> _ = critic.weight.fill_(3.0), critic.bias.fill_(1.0)
        >>> xs, ys = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [0.5]])
        >>> bound = dual_bound(critic, certify(critic, (1,)), xs, ys, diameter=2.0)
        >>> round(bound.value, 6), bound.bounded.least  # four points say nothing of their distributions
        (1.25, 0.0)
    """
    require_confidence(confidence, diameter=diameter, concentration=concentration)
    require_samples(xs, ys)
    graph = certified_graph(critic, certificate, tuple(xs.shape[1:]))
    require_scalar(graph)
    norms, constant, delta = certificate.norms, certificate.bound, (1.0 - confidence) * (1.0 - 2.0**-40)
    at_x, at_y = values(graph, xs), values(graph, ys)
    dual = difference_of_means(at_x, at_y)
    bounded = concentrated = None
    if diameter is not None:
        require_within(xs, ys, diameter, lambda x: torch.linalg.vector_norm(x, norms.p, dim=1))
        bounded = _constant_critic() if constant == 0.0 else bounded_range(dual, at_x, at_y, constant, diameter, delta)
    if concentration is not None:
        concentrated = (
            _constant_critic()
            if constant == 0.0
            else sub_gaussian(dual, len(xs), len(ys), constant, concentration, delta)
        )
    return DualBound(
        per_constant(dual, constant), dual, constant, norms, certificate.validity, confidence, bounded, concentrated
    )


def certified_graph(network: nn.Module, certificate: Certificate, shape: Shape) -> Graph:
    """The graph of a network that a certificate is about and may be relied on for.

    Raises:
        InvalidInput: If the certificate is an estimate, infinite, on a domain, or about another network.
        UnsupportedOperation: If the network cannot be captured.
    """
    if certificate.validity is Validity.ESTIMATE:
        raise InvalidInput(
            f"the certificate ({certificate.method}) is an estimate: it may be below the true constant, and then the "
            "bound would be false. Use lipcert.certify."
        )
    require_everywhere(certificate, "a distance between samples")
    if math.isinf(certificate.bound):
        raise InvalidInput(f"the certificate ({certificate.method}) is infinite, which bounds nothing.")
    graph = trace(network, shape)
    if graph.digest() != certificate.network:
        raise InvalidInput(
            f"the certificate is about the network {certificate.network[:12]}..., this one is {graph.digest()[:12]}... "
            f"at samples of shape {shape}; weights that changed after the proof have another digest. Certify it again."
        )
    return graph


def per_constant(dual: Between, constant: float) -> float:
    """The magnitude of a difference of means over a constant of f, which is one of -f too, rounded down."""
    least = max(0.0, dual.low, -dual.high)
    return round_down(Fraction(least) / Fraction(constant)) if constant > 0.0 else 0.0


def _constant_critic() -> Interval:
    return Interval(0.0, 0.0, "none: the critic is constant")
