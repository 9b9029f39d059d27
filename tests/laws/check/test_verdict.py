"""The verdict: claims, exit status, items handed on as they are claimed, and what composes from them."""

import itertools
import json
import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import mpmath
import pytest

from tests.laws.check.built import (
    NEAR,
    Malformed,
    Map,
    Node,
    Reject,
    Signal,
    TooLarge,
    activation,
    affine,
    checker,
    dense,
    diagonal,
    drawn,
    network,
    scaled,
)


def hexed(*numbers: Any) -> list[str]:
    return [float(number).hex() for number in numbers]


# ---------------------------------------------------------------------------------------------------------- the verdict


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


# ----------------------------------------------------------------------------------------------------- items and blocks


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


# ---------------------------------------------------------------------------------------------------------- composition


def composed(net: Any, norms: str, proven: Any = (), parts: Any = ()) -> Fraction:
    return checker.compose(net, norms, list(proven), list(parts))


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
