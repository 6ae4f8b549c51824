"""What a policy loss sees: the tokens of a micro-batch, frozen, padded or packed alike, and those of the whole mini-batch."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, Int, Shaped
from torch import Tensor

from cfpo_hybrid.errors import BatchError

LOG_RATIO_LIMIT = 20.0
"""Log-ratios are clamped to +-20 nats so that r^2 stays finite in fp32; clamped tokens are counted as a metric."""

OPTIONAL_INPUTS = ("rollout_log_probs", "ref_log_probs", "entropy")
"""The inputs that exist only when something needs them; a loss names its own in ``needs``."""

PerToken = Float[Tensor, "*tokens"]
"""One number a token: padded ``[batch, response]`` or packed ``[token]``."""
PerRowOrToken = Float[Tensor, " batch"] | PerToken
"""One number a row or one a token, as advantages come."""
TokenMask = Bool[Tensor, "*tokens"]
"""Which tokens count, padded or packed."""


def clamp(values: PerToken, low: float = -math.inf, high: float = math.inf) -> PerToken:
    """``values`` within [low, high], without gradient at the bounds and beyond.

    It is hardtanh rather than ``torch.clamp`` since its backward pass is one kernel instead of four.
    """
    return torch.nn.functional.hardtanh(values, low, high)


def token_advantages(advantages: PerRowOrToken, shape: torch.Size) -> PerToken:
    """Advantages as one a token: those of rows, ``[batch]``, are laid over the tokens of padded rows as a view.

    This is the one place that tells the two apart.
    """
    if len(shape) == 2 and advantages.shape == shape[:1]:
        return advantages.unsqueeze(1).expand(shape)
    return advantages


@dataclass(frozen=True)
class PolicyLossInputs:
    """The tensors of one micro-batch, either padded ``[batch, response]`` or packed ``[token]``.

    Args:
        log_probs: log pi_theta of the sampled tokens, fp32, with gradient.
        old_log_probs: log pi_old of the same tokens.
        advantages: one number a token; of padded inputs also one a row, which is laid over its tokens.
        mask: True where a token counts. Values elsewhere may be anything, NaN included.
        rollout_log_probs: log-probs that the rollout engine sampled with; present when the loss declares the need.
        ref_log_probs: log-probs of the frozen reference; likewise.
        entropy: entropy of the policy in nats, with gradient; likewise.
        kept_log_mass: log of the probability of the tokens that sampling kept, where it truncates; for metrics.
        sequence_ids: for packed inputs, the row that each token belongs to, counted from 0.
        num_sequences: for packed inputs, the number of rows.
        statistics: what the loss's own statistics function said of the whole mini-batch, when it has one.

    Example: two responses of 2 and 1 tokens, padded: ``log_probs=[[-1.0, -0.5], [-2.0, 0.0]]``,
    ``mask=[[True, True], [True, False]]``; packed: ``log_probs=[-1.0, -0.5, -2.0]``, ``sequence_ids=[0, 0, 1]``,
    ``num_sequences=2``.

    Raises:
        BatchError: shapes disagree, or packed inputs lack sequence_ids when something asks for sequences.
    """

    log_probs: PerToken
    old_log_probs: PerToken
    advantages: PerRowOrToken
    mask: Shaped[Tensor, "*tokens"]
    rollout_log_probs: PerToken | None = None
    ref_log_probs: PerToken | None = None
    entropy: PerToken | None = None
    kept_log_mass: PerToken | None = None
    sequence_ids: Int[Tensor, "*tokens"] | None = None
    num_sequences: int | None = None
    statistics: Any = None

    def __post_init__(self) -> None:
        shape = self.log_probs.shape
        if self.log_probs.dim() not in (1, 2):
            raise BatchError(f"log_probs has shape {list(shape)}; it must be [batch, response] or packed [token]")
        object.__setattr__(self, "advantages", token_advantages(self.advantages, shape))
        if self.mask.dtype != torch.bool:
            object.__setattr__(self, "mask", self.mask != 0)
        for name, tensor in self.tensors().items():
            if tensor.shape != shape:
                raise BatchError(
                    f"{name} has shape {list(tensor.shape)}; log_probs has {list(shape)}, and both must agree"
                )

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are there, by name."""
        names = (each.name for each in dataclasses.fields(self) if each.name != "statistics")
        return {name: value for name in names if isinstance(value := getattr(self, name), Tensor)}

    def packed(self) -> "PolicyLossInputs":
        """The counted tokens of padded inputs, packed in row order."""
        tensors = {name: values[self.mask] for name, values in self.tensors().items()}
        rows = torch.arange(len(self.mask), device=self.mask.device).unsqueeze(1).expand_as(self.mask)
        return dataclasses.replace(self, **tensors, sequence_ids=rows[self.mask], num_sequences=len(self.mask))

    @cached_property
    def num_counted(self) -> Int[Tensor, ""]:
        """Tokens inside the mask, on the device."""
        return self.mask.count_nonzero()

    @cached_property
    def all_counted(self) -> bool:
        """Whether every token is known to count, as in most packed batches; a GPU is not waited for to find out."""
        return self.mask.device.type == "cpu" and int(self.num_counted) == self.mask.numel()

    def counted(self, values: PerToken) -> PerToken:
        """``values`` with 0 outside the mask, where neither NaN nor a gradient gets through."""
        return values if self.all_counted else torch.where(self.mask, values, 0.0)

    def range_of(self, values: PerToken) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Smallest and largest of ``values`` inside the mask, on the device; +inf and -inf for nothing."""
        if values.numel() == 0:
            return values.new_full((), float("inf")), values.new_full((), float("-inf"))
        if self.all_counted:
            return values.amin(), values.amax()
        masked_low, masked_high = (torch.where(self.mask, values, end) for end in (float("inf"), float("-inf")))
        return masked_low.amin(), masked_high.amax()

    @cached_property
    def unclamped_log_ratio(self) -> PerToken:
        """Log pi_theta - log pi_old in fp32 (fp64 kept); 0 outside the mask, so that padding reaches no gradient."""
        return self.counted(_wide(self.log_probs) - self.old_log_probs)

    @cached_property
    def log_ratio(self) -> PerToken:
        """The log-ratio, clamped to +-``LOG_RATIO_LIMIT``; a clamped token has no gradient."""
        return clamp(self.unclamped_log_ratio, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)

    @cached_property
    def ratio(self) -> PerToken:
        """The ratio r = pi_theta / pi_old from the clamped log-ratio; 1 outside the mask."""
        return self.log_ratio.exp()

    @cached_property
    def rollout_log_ratio(self) -> PerToken:
        """Log pi_old - log pi_rollout in fp32 (fp64 kept), detached; 0 outside the mask.

        Raises:
            BatchError: the inputs lack the rollout's log-probs.
        """
        if self.rollout_log_probs is None:
            raise BatchError("pi_old / pi_rollout needs rollout_log_probs, which the inputs lack")
        return self.counted(_wide(self.old_log_probs.detach()) - self.rollout_log_probs)

    @cached_property
    def sequence_token_counts(self) -> Float[Tensor, " batch"]:
        """Counted tokens of each response, in the dtype of the log-ratio."""
        return self._sequence_sum(self.mask.to(torch.promote_types(self.log_probs.dtype, torch.float32)))

    def spread(self, per_sequence: Float[Tensor, " batch"]) -> PerToken:
        """One number a response laid over that response's tokens."""
        if self.log_probs.dim() == 2:
            return per_sequence.unsqueeze(1).expand(self.log_probs.shape)
        return per_sequence.index_select(0, self._packed_sequences()[0])

    def sequence_mean(self, values: PerToken) -> PerToken:
        """Mean of ``values`` over the counted tokens of each response, spread back over them; 0 outside the mask.

        Padded and packed inputs give the same numbers.
        """
        sums = self._sequence_sum(self.counted(values))
        return self.counted(self.spread(sums / self.sequence_token_counts.clamp(min=1)))

    def sequence_ratio(self, log_ratio: PerToken) -> PerToken:
        """The ratio of the whole response at each of its tokens, exp(mean of log_ratio); 1 outside the mask.

        Its gradient is given to the token's own log-ratio as if it were exp of that alone: the ratio of GSPO-token
        (arXiv 2507.18071, equation 14), sg[s] pi_theta / sg[pi_theta]. So each token is moved by its own advantage, where
        the gradient of the mean would hand every token the mean advantage of the response; where all tokens of a response
        share an advantage, the two add up to the same.
        """
        return (self.sequence_mean(log_ratio.detach()) + (log_ratio - log_ratio.detach())).exp()

    def _sequence_sum(self, counted: PerToken) -> Float[Tensor, " batch"]:
        if self.log_probs.dim() == 2:
            return counted.sum(dim=1)
        sequence_ids, num_sequences = self._packed_sequences()
        return counted.new_zeros(num_sequences).scatter_add(0, sequence_ids, counted)

    def _packed_sequences(self) -> tuple[Int[Tensor, " token"], int]:
        if self.sequence_ids is None or self.num_sequences is None:
            raise BatchError(
                "packed inputs need sequence_ids and num_sequences for anything that is counted by sequence"
            )
        return self.sequence_ids, self.num_sequences


Gather = Callable[[Tensor], Tensor]
"""A vector of each rank that holds other tokens, all of the same length: ``[value]`` -> ``[rank, value]``."""


def alone(vector: Float[Tensor, " value"]) -> Float[Tensor, "1 value"]:
    """The gather of a single process."""
    return vector.unsqueeze(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class MiniBatchTokens:
    """The counted tokens of a mini-batch that one rank holds, maybe none; methods answer for those of all ranks.

    A loss that compares a token with the mini-batch (its covariance against the mean, its rank) would change with the way
    the mini-batch is cut, if it took its statistics from the micro-batch that it sees. So it is registered with
    ``statistics``, a function of these tokens that is called once a mini-batch, and finds the result in
    ``inputs.statistics``. What is known here are the log-probs of the policy that sampled; those of the policy in training
    would cost a forward pass more for each optimizer step.

    Every method is collective: all ranks call the same ones in the same order.

    Example: ``tokens.mean(tokens.advantages)`` is the mean advantage over all tokens of the mini-batch.
    """

    old_log_probs: Float64[Tensor, " token"]
    """Log pi_old in nats."""
    advantages: Float64[Tensor, " token"]
    gather: Gather = field(default=alone)

    @classmethod
    def of(
        cls, old_log_probs: PerToken, advantages: PerRowOrToken, mask: Shaped[Tensor, "*tokens"], gather: Gather = alone
    ) -> "MiniBatchTokens":
        """The counted tokens of padded or packed tensors."""
        counted = mask != 0
        return cls(
            old_log_probs=old_log_probs[counted].detach().double(),
            advantages=token_advantages(advantages, mask.shape)[counted].double(),
            gather=gather,
        )

    def count(self, chosen: Bool[Tensor, " token"] | None = None) -> int:
        """Tokens of the mini-batch, or those that are ``chosen``."""
        own = torch.ones_like(self.advantages) if chosen is None else chosen.double()
        return int(self.gather(own.sum().unsqueeze(0)).sum())

    def mean(self, values: Float[Tensor, " token"]) -> float:
        """Mean of ``values`` over the mini-batch; 0 for a mini-batch without tokens."""
        sums = self.gather(torch.stack([values.double().sum(), values.new_tensor(len(values)).double()])).sum(dim=0)
        total, count = sums.tolist()
        return total / count if count else 0.0

    def nth_largest(self, values: Float[Tensor, " token"], n: int) -> float:
        """The n-th largest of ``values`` over the mini-batch; -inf when there are fewer."""
        own = values.double().topk(min(n, len(values))).values
        candidates = self.gather(torch.nn.functional.pad(own, (0, n - len(own)), value=float("-inf")))
        return float(candidates.flatten().topk(n).values[-1])


def _wide(log_probs: PerToken) -> PerToken:
    """In fp32 at least."""
    return log_probs.to(torch.promote_types(log_probs.dtype, torch.float32))
