"""The command line: ``cfpo train | study | check | reshard-plan | eval | export | plot | lab | losses | check-loss``.

Exit codes: 0 done, 2 a mistake the user can mend (said without a traceback), 1 a run that failed, 3 a run that crossed a
limit it declared and saved its state, 130 interrupted.
"""

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence

from cfpo_hybrid.errors import CfpoError, UserError, WatchStop
from trainer.evaluation.options import EvaluationOptions

MODULES = {
    "train": "trainer.commands.train",
    "study": "trainer.commands.study",
    "check": "trainer.commands.check",
    "reshard-plan": "trainer.commands.reshard_plan",
    "eval": "trainer.commands.evaluate",
    "export": "trainer.commands.export",
    "plot": "trainer.commands.plot",
    "lab": "trainer.commands.lab",
    "losses": "trainer.commands.losses",
    "check-loss": "trainer.commands.check_loss",
}
"""Where each command is; imported only when it is asked for, so that ``cfpo --help`` is quick."""

USER_MISTAKE, RUN_FAILED, WATCH_STOPPED, INTERRUPTED = 2, 1, 3, 130


def main(words: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code.

    Args:
        words: the arguments; by default those of the process.
    """
    arguments = parse(words)
    logging.basicConfig(
        level=logging.INFO if arguments.verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    # Plugins and reward functions are found from where the command was called, as with `python -m`.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(MODULES[arguments.command]).run(arguments, print)
    except UserError as error:
        print(f"cfpo {arguments.command}: {error}", file=sys.stderr)
        return USER_MISTAKE
    except WatchStop as error:
        print(f"cfpo {arguments.command}: {error}", file=sys.stderr)
        return WATCH_STOPPED
    except CfpoError as error:
        print(f"cfpo {arguments.command}: the run failed: {error}", file=sys.stderr)
        return RUN_FAILED
    except KeyboardInterrupt:
        print(f"cfpo {arguments.command}: interrupted", file=sys.stderr)
        return INTERRUPTED


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments of a command line; ``key=value`` words may stand behind options too, which argparse does not take.

    Args:
        words: by default those of the process.
    """
    root = parser()
    arguments, rest = root.parse_known_args(words)
    if rest and ("overrides" not in arguments or not all("=" in word and word[0] != "-" for word in rest)):
        root.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    return arguments


def parser() -> argparse.ArgumentParser:
    """All commands and their arguments."""
    root = argparse.ArgumentParser(
        prog="cfpo", description="Reinforcement learning of language models, CFPO and others."
    )
    root.add_argument("-v", "--verbose", action="store_true", help="log what happens")
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train as a recipe says")
    _add_recipe(train)

    study = commands.add_parser("study", help="train a grid of runs with paired seeds; what is done is skipped")
    study.add_argument("study", help="a YAML file, e.g. examples/studies/stability.yaml")
    study.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="settings of every run, e.g. trainer.total_steps=3, or keys of the study, e.g. study.parallel=1",
    )
    study.add_argument("--check", action="store_true", help="list the runs; start nothing")

    check = commands.add_parser("check", help="batches, ranks, off-policy pressure and memory of a run; starts nothing")
    _add_recipe(check)
    check.add_argument(
        "--gpu-memory", type=float, metavar="GIB", help="memory of one GPU; given, a run that does not fit exits with 2"
    )

    reshard_plan = commands.add_parser("reshard-plan", help="bytes that a weight sync copies and sends; starts nothing")
    _add_recipe(reshard_plan)
    reshard_plan.add_argument("--save", metavar="FILE", help="write the plan as JSON")

    _add_eval(commands.add_parser("eval", help="score a checkpoint or Hugging Face model on a file"))

    export = commands.add_parser(
        "export", help="write a model or checkpoint as a Hugging Face folder, through any layout"
    )
    export.add_argument("model", help="Hugging Face id or folder, checkpoint folder, or run directory")
    export.add_argument("output", help="folder to write")
    export.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="the layout that holds it on the way, e.g. actor.megatron.tensor_parallel_size=2, or actor.dtype",
    )
    export.add_argument("--check", action="store_true", help="compare every tensor with the source's, bit for bit")

    _add_plot(commands.add_parser("plot", help="draw a run or a study, or the objectives of losses"))
    _add_lab(commands.add_parser("lab", help="compare policy losses on a saved rollout, without stepping"))
    _add_plugins(commands.add_parser("losses", help="list the policy losses"))

    check_loss = commands.add_parser("check-loss", help="put a policy loss through the conformance suite")
    check_loss.add_argument("name", help="of the loss, as in policy_loss.name")
    check_loss.add_argument("knobs", nargs="*", metavar="knob=value", help="its knobs, where not the defaults")
    _add_plugins(check_loss)
    return root


def _add_recipe(command: argparse.ArgumentParser) -> None:
    command.add_argument("recipe", help="a YAML file, e.g. examples/quickstart/recipe.yaml")
    command.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings over the recipe's, e.g. actor.lr=1e-6"
    )


def _add_plot(command: argparse.ArgumentParser) -> None:
    command.add_argument("directory", help="a run or study directory; with --losses, the folder to write to")
    _add_losses(command, "draw objective and gradient of these losses instead", default=None)
    command.add_argument("--series", metavar="KEY", help="of a study: the axis with a line for each value")
    command.add_argument("--columns", metavar="KEY", help="of a study: the axis with a column for each value")
    command.add_argument("--band", choices=("range", "ci"), help="of a study: what bands show of the seeds")
    command.add_argument("--x", choices=("rollout", "optimizer"), help="of a study: steps on the horizontal axis")


def _add_lab(command: argparse.ArgumentParser) -> None:
    command.add_argument("source", help="a saved rollout (*.batch), or a run directory with some")
    _add_losses(command, "which losses", default="all")
    command.add_argument("--out", metavar="DIR", help="folder for the files; by default beside the rollout")
    command.add_argument("--model", help="policy in training: Hugging Face folder, checkpoint folder or run directory")
    command.add_argument("--drift", type=float, metavar="NATS", help="a made-up policy in training instead, e.g. 0.1")
    command.add_argument("--seed", type=int, default=0, help="of the drift; default 0")
    command.add_argument("--temperature", type=float, help="of the rollout; default that of its run, or 1")


def _add_losses(command: argparse.ArgumentParser, purpose: str, default: str | None) -> None:
    command.add_argument(
        "--losses", default=default, metavar="NAMES", help=f'{purpose}: "all", or e.g. clip,cfpo:epsilon=0.1'
    )
    _add_plugins(command)


def _add_plugins(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--plugins",
        action="append",
        default=[],
        metavar="PLUGIN",
        help="a module or Python file that registers losses; may be given more than once",
    )


def _add_eval(command: argparse.ArgumentParser) -> None:
    defaults = EvaluationOptions(model="", files=())
    command.add_argument("model", help="Hugging Face id or folder, checkpoint folder, or run directory")
    command.add_argument("files", nargs="+", metavar="FILE", help="problems: JSONL, parquet or data set ids")
    command.add_argument("--output", metavar="DIR", help="folder for generations and scores")
    command.add_argument("--greedy", action="store_true", help="the likeliest tokens instead of sampling")
    command.add_argument("--system-prompt", metavar="TEXT")
    command.add_argument("--limit", type=int, metavar="N", help="only the first N problems")
    for name, kind in (
        ("temperature", float),
        ("top_p", float),
        ("samples", int),
        ("num_workers", int),
        ("tensor_parallel_size", int),
        ("seed", int),
    ):
        default = getattr(defaults, name)
        command.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default, help=f"default {default}")
    command.add_argument(
        "--max-prompt-length", type=int, metavar="N", help="default 512, at most a quarter of the model's positions"
    )
    command.add_argument(
        "--max-response-length", type=int, metavar="N", help="default 3072, at most what prompts leave of them"
    )
    command.add_argument("--reward", default=defaults.reward, help='"math" or "path/to/file.py:function"')
    command.add_argument("--device", default=defaults.device, choices=("auto", "cpu", "cuda"))


if __name__ == "__main__":
    sys.exit(main())
