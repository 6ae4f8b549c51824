"""After a probe that failed: which of vLLM's parameters do not hold what Megatron's shards say they must.

A layer at a time, so that extra memory is one layer of a rank, the weights are resharded once more, into scratch memory
and by a plan of their own, and every rectangle of vLLM's live parameters is compared with them bit by bit.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from cfpo_hybrid.models import ModelShape
from cfpo_hybrid.models.shards import by_layer
from cfpo_hybrid.models.vllm_specs import vllm_specs
from cfpo_hybrid.resharding import Resharder, ShardSpec, build_plan
from workers.megatron.policy import MegatronPolicy
from workers.rollout.engine import RolloutEngine
from workers.settings import HybridSettings

NAMED = 5
"""Tensors that a message names; of each rank no more are reported."""


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """A rectangle of vLLM's weights that is not what Megatron holds.

    Args:
        hf_name: the Hugging Face tensor.
        rank: of the vLLM rank.
        parameter: vLLM's name of the parameter.
        largest: difference of any of its numbers; infinite where one of them is not finite.
    """

    hf_name: str
    rank: int
    parameter: str
    largest: float

    def __str__(self) -> str:
        return f"{self.hf_name} on rank {self.rank} (in {self.parameter}, largest difference {self.largest:.3g})"


@dataclass(frozen=True, slots=True)
class WeightDifferences:
    """What a comparison found, over all ranks.

    Args:
        count: rectangles that differ.
        first: the first of them by layer, some of each rank.
    """

    count: int
    first: tuple[TensorDifference, ...]

    def __str__(self) -> str:
        if not self.count:
            return "the weights agree; the engines compute differently"
        named = "; ".join(map(str, self.first[:NAMED]))
        rest = f"; and {self.count - NAMED} more" if self.count > NAMED else ""
        return f"vLLM does not hold the trained weights in {self.count} tensors: {named}{rest}"


class WeightCheck:
    """Compares the weights of both engines.

    Args:
        policy: the engine that trains.
        engine: the engine that generates.
        shape: of the model both hold.
        settings: layouts and bucket size.
    """

    def __init__(
        self, policy: MegatronPolicy, engine: RolloutEngine, shape: ModelShape, settings: HybridSettings
    ) -> None:
        self.policy, self.engine, self.shape, self.settings = policy, engine, shape, settings

    def run(self) -> WeightDifferences:
        """Compares; collective over the world, with the weights of both engines awake."""
        rank, world_size = dist.get_rank(), dist.get_world_size()
        tp = self.settings.rollout.tensor_parallel_size
        of_tp_rank = [vllm_specs(self.shape, tp, tp_rank) for tp_rank in range(tp)]
        sources = [self.policy.specs_of_rank(other) for other in range(world_size)]
        destinations = [of_tp_rank[other % tp] for other in range(world_size)]
        trained, live = self.policy.parameters_by_name(), self.engine.parameters()
        found: list[TensorDifference] = []
        for names in by_layer(spec.name for spec in of_tp_rank[0]):
            wanted = [[spec for spec in specs if spec.name in names] for specs in destinations]
            expected = self._expected(_holding(sources, wanted), wanted, trained)
            found += _differences(wanted[rank], expected, live, rank)
        return _over_all_ranks(found)

    def _expected(
        self, sources: list[list[ShardSpec]], wanted: list[list[ShardSpec]], trained: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """What this rank's wanted parameters must hold; padding is not written."""
        rank, dtype = dist.get_rank(), self.engine.dtype
        device = next(iter(trained.values())).device
        scratch = {spec.name: torch.empty(spec.shape, dtype=dtype, device=device) for spec in wanted[rank]}
        plan = build_plan(sources, wanted, self.settings.ranks_per_node)
        resharder = Resharder(plan, rank=rank, dtype=dtype, bucket_bytes=self.settings.rollout.bucket_bytes)
        resharder.run(trained, scratch)
        return scratch


def _holding(sources: Sequence[Sequence[ShardSpec]], wanted: Sequence[Sequence[ShardSpec]]) -> list[list[ShardSpec]]:
    """Of each source rank only the parameters that hold something of what is wanted: the plan is as small as a layer's."""
    hf_names = {piece.hf_name for specs in wanted for spec in specs for piece in spec.pieces}
    return [[spec for spec in specs if any(piece.hf_name in hf_names for piece in spec.pieces)] for specs in sources]


def _differences(
    specs: Iterable[ShardSpec], expected: Mapping[str, Tensor], live: Mapping[str, Tensor], rank: int
) -> list[TensorDifference]:
    found = []
    for spec in specs:
        for piece in spec.pieces:
            a, b = expected[spec.name][piece.local.slices], live[spec.name][piece.local.slices]
            if bool(((a == b) | (a.isnan() & b.isnan())).all()):
                continue
            largest = float((a.float() - b.float()).abs().nan_to_num(nan=torch.inf).max())
            found.append(TensorDifference(piece.hf_name, rank, spec.name, largest))
    return found


def _over_all_ranks(found: Sequence[TensorDifference]) -> WeightDifferences:
    gathered: list[tuple[int, list[TensorDifference]] | None] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, (len(found), list(found[:NAMED])))
    answers = [answer for answer in gathered if answer is not None]
    return WeightDifferences(
        count=sum(count for count, _ in answers), first=tuple(item for _, first in answers for item in first)
    )
