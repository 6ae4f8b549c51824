"""What a study writes beside the files of its runs.

study.json               which runs there are: the axes, the seeds, and of each run its cell and folder
runs/NAME/done.json      the run is done
runs/NAME/failed.json    its last attempt failed, and how
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trainer.run.files import write_atomically
from trainer.study.plan import RUNS, PlannedRun
from trainer.study.study_file import Study

STUDY_FILE, DONE_FILE, FAILED_FILE = "study.json", "done.json", "failed.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How an attempt at a run ended.

    Args:
        seconds: of all of it.
        start_seconds: of these, before the first rollout step: data, engines, weights and the first reshard; None
            when it did not come that far.
        reused_engines: the engines were up already.
        error: what ended it; None when it is done.
        stopped: the limit of its own watch that ended it, and so it is done; None when it made all its steps.
    """

    seconds: float
    start_seconds: float | None
    reused_engines: bool
    error: str | None = None
    stopped: str | None = None


def write_study(study: Study, runs: Sequence[PlannedRun]) -> None:
    """Writes ``study.json``."""
    content = {
        "recipe": study.keys.recipe,
        "mode": study.keys.mode,
        "axes": study.axes,
        "seeds": study.keys.seeds,
        "runs": [
            {"name": run.name, "cell": run.cell.values, "seed": run.seed, "path": f"{RUNS}/{run.name}"} for run in runs
        ],
    }
    study.output.mkdir(parents=True, exist_ok=True)
    write_atomically(study.output / STUDY_FILE, _text(content))


def is_done(run: PlannedRun) -> bool:
    """Whether the run needs no further attempt."""
    return (run.directory.path / DONE_FILE).is_file()


def record(run: PlannedRun, outcome: Outcome) -> None:
    """Marks the run as done or failed."""
    folder = run.directory.path
    folder.mkdir(parents=True, exist_ok=True)
    name = DONE_FILE if outcome.error is None else FAILED_FILE
    write_atomically(folder / name, _text(asdict(outcome)))
    if outcome.error is None:
        (folder / FAILED_FILE).unlink(missing_ok=True)


def _text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
