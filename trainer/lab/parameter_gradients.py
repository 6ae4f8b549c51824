"""The same losses with a model behind the log-probs: gradients with respect to its parameters, one backward a loss.

Megatron-core is loaded with this module, so only a lab with a model imports it.
"""

from collections.abc import Sequence
from pathlib import Path

from cfpo_hybrid.algorithms.objective import PolicyObjective
from cfpo_hybrid.algorithms.policy_loss import PolicyLoss
from cfpo_hybrid.errors import DataError
from cfpo_hybrid.protocol import DataProto
from trainer.lab.comparison import Comparison
from trainer.lab.policy_pair import PolicyPair
from trainer.lab.saved_rollout import SavedRollout
from workers.lone_policy import lone_policy
from workers.megatron.policy import MegatronPolicy

__all__ = ["compare_parameters", "lone_policy", "model_pair"]


def model_pair(policy: MegatronPolicy, rollout: SavedRollout, folder: Path) -> PolicyPair:
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


def compare_parameters(
    policy: MegatronPolicy, batch: DataProto, losses: Sequence[PolicyLoss], aggregation: str
) -> Comparison:
    """Norms and cosines of the gradients over all parameters; every loss's gradient is held in fp32 at one time."""
    objectives = [PolicyObjective(loss=loss, aggregation=aggregation) for loss in losses]
    return Comparison.of([policy.gradient(batch, objective) for objective in objectives])
