"""Shard specs of both engines against hand calculations and against the formulas the engines fuse with."""

import pytest
import torch
from resharding_world import distinct_tensors, megatron_world, shards_of, small_shape, vllm_world

from cfpo_hybrid.errors import ModelError
from cfpo_hybrid.models import PipelineCut, padded_vocab_size
from cfpo_hybrid.models.engine_specs import check_divides, megatron_specs, vllm_padded_vocab_size, vllm_specs
from cfpo_hybrid.models.hf_tensors import hf_shapes
from cfpo_hybrid.parallel_layout import Coordinate, ParallelLayout
from cfpo_hybrid.resharding.shard_spec import check_complete

ATTENTION = "model.layers.0.self_attn"


def test_megatron_interleaves_query_key_value_by_group():
    shape = small_shape()
    tensors = distinct_tensors(shape)
    q, k, v = (tensors[f"{ATTENTION}.{name}_proj.weight"] for name in "qkv")
    # 2 groups of 2 heads of 4: [group, head, 4 rows, hidden], as mcore splits its mixed output.
    fused = torch.cat([q.view(2, 8, 16), k.view(2, 4, 16), v.view(2, 4, 16)], dim=1).view(32, 16)
    name = "decoder.layers.0.self_attention.linear_qkv.weight"
    for tp in (1, 2, 4):  # at tp=4 two ranks share a group
        for rank, expected in enumerate(fused.chunk(tp)):
            specs = megatron_specs(shape, ParallelLayout(tp=tp), Coordinate(dp=0, pp=0, cp=0, tp=rank))
            assert torch.equal(shards_of(specs, tensors)[name], expected)


def test_vllm_stacks_query_key_value_and_replicates_heads():
    shape = small_shape()
    tensors = distinct_tensors(shape)
    q, k, v = (tensors[f"{ATTENTION}.{name}_proj.weight"] for name in "qkv")
    local = shards_of(vllm_specs(shape, 4, 2), tensors)[f"{ATTENTION}.qkv_proj.weight"]
    # Rank 2 of 4 has query head 2 and, with rank 3, key-value head 1.
    assert torch.equal(local, torch.cat([q[8:12], k[4:8], v[4:8]]))
    bias = shards_of(vllm_specs(shape, 1, 0), tensors)[f"{ATTENTION}.qkv_proj.bias"]
    assert torch.equal(bias, torch.cat([tensors[f"{ATTENTION}.{name}_proj.bias"] for name in "qkv"]))


def test_gate_and_up_are_cut_before_they_are_stacked():
    shape = small_shape()
    tensors = distinct_tensors(shape)
    gate, up = (tensors[f"model.layers.2.mlp.{name}_proj.weight"] for name in ("gate", "up"))
    down = tensors["model.layers.2.mlp.down_proj.weight"]
    expected = torch.cat([gate[4:], up[4:]])
    megatron = shards_of(megatron_world(shape, ParallelLayout(tp=2))[1], tensors)
    vllm = shards_of(vllm_world(shape, 2, 2)[1], tensors)
    assert torch.equal(megatron["decoder.layers.2.mlp.linear_fc1.weight"], expected)
    assert torch.equal(vllm["model.layers.2.mlp.gate_up_proj.weight"], expected)
    assert torch.equal(megatron["decoder.layers.2.mlp.linear_fc2.weight"], down[:, 4:])


def test_stages_number_their_layers_from_zero_and_hold_global_ones():
    shape = small_shape()
    world = megatron_world(shape, ParallelLayout(pp=2), PipelineCut(last=1))
    tensors = distinct_tensors(shape)
    last = shards_of(world[1], tensors)
    assert torch.equal(
        last["decoder.layers.0.input_layernorm.weight"], tensors["model.layers.2.input_layernorm.weight"]
    )
    assert [spec.name for spec in world[1] if "layers" not in spec.name] == [
        "decoder.final_layernorm.weight",
        "output_layer.weight",
    ]


def test_chunks_of_a_stage_are_a_round_apart():
    shape = small_shape(num_layers=4, tied_embeddings=True)
    tensors = distinct_tensors(shape)
    first, last = (
        shards_of(specs, tensors) for specs in megatron_world(shape, ParallelLayout(pp=2), PipelineCut(chunks=2))
    )
    norm = "decoder.layers.0.input_layernorm.weight"
    # Stage 0 has layers 0 and 2, stage 1 has 1 and 3, each as the only one of its chunk.
    for layer, (stage, chunk) in enumerate([(first, 0), (last, 0), (first, 1), (last, 1)]):
        assert torch.equal(stage[f"chunk{chunk}.{norm}"], tensors[f"model.layers.{layer}.input_layernorm.weight"])
    assert {name for name in first | last if "layers" not in name} == {
        "chunk0.embedding.word_embeddings.weight",
        "chunk1.decoder.final_layernorm.weight",
        "chunk1.output_layer.weight",
    }


def test_tied_head_is_the_embedding_on_the_last_of_several_stages():
    shape = small_shape(tied_embeddings=True)
    alone = {spec.name for spec in megatron_world(shape, ParallelLayout())[0]}
    assert "output_layer.weight" not in alone
    head = next(spec for spec in megatron_world(shape, ParallelLayout(pp=3))[2] if spec.name == "output_layer.weight")
    assert {piece.hf_name for piece in head.pieces} == {"model.embed_tokens.weight"}
    assert "lm_head.weight" not in {spec.name for spec in vllm_specs(shape, 1, 0)}


def test_vocabulary_padding_is_declared():
    shape = small_shape()
    # 19 rows pad to 32 on two Megatron ranks (8 a rank and tp): rank 1 holds rows 16..19 and 13 of padding.
    last = megatron_world(shape, ParallelLayout(tp=2))[1][0]
    assert last.shape == (16, 16) and last.pieces[0].hf.size == (3, 16)
    assert [area.start for area in last.padding] == [(3, 0)] and last.padding[0].size == (13, 16)
    # vLLM pads to 64: of four ranks the last two hold nothing but padding.
    empty = vllm_specs(shape, 4, 3)[0]
    assert empty.shape == (16, 16) and not empty.pieces and empty.padding[0].size == (16, 16)


def test_padded_vocabularies():
    assert [padded_vocab_size(100, tp) for tp in (1, 2, 4)] == [104, 112, 128]
    assert padded_vocab_size(151936, 8) == 151936  # 151936 = 64 * 2374
    assert [vllm_padded_vocab_size(size) for size in (1, 64, 65)] == [64, 64, 128]


def test_tensor_parallel_sizes_that_do_not_divide_name_those_that_do():
    shape = small_shape(num_heads=12, num_kv_heads=2, intermediate_size=8960)
    with pytest.raises(ModelError, match=r"12 attention heads.*sizes that fit: 1, 2, 4"):
        check_divides(shape, 8, "rollout")


def test_norms_of_heads_are_on_every_rank():
    shape = small_shape(family="qwen3")
    tensors = distinct_tensors(shape)
    norm = tensors[f"{ATTENTION}.k_norm.weight"]
    for rank in (0, 1):
        megatron = shards_of(megatron_world(shape, ParallelLayout(tp=2))[rank], tensors)
        vllm = shards_of(vllm_specs(shape, 2, rank), tensors)
        assert torch.equal(megatron["decoder.layers.0.self_attention.k_layernorm.weight"], norm)
        assert torch.equal(vllm[f"{ATTENTION}.k_norm.weight"], norm)


def test_experts_are_whole_in_megatron_and_spread_over_ep():
    shape = small_shape(family="qwen3_moe")
    tensors = distinct_tensors(shape)
    # Four ranks of a stage with tp=2 and ep=2: ranks 1 and 3 have experts 2 and 3, whatever their tp and dp are.
    world = megatron_world(shape, ParallelLayout(tp=2, dp=2, ep=2))
    name = "decoder.layers.1.mlp.experts.local_experts.1"
    gate, up, down = (tensors[f"model.layers.1.mlp.experts.3.{part}_proj.weight"] for part in ("gate", "up", "down"))
    for rank in (1, 3):
        local = shards_of(world[rank], tensors)
        assert torch.equal(local[f"{name}.linear_fc1.weight"], torch.cat([gate, up]))
        assert torch.equal(local[f"{name}.linear_fc2.weight"], down)
        assert torch.equal(local["decoder.layers.1.mlp.router.weight"], tensors["model.layers.1.mlp.gate.weight"])
        assert not any("local_experts.2" in name for name in local)


def test_vllm_stacks_all_experts_and_cuts_each():
    shape = small_shape(family="qwen3_moe")
    tensors = distinct_tensors(shape)
    gate, up, down = (
        torch.stack([tensors[f"model.layers.0.mlp.experts.{expert}.{part}_proj.weight"] for expert in range(4)])
        for part in ("gate", "up", "down")
    )
    local = shards_of(vllm_specs(shape, 2, 1), tensors)
    experts = "model.layers.0.mlp.experts.routed_experts"
    # Rank 1 of 2 has rows 4..8 of each gate and up: [4 experts, 2 x 4, 16] seen as a matrix.
    assert torch.equal(local[f"{experts}.w13_weight"].view(4, 8, 16), torch.cat([gate[:, 4:], up[:, 4:]], dim=1))
    assert torch.equal(local[f"{experts}.w2_weight"].view(4, 16, 4), down[:, :, 4:])


@pytest.mark.parametrize(
    ("family", "ep", "message"),
    [("qwen3_moe", 3, "4 experts per layer; sizes that do: 1, 2, 4"), ("qwen3", 2, "qwen3 models have none")],
)
def test_experts_that_do_not_divide(family, ep, message):
    with pytest.raises(ModelError, match=message):
        megatron_world(small_shape(family=family), ParallelLayout(dp=6, ep=ep))


@pytest.mark.parametrize("ep", [1, 2, 4])
@pytest.mark.parametrize(("tp", "pp", "dp"), [(1, 1, 4), (2, 3, 2), (4, 1, 1)])
def test_the_ranks_of_an_expert_group_hold_every_expert_once(ep, tp, pp, dp):
    shape = small_shape(family="qwen3_moe")
    layout = ParallelLayout(tp=tp, pp=pp, dp=dp, ep=ep)
    world = megatron_world(shape, layout)
    check_complete([spec for rank in world for spec in rank], hf_shapes(shape))
    held = [piece.hf_name for rank in world for spec in rank for piece in spec.pieces if ".experts." in piece.hf_name]
    assert all(held.count(name) == tp * dp // ep for name in held)
    # Consecutive ranks of a stage are one group, as Megatron-core's order "tp-cp-ep-dp-pp" makes them.
    assert [layout.expert_rank(layout.coordinate(rank)) for rank in range(layout.world_size)] == [
        rank % ep for rank in range(layout.world_size)
    ]


@pytest.mark.parametrize("family", ["qwen2", "llama", "mistral", "qwen3", "qwen3_moe"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (4, 1), (1, 3), (2, 3)])
def test_a_replica_holds_the_whole_checkpoint(family, tied, tp, pp):
    shape = small_shape(family=family, tied_embeddings=tied)
    world = megatron_world(shape, ParallelLayout(tp=tp, pp=pp))
    check_complete([spec for rank in world for spec in rank], hf_shapes(shape))
    check_complete([spec for rank in vllm_world(shape, tp, tp) for spec in rank], hf_shapes(shape))
