"""Llama 2, 3 and 3.1: no biases; 3.1 stretches its rotary frequencies."""

from collections.abc import Mapping
from typing import Any

from cfpo_hybrid.errors import ModelError
from cfpo_hybrid.models.dense_config import read_dense_shape
from cfpo_hybrid.models.family import Family, dense_layer
from cfpo_hybrid.models.shape import ModelShape


def _read_shape(config: Mapping[str, Any]) -> ModelShape:
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            raise ModelError(f"config.json has {key}=true; Llama models with these biases are not supported")
    return read_dense_shape(config, family="llama", qkv_bias=False)


LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    read_shape=_read_shape,
    layer=dense_layer(qkv_bias=False),
)
