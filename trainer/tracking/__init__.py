"""Trackers by name: where the metrics of steps and updates go beside the JSON lines, which are always written.

To add one: a module here of its name with ``open_tracker(run: TrackedRun) -> Tracker``, and the package that it needs in
``TRACKERS``. Both are imported only when a run asks for the tracker.
"""

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

from cfpo_hybrid.errors import ConfigError, RegistryError
from cfpo_hybrid.registry import Registry
from trainer.run.directory import RunDirectory
from trainer.tracking.jsonl import JsonlTracker


class Tracker(Protocol):
    """Takes the metrics of a run; a value may be NaN or infinite."""

    def log_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records a rollout step."""
        ...

    def log_update(self, step: int, iteration: int, mini_batch: int, metrics: Mapping[str, float]) -> None:
        """Records an optimizer step."""
        ...

    def close(self) -> None:
        """Writes out what is left."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackedRun:
    """What a tracker is opened for.

    Args:
        directory: started, so that its logs end where the run goes on and its config is written.
        project: name for trackers that group runs.
        first_step: the first rollout step to come.
        first_update: index of the first optimizer step to come, counted over the whole run from 0.
    """

    directory: RunDirectory
    project: str
    first_step: int
    first_update: int


TRACKERS: Registry[str] = Registry("tracker")
"""The package that each one needs."""
TRACKERS.register("tensorboard", "tensorboard")
TRACKERS.register("wandb", "wandb")


class Trackers:
    """Several trackers as one.

    Args:
        trackers: in the order in which they are told.
    """

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = tuple(trackers)

    def log_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Tells every tracker."""
        for tracker in self._trackers:
            tracker.log_step(step, metrics)

    def log_update(self, step: int, iteration: int, mini_batch: int, metrics: Mapping[str, float]) -> None:
        """Tells every tracker."""
        for tracker in self._trackers:
            tracker.log_update(step, iteration, mini_batch, metrics)

    def close(self) -> None:
        """Closes every tracker, also when one of them fails."""
        with ExitStack() as stack:
            for tracker in reversed(self._trackers):
                stack.callback(tracker.close)


def check_trackers(names: Sequence[str]) -> list[str]:
    """What is wrong with the trackers asked for, one message a mistake; starts nothing."""
    problems = []
    for name in names:
        try:
            package = TRACKERS.get(name)
        except RegistryError as error:
            problems.append(str(error))
            continue
        if not _is_installed(package):
            problems.append(
                f"the tracker '{name}' is asked for, but the package {package} is not installed; install it with "
                f"'pip install {package}' or take '{name}' out of the trackers"
            )
    return problems


def open_trackers(
    run: RunDirectory, names: Sequence[str], *, resumed_step: int | None = None, project: str = "cfpo_hybrid"
) -> Trackers:
    """The JSON lines and the trackers asked for, ready for the next step of a run.

    Args:
        run: started, so that its logs end at ``resumed_step`` and its config is written.
        names: of ``TRACKERS``.
        resumed_step: the step that the run goes on from.
        project: name for trackers that group runs.

    Raises:
        ConfigError: a tracker that is unknown, or whose package is not installed.
    """
    problems = check_trackers(names)
    if problems:
        raise ConfigError(problems)
    tracked = TrackedRun(
        directory=run,
        project=project,
        first_step=0 if resumed_step is None else resumed_step + 1,
        first_update=len(run.updates()),
    )
    own = JsonlTracker(run.metrics_file, run.updates_file)
    modules = [importlib.import_module(f"{__name__}.{name}") for name in dict.fromkeys(names)]
    return Trackers([own, *(module.open_tracker(tracked) for module in modules)])


def _is_installed(package: str) -> bool:
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None  # wandb's own output folder ./wandb has a spec without origin
