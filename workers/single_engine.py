"""Processes with a single engine: vLLM alone for `cfpo eval`, Megatron's weights alone for `cfpo export`, and a policy in
the calling process for `cfpo lab`.

The driver names the methods of these workers without loading Megatron-core and vLLM: each is imported where it is used.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from cfpo_hybrid.models import load_hf_config, model_folder, model_shape
from cfpo_hybrid.parallel_layout import ParallelLayout
from cfpo_hybrid.protocol import DataProto
from cfpo_hybrid.single_controller import Dispatch, WorkerContext, dispatch
from workers.config import ActorConfig, MegatronConfig, ModelConfig, RolloutConfig
from workers.megatron.hf_weights import export_hf, load_hf
from workers.process import process_group, resolve_dtype
from workers.rollout.engine import RolloutEngine, SamplingSettings

if TYPE_CHECKING:
    from workers.megatron.policy import MegatronPolicy


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationSettings:
    """What a worker that only generates is built from.

    Args:
        rollout_layout: vLLM's ranks; pp = cp = 1.
        max_model_len: longest prompt + response, in tokens.
        device: ``"cpu"`` or ``"cuda"``.
    """

    model: ModelConfig
    rollout: RolloutConfig
    rollout_layout: ParallelLayout
    max_model_len: int
    device: str


class GenerationWorker:
    """One rank of generation: vLLM with the weights of a Hugging Face folder.

    Args:
        context: the rank's place in its group.
        settings: the model and the engine.
    """

    def __init__(self, context: WorkerContext, settings: GenerationSettings) -> None:
        self.context, self.settings = context, settings
        self._cleanup = ExitStack()

    @dispatch(Dispatch.BROADCAST, layout="rollout")
    def initialize(self) -> None:
        """Builds the engine and loads the weights."""
        from workers.engines import build_engine

        settings = self.settings
        device = self._cleanup.enter_context(process_group(self.context, settings.device))
        engine = build_engine(
            settings.model,
            settings.rollout,
            self.context,
            dtype=resolve_dtype(settings.rollout.dtype, device=device),
            device=device,
            max_model_len=settings.max_model_len,
        )
        self.serve(engine)

    def serve(self, engine: RolloutEngine) -> None:
        """Generates with this engine from here on; it gets the weights, each rank its own slices of the files."""
        self._cleanup.callback(engine.close)
        folder = model_folder(self.settings.model.path, self.settings.model.revision)
        load_hf(folder, engine.specs(), engine.parameters())
        engine.finish_update()
        self.engine = engine

    @dispatch(Dispatch.SPLIT_BY_DP, layout="rollout")
    def generate(self, prompts: DataProto, sampling: SamplingSettings) -> DataProto:
        """Samples one response a row."""
        return self.engine.generate(prompts, sampling, sampling.max_tokens)

    def close(self) -> None:
        """Frees what was built, however far that went."""
        self._cleanup.close()


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportSettings:
    """What is loaded, and how.

    Args:
        folder: local Hugging Face folder.
        actor: Megatron's settings; the dtype is not "auto".
        layout: of all workers.
    """

    folder: str
    actor: ActorConfig
    layout: ParallelLayout


class ExportWorker:
    """One rank of Megatron's weights, without optimizer and gradients, in host memory.

    Args:
        context: the rank's place in its group.
        settings: what is loaded.
    """

    def __init__(self, context: WorkerContext, settings: ExportSettings) -> None:
        self.context, self.settings = context, settings
        self._cleanup = ExitStack()

    @dispatch(Dispatch.BROADCAST)
    def export(self, output: str) -> None:
        """Loads this rank's slices of the source and writes its files of the output."""
        device = self._cleanup.enter_context(process_group(self.context, "cpu"))
        from workers.megatron.build import ModelRecipe, build_model, named_parameters
        from workers.megatron.cpu_support import megatron_on
        from workers.megatron.parallel import initialize_parallel

        folder, actor = Path(self.settings.folder), self.settings.actor
        shape = model_shape(load_hf_config(str(folder)))
        groups = initialize_parallel(
            self.settings.layout, chunks=actor.megatron.cut.chunks, rank=self.context.rank, device=device, seed=0
        )
        recipe = ModelRecipe(shape=shape, actor=actor, groups=groups, device=device)
        with megatron_on(device):
            weights = {name: parameter.data for name, parameter in named_parameters(build_model(recipe))}
        load_hf(folder, recipe.specs_of_rank(groups.rank), weights)
        export_hf(Path(output), folder, shape=shape, parameters=weights, specs_of_rank=recipe.specs_of_rank)

    def close(self) -> None:
        """Leaves the world."""
        self._cleanup.close()


@contextmanager
def lone_policy(folder: Path, temperature: float) -> Iterator["MegatronPolicy"]:
    """The policy of a Hugging Face folder in fp32, in this process alone: on its CPU, without Ray and without other ranks.

    The process must not be part of a torch.distributed world.

    Args:
        folder: with config.json and safetensors.
        temperature: of the rollout; logits are divided by it.

    Raises:
        ModelError: the folder holds no model that is supported.
    """
    from megatron.core import parallel_state

    from workers.megatron.policy import MegatronPolicy

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
        policy.start_from(folder)
        yield policy
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()
