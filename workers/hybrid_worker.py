"""The hybrid worker: one process that owns a Megatron-core model and a vLLM engine on the same device.

It decides who is awake. A worker is either generating (vLLM holds weights and KV cache, Megatron sleeps in host memory
when offload is on) or training (the other way round); `sync_weights` is the way back, and waking goes weights first, new
weights in, KV cache last, so that two copies of the model and a KV cache never meet on the device.
"""

import enum
import gc
import itertools
import logging
import math
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from cfpo_hybrid.algorithms.kl import response_kl
from cfpo_hybrid.algorithms.log_prob_noise import log_prob_noise
from cfpo_hybrid.algorithms.objective import PolicyObjective
from cfpo_hybrid.errors import NumericsError
from cfpo_hybrid.models import model_folder
from cfpo_hybrid.protocol import DataProto
from cfpo_hybrid.single_controller import Dispatch, WorkerContext, dispatch
from workers.pass_watch import PassWatch
from workers.process import join_process_group, leave_process_group
from workers.reports import SyncReport, UpdateRecord, UpdateReport
from workers.rollout.engine import SamplingSettings
from workers.settings import HybridSettings

if TYPE_CHECKING:
    from workers.rollout.vllm_engine import VllmEngine

logger = logging.getLogger(__name__)


class Phase(enum.Enum):
    """Which engine is awake."""

    GENERATING = "generating"
    TRAINING = "training"


class HybridWorker:
    """One rank of training and of generation.

    A worker outlives a run: :meth:`begin_run` comes before the first call of any other method, and again for every
    further run.

    Args:
        context: the rank's place in its group.
    """

    def __init__(self, context: WorkerContext) -> None:
        self.context = context
        self.phase = Phase.TRAINING
        self.policy_version = 0
        self.rollout_version = 0
        self._device: torch.device | None = None
        self._engine: VllmEngine | None = None
        self._cleanup, self._of_the_run = ExitStack(), ExitStack()

    @dispatch(Dispatch.BROADCAST)
    def begin_run(self, settings: HybridSettings, checkpoint: str | None = None, policy_version: int = 0) -> SyncReport:
        """Builds what the run needs, loads the starting weights and makes the first reshard.

        Process groups and vLLM are built for the first run and stay. Whatever a run leaves traces in is built anew:
        Megatron's model with its optimizer, schedule, reference and random state, the objective and the weight sync.
        So a run is the same bit for bit whether it is a worker's first or not.

        Args:
            settings: of the run; those of vLLM and the layouts are the same for every run of a worker.
            checkpoint: folder to resume from; by default training starts from ``model.path``.
            policy_version: optimizer phases behind that checkpoint.
        """
        # The driver names the methods of this class without loading Megatron-core and vLLM (ten seconds of imports).
        from workers.engines import build_generation, build_objective, build_policy, build_weight_sync

        self.settings, self.policy_version = settings, policy_version
        self._end_run()
        device = self._join(settings.device)
        self.objective = build_objective(settings)
        self.policy = build_policy(settings, self.context, device)
        if self._needs_reference:
            self.policy.build_reference()
        if checkpoint is not None:
            self.policy.load(Path(checkpoint))
        self.policy.offload()
        if self._engine is None:
            self._engine = build_generation(settings, self.context, device)
            self._cleanup.callback(self._engine.close)
        self.weight_sync = build_weight_sync(self.policy, self.engine, settings)
        return self.sync_weights()

    @property
    def engine(self) -> "VllmEngine":
        """The rank of vLLM."""
        assert self._engine is not None, "begin_run comes first"
        return self._engine

    @dispatch(Dispatch.SPLIT_BY_DP, layout="rollout")
    def generate(self, prompts: DataProto, sampling: SamplingSettings) -> DataProto:
        """Step 2: samples one response a row: responses, lengths, mask, rollout_log_probs, truncated.

        With ``algorithm.log_prob_noise`` the log-probs are noisy from here on, for whoever reads them.
        """
        if self.phase is not Phase.GENERATING:
            self.sync_weights()
        answer = self.engine.generate(prompts, sampling, self.settings.max_response_length)
        if self.settings.algorithm.mask_truncated:
            answer = answer.with_columns(response_mask=answer["response_mask"] & ~answer["truncated"].unsqueeze(1))
        return self._with_noise(answer, prompts).with_meta(policy_version=self.rollout_version)

    @dispatch(Dispatch.SPLIT_BY_DP, layout="train")
    def compute_log_probs(self, batch: DataProto) -> DataProto:
        """Step 4: old_log_probs and entropy under the weights that sampled, ref_log_probs and ref_kl where they are needed.

        With ``algorithm.old_log_probs=rollout`` the old ones are only passed on.
        """
        self._start_training()
        algorithm = self.settings.algorithm
        if algorithm.old_log_probs == "recompute":
            answer = self.policy.log_probs(batch)
        else:
            answer = DataProto({"old_log_probs": batch["rollout_log_probs"]})
        if self._needs_reference:
            answer = answer.merge(self.policy.ref_log_probs(batch))
            log_probs = answer["old_log_probs"], answer["ref_log_probs"]
            # Of every token, those of a truncated response that the loss leaves out included.
            sampled = torch.arange(batch.widths["response"]) < batch["response_lengths"].unsqueeze(1)
            kl = response_kl(*log_probs, sampled, algorithm.kl_estimator)
            answer = answer.with_columns(ref_kl=kl)
        return answer

    @dispatch(Dispatch.SPLIT_BY_DP, layout="train")
    def update_policy(self, batch: DataProto) -> UpdateReport:
        """Step 6: iterations x mini-batches, until the watch stops them; the metrics of each optimizer step, over all ranks.

        A single optimizer step is on-policy: the batch may then lack old_log_probs, whose place its own log-probs take.
        ``kl_coef`` in the batch's metadata is the weight of the KL penalty in the loss, where it is not fixed.
        """
        self._start_training()
        algorithm = self.settings.algorithm
        objective = replace(self.objective, kl_coef=cast(float, batch.meta.get("kl_coef", self.objective.kl_coef)))
        if algorithm.old_log_probs == "rollout":
            batch = batch.with_columns(old_log_probs=batch["rollout_log_probs"])
        pressure = self._injected_pressure()
        on_policy = algorithm.iterations * algorithm.batch_ratio == 1 and self.policy.lagged.steps == 0
        self.policy.lagged.remember()
        mini_batches = [batch.rows(batch["mini_batch"] == index) for index in range(algorithm.batch_ratio)]
        watch, updates = PassWatch(self.settings.watch), []
        for iteration, index in itertools.product(range(algorithm.iterations), range(algorithm.batch_ratio)):
            metrics = self._update(mini_batches[index], objective, on_policy)
            updates.append(UpdateRecord(iteration, index, metrics | pressure))
            if not watch.allows_more(updates[-1]):
                break
        self.policy_version += 1
        return UpdateReport(updates=updates, trips=watch.trips)

    @dispatch(Dispatch.BROADCAST)
    def sync_weights(self, newest: bool = False) -> SyncReport:
        """Step 7: moves the weights into vLLM, proves it on the probe when due, and wakes generation.

        Args:
            newest: the weights in training, also where ``algorithm.weight_lag`` asks for older ones.
        """
        report = self.weight_sync.run(self.policy_version, newest=newest)
        self.rollout_version = report.policy_version
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
        self._of_the_run.close()
        self._cleanup.close()

    @property
    def _needs_reference(self) -> bool:
        """Whether the KL penalty, in reward or loss, or the policy loss itself looks at the starting model."""
        return self.settings.algorithm.kl_coef > 0 or "ref_log_probs" in self.objective.needs

    def _join(self, device: str) -> torch.device:
        if self._device is None:
            self._device = join_process_group(self.context, device)
            self._cleanup.callback(leave_process_group)
        return self._device

    def _end_run(self) -> None:
        """Lets vLLM sleep and frees the model of the run before, so that two never meet on the device."""
        if self._engine is None:
            return
        if self.phase is Phase.GENERATING:
            self.engine.sleep()
            self.phase = Phase.TRAINING
        self._of_the_run.close()
        del self.policy, self.weight_sync
        gc.collect()  # Megatron-core's model and its hooks refer to each other

    def _update(self, mini_batch: DataProto, objective: PolicyObjective, on_policy: bool) -> dict[str, float]:
        """The metrics of one optimizer step; one whose gradient is not finite is not taken, and left to the watch."""
        try:
            return self.policy.update(mini_batch, objective, on_policy=on_policy)
        except NumericsError as error:
            logger.warning("%s", error)
            return {"actor/grad_norm": math.nan}

    def _with_noise(self, answer: DataProto, prompts: DataProto) -> DataProto:
        sigma = self.settings.algorithm.log_prob_noise
        if not sigma:
            return answer
        log_probs = answer["rollout_log_probs"]
        noise = log_prob_noise(prompts["seeds"], log_probs.shape[1], sigma)
        return answer.with_columns(rollout_log_probs=torch.where(answer["response_mask"], log_probs + noise, log_probs))

    def _injected_pressure(self) -> dict[str, float]:
        """What is put on the run on purpose, for the record of each optimizer step."""
        algorithm, injected = self.settings.algorithm, {}
        if algorithm.weight_lag:
            injected["rollout/weight_lag"] = float(self.policy.lagged.steps)
        if algorithm.log_prob_noise:
            injected["rollout/log_prob_noise"] = algorithm.log_prob_noise
        return injected

    def _start_training(self) -> None:
        if self.phase is Phase.GENERATING:
            self.engine.sleep()
            self.policy.onload(training=True)
            self.phase = Phase.TRAINING

    def _export(self, folder: Path) -> None:
        from workers.megatron.hf_weights import export_hf  # loaded on workers only, as the engines are

        export_hf(folder, self.policy, model_folder(self.settings.model.path, self.settings.model.revision))
