"""Rows to workers: how a batch is cut so that every part has about the same number of tokens."""

import heapq

import numpy as np
import torch
from torch import Tensor


def balanced_partition(weights: Tensor, num_parts: int, strata: Tensor | None = None) -> list[Tensor]:
    """Cuts rows into parts of nearly equal total weight.

    Longest-processing-time rule: rows by descending weight, each to the part that is lightest so far; the heaviest
    part then exceeds the mean by less than the last rows given out (Graham 1969, "Bounds on multiprocessing timing
    anomalies"). Numbers of rows may differ between parts. O(n log n).

    Args:
        weights: ``[batch]`` cost of each row, e.g. its tokens.
        num_parts: number of parts.
        strata: ``[batch]`` int64 label of each row; the rows of each label are spread evenly by themselves, e.g. every
            mini-batch over the data-parallel ranks.

    Returns:
        Row indices of each part, ascending; a part may be empty when there are fewer rows than parts.

    Example: weights [5, 4, 3, 2], two parts -> rows [0, 3] and [1, 2], 7 each.
    """
    labels = None if strata is None else strata.numpy()
    return [torch.from_numpy(part) for part in partition_rows(weights.numpy(), num_parts, labels)]


def partition_rows(weights: np.ndarray, num_parts: int, strata: np.ndarray | None = None) -> list[np.ndarray]:
    """:func:`balanced_partition` on numpy arrays."""
    loads, labels = weights.tolist(), [0] * len(weights) if strata is None else strata.tolist()
    order = sorted(range(len(loads)), key=loads.__getitem__, reverse=True)
    order.sort(key=labels.__getitem__)  # stable: heavy rows first within each stratum
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    totals = [0.0] * num_parts
    heap: list[tuple[float, int, int]] = []
    ranked: list[int] = []
    label_before: int | None = None
    for row in order:
        # Each stratum starts even; ties go to the part that earlier strata left lightest.
        if labels[row] != label_before:
            ranked = sorted(range(num_parts), key=totals.__getitem__)
            heap = [(0.0, 0, place) for place in range(num_parts)]
            label_before = labels[row]
        load, count, place = heap[0]
        heapq.heapreplace(heap, (load + loads[row], count + 1, place))
        parts[ranked[place]].append(row)
        totals[ranked[place]] += loads[row]
    return [np.array(sorted(part), dtype=np.int64) for part in parts]


def contiguous_rows(num_rows: int, num_parts: int) -> list[np.ndarray]:
    """Cuts rows into contiguous parts whose numbers of rows differ by one at most."""
    size, larger = divmod(num_rows, num_parts)
    ends = [size * (part + 1) + min(part + 1, larger) for part in range(num_parts)]
    return [np.arange(start, end) for start, end in zip([0, *ends], ends, strict=False)]
