import torch

from trainer.rollout.mini_batches import assign_mini_batches


def test_whole_groups_in_mini_batches_of_equal_size():
    group_ids = torch.arange(12).repeat_interleave(3)
    mini_batch = assign_mini_batches(group_ids, 4, seed=1, step=5)
    assert mini_batch.bincount().tolist() == [9, 9, 9, 9]  # 3 groups of 3 rows each
    by_group = mini_batch.reshape(12, 3)
    assert (by_group == by_group[:, :1]).all()


def test_the_draw_depends_on_seed_and_step_alone():
    group_ids = torch.arange(64).repeat_interleave(2)
    first = assign_mini_batches(group_ids, 8, seed=1, step=5)
    assert first.equal(assign_mini_batches(group_ids, 8, seed=1, step=5))
    assert not first.equal(assign_mini_batches(group_ids, 8, seed=1, step=6))
    assert not first.equal(assign_mini_batches(group_ids, 8, seed=2, step=5))


def test_the_order_of_rows_does_not_matter():
    group_ids = torch.arange(16).repeat_interleave(2)
    shuffled = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    expected = assign_mini_batches(group_ids, 4, seed=3, step=0)[shuffled]
    assert assign_mini_batches(group_ids[shuffled], 4, seed=3, step=0).equal(expected)


def test_balanced_mini_batches_have_equal_groups_and_near_equal_tokens():
    generator = torch.Generator().manual_seed(0)
    group_ids = torch.arange(48).repeat_interleave(2)
    tokens = torch.randint(10, 1000, (96,), generator=generator)
    mini_batch = assign_mini_batches(group_ids, 6, seed=1, step=0, tokens=tokens)
    assert mini_batch.bincount().tolist() == [16] * 6
    by_group = mini_batch.reshape(48, 2)
    assert (by_group == by_group[:, :1]).all()

    def spread(dealt):
        totals = torch.zeros(6, dtype=torch.int64).scatter_add(0, dealt, tokens)
        return int(totals.max() - totals.min())

    longest = int(tokens.reshape(48, 2).sum(dim=1).max())
    unbalanced = spread(assign_mini_batches(group_ids, 6, seed=1, step=0))
    assert spread(mini_batch) <= min(longest, unbalanced // 4)


def test_balanced_mini_batches_by_hand():
    # Groups of 9, 8, 3, 1 tokens: 9 and 8 are dealt first, then the 3 to the 8 and the 1 to the 9.
    tokens = torch.tensor([1, 8, 9, 3])
    mini_batch = assign_mini_batches(torch.arange(4), 2, seed=0, step=0, tokens=tokens)
    assert mini_batch[0] == mini_batch[2] != mini_batch[1] == mini_batch[3]


def test_the_place_of_a_long_group_is_drawn():
    tokens = torch.tensor([100, 1, 1, 1])
    places = {int(assign_mini_batches(torch.arange(4), 4, seed=0, step=step, tokens=tokens)[0]) for step in range(40)}
    assert places == {0, 1, 2, 3}


def test_one_mini_batch_takes_all():
    assert assign_mini_batches(torch.arange(5), 1, seed=0, step=0).tolist() == [0] * 5
