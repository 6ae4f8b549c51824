"""Policy losses: the registry, what a loss sees, and the built-in losses, one file each."""

from cfpo_hybrid.algorithms.policy_loss.cfpo import CfpoConfig
from cfpo_hybrid.algorithms.policy_loss.cispo import CispoConfig
from cfpo_hybrid.algorithms.policy_loss.clip import ClipConfig
from cfpo_hybrid.algorithms.policy_loss.clip_cov import ClipCovConfig
from cfpo_hybrid.algorithms.policy_loss.clip_higher import ClipHigherConfig
from cfpo_hybrid.algorithms.policy_loss.dppo import DppoKlConfig, DppoTvConfig
from cfpo_hybrid.algorithms.policy_loss.drpo import DrpoConfig
from cfpo_hybrid.algorithms.policy_loss.dual_clip import DualClipConfig
from cfpo_hybrid.algorithms.policy_loss.gmpo import GmpoConfig
from cfpo_hybrid.algorithms.policy_loss.gspo import GspoConfig
from cfpo_hybrid.algorithms.policy_loss.inputs import LOG_RATIO_LIMIT, PolicyLossInputs
from cfpo_hybrid.algorithms.policy_loss.kl_cov import KlCovConfig
from cfpo_hybrid.algorithms.policy_loss.kl_penalty import KlPenaltyConfig
from cfpo_hybrid.algorithms.policy_loss.mini_batch import MiniBatchTokens
from cfpo_hybrid.algorithms.policy_loss.policy_gradient import PolicyGradientConfig
from cfpo_hybrid.algorithms.policy_loss.registry import (
    LossDescription,
    PolicyLoss,
    TrustRegion,
    build_policy_loss,
    describe_losses,
    register_policy_loss,
)
from cfpo_hybrid.algorithms.policy_loss.sapo import SapoConfig
from cfpo_hybrid.algorithms.policy_loss.spo import SpoConfig

__all__ = [
    "LOG_RATIO_LIMIT",
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
    "LossDescription",
    "MiniBatchTokens",
    "PolicyGradientConfig",
    "PolicyLoss",
    "PolicyLossInputs",
    "SapoConfig",
    "SpoConfig",
    "TrustRegion",
    "build_policy_loss",
    "describe_losses",
    "register_policy_loss",
]
