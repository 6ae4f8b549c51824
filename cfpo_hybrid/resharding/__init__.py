"""Resharding: shard specs of two engines, the plan between them, and its execution."""

from cfpo_hybrid.resharding.plan import Copy, ReshardPlan, build_plan
from cfpo_hybrid.resharding.shard_spec import Piece, Rectangle, ShardSpec
from cfpo_hybrid.resharding.transfer import Resharder, ReshardStats

__all__ = ["Copy", "Piece", "Rectangle", "ReshardPlan", "ReshardStats", "Resharder", "ShardSpec", "build_plan"]
