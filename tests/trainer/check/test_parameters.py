"""Counts of parameters per rank: by hand, and against the shard specs that the engines are built from."""

from math import prod

import pytest

from cfpo_hybrid.models import model_shape
from cfpo_hybrid.models.engine_specs import megatron_specs, vllm_specs
from cfpo_hybrid.parallel_layout import ParallelLayout
from trainer.check.parameters import layer_parameters, rollout_parameters, stage_experts, stage_parameters
from trainer.config.model import known_config
from workers.config import MegatronConfig

TINY = {
    "model_type": "qwen2",
    "num_hidden_layers": 2,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
MIXTURE = TINY | {
    "model_type": "qwen3_moe",
    "head_dim": 4,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 6,
    "tie_word_embeddings": False,
}


def test_by_hand():
    shape = model_shape(TINY)
    # query 8 rows, key and value 4 each: (8 + 8) x (8 + bias) = 144; out 64; MLP 3 x 8 x 16 = 384; norms 16
    assert layer_parameters(shape, 1) == 144 + 64 + 384 + 16
    # all but the norms halve
    assert layer_parameters(shape, 2) == (144 + 64 + 384) // 2 + 16
    # the vocabulary is padded to 104 rows: 832; a final norm of 8
    assert stage_parameters(shape, MegatronConfig()) == [2 * 608 + 832 + 8]
    # tied embeddings: the last stage has a copy
    assert stage_parameters(shape, MegatronConfig(pipeline_parallel_size=2)) == [608 + 832, 608 + 832 + 8]


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-1.5B", "Qwen/Qwen2.5-7B"])
@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize("pp", [1, 2])
def test_megatron_ranks_hold_what_their_specs_say(name: str, tp: int, pp: int):
    shape = model_shape(known_config(name) or {})
    layout = ParallelLayout(tp=tp, pp=pp)
    counts = stage_parameters(shape, MegatronConfig(tensor_parallel_size=tp, pipeline_parallel_size=pp))
    for rank in range(layout.world_size):
        coordinate = layout.coordinate(rank)
        specs = megatron_specs(shape, layout, coordinate)
        assert sum(prod(spec.shape) for spec in specs) == counts[coordinate.pp]


@pytest.mark.parametrize(("tp", "pp", "ep"), [(1, 1, 1), (2, 1, 4), (2, 2, 2)])
def test_mixtures_hold_what_their_specs_say(tp: int, pp: int, ep: int):
    shape = model_shape(MIXTURE)
    layout = ParallelLayout(tp=tp, pp=pp, dp=4, ep=ep)
    megatron = MegatronConfig(tensor_parallel_size=tp, pipeline_parallel_size=pp, expert_parallel_size=ep)
    counts, experts = stage_parameters(shape, megatron), stage_experts(shape, megatron)
    for rank in range(layout.world_size):
        coordinate = layout.coordinate(rank)
        sizes = {spec.name: prod(spec.shape) for spec in megatron_specs(shape, layout, coordinate)}
        assert sum(sizes.values()) == counts[coordinate.pp]
        assert sum(size for name, size in sizes.items() if ".experts." in name) == experts[coordinate.pp]
    assert sum(prod(spec.shape) for spec in vllm_specs(shape, tp, 0)) == rollout_parameters(shape, tp)


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-1.5B", "Qwen/Qwen2.5-7B"])
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_vllm_ranks_hold_what_their_specs_say(name: str, tp: int):
    shape = model_shape(known_config(name) or {})
    held = sum(prod(spec.shape) for spec in vllm_specs(shape, tp, 0))
    assert rollout_parameters(shape, tp) == held
