"""What a hybrid worker is told when a run begins: configuration and layouts, nothing that changes during the run."""

from dataclasses import dataclass

from cfpo_hybrid.models import ModelShape
from cfpo_hybrid.models.weight_plan import Handover, Placement
from cfpo_hybrid.parallel_layout import ParallelLayout
from workers.config import ActorConfig, AlgorithmConfig, ModelConfig, PolicyLossConfig, RolloutConfig
from workers.step_plan import StepPlan
from workers.watch_config import WatchConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class HybridSettings:
    """Everything the two engines of a worker are built from.

    Args:
        plan: what a rollout step does.
        train_layout: Megatron's ranks.
        rollout_layout: vLLM's ranks, over the same world; pp = cp = 1.
        max_prompt_length: tokens.
        max_response_length: tokens.
        total_optimizer_steps: length of the learning-rate schedule.
        ranks_per_node: workers that share a machine.
        seed: of parameters that have no checkpoint, and of Megatron's random state.
        device: ``"cpu"`` or ``"cuda"``.
    """

    model: ModelConfig
    actor: ActorConfig
    rollout: RolloutConfig
    algorithm: AlgorithmConfig
    policy_loss: PolicyLossConfig
    watch: WatchConfig
    plan: StepPlan
    train_layout: ParallelLayout
    rollout_layout: ParallelLayout
    max_prompt_length: int
    max_response_length: int
    total_optimizer_steps: int
    ranks_per_node: int
    seed: int
    device: str

    def handover(self, shape: ModelShape) -> Handover:
        """What the plan of the weight sync is made from."""
        return Handover(
            shape=shape,
            training=self.train_layout,
            rollout=self.rollout_layout,
            placement=Placement.colocated(self.train_layout.world_size),
            ranks_per_node=self.ranks_per_node,
            cut=self.actor.megatron.cut,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationSettings:
    """What a worker that only generates is built from.

    Args:
        rollout_layout: vLLM's ranks; pp = cp = 1.
        max_model_len: longest prompt + response, in tokens.
        device: ``"cpu"`` or ``"cuda"``.
    """

    model: ModelConfig
    rollout: RolloutConfig
    rollout_layout: ParallelLayout
    max_model_len: int
    device: str
