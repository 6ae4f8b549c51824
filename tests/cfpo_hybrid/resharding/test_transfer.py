"""Plans carried out between real processes, over gloo and through shared memory."""

import os
import resource
import signal
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from gloo import run_gloo
from resharding_world import distinct_tensors, megatron_world, shards_of, small_shape, vllm_world

from cfpo_hybrid.errors import ReshardError
from cfpo_hybrid.parallel_layout import ParallelLayout
from cfpo_hybrid.resharding import Piece, Rectangle, Resharder, ReshardPlan, ShardSpec, build_plan, join_host

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
    """[(every parameter right, bytes received, bytes sent) of each case and transport] on this rank."""
    rank, answers = dist.get_rank(), []
    for layout, rollout_tp, bucket_bytes in cases:
        shape = small_shape(num_layers=4, tied_embeddings=layout.pp > 1)
        tensors = distinct_tensors(shape)
        sources = megatron_world(shape, layout)
        destinations = vllm_world(shape, layout.world_size, rollout_tp)
        expected = shards_of(destinations[rank], {name: t.to(dtype) for name, t in tensors.items()}, PADDING)
        mine = shards_of(sources[rank], tensors)
        for ranks_per_host in (1, 2, 4):  # messages alone, both, shared memory alone
            host = join_host(ranks_per_host, bucket_bytes // 2)
            assert (host is None) == (ranks_per_host == 1)
            plan = build_plan(sources, destinations, 4)
            resharder = Resharder(plan, rank=rank, dtype=dtype, bucket_bytes=bucket_bytes, host=host)
            for scale in (1.0, 2.0):  # a second run must carry new values
                found = {name: torch.full_like(tensor, PADDING) for name, tensor in expected.items()}
                stats = resharder.run({name: scale * tensor for name, tensor in mine.items()}, found)
                right = all(
                    torch.equal(found[name], torch.where(tensor == PADDING, PADDING, scale * tensor))
                    for name, tensor in expected.items()
                )
                answers.append((right, stats.bytes_received, stats.bytes_sent))
            if host:
                host.close()
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


ROWS, COLUMNS = 4, 1 << 21


def everybody_wants_all() -> ReshardPlan:
    """Each rank has a row of 8 MB and needs all four."""
    piece = [Piece("tensor", Rectangle((row, 0), (1, COLUMNS)), (0, 0)) for row in range(ROWS)]
    sources = [[ShardSpec("row", (1, COLUMNS), (piece[row],))] for row in range(ROWS)]
    return build_plan(sources, [[ShardSpec.of_whole_tensor("tensor", (ROWS, COLUMNS))]] * ROWS, ROWS)


def stop_in_the_middle(folder: str) -> None:
    """Ranks write down the error that they meet when rank 3 is killed; before that, what a reshard took."""
    rank = dist.get_rank()
    if rank == 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    refused = join_host(ROWS)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert refused is None  # on all ranks, since one of them got no memory
    plan, source, target = everybody_wants_all(), torch.ones(1, COLUMNS), torch.ones(ROWS, COLUMNS)
    host = join_host(ROWS, 1 << 19)
    assert host is not None
    maps = Path("/proc/self/maps").read_text().splitlines()
    assert not any("/dev/shm" in line for line in maps)  # no file that could be left behind
    shared = [line.split()[0].split("-") for line in maps if "memfd:cfpo-reshard" in line]
    assert [int(end, 16) - int(begin, 16) for begin, end in shared] == [1 << 20] * ROWS  # a bucket of each rank
    resharder = Resharder(plan, rank=rank, dtype=torch.float32, bucket_bytes=1 << 20, host=host)
    resharder.run({"row": source}, {"tensor": target})  # code that runs for the first time is read into memory
    source[:] = rank + 1.0
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = resident("VmHWM")
    stats = resharder.run({"row": source}, {"tensor": target})
    grown = resident("VmHWM") - before  # and so does the code that looks at the result
    assert torch.equal(target, torch.arange(1.0, 5.0)[:, None].expand(ROWS, COLUMNS))
    # One packed slice for three readers.
    assert (stats.bytes_packed, stats.bytes_sent, stats.bytes_received) == (source.nbytes, *[3 * source.nbytes] * 2)
    # 24 MB arrived, and no memory but the slots was needed: not even that of one more parcel.
    assert grown < 1 << 19, grown
    dist.barrier()
    if rank == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(ReshardError) as error:
        resharder.run({"row": source}, {"tensor": target})
    (Path(folder) / str(rank)).write_text(str(error.value))


def resident(field: str) -> int:
    """Bytes of resident memory, now or at their most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024


def test_memory_is_bounded_and_a_killed_rank_stops_the_others(tmp_path):
    with pytest.raises(AssertionError, match="rank 3 of 4 failed:\nthe process died"):
        run_gloo(4, stop_in_the_middle, str(tmp_path))
    errors = [(tmp_path / str(rank)).read_text() for rank in range(3)]
    assert any("rank 3 died" in error for error in errors)
    assert all("died or gave up during the weight sync" in error for error in errors)


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
