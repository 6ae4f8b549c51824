"""The two policies whose ratio the losses see: one that sampled, and one in training."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cfpo_hybrid.algorithms.policy_loss import PolicyLossInputs
from cfpo_hybrid.errors import ConfigError, DataError
from cfpo_hybrid.protocol import DataProto
from trainer.lab.saved_rollout import SavedRollout

if TYPE_CHECKING:
    from workers.megatron.frozen_policy import FrozenPolicy  # loads Megatron-core, which only a lab with a model needs


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyPair:
    """Log-probs of the same tokens, ``[batch, response]``.

    Args:
        log_probs: of the policy in training, log pi_theta.
        old_log_probs: of the one that sampled, log pi_old.
        entropy: of the policy in training in nats, where it is known.
        origin: which policies these are, for people.
    """

    log_probs: Tensor
    old_log_probs: Tensor
    entropy: Tensor | None
    origin: str

    def inputs(self, rollout: SavedRollout) -> PolicyLossInputs:
        """What a loss sees of the rollout: fp64, the log-probs with gradient."""
        entropy = None if self.entropy is None else self.entropy.double().requires_grad_()
        return PolicyLossInputs(
            log_probs=self.log_probs.double().requires_grad_(),
            old_log_probs=self.old_log_probs.double(),
            advantages=rollout.batch["advantages"].double(),
            mask=rollout.mask,
            rollout_log_probs=_column(rollout.batch, "rollout_log_probs"),
            ref_log_probs=_column(rollout.batch, "ref_log_probs"),
            entropy=entropy,
        )


def drifted_pair(batch: DataProto, sigma: float, seed: int) -> PolicyPair:
    """A made-up policy: log pi_theta = log pi_old + a normal draw of deviation sigma and mean -sigma^2 / 2.

    With that mean the expected ratio is 1, as it is for two real policies.

    Raises:
        ConfigError: sigma is not a positive number.
    """
    if not 0 < sigma < math.inf:
        raise ConfigError(f"--drift {sigma}: it must be a positive number of nats, e.g. 0.1")
    old = batch["old_log_probs"].double()
    noise = torch.randn(old.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return PolicyPair(
        log_probs=old + sigma * noise - sigma**2 / 2,
        old_log_probs=old,
        entropy=_column(batch, "entropy"),
        origin=f"synthetic: old_log_probs with normal noise of {sigma:g} nats (seed {seed}) against old_log_probs",
    )


def engine_pair(batch: DataProto) -> PolicyPair:
    """The training engine's log-probs against the rollout engine's: the mismatch alone, no drift.

    Raises:
        ConfigError: the batch lacks the rollout engine's.
    """
    if "rollout_log_probs" not in batch:
        raise ConfigError(
            "the batch has no rollout_log_probs, so it holds one policy only; give --model, a policy to compare it with, "
            "or --drift, e.g. --drift 0.1, for a made-up one"
        )
    return PolicyPair(
        log_probs=batch["old_log_probs"],
        old_log_probs=batch["rollout_log_probs"],
        entropy=_column(batch, "entropy"),
        origin="the training engine (old_log_probs) against the rollout engine (rollout_log_probs)",
    )


def model_pair(policy: "FrozenPolicy", rollout: SavedRollout, folder: Path) -> PolicyPair:
    """The model against the policy that sampled.

    Raises:
        DataError: the batch holds tokens that the model does not know.
    """
    batch = rollout.batch
    largest = max(int(batch["prompts"].max()), int(batch["responses"].max()))
    if largest >= policy.shape.vocab_size:
        raise DataError(
            f"{rollout.path} holds token {largest} and the model in {folder} knows {policy.shape.vocab_size} tokens; "
            "give the model that sampled it, or one trained from it"
        )
    found = policy.log_probs(batch)
    return PolicyPair(
        log_probs=found["old_log_probs"],
        old_log_probs=batch["old_log_probs"],
        entropy=found["entropy"],
        origin=f"the model in {folder} against the policy that sampled (old_log_probs)",
    )


def _column(batch: DataProto, name: str) -> Tensor | None:
    """A column in fp64, None where the batch lacks it."""
    return batch[name].double() if name in batch else None
