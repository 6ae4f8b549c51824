"""The hybrid worker: one process that owns a Megatron-core model and a vLLM engine on the same device.

It decides who is awake. A worker is either generating (vLLM holds weights and KV cache, Megatron sleeps in host memory
when offload is on) or training (the other way round); `sync_weights` is the way back, and waking goes weights first, new
weights in, KV cache last, so that two copies of the model and a KV cache never meet on the device.
"""

import enum
import logging
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import cast

from cfpo_hybrid.algorithms.kl import response_kl
from cfpo_hybrid.models import model_folder
from cfpo_hybrid.protocol import DataProto
from cfpo_hybrid.single_controller import Dispatch, WorkerContext, dispatch
from workers.process import join_process_group, leave_process_group
from workers.reports import SyncReport, UpdateRecord
from workers.rollout.engine import SamplingSettings
from workers.settings import HybridSettings

logger = logging.getLogger(__name__)


class Phase(enum.Enum):
    """Which engine is awake."""

    GENERATING = "generating"
    TRAINING = "training"


class HybridWorker:
    """One rank of training and of generation.

    Args:
        context: the rank's place in its group.
        settings: what both engines are built from.
    """

    def __init__(self, context: WorkerContext, settings: HybridSettings) -> None:
        self.context, self.settings = context, settings
        self.phase = Phase.TRAINING
        self.policy_version = 0
        self._cleanup = ExitStack()

    @dispatch(Dispatch.BROADCAST)
    def initialize(self, checkpoint: str | None = None, policy_version: int = 0) -> SyncReport:
        """Builds both engines, loads the weights and makes the first reshard.

        Args:
            checkpoint: folder to resume from; by default training starts from ``model.path``.
            policy_version: optimizer phases behind that checkpoint.
        """
        settings = self.settings
        self.policy_version = policy_version
        device = join_process_group(self.context, settings.device)
        self._cleanup.callback(leave_process_group)
        # The driver names the methods of this class without loading Megatron-core and vLLM (ten seconds of imports).
        from workers.engines import build_generation, build_objective, build_policy, build_weight_sync

        self.objective = build_objective(settings)
        self.policy = build_policy(settings, self.context, device)
        if checkpoint is not None:
            self.policy.load(Path(checkpoint))
        self.policy.offload()
        self.engine = build_generation(settings, self.context, device)
        self._cleanup.callback(self.engine.close)
        self.weight_sync = build_weight_sync(self.policy, self.engine, settings)
        self._cleanup.callback(self.weight_sync.close)
        return self.sync_weights()

    @dispatch(Dispatch.SPLIT_BY_DP, layout="rollout")
    def generate(self, prompts: DataProto, sampling: SamplingSettings) -> DataProto:
        """Step 2: samples one response a row: responses, lengths, mask, rollout_log_probs, truncated."""
        if self.phase is not Phase.GENERATING:
            self.sync_weights()
        answer = self.engine.generate(prompts, sampling, self.settings.max_response_length)
        return answer.with_meta(policy_version=self.policy_version)

    @dispatch(Dispatch.SPLIT_BY_DP, layout="train")
    def compute_log_probs(self, batch: DataProto) -> DataProto:
        """Step 4: old_log_probs and entropy under the current weights, ref_log_probs and ref_kl where KL is on."""
        self._start_training()
        answer = self.policy.log_probs(batch)
        if self.settings.algorithm.kl_coef:
            answer = answer.merge(self.policy.ref_log_probs(batch))
            log_probs = answer["old_log_probs"], answer["ref_log_probs"]
            kl = response_kl(*log_probs, batch["response_mask"], self.settings.algorithm.kl_estimator)
            answer = answer.with_columns(ref_kl=kl)
        return answer

    @dispatch(Dispatch.SPLIT_BY_DP, layout="train")
    def update_policy(self, batch: DataProto) -> list[UpdateRecord]:
        """Step 6: iterations x mini-batches; the metrics of each optimizer step, over all ranks.

        A single optimizer step is on-policy: the batch may then lack old_log_probs, whose place its own log-probs take.
        ``kl_coef`` in the batch's metadata is the weight of the KL penalty in the loss, where it is not fixed.
        """
        self._start_training()
        algorithm = self.settings.algorithm
        objective = replace(self.objective, kl_coef=cast(float, batch.meta.get("kl_coef", self.objective.kl_coef)))
        on_policy = algorithm.iterations * algorithm.batch_ratio == 1
        mini_batches = [batch.rows(batch["mini_batch"] == index) for index in range(algorithm.batch_ratio)]
        records = []
        for iteration in range(algorithm.iterations):
            for index, mini_batch in enumerate(mini_batches):
                metrics = self.policy.update(mini_batch, objective, on_policy=on_policy)
                records.append(UpdateRecord(iteration, index, metrics))
        self.policy_version += 1
        return records

    @dispatch(Dispatch.BROADCAST)
    def sync_weights(self) -> SyncReport:
        """Step 7: moves the weights into vLLM, proves it on the probe when due, and wakes generation."""
        report = self.weight_sync.run(self.policy_version)
        self.phase = Phase.GENERATING
        return report

    @dispatch(Dispatch.BROADCAST)
    def save(self, directory: str) -> None:
        """Writes this rank's part of a checkpoint, the weights also as a Hugging Face folder; the driver makes it final."""
        self._start_training()
        self.policy.save(Path(directory))
        self._export(Path(directory) / "model")

    @dispatch(Dispatch.BROADCAST)
    def export(self, directory: str) -> None:
        """Writes the weights as a Hugging Face folder; every rank writes what it holds."""
        self._start_training()
        self._export(Path(directory))

    def close(self) -> None:
        """Frees what was built, however far that went."""
        self._cleanup.close()

    def _start_training(self) -> None:
        if self.phase is Phase.GENERATING:
            self.engine.sleep()
            self.policy.onload(training=True)
            self.phase = Phase.TRAINING

    def _export(self, folder: Path) -> None:
        from workers.megatron.hf_weights import export_hf  # loaded on workers only, as the engines are

        export_hf(folder, self.policy, model_folder(self.settings.model.path, self.settings.model.revision))
