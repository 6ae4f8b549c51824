"""Metrics to Weights & Biases."""

import uuid
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from trainer.tracking import TrackedRun

wandb: Any = import_module("wandb")  # to a type checker `import wandb` would be this very file


class WandbTracker:
    """Logs to Weights & Biases; a resumed run goes on in the same wandb run.

    Rollout steps keep their names over the axis ``step``; optimizer steps are ``updates/<name>`` over ``update``.
    Nothing can be taken back there: steps that a resume repeats appear twice.

    Args:
        directory: the run directory; keeps wandb's files and the id of the run.
        project: wandb's project.
        config: the resolved settings.
        first_update: index of the first optimizer step to come.
    """

    def __init__(self, directory: Path, *, project: str, config: Mapping[str, Any], first_update: int = 0) -> None:
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


def open_tracker(run: TrackedRun) -> WandbTracker:
    """wandb for the next step of a run."""
    directory = run.directory
    return WandbTracker(directory.path, project=run.project, config=directory.config(), first_update=run.first_update)
