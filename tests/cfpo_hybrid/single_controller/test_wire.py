"""What a worker decodes is what the driver encoded, wherever its columns lie. The object store is a list."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import ray
import torch

from cfpo_hybrid.protocol import DataProto
from cfpo_hybrid.protocol.columns import Selection
from cfpo_hybrid.single_controller.dispatch import Arguments
from cfpo_hybrid.single_controller.wire import (
    INLINE_BYTES,
    StoredBatch,
    decode_call,
    decode_reply,
    encode_call,
    encode_reply,
)

Trip = Callable[..., tuple[str, bool, Arguments]]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was put into the object store; a reference is the place in it."""
    stored: list[Any] = []
    monkeypatch.setattr(ray, "put", lambda value: stored.append(value) or len(stored) - 1)
    monkeypatch.setattr(ray, "get", stored.__getitem__)
    return stored


@pytest.fixture
def trip(store: list[Any]) -> Trip:
    """The way of a call to one worker, with references resolved as Ray does it."""

    def travel(
        arguments: Arguments, rows: list[int] | None = None, *, answers: bool = True
    ) -> tuple[str, bool, Arguments]:
        message, *references = encode_call("score", arguments).message(
            None if rows is None else np.array(rows), answers
        )
        assert len(message) < 4096 + INLINE_BYTES
        return decode_call(message, *[None if reference is None else store[reference] for reference in references])

    return travel


def far(batch: DataProto) -> DataProto:
    """The same batch with all columns in the store."""
    return DataProto.of_state(batch.state(()), dict.fromkeys(batch.column_names, Selection((StoredBatch(batch),))))


def test_rows_of_a_large_batch_at_hand_are_stored_once_and_beside_what_lies_in_the_store_already(store, trip):
    width = INLINE_BYTES // 8
    batch = DataProto({"prompts": torch.arange(4 * width).view(4, width), "prompt_lengths": torch.full((4,), width)})
    near = batch.rows([3, 1])  # nothing is gathered yet
    stored = far(DataProto({"responses": torch.arange(6).view(2, 3)}))
    _, _, arguments = trip(Arguments((near.merge(stored),), {}), [1, 0])
    assert len(store) == 2 and store[1].column_names == ("prompt_lengths", "prompts")
    (found,) = arguments.args
    assert set(found.deferred) == {"prompts", "prompt_lengths", "responses"}
    assert found["prompts"].equal(batch["prompts"][[1, 3]]) and found["responses"].tolist() == [[3, 4, 5], [0, 1, 2]]


@pytest.mark.parametrize("rows", [None, [2, 0]], ids=["all rows", "some rows"])
def test_columns_of_the_message_join_those_of_the_store(trip, rows):
    near = DataProto({"prompts": torch.arange(6).view(3, 2), "prompt_lengths": torch.tensor([2, 1, 2])})
    batch = near.merge(far(DataProto({"responses": torch.arange(12).view(3, 4)})))
    method, answers, arguments = trip(Arguments((batch,), {}), rows)
    (found,) = arguments.args
    assert (method, answers, found.column_names) == ("score", True, batch.column_names)
    assert all(found[name].equal(batch[name][rows or [0, 1, 2]]) for name in batch.column_names)


def test_stored_batches_that_no_row_needs_stay_behind(store):
    parts = [far(DataProto({"responses": torch.full((2, 3), number)})) for number in range(3)]
    call = encode_call("score", Arguments((DataProto.concat(parts),), {}))
    _, *references = call.message(np.array([5, 1]), answers=True)
    assert references == [0, None, 2]
    (found,) = decode_call(call.message(np.array([5, 1]), True)[0], store[0], None, store[2])[2].args
    assert found["responses"].tolist() == [[2, 2, 2], [0, 0, 0]]


def test_large_arguments_that_are_no_batch_are_stored_once_for_all_workers(store):
    text, batch = "x" * 2 * INLINE_BYTES, DataProto({"rewards": torch.arange(4.0)})
    call = encode_call("score", Arguments((text,), {"batch": batch, "scale": 2.0}))
    for rows, answers in ([3, 0], True), ([1], False):
        message, reference = call.message(np.array(rows), answers)
        method, asked, arguments = decode_call(message, store[reference])
        assert (method, asked, arguments.args, arguments.kwargs["scale"]) == ("score", answers, (text,), 2.0)
        assert arguments.kwargs["batch"]["rewards"].tolist() == rows and len(message) < 4096
    assert len(store) == 1


@pytest.mark.parametrize("width", [3, INLINE_BYTES])
def test_wide_columns_of_a_reply_stay_in_the_store_when_they_are_large(store, width):
    batch = DataProto({"old_log_probs": torch.rand(2, width), "rewards": torch.ones(2)}, {"note": "x"})
    reply = decode_reply(encode_reply(batch))
    assert set(reply.deferred) == ({"old_log_probs"} if width > 3 else set())
    assert len(store) == len(reply.deferred) and reply.meta == batch.meta
    assert all(reply[name].equal(batch[name]) for name in batch.column_names)
    assert decode_reply(encode_reply([1, "a"])) == [1, "a"]


@pytest.mark.parametrize("shape", [(2,), (2, 1), (2, INLINE_BYTES)])
def test_advantages_keep_their_shape_on_the_way(store, trip, shape):
    batch = DataProto({"advantages": torch.rand(shape), "response_mask": torch.ones(2, (shape[1:] or (1,))[0]).bool()})
    _, _, arguments = trip(Arguments((batch,), {}), [1, 0])
    (found,) = arguments.args
    assert found["advantages"].equal(batch["advantages"].flip(0))
    assert decode_reply(encode_reply(found))["advantages"].equal(batch["advantages"].flip(0))
