"""Resharding: shard specs of two engines, the plan between them, its proof, and its execution.

    shard_spec.py    a rectangle of a tensor, and which pieces of the checkpoint's tensors a local parameter is made of
    planner.py       two descriptions -> a plan, in which all senders have equal loads
    plan.py          cargos (what moves), routes (from whom to whom), and the copies that follow from both
    proof.py         a plan writes every element once, with what belongs there
    traffic.py       bytes of a plan, beside the least that any could move
    transfer.py      carries a plan out, in buckets where it crosses processes

``transfer.py`` alone touches tensors, and is imported by its own name: plans are made and looked at without torch.
"""

from cfpo_hybrid.resharding.plan import Copy, ReshardPlan, Route
from cfpo_hybrid.resharding.planner import build_plan
from cfpo_hybrid.resharding.proof import check_plan
from cfpo_hybrid.resharding.shard_spec import Piece, Rectangle, Region, ShardSpec

__all__ = [
    "Copy",
    "Piece",
    "Rectangle",
    "Region",
    "ReshardPlan",
    "Route",
    "ShardSpec",
    "build_plan",
    "check_plan",
]
