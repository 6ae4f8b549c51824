"""Metrics to Weights & Biases."""

import uuid
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from trainer.tracking import TrackedRun

wandb: Any = import_module("wandb")  # to a type checker `import wandb` would be this very file

ADVICE = "log in with `wandb login`, or set WANDB_MODE=offline"


class WandbTracker:
    """Logs to Weights & Biases; a resumed run goes on in the same wandb run.

    Rollout steps keep their names over the axis ``step``; optimizer steps are ``updates/<name>`` over ``update``.
    Nothing can be taken back there: steps that a resume repeats appear twice.

    Args:
        run: whose directory keeps wandb's files and the id of the wandb run.
    """

    def __init__(self, run: TrackedRun) -> None:
        directory = run.directory.path
        id_file = directory / "wandb_id.txt"
        if not id_file.exists():
            id_file.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
        self._run = wandb.init(
            project=run.project,
            name=run.name,
            group=run.group,
            tags=run.tags,
            dir=str(directory),
            id=id_file.read_text(encoding="utf-8").strip(),
            resume="allow",
            config=run.directory.config(),
            reinit="create_new",  # a run of its own beside those of other lanes; the default ends them
            settings=wandb.Settings(console="off", quiet=True),  # the terminal belongs to all lanes
        )
        for names, axis in (("*", "step"), ("updates/*", "update")):
            # step_sync would give an optimizer step the rollout step of the last line, too.
            self._run.define_metric(names, step_metric=axis, step_sync=False)
        self._next_update = run.first_update

    def log_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs the metrics of a rollout step."""
        self._run.log({**metrics, "step": step})

    def log_update(self, step: int, iteration: int, mini_batch: int, metrics: Mapping[str, float]) -> None:
        """Logs the metrics of an optimizer step."""
        self._run.log({**{f"updates/{name}": value for name, value in metrics.items()}, "update": self._next_update})
        self._next_update += 1

    def close(self, *, crashed: bool = False) -> None:
        """Uploads the rest and finishes the wandb run, as crashed where it did."""
        self._run.finish(exit_code=1 if crashed else 0)


def open_tracker(run: TrackedRun) -> WandbTracker:
    """wandb for the next step of a run."""
    return WandbTracker(run)
