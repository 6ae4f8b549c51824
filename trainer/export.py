"""`cfpo export`: a model through any training layout into a Hugging Face folder, and the proof that nothing changed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cfpo_hybrid.errors import ConfigError, ModelError
from cfpo_hybrid.models import ModelShape, load_hf_config, model_folder, model_shape
from cfpo_hybrid.parallel_layout import ParallelLayout
from cfpo_hybrid.single_controller import ResourcePool
from cfpo_hybrid.single_controller.ray_group import RayWorkerGroup
from trainer.config import Config, TrainerConfig
from trainer.config.merge import merge
from trainer.config.problem import Problem
from trainer.config.sources import Source, read_overrides
from trainer.launch.ray_cluster import ray_cluster
from trainer.rules import find_layout_problems, values
from trainer.run.checkpoint import saved_model
from workers.config import ActorConfig, MegatronConfig, ModelConfig
from workers.megatron.hf_weights import TensorFiles, differing_tensors
from workers.process import worker_environment
from workers.single_engine import ExportSettings, ExportWorker


@dataclass(frozen=True)
class ExportConfig:
    """The settings that an export takes: the keys of a recipe that say which model and how Megatron lays it out."""

    model: ModelConfig = field(default_factory=ModelConfig)
    actor: ActorConfig = field(default_factory=ActorConfig)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportReport:
    """What was written.

    Args:
        source: the folder it came from.
        num_tensors: in all files.
        dtype: of all of them.
        layout: that held the model on the way.
        differences: tensors that are not the source's, with what is wrong; None when they were not compared.
    """

    source: Path
    num_tensors: int
    dtype: str
    layout: ParallelLayout
    differences: tuple[str, ...] | None


def export(source: str, output: Path, overrides: Sequence[str] = (), *, check: bool = False) -> ExportReport:
    """Loads a model under the layout that the overrides name, in processes on CPUs, and writes it from there.

    Args:
        source: a Hugging Face id or folder, a checkpoint, or a run directory.
        output: a new or empty folder.
        overrides: ``key=value`` words, e.g. ``actor.megatron.tensor_parallel_size=2``.
        check: compare every tensor with the source's, bit for bit.

    Raises:
        UserError: a model, layout or folder that cannot be used; nothing has been started.
        WorkerError: a worker raised or died.
    """
    config = _read_config(saved_model(source), overrides)
    folder = model_folder(config.model.path, config.model.revision)
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"'{source}' is neither a model folder nor a checkpoint nor a run directory; name one of these"
        )
    if output.exists() and not output.is_dir():
        raise ModelError(f"the output '{output}' is a file; name a new folder")
    if output.exists() and any(output.iterdir()):
        raise ModelError(f"the output folder '{output}' is not empty; name a new one")
    shape = model_shape(load_hf_config(str(folder)))
    layout = _layout(config, shape)
    actor = replace(config.actor, dtype=_dtype(config.actor.dtype, folder))
    _run(ExportSettings(folder=str(folder.absolute()), actor=actor, layout=layout), output)
    with TensorFiles(output) as files:
        num_tensors = len(files.names)
    differences = tuple(differing_tensors(folder, output, tied=shape.tied_embeddings)) if check else None
    return ExportReport(
        source=folder, num_tensors=num_tensors, dtype=actor.dtype, layout=layout, differences=differences
    )


def _read_config(path: str, overrides: Sequence[str]) -> ExportConfig:
    sources, bad_words = read_overrides(overrides)
    draft = merge(ExportConfig, [Source(tree={"model.path": path}, name="MODEL"), *sources])
    return draft.checked(Problem((), word) for word in bad_words)


def _layout(config: ExportConfig, shape: ModelShape) -> ParallelLayout:
    """The smallest world that the sizes ask for.

    Raises:
        ConfigError: the model does not divide so.
    """
    world_size = _world_size(config.actor.megatron)
    full = Config(model=config.model, actor=config.actor, trainer=TrainerConfig(num_workers=world_size))
    problems = [problem for problem in values.find_problems(full) if problem.keys[0].startswith("actor.")]
    problems = problems or find_layout_problems(full, shape)
    if problems:
        raise ConfigError([problem.message for problem in problems])
    return full.train_layout


def _world_size(megatron: MegatronConfig) -> int:
    """Data-parallel replicas are needed only where experts want more ranks than tp has."""
    stage = math.lcm(megatron.tensor_parallel_size, megatron.expert_parallel_size)
    return stage * megatron.pipeline_parallel_size


def _dtype(asked: str, folder: Path) -> str:
    """The source's own dtype unless another is asked for; one that Megatron does not compute in is held in fp32."""
    if asked != "auto":
        return asked
    with TensorFiles(folder) as files:
        stored = {files.stored_dtype(name) for name in files.names}
    return "bfloat16" if stored == {"BF16"} else "float32"


def _run(settings: ExportSettings, output: Path) -> None:
    world_size = settings.layout.world_size
    pool = ResourcePool(num_nodes=1, workers_per_node=world_size, cpus_per_worker=1)
    with (
        ray_cluster(TrainerConfig(num_workers=world_size), "cpu"),
        RayWorkerGroup(
            ExportWorker,
            args=(settings,),
            pool=pool,
            layouts={"train": settings.layout},
            role="export",
            env=worker_environment("cpu", 1),
        ) as workers,
    ):
        workers.run(ExportWorker.export, str(output.absolute()))
