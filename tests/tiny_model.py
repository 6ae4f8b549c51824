"""Random Hugging Face models of a few thousand parameters for tests."""

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SIZES: dict[str, Any] = {
    "hidden_size": 128,  # vLLM on a CPU wants head sizes of at least 32
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 101,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}


LLAMA_31 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    # Short, so that the sequences of the test reach past it and every branch of the stretch is used.
    "original_max_position_embeddings": 16,
}
"""Rope scaling of Llama 3.1."""

OF_FAMILY: dict[str, dict[str, Any]] = {
    "qwen3": {"head_dim": 64},  # twice what hidden_size / num_attention_heads would give
    "qwen3_moe": {
        "head_dim": 32,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 64,  # vLLM on a CPU takes multiples of 32 on each rank
        "norm_topk_prob": True,
    },
    "mistral": {"head_dim": 64, "sliding_window": None},
}


def tiny_model(family: str = "qwen2", seed: int = 0, **sizes: Any) -> "PreTrainedModel":
    """A random model in fp32 whose biases and norms are random too, so that a forgotten one shows."""
    from transformers import AutoConfig, AutoModelForCausalLM  # seconds; not every process that sees this file needs it

    # A copy: transformers writes the rotary base into the mapping that it is given.
    config = AutoConfig.for_model(family, **copy.deepcopy(SIZES | OF_FAMILY.get(family, {}) | sizes))
    generator = torch.Generator().manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.1 * noise if "norm" in name else 0.15 * noise)
    return model


def checkpoint_tensors(model: "PreTrainedModel") -> dict[str, Tensor]:
    """Its tensors under the names of a checkpoint: transformers has a layer's experts in one tensor only in memory."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        if ".experts." not in name:
            tensors[name] = tensor
            continue
        layer, kind = name.split(".experts.")
        for number, expert in enumerate(tensor):
            parts = zip(("gate_proj", "up_proj"), expert.chunk(2), strict=True)
            for part, weight in parts if kind == "gate_up_proj" else [("down_proj", expert)]:
                tensors[f"{layer}.experts.{number}.{part}.weight"] = weight
    return tensors


def save_tiny_model(folder: Path, family: str = "qwen2", seed: int = 0, **sizes: Any) -> "PreTrainedModel":
    """Writes one as safetensors with its config.json, and returns it."""
    model = tiny_model(family, seed, **sizes)
    model.save_pretrained(folder)
    return model
