"""What a hybrid worker is told at its start: configuration and layouts, nothing that changes later."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cfpo_hybrid.parallel_layout import ParallelLayout
from workers.config import ActorConfig, AlgorithmConfig, ModelConfig, PolicyLossConfig, RolloutConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class HybridSettings:
    """Everything the two engines of a worker are built from.

    Args:
        train_layout: Megatron's ranks.
        rollout_layout: vLLM's ranks, over the same world; pp = cp = 1.
        policy_loss_knobs: the chosen loss's own keys.
        max_prompt_length: tokens.
        max_response_length: tokens.
        total_optimizer_steps: length of the learning-rate schedule.
        seed: of parameters that have no checkpoint, and of Megatron's random state.
        device: ``"cpu"`` or ``"cuda"``.
    """

    model: ModelConfig
    actor: ActorConfig
    rollout: RolloutConfig
    algorithm: AlgorithmConfig
    policy_loss: PolicyLossConfig
    policy_loss_knobs: Mapping[str, Any] = field(default_factory=dict)
    train_layout: ParallelLayout
    rollout_layout: ParallelLayout
    max_prompt_length: int
    max_response_length: int
    total_optimizer_steps: int
    seed: int
    device: str
