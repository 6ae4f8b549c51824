"""Group sequence policy optimisation: one ratio a response, and one clip."""

from dataclasses import dataclass

from torch import Tensor

from cfpo_hybrid.algorithms.policy_loss.clip import ClipConfig, clipped_surrogate
from cfpo_hybrid.algorithms.policy_loss.inputs import PolicyLossInputs
from cfpo_hybrid.algorithms.policy_loss.registry import register_policy_loss


@dataclass(frozen=True, kw_only=True)
class GspoConfig(ClipConfig):
    """Knobs of ``gspo``: bounds on the ratio of a response, which moves far less than those of its tokens."""

    clip_low: float = 3e-4
    """Responses whose ratio is below 1 - clip_low are clipped."""
    clip_high: float = 4e-4
    """Responses whose ratio is above 1 + clip_high are clipped."""


@register_policy_loss("gspo", config=GspoConfig)
def gspo(inputs: PolicyLossInputs, config: GspoConfig) -> Tensor:
    """The loss -min(s A, clipped s A) at each token, s = exp(mean of log r over the response).

    Zheng et al., 2025 (arXiv 2507.18071), equations 5 and 7; the bounds are its section 5.1's. Every token of a response
    carries the response's loss, of which its own log-prob moves 1 / length: summed over the tokens the gradient with
    respect to each log-prob is that of GSPO-token (equation 13) where all tokens share an advantage. A clipped response
    is clipped as a whole. The metrics count tokens against 1 +- 0.2, since these bounds are no bounds on tokens.
    """
    ratio = inputs.sequence_mean(inputs.log_ratio).exp()
    return -clipped_surrogate(ratio, inputs.advantages, low=1 - config.clip_low, high=1 + config.clip_high)
