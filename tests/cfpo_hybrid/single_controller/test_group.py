"""Worker groups, in process: what a call gives, layouts that share workers or have their own, and how a group ends."""

from collections.abc import Iterator

import pytest
import torch
from controller_workers import EchoWorker, FailsToStart

from cfpo_hybrid.errors import ConfigError, DispatchError, WorkerError
from cfpo_hybrid.parallel_layout import ParallelLayout
from cfpo_hybrid.protocol import DataProto
from cfpo_hybrid.single_controller import Dispatch, InProcessWorkerGroup, WorkerMethod, dispatch


def make_batch(rows: int = 6) -> DataProto:
    return DataProto(
        {
            "prompts": torch.arange(rows * 2).reshape(rows, 2),
            "prompt_lengths": torch.arange(1, rows + 1),
            "problem": [f"problem {row}" for row in range(rows)],
        }
    )


def colocated(layout: ParallelLayout) -> dict[str, ParallelLayout]:
    return dict.fromkeys(("train", "rollout", "reward"), layout)


@pytest.fixture
def group() -> Iterator[InProcessWorkerGroup]:
    with InProcessWorkerGroup(EchoWorker, args=(0.5,), layouts=colocated(ParallelLayout(dp=2, tp=2))) as group:
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


@pytest.mark.parametrize("shape", [(6,), (6, 3)])
def test_advantages_travel_in_either_shape(group, shape):
    advantages = torch.arange(torch.Size(shape).numel()).float().reshape(shape)
    batch = make_batch().with_columns(advantages=advantages, response_lengths=torch.tensor([9, 1, 1, 1, 5, 5]))
    assert group.run(EchoWorker.weigh, batch)["advantages"].equal(2 * advantages)


def test_layouts_with_workers_of_their_own_give_what_shared_workers_give():
    layouts = {"train": ParallelLayout(dp=2), "rollout": ParallelLayout(), "reward": ParallelLayout(dp=2)}
    placement = {"train": [2, 0], "rollout": [1], "reward": [0, 2]}
    apart = InProcessWorkerGroup(EchoWorker, world_size=3, layouts=layouts, placement=placement)
    together = InProcessWorkerGroup(EchoWorker, layouts=colocated(ParallelLayout()))
    batch = make_batch()

    def step(group: InProcessWorkerGroup) -> tuple:
        """As a driver writes it: nothing says which workers there are."""
        responded = batch.merge(group.run(EchoWorker.respond, batch, 3))
        rewards = group.run(EchoWorker.score, responded, scale=1.0)["rewards"]
        log_probs = group.run(EchoWorker.old_log_probs, responded)["old_log_probs"]
        problems = [problem for part in group.run(EchoWorker.problems, batch) for problem in part]
        return responded["responses"].tolist(), rewards.tolist(), log_probs.tolist(), problems

    assert step(apart) == step(together)
    assert apart.run(EchoWorker.score, batch, scale=1.0).meta["replicas"] == [{"rank": 2}, {"rank": 0}]
    assert apart.run(EchoWorker.respond, batch, 3).meta["replicas"] == [{"rank": 1}]
    first, second = apart.run(EchoWorker.where)
    assert (first.rank, first.ranks) == (2, {"train": 0, "reward": 1})
    assert (second.rank, second.ranks) == (0, {"train": 1, "reward": 0})


@pytest.mark.parametrize(
    ("world_size", "placement"),
    [(2, None), (4, {"rollout": [0, 1, 2]}), (4, {"rollout": [0, 1, 2, 2]}), (4, {"rollout": [1, 2, 3, 4]})],
)
def test_each_rank_of_a_layout_needs_a_worker_of_its_own(world_size, placement):
    layouts = {"train": ParallelLayout(dp=world_size), "rollout": ParallelLayout(tp=4)}
    with pytest.raises(ConfigError, match=rf"'rollout'.*has 4 ranks; the group has {world_size} workers"):
        InProcessWorkerGroup(EchoWorker, layouts=layouts, placement=placement)


def test_several_batches_are_cut_alike():
    class Pair:
        def __init__(self, context): ...

        @dispatch(Dispatch.SPLIT_BY_DP)
        def same(self, left: DataProto, *, right: DataProto) -> bool:
            return left["prompt_lengths"].equal(right["prompt_lengths"])

    group = InProcessWorkerGroup(Pair, layouts={"train": ParallelLayout(dp=3)})
    assert group.run(Pair.same, make_batch(), right=make_batch()) == [True, True, True]


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
        (
            lambda group: group.run(EchoWorker.misplaced),
            "'nowhere'; group 'worker' was made with reward, rollout, train",
        ),
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
