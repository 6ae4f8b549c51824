"""The loss of one mini-batch as the schedule sees it: packed columns, global denominators, metrics."""

from dataclasses import replace
from typing import Any, Literal

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from cfpo_hybrid.algorithms.metrics import Metric, MetricSums
from cfpo_hybrid.algorithms.objective import LossDenominators, PolicyObjective
from cfpo_hybrid.algorithms.policy_loss.inputs import MiniBatchTokens, PolicyLossInputs
from cfpo_hybrid.errors import BatchError
from cfpo_hybrid.protocol import DataProto
from workers.megatron.packing import MicroBatch, idle_micro_batch

INPUTS = {
    "old_log_probs": "old_log_probs",
    "advantages": "advantages",
    "mask": "response_mask",
    "rollout_log_probs": "rollout_log_probs",
    "ref_log_probs": "ref_log_probs",
    "kept_log_mass": "kept_log_mass",
}
"""Inputs of a policy loss and the columns they come from, packed when the batch has them."""

REQUIRED = {"old_log_probs", "advantages", "mask"}


class MiniBatchLoss:
    """Turns the log-probs of each micro-batch into its share of the loss, and gathers metrics.

    Building one is collective over dp, for the denominators and the loss's statistics.

    Args:
        batch: this dp rank's rows of the mini-batch; maybe none.
        objective: what is minimised.
        device: of the model.
        dp: ranks with the other rows.
        on_policy: the weights are those that old_log_probs would be computed with, so the batch may lack them.

    Raises:
        BatchError: a column that every loss reads is missing.
    """

    def __init__(
        self,
        batch: DataProto,
        objective: PolicyObjective,
        *,
        device: torch.device,
        dp: dist.ProcessGroup,
        on_policy: bool = False,
    ) -> None:
        self.objective, self.device, self.dp = objective, device, dp
        required = REQUIRED - {"old_log_probs"} if on_policy else REQUIRED
        wanted = {name: column for name, column in INPUTS.items() if name in required or column in batch}
        width = batch.widths["response"]
        self.columns = {name: _of_each_token(batch[column].to(device), width) for name, column in wanted.items()}
        counted = _counted_tokens(batch)
        self.denominators = self._count(counted)
        self.statistics = self._statistics(counted.to(device)) if objective.loss.needs_statistics else None
        self.differentiates_entropy = "entropy" in objective.needs

    def __call__(
        self, micro_batch: MicroBatch, log_probs: Float[Tensor, " token"], entropy: Float[Tensor, " token"]
    ) -> tuple[Float[Tensor, ""], dict[str, Metric]]:
        """Loss and metrics of one micro-batch; the losses of all micro-batches and dp ranks add up."""
        picked = {"old_log_probs": log_probs.detach()}
        picked |= {name: micro_batch.pick(column) for name, column in self.columns.items()}
        inputs = PolicyLossInputs(
            log_probs=log_probs,
            entropy=entropy if self.differentiates_entropy else entropy.detach(),
            sequence_ids=micro_batch.sequence_ids,
            num_sequences=len(micro_batch.rows),
            statistics=self.statistics,
            **picked,
        )
        output = self.objective(inputs, self.denominators)
        return output.loss, output.metrics

    def reduce(self, metrics: list[dict[str, Metric]]) -> dict[str, float]:
        """The metrics of the mini-batch over all micro-batches and dp ranks; collective over dp."""
        sums = MetricSums()
        for part in metrics or [self._metrics_of_nothing()]:
            sums.add(part)
        return sums.reduce(self._all_reduce)

    def _metrics_of_nothing(self) -> dict[str, Metric]:
        """What a rank without rows puts in: the names that every rank reduces."""
        nothing = torch.zeros(0, device=self.device)
        return self(idle_micro_batch(1, self.device), nothing.clone().requires_grad_(), nothing)[1]

    def _count(self, counted: Tensor) -> LossDenominators:
        """Counted tokens and responses over all dp ranks: for most losses the one wait before the optimizer step."""
        own = LossDenominators.of_mask(counted)
        counts = torch.tensor([own.num_tokens, own.num_sequences], dtype=torch.float64, device=self.device)
        dist.all_reduce(counts, group=self.dp)
        num_tokens, num_sequences = counts.tolist()
        return replace(own, num_tokens=num_tokens, num_sequences=num_sequences)

    def _statistics(self, counted: Tensor) -> Any:
        """What the loss needs to know of the whole mini-batch; collective over dp."""
        if "old_log_probs" not in self.columns:
            raise BatchError(
                f"policy loss '{self.objective.loss.name}' takes statistics of old_log_probs over the mini-batch, "
                f"which the batch lacks; compute them before the update"
            )
        old_log_probs, advantages = self.columns["old_log_probs"], self.columns["advantages"]
        return self.objective.loss.statistics(MiniBatchTokens.of(old_log_probs, advantages, counted, self._gather))

    def _gather(self, vector: Tensor) -> Tensor:
        gathered = vector.new_empty(dist.get_world_size(self.dp), len(vector))
        dist.all_gather_into_tensor(gathered.view(-1), vector.contiguous(), group=self.dp)
        return gathered

    def _all_reduce(self, vector: Tensor, operation: Literal["sum", "max"]) -> Tensor:
        dist.all_reduce(vector, dist.ReduceOp.SUM if operation == "sum" else dist.ReduceOp.MAX, self.dp)
        return vector


def _of_each_token(column: Shaped[Tensor, "batch *response"], width: int) -> Shaped[Tensor, "batch {width}"]:
    """A column with a number for each token: one with a number for each row stands for all of its tokens, as a view."""
    return column.unsqueeze(1).expand(-1, width) if column.dim() == 1 else column


def _counted_tokens(batch: DataProto) -> Bool[Tensor, "batch response"]:
    """Response tokens that count; the mask of padding may be anything."""
    mask = batch["response_mask"]
    return mask & (torch.arange(mask.shape[1]) < batch["response_lengths"].unsqueeze(1))
