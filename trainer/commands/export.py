"""``cfpo export MODEL OUT key=value ... [--check]``: writes a model as a Hugging Face folder, through any layout."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from trainer.export import ExportReport, export

NAMED = 20
"""Tensors that are listed when they differ."""


def run(arguments: Namespace, write: Callable[[str], None]) -> int:
    """Exports; 1 when the result is not the source."""
    report = export(arguments.model, Path(arguments.output), arguments.overrides, check=arguments.check)
    layout = report.layout
    write(
        f"{report.num_tensors} tensors in {report.dtype} written to {arguments.output} by {layout.world_size} "
        f"processes (tp={layout.tp}, pp={layout.pp}, ep={layout.ep})"
    )
    return 0 if report.differences is None else _verdict(report, report.differences, write)


def _verdict(report: ExportReport, differences: tuple[str, ...], write: Callable[[str], None]) -> int:
    if not differences:
        write(f"check passed: every tensor equals that of {report.source} bit for bit")
        return 0
    write(f"check FAILED: {len(differences)} tensors are not those of {report.source}:")
    for difference in differences[:NAMED]:
        write(f"  {difference}")
    if len(differences) > NAMED:
        write(f"  ... and {len(differences) - NAMED} more")
    return 1
