import torch

from trainer.mini_batches import assign_mini_batches


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


def test_one_mini_batch_takes_all():
    assert assign_mini_batches(torch.arange(5), 1, seed=0, step=0).tolist() == [0] * 5
