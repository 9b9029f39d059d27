"""A page as one HTML file: style and pictures inside, nothing loaded, no script. Floor 5: standard library only."""

from __future__ import annotations

import base64
from html import escape
from typing import assert_never

from lipcert.pages.document import Block, Command, Facts, Formula, Grid, Page, Picture, Section, Warn, Words, visible

# Says the same as the file: a browser refuses to load or run anything, even if text ever got in unescaped.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --soft: #59636e; --line: #d1d9e0; --back: #f4f6f8;
  --warn: #fff1e5; --edge: #bc4c00; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14181d; --ink: #e4e8ec; --soft: #9aa4af; --line: #3a434d; --back: #1f252c; --warn: #3a2412;
    --edge: #f0883e; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 66rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 1rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; padding-bottom: .2rem; border-bottom: 1px solid var(--line); }
p { margin: .6rem 0; max-width: 46rem; }
.formula { max-width: none; margin: 1rem 0; padding: .8rem 1rem; background: var(--back); border-radius: .4rem;
  font-size: 1.2rem; font-family: "STIX Two Math", "Cambria Math", "DejaVu Serif", serif; }
.warn { padding: .7rem 1rem; background: var(--warn); border-left: .3rem solid var(--edge); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .8rem 0; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
td.number, th.number { text-align: right; }
td.number { white-space: nowrap; }
.wide table { overflow-wrap: break-word; }
.wide td { min-width: 4rem; max-width: 24rem; }
table.facts th { white-space: nowrap; }
pre { padding: .7rem 1rem; background: var(--back); border-radius: .4rem; overflow-x: auto; font-size: .9rem;
  overflow-wrap: normal; }
figure { margin: 1rem 0; }
img { max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line); border-radius: .4rem; }
figcaption { color: var(--soft); font-size: .9rem; }
@media print { body { max-width: none; padding: 0; } h2 { break-after: avoid; } figure, tr { break-inside: avoid; } }
"""


def html_page(page: Page) -> str:
    """Write a page as HTML that needs no other file.

    All text is escaped, so that a node's name or a method cannot become markup.

    Raises:
        InvalidInput: If there is a picture to draw and matplotlib is missing.

    Example:
        >>> page = html_page(Page("A < B", (Section("One", (Words("<script>"),)),)))
        >>> "<h1>A &lt; B</h1>" in page, "&lt;script&gt;" in page, "<script" in page
        (True, True, False)
    """
    title = _text(page.title)
    body = "\n".join(_section(section) for section in page.sections)
    return (
        "<!DOCTYPE html>\n"
        '<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n<h1>{title}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _text(text: str) -> str:
    return escape(visible(text))


def _section(section: Section) -> str:
    blocks = "\n".join(_block(block) for block in section.blocks)
    return f"<section>\n<h2>{_text(section.title)}</h2>\n{blocks}\n</section>"


def _block(block: Block) -> str:
    match block:
        case Words(text):
            return f"<p>{_text(text)}</p>"
        case Formula(text):
            return f'<p class="formula">{_text(text)}</p>'
        case Warn(text):
            return f'<p class="warn" role="note">{_text(text)}</p>'
        case Command(text):
            return f"<pre><code>{_text(text)}</code></pre>"
        case Facts(rows):
            cells = "\n".join(f'<tr><th scope="row">{_text(n)}</th><td>{_text(v)}</td></tr>' for n, v in rows)
            return f'<table class="facts">\n<tbody>\n{cells}\n</tbody>\n</table>'
        case Grid():
            return _grid(block)
        case Picture(draw, caption):
            data, said = base64.b64encode(draw()).decode("ascii"), _text(caption)
            image = f'<img src="data:image/png;base64,{data}" alt="{said}">'
            return f"<figure>\n{image}\n<figcaption>{said}</figcaption>\n</figure>"
        case _:
            assert_never(block)


def _grid(grid: Grid) -> str:
    side = {column: ' class="number"' for column in grid.numbers}
    head = "".join(f'<th scope="col"{side.get(k, "")}>{_text(name)}</th>' for k, name in enumerate(grid.headers))
    rows = "\n".join(
        "<tr>" + "".join(f"<td{side.get(k, '')}>{_text(cell)}</td>" for k, cell in enumerate(row)) + "</tr>"
        for row in grid.rows
    )
    return (
        f'<div class="wide">\n<table>\n<thead>\n<tr>{head}</tr>\n</thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n</div>'
    )
