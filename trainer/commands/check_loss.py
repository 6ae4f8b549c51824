"""``cfpo check-loss NAME knob=value ...``: the conformance suite on a registered loss."""

from argparse import ArgumentParser, Namespace

from trainer.commands.arguments import Say, add_plugins


def add_arguments(parser: ArgumentParser) -> None:
    """The loss, its knobs and plugins."""
    parser.add_argument("name", help="of the loss, as in policy_loss.name")
    parser.add_argument("knobs", nargs="*", metavar="knob=value", help="its knobs, where not the defaults")
    add_plugins(parser)


def run(arguments: Namespace, say: Say) -> int:
    """One line a property; 1 when the loss lacks any of them."""
    from cfpo_hybrid.algorithms.conformance import check_policy_loss, format_check_results
    from cfpo_hybrid.plugins import load_plugins
    from trainer.config.losses import read_knobs

    load_plugins(arguments.plugins)
    results = check_policy_loss(arguments.name, **read_knobs(arguments.name, arguments.knobs))
    say(format_check_results(arguments.name, results))
    return 0 if all(result.passed for result in results) else 1
