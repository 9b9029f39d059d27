"""Discriminators under the monitor: brackets, gradients below proved bounds, layers of norm 1 where they are proved."""

import pytest
import torch

from examples import discriminators as example


@pytest.fixture(scope="module")
def found():
    return example.main(steps=2, kinds=("SNGAN", "diffusion GAN"))


def rows(found):
    return [(name, variant, row) for name, variants in found.items() for variant, row in variants.items()]


def test_gradients_are_below_the_bound_that_was_proved_at_that_step(found):
    for _, _, row in rows(found):
        assert len(row["steps"]) == len(row["bound"]) == len(row["gradient"]) > 1
        assert all(0 < seen <= bound for seen, bound in zip(row["gradient"], row["bound"], strict=True))


def test_layers_are_bracketed_and_operator_norms_are_at_most_one(found):
    for _, variant, row in rows(found):
        for reading in row["layers"].values():
            assert reading.lower <= reading.upper
            if variant == "operator":
                assert reading.upper <= 1.0
    assert max(found["SNGAN"]["usual"]["true"]) > 1.1


def test_operator_norms_compose_to_what_the_architecture_allows(found):
    # Sum of 16 positions: 4. Two residual blocks: each at most 2, and pooling by 2 x 2 halves a branch.
    assert all(bound <= 16.0 for bound in found["SNGAN"]["operator"]["bound"])
    assert all(bound <= 1.0 for bound in found["diffusion GAN"]["operator"]["bound"])


@pytest.mark.parametrize("name", example.KINDS)
def test_every_discriminator_gives_one_number_at_both_sizes(name):
    kind = example.KINDS[name]
    for size in (example.SMALL, example.Size(32, 4)):
        see = example.features(size) if kind.build is example.head else torch.nn.Identity()
        D, G = kind.build(kind.usual, size), example.generator(kind.of_generator, size)
        images = G(torch.randn(2, example.LATENT))
        assert images.shape == example.real(size)[:2].shape
        assert D(see(images)).shape == (2, 1)


def test_the_first_layer_of_a_biggan_has_norm_three_before_training():
    D = example.biggan(example.torchs, example.SMALL)
    x = torch.zeros(1, 1, 8, 8)
    readings = example.Monitor(D, input_sizes=example.input_sizes(D, x))
    readings.step()
    first = readings.history[0][1][0]
    assert first.path == "0.body.0"
    assert first.lower == pytest.approx(3.0, abs=0.02)
    assert first.reshaped == pytest.approx(1.0, abs=0.01)


def test_the_picture_is_drawn(found):
    pytest.importorskip("matplotlib")
    assert len(example.plot(found).axes) == 4


@pytest.mark.slow
def test_all_kinds_at_full_length(tmp_path):
    found = example.main(out=tmp_path)
    assert found.keys() == example.KINDS.keys()
    for name, variant, row in rows(found):
        assert all(0 < seen <= bound for seen, bound in zip(row["gradient"], row["bound"], strict=True))
        assert all(0.9 <= ratio <= 3.01 for ratio in row["ratios"]), name
        if variant == "operator":
            assert all(reading.upper <= 1.0 for reading in row["layers"].values())
    assert max(found["SNGAN"]["usual"]["ratios"]) > 1.2
    assert (tmp_path / "discriminators.png").read_bytes().startswith(b"\x89PNG")
