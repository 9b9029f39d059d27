r"""The Wasserstein-1 distance of two samples of one size, enclosed: a coupling above, potentials below. Floor 5."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lipcert.errors import InvalidInput
from lipcert.kernel.rounding import Array, gamma, require_ieee, round_down, round_up
from lipcert.transport.values import mean, require_samples

_ENTRIES = 2**26
_TINY = 2.0**-500


@dataclass(frozen=True, eq=False)
class Transport:
    """A Wasserstein-1 distance of two samples, as measures, enclosed.

    Attributes:
        lower: By potentials that are feasible for distances rounded down; the distance is at least this.
        upper: By the coupling, with distances rounded up; the distance is at most this.
        partner: Row i of xs goes to row ``partner[i]`` of ys.
    """

    lower: float
    upper: float
    partner: Tensor


def empirical_w1(xs: Tensor, ys: Tensor, p: float = 2.0) -> Transport:
    r"""Enclose the Wasserstein-1 distance of two samples of n points each, every point with mass 1/n.

    Every permutation is a coupling, and so bounds the distance from above; an optimal one attains it (Birkhoff). The
    one of `scipy.optimize.linear_sum_assignment` is taken, and it need not be trusted: numbers u with
    :math:`v_j = \min_i |x_i - y_j| - u_i` bound the distance from below by :math:`\bar u + \bar v` whatever they are.
    They come from shortest paths along the permutation, so the two ends differ by rounding only. Time :math:`n^3`.

    Args:
        xs: Shape ``(n, ...)``.
        ys: The same shape.
        p: The norm of distances: 1, 2 or infinity.

    Raises:
        InvalidInput: If the samples differ in size, are too large, or distances overflow.
        NotFinite: If a sample is not.

    References:
        | Optimal transport: old and new (Villani, 2009), theorem 5.10

    Example:
        >>> found = empirical_w1(torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0], [1.0]]))
        >>> round(found.lower, 12), round(found.upper, 12)
        (1.5, 1.5)
    """
    require_samples(xs, ys)
    if len(xs) != len(ys):
        raise InvalidInput(
            f"samples of {len(xs)} and {len(ys)} points; a permutation needs as many of each, so cut the longer."
        )
    if len(xs) ** 2 > _ENTRIES:
        raise InvalidInput(f"{len(xs)} points have {len(xs) ** 2} distances, at most {_ENTRIES} fit; use fewer points.")
    from scipy.optimize import linear_sum_assignment

    require_ieee()
    near = _distances(xs, ys, p)
    low, high = ends(near, xs[0].numel())
    partner = linear_sum_assignment(near)[1]
    upper = round_up(mean(high[np.arange(len(xs)), partner].tolist()))
    return Transport(_lower(low, near, partner), upper, torch.from_numpy(partner))


def ends(near: Array, entries: int) -> tuple[Array, Array]:
    """Distances of vectors of so many numbers, computed in float64, rounded down and up.

    Differences, squares, their sum in any order and the root lose at most ``gamma(entries + 4)`` of it; what underflows
    is below the absolute term.
    """
    loss = 2.0 * gamma(entries + 4)
    tiny = _TINY * entries
    return np.maximum(near * (1.0 - loss) - tiny, 0.0), near * (1.0 + loss) + tiny


def _distances(xs: Tensor, ys: Tensor, p: float) -> Array:
    if p not in (1.0, 2.0, float("inf")):
        raise InvalidInput(f"norm exponent {p!r} is not one of 1, 2, inf; choose one of those.")
    first, second = xs.detach().double().cpu().flatten(1), ys.detach().double().cpu().flatten(1)
    # Without matrix products, which would lose the digits of small distances.
    rows = [torch.linalg.vector_norm(second - x, p, dim=1) for x in first]
    near = torch.stack(rows).numpy()
    if not np.isfinite(near).all():
        raise InvalidInput("distances of these samples overflow in float64; scale both samples down.")
    return near


def _lower(low: Array, near: Array, partner: Array) -> float:
    """The dual value of feasible potentials: u by shortest paths, v by what u leaves."""
    reached = near[:, partner]  # from i to the partner of k
    step = reached.T - np.diag(reached)[:, None]  # [k, i]: how much more it costs if i takes the place of k
    u = np.zeros(len(near))
    for _ in range(len(near)):
        shorter = np.minimum(u, (u[:, None] + step).min(0))
        if (shorter >= u - 1e-14 * np.abs(near).max()).all():
            break
        u = shorter
    v = np.nextafter((low - u[:, None]).min(0), -np.inf)
    return max(0.0, round_down(mean(u.tolist()) + mean(v.tolist())))
