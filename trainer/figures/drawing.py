"""What all pictures share: colours, line styles, axes and their ranges, grids of panels, legends, tables and PNG files."""

import math
import statistics
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter, ScalarFormatter

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#7F7F7F")
"""Okabe and Ito's palette, which colour-blind readers can tell apart; grey is kept for the rest."""

INK = "#333333"
ROUNDING = 1e-6
"""Differences below this share of the values are rounding: means of fp32 numbers are no more exact."""
WIDE = 100.0
"""Largest over median value from which on an axis is logarithmic above 0."""
START = "start"
"""Name of step 0 on an axis: the state before training."""
_LINE_COLORS = (*COLORS[:6], "#000000")
"""Without yellow, which is too pale for a line, and grey."""
_DASHES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<")
_MARKERS_A_LINE = 8
_GOLDEN = 0.618
"""Multiples of it modulo 1 never come close to each other."""
_EVERY_POINT = 30
"""Up to so many points each has its marker."""
_CHARACTER_INCHES, _ROW_INCHES = 0.085, 0.3
_HANDLE_INCHES = 0.75
"""Of a line in a legend, with the space around it."""
_LETTERS_AN_INCH = 12
"""Of titles."""


def line_look(index: int, points: int = 1) -> dict[str, Any]:
    """Colour, dashes and markers of the line with this number.

    Of 28 lines no two agree in colour and dashes, and of 252 none in all three. Two lines of one colour differ in dashes
    and in markers.

    Args:
        index: of the line.
        points: of the line; a long one has a marker now and then, at other places than the lines beside it.
    """
    turn = index // len(_LINE_COLORS)
    every = 1 if points <= _EVERY_POINT else points // _MARKERS_A_LINE
    return {
        "color": _LINE_COLORS[index % len(_LINE_COLORS)],
        "linestyle": _DASHES[turn % len(_DASHES)],
        "marker": _MARKERS[(index + turn) % len(_MARKERS)],
        "markersize": 3.5,
        "markevery": (int(index * _GOLDEN % 1 * every), every),
    }


def style_axes(axes: Axes, *, title: str = "", x_label: str = "", y_label: str = "") -> None:
    """Labels, a quiet grid, no box, and the numbers themselves at the ticks: never as differences from an offset."""
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.set_xlabel(x_label, fontsize=9, color=INK)
    axes.set_ylabel(y_label, fontsize=9, color=INK)
    axes.tick_params(labelsize=8, colors=INK)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(ScalarFormatter(useOffset=False))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.margins(x=0.02)


def show_steps(axes: Axes, most: int | None = None) -> None:
    """Whole steps on the horizontal axis; step 0 is called the start.

    Args:
        axes: to change, when all is drawn.
        most: ticks, about.
    """
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=most or "auto"))
    axes.xaxis.set_major_formatter(
        lambda step, _: START if step == 0 else f"{step:.0f}" if step > 0 and step == round(step) else ""
    )
    lines = [line for one in axes.get_shared_x_axes().get_siblings(axes) for line in one.get_lines()]
    steps = [float(step) for line in lines for step in np.asarray(line.get_xdata(), dtype=float)]
    if steps:
        low, high = min(steps), max(steps)
        beside = (high - low) / 50 or 1.0
        axes.set_xlim(low - beside, high + beside)


def show_percent(axes: Axes) -> None:
    """Shares on the vertical axis as percentages, with as many digits as tell the ticks apart."""
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def settle_range(axes: Axes, *, noise: float = 0.0, wide: bool = False) -> None:
    """The vertical range of axes and of those that share it, when all is drawn.

    A curve that moves by no more than rounding is drawn flat in the middle, at the height that the ticks say. Where there
    is no finite value, the axes say so.

    Args:
        axes: to change.
        noise: differences up to this are rounding, in the unit of the values.
        wide: values may grow by orders of magnitude; the axis is logarithmic where they do, and linear around 0.
    """
    together = axes.get_shared_y_axes().get_siblings(axes)
    values = [value for one in together for value in _drawn_values(one)]
    if not values:
        for one in together:
            if one.get_lines():
                one.text(0.5, 0.5, "no finite value", transform=one.transAxes, ha="center", fontsize=8, color=INK)
        axes.set_ylim(0.0, 1.0)
        return
    low, high = min(values), max(values)
    if high - low <= max(noise, ROUNDING * max(-low, high)):
        centre = (low + high) / 2
        half = max(abs(centre) / 10, 1000 * noise) or 1.0
        bottom = centre - half
        axes.set_ylim(-0.1 * half if low >= 0 > bottom else bottom, centre + half)
        return
    positive = [value for value in values if value > 0]
    if wide and positive and high > WIDE * statistics.median(positive):
        # Linear around 0, which on-policy runs have.
        linear = statistics.median(positive) / WIDE
        axes.set_yscale("symlog", linthresh=linear)
        if low >= 0:
            axes.set_ylim(-linear / 2, 2 * high)


def plain_text(text: str) -> str:
    """A name from outside as it is: matplotlib takes what stands between dollars for mathematics."""
    return text.replace("$", r"\$")


def set_title(figure: Figure, title: str) -> None:
    """A title above all panels, in as many lines as it needs."""
    lines = textwrap.wrap(title, width=max(20, int(figure.get_figwidth() * _LETTERS_AN_INCH)))
    figure.suptitle("\n".join(map(plain_text, lines)), fontsize=11, color=INK)


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
    set_title(figure, title)
    panels = list(figure.subplots(rows, columns, squeeze=False).flatten())
    for axes in panels[count:]:
        axes.set_axis_off()
    return figure, panels[:count]


def legend_below(figure: Figure, handles: Sequence[Artist], labels: Sequence[str], columns: int) -> None:
    """One legend for all panels of a figure, in as many columns as there is room for.

    Args:
        figure: below which.
        handles: of the lines.
        labels: of the lines.
        columns: at most.
    """
    entry = _HANDLE_INCHES + max(map(len, labels), default=0) * _CHARACTER_INCHES
    columns = max(1, min(columns, int(figure.get_figwidth() / entry)))
    where = "outside lower center"
    names = [plain_text(label) for label in labels]
    figure.legend(handles, names, loc=where, ncols=columns, frameon=False, fontsize=9, labelcolor=INK, handlelength=3.5)


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
        cellText=[[plain_text(cell) for cell in row] for row in rows],
        colLabels=[plain_text(cell) for cell in header],
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


def _drawn_values(axes: Axes) -> list[float]:
    """The finite values of the lines and bands."""
    lines = [np.asarray(line.get_ydata(), dtype=float) for line in axes.get_lines()]
    bands = [
        np.asarray(path.vertices, dtype=float)[:, 1]
        for band in axes.collections
        if isinstance(band, PolyCollection)
        for path in band.get_paths()
    ]
    values = np.concatenate([np.ravel(part) for part in (*lines, *bands)]) if lines or bands else np.empty(0)
    return values[np.isfinite(values)].tolist()
