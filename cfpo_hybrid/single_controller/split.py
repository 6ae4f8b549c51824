"""Arguments to ranks and results back: the pure half of dispatch, the same for every backend."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cfpo_hybrid.errors import DispatchError
from cfpo_hybrid.parallel_layout import ParallelLayout
from cfpo_hybrid.protocol import DataProto, balanced_partition
from cfpo_hybrid.protocol.partition import contiguous_partition
from cfpo_hybrid.single_controller.dispatch import Dispatch, DispatchRule


@dataclass(frozen=True, slots=True)
class Arguments:
    """Positional and named arguments of one call on one rank."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def batches(self) -> list[DataProto]:
        """The arguments that are batches."""
        return [value for value in (*self.args, *self.kwargs.values()) if isinstance(value, DataProto)]

    def map_batches(self, function: Any) -> "Arguments":
        """The same arguments with ``function`` applied to every batch."""
        args = tuple(function(value) if isinstance(value, DataProto) else value for value in self.args)
        kwargs = {k: function(v) if isinstance(v, DataProto) else v for k, v in self.kwargs.items()}
        return Arguments(args, kwargs)


@dataclass(frozen=True, slots=True)
class CallPlan:
    """One call on the group: who runs it with what, and whose answers count.

    Args:
        arguments: by rank, for the ranks that run.
        answering: the ranks whose results are collected, in order.
        rows: for a split, the driver's rows that each answering rank worked on.
    """

    mode: Dispatch
    arguments: Mapping[int, Arguments]
    answering: tuple[int, ...]
    rows: tuple[Tensor, ...] = ()


def plan_call(rule: DispatchRule, layout: ParallelLayout, arguments: Arguments) -> CallPlan:
    """Cuts the arguments of a call for the ranks that run it.

    Raises:
        DispatchError: a split without a batch, or with batches of different length.
    """
    everyone = tuple(range(layout.world_size))
    if rule.mode is Dispatch.SPLIT_BY_DP:
        return _plan_split(layout, arguments)
    if rule.mode is Dispatch.RANK_ZERO:
        return CallPlan(rule.mode, {0: arguments}, (0,))
    answering = everyone if rule.mode is Dispatch.ALL else (0,)
    return CallPlan(rule.mode, dict.fromkeys(everyone, arguments), answering)


def split_rows(batch: DataProto, num_parts: int) -> list[Tensor]:
    """The rows of each data-parallel rank: even in tokens when responses exist, contiguous before that."""
    if "response_lengths" not in batch:
        return contiguous_partition(len(batch), num_parts)
    strata = batch["mini_batch"] if "mini_batch" in batch.column_names else None
    return balanced_partition(batch.num_tokens, num_parts, strata)


def collect(plan: CallPlan, results: Sequence[Any]) -> Any:
    """What the driver gets from the results of the answering ranks.

    Raises:
        DispatchError: a replica returned a batch of other length than it was given.
    """
    if plan.mode is Dispatch.ALL:
        return list(results)
    if plan.mode is not Dispatch.SPLIT_BY_DP:
        return results[0]
    if not all(isinstance(result, DataProto) for result in results):
        return list(results)
    for rank, rows, result in zip(plan.answering, plan.rows, results, strict=True):
        if len(result) != len(rows):
            raise DispatchError(
                f"rank {rank} was given {len(rows)} rows and returned {len(result)}; a method that is split by dp "
                f"returns one row for each row it was given"
            )
    metas = [dict(result.meta) for result in results]
    gathered = DataProto.concat(results, meta={"replicas": metas} if any(metas) else {})
    return gathered.rows(torch.argsort(torch.cat(plan.rows)))


def _plan_split(layout: ParallelLayout, arguments: Arguments) -> CallPlan:
    batches = arguments.batches()
    lengths = {len(batch) for batch in batches}
    if len(lengths) != 1:
        raise DispatchError(
            f"a call that is split by dp needs batches of one length among its arguments; got lengths {sorted(lengths)}"
        )
    rows = split_rows(batches[0], layout.dp)
    by_rank: dict[int, Arguments] = {}
    for dp, chosen in enumerate(rows):
        share = arguments.map_batches(lambda batch, chosen=chosen: batch.rows(chosen))
        by_rank.update(dict.fromkeys(layout.ranks_of_dp(dp), share))
    answering = tuple(layout.output_rank_of_dp(dp) for dp in range(layout.dp))
    return CallPlan(Dispatch.SPLIT_BY_DP, by_rank, answering, tuple(rows))
