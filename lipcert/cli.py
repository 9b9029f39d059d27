"""The command line: certify, check, falsify, show. Floor 5; typer is imported here and in `lipcert.answers` only.

Answers go to standard output, progress and errors to standard error. The exit status says which answer it was;
an error inside lipcert has a status of its own, so that it can never be read as a verdict.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from lipcert import solvers
from lipcert.answers import (
    Status,
    answering,
    claim,
    details,
    finish,
    number,
    replacing,
    seated,
    tell,
    working,
    write_pair,
    written_as,
)
from lipcert.certificate import Certificate, Validity
from lipcert.certifiers import Auto, Certifier, FourierLipSDP, LipSDP, Product, certify_on
from lipcert.check import Reject, TooLarge
from lipcert.check import main as check_files
from lipcert.check_domain import verify_files
from lipcert.domain import Domain, WholeSpace
from lipcert.errors import CheckFailed, InvalidInput
from lipcert.falsify import Effort, Refuted, Unknown, refute
from lipcert.graph import Graph
from lipcert.norms import L2, Norms
from lipcert.pages.contents import Origin
from lipcert.pages.files import write_pages
from lipcert.ranks import Map, together
from lipcert.recheck import check_float64
from lipcert.report import (
    assumptions,
    format_down,
    format_up,
    iteration,
    layer_rows,
    layer_table,
    plot_layers,
    report_sandwich,
    where,
)
from lipcert.sandwich import Sandwich, enclose
from lipcert.storage import graph_from_document, load_certificate, read_network, save_certificate
from lipcert.target import following, load_graph, load_model, parse_domain, parse_shape, picked
from lipcert.witness import witness

app = typer.Typer(
    help="Lipschitz claims about torch networks: true, tight and checked.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


class Method(StrEnum):
    """Certifiers by name."""

    auto = "auto"
    product = "product"
    lipsdp = "lipsdp"
    fourier = "fourier"


CERTIFIERS: dict[Method, Callable[[float, solvers.Progress, Map], Certifier]] = {
    Method.auto: lambda seconds, told, over: Auto(seconds, progress=told, over=over),
    Method.product: lambda seconds, told, over: Product(over=over),
    Method.lipsdp: lambda seconds, told, over: LipSDP(solvers.Auto(seconds=seconds), progress=told, over=over),
    Method.fourier: lambda seconds, told, over: FourierLipSDP(seconds, progress=told, over=over),
}
SECONDS = {Method.auto: 20.0, Method.product: 0.0, Method.lipsdp: 600.0, Method.fourier: 300.0}

Target = Annotated[str, typer.Argument(help="package.module:factory, a model or a function that returns one.")]
Network = Annotated[str, typer.Argument(help="package.module:factory, or a .pt2 or .onnx file.")]
InputShape = Annotated[str, typer.Option("--input-shape", help="Shape of one sample without batch, as 1,28,28.")]
FileShape = Annotated[str | None, typer.Option("--input-shape", help="Of one sample, as 1,28,28; a file may fix it.")]
NormsText = Annotated[str, typer.Option("--norms", help="l1, l2, linf, l1->linf or l2->linf.")]
StateDict = Annotated[Path | None, typer.Option("--state-dict", help="Weights: .pt (tensors only) or .safetensors.")]
StateDicts = Annotated[
    list[Path] | None, typer.Option("--state-dict", help="Weights, .pt or .safetensors; again for more checkpoints.")
]
BoxText = Annotated[str, typer.Option("--box", help="Inputs with entries between two numbers only, as -1,1.")]
BallRadius = Annotated[float | None, typer.Option("--ball", help="Inputs at most this far, in l2, from the centre.")]
Centre = Annotated[Path | None, typer.Option("--centre", help="Of the ball, .npy; default: zero.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


@app.command()
def certify(
    target: Network,
    input_shape: FileShape = None,
    norms: NormsText = "l2",
    method: Annotated[Method, typer.Option("--method", help="How to bound.")] = Method.auto,
    seconds: Annotated[float | None, typer.Option("--seconds", help="Solver's time, else 20, 300 or 600.")] = None,
    output: Annotated[int | None, typer.Option("--output", help="Bound this output only, counted from 0.")] = None,
    margin: Annotated[str, typer.Option("--margin", help="Bound the difference of two outputs, as 3,5.")] = "",
    both_sides: Annotated[bool, typer.Option("--sandwich", help="Print lower bounds too (l2).")] = False,
    progress: Annotated[bool | None, typer.Option("--progress/--no-progress", help="Iterations on stderr.")] = None,
    box: BoxText = "",
    ball: BallRadius = None,
    centre: Centre = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write the certificate here, weights beside it.")] = None,
    state_dict: StateDicts = None,
    as_json: AsJson = False,
) -> None:
    """Prove an upper bound of a model's Lipschitz constant."""
    with answering("certify", as_json), seated() as over, answering("certify", as_json):
        domain = parse_domain(box, ball, centre)
        asked = _Question(target, input_shape, norms, method, seconds, output, margin, both_sides, progress, domain)
        weights = state_dict or [None]
        with together(over):
            answers = [_one(asked, weights[0], out, over)] if len(weights) == 1 else _each(asked, weights, out, over)
        for answer in answers:
            tell("certify", answer.verdict, answer.fields, answer.text, as_json, answer.status)
        raise typer.Exit(max(answer.status for answer in answers))


@app.command()
def check(
    certificate: Annotated[Path, typer.Argument(help="The certificate, a .json file.")],
    weights: Annotated[Path | None, typer.Argument(help="Default: the .safetensors file beside it.")] = None,
    float64: Annotated[bool, typer.Option("--float64", help="By outward rounding: faster, for larger nets.")] = False,
    as_json: AsJson = False,
) -> None:
    """Prove a certificate again from the files, in exact arithmetic unless told otherwise."""
    with answering("check", as_json):
        network = weights or certificate.with_suffix(".safetensors")
        fields: dict[str, Any] = {
            "certificate": str(certificate),
            "weights": str(network),
            "arithmetic": "float64" if float64 else "exact",
        }
        try:
            with working("checking"):
                proven = (_check_float64 if float64 else _check_exactly)(certificate, network)
        except (Reject, CheckFailed) as reason:
            unknown = isinstance(reason, TooLarge)
            hint = "\n  Exact arithmetic is meant for small networks; try --float64." if unknown else ""
            verdict, status = ("UNKNOWN", Status.UNKNOWN) if unknown else ("REJECTED", Status.NO)
            finish("check", verdict, {**fields, "reason": str(reason)}, f"{reason}{hint}", as_json, status)
        where = f" on {proven['domain']}" if "domain" in proven else ""
        text = f"Lip(f; {proven['norms']}{where}) <= {format_up(proven['bound'])}\n{details({**fields, **proven})}"
        finish("check", "ACCEPTED", {**fields, **proven, "reason": ""}, text, as_json, Status.YES)


@app.command()
def falsify(
    target: Target,
    input_shape: InputShape,
    bound: Annotated[float, typer.Option("--bound", help="The claim: Lip(f) is at most this.")] = 1.0,
    norms: NormsText = "l2",
    budget: Annotated[float, typer.Option("--budget", help="Seconds to search.")] = 10.0,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the starting points.")] = 0,
    out: Annotated[Path | None, typer.Option("--out", help="Write the pair here, .npz, and its replay, .py.")] = None,
    state_dict: StateDict = None,
    as_json: AsJson = False,
) -> None:
    """Search for two inputs that break a claimed Lipschitz constant."""
    with answering("falsify", as_json):
        shape, pair = parse_shape(input_shape), Norms.parse(norms)
        if not (bound >= 0.0 and budget > 0.0):
            raise InvalidInput(f"--bound {bound} must be >= 0 and --budget {budget} must be > 0 seconds.")
        model = load_model(target, state_dict)
        with working("searching for a pair"):
            source = torch.Generator().manual_seed(seed)
            verdict = refute(model, shape, bound, norms=pair, effort=Effort(budget, 2**31), generator=source)
        found, files = verdict.witness, [] if out is None else write_pair(verdict, out)
        fields = {
            "target": target,
            "input_shape": list(shape),
            "norms": str(pair),
            "claimed": bound,
            **number("ratio", found.ratio),
            "distance": float(torch.linalg.vector_norm((found.x - found.y).flatten(), pair.p)),
            "exact": isinstance(verdict, Refuted),
            "blamed": verdict.blamed if isinstance(verdict, Refuted) else "",
            "reason": verdict.reason if isinstance(verdict, Unknown) else "",
            "seed": seed,
            "files": [str(file) for file in files],
        }
        says = f"two inputs with |f(x) - f(y)| / |x - y| >= {format_down(found.ratio)} ({pair}); claimed {bound!r}"
        name, status = ("REFUTED", Status.NO) if isinstance(verdict, Refuted) else ("UNKNOWN", Status.UNKNOWN)
        finish("falsify", name, fields, f"{says}\n{details(fields)}", as_json, status)


@app.command()
def show(
    what: Annotated[str, typer.Argument(help="A certificate (.json), package.module:factory, .pt2, .onnx.")],
    input_shape: FileShape = None,
    norms: NormsText = "l2",
    weights: Annotated[Path | None, typer.Option("--weights", help="Of a certificate; default: beside it.")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw the layers into this picture file.")] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write a page here, one file with pictures.")] = None,
    markdown: Annotated[Path | None, typer.Option("--markdown", help="Write a page here, as tables.")] = None,
    pair: Annotated[Path | None, typer.Option("--pair", help="Two inputs for the page, .safetensors or .npz.")] = None,
    state_dict: StateDict = None,
    as_json: AsJson = False,
) -> None:
    """Show what every layer contributes, from a certificate (without checking it) or from a model."""
    with answering("show", as_json):
        if what.endswith(".json"):
            certificate, origin = load_certificate(Path(what)), Origin(Path(what), weights)
            graph = graph_from_document(*read_network(weights or Path(what).with_suffix(".safetensors")))
        else:
            origin = Origin()
            graph, _ = _traced(what, input_shape, state_dict)
            with working("bounding"):
                certificate = Product()(graph, Norms.parse(norms))
        layers = [asdict(row) for row in layer_rows(graph, certificate)]
        files = write_pages(graph, certificate, html=html, markdown=markdown, pair=pair, origin=origin)
        if plot is not None:
            with replacing(plot) as temporary:
                plot_layers(graph, certificate, temporary)
        fields = {
            **claim(certificate),
            "assumptions": list(assumptions(graph)),
            "layers": layers,
            "files": [str(file) for file in [*files, *([] if plot is None else [plot])]],
        }
        if as_json:
            finish("show", "SHOWN", fields, "", as_json, Status.YES)
        Console().print(layer_table(graph, certificate))
        typer.echo(details({**fields, "layers": [], "validity": ""}))


def main() -> None:
    """Entry point of the ``lipcert`` script."""
    app()


def check_main() -> int:
    """Entry point of the ``lipcert-check`` script: the stand-alone checkers' own command line."""
    return check_files(sys.argv[1:], verify_files)


@dataclass(frozen=True)
class _Network:
    """What a command line names: all of it, the outputs asked for, and the model where it is one in Python."""

    whole: Graph
    graph: Graph
    model: torch.nn.Module | None


@dataclass(frozen=True)
class _Answer:
    """A certificate and what is said of it."""

    certificate: Certificate
    fields: dict[str, Any]
    found: str

    @property
    def status(self) -> Status:
        return Status.YES if self.certificate.validity is Validity.RIGOROUS else Status.UNKNOWN

    @property
    def verdict(self) -> str:
        return "PROVED" if self.status is Status.YES else "UNKNOWN"

    @property
    def text(self) -> str:
        # The report of both sides has the method and the validity in its lines.
        said = {"method": "", "validity": ""} if "witness" in self.fields else {}
        return f"{self.found}\n{details({**self.fields, **said})}"

    def with_files(self, *files: Path) -> _Answer:
        return replace(self, fields={**self.fields, "files": [str(file) for file in files]})


@dataclass(frozen=True)
class _Question:
    """What `certify` is asked about every checkpoint."""

    target: str
    input_shape: str | None
    norms: str
    method: Method
    seconds: float | None
    output: int | None
    margin: str
    both_sides: bool
    progress: bool | None
    domain: Domain

    def load(self, weights: Path | None) -> _Network:
        whole, model = _traced(self.target, self.input_shape, weights, self.domain)
        return _Network(whole, picked(whole, self.output, self.margin), model)

    def bound(self, network: _Network, over: Map, **named: str) -> _Answer:
        graph, model, pair = network.graph, network.model, Norms.parse(self.norms)
        if self.both_sides and pair != L2:
            raise InvalidInput(f"--sandwich is about l2, not {pair}; leave one of the two out.")
        if self.both_sides and not isinstance(self.domain, WholeSpace):
            raise InvalidInput("--sandwich is about the whole space; leave --box, --ball or --sandwich out.")
        if self.both_sides and model is None:
            raise InvalidInput(
                f"--sandwich searches a model in Python for pairs; `{self.target}` is a file. Leave it out."
            )
        time_limit = SECONDS[self.method] if self.seconds is None else self.seconds
        if not time_limit >= 0.0:
            raise InvalidInput(f"--seconds {self.seconds} must be >= 0.")
        with working("bounding", self.progress) as say:
            certifier = CERTIFIERS[self.method](time_limit, lambda *numbers: say(iteration(*numbers)), over)
            sides = None
            if self.both_sides and model is not None:
                sides = _sandwich(following(model, network.whole, graph), graph, certifier)
            certificate = certify_on(graph, self.domain, pair, certifier) if sides is None else sides.certificate
        fields = {
            "target": self.target,
            **named,
            "input_shape": list(graph.input.shape),
            **claim(certificate),
            "assumptions": list(assumptions(graph)),
            "files": [],
        }
        if sides is None:
            return _Answer(certificate, fields, f"Lip(f; {where(certificate)}) <= {format_up(certificate.bound)}")
        fields |= {"witness": sides.witness.ratio, "pattern": sides.pattern, "dual": sides.dual, "parts": sides.parts}
        return _Answer(certificate, fields, report_sandwich(sides))


def _one(asked: _Question, weights: Path | None, out: Path | None, over: Map) -> _Answer:
    """The answer about one network; layers and parts are dealt out. The first rank writes."""
    network = asked.load(weights)
    answer = asked.bound(network, over)
    if out is None:
        return answer
    written = over(lambda path: save_certificate(answer.certificate, network.graph, path), [out])
    return answer.with_files(out, *written)


def _each(asked: _Question, checkpoints: Sequence[Path | None], out: Path | None, over: Map) -> list[_Answer]:
    """The answers about several checkpoints, dealt out whole. The first rank writes, after all are bounded."""
    names = [str(path) for path in checkpoints]
    files = None if out is None else over(lambda folder: written_as(folder, names), [out])[0]
    about = f"checkpoints {names} of {asked}"
    answers = over(lambda name: asked.bound(asked.load(Path(name)), over, state_dict=name), names, about=about)
    if files is None:
        return answers

    def write(paths: Sequence[Path]) -> list[Path]:
        each = zip(answers, names, paths, strict=True)
        return [save_certificate(a.certificate, asked.load(Path(name)).graph, path) for a, name, path in each]

    written = over(write, [files])[0]
    return [answer.with_files(*both) for answer, *both in zip(answers, files, written, strict=True)]


def _traced(
    target: str,
    input_shape: str | None,
    state_dict: Path | None,
    domain: Domain = WholeSpace(),  # noqa: B008
) -> tuple[Graph, torch.nn.Module | None]:
    shape = None if input_shape is None else parse_shape(input_shape)
    with working("reading the model"):
        return load_graph(target, shape, state_dict, domain)


def _sandwich(model: torch.nn.Module, graph: Graph, certifier: Certifier) -> Sandwich:
    return enclose(graph, witness(model, graph.input.shape), by=certifier)


def _check_exactly(certificate: Path, weights: Path) -> dict[str, Any]:
    accepted = verify_files(str(certificate), str(weights))
    found = {"norms": accepted.norms, **number("bound", accepted.bound), "assumptions": list(accepted.assumptions)}
    return {**found, "domain": accepted.domain} if accepted.domain else found


def _check_float64(certificate: Path, weights: Path) -> dict[str, Any]:
    graph = graph_from_document(*read_network(weights))
    checked = check_float64(load_certificate(certificate), graph)
    found = {"norms": str(checked.norms), **number("bound", checked.bound), "assumptions": list(assumptions(graph))}
    return found if checked.everywhere else {**found, "domain": str(checked.domain)}
