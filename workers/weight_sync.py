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
from workers.messages import SyncReport
from workers.probe import Probe, largest_difference, mismatch
from workers.rollout.engine import RolloutEngine
from workers.weight_check import WeightCheck, WeightDifferences
from workers.weight_receiver import WeightReceiver

logger = logging.getLogger(__name__)


class WeightSync:
    """Moves weights from one engine of a rank to the other; every method is collective over the world.

    Args:
        policy: the engine that trains.
        engine: the engine that generates.
        receiver: writes the weights of the first into the second.
        check: names the tensors that differ, after a probe that failed.
        probe: what both engines score.
        tolerance: largest difference in nats on the probe.
        stops: a larger one ends the run; otherwise it is only logged.
    """

    def __init__(
        self,
        policy: MegatronPolicy,
        engine: RolloutEngine,
        *,
        receiver: WeightReceiver,
        check: WeightCheck,
        probe: Probe,
        tolerance: float,
        stops: bool,
    ) -> None:
        self._policy, self._engine, self._receiver = policy, engine, receiver
        self._check, self._probe = check, probe
        self._tolerance, self._stops = tolerance, stops

    def run(self, policy_version: int, *, probe: bool, newest: bool = False) -> SyncReport:
        """Wakes vLLM's weights, writes them, puts Megatron to sleep and wakes the KV cache.

        Args:
            policy_version: rollout steps whose updates the policy in training has seen.
            probe: has both engines score the probe.
            newest: writes the weights in training also where the rollout lags behind them.

        Raises:
            ReshardError: the engines disagree on the probe, and that shall stop the run.
        """
        started = time.perf_counter()
        self._policy.onload(training=False)
        self._engine.wake_weights()
        lag = 0 if newest else self._policy.lagged.steps
        with self._policy.lagged.in_place(lag):
            stats = self._receiver.receive()
            self._engine.finish_update()
            expected = self._probe.of_policy(self._policy) if probe else None
        self._policy.offload()
        self._engine.wake_kv_cache()
        difference = None if expected is None else self._prove(expected, policy_version - lag, lag)
        seconds = time.perf_counter() - started
        report = _over_all_ranks(policy_version - lag, seconds, stats, difference)
        return replace(report, weight_lag=lag)

    def _prove(self, expected: Tensor, policy_version: int, lag: int) -> float:
        difference = largest_difference(expected, self._probe.of_engine(self._engine))
        if difference > self._tolerance:
            message = (
                f"{mismatch(difference, self._tolerance, policy_version)}: {_verdict(self._differing_weights(lag))}"
            )
            if self._stops:
                raise ReshardError(message)
            logger.warning(message)
        return difference

    def _differing_weights(self, lag: int) -> WeightDifferences:
        # The order of waking again: on a device both engines' weights may not fit beside the KV cache.
        self._engine.sleep_kv_cache()
        self._policy.onload(training=False)
        with self._policy.lagged.in_place(lag):
            differences = self._check.run()
        self._policy.offload()
        self._engine.wake_kv_cache()
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
