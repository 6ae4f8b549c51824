"""Trackers: where the metrics of steps and updates go: JSON lines always, TensorBoard and wandb when asked for."""

import importlib
import importlib.util
import os
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from torch.utils.tensorboard import SummaryWriter

from cfpo_hybrid.errors import ConfigError
from cfpo_hybrid.registry import nearest_name
from trainer.run.directory import RunDirectory
from trainer.run.files import json_line

TRACKERS = ("tensorboard", "wandb")
"""Trackers that a run may ask for beside the JSON lines, which it always has."""


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


class JsonlTracker:
    """Appends to ``metrics.jsonl`` and ``updates.jsonl``; a step is on the disk when ``log_step`` returns.

    Args:
        metrics_file: gets a line a rollout step.
        updates_file: gets a line an optimizer step.
    """

    def __init__(self, metrics_file: Path, updates_file: Path) -> None:
        self._metrics = metrics_file.open("a", encoding="utf-8", buffering=1)
        self._updates = updates_file.open("a", encoding="utf-8", buffering=1)

    def log_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes ``{"step": step, **metrics}``."""
        self._metrics.write(json_line({"step": step, **metrics}))
        for file in (self._updates, self._metrics):  # a checkpoint written next must not be newer than the logs
            os.fsync(file.fileno())

    def log_update(self, step: int, iteration: int, mini_batch: int, metrics: Mapping[str, float]) -> None:
        """Writes ``{"step": ..., "iteration": ..., "mini_batch": ..., **metrics}``."""
        self._updates.write(
            json_line({"step": step, "iteration": iteration, "mini_batch": mini_batch, **metrics}),
        )

    def close(self) -> None:
        """Closes both files."""
        self._metrics.close()
        self._updates.close()


class TensorBoardTracker:
    """Writes TensorBoard events: rollout steps under ``steps/``, optimizer steps under ``updates/``.

    The two have different horizontal axes, so they are two TensorBoard runs. Events of steps that a resume repeats
    are purged from view.

    Args:
        directory: holds both.
        first_step: the first rollout step to come.
        first_update: index of the first optimizer step to come, counted over the whole run from 0.
    """

    def __init__(self, directory: Path, *, first_step: int = 0, first_update: int = 0) -> None:
        self._steps = SummaryWriter(str(directory / "steps"), purge_step=first_step)
        self._updates = SummaryWriter(str(directory / "updates"), purge_step=first_update)
        self._next_update = first_update

    def log_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a scalar a metric at the rollout step."""
        for name, value in metrics.items():
            self._steps.add_scalar(name, value, step)
        self._steps.flush()

    def log_update(self, step: int, iteration: int, mini_batch: int, metrics: Mapping[str, float]) -> None:
        """Adds a scalar a metric at the running index of the optimizer step."""
        for name, value in metrics.items():
            self._updates.add_scalar(name, value, self._next_update)
        self._next_update += 1

    def close(self) -> None:
        """Flushes and closes the event files."""
        self._steps.close()
        self._updates.close()


class WandbTracker:
    """Logs to Weights & Biases; a resumed run goes on in the same wandb run.

    Rollout steps keep their names over the axis ``step``; optimizer steps are ``updates/<name>`` over ``update``.
    Nothing can be taken back there: steps that a resume repeats appear twice.

    Args:
        directory: the run directory; keeps wandb's files and the id of the run.
        project: wandb's project.
        config: the resolved settings.
        first_update: index of the first optimizer step to come.

    Raises:
        ConfigError: wandb is not installed.
    """

    def __init__(self, directory: Path, *, project: str, config: Mapping[str, Any], first_update: int = 0) -> None:
        wandb = _import_wandb()
        id_file = directory / "wandb_id.txt"
        if not id_file.exists():
            id_file.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
        self._run = wandb.init(
            project=project,
            name=directory.name,
            dir=str(directory),
            id=id_file.read_text(encoding="utf-8").strip(),
            resume="allow",
            config=dict(config),
        )
        self._run.define_metric("*", step_metric="step")
        self._run.define_metric("updates/*", step_metric="update")
        self._next_update = first_update

    def log_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs the metrics of a rollout step."""
        self._run.log({**metrics, "step": step})

    def log_update(self, step: int, iteration: int, mini_batch: int, metrics: Mapping[str, float]) -> None:
        """Logs the metrics of an optimizer step."""
        self._run.log({**{f"updates/{name}": value for name, value in metrics.items()}, "update": self._next_update})
        self._next_update += 1

    def close(self) -> None:
        """Uploads the rest and finishes the wandb run."""
        self._run.finish()


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
        if name not in TRACKERS:
            nearest = nearest_name(name, TRACKERS)
            hint = f"; did you mean '{nearest}'?" if nearest else ""
            problems.append(f"unknown tracker '{name}'; known: {', '.join(TRACKERS)}{hint}")
        elif name == "wandb" and not _is_installed(name):
            problems.append(_NO_WANDB)
    return problems


def open_trackers(
    run: RunDirectory, names: Sequence[str], *, resumed_step: int | None = None, project: str = "cfpo_hybrid"
) -> Trackers:
    """The JSON lines and the trackers asked for, ready for the next step of a run.

    Args:
        run: started, so that its logs end at ``resumed_step`` and its config is written.
        names: of ``TRACKERS``.
        resumed_step: the step that the run goes on from.
        project: project name for wandb.

    Raises:
        ConfigError: an unknown tracker, or wandb is asked for and not installed.
    """
    problems = check_trackers(names)
    if problems:
        raise ConfigError(problems)
    first_step = 0 if resumed_step is None else resumed_step + 1
    first_update = len(run.updates())
    trackers: list[Tracker] = [JsonlTracker(run.metrics_file, run.updates_file)]
    if "tensorboard" in names:
        trackers.append(TensorBoardTracker(run.tensorboard, first_step=first_step, first_update=first_update))
    if "wandb" in names:
        trackers.append(WandbTracker(run.path, project=project, config=run.config(), first_update=first_update))
    return Trackers(trackers)


_NO_WANDB = (
    "the tracker 'wandb' is asked for, but the package wandb is not installed; "
    "install it with 'pip install wandb' or take 'wandb' out of the trackers"
)


def _is_installed(package: str) -> bool:
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None  # wandb's own output folder ./wandb has a spec without origin


def _import_wandb() -> Any:
    try:
        return importlib.import_module("wandb")
    except ImportError as error:
        raise ConfigError(_NO_WANDB) from error
