"""Signals and sums of terms as matrices of fractions, which tests of parts compare."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from tests.laws.check.built import Signal, drawn


def matrix_of(signal: Any, widths: Mapping[str, int], signs: np.random.Generator | None = None) -> np.ndarray:
    """A signal as a matrix of fractions over all variables; moved as far as it may, if there are signs."""
    rows = len(next(iter(signal.blocks.values())))
    columns = []
    for name, width in widths.items():
        block = signal.blocks.get(name, np.zeros((rows, width), dtype=object)).astype(object) * signal.unit
        if signs is not None and name in signal.blocks:
            off = signal.loose * signal.unit * signal.sizes[name].astype(object)
            ups = signs.choice([-1, 1], off.shape) if signs.random() < 0.7 else np.where(block < 0, -1, 1)
            block = block + off * ups
        columns.append(block)
    return np.concatenate(columns, 1)


def room(signal: Any, widths: Mapping[str, int]) -> np.ndarray:
    """By how much entries may be off."""
    rows = len(next(iter(signal.sizes.values())))
    sizes = [signal.sizes.get(name, np.zeros((rows, width), dtype=object)) for name, width in widths.items()]
    return signal.loose * signal.unit * np.concatenate(sizes, 1).astype(object)


def assert_sizes_cover(signal: Any) -> None:
    assert signal.blocks.keys() == signal.sizes.keys()
    assert all((signal.sizes[name] >= abs(signal.blocks[name])).all() for name in signal.blocks)


def added(terms: Sequence[Any], widths: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """The matrix of a sum of terms, and by how much its entries may be off."""
    size, names = sum(widths.values()), list(widths)
    start = {name: sum(widths[before] for before in names[: names.index(name)]) for name in names}
    H, off = np.full((size, size), Fraction(0)), np.full((size, size), Fraction(0))
    for unit, a, b, X, sizes, loose in terms:
        at = slice(start[a], start[a] + widths[a]), slice(start[b], start[b] + widths[b])
        H[at] += unit * X.astype(object)
        off[at] += loose * abs(unit) * abs(sizes.astype(object))
    return H, off


WIDTHS = {"x": 3, "u": 2}


def signal(rows: int, seed: int, loose: Fraction = Fraction(0), unit: Fraction = Fraction(2, 3)) -> Any:
    blocks = {name: drawn(seed + k, rows, width) for k, (name, width) in enumerate(WIDTHS.items())}
    sizes = {name: abs(block) + abs(drawn(seed + 7, *block.shape, most=1)) for name, block in blocks.items()}
    return Signal(unit, blocks, sizes, loose)


LOOSE = pytest.mark.parametrize("loose", [Fraction(0), Fraction(1, 7)], ids=["exact", "loose"])
