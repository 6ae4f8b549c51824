"""Policy losses: the registry, what a loss sees, and the built-in losses, one file each."""

from cfpo_hybrid.algorithms.policy_loss.cfpo import CfpoConfig
from cfpo_hybrid.algorithms.policy_loss.clip import ClipConfig
from cfpo_hybrid.algorithms.policy_loss.dual_clip import DualClipConfig
from cfpo_hybrid.algorithms.policy_loss.inputs import LOG_RATIO_LIMIT, PolicyLossInputs
from cfpo_hybrid.algorithms.policy_loss.registry import (
    LossDescription,
    PolicyLoss,
    TrustRegion,
    build_policy_loss,
    describe_losses,
    register_policy_loss,
)

__all__ = [
    "LOG_RATIO_LIMIT",
    "CfpoConfig",
    "ClipConfig",
    "DualClipConfig",
    "LossDescription",
    "PolicyLoss",
    "PolicyLossInputs",
    "TrustRegion",
    "build_policy_loss",
    "describe_losses",
    "register_policy_loss",
]
