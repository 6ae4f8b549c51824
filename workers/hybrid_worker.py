"""The hybrid worker: one process that owns a Megatron-core model and a vLLM engine on the same device.

It decides who is awake. A worker is either generating (vLLM holds weights and KV cache, Megatron sleeps in host memory
when offload is on) or training (the other way round); `sync_weights` is the way back, and waking goes weights first, new
weights in, KV cache last, so that two copies of the model and a KV cache never meet on the device.
"""

import enum
import logging
from pathlib import Path

import torch

from cfpo_hybrid.algorithms.objective import PolicyObjective
from cfpo_hybrid.algorithms.plugins import load_plugins
from cfpo_hybrid.algorithms.policy_loss import build_policy_loss
from cfpo_hybrid.models import load_hf_config, model_shape
from cfpo_hybrid.protocol import DataProto
from cfpo_hybrid.single_controller import Dispatch, WorkerContext, dispatch
from workers.megatron.policy import MegatronPolicy
from workers.process import join_process_group, leave_process_group
from workers.rollout.engine import SamplingSettings
from workers.rollout.vllm_engine import VllmEngine
from workers.settings import HybridSettings
from workers.weight_sync import SyncReport, WeightSync

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
        self.context = context
        self.settings = settings
        self.phase = Phase.TRAINING
        self.policy_version = 0

    @dispatch(Dispatch.BROADCAST)
    def initialize(self, checkpoint: str | None = None) -> SyncReport:
        """Builds both engines, loads the weights (a checkpoint's, when given) and makes the first reshard."""
        settings = self.settings
        load_plugins(settings.policy_loss.plugins)
        self.device = join_process_group(self.context, settings.device)
        self.shape = model_shape(load_hf_config(settings.model.path, settings.model.revision))
        self.policy = self._build_policy()
        if checkpoint is not None:
            self.policy.load(Path(checkpoint))
        loss = build_policy_loss(settings.policy_loss.name, **settings.policy_loss_knobs)
        algorithm = settings.algorithm
        self.objective = PolicyObjective(
            loss=loss,
            aggregation=algorithm.loss_aggregation,
            kl_coef=algorithm.kl_coef,
            kl_estimator=algorithm.kl_estimator,
            entropy_coef=algorithm.entropy_coef,
        )
        self.policy.offload()
        self.engine = self._build_engine()
        self.weight_sync = WeightSync(self.policy, self.engine, settings, self.context)
        return self.sync_weights()

    @dispatch(Dispatch.SPLIT_BY_DP, layout="rollout")
    def generate(self, prompts: DataProto, sampling: SamplingSettings) -> DataProto:
        """Step 2: samples one response a row; adds responses, lengths, mask and rollout_log_probs."""
        if self.phase is not Phase.GENERATING:
            self.sync_weights()
        answer = self.engine.generate(prompts, sampling, self.settings.max_response_length)
        return answer.with_meta(policy_version=self.policy_version)

    @dispatch(Dispatch.SPLIT_BY_DP, layout="train")
    def compute_log_probs(self, batch: DataProto) -> DataProto:
        """Step 4: old_log_probs and entropy under the current weights, ref_log_probs where KL is on."""
        self._start_training()
        answer = self.policy.log_probs(batch)
        if self.settings.algorithm.kl_coef:
            answer = answer.with_columns(ref_log_probs=self.policy.ref_log_probs(batch)["ref_log_probs"])
        return answer

    @dispatch(Dispatch.SPLIT_BY_DP, layout="train")
    def update_policy(self, batch: DataProto) -> list[dict[str, float]]:
        """Step 6: iterations x mini-batches; one record of metrics an optimizer step, equal on every rank."""
        self._start_training()
        algorithm = self.settings.algorithm
        mini_batches = [
            batch.rows(torch.nonzero(batch["mini_batch"] == index).flatten()) for index in range(algorithm.batch_ratio)
        ]
        records = []
        for iteration in range(algorithm.iterations):
            for index, mini_batch in enumerate(mini_batches):
                metrics = self.policy.update(mini_batch, self.objective)
                records.append({"iteration": iteration, "mini_batch": index, **metrics})
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
        """Writes this rank's part of a checkpoint; the driver makes it final."""
        self._start_training()
        self.policy.save(Path(directory))

    @dispatch(Dispatch.BROADCAST)
    def export(self, directory: str) -> None:
        """Writes the weights as a Hugging Face folder; every rank writes what it holds."""
        self._start_training()
        self.policy.export_hf(Path(directory), self.settings.model)

    def close(self) -> None:
        """Frees both engines and leaves the process group."""
        self.engine.close()
        leave_process_group()

    def _start_training(self) -> None:
        if self.phase is Phase.GENERATING:
            self.engine.sleep()
            self.policy.onload(training=True)
            self.phase = Phase.TRAINING
