"""From what a rollout step did to the line of metrics that says it, and the seconds of its stages.

Names are those of the run directory's ``metrics.jsonl``: ``reward/...``, ``response_length/...``, ``perf/...``,
``time/<stage>``, ``reshard/...``. What the policy loss measures (``actor/...``) comes from the workers, one dict an optimizer
step, and ``average_updates`` makes one dict a rollout step of them.
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cfpo_hybrid.protocol import DataProto
from workers.messages import SyncReport, Trip, UpdateRecord

BESIDE_THE_STEP = ("start", "validation", "save")
"""Stages that fall into the time of some steps and not of others: a pace must not hang on them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """What one training step did.

    Args:
        step: the rollout step, counted from 0.
        batch: the rollout with rewards and advantages; its wide columns may lie elsewhere.
        kl_coef: weight of the KL penalty that the step was trained with.
        reward_meta: what each reward worker counted.
        metrics: of the data and of the rounds of generation.
        updates: each optimizer step.
        trips: limits that an optimizer step crossed.
        policy_version: rollout steps whose updates the policy in training has seen.
    """

    step: int
    batch: DataProto
    kl_coef: float
    reward_meta: list[dict[str, Any]]
    metrics: dict[str, float]
    updates: list[UpdateRecord]
    trips: list[Trip]
    policy_version: int


def step_metrics(report: StepReport, reshards: Sequence[SyncReport], times: Mapping[str, float]) -> dict[str, float]:
    """The metrics of a rollout step under the names of docs/run_directory.md.

    Args:
        report: of the step.
        reshards: all that it took, validation included.
        times: ``time/<stage>`` and ``time/step``.
    """
    batch = report.batch
    tokens = int(batch.num_tokens.sum())
    metrics = {
        **reward_metrics(batch["rewards"], batch["group_ids"], batch["verdicts"] if "verdicts" in batch else None),
        **length_metrics(batch["response_lengths"], batch["truncated"]),
        **counted_rewards(report.reward_meta),
        **report.metrics,
        **average_updates([update.metrics for update in report.updates]),
        **throughput_metrics(tokens, len(batch), rollout_step_seconds(times)),
        **times,
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


def reward_metrics(rewards: Tensor, group_ids: Tensor, verdicts: Tensor | None = None) -> dict[str, float]:
    """Mean and spread of the rewards, and how many groups teach nothing.

    A group is all right or all wrong when all its responses are, and without signal when all its rewards are equal: its
    group-relative advantages are all 0. Responses without a reward (NaN) count nowhere.

    Args:
        rewards: [batch].
        group_ids: [batch] int64, the same number for all responses to a prompt.
        verdicts: [batch] of 0 and 1, where the reward is a verdict.

    Returns:
        ``reward/mean``, ``reward/std`` (of the batch as a whole, dividing by its size), ``reward/min``, ``reward/max``,
        where two groups or more have a reward ``reward/stderr`` (of the mean), and the shares of groups
        ``reward/groups_without_signal`` and, of verdicts, ``reward/groups_all_right`` and ``reward/groups_all_wrong``.
        Where there is no reward at all, only the first of these shares.
    """
    if rewards.numel() == 0:
        return {}
    lowest, highest, _ = group_extremes(rewards, group_ids)
    metrics = {"reward/groups_without_signal": _share(~(lowest < highest))}
    known = rewards[~rewards.isnan()].double()
    if known.numel() == 0:
        return metrics
    metrics = {
        "reward/mean": known.mean().item(),
        "reward/std": known.std(correction=0).item(),
        "reward/min": known.min().item(),
        "reward/max": known.max().item(),
        **metrics,
    }
    stderr = _clustered_stderr(rewards, group_ids)
    if stderr is not None:
        metrics["reward/stderr"] = stderr
    if verdicts is not None:
        lowest, highest, _ = group_extremes(verdicts, group_ids)
        judged = torch.isfinite(lowest)
        metrics |= {
            "reward/groups_all_right": _share((lowest >= 1) & judged),
            "reward/groups_all_wrong": _share((highest <= 0) & judged),
        }
    return metrics


def _clustered_stderr(rewards: Tensor, group_ids: Tensor) -> float | None:
    """Standard error of the mean reward where groups are independent and rewards within a group are not.

    With S the sum and n the number of a group's rewards, N that of all, m the mean and G the number of groups:
    sqrt(G / (G - 1) sum (S - m n)^2) / N. For groups of equal size that is the standard deviation of the group means
    over sqrt(G). NaN counts as no reward.

    Returns:
        None with fewer than two groups.
    """
    groups, row_to_group = torch.unique(group_ids, return_inverse=True)
    known = ~rewards.isnan()
    values, index = rewards[known].double(), row_to_group[known]
    zeros = torch.zeros(groups.numel(), dtype=torch.float64)
    # Deviations are summed, so that equal rewards have an error of exactly 0.
    deviations = zeros.scatter_add(0, index, values - values.mean())
    count = int(zeros.scatter_add(0, index, torch.ones_like(values)).count_nonzero())
    if count < 2:
        return None
    return math.sqrt(count / (count - 1) * float(deviations.square().sum())) / values.numel()


def group_extremes(rewards: Tensor, group_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Lowest and highest reward of each group by ascending id, ``[group]`` fp64, and the group of each row, ``[batch]``.

    NaN counts as no reward; of a group without any, they are inf and -inf.
    """
    groups, row_to_group = torch.unique(group_ids, return_inverse=True)
    known = ~rewards.isnan()
    values, index = rewards[known].double(), row_to_group[known]
    lowest = torch.full((groups.numel(),), math.inf, dtype=torch.float64).scatter_reduce(0, index, values, "amin")
    highest = torch.full((groups.numel(),), -math.inf, dtype=torch.float64).scatter_reduce(0, index, values, "amax")
    return lowest, highest, row_to_group


def length_metrics(response_lengths: Tensor, truncated: Tensor) -> dict[str, float]:
    """Tokens of the responses, the stop token included, and the share that hit the length limit.

    Args:
        response_lengths: [batch] int64.
        truncated: [batch] bool.

    Returns:
        ``response_length/mean``, ``/max``, ``/min`` and ``/truncated_share``.
    """
    if response_lengths.numel() == 0:
        return {}
    lengths = response_lengths.double()
    return {
        "response_length/mean": lengths.mean().item(),
        "response_length/max": lengths.max().item(),
        "response_length/min": lengths.min().item(),
        "response_length/truncated_share": _share(truncated),
    }


def mean_ref_kl(batch: DataProto) -> float | None:
    """KL to the reference in nats a response token, before the update; None where there is no reference."""
    if "ref_kl" not in batch:
        return None
    return float(batch["ref_kl"].double().sum() / batch["response_lengths"].sum().clamp(min=1))


def rollout_step_seconds(times: Mapping[str, float]) -> float:
    """Seconds from drawing the prompts to the new weights: ``time/step`` without the stages of ``BESIDE_THE_STEP``.

    Args:
        times: ``time/<stage>`` and ``time/step``.
    """
    return times["time/step"] - sum(times.get(f"time/{stage}", 0.0) for stage in BESIDE_THE_STEP)


def stage_seconds(line: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of each stage of a line of ``metrics.jsonl``, ``time/step`` left out."""
    times = {name.removeprefix("time/"): value for name, value in line.items() if name.startswith("time/")}
    return {stage: seconds for stage, seconds in times.items() if stage != "step" and seconds is not None}


def stage_totals(metrics: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds of each stage over the lines of ``metrics.jsonl``, the longest first."""
    totals: dict[str, float] = defaultdict(float)
    for line in metrics:
        for stage, seconds in stage_seconds(line).items():
            totals[stage] += seconds
    return dict(sorted(totals.items(), key=lambda stage: -stage[1]))


def throughput_metrics(num_tokens: int, num_responses: int, seconds: float) -> dict[str, float]:
    """Pace of a whole step.

    Args:
        num_tokens: prompt and response tokens of the rollout batch, each response with its own prompt.
        num_responses: rows of the rollout batch.
        seconds: of the step, from drawing the prompts to the new weights in the rollout engine.

    Returns:
        ``perf/tokens_per_second`` and ``perf/samples_per_second``.
    """
    if seconds <= 0:
        return {}
    return {"perf/tokens_per_second": num_tokens / seconds, "perf/samples_per_second": num_responses / seconds}


def average_updates(updates: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """One dict from the metrics of all optimizer steps of a rollout step.

    A name that ends in ``max`` (``min``) keeps the largest (smallest) value; every other one is averaged. An update
    that lacks a name does not count for it; a value that is not finite makes the result so, rather than hiding.
    """
    values: dict[str, list[float]] = defaultdict(list)
    for update in updates:
        for name, value in update.items():
            values[name].append(value)
    return {name: _combine(name, numbers) for name, numbers in values.items()}


class StageTimer:
    """Seconds of each stage of a step, added up by name.

    A stage inside another counts in both. What is timed after ``collect`` (saving a checkpoint, say, which has to come
    after the step is logged) belongs to the next step.

    Args:
        on_enter: told the name of each stage as it begins, for a progress display.
        clock: seconds that only grow.
    """

    def __init__(
        self, on_enter: Callable[[str], None] | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._on_enter, self._clock = on_enter, clock
        self._seconds: dict[str, float] = {}
        self._since = clock()

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Adds the time of the block to a stage, also when the block raises."""
        if self._on_enter is not None:
            self._on_enter(stage)
        begin = self._clock()
        try:
            yield
        finally:
            self._seconds[stage] = self._seconds.get(stage, 0.0) + self._clock() - begin

    def collect(self) -> dict[str, float]:
        """``time/<stage>`` of the step and ``time/step``, the wall clock since the last collect; starts over."""
        now = self._clock()
        metrics = {f"time/{stage}": seconds for stage, seconds in self._seconds.items()}
        metrics["time/step"] = now - self._since
        self._seconds, self._since = {}, now
        return metrics


def _share(flags: Tensor) -> float:
    return flags.double().mean().item()


def _combine(name: str, values: Sequence[float]) -> float:
    if any(math.isnan(value) for value in values):
        return math.nan
    if name.endswith("max"):
        return max(values)
    if name.endswith("min"):
        return min(values)
    return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else sum(values) / len(values)
