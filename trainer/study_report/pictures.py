"""Which figures a study has: panel by panel, with captions. Drawn by ``figures.py``.

One figure has rows of metrics and columns of iterations (or whatever the column axis is), as Figure 2 of the CFPO
paper; with a further axis there is one of these for each of its values, and one figure a metric with that axis as rows,
as the paper's Figures 4 to 8.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from trainer.study_report.axes import Arrangement, cell_label, cells, short_name, value_label
from trainer.study_report.curves import CurveSettings
from trainer.study_report.reading import Study


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyMetric:
    """A metric that is drawn.

    Args:
        name: in the logs.
        title: for people, with its unit.
        percent: shows shares as percentages.
        wide: may grow by orders of magnitude; the axis is logarithmic where it does.
    """

    name: str
    title: str
    percent: bool = False
    wide: bool = False


METRICS = (
    StudyMetric(name="reward/mean", title="training reward"),
    StudyMetric(name="val/accuracy", title="validation accuracy", percent=True),
    StudyMetric(name="actor/clip_fraction", title="clip fraction", percent=True),
    StudyMetric(name="actor/kl_k3", title="KL to sampling policy", wide=True),
    StudyMetric(name="actor/entropy", title="entropy, nats"),
    StudyMetric(name="actor/grad_norm", title="gradient norm", wide=True),
    StudyMetric(name="response_length/mean", title="response length, tokens"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One pair of axes: a metric of the runs that agree with a cell."""

    metric: StudyMetric
    cell: dict[str, Any]


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
    rows: tuple[tuple[Panel, ...], ...]
    row_labels: tuple[str, ...]
    column_labels: tuple[str, ...]


def pictures(study: Study, arrangement: Arrangement, settings: CurveSettings) -> list[Picture]:
    """All figures of the runs' metrics that have something to show."""
    known = {name for run in study.runs for record in run.records.values() for name in record}
    metrics = [metric for metric in METRICS if metric.name in known]
    columns = list(cells(study.axes, [arrangement.columns] if arrangement.columns else []))
    reading = _how_to_read(arrangement, settings)
    drawn = [_of_metrics(metrics, columns, fixed, reading) for fixed in cells(study.axes, arrangement.others)]
    if arrangement.others:
        first, *rest = arrangement.others
        rows = list(cells(study.axes, [first]))
        for fixed in cells(study.axes, rest):
            drawn += [_of_one_metric(metric, rows, columns, fixed, reading) for metric in metrics]
    return [picture for picture in drawn if picture.rows and _has_runs(study, picture)]


def _of_metrics(
    metrics: list[StudyMetric], columns: list[dict[str, Any]], fixed: dict[str, Any], reading: str
) -> Picture:
    where = f" at {cell_label(fixed)}" if fixed else ""
    return Picture(
        name="-".join(["dynamics", *_slugs(fixed)]),
        title=f"Training dynamics{where}",
        caption=f"Training dynamics{where}, a metric a row. {reading} As Figure 2 of the CFPO paper (arXiv 2601.22801).",
        rows=tuple(tuple(Panel(metric=metric, cell=column | fixed) for column in columns) for metric in metrics),
        row_labels=tuple(metric.title for metric in metrics),
        column_labels=tuple(cell_label(column) for column in columns),
    )


def _of_one_metric(
    metric: StudyMetric,
    rows: list[dict[str, Any]],
    columns: list[dict[str, Any]],
    fixed: dict[str, Any],
    reading: str,
) -> Picture:
    where = f" at {cell_label(fixed)}" if fixed else ""
    by = " and ".join(short_name(key) for key in (*rows[0], *columns[0]))
    title = f"{metric.title[0].upper()}{metric.title[1:]} by {by}{where}"
    return Picture(
        name="-".join([metric.name.replace("/", "_"), "by", *map(short_name, rows[0]), *_slugs(fixed)]),
        title=title,
        caption=f"{title}. {reading} As Figures 4 to 8 of the CFPO paper (arXiv 2601.22801).",
        rows=tuple(tuple(Panel(metric=metric, cell=row | column | fixed) for column in columns) for row in rows),
        row_labels=tuple(cell_label(row) for row in rows),
        column_labels=tuple(cell_label(column) for column in columns),
    )


def _how_to_read(arrangement: Arrangement, settings: CurveSettings) -> str:
    lines = f"A line for each value of {short_name(arrangement.series)}" if arrangement.series else "One line"
    columns = f", a column for each value of {short_name(arrangement.columns)}" if arrangement.columns else ""
    return (
        f"{lines}{columns}; the line is the mean over seeds, dotted where some seeds have ended, and the band is "
        f"{settings.band}. Horizontal axis: {settings.x_label}."
    )


def _slugs(cell: dict[str, Any]) -> Iterator[str]:
    for key, value in cell.items():
        label = value_label(key, value)
        yield "".join(letter if letter.isalnum() or letter in "._" else "_" for letter in label)


def _has_runs(study: Study, picture: Picture) -> bool:
    panels = [panel for row in picture.rows for panel in row]
    return any(run.values(panel.metric.name) for panel in panels for run in study.runs_of(panel.cell))
