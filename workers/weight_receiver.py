"""How weights enter vLLM: written straight into its fused parameters, or as full tensors through its own loader.

The direct way moves only the bytes that must move. The other one rebuilds each Hugging Face tensor on every rank, a layer
at a time, and calls vLLM's `load_weights`: slower, but it knows every kernel's layout, and tests compare the two.
"""

import logging
import time
from collections.abc import Callable

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


def weight_receiver(
    policy: MegatronPolicy, engine: RolloutEngine, settings: HybridSettings
) -> Callable[[], ReshardStats]:
    """What writes the current weights of Megatron into vLLM, in the way that ``rollout.load_format`` names.

    Collective over the world whenever it is called; the engine's weights must be awake then.

    Args:
        policy: the engine that trains.
        engine: the engine that generates.
        settings: layouts, bucket size and the way.

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
        direct = resharder(plan)
        return lambda: direct.run(policy.parameters_by_name(), engine.parameters())

    layers = []
    for tensors in by_layer(shapes):
        full = [ShardSpec.of_whole_tensor(name, size) for name, size in tensors.items()]
        wanted = [full if specs else [] for specs in destinations]
        layers.append((tensors, resharder(build_plan(sources, wanted, handover.ranks_per_node))))

    def through_loader() -> ReshardStats:
        total, trained = ReshardStats(), policy.parameters_by_name()
        device = next(iter(trained.values())).device
        for tensors, layer in layers:
            full = {name: torch.empty(size, dtype=engine.dtype, device=device) for name, size in tensors.items()}
            total.add(layer.run(trained, full))
            engine.load_weights(full.items())
        return total

    return through_loader
