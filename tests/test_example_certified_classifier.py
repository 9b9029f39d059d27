"""The certified classifiers of the example: proofs hold under attack, torch's claim does not."""

import math

import pytest
import torch

from examples import certified_classifier as example

QUICK = 40


@pytest.fixture(scope="module")
def found():
    return example.main(steps=QUICK, kinds=("orthogonal", example.CLAIMED))


def test_nothing_that_is_certified_falls_on_any_batch(found):
    for row in found["networks"].values():
        assert sum(right for _, _, right in row["batches"]) > 0
        assert all(certified <= survived <= right for certified, survived, right in row["batches"])


def test_the_orthogonal_network_certifies_most_of_what_it_gets_right(found):
    row = found["networks"]["orthogonal"]
    assert row["clean"] > 0.9
    assert row["certified"][0.25] > 0.7
    assert row["certified"][0.5] > 0.4
    assert row["constant"] <= math.sqrt(2) * (1 + 1e-6)


def test_the_claim_of_torchs_normalisation_is_refuted_without_rounding(found):
    row = found["networks"][example.CLAIMED]
    pair = row["counterexample"]
    assert row["fallen"] > 0
    assert pair["exact"]
    assert pair["distance"] < 0.7 * pair["claimed"]
    assert pair["becomes"] != pair["label"]
    # What is proved of the same weights is far less than what is claimed of them, and true.
    assert all(row["certified"][each] <= row["claimed"][each] for each in found["reported"])
    assert row["constant"] > 2 * math.sqrt(2)


def test_the_attack_stays_within_its_radius_and_lowers_the_margin(found):
    task = example.digits()
    model = example.train(example.KINDS["aol"](8, 16), task, 5, 0)
    graph = example.lipcert.trace(model, (1, 8, 8))
    x, y = task.test[0][:50].double(), task.test[1][:50]
    radii = torch.linspace(0.0, 2.0, 50, dtype=torch.float64)
    moved = example.attack(graph, x, y, radii)
    assert bool((example.length(moved - x).flatten() <= radii).all())
    assert bool((example.margin(graph.replay(moved), y) <= example.margin(graph.replay(x), y)).all())


def test_the_picture_is_drawn(found):
    pytest.importorskip("matplotlib")
    figure = example.plot(found)
    assert len(figure.axes) == 3
    assert len(figure.axes[0].lines) == 5


@pytest.mark.slow
def test_all_layers_at_full_length(tmp_path):
    found = example.main(out=tmp_path)
    rows = found["networks"]
    assert rows["orthogonal"]["clean"] > 0.95
    assert rows["orthogonal"]["certified"][0.5] > 0.6
    for kind in ("orthogonal", "spectral", "aol"):
        assert rows[kind]["constant"] <= math.sqrt(2) * (1 + 1e-6)
        assert rows[kind]["certified"][0.25] > 0.7
        assert all(certified <= survived for certified, survived, _ in rows[kind]["batches"])
    assert (tmp_path / "certified_classifier.png").read_bytes().startswith(b"\x89PNG")
