"""The one-line door: model in, certificate out. Floor 5."""

from __future__ import annotations

from torch import nn

from lipcert.certificate import Certificate
from lipcert.certifiers import Auto, Certifier, certify_on
from lipcert.domain import Domain, WholeSpace
from lipcert.linear import Shape
from lipcert.norms import L2, Norms
from lipcert.trace import trace


def certify(
    model: nn.Module,
    input_shape: Shape,
    *,
    norms: Norms = L2,
    by: Certifier = Auto(),  # noqa: B008
    domain: Domain = WholeSpace(),  # noqa: B008
) -> Certificate:
    r"""Bound the Lipschitz constant of a model's evaluation function, rigorously.

    The certificate says: for all x, y of the domain, :math:`|f(x) - f(y)|_q \le bound \, |x - y|_p`,
    where f is the real-valued function of the captured graph with the stored weights read as exact reals.

    Args:
        model: Any module of supported operations; it is copied, never changed.
        input_shape: Shape of one sample, without the batch dimension.
        norms: Norms on input and output. Default: ``L2`` on both.
        by: The certifier. Default: the tightest bound that about 20 seconds of solving buy, which for larger networks
            is the layerwise one.
        domain: Where x and y are. Default: everywhere. On a `lipcert.domain.Box` or `L2Ball` the bound is at most that,
            mostly far lower on a small one, and operations have one that are Lipschitz on a bounded domain only
            (products, exp, layer normalisation, attention).

    Raises:
        UnsupportedOperation: If an operation is not covered; the message names its module path.
        NotLipschitz: If an operation has no finite constant on the whole space.
        NotFinite: If a weight is NaN or infinite.

    Example:
        >>> import torch
        >>> certificate = certify(torch.nn.Sequential(torch.nn.Tanh(), torch.nn.Flatten()), (3, 4))
        >>> certificate.bound, certificate.validity.name
        (1.0, 'RIGOROUS')
    """
    shape = tuple(input_shape)
    return certify_on(trace(model, shape, domain), domain, norms, by)
