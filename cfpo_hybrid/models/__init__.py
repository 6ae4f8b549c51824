"""Models: shape, families, pipeline stages, padded vocabularies and the shard specs of both engines."""

from cfpo_hybrid.models.family import FAMILIES
from cfpo_hybrid.models.hf_config import load_hf_config, model_folder, model_shape
from cfpo_hybrid.models.llama import LLAMA
from cfpo_hybrid.models.mistral import MISTRAL
from cfpo_hybrid.models.qwen2 import QWEN2
from cfpo_hybrid.models.qwen3 import QWEN3
from cfpo_hybrid.models.qwen3_moe import QWEN3_MOE
from cfpo_hybrid.models.shape import Experts, Llama3RopeScaling, ModelShape
from cfpo_hybrid.models.stages import PipelineCut, pipeline_layers, stage_sizes
from cfpo_hybrid.models.vocab import padded_vocab_size

__all__ = [
    "FAMILIES",
    "Experts",
    "Llama3RopeScaling",
    "ModelShape",
    "PipelineCut",
    "load_hf_config",
    "model_folder",
    "model_shape",
    "padded_vocab_size",
    "pipeline_layers",
    "stage_sizes",
]

for _family in (LLAMA, MISTRAL, QWEN2, QWEN3, QWEN3_MOE):
    FAMILIES.register(_family.model_type, _family)
