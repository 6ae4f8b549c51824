"""From a study file to its runs, each with a checked configuration: every mistake of every cell in one report.

Beside its other results a run's folder gets ``done.json`` once it is done, and ``failed.json`` while its last attempt failed.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from cfpo_hybrid.errors import ConfigError
from trainer.config import Config, resolved
from trainer.config.sources import read_recipe
from trainer.rules import load_sources
from trainer.run.directory import SAME_RESULTS, RunDirectory
from trainer.run.files import write_atomically
from trainer.study.study import Cell, Study, StudyRun, cell_name, cells_of, run_name
from trainer.study.study_file import StudyFile

RUNS = "runs"
"""Folder of the run directories, within that of the study."""
DONE_FILE, FAILED_FILE = "done.json", "failed.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
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


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedRun:
    """One run of a study.

    Args:
        name: e.g. ``clip-iterations4-seed1``; also of its folder.
        cell: of the grid.
        seed: the same for a run of every cell: so are the order of prompts and the seeds of sampling.
        config: checked.
    """

    name: str
    cell: Cell
    seed: int
    config: Config

    @property
    def directory(self) -> RunDirectory:
        """Where its results go."""
        return RunDirectory(self.config.trainer.run_dir)

    @property
    def work(self) -> int:
        """What the run costs beside others: generation and each pass over a rollout cost about the same."""
        return self.config.trainer.total_steps * (1 + self.config.algorithm.iterations)

    @property
    def is_done(self) -> bool:
        """Whether it needs no further attempt."""
        return (self.directory.path / DONE_FILE).is_file()

    def record(self, attempt: Attempt) -> None:
        """Marks it as done or failed."""
        folder = self.directory.path
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / (DONE_FILE if attempt.error is None else FAILED_FILE)
        write_atomically(file, json.dumps(asdict(attempt), indent=2, ensure_ascii=False) + "\n")
        if attempt.error is None:
            (folder / FAILED_FILE).unlink(missing_ok=True)


def plan_study(file: StudyFile) -> list[PlannedRun]:
    """The runs, first all cells with the first seed, then all with the next.

    Raises:
        ConfigError: every mistake at once, with the cells that it is about; results of other settings in their folders.
    """
    cells = cells_of(file.axes)
    recipe = read_recipe(file.keys.recipe)
    configs: list[Config] = []
    problems: list[tuple[str, Cell]] = []
    for cell in cells:
        try:
            configs.append(_of_mode(load_sources([recipe, *file.sources_of(cell)]), file.keys.mode))
        except ConfigError as error:
            problems += [(problem, cell) for problem in error.problems]
    if problems:
        raise ConfigError(_by_problem(problems, len(cells)))
    runs = [
        _planned(file, cell, seed, config)
        for seed in file.keys.seeds
        for cell, config in zip(cells, configs, strict=True)
    ]
    wrong = [*_doubled_names(runs), *_foreign_results(runs)]
    if wrong:
        raise ConfigError(wrong)
    return runs


def new_study(file: StudyFile, runs: Sequence[PlannedRun]) -> Study:
    """The study of these runs before any of them has started."""
    return Study(
        path=file.output,
        recipe=file.keys.recipe,
        mode=file.keys.mode,
        axes=file.axes,
        seeds=file.keys.seeds,
        runs=[StudyRun(name=run.name, cell=run.cell, seed=run.seed, path=f"{RUNS}/{run.name}") for run in runs],
    )


def longest_first(runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Of each seed the longest run first: of runs side by side, the last one then has least to do alone."""
    seeds = list(dict.fromkeys(run.seed for run in runs))
    return sorted(runs, key=lambda run: (seeds.index(run.seed), -run.work))


def _of_mode(config: Config, mode: str) -> Config:
    """With the rollout steps that the mode gives a run."""
    steps, iterations = config.trainer.total_steps, config.algorithm.iterations
    if mode == "iso_sample":
        return config
    if steps % iterations:
        raise ConfigError(
            f"trainer.total_steps={steps} is no multiple of algorithm.iterations={iterations}: with mode iso_compute a run "
            f"makes total_steps / iterations rollout steps; take a multiple of every value of iterations"
        )
    return replace(config, trainer=replace(config.trainer, total_steps=steps // iterations))


def _planned(file: StudyFile, cell: Cell, seed: int, config: Config) -> PlannedRun:
    name = run_name(cell, seed)
    own = replace(
        config.trainer,
        seed=seed,
        run_dir=str(file.output / RUNS / name),
        run_group=config.trainer.run_group or file.output.name,
        resume="auto",
    )
    return PlannedRun(name=name, cell=cell, seed=seed, config=replace(config, trainer=own))


def _by_problem(problems: Sequence[tuple[str, Cell]], num_cells: int) -> list[str]:
    """Each mistake once, with the cells that have it."""
    cells: dict[str, list[Cell]] = {}
    for problem, cell in problems:
        cells.setdefault(problem, []).append(cell)
    return [f"{_names(found, num_cells)}: {problem}" for problem, found in cells.items()]


def _names(cells: Sequence[Cell], num_cells: int) -> str:
    if len(cells) == num_cells:
        return "every cell" if num_cells > 1 else cell_name(cells[0]) or "the only cell"
    return cell_name(cells[0]) if len(cells) == 1 else f"{cell_name(cells[0])} and {len(cells) - 1} more"


def _doubled_names(runs: Sequence[PlannedRun]) -> Iterator[str]:
    names = [run.name for run in runs]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"{names.count(name)} runs would be called {name}; tell the values of the axes apart by letters or digits"


def _foreign_results(runs: Sequence[PlannedRun]) -> Iterator[str]:
    """Runs whose folder has results under other settings."""
    for run in runs:
        changed = run.directory.other_settings(resolved(run.config), SAME_RESULTS)
        if changed and run.directory.config_file.exists():
            yield (
                f"{run.name}: '{run.directory.path}' was begun with other settings (different: {changed}); take another "
                "output, or move that folder away"
            )
