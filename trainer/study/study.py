"""A study: its axes and their cells, its runs, and what is known of them; to ``study.json`` and back with the runs' logs.

    study.json     {"recipe": path, "mode": name, "axes": {key: [values]}, "seeds": [...],
                    "runs": [{"name": ..., "cell": {key: value}, "seed": 1, "path": "runs/..."}]}
    <run's path>/  a run directory

Run directories may be unfinished or absent; docs/run_directory.md says what is in them.
"""

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from cfpo_hybrid.errors import DataError
from trainer.config.schema import flat
from trainer.run.directory import RunDirectory
from trainer.run.files import read_jsonl, write_atomically

STUDY_FILE = "study.json"
OPTIMIZER_STEPS = "optimizer_steps"
"""Of a record: optimizer steps taken by the end of this rollout step."""

Cell = Mapping[str, Any]
"""The value of each axis, e.g. ``{"policy_loss.name": "clip", "algorithm.iterations": 4}``."""

Record = Mapping[str, float]
Lines = Sequence[Mapping[str, Any]]
Kind = TypeVar("Kind")


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyRun:
    """One run of a study.

    Args:
        name: of the run.
        cell: the value of each axis.
        seed: pairs it with the runs of other cells.
        path: of its run directory, within that of the study.
        records: numbers by rollout step, in order; those that only the updates say are averaged over them.
        planned_steps: rollout steps that its settings ask for; None when it has not started.
        settings: of the run by dotted key, empty when it has not started.
        starts: the lines of ``starts.jsonl``: date, command and versions each time it was started.
        policy_loss: that section of its settings, likewise.
    """

    name: str
    cell: Cell
    seed: int
    path: str
    records: Mapping[int, Record] = field(default_factory=dict)
    planned_steps: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    starts: Sequence[Mapping[str, Any]] = field(default_factory=list)
    policy_loss: Mapping[str, Any] = field(default_factory=dict)

    @property
    def last_step(self) -> int:
        """The last rollout step that was logged, 0 before the first."""
        return max(self.records, default=0)

    @property
    def finished(self) -> bool:
        """Whether the last planned step was logged."""
        return self.planned_steps is not None and self.last_step >= self.planned_steps

    def values(self, metric: str) -> dict[int, float]:
        """A metric by rollout step, where it is known."""
        return {step: record[metric] for step, record in self.records.items() if metric in record}


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """A study as far as it has got.

    Args:
        path: of the directory.
        recipe: that all runs start from.
        mode: e.g. ``iso_sample`` or ``iso_compute``.
        axes: what is varied, a dotted key and its values each.
        seeds: of every cell.
        runs: all that are planned.
    """

    path: Path
    recipe: str
    mode: str
    axes: Mapping[str, Sequence[Any]]
    seeds: Sequence[int]
    runs: Sequence[StudyRun]

    @property
    def iso_compute(self) -> bool:
        """Whether the runs are made equal in optimizer steps rather than in samples."""
        return self.mode.replace("-", "_") == "iso_compute"

    @property
    def metrics(self) -> list[str]:
        """The names of all metrics that some run has logged, each once."""
        return list({name: None for run in self.runs for record in run.records.values() for name in record})

    def runs_of(self, cell: Cell) -> list[StudyRun]:
        """Runs that have these values; axes that ``cell`` leaves out may have any."""
        return [run for run in self.runs if all(run.cell[key] == value for key, value in cell.items())]

    def gaps(self) -> list[str]:
        """What is missing, a line a run."""
        lines = []
        for run in self.runs:
            if not run.records:
                lines.append(f"{run.name}: not started" if run.planned_steps is None else f"{run.name}: no step yet")
            elif not run.finished:
                lines.append(f"{run.name}: ends at step {run.last_step} of {run.planned_steps}")
        return lines


def is_study(directory: Path) -> bool:
    """Whether a directory holds a study rather than a run."""
    return (directory / STUDY_FILE).is_file()


def write_study(study: Study) -> None:
    """Writes ``study.json``; what is known of the runs stands in their own directories."""
    runs = [{"name": run.name, "cell": run.cell, "seed": run.seed, "path": run.path} for run in study.runs]
    content = {"recipe": study.recipe, "mode": study.mode, "axes": study.axes, "seeds": study.seeds, "runs": runs}
    study.path.mkdir(parents=True, exist_ok=True)
    write_atomically(study.path / STUDY_FILE, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_study(directory: Path) -> Study:
    """Reads ``study.json`` and the logs of every run.

    Raises:
        DataError: study.json or a log is malformed.
    """
    file = directory / STUDY_FILE
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"'{directory}' is no study directory: it has no {STUDY_FILE}") from None
    except ValueError as error:
        raise DataError(f"{file} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise DataError(f"{file} holds a {type(content).__name__}, not an object")
    axes = _entry(content, "axes", dict, file)
    for key, values in axes.items():
        if not isinstance(values, list) or not values:
            raise DataError(f"{file}: the axis '{key}' is {values!r}; it must be a list of one value at least")
    return Study(
        path=directory,
        recipe=str(content.get("recipe", "")),
        mode=str(content.get("mode", "iso_sample")),
        axes=axes,
        seeds=list(content.get("seeds", [])),
        runs=[_read_run(directory, entry, axes, file) for entry in _entry(content, "runs", list, file)],
    )


def cells_of(axes: Mapping[str, Sequence[Any]], keys: Iterable[str] | None = None) -> list[dict[str, Any]]:
    """Every combination of the values of these axes, by default of all, the last running fastest.

    Without an axis there is one empty cell.
    """
    chosen = list(axes if keys is None else keys)
    return [dict(zip(chosen, values, strict=True)) for values in itertools.product(*(axes[key] for key in chosen))]


def agrees(cell: Cell, when: Cell) -> bool:
    """Whether a cell has these values; a list stands for any of its members.

    Example: ``{"policy_loss.name": ["clip", "dual_clip"]}`` agrees with every cell of either loss.
    """
    return all(cell[key] in (value if isinstance(value, list) else [value]) for key, value in when.items())


def run_name(cell: Cell, seed: int) -> str:
    """Of a run and its folder, e.g. ``clip-iterations4-seed1``."""
    return f"{cell_name(cell)}-seed{seed}" if cell else f"seed{seed}"


def cell_name(cell: Cell) -> str:
    """In names of runs and in messages, e.g. ``clip-iterations4``; empty where there are no axes."""
    return "-".join(_name_part(key, value) for key, value in cell.items())


def cell_label(cell: Cell) -> str:
    """All values of a cell for people, e.g. ``cfpo, iterations 4``."""
    return ", ".join(value_label(key, value) for key, value in cell.items())


def value_label(key: str, value: Any) -> str:
    """A value for people: ``cfpo``, ``iterations 4``, ``epsilon 0.1``."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        named = [f"{inner}={setting}" for inner, setting in value.items() if inner != "name"]
        return " ".join([str(value.get("name", short_name(key))), *named])
    shown = f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else json.dumps(value)
    return f"{short_name(key)} {shown}"


def short_name(key: str) -> str:
    """The last part of a dotted key; the loss's name is no telling one."""
    return "loss" if key == "policy_loss.name" else key.rpartition(".")[2]


def _name_part(key: str, value: Any) -> str:
    """A text speaks for itself; anything else follows the name of its key."""
    text = value if isinstance(value, str) else key.rpartition(".")[2] + json.dumps(value)
    return re.sub(r"[^\w.+-]+", "_", text).strip("_")


def _read_run(directory: Path, entry: Any, axes: Mapping[str, Any], file: Path) -> StudyRun:
    if not isinstance(entry, dict):
        raise DataError(f"{file}: the run {entry!r} is no object; it needs name, cell, seed and path")
    name, cell = _entry(entry, "name", str, file), _entry(entry, "cell", dict, file)
    lacking = [key for key in axes if key not in cell]
    if lacking:
        raise DataError(f"{file}: the cell of run '{name}' has no value for {', '.join(lacking)}")
    path = _entry(entry, "path", str, file)
    run = RunDirectory(directory / path)
    settings = run.config()
    return StudyRun(
        name=name,
        cell=cell,
        seed=_entry(entry, "seed", int, file),
        path=path,
        records=_records(run.metrics(), run.updates()),
        planned_steps=settings.get("trainer", {}).get("total_steps"),
        settings=flat(settings),
        starts=read_jsonl(run.starts_file),
        policy_loss=settings.get("policy_loss", {}),
    )


def _entry(content: Mapping[str, Any], key: str, kind: type[Kind], file: Path) -> Kind:
    value = content.get(key)
    if not isinstance(value, kind):
        raise DataError(f"{file}: '{key}' is {value!r}; it must be of type {kind.__name__}")
    return value


def _records(metrics: Lines, updates: Lines) -> dict[int, Record]:
    """The numbers of each logged step; its own line goes before the mean over its updates."""
    of_step: dict[int, list[Mapping[str, Any]]] = {}
    for update in updates:
        of_step.setdefault(update["step"], []).append(update)
    records: dict[int, Record] = {}
    taken = 0
    for line in sorted(metrics, key=lambda line: line["step"]):
        step = line["step"]
        taken += len(of_step.get(step, ()))
        records[step] = _means(of_step.get(step, ())) | _numbers(line) | {OPTIMIZER_STEPS: float(taken)}
    return records


def _means(lines: Lines) -> dict[str, float]:
    gathered: dict[str, list[float]] = {}
    for line in lines:
        for name, value in _numbers(line).items():
            gathered.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in gathered.items()}


def _numbers(line: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in line.items() if isinstance(value, int | float)}
