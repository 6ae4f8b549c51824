"""Configuration of the collapse watch: limits that a run declares, and what follows when one is crossed."""

from dataclasses import dataclass

PASS_ACTIONS = ("warn", "stop_passes", "stop")
"""What a limit on an optimizer step may lead to."""
STEP_ACTIONS = ("warn", "stop")
"""What a limit on rollout steps may lead to: when it is looked at, the passes are over."""


@dataclass(frozen=True)
class WatchConfig:
    """Limits, none by default. Actions: "warn" says so and goes on; "stop_passes" leaves out the optimizer steps that
    this rollout has left; "stop" does that too, saves a checkpoint and ends the run with exit code 3.
    """

    kl: float | None = None
    """Largest KL to the policy that sampled in nats a token (`actor/kl_k3`) of an optimizer step: the target KL."""
    kl_action: str = "stop_passes"
    """"warn", "stop_passes" (the optimizer step that shows the KL is the rollout's last) or "stop"."""
    ess: float | None = None
    """Smallest effective sample size as a share (`actor/ess`) of an optimizer step."""
    ess_action: str = "stop_passes"
    """"warn", "stop_passes" or "stop"."""
    non_finite_action: str = "stop"
    """Where a gradient, loss, KL or entropy is not finite: "warn", "stop_passes" or "stop". A step whose gradient is not
    finite is never taken."""
    entropy_slope: float | None = None
    """Nats a rollout step by which `actor/entropy` may fall: the slope of a line through the last `window` steps."""
    entropy_slope_action: str = "warn"
    """"warn" or "stop"."""
    length_drift: float | None = None
    """Share by which the mean response length of the last `window` steps may differ from that of the `window` before."""
    length_drift_action: str = "warn"
    """"warn" or "stop"."""
    zero_reward_streak: int | None = None
    """Rollout steps in a row in which no response earns a reward above 0."""
    zero_reward_streak_action: str = "stop"
    """"warn" or "stop"."""
    window: int = 10
    """Rollout steps that entropy_slope and length_drift look back on."""
    saved_batches: int = 8
    """Batches of steps that crossed a limit to save, the first ones; that of a "stop" is always saved."""
