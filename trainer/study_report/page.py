"""One HTML page with a study's table and figures: images inlined, no script, nothing loaded from anywhere."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

_STYLE = (
    "body{font-family:sans-serif;color:#333;max-width:80em;margin:2em auto;padding:0 1em;line-height:1.4}"
    "table{border-collapse:collapse;font-size:.9em}th,td{border-bottom:1px solid #ddd;padding:.3em .7em;text-align:left}"
    "img{max-width:100%}figure{margin:2em 0}figcaption,.note{font-size:.9em;color:#555;max-width:60em}"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A PNG file and what is said below it."""

    file: Path
    caption: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """What the page says, in its order.

    Args:
        title: of the page.
        facts: name and value pairs about the study.
        missing: what has not run, a line each.
        header: of the table.
        rows: of the table.
        notes: paragraphs below the table.
        figures: in order.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    missing: Sequence[str]
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str]
    figures: Sequence[Figure]

    def html(self) -> str:
        """The page."""
        parts = [
            f"<h1>{escape(self.title)}</h1>",
            "<ul>" + "".join(f"<li>{escape(name)}: {escape(value)}</li>" for name, value in self.facts) + "</ul>",
            *self._missing(),
            "<h2>Table</h2>",
            _table(self.header, self.rows),
            *(f'<p class="note">{escape(note)}</p>' for note in self.notes),
            "<h2>Figures</h2>",
            *(_figure(number, figure) for number, figure in enumerate(self.figures, start=1)),
        ]
        head = f'<meta charset="utf-8"><title>{escape(self.title)}</title><style>{_STYLE}</style>'
        return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(parts) + "\n</body></html>\n"

    def _missing(self) -> list[str]:
        if not self.missing:
            return []
        return ["<h2>Missing</h2>", "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in self.missing) + "</ul>"]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [_row("th", header), *(_row("td", row) for row in rows)]
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _figure(number: int, figure: Figure) -> str:
    image = base64.b64encode(figure.file.read_bytes()).decode("ascii")
    caption = f"Figure {number}. {escape(figure.caption)}"
    return (
        f'<figure><img alt="{escape(figure.file.stem)}" src="data:image/png;base64,{image}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )
