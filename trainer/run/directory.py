"""The run directory: where a run keeps its config, logs, generations, checkpoints, plots and exported model.

    config.yaml                      resolved settings
    metrics.jsonl                    a line a rollout step; step 3 is the state after three of them, 0 before any
    updates.jsonl                    a line an optimizer step: step, iteration, mini_batch, metrics
    generations/step_000010.jsonl    prompts, responses and rewards of a step
    checkpoints/step_000010/         see trainer/run/checkpoint.py
    rollouts/step_000010.batch       a rollout batch saved whole; offending/ has those of steps that crossed a limit
    hints.jsonl                      what was told of steps that taught nothing
    starts.jsonl                     a line each time the run was started: date, command, versions, first step
    generations.html                 the page to read them
    reward_failures.txt              the first failure of a reward function, with its arguments and traceback
    plots/  tensorboard/  export/

One directory holds one run. A fresh start refuses a directory that has another run's results; a resume cuts the logs
back to the step of its checkpoint, so that no line is doubled. No line is lost as long as the driver logs a step
before it saves that step.
"""

import logging
import re
import shutil
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any

from cfpo_hybrid.errors import ConfigError
from cfpo_hybrid.protocol import DataProto, save
from trainer.config.paths import really_changed
from trainer.config.problem import count
from trainer.config.sources import settings_of, settings_text
from trainer.run.files import keep_steps, make_folder, read_jsonl, write_atomically, write_jsonl
from trainer.run.starts import start_record

logger = logging.getLogger(__name__)

STEP_FOLDER = re.compile(r"step_(\d{6,})")
"""Name of a complete checkpoint's folder."""

SAME_RESULTS = (
    "trainer.run_dir",
    "trainer.resume",
    "trainer.save_every",
    "trainer.keep_checkpoints",
    "trainer.trackers",
    "trainer.project",
    "trainer.run_name",
    "trainer.run_group",
    "trainer.tags",
    "trainer.progress",
    "trainer.generations_every",
    "trainer.keep_generations",
    "trainer.save_rollouts_every",
    "trainer.ray_address",
    "trainer.cluster_wait_seconds",
    "trainer.cpus_per_worker",
    "watch.saved_batches",
)
"""Settings that change what is kept or shown of a run, and where it runs, but not its results."""

SAME_RUN = (*SAME_RESULTS, "trainer.total_steps", "trainer.val_every")
"""Settings that may change when a run directory is used again."""


def step_name(step: int) -> str:
    """Name of a step in files and folders, e.g. ``step_000010``."""
    return f"step_{step:06d}"


class RunDirectory:
    """Paths of a run, and the rules by which a run starts or resumes in them.

    Args:
        path: the directory; nothing is created before ``start``.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.metrics_file = self.path / "metrics.jsonl"
        self.updates_file = self.path / "updates.jsonl"
        self.generations = self.path / "generations"
        self.checkpoints = self.path / "checkpoints"
        self.plots = self.path / "plots"
        self.tensorboard = self.path / "tensorboard"
        self.export = self.path / "export"
        self.rollouts = self.path / "rollouts"
        self.offending = self.path / "offending"
        self.reward_failures = self.path / "reward_failures.txt"
        self.hints_file = self.path / "hints.jsonl"
        self.starts_file = self.path / "starts.jsonl"

    def start(
        self, config: Mapping[str, Any], *, resumed_step: int | None = None, checkpoint: Path | None = None
    ) -> None:
        """Makes the directory ready for the step after ``resumed_step``, or for the first one.

        Writes ``config.yaml``, adds a line to ``starts.jsonl``, and cuts
        logs and generations back to ``resumed_step`` (to nothing for a fresh start).

        Args:
            config: the resolved settings, nested and plain.
            resumed_step: last step of the checkpoint that the run goes on from.
            checkpoint: that checkpoint; one of another run directory makes this a fresh start as far as the
                results here are concerned.

        Raises:
            ConfigError: a fresh start in a directory with checkpoints, with results under other settings, or with all
                steps of a run; or one that cannot be made.
        """
        goes_on_here = checkpoint is None or self.holds(checkpoint)
        if resumed_step is None or not goes_on_here:
            self._refuse_foreign_results(config)
        for folder in (self.generations, self.checkpoints, self.plots, self.tensorboard):
            make_folder(folder, "trainer.run_dir")
        self._cut_back(-1 if resumed_step is None else resumed_step)
        write_atomically(self.config_file, settings_text(config))
        write_jsonl(self.starts_file, [*read_jsonl(self.starts_file), start_record(resumed_step or 0)])

    def config(self) -> dict[str, Any]:
        """The settings the run was last started with; empty when there are none."""
        if not self.config_file.exists():
            return {}
        return settings_of(self.config_file.read_text(encoding="utf-8"))

    def other_settings(self, config: Mapping[str, Any], may_differ: Container[str]) -> str:
        """The dotted keys, eight at most, by which the run was started otherwise; empty where there are none.

        Args:
            config: the resolved settings to compare with.
            may_differ: keys that do not count.
        """
        changed = [key for key in really_changed(self.config(), config) if key not in may_differ]
        return ", ".join([*changed[:8], *(["..."] if len(changed) > 8 else [])])

    @property
    def last_planned_step(self) -> int | None:
        """The last step that the run was last started for; None where there is no run."""
        return self.config().get("trainer", {}).get("total_steps")

    def holds(self, checkpoint: Path) -> bool:
        """Whether a checkpoint is one of this run."""
        return checkpoint.resolve().is_relative_to(self.path.resolve())

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``; a value that was not finite is None."""
        return read_jsonl(self.metrics_file)

    def updates(self) -> list[dict[str, Any]]:
        """The lines of ``updates.jsonl``; a value that was not finite is None."""
        return read_jsonl(self.updates_file)

    def write_generations(
        self, step: int, rows: Iterable[Mapping[str, Any]], *, prefix: str = "", keep: int = 0
    ) -> Path:
        """Writes responses of a step for people to read, one object a line.

        Args:
            step: the rollout step.
            rows: e.g. problem, response, reward.
            prefix: put before the file name, e.g. ``"val_"``.
            keep: files with this prefix that stay, the first and the newest ones; 0 for all.

        Returns:
            The file, e.g. ``generations/val_step_000010.jsonl``.
        """
        file = self.generations / f"{prefix}{step_name(step)}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(file, rows)
        files = self.generation_files(prefix)
        newest = max(keep - 1, 1)
        for old in files[1:-newest] if keep else []:
            old.unlink()
        return file

    @property
    def has_generations(self) -> bool:
        """Whether any response was saved."""
        return any(self.generations.glob("*.jsonl"))

    def generation_files(self, prefix: str = "") -> list[Path]:
        """The files of ``write_generations`` with this prefix, by step."""
        names = re.compile(re.escape(prefix) + STEP_FOLDER.pattern + r"\.jsonl")
        found = {
            int(match[1]): file for file in self.generations.glob("*.jsonl") if (match := names.fullmatch(file.name))
        }
        return [found[step] for step in sorted(found)]

    def write_batch(self, folder: Path, step: int, batch: DataProto) -> Path:
        """Saves a whole rollout batch; ``cfpo_hybrid.protocol.load`` reads it.

        Args:
            folder: ``rollouts`` or ``offending``.
            step: the rollout step.
            batch: of that step; its wide columns are brought here.

        Returns:
            The file, e.g. ``rollouts/step_000010.batch``.
        """
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{step_name(step)}.batch"
        save(batch, file)
        return file

    def _refuse_foreign_results(self, config: Mapping[str, Any]) -> None:
        advice = "choose another trainer.run_dir, or move that directory away"
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"trainer.run_dir '{self.path}' is a file; name a directory")
        saved = sorted(entry.name for entry in self.checkpoints.glob("*") if STEP_FOLDER.fullmatch(entry.name))
        if saved:
            raise ConfigError(
                f"trainer.run_dir '{self.path}' holds checkpoints of a run (the last is {saved[-1]}), which a fresh "
                f"start would mix with its own; resume from one of them (trainer.resume=auto or its path), {advice}"
            )
        changed = self.other_settings(config, SAME_RUN)
        logged = self.metrics()
        if changed and logged:
            raise ConfigError(
                f"trainer.run_dir '{self.path}' holds results of a run with other settings (different: {changed}); {advice}"
            )
        planned = self.last_planned_step
        if logged and planned is not None and logged[-1]["step"] >= planned:
            raise ConfigError(
                f"trainer.run_dir '{self.path}' holds a run that has made all of its {count(planned, 'step')} and saved no "
                f"checkpoint to go on from; a fresh start would delete its logs; {advice}"
            )

    def _cut_back(self, last_step: int) -> None:
        kept = keep_steps(self.metrics_file, last_step)
        keep_steps(self.updates_file, last_step)
        keep_steps(self.hints_file, last_step)
        if kept and self.metrics()[-1]["step"] < last_step:
            logger.warning("%s ends before step %d, which the run resumes from", self.metrics_file, last_step)
        for folder in (self.generations, self.rollouts, self.offending):
            for entry in folder.glob("*step_*"):
                match = STEP_FOLDER.search(entry.stem)
                if match and int(match[1]) > last_step:
                    _remove(entry)


def set_aside(folder: Path) -> Path:
    """Renames a folder that belongs to steps which a run now does again, so that nothing takes it for the newest.

    Returns:
        Where it is now.
    """
    number = 0
    aside = folder.with_name(folder.name + ".superseded")
    while aside.exists():
        number += 1
        aside = folder.with_name(f"{folder.name}.superseded{number}")
    folder.rename(aside)
    logger.warning("%s is superseded by what this run is about to make; it is kept as %s", folder, aside.name)
    return aside


def _remove(entry: Path) -> None:
    """A file, or the folder that `cfpo lab` has left beside a rollout."""
    if entry.is_dir():
        shutil.rmtree(entry)
    else:
        entry.unlink()
