"""``cfpo lab BATCH|RUN_DIR``: compares policy losses on one saved rollout, without stepping."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from trainer.lab.lab import LabOptions, run_lab
from trainer.lab.lab_files import text, write_files
from trainer.run.folders import make_folder


def run(arguments: Namespace, write: Callable[[str], None]) -> int:
    """Compares, prints the table and the files."""
    result = run_lab(
        LabOptions(
            source=Path(arguments.source),
            losses=arguments.losses,
            plugins=arguments.plugins,
            model=arguments.model,
            drift=arguments.drift,
            seed=arguments.seed,
            temperature=arguments.temperature,
        )
    )
    write(text(result))
    folder = Path(arguments.out) if arguments.out else result.rollout.path.with_suffix(".lab")
    make_folder(folder, "--out")
    for path in write_files(result, folder):
        write(str(path))
    return 0
