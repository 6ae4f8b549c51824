"""Models: shape, families, pipeline stages, padded vocabularies and the shard specs of both engines."""

from cfpo_hybrid.models.family import FAMILIES
from cfpo_hybrid.models.hf_config import load_hf_config, model_folder, model_shape
from cfpo_hybrid.models.llama import LLAMA
from cfpo_hybrid.models.qwen2 import QWEN2
from cfpo_hybrid.models.shape import Llama3RopeScaling, ModelShape
from cfpo_hybrid.models.stages import pipeline_layers
from cfpo_hybrid.models.vocab import padded_vocab_size

__all__ = [
    "FAMILIES",
    "Llama3RopeScaling",
    "ModelShape",
    "load_hf_config",
    "model_folder",
    "model_shape",
    "padded_vocab_size",
    "pipeline_layers",
]

for _family in (LLAMA, QWEN2):
    FAMILIES.register(_family.model_type, _family)
