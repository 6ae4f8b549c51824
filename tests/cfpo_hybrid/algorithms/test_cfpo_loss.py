"""CFPO against its closed forms: equation 7, its optimum, its gradients and where they end."""

import math

import pytest
import torch

from cfpo_hybrid import ConfigError, PolicyLossInputs, build_policy_loss


def inputs_of(ratios, advantages, dtype=torch.float64):
    """Tokens with old log-prob -1 and the given ratios."""
    ratios = torch.as_tensor(ratios, dtype=torch.float64)
    old = torch.full_like(ratios, -1.0)
    return PolicyLossInputs(
        log_probs=(old + ratios.log()).to(dtype).requires_grad_(),
        old_log_probs=old.to(dtype),
        advantages=torch.as_tensor(advantages, dtype=dtype).expand(ratios.shape),
        mask=torch.ones(ratios.shape, dtype=torch.bool),
    )


def gradient_of_objective(ratios, advantages, **knobs):
    """What is maximised is minus the loss; its gradient with respect to each log-prob."""
    inputs = inputs_of(ratios, advantages)
    (gradient,) = torch.autograd.grad(-build_policy_loss("cfpo", **knobs)(inputs).sum(), inputs.log_probs)
    return gradient


def test_values_by_hand():
    # epsilon 0.2, so |A| / (2 epsilon) = 2.5 |A|:
    #   r=1.5, A=2:   1.5*2 - 5*0.25    =  1.75 -> loss -1.75
    #   r=0.5, A=-1: -0.5   - 2.5*0.25  = -1.125 -> loss 1.125
    #   r=1,   A=3:   3 - 0             -> loss -3
    inputs = inputs_of([1.5, 0.5, 1.0], [2.0, -1.0, 3.0])
    loss = build_policy_loss("cfpo", epsilon=0.2)(inputs)
    torch.testing.assert_close(loss, torch.tensor([-1.75, 1.125, -3.0], dtype=torch.float64))


@pytest.mark.parametrize(
    ("advantage", "expected"),
    [
        # r (A - |A| (r - 1) / 0.2): A=1, r=1.5 -> 1.5 (1 - 2.5) = -2.25; r=10 -> 10 (1 - 45) = -440
        (1.0, {0.6: 1.8, 1.0: 1.0, 1.2: 0.0, 1.5: -2.25, 2.0: -8.0, 3.0: -27.0, 10.0: -440.0}),
        # A=-1, r=0.5 -> 0.5 (-1 + 2.5) = 0.75; r=3 -> 3 (-1 - 10) = -33
        (-1.0, {0.5: 0.75, 0.8: 0.0, 1.0: -1.0, 1.5: -5.25, 3.0: -33.0, 10.0: -460.0}),
    ],
)
def test_gradient_table(advantage, expected):
    gradient = gradient_of_objective(list(expected), advantage, epsilon=0.2)
    torch.testing.assert_close(gradient, torch.tensor(list(expected.values()), dtype=torch.float64), atol=1e-9, rtol=0)


@pytest.mark.parametrize("epsilon", [0.05, 0.2, 0.5])
@pytest.mark.parametrize("advantage", [2.0, -0.3])
def test_optimum_is_the_edge_of_the_trust_region(epsilon, advantage):
    ratios = torch.linspace(0.2, 2.0, 18001, dtype=torch.float64)
    loss = build_policy_loss("cfpo", epsilon=epsilon)(inputs_of(ratios, advantage))
    assert float(ratios[loss.argmin()]) == pytest.approx(1 + math.copysign(epsilon, advantage), abs=1e-4)


def test_completing_the_square():
    # J = -|A| / (2 eps) (r - (1 + eps sign A))^2 + A + |A| eps / 2, checked for both signs.
    ratios, epsilon = torch.tensor([0.1, 0.9, 1.0, 1.3, 4.0], dtype=torch.float64), 0.3
    for advantage in (1.7, -0.6):
        target = 1 + math.copysign(epsilon, advantage)
        constant = advantage + abs(advantage) * epsilon / 2
        expected = -abs(advantage) / (2 * epsilon) * (ratios - target) ** 2 + constant
        loss = build_policy_loss("cfpo", epsilon=epsilon)(inputs_of(ratios, advantage))
        torch.testing.assert_close(-loss, expected)


def test_homogeneous_of_degree_one_in_the_advantage():
    ratios, advantages = [0.4, 1.0, 1.1, 2.5], torch.tensor([1.0, -2.0, 0.5, -0.1])
    loss = build_policy_loss("cfpo")
    torch.testing.assert_close(loss(inputs_of(ratios, 7 * advantages)), 7 * loss(inputs_of(ratios, advantages)))


def test_zero_advantage_feels_neither_pull_nor_penalty():
    inputs = inputs_of([0.1, 1.0, 5.0], 0.0)
    loss = build_policy_loss("cfpo")(inputs)
    (gradient,) = torch.autograd.grad(loss.sum(), inputs.log_probs)
    assert (loss == 0).all()
    assert (gradient == 0).all()


def test_corrective_gradient_survives_where_dual_clip_has_none():
    # A < 0 and r = 5: dual clip is flat there, CFPO pulls back with r (A - |A| (r - 1) / eps) = 5 (-1 - 20) = -105.
    inputs = inputs_of([5.0], -1.0)
    (flat,) = torch.autograd.grad(build_policy_loss("dual_clip")(inputs).sum(), inputs.log_probs)
    assert float(flat) == 0
    assert float(gradient_of_objective([5.0], -1.0)) == pytest.approx(-105.0)


def test_clamped_log_ratios_stay_finite_and_have_no_gradient():
    # At the clamp r = e^20, r^2 = 2.35e17: finite in fp32. Beyond it "everywhere non-zero gradient" is not true.
    for shift in (19.0, 25.0, 1000.0, -1000.0):
        inputs = PolicyLossInputs(
            log_probs=torch.tensor([-1.0 + shift]).requires_grad_(),
            old_log_probs=torch.tensor([-1.0]),
            advantages=torch.tensor([1.0]),
            mask=torch.tensor([True]),
        )
        loss = build_policy_loss("cfpo")(inputs)
        (gradient,) = torch.autograd.grad(loss.sum(), inputs.log_probs)
        assert loss.isfinite().all() and gradient.isfinite().all()
        assert (float(gradient) != 0) == (abs(shift) < 20)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_log_probs_are_raised_to_fp32(dtype):
    # (r - 1)^2 overflows fp16 above a log-ratio of 5.5; here log r = 8, r^2 = 8.9e6 > 65504.
    inputs = PolicyLossInputs(
        log_probs=torch.tensor([-1.0], dtype=dtype),
        old_log_probs=torch.tensor([-9.0], dtype=dtype),
        advantages=torch.tensor([1.0]),
        mask=torch.tensor([True]),
    )
    loss = build_policy_loss("cfpo")(inputs)
    assert loss.dtype == torch.float32
    # e^8 = 2980.958; 2.5 (2979.958)^2 - 2980.958 = 22,197,393
    assert float(loss) == pytest.approx(2.5 * (math.exp(8) - 1) ** 2 - math.exp(8), rel=1e-5)


@pytest.mark.parametrize("epsilon", [0.0, -0.1, math.inf, math.nan])
def test_epsilon_must_be_positive(epsilon):
    with pytest.raises(ConfigError, match="epsilon"):
        build_policy_loss("cfpo", epsilon=epsilon)
