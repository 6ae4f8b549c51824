"""The conformance suite passes what is right and names what is wrong."""

import pytest
import torch

from cfpo_hybrid import ConfigError, RegistryError, build_policy_loss, describe_losses, register_policy_loss
from cfpo_hybrid.algorithms.conformance import CHECKS, check_policy_loss, format_check_results
from cfpo_hybrid.algorithms.policy_loss.cfpo import CfpoConfig


def wrong_loss(name, **options):
    return register_policy_loss(f"conformance_test_{name}", config=CfpoConfig, **options)


@wrong_loss("sign")
def sign(inputs, config):
    return inputs.ratio * inputs.advantages


@wrong_loss("scalar")
def scalar(inputs, config):
    return (-inputs.ratio * inputs.advantages).sum()


@wrong_loss("overflow")
def overflow(inputs, config):
    return -(inputs.log_probs - inputs.old_log_probs).exp() * inputs.advantages


@wrong_loss("local_mean")
def local_mean(inputs, config):
    return -inputs.ratio * (inputs.advantages - torch.where(inputs.mask, inputs.advantages, 0.0).mean())


@wrong_loss("padding")
def padding(inputs, config):
    centre = inputs.log_probs.detach().mean()
    return -inputs.ratio * inputs.advantages * (1 + 0 * centre)


@wrong_loss("always_pulling")
def always_pulling(inputs, config):
    return -inputs.ratio * inputs.advantages + (inputs.ratio - 1).square()


@wrong_loss("in_place")
def in_place(inputs, config):
    return -inputs.ratio * inputs.advantages.add_(0.1)


@wrong_loss("detached")
def detached(inputs, config):
    return -inputs.ratio.detach() * inputs.log_probs * inputs.advantages


@wrong_loss("detached_on_purpose", stops_gradient=True)
def detached_on_purpose(inputs, config):
    return -inputs.ratio.detach().clamp(max=5.0) * inputs.log_ratio * inputs.advantages


@wrong_loss("dropping")
def dropping(inputs, config):
    return torch.where(inputs.old_log_probs > -0.5, 0.0, -inputs.ratio * inputs.advantages)


@wrong_loss("dropping_on_purpose", drops_tokens=True)
def dropping_on_purpose(inputs, config):
    return dropping(inputs, config)


@wrong_loss("local_statistics", statistics=lambda tokens, config: tokens.mean(tokens.advantages))
def local_statistics(inputs, config):
    """Right about the mean of the mini-batch, wrong about the largest ratio, which it takes from the micro-batch."""
    return -inputs.ratio / inputs.ratio.detach().amax() * (inputs.advantages + 0 * inputs.statistics)


@wrong_loss("shared_gradient")
def shared_gradient(inputs, config):
    """GSPO's ratio, its gradient shared by the tokens: each gets the mean advantage of its response."""
    return -inputs.sequence_mean(inputs.log_ratio).exp() * inputs.advantages


@wrong_loss("sequence", stops_gradient=True)
def sequence(inputs, config):
    """GSPO-token's ratio: one a response, whose gradient each token gets for itself."""
    return -inputs.sequence_ratio(inputs.log_ratio) * inputs.advantages


@wrong_loss("demanding", needs=["rollout_log_probs", "ref_log_probs", "entropy"])
def demanding(inputs, config):
    weight = (inputs.old_log_probs - inputs.rollout_log_probs).exp()
    return -inputs.ratio * inputs.advantages * weight + 0 * (inputs.entropy + inputs.ref_log_probs)


def failures(name, **knobs):
    return {result.name for result in check_policy_loss(name, **knobs) if not result.passed}


BUILT_IN = (
    *("cfpo", "cispo", "clip", "clip_cov", "clip_higher", "dppo_kl", "dppo_tv", "drpo", "dual_clip", "gmpo", "gspo"),
    *("kl_cov", "kl_penalty", "policy_gradient", "sapo", "spo"),
)


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_losses_pass(name):
    assert failures(name) == set()


def test_no_built_in_loss_is_forgotten():
    own = {loss.name for loss in describe_losses() if "policy_loss/" in loss.source}
    assert own == set(BUILT_IN)


@pytest.mark.parametrize(
    ("name", "knobs"),
    [
        ("clip", {"clip_low": 0.1, "clip_high": 0.28}),
        ("cfpo", {"epsilon": 0.05}),
        # Bounds so tight, and shares so large, that each loss does to many tokens what sets it apart.
        ("cispo", {"clip_low": 0.1, "clip_high": 0.1}),
        ("clip_cov", {"ratio": 0.3, "covariance_low": 0.0}),
        ("dppo_kl", {"delta": 0.005}),
        ("dppo_tv", {"delta": 0.02}),
        ("gmpo", {"log_clip_low": 0.1, "log_clip_high": 0.1}),
        ("gspo", {"clip_low": 0.05, "clip_high": 0.05}),
        ("kl_cov", {"ratio": 0.3, "kl_coef": 2.0}),
        ("policy_gradient", {"importance_weighted": True}),
        ("conformance_test_detached_on_purpose", {}),
        ("conformance_test_dropping_on_purpose", {}),
        ("conformance_test_sequence", {}),
        ("conformance_test_demanding", {}),
    ],
)
def test_sound_losses_pass_with_any_knobs(name, knobs):
    assert failures(name, **knobs) == set()


def test_a_penalty_without_the_advantage_pulls_where_there_is_none():
    assert failures("kl_penalty", advantage_weighted=False) == {"zero advantage, zero gradient"}


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("sign", "gradient at r = 1 is -A"),
        ("scalar", "one fp32 loss a token"),
        ("overflow", "extreme log-ratios"),
        ("local_mean", "split into micro-batches"),
        ("local_statistics", "split into micro-batches"),
        ("dropping", "gradient at r = 1 is -A"),
        ("shared_gradient", "the same where A differs by token"),
        ("padding", "NaN in the padding"),
        ("always_pulling", "zero advantage, zero gradient"),
        ("in_place", "one fp32 loss a token"),
        ("detached", "gradcheck in fp64"),
    ],
)
def test_each_mistake_is_caught_by_its_check(name, check):
    assert check in failures(f"conformance_test_{name}")


def test_the_table_shows_every_check_and_a_verdict():
    table = format_check_results("cfpo", check_policy_loss("cfpo"))
    assert all(title in table for title in CHECKS)
    assert table.endswith(f"all {len(CHECKS)} checks passed")
    broken = format_check_results("mine", check_policy_loss("conformance_test_sign"))
    assert "FAIL  gradient at r = 1 is -A" in broken
    assert broken.endswith(f"of {len(CHECKS)} checks failed")


def test_an_unknown_loss_or_knob_is_no_failed_check():
    with pytest.raises(RegistryError):
        check_policy_loss("no_such_loss")
    with pytest.raises(ConfigError):
        check_policy_loss("cfpo", epsilon=-1.0)


def test_trust_regions_follow_the_bounds():
    for name in ("clip", "dual_clip", "cfpo", "spo", "kl_penalty", "clip_cov"):
        region = build_policy_loss(name).trust_region
        assert (region.low, region.high) == (0.2, 0.2)
    assert build_policy_loss("clip_higher").trust_region.high == 0.28
    # exp(0.4) = 1.4918, exp(-0.4) = 0.6703
    region = build_policy_loss("gmpo").trust_region
    assert (region.low, region.high) == pytest.approx((0.3297, 0.4918), abs=1e-4)
