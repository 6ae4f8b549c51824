"""Llama 2, 3 and 3.1: no biases; 3.1 stretches its rotary frequencies."""

from collections.abc import Mapping
from typing import Any

from cfpo_hybrid.models.dense_config import read_dense_shape, refuse
from cfpo_hybrid.models.family import Family
from cfpo_hybrid.models.layers import dense_layer
from cfpo_hybrid.models.shape import ModelShape


def _read_shape(config: Mapping[str, Any]) -> ModelShape:
    refuse(config, "attention_bias", "mlp_bias")
    return read_dense_shape(config, family="llama")


LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    read_shape=_read_shape,
    layer=dense_layer(),
)
