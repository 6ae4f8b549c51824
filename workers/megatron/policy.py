"""The policy in training on one rank: Megatron-core model, optimizer, log-probs and updates.

Every public method that computes is collective over the world (log-probs: over the model replica, or with expert
parallelism the world). Ranks of a replica get the same rows; a data-parallel rank may get none and still takes part.
"""

from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from jaxtyping import Float32
from megatron.core.distributed import DistributedDataParallel
from torch import Tensor

from cfpo_hybrid.algorithms.metrics import Metric
from cfpo_hybrid.algorithms.objective import PolicyObjective
from cfpo_hybrid.errors import DispatchError
from cfpo_hybrid.models import ModelShape
from cfpo_hybrid.parallel_layout import ParallelLayout
from cfpo_hybrid.protocol import DataProto
from cfpo_hybrid.resharding import ShardSpec
from workers.config import ActorConfig
from workers.megatron.build import Chunks, ModelRecipe, PolicyModel, build_model, named_parameters, wrap_for_training
from workers.megatron.checkpoint import PolicyState, load_policy, save_policy
from workers.megatron.cpu_support import megatron_on
from workers.megatron.hf_weights import export_hf, load_hf
from workers.megatron.host_memory import LaggedWeights, Offload
from workers.megatron.log_probs import Truncation, kept_log_mass, vocabulary_log_probs
from workers.megatron.mini_batch_loss import MiniBatchLoss
from workers.megatron.optimizer import PolicyOptimizer
from workers.megatron.packing import MicroBatch, idle_micro_batch, pack, unpack
from workers.megatron.parallel import initialize_parallel
from workers.megatron.schedule import run_forward, run_forward_backward, with_idle


class MegatronPolicy:
    """One rank of the policy; weights are zero until they are loaded.

    Args:
        shape: of the model.
        actor: its configuration.
        layout: of training; its ranks are those of torch's world, which must exist.
        rank: this process's.
        device: of this rank.
        seed: of Megatron's random state.
        total_optimizer_steps: length of the learning-rate schedule.
        temperature: of the rollout; logits are divided by it.
        weight_lag: rollout steps by which the weights that sample are older.
        truncation: of the rollout, where it samples from a part of the vocabulary.
    """

    def __init__(
        self,
        shape: ModelShape,
        actor: ActorConfig,
        layout: ParallelLayout,
        *,
        rank: int,
        device: torch.device,
        seed: int,
        total_optimizer_steps: int,
        temperature: float = 1.0,
        weight_lag: int = 0,
        truncation: Truncation | None = None,
    ) -> None:
        self.shape, self.actor, self.device = shape, actor, device
        self.groups = initialize_parallel(layout, chunks=actor.megatron.cut.chunks, rank=rank, device=device, seed=seed)
        self.recipe = ModelRecipe(shape=shape, actor=actor, groups=self.groups, device=device)
        self._temperature, self._truncation, self._seed = temperature, truncation, seed
        with megatron_on(device):
            self.chunks: list[DistributedDataParallel] = wrap_for_training(build_model(self.recipe), self.recipe)
            self.optimizer = PolicyOptimizer(self.chunks, self.recipe, total_optimizer_steps)
        self.reference: list[PolicyModel] | None = None
        self.lagged = LaggedWeights(self.parameters_by_name, weight_lag)
        self.memory = Offload(
            weights=self._weights, state=self.optimizer.state_tensors, gradients=self._gradient_buffers
        )

    # --- weights

    def parameters_by_name(self) -> dict[str, Tensor]:
        """Local parameters under the names of :meth:`specs`. After writing into them call :meth:`weights_changed`."""
        return {name: parameter.data for name, parameter in named_parameters(self.chunks)}

    def specs(self) -> list[ShardSpec]:
        """Which parts of which Hugging Face tensors the local parameters hold."""
        return self.recipe.specs_of_rank(self.groups.rank)

    def start_from(self, folder: Path) -> None:
        """Takes the weights of a Hugging Face folder, each rank its own slices of the files."""
        load_hf(folder, self.specs(), self.parameters_by_name())
        self.weights_changed()

    def weights_changed(self) -> None:
        """Tells the optimizer that weights were written from outside; its masters follow them."""
        with megatron_on(self.device):
            self.optimizer.weights_changed()

    def build_reference(self) -> None:
        """Keeps a frozen copy of the current weights for :meth:`ref_log_probs`."""
        with megatron_on(self.device):
            reference = build_model(self.recipe)
        current = self.parameters_by_name()
        for name, parameter in named_parameters(reference):
            parameter.requires_grad_(False).copy_(current[name])
        self.reference = reference

    # --- log-probs

    def log_probs(self, batch: DataProto) -> DataProto:
        """Step 4: ``old_log_probs`` and ``entropy`` of every response token under the weights that sampled.

        These are the current ones, unless the rollout lags behind. Where it truncates the vocabulary, ``kept_log_mass``
        comes along.
        """
        with self.lagged.in_place(self.lagged.steps):
            columns = self._infer(self.chunks, batch, self._temperature, self._truncation)
        return DataProto(dict(zip(("old_log_probs", "entropy", "kept_log_mass"), columns, strict=False)))

    def ref_log_probs(self, batch: DataProto) -> DataProto:
        """Step 4: ``ref_log_probs`` under the frozen copy.

        Raises:
            DispatchError: there is no copy.
        """
        if self.reference is None:
            raise DispatchError("ref_log_probs needs a reference; call build_reference() once the weights are loaded")
        return DataProto({"ref_log_probs": self._infer(self.reference, batch, self._temperature)[0]})

    def score(self, batch: DataProto, temperature: float | None = None) -> Float32[Tensor, "batch response"]:
        """Log-probs of every response token, on the CPU of every rank of the replica.

        Args:
            batch: prompts and responses.
            temperature: by default the rollout's; vLLM scores at 1.
        """
        return self._infer(self.chunks, batch, temperature or self._temperature)[0]

    # --- training

    def update(self, batch: DataProto, objective: PolicyObjective, *, on_policy: bool = False) -> dict[str, float]:
        """Step 6: one optimizer step on a mini-batch.

        Args:
            batch: this dp rank's rows, with old_log_probs, advantages and response_mask.
            objective: what is minimised.
            on_policy: no optimizer step lies between sampling and this one (one iteration, one mini-batch). The batch
                may then lack old_log_probs: the update's own log-probs take their place, and step 4 can be left out.

        Returns:
            Metrics over all dp ranks, on the last stage's ranks; ``actor/grad_norm`` and ``actor/lr`` on every rank.

        Raises:
            NumericsError: the gradient norm is not finite.
        """
        loss = MiniBatchLoss(batch, objective, device=self.device, dp=self.groups.dp, on_policy=on_policy)
        metrics = self._backward(batch, loss)
        with megatron_on(self.device):
            stepped = self.optimizer.step()
        return (loss.reduce(metrics) if self.groups.is_last_stage else {}) | stepped

    def gradient(self, batch: DataProto, objective: PolicyObjective) -> Float32[Tensor, " parameter"]:
        """The gradient that an update would step by, on the CPU; no weight changes.

        It is that of this rank's parameters with the padding between them, which is 0. The distributed optimizer must
        be off, which leaves each rank the sum of a part alone.
        """
        self._backward(batch, MiniBatchLoss(batch, objective, device=self.device, dp=self.groups.dp))
        return torch.cat([buffer.flatten() for buffer in self._gradient_buffers()]).cpu()

    # --- memory and disk

    def offload(self) -> None:
        """Frees the device while vLLM generates, when ``actor.megatron.offload`` is on; nothing to free on a CPU."""
        if self._can_offload:
            self.memory.offload()
            torch.cuda.empty_cache()

    def onload(self, *, training: bool) -> None:
        """Brings the weights back, and for training the optimizer state and gradient buffers too."""
        if self._can_offload:
            self.memory.onload(training=training)

    def save(self, directory: Path) -> None:
        """Writes this rank's files of a checkpoint, also while the model is offloaded; collective over the world."""
        with megatron_on(self.device):
            save_policy(directory, self._state())

    def load(self, directory: Path) -> None:
        """Restores a checkpoint of any layout; one of the same layout bit for bit, random state included."""
        with megatron_on(self.device):
            load_policy(directory, self._state())

    def export(self, folder: Path, source: Path) -> None:
        """Writes a Hugging Face folder, also while the model is offloaded; collective over the world.

        Args:
            folder: made if absent; on storage that all ranks share.
            source: the folder the model came from; config.json and the tokenizer are taken over.
        """
        parameters = {name: self.memory.at_rest(tensor) for name, tensor in self.parameters_by_name().items()}
        export_hf(folder, source, shape=self.shape, parameters=parameters, specs_of_rank=self.recipe.specs_of_rank)

    # --- private

    def _infer(
        self, chunks: Chunks, batch: DataProto, temperature: float, truncation: Truncation | None = None
    ) -> tuple[Tensor, ...]:
        """Padded log-probs, entropy and for a truncation the kept mass, on the CPU of every rank of the replica."""
        head = self.recipe.head(temperature)

        def measure(micro_batch: MicroBatch, hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
            measured = [*vocabulary_log_probs(hidden, weight, micro_batch.targets, head)]
            if truncation:
                measured.append(kept_log_mass(hidden, weight, head, truncation))
            return measured[0], torch.stack(measured)

        micro_batches = self._pack(batch)
        with megatron_on(self.device):
            packed = run_forward(chunks, micro_batches, measure)
        padded = unpack(micro_batches, packed, (3 if truncation else 2, *batch["responses"].shape), self.device)
        if self.groups.pp is not None:
            dist.broadcast(padded, dist.get_process_group_ranks(self.groups.pp)[-1], group=self.groups.pp)
        return padded.cpu().unbind()

    def _backward(self, batch: DataProto, loss: MiniBatchLoss) -> list[dict[str, Metric]]:
        """Leaves the gradient of a mini-batch in the buffers; the metrics of its micro-batches on the last stage."""
        micro_batches, head = self._pack(batch), self.recipe.head(self._temperature)

        def finish(micro_batch: MicroBatch, hidden: Tensor, weight: Tensor) -> tuple[Tensor, dict[str, Metric]]:
            return loss(micro_batch, *vocabulary_log_probs(hidden, weight, micro_batch.targets, head))

        with megatron_on(self.device):
            self.optimizer.zero_grad()
            return run_forward_backward(self.chunks, micro_batches, finish)

    def _pack(self, batch: DataProto) -> list[MicroBatch]:
        megatron = self.actor.megatron
        multiple = self.groups.layout.tp if megatron.sequence_parallel else 1
        micro_batches = pack(batch, max_tokens=self.actor.micro_batch_tokens, multiple=multiple, device=self.device)
        return with_idle(micro_batches, idle_micro_batch(multiple, self.device), self.groups, megatron.cut.chunks)

    @property
    def _can_offload(self) -> bool:
        return self.device.type == "cuda" and self.actor.megatron.offload

    def _weights(self) -> list[Tensor]:
        frozen = [parameter.data for _, parameter in named_parameters(self.reference or [])]
        return [*self.parameters_by_name().values(), *frozen]

    def _gradient_buffers(self) -> list[Tensor]:
        # Megatron-core's gradient buffers, under a name that hides Module.buffers().
        return [
            buffer.grad_data
            for chunk in self.chunks
            for buffer in cast(list[Any], chunk.buffers) + chunk.expert_parallel_buffers
        ]

    def _state(self) -> PolicyState:
        return PolicyState(
            recipe=self.recipe,
            parameters=self.parameters_by_name(),
            optimizer=self.optimizer,
            lagged=self.lagged,
            at_rest=self.memory.at_rest,
            seed=self._seed,
        )
