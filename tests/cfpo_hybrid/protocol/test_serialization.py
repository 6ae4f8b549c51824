"""Batches as bytes: they come back equal, and damaged or hostile bytes raise instead of running or crashing."""

import contextlib
import json
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cfpo_hybrid.errors import BatchError
from cfpo_hybrid.protocol import DataProto, from_bytes, load, save, to_bytes


def make_batch() -> DataProto:
    return DataProto(
        {
            "prompts": torch.arange(15).reshape(5, 3),
            "truncated": torch.tensor([True, False, True, False, False]),
            "old_log_probs": torch.tensor([[float("nan"), -1.5]] * 5),
            "problem": ["1+1", "ü", "", "x" * 1000, "\n"],
            "extra": [{"a": [1, None]}, {}, {"b": "c"}, {}, {}],
        },
        {"step": 3, "note": ["x", 1.5, None]},
    )


def assert_equal(left: DataProto, right: DataProto) -> None:
    assert left.column_names == right.column_names and dict(left.meta) == dict(right.meta)
    for name in left.column_names:
        if isinstance(left[name], torch.Tensor):
            assert torch.allclose(left[name].double(), right[name].double(), equal_nan=True), name
        else:
            assert left[name].tolist() == right[name].tolist(), name


def test_round_trip_through_bytes_and_files(tmp_path):
    batch = make_batch()
    assert_equal(from_bytes(to_bytes(batch)), batch)
    save(batch, tmp_path / "batch.bin")
    save(batch.rows([4, 0]), tmp_path / "batch.bin")  # replaces the first
    assert_equal(load(tmp_path / "batch.bin"), batch.rows([4, 0]))
    assert [path.name for path in tmp_path.iterdir()] == ["batch.bin"]


@pytest.mark.parametrize("shape", [(2,), (2, 1), (2, 3)])
def test_advantages_come_back_in_the_shape_they_had(tmp_path, shape):
    batch = DataProto({"advantages": torch.rand(shape)})
    save(batch, tmp_path / "batch.bin")
    loaded = load(tmp_path / "batch.bin")
    assert loaded["advantages"].equal(batch["advantages"]) and loaded.widths == batch.widths


def test_a_batch_without_rows_survives():
    empty = make_batch().rows([])
    assert_equal(from_bytes(to_bytes(empty)), empty)


def test_a_pickle_is_refused_unread():
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("code in a batch was run",))

    for data in (pickle.dumps(Bomb()), b"", b"CFPOBAT1"):
        with pytest.raises(BatchError, match="no batch"):
            from_bytes(data)


def test_objects_that_json_cannot_hold_are_refused():
    with pytest.raises(BatchError, match="saved as JSON"):
        to_bytes(DataProto({"extra": [{"path": object()}]}))


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_damaged_bytes_raise_batch_errors_only(data):
    original = to_bytes(make_batch())
    damaged = bytearray(original[: data.draw(st.integers(0, len(original)))])
    if damaged:
        damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(BatchError):
        from_bytes(damaged)


@pytest.mark.parametrize(
    "tensor",
    [
        {"name": "rewards", "dtype": "float32", "shape": [1 << 62], "offset": 0},
        {"name": "rewards", "dtype": "float32", "shape": [4], "offset": -16},
        {"name": "rewards", "dtype": "O", "shape": [1], "offset": 0},
        {"name": "rewards", "dtype": "float32", "shape": [1.5], "offset": 0},
        {"name": ["rewards"], "dtype": "float32", "shape": [1], "offset": 0},
    ],
)
def test_hostile_headers_are_refused(tensor):
    header = json.dumps({"tensors": [tensor], "objects": {}, "meta": {}}).encode()
    with pytest.raises(BatchError):
        from_bytes(b"CFPOBAT1" + len(header).to_bytes(8, "little") + header + bytes(64))


@pytest.mark.parametrize(
    "header",
    [b"[]", b"3", b'{"tensors": [], "objects": [1], "meta": {}}', b'{"tensors": [], "objects": {}, "meta": 5}'],
)
def test_headers_of_another_shape_are_refused(header):
    with pytest.raises(BatchError, match="damaged"):
        from_bytes(b"CFPOBAT1" + len(header).to_bytes(8, "little") + header)
