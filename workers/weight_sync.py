"""Step 7: from Megatron's shards into vLLM's parameters, with the order of waking and the proof on the probe."""

import logging
import time

import torch
import torch.distributed as dist
from torch import Tensor

from cfpo_hybrid.errors import ReshardError
from cfpo_hybrid.models import ModelShape
from cfpo_hybrid.resharding import HostMemory, ReshardStats, join_host
from cfpo_hybrid.resharding.host_memory import SLOT_BYTES, SLOTS
from workers.megatron.policy import MegatronPolicy
from workers.probe import TOLERANCE, Probe, largest_difference, mismatch
from workers.reports import SyncReport
from workers.rollout.engine import RolloutEngine
from workers.settings import HybridSettings
from workers.weight_check import WeightCheck, WeightDifferences
from workers.weight_receiver import WeightReceiver, weight_receiver

logger = logging.getLogger(__name__)


class WeightSync:
    """Moves weights from one engine of a rank to the other; every method is collective over the world.

    Args:
        policy: the engine that trains.
        engine: the engine that generates.
        shape: of the model both hold.
        settings: layouts, bucket size, how often the probe is due, and what a mismatch leads to.
    """

    def __init__(
        self, policy: MegatronPolicy, engine: RolloutEngine, shape: ModelShape, settings: HybridSettings
    ) -> None:
        self.policy, self.engine = policy, engine
        self.host = _host_memory(settings)
        self.receiver: WeightReceiver = weight_receiver(policy, engine, shape, settings, self.host)
        self.check = WeightCheck(policy, engine, shape, settings)
        # vLLM always samples one token more than it scores.
        self.probe = Probe(shape.vocab_size, settings.max_prompt_length + settings.max_response_length - 1)
        self.probe_every, self.probe_action = settings.rollout.probe_every, settings.rollout.probe_action
        self.tolerance = settings.rollout.probe_tolerance or TOLERANCE[engine.dtype]
        self.syncs = 0

    def run(self, policy_version: int) -> SyncReport:
        """Wakes vLLM's weights, writes them, puts Megatron to sleep and wakes the KV cache.

        Raises:
            ReshardError: the engines disagree on the probe, and ``rollout.probe_action`` is "stop".
        """
        started = time.perf_counter()
        self.policy.onload(training=False)
        self.engine.wake_weights()
        stats = self.receiver.receive()
        self.engine.finish_update()
        expected = self.probe.of_policy(self.policy) if self._probe_is_due() else None
        self.policy.offload()
        self.engine.wake_kv_cache()
        difference = None if expected is None else self._prove(expected, policy_version)
        self.syncs += 1
        seconds = time.perf_counter() - started
        return _over_all_ranks(policy_version, seconds, stats, difference)

    def close(self) -> None:
        """Leaves the memory that is shared with other ranks."""
        if self.host:
            self.host.close()

    def _probe_is_due(self) -> bool:
        return self.syncs == 0 or (self.probe_every > 0 and self.syncs % self.probe_every == 0)

    def _prove(self, expected: Tensor, policy_version: int) -> float:
        difference = largest_difference(expected, self.probe.of_engine(self.engine))
        if difference > self.tolerance:
            message = f"{mismatch(difference, self.tolerance, policy_version)}: {_verdict(self._differing_weights())}"
            if self.probe_action == "stop":
                raise ReshardError(message)
            logger.warning(message)
        return difference

    def _differing_weights(self) -> WeightDifferences:
        # The order of waking again: on a device both engines' weights may not fit beside the KV cache.
        self.engine.sleep_kv_cache()
        self.policy.onload(training=False)
        differences = self.check.run()
        self.policy.offload()
        self.engine.wake_kv_cache()
        return differences


def _host_memory(settings: HybridSettings) -> HostMemory | None:
    """On a GPU NCCL finds the shortest way by itself."""
    if settings.device != "cpu":
        return None
    return join_host(settings.ranks_per_node, min(SLOT_BYTES, settings.rollout.bucket_bytes // SLOTS))


def _verdict(differences: WeightDifferences) -> str:
    """What differs, and what to do about it."""
    if differences.count:
        return f"{differences}. Try rollout.load_format=load_weights to see whether the direct transfer is at fault"
    return (
        f"{differences}. If a difference of this size is expected (another dtype or kernel), raise "
        "rollout.probe_tolerance or set rollout.probe_action=warn"
    )


def _over_all_ranks(policy_version: int, seconds: float, stats: ReshardStats, difference: float | None) -> SyncReport:
    slowest = torch.tensor([seconds, *stats.parts.values()], dtype=torch.float64)
    volumes = torch.tensor([stats.bytes_local + stats.bytes_received, stats.bytes_received])
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    dist.all_reduce(volumes)
    return SyncReport(
        policy_version=policy_version,
        seconds=slowest[0].item(),
        parts=dict(zip(stats.parts, slowest[1:].tolist(), strict=True)),
        bytes_total=int(volumes[0]),
        bytes_moved=int(volumes[1]),
        probe_difference=difference,
    )
