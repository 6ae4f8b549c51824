"""A policy loss of your own: one decorated function with its own knob.

Train with it:  cfpo train RECIPE policy_loss.plugins=[examples/custom_loss/my_loss.py] \
                    policy_loss.name=soft_gate policy_loss.sharpness=2
Check it:       cfpo check-loss soft_gate --plugins examples/custom_loss/my_loss.py
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cfpo_hybrid import PolicyLossInputs, register_policy_loss


@dataclass(frozen=True)
class SoftGateConfig:
    """Knobs of ``soft_gate``."""

    sharpness: float = 1.0
    """How fast the gate closes as the ratio leaves 1."""

    def __post_init__(self) -> None:
        if self.sharpness <= 0:
            raise ValueError(f"sharpness={self.sharpness} must be positive")


@register_policy_loss("soft_gate", config=SoftGateConfig)
def soft_gate(inputs: PolicyLossInputs, config: SoftGateConfig) -> Tensor:
    """A sigmoid gate in the place of the clip: -4 / sharpness sigmoid(sharpness (r - 1)) A (SAPO's form)."""
    gate = torch.sigmoid(config.sharpness * (inputs.ratio - 1))
    return -4 / config.sharpness * gate * inputs.advantages
