"""A study file: which runs, over which settings. What is wrong with the file itself is found here."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cfpo_hybrid.errors import ConfigError
from trainer.config import Config
from trainer.config.merge import as_written, is_text, merge, setting_types
from trainer.config.problem import one_of
from trainer.config.schema import flat
from trainer.config.sources import Source, read_overrides, read_recipe
from trainer.study.study import Cell, agrees, cells_of

MODES = ("iso_sample", "iso_compute")
"""Equal numbers of rollout steps, or of passes of a sample through the update."""

OWNED_KEYS = {
    "trainer.seed": "list them as seeds",
    "trainer.run_dir": "name the folder of all runs as output",
    "trainer.resume": "a study resumes by itself",
}
"""Settings of a run that the study sets, and what to do instead."""

SHARED_KEYS = ("trainer.ray_address", "trainer.device")
"""Settings that all runs of a study have in common, since they share one Ray."""

PREFIX = "study."
"""Of words on the command line that set a key of the study itself, e.g. ``study.parallel=1``."""


@dataclass(frozen=True)
class StudyKeys:
    """The keys of a study file."""

    recipe: str = "???"
    """The recipe that every run starts from."""
    output: str = "???"
    """Folder of the study: study.json, and a run directory for each run."""
    mode: str = "iso_sample"
    """"iso_sample": every run makes trainer.total_steps rollout steps. "iso_compute": every run makes as many passes over
    samples as trainer.total_steps steps of one iteration, so a run of k iterations makes a k-th of the steps."""
    seeds: list[int] = field(default_factory=lambda: [1])
    """Each cell runs once with each."""
    parallel: int = 1
    """Most runs side by side, each with workers of its own."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Over the recipe's, for every run."""
    axes: dict[str, Any] = field(default_factory=dict)
    """The values of each key of the grid."""
    cells: list[Any] = field(default_factory=list)
    """Settings of some cells: ``when`` names values of axes, ``set`` the settings."""


NESTED = ("settings", "axes", "cells")
"""Keys whose values are checked here, since their inner keys are those of a recipe."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyFile:
    """A study file that makes sense by itself.

    Args:
        keys: as they are written.
        name: of the file, for messages.
        folder: of the file.
        settings: for every run, over the recipe's: the file's, then those of the command line.
        texts: how scalars under ``axes`` and ``cells`` were written, by dotted key.
    """

    keys: StudyKeys
    name: str
    folder: Path
    settings: tuple[Source, ...]
    texts: Mapping[str, str]

    @property
    def axes(self) -> dict[str, list[Any]]:
        """The values of each key of the grid."""
        return self.keys.axes

    @property
    def output(self) -> Path:
        """Folder of the study."""
        return Path(self.keys.output)

    def sources_of(self, cell: Cell) -> list[Source]:
        """The settings of a cell over those of the recipe, in the order in which they count."""
        places = [f"axes.{key}.{self.axes[key].index(value)}" for key, value in cell.items()]
        texts = {
            f"{key}{name.removeprefix(place)}": text
            for key, place in zip(cell, places, strict=True)
            for name, text in self.texts.items()
            if name.startswith(f"{place}.")
        }
        of_axes = Source(tree=cell, name=f"{self.name} axes", texts=texts)
        everything = Source(tree={}, name=f"{self.name} cells", texts=self.texts)
        own = [
            everything.below(f"cells.{number}.set", entry["set"])
            for number, entry in enumerate(self.keys.cells)
            if agrees(cell, entry["when"])
        ]
        return [*self.settings, of_axes, *own]

    @property
    def recipe(self) -> Path:
        """The recipe: from the current folder, as all paths, or else from that of the study file."""
        here, beside = Path(self.keys.recipe), self.folder / self.keys.recipe
        return beside if beside.is_file() and not here.is_file() else here


def read_study_file(path: str | Path, overrides: Sequence[str] = ()) -> StudyFile:
    """The study of a file.

    Args:
        path: a YAML file.
        overrides: ``key=value`` words: settings of every run, or with ``study.`` before it a plain key of the file.

    Raises:
        ConfigError: every mistake at once. The settings of the runs are checked by ``plan_study``.
    """
    file = read_recipe(path, "study file")
    words, bad_words = read_overrides(overrides)
    of_study = [
        word.below(PREFIX.rstrip("."), {key.removeprefix(PREFIX): value})
        for word in words
        for key, value in word.tree.items()
        if key.startswith(PREFIX)
    ]
    of_runs = [word for word in words if not any(key.startswith(PREFIX) for key in word.tree)]
    draft = merge(StudyKeys, [_plain(source) for source in (file, *of_study)])
    written = {key: one for one in (file, *of_study) for key in NESTED if one.tree.get(key) is not None}
    texts = {name: text for key, one in written.items() for name, text in one.texts.items() if _is_below(name, key)}
    nested = _with_texts({key: one.tree[key] for key, one in written.items()}, texts)
    problems = bad_words + [problem.located(draft.origins) for problem in draft.problems]
    problems += [*_wrong_values(draft.value), *_wrong_shapes(nested)]
    if problems:
        raise ConfigError(problems)
    keys = replace(draft.value, **nested)
    settings = written.get("settings", file).below("settings", keys.settings)
    study = StudyFile(keys=keys, name=file.name, folder=Path(path).parent, settings=(settings, *of_runs), texts=texts)
    problems = [*_wrong_places(study), *_wrong_cells(study)]
    if problems:
        raise ConfigError(problems)
    return study


def _plain(source: Source) -> Source:
    return replace(source, tree={key: value for key, value in source.tree.items() if key not in NESTED})


def _is_below(name: str, key: str) -> bool:
    return name.startswith(f"{key}.")


def _with_texts(nested: dict[str, Any], texts: Mapping[str, str]) -> dict[str, Any]:
    """Values of axes, and those that cells name, are texts as they were written where the setting is a text."""
    kinds = setting_types(Config)

    def typed(values: Any, place: str) -> Any:
        if not isinstance(values, dict):
            return values
        found = dict(values)
        for key in [key for key in values if key in kinds and is_text(kinds[key])]:
            where = f"{place}.{key}"
            if isinstance(values[key], list):
                found[key] = [as_written(kinds[key], each, f"{where}.{i}", texts) for i, each in enumerate(values[key])]
            elif not isinstance(values[key], dict):
                found[key] = as_written(kinds[key], values[key], where, texts)
        return found

    result = dict(nested)
    if "axes" in nested:
        result["axes"] = typed(nested["axes"], "axes")
    if isinstance(nested.get("cells"), list):
        result["cells"] = [
            {**cell, "when": typed(cell.get("when"), f"cells.{number}.when")} if isinstance(cell, dict) else cell
            for number, cell in enumerate(nested["cells"])
        ]
    return result


def _wrong_values(keys: StudyKeys) -> Iterator[str]:
    """What is wrong with the values of the plain keys."""
    yield from (problem.message for problem in one_of("mode", keys.mode, MODES))
    if not keys.seeds or min(keys.seeds) < 0 or len(set(keys.seeds)) < len(keys.seeds):
        yield f"seeds={keys.seeds} must be different whole numbers of 0 or more, at least one of them"
    if keys.parallel < 1:
        yield f"parallel={keys.parallel} must be at least 1: the most runs that go on side by side"


def _wrong_shapes(nested: Mapping[str, Any]) -> Iterator[str]:
    """Whether the nested keys that are there are what they should be."""
    settings, axes, cells = nested.get("settings", {}), nested.get("axes", {}), nested.get("cells", [])
    if not isinstance(settings, dict):
        yield f"settings={settings!r} must be a mapping of recipe keys, e.g. 'actor.lr: 1e-6'"
    if not isinstance(axes, dict):
        yield f"axes={axes!r} must be a mapping of recipe keys to lists of values"
    for key, values in axes.items() if isinstance(axes, dict) else ():
        if not isinstance(values, list) or not values or any(value in values[:i] for i, value in enumerate(values)):
            yield f"axes: {key}={values!r} must be a list of different values, e.g. 'algorithm.iterations: [1, 4]'"
    if not isinstance(cells, list):
        yield f"cells={cells!r} must be a list of entries with 'when' and 'set'"
    for cell in cells if isinstance(cells, list) else ():
        if not (
            isinstance(cell, dict)
            and cell.keys() == {"when", "set"}
            and all(isinstance(value, dict) for value in cell.values())
        ):
            yield f"cells: {cell!r} must have two mappings, 'when' (values of axes) and 'set' (recipe keys)"


def _wrong_places(study: StudyFile) -> Iterator[str]:
    """Settings that stand where they cannot take effect."""
    settings = [key for source in study.settings for key in flat(source.tree)]
    own = [key for entry in study.keys.cells for key in flat(entry["set"])]
    for key in dict.fromkeys(key for key in [*settings, *study.axes, *own] if key in OWNED_KEYS):
        yield f"{key} is set by the study; {OWNED_KEYS[key]}"
    for key in dict.fromkeys(key for key in [*study.axes, *own] if key in SHARED_KEYS):
        yield f"{key} is the same for all runs of a study, which share one Ray; write it under settings"
    for key in dict.fromkeys(key for key in settings + own if key in study.axes):
        yield f"{key} is an axis of the study, so nothing else can set it; change the axis in {study.name}"


def _wrong_cells(study: StudyFile) -> Iterator[str]:
    """Entries of ``cells`` that are about no cell."""
    cells = cells_of(study.axes)
    for when in (entry["when"] for entry in study.keys.cells):
        unknown = [key for key in when if key not in study.axes]
        if unknown:
            yield f"cells: 'when' names {', '.join(unknown)}, no axis; axes: {', '.join(study.axes) or 'none'}"
        elif not any(agrees(cell, when) for cell in cells):
            yield f"cells: no cell has {when}; the axes have { {key: study.axes[key] for key in when} }"
