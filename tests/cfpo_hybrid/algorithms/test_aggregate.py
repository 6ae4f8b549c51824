"""Weights of tokens: each mode by hand, global denominators, responses without counted tokens."""

import pytest
import torch

from cfpo_hybrid import BatchError, ConfigError, PolicyLossInputs
from cfpo_hybrid.algorithms.aggregate import AGGREGATIONS, LossDenominators, token_weights


def inputs_of(mask):
    mask = torch.tensor(mask, dtype=torch.bool)
    zeros = torch.zeros(mask.shape)
    return PolicyLossInputs(zeros, zeros, zeros, mask)


# Responses of 3 and 1 counted tokens; the 5 and 2 are what two micro-batches more hold.
MASK = [[1, 1, 1], [1, 0, 0]]
GLOBAL = LossDenominators(num_tokens=5.0, num_sequences=4.0, max_length=8.0)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("token_mean", [[1 / 5, 1 / 5, 1 / 5], [1 / 5, 0, 0]]),
        ("seq_mean_token_sum", [[1 / 4, 1 / 4, 1 / 4], [1 / 4, 0, 0]]),
        ("seq_mean_token_sum_norm", [[1 / 32, 1 / 32, 1 / 32], [1 / 32, 0, 0]]),
        ("seq_mean_token_mean", [[1 / 12, 1 / 12, 1 / 12], [1 / 4, 0, 0]]),
    ],
)
def test_weights_by_hand(mode, expected):
    torch.testing.assert_close(token_weights(inputs_of(MASK), mode, GLOBAL), torch.tensor(expected))


@pytest.mark.parametrize("mode", AGGREGATIONS)
def test_packed_weights_are_the_padded_ones(mode):
    inputs = inputs_of([[1, 0, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0]])
    packed = inputs.packed()
    expected = token_weights(inputs, mode, GLOBAL)[inputs.mask]
    assert torch.equal(token_weights(packed, mode, GLOBAL), expected)


def test_means_are_means():
    # A per-token loss of 7 everywhere has mean 7 in both mean modes.
    inputs, mask = inputs_of(MASK), torch.tensor(MASK)
    own = LossDenominators.of_mask(mask)
    assert own == LossDenominators(num_tokens=4.0, num_sequences=2.0, max_length=3.0)
    for mode in ("token_mean", "seq_mean_token_mean"):
        assert float((7 * token_weights(inputs, mode, own)).sum()) == pytest.approx(7.0)


def test_a_response_without_counted_tokens_adds_nothing_and_still_counts():
    # Equation 8 divides by the number of responses: here 2, so the one that counts weighs a half.
    inputs = inputs_of([[1, 1], [0, 0]])
    weights = token_weights(inputs, "seq_mean_token_mean", LossDenominators.of_mask(inputs.mask))
    assert weights.tolist() == [[0.25, 0.25], [0.0, 0.0]]


@pytest.mark.parametrize("mode", AGGREGATIONS)
def test_an_empty_mini_batch_has_weight_zero(mode):
    inputs = inputs_of([[0, 0]])
    weights = token_weights(inputs, mode, LossDenominators(num_tokens=0.0, num_sequences=0.0, max_length=2.0))
    assert weights.tolist() == [[0.0, 0.0]]


def test_the_constant_of_dr_grpo_must_be_known():
    with pytest.raises(BatchError, match="max_length"):
        token_weights(inputs_of(MASK), "seq_mean_token_sum_norm", LossDenominators(num_tokens=5.0, num_sequences=4.0))


def test_unknown_mode_lists_the_modes():
    with pytest.raises(ConfigError, match="seq_mean_token_mean, token_mean, seq_mean_token_sum"):
        token_weights(inputs_of(MASK), "mean", GLOBAL)
