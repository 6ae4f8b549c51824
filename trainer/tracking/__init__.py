"""Trackers by name: where the metrics of steps and updates go beside the JSON lines, which are always written.

To add one: a module here of its name with ``open_tracker(run: TrackedRun) -> Tracker``, and the package that it needs in
``TRACKERS``. Both are imported only when a run asks for the tracker. Several runs may go on in one process, each in a
thread with trackers of its own: a tracker touches nothing that another run's could have made.
"""

import importlib
import importlib.util
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from cfpo_hybrid.errors import ConfigError, RegistryError, WatchStop
from cfpo_hybrid.registry import Registry
from trainer.config import TrainerConfig
from trainer.run.directory import RunDirectory
from trainer.tracking.jsonl import JsonlTracker

logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """Takes the metrics of a run; a value may be NaN or infinite."""

    def log_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records a rollout step."""
        ...

    def log_update(self, step: int, iteration: int, mini_batch: int, metrics: Mapping[str, float]) -> None:
        """Records an optimizer step."""
        ...

    def close(self, *, crashed: bool = False) -> None:
        """Writes out what is left and marks the run as finished, or as crashed."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackedRun:
    """What a tracker is opened for.

    Args:
        directory: started, so that its logs end where the run goes on and its config is written.
        project: name for trackers that group runs.
        name: of the run.
        group: of runs that belong together, e.g. a study.
        tags: words to find the run by.
        first_step: the first rollout step to come.
        first_update: index of the first optimizer step to come, counted over the whole run from 0.
    """

    directory: RunDirectory
    project: str
    name: str
    group: str | None
    tags: tuple[str, ...]
    first_step: int
    first_update: int


TRACKERS: Registry[str] = Registry("tracker")
"""The package that each one needs."""
for _name in ("tensorboard", "wandb", "mlflow", "trackio"):
    TRACKERS.register(_name, _name)


class Trackers:
    """The run's own log, which must not fail, and the trackers beside it, which may.

    A tracker that raises (its server is gone, its disk is full) is told of once and left out from there on.

    Args:
        own: the JSON lines.
        others: by name, in the order in which they are told.
    """

    def __init__(self, own: Tracker, others: Mapping[str, Tracker]) -> None:
        self._own, self._others = own, dict(others)

    def add(self, name: str, tracker: Tracker) -> None:
        """Tells this one too."""
        self._others[name] = tracker

    def log_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Tells every tracker."""
        self._own.log_step(step, metrics)
        self._tell(lambda tracker: tracker.log_step(step, metrics))

    def log_update(self, step: int, iteration: int, mini_batch: int, metrics: Mapping[str, float]) -> None:
        """Tells every tracker."""
        self._own.log_update(step, iteration, mini_batch, metrics)
        self._tell(lambda tracker: tracker.log_update(step, iteration, mini_batch, metrics))

    def close(self, *, crashed: bool = False) -> None:
        """Closes every tracker, also when one of them fails."""
        try:
            self._tell(lambda tracker: tracker.close(crashed=crashed))
        finally:
            self._own.close(crashed=crashed)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A run that its own limits stop has ended as declared.
        self.close(crashed=error is not None and not isinstance(error, WatchStop))

    def _tell(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._others.items()):
            try:
                call(tracker)
            except Exception as error:
                del self._others[name]
                logger.warning(
                    "the tracker '%s' failed and gets nothing from here on; metrics.jsonl has everything (%s: %s)",
                    name,
                    type(error).__name__,
                    error,
                )


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


def open_trackers(run: RunDirectory, trainer: TrainerConfig, *, resumed_step: int | None = None) -> Trackers:
    """The JSON lines and the trackers asked for, ready for the next step of a run.

    Args:
        run: started, so that its logs end at ``resumed_step`` and its config is written.
        trainer: names the trackers, and what they call the run.
        resumed_step: the step that the run goes on from.

    Raises:
        ConfigError: a tracker that is unknown, whose package is not installed, or that cannot be reached.
    """
    names = list(dict.fromkeys(trainer.trackers))
    problems = check_trackers(names)
    if problems:
        raise ConfigError(problems)
    tracked = TrackedRun(
        directory=run,
        project=trainer.project,
        name=trainer.run_name or run.path.resolve().name,
        group=trainer.run_group,
        tags=tuple(trainer.tags),
        first_step=0 if resumed_step is None else resumed_step + 1,
        first_update=len(run.updates()),
    )
    trackers = Trackers(JsonlTracker(run.metrics_file, run.updates_file), {})
    try:
        for name in names:
            trackers.add(name, _open(name, tracked))
    except BaseException:
        trackers.close(crashed=True)
        raise
    return trackers


def _open(name: str, run: TrackedRun) -> Tracker:
    module = importlib.import_module(f"{__name__}.{name}")
    try:
        return module.open_tracker(run)
    except Exception as error:  # each package has errors of its own: no key, no server, no store
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"trainer.trackers: '{name}' cannot begin the run ({type(error).__name__}: {reason}); {module.ADVICE}, or take "
            f"'{name}' out of the trackers"
        ) from error


def _is_installed(package: str) -> bool:
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None  # wandb's own output folder ./wandb has a spec without origin
