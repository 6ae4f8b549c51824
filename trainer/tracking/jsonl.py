"""Metrics as JSON lines in the run directory; every run has them."""

import os
from collections.abc import Mapping
from pathlib import Path

from trainer.run.files import json_line


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

    def close(self, *, crashed: bool = False) -> None:
        """Closes both files, which say nothing of how the run ended."""
        self._metrics.close()
        self._updates.close()
