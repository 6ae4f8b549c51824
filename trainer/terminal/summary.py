"""Summary of a run: what it gained, how fast it was, where the time went, where the files are, what to run next."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from trainer.config.problem import count
from trainer.run.directory import RunDirectory
from trainer.run.metrics import rollout_step_seconds, stage_totals
from trainer.run.reward_course import Fall, RewardCourse
from trainer.run.validation_names import results_by_set
from trainer.terminal.words import duration


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSummary:
    """The numbers of a run as a whole.

    Args:
        steps: rollout steps done.
        validations: first and last result of each validation set by its metric, e.g. ``val/accuracy``; the reward where
            that is no verdict.
        reward: first and last ``reward/mean``; None without a step.
        collapse: where the reward was lost again; None where it was not, or where the run is too short to say.
        tokens_per_second: over the steps that say it, weighted by their time.
        seconds: wall clock of all steps.
        stage_seconds: of each stage, the longest first; ``other`` is what no stage claims.
    """

    steps: int
    validations: dict[str, tuple[float, float]]
    reward: tuple[float, float] | None
    collapse: Fall | None
    tokens_per_second: float | None
    seconds: float
    stage_seconds: dict[str, float]


def summarise(metrics: Sequence[Mapping[str, Any]]) -> RunSummary:
    """The summary of the lines of ``metrics.jsonl``, a resumed run's from its very first step."""
    stages, tokens, timed = stage_totals(metrics), 0.0, 0.0
    for line in metrics:
        pace = line.get("perf/tokens_per_second")
        if pace is not None and line.get("time/step") is not None:
            step_seconds = rollout_step_seconds(line)
            tokens, timed = tokens + pace * step_seconds, timed + step_seconds
    seconds = sum(line.get("time/step") or 0.0 for line in metrics) or sum(stages.values())
    validated = results_by_set(name for line in metrics for name in line)
    stages["other"] = max(0.0, seconds - sum(stages.values()))
    return RunSummary(
        steps=max((line["step"] for line in metrics), default=0),
        validations={
            metric: ends for metric in validated.values() if (ends := _first_and_last(metrics, metric)) is not None
        },
        reward=_first_and_last(metrics, "reward/mean"),
        collapse=RewardCourse(metrics).look(),
        tokens_per_second=tokens / timed if timed > 0 else None,
        seconds=seconds,
        stage_seconds=dict(sorted(stages.items(), key=lambda stage: -stage[1])),
    )


def print_summary(console: Console, run: RunDirectory, next_commands: Sequence[str] = ()) -> None:
    """Writes the final tables: results, time by stage, files that exist, commands to go on with."""
    summary = summarise(run.metrics())
    console.print()
    console.print(_result_table(summary))
    if summary.collapse is not None:
        console.print(f"The run has collapsed: {summary.collapse}.", highlight=False)
    if summary.seconds > 0:
        console.print(_time_table(summary))
    _print_pairs(console, "Files", _files(run))
    if next_commands:
        _print_pairs(console, "Next", [("", command) for command in next_commands])


def _result_table(summary: RunSummary) -> Table:
    table = Table(title=f"{count(summary.steps, 'step')} in {duration(summary.seconds)}", title_justify="left")
    for column in ("", "before", "after", "change"):
        table.add_column(column, justify="left" if column == "" else "right")
    for set_name, metric in results_by_set(summary.validations).items():
        (before, after), of_set = summary.validations[metric], f", {set_name}" if set_name else ""
        if metric.endswith("accuracy"):
            change = f"{100 * (after - before):+.1f} points"
            table.add_row(f"validation accuracy{of_set}", f"{before:.1%}", f"{after:.1%}", change)
        else:
            _add_reward(table, f"validation reward{of_set}", (before, after))
    if summary.reward is not None:
        _add_reward(table, "training reward", summary.reward)
    if summary.tokens_per_second is not None:
        table.add_row("tokens/s", "", f"{summary.tokens_per_second:,.0f}", "")
    return table


def _add_reward(table: Table, name: str, ends: tuple[float, float]) -> None:
    before, after = ends
    table.add_row(name, f"{before:.3f}", f"{after:.3f}", f"{after - before:+.3f}")


def _time_table(summary: RunSummary) -> Table:
    table = Table(title="Where the time went", title_justify="left")
    table.add_column("stage")
    table.add_column("seconds", justify="right")
    table.add_column("share", justify="right")
    for stage, seconds in summary.stage_seconds.items():
        table.add_row(stage, f"{seconds:.1f}", f"{seconds / summary.seconds:.0%}")
    return table


def _files(run: RunDirectory) -> list[tuple[str, str]]:
    paths = [
        ("metrics", run.metrics_file),
        ("updates", run.updates_file),
        ("plots", run.plots),
        ("generations", run.generations),
        ("page of them", run.path / "generations.html"),
        ("hints", run.hints_file),
        ("saved rollouts", run.rollouts),
        ("offending batches", run.offending),
        ("checkpoints", run.checkpoints),
        ("exported model", run.export),
    ]
    there = [(label, path) for label, path in paths if path.is_file() or (path.is_dir() and any(path.iterdir()))]
    return [(label, str(path)) for label, path in there]


def _print_pairs(console: Console, title: str, pairs: Sequence[tuple[str, str]]) -> None:
    console.print(title, style="italic")
    width = max((len(label) for label, _ in pairs), default=0)
    for label, text in pairs:  # never wrapped: paths and commands are there to be copied
        line = f"  {label:<{width}}  {text}" if label else f"  {text}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _first_and_last(metrics: Sequence[Mapping[str, Any]], name: str) -> tuple[float, float] | None:
    values = [line[name] for line in metrics if line.get(name) is not None]
    return (values[0], values[-1]) if values else None
