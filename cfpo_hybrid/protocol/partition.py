"""Rows to workers: how a batch is cut so that every part has about the same number of tokens."""

from collections.abc import Sequence
from heapq import heapreplace
from itertools import groupby

import numpy as np

from cfpo_hybrid.protocol.batch import DataProto


def partition_rows(batch: DataProto, num_parts: int) -> list[np.ndarray]:
    """The rows of each data-parallel rank: even in tokens where responses exist, contiguous before that.

    The tokens of each mini-batch are even by themselves, and the responses of one prompt stay together where that is
    lighter.

    Returns:
        ``[its rows]`` int64 of each part, ascending; contiguous parts differ by one row at most.
    """
    if "response_lengths" not in batch:
        return np.array_split(np.arange(len(batch)), num_parts)
    responses = batch.column("response_lengths")
    prompts = batch.column("prompt_lengths") if "prompt_lengths" in batch else np.zeros_like(responses)
    strata = batch.column("mini_batch") if "mini_batch" in batch else None
    if "group_ids" in batch and "prompt_lengths" in batch:
        return partition_groups(prompts, responses, batch.column("group_ids"), num_parts, strata)
    return balanced_partition(prompts + responses, num_parts, strata)


def balanced_partition(weights: np.ndarray, num_parts: int, strata: np.ndarray | None = None) -> list[np.ndarray]:
    """Cuts rows into parts of nearly equal total weight.

    Longest-processing-time rule: rows by descending weight, each to the part that is lightest so far; the heaviest
    part then exceeds the mean by less than the last rows given out (Graham 1969, "Bounds on multiprocessing timing
    anomalies"). Numbers of rows may differ between parts. O(n log n).

    Args:
        weights: ``[batch]`` whole numbers, the cost of each row, e.g. its tokens.
        num_parts: number of parts.
        strata: ``[batch]`` int64 label of each row; the rows of each label are spread evenly by themselves, e.g. every
            mini-batch over the data-parallel ranks.

    Returns:
        Row indices of each part, ascending, int64; a part may be empty when there are fewer rows than parts.

    Example: weights [5, 4, 3, 2], two parts -> rows [0, 3] and [1, 2], 7 each.
    """
    loads = weights.tolist()
    label_of = ([0] * len(loads) if strata is None else strata.tolist()).__getitem__
    heavy_first = sorted(range(len(loads)), key=loads.__getitem__, reverse=True)
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    totals = [0] * num_parts
    for _, stratum in groupby(sorted(heavy_first, key=label_of), label_of):
        # Each stratum starts even; ties go to the part that earlier strata left lightest.
        ranked = sorted(range(num_parts), key=totals.__getitem__)
        added = _deal(list(stratum), loads, [parts[place] for place in ranked])
        for place, load in zip(ranked, added, strict=True):
            totals[place] += load
    return [np.array(sorted(part), dtype=np.int64) for part in parts]


def _deal(heavy_first: Sequence[int], loads: Sequence[int], parts: Sequence[list[int]]) -> list[int]:
    """Gives rows out, each to the part with the least load of these rows, then the fewest of them, then the first.

    Returns:
        What was added to the load of each part.
    """
    # Load, number of rows and place of a part in one whole number: a heap of tuples takes half as long again.
    num_parts = len(parts)
    of_load = num_parts * (len(heavy_first) + 1)
    heap = list(range(num_parts))
    for row in heavy_first:
        lightest = heap[0]
        heapreplace(heap, lightest + loads[row] * of_load + num_parts)
        parts[lightest % num_parts].append(row)
    added = [0] * num_parts
    for key in heap:
        added[key % num_parts] = key // of_load
    return added


def partition_groups(
    prompts: np.ndarray, responses: np.ndarray, groups: np.ndarray, num_parts: int, strata: np.ndarray | None = None
) -> list[np.ndarray]:
    """Cuts rows of which those of one group and part share the work of their prompt.

    Groups stay whole, unless the heaviest part is lighter when rows are dealt one by one.

    Args:
        prompts: ``[batch]`` tokens of each row's prompt.
        responses: ``[batch]`` tokens of each response.
        groups: ``[batch]`` the same number for rows with the same prompt.
        num_parts: number of parts.
        strata: as in :func:`balanced_partition`; a group with rows of two counts as two.

    Returns:
        Row indices of each part, ascending.

    Example: prompts [9, 9, 9, 9], responses [1, 2, 3, 4], groups [0, 0, 1, 1], two parts -> rows [2, 3] and [0, 1]:
    16 and 12 tokens, where single rows would make [0, 3] and [1, 2], 23 each.
    """
    labels = np.zeros_like(groups) if strata is None else np.unique(strata, return_inverse=True)[1]
    keys = np.unique(groups, return_inverse=True)[1] * (labels.max(initial=0) + 1) + labels
    _, first, group_of_row = np.unique(keys, return_index=True, return_inverse=True)
    weights = np.bincount(group_of_row, weights=responses).astype(np.int64) + prompts[first]
    groups_of_part = balanced_partition(weights, num_parts, labels[first])
    part_of_group = np.empty(len(first), dtype=np.int64)
    for part, members in enumerate(groups_of_part):
        part_of_group[members] = part
    part_of_row = part_of_group[group_of_row]
    whole = [np.flatnonzero(part_of_row == part) for part in range(num_parts)]
    single = balanced_partition(prompts + responses, num_parts, labels)

    def heaviest(parts: list[np.ndarray]) -> int:
        """Of each stratum, added up: strata are worked on one after the other, all parts at once."""
        num_strata, most = labels.max(initial=0) + 1, 0
        for part in parts:
            heads = part[np.unique(group_of_row[part], return_index=True)[1]]
            load = np.bincount(labels[part], weights=responses[part], minlength=num_strata)
            most = np.maximum(most, load + np.bincount(labels[heads], weights=prompts[heads], minlength=num_strata))
        return int(np.sum(most))

    return whole if heaviest(whole) <= heaviest(single) else single
