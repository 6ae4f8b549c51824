"""Metrics to MLflow."""

import re
import time
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from trainer.config.schema import flat
from trainer.tracking import TrackedRun

mlflow: Any = import_module("mlflow")  # to a type checker `import mlflow` would be this very file
entities: Any = import_module("mlflow.entities")

ADVICE = "set MLFLOW_TRACKING_URI to a server or database that answers, e.g. sqlite:///mlflow.db"

MOST_METRICS, MOST_PARAMETERS = 1000, 100
"""Most that MLflow takes in one call."""
LONGEST_PARAMETER = 500
"""Characters; longer values are cut, since older servers refuse them."""
_NOT_IN_NAMES = re.compile(r"[^/\w.\- ]")


class MlflowTracker:
    """Logs to the server that MLFLOW_TRACKING_URI names; a resumed run goes on in the same MLflow run.

    ``trainer.project`` is the experiment. Rollout steps keep their names, optimizer steps are ``updates/<name>`` and are
    counted over the whole run. Characters that MLflow refuses in names become ``_``: ``pass@4`` is ``pass_4``.

    Args:
        run: whose directory keeps the id of the MLflow run.
    """

    def __init__(self, run: TrackedRun) -> None:
        self._client = mlflow.MlflowClient()  # the module's own functions share one current run
        self._next_update = run.first_update
        self._waiting: list[Any] = []
        id_file = run.directory.path / "mlflow_id.txt"
        if id_file.exists():
            self._id = id_file.read_text(encoding="utf-8").strip()
            self._client.update_run(self._id, status="RUNNING")
        else:
            experiment = self._client.get_experiment_by_name(run.project)
            experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(run.project)
            tags = {**({"group": run.group} if run.group else {}), **dict.fromkeys(run.tags, "true")}
            self._id = self._client.create_run(experiment_id, run_name=run.name, tags=tags).info.run_id
            id_file.write_text(self._id, encoding="utf-8")
        self._send_config(run.directory.config())

    def log_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Sends the metrics of a rollout step and of its optimizer steps."""
        self._add(metrics, step)
        waiting, self._waiting = self._waiting, []
        for start in range(0, len(waiting), MOST_METRICS):
            self._client.log_batch(self._id, metrics=waiting[start : start + MOST_METRICS])

    def log_update(self, step: int, iteration: int, mini_batch: int, metrics: Mapping[str, float]) -> None:
        """Keeps the metrics of an optimizer step until its rollout step is over."""
        self._add({f"updates/{name}": value for name, value in metrics.items()}, self._next_update)
        self._next_update += 1

    def close(self, *, crashed: bool = False) -> None:
        """Ends the MLflow run, as failed where it did."""
        self._client.set_terminated(self._id, "FAILED" if crashed else "FINISHED")

    def _add(self, metrics: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        self._waiting += [
            entities.Metric(_NOT_IN_NAMES.sub("_", name), value, now, step) for name, value in metrics.items()
        ]

    def _send_config(self, config: Mapping[str, Any]) -> None:
        """The settings that MLflow does not have yet; it never changes one, so a resume's other values stay out."""
        there = self._client.get_run(self._id).data.params
        wanted = {_NOT_IN_NAMES.sub("_", key): str(value)[:LONGEST_PARAMETER] for key, value in flat(config).items()}
        new = [entities.Param(key, value) for key, value in wanted.items() if key not in there]
        for start in range(0, len(new), MOST_PARAMETERS):
            self._client.log_batch(self._id, params=new[start : start + MOST_PARAMETERS])


def open_tracker(run: TrackedRun) -> MlflowTracker:
    """MLflow for the next step of a run."""
    return MlflowTracker(run)
