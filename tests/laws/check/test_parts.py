"""Proving a part: the form of the theorem, and sums of terms at both sides of the boundary."""

import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from tests.laws.check.built import (
    HALF,
    NEAR,
    THIRD,
    Malformed,
    Node,
    Reject,
    TooLarge,
    activation,
    affine,
    checker,
    dense,
    drawn,
    network,
    scaled,
    term,
)
from tests.laws.check.signals import added, matrix_of
from tests.semidefinite import semidefinite

# --------------------------------------------------------------------------------------------------- the form of a part


RELU = network(
    affine("a", "x", dense(drawn(1, 4, 3), HALF)),
    activation("r", "a", (4,), [0, -HALF, 0, THIRD], [1, 1, 2, 1]),
    affine("b", "r", dense(drawn(2, 2, 4), THIRD)),
    shape=(3,),
)
LAMBDAS = [Fraction(3), HALF, Fraction(0), Fraction(2, 7)]


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    seen: list[Any] = []
    monkeypatch.setattr(checker, "_semidefinite_sum", lambda terms, widths: bool(seen.append((terms, widths))) or True)
    return seen


def expected_form(x: np.ndarray, before: np.ndarray, outputs: list[int]) -> np.ndarray:
    """What stands before the input, the constraint of the neurons, and minus the outputs that are read."""
    A, B = (RELU[name].map.unit * RELU[name].map.tensor.astype(object) for name in "ab")
    n = x.shape[1]
    V = np.concatenate([A @ x, np.zeros((4, 4), dtype=object)], 1)
    U = np.concatenate([np.zeros((4, n), dtype=object), np.eye(4, dtype=object)], 1)
    Y = (B @ U)[outputs]
    low, high = (np.array(end, dtype=object)[:, None] for end in RELU["r"].ends)
    L = np.diag(np.array(LAMBDAS, dtype=object))
    a, b = U - low * V, U - high * V
    H = a.T @ L @ b + b.T @ L @ a - Y.T @ Y
    H[:n, :n] += before
    return H


def test_the_form_of_a_part_is_that_of_the_theorem(monkeypatch: pytest.MonkeyPatch):
    seen = recorded(monkeypatch)
    value, multipliers = Fraction(5, 2), {"r": LAMBDAS}
    assert checker.prove_part(RELU, "x", "b", value, multipliers) == value
    one = np.eye(3, dtype=object)
    rows: list[tuple[Any, np.ndarray, np.ndarray, list[int]]] = [(None, one, value**2 * one, [0, 1])]
    tau = [Fraction(1), Fraction(2), Fraction(0)]
    for k in range(2):
        rows.append((("linf->linf", k, tau), one, np.diag(np.array(tau, dtype=object)), [k]))
        rows.append((("l2->linf", k, []), one, value**2 * one, [k]))
    for k in range(6):
        rows.append((("l1->linf", k, []), one[:, [k % 3]], np.array([[value**2]]), [k // 3]))
    for row, x, before, outputs in rows:
        seen.clear()
        checker.prove_part(RELU, "x", "b", value, multipliers, (), row)
        ((terms, widths),) = seen
        assert widths == {"x": x.shape[1], "r": 4}
        H, off = added(terms, widths)
        assert (H == expected_form(x, before, outputs)).all()
        assert not off.any()


def test_the_form_of_a_part_that_sorts_and_scales(monkeypatch: pytest.MonkeyPatch):
    seen = recorded(monkeypatch)
    node = Node("opaque", "s", (6,), ("r",), members=3)
    near = 1 - Fraction(1, 2**41)
    net = network(activation("r", "x", (6,), 2 * near, 2), node, affine("b", "s", dense(drawn(2, 2, 6))), shape=(6,))
    value, lambdas = Fraction(7, 2), [Fraction(2), THIRD]
    checker.prove_part(net, "x", "b", value, {"s": lambdas})
    ((terms, widths),) = seen
    assert widths == {"x": 6, "s": 4}
    H, off = added(terms, widths)
    v = checker._scaled(net["r"], checker._variable("x", 6))
    u, own = checker._grouped(node, v, lambdas, "")
    Y = net["b"].map.tensor.astype(object) @ matrix_of(u, widths)
    form = added(own, widths)[0] - Y.T @ Y
    form[:6, :6] += value**2 * np.eye(6, dtype=object)
    assert (H == form).all()
    assert off.any()
    assert (abs(off) <= Fraction(1, 2**30)).all()


@pytest.mark.parametrize("lower", [0, -1])
def test_a_part_is_proven_just_above_what_it_is(lower: int):
    net = network(affine("a", "x", dense([[3, 0], [0, 1]])), activation("r", "a", (2,), lower, 1), scaled("b", "r"))
    found = Fraction(3) * (1 + NEAR)
    least = HALF * (1 + NEAR / 4) if lower else Fraction(1)  # before u^2 stands 2 least - 1, before x^2 9 - 9 (2 least)
    lambdas, first = {"r": [least, least]}, {"r": [least, Fraction(0)]}
    assert checker.prove_part(net, "x", "b", found, lambdas) == found
    for row in (("l2->linf", 0, []), ("l1->linf", 0, []), ("linf->linf", 0, [found**2, Fraction(0)])):
        assert checker.prove_part(net, "x", "b", found, first, (), row) == found
    assert checker.prove_part(net, "x", "b", found, lambdas, (), ("l1->linf", 2, [])) == found
    with pytest.raises(Reject, match=r"the part from x to b: the multipliers do not prove the bound 2.99"):
        checker.prove_part(net, "x", "b", Fraction(3) * (1 - NEAR), lambdas)
    with pytest.raises(Reject, match=r"the part from x to b, row 0 in l2->linf: the multipliers do not prove"):
        checker.prove_part(net, "x", "b", Fraction(3) * (1 - NEAR), lambdas, (), ("l2->linf", 0, []))


def test_a_part_has_multipliers_of_the_nodes_that_bend(monkeypatch: pytest.MonkeyPatch):
    recorded(monkeypatch)
    for wrong in ({}, {"r": LAMBDAS, "a": LAMBDAS}, {"b": LAMBDAS}):
        with pytest.raises(Malformed, match=r"the part from x to b has multipliers of .*, not of its activations"):
            checker.prove_part(RELU, "x", "b", Fraction(1), wrong)
    straight = {**RELU, "r": activation("r", "a", (4,), 2, 2)}
    assert checker.prove_part(straight, "x", "b", Fraction(1), {}) == 1
    with pytest.raises(Malformed, match="not of its activations"):
        checker.prove_part(straight, "x", "b", Fraction(1), {"r": LAMBDAS})
    sorts = {**RELU, "r": Node("opaque", "r", (4,), ("a",), members=2)}
    assert checker.prove_part(sorts, "x", "b", Fraction(1), {"r": LAMBDAS[:2]}) == 1
    with pytest.raises(Malformed, match="not of its activations"):
        checker.prove_part(sorts, "x", "b", Fraction(1), {})


def test_a_part_that_is_too_large_is_sent_to_the_other_check(monkeypatch: pytest.MonkeyPatch):
    recorded(monkeypatch)
    monkeypatch.setattr(checker, "ENTRY_LIMIT", 7 * 7)
    checker.prove_part(RELU, "x", "b", Fraction(1), {"r": LAMBDAS})
    monkeypatch.setattr(checker, "ENTRY_LIMIT", 7 * 7 - 1)
    with pytest.raises(TooLarge, match=r"the part from x to b: too large .*7 x 7 entries.*--float64"):
        checker.prove_part(RELU, "x", "b", Fraction(1), {"r": LAMBDAS})


def test_what_is_measured_of_one_row():
    def measured(row: Any, value: Fraction = Fraction(3)) -> tuple[Any, Any, Any]:
        one, tau, read = checker._measured(row, value, 3, 2, "here")
        return one.tolist(), tau, read

    eye = np.eye(3).tolist()
    tau = [Fraction(4), Fraction(5), Fraction(0)]
    assert measured(None) == (eye, [], [-1, -1])
    assert measured(("l2->linf", 1, [])) == (eye, [], [0, -1])
    assert measured(("linf->linf", 0, tau)) == (eye, tau, [-1, 0])
    assert measured(("l1->linf", 4, [])) == ([[0], [1], [0]], [], [0, -1])
    small = [Fraction(1, 16), Fraction(3, 16), Fraction(0)]
    assert measured(("linf->linf", 0, small), HALF) == (eye, small, [-1, 0])
    for above, value in (([*tau[:2], NEAR], Fraction(3)), ([*small[:2], NEAR], HALF)):
        with pytest.raises(Reject, match=r"here: the sum of weights .* is above the square of"):
            measured(("linf->linf", 0, above), value)
    r = [Fraction(2), Fraction(2, 3) * 2]  # 1/4 + 9/16
    assert measured(("l1->l1", 1, r)) == ([[0], [1], [0]], [], [-4, -Fraction(16, 9)])
    tight = [Fraction(5, 4), Fraction(5, 3)]  # 16/25 + 9/25
    assert measured(("l1->l1", 2, tight)) == ([[0], [0], [1]], [], [-(x**2) for x in tight])
    for lower in ([tight[0], tight[1] - NEAR / 2**60], [Fraction(9), Fraction(0)]):
        with pytest.raises(Reject, match="here: the squares of the weights' inverses add up to more than 1"):
            measured(("l1->l1", 0, lower))
    for strange in (r[:1], [*r, Fraction(9)], [], [Fraction(2), -Fraction(2)]):
        with pytest.raises(Malformed, match=f"here: {len(strange)} weights for 2 entries"):
            measured(("l1->l1", 0, strange))
    wrong = [("linf->linf", 0, tau[:2]), ("linf->linf", 0, []), ("l2->linf", 0, tau), ("l1->linf", 0, tau)]
    wrong += [("l2->linf", 0, tau[:1]), ("linf->linf", 0, [Fraction(1), -HALF, Fraction(1)])]
    for row in wrong:
        with pytest.raises(Malformed, match=f"here: {len(row[2])} weights for {3 * row[0].startswith('linf')} entries"):
            measured(row)


# -------------------------------------------------------------------------------------------------------- sums of terms


def holds(*terms: Any, alike: bool = False, **widths: int) -> bool:
    return checker._semidefinite_sum(list(terms), widths, alike)


@pytest.mark.parametrize("alike", [False, True])
@pytest.mark.parametrize("exponent", [-90, 0, 45, 99, 100, 101, 102, 160])
@pytest.mark.parametrize("loose", [Fraction(1, 2**20), Fraction(1, 100)], ids=["little", "much"])
def test_entries_may_be_off_by_what_is_told_and_no_more(exponent: int, alike: bool, loose: Fraction):
    scale = Fraction(2) ** exponent
    for share, expected in ((Fraction(1001, 1000), True), (Fraction(999, 1000), False)):
        c = 1 - 2 * loose * share  # the diagonal is off by loose downwards, the entry beside it upwards
        whole, sizes = 10**9, [[10**9, 10**9], [10**9, 10**9]]
        entry = math.floor(c * whole) if not expected else math.floor(c * whole) - 1
        for sign in (-1, 1):
            X = [[whole, sign * entry], [sign * entry, whole]]
            assert holds(term(X, loose, scale, sizes=sizes), x=2, alike=alike) == expected
            signed = [[-size for size in row] for row in sizes]
            assert holds(term(X, loose, scale, sizes=signed), x=2, alike=alike) == expected
            minus = [[-entry for entry in row] for row in X]
            assert holds(term(minus, loose, -scale, sizes=sizes), x=2, alike=alike) == expected


def test_what_is_cut_off_of_a_matrix_is_paid_for():
    n = 2**100
    assert not holds(term([[n, n + 1], [n + 1, n]]), x=2)
    assert not holds(term([[n, n], [n, n]]), x=2)  # true, but there is no room
    assert holds(term([[n, n - 3], [n - 3, n]]), x=2) is False
    assert holds(term([[n, n - 8], [n - 8, n]]), x=2)


def test_terms_stand_where_their_variables_are():
    widths = {"x": 2, "u": 1, "w": 3}
    V = drawn(3, 6, 6, most=2).astype(object)
    H = V @ V.T + np.eye(6, dtype=int) * 2
    cuts = {"x": slice(0, 2), "u": slice(2, 3), "w": slice(3, 6)}

    def terms(H: np.ndarray) -> list[Any]:
        found = []
        for k, (a, b) in enumerate(itertools.product(cuts, repeat=2)):
            unit = Fraction(1, 2 * min(k, 3 * (k % 3) + k // 3) + 3)
            whole = math.lcm(*range(1, 20))
            found.append(term(H[cuts[a], cuts[b]] * whole, 0, unit / whole * unit.denominator, a, b))
        return found

    assert semidefinite(H)
    assert holds(*terms(H), **widths)
    for a, b in itertools.combinations(range(6), 2):
        other = H.copy()
        other[a, b] = other[b, a] = 40
        assert not semidefinite(other.copy())
        assert not holds(*terms(other), **widths)
    half = terms(H)
    assert holds(*half, *half, **widths)
    less = terms(H - 4 * np.eye(6, dtype=int))
    assert holds(*less, *[term(np.eye(n, dtype=int) * 4, 0, 1, name, name) for name, n in widths.items()], **widths)


def test_badly_scaled_matrices_are_judged_as_those_of_one_scale():
    H = np.array([[5, 4, 4], [4, 5, 4], [4, 4, 5]], dtype=object)  # not dominant
    bad = np.array([[5, -4, 4], [-4, 5, 4], [4, 4, 5]], dtype=object)
    for scales in ((0, 0, 0), (0, 60, 150), (150, 0, 60), (200, 170, 0)):
        d = np.array([1 << s for s in scales], dtype=object)
        for unit in (Fraction(1), Fraction(1, 2**100), Fraction(1, 3**200)):
            assert holds(term(d[:, None] * H * d, 0, unit), x=3)
            assert not holds(term(d[:, None] * bad * d, 0, unit), x=3)
    assert holds(term([[1]]), x=1)
    assert holds(term([[3]]), x=1)


def test_rows_of_zeros_need_nothing_and_rows_without_a_diagonal_are_refused():
    assert holds(term([[0, 0], [0, 0]]), x=2)
    assert holds(term([[0, 0, 0], [0, 2, 1], [0, 1, 2]]), x=3)
    assert holds(term([[2, 0, 1], [0, 0, 0], [1, 0, 2]]), x=3)
    assert not holds(term([[0, 1], [1, 5]]), x=2)
    assert not holds(term([[-1]]), x=1)
    assert not holds(term([[5, 0], [0, -1]]), x=2)
    assert not holds(term([[0, 0], [0, 5]], Fraction(1, 9), sizes=[[1, 0], [0, 5]]), x=2)
    assert not holds(term([[0, 0], [0, 5]], Fraction(1, 9), sizes=[[0, 1], [1, 0]]), x=2)
    assert not holds(term([[0, 0], [0, 50]], Fraction(1, 9), sizes=[[2, 0], [0, 0]]), x=2)
    assert not holds(term([[1, 1, 1], [1, 2, -1], [1, -1, 2]]), x=3)
    assert holds(term([[5]], Fraction(1, 9)), term([[0]], 0), x=1)


def test_the_loosest_term_counts_for_all():
    tight, loose = term([[100, 0], [0, 100]], Fraction(1, 100)), term([[100, 99], [99, 100]], Fraction(3, 4))
    assert not holds(tight, loose, x=2)
    assert not holds(loose, tight, x=2)
    assert holds(term([[100, 0], [0, 100]], Fraction(1, 100)), term([[100, 99], [99, 100]], Fraction(1, 100)), x=2)
