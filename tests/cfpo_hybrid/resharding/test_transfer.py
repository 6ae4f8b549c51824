"""Plans carried out between real processes over gloo."""

import pytest
import torch
import torch.distributed as dist
from gloo import run_gloo
from resharding_world import distinct_tensors, megatron_world, shards_of, small_shape, vllm_world

from cfpo_hybrid.errors import ReshardError
from cfpo_hybrid.parallel_layout import ParallelLayout
from cfpo_hybrid.resharding import Resharder, build_plan

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
    """[(every parameter right, bytes received)] of each case, on this rank."""
    rank, answers = dist.get_rank(), []
    for layout, rollout_tp, bucket_bytes in cases:
        shape = small_shape(num_layers=4, tied_embeddings=layout.pp > 1)
        tensors = distinct_tensors(shape)
        sources = megatron_world(shape, layout)
        destinations = vllm_world(shape, layout.world_size, rollout_tp)
        expected = shards_of(destinations[rank], {name: t.to(dtype) for name, t in tensors.items()}, PADDING)
        resharder = Resharder(build_plan(sources, destinations, 4), rank=rank, dtype=dtype, bucket_bytes=bucket_bytes)
        mine = shards_of(sources[rank], tensors)
        for scale in (1.0, 2.0):  # a second run must carry new values
            found = {name: torch.full_like(tensor, PADDING) for name, tensor in expected.items()}
            stats = resharder.run({name: scale * tensor for name, tensor in mine.items()}, found)
            right = all(
                torch.equal(found[name], torch.where(tensor == PADDING, PADDING, scale * tensor))
                for name, tensor in expected.items()
            )
            answers.append((right, stats.bytes_received))
    return answers


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_four_processes_exchange_shards(dtype):
    by_rank = run_gloo(4, reshard_on_this_rank, LAYOUTS, dtype, timeout=300)
    assert all(right for answers in by_rank for right, _ in answers)
    # The last layout cuts what every rank has in full: nothing is received.
    assert all(answers[-1][1] == 0 for answers in by_rank)


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
