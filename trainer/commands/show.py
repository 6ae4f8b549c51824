"""``cfpo show DIR``: one page to read the responses of a run or of an evaluation."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from trainer.commands.arguments import Say


def add_arguments(parser: ArgumentParser) -> None:
    """Whose responses, and where the page goes."""
    parser.add_argument(
        "path", help="a run directory, the output folder of `cfpo eval`, or a file of responses (JSON lines)"
    )
    parser.add_argument("--output", metavar="FILE", help="the page; by default generations.html beside the responses")


def run(arguments: Namespace, say: Say) -> int:
    """Writes the page and prints its path."""
    from cfpo_hybrid.errors import ConfigError
    from trainer.figures.generations_page import PAGE, write_page, write_run_page
    from trainer.run.directory import RunDirectory
    from trainer.run.files import make_folder

    path = Path(arguments.path)
    page = Path(arguments.output) if arguments.output else None
    if page is not None:
        make_folder(page.parent, "the folder of --output,")
    if not path.exists():
        raise ConfigError(
            f"there is no '{path}'; name a run directory, which holds generations/, the output folder of `cfpo eval`, or "
            "a file of responses"
        )
    if path.is_dir() and RunDirectory(path).generations.is_dir():
        say(str(write_run_page(path, page)))
        return 0
    file = path / "generations.jsonl" if path.is_dir() else path
    if not file.is_file():
        raise ConfigError(
            f"'{path}' has neither generations/ nor generations.jsonl; name a run directory, the output folder of "
            "`cfpo eval`, or a file of responses"
        )
    say(str(write_page([file], page or file.with_name(PAGE), title=f"Responses in {file}")))
    return 0
