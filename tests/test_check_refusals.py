"""What the stand-alone checker composes, and everything about a claim or a file that it must refuse."""

import copy
import importlib
import json
import math
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.fuzz_checker import certified, networks
from lipcert.certificate import Certificate, Gain, Gains, Validity
from lipcert.check import Malformed, Reject, digest, read_safetensors, verify, verify_files
from lipcert.errors import CheckFailed
from lipcert.graph import Activation, Add, Affine, Concat, Graph, Input, Node
from lipcert.linear import Conv, Dense, Diagonal
from lipcert.norms import L1, L1_LINF, L2, L2_LINF, LINF, SUPPORTED, Norms
from lipcert.recheck import check, check_float64
from lipcert.storage import save_certificate

checker = importlib.import_module("lipcert.check")  # the package offers a function of the same name

SCRIPT = Path(checker.__file__)
NETWORKS = networks()
IDENTITY = torch.eye(2, dtype=torch.float64)


def scaled(name: str, source: str, factor: float, size: int = 2) -> Affine:
    return Affine(name, source, Diagonal(torch.tensor(factor, dtype=torch.float64), (size,)), None)


def claim(
    nodes: list[Node],
    gains: list[tuple[str, str, float]],
    bound: float,
    norms: str,
    shape: tuple[int, ...] = (2,),
) -> tuple[str, Any, Any]:
    graph = Graph((Input("x", shape), *nodes))
    items = tuple(Gain(tuple(path.split()), Norms.parse(pair), value) for path, pair, value in gains)
    certificate = Certificate(bound, Norms.parse(norms), Validity.ESTIMATE, "by hand", graph.digest(), Gains(items))
    return certificate.to_json(), *graph.document()


# --------------------------------------------------------------------------------------------------- composition

A, B = scaled("a", "x", 3.0), scaled("b", "x", 4.0)
IN_L2 = [("a", "l2->l2", 3.0), ("b", "l2->l2", 4.0)]


def everywhere(pair: str) -> list[tuple[str, str, float]]:
    return [(name, pair, value) for name, _, value in IN_L2]


COMPOSITIONS: dict[str, tuple[list[Node], list[tuple[str, str, float]], str, float]] = {
    "a chain multiplies": ([A, scaled("c", "a", 2.0)], [*IN_L2[:1], ("c", "l2->l2", 2.0)], "l2->l2", 6.0),
    "a sum adds": ([A, B, Add("s", ("a", "b"), (2,))], IN_L2, "l2->l2", 7.0),
    "the same node twice counts twice": ([A, Add("s", ("a", "a"), (2,))], IN_L2[:1], "l2->l2", 6.0),
    "parts join in l2": ([A, B, Concat("s", ("a", "b"), 0, (4,))], IN_L2, "l2->l2", 5.0),
    "parts join in l1": ([A, B, Concat("s", ("a", "b"), 0, (4,))], everywhere("l1->l1"), "l1->l1", 7.0),
    "parts join in linf": ([A, B, Concat("s", ("a", "b"), 0, (4,))], everywhere("linf->linf"), "linf->linf", 4.0),
    "parts join in the output norm": (
        [A, B, Concat("s", ("a", "b"), 0, (4,))],
        everywhere("l2->linf"),
        "l2->linf",
        4.0,
    ),
    "the output of the input is the input": ([], [], "l1->linf", 1.0),
    "a skip adds one": ([A, Add("s", ("a", "x"), (2,))], IN_L2[:1], "l2->l2", 4.0),
    "the better of two gains": ([A], [("a", "l2->l2", 9.0), ("a", "l2->l2", 3.0)], "l2->l2", 3.0),
    "a path of two": (
        [A, scaled("c", "a", 2.0)],
        [("a", "l2->l2", 9.0), ("c", "l2->l2", 9.0), ("a c", "l2->l2", 6.0)],
        "l2->l2",
        6.0,
    ),
    "a path alone, whose inside nobody reads": ([A, scaled("c", "a", 2.0)], [("a c", "l2->l2", 6.0)], "l2->l2", 6.0),
    "mixed norms once, before": (
        [A, scaled("c", "a", 2.0)],
        [("a", "l1->linf", 3.0), ("c", "linf->linf", 2.0)],
        "l1->linf",
        6.0,
    ),
    "mixed norms once, after": (
        [A, scaled("c", "a", 2.0)],
        [("a", "l1->l1", 3.0), ("c", "l1->linf", 2.0)],
        "l1->linf",
        6.0,
    ),
    "a bound in the input norm is one in the output norm": ([A], [("a", "l1->l1", 3.0)], "l1->linf", 3.0),
}


@pytest.mark.parametrize("case", COMPOSITIONS)
def test_gains_compose_along_the_graph_and_no_better(case: str):
    nodes, gains, norms, bound = COMPOSITIONS[case]
    text, document, arrays = claim(nodes, gains, bound, norms)
    assert verify(text, document, arrays).bound == bound
    below = claim(nodes, gains, math.nextafter(bound, 0.0), norms)
    with pytest.raises(Reject, match=rf"bound .* is below {bound}"):
        verify(*below)


INCOMPLETE: dict[str, tuple[list[Node], list[tuple[str, str, float]], str, str]] = {
    "an affine node without a gain": ([A], [], "l2->l2", "`a`"),
    "an affine node with gains in other norms": ([A], [("a", "l1->l1", 3.0)], "l2->l2", "`a`"),
    "a branch without a gain": ([A, B, Add("s", ("a", "b"), (2,))], IN_L2[:1], "l2->l2", "`b`"),
    "the inside of a path that is read": (
        [A, scaled("c", "a", 2.0), Add("s", ("a", "c"), (2,))],
        [("a c", "l2->l2", 6.0)],
        "l2->l2",
        "`a`",
    ),
    "mixed norms twice": (
        [A, scaled("c", "a", 2.0)],
        [("a", "l1->linf", 3.0), ("c", "l1->linf", 2.0)],
        "l1->linf",
        "`c`",
    ),
}


@pytest.mark.parametrize("case", INCOMPLETE)
def test_a_node_that_no_gain_covers_is_named(case: str):
    nodes, gains, norms, name = INCOMPLETE[case]
    with pytest.raises(Reject, match=f"{name} .* has no proven gain"):
        verify(*claim(nodes, gains, 1e9, norms))


def test_a_skip_around_a_path_does_not_pass_for_part_of_it():
    """The path a > c is a chain only if c reads a."""
    nodes = [A, B, scaled("c", "b", 2.0)]
    with pytest.raises(Malformed, match="not a chain"):
        verify(*claim(nodes, [("a c", "l2->l2", 6.0)], 6.0, "l2->l2"))


def test_a_chain_with_a_nonlinear_node_in_it_is_no_chain_of_affine_nodes():
    slope = (torch.tensor(1.0).double(), torch.tensor(3.0).double())
    nodes = [
        A,
        Activation("f", "a", (2,), "leaky_relu", {"negative_slope": 3.0}, slope, torch.relu),
        scaled("c", "f", 2.0),
    ]
    for path in ("f c", "a f", "f", "a f c"):
        with pytest.raises(Malformed, match="not a chain of affine nodes"):
            verify(*claim(nodes, [("a", "l2->l2", 3.0), (path, "l2->l2", 9.0)], 9e9, "l2->l2"))


def test_a_small_bound_in_the_output_norm_does_not_pass_for_one_in_the_input_norm():
    ones = Affine("a", "x", Dense(torch.ones(2, 2, dtype=torch.float64), (2,)), None)
    total = Affine("c", "a", Dense(torch.ones(1, 2, dtype=torch.float64), (2,)), None)
    gains = [("a", "l1->l1", 2.0), ("a", "l1->linf", 1.0), ("c", "l1->linf", 1.0), ("c", "linf->linf", 2.0)]
    assert verify(*claim([ones, total], gains, 2.0, "l1->linf")).bound == 2.0  # c a = (2, 2)
    with pytest.raises(Reject, match=r"bound 1\.5 .* is below 2\.0"):
        verify(*claim([ones, total], gains, 1.5, "l1->linf"))


# ------------------------------------------------------------------------------------------------------ tampering


def given(name: str, norms: Norms = L2) -> tuple[dict[str, Any], Any, dict[str, np.ndarray]]:
    graph = NETWORKS[name]
    document, arrays = graph.document()
    return json.loads(certified(graph, norms).to_json()), json.loads(json.dumps(document)), arrays


def refused(certificate: Any, document: Any, arrays: Any, kind: type[Exception] | tuple[type[Exception], ...]) -> str:
    with pytest.raises(kind) as reason:
        verify(certificate if isinstance(certificate, str) else json.dumps(certificate), document, arrays)
    return str(reason.value)


@pytest.mark.parametrize("norms", SUPPORTED, ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_honest_certificates_are_accepted_and_none_with_a_smaller_bound(name: str, norms: Norms):
    certificate, document, arrays = given(name, norms)
    assert verify(json.dumps(certificate), document, arrays).bound == float.fromhex(certificate["bound"])
    if norms.p == norms.q:  # there the certifier and the checker compose alike, so the bound is tight to one ulp
        certificate["bound"] = math.nextafter(float.fromhex(certificate["bound"]), 0.0).hex()
        assert "which the gains prove" in refused(certificate, document, arrays, Reject)


def put(*keys: Any) -> Callable[[Any, Any], None]:
    """A mutation that puts a value at a place in the tree."""

    def change(tree: Any, value: Any) -> None:
        for key in keys[:-1]:
            tree = tree[key]
        tree[keys[-1]] = value

    return change


WRONG_TEXT = [None, True, 0, 1.5, [], {}, ""]
WRONG_NUMBER = [
    *WRONG_TEXT,
    3,
    "nan",
    "inf",
    "-inf",
    "-0x1.0p+0",
    "1.0",
    "0x1p3",
    " 0x1.0000000000000p+3",
    "0x1.8",
    "0x" + "f" * 60,
]
CERTIFICATE_FIELDS: list[tuple[Callable[[Any, Any], None], list[Any]]] = [
    (put("format"), [*WRONG_TEXT, "lipcert-certificate-2"]),
    (put("network"), [*WRONG_TEXT, "sha256:0"]),
    (put("norms"), [*WRONG_TEXT, "l2", "l2->l1", "linf->l2", "l3->l3", "l1->l1"]),
    (put("bound"), WRONG_NUMBER),
    (put("validity"), [*WRONG_TEXT, "rigorous"]),
    (put("method"), WRONG_TEXT[:-1]),
    (put("evidence"), [*WRONG_TEXT, {"kind": "gains"}, {"kind": "gains", "items": [], "more": 1}]),
    (put("evidence", "kind"), [*WRONG_TEXT, "multipliers"]),
    (put("evidence", "items"), [*WRONG_TEXT, [None], [[]], ["a"], [{}]]),
    (
        put("evidence", "items", 0, "path"),
        [*WRONG_TEXT, [None], [3], [["a"]], ["x"], ["r"], ["nowhere"], ["b", "a"], ["a", "b"]],
    ),
    (put("evidence", "items", 0, "norms"), [*WRONG_TEXT, "l2", "l1->l2", "l1->l1", "l2->linf"]),
    (put("evidence", "items", 0, "value"), WRONG_NUMBER),
    (put("extra"), [1]),
    (put("evidence", "items", 0, "extra"), [1]),
]


@pytest.mark.parametrize("field", range(len(CERTIFICATE_FIELDS)))
def test_every_field_of_the_certificate_is_checked(field: int):
    change, values = CERTIFICATE_FIELDS[field]
    for value in values:
        certificate, document, arrays = given("mlp")
        change(certificate, value)
        assert refused(certificate, document, arrays, (Reject, Malformed))


@pytest.mark.parametrize("key", ["format", "network", "norms", "bound", "validity", "method", "evidence"])
def test_no_field_of_the_certificate_may_be_missing(key: str):
    certificate, document, arrays = given("mlp")
    del certificate[key]
    refused(certificate, document, arrays, Malformed)


@pytest.mark.parametrize("which", [0, 1])
def test_a_gain_may_not_be_lowered_or_missing(which: int):
    certificate, document, arrays = given("mlp")
    item = certificate["evidence"]["items"][which]
    value = item["value"]
    item["value"] = (float.fromhex(value) * (1 - 1e-7)).hex()
    assert f"gain of {item['path'][0]} (l2->l2)" in refused(certificate, document, arrays, Reject)
    item["value"] = (float.fromhex(value) * (1 + 1e-7)).hex()  # true, but the bound does not follow
    assert "which the gains prove" in refused(certificate, document, arrays, Reject)
    del certificate["evidence"]["items"][which]
    assert "no proven gain" in refused(certificate, document, arrays, Reject)


@pytest.mark.parametrize("text", ["9e9", "0x1p40", "0X1.0000000000000P+40", " 0x1.0000000000000p+40", "inf", "nan"])
def test_numbers_are_written_one_way_only(text: str):
    for place in (("bound",), ("evidence", "items", 0, "value")):
        certificate, document, arrays = given("mlp")
        put(*place)(certificate, text)
        assert "not a finite number in hexadecimal" in refused(certificate, document, arrays, Malformed)


def test_a_negative_gain_is_malformed_in_every_norm_pair():
    for norms in SUPPORTED:
        text, document, arrays = claim([A], [("a", str(norms), -9.0)], 0.0, str(norms))
        with pytest.raises(Malformed, match="negative"):
            verify(text, document, arrays)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        "3",
        '"x"',
        "NaN",
        '{"a": NaN}',
        '{"a": Infinity}',
        '{"a": 1, "a": 1}',
        "1" * 5000,
        "[" * 100_000,
        '{"a":' * 100_000,
        "\ud800",
        "\x00",
        '{"format": 1e400}',
        "1e5",
        "-" * 10,
    ],
    ids=range(18),
)
def test_text_that_is_no_certificate_is_malformed(text: str):
    _, document, arrays = given("mlp")
    refused(text, document, arrays, Malformed)


def spots(tree: Any, *keys: Any) -> list[tuple[Any, ...]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [place for key, value in items for place in [(*keys, key), *spots(value, *keys, key)]]


def at(tree: Any, keys: tuple[Any, ...]) -> Any:
    for key in keys:
        tree = tree[key]
    return tree


@pytest.mark.parametrize("name", NETWORKS)
def test_every_value_of_the_document_is_under_the_digest_and_has_a_type(name: str):
    certificate, document, arrays = given(name)
    for place in spots(document):
        for value in (None, True, 1.5, -1, 1 << 60, "zzz", [], {}, [None], {"tensor": "zzz"}):
            changed = copy.deepcopy(document)
            at(changed, place[:-1])[place[-1]] = value
            if changed == document:
                continue
            refused(certificate, changed, arrays, (Reject, Malformed))
            refused({**certificate, "network": digest(changed, arrays)}, changed, arrays, (Reject, Malformed))


def test_the_output_is_the_last_node():
    certificate, document, arrays = given("mlp")
    for node in document["nodes"][:-1]:
        changed = {**document, "output": node["name"]}
        refused({**certificate, "network": digest(changed, arrays)}, changed, arrays, Malformed)


@pytest.mark.parametrize("name", NETWORKS)
def test_no_field_of_the_document_may_be_missing_or_added(name: str):
    certificate, document, arrays = given(name)
    for place in spots(document):
        changed = copy.deepcopy(document)
        owner = at(changed, place[:-1])
        if isinstance(owner, dict) and place[-1] not in ("l1->l1", "linf->linf"):  # l2 needs no gain in other norms
            del owner[place[-1]]
            refused({**certificate, "network": digest(changed, arrays)}, changed, arrays, (Reject, Malformed))
            owner[place[-1]], owner["zzz"] = at(document, place), 1
            refused({**certificate, "network": digest(changed, arrays)}, changed, arrays, (Reject, Malformed))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_tensor_is_under_the_digest_and_has_a_type_and_a_shape(name: str):
    certificate, document, arrays = given(name)
    for key, array in arrays.items():
        bumped = array.copy()
        bumped.flat[0] = (
            np.nextafter(bumped.flat[0], np.inf, dtype=array.dtype) if array.dtype.kind == "f" else bumped.flat[0] + 1
        )
        assert "this one is" in refused(certificate, document, {**arrays, key: bumped}, Reject)
        wrong = [array.astype(t) for t in (np.float16, np.int32, np.bool_, np.complex64, ">f4") if array.dtype != t]
        wrong += [array[None, None, None, None], array[:0], np.array([None]), array.tolist()]
        if array.dtype.kind == "f":
            wrong += [np.full_like(array, np.nan), np.full_like(array, np.inf), array.astype(np.int64)]
        else:
            wrong += [array.astype(np.float64), array + (1 << 50)]
        for value in wrong:
            changed = {**arrays, key: value}
            try:
                found = digest(document, changed)
            except AttributeError:
                found = certificate["network"]
            refused({**certificate, "network": found}, document, changed, (Reject, Malformed))
        without = {other: value for other, value in arrays.items() if other != key}
        refused({**certificate, "network": digest(document, without)}, document, without, Malformed)
    more = {**arrays, "zzz": np.zeros(1)}
    assert "no node uses" in refused({**certificate, "network": digest(document, more)}, document, more, Malformed)


def test_swapped_tensors_of_one_shape_are_another_network():
    nodes = [
        Affine("a", "x", Dense(3 * IDENTITY, (2,)), None),
        scaled("b", "a", 1.0),
        Affine("c", "b", Dense(IDENTITY, (2,)), None),
    ]
    text, document, arrays = claim(
        nodes, [("a", "l2->l2", 3.0), ("b", "l2->l2", 1.0), ("c", "l2->l2", 1.0)], 3.0, "l2->l2"
    )
    verify(text, document, arrays)
    arrays["a.weight"], arrays["c.weight"] = arrays["c.weight"], arrays["a.weight"]
    certificate = json.loads(text)
    assert "this one is" in refused(certificate, document, arrays, Reject)
    certificate["network"] = digest(document, arrays)
    assert "gain of c (l2->l2): 1.0 is not an upper bound: the norm is about 3.0" in refused(
        certificate, document, arrays, Reject
    )


@pytest.mark.parametrize("norms", [L1, LINF, L1_LINF, L2_LINF, L2], ids=str)
def test_a_weight_one_ulp_larger_breaks_a_tight_gain(norms: Norms):
    weight = torch.diag(torch.tensor([4.0, 1.0], dtype=torch.float64))
    graph = Graph((Input("x", (2,)), Affine("a", "x", Dense(weight, (2,)), None)))
    gains = Gains((Gain(("a",), norms, 4.0),))
    certificate = Certificate(4.0, norms, Validity.RIGOROUS, "by hand", graph.digest(), gains)
    assert check(certificate, graph).bound == 4.0
    weight[0, 0] = math.nextafter(4.0, 5.0)
    changed = Certificate(4.0, norms, Validity.RIGOROUS, "by hand", graph.digest(), gains)
    with pytest.raises(CheckFailed, match="is about the network"):
        check(certificate, graph)
    with pytest.raises(CheckFailed, match="not an upper bound"):
        check(changed, graph)


def test_a_stride_changed_with_its_digest_is_judged_as_the_network_it_is():
    weight = torch.ones(1, 1, 2, dtype=torch.float64)
    conv = Conv(weight, (1, 4), (2,), (2,), ((0, 0),), (1,), 1, "zeros")  # disjoint windows: norm sqrt 2
    graph = Graph((Input("x", (1, 4)), Affine("c", "x", conv, None)))
    root = 1.4142135623730952
    certificate = Certificate(root, L1, Validity.RIGOROUS, "by hand", graph.digest(), Gains((Gain(("c",), L1, 1.0),)))
    text, (document, arrays) = certificate.to_json(), graph.document()
    verify(text, document, arrays)
    document["nodes"][1]["map"]["stride"] = [1]  # now the windows overlap: an input is read twice, the l1 norm is 2
    changed = {**json.loads(text), "network": digest(document, arrays)}
    assert "1.0 is not an upper bound: the norm is about 2.0" in refused(changed, document, arrays, Reject)
    changed["evidence"]["items"][0]["value"] = changed["bound"] = (2.0).hex()
    assert verify(json.dumps(changed), document, arrays).bound == 2.0


@pytest.mark.parametrize("field", ["stride", "dilation"])
def test_a_convolution_that_stands_still_is_none(field: str):
    conv = Conv(torch.ones(1, 1, 2, dtype=torch.float64), (1, 4), (3,), (1,), ((0, 0),), (1,), 1, "zeros")
    text, document, arrays = claim([Affine("c", "x", conv, None)], [("c", "l2->l2", 2.0)], 2.0, "l2->l2", (1, 4))
    verify(text, document, arrays)
    document["nodes"][1]["map"][field] = [0]
    changed = {**json.loads(text), "network": digest(document, arrays)}
    assert f"{field} is [0], not a list of at most 16 integers >= 1" in refused(changed, document, arrays, Malformed)


def test_a_shape_without_weights_has_a_limit_too():
    text, document, arrays = claim([], [], 1.0, "l2->l2", (1 << 14, 1 << 14))
    assert verify(text, document, arrays).bound == 1.0
    text, document, arrays = claim([], [], 1.0, "l2->l2", (1 << 14, (1 << 14) + 1))
    assert "over 268435456 entries" in refused(text, document, arrays, Malformed)


def test_a_processor_that_flushes_subnormal_numbers_is_refused():
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormal numbers")
    try:
        with pytest.raises(Reject, match="subnormal"):
            verify(*claim([A], IN_L2[:1], 3.0, "l2->l2"))
    finally:
        torch.set_flush_denormal(False)


def test_a_prover_of_one_s_own_may_stand_in_but_not_lie_about_the_rest():
    text, document, arrays = claim([A], [("a", "l2->l2", 1.0)], 1.0, "l2->l2")
    assert verify(text, document, arrays, lambda network, path, norms, value: value).bound == 1.0  # that is its word
    with pytest.raises(Reject, match="which the gains prove"):
        verify(text, document, arrays, lambda network, path, norms, value: Fraction(3))


def test_the_float64_check_accepts_what_the_kernel_proves_and_nothing_less():
    for name, norms in (("mlp", L2), ("branches", LINF), ("signals", L1)):
        graph = NETWORKS[name]
        certificate = certified(graph, norms)
        assert check_float64(certificate, graph).validity is Validity.RIGOROUS
        assert check(certificate, graph).validity is Validity.RIGOROUS
    first, *rest = certified(NETWORKS["mlp"], L2).evidence.items
    lower = Gains((Gain(first.path, first.norms, first.value * (1 - 1e-7)), *rest))
    with pytest.raises(CheckFailed, match=r"gain of a \(l2->l2\): .* is below .* kernel"):
        check_float64(
            Certificate(9e9, L2, Validity.RIGOROUS, "by hand", NETWORKS["mlp"].digest(), lower), NETWORKS["mlp"]
        )
    with pytest.raises(CheckFailed, match="is about the network"):
        check_float64(certified(NETWORKS["pools"], L2), NETWORKS["mlp"])


# ----------------------------------------------------------------------------------------------------------- files


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    graph = NETWORKS["mlp"]
    weights = save_certificate(certified(graph, L2), graph, tmp_path / "c.json")
    return tmp_path / "c.json", weights


def header_of(content: bytes) -> tuple[dict[str, Any], bytes]:
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def file_of(header: Any, body: bytes) -> bytes:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(text)) + text + body


def test_files_are_proven_by_the_library_and_by_the_script(files: tuple[Path, Path]):
    assert verify_files(*map(str, files)).norms == "l2->l2"
    command = [sys.executable, str(SCRIPT), *map(str, files)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith("ACCEPT: Lip(f; l2->l2) <= ")


def test_the_exit_status_tells_rejected_from_malformed(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]):
    certificate, weights = map(str, files)
    assert checker.main([certificate, weights]) == 0
    text = files[0].read_text()
    document = json.loads(text)
    files[0].write_text(json.dumps({**document, "bound": (1e-3).hex()}))
    assert checker.main([certificate, weights]) == 1
    assert "REJECT: bound 0.001 (l2->l2) is below" in capsys.readouterr().out
    files[0].write_text(text[:-20])
    assert checker.main([certificate, weights]) == 2
    assert checker.main([certificate, "nowhere"]) == 2
    assert checker.main([str(files[0].parent), weights]) == 2
    assert checker.main([certificate]) == 2
    files[0].write_bytes(b"\xff\xfe")
    assert checker.main([certificate, weights]) == 2


def test_the_script_lists_what_it_assumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    slope = (torch.tensor(0.0).double(), torch.tensor(2.0).double())
    graph = Graph((Input("x", (2,)), Activation("f", "x", (2,), "declared:me", {}, slope, torch.relu)))
    certificate = Certificate(2.0, L2, Validity.RIGOROUS, "by hand", graph.digest(), Gains(()))
    weights = save_certificate(certificate, graph, tmp_path / "c.json")
    assert checker.main([str(tmp_path / "c.json"), str(weights)]) == 0
    assert "assuming slope of f (declared:me) lies in [0.0, 2.0]" in capsys.readouterr().out


def test_a_declared_interval_must_not_be_empty():
    slope = (torch.tensor(10.0).double(), torch.tensor(1.0).double())
    graph = Graph((Input("x", (2,)), Activation("f", "x", (2,), "declared:me", {}, slope, torch.relu)))
    certificate = Certificate(10.0, L2, Validity.ESTIMATE, "by hand", graph.digest(), Gains(()))
    with pytest.raises(Malformed, match="its lower end is above its upper end"):
        verify(certificate.to_json(), *graph.document())


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, 40, -1])
def test_truncated_and_padded_network_files_are_malformed(files: tuple[Path, Path], keep: int):
    content = files[1].read_bytes()
    for broken in (content[:keep], content + b"\0"):
        files[1].write_bytes(broken)
        with pytest.raises(Malformed):
            verify_files(*map(str, files))


HEADERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no metadata": lambda h: {k: v for k, v in h.items() if k != "__metadata__"},
    "other metadata": lambda h: {**h, "__metadata__": {**h["__metadata__"], "more": "1"}},
    "metadata that is no text": lambda h: {**h, "__metadata__": {"lipcert": {}}},
    "metadata that is no graph": lambda h: {**h, "__metadata__": {"lipcert": "3"}},
    "a list": lambda h: [h],
    "a key twice": lambda h: json.dumps(h)[:-1] + ', "a.weight": ' + json.dumps(h["a.weight"]) + "}",
    "another type": lambda h: {**h, "a.weight": {**h["a.weight"], "dtype": "I32"}},
    "half the type": lambda h: {**h, "a.weight": {**h["a.weight"], "dtype": "BF16"}},
    "another shape": lambda h: {**h, "a.weight": {**h["a.weight"], "shape": [3, 3]}},
    "a negative shape": lambda h: {**h, "a.weight": {**h["a.weight"], "shape": [-4, -3]}},
    "an empty shape": lambda h: {**h, "a.weight": {**h["a.weight"], "shape": [0]}},
    "a huge shape": lambda h: {**h, "a.weight": {**h["a.weight"], "shape": [1 << 40, 1 << 40]}},
    "an overlap": lambda h: {**h, "a.weight": {**h["a.weight"], "data_offsets": [0, 48]}},
    "a gap": lambda h: {
        **h,
        "a.weight": {**h["a.weight"], "data_offsets": [v + 4 for v in h["a.weight"]["data_offsets"]]},
    },
    "three offsets": lambda h: {**h, "a.weight": {**h["a.weight"], "data_offsets": [0, 4, 8]}},
    "an offset that is true": lambda h: {**h, "a.weight": {**h["a.weight"], "data_offsets": [False, True]}},
    "one more field": lambda h: {**h, "a.weight": {**h["a.weight"], "more": 1}},
    "one tensor less": lambda h: {k: v for k, v in h.items() if k != "a.weight"},
    "a tensor that is text": lambda h: {**h, "a.weight": "zzz"},
}


@pytest.mark.parametrize("change", HEADERS)
def test_headers_that_do_not_describe_the_bytes_are_malformed(files: tuple[Path, Path], change: str):
    header, body = header_of(files[1].read_bytes())
    files[1].write_bytes(file_of(header, body))
    verify_files(*map(str, files))
    files[1].write_bytes(file_of(HEADERS[change](header), body))
    with pytest.raises(Reject if change == "metadata that is no graph" else Malformed):
        verify_files(*map(str, files))


def test_absurd_sizes_are_refused_before_they_are_read(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch):
    content = files[1].read_bytes()
    files[1].write_bytes(struct.pack("<Q", 1 << 62) + content[8:])
    with pytest.raises(Malformed, match="header of"):
        verify_files(*map(str, files))
    files[1].write_bytes(content)
    for limit in ("FILE_LIMIT", "HEADER_LIMIT", "TEXT_LIMIT", "ELEMENT_LIMIT"):
        with monkeypatch.context() as patch:
            patch.setattr(checker, limit, 10)
            with pytest.raises(Malformed):
                verify_files(*map(str, files))


def test_the_limits_are_those_of_the_page_on_the_format():
    page = (Path(__file__).parent.parent / "docs" / "certificate-format.md").read_text()
    told = {name: 2 ** int(power) for name, power in re.findall(r"^\| `(\w+_LIMIT)` \| 2\^(\d+) \|", page, re.M)}
    assert told == {name: value for name, value in vars(checker).items() if name.endswith("_LIMIT")}


def test_a_claim_about_a_domain_is_sent_to_the_other_checker():
    text, document, arrays = claim([A], IN_L2[:1], 3.0, "l2->l2")
    verify(text, document, arrays)
    local = json.dumps({**json.loads(text), "domain": {"kind": "box", "low": "0x0.0p+0", "high": "0x1.0p+0"}})
    with pytest.raises(Malformed, match=r"check it with check_domain\.py"):
        verify(local, document, arrays)


def test_the_reader_gives_what_was_saved(files: tuple[Path, Path]):
    document, arrays = read_safetensors(str(files[1]))
    expected, tensors = NETWORKS["mlp"].document()
    assert document == json.loads(json.dumps(expected))
    assert arrays.keys() == tensors.keys()
    assert all(np.array_equal(arrays[key], tensors[key]) for key in arrays)
    assert digest(document, arrays) == NETWORKS["mlp"].digest()
