r"""A proof, rounding included, that multipliers give a bound. Floor 2.

The constraint's matrix is formed in float64 together with a matrix that bounds the sizes of the terms its entries are
sums of, scaled by powers of two, and shown to be positive semidefinite by a factor whose residual is bounded.

References:
    | Rigorous error bounds for the optimal value in semidefinite programming (Jansson, Chaykin, Keil, 2007)
    | Verification of positive definiteness (Rump, 2006)
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from lipcert.kernel.psd import psd_defect
from lipcert.kernel.rounding import Array, add_up, gamma, mul_up, require_ieee, round_up
from lipcert.lmi.elimination import tighten
from lipcert.lmi.normal_form import Multipliers, NormalForm, Signal

INFLATIONS = tuple(10.0 ** (-half / 2) for half in range(20, 3, -1))
"""Relative amounts added to rho until a proof is found."""


def prove(form: NormalForm, multipliers: Multipliers) -> tuple[float, Multipliers]:
    """A bound K of the Lipschitz constant (l2) proven from multipliers, rounded up, and the multipliers that prove it.

    The least rho is computed and then raised by 1e-10 to 1e-2 relative, as little as the proof needs. Where raising
    rho alone is not enough, every layer's multipliers are raised a little over those of the layer after it, which
    gives every pivot the same relative room.

    Returns:
        Infinity as the bound if no proof is found.
    """
    for inflation in INFLATIONS:
        for candidate, room in ((multipliers, inflation), (_spread(form, multipliers, inflation), inflation / 10.0)):
            rho = tighten(form, candidate)
            if not 0.0 < rho < np.inf:
                continue
            bound = round_up(Fraction(float(np.sqrt(rho))) * (1 + Fraction(room)))
            if _Proof(form, candidate).holds(bound):
                return bound, candidate
    return float("inf"), multipliers


def _spread(form: NormalForm, multipliers: Multipliers, inflation: float) -> Multipliers:
    step = 1.0 + 2.0 * inflation / max(1, len(form.layers))
    count = len(form.layers)
    return {layer.name: multipliers[layer.name] * step ** (count - i) for i, layer in enumerate(form.layers)}


def holds(form: NormalForm, multipliers: Multipliers, bound: float) -> bool:
    """Whether these multipliers prove ``bound``, rounding included; ``False`` may mean that it is too close."""
    return _Proof(form, multipliers).holds(bound)


class _Proof:
    """Everything that does not depend on the bound: the matrix without rho, sizes of its terms, and scales."""

    def __init__(self, form: NormalForm, multipliers: Multipliers) -> None:
        self.inputs = form.inputs
        n = form.inputs + form.neurons
        self.H, self.sizes = np.zeros((n, n)), np.zeros((n, n))
        self.valid = True
        places = form.columns()
        _subtract_gram(self.H, self.sizes, form.output, places, None)
        rounded = [2 * form.output.roundings + len(_array(form.output)) + 4]
        for layer in form.layers:
            lam = multipliers[layer.name].detach().cpu().numpy()
            self.valid &= bool(np.all(np.isfinite(lam)) and np.all(lam >= 0.0))
            alpha, beta = layer.alpha.numpy(), layer.beta.numpy()
            here = np.arange(places[layer.name].start, places[layer.name].stop)
            self.H[here, here] += 2.0 * lam
            self.sizes[here, here] += 2.0 * lam
            total, steepest = (alpha + beta) * lam, (np.abs(alpha) + np.abs(beta)) * lam
            for name, block, size in _blocks(layer.v):
                columns = places[name]
                _add_both(self.H, places[layer.name], columns, -total[:, None] * block)
                _add_both(self.sizes, places[layer.name], columns, steepest[:, None] * size)
            if np.any(alpha * beta != 0.0):
                _subtract_gram(self.H, self.sizes, layer.v, places, -2.0 * alpha * beta * lam)
            rounded.append(layer.v.roundings * 2 + len(lam) + 8)
        # An entry is a sum over layers of terms with at most this many roundings each; sizes are rounded themselves.
        self.roundings = 2 * (max(rounded) + len(form.layers) + 4)

    def holds(self, bound: float) -> bool:
        """Whether the matrix with ``rho = bound**2`` is shown to be positive semidefinite."""
        require_ieee()
        if not (self.valid and 0.0 < bound < 1e150):
            return False
        H, sizes = self.H.copy(), self.sizes.copy()
        x = np.arange(self.inputs)
        rho = float(np.nextafter(np.float64(bound) * bound, 0.0))
        H[x, x] += rho
        sizes[x, x] += rho
        diagonal = H.diagonal()
        if not np.all(np.isfinite(H)):
            return False
        alive = (diagonal != 0.0) | np.any(H != 0.0, axis=1) | np.any(sizes != 0.0, axis=1)
        H, sizes, diagonal = H[np.ix_(alive, alive)], sizes[np.ix_(alive, alive)], diagonal[alive]
        if not np.all((diagonal > 1e-200) & (diagonal < 1e200)):
            return False
        scale = np.ldexp(1.0, -np.round(np.log2(diagonal) / 2.0).astype(np.int64))
        H = scale[:, None] * H * scale
        sizes = scale[:, None] * sizes * scale
        n = len(H)
        # |error|_2 <= largest row sum of the sizes times the rounding factor; underflow is covered by the last term.
        row = float(np.max(mul_up(np.sum(sizes, axis=1), 1.0 + 4.0 * gamma(n + 4))))
        error = add_up(mul_up(row, 2.0 * gamma(self.roundings)), n * 2.0**-350)
        # Room for the exact checker, whose factor keeps 46 bits and has no entries outside the band of a chain.
        band = float(np.max(np.count_nonzero(H, axis=1)))
        shift = band**1.5 * 2.0**-46 + 2.0 * float(error)
        diagonal_rounding = 2.0**-52 * 4.0
        H[np.arange(n), np.arange(n)] -= shift
        defect = float(psd_defect((H[None],))[0])
        return bool(add_up(add_up(defect, error), diagonal_rounding) <= shift)


def _blocks(signal: Signal) -> Iterator[tuple[str, Array, Array]]:
    sizes = signal.magnitudes()
    for name, block in signal.blocks.items():
        yield name, block.numpy(), sizes[name].numpy()


def _array(signal: Signal) -> Array:
    return next(iter(signal.blocks.values())).numpy() if signal.blocks else np.zeros((0, 0))


def _add_both(H: Array, rows: slice, columns: slice, block: Array) -> None:
    H[rows, columns] += block
    H[columns, rows] += block.T


def _subtract_gram(H: Array, sizes: Array, signal: Signal, places: dict[str, slice], weight: Array | None) -> None:
    parts = list(_blocks(signal))
    for a, left, left_size in parts:
        w = np.ones(len(left)) if weight is None else weight
        for b, right, right_size in parts:
            H[places[a], places[b]] -= (w[:, None] * left).T @ right
            sizes[places[a], places[b]] += (np.abs(w)[:, None] * left_size).T @ right_size
