"""From what a step did to the line of metrics that says it."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from cfpo_hybrid.protocol import DataProto
from trainer.run.metrics import (
    average_updates,
    length_metrics,
    mean_ref_kl,
    reward_metrics,
    rollout_step_seconds,
    throughput_metrics,
)
from trainer.session import StepReport
from workers.reports import SyncReport, Trip


def step_metrics(
    report: StepReport, reshards: Sequence[SyncReport], stage_seconds: Mapping[str, float]
) -> dict[str, float]:
    """The metrics of a rollout step under the names of docs/run_directory.md.

    Args:
        report: of the step.
        reshards: all that it took, validation included.
        stage_seconds: ``time/<stage>`` and ``time/step``.
    """
    batch = report.batch
    tokens = int(batch.num_tokens.sum())
    metrics = {
        **reward_metrics(batch["rewards"], batch["group_ids"], batch["verdicts"] if "verdicts" in batch else None),
        **length_metrics(batch["response_lengths"], batch["truncated"]),
        **counted_rewards(report.reward_meta),
        **report.metrics,
        **average_updates([update.metrics for update in report.updates]),
        **throughput_metrics(tokens, len(batch), rollout_step_seconds(stage_seconds)),
        **stage_seconds,
        **reshard_metrics(reshards),
        "policy_version": float(report.policy_version),
    }
    ref_kl = mean_ref_kl(batch)
    if ref_kl is not None:
        metrics |= {"rollout/ref_kl": ref_kl, "actor/kl_coef": report.kl_coef}
    return metrics


def reshard_metrics(reshards: Sequence[SyncReport]) -> dict[str, float]:
    """Time and bytes of some reshards together, the largest difference on the probe, and their number where it is not 1."""
    parts = {part for sync in reshards for part in sync.parts}
    metrics = {
        "reshard/seconds": sum(sync.seconds for sync in reshards),
        **{f"reshard/seconds_{part}": sum(sync.parts.get(part, 0.0) for sync in reshards) for part in sorted(parts)},
        "reshard/bytes": float(sum(sync.bytes_total for sync in reshards)),
        "reshard/bytes_moved": float(sum(sync.bytes_moved for sync in reshards)),
    }
    differences = [sync.probe_difference for sync in reshards if sync.probe_difference is not None]
    if differences:
        metrics["reshard/probe_difference"] = max(differences)
    if len(reshards) != 1:
        metrics["reshard/count"] = float(len(reshards))
    return metrics


def trip_metrics(trips: Sequence[Trip], updates_left_out: int) -> dict[str, float]:
    """How many limits a step crossed and how many optimizer steps that cost; nothing where it crossed none."""
    return {"watch/trips": float(len(trips)), "watch/updates_left_out": float(updates_left_out)} if trips else {}


def batch_to_keep(report: StepReport, trips: Sequence[Trip]) -> DataProto:
    """The rollout batch as ``cfpo lab`` reads it, with the rollout step and the limits it crossed in its metadata.

    Where the only optimizer step needed no old_log_probs, what vLLM sampled with stands for them.
    """
    batch = report.batch
    if "old_log_probs" not in batch:
        batch = batch.with_columns(old_log_probs=batch["rollout_log_probs"])
    return batch.with_meta(step=report.step + 1, trips=[str(trip) for trip in trips])


def counted_rewards(replicas: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What the reward workers counted, over all replicas and rounds: sums of their counts, means of their means."""
    counts: dict[str, float] = defaultdict(float)
    means: dict[str, tuple[float, int]] = defaultdict(lambda: (0.0, 0))
    for replica in replicas:
        for name, count in replica.get("counts", {}).items():
            counts[name] += count
        for name, (total, number) in replica.get("means", {}).items():
            means[name] = means[name][0] + total, means[name][1] + number
    found = {name: total / number for name, (total, number) in means.items() if number}
    return dict(sorted((counts | found).items()))
