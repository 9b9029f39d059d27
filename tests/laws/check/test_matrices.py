"""Maps as matrices, entry by entry."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.laws.check.built import (
    CONVOLUTIONS,
    Malformed,
    Map,
    Place,
    TooLarge,
    checker,
    composed,
    convolution,
    numbers,
    read,
    whole,
    written,
)


def reached(t: int, size: int, mode: str) -> int | None:
    """The position that stands at t, by walking there."""
    if mode == "zeros":
        return t if 0 <= t < size else None
    while not 0 <= t < size:
        if mode == "circular":
            t += size if t < 0 else -size
        elif mode == "replicate":
            t += 1 if t < 0 else -1
        else:
            t = -t if t < 0 else 2 * (size - 1) - t
    return t


def by_hand(weight: np.ndarray, source: Place, sizes: Place, *how: Any) -> np.ndarray:
    """The matrix of a convolution, entry by entry."""
    stride, padding, dilation, groups, mode = how
    out, into = weight.shape[0] // groups, weight.shape[1]
    A = np.zeros((weight.shape[0] * math.prod(sizes), math.prod(source)), dtype=object)
    for o, c, place, tap in itertools.product(
        range(len(weight)), range(into), np.ndindex(*sizes), np.ndindex(*weight.shape[2:])
    ):
        each = zip(place, tap, stride, padding, dilation, source[1:], strict=True)
        at = [reached(i * s + j * d - pad[0], n, mode) for i, j, s, pad, d, n in each]
        if None not in at:
            row = np.ravel_multi_index((o, *place), (len(weight), *sizes))
            column = np.ravel_multi_index((o // out * into + c, *at), source)  # type: ignore[arg-type]
            A[row, column] += int(weight[(o, c, *tap)])
    return A


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_has_the_matrix_that_is_spelled_out(name: str):
    weight, source, sizes, *how = CONVOLUTIONS[name]
    found, A = convolution(weight, source, sizes, *how), by_hand(weight, source, sizes, *how)
    assert (numbers(found) == A).all()
    assert (found.kind, found.in_shape, found.out_shape) == ("conv", source, (len(weight), *sizes))
    stride, padding, dilation, groups, mode = how
    padded = any(map(any, padding))
    steps = tuple((s, pad[0], d) for s, pad, d in zip(stride, padding, dilation, strict=True))
    assert found.steps == (steps if mode in ("zeros", "circular") or not padded else ())
    assert found.circular == (mode == "circular" and padded)
    assert found.groups == groups
    blocks = list(checker.blocks(found))
    assert len(blocks) == groups
    assert (checker.block_diagonal(blocks).astype(object) * found.unit == A).all()


@pytest.mark.parametrize("name", [name for name, case in CONVOLUTIONS.items() if case[-1] == "zeros"])
def test_an_adjoint_has_the_transposed_matrix(name: str):
    weight, source, sizes, *how = CONVOLUTIONS[name]
    out = (len(weight), *sizes)
    conv = {"kind": "conv", "in_shape": list(source), "out_shape": list(out), **written(*how)}
    found = read("adjoint", out, source, {"conv": conv}, w=weight * 0.25)
    A = by_hand(weight, source, sizes, *how) * Fraction(1, 4)
    assert (numbers(found) == A.T).all()
    assert (found.kind, found.in_shape, found.out_shape) == ("adjoint", out, source)
    assert sum(block.size for block in checker.blocks(found)) == A.size // found.parts[0].groups


def test_an_adjoint_is_one_of_a_convolution_that_pads_by_zeros():
    conv = {"kind": "conv", "in_shape": [1, 4], "out_shape": [1, 4]}
    for mode in ("circular", "reflect", "replicate"):
        how = written((1,), ((0, 0),), (1,), 1, mode)
        with pytest.raises(Malformed, match="a map of kind adjoint does not turn"):
            read("adjoint", (1, 4), (1, 4), {"conv": {**conv, **how}}, w=np.ones((1, 1, 1)))
    other = {"kind": "diagonal", "in_shape": [4], "out_shape": [4], "scale": "w"}
    with pytest.raises(Malformed, match="a map of kind adjoint does not turn"):
        read("adjoint", (4,), (4,), {"conv": other}, w=np.ones(4))


@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect", "replicate"])
@pytest.mark.parametrize(
    ("size", "kernel", "stride", "dilation"), [(5, 1, 1, 1), (5, 3, 1, 2), (4, 2, 3, 1), (6, 3, 2, 1)]
)
def test_tables_read_what_torch_reads(mode: str, size: int, kernel: int, stride: int, dilation: int):
    x = torch.arange(1, size + 1, dtype=torch.float64).reshape(1, 1, size) ** 3
    most = {"zeros": 7, "circular": size, "reflect": size - 1, "replicate": 7}[mode]
    for before, after in ((0, 0), (most, 0), (0, most), (1, 2)):
        padded = functional.pad(x, (before, after), mode="constant" if mode == "zeros" else mode)
        for tap in range(kernel):
            weight = torch.zeros(1, 1, kernel, dtype=torch.float64)
            weight[0, 0, tap] = 1.0
            y = functional.conv1d(padded, weight, stride=stride, dilation=dilation).flatten().tolist()
            for out in {len(y), max(1, len(y) - 1)}:
                table = checker.index_table(size, out, kernel, stride, before, dilation, mode)
                assert table.shape == (out, kernel)
                assert ((table >= 0) | (table == -1)).all()
                assert [0 if at < 0 else (at + 1) ** 3 for at in table[:, tap].tolist()] == y[:out]


def test_every_other_kind_has_the_matrix_that_is_spelled_out():
    weight = whole(2, 3)
    dense = read("dense", (4, 3), (4, 2), {"weight": "w"}, w=weight * 0.5)
    assert (numbers(dense) == np.kron(np.eye(4, dtype=int), weight) * Fraction(1, 2)).all()
    deep = read("dense", (2, 4, 3), (2, 4, 5), {"weight": "w"}, w=whole(5, 3).astype(np.float32))
    assert (numbers(deep) == np.kron(np.eye(8, dtype=int), whole(5, 3))).all()
    scale = whole(3, 1)
    diagonal = read("diagonal", (2, 3, 2), (2, 3, 2), {"scale": "w"}, w=scale * 2.0)
    assert (numbers(diagonal) == np.diag(np.broadcast_to(scale * 2, (2, 3, 2)).ravel())).all()
    index = np.array([[5, -1, 0], [2, 2, -1]])
    selection = read("selection", (3, 2), (2, 3), {"index": "w"}, w=index)
    A = np.zeros((6, 6), dtype=int)
    for row, at in enumerate(index.ravel()):
        if at >= 0:
            A[row, at] = 1
    assert (numbers(selection) == A).all()
    assert (numbers(read("reshape", (2, 3), (3, 1, 2), {})) == np.eye(6, dtype=int)).all()
    left, right = whole(2, 3, seed=1), whole(4, 2, seed=2)
    factors = [{"numerator": "a", "denominator": 2}, None, {"numerator": "b", "denominator": 3}]
    separable = read("separable", (3, 2, 2), (2, 2, 4), {"factors": factors}, a=left, b=right)
    kron = np.kron(np.kron(left, np.eye(2, dtype=int)), right)
    assert (numbers(separable) == kron * Fraction(1, 6)).all()
    assert [part.kind for part in separable.parts] == ["dense", "reshape", "dense"]
    assert [part.unit for part in separable.parts] == [Fraction(1, 2), 1, Fraction(1, 3)]


def test_a_matrix_with_too_many_entries_is_too_large(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checker, "ENTRY_LIMIT", 12)
    assert checker.matrix(Map("dense", (4,), (3,), whole(3, 4))).shape == (3, 4)
    with pytest.raises(TooLarge, match=r"1 x 13 entries; limit 2\^24"):
        checker.matrix(Map("dense", (13,), (1,), whole(1, 13)))
    with pytest.raises(TooLarge, match=r"13 x 1 entries; limit 2\^24"):
        checker.matrix(Map("dense", (1,), (13,), whole(13, 1)))


def test_blocks_stand_along_the_diagonal():
    parts = [whole(2, 3, seed=seed) for seed in range(4)]
    A = np.zeros((8, 12), dtype=int)
    for k, part in enumerate(parts):
        A[2 * k : 2 * k + 2, 3 * k : 3 * k + 3] = part
    assert (checker.block_diagonal(parts) == A).all()


def test_blocks_are_as_much_work_as_sixteen_digits_and_their_number(monkeypatch: pytest.MonkeyPatch):
    conv = convolution(whole(4, 3, 2), (6, 5), (4,), groups=2)  # two blocks of 8 x 15, for 16 products of A'A each
    work = 8 * 15 * 16 * 8 * 2
    monkeypatch.setattr(checker, "WORK_LIMIT", work)
    assert [block.shape for block in checker.blocks(conv)] == [(8, 15)] * 2
    monkeypatch.setattr(checker, "WORK_LIMIT", work - 1)
    with pytest.raises(TooLarge, match="8 x 15 entries"):
        next(checker.blocks(conv))


@pytest.mark.parametrize("shape", [(2049, 2049), (1, (1 << 24) + 1), (8193, 2048)])
def test_what_takes_too_long_is_refused_with_the_limits(shape: Place):
    with pytest.raises(TooLarge, match=r"limits 2048 on the smaller side, 2\^24 entries and 2\^39 multiply-adds"):
        checker.require_size(shape)


def test_what_is_just_small_enough_is_not_refused():
    checker.require_size((2048, 8192))
    checker.require_size((1, 1 << 24), 1 << 15)
    checker.require_size((2048, 2048), 1 << 17)
    for shape, depth in (((1, 1 << 24), (1 << 15) + 1), ((2048, 2048), (1 << 17) + 1)):
        with pytest.raises(TooLarge, match="multiply-adds"):
            checker.require_size(shape, depth)


def test_a_composition_has_the_product_of_the_matrices():
    maps = {
        "conv": convolution(whole(3, 2, 2) * 0.5, (2, 3), (2,)),  # 6 -> 6
        "diagonal": Map("diagonal", (3, 2), (3, 2), whole(3, 1), Fraction(1, 3)),
        "selection": Map("selection", (3, 2), (5,), np.array([4, -1, 0, 5, 0])),
        "dense": Map("dense", (5,), (4,), whole(4, 5, most=1 << 40), Fraction(1, 7)),
        "reshape": Map("reshape", (4,), (2, 2)),
        "wide": Map("diagonal", (2, 2), (2, 2), whole(2, 2).astype(object) << 70),
        "nothing": Map("selection", (2, 2), (3,), np.array([-1, 3, 1])),
    }
    for chain in itertools.accumulate([each] for each in maps):
        expected = composed([numbers(maps[name]) for name in chain])
        X, unit = checker.product([maps[name] for name in chain])
        assert (X.astype(object) * unit == expected).all()
    for first in ("diagonal", "selection"):
        chain = list(maps)[list(maps).index(first) :]
        X, unit = checker.product([maps[name] for name in chain])
        assert (X.astype(object) * unit == composed([numbers(maps[name]) for name in chain])).all()
