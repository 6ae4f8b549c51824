"""Advantages from rewards: the registry, what an estimator sees, and the built-in estimators by family."""

from cfpo_hybrid.algorithms.advantage import group_relative, pass_at_k, reinforce, remax
from cfpo_hybrid.algorithms.advantage.groups import AdvantageInputs, RewardGroups
from cfpo_hybrid.algorithms.advantage.registry import (
    ADVANTAGES,
    Advantage,
    build_advantage,
    compute_advantages,
    register_advantage,
)

__all__ = [
    "ADVANTAGES",
    "Advantage",
    "AdvantageInputs",
    "RewardGroups",
    "build_advantage",
    "compute_advantages",
    "group_relative",
    "pass_at_k",
    "register_advantage",
    "reinforce",
    "remax",
]
