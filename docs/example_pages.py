"""The gallery: every file in examples/ becomes a page, without being written for one.

An example is a module with a docstring that begins with a title, ``main(steps, seed, out) -> dict`` and
``plot(found) -> Figure``. Sphinx-Gallery runs scripts, so each is copied, with what it does when it is run as a script
replaced by a short run of `main` and a picture. ``QUICK`` in the example is the number of steps of that run.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

HEADER = """
Examples
========

Complete programs, one story each. They need scikit-learn and matplotlib (``pip install 'lipcert[examples]'``), no
other data and no GPU. A page shows a short run; ``python examples/quickstart.py`` is the full length, and the tests run
all of them.
"""
STEPS = 20
"""Steps of a short run where an example does not say."""

RUN = """
# %%
# A short run
# -----------
#
# {says}

found = main(steps={steps}, out=Path("out"))
"""
PICTURE = """
# %%
# The picture

figure = plot(found)
"""


def example_page(source: str, name: str) -> str:
    """The script that becomes the page of an example.

    Args:
        source: The text of the example.
        name: Its file's name.

    Raises:
        ValueError: If it has no title, no `main`, or nothing that is done when it is run as a script.
    """
    tree = ast.parse(source)
    title = re.match(r"[^\n]+\n=+\n", ast.get_docstring(tree) or "")
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    guards = [node for node in tree.body if isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)]
    if title is None or "main" not in functions or not guards:
        raise ValueError(
            f"examples/{name} makes no page: its docstring begins with a title underlined with =, it has a function "
            f"main(steps, seed, out) and ends with `if __name__ == '__main__'`. See docs/extending.md."
        )
    body = "".join(source.splitlines(keepends=True)[: guards[-1].lineno - 1]).rstrip() + "\n"
    steps = _constant(tree, "QUICK", STEPS)
    says = f"Here with {steps} steps. At full length: ``python examples/{name}``."
    path = "" if re.search(r"^from pathlib import .*\bPath\b", body, re.MULTILINE) else "\nfrom pathlib import Path\n"
    return body + path + RUN.format(steps=steps, says=says) + (PICTURE if "plot" in functions else "")


def write_scripts(examples: Path, scripts: Path) -> None:
    """Copy the examples into a folder for Sphinx-Gallery, with one for their files; scripts of others go."""
    (scripts / "out").mkdir(parents=True, exist_ok=True)
    texts = {path.name: example_page(path.read_text(), path.name) for path in sorted(examples.glob("[a-z]*.py"))}
    texts["GALLERY_HEADER.rst"] = HEADER
    for path in scripts.glob("*.*"):
        if path.name not in texts:
            path.unlink()
    for name, text in texts.items():
        (scripts / name).write_text(text)


def figures(block: tuple[str, str, int], block_vars: dict[str, Any], gallery_conf: dict[str, Any]) -> str:
    """Sphinx-Gallery's question after every block: which pictures are there? The figure named `figure`, once."""
    from sphinx_gallery.scrapers import figure_rst

    figure = block_vars["example_globals"].pop("figure", None)
    if figure is None:
        return ""
    path = next(block_vars["image_path_iterator"])
    figure.savefig(path, dpi=110)
    return figure_rst([path], gallery_conf["src_dir"])


def _constant(tree: ast.Module, name: str, default: int) -> int:
    for node in tree.body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [name]:
            return int(ast.literal_eval(node.value))
    return default
