"""Draws a study directory: its figures, its table and one page with both, into ``plots/``."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from cfpo_hybrid.algorithms.policy_loss import PolicyLoss
from cfpo_hybrid.errors import DataError, UserError
from trainer.config.losses import distinct, loss_of_section
from trainer.figures.drawing import draw_table
from trainer.figures.objective import CAPTION, draw_objective
from trainer.run.files import write_atomically
from trainer.run.reward_course import RULE, WINDOW
from trainer.study.study import Study, read_study
from trainer.study_report.facts import facts_of
from trainer.study_report.figures import Arrangement, StudyFigures
from trainer.study_report.statistics import Band, CurveSettings
from trainer.study_report.table import StudyTable

OBJECTIVE_FILE = "objective.png"

_STYLE = (
    "body{font-family:sans-serif;color:#333;max-width:80em;margin:2em auto;padding:0 1em;line-height:1.4}"
    "table{border-collapse:collapse;font-size:.9em}th,td{border-bottom:1px solid #ddd;padding:.3em .7em;text-align:left}"
    "img{max-width:100%}figure{margin:2em 0}figcaption,.note{font-size:.9em;color:#555;max-width:60em}"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportFiles:
    """What was written, the page first, and what the study still lacks, a line each."""

    files: list[Path]
    missing: list[str]


def report_study(
    directory: Path,
    *,
    series: str | None = None,
    columns: str | None = None,
    band: Band = Band.RANGE,
    by_optimizer_steps: bool | None = None,
) -> ReportFiles:
    """Draws what there is of a study, which may still be going on.

    Args:
        directory: of the study.
        series: the axis with a line for each value; by default that of the losses.
        columns: the axis with a column of panels for each value; by default iterations, then the batch ratio.
        band: what the band around a mean shows.
        by_optimizer_steps: optimizer steps are on the horizontal axis; by default in studies of equal compute.

    Raises:
        DataError: study.json or a log is malformed, or no run has logged anything yet.
        ConfigError: an axis that the study does not have.
    """
    study = read_study(directory)
    arrangement = Arrangement.of(study.axes, series, columns)
    if not any(run.records for run in study.runs):
        raise DataError(f"no run of the study '{directory}' has a metric yet; wait for the first step")
    folder = directory / "plots"
    folder.mkdir(parents=True, exist_ok=True)
    if by_optimizer_steps is None:
        by_optimizer_steps = study.iso_compute
    settings = CurveSettings(by_optimizer_steps=by_optimizer_steps, band=band)
    figures = StudyFigures(study, arrangement, settings)
    captions = {figures.draw(picture, folder): picture.caption for picture in figures.pictures()}
    losses, unknown = _losses_of(study)
    if losses:
        captions[draw_objective(losses, folder / OBJECTIVE_FILE)] = CAPTION
    table = StudyTable.of(study, arrangement.series)
    draw_table(table.header, table.texts(), folder / "table.png")
    write_atomically(folder / "table.csv", table.to_csv())
    missing = study.gaps() + unknown
    write_atomically(folder / "report.html", _page(study, table, captions, missing))
    names = ("report.html", "table.csv", "table.png")
    return ReportFiles(files=[*(folder / name for name in names), *captions], missing=missing)


def _losses_of(study: Study) -> tuple[list[PolicyLoss], list[str]]:
    """The distinct losses of the runs, and why others cannot be drawn."""
    sections = {str(run.policy_loss): run.policy_loss for run in study.runs if run.policy_loss}
    losses, problems = [], []
    for section in sections.values():
        try:
            losses.append(loss_of_section(section))
        except UserError as error:
            problems.append(f"objective of {section.get('name')}: {error}")
    return distinct(losses), problems


def _page(study: Study, table: StudyTable, captions: Mapping[Path, str], missing: Sequence[str]) -> str:
    """One HTML page: images inlined, no script, nothing loaded from anywhere.

    Args:
        study: that it is about.
        table: of its cells.
        captions: PNG files in the order of the figures, and what is said below each.
        missing: what has not run, a line each.
    """
    title = escape(f"Study {study.path.resolve().name}")
    parts = [
        f"<h1>{title}</h1>",
        _list(facts_of(study)),
        *(["<h2>Missing</h2>", _list(missing)] if missing else []),
        "<h2>Table</h2>",
        "<table>",
        *(_table_row(tag, cells) for tag, cells in [("th", table.header), *(("td", row) for row in table.texts())]),
        "</table>",
        *(f'<p class="note">{escape(note)}</p>' for note in _notes(table)),
        "<h2>Figures</h2>",
        *(_figure(number, file, caption) for number, (file, caption) in enumerate(captions.items(), start=1)),
    ]
    head = f'<meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(parts) + "\n</body></html>\n"


def _notes(table: StudyTable) -> list[str]:
    """Paragraphs below the table."""
    paired = (
        f" The last column is the mean over seeds of the final reward less that of {table.baseline} with the same seed "
        "and settings."
        if table.baseline is not None
        else ""
    )
    return [
        "A number is the mean over seeds; behind ± is half the width of its 95 % confidence interval by Student's t, "
        f"which a single seed does not have. Rewards are training rewards, averaged over {WINDOW} rollout "
        "steps up to the last one (final), or up to the one where that average is largest (best). Validation is the "
        "accuracy measured last, and the best one; where the reward is no verdict, it is the mean reward."
        f"{paired} Unfinished runs count as far as they have got.",
        RULE,
    ]


def _list(lines: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _table_row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _figure(number: int, file: Path, caption: str) -> str:
    image = base64.b64encode(file.read_bytes()).decode("ascii")
    return (
        f'<figure><img alt="{escape(file.stem)}" src="data:image/png;base64,{image}">'
        f"<figcaption>Figure {number}. {escape(caption)}</figcaption></figure>"
    )
