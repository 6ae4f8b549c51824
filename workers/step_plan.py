"""What a rollout step does, derived once from the configuration: the driver, the workers and `cfpo check` all read it."""

from dataclasses import dataclass

from cfpo_hybrid.algorithms.advantage import ADVANTAGES
from cfpo_hybrid.algorithms.policy_loss import build_policy_loss
from workers.config import AlgorithmConfig, PolicyLossConfig, RolloutConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class StepPlan:
    """Which models exist, which passes run, and how far the policy in training may be from the one that sampled.

    A rollout batch is passed over ``iterations`` times, each pass cut into ``batch_ratio`` optimizer steps. The first of
    them trains the policy that sampled; the k-th is k - 1 steps away. Where the weights that sample lag behind by some
    rollout steps, every step is that many rollouts further away.

    Example: 4 iterations of 4 mini-batches: 16 optimizer steps, 15 off-policy, lag 15, each sample used 4 times.
    """

    iterations: int
    """Passes over a rollout batch: uses of each sample."""
    batch_ratio: int
    """Optimizer steps of a pass."""
    weight_lag: int
    """Rollout steps by which the weights that sample are older than the policy in training."""
    log_prob_noise: float
    """Nats, on the rollout's log-probs."""
    reference: bool
    """A frozen copy of the starting model exists: the KL penalty, or the policy loss itself, looks at it."""
    kl_in_reward: bool
    """The KL penalty is taken from the reward of a response."""
    kl_in_loss: bool
    """The KL penalty is a term of the loss."""
    recompute_old_log_probs: bool
    """Old log-probs are Megatron's; otherwise those of the rollout stand for them."""
    log_prob_pass: bool
    """Step 4 has something to add to the batch."""
    greedy_baseline: bool
    """The advantage compares a response with the greedy one to the same prompt."""
    mask_truncated: bool
    """Responses that hit the length limit are left out of the loss."""

    @classmethod
    def of(cls, algorithm: AlgorithmConfig, policy_loss: PolicyLossConfig, rollout: RolloutConfig) -> "StepPlan":
        """The plan of a configuration whose plugins are loaded.

        Raises:
            UserError: there is no such loss or advantage, or the loss does not take these knobs.
        """
        loss = build_policy_loss(policy_loss.name, **policy_loss.knobs)
        reference = algorithm.kl_coef > 0 or "ref_log_probs" in loss.needs
        recompute = algorithm.old_log_probs == "recompute"
        # The only optimizer step of a rollout trains the policy that sampled: its ratio is 1 without a pass for old
        # log-probs. A loss may want statistics of them over the mini-batch, and truncated sampling the mass it kept.
        off_policy = algorithm.updates_per_step > 1 or algorithm.weight_lag > 0
        adds_old = recompute and (off_policy or loss.needs_statistics or rollout.truncates)
        return cls(
            iterations=algorithm.iterations,
            batch_ratio=algorithm.batch_ratio,
            weight_lag=algorithm.weight_lag,
            log_prob_noise=algorithm.log_prob_noise,
            reference=reference,
            kl_in_reward=algorithm.kl_coef > 0 and algorithm.kl_in_reward,
            kl_in_loss=algorithm.kl_coef > 0 and not algorithm.kl_in_reward,
            recompute_old_log_probs=recompute,
            log_prob_pass=reference or adds_old,
            greedy_baseline="greedy_rewards" in ADVANTAGES.get(algorithm.advantage).needs,
            mask_truncated=algorithm.mask_truncated,
        )

    @property
    def optimizer_steps(self) -> int:
        """A rollout."""
        return self.iterations * self.batch_ratio

    @property
    def on_policy(self) -> bool:
        """Every optimizer step trains the very policy that sampled: all ratios are 1."""
        return self.off_policy_steps == 0

    @property
    def off_policy_steps(self) -> int:
        """Optimizer steps of a rollout whose policy is no longer the one that sampled."""
        return self.optimizer_steps - (0 if self.weight_lag else 1)

    @property
    def largest_lag(self) -> int:
        """Optimizer steps between the policy that sampled and the one the last step starts from."""
        return (self.weight_lag + 1) * self.optimizer_steps - 1
