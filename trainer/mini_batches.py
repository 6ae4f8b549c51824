"""Which optimizer step of a pass uses which row: whole groups, drawn once a rollout."""

import torch
from torch import Tensor


def assign_mini_batches(group_ids: Tensor, batch_ratio: int, seed: int, step: int) -> Tensor:
    """Deals the groups of a rollout batch into ``batch_ratio`` mini-batches of equal numbers of groups.

    The draw depends on (seed, step) alone, never on the layout, and holds for every iteration over the batch: a sample
    meets the same companions in the same order in each pass, as in verl's and TRL's default, so that the lag of a
    mini-batch is its position.

    Args:
        group_ids: ``[batch]``, the prompt of each row.
        batch_ratio: number of mini-batches; divides the number of groups.
        seed: the run's seed.
        step: the rollout step.

    Returns:
        ``[batch]`` int64 in ``0 .. batch_ratio - 1``.
    """
    groups, row_to_group = torch.unique(group_ids, return_inverse=True)
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
    order = torch.randperm(len(groups), generator=generator)
    mini_batch_of_group = torch.empty(len(groups), dtype=torch.int64)
    mini_batch_of_group[order] = torch.arange(len(groups)) * batch_ratio // len(groups)
    return mini_batch_of_group[row_to_group]
