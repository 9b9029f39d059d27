"""Every example makes a page of the gallery: a short run of what it is, without being written for one."""

import ast
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("[a-z]*.py"))
SPEC = importlib.util.spec_from_file_location("example_pages", ROOT / "docs" / "example_pages.py")
assert SPEC is not None
assert SPEC.loader is not None
pages = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(pages)

SMALL = '''"""A title
=======

A story.
"""

QUICK = 7


def main(steps=100, seed=0, out=None):
    return {"steps": steps, "out": out}


def plot(found):
    return ("figure", found["steps"])


if __name__ == "__main__":
    raise SystemExit("the full length")
'''


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_makes_a_page_with_a_short_run_and_a_picture(path: Path):
    page = pages.example_page(path.read_text(), path.name)
    tree = ast.parse(page)
    assert not [node for node in tree.body if isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)]
    assert [ast.unparse(node) for node in tree.body[-2:]][1] == "figure = plot(found)"
    run = tree.body[-2]
    assert isinstance(run, ast.Assign)
    assert isinstance(run.value, ast.Call)
    accepted = {
        argument.arg
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name == "main"
        for argument in [*node.args.args, *node.args.kwonlyargs]
    }
    assert {keyword.arg for keyword in run.value.keywords} <= accepted


def test_the_page_runs_main_for_a_few_steps_and_draws_what_it_returned():
    run: dict = {"__name__": "__main__"}
    exec(pages.example_page(SMALL, "small.py"), run)
    assert run["found"] == {"steps": 7, "out": Path("out")}
    assert run["figure"] == ("figure", 7)
    exec(pages.example_page(SMALL.replace("QUICK = 7", ""), "small.py"), run)
    assert run["found"]["steps"] == pages.STEPS


@pytest.mark.parametrize(
    ("old", "new"),
    [("=======", ""), ("def main", "def other"), ('__name__ == "__main__"', "False")],
    ids=["no title", "no main", "nothing to run"],
)
def test_what_makes_no_page_is_refused(old: str, new: str):
    with pytest.raises(ValueError, match=r"examples/small.py makes no page"):
        pages.example_page(SMALL.replace(old, new), "small.py")


def test_scripts_of_examples_that_are_gone_go(tmp_path: Path):
    examples, scripts = tmp_path / "examples", tmp_path / "scripts"
    examples.mkdir()
    for name in ("one.py", "two.py"):
        (examples / name).write_text(SMALL)
    (examples / "__init__.py").write_text("")
    pages.write_scripts(examples, scripts)
    (examples / "one.py").unlink()
    pages.write_scripts(examples, scripts)
    assert sorted(path.name for path in scripts.iterdir()) == ["GALLERY_HEADER.rst", "out", "two.py"]
