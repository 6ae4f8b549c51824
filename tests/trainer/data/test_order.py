"""Orders of prompts: seeded epochs, curricula by level, the same however they are cut; and the hash below them."""

import numpy as np
import pytest

from cfpo_hybrid.errors import DataError
from trainer.data.order import (
    TRAINING,
    VALIDATION,
    EpochByEpoch,
    Widening,
    epoch_order,
    level_of,
    level_ranks,
    mean_level,
    prompts_at,
    stable_hash,
)

LEVELS = np.array([0, 1, 2] * 4)  # prompts 0, 3, 6, 9 are easy, 2, 5, 8, 11 hard


def hash_by_hand(*keys):
    """SplitMix64's finaliser over the keys, in Python's own integers."""
    state = 0
    for key in keys:
        state = (state + key + 0x9E3779B97F4A7C15) % 2**64
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
        state ^= state >> 31
    return state >> 1


def test_the_hash_is_splitmix64():
    # Its published first output for seed 0 is 0xE220A8397B1DCDAF; halved, the lowest bit falls away.
    assert stable_hash(0).tolist() == [0xE220A8397B1DCDAF >> 1]
    keys = stable_hash(TRAINING, 1, 2, np.array([3, 4, 2**62]))
    assert keys.tolist() == [hash_by_hand(TRAINING, 1, 2, key) for key in (3, 4, 2**62)]


def test_hashes_are_63_bits_and_differ_for_every_key():
    grid = stable_hash(TRAINING, 5, np.arange(10)[:, None, None], np.arange(64)[:, None], np.arange(8))
    assert grid.shape == (10, 64, 8) and grid.dtype == np.int64
    assert (grid >= 0).all() and grid.max() > 2**62
    other_seed = stable_hash(TRAINING, 6, np.arange(10)[:, None, None], np.arange(64)[:, None], np.arange(8))
    validation = stable_hash(VALIDATION, 5, np.arange(10)[:, None, None], np.arange(64)[:, None], np.arange(8))
    assert len(np.unique([grid, other_seed, validation])) == 3 * grid.size
    assert stable_hash(1, 2) != stable_hash(2, 1)


def test_an_epoch_is_a_permutation_and_the_next_one_another():
    first, second = epoch_order(3, 0, 100), epoch_order(3, 1, 100)
    assert sorted(first) == sorted(second) == list(range(100))
    assert (first != second).any() and (first != epoch_order(4, 0, 100)).any()
    assert (first == epoch_order(3, 0, 100)).all()


def test_positions_of_a_permutation_are_evenly_spread():
    # Over 400 epochs the place of prompt 0 among 10 has mean 4.5 +- 2.87 / sqrt(400) = 0.14.
    places = [int(np.flatnonzero(epoch_order(0, epoch, 10) == 0)[0]) for epoch in range(400)]
    assert abs(np.mean(places) - 4.5) < 5 * 0.144


def test_however_the_walk_is_cut_it_is_the_same():
    whole = prompts_at(0, 35, 10, seed=1)
    assert (
        np.concatenate([prompts_at(0, 4, 10, 1), prompts_at(4, 20, 10, 1), prompts_at(24, 11, 10, 1)]) == whole
    ).all()
    for epoch in range(3):  # every prompt once an epoch, though batches reach over its end
        assert sorted(whole[10 * epoch : 10 * epoch + 10]) == list(range(10))


def test_without_a_seed_the_order_is_that_of_the_files():
    assert prompts_at(8, 5, 10, seed=None).tolist() == [8, 9, 0, 1, 2]


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
def test_however_an_order_is_cut_it_is_the_same(order):
    whole = order.at(0, 40)
    cut = np.concatenate([order.at(0, 5), order.at(5, 8), order.at(13, 27)])
    assert (cut == whole).all()
