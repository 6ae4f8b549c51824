"""The probe: a fixed handful of token sequences that both engines score after a reshard.

Equal log-probs prove that the weights in vLLM are those that Megatron trains: a checksum would only prove that what was
sent was received, under whatever name.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from cfpo_hybrid.protocol import DataProto
from workers.megatron.policy import MegatronPolicy
from workers.rollout.engine import RolloutEngine

NUM_SEQUENCES = 4
MAX_TOKENS = 32
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.2}
"""Largest difference in nats that rounding explains, by the dtype of the weights."""


def rounding(*dtypes: torch.dtype) -> float:
    """Largest difference in nats that rounding explains between engines of these dtypes: that of the coarsest."""
    return max(TOLERANCE[dtype] for dtype in dtypes)


class Probe:
    """Fixed random sequences and their log-probs.

    Args:
        vocab_size: tokens are drawn below it.
        max_tokens: of one sequence, when the model takes fewer than ``MAX_TOKENS``.
    """

    def __init__(self, vocab_size: int, max_tokens: int) -> None:
        generator = torch.Generator().manual_seed(0)
        width = min(MAX_TOKENS, max_tokens)
        self.tokens = torch.randint(vocab_size, (NUM_SEQUENCES, width), generator=generator)

    def as_batch(self) -> DataProto:
        """The sequences as a prompt of one token and a response of the rest."""
        rows, width = self.tokens.shape
        return DataProto(
            {
                "prompts": self.tokens[:, :1],
                "prompt_lengths": torch.ones(rows, dtype=torch.int64),
                "responses": self.tokens[:, 1:],
                "response_lengths": torch.full((rows,), width - 1),
                "response_mask": torch.ones(rows, width - 1, dtype=torch.bool),
            }
        )

    def of_policy(self, policy: MegatronPolicy) -> Tensor:
        """Log-probs by Megatron ``[sequence, token - 1]``, on every rank of the replica; collective over the replica.

        At temperature 1, whatever the rollout's: so vLLM scores.
        """
        return policy.score(self.as_batch(), temperature=1.0)

    def of_engine(self, engine: RolloutEngine) -> Tensor:
        """Log-probs by vLLM ``[sequence, token - 1]``; collective over the rollout replica."""
        return torch.stack(engine.score(self.tokens.tolist()))


def largest_difference(expected: Tensor, found: Tensor) -> float:
    """The largest difference in nats over all ranks; collective over the world."""
    largest = (expected.float().cpu() - found.float().cpu()).abs().max().reshape(1)
    largest = torch.where(largest.isfinite(), largest, torch.inf)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return float(largest)


def mismatch(difference: float, tolerance: float, policy_version: int) -> str:
    """The first sentence of what is said when the engines disagree."""
    return (
        f"after the reshard of policy version {policy_version} vLLM and Megatron differ by {difference:.3g} nats on the "
        f"probe, more than rounding explains ({tolerance:g})"
    )
