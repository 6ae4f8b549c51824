"""``cfpo train RECIPE key=value ...``: checks the settings, then trains."""

from argparse import Namespace
from collections.abc import Callable

from trainer.config.load import load_config
from trainer.train import train


def run(arguments: Namespace, write: Callable[[str], None]) -> int:
    """Trains; a user's mistake raises before anything starts."""
    train(load_config(arguments.recipe, arguments.overrides))
    return 0
