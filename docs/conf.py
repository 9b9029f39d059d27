"""Sphinx configuration: Markdown pages, docstrings of the package, a gallery of the examples, the furo theme."""

import sys
from pathlib import Path

import lipcert

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from example_pages import write_scripts  # noqa: E402

project = "lipcert"
author = "the lipcert authors"
project_copyright = "the lipcert authors"
release = version = lipcert.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx_gallery.gen_gallery",
]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"lipcert {release}"
default_role = "code"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
suppress_warnings = ["misc.highlighting_failure"]

# Code in docstrings and pages is run by pytest (doctests, tests/test_packaging.py), not here a second time.
write_scripts(HERE.parent / "examples", HERE / "_build" / "examples")
sphinx_gallery_conf = {
    "examples_dirs": "_build/examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"\.py$",
    "image_scrapers": ("example_pages.figures",),
    "abort_on_example_error": True,
    "remove_config_comments": True,
    "download_all_examples": False,
    "write_computation_times": False,
    "show_memory": False,
    "show_signature": False,
    "min_reported_time": 1,
}
