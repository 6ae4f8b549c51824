"""Resharding: shard specs of two engines, the plan between them, its proof, and its execution."""

from cfpo_hybrid.resharding.host_memory import HostMemory, join_host
from cfpo_hybrid.resharding.plan import Copy, ReshardPlan
from cfpo_hybrid.resharding.planner import build_plan
from cfpo_hybrid.resharding.proof import check_plan
from cfpo_hybrid.resharding.shard_spec import Piece, Rectangle, ShardSpec
from cfpo_hybrid.resharding.stats import ReshardStats
from cfpo_hybrid.resharding.transfer import Resharder

__all__ = [
    "Copy",
    "HostMemory",
    "Piece",
    "Rectangle",
    "ReshardPlan",
    "ReshardStats",
    "Resharder",
    "ShardSpec",
    "build_plan",
    "check_plan",
    "join_host",
]
