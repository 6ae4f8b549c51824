"""Off-policy pressure: how far the policy in training may be from the one that sampled.

A rollout batch is passed over ``iterations`` times, each pass cut into ``batch_ratio`` optimizer steps, so there are
iterations x batch_ratio steps a rollout. The first one trains the policy that sampled; the k-th is k - 1 steps away.
Where the weights that sample lag behind by some rollout steps, every step is that many rollouts further away.
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
    weight_lag: int = 0
    """Rollout steps by which the weights that sample are older than the policy in training."""
    log_prob_noise: float = 0.0
    """Nats, on the rollout's log-probs."""

    @classmethod
    def of(cls, algorithm: AlgorithmConfig) -> "OffPolicyPressure":
        """The pressure of these settings."""
        return cls(
            optimizer_steps=algorithm.iterations * algorithm.batch_ratio,
            uses_per_sample=algorithm.iterations,
            weight_lag=algorithm.weight_lag,
            log_prob_noise=algorithm.log_prob_noise,
        )

    @property
    def off_policy_steps(self) -> int:
        """Steps whose policy is no longer the one that sampled."""
        return self.optimizer_steps - (0 if self.weight_lag else 1)

    @property
    def largest_lag(self) -> int:
        """Optimizer steps between the policy that sampled and the one the last step starts from."""
        return (self.weight_lag + 1) * self.optimizer_steps - 1

    def __str__(self) -> str:
        uses = "once" if self.uses_per_sample == 1 else f"{self.uses_per_sample} times"
        parts = [
            f"{_count(self.optimizer_steps, 'optimizer step')} a rollout",
            f"{self.off_policy_steps} of them off-policy",
            f"largest lag {self.largest_lag}",
            f"each sample used {uses}",
        ]
        if self.weight_lag:
            parts.append(f"sampled by weights {_count(self.weight_lag, 'rollout step')} old")
        if self.log_prob_noise:
            parts.append(f"noise of {self.log_prob_noise:g} nats on the rollout's log-probs")
        return ", ".join(parts)


def pressure_line(config: Config) -> str:
    """The pressure of a run in one line, e.g. ``16 optimizer steps a rollout, 15 of them off-policy, ...``."""
    return str(OffPolicyPressure.of(config.algorithm))


def _count(number: int, noun: str) -> str:
    return f"1 {noun}" if number == 1 else f"{number} {noun}s"
