"""Aggregation: the weight of each token in the loss of a mini-batch, with global denominators.

The loss is always ``sum(weights * per_token)``. Weights depend on the whole mini-batch only through two numbers that
every rank and micro-batch shares, so gradients add up to the same whatever the split.

| mode | weight of a counted token | source |
|---|---|---|
| ``seq_mean_token_mean`` | 1 / (sequences x counted tokens of its response) | equation 8 of the CFPO paper |
| ``token_mean`` | 1 / counted tokens | DAPO (Yu et al., 2025), equation 8 |
| ``seq_mean_token_sum`` | 1 / sequences | Dr. GRPO (Liu et al., 2025) up to its constant |
| ``seq_mean_token_sum_norm`` | 1 / (sequences x longest allowed response) | Dr. GRPO, with the constant |

A response without counted tokens adds nothing to the sum, and still counts as a sequence: equation 8 divides by the
group's size, and a denominator that shrinks with the mask would depend on the split.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Shaped
from torch import Tensor

from cfpo_hybrid.algorithms.policy_loss.inputs import PerToken, PolicyLossInputs
from cfpo_hybrid.errors import BatchError, ConfigError

AGGREGATIONS = ("seq_mean_token_mean", "token_mean", "seq_mean_token_sum", "seq_mean_token_sum_norm")


@dataclass(frozen=True, slots=True, kw_only=True)
class LossDenominators:
    """What a mini-batch holds over all its micro-batches and data-parallel ranks.

    Example: responses of 3 and 1 counted tokens: ``LossDenominators(num_tokens=4.0, num_sequences=2.0)``.
    """

    num_tokens: float
    """Tokens that count."""
    num_sequences: float
    """Responses, those without counted tokens included."""
    max_length: float | None = None
    """Tokens that a response may have; only ``seq_mean_token_sum_norm`` asks."""

    @classmethod
    def of_mask(cls, response_mask: Shaped[Tensor, "batch response"]) -> "LossDenominators":
        """The counts of these rows, padded to the longest allowed response; ranks add theirs up."""
        rows, width = response_mask.shape
        return cls(num_tokens=float(response_mask.sum()), num_sequences=float(rows), max_length=float(width))


def token_weights(inputs: PolicyLossInputs, mode: str, denominators: LossDenominators) -> PerToken:
    """The weight of each token in the loss; 0 outside the mask.

    An empty mini-batch (no counted tokens anywhere) has weight 0 everywhere rather than 0/0.

    Raises:
        ConfigError: the mode is unknown.
        BatchError: the mode asks for the longest allowed response, which the denominators lack.
    """
    shape, dtype = inputs.log_probs.shape, torch.promote_types(inputs.log_probs.dtype, torch.float32)
    per_token = torch.tensor(1.0 / max(denominators.num_tokens, 1.0), dtype=dtype, device=inputs.mask.device)
    per_sequence = torch.tensor(1.0 / max(denominators.num_sequences, 1.0), dtype=dtype, device=inputs.mask.device)
    match mode:
        case "token_mean":
            return inputs.counted(per_token.expand(shape))
        case "seq_mean_token_sum":
            return inputs.counted(per_sequence.expand(shape))
        case "seq_mean_token_sum_norm":
            if denominators.max_length is None:
                raise BatchError("seq_mean_token_sum_norm divides by LossDenominators.max_length, which is not set")
            return inputs.counted((per_sequence / denominators.max_length).expand(shape))
        case "seq_mean_token_mean":
            return inputs.counted(inputs.spread(per_sequence / inputs.sequence_token_counts))
    raise ConfigError(f"aggregation {mode!r} is unknown; use one of {', '.join(AGGREGATIONS)}")
