"""Metrics as TensorBoard events in the run directory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch.utils.tensorboard import SummaryWriter

from trainer.tracking import TrackedRun

ADVICE = "see whether trainer.run_dir can be written"


class TensorBoardTracker:
    """Writes TensorBoard events: rollout steps under ``steps/``, optimizer steps under ``updates/``.

    The two have different horizontal axes, so they are two TensorBoard runs. Events of steps that a resume repeats
    are purged from view. The configuration is the text ``config`` of the rollout steps; a run that crashed has a text
    ``end``.

    Args:
        directory: holds both.
        config: the resolved settings.
        first_step: the first rollout step to come.
        first_update: index of the first optimizer step to come, counted over the whole run from 0.
    """

    def __init__(
        self, directory: Path, *, config: Mapping[str, Any], first_step: int = 0, first_update: int = 0
    ) -> None:
        self._steps = SummaryWriter(str(directory / "steps"), purge_step=first_step)
        self._updates = SummaryWriter(str(directory / "updates"), purge_step=first_update)
        self._next_step, self._next_update = first_step, first_update
        # TensorBoard shows texts as Markdown, where four spaces keep lines as they are.
        lines = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True).splitlines()
        self._steps.add_text("config", "\n".join(f"    {line}" for line in lines), first_step)

    def log_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a scalar a metric at the rollout step."""
        for name, value in metrics.items():
            self._steps.add_scalar(name, value, step)
        self._steps.flush()
        self._next_step = step + 1

    def log_update(self, step: int, iteration: int, mini_batch: int, metrics: Mapping[str, float]) -> None:
        """Adds a scalar a metric at the running index of the optimizer step."""
        for name, value in metrics.items():
            self._updates.add_scalar(name, value, self._next_update)
        self._next_update += 1

    def close(self, *, crashed: bool = False) -> None:
        """Flushes and closes the event files."""
        if crashed:
            self._steps.add_text("end", "crashed", self._next_step)
        self._steps.close()
        self._updates.close()


def open_tracker(run: TrackedRun) -> TensorBoardTracker:
    """TensorBoard for the next step of a run."""
    return TensorBoardTracker(
        run.directory.tensorboard,
        config=run.directory.config(),
        first_step=run.first_step,
        first_update=run.first_update,
    )
