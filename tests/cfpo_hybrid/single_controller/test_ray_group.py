"""Worker groups on a real Ray: the same answers as in process, failures told by their cause, no process left."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Timer

import pytest
import ray
import torch
from controller_workers import EchoWorker, FailsToStart, GlooWorker

from cfpo_hybrid.errors import ConfigError, DispatchError, WorkerError
from cfpo_hybrid.parallel_layout import ParallelLayout
from cfpo_hybrid.protocol import DataProto
from cfpo_hybrid.single_controller import InProcessWorkerGroup, ResourcePool
from cfpo_hybrid.single_controller.ray_group import RayWorkerGroup
from cfpo_hybrid.single_controller.wire import INLINE_BYTES, StoredBatch

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ENV = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
LAYOUTS = dict.fromkeys(("train", "rollout", "reward"), ParallelLayout(dp=2))


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=256 * 2**20)
    yield
    ray.shutdown()


def create(worker_class: type, **options) -> RayWorkerGroup:
    options = {"pool": ResourcePool(workers_per_node=2), "layouts": LAYOUTS, "role": "test", "env": ENV, **options}
    return RayWorkerGroup(worker_class, **options)


@pytest.fixture(scope="module")
def group(cluster: None) -> Iterator[RayWorkerGroup]:
    with create(EchoWorker, args=(0.5,)) as group:
        yield group


def make_batch(rows: int, width: int) -> DataProto:
    return DataProto(
        {
            "prompts": torch.arange(rows * width).reshape(rows, width),
            "prompt_lengths": torch.arange(rows) % width + 1,
            "problem": [f"problem {row}" for row in range(rows)],
        }
    )


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 20
    while any(os.path.exists(f"/proc/{pid}") for pid in pids):
        assert time.monotonic() < deadline, f"processes are left of {pids}"
        time.sleep(0.05)


@pytest.mark.parametrize(("rows", "width"), [(6, 3), (64, 512)])  # inside the message, and through the object store
def test_ray_and_in_process_groups_give_the_same(group, rows, width):
    batch = make_batch(rows, width)
    assert (batch.local_bytes > INLINE_BYTES) == (rows == 64)
    answers = []
    for backend in (group, InProcessWorkerGroup(EchoWorker, args=(0.5,), layouts=LAYOUTS)):
        scored = backend.run(EchoWorker.score, batch, scale=2.0)
        responded = batch.merge(backend.run(EchoWorker.respond, batch, width)).merge(scored)
        log_probs = backend.run(EchoWorker.old_log_probs, responded)
        answers.append(
            (
                scored["rewards"].tolist(),
                scored.meta,
                responded["responses"].tolist(),
                log_probs["old_log_probs"].tolist(),
                backend.run(EchoWorker.tokens, responded),
                backend.run(EchoWorker.problems, batch),
                backend.run(EchoWorker.total, batch),
                backend.run(EchoWorker.prompts, batch)["prompts"].tolist(),
            )
        )
    assert answers[0] == answers[1]


def test_wide_columns_stay_in_the_object_store_until_they_are_read(group):
    batch = make_batch(64, 512)
    responded = group.run(EchoWorker.respond, batch, 512)
    assert "response_lengths" in responded and len(responded) == 64 and responded.widths == {"response": 513}
    stored = responded.deferred["responses"].batches
    assert all(isinstance(batch, StoredBatch) for batch in stored) and len(stored) == 2
    log_probs = group.run(EchoWorker.old_log_probs, batch.merge(responded))
    assert "responses" in responded.deferred  # passing it on did not bring it here
    assert log_probs["old_log_probs"].equal(-responded["responses"].float())


@pytest.mark.parametrize("shape", [(64,), (64, 512)])
def test_advantages_travel_in_either_shape(group, shape):
    advantages = torch.arange(torch.Size(shape).numel()).float().reshape(shape)
    batch = make_batch(64, 512).with_columns(advantages=advantages, response_lengths=torch.arange(64))
    assert group.run(EchoWorker.weigh, batch)["advantages"].equal(2 * advantages)


def test_columns_that_no_method_of_a_layout_reads_stay_on_the_driver(group):
    batch = make_batch(4, 3).with_columns(entropy=torch.zeros(4, 5), rewards=torch.zeros(4))
    assert group.run(EchoWorker.columns, batch) == [("prompt_lengths", "prompts")] * 2


def test_layouts_with_workers_of_their_own_give_what_shared_workers_give(group):
    options = {
        "pool": ResourcePool(workers_per_node=3, cpus_per_worker=0.5),
        "layouts": {"train": ParallelLayout(dp=2), "rollout": ParallelLayout()},
        "placement": {"train": [0, 1], "rollout": [2]},
    }
    batch = make_batch(64, 512)
    with create(EchoWorker, args=(0.5,), **options) as apart:
        steps = []
        for workers in (apart, group):
            responded = workers.run(EchoWorker.respond, batch, 512)
            log_probs = workers.run(EchoWorker.old_log_probs, batch.merge(responded))
            lengths, width = responded["response_lengths"].tolist(), 512  # the second of two replicas pads one more
            steps.append((lengths, log_probs["old_log_probs"][:, :width].tolist()))
        assert steps[0] == steps[1]
        assert apart.run(EchoWorker.respond, batch, 3).meta["replicas"] == [{"rank": 2}]
        assert apart.run(EchoWorker.score, batch, 1.0).meta["replicas"] == [{"rank": 0}, {"rank": 1}]
        assert [context.ranks for context in apart.run(EchoWorker.where)] == [{"train": 0}, {"train": 1}]


def test_workers_know_their_place_and_environment(group):
    first, second = group.run(EchoWorker.where)
    assert (first.rank, second.rank, second.local_rank, second.local_world_size) == (0, 1, 1, 2)
    assert first.master_port == second.master_port and first.job_id == second.job_id
    assert group.run(EchoWorker.environment, "OMP_NUM_THREADS") == ["1", "1"]
    assert group.run(EchoWorker.environment, "LOCAL_RANK") == ["0", "1"]


def test_started_calls_run_in_order_and_can_be_collected_in_any(group):
    slow, quick = group.start(EchoWorker.sleep, 0.2), group.start(EchoWorker.total, make_batch(4, 4))
    assert quick.result() == 10 and slow.result() == [0, 1] and slow.result() == [0, 1]


def test_shutdown_closes_workers_and_leaves_no_process(tmp_path):
    with create(
        EchoWorker, args=(0.0, str(tmp_path)), pool=ResourcePool(workers_per_node=2, cpus_per_worker=0)
    ) as group:
        pids = group.run(EchoWorker.pid)
    group.shutdown()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]
    wait_until_gone(pids)
    with pytest.raises(DispatchError, match="it was shut down"):
        group.run(EchoWorker.pid)


def test_a_call_ends_when_another_thread_shuts_the_group_down():
    group = create(EchoWorker)
    group.close_seconds = 0.2
    call = group.start(EchoWorker.sleep, 60)
    Timer(0.2, group.shutdown).start()
    with pytest.raises(DispatchError, match="a call of sleep was lost: group 'test' was shut down"):
        call.result()


def test_a_worker_that_raises_ends_every_call_while_others_still_work():
    group = create(EchoWorker)
    pids = group.run(EchoWorker.pid)
    waiting = group.start(EchoWorker.fail_here_while_others_wait, 1)
    behind = group.start(EchoWorker.pid)
    started = time.monotonic()
    for future in (behind, waiting):
        with pytest.raises(WorkerError, match=r"rank 1\] failed in fail_here(.|\n)*ValueError: rank 1 was") as caught:
            future.result()
        assert caught.value.rank == 1 and "still running: ranks 0" in str(caught.value)
    assert time.monotonic() - started < 15
    wait_until_gone(pids)
    with pytest.raises(DispatchError, match="it failed before: rank 1"):
        group.run(EchoWorker.pid)


def test_a_killed_rank_is_told_before_its_peer_in_the_collective():
    group = create(GlooWorker)
    assert group.run(GlooWorker.sum_of_ranks) == [1, 1]
    pids = group.run(GlooWorker.pid)
    started = time.monotonic()
    with pytest.raises(WorkerError, match="process died") as caught:
        group.run(GlooWorker.all_reduce_without, 1)
    assert time.monotonic() - started < 15
    assert caught.value.rank == 1 and caught.value.method == "all_reduce_without"
    wait_until_gone(pids)


def test_a_constructor_that_raises_is_told_and_frees_the_resources():
    with pytest.raises(WorkerError, match=r"rank 1\] failed in __init__(.|\n)*no such model"):
        create(FailsToStart)
    deadline = time.monotonic() + 10
    while ray.available_resources().get("CPU", 0) < 2:  # the module's own group keeps two of the four
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_pool_beyond_the_cluster_is_refused_at_once():
    started = time.monotonic()
    with pytest.raises(ConfigError, match="the nodes have 4 CPU"):
        create(EchoWorker, pool=ResourcePool(workers_per_node=2, cpus_per_worker=3))
    assert time.monotonic() - started < 5
