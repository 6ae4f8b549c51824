"""Draws the figures of a study: a line and a band for each value of the series axis, panel by panel."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from trainer.figures.drawing import INK, line_look, save_png, style_axes
from trainer.study_report.axes import Arrangement, value_label
from trainer.study_report.curves import CurveSettings, SeedCurve, seed_curve
from trainer.study_report.pictures import Panel, Picture
from trainer.study_report.reading import Study

_PANEL_INCHES = (3.0, 2.1)
_LEGEND_INCHES = 0.7
WIDE = 100.0
"""Largest over median value from which on an axis is logarithmic above 0."""


class StudyFigures:
    """Draws pictures of one study.

    Args:
        study: whose runs.
        arrangement: which axis is a line.
        settings: what is on the horizontal axis, and what the bands are.
    """

    def __init__(self, study: Study, arrangement: Arrangement, settings: CurveSettings) -> None:
        self._study, self._settings = study, settings
        key = arrangement.series
        self._series: list[tuple[str, dict[str, Any]]] = [("all runs", {})]
        if key is not None:
            self._series = [(value_label(key, value), {key: value}) for value in study.axes[key]]

    def draw(self, picture: Picture, folder: Path) -> Path:
        """Writes one picture into a folder as PNG."""
        rows, columns = len(picture.rows), len(picture.rows[0])
        size = (max(5.0, _PANEL_INCHES[0] * columns + 0.6), _PANEL_INCHES[1] * rows + _LEGEND_INCHES)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharex="col", sharey="row")
        for index, panels in enumerate(picture.rows):
            for axes, panel in zip(grid[index], panels, strict=True):
                self._draw_panel(axes, panel)
            _scale(grid[index][0], panels[0])
            grid[index][0].set_ylabel(picture.row_labels[index], fontsize=9, color=INK)
        for axes, label in zip(grid[0], picture.column_labels, strict=True):
            axes.set_title(label, fontsize=10, color=INK)
        for axes in grid[-1]:
            axes.set_xlabel(self._settings.x_label, fontsize=9, color=INK)
        figure.suptitle(picture.title, fontsize=11, color=INK)
        self._add_legend(figure)
        return save_png(figure, folder / f"{picture.name}.png")

    def _draw_panel(self, axes: Axes, panel: Panel) -> None:
        style_axes(axes)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        found = False
        for index, (_, cell) in enumerate(self._series):
            curve = seed_curve(self._study.runs_of(panel.cell | cell), panel.metric.name, self._settings)
            if curve is not None:
                _draw_curve(axes, curve, line_look(index))
                found = True
        if not found:
            axes.text(0.5, 0.5, "no run yet", transform=axes.transAxes, ha="center", fontsize=8, color=INK)

    def _add_legend(self, figure: Figure) -> None:
        handles = [figure.axes[0].plot([], [], **line_look(index))[0] for index in range(len(self._series))]
        labels = [label for label, _ in self._series]
        columns = min(len(labels), 6)
        figure.legend(
            handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9, labelcolor=INK
        )


def _draw_curve(axes: Axes, curve: SeedCurve, look: dict[str, Any]) -> None:
    axes.fill_between(curve.x, curve.low, curve.high, color=look["color"], alpha=0.15, linewidth=0)
    if not all(curve.complete):
        axes.plot(curve.x, curve.mean, color=look["color"], linestyle=":", linewidth=1.0)
    solid = [mean if complete else math.nan for mean, complete in zip(curve.mean, curve.complete, strict=True)]
    axes.plot(curve.x, solid, linewidth=1.6, marker="o" if len(curve.x) <= 30 else None, markersize=2.5, **look)


def _scale(axes: Axes, panel: Panel) -> None:
    """The vertical axis of a row, which its panels share."""
    if panel.metric.percent:
        axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g}%")
    positive = [value for shared in axes.get_shared_y_axes().get_siblings(axes) for value in _positive(shared)]
    if panel.metric.wide and positive and max(positive) > WIDE * statistics.median(positive):
        # Linear around 0, which on-policy runs have.
        axes.set_yscale("symlog", linthresh=statistics.median(positive) / WIDE)


def _positive(axes: Axes) -> Sequence[float]:
    """The finite values above 0 that are drawn."""
    points = [float(value) for line in axes.get_lines() for value in list(line.get_ydata())]  # pyright: ignore
    return [value for value in points if 0 < value < math.inf]
