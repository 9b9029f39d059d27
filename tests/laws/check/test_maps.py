"""Reading maps, and what is refused beside what is accepted."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from tests.laws.check.built import Malformed, Place, checker, read, whole, written


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
