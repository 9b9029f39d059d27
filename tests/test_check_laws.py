"""Laws of the checker's inner functions: verdict, gains, and parts; all in exact arithmetic and small.

Whole certificates leave room in which a lost error term hides, so every function is held here against what its
docstring says, at both sides of the boundary.
"""

import importlib
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pytest

from tests.semidefinite import semidefinite

checker: Any = importlib.import_module("lipcert.check")  # the package offers a function of the same name
Malformed, Map, Node, Reject, Signal, TooLarge = (
    getattr(checker, name) for name in ("Malformed", "Map", "Node", "Reject", "Signal", "TooLarge")
)
HALF, THIRD = Fraction(1, 2), Fraction(1, 3)
NEAR = Fraction(1, 10**6)


def ints(entries: Any) -> np.ndarray:
    return np.array(entries, dtype=np.int64)


def drawn(seed: int, *shape: int, most: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).integers(-most, most + 1, shape)


def affine(name: str, source: str, linear: Any) -> Any:
    return Node("affine", name, linear.out_shape, (source,), linear)


def dense(X: Any, unit: Fraction = Fraction(1)) -> Any:
    X = ints(X)
    return Map("dense", X.shape[1:], X.shape[:1], X, unit)


def diagonal(scale: Any, shape: tuple[int, ...], unit: Fraction = Fraction(1)) -> Any:
    return Map("diagonal", shape, shape, ints(scale), unit)


def conv(
    weight: np.ndarray,
    sizes: Sequence[int],
    steps: Sequence[tuple[int, int, int]],
    groups: int = 1,
    unit: Fraction = Fraction(1),
    out: Sequence[int] | None = None,
    mode: str = "zeros",
) -> Any:
    out = sizes if out is None else out
    kernel = weight.shape[2:]
    tables = tuple(
        checker.index_table(n, m, k, stride, before, dilation, mode)
        for n, m, k, (stride, before, dilation) in zip(sizes, out, kernel, steps, strict=True)
    )
    shapes = (weight.shape[1] * groups, *sizes), (weight.shape[0], *out)
    return Map("conv", *shapes, weight, unit, tables, groups, (), tuple(steps))


def network(*nodes: Any, shape: tuple[int, ...] = (2,)) -> dict[str, Any]:
    return {node.name: node for node in (Node("input", "x", shape), *nodes)}


def activation(name: str, source: str, shape: tuple[int, ...], lower: Any, upper: Any) -> Any:
    ends = tuple(np.array(end, dtype=object) for end in (lower, upper))
    slope = max(abs(Fraction(end)) for end in (*ends[0].flat, *ends[1].flat))
    return Node("activation", name, shape, (source,), slope=slope, ends=ends)


def hexed(*numbers: Any) -> list[str]:
    return [float(number).hex() for number in numbers]


# ------------------------------------------------------------------------------------------------ the verdict


def test_limits_are_those_of_the_format_and_what_is_not_told_changes_nothing():
    assert (checker.HEADER_LIMIT, checker.TEXT_LIMIT, checker.FILE_LIMIT) == (2**26, 2**26, 2**33)
    assert (checker.ELEMENT_LIMIT, checker.INDEX_LIMIT, checker.PATTERN_LIMIT) == (2**28, 2**22, 2**26)
    assert (checker.SIDE_LIMIT, checker.ENTRY_LIMIT, checker.WORK_LIMIT) == (2**11, 2**24, 2**39)
    assert checker.WAVE_LIMIT == 2**37
    with mpmath.workdps(80):
        assert abs(mpmath.mpf(checker.PI.numerator) / checker.PI.denominator - mpmath.pi) < mpmath.mpf(10) ** -60
    plain, node = Map("reshape", (1,), (1,)), Node("input", "x", (1,))
    assert (plain.unit, plain.groups, plain.circular, plain.parts, plain.tables) == (1, 1, False, (), ())
    assert (node.dim, node.members, node.consecutive, node.angles) == (0, 0, False, ())
    assert Signal(Fraction(1), {}, {}).loose == 0 == checker.Wave(1, True, Fraction(1), {}, {}).loose
    kernel = checker.Kernel(Fraction(1), {}, ())
    assert kernel.turned is kernel.circular is False


CLAIM: dict[str, Any] = {
    "format": "lipcert-certificate-1",
    "network": "sha256:0",
    "norms": "l2->l2",
    "bound": hexed(1.5)[0],
    "validity": "RIGOROUS",
    "method": "by hand",
    "evidence": {"kind": "gains", "items": []},
}


def claimed(**changes: Any) -> str:
    return json.dumps({**CLAIM, **changes})


def test_a_claim_is_read_as_it_is_written():
    assert checker.read_claim(claimed())["bound"] == Fraction(3, 2)
    parts = {"kind": "multipliers", "items": [], "blocks": []}
    assert checker.read_claim(claimed(evidence=parts))["evidence"] == parts
    for norms, validity in itertools.product(checker.PAIRS, ("RIGOROUS", "NUMERICAL", "ESTIMATE")):
        assert checker.read_claim(claimed(norms=norms, validity=validity))["norms"] == norms
    assert checker.read_claim(claimed(domain={}), domain=dict)["domain"] == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "lipcert-certificate-2"}, "format 'lipcert-certificate-2'"),
        ({"norms": "l1->l2"}, "norms 'l1->l2'"),
        ({"evidence": {"kind": "multipliers", "items": []}}, "evidence 'multipliers'"),
        ({"evidence": {"kind": "gains", "items": [], "blocks": []}}, "evidence 'gains'"),
        ({"validity": "PROVEN"}, "validity 'PROVEN'"),
        ({"domain": {}}, "about a domain"),
    ],
    ids=["format", "norms", "multipliers without parts", "gains with parts", "validity", "domain"],
)
def test_every_field_of_a_claim_is_refused_alone(changes: dict[str, Any], message: str):
    with pytest.raises(Malformed, match=message):
        checker.read_claim(claimed(**changes))


def test_text_that_is_no_object_is_no_claim_about_a_domain():
    with pytest.raises(Malformed, match="not an object"):
        checker.read_claim('["domain"]')


def test_subnormal_numbers_have_to_survive(monkeypatch: pytest.MonkeyPatch):
    plain = math.ulp
    monkeypatch.setattr(math, "ulp", lambda x: 0.0 if x == 0.0 else plain(x))
    with pytest.raises(Reject, match="flushes subnormal numbers"):
        checker.read_claim(claimed())


def test_a_network_with_a_number_that_is_none_has_no_digest():
    with pytest.raises(ValueError, match="JSON"):
        checker.identified({"network": ""}, {"slope": math.nan}, {})
    with pytest.raises(Reject, match=r"the certificate is about the network sha256:0, this one is sha256:\w+"):
        checker.identified({"network": "sha256:0"}, {}, {})


def test_only_refusals_escape():
    assert checker.guarded(lambda: 7) == 7

    def failing(error: Exception) -> Callable[[], Any]:
        def run() -> Any:
            raise error

        return run

    for known in (Reject("a"), Malformed("b"), TooLarge("c")):
        with pytest.raises(type(known), match=str(known)) as caught:
            checker.guarded(failing(known))
        assert caught.value is known
    with pytest.raises(Malformed, match="ZeroDivisionError: d"):
        checker.guarded(failing(ZeroDivisionError("d")))


def test_both_provers_may_be_replaced_one_at_a_time(monkeypatch: pytest.MonkeyPatch):
    seen: list[Any] = []
    monkeypatch.setattr(checker, "read_claim", lambda text: text)
    monkeypatch.setattr(checker, "identified", lambda *_: {})
    monkeypatch.setattr(checker, "settle", lambda claim, network, *provers: seen.append(provers))
    checker.verify("", {}, {})
    checker.verify("", {}, {}, "gains")
    checker.verify("", {}, {}, None, "parts")
    exact = checker.prove_gain, checker.prove_part
    assert seen == [exact, ("gains", exact[1]), (exact[0], "parts")]


def test_a_certificate_of_exactly_the_limit_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    certificate = tmp_path / "c.json"
    certificate.write_text(claimed())
    monkeypatch.setattr(checker, "read_safetensors", lambda path: ({}, {}))
    monkeypatch.setattr(checker, "TEXT_LIMIT", len(claimed()))
    with pytest.raises(Reject, match="this one is"):
        checker.verify_files(str(certificate), "w")
    monkeypatch.setattr(checker, "TEXT_LIMIT", len(claimed()) - 1)
    with pytest.raises(Malformed, match="the certificate is over"):
        checker.verify_files(str(certificate), "w")


def test_the_exit_status_is_0_1_or_2(capsys: pytest.CaptureFixture[str]):
    def refusing(error: Exception) -> Callable[..., Any]:
        def proven(*_: str) -> Any:
            raise error

        return proven

    def accepting(domain: str) -> Callable[..., Any]:
        return lambda *_: checker.Accept(2.5, "l1->linf", ("a", "b"), domain)

    assert checker.main(["c", "w"], accepting("")) == 0
    assert capsys.readouterr().out == "ACCEPT: Lip(f; l1->linf) <= 2.5\n  assuming a\n  assuming b\n"
    assert checker.main(["c", "w"], accepting("a ball")) == 0
    assert "Lip(f; l1->linf on a ball) <= 2.5" in capsys.readouterr().out
    assert checker.main(["c", "w"], refusing(Reject("too low"))) == 1
    assert capsys.readouterr().out == "REJECT: too low\n"
    assert checker.main(["c", "w"], refusing(Malformed("no file"))) == 2
    assert capsys.readouterr().out == "MALFORMED: no file\n"
    for arguments in ([], ["c"], ["c", "w", "d"]):
        assert checker.main(arguments, accepting("")) == 2
        assert capsys.readouterr().out.startswith("usage: ")
    assert checker.main(["no such file", "w"]) == 2
    assert capsys.readouterr().out.startswith("MALFORMED: ")


def test_a_claim_is_settled_at_what_follows_and_not_below():
    net = network(affine("a", "x", diagonal([3], (2,))), Node("opaque", "o", (2,), ("a",), declared="o is at most 1"))
    net["o"] = Node("opaque", "o", (2,), ("a",), gains={"l2->l2": Fraction(2)}, declared="o is at most 2")
    gain = {"path": ["a"], "norms": "l2->l2", "value": hexed(3)[0]}
    evidence = {"kind": "gains", "items": [gain]}

    def settled(bound: Fraction) -> Any:
        return checker.settle(
            {"evidence": evidence, "bound": bound, "norms": "l2->l2"}, net, checker.prove_gain, checker.prove_part
        )

    found = settled(Fraction(6))
    assert (found.bound, found.norms, found.assumptions, found.domain) == (6.0, "l2->l2", ("o is at most 2",), "")
    with pytest.raises(Reject, match=r"bound 5.9\d* \(l2->l2\) is below 6.0, which the gains prove"):
        settled(6 - NEAR)


# ------------------------------------------------------------------------------------------------ items and blocks

CHAIN = network(
    affine("a", "x", dense([[1, 2], [3, 4], [5, 6]])),
    affine("b", "a", dense(drawn(0, 4, 3))),
    activation("r", "b", (4,), 0, 1),
    affine("c", "r", dense(drawn(1, 5, 4))),
    affine("d", "a", dense(drawn(2, 2, 3))),
)


def gain(path: Any, norms: str = "l2->l2", value: float = 7.5) -> dict[str, Any]:
    return {"path": path, "norms": norms, "value": value.hex()}


def test_a_gain_is_handed_on_as_it_is_claimed():
    def prove(*found: Any) -> Fraction:
        assert found == (CHAIN, ("a", "b"), "l1->linf", Fraction(15, 2))
        return Fraction(8)

    assert checker.prove_item(gain(["a", "b"], "l1->linf"), CHAIN, prove) == (("a", "b"), "l1->linf", Fraction(8))
    zero = checker.prove_item(gain(["a"], value=0.0), CHAIN, lambda *found: found[3])
    assert zero == (("a",), "l2->l2", Fraction(0))


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (gain([]), "no such nodes or norms"),
        (gain(["a", "e"]), "no such nodes or norms"),
        (gain(["a", ["b"]]), "no such nodes or norms"),
        (gain(["a", 1]), "no such nodes or norms"),
        (gain(["a"], "l1->l2"), "no such nodes or norms"),
        (gain(["a", "c"]), "not a chain of affine nodes"),
        (gain(["b", "a"]), "not a chain of affine nodes"),
        (gain(["b", "d"]), "not a chain of affine nodes"),
        (gain(["b", "r", "c"]), "not a chain of affine nodes"),
        (gain(["r"]), "not a chain of affine nodes"),
        (gain(["x"]), "not a chain of affine nodes"),
        (gain(["a"], value=-0.5), "is negative"),
    ],
    ids=range(12),
)
def test_what_is_no_gain_is_refused(item: Any, message: str):
    with pytest.raises(Malformed, match=message):
        checker.prove_item(item, CHAIN, lambda *_: Fraction(0))


def part(**changes: Any) -> dict[str, Any]:
    found = {"source": "a", "target": "c", "value": hexed(2.5)[0], "multipliers": {"r": hexed(1, 2)}, **changes}
    return {key: value for key, value in found.items() if value is not None}


def in_rows(count: int, norms: str, **changes: Any) -> dict[str, Any]:
    rows = [{"multipliers": {"r": hexed(k)}, "weights": hexed(k, 0.5)} for k in range(count)]
    return part(**{"norms": norms, "rows": rows, "multipliers": None, **changes})


def handed_on(item: Any) -> tuple[Any, list[Any]]:
    seen: list[Any] = []
    return checker.prove_block(item, CHAIN, lambda *found: seen.append(found)), seen


def test_a_part_is_handed_on_as_it_is_claimed():
    value = Fraction(5, 2)
    found, seen = handed_on(part())
    assert found == ("a", "c", "l2->l2", value)
    assert seen == [(CHAIN, "a", "c", value, {"r": [1, 2]}, (), None)]
    found, seen = handed_on(part(torus=[1, 5], value=hexed(0)[0]))
    assert found == ("a", "c", "l2->l2", 0)
    assert seen == [(CHAIN, "a", "c", 0, {"r": [1, 2]}, (1, 5), None)]


@pytest.mark.parametrize(("norms", "count"), [("linf->linf", 5), ("l2->linf", 5), ("l1->linf", 15)])
def test_a_part_in_rows_has_one_for_every_output_or_pair(norms: str, count: int):
    found, seen = handed_on(in_rows(count, norms))
    assert found == ("a", "c", norms, Fraction(5, 2))
    assert seen == [
        (CHAIN, "a", "c", Fraction(5, 2), {"r": [k]}, (), (norms, k, [k, Fraction(1, 2)])) for k in range(count)
    ]
    for other in (count - 1, count + 1, 0, 1):
        with pytest.raises(Malformed, match=f"{other} rows in {norms}, not {count}"):
            handed_on(in_rows(other, norms))


ROW = {"multipliers": {"r": []}, "weights": []}


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ([], "a part is .*not an object"),
        (["torus", "rows"], r"fields \['multipliers', 'source', 'target', 'value'\]"),
        (part(source="e"), "no such nodes"),
        (part(target="e"), "no such nodes"),
        (part(source="c"), "no such nodes"),
        (in_rows(5, "l2->l2"), "5 rows in l2->l2"),
        (in_rows(5, "l1->l1"), "5 rows in l1->l1"),
        (in_rows(5, "l2->linf", torus=[2]), "5 rows in l2->linf"),
        (part(torus=[]), "a torus without dimensions"),
        (part(torus=[0]), "torus is .*>= 1"),
        (part(torus=[3, 0]), "torus is .*>= 1"),
        (part(value=hexed(-0.5)[0]), "a bound below 0"),
        (part(value=hexed(-0.5)[0], torus=[2]), "a bound below 0"),
        (part(multipliers={"": []}), "that are no lists"),
        (part(multipliers={"r": "0x1p+0"}), "that are no lists"),
        (part(multipliers={"r": [1]}), "number of r"),
        (in_rows(5, "l2->linf", rows=[ROW] * 4 + [{**ROW, "weights": {}}]), "row 4 of a part"),
        (in_rows(5, "l2->linf", rows=[ROW] * 4 + [{"multipliers": {}}]), "row 4 of a part"),
        (in_rows(5, "l2->linf", rows=[ROW] * 4 + [{**ROW, "multipliers": {"": []}}]), "that are no lists"),
    ],
    ids=range(19),
)
def test_what_is_no_part_is_refused(item: Any, message: str):
    with pytest.raises(Malformed, match=message):
        handed_on(item)


# ------------------------------------------------------------------------------------------------ composition


def composed(net: Any, norms: str, proven: Any = (), parts: Any = ()) -> Fraction:
    return checker.compose(net, norms, list(proven), list(parts))


def scaled(name: str, source: str) -> Any:
    return affine(name, source, diagonal([1], (2,)))


def test_gains_of_paths_act_on_what_their_first_node_reads():
    net = network(scaled("a", "x"), scaled("b", "a"), scaled("c", "b"))
    one, two, all_three = (("a",), "l2->l2", Fraction(3)), (("b", "c"), "l2->l2", Fraction(5)), ("a", "b", "c")
    assert composed(net, "l2->l2", [one, two]) == 15
    assert composed(net, "l2->l2", [one, two, (all_three, "l2->l2", Fraction(14))]) == 14
    assert composed(net, "l2->l2", [(all_three, "l2->l2", Fraction(16)), one, two]) == 15
    with pytest.raises(Reject, match=r"`c` \(affine\) has no proven gain that leads from l2 towards l2"):
        composed(net, "l2->l2", [one, (("b",), "l2->l2", Fraction(1)), (("c",), "l1->l1", Fraction(1))])
    with pytest.raises(Reject, match=r"`a` \(affine\)"):
        composed(net, "l2->l2", [two])
    with pytest.raises(Reject, match=r"`a` \(affine\)"):
        composed(net, "linf->linf", [one, two])


def test_a_smaller_norm_of_the_output_is_at_most_the_larger_one():
    net = network(scaled("a", "x"))
    assert composed(net, "l1->linf", [(("a",), "l1->l1", Fraction(3))]) == 3
    assert composed(net, "l1->linf", [(("a",), "l1->l1", Fraction(3)), (("a",), "l1->linf", Fraction(2))]) == 2
    assert composed(net, "l1->linf", [(("a",), "l1->l1", Fraction(3)), (("a",), "l1->linf", Fraction(4))]) == 3
    assert composed(net, "l1->linf", [(("a",), "l1->linf", Fraction(4))]) == 4
    assert composed(net, "l2->linf", [(("a",), "linf->linf", Fraction(4))]) == 4


def test_parts_act_on_their_source_and_nothing_else():
    net = network(scaled("a", "x"), activation("r", "a", (2,), 0, 3), scaled("b", "r"))
    first, last = (("a",), "l2->l2", Fraction(3)), (("b",), "l2->l2", Fraction(5))
    assert composed(net, "l2->l2", [first, last]) == 45
    assert composed(net, "l2->l2", [first, last], [("a", "b", "l2->l2", Fraction(14))]) == 42
    assert composed(net, "l2->l2", [first, last], [("x", "r", "l2->l2", Fraction(8))]) == 40
    assert composed(net, "l2->l2", [first, last], [("a", "b", "l2->linf", Fraction(1))]) == 45
    assert composed(net, "l2->linf", [first, last], [("a", "b", "l2->linf", Fraction(1))]) == 3
    assert composed(net, "l2->l2", [first, last], [("a", "b", "linf->linf", Fraction(1))]) == 45
    assert composed(net, "l2->l2", [first], [("a", "b", "l2->l2", Fraction(14))]) == 42


def test_activations_and_other_functions_multiply():
    net = network(activation("r", "x", (2,), -3, 2))
    assert [composed(net, norms) for norms in checker.PAIRS] == [3] * 5
    gains = {"l2->l2": Fraction(2), "l1->linf": Fraction(5), "linf->linf": Fraction(7)}
    net = network(activation("r", "x", (2,), -3, 2), Node("opaque", "o", (2,), ("r",), gains=gains))
    assert composed(net, "l2->l2") == 6
    assert composed(net, "l1->linf") == 15
    assert composed(net, "linf->linf") == 21
    assert composed(net, "l2->linf") == 6
    with pytest.raises(Reject, match=r"`o` \(opaque\) has no proven gain that leads from l1 towards l1"):
        composed(net, "l1->l1")
    without = {**net, "r": Node("activation", "r", (2,), ("x",))}
    with pytest.raises(Reject, match=r"`r` \(activation\)"):
        composed(without, "l2->l2")


@pytest.mark.parametrize(
    ("kind", "norms", "total"),
    [(kind, f"{r}->{r}", 7) for kind in ("add", "concat") for r in ("l1", "l2", "linf") if (kind, r) < ("concat", "l2")]
    + [("concat", "l2->l2", 5), ("concat", "linf->linf", 4)],
)
def test_branches_add_up_or_stand_side_by_side(kind: str, norms: str, total: int):
    net = network(scaled("a", "x"), scaled("b", "x"), Node(kind, "s", (2,), ("a", "b")))
    gains = [(("a",), norms, Fraction(3)), (("b",), norms, Fraction(4))]
    assert composed(net, norms, gains) == total
    for gain in gains:
        with pytest.raises(Reject, match="has no proven gain"):
            composed(net, norms, [gain])


def test_branches_side_by_side_have_a_root_that_is_rounded_up():
    net = network(scaled("a", "x"), scaled("b", "x"), Node("concat", "s", (4,), ("a", "b")))
    total = composed(net, "l2->l2", [((name,), "l2->l2", Fraction(1)) for name in "ab"])
    assert 2 <= total**2 <= 2 + Fraction(1, 2**120)


def test_a_root_is_exact_or_at_most_one_part_in_2_to_the_127_above():
    near = [Fraction(n, d) for n, d in itertools.product(range(13), range(1, 13))]
    far = [Fraction(2**k + 1, 2**m - 1) for k in (0, 1, 254, 255, 256, 257, 600) for m in (1, 2, 300, 301)]
    for value in [*near, *far, *(1 / value for value in far)]:
        root = checker.sqrt_up(value)
        assert value <= root**2 <= value * (1 + Fraction(1, 2**127)) ** 2
        assert checker.sqrt_up(value**2) == value


# ------------------------------------------------------------------------------------------------ maxima


def squared(M: np.ndarray, norms: str) -> int:
    """The square of a norm of a matrix of integers."""
    A = abs(M.astype(object))
    if norms == "l1->l1":
        return int(max(A.sum(0))) ** 2
    if norms == "linf->linf":
        return int(max(A.sum(1))) ** 2
    return int(A.max()) ** 2 if norms == "l1->linf" else int(max((A * A).sum(1)))


SELECTION = Map("selection", (3, 2), (8,), ints([0, 0, 5, -1, 0, 3, 5, -1]))
MAPS: dict[str, Any] = {
    "dense": dense([[1, -2, 3], [-9, 1, 0], [4, 4, -4], [0, 0, 0]], THIRD),
    "dense, last row and column": dense([[1, -2, 3], [1, 1, 5], [-4, 4, -9]]),
    "dense, first row and column": dense([[-9, 2, -3], [7, 1, 0]]),
    "dense, for every row of the input": Map("dense", (2, 3), (2, 2), ints([[1, -5, 2], [0, 3, -3]]), HALF),
    "scale": diagonal([[2, -7, 3]], (2, 3), THIRD),
    "one scale": diagonal(-3, (2, 3)),
    "selection": SELECTION,
    "selection of nothing": Map("selection", (3,), (2, 2), ints([[-1, -1], [-1, -1]])),
    "selection of the last": Map("selection", (3,), (2, 2), ints([[2, -1], [1, 2]])),
    "reshape": Map("reshape", (2, 3), (6,)),
    "zero": dense([[0, 0]]),
    "zero times little": dense([[0, 0]], Fraction(1, 8)),
    "convolution": conv(drawn(3, 4, 3, 3, most=9), (5,), [(1, 1, 1)], unit=THIRD),
    "groups": conv(drawn(4, 6, 2, 3, most=9), (5,), [(2, 1, 1)], groups=3, out=(3,)),
    "two dimensions": conv(drawn(5, 2, 3, 2, 3, most=9), (4, 5), [(1, 1, 2), (2, 0, 1)], out=(3, 2)),
    "replicated": conv(drawn(6, 2, 1, 3, most=9), (4,), [(1, 2, 1)], out=(6,), mode="replicate"),
    "large numbers": conv(drawn(7, 2, 1, 3).astype(object) << 70, (4,), [(1, 1, 1)], unit=Fraction(1, 2**70)),
    "only the first input is read": conv(ints([[[5, -7]]]), (3,), [(4, 0, 1)], out=(1,)),
}
MAPS["adjoint"] = Map("adjoint", (6, 3), (6, 5), None, Fraction(1), parts=(MAPS["groups"],))
MAPS["separable"] = Map(
    "separable",
    *((2, 3, 2), (2, 2, 4), None, Fraction(1, 6)),
    parts=(
        Map("reshape", (2,), (2,)),
        dense([[1, -2, 0], [3, 1, 1]], THIRD),
        dense([[1, 2], [-5, 0], [0, 1], [1, 1]], HALF),
    ),
)


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("norms", [pair for pair in checker.PAIRS if pair != "l2->l2"])
def test_a_maximum_over_rows_or_columns_is_that_of_the_matrix(name: str, norms: str):
    linear = MAPS[name]
    unit = Fraction(1, 2**70) if name == "large numbers" else linear.unit
    if name == "adjoint":
        linear = Map("adjoint", linear.in_shape, linear.out_shape, None, linear.parts[0].unit, parts=linear.parts)
    assert checker.measure(linear, norms) == squared(checker.matrix(linear), norms) * unit**2


@pytest.mark.parametrize("name", ["scale", "one scale", "selection", "selection of nothing", "reshape"])
def test_the_norm_of_maps_with_one_entry_in_a_row_is_that_of_the_longest_column(name: str):
    M = checker.matrix(MAPS[name]).astype(object)
    assert checker.measure(MAPS[name], "l2->l2") == max((M * M).sum(0)) * MAPS[name].unit ** 2


def test_a_row_too_long_for_one_piece_is_measured():
    X = np.ones((1, (1 << 20) + 1), dtype=np.int64)
    assert checker.measure(dense(X), "linf->linf") == ((1 << 20) + 1) ** 2


def test_sums_over_taps_have_a_limit_of_their_own(monkeypatch: pytest.MonkeyPatch):
    linear = conv(drawn(3, 4, 3, 3), (5,), [(1, 1, 1)])  # rows in the middle hold those at the ends
    assert checker.measure(linear, "linf->linf") > 0
    monkeypatch.setattr(checker, "PATTERN_LIMIT", 4 * 3 * 3)
    assert checker.measure(linear, "linf->linf") > 0
    monkeypatch.setattr(checker, "PATTERN_LIMIT", 4 * 3 * 3 - 1)
    with pytest.raises(TooLarge, match="kinds of rows of 36 weights"):
        checker.measure(linear, "linf->linf")


def test_of_patterns_the_largest_are_kept():
    table = ints([[-1, 0], [0, 1], [1, 1], [1, -1]])
    assert sorted(checker.patterns(table, "rows")) == [((0,), (1,)), ((0, 1),)]
    assert sorted(checker.patterns(table, "columns")) == [((0,), (0, 1), (1,)), ((0,), (1,))][:1]
    assert checker.patterns(ints([[-1, -1]]), "rows") == []


def test_there_are_at_most_512_patterns(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checker, "Counter", lambda row: math.nan)  # whether one holds another is not the question here
    bits = np.arange(513)[:, None] >> np.arange(11) & 1  # the last tap reads the first of two, so no two are alike
    table = 2 * np.arange(513)[:, None] + bits
    assert len(checker.patterns(table[:512], "rows")) == 512
    with pytest.raises(TooLarge, match="513 kinds of rows"):
        checker.patterns(table, "rows")


CHAINS: dict[str, tuple[list[Any], list[str]]] = {
    "reshape": ([Map("reshape", (6,), (2, 3))], ["reshape"]),
    "reshapes": ([Map("reshape", (6,), (2, 3)), Map("reshape", (2, 3), (3, 2))], ["reshape"]),
    "dense and dense": ([dense(drawn(1, 3, 2), HALF), dense(drawn(2, 4, 3), THIRD)], ["dense"]),
    "dense between reshapes": (
        [Map("reshape", (2, 1), (2,)), dense(drawn(1, 3, 2)), Map("reshape", (3,), (3, 1))],
        ["dense"],
    ),
    "dense by rows, then dense": (
        [Map("dense", (2, 3), (2, 2), drawn(1, 2, 3)), Map("reshape", (2, 2), (4,)), dense(drawn(2, 3, 4))],
        ["dense", "dense"],
    ),
    "dense by rows twice": (
        [Map("dense", (2, 3), (2, 2), drawn(1, 2, 3)), Map("dense", (2, 2), (2, 4), drawn(2, 4, 2))],
        ["dense"],
    ),
    "selection, dense, dense": ([SELECTION, dense(drawn(1, 3, 8)), dense(drawn(2, 2, 3))], ["selection", "dense"]),
    "dense and scale": ([dense(drawn(1, 3, 2)), diagonal([2, -1, 3], (3,), HALF)], ["dense", "diagonal"]),
    "scale and dense": ([diagonal([2, -1], (2,), HALF), dense(drawn(1, 3, 2))], ["diagonal", "dense"]),
    "convolution and channels": (
        [conv(drawn(1, 2, 3, 3), (5,), [(1, 1, 1)], unit=HALF), diagonal([[2], [-3]], (2, 5), THIRD)],
        ["conv"],
    ),
    "groups and channels": (
        [
            conv(drawn(1, 4, 1, 2, 2), (3, 3), [(1, 1, 1), (1, 0, 1)], groups=2),
            diagonal([[[2]], [[-3]], [[1]], [[5]]], (4, 3, 3)),
        ],
        ["conv"],
    ),
    "a convolution, channels, channels": (
        [
            *(dense(drawn(1, 3, 2)), Map("reshape", (3,), (1, 3)), conv(drawn(2, 2, 1, 2), (3,), [(1, 1, 1)])),
            *(diagonal([[2], [-3]], (2, 3)), diagonal([[1], [7]], (2, 3))),
        ],
        ["dense", "conv"],
    ),
    "convolution and one scale": (
        [conv(drawn(1, 2, 3, 3), (5,), [(1, 1, 1)]), diagonal(-2, (2, 5), THIRD)],
        ["conv"],
    ),
    "convolution and positions": (
        [conv(drawn(1, 2, 1, 2, 2), (2, 2), [(1, 1, 1)] * 2), diagonal([[[2], [-3]]], (2, 2, 2))],
        ["conv", "diagonal"],
    ),
    "convolution and other positions": (
        [conv(drawn(1, 2, 1, 2), (2,), [(1, 1, 1)]), diagonal([[2, -3]], (2, 2))],
        ["conv", "diagonal"],
    ),
    "convolution and channels of another shape": (
        [
            conv(drawn(1, 2, 1, 2), (4,), [(1, 1, 1)]),
            Map("reshape", (2, 4), (4, 2)),
            diagonal([[1], [2], [3], [4]], (4, 2)),
        ],
        ["conv", "diagonal"],
    ),
}


@pytest.mark.parametrize("name", CHAINS)
def test_fewer_maps_are_the_same_composition(name: str):
    maps, kinds = CHAINS[name]
    found = checker.simplified(maps)
    assert [linear.kind for linear in found] == kinds

    def total(chain: Sequence[Any]) -> np.ndarray:
        M = np.eye(math.prod(chain[0].in_shape), dtype=object)
        for linear in chain:
            M = linear.unit * (checker.matrix(linear).astype(object) @ M)
        return M

    assert (total(found) == total(maps)).all()


# ------------------------------------------------------------------------------------------------ gains


def proves(maps: Sequence[Any], norms: str, value: Fraction) -> bool:
    names = [f"n{k}" for k in range(len(maps))]
    nodes = [affine(name, "x", linear) for name, linear in zip(names, maps, strict=True)]
    try:
        assert checker.prove_gain(network(*nodes), tuple(names), norms, value) == value
    except Reject as reason:
        return "is not an upper bound" not in str(reason)
    return True


SCALES = [diagonal([2, -3], (2,)), Map("selection", (2,), (3,), ints([1, 1, 0])), dense([[1, 2, 2]])]


@pytest.mark.parametrize(
    ("maps", "norms", "norm"),
    [
        (SCALES[:1], "l2->l2", Fraction(3)),
        (SCALES[:1], "l1->linf", Fraction(3)),
        (SCALES[1:2], "l1->l1", Fraction(2)),
        (SCALES[:2], "linf->linf", Fraction(3)),
        (SCALES, "linf->linf", Fraction(13)),
        (SCALES, "l1->l1", Fraction(9)),
        ([Map("reshape", (2,), (1, 2))], "l2->l2", Fraction(1)),
        ([Map("reshape", (2,), (1, 2)), Map("reshape", (1, 2), (2,))], "l2->linf", Fraction(1)),
        ([dense([[3, 4]], HALF)], "l2->linf", Fraction(5, 2)),
        ([dense([[3, 4]], HALF)], "l2->l2", Fraction(5, 2)),
        ([dense([[3], [4]], HALF), dense([[1, 0], [0, 1], [0, 0]])], "l2->l2", Fraction(5, 2)),
        ([diagonal([1], (2,), Fraction(2) ** 1500)], "linf->linf", Fraction(2) ** 1500),
        ([dense([[0, 0]])], "l2->l2", Fraction(0)),
    ],
    ids=range(13),
)
def test_a_gain_is_proven_from_the_norm_on(maps: Sequence[Any], norms: str, norm: Fraction):
    assert proves(maps, norms, norm)
    assert proves(maps, norms, norm + HALF)
    if norm:
        assert not proves(maps, norms, norm * (1 - NEAR))
        assert not proves(maps, norms, norm * (1 - Fraction(1, 2**90)))


def test_a_gain_that_is_refused_is_told_with_the_norm():
    with pytest.raises(Reject, match=r"gain of a \(l2->l2\): 4.0 is not an upper bound: the norm is about 5.0"):
        checker.prove_gain(network(affine("a", "x", dense([[3, 4]]))), ("a",), "l2->l2", Fraction(4))
    with pytest.raises(Reject, match=r"gain of a \(linf->linf\): 6.5 is not .* is about 7.0"):
        checker.prove_gain(network(affine("a", "x", dense([[3, 4]]))), ("a",), "linf->linf", Fraction(13, 2))


def test_a_gain_that_is_too_large_is_sent_to_the_other_check(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checker, "SIDE_LIMIT", 1)
    with pytest.raises(TooLarge, match=r"gain of a \(l2->l2\): too large for exact arithmetic .*--float64"):
        checker.prove_gain(network(affine("a", "x", dense([[3, 4], [5, 6]]))), ("a",), "l2->l2", Fraction(99))


def test_a_long_matrix_is_too_large_even_if_its_square_is_not(monkeypatch: pytest.MonkeyPatch):
    X = np.ones((50, 2), dtype=np.int64)
    monkeypatch.setattr(checker, "ENTRY_LIMIT", 100)
    assert checker.norm2_at_most(X, Fraction(1), Fraction(10))
    monkeypatch.setattr(checker, "ENTRY_LIMIT", 99)
    for Y in (X, X.T):
        with pytest.raises(TooLarge, match=r"50 x 2 entries"):
            checker.norm2_at_most(Y, Fraction(1), Fraction(10))


def lie(monkeypatch: pytest.MonkeyPatch, by: Fraction) -> None:
    plain = checker.norm2_hint
    monkeypatch.setattr(checker, "norm2_hint", lambda X, unit: plain(X, unit) * by)


FACTORS = Map("separable", (2, 1), (2, 2), None, parts=(dense([[3, 0], [4, 5]], THIRD), dense([[3], [4]], HALF)))


@pytest.mark.parametrize("by", [Fraction(9, 10), Fraction(1), Fraction(6, 5)], ids=["low", "honest", "high"])
def test_a_product_of_factors_is_proven_closely_whatever_the_hints(by: Fraction, monkeypatch: pytest.MonkeyPatch):
    lie(monkeypatch, by)
    norm = checker.sqrt_up(Fraction(45)) * Fraction(1, 3) * Fraction(5, 2)  # [[3, 0], [4, 5]] has the norm 3 sqrt(5)
    assert checker.prove_norm2(FACTORS, norm * (1 + Fraction(1, 10**9)))[0]
    assert not checker.prove_norm2(FACTORS, norm * (1 - Fraction(1, 10**9)))[0]
    for value in (norm * by**2, norm * by**2 * Fraction(19, 10), norm * HALF, norm * by**2 * HALF, norm / 8):
        holds, about = checker.prove_norm2(FACTORS, value)
        assert holds == (value >= norm * (1 + Fraction(1, 10**9)))
        assert abs(about / norm - by**2) < NEAR


def test_factors_that_do_nothing_or_send_all_to_zero():
    still = Map("separable", (2, 3), (2, 3), None, parts=(Map("reshape", (2,), (2,)), Map("reshape", (3,), (3,))))
    assert checker.prove_norm2(still, Fraction(1)) == (True, 1)
    assert checker.prove_norm2(still, 1 - NEAR) == (False, 1)
    one = Map("separable", (2, 1), (2, 2), None, parts=(Map("reshape", (2,), (2,)), dense([[3], [4]], HALF)))
    assert checker.prove_norm2(one, Fraction(5, 2) * (1 + NEAR))[0]
    assert not checker.prove_norm2(one, Fraction(5, 2) * (1 - NEAR))[0]
    zero = Map("separable", (2, 1), (2, 2), None, parts=(dense([[0, 0], [0, 0]]), dense([[3], [4]])))
    assert checker.prove_norm2(zero, Fraction(0)) == (True, 0)


def test_every_block_has_to_be_below():
    for first, second in ((3, 4), (4, 3)):
        linear = conv(ints([[[first]], [[second]]]), (2,), [(1, 0, 1)], groups=2, unit=HALF)
        assert checker.prove_norm2(linear, Fraction(2)) == (True, 2)
        holds, about = checker.prove_norm2(linear, 2 - NEAR)
        assert not holds
        assert abs(about - 2) < NEAR


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (3, 2), (1, 4), (4, 1)], ids=str)
def test_a_2_norm_is_proven_if_it_is_true_and_hardly_otherwise(shape: tuple[int, int]):
    for seed, bits in itertools.product(range(3), (2, 20, 45, 47, 70)):
        X = drawn(seed, *shape, most=9).astype(object) * (1 << bits) + drawn(seed + 9, *shape, most=7)
        G = X.T @ X if shape[0] >= shape[1] else X @ X.T
        about = Fraction(math.sqrt(float(np.linalg.eigvalsh(G.astype(float))[-1])))
        for unit, relative in itertools.product((Fraction(1), THIRD), (-40, -44, -50, -60)):
            for sign in (-1, 1):
                value = about * (1 + sign * Fraction(2) ** relative)
                holds = checker.norm2_at_most(X, unit, value * unit)
                true = semidefinite(math.floor(value * value * 4**20) * np.eye(len(G), dtype=object) - G * 4**20)
                assert true or not holds
                assert holds or not (sign == 1 and relative == -40)


@pytest.mark.parametrize("k", range(-16, 17))
def test_what_is_cut_off_is_added(k: int):
    X = np.array([[(1 << 50) + k]], dtype=object)  # of 51 bits 46 are kept
    exact = Fraction((1 << 50) + k)
    assert not checker.norm2_at_most(X, Fraction(1), exact - Fraction(1, 2**30))
    assert checker.norm2_at_most(X, Fraction(1), exact + 33)
    assert not checker.norm2_at_most(X, Fraction(1), -exact - 33)


def test_norms_that_are_known_exactly():
    one, zero = ints([[1]]), ints([[0, 0]])
    assert checker.norm2_at_most(one, HALF, HALF)
    assert not checker.norm2_at_most(one, HALF, HALF - Fraction(1, 2**80))
    assert not checker.norm2_at_most(one, Fraction(1), Fraction(0))
    assert checker.norm2_at_most(zero, HALF, Fraction(0))
    assert checker.norm2_at_most(zero, HALF, Fraction(1, 4))
    assert not checker.norm2_at_most(zero, HALF, Fraction(-1, 4))


# ------------------------------------------------------------------------------------------------ semidefinite matrices


def test_rows_dominate_from_equality_on():
    E = np.array([[5, -2, 3], [-2, 4, 2], [3, 2, 5]], dtype=object)
    assert checker.dominant(E)
    for i in range(3):
        less = E.copy()
        less[i, i] -= 1
        assert not checker.dominant(less)
    assert checker.dominant(E + 6 * np.eye(3, dtype=int), 2)
    assert not checker.dominant(E + 6 * np.eye(3, dtype=int), Fraction(21, 10))
    spare = np.array([[1, 2, 0], [2, 0, 3], [0, 3, 4]], dtype=object)
    assert checker.dominant(E + np.diag([3, 5, 7]), spare)
    assert not checker.dominant(E + np.diag([3, 5, 6]), spare)
    assert not checker.dominant(np.array([[1, 2], [0, 3]], dtype=object))  # rows, not columns
    assert checker.dominant(np.array([[2, 1], [0, 3]], dtype=object))


@pytest.mark.parametrize("exponent", [20, 100, 150])
def test_semidefinite_matrices_are_told_from_others(exponent: int):
    level, one = 1 << exponent, np.array(np.eye(4, dtype=int), dtype=object)
    for seed in range(8):
        V = drawn(seed, 4, 4, most=2).astype(object)
        H = V @ V.T * level // 40
        strict = H + level // 64 * one
        assert checker.semidefinite(strict, level)
        for less in (1, 10, 40):
            other = strict - less * level // 128 * one
            assert semidefinite(other.copy()) or not checker.semidefinite(other, level)
        if exponent > 20:
            room = level // 64 // 10  # of which every row needs four, and the factor halves what there is
            assert checker.semidefinite(strict, level, room)
            off = strict - 11 * room * np.ones((4, 4), dtype=object)
            assert semidefinite(off.copy()) or not checker.semidefinite(strict, level, 11 * room)


def test_without_a_factor_or_a_level_only_dominance_counts(monkeypatch: pytest.MonkeyPatch):
    assert not checker.semidefinite(np.array([[-1]], dtype=object), 0)
    assert checker.semidefinite(np.array([[0]], dtype=object), 0)
    assert not checker.semidefinite(np.array([[-1]], dtype=object), 1)
    level = 1 << 100
    H = np.array([[5, 4, 4], [4, 5, 4], [4, 4, 5]], dtype=object) * (level // 4)
    assert checker.semidefinite(H, level)
    assert checker.semidefinite(np.array([[5, 4, 4], [4, 5, 4], [4, 4, 5]], dtype=object) * 100, 1 * 400)

    def fails(*_: Any) -> Any:
        raise np.linalg.LinAlgError

    monkeypatch.setattr(np.linalg, "cholesky", fails)
    assert not checker.semidefinite(H, level)


# ------------------------------------------------------------------------------------------------ signals


def whole(signal: Any, widths: Mapping[str, int], signs: np.random.Generator | None = None) -> np.ndarray:
    """A signal as a matrix of fractions over all variables; moved as far as it may, if there are signs."""
    rows = len(next(iter(signal.blocks.values())))
    columns = []
    for name, width in widths.items():
        block = signal.blocks.get(name, np.zeros((rows, width), dtype=object)).astype(object) * signal.unit
        if signs is not None and name in signal.blocks:
            off = signal.loose * signal.unit * signal.sizes[name].astype(object)
            ups = signs.choice([-1, 1], off.shape) if signs.random() < 0.7 else np.where(block < 0, -1, 1)
            block = block + off * ups
        columns.append(block)
    return np.concatenate(columns, 1)


def room(signal: Any, widths: Mapping[str, int]) -> np.ndarray:
    """By how much entries may be off."""
    rows = len(next(iter(signal.sizes.values())))
    sizes = [signal.sizes.get(name, np.zeros((rows, width), dtype=object)) for name, width in widths.items()]
    return signal.loose * signal.unit * np.concatenate(sizes, 1).astype(object)


def assert_sizes_cover(signal: Any) -> None:
    assert signal.blocks.keys() == signal.sizes.keys()
    assert all((signal.sizes[name] >= abs(signal.blocks[name])).all() for name in signal.blocks)


def added(terms: Sequence[Any], widths: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """The matrix of a sum of terms, and by how much its entries may be off."""
    size, names = sum(widths.values()), list(widths)
    start = {name: sum(widths[before] for before in names[: names.index(name)]) for name in names}
    H, off = np.full((size, size), Fraction(0)), np.full((size, size), Fraction(0))
    for unit, a, b, X, sizes, loose in terms:
        at = slice(start[a], start[a] + widths[a]), slice(start[b], start[b] + widths[b])
        H[at] += unit * X.astype(object)
        off[at] += loose * abs(unit) * abs(sizes.astype(object))
    return H, off


WIDTHS = {"x": 3, "u": 2}


def signal(rows: int, seed: int, loose: Fraction = Fraction(0), unit: Fraction = Fraction(2, 3)) -> Any:
    blocks = {name: drawn(seed + k, rows, width) for k, (name, width) in enumerate(WIDTHS.items())}
    sizes = {name: abs(block) + abs(drawn(seed + 7, *block.shape, most=1)) for name, block in blocks.items()}
    return Signal(unit, blocks, sizes, loose)


LOOSE = pytest.mark.parametrize("loose", [Fraction(0), Fraction(1, 7)], ids=["exact", "loose"])


@LOOSE
def test_factors_in_an_interval_move_a_signal_by_no_more_than_is_told(loose: Fraction):
    lower = np.array([HALF, 0, -2, Fraction(9, 10)], dtype=object)
    upper = np.array([Fraction(3, 4), 0, -2, 1], dtype=object)
    before = signal(4, 1, loose)
    after = checker._scaled(Node("activation", "r", (4,), ends=(lower, upper)), before)
    assert after.loose == (1 + loose) * (1 + THIRD) - 1
    assert (whole(after, WIDTHS) == upper[:, None] * whole(before, WIDTHS)).all()
    assert all(
        (after.sizes[n] * after.unit >= abs(upper)[:, None] * before.sizes[n] * before.unit)[[0, 1, 3]].all()
        for n in WIDTHS
    )
    exact = whole(after, WIDTHS)
    signs = np.random.default_rng(0)
    for ends in itertools.product((0, 1), repeat=4):
        factors = np.where(ends, upper, lower)[:, None]
        assert (abs(factors * whole(before, WIDTHS, signs) - exact) <= abs(room(after, WIDTHS))).all()


def test_factors_that_are_zero_or_fixed_leave_what_was_loose():
    for end in (Fraction(0), Fraction(1, 2), Fraction(-1, 3)):
        ends = (np.array(end, dtype=object),) * 2
        after = checker._scaled(Node("activation", "r", (3, 1), ends=ends), signal(3, 1, Fraction(1, 7)))
        assert after.loose == Fraction(1, 7)
        assert (whole(after, WIDTHS) == end * whole(signal(3, 1), WIDTHS)).all()


def test_slopes_are_nearly_one_number_within_2_to_the_minus_40():
    def near(lower: Any, upper: Any) -> bool:
        return checker._nearly_linear(activation("r", "x", (2,), lower, upper))

    width, hair = Fraction(1, 2**40), Fraction(1, 2**80)
    assert near(3 * (1 - width), Fraction(3))
    assert not near(3 * (1 - width) - hair, Fraction(3))
    assert near(-HALF, -HALF)
    assert near(Fraction(0), Fraction(0))
    assert not near(-HALF - hair, -HALF)
    assert not near(-hair, Fraction(0))
    assert not near(Fraction(0), hair)
    assert not near(Fraction(-3), Fraction(3))
    assert not near([Fraction(1), Fraction(0)], [Fraction(1), Fraction(1)])
    assert not near([Fraction(0), Fraction(1)], [Fraction(1), Fraction(1)])


def test_a_variable_is_itself():
    found = checker._variable("u", 3)
    assert (whole(found, {"u": 3}) == np.eye(3)).all()
    assert (found.sizes["u"] == np.eye(3)).all()
    assert found.loose == 0


@LOOSE
def test_a_matrix_known_loosely_times_a_signal_known_loosely(loose: Fraction):
    X, own = drawn(5, 2, 4), Fraction(1, 5)
    size, before = abs(X) + 1, signal(4, 1, loose)
    after = checker._times(before, X, size, Fraction(5, 3), own)
    assert after.loose == (1 + loose) * (1 + own) - 1
    assert (whole(after, WIDTHS) == Fraction(5, 3) * X.astype(object) @ whole(before, WIDTHS)).all()
    assert_sizes_cover(after)
    signs = np.random.default_rng(0)
    for _ in range(20):
        moved = (X + own * size * signs.choice([-1, 1], X.shape)).astype(object) * Fraction(5, 3)
        apart = abs(moved @ whole(before, WIDTHS, signs) - whole(after, WIDTHS))
        assert (apart <= room(after, WIDTHS)).all()


def test_fractions_become_integers_in_a_common_unit():
    values = [Fraction(3, 4), Fraction(-5, 6), Fraction(0), Fraction(7)]
    X, unit = checker._integers(values)
    assert all(type(x) is int for x in X)
    assert [x * unit for x in X] == values


@pytest.mark.parametrize("weights", [[2, -1, HALF], [0, 0, THIRD], [-1, -1, -1]], ids=str)
@LOOSE
def test_a_weighted_square_is_one_and_moves_no_more_than_is_told(weights: list[Any], loose: Fraction):
    weights = [Fraction(weight) for weight in weights]
    v = signal(3, 2, loose)
    terms = list(checker._gram(v, weights))
    H, off = added(terms, WIDTHS)

    def square(V: np.ndarray) -> np.ndarray:
        return V.T @ np.diag(np.array(weights, dtype=object)) @ V

    assert (H == square(whole(v, WIDTHS))).all()
    assert {term[-1] for term in terms} == {(1 + loose) ** 2 - 1}
    signs = np.random.default_rng(0)
    for _ in range(20):
        assert (abs(square(whole(v, WIDTHS, signs)) - H) <= off).all()
    assert list(checker._gram(v, [Fraction(0)] * 3)) == []


@pytest.mark.parametrize(
    ("lower", "upper"),
    [
        ([[0, -HALF, THIRD]], [[1, 1, 2]]),
        ([[-1, -2, 0]], [[1, 2, 0]]),
        ([[0, 0, 0]], [[1, Fraction(3, 2), 1]]),
        ([[THIRD]], [[Fraction(3, 4)]]),
    ],
    ids=["any", "odd", "rising", "one for all"],
)
@LOOSE
def test_the_constraint_of_neurons_is_the_product_of_both_distances(lower: Any, upper: Any, loose: Fraction):
    v, multipliers = signal(3, 3, loose), [Fraction(3, 4), Fraction(0), Fraction(5)]
    v = Signal(v.unit, {"x": v.blocks["x"]}, {"x": v.sizes["x"]}, loose)
    node, widths = activation("r", "v", (1, 3), lower, upper), {"x": 3, "r": 3}
    terms = list(checker._constraint(node, v, multipliers, "here"))
    H, off = added(terms, widths)
    low, high = (np.broadcast_to(end, (1, 3)).ravel() for end in node.ends)

    def constraint(V: np.ndarray) -> np.ndarray:
        U = np.concatenate([np.zeros((3, 3), dtype=object), np.eye(3, dtype=object)], 1)
        a, b = U - low[:, None] * V, U - high[:, None] * V
        L = np.diag(np.array(multipliers, dtype=object))
        return a.T @ L @ b + b.T @ L @ a

    assert (H == constraint(whole(v, widths))).all()
    if not loose:
        assert not off.any()
    signs = np.random.default_rng(0)
    for _ in range(20):
        assert (abs(constraint(whole(v, widths, signs)) - H) <= off).all()


def test_multipliers_are_one_for_each_neuron_and_not_negative():
    node, v = activation("r", "v", (3,), 0, 1), signal(3, 3)
    for count in (2, 4):
        with pytest.raises(Malformed, match=f"here: {count} multipliers for the 3 neurons of r"):
            list(checker._constraint(node, v, [Fraction(1)] * count, "here"))
    with pytest.raises(Reject, match="here: a multiplier of r is negative"):
        list(checker._constraint(node, v, [Fraction(1), Fraction(1), -HALF], "here"))


# ------------------------------------------------------------------------------------------------ groups


def grouped(node: Any, V: np.ndarray) -> np.ndarray:
    """``(groups, members)``: the groups by their number along the dimension, then by what is beside it."""
    V = np.moveaxis(V.reshape(node.shape), node.dim, 0)
    V = V.reshape(len(V), -1)
    if node.consecutive:
        return np.stack(
            [
                V[i * node.members : (i + 1) * node.members, r]
                for i in range(len(V) // node.members)
                for r in range(V.shape[1])
            ]
        )
    count = len(V) // node.members
    return np.stack([V[i::count, r] for i in range(count) for r in range(V.shape[1])])


def replaced(node: Any, V: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The node's output: every group changed by a function of all groups."""
    places = grouped(node, np.arange(V.size))
    out = V.ravel().copy()
    out[places.ravel()] = change(grouped(node, V)).ravel()
    return out


SORTS = {
    f"{n} of {shape} along {dim}{' in a row' * consecutive}": Node(
        "opaque", "s", shape, ("v",), dim=dim, members=n, consecutive=consecutive
    )
    for n, shape, dim in [(2, (4,), 0), (3, (6,), 0), (3, (6, 2), 0), (2, (3, 4), 1), (4, (4, 1), 0)]
    for consecutive in (False, True)
}


@pytest.mark.parametrize("name", SORTS)
def test_sorting_keeps_sums_and_shrinks_differences_of_a_group(name: str):
    node = SORTS[name]
    size, n = math.prod(node.shape), node.members
    groups = size // n
    (Q, B), bounds, squares, unit = checker._directions(node)
    assert unit == 1
    assert all((bound == abs(X)).all() for bound, X in zip(bounds, (Q, B), strict=True))
    joined = np.concatenate([Q, B], 1)
    assert (joined.T @ joined == np.diag([n] * groups + squares)).all()
    multipliers = [Fraction(k + 1, 3) for k in range(groups)]
    for seed in range(3):
        one, two = (np.random.default_rng(seed + k).integers(-9, 10, size) for k in (0, 50))
        dv, du = one - two, replaced(node, one, lambda V: np.sort(V, 1)) - replaced(node, two, lambda V: np.sort(V, 1))
        v = Signal(HALF, {"x": 2 * np.eye(size, dtype=np.int64)}, {"x": 2 * np.eye(size, dtype=np.int64)})
        u, own = checker._grouped(node, v, multipliers, "here")
        w = np.array([Fraction(int(b @ du), square) for b, square in zip(B.T, squares, strict=True)])
        z = np.concatenate([dv.astype(object), w])
        widths = {"x": size, "s": len(squares)}
        assert (whole(u, widths) @ z == du).all()
        assert u.loose == 0
        H, off = added(own, widths)
        assert not off.any()

        def differences(V: np.ndarray) -> list[int]:
            return [sum(int(a - b) ** 2 for a, b in itertools.combinations(row, 2)) for row in grouped(node, V)]

        pairs = zip(multipliers, differences(du), differences(dv), strict=True)
        assert z @ H @ z == 2 * sum(multiplier * (after - before) for multiplier, after, before in pairs)


def test_what_is_loose_stays_loose_where_groups_are_sorted():
    node, widths = SORTS["3 of (6,) along 0"], {"x": 6, "s": 4}
    X = drawn(1, 6, 6)
    v = Signal(HALF, {"x": X}, {"x": abs(X) + 1}, Fraction(1, 7))
    u, own = checker._grouped(node, v, [Fraction(1), Fraction(2)], "here")
    H, off = added(own, widths)
    assert_sizes_cover(u)
    signs = np.random.default_rng(0)
    for _ in range(20):
        moved = Signal(Fraction(1), {"x": whole(v, {"x": 6}, signs)}, {"x": abs(X)})
        denominator = math.lcm(*(entry.denominator for entry in moved.blocks["x"].flat))
        X_moved = np.array([int(e * denominator) for e in moved.blocks["x"].flat], dtype=object).reshape(6, 6)
        other, form = checker._grouped(
            node, Signal(Fraction(1, denominator), {"x": X_moved}, {"x": abs(X_moved)}), [Fraction(1), Fraction(2)], ""
        )
        assert (abs(whole(other, widths) - whole(u, widths)) <= room(u, widths)).all()
        assert (abs(added(form, widths)[0] - H) <= off).all()


@pytest.mark.parametrize("shape", [(4,), (4, 2)], ids=str)
@pytest.mark.parametrize("consecutive", [False, True])
def test_reflecting_keeps_what_is_along_the_line(shape: tuple[int, ...], consecutive: bool):
    angles = (Fraction(7, 5), Fraction(-1, 2))
    node = Node("opaque", "s", shape, ("v",), members=2, consecutive=consecutive, angles=angles)
    size, groups = math.prod(shape), math.prod(shape) // 2
    (Q, B), bounds, squares, unit = checker._directions(node)
    assert squares == [1] * groups
    assert unit == Fraction(1, 2**64)
    turns = np.repeat([float(angle) / 2 for angle in angles], groups // 2)
    along, across = np.stack([np.cos(turns), np.sin(turns)], 1), np.stack([np.sin(turns), -np.cos(turns)], 1)
    for X, directions, bound in zip((Q, B), (along, across), bounds, strict=True):
        expected = np.zeros((size, groups))
        for k, place in enumerate(grouped(node, np.arange(size))):
            expected[place, k] = directions[k]
        assert np.allclose((X * float(unit)).astype(float), expected, rtol=0, atol=1e-15)
        assert (bound * unit == (expected != 0)).all()  # off by at most 1 = 2^-64 of the bound
    V = drawn(3, size, 3)
    v = Signal(HALF, {"x": V}, {"x": abs(V)})
    multipliers = [Fraction(k + 1) for k in range(groups)]
    u, own = checker._grouped(node, v, multipliers, "here")
    assert u.loose == (1 + unit) ** 2 - 1
    assert_sizes_cover(u)
    widths = {"x": 3, "s": groups}
    z, w = np.array([1.0, -2.0, 0.5]), np.arange(groups) - 1.25
    dv = 0.5 * V @ z
    expected = np.zeros(size)
    for k, place in enumerate(grouped(node, np.arange(size))):
        expected[place] = along[k] * (along[k] @ dv[place]) + across[k] * w[k]
    found = whole(u, widths).astype(float) @ np.concatenate([z, w])
    assert np.allclose(found, expected, rtol=1e-12, atol=1e-12)
    H, off = added(own, widths)
    s = np.array([across[k] @ dv[place] for k, place in enumerate(grouped(node, np.arange(size)))])
    value = np.concatenate([z, w]) @ H.astype(float) @ np.concatenate([z, w])
    assert np.isclose(value, 2 * sum(float(m) * (b * b - a * a) for m, a, b in zip(multipliers, s, w, strict=True)))
    assert off[:3].any()
    assert (off < Fraction(1, 2**50)).all()
    assert {term[-1] for term in own} == {0, (1 + unit) ** 2 - 1}


def test_groups_have_one_multiplier_each_and_a_limit(monkeypatch: pytest.MonkeyPatch):
    node = SORTS["3 of (6,) along 0"]
    for count in (1, 3, 6):
        with pytest.raises(Malformed, match=f"here: {count} multipliers for the 2 groups of s"):
            checker._grouped(node, checker._variable("x", 6), [Fraction(1)] * count, "here")
    monkeypatch.setattr(checker, "ENTRY_LIMIT", 36)
    checker._directions(node)
    monkeypatch.setattr(checker, "ENTRY_LIMIT", 35)
    with pytest.raises(TooLarge, match="6 x 6 entries"):
        checker._directions(node)


ANGLES = [Fraction(0), *(Fraction(k, 7) for k in range(-12, 60, 3)), Fraction(1, 2**70), Fraction(-22, 7)]
ANGLES += [
    Fraction(10**6 + 1, 3),
    Fraction(-(10**20), 7),
    Fraction(2) ** 400 / 3,
    Fraction(1, 4),
    Fraction(1, 2),
    Fraction(2),
]


@pytest.mark.parametrize("angle", ANGLES, ids=range(len(ANGLES)))
def test_cosine_and_sine_are_rounded_to_the_nearest(angle: Fraction):
    with mpmath.workdps(200):
        x = mpmath.mpf(angle.numerator) / angle.denominator
        exact = mpmath.cos(x) * 2**64, mpmath.sin(x) * 2**64
        assert all(
            abs(found - real) <= 0.5 + 2.0**-20
            for found, real in zip(checker.cosine_and_sine(angle), exact, strict=True)
        )


# ------------------------------------------------------------------------------------------------ nodes of a part


@LOOSE
@pytest.mark.parametrize("name", ["dense", "groups", "adjoint", "scale", "selection", "reshape", "separable"])
def test_a_map_of_a_signal_is_its_matrix_times_it(name: str, loose: Fraction):
    linear = MAPS[name]
    before = signal(math.prod(linear.in_shape), 4, loose)
    after = checker._through(affine("a", "x", linear), [before], [linear.in_shape])
    A = linear.unit * checker.matrix(linear).astype(object)
    assert (whole(after, WIDTHS) == A @ whole(before, WIDTHS)).all()
    assert after.loose == loose
    assert_sizes_cover(after)
    signs = np.random.default_rng(0)
    for _ in range(3):
        assert (abs(A @ whole(before, WIDTHS, signs) - whole(after, WIDTHS)) <= room(after, WIDTHS)).all()
    moduli = checker.matrix(checker._modulus(linear))
    assert (moduli == abs(checker.matrix(linear))).all()


@pytest.mark.parametrize(
    ("kind", "dim", "shapes", "shape"),
    [
        ("add", 0, [(2, 3), (2, 3)], (2, 3)),
        ("concat", 0, [(1, 3), (2, 3)], (3, 3)),
        ("concat", 1, [(2, 1), (2, 3), (2, 2)], (2, 6)),
        ("concat", 1, [(2, 2, 2), (2, 1, 2)], (2, 3, 2)),
    ],
    ids=range(4),
)
def test_sums_and_parts_side_by_side_are_those_of_arrays(kind: str, dim: int, shapes: Any, shape: tuple[int, ...]):
    units = [Fraction(2, 3), Fraction(1, 2), Fraction(5)]
    looses = [Fraction(1, 9), Fraction(1, 7), Fraction(1, 8)]
    reads = [signal(math.prod(s), 10 * k, looses[k], units[k]) for k, s in enumerate(shapes)]
    first = reads[0]
    reads[0] = Signal(first.unit, {"u": first.blocks["u"]}, {"u": first.sizes["u"]}, first.loose)
    after = checker._through(Node(kind, "s", shape, dim=dim), reads, shapes)
    assert after.loose == max(looses[: len(shapes)])
    assert_sizes_cover(after)

    def joined(parts: list[np.ndarray]) -> np.ndarray:
        arrays = [part.reshape(*s, 5) for part, s in zip(parts, shapes, strict=True)]
        total = sum(arrays) if kind == "add" else np.concatenate(arrays, dim)
        return np.asarray(total).reshape(-1, 5)

    assert (whole(after, WIDTHS) == joined([whole(read, WIDTHS) for read in reads])).all()
    signs = np.random.default_rng(0)
    for _ in range(10):
        moved = joined([whole(read, WIDTHS, signs) for read in reads])
        assert (abs(moved - whole(after, WIDTHS)) <= room(after, WIDTHS)).all()


@pytest.mark.parametrize("kind", ["opaque", "input"])
def test_other_nodes_have_no_constraint(kind: str):
    with pytest.raises(Reject, match=rf"o \({kind}\) has no quadratic constraint"):
        checker._through(Node(kind, "o", (3,), ("x",)), [signal(3, 0)], [(3,)])


def test_the_nodes_between_are_those_that_the_target_needs():
    net = network(
        scaled("a", "x"),
        scaled("b", "a"),
        scaled("c", "a"),
        Node("add", "s", (2,), ("b", "a")),
        scaled("d", "s"),
        Node("add", "t", (2,), ("s", "x")),
    )

    def between(source: str, target: str) -> list[str]:
        return [node.name for node in checker._between(net, source, target)]

    assert between("a", "d") == ["b", "s", "d"]
    assert between("x", "s") == ["a", "b", "s"]
    assert between("x", "t") == ["a", "b", "s", "t"]
    for source, target in (("a", "t"), ("b", "s"), ("c", "d"), ("d", "a")):
        with pytest.raises(Malformed, match=f"{target} depends on x other than through {source}"):
            between(source, target)


# ------------------------------------------------------------------------------------------------ the form of a part

RELU = network(
    affine("a", "x", dense(drawn(1, 4, 3), HALF)),
    activation("r", "a", (4,), [0, -HALF, 0, THIRD], [1, 1, 2, 1]),
    affine("b", "r", dense(drawn(2, 2, 4), THIRD)),
    shape=(3,),
)
LAMBDAS = [Fraction(3), HALF, Fraction(0), Fraction(2, 7)]


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    seen: list[Any] = []
    monkeypatch.setattr(checker, "_semidefinite_sum", lambda terms, widths: bool(seen.append((terms, widths))) or True)
    return seen


def expected_form(x: np.ndarray, before: np.ndarray, outputs: list[int]) -> np.ndarray:
    """What stands before the input, the constraint of the neurons, and minus the outputs that are read."""
    A, B = (RELU[name].map.unit * RELU[name].map.tensor.astype(object) for name in "ab")
    n = x.shape[1]
    V = np.concatenate([A @ x, np.zeros((4, 4), dtype=object)], 1)
    U = np.concatenate([np.zeros((4, n), dtype=object), np.eye(4, dtype=object)], 1)
    Y = (B @ U)[outputs]
    low, high = (np.array(end, dtype=object)[:, None] for end in RELU["r"].ends)
    L = np.diag(np.array(LAMBDAS, dtype=object))
    a, b = U - low * V, U - high * V
    H = a.T @ L @ b + b.T @ L @ a - Y.T @ Y
    H[:n, :n] += before
    return H


def test_the_form_of_a_part_is_that_of_the_theorem(monkeypatch: pytest.MonkeyPatch):
    seen = recorded(monkeypatch)
    value, multipliers = Fraction(5, 2), {"r": LAMBDAS}
    assert checker.prove_part(RELU, "x", "b", value, multipliers) == value
    one = np.eye(3, dtype=object)
    rows: list[tuple[Any, np.ndarray, np.ndarray, list[int]]] = [(None, one, value**2 * one, [0, 1])]
    tau = [Fraction(1), Fraction(2), Fraction(0)]
    for k in range(2):
        rows.append((("linf->linf", k, tau), one, np.diag(np.array(tau, dtype=object)), [k]))
        rows.append((("l2->linf", k, []), one, value**2 * one, [k]))
    for k in range(6):
        rows.append((("l1->linf", k, []), one[:, [k % 3]], np.array([[value**2]]), [k // 3]))
    for row, x, before, outputs in rows:
        seen.clear()
        checker.prove_part(RELU, "x", "b", value, multipliers, (), row)
        ((terms, widths),) = seen
        assert widths == {"x": x.shape[1], "r": 4}
        H, off = added(terms, widths)
        assert (H == expected_form(x, before, outputs)).all()
        assert not off.any()


def test_the_form_of_a_part_that_sorts_and_scales(monkeypatch: pytest.MonkeyPatch):
    seen = recorded(monkeypatch)
    node = Node("opaque", "s", (6,), ("r",), members=3)
    near = 1 - Fraction(1, 2**41)
    net = network(activation("r", "x", (6,), 2 * near, 2), node, affine("b", "s", dense(drawn(2, 2, 6))), shape=(6,))
    value, lambdas = Fraction(7, 2), [Fraction(2), THIRD]
    checker.prove_part(net, "x", "b", value, {"s": lambdas})
    ((terms, widths),) = seen
    assert widths == {"x": 6, "s": 4}
    H, off = added(terms, widths)
    v = checker._scaled(net["r"], checker._variable("x", 6))
    u, own = checker._grouped(node, v, lambdas, "")
    Y = net["b"].map.tensor.astype(object) @ whole(u, widths)
    form = added(own, widths)[0] - Y.T @ Y
    form[:6, :6] += value**2 * np.eye(6, dtype=object)
    assert (H == form).all()
    assert off.any()
    assert (abs(off) <= Fraction(1, 2**30)).all()


@pytest.mark.parametrize("lower", [0, -1])
def test_a_part_is_proven_just_above_what_it_is(lower: int):
    net = network(affine("a", "x", dense([[3, 0], [0, 1]])), activation("r", "a", (2,), lower, 1), scaled("b", "r"))
    found = Fraction(3) * (1 + NEAR)
    least = HALF * (1 + NEAR / 4) if lower else Fraction(1)  # before u^2 stands 2 least - 1, before x^2 9 - 9 (2 least)
    lambdas, first = {"r": [least, least]}, {"r": [least, Fraction(0)]}
    assert checker.prove_part(net, "x", "b", found, lambdas) == found
    for row in (("l2->linf", 0, []), ("l1->linf", 0, []), ("linf->linf", 0, [found**2, Fraction(0)])):
        assert checker.prove_part(net, "x", "b", found, first, (), row) == found
    assert checker.prove_part(net, "x", "b", found, lambdas, (), ("l1->linf", 2, [])) == found
    with pytest.raises(Reject, match=r"the part from x to b: the multipliers do not prove the bound 2.99"):
        checker.prove_part(net, "x", "b", Fraction(3) * (1 - NEAR), lambdas)
    with pytest.raises(Reject, match=r"the part from x to b, row 0 in l2->linf: the multipliers do not prove"):
        checker.prove_part(net, "x", "b", Fraction(3) * (1 - NEAR), lambdas, (), ("l2->linf", 0, []))


def test_a_part_has_multipliers_of_the_nodes_that_bend(monkeypatch: pytest.MonkeyPatch):
    recorded(monkeypatch)
    for wrong in ({}, {"r": LAMBDAS, "a": LAMBDAS}, {"b": LAMBDAS}):
        with pytest.raises(Malformed, match=r"the part from x to b has multipliers of .*, not of its activations"):
            checker.prove_part(RELU, "x", "b", Fraction(1), wrong)
    straight = {**RELU, "r": activation("r", "a", (4,), 2, 2)}
    assert checker.prove_part(straight, "x", "b", Fraction(1), {}) == 1
    with pytest.raises(Malformed, match="not of its activations"):
        checker.prove_part(straight, "x", "b", Fraction(1), {"r": LAMBDAS})
    sorts = {**RELU, "r": Node("opaque", "r", (4,), ("a",), members=2)}
    assert checker.prove_part(sorts, "x", "b", Fraction(1), {"r": LAMBDAS[:2]}) == 1
    with pytest.raises(Malformed, match="not of its activations"):
        checker.prove_part(sorts, "x", "b", Fraction(1), {})


def test_a_part_that_is_too_large_is_sent_to_the_other_check(monkeypatch: pytest.MonkeyPatch):
    recorded(monkeypatch)
    monkeypatch.setattr(checker, "ENTRY_LIMIT", 7 * 7)
    checker.prove_part(RELU, "x", "b", Fraction(1), {"r": LAMBDAS})
    monkeypatch.setattr(checker, "ENTRY_LIMIT", 7 * 7 - 1)
    with pytest.raises(TooLarge, match=r"the part from x to b: too large .*7 x 7 entries.*--float64"):
        checker.prove_part(RELU, "x", "b", Fraction(1), {"r": LAMBDAS})


def test_what_is_measured_of_one_row():
    def measured(row: Any, value: Fraction = Fraction(3)) -> tuple[Any, Any, Any]:
        one, tau, read = checker._measured(row, value, 3, 2, "here")
        return one.tolist(), tau, read

    eye = np.eye(3).tolist()
    tau = [Fraction(4), Fraction(5), Fraction(0)]
    assert measured(None) == (eye, [], [-1, -1])
    assert measured(("l2->linf", 1, [])) == (eye, [], [0, -1])
    assert measured(("linf->linf", 0, tau)) == (eye, tau, [-1, 0])
    assert measured(("l1->linf", 4, [])) == ([[0], [1], [0]], [], [0, -1])
    small = [Fraction(1, 16), Fraction(3, 16), Fraction(0)]
    assert measured(("linf->linf", 0, small), HALF) == (eye, small, [-1, 0])
    for above, value in (([*tau[:2], NEAR], Fraction(3)), ([*small[:2], NEAR], HALF)):
        with pytest.raises(Reject, match=r"here: the sum of weights .* is above the square of"):
            measured(("linf->linf", 0, above), value)
    wrong = [("linf->linf", 0, tau[:2]), ("linf->linf", 0, []), ("l2->linf", 0, tau), ("l1->linf", 0, tau)]
    wrong += [("l2->linf", 0, tau[:1]), ("linf->linf", 0, [Fraction(1), -HALF, Fraction(1)])]
    for row in wrong:
        with pytest.raises(Malformed, match=f"here: {len(row[2])} weights for 3 entries"):
            measured(row)


# ------------------------------------------------------------------------------------------------ sums of terms


def term(X: Any, loose: Any = 0, unit: Any = 1, a: str = "x", b: str = "x", sizes: Any = None) -> Any:
    X = np.array(X, dtype=object)
    return Fraction(unit), a, b, X, np.array(abs(X) if sizes is None else sizes, dtype=object), Fraction(loose)


def holds(*terms: Any, alike: bool = False, **widths: int) -> bool:
    return checker._semidefinite_sum(list(terms), widths, alike)


@pytest.mark.parametrize("alike", [False, True])
@pytest.mark.parametrize("exponent", [-90, 0, 45, 99, 100, 101, 102, 160])
@pytest.mark.parametrize("loose", [Fraction(1, 2**20), Fraction(1, 100)], ids=["little", "much"])
def test_entries_may_be_off_by_what_is_told_and_no_more(exponent: int, alike: bool, loose: Fraction):
    scale = Fraction(2) ** exponent
    for share, expected in ((Fraction(1001, 1000), True), (Fraction(999, 1000), False)):
        c = 1 - 2 * loose * share  # the diagonal is off by loose downwards, the entry beside it upwards
        whole, sizes = 10**9, [[10**9, 10**9], [10**9, 10**9]]
        entry = math.floor(c * whole) if not expected else math.floor(c * whole) - 1
        for sign in (-1, 1):
            X = [[whole, sign * entry], [sign * entry, whole]]
            assert holds(term(X, loose, scale, sizes=sizes), x=2, alike=alike) == expected
            signed = [[-size for size in row] for row in sizes]
            assert holds(term(X, loose, scale, sizes=signed), x=2, alike=alike) == expected
            minus = [[-entry for entry in row] for row in X]
            assert holds(term(minus, loose, -scale, sizes=sizes), x=2, alike=alike) == expected


def test_what_is_cut_off_of_a_matrix_is_paid_for():
    n = 2**100
    assert not holds(term([[n, n + 1], [n + 1, n]]), x=2)
    assert not holds(term([[n, n], [n, n]]), x=2)  # true, but there is no room
    assert holds(term([[n, n - 3], [n - 3, n]]), x=2) is False
    assert holds(term([[n, n - 8], [n - 8, n]]), x=2)


def test_terms_stand_where_their_variables_are():
    widths = {"x": 2, "u": 1, "w": 3}
    V = drawn(3, 6, 6, most=2).astype(object)
    H = V @ V.T + np.eye(6, dtype=int) * 2
    cuts = {"x": slice(0, 2), "u": slice(2, 3), "w": slice(3, 6)}

    def terms(H: np.ndarray) -> list[Any]:
        found = []
        for k, (a, b) in enumerate(itertools.product(cuts, repeat=2)):
            unit = Fraction(1, 2 * min(k, 3 * (k % 3) + k // 3) + 3)
            whole = math.lcm(*range(1, 20))
            found.append(term(H[cuts[a], cuts[b]] * whole, 0, unit / whole * unit.denominator, a, b))
        return found

    assert semidefinite(H)
    assert holds(*terms(H), **widths)
    for a, b in itertools.combinations(range(6), 2):
        other = H.copy()
        other[a, b] = other[b, a] = 40
        assert not semidefinite(other.copy())
        assert not holds(*terms(other), **widths)
    half = terms(H)
    assert holds(*half, *half, **widths)
    less = terms(H - 4 * np.eye(6, dtype=int))
    assert holds(*less, *[term(np.eye(n, dtype=int) * 4, 0, 1, name, name) for name, n in widths.items()], **widths)


def test_badly_scaled_matrices_are_judged_as_those_of_one_scale():
    H = np.array([[5, 4, 4], [4, 5, 4], [4, 4, 5]], dtype=object)  # not dominant
    bad = np.array([[5, -4, 4], [-4, 5, 4], [4, 4, 5]], dtype=object)
    for scales in ((0, 0, 0), (0, 60, 150), (150, 0, 60), (200, 170, 0)):
        d = np.array([1 << s for s in scales], dtype=object)
        for unit in (Fraction(1), Fraction(1, 2**100), Fraction(1, 3**200)):
            assert holds(term(d[:, None] * H * d, 0, unit), x=3)
            assert not holds(term(d[:, None] * bad * d, 0, unit), x=3)
    assert holds(term([[1]]), x=1)
    assert holds(term([[3]]), x=1)


def test_rows_of_zeros_need_nothing_and_rows_without_a_diagonal_are_refused():
    assert holds(term([[0, 0], [0, 0]]), x=2)
    assert holds(term([[0, 0, 0], [0, 2, 1], [0, 1, 2]]), x=3)
    assert holds(term([[2, 0, 1], [0, 0, 0], [1, 0, 2]]), x=3)
    assert not holds(term([[0, 1], [1, 5]]), x=2)
    assert not holds(term([[-1]]), x=1)
    assert not holds(term([[5, 0], [0, -1]]), x=2)
    assert not holds(term([[0, 0], [0, 5]], Fraction(1, 9), sizes=[[1, 0], [0, 5]]), x=2)
    assert not holds(term([[0, 0], [0, 5]], Fraction(1, 9), sizes=[[0, 1], [1, 0]]), x=2)
    assert not holds(term([[0, 0], [0, 50]], Fraction(1, 9), sizes=[[2, 0], [0, 0]]), x=2)
    assert not holds(term([[1, 1, 1], [1, 2, -1], [1, -1, 2]]), x=3)
    assert holds(term([[5]], Fraction(1, 9)), term([[0]], 0), x=1)


def test_the_loosest_term_counts_for_all():
    tight, loose = term([[100, 0], [0, 100]], Fraction(1, 100)), term([[100, 99], [99, 100]], Fraction(3, 4))
    assert not holds(tight, loose, x=2)
    assert not holds(loose, tight, x=2)
    assert holds(term([[100, 0], [0, 100]], Fraction(1, 100)), term([[100, 99], [99, 100]], Fraction(1, 100)), x=2)


# ------------------------------------------------------------------------------------------------ on a torus


@pytest.mark.parametrize(("loose", "true"), [(Fraction(49, 100), True), (Fraction(51, 100), False)])
def test_what_differs_between_positions_mixes_frequencies(loose: Fraction, true: bool):
    """On a torus of two positions: ``a0^2 + 100 b0^2 + 100 a1^2 + b1^2``, off by loose in a product that changes sign.

    It adds ``2 loose (a0 b1 + a1 b0)``, and the squares lose as much: false from 1/2 on, whatever stands before b0.
    """
    diagonals = {(0,): [1, 100], (1,): [100, 1]}

    def terms(frequency: tuple[int, ...]) -> list[Any]:
        return [term(np.diag(diagonals[frequency]) * 1000, loose, Fraction(1, 1000), sizes=[[1000] * 2] * 2)]

    assert checker._at_all(terms, list(diagonals), {"x": 2}) == true


def test_every_frequency_has_to_be_semidefinite():
    good, bad = [term(np.diag([2, 3]))], [term([[2, 3], [3, 2]])]
    assert checker._at_all(lambda w: good, [(0,), (1,)], {"x": 2})
    for wrong in ((0,), (1,)):
        assert not checker._at_all(lambda w, wrong=wrong: bad if w == wrong else good, [(0,), (1,)], {"x": 2})


def response(linear: Any, torus: tuple[int, ...]) -> dict[tuple[int, ...], float]:
    """The largest singular value of a convolution of stride 1 and one group at every frequency."""
    found = {}
    for w in np.ndindex(*torus):
        total = np.zeros(linear.tensor.shape[:2], dtype=complex)
        for tap in np.ndindex(*linear.tensor.shape[2:]):
            turn = sum(a * b / n for a, b, n in zip(tap, w, torus, strict=True))
            total += linear.tensor[(slice(None), slice(None), *tap)] * np.exp(2j * math.pi * turn)
        found[w] = float(np.linalg.norm(total, 2)) * float(linear.unit)
    return found


def line(weight: Any, size: int = 4, unit: Fraction = Fraction(1)) -> Any:
    weight = ints(weight)
    return conv(weight, (size,), [(1, (weight.shape[2] - 1) // 2, 1)], unit=unit)


FILTERS = {
    "largest at zero": (line([[[1, 1]]]), (8,)),
    "largest at the half": (line([[[1, -1]]]), (8,)),
    "largest at a quarter": (line([[[1, 0, -1]]]), (8,)),
    "largest at an eighth": (line([[[1, 2, 1]], [[-1, 0, 1]]], unit=HALF), (8,)),
    "an odd torus": (line([[[3, 0, -2]]]), (7,)),
    "channels": (line(drawn(8, 2, 3, 3), unit=THIRD), (7,)),
    "two dimensions": (conv(drawn(9, 1, 1, 3, 3), (3, 2), [(1, 1, 1)] * 2), (5, 4)),
    "two dimensions, largest at the end of a row": (
        conv(ints([[[[1, 1], [-1, -1]]]]), (2, 2), [(1, 0, 1)] * 2, out=(1, 1)),
        (4, 4),
    ),
}


@pytest.mark.parametrize("name", FILTERS)
def test_a_convolution_is_bounded_by_its_largest_response(name: str):
    linear, torus = FILTERS[name]
    net = network(affine("a", "x", linear), shape=linear.in_shape)
    largest = Fraction(max(response(linear, torus).values()))
    for value, true in ((largest * (1 + NEAR), True), (largest * (1 - NEAR), False)):
        if true:
            assert checker.prove_part(net, "x", "a", value, {}, torus) == value
        else:
            with pytest.raises(
                Reject, match=r"the part from x to a: the multipliers do not prove the bound .* frequency"
            ):
                checker.prove_part(net, "x", "a", value, {}, torus)


def two_filters(*between: Any, channels: int = 1) -> dict[str, Any]:
    first, last = line([[[1, 1]]] * channels), line([[[1, 1]] * channels])
    return network(affine("a", "x", first), *between, affine("b", between[-1].name, last), shape=(1, 4))


@pytest.mark.parametrize("channels", [1, 2])
def test_neurons_between_filters_are_paid_for_by_their_multipliers(channels: int):
    net = two_filters(activation("r", "a", (channels, 4), 0, 1), channels=channels)
    # At the frequency zero: value^2 x^2 + (2 m - 4 c) |u|^2 - 4 m x sum(u), with |u|^2 = c u^2 and m = 4 c.
    lambdas = {"r": [Fraction(4 * channels)] * channels}
    exact = Fraction(4 * channels)
    assert checker.prove_part(net, "x", "b", exact * (1 + NEAR), lambdas, (8,)) == exact * (1 + NEAR)
    with pytest.raises(Reject, match="do not prove the bound"):
        checker.prove_part(net, "x", "b", exact * (1 - NEAR), lambdas, (8,))
    for wrong in ({}, {"a": lambdas["r"]}, {**lambdas, "a": lambdas["r"]}):
        with pytest.raises(Malformed, match="not of its activations"):
            checker.prove_part(net, "x", "b", exact * 2, wrong, (8,))
    with pytest.raises(Reject, match=r"a reaches from 0 to 4 around 4 positions"):
        checker.prove_part(net, "x", "b", exact * 2, lambdas, (4,))


def test_slopes_that_are_nearly_one_number_have_no_multipliers_on_a_torus():
    net = two_filters(activation("r", "a", (1, 4), HALF * (1 - Fraction(1, 2**45)), HALF))
    net["b"] = affine("b", "r", conv(ints([[[1, 1]]]), (4,), [(1, 0, 1)], out=(3,)))  # reads nothing beyond the image
    assert checker.prove_part(net, "x", "b", 2 * (1 + NEAR), {}, (8,)) == 2 * (1 + NEAR)
    with pytest.raises(Reject, match="do not prove the bound"):
        checker.prove_part(net, "x", "b", 2 * (1 - NEAR), {}, (8,))


@pytest.mark.parametrize(("kind", "dim"), [("add", 0), ("concat", 0), ("concat", 1), ("concat", 2), ("opaque", 0)])
def test_branches_on_a_torus_add_up_or_are_channels(kind: str, dim: int):
    shapes = {"add": (1, 4), "opaque": (1, 4)}
    shape = shapes.get(kind, (2, 4) if dim == 0 else (1, 4))
    net = network(
        affine("a", "x", line([[[1, 1]]])),
        Node(kind, "s", shape, ("a",) if kind == "opaque" else ("a", "x"), dim=dim),
        shape=(1, 4),
    )
    if kind == "opaque" or dim:
        with pytest.raises(Reject, match=rf"s \({kind}\) is not shift-invariant"):
            checker.prove_part(net, "x", "s", Fraction(9), {}, (8,))
        return
    exact = Fraction(3) if kind == "add" else checker.sqrt_up(Fraction(5))
    assert checker.prove_part(net, "x", "s", exact * (1 + NEAR), {}, (8,)) == exact * (1 + NEAR)
    with pytest.raises(Reject, match="do not prove the bound"):
        checker.prove_part(net, "x", "s", exact * (1 - NEAR), {}, (8,))


def headed(*more: Any) -> dict[str, Any]:
    flat = affine("f", "a", Map("reshape", (1, 4), (4,)))
    return network(affine("a", "x", line([[[1, 1]]])), flat, *more, shape=(1, 4))


def test_a_dense_head_is_bounded_and_no_lower_than_it_is():
    net = headed(affine("b", "f", dense([[1, 1, 1, 1], [1, -1, 1, -1]], HALF)))
    M = np.array([[1, 1, 1, 1], [1, -1, 1, -1]]) / 2 @ checker.matrix(net["a"].map)
    norm = Fraction(float(np.linalg.norm(M, 2)))
    assert checker.prove_part(net, "x", "b", Fraction(21, 10), {}, (8,)) == Fraction(21, 10)
    for value in (norm * (1 - NEAR), norm / 2):
        with pytest.raises(Reject, match="do not prove the bound"):
            checker.prove_part(net, "x", "b", value, {}, (8,))


@pytest.mark.parametrize("name", ["filters", "a wide layer", "a head"])
def test_the_work_on_a_torus_has_a_limit(name: str, monkeypatch: pytest.MonkeyPatch):
    if name == "filters":  # 2 x (x and r) rows at 5 frequencies
        net, target, lambdas, side = two_filters(activation("r", "a", (1, 4), 0, 1)), "b", {"r": [Fraction(4)]}, 4
    elif name == "a wide layer":  # 2 x 3 rows of the output
        net, target, lambdas, side = network(affine("a", "x", line([[[1, 1]]] * 3)), shape=(1, 4)), "a", {}, 6
    else:  # 2 x (1 row and 3 outputs)
        net, target, lambdas, side = headed(affine("b", "f", dense([[1, 1, 1, 1]] * 3, HALF))), "b", {}, 8
    work = 5 * side**3
    monkeypatch.setattr(checker, "WAVE_LIMIT", work)
    assert checker.prove_part(net, "x", target, Fraction(9), lambdas, (8,)) == 9
    monkeypatch.setattr(checker, "WAVE_LIMIT", work - 1)
    with pytest.raises(TooLarge, match=rf"5 frequencies x {side}\^3 = .*--float64"):
        checker.prove_part(net, "x", target, Fraction(9), lambdas, (8,))


def test_the_head_begins_at_the_first_node_that_is_not_the_same_everywhere():
    net = headed(affine("b", "f", dense(drawn(1, 3, 4))), affine("c", "b", dense(drawn(2, 2, 3))))
    a, f, b, c = (net[name] for name in "afbc")

    def headed_by(*nodes: Any) -> tuple[list[str], list[str], list[str]]:
        inner, head, kernels = checker._headed(list(nodes))
        return [node.name for node in inner], [node.name for node in head], list(kernels)

    assert headed_by(a, f, b, c) == (["a"], ["f", "b", "c"], ["a"])
    assert headed_by(a) == (["a"], [], ["a"])
    relu = activation("r", "a", (1, 4), 0, 1)
    assert headed_by(a, relu) == (["a", "r"], [], ["a"])
    for nodes in ((f, b), (a, f, c), (a, f, b, activation("t", "b", (3,), 0, 1)), (a, f, relu)):
        with pytest.raises(Reject, match="is not the same at every position"):
            headed_by(*nodes)


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
