"""Draws a study directory: its figures, its table and the page with both, into ``plots/``."""

from dataclasses import dataclass, field
from pathlib import Path

from cfpo_hybrid.algorithms.policy_loss import PolicyLoss
from cfpo_hybrid.errors import DataError, UserError
from trainer.chosen_losses import loss_label, loss_of_section
from trainer.figures.drawing import draw_table
from trainer.figures.objective import CAPTION, draw_objective
from trainer.jsonl import write_atomically
from trainer.study_report.axes import Arrangement, short_name
from trainer.study_report.curves import Band, CurveSettings
from trainer.study_report.figures import StudyFigures
from trainer.study_report.page import Figure, Page
from trainer.study_report.pictures import pictures
from trainer.study_report.reading import Study, read_study
from trainer.study_report.statistics import CollapseRule
from trainer.study_report.table import StudyTable

OBJECTIVE_FILE = "objective.png"


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportOptions:
    """How a study is drawn.

    Args:
        series: the axis with a line for each value; by default that of the losses.
        columns: the axis with a column of panels for each value; by default iterations, then the batch ratio.
        band: what the band around a mean shows.
        by_optimizer_steps: optimizer steps are on the horizontal axis; by default in studies of equal compute.
        rule: of collapse.
    """

    series: str | None = None
    columns: str | None = None
    band: Band = Band.RANGE
    by_optimizer_steps: bool | None = None
    rule: CollapseRule = field(default_factory=CollapseRule)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportFiles:
    """What was written, the page first, and what the study still lacks, a line each."""

    files: list[Path]
    missing: list[str]


def report_study(directory: Path, options: ReportOptions | None = None) -> ReportFiles:
    """Draws what there is of a study, which may still be going on.

    Raises:
        DataError: study.json or a log is malformed, or no run has logged anything yet.
        ConfigError: an axis that the study does not have.
    """
    options = options or ReportOptions()
    study = read_study(directory)
    arrangement = Arrangement.of(study.axes, options.series, options.columns)
    if not any(run.records for run in study.runs):
        raise DataError(f"no run of the study '{directory}' has a metric yet; wait for the first step")
    folder = directory / "plots"
    folder.mkdir(parents=True, exist_ok=True)
    losses, unknown = _losses_of(study)
    figures = _draw_runs(study, arrangement, options, folder)
    if losses:
        figures.append(Figure(file=draw_objective(losses, folder / OBJECTIVE_FILE), caption=CAPTION))
    table = StudyTable.of(study, arrangement, options.rule)
    draw_table(table.header, table.texts(), folder / "table.png")
    write_atomically(folder / "table.csv", table.to_csv())
    missing = study.gaps() + unknown
    write_atomically(folder / "report.html", _page(study, table, figures, missing).html())
    names = ("report.html", "table.csv", "table.png")
    return ReportFiles(
        files=[*(folder / name for name in names), *(figure.file for figure in figures)], missing=missing
    )


def _draw_runs(study: Study, arrangement: Arrangement, options: ReportOptions, folder: Path) -> list[Figure]:
    by_optimizer_steps = study.iso_compute if options.by_optimizer_steps is None else options.by_optimizer_steps
    settings = CurveSettings(by_optimizer_steps=by_optimizer_steps, band=options.band)
    drawer = StudyFigures(study, arrangement, settings)
    drawn = pictures(study, arrangement, settings)
    return [Figure(file=drawer.draw(picture, folder), caption=picture.caption) for picture in drawn]


def _page(study: Study, table: StudyTable, figures: list[Figure], missing: list[str]) -> Page:
    axes = [f"{short_name(key)} {', '.join(map(str, values))}" for key, values in study.axes.items()]
    runs = [run for run in study.runs if run.finished]
    return Page(
        title=f"Study {study.path.resolve().name}",
        facts=[
            ("recipe", study.recipe or "not said"),
            ("mode", study.mode),
            ("varied", "; ".join(axes) or "nothing"),
            ("seeds of each cell", ", ".join(map(str, study.seeds))),
            ("runs", f"{len(runs)} of {len(study.runs)} finished"),
        ],
        missing=missing,
        header=table.header,
        rows=table.texts(),
        notes=_notes(table),
        figures=figures,
    )


def _notes(table: StudyTable) -> list[str]:
    paired = (
        f" The last column is the mean over seeds of the final reward less that of {table.baseline} with the same seed "
        "and settings."
        if table.baseline is not None
        else ""
    )
    return [
        "A number is the mean over seeds; behind ± is half the width of its 95 % confidence interval by Student's t, "
        f"which a single seed does not have. Rewards are training rewards, averaged over {table.rule.window} rollout "
        "steps up to the last one (final), or up to the one where that average is largest (best). Validation is the "
        f"accuracy measured last, and the best one.{paired} Unfinished runs count as far as they have got.",
        str(table.rule),
    ]


def _losses_of(study: Study) -> tuple[list[PolicyLoss], list[str]]:
    """The distinct losses of the runs, and why others cannot be drawn."""
    sections = {str(run.policy_loss): run.policy_loss for run in study.runs if run.policy_loss}
    losses: dict[str, PolicyLoss] = {}
    problems = []
    for section in sections.values():
        try:
            loss = loss_of_section(section)
            losses[loss_label(loss)] = loss
        except UserError as error:
            problems.append(f"objective of {section.get('name')}: {error}")
    return list(losses.values()), problems
