"""Reading files, field for field."""

from __future__ import annotations

import hashlib
import json
import runpy
import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.laws.check.built import Malformed, checker, h


def test_json_has_unique_keys_and_small_integers_only():
    for text, value in (
        ('{"a": [1, -2, true, null, "x"], "b": {"a": 0}}', {"a": [1, -2, True, None, "x"], "b": {"a": 0}}),
        ("9007199254740992", 1 << 53),
        ("-999999999999999", -999999999999999),
    ):
        assert checker.parse(text) == value
    for text in ("9007199254740993", "-9007199254740993", "90071992547409920", "-90071992547409921", "1" + "0" * 5000):
        with pytest.raises(Malformed, match=r"^the integer .*, over 2.53"):
            checker.parse(f"[{text}]")
    for text in ("0.5", "1e3", "-0.0", "NaN", "Infinity", "-Infinity"):
        with pytest.raises(Malformed, match=r"^the number .*, where numbers are integers or hexadecimal text"):
            checker.parse(f'{{"a": {text}}}')
    with pytest.raises(Malformed, match=r"^a key stands twice among"):
        checker.parse('[{"a": 1, "b": 2, "a": 1}]')


def test_text_has_a_limit(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checker, "TEXT_LIMIT", 4)
    assert checker.parse("[12]") == [12]
    with pytest.raises(Malformed, match=r"^the text is over 4 characters"):
        checker.parse("[123]")


def test_a_record_has_its_fields_and_their_types():
    value = {"a": 1, "b": "x", "c": None}
    assert checker.record(value, "it", a=int, b=str, c=object) is value
    for wrong in ([], None, "ab", [("a", 1)], {}, {"a": 1, "b": "x"}, {**value, "d": 1}, {"a": 1, "b": "x", "d": None}):
        with pytest.raises(Malformed, match=r"^it is .*, not an object with the fields \['a', 'b', 'c'\]"):
            checker.record(wrong, "it", a=int, b=str, c=object)
    for key, other, kind in (
        ("a", True, "int"),
        ("a", 1.0, "int"),
        ("a", "1", "int"),
        ("b", 1, "str"),
        ("b", None, "str"),
    ):
        with pytest.raises(Malformed, match=f"^it: {key} is .*, not a {kind}"):
            checker.record({**value, key: other}, "it", a=int, b=str, c=object)


def test_naturals_are_a_short_list_of_integers():
    assert checker.naturals([0] * 16, "it") == (0,) * 16
    assert checker.naturals([], "it") == ()
    assert checker.naturals([3, 1], "it", 1) == (3, 1)
    for wrong, least in (
        ([0] * 17, 0),
        ((0,), 0),
        ("1", 0),
        (None, 0),
        ([-1], 0),
        ([0], 1),
        ([1, True], 0),
        ([1.0], 0),
        ([[1]], 0),
    ):
        with pytest.raises(Malformed, match=f"^it is .*, not a list of at most 16 integers >= {least}"):
            checker.naturals(wrong, "it", least)


def test_a_shape_is_not_absurd(monkeypatch: pytest.MonkeyPatch):
    assert checker.sizes([1, 1], "it") == (1, 1)
    assert checker.sizes([], "it") == ()
    monkeypatch.setattr(checker, "ELEMENT_LIMIT", 6)
    assert checker.sizes([2, 3], "it") == (2, 3)
    with pytest.raises(Malformed, match=r"^it is .*: over 6 entries"):
        checker.sizes([7], "it")
    with pytest.raises(Malformed, match=r"^it is .*, not a list of at most 16 integers >= 1"):
        checker.sizes([2, 0], "it")


def test_a_number_is_written_in_one_way():
    for value in (0.0, -0.0, 1.5, -5e-324, 1.7976931348623157e308):
        assert checker.number(value.hex(), "it") == Fraction(value)
    wrong = [
        "inf",
        "-inf",
        "nan",
        "1.5",
        "0x1.8p0",
        "0x1.8p+0",
        " 0x1.8000000000000p+0",
        "0x1" + "0" * 60,
        3,
        [],
        None,
        1.5,
    ]
    for text in wrong:
        with pytest.raises(Malformed, match=r"^it is .*, not a finite number in hexadecimal"):
            checker.number(text, "it")


def test_tensors_are_taken_once_and_have_a_type(monkeypatch: pytest.MonkeyPatch):
    for dtype in (np.float32, np.float64):
        remaining = {"a": np.array([0.5, -2.0], dtype=dtype), "b": np.ones(1)}
        found = checker.floats(remaining, "a")
        assert (found.dtype, found.tolist(), [*remaining]) == (np.float64, [0.5, -2.0], ["b"])
        with pytest.raises(Malformed, match=r"^tensor 'a' is missing, empty, too large, or used twice"):
            checker.floats(remaining, "a")
    for array in (np.array([1]), np.array([1.0], dtype=np.float16), np.array([1.0, np.nan]), np.array([[-np.inf]])):
        with pytest.raises(Malformed, match=r"^tensor 'a' of type .* is not a tensor of finite floats"):
            checker.floats({"a": array}, "a")
    index = np.array([3])
    assert checker.integers({"a": index}, "a") is index
    for array in (np.array([1.0]), np.array([1], dtype=np.int32), np.array([True])):
        with pytest.raises(Malformed, match=r"^tensor 'a' is of type .*, not int64"):
            checker.integers({"a": array}, "a")
    for key, value in (
        ("a", [1.0]),
        ("a", None),
        ("a", np.float64(1.0)),
        ("a", np.zeros((2, 0))),
        (("a",), np.ones(1)),
        (3, np.ones(1)),
    ):
        with pytest.raises(Malformed, match="is missing, empty, too large, or used twice"):
            checker.floats({key: value}, key)
    with pytest.raises(Malformed, match="is missing, empty, too large, or used twice"):
        checker.floats({}, ["a"])
    monkeypatch.setattr(checker, "ELEMENT_LIMIT", 3)
    assert checker.floats({"a": np.ones(3)}, "a").tolist() == [1.0] * 3
    with pytest.raises(Malformed, match="is missing, empty, too large, or used twice"):
        checker.floats({"a": np.ones(4)}, "a")


def test_parameters_are_numbers_or_tensors():
    assert checker.values({}, h(0.1)).item() == Fraction(0.1)
    found = checker.values({"t": np.array([[0.1, 2.0]])}, {"tensor": "t"})
    assert found.tolist() == [[Fraction(0.1), 2]]
    for wrong in ({"tensor": "t", "more": 1}, {}, {"tensor": 3}):
        with pytest.raises(Malformed, match=r"^a parameter"):
            checker.values({"t": np.ones(1)}, wrong)
    with pytest.raises(Malformed, match=r"^a parameter is .*, not a finite number"):
        checker.values({}, 0.5)


def test_an_array_broadcasts_to_a_shape_and_not_the_other_way():
    array = np.ones((2, 1))
    assert checker.broadcasts(array, (3, 2, 4)) is array
    with pytest.raises(Malformed, match=r"^a tensor of shape \(2, 1\) where \(1, 4\) is needed"):
        checker.broadcasts(array, (1, 4))


def test_the_digest_is_of_sorted_json_and_little_endian_bytes():
    arrays = {"b": np.array([[1.5, -2.0, 3.0]]).T[::2], "a": np.array([7, -1])}
    told = {
        "a": {"dtype": "int64", "sha256": hashlib.sha256(struct.pack("<2q", 7, -1)).hexdigest(), "shape": [2]},
        "b": {"dtype": "float64", "sha256": hashlib.sha256(struct.pack("<2d", 1.5, 3.0)).hexdigest(), "shape": [2, 1]},
    }
    text = json.dumps({"graph": {"y": 1, "z": [2]}, "tensors": told}, separators=(",", ":"))
    expected = "sha256:" + hashlib.sha256(text.encode()).hexdigest()
    assert checker.digest({"z": [2], "y": 1}, arrays) == expected
    assert checker.digest({"y": 1, "z": [2]}, dict(sorted(arrays.items()))) == expected


def written_file(path: Path, header: Any, body: bytes, length: int | None = None) -> str:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + body)
    return str(path)


def tensor(dtype: str, shape: Sequence[int], start: int, stop: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


META = {"__metadata__": {"lipcert": '{"nodes": []}'}}
BODY = struct.pack("<3f", 1, 2, 3) + struct.pack("<2d", 4, -5) + struct.pack("<2q", 6, -(1 << 60))
HEADER = {
    **META,
    "b": tensor("F64", (1, 2), 12, 28),
    "c": tensor("F32", (3,), 0, 12),
    "a": tensor("I64", (2, 1), 28, 44),
}


def test_a_file_is_read_back_to_back_in_the_order_of_its_bytes(tmp_path: Path):
    document, arrays = checker.read_safetensors(written_file(tmp_path / "w", HEADER, BODY))
    assert document == {"nodes": []}
    assert {key: (array.dtype.str, array.tolist()) for key, array in arrays.items()} == {
        "a": ("<i8", [[6], [-(1 << 60)]]),
        "b": ("<f8", [[4.0, -5.0]]),
        "c": ("<f4", [1.0, 2.0, 3.0]),
    }
    assert checker.read_safetensors(written_file(tmp_path / "w", META, b"")) == ({"nodes": []}, {})


def test_a_file_that_is_not_its_header_is_malformed(tmp_path: Path):
    path = tmp_path / "w"
    for header, body, why in [
        ({**HEADER, "a": tensor("I64", (2, 1), 28, 45)}, BODY, "does not begin at 28 and fill its span"),
        ({**HEADER, "a": tensor("I64", (2, 1), 29, 45)}, BODY + b"0", "does not begin at 28 and fill its span"),
        ({**HEADER, "a": tensor("I64", (3, 1), 28, 44)}, BODY, "does not begin at 28 and fill its span"),
        ({**HEADER, "a": tensor("F32", (2, 1), 28, 44)}, BODY, "does not begin at 28 and fill its span"),
        ({**HEADER, "a": tensor("I32", (4, 1), 28, 44)}, BODY, "does not begin at 28 and fill its span"),
        ({**HEADER, "a": tensor("f64", (2, 1), 28, 44)}, BODY, "does not begin at 28 and fill its span"),
        ({**HEADER, "c": tensor("F32", (3,), 0, 0)}, BODY, "does not begin at 0 and fill its span"),
        ({**HEADER, "d": tensor("F32", (3,), 0, 12)}, BODY, "does not begin at 12 and fill its span"),
        ({key: HEADER[key] for key in HEADER if key != "c"}, BODY, "does not begin at 0 and fill its span"),
        (HEADER, BODY + b"0", "^tensors of 44 bytes, data of 45"),
        (META, b"0", "^tensors of 0 bytes, data of 1"),
        ({key: HEADER[key] for key in HEADER if key != "a"}, BODY, "^tensors of 28 bytes, data of 44"),
        ({key: HEADER[key] for key in HEADER if key != "__metadata__"}, BODY, "^the file carries no graph"),
        ([META], b"", "^the file carries no graph"),
        (["__metadata__"], b"", "^the file carries no graph"),
        ({**HEADER, "__metadata__": {}}, BODY, "^the metadata is"),
        ({**HEADER, "a": {"dtype": "F32"}}, BODY, "^a is"),
    ]:
        with pytest.raises(Malformed, match=why):
            checker.read_safetensors(written_file(path, header, body))
    short = {key: HEADER[key] for key in ("__metadata__", "c")}
    with pytest.raises((Malformed, ValueError)):
        checker.read_safetensors(written_file(path, short, BODY[:11]))


def test_a_header_ends_within_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, size = tmp_path / "w", len(json.dumps(META))
    for length, total in ((size + 1, size + 8), (size + 8, size + 8), (1 << 62, size + 8)):
        with pytest.raises(Malformed, match=f"^a header of {length} bytes in a file of {total}"):
            checker.read_safetensors(written_file(path, META, b"", length))
    for content in (b"", b"\0", b"\0" * 7):
        path.write_bytes(content)
        with pytest.raises(Malformed, match=f"^a header of 0 bytes in a file of {len(content)}"):
            checker.read_safetensors(str(path))
    written_file(path, META, b"")
    for name, most in (("HEADER_LIMIT", size), ("FILE_LIMIT", size + 8)):
        with monkeypatch.context() as patch:
            patch.setattr(checker, name, most)
            checker.read_safetensors(str(path))
            patch.setattr(checker, name, most - 1)
            with pytest.raises(Malformed, match=r"^a header of|^the file is over"):
                checker.read_safetensors(str(path))


def test_the_file_is_a_script_of_two_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    script = str(Path(str(checker.__file__)))
    for arguments, said in ((["a", "b"], "MALFORMED: FileNotFoundError"), (["a"], "usage: "), (["a"] * 3, "usage: ")):
        monkeypatch.setattr("sys.argv", [script, *(str(tmp_path / name) for name in arguments)])
        with pytest.raises(SystemExit) as status:
            runpy.run_path(script, run_name="__main__")
        assert status.value.code == 2
        assert capsys.readouterr().out.startswith(said)
