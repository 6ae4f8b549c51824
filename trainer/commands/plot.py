"""``cfpo plot DIR``: draws the plots of a run directory again."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from cfpo_hybrid.errors import ConfigError
from trainer.plots import plot_run


def run(arguments: Namespace, write: Callable[[str], None]) -> int:
    """Draws, and prints the files."""
    directory = Path(arguments.directory)
    if not directory.is_dir():
        raise ConfigError(f"there is no run directory '{directory}'; name one that holds metrics.jsonl")
    for path in plot_run(directory):
        write(str(path))
    return 0
