"""What hybrid workers tell the driver; light to import."""

from dataclasses import dataclass


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
        action: what follows; see ``workers/watch_config.py``.
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
