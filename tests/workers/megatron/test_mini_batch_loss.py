"""Statistics of a mini-batch are those of all its rows, however they lie on the data-parallel ranks."""

import pytest
import torch
import torch.distributed as dist
from gloo import run_gloo
from policy_world import CPU, mini_batch

from cfpo_hybrid import BatchError, build_policy_loss
from cfpo_hybrid.algorithms.objective import PolicyObjective
from cfpo_hybrid.algorithms.policy_loss import MiniBatchTokens
from workers.megatron.mini_batch_loss import MiniBatchLoss

KNOBS = {"kl_cov": {"ratio": 0.3}, "clip_cov": {"ratio": 0.1, "covariance_low": 0.0}}


def seen_by_a_rank(parts):
    """Statistics and denominators as one rank of several sees them; the last one may hold no rows."""
    rows = mini_batch().rows(torch.tensor(parts[dist.get_rank()], dtype=torch.int64))
    seen = []
    for name, knobs in KNOBS.items():
        objective = PolicyObjective(loss=build_policy_loss(name, **knobs), aggregation="seq_mean_token_sum_norm")
        loss = MiniBatchLoss(rows, objective, device=CPU, dp=dist.group.WORLD)
        seen.append((loss.statistics, loss.denominators))
        # A rank without rows still answers with the names of every metric.
        assert loss.reduce([])
        # On-policy the update's own log-probs would do for the ratio, but come too late for statistics.
        with pytest.raises(BatchError, match="takes statistics of old_log_probs"):
            MiniBatchLoss(rows.without("old_log_probs"), objective, device=CPU, dp=dist.group.WORLD, on_policy=True)
    return seen


@pytest.mark.parametrize("parts", [[[0, 1, 2, 3, 4, 5, 6]], [[6, 0, 3], [1, 2, 4, 5], []]])
def test_statistics_are_those_of_the_whole_mini_batch(parts):
    whole = mini_batch()
    counted = whole["response_mask"] & (torch.arange(12) < whole["response_lengths"].unsqueeze(1))
    tokens = MiniBatchTokens.of(whole["old_log_probs"], whole["advantages"], counted)
    expected = [build_policy_loss(name, **knobs).statistics(tokens) for name, knobs in KNOBS.items()]
    for seen in run_gloo(len(parts), seen_by_a_rank, parts):
        for (statistics, denominators), whole_statistics in zip(seen, expected, strict=True):
            assert statistics.means.log_prob == pytest.approx(whole_statistics.means.log_prob, rel=1e-12)
            assert statistics.means.advantage == pytest.approx(whole_statistics.means.advantage, rel=1e-12)
            assert (denominators.num_tokens, denominators.max_length) == (float(counted.sum()), 12.0)
        assert seen[0][0].threshold == pytest.approx(expected[0].threshold, rel=1e-9)
        assert seen[1][0].largest_draw == expected[1].largest_draw
