"""Parameters of a rank: by hand, and against the shard specs that the engines are built from. Memory: by hand for one
layout, and the direction in which each setting moves it."""

from dataclasses import replace
from math import prod

import pytest

from cfpo_hybrid.algorithms.policy_loss import register_policy_loss
from cfpo_hybrid.algorithms.policy_loss.cfpo import CfpoConfig
from cfpo_hybrid.models import model_shape
from cfpo_hybrid.models.engine_specs import megatron_specs, vllm_specs
from cfpo_hybrid.parallel_layout import ParallelLayout
from trainer.check.fitting import alternatives
from trainer.check.memory import (
    CPU_OVERHEAD,
    GIB,
    GPU_OVERHEAD,
    Device,
    MemoryPhase,
    estimate_memory,
    layer_parameters,
    rollout_parameters,
    stage_experts,
    stage_parameters,
)
from trainer.config import Config, DataConfig, TrainerConfig
from trainer.config.model import known_config
from trainer.rules import find_layout_problems
from workers.config import (
    ActorConfig,
    AlgorithmConfig,
    MegatronConfig,
    ModelConfig,
    OptimizerConfig,
    PolicyLossConfig,
    RolloutConfig,
)

SHAPE = model_shape(known_config("Qwen/Qwen2.5-1.5B") or {})
PARAMETERS = 1_543_714_304  # 151,936 rows need no padding
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
GPU = Device(is_gpu=True, bytes=80 * GIB)
CPU = Device(is_gpu=False, bytes=0)


@register_policy_loss("memory_test_reference", config=CfpoConfig, needs=["ref_log_probs"])
def to_the_reference(inputs, config):
    return inputs.log_probs - inputs.ref_log_probs


def config_of(workers: int = 4, actor: ActorConfig | None = None, **megatron: bool | int) -> Config:
    actor = replace(actor or ActorConfig(micro_batch_tokens=8192), megatron=MegatronConfig(**megatron))  # type: ignore[arg-type]
    return Config(
        model=ModelConfig(path="Qwen/Qwen2.5-1.5B"),
        data=DataConfig(train_files=[], max_prompt_length=512, max_response_length=3072),
        actor=actor,
        rollout=RolloutConfig(gpu_memory_utilization=0.5),
        trainer=TrainerConfig(num_workers=workers, device="cuda"),
    )


def phases(config: Config, device: Device = GPU) -> dict[str, MemoryPhase]:
    return {phase.name: phase for phase in estimate_memory(config, SHAPE, device).phases}


def test_training_state_by_hand():
    update = phases(config_of(workers=4))["update"].parts
    assert update["weights"] == 2 * PARAMETERS  # bf16
    assert update["gradients"] == 4 * PARAMETERS  # fp32
    assert update["optimizer"] == 12 * PARAMETERS // 4  # fp32 master and two moments over dp=4
    assert update["overhead"] == GPU_OVERHEAD
    measuring = config_of(workers=4, actor=ActorConfig(optimizer=OptimizerConfig(grad_cosine=True)))
    assert phases(measuring)["update"].parts["kept gradient"] == 4 * PARAMETERS // 4  # fp32, over dp=4


def test_activations_by_hand():
    # h = 1536, queries 1536, keys 256, MLP 8960; 28 layers; 8192 tokens; 2 bytes
    per_token = 4 * 1536 + 2 * 1536 + 2 * 256 + 3 * 8960
    assert phases(config_of())["update"].parts["activations"] == 2 * 8192 * 28 * per_token
    recomputed = phases(config_of(recompute=True))["update"].parts["activations"]
    assert recomputed == 2 * 8192 * (28 * 1536 + per_token)


def test_chunks_of_a_stage_keep_more_activations():
    # Two stages of 14 layers: 1F1B keeps two micro-batches of the first; in two chunks of 7, 2 x 1 + 1 x 2 + 1 = 5 of those.
    whole = phases(config_of(pipeline_parallel_size=2))["update"].parts["activations"]
    chunks = phases(config_of(pipeline_parallel_size=2, virtual_pipeline_parallel_size=2))["update"].parts[
        "activations"
    ]
    assert chunks * (2 * 14) == whole * (5 * 7)


def test_a_mixture_by_hand():
    mixture = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16}
    config = {**(known_config("Qwen/Qwen2.5-7B") or {}), **mixture, "model_type": "qwen3_moe"}
    config |= {"num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4}
    shape = model_shape(config)
    layout = config_of(workers=4, expert_parallel_size=2, tensor_parallel_size=2, sequence_parallel=True)
    update = next(iter(estimate_memory(layout, shape, GPU).phases)).parts
    # vocabulary 152064 / 2 x 64 twice; 4 x 64 x 64 / 2 attention; 8 x 64 router; norms 3 x 64 and 2 x 16
    dense = 152064 * 64 + 8192 + 512 + 192 + 32
    experts = 4 * 3 * 64 * 32  # half of 8
    assert update["weights"] == 2 * (dense + experts)
    # dense weights are on dp=2 ranks; each expert on 2 of the 4
    assert update["optimizer"] == 12 * dense // 2 + 12 * experts // 2
    # 4 h / 2 + (2 q + 2 k) / 2 + 2 experts x (2 h + 3 w) / 2
    assert update["activations"] == 2 * 8192 * (128 + 128 + (128 + 96))


def test_the_longest_sequence_gets_a_micro_batch_of_its_own():
    small = config_of(actor=ActorConfig(micro_batch_tokens=100))
    exact = config_of(actor=ActorConfig(micro_batch_tokens=3584))
    assert phases(small)["update"] == phases(exact)["update"]


def test_kv_cache_is_what_is_left_of_vllms_share():
    estimate = estimate_memory(config_of(), SHAPE, GPU)
    assert estimate.kv_cache_bytes == 40 * GIB - 2 * PARAMETERS
    # keys and values of 2 heads of 128 in 28 layers, 2 bytes each
    assert estimate.kv_token_bytes == 2 * 2 * 2 * 128 * 28


def test_full_precision_has_no_master_copy():
    parts = phases(config_of(actor=ActorConfig(dtype="float32")))["update"].parts
    assert parts["weights"] == 4 * PARAMETERS
    assert parts["optimizer"] == 8 * PARAMETERS // 4


@pytest.mark.parametrize(
    "setting",
    [
        {"tensor_parallel_size": 2},
        {"pipeline_parallel_size": 2},
        {"recompute": True},
        {"tensor_parallel_size": 2, "sequence_parallel": True},
    ],
)
def test_settings_that_save_memory_in_the_update(setting: dict):
    assert phases(config_of(**setting))["update"].total < phases(config_of())["update"].total


def test_settings_that_cost_memory():
    base = phases(config_of())
    assert phases(config_of(distributed_optimizer=False))["update"].total > base["update"].total
    with_kl = replace(config_of(), algorithm=replace(config_of().algorithm, kl_coef=0.1))
    with_loss = replace(config_of(), policy_loss=PolicyLossConfig(name="memory_test_reference"))
    for with_reference in (with_kl, with_loss):
        assert phases(with_reference)["update"].parts["reference"] == 2 * PARAMETERS


def test_offload_empties_the_device_for_generation():
    resident, moved = phases(config_of()), phases(config_of(offload=True))
    assert "optimizer" in resident["generate"].parts
    assert set(moved["generate"].parts) == {"vLLM weights", "KV cache", "overhead"}
    assert set(moved["wake and reshard"].parts) == {"weights", "vLLM weights", "transfer buckets", "overhead"}
    assert moved["update"] == resident["update"]


def test_a_cpu_keeps_both_engines_in_fp32():
    update = phases(config_of(), CPU)["update"].parts
    assert update["weights"] == update["vLLM weights"] == 4 * PARAMETERS
    assert update["KV cache"] == RolloutConfig().kv_cache_bytes
    assert update["overhead"] == CPU_OVERHEAD


def test_alternatives_fit_and_change_little():
    shape = model_shape(known_config("Qwen/Qwen2.5-7B") or {})
    config = config_of(workers=8)
    assert estimate_memory(config, shape, GPU).peak > GPU.bytes
    found = alternatives(config, shape, GPU, find_layout_problems)
    assert found
    assert all(alternative.peak <= GPU.bytes for alternative in found)
    assert {"actor.megatron.tensor_parallel_size": "2"} in [alternative.changes for alternative in found]
    sizes = [len(alternative.changes) for alternative in found]
    assert sizes == sorted(sizes)


def test_no_alternative_where_nothing_helps():
    shape = model_shape(known_config("Qwen/Qwen2.5-72B") or {})
    assert alternatives(config_of(workers=1), shape, GPU, find_layout_problems) == []


def test_advice_for_many_nodes_keeps_tensor_parallelism_inside_a_node():
    """72B on 4 nodes of 8 needs pipeline stages and a larger tp of vLLM beside tp; no tp goes over a node's border."""
    shape = model_shape(known_config("Qwen/Qwen2.5-72B") or {})
    config = replace(config_of(), trainer=TrainerConfig(nodes=4, workers_per_node=8))
    assert not estimate_memory(config, shape, GPU).fits(GPU)
    found = alternatives(config, shape, GPU, find_layout_problems)
    assert found
    sizes = {
        int(alternative.changes.get(key, 1))
        for alternative in found
        for key in ("actor.megatron.tensor_parallel_size", "rollout.tensor_parallel_size")
    }
    assert max(sizes) <= 8
    assert any("actor.megatron.pipeline_parallel_size" in alternative.changes for alternative in found)
    narrow = replace(config, trainer=TrainerConfig(nodes=8, workers_per_node=2))
    for alternative in alternatives(
        narrow, model_shape(known_config("Qwen/Qwen2.5-32B") or {}), GPU, find_layout_problems
    ):
        assert int(alternative.changes.get("actor.megatron.tensor_parallel_size", 1)) <= 2


def test_older_weights_of_a_known_lag():
    """A copy a rollout step, and one more while the current weights make room for older ones."""
    lagging = replace(config_of(offload=True), algorithm=AlgorithmConfig(weight_lag=2))
    on_cpu = phases(replace(lagging, actor=replace(lagging.actor, megatron=MegatronConfig())), CPU)
    older = {name: phase.parts["older weights"] for name, phase in on_cpu.items()}
    assert older == {
        "update": 2 * 4 * PARAMETERS,
        "wake and reshard": 3 * 4 * PARAMETERS,
        "generate": 2 * 4 * PARAMETERS,
    }
    on_gpu = estimate_memory(lagging, SHAPE, GPU)
    assert all("older weights" not in phase.parts for phase in on_gpu.phases)
    # bf16 weights and 12 bytes of optimizer over dp=4 are offloaded, gradients dropped
    assert on_gpu.host.parts == {"offloaded": (2 + 3) * PARAMETERS, "older weights": 3 * 2 * PARAMETERS}
    assert estimate_memory(config_of(), SHAPE, GPU).host.parts == {}


def test_a_cache_without_room_for_a_sequence_does_not_fit():
    config = replace(config_of(), rollout=RolloutConfig(gpu_memory_utilization=0.037))
    estimate = estimate_memory(config, SHAPE, GPU)
    assert estimate.peak < GPU.bytes
    assert 0 < estimate.kv_cache_bytes < 3584 * estimate.kv_token_bytes
    assert not estimate.fits(GPU)
    assert estimate_memory(config_of(), SHAPE, GPU).fits(GPU)


def test_parameters_by_hand():
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
