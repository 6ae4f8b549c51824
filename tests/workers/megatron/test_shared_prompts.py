"""Prompts of a group computed once: which rows share, and the way to attention and back."""

import torch

from cfpo_hybrid.protocol import DataProto
from workers.megatron.shared_prompts import SharedPrompts, first_with_prompt, share_prompts


def two_groups() -> SharedPrompts:
    # Rows: prompt 2 + response 2 and prompt 2 + response 1 of one group, prompt 1 + response 2 of another.
    return share_prompts(torch.tensor([5, 5, 7]), torch.tensor([2, 2, 1]), torch.tensor([4, 3, 3]))


def test_a_prompt_is_packed_once() -> None:
    shared = two_groups()
    assert shared.sources.tolist() == [0, 1, 2, 3, 0, 1, 4, 5, 6, 7]
    assert shared.owners.tolist() == [0, 1, 2, 3, 6, 7, 8, 9]
    assert shared.copies.tolist() == [4, 5]


def test_filler_is_nobodys_copy() -> None:
    shared = two_groups().with_filler(2)
    assert shared.sources.tolist()[-2:] == [8, 9]
    assert shared.owners.tolist()[-2:] == [10, 11]
    assert shared.copies.tolist() == [4, 5]


def test_gradients_of_copies_add_up() -> None:
    shared = two_groups()
    tokens = torch.randn(8, 3, 2, dtype=torch.float64, requires_grad=True)
    spread = shared.spread(tokens)
    assert torch.equal(spread, tokens[shared.sources])
    assert torch.equal(shared.collect(spread), tokens)
    weights = torch.randn(10, 3, 2, dtype=torch.float64)
    (expected,) = torch.autograd.grad((tokens[shared.sources] * weights).sum(), tokens)
    (found,) = torch.autograd.grad((shared.spread(tokens) * weights).sum(), tokens)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    (found,) = torch.autograd.grad((shared.collect(shared.spread(tokens)) * weights[:8]).sum(), tokens)
    torch.testing.assert_close(found, weights[:8], rtol=1e-6, atol=1e-6)


def test_gradients_in_bf16_are_added_in_fp32() -> None:
    leaders, prompt_lengths = torch.zeros(513, dtype=torch.int64), torch.ones(513, dtype=torch.int64)
    shared = share_prompts(leaders, prompt_lengths, prompt_lengths * 2)
    tokens = torch.zeros(514, 1, dtype=torch.bfloat16, requires_grad=True)
    shared.spread(tokens).sum().backward()
    assert tokens.grad is not None
    assert tokens.grad[0].item() == 512  # 513 rounded once; adding ones in bf16 stops at 256


def prompts_of_four() -> DataProto:
    return DataProto(
        {
            "prompts": torch.tensor([[1, 2], [3, 4], [1, 2], [1, 2]]),
            "prompt_lengths": torch.tensor([2, 2, 2, 2]),
            "group_ids": torch.tensor([9, 4, 9, 9]),
        }
    )


def test_rows_of_a_group_share_the_first_ones_prompt() -> None:
    assert first_with_prompt(prompts_of_four()).tolist() == [0, 1, 0, 0]
    assert first_with_prompt(prompts_of_four().without("group_ids")).tolist() == [0, 1, 2, 3]


def test_only_equal_prompts_are_shared() -> None:
    batch = prompts_of_four()
    other_tokens = batch.with_columns(prompts=torch.tensor([[1, 2], [3, 4], [1, 7], [1, 2]]))
    assert first_with_prompt(other_tokens).tolist() == [0, 1, 2, 0]
    other_length = batch.with_columns(prompt_lengths=torch.tensor([2, 2, 2, 1]))
    assert first_with_prompt(other_length).tolist() == [0, 1, 0, 3]


def test_mini_batches_do_not_share() -> None:
    batch = prompts_of_four().with_columns(mini_batch=torch.tensor([0, 1, 1, 1]))
    assert first_with_prompt(batch).tolist() == [0, 1, 2, 2]
