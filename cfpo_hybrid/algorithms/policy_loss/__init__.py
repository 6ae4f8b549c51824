"""Policy losses: the registry, what a loss sees, and the built-in losses, those of one idea in one file."""

from cfpo_hybrid.algorithms.policy_loss.cfpo import CfpoConfig
from cfpo_hybrid.algorithms.policy_loss.cispo import CispoConfig
from cfpo_hybrid.algorithms.policy_loss.clip import ClipConfig, ClipHigherConfig, DualClipConfig
from cfpo_hybrid.algorithms.policy_loss.covariance import ClipCovConfig, KlCovConfig
from cfpo_hybrid.algorithms.policy_loss.dppo import DppoKlConfig, DppoTvConfig
from cfpo_hybrid.algorithms.policy_loss.drpo import DrpoConfig
from cfpo_hybrid.algorithms.policy_loss.gmpo import GmpoConfig
from cfpo_hybrid.algorithms.policy_loss.gspo import GspoConfig
from cfpo_hybrid.algorithms.policy_loss.inputs import (
    LOG_RATIO_LIMIT,
    MiniBatchTokens,
    PerRowOrToken,
    PerToken,
    PolicyLossInputs,
    token_advantages,
)
from cfpo_hybrid.algorithms.policy_loss.kl_penalty import KlPenaltyConfig
from cfpo_hybrid.algorithms.policy_loss.policy_gradient import PolicyGradientConfig
from cfpo_hybrid.algorithms.policy_loss.registry import (
    POLICY_LOSSES,
    LossEntry,
    PolicyLoss,
    TrustRegion,
    build_policy_loss,
    describe_losses,
    register_policy_loss,
)
from cfpo_hybrid.algorithms.policy_loss.sapo import SapoConfig

__all__ = [
    "LOG_RATIO_LIMIT",
    "POLICY_LOSSES",
    "CfpoConfig",
    "CispoConfig",
    "ClipConfig",
    "ClipCovConfig",
    "ClipHigherConfig",
    "DppoKlConfig",
    "DppoTvConfig",
    "DrpoConfig",
    "DualClipConfig",
    "GmpoConfig",
    "GspoConfig",
    "KlCovConfig",
    "KlPenaltyConfig",
    "LossEntry",
    "MiniBatchTokens",
    "PerRowOrToken",
    "PerToken",
    "PolicyGradientConfig",
    "PolicyLoss",
    "PolicyLossInputs",
    "SapoConfig",
    "TrustRegion",
    "build_policy_loss",
    "describe_losses",
    "register_policy_loss",
    "token_advantages",
]
