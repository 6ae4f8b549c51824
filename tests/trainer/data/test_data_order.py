import numpy as np

from trainer.data.order import TRAINING, VALIDATION, epoch_order, prompts_at, stable_hash


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
