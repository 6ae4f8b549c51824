"""A training layout in words, for the commands that print one."""

from cfpo_hybrid.models import PipelineCut
from cfpo_hybrid.parallel_layout import ParallelLayout


def training_line(layout: ParallelLayout, cut: PipelineCut) -> str:
    """The sizes of a layout; those that are mostly 1 only where they are not.

    Example: ``Megatron dp 2 x pp 2 (in 2 chunks each) x tp 1, ep 2``.
    """
    chunks = f" (in {cut.chunks} chunks each)" if cut.chunks > 1 else ""
    cp = f" x cp {layout.cp}" if layout.cp > 1 else ""
    ep = f", ep {layout.ep}" if layout.ep > 1 else ""
    return f"Megatron dp {layout.dp} x pp {layout.pp}{chunks}{cp} x tp {layout.tp}{ep}"
