"""``cfpo check RECIPE key=value ...``: arithmetic, off-policy pressure and memory; starts nothing and needs no GPU."""

from argparse import Namespace
from collections.abc import Callable

from trainer.check.device import device_of
from trainer.check.report import fits, report
from trainer.config.load import load_and_inspect


def run(arguments: Namespace, write: Callable[[str], None]) -> int:
    """Prints the report. Memory that does not fit a device the user named by its size is a mistake."""
    loaded = load_and_inspect(arguments.recipe, arguments.overrides, known_models=True)
    device = device_of(loaded.config, arguments.gpu_memory)
    write(report(loaded, device))
    asked = arguments.gpu_memory is not None
    return 2 if asked and not fits(loaded, device) else 0
