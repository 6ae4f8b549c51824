"""Gradients of losses with respect to the log-probs of a frozen rollout: no model is needed."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cfpo_hybrid.algorithms.aggregate import LossDenominators, token_weights
from cfpo_hybrid.algorithms.metrics import MetricSums
from cfpo_hybrid.algorithms.objective import PolicyObjective
from cfpo_hybrid.algorithms.policy_loss import MiniBatchTokens, PolicyLoss, PolicyLossInputs
from trainer.lab.comparison import Comparison


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenReading:
    """One loss on the rollout.

    Args:
        loss: whose reading.
        metrics: those that a training step would log, ``actor/loss`` among them.
        gradient: of the loss with respect to the log-probs of the counted tokens, ``[token]`` fp64.
        weights: of the counted tokens, ``[token]`` fp64: d objective / d log pi over the token's share of the loss and
            its advantage. 1 is the plain policy gradient's, 0 no gradient, below 0 a push against the advantage; NaN
            where the advantage is 0.
    """

    loss: PolicyLoss
    metrics: Mapping[str, float]
    gradient: Tensor
    weights: Tensor


def read_tokens(losses: Sequence[PolicyLoss], inputs: PolicyLossInputs, aggregation: str) -> list[TokenReading]:
    """Every loss on the whole rollout as one mini-batch.

    Raises:
        BatchError: a loss needs an input that is absent.
    """
    return [_read(PolicyObjective(loss=loss, aggregation=aggregation), inputs) for loss in losses]


def compare_tokens(readings: Sequence[TokenReading]) -> Comparison:
    """Norms and cosines of the gradients with respect to the log-probs."""
    return Comparison.of([reading.gradient for reading in readings])


def _read(objective: PolicyObjective, inputs: PolicyLossInputs) -> TokenReading:
    loss, denominators = objective.loss, LossDenominators.of_mask(inputs.mask)
    tokens = MiniBatchTokens.of(inputs.old_log_probs, inputs.advantages, inputs.mask)
    seen = dataclasses.replace(inputs, statistics=loss.statistics(tokens))
    output = objective(seen, denominators)
    (gradient,) = torch.autograd.grad(output.loss, seen.log_probs)
    counted = gradient[inputs.mask]
    sums = MetricSums()
    sums.add(output.metrics)
    shares = (token_weights(inputs, objective.aggregation, denominators) * inputs.advantages)[inputs.mask]
    weights = (-counted / shares).masked_fill(shares == 0, float("nan"))
    return TokenReading(loss=loss, metrics=sums.reduce(), gradient=counted, weights=weights)
