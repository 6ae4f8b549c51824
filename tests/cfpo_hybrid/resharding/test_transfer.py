"""Plans carried out between real processes, over gloo."""

import os
import signal
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from gloo import run_gloo
from resharding_world import distinct_tensors, megatron_world, shards_of, small_shape, vllm_world

from cfpo_hybrid.errors import ReshardError
from cfpo_hybrid.models.hf_tensors import hf_shapes
from cfpo_hybrid.models.weight_plan import Handover, Placement, rollout_specs, training_specs, weight_plan
from cfpo_hybrid.parallel_layout import ParallelLayout
from cfpo_hybrid.resharding import Piece, Rectangle, ReshardPlan, ShardSpec, build_plan, check_plan
from cfpo_hybrid.resharding.traffic import plan_traffic
from cfpo_hybrid.resharding.transfer import Resharder
from cfpo_hybrid.single_controller.failures import Failure

PADDING = -1.0
LAYOUTS = [
    # training layout, rollout tp, bucket in bytes
    (ParallelLayout(tp=2, dp=2), 1, 1 << 20),
    (ParallelLayout(tp=2, dp=2), 4, 1 << 10),
    (ParallelLayout(tp=4), 2, 100),
    (ParallelLayout(tp=2, pp=2), 2, 300),
    (ParallelLayout(pp=4), 1, 1 << 12),
    (ParallelLayout(dp=4), 4, 1 << 12),
]


def reshard_on_this_rank(cases, dtype):
    """[(every parameter right, bytes received, bytes sent) of each case] on this rank."""
    rank, answers = dist.get_rank(), []
    for layout, rollout_tp, bucket_bytes in cases:
        shape = small_shape(num_layers=4, tied_embeddings=layout.pp > 1)
        sources, destinations = megatron_world(shape, layout), vllm_world(shape, layout.world_size, rollout_tp)
        plan = build_plan(sources, destinations, 4)
        resharder = Resharder(plan, rank=rank, dtype=dtype, bucket_bytes=bucket_bytes)
        answers += run_twice(resharder, sources[rank], destinations[rank], shape)
    return answers


def run_twice(resharder, sources, destinations, shape):
    """(every parameter right, bytes received, bytes sent) of two runs; the second one must carry new values."""
    tensors, dtype = distinct_tensors(shape), resharder.dtype
    expected = shards_of(destinations, {name: tensor.to(dtype) for name, tensor in tensors.items()}, PADDING)
    mine, answers = shards_of(sources, tensors), []
    for scale in (1.0, 2.0):
        found = {name: torch.full_like(tensor, PADDING) for name, tensor in expected.items()}
        stats = resharder.run({name: scale * tensor for name, tensor in mine.items()}, found)
        right = all(
            torch.equal(found[name], torch.where(tensor == PADDING, PADDING, scale * tensor))
            for name, tensor in expected.items()
        )
        answers.append((right, stats.bytes_received, stats.bytes_sent))
    return answers


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_four_processes_exchange_shards(dtype):
    by_rank = run_gloo(4, reshard_on_this_rank, LAYOUTS, dtype, timeout=300)
    assert all(right for answers in by_rank for right, _, _ in answers)
    # The last layout cuts what every rank has in full: nothing is received.
    assert all(answers[-1][1] == 0 for answers in by_rank)
    for of_run in zip(*by_rank, strict=True):
        assert sum(received for _, received, _ in of_run) == sum(sent for _, _, sent in of_run)


def reshard_between_pools(handover):
    """What :func:`run_twice` finds in this process, which trains or generates."""
    rank = dist.get_rank()
    resharder = Resharder(weight_plan(handover), rank=rank, dtype=torch.float32, bucket_bytes=1 << 12)
    return run_twice(resharder, training_specs(handover)[rank], rollout_specs(handover)[rank], handover.shape)


@pytest.mark.parametrize(
    "placement",
    [Placement.separate(4, 2), Placement(training=(5, 1, 0, 4), rollout=(2, 3)), Placement((0, 1, 2, 3), (3, 4))],
)
def test_pools_of_their_own_get_the_same_weights(placement):
    handover = Handover(
        shape=small_shape(num_layers=4),
        training=ParallelLayout(tp=2, pp=2),
        rollout=ParallelLayout(tp=2),
        placement=placement,
        ranks_per_node=4,
    )
    sources, destinations = training_specs(handover), rollout_specs(handover)
    check_plan(weight_plan(handover), sources, destinations, hf_shapes(handover.shape))
    traffic = plan_traffic(weight_plan(handover), sources, destinations, itemsize=4)
    by_process = run_gloo(placement.world_size, reshard_between_pools, handover)
    for seen, answers in zip(traffic.ranks, by_process, strict=True):
        assert answers == [(True, seen.received, seen.sent)] * 2
        assert seen.received == seen.lower_bound


ROWS, COLUMNS = 4, 1 << 21


def everybody_wants_all() -> ReshardPlan:
    """Each rank has a row of 8 MB and needs all four."""
    piece = [Piece("tensor", Rectangle((row, 0), (1, COLUMNS)), (0, 0)) for row in range(ROWS)]
    sources = [[ShardSpec("row", (1, COLUMNS), (piece[row],))] for row in range(ROWS)]
    return build_plan(sources, [[ShardSpec.of_whole_tensor("tensor", (ROWS, COLUMNS))]] * ROWS, ROWS)


def stop_in_the_middle(folder: str) -> None:
    """Ranks write down the error that they meet when rank 3 is killed; before that, what a reshard took."""
    rank, bucket_bytes = dist.get_rank(), 1 << 20
    plan, source, target = everybody_wants_all(), torch.ones(1, COLUMNS), torch.ones(ROWS, COLUMNS)
    resharder = Resharder(plan, rank=rank, dtype=torch.float32, bucket_bytes=bucket_bytes)
    resharder.run({"row": source}, {"tensor": target})  # code that runs for the first time is read into memory
    source[:] = rank + 1.0
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = resident("VmHWM")
    stats = resharder.run({"row": source}, {"tensor": target})
    grown = resident("VmHWM") - before
    assert torch.equal(target, torch.arange(1.0, 5.0)[:, None].expand(ROWS, COLUMNS))
    assert (stats.bytes_sent, stats.bytes_received) == (3 * source.nbytes, 3 * source.nbytes)
    # 24 MB arrived, and no more memory was needed than four messages of half a bucket, and gloo's own.
    assert grown < 3 * bucket_bytes, grown
    dist.barrier()
    if rank == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(RuntimeError) as error:
        resharder.run({"row": source}, {"tensor": target})
    (Path(folder) / str(rank)).write_text(str(error.value))


def resident(field: str) -> int:
    """Bytes of resident memory, now or at their most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024


def test_memory_is_bounded_and_a_killed_rank_stops_the_others(tmp_path):
    with pytest.raises(AssertionError, match="rank 3 of 4 failed:\nthe process died"):
        run_gloo(4, stop_in_the_middle, str(tmp_path))
    for rank in range(3):
        error = (tmp_path / str(rank)).read_text()
        # The controller looks behind such errors for the death that they tell of.
        assert Failure(rank=rank, method="sync_weights", died=False, time=0.0, summary=error, cause="").is_consequence


def test_a_local_plan_needs_no_process_group():
    shape = small_shape()
    tensors = distinct_tensors(shape)
    sources, destinations = megatron_world(shape, ParallelLayout())[0], vllm_world(shape, 1, 1)[0]
    expected = shards_of(destinations, tensors)
    found = {name: torch.zeros_like(tensor) for name, tensor in expected.items()}
    resharder = Resharder(build_plan([sources], [destinations], 1), rank=0, dtype=torch.float32, bucket_bytes=1 << 20)
    stats = resharder.run(shards_of(sources, tensors), found)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert stats.bytes_local == 4 * shape.num_parameters and stats.bytes_sent == stats.bytes_received == 0


def test_a_parameter_that_is_absent_or_too_small_is_named():
    shape = small_shape()
    sources, destinations = megatron_world(shape, ParallelLayout())[0], vllm_world(shape, 1, 1)[0]
    tensors = distinct_tensors(shape)
    resharder = Resharder(build_plan([sources], [destinations], 1), rank=0, dtype=torch.float32, bucket_bytes=1 << 20)
    found = shards_of(destinations, tensors)
    parameters = shards_of(sources, tensors)
    with pytest.raises(ReshardError, match=r"final_layernorm\.weight.*has no rectangle"):
        resharder.run({**parameters, "decoder.final_layernorm.weight": torch.zeros(3)}, found)
    del parameters["decoder.final_layernorm.weight"]
    with pytest.raises(ReshardError, match=r"final_layernorm\.weight.*does not exist"):
        resharder.run(parameters, found)


def test_a_bucket_that_holds_nothing_raises():
    plan = build_plan([megatron_world(small_shape(), ParallelLayout())[0]], [vllm_world(small_shape(), 1, 1)[0]], 1)
    with pytest.raises(ReshardError, match="1 MiB"):
        Resharder(plan, rank=0, dtype=torch.float32, bucket_bytes=4)
