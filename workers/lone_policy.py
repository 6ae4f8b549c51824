"""A saved model as a policy in this process alone, on its CPU, without Ray and without other ranks."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from cfpo_hybrid.models import load_hf_config, model_shape
from cfpo_hybrid.parallel_layout import ParallelLayout
from workers.config import ActorConfig, MegatronConfig
from workers.megatron.hf_weights import load_hf
from workers.megatron.policy import MegatronPolicy
from workers.process import leave_process_group


@contextmanager
def lone_policy(folder: Path, temperature: float) -> Iterator[MegatronPolicy]:
    """The policy of a Hugging Face folder in fp32; the process must not be part of a torch.distributed world.

    Args:
        folder: with config.json and safetensors.
        temperature: of the rollout; logits are divided by it.

    Raises:
        ModelError: the folder holds no model that is supported.
    """
    shape = model_shape(load_hf_config(str(folder)))
    actor = ActorConfig(dtype="float32", megatron=MegatronConfig(distributed_optimizer=False))
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        policy = MegatronPolicy(
            shape,
            actor,
            ParallelLayout(),
            rank=0,
            device=torch.device("cpu"),
            seed=0,
            total_optimizer_steps=1,
            temperature=temperature,
        )
        load_hf(folder, policy.specs(), policy.parameters_by_name())
        policy.weights_changed()
        yield policy
    finally:
        parallel_state.destroy_model_parallel()
        leave_process_group()
