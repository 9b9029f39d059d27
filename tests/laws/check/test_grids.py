"""Phases, and whether images have room on a torus."""

from __future__ import annotations

from typing import Any

import pytest

from tests.laws.check.built import ONE_DIMENSION, Malformed, Node, Place, Reject, checker, kernel_of


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
