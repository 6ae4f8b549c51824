"""Progress of a run: a bar on a terminal, one line a step elsewhere (a log file, a pipe)."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from trainer.run.validation_names import results_by_set
from trainer.terminal.words import duration

RECENT_STEPS = 10
"""Steps whose mean duration foretells the time left."""

Shown = tuple[str, str, str]
"""A metric, its label and its format."""

LINE_METRICS: tuple[Shown, ...] = (
    ("sampling/prompts_drawn", "drawn", ".0f"),
    ("actor/clip_fraction", "clipped", ".2%"),
    ("actor/entropy", "entropy", ".3f"),
    ("response_length/mean", "length", ".1f"),
    ("perf/tokens_per_second", "tokens/s", ",.0f"),
)
"""Metrics of a step that are said behind its results."""


class StepProgress(Protocol):
    """What a run tells of itself while it goes on."""

    def stage(self, name: str) -> None:
        """Names what the run is doing now."""
        ...

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Tells of a finished step; step 0 (or the first one, on a resume) is the state before any training."""
        ...

    def note(self, message: str) -> None:
        """Tells of something that is no step."""
        ...


class RunProgress:
    """Shows the step, reward, the result of the last validation and time left of a run; a context manager.

    Args:
        total_steps: of the whole run.
        first_step: steps done before, where a run resumes.
        console: where to write; standard output by default.
        bar: a bar on a terminal; otherwise a line a step there too.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        first_step: int = 0,
        bar: bool = True,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.console = console or Console()
        self._total_steps, self._first_step = total_steps, first_step
        self._clock = clock
        self._marks: deque[float] = deque([clock()], maxlen=RECENT_STEPS + 1)
        self._shown: dict[str, float] = {}
        self._bar = _make_bar(self.console) if bar and self.console.is_terminal else None
        self._task = self._bar.add_task("", total=total_steps, completed=first_step, detail="") if self._bar else None

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def stage(self, name: str) -> None:
        """Names what the run is doing now; only the bar shows it."""
        if self._bar and self._task is not None:
            self._bar.update(self._task, description=name)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Shows a finished step; step 0 (or the first one, on a resume) is the state before any training."""
        if step <= self._first_step:
            self._marks.clear()
        self._marks.append(self._clock())
        self._shown.update({name: metrics[name] for name, *_ in results(metrics)})
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=step, detail=self._said(step, self._shown))
        else:
            self.note(f"step {step}/{self._total_steps}  {self._said(step, metrics)}".rstrip())

    def note(self, message: str) -> None:
        """Writes a line, above the bar where there is one."""
        self.console.print(message, markup=False, highlight=False, soft_wrap=True)

    def seconds_left(self, step: int) -> float | None:
        """Foreseen seconds after this step, from the mean of the last steps; None before the first one."""
        if len(self._marks) < 2:
            return None
        return (self._marks[-1] - self._marks[0]) / (len(self._marks) - 1) * (self._total_steps - step)

    def _said(self, step: int, metrics: Mapping[str, float]) -> str:
        said = [*results(metrics), *(shown for shown in LINE_METRICS if shown[0] in metrics)]
        parts = [f"{label} {metrics[name]:{form}}" for name, label, form in said]
        left = self.seconds_left(step)
        return "  ".join([*parts, *([] if left is None else [f"{duration(left)} left"])])


def results(names: Iterable[str]) -> list[Shown]:
    """The metrics among these by which a run is judged: the training reward, and accuracy or reward of each validation set."""
    names = list(names)
    found: list[Shown] = [("reward/mean", "reward", ".3f")] if "reward/mean" in names else []
    for set_name, metric in results_by_set(names).items():
        label, form = ("accuracy", ".1%") if metric.endswith("accuracy") else ("validation reward", ".3f")
        found.append((metric, f"{set_name} {label}" if set_name else label, form))
    return found


def _make_bar(console: Console) -> Progress:
    return Progress(
        MofNCompleteColumn(),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[detail]}"),
        TextColumn("[dim]{task.description:<10}"),
        console=console,
        expand=True,
    )
