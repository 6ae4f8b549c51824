"""Qwen3: an RMSNorm on each head's query and key, heads of their own size, no biases."""

from collections.abc import Mapping
from typing import Any

from cfpo_hybrid.models.dense_config import read_dense_shape, refuse
from cfpo_hybrid.models.family import Family
from cfpo_hybrid.models.layers import dense_layer
from cfpo_hybrid.models.shape import ModelShape

HEAD_DIM = 128
"""Of a config.json that does not say."""


def _read_shape(config: Mapping[str, Any]) -> ModelShape:
    refuse(config, "attention_bias", "use_sliding_window")
    return read_dense_shape({"head_dim": HEAD_DIM, **config}, family="qwen3", qk_norm=True)


QWEN3 = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    read_shape=_read_shape,
    layer=dense_layer(qk_norm=True),
)
