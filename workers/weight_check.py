"""After a probe that failed: which of vLLM's parameters do not hold what Megatron's shards say they must.

A layer at a time, so that extra memory is one layer of a rank, the weights are resharded once more, into scratch memory
and by a plan of their own, and every rectangle of vLLM's live parameters is compared with them bit by bit.
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from cfpo_hybrid.models.hf_tensors import by_layer, hf_shapes
from cfpo_hybrid.models.weight_plan import rollout_specs, training_specs
from cfpo_hybrid.resharding import ShardSpec, build_plan
from cfpo_hybrid.resharding.transfer import Resharder
from workers.megatron.policy import MegatronPolicy
from workers.messages import HybridSettings
from workers.rollout.engine import RolloutEngine

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
        tensors = "1 tensor" if self.count == 1 else f"{self.count} tensors"
        return f"vLLM does not hold the trained weights in {tensors}: {named}{rest}"


def differing_weights(policy: MegatronPolicy, engine: RolloutEngine, settings: HybridSettings) -> WeightDifferences:
    """Compares the weights of both engines, which must be awake; collective over the world.

    Args:
        policy: the engine that trains.
        engine: the engine that generates.
        settings: layouts and bucket size.
    """
    rank, handover = dist.get_rank(), settings.handover(policy.shape)
    trained, live = policy.parameters_by_name(), engine.parameters()
    device = next(iter(trained.values())).device
    found: list[TensorDifference] = []
    for tensors in by_layer(hf_shapes(policy.shape)):
        sources, wanted = _holding(training_specs(handover), tensors), _holding(rollout_specs(handover), tensors)
        resharder = Resharder(
            build_plan(sources, wanted, handover.ranks_per_node),
            rank=rank,
            dtype=engine.dtype,
            bucket_bytes=settings.rollout.bucket_bytes,
        )
        # What this rank's parameters must hold; padding is not written.
        expected = {spec.name: torch.empty(spec.shape, dtype=engine.dtype, device=device) for spec in wanted[rank]}
        resharder.run(trained, expected)
        found += _differences(wanted[rank], expected, live, rank)
    return _over_all_ranks(found)


def _holding(of_ranks: Sequence[Sequence[ShardSpec]], tensors: Container[str]) -> list[list[ShardSpec]]:
    """The parameters of each rank that hold something of these tensors; ranks that share a list still do."""
    distinct = {id(specs): specs for specs in of_ranks}
    chosen = {
        key: [spec for spec in specs if any(piece.hf_name in tensors for piece in spec.pieces)]
        for key, specs in distinct.items()
    }
    return [chosen[id(specs)] for specs in of_ranks]


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
