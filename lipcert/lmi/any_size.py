r"""A bound of a convolutional part for images of every size. Floor 2.

On an infinite lattice differences of finite support take the place of those on a torus, and a constraint at every
angle :math:`\theta` that of one at every frequency. Scaled by one diagonal matrix, :math:`M(\theta)` is a
trigonometric polynomial of degree :math:`\delta_i` in :math:`\theta_i`, and so is :math:`f = z^* M z` for any unit
vector z. If :math:`\mu \le f \le B` on a grid of :math:`m_i` angles, then :math:`|f - (B + \mu) / 2|` is everywhere at
most :math:`\sigma (B - \mu) / 2` with :math:`\sigma = 1 / \cos(\pi \sum_i \delta_i / m_i)`: a maximum of a function of
exponential type falls off no faster than a cosine. So :math:`f \ge 0` everywhere if
:math:`\mu (\sigma + 1) \ge B (\sigma - 1)`.

References:
    | Inequalities for trigonometric polynomials (Duffin & Schaeffer, 1938): the Bernstein-Szego inequality
"""

from __future__ import annotations

from fractions import Fraction

from lipcert.errors import UnsupportedOperation
from lipcert.kernel.roots import secant_up
from lipcert.kernel.rounding import round_up
from lipcert.lmi.elimination import graded, tighten
from lipcert.lmi.normal_form import Multipliers, NormalForm
from lipcert.lmi.proof import Proof
from lipcert.lmi.taps import Field
from lipcert.lmi.torus import TorusForm
from lipcert.lmi.waves import chunks, twice
from lipcert.ranks import Map, in_process

_STEPS = tuple(2.0**-k for k in range(10, 2, -1))
_MOST = (2.5, 4.0, 8.0, 16.0)


def prove_any_size(form: TorusForm, small: NormalForm, multipliers: Multipliers, over: Map = in_process) -> float:
    """A bound that holds for images of every size, proven from multipliers; infinity if the grid is too coarse.

    Args:
        form: The part on a torus, whose frequencies are the grid: the finer, the tighter.
        small: Its complex form at every frequency, reduced.
        multipliers: Feasible ones, such as a solver proposes.
        over: Where the frequencies are proved, a few at a time.

    Raises:
        UnsupportedOperation: If the part has a dense head, or pads in circles, and so has one size only.
    """
    if form.head is not None or form.circular:
        raise UnsupportedOperation("a dense head, and padding in circles, fix the size of the image.", path="")
    shares = (Fraction(d, m) for d, m in zip(degrees(form), form.torus, strict=True))
    sigma = secant_up(sum(shares, Fraction(0)))
    if sigma == float("inf"):
        return sigma
    needed = (Fraction(sigma) - 1) / (Fraction(sigma) + 1)
    every = chunks(form)
    for step in _STEPS:
        raised = graded(small, multipliers, 1.0 + step)
        bound = round_up(Fraction(tighten(small, raised) ** 0.5) * (1 + Fraction(step)))
        for most in _MOST:
            least = round_up(Fraction(most) * needed)
            if not bound < float("inf") or not least < 0.5:
                break
            if step < 0.5 * least:  # too little room for a proof
                continue
            lam = twice(raised)
            if all(over(lambda some: Proof(form.real_at(some), lam).within(bound, least, most), every)):  # noqa: B023
                return bound
    return float("inf")


def degrees(form: TorusForm) -> list[int]:
    """The degree of the constraint in every angle: of what activations read, and twice that of what is squared."""
    found = []
    for dim in range(len(form.torus)):
        alone = [_span(bend.v, dim) for bend in form.bends]
        squared = [2 * _span(bend.v, dim) for bend in form.bends if bool((bend.alpha * bend.beta != 0.0).any())]
        found.append(max([*alone, *squared, 2 * _span(form.output, dim)]))
    return found


def _span(field: Field, dim: int) -> int:
    return max((int(block.positions[:, dim].abs().max()) for block in field.blocks.values()), default=0)
