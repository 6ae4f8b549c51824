"""``cfpo plot DIR``: draws a run directory or a study directory again; with ``--losses``, the objectives of losses."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from cfpo_hybrid.errors import ConfigError
from trainer.commands.arguments import Say, add_losses

STUDY_OPTIONS = ("series", "columns", "band", "x")


def add_arguments(parser: ArgumentParser) -> None:
    """What to draw, and how a study's pictures are laid out."""
    parser.add_argument("directory", help="a run or study directory; with --losses, the folder to write to")
    add_losses(parser, "draw objective and gradient of these losses instead", default=None)
    parser.add_argument("--series", metavar="KEY", help="of a study: the axis with a line for each value")
    parser.add_argument("--columns", metavar="KEY", help="of a study: the axis with a column for each value")
    parser.add_argument("--band", choices=("range", "ci"), help="of a study: what bands show of the seeds")
    parser.add_argument("--x", choices=("rollout", "optimizer"), help="of a study: steps on the horizontal axis")


def run(arguments: Namespace, say: Say) -> int:
    """Draws, and prints the files; for a study also what is missing."""
    from trainer.study.study import is_study

    directory = Path(arguments.directory)
    given = [f"--{option}" for option in STUDY_OPTIONS if vars(arguments)[option] is not None]
    if arguments.losses is not None:
        if given:
            raise ConfigError(f"{', '.join(given)}: for study directories only, and --losses draws losses without one")
        return _plot_losses(directory, arguments, say)
    if not directory.is_dir():
        raise ConfigError(
            f"there is no directory '{directory}'; name a run directory, which holds metrics.jsonl, or a study "
            "directory, which holds study.json"
        )
    if is_study(directory):
        return _plot_study(directory, arguments, say)
    if given:
        raise ConfigError(f"{', '.join(given)}: for study directories only, and '{directory}' has no study.json")
    return _plot_run(directory, say)


def _plot_losses(directory: Path, arguments: Namespace, say: Say) -> int:
    from trainer.config.losses import choose_losses
    from trainer.figures.objective import draw_objective
    from trainer.run.files import make_folder
    from trainer.study_report.report import OBJECTIVE_FILE

    losses = choose_losses(arguments.losses, arguments.plugins)
    make_folder(directory, "the folder to write to,")
    say(str(draw_objective(losses, directory / OBJECTIVE_FILE)))
    return 0


def _plot_study(directory: Path, arguments: Namespace, say: Say) -> int:
    from trainer.study_report.report import report_study
    from trainer.study_report.statistics import Band

    report = report_study(
        directory,
        series=arguments.series,
        columns=arguments.columns,
        band=Band(arguments.band or Band.RANGE.value),
        by_optimizer_steps=None if arguments.x is None else arguments.x == "optimizer",
    )
    for path in report.files:
        say(str(path))
    if report.missing:
        say(f"missing ({len(report.missing)}):")
        say("\n".join(f"  {line}" for line in report.missing))
    return 0


def _plot_run(directory: Path, say: Say) -> int:
    from trainer.figures.plots import plot_run

    for path in plot_run(directory):
        say(str(path))
    return 0
