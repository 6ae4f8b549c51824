"""``cfpo check RECIPE key=value ...``: arithmetic, off-policy pressure and memory; starts nothing and needs no GPU."""

from argparse import ArgumentParser, Namespace

from cfpo_hybrid.errors import ConfigError
from trainer.commands.arguments import Say, add_recipe


def add_arguments(parser: ArgumentParser) -> None:
    """The recipe, and the size of a GPU."""
    add_recipe(parser)
    parser.add_argument(
        "--gpu-memory", type=float, metavar="GIB", help="memory of one GPU; given, a run that does not fit exits with 2"
    )


def run(arguments: Namespace, say: Say) -> int:
    """Prints the report, and warns of what is probably not meant.

    The report comes also where files are all that is wrong: arithmetic and memory do not depend on them.

    Memory that does not fit a device the user named by its size is a mistake.

    Raises:
        ConfigError: every mistake at once.
    """
    from trainer.check.fitting import device_of
    from trainer.check.report import fits, report
    from trainer.rules import find_layout_problems, load_and_inspect, machine

    lacking = None
    try:
        loaded = load_and_inspect(arguments.recipe, arguments.overrides, known_models=True)
    except ConfigError as mistakes:
        lacking = mistakes
        try:
            without = {*machine.FILE_RULES, *machine.MODEL_FILE_RULES}
            loaded = load_and_inspect(arguments.recipe, arguments.overrides, known_models=True, without=without)
        except ConfigError:
            raise mistakes from None
    device = device_of(loaded.config, arguments.gpu_memory)
    say(report(loaded, device, find_layout_problems))
    if lacking is not None:
        raise lacking
    for warning in machine.warnings_of(loaded.config):
        say(f"warning: {warning}")
    asked = arguments.gpu_memory is not None
    return 2 if asked and not fits(loaded, device) else 0
