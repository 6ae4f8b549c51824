"""Builds the vLLM engine of a rank from a model's folder and the rollout's configuration."""

import torch

from cfpo_hybrid.models import ModelShape, load_hf_config, model_folder, model_shape
from cfpo_hybrid.single_controller import WorkerContext
from workers.config import ModelConfig, RolloutConfig
from workers.rollout.stop_tokens import stop_token_ids
from workers.rollout.vllm_engine import EngineSettings, VllmEngine


def resolve_dtype(*names: str, device: torch.device) -> torch.dtype:
    """The first dtype that is not "auto"; bfloat16 on a GPU and float32 on a CPU when all are."""
    for name in names:
        if name != "auto":
            return getattr(torch, name)
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def shape_of(model: ModelConfig) -> ModelShape:
    """The shape of the model that a configuration names."""
    return model_shape(load_hf_config(model.path, model.revision))


def build_engine(
    model: ModelConfig,
    rollout: RolloutConfig,
    context: WorkerContext,
    *,
    dtype: torch.dtype,
    device: torch.device,
    max_model_len: int,
) -> VllmEngine:
    """A rank's engine with weights yet to be written; collective over the world.

    Args:
        model: whose config.json vLLM reads.
        rollout: engine knobs.
        context: the rank's place.
        dtype: of weights and activations.
        device: of the rank.
        max_model_len: longest prompt + response, in tokens.
    """
    folder = model_folder(model.path, model.revision)
    settings = EngineSettings(
        folder=str(folder),
        shape=shape_of(model),
        rank=context.rank,
        dtype=dtype,
        max_model_len=max_model_len,
        stop_token_ids=stop_token_ids(folder),
        job=context.job_id,
        device=device,
    )
    return VllmEngine(rollout, settings)
