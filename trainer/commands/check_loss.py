"""``cfpo check-loss NAME knob=value ...``: the conformance suite on a registered loss."""

from argparse import Namespace
from collections.abc import Callable

from cfpo_hybrid.algorithms.conformance import check_policy_loss, format_check_results
from cfpo_hybrid.errors import ConfigError
from cfpo_hybrid.plugins import load_plugins
from trainer.config.sources import read_overrides


def run(arguments: Namespace, write: Callable[[str], None]) -> int:
    """One line a property; 1 when the loss lacks any of them."""
    load_plugins(arguments.plugins)
    sources, problems = read_overrides(arguments.knobs)
    if problems:
        raise ConfigError(problems)
    knobs = {str(knob).removeprefix("policy_loss."): value for source in sources for knob, value in source.tree.items()}
    results = check_policy_loss(arguments.name, **knobs)
    write(format_check_results(arguments.name, results))
    return 0 if all(result.passed for result in results) else 1
