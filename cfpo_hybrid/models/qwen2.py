"""Qwen2 and Qwen2.5: biases on query, key and value; small ones tie their embeddings."""

from collections.abc import Mapping
from typing import Any

from cfpo_hybrid.errors import ModelError
from cfpo_hybrid.models.dense_config import read_dense_shape, refuse
from cfpo_hybrid.models.family import Family
from cfpo_hybrid.models.layers import dense_layer
from cfpo_hybrid.models.shape import ModelShape


def _read_shape(config: Mapping[str, Any]) -> ModelShape:
    refuse(config, "use_sliding_window")
    shape = read_dense_shape(config, family="qwen2", qkv_bias=True)
    if shape.query_size != shape.hidden_size:
        raise ModelError(
            f"config.json has head_dim={shape.head_dim} for {shape.num_heads} heads; vLLM's Qwen2 takes "
            f"hidden_size / num_attention_heads = {shape.hidden_size / shape.num_heads:g} only"
        )
    return shape


QWEN2 = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    read_shape=_read_shape,
    layer=dense_layer(qkv_bias=True),
)
