r"""A proof that a matrix with many zero blocks is positive semidefinite, at the cost of its blocks. Floor 1.

As in `psd`: :math:`H \succeq -\lVert H - \sum_k F_k^T F_k \rVert_2 I` for any block rows :math:`F_k`. They come from
eliminating the blocks from the last to the first, which for a block tridiagonal matrix fills in nothing.

References:
    | Verification of positive definiteness (Rump, 2006), https://doi.org/10.1007/s10543-006-0056-1
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lipcert.kernel.rounding import Array, add_up, gamma, mul_up, sqrt_up, sum_of_squares_up

Blocks = Mapping[tuple[str, str], Array]


def blockwise_defect(H: Blocks, order: Sequence[str]) -> float:
    r"""A number rho with :math:`H + \rho I \succeq 0`; infinity where there is no proof.

    Args:
        H: Blocks of a symmetric matrix by pairs of names; a pair stands once, in the order of ``order``, and diagonal
            blocks are all there. Missing blocks are zero. Blocks may be stacks: the number is then one for all.
        order: The names.

    Example:
        >>> blocks = {("a", "a"): 2.0 * np.eye(2), ("a", "b"): np.eye(2), ("b", "b"): 2.0 * np.eye(2)}
        >>> blockwise_defect(blocks, ["a", "b"]) < 1e-14
        True
    """
    rows = _factor(dict(H), order)
    if rows is None:
        return float("inf")
    residual, terms, most = dict(H), dict.fromkeys(H, 0), 0
    for row in rows:
        for a, b in _pairs(row, order):
            product = row[a].swapaxes(-1, -2) @ row[b]
            residual[a, b] = residual[a, b] - product if (a, b) in residual else -product
            terms[a, b] = terms.get((a, b), 0) + row[a].shape[-2] + 1
            most = max(most, terms[a, b])
    squares: Array = np.zeros(())
    for (a, b), block in residual.items():
        own = sum_of_squares_up(block, (-2, -1))
        squares = add_up(squares, own if a == b else mul_up(own, 2.0))
    # A subtraction's error is u times its result, that is what later products take away (see `most`) and what is left.
    norm = mul_up(sqrt_up(np.max(squares)), 1.0 + 2.0 * gamma(most))
    n = sum(H[name, name].shape[-1] for name in order)
    found = float(add_up(add_up(norm, mul_up(_size(rows, n), gamma(most + 4))), n * 2.0**-899))
    return found if found == found else float("inf")


def _pairs(row: Mapping[str, Array], order: Sequence[str]) -> list[tuple[str, str]]:
    names = [name for name in order if name in row]
    return [(a, b) for i, a in enumerate(names) for b in names[i:]]


def _factor(H: dict[tuple[str, str], Array], order: Sequence[str]) -> list[dict[str, Array]] | None:
    """Block rows ``F_k`` with about ``H = sum of F_k' F_k``; untrusted."""
    rows = []
    for position in range(len(order) - 1, -1, -1):
        name = order[position]
        try:
            L = np.linalg.cholesky(H[name, name])
            inverse = np.linalg.inv(L)
        except np.linalg.LinAlgError:
            return None
        row: dict[str, Array] = {name: np.ascontiguousarray(L.swapaxes(-1, -2))}
        for other in order[:position]:
            if (other, name) in H:
                row[other] = inverse @ H[other, name].swapaxes(-1, -2)
        peak = max(float(np.max(np.abs(block), initial=0.0)) for block in row.values())
        row = {a: np.where(np.abs(block) < peak * 2.0**-400, 0.0, block) for a, block in row.items()}
        for a, b in _pairs(row, order[:position]):
            product = row[a].swapaxes(-1, -2) @ row[b]
            H[a, b] = H[a, b] - product if (a, b) in H else -product
        rows.append(row)
    return rows


def _size(rows: list[dict[str, Array]], n: int) -> Array:
    """An upper bound of ``| |F|' |F| |_2``: the largest row sum of ``|F|`` times its largest column sum."""
    across = np.float64(0.0)
    columns: dict[str, np.ndarray] = {}
    for row in rows:
        across = np.maximum(across, np.max(sum(np.sum(np.abs(block), axis=-1) for block in row.values())))
        for name, block in row.items():
            total = np.sum(np.abs(block), axis=-2)
            columns[name] = columns[name] + total if name in columns else total
    down = max(float(np.max(column)) for column in columns.values())
    return mul_up(mul_up(across, down), 1.0 + 8.0 * gamma(2 * n + 8))
