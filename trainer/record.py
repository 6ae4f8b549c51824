"""From what a step did to the line of metrics that says it."""

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.advantages import mean_ref_kl
from trainer.metrics import average_updates, length_metrics, reward_metrics, throughput_metrics
from trainer.session import StepReport


def step_metrics(report: StepReport, stage_seconds: Mapping[str, float]) -> dict[str, float]:
    """The metrics of a rollout step under the names of docs/metrics.md.

    Args:
        report: of the step.
        stage_seconds: ``time/<stage>`` and ``time/step``.
    """
    batch, sync = report.batch, report.sync
    tokens = int(batch.num_tokens.sum())
    metrics = {
        **reward_metrics(batch["rewards"], batch["group_ids"]),
        **length_metrics(batch["response_lengths"], batch["truncated"]),
        **_counters(report.reward_meta),
        **average_updates([update.metrics for update in report.updates]),
        **throughput_metrics(tokens, len(batch), stage_seconds["time/step"]),
        **stage_seconds,
        "reshard/seconds": sync.seconds,
        **{f"reshard/seconds_{part}": seconds for part, seconds in sync.parts.items()},
        "reshard/bytes": float(sync.bytes_total),
        "reshard/bytes_moved": float(sync.bytes_moved),
        "policy_version": float(sync.policy_version),
    }
    ref_kl = mean_ref_kl(batch)
    if ref_kl is not None:
        metrics |= {"rollout/ref_kl": ref_kl, "actor/kl_coef": report.kl_coef}
    if sync.probe_difference is not None:
        metrics["reshard/probe_difference"] = sync.probe_difference
    return metrics


def _counters(replicas: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    names = {name for counters in replicas for name in counters}
    return {name: float(sum(counters.get(name, 0) for counters in replicas)) for name in sorted(names)}
