"""Group sequence policy optimisation: one ratio a response, and one clip."""

from dataclasses import dataclass

from cfpo_hybrid.algorithms.policy_loss.clip import ClipConfig, clipped_surrogate
from cfpo_hybrid.algorithms.policy_loss.inputs import PerToken, PolicyLossInputs
from cfpo_hybrid.algorithms.policy_loss.registry import register_policy_loss


@dataclass(frozen=True, kw_only=True)
class GspoConfig(ClipConfig):
    """Knobs of ``gspo``: bounds on the ratio of a response, which moves far less than those of its tokens."""

    clip_low: float = 3e-4
    """Responses whose ratio is below 1 - clip_low are clipped."""
    clip_high: float = 4e-4
    """Responses whose ratio is above 1 + clip_high are clipped."""


@register_policy_loss("gspo", config=GspoConfig, stops_gradient=True, aggregations=["seq_mean_token_mean"])
def gspo(inputs: PolicyLossInputs, config: GspoConfig) -> PerToken:
    """The loss -min(s A, clipped s A) at each token, s = exp(mean of log r over the response).

    Zheng et al., 2025 (arXiv 2507.18071), equations 5 and 7; the bounds are its section 5.1's. Advantages may differ
    along a response, so this is GSPO-token (section 4.3, equations 13 and 14): the token's own log-prob is moved by s A
    with the token's A, and by nothing where s lies beyond the bound that the token's A pulls to. Where all tokens of a
    response share an advantage that is GSPO itself: the same value, the same clipping and the same gradient, and a
    response is clipped as a whole. The metrics count tokens against 1 +- 0.2, since these bounds are no bounds on tokens.
    """
    ratio = inputs.sequence_ratio(inputs.log_ratio)
    return -clipped_surrogate(ratio, inputs.advantages, low=1 - config.clip_low, high=1 + config.clip_high)
