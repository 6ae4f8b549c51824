"""DataProto: the schema is enforced, transforms are what they say, deferred columns equal gathered ones."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from cfpo_hybrid import errors
from cfpo_hybrid.protocol import DataProto


def make_batch(rows: int = 4, width: int = 3) -> DataProto:
    return DataProto(
        {
            "prompts": torch.arange(rows * width).reshape(rows, width),
            "prompt_lengths": torch.arange(1, rows + 1).clamp(max=width),
            "problem": [f"problem {row}" for row in range(rows)],
        },
        {"step": 7},
    )


def test_reads_columns_and_keeps_tensors_in_a_tensordict():
    batch = make_batch()
    assert len(batch) == 4 and batch.column_names == ("problem", "prompt_lengths", "prompts")
    assert "prompts" in batch and "rewards" not in batch
    assert isinstance(batch.tensors, TensorDict) and batch.tensors.batch_size == torch.Size([4])
    assert batch["problem"][2] == "problem 2" and batch.meta["step"] == 7 and batch.widths == {"prompt": 3}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"reward": torch.zeros(2)}, "did you mean 'rewards'"),
        ({"rewards": torch.zeros(2, dtype=torch.float64)}, "dtype torch.float64"),
        ({"rewards": np.zeros(2)}, "dtype float64"),
        ({"problem": np.zeros(2)}, "dtype float64"),
        ({"rewards": torch.zeros(2, 3)}, r"shape \[2, 3\]"),
        ({"rewards": torch.zeros(2), "truncated": torch.zeros(3, dtype=torch.bool)}, "number of rows"),
        (
            {"responses": torch.zeros(2, 3, dtype=torch.int64), "old_log_probs": torch.zeros(2, 4)},
            "4 response positions wide",
        ),
        ({"problem": torch.zeros(2)}, "one Python object a row"),
        ({"rewards": [1.0, 2.0]}, "asks for a tensor"),
        ({}, "at least one column"),
        ({"advantages": torch.zeros(2, 3, 1)}, r"asks for the axes \[batch\] or \[batch, response\]"),
        ({"advantages": torch.zeros(2, 3), "old_log_probs": torch.zeros(2, 4)}, "4 response positions wide"),
    ],
)
def test_breaking_the_schema_is_an_error_that_says_how(columns, message):
    with pytest.raises(errors.BatchError, match=message):
        DataProto(columns)


def test_metadata_hold_json_only():
    with pytest.raises(errors.BatchError, match=r"meta 'a.b\[1\]' is a Tensor"):
        DataProto({"rewards": torch.zeros(1)}, {"a": {"b": [1, torch.zeros(1)]}})


def test_a_missing_column_names_the_stage_that_writes_it():
    with pytest.raises(errors.BatchError, match="which the stage 'reward' writes"):
        make_batch()["rewards"]


def test_transforms_return_new_batches():
    batch = make_batch()
    more = batch.with_columns(rewards=torch.ones(4)).with_meta(note="x")
    assert "rewards" not in batch and dict(batch.meta) == {"step": 7}
    assert dict(more.meta) == {"step": 7, "note": "x"} and more["rewards"].sum() == 4
    assert more.without("problem").column_names == ("prompt_lengths", "prompts", "rewards")
    assert more.select("rewards").widths == {}
    with pytest.raises(errors.BatchError, match="3 rows"):
        batch.with_columns(rewards=torch.ones(3))
    with pytest.raises(errors.BatchError, match="no column 'nothing'"):
        batch.without("nothing")


def test_rows_are_chosen_by_index_or_mask_and_chosen_again():
    batch = make_batch()
    assert batch.rows([3, 1])["prompt_lengths"].tolist() == [3, 2]
    assert batch.rows(torch.tensor([True, False, False, True]))["problem"].tolist() == ["problem 0", "problem 3"]
    again = batch.rows([3, 1, 0]).rows([2, 0])  # rows 0 and 3
    assert again["prompts"].tolist() == [[0, 1, 2], [9, 10, 11]] and again.meta["step"] == 7
    assert len(batch.rows([])) == 0 and batch.rows([])["prompts"].shape == (0, 3)
    with pytest.raises(errors.BatchError, match="asked of a batch of 4"):
        batch.rows([4])
    with pytest.raises(errors.BatchError, match=r"mask of shape \[3\] for a batch of 4 rows"):
        batch.rows([True, False, True])
    with pytest.raises(errors.BatchError, match="not by float64"):
        batch.rows([1.5])


def test_columns_added_after_a_choice_of_rows_belong_to_the_chosen_rows():
    chosen = make_batch().rows([2, 0]).with_columns(rewards=torch.tensor([20.0, 0.0]))
    assert chosen.rows([1])["rewards"].tolist() == [0.0] and chosen.rows([1])["prompt_lengths"].tolist() == [1]


def test_concat_pads_to_the_widest_and_undoes_a_split():
    narrow, wide = make_batch(2, 2), make_batch(3, 4)
    both = DataProto.concat([narrow, wide])
    assert both["prompts"][:2].tolist() == [[0, 1, 0, 0], [2, 3, 0, 0]] and both.widths == {"prompt": 4}
    assert both["prompts"][2:].equal(wide["prompts"])
    whole = make_batch(5)
    parts = [torch.tensor([4, 1]), torch.tensor([0, 2, 3])]
    together = DataProto.concat([whole.rows(part) for part in parts]).rows(torch.argsort(torch.cat(parts)))
    for name in whole.column_names:
        assert np.array_equal(np.asarray(together[name]), np.asarray(whole[name])), name


@pytest.mark.parametrize("travelled", [False, True])
def test_concat_puts_rows_where_they_belong(travelled):
    whole = make_batch(5)
    rows = [np.array([4, 1]), np.array([], dtype=np.int64), np.array([0, 2, 3])]
    parts = [whole.rows(own) for own in rows]
    if travelled:
        parts = [pickle.loads(pickle.dumps(part)) for part in parts]
    together = DataProto.concat(parts, rows=rows)
    assert together.meta == whole.meta
    for name in whole.column_names:
        assert np.array_equal(together.column(name), whole.column(name)), name


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 3), (0,), (0, 3)])
@pytest.mark.parametrize("travelled", [False, True])
def test_advantages_come_in_two_shapes_and_keep_theirs(shape, travelled):
    advantages = torch.rand(shape)
    batch = DataProto({"advantages": advantages, "rewards": torch.zeros(shape[0])})
    assert batch.widths == ({"response": shape[1]} if len(shape) > 1 else {})
    if travelled:
        batch = pickle.loads(pickle.dumps(batch))
    order = torch.randperm(shape[0])
    assert batch["advantages"].equal(advantages) and batch.select("advantages").widths == batch.widths
    assert batch.without("advantages").widths == {}
    assert batch.rows(order)["advantages"].equal(advantages[order])
    assert DataProto.concat([batch, batch.rows(order)])["advantages"].equal(torch.cat([advantages, advantages[order]]))
    assert batch.tensors["advantages"].equal(advantages)


def test_advantages_of_tokens_are_padded_like_responses_and_meet_only_their_like():
    narrow, wide = (DataProto({"advantages": torch.ones(1, width)}) for width in (2, 3))
    assert DataProto.concat([narrow, wide])["advantages"].tolist() == [[1, 1, 0], [1, 1, 1]]
    with pytest.raises(errors.BatchError, match="different shapes: only one of them has a token axis in advantages"):
        DataProto.concat([narrow, DataProto({"advantages": torch.ones(1)})])
    by_row = narrow.with_columns(advantages=torch.ones(1))
    assert by_row.widths == {} and by_row.with_columns(response_mask=torch.ones(1, 5).bool()).widths == {"response": 5}


def test_a_layout_gets_the_columns_that_its_methods_read():
    batch = make_batch().with_columns(seeds=torch.arange(4), rewards=torch.zeros(4))
    assert batch.read_by("rollout").column_names == ("prompt_lengths", "prompts", "seeds")
    assert batch.read_by("reward").column_names == ("problem",) and batch.read_by("reward").widths == {}
    assert len(batch.read_by("nobody")) == 4 and batch.read_by("nobody").column_names == ()
    with pytest.raises(errors.BatchError, match="'rewards', which the stage 'reward' writes and no worker reads"):
        batch.read_by("train")["rewards"]


def test_concat_needs_the_same_columns_and_metadata():
    with pytest.raises(errors.BatchError, match="different columns"):
        DataProto.concat([make_batch(), make_batch().without("problem")])
    with pytest.raises(errors.BatchError, match="different meta"):
        DataProto.concat([make_batch(), make_batch().with_meta(step=8)])
    assert DataProto.concat([make_batch(), make_batch().with_meta(step=8)], meta={}).meta == {}


def test_merge_joins_columns_of_the_same_rows():
    batch = make_batch()
    merged = batch.rows([3, 2, 1, 0]).merge(DataProto({"rewards": torch.tensor([3.0, 2.0, 1.0, 0.0])}, {"other": 1}))
    assert merged.rows([0])["prompt_lengths"].item() == 3 and merged.rows([0])["rewards"].item() == 3
    assert dict(merged.meta) == {"step": 7}
    with pytest.raises(errors.BatchError, match="both have"):
        batch.merge(batch)
    with pytest.raises(errors.BatchError, match="rows differ"):
        batch.merge(DataProto({"rewards": torch.zeros(3)}))
    left = DataProto({"responses": torch.zeros(2, 3, dtype=torch.int64)})
    with pytest.raises(errors.BatchError, match="widths"):
        left.merge(DataProto({"old_log_probs": torch.zeros(2, 4)}))


def test_num_tokens_counts_prompts_and_responses():
    batch = make_batch(3)
    assert batch.num_tokens.tolist() == [1, 2, 3] and batch.select("problem").num_tokens.tolist() == [0, 0, 0]
    assert batch.with_columns(response_lengths=torch.tensor([4, 0, 9])).num_tokens.tolist() == [5, 2, 12]


def test_pickling_carries_tensors_out_of_band_and_gathers_what_was_deferred():
    batch = make_batch(64, 128).rows(range(0, 64, 2))
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(batch, protocol=5, buffer_callback=buffers.append)
    assert len(data) < 4096 < 32 * 128 * 8 == max(buffer.raw().nbytes for buffer in buffers)
    back = pickle.loads(data, buffers=buffers)
    assert back["prompts"].equal(batch["prompts"]) and back["problem"].tolist() == batch["problem"].tolist()
    assert dict(back.meta) == {"step": 7}


@pytest.mark.parametrize("width", [0, 3])  # of one value a row only, and with a token axis
@pytest.mark.parametrize("rows", [0, 1, 5, 5000])  # as bytes, and as arrays out of band
def test_a_pickled_batch_is_read_cut_and_joined_like_the_batch_itself(rows, width):
    columns = {"rewards": torch.randn(rows), "truncated": torch.rand(rows) < 0.5, "seeds": torch.arange(rows)}
    wide = {"prompts": torch.arange(rows * width).reshape(rows, width)} if width else {}
    batch = DataProto({**columns, **wide, "problem": [f"problem {row}" for row in range(rows)]})
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(batch, protocol=5, buffer_callback=buffers.append)
    read_only = [memoryview(bytes(buffer.raw())) for buffer in buffers]  # as an object store gives them
    order = torch.randperm(rows)

    def restored() -> DataProto:
        return pickle.loads(data, buffers=read_only)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for ours, theirs in [
            (restored(), batch),
            (restored().rows(order), batch.rows(order)),
            (DataProto.concat([restored(), restored()]), DataProto.concat([batch, batch])),
            (DataProto.concat([restored(), batch]).rows(order), DataProto.concat([batch, batch]).rows(order)),
            (pickle.loads(pickle.dumps(restored())), batch),
        ]:
            assert ours.widths == theirs.widths and ours["problem"].tolist() == theirs["problem"].tolist()
            assert all(isinstance(ours[name], torch.Tensor) for name in (*columns, *wide))
            assert all(ours[name].equal(theirs[name]) for name in (*columns, *wide))


def test_a_column_that_is_a_slice_travels_out_of_band_too():
    batch = DataProto({"prompts": torch.arange(64 * 256).view(64, 256)[:, ::2]})
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(batch, protocol=5, buffer_callback=buffers.append)
    assert len(data) < 4096 and pickle.loads(data, buffers=buffers)["prompts"].equal(batch["prompts"])


def test_reading_gives_a_tensor_over_the_memory_that_was_given():
    tensor, array = torch.ones(3), np.ones(3, dtype=np.float32)
    assert DataProto({"rewards": tensor})["rewards"].data_ptr() == tensor.data_ptr()
    assert DataProto({"rewards": array})["rewards"].data_ptr() == array.ctypes.data
    assert DataProto({"rewards": array}).column("rewards") is array


def test_all_rows_in_order_are_a_view_without_a_copy():
    batch = make_batch()
    assert batch.rows(range(4))["prompts"].data_ptr() == batch["prompts"].data_ptr()
    assert DataProto.concat([batch])["prompts"].data_ptr() == batch["prompts"].data_ptr()


def test_fetch_brings_every_value_here():
    chosen = make_batch().rows([1, 2])
    assert set(chosen.deferred) == set(chosen.column_names)
    assert not chosen.fetch().deferred and chosen.fetch("prompts").column_names == ("prompts",)
