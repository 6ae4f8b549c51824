"""Plans over random layouts: every element right, written once, by the nearest and least busy holder."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from resharding_world import (
    distinct_tensors,
    execute_in_one_process,
    megatron_world,
    shards_of,
    small_shape,
    vllm_world,
)

from cfpo_hybrid.errors import ReshardError
from cfpo_hybrid.parallel_layout import ParallelLayout
from cfpo_hybrid.resharding import ShardSpec, build_plan
from cfpo_hybrid.resharding.buckets import schedule

PADDING = -1.0


@st.composite
def worlds(draw):
    """(shape, training layout, stage arguments, rollout tp) that fit together."""
    kv_heads, group = draw(st.sampled_from([1, 2, 3, 4])), draw(st.sampled_from([1, 2, 4]))
    heads = kv_heads * group
    sizes = [tp for tp in (1, 2, 3, 4) if heads % tp == 0 and (kv_heads % tp == 0 or tp % kv_heads == 0)]
    train_tp = draw(st.sampled_from(sizes))
    layers, pp = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    pp = min(pp, layers)
    stages = {} if layers % pp == 0 else {"last_stage_layers": layers - (pp - 1) * (layers // pp)}
    layout = ParallelLayout(tp=train_tp, pp=pp, dp=draw(st.integers(1, 2)))
    rollout_sizes = [tp for tp in sizes if layout.world_size % tp == 0 and 64 % tp == 0]
    shape = small_shape(
        family=draw(st.sampled_from(["qwen2", "llama"])),
        num_layers=layers,
        hidden_size=8,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=draw(st.sampled_from([2, 4])),
        intermediate_size=12 * draw(st.integers(1, 2)),
        vocab_size=draw(st.integers(1, 70)),
        tied_embeddings=draw(st.booleans()),
    )
    return shape, layout, stages, draw(st.sampled_from(rollout_sizes))


@given(worlds(), st.integers(1, 8))
@settings(max_examples=50, deadline=None)
def test_every_destination_element_is_right_and_written_once(world, ranks_per_node):
    shape, layout, stages, rollout_tp = world
    tensors = distinct_tensors(shape)
    source_specs = megatron_world(shape, layout, **stages)
    destination_specs = vllm_world(shape, layout.world_size, rollout_tp)
    sources = [shards_of(specs, tensors) for specs in source_specs]
    expected = [shards_of(specs, tensors, PADDING) for specs in destination_specs]
    found = [{name: torch.full_like(tensor, PADDING) for name, tensor in rank.items()} for rank in expected]

    plan = build_plan(source_specs, destination_specs, ranks_per_node)
    writes = execute_in_one_process(plan, sources, found)

    for rank, specs in enumerate(destination_specs):
        for spec in specs:
            assert torch.equal(found[rank][spec.name], expected[rank][spec.name]), spec.name
            once = shards_of([spec], {name: torch.ones_like(tensor) for name, tensor in tensors.items()})
            assert torch.equal(writes[rank][spec.name], once[spec.name]), spec.name


@given(worlds())
@settings(max_examples=30, deadline=None)
def test_the_way_back_restores_megatrons_shards(world):
    shape, layout, stages, rollout_tp = world
    tensors = distinct_tensors(shape)
    source_specs = vllm_world(shape, layout.world_size, rollout_tp)
    destination_specs = megatron_world(shape, layout, **stages)
    sources = [shards_of(specs, tensors) for specs in source_specs]
    expected = [shards_of(specs, tensors) for specs in destination_specs]
    found = [{name: torch.zeros_like(tensor) for name, tensor in rank.items()} for rank in expected]
    execute_in_one_process(build_plan(source_specs, destination_specs, 8), sources, found)
    assert all(
        torch.equal(found[rank][name], tensor) for rank in range(len(found)) for name, tensor in expected[rank].items()
    )


@pytest.mark.parametrize(("tp", "dp"), [(1, 1), (1, 4), (2, 2), (4, 1)])
def test_equal_tp_without_stages_is_purely_local(tp, dp):
    shape = small_shape(num_heads=8, num_kv_heads=4, head_dim=2, vocab_size=128)
    layout = ParallelLayout(tp=tp, dp=dp)
    plan = build_plan(megatron_world(shape, layout), vllm_world(shape, layout.world_size, tp), 8)
    assert all(copy.is_local for copy in plan.copies)


def test_senders_share_the_load():
    # tp 2, dp 2 -> tp 1: each rank lacks the other half, which two ranks could send.
    shape, layout = small_shape(vocab_size=32), ParallelLayout(tp=2, dp=2)
    plan = build_plan(megatron_world(shape, layout), vllm_world(shape, 4, 1), 4)
    sent = Counter()
    for copy in plan.copies:
        if not copy.is_local:
            sent[copy.source_rank] += copy.volume
    assert len(sent) == 4 and max(sent.values()) <= 1.2 * min(sent.values())


def test_the_same_node_comes_before_others():
    shape, layout = small_shape(), ParallelLayout(tp=2, dp=2)
    plan = build_plan(megatron_world(shape, layout), vllm_world(shape, 4, 1), ranks_per_node=2)
    assert all(copy.source_rank // 2 == copy.destination_rank // 2 for copy in plan.copies)


def test_a_lost_layer_is_named():
    shape = small_shape()
    sources = megatron_world(shape, ParallelLayout(pp=3))
    sources[1] = []
    with pytest.raises(ReshardError, match=r"model\.layers\.1\.input_layernorm\.weight\[0:16\]"):
        build_plan(sources, vllm_world(shape, 3, 1), 3)


def test_a_lost_rectangle_is_named():
    shape = small_shape()
    specs = megatron_world(shape, ParallelLayout())[0]
    embedding = specs[0]
    half = replace(embedding.pieces[0], hf=replace(embedding.pieces[0].hf, size=(10, 16)))
    specs[0] = ShardSpec(embedding.name, (10, 16), (half,))
    with pytest.raises(ReshardError, match=r"embed_tokens\.weight\[10:19, 0:16\]"):
        build_plan([specs], vllm_world(shape, 1, 1), 1)


def test_megatron_with_the_head_tied_gives_its_first_copy():
    shape = small_shape(tied_embeddings=True)
    plan = build_plan(megatron_world(shape, ParallelLayout(pp=3)), vllm_world(shape, 3, 1), 3)
    embeddings = [copy for copy in plan.copies if copy.destination_name == "model.embed_tokens.weight"]
    # Both end stages hold it, so only the middle one needs a message.
    assert [copy.is_local for copy in embeddings] == [True, False, True]


@given(worlds(), st.integers(8, 200))
@settings(max_examples=30, deadline=None)
def test_steps_match_on_both_sides_and_stay_within_the_bucket(world, limit):
    shape, layout, stages, rollout_tp = world
    plan = build_plan(megatron_world(shape, layout, **stages), vllm_world(shape, layout.world_size, rollout_tp), 4)
    steps = [schedule(plan, rank, limit) for rank in range(layout.world_size)]
    for rank in range(layout.world_size):
        for other in range(layout.world_size):
            sent = [step.send.copies for step in steps[rank] if step.send and step.send.peer == other]
            received = [step.receive.copies for step in steps[other] if step.receive and step.receive.peer == rank]
            assert sent == received
        assert all(step.send.volume <= limit for step in steps[rank] if step.send)
    moved = sum(step.receive.volume for rank in steps for step in rank if step.receive)
    assert moved == sum(copy.volume for copy in plan.copies if not copy.is_local)
