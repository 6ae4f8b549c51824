"""The hybrid worker: one process that owns a Megatron-core model and a vLLM engine on the same device.

The driver decides who is awake: `wake_training` and `sync_weights` lead from one phase to the other, and
`workers/phases.py` says which method may be called in which.
"""

import gc
import itertools
import logging
import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from cfpo_hybrid.algorithms.kl import response_kl
from cfpo_hybrid.algorithms.mismatch import log_prob_noise
from cfpo_hybrid.algorithms.objective import PolicyObjective
from cfpo_hybrid.errors import NumericsError
from cfpo_hybrid.models import model_folder
from cfpo_hybrid.protocol import DataProto
from cfpo_hybrid.single_controller import Dispatch, WorkerContext, dispatch
from workers.messages import HybridSettings, SyncReport, UpdateRecord, UpdateReport
from workers.pass_watch import PassWatch
from workers.phases import Phase, in_phase
from workers.process import process_group
from workers.rollout.engine import RolloutEngine, SamplingSettings, find_stops, generation_config

if TYPE_CHECKING:
    from workers.megatron.policy import MegatronPolicy
    from workers.weight_sync import WeightSync

logger = logging.getLogger(__name__)


class HybridWorker:
    """One rank of training and of generation.

    A worker outlives a run: :meth:`begin_run` comes before the first call of any other method, and again for every
    further run.

    Args:
        context: the rank's place in its group.
    """

    # Of the run: begin_run makes them.
    settings: HybridSettings
    objective: PolicyObjective
    policy: "MegatronPolicy"
    weight_sync: "WeightSync"

    def __init__(self, context: WorkerContext) -> None:
        self.context = context
        self.phase = Phase.EMPTY
        self.policy_version = 0
        self.rollout_version = 0
        self._device: torch.device | None = None
        self._engine: RolloutEngine | None = None
        self._cleanup = ExitStack()

    @dispatch(Dispatch.BROADCAST)
    @in_phase
    def begin_run(self, settings: HybridSettings, checkpoint: str | None = None, policy_version: int = 0) -> None:
        """Builds what the run needs and loads the starting weights; both engines sleep then.

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

        self._end_run()
        self.settings, self.policy_version = settings, policy_version
        if self._device is None:
            self._device = self._cleanup.enter_context(process_group(self.context, settings.device))
        self.objective = build_objective(settings)
        self.policy = build_policy(settings, self.context, self._device)
        if checkpoint is not None:
            self.policy.load(Path(checkpoint))
        self.policy.offload()
        if self._engine is None:
            self._engine = build_generation(settings, self.context, self._device)
            self._cleanup.callback(self._engine.close)
            self._engine.sleep()
        self.weight_sync = build_weight_sync(self.policy, self.engine, settings)

    @property
    def engine(self) -> RolloutEngine:
        """The rank of the rollout engine."""
        assert self._engine is not None, "begin_run comes first"
        return self._engine

    @dispatch(Dispatch.BROADCAST)
    @in_phase
    def wake_training(self) -> None:
        """Puts vLLM to sleep and brings Megatron's state back to the device; the weights in vLLM are lost on a GPU."""
        self.engine.sleep()
        self.policy.onload(training=True)

    @dispatch(Dispatch.BROADCAST)
    @in_phase
    def sync_weights(self, probe: bool, newest: bool = False) -> SyncReport:
        """Step 7: moves the weights into vLLM, puts Megatron to sleep and wakes generation.

        Waking goes weights first, new weights in, KV cache last, so that two copies of the model and a KV cache never
        meet on the device.

        Args:
            probe: proves on the probe that both engines hold the same weights.
            newest: the weights in training, also where ``algorithm.weight_lag`` asks for older ones.
        """
        report = self.weight_sync.run(self.policy_version, probe=probe, newest=newest)
        self.rollout_version = report.policy_version
        return report

    @dispatch(Dispatch.SPLIT_BY_DP, layout="rollout")
    @in_phase
    def generate(self, prompts: DataProto, sampling: SamplingSettings) -> DataProto:
        """Step 2: samples one response a row: responses, lengths, mask, rollout_log_probs, truncated.

        With ``algorithm.log_prob_noise`` the log-probs are noisy from here on, for whoever reads them.
        """
        answer = self.engine.generate(prompts, sampling, self.settings.max_response_length)
        if self.settings.plan.mask_truncated:
            answer = answer.with_columns(response_mask=answer["response_mask"] & ~answer["truncated"].unsqueeze(1))
        return self._with_noise(answer, prompts).with_meta(policy_version=self.rollout_version)

    @dispatch(Dispatch.SPLIT_BY_DP, layout="train")
    @in_phase
    def compute_log_probs(self, batch: DataProto) -> DataProto:
        """Step 4: old_log_probs and entropy under the weights that sampled, ref_log_probs and ref_kl where they are needed.

        With ``algorithm.old_log_probs=rollout`` the old ones are only passed on.
        """
        if self.settings.plan.recompute_old_log_probs:
            answer = self.policy.log_probs(batch)
        else:
            answer = DataProto({"old_log_probs": batch["rollout_log_probs"]})
        if self.settings.plan.reference:
            answer = answer.merge(self.policy.ref_log_probs(batch))
            log_probs = answer["old_log_probs"], answer["ref_log_probs"]
            # Of every token, those of a truncated response that the loss leaves out included.
            sampled = torch.arange(batch.widths["response"]) < batch["response_lengths"].unsqueeze(1)
            kl = response_kl(*log_probs, sampled, self.settings.algorithm.kl_estimator)
            answer = answer.with_columns(ref_kl=kl)
        return answer

    @dispatch(Dispatch.SPLIT_BY_DP, layout="train")
    @in_phase
    def update_policy(self, batch: DataProto) -> UpdateReport:
        """Step 6: iterations x mini-batches, until the watch stops them; the metrics of each optimizer step, over all ranks.

        Where the plan is on-policy the batch may lack old_log_probs, whose place the update's own log-probs take.
        ``kl_coef`` in the batch's metadata is the weight of the KL penalty in the loss, where it is not fixed.
        """
        plan = self.settings.plan
        objective = replace(self.objective, kl_coef=cast(float, batch.meta.get("kl_coef", self.objective.kl_coef)))
        if not plan.recompute_old_log_probs:
            batch = batch.with_columns(old_log_probs=batch["rollout_log_probs"])
        pressure = self._injected_pressure()
        self.policy.lagged.remember()
        mini_batches = [batch.rows(batch["mini_batch"] == index) for index in range(plan.batch_ratio)]
        watch, updates = PassWatch(self.settings.watch), []
        for iteration, index in itertools.product(range(plan.iterations), range(plan.batch_ratio)):
            metrics = self._update(mini_batches[index], objective)
            updates.append(UpdateRecord(iteration, index, metrics | pressure))
            if not watch.allows_more(updates[-1]):
                break
        self.policy_version += 1
        return UpdateReport(updates=updates, trips=watch.trips)

    @dispatch(Dispatch.BROADCAST)
    @in_phase
    def save(self, directory: str, texts: dict[str, str]) -> None:
        """Writes this rank's part of a checkpoint, the weights also as a Hugging Face folder; the driver makes it final.

        State is written from where it lies, on the device or in host memory: nobody wakes or sleeps for it.

        Args:
            directory: of the checkpoint.
            texts: files of the Hugging Face folder that are not those of the base model, by name.
        """
        self.policy.save(Path(directory))
        self._export(Path(directory) / "model", texts)

    @dispatch(Dispatch.BROADCAST)
    @in_phase
    def export(self, directory: str, texts: dict[str, str]) -> None:
        """Writes the weights as a Hugging Face folder, from where they lie; every rank writes what it holds.

        Args:
            directory: replaced with all it holds.
            texts: files that are not those of the base model, by name.
        """
        self._export(Path(directory), texts)

    def close(self) -> None:
        """Frees what was built, however far that went."""
        self._cleanup.close()

    def _end_run(self) -> None:
        """Lets vLLM sleep and frees the model of the run before, so that two never meet on the device."""
        if self._engine is None:
            return
        self.engine.sleep()
        del self.policy, self.weight_sync
        gc.collect()  # Megatron-core's model and its hooks refer to each other

    def _update(self, mini_batch: DataProto, objective: PolicyObjective) -> dict[str, float]:
        """The metrics of one optimizer step; one whose gradient is not finite is not taken, and left to the watch."""
        try:
            return self.policy.update(mini_batch, objective, on_policy=self.settings.plan.on_policy)
        except NumericsError as error:
            logger.warning("%s", error)
            return {"actor/grad_norm": math.nan}

    def _with_noise(self, answer: DataProto, prompts: DataProto) -> DataProto:
        sigma = self.settings.plan.log_prob_noise
        if not sigma:
            return answer
        log_probs = answer["rollout_log_probs"]
        noise = log_prob_noise(prompts["seeds"], log_probs.shape[1], sigma)
        return answer.with_columns(rollout_log_probs=torch.where(answer["response_mask"], log_probs + noise, log_probs))

    def _injected_pressure(self) -> dict[str, float]:
        """What is put on the run on purpose, for the record of each optimizer step."""
        plan, injected = self.settings.plan, {}
        if plan.weight_lag:
            injected["rollout/weight_lag"] = float(self.policy.lagged.steps)
        if plan.log_prob_noise:
            injected["rollout/log_prob_noise"] = plan.log_prob_noise
        return injected

    def _export(self, folder: Path, texts: Mapping[str, str]) -> None:
        model, rollout = self.settings.model, self.settings.rollout
        source = model_folder(model.path, model.revision)
        stops = find_stops(source, rollout.stop)
        sampling = generation_config(
            source, stops, temperature=rollout.temperature, top_p=rollout.top_p, top_k=rollout.top_k
        )
        self.policy.export(folder, source, {"generation_config.json": sampling, **texts})
