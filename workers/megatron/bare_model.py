"""A rank of the model that only holds weights: no optimizer, no gradients, no reference."""

from pathlib import Path

import torch
from torch import Tensor

from cfpo_hybrid.models import load_hf_config, model_shape
from cfpo_hybrid.parallel_layout import ParallelLayout
from cfpo_hybrid.resharding import ShardSpec
from workers.config import ActorConfig
from workers.megatron.build import ModelRecipe, build_model
from workers.megatron.chunks import named_parameters
from workers.megatron.cpu_support import megatron_on
from workers.megatron.parallel import initialize_parallel


class BareModel:
    """Megatron-core's parameters of one rank, zero until they are loaded.

    Args:
        folder: with the config.json of the model.
        actor: dtype and stages.
        layout: its world is torch's, which must exist.
        rank: this process's.
        device: of the parameters.
    """

    def __init__(
        self, folder: Path, actor: ActorConfig, layout: ParallelLayout, *, rank: int, device: torch.device
    ) -> None:
        self.shape = model_shape(load_hf_config(str(folder)))
        groups = initialize_parallel(layout, chunks=actor.megatron.cut.chunks, rank=rank, device=device, seed=0)
        self._recipe = ModelRecipe(shape=self.shape, actor=actor, groups=groups, device=device)
        with megatron_on(device):
            self._chunks = build_model(self._recipe)

    def parameters_by_name(self) -> dict[str, Tensor]:
        """This rank's parameters."""
        return {name: parameter.data for name, parameter in named_parameters(self._chunks)}

    def specs_of_rank(self, rank: int) -> list[ShardSpec]:
        """What the parameters of any rank hold."""
        return self._recipe.specs_of_rank(rank)
