"""What is known of the model before anything starts: its shape, and where that was read."""

from dataclasses import dataclass

from cfpo_hybrid.errors import ModelError
from cfpo_hybrid.models import ModelShape, load_hf_config, model_shape
from trainer.config.known_models import known_config
from workers.config import ModelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """A model's shape and its source.

    Example: source "config.json", or "the built-in table (config.json could not be fetched)".
    """

    shape: ModelShape
    source: str


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
