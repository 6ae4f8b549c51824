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
class SyncReport:
    """One reshard, over all ranks.

    Args:
        policy_version: rollout steps whose updates the weights in vLLM have seen.
        seconds: of the slowest rank, waking and the cache reset included.
        parts: seconds of copies at home, packing, waiting for other ranks and unpacking, each of the slowest rank.
        bytes_total: written into vLLM's parameters.
        bytes_moved: of these, that crossed processes.
        probe_difference: largest difference in nats on the probe; None when it was not due.
    """

    policy_version: int
    seconds: float
    parts: dict[str, float]
    bytes_total: int
    bytes_moved: int
    probe_difference: float | None
