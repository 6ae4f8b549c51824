"""From a study to its runs, each with a checked configuration: every mistake of every cell in one report."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from cfpo_hybrid.errors import ConfigError
from trainer.config import Config, changed_settings, resolved
from trainer.config.sources import read_recipe
from trainer.rules import load_sources
from trainer.run.directory import SAME_RESULTS, RunDirectory
from trainer.study.grid import Cell, cells_of
from trainer.study.study_file import Study

RUNS = "runs"
"""Folder of the run directories, within that of the study."""


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


def plan_study(study: Study) -> list[PlannedRun]:
    """The runs, first all cells with the first seed, then all with the next.

    Raises:
        ConfigError: every mistake at once, with the cells that it is about; results of other settings in their folders.
    """
    cells = cells_of(study.axes)
    recipe = read_recipe(study.keys.recipe)
    configs: list[Config] = []
    problems: list[tuple[str, Cell]] = []
    for cell in cells:
        try:
            configs.append(_of_mode(load_sources([recipe, *study.sources_of(cell)]), study.keys.mode))
        except ConfigError as error:
            problems += [(problem, cell) for problem in error.problems]
    if problems:
        raise ConfigError(_by_problem(problems, len(cells)))
    runs = [
        _planned(study, cell, seed, config)
        for seed in study.keys.seeds
        for cell, config in zip(cells, configs, strict=True)
    ]
    wrong = [*_doubled_names(runs), *_foreign_results(runs)]
    if wrong:
        raise ConfigError(wrong)
    return runs


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


def _planned(study: Study, cell: Cell, seed: int, config: Config) -> PlannedRun:
    name = cell.run_name(seed)
    own = replace(config.trainer, seed=seed, run_dir=str(study.output / RUNS / name), resume="auto")
    return PlannedRun(name=name, cell=cell, seed=seed, config=replace(config, trainer=own))


def _by_problem(problems: Sequence[tuple[str, Cell]], num_cells: int) -> list[str]:
    """Each mistake once, with the cells that have it."""
    cells: dict[str, list[Cell]] = {}
    for problem, cell in problems:
        cells.setdefault(problem, []).append(cell)
    return [f"{_names(found, num_cells)}: {problem}" for problem, found in cells.items()]


def _names(cells: Sequence[Cell], num_cells: int) -> str:
    if len(cells) == num_cells:
        return "every cell" if num_cells > 1 else cells[0].name or "the only cell"
    return cells[0].name if len(cells) == 1 else f"{cells[0].name} and {len(cells) - 1} more"


def _doubled_names(runs: Sequence[PlannedRun]) -> Iterator[str]:
    names = [run.name for run in runs]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"{names.count(name)} runs would be called {name}; tell the values of the axes apart by letters or digits"


def _foreign_results(runs: Sequence[PlannedRun]) -> Iterator[str]:
    """Runs whose folder has results under other settings."""
    for run in runs:
        saved = run.directory.config()
        changed = [key for key in changed_settings(saved, resolved(run.config)) if key not in SAME_RESULTS]
        if saved and changed:
            yield (
                f"{run.name}: '{run.directory.path}' was begun with other settings (different: "
                f"{', '.join(changed[:8])}{', ...' if len(changed) > 8 else ''}); take another output, or move that "
                "folder away"
            )
