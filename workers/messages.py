"""What hybrid workers are told when a run begins, and the reports that they answer with; light to import."""

from dataclasses import dataclass

from cfpo_hybrid.models import ModelShape
from cfpo_hybrid.models.weight_plan import Handover, Placement
from cfpo_hybrid.parallel_layout import ParallelLayout
from workers.config import ActorConfig, AlgorithmConfig, ModelConfig, PolicyLossConfig, RolloutConfig, WatchConfig
from workers.step_plan import StepPlan


@dataclass(frozen=True, kw_only=True, slots=True)
class HybridSettings:
    """Everything the two engines of a worker are built from; nothing in it changes during the run.

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


@dataclass(frozen=True, slots=True)
class UpdateRecord:
    """One optimizer step.

    Args:
        iteration: the pass over the rollout batch, from 0.
        mini_batch: its place in the pass, from 0.
        metrics: over all ranks.
    """

    iteration: int
    mini_batch: int
    metrics: dict[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Trip:
    """A declared limit that was crossed.

    Args:
        limit: its setting, e.g. ``"watch.kl"``.
        finding: what was found, e.g. ``"actor/kl_k3 is 0.31, above 0.1"``.
        action: what follows; see ``WatchConfig``.
    """

    limit: str
    finding: str
    action: str

    def __str__(self) -> str:
        return f"{self.limit}: {self.finding}"


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateReport:
    """Step 6 of a rollout.

    Args:
        updates: each optimizer step, in order; fewer than iterations x batch ratio where a limit stopped the passes.
        trips: limits that were crossed, each at its first time.
    """

    updates: list[UpdateRecord]
    trips: list[Trip]


@dataclass(frozen=True, kw_only=True, slots=True)
class SyncReport:
    """One reshard, over all ranks.

    Args:
        policy_version: rollout steps whose updates the weights in vLLM have seen.
        seconds: of the slowest rank, waking and the cache reset included.
        parts: seconds of copies at home, packing, waiting for other ranks and unpacking, each of the slowest rank.
        bytes_total: written into vLLM's parameters.
        bytes_moved: of these, that crossed processes.
        probe_difference: largest difference in nats on the probe; None when it was not due.
        weight_lag: rollout steps by which these weights are older than the policy in training.
    """

    policy_version: int
    seconds: float
    parts: dict[str, float]
    bytes_total: int
    bytes_moved: int
    probe_difference: float | None
    weight_lag: int = 0

    @property
    def trained_version(self) -> int:
        """Rollout steps whose updates the policy in training has seen."""
        return self.policy_version + self.weight_lag
