"""Advantages by hand, over unequal and scattered groups, and at the numeric edges."""

import itertools
import math

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cfpo_hybrid import BatchError, ConfigError, RegistryError
from cfpo_hybrid.algorithms.advantage import ADVANTAGES, build_advantage, compute_advantages, register_advantage
from cfpo_hybrid.algorithms.rewards import AdvantageInputs
from cfpo_hybrid.errors import NumericsError

GROUP_RELATIVE = ["grpo", "grpo_no_std", "dr_grpo", "rloo", "opo", "reinforce_plus_plus_baseline", "pass_at_k"]


def advantages(name, rewards, groups, lengths=None, greedy=None, **knobs):
    inputs = AdvantageInputs(
        rewards=torch.tensor(rewards),
        group_ids=torch.tensor(groups),
        response_lengths=torch.tensor(lengths if lengths is not None else [3] * len(rewards)),
        greedy_rewards=None if greedy is None else torch.tensor(greedy),
    )
    return build_advantage(name, **knobs)(inputs)


def test_grpo_by_hand():
    # rewards 1, 0, 0: mean 1/3, unbiased std sqrt((4/9 + 1/9 + 1/9) / 2) = 0.57735
    #   (1 - 1/3) / 0.57735 = 1.15470, (0 - 1/3) / 0.57735 = -0.57735
    result = advantages("grpo", [1.0, 0.0, 0.0], [0, 0, 0])
    assert result.tolist() == pytest.approx([1.15470, -0.57735, -0.57735], abs=1e-5)


def test_no_std_by_hand():
    assert advantages("grpo_no_std", [1.0, 0.0, 0.0], [0, 0, 0]).tolist() == pytest.approx([2 / 3, -1 / 3, -1 / 3])


def test_rloo_by_hand():
    # Equation 10: 5 - (1 + 3) / 2 = 3; 1 - (5 + 3) / 2 = -3; 3 - (5 + 1) / 2 = 0
    assert advantages("rloo", [5.0, 1.0, 3.0], [0, 0, 0]).tolist() == pytest.approx([3.0, -3.0, 0.0])


def test_the_floor_of_the_std_is_a_knob():
    # rewards 0, 0.001: std 0.000707; TRL's floor of 1e-4 matters: 0.0005 / 0.000807 = 0.6195
    result = advantages("grpo", [0.0, 0.001], [0, 0], std_floor=1e-4)
    assert result.tolist() == pytest.approx([-0.6195, 0.6195], abs=1e-4)


def test_dr_grpo_is_grpo_without_the_std():
    rewards, groups = [1.0, 0.0, 0.0, 2.0, 5.0], [0, 0, 0, 1, 1]
    assert torch.equal(advantages("dr_grpo", rewards, groups), advantages("grpo_no_std", rewards, groups))


def test_opo_by_hand():
    # Lengths 1 and 3: baseline (1 * 1 + 3 * 0) / 4 = 0.25. Equal lengths: the plain mean. Empty ones too.
    result = advantages("opo", [1.0, 0.0, 1.0, 0.0, 1.0, 0.0], [0, 0, 1, 1, 2, 2], lengths=[1, 3, 5, 5, 0, 0])
    assert result.tolist() == pytest.approx([0.75, -0.25, 0.5, -0.5, 0.5, -0.5])


def test_reinforce_plus_plus_by_hand():
    # Rewards 1, 0, 0, 3 over both groups: mean 1, unbiased variance (0 + 1 + 1 + 4) / 3 = 2
    root = math.sqrt(2)
    result = advantages("reinforce_plus_plus", [1.0, 0.0, 0.0, 3.0], [0, 0, 1, 1])
    assert result.tolist() == pytest.approx([0.0, -1 / root, -1 / root, 2 / root])
    # With the groups' baselines 0.5 and 1.5: +-0.5 and +-1.5, variance (0.5 + 4.5) / 3
    root = math.sqrt(5 / 3)
    result = advantages("reinforce_plus_plus_baseline", [1.0, 0.0, 0.0, 3.0], [0, 0, 1, 1])
    assert result.tolist() == pytest.approx([0.5 / root, -0.5 / root, -1.5 / root, 1.5 / root])


def test_reinforce_plus_plus_and_remax_take_single_responses():
    assert advantages("reinforce_plus_plus", [1.0, 3.0], [0, 1]).tolist() == pytest.approx([-0.7071, 0.7071], abs=1e-4)
    assert advantages("reinforce_plus_plus", [5.0], [0]).tolist() == [0.0]
    assert advantages("remax", [1.0, 0.0, 0.5], [0, 1, 1], greedy=[0.25, 1.0, 1.0]).tolist() == [0.75, -1.0, -0.5]


def test_pass_at_k_by_hand():
    # Rewards 5, 1, 3, k = 2: each against one of the two others. 5: mean(4, 2); 1: 0; 3: mean(0, 2).
    assert advantages("pass_at_k", [5.0, 1.0, 3.0], [0, 0, 0], k=2).tolist() == pytest.approx([3.0, 0.0, 1.0])
    # k = n = 3: the best gets what it is better than the second.
    assert advantages("pass_at_k", [5.0, 1.0, 3.0], [0, 0, 0], k=3).tolist() == pytest.approx([2.0, 0.0, 0.0])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(-3, 3)), min_size=1, max_size=5), st.integers(2, 4))
def test_pass_at_k_equals_a_loop_over_subsets(pairs, k):
    pairs = pairs * 4  # no group smaller than k
    groups, rewards = [group for group, _ in pairs], [float(reward) for _, reward in pairs]
    result = advantages("pass_at_k", rewards, groups, k=k)
    for row, group in enumerate(groups):
        others = [rewards[each] for each in range(len(groups)) if groups[each] == group and each != row]
        gains = [max(rewards[row] - max(subset), 0.0) for subset in itertools.combinations(others, k - 1)]
        assert float(result[row]) == pytest.approx(sum(gains) / len(gains), abs=1e-5)


def test_groups_may_be_unequal_scattered_and_numbered_at_will():
    # group 900: rewards 1, 3 (std sqrt 2); group -4: rewards 2, 2, 5 (mean 3, std sqrt 3)
    result = advantages("grpo", [1.0, 2.0, 3.0, 2.0, 5.0], [900, -4, 900, -4, -4])
    two, three = 1 / math.sqrt(2), 1 / math.sqrt(3)
    assert result.tolist() == pytest.approx([-two, -three, two, -three, 2 * three], abs=1e-5)


@pytest.mark.parametrize("name", [*GROUP_RELATIVE, "reinforce_plus_plus"])
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, -1 / 3, 1e8])
def test_a_group_without_variance_gets_exactly_zero(name, reward):
    # A mean in fp32 of three times 0.1 is not 0.1; the rest over the std's floor of 1e-6 would be an advantage of 0.007.
    result = advantages(name, [reward] * 7, [5] * 7)
    assert (result == 0).all()


def test_the_std_does_not_cancel_on_a_large_offset():
    # sum of squares minus square of sums would lose everything at 1e6 in fp32.
    shifted = advantages("grpo", [1e6 + 1.0, 1e6, 1e6], [0, 0, 0])
    torch.testing.assert_close(shifted, advantages("grpo", [1.0, 0.0, 0.0], [0, 0, 0]))


@pytest.mark.parametrize("name", GROUP_RELATIVE)
def test_a_group_of_one_is_refused(name):
    with pytest.raises(BatchError, match=r"group 7 has a single response.*compares 2 or more"):
        advantages(name, [1.0, 0.0, 1.0], [3, 3, 7])


def test_a_group_smaller_than_k_is_refused():
    with pytest.raises(BatchError, match=r"group 1 has 3 responses.*compares 4 or more"):
        advantages("pass_at_k", [1.0] * 7, [0, 0, 0, 0, 1, 1, 1], k=4)


def test_a_reward_that_is_not_finite_is_refused_with_its_row():
    for wrong in (math.nan, math.inf):
        with pytest.raises(NumericsError, match="row 1 is not finite"):
            advantages("grpo", [0.0, wrong], [0, 0])


def test_rewards_have_no_token_axis(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as in training
    with pytest.raises(BatchError, match="one a response"):
        compute_advantages("grpo", torch.zeros(2, 5), torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize("name", ["grpo", "reinforce_plus_plus", "pass_at_k"])
def test_an_empty_batch_has_no_advantages(name):
    assert compute_advantages(name, torch.zeros(0), torch.zeros(0, dtype=torch.int64)).shape == (0,)


def test_unknown_estimator_names_the_nearest():
    with pytest.raises(RegistryError, match="did you mean 'grpo"):
        advantages("gropo", [0.0, 1.0], [0, 0])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.floats(-100, 100, width=32)), min_size=1, max_size=30))
def test_grpo_equals_a_loop_over_groups(pairs):
    pairs = pairs + pairs  # no group of one
    groups, rewards = [group for group, _ in pairs], [reward for _, reward in pairs]
    result = advantages("grpo", rewards, groups)
    for group in set(groups):
        rows = [row for row, each in enumerate(groups) if each == group]
        own = torch.tensor([rewards[row] for row in rows], dtype=torch.float64)
        expected = (own - own.mean()) / (own.std() + 1e-6)
        torch.testing.assert_close(result[rows].double(), expected, atol=1e-5, rtol=1e-4)


@settings(max_examples=10, deadline=None)
@given(st.sampled_from(GROUP_RELATIVE), st.permutations(range(9)))
def test_order_of_rows_does_not_matter(name, order):
    rewards = torch.tensor([0.0, 1.0, 1.0, 0.5, 0.25, 2.0, 3.0, 3.0, 3.0])
    groups = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    lengths = torch.arange(9)
    estimator = build_advantage(name)
    whole = estimator(AdvantageInputs(rewards=rewards, group_ids=groups, response_lengths=lengths))
    result = estimator(
        AdvantageInputs(rewards=rewards[order], group_ids=groups[order], response_lengths=lengths[order])
    )
    torch.testing.assert_close(result, whole[order])


def test_needs_must_be_met():
    with pytest.raises(BatchError, match="needs response_lengths"):
        compute_advantages("opo", torch.zeros(2), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(BatchError, match="needs greedy_rewards"):
        advantages("remax", [0.0], [0])


def test_knobs_are_checked_as_those_of_losses_are():
    with pytest.raises(ConfigError, match=r"^K=2: 'pass_at_k' has no such knob; its knobs: k"):
        build_advantage("pass_at_k", K=2)
    with pytest.raises(ConfigError, match="its knobs: none"):
        build_advantage("rloo", k=2)
    for name, knobs in (
        ("pass_at_k", {"k": 1}),
        ("grpo", {"std_floor": 0.0}),
        ("reinforce_plus_plus", {"std_floor": -1}),
    ):
        with pytest.raises(ConfigError, match="must be"):
            build_advantage(name, **knobs)


def test_registration_checks_name_config_and_needs():
    def centred(groups, config):
        return groups.centred

    with pytest.raises(RegistryError, match="registered twice"):
        register_advantage("grpo")(centred)
    with pytest.raises(ConfigError, match="frozen dataclass"):
        register_advantage("advantage_test_never", config=dict)(centred)
    with pytest.raises(ConfigError, match="response_lengths, greedy_rewards"):
        register_advantage("advantage_test_never", needs=["entropy"])(centred)
    assert "advantage_test_never" not in ADVANTAGES
