"""The layer table: cases in closed form, and norms that an independent power iteration measured."""

import math

import pytest

from examples import what_does_spectral_norm_bound as example

NAMES = {case.name: case for case in example.CASES}
QUICK = ("3->96 k3", "64->64 k1", "4->4 k3, reflect, positive", "64->64 k3 at 4 px", "3->64 k3, positive")

# Measured before, with other seeds, by power iteration in float32 on the layers alone.
MEASURED = {
    "64->64 k3, default": 1.537, "64->64 k3, Xavier": 1.525, "64->64 k3, orthogonal": 1.901,
    "64->64 k3, positive": 2.975, "3->64 k3, default": 2.376, "3->64 k3, positive": 2.977,
    "64->64 k3 at 4 px": 1.367, "64->64 k3 at 8 px": 1.496, "64->64 k3 at 64 px": 1.537,
    "64->64 k3, circular": 1.538, "64->64 k5": 1.724, "32->32 k7, positive": 6.730,
    "64->64 k3, dilation 2": 1.526, "64->64 k3, depthwise": 0.967, "64->64 k3 s2": 1.188, "64->128 k4 s2": 1.276,
    "64->128 k4 s2, positive": 1.980, "transposed 128->64 k4 s2": 1.024, "96->96 k3": 1.881, "96->192 k3": 2.203,
}  # fmt: skip


@pytest.fixture(scope="module")
def found():
    return example.main(cases=tuple(NAMES[name] for name in QUICK))


def test_brackets_are_brackets_and_the_reshaped_kernel_has_norm_one(found):
    for row in found.values():
        assert 0 < row["lower"] <= row["upper"] <= 1.05 * row["lower"]
        assert row["reshaped"] == pytest.approx(1.0, abs=1e-3)


def test_orthonormal_columns_make_a_convolution_of_norm_exactly_three(found):
    row = found["3->96 k3"]
    assert row["lower"] == pytest.approx(3.0, abs=1e-3)
    assert row["upper"] == pytest.approx(3.0, abs=1e-3)


def test_patches_that_do_not_overlap_are_the_case_where_the_claim_is_right(found):
    assert found["64->64 k1"]["upper"] <= 1 + 1e-4


def test_reflection_takes_a_kernel_of_three_by_three_beyond_three(found):
    assert found["4->4 k3, reflect, positive"]["lower"] > 3.0


def test_the_picture_is_drawn(found):
    pytest.importorskip("matplotlib")
    assert len(example.plot(found).axes[0].patches) == len(found)


def test_every_measured_layer_is_a_case():
    assert MEASURED.keys() <= NAMES.keys()


@pytest.mark.slow
def test_the_whole_table_is_as_measured_before(tmp_path):
    found = example.main(out=tmp_path)
    assert found.keys() == NAMES.keys()
    for name, before in MEASURED.items():
        assert found[name]["lower"] == pytest.approx(before, rel=0.02), name
        assert found[name]["upper"] == pytest.approx(before, rel=0.03), name
    for name in ("64->64 k4 s4", "64->64 k1"):
        assert found[name]["lower"] == pytest.approx(1.0, abs=2e-3)
        assert found[name]["upper"] == pytest.approx(1.0, abs=1e-4)
    # The most that overlapping patches can do, with zeros outside.
    for name in ("64->64 k3, positive", "3->64 k3, positive", "3->96 k3", "64->64 k3, default"):
        assert found[name]["lower"] <= math.sqrt(9) * found[name]["reshaped"] * (1 + 1e-6)
    assert (tmp_path / "what_does_spectral_norm_bound.png").read_bytes().startswith(b"\x89PNG")
