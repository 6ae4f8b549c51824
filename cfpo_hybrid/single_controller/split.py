"""Arguments to ranks and results back: the pure half of dispatch, the same for every backend."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from cfpo_hybrid.errors import DispatchError
from cfpo_hybrid.parallel_layout import ParallelLayout
from cfpo_hybrid.protocol import DataProto
from cfpo_hybrid.protocol.partition import balanced_partition, contiguous_rows, partition_groups
from cfpo_hybrid.single_controller.dispatch import Dispatch


class Arguments(NamedTuple):
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
class Replicas:
    """The model replicas of a layout.

    Args:
        ranks: of each replica; they receive the same rows.
        answering: the one rank of each replica whose result is collected.
        everyone: all ranks of the layout, ascending.
    """

    ranks: tuple[tuple[int, ...], ...]
    answering: tuple[int, ...]
    everyone: tuple[int, ...]

    @classmethod
    def of_layout(cls, layout: ParallelLayout) -> "Replicas":
        """The replicas by their dp coordinate."""
        ranks: list[list[int]] = [[] for _ in range(layout.dp)]
        for rank in range(layout.world_size):
            ranks[layout.coordinate(rank).dp].append(rank)
        answering = tuple(layout.output_rank_of_dp(dp) for dp in range(layout.dp))
        return cls(tuple(map(tuple, ranks)), answering, tuple(range(layout.world_size)))


class CallPlan(NamedTuple):
    """One call on the group: who runs it with what, and whose answers count.

    Args:
        mode: how the method is dispatched.
        arguments: of the call, whole; every rank that runs gets them, cut to its rows.
        ranks: that run.
        answering: the ranks whose results are collected, in order.
        rows: for a split, the driver's rows by rank.
    """

    mode: Dispatch
    arguments: Arguments
    ranks: tuple[int, ...]
    answering: tuple[int, ...]
    rows: Mapping[int, np.ndarray]

    def arguments_of(self, rank: int) -> Arguments:
        """What that rank runs with."""
        if rank not in self.rows:
            return self.arguments
        return self.arguments.map_batches(lambda batch: batch.take(self.rows[rank]))


def plan_call(mode: Dispatch, replicas: Replicas, arguments: Arguments) -> CallPlan:
    """Decides who runs a call with which rows.

    Raises:
        DispatchError: a split without a batch, or with batches of different length.
    """
    if mode is Dispatch.RANK_ZERO:
        return CallPlan(mode, arguments, (0,), (0,), {})
    everyone = replicas.everyone
    if mode is Dispatch.SPLIT_BY_DP:
        return CallPlan(mode, arguments, everyone, replicas.answering, _rows_by_rank(replicas, arguments))
    return CallPlan(mode, arguments, everyone, everyone if mode is Dispatch.ALL else (0,), {})


def split_rows(batch: DataProto, num_parts: int) -> list[np.ndarray]:
    """The rows of each data-parallel rank: even in tokens when responses exist, contiguous before that; groups whole."""
    if "response_lengths" not in batch:
        return contiguous_rows(len(batch), num_parts)
    responses = batch.column("response_lengths")
    prompts = batch.column("prompt_lengths") if "prompt_lengths" in batch else np.zeros_like(responses)
    strata = batch.column("mini_batch") if "mini_batch" in batch else None
    if "group_ids" in batch and "prompt_lengths" in batch:
        return partition_groups(prompts, responses, batch.column("group_ids"), num_parts, strata)
    return balanced_partition(prompts + responses, num_parts, strata)


def collect(plan: CallPlan, results: Sequence[Any]) -> Any:
    """What the driver gets from the results of the answering ranks.

    Raises:
        DispatchError: a replica returned a batch of other length than it was given.
    """
    if plan.mode is Dispatch.ALL:
        return list(results)
    if plan.mode is not Dispatch.SPLIT_BY_DP:
        return results[0]
    batches = [result for result in results if isinstance(result, DataProto)]
    if len(batches) < len(results):
        return list(results)
    places = [plan.rows[rank] for rank in plan.answering]
    for rank, given, batch in zip(plan.answering, places, batches, strict=True):
        if len(batch) != len(given):
            raise DispatchError(
                f"rank {rank} was given {len(given)} rows and returned {len(batch)}; a method that is split by dp "
                f"returns one row for each row it was given"
            )
    metas = [dict(batch.meta) for batch in batches]
    return DataProto.concat(batches, {"replicas": metas} if any(metas) else {}, places)


def _rows_by_rank(replicas: Replicas, arguments: Arguments) -> dict[int, np.ndarray]:
    batches = arguments.batches()
    lengths = {len(batch) for batch in batches}
    if len(lengths) != 1:
        raise DispatchError(
            f"a call that is split by dp needs batches of one length among its arguments; got lengths {sorted(lengths)}"
        )
    parts = split_rows(batches[0], len(replicas.ranks))
    return {rank: rows for rows, ranks in zip(parts, replicas.ranks, strict=True) for rank in ranks}
