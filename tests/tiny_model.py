"""Random Hugging Face models of a few thousand parameters for tests."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

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


def tiny_model(family: str = "qwen2", seed: int = 0, **sizes: Any) -> "PreTrainedModel":
    """A random model in fp32 whose biases and norms are random too, so that a forgotten one shows."""
    from transformers import AutoConfig, AutoModelForCausalLM  # seconds; not every process that sees this file needs it

    config = AutoConfig.for_model(family, **{**SIZES, **sizes})
    generator = torch.Generator().manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.1 * noise if "norm" in name else 0.15 * noise)
    return model


def save_tiny_model(folder: Path, family: str = "qwen2", seed: int = 0, **sizes: Any) -> "PreTrainedModel":
    """Writes one as safetensors with its config.json, and returns it."""
    model = tiny_model(family, seed, **sizes)
    model.save_pretrained(folder)
    return model
