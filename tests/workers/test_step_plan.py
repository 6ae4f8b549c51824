"""What a rollout step does, concluded from the configuration in one place."""

from typing import Any

import pytest

from cfpo_hybrid.algorithms.policy_loss import register_policy_loss
from cfpo_hybrid.algorithms.policy_loss.cfpo import CfpoConfig
from workers.config import AlgorithmConfig, PolicyLossConfig, RolloutConfig
from workers.step_plan import StepPlan


@register_policy_loss("plan_test_reference", config=CfpoConfig, needs=["ref_log_probs"])
def to_the_reference(inputs, config):
    return (inputs.log_probs - inputs.ref_log_probs).square()


def plan_of(loss: str = "cfpo", top_p: float = 1.0, **algorithm: Any) -> StepPlan:
    return StepPlan.of(AlgorithmConfig(**algorithm), PolicyLossConfig(name=loss), RolloutConfig(top_p=top_p))


@pytest.mark.parametrize(
    ("options", "needed"),
    [
        ({}, False),
        ({"batch_ratio": 2}, True),
        ({"weight_lag": 1}, True),
        ({"loss": "clip_cov"}, True),  # statistics of the mini-batch
        ({"top_p": 0.9}, True),  # the mass that truncated sampling keeps
        ({"kl_coef": 0.1}, True),
        ({"loss": "plan_test_reference"}, True),
        ({"batch_ratio": 2, "old_log_probs": "rollout"}, False),
        ({"kl_coef": 0.1, "old_log_probs": "rollout"}, True),
        ({"loss": "plan_test_reference", "old_log_probs": "rollout"}, True),
    ],
)
def test_when_the_pass_for_log_probs_has_something_to_add(options: dict, needed: bool):
    assert plan_of(**options).log_prob_pass is needed


@pytest.mark.parametrize(
    ("options", "present"),
    [({}, False), ({"kl_coef": 0.1}, True), ({"loss": "plan_test_reference"}, True), ({"loss": "clip"}, False)],
)
def test_when_there_is_a_reference(options: dict, present: bool):
    assert plan_of(**options).reference is present


@pytest.mark.parametrize(
    ("options", "in_reward", "in_loss"),
    [
        ({}, False, False),
        ({"kl_in_reward": True}, False, False),
        ({"kl_coef": 0.1}, False, True),
        ({"kl_coef": 0.1, "kl_in_reward": True}, True, False),
    ],
)
def test_where_the_kl_penalty_acts(options: dict, in_reward: bool, in_loss: bool):
    plan = plan_of(**options)
    assert (plan.kl_in_reward, plan.kl_in_loss) == (in_reward, in_loss)


@pytest.mark.parametrize(
    ("options", "steps", "off_policy", "lag"),
    [
        ({}, 1, 0, 0),
        ({"iterations": 4, "batch_ratio": 4}, 16, 15, 15),
        ({"weight_lag": 3}, 1, 1, 3),
        ({"iterations": 2, "batch_ratio": 2, "weight_lag": 3}, 4, 4, 15),
    ],
)
def test_how_far_training_is_from_the_policy_that_sampled(options: dict, steps: int, off_policy: int, lag: int):
    plan = plan_of(**options)
    assert (plan.optimizer_steps, plan.off_policy_steps, plan.largest_lag) == (steps, off_policy, lag)
    assert plan.on_policy is (off_policy == 0)


def test_only_remax_takes_a_greedy_baseline():
    assert plan_of(advantage="remax").greedy_baseline and not plan_of().greedy_baseline
