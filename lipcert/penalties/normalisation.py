r"""Layer normalisation as a baseline: what its gain is, and where. Floor 5.

For a sample x of n numbers with mean m and variance s, layer normalisation without its affine part is
:math:`(x - m) / \sqrt{s + \epsilon}`. Its Jacobian is

.. math:: J(x) = \frac{1}{\sqrt{s + \epsilon}} \Bigl(P - \frac{(x - m)(x - m)^T}{n (s + \epsilon)}\Bigr),
    \qquad P = I - \tfrac1n 1 1^T,

so :math:`\lVert J(x) \rVert_2 = 1 / \sqrt{s + \epsilon}` for n > 2: the flatter a sample, the larger the gain, up to
:math:`1 / \sqrt\epsilon` at constant samples (316.2 for torch's :math:`\epsilon = 10^{-5}`), and without limit as
:math:`\epsilon \to 0`. It is no way to a small Lipschitz constant.
"""

from __future__ import annotations

import torch
from torch import nn

from lipcert.errors import InvalidInput


def layer_norm_gain(layer: nn.LayerNorm) -> float:
    r"""The l2 Lipschitz constant of a layer normalisation, :math:`\lVert \Gamma P \rVert_2 / \sqrt\epsilon`.

    :math:`\Gamma` is the diagonal matrix of the layer's weights and P subtracts the mean. It is the norm of the
    Jacobian at every constant sample, and no other sample has a larger one: :math:`\Gamma J(x) = \Gamma P J(x)`, and
    :math:`\lVert J(x) \rVert \le 1 / \sqrt\epsilon`. Computed in float64, correct up to its rounding; not a rigorous
    bound. In floating point, differences of a near-constant sample are lost before they are amplified.

    Args:
        layer: Read, never changed.

    Returns:
        The constant; infinite where epsilon is 0 and the layer does not vanish.

    Raises:
        InvalidInput: If the layer's epsilon is negative.

    References:
        | Layer Normalization (Ba et al., 2016), https://arxiv.org/abs/1607.06450

    Example:
        >>> round(layer_norm_gain(nn.LayerNorm(8)), 3)  # 1 / sqrt(1e-5)
        316.228
    """
    if not layer.eps >= 0.0:
        raise InvalidInput(f"a layer normalisation with eps={layer.eps} is undefined at constant samples; use eps > 0.")
    size = torch.Size(layer.normalized_shape).numel()
    weight = torch.ones(size) if layer.weight is None else layer.weight.detach()
    gamma = weight.flatten().double()
    GammaP = torch.diag(gamma) - gamma[:, None] / size
    norm = float(torch.linalg.matrix_norm(GammaP, 2))
    return norm / layer.eps**0.5 if layer.eps > 0.0 else float("inf") if norm > 0.0 else 0.0
