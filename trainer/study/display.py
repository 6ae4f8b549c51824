"""What the user sees of a study: its runs as they begin, go on and end; bars on a terminal, lines elsewhere."""

import time
from collections.abc import Mapping, Sequence
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from trainer.study.plan import Attempt, PlannedRun
from trainer.terminal.progress import results
from trainer.terminal.words import duration, pressure_line


class StudyDisplay:
    """Shows which cells are done, which go on, what came of them and the time left; a context manager.

    Args:
        runs: all of the study.
        to_do: those of them that are not done yet.
        console: where to write; standard output by default.
    """

    def __init__(
        self,
        runs: Sequence[PlannedRun],
        to_do: Sequence[PlannedRun],
        *,
        console: Console | None = None,
    ) -> None:
        self.console = console or Console()
        self._numbers = {run.name: number for number, run in enumerate(runs, start=1)}
        self._begin, self._work_done, self._work_left = time.monotonic(), 0, sum(run.work for run in to_do)
        self.bars = _make_bars(self.console)
        self._all = self.bars.add_task("runs", total=len(runs), completed=len(runs) - len(to_do), detail="")

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self.bars.stop()

    def begin(self, run: PlannedRun) -> "RunView":
        """Shows that a run begins, and gives what it tells its progress to."""
        self.note(f"{self._place(run)} begins: {pressure_line(run.config.plan)}")
        return RunView(self, run)

    def end(self, run: PlannedRun, view: "RunView", attempt: Attempt) -> None:
        """Shows what came of a run."""
        self.bars.remove_task(view.task)
        self.bars.advance(self._all)
        self._work_done += run.work
        self._work_left -= run.work
        if attempt.stopped is not None:
            what = attempt.stopped.partition(". ")[0]
        elif attempt.error is not None:
            what = f"FAILED: {_short(attempt.error)}"
        else:
            what = f"done in {duration(attempt.seconds)}: {view.results}"
        self.note(f"{self._place(run)} {what}{self._time_left()}")

    def note(self, text: str) -> None:
        """Writes a line, above the bars where there are any."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _place(self, run: PlannedRun) -> str:
        return f"[{self._numbers[run.name]}/{len(self._numbers)}] {run.name}"

    def _time_left(self) -> str:
        if not self._work_left:
            return ""
        return f"; about {duration((time.monotonic() - self._begin) / self._work_done * self._work_left)} left"


class RunView:
    """The progress of one run of a study.

    Args:
        display: that shows it.
        run: which run.
    """

    def __init__(self, display: StudyDisplay, run: PlannedRun) -> None:
        self._display, self._name, self._begin = display, run.name, time.monotonic()
        self.start_seconds: float | None = None
        self._values: dict[str, list[float]] = {}
        self.task = display.bars.add_task(run.name, total=run.config.trainer.total_steps, detail="start")

    @property
    def results(self) -> str:
        """What changed from the first step to the last."""
        found = []
        for name, label, form in results(self._values):
            ends = dict.fromkeys(f"{value:{form}}" for value in self._values[name][:1] + self._values[name][-1:])
            found.append(f"{label} {' -> '.join(ends)}")
        return ", ".join(found) or "no results"

    def stage(self, name: str) -> None:
        """The first stage after the start ends the start."""
        if name != "start" and self.start_seconds is None:
            self.start_seconds = time.monotonic() - self._begin
        if not self._values:
            self._show(detail=name)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Shows the step and its reward."""
        for name, *_ in results(metrics):
            self._values.setdefault(name, []).append(metrics[name])
        self._show(completed=step, detail=self.results)

    def note(self, message: str) -> None:
        """Writes a line with the name of the run."""
        self._display.note(f"{self._name}: {message}")

    def _show(self, *, detail: str, completed: int | None = None) -> None:
        self._display.bars.update(self.task, completed=completed, detail=detail)


def _short(error: str) -> str:
    """The first and the last line of a message, which may hold a traceback."""
    lines = [line for line in error.strip().splitlines() if line.strip()]
    return lines[0] if len(lines) == 1 else f"{lines[0]} ... {lines[-1].strip()}"


def _make_bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        MofNCompleteColumn(),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[detail]}"),
        console=console,
    )
