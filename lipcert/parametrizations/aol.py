r"""Almost-orthogonal layers: columns rescaled until the Gram matrix is dominated by its diagonal. Floor 3.

One inequality carries the file, and the residual layers beside it: for a matrix V and any numbers :math:`p_i > 0`,

.. math:: V V^T \preceq T, \qquad T_{ii} = \sum_j |V V^T|_{ij} \, p_j / p_i,

because :math:`P (T - |V V^T|) P` with P = diag(p) has zero row sums, so it is diagonally dominant (Gershgorin).
A convolution is an infinite matrix whose Gram matrix is the autocorrelation of the kernel; cutting out a finite image
restricts inputs or outputs, wrapping it around adds entries up, and neither breaks the inequality.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lipcert.errors import UnsupportedOperation
from lipcert.kernel.rounding import gamma, require_ieee, sqrt_up
from lipcert.parametrizations.claim import MARGIN, Claim
from lipcert.parametrizations.operators import Convolution, Matrix, Operator, operator_of
from lipcert.parametrizations.registration import register, require_bare

FLOOR = 2.0**-60
"""The least ratio of two witnesses: any positive ones prove the claim, and these keep quotients in range."""

_STEPS = 30


def aol(
    module: nn.Module,
    name: str = "weight",
    *,
    bound: float = 1.0,
    input_size: Sequence[int] | int | None = None,
) -> nn.Module:
    r"""Rescale the columns of a layer so that :math:`|Ax - Ay|_2 \le bound \, |x - y|_2` by construction.

    The weight becomes :math:`bound \cdot W \mathrm{diag}(d)`, :math:`d_j = (\sum_i |W^T W|_{ij})^{-1/2}`. For a
    convolution W is the matrix it stands for: every input channel has one factor, and with a stride one for each
    position relative to it, as those are different columns. Orthogonal columns are left at norm ``bound``; no other
    weight is scaled up to it, and random ones fall well below.

    *In training* the norm is at most ``bound`` in exact arithmetic, for the kernel's stride, dilation, groups and
    zero or circular padding, at every input size; rounding can exceed it by a few units in the last place times
    the number of inputs. *In evaluation* the claim is a theorem about the stored weight, which is proved and where
    need be lowered. The map is invariant to the scale of W, and a zero column stays zero: there is no epsilon.

    Assigning to the weight sets W, not the product: the map has no inverse beyond its image.

    Args:
        module: An `nn.Linear`, `nn.Conv1d`, `nn.Conv2d` or `nn.Conv3d`, changed in place.
        name: The parameter.
        bound: The claimed l2 norm, positive.
        input_size: Spatial input size of a convolution. With circular padding and a stride that divides it the
            factors are larger, and the proof in evaluation is tighter. Default: every size.

    Returns:
        The module, with ``name`` registered as a parametrization.

    Raises:
        UnsupportedOperation: If the class of the module or its padding is not covered.
        InvalidInput: If an argument cannot mean a claim, or the weight is already parametrized.
        NotFinite: In evaluation, if the weight is NaN or infinite.

    References:
        | Almost-orthogonal layers for efficient general-purpose Lipschitz networks (Prach and Lampert, 2022)
        | https://arxiv.org/abs/2208.03160, theorems 1 and 2

    Example:
        >>> layer = aol(nn.Linear(2, 2, bias=False))
        >>> layer.weight = torch.tensor([[3.0, 0.0], [4.0, 0.0]])
        >>> layer.weight.detach().tolist()
        [[0.6..., 0.0], [0.8..., 0.0]]
    """
    operator = operator_of(module, name, input_size)
    if isinstance(operator, Convolution) and isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        _require_padding(module, operator)
    elif not isinstance(module, nn.Linear):
        raise UnsupportedOperation(
            f"aol rescales the columns of Linear, Conv1d, Conv2d and Conv3d, not of {type(module).__name__}: what its "
            f"columns are has not been worked out. spectral_norm covers it."
        )
    require_bare(module, name)
    return register(module, name, AlmostOrthogonal(operator, bound, f"{name} of {module}"))


def _require_padding(module: nn.Module, operator: Convolution) -> None:
    kernel = module.kernel_size
    assert isinstance(kernel, tuple)
    if operator.padding_mode not in ("zeros", "circular"):
        raise UnsupportedOperation(
            f"aol does not cover {operator.padding_mode!r} padding of {module}: padding then repeats inputs, so the "
            f"columns at the border are longer than those inside, and the rescaling would promise too much. Use zeros "
            f"or circular padding, or spectral_norm."
        )
    reach = [d * (k - 1) for d, k in zip(operator.dilation, kernel, strict=True)]
    if operator.padding_mode == "circular" and any(sum(p) > r for p, r in zip(operator.padding, reach, strict=True)):
        raise UnsupportedOperation(
            f"{module} pads circularly by {operator.padding}, more than its kernel spans: it returns some outputs "
            f"twice, and columns are longer than the kernel. Pad by at most {tuple(reach)} in all."
        )


class AlmostOrthogonal(Claim):
    """The parametrization that `aol` registers; see there."""

    def __init__(self, operator: Operator, bound: float, label: str) -> None:
        """Keep the operator."""
        super().__init__(bound, label)
        self.operator = operator

    def weight(self, original: Tensor) -> Tensor:
        """``bound W diag(d)``, computed in float32 at least."""
        vectors, back = self._vectors(original.to(torch.promote_types(original.dtype, torch.float32)))
        unit, witness, alive = normalised(vectors)
        sums = (overlaps(unit) @ witness[..., None])[..., 0] / witness
        d = torch.where(alive, sums, torch.ones_like(sums)).rsqrt() * self.bound
        return back(unit * fitted(d, unit)).to(original)

    def prove(self, weight: Tensor) -> float:
        """The norm of the operator; where that is too loose, by the inequality that made the weight."""
        norm = self.operator.prove(weight)
        if norm <= self.bound * (1.0 - MARGIN):
            return norm
        return min(norm, float(sqrt_up(squared_norm(self._vectors(weight)[0]))))

    def extra_repr(self) -> str:
        """Print the claim."""
        return f"bound={self.bound}"

    def _vectors(self, weight: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The columns as ``(groups, columns, rows, *taps)``, and the way back."""
        if isinstance(self.operator, Matrix):
            return weight.mT[None], lambda columns: columns[0].mT
        taps = weight.shape[2:]
        phases = self._phases(taps)
        grouped = weight.unflatten(0, (_groups(self.operator), -1))
        return polyphase(grouped, phases), lambda columns: from_polyphase(columns, phases, taps).reshape(weight.shape)

    def _phases(self, taps: Sequence[int]) -> tuple[int, ...]:
        """Per dimension, how many kinds of columns there are: taps that many apart read the same inputs."""
        operator = self.operator
        assert isinstance(operator, Convolution)
        phases = []
        for k, s, d, n in zip(taps, operator.stride, operator.dilation, operator.in_shape[1:], strict=True):
            wraps = operator.padding_mode == "circular" and (operator.any_size or n % s != 0)
            # Around a torus that the stride does not divide the kinds mix; all outputs of stride 1 are then kept.
            phases.append(1 if wraps else min(k, s // math.gcd(s, d)))
        return tuple(phases)


class RowsAlmostOrthogonal(AlmostOrthogonal):
    r"""The same with rows for columns: :math:`T^{-1/2} W`, :math:`T_{ii} = \sum_j |W W^T|_{ij}`; any stride."""

    def _vectors(self, weight: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        return weight.unflatten(0, (_groups(self.operator), -1)), lambda rows: rows.flatten(0, 1)


def _groups(operator: Operator) -> int:
    return operator.groups if isinstance(operator, Convolution) else 1


def polyphase(kernel: Tensor, phases: Sequence[int]) -> Tensor:
    """``(groups, out, in, *taps)`` to columns ``(groups, in * prod(phases), out, *taps per phase)``, zero-padded."""
    taps = kernel.shape[3:]
    steps = [-(-k // m) for k, m in zip(taps, phases, strict=True)]
    pads = [amount for k, m, n in zip(taps, phases, steps, strict=True) for amount in (n * m - k, 0)]
    split = [size for pair in zip(steps, phases, strict=True) for size in pair]
    padded = F.pad(kernel, pads[::-1]).reshape(*kernel.shape[:3], *split)
    inner, outer = range(3, 3 + len(split), 2), range(4, 4 + len(split), 2)
    return padded.permute(0, 2, *outer, 1, *inner).reshape(len(kernel), -1, kernel.shape[1], *steps)


def from_polyphase(columns: Tensor, phases: Sequence[int], taps: Sequence[int]) -> Tensor:
    """The kernel whose `polyphase` this is."""
    steps, count = columns.shape[3:], len(phases)
    split = columns.reshape(len(columns), -1, *phases, columns.shape[2], *steps)
    order = [axis for i in range(count) for axis in (3 + count + i, 2 + i)]
    joined = split.permute(0, 2 + count, 1, *order)
    whole = joined.reshape(*joined.shape[:3], *(n * m for n, m in zip(steps, phases, strict=True)))
    return whole[(..., *(slice(k) for k in taps))]


def normalised(vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors over their largest entry, the sizes these had as witnesses p, and which vectors are not zero.

    The scale is a constant to autograd. The maps built on it do not depend on it, so their gradients are exact.

    Args:
        vectors: ``(groups, count, ...)``.

    Returns:
        ``(groups, count, ...)``, then twice ``(groups, count)``; witnesses lie in ``[FLOOR, 1]``.
    """
    size = vectors.detach().abs().flatten(2).amax(2)
    alive = size > 0
    unit = vectors / fitted(torch.where(alive, size, torch.ones_like(size)), vectors)
    peak = size.amax()
    relative = size / torch.where(peak > 0, peak, torch.ones_like(peak))
    return unit, relative.clamp(min=FLOOR), alive


def overlaps(vectors: Tensor) -> Tensor:
    r"""How much vectors overlap under all shifts: :math:`M_{ij} = \sum_\delta |\langle v_i, S_\delta v_j \rangle|`.

    Only matrix products are used, so that the usual bound of their rounding applies.

    Args:
        vectors: ``(groups, count, inner, *taps)``; without taps there is one shift.

    Returns:
        ``(groups, count, count)``.
    """
    taps = vectors.shape[3:]
    total = (vectors.flatten(2) @ vectors.flatten(2).mT).abs()
    for shift in itertools.product(*(range(1 - k, k) for k in taps)):
        if shift > (0,) * len(taps):
            ahead = [slice(max(0, s), k + min(0, s)) for s, k in zip(shift, taps, strict=True)]
            behind = [slice(max(0, -s), k - max(0, s)) for s, k in zip(shift, taps, strict=True)]
            one = (vectors[(..., *ahead)].flatten(2) @ vectors[(..., *behind)].flatten(2).mT).abs()
            total = total + one + one.mT
    return total


def overlaps_up(vectors: Tensor) -> Tensor:
    r"""`overlaps` of float64 vectors, rounded up.

    A product of k terms is off by at most :math:`\gamma_k |v_i| |v_j|` (Higham, section 3.1; Cauchy-Schwarz).
    """
    shifts = math.prod(2 * k - 1 for k in vectors.shape[3:])
    terms = math.prod(vectors.shape[2:])
    lengths = torch.linalg.vector_norm(vectors.detach().flatten(2), dim=2) * (1.0 + gamma(terms))
    error = shifts * gamma(terms) * lengths[..., None] * lengths[..., None, :]
    return overlaps(vectors) * (1.0 + 2.0 * gamma(shifts)) + error * (1.0 + gamma(8)) + shifts * terms * 2.0**-1000


def sums_up(vectors: Tensor, witness: Tensor) -> Tensor:
    """``sum_j M_ij p_j / p_i`` for the overlaps M of float64 vectors and float64 p, rounded up: ``(groups, count)``."""
    totals = (overlaps_up(vectors) @ witness[..., None])[..., 0]
    return totals / witness * (1.0 + 2.0 * gamma(witness.shape[-1] + 2))


def squared_norm(vectors: Tensor) -> float:
    """A proven upper bound of the squared norm of the operator with these float64 columns (or rows).

    Witnesses come from a few steps of power iteration, whose largest quotient only falls (Collatz, Wielandt).
    """
    require_ieee()
    size = float(vectors.abs().max())
    if not 0.0 < size < math.inf:
        return 0.0 if size == 0.0 else math.nan
    # A power of two rescales exactly, but for what becomes subnormal, which `overlaps_up` pays for.
    exponent = math.frexp(size)[1]
    M = overlaps_up(torch.ldexp(vectors, torch.tensor(-exponent)))
    p = torch.ones_like(M[..., 0])
    best = math.inf
    for _ in range(_STEPS):
        image = (M @ p[..., None])[..., 0]
        best = min(best, float((image / p).max()))
        p = (image / image.amax()).clamp(min=FLOOR)
    return math.ldexp(best * (1.0 + 2.0 * gamma(M.shape[-1] + 2)), 2 * exponent)


def fitted(values: Tensor, like: Tensor) -> Tensor:
    """``(groups, count)`` shaped to multiply ``(groups, count, ...)``."""
    return values.reshape(*values.shape, *[1] * (like.ndim - values.ndim))
