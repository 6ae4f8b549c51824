"""``cfpo losses``: every registered policy loss, its knobs and where it is written."""

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from trainer.commands.arguments import Say, add_plugins

if TYPE_CHECKING:
    from cfpo_hybrid.algorithms.policy_loss import LossEntry


def add_arguments(parser: ArgumentParser) -> None:
    """Plugins."""
    add_plugins(parser)


def run(arguments: Namespace, say: Say) -> int:
    """Lists the losses, those of plugins included."""
    from cfpo_hybrid.algorithms.policy_loss import describe_losses
    from cfpo_hybrid.plugins import load_plugins

    load_plugins(arguments.plugins)
    say("\n\n".join(_describe(loss) for loss in describe_losses()))
    return 0


def _describe(loss: "LossEntry") -> str:
    knobs = [f"    policy_loss.{name}: {kind} = {default}" for name, kind, default in loss.knobs]
    needed = [*sorted(loss.needs), *(["statistics of the mini-batch"] if loss.statistics is not None else [])]
    means = [f"    only with algorithm.loss_aggregation={' or '.join(loss.aggregations)}"] if loss.aggregations else []
    needs = [f"    needs {', '.join(needed)}"] if needed else []
    return "\n".join([f"{loss.name}    {loss.summary}", *knobs, *needs, *means, f"    {loss.source}"])
