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

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cfpo_hybrid.errors import ModelError
from trainer.run.directory import STEP_FOLDER, RunDirectory, set_aside, step_name
from trainer.run.files import write_atomically
from trainer.run.trainer_state import STATE_FILE, TrainerState, decode_state, encode_state, file_sizes

logger = logging.getLogger(__name__)

MODEL_FOLDER = "model"
"""Folder of a checkpoint that holds its weights as a Hugging Face model."""


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
        folders = [folder for _, folder in self._numbered()]
        found = []
        for folder in folders:
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
        if not self.directory.is_dir():
            return []
        matches = [(STEP_FOLDER.fullmatch(folder.name), folder) for folder in self.directory.iterdir()]
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
    state, sizes = decode_state(state_file)
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
    sizes = file_sizes(folder)
    if not sizes:
        raise ModelError(
            f"the workers left no files in '{folder}' that the driver can see; put trainer.run_dir on a file system "
            "that all nodes share"
        )
    write_atomically(folder / STATE_FILE, encode_state(state, sizes))
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
