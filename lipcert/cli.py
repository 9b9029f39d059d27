"""The command line: certify, check, falsify, show. Floor 5; typer is imported nowhere else.

Answers go to standard output, progress and errors to standard error. The exit status says which answer it was;
an error inside lipcert has a status of its own, so that it can never be read as a verdict.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from lipcert import solvers
from lipcert.certificate import Certificate, Validity, Witness
from lipcert.certifiers import Auto, Certifier, LipSDP, Product
from lipcert.check import Malformed, Reject, TooLarge, verify_files
from lipcert.check import main as check_files
from lipcert.errors import BudgetExceeded, CheckFailed, InvalidInput, LipcertError
from lipcert.graph import Graph
from lipcert.linear import Shape
from lipcert.norms import L2, Norms
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
)
from lipcert.sandwich import Sandwich, enclose
from lipcert.storage import graph_from_document, load_certificate, read_network, save_certificate
from lipcert.target import following, load_graph, load_model, parse_shape, picked
from lipcert.witness import Budget, witness

app = typer.Typer(
    help="Lipschitz claims about torch networks: true, tight and checked.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


class Status(IntEnum):
    """Exit statuses, documented in docs/cli.md."""

    YES = 0  # proved, accepted, shown
    NO = 1  # refuted, rejected
    USAGE = 2
    UNSUPPORTED = 3
    UNKNOWN = 4
    BUG = 5
    INTERRUPTED = 130  # given by typer


class Method(StrEnum):
    """Certifiers by name."""

    auto = "auto"
    product = "product"
    lipsdp = "lipsdp"


CERTIFIERS: dict[Method, Callable[[float, solvers.Progress], Certifier]] = {
    Method.auto: lambda seconds, told: Auto(seconds, progress=told),
    Method.product: lambda seconds, told: Product(),
    Method.lipsdp: lambda seconds, told: LipSDP(solvers.Auto(seconds=seconds), progress=told),
}
SECONDS = {Method.auto: 20.0, Method.product: 0.0, Method.lipsdp: 600.0}

Target = Annotated[str, typer.Argument(help="package.module:factory, a model or a function that returns one.")]
Network = Annotated[str, typer.Argument(help="package.module:factory, or a .pt2 or .onnx file.")]
InputShape = Annotated[str, typer.Option("--input-shape", help="Shape of one sample without batch, as 1,28,28.")]
FileShape = Annotated[str | None, typer.Option("--input-shape", help="Of one sample, as 1,28,28; a file may fix it.")]
NormsText = Annotated[str, typer.Option("--norms", help="l1, l2, linf, l1->linf or l2->linf.")]
StateDict = Annotated[Path | None, typer.Option("--state-dict", help="Weights: .pt (tensors only) or .safetensors.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


@app.command()
def certify(
    target: Network,
    input_shape: FileShape = None,
    norms: NormsText = "l2",
    method: Annotated[Method, typer.Option("--method", help="How to bound.")] = Method.auto,
    seconds: Annotated[float | None, typer.Option("--seconds", help="Solver's time, else 20 (auto) or 600.")] = None,
    output: Annotated[int | None, typer.Option("--output", help="Bound this output only, counted from 0.")] = None,
    margin: Annotated[str, typer.Option("--margin", help="Bound the difference of two outputs, as 3,5.")] = "",
    both_sides: Annotated[bool, typer.Option("--sandwich", help="Print lower bounds too (l2).")] = False,
    progress: Annotated[bool | None, typer.Option("--progress/--no-progress", help="Iterations on stderr.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write the certificate here, weights beside it.")] = None,
    state_dict: StateDict = None,
    as_json: AsJson = False,
) -> None:
    """Prove an upper bound of a model's Lipschitz constant."""
    with answering("certify", as_json):
        whole, model = _traced(target, input_shape, state_dict)
        graph = picked(whole, output, margin)
        pair = Norms.parse(norms)
        if both_sides and pair != L2:
            raise InvalidInput(f"--sandwich is about l2, not {pair}; leave one of the two out.")
        if both_sides and model is None:
            raise InvalidInput(f"--sandwich searches a model in Python for pairs; `{target}` is a file. Leave it out.")
        time_limit = SECONDS[method] if seconds is None else seconds
        if not time_limit >= 0.0:
            raise InvalidInput(f"--seconds {seconds} must be >= 0.")
        with working("bounding", progress) as say:
            certifier = CERTIFIERS[method](time_limit, lambda *numbers: say(iteration(*numbers)))
            found = _sandwich(following(model, whole, graph), graph, certifier) if both_sides and model else None
            certificate = certifier(graph, pair) if found is None else found.certificate
        files = () if out is None else (out, save_certificate(certificate, graph, out))
        proved = certificate.validity is Validity.RIGOROUS
        verdict = "PROVED" if proved else "UNKNOWN"
        fields = {
            "target": target,
            "input_shape": list(graph.input.shape),
            **_claim(certificate),
            "assumptions": list(assumptions(graph)),
            "files": [str(file) for file in files],
        }
        if found is not None:
            fields |= {"witness": found.witness.ratio, "pattern": found.pattern, "dual": found.dual}
            fields |= {"parts": found.parts}
        text = f"Lip(f; {pair}) <= {format_up(certificate.bound)}\n{_details(fields)}"
        if found is not None:
            text = f"{report_sandwich(found)}\n{_details({**fields, 'method': '', 'validity': ''})}"
        finish("certify", verdict, fields, text, as_json, Status.YES if proved else Status.UNKNOWN)


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
        text = f"Lip(f; {proven['norms']}) <= {format_up(proven['bound'])}\n{_details({**fields, **proven})}"
        finish("check", "ACCEPTED", {**fields, **proven, "reason": ""}, text, as_json, Status.YES)


@app.command()
def falsify(
    target: Target,
    input_shape: InputShape,
    bound: Annotated[float, typer.Option("--bound", help="The claim: Lip(f) is at most this.")] = 1.0,
    norms: NormsText = "l2",
    budget: Annotated[float, typer.Option("--budget", help="Seconds to search.")] = 10.0,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the starting points.")] = 0,
    out: Annotated[Path | None, typer.Option("--out", help="Write the best pair here, an .npz file.")] = None,
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
            found, rounds = _search(model, shape, pair, bound, budget, seed)
        if out is not None:
            out = out if out.suffix == ".npz" else out.with_name(f"{out.name}.npz")
            with replacing(out) as temporary:
                np.savez(temporary, x=found.x.numpy(), y=found.y.numpy(), ratio=found.ratio, norms=str(pair))
        refuted = found.ratio > bound
        fields = {
            "target": target,
            "input_shape": list(shape),
            "norms": str(pair),
            "claimed": bound,
            **_number("ratio", found.ratio),
            "distance": float(torch.linalg.vector_norm((found.x - found.y).flatten(), pair.p)),
            "rounds": rounds,
            "seed": seed,
            "files": [] if out is None else [str(out)],
        }
        says = f"two inputs with |f(x) - f(y)| / |x - y| >= {format_down(found.ratio)} ({pair}); claimed {bound!r}"
        verdict, status = ("REFUTED", Status.NO) if refuted else ("UNKNOWN", Status.UNKNOWN)
        finish("falsify", verdict, fields, f"{says}\n{_details(fields)}", as_json, status)


@app.command()
def show(
    what: Annotated[str, typer.Argument(help="A certificate (.json), package.module:factory, .pt2, .onnx.")],
    input_shape: FileShape = None,
    norms: NormsText = "l2",
    weights: Annotated[Path | None, typer.Option("--weights", help="Of a certificate; default: beside it.")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw the layers into this picture file.")] = None,
    state_dict: StateDict = None,
    as_json: AsJson = False,
) -> None:
    """Show what every layer contributes, from a certificate (without checking it) or from a model."""
    with answering("show", as_json):
        if what.endswith(".json"):
            certificate = load_certificate(Path(what))
            graph = graph_from_document(*read_network(weights or Path(what).with_suffix(".safetensors")))
        else:
            graph, _ = _traced(what, input_shape, state_dict)
            with working("bounding"):
                certificate = Product()(graph, Norms.parse(norms))
        layers = [asdict(row) for row in layer_rows(graph, certificate)]
        if plot is not None:
            with replacing(plot) as temporary:
                plot_layers(graph, certificate, temporary)
        fields = {
            **_claim(certificate),
            "assumptions": list(assumptions(graph)),
            "layers": layers,
            "files": [] if plot is None else [str(plot)],
        }
        if as_json:
            finish("show", "SHOWN", fields, "", as_json, Status.YES)
        Console().print(layer_table(graph, certificate))
        typer.echo(_details({**fields, "layers": [], "validity": ""}))


def main() -> None:
    """Entry point of the ``lipcert`` script."""
    app()


def check_main() -> int:
    """Entry point of the ``lipcert-check`` script: the stand-alone checker's own command line."""
    return check_files(sys.argv[1:])


@contextmanager
def answering(command: str, as_json: bool) -> Iterator[None]:
    """Turn refusals into a message and an exit status; an unforeseen error keeps its traceback."""
    try:
        yield
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:
        status = _status(error)
        if as_json:
            kind = type(error).__name__
            typer.echo(json.dumps({"command": command, "verdict": "ERROR", "error": kind, "message": str(error)}))
        if status is Status.BUG:
            typer.echo(traceback.format_exc(), err=True)
            message = "This is an error inside lipcert, not an answer about the model; please report it."
            typer.secho(message, fg="red", err=True)
        else:
            typer.secho(f"{type(error).__name__}: {error}", fg="red", err=True)
        raise typer.Exit(status) from None


def finish(command: str, verdict: str, fields: dict[str, Any], text: str, as_json: bool, status: Status) -> None:
    """Print the answer in one of its two forms and leave with its status."""
    if as_json:
        typer.echo(json.dumps({"command": command, "verdict": verdict, **fields}, allow_nan=False))
    else:
        colour = {Status.YES: "green", Status.NO: "red"}.get(status, "yellow")
        typer.echo(f"{typer.style(verdict, fg=colour, bold=True)}  {text}".rstrip())
    raise typer.Exit(status)


@contextmanager
def working(doing: str, shown: bool | None = None) -> Iterator[Callable[[str], None]]:
    """A spinner with elapsed time on standard error while the body runs, and a function that says what it is at.

    Args:
        doing: What the body does.
        shown: Where standard error is no terminal, ``True`` prints what is said line by line. Default: only there.
    """
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    animated = console.is_terminal and shown is not False
    with Progress(*columns, console=console, transient=True, disable=not animated) as bar:
        task = bar.add_task(doing, total=None)

        def say(text: str) -> None:
            if animated:
                bar.update(task, description=f"{doing}: {text}")
            elif shown:
                typer.echo(f"{doing}: {text}", err=True)

        yield say


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` that becomes ``path`` if the body succeeds and vanishes if it does not."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _traced(target: str, input_shape: str | None, state_dict: Path | None) -> tuple[Graph, torch.nn.Module | None]:
    shape = None if input_shape is None else parse_shape(input_shape)
    with working("reading the model"):
        return load_graph(target, shape, state_dict)


def _sandwich(model: torch.nn.Module, graph: Graph, certifier: Certifier) -> Sandwich:
    return enclose(graph, witness(model, graph.input.shape), by=certifier)


def _search(
    model: torch.nn.Module, shape: Shape, norms: Norms, bound: float, seconds: float, seed: int
) -> tuple[Witness, int]:
    """Rounds of fresh starting points until the claim is broken or the time is over; the best pair of all."""
    generator = torch.Generator().manual_seed(seed)
    deadline = time.monotonic() + seconds
    rounds, best = 0, None
    while best is None or (best.ratio <= bound and time.monotonic() < deadline):
        left = max(deadline - time.monotonic(), 0.0)
        found = witness(model, shape, norms=norms, budget=Budget(seconds=left), generator=generator)
        best = found if best is None or found.ratio > best.ratio else best
        rounds += 1
    return best, rounds


def _check_exactly(certificate: Path, weights: Path) -> dict[str, Any]:
    accepted = verify_files(str(certificate), str(weights))
    return {"norms": accepted.norms, **_number("bound", accepted.bound), "assumptions": list(accepted.assumptions)}


def _check_float64(certificate: Path, weights: Path) -> dict[str, Any]:
    graph = graph_from_document(*read_network(weights))
    checked = check_float64(load_certificate(certificate), graph)
    return {"norms": str(checked.norms), **_number("bound", checked.bound), "assumptions": list(assumptions(graph))}


def _claim(certificate: Certificate) -> dict[str, Any]:
    return {
        "norms": str(certificate.norms),
        **_number("bound", certificate.bound),
        "validity": certificate.validity.name,
        "method": certificate.method,
        "network": certificate.network,
    }


def _number(name: str, value: float) -> dict[str, Any]:
    """A number for JSON twice: as decimal text that reads back exactly, and in hexadecimal."""
    return {name: value if math.isfinite(value) else None, f"{name}_hex": value.hex()}


def _details(fields: dict[str, Any]) -> str:
    """What is not empty and not in the headline, one line each."""
    said = ("bound", "bound_hex", "ratio", "ratio_hex", "norms", "claimed")
    shown = {name: value for name, value in fields.items() if name not in said and value not in ([], "", None)}
    return "\n".join(f"  {name:<12} {_words(value)}" for name, value in shown.items())


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _status(error: Exception) -> Status:
    match error:
        case BudgetExceeded() | TooLarge():
            return Status.UNKNOWN
        case InvalidInput() | Malformed() | OSError():
            return Status.USAGE
        case CheckFailed() | Reject():
            return Status.NO
        case LipcertError():
            return Status.UNSUPPORTED
        case _:
            return Status.BUG
