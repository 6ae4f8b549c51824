"""The scalar that a micro-batch minimises: policy loss, KL penalty and entropy bonus, with its metrics.

    sum over tokens of w (c policy_loss + kl_coef KL(pi || pi_ref) - entropy_coef H)      (equation 8 of the CFPO paper)

c is 1, or the weight that corrects for tokens being sampled from another distribution (``mismatch.py``).
Summed over the micro-batches and data-parallel ranks of a mini-batch this is the mini-batch's loss, since the weights w
carry global denominators. The gradient with respect to each token's log-prob is worked out here, at once: the metrics
look at it, and the backward pass hands it on to the model.

Aggregation is the weight w of each token in the loss of a mini-batch, ``sum(weights * per_token)``. Weights depend on the
whole mini-batch only through two numbers that every rank and micro-batch shares, so gradients add up to the same whatever
the split.

| mode | weight of a counted token | source |
|---|---|---|
| ``seq_mean_token_mean`` | 1 / (sequences x counted tokens of its response) | equation 8 of the CFPO paper |
| ``token_mean`` | 1 / counted tokens | DAPO (Yu et al., 2025), equation 8 |
| ``seq_mean_token_sum`` | 1 / sequences | Dr. GRPO (Liu et al., 2025) up to its constant |
| ``seq_mean_token_sum_norm`` | 1 / (sequences x longest allowed response) | Dr. GRPO, with the constant |

A response without counted tokens adds nothing to the sum, and still counts as a sequence: equation 8 divides by the
group's size, and a denominator that shrinks with the mask would depend on the split.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from cfpo_hybrid.algorithms.kl import KL_ESTIMATORS, reference_kl
from cfpo_hybrid.algorithms.metrics import Metric, token_metrics
from cfpo_hybrid.algorithms.mismatch import RolloutCorrection, mismatch_metrics
from cfpo_hybrid.algorithms.policy_loss.inputs import PerToken, PolicyLossInputs
from cfpo_hybrid.algorithms.policy_loss.registry import PolicyLoss
from cfpo_hybrid.errors import BatchError, ConfigError
from cfpo_hybrid.registry import missing_inputs

AGGREGATIONS = ("seq_mean_token_mean", "token_mean", "seq_mean_token_sum", "seq_mean_token_sum_norm")


@dataclass(frozen=True, slots=True, kw_only=True)
class LossDenominators:
    """What a mini-batch holds over all its micro-batches and data-parallel ranks.

    Example: responses of 3 and 1 counted tokens: ``LossDenominators(num_tokens=4.0, num_sequences=2.0)``.
    """

    num_tokens: float
    """Tokens that count."""
    num_sequences: float
    """Responses, those without counted tokens included."""
    max_length: float | None = None
    """Tokens that a response may have; only ``seq_mean_token_sum_norm`` asks."""

    @classmethod
    def of_mask(cls, response_mask: Shaped[Tensor, "batch response"]) -> "LossDenominators":
        """The counts of these rows, padded to the longest allowed response; ranks add theirs up."""
        rows, width = response_mask.shape
        return cls(num_tokens=float(response_mask.sum()), num_sequences=float(rows), max_length=float(width))


def token_weights(inputs: PolicyLossInputs, mode: str, denominators: LossDenominators) -> PerToken:
    """The weight of each token in the loss; 0 outside the mask.

    An empty mini-batch (no counted tokens anywhere) has weight 0 everywhere rather than 0/0.

    Raises:
        ConfigError: the mode is unknown.
        BatchError: the mode asks for the longest allowed response, which the denominators lack.
    """
    shape, dtype = inputs.log_probs.shape, torch.promote_types(inputs.log_probs.dtype, torch.float32)
    per_token = torch.tensor(1.0 / max(denominators.num_tokens, 1.0), dtype=dtype, device=inputs.mask.device)
    per_sequence = torch.tensor(1.0 / max(denominators.num_sequences, 1.0), dtype=dtype, device=inputs.mask.device)
    match mode:
        case "token_mean":
            return inputs.counted(per_token.expand(shape))
        case "seq_mean_token_sum":
            return inputs.counted(per_sequence.expand(shape))
        case "seq_mean_token_sum_norm":
            if denominators.max_length is None:
                raise BatchError("seq_mean_token_sum_norm divides by LossDenominators.max_length, which is not set")
            return inputs.counted((per_sequence / denominators.max_length).expand(shape))
        case "seq_mean_token_mean":
            return inputs.counted(inputs.spread(per_sequence / inputs.sequence_token_counts))
    raise ConfigError(f"aggregation {mode!r} is unknown; use one of {', '.join(AGGREGATIONS)}")


@dataclass(frozen=True, slots=True)
class ObjectiveOutput:
    """What one micro-batch gives."""

    loss: Float[Tensor, ""]
    """Its gradient reaches ``inputs.log_probs`` and ``inputs.entropy``; micro-batches add up."""
    metrics: dict[str, Metric]
    """Detached parts for ``MetricSums.add``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyObjective:
    """What the actor minimises.

    Example: ``objective = PolicyObjective(loss=build_policy_loss("cfpo"), kl_coef=0.01)``, then for each micro-batch
    ``objective(inputs, denominators).loss.backward()``.

    Raises:
        ConfigError: an unknown aggregation or estimator, or a negative coefficient.
    """

    loss: PolicyLoss
    aggregation: str = "seq_mean_token_mean"
    kl_coef: float = 0.0
    """beta of equation 8; the inputs must then hold ref_log_probs."""
    kl_estimator: str = "k3"
    entropy_coef: float = 0.0
    """Weight of the entropy that is added to what is maximised; the inputs must then hold entropy."""
    correction: RolloutCorrection = field(default_factory=RolloutCorrection)
    """Weights the policy loss by pi_old / pi_rollout; where it is active the inputs must hold rollout_log_probs."""

    def __post_init__(self) -> None:
        problems = []
        if self.aggregation not in AGGREGATIONS:
            problems.append(f"aggregation={self.aggregation!r} is unknown; use one of {', '.join(AGGREGATIONS)}")
        if self.kl_estimator not in KL_ESTIMATORS:
            problems.append(f"kl_estimator={self.kl_estimator!r} is unknown; use one of {', '.join(KL_ESTIMATORS)}")
        if not 0 <= self.kl_coef < float("inf"):
            problems.append(f"kl_coef={self.kl_coef} must be 0 or a positive number")
        if not abs(self.entropy_coef) < float("inf"):
            problems.append(f"entropy_coef={self.entropy_coef} must be a finite number")
        problems += [f"correction.{message}" for _, message in self.correction.problems()]
        if problems:
            raise ConfigError(problems)

    @property
    def needs(self) -> frozenset[str]:
        """Optional inputs that must be present: the loss's own, and those of KL, entropy bonus and correction."""
        kl = {"ref_log_probs"} if self.kl_coef else set()
        rollout = {"rollout_log_probs"} if self.correction.is_active else set()
        return self.loss.needs | kl | rollout | ({"entropy"} if self.entropy_coef else set())

    def __call__(self, inputs: PolicyLossInputs, denominators: LossDenominators) -> ObjectiveOutput:
        """The loss and metrics of one micro-batch; one without tokens gives loss 0 and empty metrics.

        Args:
            inputs: the tokens of the micro-batch, padded or packed.
            denominators: of the whole mini-batch, over all micro-batches and data-parallel ranks.

        Raises:
            BatchError: an input that is needed is absent.
        """
        missing = missing_inputs(inputs, self.needs)
        if missing:
            raise BatchError(f"the objective needs {', '.join(missing)}, which the inputs lack")
        leaves = _with_leaves(inputs)
        weights = token_weights(leaves, self.aggregation, denominators)
        corrected, correction_metrics = weights, {}
        if self.correction.is_active:
            correction, correction_metrics = self.correction.weigh(leaves)
            corrected = weights * correction
        value, log_prob_gradient, entropy_gradient = self._policy_term(leaves, corrected)
        metrics = token_metrics(leaves, log_prob_gradient, self.loss.trust_region)
        metrics |= mismatch_metrics(leaves) | correction_metrics
        if self.kl_coef:
            kl_value, kl_gradient, metrics["actor/ref_kl"] = self._kl_term(leaves, weights)
            value, log_prob_gradient = value + kl_value, log_prob_gradient + kl_gradient
        if self.entropy_coef:
            value = value - self.entropy_coef * (weights * leaves.counted(_present(leaves.entropy))).sum().detach()
            entropy_gradient = entropy_gradient - self.entropy_coef * weights
        metrics["actor/loss"] = Metric.total(value)
        gradients = (log_prob_gradient, entropy_gradient)
        return ObjectiveOutput(_KnownGradient.apply(value, inputs.log_probs, inputs.entropy, *gradients), metrics)

    def _policy_term(
        self, leaves: PolicyLossInputs, weights: PerToken
    ) -> tuple[Float[Tensor, ""], PerToken, Float[Tensor, "..."]]:
        """Value, and gradients with respect to the log-probs and the entropy."""
        with torch.enable_grad():
            total = (weights * self.loss(leaves)).sum()
        if not total.requires_grad:
            raise BatchError(f"policy loss '{self.loss.name}' does not depend on log_probs, so nothing can be learned")
        wanted = [leaves.log_probs] + ([leaves.entropy] if leaves.entropy is not None else [])
        found = torch.autograd.grad(total, wanted, allow_unused=True)
        # A loss may have computed 0 x NaN in the padding: its gradient there is made an exact 0.
        gradients = [leaves.counted(torch.zeros_like(leaves.log_probs) if each is None else each) for each in found]
        entropy_gradient = gradients[1] if len(gradients) > 1 else torch.zeros((), device=weights.device)
        return total.detach(), gradients[0], entropy_gradient

    def _kl_term(self, leaves: PolicyLossInputs, weights: PerToken) -> tuple[Float[Tensor, ""], PerToken, Metric]:
        """Weighted value, gradient with respect to the log-probs, and the mean KL as a metric."""
        reference = leaves.counted(_present(leaves.ref_log_probs))
        with torch.enable_grad():
            estimate = reference_kl(leaves.counted(leaves.log_probs), reference, self.kl_estimator)
            total = self.kl_coef * (weights * estimate).sum()
        (gradient,) = torch.autograd.grad(total, leaves.log_probs)
        return total.detach(), gradient, Metric.mean(estimate.detach().sum(), leaves.num_counted)


class _KnownGradient(torch.autograd.Function):
    """A scalar whose gradients are known already."""

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, log_probs: Tensor, entropy: Tensor | None, for_log_probs: Tensor, for_entropy: Tensor
    ) -> Tensor:
        ctx.save_for_backward(for_log_probs, for_entropy)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        for_log_probs, for_entropy = ctx.saved_tensors
        entropy = gradients[0] * for_entropy if ctx.needs_input_grad[2] else None
        return None, gradients[0] * for_log_probs, entropy, None, None


def _with_leaves(inputs: PolicyLossInputs) -> PolicyLossInputs:
    """The same values with log-probs and entropy cut off from the model, so that their gradients can be had here."""
    entropy = None if inputs.entropy is None else inputs.entropy.detach().requires_grad_()
    return dataclasses.replace(inputs, log_probs=inputs.log_probs.detach().requires_grad_(), entropy=entropy)


def _present(optional: PerToken | None) -> PerToken:
    assert optional is not None, "a need of the objective"
    return optional
