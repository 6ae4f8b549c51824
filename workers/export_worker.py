"""A worker that holds a model under a training layout and writes it as a Hugging Face folder, for `cfpo export`."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from cfpo_hybrid.models import load_hf_config, model_shape
from cfpo_hybrid.parallel_layout import ParallelLayout
from cfpo_hybrid.single_controller import Dispatch, WorkerContext, dispatch
from workers.config import ActorConfig
from workers.process import join_process_group, leave_process_group


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
        device = join_process_group(self.context, "cpu")
        self._cleanup.callback(leave_process_group)
        # The driver names the methods of this class without loading Megatron-core.
        from workers.megatron.build import ModelRecipe, build_model, named_parameters
        from workers.megatron.cpu_support import megatron_on
        from workers.megatron.hf_weights import export_hf, load_hf
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
