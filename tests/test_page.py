"""A certificate's page: says what the certificate says, loads nothing, and no name in a file becomes markup."""

import dataclasses
import json
import re
import sys
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from markdown_it import MarkdownIt
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner, Result

from lipcert import L1_LINF, L2, Certificate, Validity, trace
from lipcert.certifiers import LipSDP, Product, certify_on
from lipcert.cli import app
from lipcert.domain import Box
from lipcert.errors import InvalidInput
from lipcert.graph import Activation, Affine, Graph, Input
from lipcert.linear import Conv, Dense, Reshape, dense
from lipcert.pages.contents import Origin, certificate_page
from lipcert.pages.document import Block, Page, Picture, Section
from lipcert.pages.hypertext import html_page
from lipcert.pages.markdown import markdown_page
from lipcert.pages.pictures import histograms, side_by_side
from lipcert.pages.spectra import Spectrum, spectra
from lipcert.report import format_up, layer_rows
from lipcert.storage import save_certificate

SHAPE = (1, 6, 6)
VOID = {"meta", "img", "br"}
TAGS = {"html", "head", "meta", "title", "style", "body", "main", "section", "h1", "h2", "p", "pre", "code", "div"}
TAGS |= {"table", "thead", "tbody", "tr", "th", "td", "figure", "img", "figcaption"}
ATTRIBUTES = {"lang", "charset", "http-equiv", "content", "name", "class", "role", "scope", "src", "alt"}
HOSTILE = [
    "<script>alert(1)</script>",
    '" onmouseover="alert(1)',
    "<img src=http://evil.example/x.png>",
    "</td></table><h1>PROVED</h1>",
    "a | b\n\n# PROVED",
    "[proved](http://evil.example) ![x](http://evil.example) <http://evil.example> www.evil.example",
    "`` ` *b* _i_ &lt; &#60; \\| $x$ ~~s~~",
    "right \u202eto left \x00 \ud800",
]


class Balanced(HTMLParser):
    """Every tag is closed in order; what was seen is kept."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        self.open += [] if tag in VOID else [tag]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(1, 2, 3, padding=1)
        self.back = nn.Conv2d(2, 1, 3, padding=1)
        self.head = nn.Linear(36, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head((x + self.back(torch.relu(self.inner(x)))).flatten(1))


@cache
def claims() -> dict[str, tuple[Graph, Certificate]]:
    torch.manual_seed(0)
    graph = trace(Residual(), SHAPE)
    return {
        "gains": (graph, Product()(graph, L2)),
        "gains in l1->linf": (graph, Product()(graph, L1_LINF)),
        "multipliers": (graph, LipSDP()(graph, L2)),
    }


def undrawn(page: Page) -> Page:
    """The page with pictures that cost nothing."""

    def blocks(section: Section) -> tuple[Block, ...]:
        return tuple(replace(b, draw=lambda: b"drawn") if isinstance(b, Picture) else b for b in section.blocks)

    return replace(page, sections=tuple(replace(section, blocks=blocks(section)) for section in page.sections))


def both(page: Page) -> dict[str, str]:
    """What the two formats say: the text of the HTML, and the Markdown as its renderer reads it."""
    page = undrawn(page)
    rendered = MarkdownIt("commonmark").enable("table").render(markdown_page(page))
    return {"html": Balanced(html_page(page)).text, "markdown": Balanced(rendered).text}


@pytest.mark.parametrize("kind", ["gains", "gains in l1->linf", "multipliers"])
def test_both_formats_say_what_the_certificate_says(kind: str):
    graph, certificate = claims()[kind]
    page = certificate_page(graph, certificate, origin=Origin(Path("a b.json")))
    for text in both(page).values():
        assert format_up(certificate.bound) in text
        assert repr(certificate.bound) in text
        assert certificate.bound.hex() in text
        for said in (certificate.network, certificate.method, "RIGOROUS", "1 x 6 x 6", "No slope or constant"):
            assert said in text
        assert "lipcert check 'a b.json' 'a b.safetensors'" in text
        for row in layer_rows(graph, certificate):
            assert row.node in text
            assert row.op in text
            assert row.gain is None or format_up(row.gain) in text
            assert row.cumulative is None or format_up(row.cumulative) in text
        assert ("one quadratic constraint" in text) == (kind == "multipliers")
        norm = {1.0: "l1 (sum of moduli)", 2.0: "l2 (Euclidean)"}[certificate.norms.p]
        assert norm in text
        assert f"‖x - y‖{'₂' if certificate.norms.p == 2 else '₁'}" in text
        assert ("largest singular value" in text) == (certificate.norms == L2)


def test_all_multipliers_are_counted():
    graph, certificate = claims()["multipliers"]
    (part,) = certificate.evidence.blocks
    for text in both(certificate_page(graph, certificate)).values():
        for numbers in part.multipliers.values():
            assert f"{len(numbers)}, from {min(numbers):.3g} to {max(numbers):.3g}" in text


def test_a_field_of_a_certificate_is_a_field_of_the_page():
    """A certificate that says one thing more, such as where it holds, says it on the page: see `_domain` there."""
    shown = {"bound", "norms", "validity", "method", "network", "evidence", "domain", "ranges"}
    assert {field.name for field in dataclasses.fields(Certificate)} == shown


def test_a_claim_on_a_domain_says_so_and_a_pair_outside_is_no_contradiction():
    layer = double()
    domain = Box(0.0, 1.0)
    claim = certify_on(layer, domain, L2, Product())
    inside, outside = torch.zeros(2).double(), torch.full((2,), 3.0).double()
    text = markdown_page(certificate_page(layer, claim, (inside, outside)))
    assert "the box from 0.0 to 1.0, and no others" in text
    assert "not about this pair" in text
    assert "not about this pair" not in markdown_page(certificate_page(layer, claim, (inside, inside + 0.5)))


def test_the_page_is_one_file_that_loads_and_runs_nothing():
    graph, certificate = claims()["gains"]
    text = html_page(certificate_page(graph, certificate, (torch.zeros(SHAPE).double(), torch.ones(SHAPE).double())))
    page = Balanced(text)
    assert page.tags <= TAGS
    assert {name for name, _ in page.attributes} <= ATTRIBUTES
    sources = [value for name, value in page.attributes if name == "src"]
    assert len(sources) == 2
    assert all(value.startswith("data:image/png;base64,iVBOR") for value in sources)
    outside = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", text)
    assert not re.search(r"//|http[^-]|url\(|@import|<script|<link|href", outside)
    assert ("content", "default-src 'none'; img-src data:; style-src 'unsafe-inline'") in page.attributes
    assert "prefers-color-scheme: dark" in text


def double() -> Graph:
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    return trace(nn.Sequential(layer, nn.ReLU()), (2,))


def pair(*y: float) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(len(y), dtype=torch.float64), torch.tensor(y, dtype=torch.float64)


@cache
def hostile() -> tuple[Graph, Certificate]:
    nodes: list = [Input(HOSTILE[0], (2,))]
    ends = torch.tensor(0.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    for name in HOSTILE[1:-1]:
        nodes.append(Affine(name, nodes[-1].name, Dense(torch.eye(2, dtype=torch.float64), (2,)), None))
    nodes.append(Activation(HOSTILE[-1], nodes[-1].name, (2,), f"declared:{HOSTILE[0]}", {}, ends, torch.relu))
    graph = Graph(tuple(nodes))
    return graph, replace(Product(longest=1)(graph, L2), method=HOSTILE[0])


def test_hostile_names_stay_text_in_html():
    graph, certificate = hostile()
    origin = Origin(Path("--help $(x) <b>.json"))
    text = html_page(undrawn(certificate_page(graph, certificate, pair(1.0, 2.0), origin)))
    page = Balanced(text)
    assert page.tags <= TAGS
    assert {name for name, _ in page.attributes} <= ATTRIBUTES
    for name in HOSTILE[:4]:
        assert name in page.text
    assert "right \\u202eto left \\x00 \\ud800" in page.text
    assert "./--help $(x) <b>.json" in page.text
    assert not set("\u202e\x00\ud800") & set(text)
    text.encode()


def test_hostile_names_stay_text_in_markdown():
    graph, certificate = hostile()
    text = markdown_page(certificate_page(graph, certificate, origin=Origin(Path("```\n<b>.json"))))
    rendered = MarkdownIt("commonmark").enable("table").enable("strikethrough").render(text)
    page = Balanced(rendered)
    assert page.tags <= {"h1", "h2", "p", "blockquote", "table", "thead", "tbody", "tr", "th", "td", "pre", "code"}
    assert {name for name, _ in page.attributes} <= {"class", "style"}
    assert page.text.count("PROVED") == rendered.count("PROVED")
    assert "<h1>" + "PROVED" not in rendered
    layers = rendered.split("<h2>Layers</h2>")[1].split("</tbody>")[0]
    assert layers.count("<tr>") == 1 + len(HOSTILE)
    # Addresses are made links of by GitHub where nothing is in between.
    assert not re.search(r"http://|www\.", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def test_a_certificate_that_is_no_proof_says_so_first():
    graph, certificate = claims()["gains"]
    for validity in (Validity.NUMERICAL, Validity.ESTIMATE):
        text = html_page(undrawn(certificate_page(graph, replace(certificate, validity=validity))))
        assert text.index("This is not a proof") < text.index("<table")
    assert "This is not a proof" not in html_page(undrawn(certificate_page(graph, certificate)))


def test_another_network_is_refused():
    with pytest.raises(InvalidInput, match="about network"):
        certificate_page(trace(nn.ReLU(), (2,)), claims()["gains"][1])


def test_the_quotient_of_a_pair_is_exact_and_beside_the_bound():
    graph = double()
    certificate = Product()(graph, L2)
    for text in both(certificate_page(graph, certificate, pair(3.0, 4.0))).values():
        # |(6, 4)| / |(3, 4)| = sqrt(52) / 5 = 1.44222...
        assert "‖f(x) - f(y)‖₂ / ‖x - y‖₂ ≥ 1.44222" in text
        assert "exactly, in rational arithmetic" in text
        assert "between 1.44222 and 2.00001" in text
        assert "72.11% of the bound" in text
        assert "CONTRADICTION" not in text


def test_a_pair_above_the_bound_contradicts_the_certificate():
    graph = double()
    false = replace(Product()(graph, L2), bound=1.4)
    for text in both(certificate_page(graph, false, pair(3.0, 4.0))).values():
        assert "CONTRADICTION" in text


def test_a_pair_that_exact_arithmetic_does_not_reach_is_not_given_a_number():
    graph, certificate = hostile()
    for text in both(certificate_page(graph, certificate, pair(3.0, 4.0))).values():
        assert "is not known exactly" in text
        assert "These slopes or constants are a user's word" in text


@pytest.mark.parametrize("wrong", [pair(0.0, 0.0), pair(1.0, 2.0, 3.0), pair(1.0, float("nan"))])
def test_a_pair_that_is_none_is_refused(wrong: tuple[torch.Tensor, torch.Tensor]):
    graph = double()
    with pytest.raises(ValueError, match=r"equal|shapes|NaN"):
        certificate_page(graph, Product()(graph, L2), wrong)


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 5, 4), (20, 2, 2), (2, 1, 9), ()], ids=str)
def test_inputs_of_every_shape_are_drawn(shape: tuple[int, ...]):
    x = torch.arange(float(max(1, torch.Size(shape).numel()))).reshape(shape).double()
    assert side_by_side(x, 1e30 * (x + 1)).startswith(b"\x89PNG")


def test_names_in_a_picture_are_neither_mathematics_nor_missing_letters():
    values = torch.tensor([1.0, 0.0], dtype=torch.float64)
    spectrum = Spectrum("$\\frac$ \u5c64 \u202e " + 20 * "x", (2, 2), values)
    assert histograms([spectrum, replace(spectrum, values=0.0 * values)]).startswith(b"\x89PNG")


def test_singular_values_are_those_of_the_layer_as_it_acts():
    kernel = torch.ones(1, 1, 3, 3, dtype=torch.float64)
    conv = Conv(kernel, (1, 4, 4), (4, 4), (1, 1), ((1, 1), (1, 1)), (1, 1), 1, "circular")
    weight = torch.tensor([[3.0, 0.0], [4.0, 0.0]], dtype=torch.float64)
    nodes = Input("x", (1, 4, 4)), Affine("c", "x", conv, None), Affine("r", "c", Reshape((1, 4, 4), (8, 2)), None)
    by_name = {s.node: s for s in spectra(Graph((*nodes, Affine("d", "r", Dense(weight, (8, 2)), None))))}
    assert by_name.keys() == {"c", "d"}
    # A constant image is multiplied by the nine taps; a matrix at many positions counts once.
    assert by_name["c"].values[0].item() == pytest.approx(9.0, rel=1e-12)
    assert by_name["c"].matrix == (16, 16)
    assert by_name["d"].values.tolist() == pytest.approx([5.0, 0.0], abs=1e-12)
    squares = sum(value**2 for value in by_name["c"].values.tolist())
    assert squares == pytest.approx(float(dense(conv).square().sum()), rel=1e-12)


def test_layers_that_are_too_large_or_not_finite_are_left_out_and_said_to_be():
    graph, _ = claims()["gains"]
    small = spectra(graph, entries=1000)
    assert [len(s.values) > 0 for s in small] == [False, False, True]
    assert small[0].left_out == "too large: 72 x 36"
    assert [len(s.values) > 0 for s in spectra(graph, work=0)] == [False, False, False]
    bad = Graph((Input("x", (2,)), Affine("d", "x", Dense(torch.full((2, 2), torch.nan).double(), (2,)), None)))
    assert spectra(bad)[0].left_out.startswith("not computable")


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with a certificate, a pair and pairs that are none."""
    monkeypatch.chdir(tmp_path)
    graph = double()
    save_certificate(Product()(graph, L2), graph, "cert.json")
    x, y = pair(3.0, 4.0)
    save_file({"x": x.float(), "y": y.bfloat16()}, "pair.safetensors")
    np.savez("pair.npz", x=x.numpy(), y=y.numpy(), ratio=1.0, norms="l2->l2")
    save_file({"x": x}, "half.safetensors")
    save_file({"x": x, "y": torch.zeros(3)}, "shapes.safetensors")
    save_file({"x": torch.zeros(3), "y": torch.ones(3)}, "other.safetensors")
    save_file({"x": x, "y": x.clone()}, "equal.safetensors")
    save_file({"x": x, "y": x / 0}, "nan.safetensors")
    np.savez("objects.npz", x=np.array([None, {}]), y=np.array([None, {}]))
    np.savez("text.npz", x=np.array(["a", "b"]), y=np.array(["a", "b"]))
    Path("junk.safetensors").write_bytes(b"junk")
    Path("junk.npz").write_bytes(b"junk")
    Path("empty.npz").write_bytes(b"")
    return tmp_path


def show(*options: str) -> Result:
    return CliRunner().invoke(app, ["show", *options])


@pytest.mark.parametrize("name", ["pair.safetensors", "pair.npz"])
def test_show_writes_both_pages_whole(files: Path, name: str):
    before = {path.name for path in files.iterdir()}
    result = show("cert.json", "--html", "out.html", "--markdown", "out.md", "--pair", name, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["files"] == ["out.html", "out.md"]
    assert {path.name for path in files.iterdir()} == before | {"out.html", "out.md"}
    text = Balanced(Path("out.html").read_text(encoding="utf-8")).text
    assert "lipcert check cert.json cert.safetensors" in text
    assert "≥ 1.44222" in text
    assert "≥ 1.44222" in Path("out.md").read_text(encoding="utf-8")


def test_a_model_has_a_page_too_and_it_says_that_nothing_was_written(files: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    result = show("torch.nn:ReLU", "--input-shape", "2", "--markdown", "out.md", "--pair", "pair.npz")
    assert result.exit_code == 0
    assert "It was made from a model" in Path("out.md").read_text(encoding="utf-8")


WRONG = ["half.safetensors", "shapes.safetensors", "other.safetensors", "equal.safetensors", "nan.safetensors"]
WRONG += ["objects.npz", "text.npz", "junk.safetensors", "junk.npz", "empty.npz", "missing.npz", "cert.safetensors"]


@pytest.mark.parametrize("name", WRONG)
def test_a_bad_pair_is_a_usage_error_and_leaves_what_was_there(files: Path, name: str):
    Path("out.html").write_text("old")
    before = {path: path.read_bytes() for path in files.iterdir()}
    result = show("cert.json", "--html", "out.html", "--markdown", "out.md", "--pair", name)
    assert result.exit_code == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert {path: path.read_bytes() for path in files.iterdir()} == before


def test_a_pair_without_a_page_and_a_page_without_a_folder_are_usage_errors(files: Path):
    for options in (("--pair", "pair.npz"), ("--html", "nowhere/out.html"), ("--markdown", "nowhere/out.md")):
        result = show("cert.json", *options)
        assert result.exit_code == 2
        assert options[-1].split("/")[0] in result.stderr


def test_a_page_that_cannot_be_written_whole_is_not_written(files: Path, monkeypatch: pytest.MonkeyPatch):
    Path("out.md").write_text("old")
    monkeypatch.setattr("lipcert.pages.files.markdown_page", lambda page: 10000 * "x" + "\ud800")
    before = {path.name for path in files.iterdir()}
    assert show("cert.json", "--markdown", "out.md").exit_code != 0
    assert Path("out.md").read_text() == "old"
    assert {path.name for path in files.iterdir()} == before


def test_a_page_without_matplotlib_is_refused_and_markdown_is_not(files: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = show("cert.json", "--html", "out.html")
    assert result.exit_code == 2
    assert "lipcert[plot]" in result.stderr
    assert not Path("out.html").exists()
    assert show("cert.json", "--markdown", "out.md").exit_code == 0
