"""Qwen3-MoE: Qwen3 with a mixture of experts in every layer."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cfpo_hybrid.errors import ModelError
from cfpo_hybrid.models.dense_config import read_dense_shape, read_size, refuse
from cfpo_hybrid.models.family import Family
from cfpo_hybrid.models.layers import mixture_layer
from cfpo_hybrid.models.shape import Experts, ModelShape


def _read_shape(config: Mapping[str, Any]) -> ModelShape:
    refuse(config, "attention_bias", "use_sliding_window", "mlp_only_layers")
    if config.get("decoder_sparse_step", 1) != 1:
        raise ModelError(
            f"config.json has decoder_sparse_step={config['decoder_sparse_step']}; only mixtures in every layer "
            "(decoder_sparse_step=1) are supported"
        )
    shape = read_dense_shape(config, family="qwen3_moe", qk_norm=True)
    experts = Experts(
        # transformers 5 writes its own name of the key.
        count=read_size(config, "num_experts" if "num_experts" in config else "num_local_experts"),
        per_token=read_size(config, "num_experts_per_tok"),
        intermediate_size=read_size(config, "moe_intermediate_size"),
        normalised=bool(config.get("norm_topk_prob", False)),
    )
    return replace(shape, experts=experts)


QWEN3_MOE = Family(
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    read_shape=_read_shape,
    layer=mixture_layer(qk_norm=True),
)
