"""``cfpo reshard-plan RECIPE key=value ...``: who copies what to whom in a weight sync; starts nothing, needs no GPU."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from cfpo_hybrid.errors import ConfigError
from trainer.commands.arguments import Say, add_recipe


def add_arguments(parser: ArgumentParser) -> None:
    """The recipe, and a file for the plan."""
    add_recipe(parser)
    parser.add_argument("--save", metavar="FILE", help="write the plan as JSON")


def run(arguments: Namespace, say: Say) -> int:
    """Plans, proves the plan, prints its traffic and saves it where that is asked for."""
    from trainer.check.reshard import plan_reshard
    from trainer.rules import layout, load_and_inspect, machine

    # Neither data nor room to generate is asked for; weights are copies over cp as over dp.
    without = {layout.context_parallel, machine.kv_cache, *machine.FILE_RULES}
    loaded = load_and_inspect(arguments.recipe, arguments.overrides, known_models=True, without=without)
    file = Path(arguments.save) if arguments.save else None
    if file and not file.parent.is_dir():
        raise ConfigError(f"--save {file}: there is no folder '{file.parent}'; make it first")
    if file and file.is_dir():
        raise ConfigError(f"--save {file} is a folder; name a file in it")
    plan, text = plan_reshard(loaded)
    say(text)
    if file:
        plan.save(file)
        say(f"saved as {file}")
    return 0
