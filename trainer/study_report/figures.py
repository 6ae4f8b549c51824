"""The figures of a study: which there are, panel by panel with their captions, and how they are drawn.

One figure has rows of metrics and columns of iterations (or whatever the column axis is), as Figure 2 of the CFPO
paper; with a further axis there is one of these for each of its values, and one figure a metric with that axis as rows,
as the paper's Figures 4 to 8. In each panel a line and a band stand for each value of the series axis.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cfpo_hybrid.errors import ConfigError
from trainer.figures.drawing import (
    INK,
    ROUNDING,
    legend_below,
    line_look,
    plain_text,
    save_png,
    set_title,
    settle_range,
    show_percent,
    show_steps,
    style_axes,
)
from trainer.run.validation_names import results_by_set
from trainer.study.study import Cell, Study, cell_label, cells_of, short_name, value_label
from trainer.study_report.statistics import CurveSettings, SeedCurve, seed_curve

PRESSURE = ("algorithm.iterations", "algorithm.batch_ratio")
"""The two sources of off-policy pressure: columns of the paper's figures, in this order of preference."""
_PANEL_INCHES = (3.0, 2.1)
_LEGEND_INCHES = 0.7


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyMetric:
    """A metric that is drawn.

    Args:
        name: in the logs.
        title: for people, with its unit.
        percent: shows shares as percentages.
        wide: may grow by orders of magnitude; the axis is logarithmic where it does.
        noise: differences up to this are rounding, in the unit of the values.
    """

    name: str
    title: str
    percent: bool = False
    wide: bool = False
    noise: float = 0.0


TRAINING_REWARD = StudyMetric(name="reward/mean", title="training reward")
ACTOR_METRICS = (
    StudyMetric(name="actor/clip_fraction", title="clip fraction", percent=True, noise=ROUNDING),
    StudyMetric(name="actor/kl_k3", title="KL to sampling policy", wide=True, noise=ROUNDING),
    StudyMetric(name="actor/entropy", title="entropy, nats", noise=ROUNDING),
    StudyMetric(name="actor/grad_norm", title="gradient norm", wide=True),
    StudyMetric(name="response_length/mean", title="response length, tokens"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Arrangement:
    """The part that each axis plays.

    Example: axes policy_loss.name, algorithm.iterations and algorithm.batch_ratio: a line a loss, a column a number of
    iterations, and one figure for each batch ratio.

    Args:
        series: the axis with a line for each value; None when there is no axis.
        columns: the axis with a column of panels for each value; None when there is no second axis.
        others: the remaining axes.
    """

    series: str | None
    columns: str | None
    others: tuple[str, ...]

    @classmethod
    def of(cls, axes: Mapping[str, Any], series: str | None = None, columns: str | None = None) -> "Arrangement":
        """The arrangement that is asked for, or else lines for the losses and columns for the pressure.

        Raises:
            ConfigError: an axis that the study does not have, or one named twice.
        """
        problems = [
            f"--{option} {key}: the study has no such axis; it has {', '.join(axes) or 'none'}"
            for option, key in (("series", series), ("columns", columns))
            if key is not None and key not in axes
        ]
        if series is not None and series == columns:
            problems.append(f"--series and --columns both name {series}; name two axes")
        if problems:
            raise ConfigError(problems)
        line = series or _default_series([key for key in axes if key != columns])
        rest = [key for key in axes if key != line]
        column = columns or next((key for key in (*PRESSURE, *rest) if key in rest), None)
        return cls(series=line, columns=column, others=tuple(key for key in rest if key != column))


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One pair of axes: a metric of the runs that agree with a cell."""

    metric: StudyMetric
    cell: Cell


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """One figure.

    Args:
        name: of its file.
        title: above it.
        caption: below it, on the page.
        rows: panels by row and column.
        row_labels: beside each row.
        column_labels: above each column.
    """

    name: str
    title: str
    caption: str
    rows: Sequence[Sequence[Panel]]
    row_labels: Sequence[str]
    column_labels: Sequence[str]


class StudyFigures:
    """The pictures of one study.

    Args:
        study: whose runs.
        arrangement: which axis is a line, which a column.
        settings: what is on the horizontal axis, and what the bands are.
    """

    def __init__(self, study: Study, arrangement: Arrangement, settings: CurveSettings) -> None:
        self._study, self._arrangement, self._settings = study, arrangement, settings
        self._columns = self._cells(arrangement.columns)
        self._series = self._cells(arrangement.series)

    def pictures(self) -> list[Picture]:
        """All figures of the runs' metrics that have something to show."""
        known = self._study.metrics
        metrics = [metric for metric in (TRAINING_REWARD, *_validation(known), *ACTOR_METRICS) if metric.name in known]
        first, rest = self._arrangement.others[:1], self._arrangement.others[1:]
        found = [self._of_metrics(metrics, fixed) for fixed in self._cells(*first, *rest)]
        if first:
            found += [
                self._of_one_metric(metric, first[0], fixed) for fixed in self._cells(*rest) for metric in metrics
            ]
        return [picture for picture in found if self._shows_something(picture)]

    def draw(self, picture: Picture, folder: Path) -> Path:
        """Writes one picture into a folder as PNG."""
        rows, columns = len(picture.rows), len(picture.rows[0])
        size = (max(5.0, _PANEL_INCHES[0] * columns + 0.6), _PANEL_INCHES[1] * rows + _LEGEND_INCHES)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharex="col", sharey="row")
        for row, panels, label in zip(grid, picture.rows, picture.row_labels, strict=True):
            for axes, panel in zip(row, panels, strict=True):
                self._draw_panel(axes, panel)
            metric = panels[0].metric
            if metric.percent:
                show_percent(row[0])
            settle_range(row[0], noise=metric.noise, wide=metric.wide)
            row[0].set_ylabel(plain_text(label), fontsize=9, color=INK)
        for axes, label in zip(grid[0], picture.column_labels, strict=True):
            axes.set_title(plain_text(label), fontsize=10, color=INK)
        for axes in grid[-1]:
            axes.set_xlabel(self._settings.x_label, fontsize=9, color=INK)
        set_title(figure, picture.title)
        labels = [cell_label(line) or "all runs" for line in self._series]
        handles = [figure.axes[0].plot([], [], **line_look(index))[0] for index in range(len(labels))]
        legend_below(figure, handles, labels, columns=min(len(labels), 6))
        return save_png(figure, folder / f"{picture.name}.png")

    def _cells(self, *keys: str | None) -> list[dict[str, Any]]:
        return cells_of(self._study.axes, [key for key in keys if key is not None])

    def _of_metrics(self, metrics: Sequence[StudyMetric], fixed: dict[str, Any]) -> Picture:
        title = f"Training dynamics{_where(fixed)}"
        return Picture(
            name="-".join(["dynamics", *_slugs(fixed)]),
            title=title,
            caption=f"{title}, a metric a row. {self._how_to_read()} As Figure 2 of the CFPO paper (arXiv 2601.22801).",
            rows=[[Panel(metric=metric, cell=column | fixed) for column in self._columns] for metric in metrics],
            row_labels=[metric.title for metric in metrics],
            column_labels=[cell_label(column) for column in self._columns],
        )

    def _of_one_metric(self, metric: StudyMetric, axis: str, fixed: dict[str, Any]) -> Picture:
        rows = self._cells(axis)
        by = " and ".join(short_name(key) for key in (axis, *self._columns[0]))
        title = f"{metric.title[0].upper()}{metric.title[1:]} by {by}{_where(fixed)}"
        return Picture(
            name="-".join([metric.name.replace("/", "_"), "by", short_name(axis), *_slugs(fixed)]),
            title=title,
            caption=f"{title}. {self._how_to_read()} As Figures 4 to 8 of the CFPO paper (arXiv 2601.22801).",
            rows=[[Panel(metric=metric, cell=row | column | fixed) for column in self._columns] for row in rows],
            row_labels=[cell_label(row) for row in rows],
            column_labels=[cell_label(column) for column in self._columns],
        )

    def _how_to_read(self) -> str:
        series, columns = self._arrangement.series, self._arrangement.columns
        lines = f"A line for each value of {short_name(series)}" if series else "One line"
        panels = f", a column for each value of {short_name(columns)}" if columns else ""
        return (
            f"{lines}{panels}; the line is the mean over seeds, dotted where some seeds have ended, and the band is "
            f"{self._settings.band}. Horizontal axis: {self._settings.x_label}."
        )

    def _shows_something(self, picture: Picture) -> bool:
        panels = [panel for row in picture.rows for panel in row]
        return any(run.values(panel.metric.name) for panel in panels for run in self._study.runs_of(panel.cell))

    def _draw_panel(self, axes: Axes, panel: Panel) -> None:
        style_axes(axes)
        of_line = [self._study.runs_of({**panel.cell, **line}) for line in self._series]
        curves = [seed_curve(runs, panel.metric.name, self._settings) for runs in of_line]
        for index, curve in enumerate(curves):
            if curve is not None:
                _draw_curve(axes, curve, line_look(index, len(curve.x)))
        show_steps(axes, most=5)
        if not any(curves):
            axes.text(0.5, 0.5, "no run yet", transform=axes.transAxes, ha="center", fontsize=8, color=INK)


def _validation(known: Sequence[str]) -> Iterator[StudyMetric]:
    """Accuracy of all validation problems and of each set, or the reward where it is no verdict."""
    for name, metric in results_by_set(known).items():
        figure, of_set = metric.rpartition("/")[2], f", {name}" if name else ""
        yield StudyMetric(name=metric, title=f"validation {figure}{of_set}", percent=figure == "accuracy")


def _default_series(keys: Sequence[str]) -> str | None:
    losses = [key for key in keys if key.startswith("policy_loss")]
    free = [key for key in keys if key not in PRESSURE]
    return next(iter([*losses, *free, *keys]), None)


def _where(fixed: dict[str, Any]) -> str:
    return f" at {cell_label(fixed)}" if fixed else ""


def _slugs(cell: Cell) -> Iterator[str]:
    for key, value in cell.items():
        label = value_label(key, value)
        yield "".join(letter if letter.isalnum() or letter in "._" else "_" for letter in label)


def _draw_curve(axes: Axes, curve: SeedCurve, look: dict[str, Any]) -> None:
    axes.fill_between(curve.x, curve.low, curve.high, color=look["color"], alpha=0.15, linewidth=0)
    if not all(curve.complete):
        axes.plot(curve.x, curve.mean, color=look["color"], linestyle=":", linewidth=1.0)
    solid = [mean if complete else math.nan for mean, complete in zip(curve.mean, curve.complete, strict=True)]
    axes.plot(curve.x, solid, linewidth=1.6, **look)
