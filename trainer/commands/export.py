"""``cfpo export CHECKPOINT OUTPUT``: writes a checkpoint as a Hugging Face folder."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from trainer.saved_model import export


def run(arguments: Namespace, write: Callable[[str], None]) -> int:
    """Exports."""
    export(Path(arguments.checkpoint), Path(arguments.output))
    return 0
