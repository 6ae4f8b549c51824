"""``cfpo losses``: every registered policy loss, its knobs and where it is written."""

from argparse import Namespace
from collections.abc import Callable

from cfpo_hybrid.algorithms.policy_loss import LossDescription, describe_losses
from cfpo_hybrid.algorithms.policy_loss.plugins import load_plugins


def run(arguments: Namespace, write: Callable[[str], None]) -> int:
    """Lists the losses, those of plugins included."""
    load_plugins(arguments.plugins)
    write("\n\n".join(_describe(loss) for loss in describe_losses()))
    return 0


def _describe(loss: LossDescription) -> str:
    knobs = [f"    policy_loss.{name}: {kind} = {default}" for name, kind, default in loss.knobs]
    needs = [f"    needs {', '.join(loss.needs)}"] if loss.needs else []
    return "\n".join([f"{loss.name}    {loss.summary}", *knobs, *needs, f"    {loss.source}"])
