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

import heapq
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from functools import partial
from operator import itemgetter

import numpy as np
from torch import Tensor

from lipcert.kernel.blockwise import blockwise_defect
from lipcert.kernel.rounding import Array, add_up, gamma, mul_up, require_ieee, round_up
from lipcert.lmi.elimination import eliminate, graded, tighten
from lipcert.lmi.normal_form import INPUT, Multipliers, NormalForm, Signal
from lipcert.lmi.reduction import reduced

WEAKEST, STRONGEST = 2.0**-34, 2.0**-6
"""Relative amounts by which rho or multipliers are changed to find a proof."""


def prove(form: NormalForm, multipliers: Multipliers, interior: Multipliers | None = None) -> tuple[float, Multipliers]:
    """A bound K of the Lipschitz constant (l2) proven from multipliers, rounded up, and the multipliers that prove it.

    A proof needs room for rounding, and multipliers that a solver stopped at may be infeasible by a little. Three
    remedies are tried at growing strength s, the lowest bound first: raise rho by s; raise every layer's multipliers a
    little over those of the layer after it, which gives every pivot the same relative room; move by s towards
    multipliers that are feasible with room (the constraint is linear, so a mixture of both is).

    Args:
        form: The network in normal form.
        multipliers: What a solver proposes.
        interior: Multipliers that are feasible with room, such as the closed form's.

    Returns:
        Infinity as the bound if no proof is found.
    """
    small = reduced(form)
    near = any(layer.kept is not None for layer in form.layers)
    room, shown = partial(least_room, form, multipliers), partial(holds, form)
    return proven(small, multipliers, interior, room, shown, near)


def proven(
    small: NormalForm,
    multipliers: Multipliers,
    interior: Multipliers | None,
    room: Callable[[float], float],
    shown: Callable[[Multipliers, float], bool],
    apart: bool,
) -> tuple[float, Multipliers]:
    """`prove` with the proof itself given.

    Args:
        small: What bounds are computed from before they are proven.
        multipliers: What a solver proposes.
        interior: Multipliers that are feasible with room.
        room: By how much, at least, a bound near the one given has to be raised for a proof.
        shown: Whether multipliers prove a bound.
        apart: Whether other multipliers may need far less room than these.
    """
    rho = tighten(small, multipliers)
    least = room(rho**0.5) if 0.0 < rho < float("inf") else WEAKEST
    # Near the boundary what elimination leaves of a kept variable is large, and its rounding with it: other multipliers
    # need far less room there.
    others = WEAKEST if apart else least
    remedies = [(_raised, least), (_spread, others)]
    remedies += [] if interior is None else [(partial(_mixed, interior=interior), others)]
    attempts = [_attempts(small, partial(remedy, small, multipliers), start) for remedy, start in remedies]
    for bound, candidate in heapq.merge(*attempts, key=itemgetter(0)):
        if shown(candidate, bound):
            return bound, candidate
    return float("inf"), multipliers


Remedy = Callable[[float], tuple[Multipliers, float]]
"""From a strength to multipliers, and by how much to raise K besides."""


def _attempts(form: NormalForm, remedy: Remedy, strength: float) -> Iterator[tuple[float, Multipliers]]:
    """Bounds to be proven and the multipliers to prove them with, lowest first, at strengths that grow fourfold.

    rho is convex in the multipliers: along a remedy the bound falls first, if at all, and then rises.
    """
    held, candidate, rho = (float("inf"), {}), None, float("inf")
    while strength <= STRONGEST:
        before = candidate
        candidate, room = remedy(strength)
        rho = rho if candidate is before else tighten(form, candidate)
        if 0.0 < rho < float("inf"):
            bound = round_up(Fraction(rho**0.5) * (1 + Fraction(room)))
            if held[0] <= bound:
                yield held
            held = bound, candidate
        strength *= 4.0
    if held[0] < float("inf"):
        yield held


def _raised(form: NormalForm, multipliers: Multipliers, strength: float) -> tuple[Multipliers, float]:
    return multipliers, strength


def _spread(form: NormalForm, multipliers: Multipliers, strength: float) -> tuple[Multipliers, float]:
    step = 1.0 + 2.0 * strength / max(1, len(form.layers))
    return graded(form, multipliers, step), strength / 10.0


def _mixed(
    form: NormalForm, multipliers: Multipliers, strength: float, *, interior: Multipliers
) -> tuple[Multipliers, float]:
    mixed = {name: (1.0 - strength) * lam + strength * interior[name] for name, lam in multipliers.items()}
    return mixed, strength / 10.0


Price = float | Array
"""What stands before the input's squares: a bound K, for ``K**2``, or a weight for each entry."""


def holds(form: NormalForm, multipliers: Multipliers, bound: Price) -> bool:
    """Whether these multipliers prove ``bound``, rounding included; ``False`` may mean that it is too close.

    Of a batch of forms with real blocks, whether they prove it for each. With weights ``tau`` of the input's entries in
    place of a bound, whether ``|dy|_2^2 <= sum tau_j dx_j^2`` is proven.
    """
    return Proof(form, multipliers).holds(bound)


def least_room(form: NormalForm, multipliers: Multipliers, bound: Price) -> float:
    """By how much, relatively, ``bound`` has to be raised at least if it is the lowest there is."""
    return Proof(form, multipliers).least_room(bound)


Pair = tuple[str, str]


class Proof:
    """The constraint's matrix without rho, and the sizes of its entries' terms, by blocks as the graph leaves them.

    A pair of variables has a block if the first stands before the second in z, or is the same; others are zero.
    """

    def __init__(self, form: NormalForm, multipliers: Multipliers) -> None:
        """Form the matrix."""
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
                self._add((name, layer.name), -_t(total[:, None] * block), _t(steepest[:, None] * size))
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

    def border(self, name: str, P: Array, largest: Array, B: Signal) -> None:
        """Add ``y' P y - 2 y' B z`` for a new variable y.

        Args:
            name: Of y.
            P: Its own block, of floats that are exact.
            largest: Entries that those of P do not exceed, the same for a whole batch.
            B: What it is paired with.
        """
        self.width[name] = P.shape[-1]
        self.order.append(name)
        self._add((name, name), P, largest)
        for a, block, size in _blocks(B):
            self._add((a, name), -_t(block), _t(size))
        self.roundings = max(self.roundings, 2 * (2 * B.roundings + 8))

    def holds(self, bound: Price) -> bool:
        """Whether the matrix with ``rho = bound**2`` is shown to be positive semidefinite."""
        return self.within(bound, 0.0, np.inf)

    def within(self, bound: Price, least: float, most: float) -> bool:
        """Whether the eigenvalues of the scaled matrix with ``rho = bound**2`` are shown to lie between two numbers.

        Args:
            bound: The bound, or weights.
            least: At most 1.
            most: At most 16, or infinity.
        """
        require_ieee()
        found = self._scaled(bound)
        if found is None:
            return False
        H, sizes, _ = found
        error, shift = self._allowance(H, sizes)
        if most < np.inf and not self._above({pair: -block for pair, block in H.items()}, most - shift, error, shift):
            return False
        return self._above(H, -least - shift, error, shift)

    def _above(self, H: dict[Pair, Array], raised: float, error: Array, shift: float) -> bool:
        """Whether ``H + (raised + shift) I`` is shown to be semidefinite, whatever the error."""
        H = dict(H)
        for name in self.order:
            H[name, name] = H[name, name] + raised * np.eye(self.width[name])
        defect = blockwise_defect(H, self.order)
        # Entries on the diagonal are below 32 before and after: adding rounds by at most 2^-48.
        return bool(add_up(add_up(defect, error), 2.0**-48) <= shift)

    def least_room(self, bound: Price) -> float:
        """By how much a bound has to be raised at least for a proof, if no matrix just below is positive semidefinite.

        Raising it by a relative delta raises the matrix, which has to be above zero by its allowance, by at most
        2 delta times the largest scaled entry of rho.
        """
        found = self._scaled(bound)
        if found is None:
            return WEAKEST
        H, sizes, rho = found
        return max(WEAKEST, self._allowance(H, sizes)[1] / (2.0 * float(rho.max())))

    def _scaled(self, bound: Price) -> tuple[dict[Pair, Array], dict[Pair, Array], Array] | None:
        """The matrix with ``rho = bound**2``, its entries' sizes, and rho, scaled to a diagonal of about one."""
        rho = _squared(bound, self.width[INPUT])
        if rho is None or not (self.valid and all(np.all(np.isfinite(block)) for block in self.H.values())):
            return None
        H, sizes = dict(self.H), dict(self.sizes)
        H[INPUT, INPUT], sizes[INPUT, INPUT] = H[INPUT, INPUT] + np.diag(rho), sizes[INPUT, INPUT] + np.diag(rho)
        # Factors known within an interval may differ from position to position: what they change is bounded for a whole
        # batch at once, so its matrices are scaled alike.
        sized = sizes if any(block.ndim > 2 for block in H.values()) else H
        scale = {name: _scale(sized[name, name].diagonal(), self._idle(name)) for name in self.order}
        if any(np.any(np.isnan(found)) for found in scale.values()):
            return None
        H = {(a, b): scale[a][:, None] * block * scale[b] for (a, b), block in H.items()}
        sizes = {(a, b): scale[a][:, None] * block * scale[b] for (a, b), block in sizes.items()}
        # A neuron that nothing reads and that reads nothing has a zero row: a one on its diagonal changes nothing.
        for name in self.order:
            idle = np.flatnonzero(scale[name] == 0.0)
            H[name, name][..., idle, idle] = 1.0
        return H, sizes, rho * scale[INPUT] ** 2

    def _allowance(self, H: dict[Pair, Array], sizes: dict[Pair, Array]) -> tuple[Array, float]:
        """A bound of the error of the scaled matrix, and by how much its proof lowers it."""
        n = sum(self.width.values())
        largest = mul_up(self._largest_row(sizes), 1.0 + 4.0 * gamma(n + len(sizes)))
        error = add_up(mul_up(largest, 2.0 * gamma(self.roundings)), n * 2.0**-350)
        # Room for the exact checker, whose factor keeps 46 bits and has no entries outside the band of a chain.
        band = self._largest_row({pair: (block != 0.0).astype(float) for pair, block in H.items()})
        return error, band**1.5 * 2.0**-46 + 2.0 * float(error)

    def _idle(self, name: str) -> Array:
        """Rows without any term."""
        found = np.ones(self.width[name], dtype=bool)
        for (a, b), block in self.sizes.items():
            if name == a:
                found &= ~np.any(block != 0.0, axis=1)
            if name == b:
                found &= ~np.any(block != 0.0, axis=0)
        return found

    def _largest_row(self, blocks: dict[Pair, Array]) -> float:
        """The largest sum of a row of a symmetric matrix >= 0, over a stack."""
        sums: dict[str, Array] = {name: np.zeros(self.width[name]) for name in self.order}
        for (a, b), block in blocks.items():
            sums[a] = sums[a] + np.sum(block, axis=-1)
            if a != b:
                sums[b] = sums[b] + np.sum(block, axis=-2)
        return float(max(np.max(each, initial=0.0) for each in sums.values()))

    def _diagonal(self, name: str, values: Array) -> None:
        self._add((name, name), np.diag(values), np.diag(values))

    def _add(self, pair: Pair, block: Array, size: Array) -> None:
        for store, part in ((self.H, block), (self.sizes, size)):
            store[pair] = store[pair] + part if pair in store else part.copy()

    def _subtract_gram(self, signal: Signal, weight: Array | None) -> None:
        parts = list(_blocks(signal))
        place = {name: index for index, name in enumerate(self.order)}
        for a, left, left_size in parts:
            w = np.ones(left.shape[-2]) if weight is None else weight
            for b, right, right_size in parts:
                if place[a] <= place[b]:
                    size = _t(np.abs(w)[:, None] * left_size) @ right_size
                    self._add((a, b), -(_t(w[:, None] * left) @ right), size)


def _squared(bound: Price, inputs: int) -> Array | None:
    """What stands before the input's squares, not more than ``bound**2``; ``None`` where it is out of range."""
    if not isinstance(bound, np.ndarray):
        return np.full(inputs, float(np.nextafter(np.float64(bound) * bound, 0.0))) if 0.0 < bound < 1e150 else None
    return bound if bool(np.all((bound >= 0.0) & (bound < 1e300))) else None


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
    return max((block.shape[-2] for block in signal.blocks.values()), default=0)


def _t(blocks: Array) -> Array:
    return np.swapaxes(blocks, -1, -2)
