"""The conformance suite passes what is right and names what is wrong."""

import pytest
import torch

from cfpo_hybrid import ConfigError, RegistryError, build_policy_loss, register_policy_loss
from cfpo_hybrid.algorithms.conformance import CHECKS, check_policy_loss, format_check_results
from cfpo_hybrid.algorithms.policy_loss import CfpoConfig


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


@wrong_loss("sequence")
def sequence(inputs, config):
    """GSPO's ratio: one a response, its gradient shared by the tokens."""
    return -inputs.sequence_mean(inputs.log_ratio).exp() * inputs.advantages


@wrong_loss("demanding", needs=["rollout_log_probs", "ref_log_probs", "entropy"])
def demanding(inputs, config):
    weight = (inputs.old_log_probs - inputs.rollout_log_probs).exp()
    return -inputs.ratio * inputs.advantages * weight + 0 * (inputs.entropy + inputs.ref_log_probs)


def failures(name, **knobs):
    return {result.name for result in check_policy_loss(name, **knobs) if not result.passed}


@pytest.mark.parametrize(
    ("name", "knobs"),
    [
        ("clip", {}),
        ("clip", {"clip_low": 0.1, "clip_high": 0.28}),
        ("dual_clip", {}),
        ("cfpo", {}),
        ("cfpo", {"epsilon": 0.05}),
        ("conformance_test_detached_on_purpose", {}),
        ("conformance_test_sequence", {}),
        ("conformance_test_demanding", {}),
    ],
)
def test_sound_losses_pass(name, knobs):
    assert failures(name, **knobs) == set()


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("sign", "gradient at r = 1 is -A"),
        ("scalar", "one fp32 loss a token"),
        ("overflow", "extreme log-ratios"),
        ("local_mean", "split into micro-batches"),
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


def test_every_built_in_loss_has_a_trust_region_of_its_own():
    for name in ("clip", "dual_clip", "cfpo"):
        region = build_policy_loss(name).trust_region
        assert (region.low, region.high) == (0.2, 0.2)
