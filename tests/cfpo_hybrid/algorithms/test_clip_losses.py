"""Clip and dual clip: hand calculations, where gradients stop, and what is not hidden in which."""

import pytest
import torch

from cfpo_hybrid import ConfigError, PolicyLossInputs, build_policy_loss

RATIOS = [0.5, 0.7, 0.9, 1.0, 1.1, 1.3, 3.5]


def inputs_of(ratios, advantage):
    ratios = torch.tensor(ratios, dtype=torch.float64)
    old = torch.full_like(ratios, -2.0)
    return PolicyLossInputs(
        log_probs=(old + ratios.log()).requires_grad_(),
        old_log_probs=old,
        advantages=torch.full_like(ratios, advantage),
        mask=torch.ones(ratios.shape, dtype=torch.bool),
    )


def evaluate(name, ratios, advantage, **knobs):
    inputs = inputs_of(ratios, advantage)
    loss = build_policy_loss(name, **knobs)(inputs)
    (gradient,) = torch.autograd.grad(loss.sum(), inputs.log_probs)
    return loss.detach(), gradient


def test_clip_by_hand():
    # A = 2: -2 min(r, 1.2);  A = -2: 2 max(r, 0.8)
    positive, _ = evaluate("clip", RATIOS, 2.0)
    negative, _ = evaluate("clip", RATIOS, -2.0)
    torch.testing.assert_close(positive, -2 * torch.tensor([0.5, 0.7, 0.9, 1.0, 1.1, 1.2, 1.2], dtype=torch.float64))
    torch.testing.assert_close(negative, 2 * torch.tensor([0.8, 0.8, 0.9, 1.0, 1.1, 1.3, 3.5], dtype=torch.float64))


@pytest.mark.parametrize("advantage", [1.5, -0.4, 0.0])
@pytest.mark.parametrize(("low", "high"), [(0.2, 0.2), (0.1, 0.4)])
def test_clip_equals_equation_6_as_written(advantage, low, high):
    inputs = inputs_of(RATIOS, advantage)
    clipped = inputs.ratio.clamp(1 - low, 1 + high)
    expected = -torch.minimum(inputs.ratio * advantage, clipped * advantage)
    torch.testing.assert_close(build_policy_loss("clip", clip_low=low, clip_high=high)(inputs), expected)


def test_gradient_is_zero_exactly_where_ppo_clips():
    # d/dlogp of -A r is -A r.
    ratios = torch.tensor(RATIOS, dtype=torch.float64)
    _, positive = evaluate("clip", RATIOS, 1.0)
    _, negative = evaluate("clip", RATIOS, -1.0)
    torch.testing.assert_close(positive, torch.where(ratios > 1.2, 0.0, -ratios))
    torch.testing.assert_close(negative, torch.where(ratios < 0.8, 0.0, ratios))


def test_asymmetric_bounds_are_independent():
    # clip_high 0.5 lets r = 1.3 through for A > 0; clip_low 0.4 lets r = 0.7 through for A < 0.
    _, positive = evaluate("clip", RATIOS, 1.0, clip_high=0.5)
    _, negative = evaluate("clip", RATIOS, -1.0, clip_low=0.4)
    assert (positive != 0).tolist() == [True] * 6 + [False]
    assert (negative != 0).tolist() == [False] + [True] * 6


def test_clip_hides_no_lower_bound():
    # verl's "vanilla" is dual-clipped: at A = -1, r = 3.5 its loss is 3 with gradient 0. Plain clip goes on.
    plain, plain_gradient = evaluate("clip", [3.5], -1.0)
    dual, dual_gradient = evaluate("dual_clip", [3.5], -1.0)
    assert float(plain) == pytest.approx(3.5) and float(plain_gradient) == pytest.approx(3.5)
    assert float(dual) == pytest.approx(3.0) and float(dual_gradient) == 0


@pytest.mark.parametrize("advantage", [2.0, -2.0, 0.0])
def test_dual_clip_equals_verls_formula(advantage):
    # verl core_algos: max(-A r, -A clip(r)), then where A < 0 the minimum of that and -A c.
    inputs = inputs_of(RATIOS, advantage)
    single = torch.maximum(-advantage * inputs.ratio, -advantage * inputs.ratio.clamp(0.8, 1.2))
    expected = torch.minimum(single, torch.full_like(single, -advantage * 2.0)) if advantage < 0 else single
    torch.testing.assert_close(build_policy_loss("dual_clip", dual_clip=2.0)(inputs), expected)


def test_dual_clip_touches_negative_advantages_only():
    for advantage, equal in ((1.0, True), (-1.0, False)):
        plain, _ = evaluate("clip", RATIOS, advantage)
        dual, _ = evaluate("dual_clip", RATIOS, advantage)
        assert torch.equal(plain, dual) == equal


@pytest.mark.parametrize(
    ("name", "knobs", "message"),
    [
        ("clip", {"clip_low": 0.0}, "clip_low"),
        ("clip", {"clip_low": 1.5}, r"\(0, 1\]"),
        ("clip", {"clip_high": -0.2}, "clip_high"),
        ("dual_clip", {"dual_clip": 1.1}, "1 \\+ clip_high"),
        ("dual_clip", {"clip_low": 2.0}, "clip_low"),
    ],
)
def test_bounds_are_checked(name, knobs, message):
    with pytest.raises(ConfigError, match=message):
        build_policy_loss(name, **knobs)
