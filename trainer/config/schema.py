"""The root of the configuration, and the numbers that follow from it.

    model       which model                        rollout     generation with vLLM
    data        prompts                            reward      how responses are scored
    actor       Megatron-core and the optimizer    algorithm   advantages, off-policy pressure, KL, aggregation
    policy_loss the loss and its own knobs         trainer     workers, length, directory
    watch       limits that stop a run

A derived number is a property here, never a second knob.
"""

from dataclasses import dataclass, field
from functools import cached_property

from cfpo_hybrid.parallel_layout import ParallelLayout
from trainer.config.data_config import DataConfig
from trainer.config.trainer_config import TrainerConfig
from workers.config import ActorConfig, AlgorithmConfig, ModelConfig, PolicyLossConfig, RewardConfig, RolloutConfig
from workers.step_plan import StepPlan
from workers.watch_config import WatchConfig


@dataclass(frozen=True)
class Config:
    """Everything that a run is told. Frozen: nothing changes a setting after loading."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    policy_loss: PolicyLossConfig = field(default_factory=PolicyLossConfig)
    actor: ActorConfig = field(default_factory=ActorConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)

    @property
    def train_layout(self) -> ParallelLayout:
        """How Megatron's processes are laid out."""
        megatron = self.actor.megatron
        return ParallelLayout.of_world(
            self.trainer.world_size,
            tp=megatron.tensor_parallel_size,
            pp=megatron.pipeline_parallel_size,
            cp=megatron.context_parallel_size,
            ep=megatron.expert_parallel_size,
        )

    @property
    def rollout_layout(self) -> ParallelLayout:
        """How vLLM's processes are laid out: replicas of consecutive ranks."""
        return ParallelLayout.of_world(self.trainer.world_size, tp=self.rollout.tensor_parallel_size)

    @property
    def responses_per_step(self) -> int:
        """Rows of a rollout batch: prompts x group size."""
        return self.data.train_batch_size * self.rollout.group_size

    @property
    def total_updates(self) -> int:
        """Optimizer steps of the whole run; the learning-rate schedule is counted in these."""
        return self.trainer.total_steps * self.algorithm.updates_per_step

    @cached_property
    def plan(self) -> StepPlan:
        """What a rollout step does.

        Raises:
            UserError: there is no such loss or advantage, which a loaded configuration has been checked for.
        """
        return StepPlan.of(self.algorithm, self.policy_loss, self.rollout)
