"""The sources of off-policy pressure apart: log pi_theta - log pi_rollout as mismatch, transform and drift.

    log pi_theta - log pi_rollout = (log pi_old - log pi_rollout - log Z) + log Z + (log pi_theta - log pi_old)
            total                 =               numeric             + transform  +        drift

Numeric is what two engines make of the same weights. The transform is that of sampling: top-p and top-k keep tokens of the
probability Z, over which the rollout's log-probs are renormalised (without truncation Z is 1; a temperature is no part of
it, since all log-probs are taken at the rollout's). Drift is what optimizer steps have changed since. With
``algorithm.old_log_probs=rollout`` pi_old is pi_rollout: numeric is 0 and drift holds both.

Of each, ``mismatch/<part>_mean`` is the mean over tokens in nats (means add up) and ``mismatch/<part>_rms`` the root mean
square. ``rollout/log_prob_diff_mean`` and ``_max`` are those of abs(numeric).
"""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from cfpo_hybrid.algorithms.metrics import Metric, Reduction
from cfpo_hybrid.algorithms.policy_loss.inputs import PolicyLossInputs


def mismatch_metrics(inputs: PolicyLossInputs) -> dict[str, Metric]:
    """The parts of one micro-batch; nothing when the rollout's log-probs are not given."""
    if inputs.rollout_log_probs is None:
        return {}
    difference, drift = rollout_log_ratio(inputs), inputs.unclamped_log_ratio
    parts = {"numeric": difference, "drift": drift, "total": difference + drift}
    if inputs.kept_log_mass is not None:
        transform = inputs.counted(inputs.kept_log_mass)
        parts |= {"numeric": difference - transform, "transform": transform}
    size = parts["numeric"].abs()
    sums = [total for part in parts.values() for total in (part.sum(), part.square().sum())]
    return {
        "mismatch": Metric.of_sums(inputs.num_counted, *sums, finish=partial(_mismatch, tuple(parts))),
        "rollout/log_prob_diff_mean": Metric(Reduction.MEAN, size.sum(), inputs.num_counted),
        "rollout/log_prob_diff_max": Metric(Reduction.MAX, inputs.range_of(size)[1]),
    }


def rollout_log_ratio(inputs: PolicyLossInputs) -> Tensor:
    """Log pi_old - log pi_rollout in fp32 (fp64 kept), detached; 0 outside the mask."""
    assert inputs.rollout_log_probs is not None, "whoever calls this has looked"
    old = inputs.old_log_probs.detach()
    return inputs.counted(old.to(torch.promote_types(old.dtype, torch.float32)) - inputs.rollout_log_probs)


def _mismatch(names: Sequence[str], sums: Sequence[float]) -> dict[str, float]:
    count, means, squares = sums[0], sums[1::2], sums[2::2]
    if not count:
        return {}
    named = {f"mismatch/{name}_mean": total / count for name, total in zip(names, means, strict=True)}
    return named | {
        f"mismatch/{name}_rms": math.sqrt(total / count) for name, total in zip(names, squares, strict=True)
    }
