"""A policy that is looked at and never steps: its log-probs, and the gradient of any objective."""

import torch
from torch import Tensor

from cfpo_hybrid.algorithms.objective import PolicyObjective
from cfpo_hybrid.protocol import DataProto
from workers.megatron.cpu_support import megatron_on
from workers.megatron.mini_batch_loss import MiniBatchLoss
from workers.megatron.policy import MegatronPolicy
from workers.megatron.schedule import run_forward_backward


class FrozenPolicy(MegatronPolicy):
    """One rank of the policy whose weights stay what they are."""

    def gradient(self, batch: DataProto, objective: PolicyObjective) -> tuple[Tensor, dict[str, float]]:
        """The gradient of an objective on a mini-batch, by one backward pass.

        Args:
            batch: with old_log_probs, advantages and response_mask.
            objective: what would be minimised.

        Returns:
            This rank's parameters' gradient as one fp32 vector on the CPU, and the metrics of an update.
        """
        loss = MiniBatchLoss(batch, objective, device=self.device, dp=self.groups.dp)
        with megatron_on(self.device):
            self.optimizer.zero_grad()
            metrics = run_forward_backward(self.chunks, self._pack(batch), self._head(), loss)
        vector = torch.cat([buffer.flatten() for buffer in self._gradients()])  # its padding is 0
        return vector.cpu(), loss.reduce(metrics)
