"""Policy losses: the registry, what a loss sees, and the built-in losses, those of one idea in one file with their configs."""

from cfpo_hybrid.algorithms.policy_loss import (  # noqa: F401  (they register themselves)
    cfpo,
    cispo,
    clip,
    covariance,
    dppo,
    gmpo,
    gspo,
    kl_penalty,
    policy_gradient,
    sapo,
)
from cfpo_hybrid.algorithms.policy_loss.inputs import MiniBatchTokens, PerToken, PolicyLossInputs, token_advantages
from cfpo_hybrid.algorithms.policy_loss.registry import (
    POLICY_LOSSES,
    LossEntry,
    PolicyLoss,
    TrustRegion,
    build_policy_loss,
    describe_losses,
    register_policy_loss,
)

__all__ = [
    "POLICY_LOSSES",
    "LossEntry",
    "MiniBatchTokens",
    "PerToken",
    "PolicyLoss",
    "PolicyLossInputs",
    "TrustRegion",
    "build_policy_loss",
    "describe_losses",
    "register_policy_loss",
    "token_advantages",
]
