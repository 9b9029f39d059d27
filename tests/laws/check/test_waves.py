"""Waves on a torus: what they read, compared with what kernels say at single positions."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import mpmath
import numpy as np
import pytest

from tests.laws.check.built import (
    ONE,
    ONE_DIMENSION,
    Kernel,
    Map,
    Node,
    Place,
    Reject,
    Wave,
    affine,
    at_positions,
    checker,
    ends,
    kernel_of,
    told,
    whole,
)


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
    found = checker._filtered(affine("a", "x", linear), kernel, {"x": before, "a": after}, wave)
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


@pytest.mark.parametrize("turned", [False, True])
def test_a_wave_is_known_to_vanish_outside_where_it_does(turned: bool):
    """The coarse grid has ``count`` positions, the fine one ``size``; the torus is as large as one likes."""
    for size, low, high, stride, count in ONE_DIMENSION:
        kernel = kernel_of([(t,) for t in range(low, high + 1)], 1, 1, (stride,), turned=turned)
        pairs = [(i, stride * i + t) for i in range(-20, 20) for t in range(low, high + 1)]
        beyond = any(0 <= i < count and not 0 <= p < size for i, p in pairs)  # from a coarse position inside
        onto = any(0 <= p < size and not 0 <= i < count for i, p in pairs)  # from a fine position inside
        ends = ((1, count), (1, size)) if turned else ((1, size), (1, count))
        node = affine("a", "x", Map("", *ends))
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
    node = affine("a", "x", Map("", (1, 4, 6), (1, *count)))
    assert checker._filtered(node, kernel, {"x": (1, 2), "a": (1, 1)}, wave).inside == inside


def test_every_dimension_of_an_image_is_looked_at():
    one = np.eye(1, dtype=int)
    for inside in (True, False):
        wave = Wave(1, inside, ONE, {"x": {(0, 0): one}}, {"x": one})
        for places, count in (([(0, 0), (0, 1)], (5, 3)), ([(0, 0), (1, 0)], (4, 4))):
            kernel, phases = kernel_of(places, 1, 1, (1, 1)), {"x": (1, 1), "a": (1, 1)}
            fits = affine("a", "x", Map("", (1, 5, 4), (1, *count)))
            assert not checker._filtered(fits, kernel, phases, wave).inside  # the last outputs but one are cut off
            padded = affine("a", "x", Map("", (1, 5, 4), (1, 5, 4)))
            if inside:
                checker._filtered(padded, kernel, phases, wave)
            else:
                with pytest.raises(Reject, match="reads beyond the image"):
                    checker._filtered(padded, kernel, phases, wave)


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
    lower, upper = ends([Fraction(9, 10)], [-2], [Fraction(1, 2)], [0]), ends([1], [-2], [Fraction(2, 3)], [0])
    X = whole(8, 2)
    wave = Wave(8, False, Fraction(1, 5), {"u": {(0,): X, (3,): -X}}, {"u": 2 * abs(X)}, Fraction(1, 100))
    node = Node("activation", "f", (4, 4), ("x",), ends=(lower, upper))
    found = checker._dimmed(node, wave)
    assert (found.rows, found.inside) == (8, False)
    width = 1 - Fraction(1, 2) / Fraction(2, 3)
    assert found.loose == (1 + wave.loose) * (1 + width) - 1
    for channel in range(4):
        for row in (2 * channel, 2 * channel + 1):
            most, least = upper[channel, 0], lower[channel, 0]
            for at, sign in (((0,), 1), ((3,), -1)):
                told = found.taps["u"][at][row].astype(object) * found.unit
                assert (told == most * sign * X[row] * wave.unit).all()
                assert (abs(told - least * sign * X[row] * wave.unit) <= width * abs(told)).all()
            told = found.sizes["u"][row].astype(object) * found.unit
            assert (told == abs(most) * 2 * abs(X[row]) * wave.unit).all()


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
