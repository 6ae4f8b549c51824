"""Rows to packed micro-batches and back."""

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cfpo_hybrid.protocol import DataProto
from workers.megatron.packing import pack, plan_micro_batches, unpack

CPU = torch.device("cpu")


def small_batch() -> DataProto:
    # Row 0: prompt 11 12, response 13. Row 1: prompt 21, response 22 23 24. 99 is padding.
    return DataProto(
        {
            "prompts": torch.tensor([[11, 12], [21, 99]]),
            "prompt_lengths": torch.tensor([2, 1]),
            "responses": torch.tensor([[13, 99, 99], [22, 23, 24]]),
            "response_lengths": torch.tensor([1, 3]),
            "advantages": torch.tensor([0.5, -1.0]),
        }
    )


def test_packs_real_tokens_longest_row_first() -> None:
    (micro,) = pack(small_batch(), max_tokens=100, multiple=1, device=CPU)
    assert micro.tokens.tolist() == [21, 22, 23, 24, 11, 12, 13]
    assert micro.lengths == (4, 3)
    assert micro.rows.tolist() == [1, 0]
    assert micro.targets.tolist() == [22, 23, 24, 13]
    # The state that predicts a response token is that of the token before it.
    assert micro.predictors.tolist() == [0, 1, 2, 5]
    assert micro.sequence_ids.tolist() == [0, 0, 0, 1]
    assert micro.pick(torch.arange(6).view(2, 3)).tolist() == [3, 4, 5, 0]
    # A number a row, laid over its tokens as a view.
    assert micro.pick(torch.tensor([[0.5], [-1.0]]).expand(2, 3)).tolist() == [-1.0, -1.0, -1.0, 0.5]


def test_filler_joins_the_last_row() -> None:
    (micro,) = pack(small_batch(), max_tokens=100, multiple=4, device=CPU)
    assert micro.tokens.tolist() == [21, 22, 23, 24, 11, 12, 13, 0]
    assert micro.lengths == (4, 4)
    assert micro.predictors.tolist() == [0, 1, 2, 5]


def test_the_prompt_of_a_group_is_packed_once() -> None:
    batch = DataProto(
        {
            "prompts": torch.tensor([[11, 12], [21, 99], [11, 12]]),
            "prompt_lengths": torch.tensor([2, 1, 2]),
            "group_ids": torch.tensor([0, 1, 0]),
            "responses": torch.tensor([[13, 99, 99], [22, 23, 24], [14, 15, 99]]),
            "response_lengths": torch.tensor([1, 3, 2]),
        }
    )
    (micro,) = pack(batch, max_tokens=100, multiple=5, device=CPU)
    assert micro.rows.tolist() == [2, 0, 1]
    assert micro.tokens.tolist() == [11, 12, 14, 15, 13, 21, 22, 23, 24, 0]
    assert micro.lengths == (4, 3, 5)
    assert micro.targets.tolist() == [14, 15, 13, 22, 23, 24]
    # Both responses to the first prompt begin at the state of its last token.
    assert micro.predictors.tolist() == [1, 2, 1, 5, 6, 7]
    assert micro.shared is not None
    assert micro.tokens[micro.shared.sources].tolist() == [11, 12, 14, 15, 11, 12, 13, 21, 22, 23, 24, 0]
    # Cut apart, each row has its prompt to itself.
    assert [part.shared for part in pack(batch, max_tokens=1, multiple=1, device=CPU)] == [None] * 3


def test_unpack_is_the_inverse_of_pick() -> None:
    column = torch.tensor([[1.0, 0.0, 0.0], [2.0, 3.0, 4.0]])
    micro_batches = pack(small_batch(), max_tokens=1, multiple=1, device=CPU)
    assert len(micro_batches) == 2
    picked = [torch.stack([micro.pick(column), -micro.pick(column)]) for micro in micro_batches]
    assert torch.equal(unpack(micro_batches, picked, (2, 2, 3), CPU), torch.stack([column, -column]))


def test_no_rows_no_micro_batches() -> None:
    empty = small_batch().rows(torch.zeros(0, dtype=torch.int64))
    assert pack(empty, max_tokens=8, multiple=1, device=CPU) == []


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 9)), max_size=40), st.integers(1, 60))
def test_plan_covers_every_row_within_the_budget(rows: list[tuple[int, int]], budget: int) -> None:
    sizes = torch.tensor([size for size, _ in rows], dtype=torch.int64)
    groups = torch.tensor([group for _, group in rows], dtype=torch.int64)
    labels = groups % 4
    leaders = torch.tensor([groups.tolist().index(group) for group in groups.tolist()], dtype=torch.int64)
    plan = plan_micro_batches(sizes, leaders, labels, budget)
    in_order = [int(leaders[row]) for part in plan for row in part]
    assert len(list(itertools.groupby(in_order))) == len(set(in_order)), "rows of a group are not neighbours"
    assert sorted(int(row) for part in plan for row in part) == list(range(len(rows)))
    for part in plan:
        assert len(part) == 1 or int(sizes[part].sum()) <= budget
        assert len(set(labels[part].tolist())) == 1
    for label in set(labels.tolist()):
        # The rows of a label are cut as they would be alone.
        own = torch.nonzero(labels == label).flatten()
        own_leaders = torch.searchsorted(own, leaders[own])
        alone = [own[part].tolist() for part in plan_micro_batches(sizes[own], own_leaders, labels[own], budget)]
        assert alone == [part.tolist() for part in plan if labels[part[0]] == label]
