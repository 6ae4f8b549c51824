"""``cfpo lab BATCH|RUN_DIR``: compares policy losses on one saved rollout, without stepping."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from trainer.commands.arguments import Say, add_losses


def add_arguments(parser: ArgumentParser) -> None:
    """The rollout, the losses, and the policy in training."""
    parser.add_argument("source", help="a saved rollout (*.batch), or a run directory with some")
    add_losses(parser, "which losses", default="all")
    parser.add_argument("--out", metavar="DIR", help="folder for the files; by default beside the rollout")
    parser.add_argument("--model", help="policy in training: Hugging Face folder, checkpoint folder or run directory")
    parser.add_argument("--drift", type=float, metavar="NATS", help="a made-up policy in training instead, e.g. 0.1")
    parser.add_argument("--seed", type=int, default=0, help="of the drift; default 0")
    parser.add_argument("--temperature", type=float, help="of the rollout; default that of its run, or 1")


def run(arguments: Namespace, say: Say) -> int:
    """Compares, prints the table and the files."""
    from trainer.lab.lab import run_lab
    from trainer.lab.lab_files import text, write_files
    from trainer.run.files import make_folder

    result = run_lab(
        Path(arguments.source),
        arguments.losses,
        plugins=arguments.plugins,
        model=arguments.model,
        drift=arguments.drift,
        seed=arguments.seed,
        temperature=arguments.temperature,
    )
    say(text(result))
    folder = Path(arguments.out) if arguments.out else result.rollout.path.with_suffix(".lab")
    make_folder(folder, "--out")
    for path in write_files(result, folder):
        say(str(path))
    return 0
