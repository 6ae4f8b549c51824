"""What a policy loss sees: frozen, per token, padded or packed alike."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from cfpo_hybrid.errors import BatchError

LOG_RATIO_LIMIT = 20.0
"""Log-ratios are clamped to +-20 nats so that r^2 stays finite in fp32; clamped tokens are counted as a metric."""

OPTIONAL_INPUTS = ("rollout_log_probs", "ref_log_probs", "entropy")
"""The inputs that exist only when something needs them; a loss names its own in ``needs``."""


def clamp(values: Tensor, low: float = -math.inf, high: float = math.inf) -> Tensor:
    """``values`` within [low, high], without gradient at the bounds and beyond.

    It is hardtanh rather than ``torch.clamp`` since its backward pass is one kernel instead of four.
    """
    return torch.nn.functional.hardtanh(values, low, high)


@dataclass(frozen=True)
class PolicyLossInputs:
    """The tensors of one micro-batch, either padded ``[batch, response]`` or packed ``[token]``.

    Args:
        log_probs: log pi_theta of the sampled tokens, fp32, with gradient.
        old_log_probs: log pi_old of the same tokens, same shape.
        advantages: one number a token, same shape, or ``[batch]`` to be spread over the rows of padded inputs.
        mask: True where a token counts, same shape. Values elsewhere may be anything, NaN included.
        rollout_log_probs: log-probs that the rollout engine sampled with; present when the loss declares the need.
        ref_log_probs: log-probs of the frozen reference; likewise.
        entropy: entropy of the policy in nats, with gradient; likewise.
        kept_log_mass: log of the probability of the tokens that sampling kept, where it truncates; for metrics.
        sequence_ids: for packed inputs, the row that each token belongs to, ``[token]`` int64, counted from 0.
        num_sequences: for packed inputs, the number of rows.
        statistics: what the loss's own statistics function said of the whole mini-batch, when it has one.

    Example: two responses of 2 and 1 tokens, padded: ``log_probs=[[-1.0, -0.5], [-2.0, 0.0]]``,
    ``mask=[[True, True], [True, False]]``; packed: ``log_probs=[-1.0, -0.5, -2.0]``, ``sequence_ids=[0, 0, 1]``,
    ``num_sequences=2``.

    Raises:
        BatchError: shapes disagree, or packed inputs lack sequence_ids when something asks for sequences.
    """

    log_probs: Tensor
    old_log_probs: Tensor
    advantages: Tensor
    mask: Tensor
    rollout_log_probs: Tensor | None = None
    ref_log_probs: Tensor | None = None
    entropy: Tensor | None = None
    kept_log_mass: Tensor | None = None
    sequence_ids: Tensor | None = None
    num_sequences: int | None = None
    statistics: Any = None

    def __post_init__(self) -> None:
        shape = self.log_probs.shape
        if self.log_probs.dim() not in (1, 2):
            raise BatchError(f"log_probs has shape {list(shape)}; it must be [batch, response] or packed [token]")
        if self.log_probs.dim() == 2 and self.advantages.shape == shape[:1]:
            object.__setattr__(self, "advantages", self.advantages.unsqueeze(1).expand(shape))
        if self.mask.dtype != torch.bool:
            object.__setattr__(self, "mask", self.mask != 0)
        for name in ("old_log_probs", "advantages", "mask", *OPTIONAL_INPUTS, "kept_log_mass", "sequence_ids"):
            tensor = getattr(self, name)
            if tensor is not None and tensor.shape != shape:
                raise BatchError(
                    f"{name} has shape {list(tensor.shape)}; log_probs has {list(shape)}, and both must agree"
                )

    @cached_property
    def num_counted(self) -> Tensor:
        """Tokens inside the mask, a scalar on the device."""
        return self.mask.count_nonzero()

    @cached_property
    def all_counted(self) -> bool:
        """Whether every token is known to count, as in most packed batches; a GPU is not waited for to find out."""
        return self.mask.device.type == "cpu" and int(self.num_counted) == self.mask.numel()

    def counted(self, values: Tensor) -> Tensor:
        """``values`` with 0 outside the mask, where neither NaN nor a gradient gets through."""
        return values if self.all_counted else torch.where(self.mask, values, 0.0)

    def range_of(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Smallest and largest of ``values`` inside the mask, scalars on the device; +inf and -inf for nothing."""
        if values.numel() == 0:
            return values.new_full((), float("inf")), values.new_full((), float("-inf"))
        if self.all_counted:
            return values.amin(), values.amax()
        masked_low, masked_high = (torch.where(self.mask, values, end) for end in (float("inf"), float("-inf")))
        return masked_low.amin(), masked_high.amax()

    @cached_property
    def unclamped_log_ratio(self) -> Tensor:
        """Log pi_theta - log pi_old in fp32 (fp64 kept); 0 outside the mask, so that padding reaches no gradient."""
        log_probs = self.log_probs if self.log_probs.dtype == torch.float64 else self.log_probs.float()
        return self.counted(log_probs - self.old_log_probs)

    @cached_property
    def log_ratio(self) -> Tensor:
        """The log-ratio, clamped to +-``LOG_RATIO_LIMIT``; a clamped token has no gradient."""
        return clamp(self.unclamped_log_ratio, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)

    @cached_property
    def ratio(self) -> Tensor:
        """The ratio r = pi_theta / pi_old from the clamped log-ratio; 1 outside the mask."""
        return self.log_ratio.exp()

    @cached_property
    def sequence_token_counts(self) -> Tensor:
        """Counted tokens of each response, ``[num_sequences]``, in the dtype of the log-ratio."""
        return self._sequence_sum(self.mask.to(torch.promote_types(self.log_probs.dtype, torch.float32)))

    def spread(self, per_sequence: Tensor) -> Tensor:
        """One number a response, ``[num_sequences]``, laid over that response's tokens."""
        if self.log_probs.dim() == 2:
            return per_sequence.unsqueeze(1).expand(self.log_probs.shape)
        return per_sequence.index_select(0, self._packed_sequences()[0])

    def sequence_mean(self, values: Tensor) -> Tensor:
        """Mean of ``values`` over the counted tokens of each response, spread back over them; 0 outside the mask.

        Padded and packed inputs give the same numbers.
        """
        sums = self._sequence_sum(self.counted(values))
        return self.counted(self.spread(sums / self.sequence_token_counts.clamp(min=1)))

    def _sequence_sum(self, counted: Tensor) -> Tensor:
        if self.log_probs.dim() == 2:
            return counted.sum(dim=1)
        sequence_ids, num_sequences = self._packed_sequences()
        return counted.new_zeros(num_sequences).scatter_add(0, sequence_ids, counted)

    def _packed_sequences(self) -> tuple[Tensor, int]:
        if self.sequence_ids is None or self.num_sequences is None:
            raise BatchError(
                "packed inputs need sequence_ids and num_sequences for anything that is counted by sequence"
            )
        return self.sequence_ids, self.num_sequences
