"""Linear functions of entries in ranges: what is added up is never below the largest value, and rounding is outward."""

import importlib
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

checker: Any = importlib.import_module("lipcert.check_domain")
EIGHTH = Fraction(1, 8)
# Ends that no power of two divides, beside large ones that set the unit.
ENDS = [
    ([Fraction(-1, 3), Fraction(-(2**20))], [Fraction(1, 3), Fraction(2**20)]),
    ([Fraction(1, 7), Fraction(-5, 3)], [Fraction(2, 7), Fraction(2**40)]),
    ([Fraction(-2, 7), Fraction(-(2**40))], [Fraction(-1, 7), Fraction(5, 3)]),
    ([Fraction(1, 3), Fraction(1, 3)], [Fraction(1, 3), Fraction(1, 3)]),
]
ROWS = [[1, 0], [-1, 0], [0, 1], [0, -1], [3, -5], [-3, 5], [-7, -2]]


def ranged(low: list[Fraction], high: list[Fraction]) -> Any:
    return checker.Range(np.array(low, dtype=object), np.array(high, dtype=object))


def largest(row: list[int], low: list[Fraction], high: list[Fraction]) -> Fraction:
    return sum((a * (h if a > 0 else lo) for a, lo, h in zip(row, low, high, strict=True)), Fraction(0))


@pytest.mark.parametrize(("low", "high"), ENDS, ids=["both", "positive", "negative", "a point"])
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_the_most_is_the_largest_value_rounded_up(row: list[int], low: list[Fraction], high: list[Fraction]):
    sums = checker.Sums({}, np.array([Fraction(5)], dtype=object))
    sums.most(np.array([row]), EIGHTH, ranged(low, high))
    exact = 5 + EIGHTH * largest(row, low, high)
    unit = checker._unit(np.array([*low, *high], dtype=object))
    assert exact <= sums.numbers[0] <= exact + EIGHTH * unit * sum(map(abs, row))
    assert sums.numbers[0] != exact or all((end / unit).denominator == 1 for a, end in used(row, low, high) if a)


def used(row: list[int], low: list[Fraction], high: list[Fraction]) -> list[tuple[int, Fraction]]:
    return [(a, h if a > 0 else lo) for a, lo, h in zip(row, low, high, strict=True)]


def test_terms_of_one_node_add_up_over_a_common_unit():
    sums = checker.Sums({"a": ranged([Fraction(0)] * 2, [Fraction(1)] * 2)}, np.array([Fraction(0)] * 1, dtype=object))
    assert sums.give("a", np.array([[3, -2]]), Fraction(1, 6))
    assert sums.give("a", np.array([[5, 7]]), Fraction(1, 4))
    A, unit = sums.terms["a"]
    assert [unit * int(entry) for entry in A[0]] == [Fraction(3, 6) + Fraction(5, 4), Fraction(-2, 6) + Fraction(7, 4)]
    assert sums.numbers[0] == 0


def test_coefficients_that_are_cut_lose_nothing_of_an_upper_bound():
    wide = (1 << (checker.KEPT + 9)) + 3
    low, high = [Fraction(-2), Fraction(-3)], [Fraction(1, 3), Fraction(5)]
    sums = checker.Sums({"a": ranged(low, high)}, np.array([Fraction(0)], dtype=object))
    assert sums.give("a", np.array([[wide, -wide]], dtype=object), Fraction(1))
    A, unit = sums.terms["a"]
    assert max(abs(int(entry)) for entry in A[0]) < 1 << (checker.KEPT + 1)
    for x in ((low[0], low[1]), (low[0], high[1]), (high[0], low[1]), (high[0], high[1])):
        kept = sum((unit * int(a) * value for a, value in zip(A[0], x, strict=True)), sums.numbers[0])
        assert wide * (x[0] - x[1]) <= kept <= wide * (x[0] - x[1]) + 2 * unit * 16


def test_of_a_node_of_which_nothing_is_known_nothing_is_added():
    sums = checker.Sums({"a": None}, np.array([Fraction(1)], dtype=object))
    assert not sums.give("a", np.array([[1]]), Fraction(1))
    assert sums.terms == {}
    assert sums.numbers[0] == 1
