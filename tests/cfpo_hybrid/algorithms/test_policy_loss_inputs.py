"""Inputs of a loss: the shared ratio, the mask, sequences, padded and packed."""

import jaxtyping
import pytest
import torch

from cfpo_hybrid import BatchError, PolicyLossInputs

NAN = float("nan")


def padded(**changes):
    # Two responses of 2 and 1 tokens; the position past the second's end is poisoned.
    columns = {
        "log_probs": torch.tensor([[-1.0, -0.5], [-2.0, NAN]]),
        "old_log_probs": torch.tensor([[-1.0, -1.0], [-1.5, NAN]]),
        "advantages": torch.tensor([1.0, -1.0]),
        "mask": torch.tensor([[True, True], [True, False]]),
    }
    return PolicyLossInputs(**(columns | changes))


def test_ratio_by_hand():
    # log-ratios: 0, 0.5, -0.5, and 0 for padding
    torch.testing.assert_close(padded().log_ratio, torch.tensor([[0.0, 0.5], [-0.5, 0.0]]))
    torch.testing.assert_close(padded().ratio, torch.tensor([[1.0, 1.6487213], [0.6065307, 1.0]]))


def test_equal_log_probs_give_a_ratio_of_exactly_one():
    log_probs = torch.randn(1000)
    inputs = PolicyLossInputs(log_probs, log_probs.clone(), torch.ones(1000), torch.ones(1000, dtype=torch.bool))
    assert (inputs.ratio == 1).all()


def test_nan_in_the_padding_reaches_no_gradient():
    log_probs = torch.tensor([[-1.0, -0.5], [-2.0, NAN]], requires_grad=True)
    inputs = padded(log_probs=log_probs, advantages=torch.tensor([[1.0, 1.0], [1.0, NAN]]))
    (inputs.ratio * inputs.advantages)[inputs.mask].sum().backward()
    assert log_probs.grad.isfinite().all()
    assert float(log_probs.grad[1, 1]) == 0


def test_log_ratio_is_clamped_once_and_remembers_the_truth():
    inputs = PolicyLossInputs(
        torch.tensor([0.0, 0.0]), torch.tensor([-30.0, 50.0]), torch.ones(2), torch.ones(2, dtype=torch.bool)
    )
    assert inputs.log_ratio.tolist() == [20.0, -20.0]
    assert inputs.unclamped_log_ratio.tolist() == [30.0, -50.0]


def test_row_advantages_are_spread_over_padded_tokens():
    assert padded().advantages.tolist() == [[1.0, 1.0], [-1.0, -1.0]]


def test_row_advantages_are_a_view():
    advantages = torch.tensor([1.0, -1.0])
    assert padded(advantages=advantages).advantages.data_ptr() == advantages.data_ptr()


def test_packed_holds_the_counted_tokens_in_row_order():
    packed = padded(entropy=torch.tensor([[0.1, 0.2], [0.3, NAN]])).packed()
    assert packed.log_probs.tolist() == [-1.0, -0.5, -2.0]
    assert packed.advantages.tolist() == [1.0, 1.0, -1.0]
    assert packed.entropy.tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert (packed.sequence_ids.tolist(), packed.num_sequences) == ([0, 0, 1], 2)


def test_the_ratio_of_a_response_moves_each_token_by_its_own_log_ratio():
    # Log-ratios 0, 0.5 | -0.5: means 0.25 and -0.5. The gradient of each is that of exp: the ratio itself.
    log_probs = torch.tensor([[-1.0, -0.5], [-2.0, NAN]], requires_grad=True)
    inputs = padded(log_probs=log_probs)
    ratio = inputs.sequence_ratio(inputs.log_ratio)
    expected = torch.tensor([[0.25, 0.25], [-0.5, 0.0]]).exp()
    torch.testing.assert_close(ratio, expected)
    (gradient,) = torch.autograd.grad(ratio.sum(), log_probs)
    torch.testing.assert_close(gradient, torch.where(inputs.mask, expected, 0.0))
    assert torch.equal(inputs.packed().sequence_ratio(inputs.packed().log_ratio), ratio[inputs.mask])


def test_a_numeric_mask_is_accepted():
    assert padded(mask=torch.tensor([[1, 1], [1, 0]])).mask.dtype == torch.bool


def test_sequence_mean_is_the_same_padded_and_packed():
    values = torch.tensor([[1.0, 3.0], [5.0, NAN]])
    # means 2 and 5
    assert padded().sequence_mean(values).tolist() == [[2.0, 2.0], [5.0, 0.0]]
    packed = PolicyLossInputs(
        log_probs=torch.zeros(3),
        old_log_probs=torch.zeros(3),
        advantages=torch.zeros(3),
        mask=torch.ones(3, dtype=torch.bool),
        sequence_ids=torch.tensor([0, 0, 1]),
        num_sequences=2,
    )
    assert packed.sequence_mean(torch.tensor([1.0, 3.0, 5.0])).tolist() == [2.0, 2.0, 5.0]


def test_sequence_mean_skips_uncounted_tokens_and_survives_an_empty_response():
    # Packed: response 0 counts its first token only, response 1 counts nothing, response 2 has no tokens at all.
    packed = PolicyLossInputs(
        log_probs=torch.zeros(3),
        old_log_probs=torch.zeros(3),
        advantages=torch.zeros(3),
        mask=torch.tensor([True, False, False]),
        sequence_ids=torch.tensor([0, 0, 1]),
        num_sequences=3,
    )
    assert packed.sequence_mean(torch.tensor([4.0, NAN, NAN])).tolist() == [4.0, 0.0, 0.0]
    assert packed.sequence_token_counts.tolist() == [1.0, 0.0, 0.0]


def test_packed_inputs_without_sequences_say_what_they_lack():
    packed = PolicyLossInputs(torch.zeros(2), torch.zeros(2), torch.zeros(2), torch.ones(2, dtype=torch.bool))
    with pytest.raises(BatchError, match="sequence_ids and num_sequences"):
        packed.sequence_mean(torch.zeros(2))


@pytest.mark.parametrize("name", ["old_log_probs", "advantages", "mask", "entropy", "ref_log_probs"])
def test_shapes_must_agree(name, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as in training
    with pytest.raises(BatchError, match=rf"{name} has shape \[3\]; log_probs has \[2, 2\]"):
        padded(**{name: torch.zeros(3)})


def test_three_axes_are_refused():
    cube = torch.zeros(2, 2, 2)
    with pytest.raises(BatchError, match="packed"):
        PolicyLossInputs(cube, cube, cube, cube.bool())
