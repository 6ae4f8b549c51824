"""Where the Hugging Face folder of a model lies: a plain one, a checkpoint's, or a run's newest."""

from pathlib import Path

from cfpo_hybrid.errors import ModelError
from trainer.run.checkpoint import CheckpointStore, load_state
from trainer.run.directory import RunDirectory
from trainer.run.trainer_state import STATE_FILE

MODEL_FOLDER = "model"
"""Folder of a checkpoint that holds its weights as a Hugging Face model."""


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
