"""A dense output after filters, paid for at all frequencies together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from tests.laws.check.built import (
    HALF,
    ONE,
    THIRD,
    Map,
    Place,
    Signal,
    affine,
    at_positions,
    checker,
    composed,
    dense,
    drawn,
    ints,
    numbers,
    told,
    whole,
)


def test_a_dense_head_reads_every_position_through_its_phase():
    shape, phases = (2, 4, 6), (2, 3)
    X = drawn(1, 3, 48)
    nodes = [
        affine("f", "a", Map("reshape", shape, (48,))),
        affine("b", "f", dense(X, HALF)),
        affine("c", "b", dense([[1, 2, 0], [0, -1, 1]], THIRD)),
    ]
    wave = checker._dense_head(nodes, shape, phases)
    W = (ints([[1, 2, 0], [0, -1, 1]]) @ X).reshape(2, *shape)
    assert (wave.rows, wave.inside, wave.unit, wave.loose) == (2, False, Fraction(1, 6), 0)
    assert set(wave.taps[""]) == set(itertools.product(range(2), range(2)))
    total = np.zeros((2, 12))
    for (i, j), found in wave.taps[""].items():
        assert found.shape == (2, 12)
        for channel, p, q in itertools.product(range(2), range(2), range(3)):
            assert (found[:, channel * 6 + p * 3 + q] == W[:, channel, 2 * i + p, 3 * j + q]).all()
        total += abs(found)
    assert (wave.sizes[""] == total).all()
    still = checker._dense_head(nodes[:1], shape, phases)
    assert still.unit == 1
    assert sum(int(found.sum()) for found in still.taps[""].values()) == 48
    for (i, j), found in still.taps[""].items():
        for channel, p, q in itertools.product(range(2), range(2), range(3)):
            assert found[channel * 24 + (2 * i + p) * 6 + 3 * j + q, channel * 6 + p * 3 + q] == 1


def test_a_head_reads_the_whole_image_at_once():
    shape, phases, torus = (2, 3, 4), (2, 1), (2, 4)
    weight, order = whole(3, 24), np.random.default_rng(0).permutation(24)
    shuffle = Map("selection", shape, (24,), order)
    dense = Map("dense", (24,), (3,), weight, Fraction(1, 3))
    half = Map("diagonal", (3,), (3,), np.array([1, -2, 3]), Fraction(1, 2))
    heads = {
        "all": [shuffle, Map("reshape", (24,), (24,)), dense, half],
        "flat": [Map("reshape", shape, (24,))],
    }
    for head in heads.values():
        A = composed([numbers(linear) for linear in head])
        wave = checker._dense_head([affine("a", "x", linear) for linear in head], shape, phases)
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
