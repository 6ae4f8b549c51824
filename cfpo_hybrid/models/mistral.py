"""Mistral: as Llama; the first release looks back through a window only."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cfpo_hybrid.models.dense_config import read_dense_shape
from cfpo_hybrid.models.family import Family
from cfpo_hybrid.models.layers import dense_layer
from cfpo_hybrid.models.shape import ModelShape

SLIDING_WINDOW = 4096
"""Of a config.json that does not say; null there turns the window off."""


def _read_shape(config: Mapping[str, Any]) -> ModelShape:
    shape = read_dense_shape(config, family="mistral")
    window = config.get("sliding_window", SLIDING_WINDOW) or shape.max_position_embeddings
    # Sequences that fit into the window see all of themselves; longer ones would need windowed kernels.
    return replace(shape, max_position_embeddings=min(window, shape.max_position_embeddings))


MISTRAL = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    read_shape=_read_shape,
    layer=dense_layer(),
)
