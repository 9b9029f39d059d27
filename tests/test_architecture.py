"""The house rules, read from the source: floors, stand-alone checker, lazy imports, no prints, small files."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import lipcert

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "lipcert"
FLOORS = {
    0: "errors norms domain certificate check_domain",
    1: "linear graph kernel nn reference ranks quotient contraction",
    2: "opnorm outputs lowering freeze storage lmi solvers enclosure regions",
    3: "rules certifiers margins witness parametrizations recheck",
    4: "trace frontends",
    5: "certify sandwich report target answers cli __main__ monitor falsify penalties branching pages bilipschitz "
    "transport robustness nearby evaluation",
    6: "testing",
}
FLOOR_OF = {name: floor for floor, names in FLOORS.items() for name in names.split()}
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
# Imported only inside the functions that need them, so that `import lipcert` stays light and the extras optional.
LAZY = {"cvxpy", "flint", "hypothesis", "matplotlib", "onnx", "pytest", "scipy", "sklearn", "typer"}
STANDARD = set(sys.stdlib_module_names)
LINES = 400
# Files that can be read and run by themselves, the second beside the first, by design.
CHECKERS = ("lipcert.check", "lipcert.check_domain")
LINES_OF_A_CHECKER = 2000


def imported(name: str, *, everywhere: bool) -> set[str]:
    """Full names of the modules a file imports; names imported from a package count as modules where they are some."""
    tree = ast.parse(FILES[name].read_text())
    inside = {child for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) for child in ast.walk(node)}
    found = set()
    for node in ast.walk(tree):
        if node in inside and not everywhere:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            assert node.module
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & FILES.keys()
            named = {alias.name for alias in node.names}
            whole = node.module not in FILES or {i.rpartition(".")[2] for i in inner} != named
            found |= inner | ({node.module} if whole else set())
    return found


def ours(name: str) -> set[str]:
    return {module for module in imported(name, everywhere=True) if module.split(".")[0] == "lipcert"}


def outside(name: str) -> set[str]:
    """The packages of others that a file imports."""
    return {module.split(".")[0] for module in imported(name, everywhere=True)} - STANDARD - {"lipcert"}


def part(module: str) -> str:
    """The file or package directly under lipcert; empty for lipcert itself."""
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("name", [name for name in FILES if name not in ("lipcert", "lipcert.check")])
def test_a_module_imports_only_from_its_own_floor_and_lower_ones(name: str):
    assert part(name) in FLOOR_OF, f"{name} stands on no floor; give it one in this file and in CONTRIBUTING.md"
    for module in ours(name):
        assert module != "lipcert", f"{name} imports the package, that is the roof"
        assert module == "lipcert.check" or FLOOR_OF[part(module)] <= FLOOR_OF[part(name)], f"{name} imports {module}"


def test_imports_make_no_cycle():
    graph = {name: ours(name) - {name} for name in FILES if name != "lipcert"}
    assert list(TopologicalSorter(graph).static_order())


def test_nothing_in_the_library_imports_what_is_for_tests():
    assert not [name for name in FILES if part(name) != "testing" and "testing" in map(part, ours(name))]
    drawers = {"lipcert.testing." + name for name in ("assertions", "drawing", "strategies", "profiles", "machine")}
    assert {name for name in FILES if "hypothesis" in outside(name)} == {"lipcert.testing"} | drawers


def test_no_certifier_reads_how_a_weight_was_made():
    others = [name for name in FILES if part(name) not in ("parametrizations", "testing")]
    readers = [name for name in others if "parametrizations" in map(part, ours(name))]
    assert readers == ["lipcert", "lipcert.monitor"]
    # It shows claims beside what it measures; a refutation names the first layer whose claim is false.
    assert [name for name in FILES if "lipcert.monitor" in ours(name)] == ["lipcert.falsify.blame"]


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("lipcert.check", {"numpy"}),
        ("lipcert.check_domain", {"numpy", "lipcert", "check"}),
        ("lipcert.nn.activations", {"torch", "lipcert"}),
        ("lipcert.nn.pooling", {"torch", "lipcert"}),
        ("lipcert.nn.residual", {"torch", "lipcert"}),
        ("lipcert.errors", set()),
        ("lipcert.norms", {"lipcert"}),
    ],
)
def test_an_island_imports_nothing_but_its_few_dependencies(name: str, allowed: set[str]):
    assert {module.split(".")[0] for module in imported(name, everywhere=True)} <= STANDARD | allowed


def test_the_checker_of_domains_imports_nothing_of_lipcert_but_the_checker():
    assert ours("lipcert.check_domain") == {"lipcert.check"}


def test_the_kernel_imports_only_numpy_and_errors():
    for name in FILES:
        if part(name) == "kernel":
            outside = {m for m in imported(name, everywhere=True) if m.split(".")[0] not in STANDARD | {"numpy"}}
            assert all(module == "lipcert.errors" or part(module) == "kernel" for module in outside), name


@pytest.mark.parametrize("name", FILES)
def test_heavy_and_optional_packages_are_imported_where_they_are_used(name: str):
    allowed = {"typer"} if name in ("lipcert.cli", "lipcert.answers") else set()
    allowed |= {"hypothesis"} if part(name) == "testing" else set()
    assert {module.split(".")[0] for module in imported(name, everywhere=False)} & LAZY <= allowed


@pytest.mark.parametrize("name", FILES)
def test_the_library_neither_prints_nor_asks_for_attributes_nor_filters_warnings(name: str):
    called = {
        node.func.id
        for node in ast.walk(ast.parse(FILES[name].read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not called & {"print", "hasattr", "breakpoint", "input"}
    assert "simplefilter" not in FILES[name].read_text()


@pytest.mark.parametrize("name", FILES)
def test_a_file_can_be_read_in_one_sitting(name: str):
    lines = FILES[name].read_text().count("\n")
    assert lines <= (LINES_OF_A_CHECKER if name in CHECKERS else LINES)


@pytest.mark.parametrize("name", FILES)
def test_a_module_says_what_it_is(name: str):
    assert ast.get_docstring(ast.parse(FILES[name].read_text()))


def test_every_public_name_exists():
    assert len(set(lipcert.__all__)) == len(lipcert.__all__)
    assert all(getattr(lipcert, name) is not None for name in lipcert.__all__)


def test_the_plugin_imports_nothing_but_pytest_at_the_start():
    tree = ast.parse((ROOT / "_lipcert_pytestplugin.py").read_text())
    roots = [alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names]
    roots += [node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert {root.split(".")[0] for root in roots} <= STANDARD | {"pytest"}
    assert (ROOT / "_lipcert_pytestplugin.py").read_text().count("\n") <= LINES


def test_importing_lipcert_imports_no_heavy_or_optional_package():
    code = f"import sys; import lipcert; print(sorted({LAZY} & sys.modules.keys()))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.strip() == "[]"


def test_the_checker_runs_as_a_file_without_lipcert_or_torch():
    code = (
        "import runpy, sys; sys.argv = ['check.py']\n"
        f"try: runpy.run_path({str(PACKAGE / 'check.py')!r}, run_name='__main__')\n"
        "except SystemExit as end: print(end.code, sorted({'lipcert', 'torch'} & sys.modules.keys()))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert run.stdout.strip().splitlines()[-1] == "2 []"


def test_the_checker_of_domains_runs_as_a_file_without_lipcert_or_torch(tmp_path: Path):
    (tmp_path / "torch.py").write_text("raise AssertionError")
    (tmp_path / "lipcert.py").write_text("raise AssertionError")
    run = subprocess.run(
        [sys.executable, str(PACKAGE / "check_domain.py")],
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (run.returncode, run.stderr) == (2, "")
    assert run.stdout.startswith("usage: ")


def test_every_mutant_by_hand_changes_a_place_that_is_there_once():
    from benchmarks.mutants import EVERY

    assert [mutant for mutant in EVERY if (ROOT / mutant.file).read_text().count(mutant.old) != 1] == []
