"""Laws of the checker's inner functions: waves on a torus, maps as matrices, the two tables, reading networks, files.

Every law is stated in integers or fractions on shapes without symmetry, every refusal with its own message and what is
accepted just beside it.
"""

from __future__ import annotations

import hashlib
import importlib
import itertools
import json
import math
import runpy
import struct
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from torch.nn import functional

checker: Any = importlib.import_module("lipcert.check")  # the package offers a function of the same name
Kernel, Malformed, Map, Node, Reject = (
    getattr(checker, name) for name in ("Kernel", "Malformed", "Map", "Node", "Reject")
)
Signal, TooLarge, Wave = (getattr(checker, name) for name in ("Signal", "TooLarge", "Wave"))
Place = tuple[int, ...]
ONE = Fraction(1)


def whole(*shape: int, seed: int = 0, most: int = 9) -> Any:
    """Integers of both signs, none of them zero."""
    random = np.random.default_rng(seed)
    return random.integers(1, most + 1, shape) * random.choice([-1, 1], shape)


def read(kind: str, source: Place, shape: Place, fields: Mapping[str, Any], **arrays: np.ndarray) -> Any:
    """A map as a file spells it, with all its tensors used."""
    remaining = dict(arrays)
    entry = {"kind": kind, "in_shape": list(source), "out_shape": list(shape), **fields}
    found = checker.read_map(entry, remaining)
    assert not remaining
    return found


def convolution(
    weight: np.ndarray,
    source: Place,
    sizes: Place,
    stride: Place = (1,),
    padding: Sequence[Place] = ((0, 0),),
    dilation: Place = (1,),
    groups: int = 1,
    mode: str = "zeros",
) -> Any:
    fields = written(stride, padding, dilation, groups, mode)
    return read("conv", source, (weight.shape[0], *sizes), fields, w=weight.astype(np.float64))


def written(stride: Any, padding: Any, dilation: Any, groups: Any, mode: Any) -> dict[str, Any]:
    """The fields of a convolution in a file."""
    numbers = {"stride": list(stride), "padding": [list(pair) for pair in padding], "dilation": list(dilation)}
    return {"weight": "w", **numbers, "groups": groups, "padding_mode": mode}


def numbers(linear: Any) -> Any:
    """The matrix of a map, in fractions."""
    return checker.matrix(linear).astype(object) * linear.unit


class Looked(np.ndarray):
    """Integers that are looked at a number of times at most, so that what never ends is seen to fail at once."""

    left = 0

    def any(self, *args: Any, **options: Any) -> Any:
        Looked.left -= 1
        assert Looked.left >= 0, "there is no end to the digits"
        return super().any(*args, **options)


@pytest.mark.parametrize("b", [2, 9, 27])
def test_there_is_an_end_to_the_digits(b: int):
    for n in (1, -1, 3, (1 << 58) + 1, -(1 << 58), (1 << b - 1) - 1, 1 << b - 1, -(1 << b - 1), -(1 << b - 1) - 1):
        Looked.left = 60 // b + 3
        assert 1 <= len(checker.digits(np.array([[n]]).view(Looked), b)) <= 60 // b + 2


# ---------------------------------------------------------------------------------------------- maps as matrices


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


CONVOLUTIONS: dict[str, tuple[Any, ...]] = {  # weight, input, output sizes, stride, padding, dilation, groups, mode
    "plain": (whole(3, 2, 2), (2, 5), (4,), (1,), ((0, 0),), (1,), 1, "zeros"),
    "groups": (whole(4, 3, 2), (6, 5), (4,), (1,), ((0, 0),), (1,), 2, "zeros"),
    "all of it": (whole(3, 2, 3), (2, 7), (3,), (2,), ((2, 1),), (2,), 1, "zeros"),
    "cropped": (whole(2, 1, 2), (1, 6), (2,), (2,), ((1, 3),), (1,), 1, "zeros"),
    "two": (whole(2, 3, 2, 3), (3, 5, 4), (3, 5), (2, 1), ((1, 0), (2, 1)), (1, 1), 1, "zeros"),
    "two in groups": (whole(6, 1, 3, 1), (3, 5, 2), (2, 1), (1, 2), ((0, 1), (0, 0)), (2, 1), 3, "zeros"),
    "three": (whole(2, 1, 1, 2, 3), (1, 2, 3, 4), (1, 2, 3), (2, 1, 1), ((0,) * 2, (0,) * 2, (1, 0)), (1,) * 3, 1),
    "circle": (whole(3, 2, 3), (2, 4), (4,), (1,), ((2, 0),), (1,), 1, "circular"),
    "circle with steps": (whole(2, 1, 2), (1, 6), (3,), (2,), ((1, 1),), (2,), 1, "circular"),
    "reflected": (whole(3, 2, 3), (2, 4), (8,), (1,), ((3, 3),), (1,), 1, "reflect"),
    "replicated": (whole(3, 2, 3), (2, 3), (5,), (2,), ((5, 4),), (1,), 1, "replicate"),
    "unpadded": (whole(3, 2, 3), (2, 5), (3,), (1,), ((0, 0),), (1,), 1, "reflect"),
}
CONVOLUTIONS["three"] = (*CONVOLUTIONS["three"], "zeros")


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


def composed(matrices: list[Any]) -> Any:
    total = matrices[0]
    for each in matrices[1:]:
        total = each.dot(total)
    return total


# ------------------------------------------------------------------------------------- integers and their products


@pytest.mark.parametrize("b", [2, 3, 8, 21, 27])
def test_digits_are_balanced_and_add_up(b: int):
    half = 1 << b - 1
    listed = [0, 1, -1, half - 1, half, half + 1, -half, -half - 1, 3 * half, -3 * half, (1 << 59) - 1, -(1 << 59)]
    for X in (np.array([listed]), np.array([[n << 40 for n in listed]], dtype=object) + 1):
        found = checker.digits(X, b)
        assert all(((digit >= -half) & (digit < half)).all() for digit in found)
        total: Any = sum(digit.astype(np.int64).astype(object) * (1 << b * i) for i, digit in enumerate(found))
        assert (total == X).all()
    assert [digit.tolist() for digit in checker.digits(np.zeros((2, 3), dtype=np.int64), b)] == [[[0.0] * 3] * 2]


@pytest.mark.parametrize("K", [1, 2, 3, 4, 7, 8, 255, 256, 1 << 15])
def test_products_of_digits_stay_below_the_last_integer_that_float64_counts(K: int, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def digits(X: np.ndarray, b: int) -> list[np.ndarray]:
        asked.append(b)
        return [X.astype(np.float64)]

    monkeypatch.setattr(checker, "digits", digits)
    X, Y = np.ones((1, K), dtype=np.int64), np.ones((K, 1), dtype=np.int64)
    assert checker.exact_product(X, Y).tolist() == [[K]]
    (b,) = set(asked)
    most = 1 << K.bit_length()  # so many products at most
    assert most * (1 << b - 1) ** 2 <= 1 << 53 < most * (1 << b) ** 2


def test_a_product_is_exact_whatever_the_size_of_its_entries():
    for shift in (0, 20, 57, 90):
        X, Y = whole(3, 5, most=1 << 50).astype(object) << shift, whole(5, 2, seed=1, most=1 << 50).astype(object) + 1
        X[1, 2] = Y[0, 1] = 0
        assert (checker.exact_product(X, Y) == X.dot(Y)).all()
        assert (checker.exact_product(Y.T, X.T) == X.dot(Y).T).all()


def test_a_product_of_too_many_digits_is_too_large(monkeypatch: pytest.MonkeyPatch):
    """Sums of up to 512 products of 2^53 at most are below 2^62."""

    class Unlisted(list[Any]):
        def __iter__(self) -> Any:
            return iter(())

    one = np.ones((1, 1), dtype=np.int64)
    for left, right, large in ((1, 600, False), (600, 1, False), (513, 513, True), (512, 513, False)):
        told = iter([Unlisted([0] * left), Unlisted([0] * right)])
        monkeypatch.setattr(checker, "digits", lambda X, b, told=told: next(told))
        if large:
            with pytest.raises(TooLarge, match="1 and 1 significant bits"):
                checker.exact_product(one, one)
        else:
            assert checker.exact_product(one, one).tolist() == [[0]]


def test_the_work_of_a_product_counts_every_pair_of_digits(monkeypatch: pytest.MonkeyPatch):
    X, Y = np.full((2, 5), 1 << 55), np.full((5, 3), 1 << 30)  # digits of 26 bits: three, and two
    work = 2 * 5 * 3 * 3 * 2
    monkeypatch.setattr(checker, "WORK_LIMIT", work)
    assert (checker.exact_product(X, Y) == 5 << 85).all()
    monkeypatch.setattr(checker, "WORK_LIMIT", work - 1)
    with pytest.raises(TooLarge, match="2 x 3 entries"):
        checker.exact_product(X, Y)


@pytest.mark.parametrize("shift", [-70, -3, -2, -1, 0, 1, 5])
def test_what_is_cut_off_is_at_most_one_half_and_counted(shift: int):
    X = np.array([0, 1, -1, 2, -2, 3, -3, 4, 5, 7, -8, 1 << 40, -(1 << 40)], dtype=object)
    X = X << 67 if shift == -70 else X
    A, cut = checker.rounded(X, shift)
    exact = [x * Fraction(2) ** shift for x in X.tolist()]
    assert all(abs(a - x) <= Fraction(1, 2) for a, x in zip(A.tolist(), exact, strict=True))
    assert cut == sum(a != x for a, x in zip(A.tolist(), exact, strict=True))


FLOATS: list[tuple[list[float], int, bool]] = [  # values, terms, whether they stay int64
    ([0.0, 1.0], 1, True),
    ([0.0, 2.0**-100], 1, True),
    ([-3.0, 0.0, 0.75], 1, True),
    ([1.0, 2.0**59], 1, True),
    ([1.0, 2.0**60], 1, False),
    ([1.0, -(2.0**50)], 1 << 9, True),
    ([1.0, -(2.0**50)], 1 << 10, False),
    ([2.0**-1074, 2.0**1000], 1, False),
    ([float((1 << 51) + 1), 2.0**100], 1, False),
    ([float((1 << 51) + 1), 2.0**500, -(2.0**53) + 1], 3, False),
    ([0.1, -(2.0**70) - 2.0**30, 0.0], 1, False),
]


@pytest.mark.parametrize("case", range(len(FLOATS)))
def test_floats_are_integers_of_the_last_bit_and_sums_of_them_fit(case: int):
    values, terms, fits = FLOATS[case]
    X, unit = checker.exact(np.array([values]), terms)
    assert [x * unit for x in X[0].tolist()] == [Fraction(value) for value in values]
    assert math.gcd(*X[0].tolist()) % 2 == 1
    assert (X.dtype == np.int64) == fits
    assert not fits or terms * max(map(abs, X[0].tolist())) < 1 << 61


def test_zeros_have_a_unit_and_a_shape():
    X, unit = checker.exact(np.zeros((2, 3)))
    assert X.tolist() == [[0] * 3] * 2
    assert unit == 1


def test_integers_are_narrow_up_to_sixty_bits():
    for most, fits in (((1 << 60) - 1, True), (1 << 60, False), (1 - (1 << 60), True), (-(1 << 60), False)):
        X = checker.narrow(np.array([0, most, 1], dtype=object))
        assert X.tolist() == [0, most, 1]
        assert (X.dtype == np.int64) == fits


# ----------------------------------------------------------------------------------------------------- the torus


def affine(linear: Any, name: str = "a", source: str = "x") -> Any:
    return Node("affine", name, linear.out_shape, (source,), map=linear)


def part(X: Any, denominator: int = 1) -> Any:
    X = np.array(X)
    return Map("dense", (X.shape[1],), (len(X),), X, Fraction(1, denominator))


def separable(channels: int, *parts: Any) -> Any:
    every = [Map("reshape", (channels,), (channels,)), *parts]
    source, shape = (sum((getattr(each, side) for each in every), ()) for side in ("in_shape", "out_shape"))
    unit = math.prod((each.unit for each in every), start=ONE)
    return Map("separable", source, shape, None, unit, parts=tuple(every))


def same(size: int) -> Any:
    return Map("reshape", (size,), (size,))


def grid(source: Place, *chosen: Sequence[int]) -> Any:
    """A selection of the same entries along every dimension; -1 for zeros."""
    index = np.full(tuple(map(len, chosen)), -1)
    for place in np.ndindex(*index.shape):
        at = [each[i] for each, i in zip(chosen, place, strict=True)]
        if min(at) >= 0:
            index[place] = np.ravel_multi_index(at, source)
    return Map("selection", source, index.shape, index)


def adjoint(conv: Any) -> Any:
    return Map("adjoint", conv.out_shape, conv.in_shape, None, conv.unit, parts=(conv,))


POOL = [[1, 1, 0, 0, 0], [0, 1, 1, 1, 0], [0, 0, 0, 1, 1]]  # three in a row, every second, one before
SHIFT_INVARIANT: dict[str, Callable[[], Any]] = {
    **{
        name: lambda name=name: convolution(*CONVOLUTIONS[name])
        for name in CONVOLUTIONS
        if name not in ("reflected", "replicated")
    },
    **{
        f"{name}, turned": lambda name=name: adjoint(convolution(*CONVOLUTIONS[name]))
        for name in ("all of it", "groups", "two", "two in groups")
    },
    "a scale per channel": lambda: Map("diagonal", (3, 4, 2), (3, 4, 2), whole(3, 1, 1), Fraction(1, 3)),
    "one scale": lambda: Map("diagonal", (2, 5), (2, 5), np.array(7), Fraction(1, 3)),
    "a pool": lambda: separable(2, part(POOL, 3), part([[1, 1, 0], [0, 1, 1]], 2)),
    "along one dimension": lambda: separable(3, same(4), part(POOL, 3)),
    "every third": lambda: separable(1, part([[2, 3, 0, 0, 0], [0, 0, 0, 2, 3]])),
    "twice as far as they are wide": lambda: separable(1, part([[1, 2], [1, 2]])),
    "repeated": lambda: separable(2, part([[1, 0], [1, 0], [0, 1], [0, 1]]), same(3)),
    "windows turned": lambda: separable(2, part(np.array(POOL).T, 3)),
    "every second": lambda: grid((2, 6, 4), [0, 1], [1, 3, 5], [0, 2]),
    "other channels": lambda: grid((3, 4), [2, 0], [0, 1, 2, 3]),
    "channels padded by zeros": lambda: grid((2, 3), [-1, 0, 1, -1], [0, 1, 2]),
    "positions padded by zeros": lambda: grid((2, 3, 2), [0, 1], [-1, 0, 1, 2, -1, -1], [0, 1]),
    "repeated by index": lambda: grid((2, 3), [0, 1], [0, 0, 1, 1, 2, 2]),
    "other channels, repeated": lambda: grid((3, 2), [2, 0], [0, 0, 1, 1]),
}


def spelled_out(kernel: Any, linear: Any) -> np.ndarray:
    """The matrix of a kernel: at i it reads what its weights t say at ``stride i + t``; or the transpose."""
    ends = (linear.in_shape, linear.out_shape)
    fine, coarse = reversed(ends) if kernel.turned else ends
    F = np.zeros((math.prod(coarse), math.prod(fine)), dtype=object)
    for t, W in kernel.weights.items():
        assert W.shape == (coarse[0], fine[0])
        for i in np.ndindex(*coarse[1:]):
            at = [s * a + b for s, a, b in zip(kernel.stride, i, t, strict=True)]
            if kernel.circular:
                at = [p % n for p, n in zip(at, fine[1:], strict=True)]
            if all(0 <= p < n for p, n in zip(at, fine[1:], strict=True)):
                for o, c in np.ndindex(*W.shape):
                    F[np.ravel_multi_index((o, *i), coarse), np.ravel_multi_index((c, *at), fine)] += int(W[o, c])
    F = F * kernel.unit
    return F.T if kernel.turned else F


@pytest.mark.parametrize("name", SHIFT_INVARIANT)
def test_a_kernel_is_all_of_its_map(name: str):
    linear = SHIFT_INVARIANT[name]()
    kernel = checker._kernel(affine(linear))
    assert (spelled_out(kernel, linear) == numbers(linear)).all()
    assert kernel.circular == linear.circular
    assert min(kernel.stride) >= 1
    assert len(kernel.stride) == len(linear.in_shape) - 1


NOT_SHIFT_INVARIANT: dict[str, tuple[Callable[[], Any], str]] = {
    "a dense map": (lambda: Map("dense", (2, 3), (2, 3), whole(3, 3)), "is not the same at every position"),
    "padded by reflection": (lambda: convolution(*CONVOLUTIONS["reflected"]), "is not the same at every position"),
    "scales that differ": (
        lambda: Map("diagonal", (2, 3), (2, 3), np.array([[1, 1, 1], [2, 2, 3]])),
        "is not the same at every position",
    ),
    "scales that differ at two": (
        lambda: Map("diagonal", (2, 2), (2, 2), np.array([[1, 1], [2, 3]])),
        "is not the same at every position",
    ),
    "channels that mix": (
        lambda: Map("separable", (2, 3), (1, 3), parts=(part([[1, 1]]), same(3))),
        "is not the same at every position",
    ),
    "a selection of another shape": (
        lambda: Map("selection", (2, 3), (6,), np.arange(6)),
        "is not the same at every position",
    ),
    "a selection without a grid": (
        lambda: Map("selection", (2, 3), (2, 3), np.array([[0, 1, 2], [3, 5, 4]])),
        "does not select the same at every position",
    ),
    "a selection with one zero": (
        lambda: Map("selection", (2, 3), (2, 3), np.array([[-1, 1, 2], [3, 4, 5]])),
        "does not select the same at every position",
    ),
    "a selection of the first instead of a zero": (
        lambda: Map("selection", (1, 3), (2, 3), np.array([[0, 1, 2], [-1, -1, 0]])),
        "does not select the same at every position",
    ),
    "windows that differ": (
        lambda: separable(2, part([[1, 1, 0], [0, 1, 2], [0, 0, 1]])),
        "does not weigh the same window at every position",
    ),
    "windows that end": (
        lambda: separable(2, part([[1, 1, 0, 0, 0], [0, 0, 1, 1, 0], [0] * 5]), part(POOL)),
        "does not weigh the same window at every position",
    ),
    "down and up": (
        lambda: separable(1, part([[1, 1, 0, 0], [0, 0, 1, 1]]), part([[1, 0], [1, 0], [0, 1], [0, 1]])),
        "does not weigh the same window at every position",
    ),
}


@pytest.mark.parametrize("name", NOT_SHIFT_INVARIANT)
def test_what_differs_between_positions_has_no_kernel(name: str):
    build, why = NOT_SHIFT_INVARIANT[name]
    with pytest.raises(Reject, match=f"^a {why}"):
        checker._kernel(affine(build()))


def test_a_node_without_a_map_has_no_kernel():
    with pytest.raises(Reject, match="is not the same at every position"):
        checker._kernel(Node("activation", "f", (2, 3), ("x",)))


def test_a_selection_is_the_product_of_its_dimensions():
    chosen = ([2, 0], [-1, 1, 0], [0, 1, 1, -1])
    linear = grid((3, 2, 2), *chosen)
    factors = checker._factors("a", linear)
    for each, size, X in zip(chosen, (3, 2, 2), factors, strict=True):
        assert X.tolist() == [[int(at == j) for j in range(size)] for at in each]
    (alone,) = checker._factors("a", Map("selection", (3,), (4,), np.array([2, 0, -1, 0])))
    assert alone.tolist() == [[0, 0, 1], [1, 0, 0], [0, 0, 0], [1, 0, 0]]


def test_a_window_is_one_for_all_rows_or_for_all_columns():
    assert checker._window(None) == ({0: 1}, 1, None)
    assert checker._window(np.array(POOL)) == ({-1: 1, 0: 1, 1: 1}, 2, False)
    assert checker._window(np.array(POOL).T) == ({-1: 1, 0: 1, 1: 1}, 2, True)
    assert checker._window(np.array([[1, 2], [1, 2]])) == ({0: 1, 1: 2, -2: 1, -1: 2}, 2, False)
    for none in ([[1, 2, 3]], [[1], [2]], [[5]], [[1, 1, 0], [0, 1, 2], [0, 0, 1]]):
        assert checker._window(np.array(none)) == ({}, 1, None)


# Waves: what they read is compared with what the kernel says at single positions, in integers.


def told(wave: Any, z: Mapping[str, Any], torus: Place) -> Any:
    """What a wave reads of variables at every coarse position of a torus."""
    y = np.zeros((wave.rows, *torus), dtype=object)
    for name, taps in wave.taps.items():
        for a, X in taps.items():
            for q in np.ndindex(*torus):
                at = tuple((i + b) % n for i, b, n in zip(q, a, torus, strict=True))
                y[(slice(None), *q)] += X.astype(object).dot(z[name][(slice(None), *at)]) * wave.unit
    return y


def at_positions(y: Any, counts: Place) -> Any:
    """Channels and phases at coarse positions as channels at fine ones."""
    torus = y.shape[1:]
    channels = len(y) // math.prod(counts)
    found = np.zeros((channels, *(n * c for n, c in zip(torus, counts, strict=True))), dtype=object)
    for c, p in itertools.product(range(channels), np.ndindex(*counts)):
        row = y[c * math.prod(counts) + int(np.ravel_multi_index(p, counts))]
        for q in np.ndindex(*torus):
            at = tuple(i * count + phase for i, count, phase in zip(q, counts, p, strict=True))
            found[(c, *at)] = row[q]
    return found


def filtered(kernel: Any, x: Any, sizes: Place) -> Any:
    """A kernel at every position of a torus of this many positions."""
    y = 0
    for t, W in kernel.weights.items():
        out = (W.shape[1] if kernel.turned else W.shape[0], *sizes)
        here = np.zeros(out, dtype=object)
        coarse = x.shape[1:] if kernel.turned else sizes
        fine = sizes if kernel.turned else x.shape[1:]
        for i in np.ndindex(*coarse):
            p = tuple((s * a + b) % n for s, a, b, n in zip(kernel.stride, i, t, fine, strict=True))
            if kernel.turned:
                here[(slice(None), *p)] += W.T.astype(object).dot(x[(slice(None), *i)])
            else:
                here[(slice(None), *i)] += W.astype(object).dot(x[(slice(None), *p)])
        y = y + here * kernel.unit
    return y


def kernel_of(places: Sequence[Place], out: int, into: int, stride: Place, **options: Any) -> Any:
    weights = {place: whole(out, into, seed=k) for k, place in enumerate(places)}
    return Kernel(Fraction(1, 3), weights, stride, **options)


FILTERS: dict[str, tuple[Any, Place, Place, Place]] = {  # kernel, torus, phases of the fine and the coarse grid
    "plain": (kernel_of([(-1,), (0,), (2,)], 2, 3, (1,)), (4,), (1,), (1,)),
    "on a small circle": (kernel_of([(-3,), (0,), (1,), (2,)], 2, 3, (1,)), (2,), (1,), (1,)),
    "stride": (kernel_of([(-1,), (0,), (1,)], 2, 3, (2,)), (3,), (2,), (1,)),
    "stride with phases": (kernel_of([(-2,), (0,), (3,)], 3, 1, (2,)), (3,), (6,), (3,)),
    "two": (kernel_of([(-1, 0), (0, 2), (3, -1), (0, -4)], 2, 3, (1, 2)), (3, 2), (2, 6), (2, 3)),
}


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("name", FILTERS)
def test_a_wave_after_a_kernel_reads_what_the_kernel_reads(name: str, turned: bool):
    kernel, torus, fine, coarse = FILTERS[name]
    kernel = Kernel(kernel.unit, kernel.weights, kernel.stride, turned=turned)
    out, into = next(iter(kernel.weights.values())).shape
    into, out, before, after = (out, into, coarse, fine) if turned else (into, out, fine, coarse)
    rows, dimensions = into * math.prod(before), len(torus)
    zero, one = (0,) * dimensions, (1,) * dimensions
    taps = {"u": {zero: whole(rows, 2), one: whole(rows, 2, seed=1)}, "v": {zero: whole(rows, 1, seed=2)}}
    sizes = {"u": abs(taps["u"][zero]) + abs(taps["u"][one]), "v": abs(taps["v"][zero])}
    wave = Wave(rows, True, Fraction(1, 5), taps, sizes, Fraction(1, 11))
    sides = [tuple(n * c for n, c in zip(torus, each, strict=True)) for each in (before, after)]
    linear = Map("", (into, *sides[0]), (out, *sides[1]))
    found = checker._filtered(affine(linear), kernel, {"x": before, "a": after}, wave)
    assert found.rows == out * math.prod(after)
    assert found.loose == wave.loose
    z = {"u": whole(2, *torus, seed=3), "v": whole(1, *torus, seed=4)}
    expected = filtered(kernel, at_positions(told(wave, z, torus), before), sides[1])
    assert (at_positions(told(found, z, torus), after) == expected).all()
    moduli = Kernel(kernel.unit, {t: abs(W) for t, W in kernel.weights.items()}, kernel.stride, turned=turned)
    for name, size in wave.sizes.items():  # all that could be read, in sum: constant signals of moduli
        for column in range(size.shape[1]):
            y = np.empty((rows, *torus), dtype=object)
            y[...] = size[:, column].reshape(-1, *one)
            total = filtered(moduli, at_positions(y, before), sides[1])
            top = [max(total[(c, *np.ix_(*each))].ravel()) for c in range(out) for each in phase_sets(after, torus)]
            assert (found.sizes[name][:, column].astype(object) * kernel.unit == top).all()


def phase_sets(counts: Place, torus: Place) -> list[list[list[int]]]:
    return [
        [[q * count + phase for q in range(n)] for n, count, phase in zip(torus, counts, p, strict=True)]
        for p in np.ndindex(*counts)
    ]


ONE_DIMENSION = [
    (size, low, high, stride, count)
    for size in (2, 4)
    for low in (-2, -1, 0, 1)
    for high in range(low, low + 3)
    for stride in (1, 2, 3)
    for count in (1, 2, 3)
]


@pytest.mark.parametrize("turned", [False, True])
def test_a_wave_is_known_to_vanish_outside_where_it_does(turned: bool):
    """The coarse grid has ``count`` positions, the fine one ``size``; the torus is as large as one likes."""
    for size, low, high, stride, count in ONE_DIMENSION:
        kernel = kernel_of([(t,) for t in range(low, high + 1)], 1, 1, (stride,), turned=turned)
        pairs = [(i, stride * i + t) for i in range(-20, 20) for t in range(low, high + 1)]
        beyond = any(0 <= i < count and not 0 <= p < size for i, p in pairs)  # from a coarse position inside
        onto = any(0 <= p < size and not 0 <= i < count for i, p in pairs)  # from a fine position inside
        ends = ((1, count), (1, size)) if turned else ((1, size), (1, count))
        node = affine(Map("", *ends))
        phases = {"x": (1,), "a": (stride,)} if turned else {"x": (stride,), "a": (1,)}
        rows = 1 if turned else stride
        for inside in (True, False):
            wave = Wave(rows, inside, ONE, {"x": {(0,): np.eye(rows, dtype=int)}}, {"x": np.eye(rows, dtype=int)})
            if not inside and (beyond or turned):
                with pytest.raises(Reject, match="reads beyond the image what does not vanish there"):
                    checker._filtered(node, kernel, phases, wave)
                continue
            found = checker._filtered(node, kernel, phases, wave).inside
            assert found == (inside and not (beyond if turned else onto)), (size, low, high, stride, count)


@pytest.mark.parametrize(("count", "inside"), [((4, 3), True), ((4, 2), False), ((3, 3), False)])
@pytest.mark.parametrize("before", [False, True])
def test_on_a_circle_nothing_is_outside_if_all_is_inside(count: Place, inside: bool, before: bool):
    kernel = kernel_of([(-1, 0), (0, 1)], 1, 1, (1, 2), circular=True)
    one = np.eye(2, dtype=int)
    wave = Wave(2, before, ONE, {"x": {(0, 0): one}}, {"x": one})
    node = affine(Map("", (1, 4, 6), (1, *count)))
    assert checker._filtered(node, kernel, {"x": (1, 2), "a": (1, 1)}, wave).inside == inside


def test_every_dimension_of_an_image_is_looked_at():
    one = np.eye(1, dtype=int)
    for inside in (True, False):
        wave = Wave(1, inside, ONE, {"x": {(0, 0): one}}, {"x": one})
        for places, count in (([(0, 0), (0, 1)], (5, 3)), ([(0, 0), (1, 0)], (4, 4))):
            kernel, phases = kernel_of(places, 1, 1, (1, 1)), {"x": (1, 1), "a": (1, 1)}
            fits = affine(Map("", (1, 5, 4), (1, *count)))
            assert not checker._filtered(fits, kernel, phases, wave).inside  # the last outputs but one are cut off
            padded = affine(Map("", (1, 5, 4), (1, 5, 4)))
            if inside:
                checker._filtered(padded, kernel, phases, wave)
            else:
                with pytest.raises(Reject, match="reads beyond the image"):
                    checker._filtered(padded, kernel, phases, wave)


def test_the_first_and_the_last_position_read():
    kernel = kernel_of([(-1, 3), (2, 0), (0, -4)], 1, 1, (2, 3))
    assert checker._span(kernel, Node("", "", (7, 5, 4))) == ([-1, -4], [2 * 4 + 2, 3 * 3 + 3])


def test_phases_are_positions_per_position_of_the_coarsest_grid():
    one = [(0,)]
    down, up, three = (kernel_of(one, 1, 1, (s,), turned=way) for s, way in ((2, False), (2, True), (3, False)))
    network = {"x": Node("input", "x", (1, 12)), "a": Node("affine", "a", (1, 6), ("x",))}
    network["b"] = Node("affine", "b", (1, 2), ("a",))
    network["c"] = Node("affine", "c", (1, 4), ("b",))
    network["d"] = Node("activation", "d", (1, 4), ("c",))
    inner = list(network.values())[1:]
    found = checker._phases(network, "x", inner, {"a": down, "b": three, "c": up}, 1)
    assert found == {"x": (6,), "a": (3,), "b": (1,), "c": (2,), "d": (2,)}
    found = checker._phases(network, "x", inner, {"a": up, "b": three, "c": up}, 1)  # spacings 1, 1/2, 3/2, 3/4
    assert found == {"x": (3,), "a": (6,), "b": (2,), "c": (4,), "d": (4,)}
    two = {"x": Node("input", "x", (1, 6, 6)), "a": Node("affine", "a", (1, 3, 2), ("x",))}
    assert checker._phases(two, "x", [two["a"]], {"a": kernel_of([(0, 0)], 1, 1, (2, 3))}, 2) == {
        "x": (2, 3),
        "a": (1, 1),
    }


def test_grids_that_do_not_match_are_refused():
    x, add = Node("input", "x", (1, 4)), Node("add", "s", (1, 4), ("x", "a"))
    a = Node("affine", "a", (1, 4), ("x",))
    network = {"x": x, "a": a, "s": add}
    kernel = {"a": kernel_of([(0,)], 1, 1, (1,))}
    assert checker._phases(network, "x", [a, add], kernel, 1) == dict.fromkeys("xas", (1,))
    with pytest.raises(Reject, match="joins grids of different spacing"):
        checker._phases(network, "x", [a, add], {"a": kernel_of([(0,)], 1, 1, (2,))}, 1)
    with pytest.raises(Reject, match=r"^f of shape \(4,\) joins grids"):
        checker._phases(network, "x", [Node("activation", "f", (4,), ("x",))], {}, 1)
    with pytest.raises(Reject, match=r"^f of shape \(1, 2, 2\) joins grids"):
        checker._phases(network, "x", [Node("activation", "f", (1, 2, 2), ("x",))], {}, 1)
    for shape in ((4,), (1, 4, 1)):
        with pytest.raises(Malformed, match="on a torus of 1 dimensions"):
            checker._phases({"x": Node("input", "x", shape)}, "x", [], {}, 1)


def has_room(kernel: Any, source: Place, shape: Place, phases: tuple[Place, Place], torus: Place) -> None:
    network = {"x": Node("input", "x", source), "a": Node("affine", "a", shape, ("x",))}
    checker._require_room(network, "x", [network["a"]], {"a": kernel}, dict(zip("xa", phases, strict=True)), torus)


@pytest.mark.parametrize("turned", [False, True])
def test_a_kernel_may_reach_around_only_to_where_nothing_is(turned: bool):
    """Every image is inside its grid, and no read position is another one of the image on the torus."""
    seen = set()
    for size, low, high, stride, count in ONE_DIMENSION:
        for torus in (2, 3, 4, 6):
            kernel = kernel_of([(low,), (high,)][: 1 + (low < high)], 1, 1, (stride,), turned=turned)
            n, read = torus * stride, range(low, (count - 1) * stride + high + 1)
            fine, coarse = (1, size), (1, count)
            into, out = (coarse, fine) if turned else (fine, coarse)
            phases = ((1,), (stride,)) if turned else ((stride,), (1,))
            why = ""
            if size > n or count > torus:
                why = "does not fit .* positions of the torus"
            elif any(p not in range(size) and p % n in range(size) for p in read):
                why = "reaches from .* around .* positions of the torus"
            seen.add(why[:6])
            if why:
                with pytest.raises(Reject, match=why):
                    has_room(kernel, into, out, phases, (torus,))
            else:
                has_room(kernel, into, out, phases, (torus,))
    assert seen == {"", "does n", "reache"}


def test_the_source_has_to_fit_as_well():
    with pytest.raises(Reject, match=r"^x of shape \(1, 5\) does not fit \[4\]"):
        has_room(kernel_of([(0,)], 1, 1, (2,)), (1, 5), (1, 2), ((2,), (1,)), (2,))
    with pytest.raises(Reject, match=r"^a of shape \(1, 5\) does not fit \[4\]"):
        has_room(kernel_of([(0,)], 1, 1, (1,)), (1, 3), (1, 5), ((1,), (1,)), (4,))
    has_room(kernel_of([(0,)], 1, 1, (2,)), (1, 5), (1, 3), ((2,), (1,)), (3,))


def test_every_dimension_has_to_fit_and_to_be_reached_within():
    one, phases = kernel_of([(0, 0)], 1, 1, (1, 1)), ((1, 1), (1, 1))
    has_room(one, (1, 3, 5), (1, 3, 5), phases, (3, 5))
    for torus, have in (((2, 5), r"\[2, 5\]"), ((3, 4), r"\[3, 4\]")):
        with pytest.raises(Reject, match=f"does not fit {have} positions"):
            has_room(one, (1, 3, 5), (1, 3, 5), phases, torus)
    for places, torus, why in (([(0, 0), (0, 1)], (3, 5), "5 positions"), ([(-1, 0), (0, 0)], (3, 5), "3 positions")):
        with pytest.raises(Reject, match=f"reaches from .* around {why}"):
            has_room(kernel_of(places, 1, 1, (1, 1)), (1, 3, 5), (1, 3, 5), phases, torus)


def test_a_circle_is_the_whole_grid():
    kernel = kernel_of([(-1, 0), (1, 0)], 1, 1, (1, 2), circular=True)
    has_room(kernel, (1, 5, 6), (1, 5, 3), ((1, 2), (1, 1)), (5, 3))
    for torus in ((6, 3), (5, 4)):
        with pytest.raises(Reject, match=r"pads .* in circles on"):
            has_room(kernel, (1, 5, 6), (1, 5, 3), ((1, 2), (1, 1)), torus)


def test_a_node_without_a_kernel_has_to_fit_only():
    network = {"x": Node("input", "x", (1, 4)), "f": Node("activation", "f", (1, 4), ("x",))}
    checker._require_room(network, "x", [network["f"]], {}, {"x": (2,), "f": (2,)}, (2,))
    network["f"] = Node("activation", "f", (1, 5), ("x",))
    with pytest.raises(Reject, match=r"^f of shape \(1, 5\) does not fit \[4\] positions"):
        checker._require_room(network, "x", [network["f"]], {}, {"x": (2,), "f": (2,)}, (2,))


def test_a_variable_reads_itself():
    wave = checker._free("u", 3, 2)
    z = {"u": whole(3, 4, 2)}
    assert (told(wave, z, (4, 2)) == z["u"]).all()
    assert (wave.rows, wave.inside, wave.loose) == (3, True, 0)
    assert (wave.sizes["u"] == np.eye(3)).all()


def test_taps_that_meet_are_added():
    X, Y, Z, W = (whole(2, 3), whole(2, 3, seed=1), whole(3, 4, seed=2), whole(3, 4, seed=3))
    found = checker._convolved({(0, 1): X, (2, 0): Y}, {(0, 0): Z, (-2, 1): W})
    expected = {(0, 1): X @ Z + Y @ W, (-2, 2): X @ W, (2, 0): Y @ Z}
    assert found.keys() == expected.keys()
    assert all((found[at] == expected[at]).all() for at in expected)


def ends(*values: Any) -> Any:
    return np.vectorize(Fraction, otypes=[object])(np.array(values, dtype=object))


def test_slopes_of_a_channel_are_those_of_its_phases():
    for shape in ((2, 3, 4), (2, 1, 1)):
        node = Node("activation", "f", shape, ("x",), ends=(ends([[-1]], [[2]]), ends([[5]], [[7]])))
        lower, upper = checker._by_channel(node, 6)
        assert lower.tolist() == [-1, -1, -1, 2, 2, 2]
        assert upper.tolist() == [5, 5, 5, 7, 7, 7]


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("side", [0, 1])
def test_slopes_that_differ_within_a_channel_are_refused(size: int, side: int):
    both = [ends([[0], [0]]), ends([[1], [1]])]
    wide = np.broadcast_to(both[side], (1, 2, 1)).reshape(2, 1).repeat(size, 1).copy()
    fine = [end.reshape(2, 1) for end in both]
    fine[side] = wide
    assert len(checker._by_channel(Node("activation", "f", (2, size), ("x",), ends=tuple(fine)), 2)) == 2
    wide[1, -1] = Fraction(1, 2)
    with pytest.raises(Reject, match="slopes differ within a channel"):
        checker._by_channel(Node("activation", "f", (2, size), ("x",), ends=tuple(fine)), 2)


def test_factors_known_within_an_interval_are_off_by_what_is_told():
    lower, upper = ends([Fraction(9, 10)], [0], [Fraction(1, 2)]), ends([1], [0], [Fraction(2, 3)])
    X = whole(6, 2)
    wave = Wave(6, False, Fraction(1, 5), {"u": {(0,): X, (3,): -X}}, {"u": 2 * abs(X)}, Fraction(1, 100))
    node = Node("activation", "f", (3, 4), ("x",), ends=(lower, upper))
    found = checker._dimmed(node, wave)
    assert (found.rows, found.inside) == (6, False)
    width = 1 - Fraction(1, 2) / Fraction(2, 3)
    assert found.loose == (1 + wave.loose) * (1 + width) - 1
    for channel in range(3):
        for row in (2 * channel, 2 * channel + 1):
            most, least = upper[channel, 0], lower[channel, 0]
            for at, sign in (((0,), 1), ((3,), -1)):
                told = found.taps["u"][at][row].astype(object) * found.unit
                assert (told == most * sign * X[row] * wave.unit).all()
                assert (abs(told - least * sign * X[row] * wave.unit) <= width * abs(told)).all()
            told = found.sizes["u"][row].astype(object) * found.unit
            assert (told == most * 2 * abs(X[row]) * wave.unit).all()


def test_factors_that_are_all_zero_are_exact():
    one = np.eye(2, dtype=int)
    wave = Wave(2, True, ONE, {"u": {(0,): one}}, {"u": one}, Fraction(1, 7))
    found = checker._dimmed(Node("activation", "f", (2, 3), ("x",), ends=(ends([0]), ends([0]))), wave)
    assert found.loose == wave.loose
    assert found.inside
    assert not found.taps["u"][0,].any()


def test_sums_and_channels_side_by_side_are_read_at_once():
    torus = (3,)
    z = {"u": whole(3, 3, seed=5), "v": whole(1, 3, seed=6)}
    taps = {"u": {(0,): whole(2, 3), (1,): whole(2, 3, seed=1)}}
    first = Wave(2, True, Fraction(1, 2), taps, {"u": abs(taps["u"][0,]) + abs(taps["u"][1,])}, Fraction(1, 9))
    for rows in (2, 4):
        taps = {"u": {(1,): whole(rows, 3, seed=2)}, "v": {(0,): whole(rows, 1, seed=3)}}
        sizes = {"u": abs(taps["u"][1,]), "v": abs(taps["v"][0,])}
        second = Wave(rows, rows == 2, Fraction(2, 3), taps, sizes, Fraction(1, 5))
        for kind in ("add", "concat") if rows == 2 else ("concat",):
            for read in ([first, second], [second, first]):
                found = checker._superposed(Node(kind, "s", (1, 1)), read)
                parts = [told(wave, z, torus) for wave in read]
                whole_of_it = parts[0] + parts[1] if kind == "add" else np.concatenate(parts)
                assert (told(found, z, torus) == whole_of_it).all()
                assert found.rows == len(whole_of_it)
                assert found.inside == (rows == 2)
                assert found.loose == Fraction(1, 5)
                for name in "uv":
                    each = [
                        wave.sizes[name].astype(object) * wave.unit
                        if name in wave.sizes
                        else np.zeros((wave.rows, z[name].shape[0]), dtype=object)
                        for wave in read
                    ]
                    total = each[0] + each[1] if kind == "add" else np.concatenate(each)
                    assert (found.sizes[name].astype(object) * found.unit == total).all()


def test_what_does_not_vanish_outside_has_zero_among_its_slopes():
    node = Node("activation", "f", (3, 2), ("x",), ends=(ends([-2], [1], [-3]), ends([5], [4], [-1])))
    lower, upper = checker._masked(node, True, 6)
    assert lower.tolist() == [-2, -2, 1, 1, -3, -3] * 2
    assert upper.tolist() == [5, 5, 4, 4, -1, -1] * 2
    lower, upper = checker._masked(node, False, 6)
    assert lower.tolist() == [-2, -2, 0, 0, -3, -3] * 2
    assert upper.tolist() == [5, 5, 4, 4, 0, 0] * 2


@pytest.mark.parametrize("n", [1, 2, 3, 7, 16, 101])
def test_cosines_are_rounded_to_the_nearest(n: int):
    with mpmath.workdps(60):
        for k in range(n):
            c, s = checker._root(Fraction(k, n))
            for found, true in ((c, mpmath.cos), (s, mpmath.sin)):
                error = abs(found - true(2 * mpmath.pi * k / n) * 2**50)
                assert error <= mpmath.mpf(1) / 2 + mpmath.mpf(2) ** -13


@pytest.mark.parametrize("frequency", [(0, 0), (1, 0), (2, 1), (4, 2)])
def test_a_wave_at_a_frequency_is_its_symbol(frequency: Place):
    torus = (5, 3)
    taps = {(0, 0): whole(2, 3), (-1, 2): whole(2, 3, seed=1), (3, 1): whole(2, 3, seed=2)}
    size: Any = sum(map(abs, taps.values()))
    wave = Wave(2, True, Fraction(2, 7), {"u": taps}, {"u": size}, Fraction(1, 1000))
    found = checker._at(wave, frequency, torus)
    assert found.loose == (1 + wave.loose) * (1 + Fraction(1, 2**50)) - 1
    assert (found.sizes["u"].astype(object) * found.unit == np.tile(size * wave.unit, (2, 2))).all()
    with mpmath.workdps(60):
        angles = {
            at: 2 * mpmath.pi * sum(mpmath.mpf(a * w) / n for a, w, n in zip(at, frequency, torus, strict=True))
            for at in taps
        }
        real = sum(X.astype(object) * mpmath.cos(angles[at]) for at, X in taps.items())
        imaginary = sum(X.astype(object) * mpmath.sin(angles[at]) for at, X in taps.items())
        unit = mpmath.mpf(wave.unit.numerator) / wave.unit.denominator
        true = np.block([[real, -imaginary], [imaginary, real]]) * unit
        blocks = found.blocks["u"].astype(object) * (mpmath.mpf(found.unit.numerator) / found.unit.denominator)
        room = np.tile(size.astype(object), (2, 2)) * unit * mpmath.mpf(2) ** -50 * (0.5 + 2.0**-12)
        assert (abs(blocks - true) <= room).all()


# The output of a trunk with a head.


def test_a_head_reads_the_whole_image_at_once():
    shape, phases, torus = (2, 3, 4), (2, 1), (2, 4)
    weight, order = whole(3, 24), np.random.default_rng(0).permutation(24)
    shuffle = Map("selection", shape, (24,), order)
    dense = Map("dense", (24,), (3,), weight, Fraction(1, 3))
    half = Map("diagonal", (3,), (3,), np.array([1, -2, 3]), Fraction(1, 2))
    heads = {
        "all": [affine(shuffle), affine(Map("reshape", (24,), (24,))), affine(dense), affine(half)],
        "flat": [affine(Map("reshape", shape, (24,)))],
    }
    for head in heads.values():
        A = composed([numbers(node.map) for node in head])
        wave = checker._dense_head(head, shape, phases)
        assert wave.rows == len(A)
        assert not wave.inside
        z = whole(2 * math.prod(phases), *torus, seed=7)
        x = at_positions(z, phases)[:, : shape[1], : shape[2]]
        assert (told(wave, {"": z}, torus)[:, 0, 0] == A.dot(x.ravel())).all()
        assert (wave.sizes[""] >= sum(abs(X) for X in wave.taps[""].values())).all()
        total = np.abs(A.astype(object)).sum(1)
        assert (wave.sizes[""].astype(object).sum(1) * wave.unit == total).all()


def test_a_signal_of_a_signal():
    outer = Signal(Fraction(1, 3), {"": whole(2, 4)}, {"": whole(2, 4, seed=1)}, Fraction(1, 7))
    blocks = {"u": whole(4, 3, seed=2), "v": whole(4, 1, seed=3)}
    sizes = {"u": whole(4, 3, seed=4), "v": whole(4, 1, seed=5)}
    found = checker._composed(outer, Signal(Fraction(3, 5), blocks, sizes, Fraction(1, 11)))
    assert found.unit == Fraction(1, 5)
    assert found.loose == (1 + Fraction(1, 7)) * (1 + Fraction(1, 11)) - 1
    for name in "uv":
        assert (found.blocks[name] == outer.blocks[""] @ blocks[name]).all()
        assert (found.sizes[name] == outer.sizes[""] @ sizes[name]).all()


def both(X: Any) -> Any:
    """A complex matrix as a real one of twice the size."""
    return np.block([[X.real, -X.imag], [X.imag, X.real]]).astype(int).astype(object)


UNIT = 1 << 40


class Head:
    """Forms ``h |x|^2 + |u|^2`` at the frequencies of a circle, and an output that reads ``b x``."""

    def __init__(self, torus: int, h: Mapping[int, Fraction], b: Mapping[int, Any], outputs: int = 1) -> None:
        self.torus = (torus,)
        self.frequencies: list[Place] = [(w,) for w in range(torus) if w <= -w % torus]
        self.h: dict[Place, int] = {(w,): math.floor(value * UNIT) for w, value in h.items()}
        zero = np.zeros((outputs, 2), dtype=complex)
        self.b: dict[Place, Any] = {w: both(np.array(b.get(w[0], zero), dtype=complex)) for w in self.frequencies}
        self.sizes = sum(abs(value) for value in self.b.values()) + 1
        self.widths = {"x": 4, "u": 4}

    def inside(self, w: Place) -> Any:
        one = np.eye(4, dtype=object)
        yield Fraction(1, UNIT), "x", "x", one * self.h.get(w, UNIT), one * max(self.h.values()), Fraction(0)
        yield ONE, "u", "u", one, one, Fraction(0)

    def made(self, w: Place) -> Any:
        return Signal(Fraction(1, 4), {"x": self.b[w] * 4}, {"x": self.sizes * 4}, Fraction(1, 2**45))

    def holds(self) -> bool:
        return checker._with_head(self.inside, self.made, self.frequencies, self.widths, self.torus)


@pytest.mark.parametrize(("torus", "w"), [(1, 0), (4, 0), (4, 1), (4, 2), (5, 0), (5, 1), (5, 2)])
def test_an_output_is_paid_for_at_all_frequencies_together(torus: int, w: int, monkeypatch: pytest.MonkeyPatch):
    """With ``y = sum of Re b z / F``, the sum of ``h |z|^2`` is at least ``F y^2`` if that of ``b^2 / h`` is at most F.

    Of two opposite frequencies one is listed.
    """
    b = {w: np.array([[1.0, 2.0j]])}
    total = 5 * (1 if 2 * w % torus == 0 else 2)
    needed = Fraction(total, torus)
    assert Head(torus, {w: needed / (1 - Fraction(1, 100))}, b).holds()
    assert not Head(torus, {w: needed / (1 + Fraction(1, 1000))}, b).holds()
    honest = np.linalg.eigvalsh
    monkeypatch.setattr(np.linalg, "eigvalsh", lambda a: np.minimum(honest(a), 0.5))
    assert not Head(torus, {w: needed / (1 + Fraction(1, 1000))}, b).holds()
    assert not Head(torus, {w: needed / 2}, b).holds()


def test_outputs_share_what_is_paid():
    b = {0: [[1.0, 1.0], [1.0, -2.0]], 1: [[1.0j, 1.0], [2.0, 1.0j]], 2: [[1.0, 0.0], [1.0, -1.0]]}
    shares, B = {0: 1, 1: 2, 2: 1}, {w: np.array(value) for w, value in b.items()}
    total: Any = sum(shares[w] * np.real(B[w] @ B[w].conj().T) for w in B)
    least = float(np.linalg.eigvalsh(total)[-1]) / 4
    for factor, holds in ((1.02, True), (0.999, False)):
        h = dict.fromkeys(range(3), Fraction(least * factor))
        assert Head(4, h, b, 2).holds() == holds


def test_the_forms_of_a_head_have_the_prices_that_were_added_up(monkeypatch: pytest.MonkeyPatch):
    b = {0: [[1.0, 1.0], [1.0, -2.0]], 1: [[1.0j, 1.0], [2.0, 1.0j]], 2: [[1.0, 0.0], [1.0, -1.0]]}
    head = Head(4, dict.fromkeys(range(3), Fraction(9, 2)), b, 2)
    seen: list[tuple[list[Any], dict[str, int], bool]] = []

    def look(terms: list[Any], widths: dict[str, int], alike: bool = False) -> bool:
        seen.append((terms, widths, alike))
        return True

    with monkeypatch.context() as patch:
        patch.setattr(checker, "_semidefinite_sum", look)
        assert head.holds()
    assert len(seen) == 3
    prices = np.zeros((2, 2), dtype=object)
    for (terms, widths, alike), w, share in zip(seen, head.frequencies, (1, 2, 1), strict=True):
        assert alike
        assert widths == {"x": 4, "u": 4, "": 4}
        assert all(term[-1] >= Fraction(1, 2**50) for term in terms)
        assert all((abs(term[3]) <= term[4]).all() for term in terms)
        found = {(a, c): X.astype(object) * unit for unit, a, c, X, _, _ in terms}
        loose = {(a, c): off for _, a, c, _, _, off in terms}
        assert found.keys() == {("x", "x"), ("u", "u"), ("", "x"), ("x", ""), ("", "")}
        assert (found["", "x"] == -head.b[w]).all()
        assert (found["x", ""] == -head.b[w].T).all()
        assert min(loose["", "x"], loose["x", ""]) >= Fraction(1, 2**45)
        assert (found["", ""] == found["", ""].T).all()
        prices = prices + share * found["", ""][:2, :2]
    assert np.linalg.eigvalsh(prices.astype(float))[-1] <= 4
    assert all((first[4] == second[4]).all() for first, second in zip(seen[0][0], seen[1][0], strict=True))
    with monkeypatch.context() as patch:
        answers = iter([True, True, False])
        patch.setattr(checker, "_semidefinite_sum", lambda *_, **__: next(answers))
        assert not head.holds()


def test_a_form_without_an_inverse_or_out_of_bounds_proves_nothing():
    b = {w: np.array([[1.0, 1.0]]) for w in range(3)}
    fine = dict.fromkeys(range(3), Fraction(8))
    assert Head(4, fine, b).holds()
    assert not Head(4, {**fine, 1: Fraction(0)}, b).holds()
    assert not Head(4, {**fine, 1: Fraction(-1)}, b).holds()

    class Lopsided(Head):
        """Negative, by so little that its inverse is out of bounds, where only the price's second half looks."""

        def inside(self, w: Place) -> Any:
            sign = np.diag(np.array([UNIT, UNIT, -1, -1], dtype=object))
            yield Fraction(1, UNIT), "x", "x", sign * 8, abs(sign) * 8, Fraction(0)
            yield from list(super().inside(w))[1:]

    assert not Lopsided(4, fine, b).holds()


# ------------------------------------------------------------------------------------------------- the two tables


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


DERIVATIVES: dict[str, Callable[[float, float], float]] = {  # by the parameter and the place, from the definitions
    "leaky_relu": lambda s, x: 1.0 if x > 0 else s,
    "prelu": lambda s, x: 1.0 if x > 0 else s,
    "elu": lambda a, x: 1.0 if x > 0 else a * math.exp(x),
    "celu": lambda a, x: 1.0 if x > 0 else math.exp(x / a),
    "softplus": lambda b, x: logistic(b * x),
    "contraction": lambda e, x: 1 - e * (x > 0),
}
OF = {
    **{"leaky_relu": "negative_slope", "prelu": "weight", "elu": "alpha"},
    **{"celu": "alpha", "softplus": "beta", "contraction": "epsilon"},
}
INSIDE = {"contraction": (0.0, 0.25, 1.0), "celu": (2.0**-20, 0.5, 3.0), "softplus": (2.0**-20, 0.5, 7.0)}
OUTSIDE = {"contraction": (-(2.0**-60), 1 + 2.0**-50, 2.0), "celu": (0.0, -0.5), "softplus": (0.0, -0.5)}


@pytest.mark.parametrize("function", OF)
def test_slopes_by_parameter_hold_the_derivative_and_approach_it(function: str):
    for value in INSIDE.get(function, (-2.0, -0.25, 0.0, 0.5, 1.0, 3.0)):
        least, most = checker.own_slope(function, {OF[function]: ends(value)})
        places = [sign * value * scale for value in (0.0, 1e-13, 1.0, 45.0) for sign in (1, -1) for scale in (1, 2**20)]
        found = [DERIVATIVES[function](value, x) for x in places if abs(x) < 700 or function != "softplus"] + [
            DERIVATIVES[function](value, sign * 40.0 / value) for sign in (1, -1) if function == "softplus"
        ]
        assert np.all(least <= min(found))
        assert np.all(max(found) <= most)
        assert float(np.max(least)) >= min(found) - 1e-11
        assert float(np.min(most)) <= max(found) + 1e-11
    for value in OUTSIDE.get(function, ()):
        with pytest.raises(Malformed, match="outside the range that the table covers"):
            checker.own_slope(function, {OF[function]: ends(value)})
    if function in OUTSIDE:
        with pytest.raises(Malformed, match="outside the range that the table covers"):
            checker.own_slope(function, {OF[function]: ends([INSIDE[function][0]], [OUTSIDE[function][0]])})
    for wrong in ({}, {"slope": ends(1.0)}, {OF[function]: ends(1.0), "more": ends(1.0)}):
        with pytest.raises(Malformed, match=f"no elementwise function `{function}` with parameters"):
            checker.own_slope(function, wrong)


def test_an_elementwise_function_is_one_of_the_table():
    assert checker.own_slope("relu", {}) == (0, 1)
    assert checker.own_slope("cos", {}) == (-1, 1)
    assert checker.own_slope("sigmoid", {}) == (0, Fraction(1, 4))
    for function, parameters in (("relu", {"alpha": ends(1.0)}), ("hardshrink", {}), ("", {}), ("", {"": ends(1.0)})):
        with pytest.raises(Malformed, match=f"no elementwise function `{function}` with parameters"):
            checker.own_slope(function, parameters)


WINDOWS = {"windows": [None, [[0, 3, 1], [2, 5, 1], [4, 5, 1]], [[0, 4, 2], [0, 3, 1], [2, 4, 1]]]}
GAINS: list[tuple[str, dict[str, Any], Place, Place, dict[str, Any]]] = [  # squares of what is known
    (
        "max_windows",
        WINDOWS,
        (2, 5, 4),
        (2, 3, 3),
        {"l2->l2": 6, "l1->l1": 36, "linf->linf": 1, "l1->linf": 1, "l2->linf": 1},
    ),
    ("max_windows", {"windows": [None, [[0, 2, 1]]]}, (3, 2), (3, 1), dict.fromkeys(checker.PAIRS, 1)),
    ("softmax", {"dim": -1}, (2, 3), (2, 3), dict.fromkeys(("l2->l2", "l1->l1", "linf->linf"), Fraction(1, 4))),
    ("sort", {}, (4, 3), (4, 3), dict.fromkeys(("l2->l2", "l1->l1", "linf->linf"), 1)),
    ("householder", {}, (4, 3), (4, 3), {"l2->l2": 1, "l1->l1": 2, "linf->linf": 2}),
    ("logsumexp", {"dim": [1]}, (2, 3, 4), (2, 4), dict.fromkeys(("l2->l2", "l1->l1", "linf->linf"), 1)),
    ("logsumexp", {"dim": [-2, 2]}, (2, 3, 4), (2, 1, 1), dict.fromkeys(("l2->l2", "l1->l1", "linf->linf"), 1)),
    ("norm2", {"dim": [0, -1]}, (2, 3, 4), (3,), {"l2->l2": 1}),
    ("norm2", {"dim": 0}, (2, 3, 4), (1, 3, 4), {"l2->l2": 1}),
    *[(function, {}, (2, 3), (5,), {}) for function in checker.LOCAL],
]


@pytest.mark.parametrize("case", range(len(GAINS)))
def test_gains_of_other_functions_and_their_shapes(case: int):
    function, parameters, source, shape, gains = GAINS[case]
    assert checker.own_gains(function, parameters, source, shape) == gains
    if gains:
        for wrong in ((*shape, 1), shape[:-1], (shape[0] + 1, *shape[1:])):
            with pytest.raises(Malformed, match=f"`{function}` turns "):
                checker.own_gains(function, parameters, source, wrong)


def test_no_other_function_has_gains():
    with pytest.raises(Malformed, match="no function `cumsum`"):
        checker.own_gains("cumsum", {"dim": 0}, (2, 3), (2, 3))


@pytest.mark.parametrize("dims", [2, -3, [0, 2], [0, -3], True, [True], "0", [None], 1.0, {}])
def test_axes_are_integers_within_the_shape(dims: Any):
    for function in ("softmax", "norm2", "logsumexp"):
        with pytest.raises(Malformed, match=r"dimensions .* of the shape \(2, 3\)"):
            checker.own_gains(function, {"dim": dims}, (2, 3), (2, 3))


def test_axes_count_from_both_ends():
    assert checker._axes({"dim": -3}, (2, 3, 4)) == {0}
    assert checker._axes({"dim": [2, -2, 1]}, (2, 3, 4)) == {1, 2}
    with pytest.raises(Malformed, match="fields"):
        checker._axes({}, (2, 3))


@pytest.mark.parametrize(
    ("windows", "size", "times"),
    [
        (None, 3, 1),
        ([[0, 3, 1]], 3, 1),
        ([[0, 3, 2], [2, 3, 1], [0, 1, 1]], 3, 2),
        ([[0, 3, 2], [1, 2, 1]], 3, 1),
        ([[0, 2, 1]] * 5, 2, 5),
        ([[0, 1, 7], [1, 3, 2], [1, 2, 1]], 3, 2),
    ],
)
def test_windows_that_share_a_position_are_counted(windows: Any, size: int, times: int):
    assert checker._multiplicity(windows, size) == times


@pytest.mark.parametrize("window", [[0, 4, 1], [2, 2, 1], [3, 2, 1], [0, 3, 0], [3, 3, 1]])
def test_a_window_is_a_range_within_the_dimension(window: list[int]):
    with pytest.raises(Malformed, match="of a dimension of size 3"):
        checker._multiplicity([[0, 3, 1], window], 3)


def test_windows_are_a_short_list(monkeypatch: pytest.MonkeyPatch):
    for wrong in ([], {}, 3, "all", ([0, 1, 1],)):
        with pytest.raises(Malformed, match="windows are a list of ranges, or null"):
            checker._multiplicity(wrong, 3)
    monkeypatch.setattr(checker, "ENTRY_LIMIT", 1)
    assert checker._multiplicity([[0, 8, 1]] * 2, 8) == 2
    assert checker._multiplicity([[0, 16, 1]], 16) == 1
    for windows, size in (([[0, 17, 1]], 17), ([[0, 1, 1]] * 17, 1)):
        with pytest.raises(Malformed, match="windows are a list"):
            checker._multiplicity(windows, size)


def groups(dim: Any, group: Any, arrangement: Any = "consecutive", shape: Place = (6, 4)) -> Any:
    parameters = {"dim": dim, "group": group, "arrangement": arrangement}
    return checker.read_groups({"function": "sort", "parameters": parameters}, shape, {})


def test_groups_divide_a_dimension():
    assert groups(0, 3) == {"dim": 0, "members": 3, "consecutive": True, "angles": ()}
    assert groups(1, 2, "interleaved") == {"dim": 1, "members": 2, "consecutive": False, "angles": ()}
    assert groups(0, 6)["members"] == 6
    for dim, n, how in (
        (-1, 2, ""),
        (2, 2, ""),
        (0, 1, ""),
        (0, 0, ""),
        (0, -2, ""),
        (0, 4, ""),
        (1, 3, ""),
        (0, 2, "x"),
    ):
        with pytest.raises(Malformed, match=r"groups of .* along dimension .* of the shape \(6, 4\), or their angles"):
            groups(dim, n, how or "consecutive")
    for wrong in ((True, 2, "consecutive"), (0, 2.0, "consecutive"), (0, 2, None)):
        with pytest.raises(Malformed, match="parameters of `sort`"):
            groups(*wrong)


def test_pairs_are_reflected_by_as_many_angles():
    def reflected(dim: int, count: int, shape: Place = (6, 4)) -> Any:
        found = {"function": "householder", "parameters": {"dim": dim, "theta": {"tensor": "t"}}}
        return checker.read_groups(found, shape, {"t": np.arange(1.0, count + 1) / 10})

    angles = tuple(Fraction(value / 10) for value in (1.0, 2.0, 3.0))
    assert reflected(0, 3) == {"dim": 0, "members": 2, "consecutive": False, "angles": angles}
    assert reflected(1, 2)["angles"] == angles[:2]
    for dim, count, shape in ((0, 2, (6, 4)), (0, 6, (6, 4)), (0, 12, (6, 4)), (2, 2, (6, 4)), (0, 2, (5, 4))):
        with pytest.raises(Malformed, match="interleaved groups of 2 along"):
            reflected(dim, count, shape)


# --------------------------------------------------------------------------------------------- reading the network


def h(value: float) -> str:
    return float(value).hex()


X = {"kind": "input", "name": "x", "shape": [2, 3]}


def network(*nodes: Any, output: Any = None, form: Any = "lipcert-graph-1", **arrays: Any) -> Any:
    output = output or (nodes[-1]["name"] if nodes and type(nodes[-1]) is dict and "name" in nodes[-1] else "x")
    return checker.read_network({"format": form, "output": output, "nodes": [X, *nodes]}, arrays)


def node(kind: str, name: str, shape: Sequence[int], **fields: Any) -> dict[str, Any]:
    return {"kind": kind, "name": name, "shape": list(shape), **fields}


def dense(name: str, source: str, into: Place, out: Place, bias: Any = None) -> dict[str, Any]:
    linear = {"kind": "dense", "in_shape": list(into), "out_shape": list(out), "weight": f"{name}.w"}
    return node("affine", name, out, source=source, map=linear, bias=bias)


def relu(name: str = "r", source: str = "x", slope: Any = None, shape: Place = (2, 3)) -> dict[str, Any]:
    slope = [h(0), h(1)] if slope is None else slope
    return node("activation", name, shape, source=source, function="relu", parameters={}, slope=slope)


def opaque(function: str, gains: Any, shape: Place = (2, 3), **parameters: Any) -> dict[str, Any]:
    return node("opaque", "o", shape, source="x", function=function, parameters=parameters, gains=gains)


def test_a_network_is_read_node_by_node():
    found = network(
        dense("a", "x", (2, 3), (2, 4), "a.b"),
        relu("r", "a", shape=(2, 4)),
        node("add", "s", (2, 4), sources=["a", "r"]),
        node("add", "t", (2, 4), sources=["a", "r", "s"]),
        node("concat", "c", (2, 7), sources=["x", "t"], dim=1),
        node("concat", "d", (4, 7), sources=["c", "c"], dim=0),
        node("concat", "e", (12, 7), sources=["d", "d", "d"], dim=0),
        **{"a.w": whole(4, 3) * 0.5, "a.b": np.arange(4.0)},
    )
    assert [*found] == ["x", "a", "r", "s", "t", "c", "d", "e"]
    assert [each.kind for each in found.values()] == ["input", "affine", "activation", *["add"] * 2, *["concat"] * 3]
    assert [each.sources for each in found.values()][:4] == [(), ("x",), ("a",), ("a", "r")]
    assert [found[name].shape for name in "xatcde"] == [(2, 3), (2, 4), (2, 4), (2, 7), (4, 7), (12, 7)]
    assert [found[name].dim for name in "cde"] == [1, 0, 0]
    assert (numbers(found["a"].map) == np.kron(np.eye(2, dtype=int), whole(4, 3)) * Fraction(1, 2)).all()
    assert found["r"].slope == 1
    assert [*network()] == ["x"]


BROKEN: dict[str, tuple[Callable[[], Any], str]] = {
    "another format": (lambda: network(relu(), form="lipcert-graph-2"), "^format 'lipcert-graph-2'"),
    "another output": (lambda: network(relu(), output="x"), "^format .*, output 'x', 2 nodes"),
    "no output": (lambda: network(relu(), output="y"), "^format .*, output 'y', 2 nodes"),
    "no nodes": (
        lambda: checker.read_network({"format": "lipcert-graph-1", "output": "x", "nodes": []}, {}),
        "^format .*, 0 nodes",
    ),
    "a tensor too many": (lambda: network(relu(), b=np.ones(1)), r"^tensors that no node uses: \['b'\]"),
    "a name twice": (lambda: network(relu(), relu()), "^node `r` repeats a name"),
    "a name of the input": (lambda: network(relu("x")), "^node `x` repeats a name"),
    "two inputs": (lambda: network({**X, "name": "y"}), "^node `y` repeats a name, or the input is not first and only"),
    "no kind": (lambda: network({"name": "a"}), "^a node of kind None"),
    "another kind": (lambda: network({"kind": "mul"}), "^a node of kind 'mul'"),
    "a kind that is no text": (lambda: network({"kind": ["add"]}), r"^a node of kind \['add'\]"),
    "a node that is text": (lambda: network("add"), "^a node of kind None"),
    "a node that is a list": (lambda: network([1]), "^a node of kind None"),
    "another field": (lambda: network({**relu(), "more": 1}), "^a node of kind activation is"),
    "a source to come": (lambda: network(relu("r", "s"), relu("s", "x")), "^node `r` reads .*, not all defined before"),
    "itself": (lambda: network(relu("r", "r")), "^node `r` reads .*, not all defined before"),
    "a source that is no text": (
        lambda: network(node("add", "s", (2, 3), sources=["x", ["x"]])),
        "^node `s` reads .*, not all defined before",
    ),
    "one source unknown": (
        lambda: network(node("add", "s", (2, 3), sources=["x", "y"])),
        "^node `s` reads .*, not all defined before",
    ),
    "a map of another input": (
        lambda: network(dense("a", "x", (3, 3), (3, 4)), **{"a.w": whole(4, 3) * 1.0}),
        r"^node `a` of shape \(3, 4\) cannot read shapes \[\(2, 3\)\]",
    ),
    "a map of another output": (
        lambda: network({**dense("a", "x", (2, 3), (2, 4)), "shape": [8]}, **{"a.w": whole(4, 3) * 1.0}),
        r"^node `a` of shape \(8,\) cannot read shapes",
    ),
    "a bias of another shape": (
        lambda: network(dense("a", "x", (2, 3), (2, 4), "b"), **{"a.w": whole(4, 3) * 1.0, "b": np.ones(3)}),
        "shape mismatch|a tensor of shape",
    ),
    "a bias that is too large": (
        lambda: network(dense("a", "x", (2, 3), (2, 4), "b"), **{"a.w": whole(4, 3) * 1.0, "b": np.ones((5, 2, 4))}),
        r"^a tensor of shape \(5, 2, 4\) where \(2, 4\) is needed",
    ),
    "a bias that is missing": (
        lambda: network(dense("a", "x", (2, 3), (2, 4), "b"), **{"a.w": whole(4, 3) * 1.0}),
        "^tensor 'b' is missing",
    ),
    "an activation of another shape": (lambda: network(relu(shape=(3, 2))), r"^node `r` of shape \(3, 2\) cannot read"),
    "a sum of one": (lambda: network(node("add", "s", (2, 3), sources=["x"])), "^node `s` of shape .* cannot read"),
    "a sum of none": (lambda: network(node("add", "s", (2, 3), sources=[])), "^node `s` of shape .* cannot read"),
    "a sum of another shape": (
        lambda: network(node("add", "s", (3, 2), sources=["x", "x"])),
        "^node `s` of shape .* cannot read",
    ),
    "a sum of different shapes": (
        lambda: network(
            dense("a", "x", (2, 3), (2, 1)), node("add", "s", (2, 3), sources=["x", "a"]), **{"a.w": whole(1, 3) * 1.0}
        ),
        "^node `s` of shape .* cannot read",
    ),
    **{
        f"parts of {sources} along {dim} to {shape}": (
            lambda sources=sources, dim=dim, shape=shape: network(
                dense("a", "x", (2, 3), (2, 1)),
                node("concat", "c", shape, sources=list(sources), dim=dim),
                **{"a.w": whole(1, 3) * 1.0},
            ),
            "^node `c` of shape .* cannot read shapes",
        )
        for sources, dim, shape in [
            ("x", 0, (2, 3)),
            ("xx", 2, (2, 6)),
            ("xx", 5, (2, 6)),
            ("xx", -1, (2, 6)),
            ("xx", 0, (2, 6)),
            ("xx", 1, (2, 5)),
            ("xx", 1, (2, 7)),
            ("xx", 1, (3, 6)),
            ("xx", 1, (2, 6, 1)),
            ("xa", 0, (4, 3)),
            ("xa", 0, (4, 1)),
            ("xa", 1, (4, 4)),
            ("xx", 0, (4,)),
        ]
    },
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_graph_that_does_not_fit_together_is_malformed(name: str):
    build, why = BROKEN[name]
    with pytest.raises((Malformed, ValueError), match=why) as failure:
        build()
    assert type(failure.value) is Malformed or name == "a bias of another shape"


def slopes(slope: Any, function: str = "relu", **parameters: Any) -> Any:
    arrays = {"t": np.array([[1.0], [4.0]]), "u": np.array([[0.5], [-1.0]])}
    used = {key: arrays[key] for key in arrays if f"'{key}'" in str((slope, parameters))}
    entry = {**relu(slope=slope), "function": function, "parameters": parameters}
    return network(entry, **used)["r"]


def test_the_steepest_slope_of_an_interval_that_holds_the_function_s_is_used():
    found = slopes([h(-3), h(1)])
    assert found.slope == 3
    assert [end.tolist() for end in found.ends] == [-3, 1]
    assert slopes([h(0), h(1)]).slope == 1
    assert slopes([h(-0.5), h(2)]).slope == 2
    assert found.declared == ""
    tilted = slopes([{"tensor": "u"}, {"tensor": "t"}], "declared:me")
    assert tilted.slope == 4
    assert tilted.ends[0].tolist() == [[Fraction(1, 2)], [-1]]
    assert tilted.ends[1].tolist() == [[1], [4]]
    assert tilted.declared == "slope of r (declared:me) lies in [-1.0, 4.0]"
    constant = slopes([h(2), h(2)], "declared:me")
    assert constant.slope == 2
    for low, high in ((0.0, math.nextafter(1, 0)), (5e-324, 1.0), (1.0, 0.0), (0.5, 0.5)):
        with pytest.raises(Reject, match=r"^slope of r \(relu\): .* does not contain the function's slopes"):
            slopes([h(low), h(high)])
    with pytest.raises(Reject, match=r"\[0\.5, 1\.0\] does not contain the function's slopes \[0\.0, 1\.0\]"):
        slopes([{"tensor": "u"}, {"tensor": "t"}])
    with pytest.raises(Malformed, match="its lower end is above its upper end"):
        slopes([{"tensor": "t"}, h(3)], "declared:me")


@pytest.mark.parametrize("slope", [[], [h(0)], [h(0), h(1), h(2)]], ids=len)
def test_an_interval_has_two_ends(slope: list[str]):
    with pytest.raises(Malformed, match=r"^slope of r \(relu\): not an interval"):
        slopes(slope)


def test_declared_gains_are_kept_where_the_table_has_some():
    half = dict.fromkeys(("l2->l2", "l1->l1", "linf->linf"), h(0.5))
    found = network(opaque("softmax", {**half, "l1->linf": h(0)}, dim=1))["o"]
    assert found.gains == dict.fromkeys(half, Fraction(1, 2))
    assert found.declared == ""
    assert network(opaque("softmax", {"l2->l2": h(0.5)}, dim=1))["o"].gains == {"l2->l2": Fraction(1, 2)}
    for pair in half:
        with pytest.raises(Reject, match=rf"^gain of o \(softmax\): 0\.4999.* is below 0\.5 in {pair}"):
            network(opaque("softmax", {**half, pair: h(math.nextafter(0.5, 0))}, dim=1))
    sort = network(opaque("sort", {"l2->l2": h(1)}, dim=1, group=3, arrangement="consecutive"))["o"]
    assert (sort.gains, sort.dim, sort.members, sort.consecutive) == ({"l2->l2": 1}, 1, 3, True)
    theta = {"tensor": "t"}
    turned = network(opaque("householder", {"l2->l2": h(1), "l1->l1": h(1.5)}, dim=0, theta=theta), t=np.ones(1))["o"]
    assert (turned.gains, turned.members, turned.angles) == ({"l2->l2": 1, "l1->l1": Fraction(3, 2)}, 2, (1,))
    with pytest.raises(Reject, match=r"1\.25 is below 1\.41421356.* in l1->l1"):
        network(opaque("householder", {"l2->l2": h(1), "l1->l1": h(1.25)}, dim=0, theta=theta), t=np.ones(1))


def test_a_user_s_gains_are_taken_at_his_word():
    every = {pair: h(k) for k, pair in enumerate(checker.PAIRS)}
    table = {"tensor": "t"}
    found = network(opaque("declared:me", every, (7,), why=h(3), text="paper", table=table), t=np.ones(2))["o"]
    assert found.gains == {pair: k for k, pair in enumerate(checker.PAIRS)}
    listed = ", ".join(f"{pair}: {float(k)}" for k, pair in enumerate(checker.PAIRS))
    assert found.declared == f"gain of o (declared:me) is at most {listed}"
    for wrong in ({"l2->l1": h(1)}, {"l2->l2": h(-0.5)}, {"l2->l2": h(1), "l1->l1": h(-(2.0**-1074))}):
        with pytest.raises(Malformed, match=r"^gain of o \(declared:me\): "):
            network(opaque("declared:me", wrong, (7,)))
    with pytest.raises(
        Malformed, match=r"^gain of o \(declared:me\) is .*, not an object with the fields \['tensor'\]"
    ):
        network(opaque("declared:me", every, (7,), table={"array": "t"}), t=np.ones(2))


# ----------------------------------------------------------------------------------------------------- reading maps


@pytest.mark.parametrize("entry", [None, "dense", [], {}, {"kind": None}, {"kind": ["dense"]}, {"kind": "bilinear"}])
def test_a_map_has_a_kind_of_the_list(entry: Any):
    with pytest.raises(Malformed, match=r"^a map of kind (?!dense is)"):
        checker.read_map(entry, {})


def refused(kind: str, source: Place, shape: Place, fields: dict[str, Any], why: str = "", **arrays: Any) -> None:
    with pytest.raises(Malformed, match=why or f"^a map of kind {kind} does not turn"):
        read(kind, source, shape, fields, **arrays)


def test_a_dense_map_acts_on_the_last_dimension():
    w = {"weight": "w"}
    assert read("dense", (4, 2, 3), (4, 2, 5), w, w=whole(5, 3) * 1.0).out_shape == (4, 2, 5)
    refused("dense", (2, 3), (2, 4), w, w=whole(5, 3) * 1.0)
    refused("dense", (3, 2), (3, 5), w, w=whole(5, 3) * 1.0)
    refused("dense", (2, 3), (3, 5), w, w=whole(5, 3) * 1.0)
    refused("dense", (2, 3), (2, 5), w, w=whole(5, 2, 3) * 1.0)
    refused("dense", (), (3,), w, w=whole(3) * 1.0)
    refused("dense", (2, 3), (2, 5), {**w, "more": 1}, "^a map of kind dense is", w=whole(5, 3) * 1.0)


def test_a_reshape_keeps_the_number_of_entries():
    assert read("reshape", (2, 3), (3, 2), {}).out_shape == (3, 2)
    for shape in ((5,), (7,), (2, 3, 2)):
        refused("reshape", (2, 3), shape, {})


def test_a_selection_reads_entries_or_zeros():
    for first, fine in ((-1, True), (5, True), (0, True), (-2, False), (6, False)):
        index = np.array([first, 0, 3, 5])
        if fine:
            assert read("selection", (2, 3), (4,), {"index": "w"}, w=index).tensor is index
        else:
            refused("selection", (2, 3), (4,), {"index": "w"}, w=index)
    refused("selection", (2, 3), (2, 2), {"index": "w"}, w=np.arange(4))


def test_an_adjoint_goes_from_the_outputs_of_its_convolution_to_the_inputs():
    how = written((1,), ((0, 0),), (1,), 1, "zeros")
    conv = {"kind": "conv", "in_shape": [1, 4], "out_shape": [1, 3], **how}
    assert read("adjoint", (1, 3), (1, 4), {"conv": conv}, w=np.ones((1, 1, 2))).out_shape == (1, 4)
    for source, shape in (((1, 2), (1, 4)), ((1, 3), (1, 5)), ((1, 4), (1, 3))):
        refused("adjoint", source, shape, {"conv": conv}, w=np.ones((1, 1, 2)))


def test_a_scale_broadcasts_to_its_input():
    assert read("diagonal", (2, 3), (2, 3), {"scale": "w"}, w=np.ones(3)).in_shape == (2, 3)
    refused("diagonal", (1, 3), (1, 3), {"scale": "w"}, "^a tensor of shape", w=np.ones((2, 3)))
    refused("diagonal", (2, 3), (3, 2), {"scale": "w"}, w=np.ones(1))


def factors(denominator: Any, X: np.ndarray, source: Place = (3, 2)) -> Any:
    listed = [None, {"numerator": "n", "denominator": denominator}]
    return read("separable", source, (source[0], len(X)), {"factors": listed}, n=X)


def test_factors_are_short_integers_that_fit():
    for X, denominator in ((whole(4, 2), 1), (np.array([[(1 << 48) - 1, 0]]), 3), (np.array([[0, 1 - (1 << 48)]]), 7)):
        found = factors(denominator, X)
        assert found.unit == Fraction(1, denominator)
        assert (found.parts[1].tensor == X).all()
        assert [each.kind for each in found.parts] == ["reshape", "dense"]
    for X, denominator in (
        (whole(4, 2), 0),
        (whole(4, 2), -1),
        (whole(4, 3), 1),
        (whole(4, 1), 1),
        (whole(4), 1),
        (whole(4, 2, 2), 1),
        (np.array([[1 << 48, 0]]), 1),
        (np.array([[0, -(1 << 48)]]), 1),
    ):
        with pytest.raises(Malformed, match=r"^a factor .* on a dimension of size 2"):
            factors(denominator, X)
    with pytest.raises(Malformed, match=r"^a factor: denominator is True"):
        factors(True, whole(4, 2))


def conv(source: Place, shape: Place, kernel: Place, *how: Any, out: int | None = None, into: int | None = None) -> Any:
    stride, padding, dilation, groups, mode = how or ((1,), ((0, 0),), (1,), 1, "zeros")
    weight = whole(shape[0] if out is None else out, source[0] // groups if into is None else into, *kernel) * 1.0
    return read("conv", source, shape, written(stride, padding, dilation, groups, mode), w=weight)


def test_a_convolution_has_one_two_or_three_dimensions_all_alike():
    for n in (1, 2, 3):
        how = ((1,) * n, ((0, 0),) * n, (1,) * n, 1, "zeros")
        assert len(conv((1, *[3] * n), (2, *[2] * n), (2,) * n, *how).tables) == n
        one = (1,) * (n + 1)
        more = ((1,) * (n + 1), ((0, 0),) * (n + 1), one, 1, "zeros")
        for wrong in range(3):
            mixed = tuple(more[k] if k == wrong else how[k] for k in range(5))
            with pytest.raises(Malformed, match=r"^a convolution of .* dimensions in 1 groups, padding mode 'zeros'"):
                conv((1, *[3] * n), (2, *[2] * n), (2,) * n, *mixed)
        for source, shape, kernel in (
            ((1, *[3] * n, 1), (2, *[2] * n), n),
            ((1, *[3] * n), (2, *[2] * n, 1), n),
            ((1, *[3] * n), (2, *[2] * n), n + 1),
        ):
            with pytest.raises(Malformed, match=r"^a convolution of .* dimensions in 1 groups"):
                conv(source, shape, (2,) * kernel, *how)
    for n in (0, 4):
        how = ((1,) * n, ((0, 0),) * n, (1,) * n, 1, "zeros")
        with pytest.raises(Malformed, match=r"^a convolution of .* dimensions in 1 groups"):
            conv((1, *[3] * n), (2, *[2] * n), (2,) * n, *how)


def test_a_convolution_steps_groups_and_pads_in_a_way_that_is_known():
    for groups, mode in ((0, "zeros"), (-1, "zeros"), (1, "constant"), (1, "")):
        with pytest.raises(
            Malformed, match=f"^a convolution of .* dimensions in {groups} groups, padding mode '{mode}'"
        ):
            conv((2, 3), (2, 3), (1,), (1,), ((0, 0),), (1,), groups, mode, into=2)
    for wrong, why in (((0,), "stride"), ((-1,), "stride")):
        with pytest.raises(Malformed, match=f"^{why} is .* not a list of at most 16 integers >= 1"):
            conv((2, 3), (2, 3), (1,), wrong, ((0, 0),), (1,), 1, "zeros")
        with pytest.raises(Malformed, match=r"^dilation is .* not a list of at most 16 integers >= 1"):
            conv((2, 3), (2, 3), (1,), (1,), ((0, 0),), wrong, 1, "zeros")
    with pytest.raises(Malformed, match=r"^padding is .* not a list of at most 16 integers >= 0"):
        conv((2, 3), (2, 2), (1,), (1,), ((0, -1),), (1,), 1, "zeros")


def test_channels_are_those_of_the_input_in_groups_of_one_size():
    how = ((1,), ((0, 0),), (1,))
    assert conv((6, 3), (4, 3), (1,), *how, 2, "zeros").groups == 2
    assert conv((4, 3), (6, 2), (2,), *how, 2, "zeros").out_shape == (6, 2)
    for source, out, into, groups in (
        (6, 3, 3, 2),
        (6, 4, 2, 2),
        (6, 4, 6, 2),
        (6, 5, 3, 2),
        (3, 2, 2, 1),
        (2, 2, 3, 1),
    ):
        with pytest.raises(Malformed, match=f"^a convolution of {source} channels by weights .* in {groups} groups"):
            conv((source, 3), (out, 3), (1,), *how, groups, "zeros", into=into)


@pytest.mark.parametrize(
    ("n", "k", "stride", "before", "after", "dilation"),
    [
        (5, 2, 1, 0, 0, 1),
        (6, 3, 2, 1, 0, 1),
        (6, 3, 2, 0, 1, 1),
        (7, 3, 3, 2, 3, 2),
        (4, 1, 3, 0, 0, 1),
        (5, 3, 4, 0, 4, 3),
    ],
)
def test_a_convolution_has_no_outputs_beyond_its_padding(
    n: int, k: int, stride: int, before: int, after: int, dilation: int
):
    starts = range(-before, n + after, stride)
    natural = sum(start + dilation * (k - 1) < n + after for start in starts)
    how = ((stride,), ((before, after),), (dilation,), 1, "zeros")
    for out in range(1, natural + 1):
        assert conv((1, n), (2, out), (k,), *how).out_shape == (2, out)
    with pytest.raises(Malformed, match=f"^a convolution from {n} to {natural + 1} of {natural} positions, padding"):
        conv((1, n), (2, natural + 1), (k,), *how)


@pytest.mark.parametrize(("mode", "most"), [("circular", 4), ("reflect", 3)])
def test_what_is_padded_is_within_one_image(mode: str, most: int):
    for pad in ((most, 0), (0, most), (most, most)):
        assert conv((1, 4), (1, 4), (1,), (1,), (pad,), (1,), 1, mode).out_shape == (1, 4)
    for pad in ((most + 1, 0), (0, most + 1)):
        with pytest.raises(Malformed, match=rf"^a convolution from 4 to 4 of .* positions, padding .* {mode}"):
            conv((1, 4), (1, 4), (1,), (1,), (pad,), (1,), 1, mode)


def test_padding_and_tables_have_a_limit(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checker, "ELEMENT_LIMIT", 30)
    for mode in ("zeros", "replicate"):
        assert conv((1, 4), (1, 4), (1,), (1,), ((30, 30),), (1,), 1, mode).out_shape == (1, 4)
        for pad in ((31, 0), (0, 31)):
            with pytest.raises(Malformed, match=r"^a convolution from 4 to 4 of 35 positions"):
                conv((1, 4), (1, 4), (1,), (1,), (pad,), (1,), 1, mode)
    monkeypatch.setattr(checker, "INDEX_LIMIT", 6)
    assert conv((1, 4), (1, 3), (2,)).out_shape == (1, 3)
    monkeypatch.setattr(checker, "INDEX_LIMIT", 5)
    with pytest.raises(Malformed, match=r"^a convolution from 4 to 3 of 3 positions"):
        conv((1, 4), (1, 3), (2,))


# ---------------------------------------------------------------------------------------------------- reading files


def test_json_has_unique_keys_and_small_integers_only():
    for text, value in (
        ('{"a": [1, -2, true, null, "x"], "b": {"a": 0}}', {"a": [1, -2, True, None, "x"], "b": {"a": 0}}),
        ("9007199254740992", 1 << 53),
        ("-999999999999999", -999999999999999),
    ):
        assert checker.parse(text) == value
    for text in ("9007199254740993", "-9007199254740993", "90071992547409920", "-90071992547409921", "1" + "0" * 5000):
        with pytest.raises(Malformed, match=r"^the integer .*, over 2.53"):
            checker.parse(f"[{text}]")
    for text in ("0.5", "1e3", "-0.0", "NaN", "Infinity", "-Infinity"):
        with pytest.raises(Malformed, match=r"^the number .*, where numbers are integers or hexadecimal text"):
            checker.parse(f'{{"a": {text}}}')
    with pytest.raises(Malformed, match=r"^a key stands twice among"):
        checker.parse('[{"a": 1, "b": 2, "a": 1}]')


def test_text_has_a_limit(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checker, "TEXT_LIMIT", 4)
    assert checker.parse("[12]") == [12]
    with pytest.raises(Malformed, match=r"^the text is over 4 characters"):
        checker.parse("[123]")


def test_a_record_has_its_fields_and_their_types():
    value = {"a": 1, "b": "x", "c": None}
    assert checker.record(value, "it", a=int, b=str, c=object) is value
    for wrong in ([], None, "ab", [("a", 1)], {}, {"a": 1, "b": "x"}, {**value, "d": 1}, {"a": 1, "b": "x", "d": None}):
        with pytest.raises(Malformed, match=r"^it is .*, not an object with the fields \['a', 'b', 'c'\]"):
            checker.record(wrong, "it", a=int, b=str, c=object)
    for key, other, kind in (
        ("a", True, "int"),
        ("a", 1.0, "int"),
        ("a", "1", "int"),
        ("b", 1, "str"),
        ("b", None, "str"),
    ):
        with pytest.raises(Malformed, match=f"^it: {key} is .*, not a {kind}"):
            checker.record({**value, key: other}, "it", a=int, b=str, c=object)


def test_naturals_are_a_short_list_of_integers():
    assert checker.naturals([0] * 16, "it") == (0,) * 16
    assert checker.naturals([], "it") == ()
    assert checker.naturals([3, 1], "it", 1) == (3, 1)
    for wrong, least in (
        ([0] * 17, 0),
        ((0,), 0),
        ("1", 0),
        (None, 0),
        ([-1], 0),
        ([0], 1),
        ([1, True], 0),
        ([1.0], 0),
        ([[1]], 0),
    ):
        with pytest.raises(Malformed, match=f"^it is .*, not a list of at most 16 integers >= {least}"):
            checker.naturals(wrong, "it", least)


def test_a_shape_is_not_absurd(monkeypatch: pytest.MonkeyPatch):
    assert checker.sizes([1, 1], "it") == (1, 1)
    assert checker.sizes([], "it") == ()
    monkeypatch.setattr(checker, "ELEMENT_LIMIT", 6)
    assert checker.sizes([2, 3], "it") == (2, 3)
    with pytest.raises(Malformed, match=r"^it is .*: over 6 entries"):
        checker.sizes([7], "it")
    with pytest.raises(Malformed, match=r"^it is .*, not a list of at most 16 integers >= 1"):
        checker.sizes([2, 0], "it")


def test_a_number_is_written_in_one_way():
    for value in (0.0, -0.0, 1.5, -5e-324, 1.7976931348623157e308):
        assert checker.number(value.hex(), "it") == Fraction(value)
    wrong = [
        "inf",
        "-inf",
        "nan",
        "1.5",
        "0x1.8p0",
        "0x1.8p+0",
        " 0x1.8000000000000p+0",
        "0x1" + "0" * 60,
        3,
        [],
        None,
        1.5,
    ]
    for text in wrong:
        with pytest.raises(Malformed, match=r"^it is .*, not a finite number in hexadecimal"):
            checker.number(text, "it")


def test_tensors_are_taken_once_and_have_a_type(monkeypatch: pytest.MonkeyPatch):
    for dtype in (np.float32, np.float64):
        remaining = {"a": np.array([0.5, -2.0], dtype=dtype), "b": np.ones(1)}
        found = checker.floats(remaining, "a")
        assert (found.dtype, found.tolist(), [*remaining]) == (np.float64, [0.5, -2.0], ["b"])
        with pytest.raises(Malformed, match=r"^tensor 'a' is missing, empty, too large, or used twice"):
            checker.floats(remaining, "a")
    for array in (np.array([1]), np.array([1.0], dtype=np.float16), np.array([1.0, np.nan]), np.array([[-np.inf]])):
        with pytest.raises(Malformed, match=r"^tensor 'a' of type .* is not a tensor of finite floats"):
            checker.floats({"a": array}, "a")
    index = np.array([3])
    assert checker.integers({"a": index}, "a") is index
    for array in (np.array([1.0]), np.array([1], dtype=np.int32), np.array([True])):
        with pytest.raises(Malformed, match=r"^tensor 'a' is of type .*, not int64"):
            checker.integers({"a": array}, "a")
    for key, value in (
        ("a", [1.0]),
        ("a", None),
        ("a", np.float64(1.0)),
        ("a", np.zeros((2, 0))),
        (("a",), np.ones(1)),
        (3, np.ones(1)),
    ):
        with pytest.raises(Malformed, match="is missing, empty, too large, or used twice"):
            checker.floats({key: value}, key)
    with pytest.raises(Malformed, match="is missing, empty, too large, or used twice"):
        checker.floats({}, ["a"])
    monkeypatch.setattr(checker, "ELEMENT_LIMIT", 3)
    assert checker.floats({"a": np.ones(3)}, "a").tolist() == [1.0] * 3
    with pytest.raises(Malformed, match="is missing, empty, too large, or used twice"):
        checker.floats({"a": np.ones(4)}, "a")


def test_parameters_are_numbers_or_tensors():
    assert checker.values({}, h(0.1)).item() == Fraction(0.1)
    found = checker.values({"t": np.array([[0.1, 2.0]])}, {"tensor": "t"})
    assert found.tolist() == [[Fraction(0.1), 2]]
    for wrong in ({"tensor": "t", "more": 1}, {}, {"tensor": 3}):
        with pytest.raises(Malformed, match=r"^a parameter"):
            checker.values({"t": np.ones(1)}, wrong)
    with pytest.raises(Malformed, match=r"^a parameter is .*, not a finite number"):
        checker.values({}, 0.5)


def test_an_array_broadcasts_to_a_shape_and_not_the_other_way():
    array = np.ones((2, 1))
    assert checker.broadcasts(array, (3, 2, 4)) is array
    with pytest.raises(Malformed, match=r"^a tensor of shape \(2, 1\) where \(1, 4\) is needed"):
        checker.broadcasts(array, (1, 4))


def test_the_digest_is_of_sorted_json_and_little_endian_bytes():
    arrays = {"b": np.array([[1.5, -2.0, 3.0]]).T[::2], "a": np.array([7, -1])}
    told = {
        "a": {"dtype": "int64", "sha256": hashlib.sha256(struct.pack("<2q", 7, -1)).hexdigest(), "shape": [2]},
        "b": {"dtype": "float64", "sha256": hashlib.sha256(struct.pack("<2d", 1.5, 3.0)).hexdigest(), "shape": [2, 1]},
    }
    text = json.dumps({"graph": {"y": 1, "z": [2]}, "tensors": told}, separators=(",", ":"))
    expected = "sha256:" + hashlib.sha256(text.encode()).hexdigest()
    assert checker.digest({"z": [2], "y": 1}, arrays) == expected
    assert checker.digest({"y": 1, "z": [2]}, dict(sorted(arrays.items()))) == expected


def written_file(path: Path, header: Any, body: bytes, length: int | None = None) -> str:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + body)
    return str(path)


def tensor(dtype: str, shape: Sequence[int], start: int, stop: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


META = {"__metadata__": {"lipcert": '{"nodes": []}'}}
BODY = struct.pack("<3f", 1, 2, 3) + struct.pack("<2d", 4, -5) + struct.pack("<2q", 6, -(1 << 60))
HEADER = {
    **META,
    "b": tensor("F64", (1, 2), 12, 28),
    "c": tensor("F32", (3,), 0, 12),
    "a": tensor("I64", (2, 1), 28, 44),
}


def test_a_file_is_read_back_to_back_in_the_order_of_its_bytes(tmp_path: Path):
    document, arrays = checker.read_safetensors(written_file(tmp_path / "w", HEADER, BODY))
    assert document == {"nodes": []}
    assert {key: (array.dtype.str, array.tolist()) for key, array in arrays.items()} == {
        "a": ("<i8", [[6], [-(1 << 60)]]),
        "b": ("<f8", [[4.0, -5.0]]),
        "c": ("<f4", [1.0, 2.0, 3.0]),
    }
    assert checker.read_safetensors(written_file(tmp_path / "w", META, b"")) == ({"nodes": []}, {})


def test_a_file_that_is_not_its_header_is_malformed(tmp_path: Path):
    path = tmp_path / "w"
    for header, body, why in [
        ({**HEADER, "a": tensor("I64", (2, 1), 28, 45)}, BODY, "does not begin at 28 and fill its span"),
        ({**HEADER, "a": tensor("I64", (2, 1), 29, 45)}, BODY + b"0", "does not begin at 28 and fill its span"),
        ({**HEADER, "a": tensor("I64", (3, 1), 28, 44)}, BODY, "does not begin at 28 and fill its span"),
        ({**HEADER, "a": tensor("F32", (2, 1), 28, 44)}, BODY, "does not begin at 28 and fill its span"),
        ({**HEADER, "a": tensor("I32", (4, 1), 28, 44)}, BODY, "does not begin at 28 and fill its span"),
        ({**HEADER, "a": tensor("f64", (2, 1), 28, 44)}, BODY, "does not begin at 28 and fill its span"),
        ({**HEADER, "c": tensor("F32", (3,), 0, 0)}, BODY, "does not begin at 0 and fill its span"),
        ({**HEADER, "d": tensor("F32", (3,), 0, 12)}, BODY, "does not begin at 12 and fill its span"),
        ({key: HEADER[key] for key in HEADER if key != "c"}, BODY, "does not begin at 0 and fill its span"),
        (HEADER, BODY + b"0", "^tensors of 44 bytes, data of 45"),
        (META, b"0", "^tensors of 0 bytes, data of 1"),
        ({key: HEADER[key] for key in HEADER if key != "a"}, BODY, "^tensors of 28 bytes, data of 44"),
        ({key: HEADER[key] for key in HEADER if key != "__metadata__"}, BODY, "^the file carries no graph"),
        ([META], b"", "^the file carries no graph"),
        (["__metadata__"], b"", "^the file carries no graph"),
        ({**HEADER, "__metadata__": {}}, BODY, "^the metadata is"),
        ({**HEADER, "a": {"dtype": "F32"}}, BODY, "^a is"),
    ]:
        with pytest.raises(Malformed, match=why):
            checker.read_safetensors(written_file(path, header, body))
    short = {key: HEADER[key] for key in ("__metadata__", "c")}
    with pytest.raises((Malformed, ValueError)):
        checker.read_safetensors(written_file(path, short, BODY[:11]))


def test_a_header_ends_within_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, size = tmp_path / "w", len(json.dumps(META))
    for length, total in ((size + 1, size + 8), (size + 8, size + 8), (1 << 62, size + 8)):
        with pytest.raises(Malformed, match=f"^a header of {length} bytes in a file of {total}"):
            checker.read_safetensors(written_file(path, META, b"", length))
    for content in (b"", b"\0", b"\0" * 7):
        path.write_bytes(content)
        with pytest.raises(Malformed, match=f"^a header of 0 bytes in a file of {len(content)}"):
            checker.read_safetensors(str(path))
    written_file(path, META, b"")
    for name, most in (("HEADER_LIMIT", size), ("FILE_LIMIT", size + 8)):
        with monkeypatch.context() as patch:
            patch.setattr(checker, name, most)
            checker.read_safetensors(str(path))
            patch.setattr(checker, name, most - 1)
            with pytest.raises(Malformed, match=r"^a header of|^the file is over"):
                checker.read_safetensors(str(path))


def test_the_file_is_a_script_of_two_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    script = str(Path(str(checker.__file__)))
    for arguments, said in ((["a", "b"], "MALFORMED: FileNotFoundError"), (["a"], "usage: "), (["a"] * 3, "usage: ")):
        monkeypatch.setattr("sys.argv", [script, *(str(tmp_path / name) for name in arguments)])
        with pytest.raises(SystemExit) as status:
            runpy.run_path(script, run_name="__main__")
        assert status.value.code == 2
        assert capsys.readouterr().out.startswith(said)
