"""Pages as files, whole or not at all. Floor 5."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lipcert.answers import replacing
from lipcert.certificate import Certificate
from lipcert.errors import InvalidInput
from lipcert.graph import Graph
from lipcert.pages.contents import Origin, certificate_page
from lipcert.pages.document import Page
from lipcert.pages.hypertext import html_page
from lipcert.pages.markdown import markdown_page
from lipcert.pages.pairs import read_pair


def write_pages(
    graph: Graph,
    certificate: Certificate,
    *,
    html: Path | None = None,
    markdown: Path | None = None,
    pair: Path | None = None,
    origin: Origin = Origin(),  # noqa: B008
) -> list[Path]:
    """Write a certificate's page in one or both formats; everything is read and refused before a file is written.

    Args:
        graph: The network.
        certificate: A certificate about it.
        html: Where the HTML goes.
        markdown: Where the Markdown goes.
        pair: A file with two inputs to show (see `lipcert.pages.pairs.read_pair`).
        origin: Where the certificate lies.

    Returns:
        The files written.

    Raises:
        InvalidInput: If the certificate is about another network, the pair is none for it or has no page to be on, or
            matplotlib is missing where there are pictures.
    """
    wanted: list[tuple[Path, Callable[[Page], str]]] = []
    wanted += [] if html is None else [(html, html_page)]
    wanted += [] if markdown is None else [(markdown, markdown_page)]
    if not wanted:
        if pair is not None:
            raise InvalidInput(f"the pair in `{pair}` is shown on a page; ask for one, with --html or --markdown.")
        return []
    page = certificate_page(graph, certificate, None if pair is None else read_pair(pair), origin)
    texts = [(path, write(page)) for path, write in wanted]
    for path, text in texts:
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return [path for path, _ in texts]
