"""config.json -> ModelShape, for the families and the ways transformers has written them."""

import pytest
import torch
from safetensors import safe_open
from tiny_model import checkpoint_tensors, save_tiny_model
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config, Qwen3MoeConfig

from cfpo_hybrid.errors import ModelError
from cfpo_hybrid.models import FAMILIES, Experts, load_hf_config, model_shape
from cfpo_hybrid.models.hf_tensors import hf_shapes

QWEN25_1_5B = {
    "model_type": "qwen2",
    "hidden_act": "silu",
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "max_position_embeddings": 131072,
    "max_window_layers": 28,
    "num_attention_heads": 12,
    "num_hidden_layers": 28,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}


def test_qwen25_config_of_transformers_4():
    shape = model_shape(QWEN25_1_5B)
    assert (shape.head_dim, shape.query_size, shape.kv_size) == (128, 1536, 256)
    assert shape.rope_theta == 1e6 and shape.rope_scaling is None and shape.qkv_bias and shape.tied_embeddings
    # The model card says 1.54B parameters: embedding 151936 * 1536 = 233,373,696; a layer has
    # 2048 * 1537 (qkv) + 1536 * 1536 (o) + 3 * 1536 * 8960 (mlp) + 2 * 1536 = 46,797,824; 28 of them and a norm of 1536.
    assert shape.num_parameters == 233_373_696 + 28 * 46_797_824 + 1536


def test_llama31_rope_scaling_is_read_in_both_spellings():
    rope = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    old = {**LlamaConfig().to_dict(), "rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **rope}}
    del old["rope_parameters"]
    new = LlamaConfig(rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **rope}).to_dict()
    for config in (old, new):
        shape = model_shape(config)
        assert shape.rope_theta == 5e5
        assert shape.rope_scaling is not None and shape.rope_scaling.factor == 8.0
        assert shape.rope_scaling.original_max_position_embeddings == 8192


@pytest.mark.parametrize("family", ["qwen2", "llama", "mistral", "qwen3", "qwen3_moe"])
@pytest.mark.parametrize("tied", [True, False])
def test_shapes_are_those_of_transformers(family, tied, tmp_path):
    model = save_tiny_model(tmp_path, family, tie_word_embeddings=tied)
    shape = model_shape(load_hf_config(str(tmp_path)))
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert hf_shapes(shape) == {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        for name, tensor in checkpoint_tensors(model).items():
            assert torch.equal(tensor, file.get_tensor(name))
    assert shape.num_parameters == model.num_parameters()


def test_published_qwen3_configs():
    common = {**QWEN25_1_5B, "attention_bias": False, "head_dim": 128, "tie_word_embeddings": False}
    # Qwen3-4B: 36 layers, 32 heads of 128 on a hidden size of 2560. "4.0B", tied.
    small = {"num_hidden_layers": 36, "hidden_size": 2560, "intermediate_size": 9728, "tie_word_embeddings": True}
    small |= {"model_type": "qwen3", "num_attention_heads": 32, "num_key_value_heads": 8}
    shape = model_shape({**common, **small})
    assert shape.query_size == 4096 and shape.qk_norm and not shape.qkv_bias
    assert round(shape.num_parameters / 1e9, 1) == 4.0
    # Qwen3-235B-A22B: 94 layers of 128 experts of 1536, 8 of them for a token. "235B".
    large = {"num_hidden_layers": 94, "hidden_size": 4096, "intermediate_size": 12288, "num_experts": 128}
    large |= {"model_type": "qwen3_moe", "num_attention_heads": 64, "num_key_value_heads": 4, "norm_topk_prob": True}
    large |= {"num_experts_per_tok": 8, "moe_intermediate_size": 1536, "decoder_sparse_step": 1, "mlp_only_layers": []}
    shape = model_shape({**common, **large})
    assert shape.experts == Experts(count=128, per_token=8, intermediate_size=1536, normalised=True)
    assert round(shape.num_parameters / 1e9) == 235
    idle = 94 * 120 * 3 * 4096 * 1536  # the 120 experts of each layer that a token does not pass
    assert round((shape.num_parameters - idle) / 1e9) == 22


@pytest.mark.parametrize(("window", "positions"), [({"sliding_window": 512}, 512), ({"sliding_window": None}, 32768)])
def test_mistral_has_the_positions_of_its_window(window, positions):
    config = {**MistralConfig(max_position_embeddings=32768).to_dict(), **window}
    assert model_shape(config).max_position_embeddings == positions
    del config["sliding_window"]  # then transformers takes 4096
    assert model_shape(config).max_position_embeddings == 4096


def test_unknown_family_lists_the_known_ones():
    with pytest.raises(ModelError, match=r"'qwen9'.*llama, mistral, qwen2, qwen3.*nearest: 'qwen"):
        model_shape({"model_type": "qwen9"})


@pytest.mark.parametrize(
    "change",
    [
        {"use_sliding_window": True},
        {"hidden_act": "gelu"},
        {"vocab_size": None},
        {"num_key_value_heads": 5},
        {"num_key_value_heads": "2"},
        {"num_attention_heads": 0},
        {"head_dim": 64},
        {"rope_scaling": {"type": "yarn", "factor": 4.0}},
        {"rope_scaling": {"rope_type": "llama3", "factor": 4.0}},
    ],
)
def test_unsupported_variants_raise(change):
    with pytest.raises(ModelError):
        model_shape({**QWEN25_1_5B, **change})


@pytest.mark.parametrize(
    ("config", "change"),
    [
        (LlamaConfig(), {"attention_bias": True}),
        (LlamaConfig(), {"mlp_bias": True}),
        (Qwen3Config(), {"attention_bias": True}),
        (Qwen3Config(), {"use_sliding_window": True}),
        (Qwen3MoeConfig(), {"mlp_only_layers": [0]}),
        (Qwen3MoeConfig(), {"decoder_sparse_step": 2}),
        (Qwen3MoeConfig(), {"num_experts_per_tok": 200}),
        (Qwen3MoeConfig(), {"moe_intermediate_size": None}),
    ],
)
def test_variants_of_other_families_raise(config, change):
    (key,) = change
    assert model_shape(config.to_dict()).family == config.model_type
    with pytest.raises(ModelError, match="no mixture" if key == "num_experts_per_tok" else key):
        model_shape({**config.to_dict(), **change})


def test_config_files_that_cannot_be_used(tmp_path):
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_hf_config(str(tmp_path))
    for content in (b"{", b"\xff\xfe"):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(ModelError, match="not JSON"):
            load_hf_config(str(tmp_path))
    with pytest.raises(ModelError, match="no such folder"):
        load_hf_config(str(tmp_path / "absent"))


def test_config_of_a_folder(tmp_path):
    Qwen2Config().save_pretrained(tmp_path)
    assert model_shape(load_hf_config(str(tmp_path))).num_layers == 32


def test_every_family_has_a_table():
    assert {"qwen2", "llama", "mistral", "qwen3", "qwen3_moe"} <= set(FAMILIES.names())
    for name in FAMILIES:
        assert FAMILIES.get(name).model_type == name and FAMILIES.get(name).layer
