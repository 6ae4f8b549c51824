"""Metrics to Trackio."""

import math
from collections.abc import Mapping
from contextvars import Context
from importlib import import_module
from typing import Any

from trainer.tracking import TrackedRun

trackio: Any = import_module("trackio")  # to a type checker `import trackio` would be this very file

ADVICE = "see whether TRACKIO_DIR can be written, and TRACKIO_SPACE_ID or TRACKIO_SERVER_URL be reached"


class TrackioTracker:
    """Logs to Trackio's local database, or to the space or server that its environment variables name.

    A resumed run goes on in the run of the same name. Rollout steps keep their names, optimizer steps are
    ``updates/<name>`` and are counted over the whole run. Trackio knows no tags and no crash: tags go into the
    configuration, and a run that crashed ends with the metric ``crashed`` of 1. Values that are not finite are left out.

    Args:
        run: to track.
    """

    def __init__(self, run: TrackedRun) -> None:
        # trackio.init ends the run of the context that it is called in, which may be that of another lane.
        self._run = Context().run(
            trackio.init,
            run.project,
            name=run.name,
            group=run.group,
            config={**run.directory.config(), "tags": list(run.tags)},
            resume="allow" if run.first_step else "never",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        self._next_step, self._next_update = run.first_step, run.first_update

    def log_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs the metrics of a rollout step."""
        self._run.log(_finite(metrics), step=step)
        self._next_step = step + 1

    def log_update(self, step: int, iteration: int, mini_batch: int, metrics: Mapping[str, float]) -> None:
        """Logs the metrics of an optimizer step."""
        named = {f"updates/{name}": value for name, value in metrics.items()}
        self._run.log(_finite(named), step=self._next_update)
        self._next_update += 1

    def close(self, *, crashed: bool = False) -> None:
        """Writes the rest and finishes the run."""
        if crashed:
            self._run.log({"crashed": 1.0}, step=self._next_step)
        self._run.finish()


def open_tracker(run: TrackedRun) -> TrackioTracker:
    """Trackio for the next step of a run."""
    return TrackioTracker(run)


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if math.isfinite(value)}
