r"""The inverse of a network whose steps all have a lower side, to an error that is known before it runs. Floor 5.

Going back through :math:`f = f_k \circ \dots \circ f_1`, an error :math:`e_i` made at step i reaches the input as at
most :math:`e_i / (m_1 \cdots m_{i-1})` with lower sides m. Each step gets an equal share of the error that is asked
for; half of it is kept for rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from lipcert.bilipschitz.affine import LARGEST
from lipcert.bilipschitz.claim import BiLipschitz
from lipcert.bilipschitz.steps import Kind, Step
from lipcert.certifiers.composition import sqrt_up
from lipcert.contraction import a_priori_error, iterations_needed
from lipcert.enclosure import enclosed, exactly
from lipcert.enclosure.ball import aligned
from lipcert.errors import BudgetExceeded, InvalidInput, NotFinite, UnsupportedOperation
from lipcert.graph import Activation
from lipcert.kernel.rounding import UNIT, round_down, round_up
from lipcert.report import format_up

_ULPS = 4.0


@dataclass(frozen=True, eq=False)
class StepInverse:
    """How one step was inverted.

    Attributes:
        name: The step.
        iterations: Evaluations of the step; 0 where the inverse is written down.
        a_priori: What is left after so many in exact arithmetic, largest over the batch, at this step's input.
    """

    name: str
    iterations: int
    a_priori: float


@dataclass(frozen=True, eq=False)
class Inversion:
    """An approximate inverse, and how far it can be from the true one, per sample in l2.

    Attributes:
        x: ``(N, *input shape)``, float64.
        a_priori: ``(N,)``: known before iterating, from the first step of every block; for exact arithmetic.
        a_posteriori: ``(N,)``: from what is left of every step; holds however x was computed, up to the rounding of
            one evaluation of each step, for which a few units in the last place of its values are added.
        steps: From the output back to the input.
    """

    x: Tensor
    a_priori: Tensor
    a_posteriori: Tensor
    steps: tuple[StepInverse, ...]

    def __str__(self) -> str:
        """The errors, rounded up, and the iterations of every step."""
        worst = [
            format_up(float(errors.max()) if len(errors) else 0.0) for errors in (self.a_priori, self.a_posteriori)
        ]
        lines = [f"|x - f^-1(y)|_2 <= {worst[0]} before, {worst[1]} after iterating"]
        lines += [f"  {s.name}  {s.iterations} iterations, {format_up(s.a_priori)}" for s in self.steps if s.iterations]
        return "\n".join(lines)


def invert(found: BiLipschitz, y: Tensor, error: float, *, most: int = 100_000) -> Inversion:
    r"""Solve ``f(x) = y`` step by step in float64, iterating as often as the bound says and no more.

    Residual blocks run ``x <- x + (P^-1 (y - f(x))) / c``, which contracts by their `Step.rate`; couplings take two
    such passes; elementwise functions run it with a c of their own per entry; affine maps are solved.

    Args:
        found: Both sides of the network; the lower one must be positive.
        y: ``(N, *output shape)``.
        error: Wanted l2 error of every sample, positive.
        most: Iterations per step beyond which it is refused.

    Raises:
        UnsupportedOperation: If a step has no lower side, or is no map onto its space.
        InvalidInput: If the shape or the error does not fit, or rounding puts the error out of reach.
        BudgetExceeded: If a step needs more than ``most`` iterations.
        NotFinite: If y or an iterate is NaN or infinite.

    References:
        | Invertible residual networks (Behrmann et al., 2019), algorithm 1

    Example:
        >>> from torch import nn
        >>> from lipcert.bilipschitz import bilipschitz
        >>> model = nn.LeakyReLU(0.5)
        >>> found = invert(bilipschitz(model, (2,)), torch.tensor([[3.0, -1.0]]), 1e-9)
        >>> error = (found.x - torch.tensor([3.0, -2.0])).norm()
        >>> bool(error <= found.a_posteriori), bool(found.a_posteriori <= 1e-9)
        (True, True)
    """
    if not 0.0 < error < math.inf:
        raise InvalidInput(f"error={error!r} must be positive and finite.")
    if tuple(y.shape[1:]) != found.graph.output.shape:
        raise InvalidInput(f"y has shape {tuple(y.shape[1:])} without batch, outputs have {found.graph.output.shape}.")
    for step in found.steps:
        _require_bijective(step)
    share = Fraction(error) / (2 * max(1, len(found.steps)))
    x, done = y.detach().double().cpu(), []
    a_priori = torch.zeros(len(x), dtype=torch.float64)
    a_posteriori = torch.zeros(len(x), dtype=torch.float64)
    before = _lower_before(found)
    with torch.no_grad():
        for step, reach in zip(reversed(found.steps), reversed(before), strict=True):
            solved = _solve(step, x, round_down(share * reach), most)
            x, record, known, left = solved
            done.append(record)
            a_priori += known * _over(reach)
            a_posteriori += left * _over(reach)
    a_posteriori *= 1 + 2.0**-40
    _require_reached(a_posteriori, error)
    return Inversion(x, a_priori * (1 + 2.0**-40), a_posteriori, tuple(done))


_Solved = tuple[Tensor, StepInverse, Tensor, Tensor]


def _lower_before(found: BiLipschitz) -> list[Fraction]:
    """For every step, the product of the lower sides of the steps before it."""
    reach, products = Fraction(1), []
    for step in found.steps:
        products.append(reach)
        reach *= Fraction(step.lower)
    return products


def _over(reach: Fraction) -> float:
    return round_up(1 / reach)


def proved_error(found: BiLipschitz, x: Tensor, y: Tensor) -> list[float]:
    r"""How far x can be from the inverse of y, as a theorem: :math:`|f(x) - y|_2 / lower` in exact arithmetic.

    Args:
        found: Both sides of the network, which maps onto its space.
        x: ``(N, *input shape)``, however it was computed.
        y: ``(N, *output shape)``.

    Returns:
        One bound per sample, rounded up; infinity if the lower side is 0.

    Raises:
        UnsupportedOperation: If a function of the network is not rational, without python-flint.
        BudgetExceeded: If the network is too large for exact arithmetic.

    Example:
        >>> from torch import nn
        >>> from lipcert.bilipschitz import bilipschitz
        >>> found = bilipschitz(nn.LeakyReLU(0.5), (1,))
        >>> proved_error(found, torch.tensor([[-2.0]]), torch.tensor([[-1.25]]))
        [0.5]
    """
    image, target = aligned([enclosed(found.graph, x.detach().double().cpu()), exactly(y.detach().double().cpu())])
    change = (abs(image.mid - target.mid) + image.radii + target.radii).reshape(len(x), -1)
    inverse = found.inverse_constant
    if inverse == math.inf:
        return [math.inf] * len(x)
    squares = [Fraction(int((row * row).sum())) / Fraction(4) ** image.bits for row in change]
    return [round_up(sqrt_up(square) / Fraction(found.lower)) for square in squares]


def _require_bijective(step: Step) -> None:
    if step.lower == 0.0:
        raise UnsupportedOperation(
            f"`{step.name}` has no lower side, so no error of an inverse can be promised: {step.reason}.",
            path=step.name,
        )
    inputs, outputs = step.block.input.shape, step.block.output.shape
    if math.prod(inputs) != math.prod(outputs):
        raise UnsupportedOperation(
            f"`{step.name}` maps {inputs} to {outputs}: it has an inverse on its image only, where y need not lie.",
            path=step.name,
        )


def _require_reached(left: Tensor, error: float) -> None:
    if not bool(torch.isfinite(left).all()):
        raise NotFinite("the inverse met NaN or infinity, so no iterate means anything; check y.")
    worst = float(left.max()) if len(left) else 0.0
    if worst > error:
        raise InvalidInput(
            f"error={error!r} is out of reach in float64: the iterations that it takes in exact arithmetic were made, "
            f"and rounding leaves {worst:.3g}.\n  Ask for more than that, or scale y and the network down."
        )


def _solve(step: Step, y: Tensor, share: float, most: int) -> _Solved:
    match step.kind:
        case Kind.AFFINE:
            return _affine(step, y)
        case Kind.ACTIVATION:
            return _elementwise(step, y, share, most)
        case _:
            assert step.kept is not None
            inverse = torch.argsort(step.kept)
            shape = step.block.input.shape

            def back(z: Tensor) -> Tensor:
                return z.flatten(1)[:, inverse].reshape(len(z), *shape)

            centre = torch.tensor(step.centre, dtype=torch.float64)
            rate = 0.0 if step.rate is None else step.rate
            return _iterate(step, y, back, centre, torch.tensor(step.lower, dtype=torch.float64), rate, share, most)


def _elementwise(step: Step, y: Tensor, share: float, most: int) -> _Solved:
    node = step.block.output
    assert isinstance(node, Activation)
    low, high = (end.expand(node.shape) for end in node.slope)
    least = torch.minimum(low.abs(), high.abs())
    # c - slope is at most half the interval's width; rates are rounded up by far more than these few operations lose.
    rate = float(((high - low) / (high + low)).abs().max()) * (1 + 2.0**-50)
    return _iterate(step, y, lambda z: z, (low + high) / 2, least, min(rate, 1 - 2.0**-53), share, most)


def _iterate(step, y, back, centre: Tensor, lower: Tensor, rate: float, share: float, most: int) -> _Solved:
    """``x <- x + back(y - f(x)) / c`` from ``x = back(y) / c``."""
    f = step.block.replay
    x = back(y) / centre
    change = back(y - f(x)) / centre
    first = _lengths(change)
    if not bool(torch.isfinite(first).all()):
        raise NotFinite(f"the inverse of `{step.name}` met NaN or infinity; check y.")
    largest = float(first.max()) * (1 + 2.0**-40) if len(first) else 0.0
    if not share > 0.0:
        raise InvalidInput(f"the share of the error that `{step.name}` may make is below the smallest float64.")
    # The first pass of a coupling takes constants from the entries that are read, the second is exact.
    count = iterations_needed(rate, largest, share) if step.kind is not Kind.COUPLING else 2
    if count > most:
        raise BudgetExceeded(
            f"`{step.name}` contracts at rate {rate:.6g} and needs {count} iterations for its share {share:.3g} of the "
            f"error; allowed are most={most}."
        )
    x = x + change
    for _ in range(count - 1):
        x = x + back(y - f(x)) / centre
    image = f(x)
    known = first * a_priori_error(rate, 1.0, count)
    rounding = _ULPS * UNIT * (x.abs() * centre.abs() + back(image).abs() + back(y).abs())
    left = _lengths((back(y - image).abs() + rounding) / lower)
    return x, StepInverse(step.name, count, float(known.max()) if len(known) else 0.0), known, left


def _affine(step: Step, y: Tensor) -> _Solved:
    size = math.prod(step.block.input.shape)
    if size > LARGEST:
        raise BudgetExceeded(f"`{step.name}` is a map of {size} entries; up to {LARGEST} are solved as a matrix.")
    f, shape = step.block.replay, step.block.input.shape
    offset = f(torch.zeros(1, *shape, dtype=torch.float64)).flatten(1)
    A = (f(torch.eye(size, dtype=torch.float64).reshape(size, *shape)).flatten(1) - offset).T
    x = torch.linalg.solve(A, (y.flatten(1) - offset).T).T
    # What is left is measured with the map itself: the matrix is rounded where the offset is large.
    x = x + torch.linalg.solve(A, (y - f(x.reshape(len(y), *shape))).flatten(1).T).T
    rounding = _ULPS * UNIT * (x.abs() @ A.abs().T + y.flatten(1).abs() + offset.abs())
    x = x.reshape(len(y), *shape)
    left = _lengths((y - f(x)).flatten(1).abs() + rounding) / step.lower
    return x, StepInverse(step.name, 0, 0.0), torch.zeros(len(y), dtype=torch.float64), left


def _lengths(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x.flatten(1), dim=1)
