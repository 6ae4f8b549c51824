"""``cfpo check-loss NAME knob=value ...``: the conformance suite on a registered loss."""

from argparse import Namespace
from collections.abc import Callable

from cfpo_hybrid.algorithms.conformance import check_policy_loss
from cfpo_hybrid.algorithms.policy_loss.plugins import load_plugins
from cfpo_hybrid.errors import ConfigError
from trainer.config.sources import read_overrides


def run(arguments: Namespace, write: Callable[[str], None]) -> int:
    """One line a property; 1 when the loss lacks any of them."""
    load_plugins(arguments.plugins)
    sources, problems = read_overrides(arguments.knobs)
    if problems:
        raise ConfigError(problems)
    knobs = {str(knob).removeprefix("policy_loss."): value for source in sources for knob, value in source.tree.items()}
    results = check_policy_loss(arguments.name, **knobs)
    for result in results:
        write(f"{'ok    ' if result.passed else 'FAILED'}  {result.name}: {result.detail}")
    failed = sum(not result.passed for result in results)
    write(f"{arguments.name}: {len(results) - failed} of {len(results)} checks passed")
    return 1 if failed else 0
