"""Curricula: levels of rows, epochs from easy to hard, levels that come in one by one; the same however they are cut."""

import numpy as np
import pytest

from cfpo_hybrid.errors import DataError
from trainer.data.curriculum import EpochByEpoch, Widening, level_of, level_ranks, mean_level

LEVELS = np.array([0, 1, 2] * 4)  # prompts 0, 3, 6, 9 are easy, 2, 5, 8, 11 hard


def test_levels_are_numbers_in_whatever_form():
    values = ["Level 3", "3", 3, 3.0, "hard (2.5)", "Level ?", None, True, [3]]
    assert list(map(level_of, values)) == [3, 3, 3, 3, 2.5, None, None, None, None]
    assert level_ranks(["Level 5", "Level 2", "Level ?", 2, 9], "level").tolist() == [1, 0, 2, 0, 2]
    assert mean_level([{"level": "Level 2"}, {"level": "Level ?"}, {"level": 5}], "level") == 3.5
    with pytest.raises(DataError, match=r"no training row has a number in the column 'level'"):
        level_ranks(["easy", None], "level")


def test_each_epoch_goes_from_easy_to_hard_in_an_order_of_its_own():
    walk = EpochByEpoch(12, seed=3, levels=LEVELS).at(0, 24)
    assert LEVELS[walk].tolist() == ([0] * 4 + [1] * 4 + [2] * 4) * 2
    assert sorted(walk[:12]) == sorted(walk[12:]) == list(range(12))
    assert walk[:12].tolist() != walk[12:].tolist()
    assert EpochByEpoch(12, seed=None, levels=LEVELS).at(0, 6).tolist() == [0, 3, 6, 9, 1, 4]


def test_levels_come_in_one_by_one():
    # 18 prompts for 3 levels: level 1 comes in after 6 prompts, level 2 after 12.
    walk = Widening(LEVELS, seed=3, prompts=18).at(0, 36)
    assert set(LEVELS[walk[:6]]) == {0}
    assert set(LEVELS[walk[6:12]]) == {0, 1}
    assert sorted(walk[12:24]) == sorted(walk[24:36]) == list(range(12))
    assert sorted(walk[:4]) == [0, 3, 6, 9]  # an epoch of the easiest level


@pytest.mark.parametrize("order", [Widening(LEVELS, 3, 18), EpochByEpoch(12, 3, LEVELS), Widening(LEVELS, None, 2)])
def test_however_the_walk_is_cut_it_is_the_same(order):
    whole = order.at(0, 40)
    cut = np.concatenate([order.at(0, 5), order.at(5, 8), order.at(13, 27)])
    assert (cut == whole).all()
