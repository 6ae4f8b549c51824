"""Off-policy pressure: how far the policy in training may be from the one that sampled.

A rollout batch is passed over ``iterations`` times, each pass cut into ``batch_ratio`` optimizer steps, so there are
iterations x batch_ratio steps a rollout. The first one trains the policy that sampled; the k-th is k - 1 steps away.
"""

from dataclasses import dataclass

from trainer.config import Config
from workers.config import AlgorithmConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class OffPolicyPressure:
    """What iterations and batch ratio amount to.

    Example: 4 iterations of 4 mini-batches: 16 optimizer steps, 15 off-policy, lag 15, each sample used 4 times.
    """

    optimizer_steps: int
    """A rollout."""
    uses_per_sample: int

    @classmethod
    def of(cls, algorithm: AlgorithmConfig) -> "OffPolicyPressure":
        """The pressure of these settings."""
        steps = algorithm.iterations * algorithm.batch_ratio
        return cls(optimizer_steps=steps, uses_per_sample=algorithm.iterations)

    @property
    def off_policy_steps(self) -> int:
        """Steps whose policy is no longer the one that sampled."""
        return self.optimizer_steps - 1

    @property
    def largest_lag(self) -> int:
        """Optimizer steps between the policy that sampled and the one the last step starts from."""
        return self.optimizer_steps - 1

    def __str__(self) -> str:
        steps = "1 optimizer step" if self.optimizer_steps == 1 else f"{self.optimizer_steps} optimizer steps"
        uses = "once" if self.uses_per_sample == 1 else f"{self.uses_per_sample} times"
        return (
            f"{steps} a rollout, {self.off_policy_steps} of them off-policy, largest lag {self.largest_lag}, "
            f"each sample used {uses}"
        )


def pressure_line(config: Config) -> str:
    """The pressure of a run in one line, e.g. ``16 optimizer steps a rollout, 15 of them off-policy, ...``."""
    return str(OffPolicyPressure.of(config.algorithm))
