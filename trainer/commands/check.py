"""``cfpo check RECIPE key=value ...``: arithmetic, off-policy pressure and memory; starts nothing and needs no GPU."""

from argparse import Namespace
from collections.abc import Callable

from cfpo_hybrid.errors import ConfigError
from trainer.check.device import device_of
from trainer.check.report import fits, report
from trainer.config.load import LoadedConfig, load_and_inspect
from trainer.rules import files


def run(arguments: Namespace, write: Callable[[str], None]) -> int:
    """Prints the report, also where files are all that is wrong: arithmetic and memory do not depend on them.

    Memory that does not fit a device the user named by its size is a mistake.

    Raises:
        ConfigError: every mistake at once.
    """
    loaded, lacking = _load(arguments)
    device = device_of(loaded.config, arguments.gpu_memory)
    write(report(loaded, device))
    if lacking is not None:
        raise lacking
    asked = arguments.gpu_memory is not None
    return 2 if asked and not fits(loaded, device) else 0


def _load(arguments: Namespace) -> tuple[LoadedConfig, ConfigError | None]:
    """The configuration, and what is wrong with the files that it names."""
    try:
        return load_and_inspect(arguments.recipe, arguments.overrides, known_models=True), None
    except ConfigError as mistakes:
        try:
            without = load_and_inspect(arguments.recipe, arguments.overrides, known_models=True, without=files.RULES)
        except ConfigError:
            raise mistakes from None
        return without, mistakes
