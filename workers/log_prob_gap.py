"""How far the generating and the training engine disagree on the tokens that were sampled."""

import torch
from torch import Tensor

from cfpo_hybrid.protocol import DataProto


def log_prob_gap(batch: DataProto, old_log_probs: Tensor) -> dict[str, float]:
    """Sums over this rank's counted tokens of |log pi_rollout - log pi_old|, to be joined on the driver.

    Args:
        batch: with ``rollout_log_probs`` and ``response_mask``.
        old_log_probs: ``[batch, response]`` as the training engine has them.

    Returns:
        ``gap_sum`` and ``gap_max`` in nats, ``gap_tokens``.
    """
    mask = batch["response_mask"]
    gap = torch.where(mask, batch["rollout_log_probs"] - old_log_probs, 0.0).abs()
    total = torch.stack([gap.double().sum(), gap.amax().double() if gap.numel() else gap.new_zeros(()).double()])
    gap_sum, gap_max = total.tolist()
    return {"gap_sum": gap_sum, "gap_max": gap_max, "gap_tokens": float(mask.count_nonzero())}
