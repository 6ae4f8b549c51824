"""Study directories made up for tests: runs with given rewards, one mini-batch count for all."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from trainer.run.files import write_jsonl
from trainer.study.study import Study, StudyRun, write_study

LOSS, ITERATIONS, RATIO = "policy_loss.name", "algorithm.iterations", "algorithm.batch_ratio"


def write_run(
    path: Path,
    rewards: Sequence[float],
    *,
    planned: int | None = None,
    updates: int = 2,
    loss: str = "clip",
    validated: Sequence[str] = ("val/accuracy",),
) -> None:
    """A run directory with a reward for each step from 1, and two validations, the last as good as the last reward."""
    path.mkdir(parents=True)
    settings = {"trainer": {"total_steps": planned or len(rewards)}, "policy_loss": {"name": loss, "plugins": []}}
    (path / "config.yaml").write_text(yaml.safe_dump(settings))
    lines: list[dict[str, Any]] = [{"step": 0, **dict.fromkeys(validated, 0.25)}]
    lines += [{"step": step, "reward/mean": reward} for step, reward in enumerate(rewards, start=1)]
    if rewards:
        lines[-1] |= dict.fromkeys(validated, rewards[-1])
    write_jsonl(path / "metrics.jsonl", lines)
    steps = range(1, len(rewards) + 1)
    actor = [(step, number) for step in steps for number in range(updates)]
    rows = [{"step": step, "actor/kl_k3": 0.1 * number, "actor/clip_fraction": 0.01} for step, number in actor]
    write_jsonl(path / "updates.jsonl", rows)


def plan_runs(
    folder: Path,
    axes: Mapping[str, Sequence[Any]],
    runs: Sequence[tuple[Mapping[str, Any], int]],
    *,
    mode: str = "iso_sample",
) -> list[Path]:
    """study.json with these (cell, seed) runs; returns where each run belongs."""
    names = ["-".join([*(str(value) for value in cell.values()), f"seed{seed}"]) for cell, seed in runs]
    planned = [
        StudyRun(name=name, cell=cell, seed=seed, path=f"runs/{name}")
        for name, (cell, seed) in zip(names, runs, strict=True)
    ]
    seeds = sorted({seed for _, seed in runs})
    write_study(Study(path=folder, recipe="recipe.yaml", mode=mode, axes=axes, seeds=seeds, runs=planned))
    return [folder / run.path for run in planned]


def two_losses(folder: Path) -> None:
    """clip and cfpo at 1 and 4 iterations, seeds 1 and 2: one run has not started, one is unfinished."""
    axes = {LOSS: ["clip", "cfpo"], ITERATIONS: [1, 4]}
    runs = [({LOSS: loss, ITERATIONS: count}, seed) for loss in axes[LOSS] for count in (1, 4) for seed in (1, 2)]
    paths = plan_runs(folder, axes, runs)
    for (cell, seed), path in zip(runs, paths, strict=True):
        loss, count = cell[LOSS], cell[ITERATIONS]
        if (loss, count, seed) == ("cfpo", 4, 2):
            continue
        unfinished = (loss, count, seed) == ("cfpo", 4, 1)
        level = {"clip": 0.5, "cfpo": 0.6}[str(loss)] + 0.1 * seed
        write_run(path, [level] * (3 if unfinished else 6), planned=6, loss=str(loss))
