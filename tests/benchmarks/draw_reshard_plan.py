"""Draws who sends what in two reshard plans: docs/reshard_plan.svg.

.venv/bin/python tests/benchmarks/draw_reshard_plan.py docs/reshard_plan.svg
"""

import sys

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np
from bench_reshard_plan import BF16, CONFIGS
from matplotlib.axes import Axes

from cfpo_hybrid.models import model_shape
from cfpo_hybrid.models.weight_plan import Handover, Placement, weight_plan
from cfpo_hybrid.parallel_layout import ParallelLayout

WORLD, ROLLOUT_TP = 8, 2
TRAINING = {"same tp, two stages": {"tp": 2, "pp": 2}, "twice the tp": {"tp": 4}}


def gigabytes(training: ParallelLayout) -> np.ndarray:
    """[sender, receiver], local copies on the diagonal."""
    handover = Handover(
        shape=model_shape(CONFIGS["Qwen2.5-7B"]),
        training=training,
        rollout=ParallelLayout.of_world(WORLD, tp=ROLLOUT_TP),
        placement=Placement.colocated(WORLD),
        ranks_per_node=WORLD,
    )
    moved = np.zeros((WORLD, WORLD))
    for route in (route for routes in weight_plan(handover).routes for route in routes):
        moved[route.source_rank, route.destination_rank] += route.volume * BF16 / 1e9
    return moved


def draw(axes: Axes, title: str, training: ParallelLayout) -> None:
    moved = gigabytes(training)
    axes.imshow(moved, cmap="Blues", vmin=0, vmax=10)
    for sender, receiver in np.argwhere(moved > 0.005):
        value = moved[sender, receiver]
        weight = "bold" if sender == receiver else "normal"
        axes.text(receiver, sender, f"{value:.2f}", ha="center", va="center", fontsize=8, weight=weight)
    places = [training.coordinate(rank) for rank in range(WORLD)]
    axes.set_yticks(range(WORLD), [f"{rank}: stage {at.pp}, tp {at.tp}" for rank, at in enumerate(places)])
    axes.set_xticks(range(WORLD), [f"{rank}: tp {rank % ROLLOUT_TP}" for rank in range(WORLD)], rotation=90)
    axes.set(title=f"{title}: Megatron dp {training.dp} x pp {training.pp} x tp {training.tp}")
    axes.set(xlabel="to vLLM's rank", ylabel="from Megatron's rank")


def main(path: str) -> None:
    plt.rcParams["svg.fonttype"] = "none"
    plt.rcParams["svg.hashsalt"] = "reshard plan"  # the same file every time
    figure, panels = plt.subplots(1, len(TRAINING), figsize=(13, 5.6), layout="constrained")
    for axes, (title, sizes) in zip(panels, TRAINING.items(), strict=True):
        draw(axes, title, ParallelLayout.of_world(WORLD, **sizes))
    figure.suptitle(f"Qwen2.5-7B, {WORLD} ranks, vLLM {WORLD // ROLLOUT_TP} x tp {ROLLOUT_TP}: GB (bold: own memory)")
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main(sys.argv[1])
