"""How weights enter vLLM: written straight into its fused parameters, or as full tensors through its own loader.

The direct receiver moves only the bytes that must move. The second one rebuilds each Hugging Face tensor on every rank,
a layer at a time, and calls vLLM's `load_weights`: slower, but it knows every kernel's layout, and tests compare the two.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
import torch.distributed as dist

from cfpo_hybrid.models.shards import by_layer, hf_shapes
from cfpo_hybrid.models.weight_plan import rollout_specs, training_specs, weight_plan
from cfpo_hybrid.resharding import ReshardPlan, ShardSpec, build_plan, check_plan
from cfpo_hybrid.resharding.transfer import Resharder, ReshardStats
from workers.megatron.policy import MegatronPolicy
from workers.messages import HybridSettings
from workers.rollout.engine import RolloutEngine

logger = logging.getLogger(__name__)


class WeightReceiver(Protocol):
    """Writes the current weights of Megatron into vLLM."""

    def receive(self) -> ReshardStats:
        """Collective over the world; the engine's weights must be awake."""
        ...


class DirectReceiver:
    """Rectangles of Megatron's shards into vLLM's fused parameters."""

    def __init__(self, policy: MegatronPolicy, engine: RolloutEngine, resharder: Resharder) -> None:
        self.policy, self.engine, self.resharder = policy, engine, resharder

    def receive(self) -> ReshardStats:
        """Runs the cached plan."""
        return self.resharder.run(self.policy.parameters_by_name(), self.engine.parameters())


class LoaderReceiver:
    """Full Hugging Face tensors, a layer at a time, into vLLM's `load_weights`.

    Args:
        policy: the engine that trains.
        engine: the engine that generates.
        layers: of each layer, the shapes of its tensors and how they are rebuilt.
    """

    def __init__(
        self,
        policy: MegatronPolicy,
        engine: RolloutEngine,
        layers: Sequence[tuple[Mapping[str, tuple[int, ...]], Resharder]],
    ) -> None:
        self.policy, self.engine, self.layers = policy, engine, layers

    def receive(self) -> ReshardStats:
        """Gathers and hands over layer after layer."""
        total = ReshardStats()
        sources = self.policy.parameters_by_name()
        device = next(iter(sources.values())).device
        for shapes, resharder in self.layers:
            full = {name: torch.empty(size, dtype=self.engine.dtype, device=device) for name, size in shapes.items()}
            total.add(resharder.run(sources, full))
            self.engine.load_weights(full.items())
        return total


def weight_receiver(policy: MegatronPolicy, engine: RolloutEngine, settings: HybridSettings) -> WeightReceiver:
    """The receiver that ``rollout.load_format`` names.

    Args:
        policy: the engine that trains.
        engine: the engine that generates.
        settings: layouts, bucket size and the kind of receiver.

    Raises:
        ReshardError: the plan does not write all that this rank needs, once.
    """
    rank, handover = dist.get_rank(), settings.handover(policy.shape)
    sources, destinations, shapes = training_specs(handover), rollout_specs(handover), hf_shapes(policy.shape)

    def resharder(plan: ReshardPlan) -> Resharder:
        return Resharder(plan, rank=rank, dtype=engine.dtype, bucket_bytes=settings.rollout.bucket_bytes)

    if settings.rollout.load_format == "direct":
        begin = time.perf_counter()
        plan = weight_plan(handover)
        check_plan(plan, sources, destinations, shapes, ranks=[rank])
        logger.info("rank %d planned the weight sync and proved its part in %.2f s", rank, time.perf_counter() - begin)
        return DirectReceiver(policy, engine, resharder(plan))
    layers = []
    for tensors in by_layer(shapes):
        full = [ShardSpec.of_whole_tensor(name, size) for name, size in tensors.items()]
        wanted = [full if specs else [] for specs in destinations]
        layers.append((tensors, resharder(build_plan(sources, wanted, handover.ranks_per_node))))
    return LoaderReceiver(policy, engine, layers)
