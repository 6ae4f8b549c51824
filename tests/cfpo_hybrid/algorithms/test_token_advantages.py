"""Advantages by row or by token: the same numbers bit for bit where they agree, and each token its own where they differ."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from published_losses import published_losses

from cfpo_hybrid import PolicyLossInputs, build_policy_loss
from cfpo_hybrid.algorithms.metrics import MetricSums
from cfpo_hybrid.algorithms.mismatch import RolloutCorrection
from cfpo_hybrid.algorithms.objective import AGGREGATIONS, LossDenominators, PolicyObjective
from cfpo_hybrid.algorithms.policy_loss import MiniBatchTokens

TIGHT = {
    **{"clip_cov": {"ratio": 0.3, "covariance_low": 0.0}, "gmpo": {"log_clip_low": 0.1, "log_clip_high": 0.1}},
    **{"gspo": {"clip_low": 0.05, "clip_high": 0.05}, "kl_cov": {"ratio": 0.3}},
}
"""Bounds at which the losses do to many tokens what sets them apart."""
CORRECTIONS = {
    "none": RolloutCorrection(),
    "token": RolloutCorrection(mode="truncate", upper=1.01),
    "sequence": RolloutCorrection(mode="mask", level="sequence", lower=0.9, reject_upper=1.02),
}


def batch(advantages, seed=0, dtype=torch.float32):
    """Padded rows of uneven length with everything a loss can ask for; NaN in the padding, but for advantages."""
    generator = torch.Generator().manual_seed(seed)
    rows, width = len(advantages), 7
    mask = torch.arange(width) < torch.randint(1, width + 1, (rows, 1), generator=generator)
    old = -torch.rand(rows, width, generator=generator, dtype=torch.float64)

    def noisy(scale):
        noise = torch.randn(old.shape, generator=generator, dtype=torch.float64)
        return (old + scale * noise).masked_fill(~mask, torch.nan).to(dtype)

    return PolicyLossInputs(
        log_probs=noisy(0.3),
        old_log_probs=noisy(0.0),
        advantages=advantages.to(dtype),
        mask=mask,
        rollout_log_probs=noisy(0.03),
        ref_log_probs=noisy(0.2),
        entropy=noisy(0.0).neg(),
    )


def outcome(objective, inputs, advantages):
    """Loss, gradients and metrics; the loss's statistics are taken from the advantages as they are given."""
    seen = dataclasses.replace(inputs, advantages=advantages)
    tokens = MiniBatchTokens.of(inputs.old_log_probs, advantages, inputs.mask)
    log_probs, entropy = inputs.log_probs.clone().requires_grad_(), inputs.entropy.clone().requires_grad_()
    seen = dataclasses.replace(seen, log_probs=log_probs, entropy=entropy, statistics=objective.loss.statistics(tokens))
    output = objective(seen, LossDenominators(num_tokens=23.0, num_sequences=6.0, max_length=7.0))
    output.loss.backward()
    sums = MetricSums()
    sums.add(output.metrics)
    return output.loss.detach(), log_probs.grad, entropy.grad, sums.reduce()


@pytest.mark.parametrize("name", published_losses().names())
@settings(max_examples=12, deadline=None)
@given(
    rows=st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=5),
    seed=st.integers(0, 9),
    aggregation=st.sampled_from(AGGREGATIONS),
    correction=st.sampled_from(sorted(CORRECTIONS)),
)
def test_an_advantage_laid_over_its_row_changes_no_bit(name, rows, seed, aggregation, correction):
    of_rows = torch.tensor(rows)
    inputs = batch(of_rows, seed)
    of_tokens = of_rows.unsqueeze(1).repeat(1, inputs.mask.shape[1])
    objective = PolicyObjective(
        loss=build_policy_loss(name, **TIGHT.get(name, {})),
        aggregation=aggregation,
        kl_coef=0.1,
        entropy_coef=0.01,
        correction=CORRECTIONS[correction],
    )
    by_row, by_token = (outcome(objective, inputs, each) for each in (of_rows, of_tokens))
    assert all(map(torch.equal, by_row[:3], by_token[:3]))
    assert by_row[3] == by_token[3]


ADVANTAGES = torch.tensor([[1.0, -2.0, 0.5], [-1.0, 3.0, 0.0]], dtype=torch.float64)
RATIOS = torch.tensor([[1.5, 0.5, 1.0], [0.9, 2.0, 1.0]], dtype=torch.float64)


def by_hand(name, **knobs):
    """Loss and gradient of each token, by old log-probs of 0."""
    log_probs = RATIOS.log().requires_grad_()
    inputs = PolicyLossInputs(
        log_probs, torch.zeros_like(RATIOS), ADVANTAGES, torch.tensor([[True] * 3, [True, True, False]])
    )
    loss = build_policy_loss(name, **knobs)(inputs)
    (gradient,) = torch.autograd.grad(loss.sum(), log_probs)
    return loss.detach().flatten().tolist(), gradient.flatten().tolist()


def test_cfpo_of_tokens_by_hand():
    # epsilon 0.5, so |A| / (2 epsilon) = |A|: the loss is |A| (r - 1)^2 - r A, its gradient r (2 |A| (r - 1) - A)
    #   A=1, r=1.5: 0.25 - 1.5; 1.5 (1 - 1)       A=-2, r=0.5: 0.5 + 1; 0.5 (-2 + 2)      A=0.5, r=1: -0.5; -0.5
    #   A=-1, r=0.9: 0.01 + 0.9; 0.9 (-0.2 + 1)   A=3, r=2: 3 - 6; 2 (6 - 3)
    loss, gradient = by_hand("cfpo", epsilon=0.5)
    assert loss == pytest.approx([-1.25, 1.5, -0.5, 0.91, -3.0, 0.0])
    assert gradient == pytest.approx([0.0, 0.0, -0.5, 0.72, 6.0, 0.0])


def test_gspo_of_tokens_by_hand():
    # s = (1.5 * 0.5 * 1)^(1/3) = 0.90856 and (0.9 * 2)^(1/2) = 1.34164, bounds [0.95, 1.2]: GSPO-token, equation 13.
    # Response 0 lies below: clipped where A < 0 alone, loss 0.95 * 2. Response 1 lies above: clipped where A > 0 alone.
    low, high = 0.75 ** (1 / 3), 1.8**0.5
    loss, gradient = by_hand("gspo", clip_low=0.05, clip_high=0.2)
    assert loss == pytest.approx([-low, 1.9, -0.5 * low, high, -3.6, 0.0])
    assert gradient == pytest.approx([-low, 0.0, -0.5 * low, high, 0.0, 0.0])


def test_gmpo_of_tokens_by_hand():
    # Bounds of +-log 1.25. Clipped are r = 1.5 with A > 0 to 1.25, r = 0.5 with A < 0 to 0.8, r = 2 with A > 0 to 1.25:
    # s = (1.25 * 0.8 * 1)^(1/3) = 1 and (0.9 * 1.25)^(1/2); a clipped token is still.
    bound = torch.tensor(1.25).log().item()
    loss, gradient = by_hand("gmpo", log_clip_low=bound, log_clip_high=bound)
    second = 1.125**0.5
    assert loss == pytest.approx([-1.0, 2.0, -0.5, second, -3 * second, 0.0], rel=1e-6)
    assert gradient == pytest.approx([0.0, 0.0, -0.5, second, 0.0, 0.0], rel=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_sequence_losses_have_their_own_gradient_where_a_response_shares_its_advantage(seed):
    # Each response's tokens are moved by the gradient of its ratio s, taken through the mean of all log-ratios.
    inputs = batch(torch.tensor([1.5, -0.5, 2.0, -1.0]), seed, torch.float64)
    low, high = 0.9, 1.15
    counts = inputs.mask.sum(dim=1, keepdim=True)

    def surrogate(name, log_probs):
        log_ratio = torch.where(inputs.mask, log_probs - inputs.old_log_probs, 0.0)
        if name == "gmpo":
            raised = inputs.advantages > 0
            log_ratio = torch.where(raised, log_ratio.clamp(max=math.log(high)), log_ratio.clamp(min=math.log(low)))
        ratio = (log_ratio.sum(dim=1, keepdim=True) / counts).exp().expand(inputs.mask.shape)
        bounded = ratio.clamp(low, high) if name == "gspo" else ratio
        return -torch.minimum(ratio * inputs.advantages, bounded * inputs.advantages)[inputs.mask]

    for name, knobs in (
        ("gspo", {"clip_low": 1 - low, "clip_high": high - 1}),
        ("gmpo", {"log_clip_low": -math.log(low), "log_clip_high": math.log(high)}),
    ):
        log_probs = inputs.log_probs.clone().requires_grad_()
        loss = build_policy_loss(name, **knobs)(dataclasses.replace(inputs, log_probs=log_probs))
        expected = surrogate(name, log_probs)
        torch.testing.assert_close(loss[inputs.mask], expected)
        (found,) = torch.autograd.grad(loss.sum(), log_probs)
        (wanted,) = torch.autograd.grad(expected.sum(), log_probs)
        torch.testing.assert_close(found[inputs.mask], wanted[inputs.mask], atol=1e-12, rtol=1e-12)


def test_metrics_count_tokens_by_the_sign_of_their_own_advantage():
    # Clipped by PPO at 0.2: r = 1.5 with A = 1 and r = 2 with A = 3, of three tokens with A > 0; r = 0.5 with A = -2, of two
    # with A < 0. CFPO corrects where |r - 1| > 0.2 goes with A: the same three, of five tokens.
    inputs = PolicyLossInputs(
        RATIOS.log(), torch.zeros_like(RATIOS), ADVANTAGES, torch.tensor([[True] * 3, [True, True, False]])
    )
    objective = PolicyObjective(loss=build_policy_loss("cfpo"))
    sums = MetricSums()
    sums.add(objective(inputs, LossDenominators.of_mask(inputs.mask)).metrics)
    found = sums.reduce()
    assert found["actor/clip_fraction"] == 3 / 5
    assert found["actor/clip_fraction_positive"] == 2 / 3
    assert found["actor/clip_fraction_negative"] == 1 / 2
    assert found["actor/corrective_share"] == 3 / 5
