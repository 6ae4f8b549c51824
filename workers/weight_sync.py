"""Step 7: from Megatron's shards into vLLM's parameters, with the order of waking and the proof on the probe."""

import logging
import time
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from cfpo_hybrid.errors import ReshardError
from cfpo_hybrid.resharding.transfer import ReshardStats
from workers.megatron.policy import MegatronPolicy
from workers.probe import Probe, largest_difference, mismatch, rounding
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
        settings: layouts, bucket size, how often the probe is due, and what a mismatch leads to.
    """

    def __init__(self, policy: MegatronPolicy, engine: RolloutEngine, settings: HybridSettings) -> None:
        self.policy, self.engine = policy, engine
        self.receiver: WeightReceiver = weight_receiver(policy, engine, settings)
        self.check = WeightCheck(policy, engine, settings)
        # vLLM always samples one token more than it scores.
        self.probe = Probe(policy.shape.vocab_size, settings.max_prompt_length + settings.max_response_length - 1)
        self.probe_every, self.probe_action = settings.rollout.probe_every, settings.rollout.probe_action
        self.tolerance = settings.rollout.probe_tolerance or rounding(policy.recipe.dtype, engine.dtype)
        self.syncs = 0

    def run(self, policy_version: int, *, newest: bool = False) -> SyncReport:
        """Wakes vLLM's weights, writes them, puts Megatron to sleep and wakes the KV cache.

        Args:
            policy_version: rollout steps whose updates the policy in training has seen.
            newest: writes its weights also where ``algorithm.weight_lag`` asks for older ones.

        Raises:
            ReshardError: the engines disagree on the probe, and ``rollout.probe_action`` is "stop".
        """
        started = time.perf_counter()
        self.policy.onload(training=False)
        self.engine.wake_weights()
        lag = 0 if newest else self.policy.lagged.steps
        with self.policy.lagged.in_place(lag):
            stats = self.receiver.receive()
            self.engine.finish_update()
            expected = self.probe.of_policy(self.policy) if self._probe_is_due() else None
        self.policy.offload()
        self.engine.wake_kv_cache()
        difference = None if expected is None else self._prove(expected, policy_version - lag, lag)
        self.syncs += 1
        seconds = time.perf_counter() - started
        report = _over_all_ranks(policy_version - lag, seconds, stats, difference)
        return replace(report, weight_lag=lag)

    def _probe_is_due(self) -> bool:
        return self.syncs == 0 or (self.probe_every > 0 and self.syncs % self.probe_every == 0)

    def _prove(self, expected: Tensor, policy_version: int, lag: int) -> float:
        difference = largest_difference(expected, self.probe.of_engine(self.engine))
        if difference > self.tolerance:
            message = (
                f"{mismatch(difference, self.tolerance, policy_version)}: {_verdict(self._differing_weights(lag))}"
            )
            if self.probe_action == "stop":
                raise ReshardError(message)
            logger.warning(message)
        return difference

    def _differing_weights(self, lag: int) -> WeightDifferences:
        # The order of waking again: on a device both engines' weights may not fit beside the KV cache.
        self.engine.sleep_kv_cache()
        self.policy.onload(training=False)
        with self.policy.lagged.in_place(lag):
            differences = self.check.run()
        self.policy.offload()
        self.engine.wake_kv_cache()
        return differences


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
