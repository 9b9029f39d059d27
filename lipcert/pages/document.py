"""What a page is made of, as values that know no format: both writers show the same. Floor 5: standard library only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Words:
    """A paragraph of plain text."""

    text: str


@dataclass(frozen=True)
class Formula:
    """One displayed line of mathematics, in Unicode."""

    text: str


@dataclass(frozen=True)
class Warn:
    """A paragraph that must not be overlooked."""

    text: str


@dataclass(frozen=True)
class Command:
    """A line for a terminal."""

    text: str


@dataclass(frozen=True)
class Facts:
    """Names and what they are; a fact more is a row more."""

    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Grid:
    """A table. Columns in ``numbers`` (counted from 0) are aligned to the right."""

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Picture:
    """A picture, drawn when it is needed. What it shows is also in a table beside it, for formats without pictures.

    Attributes:
        draw: Gives the bytes of a PNG file.
        caption: What is to be seen.
    """

    draw: Callable[[], bytes]
    caption: str


Block = Words | Formula | Warn | Command | Facts | Grid | Picture
"""Closed: a new kind of block needs a case in both writers."""


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Page:
    """A title and sections."""

    title: str
    sections: tuple[Section, ...]


def visible(text: str) -> str:
    r"""A name from a file with everything that does not print written as an escape.

    Line breaks could end a table's row, characters that turn the direction of writing could make one name read as
    another, and lone surrogates cannot be written to a file at all.

    Example:
        >>> visible("fc\n1"), visible("a\u202eb"), visible("\ud800"), visible("größe 1")
        ('fc\\n1', 'a\\u202eb', '\\ud800', 'größe 1')
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
