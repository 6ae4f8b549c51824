"""Who runs a call with which rows and columns: the plan, which is the same for every backend."""

import pytest
import torch
from controller_workers import EchoWorker

from cfpo_hybrid.errors import DispatchError
from cfpo_hybrid.parallel_layout import ParallelLayout
from cfpo_hybrid.protocol import DataProto
from cfpo_hybrid.single_controller import WorkerMethod
from cfpo_hybrid.single_controller.dispatch import Arguments, CallPlan, Replicas, collect, plan_call


def make_batch(rows: int = 4) -> DataProto:
    return DataProto({"prompt_lengths": torch.arange(1, rows + 1), "problem": ["p"] * rows})


def plan(
    method: WorkerMethod, layout: ParallelLayout, *args: object, workers: range | list[int] | None = None
) -> CallPlan:
    replicas = Replicas.of_layout(layout, workers or range(layout.world_size))
    return plan_call(method, replicas, Arguments(args, {}))


def test_peers_of_a_replica_get_the_same_rows_and_every_dp_rank_runs_even_without_rows():
    call = plan(EchoWorker.score, ParallelLayout(dp=2, pp=2, tp=2), make_batch(1), 3)
    assert call.workers == tuple(range(8))
    assert call.rows[0] is call.rows[1] is call.rows[4] is call.rows[5]
    assert call.rows[2] is call.rows[7] and len(call.rows[2]) == 0
    assert len(call.arguments_of(0).args[0]) == 1 and len(call.arguments_of(2).args[0]) == 0
    assert call.answering == (4, 6)  # last pipeline stage, first tensor-parallel rank


def test_ranks_of_a_layout_are_the_workers_it_is_given():
    layout, batch = ParallelLayout(dp=2, tp=2), make_batch()
    workers = [7, 5, 3, 1]
    split = plan(EchoWorker.score, layout, batch, 1.0, workers=workers)
    assert split.workers == (7, 5, 3, 1) and split.answering == (7, 3)
    assert split.rows[7].tolist() == split.rows[5].tolist() == [0, 1] and split.rows[1].tolist() == [2, 3]
    everyone = plan(EchoWorker.where, layout, workers=workers)
    assert everyone.workers == everyone.answering == (7, 5, 3, 1)
    broadcast = plan(EchoWorker.total, layout, batch, workers=workers)
    assert broadcast.workers == (7, 5, 3, 1) and broadcast.answering == (7,)
    first = plan(EchoWorker.prompts, layout, batch, workers=workers)
    assert first.workers == first.answering == (7,)


def test_columns_travel_to_the_layouts_that_read_them():
    batch = make_batch().with_columns(entropy=torch.zeros(4, 3), old_log_probs=torch.zeros(4, 3))
    for method, names in [
        (EchoWorker.tokens, ("old_log_probs", "prompt_lengths")),  # of the layout "train"
        (EchoWorker.respond, ("prompt_lengths",)),  # of "rollout"
        (EchoWorker.problems, ("problem",)),  # of "reward"
    ]:
        (carried,) = plan(method, ParallelLayout(), batch).arguments.args
        assert carried.column_names == names and len(carried) == 4
    (untouched,) = plan(EchoWorker.tokens, ParallelLayout(), batch.select("prompt_lengths")).arguments.args
    assert untouched.column_names == ("prompt_lengths",)
    (nothing,) = plan(EchoWorker.problems, ParallelLayout(), batch.select("entropy")).arguments.args
    assert nothing.column_names == () and len(nothing) == 4 and nothing.widths == {}


def test_a_split_needs_batches_of_one_length():
    with pytest.raises(DispatchError, match=r"got lengths \[2, 6\]"):
        plan(EchoWorker.score, ParallelLayout(), make_batch(6), make_batch(2))
    with pytest.raises(DispatchError, match="needs batches"):
        plan(EchoWorker.tokens, ParallelLayout(), 3)


def test_batches_come_back_in_the_drivers_order_and_other_results_as_a_list():
    batch = DataProto({"prompt_lengths": torch.tensor([1, 9, 2, 8]), "response_lengths": torch.zeros(4).long()})
    call = plan(EchoWorker.score, ParallelLayout(dp=2), batch, 1.0)
    parts = [call.arguments_of(worker).args[0] for worker in call.answering]
    assert [part["prompt_lengths"].tolist() for part in parts] == [[1, 9], [2, 8]]
    together = collect(call, [part.with_meta(rank=rank) for rank, part in enumerate(parts)])
    assert together["prompt_lengths"].tolist() == [1, 9, 2, 8]
    assert together.meta == {"replicas": [{"rank": 0}, {"rank": 1}]}
    assert collect(call, [1, parts[0]]) == [1, parts[0]]
    with pytest.raises(DispatchError, match="rank 1 was given 2 rows and returned 1"):
        collect(call, [parts[0], parts[1].rows([0])])
