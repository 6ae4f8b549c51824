"""DAPO's clip: a wider bound above than below."""

from dataclasses import dataclass

from torch import Tensor

from cfpo_hybrid.algorithms.policy_loss.clip import ClipConfig, clip
from cfpo_hybrid.algorithms.policy_loss.inputs import PolicyLossInputs
from cfpo_hybrid.algorithms.policy_loss.registry import register_policy_loss


@dataclass(frozen=True, kw_only=True)
class ClipHigherConfig(ClipConfig):
    """Knobs of ``clip_higher``: those of ``clip`` with DAPO's bounds."""

    clip_high: float = 0.28
    """Ratios above 1 + clip_high are clipped."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clip_high <= self.clip_low:
            raise ValueError(
                f"clip_high={self.clip_high} must be larger than clip_low={self.clip_low}; 'clip' takes any bounds"
            )


@register_policy_loss("clip_higher", config=ClipHigherConfig, trust_region=lambda config: config.trust_region)
def clip_higher(inputs: PolicyLossInputs, config: ClipHigherConfig) -> Tensor:
    """The loss of ``clip`` with r clipped to [1 - 0.2, 1 + 0.28]: rare tokens may gain more than they may lose.

    Yu et al., 2025 (DAPO, arXiv 2503.14476), section 3.1. DAPO's other parts are settings of their own, e.g.
    ``algorithm.loss_aggregation=token_mean``.
    """
    return clip(inputs, config)
