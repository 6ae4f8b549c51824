"""A worker that only generates: vLLM with the weights of a Hugging Face folder, for `cfpo eval`."""

from contextlib import ExitStack

from cfpo_hybrid.models import model_folder
from cfpo_hybrid.protocol import DataProto
from cfpo_hybrid.single_controller import Dispatch, WorkerContext, dispatch
from workers.megatron.hf_weights import load_hf
from workers.process import join_process_group, leave_process_group
from workers.rollout.engine import RolloutEngine, SamplingSettings
from workers.settings import GenerationSettings


class GenerationWorker:
    """One rank of generation.

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
        # The driver names the methods of this class without loading the engines.
        from workers.engines import build_engine, resolve_dtype

        settings = self.settings
        device = join_process_group(self.context, settings.device)
        self._cleanup.callback(leave_process_group)
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
