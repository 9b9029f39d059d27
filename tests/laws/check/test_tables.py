"""The two tables: slopes of elementwise functions, and gains of the others."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from tests.laws.check.built import Malformed, Place, checker, ends


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
