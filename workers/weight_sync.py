"""Step 7: from Megatron's shards into vLLM's parameters, with the order of waking and the proof on the probe.

The probe is a fixed handful of token sequences that both engines score after a reshard. Equal log-probs prove that the
weights in vLLM are those that Megatron trains: a checksum would only prove that what was sent was received, under whatever
name.
"""

import logging
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from cfpo_hybrid.errors import ReshardError
from cfpo_hybrid.models.hf_tensors import by_layer, hf_shapes
from cfpo_hybrid.models.weight_plan import rollout_specs, training_specs, weight_plan
from cfpo_hybrid.protocol import DataProto
from cfpo_hybrid.resharding import ReshardPlan, ShardSpec, build_plan, check_plan
from cfpo_hybrid.resharding.transfer import Resharder, ReshardStats
from workers.megatron.policy import MegatronPolicy
from workers.messages import HybridSettings, SyncReport
from workers.rollout.engine import RolloutEngine
from workers.weight_check import WeightDifferences

logger = logging.getLogger(__name__)

NUM_SEQUENCES = 4
MAX_TOKENS = 32
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.2}
"""Largest difference in nats that rounding explains, by the dtype of the weights."""


def rounding(*dtypes: torch.dtype) -> float:
    """Largest difference in nats that rounding explains between engines of these dtypes: that of the coarsest."""
    return max(TOLERANCE[dtype] for dtype in dtypes)


class Probe:
    """Fixed random sequences and their log-probs.

    Args:
        vocab_size: tokens are drawn below it.
        max_tokens: of one sequence, when the model takes fewer than ``MAX_TOKENS``.
    """

    def __init__(self, vocab_size: int, max_tokens: int) -> None:
        generator = torch.Generator().manual_seed(0)
        width = min(MAX_TOKENS, max_tokens)
        self.tokens = torch.randint(vocab_size, (NUM_SEQUENCES, width), generator=generator)

    def as_batch(self) -> DataProto:
        """The sequences as a prompt of one token and a response of the rest."""
        rows, width = self.tokens.shape
        return DataProto(
            {
                "prompts": self.tokens[:, :1],
                "prompt_lengths": torch.ones(rows, dtype=torch.int64),
                "responses": self.tokens[:, 1:],
                "response_lengths": torch.full((rows,), width - 1),
                "response_mask": torch.ones(rows, width - 1, dtype=torch.bool),
            }
        )

    def of_policy(self, policy: MegatronPolicy) -> Tensor:
        """Log-probs by Megatron ``[sequence, token - 1]``, on every rank of the replica; collective over the replica.

        At temperature 1, whatever the rollout's: so vLLM scores.
        """
        return policy.score(self.as_batch(), temperature=1.0)

    def of_engine(self, engine: RolloutEngine) -> Tensor:
        """Log-probs by vLLM ``[sequence, token - 1]``; collective over the rollout replica."""
        return torch.stack(engine.score(self.tokens.tolist()))


def weight_receiver(
    policy: MegatronPolicy, engine: RolloutEngine, settings: HybridSettings
) -> Callable[[], ReshardStats]:
    """What writes the current weights of Megatron into vLLM, in the way that ``rollout.load_format`` names.

    "direct" writes straight into vLLM's fused parameters and moves only the bytes that must move. "load_weights" rebuilds
    each Hugging Face tensor on every rank, a layer at a time, and calls vLLM's own loader: slower, but it knows every
    kernel's layout, and tests compare the two. Either is collective over the world whenever it is called, with the
    engine's weights awake.

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


class WeightSync:
    """Moves weights from one engine of a rank to the other; every method is collective over the world.

    Args:
        policy: the engine that trains.
        engine: the engine that generates.
        receive: writes the weights of the first into the second.
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
        receive: Callable[[], ReshardStats],
        check: Callable[[], WeightDifferences],
        probe: Probe,
        tolerance: float,
        stops: bool,
    ) -> None:
        self._policy, self._engine = policy, engine
        self._receive, self._check, self._probe = receive, check, probe
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
            stats = self._receive()
            self._engine.finish_update()
            expected = self._probe.of_policy(self._policy) if probe else None
        self._policy.offload()
        self._engine.wake_kv_cache()
        difference = None if expected is None else self._prove(expected, policy_version - lag, lag)
        seconds, parts, bytes_total, bytes_moved = _over_all_ranks(time.perf_counter() - started, stats)
        return SyncReport(
            policy_version=policy_version - lag,
            seconds=seconds,
            parts=parts,
            bytes_total=bytes_total,
            bytes_moved=bytes_moved,
            probe_difference=difference,
            weight_lag=lag,
        )

    def _prove(self, expected: Tensor, policy_version: int, lag: int) -> float:
        difference = _largest_difference(expected, self._probe.of_engine(self._engine))
        if difference > self._tolerance:
            message = (
                f"after the reshard of policy version {policy_version} vLLM and Megatron differ by {difference:.3g} nats on "
                f"the probe, more than rounding explains ({self._tolerance:g}): {_verdict(self._differing_weights(lag))}"
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
            differences = self._check()
        self._policy.offload()
        self._engine.wake_kv_cache()
        return differences


def _largest_difference(expected: Tensor, found: Tensor) -> float:
    """The largest difference in nats over all ranks; collective over the world."""
    largest = (expected.float().cpu() - found.float().cpu()).abs().max().reshape(1)
    largest = torch.where(largest.isfinite(), largest, torch.inf)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return float(largest)


def _verdict(differences: WeightDifferences) -> str:
    """What differs, and what to do about it."""
    if differences.count:
        return f"{differences}. Try rollout.load_format=load_weights to see whether the direct transfer is at fault"
    return (
        f"{differences}. If a difference of this size is expected (another dtype or kernel), raise "
        "rollout.probe_tolerance or set rollout.probe_action=warn"
    )


def _over_all_ranks(seconds: float, stats: ReshardStats) -> tuple[float, dict[str, float], int, int]:
    """Seconds and those of each part, of the slowest rank; bytes in all, and moved between processes."""
    slowest = torch.tensor([seconds, *stats.parts.values()], dtype=torch.float64)
    volumes = torch.tensor([stats.bytes_local + stats.bytes_received, stats.bytes_received])
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    dist.all_reduce(volumes)
    longest, *parts = slowest.tolist()
    return longest, dict(zip(stats.parts, parts, strict=True)), int(volumes[0]), int(volumes[1])
