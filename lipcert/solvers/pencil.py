r"""The constraint's matrix as a function of the unknowns, in a scale where the start is near one. Floor 2.

:math:`S(\rho, \lambda) = \rho E_x - Y^T Y + \sum_j \lambda_j (p_j q_j^T + q_j p_j^T)` with the rows
:math:`p_j = e_j - \alpha_j v_j`, :math:`q_j = e_j - \beta_j v_j`. V is kept by blocks, so that products with it cost
what the network's own layers cost.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.lmi import Multipliers, NormalForm


@dataclass(frozen=True, eq=False)
class Pencil:
    """The scaled problem.

    Attributes:
        inputs: Size of the x part.
        blocks: V by blocks: rows (a range of neurons), columns (a range of z), matrix.
        gram: ``Y' Y``, ``(n, n)``.
        alpha: Slopes from below, ``(N,)``.
        beta: Slopes from above, ``(N,)``.
        rho: The scaled start of rho.
        lam: The scaled start of the multipliers.
        unit: What one of the scaled rho stands for.
        scale: What one of the scaled multipliers stands for, ``(N,)``.
        names: Layers and where their neurons stand.
        root: What the unscaled entries of z were multiplied by.
    """

    inputs: int
    blocks: tuple[tuple[slice, slice, Tensor], ...]
    gram: Tensor
    alpha: Tensor
    beta: Tensor
    rho: Tensor
    lam: Tensor
    unit: float
    scale: Tensor
    names: tuple[tuple[str, slice], ...]
    root: Tensor

    def named(self, lam: Tensor) -> dict[str, Tensor]:
        """Scaled multipliers as multipliers of the network."""
        return {name: (lam * self.scale)[place] for name, place in self.names}

    def V(self, M: Tensor) -> Tensor:
        """``V M``, ``(N, columns of M)``."""
        found = M.new_zeros(len(self.alpha), M.shape[1])
        for rows, columns, block in self.blocks:
            found[rows] += block @ M[columns]
        return found

    def matrix(self, y: Tensor, constant: float = 1.0) -> Tensor:
        """``S`` at ``y = (rho, lambda)``, or its linear part for ``constant=0``."""
        S = -constant * self.gram
        n0, lam = self.inputs, y[1:]
        S.diagonal()[:n0] += y[0]
        S.diagonal()[n0:] += 2.0 * lam
        mean, product = (self.alpha + self.beta) * lam, 2.0 * self.alpha * self.beta * lam
        for rows, columns, block in self.blocks:
            cross = mean[rows, None] * block
            here = slice(rows.start + n0, rows.stop + n0)
            S[here, columns] -= cross
            S[columns, here] -= cross.mT
            if bool((product[rows] != 0.0).any()):
                for others, right, other in self.blocks:
                    if others == rows:
                        S[columns, right] += (product[rows, None] * block).mT @ other
        return S

    def rows(self, M: Tensor) -> tuple[Tensor, Tensor]:
        """``P M`` and ``Q M``."""
        VM, own = self.V(M), M[self.inputs :]
        return own - self.alpha[:, None] * VM, own - self.beta[:, None] * VM

    def schur(self, X: Tensor, Z: Tensor) -> tuple[Tensor, Tensor]:
        """``M_ij = <F_i, X F_j Z>`` for ``F = (E_x, A_1, ..., A_N)``, and ``<F_i, Z>``."""
        PX, QX = self.rows(X)
        PZ, QZ = self.rows(Z)
        PXP, QXP = self.rows(PX.mT)
        QXQ = self.rows(QX.mT)[1]
        PZP, QZP = self.rows(PZ.mT)
        QZQ = self.rows(QZ.mT)[1]
        n0 = self.inputs
        size = len(self.alpha) + 1
        M = X.new_empty(size, size)
        half = QXP * QZP.mT
        M[1:, 1:] = half + half.mT + QXQ * PZP + PXP * QZQ
        M[0, 0] = (X[:n0, :n0] * Z[:n0, :n0]).sum()
        M[0, 1:] = M[1:, 0] = (QZ[:, :n0] * PX[:, :n0]).sum(1) + (PZ[:, :n0] * QX[:, :n0]).sum(1)
        trace = torch.cat([Z.diagonal()[:n0].sum().reshape(1), 2.0 * QZP.diagonal()])
        return M, trace

    def traces(self, M: Tensor) -> Tensor:
        """``<F_i, M>`` of any square matrix."""
        M = 0.5 * (M + M.mT)
        PM = self.rows(M)[0]
        inner = PM[:, self.inputs :].diagonal() - self.beta * self._along(PM)
        return torch.cat([M.diagonal()[: self.inputs].sum().reshape(1), 2.0 * inner])

    def _along(self, M: Tensor) -> Tensor:
        """The diagonal of ``M V'``."""
        found = M.new_zeros(len(self.alpha))
        for rows, columns, block in self.blocks:
            found[rows] += (M[rows, columns] * block).sum(1)
        return found

    def times_direction(self, X: Tensor, dy: Tensor) -> Tensor:
        """``X (S' dy)`` with the linear part ``S'``."""
        n0, lam = self.inputs, dy[1:]
        PX, QX = self.rows(X)
        # X A = X P' L Q + X Q' L P, with Q = E - beta V and P = E - alpha V.
        left = (QX + PX) * lam[:, None]
        inner = (self.beta[:, None] * PX + self.alpha[:, None] * QX) * lam[:, None]
        found = torch.zeros_like(X)
        found[:, n0:] = left.mT
        for rows, columns, block in self.blocks:
            found[:, columns] -= inner[rows].mT @ block
        found[:, :n0] += dy[0] * X[:, :n0]
        return found

    def dual(self, X: Tensor, y: Tensor) -> float:
        """About the least rho any multipliers near ``y`` can give, in the scaled problem."""
        found = self.traces(X)
        excess = float((found[1:].clamp_min(0.0) * y[1:]).sum())
        return (float((self.gram * X).sum()) - excess) / float(found[0])


def pencil(form: NormalForm, start: Multipliers, rho: float) -> Pencil:
    """The problem of a form, scaled so that ``(rho, start)`` becomes ones."""
    places = form.columns()
    n0 = form.inputs
    names = tuple(
        (layer.name, slice(places[layer.name].start - n0, places[layer.name].stop - n0)) for layer in form.layers
    )
    lam = torch.cat([start[name] for name, _ in names])
    floor = 1e-30 * float(lam.max())
    lam = lam.clamp_min(floor)
    root = torch.cat([lam.new_full((n0,), rho**0.5), lam.sqrt()])
    blocks = []
    for (_, rows), layer in zip(names, form.layers, strict=True):
        for name, block in layer.v.blocks.items():
            columns = places[name]
            blocks.append((rows, columns, root[n0:][rows, None] * block / root[columns]))
    Y = lam.new_zeros(len(next(iter(form.output.blocks.values()))), n0 + form.neurons)
    for name, block in form.output.blocks.items():
        Y[:, places[name]] += block
    Y = Y / root
    alpha = torch.cat([layer.alpha for layer in form.layers])
    beta = torch.cat([layer.beta for layer in form.layers])
    one = lam.new_ones(())
    return Pencil(n0, tuple(blocks), Y.mT @ Y, alpha, beta, one, torch.ones_like(lam), rho, lam, names, root)
