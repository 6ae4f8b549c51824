"""``cfpo train RECIPE key=value ...``: checks the settings, then trains."""

from argparse import ArgumentParser, Namespace

from trainer.commands.arguments import Say, add_recipe


def add_arguments(parser: ArgumentParser) -> None:
    """The recipe."""
    add_recipe(parser)


def run(arguments: Namespace, say: Say) -> int:
    """Trains; a user's mistake raises before anything starts."""
    from trainer.rules import load_config
    from trainer.train import train

    train(load_config(arguments.recipe, arguments.overrides))
    return 0
