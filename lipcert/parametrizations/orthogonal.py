"""Linear layers with orthonormal rows or columns. Floor 3."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lipcert.errors import InvalidInput, UnsupportedOperation
from lipcert.linear import Dense
from lipcert.lowering import require_finite
from lipcert.opnorm import opnorm
from lipcert.parametrizations.claim import Claim
from lipcert.parametrizations.registration import register, require_bare
from lipcert.parametrizations.stiefel import StiefelMap, polar
from lipcert.parametrizations.stiefel_cayley import Cayley

_DEFAULT = Cayley()


def orthogonal(
    module: nn.Module,
    name: str = "weight",
    *,
    map: StiefelMap = _DEFAULT,
    generator: torch.Generator | None = None,
) -> nn.Module:
    r"""Keep the weight of a linear layer (semi-)orthogonal: :math:`|Wx - Wy|_2 \le |x - y|_2`, and no collapse.

    A weight with at least as many rows as columns gets orthonormal columns, so that :math:`|Wx|_2 = |x|_2`; a wider
    one gets orthonormal rows, so that this holds for W transposed. Gradients keep their l2 norm on the way back in
    the same sense.

    *In evaluation* (and after `torch.nn.utils.parametrize.remove_parametrizations`) the norm is at most 1 as a theorem
    about the stored weight in its own dtype, rounding included. *In training* all singular values are within 1e-6 of
    1 in float32 with the exact maps (`Cayley`, `Householder`, `QR`, `Exponential`), whatever the parameter holds; the
    iterations (`Bjorck`, `NewtonSchulz`) say what they reach. In both modes the smallest differs from the largest by
    no more than that. In half precision the rounding of the weight itself is larger than this.

    The layer starts at the orthogonal matrix nearest to its weight. Assigning an orthogonal matrix gives that matrix
    back up to rounding, assigning another gives the nearest, for every map and both signs of the determinant. A
    forward pass is a pure function of the parameter and a buffer that changes on assignment only.

    Args:
        module: An `nn.Linear`, changed in place.
        name: The parameter; only ``"weight"`` acts as an operator.
        map: From the parameter, of the shape of the weight, to the weight: `Cayley`, `Householder`, `QR`,
            `Exponential`, `Bjorck`, `NewtonSchulz`, or any other `StiefelMap`.
        generator: If given, start at a matrix drawn from it, uniform among the orthogonal ones, instead.

    Returns:
        The module, with ``name`` registered as a parametrization.

    Raises:
        UnsupportedOperation: If the class of the module is not covered.
        InvalidInput: If ``name`` is no operator or is already parametrized or not initialised.
        NotFinite: If the weight is NaN or infinite.

    References:
        | Sorting out Lipschitz function approximation (Anil, Lucas and Grosse, 2019)
        | Orthogonalizing Convolutional Layers with the Cayley Transform (Trockman and Kolter, 2021)

    Example:
        >>> layer = orthogonal(nn.Linear(3, 2, bias=False)).eval()
        >>> singular = torch.linalg.svdvals(layer.weight.detach().double())
        >>> bool((singular <= 1.0).all() and (singular > 1.0 - 1e-6).all())
        True
    """
    if not isinstance(module, nn.Linear) or type(module).forward is not nn.Linear.forward:
        raise UnsupportedOperation(
            f"orthogonal does not know what `{type(module).__name__}` does with its weight.\n"
            "  It would have to guess which matrix must be orthogonal, so it refuses. Covered: Linear;\n"
            "  for convolutions there is orthogonal_convolution."
        )
    if name != "weight":
        raise InvalidInput(f"`{name}` of {module} is not applied as an operator; orthogonal acts on `weight`.")
    weight = require_bare(module, name)
    label = f"{name} of {module}"
    if generator is not None:
        with torch.no_grad():
            normal = torch.randn(weight.shape, generator=generator, dtype=torch.float64, device=generator.device)
            # The polar factor of a Gaussian matrix is uniform, because its law does not change under rotations.
            weight.copy_(_oriented(polar(_tall(normal)), weight))
    return register(module, name, Orthogonal(map, weight, label))


class Orthogonal(Claim):
    """The parametrization that `orthogonal` registers; its claim is norm 1.

    Attributes:
        map: From the free matrix to the orthogonal one.
        anchor: What the map needs besides, fixed when a weight is assigned.
    """

    anchor: Tensor

    def __init__(self, map: StiefelMap, weight: Tensor, label: str) -> None:
        """Make a claim about weights like the given one; registering it assigns the first."""
        super().__init__(1.0, label)
        self.map = map
        self.in_features = weight.shape[1]
        with torch.no_grad():
            _, anchor = map.invert(torch.eye(*_tall(weight).shape, dtype=torch.float64, device="cpu"))
        self.register_buffer("anchor", anchor.to(weight))

    def weight(self, original: Tensor) -> Tensor:
        """The (semi-)orthogonal weight."""
        return _oriented(self.map(_tall(original), self.anchor), original).to(original.dtype)

    def prove(self, weight: Tensor) -> float:
        """The norm, bounded from above."""
        return opnorm(Dense(weight, (self.in_features,))).value

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Where the map takes the nearest orthogonal matrix from."""
        self.forget()
        if weight.is_meta:
            return weight
        require_finite(self.label, weight.detach())
        with torch.no_grad():
            free, anchor = self.map.invert(polar(_tall(weight).double()))
            self.anchor = anchor.to(weight)
            return _oriented(free, weight).to(weight).contiguous()

    def extra_repr(self) -> str:
        """Show the claim and the map."""
        return f"bound={self.bound}, map={self.map}"


def _tall(matrix: Tensor) -> Tensor:
    """The matrix or its transpose, whichever has at least as many rows as columns."""
    return matrix.mT if matrix.shape[-2] < matrix.shape[-1] else matrix


def _oriented(tall: Tensor, like: Tensor) -> Tensor:
    """A tall matrix, or its transpose where ``like`` is wide."""
    return tall.mT if like.shape[-2] < like.shape[-1] else tall
