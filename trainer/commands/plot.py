"""``cfpo plot DIR``: draws a run directory or a study directory again; with ``--losses``, the objectives of losses."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from cfpo_hybrid.errors import ConfigError
from trainer.config.losses import choose_losses
from trainer.figures.objective import draw_objective
from trainer.figures.plots import plot_run
from trainer.run.folders import make_folder
from trainer.study.study import is_study
from trainer.study_report.report import OBJECTIVE_FILE, report_study
from trainer.study_report.statistics import Band

STUDY_OPTIONS = ("series", "columns", "band", "x")


def run(arguments: Namespace, write: Callable[[str], None]) -> int:
    """Draws, and prints the files; for a study also what is missing."""
    directory = Path(arguments.directory)
    given = [f"--{option}" for option in STUDY_OPTIONS if vars(arguments)[option] is not None]
    if arguments.losses is not None:
        if given:
            raise ConfigError(f"{', '.join(given)}: for study directories only, and --losses draws losses without one")
        losses = choose_losses(arguments.losses, arguments.plugins)
        make_folder(directory, "the folder to write to,")
        write(str(draw_objective(losses, directory / OBJECTIVE_FILE)))
        return 0
    if not directory.is_dir():
        raise ConfigError(
            f"there is no directory '{directory}'; name a run directory, which holds metrics.jsonl, or a study "
            "directory, which holds study.json"
        )
    if is_study(directory):
        return _plot_study(directory, arguments, write)
    if given:
        raise ConfigError(f"{', '.join(given)}: for study directories only, and '{directory}' has no study.json")
    for path in plot_run(directory):
        write(str(path))
    return 0


def _plot_study(directory: Path, arguments: Namespace, write: Callable[[str], None]) -> int:
    report = report_study(
        directory,
        series=arguments.series,
        columns=arguments.columns,
        band=Band(arguments.band or Band.RANGE.value),
        by_optimizer_steps=None if arguments.x is None else arguments.x == "optimizer",
    )
    for path in report.files:
        write(str(path))
    if report.missing:
        write(f"missing ({len(report.missing)}):")
        write("\n".join(f"  {line}" for line in report.missing))
    return 0
