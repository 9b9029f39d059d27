"""A page as Markdown with tables; pictures are left out, their numbers stand in tables. Floor 5."""

from __future__ import annotations

import re
from typing import assert_never

from lipcert.pages.document import Block, Command, Facts, Formula, Grid, Page, Picture, Warn, Words, visible

# What can begin emphasis, code, links, images, HTML, mathematics or a cell, and what makes an address, a person or a
# number of an issue a link of by itself.
_SPECIAL = re.compile(r"([\\`*_\[\]<>#|~@&$]|:(?=//)|(?<=[wW]{3})\.)")


def markdown_page(page: Page) -> str:
    r"""Write a page as GitHub-flavoured Markdown.

    All text is escaped, so that a node's name cannot become a link, HTML or the end of a table's row.

    Example:
        >>> from lipcert.pages.document import Section
        >>> print(markdown_page(Page("A", (Section("B", (Facts((("x|y", "1"),)),)),))))
        # A
        <BLANKLINE>
        ## B
        <BLANKLINE>
        | | |
        |---|---|
        | x\|y | 1 |
        <BLANKLINE>
    """
    parts = [f"# {_text(page.title)}"]
    for section in page.sections:
        parts.append(f"## {_text(section.title)}")
        parts += [text for block in section.blocks if (text := _block(block))]
    return "\n\n".join(parts) + "\n"


def _text(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", visible(text))


def _block(block: Block) -> str:
    match block:
        case Words(text):
            return _text(text)
        case Formula(text) | Warn(text):
            return f"> {_text(text)}"
        case Command(text):
            return f"```sh\n{visible(text)}\n```"  # one line, which does not begin with a fence
        case Facts(rows):
            return _table(("", ""), rows, frozenset())
        case Grid(headers, rows, numbers):
            return _table(headers, rows, numbers)
        case Picture():
            return ""
        case _:
            assert_never(block)


def _table(headers: tuple[str, ...], rows: tuple[tuple[str, ...], ...], numbers: frozenset[int]) -> str:
    rule = "".join("---:|" if column in numbers else "---|" for column in range(len(headers)))
    lines = [_row(headers), f"|{rule}", *map(_row, rows)]
    return "\n".join(lines)


def _row(cells: tuple[str, ...]) -> str:
    return "|" + "".join(f" {_text(cell)} |" if cell else " |" for cell in cells)
