"""Models: shape, families, pipeline stages, padded vocabularies and the shard specs of both engines."""

from cfpo_hybrid.models.engine_specs import padded_vocab_size
from cfpo_hybrid.models.families import FAMILIES, model_shape
from cfpo_hybrid.models.hf_config import load_hf_config, model_folder
from cfpo_hybrid.models.shape import Experts, Llama3RopeScaling, ModelShape
from cfpo_hybrid.models.stages import PipelineCut, pipeline_layers, stage_sizes

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
