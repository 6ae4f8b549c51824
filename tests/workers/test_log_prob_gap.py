import pytest
import torch

from cfpo_hybrid.protocol import DataProto
from workers.log_prob_gap import log_prob_gap


def test_only_counted_tokens_make_the_gap():
    batch = DataProto(
        {
            "rollout_log_probs": torch.tensor([[-1.0, -2.0, 9.0], [-3.0, 7.0, 7.0]]),
            "response_mask": torch.tensor([[True, True, False], [True, False, False]]),
        }
    )
    old = torch.tensor([[-1.5, -2.0, float("nan")], [-2.0, 0.0, 0.0]])
    # |0.5|, |0|, |-1|
    assert log_prob_gap(batch, old) == pytest.approx({"gap_sum": 1.5, "gap_max": 1.0, "gap_tokens": 3.0})


def test_a_rank_without_rows_says_nothing():
    batch = DataProto({"rollout_log_probs": torch.zeros(0, 3), "response_mask": torch.zeros(0, 3, dtype=torch.bool)})
    assert log_prob_gap(batch, torch.zeros(0, 3)) == {"gap_sum": 0.0, "gap_max": 0.0, "gap_tokens": 0.0}
