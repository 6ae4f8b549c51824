"""``cfpo export MODEL OUT key=value ... [--check] [--push REPO]``: writes a Hugging Face folder, through any layout."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from cfpo_hybrid.errors import ConfigError
from trainer.commands.arguments import Say, add_overrides

NAMED = 20
"""Tensors that are listed when they differ."""


def add_arguments(parser: ArgumentParser) -> None:
    """Where from, where to, and the layout on the way."""
    parser.add_argument("model", help="Hugging Face id or folder, checkpoint folder, or run directory")
    parser.add_argument("output", help="folder to write")
    add_overrides(
        parser, "the layout that holds it on the way, e.g. actor.megatron.tensor_parallel_size=2, or actor.dtype"
    )
    parser.add_argument("--check", action="store_true", help="compare every tensor with the source's, bit for bit")
    parser.add_argument(
        "--push",
        metavar="REPO",
        help="upload the folder to this Hugging Face repository, which is made, private, if absent",
    )
    parser.add_argument("--public", action="store_true", help="a repository that --push makes can be seen by all")


def run(arguments: Namespace, say: Say) -> int:
    """Exports; 1 when the result is not the source, which is then not pushed.

    Raises:
        ConfigError: a repository that cannot be pushed to.
    """
    from trainer.config.problem import count
    from trainer.export import check_repository, export, push

    if arguments.public and not arguments.push:
        raise ConfigError("--public says how --push makes a repository; name one with --push, or leave --public out")
    if arguments.push:
        check_repository(arguments.push)
    report = export(arguments.model, Path(arguments.output), arguments.overrides, check=arguments.check)
    layout = report.layout
    say(
        f"{count(report.num_tensors, 'tensor')} in {report.dtype} written to {arguments.output} by "
        f"{count(layout.world_size, 'process')} (tp={layout.tp}, pp={layout.pp}, ep={layout.ep})"
    )
    if report.differences is not None:
        say(verdict(report.source, report.differences))
    if report.differences:
        return 1
    if arguments.push:
        say(f"pushed to {push(Path(arguments.output), arguments.push, public=arguments.public)}")
    return 0


def verdict(source: Path, differences: Sequence[str]) -> str:
    """What a comparison with the source found; of many differences the first ones."""
    from trainer.config.problem import count

    if not differences:
        return f"check passed: every tensor equals that of {source} bit for bit"
    further = [f"... and {len(differences) - NAMED} more"] if len(differences) > NAMED else []
    lines = [
        f"check FAILED: {count(len(differences), 'tensor')} unlike those of {source}:",
        *differences[:NAMED],
        *further,
    ]
    return "\n  ".join(lines)
