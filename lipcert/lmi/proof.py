r"""A proof, rounding included, that multipliers give a bound. Floor 2.

The constraint's matrix is formed in float64 together with a matrix that bounds the sizes of the terms its entries are
sums of, scaled by powers of two, and shown to be positive semidefinite by a factor whose residual is bounded.

A variable that a layer keeps, :math:`m = V z`, stays a variable: :math:`(m - V z)^T (O m + R z + S (m - V z))` is zero
whatever O, R and S are, and may be added (Finsler's lemma). With those that elimination names, nothing is left of m in
the matrix but S: no tightness is lost, and blocks are as sparse as the network. Putting V in instead would make every
layer read all before it, through products whose terms outgrow their sums.

References:
    | Rigorous error bounds for the optimal value in semidefinite programming (Jansson, Chaykin, Keil, 2007)
    | Verification of positive definiteness (Rump, 2006)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction

import numpy as np
from torch import Tensor

from lipcert.kernel.blockwise import blockwise_defect
from lipcert.kernel.rounding import Array, add_up, gamma, mul_up, require_ieee, round_up
from lipcert.lmi.elimination import eliminate, tighten
from lipcert.lmi.normal_form import INPUT, Multipliers, NormalForm, Signal

INFLATIONS = tuple(10.0 ** (-quarter / 4) for quarter in range(40, 7, -1))
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


Pair = tuple[str, str]


class _Proof:
    """The constraint's matrix without rho, and the sizes of its entries' terms, by blocks as the graph leaves them.

    A pair of variables has a block if the first stands before the second in z, or is the same; others are zero.
    """

    def __init__(self, form: NormalForm, multipliers: Multipliers) -> None:
        self.width = {INPUT: form.inputs}
        for layer in form.layers:
            self.width[layer.name] = len(layer.alpha)
            if layer.kept is not None:
                self.width[layer.passed] = _rows(layer.kept)
        self.order = list(self.width)
        self.H: dict[Pair, Array] = {}
        self.sizes: dict[Pair, Array] = {}
        self.valid = True
        self._diagonal(INPUT, np.zeros(form.inputs))
        self._subtract_gram(form.output, None)
        rounded = [2 * form.output.roundings + _rows(form.output) + 4]
        for layer in form.layers:
            lam = layer.spread(multipliers[layer.name].detach().cpu()).numpy()
            self.valid &= bool(np.all(np.isfinite(lam)) and np.all(lam >= 0.0))
            alpha, beta = layer.alpha.numpy(), layer.beta.numpy()
            self._diagonal(layer.name, 2.0 * lam)
            total = (alpha + beta) * lam
            # A sum of two floats is zero only if it is exactly.
            steepest = np.where(alpha + beta == 0.0, 0.0, np.abs(alpha) + np.abs(beta)) * lam
            for name, block, size in _blocks(layer.v) if np.any(steepest != 0.0) else ():
                self._add((name, layer.name), -(total[:, None] * block).T, (steepest[:, None] * size).T)
            if np.any(alpha * beta != 0.0):
                self._subtract_gram(layer.v, -2.0 * alpha * beta * lam)
            rounded.append(2 * layer.v.roundings + len(lam) + 8)
        left = _left_of_kept(form, multipliers)
        for layer in form.layers:
            if layer.kept is not None:
                self.valid &= layer.passed in left
                rounded.append(2 * layer.kept.roundings + 3 * _rows(layer.kept) + 16)
            if layer.kept is not None and layer.passed in left:
                self._equation(layer.passed, layer.kept, *left[layer.passed])
        # An entry is a sum of up to four terms per layer, each with at most this many roundings; sizes are rounded too.
        self.roundings = 2 * (max(rounded) + 4 * len(form.layers) + 4)

    def _equation(self, m: str, kept: Signal, O: Array, T: Mapping[str, Array]) -> None:  # noqa: E741
        """Add ``(m - V z)'(O m + R z + S (m - V z))``, where ``R = O V + 2 T`` as it comes out in floating point."""
        V = {name: (block, size) for name, block, size in _blocks(kept)}
        S = np.maximum(O.diagonal(), 1e-6 * np.max(O.diagonal()))[:, None]
        R = {name: 2.0 * T[name] if name in T else np.zeros((len(O), self.width[name])) for name in {**V, **T}}
        R |= {name: R[name] + O @ block for name, (block, _) in V.items()}
        self._add((m, m), O + np.diag(S[:, 0]), np.abs(O) + np.diag(S[:, 0]))
        for a, right in R.items():
            block, size = V.get(a, (np.zeros_like(right), np.zeros_like(right)))
            entry, terms = 0.5 * (right - O @ block) - S * block, 0.5 * (np.abs(right) + np.abs(O) @ size) + S * size
            self._add((a, m), entry.T, terms.T)
        place = {name: index for index, name in enumerate(self.order)}
        for a, (block, size) in V.items():
            for b, right in R.items():
                product, terms = -0.5 * (block.T @ right), 0.5 * (size.T @ np.abs(right))
                if place[a] <= place[b]:
                    self._add((a, b), product, terms)
                if place[b] <= place[a]:
                    self._add((b, a), product.T, terms.T)
        self._subtract_gram(kept, -S[:, 0])

    def holds(self, bound: float) -> bool:
        """Whether the matrix with ``rho = bound**2`` is shown to be positive semidefinite."""
        require_ieee()
        if not (self.valid and 0.0 < bound < 1e150 and all(np.all(np.isfinite(block)) for block in self.H.values())):
            return False
        H, sizes = dict(self.H), dict(self.sizes)
        rho = np.eye(self.width[INPUT]) * float(np.nextafter(np.float64(bound) * bound, 0.0))
        H[INPUT, INPUT], sizes[INPUT, INPUT] = H[INPUT, INPUT] + rho, sizes[INPUT, INPUT] + rho
        scale = {name: _scale(H[name, name].diagonal(), self._idle(name)) for name in self.order}
        if any(np.any(np.isnan(found)) for found in scale.values()):
            return False
        H = {(a, b): scale[a][:, None] * block * scale[b] for (a, b), block in H.items()}
        sizes = {(a, b): scale[a][:, None] * block * scale[b] for (a, b), block in sizes.items()}
        # A neuron that nothing reads and that reads nothing has a zero row: a one on its diagonal changes nothing.
        for name in self.order:
            idle = np.flatnonzero(scale[name] == 0.0)
            H[name, name][idle, idle] = 1.0
        n = sum(self.width.values())
        error = mul_up(self._largest_row(sizes), 2.0 * gamma(self.roundings))
        error = add_up(error, n * 2.0**-350)
        # Room for the exact checker, whose factor keeps 46 bits and has no entries outside the band of a chain.
        band = float(np.max(self._row_sums({pair: (block != 0.0).astype(float) for pair, block in H.items()})))
        shift = band**1.5 * 2.0**-46 + 2.0 * float(error)
        for name in self.order:
            H[name, name][np.diag_indices(self.width[name])] -= shift
        defect = blockwise_defect(H, self.order)
        return bool(add_up(add_up(defect, error), 4.0 * 2.0**-52) <= shift)

    def _idle(self, name: str) -> Array:
        """Rows without any term."""
        found = np.ones(self.width[name], dtype=bool)
        for (a, b), block in self.sizes.items():
            if name == a:
                found &= ~np.any(block != 0.0, axis=1)
            if name == b:
                found &= ~np.any(block != 0.0, axis=0)
        return found

    def _row_sums(self, blocks: dict[Pair, Array]) -> Array:
        sums = {name: np.zeros(self.width[name]) for name in self.order}
        for (a, b), block in blocks.items():
            sums[a] += np.sum(block, axis=1)
            if a != b:
                sums[b] += np.sum(block, axis=0)
        return np.concatenate([sums[name] for name in self.order])

    def _largest_row(self, blocks: dict[Pair, Array]) -> Array:
        n = sum(self.width.values())
        return np.max(mul_up(self._row_sums(blocks), 1.0 + 4.0 * gamma(n + len(blocks))))

    def _diagonal(self, name: str, values: Array) -> None:
        self._add((name, name), np.diag(values), np.diag(values))

    def _add(self, pair: Pair, block: Array, size: Array) -> None:
        for store, part in ((self.H, block), (self.sizes, size)):
            store[pair] = store[pair] + part if pair in store else part.copy()

    def _subtract_gram(self, signal: Signal, weight: Array | None) -> None:
        parts = list(_blocks(signal))
        place = {name: index for index, name in enumerate(self.order)}
        for a, left, left_size in parts:
            w = np.ones(len(left)) if weight is None else weight
            for b, right, right_size in parts:
                if place[a] <= place[b]:
                    size = (np.abs(w)[:, None] * left_size).T @ right_size
                    self._add((a, b), -((w[:, None] * left).T @ right), size)


def _left_of_kept(form: NormalForm, multipliers: Multipliers) -> dict[str, tuple[Array, dict[str, Array]]]:
    """For every kept variable its own block when its turn comes in the elimination, and those across; hints only."""
    if all(layer.kept is None for layer in form.layers):
        return {}
    found: dict[str, tuple[Array, dict[str, Array]]] = {}

    def keep(name: str, blocks: tuple[Tensor, dict[str, Tensor]]) -> None:
        own, across = blocks
        found[name] = (0.5 * (own + own.mT)).numpy(), {a: block.numpy() for a, block in across.items()}

    eliminate(form, lambda layer, own, across: multipliers[layer.name], keep=keep)
    return found


def _scale(diagonal: Array, idle: Array) -> Array:
    """Powers of two that bring a diagonal to about one; zero for idle rows, NaN where the diagonal is out of range."""
    fine = (diagonal > 1e-200) & (diagonal < 1e200)
    exponent = -np.round(np.log2(np.where(fine, diagonal, 1.0)) / 2.0).astype(np.int64)
    return np.where(fine, np.ldexp(1.0, exponent), np.where(idle, 0.0, np.nan))


def _blocks(signal: Signal) -> Iterator[tuple[str, Array, Array]]:
    sizes = signal.magnitudes()
    for name, block in signal.blocks.items():
        yield name, block.numpy(), sizes[name].numpy()


def _rows(signal: Signal) -> int:
    return max((len(block) for block in signal.blocks.values()), default=0)
