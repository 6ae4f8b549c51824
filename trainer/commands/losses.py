"""``cfpo losses``: every registered policy loss, its knobs and where it is written."""

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from trainer.commands.arguments import Say, add_plugins

if TYPE_CHECKING:
    from cfpo_hybrid.algorithms.policy_loss import LossDescription


def add_arguments(parser: ArgumentParser) -> None:
    """Plugins."""
    add_plugins(parser)


def run(arguments: Namespace, say: Say) -> int:
    """Lists the losses, those of plugins included."""
    from cfpo_hybrid.algorithms.policy_loss import describe_losses
    from cfpo_hybrid.algorithms.policy_loss.plugins import load_plugins

    load_plugins(arguments.plugins)
    say("\n\n".join(_describe(loss) for loss in describe_losses()))
    return 0


def _describe(loss: "LossDescription") -> str:
    knobs = [f"    policy_loss.{name}: {kind} = {default}" for name, kind, default in loss.knobs]
    needs = [f"    needs {', '.join(loss.needs)}"] if loss.needs else []
    return "\n".join([f"{loss.name}    {loss.summary}", *knobs, *needs, f"    {loss.source}"])
