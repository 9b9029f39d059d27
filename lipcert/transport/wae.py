r"""The distance of data and what an autoencoder generates, between two proven numbers. Floor 5."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor, nn

from lipcert.certificate import Certificate, Validity
from lipcert.errors import InvalidInput
from lipcert.kernel.rounding import round_down, round_up
from lipcert.norms import Norms
from lipcert.transport.coupling import Transport, empirical_w1, ends
from lipcert.transport.dual import certified_graph, per_constant
from lipcert.transport.values import (
    Between,
    Values,
    difference_of_means,
    mean,
    require_samples,
    require_scalar,
    values,
)


@dataclass(frozen=True, eq=False)
class Bracket:
    """A Wasserstein-1 distance of data and generated points, as measures, in the decoder's output norm.

    Attributes:
        lower: By the critic, or zero without one.
        upper: ``reconstruction + gamma * latent.upper``, rounded up.
        reconstruction: At least the mean distance of a data point and the decoder's image of its code.
        gamma: The decoder's certified constant.
        latent: The distance of the codes and the prior sample.
        validity: The weaker one of the certificates'.
    """

    lower: float
    upper: float
    reconstruction: float
    gamma: float
    latent: Transport
    validity: Validity


def wae_bracket(
    decoder: nn.Module,
    certificate: Certificate,
    xs: Tensor,
    codes: Tensor,
    prior: Tensor,
    *,
    critic: tuple[nn.Module, Certificate] | None = None,
) -> Bracket:
    r"""Bound the distance of a data sample and the decoder's image of a prior sample from both sides.

    The measures are empirical: P has mass 1/n at each of the n points ``xs``, G has mass 1/n at the real-valued
    decoder's image of each of the n points ``prior``. Nothing is said of the distributions behind them, and nothing
    need be known of the encoder: any ``codes`` will do, rounded and random ones too.

    Upper end: with Q the measure at the codes, Z that at the prior points and g the decoder,
    :math:`W_1(P, g_\# Z) \le W_1(P, g_\# Q) + W_1(g_\# Q, g_\# Z)`; the pairing of data and codes bounds the first term
    by the mean of :math:`|x - g(code)|`, and g stretches the best coupling of Q and Z by at most :math:`\gamma`.

    Lower end: what the critic reports on P and G, divided by its certified constant.

    Args:
        decoder: From codes to data; copied, never changed.
        certificate: Of the decoder: its bound is :math:`\gamma`, from the norm of codes to the norm of data.
        xs: Shape ``(n, ...)``: data.
        codes: Shape ``(n, ...)``: row i is the code of row i of xs.
        prior: Of the shape of codes: draws of the prior.
        critic: A critic on data and its certificate, whose input norm is the decoder's output norm.

    Raises:
        InvalidInput: If a certificate is an estimate, infinite or about another network, shapes do not fit, the critic
            gives several numbers, or its norm is another one.
        NotFinite: If a sample or an output is not.
        UnsupportedOperation: If a network cannot be captured or its values cannot be enclosed.

    References:
        | Sinkhorn AutoEncoders (Patrini et al., 2019), theorem 3.1, https://arxiv.org/abs/1810.01118

    Example:
        >>> from lipcert.certify import certify
        >>> decoder = nn.Identity()
        >>> xs, codes = torch.tensor([[0.0], [4.0]]), torch.tensor([[1.0], [3.0]])
        >>> found = wae_bracket(decoder, certify(decoder, (1,)), xs, codes, torch.tensor([[1.0], [1.0]]))
        >>> round(found.upper, 9)  # 1 for the codes, 1 for what is between them and the prior; the distance is 2
        2.0
    """
    require_samples(codes, prior)
    require_samples(xs, xs)
    if len(xs) != len(codes):
        raise InvalidInput(f"{len(xs)} points and {len(codes)} codes; every point has one code, in the same row.")
    norms = certificate.norms
    graph = certified_graph(decoder, certificate, tuple(codes.shape[1:]))
    if graph.output.shape != tuple(xs.shape[1:]):
        raise InvalidInput(f"the decoder gives {graph.output.shape}, data points have shape {tuple(xs.shape[1:])}.")
    latent = empirical_w1(codes, prior, norms.p)
    reconstruction = _reconstruction(xs, values(graph, codes), norms.q)
    gamma = certificate.bound
    upper = round_up(Fraction(reconstruction) + Fraction(gamma) * Fraction(latent.upper))
    lower, validity = 0.0, certificate.validity
    if critic is not None:
        lower = _lower(*critic, xs, values(graph, prior), norms)
        validity = max(validity, critic[1].validity, key=list(Validity).index)
    return Bracket(lower, upper, reconstruction, gamma, latent, validity)


def _reconstruction(xs: Tensor, images: Values, q: float) -> float:
    """The mean of the distances of data and images, rounded up; images may be off by their errors."""
    apart = torch.linalg.vector_norm((xs.detach().double().cpu() - images.at).flatten(1), q, dim=1).numpy()
    _, above = ends(apart, xs[0].numel())
    return round_up(mean(above.tolist()) + mean(_in_norm(images, q).tolist()))


def _in_norm(images: Values, q: float) -> np.ndarray:
    """Bounds in l2 as bounds in lq: the l1 norm of n numbers is at most root n times the l2 norm, others are below."""
    size = math.prod(images.at.shape[1:])
    return images.error.numpy() * (math.sqrt(size) * (1.0 + 2.0**-40) if q == 1.0 else 1.0)


def _lower(critic: nn.Module, certificate: Certificate, xs: Tensor, generated: Values, norms: Norms) -> float:
    """The critic sees rounded images; each of them moves its value by at most its constant times the error."""
    if certificate.norms.p != norms.q:
        raise InvalidInput(
            f"the critic is certified for {certificate.norms} and the decoder for {norms}: the distance of data is "
            "measured in the critic's input norm and in the decoder's output norm, so they must agree."
        )
    graph = certified_graph(critic, certificate, tuple(xs.shape[1:]))
    require_scalar(graph)
    dual = difference_of_means(values(graph, xs), values(graph, generated.at))
    least = Fraction(per_constant(Between(dual.low, dual.high), certificate.bound))
    return max(0.0, round_down(least - mean(_in_norm(generated, norms.q).tolist())))
