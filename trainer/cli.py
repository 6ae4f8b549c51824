"""The command line: ``cfpo train | study | check | reshard-plan | eval | export | plot | show | lab | losses | check-loss``.

Exit codes: 0 done, 2 a mistake the user can mend (said without a traceback), 1 a run that failed, 3 a run that crossed a
limit it declared and saved its state, 130 interrupted, 141 nobody reads the output any more (as in ``cfpo losses | head``).
"""

import argparse
import logging
import os
import select
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from cfpo_hybrid.errors import CfpoError, UserError, WatchStop
from cfpo_hybrid.plugins import search_callers_folder_last

PACKAGE = "cfpo_hybrid"

COMMANDS = {
    "train": "train as a recipe says",
    "study": "train a grid of runs with paired seeds; what is done is skipped",
    "check": "batches, ranks, off-policy pressure and memory of a run; starts nothing",
    "reshard-plan": "bytes that a weight sync copies and sends; starts nothing",
    "eval": "score a checkpoint or Hugging Face model on a file",
    "export": "write a model or checkpoint as a Hugging Face folder, through any layout",
    "plot": "draw a run or a study, or the objectives of losses",
    "show": "one page to read the responses of a run or of an evaluation",
    "lab": "compare policy losses on a saved rollout, without stepping",
    "losses": "list the policy losses",
    "check-loss": "put a policy loss through the conformance suite",
}
"""What each command does."""

USER_MISTAKE, RUN_FAILED, WATCH_STOPPED, INTERRUPTED, READER_GONE = 2, 1, 3, 130, 141


def main(words: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code.

    Args:
        words: the arguments; by default those of the process.
    """
    try:
        try:
            return _run(sys.argv[1:] if words is None else words)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains at its end
        return READER_GONE


def _run(words: Sequence[str]) -> int:
    arguments = parse(words)
    logging.basicConfig(
        level=logging.INFO if arguments.verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    search_callers_folder_last()
    try:
        return module_of(arguments.command).run(arguments, print)
    except UserError as error:
        return _fail(arguments, str(error), USER_MISTAKE)
    except WatchStop as error:
        return _fail(arguments, str(error), WATCH_STOPPED)
    except CfpoError as error:
        return _fail(arguments, f"the run failed: {error}", RUN_FAILED)
    except KeyboardInterrupt:
        return _fail(arguments, "interrupted", INTERRUPTED)


def module_of(command: str) -> Any:
    """The module of a command, with ``add_arguments(parser)`` and ``run(arguments, say)``.

    It is imported only when it is asked for, and imports what its work needs only when it runs: every ``--help`` is quick.
    """
    return import_module(f"trainer.commands.{command.replace('-', '_')}")


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The arguments of a command line; ``key=value`` words may stand behind options too, which argparse does not take."""
    root = _parser(words)
    arguments, rest = root.parse_known_args(words)
    if rest and ("overrides" not in arguments or not all("=" in word and word[0] != "-" for word in rest)):
        root.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    return arguments


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """Every command, the one that the words name with its arguments."""
    root = argparse.ArgumentParser(
        prog="cfpo", description="Reinforcement learning of language models, CFPO and others."
    )
    root.add_argument("--version", action=_Version, help="print name and version")
    _add_verbose(root, default=False)
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    named = next((word for word in words if not word.startswith("-")), None)
    for name, purpose in COMMANDS.items():
        command = commands.add_parser(name, help=purpose)
        _add_verbose(command, default=argparse.SUPPRESS)  # leaves what stood before the command
        if name == named:
            module_of(name).add_arguments(command)
    return root


def _add_verbose(parser: argparse.ArgumentParser, default: Any) -> None:
    parser.add_argument("-v", "--verbose", action="store_true", default=default, help="log what happens")


def _reader_is_gone() -> bool:
    """Whether standard output leads nowhere, as behind ``| head`` once it has its lines."""
    watcher = select.poll()
    watcher.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in watcher.poll(0))


def _fail(arguments: argparse.Namespace, message: str, code: int) -> int:
    print(f"cfpo {arguments.command}: {message}", file=sys.stderr)
    return code


class _Version(argparse.Action):
    """Prints the version, which is looked up only when it is asked for."""

    def __init__(self, **options: Any) -> None:
        super().__init__(nargs=0, **options)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"{PACKAGE} {version(PACKAGE)}")
        except PackageNotFoundError:
            print(f"{PACKAGE}, not installed")
        parser.exit()


if __name__ == "__main__":
    sys.exit(main())
