"""Numbers and layouts in words, as several commands print them."""

from datetime import timedelta

from cfpo_hybrid.models import PipelineCut
from cfpo_hybrid.parallel_layout import ParallelLayout


def count(number: int, noun: str) -> str:
    """``1 node``, ``2 nodes``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def duration(seconds: float) -> str:
    """Seconds for people, e.g. ``0:01:42``."""
    return str(timedelta(seconds=round(seconds)))


def training_line(layout: ParallelLayout, cut: PipelineCut) -> str:
    """The sizes of a training layout; those that are mostly 1 only where they are not.

    Example: ``Megatron dp 2 x pp 2 (in 2 chunks each) x tp 1, ep 2``.
    """
    chunks = f" (in {cut.chunks} chunks each)" if cut.chunks > 1 else ""
    cp = f" x cp {layout.cp}" if layout.cp > 1 else ""
    ep = f", ep {layout.ep}" if layout.ep > 1 else ""
    return f"Megatron dp {layout.dp} x pp {layout.pp}{chunks}{cp} x tp {layout.tp}{ep}"
