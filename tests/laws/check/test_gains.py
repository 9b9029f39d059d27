"""Proving a gain: exact maxima, 2-norms at both sides of the boundary, semidefinite matrices."""

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from tests.laws.check.built import (
    HALF,
    MAPS,
    NEAR,
    SELECTION,
    THIRD,
    Map,
    Reject,
    TooLarge,
    affine,
    checker,
    conv,
    dense,
    diagonal,
    drawn,
    ints,
    network,
)
from tests.semidefinite import semidefinite

# --------------------------------------------------------------------------------------------------------------- maxima


def squared(M: np.ndarray, norms: str) -> int:
    """The square of a norm of a matrix of integers."""
    A = abs(M.astype(object))
    if norms == "l1->l1":
        return int(max(A.sum(0))) ** 2
    if norms == "linf->linf":
        return int(max(A.sum(1))) ** 2
    return int(A.max()) ** 2 if norms == "l1->linf" else int(max((A * A).sum(1)))


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("norms", [pair for pair in checker.PAIRS if pair != "l2->l2"])
def test_a_maximum_over_rows_or_columns_is_that_of_the_matrix(name: str, norms: str):
    linear = MAPS[name]
    unit = Fraction(1, 2**70) if name == "large numbers" else linear.unit
    if name == "adjoint":
        linear = Map("adjoint", linear.in_shape, linear.out_shape, None, linear.parts[0].unit, parts=linear.parts)
    assert checker.measure(linear, norms) == squared(checker.matrix(linear), norms) * unit**2


@pytest.mark.parametrize("name", ["scale", "one scale", "selection", "selection of nothing", "reshape"])
def test_the_norm_of_maps_with_one_entry_in_a_row_is_that_of_the_longest_column(name: str):
    M = checker.matrix(MAPS[name]).astype(object)
    assert checker.measure(MAPS[name], "l2->l2") == max((M * M).sum(0)) * MAPS[name].unit ** 2


def test_a_row_too_long_for_one_piece_is_measured():
    X = np.ones((1, (1 << 20) + 1), dtype=np.int64)
    assert checker.measure(dense(X), "linf->linf") == ((1 << 20) + 1) ** 2


def test_sums_over_taps_have_a_limit_of_their_own(monkeypatch: pytest.MonkeyPatch):
    linear = conv(drawn(3, 4, 3, 3), (5,), [(1, 1, 1)])  # rows in the middle hold those at the ends
    assert checker.measure(linear, "linf->linf") > 0
    monkeypatch.setattr(checker, "PATTERN_LIMIT", 4 * 3 * 3)
    assert checker.measure(linear, "linf->linf") > 0
    monkeypatch.setattr(checker, "PATTERN_LIMIT", 4 * 3 * 3 - 1)
    with pytest.raises(TooLarge, match="kinds of rows of 36 weights"):
        checker.measure(linear, "linf->linf")


def test_of_patterns_the_largest_are_kept():
    table = ints([[-1, 0], [0, 1], [1, 1], [1, -1]])
    assert sorted(checker.patterns(table, "rows")) == [((0,), (1,)), ((0, 1),)]
    assert sorted(checker.patterns(table, "columns")) == [((0,), (0, 1), (1,)), ((0,), (1,))][:1]
    assert checker.patterns(ints([[-1, -1]]), "rows") == []


def test_there_are_at_most_512_patterns(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checker, "Counter", lambda row: math.nan)  # whether one holds another is not the question here
    bits = np.arange(513)[:, None] >> np.arange(11) & 1  # the last tap reads the first of two, so no two are alike
    table = 2 * np.arange(513)[:, None] + bits
    assert len(checker.patterns(table[:512], "rows")) == 512
    with pytest.raises(TooLarge, match="513 kinds of rows"):
        checker.patterns(table, "rows")


CHAINS: dict[str, tuple[list[Any], list[str]]] = {
    "reshape": ([Map("reshape", (6,), (2, 3))], ["reshape"]),
    "reshapes": ([Map("reshape", (6,), (2, 3)), Map("reshape", (2, 3), (3, 2))], ["reshape"]),
    "dense and dense": ([dense(drawn(1, 3, 2), HALF), dense(drawn(2, 4, 3), THIRD)], ["dense"]),
    "dense between reshapes": (
        [Map("reshape", (2, 1), (2,)), dense(drawn(1, 3, 2)), Map("reshape", (3,), (3, 1))],
        ["dense"],
    ),
    "dense by rows, then dense": (
        [Map("dense", (2, 3), (2, 2), drawn(1, 2, 3)), Map("reshape", (2, 2), (4,)), dense(drawn(2, 3, 4))],
        ["dense", "dense"],
    ),
    "dense by rows twice": (
        [Map("dense", (2, 3), (2, 2), drawn(1, 2, 3)), Map("dense", (2, 2), (2, 4), drawn(2, 4, 2))],
        ["dense"],
    ),
    "selection, dense, dense": ([SELECTION, dense(drawn(1, 3, 8)), dense(drawn(2, 2, 3))], ["selection", "dense"]),
    "dense and scale": ([dense(drawn(1, 3, 2)), diagonal([2, -1, 3], (3,), HALF)], ["dense", "diagonal"]),
    "scale and dense": ([diagonal([2, -1], (2,), HALF), dense(drawn(1, 3, 2))], ["diagonal", "dense"]),
    "convolution and channels": (
        [conv(drawn(1, 2, 3, 3), (5,), [(1, 1, 1)], unit=HALF), diagonal([[2], [-3]], (2, 5), THIRD)],
        ["conv"],
    ),
    "groups and channels": (
        [
            conv(drawn(1, 4, 1, 2, 2), (3, 3), [(1, 1, 1), (1, 0, 1)], groups=2),
            diagonal([[[2]], [[-3]], [[1]], [[5]]], (4, 3, 3)),
        ],
        ["conv"],
    ),
    "a convolution, channels, channels": (
        [
            *(dense(drawn(1, 3, 2)), Map("reshape", (3,), (1, 3)), conv(drawn(2, 2, 1, 2), (3,), [(1, 1, 1)])),
            *(diagonal([[2], [-3]], (2, 3)), diagonal([[1], [7]], (2, 3))),
        ],
        ["dense", "conv"],
    ),
    "convolution and one scale": (
        [conv(drawn(1, 2, 3, 3), (5,), [(1, 1, 1)]), diagonal(-2, (2, 5), THIRD)],
        ["conv"],
    ),
    "convolution and positions": (
        [conv(drawn(1, 2, 1, 2, 2), (2, 2), [(1, 1, 1)] * 2), diagonal([[[2], [-3]]], (2, 2, 2))],
        ["conv", "diagonal"],
    ),
    "convolution and other positions": (
        [conv(drawn(1, 2, 1, 2), (2,), [(1, 1, 1)]), diagonal([[2, -3]], (2, 2))],
        ["conv", "diagonal"],
    ),
    "convolution and channels of another shape": (
        [
            conv(drawn(1, 2, 1, 2), (4,), [(1, 1, 1)]),
            Map("reshape", (2, 4), (4, 2)),
            diagonal([[1], [2], [3], [4]], (4, 2)),
        ],
        ["conv", "diagonal"],
    ),
}


@pytest.mark.parametrize("name", CHAINS)
def test_fewer_maps_are_the_same_composition(name: str):
    maps, kinds = CHAINS[name]
    found = checker.simplified(maps)
    assert [linear.kind for linear in found] == kinds

    def total(chain: Sequence[Any]) -> np.ndarray:
        M = np.eye(math.prod(chain[0].in_shape), dtype=object)
        for linear in chain:
            M = linear.unit * (checker.matrix(linear).astype(object) @ M)
        return M

    assert (total(found) == total(maps)).all()


# ---------------------------------------------------------------------------------------------------------------- gains


def proves(maps: Sequence[Any], norms: str, value: Fraction) -> bool:
    names = [f"n{k}" for k in range(len(maps))]
    nodes = [affine(name, "x", linear) for name, linear in zip(names, maps, strict=True)]
    try:
        assert checker.prove_gain(network(*nodes), tuple(names), norms, value) == value
    except Reject as reason:
        return "is not an upper bound" not in str(reason)
    return True


SCALES = [diagonal([2, -3], (2,)), Map("selection", (2,), (3,), ints([1, 1, 0])), dense([[1, 2, 2]])]


@pytest.mark.parametrize(
    ("maps", "norms", "norm"),
    [
        (SCALES[:1], "l2->l2", Fraction(3)),
        (SCALES[:1], "l1->linf", Fraction(3)),
        (SCALES[1:2], "l1->l1", Fraction(2)),
        (SCALES[:2], "linf->linf", Fraction(3)),
        (SCALES, "linf->linf", Fraction(13)),
        (SCALES, "l1->l1", Fraction(9)),
        ([Map("reshape", (2,), (1, 2))], "l2->l2", Fraction(1)),
        ([Map("reshape", (2,), (1, 2)), Map("reshape", (1, 2), (2,))], "l2->linf", Fraction(1)),
        ([dense([[3, 4]], HALF)], "l2->linf", Fraction(5, 2)),
        ([dense([[3, 4]], HALF)], "l2->l2", Fraction(5, 2)),
        ([dense([[3], [4]], HALF), dense([[1, 0], [0, 1], [0, 0]])], "l2->l2", Fraction(5, 2)),
        ([diagonal([1], (2,), Fraction(2) ** 1500)], "linf->linf", Fraction(2) ** 1500),
        ([dense([[0, 0]])], "l2->l2", Fraction(0)),
    ],
    ids=range(13),
)
def test_a_gain_is_proven_from_the_norm_on(maps: Sequence[Any], norms: str, norm: Fraction):
    assert proves(maps, norms, norm)
    assert proves(maps, norms, norm + HALF)
    if norm:
        assert not proves(maps, norms, norm * (1 - NEAR))
        assert not proves(maps, norms, norm * (1 - Fraction(1, 2**90)))


def test_a_gain_that_is_refused_is_told_with_the_norm():
    with pytest.raises(Reject, match=r"gain of a \(l2->l2\): 4.0 is not an upper bound: the norm is about 5.0"):
        checker.prove_gain(network(affine("a", "x", dense([[3, 4]]))), ("a",), "l2->l2", Fraction(4))
    with pytest.raises(Reject, match=r"gain of a \(linf->linf\): 6.5 is not .* is about 7.0"):
        checker.prove_gain(network(affine("a", "x", dense([[3, 4]]))), ("a",), "linf->linf", Fraction(13, 2))


def test_a_gain_that_is_too_large_is_sent_to_the_other_check(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checker, "SIDE_LIMIT", 1)
    with pytest.raises(TooLarge, match=r"gain of a \(l2->l2\): too large for exact arithmetic .*--float64"):
        checker.prove_gain(network(affine("a", "x", dense([[3, 4], [5, 6]]))), ("a",), "l2->l2", Fraction(99))


def test_a_long_matrix_is_too_large_even_if_its_square_is_not(monkeypatch: pytest.MonkeyPatch):
    X = np.ones((50, 2), dtype=np.int64)
    monkeypatch.setattr(checker, "ENTRY_LIMIT", 100)
    assert checker.norm2_at_most(X, Fraction(1), Fraction(10))
    monkeypatch.setattr(checker, "ENTRY_LIMIT", 99)
    for Y in (X, X.T):
        with pytest.raises(TooLarge, match=r"50 x 2 entries"):
            checker.norm2_at_most(Y, Fraction(1), Fraction(10))


def lie(monkeypatch: pytest.MonkeyPatch, by: Fraction) -> None:
    plain = checker.norm2_hint
    monkeypatch.setattr(checker, "norm2_hint", lambda X, unit: plain(X, unit) * by)


FACTORS = Map("separable", (2, 1), (2, 2), None, parts=(dense([[3, 0], [4, 5]], THIRD), dense([[3], [4]], HALF)))


@pytest.mark.parametrize("by", [Fraction(9, 10), Fraction(1), Fraction(6, 5)], ids=["low", "honest", "high"])
def test_a_product_of_factors_is_proven_closely_whatever_the_hints(by: Fraction, monkeypatch: pytest.MonkeyPatch):
    lie(monkeypatch, by)
    norm = checker.sqrt_up(Fraction(45)) * Fraction(1, 3) * Fraction(5, 2)  # [[3, 0], [4, 5]] has the norm 3 sqrt(5)
    assert checker.prove_norm2(FACTORS, norm * (1 + Fraction(1, 10**9)))[0]
    assert not checker.prove_norm2(FACTORS, norm * (1 - Fraction(1, 10**9)))[0]
    for value in (norm * by**2, norm * by**2 * Fraction(19, 10), norm * HALF, norm * by**2 * HALF, norm / 8):
        holds, about = checker.prove_norm2(FACTORS, value)
        assert holds == (value >= norm * (1 + Fraction(1, 10**9)))
        assert abs(about / norm - by**2) < NEAR


def test_factors_that_do_nothing_or_send_all_to_zero():
    still = Map("separable", (2, 3), (2, 3), None, parts=(Map("reshape", (2,), (2,)), Map("reshape", (3,), (3,))))
    assert checker.prove_norm2(still, Fraction(1)) == (True, 1)
    assert checker.prove_norm2(still, 1 - NEAR) == (False, 1)
    one = Map("separable", (2, 1), (2, 2), None, parts=(Map("reshape", (2,), (2,)), dense([[3], [4]], HALF)))
    assert checker.prove_norm2(one, Fraction(5, 2) * (1 + NEAR))[0]
    assert not checker.prove_norm2(one, Fraction(5, 2) * (1 - NEAR))[0]
    zero = Map("separable", (2, 1), (2, 2), None, parts=(dense([[0, 0], [0, 0]]), dense([[3], [4]])))
    assert checker.prove_norm2(zero, Fraction(0)) == (True, 0)


def test_every_block_has_to_be_below():
    for first, second in ((3, 4), (4, 3)):
        linear = conv(ints([[[first]], [[second]]]), (2,), [(1, 0, 1)], groups=2, unit=HALF)
        assert checker.prove_norm2(linear, Fraction(2)) == (True, 2)
        holds, about = checker.prove_norm2(linear, 2 - NEAR)
        assert not holds
        assert abs(about - 2) < NEAR


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (3, 2), (1, 4), (4, 1)], ids=str)
def test_a_2_norm_is_proven_if_it_is_true_and_hardly_otherwise(shape: tuple[int, int]):
    for seed, bits in itertools.product(range(3), (2, 20, 45, 47, 70)):
        X = drawn(seed, *shape, most=9).astype(object) * (1 << bits) + drawn(seed + 9, *shape, most=7)
        G = X.T @ X if shape[0] >= shape[1] else X @ X.T
        about = Fraction(math.sqrt(float(np.linalg.eigvalsh(G.astype(float))[-1])))
        for unit, relative in itertools.product((Fraction(1), THIRD), (-40, -44, -50, -60)):
            for sign in (-1, 1):
                value = about * (1 + sign * Fraction(2) ** relative)
                holds = checker.norm2_at_most(X, unit, value * unit)
                true = semidefinite(math.floor(value * value * 4**20) * np.eye(len(G), dtype=object) - G * 4**20)
                assert true or not holds
                assert holds or not (sign == 1 and relative == -40)


@pytest.mark.parametrize("k", range(-16, 17))
def test_what_is_cut_off_is_added(k: int):
    X = np.array([[(1 << 50) + k]], dtype=object)  # of 51 bits 46 are kept
    exact = Fraction((1 << 50) + k)
    assert not checker.norm2_at_most(X, Fraction(1), exact - Fraction(1, 2**30))
    assert checker.norm2_at_most(X, Fraction(1), exact + 33)
    assert not checker.norm2_at_most(X, Fraction(1), -exact - 33)


def test_norms_that_are_known_exactly():
    one, zero = ints([[1]]), ints([[0, 0]])
    assert checker.norm2_at_most(one, HALF, HALF)
    assert not checker.norm2_at_most(one, HALF, HALF - Fraction(1, 2**80))
    assert not checker.norm2_at_most(one, Fraction(1), Fraction(0))
    assert checker.norm2_at_most(zero, HALF, Fraction(0))
    assert checker.norm2_at_most(zero, HALF, Fraction(1, 4))
    assert not checker.norm2_at_most(zero, HALF, Fraction(-1, 4))


# ------------------------------------------------------------------------------------------------ semidefinite matrices


def test_rows_dominate_from_equality_on():
    E = np.array([[5, -2, 3], [-2, 4, 2], [3, 2, 5]], dtype=object)
    assert checker.dominant(E)
    for i in range(3):
        less = E.copy()
        less[i, i] -= 1
        assert not checker.dominant(less)
    assert checker.dominant(E + 6 * np.eye(3, dtype=int), 2)
    assert not checker.dominant(E + 6 * np.eye(3, dtype=int), Fraction(21, 10))
    spare = np.array([[1, 2, 0], [2, 0, 3], [0, 3, 4]], dtype=object)
    assert checker.dominant(E + np.diag([3, 5, 7]), spare)
    assert not checker.dominant(E + np.diag([3, 5, 6]), spare)
    assert not checker.dominant(np.array([[1, 2], [0, 3]], dtype=object))  # rows, not columns
    assert checker.dominant(np.array([[2, 1], [0, 3]], dtype=object))


@pytest.mark.parametrize("exponent", [20, 100, 150])
def test_semidefinite_matrices_are_told_from_others(exponent: int):
    level, one = 1 << exponent, np.array(np.eye(4, dtype=int), dtype=object)
    for seed in range(8):
        V = drawn(seed, 4, 4, most=2).astype(object)
        H = V @ V.T * level // 40
        strict = H + level // 64 * one
        assert checker.semidefinite(strict, level)
        for less in (1, 10, 40):
            other = strict - less * level // 128 * one
            assert semidefinite(other.copy()) or not checker.semidefinite(other, level)
        if exponent > 20:
            room = level // 64 // 10  # of which every row needs four, and the factor halves what there is
            assert checker.semidefinite(strict, level, room)
            off = strict - 11 * room * np.ones((4, 4), dtype=object)
            assert semidefinite(off.copy()) or not checker.semidefinite(strict, level, 11 * room)


def test_without_a_factor_or_a_level_only_dominance_counts(monkeypatch: pytest.MonkeyPatch):
    assert not checker.semidefinite(np.array([[-1]], dtype=object), 0)
    assert checker.semidefinite(np.array([[0]], dtype=object), 0)
    assert not checker.semidefinite(np.array([[-1]], dtype=object), 1)
    level = 1 << 100
    H = np.array([[5, 4, 4], [4, 5, 4], [4, 4, 5]], dtype=object) * (level // 4)
    assert checker.semidefinite(H, level)
    assert checker.semidefinite(np.array([[5, 4, 4], [4, 5, 4], [4, 4, 5]], dtype=object) * 100, 1 * 400)

    def fails(*_: Any) -> Any:
        raise np.linalg.LinAlgError

    monkeypatch.setattr(np.linalg, "cholesky", fails)
    assert not checker.semidefinite(H, level)
