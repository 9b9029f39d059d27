"""Break the trusted files one line at a time and see the tests notice.

    python -m benchmarks.mutants                                       the mutants of `mutant_table`, written by hand
    python -m benchmarks.mutants --only kernel/psd                     those whose file or reason contains a text
    python -m benchmarks.mutants --automatic lipcert/check.py --sample 40 --seed 0

A mutant makes a claim less true: a bound too low, something false accepted, a refusal lost. It is killed if a test of
its selection fails. The tree is copied once; a mutant lives in the copy only, and every selection has to pass there
before anything is broken. Exit status 1 if a mutant survives that is not argued to be equivalent.

Automatic mutants flip comparisons, signs and connectives, shift constants, and take roundings, checks and
exceptions away, at places drawn from the files; what only finds guesses (`HINTS`) and what only words a message is left
alone.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import difflib
import importlib
import multiprocessing
import os
import random
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import mutant_table, mutant_table_check, mutant_table_domain, mutant_table_norms, mutant_table_rules
from benchmarks.mutant_table import COVERED_BY, HINTS, SECTIONS, Mutant

EVERY = [
    *mutant_table.MUTANTS,
    *mutant_table_norms.MUTANTS,
    *mutant_table_rules.MUTANTS,
    *mutant_table_check.MUTANTS,
    *mutant_table_domain.MUTANTS,
]
ROOT = Path(__file__).parent.parent
COPIED = ("lipcert", "tests", "benchmarks", "examples", "docs", "pyproject.toml", "README.md", "CONTRIBUTING.md")
OUTPUT = "output.txt"
LIMIT = 300.0  # seconds for one selection
PRELOADED = ("torch", "numpy", "scipy.linalg", "scipy.sparse.linalg", "mpmath", "pytest")
PASSED, FAILED, STOPPED, NOTHING_RUN = 0, 1, 2, 5  # exit statuses of pytest


# ------------------------------------------------------------------------------------------------ running tests


def copied(root: Path, to: Path) -> None:
    """Copy what tests read."""
    for name in COPIED:
        if (root / name).is_dir():
            shutil.copytree(root / name, to / name, ignore=shutil.ignore_patterns("__pycache__", "_build"))
        elif (root / name).exists():
            shutil.copy2(root / name, to / name)


class _Unshrunk:
    """A plugin for pytest: an example that fails is enough, there is no need to look for a smaller one."""

    def pytest_sessionstart(self) -> None:
        """Before tests are collected, after their settings are loaded."""
        from hypothesis import Phase, settings

        phases = (Phase.explicit, Phase.generate)
        settings.register_profile("unshrunk", parent=settings.get_profile("ci"), phases=phases)
        settings.load_profile("unshrunk")


def _run(tree: str, arguments: list[str]) -> None:
    """In a process of its own: pytest on the copy."""
    os.setsid()
    sys.dont_write_bytecode = False  # of the copy: most of the time of a short selection
    os.chdir(tree)
    output = os.open(OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.path.insert(0, tree)
    for name in [name for name in sys.modules if name.split(".")[0] in ("benchmarks", "lipcert", "tests")]:
        del sys.modules[name]
    import pytest

    status = int(pytest.main(arguments, plugins=[_Unshrunk()]))
    sys.stdout.flush()
    os._exit(status)


def ran(tree: Path, selection: str, seconds: float) -> int | None:
    """The exit status of pytest on a selection; ``None`` past the time limit."""
    arguments = [*shlex.split(selection), "-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", "--no-header"]
    process = multiprocessing.get_context("fork").Process(target=_run, args=(str(tree), arguments))
    process.start()
    process.join(seconds)
    late = process.is_alive()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid or 0, signal.SIGKILL)
    process.join()
    return None if late else process.exitcode


class Tree:
    """A copy of the source, broken and mended."""

    def __init__(self, folder: Path) -> None:
        """Copy the tree."""
        self.folder = folder
        self.clock = time.time() - 10**6
        self.passing: set[str] = set()
        copied(ROOT, folder)

    def _write(self, file: str, text: str) -> None:
        path = self.folder / file
        path.write_text(text)
        self.clock += 2.0  # compiled files are told apart by time stamps of whole seconds
        os.utime(path, (self.clock, self.clock))

    def require_passing(self, selection: str) -> None:
        """Refuse a selection that fails before anything is broken."""
        if selection not in self.passing:
            status = ran(self.folder, selection, LIMIT)
            if status != PASSED:
                output = (self.folder / OUTPUT).read_text()[-2000:]
                raise SystemExit(f"{output}\n`{selection}` ends with {status} on the tree as it is")
            self.passing.add(selection)

    def verdict(self, file: str, text: str, selection: str) -> str:
        """Run a selection with one file changed."""
        self.require_passing(selection)
        before = (self.folder / file).read_text()
        self._write(file, text)
        try:
            status = ran(self.folder, selection, LIMIT)
        finally:
            self._write(file, before)
        if status in (PASSED, NOTHING_RUN):
            return "SURVIVED"
        return "timed out" if status is None else "killed"


# ------------------------------------------------------------------------------------------------ by hand


def by_hand(tree: Tree, mutants: Sequence[Mutant]) -> int:
    """Run the table; the exit status."""
    count: Counter[str] = Counter()
    for mutant in mutants:
        text = (ROOT / mutant.file).read_text()
        if text.count(mutant.old) != 1:
            raise SystemExit(f"{mutant.file} holds {mutant.old!r} {text.count(mutant.old)} times")
        line = text[: text.index(mutant.old)].count("\n") + 1
        start = time.perf_counter()
        found = tree.verdict(mutant.file, text.replace(mutant.old, mutant.new), mutant.tests)
        if found == "SURVIVED" and mutant.equivalent:
            found = "equivalent"
        elif mutant.equivalent:
            found = "KILLED, though called equivalent"
        count[found] += 1
        print(f"{found:10} {time.perf_counter() - start:5.1f} s  {mutant.file}:{line}  {mutant.why}", flush=True)
    print(f"{len(mutants)} mutants by hand: " + ", ".join(f"{n} {what}" for what, n in sorted(count.items())))
    return int(any(what not in ("killed", "timed out", "equivalent") for what in count))


# ------------------------------------------------------------------------------------------------ automatic

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt},
    **{ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In},
    **{ast.Is: ast.IsNot, ast.IsNot: ast.Is},
}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult},
    **{ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.Pow: ast.Mult, ast.Mod: ast.Add},
    **{ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd},
}
ROUNDINGS = ("nextafter", "ceil", "abs", "add_up", "mul_up", "sqrt_up", "div_up", "round_up", "scale_up")
CHECKS = ("require_finite", "require_ieee", "require_size", "_require_room")
Site = tuple[ast.AST, str]


def sites(node: ast.AST, inside: bool = False) -> Iterator[Site]:
    """Places to break, and how; nothing in annotations, messages, defaults of signatures, and functions of hints."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda):
        if getattr(node, "name", "") in HINTS:
            return
        body = node.body if isinstance(node.body, list) else [node.body]
        for child in body:
            yield from sites(child, True)
        return
    if isinstance(node, ast.JoinedStr | ast.Import | ast.ImportFrom | ast.arguments):
        return
    if isinstance(node, ast.keyword) and node.arg == "strict":
        return
    if isinstance(node, ast.Raise):
        if inside:
            yield node, "do not raise"
        return
    if isinstance(node, ast.AnnAssign):
        if node.value is not None:
            yield from sites(node.value, inside)
        return
    yield from _breaks(node)
    for child in ast.iter_child_nodes(node):
        yield from sites(child, inside)


def _breaks(node: ast.AST) -> Iterator[Site]:
    match node:
        case ast.Compare(ops=[op]) if type(op) in COMPARISONS:
            yield node, f"{type(op).__name__} becomes {COMPARISONS[type(op)].__name__}"
        case ast.BinOp(op=op) if type(op) in OPERATORS and not _is_text(node):
            yield node, f"{type(op).__name__} becomes {OPERATORS[type(op)].__name__}"
        case ast.BoolOp(op=ast.And()):
            yield node, "and becomes or"
        case ast.BoolOp(op=ast.Or()):
            yield node, "or becomes and"
        case ast.UnaryOp(op=ast.Not() | ast.USub()) if not isinstance(node.operand, ast.Constant):
            yield node, f"drop {'not' if isinstance(node.op, ast.Not) else 'minus'}"
        case ast.Constant(value=bool(value)):
            yield node, f"{value} becomes {not value}"
        case ast.Constant(value=int() | float()):  # one of the two, or constants would be half of all
            yield node, "plus one" if (node.lineno + node.col_offset) % 2 else "minus one"
        case ast.Call(func=func, args=[_, *_]) if _name(func) in ROUNDINGS:
            yield node, f"drop {_name(func)}"
        case ast.Expr(value=ast.Call(func=func)) if _name(func) in CHECKS:
            yield node, f"drop {_name(func)}"


def _is_text(node: ast.BinOp) -> bool:
    parts = (node.left, node.right)
    return any(isinstance(p, ast.JoinedStr) or (isinstance(p, ast.Constant) and type(p.value) is str) for p in parts)


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


PLAIN = {"add_up": ast.Add, "mul_up": ast.Mult, "div_up": ast.Div}


def _broken(node: ast.AST, how: str) -> ast.AST:
    """The node that takes this one's place."""
    new = copy.deepcopy(node)
    match new:
        case ast.Raise() | ast.Expr():
            return ast.copy_location(ast.Pass(), node)
        case ast.Compare():
            new.ops = [COMPARISONS[type(new.ops[0])]()]
        case ast.BinOp():
            new.op = OPERATORS[type(new.op)]()
        case ast.BoolOp():
            new.op = ast.Or() if isinstance(new.op, ast.And) else ast.And()
        case ast.UnaryOp():
            return new.operand
        case ast.Constant(value=bool()):
            new.value = not new.value
        case ast.Constant():
            new.value = new.value + (1 if how == "plus one" else -1)  # type: ignore[operator]
        case ast.Call():
            name = _name(new.func)
            if name in PLAIN and len(new.args) == 2:
                return ast.BinOp(new.args[0], PLAIN[name](), new.args[1])
            if name == "sqrt_up":
                return ast.BinOp(new.args[0], ast.Pow(), ast.Constant(0.5))
            if name == "scale_up":
                return ast.BinOp(new.args[0], ast.Mult(), ast.BinOp(ast.Constant(2.0), ast.Pow(), new.args[1]))
            if name == "round_up":
                return ast.Call(ast.Name("float", ast.Load()), new.args[:1], [])
            return new.args[0]
    return new


class _Swap(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        return self.new if node is self.old else self.generic_visit(node)


def mutated(text: str, index: int) -> tuple[int, str, str]:
    """Line, kind and text of the mutant at one place of a file."""
    tree = ast.parse(text)
    node, how = list(sites(tree))[index]
    line = node.lineno  # type: ignore[attr-defined]
    return line, how, ast.unparse(ast.fix_missing_locations(_Swap(node, _broken(node, how)).visit(tree)))


def changed(text: str, broken: str) -> str:
    """What stands in the mutant where it differs from the file: a line may hold many places."""
    new = difflib.unified_diff(ast.unparse(ast.parse(text)).splitlines(), broken.splitlines(), n=0, lineterm="")
    return " ".join(line[1:].strip() for line in list(new)[2:] if line.startswith("+"))


def covering(file: str, text: str, line: int) -> tuple[str, ...]:
    """The selections for a line of a file."""
    if file in COVERED_BY:
        return COVERED_BY[file]
    above = [found for found in text.splitlines()[:line] if found.startswith("# ---")]
    return SECTIONS[above[-1].lstrip("# -")] if above else SECTIONS["the verdict"]


def automatic(tree: Tree, files: Sequence[str], sample: int, seed: int, tests: str = "") -> int:
    """Break files at places drawn from all of them together, meet ``tests`` or what covers them; the exit status."""
    texts = {file: (ROOT / file).read_text() for file in files}
    every = [(file, index) for file, text in texts.items() for index in range(len(list(sites(ast.parse(text)))))]
    drawn = sorted(random.Random(seed).sample(every, min(sample, len(every))))
    count: dict[str, Counter[str]] = {file: Counter() for file in files}
    for file, index in drawn:
        line, how, text = mutated(texts[file], index)
        start = time.perf_counter()
        found = "SURVIVED"
        for selection in (tests,) if tests else covering(file, texts[file], line):
            found = tree.verdict(file, text, selection)
            if found != "SURVIVED":
                break
        count[file][found] += 1
        seconds, new = time.perf_counter() - start, changed(texts[file], text)
        print(f"{found:10} {seconds:5.1f} s  {file}:{line}  {how}  |  {new}", flush=True)
    for file, found in count.items():
        total = found.total()
        if total:
            print(f"{file}: {total} of {sum(f == file for f, _ in every)}, {found['SURVIVED']} survived")
    survived = sum(found["SURVIVED"] for found in count.values())
    share = 100.0 * (1.0 - survived / max(1, len(drawn)))
    print(f"{len(drawn)} of {len(every)} automatic mutants (seed {seed}): {survived} survived, {share:.0f} % killed")
    return int(survived > 0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="a text in the file or the reason of a mutant")
    parser.add_argument("--limit", type=int, default=10**9, help="at most this many")
    parser.add_argument("--automatic", nargs="+", metavar="FILE", help="draw mutants from these files")
    parser.add_argument("--sample", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tests", default="", help="meet automatic mutants with these tests only")
    asked = parser.parse_args(arguments)
    for name in PRELOADED:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder:
        tree = Tree(Path(folder).resolve())
        if asked.automatic:
            return automatic(tree, asked.automatic, asked.sample, asked.seed, asked.tests)
        chosen = [mutant for mutant in EVERY if asked.only in f"{mutant.file} {mutant.why}"]
        return by_hand(tree, chosen[: asked.limit])


if __name__ == "__main__":
    sys.exit(main())
