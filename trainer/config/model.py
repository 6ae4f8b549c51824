"""What is known of the model before anything starts: its shape, and where that was read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfpo_hybrid.errors import ModelError
from cfpo_hybrid.models import ModelShape, load_hf_config, model_folder, model_shape
from trainer.config.schema import Config
from workers.config import ModelConfig
from workers.megatron.hf_files import check_companions, check_weights
from workers.tokenizer import check_vocabulary, read_tokenizer

QWEN_SIZES: dict[str, dict[str, Any]] = {
    "0.5B": {"layers": 24, "hidden": 896, "ffn": 4864, "heads": 14, "kv": 2, "vocab": 151936, "tied": True},
    "1.5B": {"layers": 28, "hidden": 1536, "ffn": 8960, "heads": 12, "kv": 2, "vocab": 151936, "tied": True},
    "3B": {"layers": 36, "hidden": 2048, "ffn": 11008, "heads": 16, "kv": 2, "vocab": 151936, "tied": True},
    "7B": {"layers": 28, "hidden": 3584, "ffn": 18944, "heads": 28, "kv": 4, "vocab": 152064, "tied": False},
    "14B": {"layers": 48, "hidden": 5120, "ffn": 13824, "heads": 40, "kv": 8, "vocab": 152064, "tied": False},
    "32B": {"layers": 64, "hidden": 5120, "ffn": 27648, "heads": 40, "kv": 8, "vocab": 152064, "tied": False},
    "72B": {"layers": 80, "hidden": 8192, "ffn": 29568, "heads": 64, "kv": 8, "vocab": 152064, "tied": False},
}
"""Shapes of the Qwen2.5 models, for checking a run on a machine that cannot fetch their config.json: Qwen2.5 technical
report, table 1, and the models' pages. Only what arithmetic and memory need is exact; training always reads the file.
"""

QWEN_POSITIONS = 32768
"""Tokens that every size was trained with, though some config.json files allow more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """A model's shape and its source.

    Example: source "config.json", or "the built-in table (config.json could not be fetched)".
    """

    shape: ModelShape
    source: str


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A checked configuration and the model it names."""

    config: Config
    model: ModelFacts


def find_model(model: ModelConfig, *, known_models: bool = False) -> ModelFacts:
    """Reads config.json of the folder or Hugging Face id.

    Args:
        model: which model.
        known_models: fall back on the built-in table of Qwen2.5 shapes when the id cannot be fetched.

    Raises:
        ModelError: no config.json, or an architecture that is not supported.
    """
    try:
        return ModelFacts(shape=model_shape(load_hf_config(model.path, model.revision)), source="config.json")
    except ModelError:
        known = known_config(model.path) if known_models else None
        if known is None:
            raise
        return ModelFacts(shape=model_shape(known), source="the built-in table (config.json could not be fetched)")


def whole_model(model: ModelConfig) -> Path:
    """The folder of a model, fetched where it is an id, with weights and a tokenizer that can be used.

    Raises:
        ModelError: it cannot be fetched, its files are missing or damaged, or they do not fit its config.json.
    """
    folder = model_folder(model.path, model.revision)
    shape = model_shape(load_hf_config(str(folder)))
    check_weights(folder, shape)
    check_tokenizer(model, folder, shape)
    return folder


def check_tokenizer(model: ModelConfig, folder: Path, shape: ModelShape) -> None:
    """Refuses a folder without a tokenizer, with a damaged one, or with one whose tokens the model lacks.

    Raises:
        ModelError: which of them.
    """
    check_companions(folder, tokenizer=not model.trust_remote_code)
    check_vocabulary(read_tokenizer(folder).vocabulary, shape.vocab_size, folder)


def known_config(model_id: str) -> dict[str, Any] | None:
    """The config.json of ``Qwen/Qwen2.5-<size>`` or ``-Instruct``, as far as a shape needs it; None for other ids."""
    size = model_id.removeprefix("Qwen/Qwen2.5-").removesuffix("-Instruct")
    if not model_id.startswith("Qwen/Qwen2.5-") or size not in QWEN_SIZES:
        return None
    row = QWEN_SIZES[size]
    return {
        "model_type": "qwen2",
        "num_hidden_layers": row["layers"],
        "hidden_size": row["hidden"],
        "intermediate_size": row["ffn"],
        "num_attention_heads": row["heads"],
        "num_key_value_heads": row["kv"],
        "vocab_size": row["vocab"],
        "max_position_embeddings": QWEN_POSITIONS,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": row["tied"],
    }
