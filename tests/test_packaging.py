"""What a user meets first: version, types, the README's code, the commands it names, the pages it links."""

import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import lipcert

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = {path.name: path for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]}
WITH_CODE = [name for name, path in PAGES.items() if "```python" in path.read_text()]


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[name].read_text(), re.MULTILINE | re.DOTALL)


def test_the_version_is_a_number_and_the_package_is_typed():
    assert re.fullmatch(r"\d+\.\d+\.\d+", lipcert.__version__)
    assert PROJECT["tool"]["hatch"]["version"]["path"] == "lipcert/__init__.py"
    assert (ROOT / "lipcert" / "py.typed").exists()


@pytest.mark.parametrize("name", WITH_CODE)
def test_the_code_in_a_page_runs_from_top_to_bottom(name: str, monkeypatch: pytest.MonkeyPatch):
    page = ModuleType("page")  # a module that can be imported, as a script is: what is pickled is found by name
    monkeypatch.setitem(sys.modules, "page", page)
    exec(compile("\n".join(blocks(name, "python")), name, "exec"), vars(page))


def test_the_readme_shows_what_its_code_prints(capsys: pytest.CaptureFixture[str]):
    exec("\n".join(blocks("README.md", "python")), {})
    assert capsys.readouterr().out == blocks("README.md", "text")[0]


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_files(name: str):
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", PAGES[name].read_text())
    assert all((PAGES[name].parent / link).exists() for link in links)


@pytest.mark.parametrize("name", PAGES)
def test_make_commands_that_are_named_exist(name: str):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", PAGES[name].read_text(), re.MULTILINE))
    assert named <= targets
    expected = "demo test test-all lint types docs bench-norms bench-parametrizations bench-lipsdp clean"
    assert set(expected.split()) <= targets


def test_every_benchmark_is_on_the_page_of_benchmarks():
    targets = re.findall(r"^(bench-[a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert targets
    assert [target for target in targets if f"`make {target}`" not in PAGES["benchmarks.md"].read_text()] == []


def test_every_page_is_in_the_table_of_contents():
    listed = blocks("index.md", "{toctree}")[0].splitlines()
    assert {line for line in listed if re.fullmatch(r"[a-z-]+", line)} == {path.stem for path in DOCS} - {"index"}


def test_scripts_lead_to_functions():
    from lipcert import cli

    for target in PROJECT["project"]["scripts"].values():
        module, _, function = target.partition(":")
        assert module == "lipcert.cli"
        assert callable(getattr(cli, function))


def test_exit_statuses_are_documented():
    from lipcert.cli import Status

    for page in ("README.md", "cli.md"):
        documented = {int(number) for number in re.findall(r"^\| (\d+) \|", PAGES[page].read_text(), re.MULTILINE)}
        assert documented | {130} == {int(status) for status in Status}


def test_functions_that_the_format_page_lists_are_those_the_checker_knows():
    from lipcert.check import PARAMETRIC, SLOPES

    text = (ROOT / "docs" / "certificate-format.md").read_text()
    missing = [name for name in [*SLOPES, *PARAMETRIC] if f"`{name}`" not in text]
    assert not missing


def test_files_of_a_release_name_no_machine():
    files = [*PAGES.values(), ROOT / "Makefile", ROOT / "pyproject.toml", ROOT / ".ci" / "run", ROOT / "CHANGELOG.md"]
    assert not [path.name for path in files if re.search(r"/(work|home|root|opt|tmp)/", path.read_text())]
