"""Rows to parts: even in tokens, within every stratum too, and groups whole where that is lighter."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cfpo_hybrid.protocol import DataProto, partition_rows
from cfpo_hybrid.protocol.partition import balanced_partition, partition_groups


def imbalance(weights: np.ndarray, parts: list[np.ndarray]) -> float:
    totals = np.array([weights[part].sum() for part in parts])
    return float(totals.max() / totals.mean())


def test_worked_example():
    # 5 -> first, 4 -> second, 3 -> second (7), 2 -> first (7)
    assert [part.tolist() for part in balanced_partition(np.array([5, 4, 3, 2]), 2)] == [[0, 3], [1, 2]]


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 3)), max_size=60),
    st.integers(1, 9),
)
@settings(max_examples=60, deadline=None)
def test_every_row_is_in_one_part_and_graham_holds_in_every_stratum(rows, num_parts):
    weights = np.array([weight for weight, _ in rows], dtype=np.int64)
    strata = np.array([stratum for _, stratum in rows], dtype=np.int64)
    parts = balanced_partition(weights, num_parts, strata)
    assert len(parts) == num_parts
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(rows)))
    assert all(part.tolist() == sorted(part.tolist()) for part in parts)
    for stratum in set(strata.tolist()):
        loads = [int(weights[part][strata[part] == stratum].sum()) for part in parts]
        # Longest processing time first: no part is above the lightest by more than one row.
        assert max(loads) - min(loads) <= int(weights[strata == stratum].max())


@pytest.mark.parametrize(("rows", "num_parts", "limit"), [(1536, 8, 1.0005), (1536, 64, 1.01), (12288, 512, 1.01)])
def test_token_loads_are_even(rows, num_parts, limit):
    weights = np.random.default_rng(0).integers(100, 3584, rows)
    assert imbalance(weights, balanced_partition(weights, num_parts)) < limit


def test_equal_weights_give_equal_counts_even_when_they_are_zero():
    for weight in (0, 3):
        parts = balanced_partition(np.full(10, weight), 4)
        assert sorted(len(part) for part in parts) == [2, 2, 3, 3]


def test_leftovers_of_strata_do_not_pile_up_on_one_part():
    # Four mini-batches of three equal rows over two parts: each leaves one part a row ahead, in turn.
    parts = balanced_partition(np.full(12, 5), 2, np.arange(12) // 3)
    assert [len(part) for part in parts] == [6, 6]


def slowest_stratum_sum(parts, prompts, responses, groups, strata) -> int:
    """Tokens of the heaviest part, prompts of a group counted once a part; strata one after the other."""
    total = 0
    for stratum in set(strata.tolist()):
        loads = []
        for part in parts:
            rows = [row for row in part.tolist() if strata[row] == stratum]
            shared = {groups[row]: prompts[row] for row in rows}
            loads.append(sum(responses[row] for row in rows) + sum(shared.values()))
        total += max(loads)
    return int(total)


@given(st.integers(1, 12), st.integers(1, 5), st.integers(1, 6), st.integers(1, 3), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_groups_are_cut_only_where_that_is_lighter(num_groups, size, num_parts, num_strata, seed):
    random = np.random.default_rng(seed)
    groups = random.permutation(np.repeat(np.arange(num_groups) * 7, size))
    strata, prompts = groups // 7 % num_strata, 1 + groups % 31
    responses = random.integers(1, 60, len(groups))
    parts = partition_groups(prompts, responses, groups, num_parts, strata)
    assert len(parts) == num_parts
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(groups)))
    assert all(part.tolist() == sorted(part.tolist()) for part in parts)
    single = balanced_partition(prompts + responses, num_parts, strata)
    of_group = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    weights = np.array([responses[rows].sum() + prompts[rows[0]] for rows in of_group])
    cut = balanced_partition(weights, num_parts, np.array([strata[rows[0]] for rows in of_group]))
    whole = [np.sort(np.concatenate([np.arange(0), *(of_group[group] for group in part)])) for part in cut]
    arguments = prompts, responses, groups, strata
    is_lighter = slowest_stratum_sum(single, *arguments) < slowest_stratum_sum(whole, *arguments)
    assert [part.tolist() for part in parts] == [part.tolist() for part in (single if is_lighter else whole)]


def test_groups_worked_example_and_no_rows():
    prompts, responses, groups = np.full(4, 9), np.array([1, 2, 3, 4]), np.array([0, 0, 1, 1])
    assert [part.tolist() for part in partition_groups(prompts, responses, groups, 2)] == [[2, 3], [0, 1]]
    nothing = np.zeros(0, dtype=np.int64)
    assert [len(part) for part in partition_groups(nothing, nothing, nothing, 3)] == [0, 0, 0]


def make_batch(rows: int = 6) -> DataProto:
    return DataProto({"prompt_lengths": torch.arange(1, rows + 1)})


def test_a_batch_is_cut_into_contiguous_rows_before_generation_and_evenly_in_tokens_after_it():
    batch = make_batch()
    assert [rows.tolist() for rows in partition_rows(batch, 2)] == [[0, 1, 2], [3, 4, 5]]
    assert [rows.tolist() for rows in partition_rows(make_batch(5), 3)] == [[0, 1], [2, 3], [4]]
    assert [len(rows) for rows in partition_rows(make_batch(1), 3)] == [1, 0, 0]
    # Tokens 1+9, 2, 3, 4, 5, 6: 10 to the first, 6 and 5 to the second, 4 to the first, 3 to the second, 2 to the first.
    responded = batch.with_columns(response_lengths=torch.tensor([9, 0, 0, 0, 0, 0]))
    assert [int(responded.num_tokens[rows].sum()) for rows in partition_rows(responded, 2)] == [16, 14]
    by_mini_batch = responded.with_columns(mini_batch=torch.tensor([0, 0, 0, 1, 1, 1]))
    for rows in partition_rows(by_mini_batch, 2):
        assert set(by_mini_batch["mini_batch"][rows].tolist()) == {0, 1}


def test_a_group_stays_whole_where_that_is_lighter():
    batch = make_batch().with_columns(group_ids=torch.tensor([0, 1, 0, 1, 2, 2]))
    batch = batch.with_columns(prompt_lengths=torch.full((6,), 8), response_lengths=torch.tensor([3, 1, 3, 1, 2, 2]))
    whole = [set(batch["group_ids"][rows].tolist()) for rows in partition_rows(batch, 3)]
    assert sorted(map(sorted, whole)) == [[0], [1], [2]]
    # Without their prompts rows of a group have nothing in common.
    assert sorted(len(rows) for rows in partition_rows(batch.select("response_lengths", "group_ids"), 2)) == [3, 3]
    # One group for two ranks: one of them would have nothing to do.
    alone = batch.with_columns(group_ids=torch.zeros(6, dtype=torch.int64))
    assert [len(rows) for rows in partition_rows(alone, 2)] == [3, 3]
