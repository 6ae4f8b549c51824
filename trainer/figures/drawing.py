"""What all pictures share: colours, line styles, axes, grids of panels, legends, tables and PNG files."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#7F7F7F")
"""Okabe and Ito's palette, which colour-blind readers can tell apart; grey is kept for the rest."""

INK = "#333333"
_DASHES = ("-", "--", ":", "-.")
_CHARACTER_INCHES, _ROW_INCHES = 0.085, 0.3


def line_look(index: int) -> dict[str, Any]:
    """Colour and dashes of the line with this number: 32 lines look different."""
    return {"color": COLORS[index % len(COLORS)], "linestyle": _DASHES[index // len(COLORS) % len(_DASHES)]}


def style_axes(axes: Axes, *, title: str = "", x_label: str = "", y_label: str = "") -> None:
    """Labels, a quiet grid and no box."""
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.set_xlabel(x_label, fontsize=9, color=INK)
    axes.set_ylabel(y_label, fontsize=9, color=INK)
    axes.tick_params(labelsize=8, colors=INK)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.margins(x=0.02)


def show_percent(axes: Axes) -> None:
    """Shares on the vertical axis as percentages."""
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g}%")


def panel_grid(
    count: int, *, columns: int, inches: tuple[float, float], title: str, margin: float = 0.0
) -> tuple[Figure, list[Axes]]:
    """A figure of panels, row by row.

    Args:
        count: of panels; the places that are left in the last row stay empty.
        columns: panels a row.
        inches: width and height of one.
        title: above them.
        margin: further inches of height.
    """
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(inches[0] * columns, inches[1] * rows + margin), layout="constrained")
    figure.suptitle(title, fontsize=11, color=INK)
    panels = list(figure.subplots(rows, columns, squeeze=False).flatten())
    for axes in panels[count:]:
        axes.set_axis_off()
    return figure, panels[:count]


def legend_below(figure: Figure, handles: Sequence[Artist], labels: Sequence[str], columns: int) -> None:
    """One legend for all panels of a figure."""
    where = "outside lower center"
    figure.legend(handles, labels, loc=where, ncols=columns, frameon=False, fontsize=9, labelcolor=INK)


def save_png(figure: Figure, file: Path) -> Path:
    """Writes a figure and returns its file."""
    FigureCanvasAgg(figure)
    figure.savefig(file, dpi=120)
    return file


def draw_table(header: Sequence[str], rows: Sequence[Sequence[str]], file: Path) -> Path:
    """Writes a table as a picture, one line of text a row."""
    widths = [max(len(line[column]) for line in (header, *rows)) + 2 for column in range(len(header))]
    size = (sum(widths) * _CHARACTER_INCHES, (len(rows) + 1) * _ROW_INCHES)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.set_axis_off()
    table = axes.table(
        cellText=[list(row) for row in rows],
        colLabels=list(header),
        colWidths=[width / sum(widths) for width in widths],
        cellLoc="left",
        bbox=(0, 0, 1, 1),  # pyright: ignore[reportArgumentType]
    )
    table.auto_set_font_size(False)
    table.set_fontsize(9)
    for (row, _), cell in table.get_celld().items():
        cell.set_edgecolor("#DDDDDD")
        cell.set_text_props(color=INK, weight="bold" if row == 0 else "normal")
    return save_png(figure, file)
