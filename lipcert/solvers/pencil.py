r"""The constraint's matrix as a function of the unknowns, in a scale where the start is one. Floor 2.

:math:`S(\rho, \lambda) = \rho E_x - Y^H Y + \sum_j \lambda_j (p_j q_j^H + q_j p_j^H)` with the rows
:math:`p_j = e_j - \alpha_j v_j`, :math:`q_j = e_j - \beta_j v_j`. V is kept by blocks, so that products with it cost
what the network's own layers cost. Matrices may be complex and carry batch dimensions in front; unknowns are real and
shared by the batch, and inner products are sums over it.

With weights :math:`\tau` of the input's entries in place of :math:`\rho`, the first term is
:math:`\sum_i \tau_i e_i e_i^T` and the objective :math:`\sum_i \tau_i`: as many prices as inputs, instead of one.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.lmi import Factors, Multipliers, NormalForm, dual_value, eliminate, rescaled
from lipcert.lmi.dual import directions_of
from lipcert.lmi.elimination import over_batch
from lipcert.lmi.normal_form import INPUT

Rows = tuple[Tensor, Tensor]
"""``P M`` and ``Q M`` of a matrix M."""


@dataclass(frozen=True, eq=False)
class Pencil:
    """The scaled problem; the unknowns are ``y = (prices, lambda)``, where rho is the only price or each input has one.

    Attributes:
        form: The network in the scale in which the start is ones.
        columns: Where each variable stands in z.
        neurons: Where each layer's neurons stand among all neurons.
        counts: How many multipliers each layer has.
        index: For every neuron the number of its multiplier, ``(N,)``; ``None`` if each has its own.
        alpha: Slopes from below, ``(N,)``.
        beta: Slopes from above, ``(N,)``.
        gram: ``Y^H Y``, ``(..., n, n)``.
        unit: What ones of the scaled prices stand for, ``(1,)`` or ``(inputs,)``.
        scale: What ones of the scaled multipliers stand for.
        bounded: Whether ``lambda >= 0`` has to be asked for; where no slope interval lies on one side of zero it
            follows from the diagonal of ``S >= 0``.
    """

    form: NormalForm
    columns: Mapping[str, slice]
    neurons: Mapping[str, slice]
    counts: tuple[int, ...]
    index: Tensor | None
    alpha: Tensor
    beta: Tensor
    gram: Tensor
    unit: Tensor
    scale: Multipliers
    bounded: bool

    @property
    def inputs(self) -> int:
        """Size of the x part."""
        return self.form.inputs

    @property
    def prices(self) -> int:
        """How many of the unknowns stand before squares of inputs."""
        return len(self.unit)

    def total(self, y: Tensor) -> float:
        """What is minimised, in the network's own scale."""
        return float(y[: self.prices] @ self.unit)

    def paid(self, values: Tensor, dim: int = 0) -> Tensor:
        """Sums over the inputs that share a price."""
        return values if self.prices == self.inputs else values.sum(dim, keepdim=True)

    def named(self, lam: Tensor) -> dict[str, Tensor]:
        """Scaled multipliers by layer, still scaled."""
        pieces = lam.split(self.counts)
        return {layer.name: piece for layer, piece in zip(self.form.layers, pieces, strict=True)}

    def multipliers(self, lam: Tensor) -> dict[str, Tensor]:
        """Scaled multipliers as multipliers of the network."""
        return {name: piece * self.scale[name] for name, piece in self.named(lam).items()}

    def spread(self, lam: Tensor) -> Tensor:
        """Multipliers as one per neuron."""
        return lam if self.index is None else lam[self.index]

    def gather(self, values: Tensor, dim: int = 0) -> Tensor:
        """Sums over the neurons that share a multiplier."""
        if self.index is None:
            return values
        shape = list(values.shape)
        shape[dim] = sum(self.counts)
        return values.new_zeros(shape).index_add(dim, self.index, values)

    def factors(self, y: Tensor) -> tuple[Factors, Tensor] | None:
        """The elimination at y and the factor of what is left on the input; ``None`` unless ``S > 0``."""
        if self.bounded and not float(y.min()) > 0.0:
            return None
        lam, rows = self.named(y[self.prices :]), {}
        G = eliminate(self.form, lambda layer, own, across: lam[layer.name], keep=rows.__setitem__)
        if G is None:
            return None
        room = torch.diag_embed(y[: self.prices].expand(self.inputs).to(G.dtype)) - G
        L, failed = torch.linalg.cholesky_ex(room)
        return None if bool(failed.any()) else (Factors(self.form, G, rows), L)

    def inverse(self, found: tuple[Factors, Tensor]) -> Tensor:
        """``S^-1``, dense, by recursion: a layer's rows are its maximiser's of the rows before."""
        factors, L = found
        n0 = self.inputs
        Z = self.gram.new_zeros(self.gram.shape)
        Z[..., :n0, :n0] = torch.cholesky_inverse(L)
        for layer in self.form.layers:
            here = self.columns[layer.name]
            L, blocks = factors.rows[layer.name]
            Y = {name: torch.linalg.solve_triangular(L.mH, block, upper=True) for name, block in blocks.items()}
            before = Z.new_zeros(*Z.shape[:-2], here.stop - here.start, here.start)
            own = torch.cholesky_inverse(L).expand(*Z.shape[:-2], -1, -1).clone()
            for name, block in Y.items():
                before += block @ Z[..., self.columns[name], : here.start]
            for name, block in Y.items():
                own += before[..., self.columns[name]] @ block.mH
            Z[..., here, : here.start], Z[..., here, here] = before, own
            Z[..., : here.start, here] = before.mH
        return Z

    def V(self, M: Tensor) -> Tensor:
        """``V M``, ``(..., N, columns of M)``."""
        found = M.new_zeros(*M.shape[:-2], len(self.alpha), M.shape[-1])
        for layer in self.form.layers:
            for name, block in layer.v.blocks.items():
                found[..., self.neurons[layer.name], :] += block @ M[..., self.columns[name], :]
        return found

    def times_V(self, M: Tensor) -> Tensor:
        """``M V^H``, ``(..., rows of M, N)``."""
        found = M.new_zeros(*M.shape[:-1], len(self.alpha))
        for layer in self.form.layers:
            for name, block in layer.v.blocks.items():
                found[..., self.neurons[layer.name]] += M[..., self.columns[name]] @ block.mH
        return found

    def rows(self, M: Tensor) -> Rows:
        """``P M`` and ``Q M``."""
        VM, own = self.V(M), M[..., self.inputs :, :]
        above = own - self.beta[:, None] * VM
        return (own, above) if not bool(self.alpha.any()) else (own - self.alpha[:, None] * VM, above)

    def _corners(self, M: Tensor, VM: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``P M P^H``, ``P M Q^H`` and ``Q M Q^H`` of a Hermitian matrix."""
        n0, a, b = self.inputs, self.alpha, self.beta
        A, B, D = M[..., n0:, n0:], self.times_V(M[..., n0:, :]), self.times_V(VM)
        BH = B.mH
        QQ = A - b * B - b[:, None] * BH + b[:, None] * b * D
        if not bool(a.any()):
            return A, A - b * B, QQ
        PP = A - a * B - a[:, None] * BH + a[:, None] * a * D
        return PP, A - b * B - a[:, None] * BH + a[:, None] * b * D, QQ

    def schur(self, X: Tensor, rows_X: Rows, Z: Tensor, rows_Z: Rows) -> tuple[Tensor, Tensor]:
        """``M_ij = <F_i, X F_j Z>`` for ``F = (E_x, A_1, ..., A_N)``, and ``<F_i, Z>``; E_x by prices."""
        n0, (PX, QX), (PZ, QZ) = self.inputs, rows_X, rows_Z
        PXP, PXQ, QXQ = self._corners(X, self.V(X))
        PZP, PZQ, QZQ = self._corners(Z, self.V(Z))
        half = _summed(PXQ.mH, PZQ)
        inner = half + half.mT + _summed(QXQ, PZP) + _summed(PXP, QZQ)
        side = _summed(QZ[..., :n0], PX[..., :n0]) + _summed(PZ[..., :n0], QX[..., :n0])
        side = self.gather(self.paid(side, 1))
        corner = self.paid(self.paid(_summed(Z[..., :n0, :n0], X[..., :n0, :n0])), 1)
        inner = self.gather(self.gather(inner), 1)
        M = torch.cat([torch.cat([corner, side.mT], dim=1), torch.cat([side, inner], dim=1)])
        return M, torch.cat([self._trace(Z), self.gather(2.0 * over_batch(PZQ.diagonal(dim1=-2, dim2=-1).real))])

    def traces(self, M: Tensor, rows: Rows) -> Tensor:
        """``<F_i, M>`` of a Hermitian matrix."""
        PM = rows[0]
        own = PM[..., self.inputs :].diagonal(dim1=-2, dim2=-1).real
        along = torch.zeros_like(own)
        for layer in self.form.layers:
            here = self.neurons[layer.name]
            for name, block in layer.v.blocks.items():
                along[..., here] += (PM[..., here, self.columns[name]] * block.conj()).real.sum(-1)
        inner = over_batch(own - self.beta * along)
        return torch.cat([self._trace(M), self.gather(2.0 * inner)])

    def cross_traces(self, A: Tensor, Z: Tensor, rows_Z: Rows) -> Tensor:
        """``<F_i, A Z>`` for any A and a Hermitian Z, without their product."""
        n0, (PZ, QZ), (PA, QA) = self.inputs, rows_Z, self.rows(A)
        first = self.paid(_inner(A[..., :n0, :], Z[..., :n0, :]))
        return torch.cat([first, self.gather(_inner(QA, PZ) + _inner(PA, QZ))])

    def direction_times(self, dy: Tensor, X: Tensor, rows: Rows) -> Tensor:
        """``(S' dy) X`` with the linear part ``S'``."""
        n0, lam, (PX, QX) = self.inputs, self.spread(dy[self.prices :])[:, None], rows
        found = torch.empty_like(X)
        found[..., :n0, :] = dy[: self.prices, None] * X[..., :n0, :]
        found[..., n0:, :] = (QX + PX) * lam
        inner = self.beta[:, None] * lam * PX
        if bool(self.alpha.any()):
            inner += self.alpha[:, None] * lam * QX
        for layer in self.form.layers:
            for name, block in layer.v.blocks.items():
                found[..., self.columns[name], :] -= block.mH @ inner[..., self.neurons[layer.name], :]
        return found

    def dual(self, L: Tensor) -> float:
        """A bound of the total price that no multipliers can go below, from a factor ``X = L L^H``.

        Where every input has its price, ``|y|^2 <= sum of tau_i |x_i|^2`` is at most the total for ``|x_i| = 1``.
        """
        vectors = {name: L[..., place, :] for name, place in self.columns.items()}
        total = float(self.unit.sum())
        if self.prices > 1:
            x = vectors[INPUT]
            length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(1e-300)
            vectors[INPUT] = x / length * (self.unit / total).sqrt()[:, None]
        return float(dual_value(self.form, directions_of(self.form, vectors))) * total

    def _trace(self, M: Tensor) -> Tensor:
        n0 = self.inputs
        return self.paid(over_batch(M[..., :n0, :n0].diagonal(dim1=-2, dim2=-1).real))


def pencil(form: NormalForm, start: Multipliers, rho: float | Tensor) -> Pencil:
    """The problem of a form, scaled so that ``(rho, start)`` becomes ones; rho may be one for every input."""
    highest = max(float(lam.max()) for lam in start.values())
    start = {name: lam.clamp_min(1e-30 * highest) for name, lam in start.items()}
    scaled = rescaled(form, start, rho)
    columns, n0 = scaled.columns(), form.inputs
    neurons = {
        layer.name: slice(columns[layer.name].start - n0, columns[layer.name].stop - n0) for layer in form.layers
    }
    counts = tuple(layer.count for layer in form.layers)
    index = None
    if any(layer.index is not None for layer in form.layers):
        starts = itertools.accumulate(counts, initial=0)
        own = [torch.arange(layer.count) if layer.index is None else layer.index for layer in form.layers]
        index = torch.cat([piece + first for piece, first in zip(own, starts, strict=False)])
    alpha = torch.cat([layer.alpha for layer in form.layers])
    beta = torch.cat([layer.beta for layer in form.layers])
    n = n0 + len(alpha)
    batch = torch.broadcast_shapes(*[b.shape[:-2] for s in _signals(form) for b in s.blocks.values()])
    gram = form.zeros(*batch, n, n)
    for (a, left), (b, right) in itertools.product(scaled.output.blocks.items(), repeat=2):
        gram[..., columns[a], columns[b]] += left.mH @ right
    bounded = bool((alpha * beta > 0.0).any())
    unit = rho if isinstance(rho, Tensor) else alpha.new_full((1,), rho)
    return Pencil(scaled, columns, neurons, counts, index, alpha, beta, gram, unit, start, bounded)


def _signals(form: NormalForm):
    return [*(layer.v for layer in form.layers), form.output]


def _inner(A: Tensor, B: Tensor) -> Tensor:
    """Row by row the inner products, summed over the batch: ``(rows,)``."""
    return over_batch((A * B.conj()).real.sum(-1))


def _summed(A: Tensor, B: Tensor) -> Tensor:
    """The entrywise product with the conjugate, summed over the batch: ``(N, N)``."""
    product = (A * B.conj()).real
    return product if product.ndim == 2 else product.flatten(0, -3).sum(0)
