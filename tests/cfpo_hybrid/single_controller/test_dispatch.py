"""Dispatch modes: how arguments are cut, whose answers count, and in which order rows come back. In process."""

from collections.abc import Iterator

import pytest
import torch
from controller_workers import EchoWorker, FailsToStart

from cfpo_hybrid.errors import ConfigError, DispatchError, WorkerError
from cfpo_hybrid.parallel_layout import ParallelLayout
from cfpo_hybrid.protocol import DataProto
from cfpo_hybrid.single_controller import Dispatch, InProcessWorkerGroup, WorkerMethod, dispatch
from cfpo_hybrid.single_controller.split import Arguments, Replicas, plan_call, split_rows


def make_batch(rows: int = 6) -> DataProto:
    return DataProto(
        {
            "prompts": torch.arange(rows * 2).reshape(rows, 2),
            "prompt_lengths": torch.arange(1, rows + 1),
            "problem": [f"problem {row}" for row in range(rows)],
        }
    )


@pytest.fixture
def group() -> Iterator[InProcessWorkerGroup]:
    with InProcessWorkerGroup(EchoWorker, args=(0.5,), layouts={"train": ParallelLayout(dp=2, tp=2)}) as group:
        yield group


def test_a_split_comes_back_in_the_drivers_order_from_one_rank_of_each_replica(group):
    scored = group.run(EchoWorker.score, make_batch(), scale=2.0)
    assert scored["rewards"].tolist() == [2.5, 4.5, 6.5, 8.5, 10.5, 12.5]
    assert scored.meta["replicas"] == [{"rank": 0}, {"rank": 2}]


def test_results_of_different_width_are_padded_and_go_on_to_the_next_call(group):
    batch = make_batch()
    batch = batch.merge(group.run(EchoWorker.respond, batch, 3))
    # Rank 2 answers for the second replica and writes 3 + 2 positions; rows of the first are padded with zeros.
    assert batch["responses"].tolist()[0] == [100, 101, 102, 0, 0] and batch["responses"].tolist()[5][-1] == 604
    log_probs = group.run(EchoWorker.old_log_probs, batch)["old_log_probs"]
    assert log_probs.equal(-batch["responses"].float())


def test_other_results_come_as_a_list_one_a_replica(group):
    assert group.run(EchoWorker.problems, make_batch()) == [
        ["problem 0", "problem 1", "problem 2"],
        ["problem 3", "problem 4", "problem 5"],
    ]


def test_broadcast_rank_zero_and_all(group):
    batch = make_batch()
    assert group.run(EchoWorker.total, batch) == 21
    assert group.run(EchoWorker.prompts, batch)["prompts"].equal(batch["prompts"])
    assert [context.rank for context in group.run(EchoWorker.where)] == [0, 1, 2, 3]
    assert group.start(EchoWorker.total, batch).result() == 21


def test_split_is_contiguous_before_generation_and_even_in_tokens_after_it():
    batch = make_batch()
    assert [rows.tolist() for rows in split_rows(batch, 2)] == [[0, 1, 2], [3, 4, 5]]
    # Tokens 1+9, 2, 3, 4, 5, 6: 10 to the first, 6 and 5 to the second, 4 to the first, 3 to the second, 2 to the first.
    responded = batch.with_columns(response_lengths=torch.tensor([9, 0, 0, 0, 0, 0]))
    assert [int(responded.num_tokens[rows].sum()) for rows in split_rows(responded, 2)] == [16, 14]
    by_mini_batch = responded.with_columns(mini_batch=torch.tensor([0, 0, 0, 1, 1, 1]))
    for rows in split_rows(by_mini_batch, 2):
        assert set(by_mini_batch["mini_batch"][rows].tolist()) == {0, 1}


def test_a_group_stays_whole_where_that_is_lighter():
    batch = make_batch().with_columns(group_ids=torch.tensor([0, 1, 0, 1, 2, 2]))
    batch = batch.with_columns(prompt_lengths=torch.full((6,), 8), response_lengths=torch.tensor([3, 1, 3, 1, 2, 2]))
    whole = [set(batch["group_ids"][rows].tolist()) for rows in split_rows(batch, 3)]
    assert sorted(map(sorted, whole)) == [[0], [1], [2]]
    # Without their prompts rows of a group have nothing in common.
    assert sorted(len(rows) for rows in split_rows(batch.select("response_lengths", "group_ids"), 2)) == [3, 3]
    # One group for two ranks: one of them would have nothing to do.
    alone = batch.with_columns(group_ids=torch.zeros(6, dtype=torch.int64))
    assert [len(rows) for rows in split_rows(alone, 2)] == [3, 3]


def test_peers_of_a_replica_get_the_same_arguments_and_every_dp_rank_runs_even_without_rows():
    layout = ParallelLayout(dp=2, pp=2, tp=2)
    plan = plan_call(Dispatch.SPLIT_BY_DP, Replicas.of_layout(layout), Arguments((make_batch(1), 3), {}))
    assert plan.ranks == tuple(range(8))
    assert plan.rows[0] is plan.rows[1] is plan.rows[4] is plan.rows[5]
    assert plan.rows[2] is plan.rows[7] and len(plan.rows[2]) == 0
    assert len(plan.arguments_of(0).args[0]) == 1 and len(plan.arguments_of(2).args[0]) == 0
    assert plan.answering == (4, 6)  # last pipeline stage, first tensor-parallel rank


def test_several_batches_are_cut_alike():
    class Pair:
        def __init__(self, context): ...

        @dispatch(Dispatch.SPLIT_BY_DP)
        def same(self, left: DataProto, *, right: DataProto) -> bool:
            return left["prompt_lengths"].equal(right["prompt_lengths"])

    group = InProcessWorkerGroup(Pair, layouts={"train": ParallelLayout(dp=3)})
    assert group.run(Pair.same, make_batch(), right=make_batch()) == [True, True, True]
    with pytest.raises(DispatchError, match=r"got lengths \[2, 6\]"):
        group.run(Pair.same, make_batch(), right=make_batch(2))


def test_a_method_stays_a_plain_method_on_a_worker():
    assert isinstance(EchoWorker.total, WorkerMethod) and EchoWorker.total.name == "total"
    worker = InProcessWorkerGroup(EchoWorker).workers[0]
    assert worker.total(make_batch()) == EchoWorker.total(worker, make_batch()) == 21


def test_subclasses_run_their_own_version():
    class Doubling(EchoWorker):
        @dispatch(Dispatch.BROADCAST)
        def total(self, batch: DataProto) -> int:
            return 2 * EchoWorker.total(self, batch)

    assert InProcessWorkerGroup(Doubling).run(EchoWorker.total, make_batch()) == 42


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda group: group.run(EchoWorker.undecorated), "has no @dispatch"),
        (lambda group: group.run(EchoWorker.misplaced), "layout 'nowhere'; group 'worker' was made with train"),
        (lambda group: group.run(EchoWorker.loses_a_row, make_batch()), "was given 3 rows and returned 2"),
        (lambda group: group.run(EchoWorker.tokens, 3), "needs batches"),
    ],
)
def test_misuse_is_told(group, call, message):
    with pytest.raises(DispatchError, match=message):
        call(group)


def test_a_method_of_another_class_is_refused():
    with pytest.raises(DispatchError, match="no method of FailsToStart"):
        InProcessWorkerGroup(FailsToStart).run(EchoWorker.total, make_batch())


def test_layouts_must_fill_the_group():
    layouts = {"train": ParallelLayout(dp=2), "rollout": ParallelLayout(tp=4)}
    with pytest.raises(ConfigError, match=r"'rollout'.*has 4 ranks; the group has 2 workers"):
        InProcessWorkerGroup(EchoWorker, layouts=layouts)


def test_a_failure_names_the_rank_and_ends_the_group(group, tmp_path):
    for rank, worker in enumerate(group.workers):
        worker.marker = str(tmp_path)
        assert worker.context.rank == rank
    with pytest.raises(WorkerError, match=r"worker\[rank 1\] failed in fail_on:\n(.|\n)*told to fail") as caught:
        group.run(EchoWorker.fail_on, 1)
    assert isinstance(caught.value.__cause__, ValueError)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2", "3"]  # all were closed
    with pytest.raises(DispatchError, match="it failed before: rank 1 in fail_on"):
        group.run(EchoWorker.pid)


def test_a_constructor_that_raises_is_a_worker_error_and_leaves_no_worker_open(tmp_path):
    with pytest.raises(WorkerError, match=r"rank 1\] failed in __init__(.|\n)*no such model"):
        InProcessWorkerGroup(FailsToStart, args=(str(tmp_path),), layouts={"train": ParallelLayout(dp=2)})
    assert (tmp_path / "closed").exists()


def test_a_worker_that_cannot_close_keeps_no_other_open(tmp_path):
    group = InProcessWorkerGroup(EchoWorker, args=(0.0, str(tmp_path)), layouts={"train": ParallelLayout(dp=3)})
    group.workers[1].marker = str(tmp_path / "absent")
    with pytest.raises(FileNotFoundError):
        group.shutdown()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "2"]
