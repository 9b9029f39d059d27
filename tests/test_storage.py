"""Networks and certificates as files: written whole or not at all, read back exactly, refused if they are not ours."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from benchmarks.fuzz_checker import certified, networks
from lipcert import storage
from lipcert.certificate import Certificate, Gains, Validity
from lipcert.check import verify_files
from lipcert.errors import InvalidInput, UnsupportedOperation
from lipcert.graph import Activation, Affine, Graph, Input, Opaque
from lipcert.linear import Dense, dense
from lipcert.norms import L2, LINF
from lipcert.recheck import check, check_float64
from lipcert.storage import graph_from_document, load_certificate, read_network, save_certificate, save_network
from tests.maps import MAPS

NETWORKS = networks()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_comes_back_with_its_digest_and_its_certificates(name: str, tmp_path: Path):
    graph = NETWORKS[name]
    certificate = certified(graph, LINF)
    weights = save_certificate(certificate, graph, tmp_path / "cert.json")
    assert weights == tmp_path / "cert.safetensors"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["cert.json", "cert.safetensors"]
    again = graph_from_document(*read_network(weights))
    assert again.digest() == graph.digest()
    assert load_certificate(tmp_path / "cert.json") == certificate
    assert check(load_certificate(tmp_path / "cert.json"), again).validity is Validity.RIGOROUS
    assert check_float64(certificate, again).bound == certificate.bound
    assert verify_files(str(tmp_path / "cert.json"), str(weights)).bound == certificate.bound


@pytest.mark.parametrize("build", MAPS.values(), ids=MAPS)
def test_every_map_comes_back_as_it_was(build, tmp_path: Path):
    graph = Graph((Input("x", tuple(build().in_shape)), Affine("a", "x", build(), None)))
    again = graph_from_document(*read_network(save_network(graph, tmp_path / "n.safetensors")))
    assert again.digest() == graph.digest()
    before, after = graph["a"], again["a"]
    assert isinstance(before, Affine)
    assert isinstance(after, Affine)
    assert type(before.map) is type(after.map)
    assert torch.equal(dense(before.map), dense(after.map))


def test_slopes_parameters_and_gains_come_back_exactly(tmp_path: Path):
    third = torch.tensor([[1.0], [3.0]]).double() / 3
    call = torch.relu
    nodes = (
        Input("x", (2, 3)),
        Activation("f", "x", (2, 3), "declared:me", {"a": 0.1, "b": third}, (-third, third), call),
        Opaque(
            "g", "f", (3,), "declared:me", {"dim": 0, "why": "0.5 in the paper", "list": [1, None]}, {L2: 0.1}, call
        ),
    )
    again = graph_from_document(*read_network(save_network(Graph(nodes), tmp_path / "n.safetensors")))
    activation, opaque = again["f"], again["g"]
    assert isinstance(activation, Activation)
    assert isinstance(opaque, Opaque)
    assert activation.parameters["a"] == 0.1
    assert torch.equal(activation.slope[1], third)
    assert dict(opaque.parameters) == {"dim": 0, "why": "0.5 in the paper", "list": [1, None]}
    assert dict(opaque.gains) == {L2: 0.1}
    assert again.digest() == Graph(nodes).digest()


def test_replaying_a_network_from_a_file_is_refused_at_the_first_function(tmp_path: Path):
    again = graph_from_document(*read_network(save_network(NETWORKS["mlp"], tmp_path / "n.safetensors")))
    with pytest.raises(UnsupportedOperation, match=r"`r` \(relu\) was read from a file"):
        again.replay(torch.zeros(1, 3))


def test_weights_beyond_float32_and_special_values_are_stored_bit_for_bit(tmp_path: Path):
    weight = torch.tensor([[0.1, -0.0], [5e-324, 1e300]], dtype=torch.float64)
    graph = Graph((Input("x", (2,)), Affine("a", "x", Dense(weight, (2,)), None)))
    _, arrays = read_network(save_network(graph, tmp_path / "n.safetensors"))
    assert arrays["a.weight"].tobytes() == weight.numpy().tobytes()


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = save_network(NETWORKS["mlp"], tmp_path / "n.safetensors")
    old = path.read_bytes()

    def fail(*arguments: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(*((os, "fsync") if failing == "fsync" else (Path, "replace")), fail)
    with pytest.raises(OSError, match="disk full"):
        save_network(NETWORKS["pools"], path)
    assert [file.name for file in tmp_path.iterdir()] == ["n.safetensors"]
    assert path.read_bytes() == old


def test_a_file_replaces_the_old_one_and_others_may_read_it(tmp_path: Path):
    path = tmp_path / "n.safetensors"
    save_network(NETWORKS["mlp"], path)
    save_network(NETWORKS["pools"], path)
    assert graph_from_document(*read_network(path)).digest() == NETWORKS["pools"].digest()
    plain = tmp_path / "plain"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode


def test_a_certificate_is_not_saved_with_another_network_or_under_another_ending(tmp_path: Path):
    certificate = certified(NETWORKS["mlp"], L2)
    with pytest.raises(InvalidInput, match="is about the network"):
        save_certificate(certificate, NETWORKS["pools"], tmp_path / "c.json")
    with pytest.raises(InvalidInput, match=r"\.json"):
        save_certificate(certificate, NETWORKS["mlp"], tmp_path / "c.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"{}", b"[" * 100_000, b'{"format": 3}'])
def test_what_is_no_certificate_is_invalid_input(content: bytes, tmp_path: Path):
    path = tmp_path / "c.json"
    path.write_bytes(content)
    with pytest.raises(InvalidInput):
        load_certificate(path)
    with pytest.raises(InvalidInput):
        load_certificate(tmp_path / "nowhere.json")


@pytest.mark.parametrize("content", [b"", b"\0" * 7, b"\0" * 8, b"zzzzzzzzzzzz", b"\xff" * 64])
def test_what_is_no_network_is_invalid_input(content: bytes, tmp_path: Path):
    path = tmp_path / "n.safetensors"
    path.write_bytes(content)
    with pytest.raises(InvalidInput):
        read_network(path)
    with pytest.raises(InvalidInput):
        read_network(tmp_path / "nowhere.safetensors")


def test_tensors_without_a_graph_are_invalid_input(tmp_path: Path):
    path = tmp_path / "n.safetensors"
    save_file({"weight": np.zeros((2, 2))}, path)
    with pytest.raises(InvalidInput, match="no lipcert graph"):
        read_network(path)


@pytest.mark.parametrize("change", ["kind", "map", "source", "shape", "weight", "nodes"])
def test_a_document_that_describes_no_graph_is_invalid_input(change: str):
    document, arrays = NETWORKS["mlp"].document()
    document = json.loads(json.dumps(document))
    wrong = {"kind": "zzz", "map": {"kind": "zzz"}, "source": "zzz", "shape": 3, "weight": None, "nodes": None}[change]
    if change == "nodes":
        document["nodes"] = wrong
    elif change == "weight":
        arrays = {}
    else:
        document["nodes"][0 if change == "shape" else 1][change] = wrong
    with pytest.raises(InvalidInput):
        graph_from_document(document, arrays)


def test_an_infinite_bound_can_be_stored_though_no_checker_will_vouch_for_it(tmp_path: Path):
    graph = NETWORKS["mlp"]
    certificate = Certificate(math.inf, L2, Validity.ESTIMATE, "by hand", graph.digest(), Gains(()))
    save_certificate(certificate, graph, tmp_path / "c.json")
    assert load_certificate(tmp_path / "c.json").bound == math.inf


def test_the_metadata_key_is_the_one_the_checker_reads():
    assert storage.METADATA_KEY == "lipcert"
