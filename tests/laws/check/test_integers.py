"""Digits, exact products and roundings of integers, and floats as integers."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from tests.laws.check.built import TooLarge, checker, whole


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
