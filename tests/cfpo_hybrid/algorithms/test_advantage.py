"""Advantages by hand, over unequal and scattered groups, and at the numeric edges."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cfpo_hybrid import BatchError, RegistryError
from cfpo_hybrid.algorithms.advantage import compute_advantages
from cfpo_hybrid.errors import NumericsError


def advantages(name, rewards, groups):
    return compute_advantages(name, torch.tensor(rewards), torch.tensor(groups))


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


def test_groups_may_be_unequal_scattered_and_numbered_at_will():
    # group 900: rewards 1, 3 (std sqrt 2); group -4: rewards 2, 2, 5 (mean 3, std sqrt 3)
    result = advantages("grpo", [1.0, 2.0, 3.0, 2.0, 5.0], [900, -4, 900, -4, -4])
    two, three = 1 / math.sqrt(2), 1 / math.sqrt(3)
    assert result.tolist() == pytest.approx([-two, -three, two, -three, 2 * three], abs=1e-5)


@pytest.mark.parametrize("name", ["grpo", "grpo_no_std", "rloo"])
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, -1 / 3, 1e8])
def test_a_group_without_variance_gets_exactly_zero(name, reward):
    # A mean in fp32 of three times 0.1 is not 0.1; the rest over the std's floor of 1e-6 would be an advantage of 0.007.
    result = advantages(name, [reward] * 7, [5] * 7)
    assert (result == 0).all()


def test_the_std_does_not_cancel_on_a_large_offset():
    # sum of squares minus square of sums would lose everything at 1e6 in fp32.
    shifted = advantages("grpo", [1e6 + 1.0, 1e6, 1e6], [0, 0, 0])
    torch.testing.assert_close(shifted, advantages("grpo", [1.0, 0.0, 0.0], [0, 0, 0]))


@pytest.mark.parametrize("name", ["grpo", "grpo_no_std", "rloo"])
def test_a_group_of_one_is_refused(name):
    with pytest.raises(BatchError, match=r"group 7 has a single response.*rollout.group_size"):
        advantages(name, [1.0, 0.0, 1.0], [3, 3, 7])


def test_a_reward_that_is_not_finite_is_refused_with_its_row():
    for wrong in (math.nan, math.inf):
        with pytest.raises(NumericsError, match="row 1 is not finite"):
            advantages("grpo", [0.0, wrong], [0, 0])


def test_rewards_have_no_token_axis():
    with pytest.raises(BatchError, match="one a response"):
        compute_advantages("grpo", torch.zeros(2, 5), torch.zeros(2, dtype=torch.int64))


def test_an_empty_batch_has_no_advantages():
    assert compute_advantages("grpo", torch.zeros(0), torch.zeros(0, dtype=torch.int64)).shape == (0,)


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


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(9)))
def test_order_of_rows_does_not_matter(order):
    rewards = torch.tensor([0.0, 1.0, 1.0, 0.5, 0.25, 2.0, 3.0, 3.0, 3.0])
    groups = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    result = compute_advantages("grpo", rewards[order], groups[order])
    torch.testing.assert_close(result, compute_advantages("grpo", rewards, groups)[order])
