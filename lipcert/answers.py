"""How an answer is given: printed by one rank, with an exit status; files appear whole or not at all. Floor 5."""

from __future__ import annotations

import json
import math
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from enum import IntEnum
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from lipcert.certificate import Certificate
from lipcert.check import Malformed, Reject, TooLarge
from lipcert.errors import BudgetExceeded, CheckFailed, InvalidInput, LipcertError, RankLost, UnsupportedOperation
from lipcert.falsify import Refuted, Unknown
from lipcert.falsify.replay import replay_source
from lipcert.ranks import Map, Ranks, joined


class Status(IntEnum):
    """Exit statuses, documented in docs/cli.md."""

    YES = 0  # proved, accepted, shown
    NO = 1  # refuted, rejected
    USAGE = 2
    UNSUPPORTED = 3
    UNKNOWN = 4
    BUG = 5
    INTERRUPTED = 130  # given by typer


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


@contextmanager
def seated() -> Iterator[Map]:
    """Join the other ranks, if there are any. The first one speaks for all, and a launcher's stop is an error."""
    with joined() as over, ExitStack() as stack:
        if isinstance(over, Ranks):
            before = signal.signal(signal.SIGTERM, _stopped)
            stack.callback(signal.signal, signal.SIGTERM, before)
            if over.rank > 0:
                silence = stack.enter_context(open(os.devnull, "w"))
                stack.enter_context(redirect_stdout(silence))
                stack.enter_context(redirect_stderr(silence))
        yield over


def _stopped(number: int, frame: FrameType | None) -> None:
    raise RankLost(
        "this process was told to stop, as launchers do when another rank has died; there is no answer. "
        "See what the launcher says (out of memory?), then run the command again."
    )


def finish(command: str, verdict: str, fields: dict[str, Any], text: str, as_json: bool, status: Status) -> None:
    """Print the answer in one of its two forms and leave with its status."""
    tell(command, verdict, fields, text, as_json, status)
    raise typer.Exit(status)


def tell(command: str, verdict: str, fields: dict[str, Any], text: str, as_json: bool, status: Status) -> None:
    """Print an answer in one of its two forms."""
    if as_json:
        typer.echo(json.dumps({"command": command, "verdict": verdict, **fields}, allow_nan=False))
    else:
        colour = {Status.YES: "green", Status.NO: "red"}.get(status, "yellow")
        typer.echo(f"{typer.style(verdict, fg=colour, bold=True)}  {text}".rstrip())


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


def write_pair(verdict: Refuted | Unknown, out: Path) -> list[Path]:
    """The pair as arrays; of a refuted claim also as a Python file that runs by itself, where it is small enough."""
    found = verdict.witness
    arrays = out if out.suffix == ".npz" else out.with_name(f"{out.name}.npz")
    with replacing(arrays) as temporary:
        np.savez(temporary, x=found.x.numpy(), y=found.y.numpy(), ratio=found.ratio, norms=str(found.norms))
    if isinstance(verdict, Unknown):
        return [arrays]
    try:
        source = replay_source(verdict)
    except (UnsupportedOperation, BudgetExceeded):
        return [arrays]
    with replacing(arrays.with_suffix(".py")) as temporary:
        temporary.write_text(source)
    return [arrays, arrays.with_suffix(".py")]


def written_as(folder: Path, checkpoints: Sequence[str]) -> list[Path]:
    """Where the certificates of several checkpoints go: called as these, in one folder.

    Raises:
        InvalidInput: If there is no such folder, two would be one file, or a checkpoint would be overwritten.
    """
    if not folder.is_dir():
        raise InvalidInput(f"with several --state-dict, --out is a folder that exists; `{folder}` is none.")
    files = [folder / f"{Path(name).stem}.json" for name in checkpoints]
    weights = {path.with_suffix(".safetensors").resolve() for path in files}
    if len(weights) < len(files):
        raise InvalidInput(f"two of {list(checkpoints)} have one name, and so would their certificates; rename one.")
    if lost := [name for name in checkpoints if Path(name).resolve() in weights]:
        raise InvalidInput(f"certificates in `{folder}` would overwrite {lost}; name another folder.")
    return files


def claim(certificate: Certificate) -> dict[str, Any]:
    """What a certificate says, for JSON."""
    return {
        "norms": str(certificate.norms),
        "domain": "" if certificate.everywhere else str(certificate.domain),
        **number("bound", certificate.bound),
        "validity": certificate.validity.name,
        "method": certificate.method,
        "network": certificate.network,
    }


def number(name: str, value: float) -> dict[str, Any]:
    """A number for JSON twice: as decimal text that reads back exactly, and in hexadecimal."""
    return {name: value if math.isfinite(value) else None, f"{name}_hex": value.hex()}


def details(fields: dict[str, Any]) -> str:
    """What is not empty and not in the headline, one line each."""
    said = ("bound", "bound_hex", "ratio", "ratio_hex", "norms", "claimed")
    shown = {name: value for name, value in fields.items() if name not in said and value not in ([], "", None)}
    return "\n".join(f"  {name:<12} {_words(value)}" for name, value in shown.items())


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _status(error: Exception) -> Status:
    match error:
        case BudgetExceeded() | TooLarge() | RankLost():
            return Status.UNKNOWN
        case InvalidInput() | Malformed() | OSError():
            return Status.USAGE
        case CheckFailed() | Reject():
            return Status.NO
        case LipcertError():
            return Status.UNSUPPORTED
        case _:
            return Status.BUG
