"""Which optimizer step of a pass uses which row: whole groups, drawn once a rollout."""

import torch
from torch import Tensor


def assign_mini_batches(
    group_ids: Tensor, batch_ratio: int, seed: int, step: int, tokens: Tensor | None = None
) -> Tensor:
    """Deals the groups of a rollout batch into ``batch_ratio`` mini-batches of equal numbers of groups.

    The draw depends on (seed, step) and the tokens alone, never on the layout, and holds for every iteration over the
    batch: a sample meets the same companions in the same order in each pass, as in verl's and TRL's default, so that the
    lag of a mini-batch is its position.

    Args:
        group_ids: ``[batch]``, the prompt of each row.
        batch_ratio: number of mini-batches; divides the number of groups.
        seed: the run's seed.
        step: the rollout step.
        tokens: ``[batch]`` int64 of each row; given, mini-batches have nearly equal numbers of them: none has more than
            another by over the tokens of the longest group.

    Returns:
        ``[batch]`` int64 in ``0 .. batch_ratio - 1``.
    """
    groups, row_to_group = torch.unique(group_ids, return_inverse=True)
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
    order = torch.randperm(len(groups), generator=generator)
    mini_batch_of_group = torch.empty(len(groups), dtype=torch.int64)
    if tokens is None:
        mini_batch_of_group[order] = torch.arange(len(groups)) * batch_ratio // len(groups)
    else:
        sizes = torch.zeros(len(groups), dtype=torch.int64).scatter_add(0, row_to_group, tokens)
        order = order[sizes[order].argsort(descending=True, stable=True)]
        # Which mini-batch comes first is drawn, so that the lag of a group does not hang on its length.
        places = torch.randperm(batch_ratio, generator=generator)
        mini_batch_of_group[order] = places[_deal(sizes[order], batch_ratio)]
    return mini_batch_of_group[row_to_group]


def _deal(sizes: Tensor, parts: int) -> Tensor:
    """The part of each group: hand after hand of one group for each part, the largest to the part with least so far.

    Args:
        sizes: ``[group]``, descending.
        parts: number of parts.
    """
    totals = torch.zeros(parts, dtype=torch.int64)
    dealt = []
    for hand in sizes.split(parts):
        lightest_first = totals.argsort(stable=True)[: len(hand)]
        totals[lightest_first] += hand
        dealt.append(lightest_first)
    return torch.cat(dealt)
