"""Arguments that several commands take."""

from argparse import ArgumentParser
from collections.abc import Callable

Say = Callable[[str], None]
"""Takes the lines that a command prints."""


def add_recipe(parser: ArgumentParser) -> None:
    """A recipe, and settings over it."""
    parser.add_argument("recipe", help="a YAML file, e.g. examples/quickstart/recipe.yaml")
    add_overrides(parser, "settings over the recipe's, e.g. actor.lr=1e-6")


def add_overrides(parser: ArgumentParser, purpose: str) -> None:
    """``key=value`` words, at the end or between options."""
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=purpose)


def add_losses(parser: ArgumentParser, purpose: str, default: str | None) -> None:
    """Policy losses by name."""
    names = f'{purpose}: "all", or e.g. clip,cfpo:epsilon=0.1'
    parser.add_argument("--losses", default=default, metavar="NAMES", help=names)
    add_plugins(parser)


def add_plugins(parser: ArgumentParser) -> None:
    """Where policy losses are registered beside the built-in ones."""
    parser.add_argument(
        "--plugins",
        action="append",
        default=[],
        metavar="PLUGIN",
        help="a module or Python file that registers losses; may be given more than once",
    )
