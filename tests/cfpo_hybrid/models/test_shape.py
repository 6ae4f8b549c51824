"""config.json -> ModelShape, for the families and the ways transformers has written them."""

import pytest
from tiny_model import tiny_model
from transformers import LlamaConfig, Qwen2Config

from cfpo_hybrid.errors import ConfigError, ModelError
from cfpo_hybrid.models import FAMILIES, load_hf_config, model_shape, padded_vocab_size, pipeline_layers
from cfpo_hybrid.models.shards import check_divides, hf_shapes
from cfpo_hybrid.models.vocab import vllm_padded_vocab_size

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


@pytest.mark.parametrize("family", ["qwen2", "llama"])
@pytest.mark.parametrize("tied", [True, False])
def test_shapes_are_those_of_transformers(family, tied):
    model = tiny_model(family, tie_word_embeddings=tied)
    shape = model_shape(model.config.to_dict())
    assert hf_shapes(shape) == {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    assert shape.num_parameters == model.num_parameters()


def test_unknown_family_lists_the_known_ones():
    with pytest.raises(ModelError, match=r"'qwen9'.*llama, qwen2.*nearest: 'qwen2'"):
        model_shape({"model_type": "qwen9"})


@pytest.mark.parametrize(
    "change",
    [
        {"use_sliding_window": True},
        {"hidden_act": "gelu"},
        {"vocab_size": None},
        {"num_key_value_heads": 5},
        {"head_dim": 64},
        {"rope_scaling": {"type": "yarn", "factor": 4.0}},
        {"rope_scaling": {"rope_type": "llama3", "factor": 4.0}},
    ],
)
def test_unsupported_variants_raise(change):
    with pytest.raises(ModelError):
        model_shape({**QWEN25_1_5B, **change})


@pytest.mark.parametrize("key", ["attention_bias", "mlp_bias"])
def test_llama_with_biases_raises(key):
    with pytest.raises(ModelError, match=key):
        model_shape({**LlamaConfig().to_dict(), key: True})


def test_config_files_that_cannot_be_used(tmp_path):
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_hf_config(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not JSON"):
        load_hf_config(str(tmp_path))
    with pytest.raises(ModelError, match="no such folder"):
        load_hf_config(str(tmp_path / "absent"))


def test_config_of_a_folder(tmp_path):
    Qwen2Config().save_pretrained(tmp_path)
    assert model_shape(load_hf_config(str(tmp_path))).num_layers == 32


def test_layers_are_cut_as_megatron_does():
    assert pipeline_layers(8, 4) == (range(0, 2), range(2, 4), range(4, 6), range(6, 8))
    assert pipeline_layers(7, 3, first=2, last=3) == (range(0, 2), range(2, 4), range(4, 7))
    assert pipeline_layers(7, 2, last=3) == (range(0, 4), range(4, 7))
    assert pipeline_layers(5, 1) == (range(5),)


@pytest.mark.parametrize("cut", [(7, 2, None, None), (4, 2, 1, 2), (4, 3, 3, 1), (2, 3, None, None), (4, 1, 3, None)])
def test_layers_that_cannot_be_cut_raise(cut):
    with pytest.raises(ConfigError):
        pipeline_layers(*cut)


def test_advice_for_uneven_stages_is_legal():
    with pytest.raises(ConfigError, match="last_stage_layers=4"):
        pipeline_layers(7, 2)
    assert [len(stage) for stage in pipeline_layers(7, 2, last=4)] == [3, 4]


def test_padded_vocabularies():
    assert [padded_vocab_size(100, tp) for tp in (1, 2, 4)] == [104, 112, 128]
    assert padded_vocab_size(151936, 8) == 151936  # 151936 = 64 * 2374
    assert [vllm_padded_vocab_size(size) for size in (1, 64, 65)] == [64, 64, 128]


def test_tensor_parallel_sizes_that_do_not_divide_name_those_that_do():
    shape = model_shape(QWEN25_1_5B)
    with pytest.raises(ModelError, match=r"12 attention heads.*sizes that fit: 1, 2, 4"):
        check_divides(shape, 8, "rollout")


def test_every_family_has_a_table():
    assert {"qwen2", "llama"} <= set(FAMILIES.names())
    for name in FAMILIES:
        assert FAMILIES.get(name).model_type == name and FAMILIES.get(name).layer
