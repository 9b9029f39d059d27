r"""A layer between two parts of an orthogonal matrix, which makes it 1-Lipschitz. Floor 3.

Let :math:`y = \sqrt 2 A^T \Psi \sigma(\sqrt 2 \Psi^{-1} B x + b)` with a diagonal :math:`\Psi > 0`, an activation of
slopes in [0, 1], and :math:`A A^T + B B^T \preceq I`. Let x change by d, and :math:`\Psi \sigma(\cdot)` by u. Slopes
in [0, 1] give :math:`|u|^2 \le \sqrt 2 \, u^T B d`, hence y changes by

.. math::

    |\sqrt 2 A^T u|^2 = 2 u^T A A^T u \le 2 |u|^2 - 2 |B^T u|^2
    \le 2 \sqrt 2 (B^T u)^T d - 2 |B^T u|^2 = |d|^2 - |d - \sqrt 2 B^T u|^2 \le |d|^2.

So an inequality is enough: all that must be proved about the stored numbers is that A' on top of B' has a norm of at
most 1; with a norm of r, the layer is :math:`r^2`-Lipschitz. Relu is positively homogeneous, so :math:`\sqrt 2 \Psi`
passes through it into the bias, and nothing but A, B and a factor of 2 is left to be rounded.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lipcert.errors import CheckFailed, InvalidInput
from lipcert.linear import Dense
from lipcert.opnorm import opnorm
from lipcert.parametrizations.claim import Claim
from lipcert.parametrizations.registration import register

_LONGEST = 16.0


class SandwichLinear(nn.Module):
    r"""Sandwich layer: :math:`y = 2 A^T \mathrm{relu}(B x + b)` with :math:`A A^T + B B^T = I`; 1-Lipschitz in l2.

    This is the paper's :math:`\sqrt 2 A^T \Psi \, \mathrm{relu}(\sqrt 2 \Psi^{-1} B x + c)` with
    :math:`b = \Psi c / \sqrt 2`: for relu the diagonal :math:`\Psi` only scales the bias. The parameter is any matrix
    of shape ``(out_features + in_features, out_features)``; the weight is A' on top of B', made from it by the Cayley
    map. The hidden layer has as many units as the output.

    *In training* A and B are orthonormal up to the rounding of a matrix inverse, and so is the constant 1. *In
    evaluation* it is a theorem about the stored A and B: their stacked norm is proved to be at most 1, and where
    need be lowered. Rounding in applying the layer is not part of the claim.

    Shapes: ``(..., in_features)`` to ``(..., out_features)``.

    Args:
        in_features: Size of the last dimension of the input.
        out_features: Size of the last dimension of the output, and of the hidden layer.
        bias: Whether hidden units have a bias.

    Raises:
        InvalidInput: If a size is not positive.

    References:
        | Direct parameterization of Lipschitz-bounded deep networks (Wang and Manchester, 2023), theorem 3.1
        | https://arxiv.org/abs/2301.11526

    Example:
        >>> layer = SandwichLinear(3, 2).eval()
        >>> layer(torch.ones(5, 3)).shape, layer.certify()
        (torch.Size([5, 2]), 1.0)
    """

    def __init__(self, in_features: int, out_features: int, *, bias: bool = True) -> None:
        """Draw the parameter as torch's Xavier does."""
        super().__init__()
        if in_features < 1 or out_features < 1:
            raise InvalidInput(f"sizes {in_features} and {out_features} leave no layer; both must be at least 1.")
        self.in_features = in_features
        self.out_features = out_features
        self.weight = nn.Parameter(torch.empty(out_features + in_features, out_features))
        nn.init.xavier_normal_(self.weight)
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        register(self, "weight", Cayley(out_features, 1.0, f"weight of {self}"))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        stacked = self.weight
        hidden = torch.relu(F.linear(x, stacked[self.out_features :].mT, self.bias))
        return 2 * F.linear(hidden, stacked[: self.out_features])

    def certify(self) -> float:
        """Prove the claim for the weight in use, and return the proven l2 Lipschitz constant, 1.0.

        Raises:
            CheckFailed: If it is not proved; in training rounding may exceed it.
            NotFinite: If the weight is NaN or infinite.
        """
        norm = opnorm(Dense(self.weight.detach().double().cpu(), (self.out_features,))).value
        if not norm <= 1.0:
            raise CheckFailed(
                f"the stacked weight of {self} is only proved to be at most {norm} long, where 1 is allowed, so the "
                f"layer may expand distances. Call eval() first: claims are proved in evaluation."
            )
        return 1.0

    def extra_repr(self) -> str:
        """Print the sizes."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class Cayley(Claim):
    r"""A matrix with orthonormal columns from any matrix W of the same shape ``(columns + more, columns)``.

    For W stacked from X (square) and Y, and :math:`Z = X - X^T + Y^T Y`, the columns of
    :math:`(I - Z) (I + Z)^{-1}` on top of :math:`-2 Y (I + Z)^{-1}` are orthonormal, as
    :math:`(I - Z)^T (I - Z) + 4 Y^T Y = (I + Z)^T (I + Z)`. I + Z is always invertible: its symmetric part is at
    least I. A matrix whose Frobenius norm is above 16 times the root of its number of rows is brought back to that
    length first, so that nothing overflows; all it loses are matrices close to the limits of the map.

    References:
        | Direct parameterization of Lipschitz-bounded deep networks (Wang and Manchester, 2023), section 3
        | https://arxiv.org/abs/2301.11526
    """

    def __init__(self, columns: int, bound: float, label: str) -> None:
        """Keep the number of columns."""
        super().__init__(bound, label)
        self.columns = columns

    def weight(self, original: Tensor) -> Tensor:
        """The Cayley map, computed in float32 at least."""
        W = shortened(original.to(torch.promote_types(original.dtype, torch.float32)))
        X, Y = W[: self.columns], W[self.columns :]
        Z = X - X.mT + Y.mT @ Y
        eye = torch.eye(self.columns, dtype=W.dtype, device=W.device)
        # (I - Z) (I + Z)^-1 = 2 (I + Z)^-1 - I: one inverse, and its cheap derivative, serve both parts.
        M = torch.linalg.inv(eye + Z)
        stacked = torch.cat([2.0 * M - eye, -2.0 * Y @ M])
        return (stacked * self.bound).to(original)

    def prove(self, weight: Tensor) -> float:
        """The l2 norm of the matrix."""
        return opnorm(Dense(weight, (weight.shape[1],))).value


def shortened(W: Tensor) -> Tensor:
    """W, or the multiple of it that has the largest Frobenius norm allowed."""
    longest = _LONGEST * math.sqrt(W.shape[0])
    peak = W.detach().abs().amax()
    zero = peak == 0
    unit = torch.where(zero, torch.ones_like(W), W / torch.where(zero, torch.ones_like(peak), peak))
    length = torch.linalg.vector_norm(unit)
    return torch.where(peak * length.detach() > longest, unit / length * longest, W)
